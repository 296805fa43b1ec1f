from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

import longroute
from longroute.router.conversations import as_text, conversation, joined, runs, turns
from longroute.router.core import Document
from longroute.router.errors import DocumentError

TALK = [
    ("Ada", "Have you found a flat in Turin?"),
    ("Ben", "I looked at two, and the second one has a garden."),
    ("Ada", "What does it cost?"),
    ("Ben", "They ask for nine hundred a month."),
    ("Ada", "That is a lot."),
    ("Ben", "It is, but there is no agent to pay."),
    ("Ada", "Then take it before somebody else does."),
    ("Ben", "I sign the lease on Friday."),
]


def said(documents: tuple[Document, ...]) -> list[tuple[str, str, str]]:
    return [(turn.speaker, turn.time, turn.text) for turn in documents]


# ---- turns of a program ----------------------------------------------------------------------------------------------


def test_messages_of_openai_become_documents_that_name_their_place() -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "user", "name": "ada", "content": [{"type": "text", "text": "One."}, {"type": "image_url"}]},
    ]
    found = turns(messages, id="chat")
    assert said(found) == [("user", "", "Hello"), ("ada", "", "One.")]
    assert [turn.id for turn in found] == ["chat#1", "chat#3"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\n\nb"),
        ({"from": "human", "value": "a"}, "a"),
        ({"speaker": "Ada", "text": "a"}, "a"),
        ({"author": {"name": "Ada"}, "content": {"content_type": "text", "parts": ["a"]}}, "a"),
        ({"from": "Ada", "text": ["see ", {"type": "link", "text": "x.org"}, " now"]}, "see x.org now"),
        (HumanMessage("a"), "a"),
        (
            AIMessage([{"type": "text", "text": "a"}, {"type": "tool_use", "id": "1", "name": "f", "input": {}}]),
            "a\n\n[calls f]",
        ),
    ],
)
def test_text_is_found_wherever_exports_keep_it(message: object, expected: str) -> None:
    assert [turn.text for turn in turns([message])] == [expected]


def test_messages_of_langchain_speak_by_their_type() -> None:
    assert [turn.speaker for turn in turns([HumanMessage("a"), AIMessage("b"), HumanMessage("c", name="Ada")])] == [
        "human",
        "ai",
        "Ada",
    ]


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("1:56 pm on 8 May, 2023", "1:56 pm on 8 May, 2023"),
        (1_700_000_000, "2023-11-14 22:13"),
        (1_700_000_000_000, "2023-11-14 22:13"),
        ("1700000000.000200", "2023-11-14 22:13"),
        (datetime(2024, 2, 1, 9, 30, tzinfo=UTC), "2024-02-01 09:30+00:00"),
        (float("nan"), ""),
        (None, ""),
        (True, ""),
    ],
)
def test_times_are_written_for_people(time: object, expected: str) -> None:
    [turn] = turns([{"role": "user", "content": "a", "timestamp": time}])
    assert turn.time == expected


@pytest.mark.parametrize("item", ["text", {"role": "user"}, {"content": "a"}, 3, None])
def test_what_is_no_message_is_named(item: object) -> None:
    with pytest.raises(DocumentError, match="Item 2 of the conversation is no message"):
        turns([{"role": "user", "content": "a"}, item])


def test_the_name_is_public() -> None:
    assert longroute.turns is turns


# ---- conversations in files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["{0}: {1}", "{0} : {1}", "[10:15] {0}: {1}", "12/05/2023, 10:15 - {0}: {1}", "**{0}:** {1}", "{0} (8 May): {1}"],
)
def test_a_transcript_is_read_turn_by_turn(line: str) -> None:
    found = conversation("\n".join(line.format(*turn) for turn in TALK), "talk.txt")
    assert [(turn.speaker, turn.text) for turn in found] == TALK
    assert found[2].id == "talk.txt#3"


def test_dates_hold_for_the_turns_below_them() -> None:
    lines = [f"{speaker}: {text}" for speaker, text in TALK]
    text = "\n".join(["DATE: 8 May, 2023", *lines[:4], "", "--- 9 May 2023 ---", *lines[4:]])
    assert [turn.time for turn in conversation(text, "t")] == ["8 May, 2023"] * 4 + ["9 May 2023"] * 4


