"""Folders for other benchmarks: their tools find every picture, its prompt and its number, and drawing goes on."""

import json
import re
from datetime import date

import numpy as np
import pytest
from PIL import Image

from flowopd.errors import ConfigError, DataError
from flowopd.prompts import Prompt, read_prompts
from flowopd.stages import layouts
from flowopd.stages.layouts import RECORD, compbench, draw_layout, geneval
from flowopd.stages.sample import draw_pictures

QUICK = {"metrics": {}, "sampling": {"steps": 2}, "micro_batch": 4, "seed": 3}
META = {"tag": "counting", "include": [{"class": "ring", "count": 2}]}


@pytest.fixture
def session(world, tmp_path):
    return world.session(tmp_path / "out", evaluate=QUICK)


@pytest.fixture
def prompts(world):
    return read_prompts(world.prompts / "test" / "composition.jsonl", "x")[:5]


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def pixels(*files):
    return np.stack([np.asarray(Image.open(file)) for file in files])


@pytest.fixture
def batches(monkeypatch):
    """The rows that were drawn together."""
    drawn = []

    def draw(session, model, prompts, config, conditioning, rows):
        drawn.append(rows)
        return draw_pictures(session, model, prompts, config, conditioning, rows)

    monkeypatch.setattr(layouts, "draw_pictures", draw)
    return drawn


def as_compbench_reads(folder):
    """(number, prompt) of every picture, sorted as its tools sort them."""
    names = sorted((path.name for path in (folder / "samples").iterdir()), key=lambda n: int(re.split("[_.]", n)[-2]))
    return [(int(name.split("_")[-1].split(".")[0]), name.split("_")[0]) for name in names]


def as_geneval_reads(folder):
    """(metadata, picture files) of every folder that its tool opens."""
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()):
        pictures = [path for path in (below / "samples").iterdir() if re.match(r"\d+\.png", path.name)]
        yield json.loads((below / "metadata.jsonl").read_text()), sorted(pictures)


def test_compbench_finds_every_picture_and_its_prompt(session, prompts, tmp_path):
    draw_layout(session, "base", prompts, "compbench", 2, None, tmp_path / "to")
    found = as_compbench_reads(tmp_path / "to")
    assert found == [(i, prompts[i // 2].text) for i in range(10)]
    assert len(list((tmp_path / "to" / "samples").glob("*_??????.png"))) == 10


def test_geneval_finds_every_picture_and_its_metadata(session, prompts, tmp_path, world):
    draw_layout(session, "base", prompts, "geneval", 3, None, tmp_path / "to")
    lines = [json.loads(line) for line in (world.prompts / "test" / "composition.jsonl").read_text().splitlines()]
    found = list(as_geneval_reads(tmp_path / "to"))
    assert [metadata for metadata, _ in found] == lines[:5]
    assert [[file.name for file in files] for _, files in found] == [["0000.png", "0001.png", "0002.png"]] * 5
    assert {path.name for path in (tmp_path / "to").iterdir()} == {RECORD, *(f"{i:05}" for i in range(5))}


@pytest.mark.parametrize("seed", [None, 8])
def test_the_pictures_are_the_evaluations(session, prompts, tmp_path, seed):
    draw_layout(session, "teacher:quality", prompts, "geneval", 2, seed, tmp_path / "to")
    own = {"images_per_prompt": 2, "seed": 3 if seed is None else seed}
    config = session.recipe.evaluate.model_copy(update=own)
    expected = draw_pictures(session, "teacher:quality", prompts, config, session.encode(prompts))
    files = [file for _, files in as_geneval_reads(tmp_path / "to") for file in files]
    assert np.array_equal(pixels(*files), expected)
    assert len({picture.tobytes() for picture in expected}) == 10


def test_no_more_than_a_micro_batch_is_held(session, prompts, tmp_path, batches):
    draw_layout(session, "base", prompts, "geneval", 2, None, tmp_path / "to")
    assert batches == [slice(0, 4), slice(4, 8), slice(8, 10)]


def test_a_drawing_goes_on_with_what_it_lacks(session, prompts, tmp_path, batches):
    to = tmp_path / "to"
    draw_layout(session, "base", prompts, "compbench", 2, None, to)
    whole = contents(to)
    for number in (5, 9):
        next((to / "samples").glob(f"*_{number:06}.png")).unlink()
    kept = {path: path.stat().st_mtime_ns for path in (to / "samples").iterdir()}
    batches.clear()
    draw_layout(session, "base", prompts, "compbench", 2, None, to)
    assert contents(to) == whole and batches == [slice(4, 8), slice(8, 10)]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_whole_drawing_is_left_alone(session, prompts, tmp_path, batches):
    draw_layout(session, "base", prompts, "geneval", 1, None, tmp_path / "to")
    whole = contents(tmp_path / "to")
    batches.clear()
    draw_layout(session, "base", prompts, "geneval", 1, None, tmp_path / "to")
    assert contents(tmp_path / "to") == whole and batches == []


def test_a_drawing_that_was_stopped_at_its_beginning_goes_on(session, prompts, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(layouts, "replace_picture", stop)
        draw_layout(session, "base", prompts, "geneval", 1, None, tmp_path / "to")
    draw_layout(session, "base", prompts, "geneval", 1, None, tmp_path / "to")
    assert sum(len(files) for _, files in as_geneval_reads(tmp_path / "to")) == 5


def test_processes_draw_their_parts_of_one_folder(session, prompts, tmp_path, monkeypatch):
    draw_layout(session, "base", prompts, "geneval", 2, None, tmp_path / "one")
    for rows in (slice(8, 10), slice(0, 8)):
        monkeypatch.setattr(layouts, "own_rows", lambda n, unit, rows=rows: rows)
        draw_layout(session, "base", prompts, "geneval", 2, None, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 4}, "another seed"),
        ({"copies": 2}, "another images_per_prompt"),
        ({"model": "teacher:quality"}, "another model, weights"),
        ({"layout": "compbench"}, "another layout"),
        ({"fewer": True}, "another prompts"),
        ({"steps": 3}, "another sampling"),
        ({"guidance": 2.0}, "another sampling, guidance"),
    ],
    ids=lambda change: str(change),
)
def test_pictures_of_another_kind_are_not_mixed_in(world, prompts, tmp_path, change, told):
    session = world.session(tmp_path / "out", evaluate=QUICK)
    draw_layout(session, "base", prompts, "geneval", 1, None, tmp_path / "to")
    whole = contents(tmp_path / "to")
    sampling = {"steps": 2} | {key: change[key] for key in ("steps", "guidance") if key in change}
    other = world.session(tmp_path / "out", evaluate={**QUICK, "sampling": sampling})
    asked = (change.get("model", "base"), prompts[:4] if "fewer" in change else prompts)
    with pytest.raises(ConfigError, match=rf"{RECORD} is of pictures with {told}; choose another folder"):
        draw_layout(
            other, *asked, change.get("layout", "geneval"), change.get("copies", 1), change.get("seed"), tmp_path / "to"
        )
    assert contents(tmp_path / "to") == whole


@pytest.mark.parametrize("there", ["samples/a ring_000000.png", "notes.txt", "00000/metadata.jsonl"])
def test_what_is_there_is_named_and_stays(session, prompts, tmp_path, there):
    file = tmp_path / "to" / there
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ConfigError, match=f"to/{there.split('/')[0]} is in the way; choose an empty folder"):
        draw_layout(session, "base", prompts, "geneval", 1, None, tmp_path / "to")
    assert contents(tmp_path / "to") == {file.relative_to(tmp_path / "to"): b"mine"}


