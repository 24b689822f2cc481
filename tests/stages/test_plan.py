"""A plan against what it plans: parameters, rows that pass, work and memory by closed form; no weights are read."""

import json

import pytest
import torch
from diffusers import SD3Transformer2DModel
from typer.testing import CliRunner

from flowopd.adapters import Adapters
from flowopd.cli import app
from flowopd.errors import ConfigError
from flowopd.models.footprint import footprint
from flowopd.models.published import TRANSFORMERS
from flowopd.models.source import Source
from flowopd.pipeline import open_run
from flowopd.recipe import load_recipe, make_recipe, recipe_path
from flowopd.session import Session
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.learners import window_starts
from flowopd.stages.mix import train_mix
from flowopd.stages.plan import plan, usual_hardware
from flowopd.stages.teacher import train_teacher
from flowopd.stages.workload import workload, workloads
from flowopd.types import Condition

B, IN, OUT = 3, 5, 7


class Toy:
    """A field that is one module of the condition `x`."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x, t, cond):
        return self.module(cond["x"])


def toy_footprint(module, shape):
    cond = Condition({"x": torch.empty(*shape, device="meta")})
    return footprint(Toy(module), module, torch.empty(1), cond, torch.float32)


def test_the_work_of_a_product_is_two_for_each_term():
    found = toy_footprint(torch.nn.Linear(IN, OUT, bias=False), (B, IN))
    assert (found.forward, found.backward) == (2 * B * IN * OUT, 2 * B * IN * OUT)


def test_a_product_keeps_its_input_alone():
    assert toy_footprint(torch.nn.Linear(IN, OUT, bias=False), (B, IN)).kept == 4 * B * IN


class Attention(torch.nn.Module):
    """Queries, keys and values are the input (B, heads, N, d) times a number."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = self.scale * x
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


def test_the_work_of_attention_is_counted():
    heads, n, d = 2, 16, 8
    assert toy_footprint(Attention(), (B, heads, n, d)).forward == 2 * 2 * B * heads * n * n * d


def rows_that_pass(session, train=distill):
    """Rows through the transformer while a recipe trains, and how many of them had a gradient."""
    passed = {"all": 0, "backward": 0}

    def count(_module, _args, kwargs, out):
        passed["all"] += len(kwargs["hidden_states"])
        passed["backward"] += len(kwargs["hidden_states"]) * out[0].requires_grad

    session.model.transformer.register_forward_hook(count, with_kwargs=True)
    train(session)
    return passed


