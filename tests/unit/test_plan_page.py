# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a capacity plan: its drawings, what it says and leaves out, and that nothing in a plan can do harm there."""

from __future__ import annotations

import base64
import copy
import hashlib
import html.parser
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.plugin_utils import _page as shared
from ansible_collections.onprem.llm.plugins.plugin_utils import _plan_page as page
from ansible_collections.onprem.llm.plugins.plugin_utils._feasibility import feasibility
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 2**30
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def terms(**sizes: float) -> list[dict[str, Any]]:
    return [
        {"name": name, "bytes": int(size * GIB), "low_bytes": int(size * GIB * 0.9), "high_bytes": int(size * GIB * 1.1)}
        for name, size in sizes.items()
    ]


def make_plan(**changes: Any) -> dict[str, Any]:
    """Llama-2-13B on eight A100, four replicas of two; the sizes are of the right order."""
    cache, token = 56 * GIB, 409600
    points = [
        {
            "concurrency": number,
            "itl_ms": 8 + 0.2 * number,
            "ttft_ms": 50.0 + number,
            "e2e_ms": 2000.0 + 10 * number,
            "itl_p95_ms": 1.3 * (8 + 0.2 * number),
            "ttft_p95_ms": 4 * (50.0 + number),
            "tokens_per_second": number / (0.008 + 0.0002 * number),
            "requests_per_second": number / 3,
            "bound": "memory",
            "within_memory": number <= 128,
            "meets_slo": number < 128,
        }
        for number in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    ]
    plan = {
        "form": 1,
        "model": {
            "name": "Llama-2-13b-chat",
            "class": "LlamaForCausalLM",
            "parameters": 13015864320,
            "parameters_by_part": {"attention": 4194304000, "mlp": 8493465600},
            "layer_kinds": {"full": 40},
            "notes": ["The config names float16."],
        },
        "hardware": {
            "name": "NVIDIA A100-SXM4-80GB",
            "kind": "gpu",
            "count": 8,
            "memory_bytes": 80 * GIB,
            "bandwidth_bytes_per_second": 2.039e12,
            "rates": {"bf16": 312e12},
            "sources": {"memory": "a log of the engine"},
        },
        "settings": {
            "engine": "vllm",
            "engine_version": "0.32.0",
            "tensor_parallel": 2,
            "pipeline_parallel": 1,
            "data_parallel": 1,
            "replicas": 4,
            "max_model_len": 4096,
            "max_num_seqs": 256,
            "defaulted": ["max_num_seqs"],
        },
        "quantisation": {"name": "none", "weight_bits": 16, "quality": None},
        "memory": {
            "total_bytes": 80 * GIB,
            "budget_bytes": 72 * GIB,
            "terms": [
                *terms(weights=12, activation=2, non_torch=1, cuda_graphs=1),
                {"name": "kv_cache", "bytes": cache, "low_bytes": 54 * GIB, "high_bytes": 57 * GIB},
                *terms(reserve=8),
            ],
            "weights_by_part": {"attention": 4 * GIB, "mlp": 8 * GIB},
            "kv_cache": {
                "bytes": cache,
                "low_bytes": 54 * GIB,
                "high_bytes": 57 * GIB,
                "bytes_per_token": token,
                "tokens": cache // token,
                "low_tokens": 54 * GIB // token,
                "high_tokens": 57 * GIB // token,
            },
            "requests": [
                {
                    "length": length,
                    "bytes": length * token,
                    "concurrency": cache / token / length,
                    "low": 54 * GIB / token / length,
                    "high": 57 * GIB / token / length,
                }
                for length in (512, 1024, 2048, 4096)
            ],
            "largest_context": 146800,
            "largest_context_low": 141557,
        },
        "fits": True,
        "missing_bytes": 0,
        "spare_bytes": 50 * GIB,
        "workload": {
            "requests_per_day": 350000,
            "peak_factor": 3,
            "prompt_tokens": {"mean": 600, "p95": 1500},
            "answer_tokens": {"mean": 220, "p95": 480},
            "slo": {"ttft_ms": 450, "itl_ms": 50, "e2e_ms": None},
        },
        "speed": {"prefill_tokens_per_second": 14200.0, "single_stream_tokens_per_second": 118.9, "points": points},
        "service": {
            "concurrency": 40.0,
            "itl_ms": 10.0,
            "ttft_ms": 60.0,
            "itl_p95_ms": 12.5,
            "ttft_p95_ms": 231.0,
            "tokens_per_second": 4000.0,
            "replicas": 4,
            "requests_per_day_at_slo": 1130000,
            "limited_by": "ttft",
            "meets_slo": True,
            "unattainable": {},
            "warnings": [],
        },
        "speculative": {"speedup": 1.62, "break_even_acceptance": 0.23, "by_concurrency": [{"concurrency": 1, "speedup": 1.9}]},
        "cost": {
            "currency": "EUR",
            "cost_per_million_tokens": 1.27,
            "cost_per_year": 118000.0,
            "assumptions": [
                {"name": "price_per_gpu", "value": 16000, "unit": "EUR", "source": "example of the collection", "given": False}
            ],
        },
        "verdict": "PASS",
        "summary": "It fits on 2 of 8 GPUs.",
        "advice": [{"change": "tensor_parallel 1", "effect": "fits, with 40 GiB to spare"}],
        "warnings": [
            {"code": "note_0", "text": "A note of the config."},
            {"code": "low_link_bandwidth", "text": "The GPUs reach each other slowly."},
        ],
        "corrections": [{"term": "activation", "factor": 1.08, "from": "gpu1, vllm 0.32.0"}],
        "figures": [
            {
                "name": "weights",
                "value": 12 * GIB,
                "unit": "bytes",
                "low": int(11.5 * GIB),
                "high": int(12.5 * GIB),
                "formula": "sum of the shards",
                "source": "vllm/model_executor/layers/linear.py",
            },
            {
                "name": "KV cache of a token",
                "value": token,
                "unit": "bytes",
                "low": None,
                "high": None,
                "formula": "2 x 40 x 20 x 128 x 2",
                "source": "vllm/v1/kv_cache_interface.py",
            },
            {
                "name": "memory bandwidth",
                "value": 2.039e12,
                "unit": "bytes/s",
                "low": None,
                "high": None,
                "formula": "datasheet",
                "source": "NVIDIA A100 datasheet, <June> 2021",
            },
        ],
    }
    return {**plan, **changes}


