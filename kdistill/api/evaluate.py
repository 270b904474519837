"""``evaluate``: networks trained on a small set beside networks trained on real images."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdistill import _native
from kdistill.api.distilled_generator import fresh_images, redrawn
from kdistill.api.evaluation_checks import check_fits, check_order
from kdistill.api.inputs import load
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.tensors import digest
from kdistill.augment import strategy_for
from kdistill.data import ImageDataset, Split
from kdistill.data.splits import HOLDOUT_SEED
from kdistill.engine.precision import use_precision
from kdistill.engine.students import STUDENTS, Student, build_student
from kdistill.errors import ConfigError, did_you_mean
from kdistill.evaluation import protocols, provenance
from kdistill.evaluation.baseline_rows import BASELINES, Baselines, check_names
from kdistill.evaluation.protocols import Protocol
from kdistill.evaluation.result import Evaluation
from kdistill.evaluation.rows import Row
from kdistill.evaluation.trainer import Task, Trainer
from kdistill.priors import eight_bits
from kdistill.status import quietly, status_line


def evaluate(
    small: DistilledDataset | str | Path,
    data: ImageDataset | Any,
    *,
    protocol: str | Protocol = "bench",
    models: str | nn.Module | Sequence[str | nn.Module] | None = None,
    baselines: str | Sequence[str] = BASELINES,
    ipc: int | None = None,
    nets: int | None = None,
    width: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    strategy: str | None = None,
    lr: float | Literal["auto"] | None = None,
    precision: str | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[str], None] | None = None,
    reuse: bool = True,
    quiet: bool = False,
) -> Evaluation:
    """Train fresh networks on ``small`` and on baselines by one recipe, and test them.

    A tenth of the training images is held out from every row: validation accuracy is measured on
    those, and ``lr="auto"`` chooses by it.  The test images are used once per network, after its
    last epoch, unless the protocol asks for "best on test", which has a column of its own.

    The set remembers the result: it is left in ``small.metrics["evaluation"]``, and
    ``small.save_pretrained`` writes it into ``metrics.json`` and the card.  Only a set that names
    other data as its source does not take it over.  Nothing is written to disk here, also where
    ``small`` is a folder.

    Args:
        small: The small set, or its folder; its learned soft labels and learning rate are used
            where it has them.  A generator has a second row, ``"..., fresh"``: as many images as
            were drawn once, but others in every epoch.
        data: The real data, or anything that ``load_data`` takes.  ``small`` is put through its
            transform.
        protocol: Name of a recipe, such as ``"quick"``, ``"bench"``, ``"paper"`` or ``"mtt"``
            (``kdistill options evaluate`` lists them), or a ``Protocol``.
        models: Networks: names of students, or modules that map ``[B, C, S, S]`` to ``[B, K]``;
            None is the protocol's student.
        baselines: Among ``"random"`` (a new subset per network), ``"herding"``, ``"k-center"``
            (features of the first full-data network of the first model) and ``"full"``.  For a set
            with soft labels ``"random"`` has a second row, whose labels are that network's.
        ipc: Images per class that a generator draws for its rows, and of the baselines; the result
            is not remembered then.  None takes the images that it has drawn.
        nets: Networks per row; None is the protocol's number.
        width: Width of all networks that are named; None is the protocol's.
        epochs: Passes over a small set; None is the protocol's number.
        batch_size: Images per step; None is the protocol's number.
        strategy: Augmentation: families joined by ``_``, ``"none"`` or ``"auto"``; None is the
            protocol's.
        lr: Learning rate of the rows that have not learned their own; ``"auto"`` chooses for every
            row on validation images; None is the protocol's.
        precision: Precision of the networks' products: ``"fp32"``, ``"tf32"`` (GPU) or ``"bf16"``
            (``convnet``); None is the protocol's.
        seed: Decides initial weights, order, augmentation and subsets.
        device: Where to train; None is where the data is.
        progress: Progress callback, called with one line of text.
        reuse: Keep baselines under ``$KDISTILL_CACHE`` and use those of earlier evaluations with
            equal data, recipe, seed, code, versions, thread count and instruction set.
        quiet: Do not show the progress, which stands on standard error or below the cell of a
            notebook.

    Returns:
        Rows, table and scores; ``print`` shows the table.  Same arguments, thread count and
        machine: same numbers.

    Raises:
        ConfigError: Unknown protocol, baseline or network, or settings that do not fit together.
        DataError: ``small`` does not fit ``data``, or there are no test images.
        NonFiniteError: A network's loss stopped being finite.

    Cost: per row and network ``epochs`` passes over the row's images and one over the test images.
    """
    check_order(small, data)
    one = models is None or isinstance(models, str)
    config = EvaluationConfig(
        protocol=protocol,
        models=models if one else (models,) if isinstance(models, nn.Module) else tuple(models),
        baselines=baselines if isinstance(baselines, str) else tuple(baselines),
        nets=nets,
        width=width,
        epochs=epochs,
        batch_size=batch_size,
        strategy=strategy,
        lr=lr,
        precision=precision,
    )
    return run_evaluation(
        config,
        small,
        data,
        ipc=ipc,
        seed=seed,
        device=device,
        progress=progress,
        reuse=reuse,
        quiet=quiet,
    )


# fields of a protocol that an evaluation changes
CHANGES = ("nets", "epochs", "batch_size", "strategy", "lr", "eight_bit", "hard_labels")
CHANGES += ("precision",)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What networks are trained in an evaluation, and how; checked when it is made.

    The attributes are the arguments of ``evaluate`` with these names, and fields of ``Protocol``.
    """

    protocol: str | Protocol = "bench"
    models: str | list[Any] | tuple[Any, ...] | None = None
    baselines: str | list[str] | tuple[str, ...] = BASELINES
    nets: int | None = None
    width: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    strategy: str | None = None
    lr: float | Literal["auto"] | None = None
    eight_bit: bool | None = None
    hard_labels: bool | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        check_names(self.baseline_names)
        names = [_name_of(model) for model in self.networks]
        if not names:
            raise ConfigError(
                "models: expected at least one network, got none; leave it out for the protocol's "
                "student"
            )
        if len(set(names)) < len(names):
            raise ConfigError(
                f"models: expected different networks, got {', '.join(names)}; name each once"
            )
        for model in self.networks:
            if isinstance(model, str) and model not in STUDENTS:
                hint = did_you_mean(model, list(STUDENTS))
                raise ConfigError(f"models: expected a network, got '{model}'; {hint}")
        self.recipe.check_networks(names)

    @cached_property
    def recipe(self) -> Protocol:
        """The protocol with the changes made."""
        recipe = protocols.get(self.protocol, **{name: getattr(self, name) for name in CHANGES})
        if self.width is None:
            return recipe
        return replace(recipe, width=self.width, other_widths=dict.fromkeys(STUDENTS, self.width))

    @property
    def networks(self) -> tuple[str | nn.Module, ...]:
        """The networks: names, or modules."""
        models = self.recipe.student if self.models is None else self.models
        return (models,) if isinstance(models, str) else tuple(models)

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """The baselines as a tuple."""
        names = self.baselines
        return (names,) if isinstance(names, str) else tuple(names)


