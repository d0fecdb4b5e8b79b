"""When a client's certificate holds: itself, all between it and an authority, and the authority, each at its time."""

import datetime as dt
from typing import Final, NamedTuple

import pytest

from billing_grpc.server.auth.client_certificate import ClientCertificate
from tests.support.certificates import Authority, Issued

NOW: Final = dt.datetime.now(dt.UTC).replace(microsecond=0)
HOUR: Final = dt.timedelta(hours=1)
ROOT: Final = Authority.new("root")
BETWEEN: Final = Authority.new("between", by=ROOT)
SHORT: Final = Authority.new("short", by=ROOT, ends=NOW + HOUR)
NO_AUTHORITY: Final = Authority.new("a certificate of somebody", by=ROOT, may_sign=False)
NAMESAKE: Final = Authority.new("root")
OLD: Final = Authority.new("renewed", ends=NOW - HOUR)
RENEWED: Final = Authority.new("renewed", key=OLD.key)
URI: Final = ("spiffe://example/kiosk",)


class Case(NamedTuple):
    client: Issued
    sent_along: bytes
    authorities: bytes
    holds: bool
    at: dt.datetime = NOW


def of(authority: Authority, ends: dt.datetime = NOW + 3 * HOUR) -> Issued:
    return authority.issue(uris=URI, ends=ends)


PINNED: Final = of(ROOT)

CASES: Final[dict[str, Case]] = {
    "signed by an authority": Case(of(ROOT), b"", NAMESAKE.pem + ROOT.pem, holds=True),
    "at its last moment": Case(of(ROOT), b"", ROOT.pem, holds=True, at=NOW + 3 * HOUR),
    "after its end": Case(of(ROOT), b"", ROOT.pem, holds=False, at=NOW + 3 * HOUR + dt.timedelta(seconds=1)),
    "before it begins": Case(of(ROOT), b"", ROOT.pem, holds=False, at=NOW - dt.timedelta(days=3)),
    "after the end of its authority": Case(of(SHORT), b"", SHORT.pem, holds=False, at=NOW + 2 * HOUR),
    "signed by a namesake of the authority": Case(of(NAMESAKE), b"", ROOT.pem, holds=False),
    "without any authority": Case(of(ROOT), b"", b"", holds=False),
    "through an authority in between": Case(of(BETWEEN), BETWEEN.pem, ROOT.pem, holds=True),
    "through one that was not sent": Case(of(BETWEEN), b"", ROOT.pem, holds=False),
    "through one that has ended": Case(of(SHORT), SHORT.pem, ROOT.pem, holds=False, at=NOW + 2 * HOUR),
    "through a certificate that may not sign": Case(of(NO_AUTHORITY), NO_AUTHORITY.pem, ROOT.pem, holds=False),
    "through one of another authority": Case(of(BETWEEN), BETWEEN.pem, NAMESAKE.pem, holds=False),
    "beside one that did not sign it": Case(of(NAMESAKE), BETWEEN.pem, ROOT.pem, holds=False),
    "the authority sent along, but not in force": Case(of(NAMESAKE), NAMESAKE.pem, ROOT.pem, holds=False),
    "an authority renewed beside its old certificate": Case(of(OLD), b"", OLD.pem + RENEWED.pem, holds=True),
    "only the old certificate of an authority": Case(of(OLD), b"", OLD.pem, holds=False),
    "itself among the authorities": Case(PINNED, b"", PINNED.certificate, holds=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_certificate_holds_while_its_whole_path_does(case: Case) -> None:
    read = ClientCertificate.read(case.client.certificate, case.sent_along, case.authorities)
    assert read is not None
    assert read.uris == URI
    assert read.holds(case.at) == case.holds


def test_what_cannot_be_read_beside_a_certificate_makes_it_name_nobody() -> None:
    assert ClientCertificate.read(of(ROOT).certificate, b"-----BEGIN CERTIFICATE-----\n", ROOT.pem) is None
