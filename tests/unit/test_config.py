"""Settings: what is accepted, and that every problem is said at once, without repeating a secret."""

from pathlib import Path

import pytest

from billing_grpc.addresses import TcpAddress, UnixAddress
from billing_grpc.catalogue import NameSet
from billing_grpc.errors import SettingsError
from billing_grpc.server.settings.config import Settings, load_database_url, load_settings
from billing_grpc.server.settings.limits import Limits
from tests.support.certificates import Authority

LOCAL = {"BILLING_GRPC_LOCAL_ADMIN": "on"}
TOKENS = {
    "BILLING_GRPC_LOCAL_ADMIN": "off",
    "BILLING_GRPC_TOKENS_FILE": "{tokens}",
    "DATABASE_URL": "postgresql://db/x",
}
TLS = {"BILLING_GRPC_TLS_CERT": "{certificate}", "BILLING_GRPC_TLS_KEY": "{key}"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.alias), raising=False)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files that are right, by the names that stand for them in the tables."""
    authority = Authority.new("servers")
    certificate, key = authority.issue(dns=("localhost",)).write(tmp_path, "server")
    tokens, ca = tmp_path / "tokens.toml", tmp_path / "ca.crt"
    tokens.write_text('[[principal]]\nname = "a"\nrole = "admin"\n')
    ca.write_bytes(authority.pem)
    return {"tokens": tokens, "certificate": certificate, "key": key, "ca": ca}


def filled(given: dict[str, str], files: dict[str, Path]) -> dict[str, str]:
    return {name: value.format(**files) for name, value in given.items()}


def test_the_defaults_are_the_contracts() -> None:
    settings = load_settings(LOCAL)

    assert settings.database_url is None
    assert settings.org_default is None
    assert settings.listen == (TcpAddress("127.0.0.1", 50051),)
    assert settings.storage_timeout == 1.0
    assert (settings.blocked_keys, settings.extra_blocked_keys) == (NameSet.AGENTS, ())
    assert (settings.workers, settings.database_connections) == (1, 8)
    assert (settings.drain_delay, settings.drain_grace) == (0, None)
    assert settings.reflection is True
    assert settings.metrics_listen == TcpAddress("127.0.0.1", 9464)
    assert (settings.log_format, settings.log_level) == ("auto", "INFO")


def test_every_setting_is_read_from_the_environment_and_a_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "DATABASE_URL": "postgresql://db/billing",
        "BILLING_GRPC_LOCAL_ADMIN": "on",
        "MOLECULE_LLM_BILLING_MODE": " BYOK ",
        "BILLING_GRPC_LISTEN": "localhost:0, [::1]:5,unix:/run/billing.sock",
        "BILLING_GRPC_STORAGE_TIMEOUT": "0.25",
        "BILLING_GRPC_BLOCKED_KEYS": "vendors",
        "BILLING_GRPC_EXTRA_BLOCKED_KEYS": " new_vendor_key ,OTHER,302ai_key",
        "BILLING_GRPC_REFLECTION": "off",
        "BILLING_GRPC_METRICS_LISTEN": "off",
        "BILLING_GRPC_LOG_FORMAT": "json",
        "BILLING_GRPC_LOG_LEVEL": "debug",
        "BILLING_GRPC_DATA_DIR": "/srv/data",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    settings = load_settings({"BILLING_GRPC_STORAGE_TIMEOUT": "2"})

    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://db/billing"
    assert settings.org_default == " BYOK "
    assert settings.listen == (TcpAddress("localhost", 0), TcpAddress("::1", 5), UnixAddress("/run/billing.sock"))
    assert settings.storage_timeout == 2.0
    assert settings.blocked_keys is NameSet.VENDORS
    assert settings.extra_blocked_keys == ("NEW_VENDOR_KEY", "OTHER", "302AI_KEY")
    assert settings.reflection is False
    assert settings.metrics_listen is None
    assert (settings.log_format, settings.log_level) == ("json", "DEBUG")
    assert settings.data_dir == Path("/srv/data")


def test_an_empty_flag_wins_over_the_environment_and_says_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLECULE_LLM_BILLING_MODE", "byok")
    monkeypatch.setenv("BILLING_GRPC_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/x")

    settings = load_settings(
        {**LOCAL, **dict.fromkeys(("MOLECULE_LLM_BILLING_MODE", "BILLING_GRPC_LISTEN", "DATABASE_URL"), "")}
    )

    assert (settings.org_default, settings.database_url) == (None, None)
    assert settings.listen == (TcpAddress("127.0.0.1", 50051),)


def test_a_setting_in_another_case_is_another_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("molecule_llm_billing_mode", "byok")

    assert load_settings(LOCAL).org_default is None


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BILLING_GRPC_LISTEN", "MOLECULE_LLM_BILLING_MODE"):
        monkeypatch.setenv(name, "")

    settings = load_settings({**LOCAL, "MOLECULE_LLM_BILLING_MODE_FILE": "/etc/mode"})

    assert settings.database_url is None
    assert settings.org_default_file == Path("/etc/mode")
    assert settings.listen == (TcpAddress("127.0.0.1", 50051),)


PROBLEMS: dict[str, tuple[dict[str, str], str, str]] = {
    "nobody may call": (
        {"BILLING_GRPC_LOCAL_ADMIN": "off", "DATABASE_URL": "postgresql://db/x"},
        "BILLING_GRPC_TOKENS_FILE",
        "(tokens), with BILLING_GRPC_TLS_CLIENT_CA (client certificates), or, on a laptop, BILLING_GRPC_LOCAL_ADMIN=on",
    ),
    "a forgotten database": (
        {"BILLING_GRPC_LOCAL_ADMIN": "off", "BILLING_GRPC_TOKENS_FILE": "{tokens}"},
        "DATABASE_URL",
        "LOCAL_ADMIN=on",
    ),
    "a client CA without roles": (
        {"BILLING_GRPC_TLS_CLIENT_CA": "{ca}"},
        "BILLING_GRPC_TOKENS_FILE",
        "roles",
    ),
    "a certificate without its key": (
        {"BILLING_GRPC_TLS_CERT": "{certificate}"},
        "BILLING_GRPC_TLS_KEY",
        "go together",
    ),
    "a key without its certificate": ({"BILLING_GRPC_TLS_KEY": "{key}"}, "BILLING_GRPC_TLS_KEY", "go together"),
    "tls without a certificate": ({"BILLING_GRPC_LISTEN": "tls://127.0.0.1:1"}, "BILLING_GRPC_LISTEN", "TLS_CERT"),
    "mtls without a client CA": (
        {**TLS, **TOKENS, "BILLING_GRPC_LISTEN": "mtls://127.0.0.1:1"},
        "BILLING_GRPC_LISTEN",
        "BILLING_GRPC_TLS_CLIENT_CA",
    ),
    "tokens in plain text": (
        {**TOKENS, "BILLING_GRPC_LISTEN": "10.0.0.1:1"},
        "BILLING_GRPC_LISTEN",
        "BILLING_GRPC_ALLOW_TOKENS_IN_PLAINTEXT",
    ),
    "tls beyond loopback under local admin": (
        {**TLS, "BILLING_GRPC_LISTEN": "tls://10.0.0.1:1"},
        "BILLING_GRPC_LISTEN",
        "every caller is admin",
    ),
    "a socket mode that is none": ({"BILLING_GRPC_UNIX_MODE": "rw"}, "BILLING_GRPC_UNIX_MODE", "octal"),
    "no calls at all": ({"BILLING_GRPC_MAX_CONCURRENT_CALLS": "0"}, "BILLING_GRPC_MAX_CONCURRENT_CALLS", "greater"),
    "an age beyond what gRPC counts": (
        {"BILLING_GRPC_MAX_CONNECTION_AGE": "2592000"},
        "BILLING_GRPC_MAX_CONNECTION_AGE",
        "less than or equal",
    ),
    "more streams than gRPC counts": (
        {"BILLING_GRPC_MAX_STREAMS": "3000000000"},
        "BILLING_GRPC_MAX_STREAMS",
        "less than or equal",
    ),
    "an age that never comes": (
        {"BILLING_GRPC_MAX_CONNECTION_AGE": "inf"},
        "BILLING_GRPC_MAX_CONNECTION_AGE",
        "number",
    ),
    "a switch that is neither": ({"BILLING_GRPC_LOCAL_ADMIN": "yes"}, "BILLING_GRPC_LOCAL_ADMIN", "on or off"),
    "a switch of capitals": ({"BILLING_GRPC_REFLECTION": "ON"}, "BILLING_GRPC_REFLECTION", "on or off"),
    "every interface": ({"BILLING_GRPC_LISTEN": "0.0.0.0:1"}, "BILLING_GRPC_LISTEN", "loopback"),
    "every IPv6 interface": ({"BILLING_GRPC_LISTEN": "[::]:1"}, "BILLING_GRPC_LISTEN", "loopback"),
    "another machine's name": ({"BILLING_GRPC_LISTEN": "example:1"}, "BILLING_GRPC_LISTEN", "loopback"),
    "one open address among closed ones": (
        {"BILLING_GRPC_LISTEN": "127.0.0.1:1,10.0.0.1:1"},
        "BILLING_GRPC_LISTEN",
        "10.0.0.1:1",
    ),
    "two wrong addresses": ({"BILLING_GRPC_LISTEN": "one,127.0.0.1:1,two"}, "BILLING_GRPC_LISTEN", "'two' is not"),
    "no port": ({"BILLING_GRPC_LISTEN": "127.0.0.1"}, "BILLING_GRPC_LISTEN", "host:port"),
    "port too large": ({"BILLING_GRPC_LISTEN": "127.0.0.1:65536"}, "BILLING_GRPC_LISTEN", "65535"),
    "relative socket": ({"BILLING_GRPC_LISTEN": "unix:billing.sock"}, "BILLING_GRPC_LISTEN", "absolute path"),
    "socket path too long": ({"BILLING_GRPC_LISTEN": "unix:/" + "x" * 120}, "BILLING_GRPC_LISTEN", "100 bytes"),
    "socket path with an escape": (
        {"BILLING_GRPC_LISTEN": "unix:/run/a%41.sock"},
        "BILLING_GRPC_LISTEN",
        "percent sign",
    ),
    "no watchers at all": ({"BILLING_GRPC_MAX_WATCHERS": "0"}, "BILLING_GRPC_MAX_WATCHERS", "greater"),
    "only commas": ({"BILLING_GRPC_LISTEN": " , "}, "BILLING_GRPC_LISTEN", "at least one"),
    "no time for storage": ({"BILLING_GRPC_STORAGE_TIMEOUT": "0"}, "BILLING_GRPC_STORAGE_TIMEOUT", "greater than 0"),
    "time that is none": ({"BILLING_GRPC_STORAGE_TIMEOUT": "nan"}, "BILLING_GRPC_STORAGE_TIMEOUT", "finite"),
    "a reserved extra key": (
        {"BILLING_GRPC_EXTRA_BLOCKED_KEYS": "molecule_llm_x"},
        "BILLING_GRPC_EXTRA_BLOCKED_KEYS",
        "MOLECULE_LLM_*",
    ),
    "a set that is none": ({"BILLING_GRPC_BLOCKED_KEYS": "all"}, "BILLING_GRPC_BLOCKED_KEYS", "'core', 'agents' or"),
    "an extra key that is no name": (
        {"BILLING_GRPC_EXTRA_BLOCKED_KEYS": "A B"},
        "BILLING_GRPC_EXTRA_BLOCKED_KEYS",
        "'A B'",
    ),
    "two org defaults": (
        {"MOLECULE_LLM_BILLING_MODE": "byok", "MOLECULE_LLM_BILLING_MODE_FILE": "/x"},
        "MOLECULE_LLM_BILLING_MODE_FILE",
        "not both",
    ),
    "an address that libpq does not understand": (
        {"DATABASE_URL": "postgresql://u:s3cret@h/d?nonsense=1"},
        "DATABASE_URL",
        "libpq",
    ),
    "a tokens file that is not there": (
        {"BILLING_GRPC_TOKENS_FILE": "/nowhere"},
        "BILLING_GRPC_TOKENS_FILE",
        "No such",
    ),
    "a certificate that is not there": (
        {**TLS, "BILLING_GRPC_TLS_CERT": "/nowhere"},
        "BILLING_GRPC_TLS_CLIENT_CA",
        "/nowhere: No such",
    ),
    "a certificate in place of its key": (
        {**TLS, "BILLING_GRPC_TLS_KEY": "{certificate}"},
        "BILLING_GRPC_TLS_CLIENT_CA",
        "unencrypted key",
    ),
    "workers on a socket": (
        {"BILLING_GRPC_WORKERS": "2", "BILLING_GRPC_LISTEN": "127.0.0.1:0,unix:/run/billing.sock"},
        "BILLING_GRPC_WORKERS",
        "cannot share unix:/run/billing.sock: use TCP addresses alone, or 1",
    ),
    "no worker": ({"BILLING_GRPC_WORKERS": "0"}, "BILLING_GRPC_WORKERS", "greater than or equal to 1"),
    "no connection": ({"BILLING_GRPC_DATABASE_CONNECTIONS": "0"}, "BILLING_GRPC_DATABASE_CONNECTIONS", "greater"),
    "a delay before the signal": ({"BILLING_GRPC_DRAIN_DELAY": "-1"}, "BILLING_GRPC_DRAIN_DELAY", "greater"),
    "a delay without an end": ({"BILLING_GRPC_DRAIN_DELAY": "inf"}, "BILLING_GRPC_DRAIN_DELAY", "number"),
    "another database": ({"DATABASE_URL": "mysql://u:s3cret@h/d"}, "DATABASE_URL", "postgresql://"),
    "a metrics address that is none": ({"BILLING_GRPC_METRICS_LISTEN": "9464"}, "BILLING_GRPC_METRICS_LISTEN", "host:"),
    "a TLS version of the database": (
        {"DATABASE_URL": "postgresql://u@h/d?ssl_min_protocol_version=s3cret"},
        "DATABASE_URL",
        "ssl_min_protocol_version must be one of",
    ),
    "a way to log in to the database": (
        {"DATABASE_URL": "postgresql://u@h/d?require_auth=md5,s3cret"},
        "DATABASE_URL",
        "require_auth must be a list of",
    ),
    "an address of the database": (
        {"DATABASE_URL": "postgresql://u@h/d?hostaddr=s3cret"},
        "DATABASE_URL",
        "hostaddr must be an IP address",
    ),
    "an unknown level": ({"BILLING_GRPC_LOG_LEVEL": "loud"}, "BILLING_GRPC_LOG_LEVEL", "'DEBUG'"),
    "an unknown format": ({"BILLING_GRPC_LOG_FORMAT": "xml"}, "BILLING_GRPC_LOG_FORMAT", "'json'"),
}


@pytest.mark.parametrize(("given", "setting", "says"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_wrong_setting_is_named_with_its_remedy(
    given: dict[str, str], setting: str, says: str, files: dict[str, Path]
) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(filled({**LOCAL, **given}, files))

    (problem,) = refused.value.problems
    assert problem.startswith(f"{setting}: ")
    assert says in problem
    assert "s3cret" not in problem


def test_several_workers_are_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SettingsError, match=r"BILLING_GRPC_WORKERS: .* on Linux only: use 1"):
        load_settings({**LOCAL, "BILLING_GRPC_WORKERS": "2"})
    assert load_settings(LOCAL).workers == 1


def test_running_calls_get_what_storage_may_take_and_a_little_unless_told_otherwise() -> None:
    assert load_settings({**LOCAL, "BILLING_GRPC_STORAGE_TIMEOUT": "3"}).grace == 3.5
    assert load_settings({**LOCAL, "BILLING_GRPC_DRAIN_GRACE": "0"}).grace == 0


def test_all_problems_are_reported_at_once_and_no_secret_with_them() -> None:
    wrong = {
        "DATABASE_URL": "postgresql://u:s3cret@h/d?nonsense=1",
        "BILLING_GRPC_TOKENS_FILE": "/nowhere",
        "BILLING_GRPC_LISTEN": "nonsense",
        "BILLING_GRPC_STORAGE_TIMEOUT": "soon",
        "BILLING_GRPC_TLS_KEY": "/key",
        "BILLING_GRPC_LOCAL_ADMIN": "off",
        "BILLING_GRPC_EXTRA_BLOCKED_KEYS": "MOLECULE_LLM_X",
        "MOLECULE_LLM_BILLING_MODE": "byok",
        "MOLECULE_LLM_BILLING_MODE_FILE": "/mode",
        "BILLING_GRPC_LOG_LEVEL": "loud",
    }

    with pytest.raises(SettingsError) as refused:
        load_settings(wrong)

    named = set(wrong) - {"BILLING_GRPC_LOCAL_ADMIN", "MOLECULE_LLM_BILLING_MODE"}
    assert {problem.split(":")[0] for problem in refused.value.problems} == named
    assert "s3cret" not in str(refused.value)


def test_the_same_addresses_are_fine_where_tokens_do_not_travel_in_plain_text(files: dict[str, Path]) -> None:
    for listen in ("tls://10.0.0.1:1", "127.0.0.1:1", "unix:/run/x.sock", "mtls://[::]:1"):
        given = {**TOKENS, **TLS, "BILLING_GRPC_TLS_CLIENT_CA": "{ca}", "BILLING_GRPC_LISTEN": listen}
        assert str(load_settings(filled(given, files)).listen[0]) == listen
    allowed = {**TOKENS, "BILLING_GRPC_ALLOW_TOKENS_IN_PLAINTEXT": "on", "BILLING_GRPC_LISTEN": "10.0.0.1:1"}
    assert str(load_settings(filled(allowed, files)).listen[0]) == "10.0.0.1:1"


def test_every_limit_is_a_setting_with_the_limits_default() -> None:
    assert load_settings(LOCAL).limits() == Limits()
    assert load_settings({**LOCAL, "BILLING_GRPC_MAX_CONNECTION_AGE": "60"}).limits() == Limits(max_connection_age=60)


def test_a_limit_is_read_under_its_settings_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("max_streams", "7")
    assert load_settings(LOCAL).limits() == Limits()


def test_migrate_needs_a_database_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        load_database_url(None)
    monkeypatch.setenv("BILLING_GRPC_LISTEN", "nonsense")
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/one")
    assert load_database_url(None) == "postgresql://db/one"
    assert load_database_url("host=/run dbname=two") == "host=/run dbname=two"
