#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_benchmark
short_description: Whether a host's GPUs do what they should under load
version_added: 0.3.0
description:
  - Measures bandwidths and matrix products on the GPUs, looks whether equal work gives equal bits, and compares each figure with
    its floor. It runs from the environment that the role C(gpu_probe) installs and needs no CUDA toolkit.
  - The action plugin of the same name prints how far the tests are, and looks up the figures.
  - It fails closed. A test that was asked for and of which nothing was heard is V(NOT_RUN), a figure without a known floor is
    V(WARN), and one beyond the physical peak is V(FAIL). A host without a GPU has the verdict FAIL.
  - GPUs on which something computes are not tested unless O(allow_busy) says so.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: Nothing is run; every test is V(NOT_RUN).
  diff_mode:
    support: none
    description: It changes nothing.
options:
  profile:
    description:
      - V(quick) is planned to end within 60 seconds on eight GPUs.
      - V(burn_in) runs for O(duration_seconds), most of it under full load, and writes patterns through the GPUs' memory.
    type: str
    choices: [quick, burn_in]
    default: quick
  tests:
    description: The tests to run; those of the profile when empty.
    type: list
    elements: str
    choices:
      - memory_bandwidth
      - host_to_device_bandwidth
      - device_to_host_bandwidth
      - matmul_fp64
      - matmul_fp32
      - matmul_tf32
      - matmul_bf16
      - matmul_fp16
      - matmul_fp8
      - determinism
      - peer_to_peer_bandwidth
      - all_reduce_bus_bandwidth
      - all_gather_bus_bandwidth
      - send_recv_bandwidth
      - sustained_matmul
      - memory_pattern
    default: []
  gpus:
    description: Numbers of the GPUs to test; all when it is not given.
    type: list
    elements: int
  expect_gpus:
    description: How many GPUs have to be tested. Taken from O(machine) where neither it nor O(gpus) is given.
    type: int
  machine:
    description: Name of a GPU profile, for instance V(hgx_h100), whose figures are the floors.
    type: str
  product:
    description: Name of a product of the threshold file, for instance V(h100_sxm5_80gb), whose figures are the floors.
    type: str
  thresholds:
    description: The site's own products and profiles, in the form of the collection's file, merged over it.
    type: dict
    default: {}
  figures:
    description: >-
      The floors themselves, each with unit, floor and peak, in place of a machine's or product's. When nothing names them, each
      GPU is looked up by its PCI device identifier and name.
    type: dict
    default: {}
  products:
    description: Filled by the action plugin; all products, to look a GPU up.
    type: dict
    default: {}
  duration_seconds:
    description: Time of a burn-in, in seconds.
    type: int
    default: 3600
  deadline_seconds:
    description: >-
      Time in seconds after which tests are not begun any more and count as not run; somewhat later everything is ended. By
      default 90 for O(profile=quick), and a quarter more than O(duration_seconds) plus ten minutes for O(profile=burn_in).
    type: int
  drop_percent:
    description: What a sustained product may lose from its first to its last quarter, in percent.
    type: float
    default: 10
  allow_busy:
    description: Whether GPUs on which something computes are tested too; it disturbs the tests and what computes.
    type: bool
    default: false
  backend:
    description: V(numpy) runs the same program on the processor, to try it out; it never passes.
    type: str
    choices: [cupy, numpy]
    default: cupy
  python:
    description: Interpreter of the probe's environment; by default that of the role C(gpu_probe), or else the module's own.
    type: path
  cluster:
    description: Layout for collectives over hosts, the same task on all of them at the same time.
    type: dict
    suboptions:
      node:
        description: Number of this host, from 0 on.
        type: int
        required: true
      nodes:
        description: How many hosts.
        type: int
        required: true
      gpus_per_node:
        description: How many GPUs of each host.
        type: int
        required: true
      address:
        description: Address of host 0, which the others reach.
        type: str
        required: true
      port:
        description: Port on host 0.
        type: int
        default: 29471
      token:
        description: >-
          A secret of this run, with which the hosts know each other. Where it is not given, one run of Ansible makes one for all
          its hosts.
        type: str
      wait_seconds:
        description: How long they wait for each other, in seconds.
        type: int
        default: 60
  tools:
    description: Tools of others that are run as well, where the host has them.
    type: list
    elements: str
    choices: [nvbandwidth, nccl_tests, dcgm]
    default: []
  nvbandwidth:
    description: Path of nvbandwidth; looked for by its name when it is not absolute.
    type: str
    default: nvbandwidth
  nccl_tests:
    description: Path of all_reduce_perf of nccl-tests.
    type: str
    default: all_reduce_perf
  dcgmi:
    description: Path of dcgmi.
    type: str
    default: dcgmi
  dcgm_level:
    description: Level of DCGM's diagnostics.
    type: int
    default: 2
  tool_seconds:
    description: Time in seconds after which a tool is ended.
    type: int
    default: 1800
  fail:
    description: Whether the task fails when the verdict is FAIL.
    type: bool
    default: false
  phase:
    description: Used by the action plugin; V(all) does everything in one call, without progress.
    type: str
    choices: [all, start, look, tool, judge, stop]
    default: all
  run:
    description: Used by the action plugin; the run that is looked at.
    type: str
  offset:
    description: Used by the action plugin; where to go on reading.
    type: int
    default: 0
  wait_seconds:
    description: Used by the action plugin; the longest time in seconds that one look takes.
    type: int
    default: 10
  found:
    description: Used by the action plugin; checks from earlier calls.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Test the GPUs in a minute
  onprem.llm.gpu_benchmark:
    machine: hgx_h100
  register: benchmark

