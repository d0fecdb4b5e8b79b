"""The client against real servers: closed whenever it must be, open again as soon as it may, and truthful elsewhere."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import grpc
import pytest
from prometheus_client import REGISTRY

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.addresses import Security, TcpAddress
from billing_grpc.client import BillingClient, ClientTls
from billing_grpc.credentials import Principals, token_digest
from billing_grpc.errors import (
    STORAGE_ERRORS,
    AnswerInvalid,
    BillingError,
    EtagStale,
    InvalidArgument,
    PermissionDenied,
    ServerRefused,
    ServerUnreachable,
    StorageError,
    Unauthenticated,
    WorkspaceNotFound,
)
from billing_grpc.model import BillingMode, Resolution, SecretVerdict
from billing_grpc.principals_file import FixedPrincipals
from billing_grpc.rpc_server import SERVICE_NAME, Entrance
from billing_grpc.secrets import BLOCKED_KEYS
from billing_grpc.testing import InMemoryRepository, running_server
from billing_grpc.tls import TlsFiles
from tests.certificates import Authority

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

    server = grpc.aio.server()
    methods: Any = {method: grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    stripped = {*BLOCKED_KEYS, "openai_api_key"} if planned.resolution.error is not None else set()
    assert set(planned.strip_keys) == stripped
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
async def test_a_channel_closed_during_the_call_closes_and_is_not_taken_for_a_cancelled_task(
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
@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")], ids=str)
async def test_what_is_no_request_closes_too(
    client: BillingClient, ask: Callable[[BillingClient], Awaitable[Resolution]], seconds: float
) -> None:
    # Past the constructor, which refuses it.
    client._calls._timeout = seconds  # noqa: SLF001 - there is no other way to a mistake of this kind in every method

    assert is_closed(await ask(client), "SERVER_REFUSED")


async def test_an_id_that_cannot_be_sent_closes(client: BillingClient) -> None:
    assert is_closed(await client.resolve("\udcff"), "SERVER_REFUSED")
    assert is_closed((await client.resolve_many(["\udcff"]))[0], "SERVER_REFUSED")


async def test_many_are_asked_a_thousand_at_a_time_and_one_that_is_no_id_closes_alone(
    client: BillingClient, repository: InMemoryRepository
) -> None:
    ids = [OPEN, "no id", INHERITS, "", OPEN.upper()] * 500

    resolutions = await client.resolve_many(ids)

    assert [each.mode.value for each in resolutions[:5]] == ["byok", *["platform_managed"] * 3, "byok"]
    assert [each.error is None for each in resolutions] == [True, False, True, False, True] * 500
    assert repository.calls == 2
    assert await client.resolve_many([]) == []


async def test_a_server_that_comes_back_is_found_again_by_the_same_client(repository: InMemoryRepository) -> None:
    address = TcpAddress("127.0.0.1", free_port(), "plain")
    async with BillingClient(address.target) as client:
        for _ in range(2):
            async with running_server(repository, address=address), asyncio.timeout(5):
                while (await client.resolve(OPEN)).mode is not BillingMode.BYOK:
                    await asyncio.sleep(0.05)
            assert is_closed(await client.resolve(OPEN), "SERVER_UNREACHABLE")


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
        entrance = Entrance(FixedPrincipals(Principals.parse(principals)), tls=self.files)
        repository = InMemoryRepository({OPEN: "byok"})
        address = TcpAddress("127.0.0.1", 0, security)
        async with running_server(repository, entrance=entrance, address=address) as target:
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
            file.write_text(token)
            shown[0] = token
            for client in (by_file, by_source):
                error = (await client.resolve(OPEN)).error
                assert (error and error.reason) == reason, token


async def test_a_token_that_cannot_be_had_or_sent_closes_and_never_stands_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> str:
        raise RuntimeError("secret-in-the-error")

    known = Known(tmp_path)
    sources: list[Any] = [tmp_path / "missing", fails, lambda: "secret in\nparts", lambda: "secret-\u00e9"]
    async with known.serving(principal("admin", "x")) as target:
        for source in sources:
            async with BillingClient(target, token=source, tls=known.tls) as client:
                assert is_closed(await client.resolve(OPEN), "SERVER_REFUSED")
                with pytest.raises(ServerRefused):
                    await client.get(OPEN)

    assert len(caplog.records) == len(sources)
    assert "secret" not in caplog.text


async def test_an_authority_that_does_not_know_the_server_closes_until_its_file_is_put_right(tmp_path: Path) -> None:
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
        async with running_server(repository) as target, BillingClient(target, timeout=2) as client:
            assert (await client.resolve(OPEN)).mode is BillingMode.BYOK


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": 1e9}, {"extra_blocked_keys": ["A B"]}], ids=str
)
def test_what_no_client_could_work_with_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BillingClient(NOBODY, **wrong)


def test_a_certificate_comes_with_its_key() -> None:
    with pytest.raises(ValueError, match="key"):
        ClientTls(cert=Path("client.crt"))


async def test_keys_that_the_server_adds_are_refused_and_stripped_offline_when_the_caller_names_them() -> None:
    async with BillingClient(NOBODY, extra_blocked_keys=[" new_vendor_key "]) as client:
        decided = await client.validate_secret_write(["New_Vendor_Key"])
        planned = await client.plan_provision_env(env_keys=["new_vendor_key"])

    assert not decided.allowed
    assert {"NEW_VENDOR_KEY", "new_vendor_key", *BLOCKED_KEYS} == set(planned.strip_keys)


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

    with pytest.raises(kind) as read:
        await client.get(OPEN)
    with pytest.raises(kind):
        await client.inherit(OPEN)
    with pytest.raises(kind):
        await anext(client.changes())

    (closed,) = read.value.attachments
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
        with pytest.raises(PermissionDenied):
            await reader.set(OPEN, BillingMode.BYOK)
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
    assert {each.reason for each in (ServerUnreachable, ServerRefused, AnswerInvalid)} == {
        "SERVER_UNREACHABLE",
        "SERVER_REFUSED",
        "ANSWER_INVALID",
    }
    assert issubclass(ServerUnreachable, BillingError)
