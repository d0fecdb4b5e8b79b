"""The blocking client in forked processes and greenlets: it works, or says CLIENT_MISUSED within its time."""

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.support.forking import run_forking
from tests.support.polling import PATIENCE, until

BYOK: Final = "byok None"
MISUSED: Final = "platform_managed CLIENT_MISUSED"
UNREACHABLE: Final = "platform_managed SERVER_UNREACHABLE"
WORKSPACE: Final = "7f1fc6a0-0000-4000-8000-00000000000a"

# What a module of an application holds: a client that is made when the module is imported.
APPLICATION: Final = f"""
import logging, os, sys
from billing_grpc import sync
from billing_grpc.conformance.cases import METADATA_KEY
logging.getLogger("billing_grpc.client").disabled = True
WORKSPACE = "{WORKSPACE}"
BYOK, HANGS = "resolution/set-byok-org-default-unset", "closed/resolve-deadline"

def client(case=BYOK):
    return sync.BillingClient(sys.argv[1], metadata=[(METADATA_KEY, case)], timeout=2)

def ask(of):
    answer = of.resolve(WORKSPACE)
    return f"{{answer.mode}} {{answer.error and answer.error.reason}}"
"""

PRELUDE: Final = f"""{APPLICATION}
import asyncio, threading, time
from billing_grpc.client import BillingClient, endpoint, forked

def say(text):
    print(text, flush=True)

def in_child(act):
    pid = os.fork()
    if not pid:
        act()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

async def ask_on_a_loop(case=BYOK):
    async with BillingClient(sys.argv[1], metadata=[(METADATA_KEY, case)], timeout=2) as of:
        answer = await of.resolve(WORKSPACE)
        return f"{{answer.mode}} {{answer.error and answer.error.reason}}"
"""

# A child that shared the connection of its parent lost its first attempt one time in twelve; so many, and no retries.
FORKED_AFTER_USE: Final = """
endpoint.service_config.channel_options = list
shared = client()
ask(shared)
for _ in range(60):
    in_child(lambda: say(ask(shared)))
in_child(lambda: in_child(lambda: say(ask(shared))))
in_child(lambda: say(ask(client())))
in_child(lambda: say(asyncio.run(ask_on_a_loop())))
in_child(shared.close)
def ask_on_a_thread():
    thread = threading.Thread(target=lambda: say(ask(shared)))
    thread.start()
    thread.join()
in_child(ask_on_a_thread)
say(ask(shared))
"""

FORKED_AFTER_CLOSING: Final = """
shared = client()
ask(shared)
shared.close()
in_child(lambda: say(ask(shared)))
"""

FORKED_WHILE_CALLS_RUN: Final = """
shared = client()
over = threading.Event()
def keep_asking():
    while not over.is_set():
        if (answer := ask(shared)) != "byok None":
            say(answer)
threads = [threading.Thread(target=keep_asking) for _ in range(4)]
for each in threads:
    each.start()
for _ in range(40):
    in_child(lambda: say(ask(shared)))
over.set()
for each in threads:
    each.join()
"""

FORKED_WHILE_A_CALL_HANGS: Final = """
def hang():
    say(ask(client(HANGS)))
def start(seconds):
    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.5)
    forked._FORK_PATIENCE = seconds
    return thread
start(10)
in_child(lambda: say(ask(client())))
thread = start(0.1)
in_child(lambda: say(ask(client())))
in_child(lambda: in_child(lambda: say(asyncio.run(ask_on_a_loop()))))
thread.join()
say(ask(client()))
"""

# A signal's handler runs in the middle of the call of the main thread, and a fork in it must not wait for that call.
FORKED_BY_A_SIGNAL_IN_A_CALL: Final = """
import signal
def fork(*_):
    began = time.monotonic()
    in_child(lambda: say(ask(client())))
    assert time.monotonic() - began < 4
signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.5)
say(ask(client(HANGS)))
"""

FORKED_AFTER_ASYNCIO: Final = """
shared = client()
asyncio.run(ask_on_a_loop())
began = time.monotonic()
def child():
    say(ask(shared))
    shared.close()
    assert time.monotonic() - began < 2
in_child(child)
say(ask(shared))
"""

# So it hangs, too, if code of others used gRPC with asyncio, of which the client knows nothing; but that may crash as well.
GRPC_HANGS_IN_A_FORK: Final = """
shared = client()
ask(shared)
def child():
    for seconds in (2 + 0.5, 0):
        began = time.monotonic()
        say(ask(shared))
        assert time.monotonic() - began < seconds + 2
    shared.close()
in_child(child)
say(ask(shared))
"""

