# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The forms are those of public outputs, shortened: nvbandwidth's README and its JSON as DCGM's own tests have it, tables of
nccl-tests from its issues, and DCGM's JSON of releases 3 and 4."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.module_utils._gpu_tools import dcgm, nccl_tests, nvbandwidth, run
from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, PASS, SKIPPED, WARN, Check, overall

FIGURES = {
    "host_to_device_bandwidth": {"unit": "GB/s", "peak": 64, "floor": 48, "floor_source": "a source"},
    "peer_to_peer_bandwidth": {"unit": "GB/s", "peak": 450, "floor": 335},
    "all_reduce_bus_bandwidth": {"unit": "GB/s", "peak": 900, "floor": 460},
}


def verdicts(checks: list[Check]) -> list[tuple[str, str, str]]:
    return [(check.name, check.subject, check.verdict) for check in checks]


def test_a_tool_that_takes_too_long_is_ended_also_when_what_it_started_is_not() -> None:
    begun = time.monotonic()
    _output, _code, late = run(["sh", "-c", "setsid sleep 20 & echo begun; sleep 20"], 1)
    assert late
    assert time.monotonic() - begun < 8


def test_a_tool_sees_all_gpus_in_the_order_of_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    output, code, late = run(["sh", "-c", "echo ${CUDA_VISIBLE_DEVICES-all} $CUDA_DEVICE_ORDER; exit 3"], 10)
    assert (output, code, late) == ("all PCI_BUS_ID\n", 3, False)


# nvbandwidth


def case(name: str, rows: list[list[str]], described: str, status: str = "Passed") -> dict[str, Any]:
    return {"name": name, "status": status, "bandwidth_matrix": rows, "bandwidth_description": described}


def nv(*cases: dict[str, Any], **more: Any) -> str:
    return json.dumps({"nvbandwidth": {"CUDA Runtime Version": 12070, "Driver Version": "565.02", "testcases": cases, **more}})


H2D = "memcpy CE CPU(row) -> GPU(column) bandwidth (GB/s) "
WRITE = "memcpy CE GPU(row) -> GPU(column) bandwidth (GB/s)"
READ = "memcpy CE GPU(row) <- GPU(column) bandwidth (GB/s)"


def test_nvbandwidth_is_compared_with_our_floors() -> None:
    found = nvbandwidth(nv(case("host_to_device_memcpy_ce", [["55.4", "12.3964"]], H2D)), FIGURES)
    assert verdicts(found) == [
        ("host_to_device_bandwidth", "GPU 0", PASS),
        ("host_to_device_bandwidth", "GPU 1", FAIL),
    ]
    assert (found[1].measured, found[1].expected, found[1].unit, found[1].source) == (12.396, 48, "GB/s", "a source")
    assert "PCIe" in found[1].action


def test_the_data_of_a_read_flows_the_other_way() -> None:
    rows = [["N/A", "390.1"], ["100.5", "N/A"]]
    write = nvbandwidth(nv(case("device_to_device_memcpy_write_ce", rows, WRITE)), FIGURES)
    assert verdicts(write) == [
        ("peer_to_peer_bandwidth", "GPU 0 -> GPU 1", PASS),
        ("peer_to_peer_bandwidth", "GPU 1 -> GPU 0", FAIL),
    ]
    read = nvbandwidth(nv(case("device_to_device_memcpy_read_ce", rows, READ)), FIGURES)
    assert [check.subject for check in read] == ["GPU 1 -> GPU 0", "GPU 0 -> GPU 1"]


def test_a_pair_without_a_number_was_not_measured() -> None:
    found = nvbandwidth(nv(case("device_to_device_memcpy_write_ce", [["N/A", "N/A"], ["390", "N/A"]], WRITE)), FIGURES)
    assert verdicts(found)[0] == ("peer_to_peer_bandwidth", "GPU 0 -> GPU 1", NOT_RUN)


@pytest.mark.parametrize(
    ("status", "verdict"), [("Waived", SKIPPED), ("Error", NOT_RUN), ("Not Found", NOT_RUN), ("Running", NOT_RUN)]
)
def test_only_passed_is_a_measurement(status: str, verdict: str) -> None:
    found = nvbandwidth(nv(case("host_to_device_memcpy_ce", [["60"]], H2D, status)), FIGURES)
    assert [check.verdict for check in found] == [verdict]
    assert overall(found) == FAIL


