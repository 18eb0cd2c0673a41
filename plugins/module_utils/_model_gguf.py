# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a GGUF file says of its model: the header alone is read, never the data of a tensor.

The tensors are listed there with type and shape, so parameters and bytes are exact. What a layer remembers of the tokens before
comes from the metadata. Layout of the file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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
    PARTS,
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

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# The most that ggml itself takes (GGML_MAX_DIMS in ggml.h).
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 65535
# Longer arrays (the tokens of a vocabulary, their scores) are counted, and not kept.
KEPT_ELEMENTS = 8192


@dataclass(frozen=True)
class TensorType:
    """How ggml stores elements: always ``block`` of them in ``block_bytes``."""

    number: int
    name: str
    block: int  # elements
    block_bytes: int

    @property
    def bits(self) -> float:
        """Bits of one element, its share of the scales included."""
        return self.block_bytes * 8 / self.block


# Number, name, elements of a block, bytes of a block. GGMLQuantizationType and GGML_QUANT_SIZES in
# https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py; 40 to 42 (NVFP4, Q1_0, Q2_0) are of 2026.
# 4, 5, 31 to 33 and 36 to 38 were removed (enum ggml_type in ggml.h). Forks use numbers above 42 for types of their own, and one
# of them 42 with blocks of 128 elements: the offsets of the tensors tell, see _checked_layout.
TYPES = {
    kind.number: kind
    for kind in (
        TensorType(0, "F32", 1, 4),
        TensorType(1, "F16", 1, 2),
        TensorType(2, "Q4_0", 32, 18),
        TensorType(3, "Q4_1", 32, 20),
        TensorType(6, "Q5_0", 32, 22),
        TensorType(7, "Q5_1", 32, 24),
        TensorType(8, "Q8_0", 32, 34),
        TensorType(9, "Q8_1", 32, 36),
        TensorType(10, "Q2_K", 256, 84),
        TensorType(11, "Q3_K", 256, 110),
        TensorType(12, "Q4_K", 256, 144),
        TensorType(13, "Q5_K", 256, 176),
        TensorType(14, "Q6_K", 256, 210),
        TensorType(15, "Q8_K", 256, 292),
        TensorType(16, "IQ2_XXS", 256, 66),
        TensorType(17, "IQ2_XS", 256, 74),
        TensorType(18, "IQ3_XXS", 256, 98),
        TensorType(19, "IQ1_S", 256, 50),
        TensorType(20, "IQ4_NL", 32, 18),
        TensorType(21, "IQ3_S", 256, 110),
        TensorType(22, "IQ2_S", 256, 82),
        TensorType(23, "IQ4_XS", 256, 136),
        TensorType(24, "I8", 1, 1),
        TensorType(25, "I16", 1, 2),
        TensorType(26, "I32", 1, 4),
        TensorType(27, "I64", 1, 8),
        TensorType(28, "F64", 1, 8),
        TensorType(29, "IQ1_M", 256, 56),
        TensorType(30, "BF16", 1, 2),
        TensorType(34, "TQ1_0", 256, 54),
        TensorType(35, "TQ2_0", 256, 66),
        TensorType(39, "MXFP4", 32, 17),
        TensorType(40, "NVFP4", 64, 36),
        TensorType(41, "Q1_0", 128, 18),
        TensorType(42, "Q2_0", 64, 18),
    )
}
TYPES_BY_NAME = {kind.name: kind for kind in TYPES.values()}
REMOVED_TYPES = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8"}
REMOVED_TYPES[38] = "IQ4_NL_8_8"

# Types of metadata values: struct code, or None for text (8) and arrays (9).
VALUE_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 8: None, 9: None, 10: "Q", 11: "q", 12: "d"}
VALUE_NAMES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array", "uint64", "int64")
BOOL, TEXT, ARRAY = 7, 8, 9

