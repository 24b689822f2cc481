"""Every page in a real browser: it shows what is there, by pointer and by keyboard, without an error, and asks nobody
else. Needs Chromium (`apt-get install chromium`) and playwright; skipped without them. FLOWOPD_SCREENSHOTS
names a folder for pictures of all pages in light, dark and phone width.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flowopd.stages.report.page import write_report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

SERVING = "import sys; from flowopd.cli import main; sys.argv = ['flowopd', 'studio', *sys.argv[1:]]; main()"
PAGES = ["runs", "curves", "pictures", "gaps", "forgetting", "interference", "playground"]
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True},
}
PATIENCE = 60_000
"""Milliseconds for a picture on a machine that does other things besides."""

NAMELESS = """() => [...document.querySelectorAll("input, select, button, a, img")]
  .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.alt || one.hidden || one.labels?.length))
  .map((one) => one.outerHTML)"""
CLIPPED = """() => [...document.querySelectorAll("table")]
  .filter((one) => one.scrollWidth > one.parentElement.clientWidth + 1).map((one) => one.textContent)"""


@dataclass
class Watched:
    """A page, and what it did that a page must not do."""

    page: object
    faults: list = field(default_factory=list)
    requests: list = field(default_factory=list)


def served(*args):
    """A studio in a process of its own, and its address."""
    command = [sys.executable, "-c", SERVING, *map(str, args), "--port", "0", "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        one = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def runs(finished, make, tmp_path_factory):
    """The tiny world's whole run, with gaps of its own, and two made-up ones beside it."""
    place = tmp_path_factory.mktemp("browser")
    shutil.copytree(finished, place / "tiny")
    make.write_runs(place, runs=2, updates=40)
    return place


@pytest.fixture(scope="module")
def address(runs):
    process, address = served(runs)
    yield address
    process.terminate()
    process.wait()


@pytest.fixture
def watch(browser):
    """Opens pages that are watched; at the end none may have had an error or asked anybody else."""
    opened = []

    def open_page(address, look="light", **options):
        page = browser.new_context(**LOOKS[look], **options).new_page()
        watched = Watched(page)
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: watched.faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: watched.faults.append(str(error)))
        page.on("request", lambda request: watched.requests.append(request.url))
        opened.append((watched, address))
        return watched

    yield open_page
    for watched, address in opened:
        watched.page.context.close()
        strangers = [url for url in watched.requests if not url.startswith((address, "blob:", "data:"))]
        assert (watched.faults, strangers) == ([], [])


def go(watched, address, name):
    """Open a page of the studio by its link, with the tiny world's run where a page is of one run."""
    page = watched.page
    if not page.url.startswith(address):
        page.goto(f"{address}#/gaps")
        page.locator("#focus-run option", has_text="tiny").wait_for(state="attached")
        page.locator("#focus-run").select_option(label="tiny")
    page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
    return page


def keep(page, name, look):
    folder = os.environ.get("FLOWOPD_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}-{look}.png", full_page=True)


