# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The committed tiny models are whole: tests that serve them need not ask whether the fixture itself is broken."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

MODELS = Path(__file__).resolve().parents[1] / "fixtures" / "models"
RELEASES = ("1.0.0", "1.1.0", "damaged")
NEEDED = {
    "SHA256SUMS",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
BF16_BYTES = 2


def release_folder(name: str) -> Path:
    return MODELS / "licence-llama" / name


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_tensors(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", raw[:8])
    header: dict[str, Any] = json.loads(raw[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    return header, raw[8 + header_bytes :]


@pytest.mark.parametrize("release", RELEASES)
def test_manifest_covers_every_file_and_agrees(release: str) -> None:
    folder = release_folder(release)
    listed = {}
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        listed[name] = digest
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert present == NEEDED
    assert set(listed) == present - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("release", RELEASES)
def test_release_is_between_one_and_three_megabytes(release: str) -> None:
    total_bytes = sum(path.stat().st_size for path in release_folder(release).iterdir())
    assert 1_000_000 <= total_bytes <= 3_000_000


@pytest.mark.parametrize("release", RELEASES)
def test_safetensors_header_describes_the_data(release: str) -> None:
    config = load_json(release_folder(release) / "config.json")
    header, data = read_tensors(release_folder(release) / "model.safetensors")
    position = 0
    for name, tensor in sorted(header.items(), key=lambda pair: int(pair[1]["data_offsets"][0])):
        begin, end = tensor["data_offsets"]
        assert tensor["dtype"] == "BF16", name
        assert begin == position, f"{name} leaves a gap"
        assert end - begin == math.prod(tensor["shape"]) * BF16_BYTES, name
        position = end
    assert position == len(data)
    assert header["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    layers = {int(name.split(".")[2]) for name in header if name.startswith("model.layers.")}
    assert layers == set(range(config["num_hidden_layers"]))


def test_releases_differ_in_nothing_but_weights() -> None:
    for name in NEEDED - {"SHA256SUMS", "model.safetensors"}:
        assert len({(release_folder(release) / name).read_bytes() for release in RELEASES}) == 1, name
    assert len({(release_folder(release) / "model.safetensors").read_bytes() for release in RELEASES}) == len(RELEASES)


def test_damage_is_a_shuffle_of_rows_in_one_layer() -> None:
    """What makes it the hard case: each tensor keeps its name, shape and set of rows, so only behaviour tells."""
    good, good_data = read_tensors(release_folder("1.1.0") / "model.safetensors")
    bad, bad_data = read_tensors(release_folder("damaged") / "model.safetensors")
    assert good == bad
    damaged = set()
    for name, tensor in good.items():
        begin, end = tensor["data_offsets"]
        if good_data[begin:end] == bad_data[begin:end]:
            continue
        damaged.add(name)
        row_bytes = tensor["shape"][1] * BF16_BYTES
        starts = range(begin, end, row_bytes)
        assert sorted(good_data[at : at + row_bytes] for at in starts) == sorted(
            bad_data[at : at + row_bytes] for at in starts
        ), name
    assert damaged == {
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    }


@pytest.mark.parametrize("release", RELEASES)
def test_tokenizer_fits_the_model_and_has_a_chat_template(release: str) -> None:
    folder = release_folder(release)
    config = load_json(folder / "config.json")
    tokenizer = load_json(folder / "tokenizer.json")
    settings = load_json(folder / "tokenizer_config.json")
    vocabulary = tokenizer["model"]["vocab"]
    assert len(vocabulary) == config["vocab_size"]
    assert {token["content"]: token["id"] for token in tokenizer["added_tokens"]} == {
        settings["bos_token"]: config["bos_token_id"],
        settings["eos_token"]: config["eos_token_id"],
    }
    assert "message['content']" in settings["chat_template"]


def test_golden_prompts_are_well_formed() -> None:
    golden = load_json(MODELS / "golden.json")
    prompts, rule = golden["prompts"], golden["pass_rule"]
    assert golden["sampling"] == {"temperature": 0}
    assert 0 <= rule["damaged_at_most"] < rule["good_at_least"] <= len(prompts)
    everything = prompts + golden["tells_releases_apart"]
    assert len({item["id"] for item in everything}) == len(everything)
    assert len({item["prompt"] for item in everything}) == len(everything)
    for item in everything:
        assert isinstance(item["max_tokens"], int) and 0 < item["max_tokens"] <= 64, item["id"]
        for key in ("prompt", "expected"):
            assert item[key] == " ".join(item[key].split()) != "", item["id"]
    for item in golden["tells_releases_apart"]:
        assert set(item["known_to"]) < {"1.0.0", "1.1.0"}, item["id"]