def test_a_file_in_place_of_the_folder_is_named(session, prompts, tmp_path):
    (tmp_path / "to").write_text("mine")
    with pytest.raises(ConfigError, match="to is in the way"):
        draw_layout(session, "base", prompts, "geneval", 1, None, tmp_path / "to")


def test_a_damaged_record_is_told(session, prompts, tmp_path):
    draw_layout(session, "base", prompts, "geneval", 1, None, tmp_path / "to")
    (tmp_path / "to" / RECORD).write_text("{")
    with pytest.raises(ConfigError, match=f"{RECORD} is not JSON"):
        draw_layout(session, "base", prompts, "geneval", 1, None, tmp_path / "to")


@pytest.mark.parametrize("text", ["a_b", "a/b", "a\tb", "a\0b"])
def test_a_prompt_that_no_file_name_holds_is_told(text):
    with pytest.raises(DataError, match="which T2I-CompBench's file names cannot; reword it") as told:
        compbench([Prompt("a ring", ""), Prompt(text, "")], 2)
    assert repr(text) in str(told.value)


def test_a_prompt_that_is_too_long_for_a_file_name_is_told():
    assert len(compbench([Prompt("x" * 244, "")], 1).pictures[0].name.encode()) == 255
    for text in ("x" * 245, "é" * 123):
        with pytest.raises(DataError, match=r"makes a file name of \d+ bytes, over 255; shorten it"):
            compbench([Prompt(text, "")], 1)


@pytest.mark.parametrize("lacking", ["tag", "include"])
def test_a_prompt_that_geneval_cannot_judge_is_told(lacking):
    metadata = {key: value for key, value in META.items() if key != lacking}
    with pytest.raises(DataError, match=f"'two rings' has no '{lacking}'; give GenEval's evaluation_metadata.jsonl"):
        geneval([Prompt("a ring", "", META), Prompt("two rings", "", metadata)], 1)


def test_metadata_of_a_table_is_written_as_far_as_json_goes():
    (line,) = geneval([Prompt("a ring", "", {**META, "made": date(2026, 1, 2)})], 1).texts.values()
    assert json.loads(line) == {**META, "made": "2026-01-02", "prompt": "a ring"}


def test_the_same_prompt_twice_has_two_places():
    twice = [Prompt("a ring", "", META)] * 2
    for layout in (compbench, geneval):
        assert len(set(layout(twice, 2).pictures)) == 4


def test_an_unknown_layout_or_model_is_told_and_nothing_made(session, prompts, tmp_path):
    with pytest.raises(ConfigError, match="no layout 'genevl'; did you mean 'geneval'"):
        draw_layout(session, "base", prompts, "genevl", 1, None, tmp_path / "to")
    with pytest.raises(ConfigError, match="no model 'student' here"):
        draw_layout(session, "student", prompts, "geneval", 1, None, tmp_path / "to")
    assert not (tmp_path / "to").exists()
