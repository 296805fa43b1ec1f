"""CoLoR's parts on its public data: what its preference pairs tell, and whether the trainer does what it should.

    python -m benchmarks.color

Pairs: the published ones against those that `compressors/training/preference.py` makes of the same summaries, with a
summary counting as correct where BM25 finds its passage by it first. Trainer: a tiny model with random weights, taught
long summaries first, then trained on the pairs in three ways. Writes benchmarks/results/color.md; three minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longroute.benchmarks.data import data_directory, records
from longroute.benchmarks.machine import measured_on
from longroute.compressors.color import color_prompt, prompt_ids
from longroute.compressors.training.orpo import BETA, Settings, batch_losses, encoded, train
from longroute.compressors.training.preference import (
    Pair,
    Query,
    Summarised,
    Verdict,
    build_pairs,
    divided,
)

RESULTS = Path(__file__).parent / "results" / "color.md"
SUMMARISERS = ("gpt4o_mini", "mistral", "phi3")
N_PAIRS = 200
MAX_TOKENS = 256
WRITTEN_TOKENS = 128
DRAWS = 8


# ---- pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """The data of the sets that have both published pairs and ranks. correct: by passage and summariser."""

    passages: list[Summarised]
    queries: list[Query]
    verdicts: list[Verdict]
    correct: dict[str, dict[str, bool]]
    published: list[dict[str, Any]]


def judged(data: Path) -> Judged:
    """Summaries with what BM25 made of them: correct is rank 1 of the passage, for every query that it answers."""
    folder = data / "color"
    ranks = list(records(folder / "summary_ranks.jsonl.gz"))
    verdicts, queries = [], []
    correct: dict[str, dict[str, bool]] = {}
    for number, record in enumerate(ranks):
        key = f"{record['source']} {record['passage_id']}"
        queries.append(Query(str(number), "", (key,)))
        for summariser in SUMMARISERS:
            if summariser in record["rank"]:
                right = record["rank"][summariser] == 1
                verdicts.append(Verdict(str(number), summariser, right))
                known = correct.setdefault(key, {})
                known[summariser] = known.get(summariser, True) and right
    passages = []
    for record in records(folder / "passages.jsonl.gz"):
        key = f"{record['source']} {record['passage_id']}"
        if key in correct:
            made = {name: record.get(f"summary_{name}") or "" for name in SUMMARISERS}
            passages.append(Summarised(key, record["text"], made))
    published = list(records(folder / "pairs.jsonl.gz"))
    return Judged(passages, queries, verdicts, correct, published)


def pair_tables(found: Judged) -> list[str]:
    cases = Counter[str]()
    for outcome in found.correct.values():
        right = sum(outcome.values())
        cases["all wrong" if right == 0 else "all correct" if right == len(outcome) else "some of each"] += 1
    hard = build_pairs(found.passages, found.queries, found.verdicts)
    every = build_pairs(found.passages, found.queries, found.verdicts, hard=False)
    strong = [pair for pair in hard if not pair.weak]
    longer = sum(len(pair.chosen) >= len(pair.rejected) for pair in strong)
    lines = [
        "| summaries of a passage | passages | pairs, hard | pairs, all |",
        "|---|---|---|---|",
    ]
    by_id = {name: _cases_of(pairs, found) for name, pairs in (("hard", hard), ("all", every))}
    lines += [
        *(
            f"| {case} | {cases[case]:,} | {by_id['hard'][case]:,} | {by_id['all'][case]:,} |"
            for case in ("some of each", "all correct", "all wrong")
        ),
        "",
        f"Of the {len(strong):,} pairs with some of each, the chosen summary is the longer one, or as long, in "
        f"{longer:,} ({100 * longer / max(len(strong), 1):.0f} %).",
    ]
    return lines + _published(found, hard)


def _cases_of(pairs: Sequence[Pair], found: Judged) -> Counter[str]:
    cases = Counter[str]()
    for pair in pairs:
        outcome = list(found.correct[pair.passage_id].values())
        cases["some of each" if not pair.weak else "all correct" if all(outcome) else "all wrong"] += 1
    return cases


def _published(found: Judged, ours: Sequence[Pair]) -> list[str]:
    """What the verdicts say about the published pairs."""
    verdicts = Counter[tuple[bool, bool]]()
    shorter = same = with_ours = 0
    made = {pair.passage_id: pair for pair in ours}
    for record in found.published:
        shorter += len(record["chosen"]) <= len(record["rejected"])
        outcome = found.correct.get(f"{record['source']} {record['passage_id']}", {})
        chosen, rejected = record["chosen_model"], record["rejected_model"]
        if chosen not in outcome or rejected not in outcome:
            continue
        verdicts[outcome[chosen], outcome[rejected]] += 1
        own = made.get(f"{record['source']} {record['passage_id']}")
        if own is not None:
            with_ours += 1
            same += (own.chosen_by, own.rejected_by) == (chosen, rejected)
    total = sum(verdicts.values())
    said = {True: "yes", False: "no"}
    return [
        "",
        f"Published pairs: {len(found.published):,}, the chosen summary not the longer one in {shorter:,}. "
        f"Of these, {total:,} have a verdict on both summaries:",
        "",
        "| chosen found | rejected found | published pairs | |",
        "|---|---|---|---|",
        *(
            f"| {said[c]} | {said[r]} | {verdicts[c, r]:,} | {100 * verdicts[c, r] / total:.0f} % |"
            for c, r in ((True, False), (True, True), (False, False), (False, True))
        ),
        "",
        f"Of {with_ours:,} passages with a published pair and one of ours, {same:,} "
        f"({100 * same / max(with_ours, 1):.0f} %) have the same two summaries in the same roles.",
    ]


# ---- trainer ---------------------------------------------------------------------------------------------------------


def tiny_model(texts: Sequence[str], vocabulary_size: int = 2000) -> tuple[Any, Any]:
    """A causal language model with random weights, and a tokenizer trained on these texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    own.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast  # untyped there
    tokenizer = fast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", pad_token="</s>")  # noqa: S106
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4}
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(**size, **heads, **ends, vocab_size=len(tokenizer), max_position_embeddings=1024)
    return LlamaForCausalLM(config), tokenizer


