"""The whole method as one Python object: base, experts and prompts in; a student, its scores and its files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flowopd.errors import ConfigError
from flowopd.noise import seed_of
from flowopd.pipeline import judge, open_run, train
from flowopd.prompts import Prompt, write_prompts
from flowopd.recipe import Recipe, make_recipe
from flowopd.results import Results
from flowopd.session import Own, Router, Session
from flowopd.stages.beforehand import check
from flowopd.stages.export import export
from flowopd.stages.sample import draw_to
from flowopd.step import Estimator
from flowopd.tracking import OnUpdate

Given = str | Path | Sequence[str | Prompt]
"""Prompts as a caller gives them: a file, or what it would hold."""


class Distiller:
    """Several experts of one base become one model, in the folder `out`.

    `base` is a folder, hub id or `package:` name. `teachers` are adapters by name, each a folder, file or hub id, or a
    mapping of a recipe's keys, such as `{"transformer": FOLDER}`. `prompts` are those of each label: a file, several
    texts or `Prompt`s to train on, or a mapping of either by split. Every other keyword is a part of a recipe by its
    name, such as `distill={"optim": {"updates": 100}}`, `evaluate={...}`, `dtype="bfloat16"`. The student starts from
    the experts' mean unless `coldstart` says otherwise; None starts from the base.

    `router(prompts) -> (B, K)` replaces the routes by label, `objective(step, dynamics, target, weight) -> (B,)` the
    loss. An object over a folder that holds the same run goes on with it.

    Raises ConfigError for a key that a recipe does not have, or a value that it refuses.
    """

    def __init__(
        self,
        base: str | Path,
        teachers: Mapping[str, str | Path | Mapping[str, Any]],
        prompts: Mapping[str, Given | Mapping[str, Given]],
        out: str | Path = "runs/distill",
        *,
        router: Router | None = None,
        objective: Estimator | None = None,
        **parts: Any,
    ) -> None:
        self.out, self._own = Path(out), Own(router=router, objective=objective)
        self._texts: dict[Path, list[Prompt]] = {}
        tree = {
            "base": str(base),
            "teachers": {name: _teacher(source) for name, source in teachers.items()},
            "prompts": {label: self._files(label, source) for label, source in prompts.items()},
            "coldstart": {"kind": "merge"},
            "distill": {},
            **parts,
        }
        self.recipe: Recipe = make_recipe(tree)

    def train(self, on_update: OnUpdate | None = None) -> Path:
        """Every stage that trains; returns the student's folder, OUT/student: a LoRA of the base.

        `on_update(update, metrics)` hears of each update of each stage; returning True ends that stage after it, with
        what it has learnt. Raises ConfigError if `out` holds another run, and as `check` and the stages do.
        """
        self._session.own = replace(self._own, on_update=on_update)
        check(self._session)
        train(self._session)
        return self.out / "student"

    def evaluate(self, **changes: Any) -> Results:
        """Base, experts, merge and student on the metrics of `evaluate`, with a report; see OUT/results.json.

        `changes` replace keys of `evaluate` for this time, such as `limit=20`. Raises ConfigError if there is none.
        """
        if changes:
            tree = self._session.recipe.model_dump(mode="json", exclude_unset=True)
            self._session.recipe = make_recipe({**tree, "evaluate": {**(tree.get("evaluate") or {}), **changes}})
        return judge(self._session)

    def sample(self, prompts: Sequence[str], to: str | Path, model: str = "student", seed: int = 0) -> list[Path]:
        """One picture of each prompt, drawn by a model of the run into the folder `to`; returns the files.

        `model` is `base`, `teacher:NAME`, `merge`, `sft` or `student`. Raises ConfigError if there is none of that
        name, or a file is in the way.
        """
        return draw_to(self._session, model, prompts, seed, Path(to))

    def export(self, *to: str, model: str = "student", **options: Any) -> list[Path]:
        """A model of the run in the forms that others read, `diffusers` by default; returns the folders.

        `to` names formats: diffusers, peft, comfyui, merged. `options` and what is raised are `stages.export.export`'s.
        """
        return export(self._session, to or ("diffusers",), model, **options)

    @cached_property
    def _session(self) -> Session:
        session = open_run(self.recipe, self.out, self._own)
        for file, prompts in self._texts.items():
            write_prompts(file, prompts)
        return session

    def _files(self, label: str, source: Given | Mapping[str, Given]) -> dict[str, str]:
        """The recipe's words for some prompts, by split."""
        by_split = source if isinstance(source, Mapping) else {"train": source}
        return {split: self._file(label, given) for split, given in by_split.items()}

    def _file(self, label: str, given: Given) -> str:
        """The file of some prompts; texts go to one of the run that is named by its content."""
        if isinstance(given, str | Path):
            return str(given)
        prompts = [one if isinstance(one, Prompt) else Prompt(_text(label, one), label) for one in given]
        content = [(prompt.text, repr(sorted(prompt.metadata.items()))) for prompt in prompts]
        file = self.out / "prompts" / f"{label}-{seed_of(*(part for pair in content for part in pair)):016x}.jsonl"
        self._texts[file] = prompts
        return str(file)


def _text(label: str, given: object) -> str:
    if not isinstance(given, str):
        raise ConfigError(f"prompts of {label!r} are texts or flowopd.Prompt, got {repr(given)[:80]}")
    return given


def _teacher(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    return dict(source) if isinstance(source, Mapping) else {"adapter": str(source)}
