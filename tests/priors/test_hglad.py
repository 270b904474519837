"""hglad: the search goes through every stage to pixels and keeps copies of the best states."""

import json
from io import BytesIO
from itertools import pairwise

import pytest
import torch
from PIL import Image
from safetensors.torch import load
from typer.testing import CliRunner

import kdistill
from kdistill import methods
from kdistill.api.plan import plan
from kdistill.api.run import resolve
from kdistill.artifacts.snapshots import snapshot_iterations
from kdistill.cli import app
from kdistill.errors import ConfigError, DataError, NonFiniteError
from kdistill.methods.distillation import Distillation
from kdistill.methods.stages import stage_ends
from kdistill.priors import PIXELS
from kdistill.priors.network_files import save_generator
from kdistill.priors.stylegan import new_stylegan2
from tests.priors.original_files import rng, tiny_stylegan2
from tests.priors.test_glad import MTT

STAGES = ["W", "F1", "F2", "F3", "pixels"]
SMALL = {
    "iterations": 20,
    "width": 4,
    "objective_preset": "fast",
    "n_avg": 20,
    "settings": {"batch_real": 8},
    "check_every": 2,
    "num_nets": 2,
    "net_epochs": 1,
    "lr_f": 1.0,
}
DM: dict[str, object] = {}
DC = {"objective": "dc", "settings": {"batch_real": 8, "outer_steps": 1}, "lr_w": 1e-3}
FTD = {**MTT, "objective": "ftd"}
FLAT = {
    "syn_steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "num_experts": 1,
    "batch_syn": None,
}
ALIGNED = {**FLAT, "first_max_start_epoch": 1, "expand_until": 5, "expert_length": None}
DATM = {**MTT, "objective": "datm", "settings": ALIGNED}
PAD = {
    **MTT,
    "objective": "pad",
    "settings": {**ALIGNED, "add_until": 1, "score_nets": 1, "score_epochs": 1},
}
DSA = {**DC, "objective": "dsa"}
TESLA = {**MTT, "objective": "tesla"}


