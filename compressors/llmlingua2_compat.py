"""LLMLingua-2 exactly as the reference package computes it, quirks included, without its per-token Python.

On the same weights and token counter every output equals that of llmlingua 0.2.2 (with numpy 2), letter by letter:
`benchmarks/llmlingua2_identity.py` compares. What is odd here is odd there; `llmlingua2.py` has the quirks mended.
Where the reference stops with an error of Python's, this stops with a ConfigError that names it.
Source: arXiv 2403.12968; microsoft/LLMLingua, llmlingua/prompt_compressor.py.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..router.core import TokenCounter
from ..router.errors import ConfigError
from .compression import Bools, Floats, Ints
from .llmlingua2_options import PromptOptions, PromptResult
from .token_classifier import (
    PLACEHOLDERS,
    Classifier,
    Ids,
    Loaded,
    Mask,
    Pieces,
    Probabilities,
    TransformersClassifier,
    Vocabulary,
    add_placeholders,
    load,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LENGTH = 512  # tokens of a chunk with the two special ones; every batch is padded to it
_REMEMBERED = 1 << 17  # words and tokens that are remembered from one call to the next
_BLANKS = re.compile(r"[ \t\n\r]+")  # what BERT's normalizer takes for a space, and not for a control character
_DIGIT = re.compile(r"\d")
_WORDS = re.compile(r'\b\w+\b|[<>=/!@#$%^&*()?":{}|\\`~;_+-]')


class CompatLLMLingua2:
    """The reference's `PromptCompressor` with `use_llmlingua2=True`.

    classifier, vocabulary: the model and its vocabulary, both with placeholders (`add_placeholders`).
    counter: what stands for the reference's tiktoken encoding.
    """

    def __init__(
        self, classifier: Classifier, vocabulary: Vocabulary, counter: TokenCounter, max_batch_size: int = 50
    ) -> None:
        self._classifier = classifier
        self._vocabulary = vocabulary
        self._tokenizer = vocabulary.tokenizer
        self._count = counter.count
        self._max_batch_size = max_batch_size
        self._word_by_word = _tokenizes_words(self._tokenizer)
        self._known: dict[str, list[int]] = {}  # the token ids of words
        self._pieces: dict[str, str] = {}  # how a token is written behind others
        # The reference frames every text in BERT's special tokens, whatever the model: to XLM-R these are unknown.
        ids = (self._tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
        self._cls, self._sep, self._pad = (vocabulary.unk if number is None else number for number in ids)
        self._masked = self._tokenizer.token_to_id("[PAD]")  # masked by name, so a text that says [PAD] is too

    @classmethod
    def from_folder(cls, folder: str | Path, counter: TokenCounter, device: str = "cpu") -> CompatLLMLingua2:
        """A model from a folder in the Hugging Face layout. Raises ConfigError where there is none."""
        return cls.from_loaded(load(folder, device), counter)

    @classmethod
    def from_loaded(cls, loaded: Loaded, counter: TokenCounter) -> CompatLLMLingua2:
        """A model in memory, in float32. Its embeddings grow by 100 rows, and it should not serve anything else."""
        add_placeholders(loaded.vocabulary.tokenizer, loaded.model)
        return cls(TransformersClassifier(loaded.model), loaded.vocabulary, counter)

    def compress_prompt(
        self,
        context: str | Sequence[str],
        options: PromptOptions = PromptOptions(),  # noqa: B008  # frozen
    ) -> PromptResult:
        """Compress contexts. Raises ConfigError where the reference fails."""
        contexts = [_valid(text) for text in ([context] if isinstance(context, str) else context)]
        if len(options.force_tokens) > PLACEHOLDERS:
            raise _failure("AssertionError", f"more than {PLACEHOLDERS} force tokens")
        force = _Force.of(options, [self._n_tokens(token) for token in options.force_tokens], self._vocabulary.pieces)
        ends = {*options.chunk_end_tokens, *(force.placeholders.get(end, end) for end in options.chunk_end_tokens)}
        origin_tokens = sum(map(self._count, contexts))
        chunked = [list(self._chunks(force.hide(text), ends)) for text in contexts]
        kept = list(range(len(contexts)))
        rate, coarse = options.rate, None
        if options.use_context_level_filter and len(contexts) != 1:
            share = _share_of_contexts(options, len(contexts), origin_tokens)
            coarse = list(self._by_context(chunked, force))
            kept = _best_contexts(coarse, share, options.force_context_ids)
            if options.target_token >= 0:
                reserved = sum(self._count(chunk) for i in kept for chunk in chunked[i])
                rate = min(_ratio(options.target_token, reserved), 1.0)
        elif options.target_token > 0:
            rate = min(_ratio(options.target_token, origin_tokens), 1.0)
        reduce_rate = max(0.0, 1 - rate) if options.use_token_level_filter else 0.0
        done = self._compress([chunked[i] for i in kept], reduce_rate, force)
        texts = tuple(text for text, _, _ in done)
        result = PromptResult(texts, origin_tokens, sum(map(self._count, texts)), tuple(kept))
        if not options.return_word_label:
            return result
        labelled = dict(zip(kept, done, strict=True))
        pairs: list[str] = []
        for i in range(len(contexts)):
            if i in labelled:
                _, words, labels = labelled[i]
            else:
                assert coarse is not None
                words = coarse[i].shown
                labels = [0] * len(words)
            pairs += [f"{word}{options.label_sep}{label}" for word, label in zip(words, labels, strict=True)]
        return replace(result, fn_labeled_original_prompt=options.word_sep.join(pairs))

    # ---- chunks ------------------------------------------------------------------------------------------------------

    def _n_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def _chunks(self, text: str, ends: set[str]) -> Iterator[str]:
        """Texts of up to 511 tokens: one too many, which is cut off when the chunk is read."""
        tokens = self._tokens(text)
        cuts = np.array([place for place, token in enumerate(tokens) if token in ends], np.int64)
        payload, start = _LENGTH - 2, 0
        while start < len(tokens):
            if start + payload > len(tokens) - 1:
                end = len(tokens) - 1
            else:
                end = start + payload
                last = int(np.searchsorted(cuts, end, side="right")) - 1
                if last >= 0 and cuts[last] > start:
                    end = int(cuts[last])
            yield self._written(tokens[start : end + 1])
            start = end + 1

    def _tokens(self, text: str) -> list[str]:
        """The tokens of a text; what SentencePiece does not know keeps its letters."""
        if not self._word_by_word:
            tokens: list[str] = self._tokenizer.encode(text, add_special_tokens=False).tokens
            return tokens
        (ids,) = self._ids([text])
        names = {number: self._tokenizer.id_to_token(number) or "" for number in set(ids)}
        return [names[number] for number in ids]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts. Where words are tokenized on their own, each is tokenized once."""
        # The fast one leaves out offsets and the letters of tokens, which nobody asks for here.
        encode = self._tokenizer.encode_batch_fast
        if not self._word_by_word:
            return [encoding.ids for encoding in encode(list(texts), add_special_tokens=False)]
        words = [_BLANKS.split(text) for text in texts]
        known = self._known
        if len(known) > _REMEMBERED:
            known = self._known = {}  # not cleared: another thread may be reading it
        fresh = list({word for own in words for word in own if word not in known})
        for word, encoding in zip(fresh, encode(fresh, add_special_tokens=False), strict=True):
            known[word] = encoding.ids
        return [list(chain.from_iterable([known[word] for word in own])) for own in words]

    def _written(self, tokens: Sequence[str]) -> str:
        """Tokens as text. The two decoders that matter write every token but the first alike wherever it stands."""
        decoder: Any = self._tokenizer.decoder
        if type(decoder).__name__ not in ("WordPiece", "Metaspace") or not tokens:
            text: str = decoder.decode(list(tokens))
            return text
        pieces = self._pieces
        if len(pieces) > _REMEMBERED:
            pieces = self._pieces = {}
        for token in tokens:
            if token not in pieces:
                pieces[token] = decoder.decode(["a", token])[1:]
        return "".join([decoder.decode([tokens[0]]), *(pieces[token] for token in tokens[1:])])

    def _read(self, chunks: Sequence[str]) -> tuple[Ids, Mask]:
        """Token ids of chunks and which of them are not padding; shape (len(chunks), 512)."""
        ids = np.full((len(chunks), _LENGTH), self._pad, np.int64)
        inside = np.zeros((len(chunks), _LENGTH), np.bool_)
        for row, own in enumerate(self._ids(chunks)):
            line = [self._cls, *own, self._sep][:_LENGTH]
            ids[row, : len(line)] = line
            inside[row, : len(line)] = True
        if self._masked is not None:
            inside &= ids != self._masked
        return ids, inside

    # ---- words -------------------------------------------------------------------------------------------------------

    def _scored(self, chunks: Sequence[str], force: _Force) -> Iterator[_Words]:
        """The words of every chunk with their probabilities, batch by batch as the reference makes them."""
        remaining = iter(chunks)
        while batch := list(islice(remaining, self._max_batch_size)):
            ids, mask = self._read(batch)
            yield from self._words(ids, mask, self._classifier.keep_probability(ids, mask), force)

    def _words(self, ids: Ids, mask: Mask, probabilities: Probabilities, force: _Force) -> Iterator[_Words]:
        numbers, tokens = np.unique(ids[mask], return_inverse=True)
        table = _Table.of(
            [self._tokenizer.id_to_token(number) or "" for number in numbers.tolist()], self._vocabulary, force
        )
        rows = np.repeat(np.arange(len(ids)), mask.sum(axis=1))
        real = ~table.special[tokens]
        tokens, rows, raw = tokens[real], rows[real], probabilities[mask][real]
        begins = table.begins[tokens]
        first_of_row = np.concatenate([[True], rows[1:] != rows[:-1]])
        if len(tokens) and not begins[first_of_row].all():
            raise _failure("IndexError", "a chunk begins inside a word")
        starts = np.flatnonzero(begins)
        sizes = np.diff(np.append(starts, len(tokens)))
        # Whatever the reference overrides becomes a Python float and makes the arrays it is put in float64.
        certain = np.where(begins, table.certain_first[tokens], table.certain_later[tokens])
        forced = np.where(certain, np.float32(1), raw)
        convert = force.options.token_to_word
        if convert == "mean":
            # Without overrides the reference adds the first token's probability again for each of the others.
            plain = _means(np.repeat(raw[starts], sizes), starts, sizes)
            scores = _means(forced, starts, sizes)
            python_floats = np.logical_and.reduceat(certain, starts) if len(starts) else np.zeros(0, np.bool_)
        elif convert == "first":
            scores, plain, python_floats = forced[starts], raw[starts], certain[starts]
        else:
            raise _failure("NotImplementedError", f"token_to_word {convert!r}")
        first, later = table.first, table.later
        words = [first[token] for token in tokens[starts].tolist()]
        for word in np.flatnonzero(sizes > 1).tolist():
            start = starts[word]
            words[word] += "".join([later[token] for token in tokens[start + 1 : start + sizes[word]].tolist()])
        cuts = np.searchsorted(rows[starts], np.arange(len(ids) + 1)).tolist()
        for a, b in pairwise(cuts):
            yield _Words(words[a:b], scores[a:b].astype(np.float64), python_floats[a:b], plain[a:b], force.marker)

    def _by_context(self, chunked: Sequence[Sequence[str]], force: _Force) -> Iterator[_Words]:
        """The words of each context, without the overrides of force tokens."""
        scored = self._scored([chunk for chunks in chunked for chunk in chunks], force)
        for chunks in chunked:
            own = list(islice(scored, len(chunks)))
            if not any(part.words for part in own):
                raise _failure("ZeroDivisionError", "a context without words")
            yield _Words.joined(own, force.marker)

    def _compress(
        self, chunked: Sequence[Sequence[str]], reduce_rate: float, force: _Force
    ) -> list[tuple[str, list[str], list[int]]]:
        """The text, the words and their labels of each context."""
        if reduce_rate <= 0:
            shown = [[force.show(chunk) for chunk in chunks] for chunks in chunked]
            words = [[word for chunk in chunks for word in _WORDS.findall(chunk)] for chunks in shown]
            return [("".join(chunks), own, [1] * len(own)) for chunks, own in zip(shown, words, strict=True)]
        scored = self._scored([chunk for chunks in chunked for chunk in chunks], force)
        known: dict[str, int] = {}
        done = []
        for chunks in chunked:
            texts: list[str] = []
            all_words: list[str] = []
            labels: list[int] = []
            for part in islice(scored, len(chunks)):
                keep = self._keep(part, reduce_rate, force, known)
                texts.append(self._written([part.words[i] for i in np.flatnonzero(keep).tolist()]))
                if force.options.return_word_label:
                    all_words += part.shown
                    labels += keep.astype(np.int64).tolist()
            done.append(("".join(texts), all_words, labels))
        return done

    def _keep(self, part: _Words, reduce_rate: float, force: _Force, known: dict[str, int]) -> Bools:
        """Which words of a chunk stay; shape (len(part.words),)."""
        words, scores, python_floats = part.words, part.scores, part.python_floats
        forced = np.array([word in force.tokens for word in words], np.bool_)
        codes = np.zeros(len(words), np.int64)  # equal force words have equal codes
        if force.options.drop_consecutive:
            threshold = _percentile(scores, python_floats, int(100 * reduce_rate))
            numbers: dict[str, int] = {}
            places = np.flatnonzero(forced)
            codes[places] = [numbers.setdefault(words[i], len(numbers)) for i in places.tolist()]
            passed = np.cumsum(~forced & (scores > threshold))[places]  # telling words up to each force word
            again = places[1:][(passed[1:] == passed[:-1]) & (codes[places[1:]] == codes[places[:-1]])]
            scores, python_floats = scores.copy(), python_floats.copy()
            scores[again], python_floats[again] = 0.0, True
        for word in words:
            if word not in known:
                known[word] = self._count(word)
        counts = np.array([known[word] for word in words], np.int64)
        threshold = _percentile(np.repeat(scores, counts), np.repeat(python_floats, counts), int(100 * reduce_rate + 1))
        keep: Bools = (scores > threshold) | ((threshold == 1.0) & (scores == threshold))
        if force.options.drop_consecutive:
            chosen = np.flatnonzero(keep)
            echo = forced[chosen[1:]] & forced[chosen[:-1]] & (codes[chosen[1:]] == codes[chosen[:-1]])
            keep[chosen[1:][echo]] = False
        return keep