def run_evaluation(
    config: EvaluationConfig,
    small: DistilledDataset | str | Path,
    data: ImageDataset | Any,
    *,
    ipc: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[str], None] | None = None,
    reuse: bool = True,
    quiet: bool = False,
) -> Evaluation:
    """Carry out an evaluation; the arguments are those of ``evaluate``."""
    began, recipe, models = time.monotonic(), config.recipe, config.networks
    if not isinstance(small, DistilledDataset):
        small = DistilledDataset.from_pretrained(small)
    if ipc is not None:
        small = redrawn(small, ipc, seed)
    data = load(data, quiet)
    check_fits(small, data)
    data = data.to(device if device is not None else data.train.images.device)
    share = provenance.held_out_share(small) or recipe.validation
    training, held_out = data.holdout(share)
    rows: list[Row] = []
    precision = use_precision(recipe.precision, data.train.images.device)
    with quietly(quiet), status_line("evaluating", also=progress) as show_status, precision:
        trainers = [
            Trainer(
                protocol=recipe,
                seed=seed,
                validation=_normalised(data, held_out),
                test=_normalised(data, data.test),
                progress=show_status,
                student=student_of(model, data, recipe),
                model=_name_of(model),
            )
            for model in models
        ]
        real = None  # normalising all training images is not worth it for no row
        if config.baseline_names:
            real = Baselines(
                training,
                data.transform.apply(training.train.images),
                small.ipc,
                recipe,
                seed,
                identity={
                    "data": data.fingerprint,
                    "training": training.training_digest(),
                    "validation": [share, HOLDOUT_SEED],
                },
                cached_models=frozenset(x for x in models if isinstance(x, str) and reuse),
                reference=trainers[0],
                has_teacher=recipe.teacher_labels and small.label_logits is not None,
            )
        for trainer in trainers:
            rows += [trainer.row(task)[0] for task in _small_tasks(small, data, trainer)]
            rows += [] if real is None else real.rows(config.baseline_names, trainer)
    evaluation = Evaluation(
        rows=tuple(rows),
        protocol=recipe,
        data=_data_record(training, held_out, share),
        seeds=(seed,),
        seconds=time.monotonic() - began,
        peak_bytes=_native.peak_bytes(),
        environment=_native.environment(),
        notes=tuple(provenance.notes(small, data, len(held_out), chooses_lr=recipe.lr == "auto")),
        student=provenance.made_with(small),
    )
    if not provenance.is_from_other_data(small, data):
        small.record(evaluation=evaluation.to_dict())
    return evaluation


