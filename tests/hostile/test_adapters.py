"""Mutated adapters: what is accepted fits the base, as its config says, and all else is refused in one line."""

import json
import math
import shutil
import struct
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn

from flowopd.adapters import Adapters
from flowopd.errors import CheckpointError
from flowopd.lora_config import scales
from flowopd.lora_file import CONFIG, DIFFUSERS_WEIGHTS, WEIGHTS, Factors, LoraFile, sha256_of, write_lora
from flowopd.lora_file import write_diffusers_lora as write_plain

SHAPES = {"blocks.0.to_q": (6, 4), "blocks.1.to_q": (6, 4), "proj_out": (4, 6)}


def lora(rank=2):
    draw = torch.Generator().manual_seed(0)
    return LoraFile(
        {"base_model_name_or_path": "a/base"},
        {
            name: Factors(torch.randn(rank, i, generator=draw), torch.randn(o, rank, generator=draw), 2.0)
            for name, (o, i) in SHAPES.items()
        },
    )


class Base(nn.Module):
    """A base with these linear modules and no other."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"to_q": nn.Linear(4, 6)}) for _ in range(2))
        self.proj_out = nn.Linear(6, 4)


@pytest.fixture(scope="session")
def adapters():
    return Adapters(Base())


@pytest.fixture(scope="session")
def folder(place):
    """A folder whose adapter every example writes anew."""
    write_lora(place / "good", lora())
    return shutil.copytree(place / "good", place / "mutated")


@pytest.fixture(scope="session")
def good(folder):
    """The bytes of a good file of weights, and its config."""
    source = folder.parent / "good"
    return (source / WEIGHTS).read_bytes(), json.loads((source / CONFIG).read_text())


def parts(content):
    """The head and the data of a file of weights."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def packed(head, data):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data


def put(folder, weights, config):
    (folder / WEIGHTS).write_bytes(weights)
    text = config if isinstance(config, bytes) else json.dumps(config).encode("utf-8", "surrogatepass")
    (folder / CONFIG).write_bytes(text)


def read(adapters, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return adapters.checked("expert", folder)


def check(found, config):
    """What holds for every adapter that is accepted: whole, finite, shaped as the base, and scaled as it says."""
    assert found.modules.keys() == SHAPES.keys()
    for name, factors in found.modules.items():
        assert (factors.b.shape[0], factors.a.shape[1]) == SHAPES[name]
        assert factors.a.isfinite().all() and factors.b.isfinite().all() and factors.a.dtype == torch.float32
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        r = ranks.get(get_pattern_key(ranks, name), config["r"])
        alpha = alphas.get(get_pattern_key(alphas, name), config["lora_alpha"])
        assert r == factors.rank and type(r) is int and alpha > 0
        assert factors.scale == alpha / (math.sqrt(r) if config.get("use_rslora") else r)


@st.composite
def damaged(draw, content):
    """Bytes with one to three changes: bits flipped, cut out, put in, said twice."""
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(content)))
        j = draw(st.integers(i, min(len(content), i + 40)))
        new = draw(st.binary(max_size=9) | st.just(content[i:j] * 2) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"{"]))
        content = content[:i] + new + content[j if draw(st.booleans()) else min(i + len(new), len(content)) :]
    return content


@given(data=st.data())
def test_a_file_of_mutated_bytes_is_refused_or_known_by_its_hash(lawful, adapters, folder, good, data):
    weights, config = good
    mutated = data.draw(damaged(weights))
    put(folder, mutated, config)
    found = lawful(read, adapters, folder)
    if found is not None:
        check(found, config)
        assert mutated == weights or sha256_of(folder) != sha256_of(folder.parent / "good")


SIZES = st.sampled_from([0, 1, 2, 3, 4, 6, 7, -1, 2**31, 2**40, 2**62, 2**63, 2**64, 1.5, "4", None, True])
DTYPES = ["F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E8M0", "F4", "C64", "I64", "U8", "BOOL", "f32", "", "X", 3, None]


def stem(name):
    return f"base_model.model.{name}.lora_A.weight"


NAMES = [stem(name) for name in SHAPES]
STRANGE = [stem("../../etc/passwd"), stem("/etc/x"), stem("a\0b"), stem("x\ny"), "", "__metadata__", stem("blocks.9")]
STRANGE += ["base_model.model.proj_out.alpha", "transformer.proj_out.lora_A.weight", stem("\x1b[2J"), stem("é" * 99)]


