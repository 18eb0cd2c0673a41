# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the figures of a network mean: each judged against its bound, with where the bound comes from.

A figure that is missing is never good: it is NOT_RUN where it was wanted, SKIPPED where nothing was asked of it.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._network_probe import MINIMUM_SAMPLES
from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, PASS, SKIPPED, WARN, Check

# Streams of one process do not fill a faster link, whatever the link can do; RDMA is measured for that.
TCP_LIMIT_GBPS = 20.0
CLUSTER_HEALTH = "cluster-health (ib_write_lat, 99th percentile at most 4.2 us; ib_write_bw, 720 of 800 Gbit/s)"

# Bound: its default, and where that comes from.
LIMITS: dict[str, tuple[Any, str]] = {
    "latency_median_us": (500.0, "onprem.llm: round trips of more than 500 us are not one data centre's network"),
    "latency_p99_us": (2000.0, "onprem.llm: four times the bound of the median"),
    "bandwidth_gbps": (None, ""),
    "bandwidth_share": (0.5, f"onprem.llm: half of the slower interface's speed, at most {TCP_LIMIT_GBPS:g} Gbit/s"),
    "mtu": (None, "the interface's own MTU"),
    "interface_speed_mbps": (None, ""),
    "rdma_count": (None, ""),
    "rdma_rate_gbps": (None, ""),
    "rdma_latency_p99_us": (4.2, CLUSTER_HEALTH),
    "rdma_bandwidth_share": (0.9, CLUSTER_HEALTH),
}

# What an argument may be. A floor of nothing, or one that is no number, would pass everything.
BOUNDS: dict[str, tuple[float, float]] = {
    "port": (1, 65534),
    "seconds": (1, 86400),
    "samples": (MINIMUM_SAMPLES, 1000000),
    "latency_seconds": (0.1, 60),
    "bandwidth_seconds": (0.1, 60),
    "streams": (1, 32),
    "latency_median_us": (1, 1e6),
    "latency_p99_us": (1, 1e6),
    "bandwidth_gbps": (0.001, 10000),
    "bandwidth_share": (0.01, 1),
    "mtu": (576, 65536),
    "interface_speed_mbps": (10, 10000000),
    "rdma_count": (0, 64),
    "rdma_rate_gbps": (1, 10000),
    "rdma_latency_p99_us": (0.1, 1e6),
    "rdma_bandwidth_share": (0.01, 1),
}


def problems(given: dict[str, Any]) -> list[str]:
    """What is wrong with the arguments, a sentence each."""
    return [
        f"{name} is {given[name]}; it has to be from {low:g} to {high:g}."
        for name, (low, high) in BOUNDS.items()
        # This way round it refuses what is not a number, too.
        if given.get(name) is not None and not low <= given[name] <= high
    ]


