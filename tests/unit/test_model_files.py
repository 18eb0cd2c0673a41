# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a model: whatever is not whole or does not fit is refused, with the place and both numbers."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.module_utils import _model_files as library
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import DRAFT, Architecture, ModelError, Weight
from ansible_collections.onprem.llm.plugins.module_utils._model_families import architecture as architecture_of
from ansible_collections.onprem.llm.plugins.module_utils._model_files import (
    ModelFiles,
    StoredTensor,
    compare_with,
    read_json,
    read_model,
    read_safetensors,
    stored_dtype,
)
from ansible_collections.onprem.llm.plugins.module_utils._model_quantisation import scheme_named, scheme_of, weight_bytes

REAL = Path(__file__).parents[1] / "fixtures/models/licence-llama/1.0.0"
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4, "U8": 1}

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def write_safetensors(
    path: Path, tensors: Shapes, change: Callable[[dict[str, Any]], None] | None = None, tail: bytes = b""
) -> int:
    """Writes a file and returns the bytes of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    reached = 0
    for name, (dtype, shape) in tensors.items():
        end = reached + elements(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [reached, end]}
        reached = end
    if change:
        change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * reached + tail)
    return reached


def write_json(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}


def llama(layers: int = 3, hidden: int = 64, inner: int = 128, vocabulary: int = 320, head: bool = True) -> Shapes:
    found: Shapes = {"model.embed_tokens.weight": ("BF16", (vocabulary, hidden))}
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden // 2, hidden),
            "self_attn.v_proj": (hidden // 2, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        found.update({f"model.layers.{layer}.{name}.weight": ("BF16", shape) for name, shape in shapes.items()})
    found["model.norm.weight"] = ("BF16", (hidden,))
    if head:
        found["lm_head.weight"] = ("BF16", (vocabulary, hidden))
    return found


class Model:
    """A model's directory in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.config: dict[str, Any] = dict(CONFIG)
        self.tensors = llama()

    def single(self) -> ModelFiles:
        write_json(self.path / "config.json", self.config)
        write_safetensors(self.path / "model.safetensors", self.tensors)
        return read_model(self.path)

    def shards(self, count: int = 2) -> dict[str, Any]:
        """Writes shards and their index, and returns the index."""
        write_json(self.path / "config.json", self.config)
        names = list(self.tensors)
        index: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": {}}
        for number in range(count):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            mine = {name: self.tensors[name] for name in names[number::count]}
            index["metadata"]["total_size"] += write_safetensors(self.path / file, mine)
            index["weight_map"].update(dict.fromkeys(mine, file))
        write_json(self.path / "model.safetensors.index.json", index)
        return index

    def reindex(self, index: dict[str, Any]) -> None:
        write_json(self.path / "model.safetensors.index.json", index)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path / "model")


def described(config: dict[str, Any]) -> Architecture:
    return architecture_of(config)


def compared(files: ModelFiles, **config: Any) -> list[str]:
    found = described({**files.config, **config})
    return compare_with(files, found, scheme_of(files.quantization_config, "bfloat16"))


# --- what is read ----------------------------------------------------------------------------------------------------


def test_the_repository_s_own_model_fits_its_configuration() -> None:
    files = read_model(REAL)
    assert (files.kind, files.quantization_config, files.generation["eos_token_id"]) == ("config", None, 1)
    assert files.safetensors is not None
    found = described(dict(files.config))
    assert files.safetensors.bytes_total == 2 * found.parameters() == 1_443_584
    assert compare_with(files, found, scheme_named("none", "bfloat16")) == []
    assert stored_dtype(files) == "bfloat16"


def test_one_file_and_shards_are_the_same_model(model: Model, tmp_path: Path) -> None:
    one = model.single()
    other = Model(tmp_path / "other")
    other.shards(3)
    many = read_model(other.path)
    assert one.safetensors and many.safetensors
    assert dict(one.safetensors.tensors) == dict(many.safetensors.tensors)
    assert one.safetensors.bytes_total == many.safetensors.bytes_total
    assert len(many.safetensors.files) == 3
    assert one.safetensors.tensors["model.norm.weight"] == StoredTensor("BF16", (64,), 128)
    assert compared(one) == compared(many) == []


