"""What one asks of LLMLingua-2 and what one gets, in the words of the reference package.

The fields have the names, meanings and defaults of `PromptCompressor.compress_prompt` of the package llmlingua 0.2.2 on
its LLMLingua-2 path. Its other options are ignored there and are not offered here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .compression import Compressed


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """Options of one compression of a list of contexts.

    rate: share of tokens to keep; ignored where target_token is given. A target below 0 means none.
    use_context_level_filter: drop the least telling contexts first, down to target_context of them, to
    context_level_target_token tokens, or to context_level_rate of them; force_context_ids stay in any case. Without a
    limit of its own it leaves twice the target, or half-way between rate and 1.
    use_token_level_filter: False leaves the contexts that remain as they are.
    force_tokens: strings that are kept wherever they stand, 100 at most in the compat mode.
    force_reserve_digit: keep what contains a digit.
    drop_consecutive: of equal force tokens that follow one another among what is kept, keep the first.
    chunk_end_tokens: where a text may be cut to fit the model.
    token_to_word: a word is worth the mean of its tokens, or its first.
    return_word_label, word_sep, label_sep: list all words with 1 (kept) or 0.
    """

    rate: float = 0.5
    target_token: float = -1
    use_context_level_filter: bool = True
    use_token_level_filter: bool = True
    target_context: int = -1
    context_level_rate: float = 1.0
    context_level_target_token: float = -1
    force_context_ids: tuple[int, ...] = ()
    force_tokens: tuple[str, ...] = ()
    force_reserve_digit: bool = False
    drop_consecutive: bool = False
    chunk_end_tokens: tuple[str, ...] = (".", "\n")
    token_to_word: Literal["mean", "first"] = "mean"  # noqa: S105  # not a password
    return_word_label: bool = False
    word_sep: str = "\t\t|\t\t"
    label_sep: str = " "

    def keep_share_of_contexts(self, n_contexts: int, n_tokens: int) -> float:
        """What share of the contexts the filter keeps. Raises ZeroDivisionError for a target of no tokens at all."""
        share, target = self.context_level_rate, self.context_level_target_token
        if self.target_context <= 0 and share >= 1.0 and target <= 0:
            if self.target_token < 0 and self.rate < 1.0:
                share = (self.rate + 1.0) / 2 if self.use_token_level_filter else self.rate
            if self.target_token >= 0:
                target = self.target_token * 2 if self.use_token_level_filter else self.target_token
        if self.target_context >= 0:
            share = min(self.target_context / n_contexts, 1.0)
        if target >= 0:
            share = min(target / n_tokens, 1.0)
        return share


@dataclass(frozen=True, slots=True)
class PromptResult:
    """A compressed list of contexts.

    compressed_prompt_list: the contexts that survived; compressed_prompt: the same, a blank line between two.
    fn_labeled_original_prompt: all words with their labels, where asked for.
    kept_context_ids: which contexts survived, by place in the input.
    contexts: the survivors with their offsets; empty in the compat mode, whose text is not made of source stretches.
    """

    compressed_prompt_list: tuple[str, ...]
    origin_tokens: int
    compressed_tokens: int
    kept_context_ids: tuple[int, ...]
    fn_labeled_original_prompt: str | None = None
    contexts: tuple[Compressed, ...] = ()

    @property
    def compressed_prompt(self) -> str:
        return "\n\n".join(self.compressed_prompt_list)

    def as_dict(self) -> dict[str, Any]:
        """What the reference returns."""
        ratio = 1 if self.compressed_tokens == 0 else self.origin_tokens / self.compressed_tokens
        found: dict[str, Any] = {
            "compressed_prompt": self.compressed_prompt,
            "compressed_prompt_list": list(self.compressed_prompt_list),
            "origin_tokens": self.origin_tokens,
            "compressed_tokens": self.compressed_tokens,
            "ratio": f"{ratio:.1f}x",
            "rate": f"{1 / ratio * 100:.1f}%" if ratio else "100.0%",
            "saving": f", Saving ${(self.origin_tokens - self.compressed_tokens) * 0.06 / 1000:.1f} in GPT-4.",
        }
        if self.fn_labeled_original_prompt is not None:
            found["fn_labeled_original_prompt"] = self.fn_labeled_original_prompt
        return found
