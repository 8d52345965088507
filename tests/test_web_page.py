"""The page in a real browser, and its functions by name, against one server with the bundled model.

The browser is Chromium, or what ARTFUSION_BROWSER names; without one these tests are skipped.
"""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline_builders import ROOT, picture

from ldm.media.images import read_metadata
from ldm.pipeline.provenance import METADATA_KEY
from ldm.program import own_command, own_environment

pytestmark = pytest.mark.slow
BROWSER = os.environ.get("ARTFUSION_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
in_a_browser = [
    pytest.mark.browser,
    pytest.mark.flaky(reruns=2),  # two programs talk here, each in its own time
    pytest.mark.skipif(BROWSER is None, reason="no browser here; ARTFUSION_BROWSER names one"),
]
# without what browsers ask of their makers by themselves
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SIZE, LARGEST = 96, 512
BEGIN = ["--size", str(SIZE), "--effort", "0.3", "--steps", "3", "--max-size", str(LARGEST)]
PHOTO, PAINTING = ROOT / "data/contents/astronaut.jpg", ROOT / "data/styles/turner_whalers.jpg"
SHELVED = "turner"  # of the styles that come along
PATIENCE = 180_000  # milliseconds, for what hangs


def pixels(source: Any) -> Image.Image:
    """A picture, its file closed again."""
    with Image.open(source) as image:
        return image.convert("RGB")


@dataclass
class Server:
    """A page that is being served. folder: where its process was started."""

    url: str
    process: subprocess.Popen[str]
    folder: Path


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = own_command("web", "--no-open", "--port", str(port), *BEGIN, *options)
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=own_environment(), stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line, Path(log.name).read_text()
        yield Server(f"http://127.0.0.1:{port}", process, folder)
    finally:
        process.terminate()  # Ctrl-C is ignored by what a script started in the background
        process.wait(60)
        process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("empty")) as served:
        yield served


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Visit:
    """An open page. problems: errors in its console, and requests to other places."""

    page: Any
    url: str
    problems: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.wait_for_selector("#paint")

    def open_anew(self) -> None:
        """What is under way then is left; the page tells its console that its connection ended."""
        assert self.problems == []
        self.page.goto("about:blank")
        self.problems.clear()
        self.open()

    def give(self, photo: Path = PHOTO, painting: str = SHELVED) -> None:
        self.upload("#photo", photo)
        self.page.wait_for_selector(f"#photo img[src*='{photo.stem}.png']")  # as it was read
        self.page.click(f"#shelf button[data-name={painting}]")
        self.page.wait_for_selector("#painting img")

    def upload(self, where: str, path: Path) -> None:
        self.page.set_input_files(f"{where} input[type=file]", path)

    def load(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#load")
        chooser.value.set_files(path)

    def unfold(self, words: str) -> None:
        self.page.click(f"button.label-wrap:has-text('{words}')")

    def paint(self, button: str = "#paint", shown: str = "#status") -> None:
        """Until it is done; a small picture may come before anything was seen of it."""
        old = f"() => document.querySelector('{shown} .af-status').setAttribute('data-old', '')"
        self.page.evaluate(old)
        self.page.click(button)
        done = f"{shown} .af-status:not([data-old]) p:text-matches('^(Done|Click)')"
        self.page.wait_for_selector(done, timeout=PATIENCE)

    def begin(self, button: str = "#paint", shown: str = "#status") -> None:
        self.page.click(button)
        self.page.wait_for_selector(f"{shown} progress", state="attached", timeout=PATIENCE)

    def begin_something_long(self) -> None:
        self.unfold("More: two dials")
        self.page.click(f"#field_size label:has-text('{LARGEST}')")
        self.page.fill("#field_effort input >> nth=0", "4")
        self.begin()

    def result(self, folder: Path) -> Path:
        """The picture that Download gives."""
        with self.page.expect_download(timeout=PATIENCE) as download:
            self.page.click("#download")
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path

    def seen(self, shown: str = "#viewer .af-viewer-after") -> Image.Image:
        """What the viewer shows, or another picture of the page."""
        source = self.page.get_attribute(shown, "src")
        data = self.page.evaluate(
            "async (url) => Array.from(new Uint8Array(await (await fetch(url)).arrayBuffer()))", source
        )
        return pixels(io.BytesIO(bytes(data)))

    def message(self) -> str:
        """The line of the newest toast, waited for."""
        toast = self.page.wait_for_selector("[data-testid=toast-text]", timeout=PATIENCE)
        return str(toast.inner_text())

    def drag(self, selector: str, *points: tuple[float, float]) -> None:
        """With the mouse, from one share of an element's width and height to the next."""
        self.page.locator(selector).scroll_into_view_if_needed()
        box = self.page.locator(selector).bounding_box()
        at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*at[0])
        self.page.mouse.down()
        for point in at[1:]:
            self.page.mouse.move(*point, steps=8)
        self.page.mouse.up()


