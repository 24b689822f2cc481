"""The program's manners: what it says of itself, quiet, tracebacks, hints, dry runs, and the shipped recipes."""

import json
import os
import subprocess
import sys

import pytest
import typer
import yaml
from typer.main import get_command

from flowopd.cli import WELCOME, app
from flowopd.quiet import DEBUG, QUIET
from flowopd.recipe import load_recipe, make_recipe
from flowopd.shipped import shipped_recipe, shipped_recipes

STAGES = ("coldstart", "distill", "eval")


@pytest.fixture
def recipe(world, tmp_path):
    """The tiny world's whole recipe as a file."""
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(world.whole()))
    return file


def leaves(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(leaves(get_command(app)))


def test_alone_it_says_what_it_does_and_what_to_try(flowopd):
    shown = flowopd()
    assert shown.code == 0 and shown.out.strip() == WELCOME and not shown.err
    tried = [line.split()[1] for line in WELCOME.splitlines() if line.startswith("  flowopd ")]
    assert len(tried) == 3 and all((name,) in COMMANDS for name in tried)


def test_it_knows_its_version(flowopd):
    shown = flowopd("--version")
    assert shown.code == 0 and shown.out.startswith("flowopd ") and shown.out.split()[1][0].isdigit()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_options_are_explained_and_grouped(path):
    options = [param for param in COMMANDS[path].params if param.param_type_name == "option"]
    grouped = [param for param in options if getattr(param, "rich_help_panel", None)]
    assert all(param.help for param in options if param.name != "help")
    assert {"quiet", "debug"} <= {param.name for param in grouped}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_first_line_of_help_is_a_whole_sentence(path):
    first = COMMANDS[path].help.split("\n\n")[0]
    assert first.endswith(".") and len(first) < 120


# Quiet


def test_hints_go_to_standard_error_and_quiet_leaves_them_out(flowopd, done, monkeypatch):
    assert flowopd("report", "--out", done).err == f"next: open {done / 'report.html'} in a browser\n"
    assert not flowopd("report", "--out", done, "--quiet").err
    monkeypatch.setenv(QUIET, "1")
    assert not flowopd("report", "--out", done).err


def test_quiet_ends_with_its_call(flowopd, done):
    flowopd("report", "--out", done, "--quiet", "--debug")
    assert QUIET not in os.environ and DEBUG not in os.environ


# Errors


def broken(*_args, **_kwargs):
    raise ZeroDivisionError("by\nnothing")


def test_a_failure_of_ours_is_one_line_with_its_type(flowopd, done, monkeypatch):
    monkeypatch.setattr("flowopd.stages.report.page.write_report", broken)
    failed = flowopd("report", "--out", done)
    line = "failed: ZeroDivisionError: by nothing; run again with --debug for the traceback\n"
    assert (failed.code, failed.out, failed.err) == (1, "", line)


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_debug_shows_the_traceback_too(flowopd, done, monkeypatch, way):
    monkeypatch.setattr("flowopd.stages.report.page.write_report", broken)
    if way == "variable":
        monkeypatch.setenv(DEBUG, "1")
    failed = flowopd("report", "--out", done, *(["--debug"] if way == "flag" else []))
    assert failed.code == 1 and "Traceback" in failed.err and failed.err.splitlines()[-1].startswith("failed: Zero")


def test_debug_shows_where_a_mistake_was_found(flowopd, tmp_path):
    failed = flowopd("report", "--out", tmp_path / "nowhere", "--debug")
    assert failed.code == 2 and "Traceback" in failed.err and failed.err.splitlines()[-1].startswith("error: ")


# Dry runs


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_shows_the_whole_recipe_and_the_stages_and_writes_nothing(flowopd, recipe, tmp_path):
    shown = flowopd("run", recipe, "--set", "seed=5", "--out", tmp_path / "out", "--dry-run")
    assert shown.code == 0 and not (tmp_path / "out").exists()
    assert shown.out.splitlines()[:4] == [f"--- # {tmp_path / 'out'}", *(f"# {name}: to do" for name in STAGES)]
    assert make_recipe(yaml.safe_load(shown.out)) == load_recipe(recipe, ["seed=5"])
    assert yaml.safe_load(shown.out)["distill"]["optim"]["max_grad_norm"] == 1.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("distill.anchor.model=nobody", "the anchor 'nobody'"), ("prompts.quality.test=gone.txt", "prompt file gone.txt")],
)
def test_a_dry_run_refuses_what_the_recipe_names_and_has_not(flowopd, recipe, tmp_path, wrong, said):
    shown = flowopd("run", recipe, "--set", wrong, "--out", tmp_path / "out", "--dry-run")
    assert shown.code == 2 and said in shown.err and "base:" not in shown.out


def test_a_dry_run_of_a_finished_run_skips_what_is_done(flowopd, recipe, done):
    before = files(done)
    shown = flowopd("run", recipe, "--out", done, "--dry-run")
    assert shown.out.splitlines()[1:4] == [
        "# coldstart: done, skipped",
        "# distill: done, skipped",
        "# eval: made again where something changed",
    ]
    assert files(done) == before


