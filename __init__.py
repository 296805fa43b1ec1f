"""longroute: an application has a question and more text than it should paste into a model. What should happen to it?

    from longroute import Router
    answer = Router().answer("Who signed the lease?", "...a long text...")

Names load on first use, so that importing longroute is quick and pulls in no model library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .router.assemble import Router
    from .router.conversations import turns
    from .router.core import Answer, Citation, Decision, Document, Estimate, Passage, Usage
    from .router.documents import load
    from .router.errors import RouterError
    from .router.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Citation",
    "Decision",
    "Document",
    "Estimate",
    "Passage",
    "Router",
    "RouterError",
    "Settings",
    "Usage",
    "load",
    "turns",
]

_HOMES = {
    "Answer": "core",
    "Citation": "core",
    "Decision": "core",
    "Document": "core",
    "Estimate": "core",
    "Passage": "core",
    "Router": "assemble",
    "RouterError": "errors",
    "Settings": "settings",
    "Usage": "core",
    "load": "documents",
    "turns": "conversations",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".router.{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
