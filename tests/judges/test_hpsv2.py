"""HPS v2.1: open_clip's weights give transformers' CLIP the embeddings that open_clip's network gives."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from flowopd.errors import CheckpointError, DataError
from flowopd.hub import filled
from flowopd.prompts import Prompt
from flowopd.rewards import make_reward
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.clip import Clip
from flowopd.rewards.hpsv2 import HpsV2, on_square
from flowopd.rewards.openclip import from_openclip, in_transformers

WIDTH, HEADS, SIDE, PATCH, LENGTH = 16, 2, 24, 8, 16
TEXTS = ("a photo of a red heart", "a drawing of two stars", "a ring")


class Block(nn.Module):
    """A layer as open_clip names its parts."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 2 * WIDTH), "c_proj": nn.Linear(2 * WIDTH, WIDTH)})

    def forward(self, x, mask):
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(), Block()])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Eye(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Tower()
        self.proj = nn.Parameter(torch.randn(WIDTH, width))

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """A CLIP in open_clip's shape, on torch's own attention; its embedding is narrower than its layers."""

    def __init__(self, vocabulary, width=12):
        super().__init__()
        self.visual, self.transformer = Eye(width), Tower()
        self.token_embedding = nn.Embedding(vocabulary, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, width))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for parameter in self.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)

    def read(self, tokens, ends):
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding, mask)
        return self.ln_final(x)[range(len(ends)), ends] @ self.text_projection


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip_folder):
    """The shape and processor of a CLIP like the one to be filled; its own weights are others."""
    torch.manual_seed(3)
    processor = CLIPProcessor.from_pretrained(clip_folder)
    folder = tmp_path_factory.mktemp("shape")
    small = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "hidden_act": "gelu"}
    small["num_attention_heads"] = HEADS
    ends = {"bos_token_id": processor.tokenizer.bos_token_id, "eos_token_id": processor.tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(processor.tokenizer), "max_position_embeddings": LENGTH},
        vision_config={**small, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def published(folder):
    torch.manual_seed(4)
    return OpenClip(len(CLIPProcessor.from_pretrained(folder).tokenizer)).eval()


@pytest.fixture
def file(tmp_path, published):
    """A file like HPSv2's: the weights in half precision within a checkpoint."""
    path = tmp_path / "HPS_tiny.pt"
    torch.save({"epoch": 3, "state_dict": {k: t.half() for k, t in published.state_dict().items()}}, path)
    return str(path)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (len(TEXTS), SIDE, SIDE, 3), dtype=np.uint8)


def test_every_tensor_has_its_place_and_no_place_is_empty(published, folder):
    net = CLIPModel(CLIPConfig.from_pretrained(folder))
    assert from_openclip(published.state_dict()).keys() == net.state_dict().keys()


def test_the_embeddings_are_open_clips(published, folder, pictures):
    processor = CLIPProcessor.from_pretrained(folder)
    net = filled(CLIPModel(CLIPConfig.from_pretrained(folder)), from_openclip(published.state_dict()), "x")
    clip = Clip(folder, model=net)
    inputs = processor(images=list(pictures), text=list(TEXTS), padding="max_length", return_tensors="pt")
    ends = inputs["attention_mask"].sum(1) - 1
    with torch.no_grad():
        seen, read = published.visual(inputs["pixel_values"]), published.read(inputs["input_ids"], ends)
    assert torch.allclose(clip.see(pictures), normalize(seen, dim=-1), atol=1e-5)
    assert torch.allclose(clip.read(TEXTS), normalize(read, dim=-1), atol=1e-5)
    assert clip.scale == pytest.approx(published.logit_scale.exp().item())


