# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a capacity plan: where the memory goes, how fast it is, how much fits, and what each figure rests on.

It is a function of the plan alone and invents nothing: what a plan does not hold is named as left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, PASS, WARN
from markupsafe import Markup

from ._page import (
    DASH,
    SCRIPT,
    SCRIPT_DIGEST,
    SYMBOLS,
    WORDS,
    Axis,
    Labels,
    figure,
    log_axis,
    number,
    plural,
    shape,
    tag,
    template,
    ticks,
    unit_sign,
    words,
)

TEMPLATE = Path(__file__).with_name("plan_report.html.j2")
FORM = 1
TERMS = {
    "weights": "Weights",
    "activation": "Activation peak",
    "non_torch": "CUDA and NCCL",
    "cuda_graphs": "CUDA graphs",
    "kv_cache": "KV cache",
    "reserve": "Reserve",
}
# What is left out of a plan, and what it would have said.
OPTIONAL = (
    ("memory", "Memory", "the plan says nothing of where the memory goes"),
    ("workload", "Workload", "no requests a day, lengths or latency goals were given"),
    ("speed", "Speed", "no throughput and latency were predicted"),
    ("service", "Service", "how the workload would be served was not computed"),
    ("quantisation", "Quantisation", "the plan does not say how the weights are stored"),
    ("speculative", "Speculative decoding", "it was not planned"),
    ("cost", "Cost", "no energy and cost of ownership were computed"),
)
# Endings of names that say a unit.
ENDINGS = (
    *(("bytes_per_second", "bytes/s"), ("tokens_per_second", "tokens/s"), ("requests_per_second", "requests/s")),
    *(
        ("kwh_per_year", "kWh/year"),
        ("kwh_per_million_tokens", "kWh/million tokens"),
        ("ms", "ms"),
        ("seconds", "s"),
        ("bytes", "bytes"),
        ("watts", "W"),
        ("kwh", "kWh"),
    ),
    *(("share", "share"), ("percent", "%")),
)
DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


# --- values ----------------------------------------------------------------------------------------------------------


def at(given: Any, *keys: str) -> Any:
    """What lies at this path; None where the path ends early."""
    for key in keys:
        if not isinstance(given, Mapping):
            return None
        given = given.get(key)
    return given


def measure(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def positive(value: Any) -> float | None:
    found = measure(value)
    return found if found is not None and found > 0 else None


def brief(value: float) -> str:
    """Three digits that matter: for estimates in drawings."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    text = f"{round(value, digits):,.{max(0, min(digits, 4))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: Any, unit: str | None = None) -> str:
    """A value with its unit, in the size that reads best."""
    if isinstance(value, Mapping) and "value" in value:
        return interval(value.get("value"), value.get("low"), value.get("high"), value.get("unit") or unit)
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(key)} {quantity(item)}" for key, item in value.items()) or DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(quantity(item, unit) for item in value) or "none"
    if isinstance(value, float) and not math.isfinite(value):
        return DASH if math.isnan(value) else "no limit"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return figure(value, unit)
    if unit in ("bytes", "bytes/token"):
        size, word = next((step for step in BINARY if abs(value) >= step[0]), (1.0, "bytes"))
        return f"{number(float(f'{value / size:.4g}'))} {word}{unit.removeprefix('bytes')}"
    if unit in ("bytes/s", "FLOP/s", "FLOPS"):
        size, letter = next((step for step in DECIMAL if abs(value) >= step[0]), (1.0, ""))
        return f"{number(value / size)} {letter}{'B/s' if unit == 'bytes/s' else 'FLOP/s'}"
    if unit == "share":
        return f"{number(value * 100)} %"
    if unit == "parameters" and abs(value) >= 1e6:
        size, word = (1e9, "billion") if abs(value) >= 1e9 else (1e6, "million")
        return f"{number(value / size)} {word}"
    return f"{number(value)} {unit_sign(unit)}" if unit else number(value)


def interval(value: Any, low: Any, high: Any, unit: str | None = None) -> str:
    """A value and between which it may lie."""
    text = quantity(value, unit)
    return text if low is None or high is None or low == high else f"{text} ({bounds(low, high, unit)})"


def bounds(low: Any, high: Any, unit: str | None = None) -> str:
    if low is None or high is None or low == high:
        return DASH
    return f"{quantity(low, unit)} to {quantity(high, unit)}"


def plain(name: Any) -> str:
    """A key as words within a sentence."""
    return " ".join(WORDS.get(word, word) for word in str(name).split("_"))


def labelled(name: str) -> tuple[str, str | None]:
    """A key as words, and the unit that its ending says."""
    for ending, unit in ENDINGS:
        if name.endswith(f"_{ending}"):
            return words(name.removesuffix(f"_{ending}")), unit
    return words(name), "share" if name.endswith(("utilisation", "acceptance")) else None


def facts(given: Any, leave: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Labels and values of whatever is single in a mapping."""
    found = []
    for key, value in (given or {}).items():
        rows = isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value)
        if key in leave or rows or value is None:
            continue
        label, unit = labelled(str(key))
        found.append((label, words(str(value)) if key in ("limited_by", "bound") else quantity(value, unit)))
    return found


def tables(given: Any) -> list[dict[str, Any]]:
    """The lists of rows in a mapping, each as a table with a column for every key."""
    found = []
    for key, value in (given or {}).items():
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            columns = list(dict.fromkeys(column for item in value for column in item))
            heads = [labelled(str(column)) for column in columns]
            rows = []
            for item in value:
                # The unit stands in the row, beside the value.
                of = {
                    column: item.get("unit") if column in ("value", "low", "high") else unit
                    for column, (_head, unit) in zip(columns, heads)
                }
                rows.append(
                    [words(str(item.get(c))) if c == "name" else quantity(item.get(c), of[c]) for c in columns if c != "unit"]
                )
            found.append(
                {"title": words(str(key)), "heads": [head[0] for c, head in zip(columns, heads) if c != "unit"], "rows": rows}
            )
    return found


def tokens_of(length: float) -> str:
    """A length as on an axis: 512, 4K, 1M, with K = 1,024."""
    if length % 2**20 == 0:
        return f"{length / 2**20:,.0f}M"
    return f"{length / 2**10:,.0f}K" if length % 2**10 == 0 else f"{length:,.0f}"


# --- memory ----------------------------------------------------------------------------------------------------------

# Shares of the width, in percent: the text keeps its size however wide the page is.
BAR_LEFT, BAR_RIGHT = 8.0, 98.0
BAR_TOP, BAR_TALL, BAR_STEP, BAR_BOTTOM = 56, 24, 31, 46
MOST_BARS = 8
# Width in px down to which texts in bars must fit.
NARROW = 600


