"""A value that is not finite: named by sample, prompt, model and layer, survived a few times, then the end of a run."""

import json

import numpy as np
import pytest
import torch

from flowopd.errors import NumericsError
from flowopd.lora_file import read_lora
from flowopd.models import sd3
from flowopd.noise import seed_of
from flowopd.nonfinite import Fault, Trace
from flowopd.stages import coldstart, grpo
from flowopd.stages import distill as stage
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.guard import Guard
from flowopd.stages.teacher import train_teacher
from flowopd.train import Trainer
from flowopd.types import Condition

LAYER = "transformer_blocks.1.attn.to_q"
GRPO = {
    "reward": "mini_quality",
    "prompts": "quality",
    "prompts_per_update": 2,
    "group": 3,
    "micro_batch": 4,
    "kl": 0.1,
    "sampling": {"steps": 3, "sampler": "sde", "window": 2},
    "adapter": {"rank": 4, "alpha": 8},
    "optim": {"updates": 3, "learning_rate": 1e-3},
}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def poisoned(monkeypatch):
    """Spoils a model in one update: `poisoned(stage, arrange)` calls `arrange(session, active)` when all is loaded."""

    def arrange_in(module, arrange, method="__call__", update=1):
        now = []

        def knowing(self, step, call):
            now[:] = [step == update]
            return call(self, step)

        updates = getattr(module, "DistillUpdate", None) or getattr(module, "PolicyUpdate", None) or module._Update
        for name in ("__call__", "repeat"):
            call = getattr(updates, name, None)
            if call is not None:
                monkeypatch.setattr(updates, name, lambda self, step, call=call: knowing(self, step, call))
        begin = Guard.begin

        def beginning(self, trainer, checkpoints):
            arrange(self._session, lambda: bool(now and now[0]))
            begin(self, trainer, checkpoints)

        monkeypatch.setattr(Guard, "begin", beginning)

    return arrange_in


def spoil(layer, value, active, which=lambda rows: torch.ones(rows, dtype=torch.bool)):
    """Some rows of what a layer says become `value`."""

    def spoiling(_module, _given, output):
        if not active():
            return output
        here = which(len(output)).reshape(-1, *[1] * (output.ndim - 1))
        return torch.where(here, torch.tensor(value, dtype=output.dtype), output)

    layer.register_forward_hook(spoiling)


def adapter_layer(session, name):
    return session.adapters.transformer.get_submodule(LAYER).lora_B[name]


def rows_of(session, text, model):
    """Which rows of what the model's adapter is given now are of this prompt."""
    encoded = session.encode(session.prompts("composition", "train") + session.prompts("quality", "train"))
    wanted, found = encoded([text])["pooled_prompt_embeds"], []

    def noting(_module, _args, named):
        found[:] = [(named["pooled_projections"] == wanted.to(named["pooled_projections"].dtype)).all(1)]

    session.adapters.transformer.register_forward_pre_hook(noting, with_kwargs=True)

    def here(count):
        """All rows of the forward, or in one that several adapters share those of its own part."""
        parts = dict(session.adapters._rows._parts)
        return found[0] if count == len(found[0]) else found[0][parts[model]]

    return here


def chosen(session, step, each=2):
    """The texts of a distillation's update, in order."""
    texts = []
    for label in session.recipe.prompts:
        rng, prompts = np.random.default_rng(seed_of(0, "prompts", label, step)), session.prompts(label, "train")
        texts += [prompts[i].text for i in rng.integers(0, len(prompts), each)]
    return texts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("model", ["student", "quality"])
def test_one_prompt_that_breaks_one_model_is_named_and_survived(
    world, tmp_path, distilling, poisoned, capsys, model, value, dtype
):
    session = world.session(tmp_path / "out", dtype=dtype, distill=distilling(updates=3, micro_batch=3))
    texts = chosen(session, 1)
    poisoned(
        stage,
        lambda session, active: spoil(adapter_layer(session, model), value, active, rows_of(session, texts[3], model)),
    )
    folder = distill(session)
    role = "the student" if model == "student" else "teacher quality"
    assert (
        f"update 1 is skipped, weights kept: the velocity of {role} is not finite (layer {LAYER}.lora_B.{model}), "
        f"sample {texts.index(texts[3])}, prompt {texts[3]!r}, t = 1\n"
    ) in capsys.readouterr().err
    assert [row["skipped"] for row in rows(tmp_path / "out")] == [0, 1, 0]
    assert all(f.a.isfinite().all() and f.b.isfinite().all() for f in read_lora(folder).modules.values())


