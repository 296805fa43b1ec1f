from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.assemble import Router
from longroute.router.backends.scripted import Scripted
from longroute.router.core import (
    Answer,
    Backend,
    Call,
    Document,
    Draft,
    Features,
    Message,
    ModelProfile,
    Passage,
    Reply,
    Request,
)
from longroute.router.costs import estimate
from longroute.router.prompts import full_messages
from longroute.router.run import run
from longroute.router.strategies.full import Full
from longroute.router.strategies.speculative import Speculative

LEASE = "The tenant pays rent. A dog named Rex lives here. The landlord repairs the roof. " * 40
ANNEX = "Nothing of note. " * 20
REQUEST = Request("What is the dog called?", (Document(LEASE, "lease"), Document(ANNEX, "annex")), "here")
FEATURES = Features(60_000, 20, 0, 1024, 0.0, 2, 0.2, {"lookup": 1.0}, None, "text")
HERE = ModelProfile("here", 128_000, speculates=True)
ELSEWHERE = ModelProfile("elsewhere", 128_000)


@dataclass
class Finds:
    """Finds these stretches of the lease, best first, and remembers what it was asked for."""

    stretches: Sequence[tuple[int, int]] = ((22, 48),)
    budgets: list[int] = field(default_factory=list)

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        self.budgets.append(budget_tokens)
        text = documents[0].text
        return [Passage(documents[0].id, start, end, text[start:end]) for start, end in self.stretches]


def strategy(finds: Finds | None = None, profile: ModelProfile = HERE, least_tokens: int = 4096) -> Speculative:
    return Speculative(finds or Finds(), Full(), lambda name: profile, least_tokens)


def planned(made: Speculative, features: Features = FEATURES, reply: str = "Rex.") -> tuple[Call, Answer]:
    backend = Scripted([reply])
    answer = run(made.plan(REQUEST, features), backend)
    [call] = backend.calls
    return call, answer


# ---- the call --------------------------------------------------------------------------------------------------------


def test_the_call_is_full_s_with_a_draft_beside_it() -> None:
    call, answer = planned(strategy())
    assert replace(call, draft=None) == Full().call(REQUEST)
    assert call.final
    assert answer == replace(Full().answer(REQUEST, Reply("Rex.")), usage=answer.usage, calls=answer.calls)


def test_the_drafter_reads_the_same_prompt_about_the_passages_in_document_order() -> None:
    call, _ = planned(strategy(Finds([(50, 80), (0, 21)])))
    assert call.draft is not None
    passages = "The tenant pays rent.\n\nThe landlord repairs the roof."
    assert call.draft.messages == full_messages([Document(passages, "lease")], REQUEST.question)
    lease, annex = call.draft.context
    assert lease.index("The tenant") < lease.index("The landlord") and "Rex" not in lease
    assert ANNEX not in annex


@pytest.mark.parametrize(
    ("made", "features", "said"),
    [
        (strategy(), replace(FEATURES, document_tokens=8 * 4096 - 1), "32,767 tokens the text is shorter than 8 times"),
        (strategy(Finds(())), FEATURES, "no passage was found"),
        (strategy(profile=ELSEWHERE), FEATURES, "elsewhere is not known to take drafts"),
    ],
)
def test_without_a_draft_it_is_full_and_says_why(made: Speculative, features: Features, said: str) -> None:
    call, answer = planned(made, features)
    assert call == Full().call(REQUEST)
    [note] = answer.notes
    assert said in note


