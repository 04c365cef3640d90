"""The report as a user has it: opened from disk in a real browser."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import EVIL, make

from servers import chromium
from sweep.report import html

if "CI" not in os.environ:
    pytest.importorskip("playwright", reason="the report is not tried in a browser: playwright is not installed")

from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.slow
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def open_report(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open the report of made-up results; at the end, nothing may have asked, failed or gone over the network."""
    bad: list[str] = []
    contexts = []

    def open_(scheme: str = "light", **kinds: Any) -> Page:
        report = tmp_path / "report.html"
        report.write_text(html.render(make(**kinds)), "utf-8")
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme))  # type: ignore[arg-type]
        page = contexts[-1].new_page()
        page.on("dialog", lambda dialog: (bad.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: bad.append(f"error: {error}"))
        page.on("console", lambda message: bad.append(f"console: {message.text}") if message.type == "error" else None)
        page.on(
            "request", lambda request: bad.append(f"request: {request.url}") if request.url != report.as_uri() else None
        )
        page.goto(report.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert bad == []


def ids(page: Page) -> list[str]:
    return page.eval_on_selector_all(".body > .row", "rows => rows.map(row => row.dataset.id)")


def names(page: Page) -> list[str]:
    return page.eval_on_selector_all(".head > * > span", "cells => cells.map(cell => cell.textContent)")


def cell(page: Page, prompt: int, column: int) -> Any:
    return page.locator(f'.body > .row[data-id="q{prompt}"] > *').nth(1 + column)


def test_cells_mark_the_first_divergence_and_shade_what_follows(open_report: Open) -> None:
    page = open_report()
    assert names(page) == ["prompt", "control", "factor=1.2", "factor=1.4", "factor=1.6", "factor=1.8", "factor=2"]
    control, strongest = cell(page, 1, 0), cell(page, 1, 5)
    expect(control.locator(".diverges")).to_have_count(0)
    expect(strongest.locator(".diverges")).to_have_count(1)
    common, _, rest = strongest.locator(".text").evaluate(
        "text => [text.firstChild.data, 0, [...text.children].map(child => child.className)]"
    )
    assert control.locator(".text").text_content().startswith(common) and len(common) > 20
    assert rest[:2] == ["diverges", "differs"] and "agrees" in rest
    expect(strongest).to_contain_text("token agreement 0.")
    expect(cell(page, 3, 5)).to_contain_text("= control")
    expect(cell(page, 4, 5)).to_contain_text("length")  # ended at max_tokens


@pytest.mark.parametrize("evil", [False, True])
def test_a_prompt_is_shown_as_the_model_receives_it(open_report: Open, evil: bool) -> None:
    page = open_report(evil=evil, samples=2)
    row = page.locator(".body > .row").nth(1)
    shown = row.locator(".rendered")
    expect(shown.locator("pre")).to_have_count(0)
    shown.locator("summary").click()
    prompt = row.locator(".prompt").text_content()
    assert prompt and (EVIL in prompt) == evil
    expect(shown.locator("pre")).to_have_text([f"<user>{prompt}<end>"])
    expect(shown.locator("mark")).to_have_text([prompt])
    expect(shown.locator("p")).to_contain_text("factor=1.6 and 2 more; marked: what the transforms may change")


def test_search_filter_and_sort(open_report: Open) -> None:
    page = open_report()
    assert ids(page) == [f"q{i}" for i in range(12)]
    page.keyboard.press("/")
    page.keyboard.type("Question 7")
    expect(page.locator(".body > .row")).to_have_count(1)
    assert ids(page) == ["q7"]
    page.fill("#search", "BANANA")  # only in generations
    expect(page.locator("#status")).not_to_contain_text("1 of 12")
    found = ids(page)
    assert found and not {"q0", "q3", "q6", "q9"} & set(found)
    page.fill("#search", "no such text")
    expect(page.locator(".empty")).to_be_visible()
    page.fill("#search", "")
    expect(page.locator(".body > .row")).to_have_count(12)

    page.check("#differs")
    expect(page.locator(".body > .row")).to_have_count(8)
    assert ids(page) == ["q1", "q2", "q4", "q5", "q7", "q8", "q10", "q11"]
    page.select_option("#sort", "divergence")
    page.uncheck("#differs")
    order = ids(page)
    assert set(order[-4:]) == {"q0", "q3", "q6", "q9"}
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent).rows")
    mean = {row["id"]: sum(samples[0][1] for samples in row["cells"][1:]) for row in data}
    assert [mean[i] for i in order] == sorted(mean.values(), reverse=True)
    page.select_option("#sort", "id")
    assert ids(page) == [f"q{i}" for i in range(12)]  # q10 after q9


def test_columns_and_scores_are_chosen(open_report: Open) -> None:
    page = open_report(factors=30, prompts=6)
    assert len(names(page)) == 14
    page.click("#columns summary")
    page.get_by_role("button", name="all").click()
    assert len(names(page)) == 32
    page.get_by_label("factor=1.4", exact=True).uncheck()
    assert "factor=1.4" not in names(page) and len(names(page)) == 31
    page.keyboard.press("Escape")
    expect(page.locator("#columns ul")).to_be_hidden()
    page.get_by_role("button", name="hide factor=1.2", exact=True).click()
    assert names(page)[:3] == ["prompt", "control", "factor=1.6"]
    expect(page.locator("#status")).to_contain_text("29 of 31 columns")
    page.click("#columns summary")
    page.get_by_role("button", name="controls only").click()
    assert names(page) == ["prompt", "control"]
    page.check("#differs")  # the control alone does not differ
    expect(page.locator(".empty")).to_be_visible()
    page.click("#columns summary")  # the click elsewhere has closed it
    page.get_by_role("button", name="default").click()
    expect(page.locator(".body > .row")).to_have_count(4)
    expect(cell(page, 1, 12)).not_to_contain_text("edit distance")
    page.click("#scores summary")
    page.get_by_label("edit distance").check()
    expect(cell(page, 1, 12)).to_contain_text("edit distance 0.")


def test_other_samples_are_shown_by_a_switch(open_report: Open) -> None:
    page = open_report(samples=2)
    first = cell(page, 1, 5).text_content()
    page.select_option("#sample", "1")
    assert cell(page, 1, 5).text_content() != first
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent).rows[1].cells[5][1][0]")
    assert cell(page, 1, 5).locator(".text").text_content() == "".join(span[1:] for span in data)