def test_an_anchor_that_breaks_is_named(world, tmp_path, distilling, poisoned, capsys):
    def arrange(session, active):
        layer = session.adapters.transformer.get_submodule("transformer_blocks.0.attn.to_k")
        spoil(getattr(layer, "base_layer", layer), float("nan"), lambda: active() and session.adapters.active is None)

    poisoned(stage, arrange)
    distill(world.session(tmp_path / "out", distill=distilling(updates=3)))
    said = capsys.readouterr().err
    assert "the velocity of anchor base is not finite (layer transformer_blocks.0.attn.to_k" in said
    assert "sample 0, prompt" in said
    assert [row["skipped"] for row in rows(tmp_path / "out")] == [0, 1, 0]


@pytest.mark.parametrize("model", ["the student", "teacher quality"])
def test_a_whole_update_that_breaks_leaves_weights_moments_and_average(
    world, tmp_path, distilling, poisoned, capsys, model
):
    name = model.split()[-1]
    poisoned(stage, lambda session, active: spoil(adapter_layer(session, name), float("nan"), active))
    distill(world.session(tmp_path / "out", distill=distilling(updates=3, checkpoint_every=1)))
    assert f"the velocity of {model} is not finite" in capsys.readouterr().err
    assert sorted(f.name for f in (tmp_path / "out" / "checkpoints" / "distill").iterdir()) == ["step-1", "step-3"]


def spoil_gradient(session, active):
    parameter = session.adapters.parameters("student" if "student" in session.adapters.names else "quality")[
        f"{LAYER}.lora_A.weight"
    ]
    parameter.register_hook(lambda gradient: gradient * float("nan") if active() else gradient)


def test_a_gradient_that_breaks_in_one_parameter_is_named(world, tmp_path, distilling, poisoned, capsys):
    poisoned(stage, spoil_gradient)
    distill(world.session(tmp_path / "out", distill=distilling(updates=3)))
    said = capsys.readouterr().err
    assert f"the gradient of {LAYER}.lora_A.weight is not finite, sample 0, prompt" in said
    assert [row["skipped"] for row in rows(tmp_path / "out")] == [0, 1, 0]


@pytest.mark.parametrize("loss", ["transitions", "matching"])
@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (
            lambda session, active: spoil(adapter_layer(session, "quality"), float("inf"), active),
            f"the velocity of the policy is not finite (layer {LAYER}.lora_B.quality), sample 0, prompt 'a",
        ),
        (spoil_gradient, f"the gradient of {LAYER}.lora_A.weight is not finite, sample"),
        (
            lambda session, active: spoil(
                session.adapters.transformer.proj_out,
                float("nan"),
                lambda: active() and session.adapters.active is None,
            ),
            "the velocity of the reference is not finite (layer proj_out), sample 0, prompt 'a",
        ),
    ],
    ids=["policy", "gradient", "reference"],
)
def test_a_policy_survives_and_names_what_breaks(world, tmp_path, poisoned, capsys, loss, arrange, said):
    poisoned(grpo, arrange)
    session = world.session(tmp_path / "out", teachers={"quality": {"train": {**GRPO, "loss": loss}}})
    folder = train_teacher(session, "quality")
    assert f"update 1 is skipped, weights kept: {said}" in capsys.readouterr().err
    assert [row["skipped"] for row in rows(tmp_path / "out")] == [0, 1, 0]
    assert all(f.b.isfinite().all() for f in read_lora(folder).modules.values())


def test_an_advantage_that_breaks_is_not_blamed_on_a_model(world, tmp_path, monkeypatch, capsys):
    advantages, calls = grpo.group_advantages, []

    def breaking(rewards, group):
        calls.append(1)
        return advantages(rewards, group) + (float("inf") if len(calls) == 2 else 0.0)

    monkeypatch.setattr(grpo, "group_advantages", breaking)
    train_teacher(world.session(tmp_path / "out", teachers={"quality": {"train": GRPO}}), "quality")
    assert "update 1 is skipped, weights kept: its gradient is not finite, though nothing is" in capsys.readouterr().err
    assert [row["skipped"] for row in rows(tmp_path / "out")] == [0, 1, 0]


