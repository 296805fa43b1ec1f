"""LLMLingua-2: a token classifier says of every word how much it is worth, and the best words fit the budget.

The algorithm and the options are those of the reference package; `llmlingua2_compat.py` computes exactly what it does.
Here its quirks are mended:

- the result is made of stretches of the source, so white space, unknown characters and offsets are kept;
- the budget is met (never above, and all but 2 % of it used) instead of approximated chunk by chunk, and the best words
  of a whole text are kept rather than the same share of every chunk;
- a chunk is what the model reads, in its own special tokens: not cut off, not tokenized twice, not padded to 512;
- force tokens of any number and length are found in the source, without placeholders that strangers could write;
- what turns the meaning round or can be checked survives first (`protect.py`).

Source: arXiv 2403.12968, sections 4 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..router.core import TokenCounter
from ..router.errors import ConfigError
from .compression import Bools, Compressed, Floats, Ints, Span, Units, keep_best, shares, whole
from .llmlingua2_options import PromptOptions, PromptResult
from .protect import KINDS, Kind, mark, protected_spans
from .token_classifier import Classifier, Ids, Loaded, TransformersClassifier, Vocabulary, has_bfloat16, load
from .words import means, touched, words

_FORCED = 4  # above every rank of `protect.RANKS`: what the caller names goes last
_BLOCK = 1 << 18  # characters tokenized at a time: an encoding takes hundreds of bytes a token
_FILL = 0.75  # the least that a row of a batch holds beside padding
_DIGIT = re.compile(r"\d")
_ENDS = (".", "\n", "?", "!", "。", "？", "！", "।")


class LLMLingua2:
    """Keeps the words that a token classifier finds telling.

    classifier, vocabulary: the model and how it cuts text; max_length: tokens it can read at once.
    counter: counts tokens where budgets are concerned.
    protect: kinds of stretches that survive first.
    batch_tokens: tokens, padding included, that the model reads at once.
    """

    def __init__(
        self,
        classifier: Classifier,
        vocabulary: Vocabulary,
        counter: TokenCounter,
        *,
        protect: Collection[Kind] = KINDS,
        max_length: int = 512,
        batch_tokens: int = 8192,
    ) -> None:
        from tokenizers import Tokenizer

        self._classifier = classifier
        self._vocabulary = vocabulary
        self._tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
        self._count = counter.count
        self._protect = frozenset(protect)
        self._payload = max_length - 2
        self._batch_tokens = batch_tokens

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        counter: TokenCounter,
        *,
        device: str = "cpu",
        protect: Collection[Kind] = KINDS,
    ) -> LLMLingua2:
        """A model from a folder in the Hugging Face layout. Raises ConfigError where there is none."""
        return cls.from_loaded(load(folder, device), counter, protect=protect)

    @classmethod
    def from_loaded(cls, loaded: Loaded, counter: TokenCounter, *, protect: Collection[Kind] = KINDS) -> LLMLingua2:
        """A model in memory; it is put into bfloat16 where the hardware computes in that."""
        on_gpu = loaded.model.device.type == "cuda"
        classifier = TransformersClassifier(loaded.model, "bfloat16" if on_gpu or has_bfloat16() else None)
        batch_tokens = 1 << 16 if on_gpu else 1 << 13
        return cls(classifier, loaded.vocabulary, counter, protect=protect, batch_tokens=batch_tokens)

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        """See `Compressor.compress`. The question is not looked at: LLMLingua-2 knows no task."""
        before = [self._count(text) for text in texts]
        budgets = shares(before, budget_tokens=budget_tokens, keep_rate=keep_rate)
        reading = [i for i, budget in enumerate(budgets) if budget < before[i]]
        scored = self._scored([texts[i] for i in reading], PromptOptions(chunk_end_tokens=_ENDS))
        done = {i: self._kept(words, budgets[i], before[i]) for i, words in zip(reading, scored, strict=True)}
        return [done[i] if i in done else whole(text, before[i]) for i, text in enumerate(texts)]

    def compress_prompt(
        self,
        context: str | Sequence[str],
        options: PromptOptions = PromptOptions(),  # noqa: B008  # frozen
    ) -> PromptResult:
        """Compress contexts by the options of the reference.

        A target is for all contexts together and never exceeded. Raises ConfigError for a rate below 0 or an unknown
        token_to_word.
        """
        if options.rate < 0 or options.token_to_word not in ("mean", "first"):
            raise ConfigError(
                f"rate is {options.rate} and token_to_word {options.token_to_word!r}; a rate is in [0, 1], and a word "
                "is worth the 'mean' of its tokens or the 'first'."
            )
        contexts = [context] if isinstance(context, str) else list(context)
        before = [self._count(text) for text in contexts]
        scored = list(self._scored(contexts, options))
        kept = list(range(len(contexts)))
        if options.use_context_level_filter and len(contexts) > 1 and any(before):
            kept = _best_contexts(scored, options.keep_share_of_contexts(len(contexts), sum(before)), options)
        own = [before[i] for i in kept]
        if not options.use_token_level_filter:
            budgets = own
        elif options.target_token >= 0:
            budgets = shares(own, budget_tokens=int(options.target_token))
        else:
            budgets = shares(own, keep_rate=min(options.rate, 1.0))
        done = tuple(self._kept(scored[i], budget, before[i]) for i, budget in zip(kept, budgets, strict=True))
        labels = None
        if options.return_word_label:
            by_context = dict(zip(kept, done, strict=True))
            pairs = [
                f"{word}{options.label_sep}{int(label)}"
                for i, words_of in enumerate(scored)
                for word, label in words_of.labels(by_context.get(i))
            ]
            labels = options.word_sep.join(pairs)
        return PromptResult(
            tuple(found.text for found in done),
            sum(before),
            sum(found.tokens_after for found in done),
            tuple(kept),
            labels,
            done,
        )

    # ---- words and what they are worth -------------------------------------------------------------------------------

    def _scored(self, texts: Sequence[str], options: PromptOptions) -> Iterator[_Scored]:
        """The words of each text with their scores and what is forced."""
        pieces = [self._pieces(text) for text in texts]
        chunks = [
            (number, start, end)
            for number, (text, own) in enumerate(zip(texts, pieces, strict=True))
            for start, end in _chunks(own, _end_flags(text, own, options.chunk_end_tokens), self._payload)
        ]
        for number, start, probabilities in self._probabilities(pieces, chunks):
            pieces[number].probabilities[start : start + len(probabilities)] = probabilities
        for text, own in zip(texts, pieces, strict=True):
            starts, ends = words(text, own.starts)
            first, last = touched(starts, ends, own.starts, own.ends)
            if options.token_to_word == "mean":  # noqa: S105  # not a password
                scores = means(own.probabilities, first, last)
            else:
                scores = np.where(last > first, np.append(own.probabilities, 0.0)[first], 0.0)
            yield _Scored(text, _units(text, starts, ends, scores, options, self._protect), len(starts))

    def _pieces(self, text: str) -> _Pieces:
        ids, edges = [], []
        for start, end in _blocks(text):
            # Rust strings cannot hold lone surrogates; a question mark is one character as well.
            block = text[start:end].encode("utf-8", "replace").decode("utf-8")
            encoding = self._tokenizer.encode(block, add_special_tokens=False)
            ids.append(np.array(encoding.ids, np.int64))
            edges.append(np.array(encoding.offsets, np.int64).reshape(-1, 2) + start)
        both = np.concatenate([np.zeros((0, 2), np.int64), *edges])
        numbers = np.concatenate([np.zeros(0, np.int64), *ids])
        real = both[:, 1] > both[:, 0]  # a marker of its own has no letters
        return _Pieces(numbers[real], both[real, 0], both[real, 1], np.zeros(int(real.sum())))

    def _probabilities(
        self, pieces: Sequence[_Pieces], chunks: Sequence[tuple[int, int, int]]
    ) -> Iterator[tuple[int, int, Floats]]:
        """For chunks (text, start, end) of pieces the same with their probabilities, in batches of similar length."""
        ordered = sorted(chunks, key=lambda chunk: chunk[2] - chunk[1], reverse=True)
        place = 0
        while place < len(ordered):
            length = ordered[place][2] - ordered[place][1] + 2
            batch = [
                chunk
                for chunk in ordered[place : place + max(1, self._batch_tokens // length)]
                if chunk[2] - chunk[1] + 2 >= _FILL * length
            ]
            ids = np.full((len(batch), length), self._vocabulary.pad, np.int64)
            mask = np.zeros((len(batch), length), np.bool_)
            for row, (number, start, end) in enumerate(batch):
                size = end - start + 2
                ids[row, 0], ids[row, 1 : size - 1] = self._vocabulary.cls, pieces[number].ids[start:end]
                ids[row, size - 1], mask[row, :size] = self._vocabulary.sep, True
            found = self._classifier.keep_probability(ids, mask).astype(np.float64)
            for row, (number, start, end) in enumerate(batch):
                yield number, start, found[row, 1 : end - start + 1]
            place += len(batch)

    def _kept(self, scored: _Scored, budget: int, before: int) -> Compressed:
        return keep_best(scored.text, scored.units, budget_tokens=budget, tokens_before=before, count=self._count)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The tokens of one text; arrays of one length. The probabilities are filled in batch by batch."""

    ids: Ids
    starts: Ints
    ends: Ints
    probabilities: Floats


