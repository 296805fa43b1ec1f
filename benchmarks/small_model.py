"""A language model small enough to train in minutes on a CPU that answers from a text, in longroute's own prompts.

    python -m benchmarks.small_model [FOLDER]

Makes, where it is not there yet, an ordinary Hugging Face folder (build/small_model by default): a Llama with a chat
template and a tokenizer of its own, one token for each word of `key_values.py` and of the prompts. Nothing is
downloaded. The task is `key_values.py`'s. What a model of this size can do is to look a name up, to copy the sentence,
and to say in the words of the prompts that there is none; in the prompts of full context, retrieval, compression,
copying and reading in turn. Then measures how often it does, by length of the text. Writes results/small_model.md.

It starts from the weights of `primed_llama.py`. Texts grow step by step; several questions are asked of each text, one
after the other; at first some texts are repeated instead. Whether there is an answer decides a reply's first word in
some prompts, so that word weighs more, and its distance from the question grows, too (`bare`). At the end texts of all
lengths come in turn. Rotary angles with a long base let it find words at distances that it was not trained on.
"""

from __future__ import annotations

import json
import random
import re
import string
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longroute.router.core import Document, Message, Passage
from longroute.router.errors import RouterError
from longroute.router.prompts import (
    NO_EVIDENCE,
    REFUSAL,
    compressed_messages,
    copy_messages,
    evidence_messages,
    full_messages,
    manager_messages,
    part_text,
    rag_messages,
    worker_messages,
)
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.tokenizer import Tokenizer

from .key_values import Fact, Page, invented_facts, invented_page, words
from .machine import measured_on
from .primed_llama import Shape, primed_llama

FOLDER = Path(__file__).resolve().parents[1] / "build" / "small_model"
RESULTS = Path(__file__).parent / "results" / "small_model.md"
START, END, PAD, UNKNOWN = "<s>", "<|end|>", "<pad>", "<unk>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_MARKUP = (START, END, SYSTEM, USER, ASSISTANT)
LENGTHS = {250: 16, 1000: 16, 2000: 12, 4000: 12, 8000: 8}  # tokens of text → questions
_TRAINING = "training.json"  # written last
_SHORT = 1000  # tokens; longer texts are tried in the prompt of full context only
_SPACE = "\u2581"  # what stands for a space inside a token
_MISSING = _ASKED_ABOUT = 8  # people of each text: that may be asked for and are not there; that are asked for at most


@dataclass(frozen=True, slots=True)
class Level:
    """How hard the texts of a stage are. Counts of sentences are the most; each text draws its own, at least half.

    wrapped: share of texts in longroute's prompts, the others are bare. refused: share of questions whose answer is not
    there. echoed: share of texts that are repeated instead of asked about. behind: most words between a bare question
    and its reply. steps: most that are spent here.
    """

    facts: int
    fillers: int
    wrapped: float
    refused: float
    echoed: float
    behind: int
    steps: int


