"""What `deploy/` holds parses, names only what exists, and brings no secret, no root and no surprise."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "deploy"


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_yaml_file_parses(path: Path) -> None:
    assert list(yaml.safe_load_all(path.read_text()))


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]

    assert set(bases) == {"python:3.11-slim-bookworm"}
    assert all(list(ROOT.glob(source)) for sources in copied for source in sources)
    let_in = re.findall(r"^!(.+)$", (DEPLOY / "Containerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(let_in) == sorted(source.removeprefix("./") for sources in copied for source in sources)
    assert "USER 10001:10001" in lines
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
    assert route["retry_policy"]["retry_on"] == "connect-failure,refused-stream", "clients retry; two that do multiply"
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    service = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "service.yaml").read_text())
    assert (address["address"], address["port_value"]) == (
        service["metadata"]["name"],
        service["spec"]["ports"][0]["port"],
    )
    assert service["spec"]["clusterIP"] == "None", "Envoy balances over the addresses of the name"


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
