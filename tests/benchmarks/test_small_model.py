from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given
from hypothesis import strategies as st

from longroute.benchmarks import small_model
from longroute.benchmarks.key_values import invented_page, words
from longroute.benchmarks.small_model import (
    BARE,
    END,
    FORMS,
    GROWING,
    MIXED,
    Form,
    Lessons,
    Level,
    bare,
    page_of,
    reply,
    tokenizer,
    trained,
)
from longroute.router.core import Message
from longroute.router.errors import RouterError
from longroute.router.prompts import NO_EVIDENCE, REFUSAL
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.tokenizer import Tokenizer
from longroute.router.strategies.reports import parse

torch.set_num_threads(1)  # for matrices of this size more of them only wait for each other


@pytest.fixture(scope="module")
def own() -> Any:
    return tokenizer()


def test_every_word_of_the_task_is_one_token(own: Any) -> None:
    assert all(len(own(f" {word}", add_special_tokens=False)["input_ids"]) == 1 for word in words())


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60))
def test_any_text_survives_the_tokenizer(own: Any, text: str) -> None:
    ids = own(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert own.decode(ids) == text


def test_a_saved_tokenizer_writes_the_same_prompt(own: Any, tmp_path: Path) -> None:
    own.save_pretrained(tmp_path)
    ids = Tokenizer.load(tmp_path).chat_ids(
        [{"role": "system", "content": "Be concise."}, {"role": "user", "content": "a"}]
    )
    assert own.decode(ids) == "<s><|system|>Be concise.<|end|><|user|>a<|end|><|assistant|>"


@pytest.mark.parametrize("form", [*FORMS.values(), *(bare(FORMS[name], behind=8) for name in BARE)])
def test_what_is_to_be_predicted_is_the_reply(own: Any, form: Form) -> None:
    lessons = Lessons(own, random.Random(2))
    page = invented_page(random.Random(2), 6, 8, 4)
    row = lessons._asked(page, form, Level(6, 8, wrapped=1, refused=0.5, echoed=0, behind=1, steps=1))
    replies = [own.decode(row.ids[stretch.start : stretch.stop]) for stretch in row.predicted]
    found = [form.found.format(fact.sentence) + END for fact in page.facts]
    assert all(text in [*found, form.missing + END] for text in replies)
    assert form.missing + END in replies
    assert any(text in found for text in replies)


@pytest.mark.parametrize("name", BARE)
@given(seed=st.integers(0, 1000), behind=st.integers(1, 120))
def test_a_bare_question_stands_near_its_reply_and_ends_like_the_real_prompt(name: str, seed: int, behind: int) -> None:
    page = invented_page(random.Random(0), 3, 2)
    asked = page.facts[0].question
    (real, bared) = (
        form.prompt(page, "a", asked, random.Random(seed))[-1].content.rpartition(asked)[2].split()
        for form in (FORMS[name], bare(FORMS[name], behind))
    )
    assert bared == (real[-len(bared) :] if bared else [])
    assert min(1, len(real)) <= len(bared) <= behind


def test_what_other_parts_held_is_no_reason_for_a_worker_to_report_it(own: Any) -> None:
    """Notes hold the answer where the part does not; the reply goes by the part."""
    page = invented_page(random.Random(1), 8, 2, 8)
    level = Level(8, 2, wrapped=1, refused=1, echoed=0, behind=1, steps=1)
    rows = [Lessons(own, random.Random(seed))._asked(page, FORMS["worker"], level) for seed in range(12)]
    assert any(fact.sentence in own.decode(row.ids) for row in rows for fact in page.missing)
    replies = {own.decode(row.ids[stretch.start : stretch.stop]) for row in rows for stretch in row.predicted}
    assert replies == {"NOTHING" + END}


def test_an_echo_repeats_sentences(own: Any) -> None:
    row = Lessons(own, random.Random(0)).row(Level(4, 4, wrapped=0, refused=0, echoed=1, behind=1, steps=1))
    (stretch,) = row.predicted
    text = own.decode(row.ids)
    again = own.decode(row.ids[stretch.start :])
    assert row.is_echo
    assert all(text.count(sentence) == 2 for sentence in again.strip().removesuffix(".").split(". "))


def test_replies_are_in_the_words_that_longroute_reads() -> None:
    assert {form.missing for form in FORMS.values()} == {REFUSAL, NO_EVIDENCE, "NOTHING"}
    (line,) = parse(FORMS["worker"].found.format("The key of A is 12.")).lines
    assert (line.form, line.quote) == ("evidence", "The key of A is 12.")


def test_pages_have_about_the_tokens_that_were_asked_for(own: Any) -> None:
    for n_tokens in (250, 1000, 4000):
        ids = own(page_of(random.Random(0), n_tokens).text, add_special_tokens=False)["input_ids"]
        assert len(ids) == pytest.approx(n_tokens, rel=0.1)


def test_training_runs_and_the_folder_loads(own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of the real training; how good they make the model is for the benchmark to say."""
    monkeypatch.setattr(small_model, "_STEP_TOKENS", 300)
    monkeypatch.setattr(small_model, "_LEAST", 0.0)
    made = trained(own, growing=[replace(level, steps=2) for level in GROWING[:2]], mixed=[replace(MIXED[0], steps=2)])
    own.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    model, read = LanguageModel.load(tmp_path, device="cpu"), Tokenizer.load(tmp_path)
    assert model.eos_ids == {own.eos_token_id}
    assert isinstance(reply(model, read, [Message("user", "Who?")], most=3), str)


def test_a_model_that_does_not_learn_is_an_error(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "_STEP_TOKENS", 300)
    with pytest.raises(RouterError, match="try another seed"):
        trained(own, growing=[replace(GROWING[0], steps=1)], mixed=[replace(MIXED[0], steps=1)])
