#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: network_validate
short_description: Latency, bandwidth and MTU between every pair of hosts, interface speed and RDMA
version_added: 0.3.0
description:
  - Each host first listens, then all measure one another, then they stop. V(listening) leaves a small server behind that
    ends by itself, has no privileges, and serves only who knows the run's token.
  - Every pair is measured once, by one of its two hosts, in rounds in which each host measures one other and is measured by
    one. So n hosts take n/2 rounds. Two hosts alone measure each other in turn.
  - The hosts' clocks keep the rounds in step, so clocks have to be synchronised. With fewer Ansible forks than hosts, hosts
    go in batches, and all takes as many times longer as there are batches.
  - Latency is the round trip of 64 bytes over TCP. The latency of RDMA is that of C(ib_write_lat), one way.
  - A host that was not looked at is never healthy; what could not be measured is V(NOT_RUN), and the verdict is V(FAIL).
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: Nothing is started, stopped or measured; every check is returned as V(NOT_RUN).
  diff_mode:
    support: none
    description: It changes nothing that lasts.
options:
  state:
    description:
      - V(listening) starts the server, V(measured) measures, V(stopped) ends the server.
    type: str
    choices: [listening, measured, stopped]
    required: true
  hosts:
    description: All hosts that take part, in the same order on each of them.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The host's name, as in O(me).
        type: str
        required: true
      address:
        description: The address that it listens on and is measured by.
        type: str
        required: true
      port:
        description: Its port, where it differs from O(port).
        type: int
  me:
    description: This host's name in O(hosts); the inventory's name where it is not given.
    type: str
  port:
    description:
      - Port of the server, TCP and UDP. RDMA measurements take the next one for a moment.
      - Packet filters between the hosts have to let both pass.
    type: int
    default: 19750
  token:
    description:
      - What both ends have to know. Where it is not given, one run of Ansible makes one for all its tasks and hosts.
      - Needed where V(listening) and V(measured) are in different runs.
    type: str
  seconds:
    description:
      - Time after which the server ends by itself, in seconds. Where it is not given, it is twice what the rounds take, at
        least 300 seconds.
    type: int
  samples:
    description: Number of round trips that are timed.
    type: int
    default: 1000
  latency_seconds:
    description: The longest time for them, in seconds.
    type: float
    default: 2.0
  bandwidth_seconds:
    description: Time of each stream, in seconds; there is one phase for each direction.
    type: float
    default: 1.0
  streams:
    description: Number of TCP streams at a time.
    type: int
    default: 4
  latency_median_us:
    description: The largest median of the round trips, in microseconds.
    type: float
    default: 500.0
  latency_p99_us:
    description: The 99th percentile of the round trips, in microseconds, above which there is a warning.
    type: float
    default: 2000.0
  bandwidth_gbps:
    description:
      - The least bandwidth in either direction, in Gbit/s. Where it is not given, O(bandwidth_share) counts.
    type: float
  bandwidth_share:
    description:
      - The least bandwidth as a share of the slower interface's speed, where both are known, but at most 20 Gbit/s, which
        is what a few TCP streams can be relied on to reach.
    type: float
    default: 0.5
  mtu:
    description: MTU of the interfaces between the hosts, in bytes. Where it is not given, both ends must have the same.
    type: int
  interface_speed_mbps:
    description: The least speed of the interfaces between the hosts, in Mbit/s. Not compared where it is not given.
    type: int
  rdma_count:
    description:
      - Number of active RDMA ports that each host has; as many rails are measured, the first port of one host against the
        first of the other. V(0) leaves RDMA out.
      - Where it is not given and two hosts have active RDMA ports, their checks are V(NOT_RUN).
    type: int
  rdma_rate_gbps:
    description: The least rate of an active RDMA port, in Gbit/s. Not compared where it is not given.
    type: float
  rdma_latency_p99_us:
    description: The largest 99th percentile of RDMA writes, in microseconds.
    type: float
    default: 4.2
  rdma_bandwidth_share:
    description: The least bandwidth of RDMA writes, as a share of the port's rate.
    type: float
    default: 0.9
  fail:
    description: Fail the task when the verdict is V(FAIL).
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Listen
  onprem.llm.network_validate:
    state: listening
    hosts:
      - {name: gpu1, address: 10.0.0.1}
      - {name: gpu2, address: 10.0.0.2}

