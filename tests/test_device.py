"""ldm.device: how many threads compute."""

import argparse
import logging
from collections.abc import Iterator

import pytest
import torch
from pipeline_builders import picture

from ldm.cli.options import add_model_options, load_pipeline
from ldm.device import _seconds_with, _usual_threads, peak_memory, total_memory, use_free_threads


@pytest.fixture
def eight_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(8)
    _usual_threads.cache_clear()
    yield
    torch.set_num_threads(before)
    _usual_threads.cache_clear()


@pytest.mark.parametrize(
    "times, expected",
    [
        ({8: 1.0, 4: 1.6, 2: 3.0, 1: 6.0}, 8),  # a quiet machine
        ({8: 9.0, 4: 5.0, 2: 2.0, 1: 3.0}, 2),  # six of the processors are busy
        ({8: 46.0, 4: 40.0, 2: 30.0, 1: 3.0}, 1),  # all are
        ({8: 1.0, 4: 0.8, 2: 0.9, 1: 1.2}, 8),  # hardly faster, or by chance
    ],
)
def test_as_many_threads_compute_as_are_fastest_now(
    eight_threads: None, caplog: pytest.LogCaptureFixture, times: dict[int, float], expected: int
) -> None:
    caplog.set_level(logging.INFO)
    assert use_free_threads(times.__getitem__) == torch.get_num_threads() == expected
    line = f"computing with {expected} of 8 threads now"
    assert (line in caplog.text) == (expected < 8)
    # and as many as ever when the machine is quiet again
    assert use_free_threads(lambda number: 1 / number) == torch.get_num_threads() == 8


def test_who_says_how_many_is_obeyed(eight_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert use_free_threads(lambda number: float(number)) == torch.get_num_threads() == 8
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    _usual_threads.cache_clear()
    assert use_free_threads(lambda number: pytest.fail("nothing to measure")) == 1


def test_a_measure_takes_little_and_leaves_that_number(eight_threads: None) -> None:
    assert _seconds_with(2) > 0 and torch.get_num_threads() == 2


@pytest.mark.parametrize("settle", [True, False])
def test_programs_look_before_each_picture_and_servers_do_not(
    monkeypatch: pytest.MonkeyPatch, model_files: list[str], settle: bool
) -> None:
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    looked: list[bool] = []
    monkeypatch.setattr("ldm.device.use_free_threads", lambda: looked.append(True))
    args = parser.parse_args([*model_files, "--device", "cpu"])
    pipeline = load_pipeline(args, settle_threads=settle)
    photos = [picture(32, 32, i) for i in range(3)]
    pipeline(photos, photos[0], look="sampled", size=32, steps=1, batch_size=2)
    assert looked == [True, True] * settle


def test_the_memory_there_is_is_more_than_what_was_taken() -> None:
    cpu = torch.device("cpu")
    assert total_memory(cpu) > peak_memory(cpu) > 0
