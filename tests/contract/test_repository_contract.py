"""What every `Repository` promises, run over the one on Postgres and the one in memory."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from billing_grpc.errors import DatabaseTimeout
from billing_grpc.model import NO_WORKSPACE, BillingMode, StoredOverride
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.storage.repository import Repository
from billing_grpc.testing import InMemoryRepository
from tests.databases import unchecked_database
from tests.support.writes import BY, overrides

BUDGET: Final = 1.0
SLACK: Final = 0.5
"""Seconds that a busy machine may add to a budget before an answer counts as late."""

LONGEST: Final = 256

# What is stored, and what is read of it.
TEXTS: Final = {
    "null": (None, None),
    "platform_managed": ("platform_managed", "platform_managed"),
    "byok": ("byok", "byok"),
    "disabled": ("disabled", "disabled"),
    "upper_case": ("BYOK", "BYOK"),
    "leading_space": (" byok", " byok"),
    "trailing_newline": ("byok\n", "byok\n"),
    "empty": ("", ""),
    "only_spaces": ("  ", "  "),
    "control_characters": ("\x01byok\x7f", "\x01byok\x7f"),
    "the_word_null": ("NULL", "NULL"),
    "full_width_letters": ("\uff42\uff59\uff4f\uff4b", "\uff42\uff59\uff4f\uff4b"),
    "combining_character": ("byok\u0301", "byok\u0301"),
    "beyond_the_basic_plane": ("\U0001f511byok", "\U0001f511byok"),
    "as_long_as_is_read": ("x" * LONGEST, "x" * LONGEST),
    "one_longer": ("x" * (LONGEST + 1), "x" * LONGEST),
    "ten_thousand_characters": ("byok" * 2500, "byok" * (LONGEST // 4)),
    "long_and_beyond_the_basic_plane": ("\U0001f511" * 10_000, "\U0001f511" * LONGEST),
}
MODES: Final = {"inherit": None, **{mode.value: mode for mode in BillingMode}}
BEFORE: Final = {"nothing": None, "byok": "byok", "disabled": "disabled", "corrupt": "BYOK", "long": "z" * 10_000}

Call = Callable[[Repository, str, float], Awaitable[object]]
CALLS: Final[dict[str, Call]] = {
    "load": lambda repository, workspace, budget: repository.load_override(workspace, budget=budget),
    "load_many": lambda repository, workspace, budget: repository.load_overrides([workspace], budget=budget),
    "save": lambda repository, workspace, budget: repository.save_override(
        workspace, BillingMode.DISABLED, by=BY, budget=budget
    ),
    "check": lambda repository, _, budget: repository.check_administration(budget=budget),
}

SLOW: Final = {
    **{f"{name}_with_a_short_budget": (call, 0.2) for name, call in CALLS.items()},
    "save_with_the_longest_budget": (CALLS["save"], BUDGET),
}


class Storage(Protocol):
    """A repository, and what a test does to its storage behind its back."""

    repository: Repository

    def put(self, texts: Mapping[str, str | None]) -> None:
        """Stores workspaces by id, whatever the text."""

    def stored(self) -> dict[str, str | None]:
        """Everything that is stored, uncut."""

    def slow(self) -> AbstractContextManager[None]:
        """A time in which nothing is answered."""


class InMemory:
    """Storage in a dictionary."""

    def __init__(self) -> None:
        self._memory = InMemoryRepository()
        self.repository: Repository = self._memory

    def put(self, texts: Mapping[str, str | None]) -> None:
        self._memory.overrides.update(texts)

    def stored(self) -> dict[str, str | None]:
        return dict(self._memory.overrides)

    @contextmanager
    def slow(self) -> Iterator[None]:
        self._memory.delay = 60
        yield
        self._memory.delay = 0


class Postgres:
    """Storage in a database without the CHECK that keeps corrupt texts out."""

    def __init__(self, repository: Repository, url: str, connection: psycopg.Connection[Any]) -> None:
        self.repository = repository
        self._url = url
        self._connection = connection

    def put(self, texts: Mapping[str, str | None]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, %s)", list(texts.items()))

    def stored(self) -> dict[str, str | None]:
        return dict(self._connection.execute("SELECT id::text, llm_billing_mode FROM workspaces").fetchall())

    @contextmanager
    def slow(self) -> Iterator[None]:
        with psycopg.connect(self._url) as other:
            other.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
            yield


@pytest.fixture(scope="module")
def unchecked_url(cluster_url: str) -> Iterator[str]:
    with unchecked_database(cluster_url) as url:
        yield url


@pytest.fixture(params=["postgres", "in_memory"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[Storage]:
    """Each implementation over an empty storage."""
    if request.param == "in_memory":
        yield InMemory()
        return
    url: str = request.getfixturevalue("unchecked_url")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM workspaces")
        as_service = make_conninfo(url, user=migrations.SERVICE_ROLE)
        async with PostgresRepository.opened(as_service, longest_budget=BUDGET, size=3) as repository:
            yield Postgres(repository, url, connection)


def new_id() -> str:
    return str(uuid.uuid4())


# Load


@pytest.mark.parametrize(("text", "read"), TEXTS.values(), ids=TEXTS)
async def test_a_text_is_read_exactly_as_it_is_stored_cut_to_256_characters(
    storage: Storage, text: str | None, read: str | None
) -> None:
    workspace = new_id()
    storage.put({workspace: text})
    assert await storage.repository.load_override(workspace, budget=BUDGET) == StoredOverride(read, exists=True)


async def test_a_workspace_that_is_not_stored_is_told_from_one_that_inherits(storage: Storage) -> None:
    inherits, absent = new_id(), new_id()
    storage.put({inherits: None})
    assert await storage.repository.load_override(absent, budget=BUDGET) == NO_WORKSPACE
    assert await storage.repository.load_override(inherits, budget=BUDGET) != NO_WORKSPACE


async def test_a_change_behind_its_back_is_seen_by_the_next_load(storage: Storage) -> None:
    workspace = new_id()
    assert await storage.repository.load_override(workspace, budget=BUDGET) == NO_WORKSPACE
    storage.put({workspace: "byok"})
    assert await storage.repository.load_override(workspace, budget=BUDGET) == StoredOverride("byok")


# Load many


async def test_a_batch_reads_each_text_as_a_single_load_does(storage: Storage) -> None:
    texts = {new_id(): pair for pair in TEXTS.values()}
    storage.put({workspace: text for workspace, (text, _) in texts.items()})
    loaded = await storage.repository.load_overrides(texts, budget=BUDGET)
    assert dict(loaded) == {workspace: StoredOverride(read) for workspace, (_, read) in texts.items()}


async def test_a_batch_answers_what_is_stored_and_leaves_out_what_is_not(storage: Storage) -> None:
    kept, inherits, absent, not_asked = (new_id() for _ in range(4))
    storage.put({kept: "byok", inherits: None, not_asked: "disabled"})
    loaded = await storage.repository.load_overrides([absent, inherits, kept], budget=BUDGET)
    assert dict(loaded) == {kept: StoredOverride("byok"), inherits: StoredOverride(None)}


async def test_the_order_of_a_batch_and_its_duplicates_change_nothing(storage: Storage) -> None:
    texts = {new_id(): text for text in ("byok", "disabled", None, "corrupt")}
    storage.put(texts)
    asked = [*texts, new_id()]
    expected = {workspace: StoredOverride(text) for workspace, text in texts.items()}
    for each in (asked, asked[::-1], asked + asked, [*asked, *asked[::-1]], frozenset(asked), dict.fromkeys(asked)):
        assert dict(await storage.repository.load_overrides(each, budget=BUDGET)) == expected


async def test_a_batch_of_absent_workspaces_is_empty(storage: Storage) -> None:
    storage.put({new_id(): "byok"})
    assert not await storage.repository.load_overrides([new_id(), new_id()], budget=BUDGET)


async def test_an_empty_batch_is_empty(storage: Storage) -> None:
    storage.put({new_id(): "byok"})
    assert not await storage.repository.load_overrides([], budget=BUDGET)


async def test_a_batch_of_a_thousand_is_answered_whole(storage: Storage) -> None:
    ids = [new_id() for _ in range(1000)]
    storage.put({workspace: "byok" if index % 4 else None for index, workspace in enumerate(ids) if index % 2})
    loaded = await storage.repository.load_overrides(ids, budget=BUDGET)
    assert dict(loaded) == {workspace: StoredOverride(text) for workspace, text in storage.stored().items()}
    assert len(loaded) == 500


# Save


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
async def test_a_save_stores_the_mode_and_reports_what_was_there_before(
    storage: Storage, before: str | None, mode: BillingMode | None
) -> None:
    workspace, other = new_id(), new_id()
    after = None if mode is None else mode.value
    storage.put({workspace: before, other: "platform_managed"})
    change = await storage.repository.save_override(workspace, mode, by=BY, budget=BUDGET)
    read_before = None if before is None else before[:LONGEST]
    assert overrides(change) == (StoredOverride(read_before), StoredOverride(after))
    assert storage.stored() == {workspace: after, other: "platform_managed"}
    assert await storage.repository.load_override(workspace, budget=BUDGET) == StoredOverride(after)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
async def test_a_repeated_save_succeeds_and_changes_nothing(storage: Storage, mode: BillingMode | None) -> None:
    workspace = new_id()
    storage.put({workspace: "BYOK"})
    first = await storage.repository.save_override(workspace, mode, by=BY, budget=BUDGET)
    assert first.previous.override == StoredOverride("BYOK")
    for _ in range(2):
        again = await storage.repository.save_override(workspace, mode, by=BY, budget=BUDGET)
        assert overrides(again) == (first.current.override, first.current.override)
        assert again.current.etag == first.current.etag
    assert storage.stored() == {workspace: None if mode is None else mode.value}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
async def test_a_save_to_an_unknown_workspace_writes_nothing(storage: Storage, mode: BillingMode | None) -> None:
    other = new_id()
    storage.put({other: "byok"})
    change = await storage.repository.save_override(new_id(), mode, by=BY, budget=BUDGET)
    assert overrides(change) == (NO_WORKSPACE, NO_WORKSPACE)
    assert storage.stored() == {other: "byok"}


# Administration


async def test_administration_works_where_everything_is_there(storage: Storage) -> None:
    await storage.repository.check_administration(budget=BUDGET)


# Time


@pytest.mark.parametrize(("call", "budget"), SLOW.values(), ids=SLOW)
async def test_a_call_to_a_slow_storage_raises_a_timeout_within_its_budget(
    storage: Storage, call: Call, budget: float
) -> None:
    workspace = new_id()
    storage.put({workspace: "byok"})
    await storage.repository.load_override(workspace, budget=BUDGET)
    with storage.slow():
        started = time.monotonic()
        with pytest.raises(DatabaseTimeout) as raised:
            await call(storage.repository, workspace, budget)
        assert time.monotonic() - started < budget + SLACK
    assert str(raised.value) == DatabaseTimeout.public_message
    assert isinstance(await storage.repository.load_override(workspace, budget=BUDGET), StoredOverride)


async def test_more_calls_than_a_slow_storage_can_hold_are_all_answered_in_time(storage: Storage) -> None:
    workspace = new_id()
    storage.put({workspace: "byok"})
    budget = 0.4
    with storage.slow():
        started = time.monotonic()
        calls = (call(storage.repository, workspace, budget) for call in list(CALLS.values()) * 8)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - started < budget + SLACK
    assert {type(answer) for answer in answers} == {DatabaseTimeout}