@given(st.integers(1, 2_000_000), st.integers(32, 8192))
def test_drafts_are_made_from_an_eighth_of_the_text_at_most(document_tokens: int, least_tokens: int) -> None:
    finds = Finds()
    features = replace(FEATURES, document_tokens=document_tokens)
    planned(strategy(finds, least_tokens=least_tokens), features)
    assert bool(finds.budgets) == (document_tokens >= 8 * least_tokens)
    for budget in finds.budgets:
        assert budget == max(least_tokens, min(document_tokens // 24, 16_384))


# ---- what it takes ---------------------------------------------------------------------------------------------------


def test_it_reads_what_full_reads_and_the_draft_s_prompt() -> None:
    full, own = Full().footprint(FEATURES, HERE), strategy().footprint(FEATURES, HERE)
    assert full.prompt_tokens + 4096 < own.prompt_tokens < full.prompt_tokens + 4096 + 300
    assert (own.largest_prompt_tokens, own.calls) == (full.largest_prompt_tokens, 1)


def test_time_is_counted_at_the_plain_speed_unless_a_better_one_was_measured() -> None:
    timed = replace(HERE, prefill_tokens_per_s=1000.0, decode_tokens_per_s=10.0, overhead_s=0.0)

    def seconds(made: Full | Speculative, profile: ModelProfile) -> float:
        found = estimate("s", made.footprint(FEATURES, profile), profile, max_output_tokens=1024).latency_s
        assert found is not None
        return found

    plain, sped = seconds(strategy(), timed), seconds(strategy(), replace(timed, speculative_speedup=2.0))
    assert seconds(Full(), timed) + 4 < plain < seconds(Full(), timed) + 6
    assert sped == pytest.approx(plain - 7.5)  # half of 150 tokens at 10 a second


def test_it_is_out_where_the_model_takes_no_drafts_and_the_decision_says_so() -> None:
    router = Router(cache=False, embedding_model="none", profile_of=lambda name: ELSEWHERE)
    decision = router.decide("What is the dog called?", [LEASE])
    [own] = [option for option in decision.estimates if option.strategy == "speculative"]
    assert not own.feasible
    assert "elsewhere is not known to take drafts" in own.infeasible


# ---- on a model of this machine --------------------------------------------------------------------------------------


class Cold(Backend):
    """Asks without chance, so that answers can be compared."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def generate(self, call: Call) -> Reply:
        return await self._backend.generate(replace(call, temperature=0.0))

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        async with aclosing(self._backend.stream(replace(call, temperature=0.0))) as pieces:
            async for piece in pieces:
                yield piece

    async def aclose(self) -> None:
        await self._backend.aclose()


def test_on_a_local_model_exact_speculation_says_what_full_says(model_folder: Path) -> None:
    from longroute.router.assemble import make_backend
    from longroute.router.settings import load_settings

    settings = load_settings(
        model=f"local:{model_folder}",
        cache=False,
        embedding_model="none",
        speculative_context_tokens=32,
        max_output_tokens=24,
        runner={"device": "cpu", "speculative_mode": "exact", "draft_tokens": 3},
    )
    backend = Cold(make_backend(settings))
    router = Router(settings, backend=backend)
    text = "Ada wrote it in Vienna. The rent is 900 euros. " * 30
    whole, own = (
        router.answer("Who wrote it?", [text], allowed=[name], max_output_tokens=24) for name in ("full", "speculative")
    )
    asyncio.run(backend.aclose())
    assert own.text == whole.text
    note, *_ = own.notes
    assert note.endswith("drafted tokens were kept") and " of 0 " not in note
    assert own.usage.prompt_tokens > whole.usage.prompt_tokens  # the draft's prompt was read, too
    assert own.usage.completion_tokens == 24


def test_a_model_that_cannot_take_back_tokens_answers_without_drafts(model_folder: Path) -> None:
    from longroute.router.backends.local import Local
    from longroute.router.runner.engine import Engine
    from longroute.router.runner.generation import SamplingOptions
    from longroute.router.runner.local_model import LocalModel
    from longroute.router.runner.model import LanguageModel
    from longroute.router.runner.tokenizer import Tokenizer
    from longroute.tests.router.runner.tiny import tiny_transformer

    tokenizer = Tokenizer.load(model_folder)
    recurrent = tiny_transformer("lfm2", vocab_size=len(tokenizer.vocabulary), layer_types=["conv", "full_attention"])
    engine = Engine(LanguageModel(recurrent), tokenizer.decode)
    with LocalModel("tiny", tokenizer, engine, SamplingOptions(temperature=0)) as model:
        draft = Draft((Message("user", "Who?"),))
        call = Call((Message("user", "Who wrote it?"),), "tiny", 4, draft=draft)
        reply = asyncio.run(Local(lambda: model).generate(call))
    assert reply.usage.completion_tokens
    [note] = reply.notes
    assert note.startswith("no drafts were made")
