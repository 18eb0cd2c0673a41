# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes of quantised weights, against published checkpoints; which weights stay as they are; and how GPUs share them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import (
    ATTENTION,
    EMBEDDING,
    EXPERT,
    EXPERTS,
    FULL,
    HEAD,
    INPUTS,
    KV_HEADS,
    MLP,
    NORM,
    OUTPUTS,
    ROUTER,
    VISION,
    VOCABULARY,
    WHOLE,
    Architecture,
    Layer,
    Memory,
    ModelError,
    Weight,
)
from ansible_collections.onprem.llm.plugins.module_utils._model_quantisation import (
    ALIASES,
    MIXES,
    NAMED,
    Scheme,
    scheme_for,
    scheme_named,
    scheme_of,
    sharded_bytes,
    total_bytes,
    weight_bytes,
)
from hypothesis import given
from hypothesis import strategies as st


def dense(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int, tied: bool = False) -> Architecture:
    """A Llama, made by hand."""
    head, every = hidden // heads, tuple(range(layers))
    linear = [
        ("self_attn.q_proj", ATTENTION, hidden, hidden, OUTPUTS),
        ("self_attn.k_proj", ATTENTION, kv_heads * head, hidden, KV_HEADS),
        ("self_attn.v_proj", ATTENTION, kv_heads * head, hidden, KV_HEADS),
        ("self_attn.o_proj", ATTENTION, hidden, hidden, INPUTS),
        ("mlp.gate_proj", MLP, inner, hidden, OUTPUTS),
        ("mlp.up_proj", MLP, inner, hidden, OUTPUTS),
        ("mlp.down_proj", MLP, hidden, inner, INPUTS),
    ]
    weights = [Weight("model.embed_tokens", EMBEDDING, vocabulary, hidden, split=VOCABULARY, matrix=False)]
    weights += [Weight(name, part, outputs, inputs, every, split=split) for name, part, outputs, inputs, split in linear]
    weights += [Weight(name, NORM, hidden, 1, every, matrix=False) for name in ("input_layernorm", "post_attention_layernorm")]
    weights += [Weight("model.norm", NORM, hidden, 1, end="last", matrix=False)]
    if not tied:
        weights.append(Weight("lm_head", HEAD, vocabulary, hidden, split=VOCABULARY, end="last"))
    memory = Memory(FULL, kv_heads, head, head, heads, head)
    return Architecture(
        family="llama",
        name="LlamaForCausalLM",
        hidden_size=hidden,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head,
        intermediate_size=inner,
        max_context=131072,
        dtype="bfloat16",
        layers=tuple(Layer(memory) for number in every),
        weights=tuple(weights),
        tied=tied,
    )


LLAMA_8B = dense(32, 4096, 14336, 32, 8, 128256)
LLAMA_70B = dense(80, 8192, 28672, 64, 8, 128256)


def gpt_oss(layers: int, experts: int) -> Architecture:
    hidden, every = 2880, tuple(range(layers))
    weights = (
        Weight("model.embed_tokens", EMBEDDING, 201088, hidden, split=VOCABULARY, matrix=False),
        Weight("self_attn.q_proj", ATTENTION, 4096, hidden, every, bias=True, split=OUTPUTS),
        Weight("self_attn.k_proj", ATTENTION, 512, hidden, every, bias=True, split=KV_HEADS),
        Weight("self_attn.v_proj", ATTENTION, 512, hidden, every, bias=True, split=KV_HEADS),
        Weight("self_attn.o_proj", ATTENTION, hidden, 4096, every, bias=True, split=INPUTS),
        Weight("self_attn.sinks", ATTENTION, 64, 1, every, split=OUTPUTS, matrix=False),
        Weight("mlp.router", ROUTER, experts, hidden, every, bias=True),
        Weight("mlp.experts.gate_up_proj", EXPERT, 5760, hidden, every, experts, bias=True, split=EXPERTS),
        Weight("mlp.experts.down_proj", EXPERT, hidden, hidden, every, experts, bias=True, split=EXPERTS),
        Weight("input_layernorm", NORM, hidden, 1, every, matrix=False),
        Weight("post_attention_layernorm", NORM, hidden, 1, every, matrix=False),
        Weight("model.norm", NORM, hidden, 1, end="last", matrix=False),
        Weight("lm_head", HEAD, 201088, hidden, split=VOCABULARY, end="last"),
    )
    return replace(LLAMA_8B, layers=(Layer(Memory(FULL, 8, 64, 64, 64, 64), experts, 4),) * layers, weights=weights)


