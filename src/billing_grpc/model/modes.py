"""The billing modes, and the answers that say which one is in force for a workspace and what decided it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final


class BillingMode(StrEnum):
    """The billing mode: who pays for a workspace's language-model calls. The value is the stored and logged text."""

    PLATFORM_MANAGED = "platform_managed"
    BYOK = "byok"
    DISABLED = "disabled"


OPEN_MODES: Final = frozenset({BillingMode.BYOK, BillingMode.DISABLED})
"""The modes in which vendor keys are kept and may be stored; every other value is treated as `platform_managed`."""


class BillingModeSource(StrEnum):
    """Which rule of `workspace override ?? org default ?? platform_managed` decided."""

    WORKSPACE_OVERRIDE = "workspace_override"
    ORG_DEFAULT = "org_default"
    CONSTANT_FALLBACK = "constant_fallback"


@dataclass(frozen=True, slots=True)
class ResolutionError:
    """Why an override could not be read.

    Attributes:
        reason: one of the six UPPER_SNAKE storage reasons of the contract.
        message: a sentence for the operator, without driver text, SQL and hosts.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """The billing mode in force for a workspace, and what decided it.

    Attributes:
        workspace_id: canonical, lower case; empty for a new workspace and for the whole organisation.
        mode: the resolved mode.
        source: the rule that decided.
        workspace_override: the stored text, also if it is not a recognised mode; None if nothing is stored.
        org_default: the organisation's default as used; `platform_managed` if it is unset or unrecognised.
        reason: a sentence for the operator.
        error: why the override could not be read, in which case `mode` is `platform_managed`; None if it was read.
    """

    workspace_id: str
    mode: BillingMode
    source: BillingModeSource
    workspace_override: str | None
    org_default: BillingMode
    reason: str
    error: ResolutionError | None = None


@dataclass(frozen=True, slots=True)
class WorkspaceBillingMode:
    """The answer of `get`: an existing workspace's billing mode, and its last recorded change.

    Attributes:
        resolution: the mode in force, and what decided it.
        etag: opaque; a write with this etag fails if the override has changed since.
        update_time: when the override last changed, with time zone; None without a recorded change.
        updated_by: the author of that change, as `author` returns it; empty without a recorded change.
        name: the workspace's name, in a list alone; empty without one.
    """

    resolution: Resolution
    etag: str
    update_time: datetime | None
    updated_by: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class BillingModeUpdate:
    """The answer of `set` and `inherit`.

    Attributes:
        current: the state after the write; with `validate_only`, the state that the write would leave.
        previous: the resolution before the write.
    """

    current: WorkspaceBillingMode
    previous: Resolution
