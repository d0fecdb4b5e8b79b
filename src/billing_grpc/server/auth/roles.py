"""The methods that each role may call: one table, denied by default. Pure."""

from typing import Final

from billing_grpc.model import Role

_SERVICE: Final = "/molecule.billing.v1.BillingModeService/"

MAY_CALL: Final[dict[str, frozenset[Role]]] = {
    f"{_SERVICE}ResolveBillingMode": frozenset({Role.READER, Role.PROVISIONER, Role.ADMIN}),
    f"{_SERVICE}BatchResolveBillingModes": frozenset({Role.READER, Role.PROVISIONER, Role.ADMIN}),
    f"{_SERVICE}GetWorkspaceBillingMode": frozenset({Role.READER, Role.ADMIN}),
    f"{_SERVICE}SetWorkspaceBillingMode": frozenset({Role.ADMIN}),
    f"{_SERVICE}ValidateSecretWrite": frozenset({Role.PROVISIONER, Role.ADMIN}),
    f"{_SERVICE}PlanProvisionEnv": frozenset({Role.PROVISIONER, Role.ADMIN}),
    f"{_SERVICE}ListBillingModeChanges": frozenset({Role.READER, Role.ADMIN}),
    f"{_SERVICE}ListWorkspaceBillingModes": frozenset({Role.READER, Role.ADMIN}),
    f"{_SERVICE}SummarizeBillingModes": frozenset({Role.READER, Role.ADMIN}),
}
"""The roles that may call each method. No role, admin included, may call a method that is not in this table."""

WATCH: Final = "/grpc.health.v1.Health/Watch"
"""The stream that tells a client's channel whether it may call."""

OPEN_STREAMS: Final = frozenset(
    {
        WATCH,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""The methods among `OPEN` whose calls stay open for as long as the caller likes."""

OPEN: Final = OPEN_STREAMS | {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List"}
"""The methods that need no principal: health checks, and reflection of the contract, which is public."""


def may_call(role: Role, method: str) -> bool:
    """Return whether a role may call a method, given by its full name as in `/package.Service/Method`."""
    return role in MAY_CALL.get(method, frozenset())
