"""The runner on models of real geometry: prefill, decoding, RAPID, reuse and company, beside what the hardware allows.

    python -m benchmarks.runner_speed --geometry 8b        # CUDA, bfloat16, 8k to 128k tokens
    python -m benchmarks.runner_speed --geometry tiny      # a CPU, float32, 1k to 16k tokens

Weights are random, and nothing is fetched: steps take as long whatever a model has learned. Repeats end after
`--seconds`, so that either takes seven or eight minutes.

1. Reading and writing by context, against transformers' `generate` on the same model object with its own cache, in
   turn, and against a floor: bytes to move over a memory rate, operations over a rate of matrix products, both rates
   measured in the same run.
2. RAPID, mode exact, greedy, automatic draft length, by context and acceptance. Random weights agree on nothing, so
   acceptance is set by construction: both models run in full, then the target says a fixed text and the draft model the
   same with a stated chance for each token. What is timed is real; how often trained models agree is not shown. The
   draft model is the target itself on a short prompt, and a smaller model on it. "Predicted" is what the automatic
   draft length promises from step times and acceptance it has seen, "ceiling" what memory traffic alone would allow.
3. A second question on a document that was read before, and requests that decode together.

Contexts that cannot fit are refused by the runner's own guard, which the tables say. A CPU's seconds are processor
time of the one thread that computes, except for the first token, where they are the caller's; a GPU's are read when
its work is done. Every row is written to the results at once, so that a run that was stopped keeps what it had.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from longroute.router.errors import RouterError
from longroute.router.runner.draft_length import DraftLength, predicted_speedup
from longroute.router.runner.engine import Engine, EngineOptions, usual_chunk_tokens
from longroute.router.runner.generation import Generation, Piece, SamplingOptions
from longroute.router.runner.kv_cache import KVCache
from longroute.router.runner.memory import available_bytes, gibibytes, is_out_of_memory
from longroute.router.runner.speculative import Side, SpeculativeDecoding, Tally

from .device_floor import Rates, clock_of, decode_bytes, measure, name_of, prefill_flops, wait_for
from .machine import measured_on
from .random_llama import GEOMETRIES, Scripted, random_llama

RESULTS = Path(__file__).parent / "results"
ACCEPTANCES = (0.0, 0.6, 0.8, 0.95)
TOGETHER = (1, 4, 16)
DECODED = 64  # tokens, to time decoding alone
ANSWER = 128  # tokens of an answer with drafts
ASKED = 5  # later questions on a document
MOST_REPEATS = 3
NO_END: frozenset[int] = frozenset()
GREEDY = SamplingOptions(temperature=0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured on. drafters: by name; drafted_from: tokens that they read."""

    target: Scripted
    drafters: Mapping[str, Scripted]
    contexts: Sequence[int]
    drafted_from: int
    chunk_tokens: int

    @property
    def clock(self) -> Callable[[], float]:
        """Every run ends with a token that was read from the device, so all of its work is done by then."""
        return clock_of(self.target.device)

    @property
    def free_bytes(self) -> int:
        return available_bytes(self.target.device)

    def settle(self) -> None:
        """Give back what earlier runs held, so that all start alike."""
        gc.collect()
        wait_for(self.target.device)
        if self.target.device.type == "cuda":
            torch.cuda.empty_cache()

    def tokens(self, n_tokens: int, seed: int = 0) -> list[int]:
        return random.Random(seed).choices(range(self.target.vocab_size), k=n_tokens)

    def engine(self, prefix_bytes: int = 0) -> Engine:
        options = EngineOptions(chunk_tokens=self.chunk_tokens, slots=max(TOGETHER), prefix_bytes=prefix_bytes)
        return Engine(self.target, options=options, clock=self.clock)

    def refusal(self, needed_bytes: int) -> str | None:
        """Says so where caches and work of so many bytes do not fit, by the numbers that the runner's guard goes by."""
        free = self.free_bytes
        if needed_bytes <= free:
            return None
        return f"refused: needs {gibibytes(needed_bytes)}, {gibibytes(free)} available"


# ---- repeats and tables ----


def in_turn(
    runs: Sequence[Callable[[], T]], until: float, clock: Callable[[], float] = time.perf_counter
) -> list[list[T]]:
    """What each run returned, all of them in turn, up to MOST_REPEATS times and at least once.

    Another turn starts only if it would end before `until` on the clock, were it as long as the last one.
    """
    found: list[list[T]] = [[] for _ in runs]
    for _ in range(MOST_REPEATS):
        started = clock()
        for values, run in zip(found, runs, strict=True):
            values.append(run())
        if 2 * clock() - started > until:
            break
    return found


