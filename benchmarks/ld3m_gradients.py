"""Does the gradient reach the latents of a diffusion model through many steps of its sampler?

    kdistill prior train mnist5k --size 32 --kind diffusion --out out/diffusion
    python -m benchmarks.ld3m_gradients out/diffusion --data mnist5k --size 32
    # a picture of numbers that were measured before
    python -m benchmarks.ld3m_gradients --table out/ld3m-gradients/mnist5k.csv --picture out/a.svg

LD3M's claim is that a plain sampler loses the gradient, and that its residual keeps it alive.  The
gradient of an objective is taken in the learned latents z of a run of ``ld3m`` before its first
step, for three samplers (the residual of the published code, that of equation 7 of the paper, none)
and several numbers of steps.  Three numbers are taken per iteration, each of which draws other
noise and another network:

- the norm of dL/dz;
- the gain, the norm of dL/dz over that of dL/dimages: what the sampler alone does to a gradient.
  (Samplers draw different images, and the objective has another gradient for each.)
- the norm of dL/dx_T, at the noisy latent sqrt(a) z + sqrt(1 - a) eps that a sampler begins with.
  Without a residual and with that of equation 7, z acts through it alone: dL/dz is sqrt(a) times
  as long, a loss that no number of steps changes.

Memory is that of the tensors of one gradient (``kdistill.testing.peak_memory``).  With a checkpoint
per step it grows by the latents of a chunk with every step.
"""

import argparse
import csv
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import kdistill
from benchmarks.provenance import commit
from kdistill import methods
from kdistill.api.run import resolve
from kdistill.data import ImageDataset
from kdistill.formatting import byte_count, console
from kdistill.methods.base import Problem
from kdistill.priors.diffusion.diffusion_prior import DiffusionPrior, Residual
from kdistill.status import status_line
from kdistill.testing.peak_memory import peak_tensor_bytes

