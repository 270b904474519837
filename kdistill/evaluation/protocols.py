"""How networks are trained on a set before they are tested: one recipe for every row of a table."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from kdistill.augment import Augment, strategy_for
from kdistill.engine.parameter_steps import OPTIMIZERS, SCHEDULES
from kdistill.engine.precision import PRECISIONS
from kdistill.errors import ConfigError, did_you_mean
from kdistill.options import (
    COUNT,
    DECAY,
    MOMENTUM,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Range,
    Unset,
    Words,
    check_options,
)

# fields that ``evaluate`` changes and that decide what a row can be compared with
CHANGED = ("epochs", "batch_size", "strategy")
VALIDATION = Range("in (0, 1)", lambda value: 0.0 < value < 1.0, "0.1 is a tenth", "a share ")


# one record of a file: every field is an option that a table's note may name
@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One training recipe, the same for the small set, the baselines and the full data.

    Attributes:
        name: Name in tables and records.
        student: Network, where ``evaluate`` names none.
        width: Width of ``student``; None is the network's own default.
        other_widths: Widths of other networks (cross-architecture rows); one that is missing gets
            its own default.
        norm: Normalisation of the networks.
        other_norms: The same of networks that the protocol's source trains otherwise.
        epochs: Passes over a small set.
        full_epochs: Passes over the full data, at least; raised so that it never gets fewer steps
            than a small set.
        nets: Networks per row, each with its own initial weights and order of images.
        batch_size: Images per step.
        lr: Learning rate, where a set has not learned its own; ``"auto"`` chooses for every row, by
            validation accuracy of one network, among ``lr_candidates`` and the learned one.
        lr_candidates: Learning rates that ``lr="auto"`` chooses among.
        other_lrs: Learning rates of networks that the protocol's source trains otherwise.
        optimizer: ``"sgd"`` or ``"adamw"``.
        schedule: Schedule of the learning rate: ``"step"`` is a tenth after half of the epochs,
            ``"halving"`` a half after every fifth of them; ``"cosine"``; ``"warmup_cosine"`` rises
            in the first half and falls in the other; ``"constant"``.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        ema_decay: Decay of a running mean of the parameters, by epoch, which is what is tested; 0
            tests the parameters themselves.
        cutmix: Probability that a batch is mixed by CutMix.
        strategy: Augmentation (DSA): families joined by ``_``, ``"none"``, or ``"auto"``: all six,
            without flip where the data must not be mirrored.
        align_corners: How scale and rotate sample: False for the DC, DSA, DM family, True for the
            trajectory methods.
        validation: Share of the training images held out for choosing settings; the share of the
            run, if it held out one, wins.
        eight_bit: Also train on the small set rounded to 8 bits, and say what that costs.
        hard_labels: Also train on the small set with hard labels, where it has learned soft ones.
        teacher_labels: Also train on the random images with the labels of a teacher, where the
            small set has learned soft labels.
        robustness: Also train the small and the random set without augmentation, for the
            augmentation-robust score.
        precision: Precision of matrix products: ``"fp32"``, ``"tf32"`` (GPU) or ``"bf16"``
            (``convnet``).
        best_on_test: Also report the best test accuracy over the epochs of a network, in a column
            of its own.  Papers report the best over the iterations of the distillation, which
            ``evaluate_snapshots`` gives.
        test_every: Epochs between two tests, for ``best_on_test`` only.

    Raises:
        ConfigError: A number that cannot be trained with.
    """

    name: str
    student: str = "convnet"
    width: Annotated[int | None, COUNT, Unset("the network's own default")] = 32
    other_widths: dict[str, int] = field(default_factory=dict)
    norm: str = "instance"
    other_norms: dict[str, str] = field(default_factory=dict)
    epochs: Annotated[int, COUNT] = 300
    full_epochs: Annotated[int, COUNT] = 40
    nets: Annotated[int, COUNT] = 5
    batch_size: Annotated[int, COUNT] = 256
    lr: Annotated[float | Literal["auto"], POSITIVE] = 0.01
    lr_candidates: Annotated[tuple[float, ...], POSITIVE] = (0.003, 0.01, 0.03)
    other_lrs: dict[str, float] = field(default_factory=dict)
    optimizer: Annotated[str, Words(OPTIMIZERS)] = "sgd"
    schedule: Annotated[str, Words(SCHEDULES)] = "step"
    momentum: Annotated[float, MOMENTUM] = 0.9
    weight_decay: Annotated[float, NOT_NEGATIVE] = 5e-4
    ema_decay: Annotated[float, DECAY] = 0.0
    cutmix: Annotated[float, SHARE] = 0.0
    strategy: str = "auto"
    align_corners: bool = False
    validation: Annotated[float, VALIDATION] = 0.1
    eight_bit: bool = True
    hard_labels: bool = True
    teacher_labels: bool = True
    robustness: bool = False
    precision: Annotated[str, Words(PRECISIONS)] = "fp32"
    best_on_test: bool = False
    test_every: Annotated[int, COUNT] = 10

    @property
    def title(self) -> str:
        """The name, with the precision where it is not float32 and what else was changed."""
        named = PROTOCOLS.get(self.name)
        changes = [] if self.precision == "fp32" else [self.precision]
        for name in CHANGED if named is not None else ():
            value = getattr(self, name)
            if value != getattr(named, name):
                changes.append(f"{name.replace('_', ' ')} {value}")
        return f"{self.name} ({', '.join(changes)})" if changes else self.name

    def check_networks(self, names: Iterable[str]) -> None:
        """Raise ConfigError unless these networks can be trained in the protocol's precision."""
        others = [name for name in names if name != "convnet"]
        if self.precision == "bf16" and others:
            raise ConfigError(
                f"precision: expected fp32 or tf32 for {others[0]}, got bf16, which convnet alone "
                "has; leave it out"
            )

    def __post_init__(self) -> None:
        check_options(self, "protocol")
        families = strategy_for(self.strategy, True)
        Augment(families, siamese=False, key=0, align_corners=False)  # raises for an unknown one
        if self.lr == "auto" and not self.lr_candidates:
            raise ConfigError(
                "protocol: expected lr_candidates for lr='auto', got none; name some learning rates"
            )


