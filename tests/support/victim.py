"""A Postgres server to be hurt."""

import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from billing_grpc.storage import migrations
from billing_grpc.storage.embedded import EmbeddedPostgres
from tests.places import place_for_databases
from tests.support.postgres_processes import process_ids


@dataclass
class Victim:
    """A Postgres server to be hurt, reached by a path that survives its restarts."""

    server: EmbeddedPostgres
    sockets: Path
    url: str = ""

    def start(self) -> None:
        """Starts it, and points the path to where its socket now is."""
        self.server.start()
        given = conninfo_to_dict(self.server.url)
        self.sockets.unlink(missing_ok=True)
        self.sockets.symlink_to(str(given["host"]))
        self.url = make_conninfo(self.server.url, host=os.fspath(self.sockets))

    @property
    def service_url(self) -> str:
        """The address for the role that the service has in production."""
        return make_conninfo(self.url, user=migrations.SERVICE_ROLE)

    def kill(self) -> None:
        """Ends every process of it, without a word; returns when the first of them is gone."""
        for pid in process_ids(self.server):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self.server.pid is not None:
            time.sleep(0.01)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """A time in which connections stand, and new ones are accepted, but nothing answers."""
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGSTOP)  # first, or it starts others meanwhile
        stopped = process_ids(self.server)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@contextmanager
def running_victim(*, durable: bool = False) -> Iterator[Victim]:
    """A migrated server with the service's role, removed at the end."""
    place = place_for_databases()
    name = f"billing-faults-{uuid.uuid4().hex[:8]}"
    victim = Victim(EmbeddedPostgres(place / name, durable=durable), place / f"{name}.s")
    try:
        victim.start()
        migrations.up(victim.url)
        migrations.run_script(victim.url, migrations.grants())
        with psycopg.connect(victim.url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")  # a kill may take the last commits of a server that is not durable
        yield victim
    finally:
        victim.server.stop()
        victim.sockets.unlink(missing_ok=True)
        shutil.rmtree(place / name, ignore_errors=True)