OUT = Path(__file__).parents[1] / "out" / "ld3m-gradients"
RESIDUALS = {
    "published code": Residual(),
    "equation 7": Residual("noisy", "mean", "linear_from_one"),
    "none": Residual(schedule="none"),
}
THROUGH_START = ("equation 7", "none")  # residuals with which z acts through x_T alone
QUANTITIES = {
    "norm": "norm of dL/dz",
    "gain": "norm of dL/dz over that of dL/dimages",
    "norm_at_start": "norm of dL/dx_T",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        prior: Folder of a diffusion model.
        steps: Numbers of steps of the sampler.
        iterations: Draws of noise and network, over which means are taken.
        ipc: Images per class.
        options: Options of ``ld3m`` on top of its preset ``fast``.
    """

    prior: Path
    steps: Sequence[int] = (10, 20, 50)
    iterations: int = 5
    ipc: int = 1
    options: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """One gradient.

    Attributes:
        data: Name of the data.
        residual: Name of the sampler's residual.
        steps: Steps of the sampler.
        iteration: Number of the draw.
        norm: Norm of dL/dz.
        gain: Norm of dL/dz over that of dL/dimages.
        signal: Share sqrt(a) of z in the latent that the sampler begins with.
    """

    data: str
    residual: str
    steps: int
    iteration: int
    norm: float
    gain: float
    signal: float

    @property
    def norm_at_start(self) -> float:
        """Norm of dL/dx_T, where z acts through x_T alone."""
        return self.norm / self.signal


def problem_of(data: ImageDataset, plan: Plan) -> Problem:
    """Return the run whose latents have the gradients."""
    config = resolve("ld3m", "fast", {**plan.options, "prior": str(plan.prior)})
    return methods.get("ld3m").build(config, data, plan.ipc, 0, None)


def measured(problem: Problem, name: str, plan: Plan) -> Iterator[Gradient]:
    """Yield the gradients of every residual, number of steps and iteration.

    Args:
        problem: A run of ``ld3m``.
        name: Name of the data.
        plan: What is measured.
    """
    with status_line(f"gradients on {name}") as say:
        for (residual, form), steps in itertools.product(RESIDUALS.items(), plan.steps):
            say(f"residual {residual}, {steps} steps")
            prior, state = sampling_prior(problem, form, steps), problem.state
            schedule = prior.model.schedule
            level = float(schedule.alphas_cumprod[schedule.grid(steps)[-1]])
            for iteration in range(plan.iterations):
                images = prior.render(state, iteration)
                grad_images = problem.objective(iteration, images, state).grad_images
                norm = float(prior.vjp(state, grad_images, iteration)["z"].norm())
                yield Gradient(
                    data=name,
                    residual=residual,
                    steps=steps,
                    iteration=iteration,
                    norm=norm,
                    gain=norm / float(grad_images.norm()),
                    signal=math.sqrt(level),
                )


def sampling_prior(problem: Problem, residual: Residual, steps: int) -> DiffusionPrior:
    """Return the prior of the run with another residual and number of steps."""
    prior = problem.prior
    assert isinstance(prior, DiffusionPrior)
    return replace(prior, residual=residual, sampler=replace(prior.sampler, steps=steps))


def memory(problem: Problem, plan: Plan) -> str:
    """Return in words the peak memory of one gradient at each number of steps."""
    peaks = []
    for steps in plan.steps:
        prior = sampling_prior(problem, Residual(), steps)
        images = prior.render(problem.state, 0)
        peak = peak_tensor_bytes(lambda p=prior, x=images: p.vjp(problem.state, x, 0))
        peaks.append(f"{steps} steps {byte_count(peak)}")
    latents = byte_count(problem.state["z"][: prior.chunk].nbytes)
    return f"memory of a gradient: {', '.join(peaks)}; the latents of a chunk are {latents}"


def table(gradients: Sequence[Gradient]) -> str:
    """Return means and standard deviations over the iterations as Markdown."""
    counts = sorted({one.steps for one in gradients})
    heads = ["data", "residual", "quantity", *(f"{count} steps" for count in counts)]
    rows = [heads, ["---", "---", "---", *["---:"] * len(counts)]]
    for name, residual in dict.fromkeys((one.data, one.residual) for one in gradients):
        chosen = [one for one in gradients if (one.data, one.residual) == (name, residual)]
        for quantity in quantities_of(residual):
            cells = [_mean_and_deviation(_values(chosen, quantity, steps)) for steps in counts]
            rows.append([name, residual, QUANTITIES[quantity], *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def quantities_of(residual: str) -> list[str]:
    """Return the names of the quantities that a residual has."""
    return [name for name in QUANTITIES if name != "norm_at_start" or residual in THROUGH_START]


def _values(gradients: Sequence[Gradient], quantity: str, steps: int) -> list[float]:
    return [getattr(one, quantity) for one in gradients if one.steps == steps]


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean(values):.3g}{deviation}"


def write_picture(gradients: Sequence[Gradient], path: Path) -> None:
    """Draw each quantity over the steps: means, and bars of one standard deviation."""
    import matplotlib  # of the extra ``report``; measuring needs it not
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(one.data for one in gradients))
    figure = Figure(figsize=(12, 3.4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), len(QUANTITIES), squeeze=False)
    for name, row in zip(names, panels, strict=True):
        for (quantity, title), axes in zip(QUANTITIES.items(), row, strict=True):
            _draw([one for one in gradients if one.data == name], quantity, axes)
            axes.set_title(f"{name}: {title}", fontsize=9)
        row[0].legend(title="residual", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the same numbers give the same file
    with matplotlib.rc_context({"svg.hashsalt": "ld3m", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def _draw(gradients: Sequence[Gradient], quantity: str, axes: Any) -> None:
    from matplotlib.ticker import LogLocator

    counts = sorted({one.steps for one in gradients})
    for number, residual in enumerate(RESIDUALS):
        if quantity not in quantities_of(residual):
            continue
        chosen = [one for one in gradients if one.residual == residual]
        values = [_values(chosen, quantity, steps) for steps in counts]
        deviations = [stdev(x) if len(x) > 1 else 0.0 for x in values]
        style = {"marker": "os^"[number], "color": f"C{number}", "label": residual}
        axes.errorbar(counts, list(map(mean, values)), deviations, **style)
    axes.set(xlabel="steps of the sampler", xscale="log", yscale="log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")


def write(path: Path, gradients: Sequence[Gradient]) -> None:
    """Write a line for every gradient, numbers with six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, [field.name for field in fields(Gradient)], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(
            {key: f"{x:.6g}" if isinstance(x, float) else x for key, x in asdict(one).items()}
            for one in gradients
        )


def read(path: Path) -> list[Gradient]:
    """Return the gradients of a file that ``write`` wrote."""
    types = {field.name: field.type for field in fields(Gradient)}
    with path.open(newline="") as file:
        return [
            Gradient(**{name: types[name](value) for name, value in line.items()})
            for line in csv.DictReader(file)
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Gradient norms of LD3M through the steps of a sampler."
    )
    parser.add_argument("prior", type=Path, nargs="?", help="folder of a diffusion model")
    parser.add_argument("--data", default="mnist5k", help="name of a data set, or a folder")
    parser.add_argument("--size", type=int, default=None, help="side of its images")
    parser.add_argument("--steps", nargs="+", type=int, default=list(Plan.steps))
    parser.add_argument(
        "--iterations", type=int, default=Plan.iterations, help="draws of noise and network"
    )
    parser.add_argument("--ipc", type=int, default=Plan.ipc, help="images per class")
    parser.add_argument("--objective", default="dm", choices=["dm", "dc", "dsa"])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--width", type=int, default=32, help="of the objective's networks")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--picture", type=Path, default=None, metavar="SVG")
    parser.add_argument(
        "--table",
        nargs="+",
        type=Path,
        default=[],
        metavar="CSV",
        help="measure nothing, show these files",
    )
    chosen = parser.parse_args(arguments)
    notes = [f"commit {commit()}"]
    gradients = [one for path in chosen.table for one in read(path)]
    if not chosen.table:
        if chosen.prior is None:
            parser.error("expected the folder of a diffusion model, got none; name it first")
        data = kdistill.load_data(chosen.data, size=chosen.size, quiet=True)
        options = {name: getattr(chosen, name) for name in ("objective", "guidance", "width")}
        plan = Plan(
            prior=chosen.prior,
            steps=chosen.steps,
            iterations=chosen.iterations,
            ipc=chosen.ipc,
            options=options,
        )
        problem = problem_of(data, plan)
        gradients = list(measured(problem, data.name, plan))
        write(chosen.out / f"{data.name}.csv", gradients)
        notes.append(memory(problem, plan))
    if chosen.picture is not None:
        write_picture(gradients, chosen.picture)
    console().print(
        "\n".join([table(gradients), "", *notes]), soft_wrap=True, markup=False, highlight=False
    )


if __name__ == "__main__":
    main()
