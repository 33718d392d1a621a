"""Decodes texts in the encodings that common tools write. A text is refused if two known encodings
give different plausible words.

General detectors need more text than a caption has: charset-normalizer may read b"café" as
ending in a Cyrillic letter. The rules here instead check whether a text can be words of the
languages that an encoding is for. Two encodings that give the same text don't conflict. An encoding
in `UNCERTAIN_READINGS` is never chosen, because a sibling encoding has the same letters, such as
ISO 8859-2 and Windows-1250.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable

UTF8 = "UTF-8"

MARKS = {
    **{codecs.BOM_UTF8: UTF8, codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"},
    **{codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"},
}
"""First bytes to encoding. UTF-32 is before UTF-16, whose mark starts with the same bytes."""

WORD = re.compile(r"[^\W\d_]+")
CJK_RUN = re.compile(r"[\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]+")
KANA = re.compile(r"[\u3040-\u30ff]")
HALF_WIDTH_KANA = re.compile(r"[\uff61-\uff9f]")
HANGUL_ONLY = re.compile(r"[\uac00-\ud7a3]+")
LATIN_MARKS = set("‘’“”„–—…•€£¥§©®°±²³µ·¼½¾×÷«»¡¿™ªº\xa0")
MARK_IN_A_WORD = re.compile(r"[^\W\d_][‘“”„…•€£¥§©®°±²³¼½¾×÷«»¡¿™ªº]+[^\W\d_]|[²³µ¼½¾][^\W\d_]")
"""Signs that never occur inside a word, or at its start."""

CYRILLIC_SIGNS = LATIN_MARKS | set("№")
RUSSIAN = set("абвгдежзийклмнопрстуфхцчшщъыьэюяё")
COMMON_RUSSIAN = set("оеаинтсрвлк")
HEBREW_WORD = re.compile(r"[א-יכלמנסעפצ-ת]+[א-יךלםןסעףץק-ת]")
GREEK_WORD = re.compile(r"(?=.*[αεηιουωάέήίόύώ])(?!.*[ΐΰ])[Ͱ-ρσ-Ͽ]*[Ͱ-ρς-ςτ-Ͽ]")
GREEK_ACCENT = re.compile(r"[άέήίόύώΆΈΉΊΌΎΏ]")
LONG_GREEK = 4
NOT_CENTRAL_EUROPEAN = re.compile(
    r"""
    (?<![^\W\d_])[čęůňřăćđďľńťţąěőűłśźżšž](?![^\W\d_]|\.)  # no word of one letter but "č."
    | (?<![^\W\d_aeiouyáéíóúýäôö])[ŕĺ]         # between consonants alone
    | [ŕĺ](?![^\W\d_aeiouyáéíóúýäôö])
    | (?<![^\W\d_aeiouyáéíóúýäôö])ů            # after consonants alone
    | ń(?=[aeiouyáéíóú])
    | (?<!\w)[ęń]
    | ă(?=[aoe])
    """,
    re.VERBOSE,
)
"""Positions where letters of Polish, Czech, Slovak, Hungarian and Romanian never occur. There they
must be letters of Windows-1252, such as in "à", "año", "São", "où" and "être".
"""

CELL_ENDS = re.compile(rb"[,;\t\"\r\n]")
"""Characters that separate the cells of a table in a text file."""

SURE_HANGUL = 10
"""Number of Korean syllables from which a text can't be Chinese."""
COMMON_SHARE = 0.9


class UnknownEncodingError(ValueError):
    """The bytes aren't a text whose encoding is certain."""


def decode_text(content: bytes) -> tuple[str, str]:
    """Return the text of a file, without a byte order mark, and the name of its encoding.

    Raises:
        UnknownEncodingError: the encoding isn't certain; the message names the candidates.
    """
    for mark, name in MARKS.items():
        if content.startswith(mark):
            return _decode(content, name)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return _guess_encoding(content)
    return (text, UTF8) if "\0" not in text else _decode_unmarked(content)


