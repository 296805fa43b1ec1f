"""LongCodeZip: the functions that a question is about, whole; of others the signature, or nothing.

Files are cut into functions and the statements between them (`code_parsing.py`), these are ranked by their relevance to
the question (`relevance.py`), and the best are kept under the budget: whole, or, where `fine_rate` asks for it or the
budget ends in one, without the blocks that matter least. What the rest of the budget allows is spent on signatures.

What is kept is whole lines of the source in their order, so `Compressed.kept` and `placed` are true as for every
compressor, but for one thing: where lines are left out there may stand a line that is not from the source, `# ...`
(`// ...`), or, as the only line of a Python body, `...`. These lines are never within a kept stretch, and
`Compressed.source_offset` counts them to the end of the stretch before them, the first to the beginning of the next.
Nothing else is protected: `Compressed.broken` is empty.

Source: Shi et al. (2025), "LongCodeZip: Compress Long Context for Code Language Models". Ours besides: a file's best
function speaks for its others (`file_weight`), signatures are kept of what is left out, and within a function blocks
are its statements, which can be left out one by one, where the paper cuts between lines of high perplexity. The
paper's own relevance is `LogProbScorer(model, tokenizer, restriction="", form="perplexity")`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from ..router.errors import ConfigError
from .aiming import aimed
from .code_parsing import (
    Block,
    Language,
    blocks_of,
    closed,
    guess_language,
    has_errors,
    installed,
    language_of,
    require_grammar,
)
from .compression import Compressed, Count, Floats, Span, shares, whole
from .relevance import LexicalScorer, Scorer

FILE_WEIGHT = 0.6
"""How much of a block's score is that of the best block of its file; chosen in benchmarks/code_compression.py."""

_RUN_CHARACTERS = 1500  # of statements between functions that are ranked as one
_LINES_CHARACTERS = 300  # of lines that are ranked as one where statements are too long
_SMALL_LINES = 5  # functions of fewer lines are not compressed further
_SPREAD = 0.5  # beta: how far relevance moves the rate of a function
_PRESERVED = re.compile(r"(?:(?:async\s+)?def|class|function|func|fn)\b|#|//|/\*|(?:.*\n)*?\s*return\b")


