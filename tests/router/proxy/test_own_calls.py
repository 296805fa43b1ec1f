"""What becomes of a request where calls of its strategy fail: what is sent again, how often, what the client sees."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Callable

import httpx
import pytest

from longroute.router import assemble
from longroute.router.core import Answer, Call, Features, Message, Plan, Request
from longroute.router.errors import BackendError
from longroute.router.proxy.exchange import READ_BYTES
from longroute.tests.router.fakes import Chain
from longroute.tests.router.proxy.fakes import FakeUpstream, MakeProxy, Proxy, Sent, Told, chat, completion, long_text


class Portions(Chain):
    """Twelve calls side by side; those that fail are tried once more; the last sees how many have answered."""

    def plan(self, request: Request, features: Features) -> Plan:
        left = [Call((Message("user", f"WORKER {n}"),), request.model, final=False) for n in range(12)]
        answered = 0
        for _ in range(2):
            outcomes = yield tuple(left)
            assert isinstance(outcomes, tuple)
            failed = [(c, o) for c, o in zip(left, outcomes, strict=True) if isinstance(o, BackendError)]
            answered += len(left) - len(failed)
            left = [call for call, _ in failed]
            if not left:
                break
        if not answered:
            raise failed[-1][1]
        last = yield Call((), request.model, context=(f"NOTES of {answered}",))
        return Answer(getattr(last, "text", ""))


class Hired(Chain):
    """Its workers are of another model than the caller's."""

    def plan(self, request: Request, features: Features) -> Plan:
        last = yield Call((Message("user", "WORKER"),), "gpt-4o-mini", final=False)
        return Answer(getattr(last, "text", ""))


Make = Callable[..., Proxy]


@pytest.fixture
def make(make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> Make:
    ready = {"chain": lambda parts: Chain(), "portions": lambda parts: Portions(), "hired": lambda parts: Hired()}
    monkeypatch.setattr(assemble, "_STRATEGIES", {**assemble._STRATEGIES, **ready})
    return lambda **settings: make_proxy(settings={"allowed": ()}, **settings)


def by(strategy: str) -> dict[str, str]:
    return {"x-longroute-strategy": strategy}


def is_worker(sent: Sent) -> bool:
    return sent.prompt.startswith("WORKER")


DOWN = b'{"error": {"message": "down for maintenance", "type": "server_error"}}'

# ---- what is the upstream's own state --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 429, 500, 502, 503, 504, 529])
def test_what_the_original_would_have_been_told_too_is_handed_on_as_it_came(status: int, make: Make) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: Told(status, DOWN, [(b"x-request-id", b"7"), (b"retry-after", b"9")])
    answer = proxy.ask(chat(), headers=by("self_route"))
    assert (answer.status_code, answer.content, len(proxy.upstream.sent)) == (status, DOWN, 1)
    assert answer.headers["x-request-id"] == "7" and answer.headers["retry-after"] == "9"
    assert "x-longroute-fail-open" not in answer.headers and answer.headers["x-longroute-strategy"] == "self_route"
    assert "as the request itself would have" in answer.headers["x-longroute-reason"]
    assert proxy.decision(answer)["status"] == status


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout(""), httpx.ReadTimeout("")])
def test_an_upstream_that_is_gone_is_asked_once(error: httpx.HTTPError, make: Make) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: error
    answer = proxy.ask(chat(), headers=by("self_route"))
    assert answer.status_code == (504 if isinstance(error, httpx.ReadTimeout) else 502)
    assert len(proxy.upstream.sent) == 1
    assert proxy.metric('longroute_calls_total{strategy="self_route",upstream="upstream"}') == 1


@pytest.mark.parametrize(
    "failure", [Told(400, DOWN), Told(413, DOWN), Told(422, DOWN), Told(418, DOWN), httpx.ReadError("reset")]
)
def test_what_our_words_may_have_caused_is_followed_by_the_original(failure: Told | Exception, make: Make) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: completion() if sent.body == chat() else failure
    answer = proxy.ask(chat(), headers=by("self_route"))
    assert answer.status_code == 200 and answer.headers["x-longroute-fail-open"] == "plan"
    assert len(proxy.upstream.sent) == 2


def test_a_server_that_stumbles_over_calls_of_our_own_gets_the_original(make: Make) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: Told(500, DOWN) if is_worker(sent) else completion()
    answer = proxy.ask(chat(), headers=by("chain"))
    assert answer.status_code == 200 and answer.headers["x-longroute-fail-open"] == "plan"


