"""What a recipe says of itself."""

import pytest

from flowopd.recipe import make_recipe
from flowopd.sampling import SamplingConfig

NOISY = {"sampler": "sde", "noise": 0.7, "window": 2}
EVALUATE = {"metrics": {}, "sampling": {"steps": 40, "guidance": 4.5}}
DISTILL = {"sampling": {"steps": 8, "guidance": 3.0, **NOISY}}
MIX = {"tasks": {"a": {"reward": "ocr", "prompts": "a"}}, "sampling": {"steps": 6, "guidance": 2.0, **NOISY}}
EXPERT = {"train": {"reward": "ocr", "prompts": "a", "sampling": {"steps": 5, "guidance": 1.5, **NOISY}}}


@pytest.mark.parametrize(
    ("parts", "steps", "guidance"),
    [
        ({}, 10, 1.0),
        ({"teachers": {"a": EXPERT}}, 5, 1.5),
        ({"teachers": {"a": EXPERT}, "grpo_mix": MIX}, 6, 2.0),
        ({"teachers": {"a": EXPERT}, "grpo_mix": MIX, "distill": DISTILL}, 8, 3.0),
        ({"teachers": {"a": EXPERT}, "grpo_mix": MIX, "distill": DISTILL, "evaluate": EVALUATE}, 40, 4.5),
    ],
)
def test_models_draw_as_they_are_judged_else_as_they_were_trained_but_without_noise(parts, steps, guidance):
    recipe = make_recipe({"base": "b", "prompts": {"a": {"train": "a.txt"}}, **parts})
    assert recipe.drawing.sampling == SamplingConfig(steps=steps, guidance=guidance)


def test_models_draw_as_many_at_a_time_as_were_trained():
    tree = {"base": "b", "prompts": {"a": {"train": "a.txt"}}, "teachers": {"a": EXPERT}}
    assert make_recipe({**tree, "distill": {**DISTILL, "micro_batch": 2}}).drawing.micro_batch == 2
