"""Measuring style transfer: each metric by itself, then scripts/evaluate.py on a tiny model and narrow random VGG16s."""

import csv
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pipeline_builders
import pytest
import torch
from PIL import Image, ImageFilter
from pipeline_builders import (
    ROOT,
    everything_in,
    forbid_network,
    model_config,
    picture,
    randomise,
    run_program,
    save_config,
    script,
    tiny_model,
)
from torch import Tensor, nn

from ldm.checkpoint import save_safetensors
from ldm.errors import UserError
from ldm.evaluation import fid, metrics, plot
from ldm.evaluation import run as evaluation
from ldm.evaluation.efficientnet import EfficientNetLite0
from ldm.evaluation.evaluator import Evaluator, Measured, to_tensors
from ldm.evaluation.fid import art_fid, frechet_distance, load_inception
from ldm.evaluation.metrics import PairMetrics, Statistics
from ldm.evaluation.pairs import ResultSet
from ldm.media.images import load_image
from ldm.modules.diffusionmodules.util import spatial_std_mean
from ldm.modules.losses import lpips as networks
from ldm.modules.losses.lpips import LPIPS, vgg16
from ldm.modules.losses.style_transfer import VggFeatures
from ldm.pipeline.pipeline import StyleTransferPipeline

CHANNELS = (8, 8, 12, 16, 4)
PAIRS = [(content, style) for content in ("castle", "moose") for style in ("sea", "wheat")]


