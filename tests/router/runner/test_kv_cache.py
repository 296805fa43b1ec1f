"""A cache that is cut, copied, or left by a failed step is what its tokens say it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.router.errors import ConfigError
from longroute.router.runner.kv_cache import ROLLBACK_TOKENS
from longroute.router.runner.model import LanguageModel
from longroute.tests.router.runner.tiny import (
    FAMILIES,
    LENGTH,
    WINDOWED,
    close,
    plain_logits,
    text,
    tiny_model,
    tiny_transformer,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_taking_tokens_back_leaves_no_trace(family: str) -> None:
    transformer = tiny_transformer(family)
    other = torch.cat([text()[:, :100], text(20, seed=2)], 1)
    expected = plain_logits(transformer, other)[:, 100:]
    model = LanguageModel(transformer)
    cache = model.new_cache()
    model.forward(text(), cache)
    model.crop(cache, 100)
    assert cache.n_tokens == 100
    assert close(model.forward(other[:, 100:], cache, logits="all"), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_and_its_source_go_separate_ways(family: str) -> None:
    model = tiny_model(family)
    cache = model.new_cache()
    model.forward(text(100), cache)
    copied = cache.copy_first(90, room=200)
    one = model.forward(text(20, seed=3), copied, logits="all")
    again = model.forward(text(20, seed=3), cache.copy_first(90), logits="all")
    assert close(one, again)
    fresh = model.new_cache()
    model.forward(text(100), fresh)
    assert close(
        model.forward(text(5, seed=4), cache, logits="all"), model.forward(text(5, seed=4), fresh, logits="all")
    )


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_that_has_passed_is_not_taken_back_silently(family: str) -> None:
    model = tiny_model(family)
    cache = model.new_cache()
    model.forward(text(), cache)
    model.crop(cache, LENGTH - ROLLBACK_TOKENS)  # the most that is promised
    fresh = model.new_cache()
    model.forward(text(), fresh)
    with pytest.raises(ConfigError, match="at most 64 tokens can be taken back"):
        model.crop(fresh, 1)
    assert fresh.n_tokens == LENGTH


def test_a_hybrid_model_refuses_to_go_back_but_can_be_copied_whole() -> None:
    transformer = tiny_transformer("lfm2", layer_types=["conv", "full_attention"])
    expected = plain_logits(transformer, text())
    model = LanguageModel(transformer)
    assert (model.can_roll_back, model.is_windowed, model.batches_rows) == (False, True, False)
    cache = model.new_cache()
    model.forward(text()[:, :100], cache)
    copied = cache.copy_first(100)
    model.forward(text(9, seed=2), cache)
    assert close(model.forward(text()[:, 100:], copied, logits="all"), expected[:, 100:])
    with pytest.raises(ConfigError, match="cannot be taken back"):
        model.crop(copied, 90)
    assert not copied.undo()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_cache_is_what_its_tokens_say_after_any_mix_of_steps(data: st.DataObject) -> None:
    """Feed, crop and copy at random: the next logits are those of a fresh cache with the same tokens."""
    model = tiny_model(data.draw(st.sampled_from(("llama", "mistral"))))
    cache, known = model.new_cache(data.draw(st.integers(0, 60))), torch.empty(1, 0, dtype=torch.long)
    for _ in range(data.draw(st.integers(1, 6))):
        new = text(data.draw(st.integers(1, 40)), seed=data.draw(st.integers(0, 9)))
        model.forward(new, cache)
        known = torch.cat([known, new], 1)
        keep = data.draw(st.integers(0, known.shape[1]))
        if cache.can_keep(keep):
            known = known[:, :keep]
            if data.draw(st.booleans()):
                cache = cache.copy_first(keep, room=data.draw(st.integers(0, 60)))
            else:
                model.crop(cache, keep)
    probe, fresh = text(3, seed=77), model.new_cache()
    expected = model.forward(torch.cat([known, probe], 1), fresh, logits=3)
    assert close(model.forward(probe, cache, logits=3), expected)
    assert cache.n_tokens == known.shape[1] + 3


def test_what_a_failed_step_left_behind_can_be_undone() -> None:
    transformer = tiny_transformer("llama")
    model = LanguageModel(transformer)
    cache = model.new_cache()
    model.forward(text(20), cache)
    last = transformer.model.layers[-1]
    hook = last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("can't allocate memory")))
    with pytest.raises(RuntimeError):
        model.forward(text(8, seed=2), cache)
    hook.remove()
    assert cache.undo()
    fresh = model.new_cache()
    model.forward(text(20), fresh)
    assert close(model.forward(text(8, seed=2), cache), model.forward(text(8, seed=2), fresh))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_of_a_cache_are_known_before_it_is_made(family: str) -> None:
    model = tiny_model(family)
    for n in (1, 10, 90, 200):
        cache = model.new_cache(n)
        for start in range(0, n, 32):
            model.forward(text(n)[:, start : min(n, start + 32)], cache)
        assert cache.nbytes <= model.cache_bytes(n, 32) <= 2 * cache.nbytes


def test_room_that_was_asked_for_is_made_once() -> None:
    model = tiny_model("llama")
    cache = model.new_cache(100)
    model.forward(text(10), cache)
    before = cache.nbytes
    for token in text(90, seed=5)[0]:
        model.forward(token.view(1, 1), cache)
    assert cache.nbytes == before == model.cache_bytes(100)
