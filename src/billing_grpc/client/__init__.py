"""The client: decisions that never raise and use a fallback without an answer, administration that raises typed errors."""

from billing_grpc.client.bearer_token import TokenSource
from billing_grpc.client.calls import WorkspaceId
from billing_grpc.client.client import BillingClient
from billing_grpc.client.tls import ClientTls

__all__ = ["BillingClient", "ClientTls", "TokenSource", "WorkspaceId"]
