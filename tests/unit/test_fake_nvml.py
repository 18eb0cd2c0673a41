# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The NVML of the tests says through the real nvidia-ml-py what its machines and faults describe."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "nvml"
GIB = 1024**3

# Evaluates one expression per line with the names of pynvml, and says what came of it.
CHILD = """
import json, sys
import pynvml
from pynvml import *

def gpu(index):
    return nvmlDeviceGetHandleByIndex(index)

def field(handle, *numbers):
    return [
        [item.nvmlReturn, item.value.uiVal if item.valueType == 1 else item.value.siVal if item.valueType == 5
         else item.value.dVal if item.valueType == 0 else item.value.ullVal]
        for item in nvmlDeviceGetFieldValues(handle, list(numbers))
    ]

def plain(value):
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "_fields_"):
        return {name: plain(getattr(value, name)) for name, *_ in value._fields_}
    if hasattr(value, "__dict__"):
        return {name: plain(item) for name, item in vars(value).items()}
    return list(value) if hasattr(value, "_length_") else value

names = dict(globals())
for line in sys.stdin:
    code = json.loads(line)
    try:
        try:
            result = eval(code, names)
        except SyntaxError:
            exec(code, names)
            result = None
        print(json.dumps({"value": plain(result)}), flush=True)
    except pynvml.NVMLError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)
"""


def load_machines() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_nvml_machines", FIXTURE / "machines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


machines = load_machines()


class NvmlError(Exception):
    pass


class Client:
    """A process that uses pynvml with the library of the tests."""

    def __init__(self, library: Path, state: Path) -> None:
        self.state = state
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(state)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def machine(self, name: str, *faults: str) -> None:
        machines.write(self.state, machines.state(name, faults))

    def ask(self, code: str, timeout_seconds: float = 30) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        late = threading.Timer(timeout_seconds, self.process.kill)
        late.start()
        line = self.process.stdout.readline()
        late.cancel()
        if not line:
            raise TimeoutError(code)
        answer = json.loads(line)
        if "error" in answer:
            raise NvmlError(answer["error"])
        return answer["value"]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    assert machines.build(folder).name == "libnvidia-ml.so.1"
    return folder


Start = Callable[..., Client]


@pytest.fixture
def start(library: Path, tmp_path: Path) -> Iterator[Start]:
    clients: list[Client] = []

    def run(machine: str | None, *faults: str, init: bool = True) -> Client:
        client = Client(library, tmp_path / "state")
        clients.append(client)
        if machine is not None:
            client.machine(machine, *faults)
        if init:
            client.ask("nvmlInit()")
        return client

    yield run
    for client in clients:
        client.stop()


# name, GPUs, device id, memory in GiB (rounded), architecture, active links, NVSwitches, PCIe generation now and at most
MACHINES = [
    ("dgx_a100", "NVIDIA A100-SXM4-80GB", 8, 0x20B210DE, 80, "AMPERE", 12, 6, 4, 4),
    ("hgx_h100", "NVIDIA H100 80GB HBM3", 8, 0x233010DE, 80, "HOPPER", 18, 4, 5, 5),
    ("hgx_h200", "NVIDIA H200", 8, 0x233510DE, 140, "HOPPER", 18, 4, 5, 5),
    ("hgx_h100_4", "NVIDIA H100 80GB HBM3", 4, 0x233010DE, 80, "HOPPER", 18, 0, 5, 5),
    ("hgx_h100_mig", "NVIDIA H100 80GB HBM3", 8, 0x233010DE, 80, "HOPPER", 0, 0, 5, 5),
    ("pcie_h100", "NVIDIA H100 PCIe", 1, 0x233110DE, 80, "HOPPER", 0, 0, 5, 5),
    ("pcie_l4", "NVIDIA L4", 1, 0x27B810DE, 22, "ADA", 0, 0, 1, 4),
]

LINKS = """
def links(handle):
    found = []
    for link in range(NVML_NVLINK_MAX_LINKS):
        try:
            if nvmlDeviceGetNvLinkState(handle, link):
                kind = nvmlDeviceGetNvLinkRemoteDeviceType(handle, link)
                end = nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId
                found.append([link, kind, end, field(handle, (146, link))[0][1]])
        except (NVMLError_InvalidArgument, NVMLError_NotSupported):
            break
    return found
"""


