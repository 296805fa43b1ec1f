"""What became of a request → what is remembered of it: numbers, names and places. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from ..core import Estimate, Passage
from ..outputs import estimate_output
from .exchange import Exchange
from .records import Record, Shown, Stage
from .routing import FULL, OFF, Considered
from .texts import Api

_PLACES_IN_BRIEF = 8


def record_of(considered: Considered, exchange: Exchange, upstream: str, api: Api, failed: Stage | None) -> Record:
    """The record as far as it is known before the upstream has answered."""
    record = Record(
        id=exchange.id,
        at=exchange.arrived_at,
        upstream=upstream,
        api=api,
        model=considered.conversation.model if considered.conversation else "",
        strategy=considered.strategy,
        client=exchange.caller.name,
        shape=considered.located.shape if considered.located else "",
        reasons=(considered.reason,) if considered.reason else (),
        fail_open=failed or "",
    )
    decision = considered.decision
    if decision is None:
        return record
    task, probability = max(decision.features.task.items(), key=lambda item: item[1])
    full, sent = _estimate(considered, FULL), _estimate(considered, considered.strategy)
    return replace(
        record,
        # Where a stage failed, no decision was carried out, so there is nothing to compare.
        eligible=not considered.forced and not failed,
        holdout=considered.holdout,
        prefer=decision.goal.prefer,
        policy=decision.policy,
        reasons=tuple(dict.fromkeys((*record.reasons, *decision.reasons))),
        task=task,
        task_probability=probability,
        estimates={estimate.strategy: estimate_output(estimate) for estimate in decision.estimates},
        tokens_before=considered.tokens_before,
        tokens_after=considered.tokens_after,
        token_error=decision.features.token_error,
        cost_before_usd=full.cost_usd if full else None,
        cost_after_usd=sent.cost_usd if sent else None,
        quality=sent.quality if sent else None,
        quality_interval=sent.quality_interval if sent else None,
        quality_full=full.quality if full else None,
        quality_full_interval=full.quality_interval if full else None,
        citations=_places(considered, considered.shown),
        unread=_places(considered, considered.unread),
        notes=considered.notes,
    )


def estimate_in_brief(considered: Considered) -> str | None:
    """One line for a header: what was expected of what was sent, beside sending the whole text."""
    sent, full = _estimate(considered, considered.strategy), _estimate(considered, FULL)
    if sent is None:
        return None
    said = [f"quality={_share(sent.quality)}"]
    if sent.quality_interval:
        said.append(f"quality_90={_share(sent.quality_interval[0])}-{_share(sent.quality_interval[1])}")
    said.append(f"cost_usd={_dollars(sent.cost_usd)}")
    if sent.calls > 1:
        said.append(f"calls={sent.calls}")
    if full is not None and full is not sent:
        said += [f"full_quality={_share(full.quality)}", f"full_cost_usd={_dollars(full.cost_usd)}"]
    return "; ".join(said)


def places_in_brief(stretches: Sequence[Passage]) -> str | None:
    """One line for a header: which characters of which documents."""
    named = [f"{p.document_id} {p.start}-{p.end}" for p in stretches[:_PLACES_IN_BRIEF]]
    more = len(stretches) - len(named)
    return "; ".join([*named, *([f"{more} more"] if more else [])]) or None


def _places(considered: Considered, stretches: Sequence[Passage]) -> tuple[Shown, ...]:
    return tuple(Shown(p.document_id, _path(considered, p.document_id), p.start, p.end, p.score) for p in stretches)


def _estimate(considered: Considered, strategy: str) -> Estimate | None:
    """The estimate of what is sent; a request left as it came is the whole text."""
    wanted = FULL if strategy == OFF else strategy
    estimates = considered.decision.estimates if considered.decision else ()
    return next((estimate for estimate in estimates if estimate.strategy == wanted), None)


def _path(considered: Considered, document_id: str) -> tuple[str | int, ...]:
    located = considered.located
    assert located is not None
    number = next(n for n, document in enumerate(located.documents) if document.id == document_id)
    return located.places[number].path


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _dollars(value: Decimal | None) -> str:
    return "unknown" if value is None else f"{value:.6f}"
