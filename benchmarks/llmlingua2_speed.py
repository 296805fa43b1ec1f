"""How much faster is LLMLingua-2 here than in the reference package, on the same weights?

    python -m benchmarks.llmlingua2_speed --reference build/reference/venv/bin/python

One run, text of Python's reference manual, rate 0.33 with three force tokens, a stretch to warm up and then others. CPU
seconds of all threads, because the machine is shared; look at the ratios. "No model": in its place stands, on both
sides, one line of arithmetic on token ids, so the time is what is spent outside the model. With one of BERT-base size
nearly all time is spent inside. The default mode also looks for what must be protected, which the reference does not.
The model's own tokenizer counts tokens on both sides, by the same call. Memory is the highest of a process of its own
that compresses a million tokens of random words in nine languages. Writes results/llmlingua2_speed.md.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longroute.compressors.llmlingua2 import LLMLingua2
from longroute.compressors.llmlingua2_compat import CompatLLMLingua2
from longroute.compressors.llmlingua2_options import PromptOptions
from longroute.compressors.token_classifier import Ids, Mask, Probabilities, load

from .llmlingua2_identity import by_reference, counter_of
from .machine import measured_on
from .tiny_models import LANGUAGES, Kind, invented_text, save

RESULTS = Path(__file__).parent / "results" / "llmlingua2_speed.md"
OPTIONS: dict[str, Any] = {"rate": 0.33, "force_tokens": ["\n", ".", "?"]}


def natural_text() -> str:
    """Python's own reference manual, which comes with Python: English, with tables and code."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def long_text(n_sentences: int, seed: int = 0) -> str:
    """Sentences of all languages in turn, and words that never come again, as names and numbers do."""
    rng = random.Random(seed)
    parts = []
    for number in range(n_sentences // 10):
        parts.append(invented_text(LANGUAGES[number % len(LANGUAGES)], 10, seed + number))
        parts.append(f" {''.join(rng.choices('abdegiklmnorstu', k=7)).title()} paid {rng.randrange(10**6)} . ")
    return "".join(parts)


def seconds(work: Callable[[str], object], texts: Sequence[str]) -> float:
    """CPU seconds for all texts but the first, which warms up. No text comes twice: words are remembered."""
    work(texts[0])
    start = time.process_time()
    for text in texts[1:]:
        work(text)
    return time.process_time() - start


class NoModel:
    """The FakeModel of llmlingua2_reference.py: the probability that its logits come to."""

    def keep_probability(self, ids: Ids, mask: Mask) -> Probabilities:
        keep = (((ids * 7919 + np.arange(ids.shape[1]) * 104729) % 2003) / 1000 - 1).astype(np.float32)
        found: Probabilities = (1 / (1 + np.exp(-2 * keep))).astype(np.float32)
        return found


def compare(python: str, folder: Path, texts: Sequence[str], no_model: bool) -> dict[str, float]:
    """CPU seconds to compress texts: the reference, the compat mode, the default mode."""
    reference = by_reference(python, folder, [{"context": [text], "options": OPTIONS} for text in texts], no_model)
    options = PromptOptions(rate=OPTIONS["rate"], force_tokens=tuple(OPTIONS["force_tokens"]))
    counter = counter_of(folder)

    loaded = load(folder)
    compat = CompatLLMLingua2.from_loaded(loaded, counter)
    if no_model:
        compat = CompatLLMLingua2(NoModel(), loaded.vocabulary, counter)
    results = iter(reference["results"])

    def checked(text: str) -> None:
        assert compat.compress_prompt([text], options).as_dict() == next(results)["result"]

    found = {
        "reference": sum(one["seconds"] for one in reference["results"][1:]),
        "compat": seconds(checked, texts),
    }
    loaded = load(folder)
    default = LLMLingua2.from_loaded(loaded, counter)
    if no_model:
        default = LLMLingua2(NoModel(), loaded.vocabulary, counter)
    found["default"] = seconds(lambda text: default.compress_prompt([text], options), texts)
    return found


def memory(folder: str, n_sentences: int) -> dict[str, float]:
    """Compress a long text in this process; its tokens, seconds, rate, and highest memory in MiB before and after."""
    import torch

    torch.set_num_threads(1)
    counter = counter_of(Path(folder))
    default = LLMLingua2.from_folder(folder, counter)
    default.compress(["The council did not approve it. " * 50], keep_rate=0.5)
    text = long_text(n_sentences)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.process_time()
    (found,) = default.compress([text], keep_rate=0.33)
    return {
        "tokens": found.tokens_before,
        "rate": found.keep_rate,
        "seconds": time.process_time() - start,
        "before_mib": before,
        "after_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(python: str) -> None:
    import torch

    torch.set_num_threads(1)
    sizes: list[tuple[str, Kind, dict[str, Any], int, int]] = [  # name, kind, size, characters of a text, texts
        ("no model, BERT's tokenizer", "bert", {}, 60_000, 4),
        ("no model, XLM-R's tokenizer", "xlmr", {}, 60_000, 4),
        ("tiny BERT", "bert", {}, 60_000, 4),
        ("BERT-base size", "bert", {"hidden_size": 768, "layers": 12, "heads": 12}, 5_000, 3),
    ]
    rows, lasting = [], None
    for name, kind, size, n_characters, n_texts in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = save(Path(temporary), kind, vocabulary_size=4000, more_texts=(natural_text()[:200_000],), **size)
            starts = [220_000 + number * n_characters for number in range(n_texts)]
            texts = [natural_text()[start : start + n_characters] for start in starts]
            times = compare(python, folder, texts, name.startswith("no model"))
            rows.append((name, sum(map(counter_of(folder).count, texts[1:])), times))
            if lasting is None:
                own = subprocess.run(
                    [sys.executable, "-m", "benchmarks.llmlingua2_speed", "--memory", str(folder)],
                    capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
                )  # fmt: skip
                lasting = json.loads(own.stdout.splitlines()[-1])
    assert lasting is not None
    lines = [
        "# LLMLingua-2: time and memory beside the reference package",
        "",
        "CPU seconds; same random weights, one run, llmlingua 0.2.2. `compat` gives the identical output, as checked",
        "here; `default` mends the quirks and computes in bfloat16 where the processor does.",
        "",
        "| model | tokens | reference s | compat s | default s | compat, times as fast | default, times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, tokens, s in rows:
        lines.append(
            f"| {name} | {tokens:,} | {s['reference']:.2f} | {s['compat']:.2f} | {s['default']:.2f} "
            f"| {s['reference'] / s['compat']:.1f} | {s['reference'] / s['default']:.1f} |"
        )
    lines += [
        "",
        f"A text of {lasting['tokens']:,} tokens, tiny BERT, default mode: {lasting['seconds']:.0f} s, kept "
        f"{lasting['rate']:.1%} (asked 33 %), highest memory {lasting['before_mib']:.0f} MiB before and "
        f"{lasting['after_mib']:.0f} MiB after.",
        "",
        *(f"- {name}: {value}" for name, value in measured_on("numpy", "torch", "tokenizers").items()),
        "",
    ]
    RESULTS.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="build/reference/venv/bin/python", help="interpreter that has llmlingua")
    parser.add_argument("--memory", metavar="FOLDER", help="only measure memory, with the model in this folder")
    chosen = parser.parse_args()
    if chosen.memory:
        print(json.dumps(memory(chosen.memory, 68_000)))
    else:
        main(str(Path(chosen.reference).absolute()))
