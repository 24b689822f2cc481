"""DeQA: the rule from levels to a score, and a whole small model whose code lies beside its weights."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast, dynamic_module_utils

from flowopd.errors import CheckpointError, ConfigError, DataError
from flowopd.prompts import Prompt
from flowopd.rewards import make_reward
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.deqa import LEVELS, PICTURE, SENTENCE, Deqa, expected_level, level_ids, sentence, squared

WORDS = ["<s>", "<unk>", *dict.fromkeys(" ".join(SENTENCE).split()), *LEVELS]
FIRST = WORDS.index("excellent")

CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OwlConfig(PretrainedConfig):
    model_type = "tiny_owl"


class Owl(PreTrainedModel):
    config_class = OwlConfig

    def __init__(self, config):
        super().__init__(config)
        self.lean = torch.nn.Parameter(torch.zeros(5))
        self.post_init()

    def forward(self, input_ids, images):
        assert images.dtype == self.lean.dtype
        assert input_ids.is_meta or (input_ids == -200).sum(1).eq(1).all()
        light = images.mean((1, 2, 3))
        logits = torch.full((*input_ids.shape, config_size), -30.0, dtype=images.dtype, device=images.device)
        slope = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0], device=images.device)
        logits[:, -1, FIRST:FIRST + 5] = light[:, None] * slope + self.lean
        return CausalLMOutput(logits=logits)
"""


