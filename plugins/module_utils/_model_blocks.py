# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What model families are put together from: a strict reader of config.json, and the blocks that layers are made of.

A block adds its weights to a ``Build`` for the layers it is told, under the names that the checkpoint has, and says what those
layers remember. ``_model_families`` says which blocks a family has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ._model_architecture import (
    ATTENTION,
    CHUNK,
    DRAFT,
    EMBEDDING,
    EXPERT,
    EXPERTS,
    FULL,
    HEAD,
    INPUTS,
    KV_HEADS,
    MLA,
    MLP,
    NORM,
    NOTHING,
    OUTPUTS,
    RECURRENT,
    ROUTER,
    SHARED_EXPERT,
    STATE,
    VISION,
    VOCABULARY,
    WHOLE,
    WINDOW,
    Architecture,
    Layer,
    Memory,
    ModelError,
    Weight,
)
from ._model_defaults import DEFAULTS

# The same number under the names that families give it. The first name is the one that the code uses.
ALIASES = {
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "model_max_length",
        "n_ctx",
        "seq_length",
    ),
    "experts": ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k", "moe_k", "moe_topk"),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "num_nextn_predict_layers": ("num_nextn_predict_layers", "num_mtp_layers"),
}
# Of these, two names with two values are a contradiction; of the others, families mean different things by different names.
SYNONYMS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "experts", "experts_per_token")

DTYPES = ("bfloat16", "float16", "float32")

# What layer_types says, and what the layer remembers.
ATTENTION_WORDS = {
    "full_attention": FULL,
    "attention": FULL,
    "global": FULL,
    "sliding_attention": WINDOW,
    "local": WINDOW,
    "chunked_attention": CHUNK,
}
OTHER_WORDS = ("linear_attention", "mamba", "conv", "indexed_attention", "hybrid", "moe", "mlp")


class Config:
    """A part of a config.json. Whatever is read from it is checked, and an error says where it stands."""

    def __init__(self, values: Any, where: str, path: str = "", defaults: Mapping[str, Any] | None = None) -> None:
        if not isinstance(values, Mapping):
            place = f"{where}: {path.rstrip('.')}" if path else where
            raise ModelError(f"{place}: found {_shown(values)}; wanted a mapping of names to values, as in a config.json")
        self.values = values
        self.where = where
        self.path = path
        # What the config class of the family fills in for a key that is missing.
        self.defaults = dict(defaults or {})
        # What an error calls a key, where that is not the key itself.
        self.shown: dict[str, str] = {}
        # How the checkpoint names what is outside the layers.
        self.stem = "model"
        self.head = "lm_head"

    def error(self, key: str, problem: str, wanted: str = "") -> ModelError:
        return ModelError(f"{self.where}: {self.path}{key}: {problem}" + (f"; wanted {wanted}" if wanted else ""))

    def key(self, name: str) -> str | None:
        """Under which name the config has this, if it has it; null counts."""
        found = [key for key in ALIASES.get(name, (name,)) if key in self.values]
        told = [key for key in found if self.values[key] is not None]
        if name in SYNONYMS and len({repr(self.values[key]) for key in told}) > 1:
            values = ", ".join(f"{key} is {_shown(self.values[key])}" for key in told)
            raise self.error(told[0], f"contradicts another name for the same number: {values}", "one value, or one of the names")
        return told[0] if told else found[0] if found else None

    def get(self, name: str) -> Any:
        key = self.key(name)
        return self.defaults.get(name) if key is None else self.values[key]

    def has(self, name: str) -> bool:
        key = self.key(name)
        return key is not None and self.values[key] is not None

    def label(self, name: str) -> str:
        key = self.key(name) or name
        return self.shown.get(key, key)

    def optional(self, name: str, least: int = 1) -> int | None:
        """An integer, or None where the config says null or has no default."""
        value = self.get(name)
        return None if value is None else self.check(self.label(name), value, least)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.optional(name, least)
        if value is None:
            value = default
        if value is None:
            raise self.error(
                self.label(name), "is missing" if self.key(name) is None else "found null", f"an integer of at least {least}"
            )
        return value

    def check(self, label: str, value: Any, least: int = 1) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(label, f"found {_shown(value)}", f"an integer of at least {least}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"found {_shown(value)}", "true or false")
        return value

    def text(self, name: str, default: str = "") -> str:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, f"found {_shown(value)}", "a word")
        return value

    def integers(self, name: str, below: int | None = None) -> list[int] | None:
        """A list of numbers from 0; of layers, where `below` is how many there are."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)):
            raise self.error(name, f"found {_shown(value)}", "a list of integers")
        numbers = [self.check(f"{name}[{place}]", number, 0) for place, number in enumerate(value)]
        if below is not None and any(number >= below for number in numbers):
            raise self.error(name, f"names layer {max(numbers)}", f"layers from 0 to {below - 1}, as num_hidden_layers says")
        return numbers

    def words(self, name: str, count: int, known: Iterable[str]) -> list[str] | None:
        """A list with one word for each of `count` layers."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)):
            raise self.error(name, f"found {_shown(value)}", "a list with a word for each layer")
        if len(value) != count:
            raise self.error(name, f"has {len(value)} entries", f"{count}, one for each of num_hidden_layers")
        known = tuple(known)
        for number, word in enumerate(value):
            if word not in known:
                raise self.error(f"{name}[{number}]", f"found {_shown(word)}", f"one of {', '.join(sorted(known))}")
        return list(value)

    def sub(self, name: str, defaults: Mapping[str, Any] | None = None) -> Config:
        value = self.values.get(name)
        return Config({} if value is None else value, self.where, f"{self.path}{name}.", defaults)


