"""Text written to be read by people and missed by a scorer, as plain text; pure.

Unicode's own list of confusables is made for comparing names: both are rewritten, into a form that
nobody would read. The table here holds what is seen in disguised words, and folds it one way.
"""

import re
import unicodedata

# Unicode's Default_Ignorable_Code_Point, which includes what is known as zero-width, without the
# tags, which spell ASCII that only a model sees; and strokes through letters.
_IGNORABLE = re.compile(
    "[\u0334-\u0338\u0488\u0489\u20d0-\u20ff\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e001f\U000e007f-\U000e0fff]"
)
_WORD = re.compile(r"\w+")
_LATIN = re.compile("[A-Za-z]")
_MIXED = re.compile(r"\w*[A-Za-z]\w*")
# Marks that make no letter of a language with the one before them.
_MARKS = re.compile("(?<=[A-Za-z\u00c0-\u024f])[\u0300-\u036f]+")

# Letters of the Latin script and signs that no word of a language is written in.
_STYLED = {
    **{0xE0000 + code: chr(code) for code in range(0x20, 0x7F)},
    **{first + n: chr(ord("A") + n) for first in (0x1F150, 0x1F170) for n in range(26)},
    **str.maketrans("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɑɡıɩ", "abcdefghijklmnoprstuvwyzagii"),
    # Two ligatures of a whole sentence each, by which NFKC makes a text many times as long.
    0xFDFA: None,
    0xFDFB: None,
}
# Letters of other scripts that look like Latin ones: Cyrillic, Greek, Armenian, Cherokee.
_HOMOGLYPHS = str.maketrans(
    "АВЕЅІЈКМНОРСТУХҮѴԚԜԌасԁеһіјӏорԛѕуѵԝхкмтвнп"
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαονρικυτχηωεβγ"
    "ՕՏԼօսհոցյ"
    "ᎠᎡᎢᎪᎫᎬᎳᎷᎻᏀᏃᏚᏞᏟᏢᏦᏴ",
    "ABESIJKMHOPCTYXYVQWGacdehijlopqsyvwxkmtbhn"
    "ABEZHIKMNOPTYXaovpikutxnweby"
    "OSLouhngj"
    "DRTAJEWMHGZSLCPKB",
)


def normalised(text: str) -> str:
    """Write a text plainly; a text whose words are plain already is given back as it is.

    Compatibility forms (full-width, mathematical and encircled letters) become letters (NFKC),
    invisible characters and marks on top of letters go, and tags become the ASCII that they spell.
    Letters of other scripts that look like Latin ones become these, in words that mix both and,
    where the text is Latin otherwise, in words that hold nothing else.
    """
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", _IGNORABLE.sub("", text.translate(_STYLED)))
    plain = _MARKS.sub("", plain)
    if _LATIN.search(plain):
        bilingual = any(_foreign(word) for word in _WORD.findall(plain))
        alike = _MIXED if bilingual else _WORD
        plain = alike.sub(lambda word: word.group().translate(_HOMOGLYPHS), plain)
    same = _WORD.findall(plain) == _WORD.findall(unicodedata.normalize("NFC", text))
    return text if same else plain


def _foreign(word: str) -> bool:
    """Tell whether a word is of another script for sure."""
    return not (word.translate(_HOMOGLYPHS).isascii() or _LATIN.search(word))
