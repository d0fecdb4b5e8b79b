"""Programs that use the Go client as another team does: every snippet of the documents, and a second copy of the stubs."""

import re
import shutil
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.support.go_module import MODULE, PATH, ROOT, other_module, run

PAGES: Final = [ROOT / "docs" / "clients.md", MODULE / "README.md"]
STANDARD: Final = ("context", "errors", "fmt", "log", "maps", "os", "slices")
PACKAGES: Final = {**{each: each for each in STANDARD}, "billing": f"{PATH}/billing", "pb": f"{PATH}/billingv1"}
SURROUNDINGS: Final = """package main

// What the snippets take for granted.
var (
	proxy        string
	workspaceIDs []string
	fallbacks    counters
)

type counters struct{}

type counter struct{}

func (counters) WithLabelValues(...string) counter { return counter{} }

func (counter) Add(float64) {}

func main() {}
"""
CONFLICT: Final = "GOLANG_PROTOBUF_REGISTRATION_CONFLICT"
TWICE: Final = f"""package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"{PATH}/billing"

	other "team.example/twice/stubs"
)

const id = "7f1fc6a0-0000-4000-8000-00000000000a"

// stale is a server of the other copy's: every etag is stale.
type stale struct {{
	other.UnimplementedBillingModeServiceServer
}}

func (stale) SetWorkspaceBillingMode(
	context.Context, *other.SetWorkspaceBillingModeRequest,
) (*other.SetWorkspaceBillingModeResponse, error) {{
	current := &other.WorkspaceBillingMode{{
		Etag: "42", Resolution: &other.BillingModeResolution{{WorkspaceId: id, ResolvedMode: 1, Source: 3, OrgDefault: 1}},
	}}
	info := &errdetails.ErrorInfo{{Domain: "billing.molecule", Reason: "ETAG_STALE"}}
	failed, _ := status.New(codes.Aborted, "stale").WithDetails(info, current)
	return nil, failed.Err()
}}

func main() {{
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {{
		panic(err)
	}}
	server := grpc.NewServer()
	other.RegisterBillingModeServiceServer(server, stale{{}})
	go server.Serve(listener)
	client, err := billing.Dial(listener.Addr().String(), billing.Credentials{{}}, billing.Options{{}})
	if err != nil {{
		panic(err)
	}}
	_, err = client.Set(context.Background(), id, billing.BYOK, billing.SetOptions{{Etag: "41"}})
	var stale *billing.EtagStaleError
	if !errors.As(err, &stale) {{
		panic(err)
	}}
	fmt.Println(stale.Current.Etag)
}}
"""


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```go\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def as_file(number: int, snippet: str) -> str:
    """A file that holds the snippet as the body of a function, with the packages that it uses."""
    body = re.sub(r'^import (\(.*?^\)|"[^"]*")\n', "", snippet, flags=re.MULTILINE | re.DOTALL)
    used = {name: path for name, path in PACKAGES.items() if re.search(rf"\b{name}\.", body)}
    used |= {"context": "context", "billing": PACKAGES["billing"]}
    imports = "".join(f'\t{name} "{path}"\n' for name, path in used.items())
    function = f"func snippet{number}(ctx context.Context, client *billing.Client, workspaceID string) error"
    return f"package main\n\nimport (\n{imports})\n\n{function} {{\n{body}\nreturn nil\n}}\n"


def test_every_go_snippet_of_the_documents_compiles(go: str, tmp_path: Path) -> None:
    module = other_module(tmp_path, "example.org/snippets")
    found = [snippet for page in PAGES for snippet in snippets(page)]
    (module / "main.go").write_text(SURROUNDINGS, encoding="utf-8")
    for number, snippet in enumerate(found):
        (module / f"snippet{number}.go").write_text(as_file(number, snippet), encoding="utf-8")

    built = run(go, "vet", "./...", folder=module)

    assert built.returncode == 0, built.stderr
    assert len(snippets(PAGES[0])) >= 5


def test_the_documented_command_gets_all_that_a_program_needs(go: str, tmp_path: Path) -> None:
    program, published = tmp_path / "program", tmp_path / "published"
    program.mkdir()
    (program / "main.go").write_text(
        f'package main\n\nimport _ "{PATH}/billing"\n\nfunc main() {{}}\n', encoding="utf-8"
    )
    publish(published, "v0.1.0")
    at_hand = Path(run(go, "env", "GOMODCACHE").stdout.strip()) / "cache" / "download"
    variables = {
        "GOPROXY": f"file://{published},file://{at_hand}",
        "GOMODCACHE": str(tmp_path / "modules"),
        "GOFLAGS": "-modcacherw",
        "GOSUMDB": "off",
    }
    (command,) = {found for page in PAGES for found in re.findall(r"go get \S*[\w/]", page.read_text(encoding="utf-8"))}

    for arguments in (("mod", "init", "example.org/program"), tuple(command.split()[1:]), ("list", "-deps", ".")):
        done = run(go, *arguments, folder=program, **variables)
        assert done.returncode == 0, done.stderr


def publish(folder: Path, version: str) -> None:
    """Write the module of this tree as a proxy for Go modules would serve it."""
    versions = folder / PATH / "@v"
    versions.mkdir(parents=True)
    (versions / "list").write_text(version + "\n")
    (versions / f"{version}.info").write_text(f'{{"Version": "{version}", "Time": "2026-01-01T00:00:00Z"}}')
    shutil.copy(MODULE / "go.mod", versions / f"{version}.mod")
    with zipfile.ZipFile(versions / f"{version}.zip", "w") as archive:
        for path in MODULE.rglob("*"):
            if path.is_file():
                archive.write(path, f"{PATH}@{version}/{path.relative_to(MODULE)}")


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module that holds a copy of the stubs of its own."""
    module = other_module(tmp_path_factory.mktemp("twice"), "team.example/twice")
    shutil.copytree(MODULE / "billingv1", module / "stubs")
    (module / "main.go").write_text(TWICE, encoding="utf-8")
    return module


def documented_flags() -> str:
    (flags,) = re.findall(r'go build -ldflags "(.*)"', PAGES[0].read_text(encoding="utf-8"))
    return str(flags)


def test_two_copies_of_the_stubs_end_a_program_unless_it_is_told(go: str, twice: Path) -> None:
    assert run(go, "build", "-o", "program", ".", folder=twice).returncode == 0

    ended = run("./program", folder=twice)
    told = run("./program", folder=twice, **{CONFLICT: "warn"})

    assert ended.returncode != 0
    # The library varies the space before it.
    assert 'file "molecule/billing/v1/billing_mode.proto" is already registered' in ended.stderr
    assert (told.returncode, told.stdout) == (0, "42\n")


def test_a_program_with_two_copies_starts_if_it_is_linked_as_documented(go: str, twice: Path) -> None:
    built = run(go, "build", "-ldflags", documented_flags(), "-o", "linked", ".", folder=twice)
    assert built.returncode == 0, built.stderr

    ended = run("./linked", folder=twice)

    assert (ended.returncode, ended.stdout) == (0, "42\n")


def test_the_stubs_of_the_module_replace_a_copy_under_the_same_names(go: str, twice: Path) -> None:
    text = TWICE.replace("team.example/twice/stubs", f"{PATH}/billingv1")
    (twice / "one").mkdir()
    (twice / "one" / "main.go").write_text(text, encoding="utf-8")
    assert run(go, "build", "-o", "single", "./one", folder=twice).returncode == 0

    assert run("./single", folder=twice).returncode == 0
