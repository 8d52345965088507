"""ldm.web.studio: one painting at a time, told step by step, stopped within one. No clocks: what is
waited for is an event."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from pipeline_builders import picture

from ldm.errors import UserError
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings
from ldm.web import studio as studios
from ldm.web.events import STOPPED, Events
from ldm.web.studio import Mailbox, Report, Stopped, Studio, Update

FINE: dict[str, Any] = {"size": 64, "steps": 1, "effort": 0.5}
PATIENCE = 60  # seconds, of a test that hangs


@pytest.fixture(autouse=True)
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studios, "SECONDS_BETWEEN_UPDATES", 0)


@pytest.fixture
def studio(pipeline: StyleTransferPipeline) -> Studio:
    return Studio(lambda: pipeline)


def painting(pipeline: StyleTransferPipeline, report: Report) -> Image.Image:
    painted = pipeline(picture(72, 64, seed=1), picture(40, 40, seed=2), watch=report.watcher(), **FINE)
    assert isinstance(painted, Image.Image)
    return painted


def test_the_last_update_has_the_result(studio: Studio) -> None:
    updates = list(studio.paint(painting, "ann"))
    assert [update.is_last for update in updates] == [*[False] * (len(updates) - 1), True]
    done = [update.done for update in updates]
    assert done == sorted(done) and done[-1] == 1
    assert updates[-1].result == painting(studio.pipeline, Report(Mailbox(), threading.Event()))


def test_previews_and_the_time_that_is_left_come_on_the_way(studio: Studio) -> None:
    told: list[Update] = []

    def work(pipeline: StyleTransferPipeline, report: Report) -> None:
        report._mailbox.put = told.append  # type: ignore[method-assign]
        painting(pipeline, report)
        del report._mailbox.put

    list(studio.paint(work, "ann"))
    assert all(update.preview is not None and update.preview.size == (72, 64) for update in told[2:])
    left = [update.seconds_left for update in told if update.seconds_left is not None]
    assert left and left[-1] < 1e-6


def test_stopped_it_ends_at_the_next_step(studio: Studio) -> None:
    seen: list[str] = []

    def work(pipeline: StyleTransferPipeline, report: Report) -> None:
        for i in range(1000):
            seen.append(str(i))
            if i == 3:
                studio.stop("ben")  # somebody else
                studio.stop("ann")
            report.check()

    with pytest.raises(Stopped):
        list(studio.paint(work, "ann"))
    assert seen == ["0", "1", "2", "3"]


def test_who_goes_away_in_the_middle_leaves_the_device_to_the_next(studio: Studio) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(pipeline: StyleTransferPipeline, report: Report) -> None:
        begun.set()
        try:
            while True:
                report.tell("on it", 0.5)
        finally:
            ended.set()

    updates = studio.paint(endless, "ann")
    while not begun.is_set():
        next(updates)
    updates.close()
    assert ended.wait(PATIENCE)
    assert list(studio.paint(painting, "ben"))[-1].is_last


def test_a_browser_that_says_nothing_any_more_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = Mailbox()
    report = Report(mailbox, threading.Event())
    report.check()
    monkeypatch.setattr(studios, "SECONDS_WITHOUT_A_LISTENER", -1)
    with pytest.raises(Stopped):
        report.check()


def test_one_paints_at_a_time(studio: Studio) -> None:
    at_work: list[int] = []
    most: list[int] = []

    def work(pipeline: StyleTransferPipeline, report: Report) -> None:
        at_work.append(1)
        most.append(len(at_work))
        painting(pipeline, report)
        at_work.pop()

    visitors = [
        threading.Thread(target=lambda i=i: list(studio.paint(work, f"visitor {i}"))) for i in range(6)
    ]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(PATIENCE)
    assert most == [1] * 6


def test_who_waits_is_told_how_many_are_before(studio: Studio) -> None:
    begun, go = threading.Event(), threading.Event()

    def held(pipeline: StyleTransferPipeline, report: Report) -> None:
        begun.set()
        assert go.wait(PATIENCE)

    holder = threading.Thread(target=lambda: list(studio.paint(held, "ann")))
    holder.start()
    assert begun.wait(PATIENCE)
    second, third = studio.paint(painting, "ben"), studio.paint(painting, "cleo")
    assert [next(second).words, next(third).words] == ["Beginning"] * 2
    assert next(second) == Update("Waiting: 1 before you", done=None)
    assert next(third) == Update("Waiting: 2 before you", done=None)
    assert studio.paint_if_free(painting, "dora") is None  # a sketch does not wait
    assert studio.is_painting_for("cleo") and not studio.is_painting_for("dora")
    studio.stop("ben")
    with pytest.raises(Stopped):
        list(second)
    assert next(third) == Update("Waiting: 1 before you", done=None)
    go.set()
    assert list(third)[-1].is_last
    holder.join(PATIENCE)
    assert not studio._line and studio.paint_if_free(painting, "dora") is not None


def test_what_is_still_painted_is_not_said_to_be_stopped(studio: Studio) -> None:
    """The page takes no other order before, and would do nothing at the next click."""
    events = Events(studio, SimpleNamespace(), Settings(), {})
    ann = SimpleNamespace(session_hash="ann")
    updates = studio.paint(painting, "ann")
    next(updates)
    assert STOPPED not in str(events.stop(ann))
    with pytest.raises(Stopped):  # of which the one who paints tells
        list(updates)
    assert STOPPED in events.stop(ann)


def test_who_leaves_the_line_leaves_no_gap(studio: Studio) -> None:
    def holding(pipeline: StyleTransferPipeline, report: Report) -> None:
        while True:
            report.check()

    first, second = studio.paint(holding, "ann"), studio.paint(painting, "ben")
    for each in (first, second):
        next(each)
    second.close()
    third = studio.paint(painting, "cleo")
    next(third)
    first.close()
    assert list(third)[-1].is_last and not studio._line


def test_when_too_many_wait_the_next_are_told_to_come_back(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studios, "MOST_WAITING", 1)

    def holding(pipeline: StyleTransferPipeline, report: Report) -> None:
        while True:
            report.check()

    waiting = [studio.paint(holding, "ann"), studio.paint(holding, "ben")]
    for each in waiting:
        next(each)
    with pytest.raises(UserError, match="1 paintings wait already; come back in some minutes"):
        next(studio.paint(painting, "cleo"))
    for each in waiting:
        each.close()


@pytest.mark.parametrize("error", [UserError("no such style"), RuntimeError("out of paint")])
def test_what_goes_wrong_reaches_who_asked_and_ends_there(studio: Studio, error: Exception) -> None:
    def work(pipeline: StyleTransferPipeline, report: Report) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        list(studio.paint(work, "ann"))
    assert list(studio.paint(painting, "ann"))[-1].is_last and not studio._line


def test_a_model_that_cannot_be_read_is_told_to_all() -> None:
    def load() -> StyleTransferPipeline:
        raise UserError("the weights are missing")

    studio = Studio(load)
    wrong: list[Callable[[], Any]] = [lambda: studio.pipeline, lambda: list(studio.paint(painting, "ann"))]
    for each in wrong:
        with pytest.raises(UserError, match="the weights are missing"):
            each()


def test_until_the_model_is_read_everybody_waits(pipeline: StyleTransferPipeline) -> None:
    read = threading.Event()

    def load() -> StyleTransferPipeline:
        assert read.wait(PATIENCE)
        return pipeline

    studio = Studio(load)
    updates = studio.paint(painting, "ann")
    assert next(updates).words == "Waiting for the model"
    assert studio.paint_if_free(painting, "ann") is None
    read.set()
    assert list(updates)[-1].is_last
