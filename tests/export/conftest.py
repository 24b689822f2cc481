"""A run on the mini base whose student is a random adapter, and what to measure of its exports."""

from dataclasses import dataclass

import pytest
import torch
from diffusers import SD3Transformer2DModel

from flowopd import make_recipe
from flowopd.adapters import Adapters
from flowopd.hub import located
from flowopd.lora_file import Factors, LoraFile, write_lora
from flowopd.models.sd3 import Sd3Field
from flowopd.pipeline import open_run
from flowopd.types import Condition

MINI = "package:mini/base"
HUB = "stabilityai/stable-diffusion-3.5-medium"
TARGETS = ("to_q", "attn.to_v", "add_k_proj", "to_out.0", "to_add_out", "ff.net.2", "norm1_context.linear", "proj_out")
RANK, ALPHA = 3, 7.0


@dataclass(frozen=True)
class Measure:
    """Transformers and their velocities, without anything of exports."""

    limit: float = 1e-5

    def base(self):
        """The mini world's transformer, by plain diffusers."""
        return SD3Transformer2DModel.from_pretrained(located(MINI), subfolder="transformer").eval()

    def drawn(self, transformer, seed, targets=TARGETS):
        """A random adapter whose alpha is not its rank, and which changes the velocity visibly."""
        adapters = Adapters(transformer)
        adapters.create("drawn", RANK, ALPHA, targets, seed)
        lora = adapters.lora("drawn")
        draw = torch.Generator().manual_seed(seed)
        modules = {
            name: Factors(f.a, 0.1 * torch.randn(f.b.shape, generator=draw), f.scale)
            for name, f in lora.modules.items()
        }
        return LoraFile(lora.config, modules)

    @torch.no_grad()
    def velocity(self, transformer):
        """At fixed random states."""
        draw = torch.Generator().manual_seed(9)
        config = transformer.config
        x = torch.randn(2, config.in_channels, 8, 8, generator=draw)
        cond = Condition(
            {
                "prompt_embeds": torch.randn(2, 12, config.joint_attention_dim, generator=draw),
                "pooled_prompt_embeds": torch.randn(2, config.pooled_projection_dim, generator=draw),
            }
        )
        return Sd3Field(transformer)(x, torch.tensor([0.3, 0.8]), cond)

    def trained(self, lora, transformer):
        """The velocity of a transformer with an adapter."""
        adapters = Adapters(transformer)
        adapters.load("trained", lora)
        with adapters.using("trained"):
            return self.velocity(transformer)

    def distance(self, one, other):
        """The largest difference of two velocities, in units of the largest value of the second."""
        return float((one - other).abs().max() / other.abs().max())


@pytest.fixture(scope="session")
def measure():
    return Measure()


@pytest.fixture(scope="session")
def lora(measure):
    return measure.drawn(measure.base(), seed=5)


@pytest.fixture
def tree(tmp_path, lora):
    """The plain values of a recipe on the mini base with an expert in a folder of this machine."""
    write_lora(tmp_path / "experts" / "look", lora)
    return {
        "base": MINI,
        "prompts": {"look": {"train": str(tmp_path / "secret" / "signs.txt")}},
        "teachers": {"look": {"adapter": str(tmp_path / "experts" / "look")}},
        "coldstart": {"kind": "merge"},
        "distill": {"adapter": {"rank": RANK, "alpha": ALPHA}, "sampling": {"steps": 2, "guidance": 1.5}},
    }


@pytest.fixture
def opened(tmp_path, tree, lora):
    """Opens a run whose student was trained, as far as its files tell, of the recipe with changes."""

    def open_changed(student=lora, **changes):
        session = open_run(make_recipe({**tree, **changes}), tmp_path / "run")
        write_lora(session.out / "student", student, MINI)
        return session

    return open_changed


@pytest.fixture
def session(opened):
    return opened()


@pytest.fixture
def as_from_hub(monkeypatch):
    """Makes of a session one whose base came from the hub; what is asked of its files is asked before."""

    def renamed(session):
        blank, _ = session.model.blank(3), session.model.call_options
        session.adapters, session.latent_shape()
        monkeypatch.setattr(session.model, "blank", lambda rows: blank)
        monkeypatch.setattr(session.model, "source", type(session.model.source)(HUB))
        session.recipe = session.recipe.model_copy(update={"base": HUB})
        return session

    return renamed


@pytest.fixture
def files():
    """The bytes of every file below a folder, by its path."""
    return lambda folder: {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
