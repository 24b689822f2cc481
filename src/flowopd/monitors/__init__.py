"""What pictures and velocities tell of a run without any reward: artefacts of a grid, noise, saturation, collapse."""
