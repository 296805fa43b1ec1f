"""The page: made of the numbers alone, self-contained, and safe whatever the names hold."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from longroute.policies.risk_controlled import Guarantee
from longroute.router.calibration.page import render
from longroute.router.calibration.report import Evaluation, measure
from longroute.router.calibration.risk import RiskPoint

EVIL = '"><script>alert(1)</script>&'
VOID = {"meta", "br", "path", "circle", "rect"}


def numbers(n: int = 40, s: int = 2, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    predicted = rng.random((n, s))
    values: dict[str, Any] = {
        "strategies": ["full", "rag", "compressed", "chain_of_agents"][:s],
        "ids": [f"case-{row}" for row in range(n)],
        "groups": [f"document-{row // 2}" for row in range(n)],
        "models": ["small", "large"] * (n // 2) + ["small"] * (n % 2),
        "tasks": ["lookup"] * n,
        "lengths": rng.integers(1_000, 200_000, n).astype(float),
        "score": (rng.random((n, s)) < predicted).astype(float),
        "tokens": np.tile([50_000.0, 3_000.0, 20_000.0, 60_000.0][:s], (n, 1)),
        "predicted": predicted,
        "intervals": np.stack([predicted, predicted], axis=-1),
        "chosen": {"quality": predicted.argmax(axis=1), "cheap": np.full(n, s - 1)},
        "reasons": {"quality": [["it looked good"]] * n},
        "risk": (
            Guarantee("difference", 0.02, 0.1, "request", n, ("full", "rag"), ("small",), 0.04, 0.01),
            [RiskPoint(0.0, 0.0, 0.7, 1.0, 1.0, 0.01), RiskPoint(0.04, 0.01, 0.7, 0.3, 0.2, 0.05)],
        ),
    }
    return measure(Evaluation(**{**values, **changes}), resamples=100)


class Outline(HTMLParser):
    """Checks that tags close in order, and keeps names, ids and headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_every_section_is_there_and_every_tag_closes() -> None:
    outline = Outline(render(numbers()))
    assert outline.headings == [
        "Quality against cost",
        "All questions",
        "By type of question",
        "By length of the text, in tokens",
        "By model",
        "Does the predicted quality come true?",
        "A weak and a strong route",
        "What is guaranteed",
        "Most regretted",
        "How to read this",
    ]
    assert len(outline.ids) == len(set(outline.ids))


def test_the_page_is_the_same_from_numbers_read_back() -> None:
    given = numbers(s=4)
    assert render(json.loads(json.dumps(given))) == render(given)


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    outline = Outline(page := render(numbers()))
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert not [value for name, value in outline.attributes if name in ("src", "href") or name.startswith("on")]
    assert "http" not in page
    assert re.findall(r"url\(([^)]*)\)", page)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page


def test_names_cannot_smuggle_in_markup() -> None:
    n = 40
    page = render(
        numbers(
            title=EVIL,
            strategies=[EVIL + "a", EVIL + "b"],
            ids=[f"{EVIL}{row}" for row in range(n)],
            models=[EVIL] * n,
            tasks=[EVIL] * n,
            notes=[EVIL],
            reasons={"quality": [[EVIL]] * n},
        )
    )
    assert "script" not in Outline(page).tags
    assert "&lt;script&gt;" in page


def test_each_chart_has_a_title_and_says_its_numbers() -> None:
    given = numbers()
    page = render(given)
    charts = re.findall(r'<svg class="chart".*?</svg>', page)
    assert len(charts) == 5  # the frontier, two strategies' calibration, two panels of risk
    for drawn in charts:
        labelled = re.search(r'aria-labelledby="(\S+) (\S+)"', drawn)
        assert labelled is not None
        assert all(f'id="{name}"' in drawn for name in labelled.groups())
    oracle = next(p for p in given["frontier"]["points"] if p["kind"] == "oracle")
    assert f"oracle: {100 * oracle['quality']:.1f} %" in charts[0]


def test_dark_is_followed_and_no_coordinate_is_lost() -> None:
    page = render(numbers())
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page
    assert not re.search(r"\b(nan|inf|None)\b", page)


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("strategies", [1, 2, 4])
def test_small_sets_make_a_page(n: int, strategies: int) -> None:
    Outline(render(numbers(n, strategies, risk=None, reasons={})))


def test_one_class_without_predictions_or_choices_makes_a_page() -> None:
    n, s = 10, 2
    unknown = np.full((n, s), np.nan)
    page = render(
        numbers(
            n,
            s,
            score=np.ones((n, s)),
            tokens=np.zeros((n, s)),
            predicted=unknown,
            intervals=np.stack([unknown, unknown], axis=-1),
            chosen={},
            reasons={},
        )
    )
    Outline(page)
    assert "cannot tell the strategies apart" in page
    assert not re.search(r"\b(nan|None)\b", page)


def test_a_failed_guarantee_is_shown_as_a_result() -> None:
    guarantee = Guarantee("difference", 0.02, 0.1, "request", 40, ("full", "rag"), ("small",), None, 0.05, 300)
    page = render(numbers(risk=(guarantee, [RiskPoint(0.0, 0.05, 0.7, 1.0, 1.0, 0.9)])))
    assert "No threshold is safe" in page
    assert ">chosen</text>" not in page
