"""The commands of the page on deploying, run as they stand there; `docker` and `kubectl apply` by what they would start."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import yaml
from psycopg.conninfo import make_conninfo

from billing_grpc import __version__
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.cli.main import cli
from tests.support.deploy import KNOWN_VARIABLES, POSTGRES_TOOLS, overlay_builder, parses
from tests.support.gateways import Gateway, gateway, site
from tests.support.polling import PATIENCE, until
from tests.support.servers import Serve, Server
from tests.support.victim import Victim, running_victim
from tests.support.workspaces import add_workspace
from tools.validate_deploy import DEPLOY

CHECKOUT: Final = DEPLOY.parent
PAGE: Final = (CHECKOUT / "docs" / "deploying.md").read_text(encoding="utf-8")
LAPTOP, ROLLOUT, WITH_GATEWAY, NEW_ROLE, OLD_ROLE, SHORTEN = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: Final[dict[str, Any]] = COMPOSE["services"]
OURS: Final = [name for name, service in SERVICES.items() if service["image"] == f"billing-grpc:{__version__}"]
IMAGE: Final = f"docker run --rm billing-grpc:{__version__} "


def run(script: str, folder: Path, **variables: str) -> str:
    """Runs lines of the page with the newest Postgres' tools and this environment's `billing-grpc`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), str(POSTGRES_TOOLS), os.environ["PATH"]])
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={"PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


# The laptop


def test_every_file_of_the_compose_file_exists_and_every_setting_and_command_too() -> None:
    assert OURS == ["migrate", "server", "gateway"]
    for name in OURS:
        service = SERVICES[name]
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service.get("environment", {}).keys() <= KNOWN_VARIABLES
        assert parses(cli, service["command"])
    (mounted,) = SERVICES["grants"]["volumes"]
    assert (DEPLOY / mounted.split(":")[0]).is_file()
    assert run("git check-ignore deploy/tokens.toml", CHECKOUT)


def test_the_compose_file_opens_ports_on_this_machine_alone() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {
        "server": ["127.0.0.1:50051:50051", "127.0.0.1:9464:9464"],
        "gateway": ["127.0.0.1:8080:8080"],
    }
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert SERVICES["gateway"]["networks"] == ["callers"]
    assert COMPOSE["volumes"]["socket"]["driver_opts"]["o"] == "uid=10001,gid=10001,mode=0700"
    for name in ("server", "gateway"):
        service = SERVICES[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])


class Laptop:
    """Does what `docker compose up` would, with a real Postgres in the place of the container."""

    def __init__(self, folder: Path, sockets: Path, database_url: str, serve: Serve) -> None:
        self._folder, self._sockets, self._database_url, self._serve = folder, sockets, database_url, serve

    def _reach(self, url: str) -> str:
        """The database under the name that it has here, for the same role."""
        user = re.fullmatch(r"postgresql://(\w+)@postgres/tenant", url)
        assert user is not None
        return self._database_url if user[1] == "postgres" else make_conninfo(self._database_url, user=user[1])

    @contextmanager
    def up(self) -> Iterator[tuple[Server, Gateway]]:
        order = ["postgres"]
        for name in ("migrate", "grants", "server", "gateway"):
            assert SERVICES[name]["depends_on"].keys() == {order[-1]}
            order.append(name)
        migrate, grants = (SERVICES[name] for name in order[1:3])
        run(
            shlex.join(["billing-grpc", *migrate["command"]]),
            self._folder,
            DATABASE_URL=self._reach(migrate["environment"]["DATABASE_URL"]),
        )
        source, target, _ = grants["volumes"][0].split(":")
        *command, url = (each.replace(target, str(DEPLOY / source)) for each in grants["command"])
        run(shlex.join([*command, self._reach(url)]), self._folder)

        server = self._server(SERVICES["server"])
        assert SERVICES["gateway"]["volumes"] == SERVICES["server"]["volumes"]
        name, *flags = (self._here(each) for each in SERVICES["gateway"]["command"])
        assert name == "gateway"
        with gateway(self._folder / "gateway", *flags) as running:
            yield server, running

    def _here(self, words: str) -> str:
        """Words of a service with this machine's folder for the socket, and a free port for each published one."""
        mounted = SERVICES["server"]["volumes"][0].partition(":")[2]
        return re.sub(r"0\.0\.0\.0:\d+", "0.0.0.0:0", words).replace(mounted, str(self._sockets))

    def _server(self, server: dict[str, Any]) -> Server:
        settings = dict(server["environment"])
        assert settings["BILLING_GRPC_LISTEN"].split(",")[0] == "0.0.0.0:50051"
        settings["BILLING_GRPC_LISTEN"] = self._here(settings["BILLING_GRPC_LISTEN"])
        settings["DATABASE_URL"] = self._reach(settings["DATABASE_URL"])
        (secret,) = server["secrets"]
        assert settings["BILLING_GRPC_TOKENS_FILE"] == f"/run/secrets/{secret}"
        settings["BILLING_GRPC_TOKENS_FILE"] = str(self._folder / "deploy" / COMPOSE["secrets"][secret]["file"])
        command = server["command"]
        assert command == ["serve"]
        return self._serve(settings={**settings, "BILLING_GRPC_LOCAL_ADMIN": None}, listeners=2)


