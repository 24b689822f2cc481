"""A judge elsewhere that is not there, or says nothing, is told at once, and no work is lost over it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowopd.errors import CheckpointError
from flowopd.lora_file import WEIGHTS, read_lora
from flowopd.models import open_model
from flowopd.rewards import Scores, http, make_reward, registry
from flowopd.session import Session

UPDATES = 4


@pytest.fixture
def broken_base(world, tmp_path):
    """A base whose weights and encoders cannot be loaded, though its configs can."""
    folder = shutil.copytree(world.base, tmp_path / "broken base")
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError):
        open_model(str(folder)).transformer  # noqa: B018
    return folder


@pytest.fixture
def teach(flowopd, world, tmp_path):
    """Trains a short expert on the reward `look`, which a server has."""

    def call(url, *changes, out=tmp_path / "out", base=world.base, reward="look"):
        train = "teachers.look.train"
        sampling = f"{train}.sampling={{steps: 2, sampler: sde, window: 1}}"
        few = [sampling, f"{train}.group=3", f"{train}.prompts_per_update=1", f"{train}.optim.updates={UPDATES}"]
        judges = [] if url is None else [f"judges.{reward}.url={url}", f"judges.{reward}.retries=0"]
        sets = [part for change in (*few, *judges, *changes) for part in ("--set", change)]
        prompts = f"quality={world.prompts}/train/quality.jsonl"
        names = ("--name", "look", "--reward", reward)
        return flowopd("teacher", *names, "--base", base, "--prompts", prompts, *sets, "--out", out)

    return call


def entry(build):
    """A row of the registry."""
    return SimpleNamespace(check=lambda *_: None, build=build, takes=())


def light(pictures, prompts):
    """A reward of whole numbers, which no order of summing changes."""
    return Scores(pictures.reshape(len(pictures), -1).sum(1, dtype=np.int64) / (255 * pictures[0].size))


def told(outcome, *fragments):
    assert outcome.code == 2 and not outcome.out
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: ")
    for fragment in fragments:
        assert fragment in last


def made(out):
    return {path.name for path in out.glob("*")} & {"cache", "teachers", "checkpoints", "metrics.jsonl", "coldstart"}


def alike(a, b):
    weights, others = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_dead_port_stops_an_expert_before_any_model_loads(teach, dead_url, broken_base, tmp_path):
    outcome = teach(dead_url, base=broken_base)
    told(outcome, f"judges.look: no server at {dead_url}/health (Connection refused); start it, or mend its url")
    assert outcome.err.count("\n") == 1 and not made(tmp_path / "out")


def test_the_folder_of_a_dead_port_serves_the_mended_command(teach, dead_url, reward_server):
    assert teach(dead_url).code == 2
    mended = teach(reward_server(make_reward("mini_quality"), "look").url)
    assert mended.code == 0, mended.err


def test_a_dead_port_stops_a_run_before_any_model_loads(flowopd, world, dead_url, broken_base, tmp_path):
    recipe = {**world.whole(), "base": str(broken_base), "judges": {"mini_quality": {"url": dead_url}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    outcome = flowopd("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    told(outcome, "judges.mini_quality", dead_url)
    assert not made(tmp_path / "out")


def test_a_dead_port_stops_an_evaluation_before_any_model_loads(flowopd, done, dead_url, monkeypatch):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    monkeypatch.setattr(Session, "encode", lambda *_: pytest.fail("encoded"))
    monkeypatch.setitem(registry.REWARDS, "mini_quality", entry(lambda *_: pytest.fail("loaded another judge")))
    outcome = flowopd("eval", "--out", done, "--set", f"judges.mini_holdout.url={dead_url}")
    told(outcome, "judges.mini_holdout", dead_url)
    assert {path: path.read_bytes() for path in before} == before


def test_a_judge_of_work_that_is_done_need_not_be_there(flowopd, teach, reward_server, dead_url, tmp_path):
    served = reward_server(make_reward("mini_quality"), "look")
    assert teach(served.url).code == 0
    recipe = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]
    recipe["judges"]["look"]["url"] = dead_url
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    again = flowopd("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    assert again.code == 0, again.err


def test_an_expert_of_a_judge_elsewhere_is_that_of_the_judge_here(teach, reward_server, tmp_path, monkeypatch):
    monkeypatch.setitem(registry.REWARDS, "look", entry(lambda *_: light))
    assert teach(reward_server(light, "look").url, out=tmp_path / "there").code == 0
    assert teach(None, out=tmp_path / "here").code == 0
    assert alike(tmp_path / "there" / "teachers" / "look", tmp_path / "here" / "teachers" / "look")


def test_a_judge_that_goes_away_loses_no_update(teach, reward_server, tmp_path):
    judge, calls = make_reward("mini_quality"), []

    def leaving(pictures, prompts):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return judge(pictures, prompts)

    served = reward_server(leaving, "look")
    told(teach(served.url), f"{served.url}/score", "RuntimeError: out of memory", "look at the server's log")
    assert [path.name for path in (tmp_path / "out" / "checkpoints" / "teachers" / "look").iterdir()] == ["step-2"]
    assert teach(served.url).code == 0 and len(calls) == UPDATES + 1
    assert teach(served.url, out=tmp_path / "whole").code == 0
    assert alike(tmp_path / "out" / "teachers" / "look", tmp_path / "whole" / "teachers" / "look")


def test_a_server_that_dies_amid_a_training_loses_no_update(teach, reward_server, tmp_path):
    judge, calls = make_reward("mini_quality"), []

    def dying(pictures, prompts):
        calls.append(1)
        if len(calls) == 3:
            served.stop()
        return judge(pictures, prompts)

    served = reward_server(dying, "look")
    told(teach(served.url), f"{served.url}/score")
    assert [path.name for path in (tmp_path / "out" / "checkpoints" / "teachers" / "look").iterdir()] == ["step-2"]
    told(teach(served.url), f"judges.look: no server at {served.url}/health")
    again = reward_server(judge, "look", port=served.port)
    assert again.url == served.url and teach(again.url).code == 0
    assert teach(again.url, out=tmp_path / "whole").code == 0
    assert alike(tmp_path / "out" / "teachers" / "look", tmp_path / "whole" / "teachers" / "look")


HEALTHY = json.dumps({"reward": "look", "version": "1", "ready": True})


def hang(serve):
    serve.stopped.wait(30)
    return ""


def drip(serve):
    while not serve.stopped.wait(0.05):
        yield " "


def flood(serve):
    while not serve.stopped.is_set():
        yield " " * (1 << 16)


DRILLS = {
    "hangs": (200, hang, "gave no answer within 0.5 s; look at its load, or allow it a longer deadline"),
    "drips": (200, drip, "gave no answer within 0.5 s"),
    "floods": (200, flood, "answers with more than 1 MiB; is it the right url?"),
    "gives too few": (
        200,
        lambda _: '{"value": [0.5, 0.5]}',
        "gives no scores of 3 pictures: value has 2 numbers for 3",
    ),
    "gives no number": (
        200,
        lambda _: '{"value": [0.5, 0.5, NaN]}',
        "gives no scores of 3 pictures: value.2 must be a finite number",
    ),
    "speaks HTML": (200, lambda _: "<html>It works!</html>", "answered HTML and no JSON ('<html>It works!</html>')"),
    "refuses access": (401, lambda _: "", "refuses access with status 401; name the environment variable"),
    "fails": (
        500,
        lambda _: '{"detail": "CUDA error"}',
        "failed with status 500 (CUDA error); look at the server's log",
    ),
}


@pytest.mark.parametrize("drill", DRILLS)
def test_a_server_that_misbehaves_ends_a_training_in_one_line(teach, serve, monkeypatch, tmp_path, drill):
    status, said, line = DRILLS[drill]
    monkeypatch.setattr(http, "MOST_MIB", 1)
    there = serve(lambda method, *_: (200, HEALTHY) if method == "GET" else (status, said(serve)))
    outcome = teach(there.url, "judges.look.deadline=0.5")
    told(outcome, f"{there.url}/score {line}")
    assert len([path for _, path, *_ in there.requests if path.endswith("/score")]) == 1
    assert not (tmp_path / "out" / "teachers").exists()


@pytest.mark.parametrize("drill", ["hangs", "drips", "floods", "speaks HTML", "refuses access", "is another judge"])
def test_a_server_that_misbehaves_stops_a_run_before_any_model_loads(
    flowopd, world, serve, monkeypatch, broken_base, tmp_path, drill
):
    monkeypatch.setattr(http, "MOST_MIB", 1)
    monkeypatch.setattr(http, "HEALTH", 0.5)
    another = (200, lambda _: HEALTHY, "serves 'look'; start one for 'mini_quality', or mend its url")
    status, said, line = {**DRILLS, "is another judge": another}[drill]
    there = serve(lambda *_: (status, said(serve)))
    recipe = {**world.whole(), "base": str(broken_base), "judges": {"mini_quality": {"url": there.url}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    outcome = flowopd("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    told(outcome, f"judges.mini_quality: {there.url}/health {line}")
    assert outcome.err.count("\n") == 1 and not made(tmp_path / "out")


DOCTORED = {
    "sound": (make_reward("mini_quality"), "ok", "scores 4 golden pictures"),
    "dumb": (lambda pictures, prompts: Scores(np.zeros(len(prompts))), "failed", "gave 0 to every golden picture"),
    "away": (None, "failed", "judges.mini_quality: no server at "),
}


@pytest.mark.parametrize("state", DOCTORED)
def test_the_doctor_has_golden_pictures_scored_elsewhere(flowopd, world, reward_server, dead_url, tmp_path, state):
    judge, found, fact = DOCTORED[state]
    url = reward_server(judge, "mini_quality").url if judge else dead_url
    recipe = {**world.whole(), "judges": {"mini_quality": {"url": url, "retries": 0}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    outcome = flowopd("doctor", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--json")
    checks = {check["name"]: check for check in json.loads(outcome.out)["checks"]}
    assert checks["judge mini_quality"]["state"] == found and fact in checks["judge mini_quality"]["fact"]
    assert checks["judge mini_holdout"]["state"] == "ok" and outcome.code == (found == "failed")


def test_a_judge_that_says_nothing_stops_an_expert_with_the_cause(teach, reward_server, tmp_path):
    served = reward_server(lambda pictures, prompts: Scores(np.zeros(len(prompts))), "look")
    outcome = teach(served.url, "watch.patience=1")
    told(outcome, "reward 'look'", "gave 0 to all 3 pictures of each of the updates 0 to 3", "run `flowopd doctor`")
    assert not (tmp_path / "out" / "teachers").exists()
    assert teach(served.url, "watch.patience=null").code == 0 and (tmp_path / "out" / "teachers" / "look").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_stops_expert_and_evaluation(teach, flowopd, done, monkeypatch, value):
    def build(device, config):
        return lambda pictures, prompts: Scores(np.array([0.5] * (len(prompts) - 1) + [value]))

    before = (done / "results.json").read_bytes()
    monkeypatch.setitem(registry.REWARDS, "look", entry(build))
    told(teach(None), "reward 'look' for ", f" in update 0 gave {value} to picture 2 of 3, prompt '")
    outcome = flowopd("eval", "--out", done, "--set", "evaluate.metrics.quality.reward=look")
    told(outcome, f"reward 'look' gave {value} to picture 2 of 3, prompt '")
    assert (done / "results.json").read_bytes() == before and read_lora(done / "student").modules


def test_no_file_and_no_line_of_a_run_holds_a_token(flowopd, teach, reward_server, monkeypatch, tmp_path):
    secret = "s3cr3t-of-the-judge"
    for name in ("JUDGE_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, secret)
    server = reward_server(light, "look", token=secret)
    told = [teach(server.url, "judges.look.token=JUDGE_TOKEN")]
    told += [flowopd("report", "--out", tmp_path / "out")]
    told += [flowopd("export", "--out", tmp_path / "out", "--model", "teacher:look")]
    assert [outcome.code for outcome in told] == [0, 0, 0], [outcome.err for outcome in told]
    files = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"manifest.json", "metrics.jsonl", "report.html", "README.md"} <= {path.name for path in files}
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert not [outcome for outcome in told if secret in outcome.out + outcome.err]
