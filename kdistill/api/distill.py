"""The public functions: data in, a small data set out.  No tensor arithmetic here."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill import _native, methods
from kdistill import runner as loop
from kdistill.api.evaluate import evaluate
from kdistill.api.metrics_log import JsonLines
from kdistill.api.run import RunConfig, check_ranges, check_run, resolve, use
from kdistill.api.run_folder import check_folder, prepare, same_artefact
from kdistill.api.scratch import scratch_folder
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts import snapshot_folder as snapshots
from kdistill.config import from_mapping, to_mapping
from kdistill.data import ImageDataset, load_data
from kdistill.engine.precision import use_precision
from kdistill.errors import ConfigError, DataError
from kdistill.experts import TrajectoryStore
from kdistill.files import sole_use
from kdistill.runner import Progress
from kdistill.signals import terminable
from kdistill.status import describe, note, quietly, status_line

__all__ = ["RunConfig", "distill", "evaluate", "load_data", "resolve", "train_experts"]

_log = logging.getLogger("kdistill")
LARGEST_PIXEL = 20.0  # synthetic images leave 0..1, but not by this much


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
        max_minutes: Stop after this time and keep what is there.
        snapshot_every: Also keep the set as it is every so many iterations, in ``out/snapshots``,
            at most 100 of them; ``evaluate_snapshots`` compares them.  The result has the same bits
            with and without.
        checkpoint_minutes: Between two checkpoints; a killed run loses at most this much.
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

    Cost: ``iterations`` outer steps; peak memory is that of one step.
    """
    given = {
        "method": method,
        "ipc": ipc,
        "seed": seed,
        "preset": preset,
        "validation": validation,
        "options": options or {},
    }
    limits: dict[str, Any] = {"max_minutes": max_minutes, "checkpoint_minutes": checkpoint_minutes}
    config_of_method = check_run(
        from_mapping(RunConfig, given, where="distill"), **limits, init=init, out=out
    )
    watched = _functions(callbacks)
    use(threads, device)
    snapshots.check_every(snapshot_every, out)
    if out is not None:
        check_folder(out, resume=resume, force=force)
    spec = data if isinstance(data, str | Path) else None
    data = data if isinstance(data, ImageDataset) else load_data(data, quiet=quiet)
    data.check_in_memory()
    about = {
        "data": str(spec) if spec is not None else data.source,
        "size": data.size,
        "normalisation": data.transform.kind,
    }
    given = {
        "method": method,
        "ipc": ipc,
        "seed": seed,
        "preset": preset,
        "validation": validation,
        "mirrors": data.mirrors,
    }
    run = from_mapping(
        RunConfig, {**about, **given, "options": to_mapping(config_of_method)}, where="distill"
    )
    seen = data.holdout(validation)[0].to(device or data.train.images.device)
    with quietly(quiet):
        check_sizes(seen, ipc)
    start = None if init is None else _start(init, seen, ipc)
    precision = use_precision(config_of_method.precision, seen.train.images.device)
    with terminable(), quietly(quiet), precision, status_line("distilling") as say:
        say(f"preparing {method} on {data.name}, {ipc} per class")
        watchers = (lambda progress: say(describe(progress, f"loss {progress.loss:.4g}")), *watched)
        small = _distilled(
            run, data, seen, start, out, resume, force, watchers, limits, snapshot_every
        )
    _warn_of_range(small.images)
    return small


def _warn_of_range(images: Tensor) -> None:
    low, high = (float(x) for x in torch.aminmax(images))
    if max(-low, high) > LARGEST_PIXEL:
        _log.warning(
            "distill: pixels reach from %.3g to %.3g where pictures have 0 to 1; lower lr_images "
            "if networks learn little",
            low,
            high,
        )


