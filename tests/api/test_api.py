"""distill end to end on real data: determinism, resume, budgets, bad input."""

import json
import logging
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.errors import ConfigError, DataError, NonFiniteError
from kdistill.evaluation import Protocol
from kdistill.methods.base import MethodConfig

TINY = {"iterations": 40, "batch_real": 12, "width": 8}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("data.safetensors", "config.json")}


def stop_at(iteration: int, error: type[BaseException]):
    def callback(progress):
        if progress.iteration == iteration:
            raise error

    return callback


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(digits, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(seed + 17)  # a global seed has no say
        kdistill.distill(digits, ipc=2, seed=seed, options=TINY, out=tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["data.safetensors"] != files(tmp_path / "c")["data.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError], ids=["ctrl-c", "killed"])
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(digits, tmp_path, error):
    kdistill.distill(digits, ipc=1, options=TINY, out=tmp_path / "whole")
    with pytest.raises(error):
        kdistill.distill(
            digits,
            ipc=1,
            options=TINY,
            out=tmp_path / "cut",
            callbacks=[stop_at(30, error)],
            checkpoint_minutes=0,
        )
    assert not (tmp_path / "cut/data.safetensors").exists()
    kdistill.distill(digits, ipc=1, options=TINY, out=tmp_path / "cut", resume=True)
    assert files(tmp_path / "whole") == files(tmp_path / "cut")


def test_the_global_generator_is_left_alone(digits):
    before = torch.random.get_rng_state()
    kdistill.distill(digits, ipc=1, options={**TINY, "iterations": 2})
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_loss_falls(digits):
    seen = []
    options = {**TINY, "iterations": 200, "lr_images": 5.0, "init": "noise", "strategy": "none"}
    kdistill.distill(digits, ipc=2, options=options, callbacks=[lambda p: seen.append(p.loss)])
    assert seen[-1] < 0.5 * seen[0]


def test_resume_refuses_another_run(digits, tmp_path):
    kdistill.distill(digits, ipc=1, options=TINY, out=tmp_path)
    with pytest.raises(ConfigError, match="same settings or another folder"):
        kdistill.distill(digits, ipc=1, seed=9, options=TINY, out=tmp_path, resume=True)


def test_a_time_budget_keeps_what_is_there(digits, tmp_path):
    small = kdistill.distill(
        digits, ipc=1, options={**TINY, "iterations": 100_000}, out=tmp_path, max_minutes=0.01
    )
    assert not small.metrics["distillation"]["finished"]
    assert 0 < small.metrics["distillation"]["iterations"] < 100_000
    assert (tmp_path / "preview.png").exists()


def test_metrics_lines_are_json(digits, tmp_path):
    kdistill.distill(digits, ipc=1, options=TINY, out=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [10, 20, 30, 40]
    assert {"loss", "rate", "eta_seconds", "peak_bytes"} <= set(rows[0])


def test_an_earlier_set_is_a_start(digits, tmp_path):
    kdistill.distill(digits, ipc=1, options=TINY, out=tmp_path)
    again = kdistill.distill(digits, ipc=1, options={**TINY, "iterations": 0}, init=tmp_path)
    earlier = kdistill.DistilledDataset.from_pretrained(tmp_path)
    torch.testing.assert_close(again.images, earlier.images, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="same classes, ipc and size"):
        kdistill.distill(digits, ipc=2, options=TINY, init=tmp_path)


def test_an_explosion_is_named_and_the_last_good_state_kept(digits, tmp_path):
    with pytest.raises(NonFiniteError, match=r"lower the learning rate .* is saved in"):
        kdistill.distill(
            digits, ipc=1, options={**TINY, "lr_images": 1e30, "norm": "none"}, out=tmp_path
        )
    assert (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "dmm"}, ConfigError, "did you mean 'dm'"),
        ({"preset": "fats"}, ConfigError, "did you mean 'fast'"),
        ({"options": {"iteration": 3}}, ConfigError, "did you mean 'iterations'"),
        ({"options": {"iterations": "many"}}, ConfigError, "iterations"),
        ({"options": {"init": "zeros"}}, ConfigError, "known: herding"),
        ({"ipc": 0}, ConfigError, "at least 1 image per class"),
        ({"ipc": 5000}, DataError, "lower ipc, hold out less"),
        ({"validation": 1.5}, ConfigError, "a share in"),
    ],
)
def test_bad_settings_get_one_clear_sentence(digits, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        kdistill.distill(digits, **arguments)
    assert "\n" not in str(caught.value)


def test_a_class_smaller_than_ipc_gets_what_it_has_and_is_said(digits, capsys):
    rare = (digits.train.labels == 3).nonzero().squeeze(1)[:2]
    rows = torch.cat([(digits.train.labels != 3).nonzero().squeeze(1), rare]).sort().values
    data = replace(digits, train=digits.train.take(rows), fingerprint="rare")
    small = kdistill.distill(data, ipc=4, options=TINY, validation=0.0)
    assert small.counts == (4,) * 10
    assert (
        len(small.images[small.labels == 3].unique(dim=0)) == 4
    )  # equal images would have equal gradients and stay equal
    assert (
        "fewer than ipc=4 training images of '3' (2): their 4 synthetic images begin as copies of "
        "those, with a little noise" in capsys.readouterr().err
    )


def test_no_real_image_beyond_the_first_ones_is_said(digits):
    one = digits.train.take(
        torch.cat([(digits.train.labels == k).nonzero()[:1, 0] for k in range(10)])
    )
    with pytest.raises(
        ConfigError,
        match=r"got zeros in 3 iterations, as where the first images are all the real ones",
    ):
        options = {**TINY, "strategy": "none", "lr_images": None}
        kdistill.distill(
            replace(digits, train=one, fingerprint="one"), ipc=1, options=options, validation=0.0
        )


def test_arguments_of_other_types_end_in_a_sentence(digits):
    with pytest.raises(ConfigError, match="init: expected an earlier set or its folder, got 5"):
        kdistill.distill(digits, ipc=1, init=5)
    with pytest.raises(
        ConfigError, match=r"device: expected one that this torch can use, got '3.5'"
    ):
        kdistill.distill(digits, ipc=1, device=3.5)
    assert len(kdistill.distill(digits, ipc=1, options=TINY, callbacks=None).images) == 10


def test_a_folder_that_cannot_be_written_is_refused_before_work_starts(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another"):
        kdistill.distill(digits, ipc=1, options=TINY, out=tmp_path / "file" / "run")


def test_resume_without_a_checkpoint_starts_from_the_beginning(digits, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        kdistill.distill(
            digits, ipc=1, options={**TINY, "iterations": 2}, out=tmp_path, resume=True
        )
    assert "starting from the beginning" in caplog.text


def test_every_method_has_presets_of_known_options():
    for name in methods.names():
        found = methods.get(name)
        assert found.name == name
        assert {"paper", "fast"} <= set(found.presets)
        for changes in found.presets.values():
            found.config(**changes)


def test_the_options_of_every_method_are_stated_once():
    shared = {entry.name: entry.default for entry in fields(MethodConfig)}
    for name in methods.names():
        config = methods.get(name).config
        assert issubclass(config, MethodConfig)
        own = {entry.name: entry.default for entry in fields(config)}
        for cls in config.__mro__[: config.__mro__.index(MethodConfig)]:
            assert not {
                key for key in cls.__annotations__ if key in shared and own[key] == shared[key]
            }, cls


@pytest.mark.parametrize("init", ["herding", "k_means", "k_center"])
def test_chosen_images_to_begin_with(digits, init):
    small = kdistill.distill(
        digits, ipc=2, options={"iterations": 1, "lr_images": 1e-9, "width": 4, "init": init}
    )
    real = digits.holdout(0.1)[0].train
    for image, label in zip(small.images, small.labels, strict=True):
        of_class = real.images[real.labels == label]
        assert float((of_class - image).abs().amax((1, 2, 3)).min()) < 1e-4


def quick(digits, **changes):
    options = {"iterations": 20, "width": 4, "batch_real": 8, **changes.pop("options", {})}
    return kdistill.distill(digits, ipc=1, options=options, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads": 0}, "threads: expected a whole number of at least 1"),
        ({"device": "cuda:99"}, "device: expected one that this torch can use"),
        ({"max_minutes": float("nan")}, "max_minutes: expected 0 or more"),
        ({"seed": 1.5}, "seed"),
        ({"options": {"iterations": -5}}, "iterations: expected 0 or more"),
        ({"options": {"batch_real": 0}}, "batch_real: expected at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(digits, changes, words):
    with pytest.raises(ConfigError, match=words):
        quick(digits, **changes)


def test_an_interrupted_run_is_not_thrown_away(digits, tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(digits, out=tmp_path, callbacks=[stop])
    with pytest.raises(ConfigError, match="continue it with resume=True"):
        quick(digits, out=tmp_path)
    assert torch.equal(quick(digits, out=tmp_path, resume=True).images, quick(digits).images)
    lines = [
        json.loads(line)["iteration"]
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == [10, 20]


def test_resuming_a_finished_run_keeps_its_evaluation(digits, tmp_path):
    quick(digits, out=tmp_path).with_metrics(evaluation={"seen": True}).save_pretrained(tmp_path)
    assert quick(digits, out=tmp_path, resume=True).metrics["evaluation"] == {"seen": True}


def test_a_callback_that_fails_loses_nothing(digits, tmp_path):
    with pytest.raises(ZeroDivisionError):
        quick(digits, out=tmp_path, callbacks=[lambda progress: 1 / 0])
    assert torch.equal(quick(digits, out=tmp_path, resume=True).images, quick(digits).images)


def test_another_convolution_is_another_run(digits, tmp_path, monkeypatch):
    quick(digits, out=tmp_path, max_minutes=0)
    monkeypatch.setenv("KDISTILL_CONVOLUTION", "direct")
    with pytest.raises(
        ConfigError, match=r"another environment.convolution \('direct', was 'auto'\)"
    ):
        quick(digits, out=tmp_path, resume=True)


def test_a_start_of_other_classes_is_refused(digits):
    small = quick(digits)
    with pytest.raises(ConfigError, match="made from the same classes"):
        quick(
            digits, init=replace(small, classes=tuple(f"class {name}" for name in digits.classes))
        )
    labels = small.labels.clone()
    labels[1] = 0
    with pytest.raises(ConfigError, match="init"):
        quick(digits, init=replace(small, labels=labels))


def test_evaluate_takes_what_the_rest_takes(digits, tmp_path):
    quick(digits, out=tmp_path)
    protocol = Protocol(name="tiny", width=4, epochs=1, full_epochs=1, nets=1, eight_bit=False)
    found = kdistill.evaluate(tmp_path, digits, protocol=protocol, models="mlp", baselines="random")
    assert [row.model for row in found.rows] == ["mlp", "mlp"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "DM"}, "did you mean 'dm'"),
        ({"method": None}, "method: expected a string, got None"),
        ({"preset": None}, "preset: expected a string, got None"),
        ({"ipc": "10"}, "ipc: expected an integer, got '10'"),
        ({"validation": "0.1"}, "validation: expected a number, got '0.1'"),
        ({"max_minutes": "5"}, "max_minutes: expected 0 or more, got '5'"),
        ({"checkpoint_minutes": -1}, "checkpoint_minutes: expected 0 or more, got -1"),
        ({"threads": 4000}, r"threads: expected at most \d+ on this machine, got 4000"),
        ({"callbacks": 5}, "callbacks: expected functions of a Progress, got 5"),
        ({"out": 5}, "out: expected the path of a folder, got 5"),
        (
            {"init": "no/such/folder"},
            "init: expected the folder of an earlier set, got nothing at no/such/folder",
        ),
        ({"options": {"iteratons": 5}}, "did you mean 'iterations'"),
    ],
)
def test_settings_are_checked_before_the_images_are_read(monkeypatch, changes, words):
    monkeypatch.setattr(
        "kdistill.api.inputs.load_data", lambda *spec, **how: pytest.fail("images were read")
    )
    with pytest.raises(ConfigError, match=words):
        kdistill.distill("digits", **changes)


def test_one_function_is_a_callback(digits):
    seen = []
    quick(digits, callbacks=seen.append)
    assert [progress.iteration for progress in seen] == [10, 20]


def test_evaluate_says_when_its_arguments_are_swapped(digits):
    with pytest.raises(
        ConfigError,
        match=r"expected the small set and then the real data, got them the other way round",
    ):
        kdistill.evaluate(digits, quick(digits))
    with pytest.raises(
        ConfigError, match=r"expected a small set or its folder first, got NoneType"
    ):
        kdistill.evaluate(None, digits)


def test_images_that_leave_every_range_stop_the_run(digits, tmp_path, caplog):
    with pytest.raises(
        NonFiniteError,
        match=r"expected images that are still pictures at iteration 10, got values of \d.*lower",
    ):
        quick(digits, options={"lr_images": 1e30})
    quick(digits, options={"lr_images": 3e2, "iterations": 10})
    assert "where pictures have 0 to 1; lower lr_images" in caplog.text
    caplog.clear()
    quick(digits)
    assert not caplog.text