@st.composite
def heads(draw, head):
    """A head with one to three changes of names, shapes, dtypes, places and what is said beside them."""
    head = {name: dict(entry) for name, entry in head.items()}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(list(head)))
        change = draw(st.sampled_from(["shape", "flip", "dtype", "place", "swap", "rename", "copy", "drop", "said"]))
        if name == "__metadata__" or change == "said":
            said = draw(st.none() | st.sampled_from(["", "{", "[]", "[" * 5000, '{"transformer.r": NaN}']))
            head["__metadata__"] = draw(st.just({"lora_adapter_metadata": said}) | st.sampled_from([{}, [], 3, "x"]))
            continue
        entry = head[name]
        if not isinstance(entry, dict) or "shape" not in entry:
            continue
        if change == "shape":
            entry["shape"] = draw(st.lists(SIZES, max_size=4))
        elif change == "flip":
            entry["shape"] = entry["shape"][::-1]
        elif change == "dtype":
            entry["dtype"] = draw(st.sampled_from(DTYPES))
        elif change == "place":
            entry["data_offsets"] = draw(st.lists(SIZES, min_size=1, max_size=3))
        elif change == "swap":
            other = head[draw(st.sampled_from(NAMES))] if set(NAMES) <= head.keys() else entry
            entry["data_offsets"] = other["data_offsets"]
        elif change == "drop":
            del head[name]
        else:
            head[draw(st.sampled_from(STRANGE + NAMES))] = dict(entry) if change == "copy" else head.pop(name)
        if not head:
            return head
    return head


@given(data=st.data())
def test_a_mutated_head_is_refused_or_fits(lawful, adapters, folder, good, data):
    head, content = parts(good[0])
    put(folder, packed(data.draw(heads(head)), content), good[1])
    found = lawful(read, adapters, folder)
    if found is not None:
        check(found, good[1])


@given(data=st.data())
def test_a_mutated_file_of_diffusers_is_refused_or_fits(lawful, adapters, place, data):
    write_plain(place / "plain", lora())
    head, content = parts((place / "plain" / DIFFUSERS_WEIGHTS).read_bytes())
    (place / "head").mkdir(exist_ok=True)
    (place / "head" / DIFFUSERS_WEIGHTS).write_bytes(packed(data.draw(heads(head)), content))
    found = lawful(read, adapters, place / "head")
    if found is not None:
        assert all((f.b.shape[0], f.a.shape[1]) == SHAPES[name] for name, f in found.modules.items())
        assert all(0 < f.scale < math.inf for f in found.modules.values())


NUMBERS = [
    -4,
    -1,
    0,
    1,
    2,
    3,
    4,
    8,
    1e300,
    1e-300,
    10**25,
    0.5,
    2.0,
    True,
    False,
    None,
    "2",
    [],
    {},
    math.nan,
    math.inf,
]
PATTERNS = [
    "^proj_out",
    "to_q",
    "proj_out",
    "x",
    "(",
    "(a+)+$",
    "(.*)*x",
    "[",
    "a{1,99999999999}",
    "",
    ".*",
    "\\",
    "to_q|x",
]
PATTERNS += ["(?P<a>x)(?P<a>y)", "(" * 500, "é", "(blocks|block|.*)*\\.to_q"]
TARGETS = ["all-linear", "to_q", "proj_out", ["to_q"], ["proj_out"], ["to_q", "proj_out"], [], [3], 3, {}, *PATTERNS]
FIELDS = {
    "r": NUMBERS,
    "lora_alpha": NUMBERS,
    "rank_pattern": [*NUMBERS, *({p: n} for p in PATTERNS for n in (2, 0, "2"))],
    "alpha_pattern": [*NUMBERS, *({p: n} for p in PATTERNS for n in (3, -3, math.nan, True))],
    "use_rslora": [True, False, None, 1, "yes"],
    "target_modules": TARGETS,
    "exclude_modules": TARGETS,
    "layers_to_transform": [0, 1, [0], [0, 1], [], "0", True, -1],
    "layers_pattern": ["blocks", ["blocks"], "(a+)+$", "", [], 3],
    "peft_type": ["LOHA", "", None, 3, "LORA"],
    "bias": ["all", None, "none", 3],
    "init_lora_weights": ["pissa", True, 1, [], {}, "gaussian"],
    "use_dora": [True, False, 1, "no"],
    "modules_to_save": [["x"], [], None],
    "unknown": [True, "x", 0],
}


