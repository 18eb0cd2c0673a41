# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which environment a declaration makes, and what a proof says of it."""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.onprem.llm.plugins.filter.framework_environments import framework_environments

ROLE = Path(__file__).resolve().parents[2] / "roles" / "framework"
TABLE = yaml.safe_load((ROLE / "vars/main/frameworks.yml").read_text(encoding="utf-8"))["__framework_frameworks"]
DEFAULTS = {"environment_root": "/opt/onprem/environments", "role_path": str(ROLE)}
PAIRS = [(framework, device) for framework in TABLE for device in TABLE[framework]["devices"]]

_spec = importlib.util.spec_from_file_location("prove", ROLE / "files/prove.py")
assert _spec and _spec.loader
prove = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(prove)


def filled(*environments: dict[str, Any]) -> list[dict[str, Any]]:
    return framework_environments(environments, TABLE, DEFAULTS)


@pytest.mark.parametrize(("framework", "device"), PAIRS)
def test_each_pair_of_the_table_has_a_lock_that_pins_and_hashes(framework: str, device: str) -> None:
    (one,) = filled({"name": "one", "framework": framework, "device": device})
    assert one["path"] == f"/opt/onprem/environments/one-{one['lock_sha256'][:12]}"
    assert one["link"] == {"path": "/opt/onprem/environments/one", "target": one["path"].rpartition("/")[2]}
    assert one["required_bytes"] > 0
    requirements = [line.strip() for line in one["files"][0]["content"].splitlines() if line[:1] not in ("#", " ")]
    assert all("==" in line for line in requirements)
    assert any(line.startswith("numpy==") for line in requirements), "the proof needs NumPy"
    without_hash = [line for line in requirements if not line.endswith("\\")]
    assert without_hash == (["torch==2.13.0+cpu"] if (framework, device) == ("pytorch", "cpu") else [])


def test_every_framework_of_the_table_can_be_proven() -> None:
    assert set(prove.FRAMEWORKS) == set(TABLE)


def test_the_sites_own_lock_replaces_the_roles(tmp_path: Path) -> None:
    lock = tmp_path / "site"
    lock.write_text("jax==1.0\n", encoding="utf-8")
    ours, own = filled({"name": "a", "framework": "jax"}, {"name": "b", "framework": "jax", "lock": str(lock)})
    assert own["files"][0] == {
        **{"path": f"{own['path']}.lock", "content": "jax==1.0\n"},
        **{"owner": "root", "group": "root", "mode": "0644"},
    }
    assert (ours["python_versions"], own["python_versions"]) == (["3.11", "3.12", "3.13"], [])
    lock.write_text("jax==1.1\n", encoding="utf-8")
    assert filled({"name": "b", "framework": "jax", "lock": str(lock)})[0]["path"] != own["path"]


