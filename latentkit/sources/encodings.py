"""Texts in the encodings that people's tools write; where two of those known here give words, and
not the same, the text is refused.

A general detector needs more text than a caption has: to charset-normalizer, b"caf\\xe9" may as
well end in a Cyrillic letter. The rules here ask instead whether a text can be words of the
languages that an encoding is for. Two encodings that give the same text agree. `DOUBTS` are never
chosen: the letters of each are those of a sibling too, such as ISO 8859-2 of Windows-1250.
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
"""First bytes to encoding; UTF-32 stands before UTF-16, whose mark begins alike."""

WORD = re.compile(r"[^\W\d_]+")
CJK_RUN = re.compile(r"[\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]+")
KANA = re.compile(r"[\u3040-\u30ff]")
HALF_WIDTH_KANA = re.compile(r"[\uff61-\uff9f]")
HANGUL_ONLY = re.compile(r"[\uac00-\ud7a3]+")
LATIN_MARKS = set("‘’“”„–—…•€£¥§©®°±²³µ·¼½¾×÷«»¡¿™ªº\xa0")
MARK_IN_A_WORD = re.compile(r"[^\W\d_][‘“”„…•€£¥§©®°±²³¼½¾×÷«»¡¿™ªº]+[^\W\d_]|[²³µ¼½¾][^\W\d_]")
"""Signs that no word holds, or begins with."""

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
"""Where letters of Polish, Czech, Slovak, Hungarian and Romanian never stand; in their place are
those of Windows-1252, such as in "à", "año", "São", "où" and "être".
"""

CELL_ENDS = re.compile(rb"[,;\t\"\r\n]")
"""What parts the cells of a table in text."""

SURE_HANGUL = 10
"""Syllables of Korean from which on a text is not Chinese, whose characters are as often others."""
COMMON_SHARE = 0.9


class UnknownEncodingError(ValueError):
    """The bytes are no text in an encoding that can be told for certain."""


def decode_text(content: bytes) -> tuple[str, str]:
    """The text of a file, without a byte order mark, and the name of its encoding.

    Raises:
        UnknownEncodingError: it can't be told; the message names those that it may be.
    """
    for mark, name in MARKS.items():
        if content.startswith(mark):
            return _decode(content, name)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return _tell(content)
    return (text, UTF8) if "\0" not in text else _decode_unmarked(content)


def decode_table(content: bytes) -> tuple[str, str]:
    """As `decode_text`, of a text that is more names and numbers in Latin letters than words: where
    the whole of it is no words of any encoding, its other cells may be.

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
    try:
        return content.decode("utf-8-sig" if name == UTF8 else name), name
    except UnicodeDecodeError as err:
        raise UnknownEncodingError(
            f"it begins as {name} does, and is not: {err.reason} at byte {err.start}; save it as"
            " UTF-8"
        ) from err


def _decode_unmarked(content: bytes) -> tuple[str, str]:
    """UTF-16 of mostly Latin letters: every second byte is a zero."""
    odd, even = content[1::2].count(0), content[::2].count(0)
    name = "utf-16-le" if odd > even else "utf-16-be"
    if max(odd, even) * 4 >= len(content) and not min(odd, even):
        return _decode(content, name)
    raise UnknownEncodingError("it holds zero bytes, as no text does; save it as UTF-8")


def _tell(content: bytes) -> tuple[str, str]:
    """The one reading that can be words."""
    if b"\0" in content:
        return _decode_unmarked(content)
    found: dict[str, str] = {}
    for name, can_be_words in (READINGS | DOUBTS).items():
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
        raise UnknownEncodingError(f"not UTF-8, and {several}; save it as UTF-8")
    [(text, name)] = found.items()
    return text, name


# ---------------------------------------------------------------- can it be words?


def _is_latin(text: str) -> bool:
    """Words of Western Europe: some ASCII letter in every longer one, no capital after a small
    letter, no sign inside.
    """
    accented = [word for word in WORD.findall(text) if not word.isascii()]
    has_ascii = all(len(word) == 1 or any(letter.isascii() for letter in word) for word in accented)
    return (
        has_ascii
        and any(letter.isascii() and letter.isalpha() for letter in text)
        and _signs(text) <= LATIN_MARKS
        and not MARK_IN_A_WORD.search(text)
        and all(_has_plain_case(word) for word in accented)
    )


