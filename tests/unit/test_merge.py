"""A merge is the mean of the weight changes, and a truncated one the best of its rank."""

import json
import math

import pytest
import torch

from flowopd.errors import ConfigError
from flowopd.lora_file import Factors, LoraFile, read_lora, write_lora
from flowopd.merge import interference, merge, truncated

SHAPES = {"blocks.0.q": (24, 16), "blocks.1.q": (16, 20), "out": (8, 24)}


def lora(seed, rank, scale, modules=tuple(SHAPES)):
    draw = torch.Generator().manual_seed(seed)
    return LoraFile(
        {},
        {
            name: Factors(
                torch.randn(rank, SHAPES[name][1], generator=draw),
                torch.randn(SHAPES[name][0], rank, generator=draw),
                scale,
            )
            for name in modules
        },
    )


@pytest.fixture
def loras():
    """Three adapters of different ranks, alphas and modules."""
    return {
        "shapes": lora(0, 4, 2.0),
        "text": lora(1, 6, 0.5, ("blocks.0.q", "out")),
        "quality": lora(2, 3, 1.0, ("blocks.0.q", "blocks.1.q")),
    }


def dense(lora, name):
    return lora.modules[name].delta().double() if name in lora.modules else torch.zeros(SHAPES[name]).double()


def dense_mean(loras, shares, name):
    return sum(shares[key] * dense(lora, name) for key, lora in loras.items())


def norm(changes):
    return math.sqrt(sum(change.square().sum().item() for change in changes))


WEIGHTS = [None, {"shapes": 3.0, "text": 1.0, "quality": 0.0}]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_exact_merge_is_the_mean_of_the_dense_changes(loras, weights):
    shares = {name: 1 / 3 for name in loras} if weights is None else {n: w / 4 for n, w in weights.items()}
    merged = merge(loras, weights)
    assert set(merged.lora.modules) == set(SHAPES)
    assert merged.relative_error == 0
    for name in SHAPES:
        torch.testing.assert_close(dense(merged.lora, name), dense_mean(loras, shares, name), atol=1e-5, rtol=1e-5)


def test_the_mean_of_the_factors_is_not_the_mean_of_the_changes(loras):
    pair = {"shapes": loras["shapes"], "other": lora(5, 4, 2.0)}
    factors = [one.modules["out"] for one in pair.values()]
    wrong = 2.0 * torch.stack([f.b for f in factors]).mean(0) @ torch.stack([f.a for f in factors]).mean(0)
    right = dense(merge(pair).lora, "out")
    assert norm([wrong - right]) > 0.5 * norm([right])


def test_the_merge_of_copies_is_the_adapter(loras):
    merged = merge({"a": loras["text"], "b": loras["text"]}, rank=6)
    for name in loras["text"].modules:
        torch.testing.assert_close(dense(merged.lora, name), dense(loras["text"], name), atol=1e-5, rtol=1e-5)
    assert merged.relative_error < 1e-6


@pytest.mark.parametrize("rank", [1, 4, 8, 12])
def test_the_truncated_merge_is_the_dense_svd(loras, rank):
    merged = merge(loras, rank=rank)
    shares = dict.fromkeys(loras, 1 / 3)
    lost = []
    for name in SHAPES:
        mean = dense_mean(loras, shares, name)
        u, s, vh = torch.linalg.svd(mean, full_matrices=False)
        best = u[:, :rank] * s[:rank] @ vh[:rank]
        torch.testing.assert_close(dense(merged.lora, name), best, atol=1e-5, rtol=1e-5)
        assert merged.lora.modules[name].rank <= rank
        lost.append(mean - best)
    whole = norm([dense_mean(loras, shares, name) for name in SHAPES])
    assert merged.relative_error == pytest.approx(norm(lost) / whole, abs=1e-6)


def test_more_ranks_than_a_module_has_columns():
    wide = {str(seed): lora(seed, 20, 0.1) for seed in range(3)}
    shares = dict.fromkeys(wide, 1 / 3)
    merged = merge(wide, rank=30)
    for name in SHAPES:
        torch.testing.assert_close(dense(merged.lora, name), dense_mean(wide, shares, name), atol=1e-5, rtol=1e-5)
    assert merged.relative_error < 1e-6


def test_truncation_keeps_what_is_small_enough(loras):
    factors = loras["shapes"].modules["out"]
    assert truncated(factors, 4) is factors


def test_ranks_that_differ_by_module_survive_the_file(loras, tmp_path):
    merged = merge(loras)
    assert {factors.rank for factors in merged.lora.modules.values()} == {13, 10, 7}
    write_lora(tmp_path, merged.lora)
    again = read_lora(tmp_path)
    for name in SHAPES:
        torch.testing.assert_close(dense(again, name), dense(merged.lora, name), atol=0, rtol=1e-6)


def test_interference_is_the_geometry_of_the_dense_changes(loras):
    report = interference(loras)
    names = list(loras)
    for m, module in enumerate(report.modules):
        flat = torch.stack([dense(loras[name], module).flatten() for name in names])
        torch.testing.assert_close(report.inner[m], flat @ flat.mT, atol=1e-4, rtol=1e-6)
        torch.testing.assert_close(report.norms[m], flat.norm(dim=1), atol=1e-5, rtol=1e-6)
    whole = torch.stack([torch.cat([dense(loras[n], m).flatten() for m in report.modules]) for n in names])
    cosines = torch.nn.functional.cosine_similarity(whole[:, None], whole[None], dim=-1)
    torch.testing.assert_close(report.total_cosines, cosines, atol=1e-6, rtol=1e-6)
    absent = report.cosines[report.modules.index("out")][names.index("quality")]
    assert absent.tolist() == [0.0, 0.0, 0.0]


def test_interference_is_json(loras):
    report = json.loads(json.dumps(merge(loras).interference.as_dict()))
    assert report["names"] == list(loras)
    assert set(report["modules"]) == set(SHAPES)
    assert report["norms"]["text"] == pytest.approx(norm([dense(loras["text"], name) for name in SHAPES]))
    assert report["cosines"][1][1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("weights", "rank", "message"),
    [
        ({"shapes": 1.0, "text": -1.0, "quality": 1.0}, None, "negative"),
        ({"shapes": 0.0, "text": 0.0, "quality": 0.0}, None, "all zero"),
        ({"shapes": math.nan, "text": 1.0, "quality": 1.0}, None, "negative"),
        ({"shapes": 1.0, "text": 1.0, "typo": 1.0}, None, "typo"),
        ({"shapes": 1.0}, None, "quality"),
        (None, 0, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(loras, weights, rank, message):
    with pytest.raises(ConfigError, match=message):
        merge(loras, weights, rank)


def test_adapters_of_different_bases_are_refused(loras):
    foreign = LoraFile({}, {"out": Factors(torch.ones(2, 10), torch.ones(8, 2), 1.0)})
    with pytest.raises(ConfigError, match="different shapes"):
        merge({**loras, "foreign": foreign})


def test_nothing_to_merge_is_refused():
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge({})
