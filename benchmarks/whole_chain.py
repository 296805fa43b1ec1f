"""The whole chain on one machine: a model served by the runner, the proxy in front, and a policy fitted to the model.

    python -m benchmarks.whole_chain [FOLDER] [--pages N]

FOLDER is a model (build/small_model by default; `python -m benchmarks.small_model` makes it). Everything goes through
longroute's own commands, in processes of their own: `runner`, `runner profile`, `serve`, `ask`, `calibrate run`, `fit`
and `report`. The questions are those of `mixed_questions.py`. Texts are split in halves: a policy is fitted to the
outcomes of one and judged on the other, beside every single strategy. Prices are a dollar per million tokens of any
kind, so a cost is a count of tokens, the drafter's included. Writes results/whole_chain.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx

from longroute.router.assemble import Router, make_backend
from longroute.router.core import Backend, Call, Reply
from longroute.router.settings import load_settings

from .machine import measured_on
from .mixed_questions import Row, mixed_questions
from .targets import free_port

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "small_model"
RESULTS = ROOT / "benchmarks" / "results" / "whole_chain.md"
STRATEGIES = ("full", "rag", "compressed", "speculative", "chain_of_agents", "self_route")
LENGTHS = (60, 160, 400, 800)  # sentences; one has about thirteen tokens of the small model
START_S = 120
SEED = 11

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chain:
    """Where the parts are. work: files of this run. runner, proxy: addresses without /v1."""

    work: Path
    model: str
    runner: str
    proxy: str

    @property
    def environment(self) -> dict[str, str]:
        return _environment(self.work)


# ---- starting it -----------------------------------------------------------------------------------------------------


@contextmanager
def chain(folder: Path, work: Path) -> Iterator[Chain]:
    """Runner, profile, settings and proxy, until the block ends."""
    runner, proxy = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    made = Chain(work, folder.resolve().name, runner, proxy)
    models = work / "models.json"
    (work / "longroute.toml").write_text(_settings(made))
    models.write_text("{}")
    told = longroute(made, "runner", "profile", str(folder), "--out", str(models), "--budget-s", "30")
    (work / "profile.txt").write_text(told.partition("Written to")[0])
    rows = json.loads(models.read_text())
    prices = ("input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok")
    models.write_text(json.dumps({made.model: rows[made.model] | dict.fromkeys(prices, 1)}))
    with (
        _serving(made, ["runner", "serve", str(folder), "--port", runner.rpartition(":")[2]], runner),
        _serving(made, ["serve", "--port", proxy.rpartition(":")[2]], proxy),
    ):
        yield made


def _settings(made: Chain) -> str:
    """Budgets in proportion to texts of one to ten thousand tokens."""
    return f"""
model = "{made.model}"
base_url = "{made.runner}/v1"
models_file = "{made.work / "models.json"}"
embedding_model = "none"
cache = false
rag_budget_tokens = 400
speculative_context_tokens = 200
max_output_tokens = 32

[agents]
window_tokens = 2048
worker_output_tokens = 64

[proxy]
min_document_tokens = 500

