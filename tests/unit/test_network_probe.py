# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Hosts that measure each other: over the loopback with real traffic, and what is made of the figures."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import socket
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.onprem.llm.plugins.module_utils import _network_probe as probe
from ansible_collections.onprem.llm.plugins.module_utils import _network_server as server
from ansible_collections.onprem.llm.plugins.module_utils._network_checks import BOUNDS, LIMITS, Judge, Limits, problems
from ansible_collections.onprem.llm.plugins.module_utils._network_host import (
    NetworkError,
    NetworkHost,
    bandwidth_figures,
    latency_figures,
    route_interface,
)
from ansible_collections.onprem.llm.plugins.module_utils._verdict import overall
from ansible_collections.onprem.llm.plugins.modules import network_validate

TOKEN = "a token of this test, long enough"
OPTIONS = {"mtu": None, "samples": 400, "latency_seconds": 5.0, "bandwidth_seconds": 0.2, "streams": 2, "rdma_count": None}

# What perftest prints, shortened; the warning between heading and figures is what it says on a machine that saves power.
LATENCY_OUTPUT = """
---------------------------------------------------------------------------------------
                    RDMA_Write Latency Test
 Dual-port       : OFF          Device         : mlx5_0
 Mtu             : 4096[B]
 Link type       : IB
---------------------------------------------------------------------------------------
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec]
Conflicting CPU frequency values detected: 1000.000000 != 3299.999000. CPU Frequency is not max.
 2       5000          1.55           7.16         1.60              1.61             0.07            1.72                 3.49
---------------------------------------------------------------------------------------
"""  # noqa: E501
BANDWIDTH_OUTPUT = """
                    RDMA_Write BW Test
 #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]
 65536      1494560          0.00               391.72               0.747146
---------------------------------------------------------------------------------------
"""