def too_big() -> dict[str, Any]:
    """95 GiB of weights on a GPU of 80."""
    plan = make_plan(fits=False, missing_bytes=27 * GIB, verdict="FAIL", speed=None, service=None)
    nothing = {"name": "kv_cache", "bytes": -19 * GIB, "low_bytes": -21 * GIB, "high_bytes": -17 * GIB}
    plan["memory"]["terms"] = [*terms(weights=95, activation=2, non_torch=1, cuda_graphs=1, reserve=8), nothing]
    plan["memory"]["weights_by_part"] = {"mlp": 95 * GIB}
    plan["memory"]["kv_cache"].update(
        bytes=-19 * GIB, low_bytes=-21 * GIB, high_bytes=-17 * GIB, tokens=0, low_tokens=0, high_tokens=0
    )
    for row in plan["memory"]["requests"]:
        row.update(concurrency=0.0, low=0.0, high=0.0)
    plan["memory"].update(largest_context=0, largest_context_low=0)
    return plan


def deployments(count: int = 30) -> dict[str, Any]:
    found = [
        {
            "settings": {"engine": "vllm", "tensor_parallel": 2 ** (number % 4), "max_model_len": 4096 * (1 + number % 2)},
            "quantisation": ("none", "fp8", "awq")[number % 3],
            "tokens_per_second": 1000.0 + 137 * number,
            "itl_ms": 60 - 1.3 * number + 7 * (number % 3),
            "ttft_ms": 100.0 + number,
            "headroom_share": 0.1,
            "quality_loss": 0.1 * (number % 3),
            "requests_per_day_at_slo": 10000 * number,
            "meets_slo": number > 5,
            "front": number % 4 == 0,
            "chosen": number == 20,
            "verdict": "PASS",
            "why": "the most requests a day" if number == 20 else "",
        }
        for number in range(count)
    ]
    return {"deployments": found, "considered": 412}


