"""Each overlay for Kubernetes builds, and what it builds starts a server that is safe and that its probes reach."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from billing_grpc import __version__
from billing_grpc.cli.main import cli
from billing_grpc.server.auth.principals import token_digest
from billing_grpc.server.settings.config import Settings, load_settings
from tests.support.certificates import Authority
from tests.support.deploy import KNOWN_VARIABLES, overlay_builder, parses
from tools.validate_deploy import KUBERNETES, built, overlays

MOUNTED: Final = "/run/billing-grpc"
SERVER: Final = "billing-grpc"
MIGRATION: Final = "billing-grpc-migrate"
GATEWAY: Final = "billing-grpc-gateway"
KINDS: Final = {SERVER: "Deployment", MIGRATION: "Job", GATEWAY: "Deployment"}
"""The kind of each workload."""
NAME: Final = "app.kubernetes.io/name"

Manifests = dict[tuple[str, str], dict[str, Any]]


def build(overlay: str, folder: Path) -> Manifests:
    """What an overlay builds, by kind and name without version."""
    return {
        (each["kind"], each["metadata"]["name"].removesuffix(f"-{__version__}")): each
        for each in yaml.safe_load_all(built(overlay_builder(), overlay, folder))
    }


@pytest.fixture(scope="module", params=overlays())
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    return build(request.param, tmp_path_factory.mktemp("overlay"))


@pytest.fixture(scope="module")
def with_gateway(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    return build("gateway", tmp_path_factory.mktemp("overlay"))


def workloads(manifests: Manifests) -> list[str]:
    """The workloads of an overlay: the server, its migration, and in one of them the gateway."""
    found = {name: kind for kind, name in manifests if kind in KINDS.values()}
    assert {SERVER, MIGRATION} <= found.keys()
    assert found.items() <= KINDS.items()
    return list(found)


def workload(manifests: Manifests, name: str) -> Any:
    return manifests[KINDS[name], name]


def pod(manifests: Manifests, name: str) -> Any:
    return workload(manifests, name)["spec"]["template"]["spec"]


def container(manifests: Manifests, name: str) -> Any:
    (found,) = pod(manifests, name)["containers"]
    return found


def labels(manifests: Manifests, name: str) -> Any:
    return workload(manifests, name)["spec"]["template"]["metadata"]["labels"]


def variables(manifests: Manifests, name: str) -> dict[str, str]:
    """The environment of a workload's one container, with what comes from a ConfigMap."""
    found = {}
    for each in container(manifests, name).get("env", ()):
        source = each.get("valueFrom", {}).get("configMapKeyRef")
        found[each["name"]] = manifests["ConfigMap", source["name"]]["data"][source["key"]] if source else each["value"]
    return found


def test_the_overlays_are_the_ones_that_the_page_names() -> None:
    page = (KUBERNETES.parents[1] / "docs" / "deploying.md").read_text()
    assert set(overlays()) == set(re.findall(r"kubernetes/overlays/([\w-]+)\)", page))


def test_every_command_is_one_of_the_program_s(manifests: Manifests) -> None:
    for name in workloads(manifests):
        assert parses(cli, container(manifests, name)["args"])


def test_every_variable_exists_and_holds_no_password(manifests: Manifests) -> None:
    for name in workloads(manifests):
        given = variables(manifests, name)

        assert given.keys() <= KNOWN_VARIABLES
        assert not re.search(
            r"password|postgresql://[^/]*:", str(workload(manifests, name)) + str(given), re.IGNORECASE
        )
        variable = container(manifests, name).get("env", ())
        assert not [each for each in variable if "secretKeyRef" in each.get("valueFrom", {})], "secrets are files"