def test_a_limit_that_our_own_calls_may_have_reached_is_waited_out_and_the_original_sent(make: Make) -> None:
    proxy, at = make(), [0.0]

    def answer(sent: Sent) -> Told:
        at.append(time.monotonic())
        return Told(429, DOWN, [(b"retry-after-ms", b"30")]) if is_worker(sent) else completion()

    proxy.upstream.answer = answer
    response = proxy.ask(chat(), headers=by("portions"))
    assert response.status_code == 200 and proxy.sent.body == chat() and len(at) == 14
    assert at[-1] - at[-2] >= 0.03 and response.headers["x-longroute-fail-open"] == "plan"


def test_a_model_of_the_workers_that_there_is_not_does_not_keep_the_original_back(make: Make) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: completion() if sent.body == chat() else Told(404, DOWN)
    answer = proxy.ask(chat(), headers=by("hired"))
    assert answer.status_code == 200 and answer.headers["x-longroute-fail-open"] == "plan"


# ---- how often -------------------------------------------------------------------------------------------------------


def test_in_an_outage_a_long_chain_ends_after_a_few_calls(make: Make) -> None:
    proxy = make(retries=2)
    proxy.upstream.answer = lambda sent: Told(503, DOWN)
    answer = proxy.ask(chat(), headers=by("chain_of_agents"))
    assert (answer.status_code, answer.content, len(proxy.upstream.sent)) == (503, DOWN, 3)


def test_a_limit_that_was_reached_before_is_handed_on(make: Make) -> None:
    proxy = make(retries=1)
    proxy.upstream.answer = lambda sent: Told(429, DOWN, [(b"retry-after-ms", b"1")])
    answer = proxy.ask(chat(), headers=by("chain_of_agents"))
    assert (answer.status_code, answer.headers["retry-after-ms"], len(proxy.upstream.sent)) == (429, "1", 2)


def test_calls_side_by_side_are_not_all_sent_again_to_an_upstream_that_is_down(make: Make) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: Told(503, DOWN)
    answer = proxy.ask(chat(), headers=by("portions"))
    assert (answer.status_code, len(proxy.upstream.sent)) == (503, 12)


@pytest.mark.parametrize("status", [400, 422])
def test_a_long_chain_whose_words_are_refused_ends_after_a_few_calls(status: int, make: Make) -> None:
    proxy = make(retries=2)
    proxy.upstream.answer = lambda sent: completion() if sent.body == chat(long_text(1000)) else Told(status, DOWN)
    answer = proxy.ask(chat(long_text(1000)), headers=by("chain_of_agents"))
    assert answer.status_code == 200 and len(proxy.upstream.sent) == 4


def test_a_few_that_fail_in_passing_are_tried_again(make: Make) -> None:
    proxy, seen = make(), set()

    def answer(sent: Sent) -> Told:
        again = sent.prompt in seen
        seen.add(sent.prompt)
        return completion() if again or not sent.prompt.endswith(("1", "2")) else Told(503, DOWN)

    proxy.upstream.answer = answer
    response = proxy.ask(chat(), headers=by("portions"))
    assert response.status_code == 200 and proxy.sent.prompt.startswith("NOTES of 12")


@pytest.mark.parametrize("wish", [(b"retry-after-ms", b"30"), (b"retry-after", b"0.03")])
def test_the_next_call_waits_for_as_long_as_the_upstream_asks(wish: tuple[bytes, bytes], make: Make) -> None:
    proxy, at = make(), []

    def answer(sent: Sent) -> Told:
        at.append(time.monotonic())
        return Told(429, b"{}", [wish]) if len(at) == 2 else completion()

    proxy.upstream.answer = answer
    response = proxy.ask(chat(), headers=by("chain"))
    assert len(at) == 4 and at[2] - at[1] >= 0.03
    assert "x-longroute-unread" in response.headers, "whether to try again is the plan's to decide"