def test_a_directory_and_its_config_json_are_the_same(model: Model) -> None:
    model.single()
    assert read_model(model.path) == read_model(model.path / "config.json")


def test_a_configuration_alone(model: Model, tmp_path: Path) -> None:
    write_json(model.path / "config.json", CONFIG)
    files = read_model(model.path)
    assert files.safetensors is None and compared(files) == []
    # Under another name it is a copy, and what is beside it is not its own.
    model.single()
    shutil.copy(model.path / "config.json", model.path / "some-model.json")
    assert read_model(model.path / "some-model.json").safetensors is None


def test_an_index_without_its_files_is_told(model: Model) -> None:
    model.shards()
    for path in model.path.glob("*.safetensors"):
        path.unlink()
    files = read_model(model.path)
    assert files.safetensors is None
    assert "names 2 files and none is there" in files.notes[0]


def test_repeated_and_foreign_weights_are_left_out(model: Model) -> None:
    model.shards()
    shutil.copy(model.path / "model-00001-of-00002.safetensors", model.path / "consolidated.safetensors")
    write_safetensors(model.path / "adapter_model.safetensors", {"lora": ("F32", (4,))})
    expected = read_model(model.path)
    (model.path / "model.safetensors.index.json").unlink()
    assert read_model(model.path).safetensors == expected.safetensors


def test_other_weights_are_told(model: Model) -> None:
    write_json(model.path / "config.json", CONFIG)
    (model.path / "pytorch_model.bin").write_bytes(b"\x80")
    assert read_model(model.path).notes == ("weights in pytorch_model.bin are not read, safetensors are needed",)


@pytest.mark.parametrize(
    ("config", "beside", "method"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "fp8"),
        ({"compression_config": {"config_groups": {}}}, {}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, {}, "awq"),
        ({}, {"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4"}}}, "modelopt"),
        ({}, {"quantize_config.json": {"bits": 4, "group_size": 128}}, "gptq"),
        ({}, {"quant_config.json": {"w_bit": 4, "q_group_size": 128}}, "awq"),
        ({"quantization_config": {"quant_method": "fp8"}}, {"quantize_config.json": {"bits": 4}}, "fp8"),
        ({}, {}, None),
    ],
)
def test_where_quantisation_is_told(model: Model, config: dict[str, Any], beside: dict[str, Any], method: str | None) -> None:
    model.config.update(config)
    for name, values in beside.items():
        write_json(model.path / name, values)
    found = model.single().quantization_config
    assert (found or {}).get("quant_method") == method


def test_gguf(model: Model) -> None:
    data = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    data += struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"
    data += struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 8, 0, 0)
    data += b"\0" * (-len(data) % 32) + b"\1" * 32
    path = model.path / "m-Q8_0.gguf"
    path.write_bytes(data)
    files = read_model(path)
    assert files.kind == "gguf" and files.gguf and files.gguf.bytes_total == 32
    assert read_model(model.path).gguf == files.gguf
    write_json(model.path / "config.json", CONFIG)
    (model.path / "mmproj-F16.gguf").write_bytes(data)
    assert read_model(model.path).kind == "gguf"
    (model.path / "m-Q4_K_M.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=r"has 2 GGUF models, name one: m-Q4_K_M.gguf, m-Q8_0.gguf"):
        read_model(model.path)
    # Safetensors with their configuration are the model itself.
    assert model.single().kind == "config"


def test_a_split_gguf_is_one_model(model: Model) -> None:
    for number in (1, 2):
        (model.path / f"m-0000{number}-of-00002.gguf").write_bytes(b"GGML")
    with pytest.raises(ModelError, match=r"m-00001-of-00002.gguf: starts with b'GGML'"):
        read_model(model.path)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such file or directory"):
        read_model(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"has no config.json and no GGUF file; it has nothing"):
        read_model(tmp_path)
    for number in range(10):
        (tmp_path / f"file{number}").touch()
    with pytest.raises(ModelError, match=r"it has file0, file1, .*file7 and 2 more"):
        read_model(tmp_path)
    with pytest.raises(ModelError, match=r"a model's directory, its config.json or a GGUF file is needed"):
        read_model(tmp_path / "file0")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match=r"neither a file nor a directory"):
        read_model(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config.json: is no JSON"),
        ("{", r"config.json: is no JSON"),
        ("[1]", r"config.json: a JSON object is needed, not list"),
        ('"text"', r"a JSON object is needed, not str"),
        ('{"a": 1, "a": 2}', r"'a' is there twice"),
        ('{"quantization_config": 3}', r"quantization_config: a mapping is needed, not 3"),
        ("[" * 100_000, r"is no JSON"),
    ],
)
def test_configurations_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    write_json(tmp_path / "config.json", text)
    with pytest.raises(ModelError, match=message):
        read_model(tmp_path)


