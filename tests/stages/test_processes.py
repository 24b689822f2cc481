"""One process or two, micro-batches of any size: the same gradient, the same pictures, the same table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flowopd import processes
from flowopd.pipeline import open_run, run
from flowopd.recipe import make_recipe
from flowopd.stages.sample import draw_to

WORKER = Path(__file__).with_name("worker.py")
TOLERANCE = 1e-5
"""Of gradients, relative to the largest: sums of the same numbers in another order, in fp32."""

POLICY = {
    "prompts_per_update": 3,
    "group": 3,
    "micro_batch": 2,
    "sampling": {"steps": 3, "sampler": "sde", "window": 2},
    "adapter": {"rank": 4, "alpha": 8},
    "optim": {"updates": 1, "learning_rate": 1e-3},
}
QUALITY = {"reward": "mini_quality", "prompts": "quality"}
COMPOSITION = {"reward": "mini_geneval", "detail": "continuous", "prompts": "composition"}
SFT = {"kind": "sft", "images": 6, "batch": 5, "micro_batch": 2, "sampling": {"steps": 2}, "optim": {"updates": 1}}

MONITOR = {"every": 1, "prompts": 3, "images": 3, "limits": {"sharpness": [0, 1e9], "velocity": [0, 1e9]}}


def recipes(world, distilling):
    """A recipe for every trained stage, each of one update."""
    evaluated = world.whole()["evaluate"] | {"images_per_prompt": 2, "micro_batch": 2}
    distilled = distilling(updates=1, samples_per_label=4, micro_batch=2)
    sampled = {"steps": 2, "sampler": "sde"}
    trained = world.tree(grpo_mix={**POLICY, "tasks": {"composition": COMPOSITION, "quality": QUALITY}})
    matched = {**trained["grpo_mix"], "loss": "matching", "sampling": {"steps": 3, "sampler": "ode"}}
    return {
        "distill": world.tree(coldstart={"kind": "merge"}, distill=distilled, evaluate=evaluated),
        "to_go": world.tree(distill={**distilled, "loss": "log_ratio_to_go", "sampling": sampled}),
        "grpo": trained,
        "matching": {**trained, "grpo_mix": matched},
        "sft": world.tree(coldstart=SFT),
        "monitored": world.tree(distill=distilling(updates=1), monitor=MONITOR),
    }


STAGES = {
    "monitored": "distill",
    "distill": "distill",
    "to_go": "distill",
    "grpo": "grpo_mix",
    "matching": "grpo_mix",
    "sft": "sft",
}


def gradients(out, stage):
    """The first moments after one update: a tenth of its clipped gradient."""
    tensors = load_file(out / "checkpoints" / stage / "step-1" / "state.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("adam.exp_avg.")}


def assert_same(here, there):
    largest = max(float(tensor.abs().max()) for tensor in here.values())
    assert largest > 0 and here.keys() == there.keys()
    for name, tensor in here.items():
        assert float((tensor - there[name]).abs().max()) <= TOLERANCE * largest, name


def launch(pairs, count=2, timeout=240):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [*command, str(WORKER), *map(str, pairs)], capture_output=True, text=True, timeout=timeout, env=environment
    )


@pytest.fixture(scope="module")
def alone(world, distilling, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for name, tree in recipes(world, distilling).items():
        run(make_recipe(tree), folder / name)
    return folder


@pytest.fixture(scope="module")
def together(world, distilling, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    pairs = []
    for name, tree in recipes(world, distilling).items():
        (folder / f"{name}.json").write_text(json.dumps(tree))
        pairs += [folder / f"{name}.json", folder / name]
    done = launch(pairs)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_have_the_gradient_of_one(alone, together, name):
    assert_same(gradients(alone / name, STAGES[name]), gradients(together / name, STAGES[name]))


@pytest.mark.parametrize("size", [1, 4, 8])
def test_the_micro_batch_does_not_change_a_gradient(alone, world, distilling, tmp_path, size):
    tree = recipes(world, distilling)["distill"]
    tree["distill"]["micro_batch"] = size
    del tree["evaluate"]
    run(make_recipe(tree), tmp_path / "out")
    assert_same(gradients(alone / "distill", "distill"), gradients(tmp_path / "out", "distill"))


def test_two_processes_draw_the_pictures_of_one(alone, together):
    files = sorted((alone / "distill" / "samples").glob("*-base.png"))
    assert files
    for file in files:
        other = together / "distill" / "samples" / file.name
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(other)))


def test_two_processes_judge_as_one(alone, together):
    here, there = (json.loads((folder / "distill" / "scores.json").read_text()) for folder in (alone, together))
    for model, rows in here.items():
        for metric, values in rows.items():
            assert np.allclose(values, there[model][metric], atol=1e-3 if model == "student" else 1e-6)


def test_two_processes_log_what_one_logs(alone, together):
    rows = [
        [json.loads(line) for line in (folder / "grpo" / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone, together)
    ]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    for here, there in zip(*rows, strict=True):
        assert {k: v for k, v in here.items() if k not in ("seconds", "stage")} == pytest.approx(
            {k: v for k, v in there.items() if k not in ("seconds", "stage")}, rel=1e-4, abs=1e-6
        )


def test_two_processes_see_through_a_monitor_what_one_sees(alone, together):
    here, there = (
        {name: value for name, value in json.loads(text).items() if name.startswith("monitor/")}
        for text in ((folder / "monitored" / "metrics.jsonl").read_text() for folder in (alone, together))
    )
    assert here and here == pytest.approx(there, rel=0.02, abs=0.01)


def test_the_failure_of_one_process_ends_all(world, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({**world.tree(coldstart={"kind": "merge"}), "others_fail": True}))
    done = launch([tmp_path / "r.json", tmp_path / "out"])
    assert done.returncode != 0 and "process 1 gives up" in done.stderr


def test_of_two_processes_both_stop_at_what_one_of_them_meets(world, tmp_path, distilling):
    parts = distilling(updates=3)
    parts["optim"]["max_skips"] = 0
    (tmp_path / "r.json").write_text(json.dumps({**world.tree(distill=parts), "breaks_in": 1}))
    done = launch([tmp_path / "r.json", tmp_path / "out"])
    assert done.returncode != 0
    assert (
        done.stderr.count("NumericsError: update 0: the velocity of the student is not finite, sample 0, prompt") == 2
    )
    assert done.stderr.count("(process 1)") >= 2


def test_a_judge_that_fails_in_one_process_loses_no_update(world, tmp_path):
    tree = world.tree(grpo_mix={**POLICY, "tasks": {"quality": QUALITY}, "optim": {"updates": 3}})
    (tmp_path / "r.json").write_text(json.dumps({**tree, "judge_tires_in": 1}))
    done = launch([tmp_path / "r.json", tmp_path / "out"])
    assert done.returncode != 0 and done.stderr.count("DataError: the judge is tired; let it sleep") == 2
    kept = tmp_path / "out" / "checkpoints" / "grpo_mix"
    assert [folder.name for folder in kept.iterdir()] == ["step-1"]


def test_more_processes_than_pictures_learn_what_one_learns(world, tmp_path):
    tree = world.tree(grpo_mix={**POLICY, "prompts_per_update": 1, "group": 2, "tasks": {"quality": QUALITY}})
    (tmp_path / "r.json").write_text(json.dumps({**tree, "decodes_no_nothing": True}))
    done = launch([tmp_path / "r.json", tmp_path / "many"], count=3)
    assert done.returncode == 0, done.stderr[-2000:]
    run(make_recipe(tree), tmp_path / "one")
    assert_same(gradients(tmp_path / "one", "grpo_mix"), gradients(tmp_path / "many", "grpo_mix"))


def test_processes_share_out_the_pictures_of_a_list(world, tmp_path):
    tree, texts = world.tree(coldstart={"kind": "merge"}), ["a ring", "a red bolt", "a heart"]
    (tmp_path / "r.json").write_text(json.dumps({**tree, "drawn": texts}))
    done = launch([tmp_path / "r.json", tmp_path / "two"])
    assert done.returncode == 0, done.stderr[-2000:]
    run(make_recipe(tree), tmp_path / "one")
    for file in draw_to(open_run(make_recipe(tree), tmp_path / "one"), "base", texts, 0, tmp_path / "pictures"):
        here, there = (np.asarray(Image.open(one), int) for one in (file, tmp_path / "two" / "pictures" / file.name))
        assert np.abs(here - there).max() <= 1


@pytest.mark.parametrize(("n", "unit"), [(8, 1), (7, 1), (1, 1), (0, 1), (10, 4), (3, 4)])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_rows_are_shared_out_whole(monkeypatch, n, unit, count):
    taken = []
    for index in range(count):
        fake = type("State", (), {"process_index": index, "num_processes": count})()
        monkeypatch.setattr(processes, "state", lambda fake=fake: fake)
        rows = processes.own_rows(n, unit)
        assert rows.start % unit == 0 or rows.start == n
        taken += range(n)[rows]
    assert taken == list(range(n))


def test_one_process_sums_nothing():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    processes.sum_gradients([parameter])
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert processes.sum_metrics({"loss": 2.0}) == {"loss": 2.0}
    assert processes.whole(torch.arange(3.0), slice(0, 3), 3).tolist() == [0.0, 1.0, 2.0]
