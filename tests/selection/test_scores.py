"""``kdistill.score`` end to end on a small set, its table, and what the reader refuses."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import kdistill
from kdistill.api import score as scoring
from kdistill.api.score import load_scores_of
from kdistill.artifacts.score_pictures import extremes
from kdistill.data import ImageDataset, Split
from kdistill.engine import build_student, sample_scores, train
from kdistill.errors import ConfigError, DataError
from kdistill.keys import make_key
from kdistill.selection import ScoreSpec, ScoreTable, difficulty, load_scores

SMALL = {"runs": 2, "epochs": 3, "width": 4, "batch_size": 8, "lr": 0.05}


def drawn(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    for k in range(3):
        images[labels == k, :, 2 * k : 2 * k + 3] += 0.5
    return ImageDataset(
        Split(images, labels), Split(images[:3], labels[:3]), ("a", "b", "c"), name="stripes"
    )


def test_a_table_and_two_pictures(tmp_path):
    data, said = drawn(), []
    table = kdistill.score(data, options=SMALL, validation=0.0, out=tmp_path, say=said.append)
    assert list(table.scores) == list(ScoreSpec().metrics) and len(table) == 24
    assert all(
        values.shape == (24,) and bool(values.isfinite().all()) for values in table.scores.values()
    )
    assert "network 2 of 2, epoch 3 of 3" in said and said[-1] == "scored 24 of 24 images"
    for picture in ("histogram.png", "extremes.png"):
        assert np.asarray(Image.open(tmp_path / picture)).std() > 5
    again = load_scores_of(data, tmp_path / "scores.csv")
    assert all(torch.equal(again.of(metric), values) for metric, values in table.scores.items())
    assert (
        torch.equal(again.labels, data.train.labels) and again.provenance["settings"]["runs"] == 2
    )


def test_images_of_files_are_named_in_the_table_and_on_the_sheet(tmp_path, monkeypatch):
    data = drawn(18)
    for row, (image, label) in enumerate(zip(data.train.images, data.train.labels, strict=True)):
        path = tmp_path / f"photos/{'abc'[label]}/shot, {row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image[0].clamp(0, 1)).byte().numpy()).save(path)
    photos, sheets = kdistill.load_data(tmp_path / "photos", quiet=True), []
    monkeypatch.setattr(
        scoring, "extremes", lambda *given: sheets.append(given) or extremes(*given)
    )
    table = kdistill.score(photos, options=SMALL | {"metrics": ("el2n",)}, out=tmp_path / "out")
    held = photos.holdout(0.1)[0].train
    assert table.files == held.files and len(table.files) == len(table) < 18
    for file, image, label in zip(
        table.files, held.images, table.labels, strict=True
    ):  # the right name at the right image
        assert "abc"[label] == Path(file).parent.name
        assert np.array_equal(np.asarray(Image.open(file)) / np.float32(255), image[0].numpy())
    assert (
        load_scores(tmp_path / "out/scores.csv").files == table.files
    )  # a comma in a name is no column
    assert sheets[0][-1] == [Path(file).name for file in table.files]
    kdistill.score(
        data, options=SMALL | {"metrics": ("el2n",)}, validation=0.0, out=tmp_path / "plain"
    )
    assert sheets[1][-1] == [str(row) for row in range(18)]
    assert ",file," not in (tmp_path / "plain/scores.csv").read_text()
    sheet = extremes(*sheets[0]).picture
    unnamed = extremes(*sheets[0][:-1], [""] * len(table)).picture
    assert sheet.size == unnamed.size and sheet.tobytes() != unnamed.tobytes()


def test_a_second_run_writes_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        kdistill.score(drawn(), options=SMALL, validation=0.0, out=tmp_path / folder)
    assert (tmp_path / "a/scores.csv").read_bytes() == (tmp_path / "b/scores.csv").read_bytes()


def test_held_out_images_are_not_scored():
    assert (
        len(kdistill.score(drawn(60), options=SMALL | {"metrics": ("el2n",)}, validation=0.1)) == 54
    )


def test_el2n_ranks_like_plain_pytorch_on_the_same_checkpoints():
    data = drawn(90)
    student = build_student("convnet", channels=1, size=8, classes=3, width=8)
    thetas = train(
        student,
        data.train.images,
        data.train.labels,
        epochs=2,
        lr=0.02,
        key=make_key(0, "test"),
        batch_size=16,
        nets=3,
    )
    got = sample_scores(student, thetas, data.train.images, data.train.labels, ("el2n",))["el2n"]
    wanted = torch.zeros(90)
    for theta in thetas:
        p = F.softmax(student.apply(theta, data.train.images), 1)
        wanted += (p - F.one_hot(data.train.labels, 3)).norm(dim=1) / 3
    ranks = [scores.argsort().argsort().double() for scores in (got, wanted)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] >= 0.999


def test_forgetting_counts_what_was_right_and_is_wrong():
    images, labels = (
        torch.rand(40, 1, 8, 8),
        torch.arange(40) % 3,
    )  # noise: nothing but memory helps
    spec = ScoreSpec(
        metrics=("forgetting",), runs=1, epochs=6, width=2, batch_size=5, lr=0.3, momentum=0.0
    )
    student = build_student("convnet", channels=1, size=8, classes=3, width=2)
    right = []

    def look(_, thetas):
        right.append(student.infer(thetas[0], images).argmax(1) == labels)

    train(
        student,
        images,
        labels,
        epochs=6,
        lr=0.3,
        key=make_key(0, "score", 0),
        batch_size=5,
        momentum=0.0,
        schedule="constant",
        on_epoch=look,
    )
    history = torch.stack(right)
    events = (history[:-1] & ~history[1:]).sum(0)
    wanted = torch.where(history.any(0), events, 6).float()
    assert wanted.unique().numel() > 1  # the recipe is rough enough to forget
    assert torch.equal(difficulty(spec, student, images, labels)["forgetting"], wanted)


def test_ranks_begin_with_the_easiest_of_every_class():
    table = ScoreTable(
        torch.tensor([0, 1, 0, 1, 0]),
        {"el2n": torch.tensor([0.5, 0.1, 0.2, 0.1, 0.9])},
        ("a", "b"),
        "d",
        {},
    )
    assert table.ranks("el2n").tolist() == [1, 0, 0, 1, 2]
    with pytest.raises(
        ConfigError, match=r"expected a metric of this table, got 'grand'; known: el2n"
    ):
        table.of("grand")


def test_a_file_of_other_data_is_refused(tmp_path):
    kdistill.score(drawn(), options=SMALL | {"metrics": ("el2n",)}, validation=0.0, out=tmp_path)
    with pytest.raises(
        DataError,
        match=r"expected scores of the 27 training images, got 24 in .*; score this data set, "
        "with the",
    ):
        load_scores_of(drawn(27), tmp_path / "scores.csv")
    with pytest.raises(
        DataError,
        match=r"expected scores of images with digest \w{12}, got \w{12} in .*; score this data "
        "set",
    ):
        load_scores_of(drawn(seed=1), tmp_path / "scores.csv")


HEAD = '# {"num_samples": 3, "digest": "d", "classes": ["a", "b"]}'
ROWS = "0,0,0.5,1\n1,1,0.25,0\n2,0,0.125,0"


def written(folder, columns="index,label,el2n,el2n_rank", rows=ROWS, head=HEAD):
    folder.mkdir(exist_ok=True)
    (folder / "scores.csv").write_bytes("\n".join([head, columns, rows, ""]).encode())
    return folder / "scores.csv"


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ("index,label,el2n,el2n_rank", "2,0,0.125,0\n0,0,0.5,1\n1,1,0.25,0"),  # sorted by score
        ("el2n_rank,el2n,label,index", "1,0.5,0,0\n0,0.25,1,1\n0,0.125,0,2"),
        ("index,label,el2n,el2n_rank", ROWS.replace("\n", "\r\n")),
    ],
)
def test_rows_belong_to_the_index_in_them(tmp_path, columns, rows):
    path = written(tmp_path, columns, rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # the mark that spreadsheets put in front
    table = load_scores(path, labels=torch.tensor([0, 1, 0]))
    assert table.of("el2n").tolist() == [0.5, 0.25, 0.125] and table.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rows": ROWS.replace("2,0,", "0,0,")},
            r"expected one row for each index 0\.\.2, got 0 for 1 in .*; make it again",
        ),
        (
            {"rows": ROWS.replace("2,0,", "3,0,")},
            r"expected one row for each index 0\.\.2, got 3 for 2 in",
        ),
        (
            {"rows": ROWS.replace("2,0,", "-1,0,")},
            r"expected one row for each index 0\.\.2, got -1 for 0 in",
        ),
        (
            {"rows": ROWS.replace("1,1,", "1,0,")},
            r"expected label 1 for image 1, got 0 in .*; make it again",
        ),
        (
            {"rows": ROWS.replace("0.25", "nan")},
            r"expected a number as el2n of image 1, got NaN in .*; make it again",
        ),
        (
            {"rows": ROWS.replace("0.25,0", "0.25")},
            r"3 values in the row 1,1,0.25\); make it again",
        ),
        (
            {"rows": ROWS.replace("0.25,0", "0.25,0,7")},
            r"5 values in the row 1,1,0.25,0,7\); make it again",
        ),
        (
            {"columns": "index,label,el2n,el2n"},
            r"a column twice in index,label,el2n,el2n\); make it again",
        ),
        ({"columns": "row,label,el2n,el2n_rank"}, r"KeyError: 'index'"),
        ({"head": HEAD.replace("3", "1e999")}, r"OverflowError"),
        (
            {"head": HEAD.replace("{", '{"format": 2, ')},
            r"expected a table of format 1, got 2 in .*; make it again",
        ),
        ({"rows": ""}, r"expected the 3 rows that .* speaks of, got 0; make it again"),
    ],
)
def test_a_table_that_was_edited_is_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        load_scores(written(tmp_path, **change), labels=torch.tensor([0, 1, 0]))


def test_a_label_outside_the_classes_is_refused_without_data(tmp_path):
    with pytest.raises(DataError, match=r"expected a label of 2 classes for image 1, got 7 in"):
        load_scores(written(tmp_path, rows=ROWS.replace("1,1,", "1,7,")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"expected a file that can be read"),
        ("not a table", r"expected a table of kdistill score"),
        (
            '# {"num_samples": 2, "digest": "d", "classes": '
            '["a"]}\nindex,label,el2n,el2n_rank\n0,0,0.5,0\n',
            "the 2 rows that",
        ),
        (
            '# {"num_samples": 1, "digest": "d", "classes": '
            '["a"]}\nindex,label,el2n,el2n_rank\n0,0,much,0\n',
            "make it again",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_scores(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metrics": ("el2m",)},
            "score.metrics: expected one of .*, got 'el2m'; did you mean 'el2n'",
        ),
        ({"metrics": ()}, "expected metrics, each once"),
        ({"runs": 0}, "score.runs: expected at least 1, got 0"),
        ({"epochs": 0}, "score.epochs: expected at least 1 for forgetting, got 0"),
        ({"epoch": 3}, "epochs"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        kdistill.score(drawn(), options=options)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"batch_size": 0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1.0},
    ],
    ids=str,
)
def test_a_recipe_out_of_range_is_refused(change):
    with pytest.raises(ConfigError, match=f"score.{next(iter(change))}: expected "):
        ScoreSpec(**change)


@pytest.mark.parametrize("step", range(0, 22, 3))
def test_killed_at_any_step_the_old_scores_or_the_new_ones_are_there(tmp_path, killed_at, step):
    tables = [
        ScoreTable(torch.arange(6) % 2, {"loss": torch.rand(6) + seed}, ("a", "b"), "d", {}, None)
        for seed in (0, 1)
    ]
    data = drawn(6)
    scoring._write(tables[0], data, tmp_path)
    was_killed = killed_at(step, lambda: scoring._write(tables[1], data, tmp_path))
    left = load_scores(tmp_path / "scores.csv").of("loss")
    assert torch.equal(left, tables[1].of("loss")) or (
        was_killed and torch.equal(left, tables[0].of("loss"))
    )
    scoring._write(tables[1], data, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "scores.csv",
        "histogram.png",
        "extremes.png",
    }


def test_a_pipe_is_no_table_and_a_link_that_the_user_names_is_followed(tmp_path):
    ScoreTable(torch.arange(6) % 2, {"loss": torch.rand(6)}, ("a", "b"), "d", {}, None).save(
        tmp_path / "table.csv"
    )
    (tmp_path / "scores.csv").symlink_to("table.csv")
    assert len(load_scores(tmp_path / "scores.csv")) == 6
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(
        DataError,
        match=r"scores: expected a file that can be read, got .*pipe\.csv \(a named pipe\)",
    ):
        load_scores(tmp_path / "pipe.csv")
