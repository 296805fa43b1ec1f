"""ORPO with a length factor: teaches a causal language model to summarise a passage shortly, yet so that it is found.

    python -m longroute.compressors.training.orpo PAIRS.jsonl --model FOLDER --out FOLDER

Learns from `preference.py`'s pairs by the likelihood of the chosen summary and the odds of chosen against rejected,
which count for more the longer the rejected one is. No reference model, no trainer library: a loop over a Hugging Face
model, which goes on from its last checkpoint when started again. Needs torch and transformers, from the extra `embed`.

Source: ORPO (arXiv 2403.07691); the factor and the default settings are those of CoLoR's published code (arXiv
2412.18232, trained on Phi-3-mini).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...router.core import Message
from ...router.errors import ConfigError, MissingExtra
from ..color import color_prompt, prompt_ids
from .preference import Pair, divided, read_pairs

if TYPE_CHECKING:
    from torch import Tensor

    Factor = Callable[[Tensor], Tensor]
    """Tokens by which the rejected summary is longer → what multiplies the log odds ratio; both of shape (B,)."""

BETA = 2.5
_LARGEST_LOG_PROBABILITY = -1e-6  # at 0 the odds are infinite


# ---- the loss --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one batch. total, nll, odds: shape (); log_odds: shape (B,), above 0 where the chosen summary is likelier.

    total = nll - beta * odds, where odds is the mean of log sigmoid(factor * log_odds).
    """

    total: Tensor
    nll: Tensor
    odds: Tensor
    log_odds: Tensor


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log of odds(chosen) / odds(rejected).

    chosen, rejected: mean log-probability per token of the response, <= 0, of any equal shape; float32 or wider.
    Source: ORPO, equations 4 and 7, at the mean log-probability.
    """
    import torch

    chosen = chosen.clamp(max=_LARGEST_LOG_PROBABILITY)
    rejected = rejected.clamp(max=_LARGEST_LOG_PROBABILITY)
    # log(1 - e^l) without the loss of digits near l = 0.
    return (chosen - rejected) - (torch.log(-torch.expm1(chosen)) - torch.log(-torch.expm1(rejected)))


def length_factor(extra_tokens: Tensor) -> Tensor:
    """max(1, d / 10): 4 where the rejected summary is 40 tokens longer, 1 where it is shorter.

    A constant to the gradient: it lets a pair in the wrong order pull harder, and one in the right order let go sooner.
    """
    return (0.1 * extra_tokens).clamp(min=1.0)


def no_length_factor(extra_tokens: Tensor) -> Tensor:
    """1 everywhere: plain ORPO."""
    import torch

    return torch.ones_like(extra_tokens)


def orpo_losses(
    chosen: Tensor,
    rejected: Tensor,
    nll: Tensor,
    extra_tokens: Tensor,
    *,
    beta: float = BETA,
    factor: Factor = length_factor,
) -> Losses:
    """The loss of a batch of B pairs.

    chosen, rejected: shape (B,), mean log-probability per response token. nll: shape (), cross entropy of the chosen
    sequences, prompts included. extra_tokens: shape (B,), response tokens of rejected minus those of chosen.
    """
    import torch

    log_odds = log_odds_ratio(chosen, rejected)
    odds = torch.nn.functional.logsigmoid(factor(extra_tokens.to(log_odds.dtype)) * log_odds).mean()
    return Losses(nll - beta * odds, nll, odds, log_odds)


# ---- examples --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a prompt and its two answers, each with the end of the turn."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def encoded(tokenizer: Any, pair: Pair) -> Example:
    """The prompt as it is in use (`color.py`), once; only what follows it is the response."""
    prompt = color_prompt(pair.passage)
    return Example(
        prompt_ids(tokenizer, prompt),
        _response_ids(tokenizer, prompt, pair.chosen),
        _response_ids(tokenizer, prompt, pair.rejected),
    )


def _response_ids(tokenizer: Any, prompt: Sequence[Message], response: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": message.role, "content": message.content} for message in prompt]
        bare, asked = (
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begun) for begun in (False, True)
        )
        turns.append({"role": "assistant", "content": response})
        answer = tokenizer.apply_chat_template(turns, tokenize=False)
        ended = answer.removeprefix(asked).rstrip("\n")
        # Only where the template knows where an answer begins, and ends turns by a sign of its own.
        if bare != asked and answer.startswith(asked) and ended.strip() != response.strip():
            return _ids(tokenizer, ended)
    return [*_ids(tokenizer, response), int(tokenizer.eos_token_id)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(number) for number in tokenizer(text, add_special_tokens=False)["input_ids"]]


def batch_losses(
    model: Any, examples: Sequence[Example], *, beta: float = BETA, factor: Factor = length_factor
) -> Losses:
    """One pass of the model over B chosen and B rejected sequences; log-probabilities in float32 at least."""
    import torch

    n = len(examples)
    prompts = [example.prompt for example in examples] * 2
    responses = [example.chosen for example in examples] + [example.rejected for example in examples]
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.zeros((2 * n, width), dtype=torch.long)
    attended, answered = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        attended[row, :end] = 1
        answered[row, len(prompt) : end] = 1
    ids, attended, answered = ids.to(model.device), attended.to(model.device), answered.to(model.device)
    logits = model(input_ids=ids, attention_mask=attended).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Of each token after the first, given those before it; shape (2n, width - 1).
    log_p = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    attended, answered = attended[:, 1:], answered[:, 1:]
    tokens = answered.sum(dim=1)
    means = (log_p * answered).sum(dim=1) / tokens
    nll = -(log_p[:n] * attended[:n]).sum() / attended[:n].sum()
    return orpo_losses(means[:n], means[n:], nll, tokens[n:] - tokens[:n], beta=beta, factor=factor)


# ---- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train; the defaults are those of CoLoR's code where it says.

    batch: pairs at a time; accumulation: batches for one step. warmup_steps: the rate rises to learning_rate over so
    many, or half of all steps where that is less, then falls to 0. max_tokens: pairs with a longer sequence are left
    out, not cut: the summary of a cut passage would be taught to be invented. checkpoint_every: in steps; there is one
    at the end of each epoch as well. bfloat16: of the forward pass; weights stay as they are. length: the length
    factor; without it this is plain ORPO.
    """

    learning_rate: float = 1e-6
    beta: float = BETA
    batch: int = 2
    accumulation: int = 4
    epochs: int = 10
    warmup_steps: int = 100
    max_gradient: float = 1.0
    max_tokens: int = 1024
    checkpoint_every: int = 50
    seed: int = 0
    bfloat16: bool = False
    length: bool = True

    def __post_init__(self) -> None:
        for name in ("batch", "accumulation", "epochs", "max_tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more.")


