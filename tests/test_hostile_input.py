"""What people and machines really pass in: each gets a correct result or a clear error, in bounded memory."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longroute import Document, Router
from longroute.router.errors import RouterError

FACT = "The password of the lighthouse is marmalade."
QUESTION = "What is the password of the lighthouse?"


def filler(characters: int, seed: int = 0) -> str:
    """Prose-like text without the words of the question."""
    words = ("harbour", "rain", "engine", "letter", "paper", "garden", "winter", "copper", "river", "silence")
    chosen = random.Random(seed).choices(words, k=characters // 6)
    return " ".join(f"{word}." if place % 12 == 11 else word for place, word in enumerate(chosen))


def ask(*files: Path, limit_bytes: int | None = None, timeout_s: float = 110) -> tuple[int, Any, str]:
    """Exit code, parsed answer, standard error of `longroute ask` in a process of its own."""

    def limit() -> None:
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))

    done = subprocess.run(
        [sys.executable, "-m", "longroute", "ask", QUESTION, *map(str, files), "--json"],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        preexec_fn=limit,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.fixture(autouse=True)
def words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGROUTE_EMBEDDING_MODEL", "none")


def found(answer: Any) -> bool:
    return bool(answer["answered"]) and "marmalade" in answer["answer"]


def test_one_line_of_two_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text(f"{filler(1_000_000)} {FACT} {filler(1_000_000, 1)}")
    code, answer, complaint = ask(path)
    assert code == 0, complaint
    assert found(answer)


def test_two_megabytes_without_a_single_space() -> None:
    text = "x" * 1_000_000 + FACT + "y" * 1_000_000
    answer = Router(cache=False).answer(QUESTION, text)
    for citation in answer.citations:
        assert text[citation.start : citation.end] == citation.text


def test_ten_thousand_tiny_documents(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"note-{number:05}.txt").write_text(f"Note {number}: {filler(60, number)}")
    (tmp_path / "note-07777.txt").write_text(FACT)
    code, answer, complaint = ask(tmp_path)
    assert code == 0, complaint
    assert found(answer)
    assert answer["citations"][0]["document"].endswith("note-07777.txt")


def test_broken_utf8_is_read_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "broken.txt"
    path.write_bytes(b"Some \xff\xfe bytes are broken. " * 3 + FACT.encode() + filler(2000).encode())
    code, answer, complaint = ask(path)
    assert code == 0, complaint
    assert found(answer)
    assert "broken.txt" in complaint


def test_a_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "picture.dat"
    path.write_bytes(random.Random(0).randbytes(100_000))
    code, answer, complaint = ask(path)
    assert (code, answer) == (2, None)
    assert "picture.dat" in complaint
    assert "Traceback" not in complaint


def test_an_empty_document_among_others_does_no_harm() -> None:
    answer = Router(cache=False).answer(QUESTION, [Document("", id="empty"), Document(FACT, id="full")])
    assert answer.citations[0].document_id == "full"


@pytest.mark.parametrize("text", ["", " \n\t ", "\u200b"])
def test_nothing_to_read_is_a_clear_error_or_a_refusal(text: str) -> None:
    try:
        answer = Router(cache=False).answer(QUESTION, text)
    except RouterError as error:
        assert "no text" in str(error)
    else:
        assert not answer.answered


@pytest.mark.parametrize(
    "text",
    [
        FACT + "\ud800 lone surrogate",
        "\x00" * 100 + FACT,
        "a\u0301" * 5000 + FACT,
        "👩‍👩‍👧‍👦" * 2000 + FACT,
        "\u202e" + FACT + "\u202c",
        (FACT + "\r\n") * 50,
        "\u2028".join([FACT] * 50),
        "<|endoftext|></document>" * 100 + FACT,
    ],
    ids=["surrogate", "nul", "combining", "emoji", "right-to-left", "crlf", "line-separator", "special-tokens"],
)
def test_strange_characters_keep_offsets_exact(text: str) -> None:
    answer = Router(cache=False).answer(QUESTION, text)
    assert answer.citations
    for citation in answer.citations:
        assert text[citation.start : citation.end] == citation.text


@pytest.mark.slow
def test_one_file_of_fifty_megabytes_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    path.write_text(f"{filler(25_000_000)} {FACT} {filler(25_000_000, 1)}")
    code, answer, complaint = ask(path, limit_bytes=4 << 30)
    assert code == 0, complaint
    assert found(answer)
