"""The client against real servers: closed whenever it must be, open again as soon as it may, and truthful elsewhere."""

import asyncio
import gc
import logging
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any, Final, cast

import anyio
import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from prometheus_client import REGISTRY

from billing_grpc import provision, service_config, sync
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.addresses import Security, TcpAddress
from billing_grpc.catalogue import NameSet
from billing_grpc.client import BillingClient, ClientTls
from billing_grpc.client.calls import SLACK
from billing_grpc.errors import (
    STORAGE_ERRORS,
    AnswerInvalid,
    BillingError,
    ClientMisused,
    EtagStale,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    ServerRefused,
    ServerUnreachable,
    StorageError,
    Unauthenticated,
    WorkspaceNotFound,
)
from billing_grpc.model import BillingMode, Resolution, ResolutionError, SecretVerdict, StoredOverride
from billing_grpc.resolver import resolve as rule
from billing_grpc.secret_keys import KeyList
from billing_grpc.server.auth.principals import Principals, token_digest
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.listener import SERVICE_NAME, AccessPolicy
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.testing import InMemoryRepository, running_server
from billing_grpc.wire.messages import resolution_to_proto
from billing_grpc.wire.statuses import error_to_status
from tests.support.certificates import Authority
from tests.support.one_name import one_name
from tests.support.ports import free_port

BLOCKED_KEYS = tuple(sorted(KeyList().names))

OPEN: Final = "7f1fc6a0-0000-4000-8000-000000000001"
INHERITS: Final = "7f1fc6a0-0000-4000-8000-000000000002"
UNKNOWN: Final = "7f1fc6a0-0000-4000-8000-00000000000f"
NOBODY: Final = "127.0.0.1:1"
LOG: Final = "billing_grpc.client"


@pytest.fixture
def repository() -> InMemoryRepository:
    return InMemoryRepository({OPEN: "byok", INHERITS: None})


@pytest.fixture
async def client(repository: InMemoryRepository) -> AsyncIterator[BillingClient]:
    async with running_server(repository) as target, BillingClient(target) as client:
        yield client


@contextmanager
def silent() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def answering(method: str, answer: bytes) -> AsyncIterator[str]:
    """Answers one method with these bytes, whatever was asked."""

    async def handler(request: bytes, context: Any) -> bytes:
        del request, context
        return answer

    async with serving(method, handler) as target:
        yield target


@asynccontextmanager
async def serving(method: str, handler: Callable[[bytes, Any], Awaitable[bytes]]) -> AsyncIterator[str]:
    """Answers one method as the handler does."""
    server = grpc.aio.server()
    methods: Any = {method: grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def is_closed(resolution: Resolution, reason: str) -> bool:
    error = resolution.error
    return (resolution.mode, error and error.reason) == (BillingMode.PLATFORM_MANAGED, reason)


def counted(method: str, reason: str) -> float:
    labels = {"method": method, "reason": reason}
    return REGISTRY.get_sample_value("billing_grpc_client_closed_answers_total", labels) or 0


DECISIONS: Final[dict[str, Callable[[BillingClient], Awaitable[Resolution | None]]]] = {}


def decision(name: str) -> Callable[[Any], Any]:
    def named(function: Any) -> Any:
        DECISIONS[name] = function
        return function

    return named


@decision("ResolveBillingMode")
async def resolve(client: BillingClient) -> Resolution:
    return await client.resolve(OPEN)


@decision("BatchResolveBillingModes")
async def resolve_many(client: BillingClient) -> Resolution:
    (resolution,) = await client.resolve_many([OPEN])
    return resolution


@decision("ValidateSecretWrite")
async def validate(client: BillingClient) -> Resolution | None:
    decided = await client.validate_secret_write(["OPENAI_API_KEY", "SLACK_TOKEN"], workspace_id=OPEN)
    allowed = [verdict.verdict is SecretVerdict.ALLOWED for verdict in decided.verdicts]
    assert allowed == [decided.resolution is not None and decided.resolution.error is None, True]
    return decided.resolution


@decision("PlanProvisionEnv")
async def plan(client: BillingClient) -> Resolution:
    planned = await client.plan_provision_env(OPEN, ["openai_api_key"])
    assert planned.strip_keys == (("openai_api_key",) if planned.resolution.error is not None else ())
    return planned.resolution


each_decision = pytest.mark.parametrize("ask", DECISIONS.values(), ids=DECISIONS.keys())


@each_decision
async def test_an_answer_is_taken(client: BillingClient, ask: Callable[[BillingClient], Awaitable[Resolution]]) -> None:
    resolution = await ask(client)

    assert (resolution.mode, resolution.error) == (BillingMode.BYOK, None)


@pytest.mark.parametrize("method", DECISIONS)
async def test_nobody_listening_closes_and_is_logged_and_counted(method: str, caplog: pytest.LogCaptureFixture) -> None:
    before = counted(method, "SERVER_UNREACHABLE")
    with caplog.at_level(logging.WARNING, LOG):
        async with BillingClient(NOBODY) as client:
            resolution = await DECISIONS[method](client)

    assert resolution is not None
    assert is_closed(resolution, "SERVER_UNREACHABLE")
    assert counted(method, "SERVER_UNREACHABLE") == before + 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == LOG]
    assert line.startswith(method)
    assert "defaulting to platform_managed for safety" in line


@each_decision
async def test_a_server_that_never_answers_closes_at_the_deadline(
    ask: Callable[[BillingClient], Awaitable[Resolution]],
) -> None:
    with silent() as target:
        async with BillingClient(target, timeout=0.3) as client, asyncio.timeout(3):
            assert is_closed(await ask(client), "SERVER_UNREACHABLE")


@each_decision
async def test_a_channel_closed_during_a_call_is_a_closed_answer_and_no_cancelled_task(
    ask: Callable[[BillingClient], Awaitable[Resolution]],
) -> None:
    with silent() as target:
        async with BillingClient(target) as client, asyncio.timeout(3):
            asking = asyncio.ensure_future(ask(client))
            await asyncio.sleep(0.1)
            await client.close()
            assert is_closed(await asking, "SERVER_UNREACHABLE")
            assert is_closed(await ask(client), "SERVER_UNREACHABLE")


@each_decision
async def test_the_cancellation_of_the_callers_task_is_raised(
    ask: Callable[[BillingClient], Awaitable[Resolution]],
) -> None:
    with silent() as target:
        async with BillingClient(target) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await ask(client)
            asking = asyncio.ensure_future(ask(client))
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking


