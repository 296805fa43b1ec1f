from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from longroute.router.errors import BackendUnavailable, ConfigError
from longroute.router.runner.engine import Engine
from longroute.router.runner.generation import Draft, Generation, SamplingOptions
from longroute.router.runner.local_model import LocalModel, LocalOptions, recommended_sampling
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.speculative import Speculation
from longroute.router.runner.tokenizer import Tokenizer
from longroute.tests.router.runner.tiny import tiny_transformer

GREEDY = SamplingOptions(temperature=0)


def test_a_folder_becomes_a_model_that_answers_until_it_is_closed(model_folder: Path) -> None:
    with LocalModel.load(model_folder, LocalOptions("cpu")) as model:
        assert (model.name, model.context_window) == ("tiny", 8192)
        generation = Generation(model.tokenizer.text_ids("Ada"), GREEDY, max_tokens=4)
        assert model.engine.submit(generation).result().text
    with pytest.raises(BackendUnavailable):
        model.engine.submit(generation)


def test_another_model_may_draft(model_folder: Path) -> None:
    with LocalModel.load(model_folder, LocalOptions("cpu", draft_model=model_folder)) as model:
        ids = model.tokenizer.text_ids("Ada wrote it")
        plain = model.engine.submit(Generation(ids, GREEDY, 12)).result()
        draft = Draft(ids, Speculation(draft_tokens=3))  # the same weights on the same text: all drafts are kept
        done = model.engine.submit(Generation(ids, GREEDY, 12, draft=draft)).result()
    assert done.text == plain.text
    assert done.usage.speculation is not None
    assert done.usage.speculation.acceptance == 1


def test_a_folder_that_is_not_there_is_named_and_not_looked_for_elsewhere(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="There is no folder org/model"):
        LocalModel.load("org/model")
    with pytest.raises(ConfigError, match="There is no folder org/draft"):
        LocalModel.load(model_folder, LocalOptions("cpu", draft_model="org/draft"))


def test_a_drafter_of_another_vocabulary_is_refused(model_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model_folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="another id"):
        LocalModel.load(model_folder, LocalOptions("cpu", draft_model=other))


def test_sampling_follows_the_authors_where_they_say_something(tmp_path: Path) -> None:
    assert recommended_sampling(tmp_path) == SamplingOptions()
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "top_p": null}')
    assert recommended_sampling(tmp_path) == SamplingOptions(temperature=0.6, top_k=20)
    (tmp_path / "generation_config.json").write_text('{"temperature": -1}')
    with pytest.raises(ConfigError, match=r"generation_config\.json.*temperature is -1"):
        recommended_sampling(tmp_path)


def test_models_that_forget_are_told_where_the_question_begins(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder)
    window = LanguageModel(tiny_transformer("mistral", vocab_size=len(tokenizer.vocabulary)))
    with LocalModel("tiny", tokenizer, Engine(window, tokenizer.decode), GREEDY) as model:
        reused = []
        for question in ("Who wrote it?", "How much is the rent?"):
            messages = [{"role": "user", "content": f"Ada wrote it in Vienna. Ada paid. {question}"}]
            ids = model.tokenizer.chat_ids(messages)
            shared = model.shared_tokens(messages, question, ids)
            assert tokenizer.decode(ids[:shared]).rstrip() == "user: Ada wrote it in Vienna. Ada paid."
            assert model.shared_tokens(messages, "Never asked?", ids) == 0
            done = model.engine.submit(Generation(ids, GREEDY, 4, shared_tokens=shared)).result()
            reused.append(done.usage.reused_tokens == shared)
        assert reused == [False, True]


def test_models_that_forget_keep_what_two_prompts_began_with(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder)
    window = LanguageModel(
        tiny_transformer("mistral", vocab_size=len(tokenizer.vocabulary), max_position_embeddings=2048)
    )
    document = "Bells rang in 1203, salt came in 1377. " * 12
    with LocalModel("tiny", tokenizer, Engine(window, tokenizer.decode), GREEDY) as model:
        reused = []
        for question in ("Who wrote it?", "How much is the rent?", "Where is it?"):
            ids = tokenizer.text_ids(f"{document}{question} {'Say so. ' * 40}")  # far more than can be rolled back
            generation = Generation(ids, GREEDY, 4, shared_tokens=model.shared_head(ids))
            reused.append(model.engine.submit(generation).result().usage.reused_tokens)
        head = len(tokenizer.text_ids(document))
        assert head > 256
        assert [abs(found - head) <= 2 for found in reused] == [False, False, True]
        assert model.shared_head(tokenizer.text_ids("Short. Who?")) == model.shared_head((1, 2)) == 0
