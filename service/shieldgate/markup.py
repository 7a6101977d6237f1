"""Text without the marks that a terminal, a browser or a typesetter leaves out of it; pure."""

import re

# Of terminals: colours, titles, addresses.
_TERMINAL = re.compile(r"\x1b\[[0-?]{0,40}[ -/]{0,4}[@-~]|\x1b\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)")
# Of Markdown, BBCode and LaTeX, around single words or letters.
_AROUND = (
    (re.compile(r"\[([^\W\d_]{1,24}[.,;:!?]?)\]\([^()\s]{0,200}\)"), r"\1"),
    (re.compile(r"\[([a-z]{1,8})(?:=[^\[\]\s]{0,40})?\]([^\[\]\n]{1,40})\[/\1\]"), r"\2"),
    (re.compile(r"\\[`'^\"~=.](?:\{([A-Za-z])\}|([A-Za-z]))"), r"\1\2"),
    (re.compile(r"\\[a-zA-Z]{2,16}(?:\{[a-z0-9!]{1,16}\}(?=\{))?\{([^{}\\]{0,40})\}"), r"\1"),
    (re.compile(r"<(?:rt|rp)>[^<>]{0,24}</(?:rt|rp)>"), ""),
)
_MOST = 4


def unmarked(text: str) -> str:
    """Leave out what is not shown, and marks that stand around many words or letters."""
    if "\x1b" in text:
        text = _TERMINAL.sub("", text)
    for mark, shown in _AROUND:
        plain, count = mark.subn(shown, text)
        if count >= _MOST:
            text = plain
    return text.replace("$", "") if "$" in text and "\\" in text else text