# --- the schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [3, 4, 5, 8, 16, 33])
def test_each_pair_once_and_no_host_twice_in_a_round(number: int) -> None:
    hosts = [f"gpu{index}" for index in range(number)]
    plans = {host: probe.rounds(hosts, host) for host in hosts}
    assert {len(plan) for plan in plans.values()} == {number // 2}
    pairs = Counter(frozenset((host, peer)) for host, plan in plans.items() for peer in plan if peer)
    assert set(pairs.values()) == {1}
    assert len(pairs) == number * (number - 1) // 2
    for turn in range(number // 2):
        served = Counter(plan[turn] for plan in plans.values() if plan[turn])
        assert max(served.values()) == 1
    # Nobody is without anything of its own to show.
    assert all(any(plan) for plan in plans.values())


def test_two_hosts_measure_each_other_in_turn() -> None:
    assert probe.rounds(["a", "b"], "a") == ["b", None]
    assert probe.rounds(["a", "b"], "b") == [None, "a"]
    assert probe.rounds(["a"], "a") == []


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
        self.now = now
        monkeypatch.setattr(probe.time, "time", lambda: self.now)
        monkeypatch.setattr(probe.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("late", [0.0, 3.0, 20.0, 500.0])
def test_hosts_that_begin_late_do_the_same_round_at_the_same_time(monkeypatch: pytest.MonkeyPatch, late: float) -> None:
    timetable = probe.Timetable(2.0, 1.0, 0)
    seen = {}
    for begin in (1000.0, 1000.0 + late):
        clock = Clock(monkeypatch, begin)
        seen[begin] = []
        for number, start in probe.slots(timetable, 5):
            assert clock.now == pytest.approx(start)
            seen[begin].append((number, start))
            clock.now += timetable.slot * 0.9
        assert {number for number, _start in seen[begin]} == set(range(5))
        assert clock.now - begin <= timetable.seconds(5)
    rounds = [{number: start for number, start in plan} for plan in seen.values()]
    for number in range(5):
        assert (rounds[0][number] - rounds[-1][number]) % (5 * timetable.slot) == 0


def test_a_round_that_overran_is_made_up_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    timetable = probe.Timetable(2.0, 1.0, 0)
    clock = Clock(monkeypatch, 1000.0)
    seen = []
    for number, _start in probe.slots(timetable, 3):
        seen.append(number)
        clock.now += timetable.slot * (1.5 if len(seen) == 1 else 0.5)
    assert sorted(seen) == [0, 1, 2]
    seen = []
    for number, _start in probe.slots(timetable, 3):
        seen.append(number)
        clock.now += timetable.slot * 100
    assert len(seen) < 3


def test_phases_follow_each_other_and_fit_into_the_slot() -> None:
    timetable = probe.Timetable(2.0, 1.0, 8)
    phases = [timetable.send, timetable.receive, timetable.rdma_latency, timetable.rdma_bandwidth, timetable.slot]
    assert phases == sorted(phases)
    assert timetable.receive - timetable.send > 1.0
    assert timetable.slot > probe.Timetable(2.0, 1.0, 0).slot + 8 * probe.RDMA_STREAM_SECONDS


# --- a server and a client with real traffic -------------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "runtime"
    yield path
    server.stop(path)


def listen(runtime: Path, seconds: int = 60, name: str = "gpu2") -> dict[str, Any]:
    return server.start(name, "127.0.0.1", 0, TOKEN, seconds, runtime)


def measured(port: int, **options: Any) -> dict[str, Any]:
    peer = probe.Peer("gpu2", "127.0.0.1", port, TOKEN)
    found = probe.Measurement(peer, {**OPTIONS, **options}, probe.Timetable(2.0, 1.0, 0)).run()
    return {"from": "gpu1", "to": "gpu2", **found}


def test_a_measurement_has_figures(runtime: Path) -> None:
    found = measured(listen(runtime)["port"])
    assert found["errors"] == {}
    assert found["samples"] == 400
    assert 0 < found["latency_min_us"] <= found["latency_median_us"] <= found["latency_p99_us"]
    assert found["send_gbytes_per_second"] > 0.01
    assert found["receive_gbytes_per_second"] > 0.01
    assert found["interface"] == found["peer_interface"] == "lo"
    assert found["mtu_passes"] is True
    assert abs(found["clock_offset_seconds"]) < 1


def test_several_clients_are_served_at_a_time(runtime: Path) -> None:
    port = listen(runtime)["port"]
    peer = probe.Peer("gpu2", "127.0.0.1", port, TOKEN)
    with peer.connected() as first, peer.connected() as second:
        for connection in (first, second):
            probe.send_object(connection, {"do": "echo"})
        for connection in (second, first):
            connection.sendall(b"x" * probe.MESSAGE_BYTES)
            assert probe.receive_exactly(connection, probe.MESSAGE_BYTES) == b"x" * probe.MESSAGE_BYTES


def test_another_token_is_refused_and_its_data_not_taken(runtime: Path) -> None:
    port = listen(runtime)["port"]
    with pytest.raises(NetworkError, match="refused the token"):
        probe.Peer("gpu2", "127.0.0.1", port, "another token, long enough too").tell()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        greeting = probe.receive_exactly(connection, len(probe.HELLO) + probe.NONCE_BYTES)
        assert TOKEN.encode() not in greeting
        connection.sendall(b"\0" * 1024)
        with pytest.raises((NetworkError, ConnectionResetError)):
            probe.receive_exactly(connection, 1)
    # A datagram without the proof gets no answer at all.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(0.3)
        datagrams.sendto(b"\0" * 500, ("127.0.0.1", port))
        with pytest.raises(socket.timeout):
            datagrams.recv(1000)


def test_a_server_that_does_not_know_the_token_is_not_believed() -> None:
    """It lets everybody in, to be measured in another's place."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pretend() -> None:
            connection, _peer = listener.accept()
            with connection:
                connection.sendall(probe.HELLO + b"n" * probe.NONCE_BYTES)
                probe.receive_exactly(connection, probe.NONCE_BYTES + 32)
                connection.sendall(b"p" * 32)
                with contextlib.suppress(ConnectionResetError):
                    connection.recv(1)

        thread = threading.Thread(target=pretend)
        thread.start()
        found = measured(listener.getsockname()[1])
        thread.join(5)
    assert "does not know the token" in found["errors"]["reach"]


def test_a_server_of_another_name_is_not_the_peer(runtime: Path) -> None:
    found = measured(listen(runtime, name="gpu7")["port"])
    assert found["errors"]["reach"].endswith("is gpu7, not gpu2")
    assert "latency_median_us" not in found


def test_a_peer_that_is_not_there(runtime: Path) -> None:
    port = listen(runtime)["port"]
    server.stop(runtime)
    found = measured(port)
    assert found["errors"]["reach"] == f"127.0.0.1 port {port} cannot be reached: Connection refused"
    assert "latency_median_us" not in found


def test_a_peer_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun = time.monotonic()
        found = measured(listener.getsockname()[1])
    assert "does not answer as a network probe" in found["errors"]["reach"]
    assert time.monotonic() - begun < 2 * probe.CONNECT_SECONDS


def gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while server.started(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not server.started(pid)


def test_the_server_ends_by_itself_also_with_a_client(runtime: Path) -> None:
    state = listen(runtime, seconds=1)
    with probe.Peer("gpu2", "127.0.0.1", state["port"], TOKEN).connected() as connection:
        probe.send_object(connection, {"do": "echo"})
        assert not gone(state["pid"], 0.5)
        assert gone(state["pid"], 3)
    assert server.running(runtime) is None
    assert server.stop(runtime) is False
    assert not runtime.exists()


def test_a_second_start_replaces_the_first(runtime: Path) -> None:
    first, second = listen(runtime), listen(runtime)
    assert gone(first["pid"], 1)
    assert server.running(runtime)["pid"] == second["pid"]
    assert server.stop(runtime) is True
    assert gone(second["pid"], 1)


def test_only_our_own_process_is_stopped(runtime: Path) -> None:
    """A number that another process got since, and a directory that others can write."""
    runtime.mkdir(mode=0o700)
    state = {"pid": os.getpid(), "started": server.started(os.getpid()) - 1, "address": "127.0.0.1", "port": 1}
    (runtime / "server.json").write_text(json.dumps(state), encoding="utf-8")
    assert server.stop(runtime) is False
    runtime.mkdir(mode=0o700)
    runtime.chmod(0o777)
    with pytest.raises(NetworkError, match="not a directory of this user alone"):
        server.stop(runtime)
    runtime.chmod(0o700)


def test_the_server_holds_nothing_and_may_do_nothing(runtime: Path) -> None:
    with open(os.devnull, encoding="utf-8") as inherited:
        os.set_inheritable(inherited.fileno(), True)
        state = listen(runtime)
    process = Path(f"/proc/{state['pid']}")
    targets = [os.readlink(path) for path in (process / "fd").iterdir()]
    assert sorted(target.partition(":")[0] for target in targets) == [os.devnull] * 3 + ["socket"] * 2
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert TOKEN not in (runtime / "server.json").read_text(encoding="utf-8")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text(encoding="utf-8").splitlines() if ":\t" in line)
    assert "0" not in status["Uid"].split()
    assert int(status["CapEff"], 16) == 0


def test_an_address_that_is_taken_or_not_ours(runtime: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(NetworkError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            server.start("gpu1", "127.0.0.1", port, TOKEN, 5, runtime)
    with pytest.raises(NetworkError, match=r"cannot listen on 192\.0\.2\.1"):
        server.start("gpu1", "192.0.2.1", 0, TOKEN, 5, runtime)
    with pytest.raises(NetworkError, match="token is shorter"):
        server.start("gpu1", "127.0.0.1", 0, "short", 5, runtime)
    assert server.running(runtime) is None


class NarrowSocket:
    """Sends only small datagrams, as on a route with a small MTU."""

    def __init__(self, datagrams: socket.socket) -> None:
        self.datagrams = datagrams

    def __getattr__(self, name: str) -> Any:
        return getattr(self.datagrams, name)

    def sendto(self, content: bytes, address: Any) -> int:
        if len(content) > 1000:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return self.datagrams.sendto(content, address)


def test_a_packet_larger_than_the_way_takes() -> None:
    attended = server.Server("gpu2", "127.0.0.1", 0, TOKEN)
    attended.datagrams = NarrowSocket(attended.datagrams)
    threading.Thread(target=attended.serve, args=(5,), daemon=True).start()
    peer = probe.Peer("gpu2", "127.0.0.1", attended.port, TOKEN)
    assert peer.largest_packet(1000) == {"mtu_passes": True, "mtu_reason": "", "path_mtu": 65535}
    found = peer.largest_packet(1500)
    assert (found["mtu_passes"], found["mtu_reason"]) == (False, "the way back takes only smaller packets")


def test_a_packet_that_is_lost_on_the_way() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        found = probe.Peer("gpu2", "127.0.0.1", silent.getsockname()[1], TOKEN).largest_packet(1500)
    assert (found["mtu_passes"], found["mtu_reason"]) == (False, "a packet of that size gets no answer")


# --- RDMA ------------------------------------------------------------------------------------------------------------


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n", encoding="utf-8")


def rdma_port(root: Path, device: str, state: str = "4: ACTIVE", rate: str = "400 Gb/sec (4X NDR)") -> None:
    folder = root / "sys/class/infiniband" / device / "ports/1"
    for name, content in (("state", state), ("rate", rate), ("link_layer", "InfiniBand")):
        write(folder / name, content)


def test_perftest_is_read_by_the_names_of_its_columns() -> None:
    assert latency_figures(LATENCY_OUTPUT) == {
        "latency_median_us": 1.6,
        "latency_p99_us": 1.72,
        "latency_min_us": 1.55,
        "samples": 5000,
    }
    assert bandwidth_figures(BANDWIDTH_OUTPUT) == {"bandwidth_gbytes_per_second": 48.965}
    # Some versions print a figure more than they have names for.
    assert bandwidth_figures(BANDWIDTH_OUTPUT.replace("   MsgRate[Mpps]", "")) == {"bandwidth_gbytes_per_second": 48.965}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Couldn't connect to 10.0.0.2:19751\n",
        BANDWIDTH_OUTPUT.replace("Gb/sec", "MB/sec"),
        BANDWIDTH_OUTPUT.replace("391.72", "0.00"),
    ],
)
def test_bandwidth_without_figures_or_in_another_unit_is_an_error(text: str) -> None:
    with pytest.raises(NetworkError, match="ib_write_bw printed no figures"):
        bandwidth_figures(text)
    with pytest.raises(NetworkError, match="ib_write_lat printed no figures"):
        latency_figures(text)


def test_rdma_ports_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for device in ("mlx5_10", "mlx5_2"):
        rdma_port(tmp_path, device)
    rdma_port(tmp_path, "mlx5_0", state="1: DOWN", rate="10 Gb/sec (4X SDR)")
    found = NetworkHost(tmp_path).rdma_ports()
    assert [(port["device"], port["state"], port["rate_gbps"]) for port in found] == [
        ("mlx5_0", "DOWN", 10.0),
        ("mlx5_2", "ACTIVE", 400.0),
        ("mlx5_10", "ACTIVE", 400.0),
    ]


FAKE_PERFTEST = """#!{python}
import socket, sys
words = sys.argv[1:]
port = int(words[words.index("-p") + 1])
if words[-1] == "127.0.0.1":
    socket.create_connection(("127.0.0.1", port)).close()
    print({output!r})
else:
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.accept()
"""


def test_perftest_runs_on_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, output in (("ib_write_lat", LATENCY_OUTPUT), ("ib_write_bw", BANDWIDTH_OUTPUT)):
        program = tmp_path / "bin" / name
        write(program, FAKE_PERFTEST.format(python=sys.executable, output=output))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for device in ("mlx5_0", "mlx5_1"):
        rdma_port(tmp_path, device)
    attended = server.Server("gpu2", "127.0.0.1", 0, TOKEN)
    attended.host = NetworkHost(tmp_path)
    threading.Thread(target=attended.serve, args=(20,), daemon=True).start()
    peer = probe.Peer("gpu2", "127.0.0.1", attended.port, TOKEN)
    measurement = probe.Measurement(peer, {**OPTIONS, "rdma_count": 2}, probe.Timetable(2.0, 1.0, 2))
    measurement.host = NetworkHost(tmp_path)
    told = peer.tell()
    assert told["perftest"] is True
    found = measurement.rdma(measurement.host.toward("127.0.0.1"), told)
    assert [rail["port"] for rail in found["rails"]] == ["mlx5_0/1", "mlx5_1/1"]
    assert all(rail["errors"] == {} for rail in found["rails"])
    assert [rail["bandwidth_gbytes_per_second"] for rail in found["rails"]] == [48.965, 48.965]
    # A device that the server does not have is nothing that it runs a program for.
    with pytest.raises(NetworkError, match="closed the connection"):
        peer.rdma("latency", {"device": "mlx5_0", "port": 1}, {"device": "../evil", "port": 1})


# --- interfaces ------------------------------------------------------------------------------------------------------


def test_speeds_that_are_known_and_those_that_are_not(tmp_path: Path) -> None:
    net = tmp_path / "sys/class/net"
    for name, speed in (("eth0", "100000"), ("eth1", "-1"), ("veth0", "10000"), ("bond0", "200000"), ("eth2", "4294967295")):
        write(net / name / "speed", speed)
        write(net / name / "mtu", "9000")
    for name in ("eth0/device", "eth1/device", "eth2/device", "bond0/bonding"):
        (net / name).mkdir()
    write(net / "vlan7/mtu", "1500")
    (net / "vlan7/lower_eth0").mkdir()
    host = NetworkHost(tmp_path)
    assert host.speed("eth0") == (100000, "")
    assert host.speed("bond0") == (200000, "")
    assert host.speed("vlan7") == (100000, "")
    assert host.speed("eth1") == (None, "the driver of eth1 tells no speed")
    assert host.speed("eth2")[0] is None
    # It says 10000, and means nothing by it.
    assert host.speed("veth0") == (None, "veth0 is a virtual interface, which has no speed of its own")
    assert host.interface("eth0")["mtu"] == 9000


def test_the_interface_on_the_way() -> None:
    assert route_interface("127.0.0.1") == "lo"


# --- verdicts --------------------------------------------------------------------------------------------------------


def figures(**changes: Any) -> dict[str, Any]:
    pair = {
        "from": "gpu1",
        "to": "gpu2",
        "address": "10.0.0.2",
        "errors": {},
        "slot_seconds": 7,
        "interface": "eth0",
        "mtu": 9000,
        "speed_mbps": 100000,
        "speed_reason": "",
        "peer_interface": "eth1",
        "peer_mtu": 9000,
        "peer_speed_mbps": 25000,
        "peer_speed_reason": "",
        "clock_offset_seconds": 0.01,
        "mtu_passes": True,
        "mtu_reason": "",
        "path_mtu": 9000,
        "latency_median_us": 30.0,
        "latency_p99_us": 80.0,
        "latency_min_us": 20.0,
        "samples": 1000,
        "send_gbytes_per_second": 2.5,
        "receive_gbytes_per_second": 2.4,
        "rdma": {"active_ports": 0, "peer_active_ports": 0, "perftest": False, "peer_perftest": False, "rails": []},
    }
    return {**pair, **changes}


def judged(pair: dict[str, Any], **limits: Any) -> dict[str, Any]:
    return {check.name: check for check in Judge(Limits(limits)).pair(pair)}


def test_a_good_pair_passes_and_names_its_sources() -> None:
    found = judged(figures())
    assert {name: check.verdict for name, check in found.items()} == {
        "network_reachable": "PASS",
        "network_latency_median": "PASS",
        "network_latency_p99": "PASS",
        "network_bandwidth": "PASS",
        "network_mtu": "PASS",
        "rdma_latency_p99": "SKIPPED",
        "rdma_bandwidth": "SKIPPED",
    }
    assert {check.subject for check in found.values()} == {"gpu1 -> gpu2"}
    assert all(check.source for check in found.values() if check.expected is not None)
    # Half of the slower interface's 25 Gbit/s.
    assert found["network_bandwidth"].expected == pytest.approx(12.5 / 8)
    assert overall(found.values()) == "PASS"


@pytest.mark.parametrize(
    ("changes", "limits", "name", "verdict", "says"),
    [
        ({"latency_median_us": 500.1}, {}, "network_latency_median", "FAIL", "500.1 us in the median"),
        ({"latency_median_us": 500.0}, {}, "network_latency_median", "PASS", ""),
        ({"latency_p99_us": 2500.0}, {}, "network_latency_p99", "WARN", "the bound is 2000 us"),
        ({"samples": 299}, {}, "network_latency_p99", "NOT_RUN", "only 299 round trips"),
        ({"receive_gbytes_per_second": 1.0}, {}, "network_bandwidth", "FAIL", "8.00 Gbit/s back"),
        ({}, {"bandwidth_gbps": 23.0}, "network_bandwidth", "FAIL", "at least 23 Gbit/s"),
        ({"speed_mbps": None, "speed_reason": "veth"}, {}, "network_bandwidth", "SKIPPED", "no floor: veth"),
        ({"speed_mbps": None}, {"bandwidth_gbps": 1.0}, "network_bandwidth", "PASS", ""),
        ({"peer_mtu": 1500}, {}, "network_mtu", "FAIL", "gpu2's interface on the way, eth1, has 1500"),
        ({}, {"mtu": 1500}, "network_mtu", "FAIL", "gpu1's interface on the way, eth0, has 9000"),
        ({"mtu_passes": False, "mtu_reason": "no answer"}, {}, "network_mtu", "FAIL", "9000 bytes"),
        ({"mtu": None}, {}, "network_mtu", "NOT_RUN", "cannot be read"),
        ({"clock_offset_seconds": -3.0}, {}, "network_clock", "WARN", "differ by -3 s"),
        ({"interface": "lo"}, {}, "network_reachable", "FAIL", "this host's own"),
    ],
)
def test_verdicts_of_a_pair(changes: dict[str, Any], limits: dict[str, Any], name: str, verdict: str, says: str) -> None:
    check = judged(figures(**changes), **limits)[name]
    assert (check.verdict, says in check.message) == (verdict, True), check
    if verdict == "FAIL":
        assert check.action


def test_a_fast_link_is_not_asked_for_more_than_tcp_can() -> None:
    found = judged(figures(speed_mbps=400000, peer_speed_mbps=400000, send_gbytes_per_second=4.0, receive_gbytes_per_second=4.0))
    assert found["network_bandwidth"].expected == 2.5
    assert found["network_bandwidth"].verdict == "PASS"


@pytest.mark.parametrize("missing", ["latency_median_us", "send_gbytes_per_second", "receive_gbytes_per_second", "mtu_passes"])
def test_a_figure_that_is_missing_is_never_good(missing: str) -> None:
    pair = figures()
    del pair[missing]
    assert overall(judged(pair).values()) == "FAIL"


def test_a_peer_that_was_not_reached() -> None:
    pair = {"from": "gpu1", "to": "gpu2", "address": "10.0.0.2", "errors": {"reach": "10.0.0.2 port 1 cannot be reached: no"}}
    found = judged(pair)
    assert found["network_reachable"].verdict == "FAIL"
    assert "10.0.0.2" in found["network_reachable"].message
    assert {check.verdict for name, check in found.items() if name != "network_reachable"} == {"NOT_RUN"}


RAIL = {
    "port": "mlx5_0/1",
    "peer_port": "mlx5_0/1",
    "rate_gbps": 400.0,
    "errors": {},
    "latency_p99_us": 1.72,
    "bandwidth_gbytes_per_second": 48.965,
}


def rdma(rails: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    both = {"active_ports": 1, "peer_active_ports": 1, "perftest": True, "peer_perftest": True, "rails": rails or []}
    return figures(rdma={**both, **changes})


@pytest.mark.parametrize(
    ("pair", "limits", "latency", "bandwidth"),
    [
        (rdma([RAIL]), {"rdma_count": 1}, "PASS", "PASS"),
        (rdma([{**RAIL, "latency_p99_us": 4.21}]), {"rdma_count": 1}, "FAIL", "PASS"),
        (rdma([{**RAIL, "latency_p99_us": 4.2}]), {"rdma_count": 1}, "PASS", "PASS"),
        (rdma([{**RAIL, "bandwidth_gbytes_per_second": 44.9}]), {"rdma_count": 1}, "PASS", "FAIL"),
        (rdma([{**RAIL, "rate_gbps": None}]), {"rdma_count": 1}, "PASS", "NOT_RUN"),
        (rdma([{**RAIL, "latency_p99_us": None, "errors": {"latency": "no"}}]), {"rdma_count": 1}, "NOT_RUN", "PASS"),
        (rdma([RAIL]), {}, "NOT_RUN", "NOT_RUN"),
        (rdma([RAIL]), {"rdma_count": 0}, "SKIPPED", "SKIPPED"),
        (rdma(perftest=False), {"rdma_count": 1}, "NOT_RUN", "NOT_RUN"),
        (rdma(peer_perftest=False), {"rdma_count": 1}, "NOT_RUN", "NOT_RUN"),
        (rdma(peer_active_ports=0), {"rdma_count": 1}, "NOT_RUN", "NOT_RUN"),
        (rdma(active_ports=0, peer_active_ports=0), {}, "SKIPPED", "SKIPPED"),
    ],
)
def test_verdicts_of_rdma(pair: dict[str, Any], limits: dict[str, Any], latency: str, bandwidth: str) -> None:
    found = judged(pair, **limits)
    assert (found["rdma_latency_p99"].verdict, found["rdma_bandwidth"].verdict) == (latency, bandwidth)


def test_a_rail_that_is_missing_fails() -> None:
    found = judged(rdma([RAIL]), rdma_count=2)
    assert found["rdma_rails"].verdict == "FAIL"
    assert found["rdma_latency_p99"].verdict == "PASS"


UP = {"device": "mlx5_0", "port": 1, "state": "ACTIVE", "rate_gbps": 400.0}
DOWN = {"device": "mlx5_1", "port": 1, "state": "DOWN", "rate_gbps": 10.0}


@pytest.mark.parametrize(
    ("ports", "limits", "verdict"),
    [
        ([], {}, "SKIPPED"),
        ([], {"rdma_count": 0}, "SKIPPED"),
        ([], {"rdma_count": 1}, "FAIL"),
        ([UP, DOWN], {"rdma_count": 1}, "PASS"),
        ([UP, DOWN], {"rdma_count": 2}, "FAIL"),
        ([UP], {"rdma_count": 1, "rdma_rate_gbps": 800.0}, "FAIL"),
        ([{**UP, "rate_gbps": None}], {"rdma_rate_gbps": 100.0}, "FAIL"),
        ([DOWN], {}, "WARN"),
    ],
)
def test_rdma_devices(ports: list[dict[str, Any]], limits: dict[str, Any], verdict: str) -> None:
    assert Judge(Limits(limits)).rdma_devices(ports).verdict == verdict


@pytest.mark.parametrize(
    ("speed", "floor", "verdict"),
    [
        (100000, 100000, "PASS"),
        (25000, 100000, "FAIL"),
        (100000, None, "SKIPPED"),
        (None, None, "SKIPPED"),
        (None, 10000, "NOT_RUN"),
    ],
)
def test_interface_speed(speed: int | None, floor: int | None, verdict: str) -> None:
    interface = {"interface": "eth0", "speed_mbps": speed, "speed_reason": "eth0 is a virtual interface"}
    assert Judge(Limits({"interface_speed_mbps": floor})).interface_speed(interface).verdict == verdict


def test_bounds_that_would_pass_everything_are_refused() -> None:
    assert set(LIMITS) <= set(BOUNDS)
    for name, (low, high) in BOUNDS.items():
        for value in (math.nan, math.inf, -1, high + 1, *([] if name == "rdma_count" else [0])):
            assert name in " ".join(problems({name: value})), (name, value)
        assert problems({name: low}) == problems({name: high}) == problems({name: None}) == []


# --- the module ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (server.start, server.stop, server.running):
        monkeypatch.setattr(function, "__defaults__", (tmp_path / "module",))


def module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"me": "gpu1", "token": TOKEN, **arguments}), pytest.raises(SystemExit):
        network_validate.main()
    said = capsys.readouterr().out
    assert TOKEN not in said
    result: dict[str, Any] = json.loads(said)
    return result


def named(*addresses: str, port: int | None = None) -> list[dict[str, Any]]:
    return [{"name": f"gpu{number}", "address": address, "port": port} for number, address in enumerate(addresses, 1)]


def test_the_module_from_listening_to_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hosts = named("127.0.0.1", "127.0.0.9", port=port)
    listening = module(capsys, state="listening", hosts=hosts)
    assert (listening["changed"], listening["port"]) == (True, port)
    assert module(capsys, state="stopped", _ansible_check_mode=True)["changed"] is True
    quick = {"latency_seconds": 0.5, "bandwidth_seconds": 0.1, "samples": 300}
    found = module(capsys, state="measured", hosts=hosts, me="gpu2", **quick)
    assert (found["rounds"], found["verdict"]) == (2, "FAIL")
    # The figures are there; but the way leads back to this host, which is no network.
    assert found["pairs"][0]["latency_median_us"] > 0
    failed = [check for check in found["checks"] if check["verdict"] == "FAIL"]
    assert [check["name"] for check in failed] == ["network_reachable"]
    assert module(capsys, state="stopped")["changed"] is True
    assert module(capsys, state="stopped")["changed"] is False


def test_check_mode_measures_nothing_and_calls_nothing_good(capsys: pytest.CaptureFixture[str]) -> None:
    found = module(capsys, state="measured", hosts=named("192.0.2.1", "192.0.2.2", "192.0.2.3"), _ansible_check_mode=True)
    assert found["verdict"] == "FAIL"
    assert {check["verdict"] for check in found["checks"]} == {"NOT_RUN"}
    assert (found["rounds"], found["expected_seconds"], found["pairs"]) == (1, 14, [])


def test_without_peers_nothing_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    found = module(capsys, state="measured", hosts=named("127.0.0.1"))
    assert found["verdict"] == "FAIL"
    assert [check["verdict"] for check in found["checks"] if check["name"] == "network_peers"] == ["NOT_RUN"]
    failed = module(capsys, state="measured", hosts=named("127.0.0.1"), fail=True)
    assert failed["failed"] is True
    assert "names no other host" in failed["msg"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"hosts": named("10.0.0.1", "10.0.0.1")}, "gpu1 and gpu2 have the same address in hosts, 10.0.0.1."),
        ({"hosts": [*named("10.0.0.1"), *named("10.0.0.2")]}, "hosts names gpu1 more than once."),
        ({"hosts": named("10.0.0.1", "10.0.0.2"), "me": "gpu9"}, "me is 'gpu9', which is not in hosts"),
        ({"hosts": named("10.0.0.1", "10.0.0.2"), "latency_median_us": 0}, "latency_median_us is 0"),
        ({"hosts": named("10.0.0.1", "10.0.0.2"), "bandwidth_gbps": "nan"}, "bandwidth_gbps is nan"),
        ({"hosts": []}, "me is 'gpu1', which is not in hosts; that names nobody."),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], says: str) -> None:
    found = module(capsys, state="measured", **arguments)
    assert found["failed"] is True
    assert says in found["msg"]
