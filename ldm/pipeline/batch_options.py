"""How a painter of rows paints, said once for all rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ldm.checks import FACES, check_count, check_face_detector
from ldm.errors import UserError, in_short
from ldm.pipeline.chosen import ModelChoice
from ldm.pipeline.folders import check_head, found_style
from ldm.pipeline.inputs import Picture, Style
from ldm.pipeline.jobs import check_beside
from ldm.pipeline.library import check_no_saved_style
from ldm.pipeline.parts import Part
from ldm.pipeline.settings import Settings

Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchOptions:
    """How a BatchPainter paints. It can be pickled, as long as its pictures can.

    styles: by the names that rows call them; each is whatever a style picture may be, or a folder,
    all of whose pictures are one style. part: of the styles, that is looked at alone. keep,
    palette, not_style: see the pipeline's call; these files have to be where the painter is.
    keep_exif: write the photos' EXIF data into the results. said: what metadata say besides.
    Raises UserError for values that cannot be; the painter does for files that are not there.
    threads: of the CPU to compute with; None is as many as are free, looked at before each batch.
    With a number, pictures do not depend on what else the machine does.
    """

    styles: Mapping[str, Style]
    settings: Settings = Settings()
    model: ModelChoice = field(default_factory=ModelChoice)
    batch_size: int = 8
    keep: Picture | None = None
    palette: Picture | None = None
    not_style: Picture | None = None
    part: Part | None = None
    keep_exif: bool = False
    said: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.styles, Mapping):
            raise UserError(
                f"styles must be styles by their names, such as a dict, got {in_short(self.styles)}"
            )
        if not isinstance(self.settings, Settings):
            raise UserError(f"settings must be a Settings, got {in_short(self.settings)}")
        self.settings.check()
        check_count("batch_size", self.batch_size)

    def found(self) -> "BatchOptions":
        """The same with the files that the styles' names stand for on this machine. Raises UserError
        for what is not there, is no picture by its head, or does not go together."""
        if not self.styles:
            raise UserError("styles is empty; give one at least, such as {'klimt': 'klimt.jpg'}")
        check_beside(self.settings, self.palette, self.not_style)
        if self.settings.paints:
            self.model.files()
        self._check_others()
        styles = {name: _naming(f"style {name!r}", found_style, style) for name, style in self.styles.items()}
        return replace(self, styles=styles)

    def _check_others(self) -> None:
        """The pictures besides the styles."""
        by_faces = isinstance(self.keep, str) and self.keep == FACES
        if by_faces:
            check_face_detector()
        given = {
            "keep": None if by_faces else self.keep,
            "palette": self.palette,
            "not_style": self.not_style,
            "part": None if isinstance(self.part, tuple) else self.part,
        }
        for name, picture in given.items():
            if picture is not None:
                _naming(name, check_no_saved_style, picture)
                _naming(name, check_head, picture)


def _naming(name: str, work: Callable[[Any], Result], given: Any) -> Result:
    """`work(given)`, whose errors begin with the name of what was given."""
    try:
        return work(given)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
