"""Prompt segments in, token ids out; nothing a user types becomes a control token."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.pre_tokenizers import Metaspace

from shieldgate.errors import ModelError
from shieldgate.prompt import Control, Segment, render

# Characters that are looked at between two looks whether they are enough.
_CHUNK = 8192


class PromptEncoder:
    """Encodes prompts that are built of `control_tokens` and text; safe to share between threads.

    `special_tokens` names those that a model's configuration calls special, beside what the
    tokenizer marks itself. Raises ModelError for a tokenizer without the control tokens, or one
    that turns text into control tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        control_tokens: Collection[str],
        special_tokens: Collection[str] = (),
    ) -> None:
        # A copy, in which control tokens are plain text.
        self._backend = Tokenizer.from_str(tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._unknown: str | None = getattr(self._backend.model, "unk_token", None)
        self._control = {token: self._id(token) for token in control_tokens}
        added = self._backend.get_added_tokens_decoder()
        # Some checkpoints list turn markers as ordinary added tokens, which would match in text.
        ordinary = [t for t, i in self._control.items() if i not in added or not added[i].special]
        self._backend.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in ordinary]
        )
        pre_tokenizer = self._backend.pre_tokenizer
        # Some put a space before the first word of a whole text.
        self._spaced = isinstance(pre_tokenizer, Metaspace) and (
            pre_tokenizer.prepend_scheme == "first"
        )
        self._read_segments(True)
        self.special_tokens = self._special({*special_tokens, *control_tokens})
        self._refuse_forgeable()
        # Of each character, the length of the longest token that has it.
        self._longest: dict[str, int] = {}
        for text in sorted(self._backend.get_vocab(with_added_tokens=True), key=len):
            self._longest.update(dict.fromkeys(text, len(text)))

    @property
    def largest_id(self) -> int:
        """Give the largest token id, which the embedding must hold."""
        return max(self._backend.get_vocab(with_added_tokens=True).values())

    def encode(self, prompts: Sequence[Sequence[Segment]]) -> list[list[int]]:
        """Encode prompts to token ids; text that several of them share is encoded once."""
        texts = {s: _valid(s) for prompt in prompts for s in prompt if isinstance(s, str)}
        encodings = self._backend.encode_batch_fast(list(texts.values()), add_special_tokens=False)
        ids = dict(zip(texts, (e.ids for e in encodings), strict=True))
        return [
            [
                i
                for s in prompt
                for i in ([self._control[s.token]] if isinstance(s, Control) else ids[s])
            ]
            for prompt in prompts
        ]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Give the character span [start, end) of each token of `text`."""
        # As a batch of one: only batches let other threads run meanwhile.
        encoding: Encoding
        [encoding] = self._backend.encode_batch([_valid(text)], add_special_tokens=False)
        return list(encoding.offsets)

    def least_tokens(self, text: str, most: float) -> int:
        """Tell how many tokens `text` has at least, from its characters and at once.

        A token of n characters has at most 1/n of itself for each of them, so the sum over the
        characters of 1 / the longest token with that character is a lower bound; a character
        that no token has becomes its bytes. Counting ends beyond `most`. 0 where the tokenizer
        isn't of that kind.
        """
        if not getattr(self._backend.model, "byte_fallback", False):
            return 0
        longest, normalizer, least = self._longest, self._backend.normalizer, 0.0
        for start in range(0, len(text), _CHUNK):
            chunk = _valid(text[start : start + _CHUNK])
            normal = normalizer.normalize_str(chunk) if normalizer else chunk
            least += sum(
                count / longest[c] if c in longest else count * len(c.encode())
                for c, count in Counter(normal).items()
            )
            if least > most:
                break
        return int(least)

    def token(self, text: str) -> int:
        """Find the one token that an answer is; raise ModelError where there is none."""
        named = {name: i for i, name in self.special_tokens.items()}
        if text in named:
            return named[text]
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ModelError(
                f"The tokenizer splits {text!r} into {len(ids)} tokens, and the score is read from "
                "one. Use a template whose answers are single tokens of this tokenizer."
            )
        if self._backend.id_to_token(ids[0]) == self._unknown:
            raise ModelError(
                f"The tokenizer does not know the answer {text!r}. Use a template whose answers "
                "are single tokens of this tokenizer."
            )
        return ids[0]

    def check_seams(self, prompt: Sequence[Segment]) -> None:
        """Raise ModelError where the tokenizer, left to itself, reads a prompt as other ids.

        For the time of construction: no other thread may encode meanwhile.
        """
        self._read_segments(False)
        whole = self._backend.encode(render(prompt), add_special_tokens=False).ids
        self._read_segments(True)
        if whole == self.encode([prompt])[0]:
            return
        texts = [s for s in prompt if isinstance(s, str)]
        for name in self.special_tokens.values():
            if any(name in text for text in texts):
                raise ModelError(
                    f"The template has {name} in its text, which is a control token of the "
                    "tokenizer. List it under control_tokens."
                )
        raise ModelError(
            "The tokenizer reads text after a control token in another way than text alone. Use "
            "a template that begins with a control token, or another tokenizer.json."
        )

    def _read_segments(self, yes: bool) -> None:
        """Read text as parts of a prompt, free of control tokens, or as the tokenizer does."""
        self._backend.encode_special_tokens = yes
        if self._spaced:
            self._backend.pre_tokenizer.prepend_scheme = "never" if yes else "first"

    def _id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise ModelError(
                f"The tokenizer has no {token} token, with which the template builds its prompts. "
                "Give the template that belongs to this model, or the model's own tokenizer files."
            )
        return int(found)

    def _special(self, names: Collection[str]) -> dict[int, str]:
        """Map the ids of all special tokens to their names, but for what stands for the unknown."""
        added = self._backend.get_added_tokens_decoder()
        known = {i: token.content for i, token in added.items() if token.special}
        known |= {i: n for n in names if (i := self._backend.token_to_id(n)) is not None}
        return {i: name for i, name in known.items() if name != self._unknown}

    def _refuse_forgeable(self) -> None:
        for text in _forgeries([self.special_tokens[i] for i in sorted(self.special_tokens)]):
            ids = self._backend.encode(text, add_special_tokens=False).ids
            forged = self.special_tokens.keys() & ids
            if forged:
                raise ModelError(
                    f"The tokenizer turns the plain text {text!r} into the control token "
                    f"{self.special_tokens[min(forged)]}, so users could break out of their turn. "
                    "Use a tokenizer.json that lists control tokens as special."
                )


def _forgeries(tokens: Sequence[str]) -> Iterable[str]:
    """List texts that try to become a control token: whole, doubled, padded, and cut in two."""
    yield "".join(tokens)
    for token in tokens:
        yield from (token, token * 2, f" {token} ", f"\n{token}\n", f"a{token}a", f"<{token}>")
        yield from (f"{token[:i]}{token}{token[i:]}" for i in range(1, len(token)))


def _valid(text: str) -> str:
    """Replace what no UTF-8 text can hold (lone surrogates) by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
