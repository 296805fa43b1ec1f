"""The embedded backend: answers with the sentences of the passages that fit the question best, word for word.

No model and no download: terms weighted by rarity, their neighbourhood, and what kind of thing the question asks for.
Sums are exactly rounded (`math.fsum`), because sets have another order in every process and answers should repeat.
Where an embedding function is given it refines the choice among the best candidates. Finding passages is left to the
retrievers, cutting them into sentences to `sentences.py`, reading the question to `asked.py`.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from operator import add

import numpy as np

from ..core import Call, Citation, Passage, Reply, Usage
from ..errors import BackendRejected
from .asked import WORD_CHARACTER, Asked, read
from .sentences import Unit, split

Terms = Callable[[str], list[str]]
Encode = Callable[[Sequence[str]], np.ndarray]

NOT_FOUND = "The passages do not say."
"""What a reply says where nothing fits."""

MIN_EVIDENCE = 0.35
"""Least evidence to answer on, as `_Candidate.evidence`; benchmarks/extractive.py chooses it and says what it costs."""
MIN_EVIDENCE_EMBEDDED = 0.44
"""The same where sentences are embedded too."""

_MOST_UNITS = 3
_SUMMARY_UNITS = 4
_CANDIDATES = 1500  # units looked at closely; the others share fewer words with the question
_EMBEDDED = 24  # of which so many are embedded
_LONGEST_ANSWER = 900  # characters
_CENTRAL_POOL = 400  # sentences among which the central ones are sought

_SMOOTHING = 2.0  # so that one absent word does not outweigh all the others
# Weights of the score, next to 1.0 for all of the question's terms in the unit itself.
_CONTEXT_WEIGHT = 0.4  # terms around the unit
_EXPECTED_FORM = 0.2  # holds the kind of thing asked for
_SUBJECT_FIRST = 0.3
_RELEVANCE = 0.1  # the retriever's opinion
_SIMILARITY = 0.3  # cosine

_PRONOUN = re.compile(
    r"(?:He|She|It|They|This|That|These|Those|His|Her|Its|Their|Er|Sie|Es|Dies\w*|Ella?|Ellos|Esto|Il|Elle|Ils|Elles|Он|Она"
    r"|Они|Это)\b|[他她它]们?|这|该"
)
_WORD = re.compile(r"\w+")
_UNSPACED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_RUN = re.compile(rf"(?P<unspaced>{_UNSPACED}+)|(?:(?!{_UNSPACED}){WORD_CHARACTER})+")


def rough_terms(text: str) -> list[str]:
    """Beginnings of words; in scripts without spaces, characters and pairs of them. The default `terms`.

    Five letters cut endings off in any alphabet: on XQuAD they find 4 points more answers than whole words.
    """
    found: list[str] = []
    for match in _RUN.finditer(text.lower()):
        run = match[0]
        if match["unspaced"]:
            found += run
            found += map(add, run, run[1:])
        else:
            found.append(run[:5])
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """A unit and where it stands: number of its passage, and the heading over it."""

    unit: Unit
    passage: int
    text: str
    heading: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A place that may be the answer.

    found: weight of the question's terms in it, as a share of them all, [0, 1].
    evidence: found, and at a discount what stands around it, [0, 1].
    terms: the question's terms in it.
    """

    index: int
    score: float
    found: float
    evidence: float
    terms: frozenset[str]


