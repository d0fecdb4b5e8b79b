"""The rule of resolution: its table, and what holds beyond any table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_grpc.errors import STORAGE_ERRORS
from billing_grpc.model import NO_WORKSPACE, BillingMode, BillingModeSource, Resolution, ResolutionError, StoredOverride
from billing_grpc.resolver import (
    recognise_org_default,
    recognise_override,
    resolve,
    resolve_new_workspace,
    resolve_organisation,
)

PLATFORM, BYOK, DISABLED = BillingMode.PLATFORM_MANAGED, BillingMode.BYOK, BillingMode.DISABLED
OVERRIDE = BillingModeSource.WORKSPACE_OVERRIDE
DEFAULT = BillingModeSource.ORG_DEFAULT
FALLBACK = BillingModeSource.CONSTANT_FALLBACK
WORKSPACE = "7f1fc6a0-0000-4000-8000-000000000001"

ORG_TEXTS = [None, "", "  ", "garbage", "platform_managed", "byok", "disabled", " BYOK\n"]
ERRORS = [ResolutionError(reason, "a message") for reason in STORAGE_ERRORS]

# (override, org default) -> (mode, source, org default as used)
TABLE = {
    "set byok, org unset": (StoredOverride("byok"), None, BYOK, OVERRIDE, PLATFORM),
    "set byok, org disabled": (StoredOverride("byok"), "disabled", BYOK, OVERRIDE, DISABLED),
    "set disabled, org byok": (StoredOverride("disabled"), "byok", DISABLED, OVERRIDE, BYOK),
    "set platform_managed, org byok": (StoredOverride("platform_managed"), "byok", PLATFORM, OVERRIDE, BYOK),
    "set byok, org garbage": (StoredOverride("byok"), "garbage", BYOK, OVERRIDE, PLATFORM),
    "inherit byok": (StoredOverride(None), "byok", BYOK, DEFAULT, BYOK),
    "inherit disabled": (StoredOverride(None), "disabled", DISABLED, DEFAULT, DISABLED),
    "inherit platform_managed": (StoredOverride(None), "platform_managed", PLATFORM, DEFAULT, PLATFORM),
    "inherit, published with space and capitals": (StoredOverride(None), "\t BYOK \n", BYOK, DEFAULT, BYOK),
    "nothing to inherit: unset": (StoredOverride(None), None, PLATFORM, FALLBACK, PLATFORM),
    "nothing to inherit: empty": (StoredOverride(None), "", PLATFORM, FALLBACK, PLATFORM),
    "nothing to inherit: unrecognised": (StoredOverride(None), "bring-your-own", PLATFORM, FALLBACK, PLATFORM),
    "corrupt, org closed": (StoredOverride("BYOK"), "platform_managed", PLATFORM, DEFAULT, PLATFORM),
    "corrupt, org open to byok": (StoredOverride("BYOK"), "byok", PLATFORM, FALLBACK, BYOK),
    "corrupt, org open to disabled": (StoredOverride(" byok"), "disabled", PLATFORM, FALLBACK, DISABLED),
    "corrupt by being empty, org open": (StoredOverride(""), "byok", PLATFORM, FALLBACK, BYOK),
    "corrupt twice: unset": (StoredOverride("x"), None, PLATFORM, FALLBACK, PLATFORM),
    "corrupt twice: unrecognised": (StoredOverride("x"), "y", PLATFORM, FALLBACK, PLATFORM),
    "no such row, org byok": (NO_WORKSPACE, "byok", BYOK, DEFAULT, BYOK),
    "no such row, org unset": (NO_WORKSPACE, None, PLATFORM, FALLBACK, PLATFORM),
    **{
        f"{error.reason}, org {org!r}": (error, org, PLATFORM, FALLBACK, recognise_org_default(org) or PLATFORM)
        for error in ERRORS
        for org in ORG_TEXTS
    },
}


@pytest.mark.parametrize(("override", "org", "mode", "source", "used"), TABLE.values(), ids=TABLE)
def test_every_row_of_the_table(
    override: StoredOverride | ResolutionError,
    org: str | None,
    mode: BillingMode,
    source: BillingModeSource,
    used: BillingMode,
) -> None:
    resolution = resolve(WORKSPACE, override, org)

    assert (resolution.mode, resolution.source, resolution.org_default) == (mode, source, used)
    assert resolution.workspace_id == WORKSPACE
    assert resolution.workspace_override == (override.text if isinstance(override, StoredOverride) else None)
    assert resolution.error == (override if isinstance(override, ResolutionError) else None)


@pytest.mark.parametrize("org", ORG_TEXTS)
def test_before_the_workspace_exists_the_answer_is_that_of_a_missing_row(org: str | None) -> None:
    missing, new = resolve("", NO_WORKSPACE, org), resolve_new_workspace(org)

    assert (new.mode, new.source, new.org_default) == (missing.mode, missing.source, missing.org_default)
    assert (new.workspace_id, new.workspace_override, new.error) == ("", None, None)


@pytest.mark.parametrize(
    ("org", "mode", "source"),
    [
        (None, PLATFORM, FALLBACK),
        ("nonsense", PLATFORM, FALLBACK),
        ("byok", BYOK, DEFAULT),
        ("disabled", DISABLED, DEFAULT),
    ],
)
def test_the_organisation_is_judged_by_its_default_alone(
    org: str | None, mode: BillingMode, source: BillingModeSource
) -> None:
    resolution = resolve_organisation(org)

    assert (resolution.mode, resolution.source) == (mode, source)


overrides = st.one_of(
    st.sampled_from(
        [*(StoredOverride(mode.value) for mode in BillingMode), StoredOverride(None), NO_WORKSPACE, *ERRORS]
    ),
    st.text().map(StoredOverride),
    st.sampled_from(list(BillingMode)).flatmap(
        lambda mode: st.sampled_from([mode.upper(), f" {mode}", f"{mode}\n", f"{mode}\x00", mode[:-1]]).map(
            StoredOverride
        )
    ),
)
orgs = st.one_of(st.sampled_from(ORG_TEXTS), st.text(), st.none())


def opens_explicitly(override: StoredOverride | ResolutionError, org: str | None, mode: BillingMode) -> bool:
    """The rule said a second time, in other words."""
    if isinstance(override, ResolutionError):
        return False
    if override.text is not None:
        return override.text == mode.value
    ascii_only = "".join(chr(ord(c) | 32) if "A" <= c <= "Z" else c for c in org or "")
    return ascii_only.strip(" \t\r\n\v\f") == mode.value


@given(override=overrides, org=orgs, what_if=st.booleans())
def test_the_mode_is_one_of_three_and_open_only_by_an_explicit_recognised_value(
    override: StoredOverride | ResolutionError, org: str | None, what_if: bool
) -> None:
    resolution = resolve(WORKSPACE, override, org, what_if=what_if)

    assert resolution.mode in set(BillingMode)
    if resolution.mode is not PLATFORM:
        assert opens_explicitly(override, org, resolution.mode)
        assert resolution.error is None
    assert resolution.reason.startswith("what if: ") == what_if
    assert (resolution.source is OVERRIDE) == (
        isinstance(override, StoredOverride) and override.text in {mode.value for mode in BillingMode}
    )


@given(text=st.text())
def test_a_stored_text_is_recognised_only_to_the_letter(text: str) -> None:
    assert (recognise_override(text) is not None) == (text in {"platform_managed", "byok", "disabled"})


@pytest.mark.parametrize(
    "text",
    [
        "byo\u212a",
        "\u00a0byok",
        "\ufeffbyok",
        "\u2003byok\u2003",
        "by\u200bok",
        "\uff42yok",
        "byok\x00",
        "byok disabled",
    ],
    ids=["Kelvin sign", "no-break space", "byte order mark", "em space", "zero width", "full width", "NUL", "two"],
)
def test_an_org_default_that_merely_looks_like_a_mode_is_not_one(text: str) -> None:
    assert recognise_org_default(text) is None
    assert resolve(WORKSPACE, StoredOverride(None), text).mode is PLATFORM


REASONS = {
    "set": (resolve(WORKSPACE, StoredOverride("byok"), None), "The workspace's own mode is byok."),
    "corrupt": (
        resolve(WORKSPACE, StoredOverride("BYOK"), "byok"),
        (
            "The workspace's stored override is not a recognised mode, and the organisation's default is byok, which"
            " must not open it: closed to platform_managed."
        ),
    ),
    "what if": (
        resolve(WORKSPACE, StoredOverride(None), "byok", what_if=True),
        "what if: the workspace has no mode of its own, and the organisation's default is byok.",
    ),
    "no row": (
        resolve(WORKSPACE, NO_WORKSPACE, ""),
        "No such workspace is stored, and the organisation's default is unset: closed to platform_managed.",
    ),
    "degraded": (
        resolve(WORKSPACE, ERRORS[0], "byok"),
        (
            "The workspace's override could not be read (DATABASE_UNREACHABLE) and may say platform_managed, so nothing else"
            " is honoured: defaulting to platform_managed for safety."
        ),
    ),
}


@pytest.mark.parametrize(("resolution", "reason"), REASONS.values(), ids=REASONS)
def test_the_reason_is_a_sentence_that_says_why(resolution: Resolution, reason: str) -> None:
    assert resolution.reason == reason
