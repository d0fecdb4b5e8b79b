"""The replaced route, `GET` and `PUT /admin/workspaces/{id}/llm-billing-mode`, answered by the server."""

import json
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

import grpc
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from billing_grpc import validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import verified
from billing_grpc.client.status_errors import call_error
from billing_grpc.errors import (
    AnswerInvalid,
    BillingError,
    CallError,
    EtagStale,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    RequestError,
    StorageError,
    Unauthenticated,
    WorkspaceNotFound,
    quoted,
)
from billing_grpc.gateway.upstream import Caller, Upstream, request_id
from billing_grpc.model import BillingMode, Resolution, WorkspaceBillingMode
from billing_grpc.resolver import CLOSED, recognise_override
from billing_grpc.wire.messages import MODE_TO_PROTO
from billing_grpc.wire.metadata import REQUEST_ID

PATH: Final = "/admin/workspaces/{workspace_id}/llm-billing-mode"
_METHODS: Final = service_pb.DESCRIPTOR.services_by_name["BillingModeService"].methods_by_name
_MAX_BODY_BYTES: Final = 16 << 10
_MAX_ETAG: Final = 64
_ENTITY_TAG: Final = re.compile(rf'"([!#-~]{{1,{_MAX_ETAG}}})"')
_ANY: Final = "*"
_ALLOWED: Final = ", ".join(sorted(BillingMode))
_STATUSES: Final[dict[type[BillingError], int]] = {
    InvalidArgument: 400,
    Unauthenticated: 401,
    PermissionDenied: 403,
    WorkspaceNotFound: 404,
    EtagStale: 412,
    Overloaded: 503,
    StorageError: 503,
    CallError: 503,
    RequestError: 500,
}
_UNUSABLE: Final = (
    "the server has no usable answer; after a change the outcome is unknown: read it, or repeat the change"
)
"""Replaces the text of a `CallError`, which may name the server's address."""


class OldRoute:
    """Answers the replaced route.

    Args:
        upstream: the server.
        caller: returns who sent a request.
    """

    def __init__(self, upstream: Upstream, caller: Callable[[Request], Caller]) -> None:
        self._upstream = upstream
        self._caller = caller

    async def answer(self, request: Request) -> Response:
        """Answer a GET or a PUT."""
        workspace_id, sent_id = "", ""
        try:
            workspace_id = _workspace_id(request.path_params["workspace_id"])
            if request.method == "PUT":
                now, sent_id = await self._put(request, workspace_id)
            else:
                now, sent_id = await self._get(request, workspace_id)
        except grpc.aio.AioRpcError as error:
            answer = _failure(call_error(error), workspace_id)
            sent_id = request_id(error.trailing_metadata())
        except AnswerInvalid as error:
            answer = _failure(error, workspace_id)
        else:
            answer = JSONResponse(_shown(now.resolution), headers=_etag(now))
        if sent_id:
            answer.headers[REQUEST_ID] = sent_id
        return answer

    async def _get(self, request: Request, workspace_id: str) -> tuple[WorkspaceBillingMode, str]:
        asked = service_pb.GetWorkspaceBillingModeRequest(workspace_id=workspace_id)
        answer, sent_id = await self._upstream.call(
            _METHODS["GetWorkspaceBillingMode"],
            asked,
            service_pb.GetWorkspaceBillingModeResponse,
            self._caller(request),
        )
        return verified.workspace(answer.billing_mode, workspace_id), sent_id

    async def _put(self, request: Request, workspace_id: str) -> tuple[WorkspaceBillingMode, str]:
        etag = _if_match(request.headers.getlist("if-match"))
        mode = _mode(await _body(request))
        asked = service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace_id, etag=etag)
        if mode is None:
            asked.inherit.CopyFrom(pb.Inherit())
        else:
            asked.mode = MODE_TO_PROTO[mode]
        answer, sent_id = await self._upstream.call(
            _METHODS["SetWorkspaceBillingMode"],
            asked,
            service_pb.SetWorkspaceBillingModeResponse,
            self._caller(request),
        )
        return verified.update(answer, workspace_id, None if mode is None else mode.value).current, sent_id


def _workspace_id(text: str) -> str:
    try:
        return validation.workspace_id(text.strip())
    except InvalidArgument:
        _refuse(400, "invalid workspace id")


def _if_match(given: list[str]) -> str:
    """Return the etag that the workspace must still have; empty if the request names none."""
    if not given or given == [_ANY]:
        return ""
    tag = _ENTITY_TAG.fullmatch(given[0])
    if len(given) > 1 or tag is None:
        _refuse(400, 'If-Match takes one value: the ETag of an answer with its quotes, as in "42", or *')
    return tag[1]


async def _body(request: Request) -> object:
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_BODY_BYTES:
                _refuse(413, f"the body is larger than {_MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        _refuse(408, "the body did not arrive in time")
    try:
        parsed: object = json.loads(body, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError):
        _refuse(400, "invalid request body: it must be a JSON object that names each field once")
    return parsed


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields; a field that stands there twice raises `ValueError`, because readers differ on it."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError
    return fields


def _mode(body: object) -> BillingMode | None:
    """Return the mode to set; `None` to clear the override."""
    if body is not None and not isinstance(body, dict):
        _refuse(400, "invalid request body: it must be a JSON object")
    if not isinstance(body, dict) or "mode" not in body:
        _refuse(400, "missing required field 'mode' (use null to clear override)")
    text = body["mode"]
    if text is None:
        return None
    if not isinstance(text, str):
        _refuse(400, "field 'mode' must be a string or null")
    mode = recognise_override(text.strip())
    if mode is None:
        _refuse(400, f"unknown billing mode {quoted(text.strip())} (allowed: {_ALLOWED})")
    return mode


def _refuse(status: int, text: str) -> NoReturn:
    raise HTTPException(status, text)


def _failure(error: BillingError, workspace_id: str) -> JSONResponse:
    status = next(_STATUSES[base] for base in type(error).__mro__ if base in _STATUSES)
    text, reason = _UNUSABLE, ""
    if isinstance(error, RequestError | CallError):
        reason = error.reason
    if isinstance(error, RequestError):
        text = "workspace not found" if status == HTTPStatus.NOT_FOUND else error.message
    body: dict[str, object] = {"error": text, "reason": reason}
    headers: Mapping[str, str] = {}
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        body |= {"detail": text, "safe_default": CLOSED.value, "workspace_id": workspace_id}
    if isinstance(error, Unauthenticated):
        headers = {"www-authenticate": "Bearer"}
    if isinstance(error, EtagStale):
        for now in error.attachments:
            if isinstance(now, WorkspaceBillingMode):
                body |= _shown(now.resolution)
                headers = _etag(now)
    return JSONResponse(body, status, headers)


def _shown(resolution: Resolution) -> dict[str, object]:
    return {
        "workspace_id": resolution.workspace_id,
        "resolved_mode": resolution.mode.value,
        "workspace_override": resolution.workspace_override,
        "org_default": resolution.org_default.value,
        "source": resolution.source.value,
    }


def _etag(now: WorkspaceBillingMode) -> dict[str, str]:
    return {"etag": f'"{now.etag}"'}
