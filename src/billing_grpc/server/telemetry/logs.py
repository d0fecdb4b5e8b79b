"""Structured logs on standard error: lines for people on a terminal, JSON elsewhere."""

import datetime as dt
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partialmethod
from typing import Any, Final, Literal

import grpc
import orjson
import structlog

from billing_grpc.server.call import current_request_id
from billing_grpc.server.telemetry.log_queue import Line, LogQueue
from billing_grpc.stalled_reader import PATIENCE
from billing_grpc.wire.trace_context import current_trace

RARELY: Final = frozenset({"storage failed", "stored override is not a recognised mode, closed to platform_managed"})
"""Events that every call may log for as long as a fault lasts; `Repeats` thins them out, and metrics count them."""
REPEAT_SECONDS: Final = 10.0

_STDERR: Final = 2

GRPC_FAILED: Final = "gRPC could not handle a call; its own words may hold what the caller sent and are left out"


class WithoutCallersBytes(logging.Filter):
    """Replaces the text of gRPC's records: of a header that is not UTF-8 it logs the bytes, which may be a token.

    An answer that gRPC could not send becomes a warning: mostly its call ended at its deadline in this very moment.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True; give gRPC's records a constant text and the name of the error's type alone."""
        library, kind = record.name.partition(".")[0], record.exc_info[0] if record.exc_info else None
        # asyncio reports the errors of gRPC's abandoned tasks, and this kind of error shows the bytes.
        of_its_task = library == "asyncio" and kind is not None and issubclass(kind, UnicodeError)
        if library == "grpc" or of_its_task:
            record.error = None if kind is None else kind.__name__
            if kind is not None and issubclass(kind, grpc.aio.InternalError):
                record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.msg, record.args = GRPC_FAILED, ()
            record.exc_info = record.exc_text = record.stack_info = None
        return True


class Repeats:
    """Drops an event of `RARELY` that was logged in the last ten seconds; the next such line counts the dropped ones."""

    def __init__(self) -> None:
        """Start with no event logged."""
        self._said: dict[tuple[str, ...], tuple[float, int]] = {}

    def __call__(self, logger: object, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Return the line.

        Raises:
            structlog.DropEvent: the line is dropped.
        """
        del logger, method
        if line["event"] not in RARELY:
            return line
        # The key has no free text, which may differ each time: so there are only as many keys as reasons and errors.
        key = (line["event"], str(line.get("reason")), str(line.get("error")))
        now = time.monotonic()
        said, left_out = self._said.get(key, (-REPEAT_SECONDS, 0))
        if now - said < REPEAT_SECONDS:
            self._said[key] = said, left_out + 1
            raise structlog.DropEvent
        self._said[key] = now, 0
        if left_out:
            line["left_out"] = left_out
        return line


def _of_the_call(logger: object, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the id of the request in progress, and its trace and span if there are any."""
    del logger, method
    if request_id := current_request_id.get(None):
        line.setdefault("request_id", request_id)
    if trace := current_trace():
        line["trace_id"], line["span_id"] = trace
    return line


class _Logger:
    """The logger of one of our modules, as structlog wraps it."""

    def __init__(self, queue: LogQueue, name: str) -> None:
        self.name = name
        self.enqueue = queue.enqueue


def _of_this_moment(logger: _Logger, level: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add what the thread that renders the line could not find out."""
    line["level"], line["logger"], line["timestamp"] = level, logger.name, time.time_ns()
    if line.get("exc_info") is True:
        line["exc_info"] = sys.exc_info()
    return line


def _method(level: str) -> Callable[..., None]:
    """Return the method of a logger that logs a line at this level, and returns at once."""

    def log(self: structlog.BoundLoggerBase, event: str, **fields: Any) -> None:
        line: Any = {**self._context, **fields, "event": event}
        try:
            for process in self._processors:
                line = process(self._logger, level, line)
        except structlog.DropEvent:
            return
        self._logger.enqueue(line)

    return log


def _nothing(*_: object, **__: object) -> None:
    """Log nothing."""


def _wrapper(least: str) -> type[structlog.BoundLoggerBase]:
    """Return the class of loggers whose methods below a level do nothing.

    The access log writes a line for each call, which takes a third less time than with structlog's own class.
    """
    levels = logging.getLevelNamesMapping()
    methods = {
        name: _method(name) if levels[name.upper()] >= levels[least] else _nothing
        for name in ("debug", "info", "warning", "error", "critical")
    }
    exception = partialmethod(methods["error"], exc_info=True)
    return type("BoundLogger", (structlog.BoundLoggerBase,), {**methods, "exception": exception})


def _json(line: Line) -> bytes:
    """Return a line as JSON in ASCII: a terminal or a log viewer may take other characters for a command."""
    if "exc_info" in line:
        line = structlog.processors.format_exc_info(None, "", line)
    try:
        text = orjson.dumps(line, default=repr)
    except TypeError:
        text = b""
    return text if text and text.isascii() else json.dumps(line, default=repr).encode()


def _face(descriptor: int, log_format: str, encoding: str) -> Callable[[Line], bytes]:
    """Return what makes a line of its fields: for people, or as JSON."""
    terminal = os.isatty(descriptor)
    if log_format == "json" or (log_format == "auto" and not terminal):
        return _json
    console = structlog.dev.ConsoleRenderer(
        colors=terminal, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    return lambda line: console(None, "", line).encode(encoding, "backslashreplace")


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _at(nanoseconds: int) -> str:
    """Return a time as text. Many lines share their second, so that its text is made once."""
    seconds, rest = divmod(nanoseconds // 1000, 1_000_000)
    return f"{_second(seconds)}.{rest:06}Z"


def configure(log_format: Literal["auto", "console", "json"], level: str, *, descriptor: int = _STDERR) -> None:
    """Send this package's and every library's records to standard error in one shape, from a thread of their own.

    Our own lines do not go through `logging`: they are queued as they are, and the thread renders them.

    Args:
        log_format: `console`, `json`, or `auto`: console on a terminal, else json.
        level: the least that is written.
        descriptor: where to, if not to standard error.
    """
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    face = _face(descriptor, log_format, encoding)

    def render(line: Line) -> bytes:
        line["timestamp"] = _at(line["timestamp"])
        return face(line) + b"\n"

    handler = LogQueue(
        descriptor,
        encoding,
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                _of_the_call,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                lambda _logger, _method, line: face(line).decode(encoding),
            ],
        ),
        render,
    )
    handler.addFilter(WithoutCallersBytes())
    root = logging.getLogger()
    root.handlers = [handler]
    logging.captureWarnings(capture=True)
    root.setLevel(level)
    # Libraries report their routine at INFO; only what went wrong is of interest here. The pool warns of every failed
    # connection every second; that the database cannot be reached is said by us, once.
    for library in ("yoyo", "asyncio", "grpc", "psycopg", "urllib3", "requests"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    # Repeats what it does not like of a caller's headers, and every failed attempt to send spans; of those, we tell.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
    structlog.configure(
        processors=[Repeats(), _of_the_call, _of_this_moment],
        logger_factory=lambda name="": _Logger(handler, name),
        wrapper_class=_wrapper(level),
        cache_logger_on_first_use=True,
    )


def flush(patience: float = PATIENCE) -> None:
    """Wait for lines that are not written yet, within the bounds of `LogQueue.flush`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogQueue):
            handler.flush(patience)


def on_drop(count: Callable[[], None]) -> None:
    """Call `count` for every log line that is dropped from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogQueue):
            handler.on_drop(count)
