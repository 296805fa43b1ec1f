"""Does the proxy find the long text in a request, exactly, and leave alone what it must?

    python -m benchmarks.proxy_locate            # the development half
    python -m benchmarks.proxy_locate --held-out # both halves; writes results/proxy_locate.md

Requests are built: real documents and questions (see `data.py`), put into request shapes of four APIs by hand-written
wording. The two halves share neither documents nor wording. The development half was looked at while the rules were
written; the held-out half was written before them and run when they were done. Wording by one author is kinder than the
world's, in both halves: read the held-out numbers as an upper bound.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from longroute.router.proxy.anthropic import read_messages
from longroute.router.proxy.locate import locate
from longroute.router.proxy.openai import read_chat, read_completion, read_responses
from longroute.router.proxy.texts import Api, LeftAlone, Located, Text

from .data import data_directory, records
from .machine import measured_on

RESULTS = Path(__file__).parent / "results" / "proxy_locate.md"
INTRODUCTION = """
Requests are built from real documents and questions (development: loogle, contractnli, qmsum, xquad in German,
English and Spanish, multihop, locomo; held-out: lara, squality, bamboo, xquad in Russian, Arabic and Chinese, other
passages of multihop, other conversations of locomo) in hand-written wording. The halves share neither documents nor
wording. The rules were written while looking at the development half; the wording of the held-out half was written
before them, by the same author, and the half was first run when they were done: recall 0.976, exact 0.955. Then,
for safety and not because of its failures, a second question near the ends of a text began to leave a request alone
or to stay outside: recall 0.931, exact 0.919. That sum was seen, and two rules were made less eager to see
questions (a statement that begins with "when"), with no look at single held-out requests; the table is from after
that. One author's wording is kinder than the world's: read the held-out numbers as an upper bound.

