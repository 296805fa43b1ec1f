"""Does the compat mode of LLMLingua-2 give exactly what the reference package gives?

    python -m benchmarks.llmlingua2_identity --reference build/reference/venv/bin/python

Hundreds of cases: options drawn at random, and each on its own; texts in nine languages and hostile ones; a BERT with
WordPiece and an XLM-RoBERTa with SentencePiece pieces, both tiny and random. The reference runs in an environment of
its own (`python3 -m venv build/reference/venv && build/reference/venv/bin/pip install -c constraints.txt
llmlingua==0.2.2`) and the two exchange JSON. Compared is everything that is returned, letter by
letter, and the name of the error where the reference stops with one.
Writes results/llmlingua2_identity.md. With --fixture, writes the cases and results that the tests compare with, made
with a model that is a function of token ids, so that no machine rounds it differently.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from longroute.compressors.llmlingua2_compat import CompatLLMLingua2
from longroute.compressors.llmlingua2_options import PromptOptions
from longroute.router.core import TokenCounter
from longroute.router.errors import ConfigError
from longroute.router.tokens import counter_from

from .machine import measured_on
from .tiny_models import FOLDERS, KINDS, LANGUAGES, invented_text, save

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "llmlingua2_identity.md"
FIXTURE = HERE.parent / "tests" / "compressors" / "llmlingua2_reference.json"
SEED = 5

HOSTILE = [
    "",
    " ",
    "\n\n\n",
    ".",
    "one",
    "Supercalifragilistic" * 90,
    "word " * 511,
    "a.b.c.d " * 200,
    "The [NEW3] council [NEW0] voted [PAD] on [CLS] it [SEP] twice [UNK] <s> <pad> </s> <unk> and left.",
    "## # #hash ### ##ing c##t and ▁the ▁ ▁▁word of it",
    "Emoji 😀😀 👩‍👩‍👧 and ☃ in a row 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 Z͑͗ͦa͎l͖g̈́o é e\u0301 \u200b\u200d \ufeff end.",
    "1,234.56 € on 12/03/2031 at 9:30; ٣٤٥ and 三百 x2 v3.1.4 (see § 4) 50% & 3rd.",
    "\t\ttabs\t\tand\r\nreturns\r\n\r\nand \u00a0 spaces\u3000wide.\n.\n.\n. . . ? ? ! !",
    "((( ))) !!! ... ,,, ;;; --- ___ === <<>> [[ ]] {{ }} \\ // | ``` '''",
    "......\n\n\n\n......\n\n\n......",
    "نص عربي طويل " * 60 + "निर्णय " * 60,
    "委员会没有批准预算" * 80,
]
FORCE = [
    *(
        "\n",
        ".",
        "?",
        "!",
        ",",
        "the",
        "not",
        "Mrs.",
        "two-thirds",
        "$3,200",
        "12",
        "de",
        "委员会",
        "не",
        "+",
        "(",
        ".*",
    ),
    *("budget for", "á", "##", "▁", " ", "[NEW1]", "\n\n", "member"),
]


def texts(rng: random.Random) -> list[str]:
    """One context, or several."""
    n = rng.choice([1, 1, 1, 2, 3, 6])
    found = []
    for _ in range(n):
        if rng.random() < 0.15:
            found.append(rng.choice(HOSTILE))
        else:
            found.append(invented_text(rng.choice(LANGUAGES), rng.choice([1, 4, 10, 30, 90]), rng.randrange(10**6)))
    return found


def options(rng: random.Random) -> dict[str, Any]:
    chosen: dict[str, Any] = {"rate": rng.choice([0.1, 0.33, 0.5, 0.5, 0.8, 0.95, 1.0])}
    may: dict[str, list[Any]] = {
        "target_token": [0, 1, 20, 100, 400, 5000],
        "use_context_level_filter": [False],
        "use_token_level_filter": [False],
        "target_context": [0, 1, 2, 9],
        "context_level_rate": [0.3, 0.6],
        "context_level_target_token": [10, 200, 2000],
        "force_context_ids": [[0], [1, 2]],
        "force_reserve_digit": [True],
        "drop_consecutive": [True],
        "chunk_end_tokens": [[], ["\n"], [".", "\n", "?"], ["the"], ["。"]],
        "token_to_word": ["first"],
        "return_word_label": [True],
    }
    for name, values in may.items():
        if rng.random() < 0.25:
            chosen[name] = rng.choice(values)
    if rng.random() < 0.6:
        chosen["force_tokens"] = rng.sample(FORCE, rng.choice([1, 3, 8, len(FORCE)]))
    if chosen.get("return_word_label") and rng.random() < 0.3:
        chosen |= {"word_sep": "|", "label_sep": "="}
    return chosen


def cases(n: int) -> list[dict[str, Any]]:
    """Every hostile text alone, options that break, then random ones; the same every time."""
    rng = random.Random(SEED)
    everything = {"return_word_label": True, "force_tokens": ["\n", ".", "Mrs."], "force_reserve_digit": True}
    found: list[dict[str, Any]] = []
    for text in HOSTILE:
        found.append({"context": [text], "options": {"rate": 0.5, "return_word_label": True}})
        found.append({"context": [text, "The council."], "options": {**everything, "drop_consecutive": True}})
    plain = [invented_text("en", 30, 1)]
    for broken in (
        {"rate": 0.0},
        {"rate": -0.5},
        {"rate": 1.5},
        {"force_tokens": [f"word{i}" for i in range(101)]},
        {"force_tokens": [f"word{i}" for i in range(100)]},
        {"force_tokens": [""]},
        {"token_to_word": "last"},
        {"target_token": 0},
    ):
        found.append({"context": plain, "options": {"return_word_label": True, **broken}})
        found.append({"context": plain * 2, "options": {"return_word_label": True, **broken}})
    found.append({"context": [], "options": {}})
    found += [{"context": texts(rng), "options": options(rng)} for _ in range(n - len(found))]
    return found


def by_reference(python: str, folder: Path, jobs: list[dict[str, Any]], fake: bool = False) -> dict[str, Any]:
    """What the reference makes of the jobs, see llmlingua2_reference.py."""
    done = subprocess.run(
        [python, "-W", "ignore", str(HERE / "llmlingua2_reference.py")],
        input=json.dumps({"folder": str(folder), "threads": 1, "fake": fake, "cases": jobs}),
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "TOKENIZERS_PARALLELISM": "false"},
        cwd=folder,
    )
    if done.returncode:
        raise SystemExit(f"The reference did not run:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def counter_of(folder: Path) -> TokenCounter:
    """The tokenizer of the model as a counter: special tokens written out in a text count as one, as they do there."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return counter_from(lambda text: len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]))


