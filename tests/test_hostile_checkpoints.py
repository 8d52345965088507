"""Checkpoints made to keep the reader busy, to fill the memory, or to be read as something else: each is refused in a
line, in seconds and little memory, by a process that would be ended otherwise."""

import io
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_builders import (
    REBUILD,
    number,
    of_tensor,
    pickled,
    safetensors_bytes,
    saved,
    storage,
    tensor,
    text,
    zipped,
)

from ldm.checkpoint import read_state_dict
from ldm.errors import CheckpointError

SECONDS, BYTES = 5, 500_000_000


def with_key(key: bytes) -> bytes:
    """A file with a weight and, beside it, a dict of this key."""
    return zipped(pickled(text("weight"), tensor(), text("extra"), b"}" + key + b"Ns"), _0=bytes(16))


def with_value(value: bytes) -> bytes:
    return zipped(pickled(text("weight"), tensor(), text("extra"), value), _0=bytes(16))


def calling(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    call = f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"
    return zipped(pickled(text("weight"), tensor(), text("extra"), call), _0=bytes(16))


def numbered(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def colliding_keys() -> bytes:
    keys = b"".join(numbered(i * (2**61 - 1)) + b"N" for i in range(1, 200_000))
    return zipped(pickled(text("weight"), tensor(), text("extra"), b"}(" + keys + b"u"), _0=bytes(16))


def many_tensors() -> bytes:
    """Three bytes of the pickle for each."""
    arguments = b"(" + storage() + b"K\x00(K\x04t(K\x01t\x89Nt"
    begin = REBUILD + b"q\x01" + arguments + b"q\x02R"
    again = b"h\x01h\x02R" * 400_000
    return zipped(pickled(text("weight"), begin, text("more"), b"](" + again + b"e"), _0=bytes(16))


def overlapping() -> bytes:
    """A directory that names the same ten million bytes ten thousand times."""
    file = io.BytesIO(of_tensor(tensor()))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/data/1", bytes(10_000_000))
        entry = archive.infolist()[-1]
        archive.filelist.extend([entry] * 10_000)
    return file.getvalue()


def with_unreadable_name() -> bytes:
    return zipped(pickled(text("weight"), tensor()), _0=bytes(16), é=b"").replace("é".encode(), b"\xff\xfe")


def other_tensors() -> dict[str, tuple[bytes, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on what is new or old in it
        tensors = {
            "quantised": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
            "sparse": torch.eye(3).to_sparse(),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "meta": torch.empty(3, device="meta"),
        }
        return {
            f"{kind}.ckpt": (saved({"weight": value}), f"a {kind} tensor") for kind, value in tensors.items()
        }


HOSTILE = {
    "stride 0.ckpt": (
        saved({"weight": torch.zeros(1).expand(2**20, 2**20)}),
        "claim 4398.0 GB",
    ),
    "many names for few numbers.ckpt": (
        zipped(pickled(*(text(f"w{i}") + tensor((2**20, 4), (0, 1)) for i in range(1000))), _0=bytes(16)),
        "its tensors claim 67.1 MB and more",
    ),
    "doubled tuple as a key.ckpt": (with_key(b")" + b"q\x00h\x00\x86" * 60), "a key .* nesting"),
    "deep tuple as a key.ckpt": (with_key(b")" + b"\x85" * 300_000), "a key .* nesting"),
    "doubled tuple beside the weights.ckpt": (with_value(b")" + b"q\x00h\x00\x86" * 60), "over and over"),
    "list in itself.ckpt": (with_value(b"]q\x00h\x00a"), "over and over"),
    "deep list.ckpt": (with_value(b"]" * 100_000 + b"a" * 99_999), "within each other"),
    "keys of one hash.ckpt": (colliding_keys(), "a key .* number"),
    "many steps.ckpt": (zipped(b"\x80\x02(" + b"}" * 20_000_000 + b"l."), "3,000,000 steps"),
    "many tensors.ckpt": (many_tensors(), "3,000,000 steps"),
    "compressed.ckpt": (
        zipped(pickled(text("weight"), tensor()), zipfile.ZIP_DEFLATED, _0=bytes(300_000_000)),
        "its parts are compressed",
    ),
    "overlapping.ckpt": (overlapping(), "parts are larger than the file"),
    "name that is no text.ckpt": (with_unreadable_name(), "a damaged archive"),
    "memory by a call.ckpt": (
        calling("torch.FloatTensor", numbered(2**40)),
        "names the code `torch.FloatTensor`",
    ),
    "storage by a call.ckpt": (
        calling("torch.storage.UntypedStorage", numbered(2**36)) + b"",
        None,
    ),
    "bytes by a call.ckpt": (calling("builtins.bytearray", numbered(2**36)), None),
    "numbers that are not there.ckpt": (of_tensor(tensor((5,))), "larger than its numbers are many"),
    "numbers before the first.ckpt": (of_tensor(tensor(offset=-1)), "shape or marks"),
    "storage that is not there.ckpt": (
        of_tensor(tensor(length=2**40)),
        "the numbers of a tensor are missing",
    ),
    "name of two lines.ckpt": (
        of_tensor(tensor(), "weight\nerror: all is well"),
        r"has the name weight\?error",
    ),
    "name of a screen.ckpt": (of_tensor(tensor(), "\x1b[2J"), r"has the name \?\[2J"),
    "long name.ckpt": (of_tensor(tensor(), "w" * 10_000), r"has the name w+\.\.\. *$"),
    "code of two lines.ckpt": (calling("os.\x1b[2J"), r"names the code `os.\?\[2J`"),
    "deep header.safetensors": (safetensors_bytes(b'{"a":' + b"[" * 300_000, b""), "header cannot be read"),
    "long header.safetensors": (
        safetensors_bytes(b"{" + b'"a":{},' * 2_000_000, b""),
        "its header has 14.0 MB",
    ),
    "many dimensions.safetensors": (
        safetensors_bytes({"a": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}}, bytes(4)),
        "header cannot be read",
    ),
    "unknown numbers.safetensors": (
        safetensors_bytes({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, bytes(3)),
        "a damaged safetensors file",
    ),
    **other_tensors(),
}
READ = f"""
import json, resource, sys
from pathlib import Path
from ldm.checkpoint import describe
from ldm.errors import CheckpointError

def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    resource.setrlimit(resource.RLIMIT_CPU, (int(used()) + {SECONDS} + 1, resource.RLIM_INFINITY))
    try:
        outcome = str(describe(Path(path)).tensors)
    except CheckpointError as error:
        outcome = str(error)
    print(json.dumps([path, outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """file -> (what was said of it, the most memory by then in kB); a process that takes longer is ended."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (content, _) in HOSTILE.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, "-c", READ, *(str(folder / name) for name in HOSTILE)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(HOSTILE), "something was written"
    lines = map(json.loads, done.stdout.splitlines())
    return {Path(path).name: (outcome, memory) for path, outcome, memory in lines} | {"": (done.stderr, 0)}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_a_line_in_seconds_and_little_memory(
    outcomes: dict[str, tuple[str, int]], name: str
) -> None:
    assert name in outcomes, f"the process ended at it or before, of {outcomes['']}"
    said, memory = outcomes[name]
    assert "\n" not in said and "\x1b" not in said and len(said) < 600 and memory < BYTES / 1024
    _, problem = HOSTILE[name]
    if problem is None:  # what a call would make is not made, and the weights are read
        assert said == "1"
    else:
        with pytest.raises(CheckpointError, match=problem):
            raise CheckpointError(said)


def test_a_checkpoint_made_by_hand_is_read(tmp_path: Path) -> None:
    """As the hostile ones are made, but for what is hostile in them."""
    (tmp_path / "plain.ckpt").write_bytes(of_tensor(tensor((2, 2), (2, 1))))
    assert torch.equal(read_state_dict(tmp_path / "plain.ckpt")["weight"], torch.zeros(2, 2))


@pytest.mark.parametrize("form", [True, False])
def test_every_type_of_numbers_is_read(tmp_path: Path, form: bool) -> None:
    names = "float64 float16 bfloat16 float8_e4m3fn int8 uint8 int16 uint16 int32 uint32 int64 uint64 bool complex64"
    values = {name: torch.tensor([[0, 1], [2, 3]]).to(getattr(torch, name)) for name in names.split()}
    torch.save(values, tmp_path / "types.ckpt", _use_new_zipfile_serialization=form)
    read = read_state_dict(tmp_path / "types.ckpt")
    for name, value in values.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name].cfloat(), value.cfloat()), name
    assert list(read) == names.split()


def test_views_that_share_numbers_are_read(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    content = {"whole": whole, "turned": whole.T, "row": whole[1], "same": torch.ones(1).expand(4, 5)}
    torch.save(content, tmp_path / "views.ckpt")
    read = read_state_dict(tmp_path / "views.ckpt")
    assert all(torch.equal(read[name], value) for name, value in content.items())


@pytest.mark.parametrize("offset, length, fits", [(1, 2, True), (0, 4, True), (3, 2, False), (-1, 2, False)])
def test_a_part_of_other_numbers_is_read_as_torch_once_wrote_it(
    tmp_path: Path, offset: int, length: int, fits: bool
) -> None:
    part = b"(" + text("part") + number(offset) + number(length) + b"t"
    numbers = storage()[: -len(b"tQ")] + part + b"tQ"
    weight = REBUILD + b"(" + numbers + b"K\x00(" + number(max(length, 0)) + b"t(K\x01t\x89NtR"
    content = torch.arange(4.0).numpy().tobytes()
    (tmp_path / "old.ckpt").write_bytes(zipped(pickled(text("weight"), weight), _0=content))
    if fits:
        expected = torch.arange(4.0)[offset : offset + length]
        assert torch.equal(read_state_dict(tmp_path / "old.ckpt")["weight"], expected)
    else:
        with pytest.raises(CheckpointError, match="larger than its numbers are many"):
            read_state_dict(tmp_path / "old.ckpt")