def overflow(page):
    """Pixels by which a page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_opens_in_light_dark_and_on_a_phone(watch, address, look):
    watched = watch(address, look)
    for name in PAGES:
        page = go(watched, address, name.capitalize())
        page.locator("main table, main .shots img[src], main .chart").first.wait_for()
        page.wait_for_timeout(300)
        assert page.locator("main h1").count() == 1 and page.locator("#status.wrong").count() == 0
        assert overflow(page) <= 0, name
        keep(page, name, look)


@pytest.mark.parametrize(
    ("name", "column"), [("Runs", "gap closed"), ("Forgetting", "share"), ("Forgetting", "average")]
)
def test_a_phone_shows_the_column_that_counts_without_scrolling(watch, address, name, column):
    page = go(watch(address, "phone"), address, name)
    head = page.get_by_role("columnheader", name=column)
    head.first.wait_for()
    boxes = [one.bounding_box() for one in head.all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)


def test_runs_are_compared_sorted_and_chosen(watch, address):
    page = go(watch(address), address, "Runs")
    names = page.locator("tbody th a")
    names.first.wait_for()
    assert sorted(names.all_inner_texts()) == ["run-00", "run-01", "tiny"]
    page.get_by_role("button", name="run", exact=True).click()
    assert names.all_inner_texts() == ["run-00", "run-01", "tiny"]
    page.get_by_role("button", name="run", exact=True).click()
    assert names.all_inner_texts() == ["tiny", "run-01", "run-00"]
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("run")
    page.get_by_label("compare run-01").uncheck()
    page.get_by_role("navigation").get_by_role("link", name="Curves").click()
    page.locator(".line").nth(1).wait_for()
    assert page.locator("figure .line").count() == 2


def test_curves_are_read_by_keyboard_and_by_pointer(watch, address):
    page = go(watch(address), address, "Curves")
    page.locator("figure .line").nth(2).wait_for()
    chart = page.locator(".chart")
    chart.focus()
    page.keyboard.press("End")
    assert page.locator(".readout b").inner_text() == "update 39"
    page.keyboard.press("ArrowLeft")
    assert page.locator(".readout b").inner_text() == "update 38"
    page.keyboard.press("Home")
    assert page.locator(".readout b").inner_text() == "update 0"
    page.locator(".chart svg").hover(position={"x": 600, "y": 100})
    assert page.locator(".readout b").inner_text() not in ("update 0", "update 39")
    page.get_by_label("Quantity").select_option("gap/text")
    page.get_by_label("logarithmic").uncheck()
    page.locator("figure .line").nth(1).wait_for()


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ((0.08, 0.15), [0.08, 0.1, 0.12, 0.14]),
        ((0.3, 0.9), [0.4, 0.6, 0.8]),
        ((0.07, 0.3), [0.1, 0.15, 0.2, 0.25, 0.3]),
        ((0.03, 0.4), [0.05, 0.1, 0.2]),
        ((0.003, 4), [0.01, 0.1, 1]),
    ],
)
def test_a_logarithmic_axis_has_ticks_over_any_range(watch, address, ends, ticks):
    page = go(watch(address), address, "Curves")
    found = page.evaluate("async (ends) => (await import('/js/chart.js')).powers(...ends)", ends)
    assert found == pytest.approx(ticks)


def test_a_running_run_is_followed(watch, address, runs):
    page = go(watch(address), address, "Runs")
    cell = page.locator("tbody tr", has_text="run-01").locator("td", has_text="of 40")
    cell.wait_for()
    assert cell.inner_text().startswith("40")
    with (runs / "run-01" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "distill", "step": 40, "gap": 0.01}) + "\n")
    page.locator("tbody tr", has_text="run-01").get_by_text("41").wait_for(timeout=5000)


def test_the_playground_draws_side_by_side_and_by_strength(watch, address):
    page = go(watch(address), address, "Playground")
    pictures = page.get_by_role("list", name="Pictures")
    pictures.locator("img[alt*='student']").wait_for()
    assert pictures.locator("img:visible").count() == 5
    seen = {name: source(pictures, name) for name in ("base", "student")}
    page.get_by_label("Strength of the adapter").fill("0")
    page.wait_for_function("([node, before]) => node.src !== before", arg=[image(pictures, "student"), seen["student"]])
    page.locator(".waiting").first.wait_for(state="detached")
    assert bytes_of(page, pictures, "student") == bytes_of(page, pictures, "base")
    page.get_by_role("checkbox", name="distill, after 2 updates").check()
    pictures.locator("img[alt*='after 2 updates']").wait_for()


def test_a_strength_that_changes_while_a_prompt_is_drawn_leaves_no_model_behind(watch, address):
    page = go(watch(address), address, "Playground")
    pictures = page.get_by_role("list", name="Pictures")
    pictures.locator("img[alt*='student']").wait_for()
    page.locator(".waiting").first.wait_for(state="detached")
    held = []
    page.route("**/draw*", lambda route: route.continue_() if held else held.append(route))
    page.get_by_label("Prompt", exact=True).first.fill("a yellow moon")
    page.keyboard.press("Enter")
    page.locator(".waiting").first.wait_for()
    page.get_by_label("Strength of the adapter").fill("0.5")
    page.locator("img[alt='a yellow moon, by student']").wait_for()
    page.wait_for_function("!document.querySelector('.waiting')")
    assert pictures.locator("img[alt^='a yellow moon, by ']").count() == 5


def image(pictures, name):
    return pictures.locator(f"img[alt$='by {name}']").element_handle()


def source(pictures, name):
    return image(pictures, name).get_attribute("src")


def bytes_of(page, pictures, name):
    """The pixels that an image element shows."""
    script = """(image) => { const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
      const pen = canvas.getContext("2d"); pen.drawImage(image, 0, 0);
      return Array.from(pen.getImageData(0, 0, canvas.width, canvas.height).data).join(); }"""
    return page.evaluate(script, image(pictures, name))


def test_a_blind_comparison_by_keyboard_is_counted(watch, address, runs):
    page = go(watch(address), address, "Playground")
    page.get_by_text("in 2 steps and with every adapter at strength 1").wait_for()
    page.get_by_role("button", name="Show a pair").click()
    page.locator(".duel img").nth(1).wait_for()
    shown = page.locator(".duel").inner_text()
    assert "Left (1)" in shown and "student" not in shown and "merge" not in shown
    page.keyboard.press("2")
    page.locator(".duel [data-chosen]").wait_for()
    assert {"merge", "student"} == set(page.locator(".duel span").all_inner_texts())
    row = page.get_by_role("row").filter(has_text="merge over student")
    row.wait_for()
    (line,) = (runs / "tiny" / "preferences.jsonl").read_text().splitlines()
    assert json.loads(line)["chosen"] == page.locator("[data-chosen] span").inner_text()
    keep(page, "blind", "light")


def test_pictures_over_time_are_drawn_by_the_checkpoints(watch, address):
    page = go(watch(address), address, "Pictures")
    page.get_by_role("button", name="Draw").click()
    strip = page.locator(".shots.big").first
    strip.locator("img[alt$='by student']").wait_for()
    makers = ["merge", "distill, after 2 updates", "student"]
    assert [text.strip() for text in strip.locator("li").all_inner_texts()] == makers


def test_the_keyboard_reaches_everything_in_order(watch, address):
    page = watch(address).page
    page.goto(address)
    page.locator("tbody a").first.wait_for()
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.ariaLabel"))
    assert reached[0] == "To the content" and reached[1:8] == [name.capitalize() for name in PAGES]
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_every_control_has_a_name(watch, address):
    watched = watch(address)
    for name in PAGES:
        page = go(watched, address, name.capitalize())
        page.locator("main table, main img[src], main .chart").first.wait_for()
        assert page.evaluate(NAMELESS) == []


def test_the_token_is_asked_for_and_kept_from_the_address(watch, runs):
    process, address = served(runs, "--token", "s3cret")
    try:
        watched = watch(address)
        page = watched.page
        page.goto(address)
        page.get_by_role("textbox", name="Token").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("the token is missing or wrong").wait_for()
        page.get_by_role("textbox", name="Token").fill("s3cret")
        page.keyboard.press("Enter")
        page.locator("tbody a").first.wait_for()
        assert not [url for url in watched.requests if "s3cret" in url]
        page.context.close()
        watched.faults = [fault for fault in watched.faults if "401" not in fault]
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("look", LOOKS)
def test_the_report_reads_offline_in_light_dark_and_on_a_phone(watch, runs, look):
    path = write_report(runs / "tiny")
    watched = watch("file://", look, offline=True)
    watched.page.goto(f"file://{path}")
    assert watched.page.locator("h1").count() == 1 and overflow(watched.page) <= 0
    keep(watched.page, "report", look)


def test_the_report_prints_whole(watch, runs, tmp_path):
    watched = watch("file://")
    watched.page.goto(f"file://{write_report(runs / 'tiny')}")
    watched.page.emulate_media(media="print")
    assert not watched.page.locator("nav").is_visible()
    watched.page.set_viewport_size({"width": 690, "height": 1000})
    assert watched.page.evaluate(CLIPPED) == []
    assert watched.page.locator("dd").last.is_visible()
    assert len(watched.page.pdf(format="A4")) > 10_000