@pytest.fixture(autouse=True)
def narrow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG16s made here are narrow: in no time, with all layers."""
    narrow = partial(vgg16, channels=CHANNELS)
    for place, name, value in (
        (metrics, "vgg16", narrow),
        (networks, "vgg16", narrow),
        (networks, "VGG_CHANNELS", CHANNELS),
    ):
        monkeypatch.setattr(place, name, value)


@pytest.fixture(scope="module")
def net() -> vgg16:
    return randomise(vgg16(channels=CHANNELS))


@pytest.fixture
def all_metrics(net: vgg16) -> PairMetrics:
    lpips = LPIPS(use_dropout=False)
    lpips.net = net
    for layer in lpips.children():
        if hasattr(layer, "model"):
            nn.init.constant_(layer.model[-1].weight, 0.2)
    return PairMetrics(net, lpips)


def measure(
    pair_metrics: PairMetrics, result: Image.Image, content: Image.Image, style: Image.Image
) -> dict[str, float | None]:
    """All metrics of one result."""
    reference = pair_metrics.content(to_tensors([content]))
    return pair_metrics.measure(to_tensors([result]), reference, pair_metrics.styles([to_tensors([style])]))[
        0
    ]


# Metrics of pairs


def test_gram_matrix_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0, 3.0]], [[0.0, 1.0, -1.0]]]])
    assert torch.allclose(metrics.gram_matrix(maps), torch.tensor([[[14.0, -1.0], [-1.0, 2.0]]]) / 6)


def test_mean_and_deviation_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    std, mean = spatial_std_mean(maps, unbiased=False)
    assert torch.allclose(mean, torch.tensor([[4.0, 2.0]])) and torch.allclose(
        std, torch.tensor([[5.0**0.5, 0.0]])
    )


def test_style_losses_by_hand() -> None:
    """Means over channels (or channel pairs) of squared differences, summed over the layers and over mean and deviation."""

    def layer(mean: list[float], std: list[float], gram: float) -> Statistics:
        return Statistics(
            mean=torch.tensor([mean]),
            std=torch.tensor([std]),
            gram=torch.full((1, len(mean), len(mean)), gram),
        )

    a = [layer([1.0, 2.0], [1.0, 1.0], 0.0), layer([1.0], [1.0], 1.0)]
    b = [layer([1.0, 4.0], [4.0, 1.0], 1.0), layer([0.0], [0.0], 4.0)]
    assert metrics.mean_std_loss(a, b).item() == pytest.approx(4 / 2 + 9 / 2 + 1 + 1)
    assert metrics.gram_loss(a, b).item() == pytest.approx(1 + 9)


def test_cosine_distance_by_hand() -> None:
    a, b = torch.tensor([1.0, 0, 0, 0]).view(1, 1, 2, 2), torch.tensor([0, 1.0, 0, 0]).view(1, 1, 2, 2)
    # without its mean each has 1/4 off everywhere
    assert metrics.cosine_distance(a, b).item() == pytest.approx(4 / 3)
    assert metrics.cosine_distance(a, -a).item() == pytest.approx(2)


def test_content_distance_does_not_see_a_channels_mean_and_contrast() -> None:
    maps = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    restyled = (
        maps * torch.tensor([2.0, 0.5, 3.0])[:, None, None] + torch.tensor([1.0, -4.0, 2.0])[:, None, None]
    )
    assert metrics.cosine_distance(restyled, maps).item() == pytest.approx(0, abs=1e-4)


def test_luminance_and_its_range() -> None:
    red, white = torch.tensor([1.0, -1, -1])[None, :, None, None], torch.ones(1, 3, 1, 1)
    assert metrics.luminance(red).item() == pytest.approx(0.299) and metrics.luminance(
        white
    ).item() == pytest.approx(1)


def test_the_layers_are_those_of_torchvisions_numbering(net: vgg16) -> None:
    layers = [layer for part in net.slices for layer in part]
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = (
        torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    maps = VggFeatures(net)(pictures)
    assert list(maps) == ["relu1_1", "relu2_1", "relu3_1", "relu4_1"]
    for name, index in zip(maps, (1, 6, 11, 18)):
        assert torch.allclose(
            maps[name], nn.Sequential(*layers[: index + 1])(((pictures + 1) / 2 - mean) / std), atol=1e-4
        )


def test_an_untouched_content_and_a_perfect_style(all_metrics: PairMetrics) -> None:
    content, style = picture(48, 48, 1), picture(48, 48, 2)
    untouched, perfect = (
        measure(all_metrics, content, content, style),
        measure(all_metrics, style, content, style),
    )
    assert [untouched[name] for name in ("content_cosine", "content_vgg", "lpips")] == pytest.approx(
        [0, 0, 0], abs=1e-5
    )
    assert (untouched["ssim"], untouched["style_share"]) == pytest.approx((1, 1))
    assert [perfect[name] for name in ("style_mean_std", "style_share", "gram")] == pytest.approx(
        [0, 0, 0], abs=1e-7
    )
    assert (
        min(
            untouched["style_mean_std"],
            untouched["gram"],
            perfect["content_cosine"],
            perfect["content_vgg"],
            perfect["lpips"],
        )
        > 1e-4
    )


def noisy(image: Image.Image, amount: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, amount, (*image.size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


@pytest.mark.parametrize("damage, amounts", [(blurred, (1, 2, 4)), (noisy, (5, 20, 60))])
def test_more_damage_is_more_content_distance(
    all_metrics: PairMetrics, damage: Callable, amounts: tuple
) -> None:
    content, style = picture(64, 64, 1), picture(64, 64, 2)
    rows = [measure(all_metrics, damage(content, amount), content, style) for amount in amounts]
    for name, sign in (("content_cosine", 1), ("content_vgg", 1), ("lpips", 1), ("ssim", -1)):
        values = [sign * row[name] for row in rows]
        assert values == sorted(values) and values[0] < values[-1], name


def test_a_content_that_is_its_own_style_has_no_style_share(all_metrics: PairMetrics) -> None:
    row = measure(all_metrics, picture(32, 32, 2), picture(32, 32, 1), picture(32, 32, 1))
    assert row["style_share"] is None and row["style_mean_std"] > 0


def test_a_batch_gives_what_each_picture_gives(all_metrics: PairMetrics) -> None:
    content, results, styles = (
        picture(32, 32, 1),
        [picture(32, 32, i) for i in (2, 3)],
        [picture(32, 32, i) for i in (4, 5)],
    )
    together = all_metrics.measure(
        to_tensors(results),
        all_metrics.content(to_tensors([content])),
        all_metrics.styles([to_tensors(styles[:1]), to_tensors(styles[1:])]),
    )
    for row, result, style in zip(together, results, styles):
        assert row == pytest.approx(measure(all_metrics, result, content, style), rel=1e-4)


def test_every_picture_goes_through_the_network_once(net: vgg16) -> None:
    seen: list[Tensor] = []
    pair_metrics = PairMetrics(net)
    pair_metrics.features.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    contents, styles = (
        {name: picture(32, 32, seed + i) for i, name in enumerate(names)}
        for seed, names in ((1, "abc"), (4, "xy"))
    )
    pairs = [(content, style) for content in contents for style in styles]
    sets = [
        ResultSet(name, pairs, lambda batch: [contents[content] for content, _ in batch])
        for name in ("one", "two")
    ]
    measured = Evaluator(contents, styles, pair_metrics).measure(sets)
    assert len(seen) == 3 + 2 + 2 * 6 and [list(one.rows) for one in measured] == [pairs, pairs]


# Sets of pictures


def gaussian(count: int, mean: np.ndarray, root: np.ndarray, seed: int) -> Tensor:
    """Points of exactly this mean and the covariance root' root."""
    points = np.random.default_rng(seed).normal(size=(count, len(mean)))
    whitened = np.linalg.qr(points - points.mean(0))[0] * np.sqrt(count - 1)
    return torch.from_numpy(whitened @ root + mean)


