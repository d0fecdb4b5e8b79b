"""Authenticated callers and their roles."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """The role of a principal, which decides the methods that it may call."""

    READER = "reader"
    PROVISIONER = "provisioner"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that the server has authenticated.

    Attributes:
        name: the name in the logs and in the change log.
        role: the permissions of the caller.
    """

    name: str
    role: Role
