"""What a reply looks like: the signs of a right or a wrong answer that need no model to read.

Written for replies to retrieved passages (`escalation.py`). Words and characters only: whether an answer is right is
not decided here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..router.replies import nothing_said

_READ = 4_000  # characters of a reply that are looked at
_FIRST_SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|[。！？]|\n|$)|$", re.DOTALL)

# "does not mention", "there is no information", "cannot be answered": how models say that a text does not hold the
# answer where nobody told them the words. Read on 18,460 of LaRA's replies: 79 % of those to unanswerable questions
# begin like this, 3 % of those to questions that one passage answers. For other languages see `router/replies.py`.
_REFUSAL = re.compile(
    r"\b(?:(?:do(?:es)?|did|is|are|was|were|has|have|can|could)(?:\s+not|n['’]t)|cannot|unable)\s+(?:\w+\s+){0,4}?"
    r"(?:mention|contain|provid|specif|stat|discuss|includ|answer|address|describ|giv|indicat|find|found|determin"
    r"|explicit|availab|inform|detail|disclos|present|identif|cover|explain|refer|list|report|offer|reveal|possib"
    r"|clear|direct|say)\w*"
    r"|\b(?:no|without any)\s+(?:\w+\s+){0,3}?"
    r"(?:mention|information|details?|reference|indication|evidence|discussion|data|description|record|statement)\b"
    r"|\bnot\s+(?:\w+\s+){0,2}?"
    r"(?:mentioned|specified|provided|stated|discussed|available|contained|included|found|described|addressed"
    r"|disclosed|given)\b"
    r"|\bunanswerable\b|\bno such\b|\bunfortunately\b|\bI apologi[sz]e\b",
    re.IGNORECASE,
)

# Scripts without spaces are cut into pairs of characters; elsewhere words of four letters and more, and numbers.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_RUN = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Signs:
    """What is seen in a reply.

    refused: it begins by saying that the text does not hold the answer, or says nothing.
    refused_late: it says so after something else, often after a part of the answer.
    words: how many.
    overlap: share of the question's terms that it repeats, [0, 1].
    grounded: share of its own terms, not the question's, that stand in the passages, [0, 1]; None where it has none or
    there are no passages to look in.
    """

    refused: bool
    refused_late: bool
    words: int
    overlap: float
    grounded: float | None


def signs(reply: str, question: str, passages: Sequence[str], *, refused: bool = False) -> Signs:
    """Signs of one reply. refused: known from elsewhere, as from the words that the prompt asked to refuse in."""
    text = reply[:_READ].strip()
    first = _FIRST_SENTENCE.match(text)
    begins = refused or not text or bool(first and _nothing_said(first[0]))
    asked, said = _terms(question), _terms(text)
    own, shown = said - asked, set().union(*map(_terms, passages))
    return Signs(
        refused=begins,
        refused_late=not begins and _nothing_said(text),
        words=len(text.split()),
        overlap=len(asked & said) / len(asked) if asked else 0.0,
        grounded=len(own & shown) / len(own) if own and shown else None,
    )


def _nothing_said(text: str) -> bool:
    return bool(_REFUSAL.search(text)) or nothing_said(text)


def _terms(text: str) -> set[str]:
    found: set[str] = set()
    for match in _RUN.finditer(text.lower()):
        run = match[0]
        if re.match(f"[{_UNSPACED}]", run):
            found.update(run[i : i + 2] for i in range(max(len(run) - 1, 1)))
        elif len(run) > 3 or run.isdigit():
            found.add(run)
    return found
