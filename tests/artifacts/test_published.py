import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill.artifacts import DistilledDataset, import_published
from kdistill.errors import DataError, ShapeError
from kdistill.transforms import Identity, Standardise, fit

CIFAR = Standardise(torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010]))


@pytest.fixture
def folder(tmp_path):
    torch.save(torch.randn(4, 3, 8, 8, requires_grad=True), tmp_path / "images_best.pt")
    torch.save(torch.tensor([0, 0, 1, 1]), tmp_path / "labels_best.pt")
    return tmp_path


def test_normalisation_is_undone(folder):
    small = import_published(
        folder / "images_best.pt",
        folder / "labels_best.pt",
        transform=CIFAR,
        classes=("cat", "dog"),
    )
    raw = torch.load(folder / "images_best.pt", weights_only=True).detach()
    torch.testing.assert_close(
        small.images, raw * CIFAR.std.view(3, 1, 1) + CIFAR.mean.view(3, 1, 1)
    )
    torch.testing.assert_close(small.to_torch(normalised=True).tensors[0], raw)
    assert (
        small.classes == ("cat", "dog")
        and small.labels.tolist() == [0, 0, 1, 1]
        and small.transform is CIFAR
    )


def test_files_beside_the_images_are_found(folder, caplog):
    torch.save(
        torch.tensor([[2.0, 1.0], [0.5, 0.0], [0.0, 3.0], [-1.0, 0.0]]), folder / "labels_best.pt"
    )
    torch.save(torch.tensor(0.02), folder / "lr_best.pt")
    with caplog.at_level(logging.INFO, logger="kdistill"):
        small = import_published(folder / "images_best.pt", transform=CIFAR)
    assert small.labels.tolist() == [0, 0, 1, 1] and small.label_logits[0].tolist() == [2.0, 1.0]
    assert small.learned_lr == pytest.approx(0.02)
    assert (
        "taking labels from labels_best.pt" in caplog.text
        and "taking lr from lr_best.pt" in caplog.text
    )


def test_without_labels_rows_are_in_class_order(folder):
    (folder / "labels_best.pt").unlink()
    assert import_published(
        folder / "images_best.pt", transform=CIFAR, classes="ab"
    ).labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(
        DataError, match="expected labels for 4 images, got none and no class names"
    ):
        import_published(folder / "images_best.pt", transform=CIFAR)
    with pytest.raises(DataError, match="got none and 3 classes"):
        import_published(folder / "images_best.pt", transform=CIFAR, classes="abc")


@given(
    zca=st.booleans(),
    soft=st.booleans(),
    lr=st.none() | st.floats(0.0078125, 1, width=32),
    seed=st.integers(0, 9),
)
def test_export_and_import_are_inverse(tmp_path_factory, zca, soft, lr, seed):
    g = torch.Generator().manual_seed(seed)
    transform = fit("zca" if zca else "standard", torch.rand(20, 1, 3, 3, generator=g))
    images, labels = torch.rand(4, 1, 3, 3, generator=g), torch.tensor([1, 0, 0, 1])
    logits = torch.randn(4, 2, generator=g) + 20.0 * torch.eye(2)[labels]
    learned = {"label_logits": logits if soft else None, "learned_lr": lr}
    small = DistilledDataset(
        images=images, labels=labels, transform=transform, classes="ab", **learned
    )
    folder = small.export(tmp_path_factory.mktemp("m") / "x", to="mtt")
    back = import_published(folder / "images_best.pt", transform=transform, classes="ab")
    torch.testing.assert_close(back.images, images, atol=1e-5, rtol=0)
    assert torch.equal(back.labels, labels) and back.learned_lr == lr
    assert (back.label_logits is None) is not soft
    if zca:
        pixels = import_published(folder / "images_zca_best.pt", transform=Identity(), classes="ab")
        assert torch.equal(pixels.images, images) and torch.equal(pixels.labels, labels)


