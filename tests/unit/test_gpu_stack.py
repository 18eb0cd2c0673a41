# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_stack import (
    COMPONENTS,
    GpuStackError,
    data,
    merged,
    number,
    older,
    platform_of,
    problems,
    stack,
    stacks,
)

FACTS: dict[str, Any] = {
    "gpus": [],
    "nvswitches": [],
    "kernel": {
        "release": "6.1.0-40-amd64",
        "headers": True,
        "secure_boot": False,
        "secure_boot_reason": "",
        "module_signing_key": False,
    },
    "module": {"loaded": False, "version": None},
    "versions": {"driver": None, "fabric_manager": None},
}
A100, V100, B200 = ({"device_id": name} for name in ("20b2", "1db5", "2901"))


def facts(**changes: Any) -> dict[str, Any]:
    found = copy.deepcopy(FACTS)
    for name, value in changes.items():
        found[name] = {**found[name], **value} if isinstance(value, dict) else value
    return found


def chosen(name: str = "cuda-12.9", platform: str = "debian12") -> dict[str, Any]:
    return stack(name, "nvidia", platform)


def test_the_data_file_is_whole() -> None:
    documents = data()["documents"]
    for name, figures in data()["stacks"].items():
        assert name == f"cuda-{figures['cuda']['release']}"
        assert set(figures["figures"]) <= set(documents)
        assert not older(figures["driver"]["minimum"], figures["driver"]["minimum_compatible"])
        assert older(figures["compute_capability"]["lowest"], figures["compute_capability"]["highest"])
        for kind, platforms in figures["packages"].items():
            assert kind in ("nvidia", "distribution")
            for platform, versions in platforms.items():
                assert platform in data()["platforms"]
                assert set(versions) <= set(COMPONENTS)
                assert versions["cuda"] == f"{figures['cuda']['release']}.*"
                # A set whose own driver is too old for its toolkit would be refused by its own preflight.
                assert not older(versions["driver"], figures["driver"]["minimum"]), (name, kind, platform)
                # NVIDIA's fabric manager must be of the driver's version.
                assert versions.get("fabric_manager", versions["driver"]) == versions["driver"]
    for platform in data()["platforms"].values():
        assert len(platform["fingerprint"]) == 40
        assert set(platform["figures"]) <= set(documents)
    for device_id, gpu in data()["gpus"].items():
        assert len(device_id) == 4
        int(device_id, 16)
        assert set(gpu) <= {"name", "compute_capability", "modules", "fabric_manager"}


def test_the_set_of_the_lab() -> None:
    found = stack("cuda-12.4", "distribution", "debian13", component="nccl")
    assert found["versions"] == {"driver": "550.*", "cuda": "12.4.*", "nccl": "2.22.*", "cudnn": "9.0.*"}
    assert (found["format"], found["packages_of"]) == ("deb", "distribution")
    assert stack("cuda-12.4", "distribution_mirror", "debian13")["versions"] == found["versions"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("cuda-99", "nvidia", "debian12"), "no GPU stack 'cuda-99'; known are cuda-11.8, cuda-12.2"),
        (("", "nvidia", "debian12"), "onprem_llm_gpu_stack is not set; known are"),
        (("cuda-12.9", "nvidia", "arch"), "not made for the platform 'arch'; it is for ubuntu2204"),
        (("cuda-12.9", "pypi", "debian12"), "onprem_llm_gpu_source is 'pypi'; known are nvidia, distribution"),
        (("cuda-12.4", "distribution", "debian12"), "(only for debian13). From that source there is cuda-11.8 for debian12"),
    ],
)
def test_what_is_not_there_names_what_is(words: tuple[str, str, str], says: str) -> None:
    with pytest.raises(GpuStackError) as caught:
        stack(*words)
    assert says in str(caught.value)


def test_a_component_that_a_source_lacks() -> None:
    with pytest.raises(GpuStackError, match=r"hold no nccl for the GPU stack cuda-11\.8"):
        stack("cuda-11.8", "distribution", "debian12", component="nccl")


def test_a_site_adds_a_set() -> None:
    own = {"ours": {"like": "cuda-12.9", "packages": {"nvidia": {"debian12": {"driver": "580.*"}}}}}
    found = stack("ours", "nvidia", "debian12", own)
    assert found["versions"]["driver"] == "580.*"
    assert found["versions"]["cuda"] == "12.9.*"
    assert "ours" not in stacks()
    assert stack("cuda-12.9", "nvidia", "debian12")["versions"]["driver"] == "575.*"
    with pytest.raises(GpuStackError, match="is like 'cuda-1', which is not known"):
        stacks({"ours": {"like": "cuda-1"}})
    with pytest.raises(GpuStackError, match="ours lacks cuda"):
        stacks({"ours": {"driver": {}}})


