"""The workspaces of the benchmark: rows that number n determines, requests for them, and what their answers have to say."""

import hashlib
import json
import uuid
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import psycopg
from google.protobuf.message import Message

from benchmarks.connections import Request
from benchmarks.grpc_connection import grpc_message
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.storage import migrations

COUNT: Final = 10_000
MANY: Final = 10_000_000
ASKED: Final = 10_000
"""Of however many workspaces there are, this many take part, spread evenly."""
ORG_DEFAULT: Final = "byok"
BATCH: Final = 1000

_OVERRIDES: Final = ("byok", "disabled", "platform_managed", None)
_MODES: Final = {
    "byok": pb.BILLING_MODE_BYOK,
    "disabled": pb.BILLING_MODE_DISABLED,
    "platform_managed": pb.BILLING_MODE_PLATFORM_MANAGED,
}
# The trigger that logs changes stays out: ten million entries of a log would take longer than the rows.
_FILL: Final = """
INSERT INTO workspaces (id, llm_billing_mode)
SELECT md5(n::text)::uuid, (ARRAY['byok', 'disabled', 'platform_managed', NULL])[n %% 4 + 1]
FROM generate_series(0, %s) AS n
"""


class Workspace(NamedTuple):
    """A stored workspace."""

    id: str
    override: str | None

    @property
    def mode(self) -> str:
        """Return the mode that it resolves to."""
        return self.override or ORG_DEFAULT


def workspace(number: int) -> Workspace:
    """Return the workspace of this number."""
    digest = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
    return Workspace(str(uuid.UUID(digest)), _OVERRIDES[number % 4])


@cache
def asked(count: int) -> tuple[Workspace, ...]:
    """Return the workspaces that take part, of a table of this many."""
    # An odd step, so that every override takes part.
    step = max(1, count // ASKED - 1 | 1)
    return tuple(workspace(number * step) for number in range(ASKED))


def fill(url: str, count: int) -> None:
    """Migrate the database and store this many workspaces in it."""
    migrations.up(url)
    with psycopg.connect(url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(_FILL, [count - 1])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE workspaces")


@cache
def resolve_requests(count: int = COUNT) -> list[Request]:
    """Return requests of `ResolveBillingMode` for a table of this many."""
    messages = ((service_pb.ResolveBillingModeRequest(workspace_id=each.id), each) for each in asked(count))
    return [_grpc(message, expected) for message, expected in messages]


@cache
def http_requests(token: str) -> list[Request]:
    """Return requests of the HTTP route."""
    head = f"HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    return [Request(f"GET /admin/workspaces/{each.id}/llm-billing-mode {head}".encode(), each) for each in asked(COUNT)]


@cache
def batch_requests() -> list[Request]:
    """Return requests of `BatchResolveBillingModes` for a thousand each, which together ask for all."""
    parts = [asked(COUNT)[start : start + BATCH] for start in range(0, ASKED, BATCH)]
    return [
        _grpc(service_pb.BatchResolveBillingModesRequest(workspace_ids=[each.id for each in part]), part)
        for part in parts
    ]


@cache
def validate_requests() -> list[Request]:
    """Return requests of `ValidateSecretWrite` that need no database: keys on no list, and no workspace."""
    messages = [
        service_pb.ValidateSecretWriteRequest(workspace_id="", secret_keys=[f"SLACK_TOKEN_{number}", "PAGER_KEY"])
        for number in range(1000)
    ]
    return [_grpc(each, list(each.secret_keys)) for each in messages]


def _grpc(message: Message, expected: Any) -> Request:
    return Request(grpc_message(message.SerializeToString()), expected)


def is_empty(body: bytes, _: Any) -> bool:
    """Return whether a message has no content."""
    return body == b""


def is_resolved(body: bytes, expected: Workspace) -> bool:
    """Return whether a response of `ResolveBillingMode` is right."""
    return _is_right(service_pb.ResolveBillingModeResponse.FromString(body).resolution, expected)


def is_batch(body: bytes, expected: Sequence[Workspace]) -> bool:
    """Return whether a response of `BatchResolveBillingModes` is right."""
    resolutions = service_pb.BatchResolveBillingModesResponse.FromString(body).resolutions
    return len(resolutions) == len(expected) and all(map(_is_right, resolutions, expected))


def is_closed(body: bytes, expected: Workspace) -> bool:
    """Return whether a response of `ResolveBillingMode` is the fallback of a database that is known to be down."""
    resolution = service_pb.ResolveBillingModeResponse.FromString(body).resolution
    return (
        resolution.workspace_id == expected.id
        and resolution.resolved_mode == pb.BILLING_MODE_PLATFORM_MANAGED
        and resolution.source == pb.BILLING_MODE_SOURCE_CONSTANT_FALLBACK
        and resolution.error.reason == "DATABASE_UNREACHABLE"
    )


def is_allowed(body: bytes, expected: Sequence[str]) -> bool:
    """Return whether a response of `ValidateSecretWrite` allows these keys."""
    response = service_pb.ValidateSecretWriteResponse.FromString(body)
    return response.allowed and [each.secret_key for each in response.verdicts] == expected


def is_http_answer(body: bytes, expected: Workspace) -> bool:
    """Return whether the HTTP route's answer is right."""
    answer = json.loads(body)
    return bool(
        answer["workspace_id"] == expected.id
        and answer["resolved_mode"] == expected.mode
        and answer["workspace_override"] == expected.override
        and answer["source"] == ("org_default" if expected.override is None else "workspace_override")
    )


def _is_right(resolution: pb.BillingModeResolution, expected: Workspace) -> bool:
    inherits = expected.override is None
    return (
        resolution.workspace_id == expected.id
        and resolution.resolved_mode == _MODES[expected.mode]
        and resolution.source
        == (pb.BILLING_MODE_SOURCE_ORG_DEFAULT if inherits else pb.BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE)
        and resolution.HasField("workspace_override") is not inherits
        and not resolution.HasField("error")
    )
