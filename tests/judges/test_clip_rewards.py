"""Judges that look through CLIP: their formulas against CLIP's own outputs, pairing, batches, and what is refused."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPProcessor

from flowopd.errors import CheckpointError, ConfigError, DataError
from flowopd.prompts import Prompt
from flowopd.rewards import make_reward
from flowopd.rewards.aesthetic import Aesthetic, Head
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.clip import Clip
from flowopd.rewards.clipscore import ClipScore
from flowopd.rewards.pickscore import PickScore
from flowopd.rewards.registry import check_reward

TEXTS = ("a photo of a red heart", "a drawing of two stars", "a ring", "a blue sign", "four trees")


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (len(TEXTS), 40, 30, 3), dtype=np.uint8)


@pytest.fixture
def prompts():
    return [Prompt(text, "pick") for text in TEXTS]


@pytest.fixture
def head(tmp_path):
    torch.manual_seed(1)
    file = tmp_path / "head.safetensors"
    save_file(Head(16).state_dict(), file)
    return str(file)


@pytest.fixture
def logits(clip_folder, pictures):
    """CLIP's own logits (B, B), picture by text."""
    processor, model = CLIPProcessor.from_pretrained(clip_folder), CLIPModel.from_pretrained(clip_folder).eval()
    images = [Image.fromarray(p) for p in pictures]
    inputs = processor(images=images, text=list(TEXTS), padding="max_length", return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits_per_image.double().numpy()


def judges(clip, head):
    return {
        "pickscore": PickScore(model=clip, processor=clip),
        "clipscore": ClipScore(model=clip),
        "aesthetic": Aesthetic(model=clip, head=head),
    }


def test_pickscore_is_the_logit(clip_folder, pictures, prompts, logits):
    scores = PickScore(model=clip_folder, processor=clip_folder)(pictures, prompts)
    assert np.allclose(scores.details["pickscore"], logits.diagonal(), atol=1e-4)
    assert np.allclose(scores.value, np.clip(logits.diagonal() / 26, 0, 1), atol=1e-5)


def test_clipscore_is_the_weighted_cosine(clip_folder, pictures, prompts, logits):
    scale = Clip(clip_folder).scale
    scores = ClipScore(model=clip_folder)(pictures, prompts)
    assert np.allclose(scores.details["cosine"], logits.diagonal() / scale, atol=1e-6)
    assert np.allclose(scores.value, np.clip(2.5 * logits.diagonal() / scale, 0, 1), atol=1e-5)


def test_aesthetic_is_the_head_of_the_unit_embedding(clip_folder, head, pictures, prompts):
    judge = Aesthetic(model=clip_folder, head=head)
    seen = Clip(clip_folder).see(pictures)
    assert torch.allclose(seen.norm(dim=-1), torch.ones(len(seen)))
    scores = judge(pictures, prompts)
    assert np.allclose(scores.details["aesthetic"], judge._head(seen).numpy(), atol=1e-6)
    assert np.array_equal(scores.value, judge(pictures, [Prompt("else", "pick")] * len(pictures)).value)


@pytest.mark.parametrize("name", ["pickscore", "clipscore", "aesthetic"])
def test_scores_belong_to_their_pictures_whatever_the_batch(name, clip_folder, head, pictures, prompts):
    judge = judges(clip_folder, head)[name]
    (detail,) = judge(pictures, prompts).details
    together = judge(pictures, prompts).details[detail]
    alone = np.concatenate(
        [judge(pictures[i : i + 1], prompts[i : i + 1]).details[detail] for i in range(len(prompts))]
    )
    order = [3, 0, 4, 1, 2]
    turned = judge(pictures[order], [prompts[i] for i in order]).details[detail]
    assert len(set(together.round(6))) == len(prompts)
    assert np.allclose(alone, together, atol=1e-5) and np.allclose(turned, together[order], atol=1e-5)


def test_small_batches_change_nothing(clip_folder, pictures):
    assert torch.allclose(Clip(clip_folder, batch=2).see(pictures), Clip(clip_folder).see(pictures), atol=1e-6)


def test_long_prompts_are_cut(clip_folder):
    words = Clip(clip_folder).read([" ".join(["star"] * 40), " ".join(["star"] * 60)])
    assert torch.allclose(words[0], words[1])


@pytest.mark.parametrize("name", ["pickscore", "clipscore", "aesthetic"])
def test_numbers_have_to_match(name, clip_folder, head, pictures, prompts):
    with pytest.raises(DataError, match="5 pictures came with 4 prompts"):
        judges(clip_folder, head)[name](pictures, prompts[:4])


def test_a_head_that_is_no_tensors_is_refused_unrun(clip_folder, tmp_path):
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (ran.write_text, ("x",))

    file = tmp_path / "head.pth"
    file.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match=r"head\.pth"):
        Aesthetic(model=clip_folder, head=str(file))
    assert not ran.exists()


def test_a_head_of_torch_is_read(clip_folder, tmp_path, head, pictures, prompts):
    torch.manual_seed(1)
    file = tmp_path / "head.pth"
    torch.save(Head(16).state_dict(), file)
    ours, theirs = (Aesthetic(model=clip_folder, head=str(path))(pictures, prompts) for path in (file, head))
    assert np.array_equal(ours.value, theirs.value)


def test_missing_models_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        Clip(str(tmp_path / "nowhere"))


def test_a_judge_takes_the_model_that_its_config_names(clip_folder, tmp_path):
    judge = make_reward("clipscore", config=JudgeConfig(model=str(clip_folder)))
    assert isinstance(judge, ClipScore)
    with pytest.raises(CheckpointError, match="nowhere"):
        make_reward("clipscore", config=JudgeConfig(model=str(tmp_path / "nowhere")))


IDLE = [
    ("mini_geneval", {"model": "x/y"}),
    ("ocr", {"retries": 1}),
    ("pickscore", {"trust_remote_code": True}),
    ("pickscore", {"url": "http://localhost:1", "model": "x/y"}),
    ("deqa", {"url": "http://localhost:1", "trust_remote_code": True}),
    ("deqa", {"deadline": 3.0}),
    ("qwenvl", {"trust_remote_code": True}),
]


@pytest.mark.parametrize(("name", "settings"), IDLE)
def test_a_setting_that_a_judge_would_ignore_is_refused(name, settings):
    with pytest.raises(ConfigError, match=f"{name} takes no '{list(settings)[-1]}'"):
        check_reward(name, JudgeConfig(**settings))


@pytest.mark.parametrize("name", ["ocr", "clipscore", "deqa", "mini_quality", "qwenvl"])
def test_every_judge_takes_a_url(name):
    check_reward(name, JudgeConfig(url="http://localhost:1", token="X", deadline=1.0, retries=0))


def test_a_setting_of_servers_alone_points_to_the_url():
    with pytest.raises(ConfigError, match=r"ocr takes no 'retries', got 1; .* or add judges\.ocr\.url"):
        check_reward("ocr", JudgeConfig(retries=1))
