"""The wheel holds the whole package and nothing else; installed without extras it works, and names what is lacking."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = (
    "fastapi",
    "uvicorn",
    "datasets",
    "pyarrow",
    "tensorboard",
    "playwright",
    "mkdocs",
    "pytest",
    "mypy",
    "beartype",
)
"""What only extras bring. (httpx comes with the hub's client, rapidocr is the demo's judge: both are always there.)"""

EXPERTS = [f"--teacher={name}=package:mini/teachers/{name}" for name in ("composition", "text")]


def in_git():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "src/flowopd"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.removeprefix("src/") for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_every_file_of_the_package_that_is_in_git_is_in_the_wheel(contents):
    wanted = in_git()
    kinds = {Path(name).suffix for name in wanted}
    assert {".py", ".yaml", ".jsonl", ".json", ".safetensors", ".jinja", ".html", ".js", ".css", ".svg"} <= kinds
    assert wanted - contents == set()


def test_nothing_else_is_in_the_wheel(contents):
    strange = {name for name in contents if not re.match(r"flowopd(-[\d.]+\.dist-info)?/", name)}
    assert strange == set() and not [
        name for name in contents if "__pycache__" in name or name.endswith((".png", ".log"))
    ]


def test_licence_and_notice_travel_along(contents):
    assert {Path(name).name for name in contents if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_the_command_is_the_package_s(wheel):
    with zipfile.ZipFile(wheel) as packed:
        (named,) = (name for name in packed.namelist() if name.endswith("entry_points.txt"))
        assert "flowopd = flowopd.cli:main" in packed.read(named).decode()


def test_the_core_has_what_it_requires_and_no_extra(core):
    code = f"import importlib.util as u; print([n for n in {ABSENT!r} if u.find_spec(n)])"
    assert core.python(code).stdout.strip() == "[]"
    where = core.python("import flowopd, torch; print(flowopd.__file__)").stdout
    assert str(core.folder) in where


def test_without_extras_every_command_explains_itself(core):
    shown = core("--help")
    assert shown.returncode == 0 and "distill" in shown.stdout, shown.stderr
    for name in ("run", "studio", "serve-reward", "plan"):
        assert core(name, "--help").returncode == 0


def test_without_extras_a_shipped_recipe_is_planned(core):
    planned = core("plan", "mini-demo.yaml")
    assert planned.returncode == 0 and "memory, most at once" in planned.stdout, planned.stderr


def test_without_extras_shipped_experts_are_merged(core):
    merged = core("merge", "--base", "package:mini/base", *EXPERTS, "--out", "runs/merge")
    assert merged.returncode == 0, merged.stderr
    assert (core.place / "runs" / "merge" / "coldstart" / "adapter_model.safetensors").exists()


def test_without_extras_the_doctor_finds_the_demo_ready(core):
    checked = core("doctor", "mini-demo.yaml", "--json")
    assert '"ok": true' in checked.stdout, checked.stdout + checked.stderr


LACKING = {
    "studio": (["studio", "runs", "--no-open"], "studio"),
    "serve": (["serve-reward", "mini_quality"], "serve"),
    "datasets": (
        ["run", "mini-demo.yaml", "--out", "runs/lacking", "--set", "prompts.text.train=datasets:some/prompts"],
        "datasets",
    ),
    "parquet": (
        ["run", "mini-demo.yaml", "--out", "runs/lacking", "--set", "prompts.text.train=prompts.parquet"],
        "datasets",
    ),
}


@pytest.mark.parametrize("lack", LACKING)
def test_a_missing_extra_is_named_with_its_line_for_pip(core, lack):
    (core.place / "prompts.parquet").write_bytes(b"PAR1")
    words, extra = LACKING[lack]
    refused = core(*words)
    assert refused.returncode == 2 and refused.stderr.startswith("error: "), refused.stderr
    assert f"pip install 'flowopd[{extra}]'" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_wheel_installs_from_the_index_and_the_demo_runs(wheel, tmp_path):
    """An empty environment; torch first, then the wheel, at the pinned versions; few updates of the demo."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    bins, pins = tmp_path / "environment" / "bin", ROOT / "constraints.txt"
    (torch,) = re.findall(r"^torch==.*$", pins.read_text(), re.MULTILINE)
    for wanted in (torch, str(wheel)):
        subprocess.run([bins / "pip", "install", "--quiet", "-c", pins, wanted], check=True)
    subprocess.run([bins / "pip", "check"], check=True)
    lacking = f"import importlib.util as u; print([n for n in {ABSENT!r} if u.find_spec(n)])"
    found = subprocess.run([bins / "python", "-c", lacking], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    few = ["distill.optim.updates=3", "distill.samples_per_label=2", "evaluate.limit=12", "samples.prompts_per_label=1"]
    sets = [word for change in few for word in ("--set", change)]
    subprocess.run([bins / "flowopd", "run", "mini-demo.yaml", "--out", "runs/demo", *sets], cwd=tmp_path, check=True)
    left = {path.name for path in (tmp_path / "runs" / "demo").iterdir()}
    assert {"report.html", "results.json", "table.md", "wall.png", "student", "manifest.json"} <= left
