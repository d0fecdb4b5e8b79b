"""What is left of other libraries' records before they are written."""

import datetime as dt
import json
import logging
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider

from billing_grpc.server.call import current_request_id
from billing_grpc.server.telemetry import logs
from billing_grpc.server.telemetry.log_queue import DROPPED
from billing_grpc.server.telemetry.logs import GRPC_FAILED, REPEAT_SECONDS, Repeats, WithoutCallersBytes
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.stalled_reader import write_within
from billing_grpc.wire.trace_context import current_trace
from tests.support.clocks import Clock

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


@pytest.mark.parametrize(("error", "level"), [(grpc.aio.InternalError("x"), "warning"), (UNREADABLE, "error")])
def test_an_answer_that_came_too_late_for_its_caller_is_no_error(written: Path, error: Exception, level: str) -> None:
    logging.getLogger("grpc._cython.cygrpc").error("said", exc_info=error)
    logs.flush()
    (line,) = written.read_text().splitlines()
    assert json.loads(line)["level"] == level
    assert json.loads(line)["error"] == type(error).__name__


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Path]:
    """The file that is written to after logs were set up, JSON at the loudest level."""
    text, root = tmp_path / "log", logging.getLogger()
    handlers, level = root.handlers, root.level
    levels = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}
    with text.open("wb") as file:
        logs.configure("json", "DEBUG", descriptor=file.fileno())
        yield text
        logs.flush()
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


def lines(text: Path) -> list[dict[str, Any]]:
    logs.flush()
    return [json.loads(line) for line in text.read_text().splitlines()]