def size(architecture: Architecture, scheme: Scheme, stored: bool = False) -> int:
    return total_bytes(architecture.weights, scheme, 2, stored)


# --- published sizes -------------------------------------------------------------------------------------------------


# Bits for each weight of Llama-3.1-8B: https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md
@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("IQ1_S", 2.0042),
        ("IQ1_M", 2.1460),
        ("IQ2_XXS", 2.3824),
        ("IQ2_XS", 2.5882),
        ("IQ2_S", 2.7403),
        ("IQ2_M", 2.9294),
        ("IQ3_XXS", 3.2548),
        ("IQ3_XS", 3.4977),
        ("IQ3_S", 3.6606),
        ("IQ3_M", 3.7628),
        ("IQ4_XS", 4.4597),
        ("IQ4_NL", 4.6818),
        ("Q2_K_S", 2.9697),
        ("Q2_K", 3.1593),
        ("Q3_K_S", 3.6429),
        ("Q3_K_L", 4.2979),
        ("Q4_K_S", 4.6672),
        ("Q4_K_M", 4.8944),
        ("Q5_K_S", 5.5704),
        ("Q5_K_M", 5.7036),
        ("Q6_K", 6.5633),
        ("Q8_0", 8.5008),
        ("F16", 16.0005),
    ],
)
def test_mixes_of_gguf_types_have_their_published_size(name: str, bits: float) -> None:
    scheme = scheme_named(name.lower(), "bfloat16", LLAMA_8B)
    assert round(size(LLAMA_8B, scheme) * 8 / LLAMA_8B.parameters(), 4) == bits
    assert (scheme.name, scheme.method, scheme.engines) == (name, "gguf", ("llama_cpp",))


# The same README: 4.9 and 43.1 GB, and QUANT_OPTIONS of tools/quantize/quantize.cpp for the 8B: GiB.
def test_other_published_sizes_of_gguf() -> None:
    for name, gib in (("Q4_0", 4.34), ("Q4_1", 4.78), ("Q5_0", 5.21), ("Q5_1", 5.65), ("Q3_K_M", 3.74), ("Q2_K", 2.96)):
        assert size(LLAMA_8B, scheme_named(name, "bfloat16", LLAMA_8B)) / 2**30 == pytest.approx(gib, abs=0.015)
    assert size(LLAMA_70B, scheme_named("q4_k_m", "bfloat16", LLAMA_70B)) / 1e9 == pytest.approx(43.1, rel=0.02)


def test_awq_of_an_8b_is_5_7_gb() -> None:
    found = size(LLAMA_8B, scheme_of({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "float16"))
    linear = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336)
    # 4 bits, and a scale of 16 and a zero point of 4 bits for each 128 inputs of an output; the rest in 16 bits.
    assert found == linear // 2 + linear // 128 * 20 // 8 + (LLAMA_8B.parameters() - linear) * 2
    assert found / 1e9 == pytest.approx(5.7, abs=0.05)


# total_size of model.safetensors.index.json of openai/gpt-oss-20b and openai/gpt-oss-120b
@pytest.mark.parametrize(("layers", "experts", "published"), [(24, 32, 13_761_264_768), (36, 128, 65_248_815_744)])
def test_mxfp4_of_gpt_oss_is_exact(layers: int, experts: int, published: int) -> None:
    config = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    }
    scheme = scheme_of(config, "bfloat16")
    assert size(gpt_oss(layers, experts), scheme) == published
    assert (scheme.served_from, scheme.arithmetic_on(9.0), scheme.arithmetic_on(10.0)) == (8.0, "bf16", "fp4")


