"""List and count the existing workspaces; every failure raises one of `billing_grpc.errors`."""

from collections.abc import AsyncGenerator

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import verified
from billing_grpc.client.calls import Calls, pages
from billing_grpc.model import BillingMode, BillingModeSource, BillingModeSummary, OverrideFilter, WorkspaceBillingMode
from billing_grpc.wire.messages import MODE_TO_PROTO, OVERRIDE_FILTER_TO_PROTO, SOURCE_TO_PROTO


class WorkspaceLists:
    """The lists of one client.

    Args:
        calls: makes the calls.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def workspaces(
        self,
        *,
        mode: BillingMode | None = None,
        source: BillingModeSource | None = None,
        override: OverrideFilter | None = None,
        org_default: str | None = None,
        would_change: bool = False,
        page_size: int = 0,
    ) -> AsyncGenerator[WorkspaceBillingMode, None]:
        """Yield the existing workspaces in the order of their ids; fetch each page when it is needed.

        A workspace whose override cannot be read has an `error` in its resolution, which is closed.

        Args:
            mode: only workspaces that resolve to this mode.
            source: only workspaces whose mode this rule decides.
            override: only workspaces with an override (`PRESENT`), or with one that is not a mode (`UNRECOGNISED`).
            org_default: resolve by this default of the organisation instead of the published one.
            would_change: only workspaces whose mode is another under `org_default` than now.
            page_size: how many workspaces one call fetches; 0 for the server's default.

        Raises:
            BillingError: `InvalidArgument`, a `StorageError`, or another of `errors`.
        """
        request = service_pb.ListWorkspaceBillingModesRequest(
            page_size=page_size,
            org_default=org_default,
            resolved_mode=None if mode is None else MODE_TO_PROTO[BillingMode(mode)],
            source=None if source is None else SOURCE_TO_PROTO[BillingModeSource(source)],
            override=None if override is None else OVERRIDE_FILTER_TO_PROTO[OverrideFilter(override)],
            would_change=would_change,
        )
        last = ""
        listed = pages(self._calls, lambda stub: stub.ListWorkspaceBillingModes, "ListWorkspaceBillingModes", request)
        async for page in listed:
            for each in page.billing_modes:
                yield verified.listed(each, request, after=last)
                last = each.resolution.workspace_id

    async def summary(self, *, org_default: str | None = None) -> BillingModeSummary:
        """Return how many existing workspaces have which mode, as of one moment.

        Args:
            org_default: also count what this default of the organisation would change.

        Raises:
            BillingError: a `StorageError`, or another of `errors`.
        """
        request = service_pb.SummarizeBillingModesRequest(org_default=org_default)
        answer = await self._calls.call(lambda stub: stub.SummarizeBillingModes, "SummarizeBillingModes", request)
        return verified.summary(answer, org_default)
