"""A fork of a process that has loaded the program differs from a start of it in nothing that tests look at."""

import signal
import subprocess
import tempfile
import time
from typing import Final

import psutil
import pytest

from tests.support import forks
from tests.support.commands import COMMAND, Changes, environment
from tests.support.polling import PATIENCE
from tests.support.servers import serving

SHOW: Final = "env | sort; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd; pwd; exit 7"
SETTINGS: Final[Changes] = {"BILLING_GRPC_TIMEOUT": "5", "MOLECULE_LLM_TOKEN": "caf\xe9"}

# id: arguments, exit code
RUNS: Final = {
    "another program": (
        ("--address", "127.0.0.1:1", "run", "--workspace", "", "--retry-for", "0"),
        ("sh", "-c", SHOW),
        7,
    ),
    "an error": (("resolve", "no-id"), (), 2),
    "an answer": (("completion", "bash"), (), 0),
}

pytestmark = pytest.mark.skipif(not forks.POSSIBLE, reason="this system starts the program each time")


@pytest.mark.parametrize(("arguments", "program", "code"), RUNS.values(), ids=RUNS)
def test_a_fork_says_hands_on_and_ends_as_a_started_process_would(
    arguments: tuple[str, ...], program: tuple[str, ...], code: int
) -> None:
    command = [*arguments, *(("--", *program) if program else ())]
    variables = environment(SETTINGS)
    started = subprocess.run(
        [*COMMAND, *command],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
    )
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        fork = forks.Fork(command, variables, stdout=reader.stdin, stderr=reader.stdin)
        said, _ = reader.communicate(timeout=PATIENCE)

    assert (fork.wait(PATIENCE), said) == (started.returncode, started.stdout)
    assert started.returncode == code


def open_files(pid: int) -> int:
    """How many files a process has open when it tries to reach no database."""
    counted = []
    for _ in range(20):
        counted.append(psutil.Process(pid).num_fds())
        time.sleep(0.02)
    return min(counted)


def test_a_fork_that_serves_has_no_file_open_that_another_server_has_not() -> None:
    settings: Changes = {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}
    with serving() as serve:
        serve(settings=settings)
        forked, started = serve(settings=settings), serve(settings={**settings, "LC_ALL": "C.UTF-8"})
        assert isinstance(forked.process, forks.Fork)
        assert not isinstance(started.process, forks.Fork)
        assert open_files(forked.pid) == open_files(started.pid)


def test_a_fork_that_a_signal_ends_says_by_which() -> None:
    with tempfile.TemporaryFile() as out:
        fork = forks.Fork(["serve"], environment({"DATABASE_URL": "postgresql:///"}), stdout=out, stderr=out)
        assert fork.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            fork.wait(0)
        fork.kill()
        assert fork.wait(PATIENCE) == fork.poll() == -signal.SIGKILL


@pytest.mark.parametrize("name", ["GRPC_VERBOSITY", "LC_ALL", "PYTHONUTF8", "PROMETHEUS_MULTIPROC_DIR"])
def test_what_is_read_when_it_is_loaded_needs_a_start(name: str) -> None:
    assert forks.is_enough(environment(SETTINGS))
    assert not forks.is_enough(environment({name: "1"}))
