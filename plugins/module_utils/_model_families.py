# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From the config.json of a Hugging Face model to its Architecture, family by family.

A family is a function that reads a ``Config`` and puts blocks together. To add one, write such a function under ``@family`` with
the model_type and the keys that a config must have, and put what the config class of transformers fills in for a missing key into
``_model_defaults``; then count a real config on the meta device and put both into tests/fixtures/configs. Names and shapes are
those of the checkpoints and of transformers 5.24.0; states of recurrent layers are as vLLM 0.32 allocates them
(model_executor/layers/mamba/mamba_utils.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ._model_architecture import (
    DRAFT,
    EMBEDDING,
    MLP,
    NORM,
    OUTPUTS,
    ROUTER,
    VOCABULARY,
    WINDOW,
    Architecture,
    ModelError,
    Weight,
)
from ._model_blocks import (
    ALIASES,
    LATENT,
    MIXTURE,
    SIZES,
    Build,
    Config,
    Family,
    class_name,
    deepseek_experts,
    dense_first,
    every,
    qwen_experts,
    registering,
    split,
    window_all,
    window_qwen,
)
from ._model_families_more import MORE_FAMILIES
from ._model_positions import position_elements
from ._model_vision import TOWERS

FAMILIES: dict[str, Family] = dict(MORE_FAMILIES)
family = registering(FAMILIES)


def architecture(config: Mapping[str, Any], where: str = "config.json") -> Architecture:
    """The Architecture that a Hugging Face config describes; `where` is how errors name it.

    Raises ModelError for a family that is not known, for keys that are missing and for values that contradict each other.
    """
    top = Config(config, where)
    model_type = top.values.get("model_type")
    if model_type is None:
        raise top.error("model_type", "is missing", "the family of the model, for instance llama, qwen3_moe or deepseek_v3")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise top.error("model_type", _unknown(model_type, top.values))
    known = FAMILIES[model_type]
    missing = _missing(top, known)
    if missing:
        raise ModelError(f"{where}: {model_type} needs keys that are missing or null: {missing}; wanted a complete config.json")
    top.defaults = dict(known.defaults)
    return replace(known.build(top).finish(top, model_type), position_elements=position_elements(config))


def _missing(config: Config, known: Family) -> str:
    """All keys that the family needs and the config has under no name."""
    return ", ".join(ALIASES.get(key, (key,))[0] for key in known.required if not config.has(key))


def _unknown(model_type: Any, values: Mapping[str, Any]) -> str:
    text = f"the family {model_type!r} is not known"
    if class_name(values):
        text += f" (its class is {class_name(values)})"
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=3, cutoff=0.5)
    if near:
        text += f"; similar names that are known: {', '.join(near)}"
    return (
        f"{text}; which weights it has cannot be told from a config alone. Give explicit numbers instead: layers, hidden_size, "
        "heads, kv_heads, head_dim, intermediate_size, vocabulary, and parameters as the model card says, with experts and "
        "experts_per_token for a mixture of experts"
    )


# Decoders of one plan: norm, attention, norm, gated MLP


def _llama_like(config: Config, windows: Callable[[Build], dict[int, tuple[str, int]]] | None = None, **attention: Any) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    options = {"bias": bias, "out_bias": bias, **attention}
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(windows=windows(build) if windows else None, **options)
    build.mlp(bias=config.flag("mlp_bias"))
    return build


@family("cwm")
def _cwm(config: Config) -> Build:
    def windows(build: Build) -> dict[int, tuple[str, int]]:
        if not config.optional("sliding_window", least=0):
            return {}
        return build.windows(["sliding_attention" if number % 4 else "full_attention" for number in build.every])

    return _llama_like(config, windows, bias=False, out_bias=False)


@family("llama", "granite", "internlm3")
def _llama(config: Config) -> Build:
    # vLLM's Llama heeds layer_types (model_executor/models/llama.py); checkpoints in this form that have them exist.
    return _llama_like(config, lambda build: build.windows() if config.get("layer_types") else {})