def test_where_no_time_is_named_the_next_call_waits_a_little(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longroute.router.proxy.own_calls._PAUSE_S", 0.03)
    proxy, at = make(), []

    def answer(sent: Sent) -> Told:
        at.append(time.monotonic())
        return Told(429, b"{}") if len(at) == 2 else completion()

    proxy.upstream.answer = answer
    assert proxy.ask(chat(), headers=by("chain")).status_code == 200
    assert at[2] - at[1] >= 0.03


def test_a_wait_that_nobody_would_want_ends_the_strategy(make: Make) -> None:
    proxy = make(retry_wait_s=1)
    proxy.upstream.answer = lambda sent: (
        Told(429, DOWN, [(b"retry-after", b"3600")]) if len(proxy.upstream.sent) == 2 else completion()
    )
    answer = proxy.ask(chat(), headers=by("chain"))
    assert answer.status_code == 200 and proxy.sent.body == chat() and len(proxy.upstream.sent) == 3


def test_a_reply_that_grows_when_it_is_unpacked_is_given_up(make: Make) -> None:
    bomb = gzip.compress(bytes(READ_BYTES + 1))
    proxy = make()
    proxy.upstream.answer = lambda sent: (
        Told(200, bomb, [(b"content-encoding", b"gzip")]) if is_worker(sent) else completion()
    )
    answer = proxy.ask(chat(), headers={**by("chain"), "accept-encoding": "gzip"})
    assert answer.status_code == 200 and proxy.sent.body == chat()


# ---- the last call ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [Told(429, DOWN, [(b"retry-after", b"0.01")]), httpx.ConnectError("refused")])
def test_a_last_call_is_sent_once_more_lest_all_before_it_be_lost(failure: Told | Exception, make: Make) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: failure if len(proxy.upstream.sent) == 4 else completion()
    answer = proxy.ask(chat(), headers=by("chain"))
    assert answer.status_code == 200 and len(proxy.upstream.sent) == 5
    assert proxy.upstream.sent[3].body == proxy.sent.body and proxy.decision(answer)["calls"] == 5


@pytest.mark.parametrize(("wait", "calls"), [(b"0.01", 5), (b"3600", 4)])
def test_a_last_call_that_fails_again_is_not_followed_by_the_longer_original(
    wait: bytes, calls: int, make: Make
) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: completion() if is_worker(sent) else Told(429, DOWN, [(b"retry-after", wait)])
    answer = proxy.ask(chat(), headers=by("chain"))
    assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (429, DOWN, wait.decode())
    assert len(proxy.upstream.sent) == calls and "x-longroute-fail-open" not in answer.headers


def test_calls_are_counted_where_the_last_one_has_no_answer(make: Make) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: completion() if is_worker(sent) else httpx.ConnectError("refused")
    assert proxy.ask(chat(), headers=by("chain")).status_code == 502
    [brief] = proxy.ask(path="/v1/longroute/decisions", method="GET").json()["decisions"]
    told = proxy.ask(path=f"/v1/longroute/decisions/{brief['id']}", method="GET").json()
    assert (told["status"], told["calls"], told["usage"]["prompt_tokens"]) == (502, 5, 3 * 120)


def test_a_strategy_of_one_call_sends_nothing_twice(make: Make) -> None:
    proxy = make()
    proxy.upstream.answer = lambda sent: Told(503, DOWN)
    assert proxy.ask(chat(), headers=by("rag")).status_code == 503 and len(proxy.upstream.sent) == 1


# ---- how many at once ------------------------------------------------------------------------------------------------


def test_calls_under_way_are_bounded_over_all_requests(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, under_way, most, waiting = make(max_calls=3), 0, 0, 0.0
    send, begun, looked = FakeUpstream.send, asyncio.Event(), asyncio.Event()

    async def slow(self: FakeUpstream, method: bytes, target: bytes, headers: object, body: bytes) -> object:
        nonlocal under_way, most
        under_way += b"WORKER" in body
        most = max(most, under_way)
        if most == 3:
            begun.set()
        await looked.wait()
        await asyncio.sleep(0.001)
        under_way -= b"WORKER" in body
        return await send(self, method, target, headers, body)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeUpstream, "send", slow)

    async def main() -> list[int]:
        nonlocal waiting
        async with proxy.client() as client:
            headers = {"content-type": "application/json", **by("portions")}
            asking = [client.post("/v1/chat/completions", content=chat(), headers=headers) for _ in range(4)]
            asked = [asyncio.ensure_future(one) for one in asking]
            await begun.wait()
            samples = (await client.get("/metrics")).text.splitlines()
            waiting = next(float(line.split()[1]) for line in samples if line.startswith("longroute_calls_waiting"))
            looked.set()
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(main()) == [200] * 4
    assert waiting >= 9
    assert most == 3 and len(proxy.upstream.sent) == 4 * 13
