"""The check of a machine with a GPU, on a namespace that stands in for CuPy."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import strict_device
import torch
from shared import ROOT, load_program, refuses

from tinyspur.engine.backend import Backend, select
from tinyspur.studies import gpu_check, speed

MEMORY = iter(range(1, 10**6))  # bytes in use, a little more at each look


@pytest.fixture
def there(monkeypatch):
    """CuPy's place is taken, and so are programs: their arguments are kept."""
    waited, calls = [], []
    device = SimpleNamespace(synchronize=lambda: waited.append(1))
    memory = SimpleNamespace(memGetInfo=lambda: (2**40 - next(MEMORY), 2**40))
    cuda = SimpleNamespace(Device=lambda: device, runtime=memory)
    monkeypatch.setattr(strict_device, "cuda", cuda, raising=False)
    monkeypatch.setattr(gpu_check, "select", lambda name: Backend(name, strict_device, "stand-in"))
    monkeypatch.setattr(gpu_check, "COPIED", 8)
    monkeypatch.setattr(gpu_check, "RUNS", {20: 60, 30: 60})

    def called(command, **options):
        calls.append((command, options))
        if "pytest" in command:
            return subprocess.CompletedProcess(command, 1, "1 failed, 2 passed in 3 s\n", "")
        values = dict(zip(command[2::2], command[3::2], strict=True))
        with np.load(values["--data"]) as data:
            assert data["images"].shape == (int(values["--samples"]), 3, 32, 32)
        out = Path(values["--out"])
        out.mkdir()
        report = {"verdict": "spurious local minimum", "seconds": {"theta": 1.5}}
        (out / "report.json").write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", called)
    return SimpleNamespace(waited=waited, calls=calls)


def test_every_part_is_reported_and_one_that_fails_stops_no_other(there, capsys):
    found = gpu_check.check_gpu(ROOT)
    said = "expected PyTorch with CUDA, got " + torch.__version__
    for dtype in ("float32", "float64"):
        assert said in found[f"paper's step, {dtype}"]["failed"]
    assert found["main program, 20 images"]["verdict"] == "spurious local minimum"
    assert found["main program, 30 images"]["stages"] == {"theta": 1.5}
    assert "1 failed, 2 passed" in found["tests marked gpu"]["failed"]
    copied = found["copies"]
    assert said in copied["copies_of_a_step"]
    assert copied["up_gb_per_s"] > 0
    assert copied["down_gb_per_s"] > 0
    assert all(part["gpu_gib"] > 0 and part["seconds"] >= 0 for part in found.values())
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(found)
    for command, options in there.calls:
        assert options["cwd"] == ROOT
        assert options["env"]["PYTHONPATH"] == str(ROOT)
        assert Path(command[1]).exists() or command[1:3] == ["-m", "pytest"]


def test_a_step_on_a_device_waits_for_it(there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: there.waited.append("torch"))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, place: tensor)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, place: module)
    monkeypatch.setattr(speed, "BATCHES", (2,))
    monkeypatch.setattr(speed, "WARM", 0.0)
    net = gpu_check.Network((1, 3, 3), [gpu_check.Dense(2)])
    data = gpu_check.TrainingSet(np.ones((2, 1, 3, 3)), np.ones((2, 2)))
    row = speed.step_row(torch, "step", net, data, np.float32, 1, strict_device)
    assert row.dtype == "float32"
    assert min(row.seconds, row.other) > 0
    assert there.waited.count(1) == 2  # the first run warms up
    assert "torch" in there.waited


def test_without_a_gpu_the_error_says_what_was_expected(capsys):
    if select().name == "cupy":
        assert gpu_check.gpu() is select().xp
        return
    with refuses(RuntimeError, "--gpu: expected CuPy with a CUDA device"):
        gpu_check.check_gpu(ROOT)
    benchmark = load_program(ROOT / "demos" / "benchmark.py")
    assert benchmark.main(["--gpu"]) == 2
    assert "got: CuPy" in capsys.readouterr().err
