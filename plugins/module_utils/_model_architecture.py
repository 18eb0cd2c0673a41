# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a model is made of, as everything else of a plan reads it: its weights and what its layers remember.

Parameters, memory, sharding, quantisation and arithmetic are all derived from the one list of weights, so that none of them can
disagree with another. Which weights a family of models has is in ``_model_families``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


class ModelError(Exception):
    """A model that cannot be planned for; the text says what was found and what was wanted."""


# How tensor parallelism divides a weight.
OUTPUTS = "outputs"  # columns: every GPU has some of the outputs
INPUTS = "inputs"  # rows: every GPU has some of the inputs; its bias stays whole
KV_HEADS = "kv_heads"  # as OUTPUTS, by whole KV heads: repeated where there are more GPUs than heads
EXPERTS = "experts"  # the inside of each expert, or with expert parallelism whole experts
VOCABULARY = "vocabulary"  # rows of the vocabulary, padded
WHOLE = "whole"  # every GPU has all of it

# What a weight is for. The breakdown that a plan shows is by these words.
EMBEDDING, ATTENTION, STATE, MLP, ROUTER, EXPERT, SHARED_EXPERT, NORM, HEAD, VISION, DRAFT = (
    *("embedding", "attention", "linear_attention", "mlp", "router", "experts", "shared_experts", "norms", "head", "vision"),
    "multi_token_prediction",
)
PARTS = (EMBEDDING, ATTENTION, STATE, MLP, ROUTER, EXPERT, SHARED_EXPERT, NORM, HEAD, VISION, DRAFT)


@dataclass(frozen=True)
class Weight:
    """One kind of tensor, and in how many layers and copies it is there."""

    name: str  # as in the checkpoint below a layer, for instance self_attn.q_proj
    part: str
    outputs: int
    inputs: int = 1  # 1: a vector, which nobody quantises
    layers: tuple[int, ...] = ()  # empty: outside the layers
    copies: int = 1  # in each of these layers (experts), or in all where it is outside
    bias: bool = False
    split: str = WHOLE
    end: str = "first"  # outside the layers: at which end of a pipeline it is, "first" or "last"
    matrix: bool = True  # a matrix product with every token; not so for tables, vectors, convolutions and vision

    @property
    def numel(self) -> int:
        """Elements of one tensor, without its bias."""
        return self.outputs * self.inputs

    @property
    def count(self) -> int:
        return self.copies * (len(self.layers) or 1)

    @property
    def parameters(self) -> int:
        return (self.numel + (self.outputs if self.bias else 0)) * self.count


# What a layer remembers of the tokens before.
FULL, WINDOW, CHUNK, MLA, RECURRENT, NOTHING = "full", "window", "chunk", "mla", "recurrent", "nothing"


@dataclass(frozen=True)
class Memory:
    """What one layer keeps for a request.

    ``full``, ``window`` and ``chunk`` keep a key and a value for each token, the last two at most ``reach`` tokens; ``mla``
    keeps one compressed vector for each token, the same on every GPU; ``recurrent`` keeps a state of one size however long the
    request is.
    """

    kind: str
    kv_heads: int = 0
    key_dim: int = 0  # of one head; for mla: kv_lora_rank + qk_rope_head_dim
    value_dim: int = 0  # of one head; for mla: 0
    query_heads: int = 0  # for the arithmetic of attention
    query_dim: int = 0  # of one query head against one remembered token, for the arithmetic; key_dim where 0
    reach: int = 0  # tokens, for window and chunk
    # recurrent: shape of each tensor of the state on one GPU where nothing is divided, whose first dimension is divided among
    # GPUs, and the type of each ("auto": as the model, or float32)
    state: tuple[tuple[int, ...], ...] = ()
    state_types: tuple[str, ...] = ()
    state_kind: str = ""  # mamba1, mamba2, gdn, kda, lightning, short_conv: engines lay them out differently
    # mla with a sparse indexer (DeepSeek V3.2) keeps another vector for each token: bytes of it
    index_bytes: int = 0


@dataclass(frozen=True)
class Layer:
    memory: Memory
    experts: int = 0  # 0: dense
    experts_per_token: int = 0
    # What the layer keeps besides: Falcon-H1 has attention and a state side by side in each layer.
    beside: Memory = Memory(NOTHING)

    @property
    def memories(self) -> tuple[Memory, ...]:
        """All that the layer keeps; empty where it keeps nothing."""
        return tuple(memory for memory in (self.memory, self.beside) if memory.kind != NOTHING)


@dataclass(frozen=True)
class Architecture:
    """A model, whatever its family."""

    family: str  # model_type of the config, or general.architecture of a GGUF
    name: str  # the class that the config names
    hidden_size: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int  # the widest that one token meets in one layer, all its experts together
    max_context: int  # tokens; 0 where the model does not say
    dtype: str  # bfloat16, float16, float32
    layers: tuple[Layer, ...]
    weights: tuple[Weight, ...]
    tied: bool = False
    vision: str = ""  # name of the vision tower
    draft_layers: int = 0  # layers for multi-token prediction that an engine leaves out unless asked
    prefix: str = "model.layers"  # full name of a weight in a layer: prefix, number of the layer, name
    position_elements: int = 0  # of the tables of rotary positions that an engine keeps, all layers together
    notes: tuple[str, ...] = field(default_factory=tuple)  # what a reader should know about how it was counted

    def parameters(self, parts: Iterable[str] | None = None) -> int:
        wanted = set(PARTS if parts is None else parts)
        return sum(weight.parameters for weight in self.weights if weight.part in wanted)

    def by_part(self) -> dict[str, int]:
        """Parameters of each part that the model has."""
        found = {part: self.parameters([part]) for part in PARTS}
        return {part: count for part, count in found.items() if count}

    @property
    def experts(self) -> int:
        return max((layer.experts for layer in self.layers), default=0)

    @property
    def experts_per_token(self) -> int:
        return max((layer.experts_per_token for layer in self.layers), default=0)

    def active_parameters(self) -> int:
        """Parameters that take part in one token's way through the text model: no vision, no draft layers, no tables."""
        total = 0
        for weight in self.weights:
            if weight.part in (VISION, DRAFT):
                continue
            if weight.part == EXPERT:
                per_layer = weight.parameters // weight.count
                total += sum(per_layer * self.layers[number].experts_per_token for number in weight.layers)
            elif weight.part == EMBEDDING and not self.tied:
                continue
            else:
                total += weight.parameters
        return total