@pytest.mark.parametrize(
    ("machine", "name", "count", "device_id", "gib", "architecture", "links", "switches", "generation", "max_generation"),
    MACHINES,
)
def test_a_machine_is_what_its_file_says(
    start: Start, machine: str, name: str, count: int, device_id: int, gib: int, architecture: str, links: int, switches: int,
    generation: int, max_generation: int,
) -> None:  # fmt: skip
    nvml = start(machine)
    nvml.ask(LINKS)
    assert nvml.ask("nvmlSystemGetDriverVersion()") == "570.172.08"
    assert nvml.ask("nvmlSystemGetNVMLVersion()") == "12.570.172.08"
    assert nvml.ask("nvmlSystemGetCudaDriverVersion_v2()") == 12080
    assert nvml.ask("nvmlDeviceGetCount()") == count
    every = f"for index in range({count})"
    assert nvml.ask(f"[nvmlDeviceGetName(gpu(index)) {every}]") == [name] * count
    assert nvml.ask(f"[nvmlDeviceGetIndex(gpu(index)) {every}]") == list(range(count))
    assert nvml.ask(f"[nvmlDeviceGetEccMode(gpu(index)) {every}]") == [[1, 1]] * count
    for what in ("nvmlDeviceGetUUID(gpu(index))", "nvmlDeviceGetSerial(gpu(index))", "nvmlDeviceGetPciInfo(gpu(index)).busId"):
        assert len(set(nvml.ask(f"[{what} {every}]"))) == count, what
    assert nvml.ask(f"nvmlDeviceGetArchitecture(gpu(0)) == NVML_DEVICE_ARCH_{architecture}") is True
    assert nvml.ask("nvmlDeviceGetPciInfo(gpu(0)).pciDeviceId") == device_id
    assert round(nvml.ask("nvmlDeviceGetMemoryInfo(gpu(0)).total") / GIB) == gib
    assert nvml.ask("nvmlDeviceGetCurrPcieLinkGeneration(gpu(0))") == generation
    assert nvml.ask("nvmlDeviceGetMaxPcieLinkGeneration(gpu(0))") == max_generation
    assert nvml.ask("nvmlDeviceGetCurrPcieLinkWidth(gpu(0))") == 16
    ends = nvml.ask(f"[links(gpu(index)) {every}]")
    assert [len(of_one) for of_one in ends] == [links] * count
    assert len({end[2] for of_one in ends for end in of_one if end[1] == 2}) == switches
    # No port of a switch is the end of two links.
    ports = [(end[2], end[3]) for of_one in ends for end in of_one]
    assert len(set(ports)) == len(ports)


def test_direct_links_meet_each_other(start: Start) -> None:
    nvml = start("hgx_h100_4")
    nvml.ask(LINKS)
    buses = nvml.ask("[nvmlDeviceGetPciInfo(gpu(index)).busId for index in range(4)]")
    ends = nvml.ask("[links(gpu(index)) for index in range(4)]")
    for here, of_one in enumerate(ends):
        assert sorted(end[2] for end in of_one) == sorted(bus for bus in buses if bus != buses[here] for _ in range(6))
        for link, kind, bus, other in of_one:
            assert kind == 0
            assert ends[buses.index(bus)][other][2:] == [buses[here], link]


