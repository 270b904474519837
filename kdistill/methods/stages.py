"""Progressive search: stages that the loop walks, each from the best state of the one before.

The best states are copies: no later step can reach them.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts.image_grids import Frame, filmstrip
from kdistill.artifacts.tensors import encode
from kdistill.errors import NonFiniteError
from kdistill.priors import Prior, State

Measurement = tuple[int, float]  # iteration, distance of its images


@dataclass(frozen=True)
class Stage:
    """One stage of a search.

    Attributes:
        name: What users read, such as ``"F3"``.
        end: Iteration at which it is over.
        learns: The tensors of the prior that it optimises.
        enter: ``(state, iteration) -> state``: the tensors of this stage in the place of those of
            the one before.
    """

    name: str
    end: int
    learns: tuple[str, ...]
    enter: Callable[[State, int], State]


@dataclass(frozen=True)
class Candidate:
    """A state that was the best of its stage.

    Attributes:
        stage: Number of the stage.
        iteration: Iterations before it.
        distance: Distance of its images to the real ones.
        state: Its tensors, copied.
    """

    stage: int
    iteration: int
    distance: float
    state: State


@dataclass(frozen=True)
class StageMemory:
    """What a search remembers.

    Attributes:
        images: The first images, and those of the best state of every finished stage.
        distances: Measurements along the way, from iteration 0 on.
        finished: Measurement of the best state of every finished stage.
        best: The best state of the present stage.
        winner: The best state of all finished stages.
    """

    images: tuple[Tensor, ...]
    distances: tuple[Measurement, ...] = ()
    finished: tuple[Measurement, ...] = ()
    best: Candidate | None = None
    winner: Candidate | None = None

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and numbers for a checkpoint."""
        tensors = {f"images.{i}": x for i, x in enumerate(self.images)}
        numbers: dict[str, Any] = {"distances": self.distances, "finished": self.finished}
        for role, candidate in (("best", self.best), ("winner", self.winner)):
            if candidate is not None:
                tensors |= {f"{role}.{name}": x for name, x in candidate.state.items()}
                numbers[role] = (candidate.stage, candidate.iteration, candidate.distance)
        return tensors, numbers

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> "StageMemory":
        """Return the memory that ``saved`` gave.

        Raises:
            LookupError, TypeError, ValueError: Something is missing, or of another kind.
        """

        def candidate(role: str) -> Candidate | None:
            if role not in numbers:
                return None
            stage, iteration, distance = numbers[role]
            parts = {name.partition(".")[::2]: x for name, x in tensors.items()}
            state = {name: x for (kind, name), x in parts.items() if kind == role}
            return Candidate(int(stage), int(iteration), float(distance), state)

        def measurements(name: str) -> tuple[Measurement, ...]:
            return tuple((int(n), float(distance)) for n, distance in numbers[name])

        finished = measurements("finished")
        return cls(
            images=tuple(tensors[f"images.{i}"] for i in range(1 + len(finished))),
            distances=measurements("distances"),
            finished=finished,
            best=candidate("best"),
            winner=candidate("winner"),
        )


@dataclass(frozen=True)
class Findings:
    """What a search leaves beside the images.

    Attributes:
        metrics: Goes into ``metrics.json`` under ``"search"``.
        files: Other files of the artefact by name.
    """

    metrics: Mapping[str, Any]
    files: Mapping[str, bytes]


