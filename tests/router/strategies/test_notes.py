from __future__ import annotations

from longroute.router.core import Citation, Passage
from longroute.router.strategies.notes import Notes
from longroute.router.strategies.reports import parse
from longroute.tests.router.strategies.ada import TEXT, after, shown


def test_quotations_are_given_the_words_and_the_place_of_the_source() -> None:
    [item] = after('EVIDENCE: "ada lovelace wrote  the first program in 1843" | who').items
    assert item.place is not None
    assert item.quote == "Ada Lovelace wrote the first program in 1843"
    assert (item.place.start, item.place.document_id) == (100, "doc")


def test_invented_quotations_are_kept_and_marked() -> None:
    notes = after('EVIDENCE: "Charles Babbage wrote every program in 1850" | who')
    assert notes.items[0].place is None and notes.passages == ()
    assert "not found word for word" in shown(notes)


def test_the_same_place_is_noted_once_and_keeps_both_remarks() -> None:
    notes = after('EVIDENCE: "It computed Bernoulli numbers." | what', 'EVIDENCE: "computed Bernoulli numbers" | how')
    [item] = notes.items
    assert item.quote == "It computed Bernoulli numbers." and item.remark == "what; how"


def test_a_turn_may_be_quoted_with_its_speaker() -> None:
    [item] = after('EVIDENCE: "Ada (10:30): She did not build the engine." | no').items
    assert item.place is not None and item.quote == "She did not build the engine."


def test_what_was_dropped_and_said_again_is_noted_once() -> None:
    again = 'EVIDENCE: "Charles Babbage wrote every program" | who'
    assert len(after(again, "DROP 1: wrong", again, again).items) == 2


def test_a_quotation_of_two_documents_loses_neither_part() -> None:
    texts = ("Do you like the flat?", "Yes, but the rent is too high for me.")
    turns = [Passage(f"t{n}", 0, len(text), text) for n, text in enumerate(texts)]
    quote = '"you like the flat? Yes, but the rent is too high" | an opinion'
    notes = Notes().after(parse(f"EVIDENCE: {quote}").lines, 1, turns)
    assert [(place.document_id, place.start, place.text) for place in notes.passages] == [
        ("t0", 3, "you like the flat?"),
        ("t1", 0, "Yes, but the rent is too high"),
    ]
    corrected = Notes().after(parse(f'EVIDENCE: "the flat?" | what\nCORRECT 1: {quote}').lines, 1, turns)
    assert corrected.items[0].replaced_by == 2 and len(corrected.passages) == 2


def test_a_correction_takes_the_place_of_what_it_corrects_and_both_are_kept() -> None:
    notes = after('EVIDENCE: "It computed Bernoulli numbers." | primes', 'CORRECT 1: "A dog barked at noon." | at noon')
    old, new = notes.items
    assert old.replaced_by == new.number == 2 and notes.standing == (new,)
    assert "[1] replaced by [2]" in shown(notes)


def test_words_that_stand_nowhere_do_not_replace_words_that_do() -> None:
    notes = after(
        'EVIDENCE: "It computed Bernoulli numbers." | x', 'CORRECT 1: "It computed prime numbers only" | primes'
    )
    assert [item.stands for item in notes.items] == [True, True]
    assert notes.items[1].remark == "against [1]: primes"


def test_a_correction_of_the_remark_alone_keeps_the_words() -> None:
    notes = after(
        'EVIDENCE: "It computed Bernoulli numbers." | primes', 'CORRECT 1: "" | Bernoulli numbers, not primes'
    )
    assert notes.items[-1].quote == "It computed Bernoulli numbers." and notes.items[-1].stands
    assert notes.items[-1].remark == "Bernoulli numbers, not primes" and not notes.items[0].stands


def test_a_drop_needs_a_reason_and_leaves_the_item_on_record() -> None:
    said = 'EVIDENCE: "It computed Bernoulli numbers." | x'
    assert after(said, "DROP 1:").items[0].stands
    notes = after(said, "DROP 1: another engine")
    assert notes.items[0].dropped == "another engine" and notes.standing == ()
    assert "[1] dropped: another engine" in shown(notes) and "Bernoulli" in shown(notes)


def test_corrections_of_what_does_not_exist_are_evidence() -> None:
    notes = after('CORRECT 7: "A dog barked at noon." | noon')
    assert len(notes.standing) == 1 and after("DROP 9: why").items == ()


def test_every_occurrence_counts_once_and_readers_do_not_add_up() -> None:
    notes = after(
        'COUNT dogs: "Two dogs sat by the gate."\nCOUNT dogs: "A dog barked"\nCOUNT dogs: "A dog barked"',
        'COUNT dogs: "Another dog slept"\nCOUNT dogs: "a dog of our own"',
    )
    assert shown(notes).splitlines()[0] == "COUNT dogs: 3, and 1 not found word for word in the text"


def test_the_same_words_in_two_places_count_twice() -> None:
    text = "A dog barked. Then a cat. A dog barked. Silence."
    portion = (Passage("d", 0, len(text), text),)
    lines = parse("\n".join(['COUNT barks: "A dog barked."'] * 3)).lines
    notes = Notes().after(lines, 1, portion)
    assert [item.place.start for item in notes.items if item.place] == [0, text.rindex("A dog")]


def test_what_a_backend_points_out_is_noted_once() -> None:
    citation = Citation("doc", 100, 146, TEXT[:46])
    notes = Notes().with_passages([citation, citation], 1).with_passages([citation], 2)
    assert len(notes.items) == 1 and notes.passages == (citation,)


def test_numbers_can_go_on_from_others() -> None:
    notes = after('EVIDENCE: "It computed Bernoulli numbers." | x', 'CORRECT 1: "A dog barked at noon." | y')
    assert [(i.number, i.replaced_by) for i in notes.numbered_from(5).items] == [(5, 6), (6, 0)]