def test_every_line_of_a_call_bears_its_name_and_its_trace(written: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    structlog.stdlib.get_logger("before").info("outside")
    token = current_request_id.set("request-7")
    span = Tracing(provider.get_tracer("test")).call_span("/x/y", ())
    ids = current_trace()
    structlog.stdlib.get_logger("ours").info("inside")
    structlog.stdlib.get_logger("ours").info("named by itself", request_id="another")
    logging.getLogger("a_library").warning("a library's")
    span.end("OK")
    current_request_id.reset(token)

    outside, *inside = lines(written)
    assert not {"request_id", "trace_id", "span_id"} & outside.keys()
    assert [line["request_id"] for line in inside] == ["request-7", "another", "request-7"]
    assert {(line["trace_id"], line["span_id"]) for line in inside} == {ids}


@pytest.mark.parametrize("library", ["opentelemetry.trace.span", "urllib3.connectionpool", "psycopg", "grpc._server"])
def test_what_libraries_say_of_their_routine_or_of_headers_is_not_written(library: str, written: Path) -> None:
    logging.getLogger(library).debug("Bearer a-token")
    logging.getLogger(library).info("Bearer a-token")
    logging.getLogger("opentelemetry.trace.span").error("Member doesn't match %s", "a-token")

    assert lines(written) == []


def test_a_line_has_what_its_logger_is_bound_to_unless_it_is_below_the_level(written: Path) -> None:
    with written.open("ab") as file:
        logs.configure("json", "WARNING", descriptor=file.fileno())
        ours = structlog.stdlib.get_logger("ours").bind(part="one", number=1)
        ours.debug("lower")
        ours.info("lower")
        ours.warning("a warning", number=2)
        ours.error("an error")

        assert [(line["event"], line["level"], line["part"], line["number"]) for line in lines(written)] == [
            ("a warning", "warning", "one", 2),
            ("an error", "error", "one", 1),
        ]


def test_a_line_that_is_dropped_raises_nothing(written: Path) -> None:
    for _ in range(3):
        structlog.stdlib.get_logger("ours").warning("storage failed", reason="test")

    assert [line["event"] for line in lines(written)] == ["storage failed"]


def test_an_error_that_is_being_handled_is_in_the_line_of_another_thread(written: Path) -> None:
    try:
        os.environ["NO SUCH VARIABLE"]
    except KeyError:
        structlog.stdlib.get_logger("ours").exception("failed")
        logging.getLogger("a_library").exception("failed too")

    assert ["KeyError: 'NO SUCH VARIABLE'" in line["exception"] for line in lines(written)] == [True, True]


def test_a_library_s_line_has_the_time_at_which_it_was_said(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = threading.Event()

    def slow(*_: object) -> None:
        writing.set()
        time.sleep(0.3)

    with monkeypatch.context() as held:
        held.setattr("billing_grpc.server.telemetry.log_queue.write_all", slow)
        structlog.stdlib.get_logger("ours").info("holds the writer up")
        assert writing.wait(5)
        before = dt.datetime.now(dt.UTC)
        logging.getLogger("a_library").warning("said")
        after = dt.datetime.now(dt.UTC)
        time.sleep(0.1)
    (line,) = lines(written)
    assert before <= dt.datetime.fromisoformat(line["timestamp"]) <= after


def test_lines_that_cannot_be_written_or_made_are_counted(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[None] = []
    logs.on_drop(lambda: dropped.append(None))
    log = structlog.stdlib.get_logger("ours")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as held:
        held.setattr("billing_grpc.server.telemetry.log_queue.write_all", full)
        log.info("no room")
        log.info("no room")
        logs.flush()
    log.info("no JSON", field={("no", "text"): 1})
    log.info("room")

    assert [(line["event"], line.get("lines")) for line in lines(written)] == [("room", None), (DROPPED, 3)]
    assert len(dropped) == 3


def test_lines_are_written_in_pieces_of_whole_lines_that_a_pipe_does_not_mix(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[bytes] = []
    with monkeypatch.context() as held:
        held.setattr("billing_grpc.server.telemetry.log_queue.write_all", lambda _, data: pieces.append(bytes(data)))
        log = structlog.stdlib.get_logger("ours")
        for number in range(200):
            log.info("one of many", number=number, text="x" * (number % 90))
        log.info("longer than a piece", text="x" * 2 * select.PIPE_BUF)
        logs.flush()

    assert all(piece.endswith(b"\n") for piece in pieces)
    assert all(len(piece) <= select.PIPE_BUF for piece in pieces[:-1])
    assert len(pieces) < 150, "several lines share a write"
    assert [json.loads(line).get("number") for line in b"".join(pieces).splitlines()] == [*range(200), None]
    assert lines(written) == []


TEXTS: Final = {"ASCII": "a", "accent": "\u00e9", "a line break of Unicode": "a\u2028b", "half a character": "\udcff"}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_line_is_ascii_whatever_it_holds(text: str, written: Path) -> None:
    structlog.stdlib.get_logger("ours").info("held", text=text, number=2**70, path=Path("/x"))
    (line,) = lines(written)

    assert written.read_bytes().isascii()
    assert (line["text"], line["number"]) == (text, 2**70)
    assert set(line) == {"text", "number", "path", "event", "level", "logger", "timestamp"}


def test_a_descriptor_that_does_not_block_gets_every_line() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    assert not write_within(writer, b"x" * 200_000, 0.2)
    read = 0
    while read < 200_000:
        read += len(os.read(reader, 65536))
    assert write_within(writer, b"y")
    assert os.read(reader, 2) == b"y"
    os.close(reader)
    assert write_within(writer, b"nobody reads any more, and nothing is raised")
    os.close(writer)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("billing_grpc.server.telemetry.logs.time", clock)
    return clock


def said(repeats: Repeats, **line: Any) -> dict[str, Any] | None:
    try:
        return dict(repeats(None, "warning", line))
    except structlog.DropEvent:
        return None


def test_a_line_that_an_outage_repeats_is_written_at_times_with_the_number_left_out(clock: Clock) -> None:
    repeats, failed = Repeats(), {"event": "storage failed", "reason": "DATABASE_TIMEOUT", "error": "X"}
    assert said(repeats, **failed, text="a") == {**failed, "text": "a"}
    assert [said(repeats, **failed, text=str(number)) for number in range(5)] == [None] * 5
    another = {**failed, "reason": "DATABASE_DENIED"}
    assert said(repeats, **another) == another, "another reason is another line"
    clock.now += REPEAT_SECONDS
    assert said(repeats, **failed) == {**failed, "left_out": 5}
    clock.now += REPEAT_SECONDS
    assert said(repeats, **failed) == failed


def test_a_degraded_decision_is_always_written(clock: Clock) -> None:
    repeats = Repeats()
    line = {"event": "billing mode could not be read, defaulting to platform_managed for safety", "reason": "X"}

    assert [said(repeats, **line) for _ in range(100)] == [line] * 100
    assert clock.now == 1000.0