# ---- force tokens ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Force:
    """The force tokens of one call.

    placeholders: the placeholder of every string that is not exactly one token.
    marker: what words lose where they are shown.
    """

    options: PromptOptions
    tokens: frozenset[str]
    placeholders: dict[str, str]
    marker: str

    @classmethod
    def of(cls, options: PromptOptions, n_tokens: Sequence[int], pieces: Pieces) -> _Force:
        """n_tokens: of each force token."""
        hidden = {
            token: f"[NEW{i}]"
            for i, (token, n) in enumerate(zip(options.force_tokens, n_tokens, strict=True))
            if n != 1
        }
        return cls(options, frozenset(options.force_tokens), hidden, "▁" if pieces == "▁" else "")

    def hide(self, text: str) -> str:
        for token, placeholder in self.placeholders.items():
            text = text.replace(token, placeholder)
        return text

    def show(self, text: str) -> str:
        for token, placeholder in self.placeholders.items():
            text = text.replace(placeholder, token)
        return text


@dataclass(frozen=True, slots=True)
class _Table:
    """What the rules say of each distinct token of a batch; lists and arrays of one length.

    first, later: what a token adds to a word that it begins, and to one that it continues.
    certain_first, certain_later: whether its probability is overridden to 1, there and there.
    """

    special: Bools
    begins: Bools
    first: list[str]
    later: list[str]
    certain_first: Bools
    certain_later: Bools

    @classmethod
    def of(cls, tokens: Sequence[str], vocabulary: Vocabulary, force: _Force) -> _Table:
        hidden = set(force.placeholders.values())
        later, begins, first, certain_first, certain_later = [], [], [], [], []
        for token in tokens:
            # lstrip takes any run of the marker's characters, so WordPiece's # and ## lose their sign as well.
            pure = token.lstrip(vocabulary.pieces)
            if vocabulary.pieces == "##":
                begins.append(pure in force.tokens or pure in hidden or not token.startswith("##"))
            else:  # a substring, not a member, of the punctuation: so it is there
                known = token in string.punctuation or token in force.tokens or token in hidden
                begins.append(known or token.startswith("▁"))
            shown = force.show(token)
            later.append(pure)
            first.append(shown)
            digits = force.options.force_reserve_digit
            certain_first.append(
                pure in force.tokens or pure in hidden or (digits and _DIGIT.search(shown) is not None)
            )
            certain_later.append(digits and _DIGIT.search(token) is not None)
        special = [token in vocabulary.special for token in tokens]
        as_bools = (np.array(flags, np.bool_) for flags in (special, begins, certain_first, certain_later))
        special_, begins_, first_, later_ = as_bools
        return cls(special_, begins_, first, later, first_, later_)


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of a chunk; arrays of length len(words).

    scores: with force tokens overridden, exact in float64; python_floats: which of them the reference holds as Python
    floats. plain: without overrides, float32. marker: stripped where words are shown.
    """

    words: list[str]
    scores: Floats
    python_floats: Bools
    plain: Probabilities
    marker: str

    @property
    def shown(self) -> list[str]:
        return [word.lstrip(self.marker) for word in self.words] if self.marker else self.words

    @classmethod
    def joined(cls, parts: Sequence[_Words], marker: str) -> _Words:
        return cls(
            [word for part in parts for word in part.words],
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.python_floats for part in parts]),
            np.concatenate([part.plain for part in parts]),
            marker,
        )


# ---- arithmetic, in the order and precision of the reference ---------------------------------------------------------


def _means(values: Probabilities, starts: Ints, sizes: Ints) -> Probabilities:
    """The mean of each word's tokens, added from left to right in float32.

    numpy's own sums add pairwise, which rounds differently. One step per token of the longest word.
    """
    sums = values[starts].copy()
    words = np.flatnonzero(sizes > 1)
    place = 1
    while len(words):
        sums[words] += values[starts[words] + place]
        place += 1
        words = words[sizes[words] > place]
    return (sums / sizes.astype(np.float32)).astype(np.float32)


def _percentile(scores: Floats, python_floats: Bools, percent: int) -> float:
    """numpy's percentile of what the reference hands to it: float32, unless a Python float is among it."""
    if not 0 <= percent <= 100:
        raise _failure("ValueError", f"percentile {percent}: the rate is out of range")
    if not len(scores):
        raise _failure("IndexError", "a chunk without words")
    return float(np.percentile(scores if python_floats.any() else scores.astype(np.float32), percent))


