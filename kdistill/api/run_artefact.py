"""The artefact of a run: images, or a generator and images drawn from it once."""

from collections.abc import Mapping
from typing import Any

from kdistill import methods
from kdistill.api.distilled_generator import DistilledGenerator
from kdistill.artifacts import DistilledDataset
from kdistill.data import ImageDataset
from kdistill.keys import make_key
from kdistill.methods.distillation import Outcome


def artefact_of(
    problem: methods.Problem,
    outcome: Outcome,
    data: ImageDataset,
    record: Mapping[str, Any],
    seed: int,
) -> DistilledDataset:
    """Return what a run gives: a set of images, or a generator with images drawn once.

    Args:
        problem: The run.
        outcome: Where it stopped.
        data: The real images, for classes and normalisation.
        record: What made the set, for its configuration.
        seed: Seed of the run, which the images of a generator are drawn with.
    """
    state, findings = outcome.state, outcome.findings
    network = None if problem.generator is None else problem.generator(state)
    if network is None:
        images = data.transform.invert(outcome.images.cpu())
    else:
        images = network.sample(problem.labels, make_key(seed, "images drawn once")).cpu()
    has_logits = network is None and "label_logits" in state
    small = DistilledDataset(
        images=images,
        labels=problem.labels.cpu(),
        label_logits=state["label_logits"].cpu() if has_logits else None,
        learned_lr=float(state["lr"]) if "lr" in state else None,
        classes=data.classes,
        config=record,
        metrics={
            "distillation": {
                "iterations": outcome.last.iteration,
                "finished": outcome.finished,
                "seconds": outcome.seconds,
                "peak_bytes": outcome.peak_bytes,
                "skipped": outcome.last.skipped,
                "learning_rates": problem.optimizer.learning_rates(),
                **({"lr_init": float(problem.state["lr"])} if "lr" in problem.state else {}),
                "loss": [list(pair) for pair in outcome.losses[-1:]],
            },
            **({} if findings is None else {"search": findings.metrics}),
        },
        transform=data.transform,
        files={} if findings is None else findings.files,
    )
    return small if network is None else DistilledGenerator.from_run(small, network)