def written_tokens(model: Any, tokenizer: Any, pairs: Sequence[Pair], seed: int = 0) -> tuple[float, float, float]:
    """Mean length of what the model writes about the passages, in tokens, half its 95 % interval, and the share that
    it ended by itself.

    Drawn at temperature 1: the likeliest text of so small a model goes round in circles and never ends.
    """
    import torch

    torch.manual_seed(seed)
    means, ended = [], 0
    for pair in pairs:
        ids = torch.tensor([prompt_ids(tokenizer, color_prompt(pair.passage))] * DRAWS)
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                max_new_tokens=WRITTEN_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )[:, ids.shape[1] :]
        lengths = []
        for row in written.tolist():
            length = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else None
            lengths.append(WRITTEN_TOKENS if length is None else length)
            ended += length is not None
        means.append(np.mean(lengths))
    return float(np.mean(means)), float(1.96 * np.std(means) / np.sqrt(len(means))), ended / (DRAWS * len(means))


@dataclass(frozen=True, slots=True)
class Arm:
    """A model on the validation pairs. The loss is that of ORPO with the length factor, whatever it was trained by.

    rejected_longer: log odds over the pairs whose rejected summary is more than ten tokens longer.
    """

    name: str
    loss: float
    nll: float
    log_odds: float
    rejected_longer: float
    accuracy: float
    tokens: float
    error: float
    ended: float
    seconds: float


def measured(name: str, model: Any, tokenizer: Any, pairs: Sequence[Pair], seconds: float) -> Arm:
    import torch

    model.eval()
    examples = [encoded(tokenizer, pair) for pair in pairs]
    with torch.inference_mode():
        losses = [batch_losses(model, [example]) for example in examples]
    odds = np.array([float(one.log_odds) for one in losses])
    longer = np.array([len(example.rejected) - len(example.chosen) > 10 for example in examples])
    tokens, error, ended = written_tokens(model, tokenizer, pairs)
    return Arm(
        name,
        float(np.mean([float(one.total) for one in losses])),
        float(np.mean([float(one.nll) for one in losses])),
        float(odds.mean()),
        float(odds[longer].mean()),
        float((odds > 0).mean()),
        tokens,
        error,
        ended,
        seconds,
    )