def _name_of(model: str | nn.Module) -> str:
    return model if isinstance(model, str) else type(model).__name__


def _normalised(data: ImageDataset, split: Split) -> Split:
    return Split(data.transform.apply(split.images), split.labels)


def student_of(model: str | nn.Module, data: ImageDataset, recipe: Protocol) -> Student:
    """Return a network as the protocol trains it on this data.

    Raises:
        ShapeError: It does not take images of this size.
    """
    build = partial(
        build_student, model, channels=data.channels, size=data.size, classes=data.num_classes
    )
    if not isinstance(model, str):
        return build()
    return build(width=protocols.width_of(recipe, model), norm=protocols.norm_of(recipe, model))


def _small_tasks(small: DistilledDataset, data: ImageDataset, trainer: Trainer) -> list[Task]:
    """Return the small set's row and its variants: 8 bits, hard labels, no augmentation."""
    recipe, name = trainer.protocol, _title(small)
    device = data.train.images.device
    images, hard = small.images.to(device), small.labels.to(device)
    labels = hard if small.label_logits is None else small.label_logits.to(device)
    strategy = strategy_for(recipe.strategy, data.mirrors)
    lr = protocols.learning_rates(recipe, trainer.model, small.learned_lr)

    def task(
        title: str, kind: str, pixels: Tensor, targets: Tensor, augmentation: str = strategy
    ) -> Task:
        identity = {
            "row": title,
            "model": trainer.model,
            "seed": trainer.seed,
            "strategy": augmentation,
            "lr": str(lr),
        }
        return Task(
            name=title,
            kind=kind,
            source=digest({"images": pixels, "labels": targets}, identity)[:32],
            sets=((data.transform.apply(pixels), targets),),
            unit="distillation seed",
            epochs=recipe.epochs,
            lr=lr,
            strategy=augmentation,
        )

    tasks = [task(name, "distilled", images, labels)]
    if recipe.eight_bit:
        tasks.append(task(f"{name}, 8 bits", "variant", eight_bits(images), labels))
    if recipe.hard_labels and small.label_logits is not None:
        tasks.append(task(f"{name}, hard labels", "variant", images, hard))
    if recipe.robustness:
        tasks.append(task(f"{name}, no augmentation", "variant", images, labels, "none"))
    if fresh := fresh_images(small, data, trainer.seed):
        draw, nbytes = fresh
        source = digest({}, {"images": tasks[0].source, "fresh": True})[:32]
        changes = {"name": f"{name}, fresh", "kind": "variant", "source": source}
        tasks.append(replace(tasks[0], fresh=draw, fresh_nbytes=nbytes, **changes))
    return tasks


def _title(small: DistilledDataset) -> str:
    method = small.recorded("run", "method")
    return str(method) if method and method not in BASELINES else "distilled"


def _data_record(training: ImageDataset, held_out: Split, share: float) -> dict[str, Any]:
    return {
        "name": training.name,
        "fingerprint": training.fingerprint,
        "transform": training.transform.kind,
        "train": len(training.train),
        "validation": len(held_out),
        "test": len(training.test),
        "validation_share": share,
        "classes": list(training.classes),
        "test_per_class": torch.bincount(
            training.test.labels.cpu(), minlength=training.num_classes
        ).tolist(),
    }