def _share_of_contexts(options: PromptOptions, n_contexts: int, n_tokens: int) -> float:
    try:
        return options.keep_share_of_contexts(n_contexts, n_tokens)
    except ZeroDivisionError as error:
        raise _failure("ZeroDivisionError", "contexts without tokens") from error


def _best_contexts(contexts: Sequence[_Words], share: float, forced: Collection[int]) -> list[int]:
    # cumsum adds from left to right, in float32 like the reference.
    means = np.array([np.cumsum(own.plain)[-1] / np.float32(len(own.words)) for own in contexts], np.float32)
    threshold = _percentile(means.astype(np.float64), np.zeros(len(means), np.bool_), int(100 * (1 - share)))
    return [i for i, mean in enumerate(means.tolist()) if mean >= threshold or i in forced]


def _ratio(target: float, tokens: int) -> float:
    if not tokens:
        raise _failure("ZeroDivisionError", "contexts without tokens")
    return target / tokens


def _tokenizes_words(tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a text are those of its words, one after another: so with BERT's rules.

    Not with SentencePiece, whose normalizer may see a space and the accent after it as one character.
    """
    rules = (type(part).__name__ for part in (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model))
    added = tokenizer.get_added_tokens_decoder().values()
    return tuple(rules) == ("BertNormalizer", "BertPreTokenizer", "WordPiece") and not any(
        _BLANKS.search(token.content) for token in added
    )


def _valid(text: str) -> str:
    """Rust strings cannot hold lone surrogates, and the reference stumbles over them; here they are question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _failure(kind: str, what: str) -> ConfigError:
    return ConfigError(
        f"The reference package fails here with {kind} ({what}), so the compat mode does. Use the default mode."
    )