@dataclass(frozen=True, slots=True)
class _Scored:
    """One text, cut and scored. n_words: how many of the units are words; others are forced white space."""

    text: str
    units: Units
    n_words: int

    @property
    def mean(self) -> float:
        """What a word is worth on average, forced or not."""
        return float(self.units.scores.sum() / max(self.n_words, 1))

    def labels(self, kept: Compressed | None) -> Iterator[tuple[str, bool]]:
        """Every word and whether it is kept; kept: None where the whole text is dropped."""
        ends = np.array([end for _, end in kept.kept] if kept else [], np.int64)
        begins = [start for start, _ in kept.kept] if kept else []
        for start, end in zip(self.units.starts.tolist(), self.units.ends.tolist(), strict=True):
            word = self.text[start:end]
            if not word.isspace():
                place = int(np.searchsorted(ends, start, side="right"))
                yield word, place < len(begins) and begins[place] <= start


# ---- chunks ----------------------------------------------------------------------------------------------------------


def _blocks(text: str) -> Iterator[Span]:
    """Stretches of up to _BLOCK characters that tile a text, cut at white space where there is any."""
    start = 0
    while start < len(text):
        end = start + _BLOCK
        if end < len(text):
            end = max(text.rfind(" ", start, end), text.rfind("\n", start, end), start) + 1
            end = end if end > start + 1 else start + _BLOCK
        yield start, min(end, len(text))
        start = end


