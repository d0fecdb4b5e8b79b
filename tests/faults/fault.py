"""What a fault is: what it may touch, what it does, and which answers may suffer from it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import psycopg

from tests.faults.calls import DECISIONS, LIST_WORKSPACES, RPCS, SUMMARIZE
from tests.faults.pair import Pair
from tests.support.pooler import Pooler
from tests.support.victim import Victim

AT_ONCE: Final = 1.0
"""Seconds that a fault lasts if every answer reports it at once. The longest answer may take as long."""

READERS: Final = frozenset({*DECISIONS, "GetWorkspaceBillingMode", LIST_WORKSPACES, SUMMARIZE})
ALL: Final = frozenset(RPCS)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault may touch.

    Attributes:
        victim: the server.
        url: the owner's address of the database that is served.
        read: the workspace that everybody reads; it stores `byok`.
        closed: another one that is only read; it stores `platform_managed`.
        written: a workspace that many write at once.
        network: the process between the service and the server, where there is one.
        pooler: the PgBouncer between them, where there is one.
        pair: the two servers, where there are two.
    """

    victim: Victim
    url: str
    read: str
    closed: str
    written: str
    network: int = 0
    pooler: Pooler | None = None
    pair: Pair | None = None

    @property
    def the_pooler(self) -> Pooler:
        assert self.pooler is not None
        return self.pooler

    @property
    def the_pair(self) -> Pair:
        assert self.pair is not None
        return self.pair


Begin = Callable[[Scene], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the matrix.

    Attributes:
        says: what is done, for the page.
        during: a context in which it is so.
        degrades: the RPCs that must be seen to answer degraded, or the fault did not bite.
        may_degrade: those that may, depending on the moment; all others must tell the truth throughout.
        shows: those that must be seen to show a corrupt text.
        reasons: the only reasons that degraded answers may give.
        known: whether the database has to be known to be down soon, and answers to come at once.
        stale: whether what can be reached may be old, so that no value of it may be an answer.
        holds: seconds for which it lasts.
        writers: how many callers besides write to the one workspace.
        prepare: what is done before anybody calls.
        repair: what is done after everything has recovered.
    """

    says: str
    during: Begin
    reasons: frozenset[str]
    degrades: frozenset[str] = ALL
    may_degrade: frozenset[str] = frozenset()
    shows: frozenset[str] = frozenset()
    known: bool = False
    stale: bool = False
    holds: float = 2.2
    writers: int = 0
    prepare: Callable[[Scene], None] | None = None
    repair: Callable[[Scene], None] | None = None


def reasons(*names: str) -> frozenset[str]:
    """Reasons of the contract; those of the database without their first word."""
    ours = {"UNREACHABLE", "TIMEOUT", "DENIED", "STALE"}
    return frozenset(f"DATABASE_{name}" if name in ours else name for name in names)


GONE: Final = reasons("UNREACHABLE", "TIMEOUT")


def execute_together(url: str, *statements: str) -> None:
    """Executes statements in one transaction."""
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def execute(url: str, *statements: str) -> None:
    """Executes statements, each in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
