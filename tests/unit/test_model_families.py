# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""What the families of models count, against transformers and published files, and what they say of configs that are wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import (
    ATTENTION,
    CHUNK,
    DRAFT,
    EXPERT,
    EXPERTS,
    FULL,
    INPUTS,
    KV_HEADS,
    MLA,
    NOTHING,
    OUTPUTS,
    PARTS,
    RECURRENT,
    VISION,
    VOCABULARY,
    WHOLE,
    WINDOW,
    Architecture,
    ModelError,
)
from ansible_collections.onprem.llm.plugins.module_utils._model_defaults import DEFAULTS
from ansible_collections.onprem.llm.plugins.module_utils._model_families import FAMILIES, architecture, explicit
from hypothesis import given
from hypothesis import strategies as st

CONFIGS = Path(__file__).parents[1] / "fixtures" / "configs"
COUNTED = json.loads((CONFIGS / "parameters.json").read_text())
VARIANTS = json.loads((CONFIGS / "variants.json").read_text())
FILES = sorted(path.name for path in CONFIGS.glob("*.json") if path.name not in ("parameters.json", "variants.json"))


def config(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return read


def model(name: str, **changes: Any) -> Architecture:
    return architecture({**config(name), **changes}, f"{name}.json")


# Parameters


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_parameters_are_those_that_others_count(name: str) -> None:
    found = architecture(json.loads((CONFIGS / name).read_text()), name)
    assert found.parameters() - found.parameters([DRAFT]) == COUNTED[name]["total"]
    if "multi_token_prediction" in COUNTED[name]:
        assert found.parameters([DRAFT]) == COUNTED[name]["multi_token_prediction"]
        assert found.draft_layers == 1


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_options_change_parameters_as_in_transformers(name: str) -> None:
    found = architecture(VARIANTS[name]["config"])
    assert found.parameters() - found.parameters([DRAFT]) == VARIANTS[name]["parameters"]


def test_deepseek_v3_is_671_and_684_thousand_million() -> None:
    found = model("deepseek-v3")
    assert found.parameters([part for part in PARTS if part != DRAFT]) == 671_026_419_200
    # The published files have 684,531,386,000 elements: these and the scales of FP8.
    assert found.parameters() == 684_489_845_504
    assert 36e9 < found.active_parameters() < 38e9


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("qwen3-235b-a22b", 21.5e9, 22.5e9),
        ("qwen3-30b-a3b", 3.0e9, 3.5e9),
        ("gpt-oss-120b", 5.0e9, 5.9e9),  # model card: 5.1
        ("mixtral-8x7b", 12.5e9, 13e9),
        ("llama-4-scout", 16e9, 16.3e9),  # 17 with the embedding
        ("llama-3.1-8b", 7.4e9, 7.6e9),  # without the embedding, which is a table
        ("kimi-k2", 31e9, 33e9),
    ],
)
def test_active_parameters_are_those_of_the_model_card(name: str, low: float, high: float) -> None:
    assert low < model(name).active_parameters() < high


def test_multi_token_prediction_that_a_config_names_late() -> None:
    # Published for Qwen3.6-27B, which has this shape, with its vision tower and one layer of multi-token prediction.
    text = {**config("qwen3.5-27b")["text_config"], "mtp_num_hidden_layers": 1}
    assert model("qwen3.5-27b", text_config=text).parameters() == 27_781_427_952


