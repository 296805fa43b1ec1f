"""A small engine for Hugging Face causal models on one machine: token ids in, token ids and text out.

    with Engine(LanguageModel.load("path/to/model"), decode=tokenizer.decode) as engine:
        for event in engine.submit(Generation(prompt_ids=(1, 2, 3), max_tokens=64)):
            ...

It knows nothing of routing, prompts or HTTP. Importing this package loads no model library; using a name does.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtra

if TYPE_CHECKING:
    from .attention import AttentionReader
    from .engine import Engine, EngineMetrics, EngineOptions
    from .generation import Done, Draft, Generated, Generation, GenerationUsage, Piece, SamplingOptions, TokenChoice
    from .handle import Handle
    from .kv_cache import KVCache
    from .model import LanguageModel

_HOMES = {
    "AttentionReader": "attention",
    **dict.fromkeys(("Engine", "EngineMetrics", "EngineOptions"), "engine"),
    **dict.fromkeys(
        ("Done", "Draft", "Generated", "Generation", "GenerationUsage", "Piece", "SamplingOptions", "TokenChoice"),
        "generation",
    ),
    "Handle": "handle",
    "KVCache": "kv_cache",
    "LanguageModel": "model",
}

__all__ = [
    "AttentionReader",
    "Done",
    "Draft",
    "Engine",
    "EngineMetrics",
    "EngineOptions",
    "Generated",
    "Generation",
    "GenerationUsage",
    "Handle",
    "KVCache",
    "LanguageModel",
    "Piece",
    "SamplingOptions",
    "TokenChoice",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    missing = [package for package in ("torch", "transformers") if find_spec(package) is None]
    if missing:
        raise MissingExtra(
            f"Running a model here needs {' and '.join(missing)}. Install with: pip install 'longroute[local]'"
        )
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
