"""What a manifest says of who made a run: the code that ran, stage by stage, whoever writes into it later."""

import json
import subprocess

import pytest
import torch

from flowopd import provenance
from flowopd.pipeline import open_run
from flowopd.recipe import make_recipe
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill

CPU = torch.device("cpu")


@pytest.fixture
def commit(monkeypatch):
    """Makes this process one of another commit."""

    def made_by(name):
        mine = {"git_commit": name, "git_changed": False, "versions": {}, "hardware": {"device": "cpu"}}
        monkeypatch.setattr(provenance, "maker", lambda device: mine)

    return made_by


def manifest_of(out):
    return json.loads((out / "manifest.json").read_text())


def commits(out):
    return {stage: [one["git_commit"] for one in each] for stage, each in manifest_of(out)["made"].items()}


def test_every_stage_keeps_what_made_it(world, tmp_path, commit):
    recipe = make_recipe(world.whole())
    commit("first")
    session = open_run(recipe, tmp_path / "run")
    cold_start(session)
    commit("second")
    distill(open_run(recipe, tmp_path / "run"))
    assert commits(tmp_path / "run") == {"coldstart": ["first"], "distill": ["second"]}
    commit("third")
    provenance.write_manifest(open_run(recipe, tmp_path / "run"))
    assert commits(tmp_path / "run") == {"coldstart": ["first"], "distill": ["second"]}
    assert manifest_of(tmp_path / "run")["git_commit"] == "third"
    assert [one["git_commit"] for one in provenance.makers(manifest_of(tmp_path / "run"))] == ["first", "second"]


def test_a_stage_that_goes_on_has_all_its_makers_and_one_made_anew_the_last(world, tmp_path, commit):
    session = open_run(make_recipe(world.whole()), tmp_path / "run")
    for name in ("first", "second", "second"):
        commit(name)
        provenance.record(session, "distill")
        provenance.record(session, "eval", anew=True)
    assert commits(tmp_path / "run") == {"distill": ["first", "second"], "eval": ["second"]}


def test_a_manifest_that_does_not_tell_stages_apart_keeps_who_wrote_it(world, tmp_path, commit):
    commit("first")
    session = open_run(make_recipe(world.whole()), tmp_path / "run")
    old = {key: value for key, value in manifest_of(tmp_path / "run").items() if key != "made"}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(old))
    assert [one["git_commit"] for one in provenance.makers(old)] == ["first"]
    commit("second")
    provenance.record(session, "eval", anew=True)
    provenance.write_manifest(session)
    assert commits(tmp_path / "run") == {"run": ["first"], "eval": ["second"]}


def test_a_folder_without_a_manifest_stays_without(world, tmp_path):
    session = open_run(make_recipe(world.whole()), tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    provenance.record(session, "distill")
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize("tracked", [True, False])
def test_a_commit_is_that_of_the_checkout_that_holds_the_code(tmp_path, monkeypatch, tracked):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True)

    git("init")
    (tmp_path / "a.txt").write_text("a")
    folder = tmp_path / "flowopd"
    folder.mkdir()
    (folder / "provenance.py").write_text("")
    git("add", ".", *([] if tracked else [":!flowopd"]))
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD").stdout.strip()
    monkeypatch.setattr(provenance, "SOURCE", folder)
    clean = provenance.maker.__wrapped__(CPU)
    assert (clean["git_commit"], clean["git_changed"]) == ((head, False) if tracked else (None, None))
    (folder / "provenance.py").write_text("changed")
    assert provenance.maker.__wrapped__(CPU)["git_changed"] == (True if tracked else None)