class Limits:
    """The bounds of one run; each knows its source."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.values = {name: given[name] if given.get(name) is not None else LIMITS[name][0] for name in LIMITS}

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def source(self, name: str) -> str:
        return LIMITS[name][1] if self.values[name] == LIMITS[name][0] else f"argument {name}"


class Judge:
    """Turns the figures of one host into checks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def host(self, interfaces: list[dict[str, Any]], rdma_ports: list[dict[str, Any]]) -> list[Check]:
        return [*(self.interface_speed(interface) for interface in interfaces), self.rdma_devices(rdma_ports)]

    def interface_speed(self, interface: dict[str, Any]) -> Check:
        floor, speed = self.limits["interface_speed_mbps"], interface["speed_mbps"]
        check = Check(
            "network_interface_speed",
            PASS,
            subject=f"interface {interface['interface']}",
            measured=speed,
            expected=floor,
            unit="Mbit/s",
            source=self.limits.source("interface_speed_mbps") if floor else "",
        )
        if speed is None:
            check.message = f"{interface['speed_reason']}."
            check.verdict = NOT_RUN if floor else SKIPPED
            check.action = "Look at the link by hand, or give no interface_speed_mbps for this host." if floor else ""
        elif not floor:
            check.verdict = SKIPPED
            check.message = f"{speed} Mbit/s; no interface_speed_mbps was given to compare it with."
        elif speed < floor:
            check.verdict = FAIL
            check.message = f"The link runs at {speed} Mbit/s, under {floor} Mbit/s."
            check.action = "Check cable, transceiver and the switch port's speed."
        return check

    def rdma_devices(self, ports: list[dict[str, Any]]) -> Check:
        count, rate = self.limits["rdma_count"], self.limits["rdma_rate_gbps"]
        up = [port for port in ports if port["state"] == "ACTIVE"]
        check = Check(
            "rdma_devices",
            PASS,
            measured=len(up),
            expected=count,
            unit="active ports",
            source="" if count is None else self.limits.source("rdma_count"),
        )
        slow = [port for port in up if rate and (port["rate_gbps"] or 0) < rate]
        down = [f"{port['device']}/{port['port']} {port['state']}" for port in ports if port not in up]
        if not ports and not count:
            check.verdict = SKIPPED
            check.message = "The host has no RDMA device" + (
                ", and none is wanted." if count == 0 else "; rdma_count was not given."
            )
        elif len(up) < (count or 0):
            check.verdict = FAIL
            check.message = f"{len(up)} RDMA ports are active, {count} are wanted" + (f"; {', '.join(down)}." if down else ".")
            check.action = "Check cables, transceivers, the subnet manager and the adapter's driver."
        elif slow:
            check.verdict = FAIL
            check.message = ", ".join(f"{port['device']}/{port['port']} runs at {port['rate_gbps']} Gbit/s" for port in slow)
            check.message += f"; {rate} Gbit/s are wanted."
            check.action = "Check cable, transceiver and the switch port's speed."
        elif down and count is None:
            check.verdict = WARN
            check.message = f"{len(up)} of {len(ports)} RDMA ports are active: {', '.join(down)}."
            check.action = "Say with rdma_count how many the host should have."
        return check

    def pair(self, pair: dict[str, Any]) -> list[Check]:
        subject = f"{pair['from']} -> {pair['to']}"
        errors = pair["errors"]
        reach = Check("network_reachable", PASS, subject)
        if "reach" in errors:
            reach.verdict, reach.message = FAIL, f"{pair['to']}: {errors['reach']}."
            reach.action = "Check that the host is up, its address, the packet filters, and that its server still listens."
        elif pair.get("interface") == "lo":
            reach.verdict, reach.message = FAIL, f"{pair['address']}, the address of {pair['to']}, is this host's own."
            reach.action = "Correct the address in hosts, or the name's entry in /etc/hosts."
        checks = [reach, self.latency_median(pair), self.latency_p99(pair), self.bandwidth(pair), self.mtu(pair)]
        for check in checks[1:]:
            if "reach" in errors:
                check.verdict, check.measured, check.message = NOT_RUN, None, f"{pair['to']} was not reached."
                check.action = ""
        checks += self.clock(pair) + self.rdma(pair)
        for check in checks:
            check.subject = check.subject if check.subject != "host" else subject
        return checks

    def latency_median(self, pair: dict[str, Any]) -> Check:
        limit = self.limits["latency_median_us"]
        found = pair.get("latency_median_us")
        check = Check("network_latency_median", PASS, measured=found, expected=limit, unit="us")
        check.source = self.limits.source("latency_median_us")
        if found is None:
            return not_run(check, pair["errors"].get("latency"))
        if found > limit:
            check.verdict = FAIL
            check.message = f"A round trip takes {found:g} us in the median, more than {limit:g} us."
            check.action = "Look at the way between the two: a wrong route, a loaded link, power saving of adapters."
        return check

    def latency_p99(self, pair: dict[str, Any]) -> Check:
        limit = self.limits["latency_p99_us"]
        found, samples = pair.get("latency_p99_us"), pair.get("samples", 0)
        check = Check("network_latency_p99", PASS, measured=found, expected=limit, unit="us")
        check.source = self.limits.source("latency_p99_us")
        if found is None:
            return not_run(check, pair["errors"].get("latency"))
        if samples < MINIMUM_SAMPLES:
            check.measured = None
            check.action = "Give more latency_seconds."
            return not_run(check, f"only {samples} round trips in the time, {MINIMUM_SAMPLES} tell a 99th percentile")
        if found > limit:
            check.verdict = WARN
            check.message = f"One round trip in a hundred takes {found:g} us or more; the bound is {limit:g} us."
            check.action = "Look for load, drops and retransmissions (`nstat`, `ethtool -S`)."
        return check

    def bandwidth(self, pair: dict[str, Any]) -> Check:
        check = Check("network_bandwidth", PASS, unit="GB/s")
        names = ("send_gbytes_per_second", "receive_gbytes_per_second")
        rates = [pair[name] for name in names if name in pair]
        speeds = [pair[name] for name in ("speed_mbps", "peer_speed_mbps") if pair.get(name)]
        floor, name = self.limits["bandwidth_gbps"], "bandwidth_gbps"
        if floor is None and len(speeds) == 2:
            floor, name = min(min(speeds) / 1000 * self.limits["bandwidth_share"], TCP_LIMIT_GBPS), "bandwidth_share"
        if floor is not None:
            check.expected, check.source = round(floor / 8, 4), self.limits.source(name)
        if len(rates) < 2:
            return not_run(check, pair["errors"].get("bandwidth"))
        check.measured = min(rates)
        said = f"{rates[0] * 8:.2f} Gbit/s there, {rates[1] * 8:.2f} Gbit/s back"
        if floor is None:
            reason = pair.get("speed_reason") or pair.get("peer_speed_reason") or "an interface's speed is not known"
            check.verdict, check.message = SKIPPED, f"{said}; there is no floor: {reason}, and no bandwidth_gbps was given."
        elif check.measured * 8 < floor:
            check.verdict, check.message = FAIL, f"{said}; at least {floor:g} Gbit/s are wanted."
            check.action = "Look for a link that came up slower, errors (`ethtool -S`), a loaded link, or a small MTU."
        return check

    def mtu(self, pair: dict[str, Any]) -> Check:
        mine, theirs = pair.get("mtu"), pair.get("peer_mtu")
        expected = self.limits["mtu"] or mine
        check = Check("network_mtu", PASS, expected=expected, unit="bytes", source=self.limits.source("mtu"))
        if not mine or not theirs or "mtu_passes" not in pair:
            return not_run(check, pair["errors"].get("mtu", "an interface's MTU cannot be read"))
        check.measured = min(mine, theirs, pair["path_mtu"])
        wrong = [(pair["from"], pair["interface"], mine), (pair["to"], pair["peer_interface"], theirs)]
        wrong = [item for item in wrong if item[2] != expected]
        if wrong:
            check.verdict = FAIL
            check.message = "; ".join(f"{name}'s interface on the way, {interface}, has {mtu}" for name, interface, mtu in wrong)
            check.message += f"; {expected} is wanted."
            check.action = "Set the same MTU on all interfaces of this network."
        elif not pair["mtu_passes"]:
            check.verdict = FAIL
            check.message = f"A packet of {expected} bytes that may not be fragmented does not pass: {pair['mtu_reason']}."
            check.action = "Set the MTU of the switches and of what lies between, and let ICMP pass."
        return check

    @staticmethod
    def clock(pair: dict[str, Any]) -> list[Check]:
        """Rounds are kept in step by the hosts' clocks."""
        offset, limit = pair.get("clock_offset_seconds"), pair.get("slot_seconds", 0) / 10
        if offset is None or not limit or abs(offset) <= limit:
            return []
        return [
            Check(
                "network_clock",
                WARN,
                measured=offset,
                expected=limit,
                unit="s",
                source="onprem.llm: a tenth of a round",
                message=f"The clocks of the two differ by {offset:g} s, so measurements may have met.",
                action="Synchronise the clocks, and measure again.",
            )
        ]

    def rdma(self, pair: dict[str, Any]) -> list[Check]:
        p99, share = self.limits["rdma_latency_p99_us"], self.limits["rdma_bandwidth_share"]
        blank = [
            Check("rdma_latency_p99", PASS, expected=p99, unit="us", source=self.limits.source("rdma_latency_p99_us")),
            Check("rdma_bandwidth", PASS, unit="GB/s", source=self.limits.source("rdma_bandwidth_share")),
        ]
        count, found = self.limits["rdma_count"], pair.get("rdma") or {}
        verdict, reason, action = SKIPPED, "", ""
        if count == 0:
            reason = "rdma_count is 0: no RDMA is wanted"
        elif not found:
            verdict, reason = NOT_RUN, f"{pair['to']} was not reached"
        elif not (found["active_ports"] and found["peer_active_ports"]):
            missing = pair["from"] if not found["active_ports"] else pair["to"]
            verdict, reason = NOT_RUN if count else SKIPPED, f"{missing} has no active RDMA port"
        elif count is None:
            verdict, reason = NOT_RUN, "both hosts have active RDMA ports, and rdma_count does not say how many there should be"
            action = "Set rdma_count; 0 leaves RDMA out."
        elif not (found["perftest"] and found["peer_perftest"]):
            missing = pair["from"] if not found["perftest"] else pair["to"]
            verdict, reason = NOT_RUN, f"{missing} has RDMA devices, and ib_write_lat and ib_write_bw are not installed"
            action = "Install the package perftest."
        if reason:
            for check in blank:
                check.verdict, check.message, check.action = verdict, f"{reason}.", action
            return blank
        checks: list[Check] = []
        for rail in found["rails"]:
            checks += self.rail(pair, rail, p99, share)
        if len(found["rails"]) < count:
            lost = Check(
                "rdma_rails", FAIL, measured=len(found["rails"]), expected=count, unit="rails", source="argument rdma_count"
            )
            lost.message = f"Only {len(found['rails'])} of {count} rails are active at both ends."
            lost.action = "See rdma_devices of both hosts."
            checks.append(lost)
        return checks

    def rail(self, pair: dict[str, Any], rail: dict[str, Any], limit: float, share: float) -> list[Check]:
        subject = f"{pair['from']} {rail['port']} -> {pair['to']} {rail['peer_port']}"
        latency = Check("rdma_latency_p99", PASS, subject, rail.get("latency_p99_us"), limit, "us")
        latency.source = self.limits.source("rdma_latency_p99_us")
        if latency.measured is None:
            not_run(latency, rail["errors"].get("latency"))
        elif latency.measured > limit:
            latency.verdict = FAIL
            latency.message = f"One RDMA write in a hundred takes {latency.measured:g} us or more; the bound is {limit:g} us."
            latency.action = "Look for congestion, a long way through the fabric, and power saving of processors."
        rate, measured = rail["rate_gbps"], rail.get("bandwidth_gbytes_per_second")
        bandwidth = Check("rdma_bandwidth", PASS, subject, measured, None, "GB/s")
        bandwidth.source = self.limits.source("rdma_bandwidth_share")
        if measured is None:
            not_run(bandwidth, rail["errors"].get("bandwidth"))
        elif not rate:
            not_run(bandwidth, "the ports tell no rate to compare with")
        else:
            bandwidth.expected = round(rate * share / 8, 4)
            if measured < bandwidth.expected:
                bandwidth.verdict = FAIL
                bandwidth.message = f"{measured * 8:.1f} Gbit/s, under {share:.0%} of the port's {rate:g} Gbit/s."
                bandwidth.action = "Look at the adapter's PCIe link, relaxed ordering, and errors of the port."
        return [latency, bandwidth]


def not_run(check: Check, reason: str | None) -> Check:
    check.verdict = NOT_RUN
    check.message = f"{reason or 'it was not measured'}."
    return check
