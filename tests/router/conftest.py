"""A model folder as Hugging Face lays it out: random weights, a real tokenizer, a chat template; nothing downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from longroute.benchmarks.tiny_engine import make_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'longroute[local]'")
    return make_model(
        tmp_path_factory.mktemp("models") / "tiny", ["Ada wrote it in Vienna. The rent is 900 euros. " * 9]
    )
