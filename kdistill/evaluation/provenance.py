"""What a small set says about its own origin, and what that means for its numbers."""

from kdistill.artifacts import DistilledDataset
from kdistill.data import ImageDataset


def is_from_other_data(small: DistilledDataset, data: ImageDataset) -> bool:
    """Return whether the set names other data as its source.

    The record of a set keeps what was measured on its own data only.  A set that names no source is
    taken at its user's word.
    """
    return small.recorded("source", "fingerprint") not in (None, data.fingerprint)


def held_out_share(small: DistilledDataset) -> float | None:
    """Return the share of training images that the run held out, if it says so and held out any."""
    share = small.recorded("run", "validation")
    return float(share) if isinstance(share, int | float) and 0.0 < share < 1.0 else None


def made_with(small: DistilledDataset) -> str:
    """Return the network that the set was made with, if the set says so."""
    student = small.recorded("run", "options", "student")
    return student if isinstance(student, str) else ""


def notes(
    small: DistilledDataset, data: ImageDataset, held_out: int, *, chooses_lr: bool
) -> list[str]:
    """Return what a reader should know about the set and the data, one sentence each.

    Args:
        small: The small set.
        data: The real data, with the held-out images.
        held_out: Number of images held out for validation.
        chooses_lr: Whether every row chooses its learning rate on validation images.
    """
    lines = []
    if is_from_other_data(small, data):
        lines.append(
            f"the small set was made from other data than this {data.name}, or from another "
            "version of it"
        )
    if not held_out:
        lines.append("no image was held out for validation: the classes are too small")
    elif not lines and held_out_share(small) is None and data.validation is None:
        if small.recorded("run", "validation") is None:
            what = "does not say what was held out from it: its validation accuracy may flatter it"
        else:
            what = "was made from the validation images too: its validation accuracy flatters it"
        lines.append(f"the small set {what}")
    if len(set(small.counts)) > 1:
        lines.append(
            f"classes of the small set have {min(small.counts)} to {small.ipc} images; the subsets "
            f"have {small.ipc} each"
        )
    if small.transform.kind not in ("none", data.transform.kind):
        lines.append(
            f"the small set was made for '{small.transform.kind}' normalisation and is judged "
            f"under '{data.transform.kind}': load the data with "
            f"normalisation='{small.transform.kind}'"
        )
    if small.learned_lr is not None:
        how = "is chosen among several and the one" if chooses_lr else "is the one"
        lines.append(
            f"the learning rate of the small set {how} that it learned ({small.learned_lr:g})"
        )
    return lines
