"""`python -m flowopd` is the `flowopd` command; `accelerate launch -m flowopd ...` starts it on several devices."""

from flowopd.cli import main

main()
