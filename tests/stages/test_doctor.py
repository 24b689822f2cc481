"""The doctor names what is wrong with a machine, a recipe's files and its judges, and makes every other check."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from flowopd import hub, make_recipe
from flowopd.errors import CheckpointError
from flowopd.hub import located, offline, silence
from flowopd.lora_file import WEIGHTS, LoraFile, read_lora, write_lora
from flowopd.models import open_model
from flowopd.prompts import read_prompts, write_prompts
from flowopd.recipe import load_recipe
from flowopd.rewards import REWARDS, Scores, make_reward
from flowopd.stages.doctor import FAILED, OK, WARNING, doctor, machine, passed
from flowopd.stages.doctor.access import hub as hub_check
from flowopd.stages.doctor.weights import kept
from flowopd.train import TrainConfig, Trainer

GENERAL = ["versions", "device", "threads", "hub", "disk"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """The hub does not answer, without anyone waiting for it."""
    monkeypatch.setattr("flowopd.stages.doctor.silence", lambda: "no network")


@pytest.fixture
def looked(world, tmp_path):
    """The checks of the tiny world's whole recipe, changed, by name."""

    def look(*sets, change=lambda tree: None):
        tree = world.whole()
        change(tree)
        checks = doctor(make_recipe(tree, sets), tmp_path / "out")
        names = [check.name for check in checks]
        assert len(set(names)) == len(names) and all("\n" not in check.fact + check.mend for check in checks)
        assert all(check.mend for check in checks if check.state == FAILED)
        return {check.name: check for check in checks}

    return look


def failed(checks):
    return [name for name, check in checks.items() if check.state == FAILED]


def test_without_a_recipe_the_machine_alone_is_looked_at(tmp_path):
    checks = doctor(None, tmp_path / "out")
    assert [check.name for check in checks] == GENERAL and passed(checks)
    assert not (tmp_path / "out").exists()


def test_a_sound_recipe_passes_every_check(looked, world, tmp_path):
    checks = looked()
    assert failed(checks) == []
    assert list(checks) == [
        *GENERAL[:-1],
        "base",
        *(f"prompts {label}.{split}" for label in ("composition", "quality") for split in ("train", "test")),
        "routes",
        "teacher composition",
        "teacher quality",
        "adapter student",
        "judge mini_geneval",
        "judge mini_geneval on composition.test",
        "judge mini_quality",
        "judge mini_quality on quality.test",
        "judge mini_holdout",
        "judge mini_holdout on quality.test",
        "disk",
    ]
    assert not (tmp_path / "out").exists()


def test_routes_are_told(looked):
    assert looked()["routes"].fact == "composition to composition 100%, quality to quality 100%"
    mixed = looked("routes={composition: composition, quality: {composition: 1, quality: 3}}")
    assert mixed["routes"].fact == "composition to composition 100%, quality to composition 25% and quality 75%"


