# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nvbandwidth, nccl-tests and DCGM's diagnostics print, as verdicts.

All three can end with code 0 and have looked at nothing. Here an empty or unknown output is NOT_RUN, a skipped test stays
SKIPPED, and a bandwidth is compared with this project's own floor: nccl-tests' NCCL_TESTS_MIN_BW fails only below nine
tenths of the figure that it is given.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._gpu_benchmark import CORRUPTION, action_for, against
from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, PASS, SKIPPED, WARN, Check

Figures = Mapping[str, Mapping[str, Any]]

# Which figure a test of nvbandwidth measures; all of them copy in one direction, one pair at a time.
NVBANDWIDTH_FIGURES = {
    "host_to_device_memcpy_ce": "host_to_device_bandwidth",
    "device_to_host_memcpy_ce": "device_to_host_bandwidth",
    "device_to_device_memcpy_read_ce": "peer_to_peer_bandwidth",
    "device_to_device_memcpy_write_ce": "peer_to_peer_bandwidth",
}
NCCL_FIGURES = {
    "all_reduce_perf": "all_reduce_bus_bandwidth",
    "all_gather_perf": "all_gather_bus_bandwidth",
    "sendrecv_perf": "send_recv_bandwidth",
}
NCCL_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|N/A|nan|inf)"
NCCL_ROW = re.compile(rf"^\s*(?P<size>\d+)\s+(?P<count>\d+)\s+\S.*?\s(?P<figures>{NCCL_NUMBER}(?:\s+{NCCL_NUMBER}){{7}})\s*$")
RUN_AGAIN = "run the tool by hand and look at what it says"


def run(words: list[str], seconds: float) -> tuple[str, int, bool]:
    """What a tool printed, its code, and whether it was ended, with all that it had started, because it took too long."""
    # All GPUs, numbered as NVML does.
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    # Not a pipe: what the tool started may hold it open after the tool was ended.
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        late = False
        try:
            child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=5)  # one that hangs in the driver cannot be ended
        output.seek(0)
        code = child.returncode if child.returncode is not None else -1
        return output.read().decode(errors="replace"), code, late


def unreadable(tool: str, why: str, subject: str = "host") -> list[Check]:
    return [Check(tool, NOT_RUN, subject, message=why, action=RUN_AGAIN)]


def number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


# nvbandwidth ---------------------------------------------------------------------------------------------------------


def nvbandwidth(output: str, figures: Figures | None = None, code: int = 0) -> list[Check]:
    """The verdicts on the output of ``nvbandwidth``, with ``-j`` or as text."""
    found = nvbandwidth_json(output, figures or {}) if "{" in output else nvbandwidth_text(output, figures or {})
    if code and not any(check.verdict in (FAIL, NOT_RUN) for check in found):
        found += unreadable("nvbandwidth", f"nvbandwidth ended with code {code}")
    return found or unreadable("nvbandwidth", "nvbandwidth printed no result")


def nvbandwidth_json(output: str, figures: Figures) -> list[Check]:
    try:
        data = json.JSONDecoder().raw_decode(output[output.index("{") :])[0]["nvbandwidth"]
        cases = data.get("testcases") or []
        found = [] if not data.get("error") else unreadable("nvbandwidth", f"nvbandwidth: {data['error']}")
        for case in cases:
            name, status = str(case["name"]), str(case.get("status", "none"))
            if status == "Waived":
                found.append(Check(nv_name(name), SKIPPED, message=f"{name} was waived: this host has nothing for it"))
            elif status != "Passed":
                found += unreadable(nv_name(name), f"{name}: {status} {case.get('error', '')}".strip())
            else:
                found += matrix(name, str(case.get("bandwidth_description", "")), case.get("bandwidth_matrix") or [], figures)
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return unreadable("nvbandwidth", f"the output of nvbandwidth is not what was expected: {error!r}")


