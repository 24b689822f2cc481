"""Adapters on a real `SD3Transformer2DModel`, held against plain peft, plain diffusers, and themselves."""

import copy
import hashlib
import json
from functools import cache

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from flowopd.adapters import Adapters
from flowopd.errors import CheckpointError, ConfigError
from flowopd.lora_file import WEIGHTS, Factors, LoraFile, read_lora, write_diffusers_lora, write_lora
from flowopd.merge import merge
from flowopd.models.sd3 import Sd3Field
from flowopd.types import Condition

TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj")
VISIBLE = 1e-3


def transformer(width=32):
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=width // 16,
        joint_attention_dim=24,
        caption_projection_dim=width,
        pooled_projection_dim=20,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    )


def pipeline():
    nothing = dict.fromkeys(f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3"))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(transformer=transformer(), scheduler=scheduler, vae=None, **nothing)


@cache
def drawn(seed, rank=4, alpha=8.0, targets=TARGETS, width=32):
    """An adapter that changes the velocity visibly."""
    adapters = Adapters(transformer(width))
    adapters.create("drawn", rank, alpha, targets, seed)
    lora = adapters.lora("drawn")
    draw = torch.Generator().manual_seed(seed)
    modules = {
        name: Factors(f.a, 0.2 * torch.randn(f.b.shape, generator=draw), f.scale) for name, f in lora.modules.items()
    }
    return LoraFile(lora.config, modules)


@pytest.fixture
def cond():
    draw = torch.Generator().manual_seed(1)
    return Condition(
        {
            "prompt_embeds": torch.randn(2, 5, 24, generator=draw),
            "pooled_prompt_embeds": torch.randn(2, 20, generator=draw),
        }
    )


@pytest.fixture
def x():
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))


T = torch.tensor(0.5)


@pytest.fixture
def velocity(x, cond):
    """The velocity of any transformer at one fixed input."""
    return lambda model: Sd3Field(model)(x, T, cond)


@pytest.fixture
def adapters():
    """A student from a seed, two teachers of different ranks, alphas and targets."""
    adapters = Adapters(transformer())
    adapters.create("student", 4, 8, TARGETS, seed=0, start=drawn(10))
    adapters.load("first", drawn(11, rank=3, alpha=6))
    adapters.load("second", drawn(12, rank=8, alpha=4, targets=("attn.to_q", "ff.net.2", "proj_out")))
    return adapters


def gradients(adapters, name="student"):
    return {key: parameter.grad.clone() for key, parameter in adapters.parameters(name).items()}


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def fingerprint(tensors):
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Each adapter is the model of its own file


@pytest.mark.parametrize("name", ["student", "first", "second"])
def test_every_adapter_is_what_plain_peft_loads(adapters, name, tmp_path, velocity, x, cond):
    write_lora(tmp_path, adapters.lora(name), "a/base")
    alone = PeftModel.from_pretrained(transformer(), str(tmp_path))
    with torch.no_grad():
        close(adapters.field(name, Sd3Field)(x, T, cond), velocity(alone.base_model.model))


@pytest.mark.parametrize("name", ["student", "first", "second"])
def test_every_adapter_is_what_plain_diffusers_loads(adapters, name, tmp_path, velocity, x, cond):
    write_lora(tmp_path / "peft", adapters.lora(name))
    write_diffusers_lora(tmp_path / "diffusers", adapters.lora(name))
    pipes = [pipeline(), pipeline()]
    pipes[0].transformer.load_lora_adapter(
        str(tmp_path / "peft"), weight_name=WEIGHTS, prefix="base_model.model", adapter_name="student"
    )
    pipes[1].load_lora_weights(str(tmp_path / "diffusers"))
    with torch.no_grad():
        ours = adapters.field(name, Sd3Field)(x, T, cond)
        for pipe in pipes:
            close(ours, velocity(pipe.transformer))


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_wrote_loads(tmp_path, velocity, rslora):
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["attn.to_q", "ff.net.2"],
        rank_pattern={"ff.net.2": 2},
        alpha_pattern={r"transformer_blocks\.1\.attn\.to_q": 3},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    theirs = get_peft_model(transformer(), config)
    theirs.save_pretrained(str(tmp_path))
    adapters = Adapters(transformer())
    adapters.load("teacher", tmp_path)
    with torch.no_grad(), adapters.using("teacher"):
        close(velocity(adapters.transformer), velocity(theirs.base_model.model))


def test_an_adapter_that_diffusers_wrote_loads(tmp_path, velocity):
    pipe = pipeline()
    pipe.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=12, target_modules=["attn.to_q"], init_lora_weights=False), "default"
    )
    pipe.transformer.save_lora_adapter(str(tmp_path))
    adapters = Adapters(transformer())
    adapters.load("teacher", tmp_path)
    with torch.no_grad(), adapters.using("teacher"):
        close(velocity(adapters.transformer), velocity(pipe.transformer))


