"""The page as a browser shows it. Needs `make look`: Playwright, axe-core and Debian's Chromium."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tdev_models import Settings, settings, sync, web
from tdev_models.web import live
from tdev_models.web.report import report
from tests.web.conftest import served

CHROMIUM = shutil.which("chromium")
FOUND = [importlib.util.find_spec(name) for name in ("playwright", "axe_playwright_python")]
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or None in FOUND,
    reason="!!! no page was opened in a browser: 'apt-get install chromium', then 'make look'",
)
VIEWS = (
    *("/", "/?show=all", "/failures?since=30d", "/agents?days=30", "/usage?days=30", "/workers"),
    *("/comparison?agent_name=search&a=old&b=new&days=30", "/projects?user_id=u001"),
)
# As bundled with axe-core: what WCAG 2.2 AA asks for, and good practice.
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens pages on which an error or a refused script fails the test."""
    contexts, said = [], list[str]()

    def refuse(dialog: Any) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    def opened(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", refuse)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def violations(page: Any) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{one['id']}: {node['html'][:150]}" for one in found for node in one["nodes"]]


def test_every_view_is_accessible_at_every_width(month: Settings, open_page: Any) -> None:
    (failure, *_) = sync.get_failed_executions(include_recovered=True, limit=1)
    of_one = (
        f"/session?session_id={failure.session_id}&tracebacks=1",
        f"/execution?execution_id={failure.execution_id}&agent_name={failure.agent_name}",
    )
    with served(web.app(action_token="x" * 16)) as address:
        for scheme, language, width in (
            ("light", "en-US", 1280),
            ("dark", "ko-KR", 360),
            ("dark", "en-US", 3840),
        ):
            page = open_page(
                color_scheme=scheme, locale=language, viewport={"width": width, "height": 800}
            )
            for view in (*VIEWS, *of_one):
                page.goto(address + view)
                where = f"{view} at {width} in {scheme}"
                page.evaluate(
                    "document.querySelectorAll('details').forEach(one => one.open = true)"
                )
                assert width > 1280 or violations(page) == [], where
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, where


def test_the_keyboard_reaches_everything(month: Settings, open_page: Any) -> None:
    with served(web.app()) as address:
        page = open_page()
        page.goto(address)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.name") == "show"
        page.keyboard.type("C")
        page.keyboard.press("Enter")
        for _ in range(4):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/?show=COMPLETED*")
        assert page.locator("h2").inner_text() == "COMPLETED"


def test_without_javascript_it_is_complete(month: Settings, open_page: Any) -> None:
    (failed,) = sync.list_pipeline_sessions(status="FAILED", limit=1)
    with served(web.app()) as address:
        page = open_page(java_script_enabled=False)
        page.goto(address)
        page.get_by_role("link", name=failed.session_id).click()
        assert page.locator("h1").inner_text() == failed.session_id
        assert page.locator(".gantt rect").count() > 1
        page.get_by_role("link", name="nl_input").first.click()
        page.get_by_text("Output").click()