def nvbandwidth_text(output: str, figures: Figures) -> list[Check]:
    found: list[Check] = []
    blocks = re.split(r"^Running (\S+?)\.?\s*$", output, flags=re.MULTILINE)
    for name, block in zip(blocks[1::2], blocks[2::2]):
        rows = [line.split()[1:] for line in block.splitlines() if re.match(r"\s*\d+\s+\S", line)]
        # The first of these lines numbers the columns.
        described = next((line for line in block.splitlines() if "(GB/s)" in line or "(ns)" in line), "")
        if re.search(r"\bwaived\b", block, re.IGNORECASE):
            found.append(Check(nv_name(name), SKIPPED, message=f"{name} was waived: this host has nothing for it"))
        elif re.search(r"\berror\b|ERROR", block) or len(rows) < 2:
            said = " ".join(block.split())[:200]
            found += unreadable(nv_name(name), f"{name} has no result: {said}")
        else:
            found += matrix(name, described, rows[1:], figures)
    return found


def nv_name(name: str) -> str:
    return NVBANDWIDTH_FIGURES.get(name, f"nvbandwidth_{name}")


def matrix(name: str, described: str, rows: Iterable[Iterable[Any]], figures: Figures) -> list[Check]:
    """One verdict for each cell; where a cell has no number, that GPU or pair was not measured."""
    figure, unit = NVBANDWIDTH_FIGURES.get(name), "ns" if "(ns)" in described else "GB/s"
    from_host, backwards = "CPU" in described, "<-" in described and "<->" not in described
    found: list[Check] = []
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            one, other = (column, row) if backwards else (row, column)
            subject = f"GPU {column}" if from_host else f"GPU {one} -> GPU {other}"
            value = number(cell)
            if value is None and not from_host and row == column:
                continue
            if value is None:
                found += unreadable(nv_name(name), f"{name} has {cell!r} here", subject)
            elif unit == "ns" or figure is None:
                found.append(Check(nv_name(name), WARN, subject, value, None, unit, message=f"no floor known for {name}"))
            else:
                found.append(against(figure, subject, value, unit, figures.get(figure), " (nvbandwidth)"))
    return found or unreadable(nv_name(name), f"{name} has an empty matrix")


# nccl-tests ----------------------------------------------------------------------------------------------------------


def nccl_tests(program: str, output: str, figures: Figures | None = None, code: int = 0, gpus: int | None = None) -> list[Check]:
    """The verdict on one program of nccl-tests: the bus bandwidth at the largest size, out of place."""
    name = NCCL_FIGURES.get(program, program)
    rows = []
    for line in output.splitlines():
        match = NCCL_ROW.match(re.sub(r"^\[\d+,\d+\]<\w+>:", "", line))
        if match:
            rows.append((int(match["size"]), match["figures"].split()))
    footer = re.search(r"Out of bounds values\s*:\s*(\d+)\s+(\w+)", output)
    average = re.search(r"Avg bus bandwidth\s*:\s*(\S+)", output)
    if not rows:
        return unreadable(name, f"{program} printed no row of its table")
    # Since 2022 the last column of each half counts wrong elements; before, it was an error bound, and the footer alone counts.
    counted = "#wrong" in output
    wrong = sum(int(number(figure[place]) or 0) for _size, figure in rows for place in (3, 7)) if counted else 0
    unchecked = counted and any(figure[place] == "N/A" for _size, figure in rows for place in (3, 7))
    wrong = max(wrong, int(footer[1]) if footer else 0)
    if wrong or (footer and footer[2] != "OK"):
        message = f"{program} found {wrong} elements that were wrong"
        return [Check(name, FAIL, "host", wrong, 0, "wrong elements", action=CORRUPTION, message=message)]
    if not footer or not average:
        return unreadable(name, f"the output of {program} has no end: it was cut off")
    if unchecked:
        return unreadable(name, f"{program} ran without checking its results (-c 0)")
    size, largest = max(rows, key=lambda row: row[0])
    bus, mean = number(largest[2]), number(average[1])
    if mean is None:
        return unreadable(name, f"{program} gives {average[1]} as its mean bus bandwidth")
    if not bus:
        return unreadable(name, f"{program} has a bus bandwidth of {largest[2]} at {size} bytes: it ran on one GPU")
    figure = (figures or {}).get(name)
    if name == "all_reduce_bus_bandwidth" and gpus not in (None, 8):
        figure = None  # the figure is that of eight
    check = against(name, "host", bus, "GB/s", figure, f" at {size} bytes ({program}; mean over all sizes {mean:g})")
    if code and check.verdict in (PASS, WARN):
        check.verdict, check.action = FAIL, action_for(name)
        check.message += f"; it ended with code {code}"
    return [check]


