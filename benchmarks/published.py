"""Rows that can be set beside a paper's, each in calls that may end at any time.

    python -m benchmarks.published --list
    python -m benchmarks.published "DM, 1" --data cifar10.npz --title "CIFAR-10 (JPEG)" --minutes 45

A row is distilled without holding images out, and its set is tested by one network after another.
What was published and what is accepted was written down before (``published_rows.EXPERIMENTS``).  A
call goes on where the last one ended, and exits with status 75 while something is left; finished
networks are in benchmarks/results/published.csv at once.
"""

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev

import torch

import kdistill
from benchmarks.published_rows import EXPERIMENTS, RESULTS, Experiment, PublishedRow, write_page
from benchmarks.row_files import CALL_AGAIN, conditions, filled, write_rows
from kdistill import methods
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError, KDistillError
from kdistill.evaluation import protocols
from kdistill.files import write_atomic
from kdistill.formatting import console
from kdistill.keys import make_key, permutation

FOLDER = Path(__file__).parents[1] / "out" / "published"


@dataclass(frozen=True, kw_only=True)
class Settings:  # one field per option of the command
    """What to run."""

    row: str
    data: str
    title: str = ""
    size: int | None = None
    minutes: float = 45.0
    results: Path = RESULTS
    runs: Path = FOLDER
    command: str = ""


@dataclass
class Progress:
    """What the calls so far have done; lies beside the run.

    Attributes:
        seconds_experts: Time that the experts took.
        seconds_distil: Time of the distillation.
        seconds_networks: Time of the networks.
        accuracies: Test accuracies of the networks so far.
        commits: Commits of the code that ran.
    """

    seconds_experts: float = 0.0
    seconds_distil: float = 0.0
    seconds_networks: float = 0.0
    accuracies: list[float] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)


