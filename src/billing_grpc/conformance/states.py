"""Build the real service in the state of a case, over a repository in memory that can fail."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from billing_grpc.catalogue import NameSet
from billing_grpc.errors import STORAGE_ERRORS, ValueUnreadable
from billing_grpc.model import ResolutionError, StoredOverride
from billing_grpc.secret_keys import KeyList
from billing_grpc.server.org_default import FixedOrgDefault
from billing_grpc.server.servicer import BillingModeService
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.testing import InMemoryRepository

_STORAGE_TIMEOUT: Final = 1.0


class RepositoryInState(InMemoryRepository):
    """A repository in memory with unreadable rows.

    Args:
        overrides: the stored text of each workspace; `None` to inherit.
        unreadable: the ids of the unreadable rows.
    """

    def __init__(self, overrides: Mapping[str, str | None], unreadable: Collection[str]) -> None:
        super().__init__(overrides)
        self._unreadable = unreadable

    async def load_override(self, workspace_id: str, *, budget: float) -> StoredOverride:
        """Return the stored override; raise `ValueUnreadable` if the row is unreadable."""
        if workspace_id in self._unreadable:
            raise ValueUnreadable
        return await super().load_override(workspace_id, budget=budget)

    async def load_overrides(
        self, workspace_ids: Collection[str], *, budget: float
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        """Return the stored overrides, with an error for each unreadable row."""
        error = ResolutionError(ValueUnreadable.reason, ValueUnreadable.public_message)
        found = await super().load_overrides(workspace_ids, budget=budget)
        return {**found, **{each: error for each in workspace_ids if each in self._unreadable}}


def service_in(state: Mapping[str, Any]) -> BillingModeService:
    """Return the production service in this state; what the state omits is empty or unset."""
    repository = RepositoryInState(state.get("overrides", {}), state.get("unreadable", ()))
    if "storage_error" in state:
        repository.failure = STORAGE_ERRORS[state["storage_error"]]()
    org_default = FixedOrgDefault(state.get("org_default"))
    keys = KeyList(state.get("extra_blocked_keys", ()), name_set=NameSet(state.get("blocked_keys", NameSet.AGENTS)))
    return BillingModeService(repository, org_default.current, keys, _STORAGE_TIMEOUT, Metrics())
