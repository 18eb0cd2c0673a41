# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything NVML tells about a host's GPUs, read through nvidia-ml-py, as plain data with units in the names.

NVML talks to a driver that may be broken, so a call may never return. The reading runs in a process of its own that says
before each call which one it makes; a call that does not return in time is noted, the process is replaced, and the new
one passes over that call. A value that a device or driver does not have is null, with the reason beside it; zero means
that NVML said zero.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The first call may wake every GPU, which without the persistence daemon takes seconds for each.
INIT_SECONDS = 60
CALL_SECONDS = 10
# After so many calls that hung, a GPU is not asked for more.
HANGS = 3

# NVML's return codes that say that there is nothing to be had, rather than that something is wrong (nvml.h, nvmlReturn_t):
# not supported, no permission, not found, function not found, no data, argument version mismatch, deprecated.
ABSENT = {3, 4, 6, 13, 21, 25, 26}
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
GPU_IS_LOST = 15

ARCHITECTURES = {
    2: "kepler",
    3: "maxwell",
    4: "pascal",
    5: "volta",
    6: "turing",
    7: "ampere",
    8: "ada",
    9: "hopper",
    10: "blackwell",
    13: "rubin",
}
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
# nvml.h, nvmlClocksEventReason*
CLOCK_EVENT_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "software_power_cap",
    0x008: "hardware_slowdown",
    0x010: "sync_boost",
    0x020: "software_thermal_slowdown",
    0x040: "hardware_thermal_slowdown",
    0x080: "hardware_power_brake",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
FABRIC_STATES = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}
RECOVERY_ACTIONS = {
    0: "none",
    1: "gpu_reset",
    2: "node_reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex_domain",
    6: "bus_reset",
    7: "system_reboot",
}
REMOTE_TYPES = {0: "gpu", 1: "ibm_npu", 2: "nvswitch"}
TOPOLOGY = {
    0: "same_board",
    10: "one_pcie_switch",
    20: "several_pcie_switches",
    30: "host_bridge",
    40: "numa_node",
    50: "system",
}
# Bandwidth of one link, both directions together, in GB/s, by architecture (NVIDIA's whitepapers of V100, A100, H100, B200).
# The version that NVML gives for a link is a code of its own and says nothing of its speed.
LINK_GBPS = {"pascal": 40.0, "volta": 50.0, "turing": 50.0, "ampere": 50.0, "hopper": 50.0, "blackwell": 100.0}
NVLINK_ERRORS = {"replay": 0, "recovery": 1, "crc_flit": 2, "crc_data": 3}
# Field identifiers of nvmlDeviceGetFieldValues (nvml.h, NVML_FI_DEV_*).
FIELD_MEMORY_TEMPERATURE = 82
FIELD_NVLINK_SPEED = 164
FIELD_RECOVERY_ACTION = 230


def field_number(library: Any, name: str, fallback: int) -> int:
    return int(getattr(library, name, fallback))