def test_structures_have_the_layout_that_pynvml_expects(start: Start) -> None:
    nvml = start("hgx_h100")
    memory = nvml.ask("nvmlDeviceGetMemoryInfo(gpu(0), nvmlMemory_v2)")
    mib = 1024 * 1024
    assert [memory[key] // mib for key in ("total", "reserved", "used", "free")] == [81559, 454, 1, 81104]
    assert nvml.ask("nvmlDeviceGetMemoryInfo(gpu(0))")["used"] == 455 * mib
    assert nvml.ask("nvmlDeviceGetBAR1MemoryInfo(gpu(0))") == {
        "bar1Total": 128 * GIB,
        "bar1Free": 128 * GIB - mib,
        "bar1Used": mib,
    }
    pci = nvml.ask("nvmlDeviceGetPciInfo(gpu(1))")
    assert pci == {
        "busIdLegacy": "0000:2A:00.0", "domain": 0, "bus": 0x2A, "device": 0, "pciDeviceId": 0x233010DE,
        "pciSubSystemId": 0x16C110DE, "busId": "00000000:2A:00.0",
    }  # fmt: skip
    for version in ("v2", "v3"):
        nvml.ask(f"fabric = c_nvmlGpuFabricInfo_{version}_t()")
        nvml.ask("nvmlDeviceGetGpuFabricInfoV(gpu(0), byref(fabric))")
        assert nvml.ask("[fabric.state, fabric.status, fabric.cliqueId, fabric.healthMask]") == [3, 0, 0, 0]
    nvml.ask("old = c_nvmlGpuFabricInfo_t()")
    nvml.ask("nvmlDeviceGetGpuFabricInfo(gpu(0), byref(old))")
    assert nvml.ask("old.state") == 3
    nvml.ask("sram = c_nvmlEccSramErrorStatus_v1_t()")
    nvml.ask("nvmlDeviceGetSramEccErrorStatus(gpu(0), byref(sram))")
    assert nvml.ask("[sram.volatileCor, sram.bThresholdExceeded]") == [0, 0]
    assert nvml.ask("nvmlDeviceGetRowRemapperHistogram(gpu(0))") == {"max": 2560, "high": 0, "partial": 0, "low": 0, "none": 0}
    assert nvml.ask("nvmlDeviceGetTemperature(gpu(0), 0)") == nvml.ask("nvmlDeviceGetTemperatureV(gpu(0), 0)") == 30
    assert nvml.ask("nvmlDeviceGetMarginTemperature(gpu(0))") == 57
    assert nvml.ask("[nvmlDeviceGetTemperatureThreshold(gpu(0), which) for which in range(4)]") == [95, 89, 95, 87]
    assert nvml.ask("nvmlDeviceGetUtilizationRates(gpu(0))") == {"gpu": 0, "memory": 0}
    assert nvml.ask("nvmlDeviceGetPowerManagementLimitConstraints(gpu(0))") == [200000, 700000]
    assert nvml.ask("nvmlDeviceGetGspFirmwareVersion(gpu(0))") == "570.172.08"
    assert nvml.ask("nvmlDeviceGetCudaComputeCapability(gpu(0))") == [9, 0]


def test_field_values_agree_with_the_calls_of_the_same_meaning(start: Start) -> None:
    nvml = start("hgx_h100", "nvlink_errors:0:7", "row_remap_pending")
    assert nvml.ask("field(gpu(0), 1, 91, 142, 143, 144, 230)") == [[0, 1], [0, 18], [0, 0], [0, 1], [0, 1], [0, 0]]
    assert nvml.ask("field(gpu(0), 193, 194)") == [[0, -8], [0, -2]]
    assert nvml.ask("field(gpu(0), (161, 7), (161, 6), 52, 109)") == [[0, 61], [0, 0], [0, 61], [0, 61]]
    # What a driver does not know is said of the one field, and not of the call.
    assert [item[0] for item in nvml.ask("field(gpu(0), 9999, 82)")] == [3, 0]


def test_topology(start: Start) -> None:
    nvml = start("hgx_h100")
    assert nvml.ask("nvmlDeviceGetTopologyCommonAncestor(gpu(0), gpu(3)) == NVML_TOPOLOGY_NODE") is True
    assert nvml.ask("nvmlDeviceGetTopologyCommonAncestor(gpu(0), gpu(4)) == NVML_TOPOLOGY_SYSTEM") is True
    assert nvml.ask("[nvmlDeviceGetIndex(one) for one in nvmlDeviceGetTopologyNearestGpus(gpu(5), NVML_TOPOLOGY_NODE)]") == [
        4,
        6,
        7,
    ]
    assert nvml.ask("[nvmlDeviceGetIndex(one) for one in nvmlSystemGetTopologyGpuSet(57)]") == [4, 5, 6, 7]
    assert nvml.ask("list(nvmlDeviceGetMemoryAffinity(gpu(7), 1, NVML_AFFINITY_SCOPE_NODE))") == [2]
    assert nvml.ask("bin(nvmlDeviceGetCpuAffinity(gpu(0), 4)[0])") == bin(2**56 - 1)
    assert nvml.ask("nvmlDeviceGetP2PStatus(gpu(0), gpu(7), NVML_P2P_CAPS_INDEX_NVLINK)") == 0
    with pytest.raises(NvmlError, match="NVMLError_NotSupported"):
        nvml.ask("nvmlDeviceGetNumaNodeId(gpu(0))")


def test_handles_by_uuid_serial_and_address(start: Start) -> None:
    nvml = start("hgx_h100")
    for code in (
        "nvmlDeviceGetHandleByUUID(nvmlDeviceGetUUID(gpu(3)))",
        "nvmlDeviceGetHandleBySerial(nvmlDeviceGetSerial(gpu(3)).encode())",
        "nvmlDeviceGetHandleByPciBusId('0000:5d:00.0')",
        "nvmlDeviceGetHandleByPciBusId('00000000:5D:00.0')",
    ):
        assert nvml.ask(f"nvmlDeviceGetIndex({code})") == 3, code
    for code in ("nvmlDeviceGetHandleByUUID('GPU-0')", "nvmlDeviceGetHandleByPciBusId('0000:5e:00.0')"):
        with pytest.raises(NvmlError, match="NVMLError_NotFound"):
            nvml.ask(code)
    with pytest.raises(NvmlError, match="NVMLError_InvalidArgument"):
        nvml.ask("gpu(8)")


def test_instances_of_mig(start: Start) -> None:
    nvml = start("hgx_h100_mig")
    nvml.ask("one = nvmlDeviceGetMigDeviceHandleByIndex(gpu(2), 1)")
    assert nvml.ask("nvmlDeviceGetMigMode(gpu(2))") == [1, 1]
    assert nvml.ask("nvmlDeviceGetMaxMigDeviceCount(gpu(2))") == 7
    assert nvml.ask("nvmlDeviceGetName(one)") == "NVIDIA H100 80GB HBM3 MIG 2g.20gb"
    assert nvml.ask("nvmlDeviceGetUUID(one)").startswith("MIG-")
    assert nvml.ask("nvmlDeviceGetUUID(nvmlDeviceGetHandleByUUID(nvmlDeviceGetUUID(one)))") == nvml.ask("nvmlDeviceGetUUID(one)")
    assert nvml.ask("nvmlDeviceGetIndex(nvmlDeviceGetDeviceHandleFromMigDeviceHandle(one))") == 2
    assert nvml.ask("nvmlDeviceIsMigDeviceHandle(one).value, nvmlDeviceIsMigDeviceHandle(gpu(2)).value") == [1, 0]
    attributes = nvml.ask("nvmlDeviceGetAttributes(one)")
    assert (attributes["multiprocessorCount"], attributes["memorySizeMB"]) == (32, 20096)
    assert nvml.ask("nvmlDeviceGetMemoryInfo(one).total") == 20096 * 1024**2
    assert nvml.ask("nvmlDeviceGetGpuInstanceId(one)") == 5
    for code, error in (
        ("nvmlDeviceGetMigDeviceHandleByIndex(gpu(2), 3)", "NotFound"),
        ("nvmlDeviceGetTemperature(one, 0)", "NotSupported"),
        ("nvmlDeviceGetUtilizationRates(gpu(2))", "NotSupported"),
    ):
        with pytest.raises(NvmlError, match=error):
            nvml.ask(code)


def test_an_empty_machine_has_a_driver(start: Start) -> None:
    nvml = start("empty")
    assert nvml.ask("nvmlDeviceGetCount()") == 0
    assert nvml.ask("nvmlSystemGetDriverVersion()") == "570.172.08"
    with pytest.raises(NvmlError, match="NVMLError_InvalidArgument"):
        nvml.ask("nvmlDeviceGetHandleByIndex(0)")


NOT_SUPPORTED = NvmlError("NVMLError_NotSupported")
LOST = NvmlError("NVMLError_GpuIsLost")
FABRIC = (
    "(lambda info: (nvmlDeviceGetGpuFabricInfoV(gpu(1), byref(info)), [info.state, info.status])[1])(c_nvmlGpuFabricInfo_v3_t())"
)
PROCESSES = "[[item.pid, item.usedGpuMemory] for item in nvmlDeviceGetComputeRunningProcesses(gpu(1))]"
NAMES = "[nvmlDeviceGetPciInfo(gpu(index)).bus for index in range(nvmlDeviceGetCount())]"
BUSES = [0x18, 0x2A, 0x3A, 0x5D, 0x9A, 0xAB, 0xBA, 0xDB]
ECC = "nvmlDeviceGetTotalEccErrors(gpu(1), NVML_MEMORY_ERROR_TYPE_UNCORRECTED, {})"
DRAM = "nvmlDeviceGetMemoryErrorCounter(gpu(1), NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, NVML_MEMORY_LOCATION_DRAM)"
HISTOGRAM = "(lambda rows: [rows.max, rows.high, rows.none])(nvmlDeviceGetRowRemapperHistogram(gpu(1)))"
REASONS = "nvmlDeviceGetCurrentClocksEventReasons(gpu(1))"

# A fault on the second GPU, and what then differs: expression, before, after.
FAULTS: dict[str, list[tuple[str, Any, Any]]] = {
    "gpu_lost:1": [
        ("nvmlDeviceGetCount()", 8, 8),
        ("nvmlDeviceGetIndex(gpu(1))", 1, LOST),
        ("nvmlDeviceGetTemperature(kept, 0)", 30, LOST),
        ("field(kept, 91)", [[0, 18]], LOST),
        ("nvmlDeviceGetTemperature(gpu(2), 0)", 30, 30),
    ],
    "fallen_off_bus:1": [
        ("nvmlDeviceGetCount()", 8, 7),
        (NAMES, BUSES, [bus for bus in BUSES if bus != 0x2A]),
        ("nvmlDeviceGetMinorNumber(gpu(1))", 1, 2),
        ("nvmlDeviceGetTemperature(kept, 0)", 30, LOST),
    ],
    "wrong_count:6": [("nvmlDeviceGetCount()", 8, 6), (NAMES, BUSES, BUSES[:6])],
    "ecc_uncorrectable:1": [
        (ECC.format("NVML_VOLATILE_ECC"), 0, 2),
        (ECC.format("NVML_AGGREGATE_ECC"), 0, 2),
        (DRAM, 0, 2),
        ("field(gpu(1), 4)", [[0, 0]], [[0, 2]]),
    ],
    "ecc_off:1": [("nvmlDeviceGetEccMode(gpu(1))", [1, 1], [0, 0]), (ECC.format(0), 0, NOT_SUPPORTED), (DRAM, 0, NOT_SUPPORTED)],
    "ecc_pending:1": [("nvmlDeviceGetEccMode(gpu(1))", [1, 1], [1, 0])],
    "row_remap_pending:1": [
        ("nvmlDeviceGetRemappedRows(gpu(1))", [0, 0, 0, 0], [0, 1, 1, 0]),
        (HISTOGRAM, [2560, 0, 0], [2559, 1, 0]),
    ],
    "row_remap_failed:1": [("nvmlDeviceGetRemappedRows(gpu(1))", [0, 0, 0, 0], [0, 8, 0, 1])],
    "row_bank_none:1": [
        (HISTOGRAM, [2560, 0, 0], [2559, 0, 1]),
        ("nvmlDeviceGetRemappedRows(gpu(1))", [0, 0, 0, 0], [0, 8, 0, 0]),
    ],
    "retired_pages_pending:1": [
        ("nvmlDeviceGetRetiredPagesPendingStatus(gpu(1))", NOT_SUPPORTED, 1),
        ("nvmlDeviceGetRetiredPages(gpu(1), NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR)", NOT_SUPPORTED, [0x1A2B3]),
        ("nvmlDeviceGetRetiredPages_v2(gpu(1), 0)", NOT_SUPPORTED, []),
    ],
    "nvlink_down:1": [
        ("[nvmlDeviceGetNvLinkState(gpu(1), link) for link in range(18)]", [1] * 18, [1] * 5 + [0] + [1] * 12),
        ("nvmlDeviceGetNvLinkRemoteDeviceType(gpu(1), 5)", 2, NOT_SUPPORTED),
        ("nvmlDeviceGetNvLinkRemotePciInfo(gpu(1), 5).bus", 8, NOT_SUPPORTED),
        ("field(gpu(1), (164, 5), (165, 5))", [[0, 26562], [0, 1]], [[0, 0], [0, 0]]),
        ("nvmlDeviceGetNvLinkState(gpu(1), 18)", NvmlError("NVMLError_InvalidArgument"), NvmlError("NVMLError_InvalidArgument")),
    ],
    "nvlink_errors:1:3": [
        ("[nvmlDeviceGetNvLinkErrorCounter(gpu(1), 3, which) for which in range(3)]", [0, 0, 0], [61, 3, 1207]),
        ("nvmlDeviceGetNvLinkErrorCounter(gpu(1), 2, 0)", 0, 0),
    ],
    "pcie_downgraded:1": [("nvmlDeviceGetCurrPcieLinkWidth(gpu(1))", 16, 8), ("nvmlDeviceGetMaxPcieLinkWidth(gpu(1))", 16, 16)],
    "pcie_downgraded:1:generation": [
        ("nvmlDeviceGetCurrPcieLinkGeneration(gpu(1))", 5, 1),
        ("nvmlDeviceGetUtilizationRates(gpu(1)).gpu", 0, 97),
    ],
    "thermal_slowdown:1": [
        (REASONS, 0x1, 0x48),
        ("nvmlDeviceGetTemperature(gpu(1), 0)", 30, 89),
        ("nvmlDeviceGetClockInfo(gpu(1), NVML_CLOCK_SM)", 345, 990),
    ],
    "power_brake:1": [(REASONS, 0x1, 0x88), ("nvmlDeviceGetTemperature(gpu(1), 0)", 30, 30)],
    "hot:1": [("nvmlDeviceGetTemperature(gpu(1), 0)", 30, 88), (REASONS, 1, 1), ("field(gpu(1), 82)", [[0, 36]], [[0, 96]])],
    "fabric_not_ready:1": [(FABRIC, [3, 0], [2, 0])],
    "fabric_failed:1": [(FABRIC, [3, 0], [3, 999])],
    "no_persistence:1": [("nvmlDeviceGetPersistenceMode(gpu(1))", 1, 0)],
    "mig_on:1": [
        ("nvmlDeviceGetMigMode(gpu(1))", [0, 0], [1, 1]),
        ("nvmlDeviceGetMigDeviceHandleByIndex(gpu(1), 0)", NOT_SUPPORTED, NvmlError("NVMLError_NotFound")),
    ],
    "wrong_product:1": [
        ("nvmlDeviceGetName(gpu(1))", "NVIDIA H100 80GB HBM3", "NVIDIA A30"),
        ("nvmlDeviceGetPciInfo(gpu(1)).pciDeviceId", 0x233010DE, 0x20B710DE),
    ],
    "small_memory:1": [("nvmlDeviceGetMemoryInfo(gpu(1)).total // 1024**2", 81559, 40779)],
    "foreign_process:1:77": [
        (PROCESSES, [], [[77, 32 * 10**9]]),
        ("nvmlSystemGetProcessName(77)", NvmlError("NVMLError_NotFound"), "python3"),
    ],
    "slow_power_limit:1": [
        ("nvmlDeviceGetPowerManagementLimit(gpu(1))", 700000, 200000),
        ("nvmlDeviceGetEnforcedPowerLimit(gpu(1))", 700000, 200000),
        ("nvmlDeviceGetPowerManagementDefaultLimit(gpu(1))", 700000, 700000),
    ],
    "recovery_reset:1": [("field(gpu(1), NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)", [[0, 0]], [[0, 1]])],
    "recovery_reboot:1": [("field(gpu(1), NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)", [[0, 0]], [[0, 2]])],
}  # fmt: skip
NOT_BY_VALUE = {"driver_mismatch", "driver_not_loaded", "hang", "hang_init"}


def test_every_fault_has_a_test() -> None:
    assert {text.partition(":")[0] for text in FAULTS} | NOT_BY_VALUE == set(machines.FAULTS)
    assert all(known.description for known in machines.FAULTS.values())


def expect(nvml: Client, code: str, expected: Any) -> None:
    if isinstance(expected, NvmlError):
        with pytest.raises(NvmlError, match=str(expected)):
            nvml.ask(code)
    else:
        assert nvml.ask(code) == expected, code


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_shows_in_a_running_process_and_goes_again(start: Start, fault: str) -> None:
    nvml = start("hgx_h100")
    nvml.ask("kept = gpu(1)")
    for faults, column in (((), 1), ((fault,), 2), ((), 1)):
        nvml.machine("hgx_h100", *faults)
        for row in FAULTS[fault]:
            expect(nvml, row[0], row[column])


def test_a_fault_can_be_appended(start: Start) -> None:
    nvml = start("pcie_l4")
    with nvml.state.open("a", encoding="utf-8") as file:
        file.write("device.0.temperature.gpu !19\n")
    expect(nvml, "nvmlDeviceGetTemperature(gpu(0), 0)", NvmlError("NVMLError_InUse"))
    with nvml.state.open("a", encoding="utf-8") as file:
        file.write("device.0.temperature.gpu 44\n")
    expect(nvml, "nvmlDeviceGetTemperature(gpu(0), 0)", 44)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("driver_mismatch", "NVMLError_LibRmVersionMismatch"), ("driver_not_loaded", "NVMLError_DriverNotLoaded")],
)
def test_nvml_does_not_start(start: Start, fault: str, error: str) -> None:
    nvml = start("hgx_h100", fault, init=False)
    expect(nvml, "nvmlInit()", NvmlError(error))
    expect(nvml, "nvmlDeviceGetCount()", NvmlError("NVMLError_Uninitialized"))


