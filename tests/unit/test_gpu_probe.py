# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.onprem.llm.plugins.action import gpu_benchmark as action
from ansible_collections.onprem.llm.plugins.module_utils import _gpu_benchmark as benchmark
from ansible_collections.onprem.llm.plugins.module_utils import _gpu_probe as probe
from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, PASS, SKIPPED, WARN, Check, overall
from ansible_collections.onprem.llm.plugins.modules import gpu_benchmark

CORRUPTION = "silent corruption: take out of service"


class Pretend:
    """Four equal GPUs without any arithmetic: what the conductor does with them is what is tested."""

    name = "cuda"
    sustained_kind = "bf16"
    count = 4

    def __init__(self) -> None:
        self.index = -1

    def versions(self) -> dict[str, Any]:
        return {"cupy": "0"}

    def devices(self) -> list[dict[str, Any]]:
        return [
            {"index": n, "subject": f"GPU {n}", "name": "NVIDIA Pretend", "pci_device_id": "2330", "processes": []}
            for n in range(self.count)
        ]

    def open(self, index: int) -> None:
        self.index = index

    def release(self) -> None:
        pass

    def sound(self) -> None:
        pass

    def begin(self, run: Callable[[], None], times: int) -> float:
        run()
        return 0.001 * times

    def finish(self, begun: float) -> float:
        return begun

    def health(self) -> dict[str, Any]:
        return {"temperature_c": 60 + self.index, "power_w": 500, "sm_clock_mhz": 1800, "clock_reasons": 4}

    def copies(self) -> Iterator[tuple[str, int, Callable[[], None]]]:
        yield "copy", 1_000_000_000, lambda: None

    def transfer(self, to_device: bool) -> tuple[int, Callable[[], None]]:
        return 50_000_000, lambda: None

    def product(self, kind: str, size: int = 0) -> probe.Product:
        if kind == "fp8":
            raise probe.NotSupported("compute capability 8.0 has no fp8; it takes 8.9")
        return probe.Product(kind, 1000, lambda: None, self.bits)

    def bits(self) -> bytes:
        return b"equal"

    def exact_errors(self) -> int:
        return 0

    def patterns(self, seconds: float, report: Callable[[str], None]) -> dict[str, Any]:
        report("1 pass")
        return {"wrong_words": 0, "bytes": 8, "passes": 1}

    def peers(self, devices: list[dict[str, Any]]) -> Any:
        class Reach:
            size = 100
            reachable = {(d["index"], e["index"]): True for d in devices for e in devices}

            def measure(self, pairs: list[tuple[int, int]], seconds: float) -> Iterator[tuple[tuple[int, int], float, int]]:
                for pair in pairs:
                    yield pair, 400e9, 0

        return Reach()

    def collective(self, devices: list[dict[str, Any]], cluster: dict[str, Any] | None) -> Any:
        ranks = len(devices)

        class Ring:
            def measure(self, name: str, seconds: float) -> dict[str, Any]:
                return {"bus": 470e9, "wrong_elements": 0, "gpus": ranks, "hosts": 1}

        return Ring()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "QUICK", dict.fromkeys(probe.QUICK, 0.01))
    monkeypatch.setattr(probe, "SAMPLE_SECONDS", 0.001)
    monkeypatch.setattr(probe, "SUSTAINED_LEAST_SECONDS", 0.01)
    monkeypatch.setattr(probe, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(probe.Conductor, "grace_seconds", 0.5)


def conduct(backend: Callable[[], Any], **arguments: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    probe.Conductor({"deadline_seconds": 20, **arguments}, backend, events.append).run()
    assert json.loads(json.dumps(events)) == events
    return events


def judge(events: list[dict[str, Any]], tests: Any = probe.QUICK_TESTS, **options: Any) -> dict[tuple[str, str], Check]:
    return {(check.name, check.subject): check for check in benchmark.Judge(events, tests, **options).checks()}


def figures(**more: Any) -> dict[str, Any]:
    return {
        "memory_bandwidth": {"unit": "GB/s", "peak": 3352, "floor": 1900, "floor_source": "somewhere"},
        "matmul_bf16": {"unit": "TFLOP/s", "peak": 989, "floor": 1.5},
        "temperature": {"unit": "C", "ceiling": 85},
        **more,
    }


# The conductor


def test_every_test_reports_on_every_gpu() -> None:
    events = conduct(Pretend)
    assert events[-1]["event"] == "end"
    found = judge(events, figures=figures(), expect_gpus=4)
    for name in probe.FOR_EACH_GPU:
        if name in probe.QUICK_TESTS:
            assert {subject for test, subject in found if test == name} == {f"GPU {n}" for n in range(4)}, name
    pairs = [key for key in found if key[0] == "peer_to_peer_bandwidth"]
    assert len(pairs) == 12
    assert found["memory_bandwidth", "GPU 3"].verdict == PASS
    assert found["memory_bandwidth", "GPU 3"].measured == 2000
    assert found["memory_bandwidth", "GPU 3"].source == "somewhere"
    assert found["matmul_fp8", "GPU 0"].verdict == SKIPPED
    assert found["determinism", "GPU 1"].verdict == found["equal_results", "GPU 1"].verdict == PASS
    assert found["sustained_matmul", "GPU 2"].verdict == PASS
    assert "62 C" in found["sustained_matmul", "GPU 2"].message
    assert found["gpu_count", "host"].verdict == PASS
    assert found["matmul_fp64", "GPU 0"].verdict == WARN  # no floor is known: nothing to pass
    assert overall(found.values()) == WARN


def test_progress_is_told_all_the_time() -> None:
    events = [event for event in conduct(Pretend, profile="burn_in", duration_seconds=1) if event["event"] == "progress"]
    assert all({"done", "total", "what", "seconds"} <= set(event) for event in events)
    told = " ".join(event["what"] for event in events)
    assert "sustained_matmul, GPU 3" in told
    assert "memory_pattern, GPU 0" in told
    assert [event["done"] for event in events] == sorted(event["done"] for event in events)
    assert events[-1]["done"] < events[-1]["total"]


def test_a_burn_in_spends_its_time_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    conductor = probe.Conductor({"profile": "burn_in", "duration_seconds": 1000}, Pretend, lambda event: None)
    coming = conductor.tests[-3:]
    assert set(coming) == set(probe.BURN_IN_SHARES)
    assert conductor.seconds("sustained_matmul", coming, 1000) == pytest.approx(600, abs=5)


def test_the_quick_profile_is_planned_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 30 < probe.planned(8) <= 60
    assert probe.planned(4) < probe.planned(8)
    late = probe.Conductor({}, Pretend, lambda event: None)
    late.started -= 54  # what is left decides how long the last test takes
    assert late.seconds("sustained_matmul", [], 0) == pytest.approx(4, abs=0.1)


class OneTestFails(Pretend):
    def transfer(self, to_device: bool) -> tuple[int, Callable[[], None]]:
        if self.index == 1 and to_device:
            raise RuntimeError("out of memory")
        return super().transfer(to_device)


def test_a_test_that_fails_stops_no_other() -> None:
    found = judge(conduct(OneTestFails))
    bad = {key for key, check in found.items() if check.verdict == NOT_RUN}
    assert bad == {("host_to_device_bandwidth", "GPU 1")}
    assert "out of memory" in found["host_to_device_bandwidth", "GPU 1"].message
    assert overall(found.values()) == FAIL


class Sticky(Pretend):
    broken = False

    def product(self, kind: str, size: int = 0) -> probe.Product:
        if self.index == 2 and kind == "fp64":
            self.broken = True
            raise RuntimeError("cudaErrorECCUncorrectable")
        return super().product(kind, size)

    def sound(self) -> None:
        if self.broken:
            raise RuntimeError("cudaErrorECCUncorrectable")


class Dies(Pretend):
    def product(self, kind: str, size: int = 0) -> probe.Product:
        if self.index == 2 and kind == "fp64":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().product(kind, size)


class Hangs(Pretend):
    def product(self, kind: str, size: int = 0) -> probe.Product:
        if self.index == 2 and kind == "fp64":
            time.sleep(60)
        return super().product(kind, size)


@pytest.mark.parametrize(("backend", "reason"), [(Sticky, "ECCUncorrectable"), (Dies, "died of signal 9")])
def test_a_lost_gpu_takes_only_its_own_tests_with_it(backend: type[Pretend], reason: str) -> None:
    found = judge(conduct(backend))
    names = [name for name in probe.QUICK_TESTS if name in probe.FOR_EACH_GPU or name in probe.LONG]
    after = names[names.index("matmul_fp64") :]
    for name in after:
        assert found[name, "GPU 2"].verdict == NOT_RUN, name
        assert reason in found[name, "GPU 2"].message
        assert found[name, "GPU 1"].verdict != NOT_RUN, name
    assert found["memory_bandwidth", "GPU 2"].verdict == WARN
    assert overall(found.values()) == FAIL


def test_a_gpu_that_hangs_meets_the_deadline() -> None:
    begun = time.monotonic()
    found = judge(conduct(Hangs, deadline_seconds=2))
    assert time.monotonic() - begun < 6
    assert "did not answer" in found["matmul_fp64", "GPU 2"].message
    assert found["matmul_fp64", "GPU 1"].verdict == WARN
    assert found["matmul_bf16", "GPU 1"].verdict == NOT_RUN
    assert "no time was left" in found["matmul_bf16", "GPU 1"].message


class Corrupts(Pretend):
    turn = 0

    def bits(self) -> bytes:
        self.turn += 1
        return b"equal" if self.index != 3 or self.turn % 2 else b"flips"


class Differs(Pretend):
    def bits(self) -> bytes:
        return b"equal" if self.index != 3 else b"other"


class Inexact(Pretend):
    def exact_errors(self) -> int:
        return int(self.index == 3)


@pytest.mark.parametrize(("backend", "name"), [(Corrupts, "determinism"), (Differs, "equal_results"), (Inexact, "determinism")])
def test_wrong_bits_take_a_gpu_out_of_service(backend: type[Pretend], name: str) -> None:
    found = judge(conduct(backend, tests=["determinism"]), ["determinism"])
    assert found[name, "GPU 3"].verdict == FAIL
    assert found[name, "GPU 3"].action == CORRUPTION
    assert {check.verdict for key, check in found.items() if key[1] != "GPU 3"} == {PASS}


class TwoThatDiffer(Pretend):
    count = 2

    def bits(self) -> bytes:
        return str(self.index).encode()


def test_of_two_that_differ_none_is_trusted() -> None:
    found = judge(conduct(TwoThatDiffer, tests=["determinism"]), ["determinism"])
    assert [found["equal_results", f"GPU {n}"].verdict for n in (0, 1)] == [FAIL, FAIL]


class SoundNoMore(Pretend):
    used = False

    def copies(self) -> Any:
        self.used = self.index == 2
        return super().copies()

    def sound(self) -> None:
        if self.used:
            raise RuntimeError("cudaErrorECCUncorrectable")


def test_a_gpu_that_is_unusable_after_its_last_test_has_not_passed() -> None:
    checks = benchmark.Judge(conduct(SoundNoMore, tests=["memory_bandwidth"]), ["memory_bandwidth"]).checks()
    (late,) = [check for check in checks if check.name == "memory_bandwidth" and check.verdict == NOT_RUN]
    assert late.subject == "GPU 2"
    assert "unusable after it" in late.message
    assert overall(checks) == FAIL


class Untold(Pretend):
    def devices(self) -> list[dict[str, Any]]:
        return [{**device, "processes": None} for device in super().devices()]


def test_a_gpu_of_which_nobody_knows_whether_it_is_in_use_is_left_alone() -> None:
    assert not [event for event in conduct(Untold) if event["event"] == "result"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"figures": {"memory_bandwidth": {"unit": "GB/s", "floor": 0}}}, "floor is 0"),
        ({"figures": {"memory_bandwidth": {"unit": "GB/s", "floor": "2800"}}}, "floor is '2800'"),
        ({"figures": {"memory_bandwidth": {"floor": 2800}}}, "has no unit"),
        ({"drop_percent": 0}, "drop_percent is 0"),
    ],
)
def test_a_bound_that_no_measurement_could_miss_is_refused(
    given: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch_module_args(given), pytest.raises(SystemExit):
        gpu_benchmark.main()
    answer = json.loads(capsys.readouterr().out)
    assert answer["failed"]
    assert said in answer["msg"]


class Busy(Pretend):
    def devices(self) -> list[dict[str, Any]]:
        return [{**device, "processes": [4711]} for device in super().devices()]


def test_a_gpu_in_use_is_left_alone() -> None:
    events = conduct(Busy)
    assert not [event for event in events if event["event"] == "result"]
    found = judge(events)
    assert {check.verdict for check in found.values()} == {NOT_RUN}
    assert "4711" in found["memory_bandwidth", "GPU 0"].message
    assert "allow_busy" in found["devices", "GPU 0"].action
    assert [event for event in conduct(Busy, allow_busy=True, tests=["determinism"]) if event["event"] == "result"]


class Empty(Pretend):
    count = 0


class Missing:
    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'cupy'")


@pytest.mark.parametrize("backend", [Empty, Missing])
def test_a_host_without_gpu_or_cupy_is_never_healthy(backend: Callable[[], Any]) -> None:
    events = conduct(backend)
    found = judge(events, figures=figures())
    assert {check.verdict for check in found.values()} == {NOT_RUN}
    assert {name for name, _subject in found} >= set(probe.QUICK_TESTS)
    assert overall(found.values()) == FAIL


def test_a_gpu_that_was_asked_for_and_is_not_there() -> None:
    found = judge(conduct(Pretend, gpus=[1, 7], tests=["memory_bandwidth"]), ["memory_bandwidth"], expect_gpus=2)
    assert found["memory_bandwidth", "GPU 1"].verdict == WARN
    assert found["devices", "GPU 7"].verdict == NOT_RUN
    assert found["gpu_count", "host"].verdict == FAIL


class Alone(Pretend):
    count = 1


def test_one_gpu_has_no_peers() -> None:
    found = judge(conduct(Alone, tests=["peer_to_peer_bandwidth"]), ["peer_to_peer_bandwidth"])
    assert [check.verdict for check in found.values()] == [SKIPPED]
    assert overall(found.values()) == FAIL  # nothing was looked at


class Unreachable(Pretend):
    def peers(self, devices: list[dict[str, Any]]) -> Any:
        found = super().peers(devices)
        found.reachable = {pair: pair != (0, 2) for pair in found.reachable}
        return found


def test_a_pair_that_cannot_reach_each_other() -> None:
    events, tests = conduct(Unreachable, tests=["peer_to_peer_bandwidth"]), ["peer_to_peer_bandwidth"]
    assert judge(events, tests)["peer_to_peer_bandwidth", "GPU 0 -> GPU 2"].verdict == SKIPPED
    known = figures(peer_to_peer_bandwidth={"unit": "GB/s", "peak": 450, "floor": 335})
    found = judge(events, tests, figures=known)
    assert found["peer_to_peer_bandwidth", "GPU 0 -> GPU 2"].verdict == FAIL  # NVLink is there, or should be
    assert found["peer_to_peer_bandwidth", "GPU 2 -> GPU 0"].verdict == PASS


@pytest.mark.parametrize("number", [2, 3, 4, 7, 8])
def test_a_gpu_is_in_one_pair_at_a_time(number: int) -> None:
    found = probe.rounds(list(range(number)))
    pairs = [pair for pairs in found for pair in pairs]
    assert len(pairs) == len(set(pairs)) == number * (number - 1)
    for together in found:
        busy = [gpu for pair in together for gpu in pair]
        assert len(busy) == len(set(busy))
    assert len(found) == 2 * (number - 1 if number % 2 == 0 else number)


# Measuring


class Clock(Pretend):
    """Each run takes as long as the test says."""

    def __init__(self, taken: list[float]) -> None:
        self.taken, self.runs = taken, 0

    def begin(self, run: Callable[[], None], times: int) -> float:
        self.runs += times
        return self.taken.pop(0) * times if len(self.taken) > 1 else self.taken[0] * times


def test_the_first_run_is_not_counted_and_the_best_sample_is() -> None:
    found = probe.rate(Clock([5.0, 0.1, 0.1, 0.05, 0.2, 0.1]), lambda: None, 1000, 0)
    assert (found["best"], found["median"], found["samples"], found["repetitions"]) == (20000, 10000, 3, 1)


def test_short_runs_are_measured_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SAMPLE_SECONDS", 0.05)
    found = probe.rate(Clock([0.001]), lambda: None, 10, 0)
    assert (found["repetitions"], found["best"]) == (50, pytest.approx(10000))


def test_what_a_rate_lost() -> None:
    found = probe.steadiness([100.0, 100, 100, 100, 90, 80, 80, 80])
    assert (found["minimum"], found["first_quarter"], found["last_quarter"]) == (80, 100, 80)
    assert found["drop_percent"] == pytest.approx(20)


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    assert probe.bus_factor("all_reduce", 8) == 1.75
    assert probe.bus_factor("all_gather", 8) == 0.875
    assert probe.bus_factor("send_recv", 8) == 1


# Verdicts


@pytest.mark.parametrize(
    ("value", "figure", "verdict", "said"),
    [
        (2900.0, {"unit": "GB/s", "floor": 2849, "peak": 3352}, PASS, "87 % of the peak"),
        (2849, {"unit": "GB/s", "floor": 2849, "peak": 3352}, PASS, ""),
        (2848, {"unit": "GB/s", "floor": 2849, "peak": 3352}, FAIL, "under the floor"),
        (3353, {"unit": "GB/s", "floor": 2849, "peak": 3352}, FAIL, "implausible"),
        (2900, {"unit": "GB/s", "peak": 3352}, WARN, "no floor known"),
        (2900, None, WARN, "no floor known"),
        (2900, {"unit": "MB/s", "floor": 1}, FAIL, "'MB/s', not in GB/s"),
        (0, {"unit": "GB/s", "floor": 1}, FAIL, "no measurement"),
        (float("nan"), {"unit": "GB/s", "floor": 1}, FAIL, "no measurement"),
        (float("inf"), None, FAIL, "no measurement"),
        ("2900", None, FAIL, "no measurement"),
    ],
)
def test_a_rate_against_its_figure(value: Any, figure: Any, verdict: str, said: str) -> None:
    check = benchmark.against("memory_bandwidth", "GPU 0", value, "GB/s", figure)
    assert check.verdict == verdict
    assert said in check.message
    assert bool(check.action) == (verdict != PASS)


def sustained(**detail: Any) -> Check:
    events = [
        {"event": "start", "backend": "cupy"},
        {"event": "devices", "devices": [{"index": 0, "subject": "GPU 0"}], "found": 1, "versions": {}},
        {
            "event": "result", "name": "sustained_matmul", "subject": "GPU 0", "value": 700, "unit": "TFLOP/s", "backend": "cuda",
            "detail": {
                "type": "bf16", "samples": 8, "minimum": 690, "drop_percent": 1, "maximum_temperature_c": 70,
                "watched_samples": 8, "clock_reasons": 4, **detail,
            },
        },
    ]  # fmt: skip
    return judge(events, ["sustained_matmul"], figures=figures())["sustained_matmul", "GPU 0"]


@pytest.mark.parametrize(
    ("detail", "verdict", "said"),
    [
        ({}, PASS, "at most 70 C"),
        ({"clock_reasons": 0x40}, FAIL, "hardware thermal slowdown"),
        ({"clock_reasons": 0x80 | 4}, FAIL, "power brake"),
        ({"maximum_temperature_c": 90}, FAIL, "85 C is the limit"),
        ({"drop_percent": 15}, FAIL, "lost 15 %"),
        ({"watched_samples": 0, "not_watched": "NVML: not found"}, WARN, "NVML: not found"),
    ],
)
def test_a_sustained_product_with_its_surroundings(detail: dict[str, Any], verdict: str, said: str) -> None:
    check = sustained(**detail)
    assert (check.verdict, said in check.message) == (verdict, True)


def test_a_gpu_is_judged_by_its_own_product() -> None:
    products = {
        "one": {"name": "NVIDIA One", "pci_device_ids": ["2330"], "figures": figures()},
        "other": {"name": "NVIDIA Other", "pci_device_ids": ["20b2"], "figures": {}},
    }
    found = judge(conduct(Pretend, tests=["memory_bandwidth"]), ["memory_bandwidth"], products=products)
    assert found["memory_bandwidth", "GPU 0"].verdict == PASS
    del products["one"]
    found = judge(conduct(Pretend, tests=["memory_bandwidth"]), ["memory_bandwidth"], products=products)
    assert found["memory_bandwidth", "GPU 0"].verdict == WARN


def test_elements_that_arrived_wrong_are_corruption() -> None:
    event = {"event": "result", "name": "all_reduce_bus_bandwidth", "subject": "8 GPUs", "value": 470, "unit": "GB/s"}
    check = benchmark.Judge([], []).judged({**event, "detail": {"gpus": 8, "wrong_elements": 3}})
    assert (check.verdict, check.action, check.measured) == (FAIL, CORRUPTION, 3)


def test_nothing_heard_is_not_run() -> None:
    found = judge([], ["memory_bandwidth"])
    assert {check.verdict for check in found.values()} == {NOT_RUN}
    assert overall(found.values()) == FAIL


# The rendezvous of hosts


def free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])


