"""The RPCs as the matrix calls them, and what their answers may say."""

import time
import uuid
from dataclasses import dataclass
from typing import Final

import grpc
from google.rpc import error_details_pb2, status_pb2

from billing_grpc import page_token
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc

DECISIONS: Final = ("ResolveBillingMode", "BatchResolveBillingModes", "ValidateSecretWrite", "PlanProvisionEnv")
ADMINISTRATION: Final = (
    "GetWorkspaceBillingMode",
    "SetWorkspaceBillingMode",
    "ListBillingModeChanges",
    "ListWorkspaceBillingModes",
    "SummarizeBillingModes",
)
RPCS: Final = DECISIONS + ADMINISTRATION
SET: Final = "SetWorkspaceBillingMode"
LIST: Final = "ListBillingModeChanges"
LIST_WORKSPACES: Final = "ListWorkspaceBillingModes"
SUMMARIZE: Final = "SummarizeBillingModes"

TRUTH: Final = "truth"
CORRUPT_SHOWN: Final = "corrupt, shown"
CLOSED: Final = "closed"
UNAVAILABLE: Final = "unavailable"
LATE: Final = "late"
WRONG: Final = "wrong"

BYOK: Final = pb.BILLING_MODE_BYOK
CLOSED_MODE: Final = pb.BILLING_MODE_PLATFORM_MANAGED

CORRUPT: Final = "BYOK, please"
KEY: Final = "OPENAI_API_KEY"
REASONS: Final = {
    *("DATABASE_UNREACHABLE", "DATABASE_TIMEOUT", "DATABASE_STALE", "SCHEMA_NOT_READY"),
    "DATABASE_DENIED",
    "VALUE_UNREADABLE",
}
RETRYABLE: Final = {"DATABASE_UNREACHABLE", "DATABASE_TIMEOUT"}
_ALL: Final = False
_PAD: Final = "x" * 400


class UnexpectedAnswer(Exception):
    """An answer that the contract does not allow."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call and its outcome, in the clock of `time.monotonic`.

    Attributes:
        verdict: one of the words above.
        reason: the error's, of a degraded answer; of a wrong one, what is wrong.
        token: what a Set wrote as its reason.
        changed: whether a Set said that it changed something; None where its outcome is unknown.
    """

    rpc: str
    began: float
    took: float
    deadline: float
    verdict: str
    reason: str = ""
    token: str = ""
    changed: bool | None = None

    @property
    def degraded(self) -> bool:
        return self.verdict not in {TRUTH, CORRUPT_SHOWN}


def require(holds: object, what: str) -> None:
    if not holds:
        raise UnexpectedAnswer(what)


def judge(resolution: pb.BillingModeResolution, stored: "pb.BillingMode" = BYOK) -> tuple[str, str]:
    """The verdict over one resolution of a workspace that stores this mode, in an organisation whose default is `byok`."""
    if resolution.HasField("error"):
        require(resolution.resolved_mode == pb.BILLING_MODE_PLATFORM_MANAGED, "an open answer with an error")
        require(resolution.source == pb.BILLING_MODE_SOURCE_CONSTANT_FALLBACK, "an error, and another source")
        require(not resolution.HasField("workspace_override"), "an override that was not read")
        require(resolution.error.reason in REASONS, f"reason {resolution.error.reason}")
        return CLOSED, resolution.error.reason
    if resolution.workspace_override == CORRUPT:
        require(resolution.resolved_mode == pb.BILLING_MODE_PLATFORM_MANAGED, "a corrupt override opened")
        return CORRUPT_SHOWN, ""
    require(resolution.source == pb.BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE, "not the override, and no error")
    require(resolution.resolved_mode == stored, f"{pb.BillingMode.Name(resolution.resolved_mode)}, which is not stored")
    return TRUTH, ""


