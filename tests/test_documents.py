"""What the documents say is what the code does, where that can be checked."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import report
from billing_grpc.server.settings.config import Settings
from billing_grpc.setting_names import VARIABLES
from billing_grpc.storage import migrations

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "conformance").glob("*.md"),
        *(ROOT / "clients").rglob("*.md"),
    ]
)


def test_the_grants_of_the_operations_page_are_the_ones_that_are_tested() -> None:
    assert migrations.grants().decode() in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())

    assert not [link for link in links if not (page.parent / link).exists()]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_section_that_a_link_names_exists(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text())
    named = [((page.parent / file).resolve() if file else page, anchor) for file, anchor in links]

    assert not [anchor for file, anchor in named if file.suffix == ".md" and anchor not in anchors(file)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"BILLING_GRPC_[A-Z_]*[A-Z]", page.read_text()))

    assert named <= {str(field.alias) for field in Settings.model_fields.values()} | set(VARIABLES.values())


def test_every_file_that_the_architecture_page_names_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|proto|json|yaml|sql|toml|md))`", page))
    held = {
        path.as_posix()
        for folder in ("src", "tests", "proto", "conformance", "deploy", "docs", "migrations")
        for path in (ROOT / folder).rglob("*.*")
    } | {path.as_posix() for path in ROOT.glob("*.*")}

    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in held)]


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()

    assert not [field.alias for field in Settings.model_fields.values() if f"`{field.alias}`" not in page]


def test_every_setting_of_a_caller_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()

    assert not [variable for variable in VARIABLES.values() if f"`{variable}`" not in page]


def test_the_figures_of_the_performance_page_are_those_of_the_data() -> None:
    data = json.loads((ROOT / "benchmarks" / "results" / "benchmark.json").read_text())
    page = (ROOT / "docs" / "performance.md").read_text()

    assert report.replaced(page, data) == page
    assert report.figures(data) in page
    assert report.profile(data) in page
