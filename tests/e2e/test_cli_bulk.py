"""`set --from`: a preview that writes nothing, writes that are guarded by it, and a second run that goes on."""

import json
import uuid
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.support.commands import billing_grpc
from tests.support.pseudo_terminal import at_terminal
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

OK, REFUSED, USAGE, UNAVAILABLE = 0, 1, 2, 3
UNKNOWN: Final = "5f0e9b0e-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def server(module_serve: Serve, module_database_url: str) -> Server:
    return module_serve(
        settings={"DATABASE_URL": as_service(module_database_url), "BILLING_GRPC_STORAGE_TIMEOUT": "0.5"}
    )


def stored(url: str, workspace: str) -> str | None:
    with psycopg.connect(url) as owner:
        row = owner.execute("SELECT llm_billing_mode FROM workspaces WHERE id = %s", [workspace]).fetchone()
    assert row is not None
    text: str | None = row[0]
    return text


def bulk(server: Server, file: Path, *arguments: str) -> tuple[int, list[list[str]], str]:
    """The exit code, the columns of each line, and standard error."""
    ended = billing_grpc("--address", server.address, "set", "--from", str(file), *arguments)
    return ended.returncode, [line.split("\t") for line in ended.stdout.splitlines()], ended.stderr


def test_a_preview_writes_nothing_and_is_the_file_of_the_write(
    server: Server, module_database_url: str, tmp_path: Path
) -> None:
    first, second, third = (add_workspace(module_database_url, mode) for mode in (None, "disabled", "byok"))
    ids, preview = tmp_path / "ids", tmp_path / "preview"
    ids.write_text(f"# the trial\n{first}\n{second.upper()}\tinherit\n\n{third}\n")

    code, rows, said = bulk(server, ids, "--mode", "byok")
    assert (code, stored(module_database_url, first)) == (OK, None)
    assert [[*row[:2], *row[3:]] for row in rows] == [
        [first, "byok", "inherit", "would_change"],
        [second, "inherit", "disabled", "would_change"],
        [third, "byok", "byok", "already"],
    ]
    assert "2 would change" in said
    assert "--yes" in said

    preview.write_text("\n".join("\t".join(row) for row in rows))
    code, rows, said = bulk(server, preview, "--yes", "--reason", "the trial", "--actor", "alice")
    assert (code, [row[4] for row in rows]) == (OK, ["changed", "changed", "already"])
    assert [stored(module_database_url, each) for each in (first, second, third)] == ["byok", None, "byok"]
    change = json.loads(billing_grpc("--address", server.address, "changes", first, "--json").stdout)
    assert (change["reason"], change["actor"]) == ("the trial", "alice")

    code, rows, said = bulk(server, preview, "--yes")
    assert (code, [row[4] for row in rows]) == (OK, ["already"] * 3)