# "Model loading took 13.72 GiB" for gpt-oss-20b on one A100: https://myoceane.fr/index.php/ai-vllm-a100-gemma-4/
def test_experts_are_padded_for_their_kernels() -> None:
    scheme = scheme_of({"quant_method": "mxfp4"}, "bfloat16")
    held = sum(sharded_bytes(weight, scheme, 2, 1, kv_heads=8) for weight in gpt_oss(24, 32).weights)
    assert held / 2**30 == pytest.approx(13.72, rel=0.01)
    # 1440 of the inner 2880 become 1536, and 720 become 768.
    down = Weight("mlp.experts.down_proj", EXPERT, 2880, 2880, (0,), 2, bias=True, split=EXPERTS)
    fused = Weight("mlp.experts.gate_up_proj", EXPERT, 5760, 2880, (0,), 2, bias=True, split=EXPERTS)
    for parts, inner in ((2, 1536), (4, 768)):
        assert sharded_bytes(down, scheme, 2, parts) == 2 * (3072 * inner * 17 // 32 + 3072 * 2)
        assert sharded_bytes(fused, scheme, 2, parts) == 2 * (2 * inner * 3072 * 17 // 32 + 2 * inner * 2)


def test_unquantised() -> None:
    assert size(LLAMA_8B, scheme_of(None, "bfloat16")) == 8_030_261_248 * 2
    assert size(LLAMA_8B, scheme_named("none", "float16")) == 8_030_261_248 * 2
    assert not scheme_named(None, "bfloat16").quantised


# --- what a config says ----------------------------------------------------------------------------------------------


def quantised_names(architecture: Architecture, scheme: Scheme) -> set[str]:
    return {weight.name for weight in architecture.weights if weight_bytes(weight, scheme, 2) < weight.parameters * 2}


LINEAR = {
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}


def w4a16(**weights: Any) -> dict[str, Any]:
    values = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True, **weights}
    return {"targets": ["Linear"], "weights": values, "input_activations": None}


FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
TOKEN8 = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}


def compressed(ignore: tuple[str, ...] = ("lm_head",), **groups: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": list(ignore)}


@pytest.mark.parametrize(
    ("config", "name", "bits", "arithmetic", "weight_only", "served", "native"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8", 8, "fp8", False, 7.5, 8.9),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_per_block", 8 + 32 / 128**2, "fp8", False, 7.5, 8.9),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": []}, "fbgemm_fp8", 8 + 32 / 4096, "fp8", False, 8.0, 8.9),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", 4 + 20 / 128, "bf16", True, 7.5, 0),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
            "gptq",
            4.125,
            "bf16",
            True,
            7.5,
            0,
        ),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True}, "gptq_int8", 8 + 16 / 4096, "bf16", True, 7.5, 0),
        (compressed(a=w4a16()), "w4a16", 4.125, "bf16", True, 7.5, 0),
        (compressed(a=w4a16(symmetric=False)), "w4a16", 4 + 20 / 128, "bf16", True, 7.5, 0),
        (compressed(a=w4a16(num_bits=8)), "w8a16", 8.125, "bf16", True, 7.5, 0),
        (
            compressed(a={"targets": ["Linear"], "weights": FLOAT8, "input_activations": TOKEN8}),
            *("fp8_per_channel", 8 + 32 / 4096, "fp8", False, 7.5, 8.9),
        ),
        (compressed(a={"targets": ["Linear"], "weights": FLOAT8}), "fp8_per_channel", 8 + 32 / 4096, "bf16", True, 7.5, 0),
        (
            compressed(a={"targets": ["Linear"], "weights": INT8, "input_activations": {**TOKEN8, "type": "int"}}),
            *("int8", 8 + 32 / 4096, "int8", False, 7.5, 7.5),
        ),
        (compressed(a={"targets": ["Linear"], "weights": FP4, "input_activations": FP4}), "nvfp4", 4.5, "fp4", False, 7.5, 10.0),
        (compressed(a={"targets": ["Linear"], "weights": FP4}), "nvfp4a16", 4.5, "bf16", True, 7.5, 0),
        (
            {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}},
            "fp8",
            8,
            "fp8",
            False,
            8.0,
            8.9,
        ),
        (
            {
                "quant_method": "modelopt",
                "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]},
            },
            *("nvfp4", 4.5, "fp4", False, 7.5, 10.0),
        ),
        ({"quant_algo": "NVFP4", "quant_method": "modelopt", "ignore": ["lm_head"]}, "nvfp4", 4.5, "fp4", False, 7.5, 10.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", 4.5, "bf16", True, 0, 0),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bnb_int8", 8 + 32 / 4096, "int8", False, 0, 7.5),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
            "hqq",
            4.5,
            "bf16",
            True,
            0,
            0,
        ),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 64}}},
            },
            *("torchao_int4", 4.5, "bf16", True, 7.5, 0),
        ),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
                "exclude": ["lm_head"],
            },
            *("quark_fp8", 8, "fp8", False, 7.5, 8.9),
        ),
    ],
)
def test_configurations(
    config: dict[str, Any], name: str, bits: float, arithmetic: str, weight_only: bool, served: float, native: float
) -> None:
    scheme = scheme_of(config, "bfloat16")
    assert (scheme.name, scheme.arithmetic, scheme.weight_only) == (name, arithmetic, weight_only)
    assert (scheme.served_from, scheme.native_from) == (served, native)
    assert scheme.bits == pytest.approx(bits, abs=1e-4)
    assert scheme.source and not scheme.online
    assert quantised_names(LLAMA_8B, scheme) == LINEAR
    assert scheme.arithmetic_on(8.0) == (arithmetic if native <= 8.0 else "bf16")


