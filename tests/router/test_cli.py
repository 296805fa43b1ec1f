from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from longroute.compressors.color import Color
from longroute.router.backends.scripted import Scripted
from longroute.router.cli import main
from longroute.router.core import Reply
from longroute.router.errors import BackendUnavailable
from longroute.router.outputs import OUTPUTS
from longroute.router.terminal import Terminal
from longroute.tests.router.fakes import Chain

LEASE = """# Lease

The flat is in Vienna and has three rooms.

## Rent

The tenant shall pay 900 euros on the first day of each month.

## End

Either party may terminate the lease with three months of notice.
"""


@pytest.fixture
def lease(tmp_path: Path) -> Path:
    path = tmp_path / "lease.md"
    path.write_text(LEASE)
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def called_json(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> Any:
    """The parsed output, checked against the published schema."""
    code, printed, complained = call(capsys, command, *arguments, "--json")
    assert code == 0, complained
    parsed = json.loads(printed)
    jsonschema.validate(parsed, OUTPUTS[command].model_json_schema(mode="serialization"))
    assert parsed["version"] == 1
    return parsed


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "Who is the warden of the house?"),
        ("retrieve", "Who is the warden of the house?"),
        ("compress", "--rate", "1"),
        ("compress", "--rate", "1", "--show"),
    ],
)
def test_a_text_does_not_steer_the_terminal_and_reaches_a_pipe_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    from longroute.router import cli

    path = tmp_path / "hos\x1b[7mtile.txt"
    path.write_text("The warden of the house is \x1b]0;owned\x07Ada.")
    assert "\x1b]0;owned" in call(capsys, *arguments, str(path))[1]
    for name in ("out", "err"):
        terminal = Terminal(force_terminal=True, highlight=False, soft_wrap=True, stderr=name == "err")
        monkeypatch.setattr(cli, name, terminal)
    _, printed, told = call(capsys, *arguments, str(path))
    assert "Ada" in printed and "\x1b]" not in printed + told and "\x1b[7m" not in printed + told


def test_ask_prints_answer_citation_and_one_line_of_decision(capsys: pytest.CaptureFixture[str], lease: Path) -> None:
    code, printed, _ = call(capsys, "ask", "How much rent does the tenant pay?", str(lease))
    assert code == 0
    assert "900 euros" in printed.splitlines()[0]
    assert "lease.md:7" in printed.replace("\n", "")
    assert "tokens" in printed


def test_ask_json_cites_exact_offsets(capsys: pytest.CaptureFixture[str], lease: Path) -> None:
    parsed = called_json(capsys, "ask", "How much rent does the tenant pay?", str(lease))
    assert parsed["answered"] is True
    citation = parsed["citations"][0]
    assert LEASE[citation["start"] : citation["end"]] == citation["text"]
    assert "900 euros" in citation["text"]
    assert parsed["decision"]["strategy"] == parsed["strategy"]


def test_ask_says_so_when_nothing_fits(capsys: pytest.CaptureFixture[str], lease: Path) -> None:
    parsed = called_json(capsys, "ask", "Which enzymes digest cellulose in termites?", str(lease))
    assert parsed["answered"] is False
    assert parsed["citations"] == []


def test_decide_shows_every_strategy_and_the_reasons(capsys: pytest.CaptureFixture[str], lease: Path) -> None:
    parsed = called_json(capsys, "decide", "How much is the rent?", str(lease), "--model", "gpt-4o")
    assert set(parsed["estimates"]) >= {"full", "rag"}
    for estimate in parsed["estimates"].values():
        assert estimate["cost_usd"] > 0
        low, high = estimate["quality_interval"]
        assert 0 <= low <= estimate["quality"] <= high <= 1
    assert parsed["reasons"]
    code, printed, _ = call(capsys, "decide", "How much is the rent?", str(lease), "--model", "gpt-4o")
    assert code == 0
    assert "quality" in printed


def test_decide_may_be_restricted_to_one_strategy(capsys: pytest.CaptureFixture[str], lease: Path) -> None:
    for strategy in ("full", "rag"):
        parsed = called_json(capsys, "decide", "Who?", str(lease), "--strategy", strategy)
        assert parsed["strategy"] == strategy
        assert list(parsed["estimates"]) == [strategy]


def test_retrieve_prints_passages_with_scores_and_offsets(capsys: pytest.CaptureFixture[str], lease: Path) -> None:
    parsed = called_json(capsys, "retrieve", "notice to terminate", str(lease))
    assert parsed["passages"]
    for passage in parsed["passages"]:
        assert LEASE[passage["start"] : passage["end"]] == passage["text"]
    code, printed, _ = call(capsys, "retrieve", "notice to terminate", str(lease))
    assert code == 0
    assert "three months of notice" in printed