def _shown(value: Any) -> str:
    text = repr(value) if value is not None else "null"
    return text if len(text) <= 60 else f"{text[:57]}..."


# More layers than any model has: a number beyond is a mistake.
MOST_LAYERS = 10_000


class Build:
    """A model in the making: its weights, and what each layer remembers."""

    def __init__(self, config: Config, stem: str | None = None, layers: str = "layers", head: str = "") -> None:
        self.config = config
        self.stem = config.stem if stem is None else stem
        self.prefix = f"{self.stem}.{layers}" if self.stem else layers
        self.head_name = head or config.head
        self.hidden = config.integer("hidden_size")
        self.count = config.integer("num_hidden_layers")
        if self.count > MOST_LAYERS:
            raise config.error(config.label("num_hidden_layers"), f"found {self.count}", f"at most {MOST_LAYERS}")
        self.vocabulary = config.integer("vocab_size")
        self.every = tuple(range(self.count))
        self.heads = self.kv_heads = self.head_dim = 0
        self.tied = config.flag("tie_word_embeddings")
        self.weights: list[Weight] = []
        self.memories: list[Memory] = [Memory(NOTHING)] * self.count
        self.beside = Memory(NOTHING)  # what every layer keeps besides
        self.experts: dict[int, tuple[int, int]] = {}
        self.widest = 0
        self.vision = ""
        self.draft_layers = 0
        self.notes: list[str] = []
        self.special: tuple[str, str, int] | None = None  # within draft() or tower(): part, prefix of names, how many times
        config.words("layer_types", self.count, (*ATTENTION_WORDS, *OTHER_WORDS))

    # Adding weights

    def add(
        self,
        name: str,
        part: str,
        outputs: int,
        inputs: int = 1,
        *,
        layers: Sequence[int] | None = None,
        copies: int = 1,
        bias: bool = False,
        split: str = WHOLE,
        matrix: bool | None = None,
    ) -> None:
        """A weight of these layers (of every layer where they are not told); nothing where there are none."""
        if layers is not None and not layers:
            return
        matrix = inputs > 1 if matrix is None else matrix
        if self.special is None:
            numbers = self.every if layers is None else tuple(layers)
            self.weights.append(Weight(name, part, outputs, inputs, numbers, copies, bias, split, "first", matrix))
            return
        part, prefix, times = self.special
        if part == VISION:
            split, matrix = WHOLE, False
        end = "last" if part == DRAFT else "first"
        self.weights.append(Weight(prefix + name, part, outputs, inputs, (), copies * times, bias, split, end, matrix))

    def outside(self, name: str, part: str, outputs: int, inputs: int = 1, **options: Any) -> None:
        """A weight outside the layers, by its full name."""
        options.setdefault("matrix", part == HEAD)
        self.weights.append(Weight(name, part, outputs, inputs, **options))

    @contextmanager
    def draft(self, times: int, prefix: str) -> Iterator[None]:
        """What is added in here belongs to so many layers for multi-token prediction."""
        self.special = (DRAFT, prefix, times)
        yield
        self.special = None

    @contextmanager
    def tower(self, prefix: str, times: int = 1) -> Iterator[None]:
        """What is added in here belongs to a vision tower or what connects it, so many times."""
        self.special = (VISION, prefix, times)
        yield
        self.special = None

    def norm(self, *names: str, size: int = 0, layers: Sequence[int] | None = None, bias: bool = False) -> None:
        for name in names:
            self.add(name, NORM, size or self.hidden, layers=layers, bias=bias)

    def ends(
        self,
        *,
        embedding: str = "embed_tokens",
        norm: str = "norm",
        norm_bias: bool = False,
        head_bias: bool = False,
        positions: int = 0,
        position_name: str = "embed_positions",
    ) -> None:
        """Token embedding, learned positions where there are rows of them, the last norm, and the head where it is not tied."""
        stem = f"{self.stem}." if self.stem else ""
        self.outside(f"{stem}{embedding}", EMBEDDING, self.vocabulary, self.hidden, split=VOCABULARY)
        if positions:
            self.outside(f"{stem}{position_name}", EMBEDDING, positions, self.hidden)
        if norm:
            self.outside(f"{stem}{norm}", NORM, self.hidden, bias=norm_bias, end="last")
        if not self.tied:
            self.outside(self.head_name, HEAD, self.vocabulary, self.hidden, bias=head_bias, split=VOCABULARY, end="last")
        elif head_bias:
            self.outside(f"{self.head_name}.bias", HEAD, self.vocabulary, split=VOCABULARY, end="last", matrix=False)

    # What layers remember

    def remember(self, memory: Memory, layers: Sequence[int] | None = None) -> None:
        for number in self.every if layers is None else layers:
            self.memories[number] = memory

    def windows(self, types: Sequence[str] | None = None, window: str = "sliding_window") -> dict[int, tuple[str, int]]:
        """For each layer of a window or chunk its kind and tokens: by layer_types, or by `types` where the config has none."""
        words = self.config.words("layer_types", self.count, ATTENTION_WORDS)
        kinds = {number: ATTENTION_WORDS.get(word, FULL) for number, word in enumerate(words or types or ())}
        found = {}
        for number, kind in kinds.items():
            if kind == FULL:
                continue
            key = "attention_chunk_size" if kind == CHUNK else window
            reach = self.config.optional(key, least=0)
            if not reach:
                raise self.config.error(
                    key, f"found {_shown(self.config.get(key))}, but layer {number} is of a window", "its length in tokens"
                )
            found[number] = (kind, reach)
        return found

    def set_heads(self) -> None:
        """Reads and checks the attention heads."""
        config = self.config
        self.heads = config.integer("num_attention_heads")
        self.kv_heads = config.optional("num_key_value_heads") or self.heads
        label = config.label("num_attention_heads")
        if self.heads % self.kv_heads:
            raise config.error(
                config.label("num_key_value_heads"), f"{self.kv_heads} does not divide {label} {self.heads}", "a divisor of it"
            )
        dim = config.optional("head_dim")
        if dim is None:
            if self.hidden % self.heads:
                raise config.error(
                    label,
                    f"{self.heads} does not divide {config.label('hidden_size')} {self.hidden} and there is no head_dim",
                    "heads that divide it, or a head_dim",
                )
            dim = self.hidden // self.heads
        self.head_dim = dim

    # Blocks

    def attention(
        self,
        layers: Sequence[int] | None = None,
        *,
        at: str = "self_attn.",
        names: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
        fused: str = "",
        bias: bool = False,
        out_bias: bool = False,
        qk_norm: str = "",
        qk_names: Sequence[str] = ("q_norm", "k_norm"),
        qk_bias: bool = False,
        windows: Mapping[int, tuple[str, int]] | None = None,
        gated: bool = False,
        sinks: bool = False,
        head_dim: int = 0,
        value_dim: int = 0,
        kv_heads: int = 0,
        keyless: bool = False,
        valueless: bool = False,
    ) -> None:
        """Attention with grouped heads.

        `fused` names the one tensor for q, k and v; `qk_norm` is "head" (one norm for all heads), "heads" (one for each) or
        nothing; `gated` doubles the queries by an output gate; `head_dim`, `value_dim` and `kv_heads` are those of the config
        unless told; `keyless` layers read keys and values of an earlier layer, `valueless` ones take their keys as values.
        """
        if not self.heads:
            self.set_heads()
        kv_heads, head_dim = kv_heads or self.kv_heads, head_dim or self.head_dim
        value_dim = value_dim or head_dim
        queries, keys, values = self.heads * head_dim, kv_heads * head_dim, kv_heads * value_dim
        if gated:
            queries *= 2
        if fused:
            # The one tensor, as two: its queries are divided freely, its keys and values by whole heads.
            self.add(at + fused, ATTENTION, queries, self.hidden, layers=layers, bias=bias, split=OUTPUTS)
            self.add(at + fused, ATTENTION, keys + values, self.hidden, layers=layers, bias=bias, split=KV_HEADS)
        else:
            self.add(at + names[0], ATTENTION, queries, self.hidden, layers=layers, bias=bias, split=OUTPUTS)
            if not keyless:
                self.add(at + names[1], ATTENTION, keys, self.hidden, layers=layers, bias=bias, split=KV_HEADS)
            if not keyless and not valueless:
                self.add(at + names[2], ATTENTION, values, self.hidden, layers=layers, bias=bias, split=KV_HEADS)
        self.add(at + names[3], ATTENTION, self.hidden, self.heads * value_dim, layers=layers, bias=out_bias, split=INPUTS)
        if qk_norm:
            each = qk_norm == "head"
            self.norm(at + qk_names[0], size=head_dim * (1 if each else self.heads), layers=layers, bias=qk_bias)
            if not keyless:
                self.norm(at + qk_names[1], size=head_dim * (1 if each else kv_heads), layers=layers, bias=qk_bias)
        if sinks:
            self.add(at + "sinks", ATTENTION, self.heads, layers=layers, split=OUTPUTS)
        if self.special is None:
            for number in self.every if layers is None else layers:
                kind, reach = (windows or {}).get(number, (FULL, 0))
                kept = Memory(kind, kv_heads, head_dim, value_dim, self.heads, reach=reach)
                self.memories[number] = Memory(NOTHING) if keyless else kept

    def mla(
        self, layers: Sequence[int] | None = None, *, at: str = "self_attn.", bias: bool = False, index: bool = False
    ) -> None:
        """Multi-head latent attention (DeepSeek V2 and later), with the sparse indexer of V3.2 where `index`."""
        config = self.config
        rank, rope = config.integer("kv_lora_rank"), config.integer("qk_rope_head_dim")
        nope, value = config.integer("qk_nope_head_dim"), config.integer("v_head_dim")
        query_rank = config.optional("q_lora_rank")
        self.heads = self.kv_heads = config.integer("num_attention_heads")
        self.head_dim = nope + rope
        if query_rank is None:
            self.add(at + "q_proj", ATTENTION, self.heads * self.head_dim, self.hidden, layers=layers, split=OUTPUTS)
        else:
            self.add(at + "q_a_proj", ATTENTION, query_rank, self.hidden, layers=layers, bias=bias)
            self.norm(at + "q_a_layernorm", size=query_rank, layers=layers)
            self.add(at + "q_b_proj", ATTENTION, self.heads * self.head_dim, query_rank, layers=layers, split=OUTPUTS)
        self.add(at + "kv_a_proj_with_mqa", ATTENTION, rank + rope, self.hidden, layers=layers, bias=bias)
        self.norm(at + "kv_a_layernorm", size=rank, layers=layers)
        self.add(at + "kv_b_proj", ATTENTION, self.heads * (nope + value), rank, layers=layers, split=OUTPUTS)
        self.add(at + "o_proj", ATTENTION, self.hidden, self.heads * value, layers=layers, bias=bias, split=INPUTS)
        index_bytes = 0
        if index:
            index_heads, index_dim = config.integer("index_n_heads"), config.integer("index_head_dim")
            if query_rank is None:
                raise config.error("q_lora_rank", "found null, but the sparse indexer reads the compressed query", "its rank")
            self.add(at + "indexer.wq_b", ATTENTION, index_heads * index_dim, query_rank, layers=layers)
            self.add(at + "indexer.wk", ATTENTION, index_dim, self.hidden, layers=layers)
            self.norm(at + "indexer.k_norm", size=index_dim, layers=layers, bias=True)
            self.add(at + "indexer.weights_proj", ATTENTION, index_heads, self.hidden, layers=layers)
            # One byte for each element and a float32 scale for each 128 (vLLM 0.32, DeepseekV32IndexerCache).
            index_bytes = index_dim + index_dim // 128 * 4
        if self.special is None:
            self.remember(Memory(MLA, 1, rank + rope, 0, self.heads, index_bytes=index_bytes), layers)

    def mlp(
        self,
        layers: Sequence[int] | None = None,
        inner: int = 0,
        *,
        at: str = "mlp.",
        names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
        bias: bool = False,
        part: str = MLP,
    ) -> None:
        """A multilayer perceptron: gated with three names, plain with two. "gate_up" as the first of two is a fused gate."""
        if layers is not None and not layers:
            return
        inner = inner or self.config.integer("intermediate_size")
        for name in names[:-1]:
            outputs = 2 * inner if name in FUSED_GATES else inner
            self.add(at + name, part, outputs, self.hidden, layers=layers, bias=bias, split=OUTPUTS)
        self.add(at + names[-1], part, self.hidden, inner, layers=layers, bias=bias, split=INPUTS)
        if part == MLP and self.special is None:
            self.widest = max(self.widest, inner)

    def moe(
        self,
        layers: Sequence[int] | None = None,
        *,
        inner: int,
        at: str = "mlp.",
        names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
        each: str = "experts.0.",
        bias: bool = False,
        router: str = "gate",
        router_bias: bool = False,
        correction: str = "",
        shared: int = 0,
        shared_at: str = "shared_experts.",
        shared_names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
        shared_bias: bool = False,
        shared_gate: str = "",
        hidden: int = 0,
    ) -> None:
        """A mixture of experts, with a shared expert of this inner size where it is not 0.

        The experts are named after the first of them (experts.0.up_proj), as a checkpoint names it; `hidden` is the width that
        they read and write where it is not that of the model.
        """
        config = self.config
        experts, chosen = config.integer("experts"), config.integer("experts_per_token")
        if chosen > experts:
            raise config.error(
                config.label("experts_per_token"), f"{chosen} is more than {config.label('experts')} {experts}", "at most that"
            )
        if layers is not None and not layers:
            return
        width = hidden or self.hidden
        for name in names[:-1]:
            outputs = 2 * inner if name in FUSED_GATES else inner
            self.add(at + each + name, EXPERT, outputs, width, layers=layers, copies=experts, bias=bias, split=EXPERTS)
        self.add(at + each + names[-1], EXPERT, width, inner, layers=layers, copies=experts, bias=bias, split=EXPERTS)
        self.add(at + router, ROUTER, experts, self.hidden, layers=layers, bias=router_bias)
        if correction:
            self.add(at + correction, ROUTER, experts, layers=layers)
        if shared:
            self.mlp(layers, shared, at=at + shared_at, names=shared_names, bias=shared_bias, part=SHARED_EXPERT)
            if shared_gate:
                self.add(at + shared_gate, SHARED_EXPERT, 1, self.hidden, layers=layers, matrix=True)
        if self.special is None:
            for number in self.every if layers is None else layers:
                self.experts[number] = (experts, chosen)
            self.widest = max(self.widest, chosen * inner + shared)

    def mamba1(
        self,
        layers: Sequence[int] | None,
        *,
        inner: int,
        state: int,
        kernel: int,
        rank: int,
        at: str = "mamba.",
        bias: bool = False,
        conv_bias: bool = True,
        norms: bool = False,
    ) -> None:
        self.add(at + "in_proj", STATE, 2 * inner, self.hidden, layers=layers, bias=bias, split=OUTPUTS)
        self.add(at + "conv1d", STATE, inner, kernel, layers=layers, bias=conv_bias, split=OUTPUTS, matrix=False)
        self.add(at + "x_proj", STATE, rank + 2 * state, inner, layers=layers, split=INPUTS)
        self.add(at + "dt_proj", STATE, inner, rank, layers=layers, bias=True, split=OUTPUTS)
        self.add(at + "A_log", STATE, inner, state, layers=layers, split=OUTPUTS, matrix=False)
        self.add(at + "D", STATE, inner, layers=layers, split=OUTPUTS)
        self.add(at + "out_proj", STATE, self.hidden, inner, layers=layers, bias=bias, split=INPUTS)
        if norms:
            self.norm(at + "dt_layernorm", size=rank, layers=layers)
            self.norm(at + "b_layernorm", at + "c_layernorm", size=state, layers=layers)
        shapes = ((inner, kernel - 1), (inner, state))
        self.remember(Memory(RECURRENT, state=shapes, state_types=("auto", "auto"), state_kind="mamba1"), layers)

    def mamba2(
        self,
        layers: Sequence[int] | None,
        *,
        heads: int,
        head_dim: int,
        groups: int,
        state: int,
        kernel: int,
        at: str = "mamba.",
        bias: bool = False,
        out_bias: bool | None = None,
        conv_bias: bool = True,
        norm: bool = True,
        state_type: str = "auto",
        beside: bool = False,
    ) -> None:
        """Mamba 2; `beside` attention in the same layers. The projections have the same biases unless `out_bias` is told."""
        inner, conv = heads * head_dim, heads * head_dim + 2 * groups * state
        self.add(at + "in_proj", STATE, inner + conv + heads, self.hidden, layers=layers, bias=bias, split=OUTPUTS)
        self.add(at + "conv1d", STATE, conv, kernel, layers=layers, bias=conv_bias, split=OUTPUTS, matrix=False)
        for name in ("A_log", "D", "dt_bias"):
            self.add(at + name, STATE, heads, layers=layers, split=OUTPUTS)
        if norm:
            self.add(at + "norm", STATE, inner, layers=layers, split=OUTPUTS)
        self.add(
            at + "out_proj", STATE, self.hidden, inner, layers=layers, bias=bias if out_bias is None else out_bias, split=INPUTS
        )
        shapes = ((conv, kernel - 1), (heads, head_dim, state))
        memory = Memory(RECURRENT, state=shapes, state_types=("auto", state_type), state_kind="mamba2")
        if beside:
            self.beside = memory
        else:
            self.remember(memory, layers)

    def gated_delta(
        self, layers: Sequence[int] | None, *, fused: bool, at: str = "linear_attn.", state_type: str = "auto"
    ) -> None:
        """Gated delta net; `fused` as Qwen3-Next stores its projections, otherwise as Qwen3.5."""
        config = self.config
        key_dim, value_dim = config.integer("linear_key_head_dim"), config.integer("linear_value_head_dim")
        key_heads, value_heads = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
        kernel = config.integer("linear_conv_kernel_dim")
        if value_heads % key_heads:
            raise config.error(
                "linear_num_key_heads", f"{key_heads} does not divide linear_num_value_heads {value_heads}", "a divisor"
            )
        keys, values = key_heads * key_dim, value_heads * value_dim
        if fused:
            sizes = {"in_proj_qkvz": 2 * keys + 2 * values, "in_proj_ba": 2 * value_heads}
        else:
            sizes = {"in_proj_qkv": 2 * keys + values, "in_proj_z": values, "in_proj_b": value_heads, "in_proj_a": value_heads}
        for name, outputs in sizes.items():
            self.add(at + name, STATE, outputs, self.hidden, layers=layers, split=OUTPUTS)
        self.add(at + "conv1d", STATE, 2 * keys + values, kernel, layers=layers, split=OUTPUTS, matrix=False)
        self.add(at + "dt_bias", STATE, value_heads, layers=layers, split=OUTPUTS)
        self.add(at + "A_log", STATE, value_heads, layers=layers, split=OUTPUTS)
        self.norm(at + "norm", size=value_dim, layers=layers)
        self.add(at + "out_proj", STATE, self.hidden, values, layers=layers, split=INPUTS)
        shapes = ((2 * keys + values, kernel - 1), (value_heads, value_dim, key_dim))
        self.remember(Memory(RECURRENT, state=shapes, state_types=("auto", state_type), state_kind="gdn"), layers)

    def kimi_delta(self, layers: Sequence[int] | None, *, heads: int, dim: int, kernel: int, at: str = "self_attn.") -> None:
        """Kimi delta attention: as a gated delta net, with a decay for each channel."""
        size = heads * dim
        for name in ("q", "k", "v"):
            self.add(f"{at}{name}_proj", STATE, size, self.hidden, layers=layers, split=OUTPUTS)
            self.add(f"{at}{name}_conv1d", STATE, size, kernel, layers=layers, split=OUTPUTS, matrix=False)
        for name in ("f", "g"):
            self.add(f"{at}{name}_a_proj", STATE, dim, self.hidden, layers=layers)
            self.add(f"{at}{name}_b_proj", STATE, size, dim, layers=layers, split=OUTPUTS)
        self.add(at + "b_proj", STATE, heads, self.hidden, layers=layers, split=OUTPUTS)
        self.add(at + "A_log", STATE, heads, layers=layers, split=OUTPUTS)
        self.add(at + "dt_bias", STATE, size, layers=layers, split=OUTPUTS)
        self.norm(at + "o_norm", size=dim, layers=layers)
        self.add(at + "o_proj", STATE, self.hidden, size, layers=layers, split=INPUTS)
        shapes = ((3 * size, kernel - 1), (heads, dim, dim))
        self.remember(Memory(RECURRENT, state=shapes, state_types=("auto", "float32"), state_kind="kda"), layers)

    def lightning(self, layers: Sequence[int] | None, *, at: str = "self_attn.") -> None:
        """Lightning attention (MiniMax-Text-01): linear attention with an output gate, every head with its own key and value."""
        if not self.heads:
            self.set_heads()
        size = self.heads * self.head_dim
        self.add(at + "qkv_proj", STATE, 3 * size, self.hidden, layers=layers, split=OUTPUTS)
        self.add(at + "output_gate", STATE, size, self.hidden, layers=layers, split=OUTPUTS)
        self.add(at + "norm", STATE, size, layers=layers, split=OUTPUTS)
        self.add(at + "out_proj", STATE, self.hidden, size, layers=layers, split=INPUTS)
        shapes = ((self.heads, self.head_dim, self.head_dim),)
        self.remember(Memory(RECURRENT, state=shapes, state_types=("auto",), state_kind="lightning"), layers)

    def short_conv(self, layers: Sequence[int] | None, *, kernel: int, bias: bool, at: str = "conv.") -> None:
        self.add(at + "in_proj", STATE, 3 * self.hidden, self.hidden, layers=layers, bias=bias, split=OUTPUTS)
        self.add(at + "conv", STATE, self.hidden, kernel, layers=layers, bias=bias, split=OUTPUTS, matrix=False)
        self.add(at + "out_proj", STATE, self.hidden, self.hidden, layers=layers, bias=bias, split=INPUTS)
        shapes = ((self.hidden, kernel - 1),)
        self.remember(Memory(RECURRENT, state=shapes, state_types=("auto",), state_kind="short_conv"), layers)

    # The end

    def finish(self, top: Config, family: str) -> Architecture:
        layers = tuple(
            Layer(memory, *self.experts.get(number, (0, 0)), beside=self.beside) for number, memory in enumerate(self.memories)
        )
        return Architecture(
            family=family,
            name=class_name(top.values),
            hidden_size=self.hidden,
            vocabulary=self.vocabulary,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.widest,
            max_context=self._max_context(),
            dtype=self._dtype(top),
            layers=layers,
            weights=tuple(self.weights),
            tied=self.tied,
            vision=self.vision,
            draft_layers=self.draft_layers,
            prefix=self.prefix,
            notes=tuple(self.notes),
        )

    def _dtype(self, top: Config) -> str:
        for config in (top, self.config):
            for key in ("dtype", "torch_dtype"):
                value = config.values.get(key)
                if value is None:
                    continue
                name = value[6:] if isinstance(value, str) and value.startswith("torch.") else value
                if name not in DTYPES:
                    raise config.error(key, f"found {_shown(value)}", f"one of {', '.join(DTYPES)}")
                return str(name)
        self.notes.append("no dtype is named: bfloat16 is assumed")
        return "bfloat16"

    def _max_context(self) -> int:
        """Tokens. A scaling of positions counts as vLLM 0.32 counts it (config/model.py, _get_and_verify_max_len)."""
        config = self.config
        self._check_positions()
        told = config.optional("max_position_embeddings")
        if told is None:
            return 0
        scaling = config.get("rope_scaling") or config.get("rope_parameters")
        if not scaling:
            return told
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "longrope" and isinstance(config.get("original_max_position_embeddings"), int):
            self.notes.append(
                f"longrope: vLLM's default length is {config.get('original_max_position_embeddings')} tokens, the most is {told}"
            )
        if kind not in ("linear", "dynamic", "ntk") or "gemma3" in config.text("model_type"):
            return told
        return int(told * (scaling.get("factor") or 1))

    def _check_positions(self) -> None:
        """What scales positions is a mapping of positive numbers, or a mapping of such for each kind of layer."""
        config = self.config
        places: list[tuple[str, Any]] = [("", config.values)]
        for key in ("rope_scaling", "rope_parameters"):
            value = config.get(key)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise config.error(key, f"found {_shown(value)}", "a mapping, or null")
            places.append((f"{key}.", value))
            places += [(f"{key}.{kind}.", inner) for kind, inner in value.items() if isinstance(inner, Mapping)]
        for path, values in places:
            for key in ("factor", "partial_rotary_factor", "original_max_position_embeddings"):
                value = values.get(key)
                if value is None or (key == "factor" and not path):
                    continue
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
                    raise config.error(path + key, f"found {_shown(value)}", "a positive number, or null")


