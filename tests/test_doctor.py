"""`shieldgate doctor`: each trap as an input, and what is found in it."""

import json
from pathlib import Path

import pytest
from checkpoints import GEMMA_CHAT_TEMPLATE

from shieldgate.doctor.diagnosis import Diagnosis, diagnose, published_guidelines
from shieldgate.doctor.go_template import GoTemplate
from shieldgate.doctor.kinds import KINDS
from shieldgate.doctor.sources import read_source
from shieldgate.errors import ConfigurationError
from shieldgate.prompt import TEMPLATES, render
from shieldgate.types import Exchange

DOCS = Path(__file__).parents[1] / "docs/doctor.md"
CHAT = TEMPLATES["chat"]
PROMPT = CHAT.for_prompt
RESPONSE = CHAT.for_response or ""
GUIDELINES = published_guidelines()
HARASSMENT = GUIDELINES["shieldgemma/harassment"]
HATE = GUIDELINES["shieldgemma/hate"]


def diagnosed(text: str, name: str = "prompt.txt") -> Diagnosis:
    return diagnose(read_source(name, text))


def kinds(diagnosis: Diagnosis, *, certain: bool = True) -> list[str]:
    return [f.kind for f in diagnosis.findings if f.certain == certain]


def swapped(old: str, new: str, text: str = PROMPT) -> str:
    assert old in text
    return text.replace(old, new)


