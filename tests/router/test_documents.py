from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import Document
from longroute.router.documents import Location, load, locate
from longroute.router.errors import DocumentError, MissingExtra


def pdf(*pages: str | bytes) -> bytes:
    """A PDF with one line of text on each page; bytes stand for a content stream that is broken."""
    objects = [b"", b"<</Type/Catalog/Pages 2 0 R>>", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for page in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({page}) Tj ET".encode() if isinstance(page, str) else page
        kind = b"" if isinstance(page, str) else b"/Filter/NoSuchFilter"
        objects.append(b"<</Length %d%s>>stream\n%s\nendstream" % (len(stream), kind, stream))
        kids.append(len(objects))
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents %d 0 R/Resources<</Font<</F1 3 0 R>>>>>>"
            % (len(objects) - 1)
        )
    objects[2] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(kids), b" ".join(b"%d 0 R" % kid for kid in kids))
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects[1:], start=1):
        offsets.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        len(objects),
        table,
        len(objects),
        len(out),
    )


def write(path: str, data: bytes | str) -> str:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(data: bytes, name: str = "file.txt") -> Document:
    return load([write(name, data)]).documents[0]


# ---- which files -----------------------------------------------------------------------------------------------------


def test_a_file_keeps_its_path_as_id_and_its_newlines() -> None:
    document = read(b"one\r\ntwo\rthree\n", "notes/a.md")

    assert document == Document("one\r\ntwo\rthree\n", "notes/a.md", "markdown")


def test_a_folder_gives_its_texts_and_skips_what_nobody_wrote_to_be_read() -> None:
    for name in ("b.txt", "sub/a.py", ".git/config", "node_modules/x.js", "__pycache__/x.txt", "env/lib/x.txt", ".hid"):
        write(f"docs/{name}", "text")
    write("docs/env/pyvenv.cfg", "")
    write("docs/photo.jpg", b"\xff\xd8\xff\xe0\0\0")
    write("docs/empty.txt", "")

    loaded = load(["docs"])

    assert [(document.id, document.kind) for document in loaded.documents] == [
        ("docs/b.txt", "text"),
        ("docs/sub/a.py", "code"),
    ]
    assert loaded.notes == ("Skipped 1 binary file in docs.",)


def test_a_pattern_finds_files_in_order_and_a_file_is_read_once() -> None:
    for name in ("b.txt", "a.txt", "c.md", "deep/er/d.txt"):
        write(f"docs/{name}", "text")

    loaded = load(["docs/c.md", "docs/*.txt", "docs/**/*.txt", Path("./docs/c.md")])

    assert [document.id for document in loaded.documents] == [
        "docs/c.md",
        "docs/a.txt",
        "docs/b.txt",
        "docs/deep/er/d.txt",
    ]


def test_a_hidden_file_and_a_name_with_brackets_are_read_when_named() -> None:
    loaded = load([write(".notes/a.txt", "text"), write("draft [1].txt", "text")])

    assert [document.id for document in loaded.documents] == [".notes/a.txt", "draft [1].txt"]


