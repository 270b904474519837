"""DATM: match early epochs of experts for few images and late ones for many, and learn soft labels.

Paper: Guo, Wang, Cazenavette, Li, Zhang and You, "Towards Lossless Dataset Distillation via
    Difficulty-Aligned Trajectory Matching", ICLR 2024.  Its released code is the specification.

    min_{S, z, alpha}  E_{expert, t}  | theta_N(S, z, alpha; theta*_t) - theta*_{t+M} |^2
                                      / | theta*_t - theta*_{t+M} |^2
    t ~ U{T-, ..., U(it) - 1},   U(it) = min(T+, T + floor((T+ - T) it / E))

The student's loss is the cross-entropy against softmax(z_j).  The images begin as real ones that an
expert classifies correctly, z_j as the mean of the logits of the experts that do.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.engine.inner_problem import Mask
from kdistill.errors import ConfigError
from kdistill.experts import ExpertSpec, TrajectoryStore
from kdistill.keys import make_key
from kdistill.methods.base import DryRun, Experts, Method, Problem
from kdistill.methods.init import INITS, balanced_labels, initial_images, with_distinct_copies
from kdistill.methods.trajectory.base import (
    EXPERTS,
    FAST,
    FlatExpertsConfig,
    build_trajectory,
    expert_store,
    missing_experts,
    published,
)
from kdistill.methods.trajectory.learned_labels import first_logits
from kdistill.optim import FirstMove
from kdistill.options import AUTOMATIC, COUNT, MOMENTUM, NOT_NEGATIVE, POSITIVE, Unset, Words
from kdistill.selection import select_correct

# the better of two settings on validation images (mnist5k, 10 per class, one run each); the first
# images are ones that an expert classifies correctly, else labels begin at logits that are right
# about another class
DATM_FAST = {
    **FAST,
    "iterations": 80,
    "expert_length": None,
    "init": "correct",
    "first_max_start_epoch": 3,
    "expand_until": 50,
    "lr_labels": 2.0,
}
# of published settings: N, M, T-, T, T+, E, batch, learning rates of images, labels and student's
DATM_COLUMNS = (
    "syn_steps expert_epochs min_start_epoch first_max_start_epoch max_start_epoch expand_until "
    "batch_syn lr_images lr_labels lr_lr"
)


@dataclass(frozen=True, kw_only=True)
class DatmConfig(FlatExpertsConfig):  # many fields, since each is an option that users set
    """Options of DATM; the defaults are those of its code for CIFAR-10 at 10 images per class.

    Attributes:
        init: As in other methods, or ``"correct"``: real images that an expert classifies
            correctly.
        min_start_epoch: T-, the first start epoch.
        first_max_start_epoch: T, the value of ``max_start_epoch`` (T+) at the start.
        expand_until: E, the iteration at which the last start epoch has become T+.
        expert_length: Epochs of the experts, whose last networks judge the first images and make
            their labels.
        label_experts: Number of experts that make the first labels.
        teacher_epochs: Epochs of networks that judge the first images and make their labels in the
            place of the experts, which small windows leave half-trained: as many as
            ``label_experts``, trained like the experts, on all images.
        lr_labels: Learning rate of the label logits; where it is found, the first step moves them
            by 3 % of their norm.
        momentum_labels: Momentum of the label logits' SGD.
        skip_above: An iteration with a larger loss changes nothing.
    """

    iterations: int = 10_000
    syn_steps: int = 80
    lr_init: float | None = 0.01
    batch_syn: int | None = 100
    init: Annotated[str, Words((*INITS, "correct"))] = "correct"
    min_start_epoch: Annotated[int, "0 or more"] = 0
    first_max_start_epoch: Annotated[
        int | None, "at least 1", Unset("max_start_epoch from the start")
    ] = 10
    expand_until: Annotated[int, COUNT] = 1000
    expert_length: Annotated[
        int | None, COUNT, Unset("as far as the last start epoch and M reach")
    ] = 100
    label_experts: Annotated[int | None, COUNT, Unset("all")] = None
    teacher_epochs: Annotated[int | None, COUNT, Unset("the experts judge")] = None
    lr_labels: Annotated[float | None, NOT_NEGATIVE, AUTOMATIC] = 2.0
    momentum_labels: Annotated[float, MOMENTUM] = 0.9
    skip_above: Annotated[float | None, POSITIVE, Unset("no iteration is skipped")] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, first, last = self.min_start_epoch, self.first_max_start_epoch, self.max_start_epoch
        if not 0 <= low < (last if first is None else first) <= last:
            raise ConfigError(
                "start epochs: expected 0 <= min_start_epoch < first_max_start_epoch <= "
                f"max_start_epoch, got {low}, {first} and {last}; set all three "
                "(first_max_start_epoch=none for no expansion)"
            )
        reached = self.reach
        if self.expert_length is not None and reached > self.expert_length:
            raise ConfigError(
                f"start epochs: expected start epoch {last - 1} and {self.expert_epochs} epochs "
                f"more to lie within the {self.expert_length} epochs of the experts, got epoch "
                f"{reached}; lower max_start_epoch or raise expert_length"
            )

    def expert_spec(self, data: ImageDataset) -> ExpertSpec:
        """Return the recipe of FTD's experts, for ``expert_length`` epochs."""
        spec = super().expert_spec(data)
        return spec if self.expert_length is None else replace(spec, epochs=self.expert_length)

    def window(self, iteration: int) -> tuple[int, int]:
        """Return the first start epoch of an iteration, and the one after the last."""
        first, last = self.first_max_start_epoch, self.max_start_epoch
        if first is None:
            return self.min_start_epoch, last
        return self.min_start_epoch, min(
            last, first + (last - first) * iteration // self.expand_until
        )

    def dry_run(self, folder: Path) -> Self:
        """Return these options for a dry run."""
        short = replace(
            self,
            min_start_epoch=0,
            first_max_start_epoch=None,
            expert_length=None,
            label_experts=None,
            teacher_epochs=None,
        )
        return super(DatmConfig, short).dry_run(folder)

    def teachers(self) -> Self:
        """Return these options with the teachers as experts; with ``teacher_epochs`` alone."""
        return replace(
            self,
            num_experts=self.label_experts or self.num_experts,
            expert_length=max(self.teacher_epochs or 0, self.reach),
            teacher_epochs=None,
            experts=f"{self.experts}-teachers" if self.experts else None,
        )

    @property
    def reach(self) -> int:
        """The last epoch of an expert that a start epoch and M reach."""
        return self.max_start_epoch - 1 + self.expert_epochs


