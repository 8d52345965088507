"""The options that the programs share: which were typed, and every dial by its own option."""

import argparse
from typing import Any

import pytest

from ldm.cli.options import add_settings_options, dial_value, option_name, parse_size, settings_of
from ldm.errors import UserError
from ldm.pipeline.settings import DIALS, Flag, Interval, Settings
from ldm.program import ArgumentParser


def dials_parser(**options: Any) -> ArgumentParser:
    parser = ArgumentParser()
    add_settings_options(parser, **options)
    return parser


def option_strings(parser: argparse.ArgumentParser) -> list[str]:
    return [action.option_strings[-1] for action in parser._actions if action.dest != "help"]


# What was typed


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--allow", action="append", default=[])
    return parser


@pytest.mark.parametrize(
    "typed, names, values",
    [
        ([], set(), (512, False, [])),
        (["--size", "512"], {"size"}, (512, False, [])),  # typed, though it says the default
        (["--fast"], {"fast"}, (512, True, [])),
        (["--allow", "a", "--allow", "b"], {"allow"}, (512, False, ["a", "b"])),
    ],
    ids=str,
)
def test_what_was_typed_is_told_from_the_defaults(
    parser: ArgumentParser,
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    names: set[str],
    values: tuple[Any, ...],
) -> None:
    monkeypatch.setattr("sys.argv", ["program", *typed])
    args, given = parser.parse_given()
    assert given == names and (args.size, args.fast, args.allow) == values


# The dials


def test_an_option_is_not_cut_short() -> None:
    parser = ArgumentParser()
    parser.add_argument("--content-scales", type=float, nargs="+")
    with pytest.raises(UserError, match="--content-scale 2; did you mean --content-scales"):
        parser.parse_args(["--content-scale", "2"])


def test_every_dial_has_an_option_and_all_by_default_are_the_defaults() -> None:
    parser = dials_parser()
    assert option_strings(parser) == [option_name(name) for name in DIALS]
    assert settings_of(parser.parse_args([])) == Settings()


@pytest.mark.parametrize("name", DIALS)
def test_an_option_takes_its_dials_own_values(name: str) -> None:
    dial, value = DIALS[name], getattr(Settings, name)
    if isinstance(dial, Flag):
        value, typed = True, []
    elif isinstance(dial, Interval):
        value, typed = [0.2, 0.8], ["0.2", "0.8"]
    else:
        value = 32 if value is None and dial.whole else 0.25 if value is None else value
        typed = [str(value)]
    parsed = getattr(dials_parser().parse_args([option_name(name), *typed]), name)
    assert parsed == value and type(parsed) is type(value)
    dial.check(name, parsed)


@pytest.mark.parametrize(
    "typed, problem",
    [
        ("--look finest", "--look: invalid choice: 'finest'"),
        ("--sampler euler", "--sampler: invalid choice: 'euler'"),
        ("--effort much", "--effort: invalid float value: 'much'"),
        ("--seed 1.5", "--seed: invalid int value: '1.5'"),
        ("--guidance-interval 0.5", "--guidance-interval: expected 2 arguments"),
        ("--size big", "--size: expected a number such as 256, or width x height such as 640x480, got 'big'"),
    ],
)
def test_an_option_refuses_what_is_no_value(typed: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        dials_parser().parse_args(typed.split())
    assert problem in str(caught.value)


@pytest.mark.parametrize("text, size", [("256", 256), ("640x480", (640, 480)), ("33X47", (33, 47))])
def test_a_size_is_one_side_or_both(text: str, size: int | tuple[int, int]) -> None:
    assert parse_size(text) == size == dial_value("size", text)


@pytest.mark.parametrize("text", ["", "wide", "64x", "64x64x64", "256.5"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"such as 640x480, got '{text}'"):
        parse_size(text)


def test_a_program_may_have_some_dials_only_and_in_its_own_order() -> None:
    assert option_strings(dials_parser(only=("seed", "look"))) == ["--seed", "--look"]
    assert option_strings(dials_parser(only=("seed", "look"), leave_out=["look"])) == ["--seed"]
    left = option_strings(dials_parser(leave_out=["seed"]))
    assert left == [option_name(name) for name in DIALS if name != "seed"]
    assert settings_of(dials_parser(only=["steps"]).parse_args(["--steps", "3"])) == Settings(steps=3)


def test_a_program_may_have_defaults_of_its_own_and_its_help_tells_them() -> None:
    parser = dials_parser(look="sampled", size=256, strength=0.25, tile=64)
    own = {"look": "sampled", "size": 256, "strength": 0.25, "tile": 64}
    assert settings_of(parser.parse_args([])) == Settings(**own)
    told = {action.dest: action.help for action in parser._actions}
    for name, value in own.items():
        assert told[name].endswith(f" (default: {value})")
    assert told["style_scale"].endswith(" (default: 1; for free 1.5; for sampled 1.75)")
    assert told["steps"].endswith(f" (default: {DIALS['steps'].default_help})")
    assert "default" not in told["preserve_color"]


# The settings of parsed options


def test_other_settings_go_before_the_options() -> None:
    args = dials_parser().parse_args(["--seed", "3", "--steps", "4"])
    assert settings_of(args, seed=[1, 2]) == Settings(steps=4, seed=[1, 2])


def test_options_that_are_no_dials_are_passed_over() -> None:
    assert settings_of(argparse.Namespace(output="out.png", steps=4)) == Settings(steps=4)


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="steps must be between 1 and 1000, got 0"):
        settings_of(argparse.Namespace(steps=0))


def test_effort_is_for_the_look_that_makes_some() -> None:
    assert settings_of(argparse.Namespace(look="fine", effort=2.0)).effort == 2
    assert settings_of(argparse.Namespace(look="sampled", effort=1.0)).look == "sampled"
    with pytest.raises(
        UserError, match="effort is for looks with gradient steps, such as fine; the look sampled makes none"
    ):
        settings_of(argparse.Namespace(look="sampled", effort=2.0))