[[proxy.upstreams]]
url = "{made.runner}/v1"
"""


def _environment(work: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LONGROUTE_", "OPENAI_"))}
    return kept | {"LONGROUTE_CONFIG": str(work / "longroute.toml"), "NO_PROXY": "*", "OMP_NUM_THREADS": "1"}


def _command(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("longroute")), *words]


def longroute(made: Chain, *words: str) -> str:
    """What a command printed. Raises RuntimeError with its complaint where it failed."""
    done = subprocess.run(_command(*words), env=made.environment, capture_output=True, text=True, cwd=made.work)
    if done.returncode:
        raise RuntimeError(f"longroute {' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


@contextmanager
def _serving(made: Chain, words: Sequence[str], address: str) -> Iterator[None]:
    log = made.work / f"{words[0]}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(_command(*words), env=made.environment, stdout=output, stderr=output, cwd=made.work)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(f"{address}/healthz"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words!r} did not start; it said:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


# ---- asking it -------------------------------------------------------------------------------------------------------


def ask_proxy(made: Chain, row: Row, strategy: str) -> tuple[str, str, Json]:
    """A chat about a text through the proxy: the strategy it names, the answer, the usage."""
    content = f"{row.text}\n\nQuestion: {row.question}"
    body = {
        "model": made.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 32,
        "temperature": 0,
    }
    headers = {"x-longroute-strategy": strategy}
    reply = httpx.post(f"{made.proxy}/v1/chat/completions", json=body, headers=headers, timeout=300)
    said = reply.raise_for_status().json()
    return reply.headers["x-longroute-strategy"], said["choices"][0]["message"]["content"], said["usage"]


def ask_command(made: Chain, row: Row) -> Json:
    """`longroute ask` with strategy `speculative`."""
    text = made.work / "text.txt"
    text.write_text(row.text)
    answer: Json = json.loads(longroute(made, "ask", row.question, str(text), "--strategy", "speculative", "--json"))
    return answer


# ---- calibrating it --------------------------------------------------------------------------------------------------


def calibrate(made: Chain, rows: Sequence[Row]) -> tuple[list[Json], Json, Json]:
    """All outcomes, and reports on the second half: of the policy fitted to the first, and of the shipped one."""
    from longroute.policies import policy_file
    from longroute.policies.learned import shipped

    questions, outcomes = made.work / "questions.jsonl", made.work / "outcomes.jsonl"
    for old in made.work.glob(f"{outcomes.name}*"):  # a run would go on with them, though the model may be another now
        old.unlink()
    questions.write_text("".join(json.dumps(row.line()) + "\n" for row in rows))
    wanted = [word for name in STRATEGIES for word in ("--strategy", name)]
    longroute(made, "calibrate", "run", str(questions), "--out", str(outcomes), "--concurrency", "2", *wanted)
    done = [json.loads(line) for line in outcomes.read_text().splitlines()]
    for name, pages in zip(("first", "second"), halves([row.page for row in rows]), strict=True):
        chosen = "".join(json.dumps(outcome) + "\n" for outcome in done if outcome["group"] in pages)
        (made.work / f"{name}.jsonl").write_text(chosen)
    longroute(made, "calibrate", "fit", "first.jsonl", "--out", "fitted.json")
    policy_file.write(made.work / "shipped.json", shipped())
    return done, _report(made, "fitted"), _report(made, "shipped")


def _report(made: Chain, policy: str) -> Json:
    page = f"report-{policy}.html"
    longroute(made, "calibrate", "report", "second.jsonl", "--policy", f"{policy}.json", "--out", page)
    report: Json = json.loads((made.work / page).with_suffix(".json").read_text())
    return report


def halves(pages: Sequence[str]) -> tuple[set[str], set[str]]:
    """Two of each four pages in the order of their making, so that both have every length, with decoys and without."""
    names = list(dict.fromkeys(pages))
    first = {name for number, name in enumerate(names) if number // 2 % 2 == 0}
    return first, set(names) - first


# ---- how drafts are judged -------------------------------------------------------------------------------------------

MODES = (("exact", 0.0), ("rapid", 2.0), ("rapid", 5.0), ("rapid", 10.0))


class _AtZero(Backend):
    """Asks at temperature 0."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def generate(self, call: Call) -> Reply:
        return await self._backend.generate(replace(call, temperature=0.0))

    def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        return self._backend.stream(replace(call, temperature=0.0))

    async def aclose(self) -> None:
        await self._backend.aclose()


