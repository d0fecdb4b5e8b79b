"""`billing-grpc catalogue`: list the vendor names, explain one, or check a file. Asks no server."""

from collections.abc import Iterable
from typing import IO, Final

import click

from billing_grpc.catalogue import RESERVED_PREFIX, Entry, NameSet, load
from billing_grpc.catalogue.table import GENERAL
from billing_grpc.cli import exit_codes, json_output, output
from billing_grpc.cli.options import Call, Connection, Text
from billing_grpc.cli.variable_names import names_of_text
from billing_grpc.secret_keys import KeyList, is_reserved, normalise
from billing_grpc.suspects import suspect_keys

_EPILOG: Final = """\b
Examples:
  billing-grpc catalogue list --set agents
  billing-grpc catalogue show ANTHROPIC_BASE_URL
  kubectl get deployment agent -o yaml | billing-grpc catalogue check -"""

_COLUMNS: Final = ("name", "set", "kind", "vendor", "read by, or why not")


@click.group(epilog=_EPILOG)
def catalogue() -> None:
    """Explain which names are blocked, and why."""


@catalogue.command("list", cls=Call)
@click.option(
    "--set",
    "wanted",
    type=click.Choice([*(each.value for each in NameSet), GENERAL]),
    help="The names that this set blocks, or the general ones, which no set blocks; by default all.",
)
@output.json_option
def list_names(*, wanted: str | None, as_json: bool) -> int:
    """List the names, their sets, kinds and vendors, and the programs that read them."""
    shown = [each for each in load().entries.values() if wanted is None or _is_in(each, wanted)]
    if as_json:
        for each in shown:
            output.json_line(json_output.entry(each))
    else:
        output.table(_COLUMNS, map(_row, shown), prose=frozenset(_COLUMNS[-1:]))
    return exit_codes.OK


@catalogue.command("show", cls=Call)
@click.argument("name", type=Text())
@output.json_option
@click.pass_obj
def show(connection: Connection, *, name: str, as_json: bool) -> int:
    """Explain a name: its set, its vendor, its readers, and what that means for a workspace.

    The meaning is for the set of --blocked-keys and the names of --extra-blocked-key. The exit code is 1 if the catalogue
    does not hold the name.
    """
    keys, looked_up = key_list(connection), normalise(name)
    if looked_up is None:
        raise click.BadParameter("is not a key's name: a letter, digit or _, then letters, digits, _ . or -")
    found = load().entries.get(looked_up)
    meaning = _meaning(looked_up, found, keys)
    if as_json:
        entry = None if found is None else json_output.entry(found)
        output.json_line(
            {"name": looked_up, "entry": entry, "meaning": meaning, "catalogue": json_output.catalogue(keys.catalogue)}
        )
    else:
        rows = [("name", looked_up), ("meaning", meaning), ("catalogue", str(keys.catalogue))]
        if found is not None:
            held = [("set", _set(found)), ("kind", found.kind.value), ("vendor", found.vendor)]
            readers = ("read by", ", ".join(found.read_by) or "no program that is known")
            rows[1:1] = [*held, readers, *([("why", found.why)] if found.why else [])]
        output.table(("what", "is"), rows, prose=frozenset({"is"}))
    return exit_codes.REFUSED if found is None else exit_codes.OK


@catalogue.command("check", cls=Call)
@click.argument("file", metavar="ENVFILE", type=click.File("rb"))
@output.json_option
@click.pass_obj
def check(connection: Connection, *, file: IO[bytes], as_json: bool) -> int:
    """Say which names in a file a platform_managed workspace may not have. Print no value.

    ENVFILE holds what `env` prints, a dotenv file, a Kubernetes manifest, or names alone; - is standard input. Each line:
    strip, reserved, suspect or general, a name, its vendor or -, and why. Other names are not shown. The exit code is 1 if a
    name would be stripped or is reserved.
    """
    keys = key_list(connection)
    written, prefixed = names_of_text(file.read())
    names = sorted(written | prefixed)
    strip = [name for name in names if keys.needs_mode(name)]
    reserved = [name for name in names if is_reserved(name)]
    suspects = list(suspect_keys(written, keys))
    general = [name for name in names if name in load().entries and not keys.needs_mode(name)]
    groups = {"strip": strip, "reserved": reserved, "suspect": suspects, "general": general}
    if as_json:
        output.json_line({**groups, "catalogue": json_output.catalogue(keys.catalogue)})
    else:
        output.table(("do", "name", "vendor", "why"), _rows(groups, keys), prose=frozenset({"why"}))
    return exit_codes.REFUSED if strip or reserved else exit_codes.OK


def key_list(connection: Connection) -> KeyList:
    """Return the vendor keys of the caller's settings.

    Raises:
        UsageError: an extra name is malformed.
    """
    extra = {key: normalise(key) for key in connection.extra_blocked_key}
    if wrong := [key for key, name in extra.items() if name is None]:
        raise click.UsageError(f"--extra-blocked-key: these are not names of keys: {wrong}")
    names = [name for name in extra.values() if name is not None]
    return KeyList(names, name_set=NameSet(connection.blocked_keys))


def _is_in(entry: Entry, wanted: str) -> bool:
    return entry.name_set is None if wanted == GENERAL else entry.name in load().names(NameSet(wanted))


def _set(entry: Entry) -> str:
    return GENERAL if entry.name_set is None else entry.name_set.value


def _row(entry: Entry) -> tuple[str, ...]:
    return entry.name, _set(entry), entry.kind.value, entry.vendor, entry.why or ", ".join(entry.read_by)


def _rows(groups: dict[str, list[str]], keys: KeyList) -> Iterable[tuple[str, ...]]:
    for what, names in groups.items():
        for name in names:
            found = load().entries.get(name)
            yield what, name, "-" if found is None else found.vendor, _meaning(name, found, keys)


def _meaning(name: str, found: Entry | None, keys: KeyList) -> str:
    if is_reserved(name):
        return f"reserved for the platform in every mode: {RESERVED_PREFIX}*"
    if keys.needs_mode(name):
        origin = "an extra name" if found is None else f"{found.kind} of {found.vendor}"
        return f"{origin}: refused and stripped while platform_managed"
    if found is None:
        suspect = suspect_keys([name], keys)
        return "looks like a vendor's, and stays: is it missing here?" if suspect else "not a vendor's: always allowed"
    if found.name_set is None:
        return f"always allowed: {found.why}"
    return f"allowed: the set {keys.catalogue.set} does not hold it, {found.name_set} does"
