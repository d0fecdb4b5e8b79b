"""Declare the options that say which server to ask and how: of all commands, before or after the command's name."""

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import click

from billing_grpc import validation
from billing_grpc.catalogue import NameSet
from billing_grpc.errors import InvalidArgument
from billing_grpc.setting_names import VARIABLES

_TLS_SCHEMES: Final = ("tls://", "mtls://")
_MAX_SECONDS: Final = 3600


class Text(click.ParamType[str]):
    """Text that can be sent; an argument may hold bytes that are not text."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text unchanged; raise a usage error if it is not valid UTF-8."""
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("must be valid UTF-8", param, ctx)
        return value


class Seconds(click.FloatRange):
    """Seconds, at most an hour.

    Args:
        zero: allow 0.
    """

    def __init__(self, *, zero: bool = False) -> None:
        super().__init__(0, _MAX_SECONDS, min_open=not zero)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; raise a usage error if it is out of range or NaN, which click takes for in range."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


class WorkspaceId(Text):
    """A workspace's id.

    Args:
        may_be_empty: allow an empty id, for a workspace that does not exist yet.
    """

    name = "workspace_id"

    def __init__(self, *, may_be_empty: bool = False) -> None:
        self._may_be_empty = may_be_empty

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id in lower case; raise a usage error if it is malformed."""
        try:
            return (
                "" if self._may_be_empty and not value else validation.workspace_id(super().convert(value, param, ctx))
            )
        except InvalidArgument as error:
            self.fail(error.violations[0].description, param, ctx)


_FILE: Final = click.Path(path_type=Path)


def _option(help_text: str, kind: click.ParamType[Any] = _FILE) -> dict[str, Any]:
    """Return the help and the type of the command-line option for a field of `Connection`."""
    return {"help": help_text, "type": kind}


@dataclass(frozen=True, slots=True)
class Connection:
    """Which server to ask, how to verify it, and how to identify the caller.

    Each field is an option of every command that asks a server, and a setting of `setting_names.VARIABLES`.
    """

    address: str = field(
        default="127.0.0.1:50051",
        metadata=_option("The server: host:port, tls://host:port, mtls://host:port or unix:/path.", Text()),
    )
    token_file: Path | None = field(default=None, metadata=_option("A file that holds the bearer token to send."))
    ca: Path | None = field(default=None, metadata=_option("The authorities that sign the server's certificate, PEM."))
    cert: Path | None = field(default=None, metadata=_option("The caller's own certificate, PEM, for mtls://."))
    key: Path | None = field(default=None, metadata=_option("The key of --cert, PEM."))
    server_name: str | None = field(
        default=None,
        metadata=_option("The name in the server's certificate, if it is not the host of --address.", Text()),
    )
    timeout: float | None = field(
        default=None, metadata=_option("Seconds that a call may take, retries included; 5 by default.", Seconds())
    )
    blocked_keys: str = field(
        default=NameSet.AGENTS.value,
        metadata=_option(
            "The set of vendor names that the server blocks.", click.Choice([each.value for each in NameSet])
        ),
    )
    extra_blocked_key: tuple[str, ...] = field(
        default=(), metadata=_option("A name that the server adds to that set; may be repeated.", Text())
    )

    @property
    def target(self) -> str:
        """The address without `tls://` or `mtls://`."""
        for scheme in _TLS_SCHEMES:
            if self.address.startswith(scheme):
                return self.address.removeprefix(scheme)
        return self.address

    @property
    def secure(self) -> bool:
        """Whether the address or any option asks for TLS."""
        named = (self.ca, self.cert, self.key, self.server_name)
        return self.target != self.address or any(each is not None for each in named)

    @property
    def files(self) -> dict[str, Path]:
        """The files to read, by option."""
        given = {_flag(each.name): getattr(self, each.name) for each in fields(self) if each.metadata["type"] is _FILE}
        return {flag: path for flag, path in given.items() if path is not None}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def connection_options(*, after_command: bool = False) -> list[click.Option]:
    """Return one option for each field of `Connection`.

    Args:
        after_command: hide the options and give them no defaults, so that `Call` sees which were given.
    """
    return [
        click.Option(
            [_flag(each.name), each.name],
            type=each.metadata["type"],
            multiple=each.default == (),
            default=None if after_command or each.default == () else each.default,
            show_default=True,
            hidden=after_command,
            help=f"{each.metadata['help']} (setting: {VARIABLES[each.name]})",
        )
        for each in fields(Connection)
    ]


class Call(click.Command):
    """A command that asks a server: it also takes the connection's options, and its object is a `Connection`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params.extend(connection_options(after_command=True))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an option after its name wins over one before it."""
        given = {each.name: ctx.params.pop(each.name) for each in fields(Connection)}
        ctx.obj = replace(ctx.find_object(Connection) or Connection(), **{k: v for k, v in given.items() if v})
        return super().invoke(ctx)
