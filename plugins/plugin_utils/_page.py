# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""What the collection's pages share: how values read, elements of SVG, axes, labels that keep apart, and the template's setup.

Such a page is one file that needs nothing else. Its style is in ``page_style.css.j2``, which the templates include.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, PASS, SKIPPED, WARN
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

DASH = "\N{EN DASH}"
SYMBOLS = {PASS: "✓", WARN: "!", FAIL: "✕", NOT_RUN: "?", SKIPPED: DASH}
WORDS = {
    **{word.lower(): word for word in ("GPU", "PCIe", "NVLink", "ECC", "Xid", "MTU", "NUMA", "NVML", "MIG", "NCCL", "RDMA")},
    **{word.lower(): word for word in ("PCI", "MAC", "CUDA", "GPUs", "NVSwitches")},
    **{word.lower(): word for word in ("KV", "TTFT", "ITL", "SLO", "CPU", "API", "MLA", "MLP", "PUE")},
    **{word.lower(): word for word in ("FP64", "FP32", "TF32", "BF16", "FP16", "FP8", "INT8")},
    **{
        "matmul": "matrix product",
        "mbps": "(Mbit/s)",
        "gbps": "(Gbit/s)",
        "bytes": "(bytes)",
        "celsius": "(°C)",
        "e2e": "end to end",
    },
}
UNITS = {"C": "°C", "us": "µs"}
SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"))
# Opens what is folded before printing; nothing else on a page needs it.
SCRIPT = "addEventListener('beforeprint',()=>document.querySelectorAll('details').forEach(d=>{d.open=true}))"
SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


# --- values ----------------------------------------------------------------------------------------------------------


def unit_sign(unit: str | None) -> str:
    return UNITS.get(unit or "", unit or "")


def words(name: str) -> str:
    text = " ".join(WORDS.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:]


def figure(value: Any, unit: str | None = None) -> str:
    """A value as an operator reads it; the unit follows where there is one."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if unit == "bytes":
            size, word = next((step for step in SIZES if abs(value) >= step[0]), (1, "bytes"))
            return f"{value / size:,.4g} {word}" if size > 1 else f"{value:,} bytes"
        return f"{number(value)} {unit_sign(unit)}" if unit else number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(figure(item) for item in value) or "none"
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return f"{value} {unit_sign(unit)}" if unit and str(value).replace(".", "").isdigit() else str(value)


def number(value: float) -> str:
    """Four digits that matter, with thousands apart."""
    if value == 0 or float(value).is_integer():
        return f"{value:,.0f}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


# --- drawing ---------------------------------------------------------------------------------------------------------


def tag(name: str, *content: str, **attributes: Any) -> Markup:
    """One element. What comes in is escaped unless it is markup already; names are the caller's own."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(round(value, 1) if isinstance(value, float) else value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{''.join(map(escape, content))}</{name}>")  # noqa: S704


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(position * step, 10) for position in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Round numbers for a logarithmic axis from ``low`` to ``high``, both positive: 1, 2, 5 of each decade, or fewer."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f"{factor}e{power}") for power in decades for factor in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most:
            break
    else:
        found = found[:: math.ceil(len(found) / most)]
    # Within less than a decade even steps read better, and there may be no such number at all.
    return found if len(found) >= 3 else [value for value in ticks(low, high, 5) if value > 0]