def test_double_quantisation_takes_less() -> None:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    once, twice = (scheme_of({**config, "bnb_4bit_use_double_quant": both}, "bfloat16") for both in (False, True))
    weight = Weight("mlp.up_proj", MLP, 4096, 4096, (0,))
    bits = [weight_bytes(weight, scheme, 2) * 8 / 4096**2 for scheme in (once, twice)]
    # https://arxiv.org/abs/2305.14314: 0.5 bits of constants become 0.127
    assert bits == pytest.approx([4.5, 4.127], abs=1e-3)


def test_gptq_keeps_less_than_the_checkpoint_has() -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    scheme = scheme_of(config, "float16")
    weight = Weight("mlp.down_proj", MLP, 4096, 14336, (0,), split=INPUTS)
    kept = 4096 * 14336 // 2 + 4096 * 112 * 2
    assert weight_bytes(weight, scheme, 2) == kept
    # qzeros and g_idx
    assert weight_bytes(weight, scheme, 2, stored=True) == kept + 4096 * 112 // 2 + 14336 * 4
    ordered = scheme_of({**config, "desc_act": True}, "float16")
    assert weight_bytes(weight, ordered, 2) == kept + 14336 * 4
    assert "refuses desc_act" in ordered.notes[0] and not scheme.notes


def test_heads_may_be_quantised_too() -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "lm_head": True}
    assert quantised_names(LLAMA_8B, scheme_of(config, "bfloat16")) == LINEAR | {"lm_head"}
    assert quantised_names(LLAMA_8B, scheme_of(compressed((), a=w4a16()), "bfloat16")) == LINEAR | {"lm_head"}


def saved(scheme: Scheme, name: str, layers: int = 4) -> list[bool]:
    """In which layers a weight of 256 x 256 is quantised."""
    weight = Weight(name, MLP, 256, 256, tuple(range(layers)))
    return [weight_bytes(replace(weight, layers=(layer,)), scheme, 2) < 256 * 256 * 2 for layer in weight.layers]


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        # exact names, also of what vLLM puts together
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.1.mlp.down_proj"]}, "mlp.down_proj", [1, 0, 1, 1]),
        ({"quant_method": "fp8", "ignored_layers": ["model.layers.1.mlp.gate_up_proj"]}, "mlp.up_proj", [1, 0, 1, 1]),
        ({"quant_method": "fp8", "ignored_layers": ["down_proj"]}, "mlp.down_proj", [1, 1, 1, 1]),
        # AWQ: anywhere in the name
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": ["down_proj"]}, "mlp.down_proj", [0] * 4),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": ["layers.2."]},
            "mlp.up_proj",
            [1, 1, 0, 1],
        ),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": ["visual"]}, "mlp.up_proj", [1] * 4),
        # compressed-tensors: names and regular expressions
        (compressed(("re:.*mlp.down_proj",), a=w4a16()), "mlp.down_proj", [0] * 4),
        (compressed(("re:.*layers.[01]..*",), a=w4a16()), "mlp.down_proj", [0, 0, 1, 1]),
        (compressed(("re:.*down_proj", "lm_head"), a=w4a16()), "mlp.up_proj", [1] * 4),
        (compressed(a={**w4a16(), "targets": ["re:.*down_proj"]}), "mlp.down_proj", [1] * 4),
        (compressed(a={**w4a16(), "targets": ["re:.*down_proj"]}), "mlp.up_proj", [0] * 4),
        # modelopt: wildcards
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["model.layers.0*"]}, "mlp.up_proj", [0, 1, 1, 1]),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["*.up_proj"]}, "mlp.up_proj", [0] * 4),
        # GPTQ: some modules, and patterns
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "modules_in_block_to_quantize": [["mlp.up_proj"]]},
            *("mlp.up_proj", [1] * 4),
        ),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "modules_in_block_to_quantize": [["mlp.up_proj"]]},
            *("mlp.down_proj", [0] * 4),
        ),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "dynamic": {r"-:.*\.3\..*": {}}},
            *("mlp.down_proj", [1, 1, 1, 0]),
        ),
        # bitsandbytes and torchao: whole words between dots
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["layers.1"]},
            "mlp.up_proj",
            [1, 0, 1, 1],
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["proj"]}, "mlp.up_proj", [1] * 4),
    ],
)
def test_what_stays_in_16_bits(config: dict[str, Any], name: str, expected: list[int]) -> None:
    assert saved(scheme_of(config, "bfloat16"), name) == [bool(one) for one in expected]


