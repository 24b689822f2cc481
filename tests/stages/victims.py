"""Starts the program many times over without importing it as often: each call is a fork of this process.

It reads one order a line from standard input, JSON of an `Order`, and answers each with a line, JSON of what became of
it. This process starts no thread and makes no tensor, so that its forks begin clean.
"""

import json
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field

import diffusers
import torch.utils.tensorboard

import flowopd.pipeline
from flowopd.cli import main
from flowopd.tracking import Tracker

PRELOADED = (diffusers.StableDiffusion3Pipeline, torch.utils.tensorboard, flowopd.pipeline)
"""Imported lazily by the program; here before all forks."""


@dataclass(frozen=True)
class Order:
    """Call the program with `args`, as so many processes; send `signal` to the first `hit` of them.

    That is `delay` seconds after the main one has logged `rows` rows. Without a signal it runs to its end.
    """

    args: list
    log: str
    processes: int = 1
    port: int = 0
    signal: int = 0
    hit: int = 99
    rows: int = 0
    delay: float = 0.0
    environment: dict = field(default_factory=dict)


def child(order, rank, pipe):
    """One process of the program; never returns."""
    os.setpgid(0, 0)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ |= order.environment
    if order.processes > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": order.processes, "MASTER_PORT": order.port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in places.items()}}
    write = Tracker.log

    def log_and_tell(self, *args, **kwargs):
        write(self, *args, **kwargs)
        os.write(pipe, b".")

    Tracker.log = log_and_tell if rank == 0 else write
    sys.argv = ["flowopd", *order.args]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def strike(order, victims, pipe):
    """Waits for the moment and sends the signal; returns whether it came before the end."""
    for _ in range(order.rows):
        if not os.read(pipe, 1):
            return False
    deadline = time.monotonic() + order.delay
    while time.monotonic() < deadline:
        readable, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
        if readable and not os.read(pipe, 4096):
            return False
    for victim in victims[: order.hit]:
        os.kill(victim, order.signal)
    return True


def carry_out(order):
    """What became of an order: the exit codes, -9 for SIGKILL, whether the signal came in time, and the seconds."""
    start, (ours, theirs) = time.monotonic(), os.pipe()
    victims = []
    for rank in range(order.processes):
        victim = os.fork()
        if not victim:
            os.close(ours)
            child(order, rank, theirs)
        victims.append(victim)
    os.close(theirs)
    struck = strike(order, victims, ours) if order.signal else False
    codes = [os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) for victim in victims]
    os.close(ours)
    return {"codes": codes, "struck": struck, "seconds": time.monotonic() - start}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        print(json.dumps(carry_out(Order(**json.loads(line)))), flush=True)