def test_files_that_are_no_text_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError, match=r"config.json: is no JSON"):
        read_model(tmp_path)
    write_json(tmp_path / "config.json", {"a": "b" * 100})
    with pytest.raises(ModelError, match=r"config.json: has 109 bytes, at most 50 are read"):
        read_json(tmp_path / "config.json", 50)
    write_safetensors(tmp_path / "model.safetensors", llama())
    monkeypatch.setattr(library, "MAX_HEADER_BYTES", 100)
    with pytest.raises(ModelError, match=r"header has \d+ bytes, at most 100 are possible"):
        read_safetensors(tmp_path / "model.safetensors")


def test_every_truncation_of_safetensors_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    size = write_safetensors(path, {"a": ("F16", (4, 4)), "b": ("F32", (2,))})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelError, match=r"model.safetensors: .*(truncated|starts at)"):
            read_safetensors(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=rf"is truncated: b ends at byte {len(whole)}, the file has {len(whole) - 1}"):
        read_safetensors(path)
    path.write_bytes(whole[: len(whole) - size - 3])
    with pytest.raises(ModelError, match=rf"its header ends at byte {len(whole) - size}, the file has {len(whole) - size - 3}"):
        read_safetensors(path)


def changed(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["b"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(dtype="F12"), r"b: dtype 'F12' is not known"),
        (changed(dtype=["F32"]), r"b: dtype \['F32'\] is not known"),
        (changed(shape=[2, -2]), r"b: shape is \[2, -2\]"),
        (changed(shape="2"), r"b: shape is '2'"),
        (changed(shape=[3]), r"b: 3 elements of F32 have 12 bytes, data_offsets leave it 8"),
        (changed(data_offsets=[40, 32]), r"b: data_offsets is \[40, 32\]"),
        (changed(data_offsets=[32]), r"b: data_offsets is \[32\]"),
        (changed(data_offsets=[36, 44]), r"is truncated: b ends at"),
        (changed(data_offsets=[24, 32]), r"b starts at offset 24 of the data, the tensor before it ends at 32"),
        (lambda header: header.update(b=3), r"b: a mapping is needed, not 3"),
        (lambda header: header.pop("b"), r"its tensors end at byte"),
    ],
)
def test_headers_that_contradict(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": ("F16", (4, 4)), "b": ("F32", (2,))}, change)
    with pytest.raises(ModelError, match=message):
        read_safetensors(path)


def test_what_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"PK\x03\x04" + b"\xff" * 60)
    with pytest.raises(ModelError, match=r"at most 100000000 are possible: it is no safetensors file"):
        read_safetensors(path)
    path.write_bytes(struct.pack("<Q", 3) + b"[1]")
    with pytest.raises(ModelError, match=r"header: a JSON object is needed"):
        read_safetensors(path)
    write_safetensors(path, {"a": ("F16", (4,))}, tail=b"more")
    with pytest.raises(ModelError, match=r"its tensors end at byte"):
        read_safetensors(path)