def test_a_cold_start_survives_and_names_what_breaks(world, tmp_path, poisoned, capsys):
    sft = {"kind": "sft", "images": 4, "batch": 3, "sampling": {"steps": 2}, "optim": {"updates": 3}}
    poisoned(coldstart, lambda session, active: spoil(adapter_layer(session, "coldstart"), float("nan"), active))
    cold_start(world.session(tmp_path / "out", coldstart=sft))
    assert "the velocity of the student is not finite (layer" in capsys.readouterr().err
    assert [row["skipped"] for row in rows(tmp_path / "out")] == [0, 1, 0]


def test_a_teacher_that_draws_what_is_not_finite_is_named(world, tmp_path, monkeypatch):
    sft = {"kind": "sft", "images": 4, "batch": 3, "sampling": {"steps": 2}}
    forward = sd3.Sd3Field.__call__
    monkeypatch.setattr(sd3.Sd3Field, "__call__", lambda self, *given: forward(self, *given) * float("nan"))
    with pytest.raises(NumericsError, match="teacher composition drew image 0 of 2, prompt 'a"):
        cold_start(world.session(tmp_path / "out", coldstart=sft))


def test_what_stays_broken_stops_the_run_and_names_the_last_good_checkpoint(world, tmp_path, distilling, monkeypatch):
    step = Trainer.step

    def breaking(self, i):
        done = step(self, i)
        if i == 1:
            self.parameters[self.names.index(f"{LAYER}.lora_B.weight")].data.fill_(3e38)
        return done

    monkeypatch.setattr(Trainer, "step", breaking)
    parts = distilling(updates=9, checkpoint_every=1)
    parts["optim"]["max_skips"] = 1
    with pytest.raises(
        NumericsError, match=r"^update 3: the velocity of the student .*distill/step-1 is the last known"
    ):
        distill(world.session(tmp_path / "out", distill=parts))
    assert not (tmp_path / "out" / "student").exists()


def test_a_learning_rate_that_blows_up_ends_with_the_student_named(world, tmp_path, distilling):
    parts = distilling(updates=9, learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(NumericsError, match=r"the velocity of the student is not finite .*begin anew with a lower"):
        distill(world.session(tmp_path / "out", distill=parts))
    assert not (tmp_path / "out" / "student").exists()


# A trace alone


class Embedded:
    """Prompts encoded as the length of their text."""

    def __call__(self, texts):
        return Condition({"text": torch.tensor([[float(len(text))] for text in texts])})

    @property
    def null(self):
        return self([""])


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_a_loss_that_breaks_is_told_from_a_model_that_does(value):
    trace, theta = Trace(Embedded()), torch.nn.Parameter(torch.ones(()))
    field = trace.field("the student", lambda x, t, cond: theta * x)
    with trace.watching([], {"theta": theta}):
        cond = trace.conditioning(["one", "three"])
        v = field(torch.ones(2, 4), torch.tensor(0.5), cond)
        (v * torch.tensor([[1.0], [value]])).sum().backward()
    assert trace.fault == (None if value == 1 else Fault("the loss", None, 1, "three", 0.5))


def test_a_prompt_whose_conditioning_is_broken_is_named_and_no_model_is_blamed():
    trace = Trace(Embedded())
    seen = []
    field = trace.field("the student", lambda x, t, cond: seen.append(cond) or x * cond["text"])
    cond = trace.conditioning(["one", "three"])
    broken = Condition({**cond.tensors, "text": torch.tensor([[1.0], [float("nan")]])})
    field(torch.ones(2, 4), torch.tensor(1.0), broken.rows([1]))
    assert trace.fault == Fault("the conditioning", None, 1, "three", 1.0)
    assert list(seen[0].tensors) == ["text"]


def test_only_the_first_fault_counts_and_hooks_are_gone_afterwards():
    trace, network = Trace(Embedded()), torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    torch.nn.init.constant_(network[1].weight, float("nan"))
    field = trace.field("teacher a", lambda x, t, cond: network(x))
    with trace.watching([network], dict(network.named_parameters())):
        for text in ("one", "two"):
            field(torch.ones(1, 4), torch.tensor(1.0), trace.conditioning([text]))
    assert trace.fault == Fault("the velocity of teacher a", "1", 0, "one", 1.0)
    assert not network[1]._forward_hooks and not network[1].weight._post_accumulate_grad_hooks
