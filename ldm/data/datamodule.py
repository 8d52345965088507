"""Loaders for training and validation, built from config."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from ldm.errors import ConfigError
from ldm.util import instantiate_from_config


class DataModuleFromConfig(pl.LightningDataModule):
    """`train` and `validation` are config nodes of data sets."""

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        num_workers: int = 4,
        shuffle_val_dataloader: bool = False,
    ):
        super().__init__()
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size must be a whole number from 1 on, got {batch_size!r}")
        self.batch_size, self.num_workers = batch_size, num_workers
        self.shuffle_validation = shuffle_val_dataloader
        self.configs = {"train": train, "validation": validation}
        self.datasets: dict[str, Dataset] = {}

    def setup(self, stage: str | None = None) -> None:
        for name, config in self.configs.items():
            if config is not None and name not in self.datasets:
                self.datasets[name] = instantiate_from_config(config)

    def train_dataloader(self) -> DataLoader:
        if "train" not in self.datasets:
            raise ConfigError("the data section has no `train` data set")
        return self._loader("train", shuffle=True, drop_last=len(self.datasets["train"]) >= self.batch_size)

    def val_dataloader(self) -> DataLoader | list:
        return self._loader("validation", shuffle=self.shuffle_validation) if "validation" in self.datasets else []

    def _loader(self, name: str, **options: bool) -> DataLoader:
        return DataLoader(
            self.datasets[name],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **options,
        )