def layout(port: int, node: int, token: str = "secret", **more: Any) -> dict[str, Any]:
    found = {"node": node, "nodes": 3, "gpus_per_node": 8, "address": "127.0.0.1", "port": port, "token": token}
    return {**found, "wait_seconds": 5, **more}


def test_hosts_with_the_token_get_the_id() -> None:
    port, found = free_port(), {}
    identity = [-128, 0, 127] * 40 + [1] * 8

    def join(node: int) -> None:
        found[node] = probe.rendezvous(layout(port, node), lambda: identity)

    threads = [threading.Thread(target=join, args=(node,)) for node in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {0: identity, 1: identity, 2: identity}


def test_a_host_with_another_token_gets_nothing() -> None:
    port = free_port()
    problems = []

    def first() -> None:
        try:
            probe.rendezvous(layout(port, 0, nodes=2, wait_seconds=2), lambda: [1] * 128)
        except RuntimeError as error:
            problems.append(str(error))

    thread = threading.Thread(target=first)
    thread.start()
    with pytest.raises(RuntimeError, match="no id from 127"):
        probe.rendezvous(layout(port, 1, "guess", nodes=2, wait_seconds=1), lambda: [])
    thread.join(10)
    assert problems == ["the hosts with the numbers 1 did not come within 2 s"]


def test_a_first_host_with_another_token_is_not_believed() -> None:
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with theirs.makefile("rwb") as stream:
            probe.exchange(stream)
            probe.exchange(stream, {"nonce": "00"})
            stream.write(json.dumps({"id": [1] * 128, "proof": "00" * 32}).encode() + b"\n")

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(PermissionError, match="does not know this run's token"):
        probe.asked(ours, b"secret", 1)
    thread.join(10)


# A run on the host


PROGRAM = """
import json, os, sys, time
print(json.dumps({"event": "start", "backend": "cupy"}), flush=True)
arguments = json.load(open(sys.argv[1]))
if arguments.get("sleep"):
    if not os.fork():
        time.sleep(60)
    time.sleep(60)
print("a library's words")
sys.exit("the last words")
"""


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "source", lambda: PROGRAM)


