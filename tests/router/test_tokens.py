"""Estimates are additive, sampled for long texts, and near real counts; exact counters never fetch or interpret."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router import tokens
from longroute.router.core import TokenCounter
from longroute.router.errors import ConfigError, MissingExtra
from longroute.router.tokens import CLASSES, counter_for, counter_from, cumulative_tokens, estimate_tokens

AWKWARD = "<|endoftext|> [INST] \ud800 \U0001f600 caf\u00e9 \u200b\x00 \u4f60\u597d\n\n\t  12345 \udfff"
any_text = st.text(st.characters(), max_size=400)  # lone surrogates too


@given(any_text, st.data())
def test_a_stretch_is_priced_by_subtraction(text: str, data: st.DataObject) -> None:
    cumulative = cumulative_tokens(text)
    assert cumulative.shape == (len(text) + 1,)
    assert cumulative[0] == 0
    assert (np.diff(cumulative) >= 0).all()
    cut = data.draw(st.integers(0, len(text)))
    assert np.array_equal(cumulative_tokens(text[:cut]), cumulative[: cut + 1])


@given(any_text)
def test_estimate_is_the_rounded_end_of_the_cumulative_count(text: str) -> None:
    assert estimate_tokens(text) == (max(1, round(cumulative_tokens(text)[-1])) if text else 0)


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Revenue grew 12.5 % to 3,104 million in 2023. " * 50 + AWKWARD
    whole = cumulative_tokens(text)
    monkeypatch.setattr(tokens, "_BLOCK", 7)
    assert np.allclose(cumulative_tokens(text), whole)
    assert estimate_tokens(text) == round(whole[-1])


def test_a_long_text_is_sampled_closely_and_cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    paragraphs = [
        "The old captain looked at the sea and said nothing. " * 9,
        "x = foo(bar[17], 'baz')\n" * 9,
        "数据分析" * 40,
    ]
    text = "\n".join(paragraphs[i % 3] * (1 + i % 5) for i in range(2000))
    assert len(text) > tokens._SLICES * tokens._SLICE
    counted: list[int] = []
    count_pairs = tokens.class_pairs

    def counting(part: str, before: str = "\n") -> npt.NDArray[np.uint16]:
        counted.append(len(part))
        return count_pairs(part, before)

    monkeypatch.setattr(tokens, "class_pairs", counting)
    assert estimate_tokens(text) == pytest.approx(cumulative_tokens(text)[-1], rel=0.02)
    assert max(counted[: tokens._SLICES]) == tokens._SLICE


def test_every_code_point_has_a_class_and_every_class_a_code_point() -> None:
    table = tokens.class_table()
    assert set(np.unique(table)) == set(range(len(CLASSES)))
    for character, name in [
        ("a", "a"),
        (" ", "space"),
        ("\r", "newline"),
        ("é", "latin"),
        ("你", "han"),
        ("\ud800", "other"),
    ]:
        assert CLASSES[table[ord(character)]] == name


@pytest.mark.parametrize("family", tokens.tokenizer_families())
def test_rates_are_tokens_that_a_character_can_begin(family: str) -> None:
    rates = tokens.token_rates(family)
    most = [
        max(len(chr(c).encode("utf-8", "replace")) for c in np.flatnonzero(tokens.class_table() == k)[[0, -1]])
        for k in range(len(CLASSES))
    ]
    scale = {"claude": 1.2, "claude_2026": 1.4}.get(family, 1.0)
    assert rates.rates.shape == (len(CLASSES) ** 2,)
    assert (rates.rates >= 0).all()
    assert (rates.rates.reshape(len(CLASSES), -1) <= scale * np.array(most)).all()
    assert 0 < rates.relative_error < 0.3


# Counted once with the tokenizers themselves.
KNOWN: list[tuple[str, dict[str, int]]] = [
    (
        "The committee met again on Thursday, but only four of its nine members were in the room when the vote was "
        "called. Nobody had expected the harbour project to return so soon; the engineers' report, delivered in March, "
        "had found cracks in two of the older piers, and repairing them would take most of a year.",
        {"o200k": 65, "cl100k": 65, "llama3": 65, "qwen": 65, "gemma": 64},
    ),
    (
        "def moving_average(values: list[float], width: int) -> list[float]:\n"
        '    """Mean of each run of `width` neighbours."""\n'
        "    if width < 1 or width > len(values):\n"
        '        raise ValueError(f"width must lie in [1, {len(values)}], not {width}")\n'
        "    total = sum(values[:width])\n"
        "    means = [total / width]\n"
        "    for old, new in zip(values, values[width:]):\n"
        "        total += new - old\n"
        "        means.append(total / width)\n"
        "    return means\n",
        {"o200k": 112, "cl100k": 109, "llama3": 109, "qwen": 109, "gemma": 128},
    ),
    (
        "| Segment | 2022 | 2023 | Change |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| Cloud services | $1,204.5 | $1,488.1 | 23.5% |\n"
        "| Licences | $611.0 | $574.3 | (6.0)% |\n"
        "| Support and maintenance | $402.7 | $419.9 | 4.3% |\n"
        "| Total revenue | $2,218.2 | $2,482.3 | 11.9% |\n",
        {"o200k": 114, "cl100k": 114, "llama3": 114, "qwen": 136, "gemma": 142},
    ),
    (
        "Der Ausschuss trat am Donnerstag erneut zusammen, doch nur vier seiner neun Mitglieder waren im Raum, als "
        "abgestimmt wurde. Niemand hatte erwartet, dass das Hafenprojekt so bald wiederkehren würde; das Gutachten der "
        "Ingenieure hatte Risse in zwei der älteren Pfeiler festgestellt.",
        {"o200k": 58, "cl100k": 76, "llama3": 76, "qwen": 76, "gemma": 59},
    ),
    (
        "委员会星期四再次开会，但表决时九名成员中只有四人在场。没有人料到港口项目会这么快重新提出；"
        "工程师三月提交的报告发现两座旧码头出现裂缝，修复工作需要将近一年的时间。",
        {"o200k": 60, "cl100k": 85, "llama3": 62, "qwen": 50, "gemma": 57},
    ),
]


@pytest.mark.parametrize(("text", "counts"), KNOWN, ids=["prose", "code", "table", "German", "Chinese"])
def test_even_a_short_text_is_estimated_within_a_sixth(text: str, counts: dict[str, int]) -> None:
    estimates = {family: estimate_tokens(text, family) for family in counts}
    assert estimates == {family: pytest.approx(count, rel=1 / 6) for family, count in counts.items()}


@pytest.mark.parametrize("text", ["", "   ", AWKWARD, "<|endoftext|>" * 20])
def test_nothing_in_a_text_makes_an_estimate_raise(text: str) -> None:
    count = counter_for(None).count(text)
    assert (count == 0) == (text == "")


def test_unknown_tokenizer_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(ConfigError, match=r"'gpt2'.*o200k"):
        counter_for("gpt2")


def test_any_function_can_count() -> None:
    counter: TokenCounter = counter_from(lambda text: len(text.split()))
    assert (counter.count("one two three"), counter.relative_error) == (3, 0.0)


# ---- exact counters --------------------------------------------------------------------------------------------------


def word_level_tokenizer(folder: Path) -> Path:
    """A tokenizer.json of words and single characters, with a special token, cutting and padding switched on."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[UNK]", "<|endoftext|>", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_tokenizer_json_counts_whole_texts_as_ordinary_text(tmp_path: Path) -> None:
    counter = counter_for(str(word_level_tokenizer(tmp_path)))
    assert counter.relative_error == 0
    assert counter.count("") == 0
    assert counter.count("abababab") == 8
    assert counter.count("<|endoftext|>") == len("<|endoftext|>")
    assert counter.count("a\ud800b") == 3


