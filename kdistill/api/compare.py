"""``compare``: finished runs side by side, their spread over seeds, and what one may conclude."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdistill.api.sweep import read_record
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.conclusions import is_number
from kdistill.errors import ConfigError, DataError, did_you_mean
from kdistill.evaluation import Evaluation, Row
from kdistill.evaluation.comparison import Comparison, Entry
from kdistill.evaluation.result_tables import DAGGER
from kdistill.evaluation.significance import CONFIDENCE, difference, mean_of

__all__ = ["Comparison", "Entry", "compare"]


def compare(
    folders: Sequence[str | Path] | str | Path, *, against: str | None = None
) -> Comparison:
    """Put finished and evaluated runs side by side.

    Runs that differ in nothing but the seed become one line.  A line is compared with the reference
    line of the same data, images per class, network and protocol by a 95 % t interval over
    distillation seeds (``kdistill.evaluation.significance``).

    Args:
        folders: Run folders, or folders of runs such as the output of ``sweep``.
        against: Name of the reference line: a variant, a method or a baseline; None is the first
            distilled one.

    Returns:
        The table; what could not be used is in its notes.

    Raises:
        ConfigError: ``against`` names no line.
        DataError: No folder holds an evaluated run, or one is damaged.
    """
    paths = [folders] if isinstance(folders, str | Path) else list(folders)
    runs, notes = _collect([Path(path) for path in paths])
    if not runs:
        looked = ", ".join(map(str, paths)) or "nothing"
        why = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"compare: expected evaluated runs, got none in {looked}{why}; run kdistill evaluate "
            "on them first"
        )
    groups: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for (where, name), entry in _grouped(runs).items():
        groups.setdefault(where, {})[name] = entry
    names = list(dict.fromkeys(entry.name for group in groups.values() for entry in group.values()))
    if against is not None and against not in names:
        raise ConfigError(
            f"compare: expected the name of a line, got '{against}'; {did_you_mean(against, names)}"
        )
    entries = [
        entry for group in groups.values() for entry in _compared(list(group.values()), against)
    ]
    return Comparison(tuple(entries), (*_reading(entries), *_conditions(runs), *notes))


@dataclass(frozen=True)
class _Run:
    """An evaluated artefact.

    Attributes:
        folder: Where it is.
        variant: Name of its line, or None while it has only that of its method.
        small: The set.
        evaluation: What was measured on it.
    """

    folder: Path
    variant: str | None
    small: DistilledDataset
    evaluation: Evaluation

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result but the seed."""
        run = dict(recorded(self.small.config, "run"))
        run.pop("seed", None)
        return run

    @property
    def seed(self) -> int:
        seed = recorded(self.small.config, "run").get("seed", 0)
        if type(seed) is not int:
            raise DataError(
                f"{self.folder}: expected a whole number as the run's seed, got {seed!r}; distill "
                "again"
            )
        return seed


def _collect(folders: Sequence[Path]) -> tuple[list[_Run], list[str]]:
    """Return the evaluated runs, and a sentence about everything else that looks like a run."""
    runs: dict[Path, _Run] = {}
    notes: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"compare: expected a folder, got nothing at {folder}; check the path")
        places = [folder]
        if not (folder / "config.json").exists():
            record = read_record(folder)
            notes += [
                f"failed: {name}: {row.get('reason', 'no reason given')}"
                for name, row in record.items()
                if row.get("status") == "failed"
            ]
            others = sorted(x for x in folder.iterdir() if x.is_dir() and x.name[0] != ".")
            places = list(dict.fromkeys([*(folder / name for name in record), *others]))
        for place in places:
            if (place / "config.json").exists():
                if place.resolve() not in runs and (run := _read_run(place, notes)) is not None:
                    runs[place.resolve()] = run
            elif (place / "checkpoint.safetensors").exists():
                notes.append(f"not finished: {place}")
    return _named(list(runs.values())), notes


def _read_run(place: Path, notes: list[str]) -> _Run | None:
    """Return the run in a folder; where it is not evaluated add a note and return None."""
    small = DistilledDataset.from_pretrained(place)
    if "evaluation" not in small.metrics:
        notes.append(f"not evaluated: {place}")
        return None
    variant = read_record(place.parent).get(place.name, {}).get("variant")
    try:
        evaluation = Evaluation.from_dict(small.metrics["evaluation"])
    except ConfigError as error:
        raise DataError(f"{place / 'metrics.json'}: {error}") from error
    return _Run(place, variant if isinstance(variant, str) else None, small, evaluation)


