"""Ways to run a model that change what it costs and not what it says: whole teachers, recomputing, compiling, no T5."""

import copy

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from torch import nn
from torch._dynamo import config as dynamo

from flowopd.adapters import Adapters
from flowopd.errors import CheckpointError, ConfigError
from flowopd.lora_file import read_lora
from flowopd.models import open_model
from flowopd.models.random_sd3 import SMALL, RandomSd3
from flowopd.recipe import make_recipe
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.sample import available_models
from flowopd.types import Condition


def condition(model, rows):
    return Condition({name: torch.randn(blank.shape) for name, blank in model.blank(rows).tensors.items()})


def gradient(session):
    distill(session)
    tensors = load_file(session.out / "checkpoints" / "distill" / "step-1" / "state.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("adam.exp_avg.")}


def assert_same(one, other, tolerance=1e-4):
    largest = max(float(tensor.abs().max()) for tensor in one.values())
    assert largest > 0
    assert all(float((one[name] - other[name]).abs().max()) <= tolerance * largest for name in one)


@pytest.fixture(scope="module")
def plain(world, distilling, tmp_path_factory):
    """The gradient of one update without any of it."""
    out = tmp_path_factory.mktemp("plain") / "out"
    return gradient(world.session(out, distill=distilling(updates=1)))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The `quality` expert as a transformer of its own: its change added to the base's weights."""
    transformer = copy.deepcopy(open_model(str(world.base)).transformer)
    for name, factors in read_lora(world.experts / "quality").modules.items():
        transformer.get_submodule(name).weight.data += factors.delta()
    folder = tmp_path_factory.mktemp("whole") / "transformer"
    transformer.save_pretrained(folder)
    return folder


def taught(world, out, distilling, teacher, **parts):
    teachers = {"composition": {"adapter": str(world.experts / "composition")}, "quality": teacher}
    return world.session(out, teachers=teachers, distill=distilling(updates=1), **parts)


@pytest.mark.parametrize("offload", [False, True])
def test_a_whole_transformer_teaches_what_its_adapter_teaches(plain, world, whole, tmp_path, distilling, offload):
    session = taught(world, tmp_path / "out", distilling, {"transformer": str(whole), "offload": offload})
    assert_same(plain, gradient(session))


def test_a_whole_teacher_is_a_row_of_the_table(world, whole, tmp_path, distilling):
    session = taught(world, tmp_path / "out", distilling, {"transformer": str(whole)})
    assert "teacher:quality" in available_models(session)
    assert session.hashes(["quality"])["quality"] != session.hashes([])["base"]


def test_a_whole_teacher_cannot_be_merged(world, whole, tmp_path, distilling):
    session = taught(world, tmp_path / "o", distilling, {"transformer": str(whole)}, coldstart={"kind": "merge"})
    with pytest.raises(ConfigError, match="quality is a whole transformer"):
        cold_start(session)


def test_a_transformer_for_other_texts_is_refused(world, whole, tmp_path, distilling):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(
        (whole / "config.json").read_text().replace('"joint_attention_dim": ', '"joint_attention_dim": 1')
    )
    session = taught(world, tmp_path / "out", distilling, {"transformer": str(other)})
    with pytest.raises(CheckpointError, match="joint_attention_dim"):
        distill(session)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"adapter": "a", "transformer": "b"}, "give one of the three"),
        ({"adapter": "a", "offload": True}, "offload is for a whole transformer"),
        ({"transformer": "a", "subfolder": "b"}, "subfolder is for an adapter"),
    ],
)
def test_a_teacher_of_two_kinds_is_refused(teacher, said):
    with pytest.raises(ConfigError, match=said):
        make_recipe({"base": "b", "teachers": {"t": teacher}})


def test_recomputing_activations_does_not_change_the_gradient(plain, world, tmp_path, distilling, monkeypatch):
    recomputed = []
    original = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: recomputed.append(1) or original(*a, **k))
    session = world.session(tmp_path / "out", gradient_checkpointing=True, distill=distilling(updates=1))
    assert_same(plain, gradient(session), tolerance=1e-5)
    assert recomputed


def test_compiled_blocks_have_the_same_gradient_under_every_adapter(plain, world, tmp_path, distilling, monkeypatch):
    compiled = []
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self) or original(self, backend="eager"))
    session = world.session(tmp_path / "out", compile=True, distill=distilling(updates=1))
    assert_same(plain, gradient(session))
    assert len(compiled) == 2


def test_every_kind_of_block_stays_compiled_under_every_adapter_and_batch(monkeypatch):
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: original(self, backend="eager"))
    kinds = {"num_layers": 3, "dual_attention_layers": (0,), "num_attention_heads": 2, "attention_head_dim": 8}
    sizes = {"joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 16}
    model = RandomSd3({**SMALL, **kinds, **sizes}, compiled=True)
    adapters = Adapters(model.transformer)
    for name in ("student", "one", "two", "three"):
        adapters.create(name, 2, 4, model.targets, seed=0)
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        for batch in (4, 3):
            for name in ("student", "one", "two", "three", None):
                with torch.set_grad_enabled(name == "student"):
                    field = adapters.field(name, model.make_field)
                    field(torch.randn(batch, *model.latent_shape()), torch.tensor(0.5), condition(model, batch))


def test_without_t5_prompts_are_those_of_a_pipeline_without_t5(world):
    texts = ["a red heart", "a sign"]
    ours = open_model(str(world.base), t5=False).encode(texts)
    pipe = StableDiffusion3Pipeline.from_pretrained(world.base, text_encoder_3=None, tokenizer_3=None)
    theirs, _, pooled, _ = pipe.encode_prompt(texts, None, None, do_classifier_free_guidance=False)
    assert torch.equal(ours["prompt_embeds"], theirs) and torch.equal(ours["pooled_prompt_embeds"], pooled)


def test_prompts_with_and_without_t5_do_not_share_a_cache(world, tmp_path):
    with_t5, without = (world.session(tmp_path / f"{t5}", t5=t5) for t5 in (True, False))
    without.out = with_t5.out
    prompts = with_t5.prompts("quality", "train")
    kept = [session.encode(prompts)([prompts[0].text])["prompt_embeds"] for session in (with_t5, without)]
    assert kept[0].shape != kept[1].shape or not torch.equal(*kept)


def test_a_shape_without_t5_is_known_without_weights(world):
    model = open_model(str(world.base), t5=False)
    assert model.blank(2)["prompt_embeds"].shape == model.encode(["a", "b"])["prompt_embeds"].shape
