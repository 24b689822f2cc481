"""GenEval for real models: what the detector's numbers mean, what counts, whose colour, and which picture is whose."""

import numpy as np
import pytest
import torch
from PIL import Image

from flowopd.errors import CheckpointError, DataError
from flowopd.prompts import Prompt
from flowopd.rewards import geneval
from flowopd.rewards.geneval import CLASSES, COLOURS, Geneval, Instance, counted, instances

RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def asked(text="a photo of a dog", **clause):
    return Prompt(text, "geneval", {"tag": "single_object", "include": [{"class": "dog", "count": 1, **clause}]})


def found(kind, confidence, mask=None):
    mask = np.ones((4, 4), bool) if mask is None else mask
    return Instance(kind, confidence, mask, (0.0, 0.0, 4.0, 4.0))


def queries(*objects, size=16):
    """The logits of a detector that is sure of these (class, probability, (top, left, bottom, right) in cells)."""
    classes = torch.full((len(objects), len(CLASSES) + 1), -30.0)
    masks = torch.full((len(objects), size, size), -20.0)
    for i, (kind, chance, (top, left, bottom, right)) in enumerate(objects):
        classes[i, CLASSES.index(kind)] = np.log(chance)
        classes[i, -1] = np.log(1 - chance + 1e-12)
        masks[i, top:bottom, left:right] = 20.0
    return classes, masks


def test_the_classes_are_cocos():
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert (CLASSES[0], CLASSES[16], CLASSES[64], CLASSES[66], CLASSES[79]) == (
        "person",
        "dog",
        "computer mouse",
        "computer keyboard",
        "toothbrush",
    )


def test_queries_become_objects_with_boxes_in_pixels():
    cat, dog = instances(*queries(("dog", 0.6, (0, 0, 8, 4)), ("cat", 0.9, (8, 8, 16, 16))), (64, 64))[:2]
    assert (cat.kind, dog.kind) == ("cat", "dog")
    assert cat.box == (32.0, 32.0, 64.0, 64.0) and dog.box == (0.0, 0.0, 16.0, 32.0)
    assert cat.mask.shape == (64, 64) and cat.mask[40, 40] and not cat.mask[10, 10]
    assert cat.confidence == pytest.approx(0.9, abs=0.02) and dog.confidence == pytest.approx(0.6, abs=0.02)


def test_an_unsure_mask_lowers_confidence():
    classes, masks = queries(("dog", 0.8, (0, 0, 16, 16)))
    half_sure = torch.full_like(masks, torch.logit(torch.tensor(0.75)).item())
    assert instances(classes, half_sure, (16, 16))[0].confidence == pytest.approx(0.8 * 0.75, abs=1e-4)


def test_an_empty_mask_is_no_object():
    classes, masks = queries(("dog", 0.99, (0, 0, 0, 0)))
    assert instances(classes, masks, (32, 32)) == []


@pytest.mark.parametrize(("tag", "kept"), [("single_object", [0.95, 0.5, 0.31]), ("counting", [0.95])])
def test_counting_asks_for_more_confidence(tag, kept):
    objects = [found("dog", c) for c in (0.31, 0.95, 0.3, 0.5)]
    assert [o.confidence for o in counted(objects, tag)] == kept


def test_at_most_sixteen_of_a_class_count():
    objects = [found("dog", 0.5 + i / 100) for i in range(20)] + [found("cat", 0.4)]
    kept = counted(objects, "two_object")
    assert [o.kind for o in kept] == ["dog"] * 16 + ["cat"]
    assert min(o.confidence for o in kept[:16]) == pytest.approx(0.54)


class Eyes:
    """Sees which of RGB a crop shows most of, and reads which of COLOURS a text names."""

    def __init__(self, *_, **__):
        self.seen = []

    def see(self, pictures):
        self.seen += pictures
        means = np.array([[np.all(np.asarray(p) == rgb, 2).mean() for rgb in RGB.values()] for p in pictures])
        rows = torch.zeros(len(pictures), len(COLOURS))
        rows[range(len(pictures)), [COLOURS.index(list(RGB)[i]) for i in means.argmax(1)]] = 1.0
        return rows

    def read(self, texts):
        return torch.tensor([[float(colour in text.replace("colored", "")) for colour in COLOURS] for text in texts])