Located: how many requests of a shape were located; of those to leave alone none should be. Documents exact:
requests in which the documents found are, to the character, those put in. Characters left out of the documents, or
too much, are over the whole row. Contained: the question put in is part of the one found. Times: reading the parsed
body and locating (not parsing).
"""
READERS = {"chat": read_chat, "completions": read_completion, "responses": read_responses, "messages": read_messages}
Half = Literal["development", "held-out"]
APIS: tuple[Api, ...] = ("chat", "messages", "responses")


# ---- requests, whatever their API ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    text: str
    kind: Literal["text", "document", "image"] = "text"
    mark: str = ""


@dataclass(frozen=True)
class Turn:
    role: Literal["user", "assistant", "tool"]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Sketch:
    """A request before it is written for an API, and what should be found in it; no documents: nothing should."""

    turns: tuple[Turn, ...]
    system: str = ""
    documents: tuple[str, ...] = ()
    question: str = ""
    tools: bool = False


@dataclass(frozen=True)
class Material:
    """A long text with a question on it, and short passages with a question on them."""

    text: str
    question: str
    language: str
    passages: tuple[str, ...]
    follow_up: str  # a second question on the same text
    turns: tuple[str, ...] = ()  # of a conversation, where the text is one


def user(*texts: str) -> Turn:
    return Turn("user", tuple(Part(text) for text in texts))


def assistant(text: str) -> Turn:
    return Turn("assistant", (Part(text),))


def tool(text: str) -> Turn:
    return Turn("tool", (Part(text),))


def write(sketch: Sketch, api: Api) -> bytes:
    return orjson.dumps(WRITERS[api](sketch))


def _write_chat(sketch: Sketch) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": sketch.system}] if sketch.system else []
    for number, turn in enumerate(sketch.turns):
        if turn.role == "tool":
            call = {"id": f"call_{number}", "type": "function", "function": {"name": "read", "arguments": "{}"}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": turn.parts[0].text})
        else:
            messages.append({"role": turn.role, "content": _content(turn, "text")})
    return {"model": "gpt-4o", "messages": messages, **_tools(sketch)}


def _write_responses(sketch: Sketch) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for number, turn in enumerate(sketch.turns):
        if turn.role == "tool":
            call = {"call_id": f"call_{number}", "name": "read", "arguments": "{}"}
            items.append({"type": "function_call", **call})
            items.append({"type": "function_call_output", "call_id": call["call_id"], "output": turn.parts[0].text})
        else:
            kind = "input_text" if turn.role == "user" else "output_text"
            items.append({"type": "message", "role": turn.role, "content": _content(turn, kind)})
    body = {"model": "gpt-4o", "input": items, "store": False, **_tools(sketch)}
    return {**body, "instructions": sketch.system} if sketch.system else body


def _write_messages(sketch: Sketch) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(sketch.turns):
        if turn.role == "tool":
            use = {"type": "tool_use", "id": f"t_{number}", "name": "read", "input": {}}
            result = {"type": "tool_result", "tool_use_id": f"t_{number}", "content": turn.parts[0].text}
            messages.append({"role": "assistant", "content": [use]})
            messages.append({"role": "user", "content": [result]})
        else:
            messages.append({"role": turn.role, "content": _content(turn, "text", documents=True)})
    body = {"model": "claude-sonnet-4-5", "max_tokens": 500, "messages": messages, **_tools(sketch)}
    return {**body, "system": sketch.system} if sketch.system else body


def _write_completion(sketch: Sketch) -> dict[str, Any]:
    said = "\n\n".join(part.text for turn in sketch.turns for part in turn.parts)
    return {"model": "local", "prompt": f"{sketch.system}\n\n{said}" if sketch.system else said}


WRITERS: dict[Api, Callable[[Sketch], dict[str, Any]]] = {
    "chat": _write_chat,
    "responses": _write_responses,
    "messages": _write_messages,
    "completions": _write_completion,
}


def _tools(sketch: Sketch) -> dict[str, Any]:
    return {"tools": [{"name": "read", "parameters": {}}]} if sketch.tools else {}


def _content(turn: Turn, kind: str, *, documents: bool = False) -> object:
    if len(turn.parts) == 1 and turn.parts[0].kind == "text" and not turn.parts[0].mark:
        return turn.parts[0].text
    return [_part(part, kind, documents) for part in turn.parts]


def _part(part: Part, kind: str, documents: bool) -> dict[str, Any]:
    if part.kind == "image":
        return {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    if part.kind == "document" and documents:
        source = {"type": "text", "media_type": "text/plain", "data": part.text}
        return {"type": "document", "title": "file.txt", "source": source}
    marked = {"longroute": part.mark} if part.mark else {}
    return {"type": kind, "text": part.text, **marked}


# ---- wording ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wording:
    """What applications say around documents. `{q}` is the question."""

    tags: tuple[str, ...]
    before: tuple[str, ...]  # said before a document that follows
    after: tuple[str, ...]  # the question, said after the document
    asked_first: tuple[str, ...]  # the question, said before the document
    labels: dict[str, tuple[tuple[str, str], ...]]  # by language: for the document, for the question
    manner: tuple[str, ...]  # how to answer, in a paragraph of its own
    system: tuple[str, ...]
    system_document: tuple[str, ...]  # the beginning of a system text that ends with the document
    received: tuple[str, ...]  # the assistant has read it
    rulers: tuple[tuple[str, str], ...]
    fences: tuple[tuple[str, str], ...]
    quotes: tuple[str, ...]
    lists: tuple[tuple[str, str, str], ...]  # several documents: before all, around each ({n}, {d}), after all
    tasks: tuple[str, ...]  # that need every word
    tasks_after: tuple[str, ...]  # the same, said after the text
    task_systems: tuple[str, ...]  # the same, as system text; the user message is the text alone
    code_tasks: tuple[str, ...]
    data_tasks: tuple[str, ...]
    agent_tasks: tuple[str, ...]
    small_talk: tuple[str, ...]
    leaning: tuple[str, ...]  # last words that mean nothing without the turns before


DEVELOPMENT = Wording(
    tags=("document", "context", "text", "article", "report"),
    before=(
        "Here is a document:",
        "Read the following text carefully.",
        "I will paste a report below.",
        "Lies den folgenden Text:",
    ),
    after=(
        "{q}",
        "Question: {q}",
        "Based on the text above, {q}",
        "Using only the document above, answer this question: {q}",
        "Beantworte folgende Frage zum obigen Text: {q}",
    ),
    asked_first=(
        "{q}",
        "Answer the question using the text below.\n\n{q}",
        "Please answer this question from the following document: {q}",
        "{q} Here is the text:",
        "Beantworte die Frage anhand des folgenden Textes: {q}",
    ),
    labels={
        "en": (("Context:", "Question:"), ("Document:", "Q:"), ("Text:", "Question:")),
        "de": (("Text:", "Frage:"), ("Kontext:", "Frage:")),
        "es": (("Texto:", "Pregunta:"), ("Contexto:", "Pregunta:")),
        "zh": (("文本：", "问题："), ("上下文：", "问题：")),
    },
    manner=(
        "Answer in one sentence.",
        "If the answer is not in the text, say so.",
        "Be brief and cite the passage you used.",
    ),
    system=("You are a helpful assistant.", "You answer questions about documents. Be concise.", ""),
    system_document=(
        "You are an assistant that answers questions about the following document.",
        "Answer the user's questions using only this text:",
    ),
    received=("I have read the document. What would you like to know?", "Thanks, I'm ready for your questions."),
    rulers=(("---", "---"), ("=====", "====="), ("--- BEGIN DOCUMENT ---", "--- END DOCUMENT ---")),
    fences=(("```", "```"), ("```text", "```"), ("~~~", "~~~")),
    quotes=('"""', "'''"),
    lists=(
        (
            "<documents>\n",
            '<document index="{n}">\n<source>file{n}.txt</source>\n'
            "<document_content>\n{d}\n</document_content>\n</document>\n",
            "</documents>",
        ),
        ("", "<doc id='{n}'>\n{d}\n</doc>\n", ""),
        ("", "Document {n}:\n{d}\n\n", ""),
        ("", "[{n}] {d}\n\n", ""),
    ),
    tasks=(
        "Translate the following text into French:",
        "Please proofread this and fix all typos:",
        "Rewrite the text below in simpler language.",
        "Can you convert this report to Markdown?",
        "Extract all names and dates from the text as JSON.",
        'How many times does the word "the" occur in the text?',
        "Übersetze den folgenden Text ins Englische:",
        "Réécris le texte suivant dans un style plus formel :",
        "Traduce el siguiente texto al inglés:",
        "请把下面的文章翻译成英文：",
    ),
    tasks_after=(
        "Translate the text above to German.",
        "Correct the spelling and grammar of the text above.",
        "Continue the story.",
        "Paraphrase the above, keeping its length.",
        "Bitte korrigiere die Rechtschreibung im obigen Text.",
    ),
    task_systems=(
        "You are a professional translator. Translate everything the user sends into Spanish.",
        "You are a copy editor. Return the user's text with all errors corrected.",
        "Convert the user's text to clean HTML. Output nothing else.",
    ),
    code_tasks=(
        "Fix the bug in this file:",
        "Refactor this code to use dataclasses.",
        "Add type hints to every function below. Return the whole file.",
        "Why does this code raise a KeyError? Give me the corrected version.",
    ),
    data_tasks=(
        "Convert this JSON to CSV.",
        "Sort these rows by the second column and return all of them.",
        "Validate each record and return the invalid ones as JSON.",
    ),
    agent_tasks=("The tests in test_app.py fail. Please fix them.", "Implement the missing login command."),
    small_talk=("What is the capital of France?", "Write a limerick about rain.", "Hi!"),
    leaning=("And why is that?", "Are you sure?", "Go on."),
)

