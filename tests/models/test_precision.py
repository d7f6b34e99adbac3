from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch

from detector.errors import ConfigError
from detector.models import precision as module
from detector.models.precision import Precision, choose_device, has_native_bf16, keep_freed_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CPU_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def pretend(
    monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool, capability: str = "AVX512", name_of_cpu: str = "AMD"
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for check, answer in zip(CPU_CHECKS, (avx512_bf16, amx), strict=True):
        monkeypatch.setattr(torch.cpu, check, lambda answer=answer: answer, raising=False)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name_of_cpu}, raising=False)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "name"),
    [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16"), (True, True, "bf16")],
)
def test_auto_on_a_cpu_is_bf16_only_if_the_processor_computes_it(
    avx512_bf16: bool, amx: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, avx512_bf16, amx)
    assert Precision("auto", CPU).name == name


@pytest.mark.parametrize(("amx", "name"), [(False, "fp32"), (True, "bf16")])
def test_auto_on_an_intel_cpu_is_bf16_only_with_amx(amx: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, avx512_bf16=True, amx=amx, name_of_cpu="Intel Xeon")
    assert has_native_bf16(CPU)
    assert Precision("auto", CPU).name == name
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert Precision("auto", CPU).name == "fp32"


def test_auto_on_a_cpu_is_fp32_if_torch_is_limited_to_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, avx512_bf16=True, amx=True, capability="AVX2")
    assert Precision("auto", CPU).name == "fp32"


def test_auto_uses_no_bf16_that_onednn_emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, avx512_bf16=True, amx=True)
    assert has_native_bf16(CPU)
    for limit in ("AVX512_CORE", "avx512_core_vnni"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert not has_native_bf16(CPU)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert has_native_bf16(CPU)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)  # as with AVX2
    assert Precision("auto", CPU).name == "fp32"


def test_auto_on_a_cpu_is_fp32_if_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in CPU_CHECKS:
        monkeypatch.delattr(torch.cpu, check, raising=False)
    assert Precision("auto", CPU).name == "fp32"


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize(("is_native", "name"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_is_bf16_if_native_and_otherwise_fp16(
    is_native: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def is_supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return is_native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert Precision("auto", CUDA).name == name
    assert asked == [False]  # an emulated format is slower than fp32


def test_auto_on_another_device_is_fp32() -> None:
    assert Precision("auto", torch.device("mps")).name == "fp32"


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_named_format_is_used(name: module.PrecisionName, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, name == "fp32", False)  # the opposite of the choice of auto
    precision = Precision(name, CPU)
    assert precision.name == name
    assert not precision.scaler.is_enabled()


def test_fp16_on_the_cpu_is_refused_with_alternatives() -> None:
    with pytest.raises(ConfigError, match="fp16: expected a CUDA device, got cpu; use bf16 or fp32"):
        Precision("fp16", CPU)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_convolutions_in_the_format(name: module.PrecisionName, dtype: torch.dtype) -> None:
    conv = torch.nn.Conv2d(3, 4, 3)
    with Precision(name, CPU).autocast():
        assert conv(torch.randn(1, 3, 8, 8)).dtype == dtype
    assert conv(torch.randn(1, 3, 8, 8)).dtype == torch.float32
    assert conv.weight.dtype == torch.float32


def test_the_scaler_has_no_effect_for_other_formats() -> None:
    scaler = Precision("fp32", CPU).scaler
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scaler.scale((weight * 2).sum()).backward()
    scaler.unscale_(optimizer)
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0] * 3
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.0] * 3


# ---- devices


def test_auto_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_available, device in ((True, CUDA), (False, CPU)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_available=is_available: is_available)
        assert choose_device("auto") == device


def test_a_device_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cpu") == CPU
    assert choose_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "0", "meta", "xpu"])
def test_an_unknown_device_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device: expected auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_missing_gpu_is_refused(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError, match=f"torch has {count} CUDA devices here; use device=cpu or auto"):
        choose_device(name)


def test_the_apple_gpu_is_chosen_by_name_if_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch has no Apple GPU here; use device=cpu or auto"):
        choose_device("mps")


# ---- memory


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_kept_after_keep_freed_memory() -> None:
    """The test runs in its own process because the setting is for the whole process."""
    program = (
        "from detector.models.precision import keep_freed_memory\n"
        "import resource\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10):\n"
        "        block = b'x' * (64 << 20)\n"
        "        del block\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "first = faults()\n"
        "keep_freed_memory()\n"
        "faults()\n"
        "print(first, faults())\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert int(output[1]) < int(output[0]) / 2


def test_keep_freed_memory_has_no_effect_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)  # would raise when called
    keep_freed_memory()
