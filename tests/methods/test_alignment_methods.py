"""datm and pad from data to artefact: their windows, labels, runs and refusals."""

from dataclasses import replace

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.api.run import resolve
from kdistill.data.image_dataset import fingerprint
from kdistill.errors import ConfigError, DataError
from kdistill.methods.trajectory.base import open_store
from kdistill.methods.trajectory.datm import DatmConfig
from kdistill.methods.trajectory.learned_labels import first_logits
from kdistill.selection import ScoreTable

SMALL = {
    "iterations": 20,
    "syn_steps": 3,
    "max_start_epoch": 2,
    "first_max_start_epoch": 1,
    "expand_until": 10,
    "width": 4,
    "num_experts": 2,
    "batch_syn": None,
}
FIEX = {"score_nets": 1, "score_epochs": 1, "initial_ratio": 0.5, "add_until": 2}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Keep experts and scores out of the user's cache, and share them within the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def run(digits, name, given=None, **options):
    extra = FIEX if name == "pad" else {}
    return kdistill.distill(
        digits, method=name, ipc=1, options={**SMALL, **extra, **options}, **(given or {})
    )


# ---- start epochs


@pytest.mark.parametrize(
    ("preset", "iteration", "window"),
    [
        ("cifar10_ipc10", 0, (0, 10)),
        ("cifar10_ipc10", 99, (0, 10)),
        ("cifar10_ipc10", 100, (0, 11)),
        ("cifar10_ipc10", 999, (0, 19)),
        ("cifar10_ipc10", 1000, (0, 20)),
        ("cifar10_ipc10", 9999, (0, 20)),
        ("cifar10_ipc50", 1000, (0, 30)),
        ("cifar10_ipc1", 0, (0, 4)),
        ("cifar100_ipc50", 5000, (20, 70)),
    ],
)
def test_the_window_of_start_epochs_is_the_published_one(preset, iteration, window):
    assert resolve("datm", preset, {}).window(iteration) == window


def test_the_interval_of_the_paper_raises_the_bound_by_one():
    config = resolve("pad", "pad_paper_tiny_ipc1", {})  # T 15, T+ 30, interval 400
    assert [config.window(i)[1] for i in (0, 399, 400, 800, 5999, 6000, 9999)] == [
        15,
        15,
        16,
        17,
        29,
        30,
        30,
    ]


@pytest.mark.parametrize(
    "options", [{"min_start_epoch": 10}, {"first_max_start_epoch": 21}, {"min_start_epoch": -1}]
)
def test_a_window_that_is_empty_is_refused(options):
    with pytest.raises(ConfigError, match=r"set all three"):
        resolve("datm", "paper", options)


def test_a_window_beyond_the_experts_is_refused_with_the_numbers():
    with pytest.raises(
        ConfigError,
        match=r"start epoch 19 and 2 epochs more .* the 15 epochs of the experts, got epoch 21",
    ):
        resolve("datm", "paper", {"expert_length": 15})
    resolve("datm", "paper", {"expert_length": 21})


# ---- first labels


def test_first_labels_are_the_mean_of_the_experts_that_are_right():
    labels = torch.tensor([0, 1, 1])
    one, two = (
        torch.tensor([[2.0, 0.0], [3.0, 1.0], [0.0, 1.0]]),
        torch.tensor([[4.0, 1.0], [5.0, 2.0], [6.0, 2.0]]),
    )
    found = first_logits([one, two], labels)
    # both right; none right: all of them; only the first right
    assert found.tolist() == [[3.0, 0.5], [4.0, 1.5], [0.0, 1.0]]
    assert bool(torch.isfinite(found).all())
    with pytest.raises(ConfigError, match="at least one expert"):
        first_logits([], labels)


