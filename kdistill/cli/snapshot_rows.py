"""``kdistill evaluate RUN --snapshots``."""

from pathlib import Path
from typing import Any

from kdistill.cli.shared import echo, show
from kdistill.errors import ConfigError


def check(run: Path, models: tuple[str, ...], lr: Any) -> None:
    """Raise ConfigError for what ``--snapshots`` cannot be combined with."""
    if run.is_dir() and len(models) == 1 and lr != "auto":
        return
    got = (
        "a file"
        if not run.is_dir()
        else "lr auto"
        if lr == "auto"
        else f"the networks {', '.join(models) or 'of an empty list'}"
    )
    raise ConfigError(
        f"--snapshots: expected the folder of a run, one network and a fixed lr, got {got}; change "
        "it"
    )


def evaluate_and_save(
    run: Path, data: Any, small: Any, *, model: str, is_saved: bool, **chosen: Any
) -> None:
    """Print one row per snapshot of ``run``, and leave the numbers in its artefact ``small``."""
    from kdistill.api.evaluate_snapshots import evaluate_snapshots

    found = evaluate_snapshots(run, data, model=model, **chosen)
    show(found)
    if is_saved:
        small.with_metrics(snapshots=found.to_dict()).save_pretrained(run)
    best = found.best_on_validation
    if best not in (None, found.rows[-1].iteration):
        echo(f"DistilledDataset.from_pretrained(RUN, iteration={best}) is the best on validation")
