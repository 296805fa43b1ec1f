from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from longroute.benchmarks.random_llama import Geometry, Scripted, random_llama  # noqa: E402

SMALL = Geometry(50, 32, 48, 1, 4, 2)
PROMPT = [3, 1, 4, 1, 5]


def _scripted() -> Scripted:
    return Scripted(random_llama(SMALL, torch.device("cpu"), torch.float32))


def test_weights_are_those_of_the_seed_in_the_dtype_asked_for_and_no_token_ends_a_text() -> None:
    one, other = (random_llama(SMALL, torch.device("cpu"), torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert {weight.dtype for weight in one.parameters()} == {torch.bfloat16}
    assert Scripted(one).eos_ids == frozenset()


def test_a_scripted_model_says_its_script_behind_the_prompt_whether_asked_for_one_place_or_several() -> None:
    model, script = _scripted(), [7, 49, 0, 9]
    model.follow(script, len(PROMPT))
    cache = model.new_cache()
    assert int(model.forward(model.tokens(PROMPT), cache)[0, -1].argmax()) == 7
    assert model.forward(model.tokens(script[:3]), cache, logits=3)[0].argmax(-1).tolist() == script[1:]
    assert cache.n_tokens == len(PROMPT) + 3


def test_without_a_script_and_within_the_prompt_it_is_the_model_itself() -> None:
    model, plain = _scripted(), _scripted()
    model.follow([7], len(PROMPT))
    inside, there = (one.forward(one.tokens(PROMPT[:4]), one.new_cache()) for one in (model, plain))
    assert torch.equal(inside, there)


def test_it_is_right_with_the_stated_chance() -> None:
    model, script = _scripted(), [5] * 2000
    model.follow(script, 1, chance=0.8)
    said = model.forward(model.tokens([1, *script[:-1]]), model.new_cache(), logits="all")[0].argmax(-1)
    assert 0.76 < float((said == 5).float().mean()) < 0.84
    assert set(said.tolist()) == {5, 6}