def test_the_program_is_the_probe() -> None:
    compile(benchmark.source(), "probe", "exec")
    assert "class Conductor" in benchmark.source()


def test_a_probe_that_breaks_off_says_why(program: None, tmp_path: Path) -> None:
    run = benchmark.Run.start(sys.executable, {"deadline_seconds": 5}, tmp_path / "runs")
    assert (tmp_path / "runs").stat().st_mode & 0o777 == 0o700
    assert (run.path / "arguments.json").stat().st_mode & 0o777 == 0o600
    assert run.wait(10)
    events, offset = run.events()
    assert [event["event"] for event in events] == ["start"]
    assert run.events(offset)[0] == []
    assert "the last words" in run.ended()
    found = judge(events, ["determinism"], ended=run.ended())
    assert "the last words" in found["determinism", "host"].message
    run.forget()
    with pytest.raises(benchmark.GpuBenchmarkError, match="There is no run"):
        benchmark.Run.named(run.path.name, tmp_path / "runs")


def test_a_probe_beyond_its_deadline_is_ended_with_its_children(
    program: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "GRACE_SECONDS", 0)
    run = benchmark.Run.start(sys.executable, {"deadline_seconds": 1, "sleep": True}, tmp_path / "runs")
    with pytest.raises(benchmark.GpuBenchmarkError, match="Another GPU benchmark"):
        benchmark.Run.start(sys.executable, {"deadline_seconds": 1}, tmp_path / "runs")
    assert run.wait(20)
    end = time.monotonic() + 5
    while True:  # the lock is free as soon as the last of its children is gone
        try:
            benchmark.Run.start(sys.executable, {"deadline_seconds": 1}, tmp_path / "runs").wait(10)
            break
        except benchmark.GpuBenchmarkError:
            assert time.monotonic() < end, "a child of the probe is still there"
            time.sleep(0.1)


