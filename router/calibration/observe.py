"""Features of calibration cases: what the router's policy would see, computed by the router's own code.

Prompt caches count as cold: what a case finds warm depends on the cases before it, and outcomes should not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from ..assemble import make_evidence_source
from ..core import Document, Features, ModelProfile, Request
from ..features import extract
from ..models import load_profiles, profile_of
from ..settings import Settings
from ..tokens import counter_for


class Observer:
    """Sees cases as a router with these settings sees them. Remembers the counts of recent documents."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._profiles = load_profiles(settings.models_file) if settings.models_file else {}
        self._evidence = make_evidence_source()
        self._counted = lru_cache(maxsize=256)(lambda tokenizer, text: counter_for(tokenizer).count(text))

    def profile(self, model: str) -> ModelProfile:
        return profile_of(model, self._profiles)

    def features(self, question: str, documents: Sequence[Document], models: Iterable[str]) -> dict[str, Features]:
        """Features by model; all that does not depend on the model is computed once."""
        request = Request(question, tuple(documents), "", max_output_tokens=self._settings.max_output_tokens)
        evidence = self._evidence.evidence(question, documents)
        found = {}
        for model in models:
            profile = self.profile(model)
            tokenizer = str(self._settings.tokenizer or profile.tokenizer)
            found[model] = extract(
                replace(request, model=model),
                profile,
                counter_for(tokenizer),
                evidence,
                count_document=partial(self._counted, tokenizer),
            )
        return found