@each_decision
async def test_a_scope_of_anyio_ends_at_its_own_cancellation(
    ask: Callable[[BillingClient], Awaitable[Resolution]],
) -> None:
    before = asyncio.all_tasks()
    with silent() as target:
        async with BillingClient(target) as client:
            with anyio.move_on_after(0.1) as scope:
                await ask(client)
            assert scope.cancelled_caught
            # The call has ended too.
            async with asyncio.timeout(1):
                while asyncio.all_tasks() - before:
                    await asyncio.sleep(0.01)


async def test_calls_that_end_as_they_are_given_up_leave_no_error_behind(caplog: pytest.LogCaptureFixture) -> None:
    with silent() as target:
        async with BillingClient(target) as client:
            asking = [asyncio.ensure_future(client.resolve(OPEN, timeout=0.3)) for _ in range(10)]
            await asyncio.sleep(0.1)
            time.sleep(0.3 + SLACK)  # noqa: ASYNC251 - the loop finds the deadline and the end of each call in one turn
            for each in asking:
                assert is_closed(await each, "SERVER_UNREACHABLE")
    del asking, each
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@each_decision
@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")], ids=str)
async def test_what_is_no_request_closes_too(
    client: BillingClient, ask: Callable[[BillingClient], Awaitable[Resolution]], seconds: float
) -> None:
    # Past the constructor, which refuses it.
    client._calls.terms._timeout = seconds  # noqa: SLF001 - there is no other way to a mistake of this kind in every method

    assert is_closed(await ask(client), "SERVER_REFUSED")


async def test_an_id_that_cannot_be_sent_closes(client: BillingClient) -> None:
    assert is_closed(await client.resolve("\udcff"), "SERVER_REFUSED")
    assert is_closed((await client.resolve_many(["\udcff"]))[0], "SERVER_REFUSED")


async def test_a_text_alone_is_one_name_and_not_its_letters(client: BillingClient) -> None:
    # Each of its letters would be a name that is not listed, and allowed.
    decided = await client.validate_secret_write("OPENAI_API_KEY")
    assert [(each.secret_key, each.verdict.value) for each in decided.verdicts] == [
        ("OPENAI_API_KEY", "blocked_platform_managed")
    ]
    assert "openai_api_key" in (await client.plan_provision_env(INHERITS, "openai_api_key")).strip_keys
    assert [each.mode for each in await client.resolve_many(OPEN)] == [BillingMode.BYOK]
    async with BillingClient(NOBODY, extra_blocked_keys="ACME_API_KEY") as offline:
        assert not (await offline.validate_secret_write(["ACME_API_KEY"])).allowed


@pytest.mark.parametrize("no_text", [None, b"OPENAI_API_KEY", 1], ids=str)
async def test_what_is_no_text_is_no_name_and_raises_nothing(client: BillingClient, no_text: Any) -> None:
    decided = await client.validate_secret_write([no_text, "SLACK_TOKEN"], workspace_id=OPEN)

    assert [each.verdict.value for each in decided.verdicts] == ["blocked_platform_managed", "allowed"]
    assert not decided.allowed
    assert (await client.plan_provision_env(OPEN, [no_text])).resolution.error is None


async def test_a_variable_whose_name_cannot_be_sent_does_not_close_the_plan(client: BillingClient) -> None:
    # As Python shows an environment that holds a name which is not UTF-8.
    odd = ["caf\udce9", "PATH", *(f"no name {i}" for i in range(5000))]

    assert (await client.plan_provision_env(OPEN, odd)).resolution.mode is BillingMode.BYOK


async def test_many_are_asked_a_thousand_at_a_time_and_one_that_is_no_id_closes_alone(
    client: BillingClient, repository: InMemoryRepository
) -> None:
    ids = [OPEN, "no id", INHERITS, "", OPEN.upper()] * 500

    resolutions = await client.resolve_many(ids)

    assert [each.mode.value for each in resolutions[:5]] == ["byok", *["platform_managed"] * 3, "byok"]
    assert [each.error is None for each in resolutions] == [True, False, True, False, True] * 500
    assert repository.calls == 2
    assert await client.resolve_many([]) == []


async def test_more_names_than_one_may_ask_about_close_no_plan(
    client: BillingClient, repository: InMemoryRepository
) -> None:
    many = [f"SVC_{number}_SERVICE_HOST" for number in range(9000)]

    open_plan = await client.plan_provision_env(OPEN, [*many, "OPENAI_API_KEY"])
    asked = repository.calls
    closed_plan = await client.plan_provision_env(INHERITS, [*many, "openai_api_key", "\ufeffHF_TOKEN"])

    assert (open_plan.resolution.mode, open_plan.strip_keys) == (BillingMode.BYOK, ())
    assert closed_plan.resolution.error is None
    assert closed_plan.strip_keys == ("openai_api_key", "\ufeffHF_TOKEN")
    # An open plan strips nothing, whatever further names there are.
    assert (asked, repository.calls) == (1, 1 + 3)


async def test_a_name_too_long_to_send_closes_nothing_and_is_stripped(client: BillingClient) -> None:
    long = " " * 5_000_000 + "openai_api_key"

    assert (await client.plan_provision_env(OPEN, [long])).resolution.error is None
    closed_plan = await client.plan_provision_env(INHERITS, [long])
    assert closed_plan.resolution.error is None
    assert long in closed_plan.strip_keys
    decided = await client.validate_secret_write([long, "HF_TOKEN"], workspace_id=OPEN)
    assert [each.verdict.value for each in decided.verdicts] == ["blocked_platform_managed", "allowed"]


async def test_several_calls_of_one_decision_have_the_time_of_one() -> None:
    async def slow(request: bytes, context: Any) -> bytes:
        del context
        await asyncio.sleep(0.4)
        sent = service_pb.ValidateSecretWriteRequest.FromString(request).secret_keys
        verdicts = [pb.SecretKeyVerdict(secret_key=key, verdict=pb.SECRET_VERDICT_ALLOWED) for key in sent]
        return service_pb.ValidateSecretWriteResponse(allowed=True, verdicts=verdicts).SerializeToString()

    keys = [f"SECRET_{number}" for number in range(256 * 5)]
    async with serving("ValidateSecretWrite", slow) as target, BillingClient(target) as client:
        decided = await client.validate_secret_write(keys, timeout=1)

    # The last parts had no time left: an outage blocks no unrelated secret, and the decision says that there was one.
    assert decided.resolution is not None
    assert is_closed(decided.resolution, "SERVER_UNREACHABLE")
    assert len(decided.verdicts) == len(keys)


