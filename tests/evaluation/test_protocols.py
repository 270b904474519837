"""Named recipes and what cannot be one."""

import pytest
import torch

from kdistill.augment import strategy_for
from kdistill.engine import build_student, parameter_steps, student_training
from kdistill.errors import ConfigError
from kdistill.evaluation import PROTOCOLS, Protocol, protocols


def test_the_named_protocols_of_the_design():
    bench, paper = PROTOCOLS["bench"], PROTOCOLS["paper"]
    assert (bench.width, bench.epochs, bench.nets) == (32, 300, 5)
    assert (paper.width, paper.epochs, paper.nets, paper.lr, paper.batch_size) == (
        128,
        1000,
        20,
        0.01,
        256,
    )
    assert (paper.momentum, paper.weight_decay, paper.schedule, paper.align_corners) == (
        0.9,
        5e-4,
        "step",
        False,
    )
    assert PROTOCOLS["quick"].epochs < bench.epochs


def test_changes_of_none_keep_the_value():
    assert protocols.get("bench", nets=None) is not PROTOCOLS["paper"]
    assert protocols.get("bench", nets=None) == PROTOCOLS["bench"]
    assert protocols.get("bench", nets=2).nets == 2
    own = Protocol(name="own", epochs=7)
    assert protocols.get(own) == own


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: protocols.get("bensh"), "did you mean 'bench'"),
        (lambda: protocols.get("bench", epoch=3), "did you mean 'epochs'"),
        (lambda: Protocol(name="x", epochs=0), "protocol.epochs: expected at least 1, got 0"),
        (lambda: Protocol(name="x", validation=1.0), "a share in"),
        (lambda: Protocol(name="x", lr="auto", lr_candidates=()), "lr_candidates"),
        (
            lambda: Protocol(name="x", lr="fast"),
            "protocol.lr: expected auto or a number above 0, got 'fast'",
        ),
        (lambda: Protocol(name="x", lr=-0.1), "a number above 0, got -0.1"),
        (lambda: Protocol(name="x", optimizer="adam"), "protocol.optimizer: .* did you mean"),
        (lambda: Protocol(name="x", schedule="cosin"), "protocol.schedule: .* did you mean 'cosi"),
        (lambda: Protocol(name="x", cutmix=1.5), "protocol.cutmix: .*got 1.5"),
        (lambda: Protocol(name="x", ema_decay=-1.0), "protocol.ema_decay: .*got -1"),
        (lambda: protocols.get("bench", strategy="colour"), "did you mean 'color'"),
        (lambda: protocols.get("bench", nets=0), "protocol.nets: expected at least 1"),
    ],
)
def test_bad_recipes_get_one_sentence(call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_digits_are_not_mirrored():
    assert "flip" not in strategy_for("auto", mirrors=False)
    assert "flip" in strategy_for("auto", mirrors=True)
    assert strategy_for("flip", mirrors=False) == "flip"


def test_the_published_protocol_trains_alexnet_without_normalisation():
    assert protocols.norm_of(PROTOCOLS["paper"], "alexnet") == "none"
    assert (
        protocols.norm_of(PROTOCOLS["paper"], "vgg11")
        == protocols.norm_of(PROTOCOLS["bench"], "alexnet")
        == "instance"
    )


def test_widths():
    bench = PROTOCOLS["bench"]
    assert protocols.width_of(bench, "convnet") == 32
    assert protocols.width_of(bench, "resnet18") < 64
    assert protocols.width_of(bench, "mlp") is None
    assert protocols.width_of(PROTOCOLS["paper"], "resnet18") is None


def test_the_rate_of_the_challenge_falls_after_500_epochs(monkeypatch):
    protocol, rates = PROTOCOLS["eccv24"], []
    monkeypatch.setattr(parameter_steps, "sgd_", lambda *_, lr, **__: rates.append(lr))
    student = build_student("mlp", channels=1, size=8, classes=2, width=2)
    student_training.train(
        student,
        torch.zeros(2, 1, 8, 8),
        torch.tensor([0, 1]),
        epochs=protocol.epochs,
        lr=protocol.lr,
        key=0,
        batch_size=protocol.batch_size,
        schedule=protocol.schedule,
    )
    assert len(rates) == 1001
    assert rates[:501] == [0.01] * 501 and rates[501:] == [pytest.approx(0.001)] * 500
    assert (protocol.student, protocol.width, protocol.norm) == ("convnet", 128, "instance")
    assert (protocol.momentum, protocol.weight_decay, protocol.nets) == (0.9, 5e-4, 3)
    assert strategy_for(protocol.strategy, True) == "color_crop_cutout_flip_scale_rotate"


def test_the_protocols_of_papers():
    paper, dc, mtt = PROTOCOLS["paper"], PROTOCOLS["dc"], PROTOCOLS["mtt"]
    assert PROTOCOLS["dsa"] == protocols.get(paper, name="dsa")
    assert (dc.strategy, dc.epochs, dc.nets) == ("none", 300, 20)
    assert (mtt.align_corners, mtt.nets, mtt.epochs) == (True, 5, 1000)
    assert PROTOCOLS["datm"].batch_size == 128 and PROTOCOLS["datm"].align_corners
    idc = PROTOCOLS["idc"]
    assert (idc.optimizer, idc.lr, idc.weight_decay, idc.cutmix) == ("adamw", 1e-3, 0.01, 0.5)
    assert (idc.epochs, idc.nets, idc.batch_size) == (2000, 10, 128)


def test_glad_trains_vgg_at_a_rate_of_its_own_unless_one_is_named():
    glad = PROTOCOLS["glad"]
    assert (glad.schedule, glad.ema_decay, glad.nets) == ("warmup_cosine", 0.995, 5)
    assert protocols.learning_rates(glad, "convnet") == (1e-3,)
    assert protocols.learning_rates(glad, "vgg11") == (1e-4,)
    assert protocols.learning_rates(glad, "vgg11", learned=0.02) == (0.02,)
    assert protocols.learning_rates(protocols.get(glad, lr=0.05), "vgg11") == (0.05,)


def test_a_title_names_what_was_changed():
    assert protocols.get("bench", nets=1).title == "bench"
    changed = protocols.get("bench", epochs=20, batch_size=64, strategy="none", precision="tf32")
    assert changed.title == "bench (tf32, epochs 20, batch size 64, strategy none)"
    assert Protocol(name="own", epochs=3).title == "own"
