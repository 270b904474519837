"""No file under one megabyte takes more than 1 GiB or 5 seconds; the answer is one sentence."""

import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.tensors import encode
from kdistill.priors.network_files import save_generator
from tests.files.test_bounded_read import LABELS, Call, archive, header
from tests.priors.original_files import tiny_stylegan2, tiny_stylegan3, write

MOST_BYTES, MOST_SECONDS, LARGEST = 1 << 30, 5.0, 10**6
DEEP = b"[" * 400_000 + b"]" * 400_000


def picture_folder(folder: Path, name: str, content: bytes) -> Path:
    """Return a folder of two classes, one with the picture and one with a plain one."""
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        Image.new("L", (40, 40)).save(folder / label / "plain.png")
    (folder / "a" / name).write_bytes(content)
    return folder


def png(width: int, height: int, mode: int, depth: int = 8) -> bytes:
    """Return a picture of zeros, deflated: a thousandth of its pixels."""
    channels = {0: 1, 2: 3, 6: 4}[mode]
    squeeze = zlib.compressobj(1)
    data = (
        squeeze.compress(bytes(height * (1 + -(-width * channels * depth // 8)))) + squeeze.flush()
    )

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(side: int) -> bytes:
    """Return a picture that says it is larger than it is."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "jpeg")
    data = stream.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


def packed_pt(path: Path) -> None:
    torch.save((torch.zeros(45, 1, 500, 500), torch.arange(45) % 2), path.with_suffix(".whole"))
    with (
        zipfile.ZipFile(path.with_suffix(".whole")) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in whole.infolist():
            packed.writestr(info.filename, whole.read(info))


def hashed_forever() -> bytes:
    """Return a dictionary whose key is a tuple of 2^60 leaves."""
    return b"\x80\x02)" + b"2\x86" * 60 + b"q\x00}h\x00K\x01s."


def in_archive(path: Path, content: bytes) -> None:
    torch.save({}, path)
    with zipfile.ZipFile(path) as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}
    with zipfile.ZipFile(path, "w") as changed:
        for name, data in members.items():
            changed.writestr(name, content if name.endswith("data.pkl") else data)


def same_storage_many_times() -> bytes:
    stream = io.BytesIO()
    torch.save(torch.zeros(20_000)._typed_storage(), stream, _use_new_zipfile_serialization=False)
    raw = stream.getvalue()
    storage = b"ctorch.storage\n_load_from_bytes\nh\x00\x85R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x01\x85K\x01\x85\x89NtR"
    parameters = (
        b"}(" + b"".join(b"X\x05\x00\x00\x00" + b"%05d" % n + tensor for n in range(5000)) + b"u"
    )
    state = b"}X\x0b\x00\x00\x00_parameters" + parameters + b"s"
    return b"\x80\x02B" + struct.pack("<I", len(raw)) + raw + b"q\x000cm\nM\n)R" + state + b"b."


NETWORKS: dict[str, Callable[[], bytes]] = {
    "calls of one byte string": lambda: (
        b"\x80\x02B"
        + struct.pack("<I", 100_000)
        + bytes(100_000)
        + b"q\x000]("
        + b"cm\nf\nh\x00R" * 5000
        + b"e."
    ),
    "calls of one tuple": lambda: (
        b"\x80\x02(" + b"K\x01" * 100_000 + b"tq\x000](" + b"cm\nf\nh\x00R" * 60_000 + b"e."
    ),
    "a million tables": lambda: b"\x80\x02" + b"}" * 999_000 + b".",
    "a storage of many tensors": same_storage_many_times,
    "keys of one hash": lambda: (
        b"\x80\x02}("
        + b"".join(
            b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(70_000)
        )
        + b"u."
    ),
    "memo entries of one hash": lambda: (
        b"\x80\x02N" + b"".join(b"p%d\n" % (n * (2**61 - 1)) for n in range(40_000)) + b"."
    ),
    "many hostile names": lambda: (
        b"\x80\x02" + b"".join(b"cos\n%s%05d\n0" % (b"x" * 20, n) for n in range(25_000)) + b"N."
    ),
    "a long hostile name": lambda: b"\x80\x02cos\n" + b"." * 900_000 + b"\nN.",
}


def networks(root: Path) -> list[tuple[str, Path]]:
    for name, content in NETWORKS.items():
        (root / f"{name}.pkl").write_bytes(content())
    small = tiny_stylegan3()
    source = replace(small.config.input, size=(4096, 4096))
    write(root / "large input.pkl", type(small)(replace(small.config, input=source), small.tensors))
    mapping = replace(tiny_stylegan2().config.mapping, z_dim=10**9)
    save_generator(
        type(tiny_stylegan2())(
            replace(tiny_stylegan2().config, mapping=mapping), tiny_stylegan2().tensors
        ),
        root / "z",
    )
    return [*(("network", path) for path in sorted(root.glob("*.pkl"))), ("generator", root / "z")]


def arrays(root: Path) -> list[tuple[str, Path]]:
    archive(root / "declared.npz", x_train=header((4, 10**6, 1000)), y_train=LABELS)
    archive(
        root / "packed.npz", x_train=header((40, 1000, 1000)) + bytes(4 * 10**7), y_train=LABELS
    )
    archive(
        root / "beside.npz",
        x_train=header((4, 8, 8)) + bytes(256),
        y_train=LABELS,
        other=header((5 * 10**7,)) + bytes(5 * 10**7),
    )
    (root / "single.npy").write_bytes(header((10**9, 8, 8)))
    torch.save(
        (torch.zeros(1).expand(1000, 3, 1000, 1000), torch.arange(1000) % 2), root / "stride.pt"
    )
    torch.save(([torch.zeros(3, 128, 128)] * 50_000, list(range(50_000))), root / "repeated.pt")
    torch.save((Call(bytearray, 4 * 10**9), 1), root / "call.pt")
    packed_pt(root / "packed.pt")
    in_archive(root / "hash.pt", hashed_forever())
    in_archive(
        root / "encode.pt",
        b"\x80\x02X"
        + struct.pack("<I", 500_000)
        + b"x" * 500_000
        + b"q\x000]("
        + b"c_codecs\nencode\nh\x00\x85R" * 20_000
        + b"e.",
    )
    (root / "plain.pt").write_bytes(pickle.dumps([0] * 300_000))
    (root / "length.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    (root / "deep.safetensors").write_bytes(struct.pack("<Q", len(DEEP)) + DEEP)
    shape = json.dumps(
        {"x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    ).encode()
    (root / "shape.safetensors").write_bytes(struct.pack("<Q", len(shape)) + shape)
    jobs = [("data", path) for path in sorted(root.iterdir()) if path.suffix != ".whole"]
    return [*jobs, *(("published", root / name) for name in ("stride.pt", "call.pt", "hash.pt"))]


def pictures(root: Path) -> list[tuple[str, Path]]:
    grey = png(12_000, 12_000, mode=0, depth=1)
    hostile = {
        "grey.png": grey,
        "alpha.png": png(7000, 7000, mode=6),
        "within.png": png(5500, 5500, mode=6),
        "huge.png": grey.replace(
            struct.pack(">II", 12_000, 12_000), struct.pack(">II", 10**6, 10**6)
        ),
        "line.png": png(1, 200_000, mode=2),
        "huge.jpg": jpeg(65_500),
        "large.jpg": jpeg(9000),
    }
    jobs = []
    for name, content in hostile.items():
        folder = picture_folder(root / name.replace(".", " "), name, content)
        jobs += [
            ("data at 32", folder),
            *([("data", folder)] if name != "within.png" else []),
        ]  # decoding that twice says nothing new
    return jobs


def records(root: Path) -> list[tuple[str, Path]]:
    names = ["m" * 150_000, "n" * 150_000]
    small = DistilledDataset(
        images=torch.rand(2, 1, 4, 4),
        labels=torch.tensor([0, 1]),
        classes=names,
        config={"source": {"name": names[0], "licence": names[0]}, "run": {"method": names[1]}},
    )
    small.save_pretrained(root / "names")
    for name in ("config.json", "metrics.json"):
        (shutil.copytree(root / "names", root / f"deep {name}") / name).write_bytes(
            b'{"a": ' + DEEP + b"}"
        )
    (root / "deep.ckpt").write_bytes(save({"a": torch.zeros(1)}, {"kdistill": DEEP.decode()}))
    (root / "wide.ckpt").write_bytes(
        encode({"a": torch.zeros(1)}, {"meta": [[]] * 240_000, "schema_version": 1, "sha256": ""})
    )
    for name, content in (
        ("experts", DEEP),
        ("wide experts", b'{"version": 1, "shards": {' + b'"a":"b",' * 90_000 + b'"a":"b"}}'),
    ):
        (root / name).mkdir()
        (root / name / "experts.json").write_bytes(content)
    (root / "sweep").mkdir()
    (root / "sweep" / "sweep.json").write_bytes(DEEP)
    head = b'# {"format": 1, "num_samples": 1, "digest": "a", "classes": ["a"]}\n'
    (root / "deep.csv").write_bytes(b"# " + DEEP + b"\nindex,label\n0,0\n")
    wide = b"index,label," + b",".join(b"m%d,m%d_rank" % (n, n) for n in range(30_000))
    (root / "wide.csv").write_bytes(head + wide + b"\n" + b",".join([b"0"] * 60_002) + b"\n")
    (root / "quoted.csv").write_bytes(head + b'index,label\n"' + b"0" * 900_000)
    (root / "deep.toml").write_bytes(b"a = " + DEEP)
    (root / "dotted.toml").write_bytes(b".".join([b"a"] * 20_000) + b" = 1\n")
    (root / "words.toml").write_bytes(b'a = "' + b"word " * 190_000 + b'"\n')
    (root / "deep.json").write_bytes(DEEP)
    return [
        *(("artefact", root / name) for name in ("names", "deep config.json", "deep metrics.json")),
        *(("checkpoint", root / name) for name in ("deep.ckpt", "wide.ckpt")),
        *(("experts", root / name) for name in ("experts", "wide experts")),
        ("compare", root / "sweep"),
        *(("scores", root / name) for name in ("deep.csv", "wide.csv", "quoted.csv")),
        *(
            ("config", root / name)
            for name in ("deep.toml", "dotted.toml", "words.toml", "deep.json")
        ),
    ]


MAY_BE_FINE = (
    "large jpg",
    "beside.npz",
    "within png",
    "names",
    "wide.csv",
    "words.toml",
)  # within the limits: read, and that quickly


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[tuple[str, str, dict]]:
    """Read everything in one process: importing torch costs more than all the files."""
    jobs = []
    for make in (networks, arrays, pictures, records):
        root = tmp_path_factory.mktemp(make.__name__)
        jobs += make(root)
    listed = root / "jobs"
    listed.write_text(json.dumps([[reader, str(path)] for reader, path in jobs]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_input.hostile_reader", str(listed)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(jobs), f"{jobs[len(lines)]} ended the process: {done.stderr[-1000:]}"
    return [(reader, str(path), line) for (reader, path), line in zip(jobs, lines, strict=True)]


def test_no_small_file_takes_much_memory_or_time(results):
    for reader, path, found in results:
        files = [file for file in (Path(path), *Path(path).rglob("*")) if file.is_file()]
        assert max(file.stat().st_size for file in files) <= LARGEST, path
        assert found["bytes"] < MOST_BYTES, (reader, path, found)
        assert found["seconds"] < MOST_SECONDS, (reader, path, found)


def test_every_small_file_is_answered_in_one_sentence(results):
    for reader, path, found in results:
        if path.endswith(MAY_BE_FINE) and not found["kind"]:
            continue
        assert found["kind"] in ("DataError", "ConfigError", "Unreadable"), (reader, path, found)
        assert "expected " in found["text"] and ";" in found["text"], (reader, path, found)
        assert "\n" not in found["text"] and len(found["text"]) < 1500, (reader, path, found)