UNREAD: Final = rule(OPEN, ResolutionError("DATABASE_TIMEOUT", "late"), None)
MANAGED: Final = rule(OPEN, StoredOverride("platform_managed"), None)


@pytest.mark.parametrize("carried", [UNREAD, MANAGED], ids=["an error", "a mode that refuses"])
async def test_of_several_calls_a_decision_carries_the_resolution_that_explains_refusals(carried: Resolution) -> None:
    others = [rule(OPEN, StoredOverride("byok"), None), *([MANAGED] if carried is UNREAD else [])]
    keys = [f"SECRET_{number}" for number in range(256 * (1 + len(others)))]
    for order in permutations([carried, *others]):
        resolutions = iter(order)

        async def answer(request: bytes, context: Any, found: Iterator[Resolution] = resolutions) -> bytes:
            del context
            sent = service_pb.ValidateSecretWriteRequest.FromString(request).secret_keys
            return service_pb.ValidateSecretWriteResponse(
                allowed=True,
                verdicts=[pb.SecretKeyVerdict(secret_key=key, verdict=pb.SECRET_VERDICT_ALLOWED) for key in sent],
                resolution=resolution_to_proto(next(found)),
            ).SerializeToString()

        async with serving("ValidateSecretWrite", answer) as target, BillingClient(target) as client:
            assert (await client.validate_secret_write(keys, workspace_id=OPEN)).resolution == carried


async def test_a_call_that_grpc_never_ends_is_given_up_soon_after_its_deadline(client: BillingClient) -> None:
    # As it happens in a process that was forked after its first call.
    def stuck(_: object) -> Any:
        return lambda *_, **__: asyncio.get_running_loop().create_future()

    calls, request = client._calls, service_pb.ResolveBillingModeRequest()  # noqa: SLF001 - gRPC cannot be told to hang
    async with asyncio.timeout(5):
        with pytest.raises(ServerUnreachable, match="did not end"):
            await calls.call(stuck, "ResolveBillingMode", request, timeout=0.1)


async def test_each_decision_that_is_closed_counts() -> None:
    before = counted("BatchResolveBillingModes", "SERVER_UNREACHABLE")
    async with BillingClient(NOBODY) as client:
        await client.resolve_many([OPEN, INHERITS, "no id"])
    assert counted("BatchResolveBillingModes", "SERVER_UNREACHABLE") == before + 2

    before = counted("BatchResolveBillingModes", "SERVER_REFUSED")
    async with BillingClient(NOBODY) as client:
        await client.resolve_many(["no id", "", "nor this"])
    assert counted("BatchResolveBillingModes", "SERVER_REFUSED") == before + 3


async def test_a_secret_for_the_whole_organisation_is_asked_about_as_one() -> None:
    seen: list[str | None] = []

    async def handler(request: bytes, context: Any) -> bytes:
        del context
        seen.append(service_pb.ValidateSecretWriteRequest.FromString(request).WhichOneof("scope"))
        return b""

    async with serving("ValidateSecretWrite", handler) as target, BillingClient(target) as client:
        await client.validate_secret_write(["OPENAI_API_KEY"], workspace_id=OPEN, org_wide=True)
        await client.validate_secret_write(["OPENAI_API_KEY"])

    assert seen == ["org_wide", "workspace_id"]


async def test_a_server_that_comes_back_is_found_again_by_the_same_client(repository: InMemoryRepository) -> None:
    address = TcpAddress("127.0.0.1", free_port(), "plain")
    async with BillingClient(address.target) as client:
        for _ in range(2):
            async with running_server(repository, address=address), asyncio.timeout(5):
                while (await client.resolve(OPEN)).mode is not BillingMode.BYOK:
                    await asyncio.sleep(0.05)
            assert is_closed(await client.resolve(OPEN), "SERVER_UNREACHABLE")


@pytest.mark.parametrize("missing", [0, 12], ids=["replaced", "missing for a while"])
async def test_a_name_that_leads_elsewhere_is_soon_followed(repository: InMemoryRepository, missing: int) -> None:
    old, new = (TcpAddress(host, free_port(), "plain") for host in ("127.0.0.2", "127.0.0.3"))
    new = replace(new, port=old.port)
    with one_name() as names:
        target = f"dns://127.0.0.1:{names.port}/billing.test:{old.port}"
        with sync.BillingClient(target) as blocking:
            async with BillingClient(target) as client:

                async def ask_both() -> tuple[Resolution, Resolution]:
                    return await asyncio.gather(client.resolve(OPEN), asyncio.to_thread(blocking.resolve, OPEN))

                names.address = old.host
                async with running_server(repository, address=old):
                    assert {each.mode for each in await ask_both()} == {BillingMode.BYOK}
                async with running_server(repository, address=new):
                    names.address = None
                    for _ in range(missing * 10):
                        assert all(is_closed(each, "SERVER_UNREACHABLE") for each in await ask_both())
                        await asyncio.sleep(0.1)
                    names.address = new.host
                    # By itself gRPC looks a name up every thirty seconds, and one that was missing at growing pauses.
                    async with asyncio.timeout(4):
                        while {each.mode for each in await ask_both()} != {BillingMode.BYOK}:
                            await asyncio.sleep(0.05)
            # The channels that it replaced are closed.
            (dialer,) = cast("Any", blocking)._methods._calls._dialers.values()  # noqa: SLF001 - nothing else shows what piles up
            assert len(dialer._lines) == 1  # noqa: SLF001


