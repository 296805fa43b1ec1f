"""The laws of speculative decoding with two contexts: which drafts are kept, what replaces one, what comes out.

Pure functions on tensors; they know no model, cache or loop (`speculative.py` has those). The last dimension of every
tensor is the vocabulary (V), the dimensions before it are free. Logits are those *after* temperature, top-k and top-p;
"target" has read the full context, "draft" the retrieved one. Probabilities are float32 or wider.

Sources: RAPID (arXiv 2502.20330) for `rapid`; speculative sampling (arXiv 2211.17192) for `exact`; arXiv 2604.07622 for
`ensemble`. `rapid_consistent` is ours: RAPID's acceptance with the replacement that makes its adjusted target the exact
law, which the published replacement does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError

Mode = Literal["exact", "rapid", "rapid_consistent", "ensemble"]
TailRule = Literal["draft", "paper"]

_MOST_ETA = 1_000_000  # far beyond any use; logits of float32 still have room for such a shift


@dataclass(frozen=True, slots=True)
class Law:
    """What a drafted token is judged against, and what the emitted tokens then follow.

    mode: `exact`            judged against the target; emitted tokens follow the target exactly
          `rapid`            judged against the adjusted target (the target moved towards the draft); leans to the draft
                             by at most the total variation distance of the two, see `output_law`
          `rapid_consistent` as `rapid`, but drafted positions follow the adjusted target exactly
          `ensemble`         drafted positions follow `target_weight`·target + (1 - `target_weight`)·draft exactly
          The extra token after a wholly accepted draft, which was not drafted, follows the target in all modes.
    eta: how far the target is moved; bounds the shift of any logit. 0 makes both rapid modes `exact`. Published values:
         5 to 20 where one model does both, 40 to 50 where the draft model is the larger one.
    alpha: the share of the highest draft probability (`tail_rule` draft) below which a token is left where it was.
    tail_rule: `draft` as in the published code; `paper` as printed, whose values may sum to more than 1 (for
         replication of `rapid` only).
    """

    mode: Mode = "exact"
    eta: float = 10.0
    alpha: float = 0.1
    tail_rule: TailRule = "draft"
    target_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"Unknown mode {self.mode!r} of speculation; choose one of {', '.join(get_args(Mode))}.")
        if self.tail_rule not in get_args(TailRule):
            raise ConfigError(f"Unknown tail_rule {self.tail_rule!r}; choose 'draft' or 'paper'.")
        if self.tail_rule == "paper" and self.mode == "rapid_consistent":
            raise ConfigError("tail_rule 'paper' is not a distribution, so 'rapid_consistent' needs tail_rule 'draft'.")
        if not 0 <= self.eta <= _MOST_ETA:
            raise ConfigError(f"eta must lie in [0, {_MOST_ETA}], not {self.eta}.")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must lie in [0, 1], not {self.alpha}.")
        if not 0 <= self.target_weight <= 1:
            raise ConfigError(f"target_weight must lie in [0, 1], not {self.target_weight}.")


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the vocabulary of logits (..., V), in float32 or, where the logits are, in float64."""
    return torch.softmax(logits, dim=-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


def shifted_logits(logits: Tensor, target: Tensor, draft: Tensor, law: Law) -> Tensor:
    """Target logits after one gradient step of size eta on KL(draft ‖ target): logits + eta·(draft - target).

    logits: (..., V) of the target, -inf allowed: it stays -inf, as the shift is finite. target: their probabilities;
    draft: probabilities of the draft. The draft rule moves no token that the draft itself holds implausible.
    Source: RAPID, equations 6 and 8; the tail rule is that of the published code.
    """
    shift = law.eta * (draft - target)
    if law.tail_rule == "draft":
        shift = shift.where(draft >= law.alpha * draft.amax(dim=-1, keepdim=True), 0.0)
    return logits.to(shift.dtype) + shift


def reference(logits: Tensor, draft: Tensor, law: Law) -> Tensor:
    """What drafted tokens are judged against: the target, the adjusted target, or the mixture. Shapes (..., V)."""
    target = probabilities(logits)
    if law.mode == "exact":
        return target
    if law.mode == "ensemble":
        return law.target_weight * target + (1 - law.target_weight) * draft
    adjusted = probabilities(shifted_logits(logits, target, draft, law))
    if law.tail_rule == "paper":
        return torch.where(adjusted < law.alpha * adjusted.amax(dim=-1, keepdim=True), target, adjusted)
    return adjusted


def acceptance(reference: Tensor, draft: Tensor, drafted: Tensor) -> Tensor:
    """Chance in [0, 1] that each drafted token is kept: min(1, reference / draft) at the token.

    reference, draft: (..., V); drafted: token ids, shape (...). A token that the draft gives no probability (it came
    from other settings than the draft's own) is kept where the reference has it at all.
    """
    wanted = reference.gather(-1, drafted[..., None]).squeeze(-1)
    offered = draft.gather(-1, drafted[..., None]).squeeze(-1)
    return torch.where(offered > 0, wanted / offered.where(offered > 0, 1.0), (wanted > 0).to(wanted.dtype)).clamp(
        max=1
    )


def replacement(target: Tensor, reference: Tensor, draft: Tensor, law: Law) -> Tensor:
    """The distribution, (..., V), that replaces a refused draft.

    `rapid` takes what the *un-adjusted* target has above the accepted mass, as published; the other modes what their
    reference has above the draft, which is what makes the reference their exact law.
    Where nothing is left, which only rounding can cause after a refusal, the whole distribution stands in.
    """
    if law.mode == "rapid":
        whole, left = target, (target - torch.minimum(draft, reference)).clamp(min=0)
    else:
        whole, left = reference, (reference - draft).clamp(min=0)
    mass = left.sum(dim=-1, keepdim=True)
    tiny = torch.finfo(left.dtype).tiny
    return torch.where(mass > tiny, left / mass.clamp(min=tiny), whole)


def output_law(logits: Tensor, draft: Tensor, law: Law) -> Tensor:
    """The exact distribution, (..., V), of the token emitted at a drafted position.

    For the three exact modes this is `reference`. For `rapid` it is accepted mass plus replacements, and its total
    variation distance from the target, sum(max(0, min(draft, adjusted) - target)), is at most that of the draft.
    """
    target, judged = probabilities(logits), reference(logits, draft, law)
    kept = torch.minimum(draft, judged)
    refused = (1 - kept.sum(dim=-1, keepdim=True)).clamp(min=0)  # rounding may make it less
    return kept + refused * replacement(target, judged, draft, law)


def greedy_choice(logits: Tensor, draft: Tensor, law: Law) -> Tensor:
    """Ids, shape (...), of the likeliest token of the reference: what greedy decoding emits at a drafted position.

    logits, draft: (..., V) at temperature 1 (the adjustment has no limit at temperature 0). Taken from logits where the
    reference has them, as softmax can round two logits to one probability, and plain greedy decoding reads logits.
    """
    if law.mode == "exact":
        return logits.argmax(dim=-1)
    if law.mode == "ensemble" or law.tail_rule == "paper":
        return reference(logits, draft, law).argmax(dim=-1)
    return shifted_logits(logits, probabilities(logits), draft, law).argmax(dim=-1)
