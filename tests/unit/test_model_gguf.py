# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""GGUF files: exact bytes, what layers remember, and a clear refusal of whatever is not whole."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import (
    CHUNK,
    FULL,
    MLA,
    NOTHING,
    RECURRENT,
    WINDOW,
    ModelError,
)
from ansible_collections.onprem.llm.plugins.module_utils._model_gguf import (
    TYPES,
    TYPES_BY_NAME,
    GgufArray,
    GgufHeader,
    architecture_of,
    read_header,
)
from ansible_collections.onprem.llm.plugins.module_utils._model_quantisation import scheme_of_gguf, sharded_bytes, weight_bytes

CODES = {"u8": (0, "B"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "f64": (12, "d")}


class Gguf:
    """Writes tiny GGUF files, of either byte order."""

    def __init__(self, order: str = "<", version: int = 3, alignment: int = 32) -> None:
        self.order, self.version, self.alignment = order, version, alignment
        self.metadata: list[tuple[str, Any]] = []
        self.tensors: list[tuple[str, int, tuple[int, ...]]] = []
        self.told: dict[str, int] = {}  # what the counts say where that is not the truth

    def pack(self, code: str, *values: Any) -> bytes:
        return struct.pack(self.order + code, *values)

    def text(self, value: str) -> bytes:
        raw = value.encode()
        return self.pack("Q", len(raw)) + raw

    def value(self, found: Any) -> bytes:
        """A value with its type: text, bool, int (u32), float, (code, value), or a list of these."""
        if isinstance(found, str):
            return self.pack("I", 8) + self.text(found)
        if isinstance(found, list):
            one = found[0] if found else 0
            if isinstance(one, str):
                return self.pack("IIQ", 9, 8, len(found)) + b"".join(self.text(each) for each in found)
            number, code = CODES["bool" if isinstance(one, bool) else "i32"]
            return self.pack("IIQ", 9, number, len(found)) + b"".join(self.pack(code, each) for each in found)
        if isinstance(found, tuple):
            number, code = CODES[found[0]]
            return self.pack("I", number) + self.pack(code, found[1])
        number, code = CODES["bool" if isinstance(found, bool) else "u32" if isinstance(found, int) else "f32"]
        return self.pack("I", number) + self.pack(code, found)

    def add(self, name: str, *shape: int, kind: str | int = "F16") -> None:
        self.tensors.append((name, TYPES_BY_NAME[kind].number if isinstance(kind, str) else kind, shape))

    def header(self) -> bytes:
        out = b"GGUF" + self.pack(
            "IQQ", self.version, self.told.get("tensors", len(self.tensors)), self.told.get("keys", len(self.metadata))
        )
        for key, found in self.metadata:
            out += self.text(key) + self.value(found)
        offset = 0
        for name, kind, shape in self.tensors:
            out += (
                self.text(name) + self.pack("I", len(shape)) + self.pack(f"{len(shape)}Q", *shape) + self.pack("IQ", kind, offset)
            )
            offset += self.padded(self.bytes(kind, shape))
        return out

    def padded(self, count: int) -> int:
        return -(-count // self.alignment) * self.alignment

    def bytes(self, kind: int, shape: tuple[int, ...]) -> int:
        count = 1
        for length in shape:
            count *= length
        return count // TYPES[kind].block * TYPES[kind].block_bytes if kind in TYPES else 0

    def write(self, path: Path, cut: int | None = None) -> Path:
        data = self.header()
        data += b"\0" * (self.padded(len(data)) - len(data))
        for number, (_name, kind, shape) in enumerate(self.tensors, 1):
            size = self.bytes(kind, shape)
            data += b"\1" * (size if number == len(self.tensors) else self.padded(size))
        path.write_bytes(data if cut is None else data[:cut])
        return path


def llama(layers: int = 2, kind: str = "Q4_K", **metadata: Any) -> Gguf:
    """A llama of 256 hidden, 4 heads of 64, 2 KV heads, 512 between, 320 tokens."""
    file = Gguf()
    name = metadata.pop("name", "llama")
    values: dict[str, Any] = {
        "block_count": layers,
        "context_length": 4096,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    values.update({key: found for key, found in metadata.items() if found is not None})
    for key in [key for key, found in metadata.items() if found is None]:
        values.pop(key, None)
    file.metadata = [("general.architecture", name), ("general.file_type", 15)]
    file.metadata += [
        (key if key.startswith(("tokenizer", "general")) else f"{name}.{key}", found) for key, found in values.items()
    ]
    file.add("token_embd.weight", 256, 320, kind=kind)
    for layer in range(layers):
        block = f"blk.{layer}."
        file.add(block + "attn_norm.weight", 256, kind="F32")
        file.add(block + "attn_q.weight", 256, 256, kind=kind)
        file.add(block + "attn_k.weight", 256, 128, kind=kind)
        file.add(block + "attn_v.weight", 256, 128, kind="Q6_K")
        file.add(block + "attn_output.weight", 256, 256, kind=kind)
        file.add(block + "ffn_norm.weight", 256, kind="F32")
        file.add(block + "ffn_gate.weight", 256, 512, kind=kind)
        file.add(block + "ffn_up.weight", 256, 512, kind=kind)
        file.add(block + "ffn_down.weight", 512, 256, kind="Q6_K")
    file.add("output_norm.weight", 256, kind="F32")
    file.add("output.weight", 256, 320, kind="Q6_K")
    return file


def read(tmp_path: Path, file: Gguf) -> GgufHeader:
    return read_header(file.write(tmp_path / "model.gguf"))


# Bits for each weight as published: https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md names 2.0625 for
# IQ2_XXS, 4.25 for IQ4_XS and so on; 4.5 for blocks of 32 with a half float.
@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("F32", 32),
        ("BF16", 16),
        ("Q4_0", 4.5),
        ("Q4_1", 5),
        ("Q5_0", 5.5),
        ("Q8_0", 8.5),
        ("Q2_K", 2.625),
        ("Q3_K", 3.4375),
        ("Q4_K", 4.5),
        ("Q5_K", 5.5),
        ("Q6_K", 6.5625),
        ("IQ1_S", 1.5625),
        ("IQ1_M", 1.75),
        ("IQ2_XXS", 2.0625),
        ("IQ2_XS", 2.3125),
        ("IQ3_XXS", 3.0625),
        ("IQ3_S", 3.4375),
        ("IQ4_NL", 4.5),
        ("IQ4_XS", 4.25),
        ("TQ1_0", 1.6875),
        ("TQ2_0", 2.0625),
        ("MXFP4", 4.25),
        ("NVFP4", 4.5),
        ("Q1_0", 1.125),
        ("Q2_0", 2.25),
    ],
)
def test_bits_of_the_types(name: str, bits: float) -> None:
    assert TYPES_BY_NAME[name].bits == bits


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_reads_both_versions_and_byte_orders(tmp_path: Path, order: str, version: int) -> None:
    file = llama()
    file.order, file.version = order, version
    file.metadata += [
        ("general.name", "Tiny"),
        ("some.flag", True),
        ("some.float", ("f64", 0.5)),
        ("some.long", ("u64", 2**40)),
        ("some.list", [3, 4]),
        ("some.flags", [True, False]),
        ("general.tags", ["a", "b"]),
        ("tokenizer.ggml.tokens", ["x"] * 320),
        ("tokenizer.ggml.token_type", [1] * 320),
    ]
    header = read(tmp_path, file)
    assert (header.version, header.byte_order) == (version, "little" if order == "<" else "big")
    told = header.metadata
    assert (told["general.name"], told["some.flag"], told["some.float"], told["some.long"]) == ("Tiny", True, 0.5, 2**40)
    assert (told["some.list"], told["some.flags"], told["general.tags"]) == ((3, 4), (True, False), ("a", "b"))
    assert told["tokenizer.ggml.tokens"] == GgufArray("string", 320) and told["tokenizer.ggml.token_type"] == GgufArray(
        "int32", 320
    )
    assert header.tensors[0].shape == (256, 320)


def test_bytes_are_exact_by_part(tmp_path: Path) -> None:
    header = read(tmp_path, llama(3))
    layer = 256 * 256 * 2 + 256 * 128
    assert header.bytes_by_part() == {
        "embedding": 256 * 320 * 144 // 256,
        "attention": 3 * (layer * 144 // 256 + 256 * 128 * 210 // 256),
        "mlp": 3 * (2 * 256 * 512 * 144 // 256 + 512 * 256 * 210 // 256),
        "norms": 7 * 256 * 4,
        "head": 256 * 320 * 210 // 256,
    }
    assert sum(header.bytes_by_part().values()) == header.bytes_total == sum(header.bytes_by_type().values())
    # Every byte of the file after the header is a tensor's, or padding.
    assert header.file_bytes - header.data_offsets[0] >= header.bytes_total


def test_architecture_counts_the_tensors(tmp_path: Path) -> None:
    header = read(tmp_path, llama(3))
    found = architecture_of(header)
    assert found.parameters() == header.parameters
    assert (found.hidden_size, found.vocabulary, found.heads, found.kv_heads, found.head_dim) == (256, 320, 4, 2, 64)
    assert (found.intermediate_size, found.max_context, found.dtype, found.tied, found.family) == (
        512,
        4096,
        "float16",
        False,
        "llama",
    )
    assert [layer.memory.kind for layer in found.layers] == [FULL] * 3
    assert found.layers[0].memory.key_dim == found.layers[0].memory.value_dim == 64
    key = next(weight for weight in found.weights if weight.name == "attn_k.weight")
    assert (key.outputs, key.inputs, key.layers, key.split) == (128, 256, (0, 1, 2), "kv_heads")


def test_the_stored_scheme_has_the_file_s_bytes(tmp_path: Path) -> None:
    header = read(tmp_path, llama(3))
    found, scheme = architecture_of(header), scheme_of_gguf(header)
    assert scheme.name == "Q4_K_M"
    assert sum(weight_bytes(weight, scheme, 2) for weight in found.weights) == header.bytes_total
    by_part: dict[str, int] = {}
    for weight in found.weights:
        by_part[weight.part] = by_part.get(weight.part, 0) + weight_bytes(weight, scheme, 2)
    assert by_part == header.bytes_by_part()


def test_the_stored_scheme_divides(tmp_path: Path) -> None:
    header = read(tmp_path, llama(3, kind="Q8_0"))
    found, scheme = architecture_of(header), scheme_of_gguf(header)
    halves = sum(sharded_bytes(weight, scheme, 2, 2, kv_heads=2, vocabulary_padding=1) for weight in found.weights)
    norms = header.bytes_by_part()["norms"]
    assert halves == (header.bytes_total - norms) // 2 + norms


def test_layers_of_different_shapes_stay_apart(tmp_path: Path) -> None:
    file = llama(2)
    file.tensors = [one for one in file.tensors if not one[0].startswith("blk.1.ffn_")]
    for name, shape in (("ffn_gate", (256, 1024)), ("ffn_up", (256, 1024)), ("ffn_down", (1024, 256))):
        file.add(f"blk.1.{name}.weight", *shape, kind="Q8_0")
    header = read(tmp_path, file)
    found = architecture_of(header)
    assert found.parameters() == header.parameters
    assert found.intermediate_size == 1024
    assert sorted(weight.layers for weight in found.weights if weight.name == "ffn_up.weight") == [(0,), (1,)]
    assert sum(weight_bytes(weight, scheme_of_gguf(header), 2) for weight in found.weights) == header.bytes_total


def test_tied_embeddings(tmp_path: Path) -> None:
    file = llama()
    file.tensors = [one for one in file.tensors if one[0] != "output.weight"]
    assert architecture_of(read(tmp_path, file)).tied


def mixture(name: str = "qwen3moe", experts: int = 8, used: int = 2, layers: int = 2) -> Gguf:
    file = llama(layers, name=name, expert_count=experts, expert_used_count=used)
    file.tensors = [
        one for one in file.tensors if "ffn_gate" not in one[0] and "ffn_up" not in one[0] and "ffn_down" not in one[0]
    ]
    for layer in range(layers):
        block = f"blk.{layer}."
        file.add(block + "ffn_gate_inp.weight", 256, experts, kind="F32")
        file.add(block + "ffn_gate_exps.weight", 256, 64, experts, kind="Q4_0")
        file.add(block + "ffn_up_exps.weight", 256, 64, experts, kind="Q4_0")
        file.add(block + "ffn_down_exps.weight", 64, 256, experts, kind="Q8_0")
        file.add(block + "ffn_down_shexp.weight", 128, 256, kind="Q8_0")
    return file


def test_experts(tmp_path: Path) -> None:
    header = read(tmp_path, mixture())
    found = architecture_of(header)
    assert (found.experts, found.experts_per_token) == (8, 2)
    assert found.intermediate_size == 2 * 64 + 128
    experts = [weight for weight in found.weights if weight.part == "experts"]
    assert {(weight.name, weight.outputs, weight.inputs, weight.copies) for weight in experts} == {
        ("ffn_gate_exps.weight", 64, 256, 8),
        ("ffn_up_exps.weight", 64, 256, 8),
        ("ffn_down_exps.weight", 256, 64, 8),
    }
    sizes = header.bytes_by_part()
    assert sizes["router"] == 2 * 256 * 8 * 4
    assert sizes["experts"] == 2 * 8 * 256 * 64 * (18 + 18 + 34) // 32
    scheme = scheme_of_gguf(header)
    assert sum(sharded_bytes(weight, scheme, 2, 1, expert_parallel=4) for weight in experts) == sizes["experts"] // 4
    assert sum(weight_bytes(weight, scheme, 2) for weight in found.weights) == header.bytes_total


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"experts": 8, "used": 9}, r"expert_used_count 9 is more than expert_count 8"),
        ({"told": 16}, r"expert_count is 16, the tensors have \[8\] experts"),
        ({"told": None}, r"qwen3moe.expert_count is missing"),
    ],
)
def test_experts_that_contradict(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    told = changed.pop("told", 0)
    file = mixture(**changed)
    if told != 0:
        file.metadata = [(key, told if key.endswith("expert_count") else found) for key, found in file.metadata]
        file.metadata = [(key, found) for key, found in file.metadata if found is not None]
    header = read(tmp_path, file)
    with pytest.raises(ModelError, match=message):
        architecture_of(header)


@pytest.mark.parametrize(
    ("name", "layers", "extra", "kinds"),
    [
        ("gemma2", 4, {}, [WINDOW, FULL, WINDOW, FULL]),
        ("gpt-oss", 4, {}, [WINDOW, FULL, WINDOW, FULL]),
        ("gemma3", 7, {}, [WINDOW] * 5 + [FULL, WINDOW]),
        ("cohere2", 4, {}, [WINDOW, WINDOW, WINDOW, FULL]),
        ("smallthinker", 5, {}, [FULL, WINDOW, WINDOW, WINDOW, FULL]),
        ("gemma3", 4, {"attention.sliding_window_pattern": 2}, [WINDOW, FULL, WINDOW, FULL]),
        ("mimo2", 4, {"attention.sliding_window_pattern": [True, True, False, False]}, [WINDOW, WINDOW, FULL, FULL]),
        ("llama4", 4, {}, [CHUNK, CHUNK, CHUNK, FULL]),
        ("phi3", 2, {}, [FULL, FULL]),
        ("qwen3", 2, {}, [FULL, FULL]),
    ],
)
def test_windows(tmp_path: Path, name: str, layers: int, extra: dict[str, Any], kinds: list[str]) -> None:
    found = architecture_of(read(tmp_path, llama(layers, name=name, **{"attention.sliding_window": 1024, **extra})))
    assert [layer.memory.kind for layer in found.layers] == kinds
    reach = {layer.memory.reach for layer in found.layers if layer.memory.kind != FULL}
    assert reach == ({8192} if name == "llama4" else {1024} if WINDOW in kinds else set())


def test_a_window_that_the_file_should_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gemma3.attention.sliding_window is missing"):
        architecture_of(read(tmp_path, llama(2, name="gemma3")))
    with pytest.raises(ModelError, match=r"sliding_window_pattern is missing"):
        architecture_of(read(tmp_path, llama(2, name="mimo2", **{"attention.sliding_window": 128})))
    with pytest.raises(ModelError, match=r"sliding_window_pattern has 1 values, the model has 2 layers"):
        values = {"attention.sliding_window": 128, "attention.sliding_window_pattern": [True]}
        architecture_of(read(tmp_path, llama(2, name="mimo2", **values)))


def test_layers_that_use_another_s_keys(tmp_path: Path) -> None:
    values = {
        "attention.sliding_window": 512,
        "attention.sliding_window_pattern": [True, False, True],
        "attention.shared_kv_layers": 1,
    }
    found = architecture_of(read(tmp_path, llama(3, name="gemma4", **values)))
    assert [layer.memory.kind for layer in found.layers] == [WINDOW, FULL, NOTHING]


def latent(absorbed: bool) -> Gguf:
    file = llama(1, name="deepseek2", **{"attention.head_count_kv": 1 if absorbed else 4, "attention.kv_lora_rank": 96})
    file.metadata += [("deepseek2.rope.dimension_count", 32), ("deepseek2.attention.q_lora_rank", 64)]
    if absorbed:
        file.metadata += [("deepseek2.attention.key_length_mla", 96), ("deepseek2.attention.value_length_mla", 64)]
        file.metadata += [("deepseek2.attention.key_length", 128), ("deepseek2.attention.value_length", 96)]
    else:
        file.metadata += [("deepseek2.attention.key_length", 96), ("deepseek2.attention.value_length", 64)]
    file.tensors = [one for one in file.tensors if not re.search(r"attn_[qkv]\.", one[0])]
    file.add("blk.0.attn_q_a.weight", 256, 64, kind="Q8_0")
    file.add("blk.0.attn_q_b.weight", 64, 384, kind="Q8_0")
    file.add("blk.0.attn_kv_a_mqa.weight", 256, 128, kind="Q8_0")
    if absorbed:
        file.add("blk.0.attn_k_b.weight", 64, 96, 4, kind="Q8_0")
        file.add("blk.0.attn_v_b.weight", 96, 64, 4, kind="Q8_0")
    else:
        file.add("blk.0.attn_kv_b.weight", 96, 512, kind="Q8_0")
    return file


def test_latent_attention(tmp_path: Path) -> None:
    header = read(tmp_path, latent(True))
    found = architecture_of(header)
    memory = found.layers[0].memory
    assert (memory.kind, memory.key_dim, memory.value_dim, memory.query_heads, memory.query_dim) == (MLA, 128, 0, 4, 96)
    assert found.parameters() == header.parameters
    heads = next(weight for weight in found.weights if weight.name == "attn_k_b.weight")
    assert (heads.outputs, heads.inputs, heads.part, heads.split) == (96 * 4, 64, "attention", "outputs")
    assert sum(weight_bytes(weight, scheme_of_gguf(header), 2) for weight in found.weights) == header.bytes_total


def test_latent_attention_of_older_files_keeps_every_head(tmp_path: Path) -> None:
    memory = architecture_of(read(tmp_path, latent(False))).layers[0].memory
    assert (memory.kind, memory.kv_heads, memory.key_dim, memory.value_dim) == (FULL, 4, 96, 64)


def hybrid() -> Gguf:
    """Three layers of gated delta nets and one of attention, as in Qwen3-Next: 4 value heads of 32, 2 key heads of 32."""
    file = llama(4, name="qwen3next")
    file.metadata += [
        (f"qwen3next.ssm.{key}", found)
        for key, found in {"conv_kernel": 4, "inner_size": 128, "state_size": 32, "time_step_rank": 4, "group_count": 2}.items()
    ]
    file.tensors = [one for one in file.tensors if not (re.match(r"blk\.[012]\.attn_", one[0]) and "norm" not in one[0])]
    for layer in range(3):
        block = f"blk.{layer}."
        file.add(block + "attn_qkv.weight", 256, 256, kind="Q8_0")
        file.add(block + "attn_gate.weight", 256, 128, kind="Q8_0")
        file.add(block + "ssm_conv1d.weight", 4, 256, kind="F32")
        file.add(block + "ssm_a", 4, kind="F32")
        file.add(block + "ssm_out.weight", 128, 256, kind="Q8_0")
    return file


def test_layers_with_a_state(tmp_path: Path) -> None:
    header = read(tmp_path, hybrid())
    found = architecture_of(header)
    assert [layer.memory.kind for layer in found.layers] == [RECURRENT] * 3 + [FULL]
    memory = found.layers[0].memory
    # n_embd_r and n_embd_s of llama.cpp: (4 - 1) x (128 + 2 x 2 x 32) and 32 x 128
    assert memory.state == ((256, 3), (4, 32, 32)) and memory.state_kind == "gdn"
    sizes = header.bytes_by_part()
    assert sizes["linear_attention"] == 3 * ((256 * 256 + 256 * 128 + 128 * 256) * 34 // 32 + 4 * 256 * 4 + 4 * 4)
    assert found.parameters(["linear_attention"]) == 3 * (256 * 256 + 256 * 128 + 128 * 256 + 4 * 256 + 4)
    assert not next(weight for weight in found.weights if weight.name == "ssm_conv1d.weight").matrix


def test_layers_for_multi_token_prediction_are_apart(tmp_path: Path) -> None:
    file = llama(3, name="glm4moe", nextn_predict_layers=1)
    file.add("blk.2.nextn.eh_proj.weight", 512, 256, kind="Q8_0")
    header = read(tmp_path, file)
    found = architecture_of(header)
    assert (len(found.layers), found.draft_layers) == (2, 1)
    assert found.parameters() == header.parameters
    assert found.parameters(["multi_token_prediction"]) > 512 * 256
    assert all(layer < 2 for weight in found.weights for layer in weight.layers)
    assert sum(weight_bytes(weight, scheme_of_gguf(header), 2) for weight in found.weights) == header.bytes_total


def test_unknown_architectures_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"general.architecture is 'wavenet9'.*not known here; known: apertus, arcee, .*llama"):
        architecture_of(read(tmp_path, llama(name="wavenet9")))
    with pytest.raises(ModelError, match=r"vision part of a model"):
        architecture_of(read(tmp_path, llama(name="clip")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_count": None}, r"llama.block_count is missing"),
        ({"embedding_length": None}, r"llama.embedding_length is missing"),
        ({"attention.head_count": None}, r"llama.attention.head_count is missing"),
        ({"block_count": 3}, r"block_count is 3, and there is no tensor of layer 2"),
        ({"block_count": 1}, r"block_count is 1, and there are tensors of layer 1"),
        ({"block_count": 0}, r"block_count is 0, a number of at least 1"),
        ({"block_count": "two"}, r"block_count is 'two'"),
        ({"embedding_length": 512}, r"embedding_length is 512, the rows of token_embd.weight have 256"),
        ({"attention.head_count_kv": 4}, r"4 KV heads of 64 elements, and attn_k.weight has 128 outputs and not 256"),
        ({"attention.head_count_kv": 3}, r"4 heads, which its 3 KV heads do not divide"),
        ({"attention.head_count": 3, "attention.head_count_kv": 3}, r"3 heads do not divide llama.embedding_length 256"),
        ({"attention.head_count_kv": [2]}, r"head_count_kv has 1 values, the model has 2 layers"),
        ({"attention.key_length": ("i32", -1)}, r"key_length is -1"),
    ],
)
def test_metadata_that_contradict(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    header = read(tmp_path, llama(**values))
    with pytest.raises(ModelError, match=message):
        architecture_of(header)


def test_heads_may_differ_by_layer(tmp_path: Path) -> None:
    file = llama(
        2, name="openelm", **{"attention.head_count": [4, 8], "attention.head_count_kv": [2, 4], "attention.key_length": 32}
    )
    file.metadata.append(("openelm.attention.value_length", 32))
    file.tensors = [(name, kind, (256, 64) if name == "blk.0.attn_k.weight" else shape) for name, kind, shape in file.tensors]
    found = architecture_of(read(tmp_path, file))
    assert [layer.memory.kv_heads for layer in found.layers] == [2, 4]
    assert (found.heads, found.kv_heads, found.head_dim) == (8, 4, 32)


# --- files that are not whole ----------------------------------------------------------------------------------------


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    file = llama(1)
    file.metadata += [("tokenizer.ggml.tokens", ["ab", "c"]), ("some.list", [1, 2, 3]), ("general.name", "Tiny")]
    whole = file.write(tmp_path / "whole.gguf").read_bytes()
    header = read_header(tmp_path / "whole.gguf")
    path = tmp_path / "model.gguf"
    for cut in [*range(header.data_offsets[0] + 1), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelError) as caught:
            read_header(path)
        assert "model.gguf" in str(caught.value), cut
    path.write_bytes(whole)
    assert read_header(path).tensors == header.tensors


def test_truncation_says_where(tmp_path: Path) -> None:
    file = llama(1)
    path = file.write(tmp_path / "model.gguf", cut=len(file.header()) - 4)
    with pytest.raises(
        ModelError, match=r"header is truncated: 8 bytes of the offset of output.weight should start at byte \d+, .* has \d+"
    ):
        read_header(path)
    whole = file.write(path).stat().st_size
    file.write(path, cut=whole - 1)
    with pytest.raises(ModelError, match=rf"tensor 12 of 12, output.weight, ends at byte {whole}, the file has {whole - 1}"):
        read_header(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", r"no GGUF file|cannot be read"),
        (b"GG", r"no GGUF file"),
        (b"GGML" + b"\0" * 60, r"starts with b'GGML' and not with b'GGUF'"),
        (b"PK\x03\x04" + b"\0" * 60, r"no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), r"GGUF version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), r"GGUF version 4"),
        (b"GGUF" + struct.pack(">IQQ", 9, 0, 0), r"GGUF version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), r"1152921504606846976 tensors, which do not fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), r"1099511627776 metadata entries, which do not fit"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**50) + b"\0" * 40,
            r"metadata entry 1 of 1 at byte 32 would have \d+ bytes, at most 65535",
        ),
    ],
)
def test_what_is_no_gguf(tmp_path: Path, start: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(start)
    with pytest.raises(ModelError, match=message):
        read_header(path)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (4, (256, 4), r"odd.weight has the ggml type 4 \(Q4_2, which llama.cpp has removed"),
        (66, (256, 4), r"odd.weight has the ggml type 66; known are 0 to 42"),
        ("Q4_K", (128, 4), r"odd.weight has rows of 128 elements, Q4_K stores 256 together"),
        ("F16", (2**40, 2**40), r"1099511627776 x 1099511627776, which cannot be"),
        ("F16", (256, 0), r"256 x 0, which cannot be"),
        ("F16", (1, 1, 1, 1, 1), r"odd.weight has 5 dimensions, 1 to 4"),
    ],
)
def test_tensors_that_cannot_be(tmp_path: Path, kind: str | int, shape: tuple[int, ...], message: str) -> None:
    file = Gguf()
    file.metadata = [("general.architecture", "llama")]
    file.add("odd.weight", *shape, kind=kind)
    path = tmp_path / "model.gguf"
    path.write_bytes(file.header() + b"\0" * 4096)
    with pytest.raises(ModelError, match=message):
        read_header(path)


