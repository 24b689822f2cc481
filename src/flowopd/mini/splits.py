"""The mini world's prompt files: train and test, combinations never trained, and the test prompts in other words."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowopd.mini.captions import DOMAINS, FOR_TRAINING, LEADS, SIGNS, caption, reworded, worded
from flowopd.mini.wishes import Wish, held_out, metadata, random_wish, trainable_wish
from flowopd.noise import seed_of
from flowopd.prompts import Prompt, write_prompts

TEST, UNSEEN, TRAIN = 360, 360, 900
"""Prompts of a domain in each split, at most: a task runs out where there are fewer different ones."""

ENOUGH = 300
"""Test prompts that a domain has at least, for the sake of its intervals."""

WORDINGS = 2
"""Other wordings of a training prompt, at most."""

SKILLS = {
    "objects": ("single_object", "two_object"),
    "counting": ("counting",),
    "colors": ("colors",),
    "attributes": ("color_attr",),
    "relations": ("position",),
}
"""Tasks of the composition prompts that an expert of their own may be trained on."""


def write_splits(folder: Path, seed: int = 0) -> None:
    """`SPLIT/DOMAIN.jsonl` for every split and domain; no prompt stands in both train and test.

    The training prompts of composition once more by skill, `train/SKILL.jsonl`, and those of every domain once more
    with other wordings, `wordings/DOMAIN.jsonl`, in two of the three sentences that `rewritten` has for a task.
    """
    for domain, tasks in DOMAINS.items():
        rng = np.random.default_rng([seed, list(DOMAINS).index(domain)])
        test = [wish for task in tasks for wish in _distinct(task, domain, TEST // len(tasks), set(), rng)]
        taken = {prompt for prompt, _ in test}
        train = [wish for task in tasks for wish in _distinct(task, domain, TRAIN // len(tasks), taken, rng)]
        unseen = [wish for task in tasks for wish in _unseen(task, domain, UNSEEN // len(tasks), rng)]
        rewritten = [(reworded(wish, domain, rng), wish) for _, wish in test]
        more = _more(domain, ENOUGH - len(test), [*test, *train], rng)
        test += more
        rewritten += [(reworded(wish, domain, rng), wish) for _, wish in more]
        for split, pairs in {"train": train, "test": test, "unseen": unseen, "rewritten": rewritten}.items():
            prompts = [Prompt(text, domain, metadata(wish, text)) for text, wish in pairs]
            write_prompts(folder / split / f"{domain}.jsonl", prompts)
        asked = {text for text, _ in rewritten}
        _write_wordings(folder / "wordings" / f"{domain}.jsonl", domain, train, asked, seed)
        if domain == "composition":
            _write_skills(folder / "train", train)


def _write_wordings(file: Path, domain: str, pairs: list[tuple[str, Wish]], asked: set[str], seed: int) -> None:
    """Training prompts with what a student may read in their stead, nothing of which is `asked` later."""
    rng = np.random.default_rng(seed_of("wordings", seed, domain))
    prompts = []
    for text, wish in pairs:
        wordings = sorted({worded(wish, domain, FOR_TRAINING, rng) for _ in range(WORDINGS)} - asked)
        prompts.append(Prompt(text, domain, metadata(wish, text) | {"wordings": wordings}))
    write_prompts(file, prompts)


def _write_skills(folder: Path, pairs: list[tuple[str, Wish]]) -> None:
    for skill, tasks in SKILLS.items():
        own = [Prompt(text, skill, metadata(wish, text)) for text, wish in pairs if wish.task in tasks]
        write_prompts(folder / f"{skill}.jsonl", own)


def _distinct(task: str, domain: str, wanted: int, taken: set[str], rng: np.random.Generator) -> list[tuple[str, Wish]]:
    """Different prompts outside `unseen` and not taken; a third of a small task's prompts stay for the other split."""
    found: dict[str, Wish] = {}
    for _ in range(40 * wanted):
        wish = trainable_wish(rng, (task,))
        text = caption(wish, domain, rng)
        if text not in taken:
            found[text] = wish
        if len(found) == min(wanted, _share(task, domain)):
            break
    return list(found.items())


def _share(task: str, domain: str) -> int:
    """How many prompts of a task one split may hold: half of all, where they are few."""
    return {"single_object": 6, "counting": 18}.get(task, 10_000) * len(LEADS.get(domain, SIGNS))


def _more(domain: str, lacking: int, had: list[tuple[str, Wish]], rng: np.random.Generator) -> list[tuple[str, Wish]]:
    """At least `lacking` further prompts, of the tasks that have not run out."""
    tasks = DOMAINS[domain]
    asked = (TEST + TRAIN) // len(tasks)
    roomy = [task for task in tasks if sum(wish.task == task for _, wish in had) == asked]
    taken, each = {prompt for prompt, _ in had}, -(-max(0, lacking) // len(roomy))
    return [wish for task in roomy for wish in _distinct(task, domain, each, taken, rng)]


def _unseen(task: str, domain: str, wanted: int, rng: np.random.Generator) -> list[tuple[str, Wish]]:
    """Different prompts of held-out combinations; tasks without any give none."""
    found: dict[str, Wish] = {}
    for _ in range(400 * wanted):
        wish = random_wish(task, rng)
        if held_out(wish):
            found[caption(wish, domain, rng)] = wish
        if len(found) == wanted:
            break
    return list(found.items())
