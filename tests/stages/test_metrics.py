"""docs/METRICS.md tells of every metric that a run writes."""

import json
import re
from pathlib import Path

import pytest

from flowopd.stages.coldstart import cold_start
from flowopd.stages.mix import train_mix
from flowopd.stages.teacher import train_teacher

DOC = Path(__file__).parents[2] / "docs" / "METRICS.md"
NAMES = re.findall(r"^\| `([^`]+)` \|", DOC.read_text(encoding="utf-8"), re.M)
LABELS = ("composition", "quality")
QUICK = {
    "prompts_per_update": 2,
    "group": 2,
    "kl": 0.1,
    "sampling": {"steps": 2, "sampler": "sde", "window": 1},
    "adapter": {"rank": 4, "alpha": 8},
    "optim": {"updates": 1},
}
TASK = {"reward": "mini_quality", "prompts": "quality"}


def documented(name, metrics=()):
    """Whether a metric's name is one of the documented forms."""
    if name in metrics:
        return "METRIC" in NAMES
    plain = re.sub(r"/(?:" + "|".join(LABELS) + r")(?=/|$)", "/LABEL", name)
    return re.sub(r"/\d+$", "/STEP", plain) in NAMES


def written(out):
    return {name for line in (out / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}


def policy(loss):
    return lambda world, out: train_teacher(
        world.session(out, teachers={"look": {"train": {**TASK, **QUICK, "loss": loss}}}), "look"
    )


def mix(world, out):
    tasks = {label: {**TASK, "prompts": label} for label in LABELS}
    train_mix(world.session(out, grpo_mix={**QUICK, "tasks": tasks}))


def sft(world, out):
    few = {"kind": "sft", "images": 2, "batch": 2, "sampling": {"steps": 1}, "optim": {"updates": 1}}
    cold_start(world.session(out, coldstart=few))


STAGES = {"transitions": policy("transitions"), "matching": policy("matching"), "mix": mix, "sft": sft}


@pytest.mark.parametrize("stage", STAGES)
def test_every_metric_of_a_stage_is_documented(world, tmp_path, stage):
    STAGES[stage](world, tmp_path / "out")
    assert [name for name in written(tmp_path / "out") if not documented(name)] == []


def test_every_metric_of_a_run_is_documented(finished, world):
    metrics = world.whole()["evaluate"]["metrics"]
    assert [name for name in written(finished) if not documented(name, metrics)] == []


def test_a_metric_that_is_not_is_reported():
    assert not documented("gap/composition/1/2") and not documented("velocity") and documented("gap/quality/3")
