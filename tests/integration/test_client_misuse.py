"""The client on other or no event loops and in forks: it works, or says CLIENT_MISUSED; never a server's reason."""

from typing import Final

import pytest

from tests.support.forking import run_forking

CASE: Final = "resolution/set-byok-org-default-unset"
BYOK: Final = "byok None"
MISUSED: Final = "platform_managed CLIENT_MISUSED"

PRELUDE: Final = f"""
import asyncio, logging, os, sys, threading, time
from billing_grpc.client import BillingClient
from billing_grpc.conformance.cases import METADATA_KEY
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.errors import CallError, ClientMisused
logging.disable(logging.CRITICAL)
WORKSPACE = "7f1fc6a0-0000-4000-8000-00000000000a"

def client():
    return BillingClient(sys.argv[1], metadata=[(METADATA_KEY, "{CASE}")], timeout=2)

async def ask(of):
    answer = await of.resolve(WORKSPACE)
    print(answer.mode, answer.error and answer.error.reason, flush=True)

def in_child(act):
    pid = os.fork()
    if not pid:
        act()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""

EACH_LOOP_ENDED: Final = """
shared = client()
for _ in range(50):
    asyncio.run(ask(shared))
asyncio.run(shared.close())
asyncio.run(ask(shared))
"""

# The loops take turns, and none is closed: of each only the last call's channel lives.
LOOPS_IN_TURN: Final = """
shared = client()
one, two = asyncio.new_event_loop(), asyncio.new_event_loop()
for each in (one, two, one, two):
    each.run_until_complete(ask(shared))
"""

TWO_LOOPS_AT_ONCE: Final = """
shared = client()
loop = asyncio.new_event_loop()
thread = threading.Thread(target=loop.run_forever)
thread.start()
asyncio.run_coroutine_threadsafe(ask(shared), loop).result()
asyncio.run(ask(shared))
async def get():
    try:
        await shared.get(WORKSPACE)
    except ClientMisused as error:
        print("raised", error.reason, flush=True)
asyncio.run(get())
asyncio.run_coroutine_threadsafe(ask(shared), loop).result()
loop.call_soon_threadsafe(loop.stop)
thread.join()
asyncio.run(ask(shared))
"""

FORKED_AFTER_USE: Final = """
shared = client()
asyncio.run(ask(shared))
began = time.monotonic()
def child():
    asyncio.run(ask(shared))
    asyncio.run(ask(client()))
    asyncio.run(shared.close())
    assert time.monotonic() - began < 2
in_child(child)
asyncio.run(ask(shared))
"""

# `asyncio` says of the child that no loop runs in it.
CLOSED_IN_A_FORK_OF_A_COROUTINE: Final = """
async def main():
    shared = client()
    await ask(shared)
    close = shared.close()
    def child():
        try:
            close.send(None)
        except StopIteration:
            print("closed", flush=True)
    in_child(child)
    await close
asyncio.run(main())
"""

FORKED_BEFORE_USE: Final = """
shared = client()
in_child(lambda: asyncio.run(ask(shared)))
in_child(lambda: asyncio.run(ask(shared)))
asyncio.run(ask(shared))
"""

# As trio runs a coroutine.
WITHOUT_A_LOOP: Final = """
async def main():
    shared = client()
    await ask(shared)
    plan = await shared.plan_provision_env(WORKSPACE, retry_for=5)
    print(plan.resolution.mode, plan.resolution.error.reason, flush=True)
    try:
        await shared.get(WORKSPACE)
    except ClientMisused as error:
        print("raised", error.reason, flush=True)
    await shared.close()
try:
    main().send(None)
except StopIteration:
    print("ended", flush=True)
"""

GREENLETS_FOR_THREADS: Final = """
from gevent import monkey
monkey.patch_all()
asyncio.run(ask(client()))
"""

# As it happens where something else had used gRPC before the fork; gRPC may as well end such a process by itself.
NEVER_ENDED_IN_A_FORK: Final = """
async def hang():
    calls = client()._calls
    request = service_pb.ResolveBillingModeRequest()
    stuck = lambda *_, **__: asyncio.get_running_loop().create_future()
    try:
        await calls.call(lambda _: stuck, "ResolveBillingMode", request, timeout=0.1)
    except CallError as error:
        print("raised", error.reason, flush=True)
in_child(lambda: asyncio.run(hang()))
asyncio.run(hang())
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (EACH_LOOP_ENDED, [*[BYOK] * 50, "platform_managed SERVER_UNREACHABLE"]),
        (LOOPS_IN_TURN, [BYOK] * 4),
        (TWO_LOOPS_AT_ONCE, [BYOK, MISUSED, "raised CLIENT_MISUSED", BYOK, BYOK]),
        (FORKED_AFTER_USE, [BYOK, MISUSED, MISUSED, BYOK]),
        (CLOSED_IN_A_FORK_OF_A_COROUTINE, [BYOK, "closed"]),
        (FORKED_BEFORE_USE, [BYOK] * 3),
        (WITHOUT_A_LOOP, [MISUSED, MISUSED, "raised CLIENT_MISUSED", "ended"]),
        (GREENLETS_FOR_THREADS, [MISUSED]),
        (NEVER_ENDED_IN_A_FORK, ["raised CLIENT_MISUSED", "raised SERVER_UNREACHABLE"]),
    ],
    ids=[
        "each loop ended",
        "loops in turn",
        "two loops at once",
        "forked after use",
        "closed in a fork of a coroutine",
        "forked before use",
        "without a loop",
        "greenlets for threads",
        "another's use",
    ],
)
def test_a_client_works_elsewhere_or_says_that_it_is_misused(vectors: str, program: str, said: list[str]) -> None:
    ended = run_forking("-c", PRELUDE + program, vectors)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == said, ended.stderr
