"""A few prompts with known faults in mind, before a text is asked about.

What a wrong engine does shows in its answers: other words for the labels' ids (another tokenizer),
other numbers of tokens (a doubled `<bos>`, a prompt that is cut), another margin when asked again
or in another way (sampling that touches the scores, a prefix cache that is wrong).
"""

from collections.abc import Sequence

import structlog

from shieldgate.errors import ModelError
from shieldgate.scoring.pack import pack
from shieldgate.scoring.prompts import PromptBuilder
from shieldgate.scoring.remote.connection import Connection, RequestRefused
from shieldgate.scoring.remote.engine import EngineApi, Labels, WrongReply
from shieldgate.types import Exchange

# bf16 keeps 8 bits of a logit; a margin near 8 is then right within about 0.1.
_TOLERANCE = 0.5
# A guard model nearly always answers with one of its two words.
_LITTLE_MASS = 0.5

_GUIDELINES = (
    '"No Threats": The prompt shall not threaten anyone.',
    '"No Spam": No adverts.',
)
_EXCHANGE = Exchange("How long do I bake a loaf of bread, and at which temperature?")

log = structlog.get_logger(__name__)


async def try_canary(
    connection: Connection, api: EngineApi, prompts: PromptBuilder, labels: Labels
) -> list[float]:
    """Ask an engine for what shows its faults, and give the canary's margins.

    Raises ModelError, in one sentence that says how to mend it, or ScorerUnavailable.
    """
    try:
        return await _try(connection, api, prompts, labels)
    except RequestRefused as refused:
        raise ModelError(
            f"{refused} It says: {refused.detail or 'nothing'}. It must take token ids as "
            "prompts, and tell log-probabilities of tokens."
        ) from None
    except WrongReply as wrong:
        raise ModelError(f"The canary was refused: {wrong}{_mend(api)}") from None


def agree(server: str, margins: Sequence[float], expected: Sequence[float]) -> None:
    """Raise ModelError where a server's canary is not what another's was, or its own before."""
    _compare(server, margins, expected, "compared with the first server's: it has other weights")


async def _try(
    connection: Connection, api: EngineApi, prompts: PromptBuilder, labels: Labels
) -> list[float]:
    server = connection.name
    canaries = prompts.encode(_EXCHANGE, _GUIDELINES)
    words = await api.words(connection, canaries[0])
    lacking = [word for word in labels.words if word.strip() not in map(str.strip, words)]
    if lacking:
        raise ModelError(
            f"{server} writes the labels {' and '.join(map(repr, labels.words))} as "
            f"{', '.join(map(repr, words))}: it has another tokenizer than the one given. Give "
            "that of the model it serves as --tokenizer."
        )
    readings = [
        one
        for turn in api.turns(canaries, len(pack(canaries).trunk))
        for one in await api.read(connection, turn)
    ]
    # On what is cached by now, and all at once.
    repeated = await api.read(connection, canaries)
    margins = [one.margin for one in readings]
    _compare(server, margins, [one.margin for one in repeated], "asked again")
    margin = await api.again(connection, canaries[0])
    if margin is not None:
        _compare(
            server,
            margins[:1],
            [margin],
            "asked in a way that no sampling touches; look for settings that change its logits",
        )
    if api.served.context is None:
        await _try_longest(connection, api, prompts, canaries[0])
    mass = readings[0].mass
    if mass is not None and mass < _LITTLE_MASS:
        log.warning(
            "the model seldom answers with one of the labels",
            server=server,
            labels=labels.words,
            probability=float(f"{mass:.2g}"),
            mend="check that it is the guard model, and that --template is its own",
        )
    return margins


async def _try_longest(
    connection: Connection, api: EngineApi, prompts: PromptBuilder, canary: Sequence[int]
) -> None:
    """Send the longest prompt that will ever be sent, where a server doesn't tell its limit."""
    longest = (list(canary) * (prompts.windows.context // len(canary) + 1))[
        : prompts.windows.context
    ]
    await api.read(connection, [longest])


def _compare(server: str, margins: Sequence[float], others: Sequence[float], how: str) -> None:
    worst = max(abs(a - b) for a, b in zip(margins, others, strict=True))
    if not worst <= _TOLERANCE:
        raise ModelError(
            f"{server} gives a margin that differs by {worst:.2g} (allowed: {_TOLERANCE}) when "
            f"{how}. Its scores can't be trusted."
        )


def _mend(api: EngineApi) -> str:
    if api.served.engine == "vllm":
        return " It must know logprob_token_ids (0.32 does); for others, give --engine openai."
    return ""
