"""Speculative decoding: the law of whole texts, greedy equality, caches after every kind of round, ends, refusals."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from longroute.router.errors import BackendError, ConfigError
from longroute.router.runner.draft_length import DraftLength
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.laws import Law, Mode, probabilities, reference, replacement
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.passes import run_alone, run_together
from longroute.router.runner.speculative import (
    Block,
    Side,
    Speculation,
    SpeculativeDecoding,
    common_vocabulary,
)
from longroute.tests.router.runner.tiny import FAMILIES, tiny_model, tiny_transformer

# Every chi-square test below would fail by bad luck once in a million seeds; the seeds are fixed.
FALSE_ALARM = 1e-6
MODES: tuple[Mode, ...] = ("exact", "rapid", "rapid_consistent", "ensemble")
GREEDY = SamplingOptions(temperature=0)
NO_END: frozenset[int] = frozenset()
FULL, RETRIEVED, QUESTION = list(range(3, 37)), list(range(9, 17)), [38, 4, 39]


def noisy(family: str) -> LanguageModel:
    """`tiny_model(family)` with noise in its weights: agrees with it often, but not always."""
    transformer = tiny_transformer(family)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.03)
    return LanguageModel(transformer)


@dataclass
class Memory:
    """The cache of a fake: it remembers the tokens."""

    seen: list[int] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return len(self.seen)


class Chain:
    """A fake model: the next token depends on the last one only. table: logits (V, V), row = last token.

    seconds: what each forward call adds to `clock`, a list of one number.
    """

    device = torch.device("cpu")
    can_roll_back = True
    batches_rows = True
    weight_bytes = 1  # a smaller draft model has 0

    def __init__(
        self,
        table: Tensor,
        eos_ids: frozenset[int] = NO_END,
        *,
        seconds: float = 0.0,
        clock: list[float] | None = None,
        max_positions: int | None = None,
    ) -> None:
        self.table, self.eos_ids, self.max_positions = table, eos_ids, max_positions
        self.vocab_size = table.shape[1]
        self.seconds, self.clock = seconds, [0.0] if clock is None else clock

    def new_cache(self, room: int = 0) -> Memory:
        return Memory()

    def tokens(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)])

    def forward(self, tokens: Tensor, cache: Memory, *, logits: Any = "last") -> Tensor:
        self.clock[0] += self.seconds
        cache.seen.extend(tokens[0].tolist())
        rows = 1 if logits == "last" else logits
        return self.table[tokens[0, -rows:]][None]

    def forward_rows(
        self, rows: Sequence[Sequence[int]], caches: Sequence[Memory], wanted: Sequence[int] | None = None
    ) -> Tensor:
        self.clock[0] += self.seconds
        for row, cache in zip(rows, caches, strict=True):
            cache.seen.extend(row)
        counts = wanted or [len(row) for row in rows]
        return self.table[torch.tensor([token for row, n in zip(rows, counts, strict=True) for token in row[-n:]])]

    def crop(self, cache: Memory, n_tokens: int) -> None:
        del cache.seen[n_tokens:]


def sure(successors: Mapping[int, int], vocabulary: int = 8, **options: Any) -> Chain:
    """A fake that is all but certain of one successor of each token; by default the next number."""
    table = torch.zeros(vocabulary, vocabulary)
    for token in range(vocabulary):
        table[token, successors.get(token, (token + 1) % vocabulary)] = 12.0
    return Chain(table, **options)


def random_chain(seed: int, vocabulary: int = 3) -> Chain:
    return Chain(torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed)) * 1.5)


def run(decoding: SpeculativeDecoding) -> list[Block]:
    blocks = [decoding.step()]
    while blocks[-1].reason is None:
        blocks.append(decoding.step())
    assert tuple(token for block in blocks for token in block.tokens) == decoding.tokens
    return blocks


def reason_of(block: Block | Exception) -> str | None:
    assert isinstance(block, Block), block
    return block.reason


def fixed(length: int, law: Law = Law()) -> Speculation:  # noqa: B008  frozen
    return Speculation(law, draft_tokens=length, least_confidence=0)


def plain_greedy(model: LanguageModel, prompt: Sequence[int], n: int) -> list[int]:
    ids, cache = list(prompt), model.new_cache()
    for _ in range(n):
        ids.append(int(model.forward(model.tokens(ids[cache.n_tokens :]), cache)[0, -1].argmax()))
    return ids[len(prompt) :]


# ---- the law of whole texts ----


def joint_law(target: Tensor, draft: Tensor, law: Law, drafts: int, n: int, first: int) -> dict[tuple[int, ...], float]:
    """Chance of every text of n tokens, by walking through all rounds: an oracle that shares no loop with the code."""
    found: defaultdict[tuple[int, ...], float] = defaultdict(float)

    def walk(text: tuple[int, ...], place: int, length: int, chance: float) -> None:
        if len(text) == n:
            found[text] += chance
            return
        last = text[-1] if text else first
        logits, offered = target[last].double(), probabilities(draft[last].double())
        wanted = probabilities(logits)
        if place == length:  # behind the last draft: the plain target, and a new round
            for token, share in enumerate(wanted.tolist()):
                begin((*text, token), chance * share)
            return
        judged = reference(logits, offered, law)
        kept = torch.minimum(offered, judged)
        spare = (1 - kept.sum()) * replacement(wanted, judged, offered, law)
        for token in range(len(logits)):
            walk((*text, token), place + 1, length, chance * float(kept[token]))
            begin((*text, token), chance * float(spare[token]))

    def begin(text: tuple[int, ...], chance: float) -> None:
        walk(text, 0, min(drafts, n - len(text) - 1), chance)

    begin((), 1.0)
    return dict(found)


def observed(target: Chain, draft: Chain, speculation: Speculation, texts: int) -> Counter[tuple[int, ...]]:
    """Three tokens each, from seeds 0, 1, 2, ..."""
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(texts):
        options = SamplingOptions(seed=seed)
        decoding = SpeculativeDecoding(
            Side(target, [0]), Side(draft, [0]), max_tokens=3, speculation=speculation, sampling=options
        )
        run(decoding)
        found[decoding.tokens] += 1
    return found


def fits(found: Counter[tuple[int, ...]], law: Mapping[tuple[int, ...], float]) -> float:
    """p-value of a chi-square test; cells that expect fewer than five are put together."""
    texts = found.total()
    rare = [text for text in law if law[text] * texts < 5]
    common = [text for text in law if law[text] * texts >= 5]
    counts = [found[text] for text in common] + [sum(found[text] for text in rare)]
    expected = [law[text] * texts for text in common] + [sum(law[text] for text in rare) * texts]
    if not expected[-1]:
        assert not counts.pop()
        expected.pop()
    return float(chisquare(counts, [e * texts / sum(expected) for e in expected]).pvalue)


@pytest.mark.parametrize("mode", MODES)
def test_texts_of_three_tokens_follow_the_exact_law(mode: Mode) -> None:
    target, draft = random_chain(1), random_chain(2)
    law = Law(mode, 2.0, target_weight=0.6)
    found = observed(target, draft, fixed(2, law), texts=1000)
    assert fits(found, joint_law(target.table, draft.table, law, drafts=2, n=3, first=0)) > FALSE_ALARM


def test_exact_texts_follow_the_target_whatever_ends_a_draft() -> None:
    """The oracle of the plain target alone; drafts end early where the draft model is unsure."""
    target, draft = random_chain(1), random_chain(2)
    chances = probabilities(target.table.double()).tolist()
    law = {
        text: chances[0][text[0]] * chances[text[0]][text[1]] * chances[text[1]][text[2]]
        for text in itertools.product(range(3), repeat=3)
    }
    assert joint_law(target.table, draft.table, Law("rapid", 0.0), 2, 3, 0) == pytest.approx(law)
    found = observed(target, draft, Speculation(Law("exact"), draft_tokens=2, least_confidence=0.5), texts=1200)
    assert fits(found, law) > FALSE_ALARM
    biased = joint_law(target.table, draft.table, Law("ensemble", target_weight=0.6), 2, 3, 0)
    assert fits(found, biased) < FALSE_ALARM  # the test has the power to tell


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_drafts_for_itself_on_the_same_text_is_always_believed(mode: Mode) -> None:
    model = random_chain(3, vocabulary=6)
    for seed in range(10):
        decoding = SpeculativeDecoding(
            Side(model, [0, 1]),
            Side(model, [0, 1]),
            max_tokens=30,
            speculation=fixed(4, Law(mode, 10.0)),
            sampling=SamplingOptions(seed=seed),
        )
        run(decoding)
        assert decoding.tally.acceptance == 1


@pytest.mark.parametrize("mode", ["exact", "rapid", "rapid_consistent"])
def test_tokens_that_top_p_rules_out_for_the_target_never_come_out(mode: Mode) -> None:
    target, draft = random_chain(4, vocabulary=8), random_chain(5, vocabulary=8)
    options = SamplingOptions(temperature=0.7, top_p=0.6, top_k=4)
    allowed = {
        last: {token for token, share in enumerate(row) if share > 0} for last, row in enumerate(_nuclei(target, 0.7))
    }
    for seed in range(20):
        decoding = SpeculativeDecoding(
            Side(target, [0]),
            Side(draft, [0]),
            max_tokens=20,
            speculation=fixed(3, Law(mode, 20.0)),
            sampling=SamplingOptions(temperature=options.temperature, top_p=0.6, top_k=4, seed=seed),
        )
        run(decoding)
        assert all(token in allowed[last] for last, token in itertools.pairwise((0, *decoding.tokens)))


def _nuclei(chain: Chain, temperature: float) -> list[list[float]]:
    """For each last token, probabilities after top-k 4 and top-p 0.6, worked out by sorting in Python."""
    rows = []
    for logits in chain.table.double().tolist():
        order = sorted(range(len(logits)), key=lambda token, logits=logits: -logits[token])[:4]  # type: ignore[misc]
        weights = [math.exp(logits[token] / temperature) for token in order]
        kept, before = [0.0] * len(logits), 0.0
        for token, weight in zip(order, weights, strict=True):
            if before < 0.6:
                kept[token] = weight
            before += weight / sum(weights)
        rows.append(kept)
    return rows


# ---- greedy equality, both directions, several architectures ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", ["self", "upward"])
def test_greedy_exact_text_is_the_targets_own(family: str, direction: str) -> None:
    """The draft reads other text than the target; upward, it is another and larger model."""
    target = tiny_model(family)
    larger = {"hidden_size": 48, "num_hidden_layers": 3}
    draft = target if direction == "self" else LanguageModel(tiny_transformer(family, seed=1, **larger))
    expected = plain_greedy(target, FULL + QUESTION, 14)
    for length in range(1, 9):
        decoding = SpeculativeDecoding(
            Side(target, FULL + QUESTION),
            Side(draft, RETRIEVED + QUESTION),
            max_tokens=14,
            speculation=fixed(length),
            sampling=GREEDY,
            stop_ids=NO_END,
        )
        run(decoding)
        assert list(decoding.tokens) == expected


@pytest.mark.parametrize("mode", ["rapid", "rapid_consistent"])
def test_greedy_rapid_at_eta_zero_is_the_targets_own_text(mode: Mode) -> None:
    target = tiny_model("llama")
    decoding = SpeculativeDecoding(
        Side(target, FULL + QUESTION),
        Side(target, RETRIEVED + QUESTION),
        max_tokens=24,
        speculation=fixed(4, Law(mode, 0.0)),
        sampling=GREEDY,
        stop_ids=NO_END,
    )
    run(decoding)
    assert list(decoding.tokens) == plain_greedy(target, FULL + QUESTION, 24)


def test_greedy_rapid_lets_a_confident_draft_win_over_an_unsure_target() -> None:
    target = Chain(torch.tensor([[0.0, 1.0, 0.8, -9.0]] * 4))
    draft = sure(dict.fromkeys(range(4), 2), vocabulary=4)
    texts = {}
    for eta in (0.0, 10.0):
        decoding = SpeculativeDecoding(
            Side(target, [0]),
            Side(draft, [0]),
            max_tokens=6,
            speculation=fixed(2, Law("rapid", eta)),
            sampling=GREEDY,
        )
        run(decoding)
        texts[eta] = decoding.tokens
    assert texts[0.0] == (1, 1, 1, 1, 1, 1)
    assert texts[10.0] == (2, 2, 1, 2, 2, 1)  # every third token is the extra one, which is the plain target's


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    draft_tokens=st.one_of(st.just("auto"), st.integers(1, 8)),
    max_tokens=st.integers(1, 30),
    stop_ids=st.frozensets(st.integers(0, 5), max_size=1),
    confidence=st.sampled_from([0.0, 0.5, 1.0]),
    prompt=st.lists(st.integers(0, 5), min_size=1, max_size=6),
)
def test_greedy_exact_text_is_the_targets_own_however_it_is_drafted(
    seeds: tuple[int, int],
    draft_tokens: Any,
    max_tokens: int,
    stop_ids: frozenset[int],
    confidence: float,
    prompt: list[int],
) -> None:
    target, draft = (random_chain(seed, vocabulary=6) for seed in seeds)
    expected: list[int] = []
    last = prompt[-1]
    while len(expected) < max_tokens and (not expected or last not in stop_ids):
        last = int(target.table[last].argmax())
        expected.append(last)
    decoding = SpeculativeDecoding(
        Side(target, prompt),
        Side(draft, prompt[-1:]),
        max_tokens=max_tokens,
        speculation=Speculation(draft_tokens=draft_tokens, least_confidence=confidence),
        sampling=GREEDY,
        stop_ids=stop_ids,
    )
    blocks = run(decoding)
    assert list(decoding.tokens) == expected
    assert blocks[-1].reason == ("stop" if last in stop_ids else "length")
    tally = decoding.tally
    assert tally.emitted == len(expected)
    assert tally.rounds + tally.plain_steps == len(blocks)
    assert tally.drafted == sum(block.drafted for block in blocks)


# ---- caches ----


@pytest.mark.parametrize("family", FAMILIES)
def test_caches_hold_what_a_fresh_pass_would_compute(family: str) -> None:
    """After rounds with no, some and all drafts kept; the draft is the target with noise in its weights."""
    target, draft = tiny_model(family), noisy(family)
    kinds = set()
    for seed in range(4):
        decoding = SpeculativeDecoding(
            Side(target, FULL + QUESTION),
            Side(draft, RETRIEVED + FULL[20:] + QUESTION),
            max_tokens=40,
            speculation=fixed(3, Law("ensemble", target_weight=0.9)),
            sampling=SamplingOptions(seed=seed),
            stop_ids=NO_END,
        )
        block = decoding.step()
        while block.reason is None:
            kinds.add("none" if not block.accepted else "all" if block.accepted == block.drafted else "some")
            for model, prompt, cache in zip(
                (target, draft), (FULL + QUESTION, RETRIEVED + FULL[20:] + QUESTION), decoding.caches, strict=True
            ):
                ids = prompt + list(decoding.tokens)
                if model is target:
                    assert cache.n_tokens == len(ids) - 1
                assert cache.n_tokens <= len(ids) - 1
                length = cache.n_tokens
                found = model.forward(model.tokens(ids[length:]), cache)[0, -1]
                model.crop(cache, length)
                fresh = model.forward(model.tokens(ids), model.new_cache())[0, -1]
                assert torch.allclose(found, fresh, rtol=0, atol=1e-4)
            block = decoding.step()
    assert kinds == {"none", "some", "all"}


def test_a_reused_prefix_gives_the_same_text() -> None:
    model = tiny_model("qwen2")
    texts = []
    for held in (0, 10, len(FULL + QUESTION)):  # nothing, a part, the whole prompt
        cache = model.new_cache()
        if held:
            model.forward(model.tokens((FULL + QUESTION)[:held]), cache)
        decoding = SpeculativeDecoding(
            Side(model, FULL + QUESTION, cache),
            Side(model, RETRIEVED + QUESTION),
            max_tokens=20,
            speculation=fixed(3, Law("rapid")),
            sampling=SamplingOptions(seed=3),
            stop_ids=NO_END,
        )
        assert decoding.tally.prefill_target == max(0, len(FULL + QUESTION) - 1 - held)
        run(decoding)
        texts.append(decoding.tokens)
    assert len(set(texts)) == 1


def test_prefill_in_chunks_gives_the_same_text() -> None:
    model = tiny_model("mistral")
    decodings = [
        SpeculativeDecoding(
            Side(model, FULL + QUESTION),
            Side(model, RETRIEVED + QUESTION),
            max_tokens=20,
            speculation=fixed(3),
            sampling=SamplingOptions(seed=3),
            stop_ids=NO_END,
        )
        for _ in range(2)
    ]
    chunks = 1
    while decodings[0].prefill(chunk_tokens=5):
        chunks += 1
    assert chunks == math.ceil((len(FULL + QUESTION) - 1) / 5) + math.ceil((len(RETRIEVED + QUESTION) - 1) / 5)
    for decoding in decodings:
        run(decoding)
    assert decodings[0].tokens == decodings[1].tokens


def test_prompts_of_one_token_have_nothing_to_prefill() -> None:
    model = tiny_model("llama")
    decoding = SpeculativeDecoding(Side(model, [3]), Side(model, [3]), max_tokens=4, sampling=GREEDY, stop_ids=NO_END)
    assert not decoding.prefill()
    assert not decoding.prefill()
    run(decoding)
    assert list(decoding.tokens) == plain_greedy(model, [3], 4)


@pytest.mark.parametrize("together", [False, True])
def test_answers_made_side_by_side_do_not_touch_each_other(together: bool) -> None:
    """Rows of a batch, each with its own acceptance."""
    model = tiny_model("llama")

    def decoding(seed: int) -> SpeculativeDecoding:
        return SpeculativeDecoding(
            Side(model, FULL[seed:] + QUESTION),
            Side(model, RETRIEVED + QUESTION),
            max_tokens=16 + seed,
            speculation=fixed(3, Law("rapid")),
            sampling=SamplingOptions(seed=seed),
            stop_ids=NO_END,
        )

    alone = [decoding(seed) for seed in range(3)]
    for row in alone:
        run(row)
    side_by_side = [decoding(seed) for seed in range(3)]
    going = list(side_by_side)
    while going:
        steps = [row.passes() for row in going]
        blocks = (
            run_together(steps, perf_counter, print) if together else [run_alone(step, perf_counter) for step in steps]
        )
        going = [row for row, block in zip(going, blocks, strict=True) if reason_of(block) is None]
    assert [row.tokens for row in side_by_side] == [row.tokens for row in alone]


# ---- the end of a text ----


def test_an_end_token_that_was_drafted_and_kept_ends_the_text_without_an_extra_token() -> None:
    model = sure({}, eos_ids=frozenset([4]))
    decoding = SpeculativeDecoding(Side(model, [0]), Side(model, [5, 0]), max_tokens=50, speculation=fixed(8))
    (block,) = run(decoding)
    assert (block.tokens, block.drafted, block.accepted, block.reason) == ((1, 2, 3, 4), 4, 4, "stop")
    assert decoding.caches[0].seen == [0, 1, 2, 3]
    assert decoding.caches[1].seen == [5, 0, 1, 2, 3]


def test_an_end_token_that_was_drafted_and_refused_does_not_end_the_text() -> None:
    target, draft = sure({}, eos_ids=frozenset([7])), sure({2: 7}, eos_ids=frozenset([7]))
    decoding = SpeculativeDecoding(
        Side(target, [0]), Side(draft, [0]), max_tokens=50, speculation=fixed(8), sampling=GREEDY
    )
    blocks = run(decoding)
    assert blocks[0].tokens == (1, 2, 3)
    assert (blocks[0].drafted, blocks[0].accepted, blocks[0].reason) == (3, 2, None)
    assert decoding.tokens == (1, 2, 3, 4, 5, 6, 7)
    assert blocks[-1].reason == "stop"


@pytest.mark.parametrize("most", [1, 2, 3, 5, 6])
def test_never_more_than_max_tokens(most: int) -> None:
    model = sure({})
    decoding = SpeculativeDecoding(
        Side(model, [0]), Side(model, [0]), max_tokens=most, speculation=fixed(4), sampling=GREEDY
    )
    blocks = run(decoding)
    assert decoding.tokens == tuple((token + 1) % 8 for token in range(most))
    assert blocks[-1].reason == "length"
    assert all(block.drafted <= 4 and block.drafted < most for block in blocks)
    assert decoding.caches[0].n_tokens == most  # prompt and all but the newest


@pytest.mark.parametrize("ending", [(3,), (3, 4), (5, 6), (6, 7, 0)])
def test_a_stop_across_the_border_of_rounds_cuts_there(ending: tuple[int, ...]) -> None:
    """The first round emits 1 to 5 (four drafts and an extra token), the second goes on from 6."""
    model, seen = sure({}), []

    def stop(token: int) -> bool:
        seen.append(token)
        return tuple(seen[-len(ending) :]) == ending

    decoding = SpeculativeDecoding(
        Side(model, [0]), Side(model, [0]), max_tokens=50, speculation=fixed(4), sampling=GREEDY, stop=stop
    )
    blocks = run(decoding)
    assert decoding.tokens[-len(ending) :] == ending
    assert blocks[-1].reason == "stop"
    assert seen == list(decoding.tokens)
    assert decoding.caches[0].seen == [0, *decoding.tokens[:-1]]
    assert decoding.caches[1].n_tokens <= len(decoding.tokens)


def test_an_empty_retrieval_leaves_the_question_alone() -> None:
    model = tiny_model("llama")
    decoding = SpeculativeDecoding(
        Side(model, FULL + QUESTION),
        Side(model, QUESTION[-1:]),
        max_tokens=12,
        speculation=fixed(3),
        sampling=GREEDY,
        stop_ids=NO_END,
    )
    run(decoding)
    assert list(decoding.tokens) == plain_greedy(model, FULL + QUESTION, 12)


# ---- lengths, seeds, numbers reported ----


@pytest.mark.parametrize("speculation", [fixed(3, Law("rapid")), Speculation(Law("rapid"))])
def test_a_seed_gives_the_same_text_again(speculation: Speculation) -> None:
    target, draft = random_chain(6, vocabulary=8), random_chain(7, vocabulary=8)

    def text(seed: int) -> tuple[int, ...]:
        decoding = SpeculativeDecoding(
            Side(target, [0]),
            Side(draft, [0]),
            max_tokens=40,
            speculation=speculation,
            sampling=SamplingOptions(seed=seed),
        )
        run(decoding)
        return decoding.tokens

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(5)}) == 5


def test_log_probabilities_are_the_targets_own() -> None:
    target, draft = random_chain(8, vocabulary=8), random_chain(9, vocabulary=8)
    decoding = SpeculativeDecoding(
        Side(target, [0]),
        Side(draft, [0]),
        max_tokens=30,
        speculation=fixed(3, Law("rapid", 20.0)),
        sampling=SamplingOptions(temperature=0.5, seed=1, logprobs=2),
    )
    choices = [choice for block in run(decoding) for choice in block.choices]
    for last, choice in itertools.pairwise([None, *choices]):
        own = target.table[last.token if last else 0].log_softmax(-1)
        assert choice is not None
        assert choice.logprob == pytest.approx(float(own[choice.token]), abs=1e-5)
        best = own.topk(2)
        assert [token for token, _ in choice.top] == best.indices.tolist()
        assert [value for _, value in choice.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_draft_model_at_the_end_of_its_positions_leaves_the_target_to_go_on_alone() -> None:
    target, draft = sure({}), sure({}, max_positions=7)
    decoding = SpeculativeDecoding(
        Side(target, [0]), Side(draft, [0]), max_tokens=20, speculation=fixed(4), sampling=GREEDY
    )
    run(decoding)
    assert len(decoding.tokens) == 20
    assert decoding.caches[1].n_tokens <= 7
    assert decoding.tally.plain_steps > 0


def test_a_draft_model_that_yields_no_numbers_costs_no_answer() -> None:
    target, draft = sure({}), Chain(torch.full((8, 8), math.nan))
    decoding = SpeculativeDecoding(
        Side(target, [0]), Side(draft, [0]), max_tokens=5, speculation=fixed(4), sampling=GREEDY
    )
    run(decoding)
    assert decoding.tokens == (1, 2, 3, 4, 5)
    assert decoding.tally.drafted == 0


def test_a_target_that_yields_no_numbers_is_an_error() -> None:
    decoding = SpeculativeDecoding(Side(Chain(torch.full((8, 8), math.nan)), [0]), Side(sure({}), [0]), max_tokens=5)
    with pytest.raises(BackendError, match="no numbers"):
        decoding.step()


# ---- automatic length, with a clock that only the models move ----


def simulated(draft_s: float, draft: Mapping[int, int], tokens: int) -> tuple[SpeculativeDecoding, float]:
    """Greedy decoding with steps of 1 s for the target; returns (decoding, seconds it took)."""
    clock = [0.0]
    target, small = sure({}, seconds=1.0, clock=clock), sure(draft, seconds=draft_s, clock=clock)
    small.weight_bytes = 0
    decoding = SpeculativeDecoding(
        Side(target, [0]),
        Side(small, [0]),
        max_tokens=tokens,
        sampling=GREEDY,
        length=DraftLength(),
        clock=lambda: clock[0],
    )
    run(decoding)
    assert decoding.tokens == tuple((token + 1) % 8 for token in range(tokens))
    return decoding, clock[0]


@pytest.mark.parametrize("times_longer", [1, 8])
def test_a_model_drafts_for_itself_on_an_eighth_of_the_text_at_most(times_longer: int) -> None:
    model = sure({})
    decoding = SpeculativeDecoding(Side(model, [0] * times_longer), Side(model, [0]), max_tokens=64, sampling=GREEDY)
    run(decoding)
    assert (decoding.tally.rounds > 0) == (times_longer == 8)


@pytest.mark.parametrize("draft_s", [0.1, 0.33, 1.0, 3.0])
@pytest.mark.parametrize("tokens", [64, 512])
def test_speculation_that_does_not_pay_gives_way_to_plain_decoding(draft_s: float, tokens: int) -> None:
    """A draft that is always wrong: at most 5 % slower than plain decoding, 8 % for a text too short to learn from."""
    wrong = {token: (token + 2) % 8 for token in range(8)}
    decoding, seconds = simulated(draft_s, wrong, tokens)
    assert tokens / seconds > (0.92 if tokens == 64 else 0.95)
    assert decoding.tally.accepted == 0


def test_a_good_cheap_draft_is_used_at_length() -> None:
    decoding, seconds = simulated(0.1, {}, 256)
    assert 256 / seconds > 3
    assert decoding.tally.acceptance == 1


def test_a_draft_as_slow_as_the_target_is_not_used_even_where_it_is_right() -> None:
    decoding, seconds = simulated(1.0, {}, 256)
    assert 256 / seconds > 0.95
    assert decoding.tally.plain_steps > 200


# ---- refusals ----


def test_models_of_different_vocabularies_are_refused_unless_only_padding_differs() -> None:
    target, draft = sure({}, vocabulary=8), sure({}, vocabulary=9)
    with pytest.raises(ConfigError, match=r"8 tokens.*9.*vocab_size"):
        SpeculativeDecoding(Side(target, [0]), Side(draft, [0]), max_tokens=5)
    with pytest.raises(ConfigError, match="vocab_size is 9"):
        SpeculativeDecoding(Side(target, [0]), Side(draft, [0]), max_tokens=5, vocab_size=9)
    decoding = SpeculativeDecoding(Side(target, [0]), Side(draft, [0]), max_tokens=30, vocab_size=7)
    run(decoding)
    assert max(decoding.tokens) < 7


def test_tokenizers_must_give_every_token_the_same_id() -> None:
    one = {"a": 0, "b": 1, "c": 2}
    assert common_vocabulary(one, dict(one)) == 3
    with pytest.raises(ConfigError, match="2 of the target's"):
        common_vocabulary(one, {"a": 0, "b": 2, "c": 1})
    with pytest.raises(ConfigError, match="3 tokens, the draft model's 4"):
        common_vocabulary(one, {**one, "d": 3})


@pytest.mark.parametrize("role", ["target", "draft"])
def test_caches_that_cannot_roll_back_are_refused(role: str) -> None:
    recurrent = LanguageModel(tiny_transformer("lfm2", layer_types=["conv", "full_attention"]))
    fine = tiny_model("llama")
    sides = (Side(recurrent, [0]), Side(fine, [0]))
    with pytest.raises(ConfigError, match=rf"The {role}.*cannot take back"):
        SpeculativeDecoding(*(sides if role == "target" else reversed(sides)), max_tokens=5)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"max_tokens": 0}, "max_tokens"), ({"sampling": SamplingOptions(repetition_penalty=1.2)}, "repetition_penalty")],
)
def test_impossible_requests_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SpeculativeDecoding(Side(sure({}), [0]), Side(sure({}), [0]), **{"max_tokens": 5, **options})
    with pytest.raises(ConfigError, match="empty"):
        SpeculativeDecoding(Side(sure({}), [0]), Side(sure({}), []), max_tokens=5)


@pytest.mark.parametrize("bad", [{"draft_tokens": 0}, {"draft_tokens": 33}, {"least_confidence": 1.5}])
def test_impossible_speculation_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Speculation(**bad)
