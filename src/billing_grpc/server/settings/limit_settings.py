"""The settings that are limits: one field for each of `Limits`, with its default."""

from dataclasses import fields
from typing import Final

from pydantic import BaseModel, Field

from billing_grpc.server.settings.limits import Limits
from billing_grpc.server.settings.types import Count, Seconds

DEFAULTS: Final = Limits()


class LimitSettings(BaseModel):
    """The part of `Settings` that says how much a server lets itself be asked."""

    max_message_bytes: int = Field(
        DEFAULTS.max_message_bytes,
        alias="BILLING_GRPC_MAX_MESSAGE_BYTES",
        ge=1024,
        le=64 << 20,
        description="the largest request",
    )
    max_concurrent_calls: Count = Field(
        DEFAULTS.max_concurrent_calls,
        alias="BILLING_GRPC_MAX_CONCURRENT_CALLS",
        description="calls at once; more are refused, health checks excepted",
    )
    max_watchers: Count = Field(
        DEFAULTS.max_watchers,
        alias="BILLING_GRPC_MAX_WATCHERS",
        description="streams of health and reflection at once; more are refused",
    )
    max_streams: Count = Field(
        DEFAULTS.max_streams, alias="BILLING_GRPC_MAX_STREAMS", ge=1, description="calls at once on one connection"
    )
    request_timeout: Seconds = Field(
        DEFAULTS.request_timeout,
        alias="BILLING_GRPC_REQUEST_TIMEOUT",
        description="seconds in which a caller has to send its request",
    )
    open_request_timeout: Seconds = Field(
        DEFAULTS.open_request_timeout,
        alias="BILLING_GRPC_OPEN_REQUEST_TIMEOUT",
        description="the same for health checks",
    )
    max_header_bytes: int = Field(
        DEFAULTS.max_header_bytes,
        alias="BILLING_GRPC_MAX_HEADER_BYTES",
        ge=1024,
        le=1 << 20,
        description="the largest metadata of a call",
    )
    max_connections: Count = Field(
        DEFAULTS.max_connections,
        alias="BILLING_GRPC_MAX_CONNECTIONS",
        description="connections at once on a listener",
    )
    max_connection_age: Seconds = Field(
        DEFAULTS.max_connection_age,
        alias="BILLING_GRPC_MAX_CONNECTION_AGE",
        description="seconds after which a connection is asked to go",
    )
    max_connection_age_grace: Seconds = Field(
        DEFAULTS.max_connection_age_grace,
        alias="BILLING_GRPC_MAX_CONNECTION_AGE_GRACE",
        description="seconds that calls on such a connection still get",
    )
    max_connection_idle: Seconds = Field(
        DEFAULTS.max_connection_idle,
        alias="BILLING_GRPC_MAX_CONNECTION_IDLE",
        description="seconds after which a connection without a call is asked to go",
    )
    min_ping_interval: Seconds = Field(
        DEFAULTS.min_ping_interval,
        alias="BILLING_GRPC_MIN_PING_INTERVAL",
        description="seconds a client must leave between keepalive pings",
    )
    handshake_timeout: Seconds = Field(
        DEFAULTS.handshake_timeout,
        alias="BILLING_GRPC_HANDSHAKE_TIMEOUT",
        description="seconds in which a connection must become one of gRPC",
    )

    def limits(self) -> Limits:
        """The settings that are limits."""
        return Limits(**{each.name: getattr(self, each.name) for each in fields(Limits)})