PARTS = {
    "all": {"sampling": {"steps": 3}},
    "random": {"sampling": {"steps": 3}, "query": {"kind": "random", "k": 2}},
    "guided": {"sampling": {"steps": 2, "guidance": 3.0}, "anchor": {"model": "base", "weight": 0.1, "guidance": 1.0}},
    "own anchor": {"sampling": {"steps": 2}, "anchor": {"model": "quality", "weight": 0.1}},
    "no anchor": {"sampling": {"steps": 2}, "anchor": None},
    "no teachers": {"sampling": {"steps": 2}, "distillation": False},
    "beta": {"sampling": {"steps": 3}, "query": {"kind": "beta"}},
    "to go": {
        "loss": "log_ratio_to_go",
        "sampling": {"steps": 3, "sampler": "sde"},
        "query": {"kind": "random", "k": 1},
    },
    "several": {
        "sampling": {"steps": 3},
        "query": {"kind": "random", "k": 1},
        "updates_per_rollout": 2,
        "optim": {"updates": 2, "checkpoint_every": 2},
    },
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_the_planned_rows_are_those_that_pass(world, tmp_path, parts):
    config = {"samples_per_label": 2, "adapter": {"rank": 2, "alpha": 2}, "optim": {"updates": 1}, **parts}
    session = world.session(tmp_path / "run", distill=config)
    planned, updates = workload(session).rows, config["optim"]["updates"]
    assert plan(session).forwards_per_update == {role: round(rows) for role, rows in planned.items()}
    passed = rows_that_pass(session)
    assert passed["backward"] == updates * planned["backward"]
    assert passed["all"] == updates * (planned["student"] + planned["teacher"] + planned["anchor"])


def test_parameters_are_those_of_the_models(world, tmp_path):
    session = world.session(tmp_path / "run", distill={"adapter": {"rank": 3, "alpha": 3}})
    planned = plan(session)
    assert planned.base_parameters == sum(p.numel() for p in session.model.transformer.parameters())
    adapters = Adapters(session.model.transformer)
    adapters.create("student", 3, 3, session.model.targets, seed=0)
    assert planned.trainable_parameters == sum(p.numel() for p in adapters.parameters("student").values())
    memory = dict(planned.memory_gib)
    total, encoders, libraries = (memory.pop(name) for name in ("total", "encoders", "libraries"))
    assert total == pytest.approx(libraries + max(encoders, sum(memory.values())))
    encoder = session.model._encoders
    parts = (encoder.text_encoder, encoder.text_encoder_2, encoder.text_encoder_3)
    assert encoders * 2**30 == pytest.approx(sum(p.nbytes for part in parts for p in part.parameters()), rel=0.05)


def test_activations_and_work_grow_with_the_micro_batch(world, tmp_path):
    def planned(micro_batch, guidance=1.0):
        parts = {"samples_per_label": 8, "micro_batch": micro_batch, "sampling": {"steps": 2, "guidance": guidance}}
        return plan(world.session(tmp_path / f"{micro_batch}-{guidance}", distill=parts))

    one, four, guided = planned(1), planned(4), planned(1, guidance=2.0)
    assert four.memory_gib["activations"] == pytest.approx(4 * one.memory_gib["activations"], rel=0.02)
    assert four.flops_per_update == pytest.approx(one.flops_per_update, rel=1e-6)
    assert guided.flops_per_update == pytest.approx(2 * one.flops_per_update, rel=1e-6)


@pytest.fixture(scope="module")
def medium():
    return load_recipe(recipe_path("sd35-medium.yaml"))


def test_a_published_model_is_planned_without_a_file(medium, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a plan reads no weights and asks no hub")

    monkeypatch.setattr(Source, "load", refuse)
    monkeypatch.setattr(Source, "load_config", refuse)
    monkeypatch.setattr("flowopd.models.source.hf_hub_download", refuse)
    monkeypatch.setattr("flowopd.hub.snapshot_download", refuse)
    planned = plan(Session(medium, tmp_path))
    assert 2.2e9 < planned.base_parameters < 2.3e9
    with torch.device("meta"):
        buffers = SD3Transformer2DModel.from_config(TRANSFORMERS[medium.base]).buffers()
    held = planned.base_parameters + sum(buffer.numel() for buffer in buffers)
    assert planned.memory_gib["base"] == pytest.approx(2 * held / 2**30)
    assert len([warning for warning in planned.warnings if "not here" in warning]) == len(medium.teachers)


def test_the_command_prints_json(world, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(world.tree(distill={"sampling": {"steps": 2}})))
    result = CliRunner().invoke(app, ["plan", str(recipe), "--json"])
    row = json.loads(result.stdout)
    assert {
        "trainable_parameters",
        "base_parameters",
        "memory_gib",
        "forwards_per_update",
        "flops_per_update",
        "seconds_per_update",
        "warnings",
    } <= row.keys()
    assert "total" in row["memory_gib"]


def test_traps_are_named(world, tmp_path):
    tree = world.tree(distill={"sampling": {"steps": 10, "sampler": "sde"}, "weighting": "kl"})
    tree["teachers"]["quality"]["guidance"] = 4.5
    warnings = " ".join(plan(open_run(make_recipe(tree), tmp_path / "run")).warnings)
    assert "guided by 4.5" in warnings and "weighting kl" in warnings


def test_a_plan_needs_something_to_plan_and_a_known_gpu(world, tmp_path):
    with pytest.raises(ConfigError, match="no `distill`"):
        plan(world.session(tmp_path / "a"))
    with pytest.raises(ConfigError, match="a100-80gb"):
        plan(world.session(tmp_path / "b", distill={}), gpu="abacus")
    with pytest.raises(ConfigError, match="rate of -1"):
        plan(world.session(tmp_path / "c", distill={}), flops=-1)
    with pytest.raises(ConfigError, match="k = 99"):
        plan(world.session(tmp_path / "d", distill={"query": {"kind": "random", "k": 99}}))


def test_published_configs_make_transformers():
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in SD3Transformer2DModel.from_config(config).parameters())
            for name, config in TRANSFORMERS.items()
        }
    assert round(sizes["stabilityai/stable-diffusion-3.5-large"] / 1e9) == 8


MIXES = {
    "transitions": {"sampling": {"steps": 4, "sampler": "sde", "window": 2}},
    "kl": {"sampling": {"steps": 3, "sampler": "sde", "window": 2, "guidance": 2.0}, "kl": 0.1, "starts": 1},
    "matching": {"loss": "matching", "sampling": {"steps": 3}, "draws": 2},
}


@pytest.mark.parametrize("parts", MIXES.values(), ids=MIXES)
def test_the_planned_rows_of_a_mix_are_those_that_pass(world, tmp_path, parts):
    """Over one round of windows, since their starts take turns."""
    task = {"reward": "mini_quality", "prompts": "quality"}
    mix = {"tasks": {"quality": task}, "prompts_per_update": 2, "group": 2, **parts}
    starts = len(window_starts(make_recipe(world.tree(grpo_mix=mix)).grpo_mix)) if "loss" not in parts else 1
    session = world.session(tmp_path / "run", grpo_mix={**mix, "optim": {"updates": starts}})
    planned = plan(session)
    passed = rows_that_pass(session, train_mix)
    assert planned.stage == "grpo_mix"
    assert passed["backward"] == starts * planned.forwards_per_update["backward"]
    each = planned.forwards_per_update["student"] + planned.forwards_per_update["reference"]
    assert passed["all"] == starts * each + workload(session).before


