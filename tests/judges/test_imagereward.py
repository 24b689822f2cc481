"""ImageReward: the published file's tensors, run as published, give the scores that transformers' BLIP gives here."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import embedding, gelu, layer_norm, linear
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig

from flowopd.errors import CheckpointError, DataError
from flowopd.prompts import Prompt
from flowopd.rewards import make_reward
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.imagereward import TEXT, VISION, ImageReward, Net, from_published, renamed

SIDE, PATCH, SEES, READS, HEADS, DEEP = 32, 16, 24, 16, 2, 2
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "heart", "two", "##s", "star", "ring")
TEXTS = ("a red heart", "two stars", "a ring", "a star two red heart")
SMALL = {
    "vision": BlipVisionConfig(
        hidden_size=SEES,
        intermediate_size=2 * SEES,
        num_hidden_layers=DEEP,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    ),
    "text": BlipTextConfig(
        vocab_size=len(WORDS),
        hidden_size=READS,
        encoder_hidden_size=SEES,
        intermediate_size=2 * READS,
        num_hidden_layers=DEEP,
        num_attention_heads=HEADS,
        max_position_embeddings=40,
        bos_token_id=2,
        sep_token_id=3,
        eos_token_id=3,
    ),
}


def shapes():
    """The names and shapes of a file like the published one, small."""
    of = {
        "blip.visual_encoder.cls_token": (1, 1, SEES),
        "blip.visual_encoder.pos_embed": (1, (SIDE // PATCH) ** 2 + 1, SEES),
        "blip.visual_encoder.patch_embed.proj": (SEES, 3, PATCH, PATCH),
        "blip.visual_encoder.norm": (SEES,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (len(WORDS), READS),
        "blip.text_encoder.embeddings.position_embeddings.weight": (40, READS),
        "blip.text_encoder.embeddings.LayerNorm": (READS,),
        "blip.vision_proj": (8, SEES),
        "blip.text_proj": (8, READS),
    }
    for i in range(DEEP):
        block = f"blip.visual_encoder.blocks.{i}."
        of |= {block + "norm1": (SEES,), block + "norm2": (SEES,)}
        of |= {block + "attn.qkv": (3 * SEES, SEES), block + "attn.proj": (SEES, SEES)}
        of |= {block + "mlp.fc1": (2 * SEES, SEES), block + "mlp.fc2": (SEES, 2 * SEES)}
        layer = f"blip.text_encoder.encoder.layer.{i}."
        for kind, width in (("attention", READS), ("crossattention", SEES)):
            of |= {f"{layer}{kind}.self.{part}": (READS, width) for part in ("key", "value")}
            of |= {f"{layer}{kind}.self.query": (READS, READS), f"{layer}{kind}.output.dense": (READS, READS)}
            of |= {f"{layer}{kind}.output.LayerNorm": (READS,)}
        of |= {layer + "intermediate.dense": (2 * READS, READS), layer + "output.dense": (READS, 2 * READS)}
        of |= {layer + "output.LayerNorm": (READS,)}
    head = {0: (1024, READS), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    return of | {f"mlp.layers.{i}": shape for i, shape in head.items()}


@pytest.fixture(scope="module")
def published():
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes().items():
        plain = name.endswith(("_token", "_embed", "embeddings.weight"))
        tensors[name if plain else f"{name}.weight"] = torch.randn(shape, generator=draw) / math.sqrt(shape[-1])
        if not plain:
            tensors[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=draw)
    return tensors | {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}


@pytest.fixture
def file(tmp_path, published):
    torch.save(published, tmp_path / "ImageReward.pt")
    return str(tmp_path / "ImageReward.pt")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def judge(file, tokenizer):
    return ImageReward(model=file, tokenizer=tokenizer, **SMALL)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (len(TEXTS), 40, 48, 3), dtype=np.uint8)


@pytest.fixture
def prompts():
    return [Prompt(text, "pick") for text in TEXTS]


class Published:
    """The network by its own names and torch's functions alone: (B,) of pixels, tokens and their mask."""

    def __init__(self, tensors):
        self.tensors = tensors

    def linear(self, x, name):
        return linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def norm(self, x, name, eps):
        return layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], eps)

    @staticmethod
    def attend(q, k, v, mask=None):
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        weights = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is not None:
            weights = weights.masked_fill(~mask[:, None, None, :].bool(), float("-inf"))
        return (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def see(self, pixels):
        eye = "blip.visual_encoder."
        patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3)
        weight = self.tensors[eye + "patch_embed.proj.weight"].flatten(1)
        x = linear(patches.flatten(1, 2), weight, self.tensors[eye + "patch_embed.proj.bias"])
        x = torch.cat([self.tensors[eye + "cls_token"].expand(len(x), -1, -1), x], 1)
        x = x + self.tensors[eye + "pos_embed"]
        for i in range(DEEP):
            block = f"{eye}blocks.{i}."
            q, k, v = self.linear(self.norm(x, block + "norm1", 1e-6), block + "attn.qkv").chunk(3, -1)
            x = x + self.linear(self.attend(q, k, v), block + "attn.proj")
            wide = gelu(self.linear(self.norm(x, block + "norm2", 1e-6), block + "mlp.fc1"))
            x = x + self.linear(wide, block + "mlp.fc2")
        return self.norm(x, eye + "norm", 1e-6)

    def look_up(self, x, others, kind, mask=None):
        q = self.linear(x, kind + ".self.query")
        k, v = (self.linear(others, f"{kind}.self.{part}") for part in ("key", "value"))
        back = self.linear(self.attend(q, k, v, mask), kind + ".output.dense")
        return self.norm(back + x, kind + ".output.LayerNorm", 1e-12)

    def __call__(self, pixels, tokens, mask):
        seen, book = self.see(pixels), "blip.text_encoder."
        x = embedding(tokens, self.tensors[book + "embeddings.word_embeddings.weight"])
        x = x + self.tensors[book + "embeddings.position_embeddings.weight"][: tokens.shape[1]]
        x = self.norm(x, book + "embeddings.LayerNorm", 1e-12)
        for i in range(DEEP):
            layer = f"{book}encoder.layer.{i}."
            x = self.look_up(x, x, layer + "attention", mask)
            x = self.look_up(x, seen, layer + "crossattention")
            wide = gelu(self.linear(x, layer + "intermediate.dense"))
            x = self.norm(self.linear(wide, layer + "output.dense") + x, layer + "output.LayerNorm", 1e-12)
        x = x[:, 0]
        for i in (0, 2, 4, 6, 7):
            x = self.linear(x, f"mlp.layers.{i}")
        return x[:, 0]