def _distilled(
    run: RunConfig,
    data: ImageDataset,
    seen: ImageDataset,
    start: Tensor | None,
    out: str | Path | None,
    resume: bool,
    force: bool,
    callbacks: Sequence[Callable[[Progress], None]],
    limits: Mapping[str, Any],
    snapshot_every: int | None,
) -> DistilledDataset:
    """Build the run and take it to its end, in a folder that no other run uses meanwhile."""
    config = _config(run, data, start)

    def build() -> methods.Problem:
        problem = methods.get(run.method).build(
            resolve(run.method, run.preset, run.options), seen, run.ipc, run.seed, start
        )
        if snapshot_every is not None:
            snapshots.check_count(snapshot_every, problem.iterations)
        config.update(problem.about)
        return problem

    if out is None:
        with scratch_folder(config, resume) as scratch:
            problem = build()
            how = {**limits, "is_scratch": True, "resume": scratch.resumes, "callbacks": callbacks}
            outcome = loop.run(problem, folder=scratch.folder, identity=config, **how)
            scratch.is_finished = outcome.finished
            return _result(outcome, data, problem, config)
    folder = Path(out)
    with sole_use(folder):
        problem = build()
        prepare(folder, resume=resume, force=force)

        def take(outcome: loop.Outcome) -> None:
            snapshots.save_snapshot(
                folder, outcome.snapshot.iteration, _result(outcome, data, problem, config)
            )

        how = {
            **limits,
            "snapshots": None if snapshot_every is None else loop.Snapshots(snapshot_every, take),
        }
        watchers: list[Callable[[Progress], None]] = [
            JsonLines(folder / "metrics.jsonl", resume),
            *callbacks,
        ]
        outcome = loop.run(
            problem, folder=folder, identity=config, resume=resume, callbacks=watchers, **how
        )
        small = _result(outcome, data, problem, config)
        if resume and (finished := same_artefact(folder, small)) is not None:
            return finished
        small.save_pretrained(folder)
        return small


def _functions(callbacks: Any) -> tuple[Callable[[Progress], None], ...]:
    given = (
        ()
        if callbacks is None
        else (callbacks,)
        if callable(callbacks)
        else tuple(callbacks)
        if isinstance(callbacks, Sequence)
        else (callbacks,)
    )
    for callback in given:
        if not callable(callback):
            raise ConfigError(
                f"callbacks: expected functions of a Progress, got {callback!r}; pass one or a "
                "list of them"
            )
    return given


