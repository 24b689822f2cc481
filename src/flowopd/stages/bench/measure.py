"""One measurement: counts, time, work and memory of an update, maybe beside another schedule's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowopd.stages.bench.counting import ROLES, Ledger
from flowopd.stages.bench.memory import memory_of
from flowopd.stages.bench.settings import BenchConfig
from flowopd.stages.bench.subject import Subject, bare_model, new_ledger, untaught, update_of, with_teachers
from flowopd.stages.bench.timing import Timed, Work, interleaved, matmul_rate, spread, work_of

MIB = 2**20


@dataclass(frozen=True, eq=False)
class _Entry:
    """One schedule while it is measured; its counts are those of the updates that are timed."""

    config: BenchConfig
    update: Callable[[int], Tensor]
    ledger: Ledger
    work: Sequence[Work]


def bench(config: BenchConfig, against: str | None = None) -> dict[str, Any]:
    """The measurement as plain values; `against` is another schedule that takes turns with it.

    Raises CheckpointError if there is no such model, ConfigError if there is no such schedule.
    """
    configs = [config] if against is None else [config, config.against(against)]
    torch.set_num_threads(config.threads or torch.get_num_threads())
    subject = with_teachers(untaught(config, bare_model(config)), config.teachers)
    entries = [_entered(subject, each) for each in configs]
    rate = matmul_rate(subject.model.device, subject.model.dtype)
    times = interleaved([(entry.update, entry.ledger) for entry in entries], config.repeats)
    rate = max(rate, matmul_rate(subject.model.device, subject.model.dtype))
    rows = [_row(entry, timed, rate) for entry, timed in zip(entries, times, strict=True)]
    memory = memory_of(config)
    found = {
        **_settings(config, subject),
        **rows[0],
        "matmul_flops_per_second": rate,
        "peak_memory_mib": memory.peak / MIB,
        "teacher_memory_mib": memory.teacher / MIB,
        "adapter_mib": memory.adapter / MIB,
    }
    if against is not None:
        found["compare"] = {**rows[1], **_ratios(times, rows)}
    return found


def _entered(subject: Subject, config: BenchConfig) -> _Entry:
    """Its work is counted over the updates that will be timed, which also warms the machine up."""
    ledger = new_ledger(subject)
    update = update_of(subject, config, ledger)
    work = [work_of(update, i) for i in (range(config.repeats) if config.query != "all" else range(1))]
    for counter in (ledger.forwards, ledger.rows):
        counter.clear()
    ledger.backwards = 0
    return _Entry(config, update, ledger, work)


def _settings(config: BenchConfig, subject: Subject) -> dict[str, Any]:
    """What the figures hold for."""
    side = subject.shape[1] * subject.shape[2] // subject.model.transformer.config.patch_size**2
    return {
        "model": config.model or config.preset,
        "parameters": sum(p.numel() for p in _base(subject)),
        "image_tokens": side,
        "text_tokens": subject.null["prompt_embeds"].shape[1],
        **config.model_dump(include={"teachers", "batch", "steps", "guidance", "anchor", "rank", "repeats"}),
        "device": config.device,
        "dtype": config.dtype,
        "threads": torch.get_num_threads(),
    }


def _base(subject: Subject) -> list[Tensor]:
    """The base's own parameters."""
    return [p for name, p in subject.model.transformer.named_parameters() if ".lora_" not in name]


def _row(entry: _Entry, times: Sequence[Timed], rate: float) -> dict[str, Any]:
    """The figures of one schedule; counts are a sample's, at a step of the grid, over all timed updates."""
    config, ledger = entry.config, entry.ledger
    visits = len(times) * config.batch * config.steps
    middle, least, most = spread([each.seconds for each in times])
    flops, _, _ = spread([work.flops for work in entry.work])
    return {
        "schedule": config.schedule,
        "query": config.query,
        "student_guidance": config.own_guidance,
        "seconds_per_update": middle,
        "seconds_spread": [least, most],
        "seconds_per_sample_step": middle / config.batch / config.steps,
        "forwards": {role: ledger.forwards[role] / visits for role in ROLES},
        "rows": {role: ledger.rows[role] / visits for role in ROLES},
        "backwards": ledger.backwards / visits,
        "outside_model_share": spread([1 - each.inside / each.seconds for each in times])[0],
        "flops_per_update": flops,
        "attention_share": entry.work[0].attention,
        "floor_seconds": flops / rate,
        "matmul_peak_share": flops / rate / middle,
    }


def _ratios(times: Sequence[Sequence[Timed]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many times as long the other schedule takes, pair by pair, and how many times the passes it makes."""
    pairs = [other.seconds / own.seconds for own, other in zip(*times, strict=True)]
    passes = [sum(row["forwards"].values()) + row["backwards"] for row in rows]
    return {
        "ratio": spread(pairs)[0],
        "ratios": pairs,
        "passes_ratio": passes[1] / passes[0],
    }
