"""Exports are opened without the telemetry of their runtimes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXPORTS = Path(__file__).parent.parent / "fixtures/before_rebuild/models/exports.zip"

# Opens an export; prints each lookup of a host and each connection of Python, and the files left in the home folder.
OPENED = """
import os, sys, time
sys.addaudithook(lambda event, arguments: print("CONTACT", event) if event.startswith("socket.") else None)
from pathlib import Path
from detector import Detector
import numpy as np
Detector(sys.argv[1]).predict(np.zeros((64, 64, 3), np.uint8))
time.sleep(0.2)  # telemetry is sent by threads
print("LEFT", sorted(str(p) for p in Path(os.environ["HOME"]).rglob("*") if p.is_file() and "detector" not in p.parts))
"""


@pytest.mark.parametrize(("file", "library"), [("mish.onnx", "onnxruntime"), ("mish.xml", "openvino")])
def test_opening_an_export_contacts_nobody_and_leaves_no_client_id(file: str, library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    shutil.unpack_archive(EXPORTS, tmp_path / "exports")
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "DETECTOR_MISH": "native"}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", OPENED, str(tmp_path / "exports" / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split("\n")[:-1] == ["LEFT []"], done.stdout


def test_choice_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from detector.export.private_import import import_privately

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_privately("json")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
