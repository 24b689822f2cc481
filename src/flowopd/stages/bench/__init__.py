"""How fast an update of distillation is, what it asks of the models, and how that compares to the field's schedule."""

from __future__ import annotations

from flowopd.stages.bench.curves import scan
from flowopd.stages.bench.measure import bench
from flowopd.stages.bench.page import write_page
from flowopd.stages.bench.settings import BenchConfig
from flowopd.stages.bench.shown import curve, described, profiled

__all__ = ["BenchConfig", "bench", "curve", "described", "profiled", "scan", "write_page"]
