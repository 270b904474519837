"""H-GLaD's search: down through the layers of a generator, keeping the best state of every stage.

All that it remembers are tensors of the run's state whose names begin with ``search.``; a
checkpoint holds them, so a resumed run has the same bits.  What is kept are copies: no later step
can reach them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts.filmstrip import Frame, filmstrip
from kdistill.artifacts.tensors import encode
from kdistill.errors import NonFiniteError
from kdistill.methods.base import Findings, Step
from kdistill.priors import HierarchicalPrior, Stage, State

KEPT = "search."
BEST, WINNER = "search.best.", "search.winner."  # of the present stage, of all finished ones
Objective = Callable[[int, Tensor, State], Step]


def stage_name(stage: Stage) -> str:
    """Return what users read: W, F3, pixels."""
    return "W" if stage is None else stage if isinstance(stage, str) else f"F{stage}"


@dataclass(frozen=True, eq=False)
class ProgressiveSearch:
    """W+, then F_n from shallow to deep, then pixels; a stage goes on from the best state of the one before.

    Attributes:
        prior: The prior of the run.
        stages: In order.
        ends: The iteration at which each is over.
        check_every: Iterations of a stage between two looks at the distance; there is one at its
            end too.
        distance: Of images as networks see them; called at every look.
        choose: ``"distance"`` takes the result from the stage with the smallest, ``"last"`` from
            the last stage.
        to_pixels: From what networks see to pixel space.
        labels: Of the images.
    """

    prior: HierarchicalPrior
    stages: tuple[Stage, ...]
    ends: tuple[int, ...]
    check_every: int
    distance: Callable[[Tensor], float]
    choose: str
    to_pixels: Callable[[Tensor], Tensor]
    labels: Tensor

    def begin(self, images: Tensor) -> State:
        """Return what the search adds to the first state; ``images`` are those that the run begins with."""
        return {f"{KEPT}images": images[None].clone()}

    def hand_on(self, objective: Objective) -> Objective:
        """Return the objective that hands the search's tensors on."""

        def handing(iteration: int, images: Tensor, state: State) -> Step:
            step = objective(iteration, images, state)
            return replace(step, carried={**step.carried, **_kept(state)})

        return handing

    def after_step(self, iteration: int, state: State, velocity: State) -> tuple[State, State]:
        """Look at the distance where it is due; at the end of a stage go on from its best state, one stage down."""
        index = self.stages.index(self.prior.stage(state))
        is_over = iteration == self.ends[index]
        done = iteration - (self.ends[index - 1] if index else 0)
        if done % self.check_every and not is_over:
            return state, velocity
        state = self._looked(iteration, state, velocity)
        return self._finished(index, state) if is_over else (state, velocity)

    def result(self, state: State) -> State:
        """Return the best state: of this stage or of those before it, as ``choose`` says; the present one before any look."""
        here, before = _part(state, BEST), _part(state, WINNER)
        live = {name: x for name, x in state.items() if not name.startswith(KEPT)}
        if self.choose == "last" or not before:
            return here or live
        return here if here and _distance(state, BEST) < _distance(state, WINNER) else before

    def findings(self, state: State) -> Findings:
        """Return the distance along the way, the best of every stage, which was chosen, and pictures of them."""
        looks = state.get(f"{KEPT}looks")
        rows = self._rows(state)
        chosen = self.prior.stage(self.result(state))
        names = [stage_name(stage) for stage in self.stages]
        metrics: dict[str, Any] = {
            "stages": [
                {"stage": name, "until": end} for name, end in zip(names, self.ends, strict=True)
            ],
            "best": [{"stage": name, "iteration": n, "distance": d} for name, n, d, _ in rows],
            "chosen": stage_name(chosen),
            "choose": self.choose,
            "distance": [] if looks is None else [[int(n), d] for n, d in looks.tolist()],
        }
        start = state[f"{KEPT}images"][0]
        first = "" if looks is None else f"distance {looks[0, 1]:.4g}"
        frames = [Frame("start", first, self.to_pixels(start.cpu()))]
        frames += [
            Frame(name, f"distance {d:.4g}", x, name == stage_name(chosen))
            for name, _, d, x in rows
        ]
        tensors = {
            "images": torch.stack([frame.images for frame in frames]),
            "labels": self.labels.cpu(),
            "iterations": torch.tensor([0, *(n for _, n, _, _ in rows)]),
            "distances": torch.tensor(
                [math.nan if looks is None else float(looks[0, 1]), *(d for _, _, d, _ in rows)]
            ),
        }
        about = {"stages": ["start", *(name for name, *_ in rows)], "chosen": stage_name(chosen)}
        picture = filmstrip(
            frames, self.labels.cpu(), "from latents to pixels: the best state of every stage"
        )
        return Findings(
            metrics, {"filmstrip.png": picture, "path.safetensors": encode(tensors, about)}
        )

    def _looked(self, iteration: int, state: State, velocity: State) -> State:
        """Return the state with the distance of its images, and with a copy of it if none of this stage was better."""
        images = self.prior.render(state, iteration)
        found = [(iteration, self.distance(images))]
        if f"{KEPT}looks" not in state:  # where the run began
            found.insert(0, (0, self.distance(state[f"{KEPT}images"][0])))
        value = found[-1][1]
        if not math.isfinite(value):
            latents = (
                name
                for name in self.prior.names(state)
                if not bool(torch.isfinite(state[name]).all())
            )
            what = next(latents, "distance of the images")
            raise NonFiniteError(
                f"distill: expected a finite {what} at iteration {iteration}, got a distance of "
                f"{value}; lower lr_f, lr_w or, in "
                f"pixels, lr_images (now at stage {stage_name(self.prior.stage(state))})"
            )
        state = dict(state)
        row = images.new_tensor(found, dtype=torch.float64)
        state[f"{KEPT}looks"] = torch.cat([state[f"{KEPT}looks"], row]) if len(found) == 1 else row
        if f"{KEPT}best_look" not in state or value < _distance(state, BEST):
            ours = self.prior.names(state)
            names = [
                *ours,
                *(name for name in velocity if name not in ours and not name.startswith(KEPT)),
            ]
            state |= {BEST + name: state[name].clone() for name in names}
            state[f"{KEPT}best_look"] = row[-1].clone()
        return state

    def _finished(self, index: int, state: State) -> tuple[State, State]:
        """Return the state and zero velocities for the next stage, from the best of this one; after the last, that best state."""
        best, look = _part(state, BEST), state[f"{KEPT}best_look"]
        at = int(look[0])
        kept = {
            name: x
            for name, x in _kept(state).items()
            if not name.startswith(BEST) and name != f"{KEPT}best_look"
        }
        kept[f"{KEPT}images"] = torch.cat(
            [kept[f"{KEPT}images"], self.prior.render(best, at)[None]]
        )
        rows = [kept[f"{KEPT}bests"]] if f"{KEPT}bests" in kept else []
        kept[f"{KEPT}bests"] = torch.cat([*rows, look[None]])
        if not _part(state, WINNER) or float(look[1]) < _distance(state, WINNER):
            kept = {name: x for name, x in kept.items() if not name.startswith(WINNER)}
            kept |= {WINNER + name: x for name, x in best.items()} | {f"{KEPT}winner_look": look}
        ours = self.prior.names(state)
        others = {
            name: best.get(name, x)
            for name, x in state.items()
            if name not in ours and not name.startswith(KEPT)
        }
        own = {name: best[name] for name in ours}
        if index + 1 < len(self.stages):
            own = self.prior.descend(own, self.stages[index + 1], at)
        stepped = [*own, *(name for name in best if name not in ours)]
        state = {**own, **others, **kept}
        return state, {name: torch.zeros_like(state[name]) for name in stepped}

    def _rows(self, state: State) -> list[tuple[str, int, float, Tensor]]:
        """Return name, iteration, distance and images (pixel space) of the best of every stage, also of one that is not over."""
        bests = state[f"{KEPT}bests"].tolist() if f"{KEPT}bests" in state else []
        pictures = list(state[f"{KEPT}images"][1:])
        if best := _part(state, BEST):
            bests.append(state[f"{KEPT}best_look"].tolist())
            pictures.append(self.prior.render(best, int(bests[-1][0])))
        names = [stage_name(stage) for stage in self.stages]
        rows = zip(names, bests, pictures, strict=False)  # stages that were not reached have none
        return [(name, int(n), d, self.to_pixels(x.cpu())) for name, (n, d), x in rows]


def stage_ends(iterations: int, stages: int) -> tuple[int, ...]:
    """Return the iteration at which each stage is over: equal shares of the whole."""
    return tuple((index + 1) * iterations // stages for index in range(stages))


def _kept(state: State) -> State:
    return {name: x for name, x in state.items() if name.startswith(KEPT)}


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def _distance(state: State, prefix: str) -> float:
    return float(state[f"{prefix.removesuffix('.')}_look"][1])