def test_distance_of_gaussians_is_that_of_the_closed_form() -> None:
    a, b = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5])  # deviations along the axes
    distance = frechet_distance(
        gaussian(50, np.zeros(3), np.diag(a), 0), gaussian(70, np.array([1.0, 0, 2]), np.diag(b), 1)
    )
    assert distance == pytest.approx(1 + 4 + ((a - b) ** 2).sum())


@pytest.mark.parametrize(
    "counts", [(60, 40), (5, 7), (4, 60)], ids=["many", "fewer than features", "few and many"]
)
def test_distance_is_that_of_the_covariances(counts: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(count, 8)) @ random.normal(size=(8, 8)) for count in counts)
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * roots
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-5)


def test_distance_of_equal_and_of_moved_sets() -> None:
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 2) == pytest.approx(6 * 4, rel=1e-5)


def test_artfid_is_the_product_and_needs_both() -> None:
    assert (
        art_fid(0.5, 10.0) == pytest.approx(16.5)
        and art_fid(None, 10.0) is None
        and art_fid(0.5, None) is None
    )


@pytest.fixture
def inception_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of torch-fidelity's network."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(extractor, "load_state_dict_from_url", lambda *args, **options: {})
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
        state = extractor.FeatureExtractorInceptionV3("random", ["2048"]).state_dict()
    save_safetensors(state, tmp_path / "inception.safetensors")
    return tmp_path / "inception.safetensors"


def test_inception_features_of_the_users_weights(inception_weights: Path) -> None:
    features = load_inception(inception_weights, torch.device("cpu"))(
        to_tensors([picture(32, 32, 1), picture(32, 32, 2)])
    )
    assert (
        features.shape == (2, 2048)
        and features.isfinite().all()
        and not torch.equal(features[0], features[1])
    )
    save_safetensors({"weight": torch.ones(2)}, inception_weights.with_name("other.safetensors"))
    with pytest.raises(UserError, match="other.safetensors: not the weights of torch-fidelity's Inception"):
        load_inception(inception_weights.with_name("other.safetensors"), torch.device("cpu"))


# The plot


def made_up(name: str, x: float, y: float, *scales: float) -> Measured:
    rows = {PAIRS[0]: {"content_cosine": x, "style_share": y}}
    return Measured(ResultSet(name, PAIRS[:1], lambda pairs: [], *scales), rows)


def test_the_plot_has_a_line_for_each_style_scale_and_named_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path, **options: drawn.append(self))
    sweep = [made_up(f"{c} {s}", c / 10, s / 10, c, s) for c in (2.0, 1.0) for s in (3.0, 1.0)]
    plot.draw_trade_off([*sweep, made_up("other", 0.4, 0.5)], tmp_path / "new/plot.png")
    axes = drawn[0].axes[0]
    assert {line.get_label(): line.get_xydata().tolist() for line in axes.lines} == {
        "style scale 1": [[0.1, 0.1], [0.2, 0.1]],
        "style scale 3": [[0.1, 0.3], [0.2, 0.3]],
        "other": [[0.4, 0.5]],
    }
    assert [text.get_text() for text in axes.texts] == ["1", "2", "1", "2", "other"]


# The program


@pytest.fixture(scope="module")
def evaluate() -> ModuleType:
    return script("evaluate")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: vgg16) -> Path:
    """The current folder: two contents, two styles, results of three of their pairs, a tiny model, narrow VGG16 weights.

    The castle's results are the untouched castle, the moose's is a perfect wheat.
    """
    pictures = {
        "contents/castle.png": 1,
        "contents/sub/moose.png": 2,
        "styles/sea.png": 3,
        "styles/wheat.jpg": 4,
    }
    results = {"results/castle__sea.png": 1, "results/castle__wheat.png": 1, "results/notes.png": 6}
    for name, seed in (pictures | results).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(48, 32, seed).save(path)
    load_image(tmp_path / "styles/wheat.jpg").save(tmp_path / "results/moose__wheat.png")
    (tmp_path / "empty").mkdir()
    save_safetensors(net.state_dict(), tmp_path / "vgg.safetensors")
    save_safetensors(tiny_model(use_ema=False).state_dict(), tmp_path / "tiny.safetensors")
    save_config({"model": model_config()}, tmp_path / "tiny.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return tmp_path


def arguments(**changes: object) -> list[str]:
    """Options of a good call, with these changed; None leaves one out, True has no value, a list repeats."""
    options = {
        "content": "contents",
        "style": "styles",
        "size": 32,
        "vgg_weights": "vgg.safetensors",
        **changes,
    }
    words: list[str] = []
    for name, value in options.items():
        values = (
            [] if value is None else [""] if value is True else value if isinstance(value, list) else [value]
        )
        words += [word for one in values for word in (f"--{name.replace('_', '-')}", *str(one).split())]
    return words


TINY = {"checkpoint": "tiny.safetensors", "config": "tiny.yaml", "look": "sampled", "steps": 1}


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def cells(table: str, line: int) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[line].strip("|").split("|")]