def test_mimo_is_a_qwen2_with_a_draft_layer() -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {**shape, "intermediate_size": 96, "vocab_size": 200}
    found = architecture({"model_type": "mimo", **shape, "num_nextn_predict_layers": 1})
    base = architecture({"model_type": "qwen2", **shape})
    layer = sum(weight.parameters // len(weight.layers) for weight in base.weights if weight.layers)
    assert found.parameters() - found.parameters([DRAFT]) == base.parameters()
    # A layer of the same kind, a projection of two hidden states to one, and three norms (vLLM 0.32, mimo_mtp.py).
    assert found.parameters([DRAFT]) == layer + 2 * 64 * 64 + 3 * 64
    assert found.draft_layers == 1


# Invariants of every model


@pytest.mark.parametrize("name", FILES)
def test_every_architecture_is_consistent(name: str) -> None:
    found = architecture(json.loads((CONFIGS / name).read_text()), name)
    assert sum(found.by_part().values()) == found.parameters()
    for weight in found.weights:
        assert weight.outputs > 0 and weight.inputs > 0 and weight.copies > 0
        assert all(0 <= number < len(found.layers) for number in weight.layers)
        assert weight.part in PARTS
        if weight.part == EXPERT:
            assert (weight.split, weight.copies) == (EXPERTS, found.experts)
            assert all(found.layers[number].experts == weight.copies for number in weight.layers)
        if weight.part in (VISION, DRAFT):
            assert not weight.layers
        if weight.part == VISION:
            assert weight.split == WHOLE and not weight.matrix
    mixed = {number for weight in found.weights if weight.part == EXPERT for number in weight.layers}
    assert mixed == {number for number, layer in enumerate(found.layers) if layer.experts}
    assert found.max_context > 0 or found.family in ("bloom", "falcon", "mamba2")
    assert bool(found.vision) == bool(found.parameters([VISION]))
    assert found.tied == (not any(weight.part == "head" for weight in found.weights))


@pytest.mark.parametrize("name", FILES)
def test_names_of_weights_are_unique_but_for_fused_ones(name: str) -> None:
    found = architecture(json.loads((CONFIGS / name).read_text()), name)
    seen: dict[tuple[str, tuple[int, ...]], set[str]] = {}
    for weight in found.weights:
        splits = seen.setdefault((weight.name, weight.layers), set())
        assert weight.split not in splits, weight.name
        splits.add(weight.split)
    assert all(splits in ({OUTPUTS, KV_HEADS},) for splits in seen.values() if len(splits) > 1)


def test_planning_reads_a_large_config_quickly() -> None:
    values = config("deepseek-v3")
    start = time.process_time()
    for _attempt in range(5):
        architecture(values)
    assert (time.process_time() - start) / 5 < 0.02
    assert len(architecture(values).weights) < 60


# Names, and how weights are divided


def test_names_and_divisions_of_a_llama() -> None:
    weights = {weight.name: weight for weight in model("llama-3.1-8b").weights}
    expected = {
        "model.embed_tokens": (128256, 4096, VOCABULARY),
        "lm_head": (128256, 4096, VOCABULARY),
        "model.norm": (4096, 1, WHOLE),
        "input_layernorm": (4096, 1, WHOLE),
        "post_attention_layernorm": (4096, 1, WHOLE),
        "self_attn.q_proj": (4096, 4096, OUTPUTS),
        "self_attn.k_proj": (1024, 4096, KV_HEADS),
        "self_attn.v_proj": (1024, 4096, KV_HEADS),
        "self_attn.o_proj": (4096, 4096, INPUTS),
        "mlp.gate_proj": (14336, 4096, OUTPUTS),
        "mlp.up_proj": (14336, 4096, OUTPUTS),
        "mlp.down_proj": (4096, 14336, INPUTS),
    }
    assert {name: (weight.outputs, weight.inputs, weight.split) for name, weight in weights.items()} == expected
    assert weights["self_attn.q_proj"].layers == tuple(range(32))
    assert weights["model.norm"].end == weights["lm_head"].end == "last"
    assert not weights["model.embed_tokens"].matrix and weights["lm_head"].matrix


def test_names_of_a_release_that_the_lab_serves() -> None:
    """The names are those of the tensors in the safetensors file, whose header is read here."""
    folder = CONFIGS.parent / "models" / "licence-llama" / "1.0.0"
    raw = next(folder.glob("*.safetensors")).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    shapes = {name: value["shape"] for name, value in header.items() if name != "__metadata__"}
    found = architecture(json.loads((folder / "config.json").read_text()))
    mine = {}
    for weight in found.weights:
        shape = [weight.outputs, weight.inputs] if weight.inputs > 1 else [weight.outputs]
        prefixes = [f"{found.prefix}.{number}." for number in weight.layers] or [""]
        mine.update({f"{prefix}{weight.name}.weight": shape for prefix in prefixes})
    assert mine == shapes


def test_a_fused_tensor_is_told_as_queries_and_the_rest() -> None:
    fused = [weight for weight in model("phi-3-medium-4k").weights if weight.name == "self_attn.qkv_proj"]
    assert [(weight.outputs, weight.split) for weight in fused] == [(5120, OUTPUTS), (2560, KV_HEADS)]


def test_names_of_experts_and_routers() -> None:
    weights = {weight.name: weight for weight in model("deepseek-v3").weights}
    assert weights["mlp.experts.0.gate_proj"].copies == 256
    assert weights["mlp.experts.0.gate_proj"].layers == tuple(range(3, 61))
    assert weights["mlp.gate"].split == weights["mlp.gate.e_score_correction_bias"].split == WHOLE
    assert weights["mlp.gate_proj"].layers == (0, 1, 2)
    assert weights["self_attn.kv_a_proj_with_mqa"].split == WHOLE
    assert weights["self_attn.kv_b_proj"].split == OUTPUTS
    assert weights["model.layers.61.eh_proj"].part == DRAFT and weights["model.layers.61.eh_proj"].end == "last"
    for name in ("mixtral-8x22b", "kimi-linear-48b"):
        assert "block_sparse_moe.experts.0.w1" in {weight.name for weight in model(name).weights}
    sinks = next(weight for weight in model("gpt-oss-20b").weights if weight.name == "self_attn.sinks")
    assert (sinks.outputs, sinks.part) == (64, ATTENTION)


@pytest.mark.parametrize(
    ("name", "prefix", "outside"),
    [
        ("gemma-3-27b-it", "language_model.model.layers", "language_model.model.embed_tokens"),
        ("qwen3-vl-30b-a3b", "model.language_model.layers", "model.language_model.embed_tokens"),
        ("qwen2.5-vl-7b", "model.layers", "model.embed_tokens"),
        ("llama-4-scout", "language_model.model.layers", "language_model.lm_head"),
        ("gpt2", "transformer.h", "transformer.wpe"),
        ("opt-125m", "model.decoder.layers", "model.decoder.embed_positions"),
        ("nemotron-h-8b", "backbone.layers", "backbone.embeddings"),
        ("dbrx-instruct", "transformer.blocks", "lm_head"),
    ],
)
def test_where_layers_and_tables_are_named(name: str, prefix: str, outside: str) -> None:
    found = model(name)
    assert found.prefix == prefix
    assert outside in {weight.name for weight in found.weights if not weight.layers}


# What layers remember


def kinds(found: Architecture) -> dict[str, int]:
    counted: dict[str, int] = {}
    for layer in found.layers:
        counted[layer.memory.kind] = counted.get(layer.memory.kind, 0) + 1
    return counted


@pytest.mark.parametrize(
    ("name", "expected", "reach"),
    [
        ("gemma-3-27b-it", {WINDOW: 52, FULL: 10}, 1024),
        ("gemma-2-9b-it", {WINDOW: 21, FULL: 21}, 4096),
        ("gpt-oss-120b", {WINDOW: 18, FULL: 18}, 128),
        ("mistral-7b-v0.1", {WINDOW: 32}, 4096),
        ("mistral-7b-instruct-v0.2", {FULL: 32}, 0),
        ("qwen2.5-72b-instruct", {FULL: 80}, 0),  # a sliding_window that use_sliding_window turns off
        ("llama-4-scout", {CHUNK: 36, FULL: 12}, 8192),
        ("gemma-4-26b-a4b-it", {WINDOW: 25, FULL: 5}, 1024),
        ("deepseek-v3", {MLA: 61}, 0),
        ("jamba-v0.1", {RECURRENT: 28, FULL: 4}, 0),
        ("qwen3-next-80b-a3b", {RECURRENT: 36, FULL: 12}, 0),
        ("kimi-linear-48b", {RECURRENT: 20, MLA: 7}, 0),
        ("minimax-m1", {RECURRENT: 70, FULL: 10}, 0),
        ("nemotron-h-8b", {RECURRENT: 24, FULL: 4, NOTHING: 24}, 0),
        ("llama-3.1-405b", {FULL: 126}, 0),
    ],
)
def test_memory_of_layers(name: str, expected: dict[str, int], reach: int) -> None:
    found = model(name)
    assert kinds(found) == expected
    assert max(layer.memory.reach for layer in found.layers) == reach


def test_patterns_begin_where_they_should() -> None:
    assert [layer.memory.kind for layer in model("gemma-3-27b-it").layers[:6]] == [WINDOW] * 5 + [FULL]
    assert [layer.memory.kind for layer in model("gpt-oss-20b").layers[:2]] == [WINDOW, FULL]
    assert [layer.memory.kind for layer in model("llama-4-scout").layers[:4]] == [CHUNK] * 3 + [FULL]


def test_qwen2_windows_begin_at_max_window_layers() -> None:
    found = model("qwen2.5-7b-instruct", use_sliding_window=True, sliding_window=4096, max_window_layers=20)
    assert [layer.memory.kind for layer in found.layers] == [FULL] * 20 + [WINDOW] * 8


def test_a_latent_is_one_vector_for_all_heads() -> None:
    memory = model("deepseek-v3").layers[0].memory
    assert (memory.kind, memory.kv_heads, memory.key_dim, memory.value_dim, memory.query_heads) == (MLA, 1, 576, 0, 128)
    assert memory.index_bytes == 0
    # An FP8 key of 128 elements and its scale.
    assert model("deepseek-v3.2").layers[0].memory.index_bytes == 132


@pytest.mark.parametrize(
    ("name", "kind", "state", "types"),
    [
        # (2 * 16 * 128 + 32 * 128) channels of convolution, 3 tokens back; 32 heads of 128 x 128
        ("qwen3-next-80b-a3b", "gdn", ((8192, 3), (32, 128, 128)), ("auto", "auto")),
        ("qwen3.5-35b-a3b", "gdn", ((8192, 3), (32, 128, 128)), ("auto", "float32")),
        ("kimi-linear-48b", "kda", ((12288, 3), (32, 128, 128)), ("auto", "float32")),
        ("jamba-v0.1", "mamba1", ((8192, 3), (8192, 16)), ("auto", "auto")),
        ("nemotron-h-8b", "mamba2", ((10240, 3), (128, 64, 128)), ("auto", "float32")),
        ("granite-4.0-h-small", "mamba2", ((8448, 3), (128, 64, 128)), ("auto", "auto")),
        ("minimax-m1", "lightning", ((64, 128, 128),), ("auto",)),
    ],
)
def test_states_are_as_vllm_allocates_them(
    name: str, kind: str, state: tuple[tuple[int, ...], ...], types: tuple[str, ...]
) -> None:
    memory = next(layer.memory for layer in model(name).layers if layer.memory.kind == RECURRENT)
    assert (memory.state_kind, memory.state, memory.state_types) == (kind, state, types)


def test_a_layer_that_keeps_both() -> None:
    layer = model("falcon-h1-7b").layers[0]
    assert [memory.kind for memory in layer.memories] == [FULL, RECURRENT]
    assert layer.beside.state_kind == "mamba2"
    assert [memory.kind for memory in model("llama-2-7b").layers[0].memories] == [FULL]
    assert model("nemotron-h-8b").layers[1].memories == ()


def test_layers_that_read_keys_of_earlier_layers_keep_none() -> None:
    found = architecture(VARIANTS["gemma4"]["config"])
    assert [layer.memory.kind for layer in found.layers] == [WINDOW, FULL, NOTHING, NOTHING]
    assert [layer.memory.key_dim for layer in found.layers[:2]] == [16, 32]
    assert any("keep none" in note for note in found.notes)


# Other facts


def test_dtype_under_both_names_and_where_there_is_none() -> None:
    values = config("llama-3.1-8b")
    values.pop("torch_dtype")
    assert architecture({**values, "dtype": "float16"}).dtype == "float16"
    assert architecture({**values, "torch_dtype": "torch.float32"}).dtype == "float32"
    assumed = architecture(values)
    assert assumed.dtype == "bfloat16" and any("dtype" in note for note in assumed.notes)
    assert model("qwen3.5-35b-a3b").dtype == "bfloat16"  # in text_config


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 32768),
        ({"type": "dynamic", "factor": 2.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}, 8192),
        ({"rope_type": "llama3", "factor": 8.0}, 8192),
        (None, 8192),
    ],
)
def test_scaled_positions_count_as_in_vllm(scaling: dict[str, Any] | None, length: int) -> None:
    assert model("llama-3.1-8b", max_position_embeddings=8192, rope_scaling=scaling).max_context == length