# What a call needs is held for a while, as if gRPC or the machine stood still.
LATE_ONCE: Final = """
def child():
    shared = client()
    (dialer,) = shared._methods._calls._dialers.values()
    with dialer._lock:
        for seconds in (2 + 0.5, 0):
            began = time.monotonic()
            say(ask(shared))
            assert time.monotonic() - began < seconds + 2
    time.sleep(0.5)
    say(ask(shared))
in_child(child)
"""

# Another thread of the parent, which the child lacks, will never release it.
FORKED_WHILE_A_LOCK_IS_HELD: Final = """
shared = client()
(dialer,) = shared._methods._calls._dialers.values()
with dialer._lock:
    in_child(lambda: say(ask(shared)))
"""

# Another library's handler of forks takes long; it runs after the client's own, because it was registered before it.
A_HANDLER_OF_OTHERS_IS_SLOW: Final = """
import os, time
os.register_at_fork(before=lambda: time.sleep(4))
"""
ASKED_DURING_A_SLOW_FORK: Final = """
shared = client()
ask(shared)
thread = threading.Thread(target=lambda: in_child(lambda: say(ask(shared))))
thread.start()
time.sleep(0.5)
began = time.monotonic()
answer = ask(shared)
assert time.monotonic() - began < 2 + 0.5
thread.join()
say(answer)
say(ask(shared))
"""

# A time limit of the application ends calls wherever Python runs a signal's handler: where a function begins.
FORKED_AFTER_A_SIGNAL_ENDED_CALLS: Final = """
import contextlib, signal
PLACES = {forked.__file__, threading.__file__, contextlib.__file__}
class TimeLimit(BaseException):
    pass
def end(*_):
    raise TimeLimit
def end_at(count):
    def trace(frame, event, _):
        nonlocal count
        count -= frame.f_code.co_filename in PLACES
        if not count:
            sys.settrace(None)
            signal.raise_signal(signal.SIGALRM)
    return trace
signal.signal(signal.SIGALRM, end)
shared = client()
ask(shared)
ended = 0
for count in range(1, 60):
    sys.settrace(end_at(count))
    try:
        ask(shared)
    except TimeLimit:
        ended += 1
    finally:
        sys.settrace(None)
say(ended > 9)
in_child(lambda: say(ask(shared)))
"""

# As `gunicorn --preload --worker-class=gevent` does.
GREENLETS_IN_A_FORK: Final = """
shared = client()
ask(shared)
def child():
    import gevent
    from gevent import monkey
    monkey.patch_all()
    asking = [gevent.spawn(ask, shared) for _ in range(20)]
    gevent.joinall(asking)
    for each in asking:
        say(each.get())
in_child(child)
say(ask(shared))
"""

# With `init_gevent` a greenlet that waits for an answer lets the others run.
GREENLETS: Final = """
import gevent
from gevent import monkey
monkey.patch_all()
from grpc.experimental.gevent import init_gevent
init_gevent()
shared = client()
hanging = gevent.spawn(ask, client(HANGS))
gevent.sleep(0.2)
asking = [gevent.spawn(ask, shared) for _ in range(20)]
gevent.joinall(asking)
assert not hanging.ready()
for each in [*asking, hanging]:
    say(each.get())
"""

WORK: Final = f"""
{APPLICATION}
import multiprocessing
shared = client()

def work(_):
    return ask(shared)

if __name__ == "__main__":
    print(ask(shared))
    for start in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(start).Pool(2) as pool:
            print(*pool.map(work, range(4)), sep="\\n", flush=True)
    print(ask(shared))
"""

WEB: Final = f"""
{APPLICATION}
shared = client()
in_master = ask(shared)

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{os.getpid()}} {{in_master}} {{ask(shared)}}".encode()]
"""

