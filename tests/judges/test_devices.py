"""Judges with nets: weights lie where they are told to, and whatever a net gets was sent there first.

`cpu:0` is the same place as `cpu` by another name, so a tensor tells whether it was sent there.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flowopd.prompts import Prompt
from flowopd.rewards import geneval
from flowopd.rewards.aesthetic import Aesthetic, Head
from flowopd.rewards.clipscore import ClipScore
from flowopd.rewards.geneval import Geneval
from flowopd.rewards.pickscore import PickScore

HERE = torch.device("cpu:0")
PROMPTS = [
    Prompt(f"a {colour} {kind}", "x", {"tag": "colors", "include": [{"class": kind, "count": 1, "color": colour}]})
    for kind, colour in (("dog", "red"), ("cat", "green"), ("bird", "blue"), ("car", "white"), ("bus", "pink"))
]


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (len(PROMPTS), 48, 40, 3), dtype=np.uint8)


@pytest.fixture
def build(clip_folder, detector_folder, tmp_path, monkeypatch):
    """Builds a judge by name on a device, and gives its nets."""
    monkeypatch.setattr(geneval, "THRESHOLD", 0.0)
    torch.manual_seed(1)
    head = str(tmp_path / "head.safetensors")
    save_file(Head(16).state_dict(), head)

    def make(name, device):
        if name == "geneval":
            judge = Geneval(model=detector_folder, clip=clip_folder, device=device)
            return judge, [judge._model, judge._clip._model]
        if name == "aesthetic":
            judge = Aesthetic(model=clip_folder, head=head, device=device)
            return judge, [judge._clip._model, judge._head]
        if name == "pickscore":
            judge = PickScore(model=clip_folder, processor=clip_folder, device=device)
        else:
            judge = ClipScore(model=clip_folder, device=device)
        return judge, [judge._clip._model]

    return make


every = pytest.mark.parametrize("name", ["geneval", "pickscore", "clipscore", "aesthetic"])


@pytest.fixture
def sent(monkeypatch):
    """Every tensor that was sent somewhere knows where."""
    move = torch.Tensor.to

    def to(tensor, *args, **options):
        moved = move(tensor, *args, **options)
        moved.sent = next((arg for arg in (*args, *options.values()) if isinstance(arg, torch.device)), None)
        return moved

    monkeypatch.setattr(torch.Tensor, "to", to)


def watched(nets):
    """The towers of the nets, and where each tensor that they got from outside had been sent."""
    places = []

    def note(module, args, options):
        tensors = [value for value in (*args, *options.values()) if isinstance(value, torch.Tensor)]
        places.extend(getattr(tensor, "sent", "nowhere") for tensor in tensors)

    for net in nets:
        for tower in [getattr(net, name, None) for name in ("vision_model", "text_model")]:
            if tower is not None:
                tower.register_forward_pre_hook(note, with_kwargs=True)
        if not hasattr(net, "vision_model") and not isinstance(net, Head):
            net.register_forward_pre_hook(note, with_kwargs=True)
    return places


@every
def test_what_a_net_gets_was_sent_to_its_device(build, sent, pictures, name):
    judge, nets = build(name, HERE)
    places = watched(nets)
    judge(pictures, PROMPTS)
    assert set(places) == {HERE} and len(places) >= 1 + (name != "aesthetic")


@every
def test_weights_lie_on_the_device(build, name):
    _, nets = build(name, "meta")
    assert {parameter.device.type for net in nets for parameter in net.parameters()} == {"meta"}


@every
@pytest.mark.parametrize("size", [1, 2, 3])
def test_pictures_by_and_by_score_as_all_at_once(build, pictures, name, size):
    judge, _ = build(name, HERE)
    whole = judge(pictures, PROMPTS)
    parts = [judge(pictures[i : i + size], PROMPTS[i : i + size]) for i in range(0, len(PROMPTS), size)]
    assert np.allclose(np.concatenate([part.value for part in parts]), whole.value, atol=1e-6)
    for view, values in whole.details.items():
        assert np.allclose(np.concatenate([part.details[view] for part in parts]), values, atol=1e-4)
