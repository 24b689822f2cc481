"""Folders of made-up runs, as many and as long as wanted, written as training writes them."""

import json
import shutil

import numpy as np

from flowopd.results import Estimate, Results, gap_closed

LABELS = ("composition", "text", "quality")
STEPS = 10


def metric_lines(updates, seed=0):
    """Lines of a distillation: `gap`, and the gap of every label and step of the path."""
    rng = np.random.default_rng(seed)
    fall = np.exp(-np.arange(updates) / (updates / 4)) + 0.05
    noise = rng.lognormal(0, 0.2, (updates, len(LABELS), STEPS))
    gaps = 0.2 * fall[:, None, None] * noise
    for i, gap in enumerate(gaps):
        row = {"stage": "distill", "step": i, "seconds": round(0.5 * (i + 1), 3), "gap": gap.mean()}
        for label, values in zip(LABELS, gap, strict=True):
            row |= {f"gap/{label}/{step}": value for step, value in enumerate(values)} | {f"gap/{label}": values.mean()}
        yield json.dumps({**row, "grad_norm": float(rng.lognormal())}) + "\n"


def record(seed=0):
    """Results of a base, three experts, a merge and a student."""
    rng = np.random.default_rng(seed)

    def one(low, high):
        mean = float(rng.uniform(low, high))
        return Estimate(mean=mean, ci95=(mean - 0.02, mean + 0.02), n=100)

    levels = {"base": (0.3, 0.4), **{f"teacher:{label}": (0.6, 0.9) for label in LABELS}, "student": (0.6, 0.9)}
    models = {name: {metric: one(*level) for metric in (*LABELS, "average")} for name, level in levels.items()}
    return gap_closed(Results(models=models), {label: label for label in LABELS})


def write_manifest(run, updates):
    """A manifest with the parts that the studio's table reads."""
    run.mkdir(parents=True, exist_ok=True)
    recipe = {"base": "nowhere", "distill": {"optim": {"updates": updates}}}
    (run / "manifest.json").write_text(json.dumps({"recipe": recipe}))


def write_runs(folder, runs, updates, kinds=4):
    """`runs` folders of `updates` rows each; there are `kinds` different ones, the others are copies."""
    for i in range(runs):
        run = folder / f"run-{i:02d}"
        write_manifest(run, updates)
        record(i).save(run / "results.json")
        if i < kinds:
            (run / "metrics.jsonl").write_text("".join(metric_lines(updates, i)))
        else:
            shutil.copyfile(folder / f"run-{i % kinds:02d}" / "metrics.jsonl", run / "metrics.jsonl")