# Names of tensors that hold gate and up projection in one.
FUSED_GATES = ("gate_up_proj", "input_linear")


def class_name(values: Mapping[str, Any]) -> str:
    """The class in architectures, or nothing."""
    named = values.get("architectures")
    return str(named[0]) if isinstance(named, (list, tuple)) and named else ""


# Families and what several of them share

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
MIXTURE = ("experts", "experts_per_token", "moe_intermediate_size")
LATENT = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")


Builder = Callable[["Config"], "Build"]


@dataclass(frozen=True)
class Family:
    build: Builder
    required: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def registering(table: dict[str, Family]) -> Callable[..., Callable[[Builder], Builder]]:
    """A decorator that enters a builder into a table of families, under the values of model_type that it is for."""

    def family(*names: str, needs: Iterable[str] = SIZES) -> Callable[[Builder], Builder]:
        def register(build: Builder) -> Builder:
            for name in names:
                table[name] = Family(build, tuple(needs), DEFAULTS.get(name, {}))
            return build

        return register

    return family


def every(count: int, pattern: int, kind: str = "sliding_attention") -> list[str]:
    """Windows everywhere but in each layer whose number, counted from 1, `pattern` divides; 0: nowhere."""
    return [kind if pattern and (number + 1) % pattern else "full_attention" for number in range(count)]


