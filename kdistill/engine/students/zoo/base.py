"""What the zoo's modules share: their base, PyTorch's default initialisation from an explicit generator, and norm layers."""

from torch import Generator, Tensor, nn

from kdistill.engine.layers import EPS
from kdistill.engine.students.slots import Slot
from kdistill.errors import ConfigError


class ZooModule(nn.Module):
    """A network of the zoo.  ``taps`` names the modules whose outputs are the maps of its blocks, before pooling."""

    taps: tuple[str, ...] = ()

    def draw_parameters(self, generator: Generator) -> list[Tensor]:
        """Return initial values of ``named_parameters()`` in that order, all drawn from ``generator``."""
        drawn: dict[str, Tensor] = {}
        for prefix, part in self.named_modules():
            for name, value in part.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                drawn[full] = _slot(part, name, value).draw(generator)
        return [drawn[name] for name, _ in self.named_parameters()]


def _slot(part: nn.Module, name: str, value: Tensor) -> Slot:
    shape = tuple(value.shape)
    if isinstance(part, (nn.Conv2d, nn.Linear)):
        return Slot(name, shape, part.weight[0].numel())
    return Slot(name, shape, None, 1.0 if name == "weight" else 0.0)


def norm_layer(norm: str, width: int) -> nn.Module:
    """Return the normalisation of ``width`` maps; instance norm is a GroupNorm with one channel a group, as in the field."""
    if norm == "instance":
        return nn.GroupNorm(width, width, EPS)
    if norm == "group":
        return nn.GroupNorm(4 if width % 4 == 0 else 1, width, EPS)
    return nn.BatchNorm2d(width, EPS) if norm == "batch" else nn.Identity()


def refuse(where: str, **options: tuple[object, tuple[object, ...]]) -> None:
    """Raise ConfigError for an option that a network cannot follow; each is (value, allowed values)."""
    for option, (value, allowed) in options.items():
        if value not in allowed:
            known = ", ".join(str(a) for a in allowed)
            raise ConfigError(
                f"{where}: expected {option} among {known}, got {value}; leave it at its default"
            )
