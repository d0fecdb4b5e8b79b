"""Change the modes of many workspaces from a file: preview them first, and write each with the etag of its preview."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, BinaryIO, Final

from billing_grpc import validation
from billing_grpc.cli import exit_codes, output
from billing_grpc.cli.id_lines import Progress, text_lines
from billing_grpc.cli.session import Session
from billing_grpc.errors import (
    AnswerInvalid,
    EtagStale,
    FieldViolation,
    InvalidArgument,
    ServerUnreachable,
    StorageError,
    ValueUnreadable,
    WorkspaceNotFound,
    WriteUndone,
)
from billing_grpc.model import BillingMode, BillingModeUpdate

INHERIT: Final = "inherit"
"""The word for a workspace that is to inherit the organisation's default."""
CHOICES: Final = (*(mode.value for mode in BillingMode), INHERIT)

_AT_ONCE: Final = 8
"""How many workspaces are previewed at the same time."""
_NAMED: Final = 20
_UNKNOWN: Final = (StorageError, ServerUnreachable, AnswerInvalid)


class Outcome(StrEnum):
    """What happened to one line, or would happen."""

    WOULD_CHANGE = "would_change"
    CHANGED = "changed"
    ALREADY = "already"
    NOT_FOUND = "not_found"
    UNREADABLE = "unreadable"
    STALE = "stale"
    UNDONE = "undone"
    UNKNOWN = "unknown"
    NOT_TRIED = "not_tried"


_SAID: Final = {
    Outcome.WOULD_CHANGE: "would change",
    Outcome.CHANGED: "changed",
    Outcome.ALREADY: "are so already",
    Outcome.NOT_FOUND: "do not exist",
    Outcome.UNREADABLE: "cannot be read",
    Outcome.STALE: "changed since the etag was read",
    Outcome.UNDONE: "were refused by the database",
    Outcome.UNKNOWN: "have an unknown outcome",
    Outcome.NOT_TRIED: "were not tried",
}
_REFUSED: Final = {Outcome.NOT_FOUND, Outcome.UNREADABLE, Outcome.STALE, Outcome.UNDONE}
_UNFINISHED: Final = {Outcome.UNKNOWN, Outcome.NOT_TRIED}


@dataclass(frozen=True, slots=True)
class Line:
    """One change of the file.

    Attributes:
        workspace_id: canonical, lower case.
        wanted: one of `CHOICES`.
        etag: the etag to write with; empty until the preview if the file does not say it.
        now: the stored override before the change, or `inherit`; empty until the preview.
        outcome: what happened, or would happen.
    """

    workspace_id: str
    wanted: str
    etag: str = ""
    now: str = ""
    outcome: Outcome = Outcome.WOULD_CHANGE


def read_lines(file: BinaryIO, mode: str | None) -> list[Line]:
    """Return the changes of a file: an id on each line, and then, after tabs, a mode and an etag, as a preview prints them.

    Args:
        file: blank lines and comments are skipped, and further columns.
        mode: the mode of lines that name none.

    Raises:
        exit_codes.Failed: a line is malformed, names no mode, or contradicts another; the first twenty are named.
    """
    found: dict[str, Line] = {}
    problems: list[str] = []
    for number, text in text_lines(file):
        try:
            line = _parsed(text, mode)
        except InvalidArgument as error:
            problems.append(f"line {number}: {error.violations[0].description}")
            continue
        if found.setdefault(line.workspace_id, line) != line:
            problems.append(f"line {number}: another line asks for something else for {line.workspace_id}")
    if problems:
        more = [f"and {len(problems) - _NAMED} more lines"] if len(problems) > _NAMED else []
        raise exit_codes.Failed("; ".join(["nothing was written", *problems[:_NAMED], *more]), exit_codes.USAGE)
    return list(found.values())


def _parsed(text: str, mode: str | None) -> Line:
    key, wanted, etag, *_ = [*(cell.strip() for cell in text.split("\t")), "", ""]
    workspace = validation.workspace_id(key)
    wanted = wanted or mode or ""
    if wanted not in CHOICES:
        problem = f"got {wanted!r}" if wanted else "it names none; add it after a tab, or give --mode"
        raise InvalidArgument(
            "MODE_INVALID", FieldViolation("mode", f"the mode must be one of {', '.join(CHOICES)}; {problem}")
        )
    if etag and validation.etag(etag) != etag:
        raise InvalidArgument(
            "TEXT_INVALID", FieldViolation("etag", "the third column must be an etag, as a preview prints it")
        )
    return Line(workspace, wanted, etag)