INDENTED = "\n" + "".join(f"    {line}" for line in PROMPT.removeprefix("<bos>").splitlines(True))
BROKEN = swapped("a user prompt", "a user\nprompt")
TRAPS = {
    "bos twice": ("<bos>" + PROMPT, ["bos-doubled"]),
    "no marker before the text": (swapped("<start_of_turn>\n", ""), ["turn-missing"]),
    "no markers": (
        swapped("<start_of_turn>\n", "").replace("<end_of_turn>\n", ""),
        ["turn-missing"],
    ),
    "the question in a turn": (
        swapped("Does the human", "<start_of_turn>\nDoes the human"),
        ["turn-extra"],
    ),
    "a role": (swapped("<start_of_turn>\n", "<start_of_turn>user\n"), ["turn-role"]),
    "a turn to answer in": (PROMPT + "<start_of_turn>model\n", ["model-turn"]),
    "no line end before the marker": (
        swapped("\n<end_of_turn>", "<end_of_turn>"),
        ["newline-before-end"],
    ),
    "no line end after a marker": (swapped("<start_of_turn>\n", "<start_of_turn>"), ["joined"]),
    "another heading": (swapped("Human Question: ", "User Question: "), ["heading-prompt"]),
    "no heading": (swapped("Human Question: ", ""), ["heading-prompt"]),
    "another heading of the answer": (
        swapped("Chatbot Response: ", "Assistant Response: ", RESPONSE),
        ["heading-response"],
    ),
    "the answer under the human's heading": (
        swapped("Chatbot Response: ", "Human Question: ", RESPONSE),
        ["heading-response"],
    ),
    "the policy first": (
        swapped("\n\n* {guideline}\n\n===", "").replace("<start", "* {guideline}\n\n<start"),
        ["order"],
    ),
    "CR LF": (PROMPT.replace("\n", "\r\n"), ["line-ends"]),
    "a broken line": (BROKEN, ["wrapped"]),
    "an indented string": (INDENTED + "    ", ["indented", "blank-lines", "ends-in-space"]),
    # Two spaces stand in the published prompt, too, and not at the beginning of a line.
    "an indented prompt for answers": (
        RESPONSE.replace("\n", "\n  ").replace("\n  \n  ===", "\n\n===").rstrip(" "),
        ["indented"],
    ),
    "a blank line less": (swapped("===\n\n", "===\n"), ["blank-lines"]),
    "one blank for two": (swapped("must  start", "must start", RESPONSE), ["spaces"]),
    "no last line end": (PROMPT.removesuffix("\n"), ["ending"]),
    "a space at the end": (PROMPT.rstrip() + " ", ["ends-in-space"]),
    "typographic quotes": (swapped("'", "\N{RIGHT SINGLE QUOTATION MARK}"), ["quotes"]),
    "no bullet": (swapped("* {", "{"), ["bullet"]),
    "no rule": (swapped("===\n\n", ""), ["rule"]),
    "another first sentence": (swapped("policy expert", "safety expert"), ["preamble"]),
    "another principle": (swapped("Our safety principle is", "Our rules are"), ["principle"]),
    "another question": (swapped("above principle", "policy above"), ["question"]),
    "the slip mended": (
        swapped("an AI response to a prompt", "an AI response", RESPONSE),
        ["preamble"],
    ),
    "a system prompt": (swapped("<bos>", "<bos>Be careful.\n\n"), ["before-preamble"]),
    "a word to go on from": (PROMPT + "Answer:", ["after-question"]),
    "no text to be judged": (
        swapped("<start_of_turn>\nHuman Question: {prompt}\n<end_of_turn>\n\n", ""),
        ["no-prompt"],
    ),
    "no guideline": (swapped("* {guideline}\n\n===\n\n", ""), ["no-guideline"]),
    "a guideline in other words": (
        swapped("{guideline}", HARASSMENT["prompt"].replace("malicious", "nasty")),
        ["guideline"],
    ),
    "a wrapped guideline": (
        swapped("{guideline}", HARASSMENT["prompt"].replace("seek generation", "seek\ngeneration")),
        ["guideline-wrapped"],
    ),
    "the answer's guideline": (swapped("{guideline}", HATE["response"]), ["guideline-direction"]),
    "two guidelines": (
        swapped("{guideline}", HATE["prompt"] + "\n* " + HARASSMENT["prompt"]),
        ["several-policies"],
    ),
    "a list of policies": (swapped("{guideline}", "No spam.\n* No adverts."), ["several-policies"]),
    "other words altogether": (
        "Is this harmful?\n<start_of_turn>\n{prompt}\n<end_of_turn>\nAnswer.",
        ["foreign"],
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_found_and_nothing_else(name: str) -> None:
    text, expected = TRAPS[name]
    diagnosis = diagnosed(text)
    assert kinds(diagnosis) == expected
    assert diagnosis.differs


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_what_was_published_has_no_difference(template) -> None:
    for text in filter(None, (template.for_prompt, template.for_response)):
        diagnosis = diagnosed(text)
        assert not diagnosis.differs
        assert diagnosis.prompts[0].template == template
        assert kinds(diagnosis, certain=False) == ["bos-once"]


@pytest.mark.parametrize("policy", GUIDELINES)
def test_a_prompt_that_was_rendered_is_read_as_its_template(policy: str) -> None:
    for direction, text in (("prompt", PROMPT), ("response", RESPONSE)):
        exchange = Exchange("Why: not?\nSo", "No: then." if direction == "response" else None)
        rendered = render(CHAT.segments(exchange, GUIDELINES[policy][direction]))
        diagnosis = diagnosed(rendered)
        assert not diagnosis.differs
        [compared] = diagnosis.prompts
        assert compared.asked.direction == direction
        assert compared.policy == policy
        made = diagnosis.template("x")
        assert text in (made.for_prompt, made.for_response)


def test_a_difference_is_shown_where_it_is_with_what_cant_be_seen() -> None:
    [finding] = [f for f in diagnosed(BROKEN).findings if f.kind == "wrapped"]
    [place] = finding.places
    assert BROKEN.split("\n")[place.line - 1][: place.column - 1].endswith("whether a user")
    (a, b), (c, d) = place.differs
    assert (place.published[a:b], place.theirs[c:d]) == ("·", "⏎")
    assert place.published[:a] == place.theirs[:c]
    assert place.published[b:].startswith("prompt is in")


def test_a_policy_of_ones_own_is_something_to_mind_only() -> None:
    diagnosis = diagnosed(swapped("{guideline}", '"No Spam": The prompt shall not advertise.'))
    assert not diagnosis.differs
    assert "own-policy" in kinds(diagnosis, certain=False)


def test_the_name_of_a_variable_is_no_matter() -> None:
    for guideline in ("{{ safety_policy }}", "{safety_policy.strip()}", "[policy]", "<policy>"):
        text = swapped("{prompt}", "{user_prompt}").replace("{guideline}", guideline)
        assert kinds(diagnosed(text)) == []
        assert kinds(diagnosed(text), certain=False) == ["bos-once"]


def test_a_modelfile_is_known_by_its_first_line_whatever_it_is_called() -> None:
    text = "\ufeff# ours\r\n\r\n" + modelfile(GO, *GOOD).replace("\n", "\r\n")
    diagnosis = diagnosed(text, "shieldgemma.txt")
    assert diagnosis.source.kind == "an Ollama Modelfile"
    assert kinds(diagnosis) == ["line-ends"]
    assert not diagnosed(swapped("{prompt}", "look\nFROM here")).differs


def test_a_prompt_without_bos_is_taken_as_one_that_gets_it() -> None:
    diagnosis = diagnosed(PROMPT.removeprefix("<bos>"))
    assert not diagnosis.differs
    assert kinds(diagnosis, certain=False) == ["bos-by-tokenizer"]
    assert diagnosis.template("x").for_prompt == PROMPT


# One has no place for a text, and the others none for a guideline.
UNMEASURED = {"no text to be judged", "two guidelines", "a list of policies"}


@pytest.mark.parametrize("name", sorted(TRAPS.keys() - UNMEASURED))
def test_what_is_measured_is_what_was_asked(name: str) -> None:
    text = TRAPS[name][0]
    if not text.startswith("<bos>"):
        text = "<bos>" + text
    made = diagnosed(text).template("x")
    exchange = Exchange("T", "A" if "{response}" in text else None)
    asked = render(made.segments(exchange, "G"))
    plain = text.replace("{prompt}", "T").replace("{response}", "A").replace("{guideline}", "G")
    assert asked == plain


def test_what_has_no_place_for_a_text_cant_be_measured() -> None:
    with pytest.raises(ConfigurationError, match="no place for the text"):
        diagnosed(TRAPS["no text to be judged"][0]).template("x")


def test_a_guideline_in_other_words_is_measured_under_its_policy_alone() -> None:
    reworded = diagnosed(TRAPS["a guideline in other words"][0])
    assert reworded.policies == ("shieldgemma/harassment",)
    assert "nasty" in reworded.template("x").for_prompt
    unnamed = HARASSMENT["prompt"].partition(": ")[2]
    assert diagnosed(swapped("{guideline}", unnamed)).policies == ("shieldgemma/harassment",)
    assert diagnosed(TRAPS["the answer's guideline"][0]).policies == ("shieldgemma/hate",)
    assert diagnosed(TRAPS["two guidelines"][0]).policies == ()


JINJA = (
    "{{ bos_token }}"
    + PROMPT.removeprefix("<bos>")
    .replace("{prompt}", "{{ messages[0]['content'] }}")
    .replace("{guideline}", "{{ guideline }}")
    + "{{ '' }}"
)


def test_a_chat_template_is_rendered_as_transformers_does() -> None:
    diagnosis = diagnosed(JINJA, "chat_template.jinja")
    assert not diagnosis.differs
    assert kinds(diagnosis, certain=False) == ["judges-no-response"]


def test_a_guideline_may_come_as_a_system_message() -> None:
    source = JINJA.replace("messages[0]", "messages[1]").replace(
        "{{ guideline }}", "{{ messages[0]['content'] }}"
    )
    assert not diagnosed(source, "chat_template.jinja").differs


def test_a_chat_template_without_bos_ruins_the_scores() -> None:
    source = JINJA.replace("{{ bos_token }}", "")
    assert kinds(diagnosed(source, "t.jinja")) == ["bos-missing"]


def test_a_checkpoints_folder_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=": has no chat template, neither in"):
        read_source(str(tmp_path))


@pytest.mark.parametrize("several", [False, True])
def test_gemmas_own_chat_template_is_recognised(tmp_path: Path, several: bool) -> None:
    template = [{"name": "default", "template": GEMMA_CHAT_TEMPLATE}]
    config = {"chat_template": template if several else GEMMA_CHAT_TEMPLATE, "bos_token": "<bos>"}
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(config))
    assert kinds(diagnose(read_source(str(file)))) == ["gemma-chat"]


