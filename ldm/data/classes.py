"""Pictures with labels: a folder with a folder for each class."""

from pathlib import Path
from typing import Any

from ldm.data.pictures import PictureFolder
from ldm.data.splits import find_pictures
from ldm.errors import UserError


class ClassFolders(PictureFolder):
    """Samples with a `class_label`: the number of the picture's folder among those directly below
    `root`, by their names.

    Options as in PictureFolder. Labels are the same for every split.
    """

    def __init__(self, root: str, **options: Any):
        self.root = Path(root)
        self.classes = class_names(self.root)
        super().__init__(root, **options)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)  # maybe of another picture than asked for
        return {**sample, "class_label": self.classes.index(_folder_of(Path(sample["path"]), self.root))}


def class_names(root: str | Path) -> list[str]:
    """The folders below `root` that have pictures, sorted: their places are the labels. Raises
    UserError for loose pictures."""
    paths = find_pictures(root)
    loose = [path for path in paths if path.parent == Path(root)]
    if loose:
        raise UserError(
            f"{loose[0]}: belongs to no class; move it into a folder below {root}, one for each class"
        )
    return sorted({_folder_of(path, Path(root)) for path in paths})


def _folder_of(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0]
