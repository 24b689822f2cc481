"""Runs to look at: made-up ones, and the whole run of the tiny world that the stages' tests share."""

import json
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from flowopd.studio.app import create_app


def _loaded(name, path):
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


HERE = Path(__file__).parent
stages = _loaded("tiny_world_of_stages", HERE.parent / "stages" / "conftest.py")
many_runs = _loaded("many_runs", HERE / "many_runs.py")
world, finished, distilling = stages.world, stages.finished, stages.distilling


@pytest.fixture(scope="session")
def make():
    """The generator of made-up runs."""
    return many_runs


@pytest.fixture
def run(tmp_path):
    """A made-up run with everything that the studio shows, but no models."""
    folder = tmp_path / "runs" / "a run"
    many_runs.write_manifest(folder, 40)
    many_runs.record().save(folder / "results.json")
    (folder / "metrics.jsonl").write_text("".join(many_runs.metric_lines(30)))
    (folder / "coldstart").mkdir()
    facts = {"names": ["a", "b"], "norms": {"a": 2.0, "b": 1.0}, "cosines": [[1.0, -0.25], [-0.25, 1.0]]}
    facts["modules"] = {"block.0": {"norms": {"a": 2.0, "b": 1.0}, "cosines": [[1.0, 0.5], [0.5, 1.0]]}}
    (folder / "coldstart" / "merge.json").write_text(json.dumps({"interference": facts}))
    (folder / "samples").mkdir()
    index = {"prompts": ["a sign"], "models": ["base", "teacher:text", "gone"]}
    (folder / "samples" / "index.json").write_text(json.dumps(index))
    for name in ("samples/0-base.png", "samples/0-teacher-text.png", "wall.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


@pytest.fixture
def studio(run):
    """A browser without pages: questions to a studio over the folder of the made-up run."""
    return TestClient(create_app([run.parent]), base_url="http://localhost")


@pytest.fixture
def done(finished, tmp_path):
    """A copy of the tiny world's whole run, to work on."""
    return shutil.copytree(finished, tmp_path / "done")
