"""The generative systems beside pixels and real images, as committed rows.

    python -m benchmarks.generative --minutes 45     # again and again, until nothing is left
    python -m benchmarks.generative --data mnist5k --ipc 1 --seeds 0 1 2
    python -m benchmarks.generative --systems "pixels, DM" "LD3M, DM" --minutes-per-row 5
    python -m benchmarks.generative --page           # write docs/results/generative.md alone

Data set × images per class × system × seed, tested on the protocol's network and on four others.
The priors of a data set are trained first, once.  Every finished row is in
benchmarks/results/generative.csv before the next begins, and is skipped by the next call;
``--force`` measures it again.  ``--minutes`` ends a call before a row that would not fit.

Equal time: a run on images or latents ends after ``--minutes-per-row``; runs whose stages share out
their iterations, and those that make a generator, take the iterations of their preset, and their
seconds stand in the table.  The systems that match a conditional GAN begin with that of their seed,
which is trained once and is a system of its own."""

import argparse
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import kdistill
from benchmarks import generative_page
from benchmarks.generative_rows import RESULTS, SystemRow
from benchmarks.generative_systems import SYSTEMS, System
from benchmarks.row_files import CALL_AGAIN, conditions, filled, read_rows, write_rows
from kdistill import methods
from kdistill.api.distilled_generator import redrawn
from kdistill.config import parse_overrides
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError, KDistillError
from kdistill.evaluation import Protocol, Row, protocols
from kdistill.formatting import console

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "out" / "generative"
DATA = ("mnist5k", "photo-patches")
SIZE = 32  # a power of two, which the generators need; mnist5k has 28
OTHER_NETWORKS = ("alexnet", "vgg11", "resnet18", "vit")
BASELINES = ("random", "herding", "full")
UNLIMITED = 1_000_000  # iterations of a run that the time ends
FRESH = ", fresh"  # ends the name of a generator's row of images drawn anew in every epoch
THERE = 1.0  # seconds that it takes to say that experts are there


@dataclass(frozen=True, kw_only=True)
class Settings:  # one field per option of the command
    """What to run; ``protocol`` may be one's own."""

    data: Sequence[str] = DATA
    ipc: Sequence[int] = (1, 10)
    systems: Sequence[str] = tuple(SYSTEMS)
    seeds: Sequence[int] = (0,)
    minutes: float = 45.0
    minutes_per_row: float = 3.0
    prior_minutes: float = 40.0
    size: int = SIZE
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prior_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gan: str = str(FOLDER / "{data}-gan")
    diffusion: str = str(FOLDER / "{data}-diffusion")
    protocol: str | Protocol = "bench"
    other_networks: Sequence[str] = OTHER_NETWORKS
    other_nets: int = 1
    force: bool = False
    results: Path = RESULTS
    runs: Path = FOLDER
    command: str = ""


class Part:
    """One call: its settings, the time that is left, and the conditions that its rows name."""

    def __init__(self, settings: Settings):
        self.settings, self.ends = settings, time.monotonic() + 60.0 * settings.minutes
        self.conditions = conditions()

    def minutes_left(self) -> float:
        return (self.ends - time.monotonic()) / 60.0

    def row(self, data: ImageDataset, ipc: int | str, system: str, **columns: Any) -> SystemRow:
        """Return a row with the conditions of this call; a column without a value is empty."""
        named = {"data": data.name, "ipc": ipc, "system": system, "row": system, "network": "same"}
        settings = {
            "protocol": protocols.get(self.settings.protocol).name,
            "command": self.settings.command,
        }
        return filled(SystemRow, {**named, **settings, **self.conditions, **columns})

    def is_done(self, data: ImageDataset, ipc: int | str, system: str, seed: int) -> bool:
        """Say whether the file has this experiment."""
        if self.settings.force:
            return False
        group = self.row(data, ipc, system, seed=seed).group
        return any(row.group == group for row in read_rows(SystemRow, self.settings.results))

    def write(self, rows: Sequence[SystemRow]) -> None:
        write_rows(SystemRow, self.settings.results, rows)
        if self.settings.results == RESULTS:
            generative_page.write_page()


def run(settings: Settings) -> bool:
    """Measure what is missing until the time is up; return whether nothing is missing.

    Raises:
        ConfigError: A system is unknown, or one of its options.
    """
    part = Part(settings)
    systems = {name: system_of(settings, name) for name in settings.systems}
    for name in settings.data:
        data = kdistill.load_data(name, size=settings.size, quiet=True)
        for kind in sorted({system.prior for system in systems.values()} - {""}):
            if not train_prior(part, data, kind):
                return False
        for seed in settings.seeds:
            for ipc in settings.ipc:
                for title, system in systems.items():
                    if part.is_done(data, ipc, title, seed):
                        console().print(f"{title}, {data.name}, {ipc} per class: there, skipped")
                        continue
                    if part.minutes_left() < settings.minutes_per_row:
                        console().print("the time of this part is up: call again to go on")
                        return False
                    part.write(measure(part, data, ipc, seed, title, system))
    return True


