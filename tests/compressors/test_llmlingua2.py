"""LLMLingua-2 with its quirks mended: the contract of compressors, and the options of the reference."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from longroute.compressors.compression import Compressor
from longroute.compressors.llmlingua2 import LLMLingua2
from longroute.compressors.llmlingua2_options import PromptOptions
from longroute.compressors.protect import protected_spans
from longroute.compressors.token_classifier import Ids, Mask, Probabilities, Vocabulary
from longroute.router.core import TokenCounter
from longroute.router.errors import ConfigError
from longroute.router.tokens import EstimatedCounter, counter_from

STORED = Path(__file__).with_name("llmlingua2_reference.json")
SPECIAL = {
    "bert": {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "xlmr": {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"},
}
PLAIN = (
    "The council met in the old town hall on a cold evening and talked for a long time about the harbour. "
    "Later the chair asked the members to vote and then to go home through the rain. "
)
TEXTS = st.one_of(
    st.text(max_size=150),
    st.text(alphabet="ab 1.,\n不的港😀\u0301\u200d\ud800[SEP]", max_size=150),
    st.sampled_from(
        ["", " \n ", "x" * 3000, "word " * 700, PLAIN * 9, "委员会没有批准预算" * 90, "Ada paid $5. " * 50]
    ),
)


class FakeClassifier:
    """A probability from the id of a token and nothing else; remembers the shapes it was asked for."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def keep_probability(self, ids: Ids, mask: Mask) -> Probabilities:
        self.shapes.append((ids.shape[0], ids.shape[1]))
        probabilities: Probabilities = np.where(mask, (ids * 7919 % 2003) / 2003, np.nan).astype(np.float32)
        return probabilities


@lru_cache(maxsize=2)
def vocabulary(kind: str) -> Vocabulary:
    tokenizer = json.loads(STORED.read_text("utf-8"))[kind]["tokenizer"]
    return Vocabulary.of(Tokenizer.from_str(json.dumps(tokenizer)), SPECIAL[kind])


WORDS = counter_from(lambda text: len(text.split()))


def compressor(kind: str = "bert", counter: TokenCounter = WORDS, protect: bool = True) -> LLMLingua2:
    made = LLMLingua2(FakeClassifier(), vocabulary(kind), counter)
    return made if protect else LLMLingua2(FakeClassifier(), vocabulary(kind), counter, protect=())


def test_it_is_a_compressor() -> None:
    made: Compressor = compressor()
    assert made.compress([], keep_rate=0.5) == []


@given(st.lists(TEXTS, max_size=3), st.floats(0, 1), st.sampled_from(["bert", "xlmr"]))
@settings(max_examples=60, deadline=None)
def test_the_contract_holds_for_any_text(texts: list[str], rate: float, kind: str) -> None:
    counter = EstimatedCounter()
    for text, found in zip(texts, compressor(kind, counter).compress(texts, keep_rate=rate), strict=True):
        assert found.tokens_after == counter.count(found.text) <= rate * counter.count(text) + 1e-6
        assert len(found.text) <= len(text)
        for (start, end), place in zip(found.kept, found.placed, strict=True):
            assert found.text[place : place + end - start] == text[start:end]


@given(st.lists(TEXTS, max_size=4), st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_a_budget_is_for_all_texts_together(texts: list[str], budget: int) -> None:
    assert sum(found.tokens_after for found in compressor().compress(texts, budget_tokens=budget)) <= budget


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.33, 0.5, 0.8])
def test_the_rate_is_kept_within_two_percent(kind: str, rate: float) -> None:
    (found,) = compressor(kind, EstimatedCounter()).compress([PLAIN * 12], keep_rate=rate)
    assert rate - 0.02 <= found.keep_rate <= rate


def test_everything_is_kept_at_rate_one_without_asking_the_model() -> None:
    classifier = FakeClassifier()
    made = LLMLingua2(classifier, vocabulary("bert"), WORDS)
    text = "  The council\n\n did  not 😀 vote.\t"
    assert made.compress([text], keep_rate=1.0)[0].text == text and classifier.shapes == []


def test_a_larger_rate_keeps_what_a_smaller_one_kept() -> None:
    made, before = compressor(protect=False), set[int]()
    for rate in (0.1, 0.3, 0.5, 0.9):
        (found,) = made.compress([PLAIN], keep_rate=rate)
        kept = {place for start, end in found.kept for place in range(start, end) if not PLAIN[place].isspace()}
        assert before <= kept
        before = kept


def test_what_is_protected_survives_and_nothing_breaks_in_half() -> None:
    text = PLAIN + "It will not cost more than $3.2 million unless Ada Byron says “no way”. " + PLAIN
    (found,) = compressor(counter=EstimatedCounter()).compress([text], keep_rate=0.4)
    assert found.broken == ()
    for span in protected_spans(text):
        assert any(start <= span.start and span.end <= end for start, end in found.kept), text[span.start : span.end]