HELD_OUT = Wording(
    tags=("source", "passage", "transcript", "content", "paper", "input_text"),
    before=(
        "Below you will find the text I am interested in.",
        "Please read this first:",
        "The following is an excerpt from our archive:",
        "Voici le texte :",
    ),
    after=(
        "{q}",
        "Given the above, {q}",
        "My question: {q}",
        "According to the passage, {q} Reply with a short answer.",
        "With reference to the material provided above, please tell me: {q}",
        "Responde a la siguiente pregunta sobre el texto anterior: {q}",
    ),
    asked_first=(
        "{q}",
        "I need to know the following: {q} The source is below.",
        "Use the passage that follows to answer. {q}",
        "Query: {q}\n\nUse this material:",
        "Réponds à la question suivante à partir du texte ci-dessous : {q}",
    ),
    labels={
        "en": (("Passage:", "Question:"), ("Source:", "Query:"), ("Article:", "My question:")),
        "ru": (("Текст:", "Вопрос:"), ("Контекст:", "Вопрос:")),
        "ar": (("النص:", "السؤال:"), ("السياق:", "السؤال:")),
        "zh": (("文章：", "问题："), ("材料：", "请回答：")),
        "es": (("Documento:", "Pregunta:"), ("Texto:", "Pregunta:")),
    },
    manner=(
        "Keep the answer under 30 words.",
        "Don't use outside knowledge; reply \"unknown\" when the text doesn't tell.",
        "Quote the sentence that supports your answer.",
    ),
    system=("You are Ada, the support bot of a library.", "Respond in plain language and stay polite.", ""),
    system_document=(
        "You help employees with questions on the text that follows. Never make things up.",
        "The text below is your only source of knowledge:",
    ),
    received=("Got it. Ask away.", "Understood, I've gone through all of it."),
    rulers=(("***", "***"), ("--------", "--------"), ("=== START OF TEXT ===", "=== END OF TEXT ===")),
    fences=(("````", "````"), ("```md", "```"), ("```txt", "```")),
    quotes=('"""', "'''"),
    lists=(
        (
            "<search_results>\n",
            '<result number="{n}">\n<title>Item {n}</title>\n<body_text>{d}</body_text>\n</result>\n',
            "</search_results>",
        ),
        ("", "<passage_{n}>{d}</passage_{n}>\n", ""),
        ("Sources\n\n", "Source {n}: {d}\n\n", ""),
        ("", "### Passage {n}\n{d}\n\n", ""),
    ),
    tasks=(
        "I'd like this in Dutch, please translate it:",
        "Polish the wording of this draft, sentence by sentence:",
        "Could you rephrase the passage below for children?",
        "Reformat the text as a bulleted outline without dropping anything:",
        "List every single person, place and organisation mentioned, with each occurrence:",
        "Count the words in this text.",
        "Redact all personal names from the following:",
        "Переведи этот текст на английский:",
        "Corrige las faltas de ortografía del siguiente texto:",
        "Traduisez ce qui suit en anglais :",
        "请润色以下文章：",
    ),
    tasks_after=(
        "Now put all of this into Italian.",
        "Please return the text with punctuation fixed.",
        "Write the next chapter.",
        "Turn this into a screenplay, keeping every line of dialogue.",
        "Traduis le texte ci-dessus en anglais.",
    ),
    task_systems=(
        "Act as a translation engine: render the input in Portuguese.",
        "Your job is to proofread. Reply with the corrected text only.",
        "Transform whatever you are given into JSON with one object per sentence.",
    ),
    code_tasks=(
        "There's an off-by-one error somewhere here, please repair it.",
        "Port this module to TypeScript.",
        "Write unit tests that cover every branch of the code below.",
        "Clean this up and give me the full file back.",
    ),
    data_tasks=(
        "Turn these records into a Markdown table.",
        "Deduplicate the list and give back the rest.",
        "Normalise the phone numbers in every row.",
    ),
    agent_tasks=("Make the CLI accept a --quiet flag.", "Rename the class Flask to App everywhere."),
    small_talk=("How do I boil an egg?", "Give me three names for a cat.", "Thanks!"),
    leaning=("Why?", "What do you mean by that?", "Continue."),
)


