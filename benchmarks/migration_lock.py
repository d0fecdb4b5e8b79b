"""How long `migrate up` makes others wait on a table of a million rows, beside what a plain CHECK would do."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg

from billing_grpc.storage import migrations

ROWS: Final = 1_000_000
PADDING: Final = 1000
_SCANNING: Final = (
    b"ALTER TABLE workspaces ADD COLUMN llm_billing_mode TEXT"
    b" CHECK (llm_billing_mode IS NULL OR llm_billing_mode IN ('platform_managed', 'byok', 'disabled'))"
)
_TABLE: Final = b"CREATE TABLE workspaces (id uuid PRIMARY KEY, name text, updated_at timestamptz DEFAULT now())"
_FILL: Final = """
INSERT INTO workspaces (id, name)
SELECT gen_random_uuid(), repeat(md5(random()::text), %s) FROM generate_series(1, %s)
"""
_READ: Final = b"SELECT name FROM workspaces WHERE id = '00000000-0000-4000-8000-000000000000'"
_WRITE: Final = b"UPDATE workspaces SET updated_at = now() WHERE id = '00000000-0000-4000-8000-000000000000'"


def longest_waits(url: str) -> Iterator[dict[str, Any]]:
    """Yield the seconds of our migrations, and the longest read and write beside them; then those of a CHECK that scans."""
    _execute(url, _TABLE)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_FILL, [PADDING // 32, ROWS])
    yield {"way": "migrate up", **_beside(url, lambda: migrations.up(url))}
    migrations.down(url, every=True)
    yield {"way": "a CHECK that scans", **_beside(url, lambda: _execute(url, _SCANNING))}


def _beside(url: str, work: Callable[[], object]) -> dict[str, float]:
    ended = threading.Event()
    longest = {_READ: 0.0, _WRITE: 0.0}

    def repeat(statement: bytes) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not ended.is_set():
                started = time.perf_counter()
                connection.execute(statement)
                longest[statement] = max(longest[statement], time.perf_counter() - started)

    others = [threading.Thread(target=repeat, args=[statement]) for statement in longest]
    for other in others:
        other.start()
    time.sleep(1)
    longest.update(dict.fromkeys(longest, 0.0))
    started = time.perf_counter()
    work()
    took = time.perf_counter() - started
    ended.set()
    for other in others:
        other.join()
    return {
        name: round(value, 3)
        for name, value in (("took_s", took), ("read_s", longest[_READ]), ("write_s", longest[_WRITE]))
    }


def _execute(url: str, statement: bytes) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
