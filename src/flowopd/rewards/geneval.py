"""GenEval (2310.11513) without mmdet: objects by Mask2Former, colours by CLIP, both from transformers.

Settings, thresholds and the colour classifier's words are the official evaluation's; the detector is the same network
(Swin-S, COCO instances) with its authors' weights in place of mmdet's own, so detections near a threshold may differ.
The rules are in `geneval_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

from flowopd.errors import DataError
from flowopd.hub import fetched
from flowopd.prompts import Prompt
from flowopd.prompts.composition import Composition, composition
from flowopd.rewards.base import Scores
from flowopd.rewards.clip import Clip
from flowopd.rewards.geneval_rules import Box, Detection, asked_of, judge
from flowopd.rewards.pairs import check_pairs

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Confidence that an object needs, and the one it needs where objects are counted."""

MOST_OF_A_CLASS, MOST = 16, 100
"""The most objects that count of one class, and that are looked at on one picture."""

BLANK = (0x99, 0x99, 0x99)
"""What a crop shows around its object."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PHRASES = ("a photo of a {colour} {kind}", "a photo of a {colour}-colored {kind}", "a photo of a {colour} object")

CLASSES = tuple(
    name.strip()
    for name in """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
    vase, scissors, teddy bear, hair drier, toothbrush
    """.replace("\n", " ").split(",")
)
"""GenEval's names of COCO's 80 classes, in COCO's order."""


@dataclass(frozen=True)
class Instance:
    """One object found: its class, confidence in 0..1, mask (H, W) bool, and the box around it in pixels."""

    kind: str
    confidence: float
    mask: np.ndarray
    box: Box


class Geneval:
    """Scores pictures (B, H, W, 3) by GenEval's official rule; details: `strict`, `continuous`.

    Raises CheckpointError if a model cannot be loaded; DataError if a prompt has no composition metadata, asks for a
    class or a colour that GenEval does not know, or pictures and prompts differ in number.
    """

    def __init__(self, *, model: str = DETECTOR, clip: str = CLIP, device: str | torch.device = "cpu") -> None:
        self._model = fetched(Mask2FormerForUniversalSegmentation, model).eval().requires_grad_(False).to(device)
        self._processor: Any = fetched(AutoImageProcessor, model)
        self._clip, self._device = Clip(clip, device=device), device
        self._classifiers: dict[str, Tensor] = {}

    @staticmethod
    def check_prompt(prompt: Prompt) -> None:
        """Raises DataError if a prompt has no composition metadata, or asks for what GenEval does not know."""
        _check_known(asked_of(prompt.metadata, prompt.text), prompt.text)

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        for prompt in prompts:
            self.check_prompt(prompt)
        verdicts = [
            judge(self.detect(picture, prompt.metadata), {**prompt.metadata, "prompt": prompt.text})
            for picture, prompt in zip(pictures, prompts, strict=True)
        ]
        views = {name: np.array([getattr(v, name) for v in verdicts]) for name in ("official", "strict", "continuous")}
        return Scores(views.pop("official"), views)

    def detect(self, picture: np.ndarray, metadata: Mapping[str, Any]) -> list[Detection]:
        """The objects of a picture (H, W, 3) that count for a prompt; coloured where it asks for their colour."""
        found = counted(self._instances(picture), metadata.get("tag", ""))
        asked = {clause.kind for clause in composition(metadata, "the metadata").include if clause.colour is not None}
        return [
            Detection(o.kind, self._colour(picture, o) if o.kind in asked else None, o.box, o.confidence) for o in found
        ]

    @torch.inference_mode()
    def _instances(self, picture: np.ndarray) -> list[Instance]:
        inputs = self._processor(images=[Image.fromarray(picture)], return_tensors="pt").to(self._device)
        out = self._model(pixel_values=inputs["pixel_values"])
        return instances(out.class_queries_logits[0], out.masks_queries_logits[0], picture.shape[:2])

    def _colour(self, picture: np.ndarray, found: Instance) -> str:
        """The colour that CLIP calls the object, alone on a blank ground and cropped to its box."""
        alone = np.where(found.mask[:, :, None], picture, np.uint8(BLANK))
        left, top, right, bottom = (int(edge) for edge in found.box)
        seen = self._clip.see([Image.fromarray(alone[top:bottom, left:right])])
        return COLOURS[int((seen @ self._classifier(found.kind).T).argmax())]

    def _classifier(self, kind: str) -> Tensor:
        """A direction (10, E) for each colour: the mean of its phrases."""
        if kind not in self._classifiers:
            texts = [phrase.format(colour=colour, kind=kind) for colour in COLOURS for phrase in PHRASES]
            each = self._clip.read(texts).unflatten(0, (len(COLOURS), len(PHRASES)))
            self._classifiers[kind] = normalize(each.mean(1), dim=-1)
        return self._classifiers[kind]


def instances(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> list[Instance]:
    """The most confident objects in a detector's queries, best first.

    class_logits (Q, 81), the last being "nothing"; mask_logits (Q, h, w) at any resolution; size is (H, W) in pixels.
    Confidence is the probability of the class times the mean of the mask's probability inside the mask, as Mask2Former
    (2112.01527) has it; empty masks are no objects.
    """
    chances = class_logits.softmax(-1)[:, :-1]
    best, places = chances.flatten().topk(min(MOST, chances.numel()))
    masks = interpolate(mask_logits[None], size, mode="bilinear", align_corners=False)[0]
    found = []
    for chance, place in zip(best.tolist(), places.tolist(), strict=True):
        query, kind = divmod(place, chances.shape[1])
        inside = masks[query] > 0
        if inside.any():
            certainty = masks[query][inside].sigmoid().mean().item()
            mask = inside.cpu().numpy()
            found.append(Instance(CLASSES[kind], chance * certainty, mask, _around(mask)))
    return sorted(found, key=lambda instance: -instance.confidence)


def counted(found: Sequence[Instance], tag: str) -> list[Instance]:
    """What is confident enough for the task `tag`, and at most MOST_OF_A_CLASS of each class; best first."""
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    ranked = [o for o in sorted(found, key=lambda o: -o.confidence) if o.confidence > least]
    kept = {kind: [o for o in ranked if o.kind == kind][:MOST_OF_A_CLASS] for kind in {o.kind for o in ranked}}
    return [o for o in ranked if any(o is other for other in kept[o.kind])]


def _around(mask: np.ndarray) -> Box:
    """(left, top, right, bottom) of the pixels of a mask (H, W), right and bottom just outside."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _check_known(asked: Composition, text: str) -> None:
    for clause in (*asked.include, *asked.exclude):
        for key, value, known in (("class", clause.kind, CLASSES), ("color", clause.colour, (None, *COLOURS))):
            if value not in known:
                raise DataError(f"prompt {text!r} asks for the {key} {value!r}, which GenEval does not know")
