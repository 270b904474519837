"""Real digits, and a recipe that trains in a blink."""

import pytest
import torch

import kdistill
from kdistill.evaluation import Protocol
from kdistill.evaluation.trainer import Trainer
from tests.evaluation._sets import small_set


@pytest.fixture(scope="session")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture
def tiny():
    # few steps, so that they must be large; one family of augmentation, so that so few of them are
    # enough
    return Protocol(
        name="tiny",
        width=8,
        epochs=12,
        full_epochs=2,
        nets=2,
        lr=0.1,
        strategy="crop",
        eight_bit=False,
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def one_thread():
    # images of 8×8 pixels: a second thread would only wait
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(digits):
    return small_set(digits)


@pytest.fixture
def tasks(monkeypatch):
    """Every task that is trained, in order."""
    tasks, row = [], Trainer.row

    def watched(self, task):
        tasks.append(task)
        return row(self, task)

    monkeypatch.setattr(Trainer, "row", watched)
    return tasks
