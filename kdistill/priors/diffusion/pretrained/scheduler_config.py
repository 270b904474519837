"""The noise schedule that a scheduler's configuration of diffusers describes.

A scheduler's own steps are not used: what it says of training (betas, what the network predicts)
and of the grid of timesteps is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from kdistill.errors import DataError
from kdistill.priors.diffusion.denoiser import Prediction
from kdistill.priors.diffusion.noise_schedule import NoiseSchedule

CLASSES = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "sample": "x0",
    "v_prediction": "v",
}
assert set(PREDICTIONS.values()) == set(get_args(Prediction))
SPACINGS = ("leading", "trailing")
MAX_TIMESTEPS = 100_000
# of a configuration that does not name them, as of diffusers' DDIMScheduler
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
    "clip_sample": True,
}
# what changes the steps or the schedule, and the values that leave both alone
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "clip_sample": (False,),
    "thresholding": (False, None),
    "rescale_betas_zero_snr": (False, None),
}
NOT_CLIPPED = {"PNDMScheduler"}  # they have no such option, and do not clip


def read_schedule(config: Mapping[str, Any], where: Path) -> tuple[NoiseSchedule, Prediction]:
    """Return the noise schedule, and what the network predicts.

    Args:
        config: Contents of ``scheduler_config.json``.
        where: Its path, for messages.

    Raises:
        DataError: A schedule, prediction or option that the sampler does not have.
    """
    name = config.get("_class_name")
    if name not in CLASSES:
        raise _unknown(where, "a scheduler of a fixed noise schedule", "_class_name", name, CLASSES)
    values = {**DEFAULTS, **config}
    if name in NOT_CLIPPED:
        values["clip_sample"] = False
    for option, allowed in NEUTRAL.items():
        if values.get(option, allowed[0]) not in allowed:
            raise _unknown(
                where, "steps that are neither clipped nor rescaled", option, values[option],
                allowed[:1],
            )  # fmt: skip
    prediction, spacing = values["prediction_type"], values["timestep_spacing"]
    if prediction not in tuple(PREDICTIONS):  # a tuple: what JSON holds may be unhashable
        raise _unknown(
            where, "a network for this sampler", "prediction_type", prediction, PREDICTIONS
        )
    if spacing not in SPACINGS:
        raise _unknown(where, "timesteps for this sampler", "timestep_spacing", spacing, SPACINGS)
    offset, count = values["steps_offset"], values["num_train_timesteps"]
    if type(count) is not int or not 1 <= count <= MAX_TIMESTEPS:
        expected = (f"1 to {MAX_TIMESTEPS:,}",)
        raise _unknown(where, "timesteps", "num_train_timesteps", count, expected)
    if type(offset) is not int or offset not in (0, 1):
        raise _unknown(where, "timesteps for this sampler", "steps_offset", offset, ("0", "1"))
    grid = {
        "count": count,
        "offset": offset,
        "spacing": spacing,
        "final": 1.0 if values["set_alpha_to_one"] else None,
    }
    return _schedule(values, grid, where), PREDICTIONS[prediction]


def _schedule(values: Mapping[str, Any], grid: dict[str, Any], where: Path) -> NoiseSchedule:
    form, first, last = (values[key] for key in ("beta_schedule", "beta_start", "beta_end"))
    if form == "squaredcos_cap_v2":
        return NoiseSchedule.cosine(**grid)
    makers = {"linear": NoiseSchedule.linear, "scaled_linear": NoiseSchedule.scaled_linear}
    if form not in tuple(makers):
        expected = (*makers, "squaredcos_cap_v2")
        raise _unknown(where, "a known noise schedule", "beta_schedule", form, expected)
    if not all(isinstance(x, (int, float)) for x in (first, last)) or not 0 < first <= last < 1:
        raise DataError(
            f"{where}: expected 0 < beta_start <= beta_end < 1, got {first!r:.40} and "
            f"{last!r:.40}; restore the file from its source"
        )
    return makers[form](float(first), float(last), **grid)


def _unknown(where: Path, expected: str, option: str, value: Any, known: Any) -> DataError:
    listed = ", ".join(map(str, known))
    return DataError(
        f"{where}: expected {expected} ({option}: {listed}), got {option} {value!r:.60}; a model "
        "with another scheduler is not supported"
    )
