"""What a run's manifest says: its recipe, the hashes of all that it read, and what made each of its stages."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flowopd.durable import replace_text
from flowopd.manifest import MANIFEST, read_manifest
from flowopd.processes import only_main
from flowopd.session import Session

LIBRARIES = ("flowopd", "torch", "diffusers", "transformers", "peft", "accelerate")
SOURCE = Path(__file__).parent
WRITER = ("git_commit", "git_changed", "versions", "hardware")
"""The keys of a manifest that say what wrote it."""


def write_manifest(session: Session) -> None:
    """The manifest of a session's run; what made its stages stays."""
    recipe = session.recipe
    there = [name for name in recipe.teachers if session.whole_teacher(name) or session.teacher_folder(name).exists()]
    content = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "loss_form": f"{recipe.distill.loss}, weighting {recipe.distill.weighting}" if recipe.distill else None,
        "sha256": session.hashes(there),
        "sha256_prompts": session.prompt_hashes(),
        **maker(session.model.device),
        "made": _made(session.out),
    }
    replace_text(session.out / MANIFEST, json.dumps(content, indent=1))


def record(session: Session, stage: str, anew: bool = False) -> None:
    """Write into the manifest that a stage is made by this process: beside what made it before, as after a stop, or in
    its place if it is made `anew`. A folder without a manifest stays without."""

    def write() -> None:
        if not (session.out / MANIFEST).exists():
            return
        made, mine = _made(session.out), maker(session.model.device)
        before = [] if anew else made.get(stage, [])
        made[stage] = [*before, *([mine] if mine not in before else [])]
        replace_text(session.out / MANIFEST, json.dumps(read_manifest(session.out) | {"made": made}, indent=1))

    only_main(write)


def makers(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that made a run, in order, each once."""
    found = [one for each in manifest.get("made", {}).values() for one in each] or [_writer(manifest)]
    return [one for i, one in enumerate(found) if one not in found[:i]]


def _made(out: Path) -> dict[str, list[dict[str, Any]]]:
    """By stage what made it, as the manifest there says; what wrote it, of one that does not tell stages apart."""
    manifest = read_manifest(out) if (out / MANIFEST).exists() else {"made": {}}
    return dict(manifest["made"]) if "made" in manifest else {"run": [_writer(manifest)]}


def _writer(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in WRITER if name in manifest}


@cache
def maker(device: torch.device) -> dict[str, Any]:
    """The code, libraries and hardware of this process, as they are when it is first asked.

    There is no commit where flowopd runs from no checkout.
    """
    checkout = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    changes = _git("status", "--porcelain", "--", ".") if checkout else None
    return {
        "git_commit": _git("rev-parse", "HEAD") if checkout else None,
        "git_changed": None if changes is None else bool(changes),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "hardware": {
            "device": str(device),
            "processor": _processor(device),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }


def _processor(device: torch.device) -> str:
    """A graphics card's name; of a processor its name and the instructions that torch takes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def _git(*command: str) -> str | None:
    """What git says of the checkout that flowopd runs from, None where there is none."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(SOURCE), *command], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
