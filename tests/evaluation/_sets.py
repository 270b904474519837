"""Small sets of real digits, and what two evaluations are compared by."""

from kdistill.artifacts import DistilledDataset
from kdistill.selection import select


def small_set(data, ipc=5, **changes):
    """Real images stand in for distilled ones."""
    train = data.holdout(0.1)[0].train
    rows = select("herding", train.images.flatten(1), train.labels, ipc, 0)
    return DistilledDataset(
        **{
            "images": train.images[rows],
            "labels": train.labels[rows],
            "classes": data.classes,
            **changes,
        }
    )


def numbers(evaluation):
    return {(row.name, row.model): (row.accuracies, row.validation) for row in evaluation.rows}
