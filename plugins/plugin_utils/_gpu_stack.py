# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The compatibility sets of the GPU stack: which versions belong together, and what a host cannot run.

The figures are in ``gpu_stacks.yml`` beside this file; a site's own sets are merged over them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.plugin_utils._yaml_file import read_yaml

FILE = Path(__file__).with_name("gpu_stacks.yml")
SOURCES = ("nvidia", "distribution", "nvidia_mirror", "distribution_mirror")
COMPONENTS = ("driver", "fabric_manager", "cuda", "cudnn", "nccl", "container_toolkit")


class GpuStackError(Exception):
    """A set, a component or a combination that cannot be; the message says what there is instead."""


@cache
def data() -> dict[str, Any]:
    return dict(read_yaml(FILE))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The one over the other; what they share is shared, as a copy of Ansible's templated values takes seconds."""
    whole = dict(base)
    for key, value in over.items():
        known = whole.get(key)
        whole[key] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return whole


def stacks(own: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """All sets by name; one of the site's may start from another with ``like``."""
    known: dict[str, dict[str, Any]] = dict(data()["stacks"])
    for name, given in (own or {}).items():
        base = given.get("like")
        if base is not None and base not in known:
            raise GpuStackError(f"onprem_llm_gpu_stacks: {name} is like {base!r}, which is not known ({', '.join(known)}).")
        known[name] = merged(known[base] if base else known.get(name, {}), {k: v for k, v in given.items() if k != "like"})
        for part in ("cuda", "driver", "compute_capability", "packages"):
            if part not in known[name]:
                raise GpuStackError(f"onprem_llm_gpu_stacks: {name} lacks {part}; start from a known set with `like`.")
    return known


def packages_of(source: str) -> str:
    """Whose packages a source holds: NVIDIA's or the distribution's."""
    if source not in SOURCES:
        raise GpuStackError(f"onprem_llm_gpu_source is {source!r}; known are {', '.join(SOURCES)}.")
    return source.removesuffix("_mirror")


def platform_of(name: str) -> dict[str, Any]:
    """Package format, folder and signing keys of a platform."""
    platforms = data()["platforms"]
    if name not in platforms:
        raise GpuStackError(f"The GPU stack is not made for the platform {name!r}; it is for {', '.join(platforms)}.")
    return {**platforms[name], "container_toolkit_key": data()["container_toolkit_key"]}


def stack(
    name: str, source: str, platform: str, own: Mapping[str, Mapping[str, Any]] | None = None, component: str | None = None
) -> dict[str, Any]:
    """One set as it is on one platform: its figures, and a version pattern for each component that the source has."""
    known = stacks(own)
    if name not in known:
        said = f"There is no GPU stack {name!r}" if name else "onprem_llm_gpu_stack is not set"
        raise GpuStackError(f"{said}; known are {', '.join(known)}. A site's own go into onprem_llm_gpu_stacks.")
    host = platform_of(platform)
    kind = packages_of(source)
    offered = known[name]["packages"].get(kind, {})
    if platform not in offered:
        others = [other for other, figures in known.items() if platform in figures["packages"].get(kind, {})]
        raise GpuStackError(
            f"The GPU stack {name} is not among the {kind} packages for {platform} "
            f"(only for {', '.join(offered) or 'no platform'}). "
            f"From that source there is {', '.join(others) or 'nothing'} for {platform}; "
            "set onprem_llm_gpu_stack or onprem_llm_gpu_source accordingly."
        )
    versions = offered[platform]
    if component and component not in versions:
        raise GpuStackError(
            f"The {kind} packages for {platform} hold no {component} for the GPU stack {name} "
            f"(they have {', '.join(versions)}). Set {component}_state: absent, or take another onprem_llm_gpu_source."
        )
    return {
        **{key: value for key, value in known[name].items() if key != "packages"},
        "name": name,
        "packages_of": kind,
        "platform": platform,
        "format": host["format"],
        "versions": versions,
    }


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("*")[0]))


def older(version: str, than: str) -> bool:
    """Whether a version, or every version of a pattern such as ``550.*``, is older; only what both give is compared."""
    left, right = number(version), number(than)
    length = min(len(left), len(right)) if "*" in version else max(len(left), len(right))
    return left[:length] < right[:length]


