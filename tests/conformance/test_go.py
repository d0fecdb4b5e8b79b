"""The Go client: formatted, vetted, generated from this contract, and passing every vector against a real server."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from billing_grpc.conformance.cases import load, load_apply
from tests.support.go_module import MODULE, ROOT, SECONDS, run

SLOW: Final = "^(TestANameThatLeadsElsewhereIsSoonFollowed|TestAPeerThatHasVanishedIsNoticed)$"
"""These wait for about ten seconds; they are tried once, with the vectors."""

PLUGINS: Final = ("protoc-gen-go", "protoc-gen-go-grpc")
TEST: Final = ("test", "-vet=off", "-count=1", "-v", "-parallel=8")
"""Most of them wait. A test of its own vets the module, once."""

SERVER: Final = shlex.join([sys.executable, "-m", "billing_grpc", "conformance-server"])


def test_the_go_client_passes_every_vector(go: str) -> None:
    done = run(go, *TEST, "-skip=^TestARealServer$", "./...", CONFORMANCE_SERVER=SERVER)
    said = done.stdout + done.stderr

    assert done.returncode == 0, said
    assert "--- SKIP" not in said
    count, applied = len(load()), len(load_apply())
    assert f"{count} of {count} vectors passed" in said
    assert f"{applied} of {applied} apply vectors passed" in said


def test_alone_and_without_a_server_the_module_skips_the_vectors_and_tries_the_rest(go: str, tmp_path: Path) -> None:
    alone = shutil.copytree(MODULE, tmp_path / "module")

    done = run(go, *TEST, f"-skip={SLOW}", "./...", folder=alone, CONFORMANCE_SERVER="", REAL_SERVER="")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "no vectors were run: set CONFORMANCE_SERVER" in done.stdout
    assert set(re.findall("--- SKIP: (.*) ", done.stdout)) == {
        "TestVectors",
        "TestAServerThatBlocksOtherNamesIsHeardOfAndBothSetsGo",
        "TestMoreIDsThanACallTakesAreAllAskedAbout",
        "TestANameTooLongToSendClosesNothing",
        "TestAVariableWhoseNameCannotBeSentDoesNotCloseThePlan",
        "TestARealServer",
    }


def test_the_go_client_has_nothing_to_complain_of(go: str) -> None:
    vetted = run(go, "vet", "./...")
    assert vetted.returncode == 0, vetted.stderr
    gofmt = str(Path(go).resolve().with_name("gofmt"))
    assert run(gofmt, "-l", ".").stdout == ""


def test_the_documents_name_the_oldest_go_and_grpc_that_the_module_takes() -> None:
    module = (MODULE / "go.mod").read_text(encoding="utf-8")
    oldest = re.findall(r"^go (\S+)$|google.golang.org/grpc v(\d+\.\d+)", module, re.MULTILINE)
    (go, _), (_, grpc) = oldest

    assert f"Go {go} and later, and with grpc-go {grpc} and later" in (MODULE / "README.md").read_text(encoding="utf-8")
    assert f"for Go {go} and later" in (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    assert f"Go {go} or later" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_go_stubs_are_those_of_the_contract(tmp_path_factory: pytest.TempPathFactory) -> None:
    missing = [each for each in PLUGINS if not (ROOT / ".tools" / each).exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not in .tools; install them with: make .tools/go.ready")
    fresh = tmp_path_factory.mktemp("generated")
    path = f"{ROOT / '.tools'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["buf", "generate", "--template", "buf.gen.go.yaml", "--output", str(fresh)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    generated = {each.name: each.read_text() for each in (fresh / "clients" / "go").rglob("*.go")}
    assert generated == {each.name: each.read_text() for each in (MODULE / "billingv1").rglob("*.go")}
    assert len(generated) == 3
