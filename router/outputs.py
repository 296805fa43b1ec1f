"""What the command line prints with `--json`: documented, versioned, validated. Schemas: `docs/schemas/`.

Fields are added within a version, never renamed or removed. Offsets count characters of the document's text. Money is
in US dollars; null means unknown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from .core import Answer, Decision, Document, Estimate, Passage, Usage
from .documents import locate


class _Output(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceOutput(_Output):
    """A stretch of a document: `text` equals the document's text from `start` to `end`."""

    document: str
    start: int = Field(description="First character, counted from 0.")
    end: int = Field(description="One past the last character.")
    text: str
    score: float
    line: int = Field(description="Line of `start`, counted from 1.")
    page: int | None = Field(description="Page of `start`, counted from 1; null where the source has no pages.")


class StretchOutput(_Output):
    """A stretch of a document, without its text."""

    document: str
    start: int = Field(description="First character, counted from 0.")
    end: int = Field(description="One past the last character.")
    line: int = Field(description="Line of `start`, counted from 1.")
    page: int | None = Field(description="Page of `start`, counted from 1; null where the source has no pages.")


class EstimateOutput(_Output):
    feasible: bool
    infeasible_reason: str | None
    quality: float | None = Field(description="Probability that the answer is correct.")
    quality_interval: tuple[float, float] | None = Field(description="90 % interval of `quality`.")
    basis: str = Field(description="Where the quality comes from.")
    measured: bool = Field(
        default=True,
        description="False where no outcomes stand behind it: the decision took the lower end of its interval.",
    )
    prompt_tokens: int
    cached_tokens: int = Field(description="Part of `prompt_tokens` expected from the provider's prompt cache.")
    completion_tokens: int
    calls: int
    cost_usd: float | None
    latency_s: float | None
    utility: float | None = Field(description="What the decision rule maximises.")


class DecideOutput(_Output):
    """`longroute decide --json`."""

    version: Literal[1] = 1
    strategy: str
    model: str
    policy: str
    prefer: str
    estimates: dict[str, EstimateOutput]
    reasons: list[str]
    task: dict[str, float] = Field(description="Probability of each question type.")
    document_tokens: int
    token_error: float = Field(description="Relative error of the token counts; 0 with an exact tokenizer.")


class UsageOutput(_Output):
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int = Field(default=0, description="Part of `prompt_tokens` put into the provider's prompt cache.")
    completion_tokens: int
    cost_usd: float | None


class CallOutput(_Output):
    """One model call that went well."""

    purpose: str
    usage: UsageOutput
    latency_s: float
    finish_reason: str


class WorkOutput(_Output):
    """What one path of a strategy of several calls left behind."""

    read: list[list[StretchOutput]] = Field(description="What each call was shown; empty for one that failed.")
    notes: list[str] = Field(description="What was known after each of them.")
    answer: str = Field(description="What this path alone answered; empty where it was not asked.")


class AskOutput(_Output):
    """`longroute ask --json`."""

    version: Literal[1] = 1
    answer: str
    answered: bool = Field(
        description="False where the text is no answer: empty, held back, or saying that there is none."
    )
    strategy: str = Field(description="What was carried out; differs from the decision only after a fallback.")
    citations: list[SourceOutput]
    passages: list[SourceOutput] = Field(description="What the model was shown; empty where that was the whole text.")
    decision: DecideOutput
    usage: UsageOutput
    notes: list[str]
    unread: list[StretchOutput] = Field(
        default_factory=list, description="What no call has seen, where the strategy was to read everything."
    )
    work: list[WorkOutput] = Field(default_factory=list, description="How strategies of several calls came to it.")
    calls: list[CallOutput] = Field(default_factory=list, description="In the order in which they ended.")


class RetrieveOutput(_Output):
    """`longroute retrieve --json`."""

    version: Literal[1] = 1
    retriever: str
    passages: list[SourceOutput]


class ShortenedOutput(_Output):
    """One shortened document. `text` at `placed[i]` begins the source's characters `kept[i][0]` to `kept[i][1]`."""

    document: str
    text: str
    tokens_before: int
    tokens_after: int
    keep_rate: float = Field(description="Tokens after / tokens before.")
    kept: list[tuple[int, int]] = Field(description="What is kept of the source, as character offsets, end exclusive.")
    placed: list[int] = Field(description="Where in `text` each of them begins.")
    broken: list[tuple[int, int]] = Field(description="Protected stretches of the source that did not fit.")