def train_experts(
    data: ImageDataset | Any,
    *,
    method: str = "mtt",
    preset: str = "fast",
    options: Mapping[str, Any] | None = None,
    validation: float = 0.1,
    device: str | torch.device | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> TrajectoryStore:
    """Train the expert trajectories that a trajectory method needs, or those of them that are missing.

    ``distill`` does this itself; on its own it is for the long part of a run.  Size and time are
    shown before it starts.

    Args:
        data: From ``load_data``, or anything that ``load_data`` takes.
        method: ``"mtt"``, ``"tesla"``, ``"ftd"``, ``"datm"`` or ``"pad"``.
        preset: As for ``distill``.
        options: As for ``distill``; ``experts`` names the folder.
        validation: As for ``distill``: experts must not see what a run holds out.
        device: ``"cpu"`` or ``"cuda"``; None keeps the data's.
        threads: CPU threads; None keeps torch's.
        quiet: Do not show the progress.

    Returns:
        The trajectories.  A killed training goes on where it was, and the files have the same bits.

    Raises:
        ConfigError: The method has no experts, or the folder holds others.
        DataError: The folder is damaged, or cannot be written.

    Cost: ``num_experts * (max_start_epoch - 1 + expert_epochs)`` passes over the data.
    """
    found, config = methods.get(method), resolve(method, preset, options or {})
    if found.experts is None:
        raise ConfigError(
            f"experts: expected a method with expert trajectories, got '{method}'; such as mtt, "
            "tesla or ftd"
        )
    check_ranges(1, validation)
    use(threads, device)
    data = data if isinstance(data, ImageDataset) else load_data(data, quiet=quiet)
    data.check_in_memory()
    seen = data.holdout(validation)[0].to(device or data.train.images.device)
    with quietly(quiet), use_precision(config.precision, seen.train.images.device):
        return found.experts(config, seen)


def check_sizes(data: ImageDataset, ipc: int) -> None:
    """Say which classes have fewer than ``ipc`` training images; raise DataError if all have, or if one has none."""
    counts = torch.bincount(data.train.labels.cpu(), minlength=data.num_classes)
    smallest = int(counts.argmin())
    small = [
        f"'{data.classes[k]}' ({int(counts[k])})"
        for k in (counts < ipc).nonzero().squeeze(1).tolist()
    ]
    if small and int(counts.min()) > 0 and int(counts.max()) >= ipc:
        named = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
        note(
            f"fewer than ipc={ipc} training images of {named}: their {ipc} synthetic images begin "
            "as copies of those, "
            "with a little noise"
        )
    elif small:
        raise DataError(
            f"distill: expected at least ipc={ipc} training images per class, got "
            f"{int(counts[smallest])} of "
            f"'{data.classes[smallest]}'; lower ipc, hold out less with validation=, or add images"
        )


def _start(init: DistilledDataset | str | Path, data: ImageDataset, ipc: int) -> Tensor:
    earlier = init if isinstance(init, DistilledDataset) else DistilledDataset.from_pretrained(init)
    wanted = (data.num_classes * ipc, data.channels, data.size, data.size)
    if tuple(earlier.images.shape) != wanted:
        raise ConfigError(
            f"init: expected images {list(wanted)}, got {list(earlier.images.shape)}; use a set of "
            "the same classes, ipc and size"
        )
    unnamed = tuple(map(str, range(data.num_classes)))
    if earlier.classes not in (unnamed, tuple(data.classes)) or set(earlier.counts) != {ipc}:
        raise ConfigError(
            f"init: expected {ipc} images of each of {', '.join(data.classes)}, got "
            f"{list(earlier.counts)} of "
            f"{', '.join(earlier.classes)}; use a set that was made from the same classes"
        )
    order = torch.argsort(earlier.labels, stable=True)
    return data.transform.apply(earlier.images[order].to(data.train.images.device))


def _config(run: RunConfig, data: ImageDataset, start: Tensor | None) -> dict[str, Any]:
    method = methods.get(run.method)
    return {
        "run": to_mapping(run),
        "method": {"title": method.title, "paper": method.paper},
        "source": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "licence": data.licence,
            "classes": list(data.classes),
            "init": None if start is None else f"{start.double().sum().item():.17g}",
        },
        "environment": _native.environment(),
    }


def _result(
    outcome: loop.Outcome, data: ImageDataset, problem: methods.Problem, config: dict[str, Any]
) -> DistilledDataset:
    state = outcome.state
    found = None if problem.search is None else problem.search.findings(outcome.snapshot.state)
    return DistilledDataset(
        images=data.transform.invert(outcome.images.cpu()),
        labels=problem.labels.cpu(),
        label_logits=state["label_logits"].cpu() if "label_logits" in state else None,
        learned_lr=float(state["lr"]) if "lr" in state else None,
        classes=data.classes,
        config=config,
        metrics={
            "distillation": {
                "iterations": outcome.snapshot.iteration,
                "finished": outcome.finished,
                "seconds": outcome.seconds,
                "peak_bytes": outcome.peak_bytes,
                "skipped": outcome.skipped,
                "learning_rates": dict(problem.learning_rates),
                **({"lr_init": float(problem.state["lr"])} if "lr" in problem.state else {}),
                "loss": [list(pair) for pair in outcome.losses[-1:]],
            },
            **({} if found is None else {"search": found.metrics}),
        },
        transform=data.transform,
        files={} if found is None else found.files,
    )
