"""Parts of the zoo's modules: their base, PyTorch's default initialisation from an explicit generator, and layers."""

from collections import OrderedDict

from torch import Generator, Tensor, nn

from kdistill.engine.layers import EPS
from kdistill.engine.students.slots import Slot


class ZooModule(nn.Module):
    """A network of the zoo.

    ``options`` names the options of ``build_student`` that it follows beside ``width``, and
    ``taps`` the modules whose outputs are the feature maps of its blocks, before pooling.
    """

    options: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()

    def draw_parameters(self, generator: Generator) -> list[Tensor]:
        """Return initial values of ``named_parameters()`` in that order, all drawn from ``generator``."""
        drawn: dict[str, Tensor] = {}
        for prefix, part in self.named_modules():
            for name, value in part.named_parameters(prefix, recurse=False):
                slot = Slot(name, tuple(value.shape), None, float(name.endswith("weight")))
                if isinstance(part, (nn.Conv2d, nn.Linear)):
                    slot = Slot(name, slot.shape, part.weight[0].numel())
                drawn[name] = slot.draw(generator)
        return [drawn[name] for name, _ in self.named_parameters()]


def conv_block(conv: nn.Conv2d, norm: str, pool: int) -> nn.Module:
    """Return convolution, norm, ReLU and ``pool × pool`` max pooling as one module."""
    parts = {"conv": conv, "norm": norm_layer(norm, conv.out_channels), "act": nn.ReLU()}
    if pool > 1:
        parts["pool"] = nn.MaxPool2d(pool)
    return nn.Sequential(OrderedDict(parts))


def norm_layer(norm: str, width: int) -> nn.Module:
    """Return the normalisation of ``width`` channels; instance norm is a GroupNorm of one channel a group, as in the field."""
    if norm == "instance":
        return nn.GroupNorm(width, width, EPS)
    if norm == "group":
        return nn.GroupNorm(4 if width % 4 == 0 else 1, width, EPS)
    return nn.BatchNorm2d(width, EPS) if norm == "batch" else nn.Identity()
