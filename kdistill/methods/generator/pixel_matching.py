"""Stage 2 under the objective of a method on pixels, whose images the generator draws."""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.methods.base import Step
from kdistill.methods.calibration import calibrate
from kdistill.methods.composition import ObjectiveConfig
from kdistill.methods.generator.base import Matching, RealBatch
from kdistill.priors import State

SCALE = "objective.scale"  # the objective's loss at the first step, in the state of a run
SMALLEST = 1e-12  # a loss that begins at 0 is divided by this

_log = logging.getLogger("kdistill")


def pixel_matching(
    config: ObjectiveConfig, data: ImageDataset, ipc: int, seed: int, weight: float
) -> Matching:
    """Return stage 2: the loss of another method on ``ipc`` fresh images of each class.

    The loss is divided by its value at the first step.  What the method learns beside images, such
    as the student's learning rate, it learns here too, from the value that suits real images.

    Args:
        config: Options.
        data: The real images.
        ipc: Images of each class in an iteration.
        seed: Seed of the run.
        weight: Weight of the loss.

    Raises:
        ConfigError: The objective is unknown, or no method on pixels.
    """
    method, options = config.pixel_method()
    problem = calibrate(method.build(options, data, ipc, seed, None))
    state = {name: x for name, x in problem.state.items() if name != "images"}
    if "label_logits" in state:
        _log.warning(
            "objective: %s learns labels, which it uses here too; the product's labels are hard",
            method.name,
        )

    def objective(iteration: int, images: Tensor, real: RealBatch, now: State) -> Step:
        step = problem.objective(iteration, images, {**now, "images": images})
        scale = now[SCALE]
        if not bool(scale.any()):
            scale = step.loss.detach().abs().clamp(min=SMALLEST).to(scale)
        factor = weight / scale
        return replace(
            step,
            loss=factor * step.loss,
            grad_images=factor * step.grad_images,
            updates={**step.updates, SCALE: scale},
            metrics={**step.metrics, "matching_loss": step.loss},
        )

    return Matching(
        objective=objective,
        iterations=problem.iterations,
        ipc=ipc,
        state={**state, SCALE: torch.zeros(())},
        rules={name: rule for name, rule in problem.optimizer.rules.items() if name != "images"},
        provenance=problem.provenance,
    )
