# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Vision towers, and what connects them to a text model, added to a ``Build`` by the config they are described in.

Nothing of a tower is a matrix product with every token of a request, and engines keep towers whole on every GPU or divide them
as they like: all of it is WHOLE. Shapes as in transformers 5.24.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ._model_architecture import VISION
from ._model_blocks import Build, Config


def _defaults(vision: Config, **defaults: Any) -> Config:
    vision.defaults = defaults
    return vision


def _linear(build: Build, name: str, outputs: int, inputs: int, bias: bool = True) -> None:
    build.add(name, VISION, outputs, inputs, bias=bias)


def _norm(build: Build, *names: str, size: int, bias: bool = True) -> None:
    for name in names:
        build.add(name, VISION, size, bias=bias)


def _qwen2_vl(build: Build, top: Config, vision: Config) -> None:
    _defaults(
        vision,
        depth=32,
        embed_dim=1280,
        hidden_size=3584,
        mlp_ratio=4,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
    )
    size, out = vision.integer("embed_dim"), vision.integer("hidden_size")
    inner = size * vision.integer("mlp_ratio")
    with build.tower("visual."):
        _linear(build, "patch_embed.proj", size, _patch(vision), bias=False)
        merged = size * vision.integer("spatial_merge_size") ** 2
        _norm(build, "merger.ln_q", size=size)
        _linear(build, "merger.mlp.0", merged, merged)
        _linear(build, "merger.mlp.2", out, merged)
    with build.tower("visual.blocks.0.", vision.integer("depth")):
        _norm(build, "norm1", "norm2", size=size)
        _linear(build, "attn.qkv", 3 * size, size)
        _linear(build, "attn.proj", size, size)
        _linear(build, "mlp.fc1", inner, size)
        _linear(build, "mlp.fc2", size, inner)


def _patch(vision: Config, temporal: bool = True) -> int:
    """Elements of one patch of the picture."""
    channels = vision.optional("in_channels") or vision.optional("num_channels") or 3
    return channels * vision.integer("patch_size") ** 2 * (vision.integer("temporal_patch_size") if temporal else 1)


def _qwen2_5_vl(build: Build, top: Config, vision: Config) -> None:
    _defaults(
        vision,
        depth=32,
        hidden_size=3584,
        intermediate_size=3420,
        out_hidden_size=3584,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
    )
    size, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    merged = size * vision.integer("spatial_merge_size") ** 2
    with build.tower("visual."):
        _linear(build, "patch_embed.proj", size, _patch(vision), bias=False)
        _norm(build, "merger.ln_q", size=size, bias=False)
        _linear(build, "merger.mlp.0", merged, merged)
        _linear(build, "merger.mlp.2", vision.integer("out_hidden_size"), merged)
    with build.tower("visual.blocks.0.", vision.integer("depth")):
        _norm(build, "norm1", "norm2", size=size, bias=False)
        _linear(build, "attn.qkv", 3 * size, size)
        _linear(build, "attn.proj", size, size)
        for name in ("gate_proj", "up_proj"):
            _linear(build, f"mlp.{name}", inner, size)
        _linear(build, "mlp.down_proj", size, inner)


def _qwen3_vl(build: Build, top: Config, vision: Config) -> None:
    _defaults(
        vision,
        depth=27,
        hidden_size=1152,
        intermediate_size=4304,
        out_hidden_size=3584,
        patch_size=16,
        temporal_patch_size=2,
        spatial_merge_size=2,
        num_position_embeddings=2304,
        # Qwen3.5 has the same tower without deep stacking.
        deepstack_visual_indexes=[] if top.text("model_type").startswith("qwen3_5") else [8, 16, 24],
    )
    size, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    merged, out = size * vision.integer("spatial_merge_size") ** 2, vision.integer("out_hidden_size")
    stacked = len(vision.integers("deepstack_visual_indexes") or ())
    if top.text("model_type").startswith("qwen3_5"):
        stacked = 0
    with build.tower("model.visual."):
        _linear(build, "patch_embed.proj", size, _patch(vision))
        build.add("pos_embed", VISION, vision.integer("num_position_embeddings"), size)
        _norm(build, "merger.norm", size=size)
        _linear(build, "merger.linear_fc1", merged, merged)
        _linear(build, "merger.linear_fc2", out, merged)
    if stacked:
        with build.tower("model.visual.deepstack_merger_list.0.", stacked):
            _norm(build, "norm", size=merged)
            _linear(build, "linear_fc1", merged, merged)
            _linear(build, "linear_fc2", out, merged)
    with build.tower("model.visual.blocks.0.", vision.integer("depth")):
        _norm(build, "norm1", "norm2", size=size)
        _linear(build, "attn.qkv", 3 * size, size)
        _linear(build, "attn.proj", size, size)
        _linear(build, "mlp.linear_fc1", inner, size)
        _linear(build, "mlp.linear_fc2", size, inner)


