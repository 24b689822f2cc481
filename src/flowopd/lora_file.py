"""LoRA adapters as files: what a module's weights gain is `scale * b @ a`, with `a` (r, in) and `b` (out, r).

`write_lora` writes a PEFT folder. Plain peft reads alpha in `adapter_config.json`, plain diffusers in the
header of the weights, so the strength is right in both when alpha is not the rank:

    transformer = PeftModel.from_pretrained(transformer, "student")

    pipe = StableDiffusion3Pipeline.from_pretrained(base)
    pipe.transformer.load_lora_adapter(
        "student", weight_name="adapter_model.safetensors", prefix="base_model.model", adapter_name="student")

`pipe.load_lora_weights(folder)` only looks for keys that start with `transformer.`: for it, and for readers
that know no alpha at all, `write_diffusers_lora` writes the other format, with the scale inside `b`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowopd.durable import packed, replace_bytes
from flowopd.errors import CheckpointError
from flowopd.lora_config import check_config, scales
from flowopd.untrusted import json_values, read_at_most

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"

PEFT_PREFIX = "base_model.model."
DIFFUSERS_PREFIX = "transformer."
METADATA_KEY = "lora_adapter_metadata"

HEADER, ADAPTER = 16 << 20, 16 << 30
"""Bytes of the head of a weights file, and of all of it, that are read."""

DTYPES = ("F64", "F32", "F16", "BF16")
"""What weights may be stored as."""

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, eq=False)
class Factors:
    """One linear module's weight change `scale * b @ a`: `a` (r, in), `b` (out, r)."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """The number of rows of `a`."""
        return self.a.shape[0]

    def delta(self) -> Tensor:
        """The weight change (out, in)."""
        return self.scale * self.b @ self.a


@dataclass(frozen=True, eq=False)
class LoraFile:
    """An adapter: its weight changes by module name, and the fields of its `adapter_config.json`.

    The modules are the truth about ranks and scales; `config` says where the adapter came from and what it
    was meant to target. Tensors are fp32 on the CPU.
    """

    config: Mapping[str, Any]
    modules: Mapping[str, Factors]


def peft_config(modules: Mapping[str, Factors]) -> dict[str, Any]:
    """The fields of a `peft.LoraConfig` under which these modules have exactly their ranks and scales."""
    ranks = {f"^{name}": factors.rank for name, factors in modules.items()}
    alphas = {f"^{name}": _number(factors.scale * factors.rank) for name, factors in modules.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != r},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(modules),
    }


def weights_file(path: Path) -> Path:
    """The safetensors file of an adapter folder, or `path` itself if it is one.

    Raises CheckpointError if there is none, or only a pickled one.
    """
    path = Path(path)
    if os.path.isfile(path) and path.suffix == ".safetensors":
        return path
    for name in (WEIGHTS, DIFFUSERS_WEIGHTS):
        if os.path.isfile(path / name):
            return path / name
    pickled = path if path.suffix in PICKLES else path / PICKLED_WEIGHTS
    if os.path.isfile(pickled):
        raise CheckpointError(
            f"{pickled} is a pickle and is not opened; convert it to {WEIGHTS} with safetensors.torch.save_file"
        )
    raise CheckpointError(f"no LoRA adapter at {path}; give a folder with {WEIGHTS} or {DIFFUSERS_WEIGHTS}")


def sha256_of(path: Path) -> str:
    """The SHA-256 of the adapter's weights file, in hexadecimal."""
    return hashlib.sha256(weights_file(path).read_bytes()).hexdigest()


def read_lora(path: Path) -> LoraFile:
    """The adapter of a PEFT folder, or of a diffusers LoRA folder or file.

    PEFT: `r`, `lora_alpha`, `rank_pattern`, `alpha_pattern` and `use_rslora` are honoured. Diffusers: a
    module's alpha stands in its own `.alpha` key, or else in the header; without either, alpha = rank.
    Raises CheckpointError if the file is missing, damaged, incomplete, contradicts its config, or holds
    anything but plain LoRA on linear modules (DoRA, biases, whole modules, convolutions).
    """
    file = weights_file(path)
    tensors, header = _read_safetensors(file)
    prefix = _prefix(file, tensors)
    is_peft = prefix == PEFT_PREFIX
    config = _read_config(file.with_name(CONFIG)) if is_peft else _from_header(file, header, prefix)
    where = f"the config of {file}"
    check_config(config, where)
    named = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    alphas = {key.removesuffix(".alpha"): tensor for key, tensor in named.items() if key.endswith(".alpha")}
    pairs = _pairs(file, {key: tensor for key, tensor in named.items() if not key.endswith(".alpha")})
    alone = alphas.keys() - pairs.keys()
    if alone:
        raise CheckpointError(f"{file} has an alpha without weights for {_some(alone)}; save it again")
    ranks = {name: _rank(file, name, a, b) for name, (a, b) in pairs.items()}
    own = {name: _alpha(file, name, tensor) / ranks[name] for name, tensor in alphas.items()}
    scale = scales(config, {name: rank for name, rank in ranks.items() if name not in own}, where) | own
    return LoraFile(config, {name: Factors(a.float(), b.float(), scale[name]) for name, (a, b) in pairs.items()})


def write_lora(folder: Path, lora: LoraFile, base_model_name: str | None = None) -> None:
    """Writes `lora_files` into a folder, each file whole or not at all. Raises CheckpointError if it cannot."""
    for name, content in lora_files(lora, base_model_name).items():
        replace_bytes(Path(folder) / name, content)


def write_diffusers_lora(folder: Path, lora: LoraFile) -> None:
    """Writes `diffusers_lora_files` into a folder. Raises CheckpointError if it cannot."""
    for name, content in diffusers_lora_files(lora).items():
        replace_bytes(Path(folder) / name, content)


