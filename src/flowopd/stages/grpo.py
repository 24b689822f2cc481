"""A policy trained on rewards (Flow-GRPO, 2505.05470): groups of images of a prompt, judged, the better made likelier.

What `likelier` means, and so how images are drawn, is the learner's: see `flowopd.stages.learners`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowopd.checkpoint import Checkpoints
from flowopd.configs import PolicyConfig, TaskConfig
from flowopd.durable import write_folder
from flowopd.lora_file import LoraFile, lora_files
from flowopd.noise import seed_of
from flowopd.nonfinite import Plain, View
from flowopd.objectives import group_advantages
from flowopd.processes import only_main, sum_metrics, together, whole
from flowopd.prompts import Prompt
from flowopd.provenance import record
from flowopd.rewards import Reward
from flowopd.session import BASE, Session
from flowopd.stages.guard import Guard
from flowopd.stages.learners import LEARNERS, Drawn, Place
from flowopd.stages.monitor import Trained
from flowopd.stages.sample import repeated
from flowopd.stages.watch import RewardWatch
from flowopd.train import Trainer


@dataclass(frozen=True)
class Policy:
    """What is trained: an adapter's name, the stage it is logged as, its folder in the run, and on which tasks."""

    name: str
    stage: str
    folder: str
    config: PolicyConfig
    tasks: Sequence[TaskConfig]


def train_policy(session: Session, policy: Policy, identity: Mapping[str, object], start: LoraFile | None) -> Path:
    """Train the adapter of a policy, from `start` if given; returns its folder.

    `identity` is what the adapter depends on besides the base, the seed and the prompts. Raises ConfigError for an
    unknown reward, a judge elsewhere that is not there, or a label without training prompts; NumericsError for a reward
    that says nothing.
    """
    session.reach_judges(task.reward for task in policy.tasks)
    tasks = [make_task(session, task, len(policy.tasks) == 1) for task in policy.tasks]
    conditioning = session.encode(prompt for task in tasks for prompt in task.prompts)
    session.create(policy.name, policy.config.adapter, start)
    record(session, policy.stage)
    single = replace(policy, config=policy.config.model_copy(update={"micro_batch": 1}))
    config, every = policy.config, [prompt for task in tasks for prompt in task.prompts]
    trained = Trained(policy.name, config.sampling, config.micro_batch, every, conditioning)
    watch = Guard(session, trained, repeat=lambda view: PolicyUpdate(session, single, tasks, view).repeat)
    trainer = Trainer(session.adapters.parameters(policy.name), policy.config.optim, watch)
    hashes, rewards = session.prompt_hashes(), {task.reward for task in policy.tasks}
    common = {
        **session.recipe.identity(),
        "sha256": session.hashes([]),
        "sha256_prompts": {task.prompts: hashes[f"{task.prompts}.train"] for task in policy.tasks},
        "judges": {name: judge.model for name, judge in session.recipe.judges.items() if name in rewards},
    }
    checkpoints = Checkpoints(session.out / "checkpoints" / policy.folder, {**common, **identity})
    with session.adapters.using(policy.name):
        update = PolicyUpdate(session, policy, tasks, Plain(conditioning))
        images = config.prompts_per_update * config.group
        trainer.run(update, session.tracker(policy.stage, config.optim.updates, images), checkpoints)
    folder = session.out / policy.folder
    files = lora_files(session.adapters.lora(policy.name), session.recipe.base)
    only_main(lambda: write_folder(folder, files))
    session.adapters.remove(policy.name)
    return folder