def test_the_dense_changes_give_the_same_velocity(adapters, velocity):
    changed = transformer()
    with torch.no_grad():
        for name, factors in adapters.lora("second").modules.items():
            changed.get_submodule(name).weight += factors.delta()
        with adapters.using("second"):
            torch.testing.assert_close(velocity(adapters.transformer), velocity(changed), atol=1e-5, rtol=0)


def test_none_is_the_base(adapters, velocity, x, cond):
    with torch.no_grad():
        bare = velocity(transformer())
        close(adapters.field(None, Sd3Field)(x, T, cond), bare)
        with adapters.using("first"), adapters.using(None):
            close(velocity(adapters.transformer), bare)


def test_adapters_answer_differently(adapters, x, cond):
    with torch.no_grad():
        answers = [adapters.field(n, Sd3Field)(x, T, cond) for n in (None, "student", "first", "second")]
    gaps = [(a - b).abs().max().item() for i, a in enumerate(answers) for b in answers[:i]]
    assert min(gaps) > VISIBLE


def test_loading_more_adapters_changes_none(x, cond):
    adapters = Adapters(transformer())
    adapters.load("first", drawn(11))
    field = adapters.field("first", Sd3Field)
    with torch.no_grad():
        before = field(x, T, cond)
        adapters.load("second", drawn(12, targets=("proj_out", "attn.to_q")))
        with adapters.using("second"):
            adapters.create("third", 2, 2, ("ff.net.2",), seed=0)
            assert adapters.active == "second"
        close(field(x, T, cond), before)


def test_one_autocast_region_serves_every_adapter(adapters, x, cond):
    fields = [adapters.field(name, Sd3Field) for name in ("student", "first", None)]
    alone = []
    for field in fields:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            alone.append(field(x, T, cond))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = [field(x, T, cond) for field in fields]
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


# Only the trainable adapter trains


def assert_only_the_student_trains(adapters):
    ours = {id(parameter) for parameter in adapters.parameters("student").values()}
    assert {id(p) for p in adapters.transformer.parameters() if p.requires_grad} == ours


def test_requires_grad_belongs_to_the_trainable_adapter_alone(adapters):
    assert_only_the_student_trains(adapters)
    with adapters.using("first"):
        assert_only_the_student_trains(adapters)
        with adapters.using("student"):
            assert_only_the_student_trains(adapters)
        with adapters.using(None):
            assert_only_the_student_trains(adapters)
        adapters.load("late", drawn(13))
        assert_only_the_student_trains(adapters)
    adapters.remove("first")
    assert_only_the_student_trains(adapters)


