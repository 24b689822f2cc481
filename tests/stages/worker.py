"""What the tests start several times at once: whole runs, one after the other, `RECIPE.json OUT` each."""

import json
import sys
from pathlib import Path

from flowopd.errors import DataError
from flowopd.models import sd3
from flowopd.pipeline import open_run, run
from flowopd.processes import is_main, state
from flowopd.recipe import make_recipe
from flowopd.stages import grpo
from flowopd.stages.sample import draw_to


def tiring(judge):
    """The judge, which gives its scores once and then no more."""
    calls = []

    def tired(self, *given):
        calls.append(given)
        if len(calls) > 1:
            raise DataError("the judge is tired; let it sleep")
        return judge(self, *given)

    return tired


def of_some(decode):
    """The decoder, which cannot take no latents at all, as AutoencoderKL."""

    def strict(self, latents):
        if not len(latents):
            raise RuntimeError("cannot decode no latents")
        return decode(self, latents)

    return strict


pairs = sys.argv[1:]
for recipe, out in zip(pairs[::2], pairs[1::2], strict=True):
    tree = json.loads(Path(recipe).read_text())
    if tree.pop("others_fail", False) and not is_main():
        raise SystemExit(f"process {state().process_index} gives up")
    if tree.pop("breaks_in", None) == state().process_index:
        forward = sd3.Sd3Field.__call__
        sd3.Sd3Field.__call__ = lambda self, *given, forward=forward: forward(self, *given) * float("nan")
    if tree.pop("judge_tires_in", None) == state().process_index:
        grpo.Task.judge = tiring(grpo.Task.judge)
    if tree.pop("decodes_no_nothing", False):
        sd3.Sd3.decode = of_some(sd3.Sd3.decode)
    drawn = tree.pop("drawn", [])
    run(make_recipe(tree), out)
    if drawn:
        draw_to(open_run(make_recipe(tree), out), "base", drawn, 0, Path(out) / "pictures")