def test_html_in_texts_is_shown_as_text(open_report: Open) -> None:
    page = open_report(evil=True)
    row = page.locator(".body > .row").nth(1)
    for column in range(6):
        expect(row.locator("> *").nth(1 + column)).to_contain_text(EVIL)
    expect(row.locator(".prompt")).to_contain_text(EVIL)
    expect(row.locator(".reference")).to_contain_text(EVIL)
    expect(row.locator(".id")).to_contain_text(EVIL)
    expect(page.locator("h1")).to_contain_text(EVIL)
    expect(page.locator("#points tbody th").nth(1)).to_contain_text(EVIL)
    assert names(page)[2] == f"factor=1.2 {EVIL}"
    page.locator("#responses .plot").first.scroll_into_view_if_needed()
    page.locator("#responses .plot .nsewdrag").first.hover()
    page.locator("#responses .plot .points path").first.hover(force=True)
    expect(page.locator(".hoverlayer").first).to_contain_text("<script>alert(1)</script>")
    assert page.locator("script").count() == 3 and page.locator("img").count() == 0
    page.fill("#search", "<script>alert")
    expect(page.locator(".body > .row")).to_have_count(1)
    page.wait_for_timeout(300)  # what a planted script would need


def test_plots_have_floor_and_doses(open_report: Open) -> None:
    page = open_report(below=True)
    plot = page.locator('.plot[data-measure="quality/exact_match"]')
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".annotation-text")).to_have_text(["first effective 0.5 ↓, 1.4 ↑", "breaks at 0.4 ↓, 1.7 ↑"])
    expect(plot.locator(".errorbar")).to_have_count(8)
    cells = page.locator("#responses tbody tr", has_text="below 1").first.locator("td")
    expect(cells).to_have_text(["below 1", "-0.9 [-0.95, -0.85]", "0.5 [0.3, 0.7]", "0.4 [0.2, 0.6]", "–"])
    floor = page.locator('.plot[data-measure="divergence/token_agreement"]')
    floor.scroll_into_view_if_needed()
    expect(floor.locator(".shape-label")).to_contain_text(["noise floor"])
    assert page.locator('.plot[data-measure="cost/output_tokens"]').is_hidden()
    page.get_by_text("Other measures").click()
    expect(page.locator('.plot[data-measure="cost/output_tokens"] .main-svg').first).to_be_visible()


