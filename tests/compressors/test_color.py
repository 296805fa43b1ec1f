from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.compressors.color import Color, LocalColor, Outcome, color_prompt, lost_share, prompt_ids
from longroute.compressors.compression import Compressed, Span
from longroute.compressors.question_aware import paragraphs
from longroute.router.core import Message
from longroute.router.errors import ConfigError
from longroute.router.tokens import estimate_tokens

PASSAGE = (
    "Ada Lovelace, who was, as is often told, the daughter of a poet, wrote in 1843 what many people call the first "
    "program for a machine that had not been built and that would not be built while she lived."
)
SUMMARY = "Ada Lovelace wrote the first program in 1843."


class Writer:
    """A model that says what a function of the passage says; remembers its batches."""

    def __init__(self, say: Callable[[str], str | None]) -> None:
        self.say = say
        self.batches: list[list[str]] = []

    def __call__(self, prompts: Sequence[tuple[Message, ...]]) -> list[str | None]:
        passages = [prompt[0].content.removeprefix(color_prompt("")[0].content) for prompt in prompts]
        self.batches.append(passages)
        return [self.say(passage) for passage in passages]


def color(say: Callable[[str], str | None], **options: Any) -> Color:
    return Color(Writer(say), **options)


def first_half(passage: str) -> str:
    return passage[: len(passage) // 2]


# ---- what becomes of a passage ---------------------------------------------------------------------------------------


def test_a_summary_stands_for_its_passage() -> None:
    (result,) = color(lambda _: SUMMARY).compress([PASSAGE], keep_rate=1)
    assert result.text == SUMMARY
    assert result.tokens_after == estimate_tokens(SUMMARY) < result.tokens_before == estimate_tokens(PASSAGE)


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (SUMMARY, "rewritten"),
        (f"  Summary: {SUMMARY}\n", "rewritten"),
        (f"<think>\nThe poet is of no use.\n</think>\n\n{SUMMARY}", "rewritten"),
        (None, "empty"),
        ("", "empty"),
        (" \n", "empty"),
        ("<think>So</think>", "empty"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("I cannot summarise this passage.", "refused"),
        ("As an AI language model, I have no opinion.", "refused"),
        (PASSAGE, "longer"),
        (PASSAGE + " And more.", "longer"),
        ("A person wrote something.", "lost"),
    ],
)
def test_a_passage_stays_as_it_is_where_its_summary_is_of_no_use(said: str | None, outcome: Outcome) -> None:
    compressor = color(lambda _: said)
    (rewrite,) = compressor.rewrite([PASSAGE])
    assert rewrite.outcome == outcome
    assert rewrite.text == (SUMMARY if outcome == "rewritten" else PASSAGE)
    assert compressor.outcomes == {outcome: 1}
    (result,) = compressor.compress([PASSAGE], keep_rate=1)
    assert result.text == rewrite.text


def test_a_passage_that_begins_like_a_refusal_may_be_quoted() -> None:
    passage = "I'm sorry, said the ferryman of Velm in 1843, there is no boat today and there will be none tomorrow."
    assert color(lambda _: "I'm sorry, no boat in Velm, 1843").rewrite([passage])[0].outcome == "rewritten"


def test_the_check_of_names_and_numbers_can_be_set() -> None:
    said = "Lovelace wrote a program."
    assert 0.5 < lost_share(PASSAGE, said) < 1
    assert color(lambda _: said, max_lost=0.5).rewrite([PASSAGE])[0].outcome == "lost"
    assert color(lambda _: "Somebody wrote.", max_lost=1).rewrite([PASSAGE])[0].outcome == "rewritten"
    with pytest.raises(ConfigError, match="max_lost"):
        color(lambda _: said, max_lost=1.5)


def test_lost_words_are_looked_for_inside_scripts_without_spaces() -> None:
    assert lost_share("委员会在2031年批准了三千二百元的预算", "2031年批准三千二百元") == 0.0
    assert lost_share("no names here", "") == 0.0


def test_equal_passages_are_asked_about_once_and_blank_ones_never() -> None:
    writer = Writer(lambda _: SUMMARY)
    rewrites = Color(writer).rewrite([PASSAGE, " ", "", PASSAGE])
    assert writer.batches == [[PASSAGE]]
    assert [rewrite.text for rewrite in rewrites] == [SUMMARY, " ", "", SUMMARY]
    assert Color(writer).compress([], keep_rate=1) == []
    assert len(writer.batches) == 1