def recorded(content: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Return a table of a set's config or metrics, which may hold anything; empty for no table."""
    value = content.get(part)
    return value if isinstance(value, Mapping) else {}


def _named(runs: list[_Run]) -> list[_Run]:
    """Give every run the name of its line.

    That is its variant or method, and the options in which lines of that name differ.
    """
    named, alike = [], defaultdict(list)
    for run in runs:
        base = run.variant or str(run.settings.get("method", "distilled"))
        settings = {key: x for key, x in run.settings.items() if key not in ("data", "ipc")}
        place = (base, str(run.evaluation.data.get("fingerprint")), run.small.ipc)
        named.append((base, place, _flat(settings)))
        alike[place].append(named[-1][2])
    for number, (base, place, own) in enumerate(named):
        keys = sorted(k for k in own if any(other.get(k) != own[k] for other in alike[place]))
        changes = ", ".join(f"{key.removeprefix('options.')}={own[key]}" for key in keys)
        runs[number] = replace(runs[number], variant=f"{base} ({changes})" if changes else base)
    return runs


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _grouped(runs: Sequence[_Run]) -> dict[tuple[tuple[Any, ...], str], Entry]:
    """Return one entry per place in the table and name, in the order of the runs.

    Baselines come last.
    """
    lines: dict[tuple[tuple[Any, ...], str, str], list[tuple[_Run, Row]]] = {}
    for run in runs:
        data, protocol = run.evaluation.data, repr(run.evaluation.protocol)
        where = (*(str(data.get(key)) for key in ("name", "fingerprint", "transform")),)
        for row in run.evaluation.rows:
            is_fresh = row.drawn > 0  # images of a generator, others in every epoch
            if row.kind != "variant" or is_fresh:
                kind = "distilled" if is_fresh else row.kind
                name = str(run.variant) if kind == "distilled" else row.name
                place = (*where, run.small.ipc, row.model, protocol)
                line = (place, f"{name}, fresh" if is_fresh else name, kind)
                lines.setdefault(line, []).append((run, row))
    ordered = sorted(lines.items(), key=lambda item: item[0][2] == "baseline")
    return {(place, name): _entry(name, kind, rows) for (place, name, kind), rows in ordered}


def _entry(name: str, kind: str, rows: Sequence[tuple[_Run, Row]]) -> Entry:
    run, row = rows[0]
    by_seed: dict[int, Row] = {}
    sources: set[str] = set()
    for other, measured in rows:
        seed = other.seed if kind == "distilled" else other.evaluation.seeds[0]
        if kind == "baseline" and (set(measured.sources) & sources or seed in by_seed):
            continue  # one measurement that several evaluations show
        if seed in by_seed:
            raise DataError(
                f"compare: expected one run of {name} with seed {seed}, got two ({other.folder} is "
                "one); name one of the folders"
            )
        sources |= set(measured.sources)
        by_seed[seed] = measured
    costs = [recorded(other.small.metrics, "distillation") for other, _ in rows]
    seconds, peaks = (
        [cost[key] for cost in costs if kind == "distilled" and is_number(cost.get(key))]
        for key in ("seconds", "peak_bytes")
    )
    return Entry(
        data=str(run.evaluation.data.get("name", "data")),
        ipc=run.small.ipc,
        model=row.model,
        protocol=run.evaluation.protocol.title,
        name=name,
        kind=kind,
        accuracies={seed: each.mean for seed, each in by_seed.items()},
        validation={
            seed: mean_of(each.validation) for seed, each in by_seed.items() if each.validation
        },
        nets=tuple(accuracy for each in by_seed.values() for accuracy in each.accuracies),
        untrained=sum(each.untrained for each in by_seed.values()),
        seconds=mean_of(seconds) if seconds else None,
        peak_bytes=max(peaks) if peaks else None,
    )


def _compared(group: list[Entry], against: str | None) -> list[Entry]:
    """Return the group with the reference first and its difference in every other line."""
    wanted = (
        [entry for entry in group if entry.name == against]
        if against
        else [e for e in group if e.kind == "distilled"]
    )
    if not wanted:
        return group
    reference = wanted[0]
    others = [
        replace(e, against=difference(e.accuracies, reference.accuracies))
        for e in group
        if e is not reference
    ]
    return [reference, *others]


def _reading(entries: Sequence[Entry]) -> list[str]:
    """Say how the numbers are to be read, from what is there."""
    counts = dict.fromkeys(entry.seeds for entry in entries)
    over = f" ({next(iter(counts))} nets)" if len(counts) == 1 else ""
    notes = [
        f"test %: mean ± sample standard deviation over distillation seeds{over}, each the mean of "
        "its nets; val.: held out"
    ]
    failed = [
        f"{entry.name} ({entry.model}: {entry.untrained} of {len(entry.nets)})"
        for entry in entries
        if entry.untrained
    ]
    if failed:
        notes.append(
            f"{DAGGER} networks that did not train, no better than chance on their own images: "
            f"{', '.join(failed)}"
        )
    gaps = [entry.against for entry in entries if entry.against is not None]
    tested = [gap for gap in gaps if gap.test != "none"]
    if gaps:
        notes.append(
            "difference: points to the first line of the same data, ipc, network and protocol"
        )
    if tested:
        kinds = " or ".join(
            dict.fromkeys(f"{gap.test} over {_seeds_text(gap.seeds)}" for gap in tested)
        )
        notes.append(
            f"[low, high]: {100 * CONFIDENCE:.0f} % interval, {kinds}; not corrected for "
            f"{len(tested)} comparison{'s' if len(tested) > 1 else ''}; * leaves out 0"
        )
        if min(min(gap.seeds) for gap in tested) < 5:
            widest = 100 * max(gap.high - gap.low for gap in tested) / 2
            notes.append(
                f"few seeds: the widest interval hides differences below {widest:.1f} points; no * "
                "does not mean equal"
            )
    if len(tested) < len(gaps):
        notes.append(
            "test none: one seed on a side; the spread over nets says nothing about other "
            "distillation seeds"
        )
    return notes


def _seeds_text(seeds: tuple[int, int]) -> str:
    return f"{seeds[0]} seeds" if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]} seeds"


def _conditions(runs: Sequence[_Run]) -> list[str]:
    """Say in what the runs differ that makes times or numbers hard to compare."""
    notes = []
    for part, places in (
        ("environments", [recorded(run.small.config, "environment") for run in runs]),
        ("evaluation environments", [dict(run.evaluation.environment) for run in runs]),
    ):
        keys = sorted(
            {key for one in places for key in one if any(x.get(key) != one[key] for x in places)}
        )
        if keys:
            notes.append(
                f"the runs have different {part} ({', '.join(keys)}): compare times with care"
            )
    short = [
        run.folder.name
        for run in runs
        if recorded(run.small.metrics, "distillation").get("finished") is False
    ]
    if short:
        notes.append(f"stopped by a time budget: {', '.join(short)}")
    return notes
