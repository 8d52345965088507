"""What Lightning tells when it is set up, held back until training begins: a run that is refused
says why, and nothing else."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from ldm.errors import UserError

_LOGGERS = ("utilities.rank_zero", "callbacks.model_summary")


class OpeningLines(pl.Callback):
    """Tells what was held back, once the first batch is there."""

    def __init__(self) -> None:
        self._held: list[tuple[logging.Logger, logging.LogRecord]] = []
        self._holds = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it they are held back until training begins. They are never told where a
        UserError comes before that."""
        loggers = [logging.getLogger(f"pytorch_lightning.{name}") for name in _LOGGERS]
        self._holds = True
        for logger in loggers:
            logger.addFilter(self._pass)
        try:
            yield
            self.tell()
        except UserError:
            raise
        except BaseException:
            self.tell()
            raise
        finally:
            for logger in loggers:
                logger.removeFilter(self._pass)

    def _pass(self, record: logging.LogRecord) -> bool:
        if self._holds:
            self._held.append((logging.getLogger(record.name), record))
        return not self._holds

    def tell(self) -> None:
        """Tell them now, and what comes later at once."""
        self._holds = False
        for logger, record in self._held:
            logger.handle(record)
        self._held.clear()

    def on_train_batch_start(self, *args: Any) -> None:
        """Training has begun."""
        if self._holds:
            self.tell()