def test_tensors_do_not_overlap(tmp_path: Path) -> None:
    # A fork's type of the same number with longer blocks would look like this.
    file = Gguf()
    file.add("a", 256, 8, kind="F16")
    file.add("b", 256, 8, kind="F16")
    data = bytearray(file.write(tmp_path / "model.gguf").read_bytes())
    place = bytes(data).index(struct.pack("<Q", 4096))
    data[place : place + 8] = struct.pack("<Q", 2048)
    (tmp_path / "model.gguf").write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"b is at offset 2048, within a, which ends at 4096"):
        read_header(tmp_path / "model.gguf")


def test_names_are_there_once(tmp_path: Path) -> None:
    file = Gguf()
    file.add("a", 32)
    file.add("a", 32)
    with pytest.raises(ModelError, match=r"the tensor a is there twice"):
        read(tmp_path, file)
    file = Gguf()
    file.metadata = [("k", 1), ("k", 2)]
    file.add("a", 32)
    with pytest.raises(ModelError, match=r"k is there twice"):
        read(tmp_path, file)


def test_alignment(tmp_path: Path) -> None:
    file = Gguf(alignment=128)
    file.metadata = [("general.alignment", 128)]
    file.add("a", 32, kind="F32")
    file.add("b", 32, kind="F32")
    header = read(tmp_path, file)
    assert header.data_offsets[0] % 128 == 0 and header.tensors[1].offset == 128
    file.metadata = [("general.alignment", 48)]
    with pytest.raises(ModelError, match=r"general.alignment is 48, it must be a power of two"):
        read(tmp_path, file)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such file"):
        read_header(tmp_path / "model.gguf")


