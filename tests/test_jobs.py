"""From what a caller asks for to the pictures to paint, in order, before any work and without torch."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline_builders import ROOT, largest_difference, left_half, picture

from ldm.errors import UserError
from ldm.pipeline.inputs import StyleMix, StyleRegions
from ldm.pipeline.jobs import Job, Request, batches
from ldm.pipeline.settings import Settings

A, B, C = (picture(48, 32, seed) for seed in (1, 2, 3))
S, T = picture(40, 40, 4), picture(40, 40, 5)


def jobs(content: Any, style: Any, keep: Any = None, start: Any = None, **settings: Any) -> list[Job]:
    return Request(content, style, keep, start).jobs(Settings(**{"size": 32, **settings}), native_size=32)


def painting(job: Job) -> Image.Image:
    return job.style.pictures[0]


def test_jobs_need_no_torch() -> None:
    code = "import sys, ldm.pipeline.jobs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


# How many


@pytest.mark.parametrize(
    "content, style, start, single",
    [
        (A, S, None, True),
        (None, S, None, True),
        (A, StyleMix([S, T]), B, True),
        ([A], S, None, False),
        (A, (S,), None, False),
        (A, S, [B], False),
        (None, [S], None, False),
    ],
)
def test_one_picture_is_answered_by_one(content: Any, style: Any, start: Any, single: bool) -> None:
    request = Request(content, style, start=start)
    assert request.is_single is single and len(request.jobs(Settings(), 32)) == 1


def test_lists_pair_up_and_single_ones_go_with_all() -> None:
    paired = jobs([A, B], (S, T), start=[C], seed=[7, 8], content_scale=[1, 2], style_scale=3)
    assert [job.content for job in paired] == [A, B]
    assert [painting(job) for job in paired] == [painting(jobs(A, S)[0]), painting(jobs(A, T)[0])]
    assert [job.start for job in paired] == [C, C] and [job.seed for job in paired] == [7, 8]
    assert [(job.content_scale, job.style_scale) for job in paired] == [(1, 3), (2, 3)]
    assert [job.content for job in jobs(A, [S, T, S])] == [A] * 3
    assert [job.start for job in jobs(A, S, start=[B, C])] == [B, C]


@pytest.mark.parametrize(
    "content, style, start, problem",
    [
        ([A, B], [S] * 3, None, "2 contents and 3 styles do not pair up"),
        ([A, B], S, [C] * 3, "2 contents and 3 starts do not pair up"),
        ([A] * 6, [S] * 2, [C] * 3, "6 contents and 2 styles and 3 starts do not pair up"),
        ([], S, None, "content, style, start or scene is an empty list"),
        (A, [], None, "content, style, start or scene is an empty list"),
        (A, S, [], "content, style, start or scene is an empty list"),
    ],
)
def test_other_lengths_are_refused(content: Any, style: Any, start: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        jobs(content, style, start=start)


@pytest.mark.parametrize("name", ["seed", "content_scale", "style_scale"])
@pytest.mark.parametrize("content, count", [([A, B, C], 3), (None, 1)])
def test_settings_of_each_picture_are_as_many(name: str, content: Any, count: int) -> None:
    with pytest.raises(UserError, match=f"2 values of {name} for {count} pictures"):
        jobs(content, S, **{name: [1, 2]})


# How large


@pytest.mark.parametrize(
    "size, expected", [(32, (48, 32)), (64, (96, 64)), ((40, 40), (40, 40)), ([33, 47], (33, 47))]
)
def test_contents_and_starts_have_the_results_size(size: Any, expected: tuple[int, int]) -> None:
    (job,) = jobs(A, S, size=size, start=picture(*(2 * side for side in expected)))
    assert job.size == job.content.size == job.start.size == expected


def test_width_and_height_crop_the_middle() -> None:
    (job,) = jobs(A, S, size=(32, 32))
    assert largest_difference(job.content, A.crop((8, 0, 40, 32))) == 0


@pytest.mark.parametrize("size, expected", [(40, (40, 40)), ((64, 40), (64, 40))])
def test_a_style_alone_is_square_unless_said(size: Any, expected: tuple[int, int]) -> None:
    (job,) = jobs(None, S, size=size)
    assert job.content is None and job.size == expected


def test_a_start_of_another_aspect_is_refused() -> None:
    with pytest.raises(
        UserError, match="a picture of 48x32 pixels, does not have the result's aspect, 32x32"
    ):
        jobs(A, S, start=B, size=(32, 32))


@pytest.mark.parametrize("settings, side", [({}, 40), ({"look": "sampled"}, 32), ({"style_size": 36}, 36)])
def test_styles_are_read_no_larger_than_they_are_looked_at(settings: dict[str, Any], side: int) -> None:
    (job,) = jobs(A, S, **{"size": 64, **settings})
    assert painting(job).size == (side, side)


@pytest.mark.parametrize("given", [(80_000, 1), (1, 80_000), (0, 5), (0, 0)])
@pytest.mark.parametrize("which", ["content", "style"])
def test_what_no_memory_would_hold_once_scaled_is_refused(which: str, given: tuple[int, int]) -> None:
    what = {"content": "a photo", "style": "a painting"}[which]
    problem = f"{what} of {given[0]}x{given[1]} pixels cannot be scaled to a shorter side of 32"
    with pytest.raises(UserError, match=problem):
        jobs(**{"content": A, "style": S, which: Image.new("RGB", given)})


@pytest.mark.parametrize("given, example", [((1, 51), "32x1600"), ((2040, 40), "1600x32")])
def test_a_strip_is_enlarged_only_where_both_sides_are_said(given: tuple[int, int], example: str) -> None:
    """A photo of 1x4000 pixels would become one of 64x256000."""
    strip = picture(*given)
    problem = f"more than 50 times as long as wide, would be enlarged to .*crop it, .* such as {example}"
    with pytest.raises(UserError, match=problem):
        jobs(strip, S, size=64)
    assert jobs(strip, S, size=(1600, 32))[0].size == (1600, 32)


def test_panoramas_are_enlarged_and_strips_shrunk() -> None:
    assert jobs(picture(50, 1), S, size=32)[0].size == (1600, 32)
    assert jobs(picture(64, 3840), S, size=32)[0].size == (32, 1920)


# Masks


def test_masks_are_checked_against_the_results_size() -> None:
    mask = left_half(48, 32)
    assert jobs(A, StyleRegions([S, T], [mask]), keep=mask, size=64)[0].keep.mode == "L"
    for wrong in ({"style": StyleRegions([S, T], [mask])}, {"style": S, "keep": mask}):
        with pytest.raises(
            UserError, match="a mask of 48x32 pixels does not have the picture's aspect, 32x32"
        ):
            jobs(A, size=(32, 32), **wrong)


def test_what_is_kept_and_whose_colours_stay_is_done_last() -> None:
    (job,) = jobs(A, S, keep=left_half(48, 32))
    kept = np.asarray(job.finished(B, Settings()))
    assert (kept[:, :24] == np.asarray(A)[:, :24]).all() and (kept[:, 24:] == np.asarray(B)[:, 24:]).all()
    (job,) = jobs(A, S)
    assert job.finished(B, Settings()) == B != job.finished(B, Settings(preserve_color=True))
    (alone,) = jobs(None, S)
    assert alone.finished(S, Settings()) == S


# Together


def test_pictures_of_a_kind_go_together() -> None:
    kinds = {
        "plain": jobs(A, S),
        "mixed": jobs(B, StyleMix([S, T])),  # one region, as a plain style
        "size": jobs(A, S, size=40),
        "no content": jobs(None, S, size=(48, 32)),
        "regions": jobs(A, StyleRegions([S, T], [left_half(48, 32)])),
        "one region": jobs(A, StyleRegions([S], [Image.new("L", (48, 32), 255)])),
        "kept": jobs(A, S, keep=left_half(48, 32)),
    }
    all_jobs = [job for one in kinds.values() for job in one]
    assert list(batches(all_jobs, 8)) == [[0, 1], [2], [3], [4], [5], [6]]


def test_batches_keep_the_order_and_their_size() -> None:
    wide, tall = jobs(A, S)[0], jobs(picture(32, 48), S)[0]
    several = [wide, tall, wide, wide, tall, wide]
    assert list(batches(several, 2)) == [[0, 2], [3, 5], [1, 4]]
    assert list(batches(several, 3)) == [[0, 2, 3], [5], [1, 4]]
    assert list(batches(several, 1)) == [[0], [2], [3], [5], [1], [4]]
