"""Texts that are filled in from the templates beside this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def rendered(template: str, facts: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """The text of a template with these facts; a fact that it lacks is an error, and nothing is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(facts)


def keywords(options: Mapping[str, float | None]) -> str:
    """Options of a call as Python source: `num_inference_steps=10, guidance_scale=4.5`."""
    return ", ".join(f"{name}={value if value is None else format(value, 'g')}" for name, value in options.items())
