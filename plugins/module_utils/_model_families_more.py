# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Families of another build than the decoders of ``_model_families``: hybrids that keep states, and older decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._model_architecture import (
    DRAFT,
    EMBEDDING,
    HEAD,
    MLP,
    NORM,
    ROUTER,
    SHARED_EXPERT,
    VOCABULARY,
)
from ._model_blocks import (
    LATENT,
    MIXTURE,
    SIZES,
    Build,
    Config,
    Family,
    deepseek_experts,
    dense_first,
    every,
    qwen_moe,
    registering,
    split,
    stepped,
)

MORE_FAMILIES: dict[str, Family] = {}
family = registering(MORE_FAMILIES)


# Older decoders with learned positions, layer norms with biases, or attention and MLP side by side


def _old_sizes(*more: str) -> tuple[str, ...]:
    return ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", *more)


@family("gpt2", "gpt_bigcode", needs=_old_sizes("max_position_embeddings"))
def _gpt2(config: Config) -> Build:
    build = Build(config, stem="transformer", layers="h")
    positions = config.integer("max_position_embeddings")
    build.ends(embedding="wte", norm="ln_f", norm_bias=True, positions=positions, position_name="wpe")
    build.norm("ln_1", "ln_2", bias=True)
    build.set_heads()
    if config.text("model_type") == "gpt_bigcode" and config.flag("multi_query", True):
        build.kv_heads = 1
    build.attention(at="attn.", names=("", "", "", "c_proj"), fused="c_attn", bias=True, out_bias=True)
    build.mlp(inner=config.optional("intermediate_size") or 4 * build.hidden, names=("c_fc", "c_proj"), bias=True)
    return build


@family("gptj", needs=_old_sizes())
def _gptj(config: Config) -> Build:
    build = Build(config, stem="transformer", layers="h")
    build.ends(embedding="wte", norm="ln_f", norm_bias=True, head_bias=True)
    build.norm("ln_1", bias=True)
    build.attention(at="attn.", names=("q_proj", "k_proj", "v_proj", "out_proj"))
    build.mlp(inner=config.optional("intermediate_size") or 4 * build.hidden, names=("fc_in", "fc_out"), bias=True)
    return build


@family("gpt_neox")
def _gpt_neox(config: Config) -> Build:
    build = Build(config, stem="gpt_neox", head="embed_out")
    bias = config.flag("attention_bias", True)
    build.ends(embedding="embed_in", norm="final_layer_norm", norm_bias=True)
    build.norm("input_layernorm", "post_attention_layernorm", bias=True)
    build.attention(at="attention.", names=("", "", "", "dense"), fused="query_key_value", bias=bias, out_bias=bias)
    build.mlp(names=("dense_h_to_4h", "dense_4h_to_h"), bias=True)
    return build


@family("opt", needs=(*SIZES, "max_position_embeddings"))
def _opt(config: Config) -> Build:
    build = Build(config, stem="model.decoder")
    bias, affine = config.flag("enable_bias", True), config.flag("layer_norm_elementwise_affine", True)
    width = config.integer("word_embed_proj_dim", build.hidden)
    build.outside("model.decoder.embed_tokens", EMBEDDING, build.vocabulary, width, split=VOCABULARY)
    # Two rows more than positions: the table is read with an offset.
    build.outside("model.decoder.embed_positions", EMBEDDING, config.integer("max_position_embeddings") + 2, build.hidden)
    if width != build.hidden:
        build.outside("model.decoder.project_in", EMBEDDING, build.hidden, width, matrix=True)
        build.outside("model.decoder.project_out", HEAD, width, build.hidden, end="last")
    if affine and config.flag("do_layer_norm_before", True) and not config.flag("_remove_final_layer_norm"):
        build.outside("model.decoder.final_layer_norm", NORM, build.hidden, bias=True, end="last")
    if not build.tied:
        build.outside("lm_head", HEAD, build.vocabulary, width, split=VOCABULARY, end="last")
    if affine:
        build.norm("self_attn_layer_norm", "final_layer_norm", bias=True)
    build.attention(names=("q_proj", "k_proj", "v_proj", "out_proj"), bias=bias, out_bias=bias)
    build.mlp(at="", names=("fc1", "fc2"), bias=bias)
    return build


