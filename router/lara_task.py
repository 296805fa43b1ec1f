"""Which of LaRA's four tasks a question would have been: the reading of a question that outcomes were learned with.

A linear model on words and pairs of words, trained on LaRA's own labels (`benchmarks/lara_routing.py --fit`). Within
LaRA it is right far more often than the general classifier of `question_type.py`, because each of LaRA's tasks has its
own way of asking; on other questions it knows fewer words and its probabilities spread. Plain Python, loaded on first
use.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

from .core import Task

LARA_TASKS: tuple[Task, ...] = ("lookup", "reasoning", "comparison", "unanswerable")
_WORD = re.compile(r"\w\w+")
_LONGEST = 4000  # characters of a question that are read


def lara_task(question: str) -> dict[Task, float]:
    """Probability of each of LARA_TASKS, summing to 1."""
    model = _model()
    logits = list(model["bias"])
    vocabulary: Mapping[str, list[float]] = model["vocabulary"]  # n-gram → idf, then one weight per task
    counts = {gram: count for gram, count in ngrams(question).items() if gram in vocabulary}
    values = {gram: (1 + math.log(count)) * vocabulary[gram][0] for gram, count in counts.items()}
    norm = math.sqrt(sum(value * value for value in values.values())) or 1.0
    for gram, value in values.items():
        for place, weight in enumerate(vocabulary[gram][1:]):
            logits[place] += weight * value / norm
    top = max(logits)
    shares = [math.exp(logit - top) for logit in logits]
    return {task: share / sum(shares) for task, share in zip(LARA_TASKS, shares, strict=True)}


def ngrams(question: str) -> Counter[str]:
    """Lower-cased words of two letters and more, and pairs of neighbours among them, counted."""
    words = _WORD.findall(question[:_LONGEST].lower())
    return Counter([*words, *(f"{a} {b}" for a, b in pairwise(words))])


@cache
def _model() -> dict[str, Any]:
    folder = resources.files(__package__.partition(".")[0]).joinpath("policies", "weights")
    model: dict[str, Any] = json.loads(folder.joinpath("lara_task.json").read_text(encoding="utf-8"))
    return model
