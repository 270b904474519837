"""Class-conditional generation: the images are drawn from a generator, perhaps chosen from many.

After Li et al., "Data-Efficient Generation for Dataset Distillation", 2024, of which the abstract
alone was available: a class-conditional diffusion model is trained on the data
(``kdistill prior train --kind diffusion``), and its images are the set.  Neither a selection nor
soft labels are known to belong to the paper, so both are off unless asked for.

One iteration draws a round of images, as many of every class; the last one chooses and labels.
"""

import logging
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.engine import Student, train
from kdistill.errors import ConfigError
from kdistill.keys import make_key
from kdistill.methods.base import Method, Problem, Step
from kdistill.methods.init import balanced_labels
from kdistill.methods.prior_options import PriorConfig
from kdistill.optim import State, by_name
from kdistill.options import COUNT, NOT_NEGATIVE, POSITIVE, Unset
from kdistill.priors import ImageGenerator
from kdistill.priors.diffusion import DiffusionModel
from kdistill.priors.image_generators import identity, load_image_generator
from kdistill.selection import select

_log = logging.getLogger("kdistill")
ROUND = 100  # images of an iteration, unless there are more classes
POOL = 4  # candidates for an image where a selection is made and nothing else is said
TEACHER_BATCH, TEACHER_LR = 256, 0.01


@dataclass(frozen=True, kw_only=True)
class DiffusionGenConfig(PriorConfig):  # many fields, since each is an option that users set
    """Options of ``diffusion_gen``.

    Attributes:
        iterations: Not used: the number of images decides.
        momentum: Not used: nothing is optimised.
        schedule: Not used: nothing is optimised.
        init: Not used: the images begin as draws.
        steps: Steps of a diffusion model's sampler.
        solver: Solver of a diffusion model's sampler.
        guidance: Scale of a diffusion model's guidance.
        candidates: Images drawn of every class; the set is chosen from them.
        minutes: Time for drawing: no candidate is begun beyond it, but the images of the set are.
        selection: How the set is chosen from the candidates: ``"none"`` (the first ones),
            ``"confident"`` (those that a teacher gets right, by its confidence, and then the
            others), ``"herding"``, ``"k_means"`` or ``"k_center"`` (by their pixels).
        labels: ``"hard"``, or ``"teacher"``: the logits of a teacher.
        temperature: What the teacher's logits are divided by.
        teacher_epochs: Epochs of the teacher on the real training images; its network is
            ``student``.
    """

    iterations: int = 0
    steps: Annotated[int | None, COUNT, Unset("those of the model")] = None
    solver: Annotated[Literal["ddim", "dpm++"] | None, Unset("that of the model")] = None
    guidance: Annotated[float | None, NOT_NEGATIVE, Unset("what prior train found best")] = None
    candidates: Annotated[int | None, COUNT, Unset("as many as the set has, or four times")] = None
    minutes: Annotated[float | None, POSITIVE, Unset("no limit")] = None
    selection: Literal["none", "confident", "herding", "k_means", "k_center"] = "none"
    labels: Literal["hard", "teacher"] = "hard"
    temperature: Annotated[float, POSITIVE] = 1.0
    teacher_epochs: Annotated[int, COUNT] = 60

    def pool(self, ipc: int) -> int:
        """Return the images of a class that are drawn at most.

        Raises:
            ConfigError: They are fewer than the set has, or more than it has without a selection.
        """
        default = ipc if self.selection == "none" else POOL * ipc
        count = default if self.candidates is None else self.candidates
        if count < ipc:
            raise ConfigError(
                f"candidates: expected at least the {ipc} images per class of the set, got "
                f"{count}; raise it or leave it out"
            )
        if count > ipc and self.selection == "none":
            raise ConfigError(
                f"candidates: expected {ipc} without a selection, got {count}; name how the set is "
                "chosen, such as selection=confident"
            )
        return count

    def sampling(self, generator: ImageGenerator) -> ImageGenerator:
        """Return the generator with these steps, solver and guidance.

        Raises:
            ConfigError: They are named for a generator that has none.
        """
        named = {"steps": self.steps, "solver": self.solver, "guidance": self.guidance}
        changes = {name: value for name, value in named.items() if value is not None}
        if isinstance(generator, DiffusionModel):
            return generator.sampling(**changes)
        if changes:
            raise ConfigError(
                f"{next(iter(changes))}: expected a diffusion model, got a generator without a "
                "sampler; leave it out"
            )
        return generator


