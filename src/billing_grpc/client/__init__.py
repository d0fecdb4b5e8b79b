"""The client: decisions that never raise and close without an answer, administration that raises typed errors."""

from billing_grpc.client.client import BillingClient

__all__ = ["BillingClient"]
