"""Whole runs on an emulated accelerator: the bits of the CPU, and the waits of an outer step."""

import pytest
import torch

import kdistill
from kdistill import ops
from kdistill.methods.distillation import Distillation
from kdistill.ops import _capture
from tests.accelerator_suite.device import DEVICE, Device

IMAGES = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3
COMMON = {"width": 8, "depth": 1, "init": "real"}
TRAJECTORY = {
    "cuda_graph": True,
    **COMMON,
    "syn_steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "num_experts": 1,
    "expert_batch": 16,
    "lr_init": 0.02,
    "lr_images": 10.0,
}
METHODS = {  # options, and waits of the outer steps after the first: what the host has to know
    "dm": ({**COMMON, "batch_real": 8}, [0]),
    # was the training between two steps on one network finite?
    "dsa": ({**COMMON, "batch_real": 8, "outer_steps": 2, "inner_epochs": 1}, [1, 0, 1]),
    "mtt": (TRAJECTORY, [0]),
    "datm": (
        {**TRAJECTORY, "first_max_start_epoch": None},
        [1],
    ),  # is the loss small enough to learn from?
}


def distilled(method, device, folder):
    data = kdistill.load_data((IMAGES.numpy(), LABELS.numpy())).to(device)
    options = {**METHODS[method][0], "iterations": 2}
    if "syn_steps" in options:
        options["experts"] = str(folder)
    return kdistill.distill(
        data, method=method, ipc=2, options=options, device=device, validation=0.0
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_run_has_the_bits_of_the_cpu_and_an_outer_step_waits_no_more_than_it_must(
    method, tmp_path, monkeypatch
):
    waits, plainly = [], Distillation.iterate

    def step(self, run):
        before = sum(device.waits.values())
        outcome = plainly(self, run)
        waits.append(sum(device.waits.values()) - before)
        return outcome

    with ops.use_backend("reference"):
        here = distilled(method, "cpu", tmp_path)
        monkeypatch.setattr(Distillation, "iterate", step)
        with Device() as device:
            monkeypatch.setitem(_capture.RECORDERS, DEVICE.type, device.record)
            there = distilled(method, DEVICE, tmp_path)
    assert torch.equal(here.images, there.images)
    assert waits[1:] == METHODS[method][1]  # the first step may record, and compare
    assert (device.recorded, device.replays) == (
        (1, 2) if "syn_steps" in METHODS[method][0] else (0, 0)
    )
