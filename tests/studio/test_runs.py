"""Every question about what runs wrote: whole, half, damaged, and never from outside their folders."""

import json
import math
import os
import time

import pytest
from fastapi.testclient import TestClient

from flowopd.errors import DataError
from flowopd.studio.app import create_app
from flowopd.studio.folders import Folders, inside, run_id
from flowopd.studio.table import FRESH


def the_run(studio):
    (row,) = studio.get("/api/runs").json()["runs"]
    return row


def ask(studio, what, **query):
    return studio.get(f"/api/runs/{the_run(studio)['id']}/{what}", params=query)


def test_the_table_says_where_a_run_stands(studio, run):
    row = the_run(studio)
    assert (row["name"], row["stage"], row["updates"], row["planned"]) == ("a run", "distill", 30, 40)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["gap"] == pytest.approx(last["gap"], rel=1e-3) and row["seconds"] == last["seconds"]
    assert row["model"] == "student" and len(row["scores"]["average"]) == 3 and row["faults"] == []
    assert set(row["gap_closed"]) == {"composition", "text", "quality"}


def test_a_run_is_running_until_it_is_silent_and_finished_with_its_student(studio, run):
    assert the_run(studio)["state"] == "running"
    for file in run.glob("*.json*"):
        os.utime(file, (time.time() - FRESH - 1,) * 2)
    assert the_run(studio)["state"] == "stopped"
    (run / "metrics.jsonl").rename(run / "aside")
    os.utime(run / "manifest.json")
    assert the_run(studio)["state"] == "starting"
    (run / "aside").rename(run / "metrics.jsonl")
    (run / "student").mkdir()
    assert the_run(studio)["state"] == "finished"


@pytest.mark.parametrize(
    ("stage", "recipe", "planned"),
    [
        ("distill", {"distill": {"optim": {"updates": 7}}}, 7),
        ("sft", {"coldstart": {"kind": "sft", "optim": {"updates": 5}}}, 5),
        ("grpo_mix", {"grpo_mix": {"optim": {"updates": 4}}}, 4),
        ("teacher:ocr", {"teachers": {"ocr": {"train": {"optim": {"updates": 3}}}}}, 3),
        ("teacher:ocr", {"teachers": {"ocr": {"adapter": "x", "train": None}}}, None),
        ("eval", {}, None),
        ("distill", {}, None),
    ],
)
def test_how_many_updates_are_planned(studio, run, stage, recipe, planned):
    (run / "manifest.json").write_text(json.dumps({"recipe": recipe}))
    (run / "metrics.jsonl").write_text(json.dumps({"stage": stage, "step": 2}) + "\n")
    assert the_run(studio)["planned"] == planned


@pytest.mark.parametrize("missing", ["results.json", "metrics.jsonl", "manifest.json", "samples", "coldstart"])
def test_a_missing_part_leaves_the_rest(studio, run, missing):
    (run / missing).rename(run.parent.parent / "elsewhere")
    row = the_run(studio)
    assert row["faults"] == []
    answers = {what: ask(studio, what) for what in ("gaps", "scores", "interference", "pictures")}
    assert {answer.status_code for answer in answers.values()} == {200}
    assert (answers["scores"].json() is None) == (missing == "results.json")
    assert (answers["interference"].json() is None) == (missing == "coldstart")
    assert (answers["gaps"].json()["values"] == {}) == (missing == "metrics.jsonl")
    assert (answers["pictures"].json()["rows"] == []) == (missing == "samples")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("results.json", "scores"),
        ("coldstart/merge.json", "interference"),
        ("samples/index.json", "pictures"),
    ],
)
def test_a_damaged_part_is_named_and_leaves_the_rest(studio, run, name, what):
    (run / name).write_text('{"half')
    answer = ask(studio, what)
    assert answer.status_code == 404 and name in answer.json()["error"]
    assert studio.get("/api/runs").status_code == 200
    others = {"gaps", "scores", "interference", "pictures"} - {what}
    assert {ask(studio, other).status_code for other in others} == {200}


def test_damage_is_told_in_the_table(studio, run):
    (run / "results.json").write_text("[]")
    (run / "manifest.json").write_text("{")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('nonsense\n{"stage": "distill", "st')
    faults = the_run(studio)["faults"]
    assert len(faults) == 3 and "results.json" in faults[0] and "manifest.json" in faults[1]
    assert faults[2] == "metrics.jsonl has 1 lines that are no rows"
    assert the_run(studio)["updates"] == 30


