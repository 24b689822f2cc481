"""Who may import whom, read off the source: layers, libraries and their homes, no cycles, no branch on the mini world.

A module is named from the package on, such as `models.sd3`, and belongs to the layer of its first name. Imports within
functions and under TYPE_CHECKING count as those at the head of a file do.
"""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "flowopd"

MATHS = (
    "errors",
    "shapes",
    "gaussian",
    "types",
    "schedule",
    "dynamics",
    "velocity",
    "noise",
    "queries",
    "rollout",
    "routing",
    "objectives",
)
PARTS = (
    "faults",
    "untrusted",
    "durable",
    "owner",
    "manifest",
    "hub",
    "models",
    "lora_config",
    "lora_file",
    "merge",
    "joint",
    "adapters",
    "strength",
    "formats",
    "conditioning",
    "prompts",
    "wordings",
    "mini",
    "rewards",
)
RUNNING = (
    "quiet",
    "shipped",
    "gpus",
    "names",
    "signals",
    "identity",
    "processes",
    "lock",
    "sampling",
    "step",
    "crews",
    "schedules",
    "checkpoint",
    "tracking",
    "train",
    "nonfinite",
    "monitors",
    "configs",
    "recipe",
    "suite",
    "schema",
    "records",
    "results",
    "session",
    "provenance",
    "stages",
    "pipeline",
    "fields",
    "distiller",
    "studio",
    "cli",
    "__main__",
    "__init__",
)
LAYERS = (*MATHS, *PARTS, *RUNNING)
"""From the first to the last: a layer imports only itself and layers before it."""

ONLY = {"rewards": {"errors", "faults", "hub", "prompts", "mini"}}
"""Layers that see even less: a judge knows pixels and prompts alone, and where its own weights lie."""

MATHS_LIBRARIES = {*sys.stdlib_module_names, "torch", "jaxtyping"}
MODELS = ("diffusers", "peft", "transformers")
LOGGERS = ("tensorboard", "tensorboardX", "torch.utils.tensorboard", "wandb", "trackio")
HOMES = {
    **dict.fromkeys(MODELS, PARTS),
    "accelerate": RUNNING,
    **dict.fromkeys(LOGGERS, ("tracking",)),
}
"""Where a library may be imported; the longest name that fits an import decides."""

LATE = {"__init__", "rewards.registry", "rewards.own"}
"""Modules that import by a computed name, which no reading of the source follows."""

MINI_USERS = {
    "cli",
    "cli.mini",
    "rewards.mini_geneval",
    "rewards.mini_quality",
    "rewards.mini_preference",
    "rewards.mini_holdout",
    "rewards.drawn",
}
MINI_WORDS = {
    "cli": {"mini", "The mini world: how its base, prompts and judges were made."},
    "cli.flags": {"Base model: folder, hub id, or package:mini/base."},
    "cli.training": {"mini-demo.yaml", "mini-from-scratch.yaml"},
    "cli.mini": {"runs/mini-base", "runs/mini-prompts"},
    "cli.benching": {"mini", "mini, the mini world's base; or small, 55 M random weights."},
    "stages.bench.settings": {"mini"},
    "stages.bench.subject": {"mini", "package:mini/base"},
    "rewards.registry": {
        "mini_geneval",
        "mini_quality",
        "mini_preference",
        "mini_holdout",
        "MiniGeneval",
        "MiniQuality",
        "MiniPreference",
        "MiniHoldout",
    },
    "rewards.mini_holdout": {"MiniQuality"},
    "rewards.drawn": {"mini_geneval", "mini_quality", "mini_preference", "mini_holdout"},
}
"""Where code outside the mini world may say its name, and what it may say: commands, defaults and tables of rewards."""

VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}


def module_name(path):
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SRC.rglob("*.py"))}


def layer(module):
    return module.split(".")[0]