def test_gemma_3_names_its_length_already_scaled() -> None:
    assert model("gemma-3-27b-it").max_context == 131072


def test_the_widest_layer_counts_the_experts_of_a_token() -> None:
    assert model("llama-3.1-8b").intermediate_size == 14336
    assert model("mixtral-8x7b").intermediate_size == 2 * 14336
    assert model("deepseek-v3").intermediate_size == 18432  # its dense layers: 9 experts of 2048 are as wide
    assert model("qwen3-30b-a3b").intermediate_size == 8 * 768


def test_aliases_of_older_configs() -> None:
    found = model("gpt2")
    assert (found.hidden_size, len(found.layers), found.heads, found.max_context) == (768, 12, 12, 1024)
    assert model("falcon-7b-instruct").kv_heads == 1


def test_a_null_means_what_the_config_class_says() -> None:
    assert model("llama-2-7b", num_key_value_heads=None).kv_heads == 32
    assert model("mistral-7b-v0.1", sliding_window=None).layers[0].memory.kind == FULL
    without = config("mistral-7b-v0.1")
    without.pop("sliding_window")
    assert architecture(without).layers[0].memory.reach == 4096  # the default of MistralConfig


def test_a_nested_config_takes_defaults_of_its_class() -> None:
    assert "vocab_size" not in config("gemma-3-27b-it")["text_config"]
    assert model("gemma-3-27b-it").vocabulary == 262208