# ---- shapes ----------------------------------------------------------------------------------------------------------

Build = Callable[[Material, Wording, random.Random], Sketch]


def _one(text: str, m: Material, w: Wording, r: random.Random) -> Sketch:
    return Sketch((user(text),), r.choice(w.system), (m.text,), m.question)


def _tagged_first(m: Material, w: Wording, r: random.Random) -> Sketch:
    tag, asked = r.choice(w.tags), r.choice(w.after).format(q=m.question)
    return _one(f"<{tag}>\n{m.text}\n</{tag}>\n\n{asked}", m, w, r)


def _tagged_last(m: Material, w: Wording, r: random.Random) -> Sketch:
    tag, asked = r.choice(w.tags), r.choice(w.asked_first).format(q=m.question)
    return _one(f'{asked}\n\n<{tag} name="a">\n{m.text}\n</{tag}>\n\n{r.choice(w.manner)}', m, w, r)


def _fenced(m: Material, w: Wording, r: random.Random) -> Sketch:
    opening, closing = r.choice(w.fences)
    asked = r.choice(w.after).format(q=m.question)
    return _one(f"{r.choice(w.before)}\n\n{opening}\n{m.text}\n{closing}\n\n{asked}", m, w, r)


def _quoted(m: Material, w: Wording, r: random.Random) -> Sketch:
    mark, asked = r.choice(w.quotes), r.choice(w.asked_first).format(q=m.question)
    return _one(f"{asked}\n\n{mark}\n{m.text}\n{mark}", m, w, r)


def _ruled(m: Material, w: Wording, r: random.Random) -> Sketch:
    (opening, closing), asked = r.choice(w.rulers), r.choice(w.after).format(q=m.question)
    return _one(f"{r.choice(w.before)}\n\n{opening}\n{m.text}\n{closing}\n\n{asked}", m, w, r)


def _labelled(m: Material, w: Wording, r: random.Random) -> Sketch:
    of_text, of_question = r.choice(w.labels.get(m.language, w.labels["en"]))
    gap, manner = r.choice(("\n", " ", "\n\n")), r.choice((*w.manner, ""))
    text = f"{of_text}{gap}{m.text}\n\n{of_question} {m.question}"
    return _one(f"{manner}\n\n{text}" if manner else text, m, w, r)


def _labelled_question_first(m: Material, w: Wording, r: random.Random) -> Sketch:
    of_text, of_question = r.choice(w.labels.get(m.language, w.labels["en"]))
    return _one(f"{of_question} {m.question}\n\n{of_text}\n{m.text}", m, w, r)


def _pasted_before(m: Material, w: Wording, r: random.Random) -> Sketch:
    return _one(f"{m.text}\n\n{r.choice(w.after).format(q=m.question)}", m, w, r)


def _pasted_before_one_break(m: Material, w: Wording, r: random.Random) -> Sketch:
    return _one(f"{m.text}\n{r.choice(w.after).format(q=m.question)}", m, w, r)


def _pasted_after(m: Material, w: Wording, r: random.Random) -> Sketch:
    return _one(f"{r.choice(w.asked_first).format(q=m.question)}\n\n{m.text}", m, w, r)


def _pasted_between(m: Material, w: Wording, r: random.Random) -> Sketch:
    asked = r.choice(w.after).format(q=m.question)
    return _one(f"{r.choice(w.before)}\n\n{m.text}\n\n{asked}\n\n{r.choice(w.manner)}", m, w, r)