class CompressOutput(_Output):
    """`longroute compress --json`."""

    version: Literal[1] = 1
    method: str
    documents: list[ShortenedOutput]


class CheckOutput(_Output):
    name: str
    ok: bool | None = Field(description="null where it was not checked.")
    detail: str


class DoctorOutput(_Output):
    """`longroute doctor --json`."""

    version: Literal[1] = 1
    longroute: str
    python: str
    packages: dict[str, str | None] = Field(description="Installed version, or null.")
    checks: list[CheckOutput]
    cache_dir: str | None
    cache_bytes: int
    settings_file: str | None


OUTPUTS: Mapping[str, type[_Output]] = {
    "ask": AskOutput,
    "decide": DecideOutput,
    "retrieve": RetrieveOutput,
    "compress": CompressOutput,
    "doctor": DoctorOutput,
}


def decide_output(decision: Decision) -> DecideOutput:
    return DecideOutput(
        strategy=decision.strategy,
        model=decision.model,
        policy=decision.policy,
        prefer=decision.goal.prefer,
        estimates={estimate.strategy: estimate_output(estimate) for estimate in decision.estimates},
        reasons=list(decision.reasons),
        task={task: round(probability, 4) for task, probability in decision.features.task.items()},
        document_tokens=decision.features.document_tokens,
        token_error=decision.features.token_error,
    )


def ask_output(answer: Answer, documents: Sequence[Document]) -> AskOutput:
    assert answer.decision is not None  # the router always records its decision
    return AskOutput(
        answer=answer.text,
        answered=answer.answered,
        strategy=answer.strategy,
        citations=source_outputs(answer.citations, documents),
        passages=source_outputs(answer.passages, documents),
        decision=decide_output(answer.decision),
        usage=usage_output(answer.usage),
        notes=list(answer.notes),
        unread=stretch_outputs(answer.unread, documents),
        work=[
            WorkOutput(
                read=[stretch_outputs(shown, documents) for shown in work.read],
                notes=list(work.notes),
                answer=work.answer,
            )
            for work in answer.work
        ],
        calls=[
            CallOutput(
                purpose=call.purpose,
                usage=usage_output(call.usage),
                latency_s=call.latency_s,
                finish_reason=call.finish_reason,
            )
            for call in answer.calls
        ],
    )


def source_outputs(sources: Sequence[Passage], documents: Sequence[Document]) -> list[SourceOutput]:
    """Sources with the line and page where they stand."""
    by_id = {document.id: document for document in documents}
    outputs = []
    for source in sources:
        place = locate(by_id[source.document_id], source.start)
        outputs.append(
            SourceOutput(
                document=source.document_id,
                start=source.start,
                end=source.end,
                text=source.text,
                score=round(source.score, 6),
                line=place.line,
                page=place.page,
            )
        )
    return outputs


def stretch_outputs(stretches: Sequence[Passage], documents: Sequence[Document]) -> list[StretchOutput]:
    """Places with the line and page where they begin."""
    return [
        StretchOutput(document=s.document, start=s.start, end=s.end, line=s.line, page=s.page)
        for s in source_outputs(stretches, documents)
    ]


def estimate_output(estimate: Estimate) -> EstimateOutput:
    return EstimateOutput(
        feasible=estimate.feasible,
        infeasible_reason=estimate.infeasible or None,
        quality=estimate.quality,
        quality_interval=estimate.quality_interval,
        basis=estimate.basis,
        measured=estimate.measured,
        prompt_tokens=estimate.prompt_tokens,
        cached_tokens=estimate.cached_tokens,
        completion_tokens=estimate.completion_tokens,
        calls=estimate.calls,
        cost_usd=_dollars(estimate.cost_usd),
        latency_s=estimate.latency_s,
        utility=estimate.utility,
    )


def usage_output(usage: Usage) -> UsageOutput:
    return UsageOutput(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        written_tokens=usage.written_tokens,
        completion_tokens=usage.completion_tokens,
        cost_usd=_dollars(usage.cost_usd),
    )


def _dollars(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)


def write_schemas(directory: Path) -> None:
    """Publish the JSON schema of every output."""
    for name, output in OUTPUTS.items():
        schema = json.dumps(output.model_json_schema(mode="serialization"), indent=2, sort_keys=True)
        (directory / f"{name}.schema.json").write_text(f"{schema}\n")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
