"""The pages of the service in a headless Chromium, used as a person uses them."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.errors import ConfigError
from detector.structures.selection import SelectConfig
from tests.test_pages import BROWSER, PROBE, SCHEMES, WIDTHS_PX

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")

# Chooses a picture, moves the threshold, drops a file that is no picture and one that the service refuses.
ACTIONS = """<!doctype html><html><body><pre id="found"></pre><script>
const wait = ms => new Promise(resolve => setTimeout(resolve, ms));
(async () => {
  const seen = {}, frame = document.createElement("iframe");
  frame.style = "width: 800px; height: 800px; border: 0";
  frame.src = "/";
  const loaded = new Promise(resolve => frame.onload = resolve);
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, view = frame.contentWindow, find = id => page.getElementById(id);
  // Virtual time runs ahead while the browser decodes a picture, so that only many steps are a long wait.
  async function until(test) { for (let i = 0; i < 50000 && !test(); i++) await wait(20); return test(); }
  async function drop(name, content) {
    const files = new view.DataTransfer();
    files.items.add(new view.File([content], name));
    find("state").textContent = "";
    find("drop").dispatchEvent(new view.DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
    await until(() => find("state").textContent && find("state").textContent != "Detecting ...");
    return find("state").textContent;
  }
  await until(() => find("model").length == 2);
  seen.models = [...find("model").options].map(option => option.text);
  seen.lowest = find("score").value;
  seen.state = await drop("a.png", await (await fetch("/picture")).blob());
  seen.rows = [...find("boxes").tBodies[0].rows].map(row => [...row.cells].map(cell => cell.textContent));
  const pixel = find("canvas").getContext("2d").getImageData(8, 20, 1, 1).data;
  seen.drawn = Math.max(...pixel.slice(0, 3)) - Math.min(...pixel.slice(0, 3));
  find("score").value = 0.6;
  find("score").dispatchEvent(new view.Event("input"));
  seen.fewer = find("state").textContent;
  seen.broken = await drop("b.txt", "no picture");
  seen.refused = await drop("c.png", await (await fetch("/large")).blob());
  find("model").value = "second";
  seen.second = await drop("d.png", await (await fetch("/picture")).blob());
  document.getElementById("found").textContent = JSON.stringify(seen);
})().catch(error => document.getElementById("found").textContent = JSON.stringify(String(error)));
</script></body></html>"""


def seen_by(address: str, profile: Path, scheme: str = "light") -> Any:
    command = [
        str(BROWSER),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=9000000"),
        *(f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"),
        *("--dump-dom", address),
    ]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', dumped, re.DOTALL)
    assert found is not None, dumped[:500]
    assert found[1], "the page was not loaded in time"
    return json.loads(unescape(found[1]))


def add_content(running: Any, path: str, content: bytes, kind: str) -> None:
    from fastapi import Response

    running.app.add_api_route(path, lambda: Response(content, media_type=kind), include_in_schema=False)


def png(level: int, side: int) -> bytes:
    return cv2.imencode(".png", np.full((side, side, 3), level, np.uint8))[1].tobytes()


def test_person_sees_the_boxes_of_a_picture_and_moves_the_threshold(run_service, tmp_path, monkeypatch):
    with run_service(names=("first", "second"), max_pixels=10_000) as running:
        second = running.service.models["second"]
        select = second.select

        def refuse_low_scores(settings: dict[str, object]) -> SelectConfig:
            """Select as an export with its own suppression does."""
            if settings.get("confidence") == 0.01:
                raise ConfigError("expected confidence of at least 0.1")
            return select(settings)

        monkeypatch.setattr(second, "select", refuse_low_scores)
        add_content(running, "/probe", ACTIONS.encode(), "text/html")
        add_content(running, "/picture", png(204, 32), "image/png")
        add_content(running, "/large", png(204, 200), "image/png")
        seen = seen_by(f"http://127.0.0.1:{running.port}/probe", tmp_path)
    assert seen["models"] == ["first (2 classes)", "second (2 classes)"]
    assert seen["lowest"] == "0.1"
    assert seen["state"] == "2 of 2 detections, 32 x 32 pixels"
    assert seen["rows"] == [["square", "0.800", "8, 8, 24, 24"], ["circle", "0.400", "8, 8, 24, 24"]]
    assert seen["drawn"] > 60  # a coloured line on a grey picture
    assert seen["fewer"] == "1 of 2 detections, 32 x 32 pixels"
    assert seen["broken"] == "Error: the browser cannot show this file."
    assert seen["second"] == "1 of 2 detections, 32 x 32 pixels"
    assert seen["refused"] == "Error: expected at most 10000 pixels, got 200 x 200"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_of_the_service_fit_phone_and_desktop_with_readable_text(scheme, run_service, tmp_path):
    with run_service() as running:
        given = f'<script>const PAGES = {{detect: "/", docs: "/docs"}}, WIDTHS = {list(WIDTHS_PX)};'
        add_content(running, "/probe", PROBE.replace("<script>", given, 1).encode(), "text/html")
        found = seen_by(f"http://127.0.0.1:{running.port}/probe", tmp_path, scheme)
    assert len(found) == 2 * len(WIDTHS_PX)
    assert {seen["isDark"] for seen in found.values()} == {scheme == "dark"}
    assert {name: seen["found"] for name, seen in found.items() if seen["found"]} == {}