@st.composite
def configs(draw, config):
    """A config with one to three fields changed, or left out."""
    config = dict(config)
    for _ in range(draw(st.integers(1, 3))):
        field = draw(st.sampled_from(list(FIELDS)))
        if draw(st.integers(0, 9)):
            config[field] = draw(st.sampled_from(FIELDS[field]))
        else:
            config.pop(field, None)
    return config


@given(data=st.data())
def test_a_mutated_config_is_honoured_or_refused(lawful, adapters, folder, good, data):
    weights, config = good
    changed = data.draw(configs(config))
    put(folder, weights, changed)
    found = lawful(read, adapters, folder)
    if found is not None:
        check(found, changed)
        assert not any(changed.get(name) for name in ("use_dora", "modules_to_save"))
        targets = changed.get("target_modules")
        assert not isinstance(targets, list) or not targets or {"proj_out"} <= set(targets)


@given(data=st.data())
@example(data=None)
def test_a_config_of_mutated_bytes_is_refused_or_honoured(lawful, adapters, folder, good, data):
    weights, config = good
    text = json.dumps(config).encode()
    put(folder, weights, b"[" * 100_000 if data is None else data.draw(damaged(text)))
    found = lawful(read, adapters, folder)
    if found is not None:
        assert {f.rank for f in found.modules.values()} == {2}
        assert all(0 < f.scale < math.inf for f in found.modules.values())


def refused(adapters, folder):
    with pytest.raises(CheckpointError) as error:
        adapters.checked("expert", folder)
    return str(error.value)


@pytest.fixture
def fresh(tmp_path):
    write_lora(tmp_path / "a", lora())
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_alpha": 0}, "lora_alpha must be above 0, got 0"),
        ({"lora_alpha": -8}, "lora_alpha must be above 0, got -8"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, got '8'"),
        ({"r": True}, "r must be a whole number, got True"),
        ({"r": 0}, "r must be at least 1, got 0"),
        ({"r": 3}, "has rank 2 but its config says 3"),
        ({"rank_pattern": {"to_q": 0}}, "rank_pattern.to_q must be at least 1, got 0"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be a mapping of keys"),
        ({"rank_pattern": {"(": 2}}, "is no pattern of names"),
        ({"rank_pattern": {"(?P<a>x)(?P<a>y)": 2}}, "is no pattern of names"),
        ({"target_modules": ["to_q"]}, "weights of 1 modules that its config does not target, such as proj_out"),
        ({"target_modules": 3}, "target_modules"),
        ({"target_modules": "(" * 100}, "is no pattern of names"),
        ({"target_modules": "x" * 20_000}, "is too long"),
        ({"layers_pattern": "(a+)+", "layers_to_transform": 0}, "layers_pattern"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(adapters, fresh, fields, words):
    config = json.loads((fresh / CONFIG).read_text())
    (fresh / CONFIG).write_text(json.dumps(config | fields))
    assert words in refused(adapters, fresh)


def test_patterns_that_take_too_long_are_given_up(monkeypatch):
    monkeypatch.setattr("flowopd.lora_config.PATIENCE", 0.2)
    config = {"r": 2, "lora_alpha": 2, "rank_pattern": {"(a|a|.)*\\b[!?]": 2}}
    with pytest.raises(CheckpointError, match=r"take more than 0\.2 s to match; name its modules instead"):
        scales(config, {"a" * 60: 2}, "the config")


def test_a_field_that_peft_does_not_know_is_seen(adapters, fresh):
    config = json.loads((fresh / CONFIG).read_text())
    (fresh / CONFIG).write_text(json.dumps(config | {"turbo": True}))
    with pytest.warns(UserWarning, match="says 'turbo', which peft does not know here; it is ignored"):
        adapters.checked("expert", fresh)


def edited(folder, name, **fields):
    head, data = parts((folder / WEIGHTS).read_bytes())
    head[name] |= fields
    (folder / WEIGHTS).write_bytes(packed(head, data))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shape": [2**40, 2**40]}, "damaged"),
        ({"shape": [2**63, 4]}, "damaged"),
        ({"shape": [6, 2]}, "ranks of proj_out differ"),
        ({"data_offsets": [0, 2**50]}, "damaged"),
        ({"data_offsets": [8, 0]}, "damaged"),
        ({"dtype": "I32"}, "as I32; save it as one of F64, F32, F16, BF16"),
        ({"shape": [12]}, "only LoRA on linear modules"),
    ],
)
def test_a_head_that_lies_is_refused(adapters, fresh, fields, words):
    edited(fresh, stem("proj_out"), **fields)
    assert words in refused(adapters, fresh)


def test_overlapping_places_are_refused(adapters, fresh):
    head, _ = parts((fresh / WEIGHTS).read_bytes())
    one, other = sorted(name for name in head if "to_q.lora_A" in name)
    edited(fresh, one, data_offsets=head[other]["data_offsets"])
    assert "damaged" in refused(adapters, fresh)


def test_a_name_that_stands_twice_is_refused_or_loses_nothing(adapters, fresh):
    head, data = parts((fresh / WEIGHTS).read_bytes())
    entries = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in head.items()]
    twice = json.dumps(head[stem("proj_out")] | {"shape": [1, 12]})
    text = "{" + ", ".join([*entries, f"{json.dumps(stem('proj_out'))}: {twice}"]) + "}"
    (fresh / WEIGHTS).write_bytes(packed(text.encode(), data))
    assert refused(adapters, fresh)