def test_a_model_that_answers_too_little_is_an_error() -> None:
    with pytest.raises(ConfigError, match="0 texts for 1 prompts"):
        Color(lambda prompts: []).rewrite([PASSAGE])


def test_all_passages_are_asked_about_in_one_batch() -> None:
    writer = Writer(first_half)
    Color(writer, split=paragraphs).compress([f"{PASSAGE * 4}\n\n{PASSAGE[1:] * 4}", "A third text. " * 9], keep_rate=1)
    assert len(writer.batches) == 1
    assert len(writer.batches[0]) > 2


# ---- the contract of compressors -------------------------------------------------------------------------------------


def test_rewritten_text_maps_to_nothing_and_what_it_lacks_is_named() -> None:
    (result,) = color(lambda _: "Lovelace wrote a program.").compress([PASSAGE], keep_rate=1)
    assert result.kept == ()
    assert result.placed == ()
    assert {"Ada Lovelace", "1843"} <= {PASSAGE[a:b] for a, b in result.broken}
    with pytest.raises(IndexError):
        result.source_offset(0)


def test_a_passage_that_was_not_rewritten_has_its_offsets() -> None:
    (result,) = color(lambda _: None).compress([PASSAGE], keep_rate=1)
    assert result.kept == ((0, len(PASSAGE)),)
    (result,) = color(lambda _: None).compress([PASSAGE], keep_rate=0.5)
    assert PASSAGE.startswith(result.text)
    assert result.kept == ((0, len(result.text)),)
    assert result.source_offset(10) == 10
    (result,) = color(lambda _: None).compress([PASSAGE], budget_tokens=2)
    assert "1843" in {PASSAGE[a:b] for a, b in result.broken}


def test_a_summary_above_the_limit_loses_its_end() -> None:
    (result,) = color(lambda _: SUMMARY).compress([PASSAGE], budget_tokens=6)
    assert SUMMARY.startswith(result.text)
    assert 0 < result.tokens_after == estimate_tokens(result.text) <= 6
    assert result.kept == ()
    assert any("1843" in PASSAGE[a:b] for a, b in result.broken)


