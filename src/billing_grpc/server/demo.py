"""Demo workspaces for the embedded database, and commands to try them."""

from typing import Final

from billing_grpc.addresses import Address

BYOK: Final = "00000000-0000-4000-8000-000000000001"
INHERITS: Final = "00000000-0000-4000-8000-000000000002"
DISABLED: Final = "00000000-0000-4000-8000-000000000003"
PLATFORM_MANAGED: Final = "00000000-0000-4000-8000-000000000004"

SQL: Final = f"""
INSERT INTO workspaces (id, name, llm_billing_mode)
SELECT id::uuid, name, mode
FROM (VALUES
    ('{BYOK}', 'demo: pays with its own key', 'byok'),
    ('{INHERITS}', 'demo: inherits the organisation''s default', NULL),
    ('{DISABLED}', 'demo: calls no model', 'disabled'),
    ('{PLATFORM_MANAGED}', 'demo: billed by the platform, explicitly', 'platform_managed')
) AS demo (id, name, mode)
WHERE NOT EXISTS (SELECT FROM workspaces)
""".encode()  # noqa: S608 - made of the constants above alone
"""Add the demo workspaces to a database without any workspace, so that no change to them is ever undone."""

_SERVICE: Final = "molecule.billing.v1.BillingModeService"


def hints(address: Address) -> str:
    """Return commands to paste into a shell, for a server that listens on `address`."""
    return f"""
Demo workspaces, as they were first made:
  {BYOK}  byok
  {INHERITS}  inherits
  {DISABLED}  disabled
  {PLATFORM_MANAGED}  platform_managed

Try, in another terminal:
  grpcurl -plaintext {address} list
  grpcurl -plaintext -d '{{"workspace_id": "{INHERITS}"}}' \\
    {address} {_SERVICE}/ResolveBillingMode
  grpcurl -plaintext -d '{{"workspace_id": "{INHERITS}", "secret_keys": ["OPENAI_API_KEY"]}}' \\
    {address} {_SERVICE}/ValidateSecretWrite
  .venv/bin/billing-grpc --address {address} resolve {INHERITS}
  .venv/bin/billing-grpc --address {address} set {INHERITS} byok

Stop with Ctrl-C; the data stays for the next start."""