def test_a_head_of_many_bytes_is_not_read(adapters, fresh):
    (fresh / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + b"{}")
    assert "a head of 1,099,511,627,776, more than" in refused(adapters, fresh)


def test_a_sparse_file_of_a_terabyte_is_not_read(adapters, fresh):
    with (fresh / WEIGHTS).open("r+b") as file:
        file.truncate(1 << 40)
    assert "it has 1,099,511,627,776 bytes" in refused(adapters, fresh)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named(adapters, tmp_path, bad):
    broken = lora()
    broken.modules["proj_out"].b[0, 0] = bad
    write_lora(tmp_path, broken)
    assert "lora_B of proj_out holds values that are not finite" in refused(adapters, tmp_path)


def test_weights_that_overflow_fp32_are_refused(adapters, fresh):
    head, data = parts((fresh / WEIGHTS).read_bytes())
    start, end = head[stem("proj_out")]["data_offsets"]
    wide = struct.pack("<12d", *[1e300] * 12)
    for name, entry in head.items():
        if name != stem("proj_out") and "data_offsets" in entry and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset + 48 for offset in entry["data_offsets"]]
    head[stem("proj_out")] |= {"dtype": "F64", "data_offsets": [start, start + 96]}
    (fresh / WEIGHTS).write_bytes(packed(head, data[:start] + wide + data[end:]))
    assert "lora_A of proj_out holds values that are not finite" in refused(adapters, fresh)


@pytest.mark.parametrize("alpha", [torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(torch.nan), torch.ones(2)])
def test_an_alpha_that_is_no_positive_number_is_refused(adapters, tmp_path, alpha):
    write_plain(tmp_path, lora())
    file = tmp_path / DIFFUSERS_WEIGHTS
    save_file(load_file(file) | {"transformer.proj_out.alpha": alpha}, file)
    assert "the alpha of proj_out must be one positive number" in refused(adapters, tmp_path)


BOUNDED = """
import resource, sys
from pathlib import Path
from flowopd.errors import CheckpointError
from flowopd.lora_file import read_lora
import torch
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
for folder in sys.argv[1:]:
    try:
        read_lora(Path(folder))
    except CheckpointError as error:
        print("refused:", error)
"""


def test_what_a_head_declares_takes_no_memory(fresh, tmp_path):
    lies = []
    for i, fields in enumerate([{"shape": [2**40, 2**40]}, {"data_offsets": [0, 2**50], "shape": [2**24, 2**24]}]):
        lies.append(shutil.copytree(fresh, tmp_path / f"lie-{i}"))
        edited(lies[-1], stem("proj_out"), **fields)
    lies.append(shutil.copytree(fresh, tmp_path / "sparse"))
    with (lies[-1] / WEIGHTS).open("r+b") as file:
        file.truncate(1 << 40)
    done = subprocess.run([sys.executable, "-c", BOUNDED, *lies], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused:") == len(lies)
