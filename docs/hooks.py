"""What the site adds to the pages: files of the repository that they link to, and pages that the menu does not name.

A page links to a file as it lies in the repository, such as `../src/flowopd/gaussian.py`, so that it reads well there
too. On the site that file is a page of its own, and a link whose text is a name that the file defines leads to its
line.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
CODE = "code"
"""The site's folder for files of the repository."""

REST = "Reference"
"""The part of the menu where pages stand that it does not name."""

LINK = re.compile(r"\[(?P<text>[^\]\n]*)\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".jsonl": "json", "": "make"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages at the top of docs/ that the menu lacks into its last part."""
    named = set(_pages(config.nav))
    rest = [path.name for path in sorted(Path(config.docs_dir).glob("*.md")) if path.name not in named]
    for part in config.nav or ():
        if REST in part:
            part[REST] += rest
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file of the repository that a page links to."""
    linked = {target for file in files.documentation_pages() for target in _outside(file)}
    for target in sorted(linked):
        files.append(File.generated(config, f"{CODE}/{_page_name(target)}", content=_page(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to the pages that stand for those files."""
    if page.file.src_uri.startswith(f"{CODE}/"):
        return markdown
    folder = posixpath.dirname(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        target = _resolved(folder, link["target"])
        if target is None:
            return link[0]
        place = posixpath.relpath(f"{CODE}/{_page_name(target)}", folder or ".")
        return f"[{link['text']}]({place})"

    return LINK.sub(led, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead a link to a file's page, whose text is a name that the file defines, to its line."""
    folder = posixpath.dirname(page.file.url)

    def to_line(link: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(folder, link["place"]))
        source = ROOT / place.removeprefix(f"{CODE}/").removesuffix(".html")
        line = defined(source, link["name"]) if place.startswith(f"{CODE}/") else None
        return link[0] if line is None else link[0].replace(link["place"], f"{link['place']}#__codelineno-0-{line}")

    return re.sub(r'<a href="(?P<place>[^"#:]+\.py\.html)"><code>(?P<name>[\w.]+)</code>', to_line, html)


def defined(source: Path, name: str) -> int | None:
    """The line of a Python file on which `name`, such as `Gaussian.kl`, is defined; None if it is not."""
    body: list[ast.stmt] = ast.parse(source.read_text(encoding="utf-8")).body
    line = None
    for part in name.split("."):
        found = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part]
        if not found:
            return None
        line, body = found[0].lineno, found[0].body
    return line


def _pages(nav: Any) -> list[str]:
    """The pages that a menu names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav or ()
    return [page for part in parts for page in _pages(part)]


def _outside(file: File) -> list[str]:
    folder = posixpath.dirname(file.src_uri)
    found = [_resolved(folder, link["target"]) for link in LINK.finditer(file.content_string)]
    return [target for target in found if target is not None]


def _resolved(folder: str, target: str) -> str | None:
    """The path in the repository of a link to a file that the site has not: out of docs/, or code; else None."""
    path = posixpath.normpath(posixpath.join("docs", folder, target))
    inside = path.startswith("docs/") and not path.endswith(".py")
    return None if inside or path.startswith(("../", "/")) or not (ROOT / path).is_file() else path


def _page_name(target: str) -> str:
    return f"{target}.md" if not target.endswith(".md") else target.removesuffix(".md") + "-file.md"


def _page(path: Path) -> str:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = LINK.sub(lambda link: link["text"], re.sub(r"!\[[^\]]*\]\([^)]*\)\n?", "", text))
        return f"---\nsearch: {{exclude: true}}\n---\n\n{text}"
    fence = f"```{LANGUAGES.get(path.suffix, 'text')}"
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {name}\n\n{fence}\n{text.rstrip()}\n```\n"
