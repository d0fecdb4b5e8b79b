"""Count and log answers of a server that blocks other names than its client."""

import logging
from typing import Final

from billing_grpc.client.metrics import count_differences
from billing_grpc.errors import printable
from billing_grpc.model import Catalogue

log = logging.getLogger("billing_grpc.client")

_SHOWN: Final = 100
"""The most characters of a server's list in a log line; a right one needs fewer."""


class CatalogueLog:
    """Compare the server's list of vendor names with the client's: count each difference, and log each list once.

    Args:
        own: the client's list.
    """

    def __init__(self, own: Catalogue) -> None:
        self._own = own
        self._seen: Catalogue | None = own

    def compare(self, method: str, theirs: Catalogue | None) -> None:
        """Count a difference, and log a WARNING if this list differs from that of the answer before.

        Args:
            method: the method's bare name.
            theirs: the list that judged; None if the server, an older one, does not say it.
        """
        before, self._seen = self._seen, theirs
        if theirs is not None and theirs.digest == self._own.digest:
            return
        count_differences(method=method)
        if theirs != before:
            log.warning(
                "%s: the server blocks other vendor names (%s) than this client (%s); what either blocks is refused and"
                " stripped. Give the client the BILLING_GRPC_BLOCKED_KEYS and BILLING_GRPC_EXTRA_BLOCKED_KEYS of the server,"
                " or update the older of the two",
                method,
                "an older release, which does not say" if theirs is None else printable(str(theirs)[:_SHOWN]),
                self._own,
            )