class Page(html.parser.HTMLParser):
    """Every element with its attributes and the text in it, and whether all are closed in their order."""

    VOID = {"meta", "br", "link", "img", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def tags(self, name: str, class_: str = "") -> list[dict[str, Any]]:
        return [found for tag, found in self.seen if tag == name and (not class_ or class_ in (found.get("class") or "").split())]

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.text).split())


def all_tags(drawn: str, name: str, class_: str) -> list[dict[str, Any]]:
    return Page(drawn).tags(name, class_)


def share(text: str) -> float:
    return float(text.removesuffix("%"))


# --- memory ----------------------------------------------------------------------------------------------------------


def test_widths_of_a_bar_are_the_memory() -> None:
    plan = make_plan()
    drawn = str(page.memory_bars(plan))
    tracks, parts = all_tags(drawn, "rect", "track"), all_tags(drawn, "rect", "seg")
    assert len(tracks) == 2  # tensor parallel
    rows = {track["y"] for track in tracks}
    scale = share(tracks[0]["width"]) / (80 * GIB)
    for row in rows:
        bar = [part for part in parts if part["y"] == row]
        assert [part["data-term"] for part in bar] == ["weights", "activation", "non_torch", "cuda_graphs", "kv_cache", "reserve"]
        assert sum(int(part["data-bytes"]) for part in bar) == 80 * GIB
        assert sum(share(part["width"]) for part in bar) == pytest.approx(share(tracks[0]["width"]), abs=0.01)
        for part in bar:
            assert share(part["width"]) == pytest.approx(int(part["data-bytes"]) * scale, abs=0.002)
        for before, after in zip(bar, bar[1:]):
            assert share(after["x"]) == pytest.approx(share(before["x"]) + share(before["width"]), abs=0.002)
    assert not all_tags(drawn, "rect", "over")
    # The whisker is where the cache may end: 16 GiB lie before it.
    ends = sorted(share(line["x1"]) for line in all_tags(drawn, "line", "whisker") if line["x1"] == line["x2"])[::2]
    origin = share(tracks[0]["x"])
    assert ends == pytest.approx([origin + (16 + 54) * GIB * scale, origin + (16 + 57) * GIB * scale], abs=0.002)


def test_what_lies_beyond_the_memory_is_marked() -> None:
    plan = too_big()
    drawn = str(page.memory_bars(plan))
    end = share(next(line["x1"] for line in all_tags(drawn, "line", "floor")))
    beyond = [part for part in all_tags(drawn, "rect", "over") if part["y"] == "56"]
    assert sum(int(part["data-bytes"]) for part in beyond) == (95 + 2 + 1 + 1 + 8 - 80) * GIB
    assert min(share(part["x"]) for part in beyond) == pytest.approx(end, abs=0.001)
    inside = [part for part in all_tags(drawn, "rect", "seg") if "over" not in part["class"] and part["y"] == "56"]
    assert max(share(part["x"]) + share(part["width"]) for part in inside) == pytest.approx(end, abs=0.002)
    assert all(share(part["x"]) + share(part["width"]) <= 100 for part in beyond)
    assert "27 GiB missing" in drawn and "27 GiB lie beyond the memory" in drawn
    assert "kv_cache" not in {part["data-term"] for part in all_tags(drawn, "rect", "seg")}
    said = Page(page.render(plan, "t")).said
    assert "not one request fits" in said and "✕ FAIL" in said


@pytest.mark.parametrize(
    ("sizes", "bars", "sentence"), [((8, 1, 1), 8, "The 8 GPUs"), ((8, 2, 1), 8, "16 GPUs"), ((1, 1, 1), 1, "")]
)
def test_a_bar_for_each_gpu_of_a_replica_up_to_eight(sizes: tuple[int, int, int], bars: int, sentence: str) -> None:
    plan = make_plan()
    plan["settings"].update(zip(("tensor_parallel", "pipeline_parallel", "data_parallel"), sizes))
    text = page.render(plan, "t")
    assert len(all_tags(str(page.memory_bars(plan)), "rect", "track")) == bars
    assert sentence in text
    assert ("8 of them are drawn" in text) == (math.prod(sizes) > 8)
    assert ("Memory of the GPU" in text) == (bars == 1)


