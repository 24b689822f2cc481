"""The learned judges of drawing quality are judged first: on drawn truth, planted faults, noise, and faults unheard of.

A fault counts as caught when the score falls by more than TOLERANCE, which is also what noise may raise it by. Truth
falls by the severity itself, so the least of the planted faults takes away ten times as much.
"""

import numpy as np
import pytest
from scipy.stats import rankdata

from flowopd.errors import CheckpointError, DataError
from flowopd.mini.degrade import DEGRADATIONS, ELSEWHERE, FURTHER, degrade
from flowopd.mini.draw import draw
from flowopd.mini.quality import HOLDOUT, QUALITY, Judge, load_judge
from flowopd.mini.wishes import grant, random_wish
from flowopd.mini.world import TASKS
from flowopd.prompts import Prompt
from flowopd.rewards import make_reward

EACH = 40
TOLERANCE = 0.05
FAMILIES = (*DEGRADATIONS, *FURTHER, *ELSEWHERE)
LEVELS = np.linspace(0, 1, 6)
NOISE = [(kind, sd) for kind in ("grain", "mottle") for sd in (2, 5, 10, 20, 35, 50)]
JUDGES = {"mini_quality": QUALITY, "mini_holdout": HOLDOUT}
TAUGHT = [(name, family) for name, judge in JUDGES.items() for family in judge.families]
UNHEARD = [("mini_quality", family) for family in ELSEWHERE]
UNHEARD += [("mini_holdout", family) for family in ("ghost", "patchy", "glow")]


def drawn(each, rng):
    return np.stack([draw(grant(random_wish(task, rng), rng)) for task in (*TASKS, "text") for _ in range(each)])


def asked(pictures):
    return [Prompt(f"a drawing of number {i}", "quality") for i in range(len(pictures))]


def values(judge, pictures):
    return judge(pictures, asked(pictures)).value


@pytest.fixture(scope="module")
def judges():
    return {name: make_reward(name) for name in JUDGES}


@pytest.fixture(scope="module")
def clean():
    return drawn(EACH, np.random.default_rng(0))


@pytest.fixture(scope="module")
def worse(clean):
    """Every clean picture in every family, with its severity in .3..1."""
    rng = np.random.default_rng(1)
    severities = {family: rng.uniform(0.3, 1, len(clean)) for family in FAMILIES}
    return {
        family: (np.stack([degrade(x, family, s, rng) for x, s in zip(clean, of, strict=True)]), of)
        for family, of in severities.items()
    }


@pytest.fixture(scope="module")
def falls(judges, clean, worse):
    """How far each picture's score falls when it is degraded, with the severity: judge, family -> (B,), (B,)."""
    before = {name: values(judge, clean) for name, judge in judges.items()}
    wanted = {*TAUGHT, *UNHEARD}
    return {(name, f): (before[name] - values(judges[name], worse[f][0]), worse[f][1]) for name, f in wanted}


@pytest.fixture(scope="module")
def mixed(clean, worse):
    """Clean pictures and some of every family, all kinds of scenes."""
    return np.concatenate([clean[::7], *(pictures[i % 7 :: 35] for i, (pictures, _) in enumerate(worse.values()))])


@pytest.mark.parametrize("name", JUDGES)
def test_a_clean_picture_scores_above_its_degraded_self(falls, name):
    right = [(falls[name, family][0] > 0).mean() for family in JUDGES[name].families]
    assert np.mean(right) >= 0.97
    assert min(right) >= 0.94, "wavy outlines of single pale objects are the weakest point of mini_quality"


@pytest.mark.parametrize("name", JUDGES)
def test_planted_faults_are_caught(falls, name):
    caught = []
    for family in JUDGES[name].families:
        fall, severity = falls[name, family]
        caught.append((fall[severity >= 0.5] > TOLERANCE).mean())
    assert np.mean(caught) >= 0.95
    assert min(caught) >= 0.92, "wavy outlines of single pale objects are the weakest point of mini_quality"


@pytest.mark.parametrize(("name", "family"), TAUGHT)
def test_more_severe_is_worse(judges, clean, name, family):
    pictures = clean[::14]
    rows = [[degrade(x, family, s, np.random.default_rng(i)) for s in LEVELS] for i, x in enumerate(pictures)]
    scores = values(judges[name], np.concatenate(rows)).reshape(len(pictures), len(LEVELS))
    ranks = rankdata(scores, axis=1)
    correlations = [np.corrcoef(row, -LEVELS)[0, 1] for row in ranks]
    assert np.mean(correlations) >= 0.9


