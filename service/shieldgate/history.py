"""What was said earlier, for requests that refer to it by an id of the model's server."""

import hmac
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import orjson

Items = Sequence[Any]

# What an entry takes beside its value, about.
_ENTRY_BYTES = 256


class SharedHistory(Protocol):
    """Keeps histories beyond this process. It may know nothing, and raises nothing."""

    async def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Look keys up at once, and soon; give those that are known."""
        ...

    async def keep(self, values: Mapping[bytes, bytes], seconds: float) -> None:
        """Store values for so long, before the next request may ask for them."""
        ...


class History:
    """Keeps what callers and models have said, each caller's for itself.

    It holds `max_bytes` in memory and each entry for `keep_seconds`; what was used last stays. An
    entry of more than `max_entry_bytes` is not kept. What is not in memory is looked up in
    `shared`, where there is one. Keys are HMACs under `secret`, so that they tell nothing.
    """

    def __init__(
        self,
        *,
        secret: bytes,
        max_bytes: int,
        max_entry_bytes: int,
        keep_seconds: float,
        shared: SharedHistory | None = None,
    ) -> None:
        self._secret = secret
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_entry_bytes
        self._keep_seconds = keep_seconds
        self._shared = shared
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    async def find(self, owner: str, ids: Sequence[str]) -> dict[str, Items]:
        """Give what was said under ids of an owner, as far as it is known."""
        keys = {id: self._key(owner, id) for id in ids}
        known = {key: value for key in keys.values() if (value := self._recall(key)) is not None}
        missing = [key for key in keys.values() if key not in known]
        if missing and self._shared:
            known |= await self._shared.find(missing)
        return {id: orjson.loads(known[key]) for id, key in keys.items() if key in known}

    async def keep(
        self, owner: str, said: Mapping[str, Items], seconds: float | None = None
    ) -> None:
        """Keep what was said under ids of an owner; for `seconds` at most, where they are given."""
        seconds = min(self._keep_seconds, seconds or self._keep_seconds)
        written = {self._key(owner, id): orjson.dumps(items) for id, items in said.items()}
        values = {k: v for k, v in written.items() if len(v) <= self._max_entry_bytes}
        for key, value in values.items():
            self._remember(key, value, seconds)
        if values and self._shared:
            await self._shared.keep(values, seconds)

    def _key(self, owner: str, id: str) -> bytes:
        named = b"history 1:" + len(owner).to_bytes(8) + f"{owner}{id}".encode(errors="replace")
        return hmac.digest(self._secret, named, "sha256")

    def _recall(self, key: bytes) -> bytes | None:
        until, value = self._entries.get(key, (0.0, b""))
        if until <= monotonic():
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return value

    def _remember(self, key: bytes, value: bytes, seconds: float) -> None:
        self._forget(key)
        self._entries[key] = monotonic() + seconds, value
        self._bytes += _ENTRY_BYTES + len(value)
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: bytes) -> None:
        if entry := self._entries.pop(key, None):
            self._bytes -= _ENTRY_BYTES + len(entry[1])
