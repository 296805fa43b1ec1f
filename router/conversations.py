"""Conversations as documents: one for each turn, with its speaker and time; and how turns are written out together.

`turns` reads the messages of a program, `conversation` recognises a chat export or a transcript in a file's text.
Finding what matters in turns is left to the retrievers, prompts around them to `prompts.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from .core import Document
from .errors import DocumentError

# Where exports keep what we look for, the likeliest first. OpenAI's `name` tells participants of one role apart.
_SPEAKER_KEYS = ("name", "speaker", "role", "from", "sender", "author", "user", "type")
_TEXT_KEYS = ("content", "text", "value", "message", "body")
_TIME_KEYS = ("time", "timestamp", "date", "datetime", "created_at", "create_time", "ts")
_ATTACHMENT_KEYS = ("attachments", "attachment", "files", "file", "photo")
_FILE_PARTS = ("file", "input_file", "document")
_FILE_NAME_KEYS = ("file_name", "filename", "name", "title", "url")
_FILE_TEXT_KEYS = ("extracted_content", "text", "description", "caption")
_CAPTION_KEYS = ("caption", "blip_caption", "transcription")
_MOST_NAME = 1_000  # characters of a file's name or address; what is longer is the file itself, in letters
_LISTS = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "chat", "history")
_SAYING_KEYS = ("role", "speaker", "from", "sender")  # of a turn and of little else
_LETTER_KEYS = ("to", "subject")  # of letters, journeys and rates, which say more than a speaker and a text
_ROLES = frozenset(
    ("user", "assistant", "system", "developer", "tool", "human", "gpt", "ai", "bot", "model", "function")
)

_MILLISECONDS_FROM = 1e11  # as seconds that would be the year 5138


# ---- turns of a program ----------------------------------------------------------------------------------------------


def turns(messages: Iterable[object], id: str = "") -> tuple[Document, ...]:
    """One document for each message of a conversation that says something, in order.

    messages: mappings or objects that say who (`role`, `speaker`, `name`, `from`, ...), what (`content`, `text`,
    `value`, ...) and perhaps when (`time`, `timestamp`, `date`, ...): messages of OpenAI and Anthropic, LangChain's,
    ShareGPT's. Of content in parts, the text counts; calls of tools and attachments stand below it in brackets. Numbers
    are seconds (or milliseconds) since 1970.
    id: names the conversation; its third message becomes `id#3`, or `turn-3` where it has no name.
    Raises DocumentError for what is no message.
    """
    said = []
    for number, message in enumerate(messages, start=1):
        turn = _turn(message)
        if turn is None:
            raise DocumentError(
                f"Item {number} of the conversation is no message: it needs a speaker (role, speaker, name or "
                f"from) and a text (content, text or value), but is {_shape(message)}."
            )
        said.append(turn)
    return _documents(said, id)


@dataclass(frozen=True, slots=True)
class _Turn:
    speaker: str
    text: str
    time: str = ""


def _documents(said: Iterable[_Turn], id: str, first: int = 1) -> tuple[Document, ...]:
    """first: number of the first turn."""
    return tuple(
        Document(
            _encodable(turn.text),
            f"{id}#{number}" if id else f"turn-{number}",
            speaker=_encodable(turn.speaker),
            time=_encodable(turn.time),
        )
        for number, turn in enumerate(said, start=first)
        if turn.text.strip()
    )


def _encodable(text: str) -> str:
    """Halves of characters, which JSON can name and nothing can send or print, replaced."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _turn(message: object) -> _Turn | None:
    speaker = next(filter(None, (_name(_field(message, key)) for key in _SPEAKER_KEYS)), "")
    contents = [content for key in _TEXT_KEYS if (content := _field(message, key)) is not None]
    text = next(filter(None, map(_text, contents)), "")
    # A message that only calls a tool has a speaker and nothing to read, which is no mistake.
    known = bool(contents) or any(_has(message, key) for key in _TEXT_KEYS)
    if not speaker or not known:
        return None
    whole = "\n\n".join(filter(None, (text, *dict.fromkeys((*_tool_calls(message), *_attached(message))))))
    return _Turn(speaker, whole, next(filter(None, (_time(_field(message, key)) for key in _TIME_KEYS)), ""))


def _field(message: object, key: str) -> object:
    value = message.get(key) if isinstance(message, Mapping) else getattr(message, key, None)
    return None if callable(value) else value


def _has(message: object, key: str) -> bool:
    return key in message if isinstance(message, Mapping) else hasattr(message, key)


