"""`longroute runner`: reads arguments, loads a model, serves or measures it. It decides nothing."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from ..errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from .local_model import LocalModel
    from .profile import Measured, Speed


_ASSUMED_ACCEPTANCE = 0.75  # the lower end of what RAPID's authors report, 75 to 85 % (arXiv 2502.20330)


class _ServeUnlessSaid(TyperGroup):
    """`longroute runner MODEL` is short for `longroute runner serve MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["serve", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    cls=_ServeUnlessSaid,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="""Run a Hugging Face model of this machine.

    `longroute runner MODEL` serves it over the OpenAI API; `profile` measures how fast it is (docs/runner.md).
    """,
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Folder = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the model.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: CUDA where there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as the weights are stored.")]


@app.command()
def serve(
    model: Folder,
    host: Annotated[str | None, typer.Option(help="Address to listen on; any but loopback needs a key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    draft_model: Annotated[
        Path | None, typer.Option(help="Folder of a model that makes drafts; default: the model itself.")
    ] = None,
    cache_mb: Annotated[int | None, typer.Option(help="Most memory for keys and values of all texts, in MiB.")] = None,
) -> None:
    """Serve a model over the OpenAI API: chat and plain completions, streaming, metrics.

    Example: `longroute runner models/qwen3-0.6b --port 8200`
    """
    given = {"host": host, "port": port, "draft_model": draft_model, "cache_mb": cache_mb}
    settings = _settings(device, dtype, **given)
    try:
        from .server import ServerOptions, check_bind
        from .server import serve as run_server
    except ModuleNotFoundError as missing:
        package = str(missing.name).partition(".")[0]
        raise MissingExtra(
            f"The runner's server needs {package}, which is not installed. pip install 'longroute[local]'"
        ) from None
    runner = settings.runner
    key = runner.api_key.get_secret_value() if runner.api_key else None
    options = ServerOptions(runner.host, runner.port, key, runner.shutdown_s)
    check_bind(options)
    run_server(lambda: _load(settings, model), options, names=(str(model),))


@app.command()
def profile(
    model: Folder,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Models file to write the result to, for the setting models_file; others stay."),
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens of a text to measure; repeat for several.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate behind each text.")] = 32,
    budget_s: Annotated[float, typer.Option(min=0, help="Leave out lengths that would take longer than this.")] = 300,
    acceptance: Annotated[
        float,
        typer.Option(min=0, max=1, help="Assumed chance that a drafted token is kept; RAPID's paper has 0.75 to 0.85."),
    ] = _ASSUMED_ACCEPTANCE,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure how fast a model reads and writes here, so that `decide` can estimate latencies.

    Example: `longroute runner profile models/qwen3-0.6b --out models.json`
    """
    settings = _settings(device, dtype)
    with _load(settings, model) as loaded:
        from .profile import LENGTHS, drafted_from, measure, speed

        measured: list[Measured] = []
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading in ("tokens of text", "reading, tokens/s", "first token, s", "writing, tokens/s", "with drafts"):
            table.add_column(heading, justify="right")
        faster: float | None = None
        for one in measure(loaded, length or LENGTHS, new_tokens=new_tokens, budget_s=budget_s):
            measured.append(one)
            faster = one.speedup(acceptance)
            table.add_row(
                f"{one.prompt_tokens:,}",
                f"{one.prefill_tokens_per_s:,.0f}",
                f"{one.prefill_s:.3f}",
                f"{one.decode_tokens_per_s:,.1f}",
                "–" if faster is None else f"{faster:.2f}×",
            )
        summary = speed(loaded, measured)
        row = _row(loaded, model, summary)
    out.print(table)
    out.print(f"Overhead of a call: {summary.overhead_s * 1000:.1f} ms")
    if faster is not None:
        at = measured[-1].prompt_tokens
        assumed = f"assuming that {acceptance:.0%} of drafted tokens are kept"
        row["speculative_speedup"] = round(faster, 2)
        row["source"] += f"; speculative_speedup predicted at {at:,} tokens {assumed}"
        out.print(
            f"With drafts: from {drafted_from(at):,} of {at:,} tokens (an eighth where there are fewer), {assumed}. "
            "The time is measured; how many are kept on your questions is not (--acceptance)."
        )
    if out_file is not None:
        _write(out_file, loaded.name, row)
        out.print(f"Written to {escape(str(out_file))} as {escape(loaded.name)!r}; point models_file at it.")


def _settings(device: str | None, dtype: str | None, **given: Any) -> Any:
    from ..settings import load_settings

    options = {"device": device, "dtype": dtype, **given}
    runner = {name: value for name, value in options.items() if value is not None}
    return load_settings(runner=runner or None)


def _load(settings: Any, folder: Path) -> LocalModel:
    from ..assemble import make_local_model

    err.print(f"[dim]Loading {escape(str(folder))} …[/]")
    return make_local_model(settings, folder)


def _row(model: LocalModel, folder: Path, speed: Speed) -> dict[str, Any]:
    """Fields of a ModelProfile: what the folder says, and what was measured."""
    from ..backends.local import profile_of_folder

    known = profile_of_folder(model.name, folder, {})
    engine_model = model.engine.model
    return {
        "context_window": known.context_window,
        "input_usd_per_mtok": 0,
        "cached_input_usd_per_mtok": 0,
        "output_usd_per_mtok": 0,
        "cache_min_tokens": known.cache_min_tokens,
        "cache_ttl_s": known.cache_ttl_s,
        "prefill_tokens_per_s": round(speed.prefill_tokens_per_s, 1),
        "decode_tokens_per_s": round(speed.decode_tokens_per_s, 2),
        "overhead_s": round(speed.overhead_s, 5),
        "speculates": model.engine.can_speculate,
        "tokenizer": str(Path(known.tokenizer).resolve()) if known.tokenizer.endswith(".json") else known.tokenizer,
        "as_of": date.today().isoformat(),
        "source": f"longroute runner profile, on {engine_model.device} in {str(engine_model.dtype).split('.')[-1]}",
    }


def _write(path: Path, name: str, row: dict[str, Any]) -> None:
    """Adds to or replaces in the file, whole or not at all."""
    from ..models import load_profiles

    rows: dict[str, Any] = {}
    if path.exists():
        load_profiles(path)  # a file that is something else is not overwritten
        rows = json.loads(path.read_text("utf-8"))
    rows[name] = row
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error