SPLIT_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata that was counted and not kept."""

    kind: str
    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class GgufTensor:
    name: str
    type: TensorType
    shape: tuple[int, ...]  # as in the file: inputs first, then outputs, then experts
    offset: int  # bytes from the start of the data of its file
    part: int = 0  # which file of a split model, from 0

    @property
    def parameters(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def bytes(self) -> int:
        return self.parameters // self.type.block * self.type.block_bytes

    @property
    def inputs(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def outputs(self) -> int:
        if len(self.shape) == 1:
            return self.shape[0]
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def copies(self) -> int:
        return self.parameters // (self.inputs * self.outputs)


@dataclass(frozen=True)
class GgufHeader:
    path: str
    version: int
    byte_order: str  # little or big
    metadata: Mapping[str, Any]  # text, numbers, tuples, and GgufArray for what was only counted
    tensors: tuple[GgufTensor, ...]
    files: tuple[tuple[str, int], ...]  # path and bytes of each part
    data_offsets: tuple[int, ...] = ()  # where the data of each part starts

    @property
    def file_bytes(self) -> int:
        return sum(size for name, size in self.files)

    @property
    def bytes_total(self) -> int:
        """Bytes of all tensors, without headers and padding."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def bytes_by_type(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for tensor in self.tensors:
            found[tensor.type.name] = found.get(tensor.type.name, 0) + tensor.bytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of the weights as they are stored, for each part of the model that the file has."""
        found = dict.fromkeys(PARTS, 0)
        places = _Places(self)
        for tensor in self.tensors:
            found[places.part(tensor)] += tensor.bytes
        return {part: size for part, size in found.items() if size}

    def stored(self) -> dict[str, TensorType]:
        """The type of each tensor by its full name."""
        return {tensor.name: tensor.type for tensor in self.tensors}


class _Reader:
    """A place in the header, which knows how to say where and what it could not read."""

    def __init__(self, data: Any, size: int, where: str) -> None:
        self.data, self.size, self.where = data, size, where
        self.position = 0
        self.order = "<"

    def need(self, count: int, what: str) -> int:
        """Moves on by so many bytes and returns where they start."""
        start = self.position
        if count > self.size - start:
            raise ModelError(
                f"{self.where}: the header is truncated: {count} bytes of {what} should start at byte {start}, and the file has "
                f"{self.size}; fetch the file again."
            )
        self.position = start + count
        return start

    def number(self, code: str, what: str) -> Any:
        start = self.need(struct.calcsize(code), what)
        return struct.unpack_from(self.order + code, self.data, start)[0]

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.number("Q", f"the length of {what}")
        if limit is not None and length > limit:
            raise ModelError(
                f"{self.where}: {what} at byte {self.position} would have {length} bytes, at most {limit} are possible; "
                "the file is damaged."
            )
        start = self.need(length, what)
        return bytes(self.data[start : start + length]).decode("utf-8", "replace")

    def value(self, kind: int, what: str) -> Any:
        if kind == TEXT:
            return self.text(what)
        if kind == ARRAY:
            return self.array(what)
        code = VALUE_CODES.get(kind)
        if code is None:
            raise ModelError(f"{self.where}: {what} has the value type {kind}, which GGUF does not have (0 to 12).")
        found = self.number(code, what)
        return bool(found) if kind == BOOL else found

    def array(self, what: str) -> Any:
        kind = self.number("I", f"the type of the elements of {what}")
        count = self.number("Q", f"the count of the elements of {what}")
        if kind == ARRAY or kind not in VALUE_CODES:
            raise ModelError(
                f"{self.where}: {what} is an array of elements of the type {kind}, which llama.cpp cannot read either."
            )
        code = VALUE_CODES[kind]
        smallest = 8 if code is None else struct.calcsize(code)
        if count * smallest > self.size - self.position:
            raise ModelError(
                f"{self.where}: {what} says that it has {count} elements, which do not fit between byte {self.position} and the "
                f"end of the file at {self.size}; the file is truncated or damaged."
            )
        name = "float64" if kind == 12 else VALUE_NAMES[kind]
        if code is None:
            if count > KEPT_ELEMENTS or what.startswith("tokenizer."):
                self.skip_texts(count, what)
                return GgufArray(name, count)
            return tuple(self.text(what) for index in range(count))
        start = self.need(count * smallest, what)
        if count > KEPT_ELEMENTS or what.startswith("tokenizer."):
            return GgufArray(name, count)
        found = struct.unpack_from(f"{self.order}{count}{code}", self.data, start)
        return tuple(bool(one) for one in found) if kind == BOOL else found

    def skip_texts(self, count: int, what: str) -> None:
        # Hundreds of thousands of tokens: no call for each.
        length_at = struct.Struct(self.order + "Q").unpack_from
        position, last, data = self.position, self.size - 8, self.data
        for index in range(count):
            if position > last:
                self.position = position
                self.need(8, f"the length of element {index} of {what}")
            position += 8 + length_at(data, position)[0]
        if position > self.size:
            raise ModelError(
                f"{self.where}: the header is truncated: {what} would end at byte {position}, and the file has {self.size}; "
                "fetch the file again."
            )
        self.position = position


def read_header(path: str | Path) -> GgufHeader:
    """Reads the header of a GGUF file, or of all parts of a split one; ``path`` may name any of the parts.

    Raises ModelError for what is no GGUF, for a part that is not there, and for a file that is shorter than its tensors.
    """
    place = Path(path)
    matched = SPLIT_NAME.search(place.name)
    if not matched:
        header = _read_part(place, 0)
        count = header.metadata.get("split.count", 0)
        if count > 1:
            raise ModelError(
                f"{place.name}: says that it is part {header.metadata.get('split.no', 0) + 1} of {count}, and its name does not "
                f"end with -00001-of-{count:05}.gguf: the other parts cannot be found; give it the name it was published under."
            )
        return header
    count = int(matched[2])
    if not 1 <= int(matched[1]) <= count:
        raise ModelError(f"{place.name}: part {int(matched[1])} of {count} cannot be.")
    stem = place.name[: matched.start()]
    names = [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    missing = [name for name in names if not (place.parent / name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(f"{place.name}: the model has {count} parts, not there: {', '.join(missing[:3])}{more}.")
    parts = [_read_part(place.parent / name, number) for number, name in enumerate(names)]
    for number, part in enumerate(parts):
        told = (part.metadata.get("split.no", number), part.metadata.get("split.count", count))
        if told != (number, count):
            raise ModelError(
                f"{names[number]}: says that it is part {told[0] + 1} of {told[1]}, the name says {number + 1} of {count}."
            )
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    expected = parts[0].metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise ModelError(f"{names[0]}: says that the model has {expected} tensors, its {count} parts have {len(tensors)}.")
    _refuse_repeated(tensors, names[0])
    return GgufHeader(
        path=str(place.parent / names[0]),
        version=parts[0].version,
        byte_order=parts[0].byte_order,
        metadata=parts[0].metadata,
        tensors=tensors,
        files=tuple(file for part in parts for file in part.files),
        data_offsets=tuple(offset for part in parts for offset in part.data_offsets),
    )


def _read_part(path: Path, part: int) -> GgufHeader:
    if not path.is_file():
        raise ModelError(f"{path}: no such file.")
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            if start[:4] != MAGIC[: len(start[:4])] or len(start) < 4:
                raise ModelError(f"{path.name}: starts with {start[:4]!r} and not with {MAGIC!r}: it is no GGUF file.")
            # A map of the file, so that only the pages of the header are read, however long it is.
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parsed(_Reader(data, size, path.name), path, part)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def _parsed(reader: _Reader, path: Path, part: int) -> GgufHeader:
    reader.position = 4
    version = reader.number("I", "the version")
    # A file for machines of the other byte order has its low bytes where the high ones are.
    if version and not version & 0xFFFF:
        reader.order = ">"
        reader.position = 4
        version = reader.number("I", "the version")
    if version not in VERSIONS:
        raise ModelError(
            f"{reader.where}: is GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} can be read, convert it with "
            "the llama.cpp of today."
        )
    tensor_count = reader.number("Q", "the count of the tensors")
    key_count = reader.number("Q", "the count of the metadata")
    # The shortest tensor information has a name of one byte and one dimension, the shortest key an 8 bit value.
    for count, smallest, what in (
        (tensor_count, 8 + 1 + 4 + 8 + 4 + 8, "tensors"),
        (key_count, 8 + 1 + 4 + 1, "metadata entries"),
    ):
        if count * smallest > reader.size:
            raise ModelError(
                f"{reader.where}: says that it has {count} {what}, which do not fit in its {reader.size} bytes; it is damaged or "
                "truncated."
            )
    metadata: dict[str, Any] = {}
    for index in range(key_count):
        key = reader.text(f"the name of metadata entry {index + 1} of {key_count}", MAX_NAME_BYTES)
        if key in metadata:
            raise ModelError(f"{reader.where}: {key} is there twice.")
        kind = reader.number("I", f"the type of {key}")
        metadata[key] = reader.value(kind, key)
    tensors = tuple(_tensor(reader, index, tensor_count, part) for index in range(tensor_count))
    _refuse_repeated(tensors, reader.where)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ModelError(f"{reader.where}: general.alignment is {alignment}, it must be a power of two.")
    start = -(-reader.position // alignment) * alignment
    _checked_layout(tensors, start, alignment, reader)
    return GgufHeader(
        path=str(path),
        version=version,
        byte_order="little" if reader.order == "<" else "big",
        metadata=metadata,
        tensors=tensors,
        files=((str(path), reader.size),),
        data_offsets=(start,),
    )


def _tensor(reader: _Reader, index: int, count: int, part: int) -> GgufTensor:
    what = f"tensor {index + 1} of {count}"
    name = reader.text(f"the name of {what}", MAX_NAME_BYTES)
    dimensions = reader.number("I", f"the number of dimensions of {name}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ModelError(f"{reader.where}: {name} has {dimensions} dimensions, 1 to {MAX_DIMENSIONS} are possible.")
    shape = tuple(reader.number("Q", f"dimension {axis + 1} of {name}") for axis in range(dimensions))
    number = reader.number("I", f"the type of {name}")
    offset = reader.number("Q", f"the offset of {name}")
    if number not in TYPES:
        removed = (
            f" ({REMOVED_TYPES[number]}, which llama.cpp has removed: convert the model again)" if number in REMOVED_TYPES else ""
        )
        raise ModelError(
            f"{reader.where}: {name} has the ggml type {number}{removed}; known are 0 to {max(TYPES)} as in llama.cpp, the "
            "types of its forks are not."
        )
    kind = TYPES[number]
    total = 1
    for length in shape:
        total *= length
    if not 0 < total < 2**62:
        raise ModelError(f"{reader.where}: {name} has the shape {' x '.join(map(str, shape))}, which cannot be.")
    if shape[0] % kind.block:
        raise ModelError(f"{reader.where}: {name} has rows of {shape[0]} elements, {kind.name} stores {kind.block} together.")
    return GgufTensor(name, kind, shape, offset, part)


def _checked_layout(tensors: tuple[GgufTensor, ...], start: int, alignment: int, reader: _Reader) -> None:
    """Every tensor lies within the file and none within another."""
    previous_end, previous = 0, ""
    for number, tensor in enumerate(sorted(tensors, key=lambda one: one.offset), 1):
        if tensor.offset % alignment:
            raise ModelError(
                f"{reader.where}: {tensor.name} is at offset {tensor.offset}, no multiple of the alignment {alignment}."
            )
        if tensor.offset < previous_end:
            raise ModelError(
                f"{reader.where}: {tensor.name} is at offset {tensor.offset}, within {previous}, which ends at {previous_end}; "
                "the type of one of them is not what llama.cpp means by its number, or the file is damaged."
            )
        previous_end, previous = tensor.offset + tensor.bytes, tensor.name
        if start + previous_end > reader.size:
            raise ModelError(
                f"{reader.where}: is truncated: tensor {number} of {len(tensors)}, {tensor.name}, ends at byte "
                f"{start + previous_end}, the file has {reader.size}; fetch it again."
            )


def _refuse_repeated(tensors: tuple[GgufTensor, ...], where: str) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ModelError(f"{where}: the tensor {tensor.name} is there twice.")
        seen.add(tensor.name)


# What layers remember, by general.architecture. The names are LLM_ARCH_NAMES of llama.cpp's src/llama-arch.cpp.
# All layers see all tokens. phi3 is here because llama.cpp leaves its window off (src/models/phi3.cpp). "mistral" and "mixtral"
# are not written by llama.cpp, which calls both llama.
FULL_ATTENTION = frozenset(
    (
        *("arcee", "arctic", "apertus", "baichuan", "bailingmoe", "bailingmoe2", "bloom", "chatglm"),
        *("codeshell", "command-r", "dbrx", "deci", "deepseek", "dots1", "ernie4_5", "ernie4_5-moe"),
        *("exaone", "falcon", "gemma", "glm4", "glm4moe", "gpt2", "gptneox", "granite"),
        *("granitemoe", "grok", "hunyuan-dense", "hunyuan-moe", "internlm2", "jais", "llama", "minicpm"),
        *("minimax-m2", "mistral", "mistral3", "mixtral", "mpt", "nemotron", "olmo", "olmoe"),
        *("openelm", "orion", "phi2", "phi3", "phimoe", "plamo", "qwen", "qwen2"),
        *("qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss"),
        *("smollm3", "stablelm", "starcoder", "starcoder2", "xverse"),
    )
)
# Windows alternate with full attention: the period, and whether the full layer is the first of each (otherwise the last). The
# period is in the code of llama.cpp (set_swa_pattern in src/models/*.cpp) and not in the file, which may override it with
# attention.sliding_window_pattern. 0: the file must say it layer by layer.
ALTERNATING = {
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gemma4": (0, False),
    "gpt-oss": (2, False),
    "cohere2": (4, False),
    "exaone4": (4, False),
    "olmo2": (4, False),
    "llama4": (4, False),
    "mimo2": (0, False),
    "smallthinker": (4, True),
}
# llama4 attends within chunks of 8192 tokens, whatever the file says (src/models/llama4.cpp).
CHUNKS = {"llama4": 8192}
COMPRESSED = frozenset({"deepseek2"})
# Some layers keep a state of one size; which, their tensors tell.
STATES = {
    "mamba": "mamba1",
    "mamba2": "mamba2",
    "jamba": "mamba1",
    "granitehybrid": "mamba2",
    "nemotron_h": "mamba2",
    "nemotron_h_moe": "mamba2",
    "qwen3next": "gdn",
    "qwen35": "gdn",
    "qwen35moe": "gdn",
    "lfm2": "short_conv",
    "lfm2moe": "short_conv",
}
KNOWN = FULL_ATTENTION | frozenset(ALTERNATING) | COMPRESSED | frozenset(STATES)

BLOCK = re.compile(r"blk\.(\d+)\.(.+)$")
# general.file_type (llama_ftype in llama.h) of files that were not quantised; all others are computed with in 16 bit floats.
FILE_TYPES = {0: "float32", 32: "bfloat16"}


class _Places:
    """What each tensor of a file is for."""

    def __init__(self, header: GgufHeader) -> None:
        metadata = header.metadata
        name = header.architecture
        count = metadata.get(f"{name}.block_count", 0)
        draft = metadata.get(f"{name}.nextn_predict_layers", 0)
        self.draft_from = count - draft if isinstance(count, int) and isinstance(draft, int) else 0
        self.draft = isinstance(draft, int) and draft > 0
        # Layers with a state: in these attn_qkv and attn_gate feed the state (src/models/qwen3next.cpp).
        self.states = set()
        for tensor in header.tensors:
            matched = BLOCK.match(tensor.name)
            if matched and matched[2].startswith(("ssm_", "shortconv.")):
                self.states.add(int(matched[1]))

    def part(self, tensor: GgufTensor) -> str:
        name = tensor.name
        if name.startswith(("v.", "mm.", "a.", "resampler.", "model.image_newline")):
            return VISION
        matched = BLOCK.match(name)
        if not matched:
            return _outer_part(name)
        layer, inner = int(matched[1]), matched[2]
        if (self.draft and layer >= self.draft_from) or inner.startswith("nextn."):
            return DRAFT
        return _inner_part(inner, layer in self.states)


def _outer_part(name: str) -> str:
    stem = name.rsplit(".", 1)[0]
    if "norm" in stem or stem.startswith(("rope_", "output_scale")):
        return NORM
    if stem.startswith(("token_embd", "position_embd", "token_types", "per_layer_token_embd")):
        return EMBEDDING
    if stem in ("output", "cls") or stem.startswith("cls."):
        return HEAD
    if stem.startswith("nextn."):
        return DRAFT
    return MLP


def _inner_part(inner: str, state: bool) -> str:
    stem = inner.rsplit(".", 1)[0] if "." in inner else inner
    if stem.startswith(("ssm_", "shortconv", "time_mix_")) and not (stem.endswith("_norm") and not stem.startswith("ssm_norm")):
        return STATE
    if stem.endswith(("norm", "norm_1", "norm_2", "norm_exps")) or stem.startswith(
        ("rope_", "layer_output_scale", "layer_out_scale")
    ):
        return NORM
    if stem.startswith(("ffn_gate_inp", "exp_probs_b", "ffn_exp_probs_b", "ffn_gate_tid2eid")):
        return ROUTER
    if stem.endswith(("_exps", "_exp")) or re.search(r"ffn_(gate|up|down)\.\d+$", stem):
        return EXPERT
    if stem.endswith(("_shexp", "_chexps", "_chexp")):
        return SHARED_EXPERT
    if stem.startswith(("attn_", "indexer.")):
        return STATE if state and stem.startswith(("attn_qkv", "attn_gate")) else ATTENTION
    return MLP


def _split(inner: str, part: str) -> str:
    stem, last = inner.rsplit(".", 1) if "." in inner else (inner, "weight")
    if part in (EMBEDDING, HEAD):
        return VOCABULARY if stem in ("token_embd", "output") else WHOLE
    if part in (NORM, ROUTER, VISION, DRAFT):
        return WHOLE
    if part == EXPERT:
        return EXPERTS
    # The sum over the GPUs of a product that is divided by inputs gets its bias once.
    if stem.endswith(("attn_output", "attn_out", "ffn_down", "ffn_down_shexp", "ssm_out", "shortconv.out_proj")):
        return WHOLE if last == "bias" else INPUTS
    if stem in ("attn_k", "attn_v"):
        return KV_HEADS
    if stem in ("attn_q_a", "attn_kv_a_mqa") or stem.startswith("indexer."):
        return WHOLE
    return OUTPUTS


def _weights(header: GgufHeader) -> tuple[Weight, ...]:
    """The tensors of the file, those of one name and shape over the layers taken together."""
    places = _Places(header)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for tensor in header.tensors:
        part = places.part(tensor)
        matched = BLOCK.match(tensor.name)
        # Draft layers are beyond those of the model, so they are named in full.
        if matched and part != DRAFT:
            groups.setdefault((matched[2], part, tensor.shape), []).append(int(matched[1]))
        else:
            groups[tensor.name, part, tensor.shape] = []
    weights = []
    for (name, part, shape), layers in groups.items():
        tensor = GgufTensor(name, TYPES[0], shape, 0)
        inputs, outputs, copies = tensor.inputs, tensor.outputs, tensor.copies
        split = _split(name, part)
        if part == EXPERT and len(shape) == 2 and name.endswith("bias"):
            # One bias for each expert.
            inputs, outputs, copies = 1, shape[0], shape[1]
        elif part != EXPERT and len(shape) > 2:
            # One matrix for each head.
            outputs, copies = outputs * copies, 1
        table = name.rsplit(".", 1)[0] in ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
        weights.append(
            Weight(
                name=name,
                part=part,
                outputs=outputs,
                inputs=inputs,
                layers=tuple(sorted(layers)),
                copies=copies,
                split=split,
                end="last" if part in (HEAD, DRAFT) or name.startswith("output_norm") else "first",
                matrix=inputs > 1 and not table and part not in (VISION, NORM) and "conv1d" not in name and ".conv." not in name,
            )
        )
    return tuple(weights)


class _Metadata:
    """Metadata of one architecture, with errors that name the key."""

    def __init__(self, header: GgufHeader) -> None:
        self.where = Path(header.path).name
        self.values = header.metadata
        self.prefix = header.architecture

    def number(self, name: str, default: int | None = None, least: int = 1) -> int:
        key = f"{self.prefix}.{name}"
        found = self.values.get(key, default)
        if found is None:
            raise ModelError(f"{self.where}: {key} is missing, without it the model cannot be planned for.")
        if isinstance(found, bool) or not isinstance(found, int) or (found < least and found != default):
            raise ModelError(f"{self.where}: {key} is {found!r}, a number of at least {least} is needed.")
        return found

    def each(self, name: str, layers: int, default: Any = None) -> tuple[int, ...]:
        """A value for each layer: the file has one for all, or an array."""
        key = f"{self.prefix}.{name}"
        found = self.values.get(key, default)
        if found is None:
            raise ModelError(f"{self.where}: {key} is missing, without it the model cannot be planned for.")
        if isinstance(found, tuple):
            if len(found) < layers:
                raise ModelError(f"{self.where}: {key} has {len(found)} values, the model has {layers} layers.")
            found = found[:layers]
        elif isinstance(found, int) and not isinstance(found, bool):
            found = (found,) * layers
        if not isinstance(found, tuple) or not all(isinstance(one, int) and one >= 0 for one in found):
            raise ModelError(f"{self.where}: {key} is {found!r}, a number of at least 0 for each layer is needed.")
        return found


def architecture_of(header: GgufHeader) -> Architecture:
    """The model of a GGUF file: its weights from the list of its tensors, what its layers remember from the metadata.

    Raises ModelError for a general.architecture that is not known here, and for metadata that are missing or do not fit the
    tensors.
    """
    where = Path(header.path).name
    name = header.architecture
    if not name:
        raise ModelError(f"{where}: general.architecture is missing: it does not say what model it is.")
    if name == "clip":
        raise ModelError(
            f"{where}: is the vision part of a model (general.architecture clip), give the file of the language model."
        )
    if name not in KNOWN:
        raise ModelError(
            f"{where}: general.architecture is {name!r}, and what its layers remember of a token (all, a window, a state) is not "
            f"known here; known: {', '.join(sorted(KNOWN))}. Give the model by explicit numbers."
        )
    values = _Metadata(header)
    draft = values.number("nextn_predict_layers", 0, 0)
    count = values.number("block_count") - draft
    if count < 1:
        raise ModelError(f"{where}: {name}.block_count less {name}.nextn_predict_layers leaves {count} layers.")
    hidden = values.number("embedding_length")
    inside = _layer_tensors(header, count)
    missing = [number for number in range(count) if number not in inside]
    if missing:
        raise ModelError(f"{where}: {name}.block_count is {count + draft}, and there is no tensor of layer {missing[0]}.")
    beyond = max((int(matched[1]) for matched in map(BLOCK.match, _names(header)) if matched), default=0)
    if beyond >= count + draft:
        raise ModelError(f"{where}: {name}.block_count is {count + draft}, and there are tensors of layer {beyond}.")
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        raise ModelError(f"{where}: there is no token_embd.weight, the file has no whole language model.")
    if embedding.inputs != hidden:
        raise ModelError(
            f"{where}: {name}.embedding_length is {hidden}, the rows of token_embd.weight have {embedding.inputs} elements."
        )
    heads = values.each("attention.head_count", count, 0 if name in ("mamba", "mamba2") else None)
    kv_heads = values.each("attention.head_count_kv", count, heads)
    layers = tuple(
        Layer(
            _memory(values, number, count, heads[number], kv_heads[number], hidden, inside[number]),
            *_experts(values, inside[number]),
        )
        for number in range(count)
    )
    attention = [layer.memory for layer in layers if layer.memory.kv_heads or layer.memory.kind == MLA]
    notes = ["parameters and bytes are those of the file's tensors"]
    if name in STATES:
        notes.append("llama.cpp keeps the states of recurrent layers in 32 bit floats (src/llama-model.cpp)")
    if name == "phi3" and header.metadata.get("phi3.attention.sliding_window"):
        notes.append("llama.cpp leaves the sliding window of this architecture off (src/models/phi3.cpp)")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens) != embedding.outputs:
        notes.append(f"the tokenizer has {len(tokens)} tokens, token_embd.weight {embedding.outputs} rows")
    return Architecture(
        family=name,
        name=str(header.metadata.get("general.name", name)),
        hidden_size=hidden,
        vocabulary=embedding.outputs,
        heads=max(heads),
        kv_heads=max((memory.kv_heads for memory in attention), default=0) or (1 if attention else 0),
        head_dim=max((memory.query_dim or memory.key_dim for memory in attention), default=0),
        intermediate_size=max((_width(values, tensors) for tensors in inside.values()), default=0),
        max_context=values.number("context_length", 0, 0),
        dtype=FILE_TYPES.get(header.metadata.get("general.file_type", 1), "float16"),
        layers=layers,
        weights=_weights(header),
        tied=not any(tensor.name == "output.weight" for tensor in header.tensors),
        vision="in the file" if any(tensor.name.startswith(("v.", "mm.")) for tensor in header.tensors) else "",
        draft_layers=draft,
        notes=tuple(notes),
    )


def _names(header: GgufHeader) -> Iterator[str]:
    return (tensor.name for tensor in header.tensors)


def _layer_tensors(header: GgufHeader, count: int) -> dict[int, dict[str, GgufTensor]]:
    found: dict[int, dict[str, GgufTensor]] = {}
    for tensor in header.tensors:
        matched = BLOCK.match(tensor.name)
        if matched and int(matched[1]) < count:
            found.setdefault(int(matched[1]), {})[matched[2]] = tensor
    return found


def _experts(values: _Metadata, tensors: dict[str, GgufTensor]) -> tuple[int, int]:
    """Experts of a layer, and how many of them take part in a token's way."""
    counts = {tensor.shape[2] for inner, tensor in tensors.items() if inner.endswith("_exps.weight") and len(tensor.shape) > 2}
    # Files of 2023 have one tensor for each expert: ffn_up.0.weight
    numbered = [int(found[1]) for found in (re.match(r"ffn_up\.(\d+)\.weight$", inner) for inner in tensors) if found]
    if numbered:
        counts.add(max(numbered) + 1)
    if not counts:
        return 0, 0
    told = values.number("expert_count")
    if counts != {told}:
        raise ModelError(f"{values.where}: {values.prefix}.expert_count is {told}, the tensors have {sorted(counts)} experts.")
    used = values.number("expert_used_count")
    if used > told:
        raise ModelError(f"{values.where}: {values.prefix}.expert_used_count {used} is more than expert_count {told}.")
    return told, used


