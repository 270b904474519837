"""A run folder that version 0.1.0 wrote loads with the same values.

The set is one image per class of the digits after 4 iterations of DM, with drawn label logits.
"""

from pathlib import Path

import pytest
import torch

from kdistill.artifacts import DistilledDataset, load_checkpoint
from kdistill.artifacts.snapshots import snapshot_iterations
from kdistill.evaluation import Evaluation

FOLDER = Path(__file__).parent / "saved_by_0_1"


@pytest.fixture(scope="module")
def small():
    return DistilledDataset.from_pretrained(FOLDER)


def test_the_values_are_the_same(small):
    assert small.images.shape == (10, 1, 8, 8) and small.labels.tolist() == list(range(10))
    assert small.images.double().sum().item() == 198.7134878486395
    expected = torch.tensor([0.946, -0.844, -0.614])
    assert torch.equal(small.label_logits[3, :3], expected) and small.learned_lr == 0.02
    assert small.classes == tuple("0123456789") and small.files == {
        "note.txt": b"a file of the run\n"
    }
    assert small.transform.kind == "standard" and small.config["run"]["method"] == "dm"


def test_the_same_bytes_are_written_again(small, tmp_path):
    small.save_pretrained(tmp_path / "again")
    for name in ("data.safetensors", "config.json", "metrics.json", "note.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (FOLDER / name).read_bytes()


def test_the_snapshot_is_that_of_the_run(small):
    assert snapshot_iterations(FOLDER) == [2]
    snapshot = DistilledDataset.from_pretrained(FOLDER, iteration=2)
    assert torch.equal(snapshot.images, small.images * 0.5)
    assert torch.equal(snapshot.label_logits, small.label_logits)


def test_the_checkpoint_is_read():
    tensors, meta = load_checkpoint(FOLDER / "checkpoint.safetensors")
    assert tensors["state.images"].shape == (10, 1, 8, 8) and meta["iteration"] == 4


def test_the_evaluation_shows_the_same_numbers(small):
    record = small.metrics["evaluation"]
    result = Evaluation.from_dict(record)
    assert result.small.accuracies == (0.4361111111111111, 0.5166666666666667)
    assert "dm           47.64 ± 5.70   44.79 ± 5.40    47.64 ± 5.70" in str(result)
    for row, saved in zip(result.rows, record["rows"], strict=True):
        assert (row.mean, row.std) == (saved["mean"], saved["std"])
    assert result.to_dict()["scores"] == record["scores"]