async def test_a_long_outage_does_not_make_the_pauses_between_attempts_long() -> None:
    loop = asyncio.get_running_loop()
    attempts: list[float] = []

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(loop.time())
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server, BillingClient(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        # By itself gRPC would by then pause for more than two seconds, and for two minutes in the end.
        until = loop.time() + 8
        while loop.time() < until:
            await client.resolve(OPEN)
            await asyncio.sleep(0.1)

    assert max(later - earlier for earlier, later in pairwise(attempts)) < 2


class Known:
    """A server with certificates on disk, and the clients' files."""

    def __init__(self, folder: Path) -> None:
        self.servers, self.clients = Authority.new("servers"), Authority.new("clients")
        certificate, key = self.servers.issue(dns=("billing.internal",)).write(folder, "server")
        (folder / "clients.crt").write_bytes(self.clients.pem)
        self.files = TlsFiles(certificate, key, folder / "clients.crt")
        self.ca = folder / "servers.crt"
        self.ca.write_bytes(self.servers.pem)
        self.tls = ClientTls(ca=self.ca, server_name="billing.internal")

    @asynccontextmanager
    async def serving(self, principals: str, security: Security = "tls") -> AsyncIterator[str]:
        access_policy = AccessPolicy(FixedPrincipals(Principals.parse(principals)), tls=self.files)
        repository = InMemoryRepository({OPEN: "byok"})
        address = TcpAddress("127.0.0.1", 0, security)
        async with running_server(repository, access_policy=access_policy, address=address) as target:
            yield target


def principal(role: str, *tokens: str) -> str:
    digests = ", ".join(f'"{token_digest(token)}"' for token in tokens)
    return f'[[principal]]\nname = "{role}"\nrole = "{role}"\ntoken_sha256 = [{digests}]\n'


async def test_a_token_file_and_a_token_source_are_asked_at_every_call(tmp_path: Path) -> None:
    known, file, shown = Known(tmp_path), tmp_path / "token", ["old"]
    file.write_text("old\n")
    async with (
        known.serving(principal("admin", "old", "new")) as target,
        BillingClient(target, token=file, tls=known.tls) as by_file,
        BillingClient(target, token=lambda: shown[0], tls=known.tls) as by_source,
    ):
        for token, reason in (("new", None), ("revoked", "SERVER_REFUSED"), ("new", None), ("", "SERVER_REFUSED")):
            file.write_text(f"{token}\n")
            shown[0] = token
            for client in (by_file, by_source):
                error = (await client.resolve(OPEN)).error
                assert (error and error.reason) == reason, token


async def test_a_token_file_that_is_gone_for_a_moment_leaves_the_last_token(tmp_path: Path) -> None:
    known, file = Known(tmp_path), tmp_path / "token"
    async with (
        known.serving(principal("admin", "a-token")) as target,
        BillingClient(target, token=file, tls=known.tls) as client,
    ):
        with pytest.raises(ServerRefused, match="cannot be read"):
            await client.get(OPEN)
        file.write_text("a-token")
        for _ in range(2):
            assert (await client.resolve(OPEN)).mode is BillingMode.BYOK
            file.unlink(missing_ok=True)


async def test_a_token_that_cannot_be_had_or_sent_closes_and_never_stands_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> str:
        raise RuntimeError("secret-in-the-error")

    known = Known(tmp_path)
    sources: list[Any] = [tmp_path / "missing", fails, lambda: "secret in\nparts", lambda: "secret-\u00e9"]
    sources += [lambda: b"secret", lambda: None]
    async with known.serving(principal("admin", "x")) as target:
        for source in sources:
            async with BillingClient(target, token=source, tls=known.tls) as client:
                assert is_closed(await client.resolve(OPEN), "SERVER_REFUSED")
                with pytest.raises(ServerRefused):
                    await client.get(OPEN)

    assert len(caplog.records) == len(sources)
    assert "secret" not in caplog.text


async def test_an_authority_that_does_not_know_the_server_closes_until_its_file_is_right(tmp_path: Path) -> None:
    known = Known(tmp_path)
    known.ca.write_bytes(known.clients.pem)
    async with (
        known.serving(principal("admin", "a-token")) as target,
        BillingClient(target, token=lambda: "a-token", tls=known.tls, timeout=2) as client,
    ):
        assert is_closed(await client.resolve(OPEN), "SERVER_UNREACHABLE")
        known.ca.unlink()
        assert is_closed(await client.resolve(OPEN), "SERVER_UNREACHABLE")
        known.ca.write_bytes(known.servers.pem)
        assert (await client.resolve(OPEN)).mode is BillingMode.BYOK
        # A file that is gone for a moment is no reason to stop using the channel that works.
        known.ca.unlink()
        assert (await client.resolve(OPEN)).mode is BillingMode.BYOK


async def test_a_client_certificate_is_renewed_in_place(tmp_path: Path) -> None:
    known = Known(tmp_path)
    named = '[[principal]]\nname = "cp"\nrole = "admin"\ncertificate_uri = ["spiffe://new"]\n'
    certificate, key = known.clients.issue(uris=("spiffe://old",)).write(tmp_path, "client")
    tls = ClientTls(ca=known.ca, cert=certificate, key=key, server_name="billing.internal")
    async with known.serving(named, "mtls") as target, BillingClient(target, tls=tls) as client:
        with pytest.raises(Unauthenticated):
            await client.get(OPEN)
        known.clients.issue(uris=("spiffe://new",)).write(tmp_path, "client")
        assert (await client.get(OPEN)).resolution.mode is BillingMode.BYOK


# What stands in the file: this, and then so many bytes of the good one.
BROKEN: Final[dict[str, tuple[bytes, int]]] = {
    "empty": (b"", 0),
    "half": (b"", 100),
    "garbage": (b"garbage", 0),
    "nothing to gRPC": (b"\0\n", 10_000),
    "another's": (Authority.new("another").issue(dns=("another",)).key, 0),
}


@pytest.mark.parametrize("what", ["ca", "cert", "key"])
@pytest.mark.parametrize("how", BROKEN)
async def test_tls_files_that_are_half_renewed_change_nothing_and_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, how: str
) -> None:
    known = Known(tmp_path)
    named = '[[principal]]\nname = "cp"\nrole = "admin"\ncertificate_uri = ["spiffe://cp"]\n'
    certificate, key = known.clients.issue(uris=("spiffe://cp",)).write(tmp_path, "client")
    tls = ClientTls(ca=known.ca, cert=certificate, key=key, server_name="billing.internal")
    file = {"ca": known.ca, "cert": certificate, "key": key}[what]
    async with known.serving(named, "mtls") as target, BillingClient(target, tls=tls) as client:
        assert (await client.resolve(OPEN)).mode is BillingMode.BYOK
        good = file.read_bytes()
        # An empty certificate or key ends the process where gRPC gets to see it.
        before, kept = BROKEN[how]
        file.write_bytes(before + good[:kept])
        for _ in range(2):
            assert (await client.resolve(OPEN)).mode is BillingMode.BYOK
        (line,) = [record.getMessage() for record in caplog.records if record.name == LOG]
        assert "the TLS files cannot be used" in line
        async with BillingClient(target, tls=tls) as late:
            assert is_closed(await late.resolve(OPEN), "SERVER_UNREACHABLE")
            with pytest.raises(ServerUnreachable, match="the TLS files cannot be used"):
                await late.get(OPEN)
            file.write_bytes(good)
            for each in (client, late):
                assert (await each.resolve(OPEN)).mode is BillingMode.BYOK
    assert "BEGIN" not in caplog.text


