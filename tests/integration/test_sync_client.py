"""The blocking client against real servers: the same promises on threads, with a connection of its own kind."""

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import pytest

from billing_grpc import client as asyncio_client
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.addresses import TcpAddress
from billing_grpc.client import ClientTls
from billing_grpc.client.blocking_calls import run
from billing_grpc.client.blocking_channel import BlockingDialer
from billing_grpc.client.methods import ClientMethods
from billing_grpc.errors import EtagStale, ServerUnreachable, WorkspaceNotFound
from billing_grpc.model import BillingMode, ProvisionPlan, Resolution
from billing_grpc.server.auth.principals import Principals, token_digest
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.listener import AccessPolicy
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.sync import BillingClient
from billing_grpc.testing import InMemoryRepository, running_server
from tests.support.certificates import Authority
from tests.support.forking import run_forking
from tests.support.ports import free_port

NOBODY: Final = "127.0.0.1:1"
OPEN: Final = "7f1fc6a0-0000-4000-8000-000000000001"
UNKNOWN: Final = "7f1fc6a0-0000-4000-8000-00000000000f"
THREADS: Final = 50


@pytest.fixture
def repository() -> InMemoryRepository:
    return InMemoryRepository({OPEN: "byok"})


@contextmanager
def silent_server() -> Iterator[str]:
    """Yield the target of a listener that never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def public(kind: type) -> dict[str, Any]:
    return {name: each for name, each in inspect.getmembers(kind) if not name.startswith("_")}


def is_fallback(answer: Resolution, reason: str) -> bool:
    return answer.mode is BillingMode.PLATFORM_MANAGED and answer.error is not None and answer.error.reason == reason


def test_it_has_every_method_and_argument_of_the_other_client() -> None:
    mine, theirs = public(BillingClient), public(ClientMethods)

    assert mine.keys() == theirs.keys()
    for name in mine.keys() - {"catalogue"}:
        assert [*inspect.signature(mine[name]).parameters] == [*inspect.signature(theirs[name]).parameters], name
        assert inspect.getdoc(mine[name]) == inspect.getdoc(theirs[name])
    assert inspect.signature(BillingClient) == inspect.signature(asyncio_client.BillingClient)


async def test_one_client_serves_fifty_threads(repository: InMemoryRepository) -> None:
    together = threading.Barrier(THREADS)

    def ask(client: BillingClient) -> list[Resolution]:
        together.wait()
        return [client.resolve(OPEN) for _ in range(10)]

    def ask_on_threads() -> list[list[Resolution]]:
        with BillingClient(target) as client, ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(ask, [client] * THREADS))

    async with running_server(repository) as target:
        answers = await asyncio.to_thread(ask_on_threads)

    assert {(each.mode, each.error) for some in answers for each in some} == {(BillingMode.BYOK, None)}
    assert sum(map(len, answers)) == THREADS * 10


async def test_administration_reads_writes_iterates_and_raises(repository: InMemoryRepository) -> None:
    def administer() -> None:
        with BillingClient(target) as client:
            before = client.get(OPEN)
            client.set(OPEN, BillingMode.DISABLED, reason="one", etag=before.etag)
            assert client.inherit(OPEN, reason="two").previous.mode is BillingMode.DISABLED
            assert [each.reason for each in client.changes(OPEN, page_size=1)][:2] == ["two", "one"]
            assert next(iter(client.changes())).reason == "two"
            with pytest.raises(EtagStale):
                client.set(OPEN, BillingMode.BYOK, etag=before.etag)
            with pytest.raises(WorkspaceNotFound):
                client.get(UNKNOWN)

    async with running_server(repository) as target:
        await asyncio.to_thread(administer)


def test_closing_ends_the_running_calls_and_refuses_later_ones() -> None:
    with silent_server() as target, ThreadPoolExecutor(1) as pool:
        client = BillingClient(target, timeout=30)
        running = pool.submit(client.resolve, OPEN)
        time.sleep(0.3)
        assert not running.done()
        client.close()

        assert is_fallback(running.result(5), "SERVER_UNREACHABLE")
        assert is_fallback(client.resolve(OPEN), "SERVER_UNREACHABLE")
        with pytest.raises(ServerUnreachable, match="closed"):
            client.get(OPEN)


def test_a_call_that_meets_a_closed_channel_says_that_its_client_was_closed() -> None:
    client = BillingClient(NOBODY)

    def close_and_choose(stub: Any) -> Any:
        client.close()
        return stub.ResolveBillingMode

    calls, request = client._methods._calls, service_pb.ResolveBillingModeRequest()  # noqa: SLF001 - one moment of a call
    with pytest.raises(ServerUnreachable, match="closed"):
        run(calls.call(close_and_choose, "ResolveBillingMode", request))


def test_a_decision_ends_at_its_deadline() -> None:
    with silent_server() as target, BillingClient(target, timeout=0.3) as client:
        began = time.monotonic()

        assert is_fallback(client.resolve(OPEN), "SERVER_UNREACHABLE")
        assert time.monotonic() - began < 2


def test_a_call_outlives_the_certificates_it_started_with_and_not_its_client(tmp_path: Path) -> None:
    servers, other, ca = Authority.new("servers"), Authority.new("others"), tmp_path / "servers.crt"
    ca.write_bytes(servers.pem)
    with silent_server() as target, ThreadPoolExecutor(1) as pool:
        client = BillingClient(target, tls=ClientTls(ca=ca), timeout=20)
        started = pool.submit(client.resolve, OPEN)
        time.sleep(0.2)
        ca.write_bytes(servers.pem + other.pem)
        assert is_fallback(client.resolve(OPEN, timeout=0.3), "SERVER_UNREACHABLE")
        assert not started.done()
        client.close()

        assert is_fallback(started.result(5), "SERVER_UNREACHABLE")


def test_a_replaced_channel_is_closed_when_its_last_call_ends(tmp_path: Path) -> None:
    servers, other, ca = Authority.new("servers"), Authority.new("others"), tmp_path / "servers.crt"
    ca.write_bytes(servers.pem)
    with (
        silent_server() as target,
        BillingClient(target, tls=ClientTls(ca=ca)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        (dialer,) = cast("Any", client)._methods._calls._dialers.values()  # noqa: SLF001 - nothing else shows what piles up
        started = pool.submit(client.resolve, OPEN, timeout=1)
        time.sleep(0.2)
        ca.write_bytes(servers.pem + other.pem)
        client.resolve(OPEN, timeout=0.1)
        assert (started.done(), len(dialer._lines)) == (False, 2)  # noqa: SLF001
        started.result()

        assert len(dialer._lines) == 1  # noqa: SLF001


def test_a_closed_dialer_opens_no_channel_for_a_call_that_had_begun() -> None:
    dialer = BlockingDialer(NOBODY, token=None, tls=None)
    dialer.close()

    with pytest.raises(ServerUnreachable, match="closed"), dialer.line():
        pass


async def test_a_token_goes_over_tls_whose_authorities_may_be_renewed(
    repository: InMemoryRepository, tmp_path: Path
) -> None:
    servers, ca, token = Authority.new("servers"), tmp_path / "servers.crt", tmp_path / "token"
    certificate, key = servers.issue(dns=("billing.internal",)).write(tmp_path, "server")
    ca.write_bytes(Authority.new("others").pem)
    token.write_text("a-token\n")
    digest = token_digest("a-token")
    named = f'[[principal]]\nname = "admin"\nrole = "admin"\ntoken_sha256 = ["{digest}"]\n'
    policy = AccessPolicy(FixedPrincipals(Principals.parse(named)), tls=TlsFiles(certificate, key, None))
    address = TcpAddress("127.0.0.1", 0, "tls")
    async with running_server(repository, access_policy=policy, address=address) as target:
        with BillingClient(target, token=token, tls=ClientTls(ca=ca, server_name="billing.internal")) as client:
            assert is_fallback(await asyncio.to_thread(client.resolve, OPEN), "SERVER_UNREACHABLE")
            ca.write_bytes(servers.pem)
            assert (await asyncio.to_thread(client.resolve, OPEN)).mode is BillingMode.BYOK
            token.write_text("another\n")
            assert is_fallback(await asyncio.to_thread(client.resolve, OPEN), "SERVER_REFUSED")


@pytest.fixture(params=["asyncio", "blocking"])
def plan(request: pytest.FixtureRequest) -> Callable[..., ProvisionPlan]:
    """Ask one of the two clients for a plan."""

    def ask(target: str, *, timeout: float | None = None, **arguments: Any) -> ProvisionPlan:
        if request.param == "blocking":
            with BillingClient(target, timeout=timeout) as client:
                return client.plan_provision_env(OPEN, ["OPENAI_API_KEY"], **arguments)

        async def asking() -> ProvisionPlan:
            async with asyncio_client.BillingClient(target, timeout=timeout) as client:
                return await client.plan_provision_env(OPEN, ["OPENAI_API_KEY"], **arguments)

        return asyncio.run(asking())

    return ask


def warnings_in(caplog: pytest.LogCaptureFixture) -> int:
    """How many attempts found no answer."""
    return len([each for each in caplog.records if each.name == "billing_grpc.client"])


def test_a_plan_is_asked_for_until_there_is_an_answer(plan: Callable[..., ProvisionPlan]) -> None:
    address = TcpAddress("127.0.0.1", free_port())
    ready, done = threading.Event(), threading.Event()

    async def serve_late() -> None:
        await asyncio.sleep(0.8)
        async with running_server(InMemoryRepository({OPEN: "byok"}), address=address):
            ready.set()
            await asyncio.to_thread(done.wait, 30)

    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(asyncio.run, serve_late())
        made = plan(address.target, retry_for=20)
        done.set()
        server.result()

    assert (made.resolution.mode, made.resolution.error) == (BillingMode.BYOK, None)


@pytest.mark.parametrize(("timeout", "least"), [(0.2, 2), (None, 1)], ids=["short attempts", "one long attempt"])
def test_a_plan_is_asked_for_no_longer_than_was_wanted(
    plan: Callable[..., ProvisionPlan], timeout: float | None, least: int, caplog: pytest.LogCaptureFixture
) -> None:
    with silent_server() as target:
        began = time.monotonic()
        made = plan(target, timeout=timeout, retry_for=1)
        took = time.monotonic() - began

    assert is_fallback(made.resolution, "SERVER_UNREACHABLE")
    assert made.strip_keys == ("OPENAI_API_KEY",)
    assert 0.7 < took < 4
    assert least <= warnings_in(caplog) <= 3


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_without_seconds_to_retry_a_plan_is_asked_for_once(
    plan: Callable[..., ProvisionPlan], seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_fallback(plan(NOBODY, retry_for=seconds).resolution, "SERVER_UNREACHABLE")

    assert warnings_in(caplog) == 1


@pytest.mark.parametrize("seconds", ["20", None])
def test_seconds_that_are_no_number_get_the_fallback(plan: Callable[..., ProvisionPlan], seconds: object) -> None:
    made = plan(NOBODY, retry_for=seconds)

    assert made.resolution.mode is BillingMode.PLATFORM_MANAGED
    assert made.resolution.error is not None


# Each look at a file happens with the client's locks held; the signal's handler runs in the middle of one.
CALLED_BY_A_SIGNAL: Final = """
import signal, sys
from pathlib import Path
from billing_grpc.sync import BillingClient, ClientTls

