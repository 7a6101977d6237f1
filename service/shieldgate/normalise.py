"""Ways to read a text that was written to be read by people and missed by a scorer; pure.

Unicode's own list of confusables is made for comparing names: both are rewritten, into a form that
nobody would read. The tables here hold what is seen in disguised words, and fold it one way.
"""

import re
import unicodedata
from typing import Literal

from shieldgate.bidi import displayed
from shieldgate.codes import decoded
from shieldgate.english import is_word, plain_words
from shieldgate.markup import unmarked

# Unicode's Default_Ignorable_Code_Point, which includes what is known as zero-width, without the
# tags, which spell ASCII that only a model sees; control characters; strokes through letters.
_IGNORABLE = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
    "\u0334-\u0338\u0488\u0489\u20d0-\u20ff\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e001f\U000e007f-\U000e0fff]"
)
_WORD = re.compile(r"\w+")
_LATIN = re.compile("[A-Za-z]")
_MIXED = re.compile(r"(?<!\w)\w*[A-Za-z]\w*")
# Marks that make no letter of a language with the one before them.
_MARKS = re.compile("(?<=[A-Za-z\u00c0-\u024f])[\u0300-\u036f]+")

# More marks in a row than any language has (Unicode's Stream-Safe Text Format); Katakana's marks
# for voiced sounds in half width are letters that become such.
_MOST_MARKS = 30
_VOICED = "\uff9e\uff9f"
_MARKED = re.compile(rf"(?:[^\w\s\0-\u02ff]|[{_VOICED}]){{{_MOST_MARKS + 1},}}")

# Braille for nothing is seen as a blank, too.
_BLANKS = re.compile("(?:[^\\S\r\n]|\u2800|\r(?!\n))+")
# Signs that often stand between words, or that nobody sees; and those that don't.
_USUAL = (
    r"\s.,;:!?'’…\u00ad\u0300-\u036f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20d0-\u20ff\ufe0f-"
)
_SIGN = rf"[^\w{_USUAL}]"
# What tells two readings apart: words, ends of lines, and whether there is a sign between two
# words, or a blank that is not one space. Indented lines and two spaces after a full stop are
# ordinary.
_READ = re.compile(
    rf"\w+|\n|(?<=\w)(?=[^\w\s]{{1,4}}\w|[{_USUAL}]*+{_SIGN}|(?:\.\.+|…)\s?\w)"
    rf"|(?<=[^\W\d_])(?! \S){_BLANKS.pattern}(?=[^\W\d_])"
    r"|(?<=[A-Za-z.,])\s?+[\u200b-\u200f\u2060-\u206f][\s\u200b-\u200f\u2060-\u206f]*+(?=[A-Za-z])"
)

