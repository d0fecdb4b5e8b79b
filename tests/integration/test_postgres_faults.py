"""The repository while its Postgres fails for real: absent, hung, killed, restarted, out of connections."""

import asyncio
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final

import grpc
import psycopg
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.errors import DatabaseTimeout, DatabaseUnreachable, StorageError
from billing_grpc.model import NO_WORKSPACE, BillingMode, OverrideChange, StoredOverride
from billing_grpc.page_token import LogPosition
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.testing import running_server
from tests.support.polling import until_true
from tests.support.victim import Victim
from tests.support.writes import BY, overrides

BUDGET: Final = 1.0
SLACK: Final = 0.5
"""Seconds that a busy machine may add to a budget before an answer counts as late."""

RECOVERY: Final = 1.5
"""Seconds after which a database that is back is used again."""

CLOSING: Final = 3.0
LIMIT: Final = 10.0
"""Seconds after which a test that should have ended is ended, so that a fault fails it and does not hang it."""

POOL_SIZE: Final = 8
until: Final = partial(until_true, seconds=5)
KEY: Final = "OPENAI_API_KEY"
DEGRADED: Final = {"DATABASE_TIMEOUT", "DATABASE_UNREACHABLE"}

Outcome = StoredOverride | StorageError


@pytest.fixture
async def repository(victim: Victim) -> AsyncIterator[PostgresRepository]:
    """A repository whose connections all stand."""
    async with PostgresRepository.opened(victim.service_url, longest_budget=BUDGET) as opened:
        await until(lambda: len(sessions(victim.url)) == POOL_SIZE)
        yield opened


@pytest.fixture
def workspace(victim: Victim) -> str:
    """A stored workspace that says `byok`."""
    made = str(uuid.uuid4())
    with psycopg.connect(victim.url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = on")
        connection.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, 'byok')", [made])
    return made


def sessions(url: str, state: str = "%") -> list[int]:
    """The server's processes for repositories, of those in a state like this."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'billing_grpc' AND state LIKE %s", [state]
        )
        return [row[0] for row in found]


def terminate_sessions(url: str, waiting_for: str = "%") -> list[bool]:
    """Ends the repositories' sessions, or those that wait for this now; returns for each whether that was possible."""
    with psycopg.connect(url) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'billing_grpc' AND coalesce(wait_event_type, '') LIKE %s",
            [waiting_for],
        )
        return [row[0] for row in ended]


async def terminate_every_session(url: str) -> None:
    """Returns when none is left; nobody has asked the repository yet, which cannot know."""
    assert terminate_sessions(url) == [True] * POOL_SIZE
    await until(lambda: not sessions(url))


