"""How many tokens to draft next: from the running share of kept drafts and from measured step times.

Knows no model and reads no clock: it is told what each step took and answers with a length, where 0 means a plain step
of the target. One object serves answers behind contexts of about the same lengths, as step times depend on them.

Speed model, for drafts that are kept independently with chance a: a round of n drafts emits (1 - a^(n+1)) / (1 - a)
tokens and costs n draft steps and one target pass over n + 1 tokens. That pass costs 1 + g n^0.75 plain steps, with g
measured: each further token costs less than the one before (exponents of 0.6 to 1 were seen on CPUs, for 1 to 16
tokens; where memory bounds a pass g is about 0). Published rules of thumb (arXiv 2502.20330: no gain below 32k tokens)
are left to the measurement, as they hold for one kind of hardware.
"""

from __future__ import annotations

from dataclasses import dataclass

_FORGET = 0.9  # weight of the past when a new observation comes in: the last ten rounds say most
_VERIFY_POWER = 0.75  # how the cost of a target pass grows with the tokens drafted
_OUTLIER = 4.0  # a step longer than this many usual ones was interrupted; it counts as this many
_PRIOR_ACCEPTANCE, _PRIOR_TRIALS = 0.8, 2.0  # RAPID's published 75 to 85 %; too high a guess is soon corrected
_PLAIN_AT_FIRST = 2  # plain steps before the first draft, so that there is something to compare with
_PLAIN_AGAIN = 32  # rounds of speculation after which a plain step is measured again
_GRACE = 1.5  # plain steps that speculation may cost besides, so that it can be tried at all
_SHORTEST_PAUSE, _LONGEST_PAUSE = 16, 256  # plain steps between two trials, doubling while trials do not pay


@dataclass(frozen=True, slots=True)
class Round:
    """One round: what was drafted, what was kept, what it took.

    drafted: tokens drafted, 1 or more; accepted: those kept, in order, up to the first refusal or the cut.
    refused: whether a draft was refused. A round cut by the end of the text is not refused.
    emitted: tokens that came out, replacement or extra token included.
    draft_s: seconds of the draft's steps; catch_up_s: seconds for the draft to read what plain steps had emitted;
    verify_s: all other seconds of the round.
    """

    drafted: int
    accepted: int
    refused: bool
    emitted: int
    draft_s: float
    verify_s: float
    catch_up_s: float = 0.0


def expected_tokens(acceptance: float, drafted: int) -> float:
    """Tokens that a round of `drafted` drafts emits on average; acceptance: chance to keep one if those before were."""
    return float(sum(acceptance**kept for kept in range(drafted + 1)))


def predicted_speedup(acceptance: float, drafted: int, draft_step: float, verify: float) -> float:
    """Tokens per second of speculation over those of plain decoding; steps in units of one plain target step."""
    return expected_tokens(acceptance, drafted) / (drafted * draft_step + verify)


