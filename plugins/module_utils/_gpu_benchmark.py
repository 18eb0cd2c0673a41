# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the probe apart from Ansible, and turns what it printed into verdicts.

A test that was asked for and of which nothing was heard is NOT_RUN; what was measured without a known floor is WARN, never
PASS; and nothing that was measured on the processor speaks for a GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import _gpu_probe
from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, PASS, SKIPPED, WARN, Check

RUNS = Path("/run/onprem/gpu-benchmark")
PROBE_PYTHON = "/opt/onprem/gpu-probe/bin/python"
RUN = re.compile(r"run-[A-Za-z0-9_]+")
# The probe ends itself this long after its deadline; later it is ended.
GRACE_SECONDS = 45
CORRUPTION = "silent corruption: take out of service"
# Reasons for lower clocks that no healthy host has under load (nvml.h, nvmlClocksEventReasons); a power cap is ordinary.
HARMFUL_CLOCK_REASONS = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
ACTIONS = {
    "memory_bandwidth": "compare the memory clock and the ECC counters with those of a sibling; replace the GPU if it stays slow",
    "host_to_device_bandwidth": "compare PCIe generation and width with their maximum; reseat the GPU or its riser",
    "device_to_host_bandwidth": "compare PCIe generation and width with their maximum; reseat the GPU or its riser",
    "peer_to_peer_bandwidth": "look at the NVLink states and error counters of both GPUs and at the fabric manager",
    "all_reduce_bus_bandwidth": "look at the NVLink states, the fabric manager and NCCL's topology (NCCL_DEBUG=INFO)",
    "all_gather_bus_bandwidth": "look at the NVLink states, the fabric manager and NCCL's topology (NCCL_DEBUG=INFO)",
    "send_recv_bandwidth": "look at the NVLink states, the fabric manager and NCCL's topology (NCCL_DEBUG=INFO)",
}
MATMUL_ACTION = "look at clocks, temperature and power limit under load; replace the GPU if it stays slow"
MEASURE_AGAIN = "repair the measurement: no device is faster than its physics"


class GpuBenchmarkError(Exception):
    """A benchmark that cannot be started or looked at."""


def action_for(name: str) -> str:
    base = name.replace("_hosts", "")
    return ACTIONS.get(base, MATMUL_ACTION if "matmul" in base else "look at the host's log, then run the test again")


def against(name: str, subject: str, value: Any, unit: str, figure: Mapping[str, Any] | None, note: str = "") -> Check:
    """A measured rate against its figure: a floor makes PASS or FAIL, and nothing beyond the peak is believed."""
    check = Check(name, FAIL, subject, value, None, unit)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        check.message, check.action = f"{value!r} is no measurement", MEASURE_AGAIN
        return check
    check.measured = float(f"{value:.5g}")
    check.message = f"{value:.4g} {unit}{note}"
    if not figure:
        check.verdict = WARN
        check.message += f"; no floor known for {name} of this GPU"
        check.action = "give the floor in figures"
        return check
    if figure.get("unit") != unit:
        check.message += f"; the figure of {name} is in {figure.get('unit')!r}, not in {unit}"
        check.action = "repair the figures"
        return check
    peak, floor = figure.get("peak"), figure.get("floor")
    if peak:
        check.message += f", {100 * value / peak:.0f} % of the peak {peak:g}"
        if value > peak:
            check.expected, check.source = peak, str(figure.get("peak_source", ""))
            check.message += ": implausible measurement"
            check.action = MEASURE_AGAIN
            return check
    if floor is None:
        check.verdict = WARN
        check.message += f"; no floor known for {name} of this GPU"
        check.action = "give the floor in figures"
        return check
    check.expected = floor
    check.source = str(figure.get("floor_source") or figure.get("source") or figure.get("peak_source") or "")
    if value < floor:
        check.message += f", under the floor {floor:g}"
        check.action = action_for(name)
    else:
        check.verdict = PASS
    return check