def test_lines_without_a_speaker_belong_to_the_turn_above() -> None:
    text = "\n".join(f"{speaker}: {text}\nNote: more of it\n" for speaker, text in TALK[:1])
    text += "\n".join(f"{speaker}: {text}" for speaker, text in TALK[1:])
    assert conversation(text, "t")[0].text == f"{TALK[0][1]}\nNote: more of it"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No colon anywhere.\n" * 20,
        "Name: Ada\nCity: Turin\nRent: 900\n\n" * 10,
        "INFO: started\nWARNING: slow\n" * 10,
        "Pros: it is fast and cheap\nCons: it breaks\n" * 10,
        "From: ada@x.org\nTo: ben@x.org\nSubject: flat\n\nDear Ben\n" * 10,
        "\n".join(f"{speaker}: {text}" for speaker, text in TALK[:5]),
        "It was late. He said: no.\nNobody answered: it was dark.\n" * 20,
        "\n".join(f"Item {number}: text of the item" for number in range(40)),
        "# Ada\n\n"
        + "A paragraph that is much longer than the lines of talk in it, over and over. " * 40
        + "\nAda: a\n",
    ],
)
def test_other_texts_stay_texts(text: str) -> None:
    assert conversation(text, "t") == ()


@pytest.mark.parametrize(
    "data",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        {"title": "x", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"id": 1, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        [
            {"user": "U1", "text": "a", "ts": "1700000000.1"},
            {"user": "U2", "text": "b", "ts": "1700000001.1"},
            {"user": "U1", "text": " ", "ts": "1700000002.1"},
            {"user": "U2", "text": "", "ts": "1700000003.1"},
        ],
    ],
)
def test_chat_exports_are_recognised(data: object) -> None:
    found = conversation(json.dumps(data), "chat.json")
    assert [turn.text for turn in found if turn.speaker != "(about)"] == ["a", "b"]


CALL = {"name": "find", "arguments": '{"city": "Turin"}'}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tool_calls": [{"id": "1", "function": CALL}]}, '[calls find: {"city": "Turin"}]'),
        ({"function_call": {"name": "find", "arguments": ""}}, "[calls find]"),
        (
            {"content": [{"type": "tool_use", "name": "find", "input": {"city": "Zug"}}]},
            '[calls find: {"city": "Zug"}]',
        ),
        ({"content": [{"type": "tool_result", "content": [{"type": "text", "text": "Two flats."}]}]}, "Two flats."),
        ({"attachments": [{"file_name": "a.pdf", "extracted_content": "Two rooms."}]}, "[attached: a.pdf]\nTwo rooms."),
        (
            {"content": "Look.", "files": [{"name": "a.png"}, "b.png"]},
            "Look.\n\n[attached: a.png]\n\n[attached: b.png]",
        ),
        ({"content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": "J" * 9_999}}]}, "[attached: a.pdf]"),
        ({"content": "", "blip_caption": "a photo of a garden"}, "[attached: a photo of a garden]"),
    ],
)
def test_what_a_message_carries_beside_its_text_is_kept(more: dict[str, object], expected: str) -> None:
    assert [turn.text for turn in turns([{"role": "assistant", "content": None} | more])] == [expected]


def test_a_call_that_a_message_names_twice_is_written_once() -> None:
    part = {"type": "tool_use", "id": "1", "name": "find", "input": {"city": "Turin"}}
    message = AIMessage([part], tool_calls=[{"name": "find", "args": {"city": "Turin"}, "id": "1"}])
    assert [turn.text for turn in turns([message])] == ['[calls find: {"city": "Turin"}]']


def test_what_a_file_says_of_a_chat_is_a_turn_before_the_first() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    about = {"title": "A flat in Turin", "create_time": 1_700_000_000, "tags": ["home"], "folder": None}
    found = conversation(json.dumps(about | {"messages": messages}), "chat.json")
    assert [turn.id for turn in found] == ["chat.json#0", "chat.json#1", "chat.json#2"]
    assert found[0].text == 'title: A flat in Turin\ncreate_time: 2023-11-14 22:13\ntags: ["home"]'
    assert len(list(runs(found))) == 1
    two = "\n".join(json.dumps(record | {"messages": messages}) for record in (about, {}))
    assert [turn.id for turn in conversation(two, "c")] == ["c[1]#0", "c[1]#1", "c[1]#2", "c[2]#1", "c[2]#2"]


