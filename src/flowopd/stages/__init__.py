"""The stages of a run, one a file: each reads the run's folder and adds its own part to it."""
