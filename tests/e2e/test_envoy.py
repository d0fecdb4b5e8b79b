"""The Envoy of `deploy/` before two real servers with TLS: balanced, over one's death, and for pages of a listed site."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
import pytest

from billing_grpc import service_config
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from tests.support import envoys
from tests.support.certificates import Authority
from tests.support.gateways import TOKENS, Gateway, GrpcWeb, Site, site
from tests.support.polling import PATIENCE, until
from tests.support.servers import Serve
from tests.support.workspaces import add_workspace

ORIGIN: Final = "https://console.example"
CALLERS: Final = 2
RESOLVE: Final = "/molecule.billing.v1.BillingModeService/ResolveBillingMode"
METADATA: Final = (("authorization", f"Bearer {TOKENS['provisioner']}"),)


class Proxy:
    """A running Envoy, and what is behind it."""

    def __init__(self, port: int, sites: list[Site], workspace: str) -> None:
        self.port = port
        self.sites = sites
        self.workspace = workspace

    def calls(self, site: Site) -> int:
        # Not by `records`, which wait until no line is added.
        return site.server.stderr.count(f'"{RESOLVE}"')


@pytest.fixture
def proxy(serve: Serve, module_database_url: str, tmp_path: Path) -> Iterator[Proxy]:
    envoys.program()  # where it is missing, no server has to start
    sites, servers = [], Authority.new("servers")
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        # Under local admin a call without a header would be an admin's, because Envoy is on this machine.
        settings = {"BILLING_GRPC_LOCAL_ADMIN": "on"}
        sites.append(site(serve, module_database_url, folder, settings, dns="billing-grpc", servers=servers))
    ca = tmp_path / "ca.crt"
    ca.write_bytes(servers.pem)
    ports = [int(each.server.addresses[1].rpartition(":")[2]) for each in sites]
    with envoys.envoy(tmp_path, ports, ca, healthy=2, origins=[ORIGIN]) as port:
        yield Proxy(port, sites, add_workspace(module_database_url, "byok"))


def test_both_servers_answer_and_the_death_of_one_loses_no_call(proxy: Proxy) -> None:
    stop = threading.Event()
    request = service_pb.ResolveBillingModeRequest(workspace_id=proxy.workspace)

    def failures(*, retries: bool) -> int:
        """Call until stopped; return how many calls failed."""
        failed = 0
        options = service_config.channel_options() if retries else [("grpc.enable_retries", 0)]
        with grpc.insecure_channel(f"127.0.0.1:{proxy.port}", options=options) as channel:
            stub = service_grpc.BillingModeServiceStub(channel)
            while not stop.is_set():
                try:
                    answer = stub.ResolveBillingMode(request, timeout=5, metadata=METADATA)
                except grpc.RpcError:
                    failed += 1
                else:
                    assert answer.resolution.resolved_mode == pb.BILLING_MODE_BYOK
        return failed

    one, two = proxy.sites
    with ThreadPoolExecutor(2 * CALLERS) as pool:
        patient = [pool.submit(failures, retries=True) for _ in range(CALLERS)]
        single = [pool.submit(failures, retries=False) for _ in range(CALLERS)]
        until(lambda: all(proxy.calls(each) > 10 for each in proxy.sites))
        one.server.stop(signal.SIGKILL)
        before = proxy.calls(two)
        until(lambda: proxy.calls(two) > before + 200)
        stop.set()
        assert [each.result(PATIENCE) for each in patient] == [0] * CALLERS
        # Without retries of its own a caller loses what was on its way, and nothing later.
        assert all(each.result(PATIENCE) <= 1 for each in single)


def test_a_page_of_a_listed_site_calls_over_grpc_web(proxy: Proxy) -> None:
    http = Gateway(proxy.sites[0].server, f"http://127.0.0.1:{proxy.port}")
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-grpc-web"}
    preflight = http.ask("OPTIONS", RESOLVE, token=None, headers={**asks, "origin": ORIGIN})
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    request = service_pb.ResolveBillingModeRequest(workspace_id=proxy.workspace)
    call = GrpcWeb(http, RESOLVE, request, headers={"origin": ORIGIN})
    answer = service_pb.ResolveBillingModeResponse.FromString(call.messages[0])
    assert answer.resolution.resolved_mode == pb.BILLING_MODE_BYOK
    assert call.answer.headers["access-control-allow-origin"] == ORIGIN
    assert "grpc-status-details-bin" in call.answer.headers["access-control-expose-headers"]

    stranger = http.ask("OPTIONS", RESOLVE, token=None, headers={**asks, "origin": "https://stranger.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_a_call_without_a_token_is_refused(proxy: Proxy) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
        stub = service_grpc.BillingModeServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    until(lambda: proxy.calls(proxy.sites[0]) + proxy.calls(proxy.sites[1]))


def test_a_server_with_the_certificate_of_another_name_gets_no_call(
    serve: Serve, module_database_url: str, tmp_path: Path
) -> None:
    envoys.program()
    other = site(serve, module_database_url, tmp_path, dns="another-service")
    port = int(other.server.addresses[1].rpartition(":")[2])
    with (
        envoys.envoy(tmp_path, [port], tmp_path / "ca.crt", healthy=0) as listen,
        grpc.insecure_channel(f"127.0.0.1:{listen}") as channel,
    ):
        stub = service_grpc.BillingModeServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=PATIENCE, metadata=METADATA)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
