"""What every test may rely on: no outside configuration, no model hub, no lasting cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a model library
os.environ["TRANSFORMERS_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def clean_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside, no key, and a home of its own, so no test reaches a real model by accident."""
    for name in list(os.environ):
        if name.startswith("LONGROUTE_") and name != "LONGROUTE_DATA":
            monkeypatch.delenv(name)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.chdir(home)


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
