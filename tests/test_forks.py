"""A fork of a process that has loaded the program differs from a start of it in nothing that tests look at."""

import signal
import subprocess
import tempfile
from typing import Final

import pytest

from tests.support import forks
from tests.support.commands import COMMAND, Changes, billing_grpc, environment
from tests.support.polling import PATIENCE

SHOW: Final = "env | sort; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd; pwd; exit 7"
ARGUMENTS: Final = ("--address", "127.0.0.1:1", "run", "--workspace", "", "--retry-for", "0", "--", "sh", "-c", SHOW)
SETTINGS: Final[Changes] = {"BILLING_GRPC_TIMEOUT": "5", "MOLECULE_LLM_TOKEN": "caf\xe9"}

pytestmark = pytest.mark.skipif(not forks.POSSIBLE, reason="this system starts the program each time")


def test_a_fork_hands_on_what_a_started_process_would() -> None:
    started = subprocess.run(
        [*COMMAND, *ARGUMENTS],
        env=environment(SETTINGS),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    forked = billing_grpc(*ARGUMENTS, settings=SETTINGS)

    assert (forked.returncode, forked.stdout, forked.stderr) == (7, started.stdout, started.stderr)


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