# A word spelt out, `k i l l` or `k.i.l.l`, in scripts in which one letter is seldom a word.
_LETTER = "[A-Za-z\u00c0-\u024f\u0370-\u052f]"
# Between the letters signs or a letter of a script without words; some letters may be digits.
_APART = r"([\W_]{1,4}|[\u0600-\U0010ffff])"
_SPELT = re.compile(rf"(?<![^\W_]){_LETTER}{_APART}{_LETTER}(?:\1{_LETTER})+(?![^\W_])")
_SPELT_PAIR = re.compile(rf"(?<![^\W_]){_LETTER}{_APART}{_LETTER}(?![^\W_])")
_SPELT_DIGITS = re.compile(r"(?:(?<![^\W_])[A-Za-z0-9][\W_]{1,4}){8,}")
# The same signs in place of blanks, `I_will_find_you_and_break`, or around words, `**I** **will**`.
_SIGNS = rf"(?! [#@]\w)(?:[^\w\s]{{1,4}}|_|\W{{0,4}}{_SIGN}\W{{0,4}}|\.{{2,4}} )"
_GLUED = re.compile(rf"(?<![^\W_])[^\W\d_]++({_SIGNS})[^\W\d_]++(?:\1[^\W\d_]++){{3,}}")
# Words that are hashtags, or called like users.
_TAGS = re.compile(r"(?<!\w)[#@]?[^\W\d_]++( [#@])[^\W\d_]++(?:\1[^\W\d_]++){3,}")
_GLUE = re.compile(r"(?<=[^\W_])(?:\W{1,9}|_)(?=[^\W_])")
_JOINING = re.compile(
    r"\b(?:a|all|an|and|are|be|by|do|for|go|i|if|in|is|it|me|my|no|not|of|on|or|so|that|the|they|this"
    r"|to|too|up|we|who|will|with|your?)\b",
    re.IGNORECASE,
)
# Numbers between words: `I 1 will 2 find 3`.
_COUNTED = re.compile(r"(?:\d{1,4}\W{1,6}[^\W\d_]++\W{1,6}){4,}")
_COUNT = re.compile(r"\d{1,4}\W{1,6}")
# Tags of HTML around single words, and within words.
_TAG = re.compile("<(/?)([A-Za-z][A-Za-z0-9]*+|!--)[^<>]{0,80}>")
_TAGGED = re.compile(
    rf"(?:{_TAG.pattern}\s*\w+[^\w<>]*(?:{_TAG.pattern}\s*)+){{4}}|"
    rf"(?:\w(?:{_TAG.pattern})+(?=\w)[^<>]{{0,40}}){{3}}"
)
_BLOCKS = {"br", "p", "li", "ul", "ol", "div", "td", "th", "tr", "hr"}
# A word on each line, or a piece of one.
_COLUMN = re.compile(r"^\w+[^\w\n]*(?:\n+\w+[^\w\n]*){2,}$", re.M)
_PIECES = re.compile(r"^.{1,4}(?:\n.{1,4}){5,}$", re.M)
# Digits and signs in place of letters: `w1ll`, `w!ll`.
_LEET = re.compile(
    r"(?<=[A-Za-z])[013457$]+(?=[A-Za-z])|(?:[A-Za-z][@!|+689]+[A-Za-z][^@!|+689]{0,40}){3}"
    r"|(?:[A-Za-z][€£¥§¢₳฿₵₣₲₭₦₱₮₩]+[A-Za-z].{0,40}){3}"
)
_MONEY = "€£¥§¢₳฿₵₣₲₭₦₱₮₩"
_LEET_WORD = re.compile(
    rf"(?<![\w$@!|+{_MONEY}])[013457$@!|+689{_MONEY}]*"
    rf"[A-Za-z][A-Za-z013457$@!|+689{_MONEY}]*(?!\w)"
)
_DIGITS = str.maketrans(f"013457$@!|+689{_MONEY}", "oieastsailtgbgelyscabcfgknptw")
_DIGITS_FOR = str.maketrans("013457", "oieast")
# Capitals in three words together: `I WILL FIND YOU`, `wIlL fInD yOu`.
_CAPITALS = re.compile(r"\b(?=\w*[A-Za-z][A-Z])\w++")
_SHOUTED = re.compile(rf"(?:{_CAPITALS.pattern}\W++(?:\w\W++)?){{2}}{_CAPITALS.pattern}")
# What of a text in ASCII is read in another way.
_SUSPECT = (
    re.compile(
        r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<=[A-Za-z])(?:\t|  | \t)\s*(?=[A-Za-z])"
    ),
    *(_SPELT, _SPELT_DIGITS, _GLUED, _TAGS, _COUNTED, _COLUMN, _PIECES, _LEET, _SHOUTED),
)

# A flag of a part of a country.
_FLAG = re.compile(
    "\U0001f3f4([\U000e0061-\U000e007a]{2}[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,3})\U000e007f"
)
# Letters of the Latin script and signs that no word of a language is written in.
_STYLED = {
    **{0xE0000 + code: chr(code) for code in range(0x20, 0x7F)},
    **{first + n: chr(ord("A") + n) for first in (0x1F150, 0x1F170) for n in range(26)},
    **str.maketrans("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɑɡıɩ", "abcdefghijklmnoprstuvwyzagii"),
    # Two ligatures of a whole sentence each, by which NFKC makes a text many times as long.
    0xFDFA: None,
    0xFDFB: None,
}
_WIDE = {code + 0xFEE0: chr(code) for code in range(0x21, 0x7F)}
# Fillers of Hangul, which are seen as blanks by themselves; letters for flags.
_SEEN = {
    **dict.fromkeys((0x115F, 0x1160, 0x3164, 0xFFA0), " "),
    **{0x1F1E6 + n: chr(ord("A") + n) for n in range(26)},
}
# Letters of other scripts that look like Latin ones: Cyrillic, Greek, Armenian, Cherokee,
# Lisu, Canadian syllables, Coptic.
_HOMOGLYPHS = str.maketrans(
    "АВЕЅІЈКМНОРСТУХҮѴԚԜԌасԁеһіјӏорԛѕуѵԝхкмтвнп"
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαονρικυτχηωεβγ"
    "ՕՏԼօսհոցյ"
    "ᎠᎡᎢᎪᎫᎬᎳᎷᎻᏀᏃᏚᏞᏟᏢᏦᏴᎩᏆᏙᏔ"
    "ꓐꓑꓒꓓꓔꓖꓗꓙꓚꓜꓝꓟꓠꓡꓢꓣꓦꓧꓪꓫꓬꓮꓰꓲꓳꓴ"
    "ᐯᑌᑭᗞᗪᒍᒪᗷᛕᕼ᙭ᔕᗩᑕᗴᖴᘜᗰᑎᖇᗯ"
    "ⲁⲃⲉⲏⲓⲕⲙⲛⲟⲣⲥⲧⲩⲭ",
    "ABESIJKMHOPCTYXYVQWGacdehijlopqsyvwxkmtbhn"
    "ABEZHIKMNOPTYXaovpikutxnweby"
    "OSLouhngj"
    "DRTAJEWMHGZSLCPKBYIVW"
    "BPdDTGKJCZFMNLSRVHWXYAEIOU"
    "VUPDDJLBKHXSACEFGMNRW"
    "abenikmnopctyx",
)
# In words with Latin letters only: they look less alike.
_LOOSE = str.maketrans("гьцяиЯИШш", "rbuRNRNWw")
# Letters turned upside down, with those that are another letter then.
_MOST_TURNED = 4
_TURNED = re.compile("[ɐɔǝɟƃɥᴉɾʞɯɹʇʌʍʎ]")
_UPSIDE = str.maketrans(
    "ɐqɔpǝɟƃɥᴉɾʞlɯuodbɹʇnʌʍʎ∀ƆƎℲ˥Ԁ┴∩Λ⅄'˙", "abcdefghijklmnopqrtuvwyACEFLPTUVY,."
)
_TWIN = re.compile(f"[{''.join(map(chr, _HOMOGLYPHS))}]")
# What may be marks on a letter that is read as a Latin one.
_ON_LETTER = re.compile(rf"(?:^|(?<=[\0-\u024f])|(?<={_TWIN.pattern}))[^\w\s\0-\u02ff]+")


