"""Training of a diffusion model as ``kdistill prior train --kind diffusion`` sees it."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from kdistill.errors import DataError
from kdistill.priors.diffusion import DiffusionModel
from kdistill.priors.diffusion_training import (
    DenoisingProgress,
    DenoisingState,
    DenoisingTraining,
    DiffusionSpec,
    new_denoising_training,
)
from kdistill.priors.training.kind import CHANGEABLE, Measured, TrainingKind
from kdistill.priors.training.quality import QualityCheck
from kdistill.runner import Timing

SMALLEST, LARGEST = 8, 256
GUIDANCE = (1.0, 1.4, 2.0)  # scales among which the held-out images choose


def _check_side(height: int, width: int) -> None:
    if height != width or not SMALLEST <= height <= LARGEST:
        raise DataError(
            f"prior train: expected square images of {SMALLEST} to {LARGEST} pixels, got "
            f"{height}x{width}; load them with size={min(max(height, SMALLEST), LARGEST)}"
        )


def _progress(timing: Timing, numbers: Mapping[str, float]) -> DenoisingProgress:
    return DenoisingProgress(**vars(timing), **numbers)


def _shown(progress: DenoisingProgress) -> str:
    return f"loss {progress.loss:.4f}"


def _sheet(task: DenoisingTraining, state: DenoisingState, labels: Tensor, key: int) -> Tensor:
    return task.model(state.tensors).sample(labels, key)


def _product(task: DenoisingTraining, state: DenoisingState) -> DiffusionModel:
    return task.model(state.tensors)


def _measure(model: DiffusionModel, check: QualityCheck) -> Measured:
    """Choose the guidance on held-out images, then measure the model with it.

    The same noise serves every scale; without held-out images there is no guidance.
    """
    scales = GUIDANCE if len(check.held_out) else GUIDANCE[:1]
    tried, rates, images = {}, {}, {}
    for scale in scales:
        began = time.perf_counter()
        images[scale] = model.sampling(guidance=scale).sample(check.labels, check.key)
        rates[scale] = len(check.labels) / (time.perf_counter() - began)
        if len(scales) > 1:
            tried[scale] = check.accuracies(images[scale], check.labels)["validation"]
    best = max(tried, key=lambda scale: tried[scale] or 0.0) if tried else 1.0
    config = {**model.config, "guidance": best}
    chosen = replace(model.sampling(guidance=best), config=config)
    record = {
        "guidance": best,
        "guidance_tried": {f"{scale:g}": x for scale, x in tried.items()},
        "images_per_second": round(rates[best], 2),
    }
    listed = ", ".join(f"{100 * (x or 0.0):.1f} % at {scale:g}" for scale, x in tried.items())
    remark = (
        f"Guidance {best:g}, chosen on the held-out images ({listed})."
        if tried
        else "No guidance: there were no held-out images to choose it on."
    )
    remark += f" {rates[best]:.0f} images a second in {model.sampler.steps} steps."
    return Measured(chosen, images[best], check.quality(images[best]), record, remark)


def _facts(task: DenoisingTraining, state: DenoisingState) -> dict[str, Any]:
    return {"parameters": len(state.tensors["network"]), "mirrored": task.mirrors}


def _texts(model: DiffusionModel, record: Mapping[str, Any]) -> dict[str, str]:
    settings = record["settings"]
    name = {"unet": "U-Net", "uvit": "U-ViT"}[settings["network"]]
    mirrored = ", mirrored at random" if record["mirrored"] else ""
    return {
        "kind": f"A class-conditional diffusion model ({name} of {record['parameters']:,} "
        "parameters)",
        "training": f"{record['iterations']:,} iterations on {settings['batch_size']} images "
        f"each{mirrored}; {100 * settings['label_dropout']:.0f} % of the labels replaced by the "
        "null class.",
        "use": "kdistill distill DATA --method ld3m --set prior=THIS_FOLDER",
    }


DIFFUSION = TrainingKind(
    spec=DiffusionSpec,
    changeable=(*CHANGEABLE, "steps", "solver"),
    check_side=_check_side,
    new=new_denoising_training,
    progress=_progress,
    shown=_shown,
    sheet=_sheet,
    product=_product,
    measure=_measure,
    facts=_facts,
    texts=_texts,
)