def test_soft_labels_that_are_largest_elsewhere_do_not_change_the_images_per_class(
    tmp_path, caplog
):
    logits = torch.eye(3).repeat_interleave(2, 0) * 2
    logits[1] = torch.tensor([0.0, 0.1, 0.0])  # learned to look like the next class
    torch.save(torch.zeros(6, 1, 4, 4), tmp_path / "images_best.pt")
    torch.save(logits, tmp_path / "labels_best.pt")
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        small = import_published(tmp_path / "images_best.pt", transform=Identity())
    assert (
        small.ipc == 2
        and small.labels.tolist() == [0, 0, 1, 1, 2, 2]
        and torch.equal(small.label_logits, logits)
    )
    assert (
        "1 of 6 soft labels are largest at another class; classes are taken from the order"
        in caplog.text
    )
    torch.save(
        torch.eye(3).repeat(2, 1), tmp_path / "labels_best.pt"
    )  # interleaved: the labels know better
    assert import_published(tmp_path / "images_best.pt", transform=Identity()).labels.tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_result_files_of_dc_with_numpy_accuracies(tmp_path, module, caplog):
    pairs = [[torch.full((2, 3, 4, 4), float(i)), torch.tensor([0, 1])] for i in range(2)]
    path = tmp_path / "res_DC_CIFAR10_ConvNet_1ipc.pt"
    torch.save(
        {"data": pairs, "accs_all_exps": {"ConvNet": [np.float64(0.28), np.float32(0.3)]}},
        path,
        _use_new_zipfile_serialization=False,
    )
    data = path.read_bytes()
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        data = data.replace(b"c" + name + b"\n", b"c" + module.encode() + b"\n")
    assert b"c" + module.encode() + b"\nscalar" in data
    path.write_bytes(data)
    with caplog.at_level(logging.INFO, logger="kdistill"):
        assert import_published(path, transform=Identity()).images.max() == 0
    assert "taking experiment 0 of 2" in caplog.text
    assert import_published(path, transform=Identity(), experiment=1).images.min() == 1
    with pytest.raises(DataError, match=r"expected experiment 0\.\.1, got 5"):
        import_published(path, transform=Identity(), experiment=5)


def test_code_in_a_file_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save(Evil(), tmp_path / "images_best.pt")
    with pytest.raises(DataError, match="holds code, which kdistill never runs"):
        import_published(tmp_path / "images_best.pt", transform=Identity(), classes="a")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("cut", [0, 1, 10, 300, -1, -200])
def test_truncated_files_are_named(folder, cut):
    path = folder / "images_best.pt"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"images_best\.pt: expected") as caught:
        import_published(path, transform=CIFAR)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "images_best.pt",
            torch.zeros(4, 3),
            r"expected a float tensor \[N, C, H, W\], got torch\.float32 \[4, 3\]",
        ),
        ("images_best.pt", [1, 2], r"expected a float tensor \[N, C, H, W\], got a list"),
        ("images_best.pt", {"net": torch.zeros(1)}, r"expected \{'data': .*got the keys \['net'\]"),
        (
            "labels_best.pt",
            torch.zeros(3),
            r"labels_best\.pt: expected labels \[4\] or logits \[4, K\], got torch\.float32 \[3\]",
        ),
        ("labels_best.pt", torch.full((4,), 0.5), "expected whole class numbers, got fractions"),
        ("lr_best.pt", torch.zeros(2), "expected one number, got torch.float32 \\[2\\]"),
    ],
)
def test_other_contents_are_refused(folder, name, content, message):
    torch.save(content, folder / name)
    with pytest.raises(DataError, match=message):
        import_published(folder / "images_best.pt", transform=CIFAR)


def test_missing_file_and_wrong_transform(folder):
    with pytest.raises(DataError, match="expected a file of tensors, got: No such file"):
        import_published(folder / "nothing.pt", transform=CIFAR)
    with pytest.raises(ShapeError, match=r"expected images \[\.\.\., 1, H, W\]"):
        import_published(
            folder / "images_best.pt", transform=Standardise(torch.zeros(1), torch.ones(1))
        )
