"""Every schedule has the same gradient; what differs is what it computes for it."""

from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel

from flowopd.adapters import Adapters
from flowopd.crews import Task, even_parts
from flowopd.dynamics import FlowSde, Ode
from flowopd.lora_file import Factors, LoraFile
from flowopd.models.sd3 import Sd3Field
from flowopd.objectives import Anchor, squared_gap, step_weights
from flowopd.queries import AllSteps, BetaStep, Queries, RandomSteps
from flowopd.sampling import Batch
from flowopd.schedule import sigma_grid
from flowopd.schedules import fused, relearnt, replay, walked
from flowopd.stages.bench.naive import naive
from flowopd.step import ESTIMATORS, Distillation
from flowopd.types import Condition
from flowopd.velocity import ask, guided

B, STEPS, SHAPE = 3, 4, (4, 8, 8)
GRID = sigma_grid(STEPS)
ROUTES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]])
TARGETS = ("to_q", "to_out.0", "add_k_proj")
ALL = [AllSteps().at(0.0, STEPS)] * B
PLACES = (0.6, 0.05, 0.3)
PLANS = {
    "all": ALL,
    "random": [RandomSteps(2).at(place, STEPS) for place in PLACES],
    "beta": [BetaStep().at(place, STEPS) for place in PLACES],
    "own": [Queries((3,), (2.0,)), Queries((0, 2, 3), (0.5, 1.0, 3.0)), Queries((1,), (4.0,))],
}


def everyone(*indices, weight=1.0):
    """All samples query these steps."""
    return [Queries(indices, (weight,) * len(indices))] * B


def steps_of(plan):
    return [queries.indices for queries in plan]


def transformer():
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    ).eval()


def with_effect(lora, seed):
    draw = torch.Generator().manual_seed(seed)
    changed = {name: Factors(f.a, torch.randn(f.b.shape, generator=draw), f.scale) for name, f in lora.modules.items()}
    return LoraFile(lora.config, changed)


class Asked:
    """A field that remembers how many rows it was asked for, call by call."""

    def __init__(self, field):
        self.field, self.rows = field, []

    def __call__(self, x, t, cond):
        self.rows.append(len(x))
        return self.field(x, t, cond)


class Trial:
    """Student, two teachers and an anchor on one base; `anchor` is `base` or `teacher`."""

    def __init__(self, anchor="base", dynamics=None, estimate="closed_form", scale=2.0):
        self.adapters = Adapters(transformer())
        self.adapters.create("student", 4, 4, TARGETS, seed=1)
        self.adapters.load("one", with_effect(self.adapters.lora("student"), 2))
        self.adapters.load("two", with_effect(self.adapters.lora("student"), 3))
        draw = torch.Generator().manual_seed(4)
        tensors = {"prompt_embeds": (B + 1, 5, 12), "pooled_prompt_embeds": (B + 1, 10)}
        cond = Condition({name: torch.randn(size, generator=draw) for name, size in tensors.items()})
        self.batch, null = Batch(cond.rows(slice(B)), (7, 8, 9)), cond.rows([B])
        self.asked = {
            name: Asked(guided(self.adapters.field(own, Sd3Field), scale, null))
            for name, own in (("student", "student"), ("one", "one"), ("two", "two"), ("base", None))
        }
        dynamics = [dynamics or FlowSde(a=0.7)] * STEPS
        self.distillation = Distillation(
            student=self.asked["student"],
            teachers=[self.asked["one"], self.asked["two"]],
            anchor_field=self.asked["base" if anchor == "base" else "two"],
            anchor=Anchor(weight=0.5),
            dynamics=dynamics,
            grid=GRID,
            weights=step_weights("velocity", dynamics, GRID),
            estimate=ESTIMATORS[estimate],
        )
        self.parameters = list(self.adapters.parameters("student").values())

    def gradient(self):
        found = torch.cat([p.grad.flatten() for p in self.parameters])
        for p in self.parameters:
            p.grad = None
        return found

    def task(self, size=B):
        return Task(self.batch, ROUTES, SHAPE, size)

    def run(self, schedule, plan=ALL, size=B):
        gaps = schedule(self.distillation, self.task(size), plan)
        return self.gradient(), gaps

    def rows(self, name):
        return sum(self.asked[name].rows)