def _own_part(m: Material, w: Wording, r: random.Random) -> Sketch:
    texts = [m.text, r.choice(w.after).format(q=m.question)]
    return Sketch((user(*(texts if r.random() < 0.6 else texts[::-1])),), r.choice(w.system), (m.text,), m.question)


def _document_part(m: Material, w: Wording, r: random.Random) -> Sketch:
    parts = (Part(m.text, "document"), Part(m.question), *([Part("", "image")] if r.random() < 0.2 else []))
    return Sketch((Turn("user", parts),), r.choice(w.system), (m.text,), m.question)


def _earlier_turn(m: Material, w: Wording, r: random.Random) -> Sketch:
    turns = (user(f"{r.choice(w.before)}\n\n{m.text}"), assistant(r.choice(w.received)), user(m.question))
    return Sketch(turns, r.choice(w.system), (m.text,), m.question)


def _follow_up(m: Material, w: Wording, r: random.Random) -> Sketch:
    tag = r.choice(w.tags)
    first = user(f"<{tag}>\n{m.text}\n</{tag}>\n\n{m.follow_up}")
    turns = (first, assistant("The text says so in its second part."), user(m.question))
    return Sketch(turns, r.choice(w.system), (m.text,), m.question)


def _system_tagged(m: Material, w: Wording, r: random.Random) -> Sketch:
    tag = r.choice(w.tags)
    system = f"{r.choice(w.system_document)}\n\n<{tag}>\n{m.text}\n</{tag}>\n\n{r.choice(w.manner)}"
    return Sketch((user(m.question),), system, (m.text,), m.question)


def _system_pasted(m: Material, w: Wording, r: random.Random) -> Sketch:
    return Sketch((user(m.question),), f"{r.choice(w.system_document)}\n\n{m.text}", (m.text,), m.question)


def _tool_result(m: Material, w: Wording, r: random.Random) -> Sketch:
    return Sketch((user(m.question), tool(m.text)), r.choice(w.system), (m.text,), m.question, tools=True)


def _several(m: Material, w: Wording, r: random.Random) -> Sketch:
    before, around, after = r.choice(w.lists)
    listed = before + "".join(around.format(n=n, d=d) for n, d in enumerate(m.passages, 1)) + after
    text = f"{listed.rstrip()}\n\n{r.choice(w.after).format(q=m.question)}"
    return Sketch((user(text),), r.choice(w.system), m.passages, m.question)


def _conversation(m: Material, w: Wording, r: random.Random) -> Sketch:
    turns = tuple(user(text) if i % 2 == 0 else assistant(text) for i, text in enumerate(m.turns))
    return Sketch((*turns, user(m.question)), r.choice(w.system), m.turns[:-4], m.question)


def _marked(m: Material, w: Wording, r: random.Random) -> Sketch:
    parts = (Part(m.text, mark="document"), Part(m.question, mark="question"))
    return Sketch((Turn("user", parts),), r.choice(w.system), (m.text,), m.question)


POSITIVES: dict[str, Build] = {
    "tags, question after": _tagged_first,
    "tags, question before": _tagged_last,
    "fences": _fenced,
    "triple quotes": _quoted,
    "rulers": _ruled,
    "labels": _labelled,
    "labels, question first": _labelled_question_first,
    "pasted before the question": _pasted_before,
    "pasted, a single line break": _pasted_before_one_break,
    "pasted after the question": _pasted_after,
    "pasted between instructions": _pasted_between,
    "a part of its own": _own_part,
    "document part": _document_part,
    "earlier turn": _earlier_turn,
    "earlier turn, follow-up": _follow_up,
    "system, tagged": _system_tagged,
    "system, pasted": _system_pasted,
    "tool result": _tool_result,
    "several documents": _several,
    "conversation": _conversation,
    "marked": _marked,
}


def _task(m: Material, w: Wording, r: random.Random) -> Sketch:
    tag, task = r.choice(w.tags), r.choice(w.tasks)
    text = f"<{tag}>\n{m.text}\n</{tag}>" if r.random() < 0.5 else m.text
    return Sketch((user(f"{task}\n\n{text}"),), r.choice(w.system))


def _task_after(m: Material, w: Wording, r: random.Random) -> Sketch:
    return Sketch((user(f"{m.text}\n\n{r.choice(w.tasks_after)}"),), r.choice(w.system))


def _task_in_system(m: Material, w: Wording, r: random.Random) -> Sketch:
    return Sketch((user(m.text),), r.choice(w.task_systems))


def _task_on_earlier_text(m: Material, w: Wording, r: random.Random) -> Sketch:
    first = user(f"{r.choice(w.before)}\n\n{m.text}")
    return Sketch((first, assistant(r.choice(w.received)), user(r.choice(w.tasks_after))), r.choice(w.system))


