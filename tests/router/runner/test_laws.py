"""The laws of speculation: the vectors of the published formulas, exact identities, and draws against the exact law."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from longroute.router.errors import ConfigError
from longroute.router.runner.laws import (
    Law,
    Mode,
    acceptance,
    greedy_choice,
    output_law,
    probabilities,
    reference,
    replacement,
    shifted_logits,
)

# Every chi-square test below would fail by bad luck once in a million seeds; the seeds are fixed.
FALSE_ALARM = 1e-6
MODES: tuple[Mode, ...] = ("exact", "rapid", "rapid_consistent", "ensemble")

TARGET = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
DRAFT = torch.tensor([0.1, 0.6, 0.27, 0.03], dtype=torch.float64)


def total_variation(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().sum(-1) / 2


def random_case(seed: int, rows: int, vocabulary: int = 8, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    """Target logits and draft probabilities, both (rows, vocabulary), float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, vocabulary, dtype=torch.float64, generator=generator) * sharpness
    return logits[0], probabilities(logits[1])


def emitted(logits: Tensor, draft: Tensor, law: Law, rounds: int, seed: int) -> Tensor:
    """Tokens of `rounds` drafted positions that all have the same two distributions, each (V,)."""
    generator = torch.Generator().manual_seed(seed)
    judged = reference(logits, draft, law)
    drafted = torch.multinomial(draft, rounds, replacement=True, generator=generator)
    chance = acceptance(judged.expand(rounds, -1), draft.expand(rounds, -1), drafted)
    kept = torch.rand(rounds, dtype=torch.float64, generator=generator) < chance
    spare = replacement(probabilities(logits), judged, draft, law)
    return torch.where(kept, drafted, torch.multinomial(spare, rounds, replacement=True, generator=generator))


@pytest.mark.parametrize(
    ("eta", "adjusted", "beta", "spare", "consistent_spare", "out", "distance"),
    [
        (0, (0.5, 0.3, 0.15, 0.05), 0.58, (0.952381, 0, 0, 0.047619), (0.952381, 0, 0, 0.047619), TARGET.tolist(), 0),
        (
            2,
            (0.222003, 0.540160, 0.188429, 0.049408),
            0.858589,
            (0.952381, 0, 0, 0.047619),
            (0.862757, 0, 0, 0.137243),
            (0.234677, 0.540160, 0.188429, 0.036734),
            0.278589,
        ),
        (
            10,
            (0.001391, 0.915359, 0.075654, 0.007596),
            0.684641,
            (0.810273, 0, 0.120817, 0.068910),
            (0, 1, 0, 0),
            (0.256918, 0.6, 0.113755, 0.029327),
            0.3,
        ),
    ],
)
def test_reference_vectors(
    eta: float,
    adjusted: tuple[float, ...],
    beta: float,
    spare: tuple[float, ...],
    consistent_spare: tuple[float, ...],
    out: tuple[float, ...],
    distance: float,
) -> None:
    """Worked by hand from the formulas, six decimals."""
    rapid, consistent = Law("rapid", eta), Law("rapid_consistent", eta)
    judged = reference(TARGET.log(), DRAFT, rapid)
    law_out = output_law(TARGET.log(), DRAFT, rapid)
    near = 1e-6
    assert judged.tolist() == pytest.approx(adjusted, abs=near)
    assert float(torch.minimum(judged, DRAFT).sum()) == pytest.approx(beta, abs=near)
    assert replacement(TARGET, judged, DRAFT, rapid).tolist() == pytest.approx(spare, abs=near)
    assert replacement(TARGET, judged, DRAFT, consistent).tolist() == pytest.approx(consistent_spare, abs=near)
    assert law_out.tolist() == pytest.approx(out, abs=near)
    assert float(total_variation(law_out, TARGET)) == pytest.approx(distance, abs=near)


