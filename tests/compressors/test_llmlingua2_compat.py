"""Equality with the reference package on stored results, and what the compat mode does beyond them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from longroute.compressors.llmlingua2_compat import CompatLLMLingua2
from longroute.compressors.llmlingua2_options import PromptOptions
from longroute.compressors.token_classifier import Ids, Mask, Probabilities, Vocabulary, add_placeholders
from longroute.router.errors import ConfigError
from longroute.router.tokens import counter_from

# Made with the reference package by `python -m benchmarks.llmlingua2_identity --fixture --cases 80`.
STORED = Path(__file__).with_name("llmlingua2_reference.json")
SPECIAL = {
    "bert": {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask": "[MASK]"},
    "xlmr": {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask": "<mask>"},
}


class FakeClassifier:
    """The probability that FakeModel of benchmarks/llmlingua2_reference.py comes to."""

    def keep_probability(self, ids: Ids, mask: Mask) -> Probabilities:
        keep = (((ids * 7919 + np.arange(ids.shape[1]) * 104729) % 2003) / 1000 - 1).astype(np.float32)
        probabilities: Probabilities = (1 / (1 + np.exp(-2 * keep))).astype(np.float32)
        return probabilities


@lru_cache(maxsize=1)
def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(STORED.read_text("utf-8"))
    return found


@lru_cache(maxsize=2)
def compressor(kind: str) -> CompatLLMLingua2:
    tokenizer = Tokenizer.from_str(json.dumps(stored()[kind]["tokenizer"]))
    plain = Tokenizer.from_str(tokenizer.to_str())
    counter = counter_from(lambda text: len(plain.encode(text, add_special_tokens=False)))
    vocabulary = Vocabulary.of(tokenizer, SPECIAL[kind])
    add_placeholders(vocabulary.tokenizer)
    return CompatLLMLingua2(FakeClassifier(), vocabulary, counter)


def options_of(case: dict[str, Any]) -> PromptOptions:
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in case["options"].items()
    }
    return PromptOptions(**chosen)


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_results_are_those_of_the_reference(kind: str) -> None:
    cases = stored()[kind]["cases"]
    assert len(cases) >= 60
    for case in cases:
        expected = case["expected"]
        if "error" in expected:
            with pytest.raises(ConfigError, match=expected["error"]):
                compressor(kind).compress_prompt(case["context"], options_of(case))
        else:
            found = compressor(kind).compress_prompt(case["context"], options_of(case)).as_dict()
            assert found == expected, case


def test_the_fixture_is_small() -> None:
    assert STORED.stat().st_size < 200_000


def test_a_string_is_one_context() -> None:
    text = "the council did not approve a budget. "
    one = compressor("bert").compress_prompt(text)
    assert one == compressor("bert").compress_prompt([text])
    assert one.kept_context_ids == (0,)


def test_the_filter_says_which_contexts_it_kept() -> None:
    contexts = ["the council did not approve a budget", "members vote twice", "der Rat hat den Haushalt"]
    options = PromptOptions(rate=0.9, target_context=1, force_context_ids=(2,))
    kept = compressor("bert").compress_prompt(contexts, options).kept_context_ids
    assert 2 in kept and len(kept) <= 2


def test_more_force_tokens_than_placeholders_are_refused() -> None:
    options = PromptOptions(force_tokens=tuple(f"w{i}" for i in range(101)))
    with pytest.raises(ConfigError, match="AssertionError"):
        compressor("bert").compress_prompt("the council", options)


def test_lone_surrogates_do_no_harm() -> None:
    assert compressor("xlmr").compress_prompt("the \ud800 council did not vote", PromptOptions(rate=1.0))
