# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's network is made of: the interface on the way to a peer, its MTU and speed, and the RDMA devices.

All of it is read from ``/sys`` and the kernel's routing table; what cannot be known is null, with the reason beside it.
"""

from __future__ import annotations

import re
import shutil
import socket
import struct
from pathlib import Path
from typing import Any

# Numbers of linux/rtnetlink.h.
NETLINK_ROUTE = 0
RTM_NEWROUTE = 24
RTM_GETROUTE = 26
NLM_F_REQUEST = 1
RTA_DST = 1
RTA_OIF = 4
NETLINK_HEADER = struct.Struct("=IHHII")
ROUTE_HEADER = struct.Struct("=BBBBBBBBI")
ATTRIBUTE_HEADER = struct.Struct("=HH")

PERFTEST = {"latency": "ib_write_lat", "bandwidth": "ib_write_bw"}
PERFTEST_COLUMN = re.compile(r"#\w+|(?:BW peak|BW average|MsgRate|99\.9% percentile|99% percentile|t_\w+)\[[^\]]*\]")


class NetworkError(Exception):
    """What keeps a measurement from being made, in one line."""


class NetworkHost:
    """The network side of one host, below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.net = root / "sys/class/net"
        self.infiniband = root / "sys/class/infiniband"

    def interface(self, name: str) -> dict[str, Any]:
        mtu = read(self.net / name / "mtu")
        speed, reason = self.speed(name)
        return {"interface": name, "mtu": int(mtu) if mtu else None, "speed_mbps": speed, "speed_reason": reason}

    def speed(self, name: str) -> tuple[int | None, str]:
        """Mbit/s, or null and why; a virtual interface has the speed of the one interface below it that has any."""
        path = self.net / name
        text = read(path / "speed")
        number = int(text) if text and text.lstrip("-").isdigit() else -1
        # veth and the like say 10000 and mean nothing by it.
        if (path / "device").exists() or (path / "bonding").exists():
            # 4294967295 is how older drivers say that there is no link.
            if 0 < number < 2**31:
                return number, ""
            return None, f"the driver of {name} tells no speed"
        below = [self.speed(lower.name[len("lower_") :])[0] for lower in sorted(path.glob("lower_*"))]
        known = [speed for speed in below if speed]
        if len(known) == 1:
            return known[0], ""
        return None, f"{name} is a virtual interface, which has no speed of its own"

    def rdma_ports(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.infiniband.glob("*/ports/*"), key=lambda path: (natural(path.parts[-3]), int(path.name))):
            rate = re.match(r"([\d.]+) Gb/sec", read(path / "rate") or "")
            found.append(
                {
                    "device": path.parts[-3],
                    "port": int(path.name),
                    "state": (read(path / "state") or "").rpartition(":")[2].strip() or "unknown",
                    "rate_gbps": float(rate[1]) if rate else None,
                    "link_layer": read(path / "link_layer"),
                }
            )
        return found

    def toward(self, address: str) -> dict[str, Any]:
        """What a peer has to know of this host; also answered by the server."""
        return {
            **self.interface(route_interface(address)),
            "rdma_ports": self.rdma_ports(),
            "perftest": all(shutil.which(program) for program in PERFTEST.values()),
        }


def read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # an interface that is down refuses to tell its speed
        return None


def natural(name: str) -> list[tuple[int, str]]:
    """mlx5_2 before mlx5_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def active(ports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [port for port in ports if port["state"] == "ACTIVE"]


def route_interface(address: str) -> str:
    """The interface by which the kernel reaches an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    target = socket.inet_pton(family, address.partition("%")[0])
    attribute = ATTRIBUTE_HEADER.pack(ATTRIBUTE_HEADER.size + len(target), RTA_DST) + target
    body = ROUTE_HEADER.pack(family, len(target) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute
    header = NETLINK_HEADER.pack(NETLINK_HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as kernel:
        kernel.settimeout(5)
        kernel.send(header + body)
        answer = kernel.recv(65536)
    length, kind = NETLINK_HEADER.unpack_from(answer)[:2]
    offset = NETLINK_HEADER.size + ROUTE_HEADER.size
    while kind == RTM_NEWROUTE and offset + ATTRIBUTE_HEADER.size <= length:
        size, name = ATTRIBUTE_HEADER.unpack_from(answer, offset)
        if name == RTA_OIF:
            return socket.if_indextoname(struct.unpack_from("=I", answer, offset + ATTRIBUTE_HEADER.size)[0])
        offset += max((size + 3) & ~3, ATTRIBUTE_HEADER.size)
    raise NetworkError(f"this host has no route to {address}")


def perftest_command(test: str, device: str, port: int, tcp_port: int, seconds: int) -> list[str]:
    """The arguments on both ends; the client adds the server's address."""
    # Processors that change their clock only make perftest refuse to run; -F lets it run.
    command = [PERFTEST[test], "-d", device, "-i", str(port), "-p", str(tcp_port), "-F"]
    return [*command, "-n", "5000"] if test == "latency" else [*command, "--report_gbits", "-D", str(seconds)]


def parse_perftest(text: str) -> dict[str, float]:
    """The last row of figures that ib_write_lat or ib_write_bw printed, by the names of its columns."""
    columns: list[str] = []
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.strip().startswith("#bytes"):
            columns = PERFTEST_COLUMN.findall(line)
            continue
        words = line.split()
        # Warnings about processor clocks stand between the heading and the figures; some versions name no last column.
        if columns and len(words) >= len(columns) and all(re.fullmatch(r"\d+(?:\.\d+)?", word) for word in words):
            found = {name: float(word) for name, word in zip(columns, words)}
    return found


def latency_figures(text: str) -> dict[str, float]:
    row = parse_perftest(text)
    try:
        return {
            "latency_median_us": row["t_typical[usec]"],
            "latency_p99_us": row["99% percentile[usec]"],
            "latency_min_us": row["t_min[usec]"],
            "samples": row["#iterations"],
        }
    except KeyError:
        raise NetworkError(f"{PERFTEST['latency']} printed no figures: {last_line(text)}") from None


def bandwidth_figures(text: str) -> dict[str, float]:
    row = parse_perftest(text)
    if not row.get("BW average[Gb/sec]"):
        raise NetworkError(f"{PERFTEST['bandwidth']} printed no figures: {last_line(text)}")
    return {"bandwidth_gbytes_per_second": round(row["BW average[Gb/sec]"] / 8, 4)}


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return lines[-1][:200] if lines else "nothing at all"