def build_aligned(
    config: DatmConfig,
    data: ImageDataset,
    ipc: int,
    seed: int,
    start: Tensor | None,
    mask: Mask | None = None,
) -> Problem:
    """Return the run, with missing experts trained; ``mask`` is that of ``trajectory_match``."""
    store, student = expert_store(config, data), config.network(data)
    judges = config if config.teacher_epochs is None else config.teachers()
    judged = store if judges is config else expert_store(judges, data)
    if start is None:
        start = _first_images(judges, data, ipc, seed, judged)
    labels = balanced_labels(data.num_classes, ipc).to(start.device)
    votes = [
        student.infer(judged.snapshot(judge, judged.epochs).to(start), start)
        for judge in range(min(judges.num_experts, judges.label_experts or judges.num_experts))
    ]
    logits = first_logits(votes, labels)
    rule = config.sgd(
        config.lr_labels, momentum=config.momentum_labels, find=FirstMove(option="lr_labels")
    )
    return build_trajectory(
        config,
        data,
        ipc,
        seed,
        start,
        store=store,
        soft=(logits, rule),
        mask=mask,
        skip_above=config.skip_above,
    )


def _first_images(
    config: DatmConfig, data: ImageDataset, ipc: int, seed: int, store: TrajectoryStore
) -> Tensor:
    if config.init != "correct":
        return initial_images(data, ipc, config.init, seed)
    student, images = config.network(data), data.transform.apply(data.train.images)

    def predictions(expert: int) -> Tensor:
        return student.infer(store.snapshot(expert, store.epochs).to(images), images).argmax(1)

    rows = select_correct(
        predictions,
        config.num_experts,
        data.train.labels,
        ipc,
        make_key(seed, "init"),
        num_classes=len(data.classes),
        classes=data.classes,
    )
    return with_distinct_copies(images[rows], rows, seed)