@pytest.mark.parametrize("name", ["../x", "run-../x", "", "lock", "run-none"])
def test_only_a_run_can_be_looked_at(name: str, tmp_path: Path) -> None:
    with pytest.raises(benchmark.GpuBenchmarkError, match="There is no run"):
        benchmark.Run.named(name, tmp_path)


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(benchmark.GpuBenchmarkError, match="/nowhere/python cannot be run"):
        benchmark.Run.start("/nowhere/python", {"deadline_seconds": 1}, tmp_path / "runs")


# What the controller adds


def test_floors_of_a_machine_a_product_or_whatever_is_found() -> None:
    found = action.floors({"machine": "hgx_h100"})
    assert found["expect_gpus"] == 8
    bandwidth = found["figures"]["memory_bandwidth"]
    assert (bandwidth["unit"], bandwidth["peak"] > bandwidth["floor"] > 0) == ("GB/s", True)
    assert " " in bandwidth["peak_source"]  # words for a report, not the data file's key
    assert "expect_gpus" not in action.floors({"machine": "hgx_h100", "gpus": [0]})
    assert "expect_gpus" not in action.floors({"machine": "hgx_h100", "expect_gpus": 4})
    assert action.floors({"product": "l4"})["figures"]["memory_bandwidth"]["peak"] < 1000
    own = {"memory_bandwidth": {"unit": "GB/s", "floor": 2900}}
    assert action.floors({"figures": own, "machine": "hgx_h100"}) == {"figures": own, "expect_gpus": 8}
    assert action.floors({"figures": own}) == {}
    products = action.floors({})["products"]
    assert products["l4"]["figures"] == action.floors({"product": "l4"})["figures"]


