"""The README is run, not trusted: its Python, its two commands, its links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longroute import Router


@pytest.fixture
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


def test_the_library_example_runs(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "load(" in code]
    contracts = tmp_path / "contracts"
    contracts.mkdir()
    (contracts / "lease.md").write_text("Either party may terminate the lease with three months of notice.")
    (tmp_path / "annex.txt").write_text("The flat has three rooms.")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example.replace("annex.pdf", "annex.txt"), names)  # noqa: S102
    answer = names["answer"]
    assert "Either party" in answer.text  # type: ignore[attr-defined]


def test_options_shown_for_a_model_server_exist(readme: str) -> None:
    decision = Router(model="gpt-4o", prefer="balanced", cache=False).decide(
        "Who may terminate?", "Either party may.", allowed=["full", "rag"], prefer="cheap"
    )
    assert decision.strategy in ("full", "rag")
    assert 'allowed=["full", "rag"], prefer="cheap"' in readme


def test_the_two_commands_are_what_ci_runs(readme: str, repository: Path) -> None:
    first, second = re.findall(r"^make (\w+)", readme, re.MULTILINE)
    makefile = (repository / "Makefile").read_text()
    assert f"\n{first}:" in makefile
    assert f"\nmake {second}\n" in (repository / ".ci" / "run").read_text()


def test_links_lead_somewhere(repository: Path) -> None:
    for page in (repository / "README.md", *(repository / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
