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
from tests.support.deploy import KNOWN_VARIABLES, parses
from tools.validate_deploy import KUBERNETES, built, kustomize, overlays

MOUNTED: Final = "/run/billing-grpc"
KINDS: Final = ("Deployment", "Job")

Manifests = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module", params=overlays())
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """What an overlay builds, by kind and name without version."""
    command = kustomize()
    if command is None:
        pytest.skip("neither kustomize nor kubectl is installed: go install sigs.k8s.io/kustomize/kustomize/v5@v5.8.0")
    text = built(command, request.param, tmp_path_factory.mktemp("overlay"))
    return {
        (each["kind"], each["metadata"]["name"].removesuffix(f"-{__version__}")): each
        for each in yaml.safe_load_all(text)
    }


def workload(manifests: Manifests, kind: str) -> Any:
    (found,) = [each for (one, _), each in manifests.items() if one == kind]
    return found


def pod(manifests: Manifests, kind: str) -> Any:
    return workload(manifests, kind)["spec"]["template"]["spec"]


def container(manifests: Manifests, kind: str) -> Any:
    (found,) = pod(manifests, kind)["containers"]
    return found


def variables(manifests: Manifests, kind: str) -> dict[str, str]:
    """The environment of a kind's one container, with what comes from a ConfigMap."""
    found = {}
    for each in container(manifests, kind)["env"]:
        source = each.get("valueFrom", {}).get("configMapKeyRef")
        found[each["name"]] = manifests["ConfigMap", source["name"]]["data"][source["key"]] if source else each["value"]
    return found


def test_the_overlays_are_the_ones_that_the_page_names() -> None:
    page = (KUBERNETES.parents[1] / "docs" / "deploying.md").read_text()
    assert set(overlays()) == set(re.findall(r"kubernetes/overlays/([\w-]+)\)", page))


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_is_one_of_the_program_s(manifests: Manifests, kind: str) -> None:
    assert parses(cli, container(manifests, kind)["args"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_variable_exists_and_holds_no_password(manifests: Manifests, kind: str) -> None:
    given = variables(manifests, kind)

    assert given.keys() <= KNOWN_VARIABLES
    assert not re.search(r"password|postgresql://[^/]*:", str(workload(manifests, kind)) + str(given), re.IGNORECASE)
    assert not [each for each in container(manifests, kind)["env"] if "secretKeyRef" in each.get("valueFrom", {})], (
        "secrets are files"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_that_a_variable_names_is_mounted(manifests: Manifests, kind: str) -> None:
    mounts = {each["mountPath"]: each["name"] for each in container(manifests, kind)["volumeMounts"]}
    volumes = {each["name"]: each for each in pod(manifests, kind)["volumes"]}
    for value in variables(manifests, kind).values():
        if value.startswith("/"):
            folder, _, name = value.rpartition("/")
            volume = volumes[mounts[folder]]
            source = volume.get("secret") or volume["configMap"]
            made = manifests.get(("Secret", source.get("secretName", ""))) or manifests.get(
                ("ConfigMap", source.get("name", ""))
            )
            # cert-manager makes the certificate; the rest comes from the overlay.
            assert name in (made["data"] if made else {"tls.crt", "tls.key", "ca.crt"})


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
        for name, value in variables(manifests, "Deployment").items()
        if name != "PGSERVICEFILE"
    }
    settings = load_settings(flags)

    first, probe = map(str, settings.listen)
    assert first == f"{'tls' if settings.tls_client_ca is None else 'mtls'}://0.0.0.0:50051"
    assert probe == "0.0.0.0:50052"
    assert not settings.local_admin
    assert settings.org_default_file == tmp_path / "config" / "mode"


def test_the_two_roles_have_their_own_files_and_hosts_stand_in_the_address(manifests: Manifests) -> None:
    secrets = {
        kind: {each["secret"]["secretName"] for each in pod(manifests, kind)["volumes"] if "secret" in each}
        for kind in KINDS
    }
    assert secrets["Job"].isdisjoint(secrets["Deployment"]), "the server cannot read the owner's password"
    for kind in KINDS:
        # libpq itself would look up a host of the file, and hold up the event loop.
        url = variables(manifests, kind)["DATABASE_URL"]
        assert re.match(r"postgresql://[\w.]+/\w+\?service=\w+&", url)
        assert "&sslmode=verify-full&sslrootcert=/" in url, (
            "the driver's own OpenSSL knows no authorities of the system"
        )


def test_probes_ask_the_plain_port_which_no_service_leads_to(manifests: Manifests) -> None:
    server = container(manifests, "Deployment")
    ports = {each["name"]: each["containerPort"] for each in server["ports"]}

    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert server[probe]["grpc"] == {"port": ports["probe"]}
    assert [each["targetPort"] for each in workload(manifests, "Service")["spec"]["ports"]] == ["grpc"]
    policy = manifests["NetworkPolicy", "billing-grpc"]["spec"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["grpc", "metrics"]
    assert ports == {"grpc": 50051, "probe": 50052, "metrics": 9464}


def test_policies_select_both_pods_and_let_nothing_into_a_migration(manifests: Manifests) -> None:
    labels = {
        kind: workload(manifests, kind)["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for kind in KINDS
    }
    server, migration, egress = (
        manifests["NetworkPolicy", name]["spec"]
        for name in ("billing-grpc", "billing-grpc-migrate", "billing-grpc-egress")
    )
    assert server["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": labels["Deployment"]}
    assert migration["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": labels["Job"]}
    assert "ingress" not in migration
    (selected,) = egress["podSelector"]["matchExpressions"]
    assert set(selected["values"]) == set(labels.values())
    budget = workload(manifests, "PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"] == server["podSelector"]["matchLabels"]
    assert budget["maxUnavailable"] < workload(manifests, "Deployment")["spec"]["replicas"]


def test_a_pod_has_time_to_finish_what_it_began(manifests: Manifests) -> None:
    delay = float(variables(manifests, "Deployment")["BILLING_GRPC_DRAIN_DELAY"])

    assert delay >= 5
    storage = Settings.model_fields["storage_timeout"].default
    assert pod(manifests, "Deployment")["terminationGracePeriodSeconds"] > 2 * (delay + storage)
    assert workload(manifests, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_runs_as_nobody_and_may_write_nothing(manifests: Manifests, kind: str) -> None:
    assert pod(manifests, kind)["securityContext"]["runAsNonRoot"] is True
    assert pod(manifests, kind)["securityContext"]["runAsUser"] == 10001
    assert f"USER {10001}:{10001}\n" in (KUBERNETES.parent / "Containerfile").read_text()
    assert pod(manifests, kind)["automountServiceAccountToken"] is False
    assert container(manifests, kind)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(manifests, kind)["resources"]["limits"].keys() == {"memory"}


def test_every_object_is_in_the_namespace_and_the_version_is_everywhere(manifests: Manifests) -> None:
    assert {each["metadata"]["namespace"] for each in manifests.values()} == {"tenant-example"}
    assert workload(manifests, "Job")["metadata"]["name"] == f"billing-grpc-migrate-{__version__}"
    assert {container(manifests, kind)["image"] for kind in KINDS} == {f"registry.example/billing-grpc:{__version__}"}
