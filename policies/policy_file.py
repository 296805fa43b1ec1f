"""Policy files: what `longroute calibrate fit` writes and the setting `policy` names. JSON, so that one can read it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..router.core import Policy
from ..router.errors import ConfigError
from .learned import Learned, LearnedWeights
from .risk_controlled import Guarantee, RiskControlled, guarantee_from


def read(path: Path) -> Policy:
    """`learned` with the file's weights, under `risk_controlled` where it holds a guarantee. Raises ConfigError."""
    row = _row(path)
    policy = Learned(_weights(row, path))
    return RiskControlled(policy, guarantee_from(row["guarantee"])) if row.get("guarantee") else policy


def read_weights(path: Path) -> LearnedWeights:
    """The weights alone. Raises ConfigError."""
    return _weights(_row(path), path)


def write(path: Path, weights: LearnedWeights, guarantee: Guarantee | None = None) -> None:
    row = {**weights.to_json(), "guarantee": asdict(guarantee) if guarantee else None}
    path.write_text(json.dumps(row, separators=(",", ":")) + "\n", encoding="utf-8")


def _row(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the policy file {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a policy file: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{path} is not a policy file: it holds no JSON object")
    return row


def _weights(row: dict[str, Any], path: Path) -> LearnedWeights:
    try:
        return LearnedWeights.from_json(row)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a policy file: {error}") from error
