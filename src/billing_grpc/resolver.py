"""The rule: `workspace override ?? org default ?? platform_managed`, default-closed. Pure.

Only a recognised override, or without an override a recognised org default, resolves to `byok` or `disabled`. Everything
else resolves to `platform_managed`.
"""

from functools import cache
from typing import Final, TypeAlias

from billing_grpc.model import BillingMode, BillingModeSource, Resolution, ResolutionError, StoredOverride

CLOSED: Final = BillingMode.PLATFORM_MANAGED
_MODES: Final = {mode.value: mode for mode in BillingMode}
# ASCII only. str.lower() maps some other letters to ASCII ones (the Kelvin sign becomes "k"), and str.strip() removes other
# spaces. A value that only looks like a mode must not be recognised.
_ASCII_SPACE: Final = " \t\n\r\v\f"
_ASCII_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def recognise_override(text: str | None) -> BillingMode | None:
    """Return the mode whose text is exactly this stored text; None if there is none."""
    return None if text is None else _MODES.get(text)


def is_corrupt(resolution: Resolution) -> bool:
    """Return whether the stored override is a text that is not a mode."""
    stored = resolution.workspace_override
    return stored is not None and recognise_override(stored) is None


def recognise_org_default(text: str | None) -> BillingMode | None:
    """Return the mode of this published text, trimmed and lower-cased in ASCII only; None if it is not a mode."""
    if text is None:
        return None
    return _MODES.get(text) or _MODES.get(text.strip(_ASCII_SPACE).translate(_ASCII_LOWER))


def resolve(
    workspace_id: str,
    override: StoredOverride | ResolutionError,
    org_default: str | None,
    *,
    what_if: bool = False,
) -> Resolution:
    """Return the resolution of a stored workspace.

    Args:
        workspace_id: the workspace, canonical; copied into the resolution.
        override: the stored override, or why it could not be read.
        org_default: the organisation's default as published, untrimmed; None if unset.
        what_if: whether the caller supplied `org_default`; the reason then starts with "what if:".

    Returns:
        A resolution whose mode is one of the three. It is `platform_managed` if the override is unreadable or corrupt.
    """
    default = recognise_org_default(org_default)
    unusable = "" if default is not None else _unusable(org_default)
    if isinstance(override, ResolutionError):
        mode, source, why = _unreadable(override.reason)
    elif (own := recognise_override(override.text)) is not None:
        mode, source, why = _own(own)
    elif override.text is not None:
        mode, source, why = _corrupt(default, unusable)
    else:
        subject = "the workspace has no mode of its own" if override.exists else "no such workspace is stored"
        mode, source, why = _inherited(subject, default, unusable)
    return Resolution(
        workspace_id=workspace_id,
        mode=mode,
        source=source,
        workspace_override=override.text if isinstance(override, StoredOverride) else None,
        org_default=default or CLOSED,
        reason=_sentence(why, what_if=what_if),
        error=override if isinstance(override, ResolutionError) else None,
    )


def resolve_new_workspace(org_default: str | None, *, what_if: bool = False) -> Resolution:
    """Return the resolution of a workspace that does not exist yet: the org default, or `platform_managed`."""
    return _without_workspace("the workspace does not exist yet", org_default, what_if=what_if)


def resolve_organisation(org_default: str | None) -> Resolution:
    """Return the resolution for org-wide secrets: the org default, or `platform_managed`."""
    return _without_workspace("this is for the whole organisation", org_default, what_if=False)


def _without_workspace(subject: str, org_default: str | None, *, what_if: bool) -> Resolution:
    default = recognise_org_default(org_default)
    mode, source, why = _inherited(subject, default, "" if default is not None else _unusable(org_default))
    return Resolution(
        workspace_id="",
        mode=mode,
        source=source,
        workspace_override=None,
        org_default=default or CLOSED,
        reason=_sentence(why, what_if=what_if),
    )


_Ruled: TypeAlias = tuple[BillingMode, BillingModeSource, str]

# Cached, because there are only a few dozen different sentences, and to make one takes longer than to decide. No argument
# of a cached function holds a caller's or a stored text.


@cache
def _unreadable(reason: str) -> _Ruled:
    why = (
        f"the workspace's override could not be read ({reason}) and may say {CLOSED},"
        f" so nothing else is honoured: defaulting to {CLOSED} for safety"
    )
    return CLOSED, BillingModeSource.CONSTANT_FALLBACK, why


@cache
def _own(mode: BillingMode) -> _Ruled:
    return mode, BillingModeSource.WORKSPACE_OVERRIDE, f"the workspace's own mode is {mode}"


@cache
def _inherited(subject: str, default: BillingMode | None, unusable: str) -> _Ruled:
    if default is not None:
        return default, BillingModeSource.ORG_DEFAULT, f"{subject}, and the organisation's default is {default}"
    why = f"{subject}, and the organisation's default is {unusable}: closed to {CLOSED}"
    return CLOSED, BillingModeSource.CONSTANT_FALLBACK, why


@cache
def _corrupt(default: BillingMode | None, unusable: str) -> _Ruled:
    # The corrupt override may have been platform_managed, so an open org default must not replace it.
    corrupt = "the workspace's stored override is not a recognised mode"
    if default is CLOSED:
        return CLOSED, BillingModeSource.ORG_DEFAULT, f"{corrupt}, and the organisation's default is {default}"
    unused = f"{default}, which must not open it" if default is not None else unusable
    why = f"{corrupt}, and the organisation's default is {unused}: closed to {CLOSED}"
    return CLOSED, BillingModeSource.CONSTANT_FALLBACK, why


def _unusable(org_default: str | None) -> str:
    return "not a recognised mode" if (org_default or "").strip(_ASCII_SPACE) else "unset"


@cache
def _sentence(why: str, *, what_if: bool) -> str:
    return f"what if: {why}." if what_if else f"{why[0].upper()}{why[1:]}."