def test_the_printed_tail_rule_is_no_distribution() -> None:
    judged = reference(TARGET.log(), DRAFT, Law("rapid", 10, tail_rule="paper"))
    assert float(judged.sum()) == pytest.approx(1.617, abs=5e-4)
    # It still makes a law: accepted mass never exceeds the draft's, and the replacement fills up the rest.
    assert float(output_law(TARGET.log(), DRAFT, Law("rapid", 10, tail_rule="paper")).sum()) == pytest.approx(1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("eta", [0.0, 3.0, 10.0])
def test_draws_follow_the_exact_law(mode: Mode, eta: float) -> None:
    """200,000 rounds at 8 tokens, chi-square at a false alarm of one in a million."""
    rounds, law = 200_000, Law(mode, eta, target_weight=0.6)
    logits, draft = random_case(seed=5, rows=1)
    counts = torch.bincount(emitted(logits[0], draft[0], law, rounds, seed=11), minlength=8)
    expected = output_law(logits[0], draft[0], law)
    assert chisquare(counts.tolist(), (expected * rounds).tolist()).pvalue > FALSE_ALARM


def test_the_test_of_draws_would_notice_the_wrong_law() -> None:
    """Power: RAPID at eta 3 is not the target, and 200,000 rounds show it."""
    rounds = 200_000
    logits, draft = random_case(seed=5, rows=1)
    counts = torch.bincount(emitted(logits[0], draft[0], Law("rapid", 3.0), rounds, seed=11), minlength=8)
    assert chisquare(counts.tolist(), (probabilities(logits[0]) * rounds).tolist()).pvalue < FALSE_ALARM


def test_rapid_leans_to_the_draft_by_no_more_than_the_draft_itself() -> None:
    """The distance from the target is known in closed form, and bounded, in 1000 random cases at each eta."""
    logits, draft = random_case(seed=1, rows=1000)
    target = probabilities(logits)
    for eta in (0.0, 0.5, 2.0, 10.0, 50.0):
        law = Law("rapid", eta)
        excess = (torch.minimum(draft, reference(logits, draft, law)) - target).clamp(min=0).sum(-1)
        distance = total_variation(output_law(logits, draft, law), target)
        assert torch.allclose(distance, excess, rtol=0, atol=1e-10)
        assert bool((distance <= total_variation(draft, target) + 1e-10).all())


def test_exact_modes_emit_their_reference() -> None:
    logits, draft = random_case(seed=2, rows=1000)
    target = probabilities(logits)
    for law in (Law("exact"), Law("rapid_consistent", 7.0), Law("ensemble", target_weight=0.3)):
        assert torch.allclose(output_law(logits, draft, law), reference(logits, draft, law), rtol=0, atol=1e-12)
    ensemble = output_law(logits, draft, Law("ensemble", target_weight=0.3))
    assert torch.allclose(total_variation(ensemble, target), 0.7 * total_variation(draft, target), atol=1e-12)
    for mode in ("rapid", "rapid_consistent"):
        assert torch.allclose(output_law(logits, draft, Law(mode, 0.0)), target, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_draft_that_agrees_with_the_target_is_always_kept(mode: Mode) -> None:
    logits, _ = random_case(seed=3, rows=50)
    draft = probabilities(logits)
    for eta in (0.0, 10.0, 50.0):
        judged = reference(logits, draft, Law(mode, eta))
        for token in range(8):
            chance = acceptance(judged, draft, torch.full((50,), token))
            assert torch.allclose(chance, torch.ones_like(chance), rtol=0, atol=1e-12)
        assert torch.allclose(output_law(logits, draft, Law(mode, eta)), draft, rtol=0, atol=1e-12)


masked = st.lists(st.one_of(st.just(-math.inf), st.floats(-30, 30)), min_size=6, max_size=6).filter(
    lambda row: max(row) > -math.inf
)


@settings(deadline=None, max_examples=150)
@given(masked, masked, st.sampled_from(MODES), st.floats(0, 60), st.sampled_from([torch.float32, torch.float64]))
def test_excluded_tokens_make_no_nan_and_stay_excluded(
    target_row: list[float], draft_row: list[float], mode: Mode, eta: float, dtype: torch.dtype
) -> None:
    """Top-k and top-p exclude different tokens on the two sides."""
    logits, draft = torch.tensor(target_row, dtype=dtype), probabilities(torch.tensor(draft_row, dtype=dtype))
    law, target = Law(mode, eta), probabilities(logits)
    judged = reference(logits, draft, law)
    spare, out = replacement(target, judged, draft, law), output_law(logits, draft, law)
    near = 1e-4 if dtype == torch.float32 else 1e-9
    for distribution in (judged, spare, out):
        assert bool((distribution >= 0).all())
        assert float(distribution.sum()) == pytest.approx(1, abs=near)
        if mode != "ensemble":
            assert not bool(distribution[target == 0].any())
    chance = acceptance(judged.expand(6, -1), draft.expand(6, -1), torch.arange(6))
    assert bool(((chance >= 0) & (chance <= 1)).all())


def test_a_token_outside_the_drafts_own_support_is_kept_only_where_the_reference_has_it() -> None:
    judged, draft = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    chance = acceptance(judged.expand(3, -1), draft.expand(3, -1), torch.arange(3))
    assert chance.tolist() == [0.5, 1.0, 0.0]


def test_greedy_reads_logits_where_probabilities_would_tie() -> None:
    logits = torch.tensor([0.0, 60.0, 60.0 + 4e-6])
    assert logits[1] < logits[2]  # adjacent float32 numbers
    same = probabilities(logits)
    assert int(greedy_choice(logits, same, Law("exact"))) == 2
    assert int(greedy_choice(logits, same, Law("rapid", 10.0))) == 2


def test_greedy_takes_the_likeliest_token_of_the_reference() -> None:
    logits, draft = random_case(seed=4, rows=500)
    for law in (Law("rapid", 10.0), Law("rapid", 10.0, tail_rule="paper"), Law("ensemble", target_weight=0.2)):
        chosen = greedy_choice(logits, draft, law)
        assert bool((chosen == reference(logits, draft, law).argmax(-1)).all())
        assert bool((chosen != logits.argmax(-1)).any())  # the draft has a say


def test_the_tail_rule_moves_no_token_the_draft_holds_implausible() -> None:
    moved = shifted_logits(TARGET.log(), TARGET, DRAFT, Law("rapid", 10.0)) - TARGET.log()
    assert float(moved[3]) == 0.0
    assert moved[:3].tolist() == pytest.approx([-4.0, 3.0, 1.2])


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"mode": "fast"}, "fast"),
        ({"eta": -1.0}, "eta"),
        ({"eta": math.nan}, "eta"),
        ({"eta": 1e300}, "eta"),
        ({"alpha": 1.5}, "alpha"),
        ({"target_weight": -0.1}, "target_weight"),
        ({"tail_rule": "none"}, "tail_rule"),
        ({"mode": "rapid_consistent", "tail_rule": "paper"}, "rapid_consistent"),
    ],
)
def test_impossible_laws_are_refused(bad: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Law(**bad)  # type: ignore[arg-type]
