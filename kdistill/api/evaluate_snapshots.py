"""``evaluate_snapshots``: how good the set of a run was on its way, and which iteration was best.

Papers report the best accuracy on the test images over the iterations of the distillation (not over
the epochs of a network that is trained on the set).  Here that number has its name, "best on test",
and stands beside two that do not use the test images: the iteration that is best on images
which the run held out, and the last one.

A run can do this on its way (``distill(evaluate_every=...)``): it then evaluates every snapshot as
it is written, and leaves the numbers beside it, so that a resumed run measures nothing twice.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdistill.api.evaluate import EvaluationConfig, run_evaluation, student_of
from kdistill.api.evaluation_checks import check_test_images
from kdistill.api.inputs import load
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.contents import SetContents
from kdistill.artifacts.snapshots import (
    load_measured,
    load_snapshot,
    save_measured,
    snapshot_iterations,
)
from kdistill.artifacts.tensors import digest
from kdistill.data import ImageDataset
from kdistill.engine.precision import check_precision
from kdistill.errors import ConfigError, NonFiniteError
from kdistill.evaluation import protocols
from kdistill.evaluation.baseline_rows import entry_name
from kdistill.evaluation.protocols import Protocol
from kdistill.evaluation.provenance import held_out_share
from kdistill.evaluation.result_tables import percent
from kdistill.evaluation.snapshot_rows import SnapshotEvaluation, SnapshotRow
from kdistill.status import note, quietly, status_line

_log = logging.getLogger("kdistill")
NETS = 2  # networks per snapshot of a run that evaluates its set on its way


@dataclass(frozen=True, kw_only=True)
class SnapshotEvaluator:
    """Trains networks on the states of one run's set, and remembers what it measured.

    A state that was measured before, by the same recipe, on the same data, with the same code and
    in the same environment, is not measured again.

    Attributes:
        run: Folder of the run.
        data: The real data, with all of its training images.
        config: One network, no baselines; see ``snapshot_config``.
        seed: Seed of the evaluation; network ``i`` of every state begins with the same weights.
        device: As for ``evaluate``.
        writes: Whether the numbers are left beside the snapshots.
    """

    run: Path
    data: ImageDataset
    config: EvaluationConfig
    seed: int = 0
    device: torch.device | str | None = None
    writes: bool = True

    def row(
        self,
        iteration: int,
        small: DistilledDataset,
        progress: Callable[[str], None] | None = None,
    ) -> SnapshotRow:
        """Return the accuracies of networks trained on a set, remembered or measured.

        Args:
            iteration: Iterations that made the set.
            small: The set.
            progress: Progress callback.

        Cost: that of ``evaluate`` without baselines, or reading one small file.
        """
        identity, nets = self._identity(small), self.config.recipe.nets
        facts = None if identity is None else load_measured(self.run, iteration, identity)
        row = None if facts is None else SnapshotRow.from_facts(facts, nets)
        if row is not None and row.iteration == iteration:
            return row
        began = time.monotonic()
        measured = run_evaluation(
            self.config,
            _images_alone(small),
            self.data,
            seed=self.seed,
            device=self.device,
            progress=progress,
        ).rows[0]
        is_held_out = self.data.validation is not None or held_out_share(small) is not None
        row = SnapshotRow(
            iteration=iteration,
            validation=measured.validation if is_held_out else (),
            accuracies=measured.accuracies,
            seconds=time.monotonic() - began,
        )
        if self.writes and identity is not None:
            save_measured(self.run, iteration, identity, asdict(row))
        return row

    def evaluate(
        self, last: DistilledDataset, progress: Callable[[str], None] | None = None
    ) -> SnapshotEvaluation:
        """Return a row for every snapshot in the folder, and one for the artefact ``last``.

        A snapshot on which the loss of a network stops being finite is left out, with a warning.

        Raises:
            NonFiniteError: The loss of a network on ``last`` stopped being finite.
        """
        iterations = snapshot_iterations(self.run)
        end, rows = _iterations_of(last, iterations), []
        with status_line("snapshots") as show:
            for iteration in [*(at for at in iterations if at < end), end]:
                small = last if iteration == end else load_snapshot(self.run, iteration, last)
                show(f"iteration {iteration:,} of {end:,}")
                tell = None if progress is None else partial(_tell, progress, iteration)
                try:
                    rows.append(self.row(iteration, small, tell))
                except NonFiniteError as error:
                    if iteration == end:
                        raise
                    _log.warning("iteration %d is left out: %s", iteration, error)
        return SnapshotEvaluation(
            rows=tuple(rows),
            protocol=self.config.recipe,
            model=self._model,
            data=self.data.name,
            seed=self.seed,
        )

    def check(self) -> None:
        """Refuse what no snapshot could be evaluated with, before anything expensive is done.

        Raises:
            ConfigError: A precision that the device does not have.
            DataError: There are no test images.
            ShapeError: The network does not take images of this size.
        """
        recipe, device = self.config.recipe, self.device
        check_test_images(self.data)
        check_precision(
            recipe.precision, device if device is not None else self.data.train.images.device
        )
        for model in self.config.networks:
            student_of(model, self.data, recipe)

    def on_the_way(self, iteration: int, small: DistilledDataset) -> None:
        """Evaluate a snapshot of a run that goes on, and say in one line how good it is."""
        try:
            row = self.row(iteration, small)
        except NonFiniteError:  # no reason to end the run; ``finish`` says what was left out
            return
        shares = {"validation": row.validation, "test": row.accuracies}
        said = ", ".join(f"{name} {percent(values)} %" for name, values in shares.items() if values)
        note(f"iteration {iteration:,}: {said}")

    def finish(self, small: DistilledDataset) -> None:
        """Leave the numbers of all states in the metrics of the artefact, here and in its folder.

        Raises:
            KeyboardInterrupt: The message says how to go on.
        """
        try:
            curve = self.evaluate(_images_alone(small)).to_dict()
        except NonFiniteError as error:
            _log.warning("the set is finished, but not evaluated: %s", error)
            return
        except KeyboardInterrupt as error:
            error.args = (f"the set is finished in {self.run}; resume=True evaluates what is left",)
            raise
        if small.metrics.get("snapshots") != curve:
            small.record(snapshots=curve)
            small.save_pretrained(self.run)

    @property
    def _model(self) -> str:
        (model,) = self.config.networks
        return model if isinstance(model, str) else type(model).__name__

    def _identity(self, small: DistilledDataset) -> str | None:
        """Return a digest of all that decides a row; None: a module, which no name describes."""
        (model,), data, device = self.config.networks, self.data, self.device
        if not isinstance(model, str):
            return None
        device = torch.device(device if device is not None else data.train.images.device)
        return entry_name(
            {
                "row": "snapshot",
                "set": digest({**small.learned(), "labels": small.labels}, {}),
                "data": data.fingerprint,
                "transform": digest(data.transform.state(), {"kind": data.transform.kind}),
                "validation": held_out_share(small),
                "protocol": asdict(self.config.recipe),
                "model": model,
                "seed": self.seed,
                "device": device.type,
            }
        )


def checked_evaluator(
    run: Path,
    data: ImageDataset,
    config: EvaluationConfig | None,
    device: torch.device | str | None,
) -> SnapshotEvaluator | None:
    """Return what evaluates the snapshots of a run on its way, checked; None: nothing does."""
    if config is None:
        return None
    evaluator = SnapshotEvaluator(run=run, data=data, config=config, device=device)
    evaluator.check()
    return evaluator


def snapshot_config(
    protocol: str | Protocol,
    model: str | nn.Module | None = None,
    **changes: Any,
) -> EvaluationConfig:
    """Return how snapshots are evaluated: one network and the set as it is, without its variants.

    Args:
        protocol: As for ``evaluate``.
        model: One network; None is the protocol's student.
        changes: Fields of the protocol that are changed; None changes nothing.

    Raises:
        ConfigError: As ``evaluate``.
    """
    recipe = replace(
        protocols.get(protocol, **changes),
        eight_bit=False,
        hard_labels=False,
        robustness=False,
        best_on_test=False,
    )
    models = None if model is None else (model,)
    return EvaluationConfig(protocol=recipe, models=models, baselines=())


def snapshot_settings(
    snapshot_every: int | None = None,
    evaluate_every: int | None = None,
    evaluate_protocol: str | Protocol | None = None,
    evaluate_nets: int | None = None,
) -> dict[str, Any]:
    """Return what a run's ``Execution`` says of its snapshots, from the arguments of ``distill``.

    Raises:
        ConfigError: Both intervals, or settings of an evaluation that is not asked for.
    """
    if evaluate_every is None:
        chosen = {"evaluate_protocol": evaluate_protocol, "evaluate_nets": evaluate_nets}
        for name, value in chosen.items():
            if value is not None:
                raise ConfigError(
                    f"{name}: expected an interval of evaluations, got none; pass "
                    "evaluate_every=100"
                )
        return {"snapshot_every": snapshot_every}
    if snapshot_every is not None:
        raise ConfigError(
            f"evaluate_every: expected no other interval of snapshots, got "
            f"snapshot_every={snapshot_every}; leave it out, evaluated snapshots are kept too"
        )
    nets = NETS if evaluate_nets is None else evaluate_nets
    config = snapshot_config(evaluate_protocol or "quick", nets=nets)
    return {"snapshot_every": evaluate_every, "evaluation": config}


def evaluate_snapshots(
    run: str | Path,
    data: ImageDataset | Any,
    *,
    protocol: str | Protocol = "bench",
    model: str | nn.Module | None = None,
    nets: int | None = None,
    lr: float | None = None,
    precision: str | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[str], None] | None = None,
    quiet: bool = False,
) -> SnapshotEvaluation:
    """Train fresh networks on every snapshot of a run and on its last set, and test them.

    Args:
        run: Folder of a finished run that was started with ``snapshot_every`` or
            ``evaluate_every``; what such a run measured by this protocol is not measured again.
        data: The real data, or anything that ``load_data`` takes.
        protocol: As for ``evaluate``; the set is trained on as it is, without the variants of
            ``evaluate``.
        model: One network; None is the protocol's student.
        nets: Networks per snapshot; None is the protocol's number.
        lr: Learning rate where the set has not learned its own; None is the protocol's.
        precision: As for ``evaluate``.
        seed: As for ``evaluate``; network ``i`` of every snapshot begins with the same weights.
        device: As for ``evaluate``.
        progress: Progress callback, called with one line of text.
        quiet: Do not show the progress.

    Returns:
        One row per snapshot, and which iteration was best on validation and on test images.  The
        set of an iteration is ``DistilledDataset.from_pretrained(run, iteration=...)``.

    Raises:
        ConfigError: The folder has no snapshots, or what ``evaluate`` refuses.
        NonFiniteError: The loss of a network on the last set stopped being finite; a snapshot on
            which one does is left out, with a warning.
        DataError: A snapshot is damaged or of another run, or the data does not fit.

    Cost: that of ``evaluate`` without baselines, for every snapshot.
    """
    iterations = snapshot_iterations(run)
    if not iterations:
        raise ConfigError(
            f"evaluate: expected snapshots in {run}, got none; distill with --snapshot-every 100 "
            "(snapshot_every=100) first"
        )
    with quietly(quiet):
        evaluator = SnapshotEvaluator(
            run=Path(run),
            data=load(data, quiet),
            config=snapshot_config(protocol, model, nets=nets, lr=lr, precision=precision),
            seed=seed,
            device=device,
            writes=False,
        )
        return evaluator.evaluate(DistilledDataset.from_pretrained(run), progress)


def _tell(progress: Callable[[str], None], iteration: int, text: str) -> None:
    progress(f"iteration {iteration:,}: {text}")


def _iterations_of(last: DistilledDataset, iterations: list[int]) -> int:
    """Return how many iterations made the artefact.

    Where its record says nothing it is one more than its last snapshot's.
    """
    record = last.metrics.get("distillation")
    done = record.get("iterations") if isinstance(record, dict) else None
    return done if isinstance(done, int) and done > 0 else iterations[-1] + 1


def _images_alone(small: DistilledDataset) -> DistilledDataset:
    """Return a copy that is a set of images, also of a generator with images drawn once."""
    names = [entry.name for entry in fields(SetContents)]
    return DistilledDataset(**{name: getattr(small, name) for name in names})
