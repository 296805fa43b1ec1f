"""An HTTP/1.1 client on a blocking socket that repairs nothing and hides nothing: exact bytes out, exact bytes in."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from .recording import Headers, parse_head, value_of


class CutOff(Exception):
    """The answer ended before its framing said so."""

    def __init__(self, had: int) -> None:
        super().__init__(f"the connection ended in the middle of the answer, after {had} bytes")


@dataclass(frozen=True, slots=True)
class Answer:
    version: bytes
    status: int
    headers: Headers
    body: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        return value_of(self.headers, name)


class Connection:
    """One connection. Waiting longer than patience_s for a byte is a failed check, not an error of the network."""

    def __init__(self, port: int, patience_s: float, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:  # must be set before connecting, which is when the window is agreed on
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(patience_s)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.patience_s = patience_s
        self._buffer = bytearray()
        self._ended = False
        self._was_reset = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Leaves with RST, as a killed client does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise AssertionError(f"nothing read our request for {self.patience_s:g} s") from None

    def answer(self, to: bytes = b"POST") -> Answer:
        """The next final answer, whole. `to` is the method it answers: HEAD has no body."""
        head = self.head()
        while head.status < 200:
            head = self.head()
        return Answer(head.version, head.status, head.headers, self.body(head, to))

    def head(self) -> Answer:
        """The next head, an interim one too."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not self._more():
                raise CutOff(len(self._buffer))
        first, headers = parse_head(self._take(end + 4))
        version, status, *_ = first.split(b" ", 2)
        return Answer(version, int(status), headers)

    def body(self, head: Answer, to: bytes = b"POST") -> bytes:
        body = bytearray()
        while piece := self.piece(head, len(body), to):
            body += piece
        return bytes(body)

    def piece(self, head: Answer, had: int, to: bytes = b"POST") -> bytes:
        """The next bytes of a body of which `had` were read; empty at its end."""
        if to == b"HEAD" or head.status in (204, 304):
            return b""
        if head.header(b"transfer-encoding") is not None:
            return self._chunk(had)
        length = head.header(b"content-length")
        if length is None:
            if not self._buffer and not self._more() and self._was_reset:
                raise CutOff(had)
            return self._take(len(self._buffer))
        if had == int(length):
            return b""
        if not self._buffer and not self._more():
            raise CutOff(had)
        return self._take(min(int(length) - had, len(self._buffer)))

    def at_least(self, head: Answer, size: int) -> bytes:
        """The first bytes of a body, `size` or some more."""
        body = b""
        while len(body) < size:
            piece = self.piece(head, len(body))
            assert piece, f"the answer ended after {body!r}"
            body += piece
        return body

    def ends(self) -> bool:
        """The other side closes now, without another byte."""
        return not self._buffer and not self._more()

    def _chunk(self, had: int) -> bytes:
        """The next chunk's data; empty after the last chunk and its trailers."""
        try:
            size = int(self._line(had).partition(b";")[0], 16)
        except ValueError:
            raise CutOff(had) from None  # no chunk follows, so no client takes this for the end
        if not size:
            while self._line(had):
                pass
            return b""
        while len(self._buffer) < size + 2:
            if not self._more():
                raise CutOff(had)
        data = self._take(size)
        assert self._take(2) == b"\r\n", "a chunk of the answer has another length than it says"
        return data

    def _line(self, had: int) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if not self._more():
                raise CutOff(had)
        return self._take(end + 2)[:-2]

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _more(self) -> bool:
        """Reads on; false at the end of the connection."""
        if self._ended:
            return False
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            raise AssertionError(f"no byte of the answer came for {self.patience_s:g} s") from None
        except ConnectionResetError:
            data = b""
            self._was_reset = True
        self._buffer += data
        self._ended = not data
        return not self._ended