# widths that two cores can train; mlp and lenet are small as they are
NARROW = {"alexnet": 32, "vgg11": 16, "resnet18": 16, "vit": 64}

# Zhao and Bilen 2023 (DM): evaluation of their released code; its AlexNet has no normalisation
PAPER = Protocol(
    name="paper",
    width=128,
    epochs=1000,
    full_epochs=200,
    nets=20,
    other_norms={"alexnet": "none"},
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # for a first look: the table of the demo; the larger learning rate makes up for few epochs
        # (found on validation images)
        Protocol(
            name="quick", width=32, epochs=150, full_epochs=15, nets=3, lr=0.03, other_widths=NARROW
        ),
        # affordable on two cores, and what committed tables are made by
        Protocol(name="bench", width=32, epochs=300, full_epochs=40, nets=5, other_widths=NARROW),
        PAPER,
        # Zhao and Bilen 2023 (DM), and 2021 (DSA): the recipe of their released code
        replace(PAPER, name="dsa"),
        # Zhao, Mopuri and Bilen 2021 (DC): the same without augmentation, which needs fewer epochs
        replace(PAPER, name="dc", epochs=300, strategy="none"),
        # Cazenavette et al. 2022 (MTT), Cui et al. 2023 (TESLA); a set brings its learning rate
        replace(PAPER, name="mtt", nets=5, align_corners=True),
        # Guo et al. 2024 (DATM), Li et al. 2024 (PAD)
        replace(PAPER, name="datm", nets=5, align_corners=True, batch_size=128),
        # Cazenavette et al. 2023 (GLaD), and H-GLaD: tests a running mean of the parameters
        replace(
            PAPER,
            name="glad",
            nets=5,
            align_corners=True,
            lr=1e-3,
            other_lrs={"vgg11": 1e-4},
            schedule="warmup_cosine",
            ema_decay=0.995,
        ),
        # Kim et al. 2022 (IDC), as later code evaluates such sets; images are trained on as they
        # are, not cut into the smaller ones that IDC stores in each
        replace(
            PAPER,
            name="idc",
            nets=10,
            epochs=2000,
            batch_size=128,
            lr=1e-3,
            optimizer="adamw",
            weight_decay=0.01,
            schedule="halving",
            cutmix=0.5,
        ),
        # evaluation code of the ECCV 2024 dataset-distillation challenge, for 10 images per class;
        # there, images are normalised by the published statistics of CIFAR-100 and Tiny-ImageNet
        replace(PAPER, name="eccv24", epochs=1001, nets=3, eight_bit=False),
    )
}


def get(protocol: str | Protocol, **changes: Any) -> Protocol:
    """Return a protocol by name (or as it is), with fields changed; None changes nothing.

    Raises:
        ConfigError: Unknown name or field.
    """
    if not isinstance(protocol, Protocol):
        if protocol not in PROTOCOLS:
            raise ConfigError(
                f"protocol: expected a known name, got '{protocol}'; "
                f"{did_you_mean(str(protocol), list(PROTOCOLS))}"
            )
        protocol = PROTOCOLS[protocol]
    known = [entry.name for entry in fields(Protocol)]
    for name in changes:
        if name not in known:
            raise ConfigError(
                f"protocol: expected one of its fields, got '{name}'; {did_you_mean(name, known)}"
            )
    changes = {name: value for name, value in changes.items() if value is not None}
    if "lr" in changes:  # that of every network
        changes = {"other_lrs": {}, **changes}
    return replace(protocol, **changes)


def learning_rates(
    protocol: Protocol, model: str, learned: float | None = None
) -> tuple[float, ...]:
    """Return the learning rates that a row chooses among: the learned one, else the protocol's.

    For ``"auto"`` these are all candidates and the learned one.
    """
    own = () if learned is None else (learned,)
    if protocol.lr == "auto":
        return tuple(dict.fromkeys((*protocol.lr_candidates, *own)))
    return own or (protocol.other_lrs.get(model, float(protocol.lr)),)


def width_of(protocol: Protocol, model: str) -> int | None:
    """Return the width of a network under the protocol; None is the network's own default."""
    return protocol.width if model == protocol.student else protocol.other_widths.get(model)


def norm_of(protocol: Protocol, model: str) -> str:
    """Return the normalisation of a network under the protocol."""
    return protocol.other_norms.get(model, protocol.norm)