def test_a_cpu_is_a_host() -> None:
    plan = make_plan()
    plan["hardware"].update(kind="cpu", name="CPU", count=1)
    plan["settings"].update(tensor_parallel=1)
    said = Page(page.render(plan, "t")).said
    assert "Memory of the host" in said and "weights on each host" in said and "GPU 0" not in said


@given(
    st.lists(st.integers(0, 200 * GIB), min_size=6, max_size=6),
    st.integers(1, 200 * GIB),
    st.tuples(st.integers(-50 * GIB, 50 * GIB), st.integers(-50 * GIB, 50 * GIB)),
)
@settings(max_examples=60)
def test_no_part_of_a_bar_is_lost_or_outside(sizes: list[int], total: int, spread: tuple[int, int]) -> None:
    plan = make_plan()
    names = ["weights", "activation", "non_torch", "something_new", "kv_cache", "reserve"]
    plan["memory"].update(total_bytes=total, terms=[{"name": name, "bytes": size} for name, size in zip(names, sizes)])
    plan["memory"]["kv_cache"].update(low_bytes=sizes[4] + spread[0], high_bytes=sizes[4] + spread[1])
    parts = [part for part in all_tags(str(page.memory_bars(plan)), "rect", "seg") if part["y"] == "56"]
    assert sum(int(part["data-bytes"]) for part in parts) == sum(sizes)
    assert sum(int(part["data-bytes"]) for part in parts if "over" in part["class"]) == max(0, sum(sizes) - total)
    assert all(share(part["x"]) >= 0 and share(part["x"]) + share(part["width"]) <= 100.01 for part in parts)


# --- plots -----------------------------------------------------------------------------------------------------------


def boxes(drawn: str) -> Iterator[tuple[str, float, float, float, float]]:
    """Where the texts of a drawing are at least: at 5.6 px a character."""
    for attributes, text in re.findall(r"<text ([^>]*)>([^<]*)</text>", drawn):
        found = dict(re.findall(r'([\w-]+)="([^"]*)"', attributes))
        wide, x, y = 5.6 * len(text), float(found["x"]), float(found["y"])
        anchor = found.get("text-anchor") or (
            "end" if "left" in found["class"] else "start" if "title" in found["class"] else "middle"
        )
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * wide
        yield text, left, y - 9, left + wide, y


