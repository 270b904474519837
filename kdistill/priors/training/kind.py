"""What ``kdistill prior train`` must know of a kind of generator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.priors.base import ImageGenerator
from kdistill.priors.training.quality import Quality, QualityCheck
from kdistill.runner import Timing


@dataclass(frozen=True)
class Measured:
    """A trained generator and what was measured of it.

    Attributes:
        generator: The generator, with the settings that were chosen on held-out images.
        images: The images that its quality was measured with, in pixel space.
        quality: Its quality.
        record: What else was measured, for ``metrics.json`` and ``config.json``.
        remark: A sentence on it for the card, or nothing.
    """

    generator: Any
    images: Tensor
    quality: Quality
    record: Mapping[str, Any]
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingKind:
    """How one kind of generator is trained.

    Attributes:
        spec: Class of its settings; with ``seed``, ``quality_images``, ``quality_steps`` and
            ``quality_width``.
        changeable: Settings that a resumed training may change.
        check_side: ``(height, width) -> None``; refuses images that it cannot be trained on.
        new: ``(settings, data) -> task`` of a ``Runner``.
        progress: ``(timing, report) -> Timing`` with the report's numbers, for callbacks.
        shown: ``progress -> text`` for the status line.
        sheet: ``(task, state, labels, key) -> images`` of ``samples.png``, in pixel space.
        product: ``(task, state) -> generator``.
        measure: ``(generator, check) -> Measured``.
        facts: ``(task, state) -> record`` of the training beside its settings.
        texts: ``(generator, record) -> texts`` of the card: ``kind``, ``training`` and ``use``.
    """

    spec: type
    changeable: tuple[str, ...]
    check_side: Callable[[int, int], None]
    new: Callable[[Any, ImageDataset], Any]
    progress: Callable[[Timing, Mapping[str, float]], Timing]
    shown: Callable[[Any], str]
    sheet: Callable[[Any, Any, Tensor, int], Tensor]
    product: Callable[[Any, Any], ImageGenerator]
    measure: Callable[[Any, QualityCheck], Measured]
    facts: Callable[[Any, Any], dict[str, Any]]
    texts: Callable[[Any, Mapping[str, Any]], dict[str, str]]


CHANGEABLE = ("iterations", "quality_images", "quality_steps", "quality_width")
