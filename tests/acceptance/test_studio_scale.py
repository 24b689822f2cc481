"""Fifty runs of ten thousand updates in the studio: the table is there at once, news arrive, memory stays small."""

import json
import shutil
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

RUNS, UPDATES = 50, 10_000
FIRST_PAINT, BEHIND, MEMORY = 1.5, 2.0, 500
"""Seconds until the table is drawn, seconds until a new line is on the page, MiB of the server."""

SERVING = "import sys; from flowopd.cli import main; sys.argv = ['flowopd', 'studio', *sys.argv[1:]]; main()"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def generator():
    spec = spec_from_file_location("many_runs", Path(__file__).parents[1] / "studio" / "many_runs.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    generator().write_runs(folder, RUNS, UPDATES)
    yield folder
    shutil.rmtree(folder)


def served(place):
    command = [sys.executable, "-c", SERVING, str(place), "--port", "0", "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def asked(address, path):
    """The answer's content, its bytes, and the seconds it took."""
    start = time.monotonic()
    with urlopen(f"{address}api/{path}") as answer:
        body = answer.read()
    return json.loads(body), len(body), time.monotonic() - start


def memory(process):
    return psutil.Process(process.pid).memory_info().rss / 2**20


def grown(run, step):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "distill", "step": step, "seconds": 1.0, "gap": 0.123}) + "\n")


@pytest.mark.slow
def test_answers_of_a_studio_over_many_long_runs(place):
    process, address = served(place)
    try:
        table, size, seconds = asked(address, "runs")
        print(f"\nfirst table: {seconds:.2f} s, {size / 1000:.0f} kB, {memory(process):.0f} MiB")
        start = time.monotonic()
        while asked(address, "runs")[0]["behind"]:
            pass
        print(f"all {RUNS * UPDATES:,} rows read in {time.monotonic() - start:.0f} s, {memory(process):.0f} MiB")
        assert len(table["runs"]) == RUNS and all(row["updates"] == UPDATES for row in table["runs"])
        assert seconds < FIRST_PAINT and size < 50_000
        ids = ",".join(row["id"] for row in table["runs"])
        curves, size, seconds = asked(address, f"curves?runs={ids}&stage=distill&key=gap")
        print(f"{RUNS} curves: {seconds:.2f} s, {size / 1000:.0f} kB, {memory(process):.0f} MiB")
        assert len(curves["curves"]) == RUNS and size < 200_000
        grown(place / "run-07", UPDATES)
        start = time.monotonic()
        rows = asked(address, "runs")[0]["runs"]
        assert next(row for row in rows if row["name"] == "run-07")["updates"] == UPDATES + 1
        print(f"a new line in the table: {time.monotonic() - start:.2f} s after it was written")
        assert memory(process) < MEMORY
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_on_many_long_runs(place):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    process, address = served(place)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.goto("about:blank")
            start = time.monotonic()
            page.goto(address, wait_until="commit")
            page.locator(f"tbody tr:nth-child({RUNS})").wait_for()
            first = time.monotonic() - start
            print(f"\nfirst paint of {RUNS} rows: {first:.2f} s")
            page.get_by_role("link", name="Curves").click()
            page.locator(".line").first.wait_for()
            while asked(address, "runs")[0]["behind"]:
                time.sleep(0.2)
            page.get_by_role("link", name="Runs").click()
            row = page.locator("tbody tr", has_text="run-08")
            row.filter(has_text="10,000").wait_for()
            grown(place / "run-08", UPDATES + 233)
            start = time.monotonic()
            row.filter(has_text="10,234").wait_for()
            behind = time.monotonic() - start
            print(f"a new line on the page: {behind:.2f} s after it was written; server {memory(process):.0f} MiB")
            assert first < FIRST_PAINT and behind < BEHIND and memory(process) < MEMORY
        finally:
            browser.close()
            process.terminate()
            process.wait()
