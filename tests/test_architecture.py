"""The directions of dependency, and the one module that reads the environment: stated as data, checked on the sources."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

SOURCES: Final = Path(__file__).parents[1] / "src" / "billing_grpc"

# Where each library is at home: a folder or a module of the package, by its path. `make check` holds the directions.
ONLY_THERE: Final = {
    "psycopg": {"storage/postgres", "storage/migrations"},
    "psycopg_pool": {"storage/postgres"},
    "yoyo": {"storage/migrations"},
    "click": {"cli", "conformance"},
    "rich": {"cli"},
    "pydantic": {"server/settings", "cli/serve"},
    "pydantic_settings": {"server/settings"},
    "connectrpc": {"gateway"},
    "starlette": {"gateway"},
    "uvicorn": {"gateway"},
    "psutil": {"storage/embedded"},
    "cryptography": {"server/auth", "server/net"},
    "opentelemetry": {"server/telemetry", "wire/trace_context", "client/trace_headers"},
    "prometheus_client": {"server/telemetry", "server/compose"},
}

# Folders and modules, as above.
PURE: Final = {
    *("model", "errors", "addresses", "resolver", "secret_keys", "selection", "provision", "suspects", "validation"),
    *("page_token", "server/auth/roles", "server/auth/principals", "server/auth/client_certificate"),
    "server/net/certificates",
}

MODE_SETTING: Final = "MOLECULE_LLM_BILLING_MODE"
# Name the variable, in an answer for a container or in an error message, and read nothing.
NAMES_WITHOUT_READING: Final = {"provision", "server/settings/checks"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).with_suffix("").as_posix()
        if not name.startswith("_gen/"):
            yield name, ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a module imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.ImportFrom(level=level):
                assert level == 0, "relative imports hide the direction"


def is_in(module: str, home: str) -> bool:
    """Whether a module is a home, or lies in the folder that is one."""
    return f"{module}/".startswith(f"{home}/")


ALL: Final = dict(modules())


@pytest.mark.parametrize("library", ONLY_THERE)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {name for name, tree in ALL.items() if any(each.split(".")[0] == library for each in imported(tree))}

    at_home = {name for name in users if any(is_in(name, home) for home in ONLY_THERE[library])}
    assert users == at_home
    assert users, "the rule guards nothing"


@pytest.mark.parametrize("home", sorted(PURE))
def test_a_pure_module_has_no_clock_file_or_task(home: str) -> None:
    nodes = [node for name, tree in ALL.items() if is_in(name, home) for node in ast.walk(tree)]

    assert nodes, "the rule guards nothing"
    assert not [node for node in nodes if isinstance(node, (ast.AsyncFunctionDef, ast.Await))]
    assert not {"now", "today", "utcnow"} & {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert "open" not in {node.id for node in nodes if isinstance(node, ast.Name)}


def test_importing_the_resolver_loads_neither_grpc_nor_the_driver() -> None:
    code = "import sys, billing_grpc.resolver, billing_grpc.provision; print({'grpc', 'psycopg'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_a_process_that_serves_never_loads_what_answers_wrongly_on_purpose() -> None:
    wrong = "{'billing_grpc.conformance', 'billing_grpc.testing'}"
    code = f"import sys, billing_grpc.cli.main; print({wrong} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


ENVIRONMENT_NAMES: Final = {
    "environ",
    "environb",
    "getenv",
    "getenvb",
    "putenv",
    "load_dotenv",
    "dotenv_values",
    "BaseSettings",
    "expandvars",
    "expanduser",
}


def environment_reads(tree: ast.AST) -> list[str]:
    """Every way by which a module could read the process environment."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=attr) if attr in ENVIRONMENT_NAMES:
                found.append(attr)
            case ast.Name(id=name) if name in ENVIRONMENT_NAMES:
                found.append(name)
            case ast.alias(name=name) if name in ENVIRONMENT_NAMES:
                found.append(name)
            case ast.Constant(value=str(text)) if text in ENVIRONMENT_NAMES or "/environ" in text:
                found.append(text)
            case ast.keyword(arg="envvar" | "auto_envvar_prefix" as option):
                found.append(option)
            case ast.alias(name="posix" | "nt" | "dotenv" as name):
                found.append(name)
    return found


def mentions(tree: ast.AST, text: str) -> bool:
    """Whether the code, comments and docstrings aside, holds a text that begins with this one, in one piece or in parts."""
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return any(
        isinstance(node, ast.Constant)
        and node not in docstrings
        and isinstance(node.value, (str, bytes))
        and text.encode() in (node.value.encode() if isinstance(node.value, str) else node.value)
        for node in ast.walk(tree)
    )


def test_the_environment_is_read_in_one_module() -> None:
    readers = {name for name, tree in ALL.items() if environment_reads(tree)}

    # One for those who serve and one for those who ask, so that asking does not load a server.
    assert readers == {"server/settings/config", "cli/environment"}


def test_the_mode_variable_is_named_only_where_it_is_read_or_written_into_a_plan() -> None:
    named = {name for name, tree in ALL.items() if mentions(tree, MODE_SETTING)}

    assert named == {"server/settings/fields"} | NAMES_WITHOUT_READING


READS: Final = {
    "subscript": "import os\nx = os.environ['MOLECULE_LLM_BILLING_MODE']",
    "get": "import os\nx = os.environ.get('MOLECULE_LLM_BILLING_MODE')",
    "getenv": "from os import getenv\nx = getenv('A')",
    "renamed getenv": "from os import getenv as g\nx = g('A')",
    "renamed module": "import os as o\nx = o.environ",
    "bytes": "import os\nx = os.environb[b'A']",
    "getattr": "import os\nx = getattr(os, 'environ')",
    "membership": "import os\nx = 'A' in os.environ",
    "copy": "import os\nx = dict(os.environ)",
    "walrus in a default": "import os\ndef f(x=os.getenv('A')): ...",
    "settings class": "from pydantic_settings import BaseSettings\nclass S(BaseSettings): x: str",
    "click": "import click\n@click.option('--x', envvar='A')\ndef f(x): ...",
    "dotenv": "from dotenv import dotenv_values",
    "posix": "import posix\nx = posix.environ",
    "expandvars": "import os\nx = os.path.expandvars('${A}')",
    "expanduser": "from pathlib import Path\nx = Path('~').expanduser()",
    "proc": "x = open('/proc/self/environ').read()",
}


@pytest.mark.parametrize("source", READS.values(), ids=READS)
def test_every_kind_of_read_is_seen(source: str) -> None:
    assert environment_reads(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    ["x = {'MOLECULE_LLM_BILLING_MODE': 1}", "x = b'MOLECULE_LLM_BILLING_MODE'", "f('MOLECULE_LLM_BILLING_MODE_FILE')"],
)
def test_every_kind_of_mention_is_seen(source: str) -> None:
    assert mentions(ast.parse(source), MODE_SETTING)
    assert not mentions(ast.parse(f'"""{MODE_SETTING}"""'), MODE_SETTING)