async def test_only_what_was_looked_at_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known(tmp_path)
    named = '[[principal]]\nname = "cp"\nrole = "admin"\ncertificate_uri = ["spiffe://cp"]\n'
    certificate, key = known.clients.issue(uris=("spiffe://cp",)).write(tmp_path, "client")
    good, look = key.read_bytes(), ssl.SSLContext.load_cert_chain
    key.write_bytes(b"")

    def late(*given: Any, **named: Any) -> None:
        if not key.stat().st_size:
            key.write_bytes(good)
        look(*given, **named)

    # Empty when it was read, and whole when OpenSSL looked at it.
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", late)
    tls = ClientTls(ca=known.ca, cert=certificate, key=key, server_name="billing.internal")
    async with known.serving(named, "mtls") as target, BillingClient(target, tls=tls) as client:
        assert (await client.resolve(OPEN)).mode is BillingMode.BYOK


async def test_tls_files_that_this_process_could_not_look_at_are_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(24, "too many open files")

    known = Known(tmp_path)
    named = '[[principal]]\nname = "cp"\nrole = "admin"\ncertificate_uri = ["spiffe://new"]\n'
    certificate, key = known.clients.issue(uris=("spiffe://old",)).write(tmp_path, "client")
    tls = ClientTls(ca=known.ca, cert=certificate, key=key, server_name="billing.internal")
    async with known.serving(named, "mtls") as target, BillingClient(target, tls=tls) as client, asyncio.timeout(10):
        assert is_closed(await client.resolve(OPEN), "SERVER_REFUSED")
        known.clients.issue(uris=("spiffe://new",)).write(tmp_path, "client")
        with monkeypatch.context() as patch:
            patch.setattr(ssl.SSLContext, "load_cert_chain", fails)
            assert is_closed(await client.resolve(OPEN), "SERVER_REFUSED")
        while (await client.resolve(OPEN)).mode is not BillingMode.BYOK:
            await asyncio.sleep(0.1)


async def test_a_client_without_tls_files_blames_none_of_them() -> None:
    service_config.load.cache_clear()  # what the client then cannot read
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with BillingClient(NOBODY, timeout=1) as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(ServerUnreachable, match=r"no connection can be made \(Too many open files\)"):
                await client.get(OPEN)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_a_call_outlives_the_certificates_it_started_with_and_not_its_client(tmp_path: Path) -> None:
    known, before = Known(tmp_path), asyncio.all_tasks()
    with silent() as target:
        client = BillingClient(target, tls=known.tls, timeout=20)
        started = asyncio.ensure_future(client.resolve(OPEN))
        await asyncio.sleep(0.1)
        known.ca.write_bytes(known.servers.pem + known.clients.pem)
        assert is_closed(await client.resolve(OPEN, timeout=0.3), "SERVER_UNREACHABLE")
        assert not started.done()
        async with asyncio.timeout(5):
            await client.close()
            assert asyncio.all_tasks() <= {*before, started}
            assert is_closed(await started, "SERVER_UNREACHABLE")


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("unix:/run/billing.sock", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("10.0.0.1:50051", False),
        ("127.0.0.1.example:50051", False),
        ("localhost.example:50051", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("unix:/run/a.sock,10.0.0.1:2", False),
        ("dns://10.0.0.1/localhost:1", False),
    ],
)
async def test_a_token_is_shown_in_plain_text_to_this_machine_only(target: str, local: bool) -> None:
    if local:
        await BillingClient(target, token=lambda: "t").close()
        return
    with pytest.raises(ValueError, match="TLS"):
        BillingClient(target, token=lambda: "t")
    await BillingClient(target, token=lambda: "t", tls=ClientTls()).close()


async def test_a_proxy_of_the_environment_never_sees_plain_text(
    repository: InMemoryRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent() as proxy:
        for name in ("http_proxy", "grpc_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://{proxy}")
        monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY", proxy)
        monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.1/32")
        async with running_server(repository) as target, BillingClient(target, timeout=2) as client:
            assert (await client.resolve(OPEN)).mode is BillingMode.BYOK


@pytest.mark.parametrize(
    "wrong",
    [
        *({"timeout": 0}, {"timeout": float("nan")}, {"timeout": 1e9}),
        *({"extra_blocked_keys": ["A B"]}, {"extra_blocked_keys": [None]}),
        *({"metadata": [(key, "v")]} for key in ("X-Case", "x y", "", None, "caf\u00e9", "grpc-timeout", "x-b-bin")),
        *({"metadata": [("x-a", value)]} for value in ("two\nlines", "caf\u00e9", b"bytes", 1)),
        # Ours: a second one would make the server refuse both, and this one would be shown in plain text.
        *({"metadata": [(key, "v")]} for key in ("authorization", "x-request-id")),
    ],
    ids=str,
)
def test_what_no_client_could_work_with_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BillingClient(NOBODY, **wrong)


@pytest.mark.parametrize("token", ["a-token", "/run/secrets/token", b"a-token"], ids=str)
def test_a_token_itself_is_not_taken_for_its_source_and_not_repeated(token: Any) -> None:
    with pytest.raises(TypeError, match="token") as refused:
        BillingClient(NOBODY, token=token)

    assert str(token) not in str(refused.value)


async def test_metadata_of_the_caller_goes_with_every_call() -> None:
    seen: list[Any] = []

    async def handler(request: bytes, context: Any) -> bytes:
        del request
        seen.append(dict(context.invocation_metadata()))
        return b""

    sent: list[tuple[str, str | bytes]] = [("x-tenant", "a b~"), ("x-tenant-bin", b"\x00\xff")]
    async with serving("ResolveBillingMode", handler) as target, BillingClient(target, metadata=sent) as client:
        await client.resolve(OPEN)

    assert seen[0].items() >= dict(sent).items()
    assert len(seen[0]["x-request-id"]) == 32


def test_a_certificate_comes_with_its_key() -> None:
    with pytest.raises(ValueError, match="key"):
        ClientTls(cert=Path("client.crt"))


async def test_keys_that_the_caller_adds_are_refused_and_stripped_without_a_server() -> None:
    async with BillingClient(NOBODY, extra_blocked_keys=[" new_vendor_key "]) as client:
        decided = await client.validate_secret_write(["New_Vendor_Key"])
        planned = await client.plan_provision_env(env_keys=["new_vendor_key"])
        whole = await client.plan_provision_env()

    assert not decided.allowed
    assert planned.strip_keys == ("new_vendor_key",)
    assert {"NEW_VENDOR_KEY", *BLOCKED_KEYS} == set(whole.strip_keys)


async def test_a_server_that_blocks_other_names_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    labels = {"method": "PlanProvisionEnv"}
    name = "billing_grpc_client_catalogue_differences_total"
    before = REGISTRY.get_sample_value(name, labels) or 0
    both = ["ANTHROPIC_BASE_URL", "acme_key", "PATH"]
    keys = KeyList(["ACME_KEY"], name_set=NameSet.CORE)

    async with running_server(InMemoryRepository({INHERITS: None}), keys=keys) as target:
        async with BillingClient(target) as client:
            plans = [await client.plan_provision_env(INHERITS, both) for _ in range(3)]
        async with BillingClient(target, blocked_keys="core", extra_blocked_keys=["ACME_KEY"]) as client:
            agreed = await client.plan_provision_env(INHERITS, both)

    assert [each.strip_keys for each in plans] == [("ANTHROPIC_BASE_URL", "acme_key")] * 3
    assert plans[0].catalogue == agreed.catalogue == keys.catalogue
    assert agreed.strip_keys == ("acme_key",)
    assert REGISTRY.get_sample_value(name, labels) == before + 3
    logged = [each.message for each in caplog.records if "blocks other vendor names" in each.message]
    assert len(logged) == 1
    assert str(keys.catalogue) in logged[0]
    assert str(KeyList().catalogue) in logged[0]


async def test_what_the_clients_own_set_holds_goes_from_a_plan_of_a_smaller_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = {"ANTHROPIC_BASE_URL": "https://mine", "PATH": "/bin"}
    server = running_server(InMemoryRepository({INHERITS: None}), keys=KeyList(name_set=NameSet.CORE))
    async with server as target, BillingClient(target) as client:
        plan = await client.plan_provision_env(INHERITS, ["PATH"])
        decided = await client.validate_secret_write(["ANTHROPIC_BASE_URL"], workspace_id=INHERITS)
        again = await client.plan_provision_env(INHERITS, provision.apply(plan, env))

    assert plan.strip_keys == again.strip_keys == ()
    assert "ANTHROPIC_BASE_URL" not in provision.apply(plan, env)
    assert not decided.allowed
    assert decided.catalogue == KeyList(name_set=NameSet.CORE).catalogue
    assert "ValidateSecretWrite" not in "".join(each.message for each in caplog.records)


async def test_an_environment_without_names_has_nothing_to_strip(client: BillingClient) -> None:
    assert (await client.plan_provision_env(INHERITS, [])).strip_keys == ()
    assert (await client.plan_provision_env(INHERITS)).strip_keys == tuple(sorted(BLOCKED_KEYS))


async def test_an_unknown_set_of_names_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="blocked_keys: everything is no set of names; use core, agents, vendors"):
        BillingClient(NOBODY, blocked_keys="everything")