def test_the_laptop_s_commands_start_a_server_and_a_gateway_that_answer(
    tmp_path: Path, directory: Path, empty_database_url: str, serve: Serve
) -> None:
    (tmp_path / "deploy").mkdir()
    laptop, answers, variables, page = Laptop(tmp_path, directory, empty_database_url, serve), [], {}, ""
    with ExitStack() as stack:
        for line in LAPTOP.replace("\\\n", "").splitlines():
            words = shlex.split(line)
            if words[:2] == ["docker", "compose"]:
                assert words[2:4] == ["-f", "deploy/compose.yaml"]
                if words[4] == "up":
                    assert words[5:] == ["--detach", "gateway"]
                    server, http = stack.enter_context(laptop.up())
                    variables = {"BILLING_GRPC_ADDRESS": f"127.0.0.1:{server.port}"}
                    page = f"127.0.0.1:{http.process.port}"
                else:
                    assert words[4:] == ["build"]
            else:
                here = line.replace(IMAGE, "billing-grpc ").replace("127.0.0.1:8080", page)
                answers.append(run(here, tmp_path, **variables))
        *_, resolved, through_gateway = answers
        assert resolved.startswith("platform_managed  (org_default)\n")
        assert json.loads(through_gateway)["resolution"]["resolvedMode"] == "BILLING_MODE_PLATFORM_MANAGED"
        checks = [SERVICES[name]["healthcheck"]["test"] for name in ("server", "gateway")]
        assert [check[0] for check in checks] == ["CMD", "CMD"]
        for check in checks:
            run(shlex.join(check[1:]).replace("127.0.0.1:8080", page), tmp_path, **variables)
    with pytest.raises(AssertionError, match="refused"):
        run(shlex.join(checks[-1][1:]).replace("127.0.0.1:8080", page), tmp_path)


# Kubernetes, and the database's roles


@pytest.fixture(scope="module")
def cluster() -> Iterator[Victim]:
    """A server that asks the login roles of the page for their passwords."""
    with running_victim() as running:
        rules = running.server.directory / "pg_hba.conf"
        rules.write_text(f"local all /^billing_grpc_[0-9] scram-sha-256\n{rules.read_text()}")
        with psycopg.connect(running.url, autocommit=True) as owner:
            owner.execute("SELECT pg_reload_conf()")
            owner.execute("CREATE ROLE owner LOGIN SUPERUSER")
        yield running


@contextmanager
def asking(server: Server, workspace: str) -> Iterator[list[pb.BillingModeResolution]]:
    """A caller all the while; what it was answered."""
    answers: list[pb.BillingModeResolution] = []
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.wait(0.02):
            answers.append(server.resolve(workspace))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stopping.set()
        thread.join()


def users(url: str) -> set[str]:
    with psycopg.connect(url) as owner:
        rows = owner.execute("SELECT usename FROM pg_stat_activity WHERE application_name LIKE 'billing_grpc%'")
        return {str(name) for (name,) in rows}


def applying(build: list[str]) -> str:
    """What `kubectl apply -k` is in a script: it writes what it would apply to `built.yaml`."""
    return f'kubectl() {{ [ "$1 $2" = "apply -k" ] && command {shlex.join(build)} "$3" > built.yaml; }}\n'


@pytest.fixture
def build() -> list[str]:
    """The command that builds an overlay."""
    return overlay_builder()


def test_secrets_are_files_and_a_password_rotates_without_a_restart(
    build: list[str], cluster: Victim, tmp_path: Path, serve: Serve
) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets", "tokens.toml"))
    apply = applying(build)
    variables = {"DATABASE_URL": cluster.url, "OWNER_PASSWORD": "of-the-owner"}
    run(apply + ROLLOUT, tmp_path, **variables)

    folder = tmp_path / "deploy" / "kubernetes" / "overlays" / "tenant"
    objects = list(yaml.safe_load_all((folder / "built.yaml").read_text()))
    secrets = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "Secret"}
    assert {name: set(data) for name, data in secrets.items()} == {
        "billing-grpc": {"pg_service.conf", "tokens.toml"},
        "billing-grpc-owner": {"pg_service.conf"},
    }
    assert (folder / "secrets").stat().st_mode & 0o077 == 0

    workspace = add_workspace(cluster.url, "byok")
    for name in ("pg_service.conf", "owner.conf"):
        (folder / "secrets" / name).chmod(0o440)  # as in a pod
    as_owner = {
        "DATABASE_URL": f"postgresql:///billing?host={cluster.sockets}&service=owner",
        "PGSERVICEFILE": str(folder / "secrets" / "owner.conf"),
    }
    assert run("billing-grpc migrate up", tmp_path, **as_owner) == "nothing to apply\n"
    server = serve(
        settings={
            "DATABASE_URL": f"postgresql:///billing?host={cluster.sockets}&service=billing_grpc",
            "PGSERVICEFILE": folder / "secrets" / "pg_service.conf",
            "MOLECULE_LLM_BILLING_MODE": "byok",
        }
    )
    server.logged("database ready")
    assert users(cluster.url) == {"billing_grpc_1"}
    with asking(server, workspace) as answers:
        (folder / "secrets" / "pg_service.conf").chmod(0o640)
        run(apply + NEW_ROLE, folder, **variables)
        run(OLD_ROLE, folder, **variables)
        until(lambda: users(cluster.url) == {"billing_grpc_2"})
    assert server.process.poll() is None
    assert {answer.resolved_mode for answer in answers if not answer.HasField("error")} == {pb.BILLING_MODE_BYOK}
    assert not server.resolve(workspace).HasField("error")
    server.stub.SetWorkspaceBillingMode(
        service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace, mode=pb.BILLING_MODE_DISABLED),
        timeout=PATIENCE,
    )
    with psycopg.connect(cluster.url) as owner:
        last = owner.execute(
            "SELECT principal, database_user FROM workspace_billing_mode_changes ORDER BY change_id DESC LIMIT 1"
        ).fetchone()
    assert last == ("local", "billing_grpc_2")


