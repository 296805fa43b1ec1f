"""The network that says of each word how much it deserves to be kept: two convolutions over words, in numpy.

It reads what `lexical_features.py` sees, a learned vector for the word, and, in the encoder tier, the states of a
language model. It is trained by `training/train.py` and shipped as arrays (`weights/`), with no code in them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .compression import Floats
from .lexical_features import F32, Described, Vocabulary

Tier = Literal["lexical", "encoder"]

WEIGHTS = Path(__file__).with_name("weights")
WIDTH = 5
"""Words that one convolution looks at."""
HALO = 2 * (WIDTH // 2)
"""Words to either side that a score depends on."""
_BLOCK = 1 << 14  # words at a time: bounds memory, whatever the length of the text


@dataclass(frozen=True, slots=True)
class Head:
    """The weights of one tier; float32.

    mean, scale: shape (f,), of the numbers that describe a word.
    vectors: shape (rows, e), a vector per word of the vocabulary and per ending.
    project, project_bias: shape (d, p) and (p,), for the states of the encoder; d is 0 in the lexical tier.
    first, first_bias: shape (WIDTH, f + e + p, h) and (h,); second likewise (WIDTH, h, h); out: (h,); bias: a number.
    """

    mean: F32
    scale: F32
    vectors: F32
    project: F32
    project_bias: F32
    first: F32
    first_bias: F32
    second: F32
    second_bias: F32
    out: F32
    bias: F32

    @property
    def dimensions(self) -> int:
        """Of the states of the encoder; 0 where none are read."""
        return len(self.project)

    def logits(self, described: Described, states: F32 | None = None) -> Floats:
        """The log odds that a language model would keep each word; float64 of shape (n,).

        states: float32 of shape (n, dimensions), for a head of the encoder tier.
        """
        n = len(described.rows)
        found = np.empty(n)
        for start in range(0, n, _BLOCK):
            a, b = max(start - HALO, 0), min(start + _BLOCK + HALO, n)
            inputs = [(described.numbers[a:b] - self.mean) / self.scale, self.vectors[described.rows[a:b]]]
            if self.dimensions:
                assert states is not None
                inputs.append(np.maximum(states[a:b] @ self.project + self.project_bias, 0))
            hidden = np.maximum(_convolved(np.hstack(inputs), self.first) + self.first_bias, 0)
            hidden = np.maximum(_convolved(hidden, self.second) + self.second_bias, 0)
            found[start : start + _BLOCK] = (hidden @ self.out + self.bias)[start - a : start - a + _BLOCK]
        return found


def _convolved(inputs: F32, kernel: F32) -> F32:
    """inputs: (n, i); kernel: (WIDTH, i, o). Returns (n, o); beyond both ends stand zeros."""
    n, size = inputs.shape
    padded = np.zeros((n + WIDTH - 1, size), np.float32)
    padded[WIDTH // 2 : WIDTH // 2 + n] = inputs
    # Windows as rows, copied: one product does it all, where five small ones would each wait for the threads of BLAS.
    rows = np.lib.stride_tricks.as_strided(padded, (n, WIDTH * size), padded.strides, writeable=False)
    found: F32 = np.ascontiguousarray(rows) @ kernel.reshape(WIDTH * size, -1)
    return found


@dataclass(frozen=True, slots=True)
class Trained:
    """What is shipped for one tier.

    about: what it was trained on, by which command, and how good it was.
    """

    head: Head
    vocabulary: Vocabulary
    about: dict[str, Any]


@lru_cache(maxsize=2)
def shipped(tier: Tier) -> Trained:
    """The weights that come with the package."""
    return load(WEIGHTS, tier)


def load(folder: Path, tier: Tier) -> Trained:
    """Read what `save` wrote."""
    about = json.loads((folder / "embedded.json").read_text("utf-8"))
    with np.load(folder / "vocabulary.npz", allow_pickle=False) as stored:
        words = stored["words"].tobytes().decode("utf-8").split("\n")
        vocabulary = Vocabulary(
            {word: row for row, word in enumerate(words)},
            stored["surprise"].astype(np.float32),
            stored["shares"].astype(np.float32),
        )
    with np.load(folder / f"{tier}.npz", allow_pickle=False) as stored:
        # Half precision on disk moves logits by less than 0.01.
        head = Head(**{name: stored[name].astype(np.float32) for name in stored.files})
    return Trained(head, vocabulary, about)


def save(folder: Path, vocabulary: Vocabulary, heads: dict[Tier, Head], about: dict[str, Any]) -> None:
    """Write the weights of both tiers, their vocabulary, and what is to be known about them."""
    folder.mkdir(parents=True, exist_ok=True)
    words = "\n".join(vocabulary.rows).encode("utf-8")
    np.savez_compressed(
        folder / "vocabulary.npz",
        words=np.frombuffer(words, np.uint8),
        surprise=vocabulary.surprise.astype(np.float16),
        shares=vocabulary.shares.astype(np.float32),
    )
    for tier, head in heads.items():
        halves = {name: getattr(head, name).astype(np.float16) for name in Head.__slots__}
        np.savez_compressed(folder / f"{tier}.npz", **halves)
    (folder / "embedded.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