class LastWords:
    """A compressor that keeps the end."""

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        assert budget_tokens is not None
        texts = [" ".join(text.split()[-budget_tokens // 2 :]) for text in texts]
        return [Compressed(text, ((0, len(text)),), (0,), 99, estimate_tokens(text)) for text in texts]


def test_another_compressor_may_do_the_cutting() -> None:
    (result,) = color(lambda _: SUMMARY, cut=LastWords()).compress([PASSAGE], budget_tokens=6)
    assert result.text == "program in 1843."
    assert result.kept == ()
    assert result.tokens_before == estimate_tokens(PASSAGE)


def test_a_total_is_shared_by_what_was_written_not_by_what_stood_there() -> None:
    long, short = "Some words about Ada. " * 40, "Ada went home to London in the evening, as she did each day. " * 2
    results = color(lambda passage: "About Ada." if passage == long else first_half(passage)).compress(
        [long, short], budget_tokens=40
    )
    assert results[0].text == "About Ada."
    assert len(results[1].text) > 40


def test_passages_of_a_text_are_rewritten_one_by_one_and_keep_their_places() -> None:
    text = "  One passage of the text, rather long.\n\nAnother one, which stays.\n"
    spans = [(2, 39), (41, 66)]
    compressor = color(lambda p: "One, short." if p.startswith("One") else None, split=lambda _: spans)
    (result,) = compressor.compress([text], keep_rate=1)
    assert result.text == "  One, short.\n\nAnother one, which stays.\n"
    assert result.kept == ()
    assert compressor.outcomes == {"rewritten": 1, "empty": 1}


@pytest.mark.parametrize("limits", [{}, {"budget_tokens": 3, "keep_rate": 0.5}, {"keep_rate": 2.0}])
def test_bad_limits_are_refused_before_anything_is_paid_for(limits: dict[str, Any]) -> None:
    writer = Writer(first_half)
    with pytest.raises(ConfigError):
        Color(writer).compress([PASSAGE], **limits)
    assert writer.batches == []


TEXTS = st.one_of(
    st.text(max_size=120),
    st.lists(st.sampled_from(["not", "Ada", "3.2", "\n\n", "委员会", "x."]), max_size=60).map(" ".join),
)
SAID = st.sampled_from([
    lambda p: None,
    lambda p: p,
    lambda p: p[: len(p) // 2],
    lambda p: p[::-2],
    lambda p: "word " * 30,
    lambda p: "\ud800" + p[:3],
])  # fmt: skip


def thirds(text: str) -> list[Span]:
    edges = [0, len(text) // 3, 2 * len(text) // 3, len(text)]
    return [(a, b) for a, b in pairwise(edges) if a < b]


@given(
    st.lists(TEXTS, max_size=4),
    SAID,
    st.one_of(st.integers(0, 80).map(lambda n: {"budget_tokens": n}), st.floats(0, 1).map(lambda r: {"keep_rate": r})),
    st.sampled_from([None, thirds]),
    st.sampled_from([estimate_tokens, len, lambda text: len(text.split())]),
)
def test_never_above_the_limits_and_never_longer_than_the_source(
    texts: list[str],
    say: Callable[[str], str | None],
    limit: dict[str, Any],
    split: Callable[[str], Sequence[Span]] | None,
    count: Callable[[str], int],
) -> None:
    results = color(say, count=count, split=split, max_lost=1).compress(texts, **limit)
    assert len(results) == len(texts)
    for text, result in zip(texts, results, strict=True):
        assert result.tokens_before == (count(text) if text else 0)
        assert result.tokens_after == (count(result.text) if result.text else 0) <= result.tokens_before
        assert len(result.text) <= len(text)
        assert result.tokens_after <= limit.get("keep_rate", 1) * result.tokens_before + 1e-6
        assert all(
            result.text[p : p + b - a] == text[a:b] for (a, b), p in zip(result.kept, result.placed, strict=True)
        )
    assert sum(result.tokens_after for result in results) <= limit.get("budget_tokens", float("inf"))


def test_the_version_tells_apart_what_writes_differently() -> None:
    versions = {color(first_half, model=m, max_lost=x).version for m in ("a", "b") for x in (0.5, 0.8)}
    assert len(versions) == 4


# ---- a local model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="the extra `embed` is not installed")
    from longroute.benchmarks.tiny_engine import make_model

    return make_model(tmp_path_factory.mktemp("model"), [PASSAGE, SUMMARY, color_prompt("")[0].content])


def test_batches_write_what_single_prompts_do(folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    prompts = [color_prompt(PASSAGE[:n]) for n in (20, 150, 60, 60)]
    model = LocalColor.load(folder, max_new_tokens=12)
    model.model.double()  # so that padding does not tip a near tie
    together = model(prompts)
    assert together == [model([prompt])[0] for prompt in prompts]
    assert together[2] == together[3]
    model.batch_tokens = 1
    assert model(prompts) == together


def test_a_prompt_that_is_too_long_is_not_cut_its_passage_stays(folder: Path) -> None:
    model = LocalColor.load(folder, max_prompt_tokens=200, max_new_tokens=4)
    compressor = Color(model, model=model.name)
    rewrites = compressor.rewrite([PASSAGE * 20])
    assert rewrites[0].outcome == "empty"
    assert rewrites[0].text == PASSAGE * 20


def test_the_model_ends_where_its_configuration_or_its_tokenizer_says(folder: Path) -> None:
    model = LocalColor.load(folder, max_new_tokens=6)
    (all_of_it,) = model([color_prompt(PASSAGE)])
    ids = model.tokenizer(all_of_it, add_special_tokens=False)["input_ids"]
    model.model.generation_config.eos_token_id = [ids[0], 2]
    assert len(model([color_prompt(PASSAGE)])[0]) < len(all_of_it)


def test_the_name_changes_with_the_files(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    before = LocalColor.load(tmp_path / "model").name
    assert re.fullmatch(r"model@[0-9a-f]{16}", before)
    (tmp_path / "model" / "adapter.json").write_text("{}")
    assert LocalColor.load(tmp_path / "model").name != before


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `embed` is not installed")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        LocalColor.load(tmp_path)


def test_a_plain_language_model_is_given_plain_text(folder: Path) -> None:
    tokenizer = LocalColor.load(folder).tokenizer
    tokenizer.chat_template = None
    text = tokenizer.decode(prompt_ids(tokenizer, color_prompt(PASSAGE)))
    assert text == f"<s>{color_prompt(PASSAGE)[0].content}\n\nSummary:\n"
