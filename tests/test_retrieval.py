"""Whose picture a result is: EfficientNet-Lite0 as the judge, ranks, palettes, chroma, and the likeness of textures."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import picture, randomise
from torch import Tensor, nn

from ldm.checkpoint import save_safetensors
from ldm.errors import UserError
from ldm.evaluation import colours
from ldm.evaluation.colours import Alike, Colours
from ldm.evaluation.efficientnet import EfficientNetLite0, SameConv, load_judge
from ldm.evaluation.evaluator import Evaluator, Measured, to_tensors
from ldm.evaluation.metrics import PairMetrics
from ldm.evaluation.pairs import Pair, ResultSet, untouched
from ldm.evaluation.retrieval import LAST_STAGE, Retrieval, ranks, standardised
from ldm.modules.losses.lpips import vgg16

SIDE = 64
CONTENTS = {name: picture(SIDE, SIDE, 10 + i) for i, name in enumerate("abcd")}
STYLES = {name: picture(SIDE, SIDE, 20 + i) for i, name in enumerate("vwxyz")}
PAIRS = [(content, style) for content in CONTENTS for style in STYLES]
METRICS = PairMetrics(randomise(vgg16(channels=(2, 2, 2, 2, 2))))


@pytest.fixture(scope="module")
def judge() -> EfficientNetLite0:
    return randomise(EfficientNetLite0(last=LAST_STAGE))


# The network


@pytest.mark.parametrize("side, first", [(4, 0), (5, -1), (6, 0), (7, -1)])
def test_padding_is_tensorflows(side: int, first: int) -> None:
    """The kernel's first column looks at column `first` of the picture (-1: zeros) for the first result, and 2 on for the next."""
    conv = SameConv(1, 1, 3, 2, bias=False)
    conv.weight.data = torch.tensor([[[[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]]])
    pixels = torch.arange(1.0, 1 + side * side).view(1, 1, side, side)
    padded = torch.nn.functional.pad(pixels, (1, 1, 1, 1))[..., 1 + first :, 1 + first :]
    count = -(-side // 2)
    assert torch.equal(conv(pixels), padded[..., ::2, ::2][..., :count, :count])


def test_the_maps_of_each_stage(judge: EfficientNetLite0) -> None:
    """A picture of an odd shape: sides are halved and rounded up."""
    maps = EfficientNetLite0()(torch.zeros(1, 3, 70, 64))
    sides = [
        (32, 35, 32),
        (16, 35, 32),
        (24, 18, 16),
        (40, 9, 8),
        (80, 5, 4),
        (112, 5, 4),
        (192, 3, 2),
        (320, 3, 2),
    ]
    assert {stage: tuple(value.shape[1:]) for stage, value in maps.items()} == dict(enumerate(sides))
    assert list(judge(torch.zeros(1, 3, 32, 32))) == [0, 1, 2, 3, 4, 5]


def test_a_block_adds_its_input_only_where_nothing_changes_shape() -> None:
    net = EfficientNetLite0()
    assert [i for i, block in enumerate(net._blocks) if block.adds] == [2, 4, 6, 7, 9, 10, 12, 13, 14]


def test_pictures_are_scaled_as_in_its_training(judge: EfficientNetLite0) -> None:
    seen: list[Tensor] = []
    hook = judge._conv_stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for level in (0, 127, 255):
        judge(to_tensors([Image.new("RGB", (32, 32), (level, level, level))]))
    hook.remove()
    assert [x.mean().item() for x in seen] == pytest.approx([-127 / 128, 0, 1], abs=1e-6)


def package_names() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the package efficientnet-lite-pytorch, its counters of training steps left out."""

    def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}

    names = {
        "_conv_stem.weight": (32, 3, 3, 3),
        "_conv_head.weight": (1280, 320, 1, 1),
        "_fc.weight": (1000, 1280),
        "_fc.bias": (1000,),
    }
    names |= norm("_bn0", 32) | norm("_bn1", 1280)
    widths = [32, 16, *[24] * 2, *[40] * 2, *[80] * 3, *[112] * 3, *[192] * 4, 320]
    kernels = [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]
    for i, (width_in, width, kernel) in enumerate(zip(widths[:-1], widths[1:], kernels, strict=True)):
        inner, block = width_in * (6 if i else 1), f"_blocks.{i}."
        if i:
            names |= {f"{block}_expand_conv.weight": (inner, width_in, 1, 1), **norm(f"{block}_bn0", inner)}
        names |= {
            f"{block}_depthwise_conv.weight": (inner, 1, kernel, kernel),
            f"{block}_project_conv.weight": (width, inner, 1, 1),
        }
        names |= norm(f"{block}_bn1", inner) | norm(f"{block}_bn2", width)
    return names


def test_names_and_shapes_are_the_packages() -> None:
    assert {
        name: tuple(value.shape) for name, value in EfficientNetLite0().state_dict().items()
    } == package_names()


@pytest.mark.parametrize("counters", [True, False], ids=["with counters", "without"])
def test_weights_are_read_from_a_file(judge: EfficientNetLite0, tmp_path: Path, counters: bool) -> None:
    state = judge.state_dict() | ({"_bn0.num_batches_tracked": torch.tensor(7)} if counters else {})
    torch.save(state, tmp_path / "lite0.pth")
    pictures = to_tensors([picture(32, 32, 1)])
    loaded, wanted = load_judge(tmp_path / "lite0.pth", last=LAST_STAGE)(pictures), judge(pictures)
    assert not any(torch.equal(loaded[stage], EfficientNetLite0()(pictures)[stage]) for stage in loaded)
    assert (
        all(torch.equal(loaded[stage], wanted[stage]) for stage in wanted) and loaded.keys() == wanted.keys()
    )


def test_a_file_of_another_network_is_refused(judge: EfficientNetLite0, tmp_path: Path) -> None:
    state = judge.state_dict()
    del state["_blocks.15._bn2.bias"]
    save_safetensors(state, tmp_path / "cut.safetensors")
    with pytest.raises(
        UserError, match=r"cut.safetensors does not fit EfficientNetLite0.*_blocks.15._bn2.bias"
    ):
        load_judge(tmp_path / "cut.safetensors")


# Ranks


def test_ranks_by_hand_and_ties_count_against() -> None:
    distances = torch.tensor([[0.1, 0.5, 0.3], [0.1, 0.5, 0.3], [0.1, 0.5, 0.3], [0.2, 0.2, 0.3]])
    assert ranks(distances, [0, 1, 2, 0]) == [1, 3, 2, 2]


def test_standardised_by_hand() -> None:
    distances = torch.tensor([[1.0, 10.0, 4.0], [3.0, 30.0, 4.0]])
    assert torch.allclose(standardised(distances), torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]))


def test_a_painting_that_is_near_to_everything_is_not_everyones_nearest() -> None:
    distances = torch.tensor([[0.1, 2.0, 3.0], [0.3, 1.0, 3.0], [0.3, 2.0, 2.0]])
    assert ranks(distances, [0, 1, 2]) == [1, 2, 3] and ranks(standardised(distances), [0, 1, 2]) == [1, 1, 1]


def measure(
    judge: EfficientNetLite0 | None, result: Callable[[Pair], Image.Image], styles: Mapping = STYLES
) -> Measured:
    """All pairs of one set whose results a function gives."""
    pairs = [(content, style) for content in CONTENTS for style in styles]
    results = ResultSet("made up", pairs, lambda batch: [result(pair) for pair in batch])
    return Evaluator(CONTENTS, styles, METRICS, judge=judge).measure([results])[0]


def next_of(named: Mapping[str, Image.Image], name: str) -> Image.Image:
    names = list(named)
    return named[names[(names.index(name) + 1) % len(names)]]


def test_the_paintings_themselves_are_found_by_style(judge: EfficientNetLite0) -> None:
    assert measure(judge, lambda pair: STYLES[pair[1]]).share_within(1, "style_rank") == 1
    wrong = measure(judge, lambda pair: next_of(STYLES, pair[1]))
    assert wrong.share_within(1, "style_rank") == 0 and wrong.share_within(5, "style_rank") == 1


def test_the_photos_themselves_are_found_by_content_and_by_style_as_by_chance(
    judge: EfficientNetLite0,
) -> None:
    one = Evaluator(CONTENTS, STYLES, METRICS, judge=judge).measure([untouched(CONTENTS, PAIRS)])[0]
    assert list(one.rows) == PAIRS and one.share_within(1, "content_rank") == 1
    assert (one.share_within(1, "style_rank"), one.share_within(3, "style_rank")) == pytest.approx(
        (1 / 5, 3 / 5)
    )
    assert measure(judge, lambda pair: next_of(CONTENTS, pair[0])).share_within(1, "content_rank") == 0


class ShowsPictures(nn.Module):
    """A judge whose maps, at every stage, are the pictures themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pictures: Tensor) -> dict[int, Tensor]:
        return dict.fromkeys(range(6), pictures)


def test_content_distance_does_not_see_a_channels_mean_and_contrast() -> None:
    photos = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    restyled = (
        photos * torch.tensor([2.0, 0.5, 0.1])[:, None, None]
        + torch.tensor([10.0, -40.0, 20.0])[:, None, None]
    )
    distances = Retrieval(ShowsPictures(), [photos[:1], photos[1:]], [photos]).compare(restyled)[1]
    assert (
        torch.allclose(distances.diagonal(), torch.zeros(4), atol=1e-2)
        and distances[~torch.eye(4, dtype=bool)].min() > 0.5
    )


def test_style_distance_by_hand() -> None:
    """One channel of plain 2 has the Gram matrix 4, of plain 3 and 1 they are 9 and 1; five stages."""
    two, three, one = (torch.full((1, 1, 4, 4), value) for value in (2.0, 3.0, 1.0))
    distances = Retrieval(ShowsPictures(), [one], [three, one]).compare(two)[0]
    assert torch.allclose(distances, torch.tensor([[5 * 25 / 81, 5 * 9.0]]))


def test_each_set_is_ranked_by_its_own_results(judge: EfficientNetLite0) -> None:
    """Whatever else is measured, and in pairs of its own order."""
    good = ResultSet("good", PAIRS[::-1], lambda batch: [STYLES[style] for _, style in batch])
    few = ResultSet("few", PAIRS[:1], lambda batch: [STYLES[style] for _, style in batch])
    together = Evaluator(CONTENTS, STYLES, METRICS, judge=judge).measure(
        [good, untouched(CONTENTS, PAIRS), few]
    )
    assert together[0].share_within(1, "style_rank") == 1 and together[1].share_within(
        1, "style_rank"
    ) == pytest.approx(1 / 5)
    # one has no spread
    assert (
        together[2].share_within(1, "style_rank") is None and together[2].share_within(4, "content_rank") == 1
    )


def test_without_a_judge_there_are_no_ranks() -> None:
    one = measure(None, lambda pair: STYLES[pair[1]])
    assert (
        one.share_within(1, "style_rank") is None
        and one.share_within(1, "content_rank") is None
        and one.alike is not None
    )


def test_every_picture_is_judged_once(judge: EfficientNetLite0) -> None:
    seen: list[Tensor] = []
    hook = judge.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    measure(judge, lambda pair: STYLES[pair[1]])
    hook.remove()
    assert len(seen) == len(CONTENTS) + len(STYLES) + len(PAIRS)


# Textures


def noise(seed: int, amount: float = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, amount, (SIDE, SIDE, 1))


def textured(level: float, texture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(level + texture * np.ones(3), 0, 255).astype(np.uint8))


def likeness(batches: list[list[Image.Image]]) -> float | None:
    alike = Alike()
    for batch in batches:
        alike.add(to_tensors(batch))
    return alike.value()


def test_one_texture_for_all_is_alike_and_independent_ones_are_not() -> None:
    assert measure(
        None, lambda pair: textured(100 + 20 * "vwxyz".index(pair[1]), noise(0, 10))
    ).alike == pytest.approx(1, abs=0.01)
    assert measure(None, lambda pair: textured(128, noise(PAIRS.index(pair)))).alike == pytest.approx(
        0, abs=0.02
    )


def test_likeness_does_not_see_what_is_coarse() -> None:
    slope = np.linspace(-60, 60, SIDE)[:, None, None] * np.ones((1, SIDE, 1))
    assert abs(likeness([[textured(128, slope + noise(1, 10)), textured(128, slope + noise(2, 10))]])) < 0.1


def test_likeness_is_the_mean_correlation_of_each_two() -> None:
    shared = noise(0, 20)
    pictures = [
        textured(128, weight * shared + noise(i, 20)) for i, weight in ((1, 0.5), (2, 1.0), (3, -1.0))
    ]
    luma = [colours.luminance(to_tensors([one]))[0, 0].numpy() for one in pictures]
    padded = [np.pad(one, 4, constant_values=np.nan) for one in luma]
    fine = [
        one - np.nanmean(np.lib.stride_tricks.sliding_window_view(pad, (9, 9)), axis=(2, 3))
        for one, pad in zip(luma, padded)
    ]
    table = np.corrcoef([one.ravel() for one in fine])
    assert likeness([pictures[:2], pictures[2:]]) == pytest.approx(
        (table[0, 1] + table[0, 2] + table[1, 2]) / 3, abs=1e-4
    )


def test_likeness_of_plain_pictures_and_of_one() -> None:
    plain = Image.new("RGB", (SIDE, SIDE), (90, 90, 90))
    assert likeness([[plain, plain]]) == pytest.approx(0, abs=1e-6) and likeness([[plain]]) is None
    assert measure(None, lambda pair: plain, styles={"v": STYLES["v"]}).alike is None


# Colours


def test_palette_share_of_the_photo_of_the_painting_and_of_what_lies_between() -> None:
    def between(share: float) -> Callable[[Pair], Image.Image]:
        return lambda pair: Image.blend(STYLES[pair[1]], CONTENTS[pair[0]], share)

    shares = [measure(None, between(share)).palette_share for share in (1, 0.5, 0)]
    assert (
        shares[0] == pytest.approx(1)
        and shares[2] == pytest.approx(0, abs=0.01)
        and shares[2] + 0.05 < shares[1] < 0.95
    )


def test_palette_share_is_a_ratio_of_means() -> None:
    rows = {
        pair: {"palette_distance": d, "palette_untouched": u}
        for pair, d, u in zip(PAIRS, (1.0, 1.0), (1.0, 3.0))
    }
    assert Measured(ResultSet("made up", PAIRS[:2], lambda pairs: []), rows).palette_share == pytest.approx(
        0.5
    )


def test_palettes_are_measured_alike_every_time_and_leave_the_random_numbers_alone() -> None:
    a, b = to_tensors([CONTENTS["a"], CONTENTS["b"]]), to_tensors([STYLES["v"], STYLES["w"]])
    torch.manual_seed(5)
    first, drawn = colours.palettes_apart(a, b), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.allclose(
        torch.cat([colours.palettes_apart(a[i : i + 1], b[i : i + 1]) for i in (0, 1)]), first, rtol=1e-4
    )


def test_chroma_is_that_of_jpegs_colours() -> None:
    image = picture(SIDE, SIDE, 3)
    _, cb, cr = (np.asarray(channel, dtype=float) - 128 for channel in image.convert("YCbCr").split())
    assert colours.chroma(to_tensors([image])).item() == pytest.approx(np.hypot(cb, cr).mean(), abs=0.5)
    assert colours.chroma(to_tensors([Image.new("RGB", (8, 8), (90, 90, 90))])).item() == pytest.approx(
        0, abs=1e-3
    )


@pytest.mark.parametrize("blue, counts", [(96, True), (106, True), (110, False)])
def test_only_results_of_black_and_white_paintings_count(blue: int, counts: bool) -> None:
    """A hint of blue is still black and white: of 10 levels it makes a chroma of about 5 * 0.8."""
    tinted = Image.new("RGB", (SIDE, SIDE), (100, 100, blue))
    is_grey = colours.chroma(to_tensors([tinted])).item() < 4
    rows = Colours(to_tensors([tinted, STYLES["v"]])).measure(
        to_tensors([CONTENTS["a"]] * 2), torch.zeros(2), [0, 1]
    )
    assert is_grey == counts and (rows[0]["chroma_bw"] is not None) == counts and rows[1]["chroma_bw"] is None
    if counts:
        assert rows[0]["chroma_bw"] == pytest.approx(colours.chroma(to_tensors([CONTENTS["a"]])).item())


def test_chroma_of_a_set_is_the_mean_over_black_and_white_paintings() -> None:
    styles = {"grey": STYLES["v"].convert("L").convert("RGB"), "coloured": STYLES["w"]}
    grey_only = measure(
        None, lambda pair: styles["grey"] if pair[1] == "grey" else STYLES["x"], styles=styles
    )
    assert grey_only.mean("chroma_bw") == pytest.approx(0, abs=1)
    assert measure(None, lambda pair: STYLES["x"], styles=styles).mean("chroma_bw") > 4
    assert measure(None, lambda pair: STYLES["x"]).mean("chroma_bw") is None
