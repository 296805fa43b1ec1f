from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.benchmarks.data import data_directory, records
from longroute.router.core import Reply
from longroute.router.prompts import REFUSAL
from longroute.router.replies import answers, broke_off, nothing_said, refuses, shortcoming

REFUSALS = {
    "en": [
        REFUSAL,
        "**the documents do not contain the answer**.",
        "I have read all passages. The documents do not contain the answer.",
        "The provided passages don’t contain the answer to this question.",
        "The text does not answer the question.",
        "This question cannot be answered from the passages.",
        "The text does not provide enough information to answer this question.",
        "The passages contain no answer.",
        "None of the documents contains the answer.",
        "The answer is not in the documents.",
    ],
    "de": [
        "Die Dokumente enthalten die Antwort nicht.",
        "Die bereitgestellten Dokumente enthalten keine Antwort auf diese Frage.",
        "In den Dokumenten ist keine Antwort enthalten.",
        "Die Passagen beantworten die Frage nicht.",
        "Die Frage lässt sich mit dem Text nicht beantworten.",
    ],
    "fr": [
        "Les documents ne contiennent pas la réponse.",
        "Les documents ne contiennent aucune réponse à cette question.",
        "Les passages fournis ne répondent pas à la question.",
        "La réponse ne se trouve pas dans les documents.",
        "Les documents ne permettent pas de répondre à la question.",
    ],
    "es": [
        "Los documentos no contienen la respuesta.",
        "Los pasajes no responden a la pregunta.",
        "La respuesta no se encuentra en los documentos.",
    ],
    "it": [
        "I documenti non contengono la risposta.",
        "I passaggi non rispondono alla domanda.",
        "La risposta non è presente nei documenti.",
    ],
    "pt": [
        "Os documentos não contêm a resposta.",
        "Os trechos não respondem à pergunta.",
        "A resposta não se encontra nos documentos.",
    ],
    "nl": [
        "De documenten bevatten het antwoord niet.",
        "De documenten bevatten geen antwoord op deze vraag.",
        "De passages beantwoorden de vraag niet.",
        "Het antwoord staat niet in de documenten.",
    ],
    "ru": [
        "Документы не содержат ответа.",
        "В документах нет ответа на этот вопрос.",
        "Ответа на этот вопрос нет в документах.",
        "В тексте отсутствует ответ на вопрос.",
    ],
    "zh": [
        "文档中没有包含答案。",
        "这些文档不包含答案。",
        "文件中没有答案。",
        "文档未提供该问题的答案。",
        "文檔中沒有包含答案。",
        "根据提供的文本，无法回答该问题。",
    ],
    "ja": [
        "文書には答えが含まれていません。",
        "ドキュメントには回答が含まれていません。",
        "提供された文書には、この質問の答えはありません。",
    ],
    "ko": [
        "문서에 답이 없습니다.",
        "문서에는 답이 포함되어 있지 않습니다.",
        "문서에서 답을 찾을 수 없습니다.",
    ],
}

NOTHING_SAID = {
    "de": [
        "Der Name des Hundes wird nicht erwähnt.",
        "Es gibt im Text keine Informationen dazu.",
        "Aus dem Vertrag geht nicht hervor, wie der Hund heißt.",
        "Das lässt sich so nicht feststellen.",
    ],
    "fr": [
        "Le nom du chien n'est pas mentionné.",
        "Le bail ne mentionne pas le nom du chien.",
        "Il n’y a aucune information à ce sujet.",
        "Il est impossible de répondre à cette question.",
    ],
    "es": [
        "El nombre del perro no se menciona.",
        "No se especifica en el contrato.",
        "No hay información sobre el perro.",
        "No es posible responder a la pregunta.",
    ],
    "it": [
        "Il nome del cane non è menzionato.",
        "Il contratto non specifica il nome.",
        "Non ci sono informazioni sul cane.",
        "Non è possibile rispondere alla domanda.",
    ],
    "pt": [
        "O nome do cão não é mencionado.",
        "O contrato não menciona o nome.",
        "Não há informações sobre o cão.",
        "Não é possível responder à pergunta.",
    ],
    "nl": [
        "De naam van de hond wordt niet vermeld.",
        "Er is geen informatie over de hond.",
        "Het contract vermeldt niet hoe de hond heet.",
        "Dit kan niet worden beantwoord.",
    ],
    "ru": [
        "Имя собаки не указано.",
        "В договоре не упоминается имя собаки.",
        "Нет информации о собаке.",
        "Невозможно ответить на этот вопрос.",
    ],
    "zh": [
        "合同中没有提到狗的名字。",
        "文中未提及狗的名字。",
        "无法从中确定。",
        "没有相关信息。",
        "文中未提供其姓名。",
    ],
    "ja": ["犬の名前は記載されていません。", "契約書には犬についての言及がありません。", "わかりません。"],
    "ko": ["개의 이름은 언급되어 있지 않습니다.", "계약서에 관련 정보가 없습니다.", "알 수 없습니다."],
}