@dataclass(frozen=True)
class Axis:
    """From values to places: ``low`` lies at ``begin``, ``high`` at ``end``."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def log_axis(values: Iterable[float], begin: float, end: float, room: float = 0.06) -> Axis:
    """A logarithmic axis that shows every value, all of them positive, and some room beside them."""
    listed = list(values)
    low, high = math.log(min(listed)), math.log(max(listed))
    # A curve that hardly rises is not to look as if it did.
    missing = math.log(2) - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
    spare = (high - low) * room
    return Axis(math.exp(low - spare), math.exp(high + spare), begin, end, log=True)


Box = tuple[float, float, float, float]


@dataclass
class Labels:
    """Finds a place for each text of a drawing where it covers no other text; the frame is left, top, right, bottom.

    Sizes are those of 11.5 px text in the user's units of the drawing, taken generously: the font is not known.
    """

    frame: Box
    taken: list[Box] = field(default_factory=list)
    dots: list[tuple[float, float]] = field(default_factory=list)

    WIDE, TALL = 7.2, 13.0

    def block(self, box: Box) -> None:
        self.taken.append(box)

    def avoid(self, points: Iterable[tuple[float, float]]) -> None:
        """Points that a text should not cover where it has a choice."""
        self.dots += points

    def box(self, x: float, y: float, text: str, anchor: str) -> Box:
        wide = self.WIDE * len(text)
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * wide
        return left, y - self.TALL + 3, left + wide, y + 3

    def free(self, box: Box) -> bool:
        inside = self.frame[0] <= box[0] and self.frame[1] <= box[1] and box[2] <= self.frame[2] and box[3] <= self.frame[3]
        return inside and not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in self.taken
        )

    def put(self, text: str, class_: str, places: Sequence[tuple[float, float, str]]) -> Markup | None:
        """The text at the best of these places (x, baseline, anchor), the first of equals; None where none is free."""
        best: tuple[int, Box, tuple[float, float, str]] | None = None
        for place in places:
            box = self.box(place[0], place[1], text, place[2])
            if self.free(box):
                covered = sum(1 for x, y in self.dots if box[0] < x < box[2] and box[1] < y < box[3])
                if best is None or covered < best[0]:
                    best = covered, box, place
        if best is None:
            return None
        self.block(best[1])
        x, y, anchor = best[2]
        return tag("text", text, class_=class_, text_anchor=anchor, x=float(x), y=float(y))

    def beside(self, x: float, y: float, text: str, class_: str, gap: float = 8) -> Markup | None:
        """The text next to a point."""
        near = (
            (x, y - gap - 1, "middle"),
            (x - gap, y - gap + 2, "end"),
            (x + gap, y - gap + 2, "start"),
            (x - gap - 2, y + 4, "end"),
            (x + gap + 2, y + 4, "start"),
            (x + gap, y + gap + 8, "start"),
            (x, y + gap + 10, "middle"),
            (x - gap, y + gap + 8, "end"),
        )
        return self.put(text, class_, near)


def shape(kind: int, x: float, y: float, size: float) -> str:
    """The path of one of eight shapes that are told apart without colour, about a place."""
    if kind % 8 == 0:
        return (
            f"M{x - size:.1f} {y:.1f}a{size:.1f} {size:.1f} 0 1 0 {2 * size:.1f} 0a{size:.1f} {size:.1f} 0 1 0 {-2 * size:.1f} 0z"
        )
    corners = (
        (),
        ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        ((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
        ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        ((0, 1.2), (1.15, -0.85), (-1.15, -0.85)),
        tuple((a * 1.15, b * 1.15) for a, b in ((-0.4, -1), (0.4, -1), (0.4, -0.4), (1, -0.4), (1, 0.4), (0.4, 0.4)))
        + tuple((a * 1.15, b * 1.15) for a, b in ((0.4, 1), (-0.4, 1), (-0.4, 0.4), (-1, 0.4), (-1, -0.4), (-0.4, -0.4))),
        ((-1.2, 0), (-0.6, -1.05), (0.6, -1.05), (1.2, 0), (0.6, 1.05), (-0.6, 1.05)),
        tuple(
            (
                math.sin(step * math.pi / 5) * (1.35 if step % 2 == 0 else 0.6),
                -math.cos(step * math.pi / 5) * (1.35, 0.6)[step % 2],
            )
            for step in range(10)
        ),
    )[kind % 8]
    return "M" + "L".join(f"{x + a * size:.1f} {y + b * size:.1f}" for a, b in corners) + "z"


# --- the template ----------------------------------------------------------------------------------------------------


@cache
def template(path: Path) -> Any:
    """A template beside this file, which may include others from there; everything that it shows is escaped."""
    loader = FileSystemLoader(path.parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(words=words, figure=figure)
    return environment.get_template(path.name)