def test_training_one_adapter_leaves_every_other_byte(adapters, x, cond):
    student, teacher = adapters.field("student", Sd3Field), adapters.field("first", Sd3Field)
    ours = adapters.parameters("student")
    optimizer = torch.optim.AdamW(ours.values(), lr=1e-2)
    adapters.check_trainable(optimizer.param_groups[0]["params"], "student")
    held = {id(parameter) for parameter in ours.values()}
    others = {key: p for key, p in adapters.transformer.named_parameters() if id(p) not in held}
    before, at_first, losses = fingerprint(others), fingerprint(ours), []
    for _ in range(5):
        loss = (student(x, T, cond) - teacher(x, T, cond).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert fingerprint(others) == before
    assert fingerprint(ours) != at_first
    assert losses[-1] < losses[0]


def test_the_optimizer_must_hold_exactly_the_adapter(adapters):
    params = list(adapters.parameters("student").values())
    adapters.check_trainable(params, "student")
    for wrong in (params[1:], params + params[:1], list(adapters.transformer.parameters())):
        with pytest.raises(CheckpointError, match="build it from parameters"):
            adapters.check_trainable(wrong, "student")
    with pytest.raises(CheckpointError, match="frozen"):
        adapters.check_trainable(adapters.parameters("first").values(), "first")


# Switching


def test_using_nests_and_restores(adapters):
    assert adapters.active is None
    with adapters.using("first"):
        with adapters.using("second"), adapters.using("second"):
            assert adapters.active == "second"
        assert adapters.active == "first"
        with adapters.using(None):
            assert adapters.active is None
        assert adapters.active == "first"
    assert adapters.active is None


def test_using_restores_after_an_error(adapters):
    with pytest.raises(RuntimeError), adapters.using("first"):
        raise RuntimeError
    assert adapters.active is None
    with pytest.raises(ConfigError, match="no adapter 'typo'"), adapters.using("typo"):
        pass
    assert adapters.active is None


def loss_of(v):
    return (v * torch.linspace(-1, 1, v.numel()).reshape(v.shape)).sum()


def test_a_graph_survives_switches_before_its_backward(adapters, x, cond):
    student, teacher = adapters.field("student", Sd3Field), adapters.field("first", Sd3Field)
    with adapters.using("student"):
        loss_of(student(x, T, cond)).backward()
    wanted = gradients(adapters)
    adapters.transformer.zero_grad()
    loss = loss_of(student(x, T, cond))
    with torch.no_grad():
        teacher(x, T, cond)
    with adapters.using("second"):
        loss.backward()
    silent = {key.rsplit(".", 2)[0] for key, gradient in wanted.items() if not gradient.any()}
    assert silent == {"transformer_blocks.1.attn.add_q_proj"}  # the last block discards what the text asks
    for key, gradient in gradients(adapters).items():
        torch.testing.assert_close(gradient, wanted[key], atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in adapters.parameters("first").values())


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("outer", [None, "student", "second"])
def test_checkpointing_recomputes_under_the_adapter_of_the_forward(adapters, x, cond, custom, outer):
    student, teacher = adapters.field("student", Sd3Field), adapters.field("first", Sd3Field)
    loss_of(student(x, T, cond)).backward()
    wanted = gradients(adapters)
    adapters.transformer.zero_grad()
    calls = []

    def checkpoint(module, *args):
        calls.append(module)
        return torch.utils.checkpoint.checkpoint(module, *args, use_reentrant=False)

    adapters.transformer.enable_gradient_checkpointing(checkpoint if custom else None)
    with adapters.using(outer):
        loss = loss_of(student(x, T, cond))
        with torch.no_grad():
            teacher(x, T, cond)
            adapters.field(None, Sd3Field)(x, T, cond)
        loss.backward()
        assert adapters.active == outer
    assert len(calls) == 2 * custom
    for key, gradient in gradients(adapters).items():
        torch.testing.assert_close(gradient, wanted[key], atol=1e-7, rtol=1e-5)


# Making, copying, removing


def test_a_fresh_adapter_is_the_base_and_follows_its_seed(velocity):
    adapters = Adapters(transformer())
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        adapters.create(name, 4, 8, TARGETS, seed)
    assert torch.equal(torch.get_rng_state(), state)
    loras = {name: adapters.lora(name) for name in "abc"}
    for module, factors in loras["a"].modules.items():
        assert torch.equal(factors.a, loras["b"].modules[module].a)
        assert not torch.equal(factors.a, loras["c"].modules[module].a)
        assert not factors.b.any()
        assert factors.scale == 2
    with torch.no_grad(), adapters.using("a"):
        close(velocity(adapters.transformer), velocity(transformer()))


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (7, 3.5), (16, 32.0)])
def test_a_start_of_no_higher_rank_is_exact(rank, alpha):
    start = drawn(3, rank=4, alpha=2.0, targets=("attn.to_q", "attn.to_k"))
    adapters = Adapters(transformer())
    adapters.create("student", rank, alpha, TARGETS, seed=0, start=start)
    for module, factors in adapters.lora("student").modules.items():
        assert factors.rank == rank
        assert factors.scale == alpha / rank
        wanted = start.modules[module].delta() if module in start.modules else torch.zeros_like(factors.delta())
        close(factors.delta(), wanted)
        assert factors.a.any(dim=1).all()


def test_a_start_of_higher_rank_is_its_best_approximation():
    pair = {"a": drawn(3), "b": drawn(4)}
    adapters = Adapters(transformer())
    adapters.create("student", 5, 10, TARGETS, seed=0, start=merge(pair).lora)
    wanted = merge(pair, rank=5).lora.modules
    for module, factors in adapters.lora("student").modules.items():
        close(factors.delta(), wanted[module].delta())


def test_memory_is_never_shared(adapters):
    lora = drawn(20)
    before = copy.deepcopy(lora.modules)
    adapters.load("copy", lora, trainable=True)
    snapshot = adapters.lora("copy")
    with torch.no_grad():
        for parameter in adapters.parameters("copy").values():
            parameter.fill_(7)
    for module, factors in before.items():
        assert torch.equal(lora.modules[module].a, factors.a)
        assert torch.equal(snapshot.modules[module].b, factors.b)


def test_an_adapter_round_trips_through_its_file(adapters, tmp_path):
    write_lora(tmp_path, adapters.lora("second"))
    adapters.load("again", tmp_path, trainable=True)
    ours, theirs = adapters.lora("second").modules, read_lora(tmp_path).modules
    for module, factors in adapters.lora("again").modules.items():
        assert torch.equal(factors.a, ours[module].a)
        assert torch.equal(factors.b, theirs[module].b)
        assert factors.scale == ours[module].scale


def test_bytes_are_those_of_the_factors(adapters):
    lora = adapters.lora("first")
    assert adapters.nbytes("first") == 4 * sum(f.a.numel() + f.b.numel() for f in lora.modules.values())


