"""What adding a teacher takes: the bytes of its adapter and nothing else, counted over every tensor that is alive."""

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from flowopd.lora_file import read_lora

MOST = 8


def bytes_alive():
    """The bytes of all tensors' storages in the process, each once; fake tensors, as plans count with, hold none."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not issubclass(type(thing), FakeTensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def bytes_of(transformer):
    return sum(tensor.nbytes for tensor in (*transformer.parameters(), *transformer.buffers()))


@pytest.fixture
def crowded(world, tmp_path):
    """Opens a run of eight teachers, the two experts in turn."""
    experts = [world.experts / name for name in ("composition", "quality")]
    teachers = {f"t{i}": {"adapter": str(experts[i % 2])} for i in range(MOST)}
    return lambda dtype: world.session(tmp_path / "run", dtype=dtype, teachers=teachers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_of_eight_teachers_adds_its_adapter_and_nothing_else(crowded, dtype):
    session = crowded(dtype)
    adapters, transformer = session.adapters, session.model.transformer
    before, base = bytes_alive(), bytes_of(transformer)
    added = 0
    for name in session.recipe.teachers:
        session.load_teachers([name])
        lora = read_lora(session.teacher_folder(name))
        numbers = sum(factors.a.numel() + factors.b.numel() for factors in lora.modules.values())
        del lora
        added += numbers * getattr(torch, dtype).itemsize
        assert bytes_of(transformer) - base == added
        assert bytes_alive() - before == added
    assert len(adapters.names) == MOST and added == sum(map(adapters.nbytes, adapters.names))


def test_a_tensor_that_is_kept_on_the_side_is_counted(crowded):
    before = bytes_alive()
    aside = [torch.zeros(1000), torch.zeros(10)[:5]]
    assert bytes_alive() - before == 4 * 1010
    del aside
    assert bytes_alive() == before