async def in_time(call: Awaitable[Any], budget: float = BUDGET) -> Any:
    """What a call answers or raises, which is a StorageError, within its budget."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT):
            answer: Any = await call
    except StorageError as error:
        answer = error
    assert time.monotonic() - started < budget + SLACK
    return answer


async def read(repository: PostgresRepository, workspace: str, budget: float = BUDGET) -> Outcome:
    outcome: Outcome = await in_time(repository.load_override(workspace, budget=budget), budget)
    return outcome


async def recovered(repository: PostgresRepository, workspace: str) -> None:
    """Returns when reads work again, which they do in time; every one until then is answered in time as well."""
    deadline = time.monotonic() + RECOVERY
    while isinstance(await read(repository, workspace, 0.3), StorageError):
        assert time.monotonic() < deadline, "reads still fail"
        await asyncio.sleep(0.02)
    assert time.monotonic() < deadline
    assert await asyncio.gather(*(read(repository, workspace) for _ in range(2 * POOL_SIZE))) == (
        [StoredOverride("byok")] * 2 * POOL_SIZE
    )


def assert_down(*outcomes: object) -> None:
    assert {type(outcome) for outcome in outcomes} <= {DatabaseTimeout, DatabaseUnreachable}
    for outcome in outcomes:
        assert isinstance(outcome, StorageError)
        assert str(outcome) == outcome.public_message


# Never there


@contextmanager
def no_socket() -> Iterator[str]:
    yield "host=/no/such/directory user=nobody dbname=none"


@contextmanager
def nobody_listens() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"host=127.0.0.1 port={taken.getsockname()[1]} user=nobody dbname=none"


@contextmanager
def nobody_answers() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)  # the kernel accepts, nobody reads
        yield f"host=127.0.0.1 port={listener.getsockname()[1]} user=nobody dbname=none"


@contextmanager
def garbage_answers() -> Iterator[str]:
    """A server, but not this kind of server."""
    with ExitStack() as open_sockets:
        listener = open_sockets.enter_context(socket.create_server(("127.0.0.1", 0)))

        async def serve() -> None:
            async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                writer.close()

            async with await asyncio.start_server(answer, sock=listener) as server:
                await server.serve_forever()

        task = asyncio.get_running_loop().create_task(serve())
        open_sockets.callback(task.cancel)
        yield f"host=127.0.0.1 port={listener.getsockname()[1]} user=nobody dbname=none"


ABSENCES: Final[Mapping[str, tuple[Callable[[], AbstractContextManager[str]], type[StorageError] | None]]] = {
    "no_socket": (no_socket, DatabaseUnreachable),
    "nobody_listens": (nobody_listens, DatabaseUnreachable),
    "nobody_answers": (nobody_answers, None),  # a timeout at first; unreachable once a connect has given up
    "garbage_answers": (garbage_answers, DatabaseUnreachable),
}


@pytest.mark.parametrize(("absence", "error"), ABSENCES.values(), ids=ABSENCES)
async def test_a_database_that_was_never_there_is_answered_in_time_twice_in_a_row(
    absence: Callable[[], AbstractContextManager[str]], error: type[StorageError] | None
) -> None:
    workspace = str(uuid.uuid4())
    with absence() as url:
        started = time.monotonic()
        async with PostgresRepository.opened(url, longest_budget=BUDGET) as repository:
            assert time.monotonic() - started < SLACK
            for budget in (BUDGET, 0.4):
                outcomes = await asyncio.gather(
                    *(read(repository, workspace, budget) for _ in range(2 * POOL_SIZE)),
                    in_time(repository.load_overrides([workspace], budget=budget), budget),
                    in_time(repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=budget), budget),
                )
                assert_down(*outcomes)
                if error is not None:
                    # Those that had a connection to wait for know why; the others only know that there was none.
                    assert error in {type(outcome) for outcome in outcomes}
            closing = time.monotonic()
        assert time.monotonic() - closing < CLOSING


# Hung


async def test_a_hung_server_costs_no_call_more_than_its_budget_and_is_used_again_later(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    with victim.hung():
        for _ in range(3):
            outcomes = await asyncio.gather(
                *(read(repository, workspace) for _ in range(16)),
                in_time(repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)),
            )
            assert_down(*outcomes)
    await recovered(repository, workspace)


async def test_when_only_the_open_sessions_hang_one_read_pays_for_all_of_them(
    repository: PostgresRepository, victim: Victim, workspace: str
) -> None:
    # As after a failover whose old primary vanished without a word: new connections work, the old ones never answer.
    await read(repository, workspace)
    await until(lambda: len(sessions(victim.url)) == POOL_SIZE)
    hung = sessions(victim.url)
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    try:
        outcomes = [await read(repository, workspace) for _ in range(4)]
    finally:
        for pid in hung:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    assert_down(outcomes[0])
    assert outcomes[2:] == [StoredOverride("byok")] * 2


async def test_a_server_that_hangs_before_the_first_connection_is_used_when_it_goes_on(
    victim: Victim, workspace: str
) -> None:
    with ExitStack() as hanging:
        hanging.enter_context(victim.hung())
        async with PostgresRepository.opened(victim.service_url, longest_budget=BUDGET) as repository:
            assert_down(await read(repository, workspace), await read(repository, workspace))
            hanging.close()
            await recovered(repository, workspace)


async def test_a_short_budget_is_kept_on_a_hung_server(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    with victim.hung():
        for _ in range(3):
            assert_down(*await asyncio.gather(*(read(repository, workspace, 0.2) for _ in range(POOL_SIZE))))
    await recovered(repository, workspace)


async def test_closing_ends_soon_although_every_connection_hangs(victim: Victim, workspace: str) -> None:
    with ExitStack() as hanging:
        async with (
            asyncio.timeout(LIMIT),
            PostgresRepository.opened(victim.service_url, longest_budget=BUDGET) as repository,
        ):
            await until(lambda: len(sessions(victim.url)) == POOL_SIZE)
            hanging.enter_context(victim.hung())
            calls = [asyncio.create_task(read(repository, workspace)) for _ in range(2 * POOL_SIZE)]
            await asyncio.sleep(0.1)
            closing = time.monotonic()
        assert time.monotonic() - closing < CLOSING
        assert_down(*await asyncio.gather(*calls))


# Killed


async def test_the_very_next_read_succeeds_when_every_session_was_terminated(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    await terminate_every_session(victim.url)
    assert await read(repository, workspace) == StoredOverride("byok")
    await until(lambda: len(sessions(victim.url)) == POOL_SIZE)
    await terminate_every_session(victim.url)
    loaded = await in_time(repository.load_overrides([workspace], budget=BUDGET))
    assert loaded == {workspace: StoredOverride("byok")}


async def test_concurrent_reads_all_succeed_when_every_session_was_terminated(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    await terminate_every_session(victim.url)
    outcomes = await asyncio.gather(*(read(repository, workspace) for _ in range(4 * POOL_SIZE)))
    assert outcomes == [StoredOverride("byok")] * 4 * POOL_SIZE


async def test_writes_on_terminated_sessions_are_answered_in_time_until_one_succeeds(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    await terminate_every_session(victim.url)
    # A write is not repeated by the repository, so it may find as many dead connections as there are.
    outcomes = [
        await in_time(repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=BUDGET))
        for _ in range(POOL_SIZE + 1)
    ]
    done = [outcome for outcome in outcomes if not isinstance(outcome, StorageError)]
    assert_down(*(outcome for outcome in outcomes if isinstance(outcome, StorageError)))
    assert overrides(done[0]) == (StoredOverride("byok"), StoredOverride("disabled"))


async def test_a_write_whose_session_ends_before_its_commit_is_made_once_on_another(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    with psycopg.connect(victim.url) as holder:
        holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", [workspace])
        writing = asyncio.create_task(
            in_time(repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=BUDGET))
        )
        await until(lambda: terminate_sessions(victim.url, waiting_for="Lock") == [True])
    assert isinstance(await writing, OverrideChange)
    assert await read(repository, workspace) == StoredOverride("disabled")
    assert len((await repository.list_changes(workspace, position=LogPosition(), limit=10, budget=BUDGET)).changes) == 2


async def test_reads_survive_the_kill_of_a_single_session_which_restarts_all_of_them(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    os.kill(sessions(victim.url)[0], signal.SIGKILL)
    await recovered(repository, workspace)


async def test_a_server_that_was_killed_is_used_again_once_it_is_back(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    victim.kill()
    for _ in range(2):
        outcomes = await asyncio.gather(
            *(read(repository, workspace) for _ in range(16)),
            in_time(repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET)),
        )
        assert_down(*outcomes)
    start = asyncio.create_task(asyncio.to_thread(victim.start))
    while not start.done():
        outcome = await read(repository, workspace, 0.3)
        assert isinstance(outcome, StorageError | StoredOverride)
        assert outcome != NO_WORKSPACE
        await asyncio.sleep(0.01)  # a loop without a pause would starve the thread that starts the server
    await start
    await recovered(repository, workspace)


async def test_a_server_that_was_gone_for_long_is_used_again_as_soon_as_it_is_back(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    # Long enough for a pool that pauses twice as long after each failure to be asleep when the server comes back.
    back_at = time.monotonic() + 5
    await asyncio.to_thread(victim.server.stop)
    while time.monotonic() < back_at:
        assert_down(await read(repository, workspace))
        await asyncio.sleep(0.01)
    await asyncio.to_thread(victim.start)
    await recovered(repository, workspace)


# No free connection


async def test_the_ninth_read_is_answered_in_time_and_no_query_outlives_its_timeout(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    with psycopg.connect(victim.url) as holder:
        holder.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
        held = [
            asyncio.create_task(in_time(repository.load_overrides([workspace], budget=BUDGET)))
            for _ in range(POOL_SIZE)
        ]
        await until(lambda: len(sessions(victim.url, "active")) == POOL_SIZE)
        ninth = await read(repository, workspace)
        assert {type(each) for each in [ninth, *await asyncio.gather(*held)]} == {DatabaseTimeout}
        # The lock is still held: who waited for it was ended by the server's own clock.
        await until(lambda: not sessions(victim.url, "active"))
        # Calls cut off before that leave a query behind, for as long as the server's own clock allows.
        await asyncio.gather(*(read(repository, workspace, 0.2) for _ in range(POOL_SIZE)))
        await asyncio.sleep(BUDGET)
        assert sessions(victim.url, "active") == []
    await recovered(repository, workspace)
    await until(lambda: len(sessions(victim.url)) == POOL_SIZE)


# Over a real server


@asynccontextmanager
async def stub_for(repository: PostgresRepository) -> AsyncIterator["service_grpc.BillingModeServiceAsyncStub"]:
    """A client of a server whose organisation is open by default."""
    async with (
        running_server(repository, org_default="byok", storage_timeout=BUDGET) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield service_grpc.BillingModeServiceStub(channel)


async def decisions(
    stub: "service_grpc.BillingModeServiceAsyncStub", workspace: str, deadline: float
) -> list[pb.BillingModeResolution]:
    """What every decision says, each of which has to be the closed one in its own words too."""
    resolved, batch, secret, plan = await asyncio.gather(
        stub.ResolveBillingMode(
            service_pb.ResolveBillingModeRequest(workspace_id=workspace, org_default="byok"), timeout=deadline
        ),
        stub.BatchResolveBillingModes(
            service_pb.BatchResolveBillingModesRequest(workspace_ids=[workspace, str(uuid.uuid4())]), timeout=deadline
        ),
        stub.ValidateSecretWrite(
            service_pb.ValidateSecretWriteRequest(workspace_id=workspace, secret_keys=[KEY]), timeout=deadline
        ),
        stub.PlanProvisionEnv(
            service_pb.PlanProvisionEnvRequest(workspace_id=workspace, env_keys=[KEY, KEY.lower()]), timeout=deadline
        ),
    )
    assert not secret.allowed
    assert [each.verdict for each in secret.verdicts] == [pb.SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED]
    assert {KEY, KEY.lower()} == set(plan.strip_keys)
    assert plan.route_via_platform_proxy
    assert set(plan.set_env.values()) == {"platform_managed"}
    assert len(batch.resolutions) == 2
    return [resolved.resolution, *batch.resolutions, secret.resolution, plan.resolution]


def assert_closed(resolutions: list[pb.BillingModeResolution]) -> None:
    for each in resolutions:
        assert each.resolved_mode == pb.BILLING_MODE_PLATFORM_MANAGED
        assert each.source == pb.BILLING_MODE_SOURCE_CONSTANT_FALLBACK
        assert each.error.reason in DEGRADED
        assert not each.HasField("workspace_override")


def details(error: grpc.aio.AioRpcError) -> dict[str, Message]:
    """The details of a rich status by the name of their type."""
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    found = {}
    for packed in status_pb2.Status.FromString(raw).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, pb.BillingModeResolution):
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                found[kind.DESCRIPTOR.name] = message
    return found


async def test_decisions_on_a_hung_server_are_closed_under_an_open_org_default_each_time(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    async with stub_for(repository) as stub:
        before = await stub.ResolveBillingMode(service_pb.ResolveBillingModeRequest(workspace_id=workspace))
        assert before.resolution.resolved_mode == pb.BILLING_MODE_BYOK
        with victim.hung():
            for _ in range(2):
                assert_closed(await in_time(decisions(stub, workspace, deadline=10)))


async def test_a_decision_on_a_hung_server_arrives_before_a_short_deadline(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    async with stub_for(repository) as stub:
        await stub.ResolveBillingMode(service_pb.ResolveBillingModeRequest(workspace_id=workspace))
        arrived = 0
        with victim.hung():
            for _ in range(8):
                # The server keeps 50 ms for its answer; a busy machine takes them now and then.
                with suppress(grpc.aio.AioRpcError):
                    assert_closed(await decisions(stub, workspace, deadline=0.3))
                    arrived += 1
    assert arrived >= 3


async def test_administration_on_a_hung_server_is_unavailable_with_a_reason_and_a_retry(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    async with stub_for(repository) as stub:
        with victim.hung():
            get = stub.GetWorkspaceBillingMode(
                service_pb.GetWorkspaceBillingModeRequest(workspace_id=workspace), timeout=10
            )
            change = stub.SetWorkspaceBillingMode(
                service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace, mode=pb.BILLING_MODE_DISABLED),
                timeout=10,
            )
            errors = await in_time(asyncio.gather(get, change, return_exceptions=True))
    for error in errors:
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        found = details(error)
        info, retry = found["ErrorInfo"], found["RetryInfo"]
        assert isinstance(info, error_details_pb2.ErrorInfo)
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert info.domain == "billing.molecule"
        assert info.reason in DEGRADED
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
        assert error.details() in {DatabaseTimeout.public_message, DatabaseUnreachable.public_message}
    closed = details(errors[0])["BillingModeResolution"]
    assert isinstance(closed, pb.BillingModeResolution)
    assert_closed([closed])
