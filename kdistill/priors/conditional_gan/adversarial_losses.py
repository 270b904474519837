"""Losses of the conditional Wasserstein GAN with an auxiliary classifier and a gradient penalty.

    critic     mean s(fake) - mean s(x) + CE(c(fake), y) + CE(c(x), y)
               + penalty * mean (|d s(x_hat)/d x_hat| - 1)^2
    generator  -mean s(fake) + CE(c(fake), y)

s is the source head and c the class head of the critic; x_hat lies between a real and a generated
image, at a place drawn for each pair.

Papers: Gulrajani et al., "Improved Training of Wasserstein GANs", 2017; Odena et al., "Conditional
    Image Synthesis With Auxiliary Classifier GANs", 2017; put together in the code of Wang et al.,
    "DiM: Distilling Dataset into Generative Model", 2023.

Symbols: N real and as many generated images, -1 to 1, pairwise of one class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.keys import generator as keyed
from kdistill.optim import Adam, State
from kdistill.priors.conditional_gan.critic import Critic

TINY = 1e-12  # under the root of a gradient's squared norm, whose slope at 0 is infinite


def gradient_penalty(
    critic: Critic, tensors: Mapping[str, Tensor], real: Tensor, fake: Tensor, key: int
) -> Tensor:
    """Return ``mean (|d s(x_hat)/d x_hat| - 1)^2``; differentiable in the tensors.

    Args:
        critic: The critic.
        tensors: Its tensors.
        real: Real images ``[N, C, S, S]``.
        fake: Generated images ``[N, C, S, S]``.
        key: Key of the places between them.
    """
    place = torch.rand(len(real), 1, 1, 1, generator=keyed(key)).to(real)
    between = fake.detach().lerp(real, place).requires_grad_()
    source = critic.apply(tensors, between).source
    (grad,) = torch.autograd.grad(source.sum(), between, create_graph=True)
    lengths = (grad.square().sum((1, 2, 3)) + TINY).sqrt()
    return (lengths - 1.0).square().mean()


def critic_loss(
    critic: Critic, tensors: Mapping[str, Tensor], real: Tensor, fake: Tensor, labels: Tensor
) -> Tensor:
    """Return the critic's loss without its penalty; differentiable in the tensors."""
    on_real, on_fake = critic.apply(tensors, real), critic.apply(tensors, fake)
    distance = on_fake.source.mean() - on_real.source.mean()
    classification = F.cross_entropy(on_fake.class_logits, labels)
    return distance + classification + F.cross_entropy(on_real.class_logits, labels)


def generator_loss(
    critic: Critic, tensors: Mapping[str, Tensor], fake: Tensor, labels: Tensor
) -> Tensor:
    """Return the generator's loss; differentiable in the images."""
    judgement = critic.apply(tensors, fake)
    return F.cross_entropy(judgement.class_logits, labels) - judgement.source.mean()


@dataclass(frozen=True)
class Adversary:
    """A critic in training.

    Attributes:
        critic: The critic.
        adam: Its optimiser.
        penalty: Weight of the gradient penalty.
        penalty_share: Share of the pairs on which the penalty is taken.
    """

    critic: Critic
    adam: Adam
    penalty: float = 10.0
    penalty_share: float = 1.0

    def init(self, tensors: State) -> State:
        """Return the state of a training that begins with these tensors of the critic."""
        named = {f"critic.{name}": x for name, x in tensors.items()}
        return named | self.adam.init(named)

    def tensors(self, state: State) -> State:
        """Return the critic's tensors of a state."""
        return {name: state[f"critic.{name}"] for name in self.critic.shapes()}

    def trained(
        self,
        state: State,
        iteration: int,
        real: Tensor,
        fake: Tensor,
        labels: Tensor,
        key: int,
        lr: float,
    ) -> tuple[State, dict[str, Tensor]]:
        """Return critic and moments after one step, and losses by name.

        Args:
            state: Holds the critic's tensors and moments; not changed.
            iteration: Number of the step.
            real: Real images ``[N, C, S, S]``.
            fake: Generated images ``[N, C, S, S]``, constants here.
            labels: Classes of both, int64 ``[N]``.
            key: Key of the penalty's draws.
            lr: Learning rate.
        """
        leaves = {name: x.detach().requires_grad_() for name, x in self.tensors(state).items()}
        with torch.enable_grad():
            loss = critic_loss(self.critic, leaves, real, fake.detach(), labels)
            total, losses = loss, {"critic_loss": loss.detach()}
            if self.penalty > 0.0:
                pairs = slice(max(1, round(self.penalty_share * len(real))))
                slope = gradient_penalty(self.critic, leaves, real[pairs], fake[pairs], key)
                total = loss + self.penalty * slope
                losses["gradient_penalty"] = slope.detach()
            grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        named = {f"critic.{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        moments = self.adam.init({name: state[name] for name in named})
        after, memory = replace(self.adam, lr=lr).update(
            named, {name: state[name] for name in moments}, state, iteration
        )
        return {name: after[name] for name in named} | memory, losses
