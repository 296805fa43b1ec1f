from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

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


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "config.json is missing"),
        (("model-q4_k_m.gguf",), "holds GGUF files.*base_url"),
        (("adapter_config.json", "adapter_model.safetensors"), "holds an adapter.*merge_and_unload"),
        (("config.json", "model.safetensors"), "no tokenizer in"),
        (("config.json", "model.safetensors", "tokenizer.json"), "weights in .* cannot be read"),
    ],
)
def test_a_folder_of_something_else_is_told_in_one_line(
    model_folder: Path, tmp_path: Path, files: tuple[str, ...], said: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in files:
        there = model_folder / name
        content = there.read_bytes() if there.is_file() and there.suffix == ".json" else b"cut short"
        (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        LocalModel.load(folder, LocalOptions("cpu"))
    assert "\n" not in str(caught.value)
    (tmp_path / "some.gguf").write_bytes(b"")
    with pytest.raises(ConfigError, match="is a GGUF file"):
        LocalModel.load(tmp_path / "some.gguf")


def test_answers_end_where_only_tokenizer_and_template_say_how(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "endless")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<s>{% endfor %}")
    with LocalModel.load(folder, LocalOptions("cpu")) as model:
        assert not model.engine.model.eos_ids
        for end in ("<s>", "</s>"):
            sampling = SamplingOptions(temperature=0, logit_bias={model.tokenizer.vocabulary[end]: 100.0})
            generation = Generation(model.tokenizer.text_ids("Ada"), sampling, 8, stop_ids=model.end_ids)
            done = model.engine.submit(generation).result()
            assert (done.text, done.reason) == ("", "stop")


class Fatal(LanguageModel):
    """Takes the engine's thread down with it on prompts of this length, as no error of a request does."""

    length = 20

    def forward(self, tokens: Tensor, cache: Any, *, logits: Any = "last") -> Tensor:
        if tokens.shape[1] == self.length:
            raise SystemExit
        return super().forward(tokens, cache, logits=logits)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engines_thread_dies_those_who_wait_are_told_and_nobody_else_may_wait(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder)
    with LocalModel("tiny", tokenizer, Engine(Fatal.load(model_folder, "cpu"), tokenizer.decode), GREEDY) as model:
        alive = [model.engine.is_alive]
        generations = [Generation((5,) * n, GREEDY, 400, stop_ids=frozenset()) for n in (4, 9, Fatal.length)]
        handles = [model.engine.submit(generation) for generation in generations]
        for handle in handles:
            with pytest.raises(BackendUnavailable):
                handle.result()
        alive.append(model.engine.is_alive)
        assert alive == [True, False]
        with pytest.raises(BackendUnavailable):
            model.engine.submit(generations[0])


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


def test_a_prompt_that_is_asked_again_is_marked_before_its_last_token_which_is_always_read(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder)
    shape: dict[str, Any] = {"layer_types": ["conv", "full_attention"], "vocab_size": len(tokenizer.vocabulary)}
    recurrent = LanguageModel(tiny_transformer("lfm2", **shape))  # cannot take back a single token
    ids = tokenizer.text_ids("Bells rang in 1203, salt came in 1377. " * 12)
    with LocalModel("tiny", tokenizer, Engine(recurrent, tokenizer.decode), GREEDY) as model:
        reused = []
        for _ in range(3):
            generation = Generation(ids, GREEDY, 4, shared_tokens=model.shared_head(ids))
            reused.append(model.engine.submit(generation).result().usage.reused_tokens)
    assert reused == [0, 0, len(ids) - 1]