def test_a_layer_is_not_mistaken_for_its_neighbour() -> None:
    config = {
        "quant_method": "fp8",
        "ignored_layers": [f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")],
    }
    assert saved(scheme_of(config, "bfloat16"), "mlp.down_proj", 12) == [layer != 1 for layer in range(12)]
    wild = scheme_of({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["model.layers.1*"]}, "bfloat16")
    assert saved(wild, "mlp.down_proj", 12) == [layer != 1 for layer in range(12)]
    experts = {"quant_method": "fp8", "ignored_layers": ["model.layers.1.mlp.experts.7.down_proj", "model.layers.1.mlp.experts"]}
    assert saved(scheme_of(experts, "bfloat16"), "mlp.experts.down_proj", 3) == [True, False, True]
    assert saved(scheme_of(experts, "bfloat16"), "mlp.experts.0.down_proj", 3) == [True, False, True]


def test_groups_with_different_bits() -> None:
    config = compressed(a=w4a16(), b={**w4a16(num_bits=8), "targets": ["re:.*down_proj"]})
    scheme = scheme_of(config, "bfloat16")
    up, down = (Weight(name, MLP, 1024, 1024, (0,)) for name in ("mlp.up_proj", "mlp.down_proj"))
    assert weight_bytes(down, scheme, 2) - weight_bytes(up, scheme, 2) == 1024 * 1024 // 2
    dynamic = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "dynamic": {"+:.*down_proj": {"bits": 8}}}
    scheme = scheme_of(dynamic, "bfloat16")
    assert weight_bytes(down, scheme, 2) - weight_bytes(up, scheme, 2) == 1024 * 1024 // 2


