"""ldm.pipeline.pairing: which photo is painted in which styles."""

from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.pipeline.pairing import Pairing

CONTENTS = [(f"c{i}", Path(f"photos/clip{i // 3}_{i}.png")) for i in range(9)]
STYLES = [(name, f"{name}.jpg") for name in "stuvw"]


def named(pairing: Pairing, contents: list = CONTENTS, styles: list = STYLES) -> list[tuple[str, str]]:
    return [(content, style) for (content, _), (style, _) in pairing.pairs(contents, styles)]


def test_every_photo_in_every_style() -> None:
    assert named(Pairing()) == [(content, style) for content, _ in CONTENTS for style, _ in STYLES]


def test_the_first_in_the_first() -> None:
    assert named(Pairing("zip"), CONTENTS[:5]) == list(zip(["c0", "c1", "c2", "c3", "c4"], "stuvw"))
    with pytest.raises(UserError, match="--pair zip: 9 photos and 5 styles do not pair up"):
        named(Pairing("zip"))


def test_styles_are_drawn_by_seed_and_name_alone() -> None:
    drawn = named(Pairing("random", 2))
    assert [content for content, _ in drawn] == [name for name, _ in CONTENTS for _ in range(2)]
    of = {name: {style for content, style in drawn if content == name} for name, _ in CONTENTS}
    assert all(len(styles) == 2 for styles in of.values()) and len(set().union(*of.values())) == 5
    # whatever else is painted, in whatever order, from whatever folder
    assert named(Pairing("random", 2), CONTENTS[4:6], STYLES[::-1]) == drawn[8:12]
    assert named(Pairing("random", 2), [("c4", Path("elsewhere") / CONTENTS[4][1].name)]) == drawn[8:10]
    assert named(Pairing("random", 2, seed=1)) != drawn
    # known, so that no version draws others
    assert named(Pairing("random"), CONTENTS[:3]) == KNOWN


KNOWN = [("c0", "s"), ("c1", "v"), ("c2", "u")]


@pytest.mark.parametrize("group_by", ["clip[0-9]", "(clip[0-9])_", "/clip.+?_"])
def test_photos_of_a_group_have_the_same_styles(group_by: str) -> None:
    drawn = named(Pairing("random", 2, group_by))
    for clip in range(3):
        assert len({tuple(style for _, style in drawn[6 * clip + 2 * i :][:2]) for i in range(3)}) == 1
    assert len(set(drawn)) == 18 and len({style for _, style in drawn}) > 2


@pytest.mark.parametrize(
    "pairing, problem",
    [
        (Pairing("random", 6), "--per-content 6: there are only 5 styles"),
        (Pairing("random", group_by="frame"), "--group-by frame: finds nothing in photos/clip0_0.png"),
        (Pairing("random", group_by="("), r"--group-by \(: no regular expression"),
    ],
)
def test_what_cannot_be_is_refused(pairing: Pairing, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        pairing.check()
        named(pairing)