@pytest.mark.parametrize("arguments", [{"machine": "hgx_h1000"}, {"product": "h1000"}])
def test_a_machine_or_product_that_is_not_known(arguments: dict[str, str]) -> None:
    with pytest.raises(action.GpuDataError, match="known are"):
        action.floors(arguments)


# make test-gpu


@pytest.fixture
def runner() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_run", Path(__file__).parents[1] / "gpu" / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_machine_without_gpu_does_not_pass(runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert runner.gpus(tmp_path) == 0
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert runner.gpus(tmp_path) == 0
    (tmp_path / "dev/nvidia0").touch()
    assert runner.gpus(tmp_path) == 1
    monkeypatch.setattr(runner, "gpus", lambda: 0)
    assert runner.main([]) == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err
    assert runner.TESTS == probe.TESTS


def test_only_figures_of_a_gpu_count(runner: Any) -> None:
    event = {"name": "matmul_bf16", "subject": "GPU 0", "value": 790.0, "unit": "TFLOP/s", "backend": "cuda", "detail": {}}
    device = {"subject": "GPU 0", "name": "NVIDIA H100 80GB HBM3", "pci_device_id": "2330"}
    benchmark = {"verdict": "PASS", "summary": "", "devices": [device], "measurements": [event]}
    found = {"info": {"state": "read"}, "validate": {"verdict": "FAIL", "summary": "a slot"}, "benchmark": benchmark}
    assert runner.judged(found, True) == []
    assert runner.judged(found, False) == ["gpu_validate: a slot"]
    (row,) = runner.rows(found)
    assert 0.75 < row["ratio"] < 0.85
    event["backend"] = "cpu"
    assert runner.judged(found, True) == ["gpu_benchmark: nothing was measured on a GPU"]
    assert runner.rows(found)[0]["ratio"] is None


