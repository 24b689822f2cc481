"""An adapter counts as much as is said, inside alone, and leaves no trace."""

import pytest
import torch
from torch import nn

from flowopd.adapters import Adapters
from flowopd.lora_file import Factors, LoraFile
from flowopd.strength import strengthened


def made():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    adapters = Adapters(net)
    for name, scale in (("one", 0.7), ("two", 2.0)):
        modules = {"0": Factors(torch.randn(2, 4), torch.randn(3, 2), scale)}
        adapters.load(name, LoraFile({"peft_type": "LORA"}, modules))
    return net, adapters


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5])
def test_the_weight_change_counts_so_many_times(factor):
    net, adapters = made()
    x = torch.randn(5, 4)
    with torch.no_grad():
        base = net[0](x)
        with adapters.using("one"):
            change = net[0](x) - base
            with strengthened(adapters, "one", factor):
                torch.testing.assert_close(net[0](x), base + factor * change)
            torch.testing.assert_close(net[0](x), base + change, rtol=0, atol=0)


def test_the_others_stay_and_an_error_leaves_the_scales_as_they_were():
    net, adapters = made()
    before = dict(net[0].scaling)
    with pytest.raises(KeyError), strengthened(adapters, "one", 0.3):
        assert net[0].scaling == {"one": 0.3 * before["one"], "two": before["two"]}
        raise KeyError
    assert net[0].scaling == before
