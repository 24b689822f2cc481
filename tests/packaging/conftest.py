"""The wheel, and an environment that holds it with what it requires, and nothing else."""

import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SITE = Path(sysconfig.get_paths()["purelib"])


def required(names):
    """The distributions that these requirements need, and theirs, as far as they are installed here."""
    found, left = {}, [Requirement(name) for name in names]
    while left:
        wanted = left.pop()
        key = (wanted.name.lower().replace("_", "-"), *sorted(wanted.extras))
        if key in found:
            continue
        try:
            found[key] = distribution(wanted.name)
        except PackageNotFoundError:
            continue
        extras = ("", *wanted.extras)
        for below in map(Requirement, found[key].requires or ()):
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras):
                left.append(below)
    return list(found.values())


def link(distributions, folder):
    """The top of each distribution's files, as links in a folder."""
    tops = {file.parts[0] for each in distributions for file in each.files or () if file.parts[0] not in ("..", "bin")}
    for top in sorted(tops - {"__pycache__"}):
        if (SITE / top).exists():
            (folder / top).symlink_to(SITE / top)


@dataclass(frozen=True)
class Installed:
    """An environment: its folder, and calls within it from an empty place."""

    folder: Path
    place: Path

    def __call__(self, *words):
        return self._run(self.folder / "bin" / "flowopd", *words)

    def python(self, code):
        return self._run(self.folder / "bin" / "python", "-c", code)

    def _run(self, *words):
        own = {"PATH": str(self.folder / "bin"), "HOME": str(self.place), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(list(map(str, words)), cwd=self.place, env=own, capture_output=True, text=True)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this checkout, as `python -m build` makes it."""
    if find_spec("build") is None or find_spec("hatchling") is None:
        pytest.skip("build and hatchling are not installed: pip install 'flowopd[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def contents(wheel):
    """The names of the wheel's files."""
    with zipfile.ZipFile(wheel) as packed:
        return set(packed.namelist())


@pytest.fixture(scope="session")
def core(wheel, tmp_path_factory):
    """The wheel installed beside what it requires without extras, which is lent from this environment."""
    folder = tmp_path_factory.mktemp("core")
    environment, lent, place = (folder / name for name in ("environment", "lent", "place"))
    lent.mkdir()
    place.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    with zipfile.ZipFile(wheel) as packed:
        (named,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        lines = packed.read(named).decode().splitlines()
    needs = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    link(required(need for need in needs if "extra ==" not in need), lent)
    (own,) = environment.glob("lib/python*/site-packages")
    (own / "lent.pth").write_text(f"{lent}\n")
    return Installed(environment, place)
