"""When the database becomes known to be down, and when not: the breaker over probes that a test ends."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import pytest

from billing_grpc.errors import DatabaseTimeout, StorageError
from billing_grpc.server.call import current_request_id
from billing_grpc.storage.postgres.breaker import OVERLAP_AFTER, PROBE_EVERY, RIDE_OUT, Breaker
from tests.support.polling import until_true

until: Final = partial(until_true, seconds=10)
Probes = list["asyncio.Future[StorageError | None]"]


@pytest.fixture
def probes() -> Probes:
    """Every probe that has begun; a test says how each ends."""
    return []


@pytest.fixture
async def breaker(probes: Probes) -> AsyncIterator[Breaker]:
    """A breaker that nobody has told anything."""

    async def probe() -> StorageError | None:
        probes.append(asyncio.get_running_loop().create_future())
        return await probes[-1]

    made = Breaker(probe)
    yield made
    for each in probes:
        if not each.done():
            each.set_result(None)
    await made.stop()


async def test_a_probe_that_failed_while_calls_were_answered_changes_nothing(breaker: Breaker, probes: Probes) -> None:
    breaker.start_probing()
    await asyncio.sleep(RIDE_OUT + 0.05)
    breaker.record_success()
    probes[0].set_result(DatabaseTimeout())
    await asyncio.sleep(0.05)
    assert breaker.error is None


async def test_a_probe_that_failed_after_calls_were_answered_counts(breaker: Breaker, probes: Probes) -> None:
    breaker.record_success()
    await asyncio.sleep(0.05)
    breaker.start_probing()
    await asyncio.sleep(RIDE_OUT + 0.05)
    probes[0].set_result(DatabaseTimeout())
    await until(lambda: isinstance(breaker.error, DatabaseTimeout))


async def test_a_probe_that_hangs_is_overtaken_by_one_more_and_not_by_many(breaker: Breaker, probes: Probes) -> None:
    breaker.start_probing()
    await until(lambda: len(probes) == 2)
    await asyncio.sleep(2 * OVERLAP_AFTER + PROBE_EVERY)
    assert len(probes) == 2
    probes[1].set_result(DatabaseTimeout())
    await until(lambda: len(probes) == 3)
    assert breaker.error is not None
    probes[2].set_result(None)
    await until(lambda: breaker.error is None)
    assert not probes[0].done()


async def test_nothing_is_asked_after_the_end(breaker: Breaker, probes: Probes) -> None:
    await breaker.stop()
    breaker.start_probing()
    await asyncio.sleep(0.05)
    assert probes == []
    assert await breaker.wait_until_closed() is False


async def test_a_probe_does_not_bear_the_request_id_of_a_caller() -> None:
    seen: list[str | None] = []

    async def probe() -> StorageError | None:
        seen.append(current_request_id.get(None))
        return None

    breaker, token = Breaker(probe), current_request_id.set("of-a-caller")
    breaker.start_probing()
    await until(lambda: bool(seen))
    current_request_id.reset(token)
    await breaker.stop()
    assert seen == [None]
