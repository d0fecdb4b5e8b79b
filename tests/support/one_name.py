"""A DNS server on loopback that knows one name, whose address a test may change or take away."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_NO_ERROR: Final = 0x8180
_NO_SUCH_NAME: Final = 0x8183
_A: Final = 1
_TYPE: Final = struct.Struct(">HH")


class OneName:
    """Answers every question with the same address.

    Attributes:
        address: the IPv4 address; None while there is no such name.
        port: where it answers, over UDP.
    """

    def __init__(self, listening: socket.socket) -> None:
        self.address: str | None = None
        self.port: int = listening.getsockname()[1]
        self._listening = listening

    def answer_until_closed(self) -> None:
        """Ends when an empty datagram comes."""
        while True:
            question, peer = self._listening.recvfrom(512)
            if not question:
                return
            self._listening.sendto(self._answer(question), peer)

    def _answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 1 + _TYPE.size
        kind, _ = _TYPE.unpack(question[end - _TYPE.size : end])
        record = b""
        if self.address is not None and kind == _A:
            record = b"\xc0\x0c" + struct.pack(">HHIH", _A, 1, 0, 4) + socket.inet_aton(self.address)
        flags = _NO_SUCH_NAME if self.address is None else _NO_ERROR
        return question[:2] + struct.pack(">5H", flags, 1, bool(record), 0, 0) + question[12:end] + record


@contextmanager
def one_name() -> Iterator[OneName]:
    """A server that is running; it knows no address yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        server = OneName(listening)
        thread = threading.Thread(target=server.answer_until_closed)
        thread.start()
        try:
            yield server
        finally:
            listening.sendto(b"", ("127.0.0.1", server.port))
            thread.join()
