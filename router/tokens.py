"""Counting tokens without a network and, by default, without a tokenizer.

The estimate is a linear model on pairs of neighbouring characters: every character adds the expected number of tokens
that begin at it, given its class and the class of the character before it. An ASCII letter or sign is a class of its
own, any other script one class. The rates, one set per tokenizer family, are data (`token_rates.json`, with the errors
measured on held-out texts); `benchmarks/token_estimates.py` fits them. One pass of numpy, so any stretch of a text
can be priced by subtraction. Which family a model belongs to is left to `router/models.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .core import TokenCounter
from .errors import ConfigError, MissingExtra

Floats = npt.NDArray[np.float64]

_RATES = Path(__file__).with_name("token_rates.json")

_BLOCK = 1 << 18  # characters looked at in one go: bounds the temporaries, whatever the length of the text
_SLICES, _SLICE = 256, 1 << 12  # a longer text than their product is estimated from so many slices of it

# Code points outside ASCII, by what tokenizers make of them. A class has one rate per neighbour, so scripts that are
# written alike and tokenized alike may share one.
_SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "control": ((0x00, 0x1F), (0x7F, 0x9F)),
    "latin1_sign": ((0xA0, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7)),
    "latin": ((0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x2AF), (0x1E00, 0x1EFF)),
    "combining": ((0x300, 0x36F),),
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "cyrillic": ((0x400, 0x52F),),
    "armenian": ((0x530, 0x58F),),
    "hebrew": ((0x590, 0x5FF),),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    "devanagari": ((0x900, 0x97F),),
    "bengali": ((0x980, 0x9FF),),
    "indic": ((0xA00, 0xDFF),),
    "thai": ((0xE00, 0xE7F),),
    "southeast_asian": ((0xE80, 0x109F), (0x1780, 0x17FF)),
    "georgian": ((0x10A0, 0x10FF),),
    "hangul": ((0x1100, 0x11FF), (0xAC00, 0xD7AF)),
    "punctuation": ((0x2000, 0x206F),),
    "symbol": ((0x2070, 0x2FFF),),
    "cjk_punctuation": ((0x3000, 0x303F), (0xFF00, 0xFFEF)),
    "kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF)),
    "han": ((0x4E00, 0x9FFF),),
    "han_rare": ((0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    "emoji": ((0x1F000, 0x1FAFF),),
    "tab": ((0x09, 0x09),),
    "newline": ((0x0A, 0x0A), (0x0D, 0x0D)),
    "space": ((0x20, 0x20),),
    "digit": ((0x30, 0x39),),
}
_SIGNS = [chr(c) for c in range(0x21, 0x7F) if not chr(c).isdigit()]
CLASSES: tuple[str, ...] = ("other", *_SCRIPTS, *_SIGNS)
"""Names of the character classes; the number of a class is its place here."""


@lru_cache(maxsize=1)
def class_table() -> npt.NDArray[np.uint8]:
    """The class of every code point, shape (0x110000,)."""
    table = np.zeros(0x110000, np.uint8)
    for number, ranges in enumerate(_SCRIPTS.values(), start=1):
        for first, last in ranges:
            table[first : last + 1] = number
    for number, sign in enumerate(_SIGNS, start=1 + len(_SCRIPTS)):
        table[ord(sign)] = number
    return table


def class_pairs(text: str, before: str = "\n") -> npt.NDArray[np.uint16]:
    """For each character, `class of the one before it * len(CLASSES) + its own class`; shape (len(text),).

    before: the character that stands before the text; a text begins like a line.
    """
    # UTF-32 because it is the one encoding with a fixed width; lone surrogates pass and are class "other".
    codes = np.frombuffer((before + text).encode("utf-32-le", "surrogatepass"), "<u4")
    classes = class_table()[codes].astype(np.uint16)
    pairs: npt.NDArray[np.uint16] = classes[:-1] * np.uint16(len(CLASSES)) + classes[1:]
    return pairs


@dataclass(frozen=True, slots=True)
class TokenRates:
    """What one family of tokenizers makes of pairs of characters.

    rates: tokens that begin at a character, by number of its pair of classes; shape (len(CLASSES) ** 2,).
    relative_error: not exceeded on 95 % of held-out texts of about 10,000 tokens, all kinds of text counting alike.
    """

    rates: Floats
    relative_error: float


@lru_cache(maxsize=1)
def _rates_file() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_RATES.read_text("utf-8"))
    return data


def tokenizer_families() -> tuple[str, ...]:
    """The names that estimates exist for; `default` stands between the others."""
    return tuple(_rates_file()["families"])


@lru_cache(maxsize=16)
def token_rates(family: str) -> TokenRates:
    """The rates of a family. Raises ConfigError where there are none."""
    data = _rates_file()
    if family not in data["families"]:
        raise ConfigError(
            f"There are no token rates for tokenizer {family!r}. Use one of {', '.join(data['families'])}, "
            "the path of a tokenizer.json, or a tiktoken encoding (o200k_base, cl100k_base)."
        )
    entry = data["families"][family]
    if "like" in entry:
        return TokenRates(token_rates(entry["like"]).rates * entry["scale"], entry["relative_error"])
    number = {name: i for i, name in enumerate(CLASSES)}
    by_class = np.zeros(len(CLASSES))
    for name, milli_tokens in entry["classes"].items():
        by_class[number[name]] = milli_tokens / 1000
    rates = np.tile(by_class, len(CLASSES))
    for pair, milli_tokens in zip(data["pairs"], entry["pairs"], strict=True):
        before, own = pair.split(" ")
        rates[number[before] * len(CLASSES) + number[own]] = milli_tokens / 1000
    return TokenRates(rates, entry["relative_error"])


def _blocks(text: str, rates: Floats) -> Iterator[tuple[int, Floats]]:
    for start in range(0, len(text), _BLOCK):
        before = text[start - 1] if start else "\n"
        yield start, rates[class_pairs(text[start : start + _BLOCK], before)]


def cumulative_tokens(text: str, tokenizer: str = "default") -> Floats:
    """Estimated tokens before each offset, shape (len(text) + 1,): text[a:b] has about `out[b] - out[a]` tokens.

    Non-decreasing, from 0. float64, because float32 cannot tell neighbours apart after 16 million tokens and is off
    by whole tokens well before. Linear in time, about 10 ns and 8 bytes a character.
    Raises ConfigError for an unknown tokenizer family.
    """
    out = np.zeros(len(text) + 1)
    for start, tokens in _blocks(text, token_rates(tokenizer).rates):
        part = out[start + 1 : start + 1 + len(tokens)]
        np.cumsum(tokens, out=part)
        part += out[start]
    return out


def estimate_tokens(text: str, tokenizer: str = "default") -> int:
    """Estimated number of tokens; 0 for an empty text and at least 1 for any other.

    Looks at a million characters at most: a longer text is judged by 256 slices spread evenly over it.
    """
    if not text:
        return 0
    rates = token_rates(tokenizer).rates
    if len(text) <= _SLICES * _SLICE:
        total = sum(float(tokens.sum()) for _, tokens in _blocks(text, rates))
    else:
        starts = np.linspace(0, len(text) - _SLICE, _SLICES, dtype=np.int64).tolist()
        sampled = sum(float(rates[class_pairs(text[s : s + _SLICE], text[s - 1 : s] or "\n")].sum()) for s in starts)
        total = sampled * len(text) / (_SLICES * _SLICE)
    return max(1, round(total))


@dataclass(frozen=True, slots=True)
class EstimatedCounter:
    """Estimates for one tokenizer family."""

    tokenizer: str = "default"

    def count(self, text: str) -> int:
        return estimate_tokens(text, self.tokenizer)

    @property
    def relative_error(self) -> float:
        return token_rates(self.tokenizer).relative_error


@dataclass(frozen=True, slots=True)
class FunctionCounter:
    """Counts with a function; exact unless told otherwise."""

    function: Callable[[str], int]
    relative_error: float = 0.0

    def count(self, text: str) -> int:
        return self.function(text)


def counter_from(function: Callable[[str], int], relative_error: float = 0.0) -> TokenCounter:
    """A counter out of any function that counts tokens."""
    return FunctionCounter(function, relative_error)


def counter_for(tokenizer: str | None) -> TokenCounter:
    """The counter that a name stands for. Never touches the network.

    tokenizer: a family (`tokenizer_families()`): an estimate; the path of a Hugging Face `tokenizer.json`, or a
    tiktoken encoding whose ranks are on disk: exact. None is the family `default`.
    Special tokens written out in a text are counted as the ordinary text that they are.
    Raises ConfigError where nothing of that name can be used, MissingExtra where its package is missing.
    """
    if tokenizer is None:
        return EstimatedCounter()
    if tokenizer in _TIKTOKEN_FILES:
        return _tiktoken_counter(tokenizer)
    if tokenizer.endswith(".json"):
        return _tokenizer_json_counter(Path(tokenizer).expanduser())
    token_rates(tokenizer)  # says which names there are, now rather than at the first count
    return EstimatedCounter(tokenizer)


def _tokenizer_json_counter(path: Path) -> TokenCounter:
    if not path.is_file():
        raise ConfigError(f"There is no tokenizer file at {path}. Give the path of a Hugging Face tokenizer.json.")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("Reading a tokenizer.json needs the tokenizers package: pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception for whatever it cannot read
        raise ConfigError(f"{path} is not a Hugging Face tokenizer.json: {error}") from error
    tokenizer.no_truncation()  # files of embedding models cut and pad, which is not counting
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text

    def count(text: str) -> int:
        # Rust strings cannot hold lone surrogates; a question mark is one character as well.
        return len(tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8"), add_special_tokens=False))

    return counter_from(count)


# File name (SHA-1 of its address) and SHA-256 of its content, as tiktoken names and checks them. A file that fails the
# check is fetched again by tiktoken, so we check first.
_TIKTOKEN_FILES = {
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}

_LONG_BLANK = re.compile(r"\s{10000}")  # tiktoken's stack overflows on a few hundred thousand in a row, so we cut there


def _tiktoken_counter(encoding: str) -> TokenCounter:
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    cache = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache")
    name, digest = _TIKTOKEN_FILES[encoding]
    if not (cache / name).is_file() or hashlib.sha256((cache / name).read_bytes()).hexdigest() != digest:
        raise ConfigError(
            f"The ranks of {encoding} are not in {cache}, and longroute does not fetch them. Set TIKTOKEN_CACHE_DIR "
            f"to a folder that holds them as {name}, or use the estimate {encoding.removesuffix('_base')!r}."
        )
    try:
        import tiktoken
    except ImportError as error:
        raise MissingExtra(f"Exact counts with {encoding} need the tiktoken package: pip install tiktoken") from error
    tokenizer = tiktoken.get_encoding(encoding)

    def count(text: str) -> int:
        cuts = [0, *(blank.end() for blank in _LONG_BLANK.finditer(text)), len(text)]
        return sum(len(tokenizer.encode_ordinary(text[start:end])) for start, end in pairwise(cuts))

    return counter_from(count)
