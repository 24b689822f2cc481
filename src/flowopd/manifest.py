"""Which run a folder holds, as the manifest in it says; light enough to be asked before anything heavy is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowopd.errors import ConfigError, DataError
from flowopd.owner import LOCK, OWNER

MANIFEST = "manifest.json"

GROWING = (MANIFEST, "metrics.jsonl")
"""What a run writes at its start and with every update."""

BEGUN = (MANIFEST, LOCK, OWNER, "cache", "prompts")
"""What a run's folder holds before its first update."""


def read_manifest(out: Path) -> dict[str, Any]:
    """What the manifest of a run's folder says; its `recipe` is a mapping.

    Raises ConfigError if the folder holds no run, DataError if the manifest is not what this program writes.
    """
    file = out / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        mend = "give its folder with --out"
        raise ConfigError(f"{out} holds no run ({MANIFEST} is missing); {mend}") from None
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}); restore it, or choose another --out") from None
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise DataError(f"{file} holds no recipe; restore it, or choose another --out")
    return content


def newest_run(place: Path) -> Path:
    """The run that was last worked on, of those that lie in a folder, or as a suite's ROW/seed-N in one of its folders.

    One that has made nothing so far counts only where no other has made anything. Raises ConfigError if there is none.
    """
    runs = [file.parent for pattern in ("*", "*/*/seed-*") for file in place.glob(f"{pattern}/{MANIFEST}")]
    if not runs:
        raise ConfigError(f"there is no run in {place}; give its folder with --out, or make one: flowopd demo")
    return max(runs, key=_last_worked_on)


def _last_worked_on(run: Path) -> tuple[bool, float]:
    """Whether a run has made anything, and when it last wrote."""
    made = any(path.name not in BEGUN for path in run.iterdir())
    return made, max((run / name).stat().st_mtime for name in GROWING if (run / name).exists())
