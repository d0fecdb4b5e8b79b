"""The access log: one line for every call with its method, status, duration, caller and workspace."""

import time
from typing import Final

import structlog

from billing_grpc.server.auth import roles
from billing_grpc.server.call import RequestContext
from billing_grpc.server.calls.hooks import Hooks

log = structlog.stdlib.get_logger(__name__)

_SHOWN_METHOD: Final = 100


class AccessLog:
    """Logs every call, without its metadata and its messages; health checks and reflection at DEBUG.

    The name of an unknown method is text from an unknown caller: it is quoted and cut to 100 characters. A workspace's id
    is logged only after it was checked.
    """

    def for_method(self, method: str) -> Hooks:
        """Return what logs the calls of this method."""
        known = method in roles.OPEN or method in roles.MAY_CALL
        return _Line(method if known else repr(method[:_SHOWN_METHOD]), debug=method in roles.OPEN)


class _Line(Hooks):
    def __init__(self, shown: str, *, debug: bool) -> None:
        self._shown = shown
        # Bound once: a lazy logger binds itself again for every line.
        bound = log.bind()
        self._log = bound.debug if debug else bound.info

    def end(self, call: RequestContext, code: str) -> None:
        principal, workspace = call.principal, call.workspace
        self._log(
            "call",
            method=self._shown,
            code=code,
            duration_ms=round((time.perf_counter() - call.started) * 1000, 3),
            principal=None if principal is None else principal.name,
            role=None if principal is None else principal.role,
            request_id=call.request_id,
            # The number of workspaces of a batch; `None` if the request was not checked.
            **{"workspaces" if isinstance(workspace, int) else "workspace": workspace},
        )