def _letters_with() -> dict[int, str]:
    """Map Latin letters with marks or strokes in them to those without: ø, ł, ɨ."""
    named = re.compile(
        "LATIN (SMALL|CAPITAL) LETTER (?:(?:TURNED|REVERSED|BARRED|OPEN|BLACKLETTER|INSULAR) )*"
        "([A-Z])(?: BAR| WITH(?:OUT)? .+)?"
    )
    blocks = (
        range(0xC0, 0x2B0),
        range(0x1D6C, 0x1F00),
        range(0x2C60, 0x2C80),
        range(0xA720, 0xA800),
        range(0xAB30, 0xAB70),
    )
    table = {}
    for code in (code for block in blocks for code in block):
        if found := named.fullmatch(unicodedata.name(chr(code), "")):
            case, letter = found.groups()
            table[code] = letter if case == "CAPITAL" else letter.lower()
    return table


_LETTERS_WITH = _letters_with()


def readings(text: str) -> tuple[str, str, str, str, str]:
    """Give five ways to read a text; where one reads like another before it, it is that.

    As it is, flags being one emoji each. Plain: compatibility forms (full-width, mathematical and
    encircled letters) are letters (NFKC), invisible characters and marks that make no letter go,
    tags are the ASCII that they spell, runs of blanks one space. Letters of other scripts that look
    like Latin ones are these, in words that mix both and, where the text is Latin otherwise, in
    words that hold nothing else. Bare: plain, without any mark on a Latin letter, with words joined
    that are spelt out and parted that are glued, and letters for digits, numbers and capitals that
    hide them. The others are the plain and the bare reading of the text as it is displayed.
    """
    if text.isascii() and not (
        any(way.search(text) for way in _SUSPECT)
        or ("<" in text and _TAGGED.search(text))
        or decoded(text) != text
        or unmarked(text) != text
        or plain_words(text) != text
    ):
        return (text,) * 5
    # Several different ones may spell words.
    if len(set(_FLAG.findall(text))) <= 3:
        text = _FLAG.sub("\U0001f3f4", text)
    known = {_words(_normal("NFC", text)): text}

    def read(way: str) -> tuple[str, str]:
        plain, bare = _BLANKS.sub(" ", _plain(way)), _bare(way)
        return known.setdefault(_words(plain), plain), known.setdefault(_words(bare), bare)

    undirected, shown = read(text), displayed(text)
    return (text, *undirected, *(undirected if shown == text else read(shown)))


def _normal(form: Literal["NFC", "NFD", "NFKC"], text: str) -> str:
    """Normalise a text in time in proportion to its length: sorting marks is quadratic."""
    return unicodedata.normalize(form, _MARKED.sub(_few_marks, text))


def _few_marks(run: re.Match[str]) -> str:
    kept, marks = [], 0
    for character in run.group():
        marks = marks + 1 if _is_mark(character) else 0
        if marks <= _MOST_MARKS:
            kept.append(character)
    return "".join(kept)


def _is_mark(character: str) -> bool:
    return character in _VOICED or unicodedata.category(character) in ("Mn", "Mc", "Me")


def _words(text: str) -> tuple[str, ...]:
    return tuple(_READ.findall(text))


def _plain(text: str) -> str:
    text = _normal("NFKC", _IGNORABLE.sub("", unmarked(text).translate(_STYLED)))
    return _latin(_MARKS.sub("", text))