class Judge:
    """All events of one run, and the verdict on each test that was asked for."""

    def __init__(
        self,
        events: Iterable[Mapping[str, Any]],
        tests: Iterable[str],
        figures: Mapping[str, Any] | None = None,
        products: Mapping[str, Mapping[str, Any]] | None = None,
        expect_gpus: int | None = None,
        drop_percent: float = 10.0,
        ended: str = "",
    ) -> None:
        self.events = list(events)
        self.tests = list(tests)
        self.figures, self.products = figures, products or {}
        self.expect_gpus, self.drop_percent, self.ended = expect_gpus, drop_percent, ended
        found = [event for event in self.events if event["event"] == "devices"]
        self.look = found[-1] if found else None
        self.devices: list[Mapping[str, Any]] = list(self.look["devices"]) if self.look else []
        self.of_cpu = any(event["event"] == "start" and event.get("backend") == "numpy" for event in self.events) or any(
            event.get("backend") == "cpu" for event in self.events
        )

    def checks(self) -> list[Check]:
        found = [*self.devices_checks()]
        for name in self.tests:
            found += self.of_test(name)
        if "determinism" in self.tests:
            found += [self.judged(event) for event in self.said("result", "equal_results")]
        return self.marked(found) if self.of_cpu else found

    @staticmethod
    def marked(found: list[Check]) -> list[Check]:
        """What a processor measured is told, and validates nothing."""
        for check in found:
            right = check.name in ("determinism", "equal_results", "memory_pattern")
            if check.verdict in (PASS, WARN) or (check.verdict == FAIL and not right):
                check.verdict = SKIPPED
                check.message += "; measured on the processor, which says nothing about a GPU"
                check.action = ""
        why = "the backend numpy measures the processor: no GPU was tested"
        return [Check("gpu_tested", NOT_RUN, message=why, action="run it with the backend cupy"), *found]

    def said(self, kind: str, name: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] == kind and event.get("name") == name]

    def devices_checks(self) -> Iterable[Check]:
        problems = self.said("error", "devices")
        for event in problems:
            yield Check("devices", NOT_RUN, event["subject"], message=event["reason"], action=self.advice(event["reason"]))
        if self.look is None and not problems:
            reason = self.ended or "the probe said nothing of the devices"
            yield Check("devices", NOT_RUN, message=reason, action="look at the probe's messages, then run it again")
        number = len(self.devices)
        if self.expect_gpus is not None:
            verdict = PASS if number == self.expect_gpus else FAIL
            action = "" if verdict == PASS else "look for the missing GPU on the PCI bus and in the kernel log"
            message = f"{number} of {self.expect_gpus} GPUs"
            yield Check("gpu_count", verdict, "host", number, self.expect_gpus, "GPUs", "expect_gpus", action, message)

    @staticmethod
    def advice(reason: str) -> str:
        if "ModuleNotFoundError" in reason or "ImportError" in reason:
            return "make the probe's environment with the role gpu_probe (gpu_probe_device), or name another python"
        if "compute on it" in reason:
            return "stop what computes on the GPU, or set allow_busy: true"
        if "Driver" in reason or "NoDevice" in reason or "no GPU" in reason:
            return "install or load the driver (role nvidia_driver) and look for the GPU on the PCI bus"
        return "look at the kernel log, then run the test again"

    def figures_of(self, subject: str) -> Mapping[str, Any]:
        """Given for all GPUs, or those of the product that the subject's first GPU is."""
        if self.figures:
            return self.figures
        number = re.match(r"GPU (\d+)", subject)
        devices = [d for d in self.devices if number and d["index"] == int(number[1])] or self.devices
        if not devices:
            return {}
        device = devices[0]
        known = list(self.products.values())
        named = [product for product in known if product.get("name") == device.get("name")]
        alike = [product for product in known if device.get("pci_device_id") in product.get("pci_device_ids", ())]
        candidates = [product for product in named if product in alike] or (alike if len(alike) == 1 else named)
        return dict(candidates[0].get("figures", {})) if len(candidates) == 1 else {}

    def subjects(self, name: str) -> list[str]:
        """Whom a test has to have said something about."""
        if name in _gpu_probe.OVER_GPUS:
            if name != "peer_to_peer_bandwidth" or len(self.devices) < 2:
                return ["host"]
            indexes = [device["index"] for device in self.devices]
            return [f"GPU {one} -> GPU {other}" for one in indexes for other in indexes if one != other]
        return [str(device["subject"]) for device in self.devices] or ["host"]

    def of_test(self, name: str) -> list[Check]:
        wanted = self.subjects(name)
        results = self.said("result", name) + self.said("result", f"{name}_hosts")
        found = [self.judged(event) for event in results]
        found += [self.skipped(event) for event in self.said("skipped", name)]
        for event in self.said("error", name):
            found.append(Check(name, NOT_RUN, event["subject"], message=event["reason"], action=self.advice(event["reason"])))
        told = {check.subject for check in found}
        if (wanted == ["host"] and told) or "host" in told:
            return found
        before = {event["subject"]: event["reason"] for kind in ("devices", "open") for event in self.said("error", kind)}
        for subject in wanted:
            if subject not in told:
                reason = before.get(subject) or before.get("host") or self.ended or "nothing was heard of it"
                found.append(Check(name, NOT_RUN, subject, message=reason, action=self.advice(reason)))
        return found

    def skipped(self, event: Mapping[str, Any]) -> Check:
        name, subject, reason = event["name"], event["subject"], event["reason"]
        figure = self.figures_of(subject).get(name)
        if figure and figure.get("floor") and not event.get("single") and not self.of_cpu:
            message = f"{reason}; this GPU is known to have it, with a floor of {figure['floor']:g} {figure.get('unit')}"
            return Check(name, FAIL, subject, None, figure["floor"], figure.get("unit"), action=action_for(name), message=message)
        return Check(name, SKIPPED, subject, message=reason)

    def judged(self, event: Mapping[str, Any]) -> Check:
        name, subject, value, detail = event["name"], event["subject"], event["value"], event.get("detail") or {}
        if name in ("determinism", "equal_results", "memory_pattern"):
            return self.correctness(name, subject, value, detail)
        wrong = detail.get("wrong_elements")
        if wrong:
            message = f"{wrong} elements arrived wrong"
            return Check(name, FAIL, subject, wrong, 0, "wrong elements", action=CORRUPTION, message=message)
        figures = self.figures_of(subject)
        if name == "sustained_matmul":
            return self.sustained(subject, value, event["unit"], detail, figures)
        figure = figures.get(name)
        if name == "all_reduce_bus_bandwidth" and detail.get("gpus") != 8:
            figure = None  # the figure is that of eight
        return against(name, subject, value, event["unit"], figure)

    @staticmethod
    def correctness(name: str, subject: str, value: Any, detail: Mapping[str, Any]) -> Check:
        wrong = value + detail.get("exact_errors", 0)
        said = {
            "determinism": f"{detail.get('runs')} runs of one product gave {value + 1} results, "
            f"{detail.get('exact_errors')} elements of an exact one were wrong",
            "equal_results": f"{detail.get('compared')} equal GPUs computed the same product; this one's bits are "
            + ("not those of most of them" if value else "those of most of them"),
            "memory_pattern": f"{value} wrong words in {detail.get('passes')} passes over {detail.get('bytes')} bytes",
        }[name]
        looked = {"determinism": "runs", "equal_results": "compared", "memory_pattern": "passes"}[name]
        if not wrong and int(detail.get(looked) or 0) < (1 if name == "memory_pattern" else 2):
            return Check(name, NOT_RUN, subject, message="nothing was compared", action="run the test again")
        verdict = FAIL if wrong else PASS
        return Check(name, verdict, subject, wrong, 0, "mismatches", action=CORRUPTION if wrong else "", message=said)

    def sustained(self, subject: str, value: Any, unit: str, detail: Mapping[str, Any], figures: Mapping[str, Any]) -> Check:
        check = against("sustained_matmul", subject, value, unit, figures.get(f"matmul_{detail.get('type')}"))
        reasons = [text for bit, text in HARMFUL_CLOCK_REASONS.items() if int(detail.get("clock_reasons") or 0) & bit]
        ceiling = (figures.get("temperature") or {}).get("ceiling")
        warmest, drop = detail.get("maximum_temperature_c"), float(detail.get("drop_percent") or 0)
        problems = []
        if reasons:
            problems.append(f"its clocks were lowered: {', '.join(reasons)}")
        if ceiling is not None and warmest is not None and warmest > ceiling:
            problems.append(f"it became {warmest} C warm, and {ceiling} C is the limit")
        if drop > self.drop_percent:
            problems.append(f"it lost {drop:.0f} % from the first to the last quarter")
        check.message += f" ({detail.get('samples')} samples, least {float(detail.get('minimum') or 0):.4g}"
        check.message += f", at most {warmest} C)" if warmest is not None else ")"
        if problems:
            check.verdict = FAIL
            check.message += "; " + "; ".join(problems)
            check.action = "look at the cooling, the power supply and the power limit"
        elif not detail.get("watched_samples") and check.verdict == PASS:
            check.verdict = WARN
            check.message += f"; clocks and temperature were not watched: {detail.get('not_watched') or 'no NVML'}"
            check.action = "install nvidia-ml-py into the probe's environment"
        return check


