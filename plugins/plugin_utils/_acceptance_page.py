# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The page of an acceptance report: one file that needs nothing else, not even a script.

It is a function of the records alone, so that rendering it again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, PASS, SKIPPED, WARN
from markupsafe import Markup

from . import _acceptance as acceptance
from ._page import (
    SCRIPT,
    SCRIPT_DIGEST,
    SYMBOLS,
    figure,
    number,
    plural,
    shortened,
    tag,
    template,
    ticks,
    unit_sign,
    words,
)

TEMPLATE = Path(__file__).with_name("acceptance_report.html.j2")
MEANINGS = {
    PASS: "Looked at, and as it must be.",
    WARN: "Worth a look; no reason to keep the host out of service.",
    FAIL: "Looked at, and not as it must be. The host must not serve.",
    NOT_RUN: "Applies, and could not be looked at. It counts as failed: nothing is called healthy unseen.",
    SKIPPED: "Does not apply to this host, device or driver. It never makes a host healthy.",
}
# Which part of a machine a check is about: the first word that its name holds.
CATEGORIES = (
    ("Links", ("nvlink",)),
    ("Comparison", ("outlier", "equal_gpus")),
    ("Network", ("network", "mtu", "rdma", "interface", "latency", "nic")),
    ("Performance", ("matmul", "bandwidth_test", "bandwidth", "sustained", "determinism", "nccl", "all_reduce", "all_gather")),
    ("Performance", ("send_recv", "peer_to_peer", "clock_stability", "burn", "active_tests", "collectives")),
    ("Memory health", ("ecc", "remap", "retired", "memory_errors")),
    ("Links", ("nvswitch", "fabric", "pcie")),
    ("Topology", ("numa", "topology")),
    ("Power and heat", ("throttl", "temperature", "power", "thermal", "clock", "cooling", "fan")),
    ("Errors", ("xid", "recovery", "responds", "readings", "lost", "hung")),
    ("Settings", ("persistence", "mig", "compute_mode", "idle")),
    ("Identity", ("gpu_count", "count", "product", "pci_devices", "memory", "serial", "vbios")),
    ("Driver", ("nvml", "driver", "cuda", "examined", "gpu_validate")),
)
ORDER = (
    *("Driver", "Identity", "Settings", "Memory health", "Links", "Topology", "Power and heat", "Errors"),
    *("Performance", "Network", "Comparison", "Other"),
)


def category(name: str) -> str:
    return next((title for title, parts in CATEGORIES if any(part in name for part in parts)), "Other")


def worst_check(verdicts: Iterable[str]) -> str:
    order = (FAIL, NOT_RUN, WARN, PASS, SKIPPED)
    return min(verdicts, key=order.index)


# --- the table of hosts by checks ------------------------------------------------------------------------------------


def matrix(hosts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(check["name"] for host in hosts for check in host["checks"]))
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(category(name), []).append(name)
    groups = [(title, grouped[title]) for title in ORDER if title in grouped]
    rows = []
    for host in hosts:
        cells = []
        for _title, members in groups:
            for name in members:
                checks = [check for check in host["checks"] if check["name"] == name]
                cells.append(cell(host["host"], name, checks))
        rows.append({"host": host, "anchor": anchor(host["host"]), "cells": cells})
    return {"groups": groups, "rows": rows, "columns": sum(len(members) for _title, members in groups)}