def test_the_score_is_the_cosine(published, folder, file, pictures):
    prompts = [Prompt(text, "pick") for text in TEXTS]
    scores = HpsV2(model=file, clip=folder)(pictures, prompts)
    net = CLIPModel(CLIPConfig.from_pretrained(folder))
    net.load_state_dict(from_openclip({name: t.half() for name, t in published.state_dict().items()}))
    cosine = Clip(folder, model=net).match(pictures, TEXTS)
    assert np.allclose(scores.details["hpsv2"], cosine, atol=1e-5)
    assert np.array_equal(scores.value, np.clip(scores.details["hpsv2"], 0, 1))
    assert len(set(scores.details["hpsv2"].round(6))) == len(TEXTS)


def test_scores_belong_to_their_pictures_whatever_the_batch(folder, file, pictures):
    judge = HpsV2(model=file, clip=folder)
    prompts = [Prompt(text, "pick") for text in TEXTS]
    together = judge(pictures, prompts).details["hpsv2"]
    alone = [judge(pictures[i : i + 1], prompts[i : i + 1]).details["hpsv2"][0] for i in range(len(TEXTS))]
    judge._clip._batch = 2
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(judge(pictures[::-1], prompts[::-1]).details["hpsv2"], together[::-1], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20), (7, 30)])
def test_a_picture_is_seen_whole_in_the_middle_of_black(height, width):
    square = on_square(np.full((height, width, 3), 255, np.uint8), 60)
    lit = square[..., 0] > 200
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    scale = 60 / max(height, width)
    assert square.shape == (60, 60, 3) and set(np.unique(square)) == {0, 255}
    assert (len(rows), len(columns)) == (round(height * scale), round(width * scale))
    assert abs(rows[0] - (59 - rows[-1])) <= 1 and abs(columns[0] - (59 - columns[-1])) <= 1


def test_a_square_picture_is_only_resized(pictures):
    assert np.array_equal(on_square(pictures[0], SIDE), pictures[0])
    smaller = np.asarray(Image.fromarray(pictures[0]).resize((12, 12), Image.Resampling.BICUBIC))
    assert np.array_equal(on_square(pictures[0], 12), smaller)


@pytest.mark.parametrize("name", ["visual.trunk.norm.weight", "text.bert.x", "transformer.resblocks.0.mlp.gelu", ""])
def test_an_unknown_name_is_told(name):
    with pytest.raises(CheckpointError, match="no tensor of a CLIP of open_clip's"):
        in_transformers(name)


def test_the_causal_mask_is_no_weight():
    assert in_transformers("attn_mask") == ()


@pytest.mark.parametrize("change", ["a layer more", "a tensor less", "another shape"])
def test_the_file_has_to_be_of_this_very_model(published, folder, tmp_path, change):
    tensors = published.state_dict()
    if change == "a layer more":
        tensors["transformer.resblocks.2.ln_1.bias"] = torch.zeros(WIDTH)
    elif change == "a tensor less":
        del tensors["visual.ln_pre.weight"]
    else:
        tensors["visual.proj"] = torch.zeros(WIDTH, 13)
    torch.save(tensors, tmp_path / "other.pt")
    told = {
        "a layer more": "hold text_model.encoder.layers.2.layer_norm1.bias, which has no place",
        "a tensor less": "lack vision_model.pre_layrnorm.weight",
        "another shape": r"hold visual_projection.weight of \(13, 16\) where the net has \(12, 16\)",
    }
    with pytest.raises(CheckpointError, match=rf"other\.pt {told[change]} .*\(1 such\); give the file"):
        HpsV2(model=str(tmp_path / "other.pt"), clip=folder)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"epoch": 3}}, {"a": 1.0}])
def test_a_file_of_other_things_is_told(tmp_path, folder, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt hold other things than tensors by name"):
        HpsV2(model=str(tmp_path / "odd.pt"), clip=folder)


def test_numbers_have_to_match(folder, file, pictures):
    with pytest.raises(DataError, match="3 pictures came with 1 prompts"):
        HpsV2(model=file, clip=folder)(pictures, [Prompt("a ring", "pick")])


def test_it_is_found_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        make_reward("hpsv2", config=JudgeConfig(model=str(tmp_path / "nowhere.pt")))
