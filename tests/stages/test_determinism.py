"""What is random belongs to a seed, a step and a prompt: no order of calls, and nothing before them, matters."""

import json
import shutil

import numpy as np
import pytest
import torch

from flowopd import conditioning as cache
from flowopd.configs import EvaluateConfig
from flowopd.models.source import Source
from flowopd.pipeline import open_run
from flowopd.recipe import make_recipe
from flowopd.sampling import SamplingConfig
from flowopd.stages import distill as distillation
from flowopd.stages import grpo
from flowopd.stages.distill import distill
from flowopd.stages.sample import draw, draw_by, draw_pictures, even_batch
from flowopd.stages.teacher import train_teacher

GRPO = {
    "reward": "mini_quality",
    "prompts": "quality",
    "prompts_per_update": 1,
    "group": 2,
    "sampling": {"steps": 3, "sampler": "sde", "window": 1},
    "adapter": {"rank": 2, "alpha": 4},
    "optim": {"updates": 1},
}
EVERYTHING = {"sampling": {"steps": 3, "sampler": "sde"}, "query": {"kind": "beta"}, "anchor": {"weight": 0.1}}


def seen(monkeypatch, stage, module, session, steps):
    """The metrics and the gradient of updates made in this order, each from the same weights; nothing is stepped."""
    found = {}

    def try_out(trainer, update, *_):
        for step in steps:
            torch.manual_seed(len(found))
            np.random.seed(len(found))
            metrics = update(step)
            found[step] = (dict(metrics), [p.grad.clone() for p in trainer.parameters])
            trainer.optimizer.zero_grad(set_to_none=True)

    with monkeypatch.context() as patch:
        patch.setattr("flowopd.train.Trainer.run", try_out)
        patch.setattr(module, "write_folder", lambda *_: None)
        stage(session)
    return found


STAGES = {
    "distill": (distill, distillation, {}),
    "teacher": (lambda s: train_teacher(s, "quality"), grpo, {"teachers": {"quality": {"train": GRPO}}}),
}


@pytest.mark.parametrize("name", STAGES)
def test_an_update_is_a_function_of_the_seed_and_the_step(world, distilling, tmp_path, monkeypatch, name):
    stage, module, parts = STAGES[name]
    parts = parts or {"distill": distilling(**EVERYTHING)}
    orders = ([0, 1, 2, 3], [3, 1, 0, 2])
    there, here = (
        seen(monkeypatch, stage, module, world.session(tmp_path / str(i), **parts), order)
        for i, order in enumerate(orders)
    )
    assert len({json.dumps(metrics) for metrics, _ in there.values()}) == 4
    for step, (metrics, gradient) in there.items():
        assert metrics == here[step][0]
        assert all(torch.equal(one, other) for one, other in zip(gradient, here[step][1], strict=True))


def test_a_route_depends_on_its_label_alone(world, tmp_path):
    router = world.session(tmp_path / "out").router(["composition", "quality"])
    labels = ["quality", "composition", "quality", "quality"]
    together = router(labels)
    assert all(torch.equal(router([label])[0], row) for label, row in zip(labels, together, strict=True))
    assert torch.equal(router(labels[::-1]).flip(0), together)


def test_a_prompt_is_encoded_the_same_whatever_the_cache_held(world, tmp_path):
    session = world.session(tmp_path / "out")
    texts = cache.distinct(prompt.text for prompt in session.prompts("quality", "train"))
    for folder, parts in {"a": [texts], "b": [texts[3:], texts[:3]], "c": [texts[::-1]]}.items():
        for part in parts:
            cache.encode(session.model, part, tmp_path / folder)
    kept = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.safetensors")} for name in "abc"]
    assert kept[0] == kept[1] == kept[2] and len(kept[0]) == len(texts)


def test_a_prompt_that_a_power_cut_left_half_is_encoded_again(world, tmp_path):
    session = world.session(tmp_path / "out")
    prompts = session.prompts("quality", "train")
    texts = [prompt.text for prompt in prompts]
    whole = session.encode(prompts)(texts)["prompt_embeds"]
    empty, half, *_ = sorted((session.out / "cache").rglob("*.safetensors"))
    empty.write_bytes(b"")
    half.write_bytes(half.read_bytes()[:-9])
    again = world.session(tmp_path / "out")
    assert torch.equal(again.encode(prompts)(texts)["prompt_embeds"], whole)


