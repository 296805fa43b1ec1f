"""Configuration, read once at start-up from the environment and a file. Values only: no part is built here.

Order, first wins: arguments, environment (`LONGROUTE_MODEL`, ...), the file, defaults. The file is TOML: the one named
by LONGROUTE_CONFIG, else `longroute.toml` in the working directory, else `~/.config/longroute/config.toml`.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from .core import Prefer
from .errors import ConfigError

PREFIX = "LONGROUTE_"


class UpstreamSettings(BaseModel):
    """One model API behind the proxy: a table `[[proxy.upstreams]]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("upstream", pattern=r"^[\w.-]{1,64}$", description="How headers, metrics and records name it.")
    url: str = Field(description="Its address, with or without `/v1`, like https://api.openai.com/v1.")
    models: tuple[str, ...] = Field(("*",), description="Models it serves; `*` and `?` stand for any characters.")
    api_key: SecretStr | None = Field(None, description="Key to use in place of the caller's.")
    api_key_env: str | None = Field(None, description="The same, from this environment variable.")


class ProxySettings(BaseModel):
    """The settings of `longroute serve`: the table `[proxy]`, or LONGROUTE_PROXY__NAME in the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    upstreams: tuple[UpstreamSettings, ...] = Field((), description="Model APIs, first match by model name wins.")
    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback needs `client_keys`.")
    port: int = Field(8100, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    client_keys: dict[str, SecretStr] = Field(
        {}, description="Name of each client and its key; callers must then show one. Empty: open to whoever connects."
    )
    admin_key: SecretStr | None = Field(None, description="Key for dashboard, metrics and everyone's decisions.")
    holdout: float = Field(0.0, ge=0, le=0.5, description="Share sent as it came, so that the saving is measured.")
    min_document_tokens: int = Field(4000, ge=500, description="Shortest text worth looking at.")
    question_last: bool = Field(False, description="Whether `full` moves a question in front of its text behind it.")
    stored_responses: bool = Field(
        False, description="Whether Responses that the upstream stores for later turns may be made shorter, too."
    )
    budget_s: float = Field(5.0, gt=0, description="Longest own work on one request; past it the original goes out.")
    max_body_mb: int = Field(1024, ge=1, description="Longest request body accepted.")
    max_inspected_mb: int = Field(32, ge=1, description="Longest body looked into; longer ones pass unread.")
    max_head_kb: int = Field(64, ge=8, description="Longest request head accepted.")
    max_concurrency: int = Field(1000, ge=1, description="Most requests under way; further ones get 503.")
    max_calls: int = Field(64, ge=1, description="Most calls of strategies' own under way; requests take turns.")
    retries: int = Field(4, ge=0, description="Calls of one request that may fail; beyond, no more than succeed.")
    retry_wait_s: float = Field(
        60.0,
        ge=0,
        description="Longest that one request waits in all after calls that failed in passing (`retry-after`).",
    )
    stream_calls: int = Field(2, ge=1, description="Most calls of a strategy that a stream is sent to by itself.")
    keep_alive_s: float = Field(
        15.0, gt=0, description="Silence after which a stream that waits for such calls gets a comment."
    )
    requests_per_minute: int | None = Field(None, ge=1, description="Most requests of one client in a minute.")
    connect_s: float = Field(10.0, gt=0, description="Longest wait for a connection to an upstream.")
    first_byte_s: float = Field(900.0, gt=0, description="Longest wait for the head of an answer.")
    stall_s: float = Field(900.0, gt=0, description="Longest silence in the middle of an answer, on either side.")
    client_stall_s: float = Field(
        60.0, gt=0, description="Longest that a client may take over a request's head, or over 16 kB of its body."
    )
    shutdown_s: float = Field(60.0, ge=0, description="How long answers under way may take to finish at the end.")
    decisions_kept: int = Field(10_000, ge=0, description="How many decision records are kept in memory.")


class AgentsSettings(BaseModel):
    """The settings of `chain_of_agents`: the table `[agents]`, or LONGROUTE_AGENTS__NAME in the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worker_model: str = Field("", description="Model of the workers; empty takes the model that answers.")
    window_tokens: int = Field(
        16_000,
        ge=512,
        description="Most that a worker reads and writes in one call; portions of `retrieve_then_reason`, too.",
    )
    notes_tokens: int | None = Field(
        None, ge=128, description="Room for the notes so far in a worker's prompt; an eighth of the window if unset."
    )
    worker_output_tokens: int | None = Field(
        None, ge=64, description="Longest reply of a worker; an eighth of the window, but at most 1024, if unset."
    )
    notes: Literal["structured", "free_text"] = Field(
        "structured", description="`structured`: workers add to notes; `free_text`: each rewrites one summary."
    )
    split: Literal["balanced", "greedy"] = Field(
        "balanced", description="`balanced`: portions about equally long; `greedy`: each is filled before the next."
    )
    variant: Literal["left_to_right", "right_to_left", "permutation", "bidirectional", "self_consistency"] = Field(
        "left_to_right", description="In which order, and on how many paths, workers read."
    )
    paths: int | None = Field(
        None, ge=1, le=32, description="Paths of `permutation` (1 if unset) and `self_consistency` (5)."
    )
    combine: Literal["auto", "vote", "judge"] = Field(
        "auto", description="How several paths become one answer; `auto` votes on short answers, else judges."
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="Of the workers; unset leaves it to the server, 0.7 in `self_consistency`."
    )
    retries: int = Field(
        1, ge=0, le=10, description="Further tries of a worker that failed in passing or said nothing."
    )
    on_failure: Literal["skip", "abort"] = Field(
        "skip", description="What a worker's failure means: its part stays unread, or there is no answer."
    )
    early_exit: bool = Field(
        False, description="Whether reading may stop when a worker holds a question about one fact for answered."
    )


class RunnerSettings(BaseModel):
    """The settings of local models and their server: the table `[runner]`, or LONGROUTE_RUNNER__NAME."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field("auto", description="`cpu`, `cuda`, `cuda:1`, ...; `auto` takes CUDA where there is one.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the weights; `auto` takes what they are stored in."
    )
    draft_model: Path | None = Field(
        None, description="Folder of a model that makes drafts for speculative decoding; unset, the model itself."
    )
    speculative_mode: Literal["exact", "rapid", "rapid_consistent", "ensemble"] = Field(
        "exact", description="How drafts are judged; `exact` never changes what the model would say."
    )
    speculative_eta: float = Field(
        10.0, ge=0, description="How far a draft's evidence may move the model's verdict in the `rapid` modes; 0: not."
    )
    draft_tokens: Annotated[int, Field(ge=1, le=32)] | Literal["auto"] = Field(
        "auto", description="Tokens drafted at a time; `auto` goes by what pays, and drafts none where nothing does."
    )
    chunk_tokens: int | None = Field(
        None, ge=16, description="Most tokens of a prompt that are read in one step; 2,048 if unset, 512 on a CPU."
    )
    slots: int = Field(16, ge=1, description="Most requests at work at a time.")
    queue_limit: int = Field(256, ge=1, description="Most requests that may wait; further ones are refused.")
    cache_mb: int | None = Field(
        None, ge=1, description="Most memory for keys and values of all texts; what the device has if unset."
    )
    prefix_cache_mb: int | None = Field(
        None, ge=0, description="Of that for texts already answered; half of what is free if unset, a quarter on a CPU."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback needs `api_key`.")
    port: int = Field(8200, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_key: SecretStr | None = Field(None, description="Key that callers of the server must show.")
    shutdown_s: float = Field(60.0, ge=0, description="How long answers under way may take to finish at the end.")


class Settings(BaseSettings):
    """Every setting, its meaning and its default."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, populate_by_name=True
    )

    model: str = Field(
        "extractive",
        description="Model that answers; `extractive` is embedded, `local:FOLDER` runs here; others need a server.",
    )
    base_url: str = Field(
        "https://api.openai.com/v1",
        description="OpenAI-compatible server for every model but `extractive`.",
        validation_alias=AliasChoices("LONGROUTE_BASE_URL", "base_url", "OPENAI_BASE_URL"),
    )
    api_key: SecretStr | None = Field(
        None,
        description="Key for that server; local servers often need none.",
        validation_alias=AliasChoices("LONGROUTE_API_KEY", "api_key", "OPENAI_API_KEY"),
    )
    models_file: Path | None = Field(None, description="JSON file of model profiles that add to or replace ours.")
    tokenizer: Path | None = Field(None, description="A Hugging Face tokenizer.json to count exactly with.")

    policy: str = Field(
        "learned", description="`learned`, `lara`, `fixed:STRATEGY`, or a policy file from `longroute calibrate fit`."
    )
    prefer: Prefer = Field("balanced", description="What to optimise: quality, balanced or cheap.")
    allowed: tuple[str, ...] = Field((), description="Strategies that may be chosen; empty means all.")
    max_cost_usd: Decimal | None = Field(None, ge=0, description="Hard limit on the estimated cost of one request.")
    max_latency_s: float | None = Field(None, gt=0, description="Hard limit on the estimated latency of one request.")
    min_quality: float | None = Field(None, ge=0, le=1, description="Hard limit on the estimated quality.")
    max_output_tokens: int = Field(1024, ge=1, description="Longest answer, and the room kept for it in the window.")

    rag_budget_tokens: int = Field(3000, ge=50, description="Most text that `rag` shows the model.")
    retriever: str = Field(
        "hybrid", description="How passages are found: `hybrid`, or `infiniretri:FOLDER` by a local model's attention."
    )
    compressor: str = Field(
        "question_aware",
        description="How `compressed` shortens: `question_aware`, `embedded`, `lexical`, `color`, `llmlingua2:FOLDER`, "
        "`specpc:FOLDER`, `gemfilter:FOLDER`.",
    )
    compressed_keep_rate: float = Field(
        0.33, gt=0, le=1, description="Tokens that `compressed` keeps, as a share of the text's."
    )
    speculative_context_tokens: int = Field(
        4096, ge=32, description="Least text that `speculative` makes drafts from; of long texts it is a 24th."
    )
    embedding_model: str = Field(
        "default",
        description="`default` is the offline MiniLM, `none` is BM25 alone, else a sentence-transformers model.",
    )

    outcomes_file: Path | None = Field(
        None, description="File to which `Router.record` appends how right answers were; holds no text."
    )

    cache_dir: Path | None = Field(None, description="Where embeddings are cached; `~/.cache/longroute` if unset.")
    cache: bool = Field(True, description="Whether to cache on disk. Document text is never stored.")
    cache_size_mb: int = Field(1024, ge=1, description="Bound on that cache.")

    timeout_s: float = Field(120.0, gt=0, description="Longest wait for one whole model call.")
    max_retries: int = Field(3, ge=0, description="Further tries of a call that failed for a passing reason.")
    max_concurrency: int = Field(16, ge=1, description="Most model calls under way at once.")

    agents: AgentsSettings = Field(
        AgentsSettings.model_validate({}), description="Settings of `chain_of_agents`, see below."
    )
    proxy: ProxySettings = Field(
        ProxySettings.model_validate({}), description="Settings of `longroute serve`, see below."
    )
    runner: RunnerSettings = Field(
        RunnerSettings.model_validate({}), description="Settings of local models and `longroute runner`, see below."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        found = config_file()
        file = (TomlConfigSettingsSource(settings_cls, found),) if found else ()
        return init_settings, env_settings, *file


def load_settings(**overrides: Any) -> Settings:
    """Settings from arguments, environment and file. Raises ConfigError that names the key and where it stands."""
    _reject_unknown_environment()
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, given) for problem in error.errors())) from None
    except (OSError, ValueError) as error:  # the file itself: unreadable, or not TOML
        raise ConfigError(f"Cannot read {config_file()}: {error}") from error


def config_file() -> Path | None:
    """The settings file in force, or None."""
    if named := os.environ.get(f"{PREFIX}CONFIG"):
        if not Path(named).is_file():
            raise ConfigError(f"{PREFIX}CONFIG names {named}, which is not a file.")
        return Path(named)
    usual = Path("longroute.toml"), Path.home() / ".config" / "longroute" / "config.toml"
    return next((path for path in usual if path.is_file()), None)


def default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "longroute"


def _reject_unknown_environment() -> None:
    """A misspelt variable would otherwise be ignored without a word."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | {f"{PREFIX}CONFIG", f"{PREFIX}DATA"}
    known |= {f"{PREFIX}PROXY__{name}".upper() for name in ProxySettings.model_fields}
    known |= {f"{PREFIX}AGENTS__{name}".upper() for name in AgentsSettings.model_fields}
    known |= {f"{PREFIX}RUNNER__{name}".upper() for name in RunnerSettings.model_fields}
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            raise ConfigError(f"Unknown setting {name} in the environment. Known: {', '.join(sorted(known))}.")


def _explain(problem: Any, given: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    name = key.removeprefix(PREFIX).lower()
    if name.partition(".")[0] in given:
        place = "argument"
    elif (variable := f"{PREFIX}{name}".upper().replace(".", "__")) in os.environ:
        place = f"environment variable {variable}"
    else:
        place = f"file {config_file()}"
    if problem["type"] == "extra_forbidden":
        fields = {
            "agents": AgentsSettings.model_fields,
            "proxy": ProxySettings.model_fields,
            "runner": RunnerSettings.model_fields,
            "upstreams": UpstreamSettings.model_fields,
        }
        tables = [fields[part] for part in name.split(".")[:-1] if part in fields]
        return f"Unknown setting '{name}' ({place}). Known: {', '.join((tables or [Settings.model_fields])[-1])}."
    value = "" if "key" in name or isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    return f"Setting '{name}'{value} ({place}): {problem['msg']}."
