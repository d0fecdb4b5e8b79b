"""How the commands reach a server with TLS and tokens: by options before or after the command, and by the environment."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from billing_grpc.cli.options import Connection
from billing_grpc.setting_names import VARIABLES
from tests.support.certificates import Authority
from tests.support.commands import Changes, billing_grpc
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

OK, REFUSED, USAGE, UNAVAILABLE = 0, 1, 2, 3
UNKNOWN: Final = "5f0e9b0e-0000-4000-8000-000000000000"
COMMANDS: Final = {
    "resolve": ["resolve", UNKNOWN],
    "get": ["get", UNKNOWN],
    "set": ["set", UNKNOWN, "byok"],
    "inherit": ["inherit", UNKNOWN],
    "changes": ["changes"],
    "validate-secret": ["validate-secret", "HF_TOKEN"],
    "plan": ["plan"],
    "run": ["run", "--workspace", "", "--retry-for", "0", "--", "true"],
}
DECISIONS: Final = {"resolve", "validate-secret", "plan", "run"}


@dataclass(frozen=True)
class Site:
    server: Server
    folder: Path
    workspace: str

    @property
    def tls(self) -> str:
        return self.server.addresses[1]

    @property
    def mutual(self) -> str:
        return self.server.addresses[2]

    def token(self, role: str) -> Path:
        return self.folder / f"{role}.token"

    def trusting(self, role: str) -> list[str]:
        ca = str(self.folder / "ca.crt")
        return [
            "--address",
            self.tls,
            "--ca",
            ca,
            "--server-name",
            "billing.internal",
            "--token-file",
            str(self.token(role)),
        ]


@pytest.fixture(scope="module")
def site(module_serve: Serve, module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    servers, clients = Authority.new("servers"), Authority.new("clients")
    certificate, key = servers.issue(dns=("billing.internal",)).write(folder, "server")
    clients.issue(uris=("spiffe://example/reader",)).write(folder, "ours")
    (folder / "ca.crt").write_bytes(servers.pem)
    (folder / "clients.crt").write_bytes(clients.pem)
    entries = []
    for role in ("reader", "provisioner", "admin"):
        said = billing_grpc("token", "new", "--name", f"the-{role}", "--role", role).stdout
        (folder / f"{role}.token").write_text(
            next(line for line in said.splitlines() if line.startswith("bgrpc_")) + "\n"
        )
        entries.append(said[said.index("[[principal]]") : said.index("\n\nWhere")] + "\n")
    (folder / "tokens.toml").write_text("".join(entries) + '[[principal]]\nname = "mtls"\nrole = "reader"\n')
    with (folder / "tokens.toml").open("a") as tokens:
        tokens.write('certificate_uri = ["spiffe://example/reader"]\n')
    (folder / "wrong.token").write_text("bgrpc_wrong")
    server = module_serve(
        settings={
            "DATABASE_URL": as_service(module_database_url),
            "BILLING_GRPC_LOCAL_ADMIN": None,
            "BILLING_GRPC_LISTEN": "127.0.0.1:0,tls://127.0.0.1:0,mtls://127.0.0.1:0",
            "BILLING_GRPC_TOKENS_FILE": folder / "tokens.toml",
            "BILLING_GRPC_TLS_CERT": certificate,
            "BILLING_GRPC_TLS_KEY": key,
            "BILLING_GRPC_TLS_CLIENT_CA": folder / "clients.crt",
        },
        listeners=3,
    )
    return Site(server, folder, add_workspace(module_database_url, "byok"))


def test_options_may_stand_before_or_after_the_command(site: Site) -> None:
    for arguments in (
        [*site.trusting("reader"), "get", site.workspace],
        ["get", site.workspace, *site.trusting("reader")],
    ):
        ended = billing_grpc(*arguments)
        assert (ended.returncode, ended.stderr) == (OK, "")
        assert ended.stdout.startswith("byok  (workspace_override)")


def test_what_stands_after_the_command_wins_and_a_flag_over_the_environment(site: Site) -> None:
    elsewhere = {"BILLING_GRPC_ADDRESS": "127.0.0.1:1", "BILLING_GRPC_TOKEN_FILE": "/nonexistent"}
    after = billing_grpc(
        "--address", "127.0.0.1:1", "get", site.workspace, *site.trusting("reader"), settings=elsewhere
    )
    before = billing_grpc(*site.trusting("reader"), "get", site.workspace, settings=elsewhere)

    assert (after.returncode, before.returncode) == (OK, OK), after.stderr + before.stderr


def test_all_of_it_may_come_from_the_environment(site: Site) -> None:
    settings: Changes = {
        "BILLING_GRPC_ADDRESS": site.tls,
        "BILLING_GRPC_CA": site.folder / "ca.crt",
        "BILLING_GRPC_SERVER_NAME": "billing.internal",
        "BILLING_GRPC_TOKEN_FILE": site.token("admin"),
        "BILLING_GRPC_TIMEOUT": "20",
    }
    mutual: Changes = {
        **settings,
        "BILLING_GRPC_ADDRESS": site.mutual,
        "BILLING_GRPC_TOKEN_FILE": None,
        "BILLING_GRPC_CERT": site.folder / "ours.crt",
        "BILLING_GRPC_KEY": site.folder / "ours.key",
    }
    written = billing_grpc("set", site.workspace, "byok", "--json", settings=settings)
    known = billing_grpc("get", site.workspace, settings=mutual)
    refused = billing_grpc("set", site.workspace, "byok", settings=mutual)

    assert json.loads(written.stdout)["billing_mode"]["resolution"]["resolved_mode"] == "byok"
    assert (known.returncode, refused.returncode) == (OK, REFUSED), known.stderr
    assert refused.stderr.startswith("billing-grpc: ROLE_DENIED: ")
    assert "the outcome is unknown" not in refused.stderr
    wrong = billing_grpc("get", site.workspace, settings={**settings, "BILLING_GRPC_TIMEOUT": "soon"})
    assert (wrong.returncode, wrong.stdout) == (USAGE, "")
    assert "'--timeout'" in wrong.stderr


def test_keys_that_the_server_adds_can_be_named_in_its_own_setting() -> None:
    ended = billing_grpc(
        *("--address", "127.0.0.1:1", "validate-secret", "NEW_VENDOR_KEY"),
        settings={"BILLING_GRPC_EXTRA_BLOCKED_KEYS": "OTHER_KEY, , new_vendor_key,"},
    )

    assert ended.returncode == UNAVAILABLE
    assert ended.stdout.startswith("NEW_VENDOR_KEY\tblocked_platform_managed\t")


def test_the_scheme_alone_means_tls() -> None:
    assert [Connection(address=f"{scheme}db.internal:1").secure for scheme in ("tls://", "mtls://", "")] == [
        True,
        True,
        False,
    ]


def test_grpc_says_more_when_it_is_told_to(site: Site) -> None:
    foreign = ("--address", site.tls, "get", UNKNOWN)

    assert billing_grpc(*foreign, settings={"GRPC_VERBOSITY": "INFO"}).stderr.count("\n") > 1
    assert billing_grpc(*foreign).stderr.count("\n") == 1


def test_an_empty_variable_is_as_good_as_none(site: Site) -> None:
    plain = site.server.addresses[0]
    ended = billing_grpc(
        *("--address", plain, "watch-health", "--once"), settings=dict.fromkeys(VARIABLES.values(), "")
    )

    assert (ended.returncode, ended.stderr) == (OK, "")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("credentials", ["none", "wrong", "over plain text"])
def test_who_is_not_known_is_told_what_to_give_and_no_token_is_shown(
    site: Site, credentials: str, command: list[str]
) -> None:
    trust = site.trusting("wrong")
    if credentials == "none":
        trust = trust[:-2]
    if credentials == "over plain text":
        trust = ["--address", site.server.addresses[0], "--token-file", str(site.token("wrong"))]
    ended = billing_grpc(*trust, *command)

    assert ended.returncode == (0 if command[0] == "run" else UNAVAILABLE if command[0] in DECISIONS else REFUSED)
    assert "give --token-file" in ended.stderr
    assert "bgrpc_" not in ended.stderr + ended.stdout
    assert ended.stderr.count("\n") == 1


def test_a_role_that_may_not_is_told_so(site: Site) -> None:
    for command in (["set", site.workspace, "disabled"], ["plan"]):
        ended = billing_grpc(*site.trusting("reader"), *command)
        assert ended.returncode in {REFUSED, UNAVAILABLE}
        assert (
            "ROLE_DENIED: this caller's role may not call this method; use a token of a role that may" in ended.stderr
        )


@pytest.mark.parametrize(
    "command", [COMMANDS["get"], COMMANDS["resolve"], ["watch-health", "--once"]], ids=lambda c: c[0]
)
@pytest.mark.parametrize("mistake", ["no trust", "another name", "plain to tls", "tls to plain", "no certificate"])
def test_a_handshake_that_fails_is_one_line(site: Site, mistake: str, command: list[str]) -> None:
    ca = str(site.folder / "ca.crt")
    plain, tls = site.server.addresses[0], site.tls.removeprefix("tls://")
    arguments = {
        "no trust": ["--address", site.tls],
        "another name": ["--address", site.tls, "--ca", ca, "--server-name", "other.internal"],
        "plain to tls": ["--address", tls],
        "tls to plain": ["--address", f"tls://{plain}", "--ca", ca],
        "no certificate": ["--address", site.mutual, "--ca", ca, "--server-name", "billing.internal"],
    }[mistake]
    ended = billing_grpc(*arguments, *command)

    assert ended.returncode == UNAVAILABLE
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("billing-grpc: ")


def test_a_token_is_not_sent_over_a_network_in_plain_text(site: Site) -> None:
    ended = billing_grpc("--address", "billing.example:50051", "--token-file", str(site.token("admin")), "changes")

    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert "a token is sent only over TLS or to this machine" in ended.stderr


def test_health_is_open_to_all_who_can_connect(site: Site) -> None:
    ended = billing_grpc(*site.trusting("wrong"), "watch-health", "--once", "molecule.billing.v1.BillingModeService")

    assert ended.returncode == OK, ended.stderr
    assert ended.stdout.split("\t")[1] == "SERVING\n"
