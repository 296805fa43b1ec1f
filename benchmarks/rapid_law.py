"""What do the modes of speculation emit, how often is a draft kept, and does the loop keep to its laws?

    python -m benchmarks.rapid_law

Three tables. (1) In closed form, over random pairs of target and draft distributions at three distances: the chance
that a draft is kept and the distance of what comes out from the target, by mode and eta. (2) Draws: tokens emitted by
the functions of `router/runner/laws.py`, and texts of three tokens emitted by the whole loop, tested against the exact
law. (3) A randomly initialised transformer that reads a full context as target and a quarter of it as its own draft.
The distributions are made up, so the numbers say how the modes compare, not how good any model is.
Writes results/rapid_law.md. About a minute.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.laws import Law, acceptance, output_law, probabilities, reference, replacement
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.speculative import Side, Speculation, SpeculativeDecoding

from .machine import measured_on

RESULTS = Path(__file__).parent / "results" / "rapid_law.md"
ETAS = (0.0, 2.0, 5.0, 10.0, 20.0, 50.0)
PAIRS, VOCABULARY = 2000, 256
# Weight of the target's logits in the draft's, the rest being noise: how alike the two are.
DISTANCES = {"near": 0.9, "middling": 0.6, "far": 0.2}
ROUNDS = 1_000_000
TEXT_ROUNDS = 4000


def laws() -> Iterator[tuple[str, Law]]:
    yield "exact", Law("exact")
    for eta in ETAS[1:]:
        yield f"rapid, eta {eta:g}", Law("rapid", eta)
    for eta in ETAS[1:]:
        yield f"rapid_consistent, eta {eta:g}", Law("rapid_consistent", eta)
    for weight in (0.75, 0.5):
        yield f"ensemble, {weight:g} target", Law("ensemble", target_weight=weight)


def pairs(alike: float, n: int, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Target logits and draft probabilities, both (n, vocabulary), float64; logits have a deviation of 2.5."""
    generator = torch.Generator().manual_seed(seed)
    target, noise = torch.randn(2, n, vocabulary, dtype=torch.float64, generator=generator) * 2.5
    return target, probabilities(alike * target + (1 - alike**2) ** 0.5 * noise)


def total_variation(one: Tensor, other: Tensor) -> float:
    """Mean over rows."""
    return float((one - other).abs().sum(-1).mean() / 2)


def closed_form() -> Iterator[str]:
    cases = {name: pairs(alike, PAIRS, VOCABULARY) for name, alike in DISTANCES.items()}
    yield "| mode | " + " | ".join(f"{name}: kept | from target" for name in cases) + " |"
    yield "|---|" + "---:|---:|" * len(cases)
    cells = [f"1.000 | {total_variation(draft, probabilities(logits)):.3f}" for logits, draft in cases.values()]
    yield "| the draft alone | " + " | ".join(cells) + " |"
    for name, law in laws():
        cells = []
        for logits, draft in cases.values():
            kept = float(torch.minimum(draft, reference(logits, draft, law)).sum(-1).mean())
            distance = total_variation(output_law(logits, draft, law), probabilities(logits))
            cells.append(f"{kept:.3f} | {distance:.3f}")
        yield f"| {name} | " + " | ".join(cells) + " |"


def drawn_tokens() -> Iterator[str]:
    logits, draft = (rows[0] for rows in pairs(DISTANCES["middling"], 1, 8, seed=5))
    yield "| mode | tokens | chi-square | p |"
    yield "|---|---:|---:|---:|"
    for index, (name, law) in enumerate(laws()):
        generator = torch.Generator().manual_seed(index)
        judged = reference(logits, draft, law)
        tokens = torch.multinomial(draft, ROUNDS, replacement=True, generator=generator)
        chance = acceptance(judged.expand(ROUNDS, -1), draft.expand(ROUNDS, -1), tokens)
        kept = torch.rand(ROUNDS, dtype=torch.float64, generator=generator) < chance
        spare = replacement(probabilities(logits), judged, draft, law)
        other = torch.multinomial(spare, ROUNDS, replacement=True, generator=generator)
        counts = torch.bincount(torch.where(kept, tokens, other), minlength=8)
        expected = output_law(logits, draft, law) * ROUNDS
        common = expected >= 5  # a chi-square test wants that many in each cell
        seen = [*counts[common].tolist(), int(counts[~common].sum())]
        awaited = [*expected[common].tolist(), float(expected[~common].sum())]
        if common.all():
            seen.pop(), awaited.pop()
        test = chisquare(seen, awaited)
        yield f"| {name} | {len(seen)} | {test.statistic:.1f} | {test.pvalue:.3f} |"