def test_mixed_precision_of_modelopt() -> None:
    layers = {
        "model.layers.0.mlp.up_proj": {"quant_algo": "FP8"},
        "model.layers.1.mlp.up_proj": {"quant_algo": "NVFP4", "group_size": 16},
    }
    scheme = scheme_of({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}, "bfloat16")
    sizes = [weight_bytes(Weight("mlp.up_proj", MLP, 1024, 1024, (layer,)), scheme, 2) for layer in range(3)]
    assert sizes == [1024**2 + 4, 1024**2 // 2 + 1024**2 // 16 + 8, 1024**2 * 2]


def test_vectors_routers_and_vision_are_never_quantised() -> None:
    kept = [
        Weight("mlp.gate", ROUTER, 128, 2048, (0,)),
        Weight("input_layernorm", NORM, 2048, 1, (0,)),
        Weight("linear_attn.conv1d", "linear_attention", 8192, 4, (0,), matrix=False),
        Weight("visual.blocks.mlp", VISION, 2048, 2048, copies=4),
        Weight("model.embed_tokens", EMBEDDING, 2048, 2048, matrix=False),
    ]
    for name in NAMED:
        for weight in kept:
            assert weight_bytes(weight, scheme_named(name, "bfloat16"), 2) == weight.parameters * 2, (name, weight.name)


def test_the_corrections_of_a_router_are_32_bit_floats() -> None:
    weight = Weight("mlp.gate.e_score_correction_bias", ROUTER, 256, 1, (0, 1), matrix=False)
    assert weight_bytes(weight, scheme_named("none", "bfloat16"), 2) == 256 * 4 * 2
    assert sharded_bytes(weight, scheme_named("fp8", "bfloat16"), 2, 8) == 256 * 4 * 2


def test_layers_for_multi_token_prediction_keep_their_head() -> None:
    scheme = scheme_of({"quant_method": "fp8", "weight_block_size": [128, 128]}, "bfloat16")
    prefix = "model.layers.61."
    plain = [Weight(prefix + name, "multi_token_prediction", 256, 512) for name in ("eh_proj", "shared_head.head", "mlp.gate")]
    assert all(weight_bytes(weight, scheme, 2) == 256 * 512 * 2 for weight in plain)
    attention = Weight(prefix + "self_attn.o_proj", "multi_token_prediction", 256, 512)
    assert weight_bytes(attention, scheme, 2) == 256 * 512 + 2 * 4 * 4


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "aqlm"}, r"quant_method 'aqlm' is not known; known are .*awq"),
        ({"bits": 4}, r"quant_method None is not known"),
        ([1], r"a mapping is needed, not list"),
        ({"quant_method": "awq", "bits": 4}, r"q_group_size is missing"),
        ({"quant_method": "awq", "bits": -4, "group_size": 128}, r"bits is -4"),
        ({"quant_method": "awq", "bits": 4, "group_size": 0}, r"q_group_size is 0"),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": 3},
            r"modules_to_not_convert is 3, a list",
        ),
        ({"quant_method": "gptq", "group_size": 128}, r"bits is missing"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size is \[128\]"),
        (compressed(), r"config_groups is missing or empty"),
        (compressed(a={"weights": INT8}), r"config_groups: a: targets is missing"),
        (compressed(a={"targets": ["Linear"]}), r"config_groups: a: weights: a mapping is needed"),
        (compressed(a=w4a16(strategy="odd")), r"strategy 'odd' is not known"),
        (compressed(("re:(",), a=w4a16()), r"'\(' is no regular expression"),
        ({"quant_method": "modelopt", "quant_algo": "INT3"}, r"quant_algo 'INT3' is not known"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, r"quantized_layers is missing"),
        ({"quant_method": "bitsandbytes"}, r"neither load_in_4bit nor load_in_8bit"),
        ({"quant_method": "torchao", "quant_type": "int3"}, r"quant_type 'int3' is not known"),
        ({"quant_method": "hqq"}, r"nbits is missing"),
        ({"quant_method": "quark"}, r"global_quant_config: a mapping is needed"),
    ],
)
def test_configurations_that_cannot_be(config: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        size(LLAMA_8B, scheme_of(config, "bfloat16"))


def test_unknown_names_are_told_the_near_ones() -> None:
    with pytest.raises(ModelError, match=r"'q4km' is not known; near are .*q4_k_m"):
        scheme_named("q4km", "bfloat16")
    with pytest.raises(ModelError, match=r"'fp9' is not known; near are .*fp8"):
        scheme_named("fp9", "bfloat16")
    with pytest.raises(ModelError, match=r"'zzz' is not known; known are none, fp8"):
        scheme_named("zzz", "bfloat16")
    with pytest.raises(ModelError, match=r"dtype: 'int4' is not known"):
        scheme_named("none", "int4")


def test_every_name_is_a_scheme() -> None:
    for name in [*NAMED, *ALIASES, *MIXES]:
        scheme = scheme_named(name, "bfloat16", LLAMA_8B)
        assert size(LLAMA_8B, scheme) > 0 and scheme.source and scheme.engines, name
    assert scheme_named("int8", "bfloat16").refused_from == 10.0
    assert scheme_named("FP8", "bfloat16").online and not scheme_named("awq", "bfloat16").online
    assert scheme_named("Q4_K_M", "bfloat16") == scheme_named("q4-k-m", "bfloat16")


def test_a_mix_has_to_know_the_model() -> None:
    with pytest.raises(ModelError, match=r"Q4_K_M: which type a tensor gets depends on the model"):
        size(LLAMA_8B, scheme_named("q4_k_m", "bfloat16"))


def test_a_quantised_checkpoint_stays_as_it_is() -> None:
    awq = {"quant_method": "awq", "bits": 4, "group_size": 64}
    assert scheme_for(None, None, "bfloat16").name == "none"
    assert scheme_for(None, "fp8", "bfloat16").online
    for wish in (None, "auto", "awq", "awq_marlin"):
        assert scheme_for(awq, wish, "bfloat16").group == 64
    for wish in ("fp8", "gptq", "q4_k_m", "none", "nf4"):
        with pytest.raises(ModelError, match=r"asked for, and the checkpoint is quantised already \(awq, quant_method awq\)"):
            scheme_for(awq, wish, "bfloat16", LLAMA_8B)
    assert scheme_for({"quant_method": "gptq", "bits": 8, "group_size": 128}, "gptq", "bfloat16").weight_bits == 8
    assert scheme_for(compressed(a=w4a16()), "compressed-tensors", "bfloat16").name == "w4a16"
    assert not scheme_for({"quant_method": "fp8"}, "fp8", "bfloat16").online


# --- several GPUs ----------------------------------------------------------------------------------------------------

PLAIN = scheme_named("none", "bfloat16")
FOUR = scheme_named("w4a16", "bfloat16")


def share(weight: Weight, parts: int, scheme: Scheme = PLAIN, **options: Any) -> int:
    return sharded_bytes(weight, scheme, 2, parts, **options)


def test_how_weights_are_divided() -> None:
    inputs = Weight("o", ATTENTION, 96, 64, (0, 1), bias=True, split=INPUTS)
    assert share(inputs, 4) == 2 * (96 * 16 + 96) * 2
    outputs = replace(inputs, split=OUTPUTS)
    assert share(outputs, 4) == 2 * (24 * 64 + 24) * 2
    assert share(outputs, 5) == 2 * (20 * 64 + 20) * 2
    assert share(replace(inputs, split=WHOLE), 4) == weight_bytes(inputs, PLAIN, 2)
    table = Weight("embed", EMBEDDING, 1000, 64, split=VOCABULARY, matrix=False)
    assert share(table, 1) == 1024 * 64 * 2 and share(table, 4) == 256 * 64 * 2
    assert share(table, 4, vocabulary_padding=1) == 250 * 64 * 2


def test_kv_heads_are_repeated() -> None:
    weight = Weight("self_attn.k_proj", ATTENTION, 8 * 128, 64, (0,), bias=True, split=KV_HEADS)
    sizes = [share(weight, parts, kv_heads=8) for parts in (1, 2, 4, 8, 16, 32)]
    assert sizes == [heads * (128 * 64 + 128) * 2 for heads in (8, 4, 2, 1, 1, 1)]
    assert share(weight, 2, kv_heads=LLAMA_8B) == sizes[1]
    with pytest.raises(ModelError, match=r"divided by KV heads, and their number is not given"):
        share(weight, 2)


def test_kv_heads_that_differ_by_layer() -> None:
    layers = (Layer(Memory(FULL, 4, 64, 64)), Layer(Memory(FULL, 1, 64, 64)))
    weights = (Weight("k", ATTENTION, 256, 64, (0,), split=KV_HEADS), Weight("k", ATTENTION, 64, 64, (1,), split=KV_HEADS))
    found = replace(LLAMA_8B, layers=layers, weights=weights)
    assert [share(weight, 2, kv_heads=found) for weight in weights] == [128 * 64 * 2, 64 * 64 * 2]


def test_experts() -> None:
    up = Weight("mlp.experts.up_proj", EXPERT, 96, 64, (0, 1, 2), 10, split=EXPERTS)
    down = Weight("mlp.experts.down_proj", EXPERT, 64, 96, (0, 1, 2), 10, bias=True, split=EXPERTS)
    assert share(up, 4) == 3 * 10 * 24 * 64 * 2
    assert share(down, 4) == 3 * 10 * (64 * 24 + 64) * 2
    for spread in (4, True):
        assert share(up, 4, expert_parallel=spread) == 3 * 3 * 96 * 64 * 2
    assert share(up, 1, expert_parallel=5) == 3 * 2 * 96 * 64 * 2
    assert share(up, 4, expert_parallel=0) == share(up, 4, expert_parallel=False) == share(up, 4)
    # Data parallel replicas share the experts too.
    assert share(up, 2, expert_shards=4) == share(up, 4)
    assert share(replace(up, split=OUTPUTS), 2, expert_shards=4) == share(replace(up, split=OUTPUTS), 2)


def test_scales_are_divided_with_their_weight() -> None:
    down = Weight("mlp.down_proj", MLP, 256, 1024, (0,), split=INPUTS)
    assert share(down, 4, FOUR) == 256 * 256 // 2 + 256 * 2 * 2
    # A part that is no multiple of a group needs one more scale.
    assert share(replace(down, inputs=1000), 4, FOUR) == 256 * 250 // 2 + 256 * 2 * 2
    channels = scheme_named("fp8_per_channel", "bfloat16")
    assert share(down, 4, channels) == 256 * 256 + 256 * 4
    blocks = scheme_named("fp8_per_block", "bfloat16")
    assert share(down, 4, blocks) == 256 * 256 + 2 * 2 * 4


@pytest.mark.parametrize(
    ("parts", "options"), [(0, {}), (2, {"vocabulary_padding": 0}), (2, {"expert_parallel": -1}), (2, {"expert_shards": -1})]
)
def test_bad_parallelism(parts: int, options: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="must be at least"):
        share(Weight("o", MLP, 64, 64, (0,), split=OUTPUTS), parts, **options)


def test_a_large_model_is_quick() -> None:
    skipped = [f"model.layers.{layer}.mlp.gate" for layer in range(94)] + [
        f"model.layers.{layer}.input_layernorm" for layer in range(94)
    ]
    scheme = scheme_of({"quant_method": "fp8", "modules_to_not_convert": skipped}, "bfloat16")
    assert quantised_names(LLAMA_70B, scheme) == LINEAR


# --- properties ------------------------------------------------------------------------------------------------------

SPLITS = st.sampled_from([OUTPUTS, INPUTS, KV_HEADS, EXPERTS, WHOLE])
WEIGHTS = st.builds(
    lambda name, heads, outputs, inputs, layers, copies, bias, split: (
        Weight(
            name, EXPERT if split == EXPERTS else MLP, heads * outputs, inputs * 64, tuple(range(layers)), copies, bias, split
        ),
        heads,
    ),
    st.sampled_from(["mlp.up_proj", "mlp.down_proj", "mlp.experts.down_proj"]),
    st.integers(1, 16),
    st.integers(8, 300),
    st.integers(4, 64),
    st.integers(1, 4),
    st.integers(1, 9),
    st.booleans(),
    SPLITS,
)
NAMES = st.sampled_from(["none", *NAMED, "q4_k_m", "q8_0", "iq2_xs"])


def named(name: str) -> Scheme:
    # The padding of experts has a test of its own.
    return replace(scheme_named(name, "bfloat16", LLAMA_8B), expert_padding=())


@given(WEIGHTS)
def test_fewer_bits_are_never_more_bytes(case: tuple[Weight, int]) -> None:
    weight = case[0]
    for names in (
        ("none", "fp8_per_channel", "nf4"),
        ("none", "w8a16", "w4a16"),
        ("none", "gptq_int8", "gptq"),
        ("none", "mxfp8", "mxfp4"),
    ):
        sizes = [weight_bytes(weight, named(name), 2) for name in names]
        # The tables of NF4 are more than a weight of a few elements.
        if weight.numel >= 8192:
            assert sizes == sorted(sizes, reverse=True)
    mixes = ["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_s"]
    assert [size(LLAMA_8B, named(name)) for name in mixes] == sorted(
        (size(LLAMA_8B, named(name)) for name in mixes), reverse=True
    )


@given(WEIGHTS, NAMES, st.integers(1, 32), st.integers(1, 32), st.booleans())
def test_more_gpus_never_hold_more_bytes(case: tuple[Weight, int], name: str, one: int, other: int, spread: bool) -> None:
    weight, heads = case
    few, many = sorted((one, other))
    sizes = [sharded_bytes(weight, named(name), 2, parts, spread, heads) for parts in (few, many)]
    assert sizes[0] >= sizes[1]


@given(WEIGHTS, NAMES)
def test_one_gpu_holds_all(case: tuple[Weight, int], name: str) -> None:
    weight, heads = case
    assert sharded_bytes(weight, named(name), 2, 1, kv_heads=heads) == weight_bytes(weight, named(name), 2)


@given(WEIGHTS, NAMES, st.integers(1, 32))
def test_gpus_together_hold_all(case: tuple[Weight, int], name: str, parts: int) -> None:
    weight, heads = case
    assert sharded_bytes(weight, named(name), 2, parts, kv_heads=heads) * parts >= weight_bytes(weight, named(name), 2)


@given(st.integers(1, 300_000), st.integers(1, 64), NAMES)
def test_vocabularies_are_padded(rows: int, parts: int, name: str) -> None:
    weight = Weight("model.embed_tokens", EMBEDDING, rows, 256, split=VOCABULARY, matrix=False)
    padded = -(-rows // 64) * 64
    whole = weight_bytes(replace(weight, outputs=padded), named(name), 2)
    assert sharded_bytes(weight, named(name), 2, 1) == whole
    assert whole <= sharded_bytes(weight, named(name), 2, parts) * parts


@given(WEIGHTS, NAMES)
def test_a_checkpoint_never_has_less_than_the_engine_keeps(case: tuple[Weight, int], name: str) -> None:
    assert weight_bytes(case[0], named(name), 2, stored=True) >= weight_bytes(case[0], named(name), 2)