@pytest.fixture
def judge(monkeypatch, detector_folder):
    monkeypatch.setattr(geneval, "Clip", Eyes)
    return Geneval(model=detector_folder)


def scene():
    """A red square on blue, at rows 4..12 and columns 8..24 of 32, and the mask of the square."""
    picture = np.zeros((32, 32, 3), np.uint8) + np.uint8(RGB["blue"])
    mask = np.zeros((32, 32), bool)
    mask[4:12, 8:24] = True
    picture[mask] = RGB["red"]
    return picture, mask


def test_the_colour_is_the_objects_own(judge, monkeypatch):
    picture, mask = scene()
    square = Instance("dog", 0.9, mask, (8.0, 4.0, 24.0, 12.0))
    whole = Instance("cat", 0.8, np.ones_like(mask), (0.0, 0.0, 32.0, 32.0))
    monkeypatch.setattr(judge, "_instances", lambda _: [square, whole])
    dog, cat = judge.detect(picture, asked(color="red").metadata)
    assert (dog.colour, cat.colour) == ("red", None)
    assert judge._clip.seen[0].size == (16, 8)


def test_keys_that_are_null_ask_for_nothing(judge, monkeypatch):
    picture, mask = scene()
    monkeypatch.setattr(judge, "_instances", lambda _: [Instance("dog", 0.9, mask, (8.0, 4.0, 24.0, 12.0))])
    bare, nulls = asked(), asked(color=None, position=None)
    nulls.metadata["exclude"] = None
    for prompt in (bare, nulls):
        judge.check_prompt(prompt)
        (dog,) = judge.detect(picture, prompt.metadata)
        assert dog.colour is None
        assert judge(picture[None], [prompt]).value.tolist() == [1.0]


def test_a_crop_hides_what_is_not_the_object(judge):
    picture, mask = scene()
    ragged = mask.copy()
    ragged[4:8, 8:16] = False
    judge._colour(picture, Instance("dog", 0.9, ragged, (8.0, 4.0, 24.0, 12.0)))
    crop = np.asarray(judge._clip.seen[0])
    assert (crop[:4, :8] == 0x99).all() and (crop[:4, 8:] == RGB["red"]).all()


def test_verdicts_follow_colours(judge, monkeypatch):
    picture, mask = scene()
    monkeypatch.setattr(judge, "_instances", lambda _: [Instance("dog", 0.9, mask, (8.0, 4.0, 24.0, 12.0))])
    prompts = [asked(color="red"), asked(color="green"), asked()]
    assert judge(np.stack([picture] * 3), prompts).value.tolist() == [1.0, 0.0, 1.0]


def test_the_whole_of_it_runs_and_pairs(detector_folder, clip_folder, monkeypatch):
    monkeypatch.setattr(geneval, "THRESHOLD", 0.0)
    judge = Geneval(model=detector_folder, clip=clip_folder)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 64, 48, 3), dtype=np.uint8)
    kinds = {judge._instances(picture)[0].kind for picture in pictures}
    prompts = [
        Prompt(f"a {kind}", "geneval", {"tag": "colors", "include": [{"class": kind, "count": 1, "color": colour}]})
        for kind, colour in zip(sorted(kinds) * 4, ("red", "green", "blue", "white"), strict=False)
    ]
    scores = judge(pictures, prompts)
    assert scores.value.shape == (4,) and scores.details.keys() == {"strict", "continuous"}
    turned = judge(pictures[::-1].copy(), prompts[::-1])
    assert np.array_equal(turned.value, scores.value[::-1])
    assert np.array_equal(turned.details["continuous"], scores.details["continuous"][::-1])


@pytest.mark.parametrize(("key", "value"), [("class", "unicorn"), ("color", "mauve")])
def test_what_geneval_does_not_know_is_named(judge, key, value):
    with pytest.raises(DataError, match=value):
        judge(np.zeros((1, 8, 8, 3), np.uint8), [asked(**{key: value})])


def test_a_missing_detector_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        Geneval(model=str(tmp_path / "nowhere"))


def test_a_crop_is_a_picture(judge):
    picture, mask = scene()
    judge._colour(picture, Instance("dog", 0.9, mask, (8.0, 4.0, 24.0, 12.0)))
    assert isinstance(judge._clip.seen[0], Image.Image)
