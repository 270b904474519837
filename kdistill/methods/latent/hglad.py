"""H-GLaD: latents of a generator are optimised layer by layer, each from the best state before.

Paper: Zhong, Fang, Chen, Gu, Dai, Qiu and Xia, "Hierarchical Features Matter: A Deep Exploration of
    Progressive Parameterization Method for Dataset Distillation", CVPR 2025.

    for stage in W+, F_1, ..., F_L, pixels:
        minimise L(images) over the stage's latents, L of DM, DC, MTT, ...
        go on from the state with the smallest class-relevant feature distance

The distance (``kdistill.objectives.class_relevance``) compares class means of CAM-weighted features
of real and synthetic images under the same few networks; the result is the best state of the best
stage.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from kdistill.artifacts.checkpoint import decode_checkpoint, encode_checkpoint
from kdistill.cache import CacheFile, digest_of
from kdistill.data import ImageDataset
from kdistill.engine import train
from kdistill.engine.relevance import LAYERS
from kdistill.engine.students import Student
from kdistill.errors import ConfigError
from kdistill.keys import generator, make_key
from kdistill.methods.base import Method, Problem
from kdistill.methods.composition import EXPERTS, pixel_sgd
from kdistill.methods.latent.stylegan_base import PUBLISHED, StyleganConfig, on_latents
from kdistill.methods.stages import Stage, Stages, stage_ends
from kdistill.objectives.class_relevance import (
    ClassRelevantDistance,
    class_relevant_distance,
    restored_distance,
)
from kdistill.options import COUNT, NOT_NEGATIVE, POSITIVE, Unset, Words
from kdistill.priors import PIXELS, Depth, HierarchicalPrior, State
from kdistill.status import note

# larger statistics are not written: 5 networks of width 128 at 128 px have half a gigabyte
LARGEST_NBYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class HGladConfig(StyleganConfig):
    """Options of H-GLaD; the defaults take as many iterations as GLaD.

    Attributes:
        stage_iterations: Outer steps of every stage; overrides ``iterations``.
        stride: Every stride-th layer is a stage: F_1, F_(1 + stride), ...
        lr_images: Learning rate of the pixels, in the last stage.
        avg_w: Begin with averages of mapped draws; the images of a class share ``n_avg`` between
            them.
        check_every: Iterations between two measurements of the distance; there is one at the end of
            a stage too.
        nets: Networks of the distance: ``"trained"`` on the real images for ``net_epochs``, or
            ``"random"``.
        num_nets: Number of networks of the distance.
        net_epochs: Epochs of their training on the real images.
        net_lr: Learning rate of their training.
        layers: Feature maps of the distance: those of ``"all"`` blocks, or of the ``"last"`` alone.
        weighting: Weights of the feature maps in the distance: class activation maps (``"cam"``) or
            ``"none"``.
        choose: The result: the stage with the smallest ``"distance"``, or the ``"last"`` one.
    """

    stage_iterations: Annotated[int | None, COUNT, Unset("iterations are shared out equally")] = (
        None
    )
    stride: Annotated[int, COUNT] = 1
    lr_images: Annotated[float | None, NOT_NEGATIVE, Unset("the objective's own")] = None
    avg_w: bool = True
    check_every: Annotated[int, COUNT] = 10
    nets: Literal["trained", "random"] = "trained"
    num_nets: Annotated[int, COUNT] = 5
    net_epochs: Annotated[int, COUNT] = 3
    net_lr: Annotated[float, POSITIVE] = 0.01
    layers: Annotated[str, Words(tuple(LAYERS))] = "all"
    weighting: Literal["cam", "none"] = "cam"
    choose: Literal["distance", "last"] = "distance"

    def depths(self, num_layers: int) -> tuple[Depth, ...]:
        """Return W+ (None), the layers, and the pixels."""
        return None, *range(1, num_layers + 1, self.stride), PIXELS


def build(
    config: HGladConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run of the objective's method, with images of one stage after another."""
    network = config.generator(data, start)
    depths = config.depths(network.num_layers)
    if config.stage_iterations is not None:
        config = replace(config, iterations=config.stage_iterations * len(depths))
    if 0 < config.iterations < len(depths):
        raise ConfigError(
            f"iterations: expected at least one for each of the {len(depths)} stages, got "
            f"{config.iterations}; raise it, or take fewer layers with stride"
        )
    prior = HierarchicalPrior(
        generator=network,
        adapter=config.adapter(network, data),
        chunk=config.chunk,
        key=make_key(seed, "prior"),
        noise=config.noise,
    )
    labels, classes = config.generator_labels(network, data, ipc)
    state = prior.init(classes, average=config.n_avg if config.avg_w else 0)
    method, options = config.pixel_method()
    problem = method.build(options, data, ipc, seed, prior.render(state, 0))
    stages = Stages(
        stages=_stages(prior, depths, problem.iterations),
        prior=prior,
        check_every=config.check_every,
        distance=CachedDistance(config, data, labels, seed),
        choose=config.choose,
        to_pixels=data.transform.to("cpu").invert,
        labels=labels,
        hint="lower lr_f, lr_w or, in pixels, lr_images",
    )
    pixels = pixel_sgd(problem)  # a running mean gives way to the best state
    problem = replace(problem, optimizer=problem.optimizer.having(images=pixels))
    if config.lr_images is not None:
        pixels = replace(pixels, lr=config.lr_images, skip_move=None)
    problem = on_latents(problem, prior, state, network, ws=config.lr_w, f=config.lr_f)
    record = {**problem.provenance["prior"], "stages": [stage.name for stage in stages.stages]}
    return replace(
        problem,
        optimizer=problem.optimizer.having(images=pixels),
        stages=stages,
        provenance={**problem.provenance, "prior": record},
        hint="lower lr_f or lr_w, or lr_images if pixels were reached",
    )