def decode_table(content: bytes) -> tuple[str, str]:
    """Decode a table like `decode_text`. If no encoding makes words of the whole text, only the
    cells that aren't ASCII are examined, because tables contain many names and numbers.

    Raises:
        UnknownEncodingError: see `decode_text`.
    """
    try:
        return decode_text(content)
    except UnknownEncodingError:
        # A comma, a quote or a line's end is never a part of a letter in these encodings.
        cells = [cell for cell in CELL_ENDS.split(content) if not cell.isascii()]
        if not cells or b"\0" in content or content.startswith(tuple(MARKS)):
            raise
        _, name = decode_text(b"\n".join(cells))
        return _decode(content, name)


def _decode(content: bytes, name: str) -> tuple[str, str]:
    """Decode a text that starts with the byte order mark of this encoding."""
    try:
        return content.decode("utf-8-sig" if name == UTF8 else name), name
    except UnicodeDecodeError as err:
        raise UnknownEncodingError(
            f"it starts like {name} but isn't: {err.reason} at byte {err.start}. Save it as UTF-8"
        ) from err


def _decode_unmarked(content: bytes) -> tuple[str, str]:
    """Decode UTF-16 without a mark, in which most Latin letters have a zero as every second
    byte.
    """
    odd, even = content[1::2].count(0), content[::2].count(0)
    name = "utf-16-le" if odd > even else "utf-16-be"
    if max(odd, even) * 4 >= len(content) and not min(odd, even):
        return _decode(content, name)
    raise UnknownEncodingError("it contains zero bytes, so it isn't text. Save it as UTF-8")


def _guess_encoding(content: bytes) -> tuple[str, str]:
    """Return the only decoding that can be words, and its encoding."""
    if b"\0" in content:
        return _decode_unmarked(content)
    found: dict[str, str] = {}
    for name, can_be_words in (READINGS | UNCERTAIN_READINGS).items():
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        if can_be_words(text):
            found.setdefault(text, name)
    if len(found) == 2 and set(found.values()) == {"gb18030", "cp949"}:
        korean = next(text for text, name in found.items() if name == "cp949")
        found = {korean: "cp949"} if len("".join(CJK_RUN.findall(korean))) >= SURE_HANGUL else found
    if len(found) != 1 or not READINGS.keys() >= set(found.values()):
        several = (
            f"it may be {' or '.join(found.values())}" if found else "no known encoding gives words"
        )
        raise UnknownEncodingError(f"not UTF-8, and {several}. Save it as UTF-8")
    [(text, name)] = found.items()
    return text, name


# ---------------------------------------------------------------- can it be words?


def _is_latin(text: str) -> bool:
    """Return whether a text can be Western European words: an ASCII letter in every longer word, no
    capital after a small letter, no sign inside a word.
    """
    accented = [word for word in WORD.findall(text) if not word.isascii()]
    has_ascii = all(len(word) == 1 or any(letter.isascii() for letter in word) for word in accented)
    return (
        has_ascii
        and any(letter.isascii() and letter.isalpha() for letter in text)
        and _non_ascii_signs(text) <= LATIN_MARKS
        and not MARK_IN_A_WORD.search(text)
        and all(_has_plain_case(word) for word in accented)
    )


def _is_central_european(text: str) -> bool:
    """Return whether a text can be words in a language of Windows-1250: as `_is_latin`, with its
    letters only where those languages have them.
    """
    return _is_latin(text) and not NOT_CENTRAL_EUROPEAN.search(text.lower())


def _is_hebrew(text: str) -> bool:
    """Return whether every word is all Hebrew or all ASCII, with final letter forms only at the end
    of words.
    """
    words = [word for word in WORD.findall(text) if not word.isascii()]
    return _are_most_letters(words, text) and all(HEBREW_WORD.fullmatch(word) for word in words)


def _is_greek(text: str) -> bool:
    """Return whether every word is all Greek or all ASCII, with a vowel, one accent in long words,
    and a final sigma only at the end of words.
    """
    words = [word for word in WORD.findall(text) if not word.isascii()]
    return _are_most_letters(words, text) and all(
        GREEK_WORD.fullmatch(word)
        and _has_plain_case(word)
        and (len(word) < LONG_GREEK or len(GREEK_ACCENT.findall(word)) == 1)
        for word in words
    )


def _are_most_letters(words: list[str], text: str) -> bool:
    """Return whether most letters are in these words and no unusual sign occurs."""
    letters = "".join(WORD.findall(text))
    return _non_ascii_signs(text) <= LATIN_MARKS and 2 * len("".join(words)) > len(letters)