def test_a_missing_shard_is_named(model: Model) -> None:
    model.shards(3)
    (model.path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"index.json: names 3 files, not there: model-00002-of-00003.safetensors"):
        read_model(model.path)
    (model.path / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"part 2 of 3 of model is not there"):
        read_model(model.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda index: index["metadata"].update(total_size=5),
            r"total_size is 5, the tensors of its 2 files have 304,000 bytes",
        ),
        (lambda index: index["metadata"].update(total_size="many"), r"total_size is 'many', a number of bytes is needed"),
        (
            lambda index: index["weight_map"].update({"ghost": "model-00001-of-00002.safetensors"}),
            r"lists ghost in model-00001.*no file has it",
        ),
        (lambda index: index.update(weight_map={}), r"weight_map is missing, empty"),
        (lambda index: index.update(weight_map={"a": 3}), r"values that are no file names"),
        (
            lambda index: index["weight_map"].update({"a": "../other.safetensors"}),
            r"'../other.safetensors', a file beside it is needed",
        ),
    ],
)
def test_indexes_that_contradict(model: Model, change: Callable[[dict[str, Any]], None], message: str) -> None:
    index = model.shards()
    change(index)
    model.reindex(index)
    with pytest.raises(ModelError, match=message):
        read_model(model.path)


def test_indexes_that_are_well_enough(model: Model) -> None:
    index = model.shards()
    index["metadata"]["total_size"] = float(index["metadata"]["total_size"])
    index["weight_map"].pop("lm_head.weight")
    model.reindex(index)
    assert read_model(model.path).notes == (
        "1 tensors are in no list of model.safetensors.index.json, for instance lm_head.weight",
    )
    index.pop("metadata")
    model.reindex(index)
    assert read_model(model.path).safetensors


# --- weights against the configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 512}, r"model.safetensors: model.embed_tokens.weight has 320 rows, config.json describes 512"),
        ({"num_hidden_layers": 4}, r"has tensors of 3 layers, config.json describes 4: there is none of layer 3"),
        ({"num_hidden_layers": 2}, r"has tensors of layer 2, config.json describes 2 layers"),
        (
            {"intermediate_size": 256},
            r"layer 0: mlp.gate_proj.weight is 128 x 64, config.json describes 256 outputs and 64 inputs",
        ),
        (
            {"hidden_size": 128, "head_dim": 16},
            r"model.embed_tokens.weight has 64 elements in each row, config.json describes 128",
        ),
        ({"num_key_value_heads": 4}, r"layer 0: self_attn.k_proj.weight is 32 x 64, config.json describes 64 outputs"),
        ({"tie_word_embeddings": True, "num_key_value_heads": 1}, r"k_proj.weight is 32 x 64, config.json describes 16 outputs"),
    ],
)
def test_contradictions(model: Model, config: dict[str, Any], message: str) -> None:
    files = model.single()
    with pytest.raises(ModelError, match=message):
        compared(files, **config)


def test_other_tensors_than_described_are_counted(model: Model) -> None:
    model.tensors["model.layers.1.adapter.weight"] = ("BF16", (256, 64))
    held = sum(elements(shape) for dtype, shape in model.tensors.values())
    with pytest.raises(ModelError, match=rf"the tensors hold {held:,} parameters, config.json describes {held - 256 * 64:,}"):
        compared(model.single())


def test_a_small_difference_is_a_note(model: Model) -> None:
    model.tensors["model.layers.1.self_attn.extra_scale"] = ("BF16", (4,))
    (note,) = compared(model.single())
    assert "parameters, config.json describes" in note


def test_buffers_repeated_heads_vision_and_draft_layers_are_tolerated(model: Model) -> None:
    model.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (8,))
    model.tensors["model.layers.0.self_attn.k_scale"] = ("F32", (1,))
    assert compared(model.single()) == []
    # The head of a tied model may be stored again, or not.
    assert compared(model.single(), tie_word_embeddings=True) == []
    del model.tensors["lm_head.weight"]
    assert compared(model.single(), tie_word_embeddings=True) == []
    model.tensors["vision_tower.encoder.layers.0.fc1.weight"] = ("BF16", (64, 64))
    model.tensors["mtp.layers.0.fc.weight"] = ("BF16", (32, 64))
    assert compared(model.single(), tie_word_embeddings=True) == [
        "4,096 elements of vision or audio towers were not compared",
        "2,048 elements of layers for multi-token prediction were not compared",
    ]