@pytest.mark.parametrize(
    ("version", "than", "expected"),
    [
        ("550.54.13", "550.54.14", True),
        ("550.54.14", "550.54.14", False),
        ("550.*", "550.54.14", False),
        ("549.*", "550.54.14", True),
        ("9.0", "10.0", True),
        ("10.0", "9.0", False),
        ("575.57", "575.57.08", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, than: str, expected: bool) -> None:
    assert older(version, than) is expected


def test_numbers_of_a_pattern() -> None:
    assert number("12.4.*") == (12, 4)


def test_a_host_without_a_gpu_can_take_all() -> None:
    assert problems(facts(), chosen(), modules="open", driver_version="575.*") == []


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, {"driver_version": "570.*"}, "nvidia_driver_version is 570.*, and CUDA 12.9 wants 575.51.03 or newer"),
        ({"module": {"loaded": True, "version": "520.61.05"}}, {}, "the loaded driver is 520.61.05"),
        ({"gpus": [V100]}, {"modules": "open", "driver_version": "575.*"}, "works with proprietary kernel modules only"),
        ({"gpus": [B200]}, {"modules": "proprietary", "driver_version": "575.*"}, "works with open kernel modules only"),
        (
            {"gpus": [A100], "kernel": {"headers": False}},
            {"modules": "open", "driver_version": "575.*", "headers_on_offer": False},
            "6.1.0-40-amd64 has no headers installed and none on offer",
        ),
        ({"gpus": [A100], "kernel": {"secure_boot": True}}, {"modules": "open", "driver_version": "575.*"}, "Secure Boot is on"),
        (
            {"gpus": [A100], "kernel": {"secure_boot": None, "secure_boot_reason": "unreadable"}},
            {"modules": "open", "driver_version": "575.*"},
            "Secure Boot is unknown (unreadable)",
        ),
        ({"nvswitches": [{}] * 4}, {"driver_version": "575.*", "fabric_manager": False}, "has 4 NVSwitches"),
        ({"versions": {"driver": "575.57.08", "fabric_manager": "575.51.03"}}, {}, "fabric manager is 575.51.03 and the driver"),
    ],
)
def test_what_cannot_work_is_told(changes: dict[str, Any], options: dict[str, Any], says: str) -> None:
    found = problems(facts(**changes), chosen(), **options)
    assert len(found) == 1, found
    assert says in found[0]


def test_compute_capabilities_against_the_toolkit() -> None:
    assert "supports 7.5 and newer" in problems(facts(gpus=[V100]), chosen("cuda-13.0"))[0]
    assert "does not know yet (up to 9.0)" in problems(facts(gpus=[B200]), chosen("cuda-12.4"))[0]
    assert problems(facts(gpus=[A100]), chosen()) == []
    assert problems(facts(gpus=[{"device_id": "ffff"}]), chosen()) == []


def test_minor_version_compatibility_is_enough() -> None:
    assert problems(facts(module={"loaded": True, "version": "550.54.15"}), chosen()) == []


def test_platforms() -> None:
    assert platform_of("rhel9")["format"] == "rpm"
    assert platform_of("debian13")["key"] != platform_of("debian12")["key"]


def test_nothing_else_is_held() -> None:
    text = (Path(__file__).resolve().parents[2] / "roles/cuda/vars/main.yml").read_text(encoding="utf-8")
    patterns = yaml.safe_load(text)["__cuda_distribution_holds"]
    others = ("libcurl4", "libcurl3-gnutls", "libcups2", "libnvme1", "libcue2", "libcunit1", "libnvpair3linux", "nvidia-smi")
    assert [name for name in others if any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in ("libcublas12", "nvidia-cuda-dev", "libnvrtc12"))


def test_a_driver_that_is_about_to_be_replaced_is_no_obstacle() -> None:
    old = facts(module={"loaded": True, "version": "520.61.05"}, versions={"driver": "520.61.05", "fabric_manager": "515.1"})
    assert problems(old, chosen("cuda-13.0"), loaded_driver=False) == []
    assert len(problems(old, chosen("cuda-13.0"))) == 2


def test_merging_copies_nothing_deeply() -> None:
    """A deep copy of values that Ansible templates as they are read took most of the time of a run of site.yml."""

    class Lazy(dict[str, Any]):
        def __deepcopy__(self, _memo: Any) -> Any:
            raise AssertionError("copied")

    base = Lazy(kept=Lazy(a=1), changed=Lazy(a=1, b=Lazy(c=1)))
    assert merged(base, Lazy(changed=Lazy(a=2), new=Lazy(a=1))) == {
        "kept": {"a": 1},
        "changed": {"a": 2, "b": {"c": 1}},
        "new": {"a": 1},
    }
    assert base == {"kept": {"a": 1}, "changed": {"a": 1, "b": {"c": 1}}}
