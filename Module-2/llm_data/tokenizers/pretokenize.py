"""The borders that no token crosses: texts cut into words as GPT-2 and BERT do it, equal to the `tokenizers` library.

GPT-2's pattern is the published one (`encoder.py` of openai/gpt-2; Radford et al. 2019, section 2.2). BERT's is the
splitting of `BasicTokenizer` (`tokenization.py` of google-research/bert), without its cleaning and lower-casing.

What counts as a letter changes with every version of Unicode, and the `regex` package follows it faster than the engine
inside `tokenizers`. The characters that only `regex` knows stand below one by one, and are taken for what the library
takes them: no letter, no number, no punctuation. So both cut alike at every character; a test compares all 1,112,064.
"""

from __future__ import annotations

import regex  # type: ignore[import-untyped]

# Ranges of code points. Letters and numbers of Unicode versions that tokenizers 0.23.3 does not know yet.
NEWER_LETTERS = (
    "558 58B-58C 88F C5C CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2 A7F1 AB6C-AB6D 107BB-107BF 10940-10959 "
    "10EC5-10EC7 10ED9-10EEE 11B0A 11DB0-11DDB 11DF1 16EA0-16EB8 16EBB-16ED3 16FF2-16FF3 187F8-187FF 18CD6-18CDA "
    "18D09-18D20 18D80-18DF2 18E00-19191 191A0-191D2 1B123-1B128 1B168 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 "
    "1DFCD-1DFFF 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F 2B81E "
    "2CEA2-2CEAD 323B0-33479 3D000-3FC3F"
)
NEWER_NUMBERS = "11DE0-11DE9 1246F 12475-1247F 12550-12686 16FF4-16FF6"
# Its table of punctuation is an older one still, and holds two characters that have since become other symbols.
NEWER_PUNCTUATION = (
    "61D 9FD A76 C77 C84 1B4E-1B4F 1B7D-1B7F 2E43-2E4F 2E52-2E5D 2E60-2E63 10D6E 10EAD 10ED0 10F55-10F59 10F86-10F89 "
    "113D4-113D5 113D7-113D8 1144B-1144F 1145A-1145B 1145D 11660-1166C 116B9 1183B 11944-11946 119E2 11A3F-11A46 "
    "11A9A-11A9C 11A9E-11AA2 11B00-11B09 11BE1 11C41-11C45 11C70-11C71 11EF7-11EF8 11F43-11F4F 11FFF 12FF1-12FF2 "
    "16D6D-16D6F 16E97-16E9A 16FE2 1E5FF 1E95E-1E95F"
)
FORMER_PUNCTUATION = "166D 111C9"
# `BertNormalizer(handle_chinese_chars=True)`; 2B920 is the library's, where BERT's own file has 2B820.
CJK = "4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B920-2CEAF F900-FAFF 2F800-2FA1F"


def character_set(ranges: str) -> str:
    """A set for a regular expression from ranges such as "558 58B-58C" (code points in hexadecimal)."""
    parts = [part.split("-") for part in ranges.split()]
    return "[" + "".join(rf"\U{int(part[0], 16):08X}-\U{int(part[-1], 16):08X}" for part in parts) + "]"


LETTER = rf"[\p{{L}}--{character_set(NEWER_LETTERS)}]"
NUMBER = rf"[\p{{N}}--{character_set(NEWER_NUMBERS)}]"
GPT2_PATTERN = regex.compile(
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?{LETTER}+| ?{NUMBER}+| ?[^\s{LETTER}{NUMBER}]+|\s+(?!\S)|\s+", regex.V1
)
ASCII_PUNCTUATION = r"[!-/:-@\[-`{-~]"
PUNCTUATION = rf"[[\p{{P}}--{character_set(NEWER_PUNCTUATION)}]{ASCII_PUNCTUATION}{character_set(FORMER_PUNCTUATION)}]"
BERT_PATTERN = regex.compile(rf"{PUNCTUATION}|[^\s{PUNCTUATION}]+", regex.V1)
CJK_PATTERN = regex.compile(character_set(CJK), regex.V1)


def gpt2_words(text: str) -> list[str]:
    """The text cut at GPT-2's boundaries; joined again, it is the text.

    A space goes with the word after it, letters, numbers and other marks never share a word, and of several spaces all
    but the last are a word of their own. Newlines are cut off from words, not from other white space.
    """
    return GPT2_PATTERN.findall(text)


def bert_words(text: str) -> list[str]:
    """The text cut at BERT's boundaries: white space is dropped, each punctuation mark is a word of its own."""
    return BERT_PATTERN.findall(text)


def separate_cjk(text: str) -> str:
    """The text with a space on both sides of each Chinese character, so that each becomes a word of its own."""
    return CJK_PATTERN.sub(r" \g<0> ", text)


def refuse_surrogates(text: str) -> None:
    """Raise for a text that UTF-8 cannot hold.

    Raises:
        TypeError: when it is no text at all.
        ValueError: for half of a surrogate pair standing alone, with its place.
    """
    if not isinstance(text, str):
        raise TypeError(f"a document is of type {type(text).__name__}, not a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(
            f"character {error.start} is the lone surrogate U+{code:04X}, which has no UTF-8 form; "
            "decode the text's source with errors='replace', or drop the character"
        ) from None