# Long texts have the fewest questions for their tokens, so most is learned on short ones.
GROWING = (
    Level(8, 6, wrapped=0.0, refused=0.4, echoed=0.2, behind=2, steps=100),
    Level(8, 6, wrapped=0.3, refused=0.4, echoed=0.0, behind=120, steps=150),
    Level(16, 24, wrapped=0.8, refused=0.4, echoed=0.0, behind=120, steps=160),
    Level(24, 60, wrapped=1.0, refused=0.3, echoed=0.0, behind=120, steps=120),
    Level(30, 120, wrapped=1.0, refused=0.3, echoed=0.0, behind=120, steps=60),
    Level(40, 240, wrapped=1.0, refused=0.3, echoed=0.0, behind=120, steps=90),
)
# A step has room for one long text only. After a round that ends with those, what is hard in short ones is lost again.
MIXED = (
    Level(8, 6, wrapped=0.6, refused=0.4, echoed=0.0, behind=120, steps=84),
    Level(16, 24, wrapped=0.9, refused=0.4, echoed=0.0, behind=120, steps=117),
    Level(24, 60, wrapped=1.0, refused=0.4, echoed=0.0, behind=120, steps=84),
    Level(40, 200, wrapped=1.0, refused=0.4, echoed=0.0, behind=120, steps=50),
)


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def tokenizer() -> Any:
    """A transformers tokenizer: a token for each word known beforehand, else characters, else bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = dict.fromkeys([PAD, UNKNOWN, *_MARKUP], 0.0)
    pieces |= dict.fromkeys([f"<0x{byte:02X}>" for byte in range(256)], -20.0)
    pieces |= dict.fromkeys([_SPACE, "\n", *string.digits, *string.ascii_letters, *string.punctuation], -10.0)
    for word in [*words(), *_prompt_words()]:
        pieces |= {word: -3.0, _SPACE + word: -3.0}
    own = Tokenizer(models.Unigram(list(pieces.items()), unk_id=1, byte_fallback=True))
    own.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never")
    own.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    own.add_special_tokens([AddedToken(name, special=True) for name in (PAD, UNKNOWN, *_MARKUP)])
    fast: Any = PreTrainedTokenizerFast  # untyped there
    return fast(
        tokenizer_object=own,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=TEMPLATE,
    )


def _prompt_words() -> list[str]:
    """The words of longroute's prompts and of the replies to them."""
    page = Page(("A",), (Fact("A", "A", "A"),))
    texts = [REFUSAL, NO_EVIDENCE]
    for form in FORMS.values():
        texts += [message.content for seed in range(8) for message in form.prompt(page, "a", "A", random.Random(seed))]
        texts += [form.found, form.missing]
    return sorted(set(re.findall(r"[A-Za-z]{2,}", re.sub(r"\b[0-9a-f]{16}\b", "", " ".join(texts)))))


# ---- what is trained on ----------------------------------------------------------------------------------------------

Prompt = Callable[[Page, str, str, random.Random], tuple[Message, ...]]  # of a page, its name, a question and chance


def _full(page: Page, name: str, question: str, rng: random.Random) -> tuple[Message, ...]:
    cut = rng.randrange(len(page.sentences)) if rng.random() < 0.3 else 0
    texts = [" ".join(part) for part in (page.sentences[:cut], page.sentences[cut:]) if part]
    return full_messages([Document(text, f"{name}-{number}") for number, text in enumerate(texts)], question)


def _compressed(page: Page, name: str, question: str, rng: random.Random) -> tuple[Message, ...]:
    return compressed_messages([Document(page.text, name)], question)


def _rag(page: Page, name: str, question: str, rng: random.Random) -> tuple[Message, ...]:
    return rag_messages(_passages(page, name, rng), question)


def _copy(page: Page, name: str, question: str, rng: random.Random) -> tuple[Message, ...]:
    return copy_messages([Document(page.text, name)], question)


def _evidence(page: Page, name: str, question: str, rng: random.Random) -> tuple[Message, ...]:
    few = [Passage(name, 0, 0, fact.sentence) for fact in rng.sample(page.facts, min(3, len(page.facts)))]
    return evidence_messages(few if rng.random() < 0.8 else (), [Document(page.text, name)], question)


def _worker(page: Page, name: str, question: str, rng: random.Random) -> tuple[Message, ...]:
    n = rng.randint(2, 9)
    part = part_text([Passage(name, 0, 0, page.text)], [Document(page.text, name)], f"Part {rng.randint(1, n)} of {n}.")
    notes = f'[1] "{_noted(page, question, rng).sentence}"' if rng.random() < 0.2 else ""
    return worker_messages(part, question, notes, may_finish=rng.random() < 0.5)


def _noted(page: Page, question: str, rng: random.Random) -> Fact:
    """What another part held: the answer, where this one does not have it."""
    return next((fact for fact in page.missing if fact.question == question), invented_facts(rng, 1)[0])


def _manager(page: Page, name: str, question: str, rng: random.Random) -> tuple[Message, ...]:
    few = rng.sample(page.facts, min(3, len(page.facts)))
    lines = [f'[{number}] "{fact.sentence}"' for number, fact in enumerate(few, start=1)]
    return manager_messages(["\n".join(lines) if rng.random() < 0.8 else ""], question)


def _passages(page: Page, name: str, rng: random.Random) -> list[Passage]:
    passages, sentences = [], list(page.sentences)
    while sentences:
        n = rng.randint(4, 20)
        passages.append(Passage(name, 0, 0, " ".join(sentences[:n])))
        del sentences[:n]
    return passages


