"""Short passages of a long text, a sentence or two each; pure.

A scorer weighs the whole of what it reads, so a harmful sentence is lost among enough harmless
ones; in a passage it stands nearly alone. The worst passage counts (MaxP; Dai and Callan, SIGIR
2019). In code, data and markup, so do the texts in it.
"""

import re

SENTENCE_END = re.compile(r"""[.!?…]["')\]]*\s+|[\n。！？]\s*""")  # noqa: RUF001 - Chinese signs
_BLANK = re.compile(r"\s")
# What stands around the texts in code, data and markup, where there is more of it than two quotes.
_SIGNS = re.compile(r"""[<>{}\[\]|"`=\\#\t]+|--+|\*+|//+|(?<=\W)'|'(?=\W)""")
_MANY_SIGNS = 3
_EDGES = " :,;%-'()/\n"
# So many words may say something by themselves.
_SOME_WORDS = 5


def passages(text: str, size: int) -> list[str]:
    """Cut a text into passages of at most `size` characters; one that has no more is left whole.

    A passage ends with the first sentence that ends in it after a fifth of `size`. Where none does,
    it ends after a word, and the next one begins half of `size` before that. So every sentence of
    up to four fifths of `size` is whole in a passage, and so is every half of `size` of a longer
    one. More text leaves all passages but the last as they are, and there are at most five to each
    `size` characters. Blanks at their ends, which scorers take amiss, are left out.
    """
    if len(text) <= size:
        return [text]
    found, start = [], 0
    while start < len(text):
        most = start + size
        sentence = SENTENCE_END.search(text, start + size // 5, most)
        if sentence or most >= len(text):
            end = following = sentence.end() if sentence else len(text)
        else:
            words = [blank.end() for blank in _BLANK.finditer(text, most - size // 4, most)]
            end = words[-1] if words else most
            following = end - size // 2
        found.append(text[start:end].strip())
        start = following
    return found


def between_signs(passage: str) -> list[str]:
    """List the texts of five words or more that code, data or markup of a passage have in them.

    A scorer loses a sentence among tags, braces and names of fields as it does in others.
    """
    texts = _SIGNS.split(passage)
    if len(texts) <= _MANY_SIGNS:
        return []
    found = (text.strip(_EDGES) for text in texts)
    return [
        text
        for text in found
        if len(text) < 0.9 * len(passage) and len(text.split(None, _SOME_WORDS)) >= _SOME_WORDS
    ]
