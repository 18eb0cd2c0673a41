# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``onprem.llm.gpu_tuning_report``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

DOCUMENTATION = r"""
name: gpu_tuning_report
short_description: What a GPU node has otherwise than it should, and what to do
version_added: 0.2.0
author: The onprem.llm authors (@onprem)
description:
  - Looks at what a role cannot set, because it belongs to the firmware, the boot loader or another role, and gives a
    finding with advice for each thing that costs performance.
  - Always says what transparent huge pages and the limit of locked memory are, where these are given.
  - The source of each advice is in docs/gpu-tuning.md.
positional: _input
options:
  _input:
    description: The fact C(onprem_gpu_stack) of M(onprem.llm.gpu_stack_info).
    type: dict
    required: true
  peer_memory:
    description: How network cards are to reach GPU memory.
    type: str
    choices: [dmabuf, nvidia-peermem, none]
    default: none
  transparent_hugepage:
    description: The kernel's choice of transparent huge pages, for instance V(always [madvise] never).
    type: str
  locked_memory_kib:
    description: The hard limit of locked memory of a session in KiB, or V(unlimited).
    type: str
"""

EXAMPLES = r"""
- name: Report what a GPU node should have otherwise
  ansible.builtin.debug:
    msg: "{{ ansible_facts.onprem_gpu_stack | onprem.llm.gpu_tuning_report(peer_memory='dmabuf') }}"
"""

RETURN = r"""
_value:
  description: The findings, in the order in which they are worth looking at.
  type: list
  elements: dict
  contains:
    topic:
      description: What the finding is about.
      type: str
      sample: ACS
    finding:
      description: What was found.
      type: str
    advice:
      description: What to do, or that there is nothing to do.
      type: str
"""

# Kinds of IOMMU groups whose addresses are translated (Linux, sysfs-kernel-iommu_groups); `identity` is passed through.
TRANSLATED = ("DMA", "DMA-FQ")
# What sharing GPU memory as a DMA buffer wants (NVIDIA GPU Operator documentation, GPUDirect RDMA).
DMABUF_KERNEL = (5, 12)
DMABUF_CUDA = (11, 7)

Finding = dict[str, str]
Facts = Mapping[str, Any]


def finding(topic: str, found: str, advice: str) -> Finding:
    return {"topic": topic, "finding": found, "advice": advice}