@family("mistral")
@family("ministral", "ministral3")
def _mistral(config: Config) -> Build:
    return _llama_like(config, window_all, bias=False, out_bias=False)


@family("qwen2")
@family("qwen2_vl_text", "qwen2_5_vl_text")
def _qwen2(config: Config) -> Build:
    return _llama_like(config, window_qwen, bias=True, out_bias=False)


@family("mimo")
def _mimo(config: Config) -> Build:
    build = _qwen2(config)
    build.draft_layers = config.integer("num_nextn_predict_layers", 0, least=0)
    with build.draft(build.draft_layers, "model.mtp_layers.0."):
        if build.draft_layers:
            build.norm("input_layernorm", "post_attention_layernorm", "token_layernorm", "hidden_layernorm", "final_layernorm")
            build.add("input_proj", DRAFT, build.hidden, 2 * build.hidden)
            build.attention(bias=True)
            build.mlp()
    return build


@family("qwen3")
@family("qwen3_vl_text")
def _qwen3(config: Config) -> Build:
    return _llama_like(config, window_qwen, qk_norm="head")


@family("seed_oss")
def _seed_oss(config: Config) -> Build:
    return _llama_like(config, out_bias=config.flag("attention_out_bias"))


@family("smollm3")
def _smollm3(config: Config) -> Build:
    def windows(build: Build) -> dict[int, tuple[str, int]]:
        if not config.flag("use_sliding_window") or not config.optional("sliding_window", least=0):
            return {}
        rope = config.integers("no_rope_layers") or _rope_layers(build)
        return build.windows(["full_attention" if rope[number] else "sliding_attention" for number in build.every])

    return _llama_like(config, windows)


def _rope_layers(build: Build) -> list[int]:
    step = build.config.integer("no_rope_layer_interval", 4)
    return [int((number + 1) % step != 0) for number in build.every]


@family("ernie4_5")
def _ernie4_5(config: Config) -> Build:
    bias = config.flag("use_bias")
    build = Build(config)
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(bias=bias, out_bias=bias)
    build.mlp(bias=bias)
    return build


@family("hunyuan_v1_dense")
def _hunyuan(config: Config) -> Build:
    return _llama_like(config, qk_norm="head", qk_names=("query_layernorm", "key_layernorm"))


@family("gemma")
def _gemma(config: Config) -> Build:
    return _llama_like(config)


@family("gemma2")
def _gemma2(config: Config) -> Build:
    return _sandwich(config, lambda build: build.windows(every(build.count, 2)))


@family("gemma3_text")
def _gemma3(config: Config) -> Build:
    pattern = config.integer("sliding_window_pattern", config.integer("_sliding_window_pattern", 6))
    return _sandwich(config, lambda build: build.windows(every(build.count, pattern)), qk_norm="head")