def write_model(folder, code=CODE, size=8):
    """A folder as on the hub: weights, the code of their model, a tokenizer and an image processor."""
    code = code.replace("config_size", str(len(WORDS))).replace("FIRST", str(FIRST))
    (folder / "owl.py").write_text(code)
    auto = {"AutoConfig": "owl.OwlConfig", "AutoModelForCausalLM": "owl.Owl"}
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny_owl", "auto_map": auto}))
    torch.save({"lean": torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0])}, folder / "pytorch_model.bin")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def code_stays_here(monkeypatch, tmp_path_factory):
    """transformers copies the code that it runs; not to the user's home in a test."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    monkeypatch.syspath_prepend("")


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path)


@pytest.fixture
def pictures():
    shades = (20, 120, 200, 250)
    return np.stack([np.full((24, 24, 3), shade, np.uint8) for shade in shades])


@pytest.fixture
def prompts():
    return [Prompt(f"a ring {i}", "look") for i in range(4)]


@pytest.mark.parametrize(
    ("logits", "score"),
    [
        ([9e3, 0, 0, 0, 0], 5),
        ([0, 0, 0, 0, 9e3], 1),
        ([0, 0, 0, 0, 0], 3),
        ([math.log(4), -math.inf, -math.inf, -math.inf, 0], 4.2),
        ([-math.inf, 0, -math.inf, math.log(3), -math.inf], 2.5),
    ],
)
def test_a_score_is_what_the_levels_count_on_average(logits, score):
    assert expected_level(torch.tensor([logits])).tolist() == pytest.approx([score])


def test_only_differences_between_levels_count():
    logits = torch.randn((6, 5), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(expected_level(logits), expected_level(logits + 7), atol=1e-5)
    assert torch.allclose(expected_level(logits.flip(1)), 6 - expected_level(logits), atol=1e-5)


def test_a_whole_model_with_its_own_code_scores(folder, pictures, prompts):
    judge = make_reward("deqa", config=JudgeConfig(model=folder, trust_remote_code=True))
    scores = judge(pictures, prompts)
    seen = CLIPImageProcessor.from_pretrained(folder)(images=list(pictures), return_tensors="pt")["pixel_values"]
    light = seen.mean((1, 2, 3))[:, None]
    logits = light * torch.tensor([2.0, 1, 0, -1, -2]) + torch.tensor([0, 0.5, 0, 0, 0])
    weights = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = (weights * torch.tensor([5.0, 4, 3, 2, 1])).sum(1).numpy()
    assert np.allclose(scores.details["deqa"], expected, atol=2e-2) and np.ptp(expected) > 2
    assert np.array_equal(scores.value, scores.details["deqa"] / 5)


def test_scores_belong_to_their_pictures_whatever_the_batch(folder, pictures, prompts):
    small = Deqa(model=folder, trust_remote_code=True, batch=3)
    together = Deqa(model=folder, trust_remote_code=True)(pictures, prompts).value
    alone = [small(pictures[i : i + 1], prompts[i : i + 1]).value[0] for i in range(4)]
    assert len(set(together)) == 4
    assert np.allclose(small(pictures, prompts).value, together) and np.allclose(alone, together)
    assert np.allclose(small(pictures[::-1], prompts).value, together[::-1])


def test_weights_and_inputs_lie_on_the_device(folder, pictures, prompts):
    judge = Deqa(model=folder, trust_remote_code=True, device="meta")
    assert judge._net.lean.device.type == "meta"
    got = []
    judge._net = lambda **inputs: (got.extend(inputs.values()), {"logits": torch.zeros(4, 9, len(WORDS))})[1]
    judge(pictures, prompts)
    assert [tensor.device.type for tensor in got] == ["meta"] * 2


def test_the_picture_stands_in_the_sentence_once(folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokens = sentence(tokenizer)
    before, after = (" ".join(half.split()) for half in SENTENCE)
    place = tokens.index(PICTURE)
    assert tokens.count(PICTURE) == 1 and tokens.count(0) == 1 and tokens[0] == 0
    assert tokenizer.decode(tokens[1:place]) == before and tokenizer.decode(tokens[place + 1 :]) == after
    assert [WORDS[i] for i in level_ids(tokenizer)] == list(LEVELS)


def test_a_picture_is_put_on_a_square_of_the_mean_colour():
    picture = np.full((10, 30, 3), 200, np.uint8)
    square = np.asarray(squared(picture, (1, 2, 3)))
    assert square.shape == (30, 30, 3) and (square[10:20] == 200).all()
    assert (square[:10] == (1, 2, 3)).all() and (square[20:] == (1, 2, 3)).all()


def test_a_wide_picture_is_seen_whole_on_its_square(folder, prompts):
    judge = Deqa(model=folder, trust_remote_code=True)
    wide = np.full((1, 12, 24, 3), 150, np.uint8)
    wide[:, :, [*range(6), *range(18, 24)]] = 250
    ground = tuple(int(255 * share) for share in judge._processor.image_mean)
    square = np.asarray(squared(wide[0], ground))[None]
    middle = np.ascontiguousarray(wide[:, :, 6:18])
    seen, same, cut = (judge(pictures, prompts[:1]).value[0] for pictures in (wide, square, middle))
    assert seen == same != cut


def test_code_is_not_run_unless_it_is_trusted(tmp_path):
    folder = write_model(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n{CODE}")
    with pytest.raises(ConfigError, match=r"judges.deqa.trust_remote_code=true, or .* by judges.deqa.url") as told:
        make_reward("deqa", config=JudgeConfig(model=folder))
    assert folder in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "ran").exists()
    make_reward("deqa", config=JudgeConfig(model=folder, trust_remote_code=True))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("import torch\n", "import torch, no_such_module\n"), "no_such_module"),
        (("super().__init__(config)", "super().__init__(config, Cache)"), "'Cache' is not defined"),
        (("images.mean", "images.no_such_method"), "no_such_method"),
        (("input_ids, images)", "input_ids, pixels)"), "unexpected keyword argument 'images'"),
    ],
    ids=["a package is missing", "a name is gone", "a method is gone", "other arguments"],
)
def test_code_that_does_not_run_here_fails_at_once(tmp_path, change, told):
    folder = write_model(tmp_path, CODE.replace(*change))
    with pytest.raises(CheckpointError, match=rf"the code of {folder} does not run with transformers \d.*{told}") as e:
        Deqa(model=folder, trust_remote_code=True)
    assert "judges.deqa.model" in str(e.value) and "\n" not in str(e.value)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        Deqa(model=str(tmp_path / "nowhere"), trust_remote_code=True)


def test_numbers_have_to_match(folder, pictures, prompts):
    with pytest.raises(DataError, match="4 pictures came with 1 prompts"):
        Deqa(model=folder, trust_remote_code=True)(pictures, prompts[:1])