@dataclass(frozen=True, slots=True)
class Epoch:
    """Means over the validation pairs after an epoch, of the training pairs where there are none.

    accuracy: share of pairs of which the chosen summary is the likelier one, per token.
    """

    loss: float
    nll: float
    log_odds: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Trained:
    """losses: of each step, on its own pairs. best: number of the epoch whose weights the model has now, from 0.
    left_out: pairs longer than max_tokens. resumed_at: the step of the checkpoint it went on from, 0 without one."""

    losses: tuple[float, ...]
    epochs: tuple[Epoch, ...]
    best: int
    left_out: int
    resumed_at: int


def train(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    folder: Path,
    settings: Settings | None = None,
    *,
    progress: bool = False,
) -> Trained:
    """Train a model in place; it has the weights of the epoch with the lowest validation loss afterwards.

    folder: for checkpoints. Where it holds one of the same pairs and settings, training goes on from there, and comes
    to the same weights as if it had never stopped, as far as the processor adds alike twice.
    progress: a bar, on standard error. Raises ConfigError where no pair fits, or the checkpoint is of another training.
    """
    settings = settings or Settings()
    examples, held_out = ([encoded(tokenizer, pair) for pair in given] for given in (pairs, validation))
    fitting = [example for example in examples if len(example) <= settings.max_tokens]
    if not fitting:
        raise ConfigError(f"None of {len(pairs)} pairs fits max_tokens={settings.max_tokens}; raise it or add pairs.")
    held_out = [example for example in held_out if len(example) <= settings.max_tokens]
    left_out = len(pairs) + len(validation) - len(fitting) - len(held_out)
    folder.mkdir(parents=True, exist_ok=True)
    return _Training(model, fitting, held_out, folder, settings).run(left_out, progress)