class Extractive:
    """Quotes one to three sentences, or says that the passages do not say.

    terms: text to search terms; given the retrievers' own, both agree on what matches.
    encode: texts to L2-normalised vectors, shape (n_texts, dimension).
    min_evidence: answer from this share of the question's terms on; None takes the measured default.
    """

    def __init__(
        self, terms: Terms | None = None, encode: Encode | None = None, *, min_evidence: float | None = None
    ) -> None:
        self._terms = terms or rough_terms
        self._encode = encode
        default = MIN_EVIDENCE_EMBEDDED if encode else MIN_EVIDENCE
        self._min_evidence = default if min_evidence is None else min_evidence

    async def generate(self, call: Call) -> Reply:
        """The reply. Raises BackendRejected for a call that carries no question."""
        return await asyncio.to_thread(self._reply, call)

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        reply = await self.generate(call)
        for piece in re.findall(r"\s*\S+", reply.text):
            yield piece
        yield reply

    async def aclose(self) -> None:
        """Nothing to release."""

    def _reply(self, call: Call) -> Reply:
        if not call.question.strip():
            raise BackendRejected(
                f"The extractive backend quotes from passages; it cannot follow the prompt of the call "
                f"{call.purpose!r}. Use the strategies 'rag' or 'full' with it, or configure a model."
            )
        asked = read(call.question)
        places = list(_places(call.passages))
        chosen = self._central(asked, places) if asked.summary else self._fitting(call, asked, places)
        groups = _neighbours(chosen, places, call.passages)
        cited = {
            min(map(list(chosen).index, group)): _citation(group, chosen, places, call.passages) for group in groups
        }
        return Reply(
            _joined(groups, list(cited.values()), places) or NOT_FOUND,
            Usage(cost_usd=Decimal(0)),
            model=call.model,
            citations=tuple(cited[rank] for rank in sorted(cited)),
            answered=bool(chosen),
        )

    # ---- questions about something -----------------------------------------------------------------------------------

    def _fitting(self, call: Call, asked: Asked, places: Sequence[_Place]) -> dict[int, float]:
        """Places that answer the question, best first, with their evidence; none where it is thin."""
        ranked = self._ranked(call, asked, places)
        return _chosen(asked, ranked, places) if ranked and ranked[0].evidence >= self._min_evidence else {}

    def _ranked(self, call: Call, asked: Asked, places: Sequence[_Place]) -> list[_Candidate]:
        """Candidates, best first; ties in order of the text."""
        near = _near(asked.content, places)
        dropped = {word for word in asked.mentioned if not self._terms(word)}

        def terms(text: str) -> list[str]:
            return [*self._terms(text), *dropped.intersection(_WORD.findall(text.lower()) if dropped else ())]

        wanted = frozenset(terms(asked.content))
        if not near or not wanted:
            return []
        sets = {index: frozenset(terms(places[index].text)) for index in _with_neighbours(near, len(places))}
        weights = {
            term: math.log1p(len(places) / (_SMOOTHING + sum(term in sets[index] for index in near))) for term in wanted
        }
        total = math.fsum(weights.values())
        heading_terms = {heading: frozenset(terms(heading)) for heading in {places[index].heading for index in near}}
        relevance = _relevance(call.passages)
        candidates = []
        for index in near:
            place = places[index]
            if place.unit.kind == "heading":
                continue
            inside = wanted & sets[index]
            around = heading_terms[place.heading].union(
                *(
                    sets[i]
                    for i in (index - 2, index - 1, index + 1)
                    if i in sets and places[i].passage == place.passage
                )
            )
            found = math.fsum(weights[term] for term in inside) / total
            evidence = found + _CONTEXT_WEIGHT * math.fsum(weights[term] for term in wanted & around - inside) / total
            score = evidence + _form(asked, place, call.question) + _RELEVANCE * relevance[place.passage]
            candidates.append(_Candidate(index, score, found, evidence, inside))
        candidates.sort(key=lambda one: -one.score)
        return self._refined(call.question, candidates, places)

    def _refined(self, question: str, ranked: list[_Candidate], places: Sequence[_Place]) -> list[_Candidate]:
        """The best candidates reordered by what they mean, too; evidence is then half terms, half meaning."""
        if not self._encode or not ranked:
            return ranked
        best = ranked[:_EMBEDDED]
        vectors = self._encode([question, *(places[one.index].text for one in best)])
        similarities = np.maximum(vectors[1:] @ vectors[0], 0.0).tolist()
        better = [
            replace(one, score=one.score + _SIMILARITY * similarity, evidence=(one.evidence + similarity) / 2)
            for one, similarity in zip(best, similarities, strict=True)
        ]
        return sorted(better, key=lambda one: -one.score)

    # ---- questions about everything ----------------------------------------------------------------------------------

    def _central(self, asked: Asked, places: Sequence[_Place]) -> dict[int, float]:
        """The sentences that say most of what the text keeps coming back to, without saying it twice.

        After SumBasic (Nenkova and Vanderwende 2005), with document frequencies and a preference for openings.
        """
        prose = [i for i, place in enumerate(places) if place.unit.kind == "sentence" and len(place.text) >= 20]
        openings = [i for i in prose if i == 0 or places[i - 1].unit.paragraph != places[i].unit.paragraph]
        pool = openings if len(openings) >= _CENTRAL_POOL else prose
        pool = pool[:: max(1, len(pool) // _CENTRAL_POOL)]
        terms_of = {index: frozenset(self._terms(places[index].text)) for index in pool}
        counts = Counter(term for terms in terms_of.values() for term in terms)
        # Words in more than a quarter of the sentences are grammar; words in one are detail.
        weights = {term: math.log(count) for term, count in counts.items() if 1 < count <= max(2, len(pool) / 4)}
        # "Summarise the changes in 2024": what is named counts more.
        weights.update({term: weights.get(term, 0.0) + 2.0 for term in self._terms(asked.content) if term in counts})
        chosen: dict[int, float] = {}
        while pool and len(chosen) < _SUMMARY_UNITS:
            scores = {
                index: (math.fsum(weights.get(term, 0.0) for term in terms_of[index]) + 0.1)
                / (8 + len(terms_of[index]))
                * (1.0 if index in openings else 0.7)
                * (1.5 - index / len(places))
                for index in pool
            }
            best = max(pool, key=lambda index: scores[index])
            chosen[best] = min(scores[best], 1.0)
            pool.remove(best)
            weights.update({term: 0.3 * weights[term] for term in terms_of[best] & weights.keys()})
        return chosen


# ---- places ----------------------------------------------------------------------------------------------------------


def _places(passages: Sequence[Passage]) -> Iterator[_Place]:
    for number, passage in enumerate(passages):
        heading = ""
        for unit in split(passage.text):
            text = passage.text[unit.start : unit.end]
            yield _Place(unit, number, text, heading)
            if unit.kind == "heading":
                heading = text


def _near(content: str, places: Sequence[_Place]) -> list[int]:
    """Places that share the beginning of a word with the question, and what follows them; in order, not too many.

    Cheap, so that a long text needs its terms worked out only here. Beginnings, because endings change.
    """
    stems = set(rough_terms(content))
    hits = [frozenset(stem for stem in stems if stem in text) for text in (place.text.lower() for place in places)]
    counts = Counter(stem for hit in hits for stem in hit)
    weight = {stem: math.log1p(len(places) / count) for stem, count in counts.items()}
    own = [math.fsum(weight[stem] for stem in hit) for hit in hits]
    # "Who is Ada?" may be answered by "She ...", and by what stands below the heading "Ada".
    worth = [
        max(here, 0.5 * before, 0.5 * earlier)
        for here, before, earlier in zip(own, [0, *own], [0, 0, *own], strict=False)
    ]
    best = sorted((index for index in range(len(places)) if worth[index]), key=lambda index: -worth[index])
    return sorted(best[:_CANDIDATES])


def _with_neighbours(indices: Sequence[int], n: int) -> set[int]:
    return {i for index in indices for i in range(max(0, index - 2), min(n, index + 2))}


def _relevance(passages: Sequence[Passage]) -> list[float]:
    """Retrieval scores brought to [0, 1]; zeros where they do not differ."""
    scores = [passage.score for passage in passages]
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) if high > low else 0.0 for score in scores]


