"""The networks through which generated images are compared with real ones, in training meanwhile.

One network is drawn per epoch, new and untrained, and trained on some real mini-batches in every
iteration.  Its parameters are a part of the run's state, so a resumed run goes on with them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdistill.augment import Augment
from kdistill.engine.parameter_steps import sgd_
from kdistill.engine.students import Student, build_student
from kdistill.keys import generator, make_key, permutation, uniforms
from kdistill.priors import State

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of the networks' training, as published
MOST_STEPS = 500  # after which a network counts as experienced
# widths of the first block where ConvNet has 128; a LeNet is narrow as it is
FULL_WIDTH = {"convnet": 128, "alexnet": 128, "mlp": 128, "vgg11": 64, "resnet18": 64, "vit": 192}
WITH_NORM = ("convnet", "alexnet", "vgg11", "resnet18")
HEAD = 32  # the width of a vision transformer is a multiple of this


def narrowed(name: str, width: int) -> int | None:
    """Return the width of a network in a pool whose ConvNet has ``width``; None is its own."""
    if name not in FULL_WIDTH:
        return None
    scaled = max(1, round(FULL_WIDTH[name] * width / FULL_WIDTH["convnet"]))
    return max(HEAD, scaled // HEAD * HEAD) if name == "vit" else scaled


def pool_members(
    names: tuple[str, ...],
    *,
    channels: int,
    size: int,
    classes: int,
    width: int,
    depth: int | None,
    norm: str,
) -> tuple[Student, ...]:
    """Return the networks of a pool.

    Args:
        names: Names of students.
        channels: Channels of the images.
        size: Side of the images.
        classes: Number of classes.
        width: Width of a ConvNet; others scale with it.
        depth: Depth of a ConvNet.
        norm: Normalisation of those that have one.
    """
    return tuple(
        build_student(
            name,
            channels=channels,
            size=size,
            classes=classes,
            width=narrowed(name, width),
            depth=depth if name == "convnet" else None,
            norm=norm if name in WITH_NORM else "instance",
        )
        for name in names
    )


@dataclass(frozen=True, eq=False)
class NetworkPool:
    """The networks, and how they are trained.

    Attributes:
        members: The networks.
        images: Real images, normalised, ``[N, C, S, S]``.
        labels: Their classes, int64 ``[N]``.
        epoch: Iterations that one network serves.
        steps: Steps of training in each.
        batch_size: Real images of a step.
        lr: Learning rate.
        augment: Augmentation of the real images, or None.
        seed: Seed of the run.
    """

    members: tuple[Student, ...]
    images: Tensor
    labels: Tensor
    epoch: int
    steps: int
    batch_size: int
    lr: float
    augment: Augment | None
    seed: int

    def init(self) -> State:
        """Return room for the parameters and the momentum of the largest network."""
        length = max(member.num_params for member in self.members)
        names = ("pool.parameters", "pool.momentum")
        return {name: self.images.new_zeros(length) for name in names}

    def member(self, iteration: int) -> Student:
        """Return the network that serves in an iteration."""
        place = uniforms(make_key(self.seed, "pool member", iteration // self.epoch), 1)
        return self.members[int(place[0] * len(self.members))]

    def experienced(self) -> tuple[Student, Tensor]:
        """Return the first network and its parameters as it is at the end of its service.

        After at most 500 steps of training.
        """
        state = self.init()
        student, theta, state = self.trained(state, 0)
        for iteration in range(1, min(self.epoch, -(-MOST_STEPS // self.steps))):
            student, theta, state = self.trained(state, iteration)
        return student, theta

    @torch.no_grad()
    def trained(self, state: State, iteration: int) -> tuple[Student, Tensor, State]:
        """Return the network of an iteration, its parameters ``[P]``, and what the state becomes.

        Args:
            state: Holds parameters and momentum; not changed.
            iteration: 0 is the first in which the pool takes part.
        """
        student = self.member(iteration)
        count = student.num_params
        parameters, momentum = (state[f"pool.{x}"].clone() for x in ("parameters", "momentum"))
        theta, velocity = parameters[:count], momentum[:count]
        if iteration % self.epoch == 0:
            key = make_key(self.seed, "pool network", iteration // self.epoch)
            theta.copy_(student.init(generator(key)))
            velocity.zero_()
        order = permutation(make_key(self.seed, "pool rows", iteration), len(self.labels))
        for step in range(self.steps):
            places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
            rows = order[places % len(order)].to(self.labels.device)
            images = self.images[rows]
            if self.augment is not None:
                images = self.augment(images, iteration * self.steps + step)
            _, grad = student.loss_and_grad(theta, images, self.labels[rows])
            sgd_(theta, velocity, grad, lr=self.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        return student, theta, {"pool.parameters": parameters, "pool.momentum": momentum}
