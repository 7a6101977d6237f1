"""The APIs that chats speak; the first one words what belongs to no dialect's route."""

from shieldgate.dialects.anthropic_messages import AnthropicMessages
from shieldgate.dialects.interface import Dialect
from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.dialects.openai_completions import OpenAICompletions
from shieldgate.dialects.openai_responses import OpenAIResponses

__all__ = ["DIALECTS", "Dialect"]

DIALECTS: tuple[Dialect, ...] = (
    OpenAIChat(),
    OpenAICompletions(),
    OpenAIResponses(),
    AnthropicMessages(),
)