# --- split files -----------------------------------------------------------------------------------------------------


def split(tmp_path: Path, count: int = 3) -> list[Path]:
    whole = llama(2)
    paths = []
    for number in range(count):
        file = Gguf()
        file.metadata = list(whole.metadata) if number == 0 else []
        file.metadata += [("split.no", number), ("split.count", count), ("split.tensors.count", ("i32", len(whole.tensors)))]
        file.tensors = whole.tensors[number::count]
        paths.append(file.write(tmp_path / f"m-Q4_K_M-{number + 1:05}-of-{count:05}.gguf"))
    return paths


@pytest.mark.parametrize("which", [0, 2])
def test_split_files_are_read_together(tmp_path: Path, which: int) -> None:
    header = read_header(split(tmp_path)[which])
    whole = read(tmp_path, llama(2))
    assert header.bytes_by_part() == whole.bytes_by_part()
    assert header.file_bytes == sum(path.stat().st_size for path in tmp_path.glob("m-*.gguf"))
    assert architecture_of(header).parameters() == whole.parameters
    assert {tensor.part for tensor in header.tensors} == {0, 1, 2}


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelError, match=r"has 3 parts, not there: m-Q4_K_M-00002-of-00003.gguf"):
        read_header(paths[0])


def test_parts_must_belong_together(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(ModelError, match=r"00002-of-00003.gguf: says that it is part 3 of 3, the name says 2 of 3"):
        read_header(paths[0])
    paths = split(tmp_path)
    paths[1].rename(tmp_path / "part.gguf")
    with pytest.raises(ModelError, match=r"part.gguf: says that it is part 2 of 3"):
        read_header(tmp_path / "part.gguf")


def test_parts_must_have_all_tensors(tmp_path: Path) -> None:
    paths = split(tmp_path)
    file = Gguf()
    file.metadata = [("split.no", 1), ("split.count", 3)]
    file.add("a", 32)
    file.write(paths[1])
    with pytest.raises(ModelError, match=r"says that the model has 21 tensors, its 3 parts have \d+"):
        read_header(paths[0])


def test_a_large_vocabulary_is_quick(tmp_path: Path) -> None:
    file = llama(1)
    file.metadata += [("tokenizer.ggml.tokens", ["token"] * 200_000), ("general.name", "after")]
    header = read(tmp_path, file)
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 200_000
    assert header.metadata["general.name"] == "after"
    assert any("200000 tokens" in note for note in architecture_of(header).notes)