# With NumPy


def small() -> Any:
    """The real backend numpy, with little to do."""
    backend = probe.Numpy()
    backend.copy_bytes, backend.product_size, backend.exact_size = 1 << 20, {"fp64": 64, "fp32": 64}, 64
    return backend


def test_the_processor_measures_with_the_same_logic_and_validates_nothing() -> None:
    pytest.importorskip("numpy")
    events = conduct(small, tests=["memory_bandwidth", "matmul_fp64", "matmul_bf16", "determinism", "memory_pattern"])
    results = {event["name"]: event for event in events if event["event"] == "result"}
    assert {event["backend"] for event in results.values()} == {"cpu"}
    assert results["memory_bandwidth"]["value"] > 0.1
    assert results["matmul_fp64"]["value"] > 0
    assert (results["determinism"]["value"], results["determinism"]["detail"]["exact_errors"]) == (0, 0)
    assert results["memory_pattern"]["value"] == 0
    found = judge(events, list(results), figures=figures())
    assert found["gpu_tested", "host"].verdict == NOT_RUN
    assert {check.verdict for check in found.values()} == {NOT_RUN, SKIPPED}
    assert overall(found.values()) == FAIL


def test_a_processor_that_miscalculates_is_seen() -> None:
    pytest.importorskip("numpy")

    def broken() -> Any:
        backend = small()
        real = backend.product

        def product(kind: str, size: int = 0) -> Any:
            made = real(kind, size)
            turns = iter(range(1000))
            return probe.Product(kind, made.size, made.run, lambda: made.result() + bytes(next(turns) % 2))

        backend.product = product
        return backend

    found = judge(conduct(broken, tests=["determinism"]), ["determinism"])
    assert (found["determinism", "CPU"].verdict, found["determinism", "CPU"].action) == (FAIL, CORRUPTION)


def test_the_program_runs_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"backend": "numpy", "tests": ["memory_bandwidth"], "deadline_seconds": 20}))
    words = [sys.executable, "-I", str(probe.__file__), str(arguments)]
    done = subprocess.run(words, text=True, capture_output=True, check=True, timeout=60)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == ["start", "devices", "result", "end"]


# The code for CUDA, on a stand-in for cupy that keeps "device" memory on the host. It shows that arguments and orientation
# are right as cupy's own sources have them, and nothing of a GPU.


