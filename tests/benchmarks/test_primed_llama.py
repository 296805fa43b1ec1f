from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from longroute.benchmarks.primed_llama import Shape, primed_llama  # noqa: E402

VOCABULARY = 500


def _second_half_right(model: object, length: int) -> float:
    tokens = torch.randint(0, VOCABULARY, (4, length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(input_ids=torch.cat([tokens, tokens], dim=1)).logits  # type: ignore[operator]
    return float((logits[:, length:-1].argmax(-1) == tokens[:, 1:]).float().mean())


@pytest.mark.parametrize("shape", [Shape(), Shape(hidden=192, layers=2)])
def test_it_repeats_what_came_before_without_any_training(shape: Shape) -> None:
    model = primed_llama(shape, VOCABULARY, torch.Generator().manual_seed(0)).eval()
    assert _second_half_right(model, 40) > 0.9
    assert _second_half_right(model, 300) > 0.8


def test_the_same_seed_gives_the_same_weights_and_the_architecture_is_plain_llama() -> None:
    one, other = (primed_llama(Shape(), VOCABULARY, torch.Generator().manual_seed(0), eos_token_id=3) for _ in range(2))
    assert type(one).__name__ == "LlamaForCausalLM"
    assert one.config.eos_token_id == 3
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
