"""The limits of a server: calls, connections, sizes and times. Each is declared once, and is a setting too."""

from pydantic import BaseModel, ConfigDict, Field

from billing_grpc.server.settings.types import Count, Seconds


class Limits(BaseModel):
    """The limits of one server, described field by field; the defaults fit a control plane and a provisioner."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    # A plan for 4096 names of 256 characters takes a quarter of the default.
    max_message_bytes: int = Field(
        4 << 20,
        alias="BILLING_GRPC_MAX_MESSAGE_BYTES",
        ge=1024,
        le=64 << 20,
        description="the largest request",
    )
    max_concurrent_calls: Count = Field(
        256,
        alias="BILLING_GRPC_MAX_CONCURRENT_CALLS",
        description="calls at once; more are refused, health checks excepted",
    )
    max_watchers: Count = Field(
        128,
        alias="BILLING_GRPC_MAX_WATCHERS",
        description="streams of health and reflection at once; more are refused",
    )
    max_streams: Count = Field(
        100, alias="BILLING_GRPC_MAX_STREAMS", ge=1, description="calls at once on one connection"
    )
    request_timeout: Seconds = Field(
        5,
        alias="BILLING_GRPC_REQUEST_TIMEOUT",
        description="seconds in which a caller has to send its request",
    )
    open_request_timeout: Seconds = Field(
        1,
        alias="BILLING_GRPC_OPEN_REQUEST_TIMEOUT",
        description="the same for health checks",
    )
    max_header_bytes: int = Field(
        8 << 10,
        alias="BILLING_GRPC_MAX_HEADER_BYTES",
        ge=1024,
        le=1 << 20,
        description="the largest metadata of a call",
    )
    max_connections: Count = Field(
        4096,
        alias="BILLING_GRPC_MAX_CONNECTIONS",
        description="connections at once on a listener",
    )
    # Ends, so that clients spread over new servers.
    max_connection_age: Seconds = Field(
        1800,
        alias="BILLING_GRPC_MAX_CONNECTION_AGE",
        description="seconds after which a connection is asked to go",
    )
    max_connection_age_grace: Seconds = Field(
        30,
        alias="BILLING_GRPC_MAX_CONNECTION_AGE_GRACE",
        description="seconds that calls on such a connection still get",
    )
    max_connection_idle: Seconds = Field(
        300,
        alias="BILLING_GRPC_MAX_CONNECTION_IDLE",
        description="seconds after which a connection without a call is asked to go",
    )
    min_ping_interval: Seconds = Field(
        10,
        alias="BILLING_GRPC_MIN_PING_INTERVAL",
        description="seconds a client must leave between keepalive pings",
    )
    handshake_timeout: Seconds = Field(
        10,
        alias="BILLING_GRPC_HANDSHAKE_TIMEOUT",
        description="seconds in which a new connection must complete its handshake",
    )
