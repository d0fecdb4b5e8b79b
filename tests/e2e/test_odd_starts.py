"""Starts in odd surroundings: closed streams, early signals, as a container's first process, without folders."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.support.commands import COMMAND, billing_grpc, environment
from tests.support.polling import PATIENCE, until

NO_DATABASE: Final = "postgresql://x@127.0.0.1:1/x"
EARLY: Final = 30
"""How often SIGHUP is sent while a server starts."""

AS_PID_1: Final = "import os; os.getpid = lambda: 1; from billing_grpc.cli.main import main; main()"


def listens(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, f"exited with {process.returncode}"
    return any(each.status == psutil.CONN_LISTEN for each in psutil.Process(process.pid).net_connections())


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_server_serves_though_standard_streams_are_closed(closed: str) -> None:
    shell = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "serve"]
    with subprocess.Popen(
        shell, env=environment({"DATABASE_URL": NO_DATABASE}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(lambda: listens(process))
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_a_hang_up_while_a_server_starts_or_stops_does_not_end_it() -> None:
    variables = environment({"DATABASE_URL": NO_DATABASE})
    with subprocess.Popen([*COMMAND, "serve"], env=variables, stdout=subprocess.PIPE) as process:
        try:
            until(lambda: ignores_hang_ups(process.pid) or process.poll() is not None)
            for _ in range(EARLY):
                process.send_signal(signal.SIGHUP)
                time.sleep(0.02)
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"listening on ")
            process.terminate()
            while process.poll() is None:
                process.send_signal(signal.SIGHUP)
                time.sleep(0.002)
            assert process.returncode == 0
        finally:
            process.kill()


# Says what SIGHUP would do when the server's modules, which take half a second to load, begin to be.
ASKED_EARLY: Final = """
import signal, sys
class Asks:
    def find_spec(self, name, *_):
        if name in {"click", "billing_grpc.cli.serve"}:
            print(signal.getsignal(signal.SIGHUP).name)
sys.meta_path.insert(0, Asks())
from billing_grpc.__main__ import main
main()
"""


def test_a_hang_up_is_ignored_before_anything_of_a_server_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKED_EARLY, "serve", "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("SIG_IGN\nSIG_IGN\n")


def ignores_hang_ups(pid: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return bool((int(status["SigIgn"], 16) | int(status["SigCgt"], 16)) & 1 << (signal.SIGHUP - 1))


def test_a_containers_first_process_ends_at_sigterm_before_it_becomes_its_command(directory: Path) -> None:
    started = directory / "started"
    arguments = ["run", "--workspace", "", "--retry-for", "60", "--", "touch", str(started)]
    with subprocess.Popen([sys.executable, "-c", AS_PID_1, *arguments], env=environment()) as process:
        try:
            until(lambda: catches_sigterm(process.pid))
            process.terminate()
            assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not started.exists()


def catches_sigterm(pid: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return bool(int(status["SigCgt"], 16) & 1 << (signal.SIGTERM - 1))


def standard_signals(masks: bytes) -> list[int]:
    """The first 31 bits of each mask: what comes after them belongs to the C library."""
    return [int(line.split()[1], 16) & (1 << 31) - 1 for line in masks.splitlines()]


def test_its_command_gets_sigterm_as_if_started_by_hand() -> None:
    arguments = ["run", "--workspace", "", "--retry-for", "0", "--", "grep", "SigCgt\\|SigIgn", "/proc/self/status"]
    as_first = subprocess.run(
        [sys.executable, "-c", AS_PID_1, *arguments], env=environment(), capture_output=True, check=True
    )
    by_hand = subprocess.run(arguments[6:], env=environment(), capture_output=True, check=True)
    assert standard_signals(as_first.stdout) == standard_signals(by_hand.stdout)


def test_workers_run_no_code_of_the_folder_they_are_started_in(tmp_path: Path) -> None:
    (tmp_path / "billing_grpc.py").write_text("open('taken', 'w')")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "billing_grpc", "serve"],
        env=environment({"DATABASE_URL": NO_DATABASE, "BILLING_GRPC_WORKERS": "2"}),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        started = process.stdout.readline()
        process.terminate()
    assert started.startswith(b"listening on ")
    assert not (tmp_path / "taken").exists()


def test_several_workers_without_a_temporary_folder_say_which_setting_helps() -> None:
    nowhere = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/none']; "
    ended = subprocess.run(
        [sys.executable, "-c", nowhere + "from billing_grpc.cli.main import main; main()", "serve"],
        env=environment({"DATABASE_URL": NO_DATABASE, "BILLING_GRPC_WORKERS": "2"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, "TMPDIR" in ended.stderr, "Traceback" in ended.stderr) == (2, True, False)


def test_a_user_without_a_home_hears_where_to_put_the_embedded_database() -> None:
    homeless = "import pathlib\ndef home():\n raise RuntimeError\npathlib.Path.home = home\n"
    ended = subprocess.run(
        [sys.executable, "-c", homeless + "from billing_grpc.cli.main import main; main()", "serve"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, "BILLING_GRPC_DATA_DIR" in ended.stderr, "Traceback" in ended.stderr) == (2, True, False)


def test_a_socket_in_a_folder_that_nobody_may_write_to_is_a_start_up_error() -> None:
    settings = {"DATABASE_URL": NO_DATABASE, "BILLING_GRPC_LISTEN": "unix:/proc/self/fdinfo/socket"}
    ended = billing_grpc("serve", settings=settings)
    assert ended.returncode == 1
    assert "cannot listen on unix:/proc/self/fdinfo/socket" in ended.stderr
    assert "Traceback" not in ended.stderr