def more(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [picture(32, 32).save(folder / name) for name in names]


def broken(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text("no picture")


@pytest.mark.parametrize(
    "wrong, problem, prepare",
    [
        ({"content": None}, "--content", None),
        ({"content": "nowhere"}, "nowhere: no such folder of pictures", None),
        ({"style": "empty"}, "empty: no pictures in it", None),
        ({"results": "empty"}, "empty: no pictures in it", None),
        (
            {"results": "styles"},
            "styles: no result of any pair in it; the first would be called castle__sea.png",
            None,
        ),
        ({"compare": "other=styles"}, "styles: no result of any pair", None),
        ({"compare": "other=nowhere"}, "nowhere: no such folder", None),
        ({"compare": "results"}, "expected NAME=DIR", None),
        ({"compare": "=results"}, "expected NAME=DIR", None),
        ({"compare": ["other=results", "other=results"]}, "called 'other' already", None),
        ({"results": "results", "compare": "results=results"}, "called 'results' already", None),
        ({}, "would both be called 'sea'", more("styles/sea.jpg")),
        (
            {},
            "'castle__sea__sea' could be the result of",
            more("contents/castle__sea.png", "styles/sea__sea.png"),
        ),
        ({"results": "results"}, "would both be called 'castle__sea'", more("results/castle__sea.jpg")),
        ({}, "styles/sea.png: not a picture", broken("styles/sea.png")),
        ({"results": "results"}, "moose__wheat.png: not a picture", broken("results/moose__wheat.png")),
        ({"csv": "."}, ".: is a folder", None),
        ({"csv": "out.txt"}, "must end in .csv", None),
        ({"csv": "vgg.safetensors/out.csv"}, "is a file, not a folder", None),
        ({"sweep": True, "plot": "out.csv"}, "must end in .png", None),
        ({"save": "vgg.safetensors"}, "is a file, not a folder", None),
        (
            {"plot": "out.png"},
            "--plot draws several sets of results: it needs --sweep, --compare, --also or --untouched",
            None,
        ),
        ({"results": "results", "also": "a=detail:0"}, "--also is for painting", None),
        ({"also": "detail:0"}, "expected NAME=SETTING:VALUE", None),
        ({"also": "a="}, "expected NAME=SETTING:VALUE", None),
        ({"also": "../a=detail:0"}, "expected NAME=SETTING:VALUE", None),
        ({"also": ["a=detail:0", "a=detail:1"]}, "called 'a' already", None),
        ({"also": "content1_style1=detail:0"}, "called 'content1_style1' already", None),
        ({"also": "a=detail:0", "compare": "a=results"}, "called 'a' already", None),
        (
            {"also": "a=speed:3"},
            "no setting 'speed'; there are look, effort, strength, content-scale, style-scale, detail, recolor, texture, refine, sampler, steps, seed",
            None,
        ),
        ({"also": "a=detail:0,"}, "no setting ''", None),
        ({"also": "a=steps:2.5"}, "'2.5' is no value of steps", None),
        ({"also": "a=detail:2"}, "detail must be between 0 and 1", None),
        ({"look": "finest"}, "--look: invalid choice: 'finest'", None),
        ({"effort": 101}, "effort must be above 0 and at most 100, got 101.0", None),
        ({"sheet": "out.txt"}, "unknown picture format", None),
        (
            {"sheet": "styles/sea.png"},
            "styles/sea.png: is one of the pictures to work from and would be lost; choose another file",
            None,
        ),
        (
            {"sheet": "out.png", "sheet_pairs": "6by7"},
            "--sheet-pairs 6by7: expected two numbers, as in 6x7",
            None,
        ),
        ({"sheet": "out.png", "sheet_pairs": "0x7"}, "expected two numbers", None),
        ({"sheet_pairs": "6x7"}, "--sheet-pairs needs --sheet", None),
        ({"results": "results", "sweep": True}, "--sweep is for painting", None),
        ({"results": "results", "seed": 0}, "--seed is for painting", None),
        ({"content_scales": 1}, "--content-scales needs --sweep", None),
        ({"sweep": True, "style_scale": 2}, "--style-scale is of a single run", None),
        ({"sweep": True, "style_scales": "1 nan"}, "style_scale must be a finite number", None),
        ({"results": "results", "size": 16}, "size must be at least 32 pixels", None),
    ],
)
def test_bad_input_is_refused_before_any_weights_are_read(
    evaluate: ModuleType,
    folder: Path,
    monkeypatch,
    capsys,
    wrong: dict,
    problem: str,
    prepare: Callable | None,
) -> None:
    for place, name in ((plot, "check_extra"), (fid, "check_extra")):
        monkeypatch.setattr(place, name, lambda: None)  # whether or not they are installed here
    for place, name in ((evaluation, "load_vgg"), (StyleTransferPipeline, "from_pretrained")):
        monkeypatch.setattr(place, name, lambda *args: pytest.fail("read weights"))
    if prepare:
        prepare(folder)
    assert_refused(evaluate, folder, monkeypatch, capsys, arguments(**wrong), problem)


def assert_refused(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys, call: list[str], problem: str
) -> None:
    before = everything_in(folder)
    code, captured = run_program(evaluate.main, call, monkeypatch), capsys.readouterr()
    pipeline_builders.assert_refused(code, captured, problem)
    assert everything_in(folder) == before


@pytest.mark.parametrize(
    "wrong, module, problem",
    [
        (
            {"sweep": True, "plot": "out.png"},
            "matplotlib.figure",
            "--plot needs the package matplotlib: pip install 'artfusion[evaluation]'",
        ),
        (
            {"inception_weights": "vgg.safetensors"},
            "torch_fidelity",
            "--inception-weights needs the package torch-fidelity: pip install",
        ),
    ],
)
def test_a_missing_package_is_told(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys, wrong: dict, module: str, problem: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("ldm.evaluation.run.load_vgg", lambda *args: pytest.fail("read weights"))
    assert_refused(evaluate, folder, monkeypatch, capsys, arguments(**wrong), problem)


def test_a_place_that_cannot_be_written_to_is_refused(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    for wrong in ({"csv": "new/out.csv"}, {"save": "new"}):
        assert_refused(evaluate, folder, monkeypatch, capsys, arguments(**wrong), "no permission to write")


@pytest.mark.parametrize(
    "wrong",
    [{"vgg_weights": "nowhere.pth"}, {"lpips_weights": "nowhere.pth"}, {"judge_weights": "nowhere.pth"}],
)
def test_weights_that_are_named_must_be_there(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys, wrong: dict
) -> None:
    assert_refused(
        evaluate,
        folder,
        monkeypatch,
        capsys,
        arguments(results="results", csv="out.csv", **wrong),
        "nowhere.pth: no such file",
    )


def test_the_commands_own_process(folder: Path) -> None:
    """What the tests above cannot see: lines that imports or warnings would add."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/evaluate.py", *arguments(content="nowhere")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: nowhere: no such folder of pictures\n",
    )


def test_results_that_are_there_are_measured_and_missing_ones_told(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    assert (
        run_program(
            evaluate.main,
            arguments(results="results", lpips_weights="uniform", csv="new/out.csv"),
            monkeypatch,
        )
        == 0
    )
    rows = rows_of("new/out.csv")
    assert [(row["set"], row["content"], row["style"]) for row in rows] == [
        ("results", c, s) for c, s in (PAIRS[0], PAIRS[1], PAIRS[3])
    ]
    for row in rows[:2]:
        assert [
            float(row[name]) for name in ("content_cosine", "lpips", "ssim", "style_share")
        ] == pytest.approx([0, 0, 1, 1], abs=1e-5)
    assert [float(rows[2][name]) for name in ("style_mean_std", "style_share", "gram")] == pytest.approx(
        [0, 0, 0], abs=1e-7
    )
    assert float(rows[2]["content_cosine"]) > 0.01 and float(rows[2]["ssim"]) < 0.9
    out = capsys.readouterr().out
    values = [float(row["ssim"]) for row in rows]
    assert dict(zip(cells(out, 0), cells(out, 2)))["ssim"] == f"{sum(values) / 3:.3g} (1)"
    assert cells(out, 2)[:2] == ["results", "3 of 4"] and "results: 1 of 4 pairs missing: moose__sea\n" in out


def test_a_metric_whose_weights_were_not_given_is_not_run(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    assert run_program(evaluate.main, arguments(results="results", csv="out.csv"), monkeypatch) == 0
    out = capsys.readouterr().out
    found = dict(zip(cells(out, 0), cells(out, 2)))
    assert {name for name, cell in found.items() if cell == "not run"} == {"lpips", "fid", "artfid"}
    empty = {name for name, value in rows_of("out.csv")[0].items() if not value}
    assert empty == {"content_scale", "style_scale", "lpips", "style_rank", "content_rank", "chroma_bw"}
    whole = dict(zip(cells(out, 4), cells(out, 6)))
    assert {name for name, cell in whole.items() if cell == "not run"} == {
        "style_top1",
        "style_top3",
        "content_top1",
    }
    assert whole["chroma_bw"] == "none" and "content_top1) was not run: it needs --judge-weights" in out


def test_the_bundled_vgg16_judges_by_default_and_without_network(
    evaluate: ModuleType, folder: Path, monkeypatch
) -> None:
    forbid_network(monkeypatch)
    options = {"results": "results", "lpips_weights": "uniform"}
    assert run_program(evaluate.main, arguments(**options, csv="given.csv"), monkeypatch) == 0
    monkeypatch.setattr(networks, "BUNDLED_VGG16", folder / "vgg.safetensors")
    assert (
        run_program(evaluate.main, arguments(**options, vgg_weights=None, csv="default.csv"), monkeypatch)
        == 0
    )
    assert rows_of("given.csv") == rows_of("default.csv")


def test_a_missing_bundled_vgg16_is_told_with_what_brings_it_back(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(networks, "BUNDLED_VGG16", folder / "gone.safetensors")
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    problem = (
        "gone.safetensors: the bundled VGG16 is missing; `git checkout checkpoints/vgg16` brings it back"
    )
    assert_refused(evaluate, folder, monkeypatch, capsys, arguments(vgg_weights=None), problem)


@pytest.fixture
def linear_weights(folder: Path) -> str:
    save_safetensors(
        {f"lin{i}": torch.full((1, width, 1, 1), 0.2) for i, width in enumerate(CHANNELS)},
        folder / "lin.safetensors",
    )
    return "lin.safetensors"


def lpips_of(evaluate: ModuleType, monkeypatch: pytest.MonkeyPatch, **options: object) -> float:
    """The distance of the one result that is not its content."""
    assert (
        run_program(evaluate.main, arguments(results="results", csv="out.csv", **options), monkeypatch) == 0
    )
    return float(rows_of("out.csv")[2]["lpips"])


def test_published_lpips_downloads_its_own_vgg16(
    evaluate: ModuleType, folder: Path, monkeypatch, linear_weights: str
) -> None:
    """Everything else is judged by the bundled one."""
    other = randomise(vgg16(channels=CHANNELS), seed=1).state_dict()
    save_safetensors(other, folder / "other.safetensors")
    monkeypatch.setattr(networks, "BUNDLED_VGG16", folder / "vgg.safetensors")
    monkeypatch.setattr(networks, "_download_vgg16", lambda: other)
    downloaded = lpips_of(evaluate, monkeypatch, vgg_weights=None, lpips_weights=linear_weights)
    judged = rows_of("out.csv")[2]["content_vgg"]
    monkeypatch.setattr(networks, "_download_vgg16", lambda: pytest.fail("downloaded"))
    by_file = {
        name: lpips_of(evaluate, monkeypatch, vgg_weights=name, lpips_weights=linear_weights)
        for name in ("vgg.safetensors", "other.safetensors")
    }
    assert downloaded == by_file["other.safetensors"] != by_file["vgg.safetensors"]
    assert run_program(evaluate.main, arguments(results="results", csv="out.csv"), monkeypatch) == 0
    assert rows_of("out.csv")[2]["content_vgg"] == judged


def test_published_lpips_without_network_is_refused(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys, linear_weights: str
) -> None:
    forbid_network(monkeypatch)
    monkeypatch.setattr(networks, "BUNDLED_VGG16", folder / "vgg.safetensors")
    code = run_program(
        evaluate.main,
        arguments(results="results", vgg_weights=None, lpips_weights=linear_weights, csv="out.csv"),
        monkeypatch,
    )
    assert (
        code == 2
        and "could not be downloaded" in capsys.readouterr().err
        and not (folder / "out.csv").exists()
    )


def test_pairs_are_painted_with_the_options_and_kept(
    evaluate: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"content_scale": 0.5, "style_scale": 2.0, "sampler": "ddim", "steps": 2, "seed": 7}
    assert (
        run_program(
            evaluate.main,
            arguments(**TINY | options, save="kept", csv="out.csv", device="cpu", precision="fp32"),
            monkeypatch,
        )
        == 0
    )
    pipeline = StyleTransferPipeline.from_pretrained(
        "tiny.safetensors", "tiny.yaml", device="cpu", precision="fp32"
    )
    names = ("contents/sub/moose.png", "styles/sea.png", "styles/wheat.jpg")
    moose, *styles = (load_image(folder / name).crop((8, 0, 40, 32)) for name in names)
    assert [load_image(f"kept/moose__{style}.png") for style in ("sea", "wheat")] == pipeline(
        moose, styles, look="sampled", size=32, **options
    )
    assert sorted(path.name for path in Path("kept").iterdir()) == [f"{c}__{s}.png" for c, s in PAIRS]
    assert {(row["content_scale"], row["style_scale"]) for row in rows_of("out.csv")} == {("0.5", "2.0")}


def test_measuring_kept_pictures_gives_the_same(
    evaluate: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_program(evaluate.main, arguments(**TINY, save="kept", csv="painted.csv"), monkeypatch) == 0
    assert run_program(evaluate.main, arguments(results="kept", csv="read.csv"), monkeypatch) == 0
    painted, read = (
        [[row[name] for name in metrics.METRICS] for row in rows_of(name)]
        for name in ("painted.csv", "read.csv")
    )
    assert painted == read and len(read) == 4


def test_a_sweep_has_every_combination_and_what_it_is_compared_with(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    call = arguments(
        **TINY,
        sweep=True,
        content_scales="0.5 2 2",
        style_scales="1 3",
        compare="other=results",
        csv="out.csv",
        save="kept",
    )
    assert run_program(evaluate.main, call, monkeypatch) == 0
    rows = rows_of("out.csv")
    scales = [(c, s) for c in ("0.5", "2.0") for s in ("1.0", "3.0")]
    expected = [(*scale, *pair) for scale in scales for pair in PAIRS] + [
        ("", "", *pair) for pair in (PAIRS[0], PAIRS[1], PAIRS[3])
    ]
    assert [
        (row["content_scale"], row["style_scale"], row["content"], row["style"]) for row in rows
    ] == expected
    assert len({row["ssim"] for row in rows[:16]}) == 16  # each scale acts
    out = capsys.readouterr().out
    names = ["content 0.5, style 1", "content 0.5, style 3", "content 2, style 1", "content 2, style 3"]
    assert [cells(out, line)[0] for line in range(2, 7)] == [*names, "other"]
    assert sorted(path.name for path in Path("kept").iterdir()) == [
        name.replace(", ", "_").replace(" ", "") for name in names
    ]
    assert all(len(list(path.iterdir())) == 4 for path in Path("kept").iterdir())


def test_a_sweep_is_drawn(evaluate: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    call = arguments(
        **TINY,
        sweep=True,
        content_scales="0.5 2",
        style_scales="1 3",
        compare="other=results",
        plot="new/out.png",
    )
    assert run_program(evaluate.main, call, monkeypatch) == 0
    with Image.open("new/out.png") as drawing:
        assert drawing.format == "PNG" and len(drawing.convert("RGB").getcolors(10**6)) > 100
    assert [path.name for path in Path("new").iterdir()] == ["out.png"]


def test_distance_of_sets_counts_only_styles_with_results_and_is_called_biased(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    def corners(pictures: Tensor) -> Tensor:
        return pictures[:, :, :4, :4].flatten(1)

    monkeypatch.setattr(fid, "check_extra", lambda: None)
    monkeypatch.setattr(fid, "load_inception", lambda path, device: corners)
    (folder / "only_sea").mkdir()
    for name in ("castle__sea.png", "moose__sea.png"):
        picture(48, 32, 8 + len(name)).save(folder / "only_sea" / name)
    call = arguments(
        results="results", compare="few=only_sea", lpips_weights="uniform", inception_weights="any.pth"
    )
    assert run_program(evaluate.main, call, monkeypatch) == 0
    out = capsys.readouterr().out
    results, styles = (
        to_tensors([load_image(name).crop((8, 0, 40, 32)) for name in names])
        for names in (
            [f"results/{c}__{s}.png" for c, s in (PAIRS[0], PAIRS[1], PAIRS[3])],
            ["styles/sea.png", "styles/wheat.jpg"],
        )
    )
    distance = frechet_distance(corners(results), corners(styles))
    found = [dict(zip(cells(out, 0), cells(out, line))) for line in (2, 3)]
    assert (
        found[0]["fid"] == f"{distance:.4g} (biased)"
        and "biased: fewer pictures than Inception features" in out
    )
    lpips = float(found[0]["lpips"].split()[0])
    assert float(found[0]["artfid"].split()[0]) == pytest.approx((1 + lpips) * (1 + distance), rel=1e-2)
    assert found[1]["fid"] == found[1]["artfid"] == "not run"  # one style has no covariance


# Several sets, and whose results they are


@pytest.fixture
def judge_weights(folder: Path) -> str:
    save_safetensors(randomise(EfficientNetLite0()).state_dict(), folder / "judge.safetensors")
    return "judge.safetensors"


def test_retrieval_colours_and_textures_of_results_and_of_the_untouched_photo(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys, judge_weights: str
) -> None:
    """The results are the castle twice and a perfect wheat."""
    call = arguments(results="results", untouched=True, judge_weights=judge_weights, csv="out.csv")
    assert run_program(evaluate.main, call, monkeypatch) == 0
    out = capsys.readouterr().out
    first, second = (dict(zip(cells(out, 5), cells(out, line))) for line in (7, 8))
    assert cells(out, 2)[:2] == ["results", "3 of 4"] and cells(out, 3)[:2] == ["untouched photo", "4"]
    rows = [row for row in rows_of("out.csv") if row["set"] == "results"]
    assert [row["content_rank"] for row in rows] == ["1", "1", "2"] and rows[2]["style_rank"] == "1"
    assert float(rows[0]["palette_distance"]) == pytest.approx(float(rows[0]["palette_untouched"]), rel=1e-4)
    assert float(rows[2]["palette_distance"]) < 0.01 * float(rows[2]["palette_untouched"])
    assert [
        second[name] for name in ("style_top1", "style_top3", "content_top1", "alike", "palette_share")
    ] == ["0.50", "1.00", "1.00", "1", "1"]
    share = sum(float(row["palette_distance"]) for row in rows) / sum(
        float(row["palette_untouched"]) for row in rows
    )
    assert (
        first["palette_share"] == f"{share:.3g}" and first["content_top1"] == "0.67" and first["alike"] == "1"
    )


def test_no_other_set_is_called_as_the_untouched_photo(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    call = [*arguments(untouched=True), "--compare", "untouched photo=results"]
    assert_refused(
        evaluate, folder, monkeypatch, capsys, call, "other results are called 'untouched photo' already"
    )


def test_weights_of_another_network_are_refused_before_painting(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(StyleTransferPipeline, "from_pretrained", lambda *args: pytest.fail("read the model"))
    broken("judge.pth")(folder)
    for name, problem in (
        ("vgg.safetensors", "does not fit EfficientNetLite0"),
        ("judge.pth", "not a checkpoint"),
    ):
        assert_refused(
            evaluate, folder, monkeypatch, capsys, arguments(judge_weights=name, csv="out.csv"), f"{name}"
        )
        assert_refused(
            evaluate, folder, monkeypatch, capsys, arguments(judge_weights=name, sheet="out.png"), problem
        )


def test_several_settings_are_painted_in_one_run(
    evaluate: ModuleType, folder: Path, monkeypatch, capsys
) -> None:
    also = ["free=content-scale:0.5,style_scale:2,detail:0", "other_seed=seed:7"]
    call = arguments(**TINY, also=also, detail=1, save="kept", csv="out.csv", device="cpu", precision="fp32")
    assert run_program(evaluate.main, call, monkeypatch) == 0
    out = capsys.readouterr().out
    assert [cells(out, line)[:2] for line in (2, 3, 4)] == [
        ["content 1.25, style 1.75", "4"],
        ["free", "4"],
        ["other_seed", "4"],
    ]
    pipeline = StyleTransferPipeline.from_pretrained(
        "tiny.safetensors", "tiny.yaml", device="cpu", precision="fp32"
    )
    names = ("contents/sub/moose.png", "styles/sea.png", "styles/wheat.jpg")
    moose, *styles = (load_image(folder / name).crop((8, 0, 40, 32)) for name in names)
    changes = {
        "content1.25_style1.75": {},
        "free": {"content_scale": 0.5, "style_scale": 2.0, "detail": 0.0},
        "other_seed": {"seed": 7},
    }
    for name, changed in changes.items():
        kept = [load_image(f"kept/{name}/moose__{style}.png") for style in ("sea", "wheat")]
        assert kept == pipeline(
            moose, styles, **{"look": "sampled", "size": 32, "steps": 1, "detail": 1.0, **changed}
        ), name
    assert sorted(path.name for path in Path("kept").iterdir()) == sorted(changes)
    assert [(row["set"], row["content_scale"]) for row in rows_of("out.csv")[3:5]] == [
        ("content 1.25, style 1.75", "1.25"),
        ("free", ""),
    ]


def test_the_sheet_shows_the_first_set(
    evaluate: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos down the left, paintings along the top; what there is no result of is a gap."""
    drawn = []
    monkeypatch.setattr(
        "ldm.evaluation.sheet.labelled_sheet",
        lambda rows, cell: drawn.extend(rows) or Image.new("RGB", (8, 8)),
    )
    call = arguments(results="results", untouched=True, sheet="new/out.jpg", sheet_pairs="9x9")
    assert run_program(evaluate.main, call, monkeypatch) == 0
    names = [
        [None, "styles/sea.png", "styles/wheat.jpg"],
        ["contents/castle.png", "results/castle__sea.png", "results/castle__wheat.png"],
    ]
    names += [["contents/sub/moose.png", None, "results/moose__wheat.png"]]
    assert drawn == [[name and load_image(name).crop((8, 0, 40, 32)) for name in row] for row in names]
    assert load_image("new/out.jpg").size == (8, 8)


def test_the_sheet_is_as_large_as_asked_for(
    evaluate: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        run_program(
            evaluate.main, arguments(results="results", sheet="out.png", sheet_pairs="1x2"), monkeypatch
        )
        == 0
    )
    width, height = load_image("out.png").size
    assert width - height == pytest.approx(192, abs=8) and height > 2 * 192
