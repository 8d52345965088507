"""What fails in a callback or logger of the config while a run is under way: told in a line, by where
it stands in the config."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ldm.errors import ConfigError, UserError
from ldm.files import written_whole
from ldm.text import one_line

KEPT = "traceback.txt"  # in the run's folder


@contextmanager
def errors_of(parts: Mapping[str, object], folder: Path) -> Iterator[None]:
    """Within it what one of the parts, by their keys in the config, lets fail is a ConfigError; how
    it came to it is kept in the run's folder, if there is anything in that to go on with."""
    try:
        yield
    except (UserError, MisconfigurationException):
        raise
    except Exception as error:
        found = _failed(error, parts)
        if found is None:
            raise
        key, hook = found
        kept = ""
        if any(folder.glob("checkpoints/*")):
            with written_whole(folder / KEPT) as aside:
                aside.write_text("".join(traceback.format_exception(error)), "utf-8")
            kept = f"; {folder / KEPT} has the traceback"
        raise ConfigError(
            f"{key}: {type(parts[key]).__name__} failed in {hook} ({one_line(error)}); change its params, or leave it out{kept}"
        ) from error


def _failed(error: BaseException, parts: Mapping[str, object]) -> tuple[str, str] | None:
    """(key, function) of the part that was called last on the way to an error."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        own = frame.f_locals.get("self")
        key = next((key for key, part in parts.items() if part is own), None)
        if key is not None and (found is None or found[0] != key):
            found = key, frame.f_code.co_name
    return found
