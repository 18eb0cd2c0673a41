# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has of the GPU stack: its devices, its kernel, and the versions of what is installed.

All of it is read from files below ``/proc``, ``/sys`` and ``/etc`` and from the package database, in one go; no
NVIDIA software needs to be there. What cannot be known is null, with the reason beside it where there is one.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._package_manager import PackageError, command, package_manager

NVIDIA = "0x10de"
# PCI class codes (PCI Code and ID Assignment Specification): display controllers, and the bridge that an NVSwitch is.
DISPLAY_CLASSES = ("0x0300", "0x0302")
BRIDGE_CLASS = "0x0680"
# Where a capability list starts in configuration space, and the capability's number (PCI Local Bus Specification).
CAPABILITIES_POINTER = 0x34
PCI_EXPRESS_CAPABILITY = 0x10
DEVICE_CONTROL = 0x08
RELAXED_ORDERING = 1 << 4
ACS_EXTENDED_CAPABILITY = 0x000D
ACS_CONTROL = 0x06
# Source validation, request and completion redirect, upstream forwarding: what sends peer traffic up to the root complex.
ACS_REDIRECTS = 0x0C

# The packages that tell a component's version, the first that is installed; a group takes part of the name.
COMPONENTS = {
    "driver": (r"libnvidia-compute(?:-\d+)?", r"libcuda1", r"libcuda1-\d+", r"nvidia-driver-cuda-libs", r"nvidia-driver-cuda"),
    "kernel_module": (
        r"nvidia-kernel-open-dkms",
        r"nvidia-open-kernel-dkms",
        r"nvidia-kernel-dkms",
        r"nvidia-dkms-\d+(?:-open)?",
        r"kmod-nvidia-open-dkms",
        r"kmod-nvidia-latest-dkms",
    ),
    "fabric_manager": (r"nvidia-fabricmanager(?:-\d+)?", r"nvidia-fabric-manager"),
    "nccl": (r"libnccl2", r"libnccl"),
    "cudnn": (r"libcudnn9-cuda-\d+", r"libcudnn8", r"nvidia-cudnn"),
    "openmpi": (r"openmpi-bin", r"openmpi"),
    "ucx": (r"libucx0", r"ucx"),
    "container_toolkit": (r"nvidia-container-toolkit",),
    "persistence_daemon": (r"nvidia-persistenced", r"nvidia-compute-utils-\d+"),
}
CUDA = re.compile(r"cuda-toolkit-(\d+)-(\d+)|(nvidia-cuda-toolkit)")


