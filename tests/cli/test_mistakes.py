"""A user's mistake ends with code 2 and one line that names it and the mend; what was there stays as it was."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowopd.lora_file import WEIGHTS

TWO = "--teacher composition={composition} --prompts composition={prompts}/train/composition.jsonl"
DISTILL = f"distill --base {{base}} {TWO} --out {{out}}"


def with_expert(name):
    return (
        f"distill --base {{base}} {TWO} --teacher quality={{{name}}} "
        "--prompts quality={prompts}/train/quality.jsonl --out {out}"
    )


MISTAKES = {
    "a base that is not there": (
        f"distill --base {{here}}/nowhere {TWO} --out {{out}}",
        ["{here}/nowhere", "model_index.json", "give"],
    ),
    "a folder that is no base": (f"distill --base {{empty}} {TWO} --out {{out}}", ["{empty}", "model_index.json"]),
    "an expert that is not there": (with_expert("nobody"), ["no LoRA adapter at {nobody}", "give"]),
    "a truncated adapter": (with_expert("truncated"), ["{truncated}", "damaged", "again"]),
    "an adapter that is cut in its header": (with_expert("beheaded"), ["{beheaded}", "damaged", "again"]),
    "an adapter of a wider base": (with_expert("wide"), ["quality", "adapter for another base"]),
    "an adapter of unknown modules": (with_expert("strange"), ["quality", "no linear module of this base"]),
    "an adapter that lacks one tensor": (with_expert("halved"), ["{halved}", "only one of lora_A and lora_B"]),
    "an adapter that lacks a module": (with_expert("holed"), ["quality", "lacks the weights of 1 modules"]),
    "no prompts to learn on": (
        "run {recipe} --out {out} --set prompts={{}} --set evaluate=null",
        ["no label has prompts to learn on (labels: none)", "add prompts.LABEL.train"],
    ),
    "weights of other steps than there are": (
        "run {recipe} --out {out} --set distill.weighting=[2,1,1,1]",
        ["4 custom weights for 2 steps; give one a step"],
    ),
    "an unknown reward of an expert": (
        "teacher --name look --reward mini_qualty --base {base} --prompts a={prompts}/train/quality.jsonl --out {out}",
        ["'mini_qualty'", "did you mean 'mini_quality'"],
    ),
    "an unknown reward in a recipe": (
        "run {recipe} --out {out} --set evaluate.metrics.quality.reward=mini_qualty",
        ["'mini_qualty'", "did you mean 'mini_quality'"],
    ),
    "a metric's owner that is no teacher": (
        "run {recipe} --out {out} --set evaluate.metrics.quality.owner=nobody",
        ["evaluate.metrics.quality.owner 'nobody'", "composition, quality", "leave it out"],
    ),
    "test prompts that their judge cannot use": (
        "run {recipe} --out {out} --set evaluate.metrics.quality.reward=ocr",
        ["prompts.quality.test, which ocr judges", "between double quotes", "write it as in"],
    ),
    "a record whose own label has no route": (
        "run {recipe} --out {out} --set prompts.quality.train={stray}",
        [
            "prompts.quality.train, 'a zebra': no route for label 'zebras'",
            "mend the record's label, or add it to `routes`",
        ],
    ),
    "a run to look at where there is none": (
        "report --out {empty}",
        ["{empty} holds no results.json", "give the folder of a run (--out)"],
    ),
    "a recipe with nothing to do": (
        "run {recipe} --out {out} --set distill=null --set coldstart=null --set evaluate=null",
        ["nothing to do", "add distill"],
    ),
    "a judge whose code is not trusted": (
        "run {recipe} --out {out} --set evaluate.metrics.quality.reward=deqa",
        ["deqa runs code", "judges.deqa.trust_remote_code=true"],
    ),
    "a judge whose server is not there": (
        "run {recipe} --out {out} --set judges.mini_quality.url=http://localhost:1",
        ["judges.mini_quality: no server at http://localhost:1/health", "start it, or mend its url"],
    ),
    "a url of a judge that no stage asks for": (
        "run {recipe} --out {out} --set judges.mini_qualty.url=http://localhost:1",
        ["'mini_qualty'", "did you mean 'mini_quality'"],
    ),
    "a model of a judge that its server has": (
        "run {recipe} --out {out} --set judges.mini_quality.url=http://localhost:1 --set judges.mini_quality.model=x",
        ["mini_quality takes no 'model' beside its url", "leave it out of judges"],
    ),
    "a server for everybody without a token": (
        "serve-reward mini_quality --host 0.0.0.0",
        ["host 0.0.0.0 can be reached from other machines", "--token-env VARIABLE or --token-file FILE"],
    ),
    "a server of an unknown reward": ("serve-reward mini_qualty", ["'mini_qualty'", "did you mean 'mini_quality'"]),
    "a server on a device that is not here": (
        "serve-reward mini_quality --port 0 --device cuda:77",
        ["no device 'cuda:77' here", "take cpu, cuda or cuda:N"],
    ),
    "settings of a judge that there is not": (
        "run {recipe} --out {out} --set judges.mini_qualty.retries=1",
        ["'mini_qualty'", "did you mean 'mini_quality'"],
    ),
    "a mix that starts from no cold start": (
        "run {recipe} --out {out} --set coldstart=null --set grpo_mix.start=coldstart "
        "--set grpo_mix.tasks.quality.reward=mini_quality --set grpo_mix.tasks.quality.prompts=quality",
        ["grpo_mix starts from the cold start", "add `coldstart`"],
    ),
    "a judge without its endpoint": (
        "run {recipe} --out {out} --set evaluate.metrics.quality.reward=qwenvl",
        ["qwenvl asks a model", "judges.qwenvl.url"],
    ),
    "an unknown reward of a run": (
        "eval --out {done} --set evaluate.metrics.quality.reward=mini_qualty",
        ["'mini_qualty'", "did you mean 'mini_quality'"],
    ),
    "a teacher that no recipe names": ("teacher --name nobody --config {recipe} --out {out}", ["'nobody'", "add"]),
    "a teacher that is not trained": (
        "teacher --name quality --config {recipe} --out {out}",
        ["'quality'", "add teachers.quality.train"],
    ),
    "an unknown teacher as anchor": (f"{DISTILL} --set distill.anchor.model=nobody", ["'nobody'", "composition"]),
    "an unknown teacher in a route": (
        f"{DISTILL} --set routes.composition=compositoin",
        ["'compositoin'", "did you mean 'composition'"],
    ),
    "an unknown key of a recipe": ("run {misspelt} --out {out}", ["{misspelt}", "'distil'", "did you mean 'distill'"]),
    "an unknown key far down": (
        "run {recipe} --out {out} --set distill.optim.update=3",
        ["'distill.optim.update'", "did you mean 'updates'"],
    ),
    "no base at all": ("distill --out {out}", ["which base?", "--base", "--config"]),
    "a value in place of a part": ("run {recipe} --set distill=5 --out {out}", ["distill must be a mapping", "'5'"]),
    "a word in place of a part": (
        "run {recipe} --set distill.query=all --out {out}",
        ["distill.query must be a mapping of keys, got 'all'", "its keys are a, b, k, kind, steps"],
    ),
    "a word in place of a list": (
        "run {recipe} --set evaluate.models=student --out {out}",
        ["evaluate.models must be a list, got 'student'", "write it as [student]"],
    ),
    "a word in place of a number": (
        "run {recipe} --set distill.optim.updates=many --out {out}",
        ["given here: distill.optim.updates must be a whole number, got 'many'"],
    ),
    "a kind of cold start that there is not": (
        "run {recipe} --set coldstart.kind=merg --out {out}",
        ["given here: coldstart.kind must be 'merge' or 'sft', got 'merg'; did you mean 'merge'?"],
    ),
    "a key that belongs further down": (
        "run {recipe} --set distill.ema=0.9 --out {out}",
        ["unknown key 'distill.ema'", "did you mean 'distill.optim.ema'?"],
    ),
    "a key like no other": (
        "run {recipe} --set distill.adapter.zzz=1 --out {out}",
        ["unknown key 'distill.adapter.zzz'; the keys there are alpha, rank, targets"],
    ),
    "a file of prompts that is empty": (
        "distill --base {base} --teacher a={composition} --prompts a={hollow} --out {out}",
        ["{hollow}", "holds no prompt", "one a line"],
    ),
    "an expert without prompts": ("teacher --reward ocr --base {base} --out {out}", ["'ocr'", "--prompts ocr=FILE"]),
    "a teacher without a path": ("merge --base {base} --teacher a= --out {out}", ["'a='", "NAME=PATH"]),
    "a device that is not here": ("run {recipe} --set device=cuda:77 --out {out}", ["cuda:77", "take cpu"]),
    "a device that is no device": ("run {recipe} --set device=tpuu --out {out}", ["tpuu", "take cpu"]),
    "a tracker that there is not": ("run {recipe} --track mlflow --out {out}", ["track", "'wandb'", "'mlflow'"]),
    "a tracker that is not installed": ("run {recipe} --track trackio --out {out}", ["trackio", "pip install trackio"]),
    "a suite that is planned": ("plan {suite}", ["is a suite", "plan one of its recipes", "{recipe}"]),
    "a study of nothing": ("study {suite} --out {empty} --to {here}/to", ["no row of", "has results in {empty}"]),
    "a recipe that is studied": ("study {recipe} --out {empty}", ["{recipe} has no `rows`", "give a suite"]),
    "a section that is misspelt": (
        "plan {recipe} --set distil.seed=1",
        ["given here: unknown key 'distil'", "'distill'"],
    ),
    "a GPU that is not known": ("plan {recipe} --gpu 4090", ["'4090'", "did you mean 'rtx4090'", "--flops"]),
    "a shipped recipe that there is not": ("recipes show mini-dem", ["'mini-dem'", "mini-demo"]),
    "a shipped recipe with a typo": ("run mini-dmo --out {out}", ["mini-dmo", "did you mean 'mini-demo'"]),
    "a recipe over a file that is there": (
        "init --base {base} --teacher a={composition} --prompts a={ringed} --gpu cpu --to {recipe}",
        ["{recipe} exists", "--to"],
    ),
    "questions that nobody answers": (
        "init --base {base} --to {here}/new.yaml",
        ["--teacher, --prompts, --gpu", "terminal"],
    ),
    "an expert of init without prompts": (
        "init --base {base} --teacher a={composition} --prompts b={ringed} --gpu cpu --to {here}/new.yaml",
        ["'a'", "--teacher a=ADAPTER", "--prompts a=FILE"],
    ),
    "hardware that is not known": (
        "init --base {base} --teacher a={composition} --prompts a={ringed} --gpu h1000 --to {here}/new.yaml",
        ["'h1000'", "did you mean 'h100'", "cpu"],
    ),
    "code that a recipe does not trust": (
        "run {recipe} --set evaluate.metrics.quality.reward=os:abort --out {out}",
        ["os:abort is code", "--set 'trust=[os:abort]'"],
    ),
    "an expert that does not ship": (
        "run {recipe} --set teachers.quality.adapter=package:mini/teachers/qualty --out {out}",
        ["teachers.quality.adapter: package:mini/teachers/qualty does not ship with flowopd", "take a path"],
    ),
    "a base that does not ship": (
        "run {recipe} --set base=package:mini/bse --out {out}",
        ["base: package:mini/bse does not ship with flowopd", "take a path"],
    ),
    "code that is not there": (
        "run {recipe} --set evaluate.metrics.quality.reward=no.where:X --set trust=[no.where:X] --out {out}",
        ["no.where", "cannot be imported", "PYTHONPATH=FOLDER flowopd"],
    ),
    "sample before there is a student": (
        "sample --config {recipe} --out {out} -p x --to {here}/to",
        ["'student'", "there are: base"],
    ),
    "report before anything ran": ("report --out {out}", ["{out}", "give the folder of a run"]),
    "a missing key": ("run {baseless} --out {out}", ["{baseless}", "base is missing", "add it"]),
    "a broken line of prompts": (
        "distill --base {base} --teacher a={composition} --prompts a={broken} --out {out}",
        ["{broken}:2", "not JSON", "mend or delete"],
    ),
    "a line without a prompt": (
        "distill --base {base} --teacher a={composition} --prompts a={wordless} --out {out}",
        ["{wordless}:1", "no prompt", "looks like"],
    ),
    "prompts that are not there": (
        "distill --base {base} --teacher a={composition} --prompts a={here}/nothing.txt --out {out}",
        ["{here}/nothing.txt", "does not exist", "check the path"],
    ),
    "prompts that are a folder": (
        "distill --base {base} --teacher a={composition} --prompts a={empty} --out {out}",
        ["{empty}"],
    ),
    "a label without a route": (
        f"{DISTILL} --prompts signs={{prompts}}/train/quality.jsonl",
        ["no route for label 'quality'", "composition"],
    ),
    "prompts that the evaluation lacks": (
        "eval --out {done} --split unseen",
        ["unseen", "add prompts.composition.unseen"],
    ),
    "a split that is none": ("eval --out {done} --split tset", ["given here", "evaluate.split", "did you mean 'test'"]),
    "a negative limit": ("eval --out {done} --limit -3", ["given here", "evaluate.limit", "-3"]),
    "a weighting that is none": (
        f"{DISTILL} --set distill.weighting=velocty",
        ["given here: distill.weighting must be 'kl', 'ode' or 'velocity'", "did you mean 'velocity'"],
    ),
    "a negative weight of the anchor": (f"{DISTILL} --set distill.anchor.weight=-1", ["distill.anchor.weight", "-1"]),
    "a negative weight of a merge": (
        "merge --base {base} --teacher a={composition} --teacher b={quality} "
        "--set coldstart.weights.a=-1 --set coldstart.weights.b=2 --out {out}",
        ["merge weights", "negative", "-1"],
    ),
    "merge weights for others": (
        "merge --base {base} --teacher a={composition} --set coldstart.weights.z=1 --out {out}",
        ["merge weights", "z", "a"],
    ),
    "guidance below zero": (f"{DISTILL} --set distill.sampling.guidance=-1", ["distill.sampling.guidance", "-1"]),
    "a teacher's guidance below zero": (
        "run {recipe} --out {out} --set teachers.quality.guidance=-0.5",
        ["teachers.quality.guidance", "-0.5"],
    ),
    "both halves switched off": (
        f"{DISTILL} --set distill.distillation=false --set distill.anchor=null",
        ["distill.distillation", "anchor"],
    ),
    "targets that the base lacks": (
        f"{DISTILL} --set distill.adapter.targets=[to_z]",
        ["to_z"],
    ),
    "a folder of another run": (
        "run {recipe} --out {done} --set seed=7",
        ["{done}", "another seed", "choose another --out"],
    ),
    "a folder of other things": ("run {recipe} --out {prompts}", ["{prompts}", "not empty", "choose another --out"]),
    "a file as folder": ("run {recipe} --out {recipe}", ["{recipe}", "choose another --out"]),
    "a recipe that is not there": (
        "run {here}/no.yaml --out {out}",
        ["{here}/no.yaml", "does not exist", "`flowopd recipes`"],
    ),
    "a recipe for the doctor that is not there": ("doctor {here}/no.yaml", ["{here}/no.yaml", "does not exist"]),
    "an unknown key for the doctor": ("doctor {recipe} --set distil.seed=1", ["'distil'", "did you mean 'distill'"]),
    "a recipe that is a folder": ("run {empty} --out {out}", ["{empty}"]),
    "a recipe that is no YAML": ("run {torn} --out {out}", ["{torn}", "not YAML"]),
    "a recipe that is a list": ("run {listed} --out {out}", ["{listed}", "must be a mapping"]),
    "a change without a value": ("run {recipe} --out {out} --set seed", ["--set 'seed'", "key=value"]),
    "a change that is no YAML": ("run {recipe} --out {out} --set seed=[1", ["seed=[1"]),
    "a change of the wrong kind": ("run {recipe} --out {out} --set seed=many", ["seed", "'many'"]),
    "a flag that is no pair": ("merge --base {base} --teacher {composition} --out {out}", ["--teacher", "NAME=PATH"]),
    "eval of no run": ("eval --out {empty}", ["{empty}", "holds no run", "give its folder with --out"]),
    "sample of no run": ("sample --out {empty} -p x", ["{empty}", "holds no run", "give its folder with --out"]),
    "report of no run": ("report --out {empty}", ["{empty}", "give the folder of a run"]),
    "report of nothing": ("report --out {here}/nowhere", ["{here}/nowhere", "give the folder of a run"]),
    "sample with an unknown model": (
        "sample --out {done} --model nobody -p x --to {here}/to",
        ["'nobody'", "there are: base", "student"],
    ),
    "sample with an unknown teacher": (
        "sample --out {done} --model teacher:nobody -p x --to {here}/to",
        ["'teacher:nobody'", "there are: base"],
    ),
    "export of no run": ("export --out {empty}", ["{empty}", "holds no run"]),
    "export to an unknown format": (
        "export --out {done} --to comfy",
        ["'comfy'", "did you mean 'comfyui'", "merged"],
    ),
    "export of the base": ("export --out {done} --model base", ["base has no adapter", "student"]),
    "export of an unknown model": ("export --out {done} --model nobody", ["'nobody'", "there are: base", "student"]),
    "an export in the way": ("export --out {done} --dest {taken}", ["{taken} is not empty", "--dest"]),
    "one folder for two formats": ("export --out {done} --to peft --to merged --dest {here}/to", ["peft, merged"]),
    "a dtype that there is not": ("export --out {done} --to merged --dtype fp16", ["'fp16'", "float32, bfloat16"]),
    "a dtype of an adapter": ("export --out {done} --dtype float16", ["dtype is for merged weights", "leave it out"]),
    "an export that cannot be pushed": ("export --out {done} --push name", ["'name'", "OWNER/NAME"]),
    "a private export that is not pushed": ("export --out {done} --private", ["private", "OWNER/NAME"]),
    "an export into a file": ("export --out {done} --dest {recipe}/to", ["{recipe}/to cannot be written", "--dest"]),
    "a picture in the way": ("sample --out {done} -p x --to {taken}", ["{taken}/x-0-student.png", "--to"]),
    "a layout without a file": (
        "sample --out {done} -p x --layout geneval",
        ["--prompts-file FILE, maybe with --layout"],
    ),
    "prompts and a file of them": (
        "sample --out {done} -p x --prompts-file {wordless} --layout geneval",
        ["--prompt TEXT, or --prompts-file"],
    ),
    "an unknown layout": (
        "sample --out {done} --prompts-file {ringed} --layout genevl --to {here}/to",
        ["'genevl'", "did you mean 'geneval'"],
    ),
    "a file of prompts that is not there": (
        "sample --out {done} --prompts-file {here}/no.txt --layout compbench --to {here}/to",
        ["{here}/no.txt", "does not exist"],
    ),
    "prompts that GenEval cannot judge": (
        "sample --out {done} --prompts-file {ringed} --layout geneval --to {here}/to",
        ["'a ring'", "no 'tag'", "evaluation_metadata.jsonl"],
    ),
    "a folder of other pictures": (
        "sample --out {done} --prompts-file {ringed} --layout compbench --to {taken}",
        ["{taken}/x-0-student.png is in the way", "--to"],
    ),
    "nothing to merge": ("merge --base {base} --out {out}", ["merge", "at least one adapter"]),
    "no experts to distil": (
        "distill --base {base} --prompts a={prompts}/train/quality.jsonl --out {out}",
        ["teachers"],
    ),
}


def without(folder, source, *endings):
    """A copy of an adapter that lacks the tensors with these endings."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}
    assert len(kept) == len(tensors) - len(endings)
    save_file(kept, folder / WEIGHTS)
    return folder


