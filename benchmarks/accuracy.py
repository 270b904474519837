"""Accuracy of every method beside the baselines, as committed rows.

    python -m benchmarks.accuracy        # the table of benchmarks/results/accuracy.csv
    python -m benchmarks.accuracy --data mnist5k --ipc 10 --seeds 0 1 2
    python -m benchmarks.accuracy --data digits --ipc 1 --methods dm --protocol quick \\
        --set iterations=100

Data set × images per class × method; several distillation seeds, and several networks for each, are
pooled into one row. What is finished for the commit is skipped (``--force`` runs it again): sets
and their evaluations are kept under ``out/accuracy``, so a killed run loses one set at most.  A
rerun replaces rows of the same experiment on the same machine."""

import argparse
import csv
import io
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

import kdistill
from benchmarks import readme_tables, result_rows
from kdistill.api.evaluate import evaluate
from kdistill.config import parse_overrides
from kdistill.evaluation import Evaluation, Protocol, Row, merge, protocols
from kdistill.files import write_atomic
from kdistill.formatting import console
from kdistill.status import status_line

ROOT = Path(__file__).parents[1]
RESULTS = result_rows.RESULTS / result_rows.ACCURACY
RUNS = ROOT / "out" / "accuracy"
DATA = ("mnist5k", "photo-patches", "digits")
SEEDS = (0, 1, 2)
MANY = 50  # images per class from which on one distillation seed is enough for the table


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the file; ``EXPERIMENT`` names what a rerun replaces."""

    method: str
    data: str
    ipc: str
    preset: str
    options: str
    protocol: str
    model: str
    mean: str
    std: str
    validation: str
    gap_closed: str
    eight_bit_cost: str
    seeds: str
    nets: int
    machine: str
    threads: int
    versions: str
    commit: str
    seconds: str
    command: str


EXPERIMENT = (
    "method",
    "data",
    "ipc",
    "preset",
    "options",
    "protocol",
    "model",
    "machine",
    "threads",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run; ``protocol`` may be an own one."""

    data: Sequence[str] = DATA
    ipc: Sequence[int] = (1, 10, 50)
    methods: Sequence[str] = ("dm",)
    seeds: Sequence[int] | None = None
    preset: str = "fast"
    options: Mapping[str, Any] = field(default_factory=dict)
    protocol: str | Protocol = "bench"
    nets: int | None = None
    force: bool = False
    results: Path = RESULTS
    runs: Path = RUNS
    commit: str = ""
    command: str = ""

    def seeds_for(self, ipc: int) -> tuple[int, ...]:
        if self.seeds is not None:
            return tuple(self.seeds)
        return SEEDS if ipc < MANY else SEEDS[:1]


def run(plan: Plan) -> list[Record]:
    """Run what is missing, write the file after every experiment, and return the new lines."""
    written: list[Record] = []
    for name in plan.data:
        data = kdistill.load_data(name, quiet=True)
        for ipc in plan.ipc:
            for method in plan.methods:
                if not plan.force and is_done(plan, method, name, ipc):
                    console().print(
                        f"{method}, {name}, ipc {ipc}: there for commit {plan.commit}, skipped"
                    )
                    continue
                merged = merge(
                    [
                        one(plan, data, method, ipc, seed, number)
                        for number, seed in enumerate(plan.seeds_for(ipc))
                    ]
                )
                console().print(merged.table())
                lines = records(plan, merged, method, name, ipc)
                write(plan.results, lines)
                if plan.results == RESULTS:
                    readme_tables.write_readme()
                written += lines
    return written


def one(plan: Plan, data: Any, method: str, ipc: int, seed: int, number: int) -> Evaluation:
    """Return the evaluation of one distillation seed.

    Random selection is drawn anew for each seed, the other baselines once.
    """
    changes = "".join(f"-{key}={value}" for key, value in sorted(plan.options.items()))
    folder = (
        plan.runs
        / (plan.commit or "uncommitted")
        / f"{data.name}-{method}-{plan.preset}{changes}-ipc{ipc}-seed{seed}"
    )
    recipe = protocols.get(plan.protocol, nets=plan.nets)
    baselines = ("random", "herding", "k-center", "full") if number == 0 else ("random",)
    can_reuse = is_clean(plan.commit) and not plan.force
    small = (
        kdistill.DistilledDataset.from_pretrained(folder)
        if can_reuse and (folder / "data.safetensors").exists()
        else None
    )
    if small is None:
        with status_line(f"{method}, {data.name}, ipc {ipc}, seed {seed}"):
            small = kdistill.distill(
                data,
                method=method,
                ipc=ipc,
                seed=seed,
                preset=plan.preset,
                options=plan.options,
                out=folder,
                resume=can_reuse and (folder / "checkpoint.safetensors").exists(),
                force=not can_reuse,
            )
    if "evaluation" in small.metrics:
        found = Evaluation.from_dict(small.metrics["evaluation"])
        if found.protocol == recipe and {row.name for row in found.rows} >= set(baselines):
            return found
    with status_line(f"{method}, {data.name}, ipc {ipc}, seed {seed}"):
        found = evaluate(small, data, protocol=recipe, baselines=baselines, seed=seed)
    small.save_pretrained(folder)
    return found