def test_without_a_state_file_no_driver_is_loaded(start: Start) -> None:
    nvml = start(None, init=False)
    expect(nvml, "nvmlInit()", NvmlError("NVMLError_DriverNotLoaded"))


def test_nothing_is_said_after_the_shutdown(start: Start) -> None:
    nvml = start("pcie_l4")
    nvml.ask("kept = gpu(0)")
    nvml.ask("nvmlShutdown()")
    for code in ("nvmlDeviceGetName(kept)", "nvmlDeviceGetCount()", "nvmlShutdown()"):
        expect(nvml, code, NvmlError("NVMLError_Uninitialized"))


@pytest.mark.parametrize(
    ("fault", "answered", "hanging"),
    [
        ("hang:1", "nvmlDeviceGetTemperature(gpu(0), 0)", "nvmlDeviceGetTemperature(gpu(1), 0)"),
        ("hang:1:power.usage", "nvmlDeviceGetTemperature(gpu(1), 0)", "nvmlDeviceGetPowerUsage(gpu(1))"),
        ("hang:1:*", "nvmlDeviceGetCount()", "gpu(1)"),
        ("hang_init", "1", "nvmlInit()"),
    ],
)
def test_a_call_that_hangs_ends_with_its_process(start: Start, fault: str, answered: str, hanging: str) -> None:
    nvml = start("hgx_h100", fault, init=fault != "hang_init")
    nvml.ask(answered)
    with pytest.raises(TimeoutError):
        nvml.ask(hanging, timeout_seconds=1)
    assert nvml.process.wait(timeout=5) == -9