def test_the_control_and_the_header_stay_in_view(open_report: Open) -> None:
    page = open_report(factors=12, prompts=20)
    page.locator(".matrix").scroll_into_view_if_needed()

    def places() -> list[float]:
        boxes = [page.locator(".head").bounding_box(), *(cell(page, 1, column).bounding_box() for column in (-1, 0, 1))]
        return [boxes[0]["y"] - page.locator(".matrix").bounding_box()["y"], *(box["x"] for box in boxes[1:])]

    before = places()
    page.evaluate("document.querySelector('.matrix').scrollTo(1500, 40)")
    page.wait_for_timeout(100)
    after = places()
    assert after[:3] == pytest.approx(before[:3], abs=1) and after[3] < 0 < before[3]


def test_colours_follow_the_scheme(open_report: Open) -> None:
    def shade(scheme: str) -> tuple[str, str]:
        page = open_report(scheme, prompts=2)
        page.locator(".plot .bg, .plot .main-svg").first.wait_for()
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
        plot = page.evaluate("getComputedStyle(document.querySelector('.plot .main-svg')).backgroundColor")
        assert body == plot
        return body, page.evaluate("getComputedStyle(document.body).color")

    light, dark = shade("light"), shade("dark")
    assert light[0] == "rgb(255, 255, 255)" and dark[0] == "rgb(20, 23, 28)" and light[1] != dark[1]


def test_whole_texts_and_print_show_everything(open_report: Open) -> None:
    page = open_report(tokens=200, prompts=30)
    text = cell(page, 1, 0).locator(".text")
    clamped = text.bounding_box()["height"]
    page.locator('.row[data-id="q1"] .expand').click()
    assert text.bounding_box()["height"] > 2 * clamped
    page.locator('.row[data-id="q1"] .expand').click()
    assert text.bounding_box()["height"] == clamped
    page.check("#full")
    assert text.bounding_box()["height"] > 2 * clamped
    assert page.locator(".body > .row > .control").count() < 30
    page.pdf()  # asks for what printing asks for
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".body > .row > .control").count() == 30


def test_a_large_report_scrolls(open_report: Open) -> None:
    page = open_report(prompts=200, factors=50)
    page.locator(".body .text").first.wait_for()
    page.click("#columns summary")
    page.get_by_role("button", name="all").click()
    assert len(names(page)) == 52
    filled = "document.querySelectorAll('.body > .row > :first-child').length"
    frames = page.evaluate(
        f"""async () => {{
            const matrix = document.querySelector(".matrix"), seen = [];
            for (let step = 0; step < 40; step++) {{
                matrix.scrollTop += 700;
                const before = performance.now();
                await new Promise(requestAnimationFrame);
                await new Promise(requestAnimationFrame);
                seen.push([{filled}, performance.now() - before]);
            }}
            return seen;
        }}"""
    )
    assert max(count for count, _ in frames) < 40  # of 200: what is far away is not in the page
    page.evaluate("document.querySelector('.matrix').scrollTop = 1e9")
    expect(page.locator('.row[data-id="q199"] .prompt')).to_contain_text("Question 199")
    page.fill("#search", "Question 150:")
    expect(page.locator(".body > .row")).to_have_count(1)
    print(f"two frames after a scroll: mean {sum(w for _, w in frames) / len(frames):.0f} ms")
