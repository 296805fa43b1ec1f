"""Speculation against plain decoding on a CPU: measured beside predicted, by context length and acceptance.

    python -m benchmarks.rapid_speed

One transformer with random weights is target and draft at once; the target holds 1k to 16k tokens of context, the draft
512. Weights without training agree on nothing, so acceptance is set by construction: the draft model runs in full, and
then its logits are replaced by the target's next token, right with a stated chance. What is timed is real; how often a
trained model would agree with itself on less context is not shown here. Greedy, exact mode, automatic draft length;
every text is checked to be the target's own. Prefill is left out on both sides. Where a draft cannot pay the engine
leaves it out and decodes plainly, and so does this. Seconds are processor time of the one thread that computes, so that
other work on the machine counts less.
Writes results/rapid_speed.md. Some minutes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from longroute.router.runner.draft_length import DraftLength
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.speculative import Side, SpeculativeDecoding

from .machine import measured_on

RESULTS = Path(__file__).parent / "results" / "rapid_speed.md"
CONTEXTS = {1024: 7, 4096: 7, 16384: 3}  # tokens → repeats: short steps are timed less exactly
RETRIEVED = 512
ACCEPTANCES = (0.0, 0.8, 0.95)
TOKENS = 128
VOCABULARY = 2048
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
    decoding = SpeculativeDecoding(
        Side(target, prompt, held.copy_first(len(prompt) - 1, len(prompt) + len(answer))),
        Side(draft, part),
        max_tokens=len(answer),
        sampling=SamplingOptions(temperature=0),
        stop_ids=frozenset(),
        length=length,
        clock=time.thread_time,
    )
    if not decoding.drafts:
        return decoding, length, plain(target, prompt, held, len(answer))[1]
    while decoding.prefill():
        pass
    started = time.thread_time()
    while decoding.step().reason is None:
        pass
    seconds = time.thread_time() - started
    assert list(decoding.tokens) == answer, "not the target's own text"
    return decoding, length, seconds


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformer = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=VOCABULARY, **SHAPE))  # type: ignore[no-untyped-call]
    target, draft = LanguageModel(transformer), Agreeing(transformer)
    prompt = torch.randint(0, VOCABULARY, (max(CONTEXTS),)).tolist()
    held = target.new_cache(max(CONTEXTS))
    for start in range(0, max(CONTEXTS), 1024):
        target.forward(target.tokens(prompt[start : start + 1024]), held)
    lines = [
        "# Speculation against plain decoding on a CPU\n",
        f"{target.weight_bytes / 2**20:.0f} MiB of weights in float32, {target.cache_bytes(1):,} bytes of keys and "
        f"values a token; the draft reads {RETRIEVED} tokens. {TOKENS} tokens an answer; medians of 3 to 7, plain "
        "and speculative runs in turn; seconds of processor time. Acceptance is set by construction (see the program's "
        "head). Left out: the text is not eight times as long as what the draft reads, so the engine decodes plainly, "
        "which shows how far noise goes.\n",
        "| context | plain tokens/s | acceptance set | acceptance seen | tokens a step | measured | predicted |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
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
            steps = tally.rounds + tally.plain_steps
            a_step = f"{tally.emitted / steps:.2f}" if steps else "left out"
            lines.append(
                f"| {context:,} | {TOKENS / plain_s:.1f} | {agrees:g} | {seen} | {a_step} | {ratio:.2f} | "
                f"{max(1.0, predicted):.2f} |"
            )
            print(lines[-1], flush=True)
    lines.append(f"\n{'; '.join(measured_on('torch', 'transformers').values())}")
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
