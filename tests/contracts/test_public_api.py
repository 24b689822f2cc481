"""What others rely on: the names of the package, that they cost nothing until they are used, and the commands."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import flowopd
from flowopd.cli import app

SRC = Path(flowopd.__file__).parent
MODULES = sorted(SRC.rglob("*.py"))

NAMES = [
    "Adapters",
    "Anchor",
    "CheckpointError",
    "Condition",
    "ConfigError",
    "Cps",
    "DataError",
    "DistillConfig",
    "Distiller",
    "FieldDistiller",
    "FlowMatching",
    "FlowOpdError",
    "FlowSde",
    "Gaussian",
    "Grpo",
    "Interrupted",
    "LabelRouter",
    "NumericsError",
    "Ode",
    "Prompt",
    "Recipe",
    "Results",
    "ReverseKL",
    "Reward",
    "SampledLogRatio",
    "Scores",
    "Session",
    "Step",
    "VelocityField",
    "cold_start",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "guided",
    "load_recipe",
    "make_recipe",
    "make_reward",
    "open_model",
    "open_run",
    "read_prompts",
    "run",
    "train_teacher",
    "write_report",
]
COMMANDS = {
    "demo",
    "run",
    "teacher",
    "merge",
    "sft",
    "distill",
    "doctor",
    "eval",
    "sample",
    "export",
    "report",
    "serve-reward",
    "studio",
    "mini pretrain",
    "mini prompts",
}


def typed_names():
    """The names that a type checker sees, imported under TYPE_CHECKING."""
    tree = ast.parse((SRC / "__init__.py").read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    return [alias.name for block in found for node in ast.walk(block) for alias in getattr(node, "names", ())]


def commands(group, before=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def undocumented(tree):
    """Public functions and classes of a module, and public methods of its public classes, without a docstring."""
    missing = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            missing += [f"{node.name}.{name}" for name in undocumented(node) if name not in INHERITED]
    return missing


INHERITED = {"forward", "coefficients", "draw"}
"""Methods that the docstring of a base or protocol explains: torch's `Module`, `Dynamics`, `Query`."""


def loaded_after(statement):
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_public_names_are_these():
    assert flowopd.__all__ == NAMES == sorted(NAMES)


def test_every_public_name_is_found_by_python_and_by_type_checkers():
    assert sorted(flowopd._HOME) == NAMES
    assert sorted(typed_names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_code(name):
    thing = getattr(flowopd, name)
    assert inspect.isclass(thing) or inspect.isfunction(thing)
    assert thing.__name__ == name and thing.__module__.startswith("flowopd.")
    assert (vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__ or "").strip()


def test_a_dataclass_says_more_than_its_signature():
    written = [getattr(flowopd, name).__doc__ for name in NAMES]
    assert not [doc for name, doc in zip(NAMES, written, strict=True) if doc.startswith(f"{name}(")]


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="distil"):
        _ = flowopd.distil


@pytest.mark.parametrize("statement", ["import flowopd", "import flowopd.cli"])
def test_the_package_and_its_commands_are_imported_at_once(statement):
    slow = {"torch", "diffusers", "transformers", "peft", "numpy", "matplotlib"}
    assert loaded_after(statement) & {"flowopd", *slow} == {"flowopd"}


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(SRC)) for path in MODULES])
def test_what_is_public_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert undocumented(tree) == []
    assert ast.get_docstring(tree) or not tree.body


def test_a_missing_docstring_is_reported():
    source = 'class A:\n    """A."""\n    def b(self): ...\ndef c(): ...\ndef _d(): ...\nclass E:\n    """E."""'
    assert undocumented(ast.parse(source)) == ["A.b", "c"]


def test_the_commands_are_there():
    assert {name for name, _ in commands(get_command(app))} >= COMMANDS


def test_every_command_tells_what_it_does_and_shows_an_example():
    for name, command in commands(get_command(app)):
        assert f"Example: `flowopd {name}" in command.help, name


def test_a_notebook_completes_what_is_public():
    assert dir(flowopd) == sorted(flowopd.__all__)
