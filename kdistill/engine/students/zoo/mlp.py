"""MLP: two hidden layers of 128 units with ReLU (``depth`` and ``width`` change them)."""

from torch import Tensor, nn

from kdistill.engine.students.zoo.base import ZooModule


class Mlp(ZooModule):
    """Flatten → (linear → ReLU) × depth → linear."""

    options = ("depth",)

    def __init__(self, channels: int, size: int, classes: int, width: int = 128, depth: int = 2):
        super().__init__()
        inputs, parts = channels * size * size, []
        for _ in range(depth):
            parts += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.body = nn.Sequential(*parts)
        self.classifier = nn.Linear(inputs, classes)
        self.taps = tuple(f"body.{2 * level + 1}" for level in range(depth))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.body(images.flatten(1)))
