"""The recipes that ship with flowopd: their names, their files, and what each is for. Cheap to import and to ask."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "recipes"
ENDING = ".yaml"


def shipped_recipes() -> dict[str, str]:
    """Every shipped recipe by name, with the first line of comment of its file."""
    return {path.stem: _summary(path) for path in sorted(FOLDER.glob(f"*{ENDING}"))}


def shipped_recipe(name: str) -> Path | None:
    """The file of a shipped recipe by `NAME`, `NAME.yaml` or `recipes/NAME.yaml`; None if there is none."""
    asked = Path(name.removeprefix("recipes/").removesuffix(ENDING) + ENDING)
    found = FOLDER / asked
    return found if not asked.is_absolute() and ".." not in asked.parts and found.is_file() else None


def _summary(path: Path) -> str:
    """The first comment that is for people."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("yaml-language-server")), "")
