"""The RPCs that look at all workspaces: lists and counts, without one call for each id."""

from collections.abc import Callable

from billing_grpc import page_token, validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.model import ListedWorkspace, WorkspaceBillingMode
from billing_grpc.resolver import resolve
from billing_grpc.selection import Selection, summarise
from billing_grpc.server.budget import StorageBudget
from billing_grpc.server.call import RequestContext
from billing_grpc.storage.repository import Repository
from billing_grpc.wire import messages


class WorkspaceLists:
    """Implement the lists of the contract over a repository and an org default; the base of `BillingModeService`.

    Args:
        repository: where overrides are stored.
        org_default: returns the organisation's default as it is published now.
        storage_timeout: seconds of storage that a call may use, at most.
    """

    def __init__(self, repository: Repository, org_default: Callable[[], str | None], storage_timeout: float) -> None:
        self._repository = repository
        self._org_default = org_default
        self._budget = StorageBudget(storage_timeout)

    async def ListWorkspaceBillingModes(
        self, request: service_pb.ListWorkspaceBillingModesRequest, call: RequestContext
    ) -> service_pb.ListWorkspaceBillingModesResponse:
        """List the existing workspaces in the order of their ids. Fails if the database cannot be read."""
        size = validation.page_size(request.page_size, validation.MAX_WORKSPACES_PAGE)
        selection = messages.selection_from_proto(request, self._org_default())
        of = page_token.list_name(
            "workspaces",
            selection.supposed,
            request.resolved_mode,
            request.source,
            request.override,
            request.would_change,
        )
        after = page_token.workspace(request.page_token, of) if request.page_token else None
        page = await self._repository.list_workspaces(
            selection.kinds, after=after, limit=size, budget=self._budget.of(call)
        )
        # Storage skips by kinds of overrides. A row that cannot be read is of no kind, so it is judged here.
        shown = [each for each in page.workspaces if selection.shows(each.override)]
        return service_pb.ListWorkspaceBillingModesResponse(
            billing_modes=[messages.billing_mode_to_proto(_listed(each, selection)) for each in shown],
            next_page_token="" if page.last is None else page_token.encode(of, page.last),
        )

    async def SummarizeBillingModes(
        self, request: service_pb.SummarizeBillingModesRequest, call: RequestContext
    ) -> service_pb.SummarizeBillingModesResponse:
        """Count the existing workspaces by mode and source. Fails if the database cannot be read."""
        supposed = request.org_default if request.HasField("org_default") else None
        stored = await self._repository.count_overrides(budget=self._budget.of(call))
        return messages.summary_to_proto(summarise(stored, self._org_default(), supposed))


def _listed(each: ListedWorkspace, selection: Selection) -> WorkspaceBillingMode:
    what_if = selection.supposed is not None
    resolution = resolve(each.workspace_id, each.override, selection.used_default, what_if=what_if)
    record = each.record
    return WorkspaceBillingMode(resolution, record.etag, record.change_time, record.changed_by, each.name)