def _bare(text: str) -> str:
    text = decoded(_coded(unmarked(decoded(text))))
    if _TAGGED.search(text):
        text = _TAG.sub(lambda tag: " " if tag[2].lower() in _BLOCKS else "", text)
    text = _normal("NFD", _plain(_upright(text).translate(_SEEN)))
    if _LATIN.search(text):
        text = _ON_LETTER.sub(lambda run: "".join(filter(_is_no_mark, run.group())), text)
    text = _latin(_normal("NFC", text).translate(_LETTERS_WITH))
    text = _parted(_COUNTED.sub(lambda run: _COUNT.sub("", run.group()), _joined(text)))
    text = _PIECES.sub(_line, text)
    text = _COLUMN.sub(lambda lines: " ".join(lines.group().split()), text)
    if _LEET.search(text):
        text = _LEET_WORD.sub(lambda word: word.group().translate(_DIGITS), text)
    if _SHOUTED.search(text):
        text = _CAPITALS.sub(_lowered, text)
    return plain_words(_BLANKS.sub(" ", text))


def _coded(text: str) -> str:
    """Write in ASCII what codes may be written in: full width, with invisible characters."""
    return text if text.isascii() else _IGNORABLE.sub("", text).translate(_WIDE)


def _upright(text: str) -> str:
    """Turn a text that is upside down and from the end, where that makes known words of it."""
    if len(_TURNED.findall(text)) < _MOST_TURNED:
        return text
    turned = text[::-1].translate(_UPSIDE)
    return turned if _known_words(turned) > _known_words(text) else text


def _known_words(text: str) -> int:
    return sum(len(word) > 2 and is_word(word) for word in _WORD.findall(text))


def _lowered(capitals: re.Match[str]) -> str:
    # Capitals that are no words may be a code, and are no louder than it.
    word = capitals.group()
    return word.lower() if is_word(word) else word


def _line(pieces: re.Match[str]) -> str:
    """Join pieces that bring their blanks along."""
    lines = pieces.group().split("\n")
    return "".join(lines) if any(line != line.strip() for line in lines) else pieces.group()


def _is_no_mark(character: str) -> bool:
    return unicodedata.category(character) not in ("Mn", "Me")


def _latin(text: str) -> str:
    """Write letters as Latin ones that are meant to be taken for them."""
    if not (_TWIN.search(text) and _LATIN.search(text)):
        return text
    bilingual = any(_foreign(word) for word in _WORD.findall(text))
    alike = _MIXED if bilingual else _WORD
    text = alike.sub(lambda word: word.group().translate(_HOMOGLYPHS), text)
    return _MIXED.sub(lambda word: word.group().translate(_LOOSE), text)


def _foreign(word: str) -> bool:
    """Tell whether a word is of another script for sure."""
    return not (word.translate(_HOMOGLYPHS).isascii() or _LATIN.search(word))


def _joined(text: str) -> str:
    """Join words that are spelt out, with the same between all letters: `k i l l`, `k.i.l.l`."""
    text = _SPELT_DIGITS.sub(_letters_for, text)
    between = {run[1] for run in _SPELT.finditer(text)}
    if not between:
        return text

    def join(run: re.Match[str]) -> str:
        return run.group().replace(run[1], "") if run[1] in between else run.group()

    text = _SPELT_PAIR.sub(join, _SPELT.sub(join, text))
    # Where a whole sentence is spelt out, its blanks and signs are, too: `o-f- -m-e-,`.
    if signs := re.escape("".join("".join(between).split())):
        text = re.sub(rf"(?<![{signs}])[{signs}]++(?=\W)|(?<=[^\w{signs}])[{signs}]+", "", text)
    return re.sub(r"(?<!\s)\s++(?=[,.;:!?])", "", text)


def _is_sentence(tags: str) -> bool:
    """Tell whether a quarter of the words are such as join others, which hashtags seldom are."""
    return len(_JOINING.findall(tags)) * 4 >= len(_WORD.findall(tags))


def _letters_for(spelt: re.Match[str]) -> str:
    """Read single digits among more single letters as letters."""
    run = spelt.group()
    few = sum(map(str.isdigit, run)) < len(_LATIN.findall(run))
    return run.translate(_DIGITS_FOR) if few else run


def _parted(text: str) -> str:
    """Part words that have the same signs between them in place of blanks."""
    glue = {run[1] for run in _GLUED.finditer(text)}
    glue |= {run[1] for run in _TAGS.finditer(text) if _is_sentence(run.group())}

    def part(signs: re.Match[str]) -> str:
        found = signs.group()
        ends = (n for n in range(len(found)) if found[n:] in glue)
        return next((f"{found[:n]} " for n in ends), found)

    return _GLUE.sub(part, text) if glue else text
