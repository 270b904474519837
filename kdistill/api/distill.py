"""``distill``: data in, a small data set out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdistill.api.evaluate_snapshots import snapshot_settings
from kdistill.api.run import Execution, RunConfig, run
from kdistill.artifacts import DistilledDataset
from kdistill.config import from_mapping
from kdistill.data import ImageDataset
from kdistill.evaluation.protocols import Protocol
from kdistill.methods.distillation import Progress


def distill(
    data: ImageDataset | Any,
    *,
    method: str = "dm",
    ipc: int = 10,
    seed: int = 0,
    preset: str = "fast",
    options: Mapping[str, Any] | None = None,
    validation: float = 0.1,
    init: DistilledDataset | str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    callbacks: Sequence[Callable[[Progress], None]] | Callable[[Progress], None] = (),
    device: str | torch.device | None = None,
    threads: int | None = None,
    max_minutes: float | None = None,
    snapshot_every: int | None = None,
    evaluate_every: int | None = None,
    evaluate_protocol: str | Protocol | None = None,
    evaluate_nets: int | None = None,
    checkpoint_minutes: float = 1.0,
    quiet: bool = False,
) -> DistilledDataset:
    """Make a tiny synthetic training set from a labelled image set.

    Args:
        data: From ``load_data``, or anything that ``load_data`` takes.
        method: A name from ``kdistill methods``.
        ipc: Images per class.
        seed: Same seed, thread count and instruction set give the same bits.
        preset: ``"fast"`` (for CPUs) or ``"paper"``.
        options: The method's own options, on top of the preset; ``kdistill methods dm`` lists them.
        validation: Share of the training data held out, so that settings can be chosen without the
            test set.
        init: An earlier set, or its folder, to start from.
        out: Folder for the checkpoint, ``metrics.jsonl`` and the finished artefact.  None returns
            the set alone; meanwhile the checkpoint is kept in ``$KDISTILL_CACHE/runs``, in a folder
            that is named at the start and removed at the end.
        resume: Continue the run in ``out``, or without it the interrupted run of the same settings,
            data and seed; the result is bit-identical to an uninterrupted one.
        force: Replace the finished set or the interrupted run in ``out``.
        callbacks: A function or several, called with a ``Progress`` every ten iterations.
        device: ``"cpu"`` or ``"cuda"``; None keeps the data's.
        threads: CPU threads; None keeps torch's.
        max_minutes: Stop after this time and keep what is done.
        snapshot_every: Also keep the set as it is every so many iterations, in ``out/snapshots``,
            at most 100 of them; ``evaluate_snapshots`` compares them.  The result has the same bits
            with and without.
        evaluate_every: Take a snapshot every so many iterations and train networks on it at once.
            ``metrics["snapshots"]`` then holds the accuracies of every snapshot and of the result,
            and names the iteration that is best on images held out, and the one that is best on
            test images (for comparison with papers alone).  The result has the same bits with and
            without; ``max_minutes`` counts the time of these evaluations too.
        evaluate_protocol: How these networks are trained, as for ``evaluate``; None is ``"quick"``.
        evaluate_nets: Networks per evaluation; None is 2.
        checkpoint_minutes: Minutes between two checkpoints; a killed run loses at most this much.
        quiet: Do not show the progress, which stands on standard error or below the cell of a
            notebook.

    Returns:
        The synthetic set, images in pixel space; nothing is clipped.

    Raises:
        ConfigError: Unknown method, preset or option, or settings that do not fit together.
        DataError: Too few images, or data that cannot be used.
        NonFiniteError: The optimisation blew up; the last good state is in ``out``.
        KeyboardInterrupt: After the state was saved; the message says where.  SIGTERM and SIGHUP
            save it too, before they end the process.

    Cost: ``iterations`` outer steps; peak memory is that of one step.  ``evaluate_every`` adds one
    evaluation without baselines per snapshot.
    """
    settings = {
        "method": method,
        "ipc": ipc,
        "seed": seed,
        "preset": preset,
        "validation": validation,
        "options": options or {},
    }
    execution = Execution(
        out=out,
        resume=resume,
        force=force,
        callbacks=callbacks,
        device=device,
        threads=threads,
        max_minutes=max_minutes,
        **snapshot_settings(snapshot_every, evaluate_every, evaluate_protocol, evaluate_nets),
        checkpoint_minutes=checkpoint_minutes,
        quiet=quiet,
    )
    config = from_mapping(RunConfig, settings, where="distill")
    return run(config, data, init=init, execution=execution)