def cut(folder, source, size):
    """A copy of an adapter of which only the first bytes are left."""
    shutil.copytree(source, folder)
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:size])
    return folder


def written(path, text):
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def broken(tmp_path_factory, world):
    """Places by name, most of them with something wrong in them."""
    here = tmp_path_factory.mktemp("broken")
    expert = world.experts / "composition"
    stages = sys.modules["tiny_world_of_stages"]
    stages.write_plain_peft_expert(here / "wide", seed=4, heads=stages.HEADS + 1)
    strange = shutil.copytree(expert, here / "strange")
    renamed = {name.replace("blocks.1", "blocks.9"): t for name, t in load_file(strange / WEIGHTS).items()}
    save_file(renamed, strange / WEIGHTS)
    for folder in ("empty", "taken"):
        (here / folder).mkdir()
    tree = json.dumps(world.whole())
    ring = '{"prompt": "a ring"}\n'
    return {
        **{"here": here, "empty": here / "empty", "nobody": here / "nobody", "wide": here / "wide", "strange": strange},
        "truncated": cut(here / "truncated", expert, -100),
        "beheaded": cut(here / "beheaded", expert, 50),
        "halved": without(here / "halved", expert, "0.attn.to_q.lora_B.weight"),
        "holed": without(here / "holed", expert, "0.attn.to_q.lora_B.weight", "0.attn.to_q.lora_A.weight"),
        "broken": written(here / "broken.jsonl", ring + '{"prompt": \n'),
        "wordless": written(here / "wordless.jsonl", '{"text": "a ring"}\n' + ring),
        "hollow": written(here / "hollow.txt", "\n"),
        "ringed": written(here / "ringed.jsonl", ring),
        "stray": written(
            here / "stray.jsonl",
            ring + '{"prompt": "a zebra", "label": "zebras"}\n{"prompt": "a star", "label": "stars"}\n',
        ),
        "recipe": written(here / "recipe.yaml", tree),
        "misspelt": written(here / "misspelt.yaml", tree.replace('"distill"', '"distil"')),
        "baseless": written(here / "baseless.yaml", tree.replace('"base"', '"revision"', 1)),
        "torn": written(here / "torn.yaml", "base: [1\n"),
        "suite": written(here / "suite.yaml", "rows: {one: {recipe: recipe.yaml}}\n"),
        "listed": written(here / "listed.yaml", "- base\n"),
        "taken": written(here / "taken" / "x-0-student.png", "mine").parent,
        "base": world.base,
        "prompts": world.prompts,
        "composition": world.experts / "composition",
        "quality": world.experts / "quality",
    }


