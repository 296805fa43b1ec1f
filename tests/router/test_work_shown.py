from __future__ import annotations

import io

from rich.console import Console

from longroute.router.core import Call, Reply, Usage
from longroute.router.errors import RateLimited
from longroute.router.work_shown import WorkShown, block


def worker(number: int, of: int = 3, path: str = "") -> Call:
    return Call((), "m", purpose=f"worker {number} of {of}{path}", final=False)


def test_progress_names_what_is_read_next_and_never_goes_back() -> None:
    said: list[str] = []
    shown = WorkShown(said.append)
    for call in (worker(1), worker(1, path=", path 2"), worker(2), worker(1, path=", path 3"), worker(3)):
        shown(call, Reply("notes"))
    shown(Call((), "m"), Reply("answer"))
    assert said == ["Reading 2 of 3", "Reading 2 of 3", "Reading 3 of 3", "Reading 3 of 3", "Answering"]


def test_a_block_has_purpose_size_words_and_notes() -> None:
    reply = Reply("He paid [900].", Usage(1200, 0, 8), notes=("retried after 429",))
    assert block(worker(1), reply).plain == (
        "── worker 1 of 3: 1,200 tokens read, 8 written\nHe paid [900].\nnote: retried after 429"
    )


def test_the_answer_itself_is_not_repeated() -> None:
    assert "secret" not in block(Call((), "m"), Reply("secret")).plain


def test_failures_are_shown_and_markup_in_them_is_not_followed() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    WorkShown(lambda words: None, console)(worker(2), RateLimited("[bold]wait[/]"))
    assert "worker 2 of 3: failed\nRateLimited: [bold]wait[/]" in console.export_text()