def test_the_rows_of_a_whole_recipe_are_those_that_pass(world, tmp_path):
    grpo = {"reward": "mini_quality", "prompts": "quality", "prompts_per_update": 1, "group": 2, "starts": 1}
    short = {"sampling": {"steps": 3, "sampler": "sde", "window": 2}, "optim": {"updates": 2}}
    tree = world.tree(
        coldstart={"kind": "sft", "images": 6, "batch": 2, "sampling": {"steps": 2}, "optim": {"updates": 3}},
        distill={"samples_per_label": 1, "sampling": {"steps": 2}, "optim": {"updates": 2}},
    )
    tree["teachers"]["quality"] = {"train": {**grpo, **short}, "guidance": 2.0}
    session = open_run(make_recipe(tree), tmp_path / "run")
    works = workloads(session)
    assert [work.stage for work in works] == ["teacher:quality", "sft", "distill"]
    stages = (lambda session: train_teacher(session, "quality"), cold_start, distill)
    for work, stage in zip(works, stages, strict=True):
        passed = rows_that_pass(open_run(make_recipe(tree), tmp_path / "run"), stage)
        assert passed["all"] + 2 * passed["backward"] == work.passes, work.stage


def test_recomputing_takes_less_memory_and_more_work(world, tmp_path):
    parts = {"samples_per_label": 8, "micro_batch": 8, "query": {"kind": "all"}, "sampling": {"steps": 2}}
    kept, recomputed = (
        plan(world.session(tmp_path / f"{on}", gradient_checkpointing=on, distill=parts)) for on in (False, True)
    )
    assert recomputed.memory_gib["activations"] < 0.8 * kept.memory_gib["activations"]
    assert recomputed.flops_per_update > 1.2 * kept.flops_per_update


def test_a_clip_below_rounding_is_a_trap(world, tmp_path):
    mix = {"tasks": {"quality": {"reward": "mini_quality", "prompts": "quality"}}, "clip": 1e-8}
    assert any("noise of a ratio" in line for line in plan(world.session(tmp_path / "o", grpo_mix=mix)).warnings)


def test_a_whole_teacher_takes_a_whole_base_unless_it_is_offloaded(world, tmp_path):
    def planned(**teacher):
        teachers = {"composition": {"adapter": str(world.experts / "composition")}, "quality": teacher}
        return plan(world.session(tmp_path / f"{len(teacher)}", teachers=teachers, distill={})).memory_gib

    whole, away = planned(transformer="x/y"), planned(transformer="x/y", offload=True)
    assert whole["teachers"] - away["teachers"] == pytest.approx(whole["base"])


def test_processes_share_the_time_and_not_the_base(world, tmp_path):
    session = world.session(tmp_path / "out", distill={"samples_per_label": 4, "micro_batch": 2})
    one, four = plan(session), plan(session, processes=4)
    assert four.seconds_per_update == pytest.approx(one.seconds_per_update / 4)
    assert four.forwards_per_update == one.forwards_per_update
    assert four.memory_gib["base"] == one.memory_gib["base"]
    assert four.memory_gib["cache"] == pytest.approx(one.memory_gib["cache"] / 4)
    with pytest.raises(ConfigError, match="0 processes cannot be"):
        plan(session, processes=0)


CARDS = {
    "sd35-medium": "a100-80gb",
    "sd35-medium-24gb": "rtx4090",
    "sd35-medium-8gpu": "h100",
    "sd35-large": "a100-80gb",
    "sd35-medium-grpo-mix": "a100-80gb",
}


@pytest.mark.parametrize(("name", "gpu"), CARDS.items())
def test_shipped_recipes_fit_the_cards_they_are_for(tmp_path, name, gpu):
    planned = plan(Session(load_recipe(recipe_path(f"{name}.yaml")), tmp_path), gpu)
    assert not any("do not fit" in warning for warning in planned.warnings)


def test_every_shipped_recipe_of_a_public_model_is_planned():
    shipped = {path.stem for path in recipe_path("sd35-medium.yaml").parent.glob("sd35-*.yaml")}
    assert shipped == set(CARDS)


@pytest.mark.parametrize(
    ("here", "base", "planned"),
    [
        ("cpu", "package:mini/base", "cpu"),
        ("cpu", "stabilityai/stable-diffusion-3.5-medium", "a100-80gb"),
        ("rtx4090", "package:mini/base", "rtx4090"),
        ("rtx4090", "stabilityai/stable-diffusion-3.5-medium", "rtx4090"),
    ],
)
def test_a_plan_is_for_what_is_here_or_what_a_base_is_trained_on(monkeypatch, here, base, planned):
    monkeypatch.setattr("flowopd.stages.plan.hardware_here", lambda: here)
    assert usual_hardware(base) == planned
