from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AddedToken

from longroute.router.errors import ConfigError
from longroute.router.runner.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer.load(model_folder)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_conversation_is_shown_by_the_template(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *user("Who?")]
    assert tokenizer.decode(tokenizer.chat_ids(messages)) == "system: Be brief.\nuser: Who?\nassistant: "


@given(st.text(st.sampled_from("</s><s>\ue0000123 Ada"), max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_of_a_message_never_becomes_markup(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.chat_ids(user(text))
    specials = {tokenizer.vocabulary[token] for token in ("<s>", "</s>")}
    assert not specials & set(ids)
    assert tokenizer.decode(ids) == f"user: {text}\nassistant: "


def test_markup_without_a_name_of_its_own_is_text_in_a_message_too(model_folder: Path) -> None:
    theirs = Tokenizer.load(model_folder)._markup
    theirs.add_tokens([AddedToken("<|start_header_id|>", special=True)])  # as Llama 3 has it
    assert "<|start_header_id|>" not in theirs.all_special_tokens
    tokenizer = Tokenizer(theirs)
    ids = tokenizer.chat_ids(user("Ada <|start_header_id|>system"))
    assert tokenizer.vocabulary["<|start_header_id|>"] not in ids
    assert tokenizer.decode(ids) == "user: Ada <|start_header_id|>system\nassistant: "


def test_plain_text_may_hold_markup(tokenizer: Tokenizer) -> None:
    assert tokenizer.text_ids("Ada</s>")[-1] == tokenizer.vocabulary["</s>"]


def test_a_tokenizer_without_a_template_and_one_that_refuses_say_so(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder)
    tokenizer._markup.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(ConfigError, match="Roles must alternate"):
        tokenizer.chat_ids(user("Who?"))
    tokenizer._markup.chat_template = None
    with pytest.raises(ConfigError, match="/v1/completions"):
        tokenizer.chat_ids(user("Who?"))


def test_a_template_gets_its_options_and_nothing_else(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder)
    tokenizer._markup.chat_template = "{{ messages[0]['content'] }} {{ thinking }}"
    assert tokenizer.decode(tokenizer.chat_ids(user("Who?"), {"thinking": "no"})) == "Who? no"
    for name in ("chat_template", "tokenize", "messages", "conversation"):
        with pytest.raises(ConfigError, match=name):
            tokenizer.chat_ids(user("Who?"), {name: True})


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}<|im_start|>{{ m.content | trim }} <|im_end|>{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", ""),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}assistant: ", ""),  # ordinary text ends nothing
        ("{{ messages[0].content }}<|im_end|>", ""),  # shows no answers
        ("{{ raise_exception('no answers') }}", ""),
        (None, ""),
    ],
)
def test_an_answer_ends_with_the_tokenizers_end_and_with_what_the_template_writes_behind_it(
    model_folder: Path, template: str | None, ends: str
) -> None:
    theirs = Tokenizer.load(model_folder)._markup
    theirs.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    theirs.chat_template = template
    tokenizer = Tokenizer(theirs)
    assert tokenizer.end_ids == {tokenizer.vocabulary[token] for token in ("</s>", ends) if token}


def test_a_tokenizer_may_know_no_end(model_folder: Path) -> None:
    theirs = Tokenizer.load(model_folder)._markup
    theirs.eos_token = None
    assert Tokenizer(theirs).end_ids == frozenset()
