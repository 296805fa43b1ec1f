"""The shape of the code base: imports point one way, importing is light, packaging lists what is there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

FOLDERS = ("router", "retrievers", "compressors", "policies")

# Who may import whom. A key is a module or a folder (longest match wins); its values are what it may import besides
# itself. `*` stands for everything: only the outermost layer has it.
BASE = ("router.core", "router.errors", "router.tokens")
ALLOWED: dict[str, tuple[str, ...]] = {
    "": ("router",),  # the lazy front door
    "__main__": ("router.cli",),
    "router.core": ("router.errors",),
    "router.errors": (),
    "router.tokens": BASE,
    "router.models": BASE,
    "router.costs": BASE,
    "router.question_type": BASE,
    "router.lara_task": BASE,
    "router.conversations": BASE,
    "router.documents": (*BASE, "router.conversations"),
    "router.settings": BASE,
    "router.run": (*BASE, "router.replies"),
    "router.replies": BASE,
    "router.prompts": (*BASE, "router.conversations", "router.replies"),
    "router.features": (
        *BASE,
        "router.conversations",
        "router.lara_task",
        "router.prompts",
        "router.question_type",
    ),
    "router.router": (*BASE, "router.costs", "router.features", "router.run"),
    "router.strategies": (*BASE, "router.conversations", "router.prompts", "router.replies"),
    "router.backends": BASE,
    "router.backends.local": (*BASE, "router.runner"),
    "router.runner": ("router.errors",),
    "router.runner.cli": ("*",),
    "router.outputs": (*BASE, "router.documents"),
    "router.assemble": ("*",),
    "router.doctor": ("router.assemble", "router.outputs", "router.settings", *BASE),
    "router.langchain": (
        "compressors.compression",
        "router.assemble",
        "router.router",
        "router.run",
        "router.runner",
        "router.settings",
        *BASE,
    ),
    "router.work_shown": BASE,
    "router.terminal": BASE,
    "router.calibration": ("*",),
    "router.proxy": ("*",),
    "router.cli": ("*",),
    "retrievers": (*BASE, "router.conversations"),
    "compressors": BASE,
    "policies": (*BASE, "router.replies"),
}
OUTERMOST = (
    "router.assemble",
    "router.doctor",
    "router.langchain",
    "router.calibration",
    "router.proxy",
    "router.cli",
    "router.runner.cli",
)


def modules(root: Path) -> dict[str, Path]:
    """Dotted name below the package → file, empty ones left out."""
    files = [root / "__init__.py", root / "__main__.py", *(f for d in FOLDERS for f in (root / d).rglob("*.py"))]
    files = [file for file in files if file.stat().st_size]
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip("."): f for f in files}


def imports(name: str, path: Path) -> set[str]:
    """Dotted names below the package that a module imports anywhere, inside functions too."""
    package = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            if node.module:
                found.add(".".join([*base, node.module]))
            else:
                found.update(".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "longroute":
            pytest.fail(f"{name} imports itself by its installed name; inside the package imports are relative")
    return found


def within(name: str, place: str) -> bool:
    return place == "*" or name == place or (bool(place) and name.startswith(f"{place}."))


def test_imports_point_one_way(repository: Path) -> None:
    known = modules(repository)
    for name, path in known.items():
        home = max((place for place in ALLOWED if within(name, place)), key=len, default=None)
        assert home is not None, f"{name} has no place in the table of layers: add it"
        for target in imports(name, path) & known.keys():
            assert any(within(target, place) for place in (home, *ALLOWED[home])), f"{name} imports {target}"


def test_nothing_imports_the_outermost_layer(repository: Path) -> None:
    known = modules(repository)
    outermost = {name for name in known if any(within(name, place) for place in OUTERMOST)}
    for name in known.keys() - outermost - {"", "__main__"}:
        assert not imports(name, known[name]) & outermost, name


def test_importing_longroute_is_light() -> None:
    """A fresh interpreter: no heavy package loads, and only a handful of modules at all."""
    program = "import sys; import longroute; import json; print(json.dumps(sorted(sys.modules)))"
    before = "import sys, json; print(json.dumps(sorted(sys.modules)))"
    loaded, bare = (
        set(json.loads(subprocess.run([sys.executable, "-c", p], capture_output=True, check=True, text=True).stdout))
        for p in (program, before)
    )
    heavy = {"torch", "transformers", "sentence_transformers", "faiss", "langchain_core", "numpy", "pydantic", "httpx"}
    assert not loaded & heavy
    assert len(loaded - bare) < 40  # modules, a proxy for time that no slow machine upsets


def test_deciding_loads_no_model_library() -> None:
    program = (
        "import sys; from longroute import Router; "
        "Router(cache=False).decide('Who wrote it?', ['Ada wrote it. ' * 50], model='gpt-4o'); "
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'faiss', 'langchain_core') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_package_is_listed_for_installation(repository: Path) -> None:
    listed = set(tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        ".".join(["longroute", *init.parent.relative_to(repository).parts])
        for folder in FOLDERS
        for init in (repository / folder).rglob("__init__.py")
    }
    assert listed == there | {"longroute"}


def test_no_other_module_lies_at_the_root(repository: Path) -> None:
    assert {path.name for path in repository.glob("*.py")} == {"__init__.py", "__main__.py"}
