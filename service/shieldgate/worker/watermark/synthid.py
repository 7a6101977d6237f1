"""SynthID Text (Dathathri et al., Nature 634, 2024) by transformers' parts: marks, and their score.

Between two tokens of one probability, a tournament over the layers prefers those that a keyed hash
of the last tokens gives more ones (g-values). On average over keys no token gets likelier, and who
has the keys finds more ones than half.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import SynthIDTextWatermarkLogitsProcessor

from shieldgate.worker.watermark.keys import WatermarkKeys


class SynthIDWatermark:
    """Marks the distributions that tokens are drawn from, and scores tokens by their marks.

    It holds nothing of a text: what is marked hangs on the tokens before alone, so texts may be
    written side by side, drafted ahead and taken back. The first `ngram_len - 1` tokens of a text
    are not marked, because no reader could tell what came before them (transformers'
    `skip_first_ngram_calls`); nor are those after a context that the text has had already.
    """

    def __init__(self, keys: WatermarkKeys, device: torch.device | str = "cpu") -> None:
        self._context = keys.ngram_len - 1
        self._history = keys.context_history_size
        cpu = torch.device("cpu")
        parts: Any = SynthIDTextWatermarkLogitsProcessor(**keys.model_dump(), device=cpu)
        # Made on a GPU, the table would be another one, and no mark would be found elsewhere.
        parts.sampling_table = parts.sampling_table.to(device)
        parts.keys = parts.keys.to(device)
        parts.device = torch.device(device)
        self._parts = parts
        # A token's g-values by its hash, [layers, table]: the last step of the hash keeps what is
        # the same modulo the table's size the same. A tenth of the time of hashing each layer.
        hashes = torch.arange(keys.sampling_table_size, device=device)
        ends = [parts.accumulate_hash(hashes, key.expand(len(hashes), 1)) for key in parts.keys]
        self._g_values = parts.sample_g_values(torch.stack(ends, dim=-1)[None])[0].T.float()
        # The layers' weights in the score, from 10 to 1, because the first ones carry most.
        weights = torch.linspace(10, 1, len(keys.keys))
        self._weights = weights / weights.sum()

    def mark(self, probs: Tensor, written: Sequence[int]) -> Tensor:
        """Mark the distributions of the tokens that may follow.

        `probs`, [rows, vocabulary], are those after temperature, top-k and top-p. The last row
        follows all of `written`, each one before a token less. A row that has one token left, as
        at temperature 0, stays as it is. Returns as many rows.
        """
        marked = probs.clone()
        for row in range(len(probs)):
            before = written[: len(written) - len(probs) + 1 + row]
            if len(before) < self._context or self._is_repeated(before):
                continue
            [candidates] = probs[row].nonzero(as_tuple=True)
            context = torch.tensor(before[-self._context :], device=probs.device)
            start = torch.ones((), dtype=torch.long, device=probs.device)
            hashed = self._parts.accumulate_hash(start, context).expand(len(candidates))
            hashes = self._parts.accumulate_hash(hashed, candidates[:, None])
            g_values = self._g_values[:, hashes % self._g_values.shape[1]].T[None]
            scores = probs[row, candidates].log()[None]
            marked[row, candidates] = self._parts.update_scores(scores, g_values)[0].exp()
        return marked

    def _is_repeated(self, before: Sequence[int]) -> bool:
        """Tell whether the context of the next token is one of the last that the text has had."""
        end = len(before) - self._context
        context = before[end:]
        return any(
            before[at : at + self._context] == context
            for at in range(max(0, end - self._history), end)
        )

    def token_scores(self, tokens: Sequence[int]) -> list[float]:
        """Score the tokens of a text that can carry a mark, in 0..1, in their order.

        A score is the weighted mean of a token's g-values: 0.5 on average where nothing is marked
        with these keys. The mean over the tokens is the paper's weighted mean score.
        """
        if len(tokens) <= self._context:
            return []
        ids = torch.tensor([list(tokens)], device=self._parts.device)
        counts = self._parts.compute_context_repetition_mask(ids)[0].bool().cpu()
        g_values = self._parts.compute_g_values(ids)[0].cpu().float()
        return [float(score) for score in (g_values @ self._weights)[counts]]
