"""`longroute calibrate`: reads arguments, calls the parts of calibration, prints. It decides nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import CalibrationError, ConfigError
from .score import ScorerName

if TYPE_CHECKING:
    from .run import Summary

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="""Fit the router to your own documents and model.

    `run` answers a set of questions with several strategies and scores the answers, `import` reads outcomes measured
    elsewhere, `fit` makes a policy of outcomes, `report` shows what it is worth, `drift` whether it
    still holds. docs/calibration.md has an example from beginning to end.
    """,
)
out_console = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@app.command("run")
def run_command(
    questions: Annotated[Path, typer.Argument(help="JSONL of questions, documents and answers.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Outcome file; what is there already is not done again.")] = Path(
        "outcomes.jsonl"
    ),
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="Strategy to run; repeat for several. Default: full, rag and compressed, which take one call each; "
            "those of several calls are run where they are named.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to run; repeat for several. Default: the configured one.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server.")] = None,
    scorer: Annotated[ScorerName | None, typer.Option(help="For rows that name none.")] = None,
    judge: Annotated[str, typer.Option(help="Model that scores the answers instead.", show_default=False)] = "",
    temperature: Annotated[float, typer.Option(min=0, help="Of every call.")] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Cases under way at once.")] = 4,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Most to spend on the outcome file, in dollars.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=0, help="Most tokens to spend on the outcome file.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Do failed outcomes again.")] = False,
    engine: Annotated[Literal["asyncio", "ray"], typer.Option(help="`ray`: in several processes.")] = "asyncio",
    workers: Annotated[int, typer.Option(min=1, help="Processes of the engine ray.")] = 2,
) -> None:
    """Answer every question with each strategy and model, score the answers, append the outcomes to a file.

    Stop it whenever you like: the same command goes on where it was. Failed calls are kept, with score 0.

    Example: `longroute calibrate run questions.jsonl --model gpt-4o-mini --max-cost 5`
    """
    from ..settings import load_settings
    from .dataset import read_dataset
    from .partitions import run_on_ray
    from .run import OF_ONE_CALL, Options, run

    settings = load_settings(base_url=base_url)
    dataset = read_dataset(questions, scorer)
    options = Options(
        strategies=tuple(strategy or OF_ONE_CALL),
        models=tuple(model or [settings.model]),
        judge=judge,
        temperature=temperature,
        concurrency=concurrency,
        max_cost_usd=None if max_cost is None else Decimal(str(max_cost)),
        max_tokens=max_tokens,
        retry_failed=retry_failed,
    )
    try:
        with _progress() as show:
            if engine == "ray":
                summary = run_on_ray(dataset, settings, options, out, workers=workers, on_progress=show)
            else:
                summary = asyncio.run(run(dataset, settings, options, out, on_progress=show))
    except KeyboardInterrupt:
        err.print(f"Stopped. What was done is in {escape(str(out))}; the same command goes on from there.")
        raise typer.Exit(130) from None
    _print_summary(summary, out)


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="Folder of published outcomes, or an outcome file.")],
    out: Annotated[Path, typer.Option(help="Outcome file to write.")] = Path("outcomes.jsonl"),
    score: Annotated[str, typer.Option(help="Field that holds the score.", show_default=False)] = "",
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=OURS: read the source's strategy NAME as our OURS; repeat for several.", show_default=False
        ),
    ] = None,
) -> None:
    """Turn outcomes measured elsewhere into an outcome file, with the features the router would have seen.

    Example: `longroute calibrate import locomo/ --strategy long_context=full --strategy rag_observation_pgvector=rag`
    """
    from ..settings import load_settings
    from .outcomes import to_line
    from .published import read_published
    from .run import write_whole

    if out.exists():
        raise CalibrationError(f"{out} is there already. Name another file with --out.")
    names = dict(_pair(text) for text in strategy) if strategy else None
    imported = read_published(source, load_settings(), score=score, strategies=names)
    write_whole(out, "".join(f"{to_line(outcome)}\n" for outcome in imported.outcomes))
    groups = len({outcome.group for outcome in imported.outcomes})
    out_console.print(f"{len(imported.outcomes):,} outcomes on {groups:,} groups of documents in {escape(str(out))}.")
    for reason, count in imported.left_out.items():
        err.print(f"[yellow]note:[/] {count:,} left out: {escape(reason)}.")


@app.command("fit")
def fit_command(
    outcomes: Annotated[list[Path], typer.Argument(help="Outcome files.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Policy file to write.")] = Path("policy.json"),
    risk: Annotated[
        float | None,
        typer.Option(min=0.001, max=0.5, help="Guarantee: most quality to lose against full, like 0.02."),
    ] = None,
    delta: Annotated[float, typer.Option(min=0.001, max=0.5, help="Chance that the guarantee is wrong.")] = 0.1,
) -> None:
    """Move the shipped policy towards your own outcomes. With few of them it stays close to where it was.

    With `--risk` half of the document groups fit the policy and the other half show how far it may be trusted.

    Example: `longroute calibrate fit outcomes.jsonl --risk 0.02 --out policy.json`
    """
    from ...policies import policy_file
    from ...policies.learned import Learned, shipped
    from ..settings import load_settings
    from .evaluate import fold_of, guaranteed
    from .fit import adapt
    from .observe import Observer
    from .outcomes import read_outcomes

    trained = {"command": " ".join(["longroute calibrate fit", *map(str, outcomes)]), "source": "your own outcomes"}
    profile_of = Observer(load_settings()).profile
    rows = list(read_outcomes(outcomes))
    kept_back = [row for row in rows if risk is not None and fold_of(row.group, 2)]
    fitting = [row for row in rows if risk is None or not fold_of(row.group, 2)]
    if risk is not None and not (kept_back and fitting):
        raise CalibrationError("A guarantee needs outcomes on several groups of documents: half fit, half show.")
    weights, notes = adapt(shipped(), fitting, profile_of, trained=trained)
    guarantee = None
    if risk is not None:
        guarantee, _ = guaranteed(Learned(weights), kept_back, profile_of, epsilon=risk, delta=delta)
    policy_file.write(out, weights, guarantee)
    out_console.print(
        f"Fitted to {weights.trained['outcomes']} outcomes of {weights.trained['cases']} cases: {escape(str(out))}"
    )
    if guarantee is not None:
        out_console.print(f"{guarantee.statement}\n{guarantee.assumption}", markup=False)
    out_console.print(f'Use it with `policy = "{out}"` in longroute.toml, or LONGROUTE_POLICY={out}.', markup=False)
    for note in notes:
        err.print(f"[yellow]note:[/] {escape(note)}")


@app.command("report")
def report_command(
    outcomes: Annotated[list[Path], typer.Argument(help="Outcome files.", show_default=False)],
    out: Annotated[Path, typer.Option(help="HTML page to write; the numbers go beside it as JSON.")] = Path(
        "report.html"
    ),
    policy: Annotated[
        Path | None,
        typer.Option(help="Judge this policy file as it is. Without one, fits are judged on cases kept from them."),
    ] = None,
    risk: Annotated[float, typer.Option(min=0.001, max=0.5, help="Loss against full for the risk curve.")] = 0.02,
    delta: Annotated[float, typer.Option(min=0.001, max=0.5, help="Chance that the guarantee is wrong.")] = 0.1,
) -> None:
    """Show what the policy is worth: cost and quality against always-each and the oracle, calibration, regret, risk.

    Example: `longroute calibrate report outcomes.jsonl --out report.html`
    """
    from ...policies import policy_file
    from ...policies.learned import shipped
    from ..core import Policy
    from ..settings import load_settings
    from .evaluate import cross_fitted, evaluate, fold_of, guaranteed
    from .observe import Observer
    from .outcomes import read_outcomes
    from .page import render
    from .report import measure

    profile_of = Observer(load_settings()).profile
    rows = list(read_outcomes(outcomes))
    if not rows:
        raise CalibrationError("There are no outcomes to report on. Run `longroute calibrate run` first.")
    if policy is not None:
        given = policy_file.read(policy)
        judges: list[Policy] = [given]
        curve_rows, notes = rows, [f"Judged: {policy} as it is. On the outcomes it was fitted to it looks too good."]
    else:
        judges = cross_fitted(shipped(), rows, profile_of)
        curve_rows = [row for row in rows if fold_of(row.group, len(judges)) == 0]
        notes = ["Judged by cross-fitting: each case by a policy fitted without its documents."]
    try:
        curve = guaranteed(judges[0], curve_rows, profile_of, epsilon=risk, delta=delta)
    except CalibrationError as error:
        curve = None
        notes.append(f"No risk curve: {error}")
    evaluation = evaluate(rows, lambda group: judges[fold_of(group, len(judges))], profile_of, risk=curve, notes=notes)
    numbers = measure(evaluation)
    out.write_text(render(numbers), encoding="utf-8")
    beside = out.with_suffix(".json")
    beside.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    out_console.print(f"{len(evaluation.ids):,} cases in {escape(str(out))}, their numbers in {escape(str(beside))}.")


@app.command("drift")
def drift_command(
    recent: Annotated[list[Path], typer.Argument(help="Outcome files of late.", show_default=False)],
    fitted: Annotated[list[Path], typer.Option(help="Outcome files of the fit.", show_default=False)],
    policy: Annotated[Path | None, typer.Option(help="Policy file in use. Default: the shipped one.")] = None,
    level: Annotated[float, typer.Option(min=0.001, max=0.5, help="Chance of a false alarm.")] = 0.05,
) -> None:
    """Say whether recent cases and scores differ from those of the fit. Ends with code 1 where something moved.

    Example: `longroute calibrate drift recent.jsonl --fitted outcomes.jsonl --policy policy.json`
    """
    from ...policies import policy_file
    from ...policies.learned import shipped
    from ..settings import load_settings
    from .drift import drift
    from .observe import Observer
    from .outcomes import read_outcomes

    weights = policy_file.read_weights(policy) if policy else shipped()
    profile_of = Observer(load_settings()).profile
    found = drift(weights, list(read_outcomes(fitted)), list(read_outcomes(recent)), profile_of, level=level)
    out_console.print(found.verdict, markup=False)
    if found.moved:
        raise typer.Exit(1)


def _pair(text: str) -> tuple[str, str]:
    name, equals, ours = text.partition("=")
    if not (name and equals and ours):
        raise ConfigError(f"--strategy {text!r} is not NAME=OURS, like long_context=full.")
    return name, ours


@contextmanager
def _progress() -> Iterator[Callable[[Summary], None]]:
    """A bar on a terminal, nothing in a pipe."""
    if not err.is_terminal:
        yield lambda summary: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task("", total=None)

        def show(summary: Summary) -> None:
            words = f"{summary.failed} failed · {summary.tokens:,} tokens · ${summary.cost_usd:.2f}"
            progress.update(bar, completed=summary.done, total=summary.total, description=words)

        yield show


def _print_summary(summary: Summary, out: Path) -> None:
    out_console.print(
        f"{summary.done:,} of {summary.total:,} outcomes in {escape(str(out))}: {summary.failed:,} failed, "
        f"{summary.tokens:,} tokens, ${summary.cost_usd:.4f} where prices are known."
    )
    if summary.unjudged:
        err.print(
            f"[yellow]note:[/] {summary.unjudged:,} answers were left to the scorer by the judge; see their error."
        )
    if summary.stopped:
        err.print(f"[yellow]note:[/] {summary.left:,} are left undone: {escape(summary.stopped)}. Raise it to go on.")