@pytest.mark.parametrize(
    ("environments", "says"),
    [
        ([{"name": "a", "framework": "caffe"}], "'caffe' on 'cpu'; known are jax on cpu, jax on cuda12"),
        ([{"name": "a", "framework": "tensorflow", "device": "cuda13"}], "'tensorflow' on 'cuda13'; known are"),
        ([{"name": "A/b", "framework": "jax"}], "the name 'A/b' is not made of"),
        ([{"framework": "jax"}], "the name None is not made of"),
        ([{"name": "a-0123456789ab", "framework": "jax"}], "ends like the directory"),
        ([{"name": "a", "framework": "jax"}, {"name": "a", "framework": "pytorch"}], "two environments have the name a"),
        ([{"name": "a", "framework": "jax", "lock": "files/own.lock"}], "not the absolute path of a file"),
    ],
)
def test_what_is_wrong_is_said(environments: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(AnsibleFilterError, match=says):
        filled(*environments)


def test_a_gpu_without_its_driver_is_there_all_the_same(tmp_path: Path) -> None:
    assert prove.nvidia_devices(tmp_path) == []
    cards = {
        "0000:05:00.0": ("0x10de", "0x030200"),
        "0000:06:00.0": ("0x10de", "0x068000"),
        "0000:07:00.0": ("0x8086", "0x030000"),
    }
    for name, (vendor, kind) in cards.items():
        card = tmp_path / "sys/bus/pci/devices" / name
        card.mkdir(parents=True)
        (card / "vendor").write_text(f"{vendor}\n", encoding="ascii")
        (card / "class").write_text(f"{kind}\n", encoding="ascii")
    # Neither the NVSwitch nor another maker's display.
    assert prove.nvidia_devices(tmp_path) == ["0000:05:00.0"]
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert prove.nvidia_devices(tmp_path) == ["nvidia0", "0000:05:00.0"]


RIGHT = {"version": "1", "computed_on": "cpu", "product_max_error": 0.0, "gradient_max_error": 0.0}


def proof(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    work: Callable[[bool], Any],
    device: str = "cpu",
    devices: list[str] | None = None,
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(prove, "FRAMEWORKS", {"pytorch": work})
    monkeypatch.setattr(prove, "nvidia_devices", lambda: devices or [])
    monkeypatch.setattr(sys, "argv", ["prove.py", "--seconds=2", "pytorch", device])
    code = prove.main()
    (line,) = capsys.readouterr().out.splitlines()
    return code, json.loads(line)


def test_the_verdicts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def right(gpu: bool) -> dict[str, Any]:
        return {**RIGHT, "computed_on": "cuda:0" if gpu else "cpu"}

    for device, devices in (("cpu", ["nvidia0"]), ("cuda13", ["nvidia0"]), ("cuda13", [])):
        code, found = proof(monkeypatch, capsys, right, device, devices)
        asked.append((code, found["verdict"], found["computed_on"]))
    assert asked == [(0, "PASS", "cpu"), (0, "PASS", "cuda:0"), (3, "NO_DEVICE", "cpu")]
    assert found["why"] == "no NVIDIA device: computed on the CPU"


@pytest.mark.parametrize("wrong", [{"product_max_error": 1.0}, {"gradient_max_error": float("inf")}])
@pytest.mark.parametrize("device", ["cpu", "cuda12"])
def test_a_wrong_element_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: dict[str, float], device: str
) -> None:
    code, found = proof(monkeypatch, capsys, lambda _gpu: {**RIGHT, **wrong}, device)
    assert (code, found["verdict"], found["why"]) == (1, "FAIL", "the result is wrong")


def test_a_gpu_that_cannot_be_used_fails_with_the_frameworks_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_gpu: bool) -> Any:
        os.write(2, b"E0000 cuda_executor.cc: could not load libcuda.so.1\n")
        raise RuntimeError("no GPU among its devices")

    code, found = proof(monkeypatch, capsys, fail, "cuda12", ["nvidia0"])
    assert (code, found["verdict"]) == (1, "FAIL")
    assert found["why"] == "pytorch for cuda12 cannot compute, although this host has nvidia0"
    assert found["error"] == "RuntimeError: no GPU among its devices"
    assert found["said"] == ["E0000 cuda_executor.cc: could not load libcuda.so.1"]


@pytest.mark.parametrize(
    ("work", "error"),
    [
        # Pytest has the dying process print a trace.
        (
            lambda _gpu: (faulthandler.disable(), os.kill(os.getpid(), signal.SIGILL)),
            "killed by signal 4: this processor lacks instructions",
        ),
        (lambda _gpu: os._exit(7), "ended with code 7"),
        (lambda _gpu: time.sleep(60), "not done after 2 s"),
        (lambda _gpu: sys.exit("no"), "SystemExit: no"),
    ],
)
def test_a_framework_that_dies_or_hangs_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Callable[[bool], Any], error: str
) -> None:
    code, found = proof(monkeypatch, capsys, work)
    assert code == 1
    assert found["error"].startswith(error)
