"""Are distilled sets better than random real images?  Paired differences, as committed rows.

    python -m benchmarks.presets --minutes 45     # again and again, until nothing is left
    python -m benchmarks.presets --methods mtt --ipc 50 --set first_move=0.01 --set schedule=cosine

Data set x images per class x method x seed, by preset ``fast``, or with the options that are named,
which are rows of their own.  The networks of a set begin with the weights of those on random
images, so their differences are paired.  Every finished row is in benchmarks/results/presets.csv
before the next begins, and is skipped by the next call; ``--force`` measures it again.
``--minutes`` ends a call before a row is begun.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import kdistill
from benchmarks.preset_rows import RESULTS, PresetRow, write_page
from benchmarks.row_files import CALL_AGAIN, conditions, filled, read_rows, write_rows
from kdistill import methods
from kdistill.config import parse_overrides
from kdistill.data import ImageDataset
from kdistill.errors import KDistillError
from kdistill.evaluation import Protocol, protocols
from kdistill.formatting import console

FOLDER = Path(__file__).parents[1] / "out" / "presets"
DATA = ("mnist5k", "photo-patches")
METHODS = ("dm", "dc", "dsa", "mtt", "tesla", "ftd", "datm", "pad")


@dataclass(frozen=True, kw_only=True)
class Settings:  # one field per option of the command
    """What to run; ``protocol`` may be one's own."""

    data: Sequence[str] = DATA
    size: int | None = None
    methods: Sequence[str] = METHODS
    ipc: Sequence[int] = (1, 10, 50)
    seeds: Sequence[int] = (0, 1, 2)
    preset: str = "fast"
    options: Mapping[str, Any] = field(default_factory=dict)
    protocol: str | Protocol = "bench"
    nets: int = 3
    minutes: float = 45.0
    plan: bool = False
    force: bool = False
    results: Path = RESULTS
    runs: Path = FOLDER
    command: str = ""


def run(settings: Settings) -> bool:
    """Measure what is missing until the time is up; return whether nothing is missing.

    Raises:
        ConfigError: A method, its preset or one of its options is unknown.
    """
    ends, shared = time.monotonic() + 60.0 * settings.minutes, conditions()
    for method in settings.methods:
        methods.get(method).options(settings.preset, settings.options)
    for name in settings.data:
        data = kdistill.load_data(name, size=settings.size, quiet=True)
        for seed in settings.seeds:
            for ipc in settings.ipc:
                for method in settings.methods:
                    named = names(settings, data, ipc, method, seed)
                    done = {row.key for row in read_rows(PresetRow, settings.results)}
                    if filled(PresetRow, named).key in done and not settings.force:
                        continue
                    if time.monotonic() > ends:
                        console().print("the time of this call is up: call again to go on")
                        return False
                    row = filled(PresetRow, {**named, **shared, **measured(settings, data, named)})
                    write_rows(PresetRow, settings.results, [row])
                    if settings.results == RESULTS:
                        write_page()
    return True


def names(
    settings: Settings, data: ImageDataset, ipc: int, method: str, seed: int
) -> dict[str, Any]:
    """Return the columns that name a row."""
    return {
        "data": data.name,
        "ipc": ipc,
        "method": method,
        "preset": settings.preset,
        "options": " ".join(f"{key}={x}" for key, x in sorted(settings.options.items())),
        "protocol": protocols.get(settings.protocol).name,
        "seed": seed,
    }


def measured(settings: Settings, data: ImageDataset, named: Mapping[str, Any]) -> dict[str, Any]:
    """Distil and evaluate one set, and return the columns of what was measured."""
    method, ipc, seed = named["method"], named["ipc"], named["seed"]
    run_of = {"method": method, "preset": settings.preset, "options": dict(settings.options)}
    began, has_experts = time.monotonic(), methods.get(method).experts is not None
    if has_experts:
        kdistill.train_experts(data, **run_of)
    seconds_experts = time.monotonic() - began
    planned = ""
    if settings.plan:
        planned = f"{kdistill.plan(data, **run_of, ipc=ipc).seconds:.3g}"
    small = kdistill.distill(
        data, **run_of, ipc=ipc, seed=seed, out=settings.runs / folder_of(named), force=True
    )
    began = time.monotonic()
    evaluation = kdistill.evaluate(
        small,
        data,
        protocol=protocols.get(settings.protocol, eight_bit=False, hard_labels=False),
        nets=settings.nets,
        baselines=("random",),
        seed=seed,
    )
    own, other = evaluation.row(method), evaluation.row("random")
    pairs = zip(own.accuracies, other.accuracies, strict=True)
    distillation = small.metrics["distillation"]
    return {
        "mean": percent([own.mean]),
        "random": percent([other.mean]),
        "differences": " ".join(f"{100 * (a - b):.2f}" for a, b in pairs),
        "validation": percent(own.validation),
        "validation_random": percent(other.validation),
        "nets": own.nets,
        "iterations": distillation["iterations"],
        "seconds_experts": f"{seconds_experts:.0f}" if has_experts else "",
        "seconds_distil": f"{distillation['seconds']:.4g}",
        "seconds_networks": f"{time.monotonic() - began:.0f}",
        "planned": planned,
        "command": settings.command,
    }


def percent(values: Sequence[float]) -> str:
    return f"{100 * mean(values):.2f}" if values else ""


def folder_of(named: Mapping[str, Any]) -> str:
    """Return the name of a run's folder."""
    parts = (named["data"], named["method"], f"ipc{named['ipc']}", f"seed{named['seed']}")
    options = str(named["options"]).replace(" ", "-").replace("=", "-")
    return "-".join([*parts, *([options] if options else [])])


def parsed(arguments: Sequence[str]) -> Settings:
    """Return the settings of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.presets",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add, default = parser.add_argument, Settings()
    add("--data", nargs="+", default=DATA, help="built-in sets, folders or files")
    add("--size", type=int, default=None, help="side of the images")
    add("--methods", nargs="+", default=METHODS, metavar="METHOD")
    add("--ipc", nargs="+", type=int, default=default.ipc, help="images per class")
    add("--seeds", nargs="+", type=int, default=default.seeds, help="distillation seeds")
    add("--preset", default=default.preset)
    add("--set", dest="options", action="append", default=[], metavar="KEY=VALUE")
    add("--protocol", default=default.protocol)
    add("--nets", type=int, default=default.nets, help="networks per row")
    add("--minutes", type=float, default=default.minutes, help="no row is begun after this time")
    add("--plan", action="store_true", help="also note the time that kdistill plan foretells")
    add("--force", action="store_true", help="measure again what is there")
    values = vars(parser.parse_args(arguments))
    values["options"] = parse_overrides(values["options"])
    command = shlex.join(["python", "-m", "benchmarks.presets", *arguments])
    return Settings(**values, command=command)


if __name__ == "__main__":
    try:
        sys.exit(0 if run(parsed(sys.argv[1:])) else CALL_AGAIN)
    except KDistillError as error:
        sys.exit(f"benchmarks.presets: {error}")