class Stand:
    """cupy.cuda.runtime, cuBLAS and NCCL in the few calls that the probe makes."""

    memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, hostAllocDefault = 1, 2, 3, 0
    gpus = 3

    def __init__(self, numpy: Any) -> None:
        self.numpy, self.buffers, self.current, self.waiting = numpy, {}, 0, []

    def getDeviceCount(self) -> int:
        return self.gpus

    def getDeviceProperties(self, index: int) -> dict[str, Any]:
        return {"name": b"NVIDIA Stand", "major": 9, "minor": 0, "totalGlobalMem": 1 << 24, "multiProcessorCount": 2}

    def deviceGetPCIBusId(self, index: int) -> str:
        return f"0000:0{index}:00.0"

    def runtimeGetVersion(self) -> int:
        return 13000

    driverGetVersion = runtimeGetVersion

    def malloc(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        self.buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def hostAlloc(self, size: int, flags: int) -> int:
        return self.malloc(size)

    def free(self, pointer: int) -> None:
        del self.buffers[pointer]

    freeHost = free

    def memGetInfo(self) -> tuple[int, int]:
        return 1 << 20, 1 << 24

    def memcpy(self, target: int, source: int, size: int, kind: int) -> None:
        ctypes.memmove(target, source, size)

    def memcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        ctypes.memmove(target, source, size)

    def memcpyPeerAsync(self, target: int, to: int, source: int, of: int, size: int, stream: int) -> None:
        assert of == stream - 1000, "a copy runs on a stream of its source"
        ctypes.memmove(target, source, size)

    def deviceSynchronize(self) -> None:
        pass

    def deviceCanAccessPeer(self, one: int, other: int) -> int:
        return int((one, other) != (0, 1))

    def deviceEnablePeerAccess(self, other: int) -> None:
        assert self.deviceCanAccessPeer(self.current, other)

    def eventCreate(self) -> list[float]:
        return [0.0]

    def eventRecord(self, event: list[float], stream: int) -> None:
        assert stream == 1000 + self.current, "an event and its stream are of the current device"
        event[0] = time.perf_counter()

    def eventSynchronize(self, event: Any) -> None:
        pass

    eventDestroy = eventSynchronize

    def eventElapsedTime(self, start: list[float], end: list[float]) -> float:
        return 1000 * (end[0] - start[0]) + 1e-3

    def view(self, pointer: int, count: int, dtype: Any = None) -> Any:
        dtype = self.numpy.dtype(dtype or self.numpy.float32)
        return self.numpy.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(pointer), dtype=dtype)

    # cuBLAS: column-major, the first factor transposed.
    def create(self) -> int:
        return 7

    def gemmEx(
        self, handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, a: int, at: int, lda: int, b: int, bt: int,
        ldb: int, beta: int, c: int, ct: int, ldc: int, compute: int, algorithm: int,
    ) -> None:  # fmt: skip
        assert (handle, ta, tb, algorithm) == (7, 1, 0, -1)
        dtype = {0: "f4", 1: "f8", 2: "f2"}.get(at, "u2")
        factor = self.view(alpha, 1, "f8" if compute == 70 else "f4")
        assert factor[0] == 1
        left, right = (self.view(p, m * k, dtype).reshape((m, k), order="F") for p in (a, b))
        self.view(c, m * n, dtype)[:] = (left.T @ right).astype(dtype).ravel(order="F")

    # NCCL: calls are collected and done at the end of the group.
    NcclCommunicator: Any = None
    available = True

    def get_version(self) -> int:
        return 23203

    def groupStart(self) -> None:
        self.waiting = []

    def groupEnd(self) -> None:
        for done in self.waiting:
            done()

    def module(self) -> dict[str, types.ModuleType]:
        stand = self

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            def use(self) -> None:
                stand.current = self.index

        class Stream:
            def __init__(self, non_blocking: bool = False) -> None:
                self.ptr = 1000 + stand.current

            def use(self) -> None:
                pass

        class RawModule:
            def __init__(self, code: str) -> None:
                assert "__global__ void copy" in code

            def get_function(self, name: str) -> Callable[..., None]:
                return lambda grid, block, arguments: getattr(stand, f"kernel_{name}")(*map(int, arguments))

        class Communicator:
            made: list[Any] = []

            @classmethod
            def initAll(cls, devices: list[int]) -> list[Any]:
                cls.made = [cls() for _device in devices]
                return cls.made

            def allReduce(self, source: int, target: int, count: int, kind: int, operation: int, stream: int) -> None:
                assert (kind, operation) == (7, 0)
                self.source, self.target = source, target
                if self is self.made[-1]:

                    def work() -> None:
                        total = sum(stand.view(one.source, count).copy() for one in self.made)
                        for one in self.made:
                            stand.view(one.target, count)[:] = total

                    stand.waiting.append(work)

            def allGather(self, source: int, target: int, count: int, kind: int, stream: int) -> None:
                self.source, self.target = source, target
                if self is self.made[-1]:

                    def work() -> None:
                        whole = stand.numpy.concatenate([stand.view(one.source, count) for one in self.made])
                        for one in self.made:
                            stand.view(one.target, whole.size)[:] = whole

                    stand.waiting.append(work)

            def send(self, source: int, count: int, kind: int, peer: int, stream: int) -> None:
                self.sent = (source, peer)

            def recv(self, target: int, count: int, kind: int, peer: int, stream: int) -> None:
                me = self.made.index(self)

                def work() -> None:
                    source, to = self.made[peer].sent
                    assert to == me
                    stand.view(target, count)[:] = stand.view(source, count)

                stand.waiting.append(work)

        self.NcclCommunicator = Communicator
        cupy = types.ModuleType("cupy")
        cupy.__version__ = "14"  # type: ignore[attr-defined]
        cupy.RawModule = RawModule  # type: ignore[attr-defined]
        cupy.cuda = types.ModuleType("cupy.cuda")  # type: ignore[attr-defined]
        cupy.cuda.__dict__.update(runtime=self, Device=Device, Stream=Stream, nccl=self)
        libs = types.ModuleType("cupy_backends.cuda.libs")
        libs.cublas = self  # type: ignore[attr-defined]
        return {"cupy": cupy, "cupy.cuda": cupy.cuda, "cupy_backends.cuda.libs": libs}

    def kernel_copy(self, target: int, source: int, count: int) -> None:
        ctypes.memmove(target, source, count * 16)

    def kernel_fill(self, target: int, count: int, seed: int, kind: int) -> None:
        self.view(target, count, "u8")[:] = seed * 10 + kind

    def kernel_check(self, source: int, count: int, seed: int, kind: int, wrong: int) -> None:
        self.view(wrong, 1, "u8")[0] += int((self.view(source, count, "u8") != seed * 10 + kind).sum())


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand(pytest.importorskip("numpy"))
    for name, module in made.module().items():
        monkeypatch.setitem(sys.modules, name, module)
    sizes = {"copy_bytes": 1 << 18, "transfer_bytes": 1 << 16, "peer_bytes": 1 << 21, "collective_bytes": 1 << 20}
    for name, size in sizes.items():
        monkeypatch.setattr(probe.Cuda, name, size)
    monkeypatch.setattr(probe.Cuda, "product_size", dict.fromkeys(probe.Cuda.product_size, 32))
    monkeypatch.setattr(probe.Cuda, "exact_size", 48)
    monkeypatch.setattr(probe.Cuda, "sustained_kind", "fp32")
    return made


