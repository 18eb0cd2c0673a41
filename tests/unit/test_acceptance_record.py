# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""What a host's record is made of, and that a part that is missing is not passed over."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.filter.acceptance_record import acceptance_record
from ansible_collections.onprem.llm.plugins.module_utils._verdict import Check, overall

GPU = {
    "profile": "hgx_h100",
    "checks": [Check("gpu_count", "PASS", measured=8, expected=8).as_dict()],
    "reading": {"driver": {"version": "570.1", "cuda_version": "12.8"}, "gpus": [{"index": 0, "name": "H100"}]},
}
BENCHMARK = {
    "checks": [Check("memory_bandwidth", "PASS", "GPU 0", 2900.0, 2849, "GB/s", "a document").as_dict()],
    "measurements": [{"name": "memory_bandwidth", "subject": "GPU 0", "value": 2900.0, "unit": "GB/s", "detail": {}}],
}
NETWORK = {
    "checks": [
        Check("network_latency_median", "PASS", "gpu1 -> gpu2", 41.0, 500, "us", "this project").as_dict(),
        Check("network_bandwidth", "PASS", "gpu1 -> gpu2", 2.4, 1.25, "GB/s", "this project").as_dict(),
    ],
    "pairs": [
        {
            "from": "gpu1",
            "to": "gpu2",
            "latency_median_us": 41.0,
            "send_gbytes_per_second": 2.5,
            "receive_gbytes_per_second": 2.4,
        }
    ],
}
COLLECTIVES = {"checks": [Check("all_reduce_bus_bandwidth_hosts", "PASS", measured=390.0, unit="GB/s").as_dict()]}
PARTS: dict[str, Any] = {"gpu": GPU, "benchmark": BENCHMARK, "collectives": COLLECTIVES, "network": NETWORK}


def verdict(record: dict[str, Any]) -> str:
    return overall(Check(**check) for check in record["checks"])


def test_a_whole_record() -> None:
    record = acceptance_record("gpu1", **PARTS, figures={"memory_bandwidth": {"unit": "GB/s", "peak": 3352, "floor": 2849}})
    assert verdict(record) == "PASS"
    assert record["hardware"]["driver_version"] == "570.1"
    memory, latency, bandwidth, back = record["measurements"]
    assert (memory["floor"], memory["peak"], memory["source"]) == (2849, 3352, "a document")
    assert (latency["subject"], latency["value"], latency["floor"], latency["better"]) == ("gpu1 -> gpu2", 41.0, 500, "lower")
    assert (bandwidth["subject"], bandwidth["value"], bandwidth["unit"], bandwidth["floor"]) == (
        "gpu1 -> gpu2",
        20.0,
        "Gbit/s",
        10,
    )
    assert (back["subject"], back["value"], back["floor"]) == ("gpu2 -> gpu1", 19.2, 10)


def test_what_another_host_found_on_the_way_to_this_one_counts() -> None:
    failed = Check("network_reachable", "FAIL", "gpu3 -> gpu1", message="refused").as_dict()
    rail = Check("rdma_bandwidth", "NOT_RUN", "gpu3 mlx5_0 -> gpu1 mlx5_0").as_dict()
    elsewhere = Check("network_reachable", "FAIL", "gpu3 -> gpu10").as_dict()
    record = acceptance_record("gpu1", **PARTS, network_others=[{"checks": [failed, rail, elsewhere]}, {}])
    assert [check["subject"] for check in record["checks"] if check["verdict"] in ("FAIL", "NOT_RUN")] == [
        "gpu3 -> gpu1",
        "gpu3 mlx5_0 -> gpu1 mlx5_0",
    ]
    assert verdict(record) == "FAIL"


@pytest.mark.parametrize("part", list(PARTS))
@pytest.mark.parametrize("nothing", [{}, {"checks": []}, None])
def test_a_part_that_was_to_run_and_said_nothing_fails_the_host(part: str, nothing: Any) -> None:
    record = acceptance_record("gpu1", **{**PARTS, part: nothing})
    assert [check["verdict"] for check in record["checks"]].count("NOT_RUN") == 1
    assert verdict(record) == "FAIL"


def test_a_part_that_the_site_left_out_is_said() -> None:
    record = acceptance_record("gpu1", gpu=GPU, network=NETWORK, expected=["gpu", "network"])
    assert [check["message"] for check in record["checks"] if check["verdict"] == "SKIPPED"] == [
        "the active tests were left out by the site",
        "NCCL's collectives over the hosts were left out by the site",
    ]
    assert verdict(record) == "PASS"


def test_a_host_of_which_everything_was_left_out_is_not_healthy() -> None:
    assert verdict(acceptance_record("gpu1", expected=[])) == "FAIL"
