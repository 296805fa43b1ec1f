"""LongCodeZip: what is kept are lines of the source, under the budget, and they still parse."""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.compressors import code_parsing
from longroute.compressors.code import Code, adaptive_rates, knapsack
from longroute.compressors.code_parsing import LANGUAGES, has_errors, installed
from longroute.compressors.compression import Compressed
from longroute.router.errors import ConfigError, MissingExtra
from longroute.router.tokens import estimate_tokens

PYTHON = LANGUAGES["python"]
needs_grammar = pytest.mark.skipif(not installed(PYTHON), reason="the grammars of the extra 'code' are not installed")


def count(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def source(*names: str) -> str:
    """A class with a method for each name."""
    methods = "".join(
        f"""
    # About {name}.
    @wraps
    def {name}(self, a: int) -> str:
        \"\"\"Does the {name}.\"\"\"
        first = a + len("{name} {name}")
        second = [first, first, first, first]
        if second:
            third = sum(second)
        return {name}_result(third)
"""
        for name in names
    )
    return (
        f'"""Doc."""\nfrom __future__ import annotations\n\nimport os\n\n\nclass A(B):\n    """Doc of A."""\n{methods}'
    )


def assert_true_offsets(text: str, result: Compressed) -> None:
    """Kept stretches stand in the result unchanged; what stands between them says that lines were left out."""
    place = end = 0
    for (a, b), placed in zip(result.kept, result.placed, strict=True):
        assert end <= a < b <= len(text) and placed >= place
        assert re.fullmatch(r"(\s*(#|//)? ?\.\.\.\n)*", result.text[place:placed]), result.text[place:placed]
        assert result.text[placed : placed + b - a] == text[a:b]
        place, end = placed + b - a, b
    assert re.fullmatch(r"(\s*(#|//)? ?\.\.\.\n)*", result.text[place:])
    assert len(result.text) <= len(text)
    assert result.tokens_after <= result.tokens_before


# ---- what is kept ----------------------------------------------------------------------------------------------------


@needs_grammar
def test_the_function_asked_for_is_kept_whole_and_others_as_signatures() -> None:
    text = source("alpha", "beta", "gamma")
    compressor = Code(count=count, language="python", signature_share=0.3, parseable=True)
    [result] = compressor.compress([text], question="What does beta return?", budget_tokens=130)
    assert result.tokens_after <= 130
    beta = text[text.index("    # About beta") : text.index("\n    # About gamma")]
    assert beta in result.text
    assert "    def alpha(self, a: int) -> str:\n        ...\n" in result.text
    assert "# About alpha" not in result.text
    assert "class A(B):\n" in result.text
    ast.parse(result.text)
    assert_true_offsets(text, result)


@needs_grammar
def test_a_marker_belongs_to_the_end_of_the_stretch_before_it() -> None:
    text = source("alpha", "beta", "gamma")
    [result] = Code(count=count, signature_share=0.3).compress([text], question="beta", budget_tokens=130)
    place = result.text.index("        ...\n")
    before = result.text[:place].rindex("\n")
    assert text[result.source_offset(before)] == "\n"
    assert result.source_offset(place + 8) == result.source_offset(before) + 1


def test_a_marker_before_everything_belongs_to_the_beginning_of_what_follows() -> None:
    text = source("alpha", "beta", "gamma")
    [result] = Code(count=count, signature_share=0).compress([text], question="gamma", budget_tokens=80)
    assert result.placed[0] > 0
    assert {result.source_offset(place) for place in range(result.placed[0])} == {result.kept[0][0]}


@pytest.mark.parametrize(
    "text",
    [
        "VALUES = [\n" + "".join(f"    {n},\n" for n in range(2000)) + "]\n",
        "".join(f".button{n} {{ margin: {n}px; }}\n" for n in range(300)),
    ],
    ids=["a table of data", "a style sheet"],
)
@pytest.mark.parametrize("question", ["", "What is 1234, or button123?"])
def test_of_what_has_no_functions_lines_are_kept(text: str, question: str) -> None:
    [result] = Code(count=count).compress([text], question=question, keep_rate=0.3)
    assert 0.15 * result.tokens_before < result.tokens_after <= 0.3 * result.tokens_before
    assert_true_offsets(text, result)
    if question:
        assert "123" in result.text


@needs_grammar
def test_a_function_that_does_not_fit_loses_the_blocks_that_matter_least() -> None:
    text = textwrap.dedent("""
        def f(a):
            unrelated = [a, a, a, a, a, a, a, a, a, a]
            needle = haystack(a, a, a)
            other = [a, a, a, a, a, a, a, a, a, a]
            return other
    """)
    compressor = Code(count=count, language="python", parseable=True)
    [result] = compressor.compress([text], question="Where is the needle in the haystack?", budget_tokens=30)
    assert "def f(a):" in result.text and "needle = haystack" in result.text and "return other" in result.text
    assert "unrelated" not in result.text
    ast.parse(result.text)
    assert_true_offsets(text, result)


@needs_grammar
def test_a_comment_at_the_end_is_never_all_that_is_left_of_a_body() -> None:
    body = "".join(f"    x{n} = call(a, a, a, a, a)\n" for n in range(9))
    text = f"def f(a):\n{body}    # return the needle\n\nclass A:\n{body}    # needle\n"
    for budget in range(10, 200, 6):
        compressor = Code(count=count, language="python", parseable=True)
        [result] = compressor.compress([text], question="needle", budget_tokens=budget)
        ast.parse(result.text)
        assert_true_offsets(text, result)


@needs_grammar
def test_without_a_question_an_outline_is_kept() -> None:
    text = source("alpha", "beta", "gamma", "delta")
    [result] = Code(count=count, language="python").compress([text], budget_tokens=100)
    assert all(f"def {name}(self" in result.text for name in ("alpha", "beta", "gamma", "delta"))


@needs_grammar
def test_the_budget_goes_to_the_file_that_the_question_is_about() -> None:
    texts = [source("alpha", "beta"), source("gamma", "delta"), "x = 1\n"]
    results = Code(count=count, language="python").compress(texts, question="gamma", budget_tokens=80)
    assert "gamma_result" in results[1].text
    assert results[1].tokens_after > results[0].tokens_after
    assert sum(result.tokens_after for result in results) <= 80
    for text, result in zip(texts, results, strict=True):
        assert_true_offsets(text, result)


@needs_grammar
def test_finer_compression_keeps_something_of_more_functions() -> None:
    text = source(*"abcdefgh")
    kept = {}
    for rate in (1.0, 0.5):
        [result] = Code(count=count, signature_share=0, fine_rate=rate).compress(
            [text], question="a", budget_tokens=230
        )
        kept[rate] = len(re.findall(r"return \w_result", result.text))
    assert kept[0.5] > kept[1.0]


@needs_grammar
@pytest.mark.parametrize("name", ["javascript", "java", "cpp", "rust"])
def test_code_in_braces_still_parses(name: str) -> None:
    body = "".join(f"  let x{n} = call(a, a, a, a, {n});\n" for n in range(6)).replace(
        "let ", "let " * (name != "java")
    )
    heads = {
        "javascript": "function {}(a) {{",
        "java": "void {}(int a) {{",
        "cpp": "int {}(int a) {{",
        "rust": "fn {}(a: i32) {{",
    }
    if name in ("java", "cpp"):
        body = body.replace("let ", "").replace("  x", "  int x")
    text = "\n".join(f"{heads[name].format(f)}\n{body}}}\n" for f in ("alpha", "beta", "gamma"))
    if name == "java":
        text = f"class A {{\n{text}}}\n"
    assert not has_errors(text, LANGUAGES[name])
    compressor = Code(count=count, language=name, parseable=True, signature_share=0.3)
    [result] = compressor.compress([text], question="beta", keep_rate=0.55)
    assert not has_errors(result.text, LANGUAGES[name])
    assert "alpha" in result.text and "beta" in result.text and "  // ...\n}" in result.text
    assert_true_offsets(text, result)


# ---- promises --------------------------------------------------------------------------------------------------------


STANDARD_LIBRARY = sorted(Path(ast.__file__).parent.glob("*.py"))[::12]


@needs_grammar
@pytest.mark.parametrize("fine_rate", [1.0, 0.6])
def test_files_of_the_standard_library_still_parse(fine_rate: float) -> None:
    assert len(STANDARD_LIBRARY) > 10
    compressor = Code(count=estimate_tokens, language="python", parseable=True, fine_rate=fine_rate)
    for path, rate in zip(STANDARD_LIBRARY, itertools.cycle([0.1, 0.3, 0.7])):
        text = path.read_text("utf-8")
        [result] = compressor.compress([text], question="read lines from a file and encode them", keep_rate=rate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # escapes that are wrong in the source itself
            ast.parse(result.text)
        assert result.tokens_after == (estimate_tokens(result.text) if result.text else 0)
        assert result.tokens_after <= rate * result.tokens_before
        assert_true_offsets(text, result)


@needs_grammar
def test_what_would_not_parse_is_left_out_where_parsing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LANGUAGES, "python", replace(PYTHON, empty="(("))
    text = source("alpha", "beta", "gamma")
    for promised, kept in ((True, False), (False, True)):
        compressor = Code(count=count, language="python", parseable=promised, signature_share=0.5)
        [result] = compressor.compress([text], question="beta", budget_tokens=100)
        assert bool(result.text) == kept


def test_without_the_grammar_functions_are_guessed_and_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(language: code_parsing.Language) -> bool:
        return False

    monkeypatch.setattr(code_parsing, "installed", missing)
    monkeypatch.setattr("longroute.compressors.code.installed", missing)
    text = source("alpha", "beta", "gamma")
    compressor = Code(count=count, language="python")
    [result] = compressor.compress([text], question="beta", budget_tokens=100)
    assert "beta_result" in result.text and "alpha_result" not in result.text
    assert_true_offsets(text, result)
    assert "longroute[code]" in compressor.guesses(text)
    with pytest.raises(MissingExtra, match=r"longroute\[code\]"):
        Code(count=count, language="python", parseable=True).compress([text], keep_rate=0.5)


@needs_grammar
def test_nothing_is_guessed_where_the_grammar_is_installed() -> None:
    assert Code(count=count).guesses("import os\n") == ""


@needs_grammar
@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "ä"]), min_size=0, max_size=5),
    st.text(alphabet="abä é\n\t():#'\"{};x=1\r\ud800", max_size=60),
    st.integers(0, 300),
    st.sampled_from([1.0, 0.5]),
    st.floats(0, 1),
    st.booleans(),
)
def test_never_above_the_budget_never_longer_and_offsets_are_true(
    names: list[str], junk: str, budget: int, fine_rate: float, share: float, marked: bool
) -> None:
    texts = [source(*names), junk, source(*names[:2]) + junk]
    compressor = Code(count=count, language="python", fine_rate=fine_rate, signature_share=share, mark_gaps=marked)
    results = compressor.compress(texts, question="What does beta do?", budget_tokens=budget)
    assert sum(result.tokens_after for result in results) <= budget
    for text, result in zip(texts, results, strict=True):
        assert result.tokens_after == count(result.text) and result.tokens_before == count(text)
        assert_true_offsets(text, result)
    ast.parse(results[0].text)


