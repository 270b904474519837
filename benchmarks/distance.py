"""Does the class-relevant feature distance predict the error of networks trained on a set?

    python -m benchmarks.distance        # mnist5k and photo-patches: 15 minutes on one core each
    python -m benchmarks.distance --data digits --ipc 1 2 --nets 1
    # finished runs too, with the stages of hglad
    python -m benchmarks.distance --sets out/hierarchy-mnist5k --data mnist5k

The answer is the rank correlation of distance and error.  Snapshots are random, herded, k-means and
k-center images, images under noise, with wrong labels, means of images, pure noise, and DM from
real images and from noise at several iterations, for several numbers of images per class.  Each
gets every form of the distance to the training images (networks trained, random, or unlike on
either side; CAM weights or none; all levels or the last), and the mean test error of networks
trained on it.  Spearman's correlation over all snapshots has a 95 % percentile interval from a
bootstrap over snapshots; a number of images per class alone is a harder question: more images come
nearer and train better. Writes ``distance-<data>.csv`` (a snapshot a line), which ``--table`` reads
again.
"""

import argparse
import csv
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

import kdistill
from kdistill.api.evaluate import evaluate
from kdistill.data import ImageDataset
from kdistill.engine import build_student, train
from kdistill.evaluation import Protocol
from kdistill.formatting import console
from kdistill.keys import generator, make_key
from kdistill.methods.distillation import Progress
from kdistill.objectives.class_relevance import ClassRelevantDistance, class_relevant_distance
from kdistill.selection import select
from kdistill.status import status_line

OUT = Path(__file__).parents[1] / "out" / "distance"
DM_LOOKS = (10, 30, 60)  # iterations of DM that are looked at
FACTS = ("data", "ipc", "kind", "seed", "error")
# the last is that of the released code of H-GLaD: other random networks for synthetic images than
# for real ones
FORMS = (
    *itertools.product(("trained", "random"), ("cam", "none"), ("all", "last")),
    ("unlike", "none", "all"),
)


@dataclass(frozen=True)
class Plan:
    """The plan: ``nets`` networks are trained on a snapshot, ``num_nets`` measure the distance."""

    ipc: Sequence[int] = (1, 3, 10)
    nets: int = 2
    epochs: int = 60
    width: int = 32
    num_nets: int = 5
    net_epochs: int = 3
    looks: Sequence[int] = DM_LOOKS
    sets: Sequence[Path] = ()


@dataclass(frozen=True)
class Set:
    """One snapshot: normalised images ``[M, C, S, S]``, their classes, and its origin."""

    kind: str
    seed: int
    ipc: int
    images: Tensor
    labels: Tensor


def measured(data: ImageDataset, plan: Plan) -> list[dict[str, str | float]]:
    """Return a line for every snapshot."""
    began = time.monotonic()
    lines: list[dict[str, str | float]] = []
    with status_line(f"distance on {data.name}") as say:
        forms = distances(data, plan)
        for number, one in enumerate(itertools.chain(snapshots(data, plan), finished(data, plan))):
            say(
                f"snapshot {number + 1}: {one.kind}, ipc {one.ipc}; {time.monotonic() - began:.0f} "
                "s"
            )
            line: dict[str, str | float] = {
                "data": data.name,
                "ipc": one.ipc,
                "kind": one.kind,
                "seed": one.seed,
            }
            line["error"] = error_of(one, data, plan)
            lines.append(
                line | {name: float(form(one.images, one.labels)) for name, form in forms.items()}
            )
    return lines


def distances(data: ImageDataset, plan: Plan) -> dict[str, ClassRelevantDistance]:
    """Return every form of the distance to the training images."""
    real, labels = data.transform.apply(data.train.images), data.train.labels
    student = build_student(
        "convnet",
        channels=data.channels,
        size=data.size,
        classes=data.num_classes,
        width=plan.width,
    )
    key = make_key(0, "distance study")
    fresh, others = (
        torch.stack(
            [student.init(generator(make_key(key, kind, net))) for net in range(plan.num_nets)]
        ).to(real)
        for kind in ("random", "unlike")
    )
    nets = {
        "trained": train(
            student,
            real,
            labels,
            epochs=plan.net_epochs,
            lr=0.01,
            key=key,
            nets=plan.num_nets,
            schedule="constant",
        ),
        "random": fresh,
    }
    found = {
        " ".join(form): class_relevant_distance(
            student, nets[form[0]], real, labels, weighting=form[1], layers=form[2]
        )
        for form in FORMS[:-1]
    }
    return {**found, " ".join(FORMS[-1]): replace(found["random none all"], thetas=others)}


