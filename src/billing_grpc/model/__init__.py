"""The values of the service: frozen dataclasses and enums of the standard library. Pure."""

from billing_grpc.model.changes import Change, ChangeId, ChangeKind, ChangeNote, ChangesPage, OverrideChange
from billing_grpc.model.key_decisions import (
    Catalogue,
    ProvisionPlan,
    SecretKeyVerdict,
    SecretVerdict,
    SecretWriteDecision,
)
from billing_grpc.model.modes import (
    OPEN_MODES,
    BillingMode,
    BillingModeSource,
    BillingModeUpdate,
    Resolution,
    ResolutionError,
    WorkspaceBillingMode,
)
from billing_grpc.model.principals import Principal, Role
from billing_grpc.model.records import NO_WORKSPACE, StoredOverride, WorkspaceRecord, author, unrecorded
from billing_grpc.model.workspace_lists import (
    BillingModeSummary,
    ListedWorkspace,
    ModeCount,
    ModeMove,
    OverrideCounts,
    OverrideFilter,
    OverrideKinds,
    WorkspacePage,
)

__all__ = [
    "NO_WORKSPACE",
    "OPEN_MODES",
    "BillingMode",
    "BillingModeSource",
    "BillingModeSummary",
    "BillingModeUpdate",
    "Catalogue",
    "Change",
    "ChangeId",
    "ChangeKind",
    "ChangeNote",
    "ChangesPage",
    "ListedWorkspace",
    "ModeCount",
    "ModeMove",
    "OverrideChange",
    "OverrideCounts",
    "OverrideFilter",
    "OverrideKinds",
    "Principal",
    "ProvisionPlan",
    "Resolution",
    "ResolutionError",
    "Role",
    "SecretKeyVerdict",
    "SecretVerdict",
    "SecretWriteDecision",
    "StoredOverride",
    "WorkspaceBillingMode",
    "WorkspacePage",
    "WorkspaceRecord",
    "author",
    "unrecorded",
]
