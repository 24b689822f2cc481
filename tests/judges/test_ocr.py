"""The OCR reward is judged first: on drawn signs, on misspelt ones, and on its arithmetic."""

import builtins
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from flowopd.errors import ConfigError, DataError
from flowopd.mini.captions import caption, reworded
from flowopd.mini.draw import draw
from flowopd.mini.wishes import grant, mistake, random_wish
from flowopd.prompts import Prompt
from flowopd.rewards import make_reward
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.ocr import levenshtein, score, target
from flowopd.rewards.registry import check_reward

SIGNS = 60


@pytest.fixture(scope="module")
def judge():
    return make_reward("ocr")


@pytest.fixture(scope="module")
def signs():
    """Wishes for signs, their prompts in all phrasings, and their pictures."""
    rng = np.random.default_rng(0)
    wishes = [random_wish("text", rng) for _ in range(SIGNS)]
    words = [(caption(wish, "text", rng), reworded(wish, "text", rng))[i % 2] for i, wish in enumerate(wishes)]
    return wishes, [Prompt(text, "text") for text in words], np.stack([draw(grant(w, rng)) for w in wishes])


@pytest.fixture(scope="module")
def mixed(judge, signs):
    """Every other sign misspelt, with its scores."""
    wishes, prompts, pictures = signs
    rng = np.random.default_rng(1)
    wrong = np.stack([draw(grant(mistake(wish, rng), rng)) for wish in wishes])
    pictures = np.where((np.arange(SIGNS) % 2 == 0)[:, None, None, None], pictures, wrong)
    return pictures, judge(pictures, prompts)


def test_truth_is_read(judge, signs):
    _, prompts, pictures = signs
    scores = judge(pictures, prompts)
    assert scores.value.mean() >= 0.97
    assert scores.details["exact"].mean() >= 0.97


def test_one_wrong_letter_is_caught_and_costs_its_share(mixed, signs):
    _, scores = mixed
    wrong = scores.value[1::2]
    share = np.array([1 - 1 / len(wish.sign.text) for wish in signs[0]][1::2])
    assert (wrong < 1).mean() >= 0.95 and scores.details["exact"][1::2].mean() <= 0.05
    assert (np.abs(wrong - share) < 1e-9).mean() >= 0.9
    assert scores.value[::2].mean() >= 0.97


def test_scores_belong_to_their_pictures(judge, mixed, signs):
    pictures, scores = mixed
    order = np.random.default_rng(2).permutation(SIGNS)[:20]
    again = judge(pictures[order], [signs[1][i] for i in order])
    assert np.array_equal(again.value, scores.value[order])
    assert np.array_equal(again.details["exact"], scores.details["exact"][order])


def test_a_large_photograph_with_two_lines_is_read(judge):
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 44)
    picture = Image.fromarray(np.random.default_rng(3).integers(90, 130, (512, 512, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    pen.text((60, 150), "Fresh Bread", font=font, fill=(255, 255, 255))
    pen.text((60, 300), "baked daily", font=font, fill=(255, 230, 0))
    scores = judge(np.asarray(picture)[None], [Prompt('a shop window that reads "Fresh bread baked daily"', "text")])
    assert scores.value[0] == 1


def test_an_empty_picture_reads_as_nothing(judge):
    scores = judge(np.full((1, 64, 64, 3), 180, np.uint8), [Prompt('a sign with "ART"', "text")])
    assert scores.value[0] == 0 and scores.details["exact"][0] == 0


@pytest.mark.parametrize(
    "read, wanted, expected",
    [
        ("theart", "art", 1),
        ("arc", "art", 2 / 3),
        ("", "art", 0),
        ("xyzxyzxyz", "art", 0),
        ("at", "art", 2 / 3),
    ],
)
def test_the_score_is_one_less_the_distance_a_character(read, wanted, expected):
    assert score(read, wanted) == pytest.approx(expected)


def test_the_distance_is_levenshteins():
    assert [levenshtein(a, b) for a, b in (("kitten", "sitting"), ("", "abc"), ("abc", ""), ("ab", "ba"))] == [
        3,
        3,
        3,
        2,
    ]


def test_the_target_is_what_the_first_quotes_hold():
    assert target('a sign "Hello World" and "more"') == "helloworld"


@pytest.mark.parametrize("text", ["a red heart", 'a sign "" here', 'one " alone'])
def test_a_prompt_without_quoted_text_is_refused(judge, text):
    with pytest.raises(DataError, match=text):
        judge(np.zeros((1, 64, 64, 3), np.uint8), [Prompt(text, "text")])


def test_lengths_have_to_fit(judge, signs):
    with pytest.raises(DataError, match="3 pictures came with 2 prompts"):
        judge(signs[2][:3], signs[1][:2])


@pytest.mark.parametrize("ask", [make_reward, check_reward])
def test_a_missing_engine_is_named_before_anything_is_judged(monkeypatch, ask):
    plain_import = builtins.__import__

    def without_rapidocr(name, *args, **kwargs):
        if name.startswith("rapidocr"):
            raise ImportError(f"No module named {name!r}")
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_rapidocr)
    with pytest.raises(ConfigError, match=r"pip install rapidocr-onnxruntime, or serve it"):
        ask("ocr")


def test_a_missing_engine_matters_not_where_the_judge_is_served_elsewhere(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    check_reward("ocr", JudgeConfig(url="http://127.0.0.1:8765"))
    with pytest.raises(ConfigError, match="rapidocr"):
        check_reward("ocr")


def test_an_unknown_reward_is_met_with_the_nearest_name():
    with pytest.raises(ConfigError, match="mini_geneval"):
        make_reward("mini_genevl")