@pytest.mark.parametrize("output", ["", "{", "[]", '{"other": 1}', '{"nvbandwidth": {}}', '{"nvbandwidth": {"testcases": [{}]}}'])
def test_an_output_of_nvbandwidth_that_says_nothing(output: str) -> None:
    assert [check.verdict for check in nvbandwidth(output, FIGURES)] == [NOT_RUN]


def test_nvbandwidth_that_names_an_error_or_ends_with_one() -> None:
    good = case("host_to_device_memcpy_ce", [["60"]], H2D)
    assert overall(nvbandwidth(nv(good), FIGURES)) == PASS
    assert overall(nvbandwidth(nv(good, error="CUDA_ERROR_ECC_UNCORRECTABLE"), FIGURES)) == FAIL
    assert overall(nvbandwidth(nv(good), FIGURES, code=1)) == FAIL


TEXT = """nvbandwidth Version: v0.8
Running host_to_device_memcpy_ce.
memcpy CE CPU(row) -> GPU(column) bandwidth (GB/s)
           0         1
 0     55.21     {second}

SUM host_to_device_memcpy_ce 110.42
"""


def test_nvbandwidth_as_text() -> None:
    assert [check.verdict for check in nvbandwidth(TEXT.format(second="55.20"), FIGURES)] == [PASS, PASS]
    assert [check.verdict for check in nvbandwidth(TEXT.format(second="25.20"), FIGURES)] == [PASS, FAIL]
    assert [check.verdict for check in nvbandwidth("Running host_to_device_memcpy_ce.\nWAIVED\n", FIGURES)] == [SKIPPED]
    assert [check.verdict for check in nvbandwidth("Running host_to_device_memcpy_ce.\n", FIGURES)] == [NOT_RUN]


def test_a_test_without_a_floor_is_no_pass() -> None:
    found = nvbandwidth(nv(case("device_local_copy", [["1400"]], "memcpy local GPU(column) bandwidth (GB/s)")), FIGURES)
    assert [check.verdict for check in found] == [WARN]


# nccl-tests

TABLE = """# nThread 1 nGpus 8 minBytes 67108864 maxBytes 8589934592 step: 2(factor) warmup iters: 5 iters: 20 validation: 1
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw {header}     time   algbw   busbw {header}
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
    67108864      16777216     float     sum      -1    363.4  184.67  323.17      0    361.3  185.76  325.08      0
  8589934592    2147483648     float     sum      -1  {time}  {alg}  {bus}  {wrong}  31294.0  274.49  480.36      0
# Out of bounds values : {bounds}
# Avg bus bandwidth    : {mean}
#
"""


def table(**values: Any) -> str:
    good = {"header": "#wrong", "time": 31301, "alg": 274.43, "bus": 480.26, "wrong": 0, "bounds": "0 OK", "mean": 402.2}
    return TABLE.format(**{**good, **values})


def test_the_bus_bandwidth_at_the_largest_size_counts() -> None:
    (found,) = nccl_tests("all_reduce_perf", table(), FIGURES, gpus=8)
    assert (found.verdict, found.measured, found.unit) == (PASS, 480.26, "GB/s")
    assert "8589934592 bytes" in found.message


def test_a_rate_that_nccl_tests_would_let_pass() -> None:
    """NCCL_TESTS_MIN_BW=460 fails only below 414."""
    (found,) = nccl_tests("all_reduce_perf", table(bus=430.0, mean="430.1 OK"), FIGURES, code=0)
    assert (found.verdict, found.measured, found.expected) == (FAIL, 430.0, 460)


@pytest.mark.parametrize(
    "values",
    [{"wrong": 12}, {"bounds": "3 FAILED"}, {"bounds": "0 FAILED"}, {"header": "error", "wrong": "2e-07", "bounds": "1 FAILED"}],
)
def test_wrong_values_are_corruption(values: dict[str, Any]) -> None:
    (found,) = nccl_tests("all_reduce_perf", table(**values), FIGURES)
    assert found.verdict == FAIL
    assert found.action == "silent corruption: take out of service"


