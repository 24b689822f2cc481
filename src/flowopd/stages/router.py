"""Routing by the prompt's own text: which label it resembles, read off the embeddings that it is conditioned on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowopd.errors import ConfigError
from flowopd.prompts import Prompt
from flowopd.routing import LabelRouter, LinearClasses, fit_classes
from flowopd.session import Router, Session
from flowopd.shapes import Routes
from flowopd.tracking import warn
from flowopd.types import Condition

MOST = 1000
"""Prompts of a label that are fitted, spread evenly over its file; more change little, and each is read from disk."""

HELD = 5
"""Every so many-th prompt is held out to measure the accuracy."""

LOW = 0.9
"""Accuracy below which it is said aloud."""


class TextRouter:
    """Routes a prompt as the label is routed that its text resembles most; its own label is not looked at.

    `classes` scores the pooled embeddings of prompts (see `embedded`), a column for each of `labels`, which `by_label`
    routes. `conditioning` gives the rows of prompts by their texts.
    """

    def __init__(
        self,
        by_label: LabelRouter,
        labels: Sequence[str],
        classes: LinearClasses,
        conditioning: Callable[[Sequence[str]], Condition],
    ) -> None:
        self.by_label, self.labels = by_label, tuple(labels)
        self._classes, self._conditioning = classes, conditioning
        self._found: dict[str, str] = {}

    def __call__(self, prompts: Sequence[Prompt]) -> Routes:
        """The float32 weights (B, K) of these prompts over the teachers."""
        return self.by_label(self.resembled(prompts))

    def resembled(self, prompts: Sequence[Prompt]) -> list[str]:
        """The label that each prompt's text resembles most."""
        new = list(dict.fromkeys(prompt.text for prompt in prompts if prompt.text not in self._found))
        if new:
            best = self._classes(embedded(self._conditioning, new)).argmax(1).tolist()
            self._found |= {text: self.labels[i] for text, i in zip(new, best, strict=True)}
        return [self._found[prompt.text] for prompt in prompts]


def fit_text_router(
    by_label: LabelRouter, prompts: Sequence[Prompt], conditioning: Callable[[Sequence[str]], Condition]
) -> TextRouter:
    """The router that is fitted on those of the prompts whose label has a route. Raises ConfigError if none has."""
    known = [prompt for prompt in prompts if prompt.label in by_label.labels]
    labels = list(dict.fromkeys(prompt.label for prompt in known))
    if not labels:
        raise ConfigError(
            "route_by text learns from training prompts whose label has a route, and there are none; name a label as "
            "its teacher, or give it a route in `routes`"
        )
    fitted = [prompt for label in labels for prompt in _spread([p for p in known if p.label == label])]
    features = embedded(conditioning, [prompt.text for prompt in fitted])
    classes = fit_classes(features, torch.tensor([labels.index(prompt.label) for prompt in fitted]))
    return TextRouter(by_label, labels, classes, conditioning)


def accuracy(router: TextRouter, prompts: Sequence[Prompt]) -> dict[str, float]:
    """The share of prompts whose text resembles their own label: `routing/accuracy`, and `routing/accuracy/LABEL`."""
    right = [found == prompt.label for found, prompt in zip(router.resembled(prompts), prompts, strict=True)]
    shares = {"routing/accuracy": sum(right) / len(right)} if right else {}
    for label in dict.fromkeys(prompt.label for prompt in prompts):
        own = [one for one, prompt in zip(right, prompts, strict=True) if prompt.label == label]
        shares[f"routing/accuracy/{label}"] = sum(own) / len(own)
    return shares


def routes_of(
    session: Session, prompts: Sequence[Prompt], conditioning: Callable[[Sequence[str]], Condition]
) -> tuple[Router, dict[str, float]]:
    """The routes of a run's training prompts, and what is known of them before the first update.

    By text that is the accuracy on every fifth prompt of a fit on the others; the routes are those of a fit on all of
    them. Raises as `Session.router` and `fit_text_router` do.
    """
    labels = [prompt.label for prompt in prompts]
    if session.own.router is not None or session.recipe.route_by is None:
        return session.route(labels), {}
    by_label = session.router(labels)
    known = [prompt for prompt in prompts if prompt.label in by_label.labels]
    held = known[HELD - 1 :: HELD]
    rest = [prompt for i, prompt in enumerate(known) if i % HELD != HELD - 1]
    facts = accuracy(fit_text_router(by_label, rest, conditioning), held)
    if facts.get("routing/accuracy", 1.0) < LOW:
        warn(
            f"of held-out training prompts {facts['routing/accuracy']:.0%} are routed by their text as by their label; "
            "give more prompts, or leave route_by out"
        )
    return fit_text_router(by_label, known, conditioning), facts


def embedded(conditioning: Callable[[Sequence[str]], Condition], texts: Sequence[str], size: int = 64) -> Tensor:
    """The pooled embeddings (B, F) of prompts on the CPU: the tensors that hold one vector a prompt, side by side.

    Raises ConfigError for a model that is conditioned without any.
    """
    rows = [_pooled(conditioning(texts[i : i + size])) for i in range(0, len(texts), size)]
    return torch.cat(rows)


def _pooled(cond: Condition) -> Tensor:
    pooled = [tensor for _, tensor in sorted(cond.tensors.items()) if tensor.ndim == 2]
    if not pooled:
        raise ConfigError("this model is conditioned without a pooled embedding of the prompt; leave route_by out")
    return torch.cat([tensor.double().cpu() for tensor in pooled], 1)


def _spread(prompts: Sequence[Prompt]) -> list[Prompt]:
    """At most MOST of the prompts, evenly."""
    every = -(-len(prompts) // MOST)
    return list(prompts[::every])
