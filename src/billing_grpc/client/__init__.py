"""The client: decisions that never raise and close without an answer, administration that raises typed errors."""

from billing_grpc.client.bearer_token import TokenSource
from billing_grpc.client.channel import ClientTls
from billing_grpc.client.client import BillingClient, WorkspaceId

__all__ = ["BillingClient", "ClientTls", "TokenSource", "WorkspaceId"]