def test_a_live_run_is_seen_progressing_and_failing_without_reload(
    strict_store: Settings, open_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SESSION_SECONDS", 0.2)
    monkeypatch.setattr(live, "LIST_SECONDS", 0.2)
    from playwright.sync_api import expect

    with served(web.app()) as address:
        page, overview = open_page(), open_page()
        with pytest.raises(KeyError), sync.track_session("s") as session:
            with session.agent("nl_input") as run:
                page.goto(f"{address}/session?session_id=s")
                overview.goto(address)
                expect(overview.locator(".progress")).to_have_text("0/9")
                page.evaluate("window.kept = true")
                expect(page.locator(".gantt .status")).to_have_text("RUNNING")
                page.get_by_role("link", name="nl_input").focus()
                run.output = {}
            expect(page.locator(".lead .progress")).to_have_text("1/9")
            expect(overview.locator(".progress")).to_have_text("1/9")
            # Whoever was on a link still is.
            assert page.evaluate("document.activeElement.textContent") == "nl_input"
            with session.agent("ui_selection"):
                expect(page.locator("[data-said]")).to_contain_text("ui_selection")
                raise KeyError("no such component")
        expect(page.locator(".lead .status")).to_have_text("FAILED")
        expect(page.locator(".failure")).to_contain_text("no such component")
        expect(page.locator("[data-said]")).to_contain_text("FAILED 1/9")
        assert page.evaluate("window.kept")


def test_the_end_of_a_run_is_shown_once_nothing_is_selected(
    strict_store: Settings, open_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SESSION_SECONDS", 0.2)
    from playwright.sync_api import expect

    with served(web.app()) as address:
        page = open_page()
        with sync.track_session("s") as session, session.agent("parser"):
            page.goto(f"{address}/session?session_id=s")
            page.evaluate("document.getSelection().selectAllChildren(document.querySelector('dl'))")
        page.wait_for_timeout(2000)
        assert page.locator(".lead .status").inner_text() == "ACTIVE"
        page.evaluate("document.getSelection().removeAllRanges()")
        expect(page.locator(".lead .status")).to_have_text("COMPLETED")


def test_what_is_live_goes_on_after_an_answer_that_is_an_error(
    strict_store: Settings, browser: Any
) -> None:
    """The browser itself tries again only where there is no answer."""
    sync.save_pipeline_session(session_id="s")
    refused = list[str]()

    def refuse(route: Any) -> None:
        refused.append(route.request.url)
        if len(refused) == 1:
            route.fulfill(status=503)
        else:
            route.continue_()

    with served(web.app()) as address, browser.new_page() as page:
        page.route("**/session/live*", refuse)
        page.goto(f"{address}/session?session_id=s")
        sync.save_pipeline_session(session_id="s", current_agent="parser")
        page.get_by_text("parser", exact=True).wait_for(timeout=20_000)


def test_a_form_acts(strict_store: Settings, open_page: Any) -> None:
    with pytest.raises(KeyError), sync.track_session("s"):
        raise KeyError("broken")
    with served(web.app(action_token="a token of the operator")) as address:
        page = open_page()
        page.goto(f"{address}/session?session_id=s")
        page.get_by_text("Act", exact=True).click()
        form = page.locator("form[action='/abandon']")
        form.get_by_label("Reason").fill("given up")
        form.get_by_label("Token").fill("a token of the operator")
        form.get_by_role("button", name="Abandon").click()
        page.wait_for_selector(".status.ABANDONED")
    assert sync.get_pipeline_session("s").error_message == "given up"


def test_hostile_texts_run_nothing(strict_store: Settings, open_page: Any) -> None:
    text = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e👩‍👩‍👧\x01"
    with pytest.raises(ZeroDivisionError):
        with sync.track_session(text, user_id=text, project_name=text, metadata=[text]) as session:
            with session.agent("nl_input", text) as run:
                run.output = text + "w" * 1_000_000
            with session.agent("parser"):
                raise ZeroDivisionError(text + "w" * 1_000_000)
    with served(web.app()) as address:
        page = open_page(viewport={"width": 360, "height": 800})
        page.goto(address)
        page.locator(".id a").click()
        for _ in range(2):
            assert page.locator("h1").is_visible()
            assert page.locator("main img, main script").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            assert violations(page) == []
            page.goto(f"{address}{page.locator('.gantt a').first.get_attribute('href')}")
            if page.locator(".gantt a").count() == 0:
                break


def test_the_report_is_one_file_that_asks_for_nothing(
    month: Settings, open_page: Any, tmp_path: Path
) -> None:
    made = tmp_path / "report.html"
    end = settings.current().clock()
    compared = [("search", "old", "new", None)]
    written = report(end - 30 * 86400, end, language="ko", comparisons=compared)
    with ThreadPoolExecutor() as thread:  # Playwright's own loop runs in this one
        made.write_text(thread.submit(asyncio.run, written).result())
    page, asked = open_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(made.as_uri())
    assert asked == [made.as_uri()]
    assert violations(page) == []
    assert page.evaluate("getComputedStyle(document.querySelector('.list')).borderRadius") != "0px"
    links = page.eval_on_selector_all("a", "all => all.map(one => one.getAttribute('href'))")
    assert all(re.fullmatch("#[a-z0-9-]+", link) for link in links)
    for link in set(links):
        assert page.locator(link).count() == 1, link
