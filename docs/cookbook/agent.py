"""An agent that reads and sends mail behind a guard: `python agent.py TASK [MODEL]`.

The mailbox is a dict below; put your own tools there.
"""

import json
import sys
from typing import Any

import openai

MAILS = {
    "Ada": "Can you bring two loaves on Friday?",
    "Bob": "I will find you and break your legs, you worthless idiot.",
}


def read_mail(sender: str) -> str:
    """Give the newest mail of a sender."""
    return MAILS.get(sender, "There is none.")


def send_mail(text: str) -> str:
    """Send an answer."""
    print(f"sent: {text}")
    return "It was sent."


TOOLS = {"read_mail": read_mail, "send_mail": send_mail}


def described(name: str, argument: str) -> Any:
    """Describe a tool of one argument, a string, to the model."""
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}}
    description = TOOLS[name].__doc__ or ""
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def run(client: openai.OpenAI, model: str, task: str) -> str:
    """Work until the model answers in words, or the guard ends it; say how it ended."""
    turns: list[Any] = [{"role": "user", "content": task}]
    tools = [described("read_mail", "sender"), described("send_mail", "text")]
    for _ in range(10):
        try:
            reply = client.chat.completions.create(model=model, messages=turns, tools=tools)
        except openai.BadRequestError as refused:
            if refused.code != "content_filter":
                raise
            return f"stopped: {turns[-1]['role']} said what is not allowed"
        choice = reply.choices[0]
        if choice.finish_reason == "content_filter":
            return "stopped: the model wrote what is not allowed"
        if not choice.message.tool_calls:
            return f"done: {choice.message.content}"
        turns.append(choice.message.to_dict())
        for call in choice.message.tool_calls:
            print(f"calls {call.function.name}({call.function.arguments})")
            try:
                result = TOOLS[call.function.name](**json.loads(call.function.arguments))
            except (KeyError, TypeError, ValueError) as wrong:
                result = f"This call failed: {wrong}"
            turns.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return "stopped: ten rounds, and no end"


if __name__ == "__main__":
    task, *named = sys.argv[1:]
    print(run(openai.OpenAI(), named[0] if named else "stand-in", task))
