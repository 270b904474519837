"""Masks: which parameters and layers a matching objective compares."""

import pytest
import torch

from kdistill.api.run import resolve
from kdistill.engine import build_student
from kdistill.errors import ConfigError
from kdistill.objectives.masks import deepest, depth_mask, loss_mask


def test_the_depth_mask_leaves_out_the_shallow_parameters():
    student = build_student("convnet", channels=3, size=32, classes=10, width=128)
    mask = depth_mask(student.num_params, 0.25)
    assert student.num_params == 320_010
    assert int((mask == 0).sum()) == 80_002  # floor(P / 4): block 1 (3 840) and half of block 2
    assert torch.equal(mask, (torch.arange(320_010) >= 80_002).float())
    assert bool((depth_mask(student.num_params, 0.0) == 1).all())


def test_the_loss_mask_leaves_out_the_smallest_errors():
    final, target = torch.tensor([1.0, -5.0, 0.1, 3.0, -0.2]), torch.zeros(5)
    assert loss_mask(0.5)(final, target).tolist() == [1, 1, 0, 1, 0]
    assert loss_mask(0.5)(torch.zeros(4), torch.zeros(4)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("ratio", "left"), [(0.0, [0, 1, 2]), (0.25, [1, 2]), (0.5, [2]), (0.75, [2]), (0.95, [2])]
)
def test_the_deepest_layers_are_left(ratio, left):
    assert list(deepest(3, ratio)) == left


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_mask_that_leaves_nothing_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"share in \[0, 1\)"):
        depth_mask(10, ratio)
    with pytest.raises(ConfigError, match=r"share in \[0, 1\)"):
        resolve("pad", "fast", {"mask_ratio": ratio})