def system_of(settings: Settings, name: str) -> System:
    """Return a system by its name, with the options that the command changes."""
    if name not in SYSTEMS:
        raise ConfigError(
            f"systems: expected known ones, got {name!r}; choose among {', '.join(SYSTEMS)}"
        )
    system = SYSTEMS[name]
    return replace(system, options={**settings.options.get(system.method, {}), **system.options})


def train_prior(part: Part, data: ImageDataset, kind: str) -> bool:
    """Train the prior of a data set where it is missing; return whether it is whole."""
    settings, folder = part.settings, prior_folder(part.settings, data, kind)
    if (folder / "metrics.json").exists():
        return True
    minutes = min(settings.prior_minutes, part.minutes_left())
    if minutes <= 0.0:
        return False
    began = time.monotonic()
    trained = kdistill.train_prior(
        data,
        kind=kind,
        out=folder,
        options=settings.prior_options.get(kind, {}),
        resume=folder.exists(),
        max_minutes=minutes,
    )
    seconds = f"{time.monotonic() - began:.0f}"
    accuracy = trained.quality.generated_test
    quality = "" if accuracy is None else f"{100 * accuracy:.2f}"
    columns = {"mean": quality, "iterations": trained.iterations, "seconds_distil": seconds}
    part.write([part.row(data, "", f"{generative_page.PRIOR}{kind}", seed=0, **columns)])
    return True


def prior_folder(settings: Settings, data: ImageDataset, kind: str) -> Path:
    template = settings.gan if kind == "gan" else settings.diffusion
    return Path(template.format(data=data.name))


def measure(
    part: Part, data: ImageDataset, ipc: int, seed: int, title: str, system: System
) -> list[SystemRow]:
    """Distil with one system, test what it made, and return the rows."""
    settings = part.settings
    options = dict(system.options)
    if system.prior:
        options["prior"] = str(prior_folder(settings, data, system.prior))
    if system.ends_by_time:
        options.setdefault("iterations", UNLIMITED)
    if system.begins_with:
        options["generator"] = str(first_generator(part, data, seed, system.begins_with))
    run_of = {"method": system.method, "preset": system.preset, "options": options}
    seconds_experts = train_experts(data, run_of)
    small = distilled(part, data, ipc, seed, title, run_of)
    distillation = small.metrics["distillation"]
    missing = [
        name
        for name in BASELINES
        if not (seed and name != "random") and not part.is_done(data, ipc, name, seed)
    ]
    columns = {
        "seed": seed,
        "iterations": distillation["iterations"],
        "seconds_experts": seconds_experts,
        "seconds_distil": f"{distillation['seconds']:.2f}",
        "options": written(options),
    }
    rows = []
    # the table has no rows of 8 bits or hard labels
    protocol = protocols.get(settings.protocol, eight_bit=False, hard_labels=False)
    for network, models, nets in (
        ("same", None, None),
        ("other", settings.other_networks, settings.other_nets),
    ):
        if network == "other" and not models:
            continue
        # herding would choose by features of the first of the other networks
        baselines = [name for name in missing if network == "same" or name == "random"]
        evaluation = kdistill.evaluate(
            small,
            data,
            protocol=protocol,
            models=models,
            nets=nets,
            baselines=baselines,
            seed=seed,
        )
        for row in evaluation.rows:
            is_fresh = row.name.endswith(FRESH)
            if row.kind == "distilled" or is_fresh:
                name = f"{title}{FRESH if is_fresh else ''}"
                own = {"row": name, "network": network, **numbers(row)}
                rows.append(part.row(data, ipc, title, **own, **columns))
            elif row.kind == "baseline":
                own = {"seed": seed, "network": network}
                rows.append(part.row(data, ipc, row.name, **own, **numbers(row)))
    return rows


def train_experts(data: ImageDataset, run_of: Mapping[str, Any]) -> str:
    """Train the experts that a run needs; return the seconds, or nothing if they were there."""
    config = methods.get(run_of["method"]).options(run_of["preset"], run_of["options"])
    objective = getattr(config, "objective", run_of["method"])
    if objective not in methods.names() or methods.get(objective).experts is None:
        return ""
    began = time.monotonic()
    kdistill.train_experts(data, **run_of)
    seconds = time.monotonic() - began
    return f"{seconds:.0f}" if seconds > THERE else ""


