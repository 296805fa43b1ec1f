"""The engine against a plain loop over the same model; many requests, few slots, broken steps, and little memory.

Most tests drive `step` by hand, so nothing depends on the timing of threads; those at the end use the thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.router.errors import BackendError, BackendUnavailable, ConfigError, ContextTooLong, RateLimited
from longroute.router.runner.engine import Engine, EngineOptions
from longroute.router.runner.generation import Done, Draft, Generated, Generation, Piece, SamplingOptions
from longroute.router.runner.handle import Handle
from longroute.router.runner.kv_cache import KVCache
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.speculative import Speculation
from longroute.tests.router.runner.tiny import FAMILIES, VOCAB, decode, prompt, tiny_model, tiny_transformer

GREEDY = SamplingOptions(temperature=0)
NEVER: frozenset[int] = frozenset()
PLENTY = 1 << 40


def make(model: LanguageModel, *, free: Callable[[], int] = lambda: PLENTY, **options: int | bool) -> Engine:
    return Engine(model, decode, EngineOptions(**{"chunk_tokens": 16, **options}), available=free)  # type: ignore[arg-type]


def finish(engine: Engine, *handles: Handle) -> list[Generated]:
    for _ in range(2000):
        if not engine.step():
            return [handle.result() for handle in handles]
    raise AssertionError("the engine does not come to an end")


def greedy(model: LanguageModel, ids: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The slow twin: the whole text through a fresh cache for each token."""
    known = list(ids)
    for _ in range(n):
        known.append(int(model.forward(model.tokens(known), model.new_cache())[0, -1].argmax()))
    return tuple(known[len(ids) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_several_requests_at_once_get_what_a_plain_loop_gives(family: str) -> None:
    model = tiny_model(family)
    prompts = [prompt(n, seed=n) for n in (1, 5, 40, 33, 90)]
    engine = make(model, slots=3)
    handles = [engine.submit(Generation(ids, GREEDY, max_tokens=12, stop_ids=NEVER)) for ids in prompts]
    for ids, answer in zip(prompts, finish(engine, *handles), strict=True):
        assert answer.token_ids == greedy(model, ids, 12)
        assert (answer.reason, answer.usage.completion_tokens) == ("length", 12)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_whatever_comes_and_goes_every_answer_is_the_plain_loops(data: st.DataObject) -> None:
    """Random prompts with shared heads, slots, chunks, budgets and cancellations."""
    model = tiny_model(data.draw(st.sampled_from(("llama", "mistral"))))
    budget = data.draw(st.sampled_from((0, 20_000, 1 << 30)))
    engine = make(
        model, slots=data.draw(st.integers(1, 3)), chunk_tokens=data.draw(st.integers(1, 40)), prefix_bytes=budget
    )
    asked: list[tuple[tuple[int, ...], int, Handle]] = []
    for number in range(data.draw(st.integers(1, 6))):
        head = data.draw(st.integers(0, 60))
        ids = (*prompt(head), *prompt(data.draw(st.integers(1, 5)), seed=number + 1))
        n, shared = data.draw(st.integers(1, 5)), data.draw(st.sampled_from((0, head)))
        draft = data.draw(st.sampled_from((None, Draft(ids[-4:], Speculation(draft_tokens=2)))))
        handle = engine.submit(Generation(ids, GREEDY, max_tokens=n, stop_ids=NEVER, shared_tokens=shared, draft=draft))
        asked.append((ids, n, handle))
        for _ in range(data.draw(st.integers(0, 4))):
            engine.step()
        if data.draw(st.integers(0, 4)) == 0:
            handle.cancel()
    answers = finish(engine, *[handle for *_, handle in asked])
    for (ids, n, _), answer in zip(asked, answers, strict=True):
        expected = greedy(model, ids, n)
        assert answer.token_ids == expected[: len(answer.token_ids)]
        assert len(answer.token_ids) == n or answer.reason == "cancelled"
    assert engine.metrics().prefix_bytes <= budget
    assert engine.metrics().running == 0


def test_a_hybrid_model_shares_what_was_declared_as_shared() -> None:
    model = LanguageModel(tiny_transformer("lfm2", layer_types=["conv", "full_attention"]))
    document = prompt(40)
    engine = make(model)
    for seed, reused in ((1, 0), (2, 40)):
        ids = (*document, *prompt(6, seed=seed))
        generation = Generation(ids, GREEDY, max_tokens=6, stop_ids=NEVER, shared_tokens=40)
        (answer,) = finish(engine, engine.submit(generation))
        assert answer.token_ids == greedy(model, ids, 6)
        assert answer.usage.reused_tokens == reused


def test_decoding_one_by_one_and_together_agree() -> None:
    model = tiny_model("qwen2")
    options = SamplingOptions(temperature=0.8, top_p=0.9, seed=5, logprobs=2)
    answers = []
    for together in (True, False):
        engine = make(model, batch_decode=together)
        generations = [Generation(prompt(n, seed=n), options, max_tokens=10) for n in (4, 9, 30)]
        answers.append(finish(engine, *[engine.submit(generation) for generation in generations]))
    for one, other in zip(*answers, strict=True):
        assert one.token_ids == other.token_ids
        assert [c.logprob for c in one.choices] == pytest.approx([c.logprob for c in other.choices], abs=1e-4)


def test_a_seed_gives_the_same_answer_in_company_in_half_precision_too() -> None:
    """Rows of one pass round otherwise than a row alone, so seeded requests have passes of their own there."""
    model = LanguageModel(tiny_transformer("llama").to(torch.bfloat16))
    assert model.batches_rows
    mine = [Generation(prompt(20), SamplingOptions(seed=seed), max_tokens=15, stop_ids=NEVER) for seed in range(6)]
    alone = [finish(engine, engine.submit(one))[0].token_ids for one in mine for engine in [make(model)]]
    engine = make(model, slots=6, prefix_bytes=0)
    together = finish(engine, *map(engine.submit, mine))
    assert [answer.token_ids for answer in together] == alone


def test_a_seed_gives_the_same_answer_whoever_else_is_there() -> None:
    model = tiny_model("llama")
    mine = Generation(prompt(20), SamplingOptions(seed=42), max_tokens=15, stop_ids=NEVER)
    alone = make(model)
    (expected,) = finish(alone, alone.submit(mine))
    busy = make(model)
    others = [Generation(prompt(n, seed=n), SamplingOptions(seed=n), max_tokens=20) for n in (3, 50, 20)]
    handles = [busy.submit(generation) for generation in (others[0], mine, *others[1:])]
    assert finish(busy, *handles)[1].token_ids == expected.token_ids
    different = make(model)
    changed = replace(mine, sampling=SamplingOptions(seed=43))
    assert finish(different, different.submit(changed))[0].token_ids != expected.token_ids


# ---- prefixes ----


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_question_on_a_document_reads_only_the_question(family: str) -> None:
    model = tiny_model(family)
    document = prompt(100)
    questions = [(*document, *prompt(7, seed=s)) for s in (1, 2, 3)]
    engine = make(model)
    for number, ids in enumerate(questions):
        generation = Generation(ids, GREEDY, max_tokens=8, stop_ids=NEVER, shared_tokens=len(document))
        (answer,) = finish(engine, engine.submit(generation))
        assert answer.token_ids == greedy(model, ids, 8)
        assert answer.usage.reused_tokens >= (len(document) if number else 0)
    assert engine.metrics().prefilled_tokens <= 100 + 3 * 7


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_questions_that_come_together_read_their_document_once(family: str) -> None:
    model = tiny_model(family)
    document = prompt(100)
    engine = make(model)
    prompts = [(*document, *prompt(5, seed=s)) for s in range(4)]
    handles = [
        engine.submit(Generation(ids, GREEDY, max_tokens=6, stop_ids=NEVER, shared_tokens=100)) for ids in prompts
    ]
    for ids, answer in zip(prompts, finish(engine, *handles), strict=True):
        assert answer.token_ids == greedy(model, ids, 6)
    assert engine.metrics().prefilled_tokens <= 100 + 4 * 5 + 3 * 15  # nobody waits to save less than a chunk


def test_a_conversation_goes_on_from_its_own_answer() -> None:
    model = tiny_model("llama")
    engine = make(model)
    (first,) = finish(engine, engine.submit(Generation(prompt(30), GREEDY, max_tokens=10, stop_ids=NEVER)))
    ids = (*prompt(30), *first.token_ids, *prompt(4, seed=9))
    (second,) = finish(engine, engine.submit(Generation(ids, GREEDY, max_tokens=10, stop_ids=NEVER)))
    assert second.usage.reused_tokens == 39  # all but the last token of the answer, which was never fed
    assert second.token_ids == greedy(model, ids, 10)


def test_requests_on_one_stored_prefix_do_not_touch_each_other() -> None:
    model = tiny_model("llama")
    engine = make(model)
    document = prompt(64)
    finish(engine, engine.submit(Generation(document, GREEDY, max_tokens=1)))
    prompts = [(*document[:60], *prompt(3, seed=s)) for s in (5, 6, 7)]
    handles = [engine.submit(Generation(ids, GREEDY, max_tokens=9, stop_ids=NEVER)) for ids in prompts]
    for ids, answer in zip(prompts, finish(engine, *handles), strict=True):
        assert answer.usage.reused_tokens >= 60
        assert answer.token_ids == greedy(model, ids, 9)


def test_without_room_for_prefixes_nothing_is_reused() -> None:
    engine = make(tiny_model("llama"), prefix_bytes=0)
    for _ in range(2):
        (answer,) = finish(engine, engine.submit(Generation(prompt(40), GREEDY, max_tokens=3)))
        assert answer.usage.reused_tokens == 0
    assert engine.metrics().prefix_bytes == 0


# ---- drafts ----


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_requests_with_drafts_run_beside_plain_ones_and_give_the_targets_text(family: str) -> None:
    model = tiny_model(family)
    engine = make(model)
    prompts = [prompt(n, seed=n) for n in (50, 1, 33)]
    drafts = [Draft(prompts[0][20:], Speculation(draft_tokens=4)), Draft((5,), Speculation(draft_tokens=2)), None]
    handles = [
        engine.submit(Generation(ids, GREEDY, max_tokens=14, stop_ids=NEVER, draft=draft))
        for ids, draft in zip(prompts, drafts, strict=True)
    ]
    answers = finish(engine, *handles)
    for ids, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == greedy(model, ids, 14)
        assert (answer.reason, answer.usage.completion_tokens) == ("length", 14)
    tallies = [answer.usage.speculation for answer in answers]
    assert [tally is not None and tally.drafted > 0 for tally in tallies] == [True, True, False]
    assert engine.metrics().drafted_tokens == sum(tally.drafted for tally in tallies if tally is not None)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_requests_with_drafts_share_passes_and_get_what_they_would_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    shared: list[int] = []
    forward_rows = model.forward_rows

    def counting(rows: Sequence[Sequence[int]], caches: Sequence[KVCache], wanted: Sequence[int]) -> torch.Tensor:
        shared.append(len(rows))
        return forward_rows(rows, caches, wanted)

    monkeypatch.setattr(model, "forward_rows", counting)
    asked = [
        Generation(
            prompt(30 + 7 * seed, seed=seed),
            SamplingOptions(seed=seed),
            max_tokens=24 + seed,
            stop_ids=NEVER,
            draft=Draft(prompt(4 + seed, seed=9), Speculation(draft_tokens=1 + seed)),
        )
        for seed in range(4)
    ]
    alone: list[Generated] = []
    for generation in asked:
        engine = make(model, prefix_bytes=0, chunk_tokens=64)
        alone += finish(engine, engine.submit(generation))
    assert not shared
    engine = make(model, prefix_bytes=0, chunk_tokens=64)
    together = finish(engine, *(engine.submit(generation) for generation in asked))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert max(shared) == 4


def test_a_draft_that_cannot_save_time_is_not_read() -> None:
    model = tiny_model("llama")
    engine = make(model)
    ask = Generation(prompt(40), GREEDY, max_tokens=5, stop_ids=NEVER, draft=Draft(prompt(20)))
    (answer,) = finish(engine, engine.submit(ask))
    assert answer.token_ids == greedy(model, prompt(40), 5)
    assert answer.usage.speculation is None
    assert engine.metrics().prefilled_tokens == 40


def test_what_one_answer_learns_of_drafting_serves_the_next() -> None:
    model = tiny_model("llama")
    engine = make(model, prefix_bytes=0)
    ids = prompt(40)
    ask = Generation(ids, GREEDY, max_tokens=12, stop_ids=NEVER, draft=Draft(prompt(5, seed=9)))
    (first,) = finish(engine, engine.submit(ask))
    (again,) = finish(engine, engine.submit(replace(ask, max_tokens=3)))
    assert first.token_ids == greedy(model, ids, 12) and again.token_ids == first.token_ids[:3]
    [length] = engine._draft_lengths.values()
    assert length._plain_steps > 3  # of both answers together


def test_a_larger_model_may_draft() -> None:
    target, drafting = tiny_model("llama"), tiny_model("llama", seed=1)
    engine = Engine(target, decode, draft_model=drafting, vocabulary=VOCAB, available=lambda: PLENTY)
    draft = Draft(prompt(9), Speculation(draft_tokens=3))
    (answer,) = finish(
        engine, engine.submit(Generation(prompt(30), GREEDY, max_tokens=12, stop_ids=NEVER, draft=draft))
    )
    assert answer.token_ids == greedy(target, prompt(30), 12)


def test_a_prompt_that_is_shared_whole_does_not_slow_the_reading_of_its_draft() -> None:
    engine = make(tiny_model("mistral"), chunk_tokens=32)
    draft = Draft(prompt(80, seed=3), Speculation(draft_tokens=2))
    engine.submit(Generation(prompt(100), GREEDY, 1, shared_tokens=100, draft=draft))
    steps = 1
    while engine.step():
        steps += 1
    assert steps <= 9  # 4 chunks and 3 of the draft, and what is decoded


def test_a_stop_text_inside_a_block_cuts_it_and_the_cache() -> None:
    model = tiny_model("llama")
    ids = prompt(12)
    expected = greedy(model, ids, 30)
    whole = decode(expected)
    stop = whole[4:7]
    engine = make(model)
    draft = Draft(ids, Speculation(draft_tokens=8))  # the same prompt, so every draft is accepted
    (answer,) = finish(
        engine, engine.submit(Generation(ids, GREEDY, max_tokens=30, stop=(stop,), stop_ids=NEVER, draft=draft))
    )
    assert (answer.text, answer.reason) == (whole[: whole.index(stop)], "stop")
    longer = (*ids, *answer.token_ids, 7)
    (second,) = finish(engine, engine.submit(Generation(longer, GREEDY, max_tokens=5, stop_ids=NEVER)))
    assert second.token_ids == greedy(model, longer, 5)
    assert second.usage.reused_tokens > 0


def test_a_draft_that_cannot_work_is_refused_on_submission() -> None:
    engine = make(tiny_model("llama"))
    penalised = SamplingOptions(temperature=0, repetition_penalty=2)
    with pytest.raises(ConfigError, match="repetition_penalty"):
        engine.submit(Generation(prompt(5), penalised, draft=Draft((1, 2))))
    with pytest.raises(ConfigError, match="prompt_ids holds"):
        engine.submit(Generation(prompt(5), draft=Draft((VOCAB,))))
    padded = Engine(tiny_model("llama"), decode, draft_model=tiny_model("llama", 1), vocabulary=40)
    with pytest.raises(ConfigError, match="logit_bias names token 45"):
        padded.submit(Generation(prompt(5), SamplingOptions(logit_bias={45: 1.0}), draft=Draft((1, 2))))
    with pytest.raises(ContextTooLong, match="draft's prompt has 512 tokens"):
        engine.submit(Generation(prompt(5), draft=Draft(prompt(512))))
    hybrid = LanguageModel(tiny_transformer("lfm2", layer_types=["conv", "full_attention"]))
    with pytest.raises(ConfigError):
        make(hybrid).submit(Generation(prompt(5), draft=Draft((1, 2))))


# ---- ends ----


def test_a_stop_token_ends_the_answer_and_leaves_no_text() -> None:
    model = tiny_model("llama")
    expected = greedy(model, prompt(12), 8)
    engine = make(model)
    ending = Generation(prompt(12), GREEDY, max_tokens=8, stop_ids=frozenset({expected[4]}))
    (answer,) = finish(engine, engine.submit(ending))
    n = expected.index(expected[4]) + 1
    assert (answer.token_ids, answer.reason) == (expected[:n], "stop")
    assert answer.text == decode(expected[: n - 1]).rstrip("\N{REPLACEMENT CHARACTER}")


def test_a_stop_text_across_tokens_cuts_the_answer() -> None:
    model = tiny_model("llama")
    whole = decode(greedy(model, prompt(12), 30))
    stop = whole[4:9]  # longer than any token of the toy tokenizer
    engine = make(model)
    (answer,) = finish(
        engine, engine.submit(Generation(prompt(12), GREEDY, max_tokens=30, stop=(stop,), stop_ids=NEVER))
    )
    assert (answer.text, answer.reason) == (whole[: whole.index(stop)], "stop")


def test_the_models_positions_limit_the_answer() -> None:
    model = LanguageModel(tiny_transformer("llama", max_position_embeddings=24))
    engine = make(model)
    (answer,) = finish(engine, engine.submit(Generation(prompt(20), GREEDY, max_tokens=100, stop_ids=NEVER)))
    assert (answer.usage.completion_tokens, answer.reason) == (4, "length")
    with pytest.raises(ContextTooLong, match="24 tokens; LlamaForCausalLM accepts 24"):
        engine.submit(Generation(prompt(24), GREEDY))


@pytest.mark.parametrize("after_steps", [0, 1, 3, 9])
def test_a_cancelled_request_is_gone_after_one_step(after_steps: int) -> None:
    model = tiny_model("llama")
    engine = make(model, slots=2)
    doomed = engine.submit(Generation(prompt(60), GREEDY, max_tokens=50, stop_ids=NEVER))
    other = engine.submit(Generation(prompt(5, seed=2), GREEDY, max_tokens=20, stop_ids=NEVER))
    for _ in range(after_steps):
        engine.step()
    doomed.cancel()
    engine.step()
    assert engine.metrics().running == 1
    assert engine.metrics().cancelled == 1
    assert doomed.result().reason == "cancelled"
    assert finish(engine, other)[0].token_ids == greedy(model, prompt(5, seed=2), 20)


# ---- fairness ----


def test_a_long_prompt_does_not_hold_up_a_short_one() -> None:
    engine = make(tiny_model("llama"))
    long = engine.submit(Generation(prompt(400), GREEDY, max_tokens=2, stop_ids=NEVER))
    short = engine.submit(Generation(prompt(8, seed=3), GREEDY, max_tokens=4, stop_ids=NEVER))
    for _ in range(8):
        engine.step()
    assert short.result().usage.completion_tokens == 4
    assert not long.cancelled
    finish(engine, long)


def test_requests_beyond_the_slots_start_in_the_order_they_came() -> None:
    clock: Iterator[int] = iter(range(10**6))
    engine = Engine(
        tiny_model("llama"), decode, EngineOptions(slots=1), available=lambda: PLENTY, clock=lambda: next(clock)
    )
    handles = [engine.submit(Generation(prompt(6, seed=s), GREEDY, max_tokens=3)) for s in range(4)]
    assert engine.metrics().waiting == 4
    waits = [answer.usage.queue_s for answer in finish(engine, *handles)]
    assert waits == sorted(waits)


def test_a_full_queue_says_so() -> None:
    engine = make(tiny_model("llama"), queue_limit=2)
    for _ in range(2):
        engine.submit(Generation(prompt(4), GREEDY))
    with pytest.raises(RateLimited, match="2 requests wait already"):
        engine.submit(Generation(prompt(4), GREEDY))


# ---- trouble ----


def test_what_cannot_fit_is_refused_with_numbers_and_the_next_one_runs() -> None:
    model = tiny_model("llama")
    small = model.cache_bytes(10, 16) + model.work_bytes(6, 10)
    engine = make(model, free=lambda: small + 1000, prefix_bytes=0)
    large = engine.submit(Generation(prompt(200), GREEDY, max_tokens=5))
    fine = engine.submit(Generation(prompt(6), GREEDY, max_tokens=5, stop_ids=NEVER))
    while engine.step():
        pass
    with pytest.raises(ContextTooLong, match=r"A prompt of 200 tokens .* needs [\d.]+ MiB .* [\d.]+ MiB are available"):
        large.result()
    assert fine.result().usage.completion_tokens == 5


def test_a_request_waits_for_memory_that_another_will_give_back() -> None:
    model = tiny_model("llama")
    one = model.cache_bytes(44, 16) + model.work_bytes(16, 44)
    taken: list[int] = [0]
    engine = make(model, free=lambda: one + 100 - taken[0], prefix_bytes=0)
    handles = [engine.submit(Generation(prompt(40, seed=s), GREEDY, max_tokens=5, stop_ids=NEVER)) for s in (1, 2)]
    most = 0
    for _ in range(100):
        more = engine.step()
        taken[0] = sum(model.cache_bytes(job.fed, 16) for job in engine._scheduler.running if job.cache)
        most = max(most, engine.metrics().running)
        if not more:
            break
    assert most == 1
    assert [handle.result().usage.completion_tokens for handle in handles] == [5, 5]


@pytest.mark.parametrize("at_once", [1, 2])
def test_answers_with_drafts_wait_for_memory_to_judge_them(at_once: int) -> None:
    model = tiny_model("llama")
    caches = model.cache_bytes(84, 16) + model.cache_bytes(10, 16)
    judging = 17 * VOCAB * 4 * 3
    room = 2 * caches + model.work_bytes(16, 84) + at_once * judging
    held: list[int] = [0]
    engine = make(model, free=lambda: room - held[0], prefix_bytes=0)
    draft = Draft(prompt(5))
    handles = [engine.submit(Generation(prompt(80, seed=s), GREEDY, 5, stop_ids=NEVER, draft=draft)) for s in (1, 2)]
    most = 0
    while engine.step():
        held[0] = sum(map(engine._guard.held_bytes, engine._scheduler.running))
        most = max(most, engine.metrics().running)
    assert most == at_once
    assert [handle.result().usage.completion_tokens for handle in handles] == [5, 5]


def test_stored_prefixes_make_room_for_a_request() -> None:
    model = tiny_model("llama")
    engine = make(model)
    finish(engine, engine.submit(Generation(prompt(100), GREEDY, max_tokens=1)))
    stored = engine.metrics().prefix_bytes
    assert stored > 0
    needed = model.cache_bytes(94, 16) + model.work_bytes(16, 94)
    engine._guard.available = lambda: needed - stored // 2
    (answer,) = finish(engine, engine.submit(Generation(prompt(90, seed=4), GREEDY, max_tokens=5, stop_ids=NEVER)))
    assert answer.usage.completion_tokens == 5


def test_a_prefix_that_would_help_goes_if_the_request_does_not_fit_beside_it() -> None:
    model = tiny_model("llama")
    engine = make(model)
    ids = prompt(100)
    finish(engine, engine.submit(Generation(ids, GREEDY, max_tokens=1)))
    needed = model.cache_bytes(74, 16) + model.work_bytes(16, 74)
    stored = engine.metrics().prefix_bytes
    engine._guard.available = lambda: needed - stored
    (answer,) = finish(engine, engine.submit(Generation(ids[:70], GREEDY, max_tokens=5, stop_ids=NEVER)))
    assert (answer.usage.completion_tokens, answer.usage.reused_tokens) == (5, 0)


def test_caches_keep_within_a_limit_of_their_own() -> None:
    model = tiny_model("llama")
    limit = model.cache_bytes(44, 16) * 2 + model.work_bytes(16, 44)
    engine = make(model, cache_bytes=limit)
    handles = [engine.submit(Generation(prompt(40, seed=s), GREEDY, max_tokens=5, stop_ids=NEVER)) for s in range(6)]
    while engine.step():
        held = sum(job.cache.nbytes for job in engine._scheduler.running if job.cache) + engine._prefixes.nbytes
        assert held <= limit
    assert [handle.result().usage.completion_tokens for handle in handles] == [5] * 6
    large = engine.submit(Generation(prompt(400), GREEDY, max_tokens=5))
    engine.step()
    with pytest.raises(ContextTooLong, match="are available"):
        large.result()


class Saboteur:
    """Fails the model's passes in which `guilty` holds, with the error of an allocation that failed."""

    def __init__(self, transformer: torch.nn.Module, guilty: Callable[[torch.Tensor], bool]) -> None:
        self.guilty = guilty
        self.tokens = torch.empty(0)
        transformer.register_forward_pre_hook(self.note, with_kwargs=True)
        transformer.model.layers[1].mlp.register_forward_pre_hook(self.strike)  # type: ignore[union-attr, index]

    def note(self, module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        self.tokens = kwargs["input_ids"]

    def strike(self, *_: object) -> None:
        if self.guilty(self.tokens):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_request_that_runs_out_of_memory_fails_alone(family: str) -> None:
    transformer = tiny_transformer(family)
    model = LanguageModel(transformer)
    poison = 47
    prompts = [tuple(t % 40 for t in prompt(n, seed=n)) for n in (6, 30, 20)]
    ban = SamplingOptions(temperature=0, logit_bias={poison: -100.0})
    expected = [
        finish(e := make(model), e.submit(Generation(p, ban, max_tokens=8, stop_ids=NEVER)))[0] for p in prompts
    ]
    Saboteur(transformer, lambda tokens: bool((tokens == poison).any()))
    engine = make(model)
    fine = [engine.submit(Generation(p, ban, max_tokens=8, stop_ids=NEVER)) for p in prompts]
    reading = engine.submit(Generation((*prompt(20), poison), GREEDY, max_tokens=8))
    forced = SamplingOptions(temperature=0, logit_bias={poison: 1000.0})
    decoding = engine.submit(Generation(prompts[0], forced, max_tokens=8, stop_ids=NEVER))
    while engine.step():
        pass
    for bad in (reading, decoding):
        with pytest.raises(BackendUnavailable, match="ran out of memory in a step") as caught:
            bad.result()
        assert caught.value.status == 503
    assert [handle.result().token_ids for handle in fine] == [answer.token_ids for answer in expected]
    assert engine.metrics().running == 0
    assert engine.metrics().failed == 2


def test_a_passing_shortage_of_memory_costs_only_the_stored_prefixes() -> None:
    transformer = tiny_transformer("llama")
    model = LanguageModel(transformer)
    engine = make(model)
    finish(engine, engine.submit(Generation(prompt(50), GREEDY, max_tokens=2)))
    Saboteur(transformer, lambda tokens: engine.metrics().prefixes > 0)
    (answer,) = finish(engine, engine.submit(Generation(prompt(40, seed=2), GREEDY, max_tokens=6, stop_ids=NEVER)))
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_draft_that_runs_out_of_memory_fails_alone(family: str) -> None:
    transformer, poison = tiny_transformer(family), 47
    engine = make(LanguageModel(transformer), prefix_bytes=0)
    asked = [
        Generation(
            tuple(t % 40 for t in prompt(20, seed=bias)),
            SamplingOptions(temperature=0, logit_bias={poison: 100.0 * bias}),
            max_tokens=12,
            stop_ids=NEVER,
            draft=Draft(tuple(t % 40 for t in prompt(4, seed=9)), Speculation(draft_tokens=3)),
        )
        for bias in (-1, 1, -1)
    ]
    expected = [finish(e := make(tiny_model(family)), e.submit(generation))[0] for generation in asked]
    Saboteur(transformer, lambda tokens: bool((tokens == poison).any()))
    handles = [engine.submit(generation) for generation in asked]
    while engine.step():
        pass
    with pytest.raises(BackendUnavailable, match="ran out of memory"):
        handles[1].result()
    assert [handles[i].result().token_ids for i in (0, 2)] == [expected[i].token_ids for i in (0, 2)]


def test_a_draft_that_memory_fails_leaves_room_for_the_next_try() -> None:
    transformer = tiny_transformer("llama")
    engine = make(LanguageModel(transformer))
    finish(engine, engine.submit(Generation(prompt(50), GREEDY, max_tokens=2)))
    Saboteur(transformer, lambda tokens: engine.metrics().prefixes > 0)
    asked = Generation(prompt(40, seed=2), GREEDY, max_tokens=6, stop_ids=NEVER, draft=Draft(prompt(5)))
    first = engine.submit(asked)
    while engine.step():
        pass
    with pytest.raises(BackendUnavailable, match="ran out of memory"):
        first.result()
    (answer,) = finish(engine, engine.submit(asked))
    assert answer.usage.completion_tokens == 6


def test_room_for_a_long_answer_is_given_back_when_it_is_short() -> None:
    model = tiny_model("llama")
    engine = make(model, prefix_bytes=model.cache_bytes(100))
    for seed in range(4):
        ids = prompt(20, seed=seed)
        stop = frozenset(greedy(model, ids, 2))
        finish(engine, engine.submit(Generation(ids, GREEDY, max_tokens=400, stop_ids=stop)))
    assert engine.metrics().prefixes == 4
    again = Generation((*prompt(20, seed=1), 5), GREEDY, max_tokens=8, stop_ids=NEVER)
    (answer,) = finish(engine, engine.submit(again))
    assert answer.usage.reused_tokens == 20
    assert answer.token_ids == greedy(model, again.prompt_ids, 8)


def test_logits_that_are_no_numbers_end_one_request_with_advice() -> None:
    model = LanguageModel(tiny_transformer("llama"))
    with torch.no_grad():
        model._model.model.embed_tokens.weight[47] = float("nan")
    engine = make(model)
    bad = engine.submit(Generation((3, 47, 5), GREEDY))
    good = engine.submit(Generation((3, 4, 5), GREEDY, max_tokens=3, stop_ids=NEVER))
    while engine.step():
        pass
    with pytest.raises(BackendError, match="not finite"):
        bad.result()
    assert good.result().usage.completion_tokens == 3


def test_a_decoder_that_fails_hurts_only_its_request() -> None:
    def fails(ids: object) -> str:
        raise KeyError("no such piece")

    engine = Engine(tiny_model("llama"), fails, available=lambda: PLENTY)
    handle = engine.submit(Generation(prompt(4), GREEDY))
    while engine.step():
        pass
    with pytest.raises(BackendError, match="KeyError"):
        handle.result()


def test_nonsense_is_refused_on_submission() -> None:
    engine = make(tiny_model("llama"))
    with pytest.raises(ConfigError, match="outside 0 to 47"):
        engine.submit(Generation((1, VOCAB)))
    with pytest.raises(ConfigError, match="logit_bias holds"):
        engine.submit(Generation((1,), SamplingOptions(logit_bias={-1: 2.0})))
    with pytest.raises(ConfigError, match="with a tokenizer"):
        Engine(tiny_model("llama"), available=lambda: PLENTY).submit(Generation((1,), stop=("x",)))


# ---- with the thread ----


def test_pieces_stream_while_others_do_and_the_books_balance() -> None:
    model = tiny_model("llama")
    prompts = [prompt(5 + s, seed=s) for s in range(16)]
    with make(model, slots=4) as engine:
        handles = [engine.submit(Generation(ids, GREEDY, max_tokens=7, stop_ids=NEVER)) for ids in prompts]
        for ids, handle in zip(prompts, handles, strict=True):
            events = list(handle)
            assert isinstance(events[-1], Done)
            pieces = [event for event in events if isinstance(event, Piece)]
            assert tuple(piece.choice.token for piece in pieces) == greedy(model, ids, 7)
            assert "".join(event.text for event in events) == decode([p.choice.token for p in pieces]).rstrip("\ufffd")
        metrics = engine.metrics()
    assert (metrics.submitted, metrics.finished, metrics.failed) == (16, 16, 0)
    assert metrics.decoded_tokens == 16 * 7
    assert metrics.prefilled_tokens + metrics.reused_tokens == sum(map(len, prompts))


def test_the_same_on_an_event_loop_and_leaving_early_cancels() -> None:
    model = tiny_model("llama")

    async def read(engine: Engine) -> tuple[tuple[int, ...], int]:
        leaving = engine.submit(Generation(prompt(5), GREEDY, max_tokens=400, stop_ids=NEVER))
        staying = engine.submit(Generation(prompt(6), GREEDY, max_tokens=9, stop_ids=NEVER))
        stream = leaving.__aiter__()
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 3:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        assert leaving.cancelled
        return (await staying.result_async()).token_ids, seen

    with make(model) as engine:
        tokens, seen = asyncio.run(read(engine))
    assert (tokens, seen) == (greedy(model, prompt(6), 9), 3)


def test_closing_ends_what_is_under_way() -> None:
    with make(tiny_model("llama")) as engine:
        handle = engine.submit(Generation(prompt(5), GREEDY, max_tokens=500, stop_ids=NEVER))
        next(iter(handle))
    with pytest.raises(BackendUnavailable, match="closed"):
        handle.result()
    with pytest.raises(BackendUnavailable, match="closed"):
        engine.submit(Generation(prompt(5)))