class GpuHost:
    """One look at a host, below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def read(self, name: str | Path) -> str | None:
        path = name if isinstance(name, Path) else self.root / name.lstrip("/")
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def facts(self) -> dict[str, Any]:
        devices = self.devices()
        return {
            **self.system(),
            "machine": self.machine(),
            "gpus": [device for device in devices if self.is_gpu(device)],
            "nvswitches": [device for device in devices if self.is_nvswitch(device)],
            "kernel": self.kernel(),
            "module": self.module(),
            "versions": self.versions(),
        }

    @staticmethod
    def is_gpu(device: dict[str, Any]) -> bool:
        return bool(device["class"].startswith(DISPLAY_CLASSES))

    @staticmethod
    def is_nvswitch(device: dict[str, Any]) -> bool:
        return bool(device["class"].startswith(BRIDGE_CLASS))

    def system(self) -> dict[str, Any]:
        fields = {}
        for line in (self.read("etc/os-release") or "").splitlines():
            key, _equals, value = line.partition("=")
            fields[key] = value.strip("\"'")
        name, version = fields.get("ID", "unknown"), fields.get("VERSION_ID", "")
        family = {"rocky": "rhel", "almalinux": "rhel", "centos": "rhel", "ol": "rhel"}.get(name, name)
        # As NVIDIA's repository names its folders: ubuntu2204, debian12, rhel9.
        number = version.replace(".", "") if family == "ubuntu" else version.partition(".")[0]
        return {
            "platform": f"{family}{number}",
            "system": fields.get("PRETTY_NAME", f"{name} {version}"),
            "codename": fields.get("VERSION_CODENAME"),
            "architecture": platform.machine(),
        }

    def machine(self) -> dict[str, Any]:
        """What the firmware says the machine is (DMI); its serial number is for root alone."""
        files = {"vendor": "sys_vendor", "product": "product_name", "serial": "product_serial", "bios_version": "bios_version"}
        return {name: self.read(f"sys/class/dmi/id/{file}") or None for name, file in files.items()}

    def devices(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.root.glob("sys/bus/pci/devices/*")):
            if self.read(path / "vendor") != NVIDIA:
                continue
            numa = self.read(path / "numa_node")
            driver = path / "driver"
            found.append(
                {
                    "address": path.name,
                    "device_id": (self.read(path / "device") or "").removeprefix("0x"),
                    "class": self.read(path / "class") or "",
                    "numa_node": int(numa) if numa and int(numa) >= 0 else None,
                    "driver": os.path.basename(os.readlink(driver)) if driver.is_symlink() else None,
                    "link_speed": self.read(path / "current_link_speed"),
                    "link_speed_max": self.read(path / "max_link_speed"),
                    "link_width": self.read(path / "current_link_width"),
                    "link_width_max": self.read(path / "max_link_width"),
                    "relaxed_ordering": relaxed_ordering(path / "config"),
                }
            )
        return found

    def kernel(self) -> dict[str, Any]:
        release = self.read("proc/sys/kernel/osrelease") or platform.release()
        secure_boot, reason = self.secure_boot()
        paths = sorted(self.root.glob("sys/bus/pci/devices/*"))
        bridges = [path for path in paths if (self.read(path / "class") or "").startswith("0x0604")]
        keys = ("var/lib/dkms/mok.pub", "var/lib/shim-signed/mok/MOK.der")
        return {
            "release": release,
            "command_line": self.read("proc/cmdline") or "",
            "headers": (self.root / f"lib/modules/{release}/build/Makefile").exists(),
            "secure_boot": secure_boot,
            "secure_boot_reason": reason,
            "module_signing_key": any(self.enrolled(self.root / name) for name in keys),
            "iommu": sorted(path.name for path in self.root.glob("sys/class/iommu/*")),
            "iommu_group_types": sorted({self.read(path) or "" for path in self.root.glob("sys/kernel/iommu_groups/*/type")}),
            "acs_redirecting_bridges": [path.name for path in bridges if acs_redirects(path / "config")],
            "nouveau_loaded": (self.root / "sys/module/nouveau").exists(),
            "peermem_loaded": (self.root / "sys/module/nvidia_peermem").exists(),
        }

    @staticmethod
    def enrolled(key: Path) -> bool:
        """Whether the firmware trusts a key; DKMS makes one, which is of no use before someone enrols it."""
        if not key.exists() or not shutil.which("mokutil"):
            return False
        return "already enrolled" in command("mokutil", "--test-key", str(key)).stdout

    def secure_boot(self) -> tuple[bool | None, str]:
        if not (self.root / "sys/firmware/efi").exists():
            return False, "the host did not boot through UEFI"
        for path in self.root.glob("sys/firmware/efi/efivars/SecureBoot-*"):
            try:
                return path.read_bytes()[-1:] == b"\x01", "read from the firmware"
            except OSError:
                break
        return None, "the firmware's variable SecureBoot cannot be read"

    def module(self) -> dict[str, Any]:
        """The kernel module: as loaded, and as it lies on disk for the running kernel."""
        version = self.read("sys/module/nvidia/version")
        banner = self.read("proc/driver/nvidia/version") or ""
        here = str(self.root) == "/" and shutil.which("modinfo")  # a bare container has no such program
        on_disk = command("modinfo", "-F", "version", "nvidia") if here else None
        return {
            "loaded": (self.root / "sys/module/nvidia").exists(),
            "version": version,
            "kind": None if not banner else "open" if "Open Kernel Module" in banner else "proprietary",
            "on_disk": on_disk.stdout.strip() or None if on_disk and not on_disk.returncode else None,
        }

    def versions(self) -> dict[str, Any]:
        """Versions by component; null for what is not installed, a list for what may be installed side by side."""
        try:
            installed = package_manager(self.root).installed()
        except PackageError:
            installed = {}
        found: dict[str, Any] = {}
        for component, patterns in COMPONENTS.items():
            names = [name for pattern in patterns for name in sorted(installed) if re.fullmatch(pattern, name)]
            found[component] = upstream(installed[names[0]][0]) if names else None
        toolkits = []
        for name in sorted(installed):
            match = CUDA.fullmatch(name)
            if match:
                toolkits.append(f"{match[1]}.{match[2]}" if match[1] else ".".join(upstream(installed[name][0]).split(".")[:2]))
        found["cuda"] = toolkits
        return found


def upstream(version: str) -> str:
    """The version without the distribution's epoch and revision: ``1:550.163.01-2`` is 550.163.01."""
    return re.split(r"[-+~]", version.rpartition(":")[2], maxsplit=1)[0]


def relaxed_ordering(config: Path) -> bool | None:
    """Whether a device may reorder its writes; null where its configuration space cannot be read."""
    space = read_bytes(config)
    offset = space[CAPABILITIES_POINTER] if len(space) > CAPABILITIES_POINTER else 0
    for _entry in range(48):  # a damaged list must not be walked for ever
        if not offset or offset + DEVICE_CONTROL + 2 > len(space):
            return None
        if space[offset] == PCI_EXPRESS_CAPABILITY:
            return bool(struct.unpack_from("<H", space, offset + DEVICE_CONTROL)[0] & RELAXED_ORDERING)
        offset = space[offset + 1]
    return None


def acs_redirects(config: Path) -> bool:
    """Whether a bridge sends traffic between devices below it up to the root complex, past peer-to-peer."""
    space = read_bytes(config)
    offset = 0x100
    while offset and offset + ACS_CONTROL + 2 <= len(space):
        header = struct.unpack_from("<I", space, offset)[0]
        if header & 0xFFFF == ACS_EXTENDED_CAPABILITY:
            return bool(struct.unpack_from("<H", space, offset + ACS_CONTROL)[0] & ACS_REDIRECTS)
        following = header >> 20
        offset = following if following > offset else 0
    return False


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
