"""A real Envoy with the configuration of `deploy/`, before servers on this machine."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.polling import PATIENCE, until
from tests.support.ports import free_port

CONFIGURATION: Final = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"


def program() -> str:
    """Return the path of Envoy; skip the test where it is missing."""
    found = shutil.which("envoy")
    if found is None:
        pytest.skip("envoy is not in PATH; install it with: make validators")
    return found


def _adapted(ports: Sequence[int], listen: int, ca: Path, origins: Sequence[str]) -> dict[str, Any]:
    """The configuration with what an operator changes, and the servers of a test in place of those of the Service."""
    found: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text())
    (listener,), (cluster,) = found["static_resources"]["listeners"], found["static_resources"]["clusters"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": listen}
    (host,) = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    cors = host["typed_per_filter_config"]["envoy.filters.http.cors"]
    assert cors["allow_origin_string_match"] == []
    cors["allow_origin_string_match"] = [{"exact": origin} for origin in origins]
    validation = cluster["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"]
    validation["trusted_ca"]["filename"] = str(ca)
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p}}}} for p in ports
    ]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    return found


@contextmanager
def envoy(folder: Path, ports: Sequence[int], ca: Path, *, healthy: int, origins: Sequence[str] = ()) -> Iterator[int]:
    """Run Envoy before the servers at these ports; yield its port once it takes so many of them for healthy."""
    listen, admin = free_port(), free_port()
    configuration = _adapted(ports, listen, ca, origins)
    configuration["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}}
    path = folder / "envoy.json"
    path.write_text(json.dumps(configuration))
    with (folder / "envoy.log").open("wb") as log:
        command = [
            program(),
            "--config-path",
            str(path),
            "--log-level",
            "warning",
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
        ]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until(lambda: _healthy(admin) == healthy or process.poll() is not None)
            assert process.poll() is None, (folder / "envoy.log").read_text()
            yield listen
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _healthy(admin: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/clusters", timeout=PATIENCE) as answer:
            text = answer.read().decode()
    except OSError:
        return -1
    return sum("::health_flags::healthy" in line for line in text.splitlines())