def imports(tree):
    """Every imported name with its module, such as `torch.nn`; a relative import starts with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def own(name, known):
    """The module of this package that an import reaches, or None if it belongs to another package."""
    first, *rest = name.split(".")
    if first != "flowopd":
        return None
    found = [".".join(rest[:n]) for n in range(len(rest), 0, -1)]
    return next((module for module in found if module in known), "__init__")


def order_faults(module, tree, known):
    """Imports of what comes after, or of what this layer may not see."""
    if layer(module) not in LAYERS:
        return [f"{module} stands in no layer"]
    faults = [f"{module} imports {name}, relatively" for name in imports(tree) if name.startswith(".")]
    for target in {own(name, known) for name in imports(tree)} - {None}:
        place, seen = layer(module), layer(target)
        if LAYERS.index(seen) > LAYERS.index(place):
            faults.append(f"{module} imports {target}, which comes after it")
        if seen not in ONLY.get(place, LAYERS) and seen != place:
            faults.append(f"{module} imports {target}, which {place} may not see")
        if seen == "mini" != place and module not in MINI_USERS:
            faults.append(f"{module} imports {target} of the mini world")
    return faults


def library_faults(module, tree, known):
    """Imports of other packages away from their homes."""
    faults = []
    for name in imports(tree):
        homes = [home for home in HOMES if f"{name}.".startswith(f"{home}.")]
        if homes and layer(module) not in HOMES[max(homes, key=len)]:
            faults.append(f"{module} imports {name} away from its home")
        if layer(module) in MATHS and own(name, known) is None and name.split(".")[0] not in MATHS_LIBRARIES:
            faults.append(f"{module} is maths and imports {name}")
    return faults


def late_faults(module, tree, known):
    """Imports by a computed name, away from the places that need them."""
    named = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(tree)}
    return [f"{module} uses {name}" for name in sorted(named & {"import_module", "__import__"}) if module not in LATE]


def words(tree):
    """Names and strings of the code; docstrings and imports are not code here."""
    blocks = [node for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    prose = {
        id(line.value)
        for block in blocks
        for line in block.body
        if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value
        elif isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr


def conditions(tree):
    """What branches of the code depend on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            yield node.test
        elif isinstance(node, ast.Match):
            yield node.subject
            yield from (case.pattern for case in node.cases)
        elif isinstance(node, ast.Compare | ast.BoolOp):
            yield node
        elif isinstance(node, ast.comprehension):
            yield from node.ifs


def is_mini(word):
    return bool(re.search(r"(?<![A-Za-z])mini(?![a-z])|Mini[A-Z]", word))


def mini_faults(module, tree, known):
    """The mini world asked for by name."""
    if layer(module) == "mini":
        return []
    said = {word for word in words(tree) if is_mini(word)} - MINI_WORDS.get(module, set())
    asked = {word for condition in conditions(tree) for word in words(condition) if is_mini(word)}
    return [f"{module} says {word!r}" for word in said] + [f"{module} branches on {word!r}" for word in asked]


RULES = (order_faults, library_faults, late_faults, mini_faults)


def faults(module, tree, known=frozenset(MODULES)):
    return sorted(fault for rule in RULES for fault in rule(module, tree, known))