@family("bloom", needs=_old_sizes())
def _bloom(config: Config) -> Build:
    build = Build(config, stem="transformer", layers="h")
    build.ends(embedding="word_embeddings", norm="ln_f", norm_bias=True)
    build.outside("transformer.word_embeddings_layernorm", NORM, build.hidden, bias=True)
    build.norm("input_layernorm", "post_attention_layernorm", bias=True)
    build.attention(at="self_attention.", names=("", "", "", "dense"), fused="query_key_value", bias=True, out_bias=True)
    build.mlp(inner=4 * build.hidden, names=("dense_h_to_4h", "dense_4h_to_h"), bias=True)
    return build


@family("mpt", needs=_old_sizes())
def _mpt(config: Config) -> Build:
    build = Build(config, stem="transformer", layers="blocks")
    attention = config.sub("attn_config", {"alibi": True})
    if not config.flag("no_bias", True) or attention.flag("qk_ln") or not attention.flag("alibi", True):
        raise config.error(
            "no_bias, attn_config",
            "biases, qk_ln and learned positions of MPT are not modelled",
            "no_bias, alibi and no qk_ln, or explicit numbers",
        )
    build.ends(embedding="wte", norm="norm_f")
    build.norm("norm_1", "norm_2")
    build.set_heads()
    build.kv_heads = attention.optional("kv_n_heads") or build.heads
    build.attention(at="attn.", names=("", "", "", "out_proj"), fused="Wqkv")
    build.mlp(inner=config.integer("expansion_ratio", 4) * build.hidden, at="ffn.", names=("up_proj", "down_proj"))
    return build


@family("falcon", "RefinedWeb", "RefinedWebModel", needs=_old_sizes())
def _falcon(config: Config) -> Build:
    build = Build(config, stem="transformer", layers="h")
    # RefinedWeb and RefinedWebModel are what the first checkpoints of 40 and 7 thousand million parameters call themselves.
    bias, new = config.flag("bias"), config.flag("new_decoder_architecture", config.text("model_type") == "RefinedWeb")
    parallel = config.flag("parallel_attn", True)
    build.set_heads()
    if not new:
        build.kv_heads = 1 if config.flag("multi_query", True) else build.heads
    build.ends(embedding="word_embeddings", norm="ln_f", norm_bias=True)
    norms = config.optional("num_ln_in_parallel_attn") or (2 if new else 1)
    if new and norms == 2:
        build.norm("ln_attn", "ln_mlp", bias=True)
    else:
        build.norm("input_layernorm", bias=True)
        if not parallel:
            build.norm("post_attention_layernorm", bias=True)
    build.attention(at="self_attention.", names=("", "", "", "dense"), fused="query_key_value", bias=bias, out_bias=bias)
    inner = config.optional("intermediate_size") or 4 * build.hidden
    build.mlp(inner=inner, names=("dense_h_to_4h", "dense_4h_to_h"), bias=bias)
    return build