def number(text: Any) -> tuple[int, ...]:
    """The figures at the beginning of a version or a PCIe speed: ``6.1.0-18-amd64`` is (6, 1, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", str(text or ""))
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def addresses(devices: list[dict[str, Any]]) -> str:
    return ", ".join(device["address"] for device in devices)


def iommu(facts: Facts) -> Iterator[Finding]:
    kernel = facts["kernel"]
    translated = [kind for kind in kernel["iommu_group_types"] if kind in TRANSLATED]
    if kernel["iommu"] and translated:
        yield finding(
            "IOMMU",
            f"the IOMMU translates device addresses (group type {', '.join(translated)}), which slows transfers between devices",
            "on bare metal put iommu=pt on the kernel's command line, or switch the IOMMU off in the firmware; leave it where "
            "devices are handed to virtual machines",
        )


def acs(facts: Facts) -> Iterator[Finding]:
    bridges = facts["kernel"]["acs_redirecting_bridges"]
    if bridges:
        yield finding(
            "ACS",
            f"ACS redirects on {len(bridges)} PCI bridges ({', '.join(bridges)}), so that peer-to-peer traffic goes through the "
            "root complex",
            "switch ACS off in the firmware, or at each boot with `setpci -s BRIDGE ECAP_ACS+0x6.w=0000` for each of them; leave "
            "it where devices are handed to virtual machines, which it separates",
        )


def links(facts: Facts) -> Iterator[Finding]:
    narrow: list[str] = []
    slow: list[str] = []
    for gpu in facts["gpus"]:
        for field, told in (("width", narrow), ("speed", slow)):
            now, most = number(gpu[f"link_{field}"]), number(gpu[f"link_{field}_max"])
            if now and most and now < most:
                told.append(f"{gpu['address']} ({gpu[f'link_{field}']} of {gpu[f'link_{field}_max']})")
    if narrow:
        yield finding(
            "PCIe width",
            f"the link is narrower than the GPU's own: {', '.join(narrow)}",
            "see that the card sits in a slot with all its lanes, and that the firmware does not split the slot; reseat the card",
        )
    if slow:
        yield finding(
            "PCIe speed",
            f"the link is slower than the GPU's own: {', '.join(slow)}",
            "look again under load, since an idle GPU lowers it; if it stays, look at the slot, a riser or the firmware's limit",
        )


def relaxed_ordering(facts: Facts) -> Iterator[Finding]:
    off = [gpu for gpu in facts["gpus"] if gpu["relaxed_ordering"] is False]
    unknown = [gpu for gpu in facts["gpus"] if gpu["relaxed_ordering"] is None]
    if off:
        yield finding(
            "relaxed ordering",
            f"relaxed ordering is off on {addresses(off)}, which holds back writes to host memory",
            "allow it in the firmware's PCIe settings; some root ports have it off because of an erratum, and then it stays so",
        )
    if unknown:
        yield finding(
            "relaxed ordering",
            f"relaxed ordering of {addresses(unknown)} cannot be read",
            "read it as root on the host itself: `lspci -vvv` shows RlxdOrd",
        )


def numa(facts: Facts) -> Iterator[Finding]:
    lost = [gpu for gpu in facts["gpus"] if gpu["numa_node"] is None]
    if lost:
        yield finding(
            "NUMA",
            f"the firmware names no NUMA node for {addresses(lost)}, so that processes are not placed near them",
            "with one processor there is nothing to do; with more, look for NUMA or sub-NUMA settings and a newer version of the "
            "firmware, and bind processes by hand",
        )


def peer_memory_findings(facts: Facts, peer_memory: str) -> Iterator[Finding]:
    module, kernel = facts["module"], facts["kernel"]
    topic = "peer memory"
    if peer_memory == "none":
        return
    if not module["loaded"]:
        yield finding(topic, "the NVIDIA kernel module is not loaded", "install the driver (role nvidia_driver), or boot into it")
    elif peer_memory == "nvidia-peermem" and not kernel["peermem_loaded"]:
        yield finding(topic, "nvidia-peermem is not loaded", "run the role gpu_tuning, which loads it")
    elif peer_memory == "dmabuf":
        cuda = [release for release in facts["versions"]["cuda"] if number(release)]
        lacking = []
        if number(kernel["release"]) < DMABUF_KERNEL:
            lacking.append(f"kernel 5.12 or newer (it is {kernel['release']})")
        if module["kind"] == "proprietary":
            lacking.append("the open kernel modules (they are proprietary)")
        if cuda and max(map(number, cuda)) < DMABUF_CUDA:
            lacking.append(f"CUDA 11.7 or newer (it is {', '.join(cuda)})")
        if lacking:
            yield finding(
                topic,
                f"GPU memory cannot be shared as a DMA buffer, which wants {' and '.join(lacking)}",
                "change that, or set gpu_tuning_peer_memory: nvidia-peermem",
            )


def huge_pages(enabled: str) -> Finding:
    match = re.search(r"\[(\w+)\]", enabled)
    value = match[1] if match else enabled.strip()
    if value == "madvise":
        said = "nothing to do: allocators that profit ask for them"
    elif value == "always":
        said = "nothing to do for GPUs; host_transparent_hugepage: madvise keeps resident memory smaller"
    elif value == "never":
        said = "set host_transparent_hugepage: madvise, so that pinned host buffers take fewer page table entries"
    else:
        return finding("huge pages", "transparent huge pages cannot be read here", "look at it on the host's own kernel")
    return finding("huge pages", f"transparent huge pages are {value}", said)


def locked_memory(limit: str) -> Finding:
    limit = limit.strip()
    if limit == "unlimited":
        return finding("locked memory", "a session may lock unlimited memory", "nothing to do")
    return finding(
        "locked memory",
        f"a session may lock {limit} KiB of memory, and RDMA locks all that it transfers",
        "set host_locked_memory_limit: unlimited and log in anew; a service has LimitMEMLOCK= in its unit",
    )


def report(
    facts: Facts,
    peer_memory: str = "none",
    transparent_hugepage: str | None = None,
    locked_memory_kib: str | None = None,
) -> list[Finding]:
    """What to look at on a host, by topic; the filter's documentation has the details."""
    if not facts["gpus"]:
        return [finding("devices", "no NVIDIA device", "nothing to report")]
    found = [item for look in (iommu, acs, links, relaxed_ordering, numa) for item in look(facts)]
    found += peer_memory_findings(facts, peer_memory)
    if transparent_hugepage is not None:
        found.append(huge_pages(transparent_hugepage))
    if locked_memory_kib is not None:
        found.append(locked_memory(locked_memory_kib))
    return found


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"gpu_tuning_report": report}