def by_us(compressor: CompatLLMLingua2, case: dict[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in case["options"].items()
    }
    try:
        return compressor.compress_prompt(case["context"], PromptOptions(**chosen)).as_dict()
    except ConfigError as error:
        return {"error": str(error).removeprefix("The reference package fails here with ").split(" ")[0]}


def compare(python: str, n: int) -> None:
    import torch

    torch.set_num_threads(1)
    rows, differing = [], []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = save(Path(temporary), kind)
            jobs = cases(n)
            theirs = by_reference(python, folder, jobs)["results"]
            compressor = CompatLLMLingua2.from_folder(folder, counter_of(folder))
            outcomes: Counter[str] = Counter()
            for number, (job, their) in enumerate(zip(jobs, theirs, strict=True)):
                ours = by_us(compressor, job)
                equal = ours == their["result"]
                outcomes["equal" if equal else "different"] += 1
                outcomes[their["result"].get("error", "text")] += 1
                if not equal:
                    differing.append((kind, number, job, their["result"], ours))
            rows.append((kind, len(jobs), outcomes))
    errors = sorted({name for _, _, seen in rows for name in seen} - {"equal", "different", "text"})
    lines = [
        "# LLMLingua-2, compat mode: identity with the reference package",
        "",
        "llmlingua 0.2.2, same random weights, the model's own tokenizer as the token counter on both sides; compared",
        "is everything returned, word labels included. Errors are cases in which the reference stops with an error of",
        "Python's; the compat mode stops there too and names it.",
        "",
        f"| model | cases | equal | different | with a text | {' | '.join(errors)} |",
        "|---|---|---|---|---|" + "---|" * len(errors),
    ]
    for kind, size, seen in rows:
        numbers = [size, seen["equal"], seen["different"], seen["text"], *(seen[name] for name in errors)]
        lines.append(f"| {FOLDERS[kind]}, tiny | {' | '.join(map(str, numbers))} |")
    lines += ["", *(f"- {name}: {value}" for name, value in measured_on("numpy", "torch", "tokenizers").items()), ""]
    RESULTS.write_text("\n".join(lines))
    print("\n".join(lines))
    for kind, number, job, their_result, our_result in differing[:5]:
        print("DIFFERENT", kind, number, json.dumps(job, ensure_ascii=False)[:600])
        print("  theirs", json.dumps(their_result, ensure_ascii=False)[:600])
        print("  ours  ", json.dumps(our_result, ensure_ascii=False)[:600])


def write_fixture(python: str, n: int) -> None:
    """A part of the cases, with small tokenizers, for the tests; under 200 kB."""
    fixture: dict[str, Any] = {
        "made_by": f"python -m benchmarks.llmlingua2_identity --fixture --cases {n}",
        "reference": "llmlingua 0.2.2 with numpy 2; invented texts; the model is FakeModel of llmlingua2_reference.py",
    }
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = save(Path(temporary), kind, vocabulary_size=400)
            jobs = [case for case in cases(400) if len(json.dumps(case)) < 1500]
            jobs = jobs[:40] + jobs[40 :: max(1, (len(jobs) - 40) // (n - 40))]
            theirs = by_reference(python, folder, jobs, fake=True)["results"]
            fixture[kind] = {
                "tokenizer": json.loads((folder / "tokenizer.json").read_text()),
                "cases": [{**job, "expected": their["result"]} for job, their in zip(jobs, theirs, strict=True)],
            }
    FIXTURE.write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="build/reference/venv/bin/python", help="interpreter that has llmlingua")
    parser.add_argument("--cases", type=int, default=200, help="per model")
    parser.add_argument("--fixture", action="store_true", help="write the fixture of the tests instead")
    chosen = parser.parse_args()
    (write_fixture if chosen.fixture else compare)(str(Path(chosen.reference).absolute()), chosen.cases)
