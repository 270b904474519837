"""``compare``: finished runs side by side, with their spread over distillation seeds and what it lets one conclude."""

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
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    runs, notes = _collect([Path(folder) for folder in given])
    if not runs:
        looked = ", ".join(map(str, given)) or "nothing"
        why = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"compare: expected evaluated runs, got none in {looked}{why}; run kdistill evaluate "
            "on them first"
        )
    groups: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for (where, name), found in _grouped(runs).items():
        groups.setdefault(where, {})[name] = found
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
    """An evaluated artefact."""

    folder: Path
    variant: str
    small: DistilledDataset
    found: Evaluation

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
    runs: dict[Path, tuple[_Run, str | None]] = {}
    notes: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"compare: expected a folder, got nothing at {folder}; check the path")
        if not (folder / "config.json").exists():
            record = read_record(folder)
            notes += [
                f"failed: {name}: {row.get('reason', 'no reason given')}"
                for name, row in record.items()
                if row.get("status") == "failed"
            ]
            listed = [folder / name for name in record]
            rest = sorted(
                child
                for child in folder.iterdir()
                if child.is_dir() and not child.name.startswith(".")
            )
            inside = list(dict.fromkeys([*listed, *rest]))
        else:
            inside = [folder]
        for place in inside:
            if (place / "config.json").exists() and place.resolve() not in runs:
                _take(place, runs, notes)
            elif (place / "checkpoint.safetensors").exists() and not (
                place / "config.json"
            ).exists():
                notes.append(f"not finished: {place}")
    return _named([run for run, _ in runs.values()], [name for _, name in runs.values()]), notes


def _take(place: Path, runs: dict[Path, tuple[_Run, str | None]], notes: list[str]) -> None:
    small = DistilledDataset.from_pretrained(place)
    if "evaluation" not in small.metrics:
        notes.append(f"not evaluated: {place}")
        return
    variant = read_record(place.parent).get(place.name, {}).get("variant")
    try:
        found = Evaluation.from_dict(small.metrics["evaluation"])
    except ConfigError as error:
        raise DataError(f"{place / 'metrics.json'}: {error}") from error
    runs[place.resolve()] = (
        _Run(place, "", small, found),
        variant if isinstance(variant, str) else None,
    )


def recorded(content: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Return a table of a set's config or metrics, which may hold anything; empty where it is no table."""
    value = content.get(part)
    return value if isinstance(value, Mapping) else {}


def _named(runs: list[_Run], variants: list[str | None]) -> list[_Run]:
    """Give every run the name of its line: its variant or method, and the options in which lines of that name differ."""
    bases = [
        name or str(run.settings.get("method", "distilled"))
        for run, name in zip(runs, variants, strict=True)
    ]
    flat = [
        _flat({key: value for key, value in run.settings.items() if key not in ("data", "ipc")})
        for run in runs
    ]
    places = [
        (name, run.found.data.get("fingerprint"), run.small.ipc)
        for run, name in zip(runs, bases, strict=True)
    ]
    named = []
    for run, base, own, here in zip(runs, bases, flat, places, strict=True):
        alike = [other for other, place in zip(flat, places, strict=True) if place == here]
        keys = sorted(k for k in own if any(other.get(k) != own[k] for other in alike))
        changes = ", ".join(f"{key.removeprefix('options.')}={own[key]}" for key in keys)
        named.append(replace(run, variant=f"{base} ({changes})" if changes else base))
    return named


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return found


def _grouped(runs: Sequence[_Run]) -> dict[tuple[tuple[Any, ...], str], Entry]:
    """Return one entry per place in the table and name, in the order of the runs; baselines behind."""
    lines: dict[tuple[tuple[Any, ...], str, str], list[tuple[_Run, Row]]] = {}
    for run in runs:
        for row in run.found.rows:
            if row.kind != "variant":
                about = run.found.data
                where = (
                    *(str(about.get(key)) for key in ("name", "fingerprint", "transform")),
                    run.small.ipc,
                )
                name = run.variant if row.kind == "distilled" else row.name
                place = (*where, row.model, repr(run.found.protocol))
                lines.setdefault((place, name, row.kind), []).append((run, row))
    ordered = sorted(lines.items(), key=lambda item: item[0][2] == "baseline")
    return {(place, name): _entry(name, kind, found) for (place, name, kind), found in ordered}


def _entry(name: str, kind: str, found: Sequence[tuple[_Run, Row]]) -> Entry:
    run, row = found[0]
    accuracies: dict[int, float] = {}
    validation: dict[int, float] = {}
    nets: list[float] = []
    untrained = 0
    seen: set[str] = set()
    for other, measured in found:
        seed = other.seed if kind == "distilled" else other.found.seeds[0]
        if kind == "baseline" and (set(measured.sources) & seen or seed in accuracies):
            continue  # one measurement that several evaluations show
        if seed in accuracies:
            raise DataError(
                f"compare: expected one run of {name} with seed {seed}, got two ({other.folder} is "
                "one); name one of the folders"
            )
        seen |= set(measured.sources)
        accuracies[seed] = measured.mean
        if measured.validation:
            validation[seed] = mean_of(measured.validation)
        nets += measured.accuracies
        untrained += measured.untrained
    cost = (
        [recorded(other.small.metrics, "distillation") for other, _ in found]
        if kind == "distilled"
        else []
    )
    seconds, peaks = (
        [c[key] for c in cost if is_number(c.get(key))] for key in ("seconds", "peak_bytes")
    )
    return Entry(
        data=str(run.found.data.get("name", "data")),
        ipc=run.small.ipc,
        model=row.model,
        protocol=run.found.protocol.title,
        name=name,
        kind=kind,
        accuracies=accuracies,
        validation=validation,
        nets=tuple(nets),
        untrained=untrained,
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
            f"{len(tested)} "
            f"comparison{'s' if len(tested) > 1 else ''}; * leaves out 0"
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
        ("evaluation environments", [dict(run.found.environment) for run in runs]),
    ):
        keys = sorted(
            {
                key
                for place in places
                for key in place
                if any(other.get(key) != place[key] for other in places)
            }
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