def _train(config: DatmConfig, data: ImageDataset) -> TrajectoryStore:
    """Train the experts that are missing, and the teachers of the labels."""
    if config.teacher_epochs is not None:
        expert_store(config.teachers(), data)
    return expert_store(config, data)


def _dry_run(config: DatmConfig, data: ImageDataset, folder: Path) -> DryRun:
    """Return the dry run, with what the teachers cost."""
    run = EXPERTS.dry_run(config, data, folder)
    if config.teacher_epochs is None:
        return run
    ahead = missing_experts(config.teachers(), data)
    return replace(
        run,
        expert_bytes=run.expert_bytes + ahead.nbytes,
        expert_seconds=run.expert_seconds + ahead.seconds,
    )


ALIGNED_EXPERTS = Experts(train=_train, dry_run=_dry_run)

METHOD = Method(
    name="datm",
    title="trajectory matching at the difficulty that fits the number of images, with learned soft "
    "labels",
    summary="as ftd, at the difficulty that fits, learned soft labels",
    family="trajectory",
    paper="Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory "
    "Matching, ICLR 2024",
    config=DatmConfig,
    presets={
        "paper": {},  # CIFAR-10, IPC 10
        "fast": DATM_FAST,
        # the released configurations, all for ZCA: pass normalisation="zca" to load_data
        **published(
            DATM_COLUMNS,
            {"cifar10_ipc1": (80, 2, 0, None, 4, 1000, 10, 100.0, 5.0, 1e-7)},
            skip_above=1.1,
        ),
        **published(
            DATM_COLUMNS,
            {
                "cifar10_ipc10": (80, 2, 0, 10, 20, 1000, 100, 100.0, 2.0, 1e-5),
                "cifar10_ipc50": (80, 2, 0, 20, 40, 2000, 500, 1000.0, 2.0, 1e-5),
                "cifar10_ipc500": (40, 2, 40, None, 60, 1000, 1000, 50.0, 10.0, 1e-5),
                "cifar10_ipc1000": (100, 2, 40, None, 60, 1000, 1000, 50.0, 10.0, 1e-5),
                "cifar100_ipc1": (40, 3, 0, 10, 20, 1000, 1000, 1000.0, 10.0, 1e-5),
                "cifar100_ipc10": (80, 2, 0, 30, 50, 2000, 1000, 1000.0, 10.0, 1e-5),
                "cifar100_ipc100": (80, 2, 30, None, 70, 1000, 1000, 50.0, 10.0, 1e-5),
                "tiny_ipc1": (40, 2, 0, 15, 20, 2000, 1000, 1e4, 10.0, 1e-4),
                "tiny_ipc10": (40, 2, 10, None, 50, 1000, 500, 100.0, 10.0, 1e-4),
                "tiny_ipc50": (20, 2, 40, None, 70, 1000, 1000, 100.0, 10.0, 1e-4),
            },
        ),
        **published(
            DATM_COLUMNS,
            {"cifar100_ipc50": (80, 2, 20, None, 70, 1000, 1000, 1000.0, 10.0, 1e-5)},
            init="real",
            label_experts=1,
        ),
    },
    build=build_aligned,
    deviations=(
        "labels of an image that no expert classifies correctly begin at the mean of all experts' "
        "logits; the code has NaN there",
        "the gradient is exact for any number of steps, in the memory of one; the code truncates "
        "it where memory is short",
        "the last iteration is the result, not the best on the test set; randomness is keyed",
    ),
    experts=ALIGNED_EXPERTS,
    cost="second order, as MTT; the experts take two gradients per step",
    needs="expert trajectories",
)
