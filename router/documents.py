"""Files → documents: finds the files, decodes text, and takes the text out of HTML, PDF and Word files. What is clearly
a chat export or a transcript becomes a document for each turn (see `conversations.py`), other files become one each.

What a document means (chunks, headings, code) is left to the retrievers; printing the notes is left to the doors.
Text keeps its newlines as they are, because every offset in longroute counts characters of `Document.text`. HTML and
Word files become Markdown. Word headers, footers, footnotes, text boxes and content controls are not read.
"""

from __future__ import annotations

import bisect
import codecs
import contextlib
import glob
import io
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .conversations import ABOUT, conversation
from .core import Document, Kind
from .errors import DocumentError, MissingExtra

MAX_BYTES = 200_000_000
STDIN = "-"

_HEAD_BYTES = 8192
_ZIP = b"PK\x03\x04"
_SKIPPED_FOLDERS = {"node_modules", "__pycache__", "site-packages"}
_KINDS: dict[Kind, str] = {
    "markdown": ".md .markdown .mdown .mkd .mdx .qmd .rmd",
    "html": ".html .htm .xhtml",
    "code": ".py .pyi .pyx .js .jsx .mjs .cjs .ts .tsx .vue .java .kt .kts .scala .groovy .c .h .cc .cpp .cxx .hh .hpp "
    ".cs .fs .go .rs .swift .m .mm .rb .php .pl .pm .lua .r .jl .dart .ex .exs .erl .hs .ml .clj .el .lisp .sh .bash "
    ".zsh .fish .ps1 .bat .sql .css .scss .less .cmake .gradle .tf .proto .graphql .cu .zig .nim .f90 .asm .s .v .vhd",
    "pdf": ".pdf",
    "docx": ".docx",
}
_KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}
_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\xd0\xcf\x11\xe0": "an old or password-protected Office file; save it as .docx without a password",
    b"{\\rtf": "an RTF file; save it as .docx or plain text",
    _ZIP: "a ZIP archive, or a document format that is one; unpack it, or export it as PDF, .docx or text",
}
# The longer mark first: UTF-32-LE begins with the mark of UTF-16-LE.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE_CODECS = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_CONTROL = bytes(set(range(32)) - {7, 8, 9, 10, 12, 13, 27})
_DECLARED_ENCODING = re.compile(
    rb"""<(?:meta|\?xml)\b[^>]*?(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE
)
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
# In cp1252: three accented letters in a row, a symbol inside a word, a low quotation mark inside one.
_NOT_WESTERN = re.compile(
    rb"[\xc0-\xff]{3}|[A-Za-z\xc0-\xff][\xa1-\xa9\xac\xaf\xb1\xb4-\xb6\xb8\xb9\xbc-\xbf\x81\x8d\x8f\x90\x9d]"
    rb"|[\x80-\xff][\x82\x83][\x80-\xff]"
)
_HTML_START = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html\b)", re.IGNORECASE | re.DOTALL)
_HTML_NOISE = ("head", "script", "style", "template", "noscript", "svg", "nav")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read, and what a person should know about it: files skipped, bytes replaced, pages without text."""

    documents: tuple[Document, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a document as people name it; line and column count from 1, page is None where there are none."""

    line: int
    column: int
    page: int | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """One thing to read. path: None for standard input. found: met in a folder or by a pattern, not named outright."""

    id: str
    path: Path | None
    found: bool = False


class _BinaryFile(DocumentError):
    """Not text at all; in a folder such files are only counted."""


class _TooLarge(DocumentError):
    """Beyond max_bytes; never skipped, because answers from a part of the documents would look like any other."""


def load(sources: Sequence[str | Path], *, stdin: BinaryIO | None = None, max_bytes: int = MAX_BYTES) -> Loaded:
    """Read files, folders, glob patterns and, for "-", standard input.

    A document's id is its path as given; of a conversation's third turn, `path#3`. What was named outright must be
    readable; what was found in a folder or by a pattern is skipped with a note where it is not. max_bytes bounds all
    sources together, and so the memory used.
    Raises DocumentError, which names the file and the remedy, and MissingExtra where a format needs a package.
    """
    if not sources:
        raise DocumentError("No documents were given. Name files, folders or patterns, or '-' for standard input.")
    named = ", ".join(map(str, sources))
    documents: list[Document] = []
    notes: list[str] = []
    binary_files = 0
    room = max_bytes
    for source in _unique(_sources(sources, notes)):
        try:
            data = _read(source, stdin, room)
            if len(data) > room:
                size = f" ({source.path.stat().st_size:,} bytes)" if source.path else ""
                raise _TooLarge(
                    f"{source.id}{size} goes beyond the limit of {max_bytes:,} bytes for all documents together. "
                    "Name only the files you need, split the file, or raise max_bytes."
                )
            document = _document(source.id, data, max_bytes, notes)
            turns = conversation(document.text, source.id) if document.kind == "text" else ()
        except (DocumentError, MissingExtra) as error:
            if not source.found or isinstance(error, _TooLarge):
                raise
            if isinstance(error, _BinaryFile):
                binary_files += 1
            else:
                notes.append(f"Skipped: {error}")
            continue
        room -= len(data)
        if turns:
            speakers = [turn.speaker for turn in turns if turn.speaker != ABOUT]
            notes.append(
                f"{source.id}: read as a conversation, {len(speakers)} turns of {len(set(speakers))} speakers."
            )
            documents += turns
        elif document.text.strip() or not source.found:
            documents.append(document)
    if binary_files:
        notes.append(f"Skipped {binary_files} binary file{'s' if binary_files > 1 else ''} in {named}.")
    if not any(document.text.strip() for document in documents):
        if all(source == "-" for source in sources):
            raise DocumentError("Nothing came in on standard input. Pipe a text into it, or name files.")
        raise DocumentError(
            f"There is no text in {named}. In folders, hidden files, virtual environments, node_modules and binary "
            f"files are skipped; name such a file itself to read it. {' '.join(notes[-3:])}".rstrip()
        )
    return Loaded(tuple(documents), tuple(notes))


def locate(document: Document, offset: int) -> Location:
    """Line, column and page of a character. Lines end with a newline character.

    Counts newlines instead of keeping an index: well under a millisecond per megabyte before the offset.
    """
    if not 0 <= offset <= len(document.text):
        raise ValueError(f"offset {offset} is outside the document, which has {len(document.text)} characters")
    line_start = document.text.rfind("\n", 0, offset) + 1
    page = bisect.bisect_right(document.page_starts, offset) if document.page_starts else None
    return Location(document.text.count("\n", 0, offset) + 1, offset - line_start + 1, page)


# ---- which files -----------------------------------------------------------------------------------------------------


def _sources(sources: Sequence[str | Path], notes: list[str]) -> Iterator[_Source]:
    for given in sources:
        path = Path(given).expanduser()
        if given == STDIN:
            yield _Source("<stdin>", None)
        elif path.is_dir():
            yield from _folder(path, notes)
        elif glob.has_magic(str(path)) and not path.exists():
            # Not Path.glob, whose patterns match hidden files; a shell's do not.
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            if not any(match.is_file() for match in matches):
                raise DocumentError(f"No file matches the pattern {given}. Check the folder and the spelling.")
            yield from (_source(match, found=True) for match in matches if match.is_file())
        else:
            yield _source(path)


def _folder(folder: Path, notes: list[str]) -> Iterator[_Source]:
    def unreadable(error: OSError) -> None:
        notes.append(f"Skipped: folder {error.filename} cannot be read ({error.strerror}).")

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED_FOLDERS
            and not Path(parent, name, "pyvenv.cfg").exists()
        )
        yield from (_source(Path(parent, name), found=True) for name in sorted(names) if not name.startswith("."))


def _source(path: Path, *, found: bool = False) -> _Source:
    # A file name may hold bytes that are no text; an id must be text.
    return _Source(os.fsencode(path.as_posix()).decode("utf-8", "replace"), path, found)


def _unique(sources: Iterator[_Source]) -> Iterator[_Source]:
    seen: set[str] = set()
    for source in sources:
        key = os.path.realpath(source.path) if source.path else STDIN
        if key not in seen:
            seen.add(key)
            yield source


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _read(source: _Source, stdin: BinaryIO | None, room: int) -> bytes:
    """At most room + 1 bytes, so that the caller can tell that there were more."""
    try:
        with source.path.open("rb") if source.path else contextlib.nullcontext(stdin or sys.stdin.buffer) as stream:
            head = stream.read(min(_HEAD_BYTES, room + 1))
            if reason := _binary_reason(head, Path(source.id).suffix.lower()):
                raise _BinaryFile(f"{source.id} is not text: it looks like {reason}.")
            return head + stream.read(room + 1 - len(head))
    except FileNotFoundError as error:
        raise DocumentError(f"{source.id} does not exist. Check the path; it is relative to {Path.cwd()}.") from error
    except PermissionError as error:
        raise DocumentError(f"{source.id} may not be read by this user. Change its permissions or copy it.") from error
    except OSError as error:
        raise DocumentError(
            f"{source.id} cannot be read: {error.strerror or error}. Check the file or disk."
        ) from error


def _binary_reason(head: bytes, suffix: str) -> str | None:
    """What the first bytes look like where they are no text, for a person to read."""
    if b"%PDF-" in head[:1024] or (head.startswith(_ZIP) and suffix in {"", ".docx"}):
        return None
    for magic, reason in _MAGIC.items():
        if head.startswith(magic):
            return reason
    if head.startswith(tuple(mark for mark, _ in _BYTE_ORDER_MARKS)) or _wide_codec(head):
        return None
    controls = len(head) - len(head.translate(None, _CONTROL))
    return "binary data (it holds control characters)" if controls > 0.02 * len(head) else None


def _wide_codec(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark: the reading that gives text, and the most ASCII in it."""
    best, most = None, 0
    for codec in _WIDE_CODECS if b"\0" in head else ():
        with contextlib.suppress(UnicodeDecodeError):
            text = head[: len(head) // 4 * 4].decode(codec).removesuffix("\0")
            plain = sum(character.isascii() for character in text)
            shown = sum(character.isprintable() or character.isspace() for character in text)
            if shown > 0.97 * len(text) and plain > most:
                best, most = codec, plain
    return best


def _decode(data: bytes, declared: str | None) -> tuple[str, str]:
    """The text, and a note where reading it took a guess or lost something."""
    for mark, codec in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _replacing(data[len(mark) :], codec)
    if wide := _wide_codec(data[:_HEAD_BYTES]):
        return _replacing(data, wide)
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode("utf-8"), ""
    if declared:
        with contextlib.suppress(UnicodeDecodeError, LookupError):
            return data.decode(declared), ""
    text, note = _replacing(data, "utf-8")
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    # In damaged UTF-8 the good sequences outnumber the bad; in a legacy encoding read as UTF-8 they never do.
    if beyond_ascii > 2 * text.count("\ufffd"):
        return text, note
    codec = _legacy_codec(data)
    text, note = _replacing(data, codec)
    return text, note or f"read as {codec}, which is a guess; save it as UTF-8 if letters look wrong"


def _replacing(data: bytes, codec: str) -> tuple[str, str]:
    text = data.decode(codec, "replace")
    genuine = "\ufffd".encode(codec, "ignore")
    lost = text.count("\ufffd") - (data.count(genuine) if genuine else 0)
    return text, f"bytes that are no {codec.upper()} were replaced, {lost} in all" if lost > 0 else ""


def _legacy_codec(data: bytes) -> str:
    """The likeliest encoding of text that is not Unicode. Western European where nothing speaks against it."""
    # From the first line that is not ASCII; what comes before it says nothing, and 64 kB say enough.
    first = _BEYOND_ASCII.search(data)
    start = data.rfind(b"\n", 0, first.start()) + 1 if first else 0
    sample = data[start : start + 65536]
    # Statistics fail on a short text with one curly quote in it, so ask them only where cp1252 would look wrong.
    if not _NOT_WESTERN.search(sample):
        return "cp1252"
    try:
        from charset_normalizer import from_bytes
    except ImportError:  # a nicety, and the note on the document says that the encoding is a guess
        return "cp1252"
    best = from_bytes(sample).best()
    return "cp1252" if best is None else best.encoding


# ---- formats ---------------------------------------------------------------------------------------------------------


def _document(name: str, data: bytes, max_bytes: int, notes: list[str]) -> Document:
    kind = _kind(name, data)
    if kind == "pdf":
        return _pdf(name, data, notes)
    if kind == "docx":
        return Document(_docx(name, data, max_bytes), name, kind)
    declared = _DECLARED_ENCODING.search(data[:1024])
    text, note = _decode(data, declared[1].decode("ascii", "replace") if declared else None)
    if note:
        notes.append(f"{name}: {note}.")
    return Document(_html(text) if kind == "html" else text, name, kind)


def _kind(name: str, data: bytes) -> Kind:
    """By content for what has a signature, since names lie and standard input has none; else by the name."""
    if b"%PDF-" in data[:1024]:
        return "pdf"
    if data.startswith(_ZIP):
        return "docx"
    if _HTML_START.match(data[:_HEAD_BYTES]):
        return "html"
    kind = _KIND_OF_SUFFIX.get(Path(name).suffix.lower(), "text")
    return "text" if kind in {"pdf", "docx"} else kind


def _pdf(name: str, data: bytes, notes: list[str]) -> Document:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise _missing(name, "pypdf") from error
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError(
                f"{name} is encrypted and needs a password. Save a copy without one, for example with "
                "`qpdf --decrypt --password=... in.pdf out.pdf`."
            )
        n_pages = len(reader.pages)
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DocumentError(
            f"{name} is not a readable PDF ({type(error).__name__}). Repair it, for example with "
            "`qpdf in.pdf out.pdf`, or export it again."
        ) from error
    pages: list[str] = []
    failed: list[int] = []
    for number in range(n_pages):
        try:
            pages.append(_unicode(reader.pages[number].extract_text()))
        except Exception:  # pypdf meets a broken page with any error there is; the other pages are worth having
            pages.append("")
            failed.append(number + 1)
    blank = [number for number, page in enumerate(pages, start=1) if not page.strip() and number not in failed]
    if not any(page.strip() for page in pages):
        raise DocumentError(
            f"{name} has {n_pages} pages but no text; it is probably scanned. Recognise its text first, for example "
            "with `ocrmypdf in.pdf out.pdf`."
        )
    for numbers, what in ((failed, "could not be read"), (blank, "without text, perhaps scanned")):
        if numbers:
            notes.append(f"{name}: {len(numbers)} of {n_pages} pages {what} (the first is page {numbers[0]}).")
    starts, offset = [], 0
    for page in pages:
        starts.append(offset)
        offset += len(page) + 1
    # One newline, not a blank line: sentences run over the ends of pages.
    return Document("\n".join(pages), name, "pdf", tuple(starts))


def _docx(name: str, data: bytes, max_bytes: int) -> str:
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except zipfile.BadZipFile as error:
        raise DocumentError(f"{name} is a damaged ZIP archive. Save it again, or export it as PDF.") from error
    if not any(member.filename == "word/document.xml" for member in members):
        raise _BinaryFile(f"{name} is not text: it looks like {_MAGIC[_ZIP]}.")
    if sum(member.file_size for member in members) > 10 * max_bytes:
        raise DocumentError(f"{name} unpacks to more than {10 * max_bytes:,} bytes. Raise max_bytes if you trust it.")
    try:
        import docx
    except ImportError as error:
        raise _missing(name, "python-docx") from error
    try:
        return _unicode("\n\n".join(_docx_blocks(docx.Document(io.BytesIO(data)))))
    except (KeyError, ValueError, SyntaxError) as error:  # lxml's parse errors are syntax errors
        raise DocumentError(f"{name} is not a readable Word file. Open and save it again, or export PDF.") from error


def _docx_blocks(parent: Any) -> Iterator[str]:
    """Paragraphs and tables of a document or table cell, in order, as Markdown."""
    for block in parent.iter_inner_content():
        if hasattr(block, "rows"):
            yield "\n".join(_docx_rows(block))
        elif text := block.text.strip():
            style = block.style.name if block.style is not None else ""
            if level := re.fullmatch(r"Heading (\d)", style):
                yield f"{'#' * min(int(level[1]), 6)} {text}"
            elif style == "Title":
                yield f"# {text}"
            else:
                yield f"- {text}" if style.startswith("List") else text


def _docx_rows(table: Any) -> Iterator[str]:
    for number, row in enumerate(table.rows):
        # A merged cell is listed once for every column it spans.
        cells = {id(cell._tc): " ".join(" ".join(_docx_blocks(cell)).split()) for cell in row.cells}
        yield f"| {' | '.join(cells.values())} |"
        if number == 0:
            yield f"|{' --- |' * len(cells)}"


def _html(text: str) -> str:
    try:
        from bs4 import BeautifulSoup
        from markdownify import MarkdownConverter
    except ImportError as error:
        raise _missing("an HTML document", "markdownify") from error
    soup = BeautifulSoup(text, "html.parser")
    for element in soup(_HTML_NOISE):
        element.decompose()
    converter = MarkdownConverter(
        heading_style="ATX", strip=["a", "img"], escape_asterisks=False, escape_underscores=False
    )
    try:
        markdown = converter.convert_soup(soup)
    except RecursionError:  # absurdly deep markup: its text without the structure
        markdown = soup.get_text("\n")
    return _unicode(re.sub(r"\n{3,}", "\n\n", markdown).strip() + "\n")


def _unicode(text: str) -> str:
    """Without lone surrogates, which PDF fonts and character references can produce and no encoder accepts."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _missing(name: str, package: str) -> MissingExtra:
    return MissingExtra(f"Reading {name} needs {package}. Install it with: pip install 'longroute[files]'")
