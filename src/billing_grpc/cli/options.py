"""Which server a command asks and how: the options of all commands, before or after the command's name."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import click

from billing_grpc import validation
from billing_grpc.errors import InvalidArgument
from billing_grpc.setting_names import VARIABLES

_DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
_OVER_TLS: Final = ("tls://", "mtls://")
_LONGEST_TIMEOUT: Final = 3600


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to ask, how to know the server and how to be known there.

    Attributes:
        address: as the server prints it, or as gRPC takes it.
        token_file: holds the token to show.
        ca: the authorities that sign servers' certificates.
        cert: our certificate, with `key`.
        key: its key.
        server_name: the name that the server's certificate is for.
        timeout: seconds a call may take; None for what the contract ships with.
        extra_blocked_key: names that the server adds to the vendor keys.
    """

    address: str = _DEFAULT_ADDRESS
    token_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    timeout: float | None = None
    extra_blocked_key: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The address without the scheme that says how it is secured."""
        for scheme in _OVER_TLS:
            if self.address.startswith(scheme):
                return self.address.removeprefix(scheme)
        return self.address

    @property
    def secure(self) -> bool:
        """Whether anything given speaks of TLS."""
        named = (self.ca, self.cert, self.key, self.server_name)
        return self.target != self.address or any(each is not None for each in named)

    @property
    def files(self) -> dict[str, Path]:
        """The files it needs, by option."""
        named = {"--token-file": self.token_file, "--ca": self.ca, "--cert": self.cert, "--key": self.key}
        return {option: path for option, path in named.items() if path is not None}


class Text(click.ParamType[str]):
    """Text that can be sent: an argument may be any bytes."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is; a usage error when it is not valid UTF-8."""
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("must be valid UTF-8", param, ctx)
        return value


class Seconds(click.FloatRange):
    """Seconds, at most an hour."""

    def __init__(self, *, zero: bool = False) -> None:
        super().__init__(0, _LONGEST_TIMEOUT, min_open=not zero)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a usage error when it is out of range, or none, which is in every range."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


class WorkspaceId(Text):
    """A workspace's id; empty before the workspace exists, where that is allowed."""

    name = "workspace_id"

    def __init__(self, *, may_be_empty: bool = False) -> None:
        self._may_be_empty = may_be_empty

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The id in lower case; a usage error when it is none."""
        try:
            return (
                "" if self._may_be_empty and not value else validation.workspace_id(super().convert(value, param, ctx))
            )
        except InvalidArgument as error:
            self.fail(error.violations[0].description, param, ctx)


_FILE: Final = click.Path(path_type=Path)
_HELP: Final[dict[str, tuple[Any, str]]] = {
    "address": (Text(), "The server: host:port, tls://host:port, mtls://host:port or unix:/path."),
    "token_file": (_FILE, "A file that holds the token to show."),
    "ca": (_FILE, "The authorities that sign the server's certificate, PEM."),
    "cert": (_FILE, "Our own certificate, PEM, for mtls://."),
    "key": (_FILE, "The key of --cert, PEM."),
    "server_name": (Text(), "The name in the server's certificate, where it is not the host of --address."),
    "timeout": (
        Seconds(),
        "Seconds that a call may take, its repetitions included; by default 5.",
    ),
    "extra_blocked_key": (Text(), "A name that the server adds to the vendor keys; may be repeated."),
}


def connection_options(*, after_command: bool = False) -> list[click.Option]:
    """The options of a `Connection`; of a command, without defaults, so that it is known what was given."""
    return [
        click.Option(
            [f"--{name.replace('_', '-')}", name],
            type=kind,
            multiple=name == "extra_blocked_key",
            default=_DEFAULT_ADDRESS if name == "address" and not after_command else None,
            show_default=True,
            hidden=after_command,
            help=f"{text} (setting: {VARIABLES[name]})",
        )
        for name, (kind, text) in _HELP.items()
    ]


class Call(click.Command):
    """A command that asks a server: takes the connection's options too, and gets a `Connection` as its object."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params.extend(connection_options(after_command=True))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; what stands after its name wins."""
        given = {each.name: ctx.params.pop(each.name) for each in fields(Connection)}
        ctx.obj = replace(ctx.find_object(Connection) or Connection(), **{k: v for k, v in given.items() if v})
        return super().invoke(ctx)