def _no_question(m: Material, w: Wording, r: random.Random) -> Sketch:
    return Sketch((user(m.text),), "You are a helpful assistant.")


def _code_edit(m: Material, w: Wording, r: random.Random) -> Sketch:
    code = CODE * 8
    text = f"{r.choice(w.code_tasks)}\n\n" + (f"```python\n{code}\n```" if r.random() < 0.5 else code)
    return Sketch((user(text),), r.choice(w.system))


def _data(m: Material, w: Wording, r: random.Random) -> Sketch:
    rows = [{"id": i, "name": f"Person {i}", "city": "Oslo", "phone": f"+47 {i:08}"} for i in range(900)]
    data = orjson.dumps(rows).decode() if r.random() < 0.5 else "\n".join(",".join(map(str, x.values())) for x in rows)
    return Sketch((user(f"{r.choice(w.data_tasks)}\n\n{data}"),), r.choice(w.system))


def _few_shot(m: Material, w: Wording, r: random.Random) -> Sketch:
    shots = "\n\n".join(f"Input: {passage}\nOutput: {passage.split(' ', 1)[0]}" for passage in m.passages)
    return Sketch((user(f"{shots}\n\nInput: {m.question}\nOutput:"),), r.choice(w.system))


def _few_shot_turns(m: Material, w: Wording, r: random.Random) -> Sketch:
    turns = [turn for passage in m.passages for turn in (user(passage), assistant("positive"))]
    return Sketch((*turns, user(m.passages[0][:400])), "Classify the sentiment of each message.")


def _agent(m: Material, w: Wording, r: random.Random) -> Sketch:
    turns = (user(r.choice(w.agent_tasks)), tool(CODE * 4), assistant("I see."), tool(CODE * 5))
    return Sketch(turns, AGENT_SYSTEM, tools=True)


def _agent_system(m: Material, w: Wording, r: random.Random) -> Sketch:
    return Sketch((user(r.choice(w.small_talk)),), AGENT_SYSTEM * 40, tools=True)


def _short(m: Material, w: Wording, r: random.Random) -> Sketch:
    return Sketch((user(f"{m.text[:3000]}\n\n{m.question}"),), r.choice(w.system))


def _leaning(m: Material, w: Wording, r: random.Random) -> Sketch:
    first = user(f"{m.text}\n\n{m.question}")
    return Sketch((first, assistant("It was in May."), user(r.choice(w.leaning))), r.choice(w.system))


NEGATIVES: dict[str, Build] = {
    "task on every word, before": _task,
    "task on every word, after": _task_after,
    "task on every word, in the system text": _task_in_system,
    "task on every word, later turn": _task_on_earlier_text,
    "no question": _no_question,
    "code to change": _code_edit,
    "data to transform": _data,
    "few-shot": _few_shot,
    "few-shot turns": _few_shot_turns,
    "agent with code": _agent,
    "agent's long system text": _agent_system,
    "short": _short,
    "last words lean on earlier turns": _leaning,
}

CODE = (
    '''import os
import sys

class Loader(object):
    """Loads things."""

    def __init__(self, path, mode="r"):
        self.path = path
        self.mode = mode
        self.cache = {}

    def load(self, name):
        if name in self.cache:
            return self.cache[name]
        with open(os.path.join(self.path, name), self.mode) as handle:
            data = handle.read()
        for i in range(len(data) + 1):
            if data[i] == "\\n":
                break
        self.cache[name] = data
        return data


def main(argv):
    loader = Loader(argv[1])
    for name in argv[2:]:
        print(loader.load(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
'''
    * 4
)

AGENT_SYSTEM = """You are a coding agent. You work in the user's repository with the tools you are given.

<rules>
- Read a file before you change it. Never guess what it holds.
- Keep changes small. Run the tests after each change and report what failed.
- Ask the user before you delete anything. Do not commit unless you are told to.
</rules>

<tool_usage>
Use `read` for files and `run` for commands. Call several tools at once where they do not depend on each other.
When a command fails, read its output before you try again. Does it need a different folder? Is a package missing?
</tool_usage>

<style>
Answer in at most four lines unless the user asks for more. No preamble. Do not explain what you did at the end.
</style>

"""


# ---- material --------------------------------------------------------------------------------------------------------


def _chunks(texts: Sequence[str], n_bytes: int) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    for text in texts:
        group.append(text)
        if sum(len(t.encode()) for t in group) > n_bytes:
            yield tuple(group)
            group = []


def _read(data: Path, name: str) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    documents = {d["doc_id"]: d for d in records(data / name / "documents.jsonl.gz") if d["text"]}
    if name == "lara":
        return documents, [c for c in records(data / name / "cases.jsonl.gz") if c["doc_id"] in documents]
    return documents, list(records(data / name / "questions.jsonl.gz"))