ANSWERS = [
    "The documents contain the answer: Rex.",
    "No, the lease does not allow pets.",
    "The answer is 42 [2], as the second document says.",
    "The first document does not contain the answer, but the second does: Rex.",
    "The document does not provide a deadline for the tenant's answer.",
    "The text does not state when the defendants filed an answer.",
    "Nein, der Mieter darf keine Hunde halten.",
    "Die Antwort steht in § 3 des Dokuments: drei Monate.",
    "Non, le bail n'autorise pas les chiens.",
    "La réponse se trouve dans le document 2 : trois mois.",
    "No, el contrato no permite perros.",
    "No, il contratto non consente cani.",
    "Não, o contrato não permite cães.",
    "Nee, de huurder mag geen honden houden.",
    "Нет, договор не разрешает держать собак.",
    "不可以，租客不得养狗。",
    "いいえ、犬を飼うことは禁止されています。",
    "아니요, 개를 키울 수 없습니다.",
]


@pytest.mark.parametrize("text", [text for texts in REFUSALS.values() for text in texts])
def test_a_refusal_is_recognised_in_any_of_the_languages(text: str) -> None:
    assert refuses(text)
    assert refuses(f"**{text.upper()}**")
    assert not answers(Reply(text))


@pytest.mark.parametrize("text", [text for texts in NOTHING_SAID.values() for text in texts])
def test_nothing_said_is_seen_but_is_not_taken_for_a_refusal(text: str) -> None:
    assert nothing_said(text)
    assert not refuses(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_one_in_any_language(text: str) -> None:
    assert answers(Reply(text))
    assert not nothing_said(text)


def test_no_right_answer_of_published_models_is_taken_for_a_refusal() -> None:
    data = data_directory()
    if data is None or not (data / "locomo").is_dir():
        pytest.skip("the data sets are not here: set LONGROUTE_DATA (see benchmarks/data.py)")
    right = {row["prediction"] for row in records(data / "locomo" / "predictions.jsonl.gz") if row["llm_score"] >= 0.5}
    assert len(right) > 1_000
    assert not [text for text in right if refuses(text) or nothing_said(text)]


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_an_empty_reply_is_no_answer(text: str) -> None:
    assert not answers(Reply(text))


@pytest.mark.parametrize(
    "reason", ["content_filter", "refusal", "SAFETY", "guardrail_intervened", "FinishReason.SAFETY"]
)
def test_what_was_held_back_is_no_answer(reason: str) -> None:
    reply = Reply("The dog is called", finish_reason=reason)
    assert not answers(reply)
    assert reason in shortcoming(reply)


@pytest.mark.parametrize(
    "reason", ["length", "max_tokens", "MAX_TOKENS", "FinishReason.MAX_TOKENS", "model_context_window_exceeded"]
)
def test_an_answer_that_broke_off_is_one_with_a_shortcoming(reason: str) -> None:
    reply = Reply("The dog is called Rex, and", finish_reason=reason)
    assert answers(reply)
    assert broke_off(reply)
    assert "max_output_tokens" in shortcoming(reply)


def test_a_backend_that_says_itself_that_nothing_fits_is_believed() -> None:
    assert not answers(Reply("Rex.", answered=False))


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    if refuses(text):
        assert not answers(Reply(text))
    assert shortcoming(Reply(text)) == ""


def test_long_replies_are_read_in_no_time() -> None:
    assert not refuses("the text does not " * 20_000)  # returns: gaps are short, so nothing backtracks without end