def refusal(error: grpc.aio.AioRpcError, *, with_closed: bool) -> tuple[str, str]:
    """The verdict over an administration's failure."""
    require(error.code() is grpc.StatusCode.UNAVAILABLE, f"{error.code().name}: {error.details()}")
    raw = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    require(isinstance(raw, bytes), f"no details: {error.details()}")
    assert isinstance(raw, bytes)
    info, closed, kinds = error_details_pb2.ErrorInfo(), pb.BillingModeResolution(), set()
    for packed in status_pb2.Status.FromString(raw).details:
        kinds.add(packed.TypeName())
        packed.Unpack(info)
        packed.Unpack(closed)
    require(info.reason in REASONS, f"reason {info.reason}")
    require(("google.rpc.RetryInfo" in kinds) == (info.reason in RETRYABLE), f"RetryInfo with {info.reason}")
    if with_closed:
        require(judge(closed) == (CLOSED, info.reason), "no closed answer among the details")
    return UNAVAILABLE, info.reason


class Caller:
    """One caller of one RPC: `once` makes a call and judges its answer.

    Args:
        stub: the service.
        rpc: which one.
        workspace_id: a stored workspace; written by nobody but this caller if the RPC is Set.
        deadline: in seconds.
        stored: what the workspace says, where it is only read.
    """

    def __init__(
        self,
        stub: "service_grpc.BillingModeServiceAsyncStub",
        rpc: str,
        workspace_id: str,
        deadline: float,
        stored: "pb.BillingMode" = BYOK,
    ) -> None:
        self.rpc, self.workspace_id, self.deadline = rpc, workspace_id, deadline
        self._stub, self._stored = stub, stored
        self._number = 0
        self._name = uuid.uuid4().hex[:8]
        self._token = ""
        self._changed: bool | None = None
        self._ask = {
            "ResolveBillingMode": self._resolve,
            "BatchResolveBillingModes": self._batch,
            "ValidateSecretWrite": self._secret,
            "PlanProvisionEnv": self._plan,
            "GetWorkspaceBillingMode": self._get,
            SET: self._set,
            LIST: self._list,
            LIST_WORKSPACES: self._list_workspaces,
            SUMMARIZE: self._summarize,
        }[rpc]

    async def once(self) -> Call:
        """One call; never raises for what the service answers."""
        self._token, self._changed = "", None
        began = time.monotonic()
        try:
            verdict, reason = await self._ask()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                verdict, reason = LATE, "DEADLINE_EXCEEDED"
            elif self.rpc in DECISIONS:
                verdict, reason = WRONG, f"{error.code().name}: {error.details()}"
            else:
                verdict, reason = self._refused(error)
        except UnexpectedAnswer as error:
            verdict, reason = WRONG, str(error)
        took = time.monotonic() - began
        return Call(self.rpc, began, took, self.deadline, verdict, reason, self._token, self._changed)

    def _refused(self, error: grpc.aio.AioRpcError) -> tuple[str, str]:
        try:
            return refusal(error, with_closed=self.rpc == "GetWorkspaceBillingMode")
        except UnexpectedAnswer as wrong:
            return WRONG, str(wrong)

    def _judge(self, resolution: pb.BillingModeResolution) -> tuple[str, str]:
        return judge(resolution, self._stored)

    def _opened(self, verdict: tuple[str, str]) -> bool:
        return verdict[0] == TRUTH and self._stored == BYOK

    async def _resolve(self) -> tuple[str, str]:
        request = service_pb.ResolveBillingModeRequest(workspace_id=self.workspace_id)
        return self._judge((await self._stub.ResolveBillingMode(request, timeout=self.deadline)).resolution)

    async def _batch(self) -> tuple[str, str]:
        absent = str(uuid.uuid4())
        request = service_pb.BatchResolveBillingModesRequest(workspace_ids=[self.workspace_id, absent])
        answer = await self._stub.BatchResolveBillingModes(request, timeout=self.deadline)
        require([each.workspace_id for each in answer.resolutions] == [self.workspace_id, absent], "not what was asked")
        verdict = self._judge(answer.resolutions[0])
        other = answer.resolutions[1]
        if verdict[0] == CLOSED and verdict[1] != "VALUE_UNREADABLE":  # which belongs to one row alone
            require(judge(other) == verdict, "one element says something else")
        return verdict

    async def _secret(self) -> tuple[str, str]:
        request = service_pb.ValidateSecretWriteRequest(workspace_id=self.workspace_id, secret_keys=[KEY, "MINE"])
        answer = await self._stub.ValidateSecretWrite(request, timeout=self.deadline)
        verdict = self._judge(answer.resolution)
        opened = self._opened(verdict)
        wanted = pb.SECRET_VERDICT_ALLOWED if opened else pb.SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED
        require([each.verdict for each in answer.verdicts] == [wanted, pb.SECRET_VERDICT_ALLOWED], "a wrong verdict")
        require(answer.allowed is opened, "allowed, with a blocked key")
        return verdict

    async def _plan(self) -> tuple[str, str]:
        request = service_pb.PlanProvisionEnvRequest(
            workspace_id=self.workspace_id, env_keys=[KEY, KEY.lower(), "PATH"]
        )
        answer = await self._stub.PlanProvisionEnv(request, timeout=self.deadline)
        verdict = self._judge(answer.resolution)
        opened = self._opened(verdict)
        require(opened or {KEY, KEY.lower()} == set(answer.strip_keys), "keys that are not stripped")
        require(not (opened and answer.strip_keys), "keys stripped from a byok workspace")
        require(answer.route_via_platform_proxy is not opened, "a wrong route")
        modes = {"byok" if opened else "platform_managed"}
        require(len(answer.set_env) == 2 and set(answer.set_env.values()) == modes, "a wrong mode in the environment")
        return verdict

    async def _get(self) -> tuple[str, str]:
        request = service_pb.GetWorkspaceBillingModeRequest(workspace_id=self.workspace_id)
        answer = await self._stub.GetWorkspaceBillingMode(request, timeout=self.deadline)
        require(not answer.billing_mode.resolution.HasField("error"), "administration that guesses")
        require(answer.billing_mode.etag, "no etag")
        return self._judge(answer.billing_mode.resolution)

    async def _set(self) -> tuple[str, str]:
        self._number += 1
        self._token = f"{self._name}-{self._number} {_PAD}"
        mode = (pb.BILLING_MODE_BYOK, pb.BILLING_MODE_DISABLED)[self._number % 2]
        request = service_pb.SetWorkspaceBillingModeRequest(
            workspace_id=self.workspace_id, mode=mode, reason=self._token
        )
        answer = await self._stub.SetWorkspaceBillingMode(request, timeout=self.deadline)
        now, before = answer.billing_mode.resolution, answer.previous
        require(now.resolved_mode == mode and not now.HasField("error"), "not what was set")
        self._changed = now.workspace_override != before.workspace_override
        return TRUTH, ""

    async def _list(self) -> tuple[str, str]:
        request = service_pb.ListBillingModeChangesRequest(workspace_id=self.workspace_id, page_size=5)
        answer = await self._stub.ListBillingModeChanges(request, timeout=self.deadline)
        require(answer.changes and answer.changes[0].new_override, "an empty log")
        return TRUTH, ""

    async def _list_workspaces(self) -> tuple[str, str]:
        # A page that begins with the workspace: the one before it in the order of the ids is the position.
        before = str(uuid.UUID(int=uuid.UUID(self.workspace_id).int - 1))
        of = page_token.list_name("workspaces", None, 0, 0, 0, _ALL)
        request = service_pb.ListWorkspaceBillingModesRequest(page_size=1, page_token=page_token.encode(of, before))
        answer = await self._stub.ListWorkspaceBillingModes(request, timeout=self.deadline)
        require(answer.billing_modes, "a workspace that is missing")
        (found,) = answer.billing_modes
        require(found.resolution.workspace_id == self.workspace_id, "another workspace")
        require(found.etag, "no etag")
        return self._judge(found.resolution)

    async def _summarize(self) -> tuple[str, str]:
        answer = await self._stub.SummarizeBillingModes(
            service_pb.SummarizeBillingModesRequest(), timeout=self.deadline
        )
        require(
            answer.workspaces == sum(each.workspaces for each in answer.counts), "numbers that contradict each other"
        )
        own = pb.BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE
        if answer.unrecognised_overrides:
            return CORRUPT_SHOWN, ""
        require(all(each.source == own for each in answer.counts), "not the overrides, and no error")
        require(self._stored in {each.mode for each in answer.counts}, "no workspace of a mode that is stored")
        return TRUTH, ""