def test_half_a_character_is_replaced() -> None:
    [turn] = turns([{"role": "user", "content": "half \ud83d of one", "name": "A\udc00"}])
    assert (turn.text, turn.speaker) == ("half � of one", "A�")


def test_lines_of_json_are_messages_or_whole_chats() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    by_message = conversation("\n".join(map(json.dumps, messages)), "c.jsonl")
    assert [turn.id for turn in by_message] == ["c.jsonl#1", "c.jsonl#2"]
    by_chat = conversation("\n".join([json.dumps({"messages": messages})] * 2), "c.jsonl")
    assert [turn.id for turn in by_chat] == ["c.jsonl[1]#1", "c.jsonl[1]#2", "c.jsonl[2]#1", "c.jsonl[2]#2"]
    assert len(list(runs(by_chat))) == 2


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        [1, 2],
        [{"author": "Ada", "text": "An article."}, {"author": "Ben", "text": "Another."}],
        [{"name": "Ada", "value": "3"}, {"name": "Ben", "value": "4"}],
        [{"role": "admin", "content": "a"}, {"role": "admin", "content": "b"}],
        [{"role": "user", "content": "a"}, {"city": "Turin"}],
        {"messages": "none"},
        {"messages": [{"role": "user", "content": "a"}]},
        [{"from": "Ada", "subject": "flat", "body": "a"}, {"from": "Ben", "subject": "re: flat", "body": "b"}],
        [{"from": "Turin", "to": "Rome", "text": "train"}, {"from": "Rome", "to": "Bari", "text": "bus"}],
    ],
)
def test_other_json_stays_text(data: object) -> None:
    assert conversation(json.dumps(data), "data.json") == ()


@given(st.text(st.sampled_from("Ab: \n[]{}\"'1-*(："), max_size=200) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["role", "content", "messages", "from", "text", "ts"]), inner, max_size=4),
    max_leaves=12,
).map(json.dumps))  # fmt: skip
def test_no_text_is_too_strange(text: str) -> None:
    for turn in conversation(text, "f"):
        assert turn.speaker and turn.text.strip()


@given(
    st.lists(st.tuples(st.sampled_from(["Ada", "Ben", "Cy D"]), st.text("ab.", min_size=1, max_size=30)), min_size=9)
)
def test_no_word_of_a_transcript_is_lost(talk: list[tuple[str, str]]) -> None:
    talk = [*talk, *([(name, "c") for name in ("Ada", "Ben", "Cy D")] * 2)]  # nobody is met only once
    text = "\n".join(f"{speaker}: {words}" for speaker, words in talk)
    if found := conversation(text, "t"):
        assert " ".join(f"{turn.speaker}: {turn.text}" for turn in found if turn.text).split() == [
            word for speaker, words in talk for word in f"{speaker}: {words}".split()
        ]


# ---- turns side by side ----------------------------------------------------------------------------------------------


def test_runs_are_of_one_conversation_and_nothing_else() -> None:
    first, second = turns([{"role": "user", "content": "a"}] * 2, "x"), turns([{"role": "user", "content": "b"}], "y")
    report = Document("r", "report")
    assert list(runs([*first, *second, report, report])) == [first, second, (report,), (report,)]
    assert list(runs([])) == []


def test_the_time_is_said_where_it_changes() -> None:
    documents = [
        Document("One", speaker="Ada", time="Monday"),
        Document("Two", speaker="Ben", time="Monday"),
        Document("Three", speaker="Ada", time="Friday"),
        Document("Four", speaker="Ada"),
    ]
    assert as_text(documents).split("\n") == ["Ada (Monday): One", "Ben: Two", "Ada (Friday): Three", "Ada: Four"]
    assert as_text(documents, "Monday").startswith("Ada: One")


@given(st.text(), st.text())
def test_no_text_and_no_name_can_pass_for_another_turn(text: str, speaker: str) -> None:
    shown = as_text([Document(text, speaker=speaker), Document("b", speaker="Ben")])
    starts = [line for line in shown.splitlines() if not line.startswith("  ")]
    assert len(starts) == 2


def test_joined_leaves_other_documents_as_they_are() -> None:
    report = Document("r", "report", kind="markdown")
    talk = turns([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "chat")
    assert joined([report, *talk]) == (report, Document("user: a\nassistant: b", "chat"))
    assert joined([report])[0] is report