def test_standard_input_may_be_any_format() -> None:
    text = load(["-"], stdin=io.BytesIO(b"hello")).documents[0]
    paged = load(["-"], stdin=io.BytesIO(pdf("hello"))).documents[0]

    assert (text.text, text.id, text.kind) == ("hello", "<stdin>", "text")
    assert (paged.text.strip(), paged.kind) == ("hello", "pdf")


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "No documents were given"),
        (["missing.txt"], "missing.txt does not exist"),
        (["*.nothing"], "No file matches the pattern"),
        (["hollow"], "There is no text in hollow"),
        (["empty.txt"], "There is no text in empty.txt"),
        (["image.txt"], "image.txt is not text: it looks like a PNG image"),
        (["archive"], "archive is not text: it looks like a ZIP archive"),
        (["binary"], "control characters"),
        (["big.txt"], r"big.txt \(101 bytes\) goes beyond the limit of 100 bytes"),
        (["scans"], "ocrmypdf"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason(sources: list[str], said: str) -> None:
    Path("hollow").mkdir()
    write("empty.txt", "")
    write("image.txt", b"\x89PNG\r\n\x1a\n\0\0")
    with zipfile.ZipFile("archive", "w") as archive:
        archive.writestr("a", "")
    write("binary", bytes(range(64)))
    write("big.txt", "x" * 101)
    write("scans/scan.pdf", pdf(""))

    with pytest.raises(DocumentError, match=said):
        load(sources, max_bytes=10_000 if sources == ["scans"] else 100)


def test_a_stream_that_fails_is_an_error_about_the_document() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise PermissionError(13, "Permission denied")

    with pytest.raises(DocumentError, match="<stdin> may not be read"):
        load(["-"], stdin=Failing())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_locked_file_is_skipped_in_a_folder_and_refused_when_named() -> None:
    write("docs/open.txt", "text")
    Path(write("docs/locked.txt", "text")).chmod(0)

    assert "locked.txt may not be read" in load(["docs"]).notes[0]
    with pytest.raises(DocumentError, match=r"locked\.txt may not be read"):
        load(["docs/locked.txt"])


def test_the_limit_holds_for_all_documents_together() -> None:
    for name in ("a", "b", "c"):
        write(f"docs/{name}.txt", "x" * 40)

    with pytest.raises(DocumentError, match=r"docs/c\.txt \(40 bytes\) goes beyond the limit of 100 bytes"):
        load(["docs"], max_bytes=100)


def test_an_empty_file_beside_others_is_a_document() -> None:
    loaded = load([write("empty.txt", ""), write("full.txt", "text")])

    assert [document.text for document in loaded.documents] == ["", "text"]


def test_a_name_that_is_no_text_still_gives_an_id_that_is() -> None:
    name = os.fsdecode(b"docs/caf\xe9.txt")
    write(name, "text")

    assert load(["docs"]).documents[0].id == "docs/caf\ufffd.txt"


# ---- encodings -------------------------------------------------------------------------------------------------------

GREETING = "Grüße — “déjà vu”, 你好 мир\n" * 20


@pytest.mark.parametrize(
    "codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_unicode_is_read_with_and_without_a_mark(codec: str) -> None:
    loaded = load([write("a.txt", GREETING.encode(codec))])

    assert loaded.documents[0].text == GREETING
    assert not loaded.notes


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("cp1252", "The owner’s “café”, for €5."),
        ("cp1252", "Größere Übung macht schöne Töne. " * 5),
        ("cp1250", "Zażółć gęślą jaźń; wszyscy ludzie rodzą się wolni i równi. " * 5),
        ("cp1251", "Все люди рождаются свободными и равными в своём достоинстве. " * 5),
        ("shift_jis", "すべての人間は、生まれながらにして自由であり、平等である。" * 5),
        ("cp1251", "def f():  # печатает сообщение\n    return 1\n" * 5),
        ("gb18030", "人人生而自由，在尊严和权利上一律平等。" * 5),
    ],
)
def test_an_older_encoding_is_guessed_and_said_to_be_a_guess(codec: str, text: str) -> None:
    loaded = load([write("a.txt", text.encode(codec))])

    assert loaded.documents[0].text == text
    assert "which is a guess" in loaded.notes[0]


def test_a_declared_encoding_is_believed() -> None:
    html = '<meta charset="koi8-r"><p>Привет</p>'

    assert read(f"<html>{html}</html>".encode("koi8-r"), "a.html").text == "Привет\n"


def test_a_few_broken_bytes_do_not_make_utf8_unreadable() -> None:
    loaded = load([write("a.txt", "naïve café, déjà vu: ".encode() + b"\xff!")])

    assert loaded.documents[0].text == "naïve café, déjà vu: \ufffd!"
    assert loaded.notes == ("a.txt: bytes that are no UTF-8 were replaced, 1 in all.",)


@given(data=st.binary(max_size=200))
def test_no_bytes_give_text_that_cannot_be_encoded(data: bytes) -> None:
    try:
        documents = load(["-"], stdin=io.BytesIO(data)).documents
    except DocumentError:
        return
    documents[0].text.encode("utf-8")


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_html_becomes_markdown_without_what_is_not_shown() -> None:
    document = read(
        b"<!doctype html><html><head><title>T</title><style>p{}</style></head><body><script>x()</script>"
        b"<h2>Sales</h2><p>Up by <b>3</b> in a_b.</p><table><tr><th>Year</th></tr><tr><td>2024</td></tr></table>"
        b"<pre>x = 1\ny = 2</pre></body></html>",
        "page",
    )

    assert document.kind == "html"
    assert document.text == (
        "## Sales\n\nUp by **3** in a_b.\n\n| Year |\n| --- |\n| 2024 |\n\n```\nx = 1\ny = 2\n```\n"
    )


def test_markup_nested_beyond_reason_still_gives_its_text() -> None:
    html = "<html>" + "<div>" * 5000 + "deep" + "</div>" * 5000

    assert read(html.encode(), "a.html").text == "deep\n"


def test_a_character_reference_to_half_a_character_is_replaced() -> None:
    assert read(b"<html><p>a&#xD800;b</p></html>").text == "a\ufffdb\n"


def test_pages_of_a_pdf_are_known() -> None:
    document = read(pdf("first page", "second page", "third page"), "a.pdf")

    assert [document.text[start:].split("\n")[0] for start in document.page_starts] == [
        "first page",
        "second page",
        "third page",
    ]
    assert locate(document, document.text.index("second")) == Location(line=2, column=1, page=2)