def test_an_untied_head_that_is_missing(model: Model) -> None:
    del model.tensors["lm_head.weight"]
    with pytest.raises(ModelError, match=r"parameters, config.json describes"):
        compared(model.single())


def test_draft_layers_that_are_not_there_are_noted(model: Model) -> None:
    files = model.single()
    found = replace(described(dict(files.config)), draft_layers=1)
    assert compare_with(files, found, scheme_of(None, "bfloat16")) == [
        "the layers for multi-token prediction are not in the weights"
    ]
    for name, shape in list(model.tensors.items()):
        if ".layers.2." in name:
            model.tensors[name.replace(".layers.2.", ".layers.3.")] = shape
    assert "were not compared" in compare_with(model.single(), found, scheme_of(None, "bfloat16"))[0]


def test_experts_are_compared_one_by_one_or_together(model: Model) -> None:
    found = described(dict(model.config))
    weights = [weight for weight in found.weights if not weight.name.startswith("mlp.")]
    weights.append(Weight("mlp.experts.up_proj", "experts", 32, 64, (0, 1, 2), 4))
    found = replace(found, weights=tuple(weights))
    base = {name: shape for name, shape in model.tensors.items() if ".mlp." not in name}
    for layer in range(3):
        base.update({f"model.layers.{layer}.mlp.experts.{one}.up_proj.weight": ("BF16", (32, 64)) for one in range(4)})
    model.tensors = base
    scheme = scheme_of(None, "bfloat16")
    assert compare_with(model.single(), found, scheme) == []
    model.tensors = {**base, "model.layers.2.mlp.experts.3.up_proj.weight": ("BF16", (16, 64))}
    with pytest.raises(ModelError, match=r"layer 2: mlp.experts.3.up_proj.weight is 16 x 64, config.json describes 32 outputs"):
        compare_with(model.single(), found, scheme)
    together: Shapes = {name: shape for name, shape in base.items() if ".mlp." not in name}
    together.update({f"model.layers.{layer}.mlp.experts.up_proj": ("BF16", (4, 64, 32)) for layer in range(3)})
    model.tensors = together
    assert compare_with(model.single(), found, scheme) == []


