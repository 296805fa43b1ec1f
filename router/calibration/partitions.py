"""`run` mapped over parts of a dataset on Ray. Each part has an outcome file of its own; all end up in one.

Ray is optional and starts processes on this machine, unless RAY_ADDRESS tells it of a cluster, whose machines must then
share the file system. Parts that a kill left behind are taken in when the run starts again.
"""

from __future__ import annotations

import asyncio
import glob
import importlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import MissingExtra
from ..settings import Settings
from .dataset import Case, Dataset, dataset
from .outcomes import Outcome, read_outcomes, to_line
from .run import Options, Progress, Summary, cut_torn_line, header, header_path, resume, run, spent, write_whole


def run_on_ray(
    whole: Dataset,
    settings: Settings,
    options: Options,
    out: Path,
    *,
    workers: int,
    on_progress: Progress = lambda summary: None,
) -> Summary:
    """`run` by several processes, which share its limits and its concurrency. Raises what `run` raises.

    on_progress hears of what `run` does when the parts have come together.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra(
            "Running on Ray needs it: pip install 'longroute[ray]', or use the engine asyncio."
        ) from error
    out = out.resolve()  # workers may have another working directory
    resume(whole, settings, options, out)  # refuses a file made from something else, before its parts are touched
    _take_in_parts(out)
    outcomes = resume(whole, settings, options, out)
    parts = []
    for number, cases in enumerate(_shares(whole, options, outcomes, workers)):
        ids = {case.id for case in cases}
        theirs = [outcome for outcome in outcomes if outcome.case_id in ids]
        part, path = dataset(cases), out.with_name(f"{out.name}.part-{number}")
        write_whole(header_path(path), json.dumps(header(part, settings, options)))
        write_whole(path, "".join(f"{to_line(outcome)}\n" for outcome in theirs))
        parts.append((part, settings, _limited(options, outcomes, theirs, workers), path))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        work = ray.remote(num_cpus=1)(_run_part)
        ray.get([work.remote(*part) for part in parts])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        ray.shutdown()
        _take_in_parts(out)
    return asyncio.run(run(whole, settings, replace(options, retry_failed=False), out, on_progress=on_progress))


def _run_part(part: Dataset, settings: Settings, options: Options, path: Path) -> None:
    asyncio.run(run(part, settings, options, path))


def _shares(whole: Dataset, options: Options, outcomes: Sequence[Outcome], workers: int) -> list[tuple[Case, ...]]:
    """The cases that lack an outcome, cut into contiguous parts, so that a document's cases stay together."""
    done = {outcome.key for outcome in outcomes}
    wanted = [(model, strategy) for model in options.models for strategy in options.strategies]
    left = [case for case in whole.cases if any((case.id, *pair) not in done for pair in wanted)]
    cuts = [len(left) * number // workers for number in range(workers + 1)]
    return [tuple(left[start:end]) for start, end in pairwise(cuts) if end > start]


def _limited(options: Options, outcomes: Sequence[Outcome], theirs: Sequence[Outcome], workers: int) -> Options:
    """One worker's share of what is left of the limits. A part counts its own outcomes as spent."""
    (tokens, cost), (own_tokens, own_cost) = spent(outcomes), spent(theirs)
    return replace(
        options,
        retry_failed=False,
        concurrency=math.ceil(options.concurrency / workers),
        max_tokens=None if options.max_tokens is None else own_tokens + (options.max_tokens - tokens) // workers,
        max_cost_usd=None if options.max_cost_usd is None else own_cost + (options.max_cost_usd - cost) / workers,
    )


def _take_in_parts(out: Path) -> None:
    """Move the outcomes of parts into the one file. A kill in between loses nothing and leaves nothing twice."""
    parts = sorted(path for path in out.parent.glob(f"{glob.escape(out.name)}.part-*") if path.suffix[6:].isdigit())
    for part in parts:
        cut_torn_line(part)
    outcomes = {outcome.key: outcome for outcome in read_outcomes([out, *parts])}
    write_whole(out, "".join(f"{to_line(outcome)}\n" for outcome in outcomes.values()))
    for part in parts:
        part.unlink()
        header_path(part).unlink(missing_ok=True)
