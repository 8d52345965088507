"""Every dial is checked before any work starts."""

from dataclasses import fields
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import numpy as np
import pytest
from pipeline_builders import ROOT, run_program

from ldm.cli import info
from ldm.errors import UserError
from ldm.pipeline.looks import LOOKS, SAMPLERS, looks_table
from ldm.pipeline.settings import DIALS, MAX_RESULT_PIXELS, Settings

WHOLE_OR_NONE = "must be a whole number or None"


def test_the_defaults_are_good() -> None:
    Settings().check()


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_has_settings_and_any_dial_overrides_it(look: str) -> None:
    assert Settings(look=look).each("content_scale", 2) == [LOOKS[look].content_scale] * 2
    assert Settings(look=look, content_scale=0).value("content_scale") == 0
    assert Settings(look=look, style_scale=[3, 4]).each("style_scale", 2) == [3, 4]
    assert Settings(look=look).value("detail") == LOOKS[look].detail
    assert Settings(look=look).but(look="free").value("style_scale") == LOOKS["free"].style_scale
    Settings(look=look).check()


def test_looks_lead_from_the_photo_to_the_painting() -> None:
    ways = [LOOKS[name].content_scale / LOOKS[name].style_scale for name in ("faithful", "balanced", "free")]
    assert (
        ways == sorted(ways, reverse=True) and LOOKS["balanced"].content_scale == LOOKS["fine"].content_scale
    )
    head, *rows = looks_table()
    assert [row[0] for row in rows] == list(LOOKS) and all(len(row) == len(head) for row in rows)