def test_the_error_column_of_old_releases_is_a_bound_not_a_count() -> None:
    (found,) = nccl_tests("all_reduce_perf", table(header="error", wrong="2e-07"), FIGURES)
    assert found.verdict == PASS


@pytest.mark.parametrize(
    "output",
    ["", "NCCL failure: unhandled cuda error", table().partition("# Out of bounds")[0], table(bus=0, mean=0), table(wrong="N/A")],
)
def test_a_table_that_says_nothing(output: str) -> None:
    assert [check.verdict for check in nccl_tests("all_reduce_perf", output, FIGURES)] == [NOT_RUN]


def test_the_floor_is_that_of_eight_gpus() -> None:
    (found,) = nccl_tests("all_reduce_perf", table(bus=300.0), FIGURES, gpus=4)
    assert found.verdict == WARN


def test_a_code_is_not_ignored() -> None:
    assert [check.verdict for check in nccl_tests("all_reduce_perf", table(), FIGURES, code=1)] == [FAIL]


def test_an_impossible_rate() -> None:
    (found,) = nccl_tests("all_reduce_perf", table(bus=4802.6), FIGURES)
    assert (found.verdict, "implausible" in found.message) == (FAIL, True)


# DCGM


def diagnosis(*results: dict[str, Any], name: str = "Memory", key: str = "DCGM Diagnostic") -> str:
    categories = [{"category": "Hardware", "tests": [{"name": name, "results": list(results)}, None]}]
    return json.dumps({key: {"test_categories": categories}, "version": "4.2.3"})


def test_each_entity_of_release_4() -> None:
    output = diagnosis(
        {"entity_group": "GPU", "entity_group_id": 1, "entity_id": 0, "status": "Pass"},
        {
            "entity_group": "GPU",
            "entity_group_id": 1,
            "entity_id": 5,
            "status": "Fail",
            "warnings": [{"error_category": 7, "error_id": 19, "warning": "Unable to allocate enough memory on the\ndevice"}],
        },
    )
    found = dcgm(output, code=1)
    assert verdicts(found) == [("dcgm_memory", "GPU 0", PASS), ("dcgm_memory", "GPU 5", FAIL)]
    assert "Unable to allocate enough memory on the device" in found[1].message


def test_release_3_after_a_line_that_is_no_json() -> None:
    output = "WARNING: something\n" + diagnosis(
        {"gpu_ids": "0,1", "status": "PASS"}, name="NVML Library", key="DCGM GPU Diagnostic"
    )
    assert verdicts(dcgm(output)) == [("dcgm_nvml_library", "host", PASS)]


@pytest.mark.parametrize(
    ("status", "verdict"), [("Skip", SKIPPED), ("Skipped", SKIPPED), ("Warn", WARN), ("Not Run", NOT_RUN), ("", NOT_RUN)]
)
def test_what_was_skipped_has_not_passed(status: str, verdict: str) -> None:
    assert [check.verdict for check in dcgm(diagnosis({"gpu_ids": "0", "status": status}))] == [verdict]


def test_a_diagnosis_in_which_all_was_skipped_fails_the_host() -> None:
    assert overall(dcgm(diagnosis({"gpu_ids": "0", "status": "Skip"}, {"gpu_ids": "1", "status": "Skip"}))) == FAIL


@pytest.mark.parametrize(
    "output",
    [
        "",
        "Error: unable to establish a connection to the specified host",
        '{"DCGM Diagnostic": {"version": "4.2.3"}}',
        diagnosis(),
    ],
)
def test_a_diagnosis_that_says_nothing(output: str) -> None:
    assert [check.verdict for check in dcgm(output)] == [NOT_RUN]


def test_a_runtime_error_beside_passes() -> None:
    data = json.loads(diagnosis({"gpu_ids": "0", "status": "Pass"}))
    data["DCGM Diagnostic"]["runtime_error"] = "the hostengine died"
    assert overall(dcgm(json.dumps(data))) == FAIL
    assert overall(dcgm(diagnosis({"gpu_ids": "0", "status": "Pass"}), code=226)) == FAIL
