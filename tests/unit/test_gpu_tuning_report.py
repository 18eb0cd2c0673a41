# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The filter onprem.llm.gpu_tuning_report."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.filter.gpu_tuning_report import number, report


def gpu(**changes: Any) -> dict[str, Any]:
    return {
        "address": "0000:17:00.0",
        "device_id": "2335",
        "class": "0x030200",
        "numa_node": 0,
        "driver": "nvidia",
        "link_speed": "32.0 GT/s PCIe",
        "link_speed_max": "32.0 GT/s PCIe",
        "link_width": "16",
        "link_width_max": "16",
        "relaxed_ordering": True,
        **changes,
    }


def facts(*gpus: dict[str, Any], **kernel: Any) -> dict[str, Any]:
    """A host on which nothing is to be found."""
    return {
        "gpus": list(gpus) or [gpu()],
        "nvswitches": [],
        "kernel": {
            "release": "6.1.0-18-amd64",
            "command_line": "quiet",
            "iommu": [],
            "iommu_group_types": [],
            "acs_redirecting_bridges": [],
            "peermem_loaded": False,
            **kernel,
        },
        "module": {"loaded": True, "version": "550.163.01", "kind": "open", "on_disk": "550.163.01"},
        "versions": {"cuda": ["12.4"], "driver": "550.163.01"},
    }


def topics(found: list[dict[str, str]]) -> list[str]:
    assert all(set(item) == {"topic", "finding", "advice"} and all(item.values()) for item in found)
    return [item["topic"] for item in found]


def test_a_host_without_a_device() -> None:
    bare = {**facts(), "gpus": []}
    assert report(bare, "dmabuf", "always madvise [never]", "8192") == [
        {"topic": "devices", "finding": "no NVIDIA device", "advice": "nothing to report"}
    ]


def test_a_host_as_it_should_be() -> None:
    assert report(facts(), "dmabuf") == []


@pytest.mark.parametrize(
    ("units", "types", "told"),
    [
        (["dmar0"], ["DMA-FQ"], ["IOMMU"]),
        (["dmar0"], ["DMA", "identity"], ["IOMMU"]),
        (["dmar0"], ["identity"], []),
        ([], [], []),
        (["dmar0"], [], []),
    ],
)
def test_iommu(units: list[str], types: list[str], told: list[str]) -> None:
    found = report(facts(iommu=units, iommu_group_types=types))
    assert topics(found) == told
    if told:
        assert "iommu=pt" in found[0]["advice"]


def test_acs() -> None:
    found = report(facts(acs_redirecting_bridges=["0000:16:01.0", "0000:16:02.0"]))
    assert topics(found) == ["ACS"]
    assert "on 2 PCI bridges (0000:16:01.0, 0000:16:02.0)" in found[0]["finding"]
    assert "setpci -s BRIDGE ECAP_ACS+0x6.w=0000" in found[0]["advice"]


def test_links() -> None:
    narrow = gpu(link_width="8")
    idle = gpu(address="0000:63:00.0", link_speed="2.5 GT/s PCIe")
    unknown = gpu(address="0000:a1:00.0", link_speed="Unknown", link_speed_max=None, link_width=None)
    found = report(facts(gpu(), narrow, idle, unknown))
    assert topics(found) == ["PCIe width", "PCIe speed"]
    assert found[0]["finding"].endswith("0000:17:00.0 (8 of 16)")
    assert found[1]["finding"].endswith("0000:63:00.0 (2.5 GT/s PCIe of 32.0 GT/s PCIe)")
    assert "under load" in found[1]["advice"]


def test_speed_is_compared_as_a_number() -> None:
    assert topics(report(facts(gpu(link_speed="8.0 GT/s PCIe", link_speed_max="16.0 GT/s PCIe")))) == ["PCIe speed"]
    assert report(facts(gpu(link_width="16", link_width_max="8"))) == []


def test_relaxed_ordering() -> None:
    found = report(facts(gpu(relaxed_ordering=False), gpu(address="0000:63:00.0", relaxed_ordering=None), gpu()))
    assert topics(found) == ["relaxed ordering", "relaxed ordering"]
    assert "off on 0000:17:00.0," in found[0]["finding"]
    assert "0000:63:00.0 cannot be read" in found[1]["finding"]


def test_numa() -> None:
    found = report(facts(gpu(numa_node=None), gpu(address="0000:63:00.0")))
    assert topics(found) == ["NUMA"]
    assert "0000:17:00.0," in found[0]["finding"] and "0000:63:00.0" not in found[0]["finding"]


def test_dma_buffers_want_kernel_modules_and_cuda() -> None:
    old = facts(release="5.10.0-28-amd64")
    old["module"]["kind"] = "proprietary"
    old["versions"]["cuda"] = ["11.4"]
    found = report(old, "dmabuf")
    assert topics(found) == ["peer memory"]
    for part in ("kernel 5.12 or newer (it is 5.10.0-28-amd64)", "open kernel modules", "CUDA 11.7 or newer (it is 11.4)"):
        assert part in found[0]["finding"]
    assert report(old, "none") == []


def test_dma_buffers_with_one_new_toolkit_or_none() -> None:
    both = facts()
    both["versions"]["cuda"] = ["11.4", "12.4"]
    assert report(both, "dmabuf") == []
    both["versions"]["cuda"] = []
    assert report(both, "dmabuf") == []


def test_peermem() -> None:
    assert topics(report(facts(), "nvidia-peermem")) == ["peer memory"]
    assert report(facts(peermem_loaded=True), "nvidia-peermem") == []


def test_no_driver() -> None:
    bare = facts()
    bare["module"] = {"loaded": False, "version": None, "kind": None, "on_disk": None}
    assert report(bare, "dmabuf")[0]["finding"] == "the NVIDIA kernel module is not loaded"
    assert report(bare, "none") == []


@pytest.mark.parametrize(
    ("enabled", "said"),
    [
        ("always [madvise] never", "are madvise"),
        ("[always] madvise never", "are always"),
        ("always madvise [never]", "are never"),
        ("", "cannot be read"),
    ],
)
def test_huge_pages(enabled: str, said: str) -> None:
    found = report(facts(), transparent_hugepage=enabled)
    assert topics(found) == ["huge pages"]
    assert said in found[0]["finding"]
    assert ("nothing to do" in found[0]["advice"]) is (said in ("are madvise", "are always"))


def test_locked_memory() -> None:
    assert report(facts(), locked_memory_kib="unlimited\n")[0]["advice"] == "nothing to do"
    assert "8192 KiB" in report(facts(), locked_memory_kib="8192")[0]["finding"]


def test_numbers() -> None:
    assert number("6.1.0-18-amd64") == (6, 1, 0)
    assert number("16.0 GT/s PCIe") == (16, 0)
    assert number("Unknown") == number(None) == ()
