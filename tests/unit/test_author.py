"""Who changed a workspace last: a principal and a database user of one name are told apart."""

from datetime import UTC, datetime
from typing import Final

import pytest

from billing_grpc.model import Change, author
from billing_grpc.server.auth.principals import is_name
from billing_grpc.testing import InMemoryRepository

WORKSPACE: Final = "7f1fc6a0-0000-4000-8000-000000000001"
AUTHORS: Final = {
    "a principal": ("billing", "billing_grpc", "billing"),
    "a database user": ("", "billing", "database_user:billing"),
    "a database user who is called like one": ("", "database_user:x", "database_user:database_user:x"),
}


@pytest.mark.parametrize(("principal", "database_user", "expected"), AUTHORS.values(), ids=AUTHORS)
async def test_a_change_is_told_by_its_principal_or_else_by_its_database_user(
    principal: str, database_user: str, expected: str
) -> None:
    assert author(principal, database_user) == expected
    repository = InMemoryRepository({WORKSPACE: "byok"})
    repository.changes.append(
        Change(
            change_id=1,
            workspace_id=WORKSPACE,
            change_time=datetime.now(UTC),
            previous_override=None,
            new_override="byok",
            principal=principal,
            database_user=database_user,
            reason="",
            request_id="",
        )
    )
    assert (await repository.load_record(WORKSPACE, budget=1)).changed_by == expected


def test_no_principal_can_be_called_as_a_database_user_is_told() -> None:
    assert not is_name(author("", "billing"))
    assert is_name("billing")