def test_a_base_is_known_by_its_own_files_alone(world, tmp_path):
    folder = shutil.copytree(world.base, tmp_path / "base")
    source = Source(str(folder))
    before = source.fingerprint()
    (folder / "README.md").write_text("About the model.")
    notes = folder / ".cache" / "huggingface" / "transformer"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text("1700000000.0")
    assert source.fingerprint() == before
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text() + " ")
    assert source.fingerprint() != before
    part = Source(str(folder / "transformer"))
    before = part.fingerprint()
    (folder / "transformer" / "README.md").write_text("About the part.")
    assert part.fingerprint() == before
    config.write_text(config.read_text() + " ")
    assert part.fingerprint() != before


def test_pictures_of_a_list_are_those_of_its_micro_batches(mini):
    session, prompts = mini
    texts = [prompt.text for prompt in prompts]
    encoded, seen = session.encode(prompts), []

    def conditioning(asked):
        seen.append(len(asked))
        return encoded(asked)

    field, seeds, sampling = session.field("base", 1.0, encoded), list(range(len(texts))), SamplingConfig(steps=2)
    drawn = draw_by(session, field, texts, seeds, sampling, conditioning, 4)
    assert seen == [4, 4, 2]
    for first in (0, 4, 8):
        part = slice(first, first + 4)
        alone = draw(session, "base", texts[part], seeds[part], sampling, encoded, 4)
        assert np.array_equal(drawn[part], alone)


@pytest.fixture(scope="module")
def mini(world, tmp_path_factory):
    """The shipped mini base, and a few prompts of it."""
    tree = world.tree(base="package:mini/base", teachers={})
    session = open_run(make_recipe(tree), tmp_path_factory.mktemp("mini") / "out")
    return session, [prompt for label in ("composition", "quality") for prompt in session.prompts(label, "train")][:10]


def pictures(mini, order, size, sampler="ode"):
    """Pictures of all prompts, drawn in this order and so many at a time, back in the order of the prompts."""
    session, prompts = mini
    encoded = cache.read(session.model, cache.distinct(prompt.text for prompt in prompts), session.out / "cache")
    sampling = SamplingConfig(steps=6, sampler=sampler)
    config = EvaluateConfig(metrics={}, micro_batch=size, sampling=sampling)
    return draw_pictures(session, "base", [prompts[i] for i in order], config, encoded)[np.argsort(order)]


@pytest.fixture(scope="module")
def drawn(mini):
    session, prompts = mini
    session.encode(prompts)
    return pictures(mini, range(len(prompts)), 4)


@pytest.fixture
def threads():
    """Sets how many threads torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


ORDERS = [range(9, -1, -1), [5, 0, 7, 2, 4, 1, 3, 8, 9, 6]]


@pytest.mark.parametrize("size", [1, 3, 4, 5, 6, 10, 16])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
def test_pictures_are_the_same_bytes_in_any_order(mini, drawn, threads, order, number, size):
    threads(number)
    assert drawn.std() > 10
    assert np.array_equal(pictures(mini, list(order), size), pictures(mini, range(len(drawn)), size))


@pytest.mark.parametrize("size", [1, 4, 16])
def test_pictures_are_within_a_grey_level_for_any_micro_batch(mini, drawn, size):
    other = pictures(mini, range(len(drawn)), size)
    assert np.abs(other.astype(int) - drawn).max() <= 1


def test_two_draws_with_an_sde_are_the_same_bytes(mini, drawn):
    once, again = (pictures(mini, range(len(drawn)), 4, "sde") for _ in range(2))
    assert np.array_equal(once, again) and not np.array_equal(once, drawn)


SIZES = [
    (34, 16, 12),
    (10, 4, 4),
    (3, 32, 4),
    (32, 32, 32),
    (0, 8, 8),
    (1, 1, 1),
    (2, 3, 2),
    (10, 3, 2),
    (10, 6, 4),
    (34, 18, 12),
]


@pytest.mark.parametrize(("n", "most", "size"), SIZES)
def test_micro_batches_are_alike_and_no_more_than_they_have_to_be(n, most, size):
    assert even_batch(n, most) == size


@pytest.mark.parametrize("most", range(1, 40))
def test_a_micro_batch_is_what_rows_round_alike_in_and_no_larger_than_asked(most):
    for n in range(80):
        size = even_batch(n, most)
        assert size <= most and (size in (1, 2) or size % 4 == 0)
        assert even_batch(n + -n % size, most) == size
