"""Stable Diffusion 3.5 Medium: three public experts become one student, from Python, on one GPU of 24 GB or more.

    python examples/03_sd35_medium.py \\
        --prompts geneval=train_metadata.jsonl --prompts ocr=ocr.txt --prompts pickscore=pickscore.txt

`--base`, `--teacher` and `--prompts` take any other Stable Diffusion 3 pipeline, its experts, and their prompts; what
is small enough runs on a CPU too. The weights of the base come from the hub after its licence is accepted there, once.
"""

import argparse
from pathlib import Path

from flowopd import Distiller

BASE = "stabilityai/stable-diffusion-3.5-medium"
TEACHERS = [
    "geneval=jieliu/SD3.5M-FlowGRPO-GenEval",  # what is where, how many, which colour
    "ocr=jieliu/SD3.5M-FlowGRPO-Text",  # words that can be read
    "pickscore=jieliu/SD3.5M-FlowGRPO-PickScore",  # what people prefer
]


def pairs(values: list[str]) -> dict[str, str]:
    """NAME=SOURCE as a mapping."""
    return dict(value.split("=", 1) for value in values)


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=BASE, help="folder or hub id of a Stable Diffusion 3 pipeline")
    parser.add_argument("--teacher", action="append", help="NAME=FOLDER or hub id of an expert; repeatable")
    parser.add_argument("--prompts", action="append", required=True, help="NAME=FILE of its prompts; repeatable")
    parser.add_argument("--out", type=Path, default=Path("runs/sd35"), help="the run's folder")
    parser.add_argument("--updates", type=int, default=600, help="updates of the student")
    parser.add_argument("--resolution", type=int, default=512, help="side of the pictures, in pixels")
    parser.add_argument("--dtype", default="bfloat16", help="of the frozen base: bfloat16 on GPUs, float32 on CPUs")
    return parser.parse_args()


def main() -> None:
    """Distil, and draw one picture with the student."""
    given = options()
    teachers = pairs(given.teacher or TEACHERS)
    distiller = Distiller(
        given.base,
        teachers,  # adapters alone: all of them share one frozen base
        pairs(given.prompts),  # a prompt goes to the expert of its label's name
        out=given.out,
        dtype=given.dtype,
        resolution=given.resolution,
        gradient_checkpointing=True,  # recompute activations: slower, far less memory
        distill={
            "samples_per_label": 8,  # pictures of each label in every update
            "micro_batch": 4,  # pictures at a time; changes no result
            "query": {"kind": "beta"},  # one trained step a rollout: the other nine cost no backward
            "anchor": {"model": list(teachers)[-1], "weight": 0.02},  # hold every sample near the last expert
            "sampling": {"steps": 10, "guidance": 4.5},
            "adapter": {"rank": 32, "alpha": 64},
            "optim": {"updates": given.updates, "learning_rate": 3e-4, "ema": 0.9},
        },
    )
    student = distiller.train(on_update=report)
    print(f"{student}: use it by pipe.load_lora_weights({str(student)!r})")
    print(*distiller.sample(['a red sign that says "K7"'], to=given.out / "pictures"))


def report(update: int, metrics: dict[str, float]) -> bool:
    """How far the student is from its experts, every tenth update; once it says what they say, that is enough."""
    if update % 10 == 0:
        print(f"update {update}: gap {metrics['gap']:.5f}")
    return metrics["gap"] < 1e-5


if __name__ == "__main__":
    main()
