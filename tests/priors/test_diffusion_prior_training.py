"""``train_prior(kind="diffusion")``: its folder, the guidance it chooses, what it refuses."""

import json
from dataclasses import dataclass, field

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.cli import app
from kdistill.data import ImageDataset, Split
from kdistill.errors import ConfigError, DataError
from kdistill.priors.diffusion import SamplerOptions
from kdistill.priors.diffusion.model_folder import load_diffusion_model
from kdistill.priors.training import QualityCheck, memorisation, nearest
from kdistill.priors.training.diffusion_kind import DIFFUSION, GUIDANCE
from kdistill.runner import CHECKPOINT
from tests.priors.tiny_trainings import TINY, TINY_DIFFUSION


def train(data, out, **how):
    options = {**TINY_DIFFUSION, **how.pop("options", {})}
    return kdistill.train_prior(data, out=out, kind="diffusion", options=options, quiet=True, **how)


def test_a_training_leaves_what_ld3m_takes(digits, tmp_path):
    out, rows = tmp_path / "prior", []
    made = train(digits, out, callbacks=[rows.append])
    assert [row.iteration for row in rows] == [10, 12]
    assert rows[-1].loss > 0.0
    metrics = json.loads((out / "metrics.json").read_text())
    tried = {float(scale): x for scale, x in metrics["guidance_tried"].items()}
    assert tuple(tried) == GUIDANCE
    assert metrics["guidance"] == max(tried, key=tried.get)
    assert tried[metrics["guidance"]] == metrics["generated_validation"]
    assert metrics["images_per_second"] > 0.0
    loaded = load_diffusion_model(out)
    assert loaded.sampler.guidance == metrics["guidance"]
    labels = torch.tensor([3, 1])
    assert torch.equal(loaded.sample(labels, 0), made.generator.sample(labels, 0))
    text = (out / "README.md").read_text()
    assert "--method ld3m" in text and "chosen on the held-out images" in text
    assert f"{metrics['memorisation']['generated_median']:.3f}" in text
    options = {"prior": str(out), "iterations": 1, "steps": 1, "width": 4}
    small = kdistill.distill(digits, method="ld3m", ipc=1, options=options, quiet=True)
    assert small.images.shape == (10, 1, 8, 8)


def test_a_stopped_training_resumes_to_the_same_weights(digits, tmp_path):
    whole = train(digits, tmp_path / "whole").generator
    part = train(digits, tmp_path / "part", max_minutes=0)
    assert not part.finished and part.iterations == 1
    resumed = train(digits, tmp_path / "part", resume=True, options={"steps": 3})
    for name, x in whole.tensors.items():
        assert torch.equal(x, resumed.generator.tensors[name]), name
    assert resumed.generator.sampler.steps == 3


def test_without_held_out_images_there_is_no_guidance(digits, tmp_path):
    made = train(digits, tmp_path / "prior", validation=0.0, options={"iterations": 1})
    assert made.generator.sampler.guidance == 1.0
    text = (tmp_path / "prior/README.md").read_text()
    assert "no held-out images to choose it on" in text
    assert "Not measured: no real images were held out" in text


def test_a_training_of_the_other_kind_is_not_resumed(digits, tmp_path):
    train(digits, tmp_path / "prior", options={"iterations": 1})
    with pytest.raises((ConfigError, DataError), match="resume: expected"):
        kdistill.train_prior(digits, out=tmp_path / "prior", options=TINY, resume=True)
    assert (tmp_path / "prior" / CHECKPOINT).exists()


def test_an_unknown_kind_and_odd_sides_are_refused(digits, tmp_path):
    with pytest.raises(ConfigError, match="kind: expected one of gan, diffusion, got 'diffuson'"):
        kdistill.train_prior(digits, out=tmp_path / "prior", kind="diffuson")
    images = torch.rand(60, 1, 9, 9)
    data = kdistill.load_data((images, torch.arange(60) % 2), quiet=True)
    with pytest.raises(ConfigError, match="patch: expected a divisor of the side 9"):
        train(data, tmp_path / "prior")
    assert not (tmp_path / "prior").exists()


def test_the_command_trains_a_diffusion_model(tmp_path):
    out = tmp_path / "prior"
    tiny = [f"--set={name}={value}" for name, value in TINY_DIFFUSION.items() if name != "widths"]
    arguments = ["prior", "train", "digits", "--kind", "diffusion", "--out", str(out), *tiny]
    shown = CliRunner().invoke(app, [*arguments, "--set", "widths=[8]", "--quiet"])
    assert shown.exit_code == 0, shown.output
    assert "generated images alone" in shown.output and str(out / "samples.png") in shown.output
    listed = CliRunner().invoke(app, ["options", "prior"]).output
    assert "--kind gan" in listed and "--kind diffusion" in listed and "label_dropout" in listed


def test_the_guidance_is_that_of_the_best_held_out_accuracy():
    @dataclass(frozen=True)
    class Model:
        """Images that are right at guidance 1.4 alone."""

        guidance: float = 1.0
        config: dict = field(default_factory=dict)
        sampler = SamplerOptions(3)

        def sampling(self, guidance):
            return Model(guidance)

        def sample(self, labels, key):
            shown = labels if self.guidance == 1.4 else 1 - labels
            return shown.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()

    labels = torch.arange(60) % 2
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    split = Split(images, labels)
    data = ImageDataset(train=split, test=split, classes=("black", "white"))
    spec = DIFFUSION.spec(quality_images=60, quality_steps=40, quality_width=8)
    measured = DIFFUSION.measure(Model(), QualityCheck(spec, data, split))
    assert measured.record["guidance_tried"] == {"1": 0.0, "1.4": 1.0, "2": 0.0}
    assert measured.record["guidance"] == measured.generator.config["guidance"] == 1.4
    assert measured.quality.generated_test == 1.0


def test_nearest_images_are_those_of_a_direct_search():
    random = torch.Generator().manual_seed(0)
    training, images = (torch.rand(n, 2, 3, 3, generator=random) for n in (20, 300))
    distances, rows = nearest(images, training)
    squares = (images[:, None] - training[None]).square().mean((2, 3, 4))
    torch.testing.assert_close(distances, squares.min(1).values.sqrt())
    assert torch.equal(rows, squares.argmin(1))


def test_a_model_that_copies_is_called_one():
    random = torch.Generator().manual_seed(0)
    training, held_out, fresh = (torch.rand(200, 1, 4, 4, generator=random) for _ in range(3))
    honest = memorisation(fresh, training, held_out)
    assert honest.near_share < 0.05 and "no sign of copies" in honest.described()
    copies = torch.cat([training[:100], fresh[:100]])
    copied = memorisation(copies, training, held_out)
    assert copied.near_share > 0.4 and "the model copies" in copied.described()
    close = memorisation(0.6 * training + 0.4 * fresh, training, held_out)
    assert close.generated_median < honest.generated_median
    assert memorisation(fresh, training, held_out[:0]) is None
