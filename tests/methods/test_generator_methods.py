"""``dim`` and ``global_local``: exact gradients, stages, resuming, the same bits."""

from dataclasses import fields, replace

import pytest
import torch
from torch.nn import functional as F

import kdistill
from kdistill import methods
from kdistill.augment import Augment
from kdistill.engine import build_student
from kdistill.engine.students import STUDENTS
from kdistill.errors import ConfigError, NonFiniteError
from kdistill.keys import generator as keyed
from kdistill.keys import make_key, permutation
from kdistill.methods.generator.network_pool import narrowed
from kdistill.objectives.network_matching import compared_parameters
from kdistill.priors.conditional_gan import FILE, to_bytes
from kdistill.runner import Checkpoints

TINY = {
    "iterations": 2, "gan_iterations": 2, "generator_width": 4, "critic_width": 4, "noise": 5,
    "label_embedding": 3, "gan_batch": 8, "batch_size": 6, "width": 4, "net_steps": 1,
    "net_batch": 8, "epoch_iterations": 2, "lr_gan": 1e-2, "lr_match": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    """24 images of 3 classes, 8 by 8."""
    images = torch.rand(24, 8, 8, 1, generator=keyed(1))
    return kdistill.load_data((images.numpy(), (torch.arange(24) % 3).numpy()), test=0, quiet=True)


def problem_of(data, name="dim", ipc=2, **options):
    method = methods.get(name)
    config = method.options("paper", {**TINY, **options})
    return methods.calibrate(method.build(config, data, ipc, 0, None))


def double(problem):
    return {name: x.double() for name, x in problem.state.items()}


def in_double(data):
    train = replace(data.train, images=data.train.images.double())
    return replace(data, train=train)


def generated(problem, state, iteration):
    """The images of an iteration with the graph of all weights: plain autograd of the whole."""
    prior = problem.prior
    leaves = {n: x.clone().requires_grad_() for n, x in prior.tensors(state).items()}
    labels = prior.labels(iteration)
    z = torch.randn(
        len(labels), 5, generator=keyed(make_key(make_key(prior.key, "noise", iteration), "z"))
    )
    count = -(-len(labels) // prior.chunk)
    images = torch.empty(len(labels), 1, 8, 8).double()
    for first in range(count):  # every chunk takes each count-th image
        images[first::count] = forward(leaves, z[first::count].double(), labels[first::count])
    return images, labels, leaves


def forward(leaves, z, labels):
    """The generator of 8 pixels, written out, with the statistics of the batch."""

    def norm(x, name):
        dims = [0, *range(2, x.ndim)]
        mean, var = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
        scale, shift = (
            leaves[f"{name}.{k}"].view(1, -1, *[1] * (x.ndim - 2)) for k in ("scale", "shift")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * scale + shift).relu()

    x = norm(torch.cat([z, leaves["labels"][labels]], 1) @ leaves["input.weight"].T, "input")
    x = F.conv_transpose2d(x.view(-1, 4, 4, 4), leaves["layers.0.weight"], stride=2, padding=1)
    x = norm(x, "layers.0")
    for i in (1, 2, 3):
        x = norm(F.conv2d(x, leaves[f"layers.{i}.weight"], padding=1), f"layers.{i}")
    return torch.tanh(F.conv2d(x, leaves["image.weight"], leaves["image.bias"], padding=1))


def judged(tensors, x):
    """The critic, written out: 8 pixels are halved once, by the second convolution."""
    for i in range(8):
        x = F.conv2d(x, tensors[f"convs.{i}.weight"], tensors[f"convs.{i}.bias"], 1 + (i == 1), 1)
        mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), unbiased=False, keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt()
        x = F.leaky_relu(x * tensors[f"norms.{i}.scale"] + tensors[f"norms.{i}.shift"], 0.01)
    x = F.max_pool2d(x, 4).flatten(1)
    return (x @ tensors["source.weight"].T + tensors["source.bias"])[:, 0], (
        x @ tensors["classes.weight"].T + tensors["classes.bias"]
    )


def critic_step(problem, state, iteration, real, fake, labels):
    """Adam without momentum on the critic's loss with its penalty, from plain autograd."""
    names = [n for n in state if n.startswith("critic.")]
    leaves = {n.removeprefix("critic."): state[n].clone().requires_grad_() for n in names}
    (on_real, real_logits), (on_fake, fake_logits) = judged(leaves, real), judged(leaves, fake)
    place = torch.rand(len(real), 1, 1, 1, generator=keyed(make_key(0, "penalty", iteration)))
    between = (fake + place.double() * (real - fake)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(judged(leaves, between)[0].sum(), between, create_graph=True)
    loss = on_fake.mean() - on_real.mean() + F.cross_entropy(fake_logits, labels)
    loss = loss + F.cross_entropy(real_logits, labels)
    penalty = ((slope.flatten(1).norm(dim=1) - 1.0) ** 2).mean()
    grads = torch.autograd.grad(loss + 10.0 * penalty, list(leaves.values()), allow_unused=True)
    after = {}
    for (name, x), grad in zip(leaves.items(), grads, strict=True):
        grad = torch.zeros_like(x) if grad is None else grad
        square = 0.9 * state[f"square.critic.{name}"] + 0.1 * grad**2
        root = (square / (1.0 - 0.9 ** (iteration + 1))).sqrt() + 1e-8
        after[name] = (x - 0.01 * grad / root).detach()
    return after


def matching_loss(match, student, theta, real, fake, labels):
    """The three losses of stage 2, from the student's differentiable calls."""
    if match == "logits":
        gap = student.apply(theta, real).log_softmax(1) - student.apply(theta, fake).log_softmax(1)
        return 0.01 * (gap**2).sum() / gap.numel()
    if match == "features":
        pairs = zip(*(student.features(theta, x, "all") for x in (real, fake)), strict=True)
        return 0.001 * sum((a.mean(0) - b.mean(0)).abs().sum() for a, b in pairs)
    theta = theta.clone().requires_grad_()
    grads = [
        torch.autograd.grad(
            F.cross_entropy(student.apply(theta, x), labels), theta, create_graph=True
        )[0]
        for x in (real, fake)
    ]
    pairs = zip(*(student.unflatten(g) for g in grads), student.slots, strict=True)
    return 0.001 * sum((a.detach() - b).abs().sum() for a, b, slot in pairs if len(slot.shape) == 4)


@pytest.mark.parametrize("match", ["logits", "features", "gradients"])
def test_the_gradient_is_that_of_the_whole_loss(data, match):
    """Batch statistics, the critic after its step, the pool's network, augmentation: float64."""
    data = in_double(data)
    problem = problem_of(
        data, match=match, gan_iterations=0, strategy="crop", pool=["convnet"], chunk=64
    )
    state = double(problem)
    images = problem.prior.render(state, 0)
    step = problem.objective(0, images, state)
    grads = problem.prior.vjp(state, step.grad_images, 0)

    fake, labels, leaves = generated(problem, state, 0)
    normalised = data.transform.apply((fake + 1.0) / 2.0)
    torch.testing.assert_close(images, normalised.detach())
    rows = problem.objective.__self__.rows(0)
    assert torch.equal(data.train.labels[rows], labels)
    real = 2.0 * data.train.images[rows] - 1.0
    critic = critic_step(problem, state, 0, real, fake.detach(), labels)
    for name, x in critic.items():
        torch.testing.assert_close(step.updates[f"critic.{name}"], x, rtol=1e-6, atol=1e-9)
    source, class_logits = judged(critic, fake)
    loss = F.cross_entropy(class_logits, labels) - source.mean()

    student = build_student("convnet", channels=1, size=8, classes=3, width=4)
    theta = step.updates["pool.parameters"]
    augment = Augment("crop", siamese=True, key=make_key(0, "augment"), align_corners=False)
    real, seen = augment(data.transform.apply(data.train.images[rows]), 0), augment(normalised, 0)
    loss = loss + matching_loss(match, student, theta, real, seen, labels)
    torch.testing.assert_close(step.loss, loss.detach())
    expected = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for (name, x), grad in zip(leaves.items(), expected, strict=True):
        grad = torch.zeros_like(x) if grad is None else grad
        torch.testing.assert_close(grads[f"generator.{name}"], grad, rtol=1e-6, atol=1e-9)


def test_the_network_of_the_pool_learns_by_sgd_with_momentum(data):
    """Two iterations of stage 2 against plain autograd, from the keyed rows."""
    problem = problem_of(in_double(data), gan_iterations=0, strategy="none", pool=["lenet"])
    state = double(problem)
    student = build_student("lenet", channels=1, size=8, classes=3)
    theta = student.init(keyed(make_key(0, "pool network", 0))).double()
    velocity = torch.zeros_like(theta)
    for iteration in range(2):
        images = problem.prior.render(state, iteration)
        state |= problem.objective(iteration, images, state).updates
        rows = permutation(make_key(0, "pool rows", iteration), len(data.train))[:8]
        leaf = theta.clone().requires_grad_()
        real = data.transform.apply(data.train.images.double()[rows])
        loss = F.cross_entropy(student.apply(leaf, real), data.train.labels[rows])
        (grad,) = torch.autograd.grad(loss, leaf)
        velocity = 0.9 * velocity + grad + 5e-4 * theta
        theta = theta - 0.01 * velocity
        torch.testing.assert_close(state["pool.parameters"], theta)
        torch.testing.assert_close(state["pool.momentum"], velocity)


def test_chunks_are_batches_of_their_own_and_their_gradient_is_exact(data):
    """Against plain autograd, for chunks of two, three or four, and for one chunk."""
    for chunk in (2, 4, 64):
        problem = problem_of(data, chunk=chunk)
        state, prior = double(problem), problem.prior
        fake, _, leaves = generated(problem, state, 1)
        images = data.transform.apply((fake + 1.0) / 2.0)
        torch.testing.assert_close(prior.render(state, 1), images.detach())
        cotangent = torch.randn(images.shape, generator=keyed(3)).double()
        expected = torch.autograd.grad(images, list(leaves.values()), cotangent)
        grads = prior.vjp(state, cotangent, 1)
        for name, grad in zip(leaves, expected, strict=True):
            torch.testing.assert_close(grads[f"generator.{name}"], grad, rtol=1e-6, atol=1e-9)
        assert torch.equal(prior.render(state, 1), prior.render(state, 1))
    with pytest.raises(ConfigError, match="chunk: expected at least 2, got 1; batch norm"):
        problem_of(data, chunk=1)


@pytest.mark.parametrize("name", ["dim", "global_local"])
def test_without_matching_stage_2_is_the_update_of_stage_1(data, name):
    """The same batches and learning rates: the same bits, whatever the pool does meanwhile."""
    off = {"match_weight": 0.0} if name == "dim" else {"global_weight": 0.0, "local_weight": 0.0}
    one = problem_of(data, name, iterations=0, gan_batch=6)
    two = problem_of(data, name, gan_iterations=0, **off)
    results = [methods.optimize(problem).state for problem in (one, two)]
    learned = [n for n in results[0] if n.startswith(("generator.", "critic."))]
    assert len(learned) > 40
    for tensor in learned:
        assert torch.equal(results[0][tensor], results[1][tensor]), tensor
    start = problem_of(data, name).state
    assert not torch.equal(results[0]["generator.image.weight"], start["generator.image.weight"])


def test_generated_images_have_the_labels_of_the_real_batch(data):
    problem = problem_of(data, gan_iterations=3)
    rows, labels = problem.objective.__self__.rows, problem.prior.labels
    drawn = [rows(i) for i in range(8)]
    for iteration, batch in enumerate(drawn):
        assert torch.equal(labels(iteration), data.train.labels[batch])
        assert len(batch) == (8 if iteration < 3 else 6)
        assert torch.equal(rows(iteration), batch)
    assert len(torch.cat(drawn[:3]).unique()) == 24  # an epoch of stage 1
    assert len(torch.cat(drawn[3:7]).unique()) == 24  # one of stage 2


@pytest.mark.parametrize("name", ["dim", "global_local"])
def test_a_resumed_run_has_the_same_bits(data, name, tmp_path):
    """Stopped in either stage: weights, critic, network of the pool and all moments."""
    options = {"gan_iterations": 2, "iterations": 3, "ema_decay": 0.9, "pool": ["convnet", "lenet"]}
    whole = methods.optimize(problem_of(data, name, **options))
    for stop in (1, 3):
        problem, place = problem_of(data, name, **options), Checkpoints(tmp_path / f"{stop}")
        place.folder.mkdir()
        methods.optimize(replace(problem, iterations=stop), place)
        again = methods.optimize(problem, place, resume=True)
        for group in ("state", "opt_state"):
            theirs = getattr(again.last, group)
            for tensor, x in getattr(whole.last, group).items():
                assert torch.equal(x, theirs[tensor]), tensor


def test_the_product_is_a_generator_with_frozen_statistics(data):
    problem = problem_of(data, ema_decay=0.5)
    outcome = methods.optimize(problem)
    network = problem.generator(outcome.state)
    labels = torch.tensor([0, 1, 2, 2])
    images = network.sample(labels, 1)
    assert images.shape == (4, 1, 8, 8)
    torch.testing.assert_close(network.sample(labels[:2], 1), images[:2])
    averaged, last = network.tensors["image.weight"], outcome.last.state["generator.image.weight"]
    assert not torch.equal(averaged, last)
    assert torch.equal(averaged, outcome.last.opt_state["average.generator.image.weight"])
    assert torch.equal(network.critic["source.weight"], outcome.last.state["critic.source.weight"])


def test_the_terms_of_global_local_begin_at_their_weights(data):
    """Both are 1 at the first step, if a network serves no longer; a switch leaves one out."""
    for weights in ((1.0, 1.0), (0.5, 0.0), (0.0, 0.25)):
        problem = problem_of(
            data, "global_local", gan_iterations=0, adversarial=0.0, global_weight=weights[0],
            local_weight=weights[1], epoch_iterations=1,
        )  # fmt: skip
        images = problem.prior.render(problem.state, 0)
        step = problem.objective(0, images, problem.state)
        assert float(step.loss) == pytest.approx(sum(weights))
        scale = step.updates["match.scale"]
        assert scale.shape == (sum(w > 0 for w in weights),) and bool((scale > 0).all())
        later = problem.objective(1, images, {**problem.state, **step.updates})
        assert torch.equal(later.updates["match.scale"], scale)
        assert "critic.source.weight" not in step.updates


@pytest.mark.parametrize(
    "options",
    [{"pairing": "class_mean"}, {"feature_distance": "l1"}, {"layers": [0]}, {"normalise": False}],
    ids=str,
)
def test_every_switch_of_global_local_changes_the_gradient(data, options):
    steps = []
    for changes in ({}, options):
        problem = problem_of(
            data, "global_local", gan_iterations=0, depth=2, pool=["convnet"], **changes
        )
        images = problem.prior.render(problem.state, 0)
        steps.append(problem.objective(0, images, problem.state).grad_images)
    assert bool(torch.isfinite(steps[1]).all()) and not torch.allclose(*steps)


def test_every_network_of_the_zoo_serves_in_a_pool(data):
    """One iteration with each, under features and under gradients."""
    for student in STUDENTS:
        for match in ("features", "gradients"):
            problem = problem_of(data, match=match, gan_iterations=0, pool=[student])
            images = problem.prior.render(problem.state, 0)
            step = problem.objective(0, images, problem.state)
            assert bool(step.updates["pool.momentum"].any())
            assert bool(step.grad_images.any()) and bool(torch.isfinite(step.grad_images).all())
    assert [narrowed(x, 32) for x in ("convnet", "resnet18", "lenet", "vit")] == [32, 16, None, 32]


def test_the_pool_draws_another_network_every_epoch(data):
    options = {**TINY, "pool": ["convnet", "mlp", "lenet"], "epoch_iterations": 2}
    pool = methods.get("dim").options("paper", options).network_pool(data, 0)
    drawn = [pool.member(i).name for i in range(60)]
    assert drawn[::2] == drawn[1::2] and set(drawn) == {"convnet", "mlp", "lenet"}


def test_gradients_are_compared_of_convolutions_alone():
    shape = {"channels": 1, "size": 8, "classes": 3}
    convnet = build_student("convnet", **shape, width=4)
    expected = sum(slot.numel for slot in convnet.slots if len(slot.shape) == 4)
    assert int(compared_parameters(convnet).sum()) == expected
    mlp = build_student("mlp", **shape, width=4)
    assert int(compared_parameters(mlp).sum()) == 64 * 4 + 4 * 4


def test_numbers_that_blow_up_are_named(data):
    for options, name in (
        ({"lr_gan": 1e30, "iterations": 0, "gan_iterations": 10}, "critic|loss|generator"),
        ({"lr_net": 1e30, "gan_iterations": 0, "iterations": 10}, "loss|pool.parameters"),
    ):
        with pytest.raises(NonFiniteError, match=f"expected a finite ({name}).*lower lr_gan, lr_m"):
            methods.optimize(problem_of(data, **options))


def test_bad_input_is_refused(data):
    method = methods.get("dim")
    for option in ("gan_batch", "batch_size"):
        with pytest.raises(ConfigError, match=f"{option}: expected at least 2, got 1; batch norm"):
            method.options("paper", {option: 1})
    with pytest.raises(ConfigError, match="pool: expected at least one network, got none"):
        method.options("paper", {"pool": []})
    with pytest.raises(ConfigError, match="init: expected no images to begin with, got some"):
        method.build(method.options("paper", TINY), data, 1, 0, torch.zeros(3, 1, 8, 8))
    with pytest.raises(ConfigError, match=r"pool: expected one of convnet.*got 'convnt'"):
        method.options("paper", {"pool": ["convnt"]})
    with pytest.raises(ConfigError, match=r"match: expected one of 'logits'.*got 'logit'"):
        method.options("paper", {"match": "logit"})
    with pytest.raises(ConfigError, match="layers: expected block numbers, got an empty list"):
        methods.get("global_local").options("paper", {"layers": []})
    with pytest.raises(ConfigError, match="layers: expected blocks 0 to 0, got 7"):
        problem = problem_of(data, "global_local", gan_iterations=0, layers=[7])
        problem.objective(0, problem.prior.render(problem.state, 0), problem.state)


def test_a_run_begins_with_an_earlier_generator(data, tmp_path, caplog):
    """Its weights and its critic; stage 1 is left out; another data set is refused."""
    first = problem_of(data, iterations=0)
    network = first.generator(methods.optimize(first).state)
    (tmp_path / FILE).write_bytes(to_bytes(network))
    problem = problem_of(data, "global_local", generator=str(tmp_path), generator_width=9)
    assert problem.iterations == 2 and len(problem.provenance["generator"]["sha256"]) == 64
    for name, x in network.config.shapes().items():
        assert problem.state[f"generator.{name}"].shape == x
        assert torch.equal(problem.state[f"generator.{name}"], network.tensors[name])
    for name, x in network.critic.items():
        assert torch.equal(problem.state[f"critic.{name}"], x)
    methods.optimize(problem)
    (tmp_path / FILE).write_bytes(to_bytes(replace(network, critic={})))
    assert len(problem_of(data, generator=str(tmp_path)).state["critic.convs.0.weight"]) == 4
    assert "no critic in" in caplog.text
    images = torch.rand(24, 16, 16, 1, generator=keyed(1))
    larger = kdistill.load_data((images.numpy(), data.train.labels.numpy()), test=0, quiet=True)
    with pytest.raises(ConfigError, match="expected one of 16 pixels a side, got 8; name"):
        problem_of(larger, generator=str(tmp_path))


TRAJECTORIES = {
    "expert_epochs": 1, "expert_length": 2, "num_experts": 1, "syn_steps": 1, "max_start_epoch": 1,
    "first_max_start_epoch": None, "score_nets": 1, "score_epochs": 1,
}  # fmt: skip
OBJECTIVES = {
    "dm": {"batch_real": 4},
    "dc": {"batch_real": 4, "outer_steps": 2, "inner_epochs": 1},
    "dsa": {"batch_real": 4, "outer_steps": 1, "inner_epochs": 1},
    **dict.fromkeys(("mtt", "tesla", "ftd", "datm", "pad"), TRAJECTORIES),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_objective_takes_the_images_of_a_generator(data, name, tmp_path, monkeypatch):
    """Class-major images, the loss over its first value, what is learned beside images."""
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path))
    settings = {k: v for k, v in OBJECTIVES[name].items() if has_option(name, k)}
    problem = problem_of(
        data, gan_iterations=1, objective=name, objective_preset="fast", settings=settings,
        match_weight=0.5, iterations=1,
    )  # fmt: skip
    images = problem.prior.render(problem.state, 1)
    assert torch.equal(problem.prior.labels(1), problem.labels) and len(images) == 6
    assert len(problem.prior.render(problem.state, 0)) == 8
    step = problem.objective(1, images, problem.state)
    plain = float(step.loss) - float(step.metrics["adversarial_loss"])
    assert plain == pytest.approx(0.5, abs=1e-4)
    assert bool(torch.isfinite(step.grad_images).all())
    outcome = methods.optimize(problem)
    moved = [n for n, x in outcome.state.items() if not torch.equal(x, problem.state[n])]
    assert {"generator.image.weight", "critic.source.weight"} <= set(moved)
    assert ("lr" in moved) == ("lr" in problem.state) == (name not in ("dm", "dc", "dsa"))
    rows = problem.objective.__self__.rows(1)
    assert torch.equal(data.train.labels[rows], problem.labels)


def has_option(name, option):
    return option in {entry.name for entry in fields(methods.get(name).config)}


def test_an_objective_that_has_a_prior_of_its_own_is_refused(data):
    for name in ("glad", "dim"):
        with pytest.raises(ConfigError, match=f"expected a method on pixels, got '{name}'"):
            problem_of(data, objective=name)
    with pytest.raises(ConfigError, match="objective with expert trajectories, got 'pool'"):
        methods.get("dim").experts.train(methods.get("dim").options("fast", {}), data)
    with pytest.raises(ConfigError, match="schedule: expected constant for a generator, got cosi"):
        problem_of(data, schedule="cosine")


def test_a_plan_times_both_stages(data):
    """Stage 2 trains networks too; its iterations are timed apart from those of stage 1."""
    sizes = {"iterations": 10, "net_steps": 20, "gan_iterations": 10, "pool": ["convnet"]}
    plans = [
        kdistill.plan(data, method="dim", ipc=1, preset="paper", options=o, validation=0.0)
        for o in ({**TINY, **sizes}, {**TINY, **sizes, "iterations": 0})
    ]
    assert plans[0].seconds > 2.0 * plans[1].seconds > 0.0
    problem = problem_of(data, gan_iterations=5)
    assert problem.phases == (0, 5) and problem.iterations == 7


def test_terms_are_normalised_under_an_experienced_network(data):
    """The first network after two iterations of service, not after one."""
    problem = problem_of(data, "global_local", gan_iterations=0, pool=["lenet"], local_weight=0.0)
    pool = methods.get("global_local").options("paper", {**TINY, "pool": ["lenet"]})
    pool, state = pool.network_pool(data, 0), pool.network_pool(data, 0).init()
    _, young, state = pool.trained(state, 0)
    _, old, _ = pool.trained(state, 1)
    assert torch.equal(pool.experienced()[1], old) and not torch.equal(old, young)
    images = problem.prior.render(problem.state, 0)
    scale = problem.objective(0, images, problem.state).updates["match.scale"]
    rows, student = problem.objective.__self__.rows(0), pool.members[0]
    augment = Augment(
        "color_crop_cutout", siamese=True, key=make_key(0, "augment"), align_corners=False
    )
    real = augment(data.transform.apply(data.train.images[rows]), 0)
    gap = student.apply(old, real).log_softmax(1) - student.apply(
        old, augment(images, 0)
    ).log_softmax(1)
    torch.testing.assert_close(scale, gap.square().mean()[None])


@pytest.mark.parametrize("chunk", [2, 3, 5])
def test_no_chunk_has_a_single_image(data, chunk):
    """Three images in chunks of two are one batch; every image is rendered once."""
    problem = problem_of(data, chunk=chunk)
    for count in range(2, 13):
        prior = replace(problem.prior, labels=lambda iteration, n=count: torch.arange(n) % 3)
        images = prior.render(problem.state, 0)
        assert len(images) == count and bool(torch.isfinite(images).all())
        assert all(x.any() for x in prior.vjp(problem.state, images, 0).values())


def test_the_critic_takes_no_more_images_than_in_stage_1(data):
    """Others of six class-major images in every iteration."""
    problem = problem_of(
        data, gan_batch=4, gan_iterations=0, objective="dm", match_weight=0.0, iterations=4
    )
    chosen = []
    for iteration in range(4):
        images = problem.prior.render(problem.state, iteration)
        grad = problem.objective(iteration, images, problem.state).grad_images
        chosen.append(tuple(grad.flatten(1).any(1).nonzero().flatten().tolist()))
    assert len(images) == 6 and all(len(rows) == 4 for rows in chosen)
    assert len(set(chosen)) > 1
