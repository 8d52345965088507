"""Training checkpoints on disk: whole or not at all, and never with a value that is not a
number."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from ldm.data.workers import of_worker
from ldm.errors import CheckpointError
from ldm.files import written_whole


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes aside, flushes to disk, then renames: a kill at any moment leaves the old checkpoint
    or the new one.

    `resumed` gives the checkpoint that a run goes on from, which has been read and checked by then.
    """

    def __init__(self, resumed: Callable[[], dict[str, Any]] | None = None):
        self.resumed = resumed

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """What `resumed` gives; without it, what is in the file."""
        return super().load_checkpoint(path, *args, **options) if self.resumed is None else self.resumed()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises CheckpointError, with what was at `path` untouched."""
        path = Path(path)
        trained = {key: checkpoint[key] for key in ("state_dict", "optimizer_states") if key in checkpoint}
        bad = next((name for name, value in _tensors(trained) if not bool(torch.isfinite(value).all())), None)
        if bad is not None:
            raise CheckpointError(
                f"{path}: not written, as {bad} has values that are not finite; the last good checkpoint is still there"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as aside:
                torch.save(checkpoint, aside)
        except (OSError, RuntimeError) as error:  # the latter: torch's own word for a full disk
            if of_worker(error):  # which a signal tells at any moment
                raise
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{path}: could not be written, is the disk full? What was there before is untouched ({reason})"
            ) from error


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _tensors(value, f"{name}.{index}")


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that `--resume` means: the file itself, or the last one of a run's
    folder. Raises CheckpointError."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if not path.is_dir():
        return path
    for candidate in (path / "checkpoints" / "last.ckpt", path / "last.ckpt"):
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"{path}: no checkpoints/last.ckpt in this folder; name a run's folder or a .ckpt file"
    )