@dataclass(frozen=True, eq=False)
class Task:
    """One reward, ready to judge and watched, and the prompts that it is given for."""

    reward: Reward
    config: TaskConfig
    prompts: Sequence[Prompt]
    watch: RewardWatch

    def judge(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Tensor:
        """Rewards (B,) of pictures (B, H, W, 3)."""
        scores = self.reward(pictures, prompts)
        values = scores.details[self.config.detail] if self.config.detail else scores.value
        return torch.from_numpy(np.asarray(values, np.float32))


def make_task(session: Session, config: TaskConfig, alone: bool = True) -> Task:
    """A task, `alone` or of several, with its judge and its prompts.

    Raises ConfigError for an unknown reward, or a label without prompts.
    """
    watch = RewardWatch(config.reward, config.prompts, session.recipe.watch.patience, config.detail, alone)
    return Task(session.judge(config.reward), config, session.prompts(config.prompts, "train"), watch)


class PolicyUpdate:
    """One update on some tasks, a function of the seed and the step alone."""

    def __init__(self, session: Session, policy: Policy, tasks: Sequence[Task], view: View) -> None:
        self.session, self.config, self.tasks = session, policy.config, tasks
        shares = [task.config.share for task in tasks]
        counts = apportioned(self.config.prompts_per_update, shares)
        self.counts = [min(count, len(task.prompts)) for count, task in zip(counts, tasks, strict=True)]
        guidance = self.config.sampling.guidance
        trained, reference = (
            view.field(role, session.field(model, guidance, view.conditioning))
            for role, model in (("the policy", policy.name), ("the reference", BASE))
        )
        place = Place(session.model.grid(self.config.sampling.steps), session.latent_shape(), session.recipe.seed)
        self.learner = LEARNERS[self.config.loss](trained, reference, place, self.config, view.conditioning)
        self._checked = False

    def __call__(self, step: int) -> dict[str, float]:
        chosen, drawn = self._draw(step)
        if not self._checked:
            self.learner.check(drawn)
            self._checked = True
        own = together(lambda: self._judge(drawn, chosen))
        rewards = whole(own, drawn.rows, self.config.group * sum(map(len, chosen)))
        self._watch(step, rewards, chosen)
        advantages = group_advantages(rewards, self.config.group).to(drawn.latents.device)
        return sum_metrics(self.learner.learn(drawn, advantages)) | self._told(rewards)

    def repeat(self, step: int) -> None:
        """Draw the images of an update and learn from them without a judge, as if all were equally good."""
        chosen, drawn = self._draw(step)
        count = self.config.group * sum(map(len, chosen))
        self.learner.learn(drawn, torch.ones(count, device=drawn.latents.device))

    def _draw(self, step: int) -> tuple[list[list[Prompt]], Drawn]:
        """The prompts of each task in an update, and this process's images of them."""
        chosen = [self._choose(task, count, step) for task, count in zip(self.tasks, self.counts, strict=True)]
        return chosen, self.learner.draw(step, [prompt for part in chosen for prompt in part])

    def _judge(self, drawn: Drawn, chosen: Sequence[Sequence[Prompt]]) -> Tensor:
        """The rewards of this process's images, maybe none, each judged for its own task."""
        group, rows = self.config.group, drawn.rows
        many = repeated([prompt for part in chosen for prompt in part], group)
        prompts, owner = many[rows], np.repeat(np.arange(len(self.tasks)), np.multiply(self.counts, group))[rows]
        parts = drawn.latents.split(self.config.micro_batch) if len(prompts) else ()
        pictures = [self.session.model.decode(part) for part in parts]
        own = torch.empty(len(prompts))
        for i, task in enumerate(self.tasks):
            mine = np.flatnonzero(owner == i)
            if len(mine):
                own[mine] = task.judge(np.concatenate(pictures)[mine], [prompts[j] for j in mine])
        return own

    def _watch(self, step: int, rewards: Tensor, chosen: Sequence[Sequence[Prompt]]) -> None:
        """Show each task's part of the rewards (B,) to those who watch it. Raises NumericsError if they say nothing."""
        parts = rewards.split([len(prompts) * self.config.group for prompts in chosen])
        for task, part, prompts in zip(self.tasks, parts, chosen, strict=True):
            task.watch(step, part.numpy(), repeated(prompts, self.config.group))

    def _told(self, rewards: Tensor) -> dict[str, float]:
        """What is logged of the rewards (B,): all together, and each task's where there are several."""
        grouped = rewards.reshape(-1, self.config.group)
        by_task = zip(self.tasks, grouped.split(self.counts), strict=True)
        by_label = {f"reward/{task.config.prompts}": float(part.mean()) for task, part in by_task}
        return {
            "reward": float(rewards.mean()),
            **(by_label if len(self.tasks) > 1 else {}),
            "reward_spread": float(grouped.std(1).mean()),
            "flat_groups": float((grouped.amax(1) == grouped.amin(1)).float().mean()),
        }

    def _choose(self, task: Task, count: int, step: int) -> list[Prompt]:
        """The task's prompts of this update, all different."""
        rng = np.random.default_rng(seed_of(self.session.recipe.seed, "prompts", step))
        chosen = rng.choice(len(task.prompts), count, replace=False)
        return [task.prompts[i] for i in chosen]


def apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """`total` things given out in proportion to the shares, each at least one, by largest remainders."""
    free = total - len(shares)
    exact = [free * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: free - sum(counts)]:
        counts[i] += 1
    return [1 + count for count in counts]