class Code:
    """Keeps the functions that matter to a question.

    score: ranks passages of code. language: of all texts; None guesses it from each.
    parseable: promise that what is made of a source that parses does parse; `compress` raises MissingExtra where the
    grammar is not installed. Otherwise functions are then guessed from lines, and `guesses` says so.
    fine_rate: share of its tokens that a kept function of five lines or more is reduced to, on average; at 1 functions
    stay whole, except for the last one if it does not fit.
    signature_share: part of the budget that is set aside for the signatures of functions that are not kept. Without a
    question all of it goes to signatures first: an outline.
    mark_gaps: say `# ...` where lines are left out.
    """

    def __init__(
        self,
        score: Scorer | None = None,
        *,
        count: Count,
        language: str | None = None,
        parseable: bool = False,
        fine_rate: float = 1.0,
        signature_share: float = 0.1,
        file_weight: float = FILE_WEIGHT,
        mark_gaps: bool = True,
    ) -> None:
        for name, share in (("signature_share", signature_share), ("file_weight", file_weight)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}; it must be in [0, 1].")
        if not 0 < fine_rate <= 1:
            raise ConfigError(f"fine_rate is {fine_rate}; it must be in (0, 1].")
        self.score: Scorer = score or LexicalScorer()
        self.count = count
        self.language = None if language is None else language_of(language)
        self.parseable = parseable
        self.fine_rate = fine_rate
        self.signature_share = signature_share
        self.file_weight = file_weight
        self.mark_gaps = mark_gaps

    def guesses(self, text: str) -> str:
        """What a person should know about how the functions of a text are found; empty where its syntax is read."""
        language = self.language or language_of(guess_language(text))
        if installed(language):
            return ""
        return (
            f"The functions of this {language.name} code are guessed from its lines. "
            "Install its grammar with: pip install 'longroute[code]'"
        )

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        """See `compression.Compressor`; a text is a file."""
        tokens = [self.count(text) if text else 0 for text in texts]
        limits = shares(tokens, budget_tokens=budget_tokens, keep_rate=keep_rate)
        if budget_tokens is not None:
            return self._together(texts, tokens, question, min(budget_tokens, sum(tokens)))
        found = []
        for text, before, limit in zip(texts, tokens, limits, strict=True):
            found += self._together([text], [before], question, limit)
        return found

    def _together(self, texts: Sequence[str], tokens: Sequence[int], question: str, budget: int) -> list[Compressed]:
        if sum(tokens) <= budget:
            return [whole(text, before) for text, before in zip(texts, tokens, strict=True)]
        files = [self._file(text, before) for text, before in zip(texts, tokens, strict=True)]
        results = self._selected(files, question, budget, tokens, _RUN_CHARACTERS)
        if not self.parseable and _used(results) < budget / 2:
            # Long statements (tables of data), or a language that no grammar of ours reads, of which little would stay.
            cut = [replace(file, blocks=tuple(_in_lines(file.text, file.blocks))) for file in files]
            results = max(results, self._selected(cut, question, budget, tokens, _LINES_CHARACTERS), key=_used)
        return [self._promised(file, result) for file, result in zip(files, results, strict=True)]

    def _selected(
        self, files: Sequence[_File], question: str, budget: int, tokens: Sequence[int], run_characters: int
    ) -> list[Compressed]:
        pieces = [p for number, file in enumerate(files) for p in _pieces(number, file, self.count, run_characters)]
        scores = self._scores(question, files, pieces)
        return aimed(_Selector(self, question, files, pieces, scores).select, budget, tokens)

    def _promised(self, file: _File, result: Compressed) -> Compressed:
        """Nothing rather than code that does not parse. No source is known for which this comes to pass."""
        promised = self.parseable and result.text and not has_errors(file.text, file.language)
        if promised and has_errors(result.text, file.language):
            return Compressed("", (), (), result.tokens_before, 0)
        return result

    def _file(self, text: str, tokens: int) -> _File:
        language = self.language or language_of(guess_language(text))
        if self.parseable:
            require_grammar(language)
        return _File(text, language, blocks_of(text, language), tokens)

    def _scores(self, question: str, files: Sequence[_File], pieces: Sequence[_Piece]) -> Floats:
        """Relevance of the pieces, in [0, 1], shape (len(pieces),).

        The code that a question is about stands together: a piece gains by the best one of its file.
        """
        if not question.strip():
            return np.zeros(len(pieces))
        shown = [_shown(files[piece.file].text, piece) for piece in pieces]
        scores = _normalised(self.score(question, shown))
        owners = np.array([piece.file for piece in pieces], np.int64)
        best = np.zeros(len(files))
        np.maximum.at(best, owners, scores)
        return np.asarray((1 - self.file_weight) * scores + self.file_weight * best[owners])