def arms(pairs: Sequence[Pair]) -> tuple[str, list[Arm]]:
    """The setting, then the model after learning long summaries, and after each way of learning from pairs."""
    import torch

    torch.set_num_threads(1)
    texts = [text for pair in pairs for text in (color_prompt(pair.passage)[0].content, pair.chosen, pair.rejected)]
    model, tokenizer = tiny_model(texts)
    fitting = [pair for pair in pairs if len(encoded(tokenizer, pair)) <= MAX_TOKENS]
    training, validation = divided(fitting[:N_PAIRS], share=0.2)
    examples = [encoded(tokenizer, pair) for pair in validation]
    prompt, chosen, rejected = (
        np.mean([len(getattr(example, part)) for example in examples]) for part in ("prompt", "chosen", "rejected")
    )
    setting = (
        f"{len(training)} training and {len(validation)} validation pairs of at most {MAX_TOKENS} tokens; validation "
        f"means: prompt {prompt:.0f} tokens, chosen {chosen:.0f}, rejected {rejected:.0f}. "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, one thread."
    )
    likelihood = Settings(learning_rate=3e-3, beta=0.0, batch=8, accumulation=1, epochs=6, warmup_steps=20)
    shorter = replace(likelihood, learning_rate=1e-3, epochs=4)
    ways = {
        "likelihood of the chosen alone": shorter,
        "ORPO": replace(shorter, beta=BETA, length=False),
        "ORPO with length factor": replace(shorter, beta=BETA),
    }
    with tempfile.TemporaryDirectory() as scratch:

        def after(name: str, settings: Settings, given: Sequence[Pair], held_out: Sequence[Pair]) -> Arm:
            started = time.process_time()
            train(model, tokenizer, given, held_out, Path(scratch) / name, settings)
            return measured(name, model, tokenizer, validation, time.process_time() - started)

        long_first = [
            [replace(p, chosen=p.rejected, rejected=p.chosen) for p in part] for part in (training, validation)
        ]
        found = [after("before: long summaries", likelihood, *long_first)]
        start = {name: value.clone() for name, value in model.state_dict().items()}
        for name, settings in ways.items():
            model.load_state_dict(start)
            found.append(after(name, settings, training, validation))
    return setting, found


# ---- report ----------------------------------------------------------------------------------------------------------


def report(pairs: Sequence[str], setting: str, found: Sequence[Arm]) -> str:
    about = measured_on("torch", "transformers")
    lines = [
        "# CoLoR: preference pairs and their trainer",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
        "## Pairs: success and length",
        "",
        "Summaries of FEVER, FiQA, Qampari and SciFact passages by three models, from the public CoLoR repository "
        "(going-doer/CoLoR; no licence file, the sources have terms of their own; no text is shown here). Correct: "
        "BM25 over all summaries of the model ranks the passage first, for every query it answers. That is not the "
        "paper's judge, a chat model that reads the corpus, so the counts say how the rule works, not what the paper "
        "had.",
        "",
        *pairs,
        "",
        "## Trainer: a tiny model with random weights",
        "",
        setting,
        "",
        "| | loss | NLL | log odds | of long rejected | chosen likelier | tokens written | ended | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {arm.name} | {arm.loss:.3f} | {arm.nll:.3f} | {arm.log_odds:+.3f} | {arm.rejected_longer:+.3f} | "
            f"{100 * arm.accuracy:.0f} % | {arm.tokens:.1f} ± {arm.error:.1f} | {100 * arm.ended:.0f} % | "
            f"{arm.seconds:.0f} |"
            for arm in found
        ),
        "",
        "Loss: of ORPO with the length factor, on validation pairs, whatever a row was trained by. Log odds: of chosen "
        f"against rejected. Tokens written: about validation passages, at temperature 1, {DRAWS} each, "
        f"{WRITTEN_TOKENS} at most, with the 95 % interval over passages. The three ways start from the same weights "
        "(the first row) and see the same pairs as often.",
        "",
        *READING,
    ]
    return "\n".join(lines) + "\n"


READING = (
    "What this shows: the loss goes down, and the trainer moves length and preference in the direction it should, in "
    "CPU minutes. What shortens is ORPO: the length factor lets pairs in the right order go sooner, and here it did "
    "not shorten further. What it cannot show: a model of this size writes words, not summaries, and learns a length "
    "and not a judgement. Whether passages are found better needs a real model, and was not measured.",
)


def main() -> None:
    data = data_directory()
    if data is None or not (data / "color").is_dir():
        sys.exit("Set LONGROUTE_DATA to a folder that holds the set `color`.")
    found = judged(data)
    pairs = build_pairs(found.passages, found.queries, found.verdicts)
    text = report(pair_tables(found), *arms(pairs))
    RESULTS.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
