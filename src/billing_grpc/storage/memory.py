"""The `Repository` in memory, for tests."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from billing_grpc.errors import DatabaseTimeout, StorageError
from billing_grpc.model import (
    NO_WORKSPACE,
    BillingMode,
    Change,
    ChangeKind,
    ChangeNote,
    ChangesPage,
    ListedWorkspace,
    OverrideChange,
    OverrideCounts,
    OverrideKinds,
    ResolutionError,
    StoredOverride,
    WorkspacePage,
    WorkspaceRecord,
    author,
    unrecorded,
)
from billing_grpc.page_token import LogPosition
from billing_grpc.resolver import recognise_override

_MAX_TEXT_LENGTH: Final = 256


class InMemoryRepository:
    """A `Repository` over a dictionary. It passes the same tests as the one on PostgreSQL.

    Attributes:
        overrides: the stored text by workspace id; None if the workspace inherits. A test may change it, which adds no entry
            to `changes`.
        names: the workspaces' names by id.
        changes: the change log, oldest first.
        failure: the error that every call raises; None for no error.
        delay: the seconds that every call takes. A delay longer than the call's budget raises `DatabaseTimeout`.
        calls: the number of calls so far.
    """

    def __init__(self, overrides: Mapping[str, str | None] | None = None) -> None:
        self.overrides: dict[str, str | None] = dict(overrides or {})
        self.names: dict[str, str] = {}
        self.changes: list[Change[int]] = []
        self.failure: StorageError | None = None
        self.delay = 0.0
        self.calls = 0

    async def load_override(self, workspace_id: str, *, budget: float) -> StoredOverride:
        await self._answer(budget)
        return self._stored(workspace_id)

    async def load_overrides(
        self, workspace_ids: Collection[str], *, budget: float
    ) -> Mapping[str, StoredOverride | ResolutionError]:
        await self._answer(budget)
        return {each: self._stored(each) for each in workspace_ids if each in self.overrides}

    async def load_record(self, workspace_id: str, *, budget: float) -> WorkspaceRecord:
        await self._answer(budget)
        return self._record(workspace_id)

    async def save_override(
        self, workspace_id: str, mode: BillingMode | None, *, by: ChangeNote, etag: str = "", budget: float
    ) -> OverrideChange:
        await self._answer(budget)
        change = OverrideChange.planned(self._record(workspace_id), mode, etag)
        if change.writes:
            self.overrides[workspace_id] = change.current.override.text
            self.changes.append(
                Change(
                    change_id=len(self.changes) + 1,
                    workspace_id=workspace_id,
                    change_time=datetime.now(UTC),
                    previous_override=change.previous.override.text,
                    new_override=change.current.override.text,
                    principal=by.principal,
                    database_user="in_memory",
                    reason=by.reason,
                    request_id=by.request_id,
                    actor=by.actor,
                )
            )
        return replace(change, current=self._record(workspace_id))

    async def list_changes(
        self,
        workspace_id: str | None,
        *,
        position: LogPosition,
        limit: int,
        budget: float,
        kind: ChangeKind | None = None,
    ) -> ChangesPage:
        await self._answer(budget)
        # The number of an entry is also that of its transaction, and all are committed in their order.
        since, until = (int(text.split(":")[1]) if text else None for text in (position.since, position.until))
        wanted = [
            change
            for change in reversed(self.changes)
            if workspace_id in {None, change.workspace_id}
            and kind in {None, change.kind}
            and (position.before is None or change.change_id < position.before)
            and (since is None or change.change_id >= since)
            and (until is None or change.change_id < until)
        ]
        end = len(self.changes) + 1
        return ChangesPage(wanted[:limit], f"{end}:{end}:")

    async def record_org_default(self, mode: BillingMode | None, *, server: str, origin: str, budget: float) -> bool:
        await self._answer(budget)
        last = next((each for each in reversed(self.changes) if each.kind is ChangeKind.ORG_DEFAULT), None)
        before, now = None if last is None else last.new_override, None if mode is None else mode.value
        if before == now:
            return False
        self.changes.append(
            Change(
                change_id=len(self.changes) + 1,
                workspace_id="",
                change_time=datetime.now(UTC),
                previous_override=before,
                new_override=now,
                principal="",
                database_user="in_memory",
                reason="",
                request_id="",
                kind=ChangeKind.ORG_DEFAULT,
                server=server,
                origin=origin,
            )
        )
        return True

    async def list_workspaces(
        self, kinds: OverrideKinds, *, after: str | None, limit: int, budget: float
    ) -> WorkspacePage:
        await self._answer(budget)
        ids = [each for each in sorted(self.overrides) if after is None or each > after]
        wanted = [each for each in ids if kinds.hold(recognise_override(self.overrides[each]), self.overrides[each])]
        shown = [
            ListedWorkspace(each, self._record(each), self.names.get(each, "")[:_MAX_TEXT_LENGTH])
            for each in wanted[:limit]
        ]
        return WorkspacePage(shown, wanted[limit - 1] if len(wanted) > limit else None)

    async def count_overrides(self, *, budget: float) -> OverrideCounts:
        await self._answer(budget)
        return OverrideCounts(Counter(map(self._stored, self.overrides)), datetime.now(UTC))

    async def check_administration(self, *, budget: float) -> None:
        await self._answer(budget)

    def _record(self, workspace_id: str) -> WorkspaceRecord:
        override = self._stored(workspace_id)
        last = next((each for each in reversed(self.changes) if each.workspace_id == workspace_id), None)
        if last is None or not override.exists:
            return WorkspaceRecord(override, unrecorded=unrecorded(override.text, None))
        by, recorded = author(last.principal, last.database_user), last.new_override
        mark = unrecorded(override.text, recorded)
        return WorkspaceRecord(override, last.change_id, last.change_time, by, mark)

    async def _answer(self, budget: float) -> None:
        self.calls += 1
        if self.delay:
            await asyncio.sleep(min(self.delay, budget))
        if self.delay > budget:
            raise DatabaseTimeout
        if self.failure is not None:
            raise self.failure

    def _stored(self, workspace_id: str) -> StoredOverride:
        if workspace_id not in self.overrides:
            return NO_WORKSPACE
        text = self.overrides[workspace_id]
        return StoredOverride(None if text is None else text[:_MAX_TEXT_LENGTH])
