"""Speculation against plain decoding on a CPU: measured beside predicted, by context length and acceptance.

    python -m benchmarks.rapid_speed [FOLDER]

Two tables. (1) One transformer with random weights is target and draft at once; the target holds 1k to 16k tokens of
context, the draft 512. Weights without training agree on nothing, so acceptance is set by construction: the draft model
runs in full, and then its logits are replaced by the target's next token, right with a stated chance. What is timed is
real; how often a trained model would agree with itself on less context is not shown there. (2) The trained model of
`small_model.py` (FOLDER, made where it is not there yet) on its own questions; the drafter reads one passage of 20
sentences that holds the answer or does not. Its answers have a dozen tokens, too few to learn from; so the draft length
is fixed, or automatic, or automatic and going on with what earlier answers of the same lengths have shown. The
prediction for fixed ones is from the mean acceptance and step times of the same runs, as if acceptances were
independent. Greedy, exact mode; every text is checked to be the target's own. Prefill is left out on both sides.
Seconds are processor time of the one thread that computes, so that other work on the machine counts less.
Writes results/rapid_speed.md. Some minutes.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from longroute.router.runner.draft_length import DraftLength, Round, predicted_speedup
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.speculative import Side, SpeculativeDecoding
from longroute.router.runner.tokenizer import Tokenizer

from .machine import measured_on
from .rapid_quality import cases
from .small_model import FOLDER, make

RESULTS = Path(__file__).parent / "results" / "rapid_speed.md"
CONTEXTS = {1024: 7, 4096: 3, 16384: 3}  # tokens → repeats: short steps are timed less exactly
RETRIEVED = 512
ACCEPTANCES = (0.0, 0.8, 0.95)
TOKENS = 128
VOCABULARY = 2048
LENGTHS, FIXED = (1000, 4000, 16000), 8  # tokens of text for the trained model; tokens drafted at once
QUESTIONS, TRAINED_REPEATS = 8, 3
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "initializer_range": 0.2,
}


class Agreeing(LanguageModel):
    """A model that runs as it is and then says what `answer` says next, right with a fixed chance."""

    prompt_tokens = 0
    answer: Sequence[int] = ()
    agrees = 1.0
    chance = random.Random(7)

    def forward(self, tokens: Tensor, cache: Any, *, logits: Any = "last") -> Tensor:
        found = super().forward(tokens, cache, logits=logits)
        place = cache.n_tokens - self.prompt_tokens
        if 0 <= place < len(self.answer):
            found = torch.zeros_like(found)
            right = self.chance.random() < self.agrees
            found[:, -1, (self.answer[place] + (not right)) % self.vocab_size] = 20.0
        return found


def plain(model: LanguageModel, prompt: Sequence[int], held: Any, n: int) -> tuple[list[int], float]:
    """(greedy continuation, seconds) by the target alone."""
    ids, cache = list(prompt), held.copy_first(len(prompt) - 1, len(prompt) + n)
    started = time.thread_time()
    for _ in range(n):
        ids.append(int(model.forward(model.tokens(ids[cache.n_tokens :]), cache)[0, -1].argmax()))
    return ids[len(prompt) :], time.thread_time() - started


def speculate(
    target: LanguageModel, draft: Agreeing, prompt: Sequence[int], held: Any, answer: list[int], agrees: float
) -> tuple[SpeculativeDecoding, DraftLength, float]:
    part = prompt[-RETRIEVED:]
    draft.prompt_tokens, draft.answer, draft.agrees, draft.chance = len(part), answer, agrees, random.Random(7)
    length = DraftLength()
    decoding, seconds = decode(target, draft, prompt, part, held, len(answer), length)
    assert list(decoding.tokens) == answer, "not the target's own text"
    return decoding, length, seconds


def decode(
    target: LanguageModel,
    draft: LanguageModel,
    prompt: Sequence[int],
    part: Sequence[int],
    held: Any,
    n: int,
    length: DraftLength,
) -> tuple[SpeculativeDecoding, float]:
    """A decoding of n tokens that has ended, and the seconds it took without the prefill."""
    decoding = SpeculativeDecoding(
        Side(target, prompt, held.copy_first(len(prompt) - 1, len(prompt) + n)),
        Side(draft, part),
        max_tokens=n,
        sampling=SamplingOptions(temperature=0),
        stop_ids=frozenset(),
        length=length,
        clock=time.thread_time,
    )
    while decoding.prefill():
        pass
    started = time.thread_time()
    while decoding.step().reason is None:
        pass
    return decoding, time.thread_time() - started


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
        drafted = sum(done.drafted for done in self.rounds)
        judged = sum(done.accepted + done.refused for done in self.rounds)
        kept = sum(done.accepted for done in self.rounds) / judged
        draft_step = sum(done.draft_s for done in self.rounds) / drafted
        verify = sum(done.verify_s for done in self.rounds) / len(self.rounds)
        mean = round(drafted / len(self.rounds))
        return predicted_speedup(kept, mean, draft_step / plain_step_s, verify / plain_step_s)


def trained_rows(model: LanguageModel, tokenizer: Tokenizer) -> Iterator[str]:
    for n_tokens in LENGTHS:
        some = [case for _, case in zip(range(QUESTIONS), cases(model, tokenizer, n_tokens), strict=False)]
        answers = [until_end(model, case.full, case.held) for case in some]
        for retrieval in ("right", "wrong"):
            told = Fixed(FIXED), DraftLength()
            for name, length in ((str(FIXED), told[0]), ("automatic", None), ("automatic, goes on", told[1])):
                plain_s = speculative_s = 0.0
                steps = accepted = offered = tokens = 0
                for case, answer in [*zip(some, answers, strict=True)] * TRAINED_REPEATS:
                    plain_s += plain(model, case.full, case.held, len(answer))[1]
                    part, own = case.retrieved(retrieval), length or DraftLength()
                    decoding, seconds = decode(model, model, case.full, part, case.held, len(answer), own)
                    assert list(decoding.tokens) == answer, "not the target's own text"
                    tally = decoding.tally
                    speculative_s += seconds
                    steps, tokens = steps + tally.rounds + tally.plain_steps, tokens + tally.emitted
                    accepted, offered = accepted + tally.accepted, offered + tally.drafted
                predicted = ""
                if isinstance(length, Fixed):
                    predicted = f"{length.predicted(plain_s / tokens):.2f}"
                elif length:
                    predicted = f"{max(1.0, length.best()[1]):.2f}"
                kept = f"{accepted / offered:.2f}" if offered else "-"
                yield (
                    f"| {len(some[0].full):,} | {tokens / plain_s:.0f} | {retrieval} | {name} | {kept} | "
                    f"{tokens / steps:.2f} | {plain_s / speculative_s:.2f} | {predicted} |"
                )


def until_end(model: LanguageModel, prompt: Sequence[int], held: Any, most: int = 24) -> list[int]:
    """The greedy answer with the token that ends it."""
    ids, _ = plain(model, prompt, held, most)
    ends = [place for place, token in enumerate(ids) if token in model.eos_ids]
    return ids[: ends[0] + 1] if ends else ids


def main() -> None:
    torch.set_num_threads(1)
    lines = ["# Speculation against plain decoding on a CPU\n", *_random_weights(), *_trained()]
    lines.append(f"\n{'; '.join(measured_on('torch', 'transformers').values())}")
    RESULTS.write_text("\n".join(lines) + "\n")


def _trained() -> Iterator[str]:
    folder = make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    model, tokenizer = LanguageModel.load(folder, device="cpu"), Tokenizer.load(folder)
    yield (
        f"\n## A trained model\n\n{model.weight_bytes / 2**20:.1f} MiB of weights, {model.cache_bytes(1):,} bytes of "
        f"keys and values a token. {QUESTIONS} questions, {TRAINED_REPEATS} times each, plain and speculative runs in "
        "turn; ratios of summed times.\n\n"
        "| context | plain tokens/s | retrieval | drafted | kept | tokens a step | measured | predicted |\n"
        "|---:|---:|---|---:|---:|---:|---:|---:|"
    )
    for line in trained_rows(model, tokenizer):
        print(line, flush=True)
        yield line


def _random_weights() -> Iterator[str]:
    torch.manual_seed(0)
    transformer = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=VOCABULARY, **SHAPE))  # type: ignore[no-untyped-call]
    target, draft = LanguageModel(transformer), Agreeing(transformer)
    prompt = torch.randint(0, VOCABULARY, (max(CONTEXTS),)).tolist()
    held = target.new_cache(max(CONTEXTS))
    for start in range(0, max(CONTEXTS), 1024):
        target.forward(target.tokens(prompt[start : start + 1024]), held)
    yield (
        "## Random weights\n\n"
        f"{target.weight_bytes / 2**20:.0f} MiB of weights in float32, {target.cache_bytes(1):,} bytes of keys and "
        f"values a token; the draft reads {RETRIEVED} tokens. {TOKENS} tokens an answer; medians of 3 to 7, plain "
        "and speculative runs in turn; seconds of processor time. Acceptance is set by construction (see the program's "
        "head).\n\n"
        "| context | plain tokens/s | acceptance set | acceptance seen | tokens a step | measured | predicted |\n"
        "|---:|---:|---:|---:|---:|---:|---:|"
    )
    for context, repeats in CONTEXTS.items():
        text = prompt[:context]
        answer, _ = plain(target, text, held, TOKENS)
        for agrees in ACCEPTANCES:
            ratios = []
            for _ in range(repeats):
                _, plain_s = plain(target, text, held, TOKENS)
                decoding, length, seconds = speculate(target, draft, text, held, answer, agrees)
                ratios.append((plain_s / seconds, plain_s, decoding.tally, length.best()[1]))
            ratio, plain_s, tally, predicted = sorted(ratios, key=lambda run: run[0])[repeats // 2]
            seen = f"{tally.acceptance:.2f}" if tally.acceptance is not None else "-"
            line = (
                f"| {context:,} | {TOKENS / plain_s:.1f} | {agrees:g} | {seen} | "
                f"{tally.emitted / (tally.rounds + tally.plain_steps):.2f} | {ratio:.2f} | {max(1.0, predicted):.2f} |"
            )
            print(line, flush=True)
            yield line


if __name__ == "__main__":
    main()
