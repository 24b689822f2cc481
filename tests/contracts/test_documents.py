"""The documents name commands, options, files and imports that exist, and recipes that are valid."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from typer import BadParameter
from typer.main import get_command

import flowopd
from flowopd.cli import app
from flowopd.recipe import Recipe, load_recipe, make_recipe, validated
from flowopd.suite import Suite, load_runs, load_suite

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
"""The text of each document by its path."""
UsageError = BadParameter.__mro__[1]
"""Click's, or that of the click which typer brings along."""

RECIPES = sorted((ROOT / "src" / "flowopd" / "recipes").glob("*.yaml"))


def blocks(language, text=README):
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def spans(text):
    """Code within a line, the blocks taken out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def lines(program, text=README):
    """The arguments of each call of a program in the bash blocks; comments are left out."""
    calls = [shlex.split(line, comments=True) for block in blocks("bash", text) for line in block.splitlines()]
    return [call[1:] for call in calls if call[:1] == [program]]


def launched(words):
    """What `accelerate launch WORDS` starts: the module, and its arguments. Raises SystemExit for a wrong option."""
    parsed = launch_command_parser().parse_args(words)
    assert parsed.module, "give -m flowopd"
    return parsed.training_script, parsed.training_script_args


def subcommand(words):
    """The command that the first words name, and the words that are left. Raises KeyError if there is none."""
    command, left = get_command(app), list(words)
    while hasattr(command, "commands") and (left or not command.invoke_without_command):
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


CALLS = [words for text in PAGES.values() for words in lines("flowopd", text)]
LAUNCHES = [words[1:] for text in PAGES.values() for words in lines("accelerate", text)]


@pytest.mark.parametrize("words", [*CALLS, *map(shlex.split, examples())], ids=" ".join)
def test_a_command_line_is_understood(words):
    understand(words)


@pytest.mark.parametrize("text", ["distil --out x", "run r.yaml --output x", "run --out x", "mini prompt"])
def test_a_command_line_that_is_not_understood_is_reported(text):
    with pytest.raises((KeyError, UsageError)):
        understand(text.split())


@pytest.mark.parametrize("words", LAUNCHES, ids=" ".join)
def test_a_launch_starts_a_command_that_is_understood(words):
    module, rest = launched(words)
    assert module == "flowopd"
    understand(rest)


def test_a_launch_with_a_wrong_option_is_reported(capsys):
    assert LAUNCHES
    with pytest.raises(SystemExit):
        launched(["--number_of_processes", "8", "-m", "flowopd", "run", "r.yaml"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_commands_within_a_sentence_exist(path):
    for span in spans(path.read_text(encoding="utf-8")):
        if span.startswith("flowopd "):
            subcommand(span.split()[1:])
        if span.startswith("make "):
            assert span.split()[1] in targets()


def test_what_is_made_can_be_made():
    made = {target for text in PAGES.values() for call in lines("make", text) for target in call}
    assert len(made) >= 3 and made <= set(targets())


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


PARTS = [(name, text) for name, page in PAGES.items() for text in blocks("yaml", page)]


@pytest.mark.parametrize(("page", "text"), PARTS, ids=[f"{name}-{text.split()[0]}" for name, text in PARTS])
def test_a_part_of_a_recipe_a_suite_or_a_launch_is_valid(page, text):
    tree = yaml.safe_load(text)
    if "compute_environment" in tree:
        assert ClusterConfig(**tree).num_processes % tree["num_machines"] == 0
    elif "claims" in tree:
        spent = [*tree["compute"]["rows"], tree["compute"]["experts"]] if "compute" in tree else []
        lines = [claim[key] for claim in tree["claims"] for key in ("of", "over", "expert") if key in claim]
        rows = {name.partition("/")[0]: {"recipe": "r.yaml"} for name in (*spent, *lines)}
        assert validated(Suite, {"rows": rows, **tree}).claims
    else:
        assert isinstance(make_recipe({"base": "a/model", **tree}), Recipe)


def said(text):
    """The words that the page on symptoms says flowopd says: code in the middle column of its tables."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return [words for row in rows if len(row) == 3 for words in re.findall(r"`([^`]+)`", row[1])]


def sources():
    """All code of the package, strings that go on in the next line joined."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "flowopd").rglob("*.py"))
    return re.sub(r"\"\s*\n\s*f?\"", "", code)


def test_what_flowopd_is_said_to_say_it_says():
    code, words = sources(), said(PAGES["docs/troubleshooting.md"])
    assert len(words) > 30
    assert [each for each in words if each not in code] == []


def test_words_that_flowopd_does_not_say_are_reported():
    assert said("| a | `no server at`, `never said` (plan) | c |") == ["no server at", "never said"]
    assert "no server at" in sources() and "never said so" not in sources()


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


def test_every_row_of_the_shipped_suite_is_a_whole_recipe(tmp_path):
    suite = ROOT / "recipes" / "mini-paper" / "all.yaml"
    runs = load_runs(suite, tmp_path)
    assert {run.row for run in runs} == set(load_suite(suite).rows)
    assert all(run.recipe.evaluate is not None for run in runs)


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
