"""What a run's manifest says: its recipe, the hashes of all that it read, and what made each of its stages."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flowopd.durable import replace_text
from flowopd.manifest import MANIFEST, read_manifest
from flowopd.session import Session

LIBRARIES = ("flowopd", "torch", "diffusers", "transformers", "peft", "accelerate")
SOURCE = Path(__file__).parent


def write_manifest(session: Session, stages: Sequence[str] = ()) -> None:
    """The manifest of a session's run; `stages` are those that were made just now, and others keep what made them."""
    recipe, maker = session.recipe, _maker(session.model.device)
    there = [name for name in recipe.teachers if session.whole_teacher(name) or session.teacher_folder(name).exists()]
    content = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "loss_form": f"{recipe.distill.loss}, weighting {recipe.distill.weighting}" if recipe.distill else None,
        "sha256": session.hashes(there),
        "sha256_prompts": session.prompt_hashes(),
        **maker,
        "made": _made(session.out) | dict.fromkeys(stages, maker),
    }
    replace_text(session.out / MANIFEST, json.dumps(content, indent=1))


def _made(out: Path) -> dict[str, Any]:
    """What made each stage, as the manifest says that is there."""
    return dict(read_manifest(out).get("made", {})) if (out / MANIFEST).exists() else {}


def _maker(device: torch.device) -> dict[str, Any]:
    """The code, libraries and hardware of this process; no commit where flowopd is installed as a package."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": None if changed is None else bool(changed),
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
        done = subprocess.run(["git", "-C", str(SOURCE), *command], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
