"""Structured logs on standard error: lines for people on a terminal, JSON elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Final, Literal

import structlog

from billing_grpc.server.call import current_request_id
from billing_grpc.server.telemetry.log_queue import LogQueue
from billing_grpc.standing_reader import PATIENCE
from billing_grpc.wire.trace_context import current_trace

RARELY: Final = frozenset({"storage failed", "stored override is not a recognised mode, closed to platform_managed"})
"""Events that every call may log for as long as a fault lasts; `Repeats` thins them out, and metrics count them."""
REPEAT_SECONDS: Final = 10.0

_STDERR: Final = 2

GRPC_FAILED: Final = "gRPC could not handle a call; its own words may hold what the caller sent and are left out"


class WithoutCallersBytes(logging.Filter):
    """Replaces the text of gRPC's records: of a header that is not UTF-8 it logs the bytes, which may be a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True; give gRPC's records a constant text and the name of the error's type alone."""
        library, kind = record.name.partition(".")[0], record.exc_info[0] if record.exc_info else None
        # asyncio reports the errors of gRPC's abandoned tasks, and this kind of error shows the bytes.
        of_its_task = library == "asyncio" and kind is not None and issubclass(kind, UnicodeError)
        if library == "grpc" or of_its_task:
            record.error = None if kind is None else kind.__name__
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


def _with_the_error(logger: object, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the error that is being handled; the thread that writes the line could not find it."""
    del logger, method
    if line.get("exc_info") is True:
        line["exc_info"] = sys.exc_info()
    return line


def configure(log_format: Literal["auto", "console", "json"], level: str, *, descriptor: int = _STDERR) -> None:
    """Send this package's and every library's records to standard error in one shape, from a thread of their own.

    Args:
        log_format: `console`, `json`, or `auto`: console on a terminal, else json.
        level: the least that is written.
        descriptor: where to, if not to standard error.
    """
    terminal = os.isatty(descriptor)
    console = log_format == "console" or (log_format == "auto" and terminal)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _of_the_call,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    face: list[structlog.typing.Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=terminal, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=True)]
    )
    handler = LogQueue(
        descriptor,
        getattr(sys.stderr, "encoding", None) or "utf-8",
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *face],
        ),
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
        processors=[
            structlog.stdlib.filter_by_level,
            Repeats(),
            *shared,
            _with_the_error,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
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
