from __future__ import annotations

from pathlib import Path

import pytest

from longroute.router.errors import ConfigError
from longroute.router.settings import Settings, load_settings


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


def test_every_setting_says_what_it_means() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_every_setting_is_documented_with_its_default(repository: Path) -> None:
    page = (repository / "docs" / "configuration.md").read_text()
    for name, field in Settings.model_fields.items():
        default = "–" if field.default is None else f"`{field.default!r}`".replace("'", '"')
        assert f"| `{name}` | {default} | {field.description} |".replace("'", '"') in page.replace("'", '"'), name
