"""Any ``torch.nn.Module`` as a student, the zoo's networks too.

The module is copied and runs in evaluation mode (dropout off) with buffers frozen at their present
values, except that batch norm always uses the statistics of the batch, and they stay in the graph.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from kdistill.engine.precision import asked_precision
from kdistill.engine.students.base import Slot, Student
from kdistill.engine.students.results import Trace
from kdistill.errors import ConfigError, ShapeError

ACTIVATIONS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.ELU,
    nn.Hardswish,
    nn.Mish,
    nn.PReLU,
    nn.Tanh,
    nn.Sigmoid,
)


class ModuleStudent(Student):
    """A module as a function of theta; parameters in the order of ``module.named_parameters()``.

    The classifier is the last ``nn.Linear`` with as many outputs as there are classes: its input
    are the features.  ``taps`` are the modules whose outputs are the feature maps of
    ``features(..., layers="all")``; by default all activation modules.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        channels: int,
        size: int,
        classes: int,
        taps: tuple[str, ...] | None = None,
        fresh: Callable[[], nn.Module] | None = None,
    ):
        self.module = _frozen(module)
        self._fresh = fresh
        modules = dict(self.module.named_modules())
        linears = [
            n for n, m in modules.items() if isinstance(m, nn.Linear) and m.out_features == classes
        ]
        self._classifier = linears[-1] if linears else None
        activations = tuple(n for n, m in modules.items() if isinstance(m, ACTIVATIONS))
        self.taps = activations if taps is None else taps
        self._names = [n for n, _ in self.module.named_parameters()]
        slots = [Slot(n, tuple(p.shape)) for n, p in self.module.named_parameters()]
        features = modules[self._classifier].in_features if self._classifier is not None else 0
        super().__init__(name, channels, size, classes, slots, features)
        self.is_joint = any(isinstance(m, _BatchNorm) for m in modules.values())

    def init(self, generator: torch.Generator) -> Tensor:
        """Return fresh parameters ``[P]``, float32, drawn from ``generator`` alone.

        The zoo draws every tensor from it.  A user's factory is called again, and a user's module
        gets ``reset_parameters()`` of all its parts (other parameters keep their value), with the
        CPU's global generator seeded from ``generator`` meanwhile and restored afterwards.
        """
        if hasattr(self.module, "draw_parameters"):
            return _flat(self.module.draw_parameters(generator))
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = _reset(copy.deepcopy(self.module)) if self._fresh is None else self._fresh()
        return _flat([p for _, p in module.named_parameters()]).to(generator.device)

    def _call(self, theta: Tensor, images: Tensor) -> Tensor:
        if not self._names:
            raise ConfigError(
                f"{self.name}: expected a module with parameters to train, got none; add a layer "
                "that has some"
            )
        if asked_precision() == "bf16":
            raise ConfigError(
                f"precision: expected student convnet with bf16, got {self.name}; use tf32 or fp32 "
                "for other networks"
            )
        state = dict(zip(self._names, self.unflatten(theta), strict=True))
        for name, buffer in self.module.named_buffers():
            dtype = images.dtype if buffer.is_floating_point() else None
            state[name] = buffer.to(images.device, dtype)
        try:
            return functional_call(self.module, state, (images,))
        except RuntimeError as error:
            raise ShapeError(
                f"{self.name}: expected a module that takes images {list(images.shape)}, got: "
                f"{str(error).splitlines()[0]}; build it for {self.channels} channels of "
                f"{self.size} pixels"
            ) from error

    def _logits(self, theta: Tensor, images: Tensor) -> Tensor:
        return self._checked(self._call(theta, images), len(images))

    def _checked(self, logits: Tensor, batch: int) -> Tensor:
        if tuple(logits.shape) != (batch, self.classes):
            raise ShapeError(
                f"{self.name}: expected logits [{batch}, {self.classes}], got "
                f"{list(logits.shape)}; let the module return one row of class logits per image"
            )
        return logits

    def _features(self, theta: Tensor, images: Tensor) -> Tensor:
        features = self._watched(theta, images)[0].features
        if features is None:
            raise ConfigError(
                f"{self.name}: expected a classifier nn.Linear(..., {self.classes}) to read "
                "features from, got none; end the module with one"
            )
        return features.flatten(1)

    def _features_and_logits(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor, bool]:
        if self._classifier is None:
            self._features(theta, images)  # says what is missing
        trace, out = self._watched(theta, images)
        logits, features = self._checked(trace.logits, len(images)), trace.features
        if out is not logits or features.ndim != 2:
            raise ConfigError(
                f"{self.name}: expected a module that returns the result of its classifier "
                f"nn.Linear(..., {self.classes}) for one vector per image, got something else; "
                "score with other metrics than 'grand_last', or end the module with it"
            )
        return features, logits, self.module.get_submodule(self._classifier).bias is not None

    def _trace(self, theta: Tensor, images: Tensor) -> Trace:
        if not self.taps:
            raise ConfigError(
                f"{self.name}: expected activation modules such as nn.ReLU, got none; use them, or "
                "layers='last'"
            )
        return self._watched(theta, images, self.taps)[0]

    def _watched(
        self, theta: Tensor, images: Tensor, taps: tuple[str, ...] = ()
    ) -> tuple[Trace, Tensor | None]:
        """Return one pass with the outputs of ``taps``, and the classifier's output."""
        maps: list[Tensor] = []
        calls: list[tuple[Tensor | None, Tensor | None]] = [(None, None)]
        with ExitStack() as hooks:
            for name in taps:
                tap = self.module.get_submodule(name)
                hooks.enter_context(tap.register_forward_hook(lambda _, __, out: maps.append(out)))
            if self._classifier is not None:
                classifier = self.module.get_submodule(self._classifier)
                hooks.enter_context(
                    classifier.register_forward_hook(
                        lambda _, args, out: calls.append((args[0], out))
                    )
                )
            logits = self._call(theta, images)
        features, out = calls[-1]
        return Trace(maps, features, logits), out


def _frozen(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return module


def _reset(module: nn.Module) -> nn.Module:
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
    return module


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0), *(t.detach().flatten().float() for t in tensors)])