# DCGM ----------------------------------------------------------------------------------------------------------------

DCGM_VERDICTS = {
    "pass": PASS,
    "warn": WARN,
    "fail": FAIL,
    "skip": SKIPPED,
    "skipped": SKIPPED,
    "not run": NOT_RUN,
}


def dcgm(output: str, code: int = 0) -> list[Check]:
    """The verdicts on ``dcgmi diag -j``, of DCGM 2 to 4."""
    try:
        data = json.JSONDecoder().raw_decode(output[output.index("{") :])[0]
    except ValueError:
        said = " ".join(output.split())[:200]
        return unreadable("dcgm", f"dcgmi ended with code {code} and printed no JSON: {said or 'nothing'}")
    root = next((data[key] for key in ("DCGM GPU Diagnostic", "DCGM Diagnostic") if isinstance(data.get(key), dict)), data)
    found: list[Check] = []
    for source in (data, root):
        for key in ("runtime_error", "Error", "error"):
            if source.get(key):
                found += unreadable("dcgm", f"dcgmi: {' '.join(str(source[key]).split())[:300]}")
    tests = [test for category in root.get("test_categories") or [] for test in (category or {}).get("tests") or []]
    for test in tests + list(root.get("tests") or []):
        if isinstance(test, dict):
            found += dcgm_test(test)
    found = list({(check.name, check.subject, check.message): check for check in found}.values())
    if code and not any(check.verdict in (FAIL, NOT_RUN) for check in found):
        found += unreadable("dcgm", f"dcgmi ended with code {code}")
    return found or unreadable("dcgm", "dcgmi ran no test")


def dcgm_test(test: Mapping[str, Any]) -> list[Check]:
    title = str(test.get("name", "unknown"))
    name = f"dcgm_{re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')}"
    found = []
    for result in test.get("results") or []:
        status = str(result.get("status", "none"))
        verdict = DCGM_VERDICTS.get(" ".join(status.lower().split()), NOT_RUN)
        said = [*texts(result.get("warnings")), *texts(result.get("info"))]
        action = {FAIL: "follow DCGM's own advice for this test", NOT_RUN: RUN_AGAIN, WARN: "look at DCGM's warning"}.get(
            verdict, ""
        )
        message = f"{title}: {status}" + (f"; {' '.join(said)[:400]}" if said else "")
        found.append(Check(name, verdict, dcgm_subject(result), source="dcgmi diag", action=action, message=message))
    return found or unreadable(name, f"{title} has no result")


def texts(given: Any) -> list[str]:
    """Warnings and infos are texts, lists of texts, or lists of objects that hold one, by DCGM's release."""
    if given is None:
        return []
    listed = given if isinstance(given, list) else [given]
    found = [str(part.get("warning") or part.get("error") or part) if isinstance(part, dict) else str(part) for part in listed]
    return [" ".join(text.split()) for text in found]


def dcgm_subject(result: Mapping[str, Any]) -> str:
    if "entity_id" in result:
        kind = str(result.get("entity_group", "GPU"))
        return f"{kind} {result['entity_id']}" if kind == "GPU" else f"host, {kind} {result['entity_id']}"
    indexes = str(result.get("gpu_ids") or result.get("gpu_id") or "")
    return f"GPU {indexes}" if indexes.isdigit() else "host"
