"""The mini world's prompt files keep what is trained on apart from what is asked later."""

import re

import numpy as np
import pytest

from flowopd.hub import located
from flowopd.mini.splits import SKILLS, write_splits
from flowopd.mini.wishes import Part, Wish, held_out
from flowopd.mini.world import COLOURS, KINDS, NUMBERS, PLURALS, Sign
from flowopd.models import open_model
from flowopd.prompts import read_prompts

LABELS = ("composition", "preference", "quality", "text")
SPLITS = ("train", "test", "unseen", "rewritten")


def prompts(split, label):
    return read_prompts(located(f"package:mini/prompts/{split}/{label}.jsonl"), label)


def quoted(prompt):
    return re.findall(r'"([^"]*)"', prompt.text)


def wish(prompt):
    """What a prompt asks for, as far as it matters for what is held out."""
    if prompt.metadata["tag"] == "text":
        return Wish("text", sign=Sign(quoted(prompt)[0], "red"))
    parts = tuple(Part(part["class"], part["count"], part.get("color")) for part in prompt.metadata["include"])
    return Wish(prompt.metadata["tag"], parts)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_file_reads(split, label):
    read = prompts(split, label)
    assert {prompt.label for prompt in read} == {label}
    assert all({"tag", "include"} <= prompt.metadata.keys() for prompt in read)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("split", ["train", "test", "rewritten"])
def test_a_split_has_enough_prompts_for_an_interval(split, label):
    assert len(prompts(split, label)) >= 300


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("split", ["train", "test", "unseen"])
def test_no_prompt_stands_twice_in_a_file(split, label):
    texts = [prompt.text for prompt in prompts(split, label)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("split", ["test", "unseen", "rewritten"])
def test_no_prompt_of_another_split_is_trained_on(split, label):
    trained = {prompt.text for other in LABELS for prompt in prompts("train", other)}
    assert not trained & {prompt.text for prompt in prompts(split, label)}


@pytest.mark.parametrize("label", LABELS)
def test_unseen_wishes_are_held_out_and_no_other_is(label):
    assert all(held_out(wish(prompt)) for prompt in prompts("unseen", label))
    assert not any(held_out(wish(prompt)) for split in ("train", "test") for prompt in prompts(split, label))


@pytest.mark.parametrize("label", LABELS)
def test_rewritten_asks_for_the_same_in_other_words(label):
    pairs = list(zip(prompts("test", label), prompts("rewritten", label), strict=True))
    for plain, rewritten in pairs:
        for key in ("tag", "include", "exclude"):
            assert plain.metadata.get(key) == rewritten.metadata.get(key)
        assert quoted(plain) == quoted(rewritten)
        assert plain.text != rewritten.text


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("split", SPLITS)
def test_signs_are_quoted_once_and_only_on_signs(split, label):
    for prompt in prompts(split, label):
        assert len(quoted(prompt)) == (prompt.metadata["tag"] == "text")


def test_the_files_are_those_that_the_command_writes(tmp_path):
    write_splits(tmp_path)
    shipped = located("package:mini/prompts")
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl")}
    assert made == {path.relative_to(shipped) for path in shipped.rglob("*.jsonl")} and len(made) == 25
    assert all((tmp_path / name).read_text() == (shipped / name).read_text() for name in made)


def test_every_training_prompt_of_composition_belongs_to_one_skill():
    skilled = sorted(prompt.text for skill in SKILLS for prompt in prompts("train", skill))
    assert skilled == sorted(prompt.text for prompt in prompts("train", "composition"))
    assert {prompt.label for skill in SKILLS for prompt in prompts("train", skill)} == set(SKILLS)


@pytest.mark.parametrize("label", LABELS)
def test_training_prompts_have_other_wordings_in_two_of_the_three_sentences_of_the_rewritten_ones(label):
    worded = read_prompts(located(f"package:mini/prompts/wordings/{label}.jsonl"), label)
    assert worded == prompts("train", label)
    assert np.mean([bool(prompt.wordings) for prompt in worded]) > 0.8
    assert not any(prompt.text in prompt.wordings for prompt in worded)
    assert all(quoted(prompt) == re.findall(r'"([^"]*)"', text) for prompt in worded for text in prompt.wordings)
    texts = {text for prompt in worded for text in prompt.wordings}
    assert not texts & {prompt.text for prompt in prompts("rewritten", label)}
    told = {skeleton(text) for text in texts}
    new = np.mean([skeleton(prompt.text) not in told for prompt in prompts("rewritten", label)])
    assert 0.2 < new < 0.5


def skeleton(text):
    """A sentence without its nouns, colours, numbers and letters."""
    quotes = re.sub(r'"[^"]*"', "QUOTE", text)
    kinds = "|".join([*PLURALS.values(), *KINDS])
    plain = re.sub(rf"\b(an?|{'|'.join(NUMBERS.values())}|{'|'.join(COLOURS)})\b ?", "", quotes)
    return re.sub(rf"\b({kinds})\b", "THING", plain)


def test_no_wording_is_longer_than_the_base_reads():
    model = open_model("package:mini/base")
    texts = [
        text
        for label in LABELS
        for prompt in read_prompts(located(f"package:mini/prompts/wordings/{label}.jsonl"), label)
        for text in prompt.wordings
    ]
    assert model.cut(texts) == []