@family("gemma4_text")
def _gemma4(config: Config) -> Build:
    build = Build(config)
    words = config.words("layer_types", build.count, ("full_attention", "sliding_attention")) or every(build.count, 6)
    windows = build.windows(words)
    build.set_heads()
    alike = config.flag("attention_k_eq_v")  # full attention takes its keys as values
    wide, few = config.integer("global_head_dim", 512), config.optional("num_global_key_value_heads") if alike else None
    shared = config.integer("num_kv_shared_layers", 0, least=0)
    if shared > build.count:
        raise config.error("num_kv_shared_layers", f"{shared} is more than num_hidden_layers {build.count}", "at most that")
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    build.norm("layer_scalar", size=1)
    bias = config.flag("attention_bias")
    for keyless in (False, True):
        numbers = [number for number in build.every if (number >= build.count - shared) == keyless]
        full, sliding = split([words[number] for number in numbers], "full_attention")
        options: dict[str, Any] = {"bias": bias, "out_bias": bias, "qk_norm": "head", "keyless": keyless, "windows": windows}
        build.attention([numbers[n] for n in sliding], **options)
        build.attention([numbers[n] for n in full], head_dim=wide, kv_heads=few or 0, valueless=alike, **options)
        inner = config.integer("intermediate_size") * (2 if keyless and config.flag("use_double_wide_mlp") else 1)
        build.mlp(numbers, inner)
    if shared:
        build.notes.append(f"the last {shared} layers read keys and values of earlier layers and keep none")
    if config.flag("enable_moe_block"):  # beside the dense MLP
        inner = config.integer("moe_intermediate_size")
        build.moe(inner=inner, at="", each="experts.", names=("gate_up_proj", "down_proj"), router="router.proj")
        build.add("router.scale", ROUTER, build.hidden)
        build.add("router.per_expert_scale", ROUTER, config.integer("experts"))
        build.norm("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
        build.widest = config.integer("intermediate_size") + config.integer("experts_per_token") * inner
    extra = config.optional("hidden_size_per_layer_input", least=0)
    if extra:  # an embedding of its own for each layer
        rows = config.integer("vocab_size_per_layer_input")
        build.outside(f"{build.stem}.embed_tokens_per_layer", EMBEDDING, rows, extra * build.count, split=VOCABULARY)
        build.outside(f"{build.stem}.per_layer_model_projection", MLP, extra * build.count, build.hidden, matrix=True)
        build.outside(f"{build.stem}.per_layer_projection_norm", NORM, extra)
        build.add("per_layer_input_gate", MLP, extra, build.hidden)
        build.add("per_layer_projection", MLP, build.hidden, extra)
        build.norm("post_per_layer_input_norm")
    return build


def _sandwich(config: Config, windows: Callable[[Build], dict[int, tuple[str, int]]], **attention: Any) -> Build:
    """Norms before and after both halves of a layer."""
    build = _llama_like(config, windows, **attention)
    build.norm("pre_feedforward_layernorm", "post_feedforward_layernorm")
    return build


@family("olmo2", "olmo3")
def _olmo2(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends()
    build.norm("post_attention_layernorm", "post_feedforward_layernorm")
    three = config.text("model_type") == "olmo3"
    windows = build.windows(every(build.count, 4)) if three else None
    build.attention(bias=bias, out_bias=bias, qk_norm="heads", windows=windows)
    build.mlp()
    return build


@family("olmo")
def _olmo(config: Config) -> Build:
    # Its layer norms have no weights.
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends(norm="")
    build.attention(bias=bias, out_bias=bias)
    build.mlp()
    return build


@family("exaone4")
def _exaone4(config: Config) -> Build:
    build = Build(config)
    build.ends()
    build.norm("post_attention_layernorm", "post_feedforward_layernorm")
    windows = {}
    if config.optional("sliding_window", least=0):
        pattern = config.get("sliding_window_pattern")
        if isinstance(pattern, str):  # for instance LLLG: three local layers, one global
            if not pattern or set(pattern) - {"L", "G"}:
                raise config.error(
                    "sliding_window_pattern", f"found {pattern!r}", "a number, or letters L (local) and G (global)"
                )
            types = ["sliding_attention" if pattern[n % len(pattern)] == "L" else "full_attention" for n in build.every]
        else:
            types = every(build.count, config.integer("sliding_window_pattern", 4, least=0))
        windows = build.windows(types)
    build.attention(qk_norm="head", windows=windows)
    build.mlp()
    return build


@family("cohere", "cohere2")
def _cohere(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends()
    build.norm("input_layernorm")
    windows = None
    if config.text("model_type") == "cohere2":
        windows = build.windows(every(build.count, config.integer("sliding_window_pattern", 4)))
    qk_norm = "heads" if config.flag("use_qk_norm") and windows is None else ""
    build.attention(bias=bias, out_bias=bias, qk_norm=qk_norm, windows=windows)
    build.mlp()
    return build


@family("glm", "glm4")
def _glm(config: Config) -> Build:
    build = Build(config)
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    if config.text("model_type") == "glm4":
        build.norm("post_self_attn_layernorm", "post_mlp_layernorm")
    build.attention(bias=config.flag("attention_bias", True))
    build.mlp(names=("gate_up_proj", "down_proj"))
    return build


@family("phi3")
def _phi3(config: Config) -> Build:
    build = Build(config)
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(fused="qkv_proj", windows=window_all(build))
    build.mlp(names=("gate_up_proj", "down_proj"))
    return build


@family("phi")
def _phi(config: Config) -> Build:
    build = Build(config)
    build.ends(norm="final_layernorm", norm_bias=True, head_bias=True)
    build.norm("input_layernorm", bias=True)
    build.attention(
        names=("q_proj", "k_proj", "v_proj", "dense"),
        bias=True,
        out_bias=True,
        qk_norm="head" if config.flag("qk_layernorm") else "",
        qk_names=("q_layernorm", "k_layernorm"),
        qk_bias=True,
    )
    build.mlp(names=("fc1", "fc2"), bias=True)
    return build


@family("stablelm")
def _stablelm(config: Config) -> Build:
    build = Build(config)
    build.ends(norm_bias=True)
    build.norm("input_layernorm", bias=True)
    if not config.flag("use_parallel_residual"):
        build.norm("post_attention_layernorm", bias=True)
    qk_norm = "heads" if config.flag("qk_layernorm") else ""
    build.attention(bias=config.flag("use_qkv_bias"), qk_norm=qk_norm, qk_names=("q_layernorm.norms", "k_layernorm.norms"))
    build.mlp()
    return build


@family("starcoder2")
def _starcoder2(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("use_bias", True)
    build.ends(norm_bias=True)
    build.norm("input_layernorm", "post_attention_layernorm", bias=True)
    build.attention(bias=bias, out_bias=bias, windows=window_all(build))
    build.mlp(names=("c_fc", "c_proj"), bias=bias)
    return build


@family("nemotron")
def _nemotron(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends(norm_bias=True)
    build.norm("input_layernorm", "post_attention_layernorm", bias=True)
    build.attention(bias=bias, out_bias=bias)
    build.mlp(names=("up_proj", "down_proj"), bias=config.flag("mlp_bias"))
    return build


@family("arcee")
def _arcee(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(bias=bias, out_bias=bias)
    build.mlp(names=("up_proj", "down_proj"), bias=config.flag("mlp_bias"))
    return build


@family("internlm2")
def _internlm2(config: Config) -> Build:
    # From the code that comes with the checkpoint; transformers has no class of it.
    build = Build(config, head="output")
    bias = config.flag("bias")
    build.ends(embedding="tok_embeddings")
    build.norm("attention_norm", "ffn_norm")
    build.attention(at="attention.", names=("", "", "", "wo"), fused="wqkv", bias=bias, out_bias=bias)
    build.mlp(at="feed_forward.", names=("w1", "w3", "w2"))
    return build


@family("baichuan")
def _baichuan(config: Config) -> Build:
    # From the code that comes with the checkpoint; transformers has no class of it.
    build = Build(config)
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(fused="W_pack")
    build.mlp()
    return build


# Mixtures of experts


@family("mixtral", needs=(*SIZES, "experts", "experts_per_token"))
def _mixtral(config: Config) -> Build:
    build = Build(config)
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(windows=window_all(build))
    build.moe(inner=config.integer("intermediate_size"), at="block_sparse_moe.", names=("w1", "w3", "w2"))
    return build


@family("phimoe", needs=(*SIZES, "experts", "experts_per_token"))
def _phimoe(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends(norm_bias=True, head_bias=config.flag("lm_head_bias"))
    build.norm("input_layernorm", "post_attention_layernorm", bias=True)
    build.attention(bias=bias, out_bias=bias, windows=window_all(build))
    build.moe(inner=config.integer("intermediate_size"), at="block_sparse_moe.", names=("w1", "w3", "w2"))
    return build


@family("minimax_m2", needs=(*SIZES, "experts", "experts_per_token"))
def _minimax_m2(config: Config) -> Build:
    build = Build(config)
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(qk_norm="heads")
    build.moe(
        inner=config.integer("intermediate_size"),
        at="block_sparse_moe.",
        names=("w1", "w3", "w2"),
        correction="e_score_correction_bias",
    )
    return build


@family("olmoe", needs=(*SIZES, "experts", "experts_per_token"))
def _olmoe(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(bias=bias, out_bias=bias, qk_norm="heads")
    build.moe(inner=config.integer("intermediate_size"))
    return build


@family("qwen2_moe", needs=(*SIZES, *MIXTURE, "shared_expert_intermediate_size"))
def _qwen2_moe(config: Config) -> Build:
    build = Build(config)
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(bias=config.flag("qkv_bias", True), windows=window_qwen(build))
    qwen_experts(build)
    return build


@family("qwen3_moe", needs=(*SIZES, *MIXTURE))
@family("qwen3_vl_moe_text")
def _qwen3_moe(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    windows = None
    if config.flag("use_sliding_window"):
        # The class has no max_window_layers of its own: a window holds for every layer.
        windows = window_all(build)
    build.attention(bias=bias, out_bias=bias, qk_norm="head", windows=windows)
    if config.text("model_type") == "qwen3_vl_moe_text":
        # Its checkpoint has one tensor for all experts of a layer.
        qwen_experts(build, each="experts.", names=("gate_up_proj", "down_proj"))
    else:
        qwen_experts(build)
    return build


@family("gpt_oss", needs=(*SIZES, "experts", "experts_per_token"))
def _gpt_oss(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias", True)
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(bias=bias, out_bias=bias, sinks=True, windows=build.windows(every(build.count, 2)))
    # The checkpoint has one tensor for all experts of a layer.
    build.moe(
        inner=config.integer("intermediate_size"),
        each="experts.",
        names=("gate_up_proj", "down_proj"),
        bias=True,
        router="router",
        router_bias=True,
    )
    return build


@family("llama4_text")
def _llama4(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    windows = {}
    if config.optional("attention_chunk_size", least=0):
        rope = config.integers("no_rope_layers") or _rope_layers(build)
        if len(rope) != build.count:
            raise config.error("no_rope_layers", f"has {len(rope)} entries", f"{build.count}, one for each of num_hidden_layers")
        windows = build.windows(["chunked_attention" if each else "full_attention" for each in rope])
    build.attention(bias=bias, out_bias=bias, windows=windows)
    sparse = config.integers("moe_layers", build.count)
    if sparse is None:
        step = config.integer("interleave_moe_layer_step", 1)
        sparse = list(range(step - 1, build.count, step))
    build.mlp([n for n in build.every if n not in sparse], config.integer("intermediate_size_mlp"), at="feed_forward.")
    inner = config.integer("intermediate_size")
    build.moe(
        sorted(sparse),
        inner=inner,
        at="feed_forward.",
        each="experts.",
        names=("gate_up_proj", "down_proj"),
        router="router",
        shared=inner,
        shared_at="shared_expert.",
    )
    return build


@family("dbrx", needs=("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "ffn_config", "attn_config"))
def _dbrx(config: Config) -> Build:
    build = Build(config, stem="transformer", layers="blocks")
    attention = config.sub("attn_config", {"kv_n_heads": 1})
    experts = config.sub("ffn_config", {"intermediate_size": 3584, "experts": 4, "experts_per_token": 1})
    config.defaults["num_key_value_heads"] = attention.integer("kv_n_heads")
    build.ends(embedding="wte", norm="norm_f")
    build.norm("norm_attn_norm.norm_1", "norm_attn_norm.norm_2")
    build.attention(at="norm_attn_norm.attn.", names=("", "", "", "out_proj"), fused="Wqkv")
    build.config = experts
    build.moe(
        inner=experts.integer("intermediate_size"),
        at="ffn.",
        each="experts.mlp.",
        names=("w1", "v1", "w2"),
        router="router.layer",
    )
    build.config = config
    return build


@family("ernie4_5_moe", needs=(*SIZES, *MIXTURE))
def _ernie4_5_moe(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("use_bias")
    build.ends(head_bias=bias)
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(bias=bias, out_bias=bias)
    first, step = config.integer("moe_layer_start_index", 1, least=0), config.integer("moe_layer_interval", 1)
    last = config.get("moe_layer_end_index")
    last = build.count - 1 if last in (None, -1) else config.integer("moe_layer_end_index")
    dense, sparse = split(["sparse" if first <= n <= last and (n + 1) % step == 0 else "dense" for n in build.every], "dense")
    build.mlp(dense, bias=bias)
    inner = config.integer("moe_intermediate_size")
    build.moe(
        sparse,
        inner=inner,
        correction="moe_statics.e_score_correction_bias",
        shared=inner * (config.optional("shared_experts", least=0) or 0),
        shared_bias=bias,
    )
    return build


# Sigmoid routers with a correction: DeepSeek and those after it


def _deepseek_draft(build: Build, layer: Callable[[], None], default: int = 0) -> None:
    """Layers for multi-token prediction as in DeepSeek-V3: numbered on, with a copy of embedding and head each."""
    times = build.draft_layers = build.config.integer("num_nextn_predict_layers", default, least=0)
    if not times:
        return
    with build.draft(times, f"{build.prefix}.{build.count}."):
        build.add("embed_tokens", DRAFT, build.vocabulary, build.hidden, split=VOCABULARY, matrix=False)
        build.norm("enorm", "hnorm", "shared_head.norm")
        build.add("eh_proj", DRAFT, build.hidden, 2 * build.hidden)
        build.add("shared_head.head", DRAFT, build.vocabulary, build.hidden, split=VOCABULARY)
        build.norm("input_layernorm", "post_attention_layernorm")
        layer()


@family("deepseek_v3", "kimi_k2", needs=(*SIZES, *MIXTURE, *LATENT))
@family("deepseek_v2", needs=(*SIZES, *LATENT, *MIXTURE))
@family("deepseek_v32", needs=(*SIZES, *MIXTURE, *LATENT, "index_n_heads", "index_head_dim"))
@family("glm_moe_dsa", needs=(*SIZES, *MIXTURE, *LATENT, "index_n_heads", "index_head_dim"))
@family("glm4_moe_lite", needs=(*SIZES, *MIXTURE, *LATENT))
def _deepseek(config: Config) -> Build:
    build = Build(config)
    kind = config.text("model_type")
    bias, index = config.flag("attention_bias"), kind in ("deepseek_v32", "glm_moe_dsa")
    correction = kind != "deepseek_v2"
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    if kind == "glm_moe_dsa":
        # Some layers take what the indexer of the layer before chose.
        own, others = split(_indexers(build), "full")
        build.mla(own, bias=bias, index=True)
        build.mla(others, bias=bias)
    else:
        build.mla(bias=bias, index=index)
    dense, sparse = dense_first(build)
    build.mlp(dense)
    deepseek_experts(build, sparse, correction)

    def layer() -> None:
        build.mla(bias=bias, index=index)
        deepseek_experts(build, None, correction)

    _deepseek_draft(build, layer)
    return build


def _indexers(build: Build) -> list[str]:
    config = build.config
    words = config.words("indexer_types", build.count, ("full", "shared"))
    if words is not None:
        return words
    pattern = config.get("index_topk_pattern")
    if isinstance(pattern, str):
        if len(pattern) != build.count or set(pattern) - {"F", "S"}:
            raise config.error("index_topk_pattern", f"found {pattern!r}", f"{build.count} letters F (full) or S (shared)")
        return ["full" if letter == "F" else "shared" for letter in pattern]
    step, offset = config.integer("index_topk_freq", 1), config.integer("index_skip_topk_offset", 2, least=0)
    return ["full" if max(number - offset + 1, 0) % step == 0 else "shared" for number in build.every]


@family("glm4_moe", needs=(*SIZES, *MIXTURE))
@family("dots1", needs=(*SIZES, *MIXTURE))
def _glm4_moe(config: Config) -> Build:
    build = Build(config)
    bias, dots = config.flag("attention_bias"), config.text("model_type") == "dots1"
    options: dict[str, Any] = {
        "bias": bias,
        "out_bias": bias and dots,
        "qk_norm": "head" if dots or config.flag("use_qk_norm") else "",
    }
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(windows=build.windows() if dots and config.get("layer_types") else None, **options)
    dense, sparse = dense_first(build)
    build.mlp(dense)
    deepseek_experts(build, sparse)

    def layer() -> None:
        build.attention(**options)
        deepseek_experts(build, None)

    if not dots:
        _deepseek_draft(build, layer)
    return build


# Text models with a vision tower


def _text(config: Config, default: str, stem: str, head: str = "lm_head") -> Build:
    """The text model of a config that nests it, or that has its keys beside the vision tower's."""
    nested = config.values.get("text_config")
    if nested:
        text = config.sub("text_config")
        kind = text.text("model_type", default)
        if kind not in FAMILIES:
            raise text.error("model_type", _unknown(kind, config.values))
    else:
        kind = default
        missing = _missing(config, FAMILIES[kind])
        if missing:
            raise ModelError(f"{config.where}: neither text_config nor these keys: {missing}; wanted one or the other")
        text = Config({**config.values, "model_type": kind}, config.where, config.path)
    text.defaults = dict(FAMILIES[kind].defaults)
    if "tie_word_embeddings" in config.values:
        text.defaults["tie_word_embeddings"] = config.values["tie_word_embeddings"]
    text.stem, text.head = stem, head
    return FAMILIES[kind].build(text)


def _with_tower(model_type: str, text: str, stem: str, tower: str, head: str = "lm_head", needed: bool = True) -> None:
    """Registers a family with a tower; `needed` where its config class fills in a tower that the config leaves out."""

    @family(model_type, needs=())
    def build(config: Config) -> Build:
        found = _text(config, text, stem, head)
        if config.values.get("vision_config") is not None or needed:
            TOWERS[tower](found, config, config.sub("vision_config"))
        return found


_with_tower("qwen2_vl", "qwen2_vl_text", "model", "qwen2_vl")
_with_tower("qwen2_5_vl", "qwen2_5_vl_text", "model", "qwen2_5_vl")
_with_tower("qwen3_vl", "qwen3_vl_text", "model.language_model", "qwen3_vl")
_with_tower("qwen3_vl_moe", "qwen3_vl_moe_text", "model.language_model", "qwen3_vl")
_with_tower("qwen3_5", "qwen3_5_text", "model.language_model", "qwen3_vl")
_with_tower("qwen3_5_moe", "qwen3_5_moe_text", "model.language_model", "qwen3_vl")
_with_tower("gemma3", "gemma3_text", "language_model.model", "gemma3")
_with_tower("gemma4", "gemma4_text", "model.language_model", "gemma4", needed=False)
_with_tower("kimi_vl", "deepseek_v3", "language_model.model", "kimi", "language_model.lm_head")
_with_tower("kimi_k25", "deepseek_v3", "language_model.model", "kimi", "language_model.lm_head")
_with_tower("mistral3", "mistral", "language_model.model", "mistral3", "language_model.lm_head")
_with_tower("llama4", "llama4_text", "language_model.model", "llama4", "language_model.lm_head")


@family("mllama", needs=())
def _mllama(config: Config) -> Build:
    raise config.error(
        "model_type",
        "mllama has layers with cross-attention to the image, whose memory does not grow with the tokens of a request as that of "
        "other layers does; that is not modelled",
        "explicit numbers, or another model",
    )


# Explicit numbers


EXPLICIT = {
    "required": ("layers", "hidden_size", "heads", "intermediate_size", "vocabulary"),
    "numbers": (
        "parameters",
        "layers",
        "hidden_size",
        "heads",
        "kv_heads",
        "head_dim",
        "intermediate_size",
        "vocabulary",
        "experts",
        "experts_per_token",
        "expert_intermediate_size",
        "shared_expert_intermediate_size",
        "window",
        "windowed_layers",
        "max_context",
    ),
    "others": ("tied", "dtype"),
}
# How far below the counted weights a given number of parameters may be: model cards round.
ROUNDING = 0.02


def explicit(numbers: Mapping[str, Any], where: str = "explicit numbers") -> Architecture:
    """A generic gated decoder from numbers that an operator gives, closed to `parameters` where that is given.

    Keys are those of EXPLICIT. Raises ModelError for a key that is missing, unknown or not a number, and where `parameters` is
    more than 2 % below what the other numbers alone come to.
    """
    given = Config(numbers, where)
    known = (*EXPLICIT["numbers"], *EXPLICIT["others"])
    strange = sorted(str(key) for key in given.values if key not in known)
    if strange:
        raise ModelError(f"{where}: unknown keys: {', '.join(strange)}; wanted some of {', '.join(known)}")
    mixture = given.values.get("experts") is not None
    required = [key for key in EXPLICIT["required"] if not (mixture and key == "intermediate_size")]
    if mixture:
        required += ["experts_per_token", "expert_intermediate_size"]
    missing = [key for key in required if given.values.get(key) is None]
    if missing:
        raise ModelError(f"{where}: missing: {', '.join(missing)}; wanted at least {', '.join(required)}")
    zero = ("window", "windowed_layers", "shared_expert_intermediate_size", "max_context")
    values = {
        key: given.check(key, given.values[key], 0 if key in zero else 1)
        for key in EXPLICIT["numbers"]
        if given.values.get(key) is not None
    }
    words = {
        "hidden_size": values["hidden_size"],
        "num_hidden_layers": values["layers"],
        "num_attention_heads": values["heads"],
        "num_key_value_heads": values.get("kv_heads"),
        "head_dim": values.get("head_dim"),
        "vocab_size": values["vocabulary"],
        "max_position_embeddings": values.get("max_context") or None,
        "num_experts": values.get("experts"),
        "num_experts_per_tok": values.get("experts_per_token"),
        "tie_word_embeddings": given.flag("tied"),
        "dtype": given.text("dtype") or None,
    }
    config = Config(words, where)
    config.shown = {
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "num_experts": "experts",
        "num_experts_per_tok": "experts_per_token",
    }
    build = Build(config)
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    window, windowed = values.get("window", 0), values.get("windowed_layers")
    if windowed is not None and windowed > build.count:
        raise given.error("windowed_layers", f"{windowed} is more than layers {build.count}", "at most that")
    if windowed and not window:
        raise given.error("windowed_layers", f"{windowed} layers of a window, but there is no window", "window in tokens")
    several = build.count if windowed is None else windowed
    build.attention(windows={number: (WINDOW, window) for number in range(several)} if window else None)
    if mixture:
        build.moe(
            inner=values["expert_intermediate_size"],
            shared=values.get("shared_expert_intermediate_size", 0),
            shared_at="shared_expert.",
        )
    else:
        build.mlp(inner=values["intermediate_size"])
    build.notes.append("counted from explicit numbers as a generic gated decoder, not from a config of the model")
    found = build.finish(config, "explicit")
    if "parameters" not in values:
        return found
    return _closed(found, values["parameters"], given)


def _closed(found: Architecture, wanted: int, given: Config) -> Architecture:
    """The same with as many parameters as wanted: a weight of its own for what is missing, the others scaled for what is over."""
    counted = found.parameters()
    rest = wanted - counted
    if rest < -ROUNDING * wanted:
        raise given.error(
            "parameters",
            f"{wanted} is {-100 * rest / wanted:.1f} % less than the {counted} that the other numbers come to",
            f"numbers that agree within {100 * ROUNDING:.0f} %",
        )
    if rest < 0:
        note = f"the numbers come to {counted} parameters, {-rest} more than the {wanted} given; the counted ones are used"
        return replace(found, notes=(*found.notes, note))
    if not rest:
        return found
    # Alike in all layers, and divided among GPUs as most weights are; what is left over is no more than a number for each layer.
    layers = tuple(range(len(found.layers)))
    each, last = divmod(rest, len(layers))
    unnamed = [Weight("unnamed", MLP, each, layers=layers, split=OUTPUTS, matrix=False)] if each else []
    if last:
        unnamed.append(Weight("unnamed", MLP, last, matrix=False))
    note = f"{rest} of {wanted} parameters belong to no weight that the numbers describe; they are spread over the layers"
    return replace(found, weights=(*found.weights, *unnamed), notes=(*found.notes, note))