def test_defaults_are_of_families_that_exist() -> None:
    assert set(DEFAULTS) <= set(FAMILIES)


# Bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 7}, ["num_key_value_heads", "8 does not divide", "7"]),
        ({"num_attention_heads": 24, "head_dim": None}, ["num_attention_heads", "24", "4096", "head_dim"]),
        ({"num_key_value_heads": 5}, ["num_key_value_heads", "5", "32"]),
        ({"num_key_value_heads": 64}, ["num_key_value_heads", "64"]),
        ({"vocab_size": 0}, ["vocab_size", "found 0", "at least 1"]),
        ({"hidden_size": -1}, ["hidden_size", "found -1"]),
        ({"hidden_size": "4096"}, ["hidden_size", "'4096'"]),
        ({"hidden_size": 4096.5}, ["hidden_size", "4096.5"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "True"]),
        ({"head_dim": 0}, ["head_dim", "found 0"]),
        ({"n_layer": 33}, ["num_hidden_layers is 32", "n_layer is 33"]),
        ({"layer_types": ["full_attention"] * 31}, ["layer_types", "31", "32"]),
        ({"layer_types": ["full_attention"] * 31 + ["sideways"]}, ["layer_types[31]", "sideways", "sliding_attention"]),
        ({"layer_types": ["mamba"] * 32}, ["layer_types[0]", "mamba"]),
        ({"layer_types": "full_attention"}, ["layer_types", "a list"]),
        ({"layer_types": ["sliding_attention"] * 32}, ["sliding_window", "layer 0", "tokens"]),
        ({"torch_dtype": "int3"}, ["torch_dtype", "int3", "bfloat16"]),
        ({"attention_bias": 1}, ["attention_bias", "true or false"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings"]),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, ["rope_scaling.factor", "'x'"]),
    ],
)
def test_a_config_that_contradicts_itself(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        model("llama-3.1-8b", **changes)
    assert all(word in str(caught.value) for word in ["llama-3.1-8b.json", *words]), str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, ["num_experts_per_tok", "9", "num_local_experts 8"]),
        ("mixtral-8x7b", {"num_local_experts": 0}, ["num_local_experts", "found 0"]),
        ("mixtral-8x7b", {"sliding_window": -4}, ["sliding_window", "-4"]),
        ("qwen3-30b-a3b", {"mlp_only_layers": [48]}, ["mlp_only_layers", "48", "47"]),
        ("deepseek-v3", {"mlp_layer_types": ["dense"] * 60}, ["mlp_layer_types", "60", "61"]),
        ("jamba-v0.1", {"attn_layer_offset": 8}, ["attn_layer_offset", "8"]),
        ("nemotron-h-8b", {"hybrid_override_pattern": "M-X*"}, ["hybrid_override_pattern", "X"]),
        ("nemotron-h-8b", {"hybrid_override_pattern": "M-*"}, ["num_hidden_layers", "3 layers"]),
        ("minimax-m1", {"attn_type_list": [0] * 79}, ["attn_type_list", "79", "80"]),
        ("kimi-linear-48b", {"linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1]}}, ["kda_layers", "27"]),
        ("gemma-3-27b-it", {"text_config": "x"}, ["text_config", "'x'", "mapping"]),
        ("gemma-3-27b-it", {"text_config": {"model_type": "gemini"}}, ["text_config.model_type", "gemini", "gemma"]),
        ("gemma-3-27b-it", {"vision_config": {"model_type": "clip"}}, ["vision_config.model_type", "clip"]),
    ],
)
def test_mistakes_of_one_family(name: str, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        model(name, **changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_missing_keys_are_named_all_at_once() -> None:
    values = config("deepseek-v3")
    for key in ("hidden_size", "kv_lora_rank", "n_routed_experts"):
        values.pop(key)
    with pytest.raises(ModelError, match="hidden_size") as caught:
        architecture(values)
    assert "kv_lora_rank" in str(caught.value) and "experts" in str(caught.value)


def test_an_empty_nested_config_is_not_filled_with_defaults() -> None:
    with pytest.raises(ModelError, match="hidden_size"):
        architecture({"model_type": "gemma3"})


def test_a_family_that_is_not_known_is_named_with_what_is_needed() -> None:
    with pytest.raises(ModelError) as caught:
        architecture({"model_type": "lama", "architectures": ["LamaForCausalLM"]}, "there/config.json")
    said = str(caught.value)
    assert all(word in said for word in ("there/config.json", "'lama'", "LamaForCausalLM", "llama", "explicit numbers"))


@pytest.mark.parametrize("values", [None, [], "llama", 7, {}, {"model_type": 7}, {"model_type": None}])
def test_what_is_no_config(values: Any) -> None:
    with pytest.raises(ModelError, match=r"^config\.json"):
        architecture(values)


def test_cross_attention_is_refused() -> None:
    with pytest.raises(ModelError, match="cross-attention"):
        architecture({"model_type": "mllama"})


@given(st.sampled_from(FILES), st.data())
def test_no_value_of_a_config_leads_to_another_error(name: str, data: st.DataObject) -> None:
    values = json.loads((CONFIGS / name).read_text())
    place = values
    if isinstance(values.get("text_config"), dict) and data.draw(st.booleans()):
        place = values["text_config"]
    key = data.draw(st.sampled_from(sorted(place)))
    odd = st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.text(max_size=3), st.just([]), st.just({}), st.just(1.5))
    place[key] = data.draw(odd)
    try:
        found = architecture(values, name)
    except ModelError as problem:
        assert str(problem).startswith(name)
    else:
        assert found.parameters() > 0


# Explicit numbers

LLAMA_8B = {
    "layers": 32,
    "hidden_size": 4096,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "vocabulary": 128256,
}


def test_explicit_numbers_of_a_llama_are_that_llama() -> None:
    found = explicit({**LLAMA_8B, "max_context": 131072, "dtype": "bfloat16"})
    other = model("llama-3.1-8b")
    assert (found.parameters(), found.layers, found.weights) == (other.parameters(), other.layers, other.weights)
    assert found.family == "explicit"
    assert any("explicit" in note for note in found.notes)


@pytest.mark.parametrize("total", [8_030_261_248, 8_030_261_249, 8_100_000_000, 9_000_000_003])
def test_explicit_numbers_are_closed_to_the_parameters_given(total: int) -> None:
    found = explicit({**LLAMA_8B, "parameters": total})
    assert found.parameters() == total
    assert ("unnamed" in {weight.name for weight in found.weights}) == (total != 8_030_261_248)


def test_explicit_numbers_may_be_rounded_down_and_no_more() -> None:
    found = explicit({**LLAMA_8B, "parameters": 8_000_000_000})
    assert found.parameters() == 8_030_261_248
    assert any("30261248 more" in note for note in found.notes)
    with pytest.raises(ModelError, match=r"parameters: 7000000000 is 14\.7 % less"):
        explicit({**LLAMA_8B, "parameters": 7_000_000_000})


def test_explicit_mixture_windows_and_tied_embeddings() -> None:
    numbers = {key: value for key, value in LLAMA_8B.items() if key != "intermediate_size"}
    found = explicit(
        {
            **numbers,
            "experts": 8,
            "experts_per_token": 2,
            "expert_intermediate_size": 1024,
            "shared_expert_intermediate_size": 512,
            "window": 1024,
            "windowed_layers": 24,
            "tied": True,
            "dtype": "float16",
        }
    )
    assert (found.experts, found.experts_per_token, found.tied, found.dtype) == (8, 2, True, "float16")
    assert found.parameters([EXPERT]) == 32 * 8 * 3 * 4096 * 1024
    assert found.parameters(["shared_experts"]) == 32 * 3 * 4096 * 512
    assert kinds(found) == {WINDOW: 24, FULL: 8}
    assert not found.parameters(["head"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": "32"}, ["layers", "'32'"]),
        ({"layers": 0}, ["layers", "found 0"]),
        ({"heads": 7}, ["kv_heads", "8 does not divide heads 7"]),
        ({"heads": 24, "head_dim": None}, ["heads", "24 does not divide hidden_size 4096"]),
        ({"hidden_size": None}, ["hidden_size", "missing"]),
        ({"experts": 8}, ["experts_per_token", "expert_intermediate_size"]),
        ({"experts": 8, "experts_per_token": 9, "expert_intermediate_size": 64}, ["experts_per_token", "9", "experts 8"]),
        ({"window": 64, "windowed_layers": 33}, ["windowed_layers", "33"]),
        ({"windowed_layers": 3}, ["windowed_layers", "window"]),
        ({"layer": 3}, ["unknown", "layer", "layers"]),
        ({"dtype": "int8"}, ["dtype", "int8"]),
        ({"tied": "yes"}, ["tied", "true or false"]),
    ],
)
def test_explicit_numbers_that_are_wrong(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        explicit({**LLAMA_8B, **changes})
    assert all(word in str(caught.value) for word in ["explicit numbers", *words]), str(caught.value)