- name: Measure
  onprem.llm.network_validate:
    state: measured
    hosts:
      - {name: gpu1, address: 10.0.0.1}
      - {name: gpu2, address: 10.0.0.2}
    bandwidth_gbps: 18
    mtu: 9000
    rdma_count: 8
    rdma_rate_gbps: 400
  register: network

- name: Stop listening
  onprem.llm.network_validate:
    state: stopped
"""

RETURN = r"""
port:
  description: The port that the server listens on.
  returned: when O(state=listening)
  type: int
verdict:
  description: V(PASS), V(WARN) or V(FAIL).
  returned: when O(state=measured)
  type: str
checks:
  description: Each question with its answer; name, verdict, subject, measured, expected, unit, source, action and message.
  returned: when O(state=measured)
  type: list
  elements: dict
summary:
  description: How many checks ended how, and what failed, in one line.
  returned: when O(state=measured)
  type: str
pairs:
  description: >-
    The figures of each pair that this host measured: latency_median_us, latency_p99_us and latency_min_us in microseconds of
    a round trip, samples, send_gbytes_per_second and receive_gbytes_per_second in 10^9 bytes per second, mtu and path_mtu in
    bytes, speed_mbps, rdma, and errors by stage.
  returned: when O(state=measured)
  type: list
  elements: dict
rounds:
  description: Number of rounds.
  returned: when O(state=measured)
  type: int
expected_seconds:
  description: The longest that the rounds take, in seconds.
  returned: when O(state=measured)
  type: int
seconds:
  description: Time that it took, in seconds.
  returned: when O(state=measured)
  type: float
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._network_checks import LIMITS, Judge, Limits, problems
from ansible_collections.onprem.llm.plugins.module_utils._network_host import NetworkError, NetworkHost
from ansible_collections.onprem.llm.plugins.module_utils._network_probe import (
    Measurement,
    Peer,
    Timetable,
    rounds,
    slots,
)
from ansible_collections.onprem.llm.plugins.module_utils._network_server import running, start, stop
from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, Check, overall, summary

LEAST_SECONDS = 300


