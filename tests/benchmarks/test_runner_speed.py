from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from longroute.benchmarks import device_floor, runner_speed  # noqa: E402
from longroute.benchmarks.random_llama import Geometry, Scripted, random_llama  # noqa: E402
from longroute.benchmarks.runner_speed import (  # noqa: E402
    MOST_REPEATS,
    Report,
    Setting,
    by_engine,
    by_generate,
    ceiling,
    in_turn,
    middle,
    shares,
)
from longroute.router.errors import ContextTooLong  # noqa: E402

torch.set_num_threads(1)  # for matrices of this size more of them only wait for each other


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(0, 100), st.floats(0.5, 40))
def test_runs_are_repeated_in_turn_while_there_is_time_and_at_least_once(until: float, seconds: float) -> None:
    clock, order = _Clock(), []

    def run(name: str) -> str:
        clock.now += seconds / 2
        order.append(name)
        return name

    found = in_turn([lambda: run("a"), lambda: run("b")], until, clock)
    turns = len(found[0])
    assert order == ["a", "b"] * turns
    assert 1 <= turns <= MOST_REPEATS
    assert turns == 1 or clock.now <= until + 1e-9
    assert turns == MOST_REPEATS or clock.now + seconds > until - 1e-9


def test_time_is_shared_evenly_and_ends_where_it_must() -> None:
    clock = _Clock()
    clock.now = 10.0
    assert shares(4, 30.0, clock) == [15.0, 20.0, 25.0, 30.0]


def test_a_median_shows_the_spread_where_there_is_one() -> None:
    assert middle([1234.4]) == "1,234"
    assert middle([1.5, 1.25, 2.0], 2) == "1.50 (1.25–2.00)"


@given(st.floats(0, 1), st.floats(0.05, 1))
def test_the_ceiling_is_never_below_plain_decoding_nor_above_what_free_drafts_give(kept: float, share: float) -> None:
    found = ceiling(kept, int(share * 1000), 1000)
    assert 1.0 <= found <= 17.0
    assert found <= ceiling(kept, 0, 1000)


def test_the_ceiling_of_a_drafter_as_dear_as_its_target_is_plain_decoding() -> None:
    assert ceiling(0.95, 1000, 1000) == 1.0
    assert ceiling(0.8, 500, 1000) == pytest.approx((1 + 0.8 + 0.64) / 2)  # two drafts, half a step each


def test_a_report_is_whole_after_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.md"
    report = Report(path, "Title")
    first = report.table("First", "a | b")
    report.row(first, "1", "2")
    assert "# Title\n\n## First\n\n| a | b |\n|---:|---:|\n| 1 | 2 |\n\n" in path.read_text()
    assert "python -m benchmarks" in path.read_text().splitlines()[-1]
    assert capsys.readouterr().out == "1 | 2\n"


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    for name, value in {"DECODED": 3, "ANSWER": 16, "ASKED": 2, "MOST_REPEATS": 1, "TOGETHER": (1, 2)}.items():
        monkeypatch.setattr(runner_speed, name, value)
    monkeypatch.setattr(device_floor, "_CPU_BYTES", 1 << 20)
    transformer = random_llama(Geometry(50, 32, 48, 2, 4, 2), torch.device("cpu"), torch.float32)
    return Setting(Scripted(transformer), {"itself": Scripted(transformer)}, [20, 160], 16, 32)


def test_the_engine_and_generate_are_timed_over_the_same_tokens_and_attention_is_put_back(setting: Setting) -> None:
    prompt = setting.tokens(20)
    alone, pair, theirs = (
        by_engine(setting, [prompt], 5),
        by_engine(setting, [prompt, setting.tokens(9, seed=1)], 5),
        by_generate(setting, prompt, 5),
    )
    assert (alone.decoded, pair.decoded) == (5, 10)
    assert theirs is not None
    assert theirs.decoded == 5
    assert setting.target.transformer.config._attn_implementation == "longroute_sdpa"


def test_a_prompt_that_the_guard_refuses_says_why(setting: Setting) -> None:
    with pytest.raises(ContextTooLong):
        by_engine(setting, [setting.tokens(1 << 18)], 1)


def test_all_parts_write_their_rows(setting: Setting, tmp_path: Path) -> None:
    report = Report(tmp_path / "report.md", "Title")
    runner_speed.run(setting, report, seconds=0.0)
    found = (tmp_path / "report.md").read_text()
    assert found.count("\n| 20 | ") == 2 + 4 + 1  # prefill and decoding, four acceptances, reuse
    assert found.count("\n| 160 | ") == 2 + 4 + 1
    assert "refused" not in found
    assert "| 2 | " in found.partition("decode together")[2]


def test_a_context_that_does_not_fit_is_refused_in_its_row_and_the_others_are_measured(
    setting: Setting, tmp_path: Path
) -> None:
    report = Report(tmp_path / "report.md", "Title")
    enormous = Setting(setting.target, setting.drafters, [20, 1 << 40], 16, 8)
    runner_speed.rapid(enormous, report, 0.0)
    found = (tmp_path / "report.md").read_text()
    assert found.count("\n| 20 | itself | ") == 4
    assert "| 1,099,511,627,776 | refused: needs " in found
