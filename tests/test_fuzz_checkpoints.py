"""Damaged and hostile checkpoints, made at random: each gives the tensors that were written, or one line, in bounded
time and memory; nothing is run and nothing written."""

import json
import pickle
import resource
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
import torch
from checkpoint_builders import of_tensor, pickled, safetensors_bytes, saved, tensor, text, zipped
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from ldm.checkpoint import bake_ema, describe, load_strict, read_state_dict, save_safetensors
from ldm.checkpoint.carried import carries_config, config_of
from ldm.errors import CheckpointError, UserError

pytestmark = pytest.mark.fuzz

MEMORY = 500_000  # kB that reading may add to what the process had by then
WEIGHTS = {"model.weight": torch.arange(12.0).reshape(3, 4), "model.bias": torch.ones(3)}


def written(name: str, folder: Path) -> bytes:
    path = folder / name
    if path.suffix == ".safetensors":
        save_safetensors(WEIGHTS, path, {"config": json.dumps({"model": {"target": "torch.nn.Linear"}})})
    else:
        torch.save(
            {"state_dict": WEIGHTS, "global_step": 3, "optimizer_states": [{"betas": (0.9, 0.99)}]},
            path,
            _use_new_zipfile_serialization=path.suffix == ".ckpt",
        )
    return path.read_bytes()


FILES = "a.safetensors", "a.ckpt", "a.pth"  # the last as torch wrote them before 1.6


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: written(name, folder) for name in FILES}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@contextmanager
def harmless(folder: Path, path: Path) -> Iterator[None]:
    """What is in it writes nothing, takes little memory, and if it ends in an error, in one line that can be shown."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except UserError as error:
        said = str(error).replace(str(folder), "")
        assert said.isprintable() and len(said) < 700
    assert list(folder.iterdir()) == [path]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


def read(content: bytes, name: str, folder: Path) -> dict[str, torch.Tensor] | None:
    """The tensors, or None for a file that is refused; by a command or a pipeline it would be read so, too."""
    path = folder / name
    path.write_bytes(content)
    tensors = None
    try:
        with harmless(folder, path):
            if carries_config(path):
                config_of(path)
        with harmless(folder, path):
            tensors = {key: value.clone() for key, value in read_state_dict(path).items()}
        with harmless(folder, path):
            describe(path)
        with harmless(folder, path):
            load_strict(torch.nn.Linear(4, 3), bake_ema(tensors or {}))
    finally:
        path.unlink()
    return tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


damages = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "repeat"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, steps: list[tuple[str, float, int]]) -> bytes:
    for kind, share, value in steps:
        at = min(int(share * len(content)), max(len(content) - 1, 0))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ (value or 1)]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + bytes([value]) * (value % 9 + 1) + content[at:]
        elif kind == "repeat":
            content = content[:at] + content[at : at + value] * 2 + content[at + value :]
    return content


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
@examples(150)
@given(steps=damages)
def test_a_damaged_file_gives_the_same_tensors_or_one_line(
    whole: dict[str, bytes], place: Path, name: str, steps: list[tuple[str, float, int]]
) -> None:
    """They have hashes or check sums, but for those names that a flipped bit makes other ones in an archive's list."""
    tensors = read(damaged(whole[name], steps), name, place)
    assert tensors is None or same(tensors, WEIGHTS)


@examples(150)
@given(steps=damages)
def test_a_damaged_file_of_old_is_read_or_gives_one_line(
    whole: dict[str, bytes], place: Path, steps: list[tuple[str, float, int]]
) -> None:
    """It has no check sum."""
    read(damaged(whole["a.pth"], steps), "a.pth", place)


@examples(150)
@given(content=st.binary(max_size=200), head=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"<html>"]))
def test_any_bytes_give_one_line(place: Path, content: bytes, head: bytes) -> None:
    assert read(head + content, "a.ckpt", place) is None
    assert read(head + content, "a.safetensors", place) is None


# safetensors

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
json_values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
kinds = st.sampled_from(
    "F32 F16 BF16 F64 I8 U8 I16 U16 I32 U32 I64 U64 BOOL C64 F8_E4M3 F8_E5M2 F8_E8M0 F4 X".split()
)
sizes = st.sampled_from([0, 1, 2, 3, 4, 2**31, 2**62, 2**64, -1])
entries = st.fixed_dictionaries(
    {"dtype": kinds, "shape": st.lists(sizes, max_size=3), "data_offsets": st.lists(sizes, max_size=3)}
)
fitting = st.builds(
    lambda dtype, length: {"dtype": dtype, "shape": [length], "data_offsets": [0, 16]},
    kinds,
    st.sampled_from([1, 2, 4, 8, 16, 32]),
)
words = st.dictionaries(st.sampled_from(["format", "sha256", "config", "x"]), json_values, max_size=3)


