"""Kept texts as bytes that say nothing without a key."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from shieldgate.errors import ConfigurationError
from shieldgate.given_settings import flag, variable

KEY = variable("keep_texts_key")
KEY_FILE = flag("keep_texts_key_file")


class Seal:
    """Encrypts and authenticates bytes by Fernet, under the first of its keys; opens by any.

    So a new key is put before the old one, which goes when all that it sealed has expired.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        """Take keys of 32 bytes in base64; raise ConfigurationError."""
        if not keys:
            raise ConfigurationError(
                f"Kept texts are sealed, and there is no key. `openssl rand -base64 32` makes one: "
                f"give it as {KEY}, or its file as {KEY_FILE}."
            )
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
            self._digest_key = keys[0].encode()
        except ValueError:
            raise ConfigurationError(
                f"A key of kept texts ({KEY}, {KEY_FILE}) is not 32 bytes in base64. `openssl rand "
                "-base64 32` makes one; several are parted by blanks or commas, the newest first."
            ) from None

    @classmethod
    def of(cls, given: SecretStr | None, file: Path | None) -> Self:
        """Take keys from a setting or a file; raise ConfigurationError."""
        if given and file:
            raise ConfigurationError(f"{KEY} and {KEY_FILE} both give a key. Give one of them.")
        words = given.get_secret_value() if given else ""
        if file:
            try:
                words = file.read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError) as refused:
                reason = getattr(refused, "strerror", None) or "no text"
                raise ConfigurationError(f"{KEY_FILE} {file}: can't be read: {reason}.") from None
        return cls(re.findall(r"[^\s,]+", words))

    def seal(self, content: bytes) -> bytes:
        """Encrypt."""
        return self._fernet.encrypt(content)

    def digest(self, content: bytes) -> str:
        """Tell, by the first key alone, what is the same from what is not, and nothing else."""
        return hashlib.blake2b(content, key=self._digest_key, digest_size=16).hexdigest()

    def open(self, sealed: bytes) -> bytes | None:
        """Decrypt; None where no key fits or a byte was changed."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            return None
