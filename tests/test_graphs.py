"""Recording whole pictures: what a CUDA graph needs of the code, and that replays give each input's own result.

There is no GPU here. The stand-in for a graph computes anew in place of replaying, and while it records it refuses what a
GPU refuses then: waiting for numbers, copies from the CPU, random numbers.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from pipeline_builders import largest_difference, picture, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.pipeline import StyleTransferPipeline

aten = torch.ops.aten
REFUSED = (aten._local_scalar_dense, aten.lift_fresh, aten.nonzero, aten.normal_, aten.randn, aten.bernoulli)
SAMPLED = {"look": "sampled", "size": 32, "steps": 3}


def assert_pictures_alike(actual: Image.Image, expected: Image.Image) -> None:
    """Equal but for rounding: a batch need not be summed in the same order."""
    assert actual.size == expected.size and largest_difference(actual, expected) <= 1


class Recording(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in REFUSED:
            raise AssertionError(f"{function} cannot be part of a CUDA graph")
        return function(*args, **(kwargs or {}))


def capture(run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    with Recording():
        result = run()
    return result, lambda: result.copy_(run())


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x.sum().item(),
        lambda x: x if x.any() else x,
        lambda x: x + torch.tensor([1.0]),
        lambda x: x + torch.randn(3),
    ],
)
def test_the_stand_in_refuses_what_a_graph_does(what: Callable[[Tensor], Any]) -> None:
    with pytest.raises(AssertionError, match="cannot be part of a CUDA graph"):
        capture(lambda: what(torch.ones(3)))


# The recorder


def counted(recorded: list[str]) -> Callable:
    def counting(run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        recorded.append("recorded")
        return capture(run)

    return counting


def difference(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a - b


def test_replays_are_of_the_inputs_given_and_results_stay() -> None:
    recorded: list[str] = []
    recorder = Recorder(counted(recorded))
    given = [(torch.full((2,), i + 1.0), torch.full((2,), 10.0 * i)) for i in range(3)]
    results = [recorder(difference, {"a": a, "b": b}, "key") for a, b in given]
    assert recorded == ["recorded"]
    assert all(torch.equal(result, a - b) for result, (a, b) in zip(results, given, strict=True))
    assert torch.equal(given[0][0], torch.ones(2))


def test_each_shape_type_and_key_is_recorded_on_its_own() -> None:
    recorded: list[str] = []
    recorder = Recorder(counted(recorded))
    one, two = torch.ones(1), torch.ones(2)
    for a, b, key in [
        (one, one, 0),
        (two, two, 0),
        (two.double(), two, 0),
        (one, None, 0),
        (one, one, 1),
        (one, one, 0),
        (one, None, 0),
    ]:
        assert torch.equal(recorder(difference, {"a": a, "b": b}, key), difference(a, b))
    assert len(recorded) == 5


def test_no_more_are_kept_than_agreed_and_the_latest_used_stay() -> None:
    recorded: list[str] = []
    recorder = Recorder(counted(recorded), limit=2)
    for key, count in [("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)]:
        recorder(difference, {"a": torch.ones(1), "b": None}, key)
        assert len(recorded) == count, key


# Pictures


@pytest.fixture(scope="module")
def plain() -> StyleTransferPipeline:
    return StyleTransferPipeline(tiny_model(use_ema=False))


@pytest.fixture
def recording(plain: StyleTransferPipeline) -> tuple[StyleTransferPipeline, list[str]]:
    recorded: list[str] = []
    pipeline = StyleTransferPipeline(plain.model)
    pipeline.painter.recorder = Recorder(counted(recorded))
    return pipeline, recorded


PHOTO, STYLES = picture(48, 32, seed=1), [picture(40, 40, seed=seed) for seed in (5, 6)]
HALF = picture(48, 32, seed=7).convert("L").point(lambda value: 255 if value > 127 else 0)
WAYS = {
    "one picture": (PHOTO, STYLES[0], {}),
    "guided": (PHOTO, STYLES[0], {"content_scale": 0.5, "style_scale": 2.0}),
    "several with scales of their own": (
        [PHOTO] * 2,
        STYLES,
        {"content_scale": [1.0, 2.0], "style_scale": [3.0, 1.0]},
    ),
    "DDIM": (PHOTO, STYLES[0], {"sampler": "ddim"}),
    "over the photo": (PHOTO, STYLES[0], {"strength": 0.5}),
    "part of the way": (PHOTO, STYLES[0], {"style_scale": 2.0, "guidance_interval": (0.2, 0.8)}),
    "a part kept": (PHOTO, STYLES[0], {"keep": HALF}),
    "regions": (PHOTO, StyleRegions(STYLES, [HALF]), {}),
    "detail put back": (PHOTO, STYLES[0], {"detail": 0.5}),
    "a mix": (PHOTO, StyleMix(STYLES, [0.5, 0.5]), {}),
    "away from a style": (PHOTO, STYLES[0], {"style_scale": 2.0, "not_style": STYLES[1]}),
    "style alone": (None, STYLES[0], {"style_scale": 2.0}),
    "large, in tiles over a small one": (picture(96, 64, seed=2), STYLES[0], {"size": 64}),
}


@pytest.mark.parametrize("way", WAYS)
def test_recorded_pictures_are_the_same(plain: StyleTransferPipeline, recording: tuple, way: str) -> None:
    content, style, options = WAYS[way]
    pipeline, recorded = recording
    painted = [chosen(content, style, **SAMPLED | options) for chosen in (plain, pipeline, pipeline)]
    expected, first, second = ([one] if isinstance(one, Image.Image) else one for one in painted)
    for pictures in (first, second):
        for actual, wanted in zip(pictures, expected, strict=True):
            assert_pictures_alike(actual, wanted)
    assert len(recorded) == (2 if "large" in way else 1)


def test_a_replay_takes_new_pictures_seeds_and_scales(plain: StyleTransferPipeline, recording: tuple) -> None:
    pipeline, recorded = recording
    for i, style in enumerate(STYLES):
        options = SAMPLED | {"seed": i, "content_scale": 2.0 + i, "style_scale": 0.5 + i / 4}
        content = picture(48, 32, seed=20 + i)
        assert_pictures_alike(pipeline(content, style, **options), plain(content, style, **options))
    assert len(recorded) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 4},
        {"size": 40},
        {"style_scale": 2.0},
        {"sampler": "ddim"},
        {"detail": 0.5},
        {"strength": 0.5},
    ],
)
def test_what_is_not_a_number_for_the_graph_is_recorded_anew(recording: tuple, changes: dict) -> None:
    pipeline, recorded = recording
    plain = SAMPLED | {"content_scale": 1.0, "style_scale": 1.0}
    pipeline(PHOTO, STYLES[0], **plain)
    pipeline(PHOTO, STYLES[0], **plain | changes)
    assert len(recorded) == 2


@pytest.mark.parametrize("options", [{"sampler": "ancestral"}, {"sampler": "ddim", "eta": 0.5}])
def test_samplers_that_draw_noise_are_not_recorded(
    plain: StyleTransferPipeline, recording: tuple, options: dict
) -> None:
    pipeline, recorded = recording
    assert pipeline(PHOTO, STYLES[0], **SAMPLED | options) == plain(PHOTO, STYLES[0], **SAMPLED | options)
    assert recorded == []


def test_progress_goes_on_over_replays(recording: tuple, capsys: pytest.CaptureFixture) -> None:
    pipeline, _ = recording
    for _ in range(2):
        pipeline(PHOTO, STYLES[0], progress=True, **SAMPLED)
        assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    "device, compile, records", [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_pictures_are_recorded_on_cuda_where_compiling_is_wanted(
    monkeypatch: pytest.MonkeyPatch, device: str, compile: bool, records: bool
) -> None:
    model = tiny_model(use_ema=False)
    monkeypatch.setattr("torch.compile", lambda function, **options: function)
    monkeypatch.setattr(type(model), "device", torch.device(device))
    assert (StyleTransferPipeline(model, compile=compile).painter.recorder is not None) == records
