from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.benchmarks.tiny_engine import make_model
from longroute.compressors.color import color_prompt, prompt_ids
from longroute.compressors.training.orpo import (
    Settings,
    Trained,
    batch_losses,
    encoded,
    learning_rate,
    length_factor,
    log_odds_ratio,
    main,
    no_length_factor,
    orpo_losses,
    train,
)
from longroute.compressors.training.preference import Pair, read_pairs, write_pairs
from longroute.router.errors import ConfigError

torch = pytest.importorskip("torch", reason="the extra `embed` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `embed` is not installed")

SUBJECTS = ("harbour", "council", "ferry", "lantern", "orchard", "bridge", "mill", "quarry")


def pair(number: int) -> Pair:
    subject = SUBJECTS[number % len(SUBJECTS)]
    passage = f"The {subject} number {number} was, as everybody says, opened again in spring."
    return Pair(passage, f"{subject} {number}", f"The {subject} with the number {number} was opened.")


PAIRS = [pair(number) for number in range(12)]
TEXTS = [text for p in PAIRS for text in (p.passage, p.chosen, p.rejected, color_prompt(p.passage)[0].content)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), TEXTS)


def loaded(folder: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def tensor(*values: float) -> Any:
    return torch.tensor(values, dtype=torch.float64)


# ---- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra_tokens", "factor", "odds", "total"),
    [(-10, 1, -0.424106, 2.560265), (5, 1, -0.424106, 2.560265), (10, 1, -0.424106, 2.560265),
     (40, 4, -0.074971, 1.687426)],
)  # fmt: skip
def test_reference_values(extra_tokens: int, factor: int, odds: float, total: float) -> None:
    losses = orpo_losses(tensor(-0.8), tensor(-1.2), tensor(1.5)[0], tensor(extra_tokens))
    assert losses.log_odds.item() == pytest.approx(0.638235, abs=5e-7)
    assert length_factor(tensor(extra_tokens)).item() == factor
    assert (factor * losses.log_odds).item() == pytest.approx({1: 0.638235, 4: 2.552941}[factor], abs=5e-7)
    assert losses.odds.item() == pytest.approx(odds, abs=5e-7)
    assert losses.total.item() == pytest.approx(total, abs=5e-7)


def test_a_batch_is_the_mean_of_its_pairs() -> None:
    both = orpo_losses(tensor(-0.8, -2.0), tensor(-1.2, -0.5), tensor(1.5)[0], tensor(40, -3))
    one = orpo_losses(tensor(-0.8), tensor(-1.2), tensor(1.5)[0], tensor(40))
    other = orpo_losses(tensor(-2.0), tensor(-0.5), tensor(1.5)[0], tensor(-3))
    assert both.total.item() == pytest.approx((one.total.item() + other.total.item()) / 2)


LOG_P = st.floats(-30, 0)


@given(LOG_P, LOG_P, st.integers(-50, 10))
def test_a_short_rejected_summary_makes_plain_orpo(chosen: float, rejected: float, extra_tokens: int) -> None:
    given_ = (tensor(chosen), tensor(rejected), tensor(1.0)[0], tensor(extra_tokens))
    assert torch.equal(orpo_losses(*given_).total, orpo_losses(*given_, factor=no_length_factor).total)


@given(LOG_P, LOG_P, st.integers(-50, 500), st.booleans())
def test_loss_and_gradient_are_finite_and_point_the_right_way(
    chosen: float, rejected: float, extra_tokens: int, wide: bool
) -> None:
    kind = torch.float64 if wide else torch.float32
    l_c = torch.tensor([chosen], dtype=kind, requires_grad=True)
    l_r = torch.tensor([rejected], dtype=kind, requires_grad=True)
    total = orpo_losses(l_c, l_r, torch.zeros((), dtype=kind), torch.tensor([extra_tokens])).total
    total.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(total)
    assert l_c.grad is not None
    assert l_r.grad is not None
    assert torch.isfinite(l_c.grad).all()
    assert l_c.grad.item() <= 0  # the loss falls when the chosen summary becomes likelier
    assert l_r.grad.item() >= 0


def test_gradients_in_the_middle_are_not_zero() -> None:
    l_c, l_r = tensor(-0.8).requires_grad_(), tensor(-0.7).requires_grad_()
    orpo_losses(l_c, l_r, tensor(0.0)[0], tensor(0)).total.backward()  # type: ignore[no-untyped-call]
    assert l_c.grad.item() < 0 < l_r.grad.item()


def test_certainty_does_not_make_infinite_odds() -> None:
    odds = log_odds_ratio(torch.tensor([0.0, -1e-9, 0.0]), torch.tensor([-5.0, 0.0, 0.0]))
    assert torch.isfinite(odds).all()
    assert odds[2].item() == 0


