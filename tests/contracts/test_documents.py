"""The documents name commands, options, files and imports that exist, and recipes that are valid."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer import BadParameter
from typer.main import get_command

import flowopd
from flowopd.cli import app
from flowopd.recipe import Recipe, load_recipe, make_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
UsageError = BadParameter.__mro__[1]
"""Click's, or that of the click which typer brings along."""

RECIPES = sorted((ROOT / "src" / "flowopd" / "recipes").glob("*.yaml"))


def blocks(language, text=README):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def spans(text):
    """Code within a line, the blocks taken out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def lines(program, text=README):
    """The arguments of each call of a program in the bash blocks; comments are left out."""
    calls = [shlex.split(line, comments=True) for block in blocks("bash", text) for line in block.splitlines()]
    return [call[1:] for call in calls if call[:1] == [program]]


def subcommand(words):
    """The command that the first words name, and the words that are left. Raises KeyError if there is none."""
    command, left = get_command(app), list(words)
    while hasattr(command, "commands"):
        command = command.commands[left.pop(0)]
    return command, left


def understand(words):
    """Parses a call without making it. Raises KeyError for an unknown command, UsageError for a wrong option."""
    command, left = subcommand(words)
    command.make_context(command.name, left)


def unknown_imports(source):
    """Imports from the package that it does not have."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in nodes if node.module == "flowopd" for alias in node.names]
    return [name for name in names if name not in flowopd.__all__]


def machine_paths(content):
    return re.findall(rb"(?<![\w/.-])/(?:work|root)/[\w.-]*", content)


def targets():
    return re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def examples():
    """The example that each command's help shows."""
    groups = [get_command(app)]
    while groups:
        for command in groups.pop().commands.values():
            if hasattr(command, "commands"):
                groups.append(command)
            else:
                yield from re.findall(r"Example: `flowopd (.*?)`(?=\s|$)", command.help, re.DOTALL)


def test_there_are_blocks_to_check():
    assert len(blocks("python")) >= 2 and len(blocks("yaml")) >= 1
    assert len(lines("flowopd")) >= 2 and len(lines("make")) >= 2


@pytest.mark.parametrize("source", [*blocks("python"), *re.findall(r"(?:^    .*\n)+", flowopd.__doc__, re.MULTILINE)])
def test_python_compiles_and_imports_what_is_there(source):
    source = re.sub(r"^    ", "", source, flags=re.MULTILINE) if source.startswith("    ") else source
    compile(source, "README.md", "exec")
    assert unknown_imports(source) == []


def test_an_import_that_is_not_there_is_reported():
    assert unknown_imports("from flowopd import run, distil\nfrom torch import nn") == ["distil"]


@pytest.mark.parametrize("words", [*lines("flowopd"), *map(shlex.split, examples())], ids=" ".join)
def test_a_command_line_is_understood(words):
    understand(words)


@pytest.mark.parametrize("text", ["distil --out x", "run r.yaml --output x", "run --out x", "mini prompt"])
def test_a_command_line_that_is_not_understood_is_reported(text):
    with pytest.raises((KeyError, UsageError)):
        understand(text.split())


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_commands_within_a_sentence_exist(path):
    for span in spans(path.read_text(encoding="utf-8")):
        if span.startswith("flowopd "):
            subcommand(span.split()[1:])
        if span.startswith("make "):
            assert span.split()[1] in targets()


def test_what_is_made_can_be_made():
    assert {target for call in lines("make") for target in call} <= set(targets())


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


def test_files_to_edit_exist():
    table = README.split("| to change | edit |")[1].split("\n\n")[0]
    named = [span for span in spans(table) if span.endswith((".py", "/"))]
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / "src" / "flowopd" / name).exists()] == []


def test_the_tree_shows_what_is_there():
    (tree,) = (block for block in blocks("") if block.startswith("src/flowopd/\n"))
    shown = [name for line in tree.splitlines() if line.startswith("  ") for name in line.split("   ")[0].split()]
    inside = ROOT / "src" / "flowopd"
    assert len(shown) > 20
    assert [name for name in shown if not (inside / name).is_dir() and not (inside / f"{name}.py").is_file()] == []


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: text.split()[1])
def test_a_recipe_of_the_readme_is_valid(text):
    recipe = make_recipe(yaml.safe_load(text))
    assert recipe.distill is not None and set(recipe.teachers) == set(recipe.prompts)


@pytest.mark.parametrize("path", RECIPES, ids=[path.name for path in RECIPES])
def test_a_recipe_that_ships_is_valid(path):
    assert isinstance(load_recipe(path), Recipe)


def test_recipes_lie_where_the_documents_say():
    assert [path.name for path in sorted((ROOT / "recipes").glob("*.yaml"))] == [path.name for path in RECIPES]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_no_file_names_a_place_on_somebodys_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert len(files) > 50
    assert {str(file): machine_paths(file.read_bytes()) for file in files if machine_paths(file.read_bytes())} == {}


def test_a_place_on_a_machine_is_reported():
    places = [b"/".join([b"", top, b"there"]) for top in (b"work", b"root")]
    others = [before + place for before in (b"https://x.org", b"a", b"..") for place in places]
    assert machine_paths(b" and ".join([b"see", *places, *others])) == places