@needs_grammar
@settings(deadline=None)
@given(st.text(max_size=80), st.floats(0, 1))
def test_any_text_in_any_language_stays_under_its_rate(text: str, rate: float) -> None:
    [result] = Code(count=count).compress([text], question="why?", keep_rate=rate)
    assert result.tokens_after <= rate * count(text) + 1e-6
    assert_true_offsets(text, result)


def test_scores_that_are_no_numbers_do_no_harm() -> None:
    def broken(question: str, passages: Sequence[str]) -> npt.NDArray[np.float64]:
        return np.array([np.nan, np.inf, -np.inf] * len(passages))[: len(passages)]

    text = source("alpha", "beta", "gamma")
    [result] = Code(broken, count=count, language="python").compress([text], question="beta", budget_tokens=60)
    assert 0 < result.tokens_after <= 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fine_rate": 0}, "fine_rate is 0"),
        ({"signature_share": 2}, "signature_share is 2"),
        ({"file_weight": -1}, "file_weight is -1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Code(count=count, **options)  # type: ignore[arg-type]


def test_a_limit_is_needed() -> None:
    with pytest.raises(ConfigError, match="either budget_tokens or keep_rate"):
        Code(count=count).compress(["x = 1"])


# ---- sharing out -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 30)), max_size=9), st.integers(-1, 90))
def test_the_knapsack_is_as_good_as_trying_everything(items: list[tuple[float, int]], capacity: int) -> None:
    values, weights = [value for value, _ in items], [weight for _, weight in items]
    chosen = knapsack(values, weights, capacity)
    assert chosen == sorted(set(chosen)) and sum(weights[n] for n in chosen) <= max(capacity, 0)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(len(items)), n) for n in range(len(items) + 1))
    fitting = [s for s in subsets if sum(weights[n] for n in s) <= capacity] if capacity > 0 else [()]
    best = max(sum(values[n] for n in subset) for subset in fitting)
    assert sum(values[n] for n in chosen) == pytest.approx(best)


def test_a_large_knapsack_is_filled_by_value_per_weight() -> None:
    chosen = knapsack([1.0] * 150, [10] * 149 + [1], 3001)
    assert 149 in chosen and len(chosen) == 150
    assert knapsack([5.0, 1.0], [3000, 10], 2500) == [1]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 500)), min_size=1, max_size=12),
    st.floats(0.01, 1),
    st.integers(0, 300),
)
def test_rates_rise_with_the_score_and_stay_under_the_target(
    items: list[tuple[float, int]], rate: float, small: int
) -> None:
    scores, tokens = np.array([s for s, _ in items]), np.array([float(t) for _, t in items])
    rates = adaptive_rates(scores, tokens, rate, small)
    assert ((rates >= 0) & (rates <= 1)).all()
    order = np.argsort(scores)
    assert (np.diff(rates[order]) >= -1e-9).all()
    assert rates @ tokens <= max(rate * (tokens.sum() + small) - small, 0) + 1e-6


def test_equal_scores_give_equal_rates() -> None:
    np.testing.assert_allclose(adaptive_rates(np.ones(3), np.array([10.0, 20.0, 30.0]), 0.5), 0.5)
    assert adaptive_rates(np.zeros(0), np.zeros(0), 0.5).shape == (0,)
