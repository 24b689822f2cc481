"""What an adapter's config says, checked: ranks, scales, and the modules it is for.

Its patterns are regular expressions written by others: they are matched as peft matches them, and given up after a
while.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Annotated, Any

import regex
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowopd.errors import CheckpointError
from flowopd.faults import Fault

PATIENCE = 10.0
"""Seconds that the patterns of one config may take."""

MOST_PATTERNS = 2000
LONGEST_PATTERN = 10_000

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

ALL = "all-linear"
"""What peft calls every linear module."""

Rank = Annotated[int, Field(ge=1, lt=2**31)]
Alpha = Annotated[float, Field(gt=0)]
Names = str | list[str] | None


class Fields(BaseModel):
    """The fields that decide what an adapter does, with peft's names and defaults; others are passed over."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    r: Rank
    lora_alpha: Alpha
    rank_pattern: Annotated[dict[str, Rank], Field(max_length=MOST_PATTERNS)] | None = None
    alpha_pattern: Annotated[dict[str, Alpha], Field(max_length=MOST_PATTERNS)] | None = None
    use_rslora: bool | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Annotated[str, Field(pattern=r"^\w*$")] | list[Annotated[str, Field(pattern=r"^\w+$")]] | None = (
        None
    )


def check_config(config: Any, where: str) -> None:
    """Raises CheckpointError, which begins with `where`, for a config of anything but plain LoRA; {} says nothing.

    Warns of fields that peft does not know.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{where} is no mapping of fields; save the adapter again")
    missing = {"r", "lora_alpha"} - config.keys()
    if config and missing:
        raise CheckpointError(f"{where} lacks {sorted(missing)}; save the adapter again")
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA":
        raise CheckpointError(f"{where} is that of a {kind} adapter; only LORA is supported")
    odd = [name for name in NOT_PLAIN if config.get(name)]
    odd += ["bias"] if config.get("bias") not in (None, "none") else []
    odd += ["init_lora_weights"] if config.get("init_lora_weights") not in PLAIN_INITS else []
    if odd:
        values = {name: config[name] for name in odd}
        raise CheckpointError(f"{where} is not that of plain LoRA: {values}; train or convert it without these")
    if config:
        _check_fields(config, where)


def _check_fields(config: Mapping[str, Any], where: str) -> None:
    try:
        Fields.model_validate(dict(config))
    except ValidationError as error:
        fault = Fault.first(error, config)
        value = repr(fault.value)[:80]
        raise CheckpointError(f"{where}: {fault.told()}, got {value}; save the adapter again") from None
    unknown = [name for name, value in config.items() if value and name not in LoraConfig.__dataclass_fields__]
    if unknown:
        warnings.warn(f"{where} says {unknown[0]!r}, which peft does not know here; it is ignored", stacklevel=2)


class Patterns:
    """Matches patterns against the names of modules, within PATIENCE seconds in all.

    Raises CheckpointError, which begins with `where`, for a pattern that is none, or takes longer.
    """

    def __init__(self, where: str) -> None:
        self._where, self._until = where, monotonic() + PATIENCE

    def whole(self, pattern: str, names: Iterable[str]) -> set[str]:
        """The names that a pattern matches as a whole."""
        compiled = self._compiled(pattern)
        return {name for name in names if self._matches(compiled, name)}

    def chosen(self, patterns: Mapping[str, Any], names: Iterable[str], default: Any) -> dict[str, Any]:
        """The value of the first pattern that matches a name, or its end after a dot; else the default."""
        compiled = [(self._compiled(rf"(.*\.)?({pattern})$"), value) for pattern, value in patterns.items()]
        return {name: next((v for found, v in compiled if self._matches(found, name)), default) for name in names}

    def _compiled(self, pattern: str) -> Any:
        if len(pattern) > LONGEST_PATTERN:
            raise CheckpointError(f"{self._where}: the pattern {pattern[:60]!r}... is too long; save the adapter again")
        try:
            re.compile(pattern)
            return regex.compile(pattern)
        except (re.error, regex.error, RecursionError, OverflowError, ValueError) as error:
            shown = f"{pattern[:80]!r} is no pattern of names ({error})"
            raise CheckpointError(f"{self._where}: {shown}; save the adapter again") from None

    def _matches(self, compiled: Any, name: str) -> bool:
        try:
            left = self._until - monotonic()
            if left > 0:
                return compiled.fullmatch(name, timeout=left) is not None
        except TimeoutError:
            pass
        raise CheckpointError(
            f"{self._where}: its patterns, such as {compiled.pattern[:80]!r}, take more than {PATIENCE:g} s to match; "
            "name its modules instead"
        )


def scales(config: Mapping[str, Any], ranks: Mapping[str, int], where: str) -> dict[str, float]:
    """The scale of each module, of its rank in the file. Raises CheckpointError if the config says another rank."""
    if not config:
        return dict.fromkeys(ranks, 1.0)
    patterns = Patterns(where)
    said = patterns.chosen(config.get("rank_pattern") or {}, ranks, config["r"])
    alphas = patterns.chosen(config.get("alpha_pattern") or {}, ranks, config["lora_alpha"])
    wrong = [name for name, rank in ranks.items() if said[name] != rank]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{where}: {name} has rank {ranks[name]} but its config says {said[name]}; "
            "find the config it was saved with"
        )
    root = bool(config.get("use_rslora"))
    return {name: alphas[name] / (math.sqrt(rank) if root else rank) for name, rank in ranks.items()}


def targeted(config: Mapping[str, Any], names: Iterable[str], where: str) -> tuple[set[str], set[str]] | None:
    """Those of a base's linear modules that a config asks for at least and at most; None if it does not say.

    A list of whole names may be meant as such, or as ends of names. Raises CheckpointError, which begins with `where`,
    for targets that contradict each other, and for patterns that take too long.
    """
    targets, excluded, layers = (
        config.get(key) for key in ("target_modules", "exclude_modules", "layers_to_transform")
    )
    if not targets or targets == ALL:
        return None
    linears = set(names)
    most = _matched(config, linears, where)
    whole = not isinstance(targets, str) and not excluded and layers is None and set(targets) <= linears
    return (set(targets) if whole else most), most


def _matched(config: Mapping[str, Any], names: set[str], where: str) -> set[str]:
    """The names that a config's targets match, as peft matches them."""
    targets, excluded, patterns = config["target_modules"], config.get("exclude_modules"), Patterns(where)
    out = patterns.whole(excluded, names) if isinstance(excluded, str) else set()
    listed = None if isinstance(excluded, str) else excluded
    exact = isinstance(targets, str)
    found = patterns.whole(targets, names) if exact else names
    layers = {field: config.get(field) for field in ("layers_to_transform", "layers_pattern")}
    try:
        wanted = LoraConfig(target_modules=list(found) if exact else targets, exclude_modules=listed, **layers)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}; save the adapter again") from None
    if exact and any(layers.values()):
        raise CheckpointError(f"{where}: target_modules is a pattern and layers_to_transform is set; leave one out")
    return {name for name in found - out if check_target_module_exists(wanted, name)}
