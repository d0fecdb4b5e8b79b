"""Measure how long `migrate up` makes others wait on a table of a million rows, and how long a plain CHECK would.

Print the longest single wait of a reader and of a writer that never stop: while the migrations run, and while the same
column is added with a CHECK that scans. Run by `make benchmark`.
"""

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psycopg

from billing_grpc.storage import migrations
from billing_grpc.storage.embedded import EmbeddedPostgres

ROWS: Final = 1_000_000
PADDING: Final = 1000
SCANNING: Final = (
    b"ALTER TABLE workspaces ADD COLUMN llm_billing_mode TEXT"
    b" CHECK (llm_billing_mode IS NULL OR llm_billing_mode IN ('platform_managed', 'byok', 'disabled'))"
)
TABLE: Final = b"CREATE TABLE workspaces (id uuid PRIMARY KEY, name text, updated_at timestamptz DEFAULT now())"
FILL: Final = """
INSERT INTO workspaces (id, name)
SELECT gen_random_uuid(), repeat(md5(random()::text), %s) FROM generate_series(1, %s)
"""
READ: Final = b"SELECT name FROM workspaces WHERE id = '00000000-0000-4000-8000-000000000000'"
WRITE: Final = b"UPDATE workspaces SET updated_at = now() WHERE id = '00000000-0000-4000-8000-000000000000'"


def longest_waits(url: str, work: Callable[[], object]) -> tuple[float, float, float]:
    """Return how long `work` took, and the longest read and write during it, in seconds."""
    ended = threading.Event()
    longest = {READ: 0.0, WRITE: 0.0}

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
    return took, longest[READ], longest[WRITE]


def execute(url: str, statement: bytes) -> None:
    """Run one statement of our own."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def main() -> None:
    """Fill a table, measure both ways, and print the table of waits."""
    directory = Path(tempfile.gettempdir()) / f"billing-grpc-benchmark-{uuid.uuid4().hex[:8]}"
    try:
        with EmbeddedPostgres(directory, durable=False) as postgres:
            execute(postgres.url, TABLE)
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                connection.execute(FILL, [PADDING // 32, ROWS])
            ours = longest_waits(postgres.url, lambda: migrations.up(postgres.url))
            migrations.down(postgres.url, every=True)
            scanning = longest_waits(postgres.url, lambda: execute(postgres.url, SCANNING))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{ROWS} rows of {PADDING} bytes; seconds\n\n    took  longest read  longest write")
    for name, (took, read, write) in (("migrate up", ours), ("a CHECK that scans", scanning)):
        print(f"{took:8.3f}  {read:12.3f}  {write:13.3f}  {name}")


if __name__ == "__main__":
    main()
