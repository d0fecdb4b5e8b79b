"""The metrics port of a real process: what it exposes is valid, moves, and is what dashboards and alerts ask for."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from billing_grpc import __version__
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.secret_keys import KeyList
from tests.support.polling import until
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
NOBODYS: Final = "5f0e9b0e-0000-4000-8000-000000000000"

Exposition = dict[str, list[dict[str, str]]]


class Exposed:
    """A served process with an exposition."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._address = server.logged("metrics exposed")["address"]

    def text(self) -> str:
        with urllib.request.urlopen(f"http://{self._address}/metrics", timeout=10) as response:
            read: bytes = response.read()
        return read.decode()

    def series(self) -> Exposition:
        """The labels of every sample, by its name."""
        found: Exposition = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
        return found

    def value(self, name: str, **labels: str) -> float:
        values = [
            sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(values)


@pytest.fixture(scope="module")
def exposed(module_serve: Serve, module_database_url: str) -> Exposed:
    """A server that was asked a little of everything."""
    settings = {"DATABASE_URL": as_service(module_database_url), "BILLING_GRPC_METRICS_LISTEN": "127.0.0.1:0"}
    server = module_serve(settings=settings)
    workspace = add_workspace(module_database_url, "byok")
    set_it = service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace, mode=pb.BILLING_MODE_DISABLED)
    asked: list[tuple[str, Any]] = [
        ("ResolveBillingMode", service_pb.ResolveBillingModeRequest(workspace_id=workspace)),
        ("BatchResolveBillingModes", service_pb.BatchResolveBillingModesRequest(workspace_ids=[workspace])),
        ("GetWorkspaceBillingMode", service_pb.GetWorkspaceBillingModeRequest(workspace_id=workspace)),
        ("GetWorkspaceBillingMode", service_pb.GetWorkspaceBillingModeRequest(workspace_id=NOBODYS)),
        ("SetWorkspaceBillingMode", set_it),
        ("ListBillingModeChanges", service_pb.ListBillingModeChangesRequest()),
        ("ListWorkspaceBillingModes", service_pb.ListWorkspaceBillingModesRequest()),
        ("SummarizeBillingModes", service_pb.SummarizeBillingModesRequest()),
        ("PlanProvisionEnv", service_pb.PlanProvisionEnvRequest(workspace_id=workspace)),
        ("ValidateSecretWrite", service_pb.ValidateSecretWriteRequest(org_wide=pb.OrgWide(), secret_keys=["HF_TOKEN"])),
    ]
    for rpc, request in asked:
        call: Any = getattr(server.stub, rpc).future(request, timeout=30)
        assert call.code() in {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
    found = Exposed(server)
    until(lambda: found.value("billing_grpc_calls_total") >= len(asked))
    until(lambda: found.value("billing_grpc_database_up") == 1)
    return found


def test_what_was_asked_is_counted(exposed: Exposed) -> None:
    assert exposed.value("billing_grpc_calls_total", code="NOT_FOUND") == 1
    assert exposed.value("billing_grpc_call_seconds_count", method="BillingModeService/GetWorkspaceBillingMode") == 2
    assert exposed.value("billing_grpc_storage_seconds_count", operation="save_override", outcome="ok") == 1
    assert exposed.value("billing_grpc_resolutions_total", mode="byok", source="workspace_override") == 2
    assert exposed.value("billing_grpc_blocked_secret_writes_total", verdict="blocked_platform_managed") == 1
    until(lambda: exposed.value("billing_grpc_calls_in_flight") == 0)


def test_the_pool_and_what_is_running_are_shown(exposed: Exposed) -> None:
    until(lambda: exposed.value("billing_grpc_pool_idle") == 8)
    assert exposed.value("billing_grpc_pool_size") == 8
    assert (exposed.value("billing_grpc_pool_in_use"), exposed.value("billing_grpc_pool_waiting")) == (0, 0)
    (running,) = exposed.series()["billing_grpc_build_info"]
    assert running["version"] == __version__
    (judging,) = exposed.series()["billing_grpc_catalogue_info"]
    judges = KeyList().catalogue
    assert (judging["set"], judging["version"], judging["digest"]) == (judges.set, judges.version, judges.digest)
    assert exposed.server.records("serving")[0]["catalogue"] == str(judges)
    assert re.fullmatch(r"\d+\.\d+\.\d+", running["grpc"])
    assert exposed.value("process_resident_memory_bytes") > 1 << 20


def expressions() -> dict[str, str]:
    """Every expression of the alerts and the dashboard, by where it stands."""
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    dashboard = json.loads((DEPLOY / "grafana" / "billing_grpc.json").read_text())
    alerts = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    return alerts | {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


# Added by who scrapes, and by who draws.
FROM_ELSEWHERE: Final = {"instance", "job"}
SELECTOR: Final = re.compile(r"\b((?:billing_grpc|process|python)_\w+)(?:\{([^}]*)\})?")
MATCHER: Final = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
WORDS: Final = {"sum", "by", "rate", "increase", "histogram_quantile", "absent", "min", "min_over_time", "le", "for"}


@pytest.mark.parametrize("expression", expressions().values(), ids=expressions())
def test_dashboards_and_alerts_ask_for_what_is_there(expression: str, exposed: Exposed) -> None:
    series = exposed.series()
    asked = SELECTOR.findall(expression)
    assert asked
    grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")}
    for name, matchers in asked:
        assert name in series
        known = {label for labels in series[name] for label in labels}
        assert grouped - FROM_ELSEWHERE <= known, name
        for label, operator, value in MATCHER.findall(matchers):
            if label in FROM_ELSEWHERE:
                continue
            held = {labels[label] for labels in series[name] if label in labels}
            wanted = [value] if operator != "=~" else value.split("|")
            for each in wanted:
                assert [one for one in held if re.fullmatch(each, one)], f"{name} has no {label} {each}"
    balanced = [expression.count(bracket) for bracket in "(){}[]"]
    assert balanced[::2] == balanced[1::2]
    used = set(re.findall(r"\b([a-z_]+)(?= ?\()", re.sub(r'"[^"]*"', "", expression)))
    assert used <= WORDS


def test_no_caller_can_make_up_a_series(exposed: Exposed) -> None:
    before = {name: len(labels) for name, labels in exposed.series().items()}
    with grpc.insecure_channel(exposed.server.address) as channel:
        for number in range(20):
            call: Any = channel.unary_unary(f"/stranger{number}.X/Y")
            call.future(b"", timeout=30, metadata=(("x-request-id", f"name-{number}"),)).code()
    until(lambda: exposed.value("billing_grpc_calls_total", method="other") == 20)
    after = {name: len(labels) for name, labels in exposed.series().items()}

    grown = {name for name in after if after[name] != before.get(name)}
    assert grown <= {name for name in after if name.startswith(("billing_grpc_calls", "billing_grpc_call_seconds"))}
    assert after["billing_grpc_calls_total"] - before["billing_grpc_calls_total"] == 1
    assert "stranger" not in exposed.text()
    assert "name-" not in exposed.text()