def _plain_layers(build: Build, prefix: str, vision: Config, names: Mapping[str, str]) -> None:
    """Layers of a vision transformer with separate projections and biases everywhere."""
    size, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    with build.tower(prefix, vision.integer("num_hidden_layers")):
        _norm(build, names["first"], names["second"], size=size)
        for name in ("q_proj", "k_proj", "v_proj", names["out"]):
            _linear(build, f"self_attn.{name}", size, size)
        _linear(build, "mlp.fc1", inner, size)
        _linear(build, "mlp.fc2", size, inner)


def _gemma3(build: Build, top: Config, vision: Config) -> None:
    if vision.text("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise vision.error("model_type", f"found {vision.text('model_type')!r}", "siglip_vision_model")
    _defaults(
        vision,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
    )
    size, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    positions = (vision.integer("image_size") // vision.integer("patch_size")) ** 2
    with build.tower("vision_tower.vision_model."):
        _linear(build, "embeddings.patch_embedding", size, _patch(vision, temporal=False))
        build.add("embeddings.position_embedding", VISION, positions, size)
        _norm(build, "post_layernorm", size=size)
        if vision.flag("vision_use_head", True):  # a pooling head
            build.add("head.probe", VISION, size)
            build.add("head.attention.in_proj", VISION, 3 * size, size, bias=True)
            _linear(build, "head.attention.out_proj", size, size)
            _norm(build, "head.layernorm", size=size)
            _linear(build, "head.mlp.fc1", inner, size)
            _linear(build, "head.mlp.fc2", size, inner)
    names = {"first": "layer_norm1", "second": "layer_norm2", "out": "out_proj"}
    _plain_layers(build, "vision_tower.vision_model.encoder.layers.0.", vision, names)
    with build.tower("multi_modal_projector."):
        build.add("mm_input_projection_weight", VISION, size, build.hidden)
        _norm(build, "mm_soft_emb_norm", size=size, bias=False)


def _mistral3(build: Build, top: Config, vision: Config) -> None:
    if vision.text("model_type", "pixtral") != "pixtral":
        raise vision.error("model_type", f"found {vision.text('model_type')!r}", "pixtral")
    _defaults(vision, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=16)
    size, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    bias, merge = top.flag("multimodal_projector_bias"), top.integer("spatial_merge_size", 2)
    layers = top.get("vision_feature_layer")
    seen = size * (len(layers) if isinstance(layers, list) else 1)
    with build.tower("vision_tower."):
        _linear(build, "patch_conv", size, _patch(vision, temporal=False), bias=False)
        _norm(build, "ln_pre", size=size, bias=False)
    with build.tower("vision_tower.transformer.layers.0.", vision.integer("num_hidden_layers")):
        _norm(build, "attention_norm", "ffn_norm", size=size, bias=False)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            _linear(build, f"attention.{name}", size, size, bias=False)
        for name in ("gate_proj", "up_proj"):
            _linear(build, f"feed_forward.{name}", inner, size, bias=False)
        _linear(build, "feed_forward.down_proj", size, inner, bias=False)
    with build.tower("multi_modal_projector."):
        _norm(build, "norm", size=size, bias=False)
        _linear(build, "patch_merger.merging_layer", size, size * merge**2, bias=False)
        _linear(build, "linear_1", build.hidden, seen, bias)
        _linear(build, "linear_2", build.hidden, build.hidden, bias)


def _llama4(build: Build, top: Config, vision: Config) -> None:
    _defaults(
        vision,
        hidden_size=768,
        intermediate_size=5632,
        num_hidden_layers=34,
        num_attention_heads=16,
        image_size=448,
        patch_size=14,
        projector_input_dim=4096,
        projector_output_dim=4096,
        vision_output_dim=7680,
    )
    size = vision.integer("hidden_size")
    positions = (vision.integer("image_size") // vision.integer("patch_size")) ** 2 + 1
    middle, out = vision.integer("projector_input_dim"), vision.integer("projector_output_dim")
    with build.tower("vision_model."):
        _linear(build, "patch_embedding.linear", size, _patch(vision, temporal=False), bias=False)
        build.add("class_embedding", VISION, size)
        build.add("positional_embedding_vlm", VISION, positions, size)
        _norm(build, "layernorm_pre", "layernorm_post", size=size)
        _linear(build, "vision_adapter.mlp.fc1", middle, vision.integer("intermediate_size"), bias=False)
        _linear(build, "vision_adapter.mlp.fc2", out, middle, bias=False)
    names = {"first": "input_layernorm", "second": "post_attention_layernorm", "out": "o_proj"}
    _plain_layers(build, "vision_model.model.layers.0.", vision, names)
    with build.tower("multi_modal_projector."):
        _linear(build, "linear_1", build.hidden, vision.integer("vision_output_dim"), bias=False)


def _gemma4(build: Build, top: Config, vision: Config) -> None:
    if top.values.get("audio_config") is not None:
        raise top.error("audio_config", "the audio tower of Gemma 4 is not modelled", "null, or explicit numbers")
    _defaults(
        vision,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=16,
        num_attention_heads=12,
        head_dim=64,
        patch_size=16,
        position_embedding_size=10240,
    )
    size, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    heads, dim = vision.integer("num_attention_heads"), vision.integer("head_dim")
    kv_heads = vision.optional("num_key_value_heads") or heads
    with build.tower("model.vision_tower."):
        build.add("patch_embedder.position_embedding_table", VISION, 2 * vision.integer("position_embedding_size"), size)
        _linear(build, "patch_embedder.input_proj", size, _patch(vision, temporal=False), bias=False)
        if vision.flag("standardize"):
            _norm(build, "std_bias", "std_scale", size=size, bias=False)
    with build.tower("model.vision_tower.encoder.layers.0.", vision.integer("num_hidden_layers")):
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            _norm(build, f"{name}_layernorm", size=size, bias=False)
        _norm(build, "self_attn.q_norm", "self_attn.k_norm", size=dim, bias=False)
        _linear(build, "self_attn.q_proj", heads * dim, size, bias=False)
        _linear(build, "self_attn.k_proj", kv_heads * dim, size, bias=False)
        _linear(build, "self_attn.v_proj", kv_heads * dim, size, bias=False)
        _linear(build, "self_attn.o_proj", size, heads * dim, bias=False)
        for name in ("gate_proj", "up_proj"):
            _linear(build, f"mlp.{name}", inner, size, bias=False)
        _linear(build, "mlp.down_proj", size, inner, bias=False)
    with build.tower("model.embed_vision."):
        _linear(build, "embedding_projection", build.hidden, size, bias=False)


def _kimi(build: Build, top: Config, vision: Config) -> None:
    """MoonViT; names as in the checkpoint of Kimi-VL."""
    _defaults(
        vision,
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        patch_size=14,
        init_pos_emb_height=64,
        init_pos_emb_width=64,
    )
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
        if vision.has(f"vt_{name}"):  # Kimi K2.5, as its checkpoint says it
            vision.defaults[name] = vision.integer(f"vt_{name}")
    size, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    height = vision.integer("pos_emb_height", vision.integer("init_pos_emb_height"))
    width = vision.integer("pos_emb_width", vision.integer("init_pos_emb_width"))
    kernel = vision.integers("merge_kernel_size") or [2, 2]
    merged = size * kernel[0] * kernel[-1]
    with build.tower("vision_tower."):
        _linear(build, "patch_embed.proj", size, _patch(vision, temporal=False))
        build.add("patch_embed.pos_emb", VISION, height * width, size)
        _norm(build, "encoder.final_layernorm", size=size)
    with build.tower("vision_tower.encoder.blocks.0.", vision.integer("num_hidden_layers")):
        _norm(build, "norm0", "norm1", size=size)
        _linear(build, "wqkv", 3 * size, size)
        _linear(build, "wo", size, size)
        _linear(build, "mlp.fc0", inner, size)
        _linear(build, "mlp.fc1", size, inner)
    with build.tower("multi_modal_projector."):
        _norm(build, "pre_norm", size=size)
        _linear(build, "linear_1", merged, merged)
        _linear(build, "linear_2", build.hidden, merged)


def _named(name: str, add: Callable[[Build, Config, Config], None]) -> Callable[[Build, Config, Config], None]:
    def tower(build: Build, top: Config, vision: Config) -> None:
        add(build, top, vision)
        build.vision = name

    return tower


# How each tower is added: to a model in the making, from the whole config and from its vision_config.
TOWERS: dict[str, Callable[[Build, Config, Config], None]] = {
    "qwen2_vl": _named("Qwen2-VL vision transformer", _qwen2_vl),
    "qwen2_5_vl": _named("Qwen2.5-VL vision transformer", _qwen2_5_vl),
    "qwen3_vl": _named("Qwen3-VL vision transformer", _qwen3_vl),
    "gemma3": _named("SigLIP", _gemma3),
    "gemma4": _named("Gemma 4 vision transformer", _gemma4),
    "kimi": _named("MoonViT", _kimi),
    "mistral3": _named("Pixtral", _mistral3),
    "llama4": _named("Llama 4 vision transformer", _llama4),
}