TASKS: Final = f"""
{APPLICATION}
import celery
shared = client()
in_master = ask(shared)
app = celery.Celery("tasks", broker="filesystem://", backend=f"file://{{sys.argv[2]}}")
app.conf.broker_transport_options = {{"data_folder_in": sys.argv[2], "data_folder_out": sys.argv[2]}}

@app.task
def work(number):
    return f"{{os.getpid()}} {{in_master}} {{ask(shared)}}"

if sys.argv[3] == "work":
    app.worker_main(["worker", "--pool=prefork", "--concurrency=2", "--max-tasks-per-child=4", "--loglevel=WARNING",
        "--without-gossip", "--without-mingle", "--without-heartbeat"])
else:
    for each in [work.delay(number) for number in range(16)]:
        print(each.get(timeout=30))
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (FORKED_AFTER_USE, [BYOK] * 65),
        (FORKED_AFTER_CLOSING, [UNREACHABLE]),
        (FORKED_WHILE_CALLS_RUN, [BYOK] * 40),
        (FORKED_WHILE_A_CALL_HANGS, [UNREACHABLE, BYOK, MISUSED, MISUSED, UNREACHABLE, BYOK]),
        (FORKED_BY_A_SIGNAL_IN_A_CALL, [MISUSED, UNREACHABLE]),
        (FORKED_AFTER_ASYNCIO, [MISUSED, BYOK]),
        (GRPC_HANGS_IN_A_FORK, [MISUSED, MISUSED, BYOK]),
        (LATE_ONCE, [MISUSED, MISUSED, BYOK]),
        (FORKED_WHILE_A_LOCK_IS_HELD, [BYOK]),
        (ASKED_DURING_A_SLOW_FORK, [BYOK, UNREACHABLE, BYOK]),
        (FORKED_AFTER_A_SIGNAL_ENDED_CALLS, ["True", BYOK]),
        (GREENLETS_IN_A_FORK, [BYOK] * 21),
    ],
    ids=[
        "after use",
        "after closing",
        "while calls run",
        "while a call hangs",
        "by a signal in a call",
        "after asyncio",
        "gRPC hangs",
        "late once",
        "while a lock is held",
        "slowly",
        "after a signal ended calls",
        "with greenlets",
    ],
)
def test_a_fork_works_or_says_in_time_that_it_cannot(vectors: str, program: str, said: list[str]) -> None:
    hangs = {"GRPC_ENABLE_FORK_SUPPORT": "0"} if program is GRPC_HANGS_IN_A_FORK else {}
    before = A_HANDLER_OF_OTHERS_IS_SLOW if program is ASKED_DURING_A_SLOW_FORK else ""
    ended = run_forking("-c", before + PRELUDE + program, vectors, environment={**os.environ, **hangs})

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == said, ended.stderr


def test_greenlets_ask_while_the_call_of_another_hangs(vectors: str) -> None:
    ended = run_forking("-c", PRELUDE + GREENLETS, vectors)

    assert (ended.returncode, ended.stdout.splitlines()) == (0, [*[BYOK] * 20, UNREACHABLE]), ended.stderr


def test_workers_of_multiprocessing_ask_however_they_are_started(vectors: str, tmp_path: Path) -> None:
    program = tmp_path / "work.py"
    program.write_text(WORK)
    ended = run_forking(program, vectors)

    assert (ended.returncode, ended.stdout.splitlines()) == (0, [BYOK] * 14), ended.stderr


@contextmanager
def running(*command: str | Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends by itself, and soon, when it is asked to."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE / 3) == 0
        except BaseException:
            print((folder / "log").read_text())  # noqa: T201 - pytest shows it
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class OverSocket(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


@pytest.mark.parametrize("options", [(), ("--preload",), ("--preload", "--threads=4")], ids=" ".join)
def test_workers_of_gunicorn_ask(vectors: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "web.py").write_text(WEB.replace("sys.argv[1]", repr(vectors)))
    path = tmp_path / "http"

    def get() -> list[str]:
        connection = OverSocket(path)
        with closing(connection):
            connection.request("GET", "/")
            return connection.getresponse().read().decode().split(" ", 1)

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as attempt:
            return attempt.connect_ex(str(path)) == 0

    command = (sys.executable, "-m", "gunicorn", "web:app", "--workers=2", "--max-requests=8", f"--bind=unix:{path}")
    with running(*command, *options, folder=tmp_path), ThreadPoolExecutor(4) as pool:
        until(listens)
        answers = [each for _ in range(10) for each in pool.map(lambda _: get(), range(4))]

    assert {said for _, said in answers} == {f"{BYOK} {BYOK}"}
    assert len({pid for pid, _ in answers}) > 2, "no worker was replaced"


def test_workers_of_celery_ask(vectors: str, tmp_path: Path) -> None:
    program = tmp_path / "tasks.py"
    program.write_text(TASKS)
    command = (sys.executable, program, vectors, tmp_path)
    # Both leave a folder "control" where they run.
    with subprocess.Popen([*command, "ask"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as asking:
        # The worker starts when all tasks lie there: it loses one that is being written while it looks (kombu 5.7).
        until(lambda: len(list(tmp_path.glob("*.msg"))) == 16)
        with running(*command, "work", folder=tmp_path):
            said, _ = asking.communicate(timeout=PATIENCE)

    answers = [each.split(" ", 1) for each in said.splitlines()]
    assert [said for _, said in answers] == [f"{BYOK} {BYOK}"] * 16
    assert len({pid for pid, _ in answers}) > 2, "no worker was replaced"
