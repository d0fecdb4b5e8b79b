"""What is left of other libraries' records before they are written."""

import logging
from typing import Final

import pytest

from billing_grpc.logs import GRPC_FAILED, WithoutCallersBytes

UNREADABLE: Final = UnicodeDecodeError("utf-8", b"a-token\xff", 7, 8, "invalid start byte")

# id: logger, error, whether its text is taken away
RECORDS: Final[dict[str, tuple[str, Exception | None, bool]]] = {
    "gRPC": ("grpc._cython.cygrpc", UNREADABLE, True),
    "gRPC, without an error": ("grpc", None, True),
    "a task of gRPC": ("asyncio", UNREADABLE, True),
    "another task": ("asyncio", KeyError("x"), False),
    "a slow task": ("asyncio", None, False),
    "ours": ("billing_grpc.server", KeyError("x"), False),
    "a library with a similar name": ("grpcx", None, False),
}


@pytest.mark.parametrize(("logger", "error", "taken"), RECORDS.values(), ids=RECORDS)
def test_nothing_that_a_caller_sent_is_left_in_a_record(logger: str, error: Exception | None, *, taken: bool) -> None:
    info = None if error is None else (type(error), error, None)
    record = logging.LogRecord(logger, logging.ERROR, "x.py", 1, "said %r", (b"a-token",), info, sinfo="a-token")

    assert WithoutCallersBytes().filter(record)

    assert record.getMessage() == (GRPC_FAILED if taken else "said b'a-token'")
    assert (record.exc_info is None) == (taken or error is None)
    assert ("a-token" in logging.Formatter().format(record)) == (not taken)
    if taken:
        assert record.__dict__["error"] == (None if error is None else type(error).__name__)
