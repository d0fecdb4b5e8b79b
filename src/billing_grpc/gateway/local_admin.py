"""Let the operator's own browser in under local admin, and no other user or site: by an address that works once."""

import hmac
import secrets
from collections import deque
from collections.abc import Callable
from typing import Final

_BYTES: Final = 32
_MAX_PAGES: Final = 16
"""How many pages may be let in at once; with one more, the oldest has to be opened again."""
_BEARER: Final = "Bearer "


class LocalAdmin:
    """The pages that act as the server's principal `local`.

    The operator opens an address with a secret in its fragment, which browsers neither send nor pass on. The page exchanges
    it for a token of its own. A secret works once; then the next one is announced.

    Args:
        announce: called with each new secret.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._secret = ""
        self._tokens: deque[str] = deque(maxlen=_MAX_PAGES)

    def renew(self) -> None:
        """Make and announce a new secret; the one before is void."""
        self._secret = secrets.token_urlsafe(_BYTES)
        self._announce(self._secret)

    def exchange(self, secret: str) -> str | None:
        """Return a token for this secret; `None` if it is wrong or was used."""
        if not self._secret or not hmac.compare_digest(secret.encode("utf-8", "replace"), self._secret.encode()):
            return None
        token = secrets.token_urlsafe(_BYTES)
        self._tokens.append(token)
        self.renew()
        return token

    def let_in(self, authorization: str) -> bool:
        """Return whether this `authorization` header is that of a page that was let in."""
        given = authorization.removeprefix(_BEARER).encode("utf-8", "replace")
        matches = [hmac.compare_digest(given, token.encode()) for token in self._tokens]
        return authorization.startswith(_BEARER) and any(matches)