@dataclass(frozen=True, slots=True)
class _File:
    text: str
    language: Language
    blocks: tuple[Block, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is ranked: a function, or a run of statements between functions.

    holders: the classes it is in, outermost first. tokens: of the piece itself, about.
    """

    file: int
    start: int
    end: int
    blocks: tuple[Block, ...]
    holders: tuple[Block, ...]
    tokens: int

    @property
    def function(self) -> Block | None:
        """The function, where it is one that can be opened."""
        first = self.blocks[0]
        return first if first.kind == "function" and first.blocks else None


def _used(results: Sequence[Compressed]) -> int:
    return sum(result.tokens_after for result in results)


def _in_lines(text: str, blocks: Sequence[Block]) -> Iterator[Block]:
    """Blocks with those cut into lines that hold no other and are longer than what is ranked as one."""
    for block in blocks:
        if block.blocks:
            yield replace(block, blocks=tuple(_in_lines(text, block.blocks)))
        elif block.end - block.start <= _LINES_CHARACTERS:
            yield block
        else:
            lines = [match.end() for match in re.finditer("\n", text[block.start : block.end])]
            edges = sorted({0, *lines, block.end - block.start})
            yield from (closed(block.start + a, block.start + b) for a, b in pairwise(edges))


def _pieces(number: int, file: _File, count: Count, run_characters: int) -> Iterator[_Piece]:
    def piece(run: Sequence[Block], holders: tuple[Block, ...]) -> _Piece:
        start, end = run[0].start, run[-1].end
        return _Piece(number, start, end, tuple(run), holders, count(file.text[start:end]))

    def walk(blocks: Sequence[Block], holders: tuple[Block, ...]) -> Iterator[_Piece]:
        run: list[Block] = []
        for block in blocks:
            opened = block.kind == "class" and bool(block.blocks)
            if run and (block.kind != "statement" or block.end - run[0].start > run_characters):
                yield piece(run, holders)
                run = []
            if opened:
                yield from walk(block.blocks, (*holders, block))
            elif block.kind == "statement":
                run.append(block)
            else:
                yield piece([block], holders)
        if run:
            yield piece(run, holders)

    return walk(file.blocks, ())


def _shown(text: str, piece: _Piece) -> str:
    """What the scorer sees: the first lines of the classes around a piece tell what it belongs to."""
    heads = [text[holder.code : holder.inside[0]] for holder in piece.holders]
    return "".join([*heads, text[piece.start : piece.end]])


def _normalised(scores: Floats) -> Floats:
    """To [0, 1], the worst at 0 and the best at 1; all 0 where they are equal or not numbers."""
    scores = np.nan_to_num(np.asarray(scores, np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    finite = scores[np.isfinite(scores)]
    if not len(finite) or finite.max() == finite.min():
        return np.zeros(len(scores))
    found: Floats = np.clip((scores - finite.min()) / (finite.max() - finite.min()), 0, 1)
    return found


# ---- selecting -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Selection:
    """What is kept, by where blocks begin in each file; a mutable draft that `_write` makes a result of.

    whole: blocks kept with everything in them. opened: blocks of which the first and last lines are kept; of classes
    and functions, what is not in `whole` is left out.
    """

    whole: set[int] = field(default_factory=set)
    opened: set[int] = field(default_factory=set)


class _Selector:
    """Chooses blocks of several files under one budget, best first."""

    def __init__(
        self, options: Code, question: str, files: Sequence[_File], pieces: Sequence[_Piece], scores: Floats
    ) -> None:
        self._options, self._question, self._files, self._pieces = options, question, files, pieces
        self._scores = scores
        self._order = np.argsort(-scores, kind="stable").tolist()
        self._heads: dict[tuple[int, int], int] = {}
        self._blocks: dict[int, tuple[list[int], Floats]] = {}

    def select(self, budget: float) -> list[Compressed]:
        """The results for about this many tokens; they may take a little more."""
        draft = [_Selection() for _ in self._files]
        left = budget
        asked = bool(self._question.strip())
        share = self._options.signature_share if asked else 1.0
        reserve = share * budget
        if asked:
            left = reserve + self._bodies(draft, left - reserve)
        left = self._signatures(draft, left)
        self._bodies(draft, left, smallest=0.0)
        count, mark_gaps = self._options.count, self._options.mark_gaps
        return [_write(file, chosen, count, mark_gaps) for file, chosen in zip(self._files, draft, strict=True)]

    def _bodies(self, draft: Sequence[_Selection], left: float, smallest: float = 0.5) -> float:
        """Whole pieces, best first, as far as the tokens go. Returns what is left of them.

        smallest: a function that does not fit is cut where at least this share of it does.
        """
        rates = self._rates(left) if smallest else {}  # what is left over at the end makes functions whole
        for number in self._order:
            piece = self._pieces[number]
            selection = draft[piece.file]
            if piece.start in selection.whole:
                continue
            price = float(self._holders(draft, piece))
            if piece.function and piece.start in selection.opened:
                price -= self._head(piece.file, piece.function)  # is there already
            rate = rates.get(number, 1.0)
            if piece.function and (rate < 1 or piece.tokens + price > left >= smallest * (piece.tokens + price)):
                spent = self._cut(selection, number, min(rate * piece.tokens, left - price))
                if not spent:
                    continue
                left -= spent + price
            elif piece.tokens + price <= left:
                selection.whole.update(block.start for block in piece.blocks)
                left -= piece.tokens + price
            else:
                continue
            selection.opened.update(holder.start for holder in piece.holders)
        return left

    def _signatures(self, draft: Sequence[_Selection], left: float) -> float:
        for number in self._order:
            piece = self._pieces[number]
            selection = draft[piece.file]
            if piece.function is None or piece.start in selection.whole or piece.start in selection.opened:
                continue
            price = self._holders(draft, piece) + self._head(piece.file, piece.function)
            if price <= left:
                selection.opened.update(block.start for block in (*piece.holders, piece.function))
                left -= price
        return left

    def _holders(self, draft: Sequence[_Selection], piece: _Piece) -> int:
        opened = draft[piece.file].opened
        return sum(self._head(piece.file, holder) for holder in piece.holders if holder.start not in opened)

    def _head(self, file: int, block: Block) -> int:
        """Tokens of the first and last lines of a block, and of a mark between them."""
        known = self._heads.get((file, block.start))
        if known is None:
            text = self._files[file].text
            lines = text[block.code : block.inside[0]] + text[block.inside[1] : block.end]
            known = self._heads[file, block.start] = self._options.count(lines) + 3
        return known

    # ---- within functions

    def _rates(self, budget: float) -> Mapping[int, float]:
        """The rate of each function that is to be compressed further, by number of piece. Empty at fine_rate 1.

        Those are the best that fit budget / fine_rate. The rates rise with the score, by `_SPREAD` from worst to best,
        and come to fine_rate of all tokens, small functions at 1.
        """
        rate = self._options.fine_rate
        if rate == 1 or budget <= 0:
            return {}
        room, chosen = budget / rate, []
        for number in self._order:
            piece = self._pieces[number]
            if piece.tokens <= room:
                room -= piece.tokens
                if piece.function is not None:
                    chosen.append(number)
        lines = {n: self._files[self._pieces[n].file].text.count("\n", *self._span(n)) for n in chosen}
        large = [n for n in chosen if lines[n] >= _SMALL_LINES]
        small = sum(self._pieces[n].tokens for n in chosen if lines[n] < _SMALL_LINES)
        weights = np.array([self._pieces[n].tokens for n in large], np.float64)
        return dict(zip(large, adaptive_rates(self._scores[large], weights, rate, small).tolist(), strict=True))

    def _span(self, number: int) -> Span:
        piece = self._pieces[number]
        return piece.start, piece.end

    def _cut(self, selection: _Selection, number: int, limit: float) -> float:
        """Opens a function and keeps the blocks that matter most. Returns about the tokens spent, 0 if none."""
        piece = self._pieces[number]
        function = piece.function
        assert function is not None
        spent = float(self._head(piece.file, function))
        if spent > limit:
            return 0.0
        text = self._files[piece.file].text
        if number not in self._blocks:
            shown = [text[block.start : block.end] for block in function.blocks]
            relevance = self._options.score(self._question, shown) if self._question.strip() else np.zeros(len(shown))
            self._blocks[number] = [self._options.count(part) for part in shown], _normalised(relevance)
        tokens, values = self._blocks[number]
        selection.opened.add(piece.start)
        kept: list[int] = []
        others: list[int] = []
        for place, block in enumerate(function.blocks):
            preserved = _PRESERVED.match(text[block.start : block.end].lstrip()) is not None
            (kept if preserved and spent + tokens[place] <= limit else others).append(place)
            spent += tokens[place] if kept and kept[-1] == place else 0
        # A little more than nothing for each, so that blocks without a word of the question still fill the room.
        chosen = knapsack([values[n] + 0.05 for n in others], [tokens[n] for n in others], int(limit - spent))
        kept += [others[n] for n in chosen]
        selection.whole.update(function.blocks[place].start for place in kept)
        return spent + sum(tokens[others[n]] for n in chosen)


def adaptive_rates(scores: Floats, tokens: Floats, rate: float, small_tokens: float = 0.0) -> Floats:
    """Rates of functions, higher for those of higher scores, that come to `rate` of all tokens.

    scores, tokens: shape (n,), of the functions that are compressed. small_tokens: of those that are kept whole and
    count into the total. Returns shape (n,), in [0, 1]; equal scores give equal rates.
    Source: LongCodeZip, section 3.3, with tokens in place of lines; beta 0.5.
    """
    total = float(tokens.sum())
    if total <= 0:
        return np.zeros(len(tokens))
    base = min(max((rate * (total + small_tokens) - small_tokens) / total, 0.0), 1.0)
    if scores.max() == scores.min():
        return np.full(len(tokens), base)
    relative = (scores - scores.min()) / (scores.max() - scores.min())
    rates = np.clip(base * (1 + _SPREAD * (2 * relative - 1)), 0, 1)
    kept = float(rates @ tokens)
    return np.asarray(np.clip(rates * (base * total / kept), 0, 1)) if kept > 0 else rates


_EXACT_ITEMS, _EXACT_CAPACITY = 100, 2000


def knapsack(values: Sequence[float], weights: Sequence[int], capacity: int) -> list[int]:
    """The items of the highest total value that weigh at most `capacity`, ascending.

    Exact for up to 100 items and a capacity of 2,000; above, by value per weight, best first.
    """
    if capacity <= 0:
        return []
    if len(values) > _EXACT_ITEMS or capacity > _EXACT_CAPACITY:
        chosen, left = [], capacity
        for item in sorted(range(len(values)), key=lambda i: (-values[i] / max(weights[i], 1), i)):
            if weights[item] <= left:
                chosen.append(item)
                left -= weights[item]
        return sorted(chosen)
    best = np.zeros(capacity + 1)
    taken = np.zeros((len(values), capacity + 1), np.bool_)
    for item, (value, weight) in enumerate(zip(values, weights, strict=True)):
        if weight > capacity or value <= 0:
            continue
        with_it = best[: capacity + 1 - weight] + value
        better = with_it > best[weight:]
        taken[item, weight:] = better
        best[weight:] = np.where(better, with_it, best[weight:])
    chosen, left = [], capacity
    for item in reversed(range(len(values))):
        if taken[item, left]:
            chosen.append(item)
            left -= weights[item]
    return chosen[::-1]


# ---- writing ---------------------------------------------------------------------------------------------------------


class _Writer:
    """Puts stretches of a source and lines of our own after one another."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.kept: list[Span] = []
        self.placed: list[int] = []
        self.pieces: list[str] = []
        self.length = 0
        self._ours = True  # whether the last piece is not from the source

    def keep(self, start: int, end: int) -> None:
        if end <= start:
            return
        if not self._ours and self.kept[-1][1] == start:
            self.kept[-1] = (self.kept[-1][0], end)
        else:
            self.kept.append((start, end))
            self.placed.append(self.length)
        self._put(self.source[start:end])
        self._ours = False

    def say(self, line: str) -> None:
        self._put(line)
        self._ours = True

    def _put(self, piece: str) -> None:
        self.pieces.append(piece)
        self.length += len(piece)


def _write(file: _File, selection: _Selection, count: Count, mark_gaps: bool) -> Compressed:
    if not selection.whole and not selection.opened:
        return Compressed("", (), (), file.tokens, 0)
    writer = _Writer(file.text)
    language = file.language

    def gap(start: int, end: int, indent: str) -> None:
        line = f"{indent}{language.comment} ...\n"
        if mark_gaps and len(line) < end - start:
            writer.say(line)

    def write(blocks: Sequence[Block], indent: str) -> None:
        skipped = -1  # where the lines that are left out begin
        for block in blocks:
            if block.start not in selection.whole and block.start not in selection.opened:
                skipped = block.start if skipped < 0 else skipped
                continue
            if skipped >= 0:
                gap(skipped, block.start, indent)
                skipped = -1
            if block.start in selection.whole:
                writer.keep(block.start, block.end)
            else:
                write_opened(block)
        if skipped >= 0:
            gap(skipped, blocks[-1].end, indent)

    def write_opened(block: Block) -> None:
        writer.keep(block.code, block.inside[0])
        if any(part.start in selection.whole or part.start in selection.opened for part in block.blocks):
            write(block.blocks, block.indent)
        else:
            line = f"{block.indent}{language.empty}\n"
            if len(line) <= block.inside[1] - block.inside[0]:
                writer.say(line)
            else:  # `pass` is no longer than what says that it is left out
                writer.keep(*block.inside)
        writer.keep(block.inside[1], block.end)

    write(file.blocks, "")
    text = "".join(writer.pieces)
    tokens = count(text)
    if tokens >= file.tokens or len(text) > len(file.text):
        return whole(file.text, file.tokens)
    return Compressed(text, tuple(writer.kept), tuple(writer.placed), file.tokens, tokens)
