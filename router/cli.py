"""The command line: reads arguments, calls the router, prints. It decides nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .core import Answer, Decision, Document, Usage
from .errors import ConfigError, MissingExtra, RouterError
from .terminal import Terminal, printable

app = typer.Typer(
    name="longroute",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Ask questions about more text than a model should be shown.

    For each question longroute chooses how to use the text (whole, or the passages that matter), says why, and
    answers with citations. Without any configuration it works offline, with an embedded backend that answers by
    quoting; give `--model` and `--base-url` to use any OpenAI-compatible server. `longroute --debug COMMAND` shows the
    traceback of an unexpected error.
    """,
)
# A pipe has no width, and numbers must not be cut to fit one.
out = Terminal(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
err = Terminal(stderr=True, highlight=False, soft_wrap=True)

Question = Annotated[str, typer.Argument(help="What to ask.", show_default=False)]
Files = Annotated[
    list[str] | None,
    typer.Argument(help="Files, folders, globs, or - for standard input.", show_default=False),
]
Model = Annotated[str | None, typer.Option(help="Model that answers; `extractive` needs no server.")]
BaseUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible server, like http://localhost:8000/v1.")]
Prefer_ = Annotated[str | None, typer.Option("--prefer", help="quality, balanced or cheap.")]
Strategies = Annotated[
    list[str] | None, typer.Option("--strategy", help="Strategy that may be used; repeat for several. Default: all.")
]
MaxCost = Annotated[float | None, typer.Option(help="Hard limit on the estimated cost, in dollars.")]
MaxLatency = Annotated[float | None, typer.Option(help="Hard limit on the estimated latency, in seconds.")]
MinQuality = Annotated[float | None, typer.Option(help="Hard limit on the estimated probability of a right answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON (docs/schemas) instead of text.")]
ShowWork = Annotated[
    bool, typer.Option("--show-work", help="Print what each model call brought, as it ends, on standard error.")
]


@app.command()
def ask(
    question: Question,
    files: Files = None,
    model: Model = None,
    base_url: BaseUrl = None,
    prefer: Prefer_ = None,
    strategy: Strategies = None,
    max_cost: MaxCost = None,
    max_latency: MaxLatency = None,
    min_quality: MinQuality = None,
    show_work: ShowWork = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question from documents, with citations and one line about the decision.

    With `--show-work`, strategies of several calls print the notes of each as they come, apart from the answer.

    Example: `longroute ask "Who may terminate the lease?" lease.pdf annexes/`
    """
    from .assemble import Router
    from .outputs import ask_output
    from .work_shown import WorkShown

    with _working("Reading") as say:
        documents = _load(files)
        router = Router(model=model, base_url=base_url)
        say("Answering")
        options = _options(prefer, strategy, max_cost, max_latency, min_quality)
        answer = router.answer(question, documents, listener=WorkShown(say, err if show_work else None), **options)
    if as_json:
        print(ask_output(answer, documents).model_dump_json(indent=2))
    else:
        _print_answer(answer, documents)


@app.command()
def decide(
    question: Question,
    files: Files = None,
    model: Model = None,
    prefer: Prefer_ = None,
    strategy: Strategies = None,
    max_cost: MaxCost = None,
    max_latency: MaxLatency = None,
    min_quality: MinQuality = None,
    as_json: AsJson = False,
) -> None:
    """Show which strategy would be used and why, without asking any model.

    Example: `longroute decide "Compare the 2021 and 2022 results" report.pdf --model gpt-4o --prefer quality`
    """
    from .assemble import Router
    from .outputs import decide_output

    with _working("Reading") as say:
        documents = _load(files)
        router = Router(model=model)
        say("Deciding")
        decision = router.decide(question, documents, **_options(prefer, strategy, max_cost, max_latency, min_quality))
    if as_json:
        print(decide_output(decision).model_dump_json(indent=2))
    else:
        _print_decision(decision)


@app.command()
def serve(
    upstream: Annotated[
        str | None, typer.Option(help="Model API to stand in front of, like https://api.openai.com/v1.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; any but loopback needs client keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    prefer: Prefer_ = None,
    strategy: Strategies = None,
    holdout: Annotated[
        float | None, typer.Option(help="Share sent as it came, so that the saving is measured: 0.05.")
    ] = None,
) -> None:
    """Stand in front of model APIs: OpenAI's, Anthropic's and compatible ones.

    Point `base_url` at it and nothing else changes: short requests pass byte for byte, long texts are shortened where
    that pays. Several upstreams, client keys and limits go into the settings file (docs/proxy.md).

    Example: `longroute serve --upstream https://api.openai.com/v1`
    """
    from .settings import load_settings

    given = {"host": host, "port": port, "holdout": holdout, "upstreams": upstream and [{"url": upstream}]}
    proxy = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(prefer=prefer, allowed=tuple(strategy) if strategy else None, proxy=proxy or None)
    try:
        from .proxy.server import serve as run_server
    except ModuleNotFoundError as missing:
        raise MissingExtra(
            f"The proxy needs {missing.name}, which is not installed. pip install 'longroute[proxy]'"
        ) from None
    run_server(settings)


@app.command()
def retrieve(
    question: Question,
    files: Files = None,
    budget_tokens: Annotated[int, typer.Option(min=1, help="Most text to print, in estimated tokens.")] = 1500,
    as_json: AsJson = False,
) -> None:
    """Print the passages that matter to a question, best first, with scores and offsets."""
    from .assemble import make_retriever
    from .outputs import RetrieveOutput, source_outputs
    from .settings import load_settings

    if not question.strip():
        raise ConfigError("The question is empty. Say what to look for.")
    with _working("Reading") as say:
        documents = _load(files)
        retriever = make_retriever(load_settings())
        say("Searching")
        passages = retriever.retrieve(question, documents, budget_tokens=budget_tokens)
    sources = source_outputs(passages, documents)
    if as_json:
        print(RetrieveOutput(retriever=type(retriever).__name__, passages=sources).model_dump_json(indent=2))
        return
    for source in sources:
        place = f"page {source.page}" if source.page else f"line {source.line}"
        out.print(
            f"[bold]{escape(source.document)}[/], {place}, characters {source.start}–{source.end}, "
            f"score {source.score:.3f}"
        )
        out.print(f"{source.text.strip()}\n", markup=False)


@app.command()
def compress(
    files: Files = None,
    rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Tokens to keep, as a share of each text's.")] = 0.33,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to keep of all texts together; takes the place of --rate.")
    ] = None,
    question: Annotated[str, typer.Option(help="What the texts are wanted for; what matters to it is kept.")] = "",
    method: Annotated[
        str | None,
        typer.Option(
            help="question_aware, lexical, embedded, code, color; or llmlingua2, specpc, gemfilter with :FOLDER."
        ),
    ] = None,
    show: Annotated[bool, typer.Option(help="Print the whole text, with what was left out marked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shorten texts to what matters. Negations, conditions, numbers and names survive first.

    Example: `longroute compress contract.txt --rate 0.25 --question "Who may terminate?" --show`
    """
    from .assemble import make_compressor
    from .outputs import CompressOutput, ShortenedOutput
    from .settings import load_settings

    with _working("Reading") as say:
        documents = _load(files)
        settings = load_settings()
        limit: dict[str, Any] = {"budget_tokens": budget_tokens} if budget_tokens else {"keep_rate": rate}
        texts = [document.text for document in documents]
        named, method = method, method or _usual_method(documents, settings.compressor)
        compressor = make_compressor(settings, method)
        say("Compressing")
        results = compressor.compress(texts, question=question, **limit)
        if named is None and not any(result.text for result in results):  # code on one line, say
            method = settings.compressor
            results = make_compressor(settings, method).compress(texts, question=question, **limit)
    if as_json:
        shortened = [
            ShortenedOutput(
                document=document.id,
                text=result.text,
                tokens_before=result.tokens_before,
                tokens_after=result.tokens_after,
                keep_rate=round(result.keep_rate, 6),
                kept=list(result.kept),
                placed=list(result.placed),
                broken=list(result.broken),
            )
            for document, result in zip(documents, results, strict=True)
        ]
        print(CompressOutput(method=method, documents=shortened).model_dump_json(indent=2))
        return
    for document, result in zip(documents, results, strict=True):
        marked = show and (result.kept or not result.text)  # what a model wrote anew stands nowhere in the text
        if marked and out.is_terminal:
            out.print(_struck(document.text, result.kept))
        else:  # not by rich, which spreads tabs and drops carriage returns
            text = _bracketed(document.text, result.kept) if marked else result.text
            print(printable(text) if out.is_terminal else text)
        err.print(
            f"[dim]{escape(document.id)}: {result.tokens_after:,} of {result.tokens_before:,} tokens "
            f"({result.keep_rate:.0%}) by {escape(method)}[/]"
            + ("" if result.text else ". Nothing fits; allow more tokens")
        )


def _usual_method(documents: Sequence[Document], otherwise: str) -> str:
    return "code" if all(document.kind == "code" for document in documents) else otherwise


def _struck(text: str, kept: Sequence[tuple[int, int]]) -> Text:
    """The whole text with what was left out dimmed and struck through."""
    return Text.assemble(*((part, "" if is_kept else "dim strike red") for part, is_kept in _parts(text, kept)))


def _bracketed(text: str, kept: Sequence[tuple[int, int]]) -> str:
    """The whole text with what was left out in [-brackets-]."""
    return "".join(part if is_kept else f"[-{part}-]" for part, is_kept in _parts(text, kept))


def _parts(text: str, kept: Sequence[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """The text cut into what was kept and what was not."""
    end = 0
    for start, stop in [*kept, (len(text), len(text))]:
        if end < start:
            yield text[end:start], False
        yield text[start:stop], True
        end = stop


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, which backends and models can be reached, and where the cache is."""
    from .doctor import PACKAGES, examine
    from .settings import load_settings

    with _working("Looking"):
        report = examine(load_settings())
    if as_json:
        print(report.model_dump_json(indent=2))
        return
    out.print(f"longroute {report.longroute}, Python {report.python}, settings file: {report.settings_file or 'none'}")
    for name, installed in report.packages.items():
        out.print(
            f"  {'[green]✓' if installed else '[yellow]–'}[/] {name} {installed or 'not installed'}: {PACKAGES[name]}"
        )
    for check in report.checks:
        mark = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]–[/]"}[check.ok]
        out.print(f"  {mark} {escape(check.name)}: {escape(check.detail)}")
    size = f"{report.cache_bytes / 1e6:.1f} MB"
    out.print(f"  cache: {escape(report.cache_dir)}, {size}" if report.cache_dir else "  cache: off")


def _mount() -> None:
    """These bring their own commands; their modules are light, the parts they need load when they run."""
    from .calibration.cli import app as calibrate
    from .runner.cli import app as runner

    app.add_typer(calibrate, name="calibrate")
    app.add_typer(runner, name="runner")


_mount()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Errors are one line on standard error and exit code 2; `--debug` first shows the traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given[:1]
    try:
        try:
            app(given[1:] if debug else given)
        finally:
            sys.stdout.flush()  # here, where a reader that has gone can be told from a failure
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone: not an error, but nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, RouterError) else f"unexpected {type(error).__name__}: "
        hint = "" if isinstance(error, RouterError) else " (run `longroute --debug ...` to see where)"
        message = f"error: {kind}{error}{hint}"
        print(printable(message) if sys.stderr.isatty() else message, file=sys.stderr)
        sys.exit(2)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _load(files: list[str] | None) -> list[Document]:
    from .documents import load

    if not files and sys.stdin.isatty():
        raise ConfigError("No document given. Name files or folders, or pipe text in.")
    loaded = load(files or ["-"], stdin=sys.stdin.buffer)
    for note in loaded.notes:
        err.print(f"[yellow]note:[/] {escape(note)}")
    return list(loaded.documents)


def _options(
    prefer: str | None,
    strategies: list[str] | None,
    max_cost: float | None,
    max_latency: float | None,
    min_quality: float | None,
) -> Any:
    """Only what was given, so that settings fill in the rest. The router checks the values."""
    given = {
        "prefer": prefer,
        "allowed": strategies,
        "max_cost_usd": max_cost,
        "max_latency_s": max_latency,
        "min_quality": min_quality,
    }
    return {name: value for name, value in given.items() if value is not None and value != []}


@contextmanager
def _working(what: str) -> Iterator[Any]:
    """A spinner on a terminal, nothing in a pipe. Yields a function that changes its words."""
    if not err.is_terminal:
        yield lambda what: None
        return
    with err.status(f"{what} …") as status:
        yield lambda what: status.update(f"{what} …")


# ---- printing --------------------------------------------------------------------------------------------------------

_UNREAD_SHOWN = 5


def _print_answer(answer: Answer, documents: Sequence[Document]) -> None:
    from .outputs import source_outputs, stretch_outputs

    out.print(answer.text, markup=False)
    if answer.citations:
        out.print()
    for number, source in enumerate(source_outputs(answer.citations, documents), start=1):
        place = f"page {source.page}" if source.page else f"{source.line}"
        words = " ".join(source.text.split())
        quote = words if len(words) <= 160 else f"{words[:160].rsplit(' ', 1)[0]} …"
        joint = ", " if source.page else ":"
        out.print(f"  [dim]\\[{number}][/] [cyan]{escape(source.document)}{joint}{place}[/]  {escape(quote)}")
    for stretch in stretch_outputs(answer.unread[:_UNREAD_SHOWN], documents):
        place = f"page {stretch.page}" if stretch.page else f"line {stretch.line}"
        err.print(
            f"[yellow]unread:[/] {escape(stretch.document)} from {place}, characters {stretch.start}–{stretch.end}: "
            "the answer does not rest on it"
        )
    if (more := len(answer.unread) - _UNREAD_SHOWN) > 0:
        err.print(f"[yellow]unread:[/] {more:,} more; --json names them all")
    for note in answer.notes:
        err.print(f"[yellow]note:[/] {escape(note)}")
    if answer.decision:
        out.print()
        out.print(f"[dim]{escape(_one_line(answer.decision, answer.usage, len(answer.calls)))}[/]")


def _one_line(decision: Decision, usage: Usage, calls: int) -> str:
    chosen = decision.estimate
    parts = [f"{decision.strategy} by {decision.model}"]
    taken = usage.prompt_tokens or chosen.prompt_tokens  # not every backend counts
    there = decision.features.document_tokens
    read = f"{taken:,} of {there:,} tokens"
    if calls > 1:
        read = f"{calls} calls read {taken:,} tokens for a text of {there:,}"
    elif taken > there:  # a short text is less than what stands around it
        read = f"{taken:,} tokens read for a text of {there:,}"
    parts.append(read)
    if usage.cost_usd is not None:
        parts.append("free" if usage.cost_usd == 0 else f"${usage.cost_usd:.4f}")
    if chosen.quality is not None and chosen.quality_interval is not None:
        low, high = chosen.quality_interval
        parts.append(f"expected quality {chosen.quality:.2f} ({low:.2f}–{high:.2f})")
    likely = max(decision.features.task.items(), key=lambda item: item[1])
    parts.append(f"question type: {likely[0]} ({likely[1]:.2f})")
    return " · ".join(parts)


def _print_decision(decision: Decision) -> None:
    out.print(
        f"[bold]{decision.strategy}[/] for {escape(decision.model)} "
        f"(policy {decision.policy}, prefer {decision.goal.prefer})\n"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("strategy", "quality (90 %)", "tokens", "calls", "cost", "latency", "utility", ""):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("strategy", "") else "right")
    for estimate in decision.estimates:
        chosen = estimate.strategy == decision.strategy
        quality = "unknown"
        if estimate.quality is not None:
            quality = f"{estimate.quality:.2f}"
            if estimate.quality_interval is not None:
                quality += " ({:.2f}–{:.2f})".format(*estimate.quality_interval)
        table.add_row(
            estimate.strategy,
            quality,
            f"{estimate.prompt_tokens:,}",
            str(estimate.calls),
            "unknown" if estimate.cost_usd is None else f"${estimate.cost_usd:.4f}",
            "unknown" if estimate.latency_s is None else f"{estimate.latency_s:.1f} s",
            "" if estimate.utility is None else f"{estimate.utility:.3f}",
            "chosen" if chosen else "" if estimate.feasible else "out",
            style="bold" if chosen else "",
        )
    out.print(table)
    for reason in decision.reasons:
        out.print(f"• {reason}", markup=False)
    for sentence in _unsaid(decision):
        out.print(f"• {sentence}", markup=False)


def _unsaid(decision: Decision) -> Iterator[str]:
    """Why strategies are out, and what stands behind those without outcomes, as far as no reason has said it."""
    said = " ".join(decision.reasons)
    for estimate in decision.estimates:
        if not estimate.feasible and estimate.infeasible not in said:
            yield f"{estimate.strategy} is out: {estimate.infeasible}"
        elif estimate.feasible and not estimate.measured and estimate.basis not in said:
            yield f"{estimate.strategy}: {estimate.basis}"


if __name__ == "__main__":
    main()
