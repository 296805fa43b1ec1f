from __future__ import annotations

import json
from pathlib import Path

import pytest

from longroute.policies.learned import Learned, shipped
from longroute.policies.policy_file import read, read_weights, write
from longroute.policies.risk_controlled import Guarantee, RiskControlled
from longroute.router.errors import ConfigError

GUARANTEE = Guarantee(
    loss="difference",
    epsilon=0.02,
    delta=0.1,
    unit="request",
    n=1000,
    strategies=("full", "rag"),
    models=("some-model",),
    threshold=0.05,
    mean_loss=0.004,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.json"


def test_what_was_written_is_read_back(path: Path) -> None:
    write(path, shipped())
    policy = read(path)
    assert isinstance(policy, Learned)
    assert policy.weights.to_json() == read_weights(path).to_json() == shipped().to_json()


def test_a_file_with_a_guarantee_is_risk_controlled(path: Path) -> None:
    write(path, shipped(), GUARANTEE)
    assert isinstance(read(path), RiskControlled)
    assert read_weights(path).to_json() == shipped().to_json()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"learned"', "{}", '{"kind": "learned"}', '{"kind": []}', "\x00"]
)
def test_garbage_is_refused_by_the_file_s_name(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    for reader in (read, read_weights):
        with pytest.raises(ConfigError, match=r"policy\.json"):
            reader(path)


def test_bytes_that_are_no_text_are_refused_by_the_file_s_name(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x80{}")
    with pytest.raises(ConfigError, match=r"policy\.json"):
        read(path)


@pytest.mark.parametrize(
    ("key", "value"), [("version", 99), ("inputs", ["length"]), ("beliefs", 3), ("beliefs", {"full": {"common": 1}})]
)
def test_a_wrong_part_is_refused_by_the_file_s_name(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps({**shipped().to_json(), key: value}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"policy\.json"):
        read(path)


def test_a_file_of_another_version_says_what_to_do(path: Path) -> None:
    path.write_text(json.dumps({**shipped().to_json(), "version": 99}), encoding="utf-8")
    with pytest.raises(ConfigError, match="longroute calibrate fit"):
        read(path)


def test_a_guarantee_that_is_none_is_refused(path: Path) -> None:
    path.write_text(json.dumps({**shipped().to_json(), "guarantee": {"epsilon": 0.02}}), encoding="utf-8")
    with pytest.raises(ConfigError):
        read(path)


def test_a_file_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.json"):
        read(path)
    with pytest.raises(ConfigError, match="Cannot read"):
        read(path.parent)
