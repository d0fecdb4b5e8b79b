"""A real browser, and a page of another site in it."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

ROOT: Final = Path(__file__).parents[2]
NODE_MODULES: Final = ROOT / ".tools" / "browser" / "node_modules"
SOURCES: Final = ROOT / "tests" / "browser"
_PROGRAMS: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first is the same browser without the parts that draw windows, and takes half the processor time."""


def _missing(what: str, remedy: str) -> None:
    pytest.skip(f"{what} is not installed; install it with: {remedy}")


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a headless Chromium, driven by playwright; skip the test where one of them is missing."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        _missing("Chromium", "apt-get install chromium-headless-shell")
    if find_spec("playwright") is None:
        _missing("playwright", "make .venv/browser.ready")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - where it is installed

    with sync_playwright() as driver:
        # Chromium's sandbox does not start for root, as in a container.
        browser = driver.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


def node_modules() -> Path:
    """Return the folder of the packages of npm; skip the test where they are missing."""
    if not (ROOT / ".tools" / "browser.ready").exists() or shutil.which("node") is None:
        _missing("connect-web", "make .tools/browser.ready")
    return NODE_MODULES


def build_client(folder: Path) -> None:
    """Write `client.js` into a folder: connect-web, and stubs that buf made of the contract in `proto/`."""
    modules = node_modules()
    (folder / "build").mkdir()
    shutil.copy(SOURCES / "client.js", folder / "build")
    image = folder / "build" / "image.binpb"
    image.write_bytes(_with_imports(health_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR).SerializeToString())
    places = [str(Path(sys.executable).parent), str(modules / ".bin"), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(places), "NODE_PATH": str(modules)}
    generate = ["buf", "generate", "--template", str(SOURCES / "buf.gen.yaml"), "--output", str(folder / "build")]
    for command in (
        [*generate, str(ROOT)],
        [*generate, str(image)],
        ["esbuild", "client.js", "--bundle", "--format=iife", f"--outfile={folder / 'client.js'}"],
    ):
        place = folder / "build" if command[0] == "esbuild" else ROOT
        ended = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr


def _with_imports(*roots: FileDescriptor) -> FileDescriptorSet:
    files = FileDescriptorSet()

    def add(file: FileDescriptor) -> None:
        for each in file.dependencies:
            add(each)
        if file.name not in {known.name for known in files.file}:
            file.CopyToProto(files.file.add())

    for root in roots:
        add(root)
    return files


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def other_site(folder: Path) -> Iterator[str]:
    """Serve a folder at an origin of its own; yield the origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