def quantised(model: Model, group: int = 32) -> None:
    """AWQ of the linear layers: packed weights, zero points and scales."""
    model.config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    tensors: Shapes = {}
    for name, (dtype, shape) in model.tensors.items():
        stem = name[: -len(".weight")]
        if stem.endswith("_proj"):
            outputs, inputs = shape
            tensors[stem + ".qweight"] = ("I32", (inputs, outputs // 8))
            tensors[stem + ".qzeros"] = ("I32", (inputs // group, outputs // 8))
            tensors[stem + ".scales"] = ("F16", (inputs // group, outputs))
        else:
            tensors[name] = (dtype, shape)
    model.tensors = tensors


def index_alone(model: Model, **metadata: Any) -> ModelFiles:
    """The model with its index and none of the files that it names."""
    index = model.shards()
    index["metadata"].update(metadata)
    model.reindex(index)
    for path in model.path.glob("*.safetensors"):
        path.unlink()
    return read_model(model.path)


def test_an_index_without_its_files_is_compared(model: Model) -> None:
    files = index_alone(model)
    assert files.index and files.index.bytes_total == 304_000 and len(files.index.names) == len(model.tensors)
    (note,) = compared(files)
    assert "none is there: only its total_size and its layers are compared" in note
    with pytest.raises(ModelError, match=r"total_size is 304,000 bytes, config.json with none describes 451,456: the weights"):
        compared(files, intermediate_size=256)
    with pytest.raises(
        ModelError, match=r"index.json: has tensors of 3 layers, config.json describes 4: there is none of layer 3"
    ):
        compared(files, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"index.json: has tensors of layer 2, config.json describes 2 layers"):
        compared(files, num_hidden_layers=2)
    # A tied head may be there twice.
    assert len(compared(files, tie_word_embeddings=True)) == 1


@pytest.mark.parametrize(
    ("size", "fits"), [(304_000 * 103 // 100, True), (304_000 * 104 // 100, False), (294_900, True), (5, False)]
)
def test_an_index_s_size_may_be_three_in_a_hundred_off(model: Model, size: int, fits: bool) -> None:
    files = index_alone(model, total_size=size)
    if fits:
        assert len(compared(files)) == 1
    else:
        with pytest.raises(ModelError, match=rf"total_size is {size:,} bytes, config.json with none describes 304,000"):
            compared(files)


def test_an_index_of_another_type_is_told_where_the_configuration_names_one(model: Model) -> None:
    files = index_alone(model, total_size=2 * 304_000)
    with pytest.raises(ModelError, match=r"total_size is 608,000 bytes"):
        compared(files)
    found = described(dict(files.config))
    unnamed = {name: value for name, value in files.config.items() if name != "torch_dtype"}
    assert len(compare_with(replace(files, config=unnamed), found, scheme_of(None, "bfloat16"))) == 1


def test_an_index_without_files_may_have_draft_layers_towers_and_no_size(model: Model) -> None:
    layer = [name for name in model.tensors if ".layers.2." in name]
    model.tensors.update({name.replace(".layers.2.", ".layers.3."): model.tensors[name] for name in layer})
    names = tuple(name for name in model.tensors if ".layers.3." not in name)
    files = index_alone(model)
    found = described(dict(files.config))
    extra = sum(2 * elements(model.tensors[name][1]) for name in layer)
    draft = replace(found, draft_layers=1, weights=(*found.weights, Weight("mtp", DRAFT, extra // 2, 1, (3,))))
    scheme = scheme_of(None, "bfloat16")
    assert files.index and len(compare_with(files, draft, scheme)) == 1
    assert len(compare_with(replace(files, index=library.Index(files.index.names, 304_000)), draft, scheme)) == 1
    with pytest.raises(ModelError, match=r"has tensors of layer 3"):
        compare_with(files, found, scheme)
    # Such layers of which the configuration says nothing only add.
    (_note, more) = compare_with(replace(files, index=library.Index((*names, "mtp.fc.weight"), 400_000)), found, scheme)
    assert "layers for multi-token prediction" in more
    tower = library.Index((*model.tensors, "vision_tower.layers.9.fc1.weight"), 400_000)
    assert "a vision or audio tower" in compare_with(replace(files, index=tower), draft, scheme)[-1]
    with pytest.raises(ModelError, match=r"total_size is 200,000 bytes"):
        compare_with(replace(files, index=replace(tower, bytes_total=200_000)), draft, scheme)
    assert "has no total_size" in compare_with(replace(files, index=library.Index(tuple(model.tensors), None)), draft, scheme)[-1]


def test_a_quantised_index_without_its_files_is_compared_in_bytes(model: Model) -> None:
    quantised(model)
    files = index_alone(model)
    assert len(compared(files)) == 1
    with pytest.raises(ModelError, match=r"config.json with awq describes"):
        compared(files, intermediate_size=256)
    with pytest.raises(ModelError, match=r"total_size is 'many', a number of bytes is needed"):
        index_alone(model, total_size="many")


def test_a_quantised_checkpoint_has_the_bytes_that_its_scheme_says(model: Model) -> None:
    quantised(model)
    files = model.single()
    assert compared(files) == []
    found = described(dict(files.config))
    scheme = scheme_of(files.quantization_config, "bfloat16")
    assert files.safetensors
    assert files.safetensors.bytes_total == sum(weight_bytes(weight, scheme, 2, stored=True) for weight in found.weights)
    with pytest.raises(ModelError, match=r"bytes, config.json with awq describes"):
        compared(files, intermediate_size=256)
    # The same weights with a configuration that says they are whole.
    with pytest.raises(ModelError, match=r"parameters, config.json describes"):
        compare_with(files, found, scheme_of(None, "bfloat16"))