def first_generator(part: Part, data: ImageDataset, seed: int, title: str) -> Path:
    """Return the folder of the generator that others begin with, distilled where it is missing."""
    system = system_of(part.settings, title)
    folder = run_folder(part.settings, data, 1, seed, title)
    if not (folder / "metrics.json").exists():
        run_of = {"method": system.method, "preset": system.preset, "options": system.options}
        distilled(part, data, 1, seed, title, run_of)
    return folder


def run_folder(settings: Settings, data: ImageDataset, ipc: int, seed: int, title: str) -> Path:
    """Return where a run is; that of a generator has no number of images per class."""
    number = "" if SYSTEMS[title].makes_generator else f"-ipc{ipc}"
    name = re.sub(r"\W+", "-", title).lower()
    return settings.runs / f"{data.name}-{name}{number}-seed{seed}"


def written(options: Mapping[str, Any]) -> str:
    """Return options as a row has them; of a folder its name, since rows are committed."""
    folders = ("prior", "generator")
    return " ".join(
        f"{name}={Path(value).name if name in folders else value}"
        for name, value in sorted(options.items())
    )


def distilled(
    part: Part,
    data: ImageDataset,
    ipc: int,
    seed: int,
    title: str,
    run_of: Mapping[str, Any],
) -> kdistill.DistilledDataset:
    """Return what a system makes; a generator is made once and serves every number of images."""
    settings, system = part.settings, SYSTEMS[title]
    folder = run_folder(settings, data, ipc, seed, title)
    if system.makes_generator and not settings.force and (folder / "metrics.json").exists():
        generator = kdistill.DistilledGenerator.from_pretrained(folder)
        return generator if generator.ipc == ipc else redrawn(generator, ipc, seed)
    # a run that was cut off begins again: its time would not be that of the row
    return kdistill.distill(
        data,
        **run_of,
        ipc=ipc,
        seed=seed,
        out=folder,
        force=True,
        max_minutes=settings.minutes_per_row if system.ends_by_time else None,
    )


def numbers(row: Row) -> dict[str, Any]:
    """Return the columns that an evaluation gives."""
    validation = f"{100 * mean(row.validation):.2f}" if row.validation else ""
    return {
        "model": row.model,
        "mean": f"{100 * row.mean:.2f}",
        "std": f"{100 * row.std:.2f}" if row.nets > 1 else "",
        "validation": validation,
        "nets": row.nets,
        "seconds_networks": f"{row.seconds:.2f}",
    }


def parsed(arguments: Sequence[str]) -> Settings:
    """Return the settings of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generative",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add, default = parser.add_argument, Settings()
    add("--data", nargs="+", default=DATA, help="built-in sets, folders or files")
    add("--ipc", nargs="+", type=int, default=default.ipc, help="images per class")
    add("--systems", nargs="+", default=tuple(SYSTEMS), metavar="NAME", help="; ".join(SYSTEMS))
    add("--seeds", nargs="+", type=int, default=default.seeds, help="distillation seeds")
    add("--minutes", type=float, default=default.minutes, help="time of this call")
    add("--minutes-per-row", type=float, default=default.minutes_per_row)
    add("--prior-minutes", type=float, default=default.prior_minutes)
    add("--size", type=int, default=SIZE, help="side of the images")
    add("--gan", default=default.gan, help="folder of the GAN; {data} is the data set's name")
    add("--diffusion", default=default.diffusion, help="folder of the diffusion model")
    add("--protocol", default=default.protocol)
    add("--other-networks", nargs="*", default=OTHER_NETWORKS)
    add("--other-nets", type=int, default=1, help="networks of each other architecture")
    add("--set", dest="options", action="append", default=[], metavar="METHOD.KEY=VALUE")
    add("--prior-set", dest="prior_options", action="append", default=[], metavar="KIND.KEY=VALUE")
    add("--force", action="store_true", help="measure again what is there")
    add("--page", action="store_true", help="only write the page from the rows")
    values = vars(parser.parse_args(arguments))
    if values.pop("page"):
        generative_page.write_page()
        raise SystemExit(0)
    for name in ("options", "prior_options"):
        values[name] = parse_overrides(values[name])
    command = shlex.join(["python", "-m", "benchmarks.generative", *arguments])
    return Settings(**values, command=command)


if __name__ == "__main__":
    try:
        sys.exit(0 if run(parsed(sys.argv[1:])) else CALL_AGAIN)
    except KDistillError as error:
        sys.exit(f"benchmarks.generative: {error}")
