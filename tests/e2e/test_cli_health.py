"""`billing-grpc watch-health` against a server that comes and goes."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from tests.support.commands import COMMAND, Changes, billing_grpc, environment
from tests.support.odd_server import answering
from tests.support.polling import PATIENCE, until
from tests.support.ports import free_port
from tests.support.servers import Serve

REFUSED, UNAVAILABLE, INTERRUPTED = 1, 3, 130
SERVICE: Final = "molecule.billing.v1.BillingModeService"


@contextmanager
def watching(out: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with out.open("wb") as stdout:
        process = subprocess.Popen(
            [*COMMAND, "watch-health", *arguments], env=environment(), stdout=stdout, stderr=subprocess.PIPE
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def statuses(out: Path) -> list[str]:
    return [json.loads(line)["status"] for line in out.read_text().split("\n")[:-1]]


def test_each_change_is_a_line_also_while_the_server_is_away(serve: Serve, database_url: str, tmp_path: Path) -> None:
    settings: Changes = {"DATABASE_URL": database_url, "BILLING_GRPC_LISTEN": f"127.0.0.1:{free_port()}"}
    server = serve(settings=settings)
    out = tmp_path / "out"
    with watching(out, SERVICE, "--json", "--address", server.address) as process:
        until(lambda: statuses(out) == ["SERVING"])
        server.stop()
        until(lambda: statuses(out)[-1] == "UNREACHABLE")
        # It tries every second, and says so once.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.5)
        serve(settings=settings)
        until(lambda: statuses(out)[-1] == "SERVING")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)

    assert (process.returncode, stderr.strip()) == (INTERRUPTED, b"")
    seen = statuses(out)
    assert [each for each in seen if each != "NOT_SERVING"] == ["SERVING", "UNREACHABLE", "SERVING"]
    assert all(one != other for one, other in pairwise(seen))
    first = json.loads(out.read_text().splitlines()[0])
    assert first["service"] == SERVICE
    assert first["time"].endswith("Z")


def test_asked_once_it_tells_by_its_exit_code(serve: Serve, database_url: str) -> None:
    server = serve(settings={"DATABASE_URL": database_url})
    asked = ("--address", server.address, "watch-health", "--once")
    serving, unknown = billing_grpc(*asked), billing_grpc(*asked, "another.Service")
    server.stop()
    gone = billing_grpc(*asked)

    assert (serving.returncode, serving.stdout.split("\t")[1], serving.stderr) == (0, "SERVING\n", "")
    assert (unknown.returncode, unknown.stdout) == (REFUSED, "")
    assert unknown.stderr == "billing-grpc: NOT_FOUND: the server has no service of this name\n"
    assert (gone.returncode, gone.stdout.split("\t")[1]) == (UNAVAILABLE, "UNREACHABLE\n")
    assert gone.stderr.count("\n") == 1


def test_a_service_that_is_not_there_is_watched_until_it_is(serve: Serve, database_url: str, tmp_path: Path) -> None:
    server = serve(settings={"DATABASE_URL": database_url})
    out = tmp_path / "out"
    with watching(out, "another.Service", "--json", "--address", server.address) as process:
        until(lambda: statuses(out) == ["SERVICE_UNKNOWN"])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert statuses(out) == ["SERVICE_UNKNOWN"]


@pytest.mark.parametrize("answer", [b"\xff\xff", b"\x08\x63"], ids=["no message", "a status of another version"])
def test_a_status_that_cannot_be_understood_is_not_serving(answer: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with answering(lambda _: answer) as address:
        once = billing_grpc("--address", address, "watch-health", "--once")
        with watching(out, "--json", "--address", address):
            until(lambda: out.read_bytes().endswith(b"\n"))

    assert (once.returncode, once.stdout.split("\t")[1], once.stderr) == (UNAVAILABLE, "UNKNOWN\n", "")
    assert statuses(out)[0] == "UNKNOWN"