@dataclass(frozen=True, eq=False)
class Stages:
    """A sequence of stages, and how the best state is known.

    Attributes:
        stages: In order; the last one ends with the run.
        prior: Prior of the run.
        check_every: Iterations of a stage between two measurements of the distance; there is one
            at its end too.
        distance: Distance of normalised images to the real ones.
        choose: ``"distance"`` takes the result from the stage with the smallest, ``"last"`` from
            the last stage.
        to_pixels: From normalised images to pixel space.
        labels: Labels of the images.
        hint: What to change when a distance is not finite, for the error message.
    """

    stages: tuple[Stage, ...]
    prior: Prior
    check_every: int
    distance: Callable[[Tensor], float]
    choose: str
    to_pixels: Callable[[Tensor], Tensor]
    labels: Tensor
    hint: str

    def begin(self, state: State) -> StageMemory:
        """Return what is remembered before the first step."""
        return StageMemory((self.prior.render(state, 0).clone(),))

    def walk(
        self, iteration: int, state: State, memory: StageMemory, handed_on: Collection[str]
    ) -> tuple[State, StageMemory]:
        """Measure the distance where it is due; at the end of a stage enter the next one.

        The next stage goes on from the best state; tensors that ``handed_on`` names
        (``Step.updates``) are no part of it.
        """
        index = len(memory.finished)
        ends = [0, *(stage.end for stage in self.stages)]
        is_over = iteration == ends[index + 1]
        if (iteration - ends[index]) % self.check_every and not is_over:
            return state, memory
        memory = self._measured(iteration, state, memory, handed_on)
        return self._finished(state, memory) if is_over else (state, memory)

    def fits(self, state: State, memory: StageMemory) -> bool:
        """Say whether a state and a memory, read from a checkpoint, can be those of this search."""
        count = len(self.stages)
        candidates = [x for x in (memory.best, memory.winner) if x is not None]
        if len(memory.finished) > count or any(not 0 <= x.stage < count for x in candidates):
            return False
        return set(self.stages[min(len(memory.finished), count - 1)].learns) <= set(state)

    def result(self, state: State, memory: StageMemory) -> State:
        """Return the best state of all stages or of the last; ``state`` before a measurement."""
        candidate = self._chosen(memory)
        return state if candidate is None else candidate.state

    def _chosen(self, memory: StageMemory) -> Candidate | None:
        best, winner = memory.best, memory.winner
        if self.choose == "last" or winner is None:
            return best
        return best if best is not None and best.distance < winner.distance else winner

    def findings(self, memory: StageMemory) -> Findings:
        """Return the distances along the way, the best of every stage, and pictures of them."""
        rows = self._rows(memory)
        candidate = self._chosen(memory)
        present = min(len(memory.finished), len(self.stages) - 1)
        chosen = self.stages[present if candidate is None else candidate.stage].name
        metrics: dict[str, Any] = {
            "stages": [{"stage": stage.name, "until": stage.end} for stage in self.stages],
            "best": [{"stage": name, "iteration": n, "distance": d} for name, n, d, _ in rows],
            "chosen": chosen,
            "choose": self.choose,
            "distance": [list(measurement) for measurement in memory.distances],
        }
        first = memory.distances[0][1] if memory.distances else math.nan
        caption = f"distance {first:.4g}" if memory.distances else ""
        frames = [Frame("start", caption, self.to_pixels(memory.images[0].cpu()))]
        frames += [Frame(name, f"distance {d:.4g}", x, name == chosen) for name, _, d, x in rows]
        tensors = {
            "images": torch.stack([frame.images for frame in frames]),
            "labels": self.labels.cpu(),
            "iterations": torch.tensor([0, *(n for _, n, _, _ in rows)]),
            "distances": torch.tensor([first, *(d for _, _, d, _ in rows)]),
        }
        names = {"stages": ["start", *(name for name, *_ in rows)], "chosen": chosen}
        picture = filmstrip(
            frames, self.labels.cpu(), "from latents to pixels: the best state of every stage"
        )
        return Findings(
            metrics, {"filmstrip.png": picture, "path.safetensors": encode(tensors, names)}
        )

    def _measured(
        self, iteration: int, state: State, memory: StageMemory, handed_on: Collection[str]
    ) -> StageMemory:
        """Return the memory with the distance of the images, and the state if it is the best."""
        index, distance = len(memory.finished), self.distance(self.prior.render(state, iteration))
        earlier = memory.distances or ((0, self.distance(memory.images[0])),)
        if not math.isfinite(distance):
            tensors = (name for name, x in state.items() if not bool(torch.isfinite(x).all()))
            raise NonFiniteError(
                f"distill: expected a finite {next(tensors, 'distance of the images')} at "
                f"iteration {iteration}, got a distance of {distance}; {self.hint} (now at stage "
                f"{self.stages[index].name})"
            )
        memory = replace(memory, distances=(*earlier, (iteration, distance)))
        if memory.best is not None and not distance < memory.best.distance:
            return memory
        copies = {name: x.clone() for name, x in state.items() if name not in handed_on}
        return replace(memory, best=Candidate(index, iteration, distance, copies))

    def _finished(self, state: State, memory: StageMemory) -> tuple[State, StageMemory]:
        """Return the first state of the next stage; after the last stage, its best state."""
        best, winner = memory.best, memory.winner
        assert best is not None
        state = {**state, **best.state}
        images = self.prior.render(state, best.iteration)
        if best.stage + 1 < len(self.stages):
            state = self.stages[best.stage + 1].enter(state, best.iteration)
        return state, replace(
            memory,
            images=(*memory.images, images),
            finished=(*memory.finished, (best.iteration, best.distance)),
            best=None,
            winner=best if winner is None or best.distance < winner.distance else winner,
        )

    def _rows(self, memory: StageMemory) -> list[tuple[str, int, float, Tensor]]:
        """Return name, iteration, distance and images (pixel space) of the best of every stage."""
        measurements, images = [*memory.finished], [*memory.images[1:]]
        if (best := memory.best) is not None:
            measurements.append((best.iteration, best.distance))
            images.append(self.prior.render(best.state, best.iteration))
        rows = zip(self.stages, measurements, images, strict=False)  # later stages have none
        return [(stage.name, n, d, self.to_pixels(x.cpu())) for stage, (n, d), x in rows]


def stage_ends(iterations: int, stages: int) -> tuple[int, ...]:
    """Return the iteration at which each stage is over: equal shares of the whole."""
    return tuple((index + 1) * iterations // stages for index in range(stages))