def test_no_weights_of_the_base_are_read(looked, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a doctor reads no weights of the base")

    monkeypatch.setattr("diffusers.SD3Transformer2DModel.from_pretrained", refuse)
    monkeypatch.setattr("diffusers.StableDiffusion3Pipeline.from_pretrained", refuse)
    assert failed(looked()) == []


@pytest.mark.parametrize("name", [path.name for path in sorted(located("package:recipes").glob("*.yaml"))])
def test_every_recipe_that_ships_is_looked_at_to_the_end(name, tmp_path):
    checks = doctor(load_recipe(located("package:recipes") / name), tmp_path)
    assert checks[-1].name == "disk"
    (hub_state,) = (check.state for check in checks if check.name == "hub")
    assert passed(checks) == (hub_state != FAILED)


WRONG = {
    "a base that is not there": (["base=./nowhere"], "base", ["./nowhere", "model_index.json"]),
    "a size without whole patches": (["resolution=63"], "base", ["63 pixels"]),
    "prompts that are not there": (
        ["prompts.quality.test=./no.txt"],
        "prompts quality.test",
        ["no.txt", "does not exist", "check the path"],
    ),
    "a label without a route": (
        ["prompts.text={train: 'package:mini/prompts/train/text.jsonl'}"],
        "routes",
        ["no route for label 'text'", "composition, quality"],
    ),
    "an unknown teacher in a route": (["routes.quality=qualty"], "routes", ["'qualty'", "did you mean 'quality'"]),
    "a label without training prompts": (
        ["prompts.quality.train=null"],
        "routes",
        ["no train prompts for label 'quality'", "add prompts.quality.train"],
    ),
    "an unknown anchor": (["distill.anchor.model=nobody"], "routes", ["'nobody'", "base, composition, quality"]),
    "a teacher that is not there": (
        ["teachers.quality.adapter=./nobody"],
        "teacher quality",
        ["no LoRA adapter at nobody"],
    ),
    "a teacher on the hub": (["teachers.quality.adapter=some/body"], "teacher quality", ["some/body", "out of reach"]),
    "targets that the base lacks": (["distill.adapter.targets=[to_z]"], "adapter student", ["to_z"]),
    "an unknown reward": (
        ["evaluate.metrics.quality.reward=mini_qualty"],
        "judge mini_qualty",
        ["did you mean 'mini_quality'"],
    ),
    "prompts that a judge cannot use": (
        ["evaluate.metrics.quality.reward=ocr"],
        "judge ocr on quality.test",
        ["no text between double quotes"],
    ),
    "prompts that the evaluation lacks": (
        ["evaluate.split=unseen"],
        "judge mini_quality on quality.unseen",
        ["add prompts.quality.unseen"],
    ),
    "a judge on the hub": (
        ["evaluate.metrics.quality.reward=clipscore"],
        "judge clipscore",
        ["openai/clip-vit-large-patch14"],
    ),
    "a device that is not there": (["device=cuda:9"], "device", ["cuda:9 does not compute"]),
    "a device that is none": (["device=abacus"], "device", ["abacus does not compute"]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_named_and_the_other_checks_are_made(looked, fault):
    sets, name, fragments = WRONG[fault]
    checks = looked(*sets)
    assert checks[name].state == FAILED
    said = f"{checks[name].fact}; {checks[name].mend}"
    assert [fragment for fragment in fragments if fragment not in said] == [], said
    assert {*GENERAL, "base", "routes", "teacher composition", "judge mini_geneval"} <= checks.keys()
    assert checks["judge mini_geneval"].state == OK


def test_without_a_base_the_rest_is_looked_at_as_far_as_it_goes(looked):
    checks = looked("base=./nowhere")
    assert failed(checks) == ["base"]
    assert checks["teacher quality"].state == WARNING and "not tried on the base" in checks["teacher quality"].fact


def without_effect(lora):
    return {name: replace(factors, b=torch.zeros_like(factors.b)) for name, factors in lora.modules.items()}


def of_another_width(lora):
    return {name: replace(factors, a=torch.cat([factors.a] * 2, 1)) for name, factors in lora.modules.items()}


def of_other_modules(lora):
    return {f"other.{name}": factors for name, factors in lora.modules.items()}


@pytest.mark.parametrize(
    "spoil, said",
    [
        (without_effect, "every lora_B of quality is zero"),
        (of_another_width, "quality adapts proj_out as (24, 64), the base has (24, 32)"),
        (of_other_modules, "no linear module of this base"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(looked, world, tmp_path, spoil, said):
    lora = read_lora(world.experts / "quality")
    write_lora(tmp_path / "spoilt", LoraFile({}, spoil(lora)))
    checks = looked(f"teachers.quality.adapter={tmp_path / 'spoilt'}")
    assert failed(checks) == ["teacher quality"] and said in checks["teacher quality"].fact


def test_a_truncated_teacher_is_named(looked, world, tmp_path):
    file = shutil.copytree(world.experts / "quality", tmp_path / "cut") / WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])
    checks = looked(f"teachers.quality.adapter={tmp_path / 'cut'}")
    assert failed(checks) == ["teacher quality"] and "damaged" in checks["teacher quality"].fact


def test_a_whole_transformer_is_held_against_the_base_by_its_config(looked, world, tmp_path):
    def whole(folder):
        return lambda tree: tree["teachers"].update(quality={"transformer": str(folder)})

    checks = looked(change=whole(world.base))
    assert checks["teacher quality"].state == OK and "a whole transformer" in checks["teacher quality"].fact
    other = shutil.copytree(world.base / "transformer", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"joint_attention_dim": 7}))
    checks = looked(change=whole(other))
    assert failed(checks) == ["teacher quality"] and "joint_attention_dim 7" in checks["teacher quality"].fact
    (other / "config.json").write_text(json.dumps(config))
    next(other.glob("*.safetensors")).write_bytes(b"cut")
    checks = looked(change=whole(other))
    assert failed(checks) == ["teacher quality"] and "cut short" in checks["teacher quality"].fact


def test_two_teachers_of_one_file_are_named(looked, world, tmp_path):
    shutil.copytree(world.experts / "composition", tmp_path / "twin")
    checks = looked(f"teachers.quality.adapter={tmp_path / 'twin'}")
    assert failed(checks) == ["teachers"]
    assert checks["teachers"].fact == "composition and quality are the same file"


def test_a_teacher_to_be_trained_is_checked_by_its_reward_and_its_shape(looked):
    def train(tree):
        tree["teachers"]["quality"] = {"train": {"reward": "mini_quality", "prompts": "quality", "detail": "qq"}}

    checks = looked(change=train)
    assert "to be trained on mini_quality" in checks["teacher quality"].fact
    assert checks["adapter quality"].state == OK
    assert failed(checks) == ["judge mini_quality on quality.train"]
    assert "no detail 'qq'" in checks["judge mini_quality on quality.train"].fact
    assert checks["judge mini_quality on quality.train"].mend == "take one of: q"


def test_repeated_and_long_prompts_are_warnings(looked, world, tmp_path):
    prompts = read_prompts(world.prompts / "train" / "quality.jsonl", "quality")
    long = replace(prompts[0], text="a " * 1001 + "b")
    write_prompts(tmp_path / "many.jsonl", [*prompts, *prompts[:2], long])
    checks = looked(f"prompts.quality.train={tmp_path / 'many.jsonl'}")
    found = checks["prompts quality.train"]
    assert failed(checks) == [] and found.state == WARNING
    assert found.fact.startswith(f"{len(prompts) + 3} prompts, 2 of them repeated, the longest of 2003 characters")
    assert "drop what is repeated" in found.mend and "shorten the 1 that the text encoders cut" in found.mend


def test_other_wordings_are_counted_measured_and_encoded(looked, world, tmp_path):
    prompts = read_prompts(world.prompts / "train" / "quality.jsonl", "quality")
    plain = looked()
    write_prompts(
        tmp_path / "w.jsonl", [replace(p, metadata={"wordings": [f"{i}", "b " * 999]}) for i, p in enumerate(prompts)]
    )
    checks = looked(f"prompts.quality.train={tmp_path / 'w.jsonl'}")
    found = checks["prompts quality.train"]
    assert found.fact.endswith(f"{2 * len(prompts)} other wordings")
    assert f"shorten the {len(prompts)} that the text encoders cut" in found.mend
    counts = [int(re.search(r"(\d+) encoded prompts", checks["disk"].fact)[1]) for checks in (plain, checks)]
    assert counts[1] == counts[0] + len(prompts) + 1


def test_prompts_are_cut_only_beyond_what_t5_reads_and_without_it_clip(world):
    """Of the tiny world both read as many tokens, one of which ends a prompt; CLIP has one more, which begins it."""
    model = open_model(str(world.base))
    words = [" ".join(["red"] * n) for n in range(20)]
    read = model.source.load(AutoTokenizer, "tokenizer_3").model_max_length - 1
    assert model.cut(words) == words[read + 1 :]
    assert open_model(str(world.base), t5=False).cut(words) == words[read:]


def test_a_prompt_that_goes_elsewhere_by_its_own_label_needs_a_route(looked, world, tmp_path):
    prompts = read_prompts(world.prompts / "train" / "quality.jsonl", "quality")
    write_prompts(tmp_path / "stray.jsonl", [*prompts, replace(prompts[0], label="signs")])
    checks = looked(f"prompts.quality.train={tmp_path / 'stray.jsonl'}")
    assert failed(checks) == ["routes"] and "no route for label 'signs'" in checks["routes"].fact


def scored(change):
    """A judge as it may come: the real one, its values changed."""

    def build(device, config):
        real = make_reward("mini_holdout")
        return lambda pictures, prompts: Scores(change(real(pictures, prompts).value))

    return build


def unloadable(error):
    def build(device, config):
        raise error

    return build


FAULTY = {
    "zeros": (scored(lambda s: 0 * s), "gave 0 to every golden picture"),
    "shuffled": (scored(lambda s: np.roll(s, 1)), "out of order"),
    "not a number": (scored(lambda s: s * np.nan), "gave nan to golden picture 0"),
    "too few": (scored(lambda s: s[:-1]), "gave 3 scores"),
    "out of range": (scored(lambda s: 100 * s), "outside 0..1"),
    "upside down": (scored(lambda s: 1 - s), "gave the right picture"),
    "of a library that is missing": (
        unloadable(ImportError("no module named xyz")),
        "ImportError: no module named xyz",
    ),
    "of weights that do not fit": (unloadable(RuntimeError("size mismatch\nfor a")), "RuntimeError: size mismatch"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_judge_is_found_and_named(looked, monkeypatch, fault):
    build, said = FAULTY[fault]
    monkeypatch.setitem(REWARDS, "mini_quality", SimpleNamespace(check=lambda *_: None, build=build))
    checks = looked()
    assert failed(checks)[0] == "judge mini_quality" and said in checks["judge mini_quality"].fact
    assert checks["judge mini_holdout"].state == OK


@pytest.mark.parametrize("spoil", ["pointer", "cut", "gone", "folder"])
def test_weights_of_the_base_that_are_not_whole_are_named(looked, world, tmp_path, spoil):
    base = shutil.copytree(world.base, tmp_path / "base")
    file = next((base / "vae").glob("*.safetensors"))
    if spoil == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif spoil == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif spoil == "gone":
        file.unlink()
    else:
        shutil.rmtree(base / "vae")
    checks = looked(f"base={base}")
    assert (
        failed(checks) == ["base"] and "vae" in checks["base"].fact and "fetch the model again" in checks["base"].mend
    )


def test_disk_is_held_against_conditions_and_checkpoints(looked, world, monkeypatch, tmp_path):
    checks = looked("evaluate.limit=null")
    prompts = {
        p.text
        for split in ("train", "test")
        for file in (world.prompts / split).iterdir()
        for p in read_prompts(file, "")
    }
    assert f"of {1 + len(prompts)} encoded prompts" in checks["disk"].fact
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda place: full)
    checks = looked()
    assert failed(checks) == ["disk"] and "--out" in checks["disk"].mend


def test_room_for_checkpoints_is_what_a_trainer_keeps(world, tmp_path, monkeypatch):
    from flowopd.checkpoint import Checkpoints
    from flowopd.stages.doctor import weights

    weight = torch.nn.Parameter(torch.ones(1000))
    trainer = Trainer({"w": weight}, TrainConfig(updates=1))
    weight.sum().backward()
    trainer.step(0)
    Checkpoints(tmp_path, {}).save(1, trainer._state())
    held = sum(tensor.numel() for tensor in load_file(tmp_path / "step-1" / "state.safetensors").values())
    assert held // weight.numel() == weights.STATES


@pytest.mark.parametrize(
    ("optim", "count"),
    [
        ({}, 3),
        ({"updates": 10}, 2),
        ({"updates": 60, "checkpoint_every": 5, "keep": None}, 13),
        ({"updates": 61, "checkpoint_every": 5, "keep": None}, 14),
        ({"best": {"metric": "gap"}}, 4),
    ],
)
def test_room_is_made_for_as_many_checkpoints_as_stay(optim, count):
    assert kept(TrainConfig(**optim)) == count


class TestHub:
    """What is asked of the hub, and what its silence means."""

    @pytest.fixture
    def asked(self, monkeypatch):
        """The ids whose access was asked for; those that begin with `gated` are not given."""
        asked = []

        def refuse(name):
            asked.append(name)
            return f"{name} is gated" if name.startswith("gated") else None

        monkeypatch.setattr("flowopd.stages.doctor.access.refusal", refuse)
        return asked

    def test_silence_is_a_warning_unless_something_is_missing(self):
        assert hub_check("no network", []).state == WARNING
        lacking = hub_check("no network", ["some/base"])
        assert lacking.state == FAILED and "no network" in lacking.fact and "some/base" in lacking.fact

    def test_what_is_missing_is_asked_for_where_the_hub_answers(self, asked):
        assert hub_check(None, []).state == OK and asked == []
        assert hub_check(None, ["some/base"]).state == OK and asked == ["some/base"]
        gated = hub_check(None, ["some/base", "gated/base"])
        assert gated.state == FAILED and gated.fact == "gated/base is gated" and "log in" in gated.mend

    def test_a_recipe_misses_what_no_cache_holds(self, looked, world):
        assert looked()["hub"].state == WARNING
        named = looked("base=some/base", "teachers.quality.adapter=some/expert", "judges.ocr.model=some/judge")["hub"]
        assert named.state == FAILED and named.fact.endswith("some/base, some/expert, some/judge")

    def test_the_hub_is_not_asked_after_it_was_silent(self, looked, monkeypatch):
        asked = []
        monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: asked.append(host))
        looked("base=some/base", "teachers.quality.adapter=some/expert", "evaluate.metrics.quality.reward=clipscore")
        assert asked == []

    def test_offline_ends_where_it_ends(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        with pytest.raises(ValueError), offline("nobody there"):
            assert silence() == "nobody there"
            raise ValueError
        assert not hub.constants.HF_HUB_OFFLINE and silence() != "nobody there"

    def test_a_hub_that_is_not_there_is_silent_and_says_why(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert silence().startswith("http://127.0.0.1:9: ")
        assert hub.refusal("some/base").startswith("some/base: ")

    def test_a_model_of_a_hub_that_is_not_there_is_not_blamed_on_its_files(self, monkeypatch):
        class Model:
            @staticmethod
            def from_pretrained(name):
                raise OSError(f"no {name}")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(CheckpointError, match=r"no some/base; the hub is out of reach \(HF_HUB_OFFLINE is set\)"):
            hub.fetched(Model, "some/base")
        with pytest.raises(CheckpointError, match="check its files"):
            hub.fetched(Model, "./some/folder")


class TestMachine:
    """Verdicts on figures that this machine need not have."""

    def test_a_library_below_its_bound_or_missing_is_named_with_a_command(self):
        found = machine._versions({"python": ">=3.9", "torch": ">=99", "numpy": ">=1", "nolibrary": ">=2"})
        assert found.state == FAILED and "torch" in found.fact and "nolibrary is missing" in found.fact
        assert found.mend == "pip install -U 'torch>=99' 'nolibrary>=2'" and "numpy" not in found.fact
        assert machine._versions({"python": "<3"}).mend == "use another Python"

    def test_versions_are_told(self):
        found = machine.versions()
        assert found.state == OK and all(name in found.fact for name in ("python", *machine.SHOWN))

    @pytest.mark.parametrize(
        "each, processes, load, state, mend",
        [
            (8, 1, 0.0, OK, ""),
            (1, 8, 0.0, OK, ""),
            (16, 1, 0.0, WARNING, "OMP_NUM_THREADS=8"),
            (8, 4, 0.0, WARNING, "OMP_NUM_THREADS=2"),
            (2, 16, 0.0, WARNING, "OMP_NUM_THREADS=1"),
            (8, 1, 9.0, WARNING, "wait for it, or export OMP_NUM_THREADS=1"),
            (1, 1, 12.0, WARNING, "wait for it"),
            (1, 1, 9.0, OK, ""),
        ],
    )
    def test_more_threads_than_cores_are_a_warning(self, each, processes, load, state, mend):
        found = machine._threads(each, processes, 8.0, load)
        assert found.state == state and found.mend.endswith(mend)

    @pytest.mark.parametrize("text, cores", [("200000 100000", 2.0), ("max 100000", float("inf")), ("?", float("inf"))])
    def test_the_quota_of_a_container_counts(self, tmp_path, text, cores):
        (tmp_path / "cpu.max").write_text(text)
        assert machine._quota(tmp_path / "cpu.max") == cores
        assert machine._quota(tmp_path / "none") == float("inf")

    def test_half_precision_on_a_processor_is_a_warning(self):
        assert machine.device("cpu").state == OK
        slow = machine.device("cpu", "bfloat16")
        assert slow.state == WARNING and "float32" in slow.mend

    def test_a_nearly_full_disk_is_a_warning(self, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=10 * machine.GIB)
        monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
        assert machine.disk(tmp_path / "a" / "b").state == OK
        assert machine.disk(Path("runs"), {"pictures": 9 * machine.GIB}).state == WARNING
        assert machine.disk(Path("runs"), {"pictures": 5 * machine.GIB, "files": 6 * machine.GIB}).state == FAILED