def cycle(modules):
    """The modules of an import cycle, or none. Importing a module also runs the packages around it."""
    graph = {module: set() for module in modules}
    for module, tree in modules.items():
        for target in {own(name, modules) for name in imports(tree)} - {None, module}:
            parts = target.split(".")
            around = {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & set(modules)
            graph[module] |= {other for other in around if not f"{module}.".startswith(f"{other}.")}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def vague(paths):
    return [path for path in paths if Path(path).stem in VAGUE]


def parsed(sources):
    return {module: ast.parse(source) for module, source in sources.items()}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_keeps_the_rules(module):
    assert faults(module, MODULES[module]) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("gaussian", "from flowopd.dynamics import Ode", "gaussian imports dynamics, which comes after it"),
        ("velocity", "def f():\n    from flowopd import rollout", "velocity imports rollout, which comes after it"),
        ("routing", "import flowopd.models.sd3", "routing imports models.sd3, which comes after it"),
        ("train", "from flowopd.stages.distill import distill", "train imports stages.distill, which comes after it"),
        ("recipe", "from flowopd import Results", "recipe imports __init__, which comes after it"),
        (
            "errors",
            "if TYPE_CHECKING:\n    from flowopd.types import Step",
            "errors imports types, which comes after it",
        ),
        ("step", "from .train import Trainer", "step imports .train.Trainer, relatively"),
        ("extras", "x = 1", "extras stands in no layer"),
        ("rewards.clip", "from flowopd.models import Model", "rewards.clip imports models, which rewards may not see"),
        (
            "pipeline",
            "from flowopd.mini.world import SIZE",
            "pipeline imports mini.world of the mini world",
        ),
        (
            "rewards.ocr",
            "from flowopd.mini import world",
            "rewards.ocr imports mini.world of the mini world",
        ),
        ("mini.world", "from flowopd.rewards.ocr import Ocr", "mini.world imports rewards.ocr, which comes after it"),
        ("schedule", "import numpy as np", "schedule is maths and imports numpy"),
        ("objectives.new", "def f():\n    import scipy.stats", "objectives.new is maths and imports scipy.stats"),
        ("types", "from pydantic import BaseModel", "types is maths and imports pydantic.BaseModel"),
        ("noise", "import diffusers", "noise imports diffusers away from its home"),
        ("session", "from peft import LoraConfig", "session imports peft.LoraConfig away from its home"),
        ("stages.sample", "import transformers", "stages.sample imports transformers away from its home"),
        ("train", "from diffusers import UNet2DModel", "train imports diffusers.UNet2DModel away from its home"),
        (
            "train",
            "from diffusers.training_utils import set_seed",
            "train imports diffusers.training_utils.set_seed away from its home",
        ),
        ("adapters", "import accelerate.utils", "adapters imports accelerate.utils away from its home"),
        ("train", "import wandb", "train imports wandb away from its home"),
        (
            "stages.distill",
            "from torch.utils.tensorboard import SummaryWriter",
            "stages.distill imports torch.utils.tensorboard.SummaryWriter away from its home",
        ),
        ("step", "from torch.utils import tensorboard", "step imports torch.utils.tensorboard away from its home"),
        ("cli", "import trackio", "cli imports trackio away from its home"),
        ("session", "import importlib\nimportlib.import_module('diffusers')", "session uses import_module"),
        ("train", "__import__('wandb')", "train uses __import__"),
        ("recipe", "base = 'package:mini/base'", "recipe says 'package:mini/base'"),
        ("session", "if base.endswith('mini/base'):\n    steps = 3", "session branches on 'mini/base'"),
        ("cli", "x = 1 if name == 'mini-demo.yaml' else 2", "cli branches on 'mini-demo.yaml'"),
        ("rewards.registry", "match name:\n    case 'mini_quality':\n        pass", "branches on 'mini_quality'"),
        ("stages.evaluate", "isinstance(reward, MiniQuality)", "stages.evaluate says 'MiniQuality'"),
        ("pipeline", "small = recipe.is_mini and x", "pipeline branches on 'is_mini'"),
    ],
)
def test_a_module_that_breaks_a_rule_is_reported(module, source, fault):
    found = faults(module, ast.parse(source), {*MODULES, module})
    assert any(fault in line for line in found), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dynamics", "import math\nimport torch.nn.functional as F\nfrom jaxtyping import Float"),
        ("rewards.mini_quality", "from flowopd.mini.quality import QUALITY"),
        ("tracking", "def f():\n    from torch.utils.tensorboard import SummaryWriter"),
        ("session", "minimum = administer('minimal')"),
        ("recipe", '"""Recipes of the mini world."""'),
    ],
)
def test_a_module_that_keeps_the_rules_is_not_reported(module, source):
    assert faults(module, ast.parse(source)) == []


def test_imports_have_no_cycle():
    assert cycle(MODULES) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"a": "import flowopd.b", "b": "from flowopd import a"},
        {"a": "def f():\n    from flowopd.b import x", "b": "from flowopd.c import y", "c": "from flowopd.a import z"},
        {"p": "from flowopd.p.x import X", "p.x": "import flowopd.q", "q": "from flowopd.p.y import Y", "p.y": ""},
    ],
    ids=["two modules", "through a function", "through a package"],
)
def test_a_cycle_is_reported(sources):
    assert set(cycle(parsed(sources))) >= set(sources) - {"p.y"}


def test_a_package_and_its_modules_are_no_cycle():
    assert cycle(parsed({"p": "from flowopd.p.x import X", "p.x": "from flowopd.p.y import Y", "p.y": ""})) == []


def test_every_file_is_named_after_what_it_holds():
    root = SRC.parents[1]
    assert vague([*SRC.rglob("*.py"), *(root / "tests").rglob("*.py")]) == []


@pytest.mark.parametrize("path", ["utils.py", "models/common.py", "stages/helpers.py"])
def test_a_vague_name_is_reported(path):
    assert vague([path, "models/sd3.py"]) == [path]


def test_every_layer_exists():
    assert {layer(module) for module in MODULES} == set(LAYERS)
