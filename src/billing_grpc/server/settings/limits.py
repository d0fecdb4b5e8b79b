"""How much a server lets itself be asked at once, and how long it puts up with a silent peer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one server; the defaults fit a control plane and a provisioner.

    Attributes:
        max_message_bytes: the largest request; a plan for 4096 names of 256 characters is a quarter of the default.
        max_concurrent_calls: how many calls may run at once; more are refused, health checks excepted.
        max_watchers: how many streams of health and reflection may be open at once, on all connections together.
        max_streams: how many calls one connection may have open.
        request_timeout: seconds in which a caller that may call has to send its request.
        open_request_timeout: the same for health checks, which anybody may call.
        max_header_bytes: the largest metadata of a call.
        max_connection_age: seconds after which a connection is asked to go, so that clients spread over new servers.
        max_connection_age_grace: seconds that calls on such a connection still get.
        max_connection_idle: seconds after which a connection without a call is asked to go.
        min_ping_interval: seconds a client must leave between keepalive pings; one that does not is disconnected.
        handshake_timeout: seconds in which a connection must become one of gRPC.
        max_connections: how many connections may be open at once on a listener.
    """

    max_message_bytes: int = 4 << 20
    max_concurrent_calls: int = 256
    max_watchers: int = 128
    max_streams: int = 100
    request_timeout: float = 5
    open_request_timeout: float = 1
    max_header_bytes: int = 8 << 10
    max_connection_age: float = 1800
    max_connection_age_grace: float = 30
    max_connection_idle: float = 300
    min_ping_interval: float = 10
    handshake_timeout: float = 10
    max_connections: int = 4096
