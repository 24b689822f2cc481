"""One frozen base, many named LoRA adapters on it: the student, the teachers, the anchor.

A teacher costs the bytes of its adapter, not of a model. Three things are made impossible here. A frozen
adapter never trains: `requires_grad` is true exactly for the parameters of trainable adapters, whichever
adapter is active. A gradient never belongs to another adapter: each is its own tensors, switching copies
nothing, and a checkpointed forward is recomputed under the adapter it ran under. An adapter is never silently
inert: loading is strict about modules, shapes and zeros.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.functional import delete_adapter
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flowopd.errors import CheckpointError, ConfigError
from flowopd.joint import RowAdapters
from flowopd.lora_config import targeted
from flowopd.lora_file import Factors, LoraFile, peft_config, read_lora
from flowopd.merge import truncated
from flowopd.types import Condition
from flowopd.velocity import VelocityField


class Adapters:
    """Named LoRA adapters on `transformer`, any module with linear layers inside; `None` names the bare base.

    The transformer is changed in place: its own parameters stop training and its linears gain LoRA layers.
    It comes in the dtype it is to run in. Raises ConfigError if it already carries LoRA layers.
    """

    def __init__(self, transformer: nn.Module) -> None:
        if any(isinstance(module, LoraLayer) for module in transformer.modules()):
            raise ConfigError("the base already carries LoRA layers; load it anew and give its adapter by name")
        self.transformer = transformer.requires_grad_(False)
        self._linears = {key: m for key, m in transformer.named_modules() if isinstance(m, nn.Linear)}
        self._layers: dict[str, LoraLayer] = {}
        self._trainable: dict[str, bool] = {}
        self._configs: dict[str, Mapping[str, Any]] = {}
        self._selection: list[str] = []  # one list, held by every LoRA layer: the active adapter, or none
        self._rows = RowAdapters()
        self.joins = all(module._compiled_call_impl is None for module in transformer.modules())
        self._checkpointing = [m for m in transformer.modules() if hasattr(m, "gradient_checkpointing")]
        transformer.register_forward_pre_hook(self._keep_adapter_in_recompute)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters there are, in the order they came."""
        return tuple(self._trainable)

    @property
    def active(self) -> str | None:
        """The adapter that forwards run with; None is the bare base."""
        return self._selection[0] if self._selection else None

    def load(self, name: str, source: Path | str | LoraFile, trainable: bool = False, allow_zero: bool = False) -> None:
        """Adds the adapter of a file or folder (see `read_lora`), or one in memory, which is copied.

        Trainable weights are kept in fp32, frozen ones in the dtype of the layer they adapt.
        Raises CheckpointError if it does not fit this base module by module, lacks modules that its config
        targets, or is frozen with every B zero (`allow_zero` accepts that); ConfigError if the name is taken.
        """
        lora = self.checked(name, source, allow_zero=trainable or allow_zero)
        self._add(name, lora.modules, lora.config, trainable)

    def checked(self, name: str, source: Path | str | LoraFile, allow_zero: bool = False) -> LoraFile:
        """The adapter of a source, seen to fit this base. Raises CheckpointError as `load` does."""
        lora = source if isinstance(source, LoraFile) else read_lora(Path(source))
        self._check_fits(name, lora)
        if not allow_zero and not any(factors.b.any() for factors in lora.modules.values()):
            raise CheckpointError(f"every lora_B of {name} is zero; name the base None, or pass allow_zero")
        return lora

    def create(
        self,
        name: str,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        seed: int,
        start: LoraFile | None = None,
    ) -> None:
        """Adds a trainable adapter, scale `alpha / rank`, on every linear whose name is or ends in a target.

        Fresh: A is Kaiming-uniform from `seed`, B is zero, so it begins as the base. With `start` it begins
        as that adapter instead: exactly, the surplus ranks fresh, or where `start` has a higher rank than
        `rank`, as its best approximation (`merge.truncated`).
        Raises ConfigError if `rank` or `alpha` is not positive, a target matches nothing, `start` adapts
        other modules, or the name is taken; CheckpointError if `start` is for another base.
        """
        if rank < 1 or not 0 < alpha < math.inf:
            raise ConfigError(f"{name} needs rank >= 1 and a positive alpha, got rank {rank}, alpha {alpha}")
        linears = self._matching(targets)
        generator = torch.Generator().manual_seed(seed)
        modules = {key: _fresh(linear, rank, alpha / rank, generator) for key, linear in linears.items()}
        if start is not None:
            self._check_fits(name, start)
            beyond = sorted(start.modules.keys() - modules.keys())
            if beyond:
                raise ConfigError(f"{name} starts from weights for {beyond[:3]}; add them to its targets")
            modules |= {key: _started(modules[key], factors) for key, factors in start.modules.items()}
        self._add(name, modules, {"peft_type": "LORA"}, trainable=True)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Forwards inside run with this adapter (None: the bare base); afterwards with the one before.

        Nests. Switching costs nothing and touches no weight, flag or graph: a backward may run inside,
        afterwards, or under another adapter.
        """
        before = self.active
        self._select(name)
        try:
            yield
        finally:
            self._select(before)

    def field(self, name: str | None, make_field: Callable[[Any], VelocityField]) -> VelocityField:
        """The velocity of the base with this adapter, as `make_field(transformer)` computes it."""
        self._check_known(name)
        return _AdapterField(self, name, make_field(self.transformer), make_field)

    @contextmanager
    def using_rows(self, names: Sequence[str | None], sizes: Sequence[int]) -> Iterator[None]:
        """Forwards inside, without a gradient, run their first `sizes[0]` rows with `names[0]`, and so on."""
        for name in names:
            self._check_known(name)
        with self.using(None), self._rows.using(names, sizes):
            yield

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters themselves, by `<module>.lora_A.weight` and `<module>.lora_B.weight`."""
        return {
            f"{key}.{side}.weight": getattr(layer, side)[name].weight
            for key, layer in self._layers_of(name).items()
            for side in ("lora_A", "lora_B")
        }

    def lora(self, name: str) -> LoraFile:
        """A copy of the adapter, fp32 on the CPU, to merge or to write."""
        modules = {key: _copied(layer, name) for key, layer in self._layers_of(name).items()}
        return LoraFile({**self._configs[name], **peft_config(modules)}, modules)

    def nbytes(self, name: str) -> int:
        """What the adapter's parameters take, in bytes."""
        return sum(parameter.nbytes for parameter in self.parameters(name).values())

    def remove(self, name: str) -> None:
        """Frees the adapter. Raises ConfigError if it is active, or there is none of that name."""
        self._check_known(name)
        if name == self.active:
            raise ConfigError(f"{name} is active and cannot be removed; leave its `using` first")
        delete_adapter(self.transformer, name, prefix="lora_")
        del self._trainable[name], self._configs[name], self.transformer.peft_config[name]

    def check_trainable(self, optimizer_params: Iterable[nn.Parameter], name: str) -> None:
        """Raises CheckpointError unless the optimizer holds exactly this adapter, and it is trainable."""
        held = [id(parameter) for parameter in optimizer_params]
        wanted = [id(parameter) for parameter in self.parameters(name).values()]
        if not self._trainable[name]:
            raise CheckpointError(f"{name} is frozen and cannot be optimised; load it with trainable=True")
        if sorted(held) != sorted(wanted):
            raise CheckpointError(
                f"the optimizer holds {len(held)} parameters, {len(set(held) & set(wanted))} of them among "
                f"the {len(wanted)} of {name}; build it from parameters({name!r})"
            )

    def _add(self, name: str, modules: Mapping[str, Factors], config: Mapping[str, Any], trainable: bool) -> None:
        if not name or "." in name or name in self._trainable:
            raise ConfigError(f"{name!r} cannot name an adapter; take one without dots, not of {self.names}")
        self._inject(name, modules)
        for key, factors in modules.items():
            layer, weight = self._layers[key], self._linears[key].weight
            dtype = torch.float32 if trainable else weight.dtype
            for side, value in ((layer.lora_A, factors.a), (layer.lora_B, factors.b)):
                side[name].weight = nn.Parameter(value.detach().to(weight.device, dtype, copy=True))
        self._trainable[name] = trainable
        self._configs[name] = config
        self._bind()

    def _inject(self, name: str, modules: Mapping[str, Factors]) -> None:
        """LoRA layers for exactly these modules, weights on the meta device: nothing is drawn at random."""
        exact = "|".join(re.escape(key) for key in modules)
        config = LoraConfig(**{**peft_config(modules), "target_modules": f"(?:{exact})"})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            inject_adapter_in_model(config, self.transformer, adapter_name=name, low_cpu_mem_usage=True)
        self._layers = {key: m for key, m in self.transformer.named_modules() if isinstance(m, LoraLayer)}

    def _bind(self) -> None:
        """Gives every layer the one list that selects its adapter, and `requires_grad` its rightful value."""
        for layer in self._layers.values():
            self._rows.watch(layer)
            layer.set_adapter(self._selection, inference_mode=True)
            layer.set_requires_grad([name for name, trains in self._trainable.items() if trains])

    def _select(self, name: str | None) -> None:
        self._check_known(name)
        self._selection[:] = [] if name is None else [name]

    def _keep_adapter_in_recompute(self, *_: Any) -> None:
        """Makes gradient checkpointing, whoever enabled it, recompute under the adapter of the forward.

        Runs before each forward. Diffusers and transformers both keep the function that checkpoints in
        `_gradient_checkpointing_func`.
        """
        for module in self._checkpointing:
            checkpoint = getattr(module, "_gradient_checkpointing_func", None)
            if checkpoint is not None and not isinstance(checkpoint, _SameAdapter):
                module._gradient_checkpointing_func = _SameAdapter(self, checkpoint)

    def _layers_of(self, name: str) -> dict[str, LoraLayer]:
        self._check_known(name)
        return {key: layer for key, layer in self._layers.items() if name in layer.lora_A}

    def _check_known(self, name: str | None) -> None:
        if name is not None and name not in self._trainable:
            raise ConfigError(f"there is no adapter {name!r}; there are {self.names}, and None, the base")

    def _check_fits(self, name: str, lora: LoraFile) -> None:
        for key, factors in lora.modules.items():
            if key not in self._linears:
                raise CheckpointError(
                    f"{name} adapts {key}, no linear module of this base; it is an adapter for another base"
                )
            linear = self._linears[key]
            theirs, ours = (factors.b.shape[0], factors.a.shape[1]), (linear.out_features, linear.in_features)
            if theirs != ours:
                raise CheckpointError(
                    f"{name} adapts {key} as {theirs}, the base has {ours}; it is an adapter for another base"
                )
        least, most = targeted(lora.config, self._linears, name) or (set(), set(lora.modules))
        missing, beyond = least - lora.modules.keys(), lora.modules.keys() - most
        if missing:
            raise CheckpointError(
                f"{name} lacks the weights of {len(missing)} modules that its config targets, such as "
                f"{min(missing)}; the file is incomplete, or an adapter for another base"
            )
        if beyond:
            raise CheckpointError(
                f"{name} has weights of {len(beyond)} modules that its config does not target, such as {min(beyond)}; "
                "find the config it was saved with"
            )

    def _matching(self, targets: Sequence[str]) -> dict[str, nn.Linear]:
        found = {target: [key for key in self._linears if f".{key}".endswith(f".{target}")] for target in targets}
        idle = [target for target, keys in found.items() if not keys]
        if idle or not found:
            raise ConfigError(f"targets {idle} name no linear module of the base; see its named_modules()")
        matched = {key for keys in found.values() for key in keys}
        return {key: linear for key, linear in self._linears.items() if key in matched}