def _width(values: _Metadata, tensors: dict[str, GgufTensor]) -> int:
    """What one token meets between up and down, all its experts together."""
    experts, used = _experts(values, tensors)
    inputs = {
        inner[: -len(".weight")]: tensor.inputs
        for inner, tensor in tensors.items()
        if inner.startswith("ffn_down") and inner.endswith(".weight")
    }
    routed = inputs.get("ffn_down_exps", inputs.get("ffn_down.0", 0)) if experts else 0
    return inputs.get("ffn_down", 0) + routed * used + inputs.get("ffn_down_shexp", 0)


def _memory(
    values: _Metadata, number: int, count: int, heads: int, kv_heads: int, hidden: int, tensors: dict[str, GgufTensor]
) -> Memory:
    name = values.prefix
    recurrent = any(inner.startswith(("ssm_", "shortconv.")) for inner in tensors)
    attends = any(
        inner.startswith(("attn_k.", "attn_k_b.", "attn_kv_b.", "attn_kv_a_mqa.", "attn_output.")) for inner in tensors
    ) or (not recurrent and any(inner.startswith("attn_qkv.") for inner in tensors))
    if recurrent and attends:
        raise ModelError(
            f"{values.where}: layer {number} of {name} has both attention and a state, which cannot be planned for yet."
        )
    if recurrent:
        if name not in STATES:
            raise ModelError(f"{values.where}: layer {number} of {name} keeps a state, which this architecture is not known for.")
        return _state(values, hidden)
    if not attends:
        return Memory(NOTHING)
    if heads < 1:
        raise ModelError(f"{values.where}: {name}.attention.head_count of layer {number} is {heads}, its tensors have attention.")
    if kv_heads and heads % kv_heads:
        raise ModelError(f"{values.where}: layer {number} has {heads} heads, which its {kv_heads} KV heads do not divide.")
    window = _window(values, number, count)
    if name in COMPRESSED:
        return _compressed(values, heads)
    if hidden % heads and values.values.get(f"{name}.attention.key_length") is None:
        raise ModelError(
            f"{values.where}: {heads} heads do not divide {name}.embedding_length {hidden}, and there is no key_length."
        )
    key = values.number("attention.key_length", hidden // heads)
    value = values.number("attention.value_length", hidden // heads)
    if window:
        key = values.number("attention.key_length_swa", key)
        value = values.number("attention.value_length_swa", value)
    found = tensors.get("attn_k.weight")
    if found is not None and found.outputs != kv_heads * key:
        raise ModelError(
            f"{values.where}: layer {number} has {kv_heads} KV heads of {key} elements, and attn_k.weight has {found.outputs} "
            f"outputs and not {kv_heads * key}."
        )
    shared = values.number("attention.shared_kv_layers", 0, 0)
    if name == "gemma3n" and not shared:
        raise ModelError(
            f"{values.where}: gemma3n.attention.shared_kv_layers is missing: which layers keep no keys is not known."
        )
    if number >= count - shared:
        # These layers use what an earlier one keeps (src/models/gemma4.cpp).
        return Memory(NOTHING, query_heads=heads, query_dim=key)
    kind = FULL if not window else CHUNK if name in CHUNKS else WINDOW
    return Memory(kind, kv_heads=kv_heads, key_dim=key, value_dim=value, query_heads=heads, query_dim=key, reach=window)


def _window(values: _Metadata, number: int, count: int) -> int:
    """Tokens that the layer sees at most, 0 for all."""
    name = values.prefix
    if name not in ALTERNATING:
        return 0
    key = f"{name}.attention.sliding_window"
    reach = values.values.get(key)
    if name in CHUNKS:
        # A file may only turn the chunks off.
        reach = 0 if reach == 0 else CHUNKS[name]
    if name in ("exaone4", "olmo2") and reach is None:
        # The small models of these families have no windows.
        return 0
    if reach is None:
        raise ModelError(
            f"{values.where}: {key} is missing, {name} is known for windows; convert the model with a newer llama.cpp."
        )
    if isinstance(reach, bool) or not isinstance(reach, int) or reach < 0:
        raise ModelError(f"{values.where}: {key} is {reach!r}, a number of tokens is needed.")
    period, full_first = ALTERNATING[name]
    pattern = values.values.get(f"{name}.attention.sliding_window_pattern", period)
    if isinstance(pattern, tuple):
        if len(pattern) < count:
            raise ModelError(
                f"{values.where}: {name}.attention.sliding_window_pattern has {len(pattern)} values, the model "
                f"has {count} layers."
            )
        return reach if pattern[number] else 0
    if not isinstance(pattern, int) or isinstance(pattern, bool) or pattern < 1:
        raise ModelError(
            f"{values.where}: {name}.attention.sliding_window_pattern is missing: which layers have windows is not known."
        )
    full = number % pattern == 0 if full_first else number % pattern == pattern - 1
    return 0 if full else reach


def _compressed(values: _Metadata, heads: int) -> Memory:
    """Multi-head latent attention, and what older files make of it."""
    rank = values.number("attention.kv_lora_rank")
    rope = values.number("rope.dimension_count")
    if f"{values.prefix}.attention.key_length_mla" in values.values:
        inner = values.number("attention.key_length_mla")
        return Memory(MLA, key_dim=rank + rope, query_heads=heads, query_dim=inner)
    # Converted before the compressed cache came to llama.cpp: every head keeps its keys and values (src/models/deepseek2.cpp).
    key, value = values.number("attention.key_length"), values.number("attention.value_length")
    return Memory(FULL, kv_heads=heads, key_dim=key, value_dim=value, query_heads=heads, query_dim=key)


def _state(values: _Metadata, hidden: int) -> Memory:
    kind = STATES[values.prefix]
    if kind == "short_conv":
        return Memory(
            RECURRENT, state=((hidden, values.number("shortconv.l_cache") - 1),), state_types=("float32",), state_kind=kind
        )
    # n_embd_r and n_embd_s in src/llama-hparams.cpp
    width = values.number("ssm.inner_size")
    depth = values.number("ssm.state_size")
    groups = values.number("ssm.group_count", 0, 0)
    past = values.number("ssm.conv_kernel") - 1
    if kind == "mamba1":
        inside: tuple[int, ...] = (width, depth)
    else:
        heads = values.number("ssm.time_step_rank")
        if width % heads:
            raise ModelError(
                f"{values.where}: {values.prefix}.ssm.inner_size {width} is no multiple of ssm.time_step_rank {heads}."
            )
        inside = (heads, width // heads, depth)
    state = ((width + 2 * groups * depth, past), inside)
    return Memory(RECURRENT, state=state, state_types=("float32", "float32"), state_kind=kind)