def _is_central_european(text: str) -> bool:
    """As `_is_latin`, with letters only in the places that they have in the languages of
    Windows-1250.
    """
    return _is_latin(text) and not NOT_CENTRAL_EUROPEAN.search(text.lower())


def _is_hebrew(text: str) -> bool:
    """Words all Hebrew or all ASCII; the final forms of letters end words, the others do not."""
    words = [word for word in WORD.findall(text) if not word.isascii()]
    return _are_most(words, text) and all(HEBREW_WORD.fullmatch(word) for word in words)


def _is_greek(text: str) -> bool:
    """Words all Greek or all ASCII, with a vowel, and of one accent each where they are long; a
    final sigma ends words, another does not.
    """
    words = [word for word in WORD.findall(text) if not word.isascii()]
    return _are_most(words, text) and all(
        GREEK_WORD.fullmatch(word)
        and _has_plain_case(word)
        and (len(word) < LONG_GREEK or len(GREEK_ACCENT.findall(word)) == 1)
        for word in words
    )


def _are_most(words: list[str], text: str) -> bool:
    """Whether most of the letters are in these words, and no sign is there that texts have not."""
    letters = "".join(WORD.findall(text))
    return _signs(text) <= LATIN_MARKS and 2 * len("".join(words)) > len(letters)


def _is_cyrillic(text: str) -> bool:
    """Words all Cyrillic or all Latin, most of the letters Cyrillic and small, with no signs
    between them such as lines of boxes.
    """
    if not _signs(text) <= CYRILLIC_SIGNS:
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
    """As `_is_cyrillic`, of Russian letters, half of them or more the most common ones; a text of
    one of these encodings read as another has few of those.
    """
    letters = [letter for letter in "".join(WORD.findall(text)).lower() if not letter.isascii()]
    return (
        _is_cyrillic(text)
        and all(letter in RUSSIAN for letter in letters)
        and 2 * sum(letter in COMMON_RUSSIAN for letter in letters) >= len(letters)
    )


def _signs(text: str) -> set[str]:
    return {sign for sign in text if not sign.isascii() and not sign.isalpha()}


def _has_plain_case(word: str) -> bool:
    return word.islower() or word.isupper() or word == word.capitalize()


def _is_common(codec: str, lowest: int, highest: int) -> Callable[[str], bool]:
    """Whether nearly all of a text's East Asian characters are the common ones: with a first byte
    from `lowest` to `highest`.
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
            # Few of them among Latin letters are rather accents and quotation marks of another
            # encoding.
            and 2 * len(characters) >= len(re.findall(r"[a-zA-Z]", text))
            and (not re.search(r"[a-zA-Z0-9]", text) or any(len(run) > 1 for run in runs))
            and all(
                ord(sign) < 128 or not sign.isalpha() or CJK_RUN.match(sign)
                for sign in unicodedata.normalize("NFKC", text)
            )
        )

    return can_be_words


def _first_byte(character: str, codec: str, lowest: int, highest: int) -> bool:
    try:
        return lowest <= character.encode(codec)[0] <= highest
    except UnicodeEncodeError:
        return False


def _is_korean(text: str) -> bool:
    return _is_common("cp949", 0xB0, 0xC8)(text) and all(
        HANGUL_ONLY.fullmatch(run) for run in CJK_RUN.findall(text)
    )


# The first bytes are those of each standard's first level, which holds the characters in daily use.
READINGS: dict[str, Callable[[str], bool]] = {
    "cp1252": _is_latin,
    "cp1251": _is_cyrillic,
    "cp932": _is_common("cp932", 0x88, 0x98),
    "euc_jp": lambda text: bool(KANA.search(text)) and _is_common("euc_jp", 0xB0, 0xCF)(text),
    "gb18030": _is_common("gb2312", 0xB0, 0xD7),
    "big5": _is_common("big5", 0xA4, 0xC6),
    "cp949": _is_korean,
}
DOUBTS: dict[str, Callable[[str], bool]] = {
    "cp1250": _is_central_european,
    "cp1254": _is_latin,
    "iso8859_2": _is_central_european,
    "koi8_r": _is_common_russian,
    "cp866": _is_common_russian,
    "iso8859_5": _is_common_russian,
    "cp1255": _is_hebrew,
    "cp1253": _is_greek,
}
"""What a text may be too, which is never certain."""
