"""Every command explains itself, with an example, at no cost."""

import subprocess
import sys

import pytest
import typer

from flowopd.cli import app


def commands(command, path=()):
    """The paths of all commands."""
    below = getattr(command, "commands", None)
    if below is None:
        return [path]
    return [found for name, each in below.items() for found in commands(each, (*path, name))]


COMMANDS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(flowopd, command):
    shown = flowopd(*command, "--help")
    text = " ".join(shown.out.split())
    assert shown.code == 0 and not shown.err
    assert "Example:" in text and f"flowopd {' '.join(command)}" in text.partition("Example:")[2]


def test_the_commands_are_those_of_the_contract():
    names = {path[0] for path in COMMANDS}
    assert {"demo", "run", "teacher", "merge", "sft", "distill", "eval", "sample", "export", "report"} <= names


def test_help_lists_every_command(flowopd):
    shown = flowopd("--help")
    assert shown.code == 0 and all(path[0] in shown.out for path in COMMANDS)


def test_help_does_not_wait_for_torch():
    code = "import sys; sys.argv = ['flowopd', 'run', '--help']\ntry:\n    from flowopd.cli import main; main()\n"
    code += "except SystemExit as end:\n    assert not end.code\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


WRONG_CALLS = {
    "unknown": "unknown",
    "run": "recipe",
    "run recipe.yaml --no-such-flag": "--no-such-flag",
    "eval --limit many": "--limit",
    "sample": "--prompt",
}


@pytest.mark.parametrize("call, named", WRONG_CALLS.items())
def test_a_wrong_call_exits_with_2_and_names_what_is_wrong(flowopd, call, named):
    wrong = flowopd(*call.split())
    assert wrong.code == 2 and named in wrong.err and not wrong.out
