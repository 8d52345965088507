"""What frozen networks make of a batch of pictures, computed once for each row of a data set and kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Pictures (N, 3, H, W), and by name what the frozen networks make of them: (N, ...) each, the
    scaled `latent` and the `style` statistics among them."""

    pictures: Tensor
    made: Mapping[str, Tensor]

    def rows(self, which: Tensor) -> "Encoded":
        """What was made of these pictures alone."""
        return Encoded(self.pictures[which], {name: value[which] for name, value in self.made.items()})

    def of(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What has these names."""
        return {name: self.made[name] for name in names}


class Kept:
    """What was computed of each row of a data set, in memory, on its device."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, Tensor]] = {}

    def __call__(
        self, rows: Tensor | None, compute: Callable[[list[int]], dict[str, Tensor]], n: int
    ) -> dict[str, Tensor]:
        """What `compute` gives for all n samples of a batch: of those places whose `rows` (n,) are
        new, the others as kept. Nothing is kept where rows are None."""
        if rows is None:
            return compute(list(range(n)))
        keys = rows.tolist()
        new = [place for place, key in enumerate(keys) if key not in self._rows]
        if new:
            # Views: all rows of what was computed are kept.
            computed = {name: value.unbind() for name, value in compute(new).items()}
            self._rows |= {
                keys[place]: {name: values[i] for name, values in computed.items()}
                for i, place in enumerate(new)
            }
        samples = [self._rows[key] for key in keys]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def flat(photos: Encoded, paintings: Encoded) -> dict[str, Tensor]:
    """Both under names in one mapping."""
    return {
        f"{kind}.{name}": value
        for kind, encoded in (("photos", photos), ("paintings", paintings))
        for name, value in (("pictures", encoded.pictures), *encoded.made.items())
    }


def unflat(tensors: Mapping[str, Tensor]) -> tuple[Encoded, Encoded]:
    """(photos, paintings) again."""
    photos, paintings = (
        {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{kind}.")}
        for kind in ("photos", "paintings")
    )
    return Encoded(photos.pop("pictures"), photos), Encoded(paintings.pop("pictures"), paintings)


def halved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In bfloat16, which is exact enough for targets and takes half the memory."""
    return {name: value.bfloat16() for name, value in values.items()}
