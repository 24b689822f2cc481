"""What the shipped experts change of the base, which is meant to be: no monitor may take it for hacking."""

import pytest

from flowopd.monitors.limits import Limits, changes, exceeded
from flowopd.monitors.pictures import measures
from flowopd.recipe import load_recipe, recipe_path
from flowopd.sampling import SamplingConfig
from flowopd.session import Session
from flowopd.stages.sample import draw, repeated, spread

pytestmark = pytest.mark.slow

EXPERTS = ("composition", "text", "quality")
PROMPTS, IMAGES = 4, 4
UNCHANGED = {"velocity": 1.0}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Measures of every model on each label's prompts, and on all labels'."""
    session = Session(load_recipe(recipe_path("mini-demo.yaml")), tmp_path_factory.mktemp("run"))
    prompts = {label: session.prompts(label, "train") for label in EXPERTS}
    prompts["all"] = [prompt for label in EXPERTS for prompt in prompts[label]]
    conditioning = session.encode(prompts["all"])
    found = {}
    for label, group in prompts.items():
        texts = [prompt.text for prompt in repeated(spread(group, PROMPTS), IMAGES)]
        for model in ("base", *(f"teacher:{name}" for name in EXPERTS)):
            pictures = draw(session, model, texts, range(len(texts)), SamplingConfig(steps=10), conditioning)
            found[label, model] = measures(pictures, IMAGES) | UNCHANGED
    return found


@pytest.mark.parametrize("label", [*EXPERTS, "all"])
@pytest.mark.parametrize("expert", EXPERTS)
def test_a_healthy_expert_is_left_alone(measured, label, expert):
    change = changes(measured[label, "base"], measured[label, f"teacher:{expert}"])
    print(f"{expert} on {label}:", *(f"{name} {value:.3g}" for name, value in change.items()))
    assert exceeded(change, Limits()) == []
