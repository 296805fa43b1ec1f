"""The report as one HTML page, made of the numbers of `report.measure` and nothing else.

No script, no font and no file from elsewhere; light and dark follow the reader's system. What the numbers mean is
decided in `report.py`; how charts are drawn, in `charts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .charts import Axis, Line, Mark, Shape, around, chart, key

Json = Mapping[str, Any]

_DASH = "–"
_SHAPES: dict[str, Shape] = {
    "single": "square",
    "best": "triangle",
    "random": "cross",
    "router": "circle",
    "oracle": "diamond",
}
_KINDS = {
    "single": "one strategy for every question",
    "best": "the best strategy of each model, known in hindsight",
    "random": "a strategy drawn at random",
    "router": "the router, at each setting of prefer",
    "oracle": "the best strategy of each question, known in hindsight",
}


def render(numbers: Json) -> str:
    """The page. numbers: from `measure`, or the same read back from JSON."""
    sections = [
        _notes(numbers["notes"]),
        _frontier(numbers["frontier"], numbers["overall"]),
        _section("All questions", _option_table([numbers["overall"]]), _tests(numbers["overall"])),
        *(
            _section(title, _option_table(numbers["slices"][name]))
            for name, title in (("task", "By type of question"), ("length", "By length of the text, in tokens"))
        ),
        _section("By model", _model_table(numbers["slices"]["model"])),
        _calibration(numbers["calibration"]),
        _strong_calls(numbers["strong_calls"]),
        _risk(numbers["risk"]),
        _regretted(numbers["regretted"]),
        _reading(numbers),
    ]
    title = escape(numbers["title"])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main><h1>{title}</h1>\n"
        f"{_summary(numbers)}\n" + "\n".join(filter(None, sections)) + "\n</main></body></html>\n"
    )


# ---- sections --------------------------------------------------------------------------------------------------------


def _summary(numbers: Json) -> str:
    models, strategies = numbers["models"], numbers["strategies"]
    what = (
        f"{_many(numbers['cases'], 'question')} on {_many(numbers['groups'], 'group')} of documents, answered by "
        f"{_many(len(models), 'model')} with {', '.join(strategies)}: {_many(numbers['rows'], 'decision')}."
    )
    options = numbers["overall"]["options"]
    dearest = max((o for o in options if o["kind"] == "single"), key=lambda o: float(o["tokens"]))["name"]
    found = "".join(
        f"<li><b>{escape(o['name'])}</b>: {_percent(o['quality']['value'])} right, "
        f"{_signed(o['gain'])} points against the best single strategy, at {_percent(o['token_share'])} of the input "
        f"tokens of {escape(dearest)}.</li>"
        for o in options
        if o["kind"] == "router"
    )
    return f"<p>{escape(what)}</p>" + (f"<ul>{found}</ul>" if found else "")


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<aside aria-label="Notes"><b>Before you conclude</b><ul>{items}</ul></aside>'


_FEW_STRATEGIES = 4  # whose names find room in a chart of the usual height


def _frontier(frontier: Json, overall: Json) -> str:
    dollars = frontier["unit"] == "usd"
    points = frontier["points"]
    singles = [(p["cost"], p["quality"]) for p in points if p["kind"] == "single"]
    reach = 1.04 * max(p["cost"] for p in points) or 1.0
    low, high = around([p["quality"] for p in points], least=0.05)
    x = Axis(
        "dollars per question" if dollars else "input tokens per question", 0, reach, _money if dollars else _count
    )
    y = Axis("answers right, %", low, high, lambda v: f"{100 * v:.4g}")
    lines = [
        Line([min(singles), max(singles)], "mix"),
        Line([*frontier["hull"], (reach, frontier["hull"][-1][1])], "hull"),
    ]
    if frontier["router"]:
        lines.append(Line(frontier["router"], "router"))
    marks = [
        Mark(
            p["cost"],
            p["quality"],
            _SHAPES[p["kind"]],
            p["kind"],
            p["name"].removeprefix("always "),  # the legend says so; with six strategies there is no room to repeat it
            size=7 if p["kind"] == "single" else 5,
        )
        for p in points  # a strategy that the router always takes shows behind the router
    ]
    told = "; ".join(f"{p['name']}: {100 * p['quality']:.1f} % at {x.write(p['cost'])}" for p in points)
    height = 320.0 if len(singles) <= _FEW_STRATEGIES else 420.0
    drawn = chart("frontier", "Quality against cost", f"{told}.", x, y, lines=lines, marks=marks, height=height)
    legend = [
        *((key(shape, kind), _KINDS[kind]) for kind, shape in _SHAPES.items()),
        (key("line", "hull"), "the best that mixing single strategies can reach"),
        (key("line", "mix"), "mixing the cheapest and the dearest at random"),
        (key("line", "router"), "the router at any price of tokens"),
    ]
    worth = frontier["aiq"]
    aiq = (
        f"<p>Mean quality over all costs between the cheapest and the dearest strategy (AIQ): "
        f"router <b>{_figure(worth['router'])}</b>, single strategies <b>{_figure(worth['single'])}</b>.</p>"
    )
    items = "".join(f"<li>{mark} {escape(name)}</li>" for mark, name in legend)
    return _section("Quality against cost", f'<figure class="big">{drawn}<ul class="legend">{items}</ul></figure>', aiq)


def _option_table(slices: Sequence[Json]) -> str:
    """Every option of every slice, under a heading for each slice unless there is one only."""
    priced = slices[0]["options"][0]["cost_usd"] is not None
    head = ["", "right, %", "against best single", "input tokens", "of dearest"]
    head += ["dollars"] * priced + ["regret", "oracle gap"]
    body = []
    for part in slices:
        if len(slices) > 1:
            size = f"{_many(part['rows'], 'decision')}, {_many(part['groups'], 'group')}"
            body.append(
                f'<tr class="part"><th colspan="{len(head)}" scope="rowgroup">{escape(part["name"])} '
                f"<small>{size}</small></th></tr>"
            )
        for option in part["options"]:
            cells = [
                _interval(option["quality"], _points),
                _interval(option["gain"], _plus),
                _count(option["tokens"]),
                _percent(option["token_share"]),
            ]
            cells += [_money(option["cost_usd"])] if priced else []
            cells += [_interval(option["regret"], _points), _interval(option.get("gap_share"), _share)]
            body.append(_row(option["name"], cells, option["kind"]))
    return _table(head, body)


def _model_table(slices: Sequence[Json]) -> str:
    """One line for each model: what each option got right, and the gain of the router."""
    names = [(option["kind"], option["name"]) for option in slices[0]["options"] if option["kind"] != "random"]
    body = []
    for part in slices:
        options = {option["name"]: option for option in part["options"]}
        cells = []
        for kind, name in names:
            gain = f"<br><small>{_signed(options[name]['gain'])}</small>" if kind == "router" else ""
            cells.append(_points(options[name]["quality"]["value"]) + gain)
        body.append(_row(part["name"], cells, ""))
    note = "<p><small>Answers right, %; below the router's, points against the model's best strategy.</small></p>"
    return note + _table(["", *(name for _, name in names)], body)


def _tests(overall: Json) -> str:
    told = [
        f"<b>{escape(o['name'])}</b> alone right {t['won']:,} times, best single alone right {t['lost']:,} times "
        f"(p {_p(t['p'])})"
        for o in overall["options"]
        if (t := o.get("mcnemar"))
    ]
    return f"<p><small>McNemar, rows taken for independent: {'; '.join(told)}.</small></p>" if told else ""


def _calibration(strategies: Sequence[Json]) -> str:
    figures = []
    for number, one in enumerate(strategies):
        if not one["rows"]:
            continue
        axes = [Axis(name, 0, 1, lambda v: f"{100 * v:.0f}") for name in ("predicted, %", "right, %")]
        biggest = max(b["rows"] for b in one["bins"])
        marks = [
            Mark(
                b["predicted"],
                b["observed"],
                span=b["interval"],
                style="router",
                size=2 + 4 * (b["rows"] / biggest) ** 0.5,
            )
            for b in one["bins"]
        ]
        told = "; ".join(f"predicted {_percent(b['predicted'])}, right {_percent(b['observed'])}" for b in one["bins"])
        drawn = chart(
            f"calibration-{number}",
            f"Predicted against observed quality of {one['strategy']}",
            f"{told}.",
            *axes,
            lines=[Line([(0, 0), (1, 1)], "mix")],
            marks=marks,
            width=300,
            height=280,
        )
        scores = (
            f"ECE {one['ece']:.3f} (adaptive {one['ece_adaptive']:.3f}), Brier {one['brier']:.3f}, log loss "
            f"{one['log_loss']:.3f}, {one['rows']:,} rows"
        )
        if one["interval_width"] is not None:
            scores += f", intervals {100 * one['interval_width']:.0f} points wide"
        figures.append(f"<figure>{drawn}<figcaption><b>{escape(one['strategy'])}</b><br>{scores}</figcaption></figure>")
    if not figures:
        return ""
    how = "<p>On the dotted line predictions come true. Larger points hold more rows; whiskers are 95 % intervals.</p>"
    return _section("Does the predicted quality come true?", how, f'<div class="row">{"".join(figures)}</div>')


def _strong_calls(calls: Json | None) -> str:
    if calls is None:
        return ""
    prefers = list(calls["rows"][0]["pgr"])
    thresholds = ("20", "50", "80")
    head = [
        "",
        calls["weak"],
        calls["strong"],
        *(f"PGR {p}" for p in prefers),
        "APGR",
        *(f"CPT {t}" for t in thresholds),
    ]
    body = []
    undefined: dict[str, list[str]] = {}
    for row in calls["rows"]:
        figures = [*row["pgr"].values(), row.get("apgr"), *(row.get("cpt", {}).get(t) for t in thresholds)]
        for why in {figure["why"] for figure in figures if figure} - {""}:
            undefined.setdefault(why, []).append(row["name"])
        cells = [_points(row["weak"]), _points(row["strong"])]
        cells += [
            _DASH if figure is None or figure["value"] is None else f"{figure['value']:.2f}" for figure in figures
        ]
        body.append(_row(row["name"], cells, ""))
    what = (
        f"<p>Share of the gap between {escape(calls['weak'])} and {escape(calls['strong'])} that is recovered (PGR), "
        "its mean over all shares of strong calls (APGR, 0.5 at random), and the share of strong calls that recovers "
        "20, 50 or 80 % (CPT).</p>"
    )
    told = "".join(
        f"<p><small>Undefined, since {escape(why)}: {escape(', '.join(names))}.</small></p>"
        for why, names in undefined.items()
    )
    return _section("A weak and a strong route", what, _table(head, body), told)


def _risk(risk: Json | None) -> str:
    if risk is None:
        return ""
    curve, chosen = risk["curve"], risk["threshold"]
    thresholds = [point["threshold"] for point in curve]
    low, high = around(thresholds, least=0.1)
    losses = [point["mean_loss"] for point in curve]
    panels = (
        ("mean_loss", "mean loss, points", around([*losses, risk["epsilon"], 0.0], least=0.02), risk["epsilon"]),
        ("cost_share", "cost against full, %", (0.0, max(1.0, *(p["cost_share"] for p in curve)) * 1.05), None),
    )
    figures = []
    for name, label, (bottom, top), limit in panels:
        x = Axis("threshold, points", low, high, lambda v: f"{100 * v:.4g}")
        y = Axis(label, bottom, top, lambda v: f"{100 * v:.4g}")
        lines = [Line([(low, limit), (high, limit)], "limit")] if limit is not None else []
        lines.append(Line([(point["threshold"], point[name]) for point in curve], "router"))
        marks = []
        if chosen is not None:
            lines.append(Line([(chosen, bottom), (chosen, top)], "mix"))
            marks = [Mark(chosen, p[name], style="router", label="chosen") for p in curve if p["threshold"] == chosen]
        told = "; ".join(f"{100 * p['threshold']:.4g}: {100 * p[name]:.1f}" for p in curve)
        drawn = chart(f"risk-{name}", label, f"{told}.", x, y, lines=lines, marks=marks, width=340, height=260)
        figures.append(f"<figure>{drawn}</figure>")
    legend = f'<ul class="legend"><li>{key("line", "limit")} allowed loss</li></ul>'
    held = f"<p><b>{escape(risk['statement'])}</b> {escape(risk['assumption'])}</p>"
    how = "<p>The cheapest strategy predicted to be at most the threshold worse than full is taken.</p>"
    return _section("What is guaranteed", held, how, f'<div class="row">{"".join(figures)}</div>', legend)


def _regretted(regretted: Json | None) -> str:
    if regretted is None or not regretted["rows"]:
        return ""
    body = []
    for row in regretted["rows"]:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in row["reasons"])
        about = f"{row['model']}, {row['task']}" + (
            "" if row["length"] is None else f", {_count(row['length'])} tokens"
        )
        cells = [
            f"{_points(row['regret'])}",
            _taken(row["chosen"]),
            _taken(row["better"]),
            f"<ul>{reasons}</ul>" if reasons else _DASH,
        ]
        body.append(_row(row["id"], cells, "", about))
    what = (
        f"<p>The decisions at prefer={escape(regretted['prefer'])} that gave away most, one for each question; of "
        "equal ones those that were surest of themselves.</p>"
    )
    return _section("Most regretted", what, _table(["", "regret", "chosen", "better", "reasons"], body, "wide"))


def _taken(taken: Json) -> str:
    predicted = "" if taken["predicted"] is None else f"predicted {_points(taken['predicted'])}"
    if predicted and taken["interval"]:
        predicted += f" [{_points(taken['interval'][0])}, {_points(taken['interval'][1])}]"
    return f"{escape(taken['strategy'])}: {_points(taken['score'])}<br><small>{predicted}</small>"


def _reading(numbers: Json) -> str:
    terms = {
        "Brackets": "95 % intervals from a bootstrap over groups of documents, paired, wider where groups are few "
        f"({numbers['resamples']:,} resamples, seed {numbers['seed']}).",
        "Best single": "for each model the strategy that did best on these very questions; a reference that is a "
        "little too good, since nobody knows it beforehand.",
        "Oracle": "for each question the best strategy, the cheapest on a tie; it profits from luck, so no router "
        "can reach it.",
        "Router at any price": "predicted quality minus a price on cost, for all prices; hard limits and latency are "
        "left out.",
        "Regret": "points of quality given away against the oracle.",
        "Oracle gap": "share of the way from the best single strategy to the oracle, %.",
        "Of dearest": "input tokens against those of the strategy that reads most.",
    }
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())
    return _section("How to read this", f"<dl>{items}</dl>")


# ---- pieces ----------------------------------------------------------------------------------------------------------


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _table(head: Iterable[str], body: Iterable[str], style: str = "") -> str:
    """A table that scrolls by itself where the screen is narrow; the keyboard can reach it."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table, may scroll">'
        f'<table class="{style}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _row(name: str, cells: Iterable[str], style: str, about: str = "") -> str:
    """cells: HTML. name, about: text."""
    more = f"<br><small>{escape(about)}</small>" if about else ""
    data = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{style}"><th scope="row">{escape(name)}{more}</th>{data}</tr>'


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _plus(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _share(value: float) -> str:
    return f"{100 * value:.0f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.1f} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _money(value: float) -> str:
    return "$0" if value == 0 else f"${value:.2g}" if value >= 0.0001 else f"${value:.1e}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _figure(figure: Json) -> str:
    return f"{_DASH} ({escape(figure['why'])})" if figure["value"] is None else _points(figure["value"])


def _interval(measured: Json | None, write: Callable[[float], str]) -> str:
    if measured is None or measured["value"] is None:
        return _DASH
    value = write(measured["value"])
    if measured["interval"] is None:
        return value
    low, high = map(write, measured["interval"])
    return f"{value} <small>[{low}, {high}]</small>"


def _signed(measured: Json) -> str:
    return _interval(measured, _plus)


# Colours are Okabe and Ito's, which the colour-blind can tell apart; lighter ones where the ground is dark.
_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1b1f24;--faint:#59636e;--grid:#e3e6ea;--panel:#f5f6f8;
--router:#0067a8;--single:#b34f00;--best:#8a3a75;--oracle:#00745a;--random:#59636e;--limit:#b34f00}
@media(prefers-color-scheme:dark){:root{--ground:#14171b;--ink:#e8eaed;--faint:#a3acb6;--grid:#30363d;--panel:#1f242a;
--router:#56b4e9;--single:#f0a04b;--best:#e59ccb;--oracle:#3ccfa4;--random:#a3acb6;--limit:#f0a04b}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:62rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
small,figcaption,.legend{font-size:.84rem;color:var(--faint)}
aside{background:var(--panel);border-left:4px solid var(--limit);padding:.6rem 1rem;overflow-wrap:anywhere}
aside ul{margin:.2rem 0}
figure{margin:0}
ul{padding-left:1.2rem}
.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem}
.row{display:flex;flex-wrap:wrap;gap:1.2rem}.row figure{flex:1 1 18rem;max-width:26rem}
.chart{display:block;width:100%;height:auto}.key{width:24px;height:16px;vertical-align:-2px}
.chart text{font:12px system-ui,sans-serif;fill:var(--ink)}.chart .tick{fill:var(--faint);font-size:11px}
@media(max-width:32rem){.big .chart text,.big .chart .tick{font-size:14px}}
.mid{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:var(--grid);fill:none}
.line{fill:none;stroke-width:2}.mark{fill:var(--c);stroke:var(--ground)}.whisker{stroke:var(--c);stroke-width:1.5}
.single{--c:var(--single)}.best{--c:var(--best)}.random{--c:var(--random)}.router{--c:var(--router)}
.oracle{--c:var(--oracle)}
.mark.random{stroke:var(--c);stroke-width:2}
.line.hull{stroke:var(--single);stroke-dasharray:7 4}.line.mix{stroke:var(--faint);stroke-dasharray:2 4}
.line.router{stroke:var(--router)}.line.limit{stroke:var(--limit);stroke-dasharray:9 3 2 3}
.chart .label{fill:var(--c);paint-order:stroke;stroke:var(--ground);stroke-width:3px;stroke-linejoin:round}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.3rem .6rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--grid);white-space:nowrap}
th:first-child{text-align:left;font-weight:400;position:sticky;left:0;background:var(--ground)}
thead th{font-weight:600;color:var(--faint)}
tr.part th{font-weight:600;padding-top:1rem}
tr.router th:first-child{font-weight:600;box-shadow:inset 3px 0 var(--router)}
.wide td,.wide th{white-space:normal;text-align:left;min-width:7rem}.wide td:last-child{min-width:22rem}
.wide th:first-child{max-width:12rem;overflow-wrap:anywhere}.wide ul{margin:0}
dt{font-weight:600}dd{margin:0 0 .5rem}
"""
