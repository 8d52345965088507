"""Many results in one file: a tar shard, as WebDataset has them, or a Parquet table."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ldm.errors import UserError
from ldm.media.places import Place, written_at

KINDS = ("tar", "parquet")
GROUP = 64  # rows of a table that are held until they are written together


class Pack(Protocol):
    """A file that takes results one by one."""

    def add(self, picture: bytes, said: Mapping[str, str]) -> None:
        """A picture file, and texts that belong to it: `output`, the path that it would have in
        the folder of results, `content`, `style` and `metadata`."""


class TarPack:
    """Of each result NAME.png, or as it is, with the folders that it would be in, and NAME.json with
    its texts. The same results make the same bytes."""

    def __init__(self, file: tarfile.TarFile):
        self.file, self._names = file, set[str]()

    def add(self, picture: bytes, said: Mapping[str, str]) -> None:
        """See `Pack`."""
        output = PurePosixPath(said["output"])
        # What is before a name's first dot is what WebDataset puts together.
        own = name = str(output.with_name(output.stem.replace(".", "_")))
        number = 0
        while name in self._names:
            number += 1
            name = f"{own}-{number}"
        self._names.add(name)
        self._add(f"{name}{output.suffix}", picture)
        self._add(f"{name}.json", json.dumps(dict(said), sort_keys=True).encode())

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self.file.addfile(member, io.BytesIO(content))


class ParquetPack:
    """A row for each result, the picture file in the column `picture`."""

    COLUMNS = ("output", "content", "style", "metadata")

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [*((name, pa.string()) for name in self.COLUMNS), ("picture", pa.binary())]
        self._arrow, self._schema = pa, pa.schema(fields)
        self._writer, self._rows = pq.ParquetWriter(path, self._schema), list[dict[str, Any]]()

    def add(self, picture: bytes, said: Mapping[str, str]) -> None:
        """See `Pack`."""
        self._rows.append({**said, "picture": picture})
        if len(self._rows) == GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
            self._rows.clear()


def check_pack(kind: str) -> None:
    """Raises UserError where packs of this kind cannot be written."""
    if kind == "parquet" and not find_spec("pyarrow"):
        raise UserError("Parquet needs the package pyarrow; install it with: pip install -e '.[cluster]'")


@contextmanager
def pack_at(place: Place) -> Iterator[Pack]:
    """A pack of the kind that the ending says, which is there when all of it is. Raises UserError
    and OSError."""
    with written_at(place) as aside:
        if place.suffix == ".parquet":
            table = ParquetPack(aside)
            yield table
            table.close()
        else:
            with tarfile.open(aside, "w") as file:
                yield TarPack(file)