class BulkSet:
    """Previews and makes the changes of a file, and shows each.

    Args:
        session: the session with the server.
        note: the arguments `reason` and `actor` of the client's `set`.
        as_json: show each change as an object on its own line.
    """

    def __init__(self, session: Session, note: dict[str, str], *, as_json: bool) -> None:
        self._session = session
        self._note = note
        self._as_json = as_json
        self._counted: Counter[Outcome] = Counter()

    def run(self, lines: Sequence[Line], *, write: bool) -> int:
        """Preview the changes, then make them if `write` says so; return the exit code.

        Raises:
            BillingError: a preview failed, and nothing was written; or no later write could succeed either.
        """
        previewed = list(self._preview(lines, show=not write))
        if write:
            self._write(previewed)
        said = ", ".join(f"{count} {_SAID[outcome]}" for outcome, count in sorted(self._counted.items()))
        remedy = "" if write else "; nothing was written: give --yes"
        if any(self._counted[each] for each in _UNFINISHED):
            remedy = "; run the same command again to go on"
        exit_codes.print_error(f"{said or 'no workspaces'}{remedy}")
        if any(self._counted[each] for each in _UNFINISHED):
            return exit_codes.UNAVAILABLE
        return exit_codes.REFUSED if any(self._counted[each] for each in _REFUSED) else exit_codes.OK

    def _preview(self, lines: Sequence[Line], *, show: bool) -> Iterator[Line]:
        async def several(batch: Sequence[Line]) -> list[Line]:
            return await asyncio.gather(*map(self._previewed, batch))

        with Progress(len(lines), "previewing") as progress:
            for start in range(0, len(lines), _AT_ONCE):
                batch = lines[start : start + _AT_ONCE]
                for each in self._session.run(several(batch)):
                    if show:
                        self._show(each)
                    yield each
                progress.advance(len(batch))

    async def _previewed(self, line: Line) -> Line:
        try:
            update = await self._set(line, etag="", validate_only=True)
        except WorkspaceNotFound:
            return replace(line, outcome=Outcome.NOT_FOUND)
        except ValueUnreadable:  # the fault of one row must not stop the others, and its line names it
            return replace(line, outcome=Outcome.UNREADABLE)
        current = update.current.etag
        now = update.previous.workspace_override
        line = replace(line, now=INHERIT if now is None else now)
        # Compared before `inherit` stands for no override: the stored text may be "inherit", which is no mode.
        if now == (None if line.wanted == INHERIT else line.wanted):
            return replace(line, etag=current, outcome=Outcome.ALREADY)
        if line.etag not in {"", current}:
            return replace(line, outcome=Outcome.STALE)
        return replace(line, etag=current)

    def _write(self, lines: Sequence[Line]) -> None:
        stopped = False
        with Progress(len(lines), "writing") as progress:
            for line in lines:
                done = line
                if line.outcome is Outcome.WOULD_CHANGE:
                    done = (
                        replace(line, outcome=Outcome.NOT_TRIED) if stopped else self._session.run(self._written(line))
                    )
                stopped = stopped or done.outcome is Outcome.UNKNOWN
                self._show(done)
                exit_codes.flush()
                progress.advance(1)

    async def _written(self, line: Line) -> Line:
        try:
            update = await self._set(line, etag=line.etag)
        except WorkspaceNotFound:
            return replace(line, outcome=Outcome.NOT_FOUND)
        except EtagStale:
            return replace(line, outcome=Outcome.STALE)
        except WriteUndone:
            return replace(line, outcome=Outcome.UNDONE)
        except _UNKNOWN as error:
            exit_codes.print_error(f"{line.workspace_id}: {error}")
            return replace(line, outcome=Outcome.UNKNOWN)
        return replace(line, etag=update.current.etag, outcome=Outcome.CHANGED)

    async def _set(self, line: Line, *, etag: str, validate_only: bool = False) -> BillingModeUpdate:
        options: dict[str, Any] = {**self._note, "etag": etag, "validate_only": validate_only}
        if line.wanted == INHERIT:
            return await self._session.client.inherit(line.workspace_id, **options)
        return await self._session.client.set(line.workspace_id, BillingMode(line.wanted), **options)

    def _show(self, line: Line) -> None:
        self._counted[line.outcome] += 1
        if self._as_json:
            output.json_line(
                {
                    "workspace_id": line.workspace_id,
                    "mode": line.wanted,
                    "etag": line.etag,
                    "previous": line.now,
                    "outcome": line.outcome.value,
                }
            )
            return
        cells = [(line.workspace_id, 36), (line.wanted, 16), (line.etag, 19), (line.now, 16), (line.outcome.value, 0)]
        output.row(cells, "bold red" if line.outcome in _REFUSED | _UNFINISHED else "")
