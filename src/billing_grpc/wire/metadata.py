"""The keys of a call's metadata that client and server share."""

from typing import Final

AUTHORIZATION: Final = "authorization"
"""The caller's token, as `Bearer TOKEN`."""

REQUEST_ID: Final = "x-request-id"
"""The id of a request, in the call and in the trailing metadata of its answer."""
