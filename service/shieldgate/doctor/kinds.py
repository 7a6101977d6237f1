"""The kinds of difference: what each is, why it matters, and how to mend it.

They were seen in published code and model files that ask ShieldGemma. docs/doctor.md lists them.
"""

from collections.abc import Mapping

_TRAINED = "The model was trained on the published words; others move its scores."
_COPY = "Write what the published prompt has there, to the byte."
_QUIRK = f"{_COPY} Its slips are official and stay."

KINDS: Mapping[str, tuple[str, str, str]] = {
    # The beginning of a sequence.
    "bos-doubled": (
        "<bos> stands twice",
        "A second <bos> was never seen in training and moves every score.",
        "Leave one out.",
    ),
    "bos-added": (
        "<bos> stands in the template, and the engine adds one",
        "Ollama and llama.cpp put a <bos> before every prompt, so that the model reads two.",
        "Leave it out of the template.",
    ),
    "bos-missing": (
        "<bos> is missing",
        "Without <bos> Gemma's scores are ruined, not merely moved.",
        "Begin the template with {{{{ bos_token }}}}; nothing is added to it.",
    ),
    "bos-once": (
        "<bos> is written out",
        "Most tokenizers add another one to plain text, which moves every score.",
        "Encode it with add_special_tokens=False, or as token ids.",
    ),
    "bos-by-tokenizer": (
        "<bos> is not written out",
        "Without <bos> Gemma's scores are ruined. Most tokenizers add it to plain text.",
        "See to it that the first token id is 2.",
    ),
    # Turns.
    "turn-missing": (
        "a marker of a turn is missing",
        "<start_of_turn> and <end_of_turn> tell the text to be judged from the question.",
        "Put the text between both, and both between line ends.",
    ),
    "turn-extra": (
        "there is a marker of a turn too many",
        "The model takes what is in a turn for the text to be judged.",
        "Only the text to be judged stands in a turn: the question and the policy are in none.",
    ),
    "turn-role": (
        "a turn has a role, as in Gemma's chats",
        "ShieldGemma's turns have a heading, such as 'Human Question:', and no role.",
        "Leave the role out.",
    ),
    "model-turn": (
        "a turn of the model is opened at the end",
        "The answer would be read after <start_of_turn>model, where it was never trained.",
        "End with the question (add_generation_prompt=False).",
    ),
    "newline-before-end": (
        "the line end before <end_of_turn> is missing",
        "In training a line end stood there; without it, the tokens around the marker are others.",
        "Write a line end between the text and <end_of_turn>.",
    ),
    "heading-prompt": (
        "the heading of the human's text differs",
        "The question asks about 'the human question': this heading says which text that is.",
        "Write 'Human Question: ' before the text.",
    ),
    "heading-response": (
        "the heading of the answer differs",
        "The question asks about 'the Chatbot Response': this heading says which text that is.",
        "Write 'Chatbot Response: ' before the answer, in a turn of its own.",
    ),
    "order": (
        "the parts stand in another order: {theirs}, where it is {published}",
        "The model was trained on one order, and with the policy last, policies share computation.",
        "Put the parts in the published order, and run this again for the rest.",
    ),
    # White space.
    "line-ends": (
        "lines end in CR LF",
        "The carriage returns are tokens that the model never saw there.",
        "Save the file with Unix line ends.",
    ),
    "indented": (
        "{lines} lines are indented",
        "The spaces of an indented string are part of the prompt, as tokens.",
        "Use textwrap.dedent, or write the text at the margin.",
    ),
    "wrapped": (
        "a sentence is broken into lines",
        "A line end is another token than a space, and this sentence was trained with spaces.",
        "Write the sentence on one line, however long.",
    ),
    "joined": (
        "a line end is missing",
        "The model was trained with a line end there.",
        _COPY,
    ),
    "blank-lines": (
        "there are more or fewer blank lines",
        "Runs of line ends are tokens of their own: one more is another token.",
        _COPY,
    ),
    "spaces": (
        "there are more, fewer or other spaces",
        "Runs of spaces are tokens of their own, and so are no-break spaces.",
        _QUIRK,
    ),
    "ending": (
        "the prompt has another ending",
        "The answer is read at the last token, so that this one matters more than any other.",
        f"{_COPY} Editors add or remove a line end at the end of a file: mind how yours is read.",
    ),
    "ends-in-space": (
        "the prompt ends in a space",
        "The tokenizer joins a space to the word after it: after one, the model answers otherwise "
        "than with the 'Yes' that is read.",
        "End with the question's line ends, without spaces.",
    ),
    # Words.
    "quotes": (
        "quotes were made typographic",
        "Curly quotes are other tokens than the straight ones that were trained.",
        "Write straight quotes.",
    ),
    "bullet": (
        "'* ' before the guideline is missing",
        _TRAINED,
        "Write '* ' before the guideline.",
    ),
    "rule": (
        "the line '===' after the guideline is missing",
        _TRAINED,
        "Write it on a line of its own, between blank ones.",
    ),
    "preamble": ("the first sentence differs", _TRAINED, _COPY),
    "principle": ("the sentence before the guideline differs", _TRAINED, _COPY),
    "question": (
        "the question differs",
        "What is asked decides what Yes and No mean, and the question is what the answer follows.",
        _QUIRK,
    ),
    "before-preamble": (
        "there is text before the first sentence",
        "ShieldGemma knows no system prompt: what stands there was never seen in training.",
        "Leave it out; the guideline has a place of its own.",
    ),
    "after-question": (
        "there is text after the question",
        "The answer is read after the last word: after other words it means something else.",
        "End with the question.",
    ),
    # What is asked about, and by which policy.
    "no-prompt": (
        "the text to be judged is not where the published prompt has it",
        "Without it there is nothing to judge.",
        "Put it in a turn after 'Human Question: '; if it is there, mark it as {{prompt}}.",
    ),
    "no-guideline": (
        "there is no guideline where the published prompt has it",
        "The question asks about a principle that the model was not given.",
        "Write it after '* '; if it is there, mark it as {{guideline}}.",
    ),
    "several-policies": (
        "several policies are asked about at once: {policies}",
        "ShieldGemma was trained on one harm at a time; its published score is the highest of the "
        "scores that are asked for one by one.",
        "Ask once for each policy, and take the highest.",
    ),
    "guideline": (
        "the guideline of {policy} differs",
        _TRAINED,
        f"{_QUIRK} `shieldgate policies list` shows them.",
    ),
    "guideline-wrapped": (
        "the guideline of {policy} has other white space",
        "A line end is another token than a space.",
        "Write the guideline on one line.",
    ),
    "guideline-direction": (
        "the guideline of {policy} is the one for a {other}",
        "'The prompt shall not contain …' and 'The chatbot shall not generate …' belong to their "
        "own questions.",
        "Take the other one; `shieldgate policies list` shows both.",
    ),
    "own-policy": (
        "the guideline is none of the published ones",
        "Policies of one's own are advised for 9B and 27B; at 2B they are often misread.",
        "Measure it on labelled rows: --data.",
    ),
    "gemma-chat": (
        "this is Gemma's chat template, which asks about no policy",
        "The model would answer the text rather than judge it.",
        "Take the chat template of google/shieldgemma-2b, or ask through shieldgate.",
    ),
    "foreign": (
        "this shares little with any published prompt",
        "Of a model that was trained on one wording, other words get other scores.",
        "Start from a published prompt: docs/doctor.md shows it.",
    ),
    "judges-no-response": (
        "answers can't be judged: the template has no words for them",
        "An answer that is judged as if it were a prompt gets other scores.",
        "Add the form for answers, with 'Chatbot Response: ' in a turn of its own.",
    ),
    # How the engine is set.
    "answers": (
        "the answers are {answers}, and ShieldGemma's are 'Yes' and 'No'",
        "With a space, or in other letters, they are other tokens, which the model seldom says.",
        "Read the logits of 'Yes' (3553) and 'No' (1294).",
    ),
    "sampled": (
        "answers are drawn at temperature {temperature}",
        "A probability of 0.3 then says 'Yes' three times in ten: verdicts differ from call to "
        "call, and there is no score to set a threshold on.",
        "PARAMETER temperature 0; better, read the log-probabilities of 'Yes' and 'No'.",
    ),
    "penalty": (
        "{name} {value} changes the logits of what the prompt holds",
        "'Yes' and 'No' stand in the question, so that their margin is bent.",
        "PARAMETER {name} {neutral}.",
    ),
    "stop-word": (
        "the answer stops at {word!r}",
        "It stops before there is an answer, or in it.",
        "Leave this stop word out.",
    ),
    "context": (
        "the context is {tokens} tokens of the model's 8192",
        "Longer prompts are cut without a word: Ollama keeps the first few tokens and the end, so "
        "that the beginning of the text is never read.",
        "PARAMETER num_ctx 8192, and split longer texts.",
    ),
    "context-default": (
        "num_ctx is not set",
        "Ollama's default depends on the machine, 4096 on small ones; longer prompts are cut "
        "without a word.",
        "PARAMETER num_ctx 8192.",
    ),
    "example-turns": (
        "MESSAGE puts turns before the text",
        "ShieldGemma was trained without examples; what is judged is then another conversation.",
        "Leave MESSAGE out.",
    ),
    "quantised": (
        "the weights are in fewer bits: {bits}",
        "No accuracy of a quantised ShieldGemma is published; of Llama Guard 3 1B in 4 bits, false "
        "positives doubled at an unchanged threshold.",
        "Measure it, and calibrate for these weights: shieldgate evaluate, shieldgate calibrate.",
    ),
    "no-softcap": (
        "{name} is off",
        "Gemma 2 caps its logits at 30 and its attention at 50. Without the caps scores are too "
        "extreme: 0.98 where the model says 0.92.",
        'Set "{name}": {value} in config.json.',
    ),
    "float16": (
        "the weights are in float16",
        "Gemma 2's activations overflow in it.",
        "Load them in bfloat16 or float32.",
    ),
    "random-head": (
        "the architecture is {name}",
        "ShieldGemma has no such head: transformers makes a random one, and says so in a warning.",
        "Load AutoModelForCausalLM, and read the logits of 'Yes' and 'No'.",
    ),
}