def test_a_stored_text_inherit_is_no_inheritance_and_is_cleared(
    server: Server, module_database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(module_database_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_llm_billing_mode_check")
    workspace, file = add_workspace(module_database_url, "inherit"), tmp_path / "ids"
    file.write_text(workspace)
    code, rows, _ = bulk(server, file, "--mode", "inherit", "--yes")
    assert (code, rows[0][4], stored(module_database_url, workspace)) == (OK, "changed", None)


def test_a_workspace_that_cannot_be_read_is_named_and_the_rest_written(
    serve: Serve, database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_pkey")
        owner.execute("INSERT INTO workspaces (id) VALUES (%s), (%s)", [UNKNOWN, UNKNOWN])
    workspace, file = add_workspace(database_url), tmp_path / "ids"
    file.write_text(f"{UNKNOWN}\n{workspace}\n")
    code, rows, said = bulk(serve(settings={"DATABASE_URL": as_service(database_url)}), file, "--mode", "byok", "--yes")
    assert (code, [row[-1] for row in rows]) == (REFUSED, ["unreadable", "changed"])
    assert "1 cannot be read" in said


def test_what_changed_since_the_preview_or_is_gone_is_refused_and_the_rest_written(
    server: Server, module_database_url: str, tmp_path: Path
) -> None:
    moved, kept = add_workspace(module_database_url), add_workspace(module_database_url)
    ids, preview = tmp_path / "ids", tmp_path / "preview"
    ids.write_text(f"{moved}\n{UNKNOWN}\n{kept}\n")
    _, rows, _ = bulk(server, ids, "--mode", "byok")
    preview.write_text("\n".join("\t".join(row) for row in rows))
    billing_grpc("--address", server.address, "set", moved, "disabled")

    code, rows, said = bulk(server, preview, "--yes")

    assert (code, [row[4] for row in rows]) == (REFUSED, ["stale", "not_found", "changed"])
    assert [stored(module_database_url, each) for each in (moved, kept)] == ["disabled", "byok"]
    assert "1 changed since the etag was read" in said


def test_after_an_interruption_the_same_command_goes_on(
    server: Server, module_database_url: str, tmp_path: Path
) -> None:
    ids = tmp_path / "ids"
    workspaces = [add_workspace(module_database_url) for _ in range(3)]
    ids.write_text("\n".join(workspaces))
    with psycopg.connect(module_database_url) as holder:
        holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", [workspaces[1]])
        code, rows, said = bulk(server, ids, "--mode", "byok", "--yes")
    assert (code, [row[4] for row in rows]) == (UNAVAILABLE, ["changed", "unknown", "not_tried"])
    assert "run the same command again" in said

    code, rows, _ = bulk(server, ids, "--mode", "byok", "--yes")
    assert (code, [row[4] for row in rows]) == (OK, ["already", "changed", "changed"])
    assert [stored(module_database_url, each) for each in workspaces] == ["byok"] * 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("team-a\tbyok", "line 2: must be a UUID"),
        (f"{UNKNOWN}\tBYOK", "line 2: the mode must be one of"),
        (UNKNOWN, "line 2: the mode must be one of"),
        (f"{UNKNOWN}\tbyok\tetag", "line 2: the third column must be an etag"),
        (f"{UNKNOWN}\tbyok\n{UNKNOWN}\tdisabled", "line 3: another line asks for something else"),
    ],
    ids=["id", "mode", "no mode", "etag", "contradiction"],
)
def test_a_malformed_line_changes_nothing(
    server: Server, module_database_url: str, tmp_path: Path, text: str, complaint: str
) -> None:
    workspace = add_workspace(module_database_url)
    file = tmp_path / "changes"
    file.write_text(f"{workspace}\tbyok\n{text}\n")
    code, rows, said = bulk(server, file, "--yes")
    assert (code, rows, stored(module_database_url, workspace)) == (USAGE, [], None)
    assert complaint in said


def test_a_file_and_a_workspace_are_not_both_taken(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text("")
    for arguments in (
        ["set", UNKNOWN, "byok", "--from", str(file)],
        ["set", UNKNOWN, "byok", "--yes"],
        ["set", UNKNOWN],
    ):
        assert billing_grpc("--address", server.address, *arguments).returncode == USAGE
    assert bulk(server, file, "--mode", "byok", "--yes")[0] == OK


def test_results_as_json_are_objects(server: Server, module_database_url: str, tmp_path: Path) -> None:
    workspace, file = add_workspace(module_database_url), tmp_path / "ids"
    file.write_text(workspace)
    arguments = ("--address", server.address, "set", "--from", str(file), "--mode", "disabled", "--json")
    assert json.loads(billing_grpc(*arguments).stdout) == {
        "workspace_id": workspace,
        "mode": "disabled",
        "etag": "0",
        "previous": "inherit",
        "outcome": "would_change",
    }


def test_a_preview_at_a_terminal_is_in_columns(server: Server, module_database_url: str, tmp_path: Path) -> None:
    workspace, file = add_workspace(module_database_url), tmp_path / "ids"
    file.write_text(workspace)
    seen = at_terminal("--address", server.address, "set", "--from", str(file), "--mode", "byok", columns=150)
    assert seen.lines[0].split() == [workspace, "byok", "0", "inherit", "would_change"]


def test_many_workspaces_are_previewed_and_written(server: Server, module_database_url: str, tmp_path: Path) -> None:
    ids = [str(uuid.uuid4()) for _ in range(200)]
    with psycopg.connect(module_database_url) as owner, owner.cursor() as cursor:
        cursor.executemany("INSERT INTO workspaces (id) VALUES (%s)", [[each] for each in ids])
    file = tmp_path / "ids"
    file.write_text("\n".join(ids))
    code, rows, said = bulk(server, file, "--mode", "byok", "--yes")
    assert (code, [row[0] for row in rows], {row[4] for row in rows}) == (OK, ids, {"changed"})
    assert "200 changed" in said
