"""Sentence embeddings of the training texts, for the starter to imitate.

A few labels say little about a text, and from-scratch training has nothing else to go by. An
encoder trained on a billion pairs of sentences tells for each text what it is about.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from shieldgate.errors import ConfigurationError

_TOKENS = 128  # read of each text; more would cost more than it tells
_CHARACTERS = 1_500
_BATCH = 4_000  # tokens


def embeddings(
    texts: Sequence[str], encoder: str, kept: Path, on_text: Callable[[int], None]
) -> Tensor:
    """Encode the texts: the mean of the encoder's last states, standardised, fp16 [texts, width].

    `encoder` is a folder or a name on the hub, such as sentence-transformers/all-MiniLM-L6-v2
    (mean pooling is its own way, arXiv 1908.10084). The result is kept in a file and taken from
    there the next time; `on_text(done)` is called now and then. Raises ConfigurationError if the
    encoder can't be loaded.
    """
    if not kept.exists():
        found = _encode(texts, encoder, on_text)
        with kept.with_suffix(".new").open("wb") as new:
            np.save(new, found)
        kept.with_suffix(".new").replace(kept)
    states = torch.from_numpy(np.load(kept)).float()
    # Some dimensions hardly vary: what they say is rounding.
    return ((states - states.mean(0)) / states.std(0).clamp(min=0.02)).half()


@torch.no_grad()
def _encode(
    texts: Sequence[str], encoder: str, on_text: Callable[[int], None]
) -> np.ndarray[tuple[int, int], np.dtype[np.float16]]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        model = AutoModel.from_pretrained(encoder, dtype=torch.bfloat16).eval()
    except (OSError, ValueError) as wrong:
        raise ConfigurationError(
            f"--encoder {encoder!r} can't be loaded. Give the name of a sentence encoder on the "
            "hub, or a folder that holds one."
        ) from wrong
    cut = [text[:_CHARACTERS] for text in texts]
    ids: list[list[int]] = tokenizer(cut, truncation=True, max_length=_TOKENS)["input_ids"]
    found = np.zeros((len(ids), model.config.hidden_size), np.float16)
    by_length = sorted(range(len(ids)), key=lambda at: len(ids[at]))
    done = 0
    while done < len(by_length):
        # The shortest come first, so this many of the next fit the batch, or nearly.
        batch = by_length[done : done + max(1, _BATCH // len(ids[by_length[done]]))]
        padded = tokenizer.pad({"input_ids": [ids[at] for at in batch]}, return_tensors="pt")
        states = model(**padded).last_hidden_state.float()
        mask = padded["attention_mask"].unsqueeze(-1).float()
        found[batch] = ((states * mask).sum(1) / mask.sum(1)).numpy()
        done += len(batch)
        on_text(done)
    return found