def by_mode(folder: Path, rows: Sequence[Row]) -> str:
    """Share of plain questions on texts of the second length that `speculative` answers, by mode; in this process."""
    asked = [row for row in rows if row.kind == "plain" and row.page.split("-")[1] == str(LENGTHS[1])]
    lines: list[list[str]] = []
    for mode, eta in MODES:
        settings = load_settings(
            model=f"local:{folder}",
            cache=False,
            embedding_model="none",
            speculative_context_tokens=200,
            max_output_tokens=32,
            runner={"device": "cpu", "speculative_mode": mode, "speculative_eta": eta},
        )
        backend = _AtZero(make_backend(settings))
        router = Router(settings, backend=backend)
        right = [row.answer in router.answer(row.question, [row.text], allowed=["speculative"]).text for row in asked]
        asyncio.run(backend.aclose())
        lines.append([mode, "–" if mode == "exact" else f"{eta:g}", f"{fmean(right):.2f}"])
    return f"{table(['mode', 'eta', f'right of {len(asked)}'], lines)}"


# ---- what came of it -------------------------------------------------------------------------------------------------

Point = tuple[float, float]  # cost of a question in dollars, mean score


def against_singles(frontier: Json) -> dict[str, tuple[Point, float, float | None]]:
    """For each single strategy: where it is, the best score of the policy at no more cost, and the least cost of the
    policy at no less score, where it reaches that."""
    points = frontier["points"]
    policy: list[Point] = [(x, y) for x, y in frontier["router"] or []]
    policy += [(point["cost"], point["quality"]) for point in points if point["kind"] == "router"]
    found = {}
    for point in points:
        if point["kind"] == "single":
            cost, score = point["cost"], point["quality"]
            at_most = max((y for x, y in policy if x <= cost * (1 + 1e-9)), default=0.0)
            enough = min((x for x, y in policy if y >= score - 1e-9), default=None)
            found[point["name"].removeprefix("always ")] = ((cost, score), at_most, enough)
    return found