class Call:
    """One call: a row, its data, and the time that is left."""

    def __init__(self, settings: Settings, experiment: Experiment):
        self.settings, self.experiment = settings, experiment
        self.ends = time.monotonic() + 60.0 * settings.minutes
        self.folder = settings.runs / re.sub(r"\W+", "-", settings.row).strip("-").lower()
        self.conditions = conditions()
        self.data: ImageDataset = kdistill.load_data(
            settings.data,
            size=settings.size,
            normalisation=experiment.normalisation,
            quiet=True,
        )
        path = self.folder / "progress.json"
        self.progress = Progress(**json.loads(path.read_text())) if path.exists() else Progress()
        if self.conditions["commit"] not in self.progress.commits:
            self.progress.commits.append(self.conditions["commit"])

    def minutes_left(self) -> float:
        return (self.ends - time.monotonic()) / 60.0

    def remember(self) -> None:
        """Write what is done beside the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self.progress), indent=2)
        write_atomic(self.folder / "progress.json", text.encode())


def run(settings: Settings) -> bool:
    """Go on with a row until the time is up; return whether it is complete.

    Raises:
        ConfigError: The row is unknown.
        DataError: The data cannot be read.
    """
    if settings.row not in EXPERIMENTS:
        known = ", ".join(repr(name) for name in EXPERIMENTS)
        raise ConfigError(f"row: expected a known one, got '{settings.row}'; choose among {known}")
    call = Call(settings, EXPERIMENTS[settings.row])
    small = None
    if call.experiment.method:
        if not train_experts(call):
            return False
        if (small := distilled(call)) is None:
            return False
    while len(call.progress.accuracies) < call.experiment.nets:
        if call.minutes_left() < 0.0:
            return False
        test_network(call, small)
        write(call, small)
    return True


def train_experts(call: Call) -> bool:
    """Train the experts that are missing, one after another; return whether all are there."""
    experiment = call.experiment
    if methods.get(experiment.method).experts is None:
        return True
    for count in range(1, experiment.options["num_experts"] + 1):
        if call.minutes_left() < 0.0:
            return False
        began = time.monotonic()
        options = {**experiment.options, "num_experts": count}
        kdistill.train_experts(
            call.data, method=experiment.method, preset=experiment.preset, options=options
        )
        call.progress.seconds_experts += time.monotonic() - began
        call.remember()
    return True


def distilled(call: Call) -> kdistill.DistilledDataset | None:
    """Go on with the distillation; return the set, or None if it is not finished."""
    experiment, folder = call.experiment, call.folder / "set"
    if (folder / "metrics.json").exists():
        small = kdistill.DistilledDataset.from_pretrained(folder)
        if small.metrics["distillation"]["finished"]:
            return small
    if call.minutes_left() < 0.0:
        return None
    began = time.monotonic()
    small = kdistill.distill(
        call.data,
        method=experiment.method,
        preset=experiment.preset,
        options=dict(experiment.options),
        ipc=experiment.ipc,
        validation=0.0,
        out=folder,
        resume=folder.exists(),
        max_minutes=call.minutes_left(),
    )
    call.progress.seconds_distil += time.monotonic() - began
    call.remember()
    return small if small.metrics["distillation"]["finished"] else None


def test_network(call: Call, small: kdistill.DistilledDataset | None) -> None:
    """Train and test the next network, on the set or on random images of its own."""
    number, began = len(call.progress.accuracies), time.monotonic()
    chosen = random_images(call.data, call.experiment.ipc, number) if small is None else small
    evaluation = kdistill.evaluate(
        chosen,
        call.data,
        protocol=protocols.get(call.experiment.protocol, eight_bit=False, hard_labels=False),
        nets=1,
        baselines=(),
        seed=number,
    )
    call.progress.accuracies.append(100.0 * evaluation.rows[0].mean)
    call.progress.seconds_networks += time.monotonic() - began
    call.remember()


def random_images(data: ImageDataset, ipc: int, seed: int) -> kdistill.DistilledDataset:
    """Return ``ipc`` random training images of every class as a set."""
    labels = data.train.labels.cpu()
    rows = torch.cat(
        [
            members[permutation(make_key(seed, "random images", k), len(members))[:ipc]]
            for k in range(data.num_classes)
            if len(members := (labels == k).nonzero().squeeze(1))
        ]
    )
    return kdistill.DistilledDataset(
        images=data.train.images[rows], labels=labels[rows], classes=data.classes
    )


def write(call: Call, small: kdistill.DistilledDataset | None) -> None:
    """Put what is known into the file, and write the page."""
    experiment, progress, settings = call.experiment, call.progress, call.settings
    reached = progress.accuracies
    options = " ".join(f"{name}={x}" for name, x in sorted(experiment.options.items()))
    preset = f"{experiment.method} {experiment.preset} {options}".strip()
    columns = {
        "row": settings.row,
        "data": settings.title or call.data.name,
        "published": experiment.published,
        "bound": experiment.bound,
        "mean": f"{mean(reached):.2f}",
        "std": f"{stdev(reached):.2f}" if len(reached) > 1 else "",
        "networks": " ".join(f"{accuracy:.2f}" for accuracy in reached),
        "wanted": experiment.nets,
        "within": experiment.accepts(mean(reached)) if len(reached) == experiment.nets else "",
        "iterations": small.metrics["distillation"]["iterations"] if small else "",
        "seconds_experts": f"{progress.seconds_experts:.0f}" if progress.seconds_experts else "",
        "seconds_distil": f"{progress.seconds_distil:.0f}" if small else "",
        "seconds_networks": f"{progress.seconds_networks:.0f}",
        "settings": f"{preset or 'random images'}, {experiment.normalisation} normalisation, "
        f"protocol {experiment.protocol}, nothing held out",
        "command": settings.command,
        **call.conditions,
        "commit": " ".join(progress.commits),
    }
    write_rows(PublishedRow, settings.results, [filled(PublishedRow, columns)])
    if settings.results == RESULTS:
        write_page()


def parsed(arguments: Sequence[str]) -> Settings:
    """Return the settings of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add, default = parser.add_argument, Settings(row="", data="")
    add("row", nargs="?", help="; ".join(EXPERIMENTS))
    add("--data", help="the data: a folder or a file that load_data reads")
    add("--title", default="", help='name in the table, such as "CIFAR-10 (JPEG)"')
    add("--size", type=int, default=None, help="side of the images")
    add("--minutes", type=float, default=default.minutes, help="time of this call")
    add("--list", action="store_true", help="show the rows and stop")
    values = vars(parser.parse_args(arguments))
    if values.pop("list"):
        for name, experiment in EXPERIMENTS.items():
            console().print(f"{name:<18} {experiment.data:<14} accepted: {experiment.bound}")
        raise SystemExit(0)
    if values["row"] is None or values["data"] is None:
        parser.error("expected a row and --data; --list shows the rows")
    data = values["data"]  # a row names the file, not where it lies
    shown = [Path(data).name if argument == data else argument for argument in arguments]
    command = shlex.join(["python", "-m", "benchmarks.published", *shown])
    return Settings(**values, command=command)


if __name__ == "__main__":
    try:
        sys.exit(0 if run(parsed(sys.argv[1:])) else CALL_AGAIN)
    except KDistillError as error:
        sys.exit(f"benchmarks.published: {error}")
