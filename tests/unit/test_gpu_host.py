# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.onprem.llm.plugins.module_utils._gpu_host import GpuHost, acs_redirects, relaxed_ordering, upstream


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def device(root: Path, address: str, vendor: str = "0x10de", device_id: str = "0x20b2", kind: str = "0x030200") -> Path:
    path = root / "sys/bus/pci/devices" / address
    for name, value in (("vendor", vendor), ("device", device_id), ("class", kind), ("numa_node", "1")):
        write(path / name, f"{value}\n")
    return path


def package(name: str, version: str) -> str:
    return f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n\n"


def test_devices_by_class_and_vendor(tmp_path: Path) -> None:
    device(tmp_path, "0000:17:00.0")
    device(tmp_path, "0000:17:00.1", kind="0x040300")  # the sound part of a display card
    device(tmp_path, "0000:b0:00.0", device_id="0x22a3", kind="0x068000")
    device(tmp_path, "0000:00:02.0", vendor="0x8086", kind="0x030000")
    found = GpuHost(tmp_path).facts()
    assert [gpu["address"] for gpu in found["gpus"]] == ["0000:17:00.0"]
    assert found["gpus"][0]["device_id"] == "20b2"
    assert found["gpus"][0]["numa_node"] == 1
    assert found["gpus"][0]["link_speed"] is None
    assert [switch["device_id"] for switch in found["nvswitches"]] == ["22a3"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n', "debian12"),
        ('ID=ubuntu\nVERSION_ID="22.04"\n', "ubuntu2204"),
        ('ID="rocky"\nVERSION_ID="9.4"\n', "rhel9"),
        ('ID="rhel"\nVERSION_ID="9.6"\n', "rhel9"),
        ("", "unknown"),
    ],
)
def test_platforms_are_named_as_in_nvidias_repository(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path / "etc/os-release", text)
    assert GpuHost(tmp_path).system()["platform"] == expected


def test_versions_of_both_kinds_of_packages(tmp_path: Path) -> None:
    status = tmp_path / "var/lib/dpkg/status"
    ours = (("libcuda1", "550.163.01-2"), ("nvidia-cuda-toolkit", "12.4.131~12.4.1-2"), ("libnccl2", "2.22.3-1-1"))
    write(status, "".join(package(name, version) for name, version in ours))
    found = GpuHost(tmp_path).versions()
    assert (found["driver"], found["cuda"], found["nccl"]) == ("550.163.01", ["12.4"], "2.22.3")
    assert found["fabric_manager"] is None
    theirs = (("cuda-toolkit-12-9", "12.9.1-1"), ("cuda-toolkit-12-4", "12.4.1-1"), ("nvidia-fabricmanager-575", "575.57.08-1"))
    write(status, "".join(package(name, version) for name, version in theirs))
    found = GpuHost(tmp_path).versions()
    assert (found["cuda"], found["fabric_manager"]) == (["12.4", "12.9"], "575.57.08")


def test_secure_boot(tmp_path: Path) -> None:
    assert GpuHost(tmp_path).secure_boot()[0] is False
    (tmp_path / "sys/firmware/efi").mkdir(parents=True)
    assert GpuHost(tmp_path).secure_boot()[0] is None
    variable = tmp_path / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    write(variable, b"\x06\x00\x00\x00\x01")
    assert GpuHost(tmp_path).secure_boot()[0] is True
    write(variable, b"\x06\x00\x00\x00\x00")
    assert GpuHost(tmp_path).secure_boot()[0] is False


def test_the_loaded_module(tmp_path: Path) -> None:
    assert GpuHost(tmp_path).module()["loaded"] is False
    write(tmp_path / "sys/module/nvidia/version", "550.163.01\n")
    write(tmp_path / "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.163.01\n")
    found = GpuHost(tmp_path).module()
    assert (found["loaded"], found["version"], found["kind"]) == (True, "550.163.01", "open")


def space(control: int) -> bytes:
    """Configuration space with a power management capability before PCI Express."""
    config = bytearray(256)
    config[0x34], config[0x40:0x42], config[0x60] = 0x40, bytes([0x01, 0x60]), 0x10
    config[0x68:0x6A] = control.to_bytes(2, "little")
    return bytes(config)


def test_relaxed_ordering(tmp_path: Path) -> None:
    config = tmp_path / "config"
    assert relaxed_ordering(config) is None
    write(config, space(0x10))
    assert relaxed_ordering(config) is True
    write(config, space(0))
    assert relaxed_ordering(config) is False
    write(config, space(0x10)[:64])  # what a user without privileges may read
    assert relaxed_ordering(config) is None


def test_acs_behind_another_capability(tmp_path: Path) -> None:
    config = bytearray(4096)
    config[0x100:0x104] = (0x0001 | 1 << 16 | 0x150 << 20).to_bytes(4, "little")
    config[0x150:0x154] = (0x000D | 1 << 16).to_bytes(4, "little")
    write(tmp_path / "config", bytes(config))
    assert acs_redirects(tmp_path / "config") is False
    config[0x156] = 0x1D
    write(tmp_path / "config", bytes(config))
    assert acs_redirects(tmp_path / "config") is True
    write(tmp_path / "config", bytes(config[:256]))
    assert acs_redirects(tmp_path / "config") is False


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1:550.163.01-2", "550.163.01"),
        ("12.4.131~12.4.1-2", "12.4.131"),
        ("2.29.7-1+cuda12.9", "2.29.7"),
        ("575.57.08", "575.57.08"),
    ],
)
def test_upstream_versions(version: str, expected: str) -> None:
    assert upstream(version) == expected
