"""How much a passage says about a question: the scorers that question-aware compressors rank by.

A scorer is a function of a question and passages; higher is more relevant, and scores are comparable within one call
only. Here are one of words (nothing to install), one of embeddings, one of a causal language model, and a sum of
several. What becomes of the ranking is for `question_aware.py` and `code.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..router.errors import ConfigError, MissingExtra
from .compression import Floats

Scorer = Callable[[str, Sequence[str]], Floats]
"""Question and n passages → shape (n,)."""
Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""n texts, n >= 1 → unit vectors, shape (n, d)."""

# ---- words -----------------------------------------------------------------------------------------------------------

_PIECES = re.compile(r"[^\W\d_]+|\d+")
_SEAM = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_ASKING_WORDS = (
    "a an and are as at be by can did do does for from had has have how i if in into is it its of on or that the their"
    " there this to was were what when where which who why will with"
)
_ASKING = frozenset(_ASKING_WORDS.split())


def words(text: str) -> list[str]:
    """Small words of a text: `getName` and `get_name` give both parts; a last -s goes, asking words are left out."""
    found = (part.casefold() for word in _PIECES.findall(text) for part in _SEAM.split(word))
    return [word.removesuffix("s") if len(word) > 3 else word for word in found if word not in _ASKING]


class LexicalScorer:
    """BM25 over the passages of one call.

    terms: what a text is made of. k1, b: as in Robertson and Zaragoza (2009), with the idf of Lucene.
    """

    def __init__(self, terms: Callable[[str], Sequence[str]] = words, k1: float = 0.9, b: float = 0.5) -> None:
        self.terms = terms
        self.k1 = k1
        self.b = b

    def __call__(self, question: str, passages: Sequence[str]) -> Floats:
        asked = Counter(self.terms(question))
        counts = [Counter(self.terms(passage)) for passage in passages]
        lengths = np.array([count.total() for count in counts], np.float64)
        relative = lengths / max(float(lengths.mean()), 1.0) if len(lengths) else lengths
        scores = np.zeros(len(passages))
        for term, times in asked.items():
            here = np.array([count[term] for count in counts], np.float64)
            held = int(np.count_nonzero(here))
            idf = np.log1p((len(passages) - held + 0.5) / (held + 0.5))
            scores += times * idf * here * (self.k1 + 1) / (here + self.k1 * (1 - self.b + self.b * relative))
        return scores


# ---- embeddings ------------------------------------------------------------------------------------------------------


class EmbeddingScorer:
    """Cosine of question and passage, of its best window where a passage is long.

    window_characters: embedding models read no further than some 256 tokens; 900 characters of prose or code fit.
    """

    def __init__(self, encode: Encode, window_characters: int = 900) -> None:
        self.encode = encode
        self.window_characters = window_characters

    def __call__(self, question: str, passages: Sequence[str]) -> Floats:
        if not passages:
            return np.zeros(0)
        windows: list[str] = []
        owners: list[int] = []
        for number, passage in enumerate(passages):
            cut = list(_windows(passage, self.window_characters))
            windows += cut
            owners += [number] * len(cut)
        query = np.asarray(self.encode([question]), np.float64)[0]
        scores = np.full(len(passages), -1.0)
        np.maximum.at(scores, owners, np.asarray(self.encode(windows), np.float64) @ query)
        return scores


def _windows(text: str, size: int) -> Iterator[str]:
    """The text in stretches of whole lines of at most `size` characters; longer lines are cut. At least one."""
    if len(text) <= size:
        yield text
        return
    current = ""
    for line in text.splitlines(keepends=True):
        for part in (line[at : at + size] for at in range(0, len(line), size)):
            if current and len(current) + len(part) > size:
                yield current
                current = ""
            current += part
    yield current


class FusedScorer:
    """Weighted mean of several scorers, each divided by its highest score; what is below 0 counts as 0."""

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float] = ()) -> None:
        if weights and len(weights) != len(scorers):
            raise ConfigError(
                f"There are {len(scorers)} scorers and {len(weights)} weights; give one for each, or none."
            )
        self.scorers = tuple(scorers)
        self.weights = tuple(weights) or (1 / max(len(scorers), 1),) * len(scorers)

    def __call__(self, question: str, passages: Sequence[str]) -> Floats:
        total = np.zeros(len(passages))
        for scorer, weight in zip(self.scorers, self.weights, strict=True):
            scores = np.maximum(scorer(question, passages), 0)
            total += weight * _relative(scores)
        return total