def test_a_broken_and_a_blank_page_are_noted_and_the_others_read() -> None:
    loaded = load([write("a.pdf", pdf("first", b"garbage", "", "last"))])

    assert loaded.documents[0].text == "first\n\n\nlast"
    assert loaded.documents[0].page_starts == (0, 6, 7, 8)
    assert loaded.notes == (
        "a.pdf: 1 of 4 pages could not be read (the first is page 2).",
        "a.pdf: 1 of 4 pages without text, perhaps scanned (the first is page 3).",
    )


def test_a_pdf_without_text_a_locked_one_and_a_damaged_one_say_what_to_do() -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("secret"))))
    writer.encrypt("password", algorithm="RC4-128")
    locked = io.BytesIO()
    writer.write(locked)

    with pytest.raises(DocumentError, match=r"scan\.pdf has 1 pages but no text.*ocrmypdf"):
        read(pdf(""), "scan.pdf")
    with pytest.raises(DocumentError, match=r"locked\.pdf is encrypted.*qpdf"):
        read(locked.getvalue(), "locked.pdf")
    with pytest.raises(DocumentError, match=r"bad\.pdf is not a readable PDF"):
        read(b"%PDF-1.4\n\0nonsense", "bad.pdf")


def test_a_word_file_keeps_its_order_headings_and_tables() -> None:
    import docx

    file = docx.Document()
    file.add_heading("Report", 1)
    file.add_paragraph("Before.")
    table = file.add_table(2, 2)
    for number, cell in enumerate(("Year", "Sales", "2024", "3\n4")):
        table.cell(number // 2, number % 2).text = cell
    file.add_paragraph("Item", style="List Bullet")
    file.save("a.docx")

    document = load(["a.docx"]).documents[0]

    assert document.kind == "docx"
    assert document.text == ("# Report\n\nBefore.\n\n| Year | Sales |\n| --- | --- |\n| 2024 | 3 4 |\n\n- Item")


def test_a_word_file_that_unpacks_to_too_much_is_refused() -> None:
    with zipfile.ZipFile("bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", " " * 200_000)

    with pytest.raises(DocumentError, match=r"bomb\.docx unpacks to more than"):
        load(["bomb.docx"], max_bytes=10_000)


@pytest.mark.parametrize(
    ("package", "name", "data"),
    [
        ("pypdf", "a.pdf", pdf("text")),
        ("markdownify", "a.html", b"<html><p>text"),
        ("bs4", "a.html", b"<html><p>text"),
    ],
)
def test_a_missing_package_is_named_and_in_a_folder_only_its_files_are_skipped(
    package: str, name: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    write(f"docs/{name}", data)
    write("docs/b.txt", "text")

    with pytest.raises(MissingExtra, match=r"pip install 'longroute\[files\]'"):
        load([f"docs/{name}"])
    loaded = load(["docs"])
    assert [document.id for document in loaded.documents] == ["docs/b.txt"]
    assert "pip install" in loaded.notes[0]


# ---- locate ----------------------------------------------------------------------------------------------------------


@given(text=st.text(alphabet="ab\n", max_size=50), data=st.data())
def test_line_and_column_lead_back_to_the_offset(text: str, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(text)))

    place = locate(Document(text), offset)

    assert sum(len(line) + 1 for line in text.split("\n")[: place.line - 1]) + place.column - 1 == offset


def test_an_offset_outside_the_document_is_refused() -> None:
    with pytest.raises(ValueError, match="offset 3 is outside the document"):
        locate(Document("ab"), 3)


# ---- conversations ---------------------------------------------------------------------------------------------------

TALK = "\n".join(f"{'Ada' if n % 2 else 'Ben'}: Turn number {n}." for n in range(1, 11))


def test_a_transcript_becomes_a_document_for_each_turn_and_a_note_says_so() -> None:
    loaded = load([write("talk.txt", TALK)])
    assert loaded.documents[2] == Document("Turn number 3.", "talk.txt#3", speaker="Ada")
    assert loaded.notes == ("talk.txt: read as a conversation, 10 turns of 2 speakers.",)


def test_what_is_said_about_a_chat_is_not_counted_as_a_turn() -> None:
    chat = b'{"title": "x", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    loaded = load([write("chat.json", chat)])
    assert len(loaded.documents) == 3
    assert loaded.notes == ("chat.json: read as a conversation, 2 turns of 2 speakers.",)


def test_a_chat_export_becomes_a_document_for_each_turn_and_other_json_stays_text() -> None:
    chat = b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    assert [d.id for d in load([write("chat.json", chat), write("other.json", b'{"a": 1}')]).documents] == [
        "chat.json#1",
        "chat.json#2",
        "other.json",
    ]


def test_code_that_looks_like_talk_stays_code() -> None:
    assert len(load([write("talk.py", TALK)]).documents) == 1