@examples(300)
@given(
    header=st.dictionaries(st.text(max_size=9), entries | fitting | json_values, max_size=2),
    metadata=st.none() | words | json_values,
    length=st.sampled_from([0, 4, 16, 17]),
)
def test_any_header_is_read_or_gives_one_line(
    place: Path, header: dict, metadata: object, length: int
) -> None:
    header = header if metadata is None else {**header, "__metadata__": metadata}
    read(safetensors_bytes(header, bytes(length)), "a.safetensors", place)


# Pickles

atoms = st.sampled_from(
    [
        b"N", b"\x88", b"K\x03", b"J\xff\xff\xff\xff", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b")", b"]", b"}", b"\x8f", b"(",
        b"\x8a\x02\x00\x01", text("storage"), text("0"), text("weight"), text("\ud800"), text("latin1"), b"U\x03abc",
        tensor(), tensor((2, 2), (0, 0)), tensor((0,), (1,)), tensor((2**40,), (0,)),
        b"ctorch\nFloatStorage\n", b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n",
        b"c__builtin__\nset\n", b"c_codecs\nencode\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nfloat32\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"cargparse\nNamespace\n",
        b"cos\nsystem\n", b"ctorch._utils\n_rebuild_sparse_tensor\n",
    ]
)  # fmt: skip
steps_of_pickles = st.sampled_from(
    [b"t", b"l", b"d", b"u", b"s", b"a", b"e", b"R", b"b", b"Q", b"\x81", b"\x85", b"\x86", b"\x87", b"0", b"2", b"."]
    + [b"q" + bytes([i]) for i in range(3)] + [b"h" + bytes([i]) for i in range(3)]
)  # fmt: skip
programs = st.lists(atoms | steps_of_pickles, max_size=40).map(b"".join)


@examples(400)
@given(program=programs)
def test_any_pickle_is_read_or_gives_one_line(place: Path, program: bytes) -> None:
    read(zipped(b"\x80\x02" + program + b".", _0=bytes(16)), "a.ckpt", place)
    read(zipped(pickled(text("weight"), tensor(), text("extra"), program), _0=bytes(16)), "b.ckpt", place)
    read(b"\x80\x02" + program + b".", "a.pth", place)


def tampered(program: bytes, numbers: int, compression: int, order: bytes) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/data/0", bytes(numbers))
        archive.writestr("x/byteorder", order)
    return file.getvalue()


@examples(100)
@given(
    numbers=st.integers(0, 20),
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
    order=st.sampled_from([b"little", b"big", b"", b"\n"]),
    size=st.integers(0, 6),
    stride=st.integers(-1, 3),
    offset=st.integers(-1, 3),
)
def test_a_tensor_holds_numbers_of_the_file_alone(
    place: Path, numbers: int, compression: int, order: bytes, size: int, stride: int, offset: int
) -> None:
    """What lies behind them in the file, or in memory, is never among its values: all those are 0."""
    weight = tensor((size,), (stride,), offset)
    tensors = read(tampered(pickled(text("weight"), weight), numbers, compression, order), "a.ckpt", place)
    whole = compression == zipfile.ZIP_STORED and order == b"little" and numbers >= 16
    fits = min(stride, offset) >= 0 and (size == 0 or offset + (size - 1) * stride < 4)
    assert (tensors is not None) == (whole and fits)
    assert tensors is None or not tensors["weight"].any()


@pytest.mark.parametrize("protocol", range(6))
@examples(60)
@given(content=st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_pickles_of_plain_values_give_one_line(place: Path, protocol: int, content: dict) -> None:
    assert read(pickle.dumps(content, protocol=protocol), "a.ckpt", place) is None


@examples(100)
@given(content=st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_what_stands_beside_the_weights_is_kept(place: Path, content: dict) -> None:
    tensors = read(saved({**content, "state_dict": WEIGHTS}), "a.ckpt", place)
    assert tensors is not None and same(tensors, WEIGHTS)


def test_what_is_not_damaged_is_read(whole: dict[str, bytes], place: Path) -> None:
    for name, content in whole.items():
        tensors = read(content, name, place)
        assert tensors is not None and same(tensors, WEIGHTS)
    assert read(of_tensor(tensor()), "a.ckpt", place) is not None
    with pytest.raises(CheckpointError):
        read_state_dict(place / "a.ckpt")
