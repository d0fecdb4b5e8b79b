"""Every Python snippet of the documents runs against a real server, in the order of its page."""

import ast
import asyncio
import inspect
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from billing_grpc.addresses import TcpAddress
from billing_grpc.client import BillingClient, ClientTls
from billing_grpc.server.auth.principals import Principals, token_digest
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.listener import AccessPolicy
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.testing import InMemoryRepository, running_server
from tests.support.certificates import Authority

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [
    page for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md")]) if "```python" in page.read_text()
]
WORKSPACE: Final = "7f1fc6a0-0000-4000-8000-000000000001"
"""Its organisation has its own vendor contract, so that the snippets may do everything."""


class Stand:
    """A server as the snippets expect it, on a thread of its own: a snippet may block its own."""

    def __init__(self, folder: Path) -> None:
        servers = Authority.new("servers")
        certificate, key = servers.issue(dns=("localhost",)).write(folder, "server")
        self.ca, self.token = folder / "ca.crt", folder / "billing-token"
        self.ca.write_bytes(servers.pem)
        self.token.write_text("a-token")
        digests = f'token_sha256 = ["{token_digest("a-token")}"]'
        principals = Principals.parse(f'[[principal]]\nname = "admin"\nrole = "admin"\n{digests}\n')
        self._policy = AccessPolicy(FixedPrincipals(principals), tls=TlsFiles(certificate, key, None))
        self.target = ""
        self.ready, self.done = threading.Event(), threading.Event()

    async def serve(self) -> None:
        address = TcpAddress("localhost", 0, "tls")
        repository = InMemoryRepository({WORKSPACE: "platform_managed"})
        async with running_server(repository, access_policy=self._policy, address=address) as target:
            self.target = f"localhost:{target.rpartition(':')[2]}"
            self.ready.set()
            await asyncio.to_thread(self.done.wait)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(asyncio.run, made.serve())
        assert made.ready.wait(30)
        try:
            yield made
        finally:
            made.done.set()
            serving.result()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
async def test_every_python_snippet_of_a_page_runs(page: Path, stand: Stand) -> None:
    text = page.read_text()
    for shown, real in (
        ("billing.internal:50051", stand.target),
        ("/run/secrets/billing-token", str(stand.token)),
        ("/etc/billing/ca.crt", str(stand.ca)),
    ):
        text = text.replace(f'"{shown}"', repr(real))
    names: dict[str, Any] = {"workspace_id": WORKSPACE, "workspace_ids": [WORKSPACE, "no id"]}
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    async with BillingClient(stand.target, token=stand.token, tls=ClientTls(ca=stand.ca)) as client:
        for number, snippet in enumerate(snippets, 1):
            code = compile(snippet, f"snippet {number} of {page.name}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            names["client"] = client
            before = set(names)
            result = eval(code, names)  # noqa: S307 - our own documents
            if inspect.isawaitable(result):
                await result
            # What a snippet defines for one workspace.
            for name in names.keys() - before:
                if inspect.isfunction(names[name]) and [*inspect.signature(names[name]).parameters] == ["workspace_id"]:
                    names[name](WORKSPACE)

    assert snippets