def _form(asked: Asked, place: _Place, question: str) -> float:
    """Whether it looks like an answer: holds the kind of thing asked for, asks nothing, is neither long nor bare."""
    text = place.text
    score = -0.1 * max(0, len(text) - 300) / 200
    if asked.expected:
        lowered = question.lower()
        if any(match[0].strip().lower() not in lowered for match in asked.expected.finditer(text)):
            score += _EXPECTED_FORM
    if text.rstrip("\"'”’»)」』").endswith(("?", "？", "؟")):
        score -= 0.7
    if len(text) < 25 or place.unit.kind != "sentence":
        score -= 0.1
    elif asked.subject:
        score += _subject_first(asked.subject, text.lower())
    return score


def _subject_first(subject: str, text: str) -> float:
    """For "What is X?": sentences that begin with X tell what it is; others only mention it."""
    stems = rough_terms(subject)
    starts = [text.find(stem) for stem in stems]
    if min(starts, default=-1) < 0:
        return 0.0
    return _SUBJECT_FIRST * max(0.0, 1.0 - max(0, max(starts) - len(subject)) / 40)


# ---- the answer ------------------------------------------------------------------------------------------------------


def _chosen(asked: Asked, ranked: Sequence[_Candidate], places: Sequence[_Place]) -> dict[int, float]:
    """The best place, what is needed to understand it, and what it leaves open; with their evidence."""
    best = ranked[0]
    chosen = {best.index: best.evidence}
    text, told = places[best.index].text, best.terms
    if _PRONOUN.match(text) and _same_paragraph(places, best.index - 1):
        chosen[best.index - 1] = best.evidence
    if best.index + 1 < len(places) and _leads_on(asked, places, best.index):
        chosen[best.index + 1] = best.evidence
    for other in ranked[1:20]:
        adds = other.found >= 0.2 and best.found < 0.7 and not other.terms <= told
        texts = [places[index].text for index in chosen]
        if (
            len(chosen) < _MOST_UNITS
            and other.index not in chosen
            and other.score >= (0.85 if asked.open else 0.6 if adds else 2.0) * best.score
            and places[other.index].text not in texts
            and sum(map(len, texts)) + len(places[other.index].text) <= _LONGEST_ANSWER
        ):
            chosen[other.index] = other.evidence
            told |= other.terms
    return chosen