async def test_administration_reads_and_writes(client: BillingClient) -> None:
    update = await client.set(INHERITS, BillingMode.DISABLED, reason="no models here")
    assert (update.previous.mode, update.current.resolution.mode) == (
        BillingMode.PLATFORM_MANAGED,
        BillingMode.DISABLED,
    )
    assert (await client.get(INHERITS.upper())) == update.current
    supposed = await client.inherit(INHERITS, etag=update.current.etag, validate_only=True)
    assert supposed.current.resolution.mode is BillingMode.PLATFORM_MANAGED
    assert (await client.get(INHERITS)) == update.current
    await client.inherit(INHERITS)

    changes = [each async for each in client.changes(INHERITS, page_size=1)]

    assert [(each.previous_override, each.new_override, each.reason) for each in changes] == [
        ("disabled", None, ""),
        (None, "disabled", "no models here"),
    ]
    assert update.current.update_time == changes[1].change_time
    assert (update.current.updated_by, changes[1].principal) == ("local", "local")


async def test_a_stale_etag_brings_the_current_state(client: BillingClient) -> None:
    with pytest.raises(EtagStale) as stale:
        await client.set(OPEN, BillingMode.DISABLED, etag="stale")

    assert stale.value.attachments == (await client.get(OPEN),)


@pytest.mark.parametrize("kind", STORAGE_ERRORS.values(), ids=STORAGE_ERRORS.keys())
async def test_administration_raises_what_the_storage_says(
    client: BillingClient, repository: InMemoryRepository, kind: type[StorageError]
) -> None:
    repository.failure = kind()

    outcomes = await asyncio.gather(
        client.get(OPEN), client.inherit(OPEN), anext(client.changes()), return_exceptions=True
    )

    assert [type(outcome) for outcome in outcomes] == [kind] * 3
    read = outcomes[0]
    assert isinstance(read, kind)
    (closed,) = read.attachments
    assert isinstance(closed, Resolution)
    assert is_closed(closed, kind.reason)


async def test_administration_raises_what_the_service_refuses(client: BillingClient) -> None:
    with pytest.raises(WorkspaceNotFound):
        await client.get(UNKNOWN)
    with pytest.raises(InvalidArgument) as wrong:
        await client.get("no id")
    assert (wrong.value.reason, [each.field for each in wrong.value.violations]) == (
        "WORKSPACE_ID_INVALID",
        ["workspace_id"],
    )
    with pytest.raises(InvalidArgument, match="500 code points"):
        await client.set(OPEN, BillingMode.BYOK, reason="x" * 501)
    with pytest.raises(ValueError, match="free"):
        await client.set(OPEN, cast("BillingMode", "free"))


async def test_administration_raises_when_the_caller_may_not(tmp_path: Path) -> None:
    known = Known(tmp_path)
    async with (
        known.serving(principal("reader", "a-token")) as target,
        BillingClient(target, token=lambda: "a-token", tls=known.tls) as reader,
        BillingClient(target, token=lambda: "another", tls=known.tls) as stranger,
    ):
        with pytest.raises(PermissionDenied) as denied:
            await reader.set(OPEN, BillingMode.BYOK)
        assert not any("proxy" in note for note in denied.value.__notes__)
        error = (await reader.plan_provision_env(OPEN)).resolution.error
        assert error is not None
        assert "this caller's role may not call this method" in error.message, "who reads only the answer learns why"
        with pytest.raises(Unauthenticated):
            await stranger.get(OPEN)