class Run:
    """One run of the probe in its own session, with its files below a directory that only root reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def named(cls, name: str, root: Path = RUNS) -> Run:
        if not RUN.fullmatch(name) or not (root / name).is_dir():
            raise GpuBenchmarkError(f"There is no run {name!r} of the GPU benchmark on this host; it may have been rebooted.")
        return cls(root / name)

    @classmethod
    def start(cls, python: str, arguments: Mapping[str, Any], root: Path = RUNS) -> Run:
        try:
            root.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            root.mkdir(mode=0o700, exist_ok=True)
            root.chmod(0o700)
        except PermissionError as error:
            raise GpuBenchmarkError(f"{root} cannot be made: the GPU benchmark runs as root (become: true).") from error
        # The lock lives as long as the probe and its workers do: they inherit it.
        with open(root / "lock", "w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise GpuBenchmarkError(
                    "Another GPU benchmark runs on this host: wait for it, for two would measure each other."
                ) from error
            for left in root.glob("run-*"):
                shutil.rmtree(left, ignore_errors=True)
            run = cls(Path(tempfile.mkdtemp(prefix="run-", dir=root)))
            run.write("probe.py", source())
            run.write("arguments.json", json.dumps(arguments))
            with open(run.path / "events", "wb") as events, open(run.path / "messages", "wb") as messages:
                try:
                    child = subprocess.Popen(
                        [python, "-I", str(run.path / "probe.py"), str(run.path / "arguments.json")],
                        stdin=subprocess.DEVNULL,
                        stdout=events,
                        stderr=messages,
                        cwd="/",
                        start_new_session=True,
                        pass_fds=(lock.fileno(),),
                    )
                except OSError as error:
                    shutil.rmtree(run.path, ignore_errors=True)
                    raise GpuBenchmarkError(f"{python} cannot be run: {error.strerror}. Name another one in python.") from error
        born = started(child.pid)
        deadline = time.time() + float(arguments["deadline_seconds"]) + GRACE_SECONDS
        run.write("process.json", json.dumps({"process": child.pid, "born": born, "deadline": deadline}))
        return run

    def write(self, name: str, text: str) -> None:
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)

    def alive(self) -> bool:
        process = self.process()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process["process"], os.WNOHANG)  # where this is its parent, it must not stay a zombie
        return bool(process["born"]) and started(process["process"]) == process["born"]

    def process(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "process.json").read_text(encoding="utf-8")))

    def events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Whole lines from an offset on, and where the next look begins."""
        content = (self.path / "events").read_bytes()[offset:]
        whole = content[: content.rfind(b"\n") + 1]
        found = []
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # what a library printed
            if isinstance(event, dict) and "event" in event:
                found.append(event)
        return found, offset + len(whole)

    def wait(self, seconds: float) -> bool:
        """Wait until it ended, at most so long; whether it did. Beyond its deadline it is ended with its whole group."""
        end = time.monotonic() + seconds
        while self.alive():
            if time.time() > self.process()["deadline"]:
                self.kill()
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True

    def kill(self) -> None:
        process = self.process()
        if started(process["process"]) == process["born"]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process["process"], signal.SIGKILL)

    def ended(self) -> str:
        """Why nothing more is to be heard of it; empty where it came to its own end."""
        if any(event["event"] == "end" for event in self.events()[0]):
            return ""
        said = (self.path / "messages").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = f": {said[-1][:300]}" if said else ""
        return f"the probe did not come to its end{last}"

    def forget(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def source() -> str:
    """The probe's program, also from within the archive that Ansible sends."""
    loader: Any = _gpu_probe.__loader__
    return str(loader.get_source(_gpu_probe.__name__))


def started(process: int) -> str:
    """When a process began, in ticks since boot; empty where it is gone or a zombie. A number alone may be another's."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def default_python() -> str:
    return PROBE_PYTHON if os.access(PROBE_PYTHON, os.X_OK) else sys.executable
