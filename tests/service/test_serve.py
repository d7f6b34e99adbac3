"""The command from start to end, with a real network, and the load that the service stands."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.cli.main import run
from detector.errors import ConfigError
from detector.io.machine import resident_bytes
from detector.service.served_models import open_models
from detector.service.service_config import ServiceConfig
from detector.tasks.detection_model import build_predictor, load_model

ROOT = Path(__file__).parents[2]


def test_missing_library_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert run(["serve"]) == 1
    assert (
        'the library fastapi, which is not installed; pip install "detector-toolkit[serve]"' in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "expected batch of at least 1, got 0"),
        ({"port": 70_000}, r"--port: expected a number within 0\.\.65535"),
        ({"allowed_hosts": ("*.a.example", "b*.example")}, r"--allow-host: expected a name, .* got b\*\.example"),
        ({"timeout_s": 0.001}, "a wait below the timeout"),
        ({"body_timeout_s": -1.0}, "expected times above 0"),
    ],
)
def test_wrong_limit_is_rejected(settings, says):
    with pytest.raises(ConfigError, match=says):
        ServiceConfig(**settings)


def test_service_on_the_loopback_answers_to_the_names_of_this_machine_only():
    assert "evil.example" not in ServiceConfig().known_hosts
    assert "localhost" in ServiceConfig().known_hosts
    assert "my.host" in ServiceConfig(allowed_hosts=("my.host",)).known_hosts
    assert ServiceConfig(host="0.0.0.0").known_hosts == ("*",)
    assert "*" not in ServiceConfig(host="0.0.0.0", allowed_hosts=("my.host",)).known_hosts
    for host in ("127.0.0.2", "LOCALHOST"):
        assert "*" not in ServiceConfig(host=host).known_hosts
        assert host in ServiceConfig(host=host).known_hosts


def test_best_model_in_the_working_folder_has_the_name_of_its_run(tmp_path, monkeypatch):
    (tmp_path / "street/weights").mkdir(parents=True)
    shutil.copy(
        ROOT / "tests/fixtures/before_rebuild/models/mish.safetensors", tmp_path / "street/weights/best.safetensors"
    )
    monkeypatch.chdir(tmp_path / "street")
    models = open_models(["weights/best.safetensors"], [], ServiceConfig(batch_size=1), lambda name, num_images: None)
    assert list(models) == ["street"]


def test_two_models_of_one_name_are_rejected(tmp_path):
    words = [str(tmp_path / "a/m.onnx"), str(tmp_path / "b/m.onnx")]
    with pytest.raises(ConfigError, match="expected a model of another name than m, got two"):
        open_models(words, [], ServiceConfig(), lambda name, num_images: None)


def started(folder: Path, *words: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "detector", "serve", "--port", "0", "--batch", "1", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    line = server.stderr.readline()
    announced = re.fullmatch(r"serving at http://127\.0\.0\.1:(\d+); Ctrl-C ends it\n", line)
    assert announced, line + server.stderr.read()
    return server, int(announced[1])


def posted(port: int, body: bytes) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/predict?confidence=0&max_detections=5", body)
    content = json.loads(connection.getresponse().read())
    connection.close()
    return content


def test_command_serves_what_predict_finds_stores_nothing_and_ends_on_a_signal(tmp_path, capsys):
    for library in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(library)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    server, port = started(tmp_path, "yolox-nano", "input.size=64")
    try:
        answer = posted(port, encoded)
        assert run(["serve", "--port", str(port), "input.size=64", "--batch", "1"]) == 1
        assert f"the address 127.0.0.1:{port} cannot be listened at" in capsys.readouterr().err
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
    assert answer["model"] == "yolox-nano"
    assert list(tmp_path.iterdir()) == []
    loaded = load_model(Path("yolox-nano"), ["input.size=64"])
    select = replace(loaded.config.predict, confidence=0, max_detections=5)
    expected = build_predictor(loaded).detect([image], select)[0]
    found = [(box["label"], box["score"]) for box in answer["detections"]]
    assert found == [(box.label, pytest.approx(box.score, abs=1e-5)) for box in expected.boxes]
    assert len(found) == 5


@pytest.mark.parametrize("num_requests", [400, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_service_stands_a_load_without_lost_answers_or_growing_memory(num_requests, run_service):
    """Eight clients, each with one connection; the answers are those of their own pictures."""
    num_clients, wrong, late_s = 8, [], []
    with run_service(pause_s=0.001, max_queue=64) as running:
        resident = []

        def client(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
            for turn in range(num_requests // num_clients):
                level = 60 + (number * 31 + turn) % 180
                body = cv2.imencode(".png", np.full((48, 48, 3), level, np.uint8))[1].tobytes()
                begun_s = time.perf_counter()
                connection.request("POST", "/v1/predict", body)
                answer = connection.getresponse()
                content = json.loads(answer.read())
                late_s.append(time.perf_counter() - begun_s)
                if answer.status != 200 or abs(content["detections"][0]["score"] - level / 255) > 1e-4:
                    wrong.append(content)
                if number == 0 and turn in (num_requests // num_clients // 4, num_requests // num_clients - 1):
                    resident.append(resident_bytes())
            connection.close()

        threads = [threading.Thread(target=client, args=(number,)) for number in range(num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert running.service.num_open == 0
    assert wrong == []
    assert len(late_s) == num_requests
    assert sorted(late_s)[int(0.99 * num_requests)] < 5
    assert resident[1] - resident[0] < 20e6