def test_info_shows_the_looks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run_program(info.main, ["looks"], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(LOOKS) and "| free | 0.5 | 1.5 |" in lines[5]


@pytest.mark.parametrize(
    "good",
    [
        {"content_scale": 0},
        {"content_scale": 1.5, "style_scale": 1e9},
        {"style_scale": [1.0, 2, 0.5]},
        {"style_scale": (3.0,)},
        {"style_scale": np.float32(2.0)},
        {"content_scale": Fraction(1, 3)},
        {"guidance_interval": (0, 1)},
        {"guidance_interval": [0.2, 0.8]},
        {"sampler": "ddim", "eta": 1},
        {"sampler": "ddim", "eta": 0.3, "steps": 1000},
        {"sampler": "ancestral", "steps": 1},
        {"steps": np.int64(7)},
        {"detail": 0},
        {"detail": 1.0},
        {"look": "sampled"},
        {"look": "sampled", "content_scale": -1, "style_scale": [2, -0.5]},
        {"content_scale": 0, "style_scale": 0},
        {"look": "fine", "effort": 100},
        {"effort": 1e-6},
        {"strength": 1},
        {"strength": 1e-6},
        {"refine": 1},
        {"refine": 0.01},
        {"size": 32},
        {"size": 33},
        {"size": 6324},
        {"size": (32, 1_250_000)},
        {"size": [300, 201]},
        {"style_size": 32},
        {"tile": 32},
        {"tile": 1000},
        {"seed": -(2**63)},
        {"seed": 2**64 - 1},
        {"seed": [1, 2, 3]},
        {"seed": np.uint64(2**64 - 1)},
    ],
)
def test_what_is_possible_is_taken(good: dict[str, Any]) -> None:
    Settings(**good).check()


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"content_scale": float("nan")}, "content_scale must be a finite number, got nan"),
        ({"style_scale": float("-inf")}, "style_scale must be a finite number, got -inf"),
        ({"style_scale": [1.0, float("nan")]}, "style_scale must be a finite number, got nan"),
        ({"style_scale": "2"}, "style_scale must be a number, or a list of them, or None, got '2'"),
        ({"style_scale": [None]}, "style_scale must be a number, or a list of them, or None, got [None]"),
        ({"content_scale": [1.0, "2"]}, "content_scale must be a number, or a list of them"),
        ({"content_scale": 1j}, "content_scale must be a number"),
        ({"content_scale": 10**400}, "content_scale must be a finite number"),
        ({"preserve_color": "no"}, "preserve_color must be True or False, got 'no'"),
        ({"guidance_interval": (0.5, 0.5)}, "0 <= low < high <= 1, got 0.5 and 0.5"),
        ({"guidance_interval": (0.8, 0.2)}, "got 0.8 and 0.2"),
        ({"guidance_interval": (-0.1, 0.5)}, "got -0.1 and 0.5"),
        ({"guidance_interval": (0.0, 1.1)}, "got 0.0 and 1.1"),
        ({"guidance_interval": (0.0, float("nan"))}, "got 0.0 and nan"),
        (
            {"guidance_interval": (0.1, 0.2, 0.3)},
            "guidance_interval must be two numbers, got (0.1, 0.2, 0.3)",
        ),
        ({"guidance_interval": 0.5}, "guidance_interval must be two numbers, got 0.5"),
        ({"guidance_interval": "ab"}, "guidance_interval must be two numbers, got 'ab'"),
        ({"sampler": "euler"}, "sampler 'euler' is not one of dpm-solver++, ddim, ancestral"),
        ({"sampler": "DDIM"}, "sampler 'DDIM' is not one of"),
        ({"sampler": None}, "sampler None is not one of"),
        ({"look": "finest"}, "look 'finest' is not one of fine, faithful, balanced, free, fast"),
        ({"look": None}, "look None is not one of fine, faithful, balanced, free, fast"),
        ({"effort": 0}, "effort must be above 0 and at most 100, got 0"),
        ({"effort": -1.0}, "effort must be above 0 and at most 100, got -1.0"),
        ({"effort": 101}, "effort must be above 0 and at most 100, got 101"),
        ({"effort": float("nan")}, "effort must be above 0 and at most 100, got nan"),
        ({"effort": "much"}, "effort must be a number, got 'much'"),
        (
            {"style_scale": -1},
            "style_scale must be at least 0 in the look fine, got -1; the look sampled leads away below 0",
        ),
        ({"content_scale": [1, -0.5]}, "content_scale must be at least 0 in the look fine, got -0.5"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"steps": -3}, "steps must be between 1 and 1000, got -3"),
        ({"steps": 1001}, "steps must be between 1 and 1000, got 1001"),
        ({"steps": 2.0}, f"steps {WHOLE_OR_NONE}, got 2.0"),
        ({"steps": "20"}, f"steps {WHOLE_OR_NONE}, got '20'"),
        ({"sampler": "ddim", "eta": -0.1}, "eta must be between 0 and 1, got -0.1"),
        ({"sampler": "ddim", "eta": 1.1}, "eta must be between 0 and 1, got 1.1"),
        ({"sampler": "ddim", "eta": float("nan")}, "eta must be between 0 and 1, got nan"),
        ({"sampler": "ddim", "eta": None}, "eta must be a number, got None"),
        ({"eta": 0.5}, "eta is for the sampler ddim; dpm-solver++ takes none"),
        ({"sampler": "ancestral", "eta": 1.0}, "eta is for the sampler ddim; ancestral takes none"),
        ({"detail": 1.01}, "detail must be between 0 and 1, got 1.01"),
        ({"detail": -0.5}, "detail must be between 0 and 1"),
        ({"detail": float("nan")}, "detail must be between 0 and 1"),
        ({"detail": "much"}, "detail must be a number or None, got 'much'"),
        ({"strength": 0}, "strength must be above 0 and at most 1, got 0"),
        ({"strength": 1.01}, "strength must be above 0 and at most 1, got 1.01"),
        ({"strength": -0.5}, "strength must be above 0"),
        ({"strength": float("nan")}, "strength must be above 0"),
        ({"strength": "half"}, "strength must be a number, got 'half'"),
        ({"refine": -0.1}, "refine must be between 0 and 1, got -0.1"),
        ({"refine": 1.5}, "refine must be between 0 and 1, got 1.5"),
        ({"refine": "much"}, "refine must be a number or None, got 'much'"),
        ({"size": 31}, "size must be at least 32 pixels, got 31"),
        ({"size": -256}, "size must be at least 32 pixels, got -256"),
        ({"size": (64, 31)}, "size must be at least 32 pixels, got 31"),
        ({"size": 256.0}, "size must be a whole number or a pair of them, got 256.0"),
        ({"size": (64, 64.0)}, "size must be a whole number or a pair of them, got (64, 64.0)"),
        ({"size": (64, 64, 3)}, "size must be a whole number or a pair of them"),
        ({"size": "64"}, "size must be a whole number or a pair of them, got '64'"),
        ({"size": None}, "size must be a whole number or a pair of them, got None"),
        ({"size": 6325}, f"size 6325 means more than the limit of {MAX_RESULT_PIXELS} pixels"),
        (
            {"size": (32, 1_250_001)},
            f"size (32, 1250001) means more than the limit of {MAX_RESULT_PIXELS} pixels",
        ),
        ({"style_size": 31}, "style_size must be at least 32 pixels, got 31"),
        ({"style_size": 256.0}, f"style_size {WHOLE_OR_NONE}, got 256.0"),
        ({"style_size": (64, 64)}, f"style_size {WHOLE_OR_NONE}, got (64, 64)"),
        ({"tile": 31}, "tile must be at least 32 pixels, got 31"),
        ({"tile": 0}, "tile must be at least 32 pixels, got 0"),
        ({"tile": "256"}, f"tile {WHOLE_OR_NONE}, got '256'"),
        ({"seed": 2**64}, f"seed must be between -2^63 and 2^64 - 1, got {2**64}"),
        ({"seed": [0, -(2**63) - 1]}, f"seed must be between -2^63 and 2^64 - 1, got {-(2**63) - 1}"),
        ({"seed": 1.0}, "seed must be a whole number, or a list of them, got 1.0"),
        ({"seed": None}, "seed must be a whole number, or a list of them, got None"),
        ({"seed": "lucky"}, "seed must be a whole number, or a list of them, got 'lucky'"),
        ({"seed": b"ab"}, "seed must be a whole number, or a list of them, got b'ab'"),
        ({"seed": True}, "seed must be a whole number, or a list of them, got True"),
        ({"seed": []}, "seed must be a whole number, or a list of them, got []"),
        ({"steps": True}, f"steps {WHOLE_OR_NONE}, got True"),
        ({"style_scale": []}, "style_scale must be a number, or a list of them, or None, got []"),
        (
            {"style_scale": [10**5000]},
            "style_scale must be a finite number, got a number of very many digits (int)",
        ),
        ({"style_scale": Fraction(10**400, 3)}, "style_scale must be a finite number"),
        ({"guidance_interval": (False, True)}, "guidance_interval must be two numbers, got (False, True)"),
        ({"size": 10**400}, "means more than the limit"),
        ({"size": (10**400, 64)}, "means more than the limit"),
        ({"size": (np.int64(2**32), np.int64(2**32))}, "means more than the limit"),
        ({"sampler": np.array(["ddim"])}, "is not one of dpm-solver++"),
        ({"look": ["fine", "sampled"]}, "look ['fine', 'sampled'] is not one of"),
        ({"preserve_color": np.ones(3)}, "preserve_color must be True or False, got array([1., 1., 1.])"),
        ({"seed": [1, None]}, "seed must be a whole number, or a list of them, got [1, None]"),
    ],
)
def test_what_is_impossible_is_refused_and_said(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings(**wrong).check()
    assert problem in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_model_of_fewer_time_steps_allows_fewer_steps() -> None:
    Settings(steps=40).check(num_timesteps=40)
    with pytest.raises(UserError, match="steps must be between 1 and 40, got 41"):
        Settings(steps=41).check(num_timesteps=40)


@pytest.mark.parametrize("sampler, steps", [("dpm-solver++", 10), ("ddim", 50), ("ancestral", 250)])
def test_every_sampler_has_its_own_number_of_steps(sampler: str, steps: int) -> None:
    assert SAMPLERS[sampler].steps == steps == Settings(look="sampled", sampler=sampler).number_of_steps
    assert Settings(sampler=sampler).number_of_steps == steps
    assert Settings(sampler=sampler, steps=3).number_of_steps == 3


def test_effort_multiplies_the_gradient_steps_of_the_fine_look() -> None:
    assert [Settings(effort=effort).effective_look.steps_at(256) for effort in (0.5, 1, 3)] == [10, 21, 63]
    assert (
        Settings(effort=1e-6).effective_look.gradient_steps == 1
    )  # the least there is, but still the fine look
    assert Settings(look="sampled", effort=3).effective_look.steps_at(256) == 0


@pytest.mark.parametrize(
    "options, side",
    [
        ({"size": 512}, 512),
        ({"size": (900, 400)}, 400),
        ({"size": 64}, 256),
        ({"size": 512, "style_size": 300}, 300),
        ({"look": "sampled", "size": 512}, 256),
    ],
)
def test_how_large_style_pictures_are_looked_at(options: dict[str, Any], side: int) -> None:
    assert Settings(**options).style_side(256) == side


def test_the_default_is_the_fastest_sampler() -> None:
    assert Settings().sampler == "dpm-solver++" == min(SAMPLERS, key=lambda name: SAMPLERS[name].steps)


@pytest.mark.parametrize(
    "given, expected", [(2, [2, 2, 2]), (0.5, [0.5] * 3), ([1, 2, 3], [1, 2, 3]), ((1.0, 2, 3), [1.0, 2, 3])]
)
def test_one_value_is_for_all_pictures_and_a_list_has_one_for_each(given: Any, expected: list) -> None:
    assert Settings(style_scale=given).each("style_scale", 3) == expected
    assert Settings(seed=given).each("seed", 3) == expected


@pytest.mark.parametrize("name", ["seed", "content_scale", "style_scale"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_another_length_is_refused(name: str, count: int) -> None:
    with pytest.raises(UserError, match=f"{count} values of {name} for 2 pictures"):
        Settings(**{name: [1] * count}).each(name, 2)


def test_a_list_is_not_written_into() -> None:
    seeds = [1, 2]
    Settings(seed=seeds).each("seed", 2).append(3)
    assert seeds == [1, 2]


# By name


def test_settings_are_found_by_name() -> None:
    assert Settings().but(steps=3, tile=64) == Settings(steps=3, tile=64)
    assert Settings().but() == Settings()


@pytest.mark.parametrize(
    "name, near",
    [
        ("syle_scale", "style_scale"),
        ("step", "steps"),
        ("preserve_colour", "preserve_color"),
        ("seeds", "seed"),
    ],
)
def test_an_unknown_name_is_answered_with_the_one_that_was_meant(name: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"there is no setting '{name}'.*\b{near}\b"):
        Settings().but(**{name: 1})


def test_a_name_like_no_other_is_answered_without_a_guess() -> None:
    with pytest.raises(UserError) as caught:
        Settings().but(xyzzy=1)
    assert not [field.name for field in fields(Settings) if field.name in str(caught.value)]


def test_every_setting_has_a_dial_whose_check_takes_its_default() -> None:
    assert [field.name for field in fields(Settings)] == list(DIALS)
    for name, dial in DIALS.items():
        dial.check(name, getattr(Settings, name))
        assert dial.help and dial.range_help
        assert (getattr(Settings, name) is None) <= (dial.default_help is not None)


def test_the_document_is_made_of_the_dials() -> None:
    path = ROOT / "docs/settings_table.py"
    module = module_from_spec(spec := spec_from_file_location("settings_table", path))
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "python docs/settings_table.py brings it up to date"