def _end_flags(text: str, pieces: _Pieces, ends: Sequence[str]) -> Bools:
    """Whether a chunk may end after each piece: its last character, or white space after it, is an end."""
    flags = np.zeros(len(pieces.ids) + 1, np.bool_)  # one more, for what is found before or after all pieces
    for end in filter(None, ends):
        found = np.array([match.start() for match in re.finditer(re.escape(end), text)], np.int64)
        if end.isspace():
            flags[np.searchsorted(pieces.starts, found, side="left") - 1] = True
        else:
            flags[np.searchsorted(pieces.ends, found + len(end), side="left")] = True
    return flags[:-1]


def _chunks(pieces: _Pieces, may_end: Bools, payload: int) -> Iterator[Span]:
    """Ranges of pieces that tile a text, each as long as fits and as ends well.

    Else they end between words, else anywhere.
    """
    good = np.flatnonzero(may_end) + 1
    between = np.flatnonzero(pieces.ends[:-1] < pieces.starts[1:]) + 1
    start, n = 0, len(pieces.ids)
    while start < n:
        end = min(start + payload, n)
        if end < n:
            for cuts in (good, between):
                last = int(np.searchsorted(cuts, end, side="right")) - 1
                if last >= 0 and cuts[last] > start:
                    end = int(cuts[last])
                    break
        yield start, end
        start = end


# ---- what must stay --------------------------------------------------------------------------------------------------


def _units(
    text: str, starts: Ints, ends: Ints, scores: Floats, options: PromptOptions, protect: Collection[Kind]
) -> Units:
    ranks, groups = mark(starts, ends, protected_spans(text, protect))
    echoes = np.full(len(starts), -1, np.int64)
    blanks: list[tuple[int, int, int]] = []  # forced white space, which is in no word: start, end, number of the string
    if options.force_tokens:
        # The longest first, so that of "\n" and "\n\n" the longer is found where both stand.
        strings = sorted({string for string in options.force_tokens if string}, key=len, reverse=True)
        numbers = {string: number for number, string in enumerate(strings)}
        found = [
            (*match.span(), numbers[match.group()])
            for match in (re.finditer("|".join(map(re.escape, strings)), text) if strings else ())
        ]
        edges = np.array(found, np.int64).reshape(-1, 3)
        first, last = touched(edges[:, 0], edges[:, 1], starts, ends)
        for (start, end, number), a, b in zip(found, first.tolist(), last.tolist(), strict=True):
            ranks[a:b] = _FORCED
            if a == b:
                blanks.append((start, end, number))
            elif b == a + 1 and groups[a] < 0 and (starts[a], ends[a]) == (start, end):
                echoes[a] = number
    if options.force_reserve_digit:
        digits = [_DIGIT.search(text, a, b) is not None for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        ranks[np.array(digits, np.bool_)] = _FORCED
    if not options.drop_consecutive:
        echoes[:] = -1
    if not blanks:
        return Units(starts, ends, scores, ranks, groups, echoes)
    extra = np.array(blanks, np.int64)
    order = np.argsort(np.concatenate([starts, extra[:, 0]]), kind="stable")
    none = np.full(len(extra), -1, np.int64)
    return Units(
        np.concatenate([starts, extra[:, 0]])[order],
        np.concatenate([ends, extra[:, 1]])[order],
        np.concatenate([scores, np.zeros(len(extra))])[order],
        np.concatenate([ranks, np.full(len(extra), _FORCED)])[order],
        # A blank inside a group stays with it by itself: what lies between two kept words is kept.
        np.concatenate([groups, none])[order],
        np.concatenate([echoes, extra[:, 2] if options.drop_consecutive else none])[order],
    )


def _best_contexts(scored: Sequence[_Scored], share: float, options: PromptOptions) -> list[int]:
    values = [own.mean for own in scored]
    threshold = np.percentile(values, float(np.clip(int(100 * (1 - share)), 0, 100)))
    return [i for i, value in enumerate(values) if value >= threshold or i in options.force_context_ids]
