"""The engine: one thread that owns a model and serves many requests. Token ids in, token ids and text out.

    submit ─▶ queue ─▶ [ admit ─▶ one prefill chunk ─▶ one token for everybody who decodes ] ─▶ events ─▶ Handle
                                            one step

Who is next is `scheduler.py`'s to say, what is kept `prefixes.py`'s, how a token is picked `sampling.py`'s. A request
that fails, whatever the reason, ends with its own error and gives back its memory; the others and the engine go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import torch

from ..errors import BackendError, BackendUnavailable, ConfigError, ContextTooLong, RateLimited, RouterError
from .detokenize import Decode, Detokenizer, StopFilter
from .draft_length import DraftLength
from .generation import Done, FinishReason, Generation, GenerationUsage, Piece, TokenChoice
from .handle import Handle
from .kv_cache import KVCache
from .memory import MemoryGuard, available_bytes, gibibytes, is_out_of_memory
from .model import LanguageModel
from .passes import run_together
from .prefixes import Prefix, PrefixStore
from .sampling import Sampler, choose
from .scheduler import Job, Scheduler, longest_live
from .speculative import Side, Speculation, SpeculativeDecoding

_MOST_DRAFT_LENGTHS = 256  # remembered; callers may ask for any eta


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine shares the machine.

    chunk_tokens: most tokens of a prompt that are read in one step; bounds the memory of a step, and how long requests
                  that decode, or leave, wait for one that reads. None: 2,048, and 512 on a CPU.
    slots:        most requests at work at a time.
    queue_limit:  most requests that may wait; beyond, `submit` raises RateLimited.
    cache_bytes:  most memory for all caches together, finished prompts' included; None is what the device has.
    prefix_bytes: of that for finished prompts; None takes half of what is free at the start, a quarter of main memory.
                  Requests at work come first.
    batch_decode: decode several requests in one pass where the model allows it; off, each has a pass of its own.
    """

    chunk_tokens: int | None = None
    slots: int = 16
    queue_limit: int = 256
    cache_bytes: int | None = None
    prefix_bytes: int | None = None
    batch_decode: bool = True


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """Counters since the start, and what is going on now. Seconds are those of the engine's thread."""

    submitted: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prefilled_tokens: int = 0
    reused_tokens: int = 0
    decoded_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    decode_steps: int = 0
    failed_passes: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    waiting: int = 0
    running: int = 0
    prefixes: int = 0
    prefix_bytes: int = 0