- name: Load them for a night, and refuse a host that fails
  onprem.llm.gpu_benchmark:
    profile: burn_in
    duration_seconds: 28800
    machine: hgx_h100
    fail: true

- name: Measure two things on two GPUs, with one's own floors
  onprem.llm.gpu_benchmark:
    tests: [memory_bandwidth, matmul_bf16]
    gpus: [0, 1]
    figures:
      memory_bandwidth: {unit: GB/s, floor: 2800, peak: 3352}
      matmul_bf16: {unit: TFLOP/s, floor: 740, peak: 989}

- name: Run the site's own tools too
  onprem.llm.gpu_benchmark:
    machine: hgx_h100
    tools: [nvbandwidth, nccl_tests, dcgm]
"""

RETURN = r"""
verdict:
  description: PASS, WARN or FAIL.
  returned: always
  type: str
summary:
  description: How many checks ended how, and what failed.
  returned: always
  type: str
checks:
  description: Every check, in the form of M(onprem.llm.gpu_validate).
  returned: always
  type: list
  elements: dict
devices:
  description: The devices that were tested, with name, compute_capability, memory_bytes, pci_address and pci_device_id.
  returned: always
  type: list
  elements: dict
measurements:
  description: What the probe measured, with all details; values are in the unit that each names.
  returned: always
  type: list
  elements: dict
versions:
  description: Versions of Python, cupy, CUDA's runtime and the driver.
  returned: always
  type: dict
seconds:
  description: How long the probe ran, in seconds.
  returned: always
  type: float
