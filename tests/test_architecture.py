"""The directions of dependency, and the one module that reads the environment: stated as data, checked on the sources."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

SOURCES: Final = Path(__file__).parents[1] / "src" / "billing_grpc"
PACKAGE: Final = "billing_grpc"

# Who may import whom. A package stands for all of its modules, which may import each other.
PURE: Final = {"model", "errors"}
MAY_IMPORT: Final[dict[str, set[str]]] = {
    "model": set(),
    "errors": set(),
    "addresses": set(),
    "resolver": PURE,
    "secrets": PURE,
    # The vendor keys have one home, and the plan strips them.
    "provision": PURE | {"secrets"},
    "validation": PURE | {"secrets"},
    "repository": {"model"},
    "caller": {"model"},
    "request_id": set(),
    "page_token": {"errors"},
    "decision_log": {"caller", "metrics", "model", "resolver"},
    "metrics": PURE | {"access", "resolver"},
    "metrics_port": {"addresses"},
    "subject": set(),
    "observed_repository": PURE | {"metrics", "repository", "tracing"},
    "tracing": {"access", "errors"},
    "trace_export": {"metrics", "tracing", "watched_file"},
    "access": {"model"},
    "client_certificate": set(),
    "credentials": PURE,
    "watched_file": set(),
    "reloaded_file": {"errors", "watched_file"},
    "org_default": {"reloaded_file", "resolver", "watched_file"},
    "principals_file": {"credentials", "errors", "reloaded_file", "watched_file"},
    "certificate": set(),
    "tls": {"certificate", "errors", "reloaded_file", "watched_file"},
    "limits": set(),
    "limit_settings": {"limits", "setting_types"},
    "standing_reader": set(),
    "log_queue": {"standing_reader"},
    "logs": {"log_queue", "request_id", "standing_reader", "tracing"},
    "demo": {"addresses"},
    "postgres": PURE | {"repository"},
    "migrations": {"errors", "postgres", "table_shape"},
    "table_shape": set(),
    "embedded": {"errors"},
    "setting_types": {"addresses"},
    # Asks those who will use addresses and files whether they can be used, so that all problems are said at once.
    "config": {
        *(
            "addresses",
            "client_settings",
            "errors",
            "limit_settings",
            "postgres",
            "principals_file",
            "secrets",
            "setting_types",
            "tls",
        ),
        "tracing",
    },
    "convert": PURE | {"_gen"},
    "servicer": {
        *PURE,
        *(
            "_gen",
            "caller",
            "convert",
            "decision_log",
            "metrics",
            "page_token",
            "provision",
            "repository",
            "request_id",
        ),
        *("resolver", "secrets", "subject", "validation"),
    },
    "interceptors": {
        *PURE,
        *("access", "caller", "client_certificate", "convert", "credentials", "limits", "metrics", "principals_file"),
        *("request_id", "subject", "tracing"),
    },
    "free_address": {"addresses", "errors"},
    "health": set(),
    "reflection": set(),
    "readiness": {"errors", "repository"},
    "rpc_server": {
        *("_gen", "addresses", "credentials", "errors", "free_address", "health", "interceptors", "limits"),
        *("metrics", "principals_file", "reflection", "tls", "tracing"),
    },
    "testing": PURE
    | {"addresses", "limits", "metrics", "org_default", "repository", "rpc_server", "secrets", "servicer"},
    # Answers wrongly on purpose; of all the others only the command line may load it, and that for its one command.
    "conformance": {
        *("_gen", "addresses", "convert", "credentials", "errors", "free_address", "interceptors", "limits", "logs"),
        *("metrics", "model", "org_default", "principals_file", "secrets", "servicer", "standing_reader", "testing"),
    },
    "service_config": set(),
    # The client: pure modules and the contract, and nothing of the server.
    "closed": PURE | {"provision", "resolver", "secrets", "validation"},
    "answers": PURE | {"_gen", "convert", "provision", "resolver", "secrets"},
    "call_errors": {"_gen", "answers", "convert", "errors"},
    "bearer_token": {"errors", "watched_file"},
    "forked": {"errors"},
    "dial": {"__init__", "bearer_token", "errors", "forked", "service_config", "watched_file"},
    "calls": PURE | {"_gen", "call_errors", "dial", "forked", "service_config", "tracing"},
    "client": PURE | {"_gen", "answers", "bearer_token", "calls", "closed", "convert", "dial", "secrets", "validation"},
    "client_settings": set(),
    # Commands that ask a server know the client and nothing of the server.
    "commands": PURE | {"client", "client_settings", "dial", "provision", "secrets", "standing_reader", "validation"},
    "_gen": set(),
    "__init__": set(),
    "__main__": {"cli"},
    # The composition root and the command line may use everything but each other's callers.
    "stop_signals": set(),
    "shared_ports": {"addresses", "errors"},
    "workers": {"addresses", "config", "stop_signals"},
    # A process of its own, started by `workers`; nobody imports it.
    "worker": {"errors", "logs", "server", "standing_reader", "stop_signals", "workers"},
    "server": {
        *PURE,
        *(
            "__init__",
            "addresses",
            "config",
            "credentials",
            "demo",
            "embedded",
            "logs",
            "metrics",
            "migrations",
            "org_default",
        ),
        *(
            "postgres",
            "principals_file",
            "readiness",
            "repository",
            "rpc_server",
            "secrets",
            "servicer",
            "shared_ports",
        ),
        *("metrics_port", "observed_repository", "stop_signals", "tls", "tracing", "workers"),
    },
    "cli_server": {*PURE, "config", "credentials", "limit_settings", "migrations", "server", "standing_reader"},
    # Loads the commands when they are used, by name.
    "cli": {"__init__", "client_settings", "commands", "errors"},
}

ONLY_THERE: Final = {
    "psycopg": {"postgres", "migrations"},
    "psycopg_pool": {"postgres"},
    "yoyo": {"migrations"},
    "click": {"cli", "cli_server", "commands", "conformance"},
    "rich": {"commands"},
    "pydantic": {"config", "limit_settings", "setting_types", "cli_server"},
    "pydantic_settings": {"config", "setting_types"},
    "psutil": {"embedded"},
    "grpc": {
        *("_gen", "health", "interceptors", "reflection", "rpc_server", "tls"),
        *("call_errors", "dial", "calls", "commands", "conformance"),
    },
    "structlog": {
        "decision_log",
        "interceptors",
        "postgres",
        "org_default",
        "principals_file",
        "tls",
        "trace_export",
        "logs",
        "readiness",
        "server",
        "workers",
    },
    "opentelemetry": {"tracing", "trace_export"},
    "prometheus_client": {"calls", "metrics", "metrics_port", "server"},
}

PURE_MODULES: Final = {
    "model",
    "errors",
    "access",
    "client_certificate",
    "addresses",
    "certificate",
    "credentials",
    "resolver",
    "secrets",
    "provision",
    "validation",
}
IMPURE_LIBRARIES: Final = {
    "asyncio",
    "logging",
    "os",
    "random",
    "socket",
    "subprocess",
    "sys",
    "time",
    "pathlib",
}

MODE_SETTING: Final = "MOLECULE_LLM_BILLING_MODE"
# Names the variables that a container gets; writes them into an answer and reads nothing.
NAMES_WITHOUT_READING: Final = {"provision"}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).parts[0].removesuffix(".py")
        if name != "_gen":
            yield name, path, ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a module imports, of our package down to the name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.ImportFrom(level=level):
                assert level == 0, "relative imports hide the direction"


def of_ours(tree: ast.AST) -> set[str]:
    known = {path.name.removesuffix(".py") for path in SOURCES.iterdir()}
    found = set()
    for name in imported(tree):
        package, *rest = name.split(".")
        if package == PACKAGE:
            found.add(rest[0] if rest and rest[0] in known else "__init__")
    return found


ALL: Final = list(modules())


def test_every_module_has_a_place_in_the_table() -> None:
    assert {name for name, _, _ in ALL} | {"_gen"} == set(MAY_IMPORT)


@pytest.mark.parametrize(("name", "path", "tree"), ALL, ids=[str(path.relative_to(SOURCES)) for _, path, _ in ALL])
def test_a_module_imports_only_what_the_table_lets_it(name: str, path: Path, tree: ast.Module) -> None:
    del path
    assert of_ours(tree) - {name} <= MAY_IMPORT[name]


@pytest.mark.parametrize("library", ONLY_THERE)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {name for name, _, tree in ALL if any(each.split(".")[0] == library for each in imported(tree))}

    assert users <= ONLY_THERE[library]
    assert users, "the rule guards nothing"


def test_interceptors_do_not_import_each_other() -> None:
    for name, path, tree in ALL:
        if name == "interceptors" and path.name != "__init__.py":
            others = {each for each in imported(tree) if each.startswith(f"{PACKAGE}.interceptors.")}
            assert {each.split(".")[2] for each in others} <= {"_rebuild", "_outcome"}, path


@pytest.mark.parametrize("module", sorted(PURE_MODULES))
def test_a_pure_module_has_no_input_output_clock_or_task(module: str) -> None:
    tree = next(tree for name, _, tree in ALL if name == module)

    assert not {each.split(".")[0] for each in imported(tree)} & IMPURE_LIBRARIES
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.AsyncFunctionDef, ast.Await))]
    assert not {"now", "today", "utcnow"} & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "open" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_importing_the_resolver_loads_neither_grpc_nor_the_driver() -> None:
    code = "import sys, billing_grpc.resolver, billing_grpc.provision; print({'grpc', 'psycopg'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_a_process_that_serves_never_loads_what_answers_wrongly_on_purpose() -> None:
    code = (
        "import sys, billing_grpc.cli; print({'billing_grpc.conformance', 'billing_grpc.testing'} & set(sys.modules))"
    )
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
    readers = {name: found for name, _, tree in ALL if (found := environment_reads(tree))}

    # One for those who serve and one for those who ask, so that asking does not load a server.
    assert set(readers) == {"config", "client_settings"}


def test_the_billing_mode_variable_is_named_only_where_it_is_read_or_written_into_a_plan() -> None:
    named = {name for name, _, tree in ALL if mentions(tree, MODE_SETTING)}

    assert named == {"config"} | NAMES_WITHOUT_READING
    for name, _, tree in ALL:
        if name in NAMES_WITHOUT_READING:
            assert not environment_reads(tree)
            assert "os" not in set(imported(tree))


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