def test_the_gateway_of_the_cluster_answers_its_probes_and_its_callers(
    build: list[str], tmp_path: Path, database_url: str, serve: Serve
) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets", "tokens.toml"))
    folder = tmp_path / "deploy" / "kubernetes" / "overlays" / "tenant"
    (folder / "secrets").mkdir()
    for name in ("pg_service.conf", "owner.conf", "tokens.toml"):
        (folder / "secrets" / name).touch()
    run(applying(build) + WITH_GATEWAY, folder)
    objects = yaml.safe_load_all((folder / "built.yaml").read_text())
    (pod,) = (
        each["spec"]["template"]["spec"]
        for each in objects
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", "billing-grpc-gateway")
    )
    (container,) = pod["containers"]
    command, address, authorities, listen, *hosts = container["args"]
    assert [each.partition("=")[0] for each in (command, address, authorities, listen)] == [
        *("gateway", "--address", "--ca", "--listen")
    ]

    place = site(serve, database_url, tmp_path)
    workspace = add_workspace(database_url, "byok")
    route = f"/admin/workspaces/{workspace}/llm-billing-mode"
    with gateway(tmp_path / "gateway", *place.upstreams["tls"], "--listen=0.0.0.0:0", *hosts) as http:
        probe = container["readinessProbe"]["httpGet"]
        host = {each["name"]: each["value"] for each in probe["httpHeaders"]}
        assert http.ask("GET", probe["path"], token=None, headers=host).status == 200
        answer = http.ask("GET", route, headers={"Host": "billing.example.com"})
        assert answer.json["resolved_mode"] == "byok"
        assert http.ask("GET", probe["path"]).status == 421
        place.server.stop()
        assert http.ask("GET", probe["path"], token=None, headers=host).status == 200
        assert http.ask("GET", route, headers=host).reason == "SERVER_UNREACHABLE"


# The change log


def test_a_shorter_log_keeps_every_etag_and_every_page_goes_on(database_url: str, tmp_path: Path, serve: Serve) -> None:
    kept, turned, gone = (add_workspace(database_url, "byok") for _ in range(3))
    with psycopg.connect(database_url) as owner:
        for mode in ("disabled", "platform_managed"):
            owner.execute("UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s", [mode, turned])
        owner.execute("DELETE FROM workspaces WHERE id = %s", [gone])
        owner.execute("UPDATE workspace_billing_mode_changes SET change_time = change_time - interval '3 years'")
        owner.execute("UPDATE workspaces SET llm_billing_mode = 'byok' WHERE id = %s", [turned])
    server = serve(settings={"DATABASE_URL": database_url})
    server.logged("database ready")

    def etags() -> list[str]:
        request = service_pb.GetWorkspaceBillingModeRequest
        return [
            server.stub.GetWorkspaceBillingMode(request(workspace_id=each), timeout=PATIENCE).billing_mode.etag
            for each in (kept, turned)
        ]

    def page(token: str) -> service_pb.ListBillingModeChangesResponse:
        request = service_pb.ListBillingModeChangesRequest(page_size=2, page_token=token)
        return server.stub.ListBillingModeChanges(request, timeout=PATIENCE)

    before, first = etags(), page("")
    run(SHORTEN, tmp_path, DATABASE_URL=database_url)

    assert len((tmp_path / "old-changes.csv").read_text().splitlines()) == 4
    assert etags() == before
    rest = page(first.next_page_token)
    assert [each.workspace_id for each in [*page("").changes, *rest.changes]] == [turned, gone, kept]
    assert not rest.next_page_token
    for workspace, etag in zip((kept, turned), before, strict=True):
        changed = server.stub.SetWorkspaceBillingMode(
            service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace, mode=pb.BILLING_MODE_DISABLED, etag=etag),
            timeout=PATIENCE,
        )
        assert changed.billing_mode.etag != etag