def _is_cyrillic(text: str) -> bool:
    """Return whether every word is all Cyrillic or all Latin, most letters are small Cyrillic ones,
    and no signs such as box lines are between them.
    """
    if not _non_ascii_signs(text) <= CYRILLIC_SIGNS:
        return False
    words = WORD.findall(text)
    letters = [letter for word in words for letter in word]
    small = sum("CYRILLIC SMALL" in unicodedata.name(letter, "") for letter in letters)
    if 2 * small < len(letters):
        return False
    return all(
        word.isascii() or (not any(letter.isascii() for letter in word) and _has_plain_case(word))
        for word in words
    )


def _is_common_russian(text: str) -> bool:
    """Return whether a text is Cyrillic and at least half of its letters are the most common
    Russian ones. A text read in the wrong Cyrillic encoding has few of those.
    """
    letters = [letter for letter in "".join(WORD.findall(text)).lower() if not letter.isascii()]
    return (
        _is_cyrillic(text)
        and all(letter in RUSSIAN for letter in letters)
        and 2 * sum(letter in COMMON_RUSSIAN for letter in letters) >= len(letters)
    )


def _non_ascii_signs(text: str) -> set[str]:
    """Return all non-ASCII characters that aren't letters."""
    return {sign for sign in text if not sign.isascii() and not sign.isalpha()}


def _has_plain_case(word: str) -> bool:
    """Return whether a word is all small, all capital, or capitalized."""
    return word.islower() or word.isupper() or word == word.capitalize()


def _make_cjk_check(codec: str, lowest: int, highest: int) -> Callable[[str], bool]:
    """Return a check whether text that was decoded by `codec` looks like East Asian words: nearly
    all its characters are common ones (first byte from `lowest` to `highest`), and it has none of
    the signs of a wrong encoding.
    """

    def can_be_words(text: str) -> bool:
        runs = CJK_RUN.findall(text)
        characters = "".join(runs)
        common = sum(_first_byte(one, codec, lowest, highest) for one in KANA.sub("", characters))
        return (
            bool(characters)
            and common >= COMMON_SHARE * len(KANA.sub("", characters))
            and not HALF_WIDTH_KANA.search(text)
            and (not KANA.search(text) or "jp" in codec or codec == "cp932")
            # A few of them among Latin letters are rather accents and quotation marks of
            # another encoding.
            and 2 * len(characters) >= len(re.findall(r"[a-zA-Z]", text))
            and (not re.search(r"[a-zA-Z0-9]", text) or any(len(run) > 1 for run in runs))
            and all(
                ord(sign) < 128 or not sign.isalpha() or CJK_RUN.match(sign)
                for sign in unicodedata.normalize("NFKC", text)
            )
        )

    return can_be_words


def _first_byte(character: str, codec: str, lowest: int, highest: int) -> bool:
    """Return whether a character's first byte in the codec is in the range."""
    try:
        return lowest <= character.encode(codec)[0] <= highest
    except UnicodeEncodeError:
        return False


def _is_korean(text: str) -> bool:
    return _make_cjk_check("cp949", 0xB0, 0xC8)(text) and all(
        HANGUL_ONLY.fullmatch(run) for run in CJK_RUN.findall(text)
    )


# The first bytes are those of each standard's first level, which holds the characters in daily use.
READINGS: dict[str, Callable[[str], bool]] = {
    "cp1252": _is_latin,
    "cp1251": _is_cyrillic,
    "cp932": _make_cjk_check("cp932", 0x88, 0x98),
    "euc_jp": lambda text: bool(KANA.search(text)) and _make_cjk_check("euc_jp", 0xB0, 0xCF)(text),
    "gb18030": _make_cjk_check("gb2312", 0xB0, 0xD7),
    "big5": _make_cjk_check("big5", 0xA4, 0xC6),
    "cp949": _is_korean,
}
UNCERTAIN_READINGS: dict[str, Callable[[str], bool]] = {
    "cp1250": _is_central_european,
    "cp1254": _is_latin,
    "iso8859_2": _is_central_european,
    "koi8_r": _is_common_russian,
    "cp866": _is_common_russian,
    "iso8859_5": _is_common_russian,
    "cp1255": _is_hebrew,
    "cp1253": _is_greek,
}
"""Encodings that a text may also have. They are never certain."""