@pytest.fixture
def visit(server: Server, browser: Any) -> Iterator[Visit]:
    with visiting(server, browser) as each:
        yield each


@contextmanager
def visiting(server: Server, browser: Any, **options: Any) -> Iterator[Visit]:
    """An open page; at the end nothing was wrong in its console, and nothing left this computer."""
    page = browser.new_page(**{"viewport": {"width": 1440, "height": 1000}, **options})
    page.set_default_timeout(PATIENCE)
    visit = Visit(page, server.url)
    here = (server.url, "data:", "blob:")
    page.on("console", lambda line: visit.problems.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: visit.problems.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(here) else visit.problems.append(asked.url))
    visit.open()
    yield visit
    page.close()
    assert visit.problems == []


def in_browser(test: Any) -> Any:
    for mark in in_a_browser:
        test = mark(test)
    return test


@in_browser
def test_from_upload_to_picture(visit: Visit, tmp_path: Path) -> None:
    """What is downloaded is what the command line paints, and says how it was made."""
    visit.give()
    visit.paint()
    path = visit.result(tmp_path)
    own = tmp_path / "own.png"
    options = ["--size", str(SIZE), "--effort", "0.3", "--steps", "3"]
    subprocess.run(
        own_command("stylize", str(PHOTO), SHELVED, str(own), *options),
        check=True,
        env=own_environment(),
    )
    difference = np.abs(np.asarray(pixels(path), float) - np.asarray(pixels(own), float))
    assert pixels(path).size == (SIZE, SIZE) and difference.mean() < 0.5
    said = json.loads(read_metadata(path)[METADATA_KEY])
    assert (said["content"], said["style"], said["size"]) == (PHOTO.stem, SHELVED, SIZE)
    assert "tmp" not in json.dumps(said)


@in_browser
def test_the_three_looks_move_the_dials_and_differ(visit: Visit, tmp_path: Path) -> None:
    visit.give()
    visit.unfold("More: two dials")
    pictures = []
    for i, (content, style) in enumerate([("2", "1"), ("1", "1"), ("0.5", "1.5")]):
        visit.page.click(f"#balance label >> nth={i}")
        visit.page.wait_for_function(
            "([content, style]) => document.querySelector('#field_content_scale input').value === content && "
            "document.querySelector('#field_style_scale input').value === style",
            arg=[content, style],
        )
        visit.paint()
        pictures.append(np.asarray(pixels(visit.result(tmp_path)), float))
    photo = np.asarray(pixels(PHOTO).resize((SIZE, SIZE)), float)
    distances = [np.abs(painted - photo).mean() for painted in pictures]
    assert distances[0] < distances[1] < distances[2]


@in_browser
def test_another_look_moves_the_dials_that_stand_where_the_one_before_has_them(visit: Visit) -> None:
    visit.unfold("More: two dials")

    def choose(look: str, content: str, style: str, balance: int) -> None:
        visit.page.click("#field_look input")
        visit.page.click(f"[role=option]:has-text('{look}')")
        visit.page.wait_for_function(
            "([look, content, style]) => document.querySelector('#field_look input').value === look && "
            "document.querySelector('#field_content_scale input').value === content && "
            "document.querySelector('#field_style_scale input').value === style",
            arg=[look, content, style],
        )
        said = f"content scale {content}, style scale {style}"
        visit.page.wait_for_selector(f"#pad .af-pad[aria-valuetext='{said}']")
        assert visit.page.locator("#balance input:checked").count() == balance

    choose("sampled", "1.25", "1.75", 0)
    choose("fine", "1", "1", 1)
    visit.page.click("#balance label >> nth=0")
    visit.page.wait_for_selector("#pad .af-pad[aria-valuetext='content scale 2, style scale 1']")
    choose("sampled", "2", "1", 1)  # as they were chosen


