"""The site, built once; and the tiny world of the stages."""

import os
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _of_stages():
    path = ROOT / "tests" / "stages" / "conftest.py"
    spec = spec_from_file_location("tiny_world_of_documents", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


stages = _of_stages()
world, finished = stages.world, stages.finished


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site, built as strictly as `make docs` does it."""
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("mkdocs is not installed: pip install 'flowopd[docs]'")
    folder = tmp_path_factory.getbasetemp() / "site"
    if not folder.exists():
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
        quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    return folder
