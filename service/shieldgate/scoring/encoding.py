"""Prompt segments in, token ids out; nothing a user types becomes a control token."""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from shieldgate.errors import ModelError
from shieldgate.prompt import CONTROL_TOKENS, Control, Segment


class PromptEncoder:
    """Encodes prompts with a Gemma-like tokenizer; safe to share between threads.

    Raises ModelError for a tokenizer that can't serve: not a fast one, without the control
    tokens, with `Yes` or `No` in more than one piece, or one that turns text into control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a copy of the tokenizer's backend, in which control tokens are plain text."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelError(
                "The checkpoint has no fast tokenizer. Add its tokenizer.json to the folder."
            )
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        # Some checkpoints list turn markers as ordinary added tokens, which would match in text.
        self._backend.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS]
            if all(self._backend.token_to_id(token) is not None for token in CONTROL_TOKENS)
            else []
        )
        self._backend.encode_special_tokens = True
        self._control = {token: self._id(token) for token in CONTROL_TOKENS}
        self.yes = self._answer("Yes")
        self.no = self._answer("No")
        self._refuse_forgeable(tokenizer)

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

    def _id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise ModelError(
                f"The tokenizer has no {token} token, so the checkpoint can't be a Gemma scorer. "
                "Use the tokenizer files that belong to a Gemma 2 or ShieldGemma checkpoint."
            )
        return int(found)

    def _answer(self, word: str) -> int:
        ids = self._backend.encode(word, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ModelError(
                f"The tokenizer splits {word!r} into {len(ids)} tokens, and the score is read from "
                "one. Use a tokenizer in which 'Yes' and 'No' are single tokens."
            )
        return int(ids[0])

    def _refuse_forgeable(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = self._backend.get_added_tokens_decoder()
        control = {*self._control.values(), *tokenizer.all_special_ids}
        control |= {i for i, token in added.items() if token.special}
        unknown = tokenizer.unk_token_id
        control.discard(unknown)
        for text in _forgeries([str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(control)]):
            forged = control.intersection(self._backend.encode(text, add_special_tokens=False).ids)
            if forged:
                raise ModelError(
                    f"The tokenizer turns the plain text {text!r} into the control token "
                    f"{tokenizer.convert_ids_to_tokens(min(forged))}, so users could break out of "
                    "their turn. Use a tokenizer.json that lists control tokens as special."
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