@in_browser
def test_dragging_on_the_pad_moves_the_dials_and_sketches(visit: Visit) -> None:
    visit.give()
    visit.unfold("More: two dials")
    visit.drag("#pad .af-pad", (0.5, 0.5), (0.75, 0.9))
    visit.page.wait_for_selector("#viewer .af-viewer-tag:text('sketch')")
    values = [
        visit.page.input_value(f"#field_{name} input >> nth=0") for name in ("content_scale", "style_scale")
    ]
    assert [float(value) for value in values] == pytest.approx([0.2, 1.5], abs=0.051)
    assert visit.page.locator("#balance input:checked").count() == 0
    before = visit.seen()
    visit.page.focus("#pad .af-pad")
    for _ in range(8):
        visit.page.keyboard.press("ArrowUp")
    visit.page.wait_for_function(
        "() => parseFloat(document.querySelector('#field_content_scale input').value) > 0.9"
    )
    source = visit.page.get_attribute("#viewer .af-viewer-after", "src")
    visit.page.click("#balance label >> nth=0")
    visit.page.wait_for_function(
        "(old) => document.querySelector('#viewer .af-viewer-after').src !== old", arg=source
    )
    assert visit.seen() != before
    assert visit.page.get_attribute("#pad .af-pad", "aria-valuetext") == "content scale 2, style scale 1"


@in_browser
def test_cancel_in_mid_run_and_paint_again(visit: Visit) -> None:
    visit.give()
    visit.begin_something_long()
    visit.page.wait_for_selector("#viewer .af-viewer-tag:text('on its way')")
    visit.page.click("#cancel")
    visit.page.wait_for_selector("#status p:text-is('Stopped.')")
    visit.page.click(f"#field_size label:has-text('{SIZE}')")
    visit.page.fill("#field_effort input >> nth=0", "0.3")
    visit.paint()
    assert visit.page.text_content("#viewer .af-viewer-tag") == ""