def test_every_tensor_has_its_place_and_no_place_is_empty(published):
    net = Net(SMALL["vision"], SMALL["text"])
    mapped = from_published(published)
    assert {name: t.shape for name, t in mapped.items()} == {name: t.shape for name, t in net.state_dict().items()}
    assert len(published) - len(mapped) == 5


def test_the_published_sizes_are_blip_large():
    assert (VISION.num_hidden_layers, VISION.hidden_size, VISION.num_attention_heads) == (24, 1024, 16)
    assert (TEXT.num_hidden_layers, TEXT.hidden_size, TEXT.num_attention_heads) == (12, 768, 12)
    assert TEXT.encoder_hidden_size == VISION.hidden_size and TEXT.vocab_size == 30524
    assert (VISION.layer_norm_eps, TEXT.layer_norm_eps, VISION.image_size, VISION.patch_size) == (1e-6, 1e-12, 224, 16)
    assert (VISION.hidden_act, TEXT.hidden_act, TEXT.max_position_embeddings) == ("gelu", "gelu", 512)


def test_the_net_is_the_published_one(published, judge):
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn((4, 3, SIDE, SIDE), generator=draw)
    tokens = judge._tokenizer(list(TEXTS), padding="max_length", max_length=9, return_tensors="pt")
    with torch.no_grad():
        ours = judge._net(pixels, tokens["input_ids"], tokens["attention_mask"])
        theirs = Published(published)(pixels, tokens["input_ids"], tokens["attention_mask"])
    assert theirs.std() > 1e-2 and torch.allclose(ours, theirs, atol=1e-4)


def test_the_score_is_the_published_one(published, judge, pictures, prompts):
    words = judge._tokenizer(list(TEXTS), padding="max_length", max_length=35, return_tensors="pt")
    pixels = judge._processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        raw = Published(published)(pixels, words["input_ids"], words["attention_mask"]).double().numpy()
    scores = judge(pictures, prompts)
    assert np.allclose(scores.details["imagereward"], (raw - 0.16717362830052426) / 1.0333394966054072, atol=1e-4)