def test_curves_are_the_rows(studio, run):
    row = the_run(studio)
    answer = studio.get("/api/curves", params={"runs": row["id"], "stage": "distill", "key": "gap/text"}).json()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = answer["curves"][row["id"]]
    assert curve["steps"] == list(range(30)) and curve["low"] is None and curve["updates"] == 30
    assert curve["mean"] == pytest.approx([one["gap/text"] for one in rows], rel=1e-3)
    assert answer["behind"] == 0


def test_a_live_run_is_followed(studio, run):
    row = the_run(studio)
    query = {"runs": row["id"], "stage": "distill", "key": "gap"}
    first = studio.get("/api/curves", params=query)
    assert studio.get("/api/curves", params=query, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "distill", "step": 30, "gap": 0.5}) + "\n")
    second = studio.get("/api/curves", params=query, headers={"If-None-Match": first.headers["etag"]})
    assert second.json()["curves"][row["id"]]["mean"][-1] == 0.5
    assert the_run(studio)["updates"] == 31


def test_keys_are_those_of_all_runs(studio, run):
    other = run.parent / "b"
    other.mkdir()
    (other / "metrics.jsonl").write_text('{"stage": "teacher:ocr", "step": 0, "seconds": 1.0, "reward": 1.0}\n')
    ids = ",".join(row["id"] for row in studio.get("/api/runs").json()["runs"])
    keys = studio.get("/api/keys", params={"runs": ids}).json()
    assert keys["teacher:ocr"] == ["reward"] and keys["distill"][:3] == ["gap", "grad_norm", "gap/composition"]


def test_keys_are_sorted_by_name_and_step_behind_the_plain_ones(studio, run):
    keys = ["loss", "gap/b/10", "gap/b/3", "gap/b", "gap", "gap/a2/0", "gap/a10/0", "skipped"]
    (run / "metrics.jsonl").write_text(json.dumps({"stage": "distill", "step": 0, **dict.fromkeys(keys, 1.0)}) + "\n")
    found = studio.get("/api/keys", params={"runs": the_run(studio)["id"]}).json()["distill"]
    assert found == ["loss", "gap", "skipped", "gap/a2/0", "gap/a10/0", "gap/b", "gap/b/3", "gap/b/10"]


def test_a_quantity_that_is_not_there_has_no_curve(studio):
    query = {"runs": the_run(studio)["id"], "stage": "distill", "key": "nothing"}
    assert studio.get("/api/curves", params=query).json()["curves"] == {}
    assert studio.get("/api/curves", params=query | {"stage": "nowhere"}).json()["curves"] == {}


def test_gaps_are_means_of_bins(studio, run):
    found = ask(studio, "gaps").json()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert list(found["values"]) == ["composition", "text", "quality"] and found["updates"] == list(range(30))
    assert found["values"]["text"][4] == pytest.approx([row["gap/text/4"] for row in rows], rel=1e-3)