@dataclass(frozen=True, eq=False)
class _AdapterField:
    """A field that runs under one adapter, whichever is active outside."""

    adapters: Adapters
    name: str | None
    field: VelocityField
    make_field: Callable[[Any], VelocityField]

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        with self.adapters.using(self.name):
            return self.field(x, t, cond)

    @property
    def kind(self) -> Hashable | None:
        """Fields of one base are asked together, unless it is compiled: its code is that of one adapter."""
        return (self.adapters, self.make_field) if self.adapters.joins else None

    def join(self, fields: Sequence[_AdapterField], sizes: Sequence[int]) -> VelocityField:
        """The base under an adapter for each part of the rows, without a gradient."""
        return _JoinedField(self.adapters, [field.name for field in fields], sizes, self.field)


@dataclass(frozen=True, eq=False)
class _JoinedField:
    """A field whose rows run under several adapters."""

    adapters: Adapters
    names: Sequence[str | None]
    sizes: Sequence[int]
    field: VelocityField

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        with self.adapters.using_rows(self.names, self.sizes):
            return self.field(x, t, cond)


@dataclass(frozen=True, eq=False)
class _SameAdapter:
    """A checkpointing function whose recompute, at backward, runs under the adapter of its forward."""

    adapters: Adapters
    checkpoint: Callable[..., Any]

    def __call__(self, module: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        name = self.adapters.active

        def run(*inputs: Any, **named: Any) -> Any:
            with self.adapters.using(name):
                return module(*inputs, **named)

        return self.checkpoint(run, *args, **kwargs)


def _fresh(linear: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> Factors:
    a = nn.init.kaiming_uniform_(torch.empty(rank, linear.in_features), a=math.sqrt(5), generator=generator)
    return Factors(a, torch.zeros(linear.out_features, rank), scale)


def _started(fresh: Factors, start: Factors) -> Factors:
    """The change of `start` at the rank and scale of `fresh`, which fills the rows that `start` leaves."""
    start = truncated(start, fresh.rank)
    return Factors(
        torch.cat([start.a, fresh.a[start.rank :]]),
        torch.cat([start.scale / fresh.scale * start.b, fresh.b[:, start.rank :]], dim=1),
        fresh.scale,
    )


def _copied(layer: LoraLayer, name: str) -> Factors:
    a, b = (side[name].weight.detach().to("cpu", torch.float32, copy=True) for side in (layer.lora_A, layer.lora_B))
    return Factors(a, b, layer.scaling[name])
