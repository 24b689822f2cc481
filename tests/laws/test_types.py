"""Laws of the records: rows are kept together, and shapes are executed."""

import dataclasses
import pickle

import pytest
import torch
from jaxtyping import TypeCheckError

from flowopd.errors import ConfigError
from flowopd.objectives import ReverseKL
from flowopd.types import Condition


def test_rows_and_cat_are_inverse(condition):
    whole = condition(5)
    joined = Condition.cat(whole.rows(slice(0, 2)), whole.rows([2, 3]), whole.rows(torch.tensor([4])))
    assert len(joined) == 5 and torch.equal(joined["text"], whole["text"])


def test_a_mask_picks_rows(condition):
    assert len(condition(3).rows(torch.tensor([True, False, True]))) == 2


def test_expanding_copies_nothing(condition):
    row = condition(1)
    many = row.expand(4)
    assert len(many) == 4 and many["text"].data_ptr() == row["text"].data_ptr()
    with pytest.raises(ConfigError, match="one row"):
        many.expand(2)


def test_only_floating_tensors_are_cast():
    moved = Condition({"text": torch.ones(2, 3), "ids": torch.ones(2, 3, dtype=torch.long)}).to("cpu", torch.bfloat16)
    assert moved["text"].dtype == torch.bfloat16 and moved["ids"].dtype == torch.long


@pytest.mark.parametrize("tensors", [{}, {"scalar": torch.tensor(1.0)}, {"a": torch.ones(2), "b": torch.ones(3)}])
def test_tensors_that_share_no_batch_are_refused(tensors):
    with pytest.raises(ConfigError, match="axis 0"):
        Condition(tensors)


def test_conditions_of_different_names_do_not_join(condition):
    with pytest.raises(ConfigError, match="same tensors"):
        Condition.cat(condition(2), Condition({"other": torch.ones(2)}))


def test_a_condition_is_frozen_and_pickles(condition):
    whole = condition(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.tensors = {}
    assert torch.equal(pickle.loads(pickle.dumps(whole))["text"], whole["text"])


def test_shape_annotations_are_executed():
    """A weight (B, 1) would turn a loss (B,) into (B, B)."""
    v = torch.ones(3, 2)
    with pytest.raises(TypeCheckError):
        ReverseKL()(v, v, torch.ones(3, 1))