def test_the_first_state_is_what_the_experts_say(digits):
    options = {**SMALL, "expert_length": 5}
    config = resolve("datm", "fast", options)
    problem = methods.get("datm").build(config, digits, 2, 0, None)
    student, store = config.network(digits), methods.get("datm").experts.train(config, digits)
    assert store.epochs == 5
    logits = torch.stack(
        [student.infer(store.snapshot(e, 5), problem.state["images"]) for e in range(2)]
    )
    right = (logits.argmax(2) == problem.labels).float()
    assert bool((right.sum(0) > 0).any())
    torch.testing.assert_close(
        problem.state["label_logits"], first_logits(list(logits), problem.labels)
    )
    rule = problem.optimizer.sgd
    assert (rule("label_logits").momentum, rule("images").momentum) == (0.9, 0.5)


@pytest.mark.parametrize("name", ["datm", "pad"])
def test_the_first_labels_of_fast_are_right(digits, name):
    extra = {"score_nets": 1, "score_epochs": 1} if name == "pad" else {}
    given = {"num_experts": 1, "width": 8, "lr_init": 0.02, "lr_images": 1.0, **extra}
    config = resolve(name, "fast", given)
    problem = methods.get(name).build(config, digits, 5, 0, None)
    assert torch.equal(problem.state["label_logits"].argmax(1), problem.labels)


# ---- runs


@pytest.mark.parametrize("name", ["datm", "pad"])
def test_the_loss_falls_and_labels_are_learned(digits, name):
    losses = []
    options = {
        "iterations": 120,
        "max_start_epoch": 1,
        "first_max_start_epoch": None,
        "num_experts": 1,
    }
    small = run(
        digits, name, {"callbacks": [lambda p: losses.append(p.loss)]}, **options, strategy="none"
    )
    assert losses[-1] < 0.8 * losses[0]
    assert small.label_logits.shape == (10, 10)
    assert small.learned_lr != 0.05
    first = run(digits, name, **{**options, "iterations": 0}, strategy="none")
    assert not torch.equal(first.label_logits, small.label_logits)


def test_a_resumed_run_has_the_same_bits(digits, tmp_path):
    whole = run(digits, "pad", {"out": tmp_path / "whole"})

    def stop(progress):
        if progress.iteration == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, "pad", {"out": tmp_path / "parts", "callbacks": [stop]})
    parts = run(digits, "pad", {"out": tmp_path / "parts", "resume": True})
    assert torch.equal(whole.images, parts.images)
    assert torch.equal(whole.label_logits, parts.label_logits)
    assert whole.learned_lr == parts.learned_lr


def test_pad_without_its_parts_is_datm(digits):
    plain = run(digits, "datm", iterations=3)
    bare = run(digits, "pad", iterations=3, fiex=False, fiem=False)
    assert torch.equal(plain.images, bare.images)
    assert torch.equal(plain.label_logits, bare.label_logits)
    rows = [
        run(digits, "pad", iterations=3, fiex=a, fiem=b).images
        for a, b in ((True, False), (False, True), (True, True))
    ]
    assert all(
        not torch.equal(row, other)
        for i, row in enumerate(rows)
        for other in [plain.images, *rows[:i]]
    )


def test_the_two_masks_differ_and_a_mask_of_nothing_is_none(digits):
    by_depth, by_loss = (
        run(digits, "pad", iterations=2, fiex=False, fiem_mask=kind).images
        for kind in ("depth", "loss")
    )
    assert not torch.equal(by_depth, by_loss)
    nothing = run(digits, "pad", iterations=2, fiex=False, mask_ratio=0.0)
    assert torch.equal(nothing.images, run(digits, "datm", iterations=2).images)


def test_an_iteration_above_the_threshold_changes_nothing(digits, caplog):
    frozen = run(digits, "datm", skip_above=1e-9)
    assert (
        "every one of 20 iterations was skipped, so nothing has changed; raise skip_above"
        in caplog.text
    )
    assert frozen.metrics["distillation"]["skipped"] == 20
    assert torch.equal(frozen.images, run(digits, "datm", iterations=0).images)
    assert run(digits, "datm", skip_above=None).metrics["distillation"]["skipped"] == 0