def cell(host: str, name: str, checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not checks:
        return {"verdict": "", "symbol": "", "number": 0, "title": f"{host}: {words(name)}: not among this host's checks"}
    verdict = worst_check(check["verdict"] for check in checks)
    same = [check for check in checks if check["verdict"] == verdict]
    lines = [f"{host}: {words(name)}: {verdict} ({len(same)} of {len(checks)})"]
    shown = folded(same)
    lines += [line(item) for item in shown[:4]]
    if len(shown) > 4:
        lines.append(f"and {len(shown) - 4} more, see the host's details")
    counted = len(same) if verdict in (FAIL, NOT_RUN, WARN) and len(checks) > 1 else 0
    return {"verdict": verdict, "symbol": SYMBOLS[verdict], "number": counted, "title": "\n".join(lines)}


def line(check: Mapping[str, Any]) -> str:
    parts = [f"{check['subjects']}: measured {figure(check.get('measured'), check.get('unit'))}"]
    if check.get("expected") is not None:
        parts.append(f"expected {figure(check['expected'], check.get('unit'))}")
    if check.get("source"):
        parts.append(f"source: {check['source']}")
    if check.get("message"):
        parts.append(check["message"])
    return "; ".join(parts)


def folded(checks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checks that differ in their subject alone, as one line each."""
    found: dict[str, dict[str, Any]] = {}
    for check in checks:
        subject = check["subject"]
        # A message that names its subject is the same message for the next one.
        told = str(check.get("message", "")).removeprefix(f"{subject}: ")
        key = json.dumps([told, {k: v for k, v in check.items() if k not in ("subject", "message")}], sort_keys=True)
        found.setdefault(key, {**check, "message": told, "members": []})["members"].append(subject)
    return [{**check, "subjects": acceptance.spans(check["members"])} for check in found.values()]


# --- plots -----------------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 116, 22, 40, 44
# What a name beside a mark takes.
NAME = 172


def span_of(lanes: Sequence[Mapping[str, Any]], middle: float) -> tuple[float, float]:
    """What the axis shows: every figure and line, and beside a figure that is named room for its name."""
    points = [point for lane in lanes for point in lane["points"]]
    values = [point["value"] for point in points]
    bottom = 0 if min(values) >= 0 else -math.inf
    values += [lane[key] for lane in lanes for key in ("floor", "peak") if lane[key] is not None]
    room = (max(values) - min(values)) * 0.08 or abs(max(values)) * 0.1 or 1
    low, high = min(values) - room, max(values) + room
    named = [point["value"] for point in points if point["flag"]]
    share = NAME / (WIDTH - LEFT - RIGHT)
    for value in named:
        if value <= middle:
            low = min(low, (value - share * high) / (1 - share))
        else:
            high = max(high, low + (value - low) / (1 - share))
    return (0 if 0 <= low < 0.3 * high else max(low, bottom)), high


def strip_plot(title: str, unit: str, lanes: Sequence[Mapping[str, Any]], *, lower: bool = False) -> Markup:
    """A dot for each figure, a lane for each host, with the lines of floor and peak."""
    tall = 64 if len(lanes) <= 4 else 44 if len(lanes) <= 12 else 26
    bottom = TOP + tall * len(lanes)
    middle = statistics.median(point["value"] for lane in lanes for point in lane["points"])
    low, high = span_of(lanes, middle)

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    drawn = [tag("title", title)]
    for tick in ticks(low, high):
        drawn.append(tag("line", class_="grid", x1=x(tick), x2=x(tick), y1=TOP, y2=bottom))
        drawn.append(tag("text", number(tick), class_="tick", x=x(tick), y=bottom + 15))
    for position, lane in enumerate(lanes):
        y = TOP + position * tall
        label = (tag("title", lane["label"]), shortened(lane["label"], 15))
        drawn.append(tag("text", *label, class_="lane", x=LEFT - 8, y=y + tall / 2 + 4))
    for y in range(TOP, bottom + 1, tall):
        drawn.append(tag("line", class_="rule", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
    drawn += [mark for kind in ("peak", "floor") for mark in bounds(lanes, kind, x, tall, lower)]
    flagged = []
    for position, lane in enumerate(lanes):
        room = tall / (len(lane["points"]) + 1)
        for index, point in enumerate(lane["points"]):
            at = (x(point["value"]), TOP + position * tall + room * (index + 1))
            drawn.append(dot(lane["label"], point, unit, *at))
            if point["flag"]:
                flagged.append((position, *at, point))
    drawn += names(flagged, tall, x(middle))
    better = "lower is better" if lower else "higher is better"
    drawn.append(tag("text", f"{unit} ({better})", class_="axis", x=(LEFT + WIDTH - RIGHT) / 2, y=bottom + 34))
    frame = {"class_": "plot", "role": "img", "viewBox": f"0 0 {WIDTH} {bottom + BOTTOM}", "aria_label": f"{title} in {unit}"}
    return tag("svg", *drawn, **frame)


def bounds(
    lanes: Sequence[Mapping[str, Any]], kind: str, x: Callable[[float], float], tall: int, lower: bool
) -> Iterator[Markup]:
    """The line of a floor or a peak; where hosts differ in it, each has its own."""
    told = set()
    word = ("limit" if lower else "floor") if kind == "floor" else "peak"
    for position, lane in enumerate(lanes):
        value = lane[kind]
        if value is None:
            continue
        y, at = TOP + position * tall, x(value)
        above = (12 if kind == "peak" else 27) if position == 0 else y + 11
        yield tag("line", class_=kind, x1=at, x2=at, y1=above + 3 if position == 0 else y, y2=y + tall)
        if value not in told:
            told.add(value)
            anchor = "end" if at > WIDTH * 0.8 else "start" if at < LEFT + 40 else "middle"
            yield tag("text", f"{word} {number(value)}", class_=f"bound {kind}", text_anchor=anchor, x=at, y=above)


def dot(host: str, point: Mapping[str, Any], unit: str, x: float, y: float) -> Markup:
    told = f"{host}, {point['subject']}: {number(point['value'])} {unit}" + (f" ({point['note']})" if point["note"] else "")
    if point["flag"] == "bad":
        return tag("path", tag("title", told), class_="bad", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8")
    if point["flag"]:
        return tag("path", tag("title", told), class_="odd", d=f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z")
    return tag("circle", tag("title", told), class_="dot", cx=x, cy=y, r=3.6)


def names(flagged: Sequence[tuple[int, float, float, Mapping[str, Any]]], tall: int, middle: float) -> Iterator[Markup]:
    """What is marked has its name beside it, away from its siblings; names of one lane keep apart."""
    lowest: dict[tuple[int, bool], float] = {}
    fits = max(1, tall // 13)
    for position in sorted({item[0] for item in flagged}):
        here = [item for item in flagged if item[0] == position]
        for index, (_position, x, y, point) in enumerate(here[:fits]):
            left = x - LEFT >= NAME - 1 and (x <= middle or x > WIDTH - RIGHT - NAME + 1)
            lowest[(position, left)] = max(y + 4, lowest.get((position, left), 0) + 13)
            text = f"{point['subject']}: {number(point['value'])}"
            text += f" ({point['percent']:+.1f} %)" if point["percent"] is not None else ""
            text += f", and {len(here) - fits} more" if index == fits - 1 and len(here) > fits else ""
            place = {"text_anchor": "end" if left else "start", "x": x - 9 if left else x + 9, "y": lowest[(position, left)]}
            yield tag("text", text, class_=f"name {point['flag']}", **place)


def beyond(measurement: Mapping[str, Any]) -> bool:
    floor = measurement.get("floor")
    if floor is None:
        return False
    lower = acceptance.lower_is_better(measurement)
    return bool(measurement["value"] > floor if lower else measurement["value"] < floor)


def plots(hosts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One plot for each figure and kind of card."""
    kinds: dict[tuple[str, str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for host in hosts:
        for item in host["record"]["measurements"]:
            if not acceptance.HOST_PAIR.match(item["subject"]):
                product = acceptance.product_of(host["record"], item["subject"]) or ""
                key = (item["name"], item["unit"], product)
                kinds.setdefault(key, {}).setdefault(host["host"], []).append(item)
    drawn = []
    for (name, unit, product), by_host in kinds.items():
        odd = {
            (found["host"], found["subject"]): found["percent"]
            for host in hosts
            for found in host["outliers"]
            if found["name"] == name and found["unit"] == unit
        }
        shown, scale = ("GiB", 2**30) if unit == "bytes" else (unit_sign(unit), 1)
        lanes = [lane(host, items, odd, scale) for host, items in by_host.items()]
        values = [point["value"] for drawn_lane in lanes for point in drawn_lane["points"]]
        every = [item for items in by_host.values() for item in items]
        middle, least, most = number(statistics.median(values)), number(min(values)), number(max(values))
        drawn.append(
            {
                "title": words(name),
                "product": product,
                "svg": strip_plot(words(name), shown, lanes, lower=acceptance.lower_is_better(every[0])),
                "told": f"{plural(len(values), 'value')}: median {middle}, from {least} to {most} {shown}.",
                "sources": "; ".join(dict.fromkeys(item["source"] for item in every if item.get("source"))),
            }
        )
    return drawn


def lane(host: str, items: Sequence[Mapping[str, Any]], odd: Mapping[tuple[str, str], float], scale: float) -> dict[str, Any]:
    """A host's figures of one kind, with what is to be said of each."""
    points = []
    for item in items:
        bad, percent = beyond(item), odd.get((host, item["subject"]))
        points.append(
            {
                "subject": item["subject"],
                "value": item["value"] / scale,
                "flag": "bad" if bad else "odd" if percent is not None else None,
                "note": "beyond the limit" if bad else "behind its siblings" if percent is not None else "",
                "percent": percent,
            }
        )
    bound = {key: next((item[key] for item in items if item.get(key) is not None), None) for key in ("floor", "peak")}
    return {"label": host, "points": points, **{key: value and value / scale for key, value in bound.items()}}


def heat_tables(hosts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was measured between hosts, from the one in the row to the one in the column."""
    tables: dict[tuple[str, str], dict[tuple[str, str], Mapping[str, Any]]] = {}
    for host in hosts:
        for item in host["record"]["measurements"]:
            match = acceptance.HOST_PAIR.match(item["subject"])
            if match:
                tables.setdefault((item["name"], item["unit"]), {})[(match["source"], match["target"])] = item
    drawn = []
    for (name, unit), pairs in tables.items():
        ends = sorted({end for pair in pairs for end in pair}, key=acceptance.natural)
        every = [item["value"] for item in pairs.values()]
        # The shades tell apart those that are allowed; the others are marked.
        fine = [item["value"] for item in pairs.values() if not beyond(item)] or every
        low, high = min(fine), max(fine)
        rows = []
        for source in ends:
            cells = []
            for target in ends:
                item = pairs.get((source, target))
                if item is None:
                    text = "" if source == target else "·"
                    title = "" if source == target else f"{source} to {target}: not measured"
                    cells.append({"text": text, "class": "self" if source == target else "none", "title": title})
                    continue
                bad = beyond(item)
                step = 1 if high == low else 1 + round(3 * (item["value"] - low) / (high - low))
                title = f"{source} to {target}: {figure(item['value'], unit)}"
                if item.get("floor") is not None:
                    title += f", limit {figure(item['floor'], unit)}"
                text = f"{SYMBOLS[FAIL]} {number(item['value'])}" if bad else number(item["value"])
                cells.append({"text": text, "class": "over" if bad else f"heat{step}", "title": title})
            rows.append({"host": source, "cells": cells})
        lower = acceptance.lower_is_better(next(iter(pairs.values())))
        limits = sorted({item["floor"] for item in pairs.values() if item.get("floor") is not None})
        told = f"{plural(len(every), 'direction')}, from {number(min(every))} to {number(max(every))} {unit_sign(unit)}"
        if limits:
            allowed = " or ".join(number(limit) for limit in limits)
            told += f"; {'at most' if lower else 'at least'} {allowed} {unit_sign(unit)} allowed"
        sources = "; ".join(dict.fromkeys(item["source"] for item in pairs.values() if item.get("source")))
        table = {
            "title": words(name),
            "unit": unit_sign(unit),
            "ends": ends,
            "rows": rows,
            "told": f"{told}.",
            "sources": sources,
        }
        drawn.append(table)
    return drawn


# --- the rest of the page --------------------------------------------------------------------------------------------


def change(item: Mapping[str, Any]) -> str:
    """By how much a number moved."""
    before, after = item["before"], item["now"]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (before, after))
    return f"{(after - before) / abs(before) * 100:+.1f} %" if numbers and before else ""


SIGNATURES = {
    "valid": ("signed", "The signature fits the record, and the key is the signer's."),
    "unverified": ("signed, signer not checked", "The signature fits the record; whose key it is was not looked up."),
    "unsigned": ("not signed", "There is no signature."),
}


def anchor(host: str) -> str:
    return f"host-{hashlib.sha256(host.encode()).hexdigest()[:12]}"


def nic_keys(nics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns for network devices: the name, then what is a single value."""
    single = dict.fromkeys(key for nic in nics for key, value in nic.items() if not isinstance(value, (dict, list)))
    return [*(key for key in single if key == "name"), *(key for key in single if key != "name")]


def details(host: Mapping[str, Any]) -> dict[str, Any]:
    """What a host's part of the page shows beside its table of GPUs."""
    record, hardware = host["record"], host["record"]["hardware"]
    system = hardware["system"]
    known = {
        "System": " ".join(str(system[key]) for key in ("vendor", "product") if system.get(key)),
        "Serial": system.get("serial"),
        "BIOS": system.get("bios_version"),
        "Kernel": hardware["kernel"],
        "Driver": hardware["driver_version"],
        "CUDA": hardware["cuda_version"],
        "Profile": record["profile"],
        "Examined": record["time"],
    }
    nics = hardware.get("nics", [])
    rank = (FAIL, NOT_RUN, WARN, SKIPPED)
    checks = folded(check for check in host["checks"] if check["verdict"] != PASS)
    skipped = [check for check in checks if check["verdict"] == SKIPPED]
    counts = {verdict: sum(1 for check in host["checks"] if check["verdict"] == verdict) for verdict in (*rank, PASS)}
    return {
        **host,
        "anchor": anchor(host["host"]),
        "facts": [(label, value) for label, value in known.items() if value],
        "gpus": hardware["gpus"],
        "nics": nics,
        "nic_keys": nic_keys(nics),
        "bad": sorted((c for c in checks if c["verdict"] != SKIPPED), key=lambda check: rank.index(check["verdict"])),
        "skipped": skipped,
        "counts": [(verdict, counts[verdict]) for verdict in (PASS, WARN, FAIL, NOT_RUN, SKIPPED) if counts[verdict]],
    }


def render(title: str, verdict: str, hosts: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    times = sorted(host["record"]["time"] for host in hosts)
    verdicts = [host["verdict"] for host in hosts]
    found = [details(host) for host in hosts]
    return str(
        template(TEMPLATE).render(
            title=title,
            verdict=verdict,
            times=times,
            hosts=found,
            concerned=sorted((host for host in found if host["verdict"] != PASS), key=lambda host: host["verdict"]),
            tally=[(name, verdicts.count(name)) for name in (PASS, WARN, FAIL)],
            gpus=sum(len(host["gpus"]) for host in found),
            checks=sum(len(host["checks"]) for host in found),
            looked=sum(1 for host in found for check in host["checks"] if check["verdict"] in (PASS, WARN, FAIL)),
            measurements=sum(len(host["record"]["measurements"]) for host in found),
            matrix=matrix(hosts),
            plots=plots(hosts),
            heat=heat_tables(hosts),
            outliers=[found for host in hosts for found in host["outliers"]],
            change=change,
            symbols=SYMBOLS,
            meanings=MEANINGS,
            signatures=SIGNATURES,
            script=Markup(SCRIPT),  # noqa: S704
            script_digest=SCRIPT_DIGEST,
        )
    )
