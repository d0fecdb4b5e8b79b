"""The extras of this distribution: parts that `pip install billing-grpc` leaves out, because a client does not need them."""

from enum import StrEnum


class Extra(StrEnum):
    """An extra, by the name that pip takes."""

    CLI = "cli"
    SERVER = "server"
    EMBEDDED = "embedded"
    TRACING = "tracing"
    GATEWAY = "gateway"

    @property
    def install(self) -> str:
        """The command that installs the extra."""
        return f"pip install 'billing-grpc[{self}]'"

    @property
    def needed(self) -> str:
        """What an error message says of a part that is not installed, with the remedy; the part is its subject."""
        return f"needs the extra `{self}`: {self.install}"
