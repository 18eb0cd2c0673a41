# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Active GPU tests, as a program of its own that runs in another interpreter than Ansible's.

    python -I _gpu_probe.py ARGUMENTS.json

It needs the standard library, and for a GPU cupy with CUDA's libraries (the role ``gpu_probe`` installs them). One process
for each GPU: a card that hangs or whose context is lost takes only its own tests with it. What was found is printed as lines of
JSON: ``start``, ``devices``, ``progress``, ``result``, ``skipped``, ``error`` and ``end``. Nothing is judged here.

The backend ``numpy`` measures the processor with the same logic, so that this logic can be run where no GPU is.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import hmac
import json
import os
import platform
import secrets
import select
import signal
import socket
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

Event = dict[str, Any]
Say = Callable[[Event], None]

# In the order in which they run. The sustained product is last of the quick ones: it can be cut short when time is scarce.
FOR_EACH_GPU = (
    "memory_bandwidth",
    "host_to_device_bandwidth",
    "device_to_host_bandwidth",
    "matmul_fp64",
    "matmul_fp32",
    "matmul_tf32",
    "matmul_bf16",
    "matmul_fp16",
    "matmul_fp8",
    "determinism",
)
OVER_GPUS = (
    "peer_to_peer_bandwidth",
    "all_reduce_bus_bandwidth",
    "all_gather_bus_bandwidth",
    "send_recv_bandwidth",
)
LONG = ("sustained_matmul", "memory_pattern")
TESTS = (*FOR_EACH_GPU, *OVER_GPUS, *LONG)
# The transfers share the host's memory and links: one GPU at a time, or they measure each other.
ALONE = ("host_to_device_bandwidth", "device_to_host_bandwidth")

# Seconds of measuring for each test, and what comes on top for starting it; together 60 s on eight GPUs (see planned()).
QUICK = {
    "memory_bandwidth": 1.5,
    "host_to_device_bandwidth": 0.3,
    "device_to_host_bandwidth": 0.3,
    "matmul_fp64": 1.0,
    "matmul_fp32": 1.0,
    "matmul_tf32": 1.0,
    "matmul_bf16": 1.0,
    "matmul_fp16": 1.0,
    "matmul_fp8": 1.0,
    "determinism": 1.0,
    "peer_to_peer_bandwidth": 0.1,
    "all_reduce_bus_bandwidth": 0.8,
    "all_gather_bus_bandwidth": 0.8,
    "send_recv_bandwidth": 0.8,
    "sustained_matmul": 8.0,
    "memory_pattern": 2.0,
}
QUICK_TESTS = tuple(name for name in TESTS if name not in ("matmul_fp32", "memory_pattern"))
QUICK_SECONDS = 60.0
START_SECONDS = 12.0
GROUP_START_SECONDS = 4.0
BATCH_START_SECONDS = {True: 0.2, False: 0.5}  # alone, all at once
SUSTAINED_LEAST_SECONDS = 3.0
# A burn-in measures this many times longer, and spends the rest of its time on these three.
BURN_IN_FACTOR = 3.0
BURN_IN_SHARES = {"sustained_matmul": 0.6, "memory_pattern": 0.3, "determinism": 0.1}
SAMPLE_SECONDS = 0.05
REPORT_SECONDS = 5.0
SEED = 20261125

KERNELS = r"""
extern "C" {
__device__ unsigned long long pattern(unsigned long long i, unsigned long long seed, int kind) {
    unsigned long long mixed = (i + seed) * 0x9e3779b97f4a7c15ull;
    mixed = (mixed ^ (mixed >> 31)) * 0xbf58476d1ce4e5b9ull;
    if (kind == 0) return 1ull << ((i + seed) & 63);
    if (kind == 1) return ~(1ull << ((i + seed) & 63));
    if (kind == 2) return i;
    return mixed ^ (mixed >> 29);
}
__global__ void copy(unsigned long long to, unsigned long long from, unsigned long long count) {
    float4* target = (float4*)to;
    const float4* source = (const float4*)from;
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count; i += step)
        target[i] = source[i];
}
__global__ void fill(unsigned long long to, unsigned long long count, unsigned long long seed, int kind) {
    unsigned long long* target = (unsigned long long*)to;
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count; i += step)
        target[i] = pattern(i, seed, kind);
}
__global__ void check(unsigned long long from, unsigned long long count, unsigned long long seed, int kind,
                      unsigned long long wrong) {
    const unsigned long long* source = (const unsigned long long*)from;
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count; i += step)
        if (source[i] != pattern(i, seed, kind)) atomicAdd((unsigned long long*)wrong, 1ull);
}
}
"""


class NotSupported(Exception):
    """A test that a device does not have; the message says why."""


class Product:
    """A matrix product that can be run again and again: what one run computes, and its result."""

    def __init__(self, kind: str, size: int, run: Callable[[], None], result: Callable[[], bytes]) -> None:
        self.kind, self.size, self.run, self.result = kind, size, run, result
        self.operations = 2 * size**3


# Backends ------------------------------------------------------------------------------------------------------------