def test_every_file_that_a_variable_or_an_option_names_is_mounted(manifests: Manifests) -> None:
    for workload_name in workloads(manifests):
        one = container(manifests, workload_name)
        mounts = {each["mountPath"]: each["name"] for each in one["volumeMounts"]}
        volumes = {each["name"]: each for each in pod(manifests, workload_name)["volumes"]}
        values = [*variables(manifests, workload_name).values(), *(each.partition("=")[2] for each in one["args"])]
        for value in values:
            if value.startswith("/"):
                folder, _, name = value.rpartition("/")
                volume = volumes[mounts[folder]]
                source = volume.get("secret") or volume["configMap"]
                made = manifests.get(("Secret", source.get("secretName", ""))) or manifests.get(
                    ("ConfigMap", source.get("name", ""))
                )
                # cert-manager makes the certificate; the rest comes from the overlay.
                assert name in (made["data"] if made else {"tls.crt", "tls.key", "ca.crt"})
                assert "items" not in source or name in {each["path"] for each in source["items"]}


def test_the_settings_of_the_deployment_start_a_server(manifests: Manifests, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "tokens.toml").write_text(
        f'[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha256 = ["{token_digest("a-token")}"]\n'
    )
    authority = Authority.new("servers")
    certificate, key = authority.issue(dns=("localhost",)).write(tmp_path, "tls")
    (tmp_path / "tls").mkdir()
    certificate.rename(tmp_path / "tls" / "tls.crt")
    key.rename(tmp_path / "tls" / "tls.key")
    (tmp_path / "tls" / "ca.crt").write_bytes(authority.pem)
    flags = {
        name: value.replace(MOUNTED, str(tmp_path))
        for name, value in variables(manifests, SERVER).items()
        if name != "PGSERVICEFILE"
    }
    settings = load_settings(flags)

    first, probe = map(str, settings.listen)
    assert first == f"{'tls' if settings.tls_client_ca is None else 'mtls'}://0.0.0.0:50051"
    assert probe == "0.0.0.0:50052"
    assert not settings.local_admin
    assert settings.org_default_file == tmp_path / "config" / "mode"


def test_the_two_roles_have_their_own_files_and_hosts_stand_in_the_address(manifests: Manifests) -> None:
    roles = (SERVER, MIGRATION)
    secrets = {
        name: {each["secret"]["secretName"] for each in pod(manifests, name)["volumes"] if "secret" in each}
        for name in roles
    }
    assert secrets[MIGRATION].isdisjoint(secrets[SERVER]), "the server cannot read the owner's password"
    for name in roles:
        # libpq itself would look up a host of the file, and hold up the event loop.
        url = variables(manifests, name)["DATABASE_URL"]
        assert re.match(r"postgresql://[\w.]+/\w+\?service=\w+&", url)
        assert "&sslmode=verify-full&sslrootcert=/" in url, (
            "the driver's own OpenSSL knows no authorities of the system"
        )


