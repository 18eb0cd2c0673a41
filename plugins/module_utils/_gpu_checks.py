# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what was read from a host with what it should be.

Nothing here touches a device: readings go in, checks come out. A value that an expectation needs and that could not be
read is NOT_RUN, which fails the host; a value that the device does not have and nobody expects is SKIPPED.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, PASS, SKIPPED, WARN, Check
from ansible_collections.onprem.llm.plugins.module_utils._xid import bus_id, worst_by_device

# What to do when NVML cannot be read, by the state that the reading gives.
NVML_ACTIONS = {
    "no_bindings": "Run the role gpu_probe on the host, or set `environment` to where nvidia-ml-py is.",
    "no_library": "Install the NVIDIA driver (role nvidia_driver); libnvidia-ml.so.1 comes with it.",
    "driver_not_loaded": "Load the kernel module (modprobe nvidia); `dmesg | grep -i nvrm` says why it does not load.",
    "driver_mismatch": "Reboot the host: the loaded kernel module is of another version than the installed driver.",
    "hung": "Reboot the host: the driver does not answer.",
    "error": "Read `dmesg | grep -i nvrm` on the host.",
}
# What NVIDIA's driver wants done, in an operator's words (nvml.h, nvmlDeviceGpuRecoveryAction_t).
RECOVERY = {
    "gpu_reset": "Reset the GPU (nvidia-smi --gpu-reset).",
    "node_reboot": "Reboot the host.",
    "drain_p2p": "End what uses peer-to-peer on this GPU, then reset it.",
    "drain_and_reset": "Drain the GPU, then reset it.",
    "recover_imex_domain": "Recover the IMEX domain.",
    "bus_reset": "Reset the PCI bus of the GPU.",
    "system_reboot": "Reboot the whole system.",
}
POLICY_ACTIONS = {
    "ignore": "Nothing to do.",
    "watch": "Watch whether it comes again.",
    "restart_application": "Restart what ran on the GPU.",
    # The kernel's log keeps the message after the reset.
    "reset_gpu": "Drain the GPU and reset it (nvidia-smi --gpu-reset); this verdict stays until the next reboot.",
    "reboot_host": "Drain the host and reboot it.",
    "replace": "Take the GPU out of service and have it replaced.",
}
POLICY_VERDICTS = {"ignore": PASS, "watch": WARN, "restart_application": WARN}
# Reasons for lower clocks that no load explains (nvml.h, nvmlClocksEventReason*).
# What is known best comes first: a hardware slowdown is said beside its cause.
THROTTLES = {
    "hardware_thermal_slowdown": "Look at the cooling: fans, air flow, inlet temperature.",
    "software_thermal_slowdown": "Look at the cooling: fans, air flow, inlet temperature.",
    "hardware_power_brake": "Look at the power supply: the board was told to slow down.",
    "hardware_slowdown": "Look at power supply and cooling of the GPU.",
}
# Bits of the fabric's health mask (nvml.h, NVML_GPU_FABRIC_HEALTH_MASK_*): two for each, where 1 says that it is so.
FABRIC_HEALTH = {
    "degraded bandwidth": 0,
    "route recovery in progress": 2,
    "route unhealthy": 4,
    "access timeout recovery": 6,
}
# A number of its own in the same mask: above one, the fabric's configuration does not fit this GPU.
FABRIC_CONFIGURATION_SHIFT = 8
# From this performance state on a GPU rests, and lowers its PCIe generation to save power.
RESTING = 5


@dataclass
class Expectation:
    """What a host should be; null where nothing is expected. `sources` names for a field where its value comes from."""

    gpus: int
    product: str | None = None
    pci_device_ids: list[str] = field(default_factory=list)
    memory_bytes: int | None = None
    minimum_driver: str | None = None
    ecc: bool | None = None
    mig: bool | None = False
    persistence_mode: bool | None = True
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvlink: str | None = None
    nvlink_links: int | None = None
    nvlink_gbytes_per_second: float | None = None
    nvswitches: int | None = None
    fabric: bool | None = None
    power_limit_watts: float | None = None
    temperature_celsius: float | None = None
    numa_nodes: int | None = None
    idle: bool | None = None
    sources: dict[str, str] = field(default_factory=dict)

    def source(self, name: str) -> str:
        return self.sources.get(name, "set by the site")


