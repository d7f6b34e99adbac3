"""HTML pages in a headless Chromium: on a phone and on a desktop, in the light and the dark scheme.

DETECTOR_SCREENSHOTS=FOLDER keeps screenshots of every page, for a person to look at.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.cli.main import run
from detector.workflows.studies.plan import load_study, runs_of
from detector.workflows.studies.records import RunEvaluation, RunRecord, StudyFolder
from detector.workflows.studies.study_report import write_report
from detector.workflows.studies.summary import summarise

ROOT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
WIDTHS_PX = (400, 1280)
SCHEMES = {"dark": 0, "light": 1}  # Blink's numbers
LONG_NAME = "a_class_name_that_is_much_longer_than_the_screen_of_a_phone_is_wide"

# Loads each page in a frame of each width, and lists what is wrong with it.
PROBE = """<!doctype html><html><body><pre id="found"></pre><script>
const MIN_CONTRAST = 4.5, LARGE_CONTRAST = 3;
function channels(colour) {
  const numbers = colour.match(/[\\d.]+/g).map(Number);
  if (colour.startsWith("color(")) return [...numbers.slice(-4, -1).map(x => 255 * x), numbers.at(-1)];
  return numbers.length == 4 ? numbers : [...numbers, 1];
}
function over(top, below) {
  return [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
}
function ground(element) {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.push(channels(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
}
function luminance(colour) {
  const [r, g, b] = colour.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(element) {
  const below = ground(element), text = over(channels(getComputedStyle(element).color), below);
  const [high, low] = [luminance(text), luminance(below)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}
function scrolls(element) {
  for (let e = element; e; e = e.parentElement) if (getComputedStyle(e).overflowX != "visible") return true;
  return false;
}
function problems(page, width) {
  const found = [], root = page.documentElement;
  if (root.scrollWidth > width) found.push(`the page is ${root.scrollWidth} pixels wide`);
  for (const element of page.body.querySelectorAll("*")) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    const text = [...element.childNodes].filter(n => n.nodeType == 3).map(n => n.textContent.trim()).join(" ").trim();
    if (!text || !box.width || style.visibility == "hidden" || element.closest("script, style, noscript")) continue;
    if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const shown = `${element.tagName.toLowerCase()} ${text.slice(0, 40)}`;
    const isLarge = parseFloat(style.fontSize) >= 24;
    const seen = contrast(element);
    if (seen < (isLarge ? LARGE_CONTRAST : MIN_CONTRAST)) found.push(`contrast ${seen.toFixed(2)}: ${shown}`);
    if (box.right > width + 1 && box.left < width && !scrolls(element)) found.push(`beyond the edge: ${shown}`);
  }
  for (const cell of page.querySelectorAll("td:first-child")) {
    const words = cell.textContent.trim().split(/[\\s-]+/), range = page.createRange();
    range.selectNodeContents(cell);
    const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top / 8))).size;
    if (lines > 1.5 * words.length && words.every(word => word.length < 16))
      found.push(`${lines} lines in a first column: ${cell.textContent.trim().slice(0, 40)}`);
  }
  return found;
}
async function look(source, width) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  frame.src = source;
  const loaded = new Promise(resolve => frame.onload = resolve);
  document.body.append(frame);
  await loaded;
  await new Promise(resolve => setTimeout(resolve, 200));
  const isDark = frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches;
  const found = problems(frame.contentDocument, width);
  frame.remove();
  return {isDark, found};
}
(async () => {
  const all = {};
  for (const [name, source] of Object.entries(PAGES)) for (const width of WIDTHS)
    all[`${name} at ${width} px`] = await look(source, width);
  document.getElementById("found").textContent = JSON.stringify(all);
})();
</script></body></html>"""


def chromium(page: Path, scheme: str, *words: str) -> str:
    command = [
        str(BROWSER),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"),
        *(f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=30000"),
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        *(*words, page.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def check_page(folder: Path, tiny_shapes: Path) -> Path:
    """Write the report of a data set with a long class name and a mistake."""
    content = json.loads((tiny_shapes / "annotations/val.json").read_text())
    content["categories"][0]["name"] = LONG_NAME
    content["annotations"][0]["bbox"] = [50, 50, 40, 40]
    (folder / "val.json").write_text(json.dumps(content))
    page = folder / "check.html"
    words = [str(folder / "val.json"), str(tiny_shapes / "images/val"), "--html", str(page), "-q"]
    assert run(["check", *words]) == 0
    return page


def evaluation_page(folder: Path, tiny_shapes: Path) -> Path:
    """Write the report of detections, some of which are wrong."""
    truth = tiny_shapes / "annotations/val.json"
    found = []
    for number, box in enumerate(json.loads(truth.read_text())["annotations"]):
        x, y, width, height = box["bbox"]
        row = {"image_id": box["image_id"], "category_id": box["category_id"], "score": 0.9 - number / 100}
        found.append({**row, "bbox": [x + 9 * (number % 3), y, width, height]})
    (folder / "results.json").write_text(json.dumps(found))
    words = ["--results", str(folder / "results.json"), "--annotations", str(truth), "--out", str(folder / "val")]
    pictures = ["--images", str(tiny_shapes / "images/val"), "--report", str(folder / "report"), "-q"]
    assert run(["evaluate", *words, *pictures]) == 0
    return folder / "report/report.html"


def review_page(folder: Path, tiny_shapes: Path) -> Path:
    """Write the page of suspect labels: a long name, long ids, and detections of which some contradict labels."""
    truth = folder / "labels.json"
    content = json.loads((tiny_shapes / "annotations/val.json").read_text())
    content["categories"][0]["name"] = f"</script><b>{LONG_NAME}"
    for rows, key in ((content["images"], "id"), (content["annotations"], "image_id")):
        for row in rows:
            row[key] += 2**53  # more digits than a number of JavaScript holds
    truth.write_text(json.dumps(content))
    found = []
    for number, box in enumerate(content["annotations"]):
        x, y, width, height = box["bbox"]
        row = {"image_id": box["image_id"], "category_id": box["category_id"], "score": 0.9 - number / 100}
        found.append({**row, "bbox": [x + 9 * (number % 3), y, width, height]})
    (folder / "suspect.json").write_text(json.dumps(found))
    words = ["--results", str(folder / "suspect.json"), "--annotations", str(truth), "--out", str(folder / "review")]
    assert run(["labels", "suspects", *words, "--images", str(tiny_shapes / "images/val"), "-q"]) == 0
    return folder / "review/review.html"


def study_page(folder: Path) -> Path:
    """Write the report of a study of which one run failed."""
    study, records = load_study("depth", seeds=5), StudyFolder(folder / "study")
    records.path.mkdir()
    noise = np.random.default_rng(0)
    for number, planned in enumerate(runs_of(study)):
        value = RunEvaluation(4, {study.metric: 0.5 + 0.01 * noise.normal()})
        error = f"ended: {'/a/long/path' * 8}" if number == 0 else None
        record = RunRecord(
            planned.cell, planned.seed, planned.experiment, planned.overrides,
            state="failed" if error else "finished", error=error, evaluations=() if error else (value,),
            num_steps=100, num_epochs=10.0, step_s=0.02, total_s=3.0, peak_bytes=2**30, machine="a machine",
        )  # fmt: skip
        records.write(planned.key, record)
    return write_report(summarise(study, records), records)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path) -> dict[str, Path]:
    """Return the pages by name; the documentation is among them where `make docs` has built it."""
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "check": check_page(folder, tiny_shapes),
        "evaluation": evaluation_page(folder, tiny_shapes),
        "study": study_page(folder),
        "review": review_page(folder, tiny_shapes),
    }
    for name in ("index", "commands", "guides/from-ultralytics"):
        if (ROOT / f"site/{name}.html").exists():
            made[f"documentation, {name}"] = ROOT / f"site/{name}.html"
    return made


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_fit_phone_and_desktop_with_readable_text(scheme: str, pages: dict[str, Path], tmp_path: Path) -> None:
    sources = json.dumps({name: page.as_uri() for name, page in pages.items()})
    probe = tmp_path / "probe.html"
    given = f"<script>const PAGES = {sources}, WIDTHS = {list(WIDTHS_PX)};"
    probe.write_text(PROBE.replace("<script>", given, 1), encoding="utf-8")
    dumped = re.search(r'<pre id="found">(.*?)</pre>', chromium(probe, scheme, "--dump-dom"), re.DOTALL)
    assert dumped is not None
    assert dumped[1], "the pages were not loaded in time"
    found: dict[str, Any] = json.loads(unescape(dumped[1]))
    assert len(found) == len(pages) * len(WIDTHS_PX)
    assert {seen["isDark"] for seen in found.values()} == {scheme == "dark"}
    assert {name: seen["found"] for name, seen in found.items() if seen["found"]} == {}


# Decides about the first three suspects with keys and the mouse, and shows what a click on save would download.
REVIEW = """<!doctype html><html><body><pre id="found"></pre><script>
(async () => {
  const frame = document.createElement("iframe");
  frame.style = "width: 1280px; height: 900px; border: 0";
  frame.src = PAGE;
  const loaded = new Promise(resolve => frame.onload = resolve);
  document.body.append(frame);
  await loaded;
  const page = frame.contentWindow, at = id => page.document.getElementById(id);
  const press = key => page.dispatchEvent(new page.KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
  const saved = [];
  page.URL.createObjectURL = blob => { saved.push(blob); return "data:,"; };
  page.localStorage.clear();
  const shown = [at("question").textContent];
  press("a");
  shown.push(at("question").textContent, at("progress").textContent);
  press("r");
  press("u");
  press("ArrowLeft");
  press("r");
  const box = at("picture").getBoundingClientRect();
  const point = (kind, x, y) => (kind == "pointerup" ? page : at("picture")).dispatchEvent(new page.PointerEvent(kind,
    {clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true}));
  point("pointerdown", 0.4, 0.4);
  point("pointermove", 0.5, 0.5);
  point("pointerup", 0.6, 0.7);
  press("2");
  const part = at("picture").getAttribute("viewBox").split(" ").map(Number);
  at("save").click();
  const text = await saved[0].text();
  document.getElementById("found").textContent = JSON.stringify({shown, part, box: [box.width, box.height],
    file: text, picture: at("picture").querySelector("image").getAttribute("href").slice(0, 22)});
})();
</script></body></html>"""


def test_labels_are_decided_by_keys_and_mouse_and_the_decisions_apply(pages: dict[str, Path], tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    source = json.dumps(pages["review"].as_uri())
    probe.write_text(REVIEW.replace("<script>", f"<script>const PAGE = {source};", 1), encoding="utf-8")
    dumped = re.search(r'<pre id="found">(.*?)</pre>', chromium(probe, "light", "--dump-dom"), re.DOTALL)
    assert dumped is not None
    assert dumped[1], "the page did not answer in time"
    found: dict[str, Any] = json.loads(unescape(dumped[1]))
    listed = json.loads((pages["review"].parent / "suspects.json").read_text())["suspects"]
    assert found["picture"] == "data:image/jpeg;base64"
    assert found["shown"][0] != ""
    assert found["shown"][2] == f"2 of {len(listed)}; 1 decided"
    first, second, third = json.loads(found["file"])["decisions"]
    ids = [(each["image_id"], each["category_id"]) for each in (first, second, third)]
    assert ids == [(each["image_id"], each["category_id"]) for each in listed[:3]]
    assert (first["decision"], first["bbox"], first["kind"]) == ("accept", listed[0]["bbox"], listed[0]["kind"])
    assert second["decision"] == "reject"
    assert third["decision"] == "redraw"
    assert third["drawn_category_id"] == 7  # the second category
    x, y, width, height = found["part"]
    expected = [x + 0.4 * width, y + 0.4 * height, 0.2 * width, 0.3 * height]
    assert third["drawn_bbox"] == pytest.approx(expected, abs=0.06 * max(width, height))
    decisions, annotations = tmp_path / "decisions.json", pages["review"].parents[1] / "labels.json"
    decisions.write_text(found["file"])
    before = annotations.read_bytes()
    words = ["apply", str(decisions), "--annotations", str(annotations), "--out", str(tmp_path / "new.json"), "-q"]
    assert run(["labels", *words]) == 0
    assert annotations.read_bytes() == before
    rows = json.loads((tmp_path / "new.json").read_text())["annotations"]
    assert third["drawn_bbox"] in [row["bbox"] for row in rows]


@pytest.mark.skipif("DETECTOR_SCREENSHOTS" not in os.environ, reason="DETECTOR_SCREENSHOTS names no folder")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_screenshots_are_kept(width_px: int, scheme: str, pages: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(os.environ["DETECTOR_SCREENSHOTS"]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages.items():
        frame = tmp_path / "frame.html"  # a window of Chromium is at least 500 pixels wide, a frame is not
        style = f"border: 0; width: {width_px}px; height: 2400px"
        frame.write_text(f"<body style='margin: 0'><iframe src='{page.as_uri()}' style='{style}'></iframe>")
        picture = folder / f"{re.sub('[^a-z]+', '-', name)}-{width_px}-{scheme}.png"
        chromium(frame, scheme, f"--window-size={max(width_px, 500)},2400", f"--screenshot={picture}")
        assert picture.stat().st_size > 0