def test_a_dry_run_finds_the_folder_of_another_run(flowopd, recipe, done):
    refused = flowopd("run", recipe, "--set", "seed=7", "--out", done, "--dry-run")
    assert refused.code == 2 and "another seed" in refused.err


def test_a_dry_run_of_a_suite_shows_every_run(flowopd, recipe, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(json.dumps({"rows": {"a": {"recipe": recipe.name, "seeds": [0, 1]}}}))
    shown = flowopd("run", suite, "--out", tmp_path / "out", "--dry-run")
    assert [tree["seed"] for tree in yaml.safe_load_all(shown.out)] == [0, 1]
    assert f"--- # {tmp_path / 'out' / 'a' / 'seed-1'}" in shown.out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        ("merge", ["coldstart"]),
        ("sft", ["coldstart"]),
        ("distill", ["coldstart", "distill"]),
        ("teacher --name look --reward mini_quality", ["teacher:look"]),
        ("eval", ["eval"]),
    ],
)
def test_a_dry_run_of_a_stage_shows_that_stage(flowopd, recipe, tmp_path, words, stages):
    shown = flowopd(*words.split(), "--config", recipe, "--out", tmp_path / "out", "--dry-run")
    assert shown.code == 0 and not (tmp_path / "out").exists(), shown.err
    named = [line for line in shown.out.splitlines() if line.startswith("# ")]
    assert named == [f"# {stage}: to do" for stage in stages]


# Shipped recipes


def test_recipes_are_listed_with_what_they_are_for(flowopd):
    shown = flowopd("recipes")
    assert shown.code == 0
    assert dict(line.split(maxsplit=1) for line in shown.out.splitlines()) == shipped_recipes()
    assert json.loads(flowopd("recipes", "--json").out) == shipped_recipes()
    assert all(len(summary) > 20 and "yaml-language-server" not in summary for summary in shipped_recipes().values())


@pytest.mark.parametrize("name", ["mini-demo", "mini-demo.yaml", "recipes/mini-demo.yaml"])
def test_a_recipe_is_printed_as_it_is(flowopd, name):
    assert flowopd("recipes", "show", name).out == shipped_recipe("mini-demo").read_text()


def test_a_shipped_recipe_runs_by_its_bare_name(flowopd, tmp_path):
    assert flowopd("run", "mini-demo", "--out", tmp_path / "out", "--dry-run").code == 0


def test_a_shipped_recipe_does_not_stand_in_for_a_file_elsewhere(flowopd, tmp_path):
    refused = flowopd("run", tmp_path / "mini-demo.yaml", "--out", tmp_path / "out", "--dry-run")
    assert refused.code == 2 and "does not exist; did you mean 'mini-demo'" in refused.err


def test_a_shell_completes_recipe_names():
    code = "from flowopd.cli.flags import completed_recipe as c; import sys; print(c('mini-d')); "
    code += "assert 'torch' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("[('mini-demo', 'Three shipped experts")


def test_a_shell_completes_hardware():
    code = "from flowopd.cli.flags import completed_hardware as c; import sys; print(c('A100'), c('c')); "
    code += "assert 'torch' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[('a100-40gb', '40 GiB'), ('a100-80gb', '80 GiB')] [('cpu', 'this machine')]\n"


def test_a_hint_names_the_program_as_it_was_called(monkeypatch, capsys):
    from flowopd.cli import shown

    monkeypatch.setattr(shown, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", [".venv/bin/flowopd", "demo"])
    shown.hint("flowopd sample, then flowopd report")
    assert capsys.readouterr().err == "next: .venv/bin/flowopd sample, then .venv/bin/flowopd report\n"
    monkeypatch.setattr(shown, "which", lambda name: f"/usr/bin/{name}")
    shown.hint("flowopd sample")
    assert capsys.readouterr().err == "next: flowopd sample\n"


def test_listing_recipes_needs_no_torch():
    code = "import sys; sys.argv = ['flowopd', 'recipes']\ntry:\n    from flowopd.cli import main; main()\n"
    code += "except SystemExit as end:\n    assert not end.code\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", ["eval", "eval --dry-run", "export", "interference", "sample --prompt x"])
def test_a_folder_without_a_run_is_told_at_once(command, tmp_path):
    arguments = ["flowopd", *command.split(), "--out", str(tmp_path)]
    code = f"import sys; sys.argv = {arguments}\ntry:\n    from flowopd.cli import main; main()\n"
    code += "except SystemExit as end:\n    assert end.code == 2\nassert 'torch' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "holds no run (manifest.json is missing); give its folder" in ran.stderr


def test_manners_are_added_to_a_command_s_own_options():
    from flowopd.cli.manners import mannered

    def greet(name: str = "you") -> None:
        """Greet."""
        typer.echo(name)

    small = typer.Typer()
    small.command()(mannered(greet))
    assert {param.name for param in get_command(small).params} >= {"name", "quiet", "debug"}
