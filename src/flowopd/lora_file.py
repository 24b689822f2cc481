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
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowopd.durable import packed, replace_bytes
from flowopd.errors import CheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"

PEFT_PREFIX = "base_model.model."
DIFFUSERS_PREFIX = "transformer."
METADATA_KEY = "lora_adapter_metadata"

PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
NOT_PLAIN = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "alora_invocation_tokens",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)

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
    if path.is_file() and path.suffix == ".safetensors":
        return path
    for name in (WEIGHTS, DIFFUSERS_WEIGHTS):
        if (path / name).is_file():
            return path / name
    if (path / PICKLED_WEIGHTS).is_file():
        raise CheckpointError(
            f"{path / PICKLED_WEIGHTS} is a pickle and is not opened; convert it to {WEIGHTS} with "
            "safetensors.torch.save_file"
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
    config = _read_json(file.with_name(CONFIG)) if is_peft else _from_header(file, header, prefix)
    _check_config(file, config)
    named = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    alphas = {key: tensor.item() for key, tensor in named.items() if key.endswith(".alpha")}
    pairs = _pairs(file, {key: tensor for key, tensor in named.items() if key not in alphas})
    alone = {key.removesuffix(".alpha") for key in alphas} - pairs.keys()
    if alone:
        raise CheckpointError(f"{file} has an alpha without weights for {_some(alone)}; save it again")
    return LoraFile(
        config,
        {name: _factors(file, name, a, b, config, alphas.get(f"{name}.alpha")) for name, (a, b) in pairs.items()},
    )


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
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); fetch or save it again") from error


def _weights(prefix: str, modules: Mapping[str, Factors], fields: Mapping[str, Any]) -> bytes:
    tensors = {}
    for name, factors in modules.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = factors.a
        tensors[f"{prefix}{name}.lora_B.weight"] = factors.b
    header = json.dumps({prefix + name: value for name, value in fields.items()}, sort_keys=True)
    return packed({key: tensor.float() for key, tensor in tensors.items()}, {"format": "pt", METADATA_KEY: header})


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); a PEFT adapter needs it") from error


def _from_header(file: Path, header: Mapping[str, str], prefix: str) -> dict[str, Any]:
    try:
        fields = json.loads(header.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise CheckpointError(f"the {METADATA_KEY} in {file} is not JSON ({error}); save it again") from error
    return {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}


def _prefix(file: Path, keys: Mapping[str, Tensor]) -> str:
    for prefix in (PEFT_PREFIX, DIFFUSERS_PREFIX):
        strangers = [key for key in keys if not key.startswith(prefix)]
        if not strangers:
            return prefix
        if len(strangers) < len(keys):
            raise CheckpointError(f"{file} adapts more than a transformer: {_some(strangers)}; remove it")
    return ""


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    missing = {"r", "lora_alpha"} - config.keys()
    if config and missing:
        raise CheckpointError(f"the config of {file} lacks {sorted(missing)}; save the adapter again")
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA":
        raise CheckpointError(f"{file} is a {kind} adapter; only LORA is supported")
    odd = [name for name in NOT_PLAIN if config.get(name)]
    odd += ["bias"] if config.get("bias") not in (None, "none") else []
    odd += ["init_lora_weights"] if config.get("init_lora_weights") not in PLAIN_INITS else []
    if odd:
        values = {name: config[name] for name in odd}
        raise CheckpointError(f"{file} is not plain LoRA: {values}; train or convert it without these")


def _pairs(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """`(a, b)` by module, in the order of the names."""
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for key, tensor in tensors.items():
        match = _FACTOR.fullmatch(key)
        if match is None:
            raise CheckpointError(
                f"{file} holds {key}, not a LoRA weight of a linear module; remove it or convert the file"
            )
        sides[match["side"]][match["module"]] = tensor
    alone = sides["A"].keys() ^ sides["B"].keys()
    if alone:
        raise CheckpointError(f"{file} has only one of lora_A and lora_B for {_some(alone)}; save it again")
    if not sides["A"]:
        raise CheckpointError(f"{file} holds no LoRA weights; save it again")
    return {name: (sides["A"][name], sides["B"][name]) for name in sorted(sides["A"])}


def _factors(file: Path, name: str, a: Tensor, b: Tensor, config: Mapping[str, Any], alpha: float | None) -> Factors:
    shapes = f"lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}"
    if a.ndim != 2 or b.ndim != 2:
        raise CheckpointError(f"{file}: {name} has {shapes}; only LoRA on linear modules is supported")
    if a.shape[0] != b.shape[1] or not a.shape[0]:
        raise CheckpointError(f"{file}: the ranks of {name} differ, {shapes}; save it again")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise CheckpointError(f"{file}: {name} holds values that are not finite; use an earlier checkpoint")
    rank = a.shape[0]
    scale = _declared_scale(file, name, rank, config) if alpha is None else alpha / rank
    return Factors(a.float(), b.float(), scale)


def _declared_scale(file: Path, name: str, rank: int, config: Mapping[str, Any]) -> float:
    if not config:
        return 1.0
    ranks, alphas = (config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    r = ranks.get(get_pattern_key(ranks.keys(), name), config["r"])
    alpha = alphas.get(get_pattern_key(alphas.keys(), name), config["lora_alpha"])
    if r != rank:
        raise CheckpointError(
            f"{file}: {name} has rank {rank} but its config says {r}; find the config it was saved with"
        )
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _some(names: Any, most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
