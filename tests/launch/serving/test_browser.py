"""The page in a browser without a window: files go in, captions and charts come out.

It needs Playwright's Python package and Chromium. With ``SHOTS=FOLDER`` it leaves pictures of the
page there; ``MODELS=captioner,moving_shapes``, ``PHOTO=`` and ``CLIP=`` take other than the small
models and files of these tests.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.video_files import write_video
from tests.launch.serving.models import HOSTILE
from tests.launch.serving.running import Server, serving

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(
        CHROMIUM is None
        or any(importlib.util.find_spec(name) is None for name in ("gradio", "playwright")),
        reason="gradio, playwright or Chromium is not installed",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browser")
    models = [name for name in os.environ.get("MODELS", "").split(",") if name]
    flags = [f"--model={name}" for name in models]
    program = {"program": "launch.serve"} if models else {}
    with serving(*flags, folder=folder, **program) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(40, axis=0).repeat(40, axis=1)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    clip = write_video(folder / "clip.avi", 20)
    return os.environ.get("PHOTO", str(folder / "photo.jpg")), os.environ.get("CLIP", str(clip))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_photograph_and_a_clip(
    scheme: str, width: int, server: Server, browser: Any, files: tuple[str, str]
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    foreign: list[str] = []
    errors: list[str] = []

    def note(request: Any) -> None:
        if not request.url.startswith((server.url, "data:", "blob:")):
            foreign.append(request.url)

    page.on("request", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(f"a dialog: {dialog.message}"))
    page.goto(server.url)
    inputs = page.locator("input[type=file]")
    page.get_by_role("button", name="Caption", exact=True).wait_for()
    title = page.title()
    inputs.first.set_input_files(files[0])
    word = page.locator(".cap label").nth(1)
    word.wait_for(timeout=60_000)
    shade = page.locator(".cap .m1")
    assert shade.evaluate("e => getComputedStyle(e).opacity") == "0"
    word.hover()
    page.wait_for_timeout(500)
    assert shade.evaluate("e => getComputedStyle(e).opacity") == "1"
    _shoot(page, f"caption_{scheme}_{width}")
    page.mouse.move(0, 0)
    word.click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    assert shade.evaluate("e => getComputedStyle(e).opacity") == "1"

    page.get_by_role("tab", name="Clips").click()
    inputs.nth(1).set_input_files(files[1])
    page.locator(".vega-embed svg, .vega-embed canvas").first.wait_for(timeout=60_000)
    if files[1].endswith(".avi"):
        copy = page.locator("video[src*='preview.mp4']")
        copy.wait_for(timeout=60_000)
        assert copy.evaluate("v => v.error") is None
    page.wait_for_timeout(1500)
    _shoot(page, f"clip_{scheme}_{width}")
    assert page.locator("img[src='x']").count() == 0
    if "MODELS" not in os.environ:
        assert page.get_by_text(HOSTILE).count() > 0
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"the page is {wide} pixels wide"
    assert page.title() == title
    assert not foreign
    assert not errors
    page.close()


@pytest.mark.parametrize("name", ["broken.jpg", "photo.gif"])
def test_reasons_are_shown(name: str, server: Server, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.get_by_role("button", name="Caption", exact=True).wait_for()
    (tmp_path / name).write_bytes(b"GIF89a" + bytes(40))
    page.locator("input[type=file]").first.set_input_files(tmp_path / name)
    problem = page.get_by_role("alert")
    problem.wait_for(timeout=60_000)
    assert problem.inner_text()
    page.close()


def test_examples_are_clicked(server: Server, browser: Any) -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.locator(".gallery-item").first.click()
    page.locator(".cap .view").wait_for(timeout=60_000)
    page.close()


def _shoot(page: Any, name: str) -> None:
    """Leaves a picture of the page, if asked to."""
    if "SHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SHOTS"]) / f"{name}.png")