def test_pictures_are_seen_as_published(judge):
    """Shorter side to the size, middle cut out, CLIP's colours."""
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, 40:88] = 255
    seen = judge._processor(images=[picture], return_tensors="pt")["pixel_values"][0]
    mean, spread = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    middle, edge = seen[:, 16, 16], seen[:, 16, 0]
    assert seen.shape == (3, SIDE, SIDE)
    assert torch.allclose(middle, torch.tensor([(1 - m) / s for m, s in zip(mean, spread, strict=True)]), atol=1e-4)
    assert torch.allclose(edge, torch.tensor([-m / s for m, s in zip(mean, spread, strict=True)]), atol=1e-4)


def test_scores_from_two_below_to_two_above_fill_the_range(judge, pictures, prompts, monkeypatch):
    scores = torch.tensor([-3.0, -2.0, 0.0, 1.0])
    monkeypatch.setattr(judge, "_rate", lambda *_: scores * 1.0333394966054072 + 0.16717362830052426)
    judged = judge(pictures, prompts)
    assert np.allclose(judged.value, [0, 0, 0.5, 0.75]) and np.allclose(judged.details["imagereward"], scores)


def test_scores_belong_to_their_pictures_whatever_the_batch(judge, file, tokenizer, pictures, prompts):
    together = judge(pictures, prompts).details["imagereward"]
    alone = [judge(pictures[i : i + 1], prompts[i : i + 1]).details["imagereward"][0] for i in range(len(prompts))]
    small = ImageReward(model=file, tokenizer=tokenizer, **SMALL, batch=3)(pictures, prompts)
    order = [2, 0, 3, 1]
    turned = judge(pictures[order], [prompts[i] for i in order]).details["imagereward"]
    assert len(set(together.round(5))) == len(prompts)
    assert np.allclose(alone, together, atol=1e-5) and np.allclose(small.details["imagereward"], together, atol=1e-5)
    assert np.allclose(turned, together[order], atol=1e-5)


def test_weights_and_inputs_lie_on_the_device(file, tokenizer, pictures, prompts):
    judge = ImageReward(model=file, tokenizer=tokenizer, **SMALL, device="meta")
    assert {parameter.device.type for parameter in judge._net.parameters()} == {"meta"}
    got = []
    judge._net = lambda *inputs: (got.extend(inputs), torch.zeros(len(inputs[0])))[1]
    judge(pictures, prompts)
    assert [tensor.device.type for tensor in got] == ["meta"] * 3


def test_picture_and_prompt_both_count(judge, pictures, prompts):
    first = judge(pictures[:1], prompts[:1]).value[0]
    assert judge(pictures[1:2], prompts[:1]).value[0] != first != judge(pictures[:1], prompts[1:2]).value[0]


def test_long_prompts_are_cut(judge, pictures):
    prompts = [Prompt(" ".join(["star"] * count), "pick") for count in (20, 33, 60)]
    short, whole, cut = judge(pictures[[0, 0, 0]], prompts).details["imagereward"]
    assert abs(cut - whole) < 1e-5 < abs(whole - short)


@pytest.mark.parametrize("name", ["blip.visual_encoder.blocks.0.attn.q.weight", "blip.itm_head.weight", "x"])
def test_an_unknown_name_is_told(name):
    with pytest.raises(CheckpointError, match=f"{name} is no tensor of ImageReward; give its file"):
        renamed(name)


@pytest.mark.parametrize(
    "name", ["blip.text_encoder.encoder.layer.1.crossattention.self.key.weight", "mlp.layers.7.bias"]
)
def test_a_missing_tensor_is_told(published, tokenizer, tmp_path, name):
    torch.save({key: tensor for key, tensor in published.items() if key != name}, tmp_path / "holed.pt")
    with pytest.raises(CheckpointError, match=rf"holed\.pt lack {renamed(name)} \(1 such\)"):
        ImageReward(model=str(tmp_path / "holed.pt"), tokenizer=tokenizer, **SMALL)


def test_numbers_have_to_match(judge, pictures, prompts):
    with pytest.raises(DataError, match="4 pictures came with 2 prompts"):
        judge(pictures, prompts[:2])


def test_it_is_found_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        make_reward("imagereward", config=JudgeConfig(model=str(tmp_path / "nowhere.pt")))