@dataclass(frozen=True, slots=True)
class Form:
    """One of longroute's prompts and what to reply to it. found: around the sentence; missing: where there is none."""

    prompt: Prompt
    found: str = "{}"
    missing: str = REFUSAL


FORMS = {
    "full": Form(_full),
    "compressed": Form(_compressed),
    "rag": Form(_rag),
    "copy": Form(_copy, missing=NO_EVIDENCE),
    "evidence": Form(_evidence),
    "worker": Form(_worker, 'EVIDENCE: "{}"', "NOTHING"),
    "manager": Form(_manager),
}
BARE = ("full", "copy", "worker")  # forms whose questions are also put without the rest: one for each way to say no
_TEXTS_OF = (*FORMS, "copy", "worker")


def bare(form: Form, behind: int) -> Form:
    """A form without task and fences, and with the last of the words only that stand behind its question.

    Whether there is an answer is known at the question and has to be said at the beginning of the reply. A model that
    only ever sees the two far apart does not find out that they belong together.
    """

    def prompt(page: Page, name: str, question: str, rng: random.Random) -> tuple[Message, ...]:
        words = form.prompt(page, name, question, rng)[-1].content.rpartition(question)[2].split()
        kept = " ".join(words[-round(behind ** rng.random()) :])
        return (Message("user", f"{page.text}{_ASKED}{question}\n\n{kept}".rstrip()),)

    return replace(form, prompt=prompt)


@dataclass(frozen=True, slots=True)
class Row:
    """ids: of the tokens. predicted: stretches that are to be predicted. is_echo: they are no replies."""

    ids: list[int]
    predicted: tuple[range, ...]
    is_echo: bool = False