class Numpy:
    """The processor. What is measured with it says nothing about a GPU."""

    name = "cpu"
    sustained_kind = "fp32"
    copy_bytes = 64 << 20
    product_size = {"fp64": 512, "fp32": 512}
    exact_size = 256

    def __init__(self) -> None:
        import numpy

        self.numpy = numpy

    def versions(self) -> dict[str, Any]:
        return {"python": platform.python_version(), "numpy": self.numpy.__version__}

    def devices(self) -> list[dict[str, Any]]:
        return [{"index": 0, "name": "processor", "subject": "CPU"}]

    def open(self, index: int) -> None:
        pass

    def release(self) -> None:
        pass

    def sound(self) -> None:
        """Raise where the device cannot be used any more."""

    def begin(self, run: Callable[[], None], times: int) -> Any:
        started = time.perf_counter()
        for _time in range(times):
            run()
        return time.perf_counter() - started

    def finish(self, begun: Any) -> float:
        return float(begun)

    def health(self) -> dict[str, Any]:
        return {}

    def copies(self) -> Iterator[tuple[str, int, Callable[[], None]]]:
        source = self.numpy.frombuffer(noise(self.copy_bytes), dtype=self.numpy.uint8)
        target = self.numpy.empty_like(source)
        yield "copyto", self.copy_bytes, lambda: self.numpy.copyto(target, source)

    def transfer(self, to_device: bool) -> tuple[int, Callable[[], None]]:
        raise NotSupported("the processor has no link to itself")

    def product(self, kind: str, size: int = 0) -> Product:
        if kind not in self.product_size:
            raise NotSupported(f"the backend numpy has no {kind}")
        size = size or self.product_size[kind]
        dtype = {"fp64": self.numpy.float64, "fp32": self.numpy.float32}[kind]
        numbers = self.numpy.random.default_rng(SEED)
        left, right = (numbers.uniform(-1, 1, (size, size)).astype(dtype) for _side in range(2))
        target = self.numpy.empty_like(left)
        return Product(kind, size, lambda: self.numpy.matmul(left, right, out=target), lambda: bytes(target.tobytes()))

    def exact_errors(self) -> int:
        """Elements of a product of small integers that are not what they have to be."""
        left, right, exact = integers(self.numpy, self.exact_size)
        return int((left @ right != exact).sum())

    def patterns(self, seconds: float, report: Callable[[str], None]) -> dict[str, Any]:
        numpy = self.numpy
        memory = numpy.empty(self.copy_bytes // 8, dtype=numpy.uint64)
        index = numpy.arange(memory.size, dtype=numpy.uint64)
        one, end, passes, wrong = numpy.uint64(1), time.monotonic() + seconds, 0, 0
        while not passes or time.monotonic() < end:
            walking = one << ((index + numpy.uint64(passes)) & numpy.uint64(63))
            for written in (walking, ~walking, index):
                memory[:] = written
                wrong += int((memory != written).sum())
            passes += 1
            report(f"{passes} passes, {wrong} wrong words")
        return {"wrong_words": wrong, "bytes": memory.nbytes, "passes": passes}

    def peers(self, devices: list[dict[str, Any]]) -> Any:
        raise NotSupported("processors are no peers")

    def collective(self, devices: list[dict[str, Any]], cluster: dict[str, Any] | None) -> Any:
        raise NotSupported("processors have no NCCL")


class Cuda:
    """A GPU through cupy: its bindings of the CUDA runtime, cuBLAS and NCCL, on plain allocations."""

    name = "cuda"
    sustained_kind = "bf16"
    # Far past any L2, and big enough that a start costs nothing.
    copy_bytes = 4 << 30
    transfer_bytes = 512 << 20
    peer_bytes = 512 << 20
    collective_bytes = 4 << 30
    product_size = {"fp64": 4096, "fp32": 8192, "tf32": 8192, "bf16": 8192, "fp16": 8192, "fp8": 8192}
    exact_size = 1024
    # cudaDataType_t, cublasComputeType_t and bytes of an element.
    types = {
        "fp64": (1, 70, 8),
        "fp32": (0, 68, 4),
        "tf32": (0, 77, 4),
        "bf16": (14, 68, 2),
        "fp16": (2, 68, 2),
        "fp8": (28, 68, 1),
    }
    # Compute capability from which on a type has its own arithmetic.
    capability = {"tf32": (8, 0), "bf16": (8, 0), "fp16": (7, 0), "fp8": (8, 9)}

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cupy
            import numpy

        self.cupy, self.numpy, self.runtime = cupy, numpy, cupy.cuda.runtime
        self.index = 0
        self.held: list[tuple[Callable[[int], Any], int]] = []
        self.stream: Any = None
        self.cublas: Any = None
        self.handle = 0
        self.module: Any = None
        self.nvml: Any = None
        self.nvml_handle: Any = None
        self.nvml_reason = ""

    def versions(self) -> dict[str, Any]:
        found = {"python": platform.python_version(), "cupy": self.cupy.__version__, "numpy": self.numpy.__version__}
        return {**found, "cuda_runtime": self.runtime.runtimeGetVersion(), "cuda_driver": self.runtime.driverGetVersion()}

    def devices(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for index in range(self.runtime.getDeviceCount()):
            properties = self.runtime.getDeviceProperties(index)
            name = properties["name"]
            bus = self.runtime.deviceGetPCIBusId(index)
            bus = (bus.decode() if isinstance(bus, bytes) else str(bus)).lower()
            found.append(
                {
                    "index": index,
                    "subject": f"GPU {index}",
                    "name": name.decode() if isinstance(name, bytes) else str(name),
                    "compute_capability": f"{properties['major']}.{properties['minor']}",
                    "memory_bytes": int(properties["totalGlobalMem"]),
                    "multiprocessors": int(properties["multiProcessorCount"]),
                    "pci_address": bus,
                    "pci_device_id": read(f"/sys/bus/pci/devices/{bus}/device").replace("0x", ""),
                }
            )
        processes = nvml_processes([device["pci_address"] for device in found])
        for device in found:
            device["processes"] = processes.get(device["pci_address"])
        return found

    def open(self, index: int) -> None:
        self.index = index
        self.properties = self.runtime.getDeviceProperties(index)
        bus = self.runtime.deviceGetPCIBusId(index)
        self.bus = (bus.decode() if isinstance(bus, bytes) else str(bus)).lower()
        near(self.bus)
        self.stream = self.use(index)
        self.open_nvml()
        self.runtime.free(self.runtime.malloc(1 << 20))

    def use(self, index: int) -> Any:
        """Make a device the current one, and give a stream of it."""
        self.cupy.cuda.Device(index).use()
        stream = self.cupy.cuda.Stream(non_blocking=True)
        stream.use()
        return stream

    def open_nvml(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml_handle = pynvml.nvmlDeviceGetHandleByPciBusId(self.bus.encode())
            self.nvml = pynvml
        except Exception as error:
            self.nvml_reason = f"NVML: {error}"

    def allocate(self, size: int) -> int:
        pointer = int(self.runtime.malloc(size))
        self.held.append((self.runtime.free, pointer))
        return pointer

    def release(self) -> None:
        while self.held:
            free, pointer = self.held.pop()
            free(pointer)

    def sound(self) -> None:
        # An error that sticks to the context comes back from here; one that does not is gone.
        self.runtime.deviceSynchronize()
        self.runtime.free(self.runtime.malloc(1 << 20))

    def begin(self, run: Callable[[], None], times: int) -> Any:
        start, end = self.runtime.eventCreate(), self.runtime.eventCreate()
        self.runtime.eventRecord(start, self.stream.ptr)
        for _time in range(times):
            run()
        self.runtime.eventRecord(end, self.stream.ptr)
        return start, end

    def finish(self, begun: Any) -> float:
        start, end = begun
        self.runtime.eventSynchronize(end)
        seconds = self.runtime.eventElapsedTime(start, end) / 1000
        self.runtime.eventDestroy(start)
        self.runtime.eventDestroy(end)
        return float(seconds)

    def health(self) -> dict[str, Any]:
        """Clocks, temperature, power and reasons for lower clocks; what NVML does not tell is absent."""
        if self.nvml is None:
            return {"reason": self.nvml_reason}
        nvml, handle = self.nvml, self.nvml_handle
        reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        questions: dict[str, Callable[[], Any]] = {
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, 0),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, 1),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, 2),
            "clock_reasons": lambda: reasons(handle),
        }
        found: dict[str, Any] = {}
        for name, ask in questions.items():
            try:
                found[name] = ask()
            except Exception as error:
                found.setdefault("reason", f"{name}: {error}")
        return found

    def kernel(self, name: str) -> Any:
        if self.module is None:
            self.module = self.cupy.RawModule(code=KERNELS)
        return self.module.get_function(name)

    def launch(self, kernel: Any, *arguments: Any) -> None:
        kernel((int(self.properties["multiProcessorCount"]) * 16,), (256,), arguments)

    def upload(self, pointer: int, content: Any) -> None:
        self.runtime.memcpy(pointer, content.ctypes.data, content.nbytes, self.runtime.memcpyHostToDevice)

    def download(self, pointer: int, size: int) -> Any:
        self.runtime.deviceSynchronize()
        content = self.numpy.empty(size, dtype=self.numpy.uint8)
        self.runtime.memcpy(content.ctypes.data, pointer, size, self.runtime.memcpyDeviceToHost)
        return content

    def noise_on_device(self, size: int) -> int:
        pointer = self.allocate(size)
        tile = self.numpy.frombuffer(noise(min(size, 64 << 20)), dtype=self.numpy.uint8)
        for offset in range(0, size, tile.nbytes):
            self.upload(pointer + offset, tile[: size - offset])
        return pointer

    def copies(self) -> Iterator[tuple[str, int, Callable[[], None]]]:
        size = min(self.copy_bytes, self.free_bytes() // 4) // 4096 * 4096
        source, target = self.noise_on_device(size), self.allocate(size)
        kind = self.runtime.memcpyDeviceToDevice
        yield "cudaMemcpy", size, lambda: self.runtime.memcpyAsync(target, source, size, kind, self.stream.ptr)
        kernel, number = self.kernel("copy"), self.numpy.uint64
        words = (number(target), number(source), number(size // 16))
        yield "kernel", size, lambda: self.launch(kernel, *words)

    def free_bytes(self) -> int:
        return int(self.runtime.memGetInfo()[0])

    def transfer(self, to_device: bool) -> tuple[int, Callable[[], None]]:
        size, stream = self.transfer_bytes, self.stream.ptr
        device = self.allocate(size)
        host = int(self.runtime.hostAlloc(size, self.runtime.hostAllocDefault))
        self.held.append((self.runtime.freeHost, host))
        ctypes.memset(host, 0x5A, size)  # every page is there before the clock runs
        if to_device:
            return size, lambda: self.runtime.memcpyAsync(device, host, size, self.runtime.memcpyHostToDevice, stream)
        return size, lambda: self.runtime.memcpyAsync(host, device, size, self.runtime.memcpyDeviceToHost, stream)

    def product(self, kind: str, size: int = 0) -> Product:
        wanted = self.capability.get(kind, (0, 0))
        have = (int(self.properties["major"]), int(self.properties["minor"]))
        if have < wanted:
            raise NotSupported(f"compute capability {have[0]}.{have[1]} has no {kind}; it takes {wanted[0]}.{wanted[1]}")
        size = size or self.product_size[kind]
        data_type, compute_type, width = self.types[kind]
        left, right = self.allocate(size * size * width), self.allocate(size * size * width)
        result_width = 2 if kind == "fp8" else width
        target = self.allocate(size * size * result_width)
        for pointer, seed in ((left, SEED), (right, SEED + 1)):
            self.upload(pointer, self.entries(kind, size * size, seed))
        if kind == "fp8":
            run = self.fp8_product(left, right, target, size)
        else:
            run = self.plain_product((left, data_type), (right, data_type), (target, data_type), compute_type, size)
        return Product(kind, size, run, lambda: bytes(self.download(target, size * size * result_width)))

    def entries(self, kind: str, count: int, seed: int) -> Any:
        """Random numbers of a type; a block of a prime length over and over, so that no two rows are equal."""
        numpy = self.numpy
        numbers = numpy.random.default_rng(seed)
        block = numbers.uniform(-1, 1, 1048573).astype(numpy.float64 if kind == "fp64" else numpy.float32)
        if kind == "bf16":
            block = (block.view(numpy.uint32) >> 16).astype(numpy.uint16)
        elif kind == "fp16":
            block = block.astype(numpy.float16)
        elif kind == "fp8":
            # Sign, an exponent of 2**-4 to 2**0, mantissa: never the two codes that are no number.
            sign, power, rest = (numbers.integers(0, top, block.size, dtype=numpy.uint8) for top in (2, 5, 8))
            block = (sign << 7 | (power + 3) << 3 | rest).astype(numpy.uint8)
        return numpy.resize(block, count)

    def blas(self) -> Any:
        if self.cublas is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from cupy_backends.cuda.libs import cublas
            self.cublas, self.handle = cublas, cublas.create()
        return self.cublas

    def plain_product(
        self, left: tuple[int, int], right: tuple[int, int], target: tuple[int, int], compute_type: int, size: int
    ) -> Callable[[], None]:
        cublas = self.blas()
        factor = self.numpy.float64 if compute_type == 70 else self.numpy.float32
        one, zero = self.numpy.ones(1, dtype=factor), self.numpy.zeros(1, dtype=factor)

        def run() -> None:
            cublas.gemmEx(
                self.handle, 1, 0, size, size, size, one.ctypes.data, *left, size, *right, size,
                zero.ctypes.data, *target, size, compute_type, -1,
            )  # fmt: skip

        return run

    def fp8_product(self, left: int, right: int, target: int, size: int) -> Callable[[], None]:
        self.blas()  # brings cuBLASLt into the process, from wherever cupy finds it
        workspace = self.allocate(LtProduct.workspace_bytes)
        product = LtProduct(cublas_lt(), size)
        self.held.append((lambda _pointer: product.close(), 0))
        return lambda: product.run(left, right, target, workspace, self.stream.ptr)

    def exact_errors(self) -> int:
        numpy, size = self.numpy, self.exact_size
        left, right, exact = integers(numpy, size)
        pointers = [self.allocate(left.nbytes) for _matrix in range(3)]
        # cuBLAS reads by columns and the first factor transposed: it sees the transposes of both, and computes exact's.
        for pointer, content in zip(pointers, (numpy.ascontiguousarray(right.T), left)):
            self.upload(pointer, content)
        self.plain_product((pointers[0], 0), (pointers[1], 0), (pointers[2], 0), 77 if self.has_tf32() else 68, size)()
        found = self.download(pointers[2], left.nbytes).view(numpy.float32).reshape(size, size)
        return int((found != exact).sum())

    def has_tf32(self) -> bool:
        return int(self.properties["major"]) >= 8

    def patterns(self, seconds: float, report: Callable[[str], None]) -> dict[str, Any]:
        numpy, number = self.numpy, self.numpy.uint64
        size = int(self.free_bytes() * 0.9) // 4096 * 4096
        memory, counter = self.allocate(size), self.allocate(8)
        self.upload(counter, numpy.zeros(1, dtype=numpy.uint64))
        fill, check = self.kernel("fill"), self.kernel("check")
        end, passes, wrong = time.monotonic() + seconds, 0, 0
        while not passes or time.monotonic() < end:
            for kind in range(4):
                words = (number(memory), number(size // 8), number(passes), numpy.int32(kind))
                self.launch(fill, *words)
                self.launch(check, *words, number(counter))
            wrong = int(self.download(counter, 8).view(numpy.uint64)[0])
            passes += 1
            report(f"{passes} passes, {wrong} wrong words")
        return {"wrong_words": wrong, "bytes": size, "passes": passes}

    def peers(self, devices: list[dict[str, Any]]) -> Peers:
        return Peers(self, devices)

    def collective(self, devices: list[dict[str, Any]], cluster: dict[str, Any] | None) -> Collective:
        return Collective(self, devices, cluster)


class LtProduct:
    """An fp8 (e4m3) product with a bf16 result through cuBLASLt's C interface, which has no binding in cupy.

    Numbers and layouts are those of cublasLt.h of CUDA 12 and 13.
    """

    workspace_bytes = 64 << 20
    TRANSPOSE_LEFT, FAST_ACCUMULATION, MAXIMUM_WORKSPACE = 3, 25, 1
    E4M3, BF16, FP32, COMPUTE_FP32 = 28, 14, 0, 68

    def __init__(self, library: Any, size: int) -> None:
        self.library, self.size = library, size
        self.handle, self.descriptor, self.input_layout, self.output_layout, self.preference = (
            ctypes.c_void_p() for _n in "12345"
        )
        self.describe()
        self.call("cublasLtCreate", ctypes.byref(self.handle))
        self.algorithm = self.choose()
        self.one, self.zero = ctypes.c_float(1), ctypes.c_float(0)

    def call(self, name: str, *arguments: Any) -> None:
        function = getattr(self.library, name)
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status == 15:  # CUBLAS_STATUS_NOT_SUPPORTED
            raise NotSupported(f"cuBLASLt has no such product on this GPU ({name})")
        if status:
            raise RuntimeError(f"{name} returned cuBLAS status {status}")

    def describe(self) -> None:
        """What is multiplied; needs no device."""
        size, stride, number = ctypes.c_uint64(self.size), ctypes.c_int64(self.size), ctypes.c_int
        self.call("cublasLtMatmulDescCreate", ctypes.byref(self.descriptor), number(self.COMPUTE_FP32), number(self.FP32))
        for attribute, value in ((self.TRANSPOSE_LEFT, ctypes.c_int32(1)), (self.FAST_ACCUMULATION, ctypes.c_int8(1))):
            self.set("cublasLtMatmulDescSetAttribute", self.descriptor, attribute, value)
        for layout, kind in ((self.input_layout, self.E4M3), (self.output_layout, self.BF16)):
            self.call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), number(kind), size, size, stride)
        self.call("cublasLtMatmulPreferenceCreate", ctypes.byref(self.preference))
        limit = ctypes.c_uint64(self.workspace_bytes)
        self.set("cublasLtMatmulPreferenceSetAttribute", self.preference, self.MAXIMUM_WORKSPACE, limit)

    def set(self, name: str, target: Any, attribute: int, value: Any) -> None:
        self.call(name, target, ctypes.c_int(attribute), ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))

    def choose(self) -> Any:
        # cublasLtMatmulHeuristicResult_t: 64 bytes of algorithm, a size, a status, a float and four reserved numbers.
        found, count = (ctypes.c_uint64 * 12)(), ctypes.c_int()
        layouts = (self.input_layout, self.input_layout, self.output_layout, self.output_layout)
        self.call(
            "cublasLtMatmulAlgoGetHeuristic", self.handle, self.descriptor, *layouts, self.preference, ctypes.c_int(1),
            ctypes.byref(found), ctypes.byref(count),
        )  # fmt: skip
        if count.value < 1:
            raise NotSupported("cuBLASLt offers no fp8 algorithm on this GPU")
        return found

    def run(self, left: int, right: int, target: int, workspace: int, stream: int) -> None:
        pointer = ctypes.c_void_p
        self.call(
            "cublasLtMatmul", self.handle, self.descriptor, ctypes.byref(self.one),
            pointer(left), self.input_layout, pointer(right), self.input_layout, ctypes.byref(self.zero),
            pointer(target), self.output_layout, pointer(target), self.output_layout,
            ctypes.byref(self.algorithm), pointer(workspace), ctypes.c_size_t(self.workspace_bytes), pointer(stream),
        )  # fmt: skip

    def close(self) -> None:
        self.call("cublasLtMatmulPreferenceDestroy", self.preference)
        for layout in (self.input_layout, self.output_layout):
            self.call("cublasLtMatrixLayoutDestroy", layout)
        self.call("cublasLtMatmulDescDestroy", self.descriptor)
        self.call("cublasLtDestroy", self.handle)


def cublas_lt() -> Any:
    problems = []
    for release in (13, 12):
        try:
            return ctypes.CDLL(f"libcublasLt.so.{release}")
        except OSError as error:
            problems.append(str(error))
    raise RuntimeError(f"cuBLASLt cannot be loaded: {'; '.join(problems)}")


class Peers:
    """Copies from GPU to GPU, several pairs at once as long as no GPU is in two of them."""

    def __init__(self, backend: Cuda, devices: list[dict[str, Any]]) -> None:
        self.backend, self.runtime = backend, backend.runtime
        self.size = backend.peer_bytes
        self.place: dict[int, tuple[Any, int, int, bytes]] = {}
        for device in devices:
            index = device["index"]
            stream = backend.use(index)
            source, target = backend.allocate(self.size), backend.allocate(self.size)
            tile = noise(1 << 20, SEED + index)
            content = backend.numpy.frombuffer(tile, dtype=backend.numpy.uint8)
            for offset in range(0, self.size, content.nbytes):
                backend.upload(source + offset, content)
            self.place[index] = (stream, source, target, tile)
        self.reachable = {
            (one, other): bool(self.runtime.deviceCanAccessPeer(one, other))
            for one in self.place
            for other in self.place
            if one != other
        }
        for (one, other), can in self.reachable.items():
            if can:
                backend.cupy.cuda.Device(one).use()
                try:
                    self.runtime.deviceEnablePeerAccess(other)
                except Exception as error:
                    if "AlreadyEnabled" not in str(error):
                        raise

    def measure(self, pairs: list[tuple[int, int]], seconds: float) -> Iterator[tuple[tuple[int, int], float, int]]:
        """Bytes per second of each pair, and how many of the bytes looked at arrived wrong."""
        self.start(pairs, 1)
        once = max(self.ended(self.start(pairs, 1)).values())
        times = max(2, int(seconds / 3 / max(once, 1e-6)))
        best = {pair: 0.0 for pair in pairs}
        for _sample in range(3):
            for pair, taken in self.ended(self.start(pairs, times)).items():
                best[pair] = max(best[pair], self.size * times / taken)
        for pair in pairs:
            yield pair, best[pair], self.wrong(*pair)

    def start(self, pairs: list[tuple[int, int]], times: int) -> dict[tuple[int, int], tuple[int, int]]:
        begun = {}
        for one, other in pairs:
            self.backend.cupy.cuda.Device(one).use()
            stream, source, target = self.place[one][0].ptr, self.place[one][1], self.place[other][2]
            start, end = self.runtime.eventCreate(), self.runtime.eventCreate()
            self.runtime.eventRecord(start, stream)
            for _time in range(times):
                self.runtime.memcpyPeerAsync(target, other, source, one, self.size, stream)
            self.runtime.eventRecord(end, stream)
            begun[one, other] = (start, end)
        return begun

    def ended(self, begun: dict[tuple[int, int], tuple[int, int]]) -> dict[tuple[int, int], float]:
        taken = {}
        for pair, events in begun.items():
            self.backend.cupy.cuda.Device(pair[0]).use()
            taken[pair] = self.backend.finish(events)
        return taken

    def wrong(self, one: int, other: int) -> int:
        self.backend.cupy.cuda.Device(other).use()
        tile, target = self.place[one][3], self.place[other][2]
        wrong = 0
        for offset in (0, self.size - len(tile)):
            found = self.backend.download(target + offset, len(tile))
            wrong += int((found != self.backend.numpy.frombuffer(tile, dtype=self.backend.numpy.uint8)).sum())
        return wrong


class Collective:
    """NCCL over the GPUs of this host, or with a cluster's layout over those of several."""

    FLOAT32, SUM = 7, 0

    def __init__(self, backend: Cuda, devices: list[dict[str, Any]], cluster: dict[str, Any] | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from cupy.cuda import nccl
        if not getattr(nccl, "available", True):
            raise RuntimeError("NCCL cannot be loaded: its wheel (nvidia-nccl-cu12, -cu13) is not in this environment")
        self.nccl, self.backend, self.runtime = nccl, backend, backend.runtime
        self.indexes = [device["index"] for device in devices]
        self.first, self.ranks, self.hosts = 0, len(self.indexes), 1
        if cluster:
            if len(self.indexes) != cluster["gpus_per_node"]:
                raise RuntimeError(f"this host has {len(self.indexes)} GPUs, the layout says {cluster['gpus_per_node']}")
            self.first, self.hosts = cluster["node"] * cluster["gpus_per_node"], cluster["nodes"]
            self.ranks = cluster["nodes"] * cluster["gpus_per_node"]
        if self.ranks < 2:
            raise NotSupported("one GPU has nobody to talk to")
        memory = min(device["memory_bytes"] for device in devices)
        self.size = min(backend.collective_bytes, memory // 8) // (4096 * self.ranks) * (4096 * self.ranks)
        self.streams, self.sources, self.targets = [], [], []
        for index in self.indexes:
            self.streams.append(backend.use(index))
            self.sources.append(backend.allocate(self.size))
            self.targets.append(backend.allocate(self.size))
        self.communicators = self.joined(cluster) if cluster else nccl.NcclCommunicator.initAll(self.indexes)

    def joined(self, cluster: dict[str, Any]) -> list[Any]:
        identity = rendezvous(cluster, lambda: list(self.nccl.get_unique_id()))
        made: dict[int, Any] = {}
        problems: list[str] = []

        def join(place: int) -> None:
            try:
                self.backend.cupy.cuda.Device(self.indexes[place]).use()
                made[place] = self.nccl.NcclCommunicator(self.ranks, tuple(identity), self.first + place)
            except Exception as error:
                problems.append(str(error))

        threads = [threading.Thread(target=join, args=(place,), daemon=True) for place in range(len(self.indexes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise RuntimeError(f"NCCL: {problems[0]}")
        return [made[place] for place in range(len(self.indexes))]

    def all_reduce(self, place: int, count: int) -> None:
        words = (self.sources[place], self.targets[place], count, self.FLOAT32, self.SUM)
        self.communicators[place].allReduce(*words, self.streams[place].ptr)

    def all_gather(self, place: int, count: int) -> None:
        words = (self.sources[place], self.targets[place], count // self.ranks, self.FLOAT32)
        self.communicators[place].allGather(*words, self.streams[place].ptr)

    def send_recv(self, place: int, count: int) -> None:
        """Around the ring: every rank sends to the next and receives from the one before."""
        rank, stream, link = self.first + place, self.streams[place].ptr, self.communicators[place]
        link.send(self.sources[place], count, self.FLOAT32, (rank + 1) % self.ranks, stream)
        link.recv(self.targets[place], count, self.FLOAT32, (rank - 1) % self.ranks, stream)

    def once(self, operation: Callable[[int, int], None], count: int) -> None:
        self.nccl.groupStart()
        for place in range(len(self.indexes)):
            operation(place, count)
        self.nccl.groupEnd()

    def seconds(self, operation: Callable[[int, int], None], times: int) -> float:
        events = []
        for index, stream in zip(self.indexes, self.streams):
            self.backend.cupy.cuda.Device(index).use()
            events.append((self.runtime.eventCreate(), self.runtime.eventCreate()))
            self.runtime.eventRecord(events[-1][0], stream.ptr)
        for _time in range(times):
            self.once(operation, self.size // 4)
        for index, stream, (_start, end) in zip(self.indexes, self.streams, events):
            self.backend.cupy.cuda.Device(index).use()
            self.runtime.eventRecord(end, stream.ptr)
        taken = []
        for index, pair in zip(self.indexes, events):
            self.backend.cupy.cuda.Device(index).use()
            taken.append(self.backend.finish(pair))
        return max(taken)

    def measure(self, name: str, seconds: float) -> dict[str, Any]:
        operation = {"all_reduce": self.all_reduce, "all_gather": self.all_gather, "send_recv": self.send_recv}[name]
        wrong = self.wrong(name, operation)
        self.seconds(operation, 2)
        # Over hosts the same number on each, or they would wait for each other for ever: not from the time taken here.
        times = max(5, int(seconds * 20))
        if self.hosts == 1:
            times = max(3, min(times, int(seconds / 2 / max(self.seconds(operation, 1), 1e-6))))
        best = max(self.size * times / self.seconds(operation, times) for _sample in range(2))
        return {
            "bus": best * bus_factor(name, self.ranks),
            "algorithm": best,
            "wrong_elements": wrong,
            "bytes": self.size,
            "gpus": self.ranks,
            "hosts": self.hosts,
            "nccl": self.nccl.get_version(),
        }

    def wrong(self, name: str, operation: Callable[[int, int], None]) -> int:
        """Elements of a small run that are not what they have to be; numbers small enough to be exact in any order."""
        numpy = self.backend.numpy
        count = 4096 * self.ranks
        base = numpy.arange(count, dtype=numpy.float32) % 1024
        for place, index in enumerate(self.indexes):
            self.backend.cupy.cuda.Device(index).use()
            self.backend.upload(self.sources[place], base + numpy.float32(self.first + place))
        self.once(operation, count)
        wrong = 0
        for place, index in enumerate(self.indexes):
            self.backend.cupy.cuda.Device(index).use()
            found = self.backend.download(self.targets[place], count * 4).view(numpy.float32)
            wrong += int((found != expected_elements(numpy, name, base, self.first + place, self.ranks)).sum())
        return wrong


def expected_elements(numpy: Any, name: str, base: Any, rank: int, ranks: int) -> Any:
    """What a rank must hold after an operation in which rank r gave base + r."""
    if name == "all_reduce":
        return base * ranks + numpy.float32(ranks * (ranks - 1) // 2)
    if name == "all_gather":
        part = base[: base.size // ranks]
        return numpy.concatenate([part + numpy.float32(other) for other in range(ranks)])
    return base + numpy.float32((rank - 1) % ranks)


def bus_factor(name: str, ranks: int) -> float:
    """From the rate that a caller sees to the rate on the busiest link, as nccl-tests defines it."""
    return {"all_reduce": 2 * (ranks - 1) / ranks, "all_gather": (ranks - 1) / ranks, "send_recv": 1.0}[name]


# Small helpers -------------------------------------------------------------------------------------------------------


def read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def noise(size: int, seed: int = SEED) -> bytes:
    """The same random bytes each time, without any package."""
    block = hashlib.shake_256(str(seed).encode()).digest(min(size, 1 << 20))
    return (block * (size // len(block) + 1))[:size]


def integers(numpy: Any, size: int) -> tuple[Any, Any, Any]:
    """Two matrices of small integers and their product: exact in float32, and in TF32, in whatever order it is summed."""
    numbers = numpy.random.default_rng(SEED)
    left, right = (numbers.integers(-2, 3, (size, size)).astype(numpy.float32) for _side in range(2))
    return left, right, left.astype(numpy.float64) @ right.astype(numpy.float64)


def near(bus: str) -> None:
    """Run on the processors beside a GPU, so that pinned memory lies beside it too."""
    chosen: set[int] = set()
    for part in read(f"/sys/bus/pci/devices/{bus}/local_cpulist").split(","):
        first, _dash, last = part.partition("-")
        if first.isdigit():
            chosen.update(range(int(first), int(last or first) + 1))
    chosen &= os.sched_getaffinity(0)
    if chosen:
        os.sched_setaffinity(0, chosen)


def nvml_processes(buses: list[str]) -> dict[str, list[int]]:
    """Who computes on each GPU already; a GPU that cannot be asked is absent."""
    found: dict[str, list[int]] = {}
    try:
        import pynvml

        pynvml.nvmlInit()
        for bus in buses:
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(bus.encode())
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            found[bus] = sorted(int(process.pid) for process in running if process.pid != os.getpid())
    except Exception:  # noqa: S110 - a question beside the tests; GPU info has NVML's own words
        pass
    return found


def rounds(indexes: list[int]) -> list[list[tuple[int, int]]]:
    """Every ordered pair once, in as few rounds as there can be with each GPU in one pair at a time."""
    places: list[int | None] = [*indexes, *([None] if len(indexes) % 2 else [])]
    half, found = len(places) // 2, []
    for _turn in range(len(places) - 1):
        pairs = [
            (one, other) for one, other in zip(places[:half], reversed(places[half:])) if one is not None and other is not None
        ]
        found += [pairs, [(other, one) for one, other in pairs]]
        places = [places[0], places[-1], *places[1:-1]]
    return [pairs for pairs in found if pairs]


def rate(backend: Any, run: Callable[[], None], amount: float, seconds: float) -> dict[str, Any]:
    """Amount per second: the best of several samples, each long enough that starting it costs nothing."""
    backend.finish(backend.begin(run, 1))  # the first run loads what the others use
    once = max(backend.finish(backend.begin(run, 1)), 1e-6)
    times = max(1, round(SAMPLE_SECONDS / once))
    found: list[float] = []
    end = time.monotonic() + seconds
    while len(found) < 3 or time.monotonic() < end:
        found.append(amount * times / backend.finish(backend.begin(run, times)))
    return {"best": max(found), "median": statistics.median(found), "samples": len(found), "repetitions": times}


def rendezvous(cluster: dict[str, Any], make: Callable[[], list[int]]) -> list[int]:
    """NCCL's unique id from the first host to all others; both sides prove that they know the run's token."""
    wait = float(cluster.get("wait_seconds", 60))
    address = (cluster["address"], int(cluster["port"]))
    token = str(cluster["token"]).encode()
    if cluster["node"] == 0:
        return serve(address, token, int(cluster["nodes"]), make(), wait)
    end = time.monotonic() + wait
    while True:
        try:
            with socket.create_connection(address, timeout=5) as link:
                return asked(link, token, int(cluster["node"]))
        except PermissionError:
            raise
        except (OSError, ValueError) as error:
            if time.monotonic() > end:
                raise RuntimeError(f"no id from {address[0]} port {address[1]} within {wait:.0f} s: {error}") from error
            time.sleep(0.5)


def proof(token: bytes, *parts: Any) -> str:
    return hmac.new(token, json.dumps(parts).encode(), "sha256").hexdigest()


def exchange(stream: Any, message: dict[str, Any] | None = None) -> dict[str, Any]:
    if message is not None:
        stream.write(json.dumps(message).encode() + b"\n")
        stream.flush()
    found = json.loads(stream.readline(65536) or b"null")
    if not isinstance(found, dict):
        raise ValueError("the other side said nothing")
    return found


def serve(address: tuple[str, int], token: bytes, nodes: int, identity: list[int], wait: float) -> list[int]:
    waiting = set(range(1, nodes))
    end = time.monotonic() + wait
    with socket.create_server(address, backlog=nodes) as door:
        while waiting:
            door.settimeout(max(0.1, end - time.monotonic()))
            try:
                link, _peer = door.accept()
            except (TimeoutError, socket.timeout) as error:
                missing = ", ".join(map(str, sorted(waiting)))
                raise RuntimeError(f"the hosts with the numbers {missing} did not come within {wait:.0f} s") from error
            with link, link.makefile("rwb") as stream:
                link.settimeout(5)
                try:
                    hello = exchange(stream)
                    mine = secrets.token_hex(16)
                    answer = exchange(stream, {"nonce": mine})
                    known = proof(token, "node", hello["node"], hello["nonce"], mine)
                    if not hmac.compare_digest(known, str(answer["proof"])):
                        continue
                    sealed = proof(token, "id", hello["nonce"], mine, identity)
                    stream.write(json.dumps({"id": identity, "proof": sealed}).encode() + b"\n")
                    stream.flush()
                    waiting.discard(hello["node"])
                except (OSError, ValueError, KeyError, TypeError):
                    continue
    return identity


def asked(link: socket.socket, token: bytes, node: int) -> list[int]:
    with link.makefile("rwb") as stream:
        mine = secrets.token_hex(16)
        theirs = str(exchange(stream, {"node": node, "nonce": mine})["nonce"])
        answer = exchange(stream, {"proof": proof(token, "node", node, mine, theirs)})
        identity = [int(number) for number in answer["id"]]
        if not hmac.compare_digest(proof(token, "id", mine, theirs, identity), str(answer["proof"])):
            raise PermissionError("the first host does not know this run's token")
        return identity


# Tests of one GPU ----------------------------------------------------------------------------------------------------


class Worker:
    """In a process of its own: opens one device (or all, for the tests over GPUs) and runs what it is told."""

    def __init__(self, backend: Any, subject: str, say: Say) -> None:
        self.backend, self.subject, self.say = backend, subject, say
        self.reported = 0.0

    def run(self, order: dict[str, Any]) -> None:
        test = order["test"]
        if test == "devices":
            self.say({"event": "devices", "devices": self.backend.devices(), "versions": self.backend.versions()})
        elif test == "open":
            self.backend.open(order["index"])
        elif test in OVER_GPUS:
            self.over_gpus(test, order)
        elif test.startswith("matmul_"):
            self.matmul(test, order)
        else:
            getattr(self, test)(order)

    def result(self, name: str, value: float, unit: str, detail: dict[str, Any], subject: str = "") -> None:
        found = {"event": "result", "name": name, "subject": subject or self.subject, "value": value, "unit": unit}
        self.say({**found, "backend": self.backend.name, "detail": detail})

    def report(self, what: str) -> None:
        if time.monotonic() - self.reported > REPORT_SECONDS:
            self.reported = time.monotonic()
            self.say({"event": "progress", "what": f"{self.subject}: {what}"})

    def memory_bandwidth(self, order: dict[str, Any]) -> None:
        found: dict[str, Any] = {}
        problems = {}
        for way, size, run in self.backend.copies():
            try:
                # Every byte is read once and written once.
                found[way] = rate(self.backend, run, 2 * size, order["seconds"] / 2)
                found[way]["bytes"] = size
            except Exception as error:
                self.backend.sound()
                problems[way] = explain(error)
        if not found:
            raise RuntimeError("; ".join(f"{way}: {problem}" for way, problem in problems.items()))
        best = max(found, key=lambda way: float(found[way]["best"]))
        self.result("memory_bandwidth", found[best]["best"] / 1e9, "GB/s", {"way": best, "ways": found, "problems": problems})

    def host_to_device_bandwidth(self, order: dict[str, Any]) -> None:
        self.transfer("host_to_device_bandwidth", True, order)

    def device_to_host_bandwidth(self, order: dict[str, Any]) -> None:
        self.transfer("device_to_host_bandwidth", False, order)

    def transfer(self, name: str, to_device: bool, order: dict[str, Any]) -> None:
        size, run = self.backend.transfer(to_device)
        found = rate(self.backend, run, size, order["seconds"])
        self.result(name, found["best"] / 1e9, "GB/s", {**found, "bytes": size})

    def matmul(self, test: str, order: dict[str, Any]) -> None:
        product = self.backend.product(test.replace("matmul_", ""))
        found = rate(self.backend, product.run, product.operations, order["seconds"])
        detail = {**found, "size": product.size, "best": found["best"] / 1e12, "median": found["median"] / 1e12}
        self.result(test, found["best"] / 1e12, "TFLOP/s", detail)

    def determinism(self, order: dict[str, Any]) -> None:
        product = self.backend.product(self.backend.sustained_kind)
        end, digests, runs = time.monotonic() + order["seconds"], set(), 0
        while runs < 2 or time.monotonic() < end:
            product.run()
            digests.add(hashlib.blake2b(product.result(), digest_size=16).hexdigest())
            runs += 1
            self.report(f"{runs} equal products" if len(digests) == 1 else f"{runs} products, {len(digests)} results")
        detail = {
            "runs": runs,
            "digests": sorted(digests)[:8],
            "type": product.kind,
            "size": product.size,
            "exact_errors": self.backend.exact_errors(),
        }
        self.result("determinism", len(digests) - 1, "differing results", detail)

    def sustained_matmul(self, order: dict[str, Any]) -> None:
        product = self.backend.product(self.backend.sustained_kind)
        once = max(self.backend.finish(self.backend.begin(product.run, 1)), 1e-6)
        once = max(self.backend.finish(self.backend.begin(product.run, 1)), once / 100)
        times = max(1, round(min(1.0, order["seconds"] / 8) / once))
        rates: list[float] = []
        samples: list[dict[str, Any]] = []
        end = time.monotonic() + order["seconds"]
        while len(rates) < 4 or time.monotonic() < end:
            begun = self.backend.begin(product.run, times)
            samples.append(self.backend.health())  # while it computes
            rates.append(product.operations * times / self.backend.finish(begun) / 1e12)
            warm = samples[-1].get("temperature_c")
            self.report(f"{rates[-1]:.1f} TFLOP/s" + (f", {warm} C" if warm is not None else ""))
        detail = {**steadiness(rates), **watched(samples), "type": product.kind, "size": product.size}
        self.result("sustained_matmul", statistics.median(rates), "TFLOP/s", detail)

    def memory_pattern(self, order: dict[str, Any]) -> None:
        found = self.backend.patterns(order["seconds"], self.report)
        self.result("memory_pattern", found["wrong_words"], "wrong words", found)

    def over_gpus(self, test: str, order: dict[str, Any]) -> None:
        devices, cluster = order["devices"], order.get("cluster")
        if test == "peer_to_peer_bandwidth":
            self.peer_to_peer(devices, order["seconds"])
            return
        name = test.replace("_bus_bandwidth", "").replace("_bandwidth", "")
        found = self.backend.collective(devices, cluster).measure(name, order["seconds"])
        subject = f"{found['gpus']} GPUs" + (f" on {found['hosts']} hosts" if found["hosts"] > 1 else "")
        self.result(test + ("_hosts" if found["hosts"] > 1 else ""), found["bus"] / 1e9, "GB/s", found, subject)

    def peer_to_peer(self, devices: list[dict[str, Any]], seconds: float) -> None:
        if len(devices) < 2:
            raise NotSupported("one GPU has no peer")
        peers = self.backend.peers(devices)
        for pairs in rounds([device["index"] for device in devices]):
            for one, other in pairs:
                if not peers.reachable[one, other]:
                    reason = "CUDA says that the one cannot reach the other's memory (cudaDeviceCanAccessPeer)"
                    found = {"event": "skipped", "name": "peer_to_peer_bandwidth", "subject": f"GPU {one} -> GPU {other}"}
                    self.say({**found, "reason": reason, "backend": self.backend.name})
            ready = [pair for pair in pairs if peers.reachable[pair]]
            for (one, other), found_rate, wrong in peers.measure(ready, seconds) if ready else ():
                detail = {"bytes": peers.size, "wrong_elements": wrong}
                self.result("peer_to_peer_bandwidth", found_rate / 1e9, "GB/s", detail, f"GPU {one} -> GPU {other}")


def steadiness(rates: list[float]) -> dict[str, Any]:
    """How a rate went over the time: its least, and what its last quarter lost against its first."""
    quarter = max(1, len(rates) // 4)
    first, last = statistics.median(rates[:quarter]), statistics.median(rates[-quarter:])
    return {
        "minimum": min(rates),
        "median": statistics.median(rates),
        "first_quarter": first,
        "last_quarter": last,
        "drop_percent": 100 * (1 - last / first),
        "samples": len(rates),
    }


def watched(samples: list[dict[str, Any]]) -> dict[str, Any]:
    def values(name: str) -> list[float]:
        return [sample[name] for sample in samples if sample.get(name) is not None]

    reasons = 0
    for sample in samples:
        reasons |= int(sample.get("clock_reasons") or 0)
    known = [sample for sample in samples if sample.get("temperature_c") is not None and sample.get("clock_reasons") is not None]
    return {
        "watched_samples": len(known),
        "not_watched": next((sample["reason"] for sample in samples if sample.get("reason")), ""),
        "maximum_temperature_c": max(values("temperature_c"), default=None),
        "maximum_power_w": max(values("power_w"), default=None),
        "minimum_sm_clock_mhz": min(values("sm_clock_mhz"), default=None),
        "median_sm_clock_mhz": statistics.median(values("sm_clock_mhz")) if values("sm_clock_mhz") else None,
        "clock_reasons": reasons,
    }


def explain(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


# The conductor -------------------------------------------------------------------------------------------------------


class Child:
    """The conductor's side of a worker's process."""

    def __init__(self, backend: Callable[[], Any], subject: str, others: list[Child]) -> None:
        self.subject = subject
        self.lost, self.how = "", ""
        self.answer: Event | None = None
        order_read, self.orders = os.pipe()
        self.events, event_write = os.pipe()
        self.rest = b""
        self.process = os.fork()
        if not self.process:
            for other in others:  # or it would keep their pipes open beyond their death
                other.close()
            os.close(self.orders)
            os.close(self.events)
            work(backend, subject, order_read, event_write)
        os.close(order_read)
        os.close(event_write)

    def close(self) -> None:
        for number in (self.orders, self.events):
            os.close(number)

    def order(self, order: dict[str, Any]) -> None:
        # Where the pipe is broken, its events end as well, and that is where it is noticed.
        with contextlib.suppress(BrokenPipeError):
            os.write(self.orders, json.dumps(order).encode() + b"\n")

    def read(self) -> list[Event] | None:
        """What it said since; None when it is gone."""
        piece = os.read(self.events, 1 << 16)
        if not piece:
            return None
        *lines, self.rest = (self.rest + piece).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self, gone: bool = False) -> str:
        """End it; how it ended by itself, where it did."""
        if not self.how:
            status = self.reaped(2.0 if gone else 0.0)
            if status is None:
                os.kill(self.process, signal.SIGKILL)
                self.reaped(5.0)  # one that waits for a dead GPU in the kernel cannot be ended
                self.how = "it was ended"
            elif os.WIFSIGNALED(status):
                self.how = f"its process died of signal {os.WTERMSIG(status)}"
            else:
                self.how = f"its process ended with code {os.WEXITSTATUS(status)}"
        return self.how

    def reaped(self, seconds: float) -> int | None:
        end = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done or time.monotonic() > end:
                return status if done else None
            time.sleep(0.02)


def work(backend: Callable[[], Any], subject: str, orders: int, events: int) -> None:
    """The life of a worker's process; does not return."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it does not outlive the conductor
    signal.alarm(0)

    def say(event: Event) -> None:
        os.write(events, json.dumps(event).encode() + b"\n")

    made: Any = None
    with os.fdopen(orders, "rb") as stream:
        for line in stream:
            order = json.loads(line)
            try:
                made = made or backend()
                Worker(made, subject, say).run(order)
            except NotSupported as error:
                say({"event": "skipped", "reason": str(error), "single": "one GPU" in str(error)})
            except BaseException as error:
                say({"event": "error", "reason": explain(error), "lost": bool(order["test"] == "open" or made is None)})
            try:
                if made is not None:
                    made.release()
                    if order["test"] not in ("devices", *OVER_GPUS):
                        made.sound()
            except BaseException as error:
                say({"event": "error", "reason": explain(error), "lost": True, "late": True})
            say({"event": "done"})
    os._exit(0)


class Conductor:
    """Looks at the devices, gives each a process, and lets them run test after test."""

    # What a test that was begun before the deadline has beyond it.
    grace_seconds = 5.0

    def __init__(self, arguments: dict[str, Any], backend: Callable[[], Any], say: Say) -> None:
        self.arguments, self.backend, self.say_out = arguments, backend, say
        self.started = time.monotonic()
        self.burn_in = arguments.get("profile") == "burn_in"
        wanted = arguments.get("tests") or (TESTS if self.burn_in else QUICK_TESTS)
        self.tests = [name for name in TESTS if name in wanted]
        if self.burn_in:
            self.tests.sort(key=lambda name: (name in BURN_IN_SHARES, TESTS.index(name)))
        self.deadline = self.started + float(arguments.get("deadline_seconds") or 90)
        self.children: list[Child] = []
        self.group: Child | None = None
        self.devices: list[dict[str, Any]] = []
        self.digests: dict[str, list[str]] = {}
        self.done, self.total = 0, 1

    def say(self, event: Event) -> None:
        self.say_out(event)

    def run(self) -> None:
        try:
            if self.look():
                self.all_tests()
        finally:
            for child in [*self.children, *([self.group] if self.group else [])]:
                child.kill()
        self.say({"event": "end", "seconds": round(time.monotonic() - self.started, 1)})

    def progress(self, what: str) -> None:
        elapsed = round(time.monotonic() - self.started, 1)
        self.say({"event": "progress", "done": self.done, "total": self.total, "what": what, "seconds": elapsed})

    def look(self) -> bool:
        self.progress("looking at the devices")
        self.group = Child(self.backend, "host", [])
        self.batch([self.group], {"test": "devices"}, "devices", 40)
        found = self.group.answer
        if found is None:
            self.group.lost = self.group.lost or "the devices cannot be looked at"
            return False
        chosen = self.arguments.get("gpus")
        self.devices = [device for device in found["devices"] if chosen is None or device["index"] in chosen]
        self.say({"event": "devices", "devices": self.devices, "found": len(found["devices"]), "versions": found["versions"]})
        missing = [index for index in chosen or [] if index not in {device["index"] for device in self.devices}]
        for index in missing:
            self.say({"event": "error", "name": "devices", "subject": f"GPU {index}", "reason": "there is no such GPU"})
        if not self.devices:
            self.say({"event": "error", "name": "devices", "subject": "host", "reason": "no GPU was found"})
            return False
        return not self.busy()

    def busy(self) -> bool:
        if self.arguments.get("allow_busy"):
            return False
        held = False
        for device in self.devices:
            if "processes" in device and device["processes"] is None:
                held = True
                reason = "NVML does not tell what computes on it, so that it may be in use; allow_busy tests it all the same"
                self.say({"event": "error", "name": "devices", "subject": device["subject"], "reason": reason})
            elif device.get("processes"):
                held = True
                holders = ", ".join(map(str, device["processes"]))
                reason = f"processes {holders} compute on it: a test would disturb them, and they it; stop them first"
                self.say({"event": "error", "name": "devices", "subject": device["subject"], "reason": reason})
        return held

    def all_tests(self) -> None:
        self.total = 1 + sum(len(self.devices) if name in ALONE else 1 for name in self.tests)
        self.done = 1
        for device in self.devices:
            self.children.append(Child(self.backend, device["subject"], [*self.children, *([self.group] if self.group else [])]))
        for child, device in zip(self.children, self.devices):
            child.order({"test": "open", "index": device["index"]})
        self.progress("opening the devices")
        self.gather(self.children, "open", 60)
        rest = float(self.arguments.get("duration_seconds") or 3600)
        for place, name in enumerate(self.tests):
            seconds = self.seconds(name, self.tests[place:], rest)
            if name in OVER_GPUS:
                self.progress(name)
                self.over_gpus(name, seconds)
                self.done += 1
                continue
            for children in [[child] for child in self.children] if name in ALONE else [self.children]:
                self.progress(f"{name} on {children[0].subject}" if len(children) == 1 else name)
                self.batch(children, {"test": name, "seconds": seconds}, name, 3 * seconds + 30)
                self.done += 1
            if name == "determinism":
                self.compare()

    def seconds(self, name: str, coming: list[str], duration: float) -> float:
        if self.burn_in:
            if name not in BURN_IN_SHARES:
                return QUICK[name] * BURN_IN_FACTOR
            left = self.started + duration - time.monotonic()
            shares = sum(BURN_IN_SHARES[other] for other in coming if other in BURN_IN_SHARES)
            return max(QUICK[name], left * BURN_IN_SHARES[name] / shares)
        if name == "sustained_matmul":
            left = self.started + QUICK_SECONDS - time.monotonic() - 2
            return max(SUSTAINED_LEAST_SECONDS, min(QUICK[name], left))
        return QUICK[name]

    def over_gpus(self, name: str, seconds: float) -> None:
        cluster = self.arguments.get("cluster") if name != "peer_to_peer_bandwidth" else None
        if self.group is None or self.group.lost:
            # A collective that hung or broke says nothing against the next one.
            self.group = Child(self.backend, "host", self.children)
        devices = [device for device, child in zip(self.devices, self.children) if not child.lost]
        for device, child in zip(self.devices, self.children):
            if child.lost:
                reason = f"{device['subject']} was lost before: {child.lost}"
                self.say({"event": "error", "name": name, "subject": "host", "reason": reason})
        order = {"test": name, "seconds": seconds, "devices": devices, "cluster": cluster}
        self.batch([self.group], order, name, 3 * seconds * max(1, 2 * len(devices)) + 60)

    def compare(self) -> None:
        """Equal GPUs must have computed equal bits; where they differ, those that are few are suspected."""
        for name in sorted({device["name"] for device in self.devices}):
            found = {
                device["subject"]: self.digests[device["subject"]][0]
                for device in self.devices
                if device["name"] == name and len(self.digests.get(device["subject"], [])) == 1
            }
            if len(found) < 2:
                continue
            listed = list(found.values())
            common = statistics.mode(listed) if listed.count(statistics.mode(listed)) * 2 > len(listed) else ""
            for subject, digest in found.items():
                detail = {"digest": digest, "common": common, "compared": len(found)}
                result = {"event": "result", "name": "equal_results", "subject": subject, "value": int(digest != common)}
                self.say({**result, "unit": "differing results", "backend": "", "detail": detail})

    def batch(self, children: list[Child], order: dict[str, Any], name: str, limit: float) -> None:
        """Let children run a test at the same time."""
        if time.monotonic() > self.deadline:
            for child in children:
                self.refuse(child, name, "no time was left for it; raise deadline_seconds")
            return
        ready = []
        for child in children:
            if child.lost:
                self.refuse(child, name, f"not run after {child.lost}")
            else:
                child.order(order)
                ready.append(child)
        self.gather(ready, name, limit)

    def gather(self, children: list[Child], name: str, limit: float) -> None:
        begun = time.monotonic()
        end = min(begun + limit, self.deadline + self.grace_seconds)
        waiting = {child.events: child for child in children if not child.lost}
        while waiting:
            left = end - time.monotonic()
            ready = select.select(list(waiting), [], [], max(0, left))[0] if left > 0 else []
            if not ready:
                for child in waiting.values():
                    child.kill()
                    self.lose(child, name, f"it did not answer within {time.monotonic() - begun:.0f} s")
                return
            for number in ready:
                child = waiting[number]
                events = child.read()
                if events is None:
                    del waiting[number]
                    self.lose(child, name, child.kill(gone=True))
                    continue
                for event in events:
                    if event["event"] == "done":
                        waiting.pop(number, None)
                    else:
                        self.heard(child, name, event)

    def heard(self, child: Child, name: str, event: Event) -> None:
        if event["event"] == "devices":
            child.answer = event
            return
        if event["event"] == "progress":
            self.progress(f"{name}, {event['what']}")
            return
        if event["event"] == "error" and event.get("lost"):
            if event.get("late"):
                child.lost = child.lost or f"{name}, which left the device unusable ({event['reason']})"
                # Also where no other test follows that would be refused.
                reason = f"the device was unusable after it: {event['reason']}"
                self.say({"event": "error", "name": name, "subject": child.subject, "reason": reason})
            else:
                self.lose(child, name, event["reason"])
            return
        if event["event"] == "result" and event["name"] == "determinism":
            self.digests[event["subject"]] = event["detail"]["digests"]
        self.say({"name": name, "subject": child.subject, **event})

    def lose(self, child: Child, name: str, reason: str) -> None:
        child.lost = f"{name}: {reason}"
        self.say({"event": "error", "name": name, "subject": child.subject, "reason": reason})

    def refuse(self, child: Child, name: str, reason: str) -> None:
        self.say({"event": "error", "name": name, "subject": child.subject, "reason": reason})


def planned(gpus: int) -> float:
    """Seconds that the quick profile plans for, on that many GPUs."""
    total = START_SECONDS
    for name in QUICK_TESTS:
        if name == "peer_to_peer_bandwidth":
            total += GROUP_START_SECONDS + len(rounds(list(range(gpus)))) * (QUICK[name] + 0.05)
        elif name in OVER_GPUS:
            total += QUICK[name] + GROUP_START_SECONDS / 2
        else:
            alone = name in ALONE
            total += (gpus if alone else 1) * (QUICK[name] + BATCH_START_SECONDS[alone])
    return total


BACKENDS: dict[str, Callable[[], Any]] = {"cupy": Cuda, "numpy": Numpy}


def say_to(stream: Any) -> Say:
    def say(event: Event) -> None:
        stream.write(json.dumps(event) + "\n")
        stream.flush()

    return say


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as stream:
        arguments = json.load(stream)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ.setdefault("CUPY_CACHE_IN_MEMORY", "1")
    # Also when nobody is there any more to end it; the group's other processes die with this one.
    signal.alarm(int(float(arguments.get("deadline_seconds") or 90)) + 30)
    # What libraries print must not get between the lines.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    say = say_to(events)
    say(
        {
            "event": "start",
            "backend": arguments.get("backend", "cupy"),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    )
    Conductor(arguments, BACKENDS[arguments.get("backend", "cupy")], say).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