def test_a_longer_rejected_summary_pulls_harder_only_while_the_order_is_wrong() -> None:
    def pull(chosen: float, extra_tokens: int) -> float:
        l_c = tensor(chosen).requires_grad_()
        orpo_losses(l_c, tensor(-1.0), tensor(0.0)[0], tensor(extra_tokens)).total.backward()  # type: ignore[no-untyped-call]
        return -float(l_c.grad.item())

    assert pull(-1.5, 40) > pull(-1.5, 0)
    assert pull(-0.3, 40) < pull(-0.3, 0)


# ---- examples --------------------------------------------------------------------------------------------------------


def test_an_example_is_the_prompt_once_and_an_ended_answer(folder: Path) -> None:
    _, tokenizer = loaded(folder)
    example = encoded(tokenizer, PAIRS[0])
    assert example.prompt == prompt_ids(tokenizer, color_prompt(PAIRS[0].passage))
    assert tokenizer.decode(example.prompt).count(PAIRS[0].passage) == 1
    assert tokenizer.decode(example.prompt).endswith("assistant: ")
    assert tokenizer.decode(example.chosen) == PAIRS[0].chosen + "</s>"
    assert len(example) == len(example.prompt) + len(example.rejected)


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (None, "harbour 0</s>"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
         "{% if add_generation_prompt %}<assistant>{% endif %}", "harbour 0<end>"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "harbour 0</s>"),
    ],
)  # fmt: skip
def test_an_answer_ends_as_the_template_says(folder: Path, template: str | None, answer: str) -> None:
    _, tokenizer = loaded(folder)
    tokenizer.chat_template = template
    assert tokenizer.decode(encoded(tokenizer, PAIRS[0]).chosen) == answer


def test_log_probabilities_are_those_of_the_answer_alone(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    model = model.double().eval()
    examples = [encoded(tokenizer, p) for p in PAIRS[:3]]
    with torch.no_grad():
        together = batch_losses(model, examples)
        ratios = []
        for example in examples:
            means = []
            for answer in (example.chosen, example.rejected):
                ids = torch.tensor([example.prompt + answer])
                log_p = model(input_ids=ids).logits[0].log_softmax(-1)
                at = range(len(example.prompt), ids.shape[1])
                means.append(torch.stack([log_p[place - 1, ids[0, place]] for place in at]).mean())
            ratios.append(log_odds_ratio(*means))
        ids = [torch.tensor([example.prompt + example.chosen]) for example in examples]
        lengths = torch.tensor([float(row.shape[1] - 1) for row in ids]).double()
        nll = torch.stack([model(input_ids=row, labels=row).loss.double() for row in ids])  # computed in float32 there
    torch.testing.assert_close(together.log_odds, torch.stack(ratios))
    torch.testing.assert_close(together.nll, (nll * lengths).sum() / lengths.sum(), rtol=1e-5, atol=1e-5)


# ---- training --------------------------------------------------------------------------------------------------------

QUICK = Settings(learning_rate=3e-3, batch=2, accumulation=2, epochs=3, warmup_steps=2, checkpoint_every=2)


def trained(model_folder: Path, folder: Path, how: Settings = QUICK, n: int = 12) -> tuple[Any, Trained]:
    torch.set_num_threads(1)
    model, tokenizer = loaded(model_folder)
    return model, train(model, tokenizer, PAIRS[2:n], PAIRS[:2], folder, how)


def weights(model: Any) -> Any:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Trained, Path]:
    place = tmp_path_factory.mktemp("training")
    return *trained(folder, place), place


def test_training_lowers_the_loss_and_keeps_the_best_epoch(finished: tuple[Any, Trained, Path]) -> None:
    model, done, place = finished
    assert len(done.losses) == 9
    assert len(done.epochs) == 3
    assert done.epochs[-1].loss < done.epochs[0].loss
    assert done.epochs[done.best].loss == min(epoch.loss for epoch in done.epochs)
    assert done.resumed_at == 0
    assert not model.training
    assert not list(place.glob("*.part"))


def test_training_repeats(folder: Path, tmp_path: Path, finished: tuple[Any, Trained, Path]) -> None:
    model, done = trained(folder, tmp_path)
    assert done == finished[1]
    assert torch.equal(weights(model), weights(finished[0]))


def test_another_seed_sees_the_pairs_in_another_order(
    folder: Path, tmp_path: Path, finished: tuple[Any, Trained, Path]
) -> None:
    assert trained(folder, tmp_path, replace(QUICK, seed=1, epochs=1))[1].losses[0] != finished[1].losses[0]