def _name(value: object) -> str:
    if isinstance(value, Mapping):
        return next(filter(None, (_name(value.get(key)) for key in ("name", "role", "username", "id"))), "")
    return " ".join(value.split()) if isinstance(value, str) else ""


def _text(value: object) -> str:
    """The text of a message's content: a string, or the strings and text parts of a list."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return next(filter(None, (_text(value.get(key)) for key in ("text", "parts", "content"))), "")
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        # Telegram cuts a sentence at every link, and gives the pieces their own spaces; others give whole paragraphs.
        parts = [text for text in map(_text, value) if text]
        return ("" if any(isinstance(part, str) for part in value) else "\n\n").join(parts)
    return ""


def _tool_calls(message: object) -> Iterator[str]:
    """`[calls NAME: ARGUMENTS]`, as OpenAI, Anthropic and LangChain keep them."""
    calls = [*_items(_field(message, "tool_calls")), _field(message, "function_call")]
    calls += [part for part in _parts(message) if part.get("type") == "tool_use"]
    for call in calls:
        if not isinstance(call, Mapping):
            continue
        function = call.get("function")
        asked = function if isinstance(function, Mapping) else call
        arguments = next((asked[key] for key in ("arguments", "args", "input") if asked.get(key)), "")
        if name := _name(asked.get("name")):
            yield f"[calls {name}: {_written(arguments)}]" if arguments else f"[calls {name}]"


def _attached(message: object) -> Iterator[str]:
    """`[attached: NAME]`, and what an export says of it: a caption, or the text that was taken out of it."""
    things = [thing for key in _ATTACHMENT_KEYS for thing in _items(_field(message, key))]
    things += [part.get("file", part) for part in _parts(message) if part.get("type") in _FILE_PARTS]
    for thing in things:
        named = thing if isinstance(thing, Mapping) else {"name": thing}
        if name := next(filter(None, (_name(named.get(key)) for key in _FILE_NAME_KEYS)), ""):
            said = next(filter(None, (_text(named.get(key)) for key in _FILE_TEXT_KEYS)), "")
            yield f"[attached: {name}]\n{said}" if said else f"[attached: {name}]"
    for key in _CAPTION_KEYS:
        if caption := _text(_field(message, key)):
            yield f"[attached: {caption}]"


def _parts(message: object) -> list[Mapping[str, object]]:
    """The parts of a message's content, where it has parts."""
    return [part for part in _items(_field(message, "content")) if isinstance(part, Mapping)]


def _items(value: object) -> list[object]:
    """What a field holds: the items of a list, or one thing; long strings are no names but data."""
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, Mapping) or (isinstance(item, str) and len(item) < _MOST_NAME)]


