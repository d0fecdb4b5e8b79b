"""Who is calling, as far as the code below a call can know: set by the interceptor that knows, read by the servicer."""

from contextvars import ContextVar

from billing_grpc.model import Principal

current_principal: ContextVar[Principal] = ContextVar("current_principal")
"""The caller of the call in progress. Unset outside of a call: reading it there is a bug and fails."""