def same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-5 * float(other[0].abs().max()))
    torch.testing.assert_close(one[1], other[1], equal_nan=True, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("anchor", ["base", "teacher"])
@pytest.mark.parametrize("dynamics", [Ode(), FlowSde(a=0.7)], ids=["ode", "sde"])
@pytest.mark.parametrize("schedule", [replay, naive])
def test_every_schedule_has_the_gradient_and_the_gaps_of_the_fused_one(schedule, dynamics, anchor, plan):
    trial = Trial(anchor, dynamics)
    expected = trial.run(fused, plan)
    assert expected[0].any()
    same(trial.run(schedule, plan), expected)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_frozen_fields_may_read_other_words_than_the_student(plan):
    """Then every schedule teaches as each sample alone, its words and its expert's given by hand, would be taught."""
    trial = Trial(anchor="teacher", dynamics=Ode())
    plain = trial.run(fused, plan)
    asked = trial.batch.cond.rows(torch.tensor([1, 2, 0]))
    tasks = [replace(trial.task(size), asked=asked) for size in (B, 2)]
    other = [
        (schedule(trial.distillation, task, plan), trial.gradient())
        for schedule in (fused, replay, naive)
        for task in tasks
    ]
    loss, d = torch.zeros(()), trial.distillation
    for b, queries in enumerate(plan):
        own, x = trial.batch.rows(torch.tensor([b])), trial.batch.noise.initial(SHAPE)[[b]]
        for i in range(STEPS):
            v = d.student(x, GRID[i], own.cond)
            if i in queries.indices:
                with torch.no_grad():
                    said = [field(x, GRID[i], asked.rows([b])) for field in d.teachers]
                target = sum(w * v_k for w, v_k in zip(ROUTES[b], said, strict=True))
                gap = squared_gap(v, target) + d.anchor.weight * squared_gap(v, said[1])
                share = queries.weights[queries.indices.index(i)] / STEPS / B
                loss = loss + share * d.weights[i] * gap.sum()
            x = (x + (GRID[i + 1] - GRID[i]) * v).detach()
    loss.backward()
    expected = trial.gradient()
    assert not torch.allclose(expected, plain[0], rtol=0.1)
    for gaps, gradient in other:
        same((gradient, gaps), (expected, other[0][0]))


@pytest.mark.parametrize("schedule", [replay, naive])
def test_every_schedule_has_the_sampled_gradient_too(schedule):
    trial = Trial(estimate="log_ratio")
    plan = everyone(0, 2)
    same(trial.run(schedule, plan), trial.run(fused, plan))


def test_the_mean_over_single_steps_is_the_gradient_of_all_of_them():
    trial = Trial()
    everything, _ = trial.run(fused)
    single = [trial.run(fused, everyone(i, weight=float(STEPS)))[0] for i in range(STEPS)]
    torch.testing.assert_close(torch.stack(single).mean(0), everything, rtol=1e-4, atol=1e-5 * float(everything.max()))


@pytest.mark.parametrize("size", [1, 2, B])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_samples_with_queries_of_their_own_are_the_sum_of_each_alone(plan, size):
    """Whoever walks with whom, and however many pass in one forward."""
    trial = Trial()
    everything, gaps = trial.run(fused, plan, size)
    alone = [
        fused(trial.distillation, Task(part, ROUTES[i : i + 1], SHAPE, 1, among=B), plan[i : i + 1])
        for i, part in enumerate(trial.batch.split(1))
    ]
    same((everything, gaps), (trial.gradient(), torch.cat(alone, 2)))


def test_every_gap_is_at_a_query_and_every_query_has_one():
    _, gaps = Trial().run(fused, PLANS["own"])
    found = [tuple((~row.isnan()).nonzero()[:, 0].tolist()) for row in gaps[0].T]
    assert found == steps_of(PLANS["own"])


def test_a_fused_step_asks_each_field_once_and_naive_asks_again():
    for schedule, student, anchor in ((fused, STEPS, 0), (replay, 2 * STEPS, 0), (naive, 2 * STEPS, STEPS)):
        trial = Trial(anchor="teacher")
        trial.run(schedule)
        assert trial.rows("student") == student * B
        assert trial.rows("one") == STEPS * 2 and trial.rows("base") == 0
        assert trial.rows("two") == (STEPS * B if schedule is not naive else STEPS * 2 + anchor * B)


def test_a_sample_walks_to_its_last_query_and_is_asked_at_its_queries_alone():
    trial = Trial()
    trial.run(fused, PLANS["own"])
    assert trial.rows("student") == 4 + 4 + 2
    assert trial.asked["student"].rows == [2, 1, 2, 1, 1, 1, 2]
    assert trial.rows("base") == 1 + 3 + 1 and trial.rows("one") == 1 + 1 and trial.rows("two") == 3 + 1


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_parts_are_even_in_order_and_no_more_than_needed(count, size):
    parts = even_parts(range(count), size)
    assert [b for part in parts for b in part] == list(range(count))
    assert len(parts) == -(-count // size)
    sizes = [len(part) for part in parts]
    assert max(sizes, default=0) <= size and max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize("schedule", [fused, replay])
def test_a_process_without_samples_adds_nothing(schedule):
    trial = Trial()
    task = Task(Batch(trial.batch.cond.rows(slice(0)), ()), ROUTES[:0], SHAPE, 1, among=B)
    assert schedule(trial.distillation, task, []).shape == (2, STEPS, 0)
    assert all(p.grad is None for p in trial.parameters)


@pytest.mark.parametrize("later", [everyone(0, 2, weight=2.0), PLANS["own"]], ids=["together", "own"])
def test_a_second_update_learns_at_the_states_of_the_first_and_asks_no_one_else(later):
    trial = Trial()
    gaps, walk = walked(trial.distillation, trial.task(), everyone(1), steps_of(later))
    same((trial.gradient(), gaps), trial.run(fused, everyone(1)))
    asked = {name: len(field.rows) for name, field in trial.asked.items()}
    with torch.no_grad():
        for p in trial.parameters:
            p.add_(0.1)
    again = relearnt(trial.distillation, walk, later), trial.gradient()
    assert trial.asked["base"].rows[asked["base"] :] == [] and trial.asked["one"].rows[asked["one"] :] == []
    d, loss = trial.distillation, torch.zeros(())
    for kept in walk.kept:
        for j, b in enumerate(kept.who):
            weights = dict(zip(later[b].indices, later[b].weights, strict=True))
            if kept.index in weights:
                v = d.student(kept.x[[j]], GRID[kept.index], trial.batch.cond.rows([b]))
                for target, scale in ((kept.said.target, 1.0), (kept.said.held_to, d.anchor.weight)):
                    gap = squared_gap(v, target[[j]]).sum()
                    loss = loss + weights[kept.index] / STEPS / B * scale * d.weights[kept.index] * gap
    loss.backward()
    same((again[1], again[0]), (trial.gradient(), again[0]))


def test_replay_after_the_same_policy_is_the_fused_gradient_bit_for_bit():
    trial = Trial(dynamics=Ode())
    _, walk = walked(trial.distillation, trial.task(), ALL, later=steps_of(ALL))
    expected = trial.gradient()
    relearnt(trial.distillation, walk, ALL)
    assert torch.equal(trial.gradient(), expected)


def forwards_of(transformer, act):
    """What `act` returns, and how many rows each forward of the transformer had meanwhile."""
    rows = []
    hook = transformer.register_forward_hook(
        lambda _m, _a, named, _o: rows.append(len(named["hidden_states"])), with_kwargs=True
    )
    found = act()
    hook.remove()
    return found, rows


def several(trial):
    """Adapters and the bare base, guided or not, each with rows of its own."""
    null, cond = trial.batch.cond.rows([0]), trial.batch.cond
    field = {name: trial.adapters.field(name, Sd3Field) for name in ("one", "two", None)}
    x = torch.randn(B, *SHAPE, generator=torch.Generator().manual_seed(5))
    return [
        (field["one"], x[:1], cond.rows([0])),
        (guided(field["two"], 3.0, null), x[1:], cond.rows([1, 2])),
        (guided(field[None], 2.0, null), x, cond),
    ]


def test_several_adapters_in_one_forward_say_what_each_says_alone():
    trial, t = Trial(), torch.tensor(0.6)
    with torch.no_grad():
        alone = [field(x, t, cond) for field, x, cond in several(trial)]
        together, rows = forwards_of(trial.adapters.transformer, lambda: ask(several(trial), t))
    assert rows == [1 + 2 * 2 + 2 * B]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    again = [field(x, t, cond) for field, x, cond in several(trial)]
    for one, other in zip(again, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_compiled_base_is_asked_for_one_adapter_at_a_time():
    base = transformer()
    base.transformer_blocks[0].compile()
    assert Adapters(base).field(None, Sd3Field).kind is None
    assert Adapters(transformer()).field(None, Sd3Field).kind is not None


SYNCHRONISING = ("cpu", "item", "tolist", "__float__", "__int__", "__bool__", "nonzero")
"""What makes the host wait for a device."""


def waits(schedule, steps, monkeypatch):
    """How often a schedule of so many steps makes the host wait."""
    grid, count = sigma_grid(steps), []
    trial = Trial()
    d = trial.distillation
    trial.distillation = replace(d, grid=grid, dynamics=[Ode()] * steps, weights=step_weights("velocity", Ode(), grid))
    with monkeypatch.context() as patch:
        for name in SYNCHRONISING:
            own = getattr(torch.Tensor, name)
            patch.setattr(torch.Tensor, name, lambda *a, _own=own, **k: count.append(1) or _own(*a, **k))
        trial.run(schedule, [AllSteps().at(0.0, steps)] * B)
    return len(count)


@pytest.mark.parametrize("schedule", [fused, replay])
def test_the_host_waits_as_often_for_many_steps_as_for_few(schedule, monkeypatch):
    assert waits(schedule, 2, monkeypatch) == waits(schedule, 6, monkeypatch)