def version_key(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


class GpuChecks:
    """All checks of one host."""

    def __init__(
        self,
        reading: Mapping[str, Any],
        expectation: Expectation,
        xid_policy: Mapping[str, Any],
        kernel_events: Iterable[Mapping[str, Any]] | None,
        kernel_log: str,
        kernel_log_lost: str | None = None,
        pci_gpus: list[dict[str, Any]] | None = None,
        pci_nvswitches: list[dict[str, Any]] | None = None,
    ) -> None:
        self.reading = reading
        self.wanted = expectation
        self.policy = xid_policy
        self.events = None if kernel_events is None else list(kernel_events)
        self.kernel_log = kernel_log
        self.kernel_log_lost = kernel_log_lost
        self.pci_gpus = pci_gpus or []
        self.pci_nvswitches = pci_nvswitches or []
        self.checks: list[Check] = []
        self.subject = "host"
        self.gpu: Mapping[str, Any] = {}

    def run(self) -> list[Check]:
        self.host()
        for gpu in self.reading["gpus"]:
            self.subject, self.gpu = f"GPU {gpu['index']}", gpu
            if self.responds():
                for check in (self.product, self.memory, self.remapping, self.pcie, self.nvlink, self.clocks, self.operation):
                    check()
                self.readings()
        self.kernel()
        return self.checks

    # --- how a check is made -----------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        good: bool,
        measured: Any,
        expected: Any,
        *,
        action: str,
        message: str = "",
        unit: str | None = None,
        source: str = "",
        bad: str = FAIL,
    ) -> None:
        self.checks.append(
            Check(
                name=name,
                verdict=PASS if good else bad,
                subject=self.subject,
                measured=measured,
                expected=expected,
                unit=unit,
                source=source,
                action="" if good else action,
                message=message or f"{measured} found, {expected} wanted" + (f" ({unit})" if unit else ""),
            )
        )

    def unread(self, name: str, path: str, *, expected: Any = None, needed: bool = True, source: str = "") -> None:
        """A value that is not there: NOT_RUN where it is needed, else SKIPPED; with the reason."""
        unsupported = self.gpu.get("unsupported", {}).get(path)
        reason = self.gpu.get("errors", {}).get(path) or unsupported or "NVML did not tell"
        failed = needed or path in self.gpu.get("errors", {})
        self.checks.append(
            Check(
                name=name,
                verdict=NOT_RUN if failed else SKIPPED,
                subject=self.subject,
                expected=expected,
                source=source,
                action="Find out why it cannot be read; the host is not known to be healthy." if failed else "",
                message=f"{path}: {reason}",
            )
        )

    def at_least(self, name: str, path: str, measured: Any, expected: Any, unit: str, field_name: str, action: str) -> None:
        """A bound of the expectation, or, where that has none, the card's own that NVML gives."""
        if expected is None:
            return
        source = self.wanted.source(field_name) if getattr(self.wanted, field_name) is not None else "NVML, the card's own"
        if measured is None:
            self.unread(name, path, expected=expected, source=source)
            return
        self.add(
            name,
            measured >= expected,
            measured,
            expected,
            unit=unit,
            source=source,
            action=action,
            message=f"{measured} {unit} found, at least {expected} {unit} wanted",
        )

    # --- the host ----------------------------------------------------------------------------------------------------

    def host(self) -> None:
        state = self.reading["state"]
        # Calls about one GPU that did not return are laid at its door; these are the driver's own.
        hung = {path: why for path, why in self.reading["hung_calls"].items() if not path.startswith("GPU ")}
        if state != "read":
            said = str(self.reading["reason"])
        else:
            said = "; ".join(f"{path}: {why}" for path, why in hung.items()) or "NVML answered"
        self.add(
            "nvml",
            state == "read" and not hung,
            "hung" if hung else state,
            "read",
            action=NVML_ACTIONS["hung"] if hung else NVML_ACTIONS.get(state, NVML_ACTIONS["error"]),
            message=said,
        )
        count = self.reading["count"]
        wanted = self.wanted
        if count is None:
            self.checks.append(
                Check(
                    "gpu_count",
                    NOT_RUN,
                    expected=wanted.gpus,
                    unit="GPUs",
                    source=wanted.source("gpus"),
                    action="Mend what the check nvml names.",
                    message="NVML was not asked how many GPUs there are",
                )
            )
        else:
            self.add(
                "gpu_count",
                count == wanted.gpus and count > 0,
                count,
                wanted.gpus,
                unit="GPUs",
                source=wanted.source("gpus"),
                action="Look for missing GPUs with `lspci -d 10de:` and in the kernel's log; reseat or replace them."
                if count < wanted.gpus
                else "Correct the expected number, or take out what does not belong there.",
                message=f"{count} GPUs found, {wanted.gpus} wanted",
            )
            unread = [index for index in range(count) if index not in {gpu["index"] for gpu in self.reading["gpus"]}]
            for index in unread:
                self.checks.append(
                    Check(
                        "responds",
                        NOT_RUN,
                        f"GPU {index}",
                        action=NVML_ACTIONS["hung"],
                        message="it was not reached before the reading ended",
                    )
                )
        self.driver()
        self.bus()
        self.topology()

    def driver(self) -> None:
        wanted, version = self.wanted.minimum_driver, self.reading["driver"].get("version")
        if wanted is None or (version is None and self.reading["state"] != "read"):
            return
        self.add(
            "driver_version",
            version is not None and version_key(version) >= version_key(wanted),
            version,
            wanted,
            source=self.wanted.source("minimum_driver"),
            action=f"Install driver {wanted} or newer (role nvidia_driver).",
            message=f"driver {version} found, {wanted} or newer wanted",
        )

    def bus(self) -> None:
        """What the PCI bus shows and NVML does not list: a GPU that the driver has lost or does not support."""
        listed = {bus_id(gpu["pci"]["bus_id"]) for gpu in self.reading["gpus"] if gpu.get("pci")}
        shown = {bus_id(device["address"]) for device in self.pci_gpus}
        if not shown:
            self.checks.append(
                Check("pci_devices", SKIPPED, message="/sys/bus/pci shows no NVIDIA GPU here, so NVML's list is not compared")
            )
        else:
            missing = sorted(shown - listed)
            self.add(
                "pci_devices",
                not missing,
                len(shown & listed),
                len(shown),
                unit="GPUs",
                source="PCI bus",
                action="Reboot the host; if the GPU stays away, reseat or replace it.",
                message=f"NVML does not list {', '.join(missing)}" if missing else "NVML lists every GPU of the PCI bus",
            )
        if self.wanted.nvswitches is not None:
            found = len(self.pci_nvswitches)
            if not shown and not found:
                self.checks.append(
                    Check(
                        "nvswitches",
                        SKIPPED,
                        expected=self.wanted.nvswitches,
                        message="/sys/bus/pci shows no NVIDIA device here; the links' other ends are checked instead",
                    )
                )
                return
            self.add(
                "nvswitches",
                found >= self.wanted.nvswitches,
                found,
                self.wanted.nvswitches,
                unit="NVSwitches",
                source=self.wanted.source("nvswitches"),
                action="Look for missing NVSwitches with `lspci -d 10de:` and have the base board looked at.",
            )

    def topology(self) -> None:
        gpus, pairs = self.reading["gpus"], self.reading["topology"]
        if self.wanted.nvlink == "full_mesh" and self.with_mig(gpus):
            self.checks.append(Check("nvlink_mesh", SKIPPED, message="NVLink is off while MIG is on"))
        elif self.wanted.nvlink == "full_mesh" and len(gpus) > 1:
            without = [pair["gpus"] for pair in pairs if pair["nvlink"] is False]
            unknown = [pair["gpus"] for pair in pairs if pair["nvlink"] is None]
            complete = len(pairs) == len(gpus) * (len(gpus) - 1) // 2
            if unknown or not complete:
                self.checks.append(
                    Check(
                        "nvlink_mesh",
                        NOT_RUN,
                        expected="full_mesh",
                        source=self.wanted.source("nvlink"),
                        action="Find out why NVML does not tell; the host is not known to be healthy.",
                        message=f"NVML does not tell of NVLink between {pair_names(unknown) or 'every pair of GPUs'}",
                    )
                )
            else:
                self.add(
                    "nvlink_mesh",
                    not without,
                    len(pairs) - len(without),
                    len(pairs),
                    unit="pairs",
                    source=self.wanted.source("nvlink"),
                    action="Look at fabric manager (systemctl status nvidia-fabricmanager) and at the links that are down.",
                    message=f"no NVLink between {pair_names(without)}"
                    if without
                    else "every pair reaches each other through NVLink",
                )
        names = {gpu.get("name") for gpu in gpus} - {None}
        bioses = {gpu["firmware"]["vbios"] for gpu in gpus if gpu.get("firmware")} - {None}
        if len(gpus) > 1:
            self.add(
                "equal_gpus",
                len(names) <= 1 and len(bioses) <= 1,
                sorted(names) + sorted(bioses),
                "one product, one VBIOS",
                bad=WARN,
                action="Bring all GPUs of the host to one VBIOS."
                if len(names) <= 1
                else "Replace the GPU that is not as the others.",
                message=f"products: {', '.join(sorted(names)) or 'unknown'}; VBIOS: {', '.join(sorted(bioses)) or 'unknown'}",
            )
        if self.wanted.numa_nodes is not None:
            nodes = [gpu.get("numa_node") for gpu in gpus]
            if not gpus or None in nodes:
                self.checks.append(
                    Check(
                        "numa_nodes",
                        SKIPPED if gpus and not self.pci_gpus else NOT_RUN,
                        expected=self.wanted.numa_nodes,
                        source=self.wanted.source("numa_nodes"),
                        action="" if gpus and not self.pci_gpus else "Turn NUMA on in the firmware (or NPS1 off).",
                        message="neither NVML nor /sys/bus/pci tells the GPUs' NUMA nodes",
                    )
                )
            else:
                self.add(
                    "numa_nodes",
                    len(set(nodes)) == self.wanted.numa_nodes,
                    len(set(nodes)),
                    self.wanted.numa_nodes,
                    unit="NUMA nodes",
                    source=self.wanted.source("numa_nodes"),
                    action="Look at the firmware's NUMA settings and at which slots the GPUs are in.",
                )

    # --- one GPU -----------------------------------------------------------------------------------------------------

    def responds(self) -> bool:
        gpu = self.gpu
        hung = {path: why for path, why in self.reading["hung_calls"].items() if path.startswith(f"{self.subject}.")}
        if gpu["lost"]:
            self.add(
                "responds",
                False,
                "lost",
                "answers",
                action="Drain the host and reboot it; if the GPU is lost again, have it replaced.",
                message=next((why for why in gpu["errors"].values() if "lost" in why.lower()), "NVML says that the GPU is lost"),
            )
        elif hung:
            self.add(
                "responds",
                False,
                f"{len(hung)} calls hung",
                "answers",
                action=NVML_ACTIONS["hung"],
                message="; ".join(f"{path}: {why}" for path, why in hung.items()),
            )
        elif "name" not in gpu:
            self.add(
                "responds",
                False,
                "no handle",
                "answers",
                action="Drain the host and reboot it; if that does not help, have the GPU replaced.",
                message="; ".join(gpu["errors"].values()) or "; ".join(gpu["unsupported"].values()),
            )
        else:
            self.add("responds", True, "answers", "answers", action="", message="every call returned")
        return not gpu["lost"] and "name" in gpu

    def product(self) -> None:
        wanted = self.wanted
        if wanted.product is None and not wanted.pci_device_ids:
            return
        device = (self.gpu["pci"] or {}).get("device_id")
        name = self.gpu["name"]
        if name is None and device is None:
            self.unread("product", "name", expected=wanted.product, source=wanted.source("product"))
            return
        good = device in wanted.pci_device_ids if wanted.pci_device_ids and device else name == wanted.product
        expected = wanted.product or ", ".join(wanted.pci_device_ids)
        self.add(
            "product",
            good,
            f"{name} ({device})",
            expected,
            source=wanted.source("product"),
            action="Replace the GPU, or choose the profile that fits the host.",
            message=f"{name} (PCI device {device}) found, {expected} wanted",
        )

    def memory(self) -> None:
        gpu, wanted = self.gpu, self.wanted
        self.at_least(
            "memory_size",
            "memory",
            gpu["memory"]["total_bytes"],
            wanted.memory_bytes,
            "bytes",
            "memory_bytes",
            "Have the GPU looked at: part of its memory is not there.",
        )
        ecc = gpu["ecc"]
        if wanted.ecc is not None:
            if ecc["enabled"] is None:
                self.unread("ecc_mode", "ecc.enabled", expected=wanted.ecc, source=wanted.source("ecc"))
            else:
                pending = ecc["pending_enabled"] is not None and ecc["pending_enabled"] != ecc["enabled"]
                self.add(
                    "ecc_mode",
                    ecc["enabled"] == wanted.ecc and not pending,
                    ecc["enabled"],
                    wanted.ecc,
                    source=wanted.source("ecc"),
                    action=f"Set it with nvidia-smi --ecc-config={int(wanted.ecc)} and reset the GPU.",
                    message=f"ECC is {on(ecc['enabled'])}"
                    + (f", and {on(ecc['pending_enabled'])} after a reset" if pending else "")
                    + f"; {on(wanted.ecc)} wanted",
                )
        needed = bool(wanted.ecc)
        if ecc["uncorrected_volatile"] is None:
            self.unread("ecc_uncorrected", "ecc.uncorrected_volatile", expected=0, needed=needed)
        else:
            self.add(
                "ecc_uncorrected",
                ecc["uncorrected_volatile"] == 0,
                ecc["uncorrected_volatile"],
                0,
                unit="errors",
                source="NVML, since the driver was loaded",
                action="Drain the GPU and reset it; if errors come again, have it replaced.",
                message=f"{ecc['uncorrected_volatile']} uncorrected memory errors since the driver was loaded",
            )
        if ecc["uncorrected_aggregate"] is None:
            self.unread("ecc_uncorrected_lifetime", "ecc.uncorrected_aggregate", expected=0, needed=needed)
        else:
            self.add(
                "ecc_uncorrected_lifetime",
                ecc["uncorrected_aggregate"] == 0,
                ecc["uncorrected_aggregate"],
                0,
                unit="errors",
                source="NVML, over the card's life",
                bad=WARN,
                action="Watch whether the number grows.",
                message=f"{ecc['uncorrected_aggregate']} uncorrected memory errors over the card's life",
            )

    def remapping(self) -> None:
        rows, pages = self.gpu["remapped_rows"], self.gpu["retired_pages"]
        # Rows are remapped from Ampere on (GA100 and later data centre parts); cards before it retire pages.
        has_rows = version_key(self.gpu["compute_capability"] or "0") >= [8, 0]
        if rows["pending"] is None:
            self.unread("row_remap_pending", "remapped_rows", expected=False, needed=has_rows and bool(self.wanted.ecc))
        else:
            self.add(
                "row_remap_pending",
                not rows["pending"],
                rows["pending"],
                False,
                source="NVML",
                action="Drain the GPU and reset it, so that the row is remapped.",
                message="a row remapping waits for a reset" if rows["pending"] else "no row remapping is pending",
            )
            self.add(
                "row_remap_failure",
                not rows["failure_occurred"],
                rows["failure_occurred"],
                False,
                source="NVML",
                action="Take the GPU out of service and have it replaced.",
                message="a row could not be remapped" if rows["failure_occurred"] else "no remapping failed",
            )
        if rows["banks"] is not None:
            exhausted = rows["banks"]["none"]
            self.add(
                "row_remap_spare",
                exhausted == 0,
                exhausted,
                0,
                unit="banks",
                source="NVML",
                bad=WARN,
                action="Plan the GPU's replacement: the next error in such a bank cannot be mended.",
                message=f"{exhausted} memory banks have no spare row left",
            )
        if pages["pending"] is None:
            if not has_rows:
                self.unread("retired_pages_pending", "retired_pages.pending", expected=False, needed=False)
        else:
            self.add(
                "retired_pages_pending",
                not pages["pending"],
                pages["pending"],
                False,
                source="NVML",
                action="Drain the GPU and reset it, so that the page is retired.",
                message="a page retirement waits for a reset" if pages["pending"] else "no page retirement is pending",
            )

    def pcie(self) -> None:
        pcie, wanted = self.gpu["pcie"], self.wanted
        width = wanted.pcie_width or pcie["width_max"]
        if width is not None:
            self.at_least(
                "pcie_width",
                "pcie.width",
                pcie["width"],
                width,
                "lanes",
                "pcie_width",
                "Reseat the GPU or its riser; if the width stays, have slot and card looked at.",
            )
        generation = wanted.pcie_generation or pcie["generation_gpu_max"] or pcie["generation_max"]
        if generation is None:
            self.unread("pcie_generation", "pcie.generation_max", needed=False)
            return
        source = self.wanted.source("pcie_generation") if wanted.pcie_generation else "NVML, the most that the GPU can"
        if pcie["generation"] is None or pcie["generation_max"] is None:
            self.unread("pcie_generation", "pcie.generation", expected=generation, source=source)
            return
        state = self.gpu["performance_state"]
        if pcie["generation"] < generation <= pcie["generation_max"] and state is not None and state >= RESTING:
            self.checks.append(
                Check(
                    "pcie_generation",
                    SKIPPED,
                    self.subject,
                    measured=pcie["generation"],
                    expected=generation,
                    unit="generation",
                    source=source,
                    message=f"the GPU is at rest (P{state}) and has lowered its link to generation {pcie['generation']}; "
                    f"the slot gives {pcie['generation_max']}. In an acceptance, host_to_device_bandwidth looks at it under load",
                )
            )
            return
        self.add(
            "pcie_generation",
            min(pcie["generation"], pcie["generation_max"]) >= generation,
            pcie["generation"],
            generation,
            unit="generation",
            source=source,
            action="Look at the slot, the riser and the firmware's link speed; reseat the GPU.",
            message=f"generation {pcie['generation']} now, {pcie['generation_max']} at most in this slot, {generation} wanted",
        )

    def with_mig(self, gpus: Iterable[Mapping[str, Any]]) -> bool:
        """Whether MIG is on and is to be: a GPU's links are then off."""
        return bool(self.wanted.mig and any((gpu.get("mig") or {}).get("enabled") for gpu in gpus))

    def nvlink(self) -> None:
        wanted, links = self.wanted, self.gpu["nvlink"]
        if wanted.nvlink == "full_mesh" and self.with_mig([self.gpu]):
            self.checks.append(Check("nvlink_links", SKIPPED, self.subject, message="NVLink is off while MIG is on"))
            return
        if wanted.nvlink in (None, "none"):
            if wanted.nvlink is None and not links:
                self.unread("nvlink_links", "nvlink.0", needed=False)
            return
        active = [link for link in links if link["active"]]
        down = [str(link["link"]) for link in links if not link["active"]]
        expected = wanted.nvlink_links or len(links) or 1
        self.add(
            "nvlink_links",
            # A board may leave links unused, and then their number is what is known.
            len(active) >= expected and (wanted.nvlink_links is not None or not down),
            len(active),
            expected,
            unit="links",
            source=wanted.source("nvlink_links"),
            action="Reset the GPU; if the link stays down, have GPU and base board looked at.",
            message=f"{len(active)} of {expected} links are active"
            + (f"; down: {', '.join(down)}" if down else "")
            + ("" if links else f" ({self.gpu['unsupported'].get('nvlink.0', 'NVML lists no link')})"),
        )
        speeds = [link["bandwidth_gbytes_per_second"] for link in active]
        self.at_least(
            "nvlink_bandwidth",
            "nvlink.0.speed",
            None if None in speeds else sum(speeds),
            wanted.nvlink_gbytes_per_second,
            "GB/s",
            "nvlink_gbytes_per_second",
            "Bring all links up; the sum over the active links is too low.",
        )
        counts = {
            name: sum(link["errors"][name] or 0 for link in links) for name in ("replay", "recovery", "crc_flit", "crc_data")
        }
        read = any(value is not None for link in links for value in link["errors"].values())
        if links and not read:
            self.unread("nvlink_errors", "nvlink.0.errors.replay", needed=False)
        elif links:
            worst = max(links, key=lambda link: sum(value or 0 for value in link["errors"].values()))
            self.add(
                "nvlink_errors",
                not any(counts.values()),
                sum(counts.values()),
                0,
                unit="errors",
                source="NVML, since the driver was loaded",
                bad=WARN,
                action="Watch whether the numbers grow; reset the GPU, and have the link looked at if they do.",
                message=", ".join(f"{count} {name}" for name, count in counts.items())
                + (f"; most on link {worst['link']}" if any(counts.values()) else ""),
            )
        self.fabric()

    def fabric(self) -> None:
        if not self.wanted.fabric:
            return
        fabric = self.gpu["fabric"]
        if fabric["state"] is None:
            self.unread("fabric", "fabric", expected="completed", source=self.wanted.source("fabric"))
            return
        mask = fabric["health_mask"] or 0
        ill = [name for name, shift in FABRIC_HEALTH.items() if mask >> shift & 0b11 == 1]
        configuration = mask >> FABRIC_CONFIGURATION_SHIFT & 0xF
        if configuration > 1:
            ill.append(f"incorrect configuration {configuration}")
        good = fabric["state"] == "completed" and fabric["status"] == 0 and not ill
        self.add(
            "fabric",
            good,
            fabric["state"],
            "completed",
            source=self.wanted.source("fabric"),
            action="Look at fabric manager (systemctl status nvidia-fabricmanager; journalctl -u nvidia-fabricmanager).",
            message=f"fabric state {fabric['state']}, status {fabric['status']}" + (f"; {', '.join(ill)}" if ill else ""),
        )

    def clocks(self) -> None:
        reasons = self.gpu["clock_event_reasons"]
        if reasons is None:
            self.unread("throttling", "clock_event_reasons", expected="none")
        else:
            bad = [reason for reason in THROTTLES if reason in reasons]
            unknown = [reason for reason in reasons if reason.startswith("unknown")]
            self.add(
                "throttling",
                not bad and not unknown,
                ", ".join(reasons) or "none",
                "none",
                source="NVML",
                bad=FAIL if bad else WARN,
                action=THROTTLES[bad[0]] if bad else "Look up the reason in the driver's nvml.h.",
                message=f"clocks are held down by {', '.join(bad or unknown)}" if bad or unknown else "clocks are not held down",
            )
        temperature, power = self.gpu["temperature"], self.gpu["power"]
        limit = self.wanted.temperature_celsius
        source = self.wanted.source("temperature_celsius")
        if limit is None:
            limit = temperature["gpu_max_celsius"] or temperature["slowdown_celsius"]
            source = "NVML, the card's own limit"
        if temperature["gpu_celsius"] is None:
            self.unread("temperature", "temperature.gpu_celsius", expected=limit, source=source)
        elif limit is not None:
            self.add(
                "temperature",
                temperature["gpu_celsius"] < limit,
                temperature["gpu_celsius"],
                limit,
                unit="C",
                source=source,
                action="Look at the cooling: fans, air flow, inlet temperature.",
                message=f"{temperature['gpu_celsius']} C found, under {limit} C wanted",
            )
        if temperature["memory_celsius"] is not None and temperature["memory_max_celsius"] is not None:
            self.add(
                "memory_temperature",
                temperature["memory_celsius"] < temperature["memory_max_celsius"],
                temperature["memory_celsius"],
                temperature["memory_max_celsius"],
                unit="C",
                source="NVML, the card's own limit",
                action="Look at the cooling: fans, air flow, inlet temperature.",
            )
        expected = self.wanted.power_limit_watts or power["default_limit_watts"]
        if expected is not None:
            self.at_least(
                "power_limit",
                "power.limit_watts",
                power["limit_watts"],
                expected,
                "W",
                "power_limit_watts",
                f"Set it with nvidia-smi --power-limit={expected:.0f}, or expect the lower limit.",
            )

    def operation(self) -> None:
        gpu, wanted = self.gpu, self.wanted
        if gpu["recovery_action"] is None:
            self.unread("recovery_action", "recovery_action", expected="none", needed=False)
        else:
            self.add(
                "recovery_action",
                gpu["recovery_action"] == "none",
                gpu["recovery_action"],
                "none",
                source="NVML",
                action=RECOVERY.get(gpu["recovery_action"], "Read what the driver's documentation says of this action."),
                message=f"the driver asks for: {gpu['recovery_action']}",
            )
        if wanted.persistence_mode is not None:
            if gpu["persistence_mode"] is None:
                self.unread("persistence_mode", "persistence_mode", expected=wanted.persistence_mode)
            else:
                self.add(
                    "persistence_mode",
                    gpu["persistence_mode"] == wanted.persistence_mode,
                    gpu["persistence_mode"],
                    wanted.persistence_mode,
                    source=wanted.source("persistence_mode"),
                    bad=WARN,
                    action="Run the persistence daemon (role nvidia_driver).",
                    message=f"persistence mode is {on(gpu['persistence_mode'])}, {on(wanted.persistence_mode)} wanted",
                )
        if wanted.mig is not None and gpu["mig"]["enabled"] is None:
            self.unread("mig_mode", "mig.mode", expected=wanted.mig, needed=wanted.mig)
        elif wanted.mig is not None:
            self.add(
                "mig_mode",
                gpu["mig"]["enabled"] == wanted.mig,
                gpu["mig"]["enabled"],
                wanted.mig,
                source=wanted.source("mig"),
                action=f"Set it with nvidia-smi --multi-instance-gpu={int(wanted.mig)} and reset the GPU, or expect it.",
                message=f"MIG is {on(gpu['mig']['enabled'])}, {on(wanted.mig)} wanted",
            )
        if gpu["compute_mode"] is None:
            self.unread("compute_mode", "compute_mode", expected="default", needed=False)
        else:
            self.add(
                "compute_mode",
                gpu["compute_mode"] == "default",
                gpu["compute_mode"],
                "default",
                source="NVML",
                bad=FAIL if gpu["compute_mode"] == "prohibited" else WARN,
                action="Set it with nvidia-smi --compute-mode=DEFAULT.",
                message=f"compute mode {gpu['compute_mode']}",
            )
        if wanted.idle:
            if gpu["processes"] is None:
                self.unread("idle", "processes", expected=0)
            else:
                names = ", ".join(f"{process['name'] or '?'} ({process['pid']})" for process in gpu["processes"])
                self.add(
                    "idle",
                    not gpu["processes"],
                    len(gpu["processes"]),
                    0,
                    unit="processes",
                    source=wanted.source("idle"),
                    action="End what computes on the GPU before it is measured.",
                    message=f"in use by {names}" if names else "nothing computes on it",
                )

    def readings(self) -> None:
        """Whatever NVML could not read though the GPU has it, also where no check needs it."""
        errors = self.gpu["errors"]
        if errors:
            shown = "; ".join(f"{path}: {why}" for path, why in list(errors.items())[:5])
            self.add(
                "readings",
                False,
                len(errors),
                0,
                unit="errors",
                source="NVML",
                bad=WARN,
                action="Look for NVRM in the kernel's log; reset the GPU if it goes on.",
                message=shown + (f"; and {len(errors) - 5} more" if len(errors) > 5 else ""),
            )

    # --- the kernel's log --------------------------------------------------------------------------------------------

    def kernel(self) -> None:
        self.subject = "host"
        if self.events is None:
            self.checks.append(
                Check(
                    "xid",
                    NOT_RUN,
                    expected="none since boot",
                    source=f"Xid policy {self.policy['version']}",
                    action="Let the module read the kernel's log: run it as root, or name a copy of the log in `kernel_log`.",
                    message=f"the kernel's log cannot be read: {self.kernel_log}",
                )
            )
            return
        known = {bus_id(gpu["pci"]["bus_id"]): f"GPU {gpu['index']}" for gpu in self.reading["gpus"] if gpu.get("pci")}
        devices = worst_by_device(self.events, self.policy)
        for device, entries in sorted(devices.items()):
            self.subject = known.get(device, f"PCI {device}")
            worst = entries[0]
            told = "; ".join(
                f"{entry['kind'].replace('sxid', 'SXid').replace('xid', 'Xid')} {entry['code']} ({entry['name']}) "
                f"{entry['count']} time{'s' if entry['count'] > 1 else ''}"
                for entry in entries
            )
            verdict = POLICY_VERDICTS.get(worst["action"], FAIL)
            self.checks.append(
                Check(
                    "xid",
                    verdict,
                    self.subject,
                    measured=", ".join(str(entry["code"]) for entry in entries),
                    expected="none since boot",
                    source=worst["source"],
                    action="" if verdict == PASS else POLICY_ACTIONS[worst["action"]],
                    message=told,
                )
            )
        self.subject = "host"
        if not devices or self.kernel_log_lost:
            self.add(
                "xid",
                self.kernel_log_lost is None,
                "none" if not devices else "some",
                "none since boot",
                source=f"{self.kernel_log}; Xid policy {self.policy['version']}",
                bad=WARN,
                action="Keep the kernel's log (role host writes journald's limits), so that the whole of it can be read.",
                message=self.kernel_log_lost or "no Xid since boot",
            )


def on(state: bool) -> str:
    return "on" if state else "off"


def pair_names(pairs: list[list[int]]) -> str:
    shown = ", ".join(f"GPU {first} and GPU {second}" for first, second in pairs[:4])
    return f"{shown} and {len(pairs) - 4} other pairs" if len(pairs) > 4 else shown