def test_what_the_budget_breaks_is_named() -> None:
    text = "Not one, not two, not three, never four, never five."
    (found,) = compressor().compress([text], budget_tokens=2)
    assert found.tokens_after <= 2 and len(found.broken) > 3


def test_chunks_fit_the_model_and_are_not_padded_to_it() -> None:
    classifier = FakeClassifier()
    made = LLMLingua2(classifier, vocabulary("bert"), WORDS, batch_tokens=2048)
    made.compress([PLAIN * 30, "The council.", "x " * 5000], keep_rate=0.5)
    assert all(rows * length <= 2048 and length <= 512 for rows, length in classifier.shapes)
    assert min(length for _, length in classifier.shapes) < 100


def test_scores_do_not_depend_on_the_batch() -> None:
    texts = [PLAIN * 9, "The council voted at last on the harbour.", PLAIN]
    together = compressor().compress(texts, keep_rate=0.5)
    assert together == [compressor().compress([text], keep_rate=0.5)[0] for text in texts]


# ---- the options of the reference ------------------------------------------------------------------------------------


def test_force_tokens_of_any_number_and_length() -> None:
    force = ("old town", "\n", *(f"w{i}" for i in range(150)), "(", ".*")
    text = "They met in the old town\nhall (w140 .* there) and talked for long about the many things they had seen."
    found = compressor(protect=False).compress_prompt(text, PromptOptions(rate=0.5, force_tokens=force))
    assert all(part in found.compressed_prompt for part in ("old town", "\n", "(", "w140", ".*"))


def test_digits_are_reserved() -> None:
    text = "in the year of x7 they met and talked for long about 4th things they had seen at no2 there"
    options = PromptOptions(rate=0.3, force_reserve_digit=True)
    found = compressor(protect=False).compress_prompt(text, options)
    assert {"x7", "4th", "no2"} <= set(found.compressed_prompt.split())


def test_equal_force_tokens_in_a_row_are_dropped() -> None:
    text = "one . two . three . four . five . six ."
    options = PromptOptions(target_token=5, force_tokens=(".",), drop_consecutive=True, use_context_level_filter=False)
    found = compressor(protect=False).compress_prompt(text, options)
    assert ". ." not in found.compressed_prompt and found.compressed_prompt.split().count(".") < 5


def test_the_first_token_or_the_mean_of_all() -> None:
    by_mean = compressor(protect=False).compress_prompt(PLAIN, PromptOptions(rate=0.4))
    by_first = compressor(protect=False).compress_prompt(PLAIN, PromptOptions(rate=0.4, token_to_word="first"))
    assert by_mean.compressed_prompt != by_first.compressed_prompt


def test_contexts_are_filtered_and_named() -> None:
    contexts = [PLAIN, "zzz qqq xxx", PLAIN + "again", "the council"]
    found = compressor().compress_prompt(contexts, PromptOptions(rate=0.9, target_context=2, force_context_ids=(1,)))
    assert 1 in found.kept_context_ids and len(found.kept_context_ids) < 4
    assert len(found.contexts) == len(found.compressed_prompt_list) == len(found.kept_context_ids)


def test_a_target_is_never_exceeded() -> None:
    for target in (0, 1, 7, 40):
        found = compressor().compress_prompt([PLAIN, PLAIN, "the council"], PromptOptions(target_token=target))
        assert found.compressed_tokens <= target


def test_without_the_token_filter_contexts_stay_as_they_are() -> None:
    contexts = [PLAIN, "The council 😀 did\n not."]
    options = PromptOptions(use_token_level_filter=False, use_context_level_filter=False)
    assert list(compressor().compress_prompt(contexts, options).compressed_prompt_list) == contexts


def test_every_word_has_its_label() -> None:
    options = PromptOptions(rate=0.5, return_word_label=True, word_sep="|", label_sep="=", force_tokens=("\n",))
    found = compressor().compress_prompt("The council met.\nThen it left.", options)
    assert found.fn_labeled_original_prompt is not None
    pairs = [pair.rsplit("=", 1) for pair in found.fn_labeled_original_prompt.split("|")]
    assert [word for word, _ in pairs] == ["The", "council", "met", ".", "Then", "it", "left", "."]
    kept = [word for word, label in pairs if label == "1"]
    assert "".join(kept) == "".join(found.compressed_prompt.split())


def test_what_the_reference_fails_on() -> None:
    made = compressor()
    assert made.compress_prompt("", PromptOptions(target_token=5)).compressed_prompt == ""
    assert made.compress_prompt(["", " "], PromptOptions(target_token=5)).compressed_tokens == 0
    assert made.compress_prompt([], PromptOptions()).compressed_prompt_list == ()
    assert made.compress_prompt(PLAIN, PromptOptions(rate=0.0)).compressed_prompt == ""
    assert made.compress_prompt("[SEP] [NEW3] [UNK]", PromptOptions(rate=1.0)).compressed_prompt == "[SEP] [NEW3] [UNK]"
    for wrong in (PromptOptions(rate=-0.1), PromptOptions(token_to_word="last")):  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            made.compress_prompt("x", wrong)
