"""A start with wrong settings: every problem at once, exit code 2, no secret repeated, nobody let in by omission."""

from pathlib import Path
from typing import Final

import pytest

from tests.support.commands import SETTINGS, Changes, billing_grpc
from tests.support.servers import Serve

USAGE: Final = 2
PASSWORD: Final = "hunter2"

# setting: a wrong value, and words of its problem
WRONG: Final = {
    "BILLING_GRPC_LOCAL_ADMIN": ("yes", "must be on or off"),
    "DATABASE_URL": (f"mysql://user:{PASSWORD}@db/billing", "must be postgresql://"),
    "MOLECULE_LLM_BILLING_MODE_FILE": ("/etc/mode", "set this or MOLECULE_LLM_BILLING_MODE, not both"),
    "BILLING_GRPC_LISTEN": ("nowhere", "'nowhere' is not host:port"),
    "BILLING_GRPC_STORAGE_TIMEOUT": ("-1", "greater than 0"),
    "BILLING_GRPC_EXTRA_BLOCKED_KEYS": ("NEW_VENDOR_KEY,molecule_llm_token", "MOLECULE_LLM_TOKEN: MOLECULE_LLM_*"),
    "BILLING_GRPC_REFLECTION": ("maybe", "must be on or off"),
    "BILLING_GRPC_METRICS_LISTEN": ("9464", "'9464' is not host:port"),
    "BILLING_GRPC_LOG_FORMAT": ("xml", "'console' or 'json'"),
    "BILLING_GRPC_LOG_LEVEL": ("loud", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
}
WRONG_VALUES: Final = {name: value for name, (value, _) in WRONG.items()} | {"MOLECULE_LLM_BILLING_MODE": "byok"}

# id: BILLING_GRPC_LISTEN, words of the refusal
REFUSED_ADDRESSES: Final = {
    "every IPv4 address": ("0.0.0.0:50051", "0.0.0.0:50051 is refused"),
    "a public address": ("192.0.2.1:50051", "192.0.2.1:50051 is refused"),
    "one of several": ("127.0.0.1:0,0.0.0.0:50051,unix:/tmp/socket", "so 0.0.0.0:50051 is refused"),
    "tls without a certificate": ("tls://127.0.0.1:50051", "need BILLING_GRPC_TLS_CERT and BILLING_GRPC_TLS_KEY"),
    "a relative socket": ("unix:billing.sock", "is not unix: and an absolute path"),
}

# id: DATABASE_URL, wrong in form, with a password in it
MALFORMED: Final = {
    "an @ in the password": f"postgresql://user:pa@{PASSWORD}@db/billing",
    "an @ at the password's end": f"postgresql://user:{PASSWORD}@@db/billing",
    "a / in the password": f"postgresql://user:pa/{PASSWORD}@db/billing",
    "a / after digits in the password": f"postgresql://user:12/{PASSWORD}@db/billing",
    "a ? and an @ in the password": f"postgresql://user:a?b@{PASSWORD}@db/billing",
    "a ? after an @ in the password": f"postgresql://user:a@b?sslmode={PASSWORD}@db/billing",
    "an unknown sslmode": f"postgresql://user:{PASSWORD}@db/billing?sslmode=no-verify",
    "an unknown option": f"postgresql://user:{PASSWORD}@db/billing?sslmod=require",
    "an unknown kind of server": f"postgresql://user:{PASSWORD}@db/billing?target_session_attrs=master",
    "a port that is no number": f"postgresql://user@db:{PASSWORD}/billing",
    "a port beyond the last": f"host=db password={PASSWORD} port=65536",
    "more ports than hosts": f"host=a,b port=1,2,3 password={PASSWORD}",
    "a number that is none": f"host=db connect_timeout={PASSWORD}",
    "an unclosed bracket": f"postgresql://user:{PASSWORD}@[db/billing",
    "a broken escape": f"postgresql://user:{PASSWORD}%zz@db/billing",
    "an unknown keyword": f"host=db pasword={PASSWORD}",
    "no address at all": PASSWORD,
}


def flag(setting: str) -> str:
    return "--" + setting.removeprefix("BILLING_GRPC_").lower().replace("_", "-")


@pytest.mark.parametrize("given_as", ["settings", "flags"])
def test_every_wrong_setting_is_named_at_once(given_as: str) -> None:
    if given_as == "settings":
        ended = billing_grpc("serve", settings=WRONG_VALUES)
    else:
        ended = billing_grpc("serve", *(f"{flag(name)}={value}" for name, value in WRONG_VALUES.items()))
    first, *problems = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout, first) == (USAGE, "", "billing-grpc: wrong settings:")
    for line, (name, (_, words)) in zip(problems, WRONG.items(), strict=True):
        assert line.startswith(f"  {name}: ")
        assert words in line
    assert PASSWORD not in ended.stderr


@pytest.mark.parametrize(("listen", "words"), REFUSED_ADDRESSES.values(), ids=REFUSED_ADDRESSES.keys())
def test_an_address_that_others_could_reach_or_that_is_none_is_refused(listen: str, words: str) -> None:
    ended = billing_grpc("serve", settings={"BILLING_GRPC_LISTEN": listen})
    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert "BILLING_GRPC_LISTEN: " in ended.stderr
    assert words in ended.stderr