def test_probes_ask_the_plain_port_which_no_service_leads_to(manifests: Manifests) -> None:
    server = container(manifests, SERVER)
    ports = {each["name"]: each["containerPort"] for each in server["ports"]}

    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert server[probe]["grpc"] == {"port": ports["probe"]}
    assert [each["targetPort"] for each in manifests["Service", SERVER]["spec"]["ports"]] == ["grpc"]
    policy = manifests["NetworkPolicy", SERVER]["spec"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["grpc", "metrics"]
    assert ports == {"grpc": 50051, "probe": 50052, "metrics": 9464}


def test_policies_select_both_pods_and_let_nothing_into_a_migration(manifests: Manifests) -> None:
    server, migration, egress = (
        manifests["NetworkPolicy", name]["spec"] for name in (SERVER, MIGRATION, "billing-grpc-egress")
    )
    assert server["podSelector"]["matchLabels"] == labels(manifests, SERVER)
    assert migration["podSelector"]["matchLabels"] == labels(manifests, MIGRATION)
    assert "ingress" not in migration
    (selected,) = egress["podSelector"]["matchExpressions"]
    assert set(selected["values"]) == {labels(manifests, name)[NAME] for name in (SERVER, MIGRATION)}


def test_what_serves_is_found_and_survives_the_loss_of_a_node(manifests: Manifests) -> None:
    for name in {*workloads(manifests)} - {MIGRATION}:
        deployment = workload(manifests, name)["spec"]
        budget = manifests["PodDisruptionBudget", name]["spec"]
        (spread,) = pod(manifests, name)["topologySpreadConstraints"]
        service = manifests["Service", name]["spec"]

        assert labels(manifests, name) == {NAME: name}
        for selector in (deployment["selector"], budget["selector"], spread["labelSelector"]):
            assert selector == {"matchLabels": {NAME: name}}
        assert service["selector"] == {NAME: name}
        assert {port["targetPort"] for port in service["ports"]} <= {
            port["name"] for port in container(manifests, name)["ports"]
        }
        assert budget["maxUnavailable"] < deployment["replicas"]
        assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_gateway_is_reached_by_the_ingress_and_reaches_the_server_alone(with_gateway: Manifests) -> None:
    policy = with_gateway["NetworkPolicy", GATEWAY]["spec"]
    (ingress,) = policy["ingress"]
    names, upstream = policy["egress"]

    assert policy["podSelector"]["matchLabels"] == labels(with_gateway, GATEWAY)
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert ingress["ports"] == [{"port": "http"}]
    assert [each.keys() for each in ingress["from"]] == [{"namespaceSelector"}]
    assert {port["port"] for port in names["ports"]} == {53}
    assert upstream["to"] == [{"podSelector": {"matchLabels": labels(with_gateway, SERVER)}}]
    (port,) = with_gateway["Service", SERVER]["spec"]["ports"]
    assert upstream["ports"] == [{"port": port["port"]}]
    assert f"--address=tls://{SERVER}:{port['port']}" in container(with_gateway, GATEWAY)["args"]
    admitting, _ = with_gateway["NetworkPolicy", SERVER]["spec"]["ingress"]
    assert admitting == {"ports": [{"port": "grpc"}]}, "the server lets every pod in, the gateway too"


def test_the_gateway_has_no_secret(with_gateway: Manifests) -> None:
    (volume,) = pod(with_gateway, GATEWAY)["volumes"]

    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    assert variables(with_gateway, GATEWAY) == {}


def test_the_gateway_s_probes_name_a_host_that_it_serves(with_gateway: Manifests) -> None:
    one = container(with_gateway, GATEWAY)

    assert one["ports"] == [{"name": "http", "containerPort": 8080}]
    assert "--listen=0.0.0.0:8080" in one["args"]
    for probe in ("startupProbe", "readinessProbe"):
        (host,) = one[probe]["httpGet"]["httpHeaders"]
        assert one[probe]["httpGet"]["port"] == "http"
        assert host["name"] == "Host"
        assert f"--host={host['value']}" in one["args"]


def test_a_pod_has_time_to_finish_what_it_began(manifests: Manifests, with_gateway: Manifests) -> None:
    delay = float(variables(manifests, SERVER)["BILLING_GRPC_DRAIN_DELAY"])

    assert delay >= 5
    storage = Settings.model_fields["storage_timeout"].default
    assert pod(manifests, SERVER)["terminationGracePeriodSeconds"] > 2 * (delay + storage)
    assert container(with_gateway, GATEWAY)["lifecycle"]["preStop"] == {"sleep": {"seconds": delay}}
    assert pod(with_gateway, GATEWAY)["terminationGracePeriodSeconds"] > 2 * (delay + 5)


def test_a_pod_runs_as_nobody_and_may_write_nothing(manifests: Manifests) -> None:
    assert f"USER {10001}:{10001}\n" in (KUBERNETES.parent / "Containerfile").read_text()
    for name in workloads(manifests):
        assert pod(manifests, name)["securityContext"]["runAsNonRoot"] is True
        assert pod(manifests, name)["securityContext"]["runAsUser"] == 10001
        assert pod(manifests, name)["automountServiceAccountToken"] is False
        assert container(manifests, name)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container(manifests, name)["resources"]["limits"].keys() == {"memory"}


def test_every_object_is_in_the_namespace_and_the_version_is_everywhere(manifests: Manifests) -> None:
    assert {each["metadata"]["namespace"] for each in manifests.values()} == {"tenant-example"}
    assert workload(manifests, MIGRATION)["metadata"]["name"] == f"billing-grpc-migrate-{__version__}"
    images = {container(manifests, name)["image"] for name in workloads(manifests)}
    assert images == {f"registry.example/billing-grpc:{__version__}"}
