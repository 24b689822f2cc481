"""docs/MATH.md points at code and tests that exist."""

import ast
import re
from pathlib import Path

import pytest

DOC = Path(__file__).parents[2] / "docs" / "MATH.md"
LINKS = re.findall(r"\[`([\w.]+)`\]\(([^)]+)\)", DOC.read_text(encoding="utf-8"))
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def defined(tree: ast.Module, name: str) -> bool:
    """Whether `name`, such as `Gaussian.kl`, is defined in the module itself."""
    body: list[ast.stmt] = tree.body
    for part in name.split("."):
        found = [node for node in body if isinstance(node, DEFINITIONS) and node.name == part]
        if not found:
            return False
        body = found[0].body
    return True


@pytest.mark.parametrize(("name", "target"), LINKS, ids=[name for name, _ in LINKS])
def test_a_link_names_what_its_file_defines(name, target):
    path = DOC.parent / target
    assert path.is_file(), f"{target} does not exist"
    assert defined(ast.parse(path.read_text(encoding="utf-8")), name), f"{target} defines no {name}"


def test_every_row_has_a_function_and_a_test():
    rows = [line for line in DOC.read_text(encoding="utf-8").splitlines() if re.match(r"\| [^-]", line)]
    rows = [row for row in rows if not row.startswith(("| equation", "| statement"))]
    assert len(rows) > 30
    for row in rows:
        targets = re.findall(r"\]\(([^)]+)\)", row)
        assert len(targets) == 2 and "/src/" in targets[0] and "/tests/" in targets[1], row


def test_every_link_is_checked():
    assert len(LINKS) == DOC.read_text(encoding="utf-8").count("](")