def _leads_on(asked: Asked, places: Sequence[_Place], index: int) -> bool:
    """Whether a place ends before it has said what it was chosen for, and the next says it."""
    if places[index].text.endswith((":", "：")) and places[index].passage == places[index + 1].passage:
        return True
    return (
        asked.expected is not None
        and not asked.expected.search(places[index].text)
        and asked.expected.search(places[index + 1].text) is not None
        and _same_paragraph(places, index)
    )


def _same_paragraph(places: Sequence[_Place], index: int) -> bool:
    """Whether a place and the next stand in one paragraph."""
    return index >= 0 and (places[index].passage, places[index].unit.paragraph) == (
        places[index + 1].passage,
        places[index + 1].unit.paragraph,
    )


def _neighbours(chosen: Mapping[int, float], places: Sequence[_Place], passages: Sequence[Passage]) -> list[list[int]]:
    """Chosen places in order of the text, those that only white space parts in one group."""
    groups: list[list[int]] = []
    for index in sorted(chosen):
        place = places[index]
        if groups and groups[-1][-1] == index - 1:
            before = places[index - 1]
            between = passages[place.passage].text[before.unit.end : place.unit.start]
            if before.passage == place.passage and not between.strip():
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


def _citation(
    group: Sequence[int], scores: Mapping[int, float], places: Sequence[_Place], passages: Sequence[Passage]
) -> Citation:
    passage = passages[places[group[0]].passage]
    start, end = places[group[0]].unit.start, places[group[-1]].unit.end
    return Citation(
        passage.document_id,
        passage.start + start,
        passage.start + end,
        passage.text[start:end],
        max(scores[index] for index in group),
    )


def _joined(groups: Sequence[Sequence[int]], citations: Sequence[Citation], places: Sequence[_Place]) -> str:
    """Prose without its line breaks; rows and code as they stand, on lines of their own."""
    prose = all(places[index].unit.kind == "sentence" for group in groups for index in group)
    return (" … " if prose else "\n").join(
        " ".join(citation.text.split()) if prose else citation.text for citation in citations
    )
