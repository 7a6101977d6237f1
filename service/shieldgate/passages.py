"""Short passages of a long text, cut at the ends of sentences; pure.

A scorer weighs the whole of what it reads, so a harmful sentence is lost in enough harmless ones;
in a passage it stands among few. The worst passage counts (MaxP; Dai and Callan 2019, SIGIR).
"""

import re

_SENTENCE = re.compile(r"""[.!?…]["')\]]*\s+|[\n。！？]\s*""")  # noqa: RUF001 - signs of Chinese
_BLANK = re.compile(r"\s")


def passages(text: str, size: int) -> list[str]:
    """Cut a text into passages of at most `size` characters, each of which overlaps the next.

    A passage is two pieces side by side; a piece has a quarter of `size` or more, but the last,
    and a half at most. It ends after a sentence where one ends there, else after a word, so what
    is a quarter long, and every sentence of less than a half, is whole in a passage. More text
    leaves all passages but the last as they are. A text of one passage is left whole.
    """
    if len(text) <= size:
        return [text]
    half = size // 2
    ends = [0]
    while ends[-1] < len(text):
        ends.append(_end(text, ends[-1] + half // 2, ends[-1] + half))
    return [text[start:end] for start, end in zip(ends, ends[2:], strict=False)]


def _end(text: str, least: int, most: int) -> int:
    """Find where a piece ends that ends between two places."""
    if most >= len(text):
        return len(text)
    sentences = [found.end() for found in _SENTENCE.finditer(text, least, most)]
    words = [found.end() for found in _BLANK.finditer(text, least, most)]
    return max(sentences or words or [most])