def _stages(
    prior: HierarchicalPrior, depths: tuple[Depth, ...], iterations: int
) -> tuple[Stage, ...]:
    def stage(depth: Depth, end: int) -> Stage:
        def enter(state: State, iteration: int) -> State:
            return prior.descend(state, depth, iteration)

        if depth is None:
            return Stage("W", end, ("ws",), enter)
        if isinstance(depth, str):
            return Stage(depth, end, ("images",), enter)
        return Stage(f"F{depth}", end, ("ws", f"f.{depth}"), enter)

    return tuple(map(stage, depths, stage_ends(iterations, len(depths))))


@dataclass(frozen=True, eq=False)
class CachedDistance:
    """The distance of a run, made at the first call.

    Runs with equal data, networks and seed share it in ``$KDISTILL_CACHE``.

    Attributes:
        config: Options of the run.
        data: Its real images.
        labels: Labels of the synthetic images.
        seed: Seed of the run.
    """

    config: HGladConfig
    data: ImageDataset
    labels: Tensor
    seed: int

    def __call__(self, images: Tensor) -> float:
        """Return the distance of normalised images."""
        return float(self.distance(images, self.labels))

    @cached_property
    def distance(self) -> ClassRelevantDistance:
        """The distance to the run's real images, read from the cache or made."""
        config, student = self.config, self.config.network(self.data)
        real = self.data.transform.apply(self.data.train.images)

        def restored(content: bytes, path: Path) -> ClassRelevantDistance:
            tensors = decode_checkpoint(content, path)[0]
            return restored_distance(student, real, config.layers, tensors)

        file = self._file(student)
        if (distance := file.read(restored)) is not None:
            return distance
        note(
            f"distance: {config.num_nets} networks, {config.nets}, and class means of {len(real)} "
            "images"
        )
        distance = class_relevant_distance(
            student,
            self._thetas(student, real),
            real,
            self.data.train.labels,
            layers=config.layers,
            weighting=config.weighting,
        )
        tensors = distance.tensors()
        if sum(x.nbytes for x in tensors.values()) <= LARGEST_NBYTES:
            file.write(encode_checkpoint(tensors, {}))
        return distance

    def _thetas(self, student: Student, real: Tensor) -> Tensor:
        config, key = self.config, make_key(self.seed, "distance")
        if config.nets == "trained":
            return train(
                student,
                real,
                self.data.train.labels,
                epochs=config.net_epochs,
                lr=config.net_lr,
                key=key,
                nets=config.num_nets,
                schedule="constant",
            )
        nets = [
            student.init(generator(make_key(key, "init", net))) for net in range(config.num_nets)
        ]
        return torch.stack(nets).to(real)

    def _file(self, student: Student) -> CacheFile:
        config = self.config
        names = ["nets", "num_nets", "layers", "weighting"] + ["net_epochs", "net_lr"] * (
            config.nets == "trained"
        )
        network = f"{student!r}, width {config.width}, depth {config.depth}, norm {config.norm}"
        identity = {name: getattr(config, name) for name in names}
        identity |= {"training": self.data.training_digest(), "student": network, "seed": self.seed}
        name = f"{self.data.name}-{digest_of(identity)}.safetensors"
        return CacheFile("distances", name, "the distance is made again")


METHOD = Method(
    name="hglad",
    title="latents of a generator layer by layer down to pixels, the best of every stage by "
    "class-relevant feature distance",
    summary="latents of a generator, layer by layer down to pixels",
    family="latent",
    paper="Zhong et al., Hierarchical Features Matter: A Deep Exploration of Progressive "
    "Parameterization, CVPR 2025",
    config=HGladConfig,
    presets={
        "paper": {},
        # the published learning rates for ImageNet subsets at 128 px; GLaD's 1000 iterations shared
        # out
        "equal_time": {},
        "equal_time_dc": PUBLISHED["dc"],
        "equal_time_mtt": PUBLISHED["mtt"],
        # the iterations of every stage in the released code
        "repo": {"stage_iterations": 11},
        "repo_dc": {**PUBLISHED["dc"], "stage_iterations": 101},
        "repo_mtt": {**PUBLISHED["mtt"], "stage_iterations": 101},
        "fast": {
            "iterations": 400,
            "objective_preset": "fast",
            "lr_f": None,
            "lr_w": None,
            "width": 32,
            "check_every": 10,
            "num_nets": 3,
            "net_epochs": 2,
        },
    },
    build=build,
    deviations=(
        "the released code keeps references that later steps overwrite; here the best state of a "
        "stage is a copy, and restored",
        "the released code ends at the last layer; here pixels are the last stage",
        "the released distance has no class weights and other networks for either side; here CAM "
        "weights and the same networks",
        "W+ is a stage of its own; a running mean of the objective's method (ftd) gives way to "
        "the best state",
        "generated and real images are normalised alike; randomness is keyed",
    ),
    experts=EXPERTS,
    cost="that of glad; a few networks trained once per data and seed, and the distance measured "
    "every check_every iterations",
    needs="a generator; expert trajectories where the objective does",
)
