"""``kdistill methods``, ``options`` and ``doctor``: every option is explained, in 80 columns."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal, get_type_hints

import pytest
from typer.testing import CliRunner

from kdistill import doctor, methods
from kdistill.api.run import resolve
from kdistill.cli import app
from kdistill.errors import ConfigError
from kdistill.evaluation import Protocol
from kdistill.options import COUNT, POSITIVE, Words, check_options, options, value_shown
from kdistill.priors.diffusion_training import DiffusionSpec
from kdistill.priors.gan_training import PriorSpec
from kdistill.selection import ScoreSpec

NAMES = methods.names()
COMMANDS = {"score": ScoreSpec, "prior": PriorSpec, "evaluate": Protocol}
CONFIGS = {name: methods.get(name).config for name in NAMES} | COMMANDS
CONFIGS |= {"prior of diffusion": DiffusionSpec}


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_has_an_explanation_and_a_range(name):
    config = CONFIGS[name]
    listed = {option.name: option for option in options(config)}
    assert set(listed) == {field.name for field in fields(config)}
    hints = get_type_hints(config)
    for option in listed.values():
        assert len(option.explanation) >= 10, option
        assert option.explanation.endswith((".", ")", "...")), option
        if {int, float} & {hints[option.name], *getattr(hints[option.name], "__args__", ())}:
            assert (
                "," in option.allowed
                or option.allowed == "table"
                or option.name in ("depth", "seed")
            ), f"{name}.{option.name}: no range"
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
        *(["methods", name, "--presets"] for name in NAMES),
        *(["options", name] for name in COMMANDS), ["doctor"], ["doctor", "--verbose"],
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


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command_are_listed_where_its_help_says(name):
    text = " ".join(shown("options", name).split())
    assert all(f" {field.name} = " in text for field in fields(COMMANDS[name]))
    arguments = ("prior", "train") if name == "prior" else (name,)
    said = " ".join(shown(*arguments, "--help").replace("│", " ").split())
    assert f"kdistill options {name}" in said


def test_a_word_beside_a_range_is_allowed_and_shown():
    @dataclass(frozen=True, kw_only=True)
    class Rated:
        """Options.

        Attributes:
            rate: A rate, or ``"auto"``.
            rates: Rates to choose among.
            schedule: How the rate changes.
        """

        rate: Annotated[float | Literal["auto"], POSITIVE] = "auto"
        rates: Annotated[tuple[float, ...], POSITIVE] = (1.0,)
        schedule: Literal["constant", "step"] = "step"

    assert [o.allowed for o in options(Rated)] == [
        "number or auto, above 0", "list, above 0", "constant or step"
    ]  # fmt: skip
    check_options(Rated())
    for changes, words in (
        ({"rate": "fast"}, r"^rated\.rate: expected auto or a number above 0, got 'fast'; "),
        ({"rates": (1.0, -1.0)}, "expected a number above 0, got -1.0"),
        ({"schedule": "stp"}, "expected one of constant, step, got 'stp'; did you mean 'step'"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_options(Rated(**changes), "rated")


def test_an_unknown_command_has_no_options():
    result = CliRunner().invoke(app, ["options", "scor"])
    assert result.exit_code == 2 and "did you mean 'score'" in result.output


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