def by(outcomes: Sequence[Json], key: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Mean scores by strategy and by what `key` says of each case."""
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        scores[outcome["strategy"]][key[outcome["case_id"]]].append(outcome["score"])
    return {name: {label: fmean(values) for label, values in found.items()} for name, found in scores.items()}


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def written(
    doors: str, rows: Sequence[Row], outcomes: Sequence[Json], fitted: Json, shipped: Json, modes: str, profile: str
) -> str:
    kinds = {row.id: row.kind for row in rows}
    lengths = {row.id: row.page.split("-")[1] for row in rows}
    by_kind, by_length = by(outcomes, kinds), by(outcomes, lengths)
    sizes = list(dict.fromkeys(lengths.values()))
    tokens = {
        size: fmean(o["features"]["document_tokens"] for o in outcomes if lengths[o["case_id"]] == size)
        for size in sizes
    }
    used = {name: [o for o in outcomes if o["strategy"] == name] for name in STRATEGIES}
    scores = table(
        [
            "strategy",
            *dict.fromkeys(kinds.values()),
            *(f"{tokens[size]:,.0f} tokens" for size in sizes),
            "prompt tokens",
            "seconds",
            "failed",
        ],
        [
            [
                name,
                *(f"{by_kind[name][kind]:.2f}" for kind in dict.fromkeys(kinds.values())),
                *(f"{by_length[name][size]:.2f}" for size in sizes),
                f"{fmean(o['prompt_tokens'] for o in used[name]):,.0f}",
                f"{fmean(o['latency_s'] or 0.0 for o in used[name]):.2f}",
                sum(o["status"] == "failed" for o in used[name]),
            ]
            for name in STRATEGIES
        ],
    )
    singles = table(
        [
            "single strategy",
            "its score",
            "its tokens",
            "policy's best score at no more tokens",
            "policy's least tokens at no less score",
        ],
        [
            [
                name,
                f"{score:.3f}",
                f"{cost * 1e6:,.0f}",
                f"{best:.3f}",
                "never" if least is None else f"{least * 1e6:,.0f}",
            ]
            for name, ((cost, score), best, least) in against_singles(fitted["frontier"]).items()
        ],
    )
    settings = table(
        ["policy", "prefer", "score", "tokens", "against the best single in hindsight", "95 % interval"],
        [
            [
                title,
                option["name"],
                f"{option['quality']['value']:.3f}",
                f"{option['cost_usd'] * 1e6:,.0f}",
                f"{option['gain']['value']:+.3f}",
                _interval(option["gain"]["interval"]),
            ]
            for title, report in (("fitted", fitted), ("shipped", shipped))
            for option in report["overall"]["options"]
            if option["kind"] in (("router",) if title == "shipped" else ("router", "best", "oracle"))
        ],
    )
    area = fitted["frontier"]["aiq"]
    aiq = ", ".join(
        f"{who} {'not defined' if area[key]['value'] is None else format(area[key]['value'], '.3f')}"
        for who, key in (("fitted policy", "router"), ("mixtures of single strategies", "single"))
    )
    machine = "\n".join(f"- {name}: {value}" for name, value in measured_on("torch", "transformers").items())
    return f"""# The whole chain on one machine

{len(kinds)} questions about {len({row.page for row in rows})} texts; the frontier is that of the half of the texts
that no policy was fitted to.

## The doors

{doors}

## Every strategy, all questions

{scores}

Seconds are those of the model's calls, strategies in the order of the table on one text: those behind `full` find its
prompt in the runner's prefix cache. Tokens count every prompt whole, the drafter's too.

## How drafts are judged

Strategy `speculative` at temperature 0, drafts from 200 tokens: `exact` says what `full` would; `rapid` leans towards a
draft, which helps where passages hold the answer, as they do for nearly all of these questions, and ruins it where they
do not ([rapid_quality.md](rapid_quality.md)).

{modes}

## The frontier, held-out half

{settings}

{singles}

{_verdict(against_singles(fitted["frontier"]))} Mean score over the range of costs (AIQ): {aiq}.

## Speed of the model here

```
{profile.strip()}
```

{machine}
"""


def _verdict(found: Mapping[str, tuple[Point, float, float | None]]) -> str:
    better, cheaper, neither = [], [], []
    for name, ((tokens, score), best, least) in found.items():
        if best > score + 1e-9:
            better.append(name)
        elif least is not None and least < tokens - 1e-9:
            cheaper.append(name)
        else:
            neither.append(name)
    said = [f"At no more tokens the policy scores higher than {', '.join(better)}"] if better else []
    said += [f"it scores no less than {', '.join(cheaper)} at fewer tokens"] if cheaper else []
    said += [f"it does not beat {', '.join(neither)}"] if neither else []
    return f"{'; '.join(said)}."


def _interval(pair: Sequence[float] | None) -> str:
    return "–" if pair is None else f"{pair[0]:+.3f} to {pair[1]:+.3f}"


def doors_tried(made: Chain, rows: Sequence[Row]) -> str:
    """One question through the proxy and through `ask`, by strategy `speculative`.

    Of a text long enough for drafts: a drafter as large as the target drafts from an eighth of its prompt at most.
    """
    row = next(row for row in rows if row.kind == "plain" and row.page.split("-")[1] == str(LENGTHS[2]))
    lines = [f"`{row.question}` (right: `{row.answer}`)", ""]
    for strategy in ("full", "speculative"):
        named, text, usage = ask_proxy(made, row, strategy)
        drafts = usage.get("completion_tokens_details")
        lines.append(
            f"- through the proxy, `{named}`: `{text}`; usage {json.dumps(usage) if drafts else usage['prompt_tokens']}"
        )
    answer = ask_command(made, row)
    lines.append(f"- `longroute ask --strategy speculative`: `{answer['answer']}`; notes {answer['notes']}")
    return "\n".join(lines)


def main() -> None:
    from argparse import ArgumentParser

    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--pages", type=int, default=12, help="texts of each length")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "whole_chain")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = list(mixed_questions(SEED, LENGTHS, given.pages))
    with chain(given.folder, given.work.resolve()) as made:
        doors = doors_tried(made, rows)
        print(doors)
        outcomes, fitted, shipped = calibrate(made, rows)
        profile = (made.work / "profile.txt").read_text()
    text = written(doors, rows, outcomes, fitted, shipped, by_mode(given.folder, rows), profile)
    print(text)
    given.out.write_text(text)


if __name__ == "__main__":
    main()
