"""The plan of a run on a published diffusion model whose weights are not there.

The objective is rehearsed on small pixels; what the networks ask for is counted from their
architecture, and becomes time by the rates of this machine.
"""

from dataclasses import replace
from pathlib import Path

from torch.nn import functional as F

from kdistill.data import ImageDataset, Split
from kdistill.methods.base import DryRun, Method, Rendering
from kdistill.priors.diffusion.pretrained.network_cost import (
    ModelCost,
    Rates,
    measured_rates,
)
from kdistill.priors.diffusion.pretrained.published_models import PUBLISHED, published_cost

REHEARSED_SIDE = 32  # of the images on which an objective is rehearsed
# passes of an iteration: images without a graph, again for the gradient without one, and again
# with one where the denoiser is checkpointed step by step
DENOISER_PASSES, DECODER_PASSES = 3, 2


def dry_run_of_published(
    name: str,
    method: Method,
    config: object,
    data: ImageDataset,
    folder: Path,
    *,
    steps: int,
    guidance: float,
    chunk: int,
) -> DryRun:
    """Return the dry run of a run with a published model, without its weights.

    Args:
        name: Name of the model.
        method: The method whose objective is used.
        config: Its options.
        data: Training images.
        folder: Place of experts that are made up.
        steps: S, steps of the sampler.
        guidance: Scale of guidance; all but 1 double the rows.
        chunk: Images that have a graph at one time.
    """
    small = _smaller(data)
    rehearsal = (
        DryRun(config) if method.experts is None else method.experts.dry_run(config, small, folder)
    )
    ratio = (data.size / small.size) ** 2
    cost, rates = published_cost(name), measured_rates()
    rendering = rendering_of(cost, rates, steps=steps, guidance=guidance, chunk=chunk)
    what = (
        f"{PUBLISHED[name].title}: {cost.num_params / 1e6:.0f} M parameters in the denoiser; no "
        "weights were read",
        *rendering.assumptions,
        f"objective {method.name} rehearsed at {small.size}x{small.size}, time and memory times "
        f"{ratio:.0f} for the pixels of {data.size}x{data.size}",
    )
    return replace(
        rehearsal,
        method=method,
        data=small,
        pixels_ratio=ratio,
        expert_bytes=int(rehearsal.expert_bytes * ratio),
        expert_seconds=rehearsal.expert_seconds * ratio,
        rendering=replace(rendering, assumptions=what),
    )


def rendering_of(
    cost: ModelCost, rates: Rates, *, steps: int, guidance: float, chunk: int
) -> Rendering:
    """Return time and memory of drawing images and of their gradient."""
    rows = 1 if guidance == 1.0 else 2
    denoiser, decoder = cost.denoiser, cost.decoder
    work = (denoiser.forward * DENOISER_PASSES + denoiser.backward) * (steps * rows)
    work += decoder.forward * DECODER_PASSES + decoder.backward
    graph_bytes = max(rows * denoiser.saved_bytes, decoder.saved_bytes)
    return Rendering(
        seconds_per_image=rates.seconds(work),
        resident_bytes=cost.weight_bytes,
        chunk_bytes=chunk * (graph_bytes + steps * cost.latent_bytes),
        assumptions=(
            f"{steps} steps, guidance {guidance:g} ({rows} row{'s' * (rows > 1)} each), chunks of "
            f"{chunk}: {work.total / 1e12:.2f} TFLOP per image and iteration ({DENOISER_PASSES} "
            f"passes of {denoiser.forward.total / 1e9:.0f} GFLOP and a backward one of "
            f"{denoiser.backward.total / 1e9:.0f} per row and step, {DECODER_PASSES} of "
            f"{decoder.forward.total / 1e9:.0f} and one of {decoder.backward.total / 1e9:.0f} in "
            "the decoder)",
            f"{rates.convolutions / 1e9:.0f} GFLOP/s in convolutions and "
            f"{rates.products / 1e9:.0f} in matrix products, measured here and now in float32; "
            "everything else in the networks is left out",
            f"a graph of {denoiser.saved_bytes / 1e6:.0f} MB per row in the denoiser (one step at "
            f"a time) and {decoder.saved_bytes / 1e6:.0f} MB per image in the decoder; weights of "
            f"{cost.weight_bytes / 1e9:.2f} GB",
        ),
    )


def _smaller(data: ImageDataset) -> ImageDataset:
    """Return the training images at a side of at most 32 pixels."""
    # the transform of ZCA belongs to one size
    if data.size <= REHEARSED_SIDE or data.transform.kind == "zca":
        return data
    images = F.interpolate(data.train.images, size=(REHEARSED_SIDE,) * 2, mode="area")
    train = Split(images, data.train.labels)
    return replace(data, train=train, test=train.take(data.train.labels[:1] * 0), validation=None)