def assert_sound(drawn: str) -> None:
    """All marks are inside the drawing, and no text lies on another one."""
    assert "nan" not in drawn and "inf" not in re.sub(r"<title>.*?</title>|<desc.*?</desc>", "", drawn)
    for name, number in re.findall(r' (x1|x2|x|cx|y1|y2|y|cy)="([^"]+)"', drawn):
        assert -0.1 <= float(number) <= (page.WIDTH if "x" in name else page.HEIGHT) + 0.1, (name, number)
    for numbers in re.findall(r' d="([^"]*)"', drawn):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", numbers):
            assert -8 <= float(x) <= page.WIDTH + 8 and -8 <= float(y) <= page.HEIGHT + 8
    listed = list(boxes(drawn))
    for index, (text, *one) in enumerate(listed):
        assert one[0] >= -1 and one[2] <= page.WIDTH + 4, (text, one)
        for other_text, *other in listed[index + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (text, one, other_text, other)


def test_the_curve_has_slo_limit_and_operating_point() -> None:
    drawn = str(page.curve(make_plan(), "itl_ms", "t", "ms"))
    assert_sound(drawn)
    page_of = Page(drawn)
    assert len(page_of.tags("circle", "point")) == 7 and len(page_of.tags("path", "bad")) == 2
    assert len(page_of.tags("path", "faint")) == 1 and not page_of.tags("circle", "hollow")  # it misses the SLO too
    assert "SLO 50 ms" in page_of.said and "workload" in page_of.said and len(page_of.tags("rect", "hatched")) == 1
    assert "1 requests at once" in page_of.said and "bound by memory" in page_of.said and "misses the SLO" in page_of.said
    # The service is of four replicas, the curve of one: 1,000 tokens/s, between 8 requests (833) and 16 (1,429).
    here = float(re.search(r'class="here" d="M([\d.]+)', drawn)[1])  # type: ignore[index]
    places = [float(found["cx"]) for found in page_of.tags("circle", "point")]
    assert places[3] < here < places[4]


def test_points_that_may_not_run_are_told_apart() -> None:
    plan = make_plan(workload=None, service=None)
    for point in plan["speed"]["points"]:
        point["meets_slo"] = None
    drawn = Page(str(page.curve(plan, "itl_ms", "t", "ms")))
    assert [len(drawn.tags("circle", name)) for name in ("point", "hollow")] == [8, 1]
    assert len(drawn.tags("rect", "hatched")) == 1
    assert "SLO" not in drawn.said and "workload" not in drawn.said


numbers = st.floats(1e-3, 1e7)


@given(
    st.lists(st.tuples(numbers, numbers, numbers, st.booleans(), st.booleans()), min_size=1, max_size=14),
    st.none() | numbers,
    st.none() | st.tuples(numbers, numbers),
)
@settings(max_examples=150)
def test_any_curve_is_sound(rows: list[Any], slo: float | None, service: tuple[float, float] | None) -> None:
    points = [
        {"concurrency": 2**n, "tokens_per_second": x, "itl_ms": y, "itl_p95_ms": tail, "within_memory": held, "meets_slo": met}
        for n, (x, y, tail, held, met) in enumerate(rows)
    ]
    plan = make_plan(speed={"points": points})
    plan["workload"]["slo"]["itl_ms"] = slo
    plan["service"] = service and {"concurrency": 3.0, "tokens_per_second": service[0], "itl_ms": service[1]}
    assert_sound(str(page.curve(plan, "itl_ms", "t", "milliseconds")))


@given(
    st.lists(st.tuples(st.integers(1, 2**24), st.floats(1e-3, 1e6)), min_size=1, max_size=20),
    st.integers(0, 2**24),
    st.integers(0, 2**24),
)
@settings(max_examples=150)
def test_any_context_plot_is_sound(rows: list[tuple[int, float]], longest: int, largest: int) -> None:
    plan = make_plan()
    plan["settings"]["max_model_len"] = longest
    plan["memory"]["requests"] = [
        {"length": length, "concurrency": amount, "low": amount * 0.8, "high": amount * 1.1} for length, amount in rows
    ]
    plan["memory"]["largest_context"] = largest
    assert_sound(str(page.context_plot(plan)))


def test_the_context_plot_names_what_limits() -> None:
    plan = make_plan()
    drawn = str(page.context_plot(plan))
    assert_sound(drawn)
    said = Page(drawn).said
    for words in ("max_model_len 4,096", "largest that fits: 146,800", "max_num_seqs 256", "512", "1K", "4K", "287", "35.8"):
        assert words in said, words
    assert len(Page(drawn).tags("path", "band")) == 1
    plan["memory"]["largest_context"] = 4096
    assert "max_model_len 4,096: fits" in Page(str(page.context_plot(plan))).said


@given(st.lists(st.tuples(numbers, numbers, st.integers(0, 11), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60)
def test_any_scatter_is_sound(rows: list[tuple[float, float, int, bool]]) -> None:
    found = [
        {"settings": {}, "quantisation": f"q{kind}", "tokens_per_second": x, "itl_ms": y, "front": front, "chosen": number == 0}
        for number, (x, y, kind, front) in enumerate(rows)
    ]
    shown = page.searched(make_plan(), {"deployments": found})
    assert shown is not None
    assert_sound(str(shown["svg"]))


@given(st.floats(1e-4, 1e12), st.floats(1.5, 1e12))
@settings(max_examples=200)
def test_logarithmic_ticks_are_few_rising_and_within(low: float, factor: float) -> None:
    found = shared.log_ticks(low, low * factor)
    assert found == sorted(set(found)) and len(found) <= 12
    assert all(low * 0.999 <= value <= low * factor * 1.001 for value in found)
    if factor >= 2:
        assert len(found) >= 2


def test_shapes_differ_without_colour() -> None:
    drawn = [shared.shape(kind, 0, 0, 5) for kind in range(8)]
    assert len(set(drawn)) == 8 and all(path.startswith("M") and path.endswith("z") for path in drawn)


# --- the page --------------------------------------------------------------------------------------------------------


def whole(plan: dict[str, Any] | None = None) -> str:
    return page.render(plan or make_plan(), "Hall 2", deployments(), feasibility("L3", {"gpus": 16}, "basic"))


def evil(value: Any, key: str = "") -> Any:
    """The same with every text and every key of an open mapping made hostile."""
    if isinstance(value, dict):
        opened = key in (
            "weights_by_part",
            "parameters_by_part",
            "layer_kinds",
            "rates",
            "sources",
            "variables",
            "settings",
            "cost",
        )
        kept = {name: evil(item, name) for name, item in value.items()}
        return {**kept, EVIL: EVIL} if opened else kept
    if isinstance(value, list):
        return [evil(item) for item in value]
    return EVIL if isinstance(value, str) and key not in ("verdict", "kind") else value


def test_no_text_of_a_plan_can_do_harm() -> None:
    answer = feasibility("L3", {"gpus": 16}, "basic")
    text = page.render(evil(make_plan()), EVIL, evil(deployments()), evil(answer))
    parsed = Page(text)
    assert len(parsed.tags("script")) == 1 and text.count("<script") == 1
    assert not parsed.tags("img")
    assert not any(name.startswith("on") for _tag, attributes in parsed.seen for name in attributes)
    assert EVIL in "".join(parsed.text)  # it is shown, as text
    drawings = [found for found in parsed.tags("svg") if found.get("role") == "img"]
    assert len(drawings) == 5


def test_the_page_needs_nothing_else_and_allows_nothing_else() -> None:
    plan = make_plan()
    plan["figures"][0]["source"] = "https://example.org/a?b=c"
    text = whole(plan)
    parsed = Page(text)
    for tag, attributes in parsed.seen:
        assert tag not in ("link", "iframe", "object", "embed", "img", "a", "use", "image")
        assert not {"src", "href", "xlink:href"} & set(attributes)
    assert "@import" not in text
    ids = [attributes["id"] for _tag, attributes in parsed.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    # Patterns of the page itself are all that is referred to.
    assert set(re.findall(r"url\(([^)]*)\)", text)) == {"#over", "#shade"} <= {f"#{name}" for name in ids}
    for attributes in parsed.tags("svg"):
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
    policy = next(found["content"] for found in parsed.tags("meta") if found.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_same_plan_gives_the_same_page() -> None:
    assert whole() == whole(copy.deepcopy(make_plan()))


def test_every_figure_is_there_with_formula_and_source() -> None:
    plan = make_plan()
    said = Page(whole(plan)).said
    for figure in plan["figures"]:
        for key in ("formula", "source"):
            assert figure[key] in said, figure[key]
        assert page.quantity(figure["value"], figure["unit"]) in said
    for words in ("11.5 GiB to 12.5 GiB", "400 KiB", "2.039 TB/s"):
        assert words in said, words


def test_the_page_says_what_an_operator_asks() -> None:
    said = Page(whole()).said
    for words in (
        *(
            "Hall 2",
            "✓ PASS",
            "It fits on 2 of 8 GPUs.",
            "8 x NVIDIA A100-SXM4-80GB",
            "vllm 0.32.0, tensor parallel 2, 4 replicas",
        ),
        *("12 GiB weights on each GPU, of 80 GiB", "146,800 tokens of KV cache", "requests of 1,024 tokens fit at once"),
        *("10 ms between tokens (95 %: 12.5 ms, SLO 50 ms)", "1,130,000 requests a day at the SLO, of 350,000 asked"),
        *(
            "1.27 EUR for a million tokens",
            "118,000 EUR",
            "attention 4 GiB, MLP 8 GiB",
            "! WARN The GPUs reach each other slowly.",
        ),
        *("note A note of the config.", "tensor_parallel 1", "fits, with 40 GiB to spare", "max_num_seqs 256 (default)"),
        *("30 shown of 412 considered", "the most requests a day", "On-premise cluster", "Limited by TTFT", "1.08"),
        *(
            "gpu1, vllm 0.32.0",
            "Price per GPU",
            "16,000 EUR",
            "Memory: a log of the engine",
            "312 TFLOP/s",
        ),
        *("GDPR", "onprem_llm_serve_unvalidated: []", "does not carry the need large"),
    ):
        assert words in said, words
    assert said.index("reach each other slowly") < said.index("A note of the config")  # warnings before notes


def test_the_table_of_the_front_has_the_numbers_of_the_drawing() -> None:
    shown = page.searched(make_plan(), deployments())
    assert shown is not None
    assert [row["number"] for row in shown["front"]] == list(range(1, 9))
    speeds = [float(row["speed"].replace(",", "")) for row in shown["front"]]
    assert speeds == sorted(speeds, reverse=True)
    assert shown["varied"] == ["tensor_parallel", "max_model_len"] and shown["fixed"] == ["engine vllm"]
    assert [entry["name"] for entry in shown["legend"]] == ["none", "fp8", "awq"]
    assert len({entry["path"] for entry in shown["legend"]}) == 3
    labels = [text for text, *_box in boxes(str(shown["svg"]))]
    assert {"1", "2", "8"} <= set(labels) and any("chosen" in text for text in labels)


def test_a_search_without_choice_says_what_is_nearest_and_what_was_left_out() -> None:
    found = {
        **deployments(3),
        "do_not_fit": 17,
        "nearest": {
            "label": "fp8, TP 8",
            "lacks": ["3 GiB on each GPU"],
            "advice": [{"change": "weights in awq", "effect": "fits"}],
        },
        "refusals": [{"code": "heads", "count": 4, "text": "tensor_parallel 3 does not divide the 40 heads."}],
        "objectives": {"throughput": "requests a day within the SLO"},
    }
    for number, item in enumerate(found["deployments"]):
        item.update(replicas=number + 1, quality_measure="score", quality_loss=(0.0, 0.3, None)[number], front=True)
    said = Page(page.render(make_plan(), "t", found)).said
    for words in (
        *("Nothing could be chosen. Nearest is fp8, TP 8; it lacks: 3 GiB on each GPU.", "weights in awq: fits"),
        *("17 do not fit", "4 would not start, such as: tensor_parallel 3 does not divide", "Throughput : requests a day"),
        *("0.3 % of a score", "replicas tensor parallel"),
    ):
        assert words in said, words
    shown = page.searched(make_plan(), found)
    assert shown is not None and sorted(row["loss"] for row in shown["front"]) == ["0.3 % of a score", "none", shared.DASH]


@pytest.mark.parametrize(("key", "title"), [(key, title) for key, title, _why in page.OPTIONAL])
@pytest.mark.parametrize("absent", [True, False])
def test_a_section_that_is_null_is_named_as_left_out(key: str, title: str, absent: bool) -> None:
    plan = make_plan(**{key: None})
    if absent:
        del plan[key]
    said = Page(whole(plan)).said
    why = next(why for name, _title, why in page.OPTIONAL if name == key)
    assert f"{title} : {why}." in said
    assert f"{title} : {why}." not in Page(whole()).said


def test_a_plan_of_nothing_but_a_verdict_is_a_page() -> None:
    said = Page(page.render({"form": 1, "verdict": "FAIL"}, "Nothing")).said
    assert "✕ FAIL" in said and "Search : no other deployments were compared." in said and "The plan lists none." in said
    assert "None was applied" in said


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        if not isinstance(key, int):
            yield (*before, key)
        yield from paths(item, (*before, key))


@pytest.mark.parametrize("value", [None, ...], ids=["null", "absent"])
def test_any_value_may_be_missing(value: Any) -> None:
    for path in paths(make_plan()):
        if path in (("form",), ("verdict",)):
            continue
        plan: Any = make_plan()
        place = plan
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = None
        Page(page.render(plan, "t"))


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_numbers_that_cannot_be_drawn_are_left_out(value: float) -> None:
    plan = make_plan()
    plan["speed"]["points"][0].update(itl_ms=value, ttft_ms=value, tokens_per_second=value)
    plan["memory"]["requests"][0].update(concurrency=value, low=value, high=value)
    plan["service"].update(itl_ms=value, tokens_per_second=value)
    text = page.render(plan, "t")
    assert len(Page(str(page.curve(plan, "itl_ms", "t", "ms"))).tags("circle", "point")) == 6
    assert_sound(str(page.curve(plan, "itl_ms", "t", "ms")))
    assert_sound(str(page.context_plot(plan)))
    assert "nan" not in Page(text).said.replace("finance", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"form": 2}, r"plan: form: is 2; 1 is wanted"),
        ({"form": None}, r"plan: form: is None"),
        ({"verdict": "FINE"}, r"plan: verdict: is 'FINE'; one of PASS, WARN, FAIL is wanted"),
        ({"verdict": None}, r"plan: verdict: is None"),
    ],
)
def test_a_plan_of_another_form_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        page.render(make_plan(**change), "t")


def test_a_card_is_red_where_the_95th_percentile_misses_the_goal() -> None:
    plan = make_plan()
    plan["service"].update(itl_ms=45.0, itl_p95_ms=55.0, ttft_ms=300.0, ttft_p95_ms=None, requests_per_day_at_slo=1000)
    found = {card["label"].split(" (")[0].split(",")[0]: card["bad"] for card in page.cards(plan)}
    assert found["between tokens"] and not found["to the first token"] and found["requests a day at the SLO"]
    assert not found["tokens of KV cache"]


@pytest.mark.parametrize(
    ("prompt", "answer", "length"),
    [(600, 220, 1024), (800, 224, 1024), (800, 225, 2048), (9000, 100, 4096), (None, 220, 4096)],
)
def test_how_many_fit_is_said_for_the_workloads_length(prompt: int | None, answer: int, length: int) -> None:
    plan = make_plan()
    plan["workload"].update(prompt_tokens={"mean": prompt}, answer_tokens={"mean": answer})
    row = page.request_for(plan)
    assert row is not None and row["length"] == length


def test_a_goal_that_one_request_alone_misses_is_said() -> None:
    plan = make_plan()
    plan["service"].update(
        unattainable={"ttft_ms": {"wanted": 450, "best": 612.4}}, warnings=[{"code": "a", "text": "Too long."}]
    )
    said = Page(page.render(plan, "t")).said
    assert "TTFT: not even one request alone 612.4 ms at best, 450 ms wanted" in said
    assert "Too long." in said


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "bytes", shared.DASH),
        (163840, "bytes", "160 KiB"),
        (25.3 * GIB, "bytes", "25.3 GiB"),
        (-5 * GIB, "bytes", "-5 GiB"),
        (512, "bytes", "512 bytes"),
        (2.039e12, "bytes/s", "2.039 TB/s"),
        (312e12, "FLOP/s", "312 TFLOP/s"),
        (0.314, "share", "31.4 %"),
        (13015864320, "parameters", "13.02 billion"),
        (1130000, None, "1,130,000"),
        (math.inf, "requests", "no limit"),
        (math.nan, "ms", shared.DASH),
        (True, None, "yes"),
        ("auto", None, "auto"),
        ({"full": 10, "window": 50}, None, "full 10, window 50"),
        ({"value": 0.12, "unit": "points", "low": 0, "high": 0.4}, None, "0.12 points (0 points to 0.4 points)"),
    ],
)
def test_values_as_an_operator_reads_them(value: Any, unit: str | None, shown: str) -> None:
    assert page.quantity(value, unit) == shown


@pytest.mark.parametrize(("length", "shown"), [(512, "512"), (4096, "4K"), (131072, "128K"), (2**20, "1M"), (1000, "1,000")])
def test_lengths_on_an_axis(length: int, shown: str) -> None:
    assert page.tokens_of(length) == shown


@pytest.mark.parametrize(
    ("name", "label", "unit"),
    [
        ("prefill_tokens_per_second", "Prefill", "tokens/s"),
        ("itl_p95_ms", "ITL p95", "ms"),
        ("energy_kwh_per_year", "Energy", "kWh/year"),
        ("mean_utilisation", "Mean utilisation", "share"),
        ("kv_heads", "KV heads", None),
        ("bandwidth_bytes_per_second", "Bandwidth", "bytes/s"),
    ],
)
def test_a_key_says_its_unit(name: str, label: str, unit: str | None) -> None:
    assert page.labelled(name) == (label, unit)
