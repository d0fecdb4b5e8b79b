"""Read and change the modes of existing workspaces; every failure raises one of `billing_grpc.errors`."""

from collections.abc import AsyncGenerator

from billing_grpc import validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import verified
from billing_grpc.client.calls import NO_WORKSPACE, Calls, WorkspaceId, pages
from billing_grpc.errors import AnswerInvalid
from billing_grpc.model import BillingMode, BillingModeUpdate, Change, ChangeKind, WorkspaceBillingMode
from billing_grpc.wire.messages import CHANGE_KIND_TO_PROTO, MODE_FROM_PROTO, MODE_TO_PROTO
from billing_grpc.wire.metadata import ACTOR


class Administration:
    """The administration of one client.

    Args:
        calls: makes the calls.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get(self, workspace_id: WorkspaceId) -> WorkspaceBillingMode:
        """Return the billing mode of an existing workspace.

        Raises:
            BillingError: `WorkspaceNotFound`, `InvalidArgument`, a `StorageError`, or another of `errors`.
        """
        asked = str(workspace_id)
        request = service_pb.GetWorkspaceBillingModeRequest(workspace_id=asked)
        answer = await self._calls.call(lambda stub: stub.GetWorkspaceBillingMode, "GetWorkspaceBillingMode", request)
        return verified.workspace(answer.billing_mode, asked)

    async def set(
        self,
        workspace_id: WorkspaceId,
        mode: BillingMode,
        *,
        reason: str = "",
        etag: str = "",
        validate_only: bool = False,
        actor: str = "",
    ) -> BillingModeUpdate:
        """Set a workspace's own mode, which takes effect at its next start. The call may be repeated.

        Args:
            workspace_id: the workspace.
            mode: its new mode.
            reason: why, for the change log; at most 500 characters.
            etag: write only if the workspace still has this etag; empty to write unconditionally.
            validate_only: check everything and write nothing.
            actor: the person behind this program, for the change log; at most 128 printable ASCII characters.

        Raises:
            BillingError: `EtagStale` with the current `WorkspaceBillingMode` attached, `WorkspaceNotFound`,
                `InvalidArgument`, or another of `errors`. After a `StorageError`, `ServerUnreachable` or `AnswerInvalid`
                the outcome is unknown: repeat the call.
        """
        request = service_pb.SetWorkspaceBillingModeRequest(mode=MODE_TO_PROTO[BillingMode(mode)])
        return await self._set(request, str(workspace_id), reason, etag, actor, validate_only=validate_only)

    async def inherit(
        self,
        workspace_id: WorkspaceId,
        *,
        reason: str = "",
        etag: str = "",
        validate_only: bool = False,
        actor: str = "",
    ) -> BillingModeUpdate:
        """Remove a workspace's own mode, so that it inherits the organisation's default.

        Arguments, answer and errors are those of `set`.
        """
        request = service_pb.SetWorkspaceBillingModeRequest(inherit=pb.Inherit())
        return await self._set(request, str(workspace_id), reason, etag, actor, validate_only=validate_only)

    async def changes(
        self,
        workspace_id: WorkspaceId = NO_WORKSPACE,
        *,
        kind: ChangeKind | None = None,
        page_size: int = 0,
        follow: float | None = None,
    ) -> AsyncGenerator[Change[str], None]:
        """Yield the recorded changes of one workspace, or of all and the org default, newest first.

        Each page is fetched when it is needed.

        Args:
            workspace_id: the workspace; empty for all.
            kind: only changes of workspaces, or of the organisation's default; `None` for both.
            page_size: how many changes one call fetches; 0 for the server's default.
            follow: seconds to wait after the last page before asking for the changes that were committed since, again and
                again, each change once; `None` ends after the last page.

        Raises:
            BillingError: `InvalidArgument`, a `StorageError`, or another of `errors`.
        """
        request = service_pb.ListBillingModeChangesRequest(
            workspace_id=str(workspace_id),
            page_size=page_size,
            kind=None if kind is None else CHANGE_KIND_TO_PROTO[ChangeKind(kind)],
        )
        while True:
            listed = pages(self._calls, lambda stub: stub.ListBillingModeChanges, "ListBillingModeChanges", request)
            async for page in listed:
                for each in page.changes:
                    yield verified.change(each, request.workspace_id)
            if follow is None:
                return
            if not page.follow_token:
                raise AnswerInvalid("the server cannot follow its change log: it or its database lacks an update")
            await self._calls.pause(follow)
            request.page_token = page.follow_token

    async def _set(
        self,
        request: service_pb.SetWorkspaceBillingModeRequest,
        workspace_id: str,
        reason: str,
        etag: str,
        actor: str,
        *,
        validate_only: bool,
    ) -> BillingModeUpdate:
        request.workspace_id, request.reason, request.etag = workspace_id, reason, etag
        request.validate_only = validate_only
        metadata = [(ACTOR, validation.actor([actor]))] if actor else []
        answer = await self._calls.call(
            lambda stub: stub.SetWorkspaceBillingMode, "SetWorkspaceBillingMode", request, metadata=metadata
        )
        wanted = MODE_FROM_PROTO[request.mode].value if request.HasField("mode") else None
        return verified.update(answer, workspace_id, wanted)
