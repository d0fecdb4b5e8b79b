"""Count and log each fallback, and say in the answer why it is one."""

import logging
from typing import Final

from billing_grpc.client.metrics import count_fallbacks
from billing_grpc.errors import (
    AnswerInvalid,
    BillingError,
    CallError,
    ClientMisused,
    RequestError,
    ServerRefused,
    ServerUnreachable,
    StorageError,
    printable,
    shown_notes,
)
from billing_grpc.model import ResolutionError

# The application's own logging and metrics, not the service's: this module lives in other people's processes.
log = logging.getLogger("billing_grpc.client")

_MESSAGES: Final = {
    ServerUnreachable.reason: "the server cannot be reached, or did not answer in time; retry",
    ServerRefused.reason: "the server refused to answer; the caller's log says why",
    AnswerInvalid.reason: "the server's answer cannot be used; the caller's log says why",
}


def record_fallback(name: str, error: Exception, decisions: int = 1) -> ResolutionError:
    """Log one line, count each decision, and return the error that the fallback carries.

    Args:
        name: the method's bare name.
        error: why there is no usable answer.
        decisions: how many decisions get the fallback.
    """
    reason = ServerRefused.reason
    if isinstance(error, StorageError):
        reason = ServerUnreachable.reason
    elif isinstance(error, CallError):
        reason = error.reason
    count_fallbacks(decisions, method=name, reason=reason)
    expected = isinstance(error, BillingError)
    log.warning(
        "%s: no answer that can be used, defaulting to platform_managed for safety: decisions=%d reason=%s error=%s: %s%s",
        name,
        decisions,
        reason,
        type(error).__name__,
        printable(str(error)) if expected else "unexpected",
        shown_notes(error),
        exc_info=None if expected else error,
        # A program such as the command line shows the cause to its user; the answer itself must not hold it.
        extra={"cause": error},
    )
    if isinstance(error, ClientMisused):
        return ResolutionError(reason, error.message)
    if isinstance(error, RequestError) and reason == ServerRefused.reason:
        # The service's messages are written for its callers. gRPC's may name hosts, so they stay in the log.
        return ResolutionError(reason, f"the server refused to answer: {error.message}")
    return ResolutionError(reason, _MESSAGES[reason])