"""

import os
import re
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils import _gpu_tools
from ansible_collections.onprem.llm.plugins.module_utils._gpu_benchmark import GpuBenchmarkError, Judge, Run, default_python
from ansible_collections.onprem.llm.plugins.module_utils._gpu_probe import QUICK_TESTS, TESTS
from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, SKIPPED, Check, overall, summary

PROBE_ARGUMENTS = ("profile", "tests", "gpus", "duration_seconds", "deadline_seconds", "allow_busy", "backend", "cluster")


class GpuBenchmark:
    """Starts the probe, looks at it, judges what it said, and runs the site's own tools."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.parameters: dict[str, Any] = module.params
        burn_in = self.parameters["profile"] == "burn_in"
        if self.parameters["deadline_seconds"] is None:
            duration = self.parameters["duration_seconds"]
            self.parameters["deadline_seconds"] = duration + duration // 4 + 600 if burn_in else 90
        chosen = self.parameters["tests"] or (TESTS if burn_in else QUICK_TESTS)
        self.tests = [name for name in TESTS if name in chosen]
        self.refuse_impossible()

    def refuse_impossible(self) -> None:
        """A bound that no measurement could miss would be no bound."""
        for name, figure in self.parameters["figures"].items():
            if not isinstance(figure, dict) or not isinstance(figure.get("unit"), str):
                raise GpuBenchmarkError(f"figures.{name} has no unit.")
            for key in ("floor", "peak", "ceiling"):
                value = figure.get(key)
                if value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                    raise GpuBenchmarkError(f"figures.{name}.{key} is {value!r}; a number above zero is wanted.")
        if not 0 < self.parameters["drop_percent"] <= 100:
            raise GpuBenchmarkError(f"drop_percent is {self.parameters['drop_percent']}; it has to be above 0 and at most 100.")

    def run(self) -> dict[str, Any]:
        if self.module.check_mode:
            checks = [Check(name, NOT_RUN, message="check mode runs no test") for name in self.tests]
            return self.told(checks, [], "")
        phase = self.parameters["phase"]
        if phase == "start":
            return {"changed": False, "run": self.start().path.name}
        if phase == "look":
            return self.look()
        if phase == "tool":
            return {"changed": False, "checks": [c.as_dict() for name in self.parameters["tools"] for c in self.tool(name)]}
        if phase == "judge":
            return self.judge(Run.named(self.parameters["run"] or ""))
        if phase == "stop":
            run = Run.named(self.parameters["run"] or "")
            run.kill()
            run.forget()
            return {"changed": False}
        run = self.start()
        try:
            run.wait(float("inf"))
            self.parameters["run"] = run.path.name
            self.parameters["found"] = [check.as_dict() for name in self.parameters["tools"] for check in self.tool(name)]
        except BaseException:
            run.kill()
            raise
        return self.judge(run)

    def start(self) -> Run:
        arguments = {name: self.parameters[name] for name in PROBE_ARGUMENTS}
        return Run.start(self.parameters["python"] or default_python(), arguments)

    def look(self) -> dict[str, Any]:
        run = Run.named(self.parameters["run"] or "")
        ended = run.wait(self.parameters["wait_seconds"])
        events, offset = run.events(self.parameters["offset"])
        progress = [event for event in events if event["event"] == "progress"]
        return {"changed": False, "ended": ended, "offset": offset, "progress": progress[-1] if progress else None}

    def judge(self, run: Run) -> dict[str, Any]:
        run.kill()
        events, ended = run.events()[0], run.ended()
        judge = Judge(
            events,
            self.tests,
            self.parameters["figures"],
            self.parameters["products"],
            self.parameters["expect_gpus"],
            self.parameters["drop_percent"],
            ended,
        )
        checks = judge.checks() + [Check(**check) for check in self.parameters["found"]]
        run.forget()
        return self.told(checks, events, ended)

    def told(self, checks: list[Check], events: list[dict[str, Any]], ended: str) -> dict[str, Any]:
        look: dict[str, Any] = next((event for event in events if event["event"] == "devices"), {})
        verdict, said = overall(checks), summary(checks)
        result = {
            "changed": False,
            "verdict": verdict,
            "summary": said,
            "checks": [check.as_dict() for check in checks],
            "devices": look.get("devices", []),
            "measurements": [event for event in events if event["event"] == "result"],
            "versions": look.get("versions", {}),
            "seconds": next((event["seconds"] for event in events if event["event"] == "end"), None),
        }
        if self.parameters["fail"] and verdict == FAIL and not self.module.check_mode:
            result.update(failed=True, msg=f"The GPUs do not do what they should: {said}")
        return result

    def tool(self, name: str) -> list[Check]:
        """The verdicts of one of the site's own tools; SKIPPED where the host has none."""
        program = self.parameters["dcgmi" if name == "dcgm" else name]
        path = shutil.which(program)
        if path is None:
            return [Check(name, SKIPPED, message=f"this host has no {program}")]
        refused = self.refused()
        if refused:
            return [
                Check(name, NOT_RUN, message=f"not started: {refused}", action="stop what computes on the GPUs, then test again")
            ]
        figures, seconds = self.parameters["figures"], self.parameters["tool_seconds"]
        if name == "nvbandwidth":
            tests = [test for test in _gpu_tools.NVBANDWIDTH_FIGURES if "_read_" not in test]
            output, code, late = _gpu_tools.run([path, "-j", "-t", *tests], seconds)
        elif name == "nccl_tests":
            gpus = len(self.parameters["gpus"] or []) or self.parameters["expect_gpus"] or self.gpus()
            words = [path, "--minbytes", "1G", "--maxbytes", "8G", "--stepfactor", "2", "--ngpus", str(gpus or 1)]
            output, code, late = _gpu_tools.run(words, seconds)
        else:
            output, code, late = _gpu_tools.run([path, "diag", "-r", str(self.parameters["dcgm_level"]), "-j"], seconds)
        if late:
            message = f"{program} was not done after {seconds} s"
            return [Check(name, NOT_RUN, message=message, action="raise tool_seconds, or run the tool by hand")]
        if name == "nvbandwidth":
            return _gpu_tools.nvbandwidth(output, figures, code)
        if name == "nccl_tests":
            return _gpu_tools.nccl_tests(os.path.basename(path), output, figures, code, gpus)
        return _gpu_tools.dcgm(output, code)

    def refused(self) -> str:
        """Why the probe left the GPUs alone; the tools then do so too."""
        if not self.parameters["run"]:
            return ""
        errors = [event for event in Run.named(self.parameters["run"]).events()[0] if event["event"] == "error"]
        return next((str(event["reason"]) for event in errors if event["name"] == "devices" and event["subject"] != "host"), "")

    @staticmethod
    def gpus() -> int:
        """NVIDIA's device nodes; nccl-tests has to be told how many GPUs it shall use."""
        return sum(1 for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "profile": {"type": "str", "choices": ["quick", "burn_in"], "default": "quick"},
            "tests": {"type": "list", "elements": "str", "choices": list(TESTS), "default": []},
            "gpus": {"type": "list", "elements": "int"},
            "expect_gpus": {"type": "int"},
            "machine": {"type": "str"},
            "product": {"type": "str"},
            "thresholds": {"type": "dict", "default": {}},
            "figures": {"type": "dict", "default": {}},
            "products": {"type": "dict", "default": {}},
            "duration_seconds": {"type": "int", "default": 3600},
            "deadline_seconds": {"type": "int"},
            "drop_percent": {"type": "float", "default": 10},
            "allow_busy": {"type": "bool", "default": False},
            "backend": {"type": "str", "choices": ["cupy", "numpy"], "default": "cupy"},
            "python": {"type": "path"},
            "cluster": {
                "type": "dict",
                "options": {
                    "node": {"type": "int", "required": True},
                    "nodes": {"type": "int", "required": True},
                    "gpus_per_node": {"type": "int", "required": True},
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 29471},
                    "token": {"type": "str", "no_log": True},
                    "wait_seconds": {"type": "int", "default": 60},
                },
            },
            "tools": {"type": "list", "elements": "str", "choices": ["nvbandwidth", "nccl_tests", "dcgm"], "default": []},
            "nvbandwidth": {"type": "str", "default": "nvbandwidth"},
            "nccl_tests": {"type": "str", "default": "all_reduce_perf"},
            "dcgmi": {"type": "str", "default": "dcgmi"},
            "dcgm_level": {"type": "int", "default": 2},
            "tool_seconds": {"type": "int", "default": 1800},
            "fail": {"type": "bool", "default": False},
            "phase": {"type": "str", "choices": ["all", "start", "look", "tool", "judge", "stop"], "default": "all"},
            "run": {"type": "str"},
            "offset": {"type": "int", "default": 0},
            "wait_seconds": {"type": "int", "default": 10},
            "found": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        result = GpuBenchmark(module).run()
    except GpuBenchmarkError as error:
        module.fail_json(msg=str(error))
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