def test_a_finished_training_is_not_repeated_even_if_a_write_was_killed(
    folder: Path, finished: tuple[Any, Trained, Path]
) -> None:
    model, done, place = finished
    (place / "checkpoint.pt.part").write_bytes(b"half a file")
    other, again = trained(folder, place)
    (place / "checkpoint.pt.part").unlink()
    assert again.resumed_at == 9
    assert again.epochs == done.epochs
    assert torch.equal(weights(model), weights(other))


def test_a_checkpoint_of_another_training_is_refused(folder: Path, finished: tuple[Any, Trained, Path]) -> None:
    with pytest.raises(ConfigError, match="other pairs or settings"):
        trained(folder, finished[2], n=11)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("batch", "resumed_at"), [(3, 0), (8, 4), (13, 6)])
def test_a_stopped_training_comes_to_the_same_weights(
    folder: Path, tmp_path: Path, finished: tuple[Any, Trained, Path], batch: int, resumed_at: int
) -> None:
    """Stopped before the first checkpoint, in the middle of a step, and between two checkpoints."""
    model, tokenizer = loaded(folder)
    left = [batch]
    forward = model.forward

    def stopping(*args: Any, **kwargs: Any) -> Any:
        if model.training:
            left[0] -= 1
            if not left[0]:
                raise Killed
        return forward(*args, **kwargs)

    model.forward = stopping
    with pytest.raises(Killed):
        train(model, tokenizer, PAIRS[2:], PAIRS[:2], tmp_path, QUICK)
    again, done = trained(folder, tmp_path)
    assert done.resumed_at == resumed_at
    assert done.losses == finished[1].losses
    assert torch.equal(weights(again), weights(finished[0]))


def test_pairs_that_are_too_long_are_left_out_not_cut(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(folder)
    long = Pair("word " * 500, "a", "b")
    limit = max(len(encoded(tokenizer, p)) for p in PAIRS)
    how = Settings(learning_rate=1e-3, epochs=1, max_tokens=limit)
    assert train(model, tokenizer, [*PAIRS[:4], long], [long], tmp_path, how).left_out == 2
    with pytest.raises(ConfigError, match="max_tokens"):
        train(model, tokenizer, [long], [], tmp_path / "other", how)


def test_bfloat16_trains_float32_weights(folder: Path, tmp_path: Path) -> None:
    model, done = trained(folder, tmp_path, replace(QUICK, bfloat16=True))
    assert weights(model).dtype == torch.float32
    assert done.epochs[-1].loss < done.epochs[0].loss


@given(st.integers(1, 300), st.integers(0, 200))
@settings(max_examples=50)
def test_the_rate_rises_then_falls_and_is_never_zero(n_steps: int, warmup: int) -> None:
    rates = [learning_rate(step, n_steps, Settings(learning_rate=1.0, warmup_steps=warmup)) for step in range(n_steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < min(rates) <= max(rates) <= 1


@pytest.mark.parametrize("name", ["batch", "accumulation", "epochs", "checkpoint_every"])
def test_senseless_settings_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(QUICK, **{name: 0})  # type: ignore[arg-type]


def command(pairs: Path, model: Path, out: Path) -> list[str]:
    given_ = ["--learning-rate", "3e-3", "--warmup-steps", "2", "--epochs", "6", "--checkpoint-every", "1"]
    return [str(pairs), "--model", str(model), "--out", str(out), *given_]


def test_the_command_writes_a_model_that_loads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    write_pairs(pairs, PAIRS)
    main([*command(pairs, folder, out), "--epochs", "1"])
    assert "2 steps" in capsys.readouterr().out
    loaded(out)
    with pytest.raises(ConfigError, match="exists already"):
        main(command(pairs, folder, out))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills a process by a signal")
def test_a_killed_training_comes_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    """Kills the command three times, as soon as there is a new checkpoint, and lets the fourth finish."""
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs, [pair(number) for number in range(60)])
    assert len(read_pairs(pairs)) == 60
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    program = [sys.executable, "-m", "longroute.compressors.training.orpo"]
    subprocess.run([*program, *command(pairs, folder, tmp_path / "whole")], env=environment, check=True)
    checkpoint = tmp_path / "killed.training" / "checkpoint.pt"
    done = []
    for _ in range(3):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        running = subprocess.Popen([*program, *command(pairs, folder, tmp_path / "killed")], env=environment)
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert running.poll() is None, "it finished before it could be killed"
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
        done.append(len(torch.load(checkpoint, weights_only=True)["losses"]))
    assert done == sorted(done)
    assert 0 < done[0] < done[2]
    subprocess.run([*program, *command(pairs, folder, tmp_path / "killed")], env=environment, check=True)
    one, other = (weights(loaded(tmp_path / name)[0]) for name in ("whole", "killed"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