def error_of(one: Set, data: ImageDataset, plan: Plan) -> float:
    """Return the mean test error of networks trained on a snapshot.

    The initial weights are the same for all snapshots.
    """
    recipe = Protocol(
        name="distance study",
        width=plan.width,
        epochs=plan.epochs,
        nets=plan.nets,
        lr=0.03,
        eight_bit=False,
    )
    images = data.transform.invert(one.images)
    small = kdistill.DistilledDataset(
        images=images, labels=one.labels, classes=data.classes, transform=data.transform
    )
    return 1.0 - evaluate(small, data, protocol=recipe, baselines=()).rows[0].mean


def snapshots(data: ImageDataset, plan: Plan) -> Iterator[Set]:
    """Yield the snapshots that need no generator, and no earlier run."""
    real, classes = data.transform.apply(data.train.images), data.num_classes
    for ipc in plan.ipc:
        labels = torch.arange(classes).repeat_interleave(ipc)

        def chosen(way: str, seed: int, per_class: int) -> Tensor:
            key = make_key(seed, f"distance study {way}", per_class)
            return real[
                select(way, data.train.images.flatten(1), data.train.labels, per_class, key)
            ]

        draws = [chosen("random", seed, ipc) for seed in range(4)]
        noise = torch.randn(draws[0].shape, generator=generator(make_key(0, "noise", ipc)))
        yield from (Set("random", seed, ipc, draw, labels) for seed, draw in enumerate(draws))
        yield from (
            Set(way.replace("_", "-"), 0, ipc, chosen(way, 0, ipc), labels)
            for way in ("herding", "k_means", "k_center")
        )
        yield from (
            Set(f"random + {level} noise", 0, ipc, draws[0] + level * noise, labels)
            for level in (0.5, 1.0, 2.0)
        )
        for share in (0.3, 0.6):
            rows = (torch.arange(classes) < share * classes).repeat_interleave(
                ipc
            )  # images of some classes trade places
            images = draws[1].clone()
            images[rows] = images[rows].roll(ipc, 0)
            yield Set(f"{share:.0%} in wrong classes", 0, ipc, images, labels)
        many = chosen("random", 9, 8 * ipc)
        yield Set("means of 8", 0, ipc, many.unflatten(0, (-1, 8)).mean(1), labels)
        yield Set("noise", 0, ipc, noise, labels)
        for start in ("real", "noise"):
            yield from distilled(data, plan, ipc, start, labels)


def distilled(
    data: ImageDataset, plan: Plan, ipc: int, start: str, labels: Tensor
) -> Iterator[Set]:
    """Yield DM's images at several iterations."""
    found: dict[int, Tensor] = {}

    def watch(progress: Progress) -> None:
        if progress.iteration in plan.looks:
            found[progress.iteration] = progress.images.clone()

    options = {"iterations": max(plan.looks), "width": plan.width, "batch_real": 64, "init": start}
    kdistill.distill(data, method="dm", ipc=ipc, options=options, callbacks=[watch])
    for iteration, images in found.items():
        yield Set(f"DM from {start}, {iteration}", 0, ipc, images, labels)


