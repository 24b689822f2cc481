"""A measurement in lines for people, and what torch's profiler says of one update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.profiler import ProfilerActivity, profile

from flowopd.stages.bench.counting import ROLES
from flowopd.stages.bench.settings import BenchConfig
from flowopd.stages.bench.subject import bare_model, new_ledger, untaught, update_of, with_teachers


def described(found: Mapping[str, Any]) -> str:
    """One measurement."""
    counts = [f"{role} {found['forwards'][role]:.3g} ({found['rows'][role]:.3g} rows)" for role in ROLES]
    least, most = found["seconds_spread"]
    lines = [
        f"model               {found['model']}, {found['parameters'] / 1e6:.1f} M parameters, "
        f"{found['image_tokens']} + {found['text_tokens']} tokens, {found['dtype']} on {found['device']}",
        f"update              {found['batch']} samples, {found['steps']} steps, {found['teachers']} teachers, "
        f"schedule {found['schedule']}, query {found['query']}",
        f"time                {found['seconds_per_update']:.3f} s ({least:.3f} to {most:.3f}), "
        f"{1000 * found['seconds_per_sample_step']:.2f} ms a sample and step",
        f"forwards            {', '.join(counts)}, a sample and step",
        f"backwards           {found['backwards']:.3g} a sample and step",
        f"outside the model   {100 * found['outside_model_share']:.1f} % of the time",
        f"work                {found['flops_per_update'] / 1e9:.1f} GFLOP, "
        f"{100 * found['matmul_peak_share']:.0f} % of {found['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s",
        f"memory              {found['peak_memory_mib']:.0f} MiB at most, {found['teacher_memory_mib']:.1f} a teacher "
        f"(its adapter {found['adapter_mib']:.1f})",
    ]
    return "\n".join(lines + (_compared(found["compare"]) if "compare" in found else []))


def _compared(other: Mapping[str, Any]) -> list[str]:
    ratios = ", ".join(f"{ratio:.2f}" for ratio in other["ratios"])
    return [
        f"against {other['schedule']:<12}{other['seconds_per_update']:.3f} s, query {other['query']}, student guided "
        f"by {other['student_guidance']:g}",
        f"  takes             {other['ratio']:.2f} times as long (pair by pair {ratios}), with "
        f"{other['passes_ratio']:.2f} times the forwards and backwards",
    ]


def curve(found: Mapping[str, Any]) -> str:
    """A scan, a line a value."""
    head = f"{found['scan']:>8}  seconds  ms/sample/step  peak MiB"
    lines = [
        f"{point['value']:>8}  {point['seconds_per_update']:7.3f}  {1000 * point['seconds_per_sample_step']:14.2f}  "
        f"{point['peak_memory_mib']:8.0f}"
        for point in found["points"]
    ]
    return "\n".join([head, *lines])


def profiled(config: BenchConfig, rows: int = 15) -> str:
    """Torch's table of the operations that take most of one update's time."""
    subject = with_teachers(untaught(config, bare_model(config)), config.teachers)
    update = update_of(subject, config, new_ledger(subject))
    update(0)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        update(1)
    return seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=48)
