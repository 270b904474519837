"""Teachers of the labels of datm and pad: networks trained longer than the experts."""

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.api.run import resolve
from kdistill.methods.trajectory.base import open_store
from kdistill.methods.trajectory.learned_labels import first_logits

SMALL = {
    "iterations": 2,
    "syn_steps": 2,
    "max_start_epoch": 2,
    "first_max_start_epoch": 1,
    "expand_until": 10,
    "expert_length": None,
    "width": 8,
    "expert_lr": 0.05,
    "num_experts": 2,
    "batch_syn": None,
}
FIEX = {"score_nets": 1, "score_epochs": 1, "initial_ratio": 0.5, "add_until": 2}
TEACHERS = {"teacher_epochs": 5, "label_experts": 1}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def config(name, **options):
    extra = FIEX if name == "pad" else {}
    return resolve(name, "paper", {**SMALL, **extra, **TEACHERS, **options})


@pytest.mark.parametrize("name", ["datm", "pad"])
def test_the_first_labels_are_those_of_the_teachers(digits, name):
    settings = config(name)
    problem = methods.get(name).build(settings, digits, 2, 0, None)
    store = open_store(settings.teachers(), digits)
    assert store.epochs == 5 and store.has(0) and not store.has(1)
    assert open_store(settings, digits).epochs == 3  # start epochs 0 and 1, and M = 2
    student, images = settings.network(digits), problem.state["images"]
    votes = [student.infer(store.snapshot(0, 5), images)]
    assert torch.equal(problem.state["label_logits"], first_logits(votes, problem.labels))
    assert (votes[0].argmax(1) == problem.labels).all()  # init=correct: the teacher chose them
    if name == "pad":
        assert settings.teachers().expert_selection(digits) is None  # they see all images


def test_teachers_are_trained_with_the_experts_and_are_part_of_the_plan(digits, tmp_path):
    settings = config("datm", expert_lr=0.02)  # experts that no other test has
    without = config("datm", expert_lr=0.02, teacher_epochs=None)
    dry_run = methods.get("datm").experts.dry_run
    planned = dry_run(settings, digits, tmp_path / "a")
    alone = dry_run(without, digits, tmp_path / "b")
    size = settings.network(digits).num_params * 4
    assert planned.expert_bytes == alone.expert_bytes + 6 * size  # epochs 0 to 5
    assert planned.expert_seconds > alone.expert_seconds
    methods.get("datm").experts.train(settings, digits)
    assert open_store(settings.teachers(), digits).has(0)
    assert dry_run(settings, digits, tmp_path / "c").expert_bytes == 0


def test_a_named_folder_has_the_teachers_beside_it(digits, tmp_path):
    settings = config("datm", experts=str(tmp_path / "experts"))
    methods.get("datm").experts.train(settings, digits)
    assert (tmp_path / "experts-teachers").is_dir() and (tmp_path / "experts").is_dir()


def test_a_run_says_how_right_its_labels_are(digits, tmp_path):
    options = {**SMALL, **TEACHERS}
    said = []
    kdistill.distill(
        digits, method="datm", ipc=1, options=options, quiet=True,
        callbacks=[lambda progress: said.append(progress.metrics)],
    )  # fmt: skip
    first = said[0]
    assert first["label_agreement"] == 1.0 and 0.1 < first["label_p_true"] <= 1.0