def test_a_call_that_hangs_holds_up_no_other_thread(start: Start) -> None:
    nvml = start("hgx_h100", "hang:1")
    nvml.ask("import threading")
    nvml.ask("threading.Thread(target=nvmlDeviceGetTemperature, args=(gpu(1), 0), daemon=True).start()")
    assert nvml.ask("nvmlDeviceGetTemperature(gpu(0), 0)", timeout_seconds=5) == 30


@pytest.mark.parametrize("number", [*range(1, 30), 999])
def test_errors_are_those_of_pynvml(start: Start, number: int) -> None:
    nvml = start("pcie_l4")
    nvml.ask(
        f"known = {{name: value for name, value in vars(pynvml).items() if name.startswith('NVML_ERROR_') and value == {number}}}"
    )
    (name,) = nvml.ask("list(known)")
    expected = NvmlError("NVMLError_" + name[len("NVML_ERROR_") :].title().replace("_", ""))
    text = machines.state("pcie_l4")
    for value in (f"!{number}", f"!{name}"):
        machines.write(nvml.state, f"{text}device.0.name {value}\n")
        expect(nvml, "nvmlDeviceGetName(gpu(0))", expected)


def test_a_value_that_is_no_number_is_an_error(start: Start) -> None:
    nvml = start("pcie_l4")
    machines.write(nvml.state, machines.state("pcie_l4") + "device.0.temperature.gpu warm\n")
    expect(nvml, "nvmlDeviceGetTemperature(gpu(0), 0)", NvmlError("NVMLError_Unknown"))