def test_experts_follow_the_curriculum(digits):
    config = resolve("pad", "fast", {**SMALL, **FIEX})
    rows = config.expert_rows(digits)
    counts = torch.bincount(digits.train.labels)
    assert [round(len(rows(epoch)) / len(digits.train), 2) for epoch in range(3)] == [
        0.5,
        0.75,
        1.0,
    ]
    kept = torch.bincount(digits.train.labels[rows(0)])
    assert bool((kept >= counts // 2).all()) and bool((kept <= counts // 2 + 1).all())


# ---- refusals


def test_experts_of_another_selection_or_normalisation_are_refused(digits, tmp_path):
    experts = {"experts": str(tmp_path), "iterations": 1}
    run(digits, "pad", **experts)
    with pytest.raises(ConfigError, match=r"selection.initial_ratio 0.75, got 0.5"):
        run(digits, "pad", **experts, initial_ratio=0.75)
    with pytest.raises(ConfigError, match=r"selection.scores.epochs 2, got 1"):
        run(digits, "pad", **experts, score_epochs=2)
    with pytest.raises(ConfigError, match=r"selection None, got .*initial_ratio"):
        run(digits, "datm", **experts)
    with pytest.raises(ConfigError, match=r"data.normalisation 'zca', got 'standard'"):
        run(kdistill.load_data("digits", normalisation="zca", quiet=True), "pad", **experts)
    with pytest.raises(ConfigError, match=r"width 5"):
        run(digits, "pad", **experts, width=5)
    with pytest.raises(ConfigError, match=r"trajectories of 4 epochs .*, got 3 in"):
        run(digits, "pad", **experts, max_start_epoch=3)


def test_a_curriculum_that_empties_a_class_is_refused_before_anything_is_trained(
    digits, monkeypatch
):
    monkeypatch.setattr("kdistill.methods.difficulty.difficulty", None)
    with pytest.raises(DataError, match=r"between the shares 0 and 0.001 .* got 0 of 1"):
        run(digits, "pad", initial_ratio=0.001)


@pytest.mark.parametrize(
    "change",
    [{"fiem_mask": "dept"}, {"score_metric": "el2"}, {"initial_ratio": 0.0}, {"score_nets": 0}],
)
def test_bad_options_are_refused(change):
    with pytest.raises(ConfigError):
        resolve("pad", "fast", change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init": "corect"}, r"init: expected one of .*, got 'corect'; did you mean 'correct'"),
        ({"grad_mode": "exact"}, "grad_mode: expected one of"),
        ({"schedule": "cosin"}, "schedule: expected one of"),
        ({"strategy": "colour"}, "expected families joined by '_', got 'colour'"),
        ({"iterations": -1}, "iterations: expected 0 or more, got -1"),
        ({"lr_lr": float("nan")}, "lr_lr: expected a number of 0 or more, got nan"),
        ({"lr_labels": -1.0}, "lr_labels: expected a number of 0 or more, got -1"),
        ({"momentum_labels": 2.0}, r"momentum_labels: expected a number in \[0, 1\), got 2"),
        ({"rho": float("inf")}, "rho: expected a number of 0 or more, got inf"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_experts_are_trained(digits, monkeypatch, change, message):
    monkeypatch.setattr("kdistill.experts.expert_training.train", None)
    with pytest.raises(ConfigError, match=message):
        run(digits, "pad", **change)


def table(path, split, scores, metric="el2n"):
    classes = tuple(str(i) for i in range(10))
    ScoreTable(split.labels, {metric: scores}, classes, fingerprint(split), {}).save(path)
    return str(path)


def test_a_table_of_scores_takes_the_place_of_training(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("kdistill.methods.difficulty.difficulty", None)
    seen, _ = digits.holdout(0.1)
    path = table(tmp_path / "scores.csv", seen.train, torch.arange(len(seen.train)))
    run(digits, "pad", iterations=1, scores=path)
    config = resolve("pad", "fast", {**SMALL, **FIEX, "scores": path})
    assert int(config.expert_rows(seen)(0).max()) < 0.6 * len(seen.train)


def test_a_run_is_not_resumed_with_another_table(digits, tmp_path):
    seen, _ = digits.holdout(0.1)
    out = {"out": tmp_path / "run", "max_minutes": 0.0}
    options = {
        "method": "dm",
        "ipc": 1,
        "options": {"iterations": 20, "width": 4, "batch_real": 4, "drop_hardest": 0.5},
    }
    options["options"]["scores"] = table(
        tmp_path / "scores.csv", seen.train, torch.arange(len(seen.train))
    )
    kdistill.distill(digits, **options, **out)
    table(tmp_path / "scores.csv", seen.train, -torch.arange(len(seen.train)))
    with pytest.raises(
        ConfigError,
        match=r"expected the run that the checkpoint belongs to, got another scores\.table",
    ):
        kdistill.distill(digits, **options, **out, resume=True)


def test_a_table_that_does_not_fit_is_refused_with_the_numbers(digits, tmp_path):
    count = len(digits.train)
    path = table(tmp_path / "scores.csv", digits.train, torch.zeros(count))
    held_out = len(digits.holdout(0.1)[1])
    with pytest.raises(
        DataError,
        match=rf"the {count - held_out} training images, got {count} in .*same share held out",
    ):
        run(digits, "pad", scores=path)
    seen, _ = digits.holdout(0.1)
    other = replace(seen.train, images=seen.train.images.flip(3))
    with pytest.raises(DataError, match=r"scores of images with digest \w+, got \w+ in"):
        run(digits, "pad", scores=table(tmp_path / "other.csv", other, torch.zeros(len(other))))
    with pytest.raises(ConfigError, match="a metric of this table, got 'el2n'"):
        run(
            digits,
            "pad",
            scores=table(tmp_path / "loss.csv", seen.train, torch.zeros(len(other)), "loss"),
        )
    with pytest.raises(DataError, match="make one with kdistill score"):
        run(digits, "pad", scores=str(tmp_path / "nowhere.csv"))


# ---- presets


@pytest.mark.parametrize("name", ["datm", "pad"])
def test_presets_resolve_and_their_windows_lie_within_the_experts(name):
    for preset in methods.get(name).presets:
        assert isinstance(resolve(name, preset, {}), DatmConfig)


def test_both_variants_of_pad_are_published_for_the_same_settings():
    found = methods.get("pad").presets
    paper, repo = (
        {p.removeprefix(f"{v}_") for p in found if p.startswith(v)}
        for v in ("pad_paper", "pad_repo")
    )
    assert paper == repo
    assert len(paper) == 12
    for preset in found:
        config = resolve("pad", preset, {})
        kinds = ("loss", "grand_last") if preset.startswith("pad_repo") else ("depth", "el2n")
        assert (config.fiem_mask, config.score_metric) == kinds


def test_scores_are_kept_and_a_damaged_file_is_made_again(digits, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path))
    config = resolve("pad", "fast", {**SMALL, **FIEX})
    first = config.ranking(digits)
    (path,) = (tmp_path / "scores").glob("digits-*.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    assert all(
        torch.equal(a, b) for a, b in zip(first.rows, config.ranking(digits).rows, strict=True)
    )
    assert "scored again" in caplog.text
    assert path.read_bytes() == data


def test_scores_and_experts_that_others_could_have_written_are_not_used(
    digits, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path))
    for name in ("scores", "experts"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    config = resolve("pad", "fast", {**SMALL, **FIEX})
    config.ranking(digits)
    assert caplog.text.count("got one that others can write; chmod go-w it") == 1 and not [
        *(tmp_path / "scores").iterdir()
    ]
    with pytest.raises(DataError, match="experts: expected a cache that only its owner can write"):
        open_store(config, digits)


def test_a_plan_of_pad_scores_nothing(digits, monkeypatch):
    monkeypatch.setattr("kdistill.methods.difficulty.difficulty", None)
    found = kdistill.plan(
        digits, method="pad", ipc=1, options={**SMALL, **FIEX, "num_experts": 7, "width": 6}
    )
    # experts, snapshots of three epochs and the first, float32
    assert found.expert_bytes == 7 * 4 * found.num_params * 4
    assert found.seconds == pytest.approx(20 * found.iteration_seconds)
