# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where the memory of a GPU goes when an engine serves a model on it: weights, peak of the profile run, CUDA graphs, KV cache.

The KV cache is divided as vLLM does it (``vllm/v1/core/kv_cache_utils.py``, ``vllm/v1/kv_cache_interface.py``, version 0.32.0):
layers of one kind form groups of equal size that share one pool of blocks; windows hold what they can still see, recurrent
layers one state. llama.cpp allocates the whole context at once (``src/llama-kv-cache.cpp``). All sizes are bytes on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ._model_architecture import CHUNK, DRAFT, FULL, MLA, RECURRENT, VISION, WINDOW, Architecture, Memory, ModelError, Weight
from ._model_quantisation import DTYPE_BYTES, Scheme, sharded_bytes

# Bytes of one element of the KV cache; llama.cpp's types are blocks of 32 with a 16-bit scale (and minimum).
CACHE_BYTES = {
    **{"bfloat16": 2.0, "float16": 2.0, "float32": 4.0, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "f16": 2.0, "bf16": 2.0},
    **{"q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32, "f32": 4.0},
}
# Tables of sines and cosines that vLLM keeps beside the weights; they are in what it says that loading took.
POSITIONS = "positions"
# A token and layer of sparse MLA in fp8: 512 values, 4 scales of 32 bits, 64 rotary values of 16 bits (FLASHMLA_SPARSE).
SPARSE_FP8 = 656
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One GPU, or the CPU and memory of one host. ``sources`` says of each figure where it is from."""

    product: str
    name: str
    kind: str  # gpu or cpu
    memory: int  # bytes that the engine sees
    memory_low: int = 0  # the least and the most that drivers were seen to give
    memory_high: int = 0
    bandwidth: float = 0.0  # bytes/s
    rates: Mapping[str, float] = field(
        default_factory=dict
    )  # FLOP/s of dense matrix products by type: bf16, fp16, fp8, int8, fp4
    compute_capability: tuple[int, int] = (0, 0)
    link_bandwidth: float = 0.0  # bytes/s to another GPU of the host, one direction
    link: str = "none"  # nvlink, pcie, none
    pcie_bandwidth: float = 0.0  # bytes/s between host and GPU, one direction
    power_watts: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """An engine and how it is started. ``None`` is the engine's own default, which the plan names."""

    engine: str = "vllm"
    engine_version: tuple[int, ...] = (0, 32, 0)
    dtype: str = "bfloat16"
    kv_cache_dtype: str = "auto"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False
    max_model_len: int = 0
    memory_utilization: float = 0.9
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    block_size: int = 16
    cuda_graphs: bool = True
    prefix_caching: bool = True
    cache_bytes: int = 0  # a KV cache of this size, whatever else there is (CPU, --kv-cache-memory-bytes)
    draft_tokens: int = 0  # tokens that speculative decoding proposes
    draft_layers: bool = False  # the model's own layers for multi-token prediction are loaded
    vision: bool = True
    slots: int = 1  # llama.cpp: --parallel

    @property
    def element(self) -> float:
        """Bytes of one element of the KV cache."""
        kind = self.dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype
        if kind not in CACHE_BYTES:
            raise ModelError(f"kv_cache_dtype: {kind!r} is not known; known are auto, {', '.join(sorted(CACHE_BYTES))}.")
        return CACHE_BYTES[kind]

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


# --- weights ---------------------------------------------------------------------------------------------------------


def stages(layers: int, pipeline_parallel: int) -> list[range]:
    """The layers of each pipeline stage; what does not divide goes to the stages before the last, from the back (vLLM's
    ``get_pp_indices``)."""
    sizes = [layers // pipeline_parallel] * pipeline_parallel
    for number in range(layers % pipeline_parallel):
        sizes[-(number + 2) if pipeline_parallel > 1 else -1] += 1
    bounds = [sum(sizes[:number]) for number in range(pipeline_parallel + 1)]
    return [range(begin, end) for begin, end in zip(bounds, bounds[1:])]


def of_stage(architecture: Architecture, settings: Settings, number: int) -> list[Weight]:
    """The weights that the GPUs of one pipeline stage hold."""
    parts = stages(len(architecture.layers), settings.pipeline_parallel)
    here = set(parts[number])
    last = number == len(parts) - 1
    found = []
    for weight in architecture.weights:
        if (weight.part == DRAFT and not settings.draft_layers) or (weight.part == VISION and not settings.vision):
            continue
        if weight.part == DRAFT or not weight.layers:
            belongs = (weight.end == "first" and number == 0) or (weight.end == "last" and last)
            # The head that shares the embedding's table needs it at the other end too.
            belongs = belongs or (architecture.tied and last and weight.name.endswith("embed_tokens"))
            if belongs:
                found.append(weight)
        else:
            layers = tuple(layer for layer in weight.layers if layer in here)
            if layers:
                found.append(replace(weight, layers=layers))
    return found


def weights(architecture: Architecture, scheme: Scheme, settings: Settings) -> dict[str, int]:
    """Bytes by part on the GPU that holds most, with what vLLM makes of the weights while it loads."""
    worst: dict[str, int] = {}
    size = DTYPE_BYTES[settings.dtype]
    together = settings.tensor_parallel * settings.data_parallel
    for number in range(settings.pipeline_parallel):
        found: dict[str, int] = {}
        for weight in of_stage(architecture, settings, number):
            bytes_ = sharded_bytes(
                weight,
                scheme,
                size,
                settings.tensor_parallel,
                expert_parallel=together if settings.expert_parallel else 0,
                kv_heads=architecture,
                expert_shards=together,
            )
            # MLA keeps both factors of kv_b_proj a second time, in the model's dtype (process_weights_after_loading).
            if weight.name.endswith("kv_b_proj") and settings.engine != "llama_cpp":
                bytes_ += weight.parameters * size // settings.tensor_parallel
            found[weight.part] = found.get(weight.part, 0) + bytes_
        if architecture.position_elements and settings.engine != "llama_cpp":
            found[POSITIONS] = architecture.position_elements * size
        if sum(found.values()) > sum(worst.values()):
            worst = found
    return worst


# --- KV cache --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Layers that have one table of blocks between them."""

    kind: str
    layers: int
    page: int  # bytes of one layer's part of a block
    tokens: int  # of a block
    reach: int = 0  # tokens that a window or chunk keeps
    states: int = 1  # blocks of a recurrent layer for one request

    def blocks(self, length: int, in_flight: int) -> int:
        """Blocks that one request of this many tokens needs at most, ``in_flight`` of them computed in one step."""
        if self.kind == RECURRENT:
            return self.states
        if self.kind == WINDOW:
            return math.ceil(min(self.reach - 1 + in_flight, length) / self.tokens) + 1
        if self.kind == CHUNK:
            return math.ceil(min(self.reach + in_flight, length) / self.tokens)
        return math.ceil(length / self.tokens)


@dataclass(frozen=True)
class Pool:
    """What a KV cache is divided into."""

    groups: tuple[Group, ...]
    block_bytes: int
    block_tokens: int
    in_flight: int
    counts_requests: bool  # how vLLM counts tokens since 0.21: by how many of the longest requests fit
    null_blocks: int = 0  # blocks that belong to no request; since 0.32 vLLM leaves one out where it asks whether one fits

    def blocks(self, size: int) -> int:
        return max(0, size) // self.block_bytes if self.block_bytes else 0

    def request_blocks(self, length: int) -> int:
        return sum(group.blocks(length, min(self.in_flight, length)) for group in self.groups)

    def request_bytes(self, length: int) -> int:
        return self.request_blocks(length) * self.block_bytes

    def needed(self, length: int) -> int:
        """Bytes without which the engine does not start for requests of this length."""
        return (self.request_blocks(length) + self.null_blocks) * self.block_bytes

    def concurrency(self, size: int, length: int) -> float:
        """Requests of this length that fit into a cache of this size."""
        needed = self.request_blocks(length)
        return self.blocks(size) / needed if needed else math.inf

    def tokens(self, size: int, longest: int) -> int:
        """The number that the engine prints as the size of its cache."""
        if not self.groups:
            return 0
        if self.counts_requests and longest:
            return int(self.concurrency(size, longest) * longest)
        return self.blocks(size) // len(self.groups) * self.block_tokens

    def longest(self, size: int, limit: int) -> int:
        """The longest request that fits alone, in tokens, up to ``limit``."""
        low, high = 0, max(0, limit)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.needed(middle) <= size else (low, middle - 1)
        return low


def local_heads(kv_heads: int, tensor_parallel: int) -> int:
    """KV heads on one GPU: at least one, so that heads are repeated where there are more GPUs than heads."""
    return max(1, math.ceil(kv_heads / tensor_parallel))


def page_bytes(memory: Memory, settings: Settings, tokens: int) -> int:
    """Bytes of one layer's part of a block of this many tokens."""
    if memory.kind == MLA and memory.index_bytes and settings.element == 1:
        return tokens * SPARSE_FP8
    if memory.kind == MLA:
        return int(tokens * (memory.key_dim * settings.element))
    heads = local_heads(memory.kv_heads, settings.tensor_parallel)
    return int(tokens * heads * (memory.key_dim + memory.value_dim) * settings.element)


def state_bytes(memory: Memory, settings: Settings) -> int:
    """Bytes of a recurrent layer's state for one request on one GPU; its first dimension is divided."""
    total = 0
    for place, (shape, kind) in enumerate(zip(memory.state, memory.state_types)):
        size = 4 if settings.engine == "llama_cpp" else DTYPE_BYTES[settings.dtype if kind == "auto" else kind]
        inner = list(shape[1:])
        if place == 0 and len(shape) == 2 and len(memory.state) > 1:
            inner[0] += settings.draft_tokens  # a convolution keeps the tokens that were proposed too
        total += math.ceil(shape[0] / settings.tensor_parallel) * math.prod(inner) * size
    return total


def hybrid(settings: Settings) -> bool:
    """Whether the engine lets windows forget; vLLM does since 0.9."""
    return settings.engine_version >= (0, 9)


def cache(architecture: Architecture, settings: Settings) -> Pool | Context:
    """How the engine divides its cache, on the GPUs of the pipeline stage where a block takes most."""
    parts = stages(len(architecture.layers), settings.pipeline_parallel)
    memories = [(number, memory) for number, layer in enumerate(architecture.layers) for memory in layer.memories]
    if settings.draft_layers and memories:
        # Layers for multi-token prediction keep what the last layer with attention keeps, at the end of the pipeline.
        kept = [memory for _number, memory in memories if memory.kind in (FULL, MLA)]
        memories += [(len(architecture.layers) - 1, kept[-1])] * (architecture.draft_layers if kept else 0)
    if settings.engine == "llama_cpp":
        widest = max(parts, key=len)
        return llama_cpp_context([memory for number, memory in memories if number in widest], settings)
    return vllm_pool(memories, settings, parts)


def vllm_pool(memories: list[tuple[int, Memory]], settings: Settings, parts: list[range]) -> Pool:
    """Groups are formed over the whole model, and each stage has its layers of each group."""
    version = settings.engine_version
    tokens = settings.block_size
    attention = [memory for _number, memory in memories if memory.kind in (FULL, WINDOW, CHUNK, MLA)]
    sizes = [state_bytes(memory, settings) for _number, memory in memories if memory.kind == RECURRENT]
    # A block holds a recurrent layer's state whole, and so an attention block grows to its size
    # (_align_hybrid_block_size in vllm/platforms/interface.py).
    if sizes and attention:
        step = max(128 if any(memory.kind == MLA for memory in attention) else 16, settings.block_size)
        smallest = min(page_bytes(memory, settings, 1) for memory in attention)
        tokens = max(tokens, math.ceil(max(sizes) / (smallest * step)) * step)
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for number, memory in memories:
        if memory.kind == RECURRENT:
            kinds.setdefault((RECURRENT, 0, state_bytes(memory, settings)), []).append(number)
            continue
        kind, reach = memory.kind, memory.reach
        if kind == MLA or (kind in (WINDOW, CHUNK) and not hybrid(settings)):
            kind, reach = FULL, 0
        kinds.setdefault((kind, reach, page_bytes(memory, settings, tokens)), []).append(number)
        if memory.index_bytes:
            kinds.setdefault((FULL, 0, memory.index_bytes * tokens), []).append(number)
    # Since 0.26 two batches are under way at once, except on a CPU (VllmConfig.max_in_flight_tokens).
    batches = settings.pipeline_parallel + (0 if settings.engine == "vllm_cpu" or version < (0, 26) else 1)
    groups, block = _grouped(kinds, tokens, settings, parts)
    return Pool(groups, block, tokens, batches * settings.max_num_batched_tokens, version >= (0, 21), int(version >= (0, 32)))


def _grouped(
    kinds: dict[tuple[Any, ...], list[int]], tokens: int, settings: Settings, parts: list[range]
) -> tuple[tuple[Group, ...], int]:
    """Groups, and the bytes of one block over all layers of a group in the stage that has most of them."""
    if not kinds:
        return (), 0
    # Layers that all need a slot for each token share one table, whatever the size of their slots.
    if len({(kind, reach) for kind, reach, _page in kinds}) == 1:
        (kind, reach), layers = next(key[:2] for key in kinds), sum(map(len, kinds.values()))
        block = max(sum(page * sum(n in part for n in found) for (_k, _r, page), found in kinds.items()) for part in parts)
        return (Group(kind, layers, block // layers, tokens, reach, _states(settings)),), block
    widest = max(page for _kind, _reach, page in kinds)
    found: dict[tuple[str, int, int], list[int]] = {}
    for (kind, reach, page), layers_of in kinds.items():
        # A narrower page holds more tokens where that divides, and is padded where not.
        own = tokens * (widest // page) if kind != RECURRENT and widest % page == 0 else tokens
        found.setdefault((kind, reach, own), []).extend(layers_of)
    fewest, most = (choose(map(len, found.values())) for choose in (min, max))
    size = most if most < fewest * 1.5 and settings.engine_version >= (0, 12) else fewest
    groups, held = [], 0
    for (kind, reach, own), layers_of in found.items():
        count = math.ceil(len(layers_of) / size)
        for number in range(count):
            groups.append(Group(kind, size, widest, own, reach, _states(settings)))
            held = max(held, *(sum(layer in part for layer in layers_of[number::count]) for part in parts))
    # Without a pipeline a group that has fewer layers than others is padded.
    return tuple(groups), widest * (held if len(parts) > 1 else size)


def _states(settings: Settings) -> int:
    """Blocks of a recurrent layer for one request; with prefix caching another one for what is being computed (since 0.21)."""
    return (2 if settings.prefix_caching and settings.engine_version >= (0, 21) else 1) + settings.draft_tokens


@dataclass(frozen=True)
class Context:
    """llama.cpp's cache: cells for the whole context in each layer, made at the start and divided among slots.

    Windows have cells for what they can see and one batch; a recurrent layer has a state for each slot.
    """

    cells: tuple[tuple[int, int], ...]  # bytes of a token over all layers of one reach, and that reach (0: everything)
    state: int  # bytes of all recurrent layers for one slot
    batch: int
    slots: int
    step: int = 256  # cells come in steps (GGML_PAD of llama_kv_cache)

    def bytes(self, length: int, slots: int) -> int:
        total = self.state * slots
        for size, reach in self.cells:
            seen = min(length * slots, reach * slots + self.batch) if reach else length * slots
            total += size * math.ceil(seen / self.step) * self.step
        return total

    def request_bytes(self, length: int) -> int:
        return self.bytes(length, 1)

    def needed(self, length: int) -> int:
        """Bytes of all slots, which are there from the start."""
        return self.bytes(length, self.slots)

    def concurrency(self, size: int, length: int) -> float:
        """Slots of this length that fit, at most."""
        low, high = 0, 4096
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes(length, middle) <= size else (low, middle - 1)
        return float(low)

    def tokens(self, size: int, longest: int) -> int:
        """Cells that fit, all slots together; no more than the longest context asks for."""
        return self.longest(size, longest) * self.slots

    def longest(self, size: int, limit: int) -> int:
        low, high = 0, max(0, limit)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes(middle, self.slots) <= size else (low, middle - 1)
        return low


def llama_cpp_context(memories: list[Memory], settings: Settings) -> Context:
    cells: dict[int, int] = {}
    for memory in memories:
        if memory.kind in (FULL, MLA, WINDOW, CHUNK):
            cells[memory.reach] = cells.get(memory.reach, 0) + page_bytes(memory, settings, 1)
    state = sum(state_bytes(memory, settings) for memory in memories if memory.kind == RECURRENT)
    return Context(tuple((size, reach) for reach, size in sorted(cells.items())), state, 512, settings.slots)


# --- what else an engine takes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amount:
    """Bytes, and between which bytes nine measurements in ten were."""

    bytes: int
    low: int
    high: int
    formula: str
    source: str


def of_version(table: list[Mapping[str, Any]], version: tuple[int, ...]) -> Mapping[str, Any]:
    """The last entry of a list by ``since`` that holds for this version."""
    found = [entry for entry in table if tuple(map(int, str(entry["since"]).split("."))) <= version]
    return (found or table)[-1] if found else table[0]


def forward_elements(architecture: Architecture, settings: Settings, hidden_vectors: float) -> float:
    """Elements that one token's way through a layer needs at once: the hidden vectors, and the widest feed-forward."""
    inner = architecture.intermediate_size / settings.tensor_parallel
    return 3 * inner + hidden_vectors * architecture.hidden_size


def activation(architecture: Architecture, settings: Settings, engine: Mapping[str, Any]) -> Amount:
    """Peak of the profile run: a full batch through a layer, or the logits of as many requests as may run, whichever is more.

    In the second, what the first leaves (the hidden states, and the work space of experts) is still there.
    """
    figures = of_version(engine["activation"], settings.engine_version)
    size = DTYPE_BYTES[settings.dtype]
    tokens = settings.max_num_batched_tokens
    forward = size * tokens * forward_elements(architecture, settings, figures["hidden_vectors"])
    kept = size * tokens * architecture.hidden_size * figures["hidden_kept"]
    if architecture.experts:
        inner = architecture.intermediate_size / settings.tensor_parallel
        kept += size * tokens * (max(2 * inner, architecture.experts_per_token * architecture.hidden_size) + inner)
    rows = min(settings.max_num_seqs, tokens)
    logits = rows * architecture.vocabulary * figures["logit_bytes"] + kept
    value = max(forward, logits)
    return Amount(
        round(value),
        round(value * figures["low"]),
        round(value * figures["high"] + (figures["vision_bytes"] if architecture.vision and settings.vision else 0)),
        f"max(batch x {size} x (3 x intermediate / TP + {figures['hidden_vectors']} x hidden), "
        f"requests x vocabulary x {figures['logit_bytes']} + what stays of the batch)",
        figures["source"],
    )


def non_torch(settings: Settings, engine: Mapping[str, Any]) -> Amount:
    """CUDA libraries and NCCL, which PyTorch does not count."""
    figures = of_version(engine["non_torch"], settings.engine_version)
    kind = "several" if settings.tensor_parallel > 1 else "one"
    low, value, high = (int(figures[kind][name]) for name in ("low", "value", "high"))
    return Amount(value, low, high, "measured, by whether GPUs work on one layer together", figures["source"])


def cuda_graphs(architecture: Architecture, settings: Settings, engine: Mapping[str, Any]) -> Amount:
    """Graphs of decode steps; within the budget since vLLM 0.21, beyond it before."""
    figures = of_version(engine["cuda_graphs"], settings.engine_version)
    if not settings.cuda_graphs:
        return Amount(0, 0, 0, "switched off (--enforce-eager)", figures["source"])
    layers = math.ceil(len(architecture.layers) / settings.pipeline_parallel)
    value = figures["base"] + figures["layer"] * layers
    return Amount(
        round(value),
        round(value * figures["low"]),
        round(value * figures["high"]),
        "base + a share for each layer",
        figures["source"],
    )
