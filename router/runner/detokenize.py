"""From tokens to text while they come: whole characters only, and never anything past a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what tokenizers show for bytes that are not yet a character


class Detokenizer:
    """Turns tokens into text one by one. Bytes at the very end that never became a character are
    not shown.

    decode: the tokenizer's own, without skipping or tidying up spaces. It sees a few tokens at a time: the new ones
    behind one or more that are already shown, since many tokenizers treat the first token of a text differently.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []  # from the last known tokens on
        self._known = 0  # of those, how many are shown in full
        self._shown = 0  # characters of their text that are out

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; empty while a character lacks bytes."""
        self._ids.append(token)
        text = self._decode(self._ids)
        whole = text.rstrip(_BROKEN)
        new = whole[self._shown :]
        self._shown += len(new)
        if whole == text and new:  # nothing is open: what was known before can be forgotten
            self._ids = self._ids[self._known :]
            self._known = len(self._ids)
            self._shown = len(self._decode(self._ids))
        return new


class StopFilter:
    """Lets text through up to the first stop text, and holds back whatever might still turn out to be one.

    First is the one that is complete first, so the outcome does not depend on how the text came in pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of the text so far that may be shown now; nothing once `stopped`."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """At the end of the text: what was held back and is no stop text after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that is a beginning of the stop text, but not all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