def gpu(device_id: str) -> dict[str, Any]:
    """What the data file knows of a PCI device id."""
    return dict(data()["gpus"].get(device_id.lower(), {}))


def problems(facts: Mapping[str, Any], chosen: Mapping[str, Any], **options: Any) -> list[str]:
    """Why a host cannot run a set, each with what to change; see the filter ``onprem.llm.gpu_stack_problems``."""
    return [*driver_problems(facts, chosen, **options), *device_problems(facts, chosen), *kernel_problems(facts, **options)]


def driver_problems(
    facts: Mapping[str, Any],
    chosen: Mapping[str, Any],
    driver_version: str = "",
    fabric_manager: bool | None = None,
    loaded_driver: bool = True,
    **_: Any,
) -> Iterator[str]:
    release, driver = chosen["cuda"]["release"], chosen["driver"]
    loaded = facts["module"]["version"] if loaded_driver and not driver_version else None
    if driver_version and older(driver_version, driver["minimum"]):
        yield (
            f"nvidia_driver_version is {driver_version}, and CUDA {release} wants {driver['minimum']} or newer. Set a version of "
            f"branch {driver['branch']} or newer, or another onprem_llm_gpu_stack."
        )
    if loaded and older(loaded, driver["minimum_compatible"]):
        yield (
            f"the loaded driver is {loaded}, and CUDA {release} wants {driver['minimum']} (within its major release at least "
            f"{driver['minimum_compatible']}). Upgrade it with the role nvidia_driver, or take an older onprem_llm_gpu_stack."
        )
    manager, installed = facts["versions"].get("fabric_manager"), facts["versions"].get("driver")
    if loaded_driver and not driver_version and manager and installed and manager != installed:
        yield (
            f"the fabric manager is {manager} and the driver {installed}; they must be of one version. Run the role "
            "nvidia_driver, which installs both."
        )
    if fabric_manager is False and facts["nvswitches"]:
        yield (
            f"the host has {len(facts['nvswitches'])} NVSwitches, which do not work without the fabric manager. Set "
            "nvidia_driver_fabric_manager: auto."
        )


def device_problems(facts: Mapping[str, Any], chosen: Mapping[str, Any]) -> Iterator[str]:
    lowest, highest = chosen["compute_capability"]["lowest"], chosen["compute_capability"]["highest"]
    for device_id in sorted({device["device_id"].lower() for device in facts["gpus"]}):
        known = gpu(device_id)
        capability = known.get("compute_capability")
        if capability and older(capability, lowest):
            yield (
                f"{known['name']} has compute capability {capability}, and CUDA {chosen['cuda']['release']} supports {lowest} "
                "and newer. Take an older onprem_llm_gpu_stack."
            )
        elif capability and older(highest, capability):
            yield (
                f"{known['name']} has compute capability {capability}, which CUDA {chosen['cuda']['release']} does not know yet "
                f"(up to {highest}). Take a newer onprem_llm_gpu_stack."
            )


def kernel_problems(
    facts: Mapping[str, Any], modules: str = "", headers_on_offer: bool | None = None, signed_modules: bool = False, **_: Any
) -> Iterator[str]:
    """What only matters where a module is to be built and loaded: without a device there is nothing to load it for."""
    if not modules or not facts["gpus"]:
        return
    kernel = facts["kernel"]
    if not kernel["headers"] and headers_on_offer is False:
        yield (
            f"the running kernel {kernel['release']} has no headers installed and none on offer, so that no module can be built "
            "for it. Boot a kernel of the distribution's current release, or offer its headers."
        )
    if kernel["secure_boot"] is not False and not kernel["module_signing_key"] and not signed_modules:
        state = "on" if kernel["secure_boot"] else f"unknown ({kernel['secure_boot_reason']})"
        yield (
            f"Secure Boot is {state}, and there is no key to sign modules with, so that the kernel would refuse them. Enrol a "
            "machine owner key (mokutil --import /var/lib/dkms/mok.pub), or switch Secure Boot off; if your modules come "
            "signed, set nvidia_driver_signed_modules: true."
        )
    for device_id in sorted({device["device_id"].lower() for device in facts["gpus"]}):
        wanted = gpu(device_id).get("modules", "either")
        if wanted not in ("either", modules):
            yield (
                f"{gpu(device_id)['name']} works with {wanted} kernel modules only, and nvidia_driver_modules is {modules}. "
                f"Set it to {wanted}."
            )
