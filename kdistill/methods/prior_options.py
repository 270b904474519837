"""Options of methods that take a frozen generator from a folder: where it is, how it fits."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.errors import ConfigError
from kdistill.methods.base import MethodConfig
from kdistill.methods.init import balanced_labels
from kdistill.options import Unset
from kdistill.priors import GeneratorAdapter, ImageGenerator
from kdistill.priors.latents import check_fit, generator_classes
from kdistill.transforms import Transform


@dataclass(frozen=True, kw_only=True)
class PriorConfig(MethodConfig):  # many fields, since each is an option that users set
    """Options of methods that take a frozen generator.

    Attributes:
        prior: Folder of the generator (``kdistill prior train`` or ``convert``).
        classes: The generator's class for each class of the data.
        channels: ``"same"``, or ``"convert"`` between colour and grey.
        resize: Scale the generator's images to the size of the data.
    """

    prior: Annotated[str, "a folder; needed"] = ""
    classes: Annotated[tuple[int, ...] | None, "of class numbers", Unset("the same numbers")] = None
    channels: Literal["same", "convert"] = "same"
    resize: bool = False

    def folder(self, start: Tensor | None, train: str = "kdistill prior train DATA") -> str:
        """Return the generator's folder.

        Args:
            start: Images to begin with, or None.
            train: Command that makes such a generator, for the message.

        Raises:
            ConfigError: There is none, or there are images to begin with, whose latents nobody
                knows.
        """
        if start is not None:
            raise ConfigError(
                "init: expected no images to begin with, got some; latents begin from draws, "
                "leave init out"
            )
        if not self.prior:
            raise ConfigError(
                f"prior: expected the folder of a generator, got none; make one with {train}"
            )
        return self.prior

    def adapter(
        self, network: ImageGenerator, data: ImageDataset, transform: Transform | None = None
    ) -> GeneratorAdapter:
        """Return the way from the generator's images to normalised ones of the data's size.

        Args:
            network: The generator.
            data: The data.
            transform: From pixel space to normalised images; None takes that of the data.

        Raises:
            ConfigError: The generator does not fit the data (says which).
        """
        check_fit(
            network,
            classes=data.classes,
            channels=data.channels,
            size=data.size,
            mapped=self.classes is not None,
            convert=self.channels == "convert",
            resize=self.resize,
        )
        return GeneratorAdapter(transform or data.transform, data.channels, data.size)

    def generator_labels(
        self, network: ImageGenerator, data: ImageDataset, ipc: int
    ) -> tuple[Tensor, Tensor]:
        """Return the labels of the images, and the generator's class of each."""
        labels = balanced_labels(data.num_classes, ipc).to(data.train.images.device)
        return labels, generator_classes(network, labels, self.classes, data.num_classes)
