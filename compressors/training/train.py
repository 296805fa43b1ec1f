"""Trains the weights that `Embedded` ships: vocabulary, lexical head, encoder head.

    python -m longroute.compressors.training.train EXAMPLES.jsonl.gz --compressed-field summary_phi3 --out DIRECTORY

EXAMPLES holds one JSON object per line, with a text and its compression by a language model (`distil.py` makes them).
Needs torch, from the extra `embed`. One core is enough: about three minutes for 2,900 passages.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...router.errors import ConfigError, MissingExtra, RouterError
from ..compression import Bools, Floats
from ..keep_head import WIDTH, Head, Tier, save
from ..lexical_features import F32, NAMES, SUFFIXES, Described, Vocabulary, describe, form_of
from ..word_encoder import WordEncoder
from .distil import Annotated, Example, quality_controlled
from .evaluate import Agreement, agreement

if TYPE_CHECKING:
    from torch import Tensor, nn

MIN_TEXTS = 4
"""In how many texts a word must occur to get a place in the vocabulary."""
WORD_SIZE = 8
HIDDEN: dict[Tier, int] = {"lexical": 48, "encoder": 64}
EPOCHS: dict[Tier, int] = {"lexical": 6, "encoder": 5}  # more learn single texts by heart
PROJECTED = 64
BATCH = 24
VALIDATION_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Lesson:
    """One text to learn from. states: of the encoder, float16 (n, d), or None."""

    described: Described
    keep: Bools
    states: Any = None

    @property
    def labelled(self) -> Bools:
        return ~self.described.signs


def read_examples(path: Path, text_field: str, compressed_field: str, split: str | None = None) -> list[Example]:
    """The records that have both fields, and, if given, the value `split` in the field of that name.

    Raises ConfigError where the file cannot be read.
    """
    open_text: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with open_text(path, "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} could not be read as lines of JSON: {error}") from error
    return [
        Example(record[text_field], record[compressed_field], record.get("source", ""))
        for record in records
        if record.get(text_field) and record.get(compressed_field) and (split is None or record.get("split") == split)
    ]


def build_vocabulary(texts: Sequence[str], min_texts: int = MIN_TEXTS) -> Vocabulary:
    """The words that occur in at least min_texts texts, the commonest first."""
    everywhere: Counter[str] = Counter()
    in_texts: Counter[str] = Counter()
    for text in texts:
        forms = [form for word in text.split() if (form := form_of(word))]
        everywhere.update(forms)
        in_texts.update(set(forms))
    words = [word for word, n in in_texts.most_common() if n >= min_texts and "\n" not in word]
    n_words = sum(everywhere.values())
    return Vocabulary(
        {word: row for row, word in enumerate(words)},
        np.array([-np.log(in_texts[word] / len(texts)) for word in words], np.float32),
        np.array([everywhere[word] / n_words for word in words], np.float32),
    )


def train_head(lessons: Sequence[Lesson], vocabulary: Vocabulary, tier: Tier, *, seed: int, epochs: int) -> Head:
    """Fit one head by Adam on the log loss of the labels.

    Labels are compared within their text only: the share of a text that was kept is given, as an offset, for how much
    is kept is not for the head to say.
    """
    torch = _torch()
    torch.manual_seed(seed)
    shuffle = random.Random(seed)
    numbers = np.concatenate([lesson.described.numbers for lesson in lessons])
    mean, scale = numbers.mean(axis=0), np.maximum(numbers.std(axis=0), 1e-3)
    dimensions = lessons[0].states.shape[1] if tier == "encoder" else 0
    network = _network(len(vocabulary.rows) + SUFFIXES, dimensions, HIDDEN[tier], mean, scale)
    vectors = [parameter for name, parameter in network.named_parameters() if name == "vectors.weight"]
    others = [parameter for name, parameter in network.named_parameters() if name != "vectors.weight"]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.1}], lr=2e-3
    )
    steps = epochs * -(-len(lessons) // BATCH)
    # torch divides by zero where the rise takes one step, which is a fifth of five.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=max(steps, 6), pct_start=0.2)
    network.train()
    for _ in range(epochs):
        # Texts of about one length together, in an order that changes.
        order = sorted(range(len(lessons)), key=lambda i: len(lessons[i].keep) * shuffle.uniform(0.8, 1.25))
        batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        shuffle.shuffle(batches)
        for batch in batches:
            inputs, labels, weights, offsets = _padded([lessons[i] for i in batch], dimensions)
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                network(*inputs) + offsets, labels, reduction="none"
            )
            loss = (losses * weights).sum() / weights.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return _head(network, mean, scale)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(
            "Training needs the package torch, which is not installed. Install it with: pip install 'longroute[embed]'"
        ) from error
    return torch


def _network(rows: int, dimensions: int, hidden: int, mean: F32, scale: F32) -> nn.Module:
    """The twin of `Head.logits` in torch, with dropout. A test holds them together."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vectors = nn.Embedding(rows, WORD_SIZE)
            nn.init.normal_(self.vectors.weight, std=0.05)
            self.project = nn.Linear(dimensions, PROJECTED) if dimensions else None
            size = len(NAMES) + WORD_SIZE + (PROJECTED if dimensions else 0)
            self.first = nn.Conv1d(size, hidden, WIDTH, padding=WIDTH // 2)
            self.second = nn.Conv1d(hidden, hidden, WIDTH, padding=WIDTH // 2)
            self.out = nn.Linear(hidden, 1)
            self.dropout = nn.Dropout(0.35)
            self.mean, self.scale = torch.from_numpy(mean), torch.from_numpy(scale)

        def forward(self, numbers: Tensor, found: Tensor, inside: Tensor, states: Tensor | None) -> Tensor:
            inputs = [(numbers - self.mean) / self.scale, self.dropout(self.vectors(found))]
            if self.project is not None and states is not None:
                inputs.append(self.dropout(torch.relu(self.project(states.float()))))
            # Zeros beyond the end of a text, in every layer: a batch must not change what a text alone would give.
            hidden = (torch.cat(inputs, dim=2) * inside).transpose(1, 2)
            for layer in (self.first, self.second):
                hidden = self.dropout(torch.relu(layer(hidden))) * inside.transpose(1, 2)
            scores: Tensor = self.out(hidden.transpose(1, 2)).squeeze(2)
            return scores

    return Network()


def _padded(lessons: Sequence[Lesson], dimensions: int) -> tuple[tuple[Any, ...], Any, Any, Any]:
    """What the network reads, the labels, which of them count, and the log odds of keeping in each text."""
    import torch

    longest = max(len(lesson.keep) for lesson in lessons)
    numbers = np.zeros((len(lessons), longest, len(NAMES)), np.float32)
    rows = np.zeros((len(lessons), longest), np.int64)
    inside = np.zeros((len(lessons), longest, 1), np.float32)
    labels, weights = np.zeros((len(lessons), longest), np.float32), np.zeros((len(lessons), longest), np.float32)
    states = np.zeros((len(lessons), longest, dimensions), np.float16) if dimensions else None
    offsets = np.zeros((len(lessons), 1), np.float32)
    for i, lesson in enumerate(lessons):
        n = len(lesson.keep)
        numbers[i, :n], rows[i, :n], inside[i, :n] = lesson.described.numbers, lesson.described.rows, 1
        labels[i, :n], weights[i, :n] = lesson.keep, lesson.labelled
        if states is not None:
            states[i, :n] = lesson.states
        rate = np.clip(lesson.keep[lesson.labelled].mean(), 0.02, 0.98)
        offsets[i] = np.log(rate / (1 - rate))
    arrays = [torch.from_numpy(array) for array in (numbers, rows, inside)]
    inputs = (*arrays, None if states is None else torch.from_numpy(states))
    return inputs, torch.from_numpy(labels), torch.from_numpy(weights), torch.from_numpy(offsets)


def _head(network: Any, mean: F32, scale: F32) -> Head:
    def array(parameter: Tensor) -> F32:
        return np.ascontiguousarray(parameter.detach().numpy(), np.float32)

    project = network.project
    return Head(
        mean=mean,
        scale=scale,
        vectors=array(network.vectors.weight),
        project=array(project.weight.T) if project is not None else np.zeros((0, 0), np.float32),
        project_bias=array(project.bias) if project is not None else np.zeros(0, np.float32),
        first=array(network.first.weight.permute(2, 1, 0)),
        first_bias=array(network.first.bias),
        second=array(network.second.weight.permute(2, 1, 0)),
        second_bias=array(network.second.bias),
        out=array(network.out.weight[0]),
        bias=array(network.out.bias[0]),
    )


def lessons_from(pairs: Sequence[Annotated], vocabulary: Vocabulary, encoder: WordEncoder | None) -> list[Lesson]:
    """Describe and, with an encoder, encode the texts of examples."""
    found: list[Lesson] = []
    for at in range(0, len(pairs), 64):
        group = pairs[at : at + 64]
        texts, words = [pair.example.text for pair in group], [pair.annotation.words for pair in group]
        states = encoder(texts, words) if encoder else [None] * len(group)
        found += [
            Lesson(
                describe(text, spans, vocabulary),
                pair.annotation.keep,
                None if state is None else state.astype(np.float16),
            )
            for text, spans, pair, state in zip(texts, words, group, states, strict=True)
        ]
    return found


def judged(head: Head, lessons: Sequence[Lesson]) -> Agreement:
    """How well a head does on texts."""

    def scores(lesson: Lesson) -> Floats:
        states = lesson.states.astype(np.float32) if head.dimensions else None
        return head.logits(lesson.described, states)[lesson.labelled]

    return agreement([scores(lesson) for lesson in lessons], [lesson.keep[lesson.labelled] for lesson in lessons])


def train(examples: Sequence[Example], *, max_texts: int, seed: int, about: dict[str, Any], out: Path) -> None:
    """From examples to weights in a folder. Raises ConfigError where too few are left after quality control."""
    torch = _torch()
    torch.set_num_threads(1)  # two runs then differ by 0.001 in AUC at most; small products gain nothing from more
    began = time.process_time()  # of the processor: other work on the machine must not count
    pairs = quality_controlled(examples)
    random.Random(seed).shuffle(pairs)
    pairs = pairs[:max_texts]
    if len(pairs) < 2:
        raise ConfigError(
            f"{len(pairs)} of {len(examples)} examples can be learned from; two are needed, and thousands are good. "
            "Are the names of the fields right, and is something of each text left out?"
        )
    n_validation = max(1, round(VALIDATION_SHARE * len(pairs)))
    vocabulary = build_vocabulary([pair.example.text for pair in pairs[n_validation:]])
    lessons = lessons_from(pairs, vocabulary, WordEncoder())
    print(f"{len(lessons)} texts prepared, {time.process_time() - began:.0f} s", file=sys.stderr)
    heads: dict[Tier, Head] = {}
    results: dict[str, Any] = {}
    tiers: tuple[Tier, ...] = ("lexical", "encoder")
    for tier in tiers:
        heads[tier] = train_head(lessons[n_validation:], vocabulary, tier, seed=seed, epochs=EPOCHS[tier])
        results[tier] = asdict(judged(heads[tier], lessons[:n_validation]))
        print(f"{tier}: {results[tier]}, {time.process_time() - began:.0f} s", file=sys.stderr)
    sources = Counter(pair.example.source for pair in pairs)
    measured = {
        "texts": len(pairs),
        "texts_by_source": dict(sorted(sources.items())),
        "words": int(sum(len(lesson.keep) for lesson in lessons)),
        "keep_rate": float(np.mean([lesson.keep[lesson.labelled].mean() for lesson in lessons])),
        "seed": seed,
        "cpu_seconds": round(time.process_time() - began),
        "torch": torch.__version__,
        "validation": results,
    }
    save(out, vocabulary, heads, about | measured)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m longroute.compressors.training.train", description=__doc__)
    parser.add_argument("examples", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--compressed-field", default="compressed")
    parser.add_argument("--split", help="use only records with this value in the field `split`")
    parser.add_argument("--max-texts", type=int, default=2900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="where the texts and labels come from, for the weight file")
    options = parser.parse_args(arguments)
    command = [
        f"python -m longroute.compressors.training.train {options.examples.name}",
        f"--text-field {options.text_field} --compressed-field {options.compressed_field}",
        f"--max-texts {options.max_texts} --seed {options.seed}",
        *([f"--split {options.split}"] if options.split else []),
    ]
    about = {"trained_on": options.note, "command": " ".join(command)}
    try:
        examples = read_examples(options.examples, options.text_field, options.compressed_field, options.split)
        train(examples, max_texts=options.max_texts, seed=options.seed, about=about, out=options.out)
    except RouterError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