@pytest.mark.parametrize(
    ("local_admin", "database_url"),
    [(None, None), ("", None), ("off", None), (None, "postgresql://127.0.0.1/billing")],
    ids=["unset", "empty", "off", "unset, with a database"],
)
def test_nobody_is_let_in_by_omission(local_admin: str | None, database_url: str | None, directory: Path) -> None:
    data = directory / "data"
    settings: Changes = {
        "BILLING_GRPC_LOCAL_ADMIN": local_admin,
        "DATABASE_URL": database_url,
        "BILLING_GRPC_DATA_DIR": data,
    }
    ended = billing_grpc("serve", settings=settings)
    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert "BILLING_GRPC_TOKENS_FILE: no caller could use this server" in ended.stderr
    for way in ("BILLING_GRPC_TOKENS_FILE", "BILLING_GRPC_TLS_CLIENT_CA", "BILLING_GRPC_LOCAL_ADMIN=on"):
        assert way in ended.stderr.partition("Name the callers:")[2]
    assert ("DATABASE_URL: name the Postgres to use" in ended.stderr) == (database_url is None)
    assert not data.exists()


@pytest.mark.parametrize("command", [("serve",), ("migrate", "up")], ids=" ".join)
@pytest.mark.parametrize("database_url", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_database_address_is_refused_without_its_password(
    database_url: str, command: tuple[str, ...]
) -> None:
    ended = billing_grpc(*command, settings={"DATABASE_URL": database_url})
    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert "DATABASE_URL: " in ended.stderr
    assert PASSWORD not in ended.stderr


def test_an_address_given_to_migrate_is_refused_in_the_same_way() -> None:
    ended = billing_grpc("migrate", "--database-url", f"postgresql://user:pa@{PASSWORD}@db/billing", "status")
    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert "DATABASE_URL: " in ended.stderr
    assert PASSWORD not in ended.stderr


def test_what_libpq_takes_from_the_environment_is_looked_at_too() -> None:
    settings = {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "PGSSLMODE": "no-verify"}
    ended = billing_grpc("serve", settings=settings)
    assert ended.returncode == USAGE
    assert "DATABASE_URL: sslmode, which the environment gives, must be one of" in ended.stderr


# id: a variable that is none of ours, its value, and the setting that was meant
UNKNOWN: Final = {
    "one letter short": ("BILLING_GRPC_EXTRA_BLOCKED_KEY", "GOOGLE_API_KEY", "BILLING_GRPC_EXTRA_BLOCKED_KEYS"),
    "in lower case": ("billing_grpc_workers", "4", "BILLING_GRPC_WORKERS"),
    "named like a service's port": ("BILLING_GRPC_METRICS_PORT", "9464", "BILLING_GRPC_METRICS_LISTEN"),
    "of a call": ("BILLING_GRPC_TOKENFILE", "/x", "BILLING_GRPC_TOKEN_FILE"),
}


@pytest.mark.parametrize("command", [("serve",), ("migrate", "status")], ids=" ".join)
@pytest.mark.parametrize(("name", "value", "meant"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_setting_that_there_is_not_is_named_with_the_nearest(
    command: tuple[str, ...], name: str, value: str, meant: str
) -> None:
    ended = billing_grpc(*command, settings={name: value, "DATABASE_URL": "postgresql://127.0.0.1:1/x"})
    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert f"  {name}: " in ended.stderr
    assert ended.stderr.endswith(f" {meant}\n")


def test_a_call_is_made_all_the_same_and_says_which_setting_there_is_not() -> None:
    settings = {"BILLING_GRPC_EXTRA_BLOCKED_KEY": "HARMLESS"}
    ended = billing_grpc("validate-secret", "HARMLESS", settings=settings)
    assert (ended.returncode, ended.stdout.partition("\t")[0]) == (0, "HARMLESS")
    assert "BILLING_GRPC_EXTRA_BLOCKED_KEYS" in ended.stderr


# What Kubernetes sets for the services billing-grpc and billing-grpc-metrics, and the settings of calls.
NO_MISTAKE: Final = {
    "BILLING_GRPC_SERVICE_HOST": "10.0.0.1",
    "BILLING_GRPC_SERVICE_PORT": "50051",
    "BILLING_GRPC_SERVICE_PORT_GRPC": "50051",
    "BILLING_GRPC_PORT": "tcp://10.0.0.1:50051",
    "BILLING_GRPC_PORT_50051_TCP": "tcp://10.0.0.1:50051",
    "BILLING_GRPC_PORT_50051_TCP_PROTO": "tcp",
    "BILLING_GRPC_PORT_50051_TCP_PORT": "50051",
    "BILLING_GRPC_PORT_50051_TCP_ADDR": "10.0.0.1",
    "BILLING_GRPC_METRICS_SERVICE_HOST": "10.0.0.2",
    "BILLING_GRPC_METRICS_PORT": "tcp://10.0.0.2:9464",
    "BILLING_GRPC_ADDRESS": "127.0.0.1:50051",
    "BILLING_GRPC_TOKEN_FILE": "/nonexistent",
}


def test_what_kubernetes_sets_for_services_and_what_calls_take_is_no_mistake(serve: Serve) -> None:
    assert serve(settings={"DATABASE_URL": "postgresql://127.0.0.1:1/x", **NO_MISTAKE}).stop() == 0
    ended = billing_grpc("validate-secret", "HARMLESS", settings={**NO_MISTAKE, "BILLING_GRPC_TOKEN_FILE": None})
    assert (ended.returncode, "there is no such setting" in ended.stderr) == (0, False)


def test_serve_has_a_flag_for_every_setting() -> None:
    usage = " ".join(billing_grpc("serve", "--help").stdout.split())
    for setting in {*SETTINGS, *WRONG, *WRONG_VALUES, "BILLING_GRPC_DATA_DIR"}:
        assert f"{flag(setting)} VALUE" in usage
        assert f"(setting: {setting})" in usage


def test_an_unknown_flag_is_wrong_usage() -> None:
    ended = billing_grpc("serve", "--lisen", "127.0.0.1:0")
    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert "No such option" in ended.stderr
    assert "--listen" in ended.stderr