def percent(value: float) -> str:
    return f"{value:.3f}%"


def gpus_of(plan: Mapping[str, Any]) -> int:
    """GPUs of one replica."""
    sizes = [at(plan, "settings", name) for name in ("tensor_parallel", "pipeline_parallel", "data_parallel")]
    return math.prod(int(size) for size in sizes if positive(size))


def terms_of(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The terms in the order of the bar, the unknown ones before the KV cache; none is negative."""
    order = list(TERMS)
    found = []
    for term in at(plan, "memory", "terms") or []:
        name = str(term.get("name"))
        rank = order.index(name) if name in order else order.index("kv_cache") - 0.5
        size = max(0, int(measure(term.get("bytes")) or 0))
        found.append((rank, {**term, "name": name, "title": TERMS.get(name, words(name)), "bytes": size}))
    return [
        {**term, "class": f"t-{term['name']}" if term["name"] in TERMS else "t-other"}
        for _place, term in sorted(found, key=lambda f: f[0])
    ]


def device_word(plan: Mapping[str, Any]) -> str:
    return "host" if at(plan, "hardware", "kind") == "cpu" else "GPU"


def parts_told(plan: Mapping[str, Any]) -> str:
    parts = at(plan, "memory", "weights_by_part") or {}
    return ", ".join(f"{plain(part)} {quantity(size, 'bytes')}" for part, size in parts.items())


def memory_bars(plan: Mapping[str, Any]) -> Markup | None:
    """A stacked bar for each GPU of a replica. Widths are shares of the drawing's; what lies beyond the memory is red."""
    memory, terms = at(plan, "memory"), terms_of(plan)
    total = positive(at(memory, "total_bytes"))
    if total is None or not terms:
        return None
    stack = sum(term["bytes"] for term in terms)
    whisker = whisker_of(memory, terms)
    longest = max([total, stack, *(whisker or ())]) * 1.02
    bars = min(gpus_of(plan), MOST_BARS)
    bottom = BAR_TOP + bars * BAR_STEP
    word = device_word(plan)

    def x(size: float) -> float:
        return BAR_LEFT + size / longest * (BAR_RIGHT - BAR_LEFT)

    heading = f"Memory of each {word}: " + ", ".join(f"{term['title']} {quantity(term['bytes'], 'bytes')}" for term in terms)
    told = f"{quantity(stack, 'bytes')} of {quantity(total, 'bytes')}."
    if stack > total:
        told += f" {quantity(stack - total, 'bytes')} lie beyond the memory."
    drawn = [tag("title", f"Memory per {word}", id="memory-title"), tag("desc", f"{heading}. {told}", id="memory-desc")]
    for tick in ticks(0, longest / 2**30, 8):
        place = percent(x(tick * 2**30))
        drawn.append(tag("line", class_="grid", x1=place, x2=place, y1=BAR_TOP - 4, y2=bottom))
        drawn.append(tag("text", number(tick), class_="tick", x=place, y=bottom + 14))
    drawn.append(tag("text", "GiB", class_="axis", x=percent((BAR_LEFT + BAR_RIGHT) / 2), y=bottom + 32))
    for lane in range(bars):
        y = BAR_TOP + lane * BAR_STEP
        name = "host" if word == "host" and bars == 1 else f"{'node' if word == 'host' else word} {lane}"
        drawn.append(tag("text", name, class_="lane", x=percent(BAR_LEFT - 0.8), y=y + BAR_TALL / 2 + 4))
        drawn.append(tag("rect", class_="track", x=percent(x(0)), width=percent(x(total) - x(0)), y=y, height=BAR_TALL))
        drawn += one_bar(plan, terms, total, x, y)
        if whisker:
            drawn += whisker_marks(percent(x(whisker[0])), percent(x(whisker[1])), y + BAR_TALL / 2)
    drawn += limits(plan, total, stack, x, bottom)
    frame = {"class_": "plot bars", "role": "img", "width": "100%", "height": bottom + BAR_BOTTOM}
    return tag("svg", *drawn, **frame, aria_labelledby="memory-title memory-desc")


def one_bar(plan: Mapping[str, Any], terms: Sequence[Mapping[str, Any]], total: float, x: Any, y: float) -> Iterator[Markup]:
    begin = 0
    for term in terms:
        end = begin + term["bytes"]
        told = f"{term['title']}: {interval(term['bytes'], term.get('low_bytes'), term.get('high_bytes'), 'bytes')}"
        if term["name"] == "weights" and parts_told(plan):
            told += f" ({parts_told(plan)})"
        # What straddles the end of the memory is drawn in two pieces.
        pieces = [(begin, min(end, total), term["class"]), (max(begin, total), end, "over")]
        for low, high, class_ in pieces:
            if high > low:
                told_here = told if class_ != "over" else f"{told}; {quantity(high - low, 'bytes')} of it beyond the memory"
                place = {"x": percent(x(low)), "width": percent(x(high) - x(low)), "y": y, "height": BAR_TALL}
                data = {"data_term": term["name"], "data_bytes": int(high - low)}
                yield tag("rect", tag("title", told_here), class_=f"seg {class_}", **place, **data)
        if term["name"] == "weights":
            yield from part_lines(plan, x, y, begin, min(end, total))
        text = f"{term['title']} {quantity(term['bytes'], 'bytes')}"
        seen = min(end, total)
        if term["name"] in ("weights", "kv_cache") and (x(seen) - x(begin)) / 100 * NARROW > Labels.WIDE * len(text) + 10:
            yield tag("text", text, class_="within", x=percent((x(begin) + x(seen)) / 2), y=y + BAR_TALL / 2 + 4)
        begin = end


def part_lines(plan: Mapping[str, Any], x: Any, y: float, begin: float, end: float) -> Iterator[Markup]:
    """Thin lines between the parts of the weights, where those are the whole of it."""
    sizes = [measure(size) or 0 for size in (at(plan, "memory", "weights_by_part") or {}).values()]
    if abs(sum(sizes) - (end - begin)) > 0.01 * (end - begin):
        return
    for size in sizes[:-1]:
        begin += size
        place = percent(x(begin))
        yield tag("line", class_="part", x1=place, x2=place, y1=y, y2=y + BAR_TALL)


def whisker_of(memory: Any, terms: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Where the KV cache may end, as places in the stack."""
    low, high = measure(at(memory, "kv_cache", "low_bytes")), measure(at(memory, "kv_cache", "high_bytes"))
    names = [term["name"] for term in terms]
    if low is None or high is None or high <= max(0.0, low) or "kv_cache" not in names:
        return None
    begin = sum(term["bytes"] for term in terms[: names.index("kv_cache")])
    return begin + max(0.0, low), begin + high


def whisker_marks(left: str, right: str, y: float) -> Iterator[Markup]:
    for class_ in ("halo", "whisker"):
        yield tag("line", class_=class_, x1=left, x2=right, y1=y, y2=y)
        for end in (left, right):
            yield tag("line", class_=class_, x1=end, x2=end, y1=y - 5, y2=y + 5)


def limits(plan: Mapping[str, Any], total: float, stack: float, x: Any, bottom: float) -> Iterator[Markup]:
    """The lines of the memory's end and of the engine's budget, each with its words in a row of its own."""
    lines = [("floor", total, f"memory of the {device_word(plan)}: {quantity(total, 'bytes')}", 12)]
    budget = positive(at(plan, "memory", "budget_bytes"))
    if budget is not None and budget != total:
        lines.append(("peak", budget, f"for the engine: {quantity(budget, 'bytes')}", 28))
    for class_, size, text, y in lines:
        place = percent(x(size))
        yield tag("line", class_=class_, x1=place, x2=place, y1=y - 9, y2=bottom)
        # Words that would not fit to the left begin right of both lines, so that they cross neither.
        beside = x(size) > 45
        anchor = {"text_anchor": "end", "dx": -5} if beside else {"text_anchor": "start", "dx": 5}
        yield tag("text", text, class_=f"bound {class_}", x=place if beside else percent(x(max(total, size))), y=y, **anchor)
    missing = positive(plan.get("missing_bytes"))
    text = f"{quantity(missing, 'bytes')} missing" if missing is not None else f"{quantity(stack - total, 'bytes')} too much"
    if missing is not None or stack > total:
        right = x(total) < 70
        anchor = {"text_anchor": "start", "dx": 5} if right else {"text_anchor": "end"}
        yield tag("text", text, class_="bound bad-text", x=percent(x(total) if right else BAR_RIGHT), y=44, **anchor)


def memory_rows(plan: Mapping[str, Any]) -> list[list[str]]:
    total = positive(at(plan, "memory", "total_bytes"))
    rows = []
    for term in terms_of(plan):
        share = f"{term['bytes'] / total * 100:.1f} %" if total else DASH
        rows.append(
            [
                term["title"],
                quantity(term["bytes"], "bytes"),
                bounds(term.get("low_bytes"), term.get("high_bytes"), "bytes"),
                share,
            ]
        )
    if rows:
        stack = sum(term["bytes"] for term in terms_of(plan))
        rows.append(["Together", quantity(stack, "bytes"), DASH, f"{stack / total * 100:.1f} %" if total else DASH])
    return rows


# --- plots -----------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 600, 370, 58, 26, 30, 46
FRAME = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def svg(name: str, title: str, told: str, drawn: Iterable[Markup | None]) -> Markup:
    """The drawing with its frame; ``name`` is for the ids that tie its words to it."""
    heads = (tag("title", title, id=f"{name}-title"), tag("desc", told, id=f"{name}-desc"))
    frame = {"class_": "plot", "role": "img", "viewBox": f"0 0 {WIDTH} {HEIGHT}"}
    return tag("svg", *heads, *(mark for mark in drawn if mark), **frame, aria_labelledby=f"{name}-title {name}-desc")


def axis_text(value: float) -> str:
    """A number on an axis, where millions would need too much room."""
    return f"{number(value / 1e6)}M" if value >= 1e6 else number(value)


def grid(x: Axis, y: Axis, x_title: str, y_title: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> Iterator[Markup]:
    left, top, right, bottom = FRAME
    for value, text in x_ticks or [(tick, axis_text(tick)) for tick in x.ticks()]:
        yield tag("line", class_="grid", x1=x.at(value), x2=x.at(value), y1=top, y2=bottom)
        yield tag("text", text, class_="tick", x=x.at(value), y=bottom + 16)
    for tick in y.ticks():
        yield tag("line", class_="grid", x1=left, x2=right, y1=y.at(tick), y2=y.at(tick))
        yield tag("text", axis_text(tick), class_="tick left", x=left - 7, y=y.at(tick) + 4)
    yield tag("line", class_="rule", x1=left, x2=left, y1=top, y2=bottom)
    yield tag("line", class_="rule", x1=left, x2=right, y1=bottom, y2=bottom)
    yield tag("text", y_title, class_="axis title", x=0, y=14)
    yield tag("text", x_title, class_="axis", x=(left + right) / 2, y=HEIGHT - 8)


def path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def between(places: Sequence[tuple[float, float]], step: float = 5) -> Iterator[tuple[float, float]]:
    """Points along a line, for what should not be covered."""
    for (x1, y1), (x2, y2) in zip(places, places[1:]):
        count = max(1, round(math.hypot(x2 - x1, y2 - y1) / step))
        for index in range(count + 1):
            yield x1 + (x2 - x1) * index / count, y1 + (y2 - y1) * index / count


def level_line(labels: Labels, y: Axis, value: float, text: str, class_: str) -> Iterator[Markup | None]:
    """A horizontal line with its words above or below, at the left or the right."""
    left, _top, right, _bottom = labels.frame
    place = y.at(value)
    yield tag("line", class_=class_, x1=left, x2=right, y1=place, y2=place)
    beside = ((left + 6, "start"), (right - 4, "end"), ((left + right) / 2, "middle"))
    near = [(x, place + shift, anchor) for shift in (-5, 14) for x, anchor in beside]
    yield labels.put(text, f"bound {class_}", near)
    labels.avoid(between([(left, place), (right, place)]))


def points_of(plan: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The points that can be drawn on logarithmic axes, by rising concurrency."""
    points = [
        point
        for point in at(plan, "speed", "points") or []
        if positive(point.get("tokens_per_second")) and positive(point.get(key)) and positive(point.get("concurrency"))
    ]
    return sorted(points, key=lambda point: float(point["concurrency"]))


def operating_point(plan: Mapping[str, Any], points: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float] | None:
    """Throughput of one replica and latency at the workload's peak; a service's figures are those of all its replicas.

    The throughput is read off the curve where the plan has none.
    """
    replicas = positive(at(plan, "service", "replicas")) or positive(at(plan, "settings", "replicas")) or 1.0
    latency = positive(at(plan, "service", key))
    whole = positive(at(plan, "service", "concurrency")), positive(at(plan, "service", "tokens_per_second"))
    concurrency, given = (value and value / replicas for value in whole)
    if latency is None or (given is None and concurrency is None):
        return None
    if given is not None:
        return given, latency
    for low, high in zip(points, points[1:]):
        a, b = float(low["concurrency"]), float(high["concurrency"])
        if concurrency is not None and a <= concurrency <= b and a < b:
            share = math.log(concurrency / a) / math.log(b / a)
            first, second = float(low["tokens_per_second"]), float(high["tokens_per_second"])
            return first * (second / first) ** share, latency
    return None


def curve(plan: Mapping[str, Any], key: str, title: str, y_title: str) -> Markup | None:
    """Latency against throughput of one replica, both logarithmic, a point for each number of requests at once."""
    points = points_of(plan, key)
    if not points:
        return None
    slo = positive(at(plan, "workload", "slo", key))
    here = operating_point(plan, points, key)
    x = log_axis([*(float(p["tokens_per_second"]) for p in points), *([here[0]] if here else [])], LEFT, WIDTH - RIGHT)
    above = key.replace("_ms", "_p95_ms")
    tails = [positive(p.get(above)) for p in points]
    latencies = [
        *(float(p[key]) for p in points),
        *(t for t in tails if t),
        *([slo] if slo else []),
        *([here[1]] if here else []),
    ]
    y = log_axis(latencies, HEIGHT - BOTTOM, TOP, 0.09)
    places = [(x.at(float(p["tokens_per_second"])), y.at(float(p[key]))) for p in points]
    held = next((index for index, point in enumerate(points) if point.get("within_memory") is False), len(points))
    labels = Labels(FRAME)
    for place in places:
        labels.block((place[0] - 5, place[1] - 5, place[0] + 5, place[1] + 5))
    tail = [(place[0], y.at(value)) for place, value in zip(places, tails) if value] if all(tails) else []
    labels.avoid(between(places))
    labels.avoid(between(tail))
    drawn: list[Markup | None] = [*hatched(labels, places, held)]
    drawn += grid(x, y, "tokens per second of one replica", y_title)
    if slo:
        drawn += level_line(labels, y, slo, f"SLO {quantity(slo, 'ms')}", "floor")
    if len(tail) > 1:
        drawn.append(tag("path", tag("title", "95th percentile"), class_="curve tail", d=path(tail)))
        # Where it lies on the curve of the mean it needs no name.
        apart = [(x, y) for (x, y), (_x, mean) in zip(tail, places) if mean - y > 12 and x < (LEFT + WIDTH) / 1.6]
        near = [(x, y - 8, anchor) for x, y in reversed(apart) for anchor in ("end", "middle", "start")]
        drawn.append(labels.put("95th percentile", "bound tail-text", near))
    if held > 1:
        drawn.append(tag("path", class_="curve", d=path(places[:held])))
    if held < len(places):
        drawn.append(tag("path", class_="curve beyond", d=path(places[max(0, held - 1) :])))
    drawn += [point_mark(point, place, key) for point, place in zip(points, places)]
    if here:
        place = (x.at(here[0]), y.at(here[1]))
        labels.block((place[0] - 8, place[1] - 8, place[0] + 8, place[1] + 8))
        at_once = quantity(measure(at(plan, "service", "concurrency")))
        told = f"At the workload's peak: {at_once} requests at once in one replica, {quantity(here[1], 'ms')} on average"
        drawn.append(tag("path", tag("title", told), class_="here", d=shape(3, *place, 7)))
        drawn.append(labels.beside(*place, "workload", "name here-text", 11))
    order = sorted(range(len(points)), key=lambda index: (index not in (0, len(points) - 1), -index))
    drawn += [labels.beside(*places[index], number(float(points[index]["concurrency"])), "name") for index in order]
    first, last = points[0], points[-1]
    told = (
        f"From {quantity(first[key], 'ms')} at {brief(float(first['tokens_per_second']))} tokens/s with "
        f"{plural(int(first['concurrency']), 'request')} at once to {quantity(last[key], 'ms')} at "
        f"{brief(float(last['tokens_per_second']))} tokens/s with {number(float(last['concurrency']))}."
    )
    return svg(key.replace("_", "-"), title, told + (f" The SLO is {quantity(slo, 'ms')}." if slo else ""), drawn)


def hatched(labels: Labels, places: Sequence[tuple[float, float]], held: int) -> Iterator[Markup | None]:
    """The part of the drawing beyond what memory and settings allow, where throughput tells it apart."""
    outside, allowed = [x for x, _y in places[held:]], [x for x, _y in places[:held]]
    left, top, right, bottom = labels.frame
    if not outside or (allowed and max(allowed) >= min(outside)):
        return
    begin = (max(allowed) + min(outside)) / 2 if allowed else left
    yield tag("rect", class_="hatched", x=float(begin), y=top, width=float(right - begin), height=bottom - top)
    text = "beyond the limit"
    if right - begin > Labels.WIDE * len(text) + 8:
        yield labels.put(text, "bound muted-text", [(right - 4, bottom - 8, "end"), (right - 4, top + 14, "end")])


def point_mark(point: Mapping[str, Any], place: tuple[float, float], key: str) -> Markup:
    latency = {"itl_ms": "between tokens", "ttft_ms": "to the first token", "e2e_ms": "end to end"}
    told = f"{number(float(point['concurrency']))} requests at once: {brief(float(point['tokens_per_second']))} tokens/s"
    for name, words_of in latency.items():
        if point.get(name) is not None:
            tail = point.get(name.replace("_ms", "_p95_ms"))
            told += f", {quantity(point[name], 'ms')} {words_of}" + (
                f" (95 %: {quantity(tail, 'ms')})" if tail is not None else ""
            )
    told += f", bound by {point['bound']}" if point.get("bound") else ""
    beyond = point.get("within_memory") is False
    missed = point.get("meets_slo") is False
    told += "; more than may run at once" if beyond else ""
    told += "; misses the SLO" if missed else ""
    faint = " faint" if beyond else ""
    x, y = place
    if missed:
        return tag("path", tag("title", told), class_=f"bad{faint}", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8")
    return tag("circle", tag("title", told), class_=f"{'hollow' if beyond else 'point'}{faint}", cx=x, cy=y, r=4.2)


def context_plot(plan: Mapping[str, Any]) -> Markup | None:
    """How many requests fit, by their length; both axes logarithmic, the lengths in powers of two."""
    rows = [
        row for row in at(plan, "memory", "requests") or [] if positive(row.get("length")) and positive(row.get("concurrency"))
    ]
    rows = sorted(rows, key=lambda row: float(row["length"]))
    if not rows:
        return None
    longest, largest = positive(at(plan, "settings", "max_model_len")), positive(at(plan, "memory", "largest_context"))
    lengths = [float(row["length"]) for row in rows]
    lines = upright(longest, largest)
    shown = [*lengths, *(value for value, _text, _class in lines)]
    x = log_axis(shown, LEFT, WIDTH - RIGHT, 0.05)
    amounts = [value for row in rows for key in ("concurrency", "low", "high") if (value := positive(row.get(key)))]
    y = log_axis([*amounts, 1.0] if min(amounts) < 2 else amounts, HEIGHT - BOTTOM, TOP, 0.08)
    powers = [2.0**power for power in range(math.ceil(math.log2(x.low)), math.floor(math.log2(x.high)) + 1)]
    every = math.ceil(len(powers) / 12)
    x_ticks = [(power, tokens_of(power)) for power in powers[::every]]
    if len(x_ticks) < 2:
        x_ticks = [(length, tokens_of(length)) for length in sorted(set(lengths))]
    places = [(x.at(float(row["length"])), y.at(float(row["concurrency"]))) for row in rows]
    labels = Labels(FRAME)
    for place in places:
        labels.block((place[0] - 5, place[1] - 5, place[0] + 5, place[1] + 5))
    labels.avoid(between(places))
    drawn: list[Markup | None] = [
        *grid(x, y, "tokens of one request, prompt and answer (K = 1,024)", "requests at once", x_ticks)
    ]
    edges = [[(x.at(float(row["length"])), y.at(positive(row.get(key)) or y.low)) for row in rows] for key in ("high", "low")]
    if any(row.get("low") != row.get("high") for row in rows) and all(measure(row.get("high")) for row in rows) and len(rows) > 1:
        drawn.append(tag("path", tag("title", "the interval"), class_="band", d=path([*edges[0], *reversed(edges[1])]) + "z"))
    _left, top, _right, bottom = FRAME
    # The one that is farther right has the higher words, which so cross no line.
    for rank, (value, text, class_) in enumerate(sorted(lines, key=lambda line: -line[0])):
        across, height = x.at(value), top + 13 + 15 * rank
        drawn.append(tag("line", class_=class_, x1=across, x2=across, y1=height - 11, y2=bottom))
        drawn.append(labels.put(text, f"bound {class_}", [(across - 5, height, "end"), (across + 5, height, "start")]))
        labels.avoid(between([(across, height), (across, bottom)]))
    seats = positive(at(plan, "settings", "max_num_seqs"))
    if seats is not None and y.low < seats < y.high:
        drawn += level_line(labels, y, seats, f"max_num_seqs {number(seats)}", "peak")
    drawn.append(tag("path", class_="curve", d=path(places)))
    for row, place in zip(rows, places):
        told = f"{number(float(row['length']))} tokens: {interval(row['concurrency'], row.get('low'), row.get('high'))} requests"
        drawn.append(tag("circle", tag("title", told), class_="point", cx=place[0], cy=place[1], r=4.2))
    drawn += [labels.beside(*place, brief(float(row["concurrency"])), "name") for row, place in zip(rows, places)]
    told = (
        f"From {brief(float(rows[0]['concurrency']))} requests of {number(lengths[0])} tokens to "
        f"{brief(float(rows[-1]['concurrency']))} of {number(lengths[-1])} tokens."
    )
    return svg("context", "Requests at once against their length", told, drawn)


def upright(longest: float | None, largest: float | None) -> list[tuple[float, str, str]]:
    """The lines of the setting and of what fits; one where they are the same."""
    if longest is not None and longest == largest:
        return [(longest, f"max_model_len {number(longest)}: fits", "peak")]
    lines = [(longest, f"max_model_len {number(longest)}", "peak")] if longest is not None else []
    return lines + ([(largest, f"largest that fits: {number(largest)}", "floor")] if largest is not None else [])


# --- the result of a search ------------------------------------------------------------------------------------------


def quant_name(deployment: Mapping[str, Any]) -> str:
    given = deployment.get("quantisation")
    return str(at(given, "name") if isinstance(given, Mapping) else given)


def searched(plan: Mapping[str, Any], search: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the page shows of a search: the drawing, its legend, and the deployments as rows, the front numbered."""
    if search is None:
        return None
    found = [searched_item(item) for item in search.get("deployments") or []]
    front = sorted(
        (d for d in found if d.get("front")), key=lambda d: (-(positive(d.get("tokens_per_second")) or 0), quant_name(d))
    )
    for place, item in enumerate(front, 1):
        item["number"] = place
    kinds = list(dict.fromkeys(quant_name(item) for item in found))
    keys = list(dict.fromkeys(key for item in found for key in item.get("settings") or {}))
    values = {key: [at(item, "settings", key) for item in found] for key in keys}
    varied = [key for key in keys if any(value != values[key][0] for value in values[key])]
    rows = [deployment_row(item, varied) for item in front]
    others = [deployment_row(item, varied) for item in found if not item.get("front")]
    return {
        "count": len(found),
        "considered": search.get("considered"),
        "svg": scatter(plan, found, kinds),
        "legend": [{"name": name, "path": shape(place, 9, 7, 5), "class": f"q{place % 8}"} for place, name in enumerate(kinds)],
        "varied": varied,
        "fixed": [f"{key} {quantity(values[key][0])}" for key in keys if key not in varied],
        "front": rows,
        "others": others,
        "chosen": next((deployment_row(item, keys) for item in found if item.get("chosen")), None),
        "objectives": [(words(str(name)), str(text)) for name, text in (search.get("objectives") or {}).items()],
        "refusals": [(quantity(item.get("count")), str(item.get("text") or "")) for item in search.get("refusals") or []],
        "do_not_fit": measure(search.get("do_not_fit")) or 0,
        "nearest": nearest(search.get("nearest")),
        "chosen_settings": next(
            ([(key, quantity(at(item, "settings", key))) for key in varied or keys] for item in found if item.get("chosen")), []
        ),
    }


def searched_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """A deployment with what counts its copies among its settings."""
    beside = {key: item[key] for key in ("replicas", "gpus") if item.get(key) is not None}
    return {**item, "settings": {**beside, **(item.get("settings") or {})}}


def nearest(item: Any) -> dict[str, Any] | None:
    """What comes nearest where nothing could be chosen."""
    if not isinstance(item, Mapping):
        return None
    return {
        "label": item.get("label") or quant_name(item),
        "lacks": [str(text) for text in item.get("lacks") or []],
        "advice": [(quantity(part.get("change")), part.get("effect") or "") for part in item.get("advice") or []],
    }


def loss(item: Mapping[str, Any]) -> str:
    """A loss of quality; the measure says of what it is a percentage."""
    unit = {"score": "% of a score", "perplexity": "% more perplexity"}.get(str(item.get("quality_measure")))
    return quantity(item.get("quality_loss"), unit) if item.get("quality_loss") != 0 else "none"


def deployment_row(item: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    verdict = item.get("verdict")
    return {
        "number": item.get("number", ""),
        "chosen": bool(item.get("chosen")),
        "settings": [quantity(at(item, "settings", key)) for key in keys],
        "quantisation": quant_name(item),
        "speed": quantity(item.get("tokens_per_second")),
        "itl": quantity(item.get("itl_ms"), "ms"),
        "ttft": quantity(item.get("ttft_ms"), "ms"),
        "headroom": quantity(item.get("headroom_share"), "share"),
        "loss": loss(item),
        "day": quantity(item.get("requests_per_day_at_slo")),
        "meets": quantity(item.get("meets_slo")),
        "verdict": verdict if verdict in SYMBOLS else None,
        "why": quantity(item.get("why")) if item.get("why") else "",
    }


def scatter(plan: Mapping[str, Any], deployments: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> Markup | None:
    """Throughput and latency of each deployment; shape and colour say the quantisation, numbers are the table's."""
    points = [item for item in deployments if positive(item.get("tokens_per_second")) and positive(item.get("itl_ms"))]
    if not points:
        return None
    slo = positive(at(plan, "workload", "slo", "itl_ms"))
    x = log_axis([float(item["tokens_per_second"]) for item in points], LEFT, WIDTH - RIGHT)
    y = log_axis([*(float(item["itl_ms"]) for item in points), *([slo] if slo else [])], HEIGHT - BOTTOM, TOP, 0.08)
    labels = Labels(FRAME)
    drawn: list[Markup | None] = [*grid(x, y, "tokens per second, all replicas", "time between tokens, ms")]
    places = [(x.at(float(item["tokens_per_second"])), y.at(float(item["itl_ms"]))) for item in points]
    for place in places:
        labels.block((place[0] - 5, place[1] - 5, place[0] + 5, place[1] + 5))
    if slo:
        drawn += level_line(labels, y, slo, f"SLO {quantity(slo, 'ms')}", "floor")
    order = sorted(range(len(points)), key=lambda index: (bool(points[index].get("chosen")), bool(points[index].get("front"))))
    for index in order:
        item, place = points[index], places[index]
        kind = kinds.index(quant_name(item))
        told = f"{quant_name(item)}: {brief(float(item['tokens_per_second']))} tokens/s"
        told += f", {quantity(item['itl_ms'], 'ms')} between tokens"
        told += "; " + ", ".join(f"{key} {quantity(value)}" for key, value in (item.get("settings") or {}).items())
        if item.get("chosen"):
            drawn.append(tag("circle", class_="ring", cx=place[0], cy=place[1], r=11))
            labels.block((place[0] - 11, place[1] - 11, place[0] + 11, place[1] + 11))
        class_ = f"q q{kind % 8} {'front' if item.get('front') else 'behind'}"
        drawn.append(tag("path", tag("title", told), class_=class_, d=shape(kind, *place, 5.5 if item.get("front") else 4.2)))
    for index in reversed(order):
        item, place = points[index], places[index]
        if item.get("chosen"):
            text = "chosen" if "number" not in item else f"{item['number']} chosen"
            short = text.split()[0]
            drawn.append(labels.beside(*place, text, "name here-text", 14) or labels.beside(*place, short, "name here-text", 14))
        elif "number" in item:
            drawn.append(labels.beside(*place, str(item["number"]), "name", 7))
    told = f"{plural(len(points), 'deployment')}, {sum(1 for item in points if item.get('front'))} of them on the Pareto front."
    return svg("search", "Deployments by throughput and latency", told, drawn)


# --- the rest of the page --------------------------------------------------------------------------------------------


def request_for(plan: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of the shortest length that holds the workload's mean request; of the longest where there is no workload."""
    rows = sorted(
        (r for r in at(plan, "memory", "requests") or [] if positive(r.get("length"))), key=lambda r: float(r["length"])
    )
    if not rows:
        return None
    prompt, answer = (positive(at(plan, "workload", f"{kind}_tokens", "mean")) for kind in ("prompt", "answer"))
    if prompt is None or answer is None:
        return dict(rows[-1])
    return dict(next((row for row in rows if float(row["length"]) >= prompt + answer), rows[-1]))


def cards(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The main numbers; a dash where the plan has none."""
    word = device_word(plan)
    cache, service, slo = at(plan, "memory", "kv_cache"), at(plan, "service"), at(plan, "workload", "slo")
    weights = next((term["bytes"] for term in terms_of(plan) if term["name"] == "weights"), None)
    total = at(plan, "memory", "total_bytes")
    found = [
        (quantity(weights, "bytes"), f"weights on each {word}" + (f", of {quantity(total, 'bytes')}" if total else ""), False)
    ]
    low, high = at(cache, "low_tokens"), at(cache, "high_tokens")
    room = f" ({bounds(low, high)})" if bounds(low, high) != DASH else ""
    found.append((quantity(at(cache, "tokens")), f"tokens of KV cache{room}", at(cache, "tokens") == 0))
    row = request_for(plan)
    if row:
        spread = bounds(*(brief(v) if (v := measure(row.get(k))) is not None else None for k in ("low", "high")))
        said = f"requests of {quantity(row['length'])} tokens fit at once" + (f" ({spread})" if spread != DASH else "")
        amount = measure(row.get("concurrency"))
        found.append(
            (quantity(row.get("concurrency")) if amount is None else brief(amount), said, amount is not None and amount < 1)
        )
    else:
        found.append((DASH, "requests at once", False))
    for key, said in (("itl_ms", "between tokens"), ("ttft_ms", "to the first token")):
        value, goal = at(service, key), positive(at(slo, key))
        tail = at(service, key.replace("_ms", "_p95_ms"))
        beside = [f"95\N{NO-BREAK SPACE}%: {quantity(tail, 'ms')}"] if tail is not None else []
        beside += [f"SLO {quantity(goal, 'ms')}"] if goal else []
        said += f" ({', '.join(beside)})" if beside else ""
        judged = measure(value if tail is None else tail)
        found.append((quantity(value, "ms"), said, bool(goal and judged is not None and judged > goal)))
    day, asked = at(service, "requests_per_day_at_slo"), at(plan, "workload", "requests_per_day")
    short = measure(day) is not None and measure(asked) is not None and day < asked
    found.append((quantity(day), "requests a day at the SLO" + (f", of {quantity(asked)} asked" if asked else ""), short))
    price, currency = at(plan, "cost", "cost_per_million_tokens"), at(plan, "cost", "currency")
    found.append((quantity(price), f"{currency} for a million tokens" if currency else "for a million tokens", False))
    return [{"value": value, "label": label, "bad": bad} for value, label, bad in found]


def notices(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Warnings, those first that are more than a note."""
    found = [
        {
            "text": quantity(item.get("text")),
            "code": str(item.get("code") or ""),
            "note": str(item.get("code")).startswith("note_"),
        }
        for item in [*(plan.get("warnings") or []), *(at(plan, "service", "warnings") or [])]
    ]
    found = [item for number_of, item in enumerate(found) if item not in found[:number_of]]
    return sorted(found, key=lambda item: bool(item["note"]))


def engine_line(plan: Mapping[str, Any]) -> str:
    given = at(plan, "settings") or {}
    sizes = (
        ("tensor_parallel", "tensor parallel"),
        ("pipeline_parallel", "pipeline parallel"),
        ("data_parallel", "data parallel"),
    )
    parts = [f"{label} {given[key]}" for key, label in sizes if (positive(given.get(key)) or 1) > 1]
    parts += [plural(int(given["replicas"]), "replica")] if positive(given.get("replicas")) else []
    return ", ".join([" ".join(str(given[key]) for key in ("engine", "engine_version") if given.get(key)), *parts]).strip(", ")


def hardware_line(plan: Mapping[str, Any]) -> str:
    name = at(plan, "hardware", "name") or at(plan, "hardware", "product")
    count = positive(at(plan, "hardware", "count"))
    return "" if not name else f"{count:,.0f} x {name}" if count else str(name)


def left_out(plan: Mapping[str, Any], search: Any, feasibility: Any) -> list[tuple[str, str]]:
    missing = [(title, why) for key, title, why in OPTIONAL if not plan.get(key)]
    missing += [("Search", "no other deployments were compared")] if search is None else []
    return missing + ([("Feasibility", "data sensitivity and operations were not asked about")] if feasibility is None else [])


def workload_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = at(plan, "workload") or {}
    found = facts(given, ("prompt_tokens", "answer_tokens", "slo"))
    for key, label in (("prompt_tokens", "Prompt"), ("answer_tokens", "Answer")):
        value = given.get(key)
        if isinstance(value, Mapping):
            found.append(
                (f"{label} tokens", ", ".join(f"{name} {quantity(item)}" for name, item in value.items() if item is not None))
            )
    for key, value in (given.get("slo") or {}).items():
        if value is not None:
            label, unit = labelled(str(key))
            found.append((f"SLO: {label}", quantity(value, unit)))
    return found


def speed_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = facts(at(plan, "speed"), ("points", "low_factor", "high_factor"))
    low, high = at(plan, "speed", "low_factor"), at(plan, "speed", "high_factor")
    if low is not None and high is not None:
        found.append(("What is measured may be", f"{bounds(brief(low), brief(high))} times the speed"))
    return found


def service_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    # Of one replica; all else is of all of them.
    own = ("concurrency", "concurrency_limit", "concurrency_at_slo", "tokens_per_second")
    told = {(f"{key}_of_one_replica" if key in own else key): value for key, value in (at(plan, "service") or {}).items()}
    found = facts(told, ("unattainable",))
    for key, pair in (at(plan, "service", "unattainable") or {}).items():
        label, unit = labelled(str(key))
        found.append(
            (
                f"{label}: not even one request alone",
                f"{quantity(at(pair, 'best'), unit)} at best, {quantity(at(pair, 'wanted'), unit)} wanted",
            )
        )
    return found


def cost_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """As ``facts``, with the currency beside what is money."""
    cost = at(plan, "cost") or {}
    currency = cost.get("currency")
    money = {
        key: quantity(value, currency) for key, value in cost.items() if "cost" in key or key == "investment" if value is not None
    }
    return facts({**cost, **money}, ("currency",))


def cache_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    cache = at(plan, "memory", "kv_cache")
    if not cache:
        return []
    sized = [("Size", interval(cache.get("bytes"), cache.get("low_bytes"), cache.get("high_bytes"), "bytes"))]
    sized.append(("Tokens", interval(cache.get("tokens"), cache.get("low_tokens"), cache.get("high_tokens"))))
    sized.append(("A token takes", quantity(cache.get("bytes_per_token"), "bytes")))
    largest, least = at(plan, "memory", "largest_context"), at(plan, "memory", "largest_context_low")
    sized.append(("Largest context", interval(largest, least, largest)))
    return sized


def point_rows(plan: Mapping[str, Any]) -> list[list[str]]:
    columns = (
        *(("concurrency", None), ("tokens_per_second", None), ("requests_per_second", None)),
        *(
            ("itl_ms", "ms"),
            ("itl_p95_ms", "ms"),
            ("ttft_ms", "ms"),
            ("ttft_p95_ms", "ms"),
            ("e2e_ms", "ms"),
            ("e2e_p95_ms", "ms"),
        ),
        *(("bound", None), ("within_memory", None), ("meets_slo", None)),
    )
    return [[quantity(point.get(key), unit) for key, unit in columns] for point in at(plan, "speed", "points") or []]


def request_rows(plan: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            quantity(row.get("length")),
            quantity(row.get("bytes"), "bytes"),
            quantity(row.get("concurrency")) if measure(row.get("concurrency")) is None else brief(float(row["concurrency"])),
            bounds(*(brief(v) if (v := measure(row.get(key))) is not None else None for key in ("low", "high"))),
        ]
        for row in at(plan, "memory", "requests") or []
    ]


def figure_rows(plan: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": words(str(item.get("name"))).replace(" (bytes)", ""),
            "value": quantity(item.get("value"), item.get("unit")),
            "interval": bounds(item.get("low"), item.get("high"), item.get("unit")),
            "formula": quantity(item.get("formula")),
            "source": quantity(item.get("source")),
        }
        for item in plan.get("figures") or []
    ]


def grounds(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Model, hardware, settings and workload as they were planned with."""
    model, hardware, settings = (plan.get(key) or {} for key in ("model", "hardware", "settings"))
    defaulted = settings.get("defaulted") or []
    of_model = [
        (label, quantity(at(model, key), "parameters") if key.endswith("parameters") else text)
        for key in model
        for label, text in facts({key: model[key]}, ("notes", "parameters_by_part"))
    ]
    of_settings = [
        (str(key), f"{quantity(value)}{' (default)' if key in defaulted else ''}")
        for key, value in settings.items()
        if key != "defaulted" and value is not None
    ]
    rates = hardware.get("rates") or {}
    of_hardware = facts(hardware, ("rates", "sources"))
    of_hardware += [(f"Rate {str(kind).upper()}", quantity(rate, "FLOP/s")) for kind, rate in rates.items()]
    by_part = model.get("parameters_by_part") or {}
    found = [
        {"title": "Model", "facts": of_model, "notes": list(model.get("notes") or [])},
        {
            "title": "Parameters",
            "facts": [(words(str(key)), quantity(value, "parameters")) for key, value in by_part.items()],
            "notes": [],
        },
        {
            "title": "Hardware",
            "facts": of_hardware,
            "notes": [f"{words(str(key))}: {value}" for key, value in (hardware.get("sources") or {}).items()],
        },
        {"title": "Settings", "facts": of_settings, "notes": []},
        {
            "title": "Quantisation",
            "facts": facts(plan.get("quantisation"), ("quality", "kv_cache_quality")),
            "notes": quality_notes(plan),
        },
        {"title": "Workload", "facts": workload_facts(plan), "notes": []},
    ]
    return [item for item in found if item["facts"]]


def quality_notes(plan: Mapping[str, Any]) -> list[str]:
    found = []
    for key, title in (("quality", "Loss of quality"), ("kv_cache_quality", "Loss of quality by the type of the KV cache")):
        quality = at(plan, "quantisation", key)
        if isinstance(quality, Mapping):
            sources = "; ".join(str(source) for source in quality.get("sources") or [])
            found.append(f"{title}: {quantity(quality)}" + (f". Source: {sources}" if sources else ""))
    return found


HOW = {"built_in": "built in", "attested": "to be stated", "condition": "by variables"}
STATES = {"on": PASS, "built_in": PASS, "attested": PASS, "missing": FAIL}


def feasible(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Options and controls of a feasibility answer, as the page shows them."""
    if given is None:
        return None
    need = given.get("need")
    asked = [("Data sensitivity", given.get("level"), given.get("level_title"))]
    if isinstance(need, Mapping):
        asked.append(("Compute need", need.get("class"), need.get("title")))
        asked += [("GPUs needed", need.get("gpus"), need.get("derivation"))] if need.get("gpus") is not None else []
    else:
        asked.append(("Compute need", need, None))
    asked.append(("Operations", given.get("operations"), given.get("operations_title")))
    return {
        "asked": [(label, f"{value} ({title})" if title else str(value)) for label, value, title in asked if value is not None],
        "summary": given.get("recommendation") or "",
        "options": [option_row(item, given.get("recommended") or []) for item in given.get("options") or []],
        "controls": [control_row(item) for item in given.get("controls") or []],
    }


def option_row(item: Mapping[str, Any], recommended: Sequence[str]) -> dict[str, Any]:
    operations = at(item, "operations") or {}
    score = measure(item.get("score"))
    return {
        "title": item.get("title") or item.get("name"),
        "score": DASH if score is None else number(score),
        "share": 0 if score is None else round(min(100.0, max(0.0, score))),
        "excluded": bool(item.get("excluded")),
        "recommended": item.get("name") in recommended,
        "exclusions": [str(reason) for reason in item.get("exclusions") or []],
        "effort": operations.get("effort") or "",
        "people": operations.get("people") or "",
        "carried": operations.get("carried") is not False,
        "missing": [str(text) for text in operations.get("missing") or []],
        "criteria": [
            [
                part.get("title") or part.get("criterion"),
                quantity(part.get("score")),
                quantity(part.get("weight")),
                quantity(part.get("reason")),
            ]
            for part in item.get("scores") or []
        ],
    }


def inventory_text(value: Any) -> str:
    """A value as one writes it in an inventory, in one line."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def control_row(item: Mapping[str, Any]) -> dict[str, Any]:
    state = item.get("state")
    how = str(item.get("how") or "")
    return {
        "name": item.get("name"),
        "title": item.get("title") or item.get("name"),
        "why": item.get("why") or "",
        "state": STATES.get(str(state)),
        "told": str(state).replace("_", " ") if state else HOW.get(how, how),
        "variables": [f"{key}: {inventory_text(value)}" for key, value in (item.get("variables") or {}).items()],
        "wanted": item.get("wanted") or item.get("attest") or "",
        "document": item.get("document") or "",
        "found": quantity(item.get("found")) if item.get("found") is not None else "",
        "clauses": [str(clause) for clause in item.get("clauses") or []],
    }


def render(
    plan: Mapping[str, Any],
    title: str,
    search: Mapping[str, Any] | None = None,
    feasibility: Mapping[str, Any] | None = None,
) -> str:
    """The whole page. Raises ValueError for a plan of another form or without a verdict."""
    if plan.get("form") != FORM:
        raise ValueError(f"plan: form: is {plan.get('form')!r}; {FORM} is wanted.")
    if plan.get("verdict") not in (PASS, WARN, FAIL):
        raise ValueError(f"plan: verdict: is {plan.get('verdict')!r}; one of {PASS}, {WARN}, {FAIL} is wanted.")
    gpus = gpus_of(plan)
    return str(
        template(TEMPLATE).render(
            title=title,
            verdict=plan["verdict"],
            summary=plan.get("summary") or "",
            model_name=at(plan, "model", "name") or "",
            hardware=hardware_line(plan),
            engine=engine_line(plan),
            notices=notices(plan),
            advice=[(quantity(item.get("change")), item.get("effect") or "") for item in plan.get("advice") or []],
            word=device_word(plan),
            gpus=gpus,
            shown_gpus=min(gpus, MOST_BARS),
            cards=cards(plan),
            bars=memory_bars(plan),
            terms=terms_of(plan),
            memory_rows=memory_rows(plan),
            part_rows=[(words(str(k)), quantity(v, "bytes")) for k, v in (at(plan, "memory", "weights_by_part") or {}).items()],
            cache_facts=cache_facts(plan),
            parts=parts_told(plan),
            whisker=whisker_of(at(plan, "memory"), terms_of(plan)) is not None,
            itl=curve(plan, "itl_ms", "Time between tokens against throughput", "time between tokens, ms"),
            ttft=curve(plan, "ttft_ms", "Time to the first token against throughput", "time to the first token, ms"),
            speed_facts=speed_facts(plan),
            peak=bool(at(plan, "workload")),
            slo=any(at(plan, "workload", "slo", key) for key in ("itl_ms", "ttft_ms")),
            point_rows=point_rows(plan),
            tails=any(point.get("itl_p95_ms") is not None for point in at(plan, "speed", "points") or []),
            service_facts=service_facts(plan),
            context=context_plot(plan),
            request_rows=request_rows(plan),
            search=searched(plan, search),
            feasibility=feasible(feasibility),
            speculative=facts(plan.get("speculative")),
            speculative_tables=tables(plan.get("speculative")),
            cost=cost_facts(plan),
            cost_tables=tables(plan.get("cost")),
            grounds=grounds(plan),
            left_out=left_out(plan, search, feasibility),
            figures=figure_rows(plan),
            corrections=[
                {"term": words(str(c.get("term"))), "factor": quantity(c.get("factor")), "from": quantity(c.get("from"))}
                for c in plan.get("corrections") or []
            ],
            quantity=quantity,
            interval=interval,
            symbols=SYMBOLS,
            script=Markup(SCRIPT),  # noqa: S704
            script_digest=SCRIPT_DIGEST,
        )
    )
