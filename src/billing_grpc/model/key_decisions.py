"""Decisions about the names of secrets: whether one may be written, and what a container loses before it starts."""

from dataclasses import dataclass, field
from enum import StrEnum

from billing_grpc.model.modes import Resolution


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Which list of vendor names judged an answer.

    Attributes:
        set: the set of the catalogue.
        version: the date of the catalogue's last change.
        digest: identifies the names of the set and those that configuration adds.
    """

    set: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.set} {self.version} {self.digest}"


class SecretVerdict(StrEnum):
    """Whether a secret may be written under a key name."""

    ALLOWED = "allowed"
    BLOCKED_PLATFORM_MANAGED = "blocked_platform_managed"
    BLOCKED_RESERVED = "blocked_reserved"


@dataclass(frozen=True, slots=True)
class SecretKeyVerdict:
    """Whether a secret may be written under one key name.

    Attributes:
        secret_key: the key as the caller sent it.
        verdict: the verdict.
        message: a sentence for the caller; if the key is blocked, it names the remedy.
    """

    secret_key: str
    verdict: SecretVerdict
    message: str


@dataclass(frozen=True, slots=True)
class SecretWriteDecision:
    """Whether secrets may be written under the key names of a request.

    Attributes:
        allowed: whether every key is allowed.
        verdicts: one for each key, in the order of the request.
        resolution: the resolution that decided; None if no verdict depended on the mode.
        catalogue: the list of vendor names that judged; None if a server does not say it.
    """

    allowed: bool
    verdicts: tuple[SecretKeyVerdict, ...]
    resolution: Resolution | None
    catalogue: Catalogue | None


@dataclass(frozen=True, slots=True)
class ProvisionPlan:
    """The changes to make to a container's environment before it starts.

    Attributes:
        resolution: the resolution that decided.
        strip_keys: the names to remove, sorted and without duplicates.
        set_env: the variables to set, in every mode.
        route_via_platform_proxy: whether model calls go through the platform's proxy.
        catalogue: the list of vendor names that judged; None if a server does not say it.
        suspect_keys: names in the environment that look like a vendor's and are in no set; they stay.
        blocked: the normalised names that `provision.apply` removes in every spelling under `platform_managed`, also if they
            came into the environment after the plan; None for the default set of this release.
    """

    resolution: Resolution
    strip_keys: tuple[str, ...]
    set_env: dict[str, str]
    route_via_platform_proxy: bool
    catalogue: Catalogue | None = None
    suspect_keys: tuple[str, ...] = ()
    blocked: frozenset[str] | None = field(default=None, repr=False)