@pytest.mark.parametrize(("name", "family"), UNHEARD)
def test_faults_that_were_never_taught_are_seen(falls, name, family):
    fall, _ = falls[name, family]
    assert (fall > 0).mean() >= 0.9 and fall.mean() >= 0.15


@pytest.mark.parametrize("name", JUDGES)
def test_noise_never_raises_a_score(judges, mixed, name):
    rng = np.random.default_rng(2)
    before = values(judges[name], mixed)
    rises = np.stack(
        [values(judges[name], np.stack([degrade(x, kind, sd / 50, rng) for x in mixed])) - before for kind, sd in NOISE]
    )
    assert rises.mean(1).max() <= 0, dict(zip(NOISE, rises.mean(1).round(3), strict=True))
    assert (rises > TOLERANCE).mean() <= 0.01
    assert rises.max() <= 5 * TOLERANCE


@pytest.mark.parametrize("name", JUDGES)
def test_scores_lie_in_their_range(judges, mixed, name):
    scores = judges[name](mixed, asked(mixed))
    q = scores.details["q"]
    assert scores.value.shape == q.shape == (len(mixed),) and scores.value.dtype == np.float64
    assert q.min() >= 1 and q.max() <= 5
    assert np.array_equal(scores.value, (q - 1) / 4)
    assert scores.value.min() < 0.1 and scores.value.max() > 0.9


@pytest.mark.parametrize("name", JUDGES)
def test_clean_pictures_score_high(judges, clean, name):
    scores = values(judges[name], clean)
    assert scores.mean() >= 0.8 and np.quantile(scores, 0.05) >= 0.5


def test_the_holdout_is_another_judge(judges, mixed, clean):
    assert (QUALITY.name, QUALITY.seed, QUALITY.net) != (HOLDOUT.name, HOLDOUT.seed, HOLDOUT.net)
    assert set(HOLDOUT.families) - set(QUALITY.families) and set(QUALITY.families) - set(HOLDOUT.families)
    weights = [{tuple(p.shape) for p in load_judge(judge).parameters()} for judge in (QUALITY, HOLDOUT)]
    assert weights[0] != weights[1]
    on_mixed, on_clean = (
        np.corrcoef([values(judge, pictures) for judge in judges.values()])[0, 1] for pictures in (mixed, clean)
    )
    assert 0.5 < on_mixed < 0.97 and on_clean < 0.7


@pytest.mark.parametrize("name", JUDGES)
def test_scores_belong_to_their_pictures_whatever_the_batch(judges, mixed, name):
    judge, order = judges[name], np.random.default_rng(3).permutation(len(mixed))[:50]
    together = values(judge, mixed)[order]
    alone = np.concatenate([values(judge, mixed[i : i + 1]) for i in order])
    by_seven = np.concatenate([values(judge, mixed[order[i : i + 7]]) for i in range(0, 50, 7)])
    assert np.allclose(together, alone, atol=1e-6, rtol=0) and np.allclose(together, by_seven, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", JUDGES)
def test_the_prompt_plays_no_part(judges, clean, name):
    pictures = clean[:5]
    others = [Prompt('a sign that says "ART"', "text")] * 5
    assert np.array_equal(judges[name](pictures, others).value, values(judges[name], pictures))


@pytest.mark.parametrize("name", JUDGES)
def test_lengths_sizes_and_types_have_to_fit(judges, clean, name):
    with pytest.raises(DataError, match="3 pictures came with 2 prompts"):
        judges[name](clean[:3], asked(clean[:2]))
    with pytest.raises(DataError, match="64 x 64"):
        judges[name](clean[:2, :32], asked(clean[:2]))
    with pytest.raises(DataError, match="uint8"):
        judges[name](clean[:2] / 255.0, asked(clean[:2]))


def test_a_judge_without_weights_names_the_mend():
    with pytest.raises(CheckpointError, match=r"python -m flowopd\.mini\.quality"):
        load_judge(Judge("absent", QUALITY.net, QUALITY.families, 0))
