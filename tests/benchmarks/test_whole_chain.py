from __future__ import annotations

from longroute.benchmarks.mixed_questions import mixed_questions
from longroute.benchmarks.whole_chain import against_singles, halves


def test_both_halves_have_every_length_with_and_without_decoys() -> None:
    rows = list(mixed_questions(0, (60, 120), 8))
    first, second = halves([row.page for row in rows])
    assert not first & second
    for half in (first, second):
        inside = [row for row in rows if row.page in half]
        assert len(inside) == len(rows) / 2
        assert {row.page.split("-")[1] for row in inside if row.kind == "decoyed"} == {"60", "120"}
        assert sum(row.kind == "decoyed" for row in inside) == len(inside) / 4


def test_a_policy_is_compared_at_no_more_cost_and_at_no_less_score() -> None:
    frontier = {
        "router": [[1.0, 0.5], [3.0, 0.8]],
        "points": [
            {"kind": "single", "name": "always full", "cost": 4.0, "quality": 0.7},
            {"kind": "single", "name": "always rag", "cost": 0.5, "quality": 0.9},
            {"kind": "router", "name": "quality", "cost": 2.0, "quality": 0.7},
            {"kind": "oracle", "name": "oracle", "cost": 0.1, "quality": 1.0},
        ],
    }
    assert against_singles(frontier) == {"full": ((4.0, 0.7), 0.8, 2.0), "rag": ((0.5, 0.9), 0.0, None)}