def materials(data: Path, half: Half, seed: int = 1) -> list[Material]:
    """Long texts with two questions each; the halves come from different sets, or languages of one."""
    shuffle = random.Random(seed)
    sets = ("loogle", "contractnli", "qmsum") if half == "development" else ("lara", "squality", "bamboo")
    languages = ("de", "en", "es") if half == "development" else ("ru", "ar", "zh")
    found: list[Material] = []
    passages = [d["text"].strip() for d in _read(data, "multihop")[0].values()]
    passages = passages[: len(passages) // 2] if half == "development" else passages[len(passages) // 2 :]
    groups = list(_chunks([p for p in passages if len(p) > 200], 20_000))
    for name in sets:
        documents, questions = _read(data, name)
        asked: dict[str, list[str]] = defaultdict(list)
        for q in questions:
            asked[q["doc_ids"][0] if "doc_ids" in q else q["doc_id"]].append(q["question"].strip())
        texts = [(d["text"].strip(), asked[i]) for i, d in documents.items() if 17_000 < len(d["text"]) < 400_000]
        texts = [(text, qs) for text, qs in texts if len(qs) > 1 and all(len(q) < 600 for q in qs[:8])]
        shuffle.shuffle(texts)
        for text, qs in texts[:16]:
            two = shuffle.sample(qs[:8], 2)
            found.append(Material(text, two[0], "en", shuffle.choice(groups), two[1]))
    documents, questions = _read(data, "xquad")
    for language in languages:
        own = [d for d in documents.values() if d["meta"].get("language", d["meta"].get("lang")) == language]
        by_document = defaultdict(list)
        for q in questions:
            by_document[q["doc_ids"][0]].append(q["question"].strip())
        for n in range(0, len(own) - 7, 8):
            group = own[n : n + 8]
            qs = [q for d in group for q in by_document[d["doc_id"]]]
            text = "\n\n".join(d["text"].strip() for d in group)
            if len(qs) > 1 and len(text.encode()) > 17_000:
                two = shuffle.sample(qs, 2)
                found.append(Material(text, two[0], language, tuple(d["text"].strip() for d in group), two[1]))
    shuffle.shuffle(found)
    return found


def conversations(data: Path, half: Half, seed: int = 2) -> list[Material]:
    """The sessions of LoCoMo, each line a turn."""
    shuffle = random.Random(seed)
    documents, questions = _read(data, "locomo")
    ids = sorted(documents)[:3] if half == "development" else sorted(documents)[3:]
    found = []
    for doc_id in ids:
        turns = tuple(line.strip() for line in documents[doc_id]["text"].splitlines() if line.strip())
        asked = [q["question"].strip() for q in questions if q["doc_ids"][0] == doc_id]
        for _ in range(4):
            two = shuffle.sample(asked, 2)
            start = shuffle.randrange(0, max(1, len(turns) - 300))
            found.append(Material("", two[0], "en", (), two[1], turns[start : start + 300 - len(turns) % 2]))
    return found


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """One row: counts over the requests of one shape."""

    requests: int = 0
    located: int = 0
    exact: int = 0  # requests whose documents are, to the character, what was put in
    left_out: int = 0  # characters
    too_much: int = 0
    question_inside: int = 0
    question_exact: int = 0
    question_contained: int = 0
    seconds: list[float] = field(default_factory=list)


def _miscounted(texts: Sequence[Text], outcome: Located, wanted: Sequence[str]) -> tuple[int, int]:
    """Characters of the documents that were not located, and located characters that belong to none."""
    left_out = too_much = 0
    for text in texts:
        expected, got = bytearray(len(text.text)), bytearray(len(text.text))
        for document in wanted:
            start = text.text.find(document)
            if start >= 0:
                expected[start : start + len(document)] = b"\1" * len(document)
        for place in outcome.places:
            if place.path == text.path:
                got[place.start : place.end] = b"\1" * (place.end - place.start)
        both = int.from_bytes(expected) & int.from_bytes(got)
        left_out += expected.count(1) - both.bit_count()
        too_much += got.count(1) - both.bit_count()
    return left_out, too_much


def measure(sketch: Sketch, api: Api, tally: Tally) -> Located | LeftAlone:
    body = orjson.loads(write(sketch, api))
    started = time.perf_counter()
    conversation = READERS[api](body)
    outcome = conversation if isinstance(conversation, LeftAlone) else locate(conversation)
    tally.seconds.append(time.perf_counter() - started)
    tally.requests += 1
    if isinstance(outcome, LeftAlone) or isinstance(conversation, LeftAlone):
        return outcome
    tally.located += 1
    texts = tuple(document.text for document in outcome.documents)
    tally.exact += texts == sketch.documents
    left_out, too_much = _miscounted(conversation.texts, outcome, sketch.documents)
    tally.left_out += left_out
    tally.too_much += too_much
    inside = any(sketch.question in text for text in texts) and not any(sketch.question in d for d in sketch.documents)
    tally.question_inside += bool(sketch.question) and inside
    tally.question_exact += outcome.question == sketch.question
    tally.question_contained += sketch.question in outcome.question
    return outcome


def cases(data: Path, half: Half) -> Iterator[tuple[str, bool, Sketch, Api]]:
    """Shape, whether it should be located, and the request."""
    wording = DEVELOPMENT if half == "development" else HELD_OUT
    shuffle = random.Random(half)
    pool, talks = materials(data, half), conversations(data, half)
    for shapes, wanted, per_shape in ((POSITIVES, True, 24), (NEGATIVES, False, 12)):
        for shape, build in shapes.items():
            for n in range(per_shape):
                material = shuffle.choice(talks if shape == "conversation" else pool)
                sketch = build(material, wording, shuffle)
                single = (
                    len(sketch.turns) == 1 and len(sketch.turns[0].parts) == 1 and not sketch.turns[0].parts[0].mark
                )
                api = APIS[n % len(APIS)] if n % 8 or not single else "completions"
                yield shape, wanted, sketch, api


def run(data: Path, half: Half, show: int = 0) -> dict[str, tuple[bool, Tally]]:
    rows: dict[str, tuple[bool, Tally]] = {}
    for shape, wanted, sketch, api in cases(data, half):
        _, tally = rows.setdefault(shape, (wanted, Tally()))
        before = tally.exact + tally.question_contained
        outcome = measure(sketch, api, tally)
        right = tally.exact + tally.question_contained == before + 2 if wanted else isinstance(outcome, LeftAlone)
        if not right and show:
            show -= 1
            _explain(shape, api, sketch, outcome)
    return rows


def _explain(shape: str, api: Api, sketch: Sketch, outcome: Located | LeftAlone) -> None:
    print(f"== {shape} ({api})")
    if isinstance(outcome, LeftAlone):
        print(f"   left alone: {outcome.reason}; asked: {sketch.question!r}")
        return
    print(f"   {outcome.shape}: asked {outcome.question[:200]!r} for {sketch.question!r}")
    for got, wanted in zip(outcome.documents, sketch.documents or ("",) * 3, strict=False):
        if got.text != wanted:
            print(f"   {got.text[:120]!r} ... {got.text[-120:]!r}\n   {wanted[:120]!r} ... {wanted[-120:]!r}")
            return


HEAD = (
    "| shape | requests | located | documents exact | characters left out | too much | question left inside | "
    "question exact | contained | p50 ms | p99 ms |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def _row(name: str, tally: Tally) -> str:
    times = sorted(1000 * s for s in tally.seconds)
    cells: tuple[object, ...] = (
        tally.requests,
        tally.located,
        tally.exact,
        tally.left_out,
        tally.too_much,
        tally.question_inside,
        tally.question_exact,
        tally.question_contained,
        f"{times[len(times) // 2]:.2f}",
        f"{times[int(0.99 * (len(times) - 1))]:.2f}",
    )
    return f"| {name} | " + " | ".join(map(str, cells)) + " |\n"


def _sum(tallies: Sequence[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        for name in ("requests", "located", "exact", "left_out", "too_much"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        for name in ("question_inside", "question_exact", "question_contained"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.seconds += tally.seconds
    return total


def table(half: Half, rows: dict[str, tuple[bool, Tally]]) -> str:
    positive = _sum([tally for wanted, tally in rows.values() if wanted])
    negative = _sum([tally for wanted, tally in rows.values() if not wanted])
    precision = positive.located / max(1, positive.located + negative.located)
    return (
        f"## {half.capitalize()} half\n\n"
        f"Precision {precision:.3f} ({negative.located} of {negative.requests} that had to be left alone were not), "
        f"recall {positive.located / positive.requests:.3f} of {positive.requests}; documents exact in "
        f"{positive.exact / max(1, positive.located):.3f} of those located, the question in it in "
        f"{positive.question_contained / max(1, positive.located):.3f}.\n\n"
        + HEAD
        + "".join(_row(name, tally) for name, (_, tally) in rows.items())
        + _row("**all to locate**", positive)
        + _row("**all to leave alone**", negative)
    )


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--held-out", action="store_true")
    arguments.add_argument("--show", type=int, default=0, help="failures of the development half to print")
    given = arguments.parse_args()
    data = data_directory()
    if data is None:
        raise SystemExit("The data sets are not here; set LONGROUTE_DATA to their folder.")
    tables = [table("development", run(data, "development", given.show))]
    if given.held_out:
        tables.append(table("held-out", run(data, "held-out")))
        note = "\n".join(f"- {key}: {value}" for key, value in measured_on("orjson").items())
        RESULTS.write_text(
            f"# Locating the long text in a request\n{INTRODUCTION}\n" + "\n".join((*tables, note)) + "\n"
        )
    print("\n".join(tables))


if __name__ == "__main__":
    main()