def test_removing_frees_the_adapter_and_its_name(adapters):
    count = sum(1 for _ in adapters.transformer.parameters())
    taken = len(adapters.parameters("first"))
    with adapters.using("first"), pytest.raises(ConfigError, match="active"):
        adapters.remove("first")
    adapters.remove("first")
    assert adapters.names == ("student", "second")
    assert sum(1 for _ in adapters.transformer.parameters()) == count - taken
    with pytest.raises(ConfigError, match="no adapter 'first'"):
        adapters.lora("first")
    adapters.load("first", drawn(11))


def test_a_half_precision_base_keeps_trainable_weights_in_fp32(x, cond):
    adapters = Adapters(transformer().to(torch.bfloat16))
    adapters.create("student", 4, 8, TARGETS, seed=0)
    adapters.load("teacher", drawn(11))
    assert {p.dtype for p in adapters.parameters("student").values()} == {torch.float32}
    assert {p.dtype for p in adapters.parameters("teacher").values()} == {torch.bfloat16}
    cond = cond.to(dtype=torch.bfloat16)
    v = adapters.field("student", Sd3Field)(x, T, cond)
    v.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in adapters.parameters("student").values())
    assert (v - adapters.field("teacher", Sd3Field)(x, T, cond)).abs().max() > VISIBLE


def test_any_module_with_linears_will_do():
    base = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    x, before = torch.ones(1, 3), copy.deepcopy(base)
    adapters = Adapters(base)
    adapters.create("student", 2, 2, ("0", "2"), seed=0)
    adapters.load("teacher", LoraFile({}, {"2": Factors(torch.ones(1, 5), torch.ones(2, 1), 1.0)}))
    with adapters.using("teacher"):
        torch.testing.assert_close(base(x), before(x) + before[:2](x).sum())


# What is refused


def test_an_adapter_for_another_base_is_refused(adapters):
    with pytest.raises(CheckpointError, match=r"as \(16, 16\), the base has \(32, 32\).*another base"):
        adapters.load("foreign", drawn(0, width=16))
    with pytest.raises(CheckpointError, match=r"blocks\.9\.to_q, no linear module.*another base"):
        adapters.load("foreign", LoraFile({}, {"blocks.9.to_q": Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0)}))
    with pytest.raises(CheckpointError, match="another base"):
        adapters.create("foreign", 4, 8, TARGETS, seed=0, start=drawn(0, width=16))
    assert adapters.names == ("student", "first", "second")


def edit_targets(folder, targets):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))


@pytest.mark.parametrize("targets", [None, ["to_q", "to_k"], r".*\.to_[qk]"])
def test_a_file_without_some_of_its_modules_is_refused(tmp_path, targets):
    lora = drawn(0, targets=("attn.to_q", "attn.to_k"))
    write_lora(tmp_path, lora)
    if targets is not None:
        edit_targets(tmp_path, targets)
    Adapters(transformer()).load("whole", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({key: t for key, t in tensors.items() if "blocks.1.attn.to_k" not in key}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lacks the weights of 1 .*blocks\.1\.attn\.to_k"):
        Adapters(transformer()).load("part", tmp_path)


def test_a_teacher_that_is_the_base_is_refused(velocity):
    lora = drawn(0)
    inert = LoraFile({}, {n: Factors(f.a, torch.zeros_like(f.b), f.scale) for n, f in lora.modules.items()})
    adapters = Adapters(transformer())
    with pytest.raises(CheckpointError, match="every lora_B of teacher is zero"):
        adapters.load("teacher", inert)
    adapters.load("allowed", inert, allow_zero=True)
    adapters.load("student", inert, trainable=True)
    with torch.no_grad(), adapters.using("allowed"):
        close(velocity(adapters.transformer), velocity(transformer()))


@pytest.mark.parametrize("name", ["student", "", "a.b"])
def test_a_name_must_be_free_and_plain(adapters, name):
    with pytest.raises(ConfigError, match="cannot name an adapter"):
        adapters.load(name, drawn(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank >= 1"),
        ({"alpha": 0}, "positive alpha"),
        ({"targets": ("to_q", "typo")}, r"\['typo'\]"),
        ({"targets": ()}, "no linear module"),
        ({"targets": ("attn.to_q",), "start": drawn(1)}, "add them to its targets"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    adapters = Adapters(transformer())
    with pytest.raises(ConfigError, match=message):
        adapters.create("student", **{"rank": 4, "alpha": 8, "targets": TARGETS, "seed": 0} | settings)


def test_a_base_that_already_has_adapters_is_refused(adapters):
    with pytest.raises(ConfigError, match="already carries LoRA"):
        Adapters(adapters.transformer)