class DraftLength:
    """Chooses the draft length that promises most; plain steps where none promises `least_gain`.

    longest: longest draft. least_gain: predicted speed-up below which plain decoding is used.
    may_lose: the share of decoding time that speculation may cost, compared with plain steps, before it must pause,
        whatever it promises.
    rows: answers that share passes and each report them; pauses and losses are counted by pass.
    """

    def __init__(self, longest: int = 16, least_gain: float = 1.05, may_lose: float = 0.015, rows: int = 1) -> None:
        self.longest = longest
        self.least_gain = least_gain
        self.may_lose = may_lose
        self._kept = self._judged = 0.0  # decayed counts
        self._plain_s: float | None = None  # one plain step
        self._draft_s: float | None = None  # one draft step
        self._catch_up_s: float | None = None  # reading what plain steps emitted, when last it was needed
        self._verify_growth: float | None = None  # g of the speed model
        self._share = 1 / rows  # of a pass, in each report
        self._plain_steps = self._rounds = 0
        self._rounds_since_plain = self._plain_since_round = 0.0  # passes
        self._pause = _SHORTEST_PAUSE
        self._spent_s = self._lost_s = 0.0  # a gain is a negative loss

    @property
    def acceptance(self) -> float:
        """Running chance in [0, 1] that a draft is kept when those before it were."""
        return (self._kept + _PRIOR_ACCEPTANCE * _PRIOR_TRIALS) / (self._judged + _PRIOR_TRIALS)

    def best(self) -> tuple[int, float]:
        """The draft length that promises most, and its predicted speed-up; (0, 1.0) before anything was drafted."""
        if self._plain_s is None or self._draft_s is None or self._verify_growth is None:
            return 0, 1.0
        draft_step = self._draft_s / self._plain_s
        acceptance, growth = self.acceptance, self._verify_growth
        best, most = 0, 0.0
        emitted = kept = 1.0
        for n in range(1, self.longest + 1):  # `predicted_speedup` of each, in a loop that is run in every step
            kept *= acceptance
            emitted += kept
            gain = emitted / (n * draft_step + 1 + growth * n**_VERIFY_POWER)
            if gain > most:
                best, most = n, gain
        return best, most

    def choose(self, remaining: int) -> int:
        """Tokens to draft now, 0 for a plain step. remaining: tokens that may still be emitted; one needs no draft."""
        return min(self._wanted(), remaining - 1)

    def saw_plain_step(self, seconds: float) -> None:
        """A plain step of the target took `seconds`."""
        if self._plain_s is not None and self._plain_steps < _PLAIN_AT_FIRST:
            self._plain_s = min(self._plain_s, seconds)  # the first step after a prefill may be many times slower
        else:
            self._plain_s = _running(self._plain_s, seconds, self._plain_steps)
        self._plain_steps += 1
        self._plain_since_round += self._share
        self._rounds_since_plain = 0
        self._spent_s += seconds * self._share

    def saw_round(self, done: Round) -> None:
        """A round of speculation was done. Times are compared with plain steps, so one must have been seen before."""
        assert self._plain_s is not None
        self._kept = _FORGET * self._kept + done.accepted
        self._judged = _FORGET * self._judged + done.accepted + done.refused
        self._draft_s = _running(self._draft_s, done.draft_s / done.drafted, self._rounds)
        growth = max(0.0, done.verify_s / self._plain_s - 1) / done.drafted**_VERIFY_POWER
        self._verify_growth = _running(self._verify_growth, growth, self._rounds)
        self._catch_up_s = done.catch_up_s or self._catch_up_s
        seconds = done.draft_s + done.verify_s + done.catch_up_s
        self._spent_s += seconds * self._share
        self._lost_s += (seconds - done.emitted * self._plain_s) * self._share
        if self._plain_since_round >= _SHORTEST_PAUSE:  # this was a trial after a pause
            pays = self.best()[1] >= self.least_gain
            self._pause = _SHORTEST_PAUSE if pays else min(2 * self._pause, _LONGEST_PAUSE)
        self._plain_since_round = 0
        self._rounds_since_plain += self._share
        self._rounds += 1

    def _wanted(self) -> int:
        if self._plain_steps < _PLAIN_AT_FIRST:
            return 0
        if self._plain_s is None or self._draft_s is None:
            return 1  # the cheapest way to learn what a draft step takes
        length, gain = self.best()
        may_lose_s = self.may_lose * self._spent_s - self._lost_s
        if gain >= self.least_gain:
            if self._rounds_since_plain >= _PLAIN_AGAIN:
                return 0
            return self._affordable(length, may_lose_s + _GRACE * self._plain_s)
        catch_up_s = 2 * self._draft_s if self._catch_up_s is None else self._catch_up_s
        is_due = self._plain_since_round >= self._pause  # a trial of the whole length, or none
        return length if is_due and self._affordable(length, may_lose_s - catch_up_s) == length else 0

    def _affordable(self, length: int, may_lose_s: float) -> int:
        """The longest draft up to `length` that loses no more than this if all of it is refused: the guard where
        predictions are wrong.
        """
        assert self._plain_s is not None and self._draft_s is not None and self._verify_growth is not None
        growth_s = self._plain_s * self._verify_growth
        while length and length * self._draft_s + growth_s * length**_VERIFY_POWER > may_lose_s:
            length -= 1
        return length


def _running(known: float | None, seen: float, times: int) -> float:
    """Running mean that forgets; `times` it was told before.

    Steps are interrupted, and slow at first, but never sped up: so an outlier upwards counts only in part, and a step
    far below the mean corrects it at once.
    """
    if known is None:
        return seen
    if seen < known / 2:
        return (known + 3 * seen) / 4
    weight = max(1 - _FORGET, 1 / (times + 1))
    return (1 - weight) * known + weight * min(seen, _OUTLIER * known)
