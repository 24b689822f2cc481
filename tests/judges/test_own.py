"""Rewards of one's own: found by path or by an entry point, run only where a recipe trusts them, and checked."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from flowopd.errors import ConfigError, DataError
from flowopd.prompts import Prompt
from flowopd.recipe import make_recipe
from flowopd.rewards import Scores, make_reward, own
from flowopd.rewards.registry import check_reward, known_rewards

PICTURES, PROMPTS = np.zeros((2, 4, 4, 3), np.uint8), [Prompt("a", ""), Prompt("b", "")]
MODULE = """
import numpy as np
from flowopd import Scores
class Half:
    def __call__(self, pictures, prompts): return np.full(len(pictures), 0.5)
class Placed:
    def __init__(self, device): self.device = device
    def __call__(self, pictures, prompts): return Scores(np.ones(len(pictures)), {"device": [self.device]})
class Short:
    def __call__(self, pictures, prompts): return [0.5]
class Far:
    def __call__(self, pictures, prompts): return [0.5, 1.5]
class Lost:
    def __call__(self, pictures, prompts): return [0.5, float("nan")]
class Torn:
    def __call__(self, pictures, prompts): raise KeyError("boom")
class Mute: pass
def whole(pictures, prompts): return np.ones(len(pictures))
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module with rewards, importable as `their_rewards`."""
    (tmp_path / "their_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "their_rewards", raising=False)
    return "their_rewards"


@pytest.fixture
def announced(module, monkeypatch):
    """Packages that announce a reward, and one by the name of ours."""
    points = [EntryPoint("half", f"{module}:Half", own.GROUP), EntryPoint("ocr", f"{module}:Mute", own.GROUP)]
    monkeypatch.setattr(own, "entry_points", lambda group: points if group == own.GROUP else [])


def test_a_class_by_its_path_scores(module):
    assert make_reward(f"{module}:Half")(PICTURES, PROMPTS).value.tolist() == [0.5, 0.5]


def test_scores_may_have_details_and_a_net_its_device(module):
    scores = make_reward(f"{module}:Placed", "meta")(PICTURES, PROMPTS)
    assert isinstance(scores, Scores) and scores.details == {"device": ["meta"]}


def test_a_reward_that_a_package_announces_goes_by_its_name(announced):
    assert make_reward("half")(PICTURES, PROMPTS).value.tolist() == [0.5, 0.5]
    assert "half" in known_rewards() and known_rewards().count("ocr") == 1


def test_a_package_cannot_take_a_name_of_ours(announced):
    assert type(make_reward("ocr")).__module__ == "flowopd.rewards.ocr"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere_at_all:Half", "module 'nowhere_at_all' cannot be imported .* PYTHONPATH"),
        ("their_rewards:Hafl", "no class 'Hafl'; did you mean 'Half'"),
        ("their_rewards:number", "no class 'number'"),
        ("their_rewards:", "no class ''"),
        ("their_rewards:whole", "asks for pictures, prompts to be made, .* a function that makes a reward"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(module, name, said):
    with pytest.raises(ConfigError, match=said):
        check_reward(name)


def test_what_cannot_be_called_is_refused(module):
    with pytest.raises(ConfigError, match="makes a Mute, which cannot be called"):
        make_reward(f"{module}:Mute")


@pytest.mark.parametrize(
    ("name", "said"), [("Short", r"gave values \(1,\) for 2 pictures"), ("Far", "1.5 for picture 1"), ("Lost", "nan")]
)
def test_an_answer_that_is_no_score_is_refused(module, name, said):
    with pytest.raises(DataError, match=said):
        make_reward(f"{module}:{name}")(PICTURES, PROMPTS)


def test_a_reward_that_fails_is_named_and_its_own_error_is_kept(module):
    with pytest.raises(DataError, match=r"reward their_rewards:Torn failed \(KeyError: 'boom'\); mend it") as caught:
        make_reward(f"{module}:Torn")(PICTURES, PROMPTS)
    assert isinstance(caught.value.__cause__, KeyError)


def metric(reward, **parts):
    metrics = {"m": {"reward": reward, "prompts": "a"}}
    return {"base": "b", "prompts": {"a": {"test": "t.txt"}}, "evaluate": {"metrics": metrics}, **parts}


def test_a_recipe_runs_code_only_if_it_says_so(module):
    with pytest.raises(ConfigError, match=r"their_rewards:Half is code.*--set 'trust=\[their_rewards:Half\]'"):
        make_recipe(metric(f"{module}:Half"))
    assert make_recipe(metric(f"{module}:Half"), [f"trust=[{module}:Half]"]).trust == (f"{module}:Half",)


def test_settings_for_an_own_reward_are_refused(module):
    recipe = make_recipe(metric(f"{module}:Half", trust=[f"{module}:Half"], judges={f"{module}:Half": {"retries": 1}}))
    with pytest.raises(ConfigError, match="takes no settings"):
        check_reward(f"{module}:Half", recipe.judges[f"{module}:Half"])