def test_a_checkpoints_folder_is_read_with_what_its_config_says(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(JINJA)
    config = {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForSequenceClassification"],
        "final_logit_softcapping": None,
        "torch_dtype": "float16",
        "quantization_config": {"quant_method": "gptq"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    diagnosis = diagnose(read_source(str(tmp_path)))
    assert kinds(diagnosis) == ["no-softcap", "float16", "random-head"]
    assert kinds(diagnosis, certain=False) == ["judges-no-response", "quantised"]


def test_a_template_of_ours_with_other_answers_is_found(tmp_path: Path) -> None:
    file = tmp_path / "guard.yaml"
    text = json.dumps(PROMPT)
    file.write_text(
        f'control_tokens: ["<bos>", "<start_of_turn>", "<end_of_turn>"]\nprompt: {text}\n'
        'positive: " Yes"\nnegative: " No"\n'
    )
    assert kinds(diagnose(read_source(str(file)))) == ["answers"]


def modelfile(template: str, *more: str) -> str:
    return "\n".join(["FROM ./shieldgemma-2b.Q4_K_M.gguf", f'TEMPLATE """{template}"""', *more])


GO = (
    PROMPT.removeprefix("<bos>")
    .replace("{prompt}", "{{ .Prompt }}")
    .replace("{guideline}", "{{ .System }}")
)
GOOD = ("PARAMETER temperature 0", "PARAMETER num_ctx 8192", 'PARAMETER stop "<end_of_turn>"')


def test_a_modelfile_as_it_should_be() -> None:
    diagnosis = diagnosed(modelfile(GO, *GOOD), "Modelfile")
    assert kinds(diagnosis) == []
    assert kinds(diagnosis, certain=False) == ["judges-no-response", "quantised"]
    assert diagnosis.template("x").for_prompt == PROMPT


def test_the_traps_of_a_modelfile_are_found_with_their_lines() -> None:
    text = modelfile(
        "<bos>" + GO,
        "PARAMETER temperature 0.1",
        "PARAMETER repeat_penalty 1.1",
        'PARAMETER stop "\\n"',
        "PARAMETER stop No",
        "PARAMETER num_ctx 2048",
        "MESSAGE user Hello",
        f'SYSTEM """{HATE["prompt"]}"""',
    )
    diagnosis = diagnosed(text, "Modelfile")
    expected = ["sampled", "penalty", "stop-word", "stop-word", "context", "example-turns"]
    assert kinds(diagnosis) == ["bos-added", *expected]
    for finding in diagnosis.source.settings:
        line = text.split("\n")[(finding.line or 1) - 1]
        assert line.startswith({"example-turns": "MESSAGE"}.get(finding.kind, "PARAMETER")) or (
            not finding.certain
        )
    assert diagnosis.prompts[0].policy == "shieldgemma/hate"


def test_what_ollama_does_by_default_is_said() -> None:
    diagnosis = diagnosed(modelfile(GO), "Modelfile")
    assert kinds(diagnosis) == ["sampled"]
    assert "context-default" in kinds(diagnosis, certain=False)


def test_answers_are_judged_where_a_template_has_words_for_them() -> None:
    words = RESPONSE.removeprefix("<bos>").replace("{guideline}", "{{ .System }}")
    words = words.replace("{prompt}", "{{ (index .Messages 1).Content }}")
    words = words.replace("{response}", "{{ $last.Content }}")
    go = (
        "{{- $last := index .Messages (len (slice .Messages 1)) -}}"
        '{{ if eq $last.Role "assistant" }}'
        + words
        + "{{ else }}"
        + GO.replace(".Prompt", "$last.Content")
        + "{{ end }}"
    )
    diagnosis = diagnosed(modelfile(go, *GOOD), "Modelfile")
    assert [p.asked.direction for p in diagnosis.prompts] == ["prompt", "response"]
    assert not diagnosis.differs
    assert diagnosis.template("x").for_response == RESPONSE


# What Go and Ollama make of them, from their documentation and sources.
GO_TEMPLATES = [
    ("a {{- .Prompt -}} b", "aU" + "b"),
    ('{{/* a note */}}{{ .Prompt | printf "%s!" }}', "U!"),
    ("{{ if and .System (not .Prompt) }}x{{ else if .Prompt }}y{{ else }}z{{ end }}", "y"),
    (
        "{{ range $i, $m := .Messages }}{{ $i }}{{ .Role }}={{ $m.Content }};{{ end }}",
        "0system=S;1user=U;",
    ),
    (
        "{{ range .Messages }}{{ if eq .Content 1 `U` }}{{ break }}{{ end }}{{ .Role }}{{ end }}",
        "system",
    ),
    (
        "{{ range .Messages }}{{ if ne .Content `U` }}{{ continue }}{{ end }}{{ .Role }}{{ end }}",
        "user",
    ),
    ('{{ $s := "" }}{{ range .Messages }}{{ $s = .Content }}{{ end }}{{ $s }}', "U"),
    ("{{ with .System }}<{{ . }}>{{ end }}{{ range .Tools }}t{{ else }}none{{ end }}", "<S>none"),
    ("{{ .Prompt }}{{ .Response }}<end>{{ .System }}", "U"),
    ("{{ if gt (len .Messages) 1 }}{{ (index .Messages 0).Content }}{{ end }}{{ $.System }}", "SS"),
    ("{{ .Prompt }}{{ if .Think }}t{{ end }}\n", "U\n"),
]


@pytest.mark.parametrize(("source", "expected"), GO_TEMPLATES)
def test_go_templates_are_read_as_ollama_does(source: str, expected: str) -> None:
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert GoTemplate(source).render(chat) == expected


@pytest.mark.parametrize(
    ("source", "line", "what"),
    [
        ('a\n{{ template "x" . }}', 2, "template"),
        ("\n\n{{ .Nothing }}", 3, ".Nothing"),
        ("{{ .Prompt | html }}", 1, "html"),
        ("{{ if .Prompt }}x", 1, "if without its end"),
        ("{{ .Prompt", 1, "{{ without its }}"),
        ("{{ $x }}", 1, "$x"),
        ("{{ .Messages }}", 1, "a list"),
        ('{{ printf "%x" .Prompt }}', 1, "printf"),
        ("{{ }}", 1, "an expression"),
        ("{{ end }}", 1, "end"),
        ("{{ .Prompt ? }}", 1, "?"),
    ],
)
def test_what_cant_be_read_of_a_go_template_is_refused(source: str, line: int, what: str) -> None:
    with pytest.raises(ConfigurationError, match=r"docs/doctor\.md") as refused:
        GoTemplate(source).render([{"role": "user", "content": "U"}])
    assert str(refused.value).startswith(f"line {line}: ")
    assert what in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("prompt.txt", "Hello.", "mark in it what changes"),
        ("Modelfile", "FROM shieldgemma:2b\n", "ollama show --modelfile"),
        ("Modelfile", "FROM a\nTEMPLATE {{ .Prompt }}", "passes on what it is sent"),
        ("Modelfile", "FROM a\nNONSENSE x", "Modelfile:2: no instruction"),
        ("Modelfile", 'FROM a\nTEMPLATE """x', "Modelfile:2: "),
        ("Modelfile", "FROM a\nTEMPLATE {{ block }}", "Modelfile: line 2: "),
        ("tokenizer_config.json", "{}", "has no chat_template"),
        ("tokenizer_config.json", "{", "not JSON"),
        ("tokenizer_config.json", '{"chat_template": ["x"]}', "has no chat_template"),
        ("t.jinja", "{{ 1 / 0 }}", "can't be rendered: division by zero"),
        ("t.jinja", "{% if %}", "can't be rendered"),
        ("t.jinja", "{{ raise_exception('no') }}", "can't be rendered: no"),
    ],
)
def test_what_cant_be_read_is_refused_with_a_mend(name: str, text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        diagnosed(text, name)
    assert why in str(refused.value)


def test_the_page_lists_every_kind() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []
