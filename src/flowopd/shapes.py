"""Names of the tensor shapes that the maths annotates with; the tests execute them (jaxtyping + beartype).

`B` batch, `N` steps of a rollout, `grid` = N + 1 points of a sigma grid, `K` teachers, `*shape` the axes of
one sample, with `D` elements together. An axis named `_` may differ from one annotation to the next.
"""

from jaxtyping import Float, Int
from torch import Tensor

Scalar = Float[Tensor, ""]
PerSample = Float[Tensor, "B"]
Batch = Float[Tensor, "B *shape"]
Times = Scalar | PerSample
Grid = Float[Tensor, "grid"]
Path = Float[Tensor, "grid B *shape"]
PerStep = Float[Tensor, "N"]
PerStepSample = Float[Tensor, "N B"]
Routes = Float[Tensor, "B K"]
PerTeacher = Float[Tensor, "K B *shape"]
Features = Float[Tensor, "B _"]
Classes = Int[Tensor, "B"]

Metrics = dict[str, Tensor]