@pytest.mark.parametrize(
    ("machine", "fault", "message"),
    [
        ("hgx_b300", "", r"no machine 'hgx_b300'; there are dgx_a100, empty, hgx_h100,"),
        ("hgx_h100", "gpu_gone", r"no fault 'gpu_gone'; there are gpu_lost, fallen_off_bus,"),
        ("hgx_h100", "gpu_lost:8", r"gpu_lost:8: hgx_h100 has 8 GPUs"),
        ("empty", "gpu_lost", r"empty has 0 GPUs"),
        ("empty", "hot:all", r"empty has 0 GPUs"),
        ("hgx_h100", "gpu_lost:first", r"the form is gpu_lost:GPU"),
        ("hgx_h100", "gpu_lost:1:2", r"the form is gpu_lost:GPU"),
        ("hgx_h100", "driver_mismatch:1", r"driver_mismatch is about the host"),
        ("hgx_h100", "nvlink_down:0:18", r"links 0 to 17, and no 18"),
        ("pcie_l4", "nvlink_down", r"GPU 0 of pcie_l4 has no nvlink.count"),
        ("dgx_a100", "fabric_failed", r"GPU 0 of dgx_a100 has no fabric.state"),
        ("hgx_h100", "pcie_downgraded:0:speed", r"no 'speed'"),
    ],
)
def test_what_there_is_not_is_refused(machine: str, fault: str, message: str) -> None:
    with pytest.raises(machines.MachineError, match=message):
        machines.state(machine, [fault] if fault else [])


