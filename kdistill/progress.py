"""What the status lines of runs and trainings say (``kdistill.status`` shows them)."""

from typing import TYPE_CHECKING

from rich.console import Console

from kdistill.status import duration

if TYPE_CHECKING:
    from kdistill.priors.gan_training import PriorProgress
    from kdistill.runner import Progress


def console() -> Console:
    """Return a console on standard output."""
    return Console()


def describe(progress: "Progress") -> str:
    """Return the line: iteration, loss, rate, time left, peak memory."""
    width = len(str(progress.iterations))
    return (
        f"{progress.iteration:>{width}}/{progress.iterations}  loss {progress.loss:.4g}  "
        f"{progress.rate:.2f} it/s  "
        f"{duration(progress.eta_seconds)} left  {progress.peak_bytes / 2**30:.2f} GiB peak"
    )


def describe_prior(progress: "PriorProgress") -> str:
    """Return the line of a generator's training: iteration, losses, augmentation, rate, time left, peak memory."""
    width = len(str(progress.iterations))
    return (
        f"{progress.iteration:>{width}}/{progress.iterations}  losses "
        f"{progress.loss_discriminator:.3f} "
        f"{progress.loss_generator:.3f}  augmented {progress.augment_p:.2f}  {progress.rate:.2f} "
        "it/s  "
        f"{duration(progress.eta_seconds)} left  {progress.peak_bytes / 2**30:.2f} GiB peak"
    )
