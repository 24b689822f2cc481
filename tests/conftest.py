"""The maths modules run with their shape annotations executed, in every test of the session.

The hook has to be in place before anything imports these modules.
"""

import sys
from types import ModuleType

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

MATHS = (
    "types",
    "schedule",
    "gaussian",
    "dynamics",
    "velocity",
    "noise",
    "queries",
    "rollout",
    "routing",
    "objectives",
)

_checker = ModuleType("flowopd_shape_checker")
_checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy
sys.modules[_checker.__name__] = _checker
install_import_hook([f"flowopd.{name}" for name in MATHS], f"{_checker.__name__}.check")
