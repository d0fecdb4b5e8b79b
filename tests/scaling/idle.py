"""Measure what an organisation's two servers cost while they answer no call: processor time, memory, connections."""

import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import psutil
import psycopg
from prometheus_client.parser import text_string_to_metric_families

from tests.support.postgres_processes import process_ids
from tests.support.servers import Server, serving
from tests.support.victim import Victim, running_victim

SECONDS: Final = 30.0
SETTLING: Final = 5.0
SERVERS: Final = 2

POOLS: Final = (8, 2)
"""Values of `BILLING_GRPC_DATABASE_CONNECTIONS`."""

_HEAD: Final = """\
| `BILLING_GRPC_DATABASE_CONNECTIONS` | connections | CPU, m | CPU of Postgres, m | memory, MB | series of metrics |
|---|---|---|---|---|---|"""


def rate_of(processes: Sequence[int]) -> float:
    """The thousandths of a core that processes use together, over some time."""

    def used() -> float:
        times = [psutil.Process(pid).cpu_times() for pid in processes]
        return sum(each.user + each.system for each in times)

    before = used()
    time.sleep(SECONDS)
    return 1000 * (used() - before) / SECONDS


def series(server: Server) -> int:
    """How many series it exposes."""
    address = server.logged("metrics exposed")["address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as exposed:
        text = exposed.read().decode()
    return sum(len(family.samples) for family in text_string_to_metric_families(text))


def row(victim: Victim, connections: int, alone: float) -> str:
    """One row of the table; `alone` is what Postgres uses without a server."""
    settings = {
        "DATABASE_URL": victim.service_url,
        "BILLING_GRPC_DATABASE_CONNECTIONS": str(connections),
        "BILLING_GRPC_METRICS_LISTEN": "127.0.0.1:0",
    }
    with ExitStack() as stack:
        serve = stack.enter_context(serving())
        servers = [serve(settings=settings) for _ in range(SERVERS)]
        for server in servers:
            server.logged("database ready")
        time.sleep(SETTLING)
        pids = [server.pid for server in servers]
        cpu = rate_of(pids)
        of_postgres = rate_of(process_ids(victim.server)) - alone
        memory = sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6
        with psycopg.connect(victim.url) as owner:
            (held,) = owner.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'billing_grpc%'"
            ).fetchone() or (0,)
        exposed = sum(map(series, servers))
    return f"| {connections} | {held} | {cpu:.1f} | {of_postgres:.1f} | {memory:.0f} | {exposed} |"


def table() -> str:
    """The table for the page."""
    with running_victim() as victim:
        time.sleep(SETTLING)
        alone = rate_of(process_ids(victim.server))
        return "\n".join([_HEAD, *(row(victim, each, alone) for each in POOLS)])