@family("granitemoe", "granitemoeshared", needs=(*SIZES, "experts", "experts_per_token"))
def _granitemoe(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(bias=bias, out_bias=bias)
    _granite_experts(build)
    return build


def _granite_experts(build: Build) -> None:
    """One tensor for all experts of a layer, and a shared MLP beside them (alone where there are no experts)."""
    config = build.config
    experts = config.optional("experts", least=0) or 0
    shared = config.optional("shared_intermediate_size", least=0) or 0
    names = ("input_linear", "output_linear")
    if experts:
        build.moe(
            inner=config.integer("intermediate_size"),
            at="block_sparse_moe.",
            each="",
            names=names,
            router="router.layer",
            shared=0,
        )
        build.widest += shared
    if shared:
        build.mlp(inner=shared, at="shared_mlp.", names=names, part=SHARED_EXPERT if experts else MLP)


# Hybrids: layers with a state beside layers with attention


@family("qwen3_next", needs=(*SIZES, *MIXTURE))
@family("qwen3_5_text")
@family("qwen3_5_moe_text")
def _qwen3_next(config: Config) -> Build:
    build = Build(config)
    kind = config.text("model_type", "qwen3_5_text")
    bias = config.flag("attention_bias")
    words = config.words("layer_types", build.count, ("full_attention", "linear_attention"))
    if words is None:
        words = every(build.count, config.integer("full_attention_interval", 4), "linear_attention")
    full, linear = split(words, "full_attention")
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(full, bias=bias, out_bias=bias, qk_norm="head", gated=True)
    # vLLM takes the type of the state from mamba_ssm_dtype of Qwen3.5 (model_executor/models/config.py).
    state = config.text("mamba_ssm_dtype", "auto")
    build.gated_delta(linear, fused=kind == "qwen3_next", state_type="float32" if state == "float32" else "auto")
    shared = config.optional("shared_expert_intermediate_size", least=0) or 0
    if kind == "qwen3_5_text":
        build.mlp()
    else:
        dense, sparse = stepped(build)
        build.mlp(dense)
        qwen_moe(build, sparse, shared)
    _qwen_draft(build, kind, bias, shared)
    return build


def _qwen_draft(build: Build, kind: str, bias: bool, shared: int) -> None:
    config = build.config
    if kind == "qwen3_next":
        times = config.integer("num_nextn_predict_layers", 1, least=0)
        if not config.has("num_nextn_predict_layers"):
            build.notes.append("the config does not name layers for multi-token prediction: the one of Qwen3-Next is counted")
    else:
        times = config.integer("mtp_num_hidden_layers", 0, least=0)
    build.draft_layers = times
    if not times:
        return
    with build.draft(1, "mtp."):
        build.add("fc", DRAFT, build.hidden, 2 * build.hidden)
        build.norm("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    with build.draft(times, "mtp.layers.0."):
        build.norm("input_layernorm", "post_attention_layernorm")
        build.attention(bias=bias, out_bias=bias, qk_norm="head", gated=True)
        if kind == "qwen3_5_text":
            build.mlp()
        else:
            qwen_moe(build, None, shared)


@family("kimi_linear", needs=(*SIZES, *MIXTURE, *LATENT))
def _kimi_linear(config: Config) -> Build:
    build = Build(config)
    linear = config.sub("linear_attn_config", {"head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4})
    words = config.words("layer_types", build.count, ("full_attention", "linear_attention"))
    if words is None:
        full = linear.integers("full_attn_layers", build.count + 1)
        delta = linear.integers("kda_layers", build.count + 1)
        if full is None or delta is None:
            words = ["full_attention" if number and number % 4 == 0 else "linear_attention" for number in build.every]
        else:  # counted from 1
            if sorted(full + delta) != [number + 1 for number in build.every]:
                raise linear.error(
                    "full_attn_layers, kda_layers", "do not name each layer once", f"the numbers 1 to {build.count}"
                )
            words = ["full_attention" if number + 1 in full else "linear_attention" for number in build.every]
    attention, states = split(words, "full_attention")
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.mla(attention)
    build.kimi_delta(
        states,
        heads=config.integer("linear_num_heads", linear.integer("num_heads")),
        dim=config.integer("linear_head_dim", linear.integer("head_dim")),
        kernel=config.integer("linear_conv_kernel_dim", linear.integer("short_conv_kernel_size")),
    )
    dense, sparse = dense_first(build)
    build.mlp(dense)
    deepseek_experts(build, sparse, at="block_sparse_moe.", names=("w1", "w3", "w2"))
    return build


@family("minimax", "minimax_text_01", "minimax_m1", needs=(*SIZES, "experts", "experts_per_token"))
def _minimax(config: Config) -> Build:
    build = Build(config)
    words = config.words("layer_types", build.count, ("full_attention", "linear_attention"))
    listed = config.integers("attn_type_list")
    if words is None and listed is not None:
        if len(listed) != build.count or set(listed) - {0, 1}:
            raise config.error("attn_type_list", f"has {len(listed)} entries", f"{build.count} of 0 (lightning) or 1 (softmax)")
        words = ["full_attention" if each else "linear_attention" for each in listed]
    if words is None:
        words = ["full_attention" if number % 2 == 0 else "linear_attention" for number in build.every]
    full, linear = split(words, "full_attention")
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.attention(full)
    build.lightning(linear)
    if config.optional("shared_intermediate_size", least=0):
        raise config.error("shared_intermediate_size", "a shared MLP of MiniMax is not modelled", "0, or explicit numbers")
    build.moe(inner=config.integer("intermediate_size"), at="block_sparse_moe.", names=("w1", "w3", "w2"))
    return build


@family("granitemoehybrid", needs=SIZES)
def _granitemoehybrid(config: Config) -> Build:
    build = Build(config)
    bias = config.flag("attention_bias")
    words = config.words("layer_types", build.count, ("attention", "full_attention", "mamba", "linear_attention"))
    mamba, full = split(
        ["mamba" if word in ("mamba", "linear_attention") else "full" for word in words or ["mamba"] * build.count], "mamba"
    )
    build.ends()
    build.norm("input_layernorm", "post_attention_layernorm")
    build.set_heads()
    if full:
        build.attention(full, bias=bias, out_bias=bias)
    _mamba2(build, mamba)
    _granite_experts(build)
    return build


def _mamba2(build: Build, layers: Sequence[int] | None, inner: int = 0, **options: Any) -> None:
    """Mamba 2 by the keys of Granite and Falcon-H1."""
    config = build.config
    heads = config.integer("mamba_n_heads")
    inner = inner or config.integer("mamba_expand") * build.hidden
    dim = inner // heads if config.get("mamba_d_head") == "auto" else config.integer("mamba_d_head")
    if heads * dim != inner:
        raise config.error(
            "mamba_n_heads", f"{heads} heads of mamba_d_head {dim} are not the inner size {inner}", "heads that fill it"
        )
    build.mamba2(
        layers,
        heads=heads,
        head_dim=dim,
        groups=config.integer("mamba_n_groups"),
        state=config.integer("mamba_d_state"),
        kernel=config.integer("mamba_d_conv"),
        bias=config.flag("mamba_proj_bias"),
        conv_bias=config.flag("mamba_conv_bias", True),
        **options,
    )


@family("falcon_h1", needs=SIZES)
def _falcon_h1(config: Config) -> Build:
    # Every layer has attention and a Mamba 2 mixer side by side: it remembers both.
    build = Build(config)
    bias = config.flag("attention_bias")
    build.ends(norm="final_layernorm")
    build.norm("input_layernorm", "pre_ff_layernorm")
    build.attention(bias=bias, out_bias=bias)
    inner = config.optional("mamba_d_ssm") or config.integer("mamba_expand") * build.hidden
    _mamba2(build, None, inner, norm=config.flag("mamba_rms_norm"), out_bias=config.flag("projectors_bias"), beside=True)
    build.mlp(at="feed_forward.", bias=config.flag("mlp_bias"))
    build.notes.append("each layer keeps keys and values for each token and a state of Mamba 2")
    return build


@family("jamba", needs=(*SIZES, "experts", "experts_per_token"))
def _jamba(config: Config) -> Build:
    build = Build(config)

    def periodic(name: str) -> list[int]:
        period, offset = config.integer(f"{name}_layer_period"), config.integer(f"{name}_layer_offset", least=0)
        if offset >= period:
            raise config.error(
                f"{name}_layer_offset", f"{offset} is not below {name}_layer_period {period}", "an offset below it"
            )
        return [number for number in build.every if number % period == offset]

    full, sparse = periodic("attn"), periodic("expert")
    if config.integer("experts") == 1:  # an expert that is alone needs no router
        sparse = []
    build.ends(norm="final_layernorm")
    build.norm("input_layernorm", "pre_ff_layernorm")
    build.set_heads()
    build.attention(full)
    rank = -(-build.hidden // 16) if config.get("mamba_dt_rank") == "auto" else config.integer("mamba_dt_rank")
    build.mamba1(
        [number for number in build.every if number not in full],
        inner=config.integer("mamba_expand") * build.hidden,
        state=config.integer("mamba_d_state"),
        kernel=config.integer("mamba_d_conv"),
        rank=rank,
        bias=config.flag("mamba_proj_bias"),
        conv_bias=config.flag("mamba_conv_bias", True),
        norms=True,
    )
    build.mlp([number for number in build.every if number not in sparse], at="feed_forward.")
    if sparse:
        build.moe(sparse, inner=config.integer("intermediate_size"), at="feed_forward.", router="router")
    return build


NEMOTRON_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
NEMOTRON_WORDS = {
    "linear_attention": "mamba",
    "mamba": "mamba",
    "full_attention": "attention",
    "attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
}


@family("nemotron_h", needs=("hidden_size", "num_attention_heads", "vocab_size"))
def _nemotron_h(config: Config) -> Build:
    pattern = config.text("hybrid_override_pattern")
    listed = config.get("layers_block_type") or config.get("layer_types")
    unknown = set(pattern) - set(NEMOTRON_LETTERS)
    if unknown:
        raise config.error(
            "hybrid_override_pattern", f"has {''.join(sorted(unknown))}", f"letters of {''.join(NEMOTRON_LETTERS)}"
        )
    if not pattern and not isinstance(listed, (list, tuple)):
        raise config.error("hybrid_override_pattern", "is missing", "a letter for each layer, or layers_block_type")
    if pattern:
        words = [NEMOTRON_LETTERS[letter] for letter in pattern]
    else:
        key = "layers_block_type" if config.get("layers_block_type") else "layer_types"
        words = [NEMOTRON_WORDS[word] for word in config.words(key, len(listed), NEMOTRON_WORDS) or ()]
    config.defaults["num_hidden_layers"] = len(words)
    build = Build(config, stem="backbone")
    if build.count != len(words):
        raise config.error("num_hidden_layers", f"found {build.count}, but the pattern has {len(words)} layers", "the same")
    layers = {kind: [n for n, word in enumerate(words) if word == kind] for kind in NEMOTRON_LETTERS.values()}
    build.ends(embedding="embeddings", norm="norm_f")
    build.norm("norm")
    build.set_heads()
    build.head_dim = config.optional("attention_head_dim") or build.head_dim
    mlp_bias = config.flag("mlp_bias")
    # Both transformers and vLLM build its attention without biases, whatever attention_bias says.
    build.attention(layers["attention"], at="mixer.")
    if layers["mamba"]:
        build.mamba2(
            layers["mamba"],
            heads=config.integer("mamba_num_heads"),
            head_dim=config.integer("mamba_head_dim"),
            groups=config.integer("n_groups"),
            state=config.integer("ssm_state_size"),
            kernel=config.integer("conv_kernel"),
            at="mixer.",
            bias=config.flag("use_bias"),
            conv_bias=config.flag("use_conv_bias", True),
            # vLLM: mamba_ssm_cache_dtype of the config, float32 where it does not say (model_executor/models/config.py).
            state_type="auto"
            if config.text("mamba_ssm_cache_dtype", "float32") in ("auto", "bfloat16", "float16")
            else "float32",
        )
    if layers["mlp"]:
        build.mlp(layers["mlp"], at="mixer.", names=("up_proj", "down_proj"), bias=mlp_bias)
    if layers["moe"]:
        latent = config.optional("moe_latent_size")
        shared = config.integer("moe_shared_expert_intermediate_size", 0, least=0) * (
            config.optional("shared_experts", least=0) or 0
        )
        build.moe(
            layers["moe"],
            inner=config.integer("moe_intermediate_size"),
            at="mixer.",
            names=("up_proj", "down_proj"),
            correction="gate.e_score_correction_bias",
            shared=shared,
            shared_names=("up_proj", "down_proj"),
            shared_bias=mlp_bias,
            hidden=latent or 0,
        )
        if latent:
            build.add("mixer.fc1_latent_proj", ROUTER, latent, build.hidden, layers=layers["moe"], bias=mlp_bias)
            build.add("mixer.fc2_latent_proj", ROUTER, build.hidden, latent, layers=layers["moe"], bias=mlp_bias)
    if config.optional("num_nextn_predict_layers", least=0):
        build.notes.append("layers for multi-token prediction of Nemotron-H are not counted")
    return build


@family("mamba2", needs=("hidden_size", "num_hidden_layers", "vocab_size"))
def _pure_mamba2(config: Config) -> Build:
    build = Build(config, stem="backbone")
    heads, dim = config.integer("num_attention_heads"), config.integer("head_dim")
    inner = config.integer("expand") * build.hidden
    if heads * dim != inner:
        raise config.error(
            "num_heads", f"{heads} heads of head_dim {dim} are not expand times hidden_size, {inner}", "heads that fill it"
        )
    build.ends(embedding="embeddings", norm="norm_f")
    build.norm("norm")
    build.mamba2(
        None,
        heads=heads,
        head_dim=dim,
        groups=config.integer("n_groups"),
        state=config.integer("state_size"),
        kernel=config.integer("conv_kernel"),
        at="mixer.",
        bias=config.flag("use_bias"),
        conv_bias=config.flag("use_conv_bias", True),
    )
    build.widest = inner
    return build


@family("mamba", "falcon_mamba", needs=("hidden_size", "num_hidden_layers", "vocab_size"))
def _pure_mamba1(config: Config) -> Build:
    build = Build(config, stem="backbone")
    # "auto" is rounded up, as in the config class.
    rank = -(-build.hidden // 16) if config.get("time_step_rank") == "auto" else config.integer("time_step_rank")
    inner = config.integer("intermediate_size", config.integer("expand") * build.hidden)
    build.ends(embedding="embeddings", norm="norm_f")
    build.norm("norm")
    build.mamba1(
        None,
        inner=inner,
        state=config.integer("state_size"),
        kernel=config.integer("conv_kernel"),
        rank=rank,
        at="mixer.",
        bias=config.flag("use_bias"),
        conv_bias=config.flag("use_conv_bias", True),
    )
    build.widest = inner
    return build


@family("lfm2", needs=("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"))
@family("lfm2_moe", needs=("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", *MIXTURE))
def _lfm2(config: Config) -> Build:
    build = Build(config)
    if isinstance(config.values.get("tie_embedding"), bool):
        build.tied = config.flag("tie_embedding")
    words = config.words("layer_types", build.count, ("full_attention", "conv"))
    if words is None:
        full = config.integers("full_attn_idxs", build.count)
        words = ["full_attention" if full is None or number in full else "conv" for number in build.every]
    full, conv = split(words, "full_attention")
    build.ends(norm="embedding_norm")
    build.norm("operator_norm", "ffn_norm")
    build.set_heads()
    build.attention(
        full, names=("q_proj", "k_proj", "v_proj", "out_proj"), qk_norm="head", qk_names=("q_layernorm", "k_layernorm")
    )
    build.short_conv(conv, kernel=config.integer("conv_L_cache"), bias=config.flag("conv_bias"))
    mixture = config.text("model_type") == "lfm2_moe"
    inner = config.integer("intermediate_size") if not config.has("block_ff_dim") else config.integer("block_ff_dim")
    if config.flag("block_auto_adjust_ff_dim", True) and not mixture:
        inner = int(2 * inner / 3)
        multiplier = config.get("block_ffn_dim_multiplier")
        if isinstance(multiplier, (int, float)) and not isinstance(multiplier, bool):
            inner = int(multiplier * inner)
        multiple = config.integer("block_multiple_of")
        inner = multiple * -(-inner // multiple)
    dense = [n for n in build.every if not mixture or n < config.integer("num_dense_layers", 2, least=0)]
    names = ("w1", "w3", "w2")
    build.mlp(dense, inner, at="feed_forward.", names=names)
    if mixture:
        correction = "expert_bias" if config.flag("use_expert_bias", True) else ""
        sparse = [n for n in build.every if n not in dense]
        build.moe(sparse, inner=config.integer("moe_intermediate_size"), at="feed_forward.", names=names, correction=correction)
    return build
