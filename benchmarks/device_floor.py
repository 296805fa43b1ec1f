"""What the hardware allows: traffic and arithmetic that decoding and prefill cannot do without, at measured rates.

`measure` times a device's memory and its matrix products in this very run; `decode_bytes` and `prefill_flops` count
what a step of a model must move or compute. Their quotient is a floor of seconds that no runner goes below.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from longroute.router.runner.model import LanguageModel

from .random_llama import Geometry, random_llama

_TRIES = 5
_CUDA_BYTES, _CPU_BYTES = 2 << 30, 256 << 20  # far beyond what a cache between memory and cores holds
_COLUMNS = 8192
_ROWS = 2048  # of the matrix products: a chunk of a prompt


@dataclass(frozen=True, slots=True)
class Rates:
    """bytes_per_s: the faster of a copy (bytes read and written) and a matrix times a vector (bytes read).
    flops: floating-point operations a second of a product of two matrices in the model's dtype and width.
    launch_s: a decoding step of a model as deep and of next to no width: what is left is Python and the launching of
        kernels, which goes on beside the work of a GPU, but is never faster."""

    bytes_per_s: float
    flops: float
    launch_s: float


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds: on a CPU processor time of the calling thread, which does all the work, so that other programs count
    less. On CUDA the wall clock, to be read when the work is known to be done."""
    return time.thread_time if device.type == "cpu" else time.perf_counter


def name_of(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device.type}, {torch.get_num_threads()} thread"
    about = torch.cuda.get_device_properties(device)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def wait_for(device: torch.device) -> None:
    """Until all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(model: LanguageModel) -> Rates:
    """Rates of the model's device in the model's dtype, each the best of some tries."""
    device, dtype = model.device, model.dtype
    on_cuda = device.type == "cuda"
    rows = (_CUDA_BYTES if on_cuda else _CPU_BYTES) // (_COLUMNS * dtype.itemsize)
    matrix = torch.ones(rows, _COLUMNS, dtype=dtype, device=device)
    vector, copied = matrix[0], torch.empty_like(matrix)
    config = model.transformer.config
    left = torch.ones(_ROWS, config.hidden_size, dtype=dtype, device=device)
    right = torch.ones(config.hidden_size, config.intermediate_size, dtype=dtype, device=device)
    copying = 2 * matrix.nbytes / _best_s(lambda: copied.copy_(matrix), device)
    reading = matrix.nbytes / _best_s(lambda: torch.mv(matrix, vector), device)
    product_s = _best_s(lambda: torch.mm(left, right), device)
    narrow = LanguageModel(random_llama(Geometry(256, 64, 64, config.num_hidden_layers, 4, 4), device, dtype))
    cache = narrow.new_cache(256)
    launch_s = _best_s(lambda: int(narrow.forward(narrow.tokens([1]), cache)[0, -1].argmax()), device)
    return Rates(max(copying, reading), 2 * _ROWS * right.numel() / product_s, launch_s)


def decode_bytes(model: LanguageModel, lengths: list[int]) -> int:
    """Bytes that a decoding step must read for rows behind caches of these lengths: weights once, each row's keys and
    values. Of an embedding table that is not the output head too, only single rows are read; they are left out."""
    inputs, head = model.transformer.get_input_embeddings(), model.transformer.get_output_embeddings()
    table = 0 if head.weight.data_ptr() == inputs.weight.data_ptr() else inputs.weight.nbytes
    return model.weight_bytes - table + sum(model.cache_bytes(n) for n in lengths)


def prefill_flops(model: LanguageModel, n_tokens: int) -> float:
    """Operations to read n_tokens tokens: two for each weight of a linear layer and token (the output head only for the
    last token), and causal attention, two products of half a square matrix for each layer."""
    transformer: Any = model.transformer
    head = transformer.get_output_embeddings()
    linear = [part for part in transformer.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    weights = sum(part.weight.numel() for part in linear)
    config = transformer.config
    per_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * per_head
    attention = 2 * n_tokens**2 * width * config.num_hidden_layers
    return float(2 * weights * n_tokens + attention + 2 * head.weight.numel())


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds for one call, the best of some tries; the first try is for warming up.

    A try on CUDA is several calls, so that waiting for the end of it does not count.
    """
    calls, clock = 16 if device.type == "cuda" else 1, clock_of(device)
    tries: list[float] = []
    for _ in range(_TRIES + 1):
        wait_for(device)
        started = clock()
        for _ in range(calls):
            work()
        wait_for(device)
        tries.append((clock() - started) / calls)
    return min(tries[1:])
