"""The extras of this distribution: parts that `pip install billing-grpc` leaves out, because a client does not need them."""

from enum import StrEnum


class Extra(StrEnum):
    """An extra that commands need."""

    CLI = "cli"
    SERVER = "server"

    def missing(self, what: str) -> str:
        """Return the error message for a part that is not installed, with the remedy.

        Args:
            what: the part.
        """
        return f"{what} needs the extra `{self}`: pip install 'billing-grpc[{self}]'"