def dense_first(build: Build, default: int = 0) -> tuple[list[int], list[int]]:
    """Layers with a dense MLP and with experts: by mlp_layer_types, or by first_k_dense_replace."""
    words = build.config.words("mlp_layer_types", build.count, ("dense", "sparse"))
    if words is None:
        first = build.config.integer("first_k_dense_replace", default, least=0)
        step = build.config.integer("moe_layer_freq", 1) if isinstance(build.config.get("moe_layer_freq"), int) else 1
        words = ["sparse" if number >= first and number % step == 0 else "dense" for number in build.every]
    return split(words, "dense")


def stepped(build: Build) -> tuple[list[int], list[int]]:
    """The same of the Qwen families: by decoder_sparse_step and mlp_only_layers."""
    step = build.config.integer("decoder_sparse_step", 1)
    only = set(build.config.integers("mlp_only_layers", build.count) or ())
    return split(["dense" if number in only or (number + 1) % step else "sparse" for number in build.every], "dense")


def split(words: Sequence[str], word: str) -> tuple[list[int], list[int]]:
    """Numbers of the layers with this word, and of the others."""
    return [n for n, found in enumerate(words) if found == word], [n for n, found in enumerate(words) if found != word]


def window_all(build: Build) -> dict[int, tuple[str, int]]:
    """A sliding_window of the config holds for every layer, unless layer_types says for which."""
    if build.config.get("layer_types") is not None:
        return build.windows()
    reach = build.config.optional("sliding_window", least=0)
    return {number: (WINDOW, reach) for number in build.every} if reach else {}


