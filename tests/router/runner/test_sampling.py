"""Each option does what its name says, against definitions written out over a whole distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.errors import ConfigError
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.sampling import Sampler, choose

CPU = torch.device("cpu")
FEW_LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)


def sampler(options: SamplingOptions, size: int, prompt: tuple[int, ...] = ()) -> Sampler:
    return Sampler(options, prompt, size, CPU)


def allowed(logits: list[float], options: SamplingOptions) -> set[int]:
    """Tokens that may still be picked."""
    adjusted = sampler(options, len(logits)).adjusted(torch.tensor(logits))
    return {i for i, value in enumerate(adjusted.tolist()) if value > -math.inf}


@given(logits=FEW_LOGITS, k=st.integers(1, 12))
def test_top_k_keeps_the_k_likeliest_and_their_equals(logits: list[float], k: int) -> None:
    border = sorted(logits, reverse=True)[min(k, len(logits)) - 1]
    assert allowed(logits, SamplingOptions(top_k=k)) == {i for i, value in enumerate(logits) if value >= border}


@given(logits=FEW_LOGITS, p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_it(logits: list[float], p: float) -> None:
    kept = allowed(logits, SamplingOptions(top_p=p))
    probabilities = torch.tensor(logits).softmax(-1).tolist()
    share = sum(probabilities[i] for i in kept)
    assert share >= p - 1e-5
    assert share - min(probabilities[i] for i in kept) < p + 1e-5  # without the least of them it would not do
    rest = [probabilities[i] for i in range(len(logits)) if i not in kept]
    assert max(rest, default=0) <= min(probabilities[i] for i in kept)


@given(logits=FEW_LOGITS, p=st.floats(0.01, 1))
def test_min_p_is_relative_to_the_likeliest(logits: list[float], p: float) -> None:
    probabilities = torch.tensor(logits).softmax(-1).tolist()
    kept = allowed(logits, SamplingOptions(min_p=p))
    clear = [i for i in range(len(logits)) if abs(probabilities[i] - p * max(probabilities)) > 1e-6]
    assert [i in kept for i in clear] == [probabilities[i] > p * max(probabilities) for i in clear]


@given(
    logits=FEW_LOGITS,
    options=st.builds(
        SamplingOptions,
        temperature=st.floats(0, 3),
        top_k=st.integers(0, 12),
        top_p=st.floats(0.01, 1),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.5, 2),
        seed=st.integers(0, 99),
    ),
)
def test_a_pick_is_always_one_of_the_allowed(logits: list[float], options: SamplingOptions) -> None:
    one = sampler(options, len(logits))
    kept = one.adjusted(torch.tensor(logits)) > -math.inf
    assert bool(kept[one.pick(torch.tensor(logits))])


def test_picks_follow_the_distribution() -> None:
    """Chi-square with 4 degrees of freedom; a right sampler fails once in a million seeds, and the seed is fixed."""
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    one = sampler(SamplingOptions(seed=3), 5)
    counts = torch.zeros(5)
    n = 4000
    for _ in range(n):
        counts[one.pick(probabilities.log())] += 1
    statistic = ((counts - n * probabilities) ** 2 / (n * probabilities)).sum()
    assert statistic < 33.4


def test_temperature_sharpens_and_zero_takes_the_best() -> None:
    logits = torch.tensor([1.0, 2.0, 0.5])
    adjusted = sampler(SamplingOptions(temperature=0.5), 3).adjusted(logits)
    assert torch.allclose(adjusted, logits * 2)
    assert sampler(SamplingOptions(temperature=0), 3).pick(logits).item() == 1


def test_bias_and_penalty_act_on_greedy_picks_too() -> None:
    logits = torch.tensor([1.0, 2.0, -0.5])
    banned = SamplingOptions(temperature=0, logit_bias={1: -100.0})
    assert sampler(banned, 3).pick(logits).item() == 0
    penalised = sampler(SamplingOptions(temperature=0, repetition_penalty=4.0), 3, prompt=(1, 2))
    assert torch.allclose(penalised.adjusted(logits), torch.tensor([1.0, 0.5, -2.0]))
    assert [penalised.pick(logits).item() for _ in range(2)] == [0, 1]  # the first pick is penalised from then on


def test_whole_numbers_serve_as_biases() -> None:
    adjusted = sampler(SamplingOptions(logit_bias={1: 5}), 3).adjusted(torch.zeros(3))
    assert adjusted.tolist() == [0, 5, 0]


def test_rows_of_a_batch_are_picked_as_they_would_be_alone() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    options = [
        SamplingOptions(seed=1),
        SamplingOptions(temperature=0, logprobs=3),
        SamplingOptions(seed=2, top_p=0.5, logprobs=0),
        SamplingOptions(seed=3, top_k=4, repetition_penalty=1.2),
    ]
    together = choose(logits, [sampler(o, 30) for o in options])
    alone = [choose(logits[i : i + 1], [sampler(o, 30)])[0] for i, o in enumerate(options)]
    assert together == alone


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    options = SamplingOptions(temperature=0, logit_bias={1: -100.0}, logprobs=2)
    (choice,) = choose(logits, [sampler(options, 4)])
    expected = logits[0].log_softmax(-1)
    assert choice is not None
    assert choice.token == 3
    assert choice.logprob == pytest.approx(float(expected[3]))
    assert [token for token, _ in choice.top] == [1, 3]
    assert [value for _, value in choice.top] == pytest.approx([float(expected[1]), float(expected[3])])


@pytest.mark.parametrize("bad", [[math.nan] * 5, [-math.inf] * 5, [0.0, 1.0, math.inf, 0.0, 0.0]])
def test_logits_that_are_no_numbers_spoil_only_their_row(bad: list[float]) -> None:
    options = [SamplingOptions(temperature=t) for t in (1, 0)]
    rows = choose(torch.stack([torch.tensor(bad), torch.arange(5.0)]), [sampler(o, 5) for o in options])
    assert rows[0] is None
    assert rows[1] is not None
    assert rows[1].token == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("temperature", math.inf), ("top_k", -1), ("top_p", 0), ("min_p", 2), ("logprobs", 21)],
)
def test_options_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be"):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]