def finished(data: ImageDataset, plan: Plan) -> Iterator[Set]:
    """Yield the sets of finished runs: every stage of hglad, the images of other methods."""
    folders = sorted(config.parent for root in plan.sets for config in root.rglob("config.json"))
    for folder in folders:
        small = kdistill.DistilledDataset.from_pretrained(folder)
        run = small.config.get("run", {})
        if run.get("data") != data.name or small.images.shape[1:] != data.train.images.shape[1:]:
            continue
        states = {f"{run['method']} {run['options'].get('objective', '')}".strip(): small.images}
        if "path.safetensors" in small.files:
            stages = ["start", *(row["stage"] for row in small.metrics["search"]["best"])]
            images = load(small.files["path.safetensors"])["images"]
            states = {
                f"{name} {stage}": x
                for name in states
                for stage, x in zip(stages, images, strict=True)
            }
        for name, images in states.items():
            yield Set(
                name, int(run["seed"]), int(run["ipc"]), data.transform.apply(images), small.labels
            )


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Return Spearman's rank correlation of ``x [..., N]`` and ``y [..., N]``.

    Ties share a mean rank.

    Where one side is constant the correlation is 0.
    """

    def centred(values: Tensor) -> Tensor:
        below = (values[..., :, None] > values[..., None, :]).double().sum(-1)
        equal = (values[..., :, None] == values[..., None, :]).double().sum(-1)
        ranks = below + 0.5 * (equal - 1.0)
        return ranks - ranks.mean(-1, keepdim=True)

    a, b = centred(x), centred(y)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt().clamp(min=1e-12)


def interval(x: Tensor, y: Tensor, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of Spearman's correlation over the N pairs."""
    rows = torch.randint(len(x), (draws, len(x)), generator=torch.Generator().manual_seed(0))
    found = torch.cat([spearman(x[part], y[part]) for part in rows.split(200)])
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return low, high


def table(lines: Sequence[Mapping[str, str | float]]) -> str:
    """Return the correlations of every form as Markdown.

    They are taken over all snapshots of a data set, and for each number of images.
    """
    counts = sorted({int(line["ipc"]) for line in lines})
    heads = [
        "data",
        "networks",
        "weights",
        "levels",
        "n",
        "Spearman (95 %)",
        *(f"ipc {count}" for count in counts),
    ]
    rows = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for name in dict.fromkeys(str(line["data"]) for line in lines):
        of_data = [line for line in lines if line["data"] == name]
        for form in FORMS:

            def pair(
                chosen: Sequence[Mapping[str, str | float]], key: str = " ".join(form)
            ) -> tuple[Tensor, Tensor]:
                found = torch.tensor(
                    [[float(line[key]), float(line["error"])] for line in chosen],
                    dtype=torch.float64,
                )
                return found[:, 0], found[:, 1]

            low, high = interval(*pair(of_data))
            each = [[line for line in of_data if int(line["ipc"]) == count] for count in counts]
            cells = [
                name,
                *form,
                str(len(of_data)),
                f"{float(spearman(*pair(of_data))):.2f} ({low:.2f} to {high:.2f})",
            ]
            cells += [
                f"{float(spearman(*pair(part))):.2f}" if len(part) > 2 else "" for part in each
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def write(path: Path, lines: Sequence[Mapping[str, str | float]]) -> None:
    """Write a line for every snapshot, distances with six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, [*FACTS, *(" ".join(form) for form in FORMS)], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(
            {key: f"{x:.6g}" if isinstance(x, float) else x for key, x in line.items()}
            for line in lines
        )


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines of a file that ``write`` wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Rank correlation between the distance and the test error."
    )
    parser.add_argument("--data", nargs="+", default=["mnist5k", "photo-patches"])
    parser.add_argument(
        "--ipc", nargs="+", type=int, default=list(Plan.ipc), help="images per class"
    )
    parser.add_argument(
        "--nets", type=int, default=Plan.nets, help="networks trained on every snapshot"
    )
    parser.add_argument("--epochs", type=int, default=Plan.epochs, help="of their training")
    parser.add_argument("--width", type=int, default=Plan.width, help="of all networks")
    parser.add_argument(
        "--num-nets", type=int, default=Plan.num_nets, help="networks of the distance"
    )
    parser.add_argument(
        "--net-epochs", type=int, default=Plan.net_epochs, help="of the trained ones"
    )
    parser.add_argument(
        "--sets", nargs="*", type=Path, default=[], help="folders with finished runs"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--table",
        nargs="+",
        type=Path,
        default=[],
        metavar="CSV",
        help="only print the table of these files",
    )
    chosen = parser.parse_args(arguments)
    lines: list[Mapping[str, str | float]] = [line for path in chosen.table for line in read(path)]
    plan = Plan(
        ipc=chosen.ipc,
        nets=chosen.nets,
        epochs=chosen.epochs,
        width=chosen.width,
        num_nets=chosen.num_nets,
        net_epochs=chosen.net_epochs,
        sets=chosen.sets,
    )
    for name in chosen.data if not chosen.table else []:
        found = measured(kdistill.load_data(name, quiet=True), plan)
        write(chosen.out / f"distance-{name}.csv", found)
        lines += found
    console().print(table(lines), soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()
