"""The metadata of a call, and its keys that client and server share."""

from collections.abc import Sequence
from typing import Final

Metadata = Sequence[tuple[str, str | bytes]]

AUTHORIZATION: Final = "authorization"
"""The caller's token, as `Bearer TOKEN`."""

ACTOR: Final = "x-billing-actor"
"""The person behind the caller that changes a mode."""

REQUEST_ID: Final = "x-request-id"
"""The id of a request, in the call and in the trailing metadata of its answer."""