def test_a_step_that_was_not_visited_is_empty(studio, run):
    lines = [{"stage": "distill", "step": step, f"gap/a/{2 * (step % 2)}": 1.0} for step in range(4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = ask(studio, "gaps").json()["values"]["a"]
    assert values == [[1.0, None, 1.0, None], [None] * 4, [None, 1.0, None, 1.0]]


def test_scores_are_held_against_the_base(studio, make):
    found, results = ask(studio, "scores").json(), make.record()
    assert found["metrics"] == results.metrics and found["owners"]["text"] == "text"
    difference, tint, clear = found["changes"]["student"]["text"]
    assert difference == pytest.approx(
        results.models["student"]["text"].mean - results.models["base"]["text"].mean, abs=1e-4
    )
    assert 0 < tint <= 1 and clear is True


def test_interference_has_pairs_by_layer(studio):
    found = ask(studio, "interference").json()
    assert found["names"] == ["a", "b"] and found["cosines"] == [[1, -0.25], [-0.25, 1]] and found["norms"] == [2, 1]
    assert found["modules"] == [{"name": "block.0", "norms": [2, 1], "cosines": [0.5]}]


def test_pictures_are_listed_and_served(studio, run):
    found = ask(studio, "pictures").json()
    assert found["rows"] == [
        {"prompt": "a sign", "pictures": {"base": "samples/0-base.png", "teacher:text": "samples/0-teacher-text.png"}}
    ]
    assert found["others"] == {".": ["wall.png"]}
    answer = ask(studio, "picture", path="samples/0-teacher-text.png")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == (run / "samples" / "0-teacher-text.png").read_bytes()


ESCAPES = [
    "../secret.png",
    "samples/../../secret.png",
    "link.png",
    "linked/secret.png",
    "metrics.jsonl",
    "manifest.json",
]
ESCAPES += ["samples", "nothing.png", "text.png", "", "..", "\0.png"]


@pytest.mark.parametrize("path", [*ESCAPES, "{outside}/secret.png"])
def test_nothing_but_pictures_of_the_run_is_served(studio, run, path):
    outside = run.parent.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    (run.parent / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    (run / "link.png").symlink_to(outside / "secret.png")
    (run / "linked").symlink_to(outside)
    (run / "text.png").write_text("secret")
    answer = ask(studio, "picture", path=path.format(outside=outside))
    assert answer.status_code == 404 and b"secret\n" not in answer.content and "error" in answer.json()
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("model", ["../../secret", "/etc/passwd", "a/b"])
def test_a_wall_that_names_a_model_elsewhere_shows_no_picture(studio, run, model):
    (run / "samples" / "index.json").write_text(json.dumps({"prompts": ["x"], "models": [model]}))
    assert ask(studio, "pictures").json()["rows"] == [{"prompt": "x", "pictures": {}}]


@pytest.mark.parametrize("path", ["/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "/js/../../app.py", "/guard.py"])
def test_the_pages_lead_to_nothing_else(studio, path):
    assert studio.get(path).status_code == 404


def test_an_unknown_run_is_said(studio):
    for what in ("gaps", "scores", "interference", "pictures", "picture?path=x.png", "models", "preferences"):
        answer = studio.get(f"/api/runs/nobody/{what}")
        assert answer.status_code == 404 and "there is no run 'nobody'" in answer.json()["error"]
    answer = studio.get("/api/curves", params={"runs": "nobody", "stage": "a", "key": "b"})
    assert answer.status_code == 404


def test_too_many_runs_are_refused(studio):
    ids = ",".join(map(str, range(201)))
    answer = studio.get("/api/keys", params={"runs": ids})
    assert answer.status_code == 422 and "choose at most 200" in answer.json()["error"]


def test_a_question_that_lacks_a_part_is_told_which(studio):
    answer = studio.get("/api/curves", params={"runs": "x", "stage": "distill"})
    assert answer.status_code == 422 and answer.json()["error"].startswith("key: ")


def test_a_new_run_appears_by_itself(studio, run):
    assert len(studio.get("/api/runs").json()["runs"]) == 1
    (run.parent / "empty").mkdir()
    (run.parent / "new").mkdir()
    (run.parent / "new" / "metrics.jsonl").write_text("")
    assert [row["name"] for row in studio.get("/api/runs").json()["runs"]] == ["a run", "new"]


def test_runs_of_one_name_have_ids_of_their_own(run, tmp_path):
    other = tmp_path / "other" / "a run"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_text("")
    folders = Folders([run, other])
    assert len(folders.runs()) == 2 and all(name.startswith("a-run-") for name in folders.runs())
    assert Folders([run, run.parent]).runs() == {run_id(run): run}


def test_a_place_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere is no folder; give the folder of a run"):
        create_app([tmp_path / "nowhere"])


def test_inside_follows_links(run, tmp_path):
    (run / "up").symlink_to(tmp_path)
    assert inside(run, "samples", "0-base.png") == run / "samples" / "0-base.png"
    for parts in (("up", "x"), ("..",), ("/etc",)):
        with pytest.raises(DataError, match="leads out of the run"):
            inside(run, *parts)


def test_an_empty_place_has_no_runs(tmp_path):
    studio = TestClient(create_app([tmp_path]), base_url="http://localhost")
    assert studio.get("/api/runs").json() == {"runs": [], "behind": 0}


def test_the_answers_to_many_long_runs_stay_small(make, tmp_path):
    make.write_runs(tmp_path, runs=20, updates=1500, kinds=1)
    studio = TestClient(create_app([tmp_path]), base_url="http://localhost")
    first = studio.get("/api/runs")
    rows = first.json()["runs"]
    assert len(rows) == 20 and all(row["updates"] == 1500 for row in rows) and len(first.content) < 20 * 1000
    while studio.get("/api/runs").json()["behind"]:
        pass
    ids = ",".join(row["id"] for row in rows)
    answer = studio.get("/api/curves", params={"runs": ids, "stage": "distill", "key": "gap"})
    curves = answer.json()["curves"]
    assert len(curves) == 20 and len(answer.content) < 200_000
    values = [json.loads(line)["gap"] for line in make.metric_lines(1500)]
    for curve in curves.values():
        assert len(curve["steps"]) <= 250
        assert math.isclose(min(curve["low"]), min(values), rel_tol=1e-3)
        assert math.isclose(max(curve["high"]), max(values), rel_tol=1e-3)
    one = studio.get("/api/curves", params={"runs": rows[0]["id"], "stage": "distill", "key": "gap"})
    assert len(one.content) < 20_000
    gaps = studio.get(f"/api/runs/{rows[0]['id']}/gaps")
    assert len(gaps.content) < 25_000
