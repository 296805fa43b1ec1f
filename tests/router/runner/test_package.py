"""The package itself is light, offers every public name, and says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

from longroute.router import runner
from longroute.router.errors import MissingExtra


def test_importing_the_package_loads_no_model_library() -> None:
    program = "import sys; import longroute.router.runner; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_is_there() -> None:
    for name in runner.__all__:
        assert getattr(runner, name).__name__ == name


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"torch and transformers. Install with: pip install 'longroute\[local\]'"):
        _ = runner.Engine