def _written(value: object) -> str:
    """A value for a person to read."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _time(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(" ", "minutes")
    if isinstance(value, str) and not re.fullmatch(r"\d{10}(?:\d{3})?(?:\.\d+)?", value):
        return " ".join(value.split())
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    seconds = float(value)
    try:
        moment = datetime.fromtimestamp(seconds / 1000 if seconds >= _MILLISECONDS_FROM else seconds, UTC)
    except (ValueError, OverflowError, OSError):  # no date at all
        return ""
    return f"{moment:%Y-%m-%d %H:%M}"


def _shape(message: object) -> str:
    if isinstance(message, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, list(message)[:8])) or 'none'}"
    return f"a {type(message).__name__}"


# ---- conversations in files ------------------------------------------------------------------------------------------

ABOUT = "(about)"  # speaks for the file
_SAMPLE = 50_000  # characters at the start that must look like a transcript for the rest to be read as one
_FEWEST_TURNS = 8  # of a transcript; a shorter one is read well enough as a text
_MOST_SPEAKERS = 30
_TURNS_PER_SPEAKER = 3
_LEAST_SHARE = 0.6  # of a transcript's characters stand in lines that name their speaker
_LEAST_CHANGES = 0.3  # of the turns follow one of somebody else

_CLOCK = r"\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d+)?(?:[ \u202f]?[AaPp]\.?[Mm]\.?)?"
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"
_SAID = re.compile(
    rf"""(?: \[? (?P<before> {_DATE}(?:[,T ]\s*{_CLOCK})? | {_CLOCK} ) \]? \s*[-–]?\s+ )?
    (?:\*\*)? (?P<speaker> user|assistant|system|human|ai|bot
        | [^\W\d_a-z][\w.'’&@/-]*(?:[ ](?:\(?[^\W\d][\w.'’&@/-]*\)?|\d{{1,3}})){{0,3}} )
    (?:\s*[\[(](?P<after>[^\])\n]{{0,40}}\d[^\])\n]{{0,40}})[\])])?
    (?:\*\*)?\s* [:：] (?:\*\*)? (?:\s+|$) (?P<text>.*)""",
    re.VERBOSE,
)
_HEADER = re.compile(
    r"(?:\W*(?:date|time|day)\s*:\s*(?P<named>.{0,60}\d.{0,60})|[-=*#\[(]{1,8}\s*(?P<marked>.{0,30}\d.{0,30}?)[-=*#\])\s]{1,8})",
    re.IGNORECASE,
)
# What stands before a colon in records, logs and letters.
_FIELDS = frozenset(
    re.findall(
        r"\S+",
        """added address author authors bcc caution cc changed city color colour cons critical date debug description
        email error example exception fatal fax figure fixed from fwd host http https id important info information
        input journal key level message name note notice output phone port price product proof pros re remark reply-to
        result sent severity source stage status step subject summary table tel theorem time tip title to todo trace
        type url version warn warning website""",
    )
)


def conversation(text: str, id: str) -> tuple[Document, ...]:
    """The turns of a chat export (JSON, or JSON by lines) or of a transcript; () where the text is not clearly one.

    What an export says of a chat beside its messages (title, date, id, ...) is a turn before the first, `id#0`.

    A transcript has lines like `Ada: ...`, `[10:15] Ada: ...`, `Ada (8 May): ...`, and perhaps lines with the date of
    those that follow. A file of several chats gives `id[2]#5` for the fifth message of the second.
    """
    chats = _exported(text) if text.lstrip()[:1] in ("{", "[") else []
    if len(chats) == 1:
        return _documents(chats[0], id, first=0)
    if chats:
        return tuple(turn for n, chat in enumerate(chats, start=1) for turn in _documents(chat, f"{id}[{n}]", first=0))
    return _documents(_transcript(text), id)


def _exported(text: str) -> list[list[_Turn]]:
    """The conversations of a JSON text, each with what is said about it first; none unless all belongs to one."""
    try:
        records = json.loads(text)
    except (ValueError, RecursionError):
        try:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            return []
    if isinstance(records, Mapping):
        records = [records]
    if chat := _chat(records):
        return [[_Turn(ABOUT, ""), *chat]]
    found = [(record, next((key for key in _LISTS if key in record), "")) for record in _mappings(records)]
    chats = [(_about(record, key), _chat(record.get(key))) for record, key in found]
    return [[about, *chat] for about, chat in chats] if chats and all(chat for _, chat in chats) else []


def _about(record: Mapping[str, object], messages: str) -> _Turn:
    """What a chat's record says beside its messages: a field on a line. messages: the key of these."""
    fields = {key: _time(value) if key in _TIME_KEYS else value for key, value in record.items() if key != messages}
    lines = [f"{key}: {_written(value)}" for key, value in fields.items() if value not in (None, "", [], {})]
    return _Turn(ABOUT, "\n".join(lines))


def _mappings(records: object) -> list[Mapping[str, object]]:
    """The items of a list of mappings; none where another item is among them."""
    items = records if isinstance(records, list) else []
    return items if all(isinstance(item, Mapping) for item in items) else []


def _chat(records: object) -> list[_Turn]:
    """The turns, where each item of a list is one, beyond doubt; else none."""
    items = _mappings(records)
    said = [turn for item in items if (turn := _turn(item)) is not None]
    if len(said) < 2 or len(said) < len(items) or any(key in item for item in items for key in _LETTER_KEYS):
        return []
    speakers = {turn.speaker for turn in said}
    if all(any(key in item for key in _SAYING_KEYS) for item in items):
        certain = len(speakers) > 1 or speakers <= _ROLES
    else:  # reviews and articles have authors too; a chat has times, and people in it who speak again
        certain = all(turn.time for turn in said) and 1 < len(speakers) <= len(said) / 2
    return said if certain else []


def _transcript(text: str) -> list[_Turn]:
    """The turns of a transcript; none where the text is not clearly one."""
    start = text[:_SAMPLE].rpartition("\n")[0] if len(text) > _SAMPLE else ""
    if start and not _spoken_lines([line.strip() for line in start.splitlines()]):
        return []
    lines = [line.strip() for line in text.splitlines()]
    said = _spoken_lines(lines)
    return list(_read_turns(lines, said)) if said else []