@in_browser
def test_what_is_marked_stays_the_photo_to_the_pixel(visit: Visit, tmp_path: Path) -> None:
    visit.give()
    visit.unfold("Keep a face")
    visit.drag("#drawing canvas", (0.4, 0.2), (0.6, 0.2))
    visit.paint()
    painted = np.asarray(pixels(visit.result(tmp_path)), int)
    photo = np.asarray(pixels(PHOTO).resize((SIZE, SIZE), Image.Resampling.LANCZOS), int)
    same = (np.abs(painted - photo).max(axis=2) == 0).mean(axis=1)
    row = round(0.2 * SIZE)
    assert np.array_equal(painted[row, 40:56], photo[row, 40:56])
    assert same[row] > 0.2 and same[SIZE // 2 :].max() < 0.2
    # turned into a part for another painting, which there is not yet
    visit.page.click("#drawing button[data-mark='#00ff00']")
    visit.drag("#drawing canvas", (0.1, 0.8), (0.9, 0.8))
    visit.page.click("#paint")
    assert "a part is marked for the second painting, but there is none" in visit.message()
    visit.page.click("#drawing .af-drawing-clear")
    visit.paint()
    assert not np.array_equal(np.asarray(visit.seen(), int)[row, 40:56], photo[row, 40:56])


@in_browser
def test_four_variants_one_is_picked_and_painted_larger(visit: Visit, tmp_path: Path) -> None:
    visit.give()
    visit.page.click("button[role=tab]:has-text('Four variants')")
    visit.paint("#variants")
    visit.page.wait_for_function(
        "() => document.querySelectorAll('#gallery .thumbnail-item img').length === 4"
    )
    sources = visit.page.evaluate(
        "() => [...document.querySelectorAll('#gallery .thumbnail-item img')].map((image) => image.src)"
    )
    assert [re.search(r"artfusion-(\d+)\.png", source)[1] for source in sources] == ["0", "1", "2", "3"]  # type: ignore[index]
    visit.page.click("#gallery .thumbnail-item >> nth=2")
    visit.page.wait_for_selector("#viewer .af-viewer-after[src*='artfusion-2.png']")
    visit.unfold("More: two dials")
    strokes = visit.page.input_value("#field_style_size input, #field_style_size textarea")
    assert int(strokes) == round(1.6 * SIZE) and visit.page.input_value("#field_seed input") == "2"
    visit.paint("#larger")
    path = visit.result(tmp_path)
    assert pixels(path).size == (2 * SIZE, 2 * SIZE)
    assert json.loads(read_metadata(path)[METADATA_KEY])["seed"] == 2


@in_browser
def test_a_sheet_of_both_dials(visit: Visit) -> None:
    visit.give()
    visit.page.click("button[role=tab]:has-text('Compare')")
    visit.paint("#grid")
    visit.page.wait_for_selector("#sheet img[src*='both_dials.png']")
    sheet = visit.seen("#sheet img")  # the photo and the painting, and four by four beside them
    assert sheet.width > 5 * 192 and 4 * 192 < sheet.height < 5 * 192


@in_browser
def test_settings_are_loaded_from_a_picture_made_here(visit: Visit, tmp_path: Path) -> None:
    visit.give()
    visit.unfold("More: two dials")
    visit.page.fill("#field_seed input", "41")
    visit.page.fill("#field_style_size input, #field_style_size textarea", "300")
    visit.page.click("#balance label >> nth=2")
    visit.paint()
    path = visit.result(tmp_path)
    assert json.loads(read_metadata(path)[METADATA_KEY])["seed"] == 41
    visit.open_anew()
    visit.unfold("More: two dials")
    visit.page.wait_for_selector("#field_seed input")  # what is folded is not there yet
    visit.load(path)
    visit.page.wait_for_selector("#balance label.selected:has-text('Free')")
    visit.page.wait_for_function("() => document.querySelector('#field_seed input').value === '41'")
    assert visit.page.input_value("#field_style_size input, #field_style_size textarea") == "300"
    strange = tmp_path / "strange.png"
    picture(20, 20, seed=1).save(strange)
    visit.load(strange)
    assert (
        visit.message() == "strange.png: says nothing of how it was painted; only PNG pictures made here do"
    )


@in_browser
@pytest.mark.parametrize(
    ("name", "line"),
    [("letter.jpg", "letter.jpg: not a picture that can be read"), ("large.png", "exceed the maximum allowed size of 30")],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_one_line(
    visit: Visit, tmp_path: Path, name: str, line: str
) -> None:
    """By gradio itself, before anything is sent, where it is too large."""
    (tmp_path / "letter.jpg").write_text("Dear reader")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(100 * 2**20)
    visit.upload("#photo", tmp_path / name)
    assert line in visit.message()
    visit.page.wait_for_selector("#photo img", state="detached")


@in_browser
@pytest.mark.parametrize("name", ["deep.tif", "cmyk.jpg", "turned.jpg", "clear.png"])
def test_any_picture_is_shown_as_it_was_read(visit: Visit, tmp_path: Path, name: str) -> None:
    image = picture(60, 40, seed=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(tmp_path / "deep.tif")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("RGBA").save(tmp_path / "clear.png")
    visit.upload("#photo", tmp_path / name)
    stem = name.partition(".")[0]
    visit.page.wait_for_selector(f"#photo img[src*='{stem}.png']")
    size = visit.page.wait_for_function(
        "() => { const image = document.querySelector('#photo img'); "
        "return image.complete && image.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null; }"
    ).json_value()
    assert size == ([40, 60] if stem == "turned" else [60, 40])


@in_browser
def test_two_pages_at_once(server: Server, browser: Any, visit: Visit) -> None:
    """Both get their own picture."""
    with visiting(server, browser) as other:
        visit.give()
        other.give(painting="klimt")
        for each in (visit, other):
            each.page.click("#paint")
        pictures = []
        for each in (visit, other):
            each.page.wait_for_selector("#status p:text-matches('^Done')", timeout=PATIENCE)
            pictures.append(each.seen())
            assert each.page.get_attribute("#viewer .af-viewer-after", "alt").startswith(
                "astronaut in the style of"
            )
    assert pictures[0] != pictures[1]


@in_browser
def test_who_waits_sees_the_place(server: Server, browser: Any, visit: Visit) -> None:
    with visiting(server, browser) as other:
        visit.give()
        other.give()
        visit.begin_something_long()
        other.page.click("#paint")
        other.page.wait_for_selector("#status p:text-is('Waiting: 1 before you')")
        other.page.click("#cancel")
        other.page.wait_for_selector("#status p:text-is('Stopped.')")
        other.page.click("#balance label >> nth=2")
        other.page.wait_for_selector("#status p:text-is('No sketch now: the painter is busy.')")
        other.page.click("#paint")
        visit.page.click("#cancel")
        other.page.wait_for_selector("#status p:text-matches('^Done')")
        visit.page.wait_for_selector("#status p:text-is('Stopped.')")
        assert other.seen().size == (SIZE, SIZE) and visit.page.is_disabled("#download")


@in_browser
def test_after_a_sketch_the_finished_picture_comes_back(visit: Visit) -> None:
    visit.give()
    assert visit.page.is_disabled("#download") and visit.page.is_disabled("#larger")
    visit.paint()
    finished = visit.page.get_attribute("#viewer .af-viewer-after", "src")
    visit.page.click("#balance label >> nth=2")
    visit.page.wait_for_selector("#viewer .af-viewer-tag:text('sketch')")
    visit.page.click("#viewer .af-viewer-back")
    assert visit.page.get_attribute("#viewer .af-viewer-after", "src") == finished
    assert visit.page.text_content("#viewer .af-viewer-tag") == ""


@in_browser
def test_the_result_stays_in_sight_beside_the_dials(visit: Visit) -> None:
    visit.give()
    visit.paint()
    for words in ("Keep a face", "More paintings", "More: two dials"):
        visit.unfold(words)
    visit.page.locator("#field_steps").scroll_into_view_if_needed()
    assert visit.page.evaluate("() => scrollY") > 500
    box = visit.page.locator("#viewer .af-viewer-frame").bounding_box()
    assert 0 <= box["y"] and box["y"] + box["height"] <= 1000


@in_browser
def test_reloaded_in_mid_run_the_device_is_free_again(visit: Visit) -> None:
    visit.give()
    visit.begin_something_long()
    visit.open_anew()
    visit.give()
    visit.paint()
    assert visit.seen().size == (SIZE, SIZE)


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(server: Server, browser: Any, scheme: str) -> None:
    with visiting(server, browser, viewport={"width": 360, "height": 740}, color_scheme=scheme) as visit:
        visit.give()
        for words in ("More: two dials", "Keep a face", "More paintings"):
            visit.unfold(words)
        for tab in ("Photo", "Video"):
            visit.page.click(f"button[role=tab]:has-text('{tab}')")
            assert visit.page.evaluate("() => document.documentElement.scrollWidth") == 360
        background = visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) is (scheme == "dark")


@in_browser
def test_all_is_reached_by_the_keyboard_and_has_a_name(visit: Visit) -> None:
    """Whatever the tab key reaches says what it is."""
    visit.give()
    visit.paint()
    for words in ("More: two dials", "Keep a face", "More paintings"):
        visit.unfold(words)
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll('button, input:not([type=file]), textarea, [role=slider], [tabindex="0"]')]
        .filter((each) => each.offsetParent && !each.disabled)
        .filter((each) => !(each.innerText || each.ariaLabel || each.title || each.labels?.length || each.placeholder
                            || each.getAttribute('aria-labelledby')))
        .map((each) => each.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    ids = ["paint", "cancel", "download", "larger"]
    visit.page.focus("#balance input:checked")
    reached = set()
    for _ in range(120):
        visit.page.keyboard.press("Tab")
        reached.add(visit.page.evaluate("() => document.activeElement.closest('[id]')?.id"))
    assert set(ids) <= reached


@in_browser
def test_before_and_after(visit: Visit) -> None:
    visit.give()
    visit.paint()
    before = visit.page.locator("#viewer .af-viewer-before")
    assert "100%" in before.evaluate("(image) => getComputedStyle(image).clipPath")
    visit.drag("#viewer .af-viewer-frame", (0.1, 0.5), (0.25, 0.5))
    assert visit.page.input_value("#viewer input[type=range]") == "25"
    assert "75%" in before.evaluate("(image) => getComputedStyle(image).clipPath")


@in_browser
def test_a_clip_is_painted_with_its_sound(visit: Visit, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_clip(clip)
    visit.page.click("button[role=tab]:has-text('Video')")
    visit.upload("#clip", clip)
    visit.page.click(f"#clip_shelf button[data-name={SHELVED}]")
    visit.page.wait_for_selector("#clip_painting img")
    visit.paint("#paint_clip", "#clip_status")
    source = visit.page.wait_for_selector("#painted_clip video").get_attribute("src")
    streams = streams_of(urllib.request.urlopen(source).read())
    assert streams == ["audio", "video"]


def write_clip(path: Path, frames: int = 6) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        video, sound = (
            container.add_stream("libx264", rate=6),
            container.add_stream("aac", rate=44100, layout="mono"),
        )
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for i in range(frames):
            container.mux(video.encode(av.VideoFrame.from_image(picture(96, 64, seed=i))))
        wave = (0.2 * np.sin(np.arange(44100) / 20)).astype(np.float32)
        for start in range(0, 44100 - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode())


def streams_of(content: bytes) -> list[str]:
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(content)) as container:
        return sorted(stream.type for stream in container.streams)


# For programs


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gradio_client import Client

    return Client(server.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def files(*more: Path) -> dict[str, Any]:
    from gradio_client import handle_file

    names = ("photo", "painting", "second_painting")
    return {name: handle_file(path) for name, path in zip(names, (PHOTO, PAINTING, *more))}


def test_the_functions_by_name(client: Any) -> None:
    assert sorted(client.view_api(return_format="dict")["named_endpoints"]) == [
        "/grid",
        "/stylize",
        "/variants",
        "/video",
    ]
    painted = client.predict(**files(), api_name="/stylize")
    other = client.predict(**files(), seed=3, size=64, preserve_color=True, api_name="/stylize")
    assert pixels(painted).size == (SIZE, SIZE) and pixels(other).size == (64, 64)
    assert json.loads(read_metadata(painted)[METADATA_KEY])["style"] == PAINTING.stem
    mixed = client.predict(
        **files(ROOT / "data/styles/hashiguchi_ducks.jpg"), second_weight=2, api_name="/stylize"
    )
    assert pixels(mixed).tobytes() != pixels(painted).tobytes()
    variants = client.predict(**files(), size=64, api_name="/variants")
    assert len({pixels(path).tobytes() for path in variants}) == 4


def test_a_clip_by_name(client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    write_clip(tmp_path / "clip.mp4")
    painted = client.predict(
        handle_file(tmp_path / "clip.mp4"), handle_file(PAINTING), size=192, api_name="/video"
    )
    path = painted["video"] if isinstance(painted, dict) else painted
    assert streams_of(Path(path).read_bytes()) == ["audio", "video"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"content_scale": 1e30}, "content_scale 1e\\+30 is more than the 4 that this page takes"),
        ({"steps": "<img src=x>"}, "&lt;img src=x&gt;"),
        ({"size": 4096}, "size 4096 is more than the 512 that this page takes"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"sampler": "euler"}, "sampler 'euler' is not one of"),
        ({"steps": "many"}, "steps must be a number, got 'many'"),
        ({"preserve_color": "perhaps"}, "preserve_color must be True or False"),
        ({"strength": 0}, "strength must be above 0"),
        ({"photo": "a.png"}, "what was sent does not fit what is asked for here"),
        ({"photo": {"path": "https://example.org/a.png", "meta": {"_type": "gradio.FileData"}}}, "give files that were uploaded here"),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line(client: Any, given: dict[str, Any], line: str) -> None:
    with pytest.raises(Exception, match=line):
        client.predict(**{**files(), **given}, api_name="/stylize")


def answer(server: Server, path: str, body: Any = None) -> tuple[int, str]:
    """(status, text) of what the server answers."""
    request = urllib.request.Request(server.url + path)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


OUTSIDE = [
    "/etc/passwd",
    str(ROOT / "README.md"),
    str(PHOTO),
    "/proc/self/environ",
    "https://example.org/a.png",
]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}, {}], ids=["a file", "made up"])
def test_nothing_outside_its_own_folder_is_served_or_read(
    server: Server, tmp_path: Path, path: str, meta: dict[str, Any]
) -> None:
    """By no function of the page's, of which each may be asked for by its number."""
    assert answer(server, f"/gradio_api/file={path}")[0] in (403, 404)
    config = json.loads(answer(server, "/config")[1])
    of_files = {
        each["id"]
        for each in config["components"]
        if each["type"] in ("image", "video", "html", "uploadbutton")
    }
    functions = [each for each in config["dependencies"] if of_files & set(each["inputs"])]
    assert len(functions) > 15
    session = f"{abs(hash((path, len(meta))))}"
    for function in functions:
        given = [{"path": path, **meta} for _ in function["inputs"]]
        body = {"data": given, "fn_index": function["id"], "session_hash": session}
        assert answer(server, "/gradio_api/queue/join", body)[0] == 200
    with urllib.request.urlopen(
        f"{server.url}/gradio_api/queue/data?session_hash={session}", timeout=60
    ) as events:
        told = [json.loads(line[6:]) for line in events if line.startswith(b"data: ")]
    ended = [event for event in told if event["msg"] == "process_completed"]
    assert len(ended) == len(functions) and not any(event["success"] for event in ended)
    lines = {event["output"]["error"] for event in ended}
    assert all("uploaded here" in line for line in lines)


