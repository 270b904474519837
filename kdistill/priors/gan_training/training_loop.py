"""The loop of a training: iterate, look at the numbers, checkpoint, stop in time.

Every random draw is keyed by the iteration, so the state is all that a resumed training needs.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdistill._native import peak_bytes, return_freed_memory
from kdistill.artifacts.checkpoint import first_difference, load_checkpoint, save_checkpoint
from kdistill.errors import ConfigError, DataError, KDistillError, NonFiniteError
from kdistill.optim import State
from kdistill.priors.gan_training.adversarial_training import GanTraining, Metrics

_log = logging.getLogger("kdistill")
CHECKPOINT = "checkpoint.safetensors"
TELL_EVERY = 10  # iterations


@dataclass(frozen=True)
class PriorProgress:
    """What a callback sees every ten iterations.

    Attributes:
        iteration: Iterations done.
        iterations: In all.
        loss_discriminator: Of the last iteration; 1.39 (2 ln 2) is that of one which cannot tell
            real from generated.
        loss_generator: Of the last iteration.
        sign: Mean sign of the logits on real images, lately; near 1 the discriminator knows them by
            heart.
        augment_p: Probability of each family of augmentations.
        seconds: Since this process began the loop.
        rate: Iterations per second.
        eta_seconds: Until the end, or until the time is up.
        peak_bytes: Peak resident memory of the process.
    """

    iteration: int
    iterations: int
    loss_discriminator: float
    loss_generator: float
    sign: float
    augment_p: float
    seconds: float
    rate: float
    eta_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class PriorOutcome:
    """Where a training stopped.

    Attributes:
        state: The last state.
        iteration: Iterations done.
        finished: False if the time was up first.
    """

    state: State
    iteration: int
    finished: bool


def fit(
    game: GanTraining,
    folder: Path,
    *,
    identity: dict[str, Any],
    resume: bool = False,
    callbacks: Sequence[Callable[[PriorProgress], None]] = (),
    on_checkpoint: Callable[[State, int], None] = lambda state, iteration: None,
    max_minutes: float | None = None,
    checkpoint_minutes: float = 1.0,
) -> PriorOutcome:
    """Train both networks from the beginning, or from the checkpoint in ``folder``.

    Args:
        game: Networks, images and settings.
        folder: Of the checkpoint.
        identity: What must be equal for a checkpoint to fit.
        resume: Continue from the checkpoint; the result has the bits of an uninterrupted training.
        callbacks: Called with a ``PriorProgress`` every ten iterations.
        on_checkpoint: Called with the state beside every checkpoint but that of a failure.
        max_minutes: Stop after this time, with a checkpoint.
        checkpoint_minutes: Between two checkpoints; a killed training loses at most this much.

    Raises:
        NonFiniteError: A loss or a parameter stopped being finite; the state before that is saved.
        ConfigError: The checkpoint belongs to another training, or to a longer one.
        KeyboardInterrupt: After the state was saved.
    """
    loop = _Loop(game, folder, identity, tuple(callbacks), on_checkpoint)
    loop.state, loop.iteration = loop.load() if resume else (game.init(), 0)
    try:
        return loop.go(
            float("inf") if max_minutes is None else 60.0 * max_minutes, 60.0 * checkpoint_minutes
        )
    except KeyboardInterrupt as error:
        loop.save()
        error.args = (
            f"iteration {loop.iteration:,} is saved in {folder}; continue with resume=True",
        )
        raise
    except NonFiniteError as error:
        loop.save()
        saved = f"the state after iteration {loop.iteration}, the last good one, is saved in {folder / CHECKPOINT}"
        raise NonFiniteError(f"{error}; {saved}") from None
    except Exception:  # a callback, or a disk that is full: the state must not be lost with it
        with suppress(KDistillError):
            loop.save()
        raise


class _Loop:
    def __init__(
        self,
        game: GanTraining,
        folder: Path,
        identity: dict[str, Any],
        callbacks: tuple[Callable[[PriorProgress], None], ...],
        on_checkpoint: Callable[[State, int], None],
    ):
        self.game, self.folder, self.identity = game, folder, identity
        self.callbacks, self.on_checkpoint = callbacks, on_checkpoint
        self.state: State = {}
        self.iteration = 0

    def go(self, max_seconds: float, checkpoint_seconds: float) -> PriorOutcome:
        began = saved = time.monotonic()
        first, last = self.iteration, self.game.spec.iterations
        while self.iteration < last:
            self.state, losses = self.game.iterate(self.state, self.iteration)
            self.iteration += 1
            now = time.monotonic()
            if self.iteration % TELL_EVERY == 0 or self.iteration == last:
                self.tell(losses, now - began, self.iteration - first, max_seconds)
                return_freed_memory()
            if now - saved >= checkpoint_seconds:
                self.save()
                self.on_checkpoint(self.state, self.iteration)
                saved = now
            if now - began >= max_seconds:
                break
        self.save()
        self.on_checkpoint(self.state, self.iteration)
        return PriorOutcome(self.state, self.iteration, self.iteration == last)

    def tell(self, losses: Metrics, seconds: float, done: int, max_seconds: float) -> None:
        state, last = self.state, self.game.spec.iterations
        rate = done / max(seconds, 1e-9)
        eta = min((last - self.iteration) / max(rate, 1e-9), max(max_seconds - seconds, 0.0))
        values = [*losses.values(), state["sign"], state["augment_p"]]
        told = map(float, (losses["loss_discriminator"], losses["loss_generator"], *values[-2:]))
        progress = PriorProgress(self.iteration, last, *told, seconds, rate, eta, peak_bytes())
        for callback in self.callbacks:
            callback(progress)

    def save(self) -> None:
        save_checkpoint(
            self.folder / CHECKPOINT,
            self.state,
            {"iteration": self.iteration, "identity": self.identity},
        )

    def load(self) -> tuple[State, int]:
        path = self.folder / CHECKPOINT
        start = self.game.init()
        if not path.exists() and not path.with_name(path.name + ".prev").exists():
            _log.warning(
                "resume: no checkpoint in %s yet; starting from the beginning", self.folder
            )
            return start, 0
        tensors, meta = load_checkpoint(path)
        if (
            not isinstance(meta, dict)
            or type(meta.get("iteration")) is not int
            or "identity" not in meta
            or set(tensors) != set(start)
        ):
            raise DataError(
                "resume: expected the checkpoint of a generator's training, got another in "
                f"{path}; start afresh"
            )
        if difference := first_difference(self.identity, meta["identity"]):
            key, ours, theirs = difference
            raise ConfigError(
                f"resume: expected the training that the checkpoint belongs to, got another {key} "
                f"({ours!r}, was {theirs!r}); "
                "use the same settings or another folder"
            )
        if meta["iteration"] > self.game.spec.iterations:
            raise ConfigError(
                f"resume: expected a checkpoint of at most {self.game.spec.iterations} iterations, "
                "got one of "
                f"{meta['iteration']}; raise iterations, or use another folder"
            )
        if wrong := next(
            (
                name
                for name, x in start.items()
                if (tensors[name].shape, tensors[name].dtype) != (x.shape, x.dtype)
            ),
            None,
        ):
            raise DataError(
                f"resume: expected '{wrong}' of this version's networks, got another length in "
                f"{path}; start afresh"
            )
        return {name: tensors[name].to(x.device) for name, x in start.items()}, meta["iteration"]
