"""Cached baselines: what they serve, and that nothing damaged or edited is believed."""

import logging
from dataclasses import replace

import pytest

from kdistill import _native
from kdistill.api.evaluate import evaluate
from kdistill.artifacts.checkpoint import encode_checkpoint
from kdistill.artifacts.tensors import decode, encode
from kdistill.evaluation import baseline_rows
from tests.evaluation._sets import numbers, small_set


def test_baselines_are_trained_once(digits, small, tiny, tasks):
    first = evaluate(small, digits, protocol=tiny)
    assert len(tasks) == 5
    tasks.clear()
    other = small_set(digits, ipc=1)
    second = evaluate(small, digits, protocol=tiny)
    assert [task.name for task in tasks] == ["distilled"]
    assert numbers(first) == numbers(second)
    assert first.row("random").sources == second.row("random").sources
    tasks.clear()
    evaluate(other, digits, protocol=tiny)
    # the full data serve every size
    assert [task.name for task in tasks] == ["distilled", "random", "herding", "k-center"]


@pytest.mark.parametrize(
    "change", ["recipe", "seed", "code", "threads", "data", "backend", "convolution"]
)
def test_a_cached_baseline_does_not_serve_anything_else(
    digits, small, tiny, tasks, monkeypatch, change
):
    run = {"protocol": tiny, "baselines": ("random",), "nets": 1}
    evaluate(small, digits, **run)
    tasks.clear()
    if change == "recipe":
        run["protocol"] = replace(tiny, lr=0.09)
    elif change == "seed":
        run["seed"] = 1
    elif change == "code":
        monkeypatch.setattr(baseline_rows, "code_digest", lambda: "other")
    elif change == "threads":
        monkeypatch.setattr(_native, "environment", lambda: {"threads": 64})
    elif change == "convolution":
        monkeypatch.setenv("KDISTILL_CONVOLUTION", "direct")
    elif change == "backend":
        monkeypatch.setenv("KDISTILL_BACKEND", "reference")
    else:
        digits = replace(digits, fingerprint="other")
    evaluate(small, digits, **run)
    assert "random" in [task.name for task in tasks]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("cut off", "damaged or cut off"),
        ("edited accuracy", "expected the contents that its checksum names, got others"),
        (
            "accuracy above 1",
            "expected what an evaluation measures of full, got accuracies above 1",
        ),
        ("more accuracies", "got accuracies of 2 numbers"),
        ("other accuracy", "got accuracies that disagree with the confusion matrix"),
        ("other confusion", "got a confusion matrix of other test images"),
        ("other source", "got the row of another baseline"),
        ("no row", "accuracies"),
        ("another entry", "expected the baseline that its name says, got another"),
        (
            "others can write",
            "expected a cache that only its owner can write, got one that others can write; chmod "
            "go-w it",
        ),
        ("a link", "a symbolic link, which is not followed"),
    ],
)
def test_a_cached_baseline_that_is_damaged_or_edited_is_trained_again(
    digits, small, tiny, tmp_path, caplog, damage, reason
):
    run = {"protocol": tiny, "baselines": ("full",), "nets": 1}
    first = evaluate(small, digits, **run)
    (file,) = (tmp_path / "cache/baselines").iterdir()
    tensors, record = decode(file.read_bytes(), file)
    entry = record["meta"]
    facts = entry["facts"]
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "others can write":
        file.parent.chmod(0o777)
    elif damage == "a link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif damage == "another entry":
        file.write_bytes(encode_checkpoint(tensors, {**entry, "entry": "other"}))
    elif damage == "edited accuracy":
        file.write_bytes(
            encode(tensors, {**record, "meta": {**entry, "facts": {**facts, "accuracies": [0.99]}}})
        )
    else:
        right = facts["accuracies"][0]
        changed = {
            "accuracy above 1": [1.5],
            "more accuracies": [right] * 2,
            "other accuracy": [0.5 * right],
        }
        facts = {**facts, "accuracies": changed.get(damage, [right])}
        facts["confusion"] = (
            facts["confusion"][::-1] if damage == "other confusion" else facts["confusion"]
        )
        facts["sources"] = ["0" * 32] if damage == "other source" else facts["sources"]
        facts = {"name": "full"} if damage == "no row" else facts
        file.write_bytes(encode_checkpoint(tensors, {**entry, "facts": facts}))
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        again = evaluate(small, digits, **run)
    assert reason in caplog.text and "again" in caplog.text and len(caplog.records) == 1
    assert numbers(first) == numbers(again)


def test_cached_parameters_that_do_not_fit_are_trained_again(digits, small, tiny, tmp_path, caplog):
    run = {"protocol": tiny, "baselines": ("herding",), "nets": 1}
    first = evaluate(small, digits, **run)
    for file in (tmp_path / "cache/baselines").iterdir():
        tensors, record = decode(file.read_bytes(), file)
        if "theta" not in tensors:
            file.unlink()
            continue
        tensors["theta"] = tensors["theta"][:-1]
        file.write_bytes(encode_checkpoint(tensors, record["meta"]))
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        assert numbers(evaluate(small, digits, **run)) == numbers(first)
    assert "finite parameters, got others" in caplog.text


def test_a_cache_that_cannot_be_written_costs_a_warning(
    digits, small, tiny, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        evaluate(small, digits, protocol=tiny, baselines=("full",), nets=1)
    assert "next time the baseline is trained again" in caplog.text
