"""The tiny world of the stages, for examples that take any base."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _of_stages():
    path = Path(__file__).parents[1] / "stages" / "conftest.py"
    spec = spec_from_file_location("tiny_world_of_stages", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


world = _of_stages().world