def transformer(vocabulary: int, seed: int = 0) -> LanguageModel:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
    )
    torch.manual_seed(seed)
    return LanguageModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32))  # type: ignore[no-untyped-call]


def decode(
    model: LanguageModel, full: Sequence[int], part: Sequence[int], law: Law, n: int, seed: int
) -> SpeculativeDecoding:
    decoding = SpeculativeDecoding(
        Side(model, full),
        Side(model, part),
        max_tokens=n,
        speculation=Speculation(law, draft_tokens=4, least_confidence=0),
        sampling=SamplingOptions(seed=seed),
        stop_ids=frozenset(),
    )
    while decoding.step().reason is None:
        pass
    return decoding


def exact_texts() -> str:
    """Texts of three tokens from a transformer of three tokens, exact mode, against the target alone."""
    model = transformer(3)
    full, part = [0, 1, 2, 2, 1, 0, 0, 1], [0, 1]
    chances = {}
    for index in range(27):
        text = [index // 9, index // 3 % 3, index % 3]
        logits = model.forward(model.tokens(full + text), model.new_cache(), logits=4)[0, :3]
        own = probabilities(logits.double()).gather(-1, torch.tensor(text)[:, None])
        chances[tuple(text)] = float(own.prod())
    found = Counter(decode(model, full, part, Law("exact"), 3, seed).tokens for seed in range(TEXT_ROUNDS))
    expected = [chance * TEXT_ROUNDS / sum(chances.values()) for chance in chances.values()]
    assert min(expected) > 5, "too few for a chi-square test"
    test = chisquare([found[text] for text in chances], expected)
    return (
        f"The whole loop in exact mode, {TEXT_ROUNDS:,} texts of three tokens by a transformer with a vocabulary of "
        f"three, draft and target with different contexts: chi-square {test.statistic:.1f} over 26, "
        f"p = {test.pvalue:.3f}."
    )


def acceptances() -> Iterator[str]:
    model = transformer(128)
    full = torch.randint(0, 128, (256,), generator=torch.Generator().manual_seed(1)).tolist()
    yield "| mode | drafts kept | tokens a round |"
    yield "|---|---:|---:|"
    for name, law in laws():
        tallies = [decode(model, full, full[192:], law, 200, seed).tally for seed in range(3)]
        drafted, accepted = sum(t.drafted for t in tallies), sum(t.accepted for t in tallies)
        emitted, rounds = sum(t.emitted for t in tallies), sum(t.rounds + t.plain_steps for t in tallies)
        yield f"| {name} | {accepted / drafted:.3f} | {emitted / rounds:.2f} |"


def main() -> None:
    torch.set_num_threads(1)
    started = time.perf_counter()
    parts = [
        "# Speculation with two contexts: the laws of its modes\n",
        f"*Kept*: chance that a draft is kept. *From target*: total variation distance between the law of an emitted "
        f"token and the target. Closed form, means over {PAIRS:,} pairs of distributions over {VOCABULARY} tokens.\n",
        *closed_form(),
        f"\nDraws against the exact law: {ROUNDS:,} tokens of one pair over 8 tokens. Each p should look like a random "
        "number between 0 and 1. Tokens that expect fewer than five are counted as one.\n",
        *drawn_tokens(),
        f"\n{exact_texts()}\n",
        "A transformer with random weights drafts four tokens at a time from the last quarter of its context of 256 "
        "tokens, temperature 1.\n",
        *acceptances(),
    ]
    where = measured_on("torch", "transformers", "scipy")
    parts.append(f"\n{'; '.join(where.values())}; {time.perf_counter() - started:.0f} s")
    RESULTS.write_text("\n".join(parts) + "\n")
    print("\n".join(parts))


if __name__ == "__main__":
    main()
