"""A chat in the terminal that knows what a guard can say: `python chat.py [MODEL]`."""

import sys

import openai
from openai.types.chat import ChatCompletionMessageParam


def answer(
    client: openai.OpenAI, model: str, turns: list[ChatCompletionMessageParam]
) -> str | None:
    """Print the answer as it comes, and give it; None where a turn was blocked or not judged."""
    said = ""
    try:
        stream = client.chat.completions.create(model=model, messages=turns, stream=True)
        for chunk in stream:
            for choice in chunk.choices:
                said += choice.delta.content or ""
                print(choice.delta.content or "", end="", flush=True)
                if choice.finish_reason == "content_filter":
                    print("[the rest was blocked]")
                    return None
    except openai.APIError as failed:
        if failed.code == "content_filter":
            print("[blocked: please say it in another way]")
        elif isinstance(failed, openai.APIStatusError) and failed.status_code < 500:
            raise
        else:  # the guard, the model, or the way to them
            print("[not available at the moment: please try again]")
        return None
    print()
    return said


def main(model: str) -> None:
    """Read a line, answer it, and remember both, unless they were blocked."""
    client = openai.OpenAI()  # where it is, and its key, say OPENAI_BASE_URL and OPENAI_API_KEY
    turns: list[ChatCompletionMessageParam] = []
    for line in sys.stdin:
        asked: ChatCompletionMessageParam = {"role": "user", "content": line.strip()}
        said = answer(client, model, [*turns, asked])
        if said is not None:
            turns += [asked, {"role": "assistant", "content": said}]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "stand-in")
