"""Runs the reference package llmlingua 0.2.2; the other half of `llmlingua2_identity.py` and `llmlingua2_speed.py`.

    PYTHON_OF_ITS_OWN benchmarks/llmlingua2_reference.py < cases.json > results.json

Needs an environment with the reference (`pip install llmlingua==0.2.2`) and none of longroute. Reads
{"folder", "threads", "fake", "cases": [{"context", "options"}]} and writes for every case what the reference returned,
or the name of the error it stopped with, and the CPU seconds. tiktoken would download its ranks, so the model's own
tokenizer counts in its place. With "fake" the model is replaced by a function of the token ids that any machine
computes alike (the same as in tests/compressors/test_llmlingua2_compat.py).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class OwnTokenizer:
    """Counts like tiktoken, with the tokenizer of the model as it was before the reference adds to it."""

    def __init__(self, folder: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return found


class FakeModel:
    """Logits in thousandths, from the id of a token and its place."""

    def __call__(self, input_ids: Any, attention_mask: Any) -> SimpleNamespace:
        import torch

        places = torch.arange(input_ids.shape[1])
        keep = ((input_ids * 7919 + places * 104729) % 2003).float() / 1000 - 1
        return SimpleNamespace(loss=None, logits=torch.stack([-keep, keep], dim=-1))


def main() -> None:
    job = json.load(sys.stdin)
    import tiktoken
    import torch

    torch.set_num_threads(job["threads"])
    own: Any = OwnTokenizer(job["folder"])
    tiktoken.encoding_for_model = lambda model_name: own
    from llmlingua import PromptCompressor  # type: ignore[import-not-found]  # lives in an environment of its own

    compressor = PromptCompressor(job["folder"], device_map="cpu", use_llmlingua2=True)
    if job.get("fake"):
        compressor.model = FakeModel()
    results = []
    for case in job["cases"]:
        start = time.process_time()
        try:
            found = compressor.compress_prompt(case["context"], **case["options"])
        except Exception as error:  # whatever it is, it is the result
            found = {"error": type(error).__name__}
        results.append({"result": found, "seconds": time.process_time() - start})
    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    json.dump({"results": results, "memory_kib": memory_kib}, sys.stdout)


if __name__ == "__main__":
    main()