class TwoStageScorer:
    """All passages by the first scorer, the best of them by the second as well: a text of any length costs the second,
    which may be a model, no more than `candidates` passages. The mean of both, as in FusedScorer; a passage that was
    not looked at again counts as 0 with the second.
    """

    def __init__(self, first: Scorer, second: Scorer, candidates: int = 96) -> None:
        self.first, self.second, self.candidates = first, second, candidates

    def __call__(self, question: str, passages: Sequence[str]) -> Floats:
        coarse = np.maximum(self.first(question, passages), 0)
        chosen = np.sort(np.argsort(-coarse, kind="stable")[: self.candidates])
        fine = np.zeros(len(passages))
        fine[chosen] = np.maximum(self.second(question, [passages[number] for number in chosen]), 0)
        return (_relative(coarse) + _relative(fine)) / 2


def _relative(scores: Floats) -> Floats:
    return scores / max(float(scores.max(initial=0)), 1e-12)


# ---- a language model ------------------------------------------------------------------------------------------------

RESTRICTION = " We can get the answer to this question in the given documents."
"""Said after the question, so that what makes the question likely is a text that answers it (LongLLMLingua, 4.1)."""


class LogProbScorer:
    """How much likelier a question is after a passage, by a causal language model of Hugging Face's.

    model, tokenizer: loaded objects; `load` reads them from a folder. restriction: said after the question; empty for
    code. form: "log" is the mean log-likelihood per token with the passage, minus that without it (LongLLMLingua's
    r_k, its sign turned); "perplexity" is PPL(q) - PPL(q | passage) (LongCodeZip's AMI). Both rank alike.
    max_tokens: of passage and question together; of a longer passage the end is not read.
    batch_tokens: read at once, padding included; passages of like length go together.
    Cost: one reading of every passage, and one of the question alone.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        restriction: str = RESTRICTION,
        form: Literal["log", "perplexity"] = "log",
        max_tokens: int = 2048,
        batch_tokens: int = 8192,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.restriction = restriction
        self.form = form
        self.max_tokens = max_tokens
        self.batch_tokens = batch_tokens

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> LogProbScorer:
        """From a folder that holds a model and its tokenizer; nothing is downloaded.

        Raises ConfigError where it cannot be read, MissingExtra without transformers.
        """
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise MissingExtra(
                "Scoring by a language model needs torch and transformers, which are not installed. "
                "Install them with: pip install 'longroute[embed]'"
            ) from error
        try:
            model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True)
            tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"No causal language model could be loaded from {folder}: {error}") from error
        return cls(model, tokenizer, **options)

    def __call__(self, question: str, passages: Sequence[str]) -> Floats:
        if not passages:
            return np.zeros(0)
        target = self._ids("\n\n" + question + self.restriction)
        if len(target) >= self.max_tokens:
            raise ConfigError(f"The question has {len(target)} tokens; max_tokens is {self.max_tokens}.")
        alone = self._losses([[]], target)
        room = self.max_tokens - len(target) - 1
        after = self._losses([self._ids(passage)[:room] for passage in passages], target)
        return alone - after if self.form == "log" else np.exp(alone) - np.exp(after)

    def _ids(self, text: str) -> list[int]:
        return [int(number) for number in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _losses(self, prefixes: Sequence[list[int]], target: list[int]) -> Floats:
        """Mean of -log p over the tokens of the target after each prefix, shape (len(prefixes),)."""
        losses = np.zeros(len(prefixes))
        begin = self._begin()
        batch: list[int] = []
        # Longest first: the largest batch comes first, so memory that does not suffice shows at once.
        for number in sorted(range(len(prefixes)), key=lambda n: -len(prefixes[n])):
            longest = len(prefixes[batch[0]]) if batch else 0
            if batch and (len(batch) + 1) * (longest + len(target) + 1) > self.batch_tokens:
                losses[batch] = self._batch([[begin, *prefixes[n]] for n in batch], target)
                batch = []
            batch.append(number)
        losses[batch] = self._batch([[begin, *prefixes[n]] for n in batch], target)
        return losses

    def _begin(self) -> int:
        """A token to begin with: without one, the first token of a text has no probability."""
        tokenizer = self.tokenizer
        known = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "cls_token_id"))
        return next((int(number) for number in known if number is not None), 0)

    def _batch(self, prefixes: Sequence[list[int]], target: list[int]) -> Floats:
        import torch

        rows = [[*prefix, *target] for prefix in prefixes]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=mask).logits
            found = []
            for row, prefix, scores in zip(ids, prefixes, logits, strict=True):
                place = slice(len(prefix) - 1, len(prefix) - 1 + len(target))
                wanted = row[len(prefix) : len(prefix) + len(target)]
                found.append(float(torch.nn.functional.cross_entropy(scores[place].float(), wanted)))
        return np.array(found)