class Lessons:
    """Rows to train on. Token ids of one tokenizer; chance from one generator."""

    def __init__(self, own: Any, rng: random.Random) -> None:
        self._tokenizer, self._rng = own, rng

    def row(self, level: Level) -> Row:
        rng = self._rng
        facts, fillers = (rng.randint((most + 1) // 2, most) for most in (level.facts, level.fillers))
        page = invented_page(rng, facts, fillers, _MISSING)
        if rng.random() < level.echoed:
            return self._echo(page)
        if rng.random() < level.wrapped:
            return self._asked(page, FORMS[rng.choice(_TEXTS_OF)], level)
        return self._asked(page, bare(FORMS[rng.choice(BARE)], level.behind), level)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _echo(self, page: Page) -> Row:
        again = self._rng.sample(page.sentences, min(12, len(page.sentences)))
        first, second = self.ids(START + page.text), self.ids(" " + " ".join(again))
        return Row(first + second, (range(len(first), len(first) + len(second)),), is_echo=True)

    def _asked(self, page: Page, form: Form, level: Level) -> Row:
        """A prompt and its reply, then more questions on the same text, each put as the prompt puts its question."""
        rng = self._rng
        pairs = zip(rng.sample(page.facts, min(_ASKED_ABOUT, len(page.facts))), page.missing, strict=False)
        asked = [other if rng.random() < level.refused else fact for fact, other in pairs]
        name, seed = f"document-{rng.randint(1, 9)}", rng.random()
        ids: list[int] = []
        replies = []
        shown = ""
        for fact in asked:
            messages = form.prompt(page, name, fact.question, random.Random(seed))  # the same text each time
            if ids:
                turn = f"{USER}Question: {messages[-1].content.rpartition(_ASKED)[2]}{END}"
            else:
                shown = messages[-1].content.rpartition(_ASKED)[0]
                turn = START + "".join(f"<|{message.role}|>{message.content}{END}" for message in messages)
            reply = form.found.format(fact.sentence) if fact.sentence in shown else form.missing
            before, new = self.ids(turn + ASSISTANT), self.ids(reply + END)
            replies.append(range(len(ids) + len(before), len(ids) + len(before) + len(new)))
            ids += before + new
        return Row(ids, tuple(replies))


_ASKED = "\n\nQuestion: "


# ---- training --------------------------------------------------------------------------------------------------------

_STEP_TOKENS = 4000
_WARM_UP = 20  # steps
_FIRST = 5.0  # weight of a reply's first token, which for some forms is where it is said whether there is an answer
_RATES = (0.02, 0.003)  # of Muon for the matrices, of AdamW for the rest
_MIXED_RATE = 0.7  # of those at the beginning of the last round
_ENOUGH, _LEAST = 0.985, 0.5  # share of the tokens of replies that are right: to go on early, and at the end
_OFTEN = 0.8  # share of texts of the level that was reached; the others are easier


def trained(
    own: Any,
    *,
    seed: int = 0,
    growing: Sequence[Level] = GROWING,
    mixed: Sequence[Level] = MIXED,
    shape: Shape | None = None,
) -> Any:
    """A transformers model. Prints a line every 25 steps; raises RouterError where it did not learn.

    Two rounds, at the end of each of which the rate falls to nothing: texts that grow, then texts of all lengths in
    random order.
    """
    torch.manual_seed(seed)
    model = primed_llama(
        shape or Shape(),
        len(own),
        torch.Generator().manual_seed(seed),
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
    )
    lessons = Lessons(own, random.Random(seed))
    _grow(model, lessons, growing, random.Random(f"growing {seed}"))
    right = _mix(model, lessons, mixed, random.Random(f"mixed {seed}"))
    if right < _LEAST:
        raise RouterError(f"After training the model finds only {right:.0%} of the answers; try another seed.")
    return model.eval()


def _grow(model: Any, lessons: Lessons, levels: Sequence[Level], rng: random.Random) -> None:
    """Level by level, on to the next early where nearly everything is right."""
    optimizers = _optimizers(model)
    steps = 0
    for at, top in enumerate(levels):
        is_last, right = at == len(levels) - 1, 0.0
        for step in range(top.steps):
            steps += 1
            rate = min(1.0, steps / _WARM_UP, 1 - step / top.steps if is_last else 1.0)
            level = top if rng.random() < _OFTEN else levels[rng.randint(0, at)]
            loss, share = _learn(model, optimizers, list(_rows(lessons, level)), rate)
            if share is not None and level is top:
                right = 0.9 * right + 0.1 * share
            _say(steps, f"level {at} loss {loss:.3f} right {right:.3f}")
            if right > _ENOUGH and not is_last:
                break


def _mix(model: Any, lessons: Lessons, levels: Sequence[Level], rng: random.Random) -> float:
    """All levels in random order, each for its steps. The share of the tokens of replies that are right at the end."""
    optimizers = _optimizers(model)
    order = [level for level in levels for _ in range(level.steps)]
    rng.shuffle(order)
    right = 0.0
    for step, level in enumerate(order):
        rate = _MIXED_RATE * min((step + 1) / _WARM_UP, 1 - step / len(order))
        loss, share = _learn(model, optimizers, list(_rows(lessons, level)), rate)
        if share is not None:
            right = 0.9 * right + 0.1 * share
        _say(step + 1, f"mixed loss {loss:.3f} right {right:.3f}")
    return right


def _say(step: int, what: str) -> None:
    if step % 25 == 0:
        print(f"step {step} {what}, {time.process_time():.0f} s of processor", flush=True)


def _optimizers(model: Any) -> list[torch.optim.Optimizer]:
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in model.named_parameters():
        is_matrix = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if is_matrix else rest).append(weight)
    return [
        torch.optim.Muon(matrices, lr=_RATES[0], weight_decay=0.0),
        torch.optim.AdamW(rest, lr=_RATES[1], betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _rows(lessons: Lessons, level: Level) -> Iterator[Row]:
    longest, n = 0, 0
    while n == 0 or (n + 1) * longest <= _STEP_TOKENS:
        row = lessons.row(level)
        longest, n = max(longest, len(row.ids)), n + 1
        yield row


def _learn(
    model: Any, optimizers: Sequence[torch.optim.Optimizer], rows: Sequence[Row], rate: float
) -> tuple[float, float | None]:
    """One step; (loss, share of the replies' tokens that were predicted, or None where rows hold no replies)."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True)
    stretches = [(number, stretch) for number, row in enumerate(rows) for stretch in row.predicted]
    where = torch.cat([torch.tensor([[n] * len(stretch), list(stretch)]) for n, stretch in stretches], dim=1)
    wanted = ids[where[0], where[1]]
    with torch.autocast("cpu", torch.bfloat16):
        hidden: Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits: Tensor = model.lm_head(hidden[where[0], where[1] - 1]).float()
    weights = torch.cat(
        [torch.tensor([1.0 if rows[n].is_echo else _FIRST] + [1.0] * (len(s) - 1)) for n, s in stretches]
    )
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    for optimizer, usual in zip(optimizers, _RATES, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = usual * rate
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    is_reply = torch.cat([torch.full((len(stretch),), not rows[n].is_echo) for n, stretch in stretches])
    right = (logits.argmax(-1) == wanted)[is_reply]
    return loss.item(), right.float().mean().item() if len(right) else None


# ---- what it can do --------------------------------------------------------------------------------------------------


def reply(model: LanguageModel, tokenizer: Tokenizer, messages: Sequence[Message], most: int = 48) -> str:
    """The model's own words at temperature 0."""
    ids = tokenizer.chat_ids([{"role": message.role, "content": message.content} for message in messages])
    cache, new = model.new_cache(len(ids) + most), list(ids)
    answer: list[int] = []
    while len(answer) < most:
        token = int(model.forward(model.tokens(new), cache)[0, -1].argmax())
        if token in model.eos_ids:
            break
        answer.append(token)
        new = [token]
    return tokenizer.decode(answer)


def page_of(rng: random.Random, n_tokens: int) -> Page:
    """A text of about that many tokens: an eighth of its sentences are facts, at most 100."""
    sentences = max(4, round(n_tokens / 11))
    facts = min(100, max(2, sentences // 8))
    return invented_page(rng, facts, sentences - facts, _MISSING)


def accuracy(
    model: LanguageModel,
    tokenizer: Tokenizer,
    form: Form,
    n_tokens: int,
    *,
    questions: int,
    missing: bool,
    seed: int = 1,
) -> float:
    """Share of questions with exactly the wanted reply, each on a text of its own."""
    right = 0
    for number in range(questions):
        rng = random.Random(f"{n_tokens} {number}")
        page = page_of(rng, n_tokens)
        fact = rng.choice(page.missing if missing else page.facts)
        messages = form.prompt(page, "document-1", fact.question, rng)
        there = fact.sentence in messages[-1].content.rpartition(_ASKED)[0]
        right += reply(model, tokenizer, messages) == (form.found.format(fact.sentence) if there else form.missing)
    return right / questions


def make(folder: Path = FOLDER) -> Path:
    """The folder of the model; trained first where it is not there yet."""
    if not (folder / _TRAINING).exists():
        own, started = tokenizer(), time.process_time()
        model = trained(own)
        own.save_pretrained(folder)
        model.save_pretrained(folder)
        (folder / _TRAINING).write_text(json.dumps({"processor_s": round(time.process_time() - started)}))
    return folder


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    minutes = json.loads((make(folder) / _TRAINING).read_text())["processor_s"] / 60
    model, own = LanguageModel.load(folder, device="cpu"), Tokenizer.load(folder)
    lines = [
        "# A small model that answers from a text\n",
        f"{model.weight_bytes / 4e6:.1f} million weights, trained in {minutes:.1f} minutes of one core on texts of up "
        f"to {_longest_training():,} tokens. Share of questions with exactly the wanted reply, each on a text of its "
        f"own, at temperature 0; {', '.join(map(str, LENGTHS.values()))} questions for the lengths in turn. An eighth "
        "of the sentences are facts, at most 100.\n",
        "| prompt | the answer is | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |",
        "|---|---|" + "---:|" * len(LENGTHS),
    ]
    for name, form in FORMS.items():
        for missing in (False, True):
            shown = [length for length in LENGTHS if name == "full" or length <= _SHORT]
            shares = [
                accuracy(model, own, form, length, questions=LENGTHS[length], missing=missing) for length in shown
            ]
            cells = [f"{share:.2f}" for share in shares] + [""] * (len(LENGTHS) - len(shown))
            lines.append(f"| {name} | {'missing' if missing else 'there'} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    lines.append(f"\n{'; '.join(measured_on('torch', 'transformers').values())}")
    RESULTS.write_text("\n".join(lines) + "\n")


def _longest_training() -> int:
    page = invented_page(random.Random(0), GROWING[-1].facts, GROWING[-1].fillers)
    return len(Lessons(tokenizer(), random.Random(0)).ids(page.text))


if __name__ == "__main__":
    main()