def lora_files(lora: LoraFile, base_model_name: str | None = None) -> dict[str, bytes]:
    """The files of a PEFT folder, fp32, that peft and diffusers load as the head of this module says.

    `base_model_name` is the folder or hub id of the base; None keeps the one of `lora.config`.
    """
    base = base_model_name or lora.config.get("base_model_name_or_path")
    fields = peft_config(lora.modules)
    config = LoraConfig(**fields, base_model_name_or_path=base, inference_mode=True).to_dict()
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)
    return {CONFIG: text.encode(), WEIGHTS: _weights(PEFT_PREFIX, lora.modules, fields)}


def diffusers_lora_files(lora: LoraFile) -> dict[str, bytes]:
    """`pytorch_lora_weights.safetensors`, fp32, for `pipe.load_lora_weights(folder)`.

    The scale is multiplied into `b`, so that alpha = rank: readers that ignore alpha get the same strength.
    """
    modules = {name: Factors(f.a, f.scale * f.b, 1.0) for name, f in lora.modules.items()}
    return {DIFFUSERS_WEIGHTS: _weights(DIFFUSERS_PREFIX, modules, peft_config(modules))}


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, none of which is read before all are seen to be an adapter's, and what its head says."""
    try:
        _check_size(file)
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
            _check_entries(file, {key: opened.get_slice(key).get_dtype() for key in keys})
            return {key: opened.get_tensor(key) for key in keys}, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); fetch or save it again") from error


def _check_size(file: Path) -> None:
    with file.open("rb") as stream:
        head = int.from_bytes(stream.read(8), "little")
    if head > HEADER or file.stat().st_size > ADAPTER:
        raise CheckpointError(
            f"{file} is damaged, or no adapter: it has {file.stat().st_size:,} bytes and a head of {head:,}, more than "
            f"{ADAPTER:,} or {HEADER:,}; fetch or save it again"
        )


def _check_entries(file: Path, dtypes: Mapping[str, str]) -> None:
    for key, dtype in dtypes.items():
        if not (_FACTOR.fullmatch(key) or key.endswith(".alpha")):
            raise CheckpointError(
                f"{file} holds {key}, not a LoRA weight of a linear module; remove it or convert the file"
            )
        if dtype not in DTYPES:
            raise CheckpointError(f"{file} holds {key} as {dtype}; save it as one of {', '.join(DTYPES)}")


def _weights(prefix: str, modules: Mapping[str, Factors], fields: Mapping[str, Any]) -> bytes:
    tensors = {}
    for name, factors in modules.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = factors.a
        tensors[f"{prefix}{name}.lora_B.weight"] = factors.b
    header = json.dumps({prefix + name: value for name, value in fields.items()}, sort_keys=True)
    return packed({key: tensor.float() for key, tensor in tensors.items()}, {"format": "pt", METADATA_KEY: header})


def _read_config(file: Path) -> Any:
    try:
        return json_values(read_at_most(file, HEADER).decode())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); a PEFT adapter needs it") from error


def _from_header(file: Path, header: Mapping[str, str], prefix: str) -> dict[str, Any]:
    try:
        fields = json_values(header.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise CheckpointError(f"the {METADATA_KEY} in {file} is not JSON ({error}); save it again") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"the {METADATA_KEY} in {file} is no mapping of fields; save it again")
    return {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}


def _prefix(file: Path, keys: Mapping[str, Tensor]) -> str:
    for prefix in (PEFT_PREFIX, DIFFUSERS_PREFIX):
        strangers = [key for key in keys if not key.startswith(prefix)]
        if not strangers:
            return prefix
        if len(strangers) < len(keys):
            raise CheckpointError(f"{file} adapts more than a transformer: {_some(strangers)}; remove it")
    return ""


def _pairs(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """`(a, b)` by module, in the order of the names."""
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for key, tensor in tensors.items():
        module, side, _ = key.rsplit(".", 2)
        sides[side.removeprefix("lora_")][module] = tensor
    alone = sides["A"].keys() ^ sides["B"].keys()
    if alone:
        raise CheckpointError(f"{file} has only one of lora_A and lora_B for {_some(alone)}; save it again")
    if not sides["A"]:
        raise CheckpointError(f"{file} holds no LoRA weights; save it again")
    return {name: (sides["A"][name], sides["B"][name]) for name in sorted(sides["A"])}


def _rank(file: Path, name: str, a: Tensor, b: Tensor) -> int:
    """The rank of one module's factors. Raises CheckpointError if they are no factors, or not finite in fp32."""
    shapes = f"lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}"
    if a.ndim != 2 or b.ndim != 2:
        raise CheckpointError(f"{file}: {name} has {shapes}; only LoRA on linear modules is supported")
    if a.shape[0] != b.shape[1] or not a.shape[0]:
        raise CheckpointError(f"{file}: the ranks of {name} differ, {shapes}; save it again")
    if not a.numel() or not b.numel():
        raise CheckpointError(f"{file}: {name} is empty, {shapes}; save it again")
    for side, factor in (("lora_A", a), ("lora_B", b)):
        if not factor.float().isfinite().all():
            raise CheckpointError(
                f"{file}: {side} of {name} holds values that are not finite; use an earlier checkpoint"
            )
    return a.shape[0]


def _alpha(file: Path, name: str, tensor: Tensor) -> float:
    alpha = tensor.item() if tensor.numel() == 1 else math.nan
    if not 0 < alpha < math.inf:
        raise CheckpointError(
            f"{file}: the alpha of {name} must be one positive number, got {tensor.flatten()[:3].tolist()}; "
            "save it again"
        )
    return alpha


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _some(names: Any, most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
