from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from longroute.router.errors import ConfigError
from longroute.router.settings import (
    AgentsSettings,
    ProxySettings,
    RunnerSettings,
    Settings,
    UpstreamSettings,
    load_settings,
)


def test_arguments_win_over_environment_over_file_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().prefer == "balanced"
    Path("longroute.toml").write_text('prefer = "cheap"\nmodel = "from-file"\n')
    assert load_settings().prefer == "cheap"
    monkeypatch.setenv("LONGROUTE_PREFER", "quality")
    assert load_settings().prefer == "quality"
    assert load_settings(prefer="balanced").prefer == "balanced"
    assert load_settings().model == "from-file"


def test_the_key_of_the_openai_client_is_understood_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    settings = load_settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "sk-secret"
    assert "sk-secret" not in repr(settings)


def test_lists_can_be_given_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGROUTE_ALLOWED", '["rag"]')
    assert load_settings().allowed == ("rag",)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('prefer = "best"', ["'prefer'", "'best'", "longroute.toml"]),
        ("max_retries = -1", ["'max_retries'", "-1"]),
        ('modle = "x"', ["modle", "Known", "model"]),
        ("model = ", ["Cannot read", "longroute.toml"]),
    ],
)
def test_errors_in_the_file_name_the_key_the_value_and_the_file(toml: str, words: list[str]) -> None:
    Path("longroute.toml").write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    for word in words:
        assert word in str(caught.value)


def test_errors_in_the_environment_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGROUTE_TIMEOUT_S", "soon")
    with pytest.raises(ConfigError, match="LONGROUTE_TIMEOUT_S"):
        load_settings()


def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGROUTE_MODLE", "gpt-4o")
    with pytest.raises(ConfigError, match="LONGROUTE_MODLE"):
        load_settings()


def test_a_named_file_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGROUTE_CONFIG", "/nowhere.toml")
    with pytest.raises(ConfigError, match=r"/nowhere\.toml"):
        load_settings()


def test_errors_never_show_a_bad_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(api_key=["sk-secret"])
    assert "sk-secret" not in str(caught.value)


TABLES: dict[str, type[BaseModel]] = {
    "": Settings,
    "agents.": AgentsSettings,
    "proxy.": ProxySettings,
    "proxy.upstreams.": UpstreamSettings,
    "runner.": RunnerSettings,
}


def test_every_setting_says_what_it_means() -> None:
    for table in TABLES.values():
        for name, field in table.model_fields.items():
            assert field.description, name


def test_every_setting_is_documented_with_its_default(repository: Path) -> None:
    page = (repository / "docs" / "configuration.md").read_text()
    for prefix, table in TABLES.items():
        for name, field in table.model_fields.items():
            shown = None if field.is_required() or isinstance(field.default, BaseModel) else field.default
            default = "–" if shown is None else f"`{shown!r}`".replace("'", '"')
            row = f"| `{prefix}{name}` | {default} | {field.description} |"
            assert row.replace("'", '"') in page.replace("'", '"'), f"{prefix}{name}"


def test_agents_are_configured_from_file_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("longroute.toml").write_text('[agents]\nvariant = "bidirectional"\n')
    monkeypatch.setenv("LONGROUTE_AGENTS__NOTES", "free_text")
    agents = load_settings().agents
    assert (agents.variant, agents.notes, agents.window_tokens) == ("bidirectional", "free_text", 16_000)


@pytest.mark.parametrize(
    ("line", "message"), [("varaint = 1", r"agents\.varaint.*early_exit"), ('notes = "prose"', r"agents\.notes.*prose")]
)
def test_a_wrong_line_of_agents_is_named(line: str, message: str) -> None:
    Path("longroute.toml").write_text(f"[agents]\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        load_settings()


def test_the_proxy_is_configured_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "longroute.toml"
    file.write_text('[proxy]\nport = 9000\n[[proxy.upstreams]]\nurl = "https://a/v1"\nmodels = ["gpt-*"]\n')
    monkeypatch.setenv("LONGROUTE_CONFIG", str(file))
    monkeypatch.setenv("LONGROUTE_PROXY__HOLDOUT", "0.1")
    proxy = load_settings().proxy
    assert (proxy.port, proxy.holdout, proxy.upstreams[0].models) == (9000, 0.1, ("gpt-*",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prot = 1", r"proxy\.prot.*file.*max_head_kb"),
        ('[[proxy.upstreams]]\nkey = "sk-secret"', r"upstreams.*url"),
        ('client_keys = "sk-secret"', r"proxy\.client_keys"),
    ],
)
def test_a_wrong_line_of_the_proxy_is_named_and_no_key_shown(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "longroute.toml"
    file.write_text(f"[proxy]\n{line}\n")
    monkeypatch.setenv("LONGROUTE_CONFIG", str(file))
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings()
    assert "sk-secret" not in str(caught.value)