def test_a_folder_is_no_file(server: Server, client: Any) -> None:
    painted = client.predict(**files(), size=64, api_name="/stylize")
    config = json.loads(answer(server, "/config")[1])
    own = next(
        value["file"]["path"]
        for component in config["components"]
        for value in (
            component["props"].get("value") if isinstance(component["props"].get("value"), list) else []
        )
        if isinstance(value, dict) and "file" in value
    )
    photo = {"path": str(Path(own).parent), "meta": {"_type": "gradio.FileData"}}
    status, text = answer(server, "/gradio_api/call/stylize", {"data": [photo, photo]})
    status, text = answer(server, f"/gradio_api/call/stylize/{json.loads(text)['event_id']}")
    assert "event: error" in text and Path(painted).is_file()


def test_where_it_was_started_stays_empty(server: Server, client: Any) -> None:
    client.predict(**files(), size=64, api_name="/stylize")
    assert os.listdir(server.folder) == []


def test_twenty_at_once_are_all_served(server: Server, client: Any) -> None:
    def paint(seed: int) -> bytes:
        path = client.predict(**files(), size=64, look="sampled", effort=1, seed=seed, api_name="/stylize")
        return pixels(path).tobytes()

    with ThreadPoolExecutor(20) as visitors:
        pictures = list(visitors.map(paint, range(20)))
    assert len(set(pictures)) == 20


def test_with_accounts_only_they_come_in(tmp_path: Path) -> None:
    from gradio_client import Client

    (tmp_path / "accounts.txt").write_text("ann:secret\n")
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty", "--auth-file", str(tmp_path / "accounts.txt")) as server:
        assert answer(server, "/config")[0] == 401
        assert answer(server, "/gradio_api/call/stylize", {"data": []})[0] == 401
        with pytest.raises(Exception, match="(?i)credentials|login|401"):
            Client(server.url, auth=("ann", "wrong"), verbose=False)
        client = Client(server.url, auth=("ann", "secret"), verbose=False, download_files=tmp_path)
        assert pixels(client.predict(**files(), size=64, api_name="/stylize")).size == (64, 64)


def test_ended_by_the_system_it_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    with serving(tmp_path / "empty") as server:
        (folder,) = (tmp_path / "temporary").glob("artfusion-web-*")
        assert sorted(path.name for path in folder.iterdir()) == ["alive", "empty", "files"]
        server.process.terminate()
        assert server.process.wait(60) == 143
        assert not folder.exists()
