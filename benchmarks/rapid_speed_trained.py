"""Speculation against plain decoding with a trained model on a CPU: measured beside predicted, by length of the text.

    python -m benchmarks.rapid_speed_trained [FOLDER]

The model of `small_model.py` (FOLDER, made where it is not there yet) on its own questions; the drafter reads one
passage of 20 sentences that holds the answer or does not. `rapid_speed.py` has longer answers, of random weights. Here
answers have a dozen tokens, too few to learn from; so the draft length is fixed, or automatic, or automatic and going
on with what earlier answers of the same lengths have shown. The prediction for fixed ones is from the mean acceptance
and step times of the same runs, as if acceptances were independent. Greedy, exact mode; every text is checked to be the
target's own. Prefill is left out on both sides. Seconds are processor time of the one thread that computes.
Writes results/rapid_speed_trained.md. Some minutes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from longroute.router.runner.draft_length import DraftLength, Round, predicted_speedup
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.speculative import Side, SpeculativeDecoding
from longroute.router.runner.tokenizer import Tokenizer

from .machine import measured_on
from .rapid_quality import MOST_TOKENS, Case, cases
from .rapid_speed import plain
from .small_model import FOLDER, make

RESULTS = Path(__file__).parent / "results" / "rapid_speed_trained.md"
LENGTHS, FIXED = (1000, 4000, 16000), 8  # tokens of text; tokens drafted at once
QUESTIONS, REPEATS = 4, 9


class Fixed(DraftLength):
    """Always the same length; remembers what it was told."""

    def __init__(self, drafted: int) -> None:
        super().__init__()
        self._drafted = drafted
        self.rounds: list[Round] = []

    def choose(self, remaining: int) -> int:
        return min(self._drafted, remaining - 1)

    def saw_round(self, done: Round) -> None:
        self.rounds.append(done)

    def predicted(self, plain_step_s: float) -> float:
        if not self.rounds:
            return 1.0
        drafted = sum(done.drafted for done in self.rounds)
        judged = sum(done.accepted + done.refused for done in self.rounds)
        kept = sum(done.accepted for done in self.rounds) / judged
        draft_step = sum(done.draft_s for done in self.rounds) / drafted
        verify = sum(done.verify_s for done in self.rounds) / len(self.rounds)
        mean = round(drafted / len(self.rounds))
        return predicted_speedup(kept, mean, draft_step / plain_step_s, verify / plain_step_s)


def decode(
    model: LanguageModel, case: Case, retrieval: str, n: int, length: DraftLength
) -> tuple[SpeculativeDecoding, float]:
    """A decoding of n tokens that has ended, and the seconds it took without the prefill. Plain where nothing may be
    drafted, as in the engine.
    """
    part = case.retrieved(retrieval)
    decoding = SpeculativeDecoding(
        Side(model, case.full, case.cache(case.full)),
        Side(model, part, case.cache(part)),
        max_tokens=n,
        sampling=SamplingOptions(temperature=0),
        stop_ids=frozenset(),
        length=length,
        clock=time.thread_time,
    )
    if not decoding.drafts:
        return decoding, plain(model, case.full, case.held[case.full], n)[1]
    while decoding.prefill():
        pass
    started = time.thread_time()
    while decoding.step().reason is None:
        pass
    return decoding, time.thread_time() - started


def rows(model: LanguageModel, tokenizer: Tokenizer) -> Iterator[str]:
    for n_tokens in LENGTHS:
        some = list(islice(cases(model, tokenizer, n_tokens), QUESTIONS))
        answers = [until_end(model, case) for case in some]
        for retrieval in ("right", "wrong"):
            told = Fixed(FIXED), DraftLength()
            for name, length in ((str(FIXED), told[0]), ("automatic", None), ("automatic, goes on", told[1])):
                times: dict[int, list[tuple[float, float]]] = {i: [] for i in range(QUESTIONS)}
                steps = accepted = offered = tokens = 0
                for i, case, answer in [*zip(times, some, answers, strict=True)] * REPEATS:
                    plain_s = plain(model, case.full, case.held[case.full], len(answer))[1]
                    own = length or DraftLength()
                    decoding, seconds = decode(model, case, retrieval, len(answer), own)
                    assert not decoding.drafts or list(decoding.tokens) == answer, "not the target's own text"
                    tally = decoding.tally
                    times[i].append((plain_s, seconds))
                    steps, tokens = steps + tally.rounds + tally.plain_steps, tokens + len(answer)
                    accepted, offered = accepted + tally.accepted, offered + tally.drafted
                plain_s, speculative_s = (
                    sum(median(run[k] for run in runs) for runs in times.values()) for k in (0, 1)
                )
                written = tokens / REPEATS
                predicted = ""
                if isinstance(length, Fixed):
                    predicted = f"{length.predicted(plain_s / written):.2f}"
                elif length:
                    predicted = f"{max(1.0, length.best()[1]):.2f}"
                kept = f"{accepted / offered:.2f}" if offered else "-"
                a_step = f"{tokens / steps:.2f}" if steps else "left out"
                yield (
                    f"| {len(some[0].full):,} | {written / plain_s:.0f} | {retrieval} | {name} | {kept} | "
                    f"{a_step} | {plain_s / speculative_s:.2f} | {predicted} |"
                )


def until_end(model: LanguageModel, case: Case) -> list[int]:
    """The greedy answer with the token that ends it."""
    ids, _ = plain(model, case.full, case.held[case.full], MOST_TOKENS)
    ends = [place for place, token in enumerate(ids) if token in model.eos_ids]
    return ids[: ends[0] + 1] if ends else ids


def main() -> None:
    torch.set_num_threads(1)
    folder = make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    model, tokenizer = LanguageModel.load(folder, device="cpu"), Tokenizer.load(folder)
    lines = [
        "# Speculation against plain decoding with a trained model on a CPU\n",
        f"{model.weight_bytes / 2**20:.1f} MiB of weights in float32, {model.cache_bytes(1):,} bytes of keys and "
        f"values for each token. {QUESTIONS} questions, {REPEATS} times each, plain and speculative runs in turn; "
        "ratios of summed medians. Left out: the text is not eight times as long as the drafter's, so the engine "
        "decodes plainly, which shows how far noise goes.\n",
        "| context | plain tokens/s | retrieval | drafted | kept | tokens a step | measured | predicted |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for line in rows(model, tokenizer):
        print(line, flush=True)
        lines.append(line)
    lines.append(f"\n{'; '.join(measured_on('torch', 'transformers').values())}")
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