def test_the_calls_for_one_gpu(stand: Stand) -> None:
    tests = ["memory_bandwidth", "host_to_device_bandwidth", "device_to_host_bandwidth", "determinism", "memory_pattern"]
    tests += ["matmul_fp64", "matmul_tf32", "matmul_fp16", "sustained_matmul"]
    events = conduct(probe.Cuda, tests=tests, gpus=[1], allow_busy=True)
    assert [event for event in events if event["event"] == "error"] == []
    results = {event["name"]: event for event in events if event["event"] == "result"}
    assert set(results) == set(tests)
    assert {event["subject"] for event in results.values()} == {"GPU 1"}
    assert set(results["memory_bandwidth"]["detail"]["ways"]) == {"cudaMemcpy", "kernel"}
    assert results["determinism"]["detail"]["exact_errors"] == 0
    assert results["memory_pattern"]["value"] == 0
    assert results["matmul_fp64"]["value"] > 0


def test_nothing_is_left_on_the_device(stand: Stand) -> None:
    backend = probe.Cuda()
    backend.open(0)
    worker = probe.Worker(backend, "GPU 0", lambda event: None)
    for name in ("memory_bandwidth", "host_to_device_bandwidth", "matmul_fp16", "determinism", "memory_pattern"):
        worker.run({"test": name, "seconds": 0.01})
        backend.release()
        assert stand.buffers == {}, name


def test_a_wrong_element_of_the_exact_product_is_counted(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = probe.Cuda()
    backend.open(0)
    assert backend.exact_errors() == 0
    real = Stand.gemmEx

    def flipped(self: Stand, *words: Any) -> None:
        real(self, *words)
        self.view(words[14], 1)[0] += 1

    monkeypatch.setattr(Stand, "gemmEx", flipped)
    assert backend.exact_errors() == 1


def test_the_calls_over_gpus(stand: Stand) -> None:
    tests = [*probe.OVER_GPUS]
    events = conduct(probe.Cuda, tests=tests, allow_busy=True)
    assert [event for event in events if event["event"] == "error"] == []
    results = [event for event in events if event["event"] == "result"]
    assert {event["detail"]["wrong_elements"] for event in results} == {0}
    pairs = {event["subject"] for event in results if event["name"] == "peer_to_peer_bandwidth"}
    assert len(pairs) == 5  # all but the one that cannot reach the other
    (skipped,) = [event for event in events if event["event"] == "skipped"]
    assert skipped["subject"] == "GPU 0 -> GPU 1"
    assert {event["name"] for event in results if event["subject"] == "3 GPUs"} == set(tests[1:])


def test_a_copy_to_a_peer_that_arrives_wrong(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(self: Stand, target: int, to: int, source: int, of: int, size: int, stream: int) -> None:
        ctypes.memmove(target, source, size)
        if (of, to) == (2, 1):
            ctypes.memset(target, 0, 64)

    monkeypatch.setattr(Stand, "memcpyPeerAsync", lossy)
    found = judge(conduct(probe.Cuda, tests=["peer_to_peer_bandwidth"], allow_busy=True), ["peer_to_peer_bandwidth"])
    bad = {key[1]: check.action for key, check in found.items() if check.verdict == FAIL}
    assert bad == {"GPU 2 -> GPU 1": CORRUPTION}


def test_fp8_codes_are_all_numbers(stand: Stand) -> None:
    backend = probe.Cuda()
    entries = backend.entries("fp8", 100000, 1)
    assert not set(entries & 0x7F) & {0x7F}
    assert len(set(entries.tolist())) == 80
    bf16 = backend.entries("bf16", 100000, 1).astype("u4") << 16
    assert abs(bf16.view("f4")).max() <= 1


class Lt:
    """libcublasLt as far as it is called; it notes what it is asked."""

    def __init__(self, **statuses: int) -> None:
        self.statuses, self.called = statuses, []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cublasLt"):
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.called.append((name, arguments))
            if name == "cublasLtMatmulAlgoGetHeuristic":
                arguments[-1]._obj.value = 1
            return self.statuses.get(name, 0)

        return function


def test_an_fp8_product_describes_itself() -> None:
    library = Lt()
    probe.LtProduct(library, 64).run(1, 2, 3, 4, 5)
    names = [name for name, _arguments in library.called]
    assert names[-1] == "cublasLtMatmul"
    assert names.count("cublasLtMatrixLayoutCreate") == 2
    kinds = [words[1].value for name, words in library.called if name == "cublasLtMatrixLayoutCreate"]
    assert kinds == [28, 14]  # e4m3 in, bf16 out
    assert len(library.called[-1][1]) == 16


def test_an_fp8_product_that_a_gpu_does_not_have() -> None:
    with pytest.raises(probe.NotSupported, match="no such product"):
        probe.LtProduct(Lt(cublasLtMatmulAlgoGetHeuristic=15), 64)
    with pytest.raises(RuntimeError, match="cublasLtCreate returned cuBLAS status 1"):
        probe.LtProduct(Lt(cublasLtCreate=1), 64)
