"""The openai client through the proxy to a real engine: `transformers serve` with a toy model."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from longroute.benchmarks.scripted_models import proxied
from longroute.benchmarks.tiny_engine import NEEDS, make_model, serving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of the model libraries

QUESTION = "Who brought the compass?"
DRAW = random.Random(4)
TEXT = " ".join(
    f"In {DRAW.randint(1200, 1800)} {DRAW.choice(('Orla', 'Bram'))} brought {DRAW.choice(('salt', 'bells'))} to Velm."
    for _ in range(350)
)
SETTINGS = {
    "LONGROUTE_ALLOWED": '["full", "rag"]',
    "LONGROUTE_EMBEDDING_MODEL": "none",
    "LONGROUTE_RAG_BUDGET_TOKENS": "400",
    "LONGROUTE_PROXY__MIN_DOCUMENT_TOKENS": "1000",
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Its address and its model's name."""
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'transformers[serving]'")
    model = make_model(tmp_path_factory.mktemp("model"), [TEXT, QUESTION])
    with serving(model) as address:
        yield address, str(model)


@pytest.fixture(scope="module")
def proxy(engine: tuple[str, str]) -> Iterator[str]:
    with proxied("--upstream", f"{engine[0]}/v1", settings=SETTINGS) as address:
        yield address


@pytest.mark.parametrize("content", [QUESTION, f"{TEXT}\n\n{QUESTION}"], ids=["short", "long"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_through_the_proxy_is_the_engines_own(
    engine: tuple[str, str], proxy: str, content: str, stream: bool
) -> None:
    address, model = engine

    def ask(base: str, **headers: str) -> tuple[str, Any]:
        with openai.OpenAI(base_url=f"{base}/v1", api_key="sk-none") as client:
            messages: Any = [{"role": "user", "content": content}]
            raw = client.chat.completions.with_raw_response.create(
                model=model, messages=messages, max_tokens=12, temperature=0, stream=stream, extra_headers=headers
            )
            answer: Any = raw.parse()
            if not stream:
                return answer.choices[0].message.content, raw.headers
            return "".join(c.choices[0].delta.content or "" for c in answer if c.choices), raw.headers

    direct, _ = ask(address)
    untouched, _ = ask(proxy, **{"x-longroute-strategy": "off"})
    routed, headers = ask(proxy)
    assert direct
    assert untouched == direct
    if content == QUESTION:
        assert routed == direct
    else:
        assert routed
        assert headers["x-longroute-strategy"] == "rag"
        assert int(headers["x-longroute-tokens-after"]) < 0.4 * int(headers["x-longroute-tokens-before"])


def test_the_engine_reads_fewer_tokens_of_a_long_text(engine: tuple[str, str], proxy: str) -> None:
    def read(strategy: str) -> int:
        with openai.OpenAI(base_url=f"{proxy}/v1", api_key="sk-none") as client:
            messages: Any = [{"role": "user", "content": f"{TEXT}\n\n{QUESTION}"}]
            headers = {"x-longroute-strategy": strategy}
            chat = client.chat.completions.create(
                model=engine[1], messages=messages, max_tokens=2, extra_headers=headers
            )
        assert chat.usage
        return chat.usage.prompt_tokens

    assert read("auto") < 0.4 * read("off")
