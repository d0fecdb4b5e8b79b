"""What `deploy/` holds parses, names only what exists, and brings no secret, no root and no surprise."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from billing_grpc import __version__
from billing_grpc.addresses import TcpAddress
from billing_grpc.server.auth.principals import token_digest
from billing_grpc.server.settings.config import DatabaseSettings, Settings, load_settings
from tests.support.certificates import Authority

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "deploy"
MOUNTED: Final = "/run/billing-grpc"


def manifests() -> dict[str, Any]:
    loaded = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "billing-grpc.yaml").read_text()))
    return {manifest["kind"]: manifest for manifest in loaded}


def pod(kind: str) -> Any:
    return manifests()[kind]["spec"]["template"]["spec"]


def settings_of(kind: str) -> dict[str, str | None]:
    """The environment of a kind's one container; None for what comes from a secret."""
    (container,) = pod(kind)["containers"]
    return {each["name"]: each.get("value") for each in container["env"]}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_yaml_file_parses(path: Path) -> None:
    assert list(yaml.safe_load_all(path.read_text()))


def test_the_settings_of_the_deployment_start_a_server(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "tokens.toml").write_text(
        f'[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha256 = ["{token_digest("a-token")}"]\n'
    )
    certificate, key = Authority.new("servers").issue(dns=("localhost",)).write(tmp_path, "tls")
    (tmp_path / "tls").mkdir()
    certificate.rename(tmp_path / "tls" / "tls.crt")
    key.rename(tmp_path / "tls" / "tls.key")
    flags = {
        name: "postgresql://billing_grpc@db/x" if value is None else value.replace(MOUNTED, str(tmp_path))
        for name, value in settings_of("Deployment").items()
    }
    settings = load_settings(flags)

    assert [str(address) for address in settings.listen] == ["tls://0.0.0.0:50051", "0.0.0.0:50052"]
    assert not settings.local_admin
    assert settings.org_default_file == tmp_path / "config" / "mode"


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_nothing_is_set_that_does_not_exist_and_no_secret_is_written_down(kind: str) -> None:
    known = {str(each.alias) for model in (Settings, DatabaseSettings) for each in model.model_fields.values()}
    given = settings_of(kind)

    assert given.keys() <= known
    assert given["DATABASE_URL"] is None, "from a secret"
    assert not re.search(r"password|postgresql://", str(manifests()[kind]), re.IGNORECASE)


def test_probes_ask_the_plain_port_which_no_service_leads_to() -> None:
    (container,) = pod("Deployment")["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}

    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["grpc"] == {"port": ports["probe"]}
    assert [each["targetPort"] for each in manifests()["Service"]["spec"]["ports"]] == ["grpc"]
    let_in = [port["port"] for rule in manifests()["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]]
    assert let_in == ["grpc", "metrics"]
    assert ports == {"grpc": 50051, "probe": 50052, "metrics": 9464}


def test_a_pod_has_time_to_finish_what_it_began() -> None:
    (container,) = pod("Deployment")["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    delay, storage = float(given["BILLING_GRPC_DRAIN_DELAY"]), Settings.model_fields["storage_timeout"].default

    assert delay >= 5
    assert pod("Deployment")["terminationGracePeriodSeconds"] > 2 * (delay + storage)
    assert manifests()["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_a_pod_runs_as_nobody_and_may_write_nothing(kind: str) -> None:
    (container,) = pod(kind)["containers"]

    assert pod(kind)["securityContext"]["runAsNonRoot"] is True
    assert pod(kind)["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"].keys() == {"memory"}
    assert container["image"] == f"billing-grpc:{__version__}"


def test_the_image_is_built_from_what_is_there_and_runs_as_the_pods_user() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]

    assert set(bases) == {"python:3.11-slim-bookworm"}
    assert all(list(ROOT.glob(source)) for sources in copied for source in sources)
    let_in = re.findall(r"^!(.+)$", (DEPLOY / "Containerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(let_in) == sorted(source.removeprefix("./") for sources in copied for source in sources)
    assert "USER 10001:10001" in lines
    assert {pod(kind)["securityContext"]["runAsUser"] for kind in ("Deployment", "Job")} == {10001}
    assert {"GRPC_VERBOSITY=ERROR \\", 'ENTRYPOINT ["billing-grpc"]', 'CMD ["serve"]'} <= {
        line.strip() for line in lines
    }
    assert "--require-hashes" in "".join(lines)
    assert "RUN pip uninstall --yes wheel setuptools pip \\" in lines, "those of the base, in the last stage"


def test_envoy_has_the_values_that_were_measured() -> None:
    resources = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())["static_resources"]
    (cluster,), (listener,) = resources["clusters"], resources["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]

    assert cluster["health_checks"][0]["no_traffic_interval"] == "1s"
    assert cluster["circuit_breakers"]["thresholds"][0]["max_retries"] == 256
    assert route["timeout"] == "0s"
    assert "retry_policy" not in route, "clients retry; two that do multiply"
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    (default,) = Settings.model_fields["listen"].default
    assert default == TcpAddress(address["address"], address["port_value"])


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_it_means_and_where_to_read_what_to_do(rule: dict[str, Any]) -> None:
    page, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)

    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"].endswith(".")


def test_every_alert_that_is_described_exists() -> None:
    headings = re.findall(r"^### (BillingGrpc\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)

    assert headings == [rule["alert"] for rule in rules()]


def test_the_dashboard_asks_the_source_that_is_chosen_and_has_no_panel_twice() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "billing_grpc.json").read_text())
    panels = dashboard["panels"]

    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    corners = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(corners) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