class Engine:
    """Use it as a context manager, or call `start` and `close`. `submit` may be called from any thread.

    decode:      the tokenizer's: token ids → text; without it events hold no text, and stop texts are refused.
    draft_model: drafts where a request comes with a draft; None lets the model draft for itself.
    vocabulary:  ids that the two models share, from `speculative.common_vocabulary`; only with a draft model.
    available:   free bytes on the model's device; clock: seconds. Both for tests.
    """

    def __init__(
        self,
        model: LanguageModel,
        decode: Decode | None = None,
        options: EngineOptions = EngineOptions(),
        *,
        draft_model: LanguageModel | None = None,
        vocabulary: int | None = None,
        available: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.options = options
        self._draft_model = draft_model or model
        self._draft_lengths: dict[tuple[Speculation, tuple[int, int, int]], DraftLength] = {}
        self._vocabulary = vocabulary
        self._decode_text = decode
        self._on_device = available or (lambda: available_bytes(model.device))
        self._chunk_tokens = options.chunk_tokens or usual_chunk_tokens(model.device)
        self._guard = MemoryGuard(model, self._draft_model, self._chunk_tokens, self._available)
        self._clock = clock
        self._scheduler = Scheduler(options.slots)
        self._prefixes: PrefixStore[KVCache] = PrefixStore(options.prefix_bytes or 0, forgets=model.is_windowed)
        if options.prefix_bytes is None:
            self._prefixes.max_bytes = self._available() // (2 if model.device.type == "cuda" else 4)
        self._wake = threading.Condition()
        self._inbox: list[Job] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._counts = dict.fromkeys(EngineMetrics.__dataclass_fields__, 0.0)

    # ---- any thread ----

    def start(self) -> Self:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="longroute-engine", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop at the end of the current step; requests under way end with BackendUnavailable."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._fail_all(_closed())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, generation: Generation) -> Handle:
        """Put a request in the queue. What can be seen to be wrong at once is raised here, the rest by the handle."""
        max_tokens = self._check(generation)
        # Nothing runs yet: what cannot work is refused, and a draft that would be read for nothing is left out.
        if generation.draft is not None and not self._speculative(generation, max_tokens, None).drafts:
            generation = replace(generation, draft=None)
        handle = Handle(self._notify)
        job = Job(generation, handle, max_tokens, self._clock())
        with self._wake:
            if self._closing:
                raise _closed()
            waiting = len(self._inbox) + len(self._scheduler.waiting)
            if waiting >= self.options.queue_limit:
                raise RateLimited(
                    f"{waiting} requests wait already, which is the limit. Try again later, or raise queue_limit.",
                    status=429,
                )
            self._inbox.append(job)
            self._counts["submitted"] += 1
            self._wake.notify_all()
        return handle

    @property
    def can_speculate(self) -> bool:
        """Whether the models can take back tokens, as a request with a draft needs them to."""
        return self.model.can_roll_back and self._draft_model.can_roll_back

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread is there, and is to stay; without it nothing is answered any more."""
        return not self._closing and self._thread is not None and self._thread.is_alive()

    def metrics(self) -> EngineMetrics:
        counts = self._counts | {
            "waiting": len(self._inbox) + len(self._scheduler.waiting),
            "running": len(self._scheduler.prefilling) + len(self._scheduler.decoding),
            "prefixes": len(self._prefixes),
            "prefix_bytes": self._prefixes.nbytes,
        }
        return EngineMetrics(**{k: v if k.endswith("_s") else int(v) for k, v in counts.items()})  # type: ignore[arg-type]

    def _check(self, generation: Generation) -> int:
        """Returns how many tokens may be generated at most."""
        draft = generation.draft.prompt_ids if generation.draft is not None else ()
        for name, ids, model in (
            ("prompt_ids", generation.prompt_ids, self.model),
            ("logit_bias", generation.sampling.logit_bias, self.model),
            ("draft.prompt_ids", draft, self._draft_model),
        ):
            if min(ids, default=0) < 0 or max(ids, default=0) >= model.vocab_size:
                raise ConfigError(
                    f"{name} holds a token id outside 0 to {model.vocab_size - 1}; use this model's tokenizer."
                )
        if generation.stop and self._decode_text is None:
            raise ConfigError("Stop texts need an engine with a tokenizer: pass decode=..., or use stop_ids.")
        for name, ids, model in (
            ("prompt", generation.prompt_ids, self.model),
            ("draft's prompt", draft, self._draft_model),
        ):
            if model.max_positions is not None and len(ids) >= model.max_positions:
                raise ContextTooLong(
                    f"The {name} has {len(ids)} tokens; {model.name} accepts {model.max_positions}, the answer "
                    "included. Shorten the prompt, or use the 'rag' strategy."
                )
        max_tokens = generation.max_tokens
        if self.model.max_positions is not None:
            max_tokens = min(max_tokens, self.model.max_positions - len(generation.prompt_ids))
        return max_tokens

    def _available(self) -> int:
        """Bytes that caches may still take."""
        free, limit = self._on_device(), self.options.cache_bytes
        if limit is None:
            return free
        return min(free, limit - self._prefixes.nbytes - sum(map(self._guard.held_bytes, self._scheduler.running)))

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or self._inbox or self._scheduler)
                    if self._closing:
                        return
                try:
                    self.step()
                except Exception as error:  # a fault of the engine itself must not leave callers waiting for ever
                    self._fail_all(self._translated(error))
        finally:  # nor must a thread that dies
            with self._wake:
                self._closing = True
            self._fail_all(_closed())

    def step(self) -> bool:
        """Admit, read one chunk, decode one token each. For the engine's thread, or for a test that has none.

        Returns whether there is more to do.
        """
        self._take_inbox()
        for job in self._scheduler.cancelled():
            self._end(job, "cancelled")
        self._admit()
        if (reading := self._scheduler.next_prefill()) is not None:
            self._prefill(reading)
        if self._scheduler.decoding:
            self._decode(list(self._scheduler.decoding))
        return bool(self._inbox or self._scheduler)

    def _take_inbox(self) -> None:
        with self._wake:
            self._scheduler.waiting.extend(self._inbox)
            self._inbox.clear()

    # ---- admission ----

    def _admit(self) -> None:
        passed = 0
        for job in list(self._scheduler.waiting):
            if not self._scheduler.has_slot or passed > self.options.slots:
                return
            stored, saved = self._prefixes.best(job.prompt, len(job.prompt) - 1)
            live, saved_live = longest_live(job, self._scheduler.running)
            if saved_live > saved:
                stored, saved = None, saved_live
            if self._scheduler.worth_waiting(job, saved, self._chunk_tokens, forgets=self._prefixes.forgets):
                passed += 1  # lets others pass
                continue
            if not self._fits(job, stored, saved):
                if self._scheduler.running:
                    return  # nobody passes a request that waits for memory, or a large one might wait for ever
                stored, live, saved = None, None, 0  # alone, it may cost even the prefix that would have helped
                if not self._fits(job, stored, saved):
                    self._fail(job, self._guard.refusal(job))
                    continue
            self._start(job, stored, live, saved)

    def _fits(self, job: Job, stored: Prefix[KVCache] | None, saved: int) -> bool:
        """Whether there is memory for the request now, if need be at the cost of other stored prefixes."""
        needed = self._guard.needed_bytes(job)
        if stored is not None and self._prefixes.gives_away(stored, saved):
            needed -= stored.cache.nbytes
        missing = needed - self._guard.free_bytes(self._scheduler.running)
        return missing <= 0 or self._prefixes.evict(missing, spare=stored) >= missing

    def _start(self, job: Job, stored: Prefix[KVCache] | None, live: Job | None, saved: int) -> None:
        try:
            if saved == 0:
                job.cache = self.model.new_cache(job.total_tokens)
            elif stored is not None:
                job.cache = self._prefixes.take(stored, saved, job.total_tokens)
            else:
                assert live is not None and live.cache is not None
                job.cache = live.cache.copy_first(saved, job.total_tokens)
            self._prepare(job, job.cache)
        except Exception as error:  # whatever it is, it is this request's alone
            self._fail(job, self._translated(error))
            return
        if self._decode_text is not None:
            job.detokenizer = Detokenizer(self._decode_text)
            job.stop_filter = StopFilter(job.generation.stop)
        job.reused_tokens = saved
        job.started_at = self._clock()
        self._counts["reused_tokens"] += saved
        self._scheduler.start(job)

    def _prepare(self, job: Job, cache: KVCache) -> None:
        """Set up how tokens of this request will be picked."""
        generation = job.generation
        if generation.draft is None:
            job.sampler = Sampler(generation.sampling, generation.prompt_ids, self.model.vocab_size, self.model.device)
            return
        job.decoding = self._speculative(generation, job.max_tokens, cache)

    def _speculative(self, generation: Generation, max_tokens: int, cache: KVCache | None) -> SpeculativeDecoding:
        assert generation.draft is not None
        return SpeculativeDecoding(
            Side(self.model, generation.prompt_ids, cache),
            Side(self._draft_model, generation.draft.prompt_ids),
            max_tokens=max_tokens,
            speculation=generation.draft.speculation or Speculation(),
            sampling=generation.sampling,
            stop_ids=generation.stop_ids,
            vocab_size=self._vocabulary if self._draft_model is not self.model else None,
            clock=self._clock,
        )

    def _draft_length(self, generation: Generation, rows: int) -> DraftLength:
        """Shared by answers judged alike behind contexts of like lengths, with as much company in their passes: what
        one of them has learned of step times saves the others trials of their own.
        """
        assert generation.draft is not None
        draft = generation.draft
        lengths = (len(generation.prompt_ids).bit_length(), len(draft.prompt_ids).bit_length(), rows.bit_length())
        key = draft.speculation or Speculation(), lengths
        if key not in self._draft_lengths and len(self._draft_lengths) >= _MOST_DRAFT_LENGTHS:
            self._draft_lengths.clear()
        return self._draft_lengths.setdefault(key, DraftLength(rows=rows))

    def _stop_ids(self, job: Job) -> frozenset[int]:
        return self.model.eos_ids if job.generation.stop_ids is None else job.generation.stop_ids

    # ---- one step's work ----

    def _prefill(self, job: Job) -> None:
        began, unread = self._clock(), job.unread_tokens
        choices: list[TokenChoice | None] = []
        try:
            if unread:
                choices = self._read_chunk(job)
        except Exception as error:  # whatever it is, it is this request's alone
            if is_out_of_memory(error):
                self._free_all()
            self._fail(job, self._translated(error))
            return
        self._counts["prefilled_tokens"] += unread - job.unread_tokens
        self._counts["prefill_s"] += self._clock() - began
        if job.unread_tokens == 0:
            self._scheduler.decode(job)
            for choice in choices:
                self._accept(job, choice)

    def _read_chunk(self, job: Job) -> list[TokenChoice | None]:
        """Feed the next chunk of the prompt; behind its last token, the first of the answer is picked at once."""
        assert job.cache is not None
        fed, n = job.fed, job.next_chunk(self._chunk_tokens)
        if job.decoding is not None:
            job.decoding.prefill(n)
            logits = None
        else:
            logits = self._forward(job.generation.prompt_ids[fed : fed + n], job.cache)
        if self._prefixes.forgets and fed < job.fed == job.generation.shared_tokens:
            self._prefixes.put(job.cached_ids, job.cache.copy_first(job.fed))
        if logits is None or job.sampler is None or job.unread_tokens:
            return []
        return choose(logits, [job.sampler])

    def _forward(self, ids: Sequence[int], cache: KVCache) -> torch.Tensor:
        """Logits of the last position, shape (1, V). Short of memory, it tries once more without stored prefixes."""
        try:
            return self.model.forward(self.model.tokens(ids), cache)[:, -1]
        except Exception as error:
            if not is_out_of_memory(error) or not cache.undo():
                raise
        self._free_all()  # outside of the handler: an exception keeps the tensors of its frames alive
        return self.model.forward(self.model.tokens(ids), cache)[:, -1]

    def _decode(self, jobs: list[Job]) -> None:
        began = self._clock()
        self._counts["decode_steps"] += 1
        plain = [job for job in jobs if job.decoding is None]
        decoded: list[tuple[Job, TokenChoice | None]] = []
        if self.options.batch_decode and self.model.batches_rows:
            alike = [job for job in plain if not self._must_repeat(job)]
            decoded = self._decode_together(alike) or []
        together = {id(job) for job, _ in decoded}
        decoded += self._decode_one_by_one([job for job in plain if id(job) not in together])
        decoded += self._speculate([job for job in jobs if job.decoding is not None])
        for job, choice in decoded:
            if job.cache is not None:  # not ended by an earlier token of its block
                self._accept(job, choice)
        self._counts["decode_s"] += self._clock() - began

    def _must_repeat(self, job: Job) -> bool:
        """Whether company could change the answer: a pass over several rows rounds otherwise in half precision, which
        shifts every draw of a seeded request a little."""
        sampling = job.generation.sampling
        return self.model.dtype != torch.float32 and sampling.seed is not None and not sampling.is_greedy

    def _speculate(self, jobs: list[Job]) -> list[tuple[Job, TokenChoice | None]]:
        """One round of drafting and judging for each; several tokens may come of it."""
        can_share = self.options.batch_decode and self.model.batches_rows and self._draft_model.batches_rows
        company = [job for job in jobs if can_share and not self._must_repeat(job)]
        groups = [company, *([job] for job in jobs if job not in company)]
        decoded: list[tuple[Job, TokenChoice | None]] = []
        for group in filter(None, groups):
            for job in group:
                assert job.decoding is not None
                job.decoding.length = self._draft_length(job.generation, len(group))
            steps = [job.decoding.passes() for job in group if job.decoding is not None]
            for job, block in zip(group, run_together(steps, self._clock, self._pass_failed), strict=True):
                if isinstance(block, Exception):  # whatever it is, it is this request's alone
                    if is_out_of_memory(block):
                        self._free_all()
                    self._fail(job, self._translated(block))
                    continue
                self._counts["drafted_tokens"] += block.drafted
                self._counts["accepted_tokens"] += block.accepted
                decoded += [(job, choice) for choice in block.choices]
        return decoded

    def _decode_together(self, jobs: list[Job]) -> list[tuple[Job, TokenChoice | None]] | None:
        """One pass for all rows. None where it failed, with every cache as it was before."""
        if len(jobs) < 2:
            return None
        caches = [job.cache for job in jobs if job.cache is not None]
        samplers = [job.sampler for job in jobs if job.sampler is not None]
        before = [sampler.chance.getstate() for sampler in samplers]
        try:
            rows = [job.new_ids[-1:] for job in jobs]
            choices = choose(self.model.forward_rows(rows, caches), samplers)
        except Exception as error:  # one row may be to blame; alone, the others will do
            short_of_memory = is_out_of_memory(error)
        else:
            return list(zip(jobs, choices, strict=True))
        self._pass_failed(short_of_memory)
        for job, sampler, state in zip(jobs, samplers, before, strict=True):
            sampler.chance.setstate(state)
            assert job.cache is not None
            job.cache.keep_first(len(job.prompt) + len(job.new_ids) - 1)  # one token, which every layer can take back
        return None

    def _decode_one_by_one(self, jobs: list[Job]) -> list[tuple[Job, TokenChoice | None]]:
        decoded: list[tuple[Job, TokenChoice | None]] = []
        for job in jobs:
            assert job.cache is not None and job.sampler is not None
            try:
                choice = choose(self._forward(job.new_ids[-1:], job.cache), [job.sampler])[0]
            except Exception as error:  # whatever it is, it is this request's alone
                self._fail(job, self._translated(error))
            else:
                decoded.append((job, choice))
        return decoded

    def _accept(self, job: Job, choice: TokenChoice | None) -> None:
        """Take a new token into the request, tell its caller, and end the request where this was the last one."""
        if choice is None:
            self._fail(
                job,
                BackendError(
                    f"The model's logits are not finite after {job.fed} tokens. In float16 that is an overflow: "
                    "load the model with dtype='bfloat16' or 'float32'."
                ),
            )
            return
        if job.first_token_at is None:
            job.first_token_at = self._clock()
        job.new_ids.append(choice.token)
        self._counts["decoded_tokens"] += 1
        is_end = choice.token in self._stop_ids(job)
        text = ""
        if job.detokenizer is not None and job.stop_filter is not None and not is_end:
            try:
                text = job.stop_filter.push(job.detokenizer.push(choice.token))
            except Exception as error:  # a tokenizer may fail on ids it does not know
                self._fail(job, self._translated(error))
                return
        job.handle.put(Piece(choice, text))
        if is_end or (job.stop_filter is not None and job.stop_filter.stopped):
            self._end(job, "stop")
        elif len(job.new_ids) >= job.max_tokens:
            self._end(job, "length")

    # ---- ends ----

    def _end(self, job: Job, reason: FinishReason) -> None:
        held = job.stop_filter.flush() if job.stop_filter is not None else ""
        usage = self._usage(job)  # before the prompt is stored, which takes a while for a long one
        self._counts["cancelled" if reason == "cancelled" else "finished"] += 1
        cache = job.cache
        if cache is not None:
            cache.keep_first(min(cache.n_tokens, len(job.prompt) + len(job.new_ids)))  # a block may have been cut
            # Room for an answer that came out shorter would count against other prompts.
            with suppress(MemoryError, RuntimeError):  # no memory for a copy, which torch says with a RuntimeError
                cache = cache.without_room()
            self._prefixes.put(job.cached_ids, cache)
        self._release(job)
        job.handle.put(Done(reason, usage, held))

    def _fail(self, job: Job, error: RouterError) -> None:
        self._counts["failed"] += 1
        self._release(job)
        job.handle.put(error)

    def _fail_all(self, error: RouterError) -> None:
        self._take_inbox()
        for job in (*self._scheduler.waiting, *self._scheduler.running):
            with suppress(Exception):  # what is wrong with one must not keep the others waiting
                self._fail(job, error)

    def _release(self, job: Job) -> None:
        self._scheduler.drop(job)
        job.cache = job.sampler = job.decoding = None

    def _usage(self, job: Job) -> GenerationUsage:
        now = self._clock()
        started = job.started_at if job.started_at is not None else now
        first = job.first_token_at if job.first_token_at is not None else now
        return GenerationUsage(
            prompt_tokens=len(job.prompt),
            reused_tokens=job.reused_tokens,
            completion_tokens=len(job.new_ids),
            queue_s=started - job.submitted_at,
            prefill_s=first - started,
            decode_s=now - first,
            speculation=job.decoding.tally if job.decoding is not None else None,
        )

    def _pass_failed(self, short_of_memory: bool) -> None:
        """A pass over several rows failed, and will be tried again row by row."""
        self._counts["failed_passes"] += 1
        if short_of_memory:
            self._free_all()

    def _free_all(self) -> None:
        """Give back what nobody needs right now."""
        self._prefixes.evict(self._prefixes.nbytes)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _translated(self, error: Exception) -> RouterError:
        if isinstance(error, RouterError):
            return error
        if is_out_of_memory(error):
            return BackendUnavailable(
                f"{self.model.device} ran out of memory in a step; {gibibytes(self._guard.available())} are available. "
                "The request was ended and its memory freed. Try again, shorten the prompt, or lower chunk_tokens.",
                status=503,
            )
        return BackendError(f"The model failed on this request: {type(error).__name__}: {error}", status=500)


def usual_chunk_tokens(device: torch.device) -> int:
    """Tokens read in one step: enough to keep the device busy, few enough that others do not wait for seconds."""
    return 2048 if device.type == "cuda" else 512


def _closed() -> BackendUnavailable:
    return BackendUnavailable("The model runner was closed. Start it again.", status=503)