async def test_administration_raises_when_nobody_answers_or_the_answer_is_none() -> None:
    async with BillingClient(NOBODY) as client:
        with pytest.raises(ServerUnreachable, match="UNAVAILABLE"):
            await client.set(OPEN, BillingMode.BYOK)
    with silent() as target:
        async with BillingClient(target, timeout=0.2) as client:
            with pytest.raises(ServerUnreachable, match="DEADLINE_EXCEEDED"):
                await client.get(OPEN)
    async with answering("GetWorkspaceBillingMode", b"") as target, BillingClient(target) as client:
        with pytest.raises(AnswerInvalid):
            await client.get(OPEN)
        with pytest.raises(ServerRefused, match="UNIMPLEMENTED"):
            await client.inherit(OPEN)


@pytest.mark.parametrize(
    "garbled", [b"\xff\xff", service_pb.ResolveBillingModeResponse().SerializeToString()], ids=["bytes", "empty"]
)
@pytest.mark.parametrize("method", DECISIONS)
async def test_a_garbled_answer_closes(method: str, garbled: bytes) -> None:
    async with answering(method, garbled) as target, BillingClient(target) as client:
        # An unlisted key stays allowed only where nobody answered: not in what cannot be understood.
        if method == "ValidateSecretWrite":
            decided = await client.validate_secret_write(["OPENAI_API_KEY", "SLACK_TOKEN"], workspace_id=OPEN)
            assert not any(verdict.verdict is SecretVerdict.ALLOWED for verdict in decided.verdicts)
            resolution = decided.resolution
        else:
            resolution = await DECISIONS[method](client)
        assert resolution is not None
        assert is_closed(resolution, "ANSWER_INVALID")


async def test_administration_raises_for_a_time_out_of_range_and_for_another_workspace() -> None:
    page = service_pb.ListBillingModeChangesResponse()
    page.changes.add(workspace_id=OPEN).change_time.seconds = 1 << 60
    async with answering("ListBillingModeChanges", page.SerializeToString()) as target, BillingClient(target) as client:
        with pytest.raises(AnswerInvalid, match="a time that is out of range"):
            await anext(client.changes())
    page.changes[0].change_time.seconds = 1
    async with answering("ListBillingModeChanges", page.SerializeToString()) as target, BillingClient(target) as client:
        assert (await anext(client.changes())).workspace_id == OPEN
        assert (await anext(client.changes(OPEN.upper()))).workspace_id == OPEN
        with pytest.raises(AnswerInvalid, match="another workspace"):
            await anext(client.changes(INHERITS))
    found = service_pb.GetWorkspaceBillingModeResponse()
    found.billing_mode.resolution.CopyFrom(resolution_to_proto(rule(OPEN, StoredOverride("byok"), None)))
    found.billing_mode.update_time.seconds = -(1 << 60)
    async with (
        answering("GetWorkspaceBillingMode", found.SerializeToString()) as target,
        BillingClient(target) as client,
    ):
        with pytest.raises(AnswerInvalid, match="a time that is out of range"):
            await client.get(OPEN)


async def test_an_answer_that_is_too_long_is_not_taken_for_too_many_calls() -> None:
    long = service_pb.GetWorkspaceBillingModeResponse()
    long.billing_mode.updated_by = "x" * (5 << 20)
    async with (
        answering("GetWorkspaceBillingMode", long.SerializeToString()) as target,
        BillingClient(target) as client,
    ):
        with pytest.raises(ServerRefused, match="RESOURCE_EXHAUSTED"):
            await client.get(OPEN)

    async def overloaded(request: bytes, context: Any) -> bytes:
        del request
        await context.abort_with_status(rpc_status.to_status(error_to_status(Overloaded())))
        return b""

    async with serving("GetWorkspaceBillingMode", overloaded) as target, BillingClient(target) as client:
        with pytest.raises(Overloaded):
            await client.get(OPEN)


def details(code: int, *parts: Message) -> bytes:
    """A rich status as it stands in the trailing metadata."""
    status = status_pb2.Status(code=code, message="no")
    for part in parts:
        status.details.add().Pack(part)
    sent: bytes = status.SerializeToString()
    return sent


def says(reason: str, domain: str = "billing.molecule") -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain)


GARBLED: Final = status_pb2.Status(code=code_pb2.NOT_FOUND)
GARBLED.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
NOT_OURS: Final[dict[str, tuple[grpc.StatusCode, bytes, type[BillingError]]]] = {
    "of another domain": (
        grpc.StatusCode.NOT_FOUND,
        details(code_pb2.NOT_FOUND, says("WORKSPACE_NOT_FOUND", "example.org")),
        ServerRefused,
    ),
    "of no domain": (
        grpc.StatusCode.INVALID_ARGUMENT,
        details(code_pb2.INVALID_ARGUMENT, error_details_pb2.BadRequest()),
        ServerRefused,
    ),
    "with a reason of a later version": (
        grpc.StatusCode.NOT_FOUND,
        details(code_pb2.NOT_FOUND, says("LATER")),
        ServerRefused,
    ),
    "garbled": (grpc.StatusCode.NOT_FOUND, b"\xff\xff", ServerRefused),
    "with a garbled part": (grpc.StatusCode.NOT_FOUND, GARBLED.SerializeToString(), ServerRefused),
    "cancelled": (grpc.StatusCode.CANCELLED, b"", ServerUnreachable),
    "stale, with a state that contradicts itself": (
        grpc.StatusCode.ABORTED,
        details(code_pb2.ABORTED, says("ETAG_STALE"), pb.WorkspaceBillingMode(etag="1")),
        EtagStale,
    ),
}


@pytest.mark.parametrize(("code", "sent", "kind"), NOT_OURS.values(), ids=NOT_OURS.keys())
async def test_a_status_is_believed_as_far_as_the_service_itself_could_have_said_it(
    code: grpc.StatusCode, sent: bytes, kind: type[BillingError]
) -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        del request
        await context.abort(code, "no", (("grpc-status-details-bin", sent),))
        return b""

    async with serving("GetWorkspaceBillingMode", refuse) as target, BillingClient(target) as client:
        with pytest.raises(BillingError) as refused:
            await client.get(OPEN)

    assert type(refused.value) is kind
    assert getattr(refused.value, "attachments", ()) == ()


CUT_SHORT: Final = {
    grpc.StatusCode.INTERNAL: AnswerInvalid,
    grpc.StatusCode.UNKNOWN: AnswerInvalid,
    grpc.StatusCode.DATA_LOSS: AnswerInvalid,
    grpc.StatusCode.RESOURCE_EXHAUSTED: AnswerInvalid,
    grpc.StatusCode.UNIMPLEMENTED: ServerRefused,
}


