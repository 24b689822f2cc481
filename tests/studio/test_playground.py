"""The playground draws what `flowopd sample` draws, at any strength, with every checkpoint; blind trials are fair."""

import io
import json
import shutil
import threading

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from flowopd.errors import ConfigError, DataError
from flowopd.pipeline import manifest_recipe
from flowopd.prompts import Prompt
from flowopd.session import Session
from flowopd.stages.checkpoints import checkpoints
from flowopd.stages.sample import draw
from flowopd.studio import easel as easel_room
from flowopd.studio.app import create_app
from flowopd.studio.blind import PENDING, Answer, Blind, Question
from flowopd.studio.easel import BusyError, Easel, Wish
from flowopd.studio.folders import run_id
from flowopd.studio.models import HELD

PROMPT = "a red bolt"
MODELS = ["base", "teacher:composition", "teacher:quality", "merge", "student"]


@pytest.fixture(scope="module")
def easel():
    return Easel()


@pytest.fixture(scope="module")
def copy(finished, tmp_path_factory):
    """A copy of the whole run for all tests of this room, which leave its models as they are."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("playground") / "done")


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def wish(model, **parts):
    return Wish(model=model, prompt=PROMPT, seed=5, steps=2, **parts)


def sampled(run, model):
    """What `flowopd sample` draws."""
    session = Session(manifest_recipe(run), run)
    conditioning = session.encode([Prompt(PROMPT, "")])
    return draw(session, model, [PROMPT], [5], session.recipe.evaluate.sampling, conditioning)[0]


@pytest.mark.parametrize("model", MODELS)
def test_a_picture_is_the_one_that_sample_draws(easel, copy, finished, model):
    assert (pixels(easel.draw(copy, wish(model)).png) == sampled(finished, model)).all()


@pytest.mark.parametrize("model", MODELS[1:])
def test_strength_goes_from_the_base_to_the_adapter_and_beyond(easel, copy, model):
    base, whole = (pixels(easel.draw(copy, wish(name)).png) for name in ("base", model))
    none, half, more = (pixels(easel.draw(copy, wish(model, strength=s)).png) for s in (0.0, 0.5, 1.5))
    assert (none == base).all() and (whole != base).any()
    assert (half != base).any() and (half != whole).any() and (more != whole).any()
    assert (pixels(Easel().draw(copy, wish(model)).png) == whole).all()


def test_the_last_checkpoint_is_the_student(easel, copy):
    assert checkpoints(copy) == ["checkpoint:distill/2"]
    drawn = [easel.draw(copy, wish(model)).png for model in ("checkpoint:distill/2", "student", "merge")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_checkpoints_are_listed_stage_by_stage_in_order(tmp_path):
    for name in ("teachers/b/step-3", "distill/step-50", "distill/step-100", "distill/step-9", "distill/step-x"):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "state.safetensors").write_bytes(b"")
    names = ["distill/9", "distill/50", "distill/100", "teachers/b/3"]
    assert checkpoints(tmp_path) == [f"checkpoint:{name}" for name in names]


def test_a_picture_is_drawn_once(easel, copy):
    first, again = easel.draw(copy, wish("student", strength=0.8)), easel.draw(copy, wish("student", strength=0.8))
    assert first.seconds > 0 and again.seconds == 0 and first.png == again.png


def test_a_model_that_changed_is_drawn_anew(easel, done):
    before = easel.draw(done, wish("student")).png
    shutil.copytree(done / "coldstart", done / "student", dirs_exist_ok=True)
    assert easel.draw(done, wish("student")).png == easel.draw(done, wish("merge")).png != before


def test_adapters_that_were_not_asked_for_lately_are_let_go(easel, done):
    for _ in range(HELD + 3):
        file = done / "student" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes())
        easel.draw(done, wish("student"))
    (shelf,) = (shelf for (run, _), shelf in easel._shelves.items() if run == done)
    assert len(shelf.session.adapters.names) <= HELD


def test_drawing_leaves_the_run_as_it_was(easel, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "quiet")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    easel.draw(run, Wish(model="student", prompt="a prompt that nobody encoded", seed=1, steps=1))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_cannot_be_drawn_is_said(easel, copy, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no model 'nobody' here; there are: base, teacher:composition"):
        easel.draw(copy, wish("nobody"))
    with pytest.raises(ConfigError, match=r"base has no adapter whose strength could be 0.5; leave it at 1"):
        easel.draw(copy, wish("base", strength=0.5))
    with pytest.raises(ConfigError, match=r"there is no model 'checkpoint:../../x/1' here"):
        easel.draw(copy, wish("checkpoint:../../x/1"))
    with pytest.raises(ConfigError, match="holds no run"):
        easel.draw(tmp_path, wish("base"))


def test_a_damaged_checkpoint_is_named(easel, done):
    file = done / "checkpoints" / "distill" / "step-2" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    studio = TestClient(create_app([done]), base_url="http://localhost", raise_server_exceptions=False)
    answer = studio.post(f"/api/runs/{run_id(done)}/draw", json=wish("checkpoint:distill/2").model_dump())
    assert answer.status_code == 422 and "step-2 cannot be read" in answer.json()["error"]


def test_more_than_can_wait_are_refused(monkeypatch, copy):
    monkeypatch.setattr(easel_room, "WAITING", 1)
    easel = Easel()
    with easel._model:
        waiting = threading.Thread(target=easel.draw, args=(copy, wish("base")))
        waiting.start()
        while easel._waiting == 0:
            pass
        refused = []
        asking = threading.Thread(target=lambda: refused.append(_refusal(easel, copy)))
        asking.start()
        asking.join()
    waiting.join()
    assert refused == ["1 pictures wait to be drawn already; ask again in a moment"]
    assert easel.draw(copy, wish("base")).png


def _refusal(easel, run):
    try:
        easel.draw(run, wish("base"))
    except BusyError as error:
        return str(error)


@pytest.fixture
def studio(done):
    return TestClient(create_app([done]), base_url="http://localhost")


def test_models_and_pictures_over_the_web(studio, done):
    found = studio.get(f"/api/runs/{run_id(done)}/models").json()
    assert [model["name"] for model in found["models"]] == [*MODELS, "checkpoint:distill/2"]
    assert [model["adjustable"] for model in found["models"]] == [False, True, True, True, True, True]
    assert (found["steps"], found["sampler"], found["guidance"]) == (2, "ode", 1.0)
    answer = studio.post(f"/api/runs/{run_id(done)}/draw", json=wish("merge").model_dump())
    assert answer.headers["content-type"] == "image/png" and float(answer.headers["x-seconds"]) >= 0
    assert pixels(answer.content).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("strength", 1.6),
        ("strength", -0.1),
        ("steps", 0),
        ("steps", 101),
        ("seed", -1),
        ("seed", 2**53),
        ("prompt", ""),
    ],
)
def test_a_wish_out_of_bounds_is_refused_by_name(studio, done, part, value):
    answer = studio.post(f"/api/runs/{run_id(done)}/draw", json=wish("base").model_dump() | {part: value})
    assert answer.status_code == 422 and answer.json()["error"].startswith(f"{part}: ")


def test_a_blind_trial_tells_nothing_before_the_answer(studio, done):
    question = {"models": ["merge", "student"], "prompt": PROMPT, "seed": 5, "steps": 2}
    asked = studio.post(f"/api/runs/{run_id(done)}/trials", json=question)
    assert set(asked.json()) == {"trial"} and "merge" not in asked.text
    trial = asked.json()["trial"]
    shown = {side: studio.get(f"/api/trials/{trial}/{side}.png") for side in ("left", "right")}
    assert all("merge" not in str(answer.headers) for answer in shown.values())
    told = studio.post(f"/api/trials/{trial}", json={"choice": "left"}).json()
    assert {told["left"], told["right"]} == {"merge", "student"} and told["chosen"] == told["left"]
    easel = Easel()
    for side in ("left", "right"):
        assert shown[side].content == easel.draw(done, wish(told[side])).png
    (pair,) = told["pairs"]
    assert (pair["first"], pair["wins"] + pair["losses"]) == ("merge", 1)
    line = json.loads((done / "preferences.jsonl").read_text())
    assert line["chosen"] == told["left"] and line["models"] == ["merge", "student"] and line["prompt"] == PROMPT
    assert studio.get(f"/api/runs/{run_id(done)}/preferences").json() == {"pairs": [pair], "faults": 0}


def test_a_trial_is_answered_once(studio, done):
    question = {"models": ["base", "student"], "prompt": PROMPT, "steps": 1}
    trial = studio.post(f"/api/runs/{run_id(done)}/trials", json=question).json()["trial"]
    assert studio.post(f"/api/trials/{trial}", json={"choice": "tie"}).json()["chosen"] is None
    again = studio.post(f"/api/trials/{trial}", json={"choice": "left"})
    assert again.status_code == 404 and "answered already" in again.json()["error"]
    assert studio.get(f"/api/trials/{trial}/left.png").status_code == 404
    assert len((done / "preferences.jsonl").read_text().splitlines()) == 1
    assert studio.post("/api/trials/x", json={"choice": "both"}).status_code == 422


def test_both_orders_come_up(easel, copy):
    blind, question = Blind(easel), Question(models=("merge", "student"), prompt=PROMPT, seed=5, steps=2)
    left = {blind.picture(blind.ask(copy, question), 0) for _ in range(40)}
    assert len(left) == 2


def test_old_trials_are_forgotten_and_a_model_cannot_meet_itself(easel, copy):
    blind, question = Blind(easel), Question(models=("merge", "student"), prompt=PROMPT, seed=5, steps=2)
    first = blind.ask(copy, question)
    for _ in range(PENDING):
        blind.ask(copy, question)
    with pytest.raises(DataError, match="answered already, or forgotten"):
        blind.answer(first, Answer(choice="left"))
    with pytest.raises(ConfigError, match="merge cannot be held against itself"):
        blind.ask(copy, Question(models=("merge", "merge"), prompt=PROMPT))