def test_missing_or_broken_tokenizer_json_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer file"):
        counter_for(str(tmp_path / "nothing.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(ConfigError, match=r"broken\.json"):
        counter_for(str(broken))


@pytest.mark.parametrize("content", [None, b"half a download"])
def test_tiktoken_is_never_let_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    """tiktoken fetches what is missing or does not match, so both are refused before it is asked."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    if content is not None:
        (tmp_path / "fb374d419588a4632f3f557e76b4b70aebbca790").write_bytes(content)
    with pytest.raises(ConfigError, match="does not fetch"):
        counter_for("o200k_base")


def test_tiktoken_counts_special_tokens_surrogates_and_long_blanks_as_text() -> None:
    try:
        counter = counter_for("cl100k_base")
    except (ConfigError, MissingExtra) as error:
        pytest.skip(str(error))
    assert counter.count("<|endoftext|>") == 7
    assert counter.count("\ud800") > 0
    assert counter.count(" " * 1_000_000) == pytest.approx(1_000_000 / 127, rel=0.01)


# ---- against real counts ---------------------------------------------------------------------------------------------


def test_estimates_of_long_documents_agree_with_published_counts(repository: Path) -> None:
    data = Path(os.environ.get("LONGROUTE_DATA", repository.parent / "shared" / "data")) / "lara" / "documents.jsonl.gz"
    if not data.is_file():
        pytest.skip("needs the LaRA documents: set LONGROUTE_DATA")
    with gzip.open(data, "rt", encoding="utf-8") as lines:
        documents = [document for document in map(json.loads, lines) if document["text"]]
    errors = [estimate_tokens(d["text"], "cl100k") / d["tokens_cl100k"] - 1 for d in documents]
    assert np.quantile(np.abs(errors), 0.95) < 0.05
    assert abs(np.mean(errors)) < 0.02