@pytest.fixture(scope="module")
def digits():
    data = kdistill.load_data("digits", quiet=True)
    rows = torch.cat([(data.train.labels == k).nonzero()[:12, 0] for k in range(10)])
    return kdistill.load_data((data.train.images[rows], data.train.labels[rows]), quiet=True)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A folder with an untrained generator of 8x8 grey images of ten classes and three layers."""
    generator = new_stylegan2(
        size=8, channels=1, classes=10, generator=rng(), z_dim=8, w_dim=8, channel_max=8
    )
    return str(save_generator(generator, tmp_path_factory.mktemp("prior")))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "hglad-cache"))


def run(digits, folder, ipc=1, given=None, **options):
    return kdistill.distill(
        digits,
        method="hglad",
        ipc=ipc,
        options={**SMALL, "prior": folder, **options},
        **(given or {}),
    )


def build(digits, folder, **options):
    config = resolve("hglad", "fast", {**SMALL, "prior": folder, **options})
    return methods.calibrate(methods.get("hglad").build(config, digits, 1, 0, None))


def snapshots(problem):
    """Return the snapshot after every step of the run."""
    task = Distillation(problem)
    states = [task.start()]
    with torch.no_grad():
        while states[-1].iteration < problem.iterations:
            states.append(task.iterate(states[-1])[0])
    return states[1:]


def test_the_search_goes_through_every_space_down_to_pixels(digits, prior):
    problem = build(digits, prior)
    assert tuple(stage.end for stage in problem.stages.stages) == (4, 8, 12, 16, 20)
    found = snapshots(problem)
    assert [problem.prior.depth(s.state) for s in found] == [None] * 3 + [1] * 4 + [2] * 4 + [
        3
    ] * 4 + [PIXELS] * 5
    for before, after in pairwise(found):  # what is live is what the steps move
        assert set(after.opt_state) == {f"velocity.{name}" for name in after.state}
        if (
            problem.prior.depth(before.state) == problem.prior.depth(after.state)
            and after.iteration < 20
        ):
            assert all(
                not torch.equal(before.state[n], after.state[n]) for n in after.state if n != "ws"
            )
    assert not torch.equal(found[4].state["ws"], found[5].state["ws"])


def test_what_is_kept_are_copies_and_a_stage_goes_on_from_its_best(digits, prior, monkeypatch):
    values = iter(
        [9.0, 5.0, 3.0, 4.0, 7.0, 1.0, 2.0, 6.0, 8.0, 6.5, 0.5]
    )  # the start, then two looks a stage
    problem = build(digits, prior)
    monkeypatch.setattr(
        problem.stages.distance.__class__, "__call__", lambda self, images: next(values)
    )
    found = snapshots(problem)
    state = {s.iteration: s.state for s in found}
    memory = {s.iteration: s.memory for s in found}
    at_look = problem.prior.descend(
        {n: x for n, x in state[10].items() if n in ("ws", "f.2")}, 3, 10
    )
    assert torch.equal(
        state[12]["f.3"], at_look["f.3"]
    )  # F2: 1.0 at iteration 10 was better than 2.0 at 12
    assert not torch.equal(state[10]["f.2"], state[11]["f.2"])
    kept = memory[11].best.state["f.2"]
    assert torch.equal(kept, state[10]["f.2"])
    assert kept.data_ptr() != state[10]["f.2"].data_ptr()
    assert torch.equal(memory[12].winner.state["f.2"], kept)
    assert not any(x.any() for x in found[11].opt_state.values())  # momentum starts afresh
    assert (
        problem.prior.depth(problem.stages.result(state[19], memory[19])) == 2
    )  # 1.0 against 6.0 in F3 and 6.5 so far in pixels
    assert problem.prior.depth(problem.stages.result(state[20], memory[20])) == PIXELS
    assert torch.equal(problem.stages.result(state[20], memory[20])["images"], state[20]["images"])
    metrics = problem.stages.findings(memory[20]).metrics
    assert [row["stage"] for row in metrics["best"]] == STAGES
    assert [row["distance"] for row in metrics["best"]] == [3.0, 4.0, 1.0, 6.0, 0.5]
    assert [row["iteration"] for row in metrics["best"]] == [4, 6, 10, 14, 20]
    assert [pair[0] for pair in metrics["distance"]] == list(range(0, 21, 2))


def test_a_copy_outlives_changes_in_place(digits, prior):
    problem = build(digits, prior)
    state = {**problem.state}
    _, memory = problem.stages.walk(2, state, problem.stages.begin(state), ())
    kept = memory.best.state["ws"].clone()
    state["ws"].add_(1.0)
    assert torch.equal(memory.best.state["ws"], kept)


def test_the_result_is_the_nearest_of_all_looks(digits, prior):
    small = run(digits, prior)
    search = small.metrics["search"]
    chosen = next(row for row in search["best"] if row["stage"] == search["chosen"])
    later = [distance for iteration, distance in search["distance"] if iteration]
    assert chosen["distance"] == min(later)
    problem = build(digits, prior)
    seen = digits.holdout(0.1)[0]
    measure = (
        methods.get("hglad")
        .build(resolve("hglad", "fast", {**SMALL, "prior": prior}), seen, 1, 0, None)
        .stages.distance
    )
    assert measure(small.transform.apply(small.images)) == pytest.approx(
        chosen["distance"], rel=1e-4
    )
    assert [stage.name for stage in problem.stages.stages] == STAGES


def test_the_last_stage_can_be_asked_for(digits, prior):
    small = run(digits, prior, choose="last")
    assert small.metrics["search"]["chosen"] == "pixels"


def test_the_whole_path_is_in_the_artefact(digits, prior, tmp_path):
    run(digits, prior, given={"out": tmp_path})
    small = kdistill.DistilledDataset.from_pretrained(tmp_path)
    path, search = load(small.files["path.safetensors"]), small.metrics["search"]
    assert path["images"].shape == (6, 10, 1, 8, 8)
    assert path["iterations"].tolist() == [0, *(row["iteration"] for row in search["best"])]
    row = 1 + STAGES.index(search["chosen"])
    torch.testing.assert_close(path["images"][row], small.images, rtol=1e-5, atol=1e-6)
    picture = Image.open(BytesIO((tmp_path / "filmstrip.png").read_bytes()))
    assert picture.width > 500
    assert picture.height > 6 * 34
    assert json.loads((tmp_path / "config.json").read_text())["prior"]["stages"] == STAGES


@pytest.mark.parametrize(
    "options", [{}, {"noise": "random"}, MTT, DC, FTD], ids=["dm", "noise", "mtt", "dc", "ftd"]
)
def test_a_resumed_run_has_the_same_bits(digits, prior, tmp_path, options):
    def stop(progress):
        if progress.iteration == 10:
            raise KeyboardInterrupt

    whole = run(digits, prior, given={"out": tmp_path / "whole", "snapshot_every": 7}, **options)
    with pytest.raises(KeyboardInterrupt):
        run(digits, prior, given={"out": tmp_path / "parts", "callbacks": [stop]}, **options)
    parts = run(digits, prior, given={"out": tmp_path / "parts", "resume": True}, **options)
    assert torch.equal(whole.images, parts.images)
    assert whole.metrics["search"] == parts.metrics["search"]
    assert snapshot_iterations(tmp_path / "whole")[0] == 7  # they change no bit
    assert whole.files == parts.files
    assert (whole.learned_lr is None) == (options not in (MTT, FTD))


@pytest.mark.parametrize("options", [DSA, TESLA, DATM, PAD], ids=["dsa", "tesla", "datm", "pad"])
@pytest.mark.parametrize("method", ["glad", "hglad"])
def test_every_objective_runs(digits, prior, method, options):
    if method == "hglad":
        small = run(digits, prior, **{"iterations": 5, **options})
        assert [row["stage"] for row in small.metrics["search"]["best"]] == STAGES
    else:
        shared = {
            name: x
            for name, x in SMALL.items()
            if name not in ("check_every", "num_nets", "net_epochs")
        }
        given = {**shared, "prior": prior, "layer": 2, "iterations": 2, **options}
        small = kdistill.distill(digits, method="glad", ipc=1, options=given)
    assert (small.label_logits is not None) == (options in (DATM, PAD))
    assert torch.isfinite(small.images).all()


def test_stages_end_where_every_step_is_skipped(digits, prior):
    small = run(
        digits, prior, **{**DATM, "iterations": 5, "settings": {**ALIGNED, "skip_above": 1e-9}}
    )
    assert small.metrics["distillation"]["skipped"] == 5
    assert [row["stage"] for row in small.metrics["search"]["best"]] == STAGES
    drawn = run(digits, prior, **{**DATM, "iterations": 0}).images
    torch.testing.assert_close(small.images, drawn, rtol=1e-4, atol=1e-4)


def test_from_the_generator_to_the_accuracy_of_the_set(prior, tmp_path):
    options = {**SMALL, "prior": prior, "iterations": 5}
    kdistill.distill("digits", method="hglad", ipc=1, options=options, out=tmp_path)
    given = ["--protocol", "quick", "--nets", "1", "--baselines", "random"]
    told = CliRunner().invoke(app, ["evaluate", str(tmp_path), *given])
    assert told.exit_code == 0, told.output
    assert "hglad" in told.output
    small = kdistill.DistilledDataset.from_pretrained(tmp_path)
    assert {"evaluation", "search"} <= set(small.metrics)
    assert set(small.files) == {"filmstrip.png", "path.safetensors"}


def test_a_run_that_runs_out_of_time_gives_its_best_so_far(digits, prior):
    small = run(digits, prior, given={"max_minutes": 0})
    search = small.metrics["search"]
    assert small.metrics["distillation"]["iterations"] == 10
    assert [row["stage"] for row in search["best"]] == ["W", "F1", "F2"]
    assert search["chosen"] in ("W", "F1", "F2")
    first = run(digits, prior, iterations=0)
    assert first.metrics["search"]["best"] == []


@pytest.mark.parametrize(
    "options", [{"nets": "random"}, {"layers": "last"}, {"weighting": "none"}, {"stride": 2}]
)
def test_every_form_runs(digits, prior, options):
    small = run(digits, prior, **{"iterations": 5, **options})
    assert [row["stage"] for row in small.metrics["search"]["best"]] == (
        ["W", "F1", "F3", "pixels"] if "stride" in options else STAGES
    )


@pytest.mark.parametrize(("method", "share"), [(DM, 0.03), (DSA, 0.01)], ids=["dm", "dsa"])
def test_every_stage_has_a_learning_rate_that_was_found_for_it(digits, prior, method, share):
    problem = build(
        digits, prior, iterations=5, **{**method, "lr_f": None, "lr_w": None, "strategy": "none"}
    )
    rates, state = problem.optimizer.learning_rates(), problem.state
    assert set(rates) == {"ws", "f.1", "f.2", "f.3", "images"}
    images = problem.prior.render(state, 0)
    grad_images = problem.objective(0, images, state).grad_images
    for stage in (None, 1, 2, 3):
        state = state if stage is None else problem.prior.descend(state, stage, 0)
        name = "ws" if stage is None else f"f.{stage}"
        grads = problem.prior.vjp(state, grad_images, 0)
        moved = (
            problem.prior.render({**state, name: state[name] - rates[name] * grads[name]}, 0)
            - images
        )
        assert (
            0.4 * share < float(moved.norm() / images.norm()) < 2.5 * share
        )  # the mean of three draws, here one of them


def test_learning_rates_that_are_named_are_kept(digits, prior):
    named = run(digits, prior, iterations=5, lr_f=2.0, lr_w=3.0).metrics["distillation"][
        "learning_rates"
    ]
    assert {name: rate for name, rate in named.items() if name != "images"} == {"ws": 3.0, "f": 2.0}


def test_stages_of_a_given_length(digits, prior):
    assert build(digits, prior, stage_iterations=3).iterations == 15
    assert stage_ends(1000, 27)[-1] == 1000
    assert {b - a for a, b in pairwise((0, *stage_ends(1000, 27)))} == {37, 38}


@pytest.mark.parametrize("weighting", ["cam", "none"])
def test_the_networks_of_the_distance_are_made_once(
    digits, prior, tmp_path, monkeypatch, caplog, weighting
):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path))
    problem = build(digits, prior, weighting=weighting)
    images = problem.prior.render(problem.state, 0)
    measure = problem.stages.distance
    assert measure.distance is measure.distance
    (kept,) = (tmp_path / "distances").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("kdistill.methods.latent.hglad.train", None)
        again = build(
            digits, prior, weighting=weighting, objective="dc", lr_f=2.0, settings={}
        ).stages.distance
        assert again(images) == measure(images)
    kept.write_bytes(b"cut off")
    assert build(digits, prior, weighting=weighting).stages.distance(images) == measure(images)
    assert "the distance is made again" in caplog.text
    build(digits, prior, weighting=weighting, net_epochs=2).stages.distance(images)
    assert len({path.name for path in (tmp_path / "distances").glob("*.safetensors")}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"iterations": 4},
            "at least one for each of the 5 stages, got 4; raise it, or take fewer layers with "
            "stride",
        ),
        ({"objective": "glad"}, "expected a method on pixels, got 'glad'"),
        ({"objective": "hglad"}, "expected a method on pixels, got 'hglad'"),
        ({"prior": ""}, "expected the folder of a generator, got none"),
        ({"nets": "learned"}, "nets: expected one of .*, got 'learned'"),
        ({"layers": "first"}, "layers: expected one of"),
        ({"weighting": "cams"}, "weighting: expected one of .*; did you mean 'cam'"),
        ({"choose": "validation"}, "choose: expected one of"),
        ({"stride": 0}, "stride: expected at least 1"),
        ({"check_every": 0}, "check_every: expected at least 1"),
        ({"layer": 3}, "did you mean 'layers'"),
    ],
)
def test_bad_options_are_refused(digits, prior, options, message):
    with pytest.raises(ConfigError, match=message):
        run(digits, prior, **options)


def test_a_generator_of_other_images_is_refused_until_it_is_mapped(digits, tmp_path):
    folder = str(save_generator(tiny_stylegan2(), tmp_path))
    mapping = {"classes": tuple(k % 3 for k in range(10)), "channels": "convert", "resize": True}
    for missing, message in (
        ("classes", "the data's 10 classes, got one of 3; say which of its classes"),
        ("channels", "the data's 1 channels, got one of 3; set channels='convert'"),
        ("resize", "the data's size 8x8, got one of 16x16; load the data with size=16"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(
                digits,
                folder,
                **{name: value for name, value in mapping.items() if name != missing},
            )
    assert run(digits, folder, iterations=7, **mapping).images.shape == (10, 1, 8, 8)


def test_images_to_begin_with_are_refused(digits, prior):
    with pytest.raises(ConfigError, match="init: expected no images to begin with"):
        run(digits, prior, given={"init": run(digits, prior, iterations=0)})


def test_latents_that_blow_up_are_named_and_the_last_good_state_is_kept(digits, prior, tmp_path):
    with pytest.raises(
        NonFiniteError,
        match=r"distance .* lower lr_f, lr_w .*\(now at stage F1\).*; iteration 0 is saved",
    ):
        run(digits, prior, lr_f=1e38, given={"out": tmp_path})


def test_presets_and_plan(digits, prior):
    for preset in methods.get("hglad").presets:
        resolve("hglad", preset, {})
    assert plan(digits, method="hglad", ipc=1, options={**SMALL, "prior": prior, **MTT}).seconds > 0


def test_files_of_an_artefact(digits, prior, tmp_path):
    small = run(digits, prior, iterations=0)
    with pytest.raises(DataError, match=r"got 'config.json'; rename it"):
        kdistill.DistilledDataset(
            images=small.images, labels=small.labels, files={"config.json": b""}
        )
    with pytest.raises(DataError, match=r"got '\.\./a'; rename it"):
        kdistill.DistilledDataset(images=small.images, labels=small.labels, files={"../a": b""})
    small.save_pretrained(tmp_path)
    assert kdistill.DistilledDataset.from_pretrained(tmp_path).files == small.files
    (tmp_path / "filmstrip.png").write_bytes(b"other")
    with pytest.raises(DataError, match=r"filmstrip.png: expected \d+ bytes, got 5"):
        kdistill.DistilledDataset.from_pretrained(tmp_path)
    kdistill.DistilledDataset(images=small.images, labels=small.labels).save_pretrained(
        tmp_path
    )  # takes their place
    assert not (tmp_path / "filmstrip.png").exists()
    assert not (tmp_path / "path.safetensors").exists()