def window_qwen(build: Build) -> dict[int, tuple[str, int]]:
    config = build.config
    if not config.flag("use_sliding_window") or not config.optional("sliding_window", least=0):
        return {}
    first = config.integer("max_window_layers", 28, least=0)
    return build.windows(["sliding_attention" if number >= first else "full_attention" for number in build.every])


def qwen_experts(build: Build, **names: Any) -> None:
    """Dense and sparse layers of the Qwen families; `names` as in ``Build.moe``."""
    config = build.config
    dense, sparse = stepped(build)
    build.mlp(dense)
    shared = config.optional("shared_expert_intermediate_size", least=0) or 0
    qwen_moe(build, sparse, shared, **names)


def qwen_moe(build: Build, layers: Sequence[int] | None, shared: int, **names: Any) -> None:
    build.moe(
        layers,
        inner=build.config.integer("moe_intermediate_size"),
        shared=shared,
        shared_at="shared_expert.",
        shared_gate="shared_expert_gate" if shared else "",
        **names,
    )


def deepseek_experts(build: Build, layers: Sequence[int] | None, correction: bool = True, **names: Any) -> None:
    config = build.config
    inner = config.integer("moe_intermediate_size")
    build.moe(
        layers,
        inner=inner,
        correction="gate.e_score_correction_bias" if correction else "",
        shared=inner * (config.optional("shared_experts", least=0) or 0),
        **names,
    )