def shares(n: int, until: float, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Times at which n pieces of work should end for the last one to end at `until`; what one leaves, the next has."""
    now = clock()
    return [now + (until - now) * (i + 1) / n for i in range(n)]


def middle(values: Sequence[float], digits: int = 0) -> str:
    """Median, and behind it lowest and highest where there are several: `12 (11–14)`."""
    shown = f"{statistics.median(values):,.{digits}f}"
    return f"{shown} ({min(values):,.{digits}f}–{max(values):,.{digits}f})" if len(values) > 1 else shown


@dataclass(eq=False)
class Table:
    header: str  # columns, divided by |
    rows: list[str] = field(default_factory=list)


class Report:
    """A Markdown file that is written anew with every row; under it, where all of it was measured."""

    def __init__(self, path: Path, title: str) -> None:
        self._path = path
        self._parts: list[str | Table] = [f"# {title}"]
        self.sign()

    def text(self, paragraph: str) -> None:
        self._parts.append(paragraph)
        self._write()

    def table(self, heading: str, header: str) -> Table:
        table = Table(header)
        self._parts += [f"## {heading}", table]
        return table

    def row(self, table: Table, *cells: str) -> None:
        table.rows.append(" | ".join(cells))
        print(table.rows[-1], flush=True)
        self._write()

    def sign(self) -> None:
        """At the start, so that a run that was stopped has it, and at the end, whose load it tells."""
        self._measured_on = "; ".join(measured_on("torch", "transformers").values())
        self._write()

    def _write(self) -> None:
        parts = [part if isinstance(part, str) else _markdown(part) for part in self._parts]
        self._path.write_text("\n\n".join([*parts, self._measured_on]) + "\n")


def _markdown(table: Table) -> str:
    line = "|" + "---:|" * (table.header.count("|") + 1)
    return "\n".join([f"| {table.header} |", line, *(f"| {row} |" for row in table.rows)])


# ---- 1. reading and writing ----


@dataclass(frozen=True, slots=True)
class Timed:
    """prefill_s ends with the first token of the answer; decode_s is for the `decoded` tokens behind it."""

    prefill_s: float
    decode_s: float
    decoded: int


def by_engine(setting: Setting, prompts: Sequence[Sequence[int]], decoded: int) -> Timed:
    """Read the prompts, then time steps in which all of them decode; the engine is stepped here, without its thread."""
    setting.settle()
    engine, clock = setting.engine(), setting.clock
    chunks = sum(-(-len(prompt) // setting.chunk_tokens) for prompt in prompts)
    most = chunks + decoded + 2  # the first to be read decode while others are read
    handles = [engine.submit(Generation(tuple(p), GREEDY, most, stop_ids=NO_END)) for p in prompts]
    unread = sum(map(len, prompts))
    while (now := engine.metrics()).prefilled_tokens + now.reused_tokens < unread:
        if now.failed:
            for handle in handles:
                handle.result()  # raises what was wrong
        engine.step()
    before, started = engine.metrics(), clock()
    for _ in range(decoded):
        engine.step()
    decode_s, after = clock() - started, engine.metrics()
    engine.close()
    return Timed(after.prefill_s, decode_s, after.decoded_tokens - before.decoded_tokens)


class _Stamps:
    """A streamer that notes when tokens arrive; `generate` has moved them to main memory by then."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: list[float] = []

    def put(self, tokens: Tensor) -> None:
        self.seconds.append(self._clock())

    def end(self) -> None: ...


def by_generate(setting: Setting, prompt: Sequence[int], decoded: int) -> Timed | None:
    """The same by transformers: its `generate`, its dynamic cache, its own attention. None where memory runs out."""
    setting.settle()
    model, tokens = setting.target.transformer, setting.target.tokens(prompt)
    ours = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    stamps = _Stamps(setting.clock)
    started = setting.clock()
    try:
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=1 + decoded,
            streamer=stamps,
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        model.set_attn_implementation(ours)
    first, last = stamps.seconds[1], stamps.seconds[-1]  # the one before is for the prompt
    return Timed(first - started, last - first, decoded)


def reading_and_writing(setting: Setting, rates: Rates, report: Report, until: float) -> None:
    columns = "context | longroute, tokens/s | transformers, tokens/s | ratio | floor, tokens/s | of the floor | runs"
    reading, writing = report.table("Prefill", columns), report.table(f"Decoding, {DECODED} tokens", columns)
    warm = setting.tokens(min(setting.contexts[0], 2 * setting.chunk_tokens))
    by_engine(setting, [warm], 4)
    by_generate(setting, warm, 4)
    for context, ends in zip(setting.contexts, shares(len(setting.contexts), until), strict=True):
        try:
            ours, theirs = _both(setting, setting.tokens(context), ends)
        except RouterError as error:
            report.row(reading, f"{context:,}", str(error), *[""] * 5)
            return
        read_at_most = context * rates.flops / prefill_flops(setting.target, context)
        written_at_most = rates.bytes_per_s / decode_bytes(setting.target, [context + DECODED // 2])
        our_reading, their_reading = ([context / run.prefill_s for run in runs] for runs in (ours, theirs))
        our_writing, their_writing = ([run.decoded / run.decode_s for run in runs] for runs in (ours, theirs))
        report.row(reading, f"{context:,}", *_compared(our_reading, their_reading, read_at_most))
        report.row(writing, f"{context:,}", *_compared(our_writing, their_writing, written_at_most))


def _both(setting: Setting, prompt: Sequence[int], until: float) -> tuple[list[Timed], list[Timed]]:
    """Runs of the engine and of `generate`; of the latter those whose memory did not run out."""
    runs: list[Callable[[], Timed | None]] = [
        partial(by_engine, setting, [prompt], DECODED),
        partial(by_generate, setting, prompt, DECODED),
    ]
    ours, theirs = in_turn(runs, until)
    return [run for run in ours if run], [run for run in theirs if run]


def _compared(ours: Sequence[float], theirs: Sequence[float], at_most: float) -> Iterator[str]:
    """Cells for tokens per second of both sides, run by run, and for the floor's."""
    digits = 1 if min(ours) < 100 else 0
    yield middle(ours, digits)
    yield middle(theirs, digits) if theirs else "out of memory"
    yield middle([a / b for a, b in zip(ours, theirs, strict=False)], 2) if theirs else ""
    yield f"{at_most:,.{digits}f}"
    yield f"{statistics.median(ours) / at_most:.0%}"
    yield str(len(ours))


# ---- 2. RAPID ----


@dataclass(frozen=True, slots=True)
class Answered:
    seconds: float
    tally: Tally
    predicted: float


def plain(setting: Setting, text: Sequence[int], held: KVCache) -> Answered:
    """An answer of the target alone, token by token, that says the same. held: a cache of `text` but for its last
    token."""
    target, clock, token = setting.target, setting.clock, text[-1]
    target.follow(setting.tokens(ANSWER, seed=1), len(text))
    started = clock()
    for _ in range(ANSWER):
        token = int(target.forward(target.tokens([token]), held)[0, -1].argmax())
    seconds = clock() - started
    target.crop(held, len(text) - 1)
    return Answered(seconds, Tally(plain_steps=ANSWER, emitted=ANSWER), 1.0)


def with_drafts(setting: Setting, drafter: Scripted, text: Sequence[int], held: KVCache, acceptance: float) -> Answered:
    """The same answer with drafts; prefill, the drafter's too, is left out."""
    script, part = setting.tokens(ANSWER, seed=1), text[-setting.drafted_from :]
    setting.target.follow(script, len(text))
    drafter.follow(script, len(part), acceptance)
    length = DraftLength()
    decoding = SpeculativeDecoding(
        Side(setting.target, text, held),
        Side(drafter, part),
        max_tokens=ANSWER,
        sampling=GREEDY,
        stop_ids=NO_END,
        length=length,
        clock=setting.clock,
    )
    while decoding.prefill(setting.chunk_tokens):
        pass
    wait_for(setting.target.device)
    started = setting.clock()
    while decoding.step().reason is None:
        pass
    seconds = setting.clock() - started
    assert list(decoding.tokens) == script, "not the target's own text"
    setting.target.crop(held, len(text) - 1)
    return Answered(seconds, decoding.tally, max(1.0, length.best()[1]))


def ceiling(acceptance: float, drafter_bytes: int, target_bytes: int) -> float:
    """The best speed-up at any draft length, if a step takes as long as its bytes and a pass as long as a step."""
    lengths = range(1, DraftLength().longest + 1)
    return max(1.0, *(predicted_speedup(acceptance, n, drafter_bytes / target_bytes, 1.0) for n in lengths))


def rapid(setting: Setting, report: Report, until: float) -> None:
    table = report.table(
        f"RAPID, answers of {ANSWER} tokens",
        "context | drafter | acceptance set | seen | drafted a round | tokens a step | plain, tokens/s | measured | "
        "predicted | ceiling | runs",
    )
    target, chunk = setting.target, setting.chunk_tokens
    contexts = []
    for context in setting.contexts:
        needed = target.work_bytes(chunk, context) + target.cache_bytes(context + ANSWER, chunk)
        needed += max(model.cache_bytes(setting.drafted_from + ANSWER, chunk) for model in setting.drafters.values())
        if refusal := setting.refusal(needed):
            report.row(table, f"{context:,}", refusal, *[""] * 9)
        else:
            contexts.append(context)
    if not contexts:
        return
    text = setting.tokens(contexts[-1])
    held = target.new_cache(contexts[-1] + ANSWER)
    target.follow((), 0)
    ends = iter(shares(len(contexts) * len(setting.drafters), until))
    for context in contexts:
        while held.n_tokens < context - 1:
            target.forward(target.tokens(text[held.n_tokens : min(held.n_tokens + chunk, context - 1)]), held)
        plain(setting, text[:context], held)  # warm
        for name in setting.drafters:
            for row in _drafted(setting, name, text[:context], held, next(ends)):
                report.row(table, f"{context:,}", *row)
    target.follow((), 0)


def _drafted(
    setting: Setting, name: str, text: Sequence[int], held: KVCache, until: float
) -> Iterator[tuple[str, ...]]:
    """Cells for each acceptance, after all have been measured in turn with plain decoding."""
    drafter = setting.drafters[name]
    draft_bytes = decode_bytes(drafter, [setting.drafted_from + ANSWER // 2])
    target_bytes = decode_bytes(setting.target, [len(text) + ANSWER // 2])
    runs = [partial(with_drafts, setting, drafter, text, held, acceptance) for acceptance in ACCEPTANCES]
    alone, *answers = in_turn([partial(plain, setting, text, held), *runs], until)
    for acceptance, answered in zip(ACCEPTANCES, answers, strict=True):
        drafted, accepted, rounds, alone_steps, emitted = (
            sum(getattr(run.tally, count) for run in answered)
            for count in ("drafted", "accepted", "rounds", "plain_steps", "emitted")
        )
        yield (
            name,
            f"{acceptance:g}",
            f"{accepted / drafted:.2f}" if drafted else "-",
            f"{drafted / rounds:.1f}" if rounds else "-",
            f"{emitted / (rounds + alone_steps):.2f}",
            f"{ANSWER / statistics.median(run.seconds for run in alone):,.1f}",
            middle([one.seconds / run.seconds for one, run in zip(alone, answered, strict=True)], 2),
            f"{statistics.median(run.predicted for run in answered):.2f}",
            f"{ceiling(acceptance, draft_bytes, target_bytes):.2f}",
            str(len(answered)),
        )


# ---- 3. reuse and company ----


def first_token_s(engine: Engine, prompt: Sequence[int]) -> float:
    """Seconds from asking to the first token of the answer, as a caller meets them."""
    ids = tuple(prompt)
    started, seconds = time.perf_counter(), None
    for event in engine.submit(Generation(ids, GREEDY, 2, stop_ids=NO_END)):
        if seconds is None and isinstance(event, Piece):
            seconds = time.perf_counter() - started
    assert seconds is not None
    return seconds


def asked_again(setting: Setting, context: int) -> tuple[float, list[float]]:
    """Seconds to the first token of the first question on a document, and of later ones, each a little longer."""
    setting.settle()
    document = setting.tokens(context)
    questions = [setting.tokens(16 * (i + 1), seed=i + 1) for i in range(1 + ASKED)]
    # By default the engine keeps finished prompts in a quarter of what is free.
    with setting.engine(prefix_bytes=setting.free_bytes // 2) as engine:
        first, *later = (first_token_s(engine, document + question) for question in questions)
    return first, later


def reuse(setting: Setting, report: Report, until: float) -> None:
    table = report.table(
        "A second question on the same document",
        "document | first question, s to first token | later questions, s | times faster | documents",
    )
    for context, ends in zip(setting.contexts, shares(len(setting.contexts), until), strict=True):
        try:
            (found,) = in_turn([partial(asked_again, setting, context)], ends)
        except RouterError as error:
            report.row(table, f"{context:,}", str(error), *[""] * 3)
            return
        later = [seconds for _, times in found for seconds in times]
        faster = [first / statistics.median(times) for first, times in found]
        firsts = [first for first, _ in found]
        cells = middle(firsts, 3), middle(later, 4), middle(faster), str(len(found))
        report.row(table, f"{context:,}", *cells)


def together(setting: Setting, rates: Rates, report: Report, until: float) -> None:
    context, target = setting.contexts[0], setting.target
    table = report.table(
        f"Requests that decode together, {context:,} tokens each",
        "requests | tokens/s of all | times one | floor, tokens/s | of the floor | runs",
    )
    counts = []
    for count in TOGETHER:
        room = context + DECODED + count * -(-context // setting.chunk_tokens)
        needed = count * target.cache_bytes(room, setting.chunk_tokens) + target.work_bytes(setting.chunk_tokens, room)
        if refusal := setting.refusal(needed):
            report.row(table, str(count), refusal, *[""] * 4)
        else:
            counts.append(count)
    prompts = [setting.tokens(context, seed=i) for i in range(max(TOGETHER))]
    found = in_turn([partial(by_engine, setting, prompts[:count], DECODED) for count in counts], until)
    speeds = [[run.decoded / run.decode_s for run in runs] for runs in found]
    for count, speed in zip(counts, speeds, strict=True):
        at_most = count * rates.bytes_per_s / decode_bytes(target, [context + DECODED // 2] * count)
        report.row(
            table,
            str(count),
            middle(speed, 1),
            f"{statistics.median(speed) / statistics.median(speeds[0]):.2f}",
            f"{at_most:,.1f}",
            f"{statistics.median(speed) / at_most:.0%}",
            str(len(speed)),
        )


# ---- the program ----


def run(setting: Setting, report: Report, seconds: float) -> None:
    """All parts. seconds: when to stop repeating; what is not there yet is still measured once."""
    gc.freeze()  # what is there now stays, so that looking for what can go takes no time between runs
    rates = measure(setting.target)
    report.text(
        f"Measured in this run: memory {rates.bytes_per_s / 1e9:,.1f} GB/s; matrix products {rates.flops / 1e12:.2f} "
        f"TFLOP/s; a decoding step of a model as deep and of next to no width {rates.launch_s * 1e3:.2f} ms. The "
        f"engine reads {setting.chunk_tokens:,} tokens a step; the draft models read the last "
        f"{setting.drafted_from:,} tokens. Medians (lowest–highest), sides in turn; ratios run by run."
    )
    started, share = time.perf_counter(), 0.0
    parts: tuple[tuple[float, Callable[[float], None]], ...] = (
        (0.35, partial(reading_and_writing, setting, rates, report)),
        (0.5, partial(rapid, setting, report)),
        (0.1, partial(reuse, setting, report)),
        (0.05, partial(together, setting, rates, report)),
    )
    for part, work in parts:
        share += part
        try:
            work(started + share * seconds)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            report.text(f"Memory ran out here: {error}")
        setting.settle()
    gc.unfreeze()
    report.sign()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=[*GEOMETRIES], default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], help="bfloat16 on CUDA, else float32")
    parser.add_argument("--contexts", help="tokens, with commas; 8k to 128k on CUDA, else 1k to 16k")
    parser.add_argument("--drafted-from", type=int, help="tokens the draft models read; 1024 on CUDA, else 512")
    parser.add_argument("--chunk-tokens", type=int, help="default: the engine's own for the device")
    parser.add_argument(
        "--seconds", type=float, default=400.0, help="when to stop repeating; every part runs at least once"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    on_cuda = device.type == "cuda"
    if not on_cuda:
        torch.set_num_threads(1)
    dtype = getattr(torch, chosen.dtype or ("bfloat16" if on_cuda else "float32"))
    contexts = chosen.contexts or ("8192,32768,65536,131072" if on_cuda else "1024,4096,16384")
    geometry = GEOMETRIES[chosen.geometry]
    transformer = random_llama(geometry, device, dtype)
    drafters = {"itself": Scripted(transformer)}
    if geometry.drafter is not None:
        drafters[geometry.drafter] = Scripted(random_llama(GEOMETRIES[geometry.drafter], device, dtype))
    target = Scripted(transformer)
    setting = Setting(
        target,
        drafters,
        sorted(map(int, contexts.split(","))),
        chosen.drafted_from or (1024 if on_cuda else 512),
        chosen.chunk_tokens or usual_chunk_tokens(device),
    )
    chosen.results.mkdir(parents=True, exist_ok=True)
    report = Report(
        chosen.results / f"runner_speed_{chosen.geometry}.md",
        f"The runner on random weights of the geometry `{chosen.geometry}`",
    )
    report.text(
        f"{gibibytes(target.weight_bytes)} of weights in {str(dtype).removeprefix('torch.')}, "
        f"{target.cache_bytes(1):,} bytes of keys and values a token, on {name_of(device)}. Acceptance is set by "
        "construction (see the program's head)."
    )
    run(setting, report, chosen.seconds)


if __name__ == "__main__":
    main()