class Reader:
    """One reading, in the process that may hang."""

    def __init__(self, library: Any, tell: Callable[[dict[str, Any]], None], skip: dict[str, str]) -> None:
        self.nvml = library
        self.tell = tell
        self.skip = skip
        self.unsupported: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.lost = False
        self.invalid = ""  # the last path that NVML called an invalid argument
        self.place = ""

    def ask(self, path: str, function: str, *arguments: Any, form: Callable[[Any], Any] = lambda value: value) -> Any:
        """The answer to one call, or null with the reason in `unsupported` or `errors`."""
        whole = f"{self.place}{path}"
        if whole in self.skip:
            self.errors[path] = self.skip[whole]
            return None
        call = getattr(self.nvml, function, None)
        if call is None:
            self.unsupported[path] = f"nvidia-ml-py has no {function}"
            return None
        self.tell({"call": whole, "function": function})
        try:
            return form(call(*arguments))
        except self.nvml.NVMLError as error:
            code = int(getattr(error, "value", 999))
            self.lost = self.lost or code == GPU_IS_LOST
            self.invalid = path if code == INVALID_ARGUMENT else self.invalid
            (self.unsupported if code in ABSENT else self.errors)[path] = f"{function}: {error}"
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            self.unsupported[path] = f"{function}: {error}"
        return None

    def field(self, path: str, handle: Any, number: Any, form: Callable[[Any], Any] = int) -> Any:
        """One value of nvmlDeviceGetFieldValues, which carries a return code of its own."""

        def value(answers: Any) -> Any:
            answer = answers[0]
            if answer.nvmlReturn != 0:
                # A driver that is older than the field calls it an invalid argument.
                raise self.nvml.NVMLError(NOT_SUPPORTED if answer.nvmlReturn == INVALID_ARGUMENT else answer.nvmlReturn)
            # nvmlValueType_t: double, unsigned int, unsigned long, unsigned long long, signed long long, signed int
            names = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal"}
            return form(getattr(answer.value, names.get(answer.valueType, "uiVal")))

        return self.ask(path, "nvmlDeviceGetFieldValues", handle, [number], form=value)

    # --- the driver --------------------------------------------------------------------------------------------------

    def driver(self) -> dict[str, Any]:
        self.place = "driver."
        found = {
            "version": self.ask("version", "nvmlSystemGetDriverVersion", form=text),
            "nvml_version": self.ask("nvml_version", "nvmlSystemGetNVMLVersion", form=text),
            "cuda_version": self.ask(
                "cuda_version", "nvmlSystemGetCudaDriverVersion_v2", form=lambda code: f"{code // 1000}.{code % 1000 // 10}"
            ),
        }
        return {**found, "unsupported": self.unsupported, "errors": self.errors}

    # --- one GPU -----------------------------------------------------------------------------------------------------

    def gpu(self, index: int) -> dict[str, Any]:
        self.unsupported, self.errors, self.lost = {}, {}, False
        self.place = f"GPU {index}."
        handle = self.ask("handle", "nvmlDeviceGetHandleByIndex", index)
        found: dict[str, Any] = {"index": index}
        if handle is not None:
            found.update(self.identity(handle))
            found.update(self.memory(handle))
            found.update(self.links(handle, found["architecture"]))
            found.update(self.load(handle))
        hung = sum(1 for path in self.skip if path.startswith(self.place))
        return {**found, "lost": self.lost, "hung_calls": hung, "unsupported": self.unsupported, "errors": self.errors}

    def identity(self, handle: Any) -> dict[str, Any]:
        nvml = self.nvml
        gsp = self.ask("firmware.gsp", "nvmlDeviceGetGspFirmwareVersion", handle, form=text)
        return {
            "name": self.ask("name", "nvmlDeviceGetName", handle, form=text),
            "uuid": self.ask("uuid", "nvmlDeviceGetUUID", handle, form=text),
            "serial": self.ask("serial", "nvmlDeviceGetSerial", handle, form=text),
            "minor_number": self.ask("minor_number", "nvmlDeviceGetMinorNumber", handle),
            "architecture": self.ask(
                "architecture", "nvmlDeviceGetArchitecture", handle, form=lambda code: ARCHITECTURES.get(code, str(code))
            ),
            "compute_capability": self.ask(
                "compute_capability", "nvmlDeviceGetCudaComputeCapability", handle, form=lambda pair: f"{pair[0]}.{pair[1]}"
            ),
            "pci": self.ask("pci", "nvmlDeviceGetPciInfo", handle, form=pci),
            "board": {
                "id": self.ask("board.id", "nvmlDeviceGetBoardId", handle),
                "part_number": self.ask("board.part_number", "nvmlDeviceGetBoardPartNumber", handle, form=text),
            },
            "firmware": {
                "vbios": self.ask("firmware.vbios", "nvmlDeviceGetVbiosVersion", handle, form=text),
                "inforom_image": self.ask("firmware.inforom_image", "nvmlDeviceGetInforomImageVersion", handle, form=text),
                "gsp": gsp,
            },
            "persistence_mode": self.ask("persistence_mode", "nvmlDeviceGetPersistenceMode", handle, form=bool),
            "compute_mode": self.ask(
                "compute_mode", "nvmlDeviceGetComputeMode", handle, form=lambda code: COMPUTE_MODES.get(code, str(code))
            ),
            "numa_node": self.ask("numa_node", "nvmlDeviceGetNumaNodeId", handle),
            "mig": self.mig(handle),
            "recovery_action": self.field(
                "recovery_action",
                handle,
                field_number(nvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", FIELD_RECOVERY_ACTION),
                lambda code: RECOVERY_ACTIONS.get(int(code), f"unknown ({int(code)})"),
            ),
        }

    def mig(self, handle: Any) -> dict[str, Any]:
        modes = self.ask("mig.mode", "nvmlDeviceGetMigMode", handle)
        devices: list[str] | None = None
        if modes is not None and modes[0]:
            devices = []
            for number in range(self.ask("mig.devices", "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
                with contextlib.suppress(self.nvml.NVMLError):  # a slot without an instance
                    device = self.nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                    devices.append(text(self.nvml.nvmlDeviceGetUUID(device)))
        return {
            "enabled": None if modes is None else bool(modes[0]),
            "pending_enabled": None if modes is None else bool(modes[1]),
            "devices": devices,
        }

    def memory(self, handle: Any) -> dict[str, Any]:
        memory = self.ask("memory", "nvmlDeviceGetMemoryInfo", handle)
        bar1 = self.ask("memory.bar1_total_bytes", "nvmlDeviceGetBAR1MemoryInfo", handle)
        ecc = self.ask("ecc.enabled", "nvmlDeviceGetEccMode", handle)
        rows = self.ask("remapped_rows", "nvmlDeviceGetRemappedRows", handle)
        histogram = self.ask("remapped_rows.bank_availability", "nvmlDeviceGetRowRemapperHistogram", handle)
        return {
            "memory": {
                "total_bytes": None if memory is None else int(memory.total),
                "used_bytes": None if memory is None else int(memory.used),
                "free_bytes": None if memory is None else int(memory.free),
                "bar1_total_bytes": None if bar1 is None else int(bar1.bar1Total),
            },
            "ecc": {
                "enabled": None if ecc is None else bool(ecc[0]),
                "pending_enabled": None if ecc is None else bool(ecc[1]),
                # Counted since the driver was loaded, and over the card's life.
                "corrected_volatile": self.ask("ecc.corrected_volatile", "nvmlDeviceGetTotalEccErrors", handle, 0, 0),
                "corrected_aggregate": self.ask("ecc.corrected_aggregate", "nvmlDeviceGetTotalEccErrors", handle, 0, 1),
                "uncorrected_volatile": self.ask("ecc.uncorrected_volatile", "nvmlDeviceGetTotalEccErrors", handle, 1, 0),
                "uncorrected_aggregate": self.ask("ecc.uncorrected_aggregate", "nvmlDeviceGetTotalEccErrors", handle, 1, 1),
            },
            "remapped_rows": {
                "correctable": None if rows is None else int(rows[0]),
                "uncorrectable": None if rows is None else int(rows[1]),
                "pending": None if rows is None else bool(rows[2]),
                "failure_occurred": None if rows is None else bool(rows[3]),
                # Banks of memory by how many spare rows each has left.
                "banks": None
                if histogram is None
                else {name: int(getattr(histogram, name)) for name in ("max", "high", "partial", "low", "none")},
            },
            "retired_pages": {
                "single_bit": self.ask("retired_pages.single_bit", "nvmlDeviceGetRetiredPages", handle, 0, form=len),
                "double_bit": self.ask("retired_pages.double_bit", "nvmlDeviceGetRetiredPages", handle, 1, form=len),
                "pending": self.ask("retired_pages.pending", "nvmlDeviceGetRetiredPagesPendingStatus", handle, form=bool),
            },
        }

    def links(self, handle: Any, architecture: str | None) -> dict[str, Any]:
        return {
            "pcie": {
                "generation": self.ask("pcie.generation", "nvmlDeviceGetCurrPcieLinkGeneration", handle),
                "generation_max": self.ask("pcie.generation_max", "nvmlDeviceGetMaxPcieLinkGeneration", handle),
                "generation_gpu_max": self.ask("pcie.generation_gpu_max", "nvmlDeviceGetGpuMaxPcieLinkGeneration", handle),
                "width": self.ask("pcie.width", "nvmlDeviceGetCurrPcieLinkWidth", handle),
                "width_max": self.ask("pcie.width_max", "nvmlDeviceGetMaxPcieLinkWidth", handle),
                "replays": self.ask("pcie.replays", "nvmlDeviceGetPcieReplayCounter", handle),
            },
            "nvlink": self.nvlink(handle, architecture),
            "fabric": self.fabric(handle),
        }

    def nvlink(self, handle: Any, architecture: str | None) -> list[dict[str, Any]]:
        found = []
        for link in range(field_number(self.nvml, "NVML_NVLINK_MAX_LINKS", 18)):
            path = f"nvlink.{link}"
            active = self.ask(path, "nvmlDeviceGetNvLinkState", handle, link, form=bool)
            if active is None and (path in self.unsupported or self.invalid == path):
                # The first number that is no link ends the list; a card without NVLink has none.
                said = self.errors.pop(path, None) or self.unsupported.pop(path, None)
                if not link:
                    self.unsupported[path] = said or "no link"
                break
            # In MB/s, one direction; older drivers do not tell, and then the architecture's rate stands for it.
            number = field_number(self.nvml, "NVML_FI_DEV_NVLINK_GET_SPEED", FIELD_NVLINK_SPEED)
            speed = self.field(f"{path}.speed", handle, (number, link)) if active else None
            version = self.ask(f"{path}.version", "nvmlDeviceGetNvLinkVersion", handle, link) if active else None
            remote = self.ask(f"{path}.remote", "nvmlDeviceGetNvLinkRemotePciInfo", handle, link, form=pci) if active else None
            kind = (
                self.ask(
                    f"{path}.remote_type",
                    "nvmlDeviceGetNvLinkRemoteDeviceType",
                    handle,
                    link,
                    form=lambda code: REMOTE_TYPES.get(code, "unknown"),
                )
                if active
                else None
            )
            found.append(
                {
                    "link": link,
                    "active": active,
                    "version": version,
                    "bandwidth_gbytes_per_second": speed * 2 / 1000
                    if speed
                    else LINK_GBPS.get(architecture or "")
                    if active
                    else None,
                    "remote_type": kind,
                    "remote_bus_id": remote["bus_id"] if remote else None,
                    "errors": {
                        name: self.ask(f"{path}.errors.{name}", "nvmlDeviceGetNvLinkErrorCounter", handle, link, code)
                        for name, code in NVLINK_ERRORS.items()
                    },
                }
            )
        return found

    def fabric(self, handle: Any) -> dict[str, Any]:
        nothing = {"state": None, "status": None, "clique_id": None, "cluster_uuid": None, "health_mask": None}
        for kind, function in (
            ("c_nvmlGpuFabricInfo_v3_t", "nvmlDeviceGetGpuFabricInfoV"),
            ("c_nvmlGpuFabricInfo_v2_t", "nvmlDeviceGetGpuFabricInfoV"),
            ("c_nvmlGpuFabricInfo_t", "nvmlDeviceGetGpuFabricInfo"),
        ):
            maker = getattr(self.nvml, kind, None)
            if maker is None:
                continue
            info = maker()
            self.unsupported.pop("fabric", None)
            # A structure is filled in place.
            if self.ask("fabric", function, handle, self.nvml.byref(info)) is None:
                if self.invalid == "fabric":
                    # A driver that is older than this form of the structure.
                    self.unsupported["fabric"] = self.errors.pop("fabric", "") or self.unsupported["fabric"]
                    self.invalid = ""
                elif "fabric" in self.errors:
                    break
                continue
            mask = getattr(info, "healthMask", None)
            return {
                "state": FABRIC_STATES.get(int(info.state), f"unknown ({int(info.state)})"),
                "status": int(info.status),
                "clique_id": int(info.cliqueId),
                "cluster_uuid": bytes(bytearray(info.clusterUuid)).hex(),
                "health_mask": None if mask is None else int(mask),
            }
        return nothing

    def load(self, handle: Any) -> dict[str, Any]:
        clocks = {"graphics": 0, "sm": 1, "memory": 2}
        utilization = self.ask("utilization", "nvmlDeviceGetUtilizationRates", handle)
        limits = self.ask("power.limit_range_watts", "nvmlDeviceGetPowerManagementLimitConstraints", handle)
        return {
            "clocks": {
                **{
                    f"{name}_mhz": self.ask(f"clocks.{name}_mhz", "nvmlDeviceGetClockInfo", handle, number)
                    for name, number in clocks.items()
                },
                **{
                    f"{name}_max_mhz": self.ask(f"clocks.{name}_max_mhz", "nvmlDeviceGetMaxClockInfo", handle, number)
                    for name, number in clocks.items()
                },
            },
            "clock_event_reasons": self.reasons(handle),
            "power": {
                "usage_watts": self.ask("power.usage_watts", "nvmlDeviceGetPowerUsage", handle, form=watts),
                "limit_watts": self.ask("power.limit_watts", "nvmlDeviceGetPowerManagementLimit", handle, form=watts),
                "enforced_limit_watts": self.ask(
                    "power.enforced_limit_watts", "nvmlDeviceGetEnforcedPowerLimit", handle, form=watts
                ),
                "default_limit_watts": self.ask(
                    "power.default_limit_watts", "nvmlDeviceGetPowerManagementDefaultLimit", handle, form=watts
                ),
                "limit_range_watts": None if limits is None else [watts(limits[0]), watts(limits[1])],
            },
            "temperature": {
                "gpu_celsius": self.ask("temperature.gpu_celsius", "nvmlDeviceGetTemperature", handle, 0),
                "memory_celsius": self.field(
                    "temperature.memory_celsius",
                    handle,
                    field_number(self.nvml, "NVML_FI_DEV_MEMORY_TEMP", FIELD_MEMORY_TEMPERATURE),
                ),
                **{
                    f"{name}_celsius": self.ask(
                        f"temperature.{name}_celsius", "nvmlDeviceGetTemperatureThreshold", handle, number
                    )
                    for name, number in {"shutdown": 0, "slowdown": 1, "memory_max": 2, "gpu_max": 3}.items()
                },
            },
            "performance_state": self.ask("performance_state", "nvmlDeviceGetPerformanceState", handle),
            "utilization": {
                "gpu_percent": None if utilization is None else int(utilization.gpu),
                "memory_percent": None if utilization is None else int(utilization.memory),
            },
            "processes": self.ask("processes", "nvmlDeviceGetComputeRunningProcesses", handle, form=processes),
        }

    def reasons(self, handle: Any) -> list[str] | None:
        """Why the clocks are where they are, by name."""
        new = hasattr(self.nvml, "nvmlDeviceGetCurrentClocksEventReasons")
        name = "nvmlDeviceGetCurrentClocksEventReasons" if new else "nvmlDeviceGetCurrentClocksThrottleReasons"
        mask = self.ask("clock_event_reasons", name, handle)
        if mask is None and new and "clock_event_reasons" in self.unsupported:
            # Drivers before 535 know the older name alone.
            del self.unsupported["clock_event_reasons"]
            mask = self.ask("clock_event_reasons", "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        if mask is None:
            return None
        known = [text for bit, text in CLOCK_EVENT_REASONS.items() if mask & bit]
        rest = mask & ~sum(CLOCK_EVENT_REASONS)
        return known + ([f"unknown (0x{rest:x})"] if rest else [])

    def topology(self, count: int) -> list[dict[str, Any]]:
        """How each pair of GPUs is connected, without counting NVLink, and whether they reach each other through it."""
        self.unsupported, self.errors = {}, {}
        self.place = "topology."
        handles: dict[int, Any] = {}
        if f"{self.place}handle" in self.skip:
            return []  # too many calls hung
        for index in range(count):
            handle = self.ask(f"{index}", "nvmlDeviceGetHandleByIndex", index)
            if handle is not None:
                handles[index] = handle
        nvlink = getattr(self.nvml, "NVML_P2P_CAPS_INDEX_NVLINK", 2)
        pairs = []
        for first in handles:
            for second in handles:
                if first >= second:
                    continue
                pair = f"{first}-{second}"
                level = self.ask(pair, "nvmlDeviceGetTopologyCommonAncestor", handles[first], handles[second])
                status = self.ask(f"{pair}.nvlink", "nvmlDeviceGetP2PStatus", handles[first], handles[second], nvlink)
                pairs.append(
                    {
                        "gpus": [first, second],
                        "pcie": None if level is None else TOPOLOGY.get(level, str(level)),
                        "nvlink": None if status is None else status == 0,
                    }
                )
        return pairs


def text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def watts(milliwatts: int) -> float:
    return milliwatts / 1000


def pci(info: Any) -> dict[str, Any]:
    whole = int(info.pciDeviceId)
    return {
        "bus_id": text(info.busId).lower(),
        "vendor_id": f"{whole & 0xFFFF:04x}",
        "device_id": f"{whole >> 16:04x}",
        "subsystem_id": f"{int(info.pciSubSystemId):08x}",
    }


def processes(listed: Any) -> list[dict[str, Any]]:
    """What computes on a GPU, with the program's name and not its command line, which may hold a secret."""
    found = []
    for process in listed:
        try:
            name: str | None = Path(f"/proc/{process.pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            name = None
        used = getattr(process, "usedGpuMemory", None)
        found.append({"pid": int(process.pid), "name": name, "used_bytes": None if used is None else int(used)})
    return found


# --- the process that may hang -----------------------------------------------------------------------------------------


def read_all(tell: Callable[[dict[str, Any]], None], places: list[str], skip: dict[str, str]) -> None:
    """What the child does: read, and tell each part as soon as it is there."""
    sys.path.extend(place for place in places if place not in sys.path)
    tell({"call": "import", "function": "import pynvml"})
    try:
        import pynvml
    except ImportError as error:
        tell({"state": "no_bindings", "reason": f"nvidia-ml-py is not there: {error}"})
        return
    tell({"call": "init", "function": "nvmlInit"})
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        code = int(getattr(error, "value", 999))
        state = {12: "no_library", 9: "driver_not_loaded", 18: "driver_mismatch"}.get(code, "error")
        tell({"state": state, "reason": f"nvmlInit: {error}"})
        return
    reader = Reader(pynvml, tell, skip)
    tell({"driver": reader.driver()})
    count = reader.ask("count", "nvmlDeviceGetCount")
    if count is None:
        tell({"state": "error", "reason": reader.errors.get("count") or reader.unsupported.get("count")})
        return
    tell({"count": int(count)})
    for index in range(count):
        tell({"gpu": reader.gpu(index)})
    tell({"topology": reader.topology(count)})
    tell({"state": "read", "reason": None})


class Reading:
    """What the child has told so far."""

    def __init__(self) -> None:
        self.state: str | None = None
        self.reason: str | None = None
        self.driver: dict[str, Any] = {}
        self.count: int | None = None
        self.gpus: dict[int, dict[str, Any]] = {}
        self.topology: list[dict[str, Any]] = []
        self.call = ""
        self.function = ""

    def take(self, message: dict[str, Any]) -> None:
        if "call" in message:
            self.call, self.function = message["call"], message["function"]
        elif "driver" in message:
            self.driver = message["driver"]
        elif "count" in message:
            self.count = message["count"]
        elif "gpu" in message:
            self.gpus[message["gpu"]["index"]] = message["gpu"]
        elif "topology" in message:
            self.topology = message["topology"]
        else:
            self.state, self.reason = message["state"], message["reason"]


def read_nvml(
    deadline_seconds: float = 120,
    call_seconds: float = CALL_SECONDS,
    init_seconds: float = INIT_SECONDS,
    places: list[str] | None = None,
) -> dict[str, Any]:
    """All that NVML tells.

    state is "read", or why there is nothing to read: no_bindings, no_library, driver_not_loaded, driver_mismatch, error,
    hung. `places` are directories where nvidia-ml-py may lie.
    """
    begun = time.monotonic()
    skip: dict[str, str] = {}
    while True:
        reading = Reading()
        left = deadline_seconds - (time.monotonic() - begun)
        hung = one_child(reading, places or [], skip, left, call_seconds, init_seconds)
        if hung is None or reading.call in ("init", "import", ""):
            break
        if time.monotonic() - begun >= deadline_seconds:
            # Not the fault of the call that was being made.
            hung = f"the reading did not end within {deadline_seconds:.0f} s"
            break
        skip[reading.call] = hung
        place = reading.call.partition(".")[0]
        if sum(1 for path in skip if path.startswith(f"{place}.")) >= HANGS:
            skip[f"{place}.handle"] = f"{HANGS} calls did not return; this GPU was not asked for more"
    if hung is not None and reading.state is None:
        reading.state, reading.reason = "hung", hung
    elif reading.state is None:
        reading.state, reading.reason = "error", f"the process that read NVML ended in {reading.function}"
    return {
        "state": reading.state,
        "reason": reading.reason,
        "seconds": round(time.monotonic() - begun, 2),
        "driver": reading.driver,
        "count": reading.count,
        "gpus": [reading.gpus[index] for index in sorted(reading.gpus)],
        "topology": reading.topology,
        "hung_calls": skip,
    }


def one_child(
    reading: Reading, places: list[str], skip: dict[str, str], left: float, call_seconds: float, init_seconds: float
) -> str | None:
    """Run one child to its end; the reason if it hung, else null."""
    incoming, outgoing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(incoming)
            os.setsid()
            quiet()

            def tell(message: dict[str, Any]) -> None:
                os.write(outgoing, json.dumps(message).encode() + b"\n")

            try:
                read_all(tell, places, skip)
                status = 0
            except Exception as error:
                tell({"state": "error", "reason": f"{type(error).__name__}: {error}"})
        os._exit(status)
    os.close(outgoing)
    begun = last = time.monotonic()
    buffer = b""
    try:
        while True:
            # NVML wakes a GPU when its handle is asked for (nvml.h, nvmlInit_v2).
            waking = reading.call in ("", "init", "import") or reading.call.endswith(".handle")
            allowed = init_seconds if waking else call_seconds
            now = time.monotonic()
            wait = min(last + allowed, begun + left) - now
            if wait <= 0 or not select.select([incoming], [], [], wait)[0]:
                seconds = round(now - last, 1) if wait <= 0 else round(time.monotonic() - last, 1)
                return f"{reading.function or 'the start'} did not return within {seconds:.0f} s"
            piece = os.read(incoming, 65536)
            if not piece:
                return None
            last = time.monotonic()
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                reading.take(json.loads(line))
    finally:
        os.close(incoming)
        end(pid)


def quiet() -> None:
    """The module's own answer goes to standard output; nothing of a library may get between."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)


def end(pid: int) -> None:
    """End the child. One that hangs inside the kernel cannot be ended and is left behind."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    for _attempt in range(20):
        with contextlib.suppress(OSError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
        time.sleep(0.05)


def site_packages(environment: str) -> list[str]:
    """The directories of a virtual environment that hold its packages."""
    return [str(path) for path in sorted(Path(environment).glob("lib/python3*/site-packages"))] if environment else []