class NetworkValidate:
    """One host's part: to listen, to measure its peers and judge, or to stop."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.options: dict[str, Any] = module.params
        self.hosts: dict[str, dict[str, Any]] = {host["name"]: host for host in self.options["hosts"]}
        self.timetable = Timetable(
            self.options["latency_seconds"], self.options["bandwidth_seconds"], self.options["rdma_count"] or 0
        )

    def run(self) -> dict[str, Any]:
        wrong = problems(self.options)
        if wrong:
            raise NetworkError(" ".join(wrong))
        if self.options["state"] == "stopped":
            return {"changed": bool(running()) if self.module.check_mode else stop()}
        self.check_hosts()
        return self.listen() if self.options["state"] == "listening" else self.measure()

    def check_hosts(self) -> None:
        if len(self.hosts) != len(self.options["hosts"]):
            names = [host["name"] for host in self.options["hosts"]]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise NetworkError(f"hosts names {', '.join(twice)} more than once.")
        places: dict[tuple[str, int], str] = {}
        for name, host in self.hosts.items():
            other = places.setdefault((host["address"], self.port(name)), name)
            if other != name:
                raise NetworkError(f"{other} and {name} have the same address in hosts, {host['address']}.")
        if self.options["me"] not in self.hosts:
            named = ", ".join(self.hosts) or "nobody"
            raise NetworkError(f"me is {self.options['me']!r}, which is not in hosts; that names {named}.")

    def port(self, name: str) -> int:
        return int(self.hosts[name].get("port") or self.options["port"])

    def listen(self) -> dict[str, Any]:
        me = self.options["me"]
        number = len(rounds(list(self.hosts), me))
        seconds = self.options["seconds"] or max(LEAST_SECONDS, 2 * self.timetable.seconds(number))
        if self.module.check_mode:
            return {"changed": True, "port": self.port(me)}
        state = start(me, self.hosts[me]["address"], self.port(me), self.options["token"], seconds)
        return {"changed": True, "port": state["port"]}

    def measure(self) -> dict[str, Any]:
        begun = time.monotonic()
        me = self.options["me"]
        plan = rounds(list(self.hosts), me)
        judge = Judge(Limits({name: self.options[name] for name in LIMITS}))
        pairs = self.measure_pairs(plan) if not self.module.check_mode and len(self.hosts) > 1 else []
        checks = [check for pair in pairs for check in judge.pair(pair)]
        measured = {pair["to"] for pair in pairs}
        checks += [self.not_measured(name) for name in plan if name and name not in measured]
        if len(self.hosts) == 1:
            lonely = Check("network_peers", NOT_RUN, message="hosts names no other host to measure.")
            lonely.action = "Name at least two hosts."
            checks.append(lonely)
        if not self.module.check_mode:
            host = NetworkHost()
            # One way per interface, not per peer.
            names = dict.fromkeys(pair["interface"] for pair in pairs if "interface" in pair)
            checks += judge.host([host.interface(name) for name in names], host.rdma_ports())
        verdict = overall(checks)
        result = {
            "changed": False,
            "verdict": verdict,
            "checks": [check.as_dict() for check in checks],
            "summary": summary(checks),
            "pairs": pairs,
            "rounds": len(plan),
            "expected_seconds": self.timetable.seconds(len(plan)),
            "seconds": round(time.monotonic() - begun, 1),
        }
        if verdict == FAIL and self.options["fail"] and not self.module.check_mode:
            self.module.fail_json(msg=f"The network of {me} failed: {result['summary']}", **result)
        return result

    def measure_pairs(self, plan: list[str | None]) -> list[dict[str, Any]]:
        pairs = []
        for number, begin in slots(self.timetable, len(plan)):
            name = plan[number]
            if name is None:
                continue
            peer = Peer(name, self.hosts[name]["address"], self.port(name), self.options["token"])
            found = Measurement(peer, self.options, self.timetable, begin).run()
            pairs.append({"from": self.options["me"], "to": name, "slot_seconds": self.timetable.slot, **found})
        return pairs

    def not_measured(self, name: str) -> Check:
        reason = "nothing is measured in check mode" if self.module.check_mode else "its round was missed"
        check = Check("network_reachable", NOT_RUN, f"{self.options['me']} -> {name}", message=f"{reason}.")
        check.action = "Measure again." if not self.module.check_mode else "Run without check mode."
        return check


def main() -> None:
    bound = {"type": "float"}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["listening", "measured", "stopped"], "required": True},
            "hosts": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int"},
                },
            },
            "me": {"type": "str"},
            "port": {"type": "int", "default": 19750},
            "token": {"type": "str", "no_log": True},
            "seconds": {"type": "int"},
            "samples": {"type": "int", "default": 1000},
            "latency_seconds": {"type": "float", "default": 2.0},
            "bandwidth_seconds": {"type": "float", "default": 1.0},
            "streams": {"type": "int", "default": 4},
            "latency_median_us": {**bound, "default": LIMITS["latency_median_us"][0]},
            "latency_p99_us": {**bound, "default": LIMITS["latency_p99_us"][0]},
            "bandwidth_gbps": bound,
            "bandwidth_share": {**bound, "default": LIMITS["bandwidth_share"][0]},
            "mtu": {"type": "int"},
            "interface_speed_mbps": {"type": "int"},
            "rdma_count": {"type": "int"},
            "rdma_rate_gbps": bound,
            "rdma_latency_p99_us": {**bound, "default": LIMITS["rdma_latency_p99_us"][0]},
            "rdma_bandwidth_share": {**bound, "default": LIMITS["rdma_bandwidth_share"][0]},
            "fail": {"type": "bool", "default": False},
        },
        required_if=[("state", "listening", ("hosts", "me", "token")), ("state", "measured", ("hosts", "me", "token"))],
        supports_check_mode=True,
    )
    try:
        result = NetworkValidate(module).run()
    except NetworkError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
