"""Lists of picture files: data frames, CSV files, paths; and distilled sets, loaded again."""

import numpy as np
import pytest
import torch

from kdistill.api.run import resolve
from kdistill.artifacts import DistilledDataset
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError, DataError
from tests.data._sources import ClassLabel, HFImage, HuggingFace, load

pandas = pytest.importorskip("pandas", reason="pandas is not installed")


@pytest.fixture
def files(tree):
    """Return the paths of four pictures in two folders, and their labels."""
    root = tree({"cat": 2, "dog": 2})
    paths = sorted(root.glob("*/*.png"))
    return root, paths, [path.parent.name for path in paths]


def test_every_list_of_paths_gives_the_data_set_of_the_folder(files, tmp_path):
    root, paths, labels = files
    truth = load(root, test=0)
    texts = [*map(str, paths)]
    rows = "".join(
        f"{path.relative_to(tmp_path)},{label}\n" for path, label in zip(paths, labels, strict=True)
    )
    (tmp_path / "header.csv").write_text(f"filename,class\n{rows}")
    (tmp_path / "bare.csv").write_text(rows)
    (tmp_path / "tabs.tsv").write_text(f"filename,class\n{rows}".replace(",", "\t"))
    frame = pandas.DataFrame({"id": range(4), "path": texts, "label": labels})
    forms = [
        frame,
        (texts, labels),
        ([*paths], np.array(labels)),
        [*zip(texts, labels, strict=True)],
        texts,
    ]
    forms += [(frame["path"], frame["label"]), (np.array(texts), labels)]
    forms += [tmp_path / name for name in ("header.csv", "bare.csv", "tabs.tsv")]
    for form in forms:
        data = load(form, test=0)
        assert data.fingerprint == truth.fingerprint and data.classes == ("cat", "dog"), form


def test_columns_are_named_and_a_column_of_splits_is_followed(files):
    _, paths, _ = files
    frame = pandas.DataFrame({"a": map(str, paths), "b": [1, 0, 1, 0], "c": [2, 2, 3, 3]})
    with pytest.raises(
        DataError,
        match=r"a column of labels in the data frame, got the columns .*name it with label_column=",
    ):
        load(frame)
    assert load(frame, label_column="c", test=0).classes == ("2", "3")
    with pytest.raises(
        ConfigError, match="label_column: expected a column of the data frame, got 'd'"
    ):
        load(frame, label_column="d")
    frame["split"] = ["train", "val", "train", "test"]
    data = load(frame, label_column="c")
    assert (len(data.train), len(data.test), len(data.validation)) == (2, 1, 1)
    assert "paths from column 'a', labels from 'c'" in data.describe()


def test_refusals_of_lists_name_the_row(files, tmp_path):
    _, paths, labels = files
    texts = [*map(str, paths)]
    with pytest.raises(
        DataError,
        match=r"picture files in train, got .*gone.png at row 4 \(No such file or directory\)",
    ):
        load(([*texts, str(tmp_path / "gone.png")], [*labels, "cat"]))
    with pytest.raises(
        DataError, match="as many labels as images in train, got 3 labels for 4 images"
    ):
        load((texts, labels[:3]))
    (tmp_path / "torn.csv").write_text("path,label\na.png,1\nb.png\n")
    with pytest.raises(DataError, match="another number in line 3; correct it"):
        load(tmp_path / "torn.csv")
    (tmp_path / "numbers.csv").write_text("1,2\n3,4\n")
    with pytest.raises(
        DataError,
        match=r"a column of images or picture paths in numbers.csv, got the columns \['1', '2'\]",
    ):
        load(tmp_path / "numbers.csv")
    (tmp_path / "pixels.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="a table in UTF-8"):
        load(tmp_path / "pixels.csv")


@pytest.fixture
def small():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 8, 8, generator=generator).mul(255).round().div(255)
    return DistilledDataset(
        images=images, labels=torch.tensor([0, 0, 1, 1]), classes=("ant", "bee")
    )


def test_a_distilled_set_that_is_loaded_again_keeps_all_its_images(small, tmp_path):
    small.save_pretrained(tmp_path / "saved")
    forms = [
        small,
        tmp_path / "saved",
        small.to_npz(tmp_path / "small.npz"),
        small.to_imagefolder(tmp_path / "folders"),
    ]
    for form in forms:
        data = load(form)
        assert len(data.train) == 4 and len(data.test) == 0 and data.classes == ("ant", "bee"), form
        assert (
            torch.equal(data.train.images, small.images) and "none for testing" in data.describe()
        )
    assert len(load(small, test=0.5).test) == 2


