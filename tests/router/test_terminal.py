from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from longroute.router.terminal import Terminal, printable


def shown(what: object, *, terminal: bool) -> str:
    console = Terminal(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    console.print(what, soft_wrap=True, highlight=False)
    printed = console.file
    assert isinstance(printed, io.StringIO)
    return printed.getvalue()


def test_what_could_steer_a_terminal_is_replaced_and_spaces_stay_spaces() -> None:
    assert printable("10\u00a0km\u3000東京\r\n\x1b[31mred\u202e") == "10 km 東京 \n�[31mred�"


def test_what_scripts_need_to_be_read_stays() -> None:
    for text in ("می\u200cخواهم", "👩\u200d👧", "Donau\u00addampfschiff", "क्\u200dष", "a\u200fb"):
        assert printable(text) == text


@given(st.text())
def test_nothing_steers_and_nothing_gets_lost(text: str) -> None:
    seen = printable(text)
    assert len(seen) == len(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in seen)
    assert printable(seen) == seen


def test_all_that_a_terminal_is_given_is_made_printable_however_it_is_nested() -> None:
    table = Table("name")
    table.add_row(Text("a\x1b[2Jb"))
    for what in ("a\x1b[2Jb", Text("a\x1b[2Jb"), table):
        assert "\x1b" not in shown(what, terminal=True)
    assert "\x1b[2J" in shown("a\x1b[2Jb", terminal=False)


def test_styles_of_our_own_still_work() -> None:
    console = Terminal(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    console.print("[bold]x[/]")
    assert isinstance(console.file, io.StringIO) and console.file.getvalue() == "\x1b[1mx\x1b[0m\n"
