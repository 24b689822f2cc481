"""The documents build into a site without a warning; all its links lead somewhere; reading it asks nobody else."""

import os
import posixpath
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

FETCHED = {("link", "href"), ("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")}
"""What a browser loads by itself."""

SERVER_ONLY = {"404.html"}
"""Pages whose links hold for a site at the top of a server, wherever they are shown."""


class Read(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self.links += [(tag, name, values[name]) for name in ("href", "src") if values.get(name)]


def pages(site):
    found = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    return {name: Read(path.read_text(encoding="utf-8")) for name, path in found.items() if name not in SERVER_ONLY}


def faults(site, read):
    """Links of pages that lead nowhere, load something from elsewhere, or have no sound form."""
    found = []
    for page, content in read.items():
        for tag, name, link in content.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                foreign = (tag, name) in FETCHED and parts.scheme != "data"
                sound = parts.scheme in ("data", "mailto") or (parts.scheme == "https" and "." in parts.netloc)
                found += [f"{page} loads {link}"] if foreign else []
                found += [] if sound else [f"{page} has the odd link {link}"]
                continue
            place = (
                posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
            )
            if not (site / place).is_file() and place != ".":
                found.append(f"{page} links to {link}, which is not there")
            elif parts.fragment and place in read and unquote(parts.fragment) not in read[place].anchors | {"__toc"}:
                found.append(f"{page} links to {link}, which has no such anchor")
    return found


def test_every_link_of_the_site_leads_somewhere(site):
    read = pages(site)
    assert len(read) > 30 and sum(len(page.links) for page in read.values()) > 1000
    assert faults(site, read) == []


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ('<a href="none.html">', "is not there"),
        ('<a href="#nowhere">', "no such anchor"),
        ('<a href="other.html#nowhere">', "no such anchor"),
        ('<script src="https://cdn.example.org/x.js"></script>', "loads"),
        ('<a href="http://example.org">', "odd link"),
        ('<a href="https://nowhere">', "odd link"),
    ],
)
def test_a_wrong_link_is_reported(tmp_path, link, fault):
    (tmp_path / "other.html").write_text('<p id="here">')
    (tmp_path / "page.html").write_text(f'<p id="top">{link}')
    assert [line for line in faults(tmp_path, pages(tmp_path)) if fault in line]


def test_a_right_link_is_not_reported(tmp_path):
    (tmp_path / "other.html").write_text('<p id="here">')
    links = ["other.html", "other.html#here", "#top", "https://arxiv.org/abs/2605.08063"]
    (tmp_path / "page.html").write_text('<p id="top">' + "".join(f'<a href="{link}">' for link in links))
    assert faults(tmp_path, pages(tmp_path)) == []


def test_styles_load_nothing_from_elsewhere(site):
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"url\(['\"]?(?:https?:)?//", styles) == [] and "fonts.g" not in styles


def test_every_page_is_in_the_menu(site):
    menu = Read((site / "index.html").read_text(encoding="utf-8"))
    listed = {link for tag, _, link in menu.links if tag == "a"}
    docs = ROOT / "docs"
    written = {path.relative_to(docs).with_suffix(".html").as_posix() for path in docs.rglob("*.md")}
    assert len(written) > 12
    assert written - listed == set()


def test_a_formula_leads_to_the_line_that_computes_it(site):
    links = re.findall(
        r'href="code/(src/[^"#]+\.py)\.html#__codelineno-0-(\d+)"><code>([\w.]+)<', _text(site / "MATH.html")
    )
    assert len(links) > 30
    for file, line, name in links:
        wanted = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.search(rf"(?:def|class) {name.split('.')[-1]}\b", wanted), (file, line, name)


def test_the_api_shows_every_public_name(site):
    import flowopd

    anchors = Read(_text(site / "api.html")).anchors
    assert [name for name in flowopd.__all__ if not any(anchor.endswith(f".{name}") for anchor in anchors)] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_the_search_works_from_a_folder_without_a_network(site):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.click(".md-search__input")
        page.keyboard.type("interference")
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
        found = page.inner_text(".md-search-result__list")
        browser.close()
    assert "Troubleshooting" in found
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def _text(path):
    return path.read_text(encoding="utf-8")