def test_an_exported_hugging_face_set_with_soft_labels_keeps_all_its_images(colour):
    columns = {
        "image": [*colour[0][:6]],
        "class_id": colour[1][:6].tolist(),
        "label_logits": [[0.0] * 3] * 6,
    }
    features = {
        "image": HFImage(),
        "class_id": ClassLabel(["0", "1", "2"]),
        "label_logits": object(),
    }
    data = load(HuggingFace(columns, features))
    assert len(data.train) == 6 and not data.warnings


def test_a_distilled_set_gives_items_as_a_torch_data_set_does(small):
    image, label = small[2]
    assert torch.equal(image, small.images[2]) and label == 1 and len([*small]) == 4


def test_a_tiny_set_that_is_split_is_a_warning(colour):
    (warning,) = load((colour[0][:6], colour[1][:6])).warnings
    assert warning == (
        "3 of 6 images are held out for testing, and no more than 2 images of '0' are there; name "
        "test images with test=, or take all for training with test=0"
    )
    x = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    assert not load((x, np.arange(40) % 2)).warnings
    assert len(load((colour[0][:6], colour[1][:6]), test=0).train) == 6


def test_validation_images_serve_for_testing_whatever_the_source(colour, tree):
    x, y = colour
    features = {"image": HFImage(), "label": ClassLabel(["0", "1", "2"])}

    def split(rows):
        return HuggingFace({"image": [*x[rows]], "label": y[rows].tolist()}, features)

    arrays = {"x_train": x[:18], "y_train": y[:18], "x_val": x[18:], "y_val": y[18:]}
    for form in ({"train": split(slice(18)), "validation": split(slice(18, None))}, arrays):
        data = load(form)
        assert (len(data.train), len(data.test), data.validation) == (18, 6, None)
        assert "the validation images serve as the test images" in data.describe()


@pytest.mark.parametrize(
    ("name", "channels", "classes", "mirrors"),
    [
        ("svhn", 3, ["a1", "b1"], False),
        ("mnist5k", 1, ["a1", "b1"], False),
        ("fashion-mnist", 1, ["coat", "bag"], True),
        ("x", 1, "0123456789", False),
        ("x", 3, "0123456789", True),
        ("x", 1, "ab", False),
        ("x", 1, ["cat", "dog"], True),
    ],
)
def test_mirroring_is_guessed_from_what_the_images_are_and_said(name, channels, classes, mirrors):
    x = np.random.default_rng(0).integers(0, 256, (40, 4, 4, channels), dtype=np.uint8)
    data = load((x, np.arange(40) % len(classes)), name=name, classes=[*classes])
    assert data.mirrors == mirrors and ("not mirrored" in data.describe()) != mirrors
    told = load(
        (x, np.arange(40) % len(classes)), name=name, classes=[*classes], mirrors=not mirrors
    )
    assert told.mirrors != mirrors and "not mirrored" not in told.describe()


def test_augmentation_follows_the_data_not_its_name(colour):
    config = resolve("dm", "fast", {"strategy": "auto"})

    def families(data: ImageDataset):
        return config.augmentation(data, 0, siamese=True).families

    assert "flip" in families(load(colour, name="digits", mirrors=True))
    assert "flip" not in families(load(colour, name="cats", mirrors=False))


def test_a_table_of_a_spreadsheet_and_what_is_wrong_with_a_table(files, tmp_path):
    root, paths, labels = files
    table = tmp_path / "table.csv"
    rows = "".join(
        f"{path.relative_to(tmp_path)};{label}\n" for path, label in zip(paths, labels, strict=True)
    )
    table.write_text(f"filename;class\n{rows}")
    assert load(table, test=0).fingerprint == load(root, test=0).fingerprint
    for content, message in (
        (
            "",
            "a line for every picture in .*table.csv, got an empty file; write path,label on each",
        ),
        (f"path,label\n\n{paths[0]},a\n{paths[1]}\n", "got another number in line 4; correct it"),
        (
            f"path,label,label\n{paths[0]},a,b\n",
            "columns of different names in .*table.csv, got 'label' more than once",
        ),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=message):
            load(table)


def test_a_cell_that_holds_a_picture_is_quoted_in_part(files):
    frame = pandas.DataFrame({"image": [{"bytes": b"x" * 10_000}], "label": ["a"]})
    with pytest.raises(
        DataError, match=r"paths of picture files in train, got .* at row 0; give one path per row"
    ) as caught:
        load(frame)
    assert len(str(caught.value)) < 250
