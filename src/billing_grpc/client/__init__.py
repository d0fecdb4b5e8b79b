"""The client: decisions that never raise and close without an answer, administration that raises typed errors."""

from billing_grpc.client.bearer_token import TokenSource
from billing_grpc.client.client import BillingClient, WorkspaceId
from billing_grpc.client.tls import ClientTls

__all__ = ["BillingClient", "ClientTls", "TokenSource", "WorkspaceId"]