def bytes_of(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def one_line(outcome, places, fragments):
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    for fragment in fragments:
        assert fragment.format(**places) in outcome.err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_overwritten(flowopd, broken, tmp_path, world, done, mistake):
    command, fragments = MISTAKES[mistake]
    places = {**broken, "out": tmp_path / "out", "done": done}
    before = bytes_of(broken["here"], done, world.base, world.experts, world.prompts)
    outcome = flowopd(*(word.format(**places) for word in command.split()))
    after = bytes_of(broken["here"], done, world.base, world.experts, world.prompts)
    assert {path: after.get(path) for path in before} == before
    one_line(outcome, places, fragments)


@pytest.mark.parametrize(
    "mistake",
    [
        "an unknown reward in a recipe",
        "a base that is not there",
        "a judge whose code is not trusted",
        "a judge without its endpoint",
        "a judge whose server is not there",
    ],
)
def test_a_mistake_that_can_be_seen_at_once_trains_nothing(flowopd, broken, tmp_path, mistake):
    command, _ = MISTAKES[mistake]
    flowopd(*(word.format(**broken, out=tmp_path / "out") for word in command.split()))
    assert not [name for name in ("coldstart", "student", "checkpoints") if (tmp_path / "out" / name).exists()]


def test_a_base_that_is_not_there_leaves_no_folder(flowopd, broken, tmp_path):
    command, _ = MISTAKES["a base that is not there"]
    flowopd(*(word.format(**broken, out=tmp_path / "out") for word in command.split()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["distill.anchor.model=nobody", "routes.composition=nobody"])
def test_after_a_mistake_the_mended_command_may_use_the_same_folder(flowopd, broken, tmp_path, wrong):
    few = ["distill.optim.updates=1", "distill.samples_per_label=1", "distill.sampling.steps=1"]
    command = DISTILL.format(**broken, out=tmp_path / "out").split()
    sets = [part for change in few for part in ("--set", change)]
    assert flowopd(*command, *sets, "--set", wrong).code == 2
    mended = flowopd(*command, *sets)
    assert mended.code == 0, mended.err


def test_a_mistake_in_a_process_of_its_own_is_one_line_too(broken, tmp_path):
    args = [word.format(**broken, out=tmp_path / "out") for word in with_expert("wide").split()]
    ended = subprocess.run([sys.executable, "-m", "flowopd", *args], capture_output=True, text=True)
    assert ended.returncode == 2 and not ended.stdout
    assert ended.stderr.startswith("error: quality adapts") and ended.stderr.count("\n") == 1, ended.stderr


def test_adapters_of_these_tests_are_broken_in_no_other_way(broken):
    whole = load_file(broken["composition"] / WEIGHTS)
    holed = load_file(broken["holed"] / WEIGHTS)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in holed.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("distill.labels_per_update=9", "labels_per_update is 9, and there are 2 labels"),
        ("distill.loss=detached", "step without noise"),
        ("distill.loss=log_ratio_to_go", "step without noise"),
    ],
)
def test_what_distill_refuses_has_made_nothing_that_a_mended_command_meets(flowopd, world, tmp_path, change, words):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({key: value for key, value in world.whole().items() if key != "evaluate"}))
    command = ("distill", "--config", recipe, "--out", tmp_path / "out", "--set", "distill.optim.updates=1")
    outcome = flowopd(*command, "--set", change)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and words in outcome.err, outcome.err
    assert not (tmp_path / "out" / "coldstart").exists()
    assert flowopd(*command).code == 0


def test_a_part_that_contradicts_itself_is_not_printed_whole(flowopd, world, tmp_path):
    sets = ("--set", "distill.loss=detached", "--set", "distill.updates_per_rollout=2")
    outcome = flowopd("run", "mini-demo", "--out", tmp_path / "out", *sets)
    assert outcome.code == 2 and "need loss closed_form" in outcome.err and "got" not in outcome.err


def test_a_prompt_without_words_is_refused(flowopd, tmp_path):
    refused = flowopd("sample", "--out", tmp_path, "-p", " ")
    assert refused.code == 2 and refused.err == "error: a --prompt is empty; say what to draw\n"
