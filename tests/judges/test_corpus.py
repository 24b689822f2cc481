"""The corpus is wrong where its recipe says so, and nowhere else; the judges say what its pictures show."""

import numpy as np
import pytest

from flowopd.mini.captions import DOMAINS, LEADS, PAINTED
from flowopd.mini.corpus import CorpusConfig, Manner, example
from flowopd.mini.draw import draw
from flowopd.mini.pretrain import PAINTERS
from flowopd.mini.wishes import grant, held_out, metadata, mistake, trainable_wish
from flowopd.mini.world import PAPERS
from flowopd.prompts import Prompt
from flowopd.rewards import make_reward

EACH = 60


def one_domain(domain, **manner):
    manners = PAINTERS.corpus.manners | {domain: PAINTERS.corpus.manners[domain].model_copy(update=manner)}
    return PAINTERS.corpus.model_copy(update={"shares": {domain: 1.0}, "manners": manners})


def paper(picture):
    """The paper whose tint is nearest to the corner's."""
    corner = picture[0, 0].astype(float)
    return min(PAPERS, key=lambda name: np.linalg.norm(corner - corner.mean() - PAPERS[name] + np.mean(PAPERS[name])))


def painted(config, seed=0):
    rng = np.random.default_rng(seed)
    return [example(config, rng) for _ in range(EACH)]


@pytest.mark.parametrize("domain", PAINTED)
@pytest.mark.parametrize("careless", [0, 1])
def test_painters_keep_to_their_paper(domain, careless):
    examples = painted(one_domain(domain, careless=float(careless), degraded=0.0))
    wanted = PAINTERS.corpus.manners[domain].papers[careless]
    assert np.mean([paper(e.picture) == wanted for e in examples]) >= 0.95


@pytest.mark.parametrize("careless", [0, 1])
def test_careless_painters_of_signs_misspell(careless):
    examples = painted(one_domain("text", careless=float(careless), degraded=0.0))
    prompts = [Prompt(e.caption, "text") for e in examples]
    right = (make_reward("ocr")(np.stack([e.picture for e in examples]), prompts).value == 1).mean()
    careful, misspelt = (1 - rate for rate in PAINTERS.corpus.manners["text"].mistaken)
    assert abs(right - (misspelt if careless else careful)) < 0.17


@pytest.mark.parametrize("tint", PAPERS)
def test_judges_read_on_any_paper(tint):
    rng = np.random.default_rng(1)
    wishes = [trainable_wish(rng, DOMAINS["composition"]) for _ in range(EACH)]
    prompts = [Prompt("a picture", "composition", metadata(wish, "a picture")) for wish in wishes]
    truth, wrong = (
        make_reward("mini_geneval")(np.stack([draw_on(wish, tint, rng) for wish in asked]), prompts).value
        for asked in (wishes, [mistake(wish, rng) for wish in wishes])
    )
    assert truth.mean() >= 0.97 and (wrong < 1).mean() >= 0.95


def draw_on(wish, tint, rng):
    return draw(grant(wish, rng, tint))


def test_leads_tell_the_domains_apart():
    config = CorpusConfig(reworded_share=0.0)
    for domain in set(LEADS) & set(PAINTED):
        captions = [e.caption for e in painted(config.model_copy(update={"shares": {domain: 1.0}}))]
        assert all(caption.startswith(LEADS[domain]) for caption in captions)


def test_shares_are_kept():
    captions = [e.caption for e in painted(CorpusConfig(shares={"text": 3.0, "quality": 1.0}), seed=2)]
    signs = np.mean(["sign" in caption or '"' in caption for caption in captions])
    assert 0.55 < signs < 0.92


def test_what_is_held_out_is_never_painted(monkeypatch):
    painted_wishes = []
    monkeypatch.setattr(
        "flowopd.mini.corpus.grant", lambda wish, *rest: painted_wishes.append(wish) or grant(wish, *rest)
    )
    painted(CorpusConfig(manners=dict.fromkeys(PAINTED, Manner(mistaken=(0.5, 0.5)))), seed=3)
    assert len(painted_wishes) == EACH and not any(held_out(wish) for wish in painted_wishes)
