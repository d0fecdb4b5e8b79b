"""Turn answers into JSON objects, with the contract's field names and the texts of its tables. Pure."""

from datetime import UTC, datetime
from typing import Any

from billing_grpc.catalogue import Entry
from billing_grpc.model import (
    BillingModeSummary,
    BillingModeUpdate,
    Catalogue,
    Change,
    ProvisionPlan,
    Resolution,
    SecretWriteDecision,
    WorkspaceBillingMode,
)

Object = dict[str, Any]


def time(moment: datetime) -> str:
    """Return a time as RFC 3339 in UTC, with microseconds unless they are zero."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def resolution(each: Resolution) -> Object:
    """Return a resolution; `workspace_override` and `error` may be null."""
    return {
        "workspace_id": each.workspace_id,
        "resolved_mode": each.mode.value,
        "source": each.source.value,
        "workspace_override": each.workspace_override,
        "org_default": each.org_default.value,
        "reason": each.reason,
        "error": None if each.error is None else {"reason": each.error.reason, "message": each.error.message},
    }


def workspace(each: WorkspaceBillingMode) -> Object:
    """Return a workspace; `update_time` is null if no change is recorded."""
    return {
        "resolution": resolution(each.resolution),
        "etag": each.etag,
        "update_time": None if each.update_time is None else time(each.update_time),
        "updated_by": each.updated_by,
    }


def listed(each: WorkspaceBillingMode) -> Object:
    """Return a workspace of a list; `name` is empty if it has none."""
    return {**workspace(each), "name": each.name}


def summary(each: BillingModeSummary) -> Object:
    """Return the counts of all workspaces; `moves` is empty without a supposed org default."""
    return {
        "workspaces": each.workspaces,
        "counts": [
            {"mode": one.mode.value, "source": one.source.value, "workspaces": one.workspaces} for one in each.counts
        ],
        "unrecognised_overrides": each.unrecognised_overrides,
        "org_default": each.org_default.value,
        "read_time": time(each.read_time),
        "moves": [
            {"from_mode": one.from_mode.value, "to_mode": one.to_mode.value, "workspaces": one.workspaces}
            for one in each.moves
        ],
    }


def update(each: BillingModeUpdate, *, validate_only: bool) -> Object:
    """Return the states after and before a write; with `validate_only` nothing was written."""
    return {
        "billing_mode": workspace(each.current),
        "previous": resolution(each.previous),
        "validate_only": validate_only,
    }


def secret_write(each: SecretWriteDecision) -> Object:
    """Return a decision on secrets; `resolution` is null if no key needed a mode."""
    return {
        "allowed": each.allowed,
        "verdicts": [
            {"secret_key": one.secret_key, "verdict": one.verdict.value, "message": one.message}
            for one in each.verdicts
        ],
        "resolution": None if each.resolution is None else resolution(each.resolution),
        "catalogue": catalogue(each.catalogue),
    }


def catalogue(each: Catalogue | None) -> Object | None:
    """Return the list of vendor names that judged; null if an older server does not say it."""
    return None if each is None else {"set": each.set, "version": each.version, "digest": each.digest}


def entry(each: Entry) -> Object:
    """Return an entry of the catalogue; `set` is null if no set blocks the name, and `why` says the reason."""
    return {
        "name": each.name,
        "kind": each.kind.value,
        "vendor": each.vendor,
        "set": None if each.name_set is None else each.name_set.value,
        "read_by": list(each.read_by),
        "why": each.why,
    }


def provision_plan(each: ProvisionPlan, present: list[str]) -> Object:
    """Return a plan; `present_keys` are those of its names that the environment holds."""
    return {
        "resolution": resolution(each.resolution),
        "strip_keys": list(each.strip_keys),
        "present_keys": present,
        "set_env": dict(sorted(each.set_env.items())),
        "route_via_platform_proxy": each.route_via_platform_proxy,
        "catalogue": catalogue(each.catalogue),
        "suspect_keys": list(each.suspect_keys),
    }


def change(each: Change[str]) -> Object:
    """Return an entry of the change log; an override is null if the workspace inherits."""
    return {
        "change_id": each.change_id,
        "workspace_id": each.workspace_id,
        "change_time": time(each.change_time),
        "previous_override": each.previous_override,
        "new_override": each.new_override,
        "principal": each.principal,
        "database_user": each.database_user,
        "reason": each.reason,
        "request_id": each.request_id,
        "actor": each.actor,
        "kind": each.kind.value,
        "server": each.server,
        "origin": each.origin,
    }