@pytest.mark.parametrize(("code", "kind"), CUT_SHORT.items(), ids=str)
async def test_a_write_whose_answer_may_have_been_cut_short_is_not_taken_for_refused(
    code: grpc.StatusCode, kind: type[BillingError]
) -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        del request
        await context.abort(code, "Stream removed")
        return b""

    async with serving("SetWorkspaceBillingMode", refuse) as target, BillingClient(target) as client:
        for write in (partial(client.set, OPEN, BillingMode.BYOK), partial(client.inherit, OPEN)):
            with pytest.raises(kind, match=f"{code.name}: Stream removed") as raised:
                await write()
            assert [note.split()[:2] for note in raised.value.__notes__] == [["request", "id"]]
            assert isinstance(raised.value.__cause__, grpc.RpcError)

    async with serving("GetWorkspaceBillingMode", refuse) as target, BillingClient(target) as client:
        with pytest.raises(ServerRefused):
            await client.get(OPEN)


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED], ids=str)
async def test_a_refusal_by_a_proxy_is_logged_as_one(code: grpc.StatusCode, caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        del request
        await context.abort(code, "RBAC:\naccess denied" + "." * 1000)
        return b""

    async with serving("ResolveBillingMode", refuse) as target, BillingClient(target) as client:
        assert is_closed(await client.resolve(OPEN), "SERVER_REFUSED")

    (line,) = [record.getMessage() for record in caplog.records if record.name == LOG]
    assert f"as a proxy answers: {code.name}: RBAC:?access denied..." in line
    assert line.count(".") < 256


async def test_what_is_unavailable_for_a_moment_is_asked_again_as_the_service_config_says() -> None:
    asked: list[str] = []

    async def handler(request: bytes, context: Any) -> bytes:
        del request
        asked.append(dict(context.invocation_metadata())["x-request-id"])
        if len(asked) < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "in a moment")
        answer = service_pb.ResolveBillingModeResponse()
        answer.resolution.CopyFrom(resolution_to_proto(rule(OPEN, StoredOverride("byok"), None)))
        return answer.SerializeToString()

    async with serving("ResolveBillingMode", handler) as target, BillingClient(target) as client:
        assert (await client.resolve(OPEN)).mode is BillingMode.BYOK

    assert len(asked) == 3
    assert len(set(asked)) == 1


async def test_a_decision_that_the_storage_refused_may_be_asked_again() -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        del request
        await context.abort_with_status(rpc_status.to_status(error_to_status(STORAGE_ERRORS["SCHEMA_NOT_READY"]())))
        return b""

    async with serving("ResolveBillingMode", refuse) as target, BillingClient(target) as client:
        assert is_closed(await client.resolve(OPEN), "SERVER_UNREACHABLE")


async def test_pages_are_as_long_as_was_asked_for() -> None:
    asked: list[tuple[int, str]] = []

    async def handler(request: bytes, context: Any) -> bytes:
        del context
        page = service_pb.ListBillingModeChangesRequest.FromString(request)
        asked.append((page.page_size, page.page_token))
        return service_pb.ListBillingModeChangesResponse(
            next_page_token="" if page.page_token else "2"
        ).SerializeToString()

    async with serving("ListBillingModeChanges", handler) as target, BillingClient(target) as client:
        assert [each async for each in client.changes(page_size=7)] == []

    assert asked == [(7, ""), (7, "2")]


async def test_a_refusal_names_the_request(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    async def refuse(request: bytes, context: Any) -> bytes:
        del request
        asked.append(dict(context.invocation_metadata())["x-request-id"])
        await context.abort(grpc.StatusCode.INTERNAL, "")
        return b""

    async with serving("ResolveBillingMode", refuse) as target, BillingClient(target) as client:
        for _ in range(2):
            assert is_closed(await client.resolve(OPEN), "SERVER_REFUSED")
        assert client._calls._running == set()  # type: ignore[attr-defined]  # noqa: SLF001 - nothing else shows what piles up

    lines = [record.getMessage() for record in caplog.records if record.name == LOG]
    assert [f"(request id {each})" in line for each, line in zip(asked, lines, strict=True)] == [True, True]
    assert len(set(asked)) == 2


async def test_what_nobody_expected_is_logged_with_its_traceback(
    client: BillingClient, caplog: pytest.LogCaptureFixture
) -> None:
    await client.resolve("\udcff")
    await client.resolve("no id")

    found = {record.getMessage(): record.exc_info for record in caplog.records if record.name == LOG}
    assert [info is not None for info in found.values()] == [True, False]
    assert "unexpected" in next(iter(found))


async def test_what_a_server_says_stays_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        del request
        await context.abort(grpc.StatusCode.INTERNAL, "one\nERROR two\x1b[2J")
        return b""

    async with serving("ResolveBillingMode", refuse) as target, BillingClient(target) as client:
        assert is_closed(await client.resolve(OPEN), "SERVER_REFUSED")

    (line,) = [record.getMessage() for record in caplog.records if record.name == LOG]
    assert "INTERNAL: one?ERROR two?[2J" in line
    assert line.isprintable()


async def test_a_write_that_left_another_mode_is_no_success(repository: InMemoryRepository) -> None:
    async with running_server(repository) as target, grpc.aio.insecure_channel(target) as channel:
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=OPEN, mode=pb.BILLING_MODE_DISABLED)
        written = await stub.SetWorkspaceBillingMode(request)
    async with (
        answering("SetWorkspaceBillingMode", written.SerializeToString()) as target,
        BillingClient(target) as client,
    ):
        assert (await client.set(OPEN, BillingMode.DISABLED)).current.resolution.mode is BillingMode.DISABLED
        for other in (client.set(OPEN, BillingMode.BYOK), client.inherit(OPEN)):
            with pytest.raises(AnswerInvalid):
                await other


async def test_pages_that_lead_in_a_circle_end() -> None:
    answer = service_pb.ListBillingModeChangesResponse(next_page_token="again")
    async with (
        answering("ListBillingModeChanges", answer.SerializeToString()) as target,
        BillingClient(target) as client,
        asyncio.timeout(5),
    ):
        with pytest.raises(AnswerInvalid):
            [each async for each in client.changes()]


def test_every_error_of_a_call_is_one_of_ours() -> None:
    assert {each.reason for each in (ServerUnreachable, ServerRefused, AnswerInvalid, ClientMisused)} == {
        "CLIENT_MISUSED",
        "SERVER_UNREACHABLE",
        "SERVER_REFUSED",
        "ANSWER_INVALID",
    }
    assert issubclass(ServerUnreachable, BillingError)