def _spoken_lines(lines: Sequence[str]) -> list[re.Match[str] | None]:
    """For each line of a transcript, whether and how it begins a turn; none where the lines are not clearly one."""
    matches = [_SAID.match(line) if len(line) > 2 and not _HEADER.fullmatch(line) else None for line in lines]
    often = Counter(match["speaker"] for match in matches if match)
    # A name that stands before a colon once may be anything; its line stays with the turn it follows.
    speakers = {name for name, n in often.items() if n > 1}
    said = [match if match and match["speaker"] in speakers else None for match in matches]
    if not _is_talk([match["speaker"] for match in said if match], speakers):
        return []
    spoken = sum(len(line) for line, match in zip(lines, said, strict=True) if match)
    return said if spoken >= _LEAST_SHARE * sum(map(len, lines)) else []


def _is_talk(sequence: Sequence[str], speakers: set[str]) -> bool:
    if len(sequence) < _FEWEST_TURNS or not 2 <= len(speakers) <= _MOST_SPEAKERS:
        return False
    if len(sequence) < _TURNS_PER_SPEAKER * len(speakers) or any(name.casefold() in _FIELDS for name in speakers):
        return False
    period = len(speakers)
    records = period > 2 and all(sequence[i] == sequence[i - period] for i in range(period, len(sequence)))
    return not records and sum(a != b for a, b in pairwise(sequence)) >= _LEAST_CHANGES * len(sequence)


def _read_turns(lines: Sequence[str], said: Sequence[re.Match[str] | None]) -> Iterator[_Turn]:
    speaker, date, time, parts = "", "", "", list[str]()
    for line, match in zip(lines, said, strict=True):
        header = None if match else _HEADER.fullmatch(line)
        if match or header:
            if speaker or any(parts):
                yield _Turn(speaker or "(before)", "\n".join(parts).strip(), time)
            speaker, parts = "", []
        if header:
            date = (header["named"] or header["marked"]).strip()
        elif match:
            own = match["before"] or match["after"] or ""
            time = " ".join(filter(None, (date, own)))
            speaker, parts = match["speaker"], [match["text"]]
        else:
            parts.append(line)
    if speaker or any(parts):
        yield _Turn(speaker or "(before)", "\n".join(parts).strip(), time)


# ---- turns side by side ----------------------------------------------------------------------------------------------


def runs(documents: Sequence[Document]) -> Iterator[tuple[Document, ...]]:
    """The documents in order, those that are consecutive turns of one conversation together."""
    run: list[Document] = []
    for document in documents:
        if run and not belong_together(run[-1], document):
            yield tuple(run)
            run = []
        run.append(document)
    if run:
        yield tuple(run)


def belong_together(document: Document, following: Document) -> bool:
    """Whether a document is a turn of the conversation that the document before it is a turn of."""
    return bool(document.speaker and following.speaker) and conversation_id(document) == conversation_id(following)


def conversation_id(turn: Document) -> str:
    """What a turn's conversation is called; empty where it has no name."""
    return turn.id.rpartition("#")[0]


def label(turn: Document, time_shown: str = "") -> str:
    """`speaker (time): `, without a time that has been shown just before."""
    time = f" ({_one_line(turn.time)})" if turn.time and turn.time != time_shown else ""
    return f"{_one_line(turn.speaker)}{time}: "


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a turn in the text of its run: `text[start:end] == run[turn].text[source : source + end - start]`."""

    start: int
    end: int
    turn: int
    source: int


def as_text(run: Sequence[Document], time_shown: str = "") -> str:
    """A run of turns as one text, a line for each; the time is said where it is not that of the line before.

    time_shown: the time of what stands before the text.
    """
    return placed(run, time_shown)[0]


def placed(run: Sequence[Document], time_shown: str = "") -> tuple[str, tuple[Stretch, ...]]:
    """`as_text`, and where the turns stand in it.

    All lines of a turn but its first are indented, so that none can pass for the turn of another speaker.
    """
    pieces: list[str] = []
    stretches: list[Stretch] = []
    length = 0

    def write(text: str) -> None:
        nonlocal length
        pieces.append(text)
        length += len(text)

    for number, turn in enumerate(run):
        write(("\n" if number else "") + label(turn, time_shown))
        time_shown = turn.time
        words = turn.text.strip()
        place = turn.text.index(words)
        for line in words.splitlines(keepends=True):
            said = line.rstrip("\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029")
            stretches.append(Stretch(length, length + len(said), number, place))
            write(said)
            place += len(line)
            if len(said) < len(line):
                write("\n  ")
    return "".join(pieces), tuple(stretches)


def joined(documents: Sequence[Document]) -> tuple[Document, ...]:
    """The documents with every conversation as one text."""
    return tuple(
        Document(as_text(run), conversation_id(run[0]) or run[0].id) if run[0].speaker else run[0]
        for run in runs(documents)
    )


def _one_line(name: str) -> str:
    return " ".join(name.split())[:100]
