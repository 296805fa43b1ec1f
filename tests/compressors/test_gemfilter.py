"""GemFilter: the order of tokens against a slow reading of the paper, on models with random weights."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.compressors.gemfilter import AnsweredText, GemFilter, best_depth, pooled
from longroute.router.errors import CalibrationError, ContextTooLong

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
WORD = re.compile(r"\w+|[^\w\s]")


def count(text: str) -> int:
    return len(WORD.findall(text))


class Planted:
    """A fake model of eight layers, every other of which sees everything. Its tokens are words.

    looks: at words, in the layers from `knows` on; elsewhere the n-th word of a text has -n. Remembers its readings.
    """

    n_layers = 8
    layers = (1, 3, 5, 7)

    def __init__(self, looks: dict[str, float] | None = None, *, knows: int = 0, max_tokens: int = 10_000) -> None:
        self.looks = looks or {}
        self.knows = knows
        self.max_tokens = max_tokens
        self.known: dict[str, int] = {}
        self.read: list[tuple[list[int], list[int]]] = []

    def encode(self, text: str) -> tuple[list[int], Ints]:
        found = list(WORD.finditer(text))
        ids = [self.known.setdefault(match.group(), len(self.known)) for match in found]
        return ids, np.array([match.span() for match in found], np.int64).reshape(-1, 2)

    def layer_within(self, depth: float) -> int:
        return max((n for n in self.layers if n < round(8 * depth)), default=1)

    def last_query(self, ids: Sequence[int], layers: Sequence[int], *, products: bool = False) -> Floats:
        self.read.append((list(ids), list(layers)))
        spelled = {n: word for word, n in self.known.items()}
        plain = [-float(place) for place in range(len(ids))]
        told = [self.looks.get(spelled[n], other - 10_000) for n, other in zip(ids, plain, strict=True)]
        return np.array([told if layer >= self.knows else plain for layer in layers])

    def words(self, ids: Sequence[int]) -> list[str]:
        spelled = {n: word for word, n in self.known.items()}
        return [spelled[n] for n in ids]


@given(st.lists(st.floats(-50, 50), max_size=40), st.integers(1, 7))
def test_scores_are_smoothed_by_means_of_what_is_there(values: list[float], pool: int) -> None:
    found = pooled(np.array(values), pool)
    assert found.shape == (len(values),)
    for place in range(len(values)):
        around = values[max(place - pool // 2, 0) : place + (pool - 1) // 2 + 1]
        assert np.isclose(found[place], np.mean(around), atol=1e-9)


def test_the_inside_of_a_text_is_smoothed_as_the_published_code_does() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=50)
    theirs = torch.nn.functional.avg_pool1d(torch.tensor(values)[None], 5, padding=2, stride=1)[0].numpy()
    assert np.allclose(pooled(values, 5)[2:-2], theirs[2:-2])


def long_text(*, at: int = 400, words: str = "Vell is run by Ada .", n: int = 1200) -> str:
    rng = random.Random(0)
    filler = [f"x{rng.randrange(10**9)}" for _ in range(n)]
    return " ".join([*filler[:at], words, *filler[at:]])


@pytest.mark.parametrize("at", [0, 400, 1200])
def test_what_the_layer_points_to_is_kept_in_the_order_of_the_text(at: int) -> None:
    model = Planted(dict.fromkeys(["Vell", "is", "run", "by", "Ada"], 50.0))
    [short] = GemFilter(model, count=count).compress([long_text(at=at)], question="Who runs Vell?", budget_tokens=40)
    assert "Vell is run by Ada" in short.text
    assert short.tokens_after == 40
    [(ids, layers)] = model.read
    assert layers == [3]  # of the first five of eight the last that sees everything
    assert model.words(ids) == WORD.findall(f"{long_text(at=at)} Question: Who runs Vell? Answer:")


def test_a_text_beyond_the_window_is_read_in_blocks_of_one_length_each_before_the_question() -> None:
    model = Planted({"Vell": 50.0}, max_tokens=300)
    text = long_text(at=900)
    [short] = GemFilter(model, count=count, pool=1).compress([text], question="Who runs Vell?", budget_tokens=1)
    assert short.text == "Vell"
    behind = WORD.findall("Question: Who runs Vell? Answer:")
    lengths = [len(ids) - len(behind) for ids, _ in model.read]
    assert sum(lengths) == count(text) and max(lengths) <= 300 - len(behind) and len(lengths) == 5
    assert max(lengths) - min(lengths) < len(lengths)
    assert all(model.words(ids)[-len(behind) :] == behind for ids, _ in model.read)
    with pytest.raises(ContextTooLong, match="Ask a shorter question"):
        GemFilter(model, count=count).compress([text], question="why " * 250, keep_rate=0.5)


@lru_cache
def tiny_reader(family: str) -> Any:
    from longroute.router.runner.attention import AttentionReader
    from longroute.router.runner.model import LanguageModel
    from longroute.router.runner.tokenizer import Tokenizer
    from longroute.tests.router.runner.matcher import words_tokenizer
    from longroute.tests.router.runner.tiny import VOCAB, tiny_transformer

    changes = {"sliding_window": 256} if family == "mistral" else {}
    vocabulary = [*(f"w{n}" for n in range(VOCAB - 6)), "Question", "Answer", ":", "?"]
    tokenizer = Tokenizer(words_tokenizer(vocabulary))
    model = LanguageModel(tiny_transformer(family, **changes))
    return AttentionReader(model, tokenizer, introduction="w3 w5", chunk_tokens=50)


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("depth", [0.5, 1.0])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gemma3_text", "gpt_neox"])
def test_a_real_model_keeps_the_tokens_of_the_paper(family: str, depth: float, products: bool) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from longroute.tests.router.runner.tiny import tiny_transformer

    reader = tiny_reader(family)
    rng = random.Random(family)
    text = " ".join(f"w{rng.randrange(42)}" for _ in range(150))
    ids, question = reader.encode(text)[0], "w7 w8?"
    # All attention of the layer at once, added over heads, smoothed, and the best k of the text. Its logarithms are the
    # inner products of the paper, up to a number that is the same for all tokens.
    transformer = tiny_transformer(family, **({"sliding_window": 256} if family == "mistral" else {}))
    transformer.set_attn_implementation("eager")
    prompt = [*reader.encode("w3 w5")[0], *ids, *reader.encode(f"Question: {question} Answer:")[0]]
    with torch.inference_mode():
        out = transformer(torch.tensor([prompt]), use_cache=False, output_attentions=True)
    heads = out.attentions[reader.layer_within(depth)][0, :, -1].double()
    row = (heads.log() if products else heads).sum(0)[2 : 2 + len(ids)]
    smooth = torch.nn.functional.avg_pool1d(row[None], 5, padding=2, stride=1, count_include_pad=False)[0]
    expected = sorted(smooth.topk(30).indices.tolist())
    own = GemFilter(reader, count=count, depth=depth, products=products)
    [short] = own.compress([text], question=question, budget_tokens=30)
    words = text.split()
    assert short.text.split() == [words[place] for place in expected]
    assert {text[: match.start()].count(" ") for s, e in short.kept for match in WORD.finditer(text, s, e)} == {
        *expected
    }


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 120), st.integers(0, 60), st.integers(0, 99))
def test_a_larger_budget_keeps_what_a_smaller_one_does(n: int, budget: int, seed: int) -> None:
    pytest.importorskip("transformers")
    rng = random.Random(seed)
    text = " ".join(f"w{rng.randrange(42)}" for _ in range(n))
    own = GemFilter(tiny_reader("qwen2"), count=count)
    [small], [large] = (own.compress([text], question="w1?", budget_tokens=tokens) for tokens in (budget, budget + 7))
    assert small.tokens_after == min(budget, n) and large.tokens_after == min(budget + 7, n)
    assert all(any(a <= start and end <= b for a, b in large.kept) for start, end in small.kept)


def test_the_depth_is_that_of_the_first_layer_that_ranks_answers_best() -> None:
    examples = []
    for at in (100, 250, 400):
        text = long_text(at=at, n=500)
        start = text.index("Ada")
        examples.append(AnsweredText(text, "Who runs Vell?", (start, start + 3)))
    assert best_depth(Planted({"Ada": 50.0}, knows=5), examples) == 6 / 8
    assert best_depth(Planted(knows=8), examples) == 2 / 8  # no layer is better than the first
    with pytest.raises(CalibrationError, match="there is none"):
        best_depth(Planted(), [])
    with pytest.raises(CalibrationError, match="no token"):
        best_depth(Planted(), [AnsweredText("Ada runs it.", "Who?", (3, 4))])


def test_the_depth_of_a_real_model_names_the_layer_that_was_meant() -> None:
    pytest.importorskip("transformers")
    for family in ("llama", "gemma3_text"):
        reader = tiny_reader(family)
        example = AnsweredText("w1 w2 w3 w4 w5 w6", "w9?", (3, 5))
        assert reader.layer_within(best_depth(reader, [example])) in reader.layers
