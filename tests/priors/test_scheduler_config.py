"""The noise schedule of a folder is that of diffusers' scheduler, or is refused."""

from pathlib import Path

import pytest
import torch

from kdistill.errors import DataError
from kdistill.priors.diffusion.pretrained.scheduler_config import PREDICTIONS, read_schedule
from kdistill.priors.diffusion.pretrained.weights import read_json

WHERE = Path("scheduler/scheduler_config.json")
SCHEDULES = {
    "DiT": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "latent diffusion": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
    "short": {"num_train_timesteps": 200, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_and_grid_are_those_of_diffusers(name, tmp_path):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(clip_sample=False, **SCHEDULES[name])
    theirs.save_pretrained(tmp_path)
    schedule, prediction = read_schedule(read_json(tmp_path / WHERE.name), WHERE)
    torch.testing.assert_close(
        schedule.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-7
    )
    assert schedule.final == pytest.approx(float(theirs.final_alpha_cumprod))
    assert prediction == PREDICTIONS[theirs.config.prediction_type]
    for steps in (1, 5, 10, 20, 50):
        theirs.set_timesteps(steps)
        assert schedule.grid(steps) == theirs.timesteps.flip(0).tolist()


def test_a_bare_configuration_has_the_defaults_of_diffusers():
    from diffusers import DDIMScheduler

    bare = {"_class_name": "DDIMScheduler", "clip_sample": False}
    schedule, prediction = read_schedule(bare, WHERE)
    theirs = DDIMScheduler(clip_sample=False)
    torch.testing.assert_close(
        schedule.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-7
    )
    assert (schedule.final, prediction, schedule.offset) == (1.0, "epsilon", 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, r"got _class_name 'FlowMatchEuler"),
        ({"_class_name": None}, r"got _class_name None"),
        ({"beta_schedule": "sigmoid"}, r"known noise schedule .*, got beta_schedule 'sigmoid'"),
        ({"prediction_type": "flow"}, r"got prediction_type 'flow'"),
        ({"clip_sample": True}, r"neither clipped nor rescaled .*, got clip_sample True"),
        ({"thresholding": True}, r"got thresholding True"),
        ({"trained_betas": [0.1, 0.2]}, r"got trained_betas \[0\.1, 0\.2\]"),
        ({"rescale_betas_zero_snr": True}, r"got rescale_betas_zero_snr True"),
        ({"timestep_spacing": "linspace"}, r"got timestep_spacing 'linspace'"),
        ({"steps_offset": 5}, r"got steps_offset 5"),
        ({"num_train_timesteps": 0}, r"1 to 100,000\), got num_train_timesteps 0"),
        ({"num_train_timesteps": 10**9}, r"got num_train_timesteps 1000000000"),
        ({"beta_end": 2.0}, r"expected 0 < beta_start <= beta_end < 1, got 0\.0001 and 2\.0"),
        ({"beta_start": "a"}, r"expected 0 < beta_start"),
        ({"prediction_type": ["epsilon"]}, r"got prediction_type \['epsilon'\]"),
        ({"beta_schedule": {}}, r"got beta_schedule \{\}"),
    ],
)
def test_another_schedule_is_refused(changes, said):
    config = {"_class_name": "DDIMScheduler", "clip_sample": False, **changes}
    with pytest.raises(DataError, match=said):
        read_schedule(config, WHERE)


def test_a_scheduler_without_clipping_needs_no_option_for_it():
    schedule, _ = read_schedule({"_class_name": "PNDMScheduler"}, WHERE)
    assert schedule.timesteps == 1000