def test_hosts_have_serial_numbers_of_their_own() -> None:
    def serials(host: str) -> set[str]:
        return {
            line.split()[1] for line in machines.state("hgx_h100", host=host).splitlines() if line.split()[0].endswith("serial")
        }

    assert serials("gpu1") == serials("gpu1")
    assert len(serials("gpu1") | serials("gpu2")) == 16


def test_faults_of_all_gpus_and_several_faults(start: Start) -> None:
    nvml = start("hgx_h200", "no_persistence:all", "fallen_off_bus:2", "fallen_off_bus:4")
    assert nvml.ask("[nvmlDeviceGetPersistenceMode(gpu(index)) for index in range(nvmlDeviceGetCount())]") == [0] * 6
    assert nvml.ask("[nvmlDeviceGetMinorNumber(gpu(index)) for index in range(6)]") == [0, 1, 3, 5, 6, 7]


def test_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(FIXTURE / "machines.py"), *arguments], capture_output=True, text=True, check=False
        )

    output = tmp_path / "new" / "state"
    assert run("pcie_l4", "--fault", "hot", "--host", "gpu1", "--output", str(output)).returncode == 0
    assert output.read_text(encoding="utf-8") == machines.state("pcie_l4", ["hot"], host="gpu1")
    assert [path.name for path in output.parent.iterdir()] == ["state"]
    assert run("pcie_l4").stdout == machines.state("pcie_l4")
    listed = run("--list").stdout
    assert all(name in listed for name in [*machines.names(), *machines.FAULTS])
    refused = run("nothing")
    assert refused.returncode == 1
    assert "There is no machine 'nothing'" in refused.stderr
