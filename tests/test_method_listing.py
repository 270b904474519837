"""``kdistill methods`` and ``kdistill doctor``: every option is explained, and every line fits a terminal of 80 columns."""

from dataclasses import dataclass, fields
from typing import Annotated, get_type_hints

import pytest
from typer.testing import CliRunner

from kdistill import doctor, methods
from kdistill.api.run import resolve
from kdistill.cli import app
from kdistill.errors import ConfigError
from kdistill.options import COUNT, Words, check_options, options, value_shown

NAMES = methods.names()


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_an_explanation_and_a_range(name):
    config = methods.get(name).config
    listed = {option.name: option for option in options(config)}
    assert set(listed) == {field.name for field in fields(config)}
    hints = get_type_hints(config)
    for option in listed.values():
        assert len(option.explanation) >= 10, option
        assert option.explanation.endswith((".", ")", "...")), option
        if {int, float} & {hints[option.name], *getattr(hints[option.name], "__args__", ())}:
            assert "," in option.allowed or option.name == "depth", (
                f"{name}.{option.name}: no range"
            )
        if option.allowed.endswith("; or none"):
            assert value_shown(config, option.name, None) != "none", (
                f"{name}.{option.name}: what does None stand for?"
            )


@pytest.mark.parametrize("name", NAMES)
def test_every_default_and_preset_is_in_its_range(name):
    for preset in methods.get(name).presets:
        check_options(resolve(name, preset, {}))


def test_an_option_without_an_explanation_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Forgotten:
        """Options.

        Attributes:
            told: Is explained.
        """

        told: int = 1
        untold: int = 1

    with pytest.raises(ConfigError, match="Forgotten: expected an explanation of 'untold'"):
        options(Forgotten)


def test_a_class_that_changes_a_default_keeps_range_and_explanation():
    @dataclass(frozen=True, kw_only=True)
    class First:
        """Options.

        Attributes:
            rounds: How often something
                is done.
            kind: ``"a"`` or ``"b"``.

        Raises:
            ConfigError: Never.
        """

        rounds: Annotated[int | None, COUNT] = None
        kind: Annotated[str, Words(("a", "b"))] = "a"

    @dataclass(frozen=True, kw_only=True)
    class Second(First):
        """Others."""

        rounds: int | None = 3

    rounds, kind = options(Second)
    assert (rounds.default, rounds.allowed) == ("3", "whole number, at least 1; or none")
    assert rounds.explanation == "How often something is done."
    assert (kind.allowed, kind.explanation) == ("a or b", "a or b.")
    with pytest.raises(ConfigError, match="rounds: expected at least 1, got 0"):
        check_options(Second(rounds=0))
    with pytest.raises(ConfigError, match="kind: expected one of a, b, got 'c'"):
        check_options(Second(kind="c"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["methods"], ["methods", "--papers"], *(["methods", name] for name in NAMES),
        *(["methods", name, "--presets"] for name in NAMES), ["doctor"], ["doctor", "--verbose"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_line_fits_80_columns(arguments):
    for line in shown(*arguments).splitlines():
        assert len(line) <= 80, line


def test_the_list_has_one_line_for_every_method_and_cites_on_request():
    plain, cited = shown("methods"), shown("methods", "--papers")
    assert sum(line.startswith("  ") for line in plain.splitlines()) == len(NAMES)
    assert "CVPR" not in plain
    assert "Dataset Distillation by Matching Training Trajectories" in " ".join(cited.split())


def test_the_options_of_a_run_are_said_as_they_are_meant_in_short_lines(tmp_path):
    result = CliRunner().invoke(
        app,
        [
            "distill",
            "digits",
            "--ipc",
            "1",
            "--set",
            "iterations=0",
            "--set",
            "width=4",
            "--out",
            str(tmp_path),
        ],
    )
    said = result.stderr.partition("dm, preset fast")[2].partition("distilling")[0]
    assert "lr_images=found automatically" in " ".join(said.split())
    assert "None" not in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_a_method_says_what_its_options_do_and_where_they_are_found():
    text = " ".join(shown("methods", "mtt").split())
    assert (
        "lr_images = 100 [number, 0 or more; or none] (fast: found automatically) Learning rate of "
        "the images" in text
    )
    assert (
        "syn_steps = 30 [whole number, at least 1] (fast: 20) N, steps of the student on the "
        "synthetic images." in text
    )
    assert "lr_images=None" not in text + shown("methods", "mtt", "--presets")
    assert "cifar10_ipc1" not in text
    assert "cifar10_ipc1" in shown("methods", "mtt", "--presets")


def test_presets_without_a_method_are_refused():
    result = CliRunner().invoke(app, ["methods", "--presets"])
    assert result.exit_code == 2
    assert "expected a method for --presets" in result.output


def test_doctor_says_every_cause_once(monkeypatch):
    def answers(op, device):
        return {
            "cpu": "yes",
            "triton": "triton is not installed",
            "cuda": f"not written for cuda; see docs/ops/{op}.md",
        }

    monkeypatch.setattr(doctor, "backends", answers)
    lines = list(doctor.report())
    count = len(doctor.op_names())
    assert sum("triton is not installed" in line for line in lines) == 1
    assert f"  triton     does not run {count} of {count} ops: triton is not installed" in lines
    assert sum("not written for cuda" in line for line in lines) == 1
    every = list(doctor.report(verbose=True))
    assert sum("triton is not installed" in line for line in every) == count
