"""The gateway in a real browser: its page, and a client of another site."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.support.browsers import build_client, chromium, node_modules, other_site
from tests.support.gateways import TOKENS, Gateway, Site, gateway, site
from tests.support.polling import until
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, stored_mode

SOON: Final = 15_000
"""Milliseconds in which the page shows something; it looks every three seconds."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


class Seen:
    """What a tab did beside what it shows: its errors, and the origins that it asked."""

    def __init__(self, tab: Any) -> None:
        self.errors: list[str] = []
        self.addresses: list[str] = []
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("console", lambda line: self.errors.append(line.text) if "Content Security" in line.text else None)
        tab.on("request", lambda request: self.addresses.append(request.url))


@pytest.fixture
def new_tab(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens tabs, each of a browser that knows nothing; none of them may fail or ask another origin."""
    opened: list[tuple[Any, Seen, str]] = []

    def open_tab(url: str, **options: Any) -> Any:
        tab = browser.new_context(**options).new_page()
        tab.set_default_timeout(SOON)
        opened.append((tab, Seen(tab), url.partition("#")[0]))
        tab.goto(url)
        return tab

    yield open_tab
    for tab, seen, url in opened:
        tab.context.close()
        assert seen.errors == []
        assert not [each for each in seen.addresses if not each.startswith((url, "data:"))]


@pytest.fixture(scope="module")
def server(browser: Any, module_serve: Serve, module_database_url: str) -> Server:
    del browser  # where it is missing, no server has to start
    return module_serve(settings={"DATABASE_URL": module_database_url})


@pytest.fixture(scope="module")
def local(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("local") / "gateway"
    with gateway(folder, "--address", server.address, "--local-admin") as running:
        yield running


def printed(local: Gateway) -> str:
    """The newest address of the page."""
    lines = until(lambda: re.findall(r"^page: (\S+)$", local.process.stdout, re.MULTILINE))
    return str(lines[-1])


@pytest.fixture
def admin(local: Gateway, new_tab: Callable[..., Any]) -> Any:
    """A tab that was let in."""
    address = printed(local)
    tab = new_tab(address)
    tab.locator("#find").wait_for()
    until(lambda: printed(local) != address)
    return tab


def store(database_url: str, workspace_id: str, mode: str | None) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s", [mode, workspace_id])


def look_at(tab: Any, workspace_id: str) -> None:
    tab.fill("#text", workspace_id)
    tab.press("#text", "Enter")
    tab.locator("#change").wait_for()


def sees(tab: Any, place: str, text: str) -> None:
    """Wait until a place shows this text."""
    tab.locator(place).filter(has_text=text).first.wait_for()


def preview(tab: Any, mode: str, reason: str = "") -> None:
    tab.check(f"input[value={mode}]")
    tab.fill("#reason", reason)
    tab.click("#preview")
    sees(tab, "#outcome", "Preview:")


def test_the_printed_address_lets_one_browser_in_and_leaves_no_secret(
    local: Gateway, new_tab: Callable[..., Any]
) -> None:
    address = printed(local)
    tab = new_tab(address)
    tab.locator("#find").wait_for()
    assert tab.url == f"{local.url}/"
    assert tab.evaluate("[document.cookie, localStorage.length, history.length]") == [
        "",
        0,
        2,
    ]  # the blank page, and one entry: without the secret
    again = new_tab(address)
    sees(again, "#trouble", "used already")
    assert not again.locator("#find").is_visible()
    tab.reload()
    tab.locator("#find").wait_for()


def test_a_change_is_previewed_made_and_shown_with_its_author_and_reason(
    admin: Any, module_database_url: str, workspace: str
) -> None:
    look_at(admin, workspace.upper())
    assert admin.locator("#apply").is_disabled()
    preview(admin, "BILLING_MODE_BYOK", "own <b>contract</b>")
    sees(admin, "#outcome", "platform_managed (constant_fallback) becomes byok (workspace_override)")
    assert stored_mode(module_database_url, workspace) is None
    admin.click("#apply")
    sees(admin, "#outcome", "Changed: it is byok")
    assert stored_mode(module_database_url, workspace) == "byok"
    sees(admin, "#facts", "own <b>contract</b>")
    sees(admin, "#facts", "by local")
    sees(admin, "#log tbody", "own <b>contract</b>")
    assert admin.locator("#apply").is_disabled()


def test_the_log_names_the_person_at_the_page(admin: Any, workspace: str) -> None:
    look_at(admin, workspace)
    admin.fill("#actor", "Ada Lovelace")
    preview(admin, "BILLING_MODE_DISABLED")
    admin.click("#apply")
    sees(admin, "#log tbody", "Ada Lovelace (local)")
    assert admin.input_value("#actor") == "Ada Lovelace"


@pytest.fixture
def tenant(serve: Serve, browser: Any, database_url: str, tmp_path: Path, new_tab: Callable[..., Any]) -> Iterator[Any]:
    """A tab before a database with 40 workspaces: 30 inherit, 8 are disabled, one is byok and one is corrupt."""
    del browser
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE workspaces DROP CONSTRAINT IF EXISTS workspaces_llm_billing_mode_check")
        connection.execute(
            """INSERT INTO workspaces (id, name, llm_billing_mode)
            SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, '<b>team</b> ' || n,
                   CASE WHEN n = 40 THEN 'BYOK' WHEN n = 39 THEN 'byok' WHEN n > 30 THEN 'disabled' END
            FROM generate_series(1, 40) AS n"""
        )
    server = serve(settings={"DATABASE_URL": database_url})
    with gateway(tmp_path / "gateway", "--address", server.address, "--local-admin") as running:
        tab = new_tab(printed(running))
        sees(tab, "#list-caption", "25 workspaces")
        yield tab


def names(tab: Any) -> list[str]:
    return [str(each) for each in tab.locator("#list tbody button").all_inner_texts()]


def lists(tab: Any, count: int) -> None:
    """Wait until the list has so many rows."""
    until(lambda: len(names(tab)) == count)


def test_the_list_has_pages_and_names_that_stay_text(tenant: Any) -> None:
    assert names(tenant) == [f"<b>team</b> {n}" for n in range(1, 26)]
    assert tenant.locator("#list-back").is_disabled()
    tenant.click("#list-next")
    sees(tenant, "#list-caption", "15 workspaces")
    assert names(tenant)[0] == "<b>team</b> 26"
    assert tenant.locator("#list-next").is_disabled()
    tenant.click("#list-back")
    sees(tenant, "#list-caption", "25 workspaces")
    tenant.locator("#list tbody button").first.click()
    sees(tenant, "#one-title", "00000000-0000-4000-8000-000000000001")
    assert tenant.locator("#list tr[aria-current]").count() == 1


def test_a_workspace_is_found_by_a_part_of_its_name_or_id(tenant: Any) -> None:
    for part in ("TEAM</B> 39", "000000000039"):
        tenant.fill("#text", part)
        tenant.press("#text", "Enter")
        sees(tenant, "#list-caption", "1 workspace")
        until(lambda: names(tenant) == ["<b>team</b> 39"])
        tenant.fill("#text", "")
        tenant.press("#text", "Enter")
        sees(tenant, "#list-caption", "25 workspaces")


# id: the filter, its option, how many workspaces it leaves
FILTERS: Final = {
    "a mode": ("#by-mode", "disabled", 8),
    "a source": ("#by-source", "workspace_override", 9),
    "an override": ("#by-override", "present", 10),
    "a corrupt override": ("#by-override", "not recognised", 1),
}


def test_filters_narrow_the_list(tenant: Any) -> None:
    for place, option, left in FILTERS.values():
        tenant.select_option(place, label=option)
        sees(tenant, "#list-caption", f"{left} workspace")
        lists(tenant, left)
        tenant.select_option(place, label="all")
        sees(tenant, "#list-caption", "25 workspaces")


def test_the_counts_say_what_another_default_would_change(tenant: Any) -> None:
    sees(tenant, "#counts", "platform_managed: 31")
    for count in (
        "byok: 1",
        "disabled: 8",
        "overrides not recognised: 1",
        "default of the organisation: platform_managed",
    ):
        sees(tenant, "#counts", count)
    tenant.select_option("#suppose", label="byok")
    sees(tenant, "#moves", "30 from platform_managed to byok")
    tenant.check("#by-change")
    tenant.click("#list-next")
    sees(tenant, "#list-caption", "5 workspaces, with the supposed default")
    tenant.select_option("#suppose", label="platform_managed")
    sees(tenant, "#moves", "No workspace would change.")
    sees(tenant, "#list-caption", "0 workspaces")


def test_the_log_shows_a_change_of_the_organisations_default(
    browser: Any, serve: Serve, database_url: str, tmp_path: Path, new_tab: Callable[..., Any]
) -> None:
    del browser
    server = serve(settings={"DATABASE_URL": database_url, "MOLECULE_LLM_BILLING_MODE": "byok"})
    with gateway(tmp_path / "gateway", "--address", server.address, "--local-admin") as running:
        tab = new_tab(printed(running))
        sees(tab, "#counts", "default of the organisation: byok")
        sees(tab, "#log tbody tr", "default of the organisation")
        sees(tab, "#log tbody tr", "byok")
        sees(tab, "#log tbody tr", "server ")


def test_a_preview_that_was_edited_has_to_be_previewed_again(admin: Any, workspace: str) -> None:
    look_at(admin, workspace)
    preview(admin, "BILLING_MODE_BYOK")
    admin.check("input[value=BILLING_MODE_DISABLED]")
    assert admin.locator("#apply").is_disabled()


def test_a_conflict_changes_nothing_and_is_explained(admin: Any, module_database_url: str, workspace: str) -> None:
    look_at(admin, workspace)
    preview(admin, "BILLING_MODE_BYOK")
    admin.evaluate("running = true")  # no look in between: the server itself notices
    store(module_database_url, workspace, "disabled")
    admin.click("#apply")
    sees(admin, "#outcome", "It is now disabled (workspace_override)")
    sees(admin, "#outcome", "database_user:")
    assert stored_mode(module_database_url, workspace) == "disabled"
    sees(admin, "#facts", "disabled")
    admin.evaluate("running = false")
    preview(admin, "BILLING_MODE_BYOK")
    sees(admin, "#outcome", "disabled (workspace_override) becomes byok")
    admin.click("#apply")
    sees(admin, "#outcome", "Changed:")
    assert stored_mode(module_database_url, workspace) == "byok"


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        ("internal", "SERVER_UNREACHABLE", "The outcome is unknown."),
        ("resource_exhausted", "", "The outcome is unknown."),
        ("failed_precondition", "WRITE_NOT_APPLIED", "Not changed:"),
        ("resource_exhausted", "OVERLOADED", "Not changed:"),
    ],
)
def test_a_change_whose_answer_was_cut_short_has_an_unknown_outcome(
    admin: Any, workspace: str, code: str, reason: str, said: str
) -> None:
    info = {"type": "google.rpc.ErrorInfo", "debug": {"reason": reason}}
    failure = {"code": code, "message": "no answer", "details": [info] if reason else []}
    look_at(admin, workspace)
    preview(admin, "BILLING_MODE_BYOK")
    admin.route("**/SetWorkspaceBillingMode", lambda route: route.fulfill(status=500, json=failure))
    admin.click("#apply")
    sees(admin, "#outcome", said)


def test_the_page_notices_a_change_by_itself_and_voids_the_preview(
    admin: Any, module_database_url: str, workspace: str
) -> None:
    look_at(admin, workspace)
    preview(admin, "BILLING_MODE_BYOK")
    store(module_database_url, workspace, "disabled")
    sees(admin, "#outcome", "It is now disabled")
    sees(admin, "#facts", "disabled")
    assert admin.locator("#apply").is_disabled()


def test_a_corrupt_override_has_a_banner_and_stays_text(admin: Any, module_database_url: str) -> None:
    with psycopg.connect(module_database_url) as connection:
        connection.execute("ALTER TABLE workspaces DROP CONSTRAINT IF EXISTS workspaces_llm_billing_mode_check")
    corrupt = add_workspace(module_database_url, "<img src=x onerror=alert(1)>")
    look_at(admin, corrupt)
    sees(admin, "#corrupt", "not a recognised mode")
    sees(admin, "#facts", "<img src=x onerror=alert(1)>")
    sees(admin, "#facts", "platform_managed")
    assert admin.locator("img").count() == 0


def test_an_unknown_id_is_said_to_be_unknown(admin: Any) -> None:
    admin.fill("#text", "5f0e9b0e-0000-4000-8000-000000000000")
    admin.press("#text", "Enter")
    sees(admin, "#unread", "WORKSPACE_NOT_FOUND")
    assert not admin.locator("#change").is_visible()


def test_an_outage_is_shown_closed_and_ends_by_itself(
    browser: Any, serve: Serve, module_database_url: str, tmp_path: Path, new_tab: Callable[..., Any]
) -> None:
    del browser
    mine = serve(settings={"DATABASE_URL": module_database_url})
    workspace = add_workspace(module_database_url, "byok")
    with gateway(tmp_path / "gateway", "--address", mine.address, "--local-admin") as running:
        tab = new_tab(printed(running))
        look_at(tab, workspace)
        sees(tab, "#facts", "byok")
        mine.stop()
        sees(tab, "#unread", "counts as platform_managed")
        sees(tab, "#trouble", "SERVER_UNREACHABLE")
        lists(tab, 0)
        assert not tab.locator("#summary").is_visible()
        assert "byok" not in tab.locator("#facts").inner_text()
        sees(tab, "#facts", "platform_managed")
        assert not tab.locator("#change").is_visible()
        serve(settings={"DATABASE_URL": module_database_url, "BILLING_GRPC_LISTEN": mine.address})
        sees(tab, "#facts", "byok")
        tab.locator("#trouble").wait_for(state="hidden")
        running.process.stop()
        sees(tab, "#trouble", "the gateway does not answer")
        assert "byok" not in tab.locator("#facts").inner_text()


def test_an_answer_that_makes_no_sense_leaves_no_old_mode_on_the_page(admin: Any, workspace: str) -> None:
    look_at(admin, workspace)
    admin.locator("#summary").wait_for()
    assert admin.locator("#facts").inner_text()
    admin.route("**/GetWorkspaceBillingMode", lambda route: route.fulfill(json={"billingMode": {}}))
    sees(admin, "#trouble", "This page failed")
    assert admin.locator("#facts").inner_text() == ""
    assert not admin.locator("#summary").is_visible()
    lists(admin, 0)


def test_the_keyboard_alone_is_enough(admin: Any, module_database_url: str, workspace: str) -> None:
    keys = admin.keyboard
    admin.locator("#text").focus()
    keys.type(workspace)
    keys.press("Enter")
    admin.locator("#change").wait_for()
    assert admin.evaluate("document.activeElement.id") == "one"
    keys.press("Tab")
    keys.press("Space")
    for _ in range(3):
        keys.press("ArrowDown")
    keys.press("Tab")
    keys.type("by keyboard")
    keys.press("Enter")
    sees(admin, "#outcome", "becomes disabled")
    for _ in ("name", "preview", "apply"):
        keys.press("Tab")
    assert admin.evaluate("document.activeElement.id") == "apply"
    keys.press("Enter")
    sees(admin, "#outcome", "Changed: it is disabled")
    assert stored_mode(module_database_url, workspace) == "disabled"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_and_has_no_barriers(
    local: Gateway, new_tab: Callable[..., Any], workspace: str, width: int, scheme: str
) -> None:
    axe = (node_modules() / "axe-core" / "axe.min.js").read_text()
    address = printed(local)
    tab = new_tab(address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    until(lambda: printed(local) != address)
    look_at(tab, workspace)
    preview(tab, "BILLING_MODE_BYOK")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
    tab.evaluate(axe)
    found = tab.evaluate("axe.run().then((result) => result.violations.map((each) => [each.id, each.nodes[0].html]))")
    assert found == []


@pytest.fixture(scope="module")
def place(
    browser: Any, module_serve: Serve, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Site:
    del browser
    return site(module_serve, module_database_url, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Another site: its origin, and its folder."""
    folder = tmp_path_factory.mktemp("web")
    with other_site(folder) as origin:
        yield origin, folder


@pytest.fixture(scope="module")
def strict(place: Site, web: tuple[str, Path]) -> Iterator[Gateway]:
    """A gateway before a server with tokens, which the other site may call."""
    with gateway(place.folder / "strict", *place.upstreams["mtls"], "--origin", web[0]) as running:
        yield running


def test_a_token_is_asked_for_and_ends_with_the_tab(
    strict: Gateway, new_tab: Callable[..., Any], workspace: str
) -> None:
    tab = new_tab(strict.url)
    assert tab.evaluate("document.activeElement.id") == "token"
    tab.fill("#token", "bgrpc_stranger")
    tab.press("#token", "Enter")
    sees(tab, "#trouble", "not valid")
    tab.fill("#token", TOKENS["reader"])
    tab.press("#token", "Enter")
    look_at(tab, workspace)
    assert tab.evaluate("[document.cookie, localStorage.length, location.href]") == ["", 0, f"{strict.url}/"]
    tab.check("input[value=inherit]")
    tab.click("#preview")
    sees(tab, "#outcome", "ROLE_DENIED")
    second = tab.context.new_page()
    second.goto(strict.url)
    second.locator("#enter").wait_for()
    tab.click("#leave")
    tab.locator("#enter").wait_for()
    assert not tab.locator("#one").is_visible()
    assert tab.evaluate("sessionStorage.length") == 0


@pytest.fixture(scope="module")
def client(web: tuple[str, Path]) -> str:
    """The address of a page of the other site that holds a client of connect-web."""
    origin, folder = web
    build_client(folder)
    (folder / "client.html").write_text('<!doctype html><title>client</title><script src="client.js"></script>')
    return f"{origin}/client.html"


@pytest.mark.parametrize("kind", ["connect, json", "connect, binary", "grpc-web"])
def test_connect_web_works_unchanged(browser: Any, strict: Gateway, client: str, workspace: str, kind: str) -> None:
    tab = browser.new_page()
    tab.goto(client)
    said = tab.evaluate("(given) => run(...given)", [kind, strict.url, TOKENS["admin"], workspace])
    tab.close()
    assert said == {
        "before": "PLATFORM_MANAGED",
        "after": "BYOK",
        "reason": kind,
        "stale": {"code": "Aborted", "reasons": ["ETAG_STALE"], "current": ["BYOK"]},
        "denied": {"code": "Unauthenticated", "reasons": ["CREDENTIALS_INVALID"], "current": []},
        "statuses": [1],
    }


OLD_ROUTE: Final = """async ([url, token, body]) => {
  const headers = {authorization: "Bearer " + token, "content-type": "application/json"};
  try {
    const answer = await fetch(url, {method: "PUT", headers, body});
    return [answer.status, (await answer.json()).resolved_mode, answer.headers.get("etag") !== null];
  } catch (error) {
    return String(error);
  }
}"""


def test_a_site_that_is_not_listed_can_do_nothing(
    browser: Any, strict: Gateway, web: tuple[str, Path], module_database_url: str, workspace: str, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text(f'<!doctype html><title>x</title><iframe src="{strict.url}/"></iframe>')
    (web[1] / "index.html").write_text("<!doctype html><title>x</title>")
    asked = [f"{strict.url}/admin/workspaces/{workspace}/llm-billing-mode", TOKENS["admin"], '{"mode": "byok"}']
    tab = browser.new_page()
    with other_site(tmp_path) as stranger:
        tab.goto(stranger)
        assert "Failed to fetch" in tab.evaluate(OLD_ROUTE, asked)
        assert stored_mode(module_database_url, workspace) is None
        (_, frame) = tab.frames
        assert frame.url == "chrome-error://chromewebdata/"
    tab.goto(web[0])
    assert tab.evaluate(OLD_ROUTE, asked) == [200, "byok", True]
    tab.close()