class Interrupted(type(Path())):
    when = -1

    def __fspath__(self):
        Interrupted.when -= 1
        if not Interrupted.when:
            signal.raise_signal(signal.SIGUSR1)
        return super().__fspath__()

target, ca, token, act = sys.argv[1:]
for when in range(1, 9):
    client = BillingClient(target, timeout=0.2, tls=ClientTls(ca=Interrupted(ca)), token=Interrupted(token))
    signal.signal(signal.SIGUSR1, lambda *_: getattr(client, act)())
    Interrupted.when = when
    reasons = [client.resolve().error.reason for _ in range(2)]
    assert Interrupted.when <= 0, when
    (dialer,) = client._methods._calls._dialers.values()
    open_lines = len(dialer._lines)
    client.close()
    print(*reasons, open_lines if act == "close" else len(dialer._lines), flush=True)
"""


@pytest.mark.parametrize("act", ["resolve", "close"])
def test_a_signals_handler_may_use_the_client_in_the_middle_of_a_call(tmp_path: Path, act: str) -> None:
    ca, token = tmp_path / "ca.crt", tmp_path / "token"
    ca.write_bytes(Authority.new("servers").pem)
    token.write_text("a-token\n")
    with silent_server() as target:
        ended = run_forking("-c", CALLED_BY_A_SIGNAL, target, ca, token, act)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["SERVER_UNREACHABLE SERVER_UNREACHABLE 0"] * 8
