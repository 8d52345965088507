"""Loaders for training and validation, built from config, that can go on in the middle of an
epoch."""

import logging
import signal
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from ldm.checks import check_count
from ldm.config.factory import instantiate_from_config
from ldm.data.order import EpochOrder, Indexed, SeededSamples
from ldm.errors import ConfigError, UserError

log = logging.getLogger(__name__)

PREFETCHED_BATCHES = 4  # by each worker


class DataModuleFromConfig(pl.LightningDataModule):
    """`train` and `validation` are config nodes of data sets; `test` and `predict` are not built,
    as nothing here runs them.

    Order and random choices follow from `seed` (the training command sets it), see
    `ldm.data.order`; a data set that cannot be indexed keeps its own. Pictures that cannot be read
    are named in the log once; when they are more than `max_unreadable_share` of a data set's
    pictures, the run stops with their list.
    """

    trainer: Any  # Lightning's, as soon as there is one

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        num_workers: int = 4,
        shuffle_val_dataloader: bool = False,
        max_unreadable_share: float = 0.1,
        seed: int = 0,
        # Of published config files; they never had an effect on training.
        wrap: bool = False,
        test: Mapping[str, Any] | None = None,
        predict: Mapping[str, Any] | None = None,
        shuffle_test_loader: bool = False,
        use_worker_init_fn: bool = False,
    ):
        super().__init__()
        check_count("batch_size", batch_size)
        check_count("num_workers", num_workers, least=0)
        if not 0 <= max_unreadable_share <= 1:
            raise ConfigError(f"max_unreadable_share must be between 0 and 1, got {max_unreadable_share!r}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.shuffle_validation, self.max_unreadable_share = shuffle_val_dataloader, max_unreadable_share
        self.configs = {"train": train, "validation": validation}
        self.datasets: dict[str, Any] = {}
        self.unreadable: list[str] = []  # one line for each picture
        self._begin = (0, 0)  # epoch, samples of all processes in it

    def setup(self, stage: str | None = None) -> None:
        """Build the data sets that are not there yet. Raises ConfigError and UserError."""
        for name, config in self.configs.items():
            if config is not None and name not in self.datasets:
                self.datasets[name] = instantiate_from_config(
                    config, kind="data set", key=f"data.params.{name}"
                )

    # Loaders

    def train_dataloader(self) -> DataLoader:
        """Batches of `train`, from where training goes on. Raises ConfigError where there is
        none."""
        if "train" not in self.datasets:
            raise ConfigError("the data section has no `train` data set")
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """Batches of `validation`; nothing where there is none."""
        return (
            self._loader("validation", shuffle=self.shuffle_validation)
            if "validation" in self.datasets
            else []
        )

    def _loader(self, name: str, shuffle: bool) -> DataLoader:
        dataset = self.datasets[name]
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            # A generator of its own: the loader's draws must not depend on what the training has
            # drawn.
            "generator": torch.Generator().manual_seed(self.seed),
        }
        if self.num_workers:
            options |= {
                "persistent_workers": True,
                "prefetch_factor": PREFETCHED_BATCHES,
                "worker_init_fn": leave_signals_to_parent,
            }
        if isinstance(dataset, IterableDataset):
            if name == "train" and hasattr(dataset, "epoch"):
                dataset.epoch = self._begin[0]  # it counts on from there
            return DataLoader(dataset, **options)
        return DataLoader(
            SeededSamples(dataset), sampler=self._order(dataset, shuffle, name == "train"), **options
        )

    def _order(self, dataset: Indexed, shuffle: bool, training: bool) -> EpochOrder:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        drop_last = training and len(dataset) >= self.batch_size * world
        order = EpochOrder(len(dataset), self.batch_size, self.seed, shuffle, drop_last, rank, world)
        if training:
            order.begin_at(*self._begin)
        return order

    # Where training is, for checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Which samples the training has had: the epoch, and how many of it, counted over all
        processes."""
        epoch, batches = self._position()
        return {
            "seed": self.seed,
            "epoch": epoch,
            "samples": batches * self._whole_batch(),
            "whole_batch": self._whole_batch(),
        }

    def _whole_batch(self) -> int:
        """Samples of all processes together in a batch."""
        return self.batch_size * self.trainer.world_size

    def _position(self) -> tuple[int, int]:
        """(epoch, batches of it that are done)."""
        loop = self.trainer.fit_loop
        epoch, done = loop.epoch_progress.current.completed, loop.epoch_loop.batch_progress.current.processed
        return (epoch, done) if done < loop.max_batches else (epoch + 1, 0)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on behind those samples. Raises UserError where batches of another size would have to
        share an epoch."""
        before = state_dict["whole_batch"]
        if state_dict["samples"] and before != self._whole_batch():
            raise UserError(
                f"the checkpoint was written in the middle of an epoch with batches of {before} samples (all processes together), not "
                f"{self._whole_batch()}; go on with {before}, or start a new run from its weights with model.params.ckpt_path"
            )
        self.seed, self._begin = state_dict["seed"], (state_dict["epoch"], state_dict["samples"])

    # Pictures that cannot be read

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The batch without what it says of unreadable pictures, which is noted. Raises UserError
        for too many."""
        if isinstance(batch, dict) and "unreadable" in batch:
            self._note_unreadable(line for lines in batch.pop("unreadable") for line in lines.splitlines())
        return batch

    def _note_unreadable(self, problems: Iterable[str]) -> None:
        new = [line for line in dict.fromkeys(problems) if line not in self.unreadable]
        for line in new:
            self.unreadable.append(line)
            log.warning("picture left out: %s", line)
        if new and len(self.unreadable) > self.max_unreadable_share * self._pictures():
            raise UserError(
                f"{self._report()}, more than data.params.max_unreadable_share ({self.max_unreadable_share:g}) allows; "
                f"mend or remove them: {'; '.join(self.unreadable)}"
            )

    def _pictures(self) -> int:
        return sum(getattr(dataset, "pictures", 0) for dataset in self.datasets.values())

    def _report(self) -> str:
        return f"{len(self.unreadable)} of {self._pictures()} pictures could not be read"

    def teardown(self, stage: str) -> None:
        """Name the unreadable pictures once more."""
        self._final_report()

    def on_exception(self, exception: BaseException) -> None:
        """The same, since Lightning does not tear down what was interrupted."""
        self._final_report()  # Lightning does not tear down what was interrupted

    def _final_report(self) -> None:
        if self.unreadable:
            log.warning("%s and were replaced by others:\n  %s", self._report(), "\n  ".join(self.unreadable))


def leave_signals_to_parent(worker_id: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the training process finishes its step and then
    ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
