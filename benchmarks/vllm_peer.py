"""The other side of the race: run by the Python that has vLLM, asked by JSON lines.

Each line in is a list of prompts as token ids; each line out is the seconds that they took, and
the log-probability that each answers with `yes` and with `no`.
"""

import json
import os
import sys
import time


def main() -> None:
    """Load the checkpoint with vLLM's defaults, say that it is there, and answer."""
    folder, yes, no, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    # What libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - prints while it is imported

    llm = LLM(folder, skip_tokenizer_init=True, max_model_len=context)
    asked = SamplingParams(
        max_tokens=1, temperature=0, detokenize=False, logprob_token_ids=[yes, no]
    )

    def score(prompts: list[list[int]]) -> list[tuple[float, float]]:
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], asked, use_tqdm=False)
        found = [output.outputs[0].logprobs[0] for output in outputs]
        return [(one[yes].logprob, one[no].logprob) for one in found]

    print(json.dumps(str(llm.llm_engine.model_config.dtype)), file=answers, flush=True)
    for line in sys.stdin:
        # `first` have an answer before the rest is asked, which finds their beginning cached.
        first, *rest = json.loads(line)
        start = time.perf_counter()
        found = score(first) + (score(rest[0]) if rest else [])
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "found": found}), file=answers, flush=True)


if __name__ == "__main__":
    main()