class GeneratedImages:
    """The prior of images that are drawn, not optimised."""

    def render(self, state: State, iteration: int) -> Tensor:
        """Return ``state["images"]``."""
        return state["images"]

    def vjp(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return no gradient: nothing is stepped."""
        return {}


@dataclass(frozen=True)
class Generation:
    """Rounds of images, and the choice among them.

    The state holds ``candidates [P, K, C, S, S]``, normalised, their number per class ``drawn []``,
    the ``seconds []`` that drawing took, the ``images [K*ipc, C, S, S]``, and with a teacher their
    ``label_logits [K*ipc, K]``.

    Attributes:
        config: Options.
        data: The data.
        ipc: Images per class of the set.
        pool: P, images of a class that are drawn at most.
        generator: The generator.
        seed: Seed of the run.
    """

    config: DiffusionGenConfig
    data: ImageDataset
    ipc: int
    pool: int
    generator: ImageGenerator
    seed: int

    @property
    def per_round(self) -> int:
        """Images of every class that an iteration draws."""
        return max(ROUND // self.data.num_classes, 1)

    @property
    def iterations(self) -> int:
        """Rounds, and the choice."""
        return -(-self.pool // self.per_round) + 1

    def start(self) -> State:
        """Return the state before the first round."""
        like, classes = self.data.train.images, self.data.num_classes
        state = {
            "candidates": like.new_zeros(self.pool, classes, *like.shape[1:]),
            "images": like.new_zeros(classes * self.ipc, *like.shape[1:]),
            "drawn": torch.tensor(0),
            "seconds": torch.zeros((), dtype=torch.float64),
        }
        if self.config.labels == "teacher":
            state["label_logits"] = like.new_zeros(classes * self.ipc, classes)
        return state

    def objective(self, iteration: int, images: Tensor, state: State) -> Step:
        """Draw a round, or choose; the loss is the share of the images that is missing."""
        is_last = iteration >= self.iterations - 1
        updates = self._chosen(state) if is_last else self._round(iteration, state)
        now = {**state, **updates}
        seconds, drawn = float(now["seconds"]), int(now["drawn"]) * self.data.num_classes
        return Step(
            loss=images.new_tensor(1.0 - int(now["drawn"]) / self.pool),
            grad_images=torch.zeros_like(images),
            updates=updates,
            metrics={"images_per_second": drawn / max(seconds, 1e-9)},
        )

    def _round(self, iteration: int, state: State) -> State:
        """Return the state's tensors after a round; without one where the time is up."""
        first = iteration * self.per_round
        last = min(first + self.per_round, self.pool)
        limit = self.config.minutes
        if limit is not None and first >= self.ipc and float(state["seconds"]) >= 60.0 * limit:
            return {}
        classes = self.data.num_classes
        labels = torch.arange(classes, device=state["candidates"].device).repeat(last - first)
        adapter = self.config.adapter(self.generator, self.data)
        began = time.perf_counter()
        key = make_key(self.seed, "generated", iteration)
        pixels = self.generator.sample(self._classes(labels), key)
        seconds = time.perf_counter() - began
        drawn = adapter(2.0 * pixels - 1.0).unflatten(0, (last - first, classes))
        candidates = state["candidates"].clone()
        candidates[first:last] = drawn.to(candidates)
        return {
            "candidates": candidates,
            "drawn": torch.tensor(last),
            "seconds": state["seconds"] + seconds,
            # what a run that is stopped early has: the first images
            "images": candidates[: self.ipc].transpose(0, 1).flatten(0, 1),
        }

    def _classes(self, labels: Tensor) -> Tensor:
        """Return the generator's classes of labels."""
        if self.config.classes is None:
            return labels
        return torch.tensor(self.config.classes, device=labels.device)[labels]

    def _chosen(self, state: State) -> State:
        """Return the images of the set, and the teacher's logits of them."""
        drawn, limit = max(int(state["drawn"]), self.ipc), self.config.minutes
        if limit is not None and float(state["seconds"]) > 60.0 * limit and drawn == self.ipc:
            _log.warning(
                "diffusion_gen: drawing the images of the set took %.1f minutes, more than the "
                "%g of minutes; lower ipc or steps",
                float(state["seconds"]) / 60.0,
                limit,
            )
        pool = state["candidates"][:drawn].transpose(0, 1).flatten(0, 1)  # class-major
        images = pool[self._rows(pool, drawn)]
        if self.config.labels == "hard":
            return {"images": images}
        student, theta = self._teacher
        logits = student.infer(theta, images) / self.config.temperature
        return {"images": images, "label_logits": logits}

    def _rows(self, pool: Tensor, drawn: int) -> Tensor:
        """Return the numbers of the chosen candidates, class-major."""
        labels = balanced_labels(self.data.num_classes, drawn).to(pool.device)
        how, key = self.config.selection, make_key(self.seed, "selection")
        if how == "none":
            rows = torch.arange(len(pool), device=pool.device)
            return rows.view(-1, drawn)[:, : self.ipc].flatten()
        if how != "confident":
            return select(how, self.data.transform.invert(pool).flatten(1), labels, self.ipc, key)
        student, theta = self._teacher
        probabilities = torch.cat([student.infer(theta, x) for x in pool.split(256)]).softmax(1)
        is_right = (probabilities.argmax(1) == labels).to(probabilities)
        confidence = is_right + probabilities.gather(1, labels[:, None]).squeeze(1)
        best = confidence.view(-1, drawn).argsort(dim=1, descending=True, stable=True)
        best = best[:, : self.ipc]
        return (best + drawn * torch.arange(len(best), device=pool.device)[:, None]).flatten()

    @cached_property
    def _teacher(self) -> tuple[Student, Tensor]:
        """The teacher: a network trained on the real training images, and its parameters."""
        data, config = self.data, self.config
        student = config.network(data)
        augment = config.augmentation(data, make_key(self.seed, "teacher augment"), siamese=False)
        theta, *_ = train(
            student,
            data.transform.apply(data.train.images),
            data.train.labels,
            epochs=config.teacher_epochs,
            lr=TEACHER_LR,
            key=make_key(self.seed, "teacher"),
            batch_size=TEACHER_BATCH,
            schedule="cosine",
            augment=augment if augment.families else None,
        )
        return student, theta


def build(
    config: DiffusionGenConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run: rounds of images, then the choice among them."""
    pool = config.pool(ipc)
    folder = config.folder(start, "kdistill prior train DATA --kind diffusion")
    generator = config.sampling(load_image_generator(folder, data.train.images.device))
    config.adapter(generator, data)  # refuses a generator that does not fit
    config.generator_labels(generator, data, ipc)
    run = Generation(config, data, ipc, pool, generator, seed)
    sampler = vars(generator.sampler) if isinstance(generator, DiffusionModel) else {}
    return Problem(
        prior=GeneratedImages(),
        state=run.start(),
        labels=balanced_labels(data.num_classes, ipc).to(data.train.images.device),
        objective=run.objective,
        optimizer=by_name({}),
        iterations=run.iterations,
        provenance={"prior": {**identity(generator), **sampler}},
        hint="train the generator again",
    )


METHOD = Method(
    name="diffusion_gen",
    title="images drawn from a class-conditional generator, a reconstruction from the abstract",
    summary="images drawn from a diffusion model",
    family="generation",
    paper="Li et al., Data-Efficient Generation for Dataset Distillation, ECCV 2024 workshops",
    config=DiffusionGenConfig,
    presets={"paper": {}, "fast": {"width": 32}},
    build=build,
    deviations=(
        "a reconstruction from the abstract: network, sampler and training are this project's",
        "selection and teacher labels are options; neither is known to belong to the paper",
    ),
    cost="a sample of the generator per image; a teacher's training where one is asked for",
    needs="a generator (kdistill prior train --kind diffusion)",
)