class _Training:
    """The state of one training: weights, optimizer, and what has happened so far."""

    def __init__(
        self, model: Any, examples: list[Example], held_out: list[Example], folder: Path, settings: Settings
    ) -> None:
        import torch

        self.model, self.examples, self.held_out, self.settings = model, examples, held_out, settings
        self.checkpoint, self.best_weights = folder / "checkpoint.pt", folder / "best.pt"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        self.steps_per_epoch = -(-len(examples) // (settings.batch * settings.accumulation))
        self.n_steps = settings.epochs * self.steps_per_epoch
        self.losses: list[float] = []
        self.epochs: list[Epoch] = []
        self.losses_of = partial(
            batch_losses, model, beta=settings.beta, factor=length_factor if settings.length else no_length_factor
        )
        self.fingerprint = _fingerprint(examples, held_out, settings)

    @property
    def best(self) -> int:
        return min(range(len(self.epochs)), key=lambda number: self.epochs[number].loss)

    def run(self, left_out: int, progress: bool) -> Trained:
        import torch
        from rich.console import Console
        from rich.progress import Progress

        torch.manual_seed(self.settings.seed)
        resumed_at = self._resume() if self.checkpoint.exists() else 0
        with Progress(console=Console(stderr=True), disable=not progress) as bar:
            task = bar.add_task("training", total=self.n_steps, completed=len(self.losses))
            while len(self.losses) < self.n_steps:
                self._step()
                bar.update(task, advance=1, description=f"training, loss {self.losses[-1]:.3f}")
                done = len(self.losses)
                if done % self.steps_per_epoch == 0:
                    self._end_epoch()
                if done % self.steps_per_epoch == 0 or done % self.settings.checkpoint_every == 0:
                    self._save()
        self.model.load_state_dict(torch.load(self.best_weights, map_location=self.model.device, weights_only=True))
        self.model.eval()
        return Trained(tuple(self.losses), tuple(self.epochs), self.best, left_out, resumed_at)

    def _step(self) -> None:
        import torch

        settings, number = self.settings, len(self.losses)
        epoch, place = divmod(number, self.steps_per_epoch)
        # From the seed and the epoch alone, so that it need not be stored.
        order = random.Random(f"{settings.seed} {epoch}").sample(range(len(self.examples)), len(self.examples))
        size = settings.batch * settings.accumulation
        chosen = [self.examples[index] for index in order[place * size : (place + 1) * size]]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.n_steps, settings)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for start in range(0, len(chosen), settings.batch):
            batch = chosen[start : start + settings.batch]
            with self._precision():
                total = self.losses_of(batch).total * (len(batch) / len(chosen))  # the last step of an epoch is smaller
            total.backward()  # type: ignore[no-untyped-call]
            loss += float(total.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_gradient)
        self.optimizer.step()
        self.losses.append(loss)

    def _end_epoch(self) -> None:
        self.epochs.append(self.evaluated(self.held_out or self.examples))
        if self.best == len(self.epochs) - 1:
            _write(self.best_weights, self.model.state_dict())

    def evaluated(self, examples: Sequence[Example]) -> Epoch:
        import torch

        self.model.eval()
        loss = nll = log_odds = right = 0.0
        with torch.inference_mode():
            for start in range(0, len(examples), self.settings.batch):
                batch = examples[start : start + self.settings.batch]
                with self._precision():
                    losses = self.losses_of(batch)
                loss += float(losses.total) * len(batch)
                nll += float(losses.nll) * len(batch)
                log_odds += float(losses.log_odds.sum())
                right += float((losses.log_odds > 0).sum())
        n = len(examples)
        return Epoch(loss / n, nll / n, log_odds / n, right / n)

    def _precision(self) -> Any:
        import torch

        if not self.settings.bfloat16:
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)

    def _save(self) -> None:
        import torch

        on_gpu = self.model.device.type == "cuda"
        state = {
            "fingerprint": self.fingerprint,
            "losses": self.losses,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state(self.model.device) if on_gpu else None,
        }
        _write(self.checkpoint, state)

    def _resume(self) -> int:
        """Go back to the checkpoint; returns its step."""
        import torch

        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            raise ConfigError(
                f"{self.checkpoint} belongs to a training with other pairs or settings. "
                "Give another folder, or delete it to start anew."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if state["random_gpu"] is not None and self.model.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_gpu"], self.model.device)
        self.losses = list(state["losses"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        return len(self.losses)


def learning_rate(step: int, n_steps: int, settings: Settings) -> float:
    """The rate of one step, from 0: rising, then falling in a line to 0 after the last."""
    warmup = min(settings.warmup_steps, n_steps // 2)
    share = (step + 1) / warmup if step < warmup else (n_steps - step) / max(n_steps - warmup, 1)
    return settings.learning_rate * share


def _fingerprint(examples: Sequence[Example], held_out: Sequence[Example], settings: Settings) -> str:
    told = asdict(settings)
    del told["checkpoint_every"]  # how often to save changes nothing about the training
    parts = [told, [asdict(example) for example in examples], [asdict(example) for example in held_out]]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _write(path: Path, state: Any) -> None:
    """The file is there whole or as it was before, whenever the process or the machine stops."""
    import torch

    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains a causal language model on preference pairs.")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="folder with a model and its tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; checkpoints stand beside it")
    for field in fields(Settings):
        name = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(name, type=type(field.default), default=field.default)
    chosen = vars(parser.parse_args(arguments))
    settings = Settings(**{field.name: chosen[field.name] for field in fields(Settings)})
    out: Path = chosen["out"]
    if out.exists():
        raise ConfigError(f"{out} exists already; give the name of a folder to make.")
    model, tokenizer = _loaded(chosen["model"])
    training, validation = divided(read_pairs(chosen["pairs"]), settings.seed)
    done = train(model, tokenizer, training, validation, out.with_name(out.name + ".training"), settings, progress=True)
    beside = out.with_name(out.name + ".part")
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    beside.replace(out)
    last = done.epochs[done.best]
    print(
        f"{out}: {len(done.losses)} steps, best after epoch {done.best + 1}, validation loss {last.loss:.3f}, chosen "
        f"likelier in {100 * last.accuracy:.0f} % of pairs; {done.left_out} pairs were too long."
    )


def _loaded(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra(
            "Training needs torch and transformers, which are not installed. "
            "Install them with: pip install 'longroute[embed]'"
        ) from error
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"No causal language model could be loaded from {folder}: {error}") from error
    return model, tokenizer


if __name__ == "__main__":
    main()
