"""Charts: round ticks, right places, labels that do not cover each other."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.calibration.charts import Axis, Line, Mark, around, chart, key

X = Axis("cost", 0, 100, "{:g}".format)
Y = Axis("quality", 0, 1, "{:g}".format)


def test_ticks_are_round_and_within_the_axis() -> None:
    assert Y.ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert Axis("", 64.2, 77.1, str).ticks() == [65, 70, 75]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_any_range_has_a_few_ticks(low: float, width: float) -> None:
    ticks = Axis("", low, low + width, str).ticks()
    assert 2 <= len(ticks) <= 6
    assert low - 1e-6 * width <= ticks[0] and ticks[-1] <= low + width * (1 + 1e-6)


@given(st.lists(st.floats(0, 1), min_size=1))
def test_a_range_shows_all_its_values_and_is_never_empty(values: list[float]) -> None:
    low, high = around(values, least=0.05)
    assert low < min(values) and max(values) < high
    assert high - low >= 0.05 * (1 - 1e-9)


def test_a_chart_is_one_wellformed_element_with_its_text_escaped() -> None:
    drawn = chart(
        "c", "a < b", "1 & 2", X, Y, lines=[Line([(0, 0), (100, 1)], "hull")], marks=[Mark(50, 0.5, label="<")]
    )
    root = ElementTree.fromstring(drawn)  # noqa: S314  # our own output
    assert root.findtext("title") == "a < b"
    assert root.findtext("desc") == "1 & 2"
    assert [text.text for text in root.iter("text") if text.get("class", "").startswith("label")] == ["<"]


def test_marks_stand_where_their_values_say() -> None:
    drawn = chart("c", "", "", X, Y, marks=[Mark(0, 0), Mark(100, 1), Mark(50, 0.5, span=(0.25, 0.75))])
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    (left, bottom), (right, top), middle = places
    assert left < right and top < bottom
    assert middle == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    whisker = re.search(r'class="whisker " d="M([\d.]+) ([\d.]+)V([\d.]+)"', drawn)
    assert whisker is not None
    assert float(whisker[2]) > middle[1] > float(whisker[3])


def test_labels_of_marks_in_one_place_do_not_cover_each_other() -> None:
    names = ["always rag", "cheap", "balanced", "best single"]
    drawn = chart("c", "", "", X, Y, marks=[Mark(5, 0.5, label=name) for name in names])
    labels = re.findall(r'class="label " x="([\d.]+)" y="([\d.]+)">([^<]+)<', drawn)
    assert [name for _, _, name in labels] == names
    for (x, y, name), (other_x, other_y, other) in combinations(labels, 2):
        apart = float(x) + 6 * len(name) < float(other_x) or float(other_x) + 6 * len(other) < float(x)
        assert apart or abs(float(y) - float(other_y)) >= 12


def test_long_labels_at_the_edges_stay_within_and_near_their_marks() -> None:
    corners = [(0.0, 0.0), (0.0, 1.0), (10.0, 0.0), (10.0, 1.0)]
    marks = [Mark(x, y, label="retrieve_then_reason") for x, y in corners]
    drawn = chart("c", "", "", Axis("", 0, 10, str), Axis("", 0, 1, str), marks=marks)
    at = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    labels = [(float(x), float(y)) for x, y in re.findall(r'class="label " x="([\d.]+)" y="([\d.]+)"', drawn)]
    for (x, y), (left, base) in zip(at, labels, strict=True):
        assert left >= 50 and left + 7.2 * 20 <= 428
        assert abs(base - y) < 30 and left - 12 <= x <= left + 7.2 * 20 + 12


def test_a_key_shows_the_shape_of_its_series() -> None:
    assert 'class="mark oracle"' in key("diamond", "oracle")
    assert 'class="line hull"' in key("line", "hull")
