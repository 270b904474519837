"""Any objective with any prior: every combination of docs/guide/combinations.md runs once."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.config import parse_overrides
from kdistill.keys import generator as keyed
from kdistill.methods.composition import PIXEL_FAMILIES
from kdistill.priors.network_files import save_generator
from kdistill.priors.stylegan import new_stylegan2
from tests.methods.test_generator_methods import TINY as GAN
from tests.priors.original_files import rng
from tests.priors.test_hglad import ALIGNED, FLAT
from tests.priors.tiny_diffusion import tiny_diffusion

PAGE = Path(__file__).parents[2] / "docs/guide/combinations.md"
CLASSES = 3
PAIR = {"batch_real": 4}
ROUND = {**PAIR, "outer_steps": 1, "inner_epochs": 1}
CURRICULUM = {**ALIGNED, "add_until": 1, "score_nets": 1, "score_epochs": 1}
OBJECTIVES = {
    "dm": PAIR, "dc": ROUND, "dsa": ROUND, "mtt": FLAT, "tesla": FLAT, "ftd": FLAT,
    "datm": ALIGNED, "pad": CURRICULUM,
}  # fmt: skip
SMALL = {"iterations": 1, "width": 4, "strategy": "none", "init": "real"}
RENDERED = {"chunk": 3, "n_avg": 4}
PRIORS = {
    "glad": {**RENDERED, "layer": 1},
    "hglad": {**RENDERED, "iterations": 5, "check_every": 1, "num_nets": 1, "net_epochs": 1},
    "ld3m": {"steps": 2, "chunk": 3},
    "dim": {**GAN, "gan_iterations": 0},
}


def listed():
    """Return the priors' commands and the objectives of the page's tables."""
    text = PAGE.read_text()
    commands = re.findall(r"^    (kdistill distill .*)$", text, flags=re.M)
    objectives = re.findall(r"^\| `(\w+)` \|", text, flags=re.M)
    return [shlex.split(command) for command in commands], objectives


COMMANDS, NAMES = listed()


def option(words, flag):
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


@pytest.fixture(scope="module")
def data():
    images = torch.rand(24, 8, 8, 1, generator=keyed(1)).numpy()
    return kdistill.load_data((images, (torch.arange(24) % CLASSES).numpy()), test=0, quiet=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Untrained generators of 8x8 grey images, by the method that takes them."""
    gan = new_stylegan2(
        size=8, channels=1, classes=CLASSES, generator=rng(), z_dim=8, w_dim=8, channel_max=8
    )
    made = [("gan", gan), ("diffusion", tiny_diffusion(classes=CLASSES))]
    paths = {name: str(save_generator(x, tmp_path_factory.mktemp(name))) for name, x in made}
    return {"glad": paths["gan"], "hglad": paths["gan"], "ld3m": paths["diffusion"]}


@pytest.fixture(autouse=True)
def shared_cache(tmp_path_factory, monkeypatch):
    # experts are trained once for each objective
    folder = tmp_path_factory.getbasetemp() / "combinations-cache"
    monkeypatch.setenv("KDISTILL_CACHE", str(folder))


def test_the_page_lists_every_method_on_pixels_and_every_prior():
    on_pixels = {n for n in methods.names() if methods.get(n).family in PIXEL_FAMILIES}
    assert set(NAMES) == on_pixels == set(OBJECTIVES)
    assert [option(words, "--method")[0] for words in COMMANDS] == ["dm", *PRIORS]


@pytest.mark.parametrize("objective", NAMES)
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: option(words, "--method")[0])
def test_every_combination_runs(words, objective, data, folders):
    (name,), options = option(words, "--method"), parse_overrides(option(words, "--set"))
    if name == "dm":  # pixels: the objective is the method
        method, options = methods.get(objective), {**SMALL, **OBJECTIVES[objective]}
    else:
        method = methods.get(name)
        options |= {**SMALL, **PRIORS[name], "objective": objective}
        options |= {"objective_preset": "fast", "settings": OBJECTIVES[objective]}
        options.pop("generator", None)
        if name in folders:
            options["prior"] = folders[name]
    config = method.options("fast", options)
    problem = methods.calibrate(method.build(config, data, 1, 0, None))
    outcome = methods.optimize(problem)
    assert outcome.finished
    assert outcome.images.shape == (CLASSES, 1, 8, 8) and torch.isfinite(outcome.images).all()
    last = outcome.last.state
    first, then = (problem.prior.render(state, 0) for state in (problem.state, last))
    assert not torch.allclose(first, then, rtol=1e-4, atol=1e-4), "nothing was learned"
    soft = objective in ("datm", "pad")
    assert ("label_logits" in last) == soft