def test_doctor_reports_packages_and_cache(capsys: pytest.CaptureFixture[str]) -> None:
    parsed = called_json(capsys, "doctor")
    assert parsed["packages"]["numpy"]
    assert parsed["cache_dir"]
    code, printed, _ = call(capsys, "doctor")
    assert code == 0
    assert "extractive" in printed


def test_doctor_looks_for_a_local_model_in_its_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGROUTE_MODEL", f"local:{tmp_path}")
    [check] = [check for check in called_json(capsys, "doctor")["checks"] if check["name"].startswith("model local:")]
    assert check["ok"] is False
    (tmp_path / "config.json").write_text("{}")
    [check] = [check for check in called_json(capsys, "doctor")["checks"] if check["name"].startswith("model local:")]
    assert check["ok"] is True


def test_standard_input_is_a_document(lease: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "longroute", "ask", "How much rent does the tenant pay?"],
        input=lease.read_bytes(),
        capture_output=True,
        check=True,
    )
    assert b"900 euros" in done.stdout
    assert done.stderr == b""  # no spinner in a pipe


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", " ", "LEASE"], "question is empty"),
        (["retrieve", " ", "LEASE"], "question is empty"),
        (["ask", "Who?", "missing.txt"], "missing.txt"),
        (["ask", "Who?", "EMPTY"], "empty.txt"),
        (["ask", "Who?", "BINARY"], "binary.bin"),
        (["decide", "Who?", "LEASE", "--prefer", "best"], "quality, balanced, cheap"),
        (["decide", "Who?", "LEASE", "--strategy", "magic"], "magic"),
        (["ask", "Who?", "LEASE", "--model", "gpt-4o"], "OPENAI_API_KEY"),
        (["ask", "Who?", "LEASE", "--model", "m", "--base-url", "http://127.0.0.1:9/v1"], "127.0.0.1:9"),
    ],
)
def test_errors_are_one_message_without_traceback_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    lease: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setenv("LONGROUTE_MAX_RETRIES", "0")
    (lease.parent / "empty.txt").write_text("")
    (lease.parent / "binary.bin").write_bytes(bytes(range(256)) * 64)
    places = {"LEASE": str(lease), "EMPTY": f"{lease.parent}/empty.txt", "BINARY": f"{lease.parent}/binary.bin"}
    code, printed, complained = call(capsys, *(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert printed == ""
    assert words in complained
    assert "Traceback" not in complained


def test_an_unexpected_failure_shows_no_traceback_unless_asked(
    capsys: pytest.CaptureFixture[str], lease: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("what never happens")

    monkeypatch.setattr("longroute.router.documents.load", broken)
    code, _, complained = call(capsys, "ask", "Who?", str(lease))
    assert code == 2
    assert "unexpected ZeroDivisionError: what never happens" in complained
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "ask", "Who?", str(lease)])


def test_output_that_nobody_reads_any_more_ends_quietly(lease: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "longroute", "retrieve", "rent", str(lease), "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert b"Traceback" not in done.stderr
    assert b"Error" not in done.stderr


def test_published_schemas_are_current(repository: Path) -> None:
    for name, output in OUTPUTS.items():
        published = json.loads((repository / "docs" / "schemas" / f"{name}.schema.json").read_text())
        assert published == output.model_json_schema(mode="serialization"), "run: make schemas"


def test_help_teaches_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed, _ = call(capsys, "--help")
    for command in OUTPUTS:
        assert command in printed
        code, detail, _ = call(capsys, command, "--help")
        assert code == 0
        assert "Usage" in detail


# ---- strategies of several calls -------------------------------------------------------------------------------------


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy of four calls, the second of which fails."""
    from longroute.router import assemble

    gone = BackendUnavailable("the server fell over")
    said: list[str | Reply | Exception] = ["nothing about rent", gone, "a \x1b[2Jnotice", "900 euros."]
    monkeypatch.setattr(assemble, "_STRATEGIES", {**assemble._STRATEGIES, "chain": lambda parts: Chain()})
    monkeypatch.setattr(assemble, "make_backend", lambda settings: Scripted(said))


@pytest.mark.usefixtures("chain")
def test_work_is_shown_as_it_comes_apart_from_the_answer(capsys: pytest.CaptureFixture[str], lease: Path) -> None:
    asked = ("ask", "How much is the rent?", str(lease), "--strategy", "chain")
    code, printed, shown = call(capsys, *asked, "--show-work")
    assert code == 0 and printed.startswith("900 euros.")
    assert shown.index("worker 1 of 3") < shown.index("nothing about rent") < shown.index("worker 2 of 3: failed")
    assert "BackendUnavailable: the server fell over" in shown and "worker 3 of 3" in shown
    assert "notice" in shown
    assert "900 euros" not in shown


@pytest.mark.usefixtures("chain")
def test_what_was_not_read_is_said(capsys: pytest.CaptureFixture[str], lease: Path) -> None:
    code, printed, shown = call(capsys, "ask", "How much is the rent?", str(lease), "--strategy", "chain")
    assert code == 0 and "3 calls read" in printed
    assert f"unread: {lease} from line 7, characters 67–133" in shown
    assert "note: worker 2 of 3 failed" in shown and "nothing about rent" not in shown


@pytest.mark.usefixtures("chain")
def test_json_holds_the_work(capsys: pytest.CaptureFixture[str], lease: Path) -> None:
    parsed = called_json(capsys, "ask", "How much is the rent?", str(lease), "--strategy", "chain")
    [work], [unread] = parsed["work"], parsed["unread"]
    assert [len(shown) for shown in work["read"]] == [1, 0, 1]
    assert work["notes"][0] == "nothing about rent" and parsed["notes"]
    assert (unread["document"], unread["start"], unread["end"]) == (str(lease), 67, 133)
    assert [c["purpose"] for c in parsed["calls"]] == ["worker 1 of 3", "worker 3 of 3", "answer"]


def test_the_table_of_decide_fits_a_terminal_of_100_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("The mill stands by the river and grinds corn for the whole valley. " * 60_000)
    code, printed, _ = call(capsys, "decide", "Where is the mill?", str(path), "--model", "gemini-1.5-pro")
    assert code == 0
    table = [line for line in printed.split("•")[0].splitlines()[2:] if line.strip()]
    assert max(len(line.rstrip()) for line in table) <= 100
    out = [line for line in table if line.rstrip().endswith("out")]
    assert all(f"{line.split()[0]} is out: " in printed for line in out)


# ---- compress --------------------------------------------------------------------------------------------------------

GARDENS = " ".join(f"House {n} in the old town has a garden and several windows to the street." for n in range(60))


@pytest.fixture
def long_lease(tmp_path: Path) -> Path:
    path = tmp_path / "long.md"
    path.write_text(f"{GARDENS}\n\nThe tenant must not keep a dog in the flat.\n\n{GARDENS}\n")
    return path


@pytest.mark.parametrize("method", ["question_aware", "lexical"])
def test_compress_keeps_what_the_question_needs_within_the_rate(
    method: str, capsys: pytest.CaptureFixture[str], long_lease: Path
) -> None:
    asked = ("--rate", "0.2", "--question", "May the tenant keep a dog?", "--method", method)
    [short] = called_json(capsys, "compress", str(long_lease), *asked)["documents"]
    source = long_lease.read_text()
    assert "not keep" in short["text"] and "dog" in short["text"]
    assert short["tokens_after"] <= 0.2 * short["tokens_before"]
    for (start, end), place in zip(short["kept"], short["placed"], strict=True):
        assert source[start:end] == short["text"][place : place + end - start]


def test_compress_shows_what_was_left_out(capsys: pytest.CaptureFixture[str], long_lease: Path) -> None:
    code, printed, complained = call(capsys, "compress", str(long_lease), "--question", "May he keep a dog?", "--show")
    assert code == 0 and "tokens" in complained
    assert "[-" in printed
    assert printed.replace("[-", "").replace("-]", "").strip() == long_lease.read_text().strip()


@pytest.mark.parametrize("options", [[], ["--show"]])
def test_compress_prints_the_letters_of_the_source(
    options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "table.tsv"
    path.write_bytes(b"name\tprice\r\n[b]\t1\r\n")
    code, printed, _ = call(capsys, "compress", str(path), "--rate", "1", *options)
    assert (code, printed) == (0, "name\tprice\r\n[b]\t1\r\n\n")


def test_compress_shows_what_a_model_wrote_anew(
    capsys: pytest.CaptureFixture[str], long_lease: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    color = Color(lambda prompts: ["No dogs."] * len(prompts), max_lost=1)
    monkeypatch.setattr("longroute.router.assemble.make_compressor", lambda settings, name: color)
    assert call(capsys, "compress", str(long_lease), "--show")[:2] == (0, "No dogs.\n")


def test_compress_takes_a_budget_for_all_texts(capsys: pytest.CaptureFixture[str], long_lease: Path) -> None:
    done = called_json(capsys, "compress", str(long_lease), str(long_lease), "--budget-tokens", "200")
    assert sum(document["tokens_after"] for document in done["documents"]) <= 200


@pytest.mark.parametrize(
    ("method", "message"), [("nonsense", "Known: question_aware"), ("llmlingua2", "llmlingua2:FOLDER")]
)
def test_compress_explains_methods_it_does_not_have(
    method: str, message: str, capsys: pytest.CaptureFixture[str], long_lease: Path
) -> None:
    code, _, complained = call(capsys, "compress", str(long_lease), "--method", method)
    assert code != 0 and message in complained and "Traceback" not in complained