def records(plan: Plan, merged: Evaluation, method: str, data: str, ipc: int) -> list[Record]:
    """Return one line for the method and one for each baseline.

    Variants of the small set are columns of its line.
    """
    environment = merged.environment
    versions = ", ".join(
        f"{name} {environment[name]}"
        for name in ("kdistill", "torch", "python")
        if name in environment
    )
    options = " ".join(f"{key}={value}" for key, value in sorted(plan.options.items()))

    def line(row: Row) -> Record:
        own = row.kind == "distilled"
        return Record(
            method=method if own else row.name,
            data=data,
            ipc="all" if row.name == "full" else str(ipc),
            preset=plan.preset if own else "-",
            options=options if own else "",
            protocol=merged.protocol.name,
            model=row.model,
            mean=f"{100 * row.mean:.2f}",
            std=f"{100 * row.std:.2f}",
            validation=f"{100 * sum(row.validation) / len(row.validation):.2f}"
            if row.validation
            else "",
            gap_closed=points(merged.gap_closed(row.model)) if own else "",
            eight_bit_cost=points(merged.eight_bit_cost(row.model)) if own else "",
            seeds=row.seeds,
            nets=len(row.accuracies),
            machine=f"{machine()} ({environment.get('isa', '?')})",
            threads=torch.get_num_threads(),
            versions=versions,
            commit=plan.commit,
            seconds=f"{row.seconds:.2f}",
            command=plan.command,
        )

    return [line(row) for row in merged.rows if row.kind != "variant"]


def points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def read(path: Path) -> list[Record]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = [entry.name for entry in fields(Record)]
    whole = [{name: row[name] for name in known} for row in rows if set(row) >= set(known)]
    return [
        Record(**{**row, "nets": int(row["nets"]), "threads": int(row["threads"])}) for row in whole
    ]


def write(path: Path, lines: Sequence[Record]) -> None:
    """Put ``lines`` into the file in the place of earlier ones of the same experiment.

    They are sorted, so that diffs are small.
    """
    rows = {experiment(line): line for line in [*read(path), *lines]}
    order = sorted(
        rows.values(),
        key=lambda r: (
            r.machine,
            r.data,
            r.protocol,
            r.model,
            int(r.ipc) if r.ipc.isdigit() else 10**9,
            r.method,
        ),
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, [entry.name for entry in fields(Record)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(line) for line in order)
    write_atomic(path, text.getvalue().encode())


def experiment(line: Record) -> tuple[Any, ...]:
    return tuple(getattr(line, name) for name in EXPERIMENT)


def is_done(plan: Plan, method: str, data: str, ipc: int) -> bool:
    """Say whether the file has this experiment for this commit, if all is committed."""
    options = " ".join(f"{key}={value}" for key, value in sorted(plan.options.items()))
    recipe = protocols.get(plan.protocol)
    nets = (plan.nets or recipe.nets) * len(plan.seeds_for(ipc))
    wanted = (
        method,
        data,
        str(ipc),
        plan.preset,
        options,
        recipe.name,
        recipe.student,
        torch.get_num_threads(),
        nets,
        plan.commit,
    )
    return is_clean(plan.commit) and any(
        wanted
        == (
            r.method,
            r.data,
            r.ipc,
            r.preset,
            r.options,
            r.protocol,
            r.model,
            r.threads,
            r.nets,
            r.commit,
        )
        for r in read(plan.results)
    )


def is_clean(commit: str) -> bool:
    return bool(commit) and not commit.endswith("+")


def current_commit() -> str:
    """Return the short commit, with a ``+`` if code is not committed, or nothing outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", "kdistill", "csrc")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def machine() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def parsed(arguments: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--data", nargs="+", default=DATA, help="built-in sets, folders or files")
    parser.add_argument("--ipc", nargs="+", type=int, default=(1, 10, 50))
    parser.add_argument("--methods", nargs="+", default=("dm",))
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        help=f"distillation seeds (default: {SEEDS}, one of them from IPC {MANY} on)",
    )
    parser.add_argument("--preset", default="fast")
    parser.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the method",
    )
    parser.add_argument("--protocol", default="bench")
    parser.add_argument("--nets", type=int, help="networks per set (default: the protocol's)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--force", action="store_true", help="run again what is there")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    options = {
        name: value for name, value in vars(given).items() if name not in ("threads", "options")
    }
    command = shlex.join(["python", "-m", "benchmarks.accuracy", *arguments])
    return Plan(
        **options, options=parse_overrides(given.options), commit=current_commit(), command=command
    )


if __name__ == "__main__":
    try:
        run(parsed(sys.argv[1:]))
    except kdistill.errors.KDistillError as error:
        sys.exit(f"benchmarks.accuracy: {error}")
