# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The files of a model: its configuration, and what the headers of its weights say. The weights themselves are never read.

A safetensors file starts with the length of its header in 8 bytes, then JSON: type, shape and place of each tensor.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._model_architecture import DRAFT, EMBEDDING, PARTS, VISION, Architecture, ModelError, Weight
from ._model_gguf import SPLIT_NAME, GgufHeader, read_header
from ._model_quantisation import DTYPE_BYTES, Scheme, total_bytes

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_CONFIG_BYTES = 16 * 2**20
MAX_INDEX_BYTES = 256 * 2**20
# The limit of the safetensors library (MAX_HEADER_SIZE in safetensors/src/tensor.rs).
MAX_HEADER_BYTES = 100_000_000

# Bits of an element: Dtype in safetensors/src/tensor.rs.
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
# How far an index's total_size may be from what the configuration describes, where the tensors are not there to be counted.
INDEX_TOLERANCE = 0.03
FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class StoredTensor:
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True)
class Safetensors:
    bytes_total: int  # of all tensors, without headers
    tensors: Mapping[str, StoredTensor]
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Index:
    """What an index says of files that are not there."""

    names: tuple[str, ...]  # of all tensors
    bytes_total: int | None  # its total_size


@dataclass(frozen=True)
class ModelFiles:
    kind: str  # config or gguf
    path: str
    config: Mapping[str, Any] = field(default_factory=dict)
    gguf: GgufHeader | None = None
    safetensors: Safetensors | None = None  # None where no weights are there
    quantization_config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # generation_config.json
    notes: tuple[str, ...] = ()
    index: Index | None = None  # where the files that it names are not there


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON file that has a mapping. Raises ModelError for everything else."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise ModelError(f"{path.name}: has {size} bytes, at most {limit} are read.")
        text = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _mapping(text, path.name)


def _mapping(text: bytes, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, value in pairs]
            raise ModelError(f"{where}: {next(name for name in names if names.count(name) > 1)!r} is there twice.")
        return found

    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{where}: a JSON object is needed, not {type(found).__name__}.")
    return found


def read_model(path: str | Path) -> ModelFiles:
    """Reads what there is at ``path``: a model's directory, its config.json, or a GGUF file.

    A directory that has safetensors, or nothing but a configuration, is a model of Hugging Face's form; one that has a single
    GGUF model and no safetensors is that. Raises ModelError for what is not there, not whole, or contradicts itself.
    """
    place = Path(path)
    if place.is_dir():
        return _directory(place)
    if not place.exists():
        raise ModelError(f"{place}: no such file or directory.")
    if not place.is_file():
        raise ModelError(f"{place}: is neither a file nor a directory.")
    if place.suffix.lower() == ".gguf":
        return ModelFiles("gguf", str(place), gguf=read_header(place))
    if place.suffix.lower() != ".json":
        raise ModelError(f"{place.name}: a model's directory, its {CONFIG} or a GGUF file is needed.")
    if place.name == CONFIG:
        return _huggingface(place.parent, place)
    # A configuration that was copied alone, whatever else is in its directory.
    config = read_json(place)
    return ModelFiles("config", str(place), config, quantization_config=_own_quantization(config, place.name))


def _directory(place: Path) -> ModelFiles:
    names = sorted(entry.name for entry in place.iterdir())
    models = sorted({SPLIT_NAME.sub("", name) if SPLIT_NAME.search(name) else name for name in names if name.endswith(".gguf")})
    # The vision part of a model is a file of its own, beside it.
    models = [name for name in models if not name.startswith("mmproj")] or models
    weights = any(name.endswith(".safetensors") or name == INDEX for name in names)
    if models and not weights:
        if len(models) > 1:
            raise ModelError(f"{place}: has {len(models)} GGUF models, name one: {', '.join(models[:8])}.")
        first = next(
            name for name in names if name == models[0] or (SPLIT_NAME.search(name) and name.startswith(models[0] + "-"))
        )
        config = read_json(place / CONFIG) if CONFIG in names else {}
        return ModelFiles("gguf", str(place / first), config, gguf=read_header(place / first))
    if CONFIG not in names:
        there = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise ModelError(f"{place}: has no {CONFIG} and no GGUF file; it has {there or 'nothing'}.")
    return _huggingface(place, place / CONFIG)


def _huggingface(place: Path, path: Path) -> ModelFiles:
    config = read_json(path)
    weights, notes, index = _safetensors(place)
    generation = place / "generation_config.json"
    return ModelFiles(
        "config",
        str(path),
        config,
        safetensors=weights,
        quantization_config=_own_quantization(config, path.name) or _beside(place),
        generation=read_json(generation) if generation.is_file() else {},
        notes=tuple(notes),
        index=index,
    )


def _own_quantization(config: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """quantization_config, or its older name; multimodal models may have it with their text model."""
    inner = config.get("text_config")
    for values in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("quantization_config", "compression_config"):
            found = values.get(key)
            if found is None:
                continue
            if not isinstance(found, Mapping):
                raise ModelError(f"{where}: {key}: a mapping is needed, not {found!r}.")
            if key == "compression_config":
                return {"quant_method": "compressed-tensors", **found}
            return dict(found)
    return None


def _beside(place: Path) -> dict[str, Any] | None:
    """Files of quantisers that do not write into config.json."""
    for name, method in (("hf_quant_config.json", "modelopt"), ("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        path = place / name
        if path.is_file():
            return {"quant_method": method, **read_json(path)}
    return None


# --- safetensors -----------------------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name. Raises ModelError for a header that is not whole, and for data that are not all there."""
    name = path.name
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            if len(start) < 8:
                raise ModelError(f"{name}: is truncated: it has {size} bytes, its header alone starts after 8.")
            length = int.from_bytes(start, "little")
            if length > MAX_HEADER_BYTES:
                raise ModelError(
                    f"{name}: says that its header has {length} bytes, at most {MAX_HEADER_BYTES} are possible: it is "
                    "no safetensors file."
                )
            if length > size - 8:
                raise ModelError(
                    f"{name}: is truncated: its header ends at byte {8 + length}, the file has {size}; fetch it again."
                )
            text = stream.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = _mapping(text, f"{name}: header")
    header.pop("__metadata__", None)
    found, places = {}, []
    for tensor, values in header.items():
        stored, begin, end = _stored(values, f"{name}: {tensor}")
        if 8 + length + end > size:
            raise ModelError(
                f"{name}: is truncated: {tensor} ends at byte {8 + length + end}, the file has {size}; fetch it again."
            )
        found[tensor] = stored
        places.append((begin, end, tensor))
    reached = 0
    for begin, end, tensor in sorted(places):
        if begin != reached:
            raise ModelError(f"{name}: {tensor} starts at offset {begin} of the data, the tensor before it ends at {reached}.")
        reached = end
    if 8 + length + reached != size:
        raise ModelError(f"{name}: has {size} bytes, its tensors end at byte {8 + length + reached}.")
    return found


def _stored(values: Any, where: str) -> tuple[StoredTensor, int, int]:
    if not isinstance(values, Mapping):
        raise ModelError(f"{where}: a mapping is needed, not {values!r}.")
    dtype, shape, offsets = values.get("dtype"), _counts(values.get("shape")), _counts(values.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ModelError(f"{where}: dtype {dtype!r} is not known; known are {', '.join(DTYPE_BITS)}.")
    if shape is None:
        raise ModelError(f"{where}: shape is {values.get('shape')!r}, a list of numbers is needed.")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelError(f"{where}: data_offsets is {values.get('data_offsets')!r}, where the tensor starts and ends is needed.")
    bits = DTYPE_BITS[dtype]
    for length in shape:
        bits *= length
    if bits != (offsets[1] - offsets[0]) * 8:
        shown = " x ".join(map(str, shape)) or "one"
        raise ModelError(
            f"{where}: {shown} elements of {dtype} have {bits // 8} bytes, data_offsets leave it {offsets[1] - offsets[0]}."
        )
    return StoredTensor(dtype, shape, bits // 8), offsets[0], offsets[1]


def _counts(values: Any) -> tuple[int, ...] | None:
    if isinstance(values, list) and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in values):
        return tuple(values)
    return None


def _safetensors(place: Path) -> tuple[Safetensors | None, list[str], Index | None]:
    """The weights of a directory, what a reader should know of them, and the index of those that are not there."""
    if (place / INDEX).is_file():
        return _indexed(place)
    if (place / SINGLE).is_file():
        return _taken([place / SINGLE]), [], None
    # Mistral's repositories have the same weights twice; adapters are no models.
    names = sorted(path.name for path in place.glob("*.safetensors"))
    names = [name for name in names if not name.startswith(("consolidated", "adapter_"))] or [
        name for name in names if not name.startswith("adapter_")
    ]
    if not names:
        others = [path.name for path in place.iterdir() if re.search(r"\.(bin|pt|pth)$", path.name)]
        return None, [f"weights in {others[0]} are not read, safetensors are needed"] if others else [], None
    for name in names:
        matched = re.search(r"-(\d{5})-of-(\d{5})\.safetensors$", name)
        if matched:
            missing = [
                number
                for number in range(1, int(matched[2]) + 1)
                if f"{name[: matched.start()]}-{number:05}-of-{matched[2]}.safetensors" not in names
            ]
            if missing:
                raise ModelError(f"{place}: part {missing[0]} of {int(matched[2])} of {name[: matched.start()]} is not there.")
    return _taken([place / name for name in names]), [], None


def _taken(paths: Iterable[Path]) -> Safetensors:
    tensors: dict[str, StoredTensor] = {}
    files = []
    for path in paths:
        files.append(path.name)
        for name, tensor in read_safetensors(path).items():
            if name in tensors:
                raise ModelError(f"{path.name}: {name} is in another file too.")
            tensors[name] = tensor
    return Safetensors(sum(tensor.bytes for tensor in tensors.values()), tensors, tuple(files))


def _indexed(place: Path) -> tuple[Safetensors | None, list[str], Index | None]:
    index = read_json(place / INDEX, MAX_INDEX_BYTES)
    names = index.get("weight_map")
    if not isinstance(names, Mapping) or not names or not all(isinstance(file, str) for file in names.values()):
        raise ModelError(f"{INDEX}: weight_map is missing, empty, or has values that are no file names.")
    files = sorted(set(names.values()))
    outside = [file for file in files if Path(file).name != file]
    if outside:
        raise ModelError(f"{INDEX}: weight_map names {outside[0]!r}, a file beside it is needed.")
    missing = [file for file in files if not (place / file).is_file()]
    if len(missing) == len(files):
        note = (
            f"{INDEX} names {len(files)} files and none is there: only its total_size and its layers are compared with {CONFIG}"
        )
        return None, [note], Index(tuple(names), _total_size(index))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(f"{INDEX}: names {len(files)} files, not there: {', '.join(missing[:3])}{more}.")
    found = _taken(place / file for file in files)
    lacking = [name for name in names if name not in found.tensors]
    if lacking:
        raise ModelError(f"{INDEX}: lists {lacking[0]} in {names[lacking[0]]}, no file has it ({len(lacking)} such tensors).")
    told = _total_size(index)
    if told is not None and told != found.bytes_total:
        raise ModelError(
            f"{INDEX}: metadata: total_size is {told:,}, the tensors of its {len(files)} files have {found.bytes_total:,} "
            "bytes: files of different releases, or a file is not whole."
        )
    extra = [name for name in found.tensors if name not in names]
    return found, [f"{len(extra)} tensors are in no list of {INDEX}, for instance {extra[0]}"] if extra else [], None


def _total_size(index: Mapping[str, Any]) -> int | None:
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    if total is None:
        return None
    # Some writers have it as a float or as text.
    try:
        return int(float(total)) if isinstance(total, str) else int(total)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{INDEX}: metadata: total_size is {total!r}, a number of bytes is needed.") from error


# --- weights and configuration ----------------------------------------------------------------------------------------

# Tensors that are no parameters: tables that the code makes again, and scales of the KV cache.
BUFFERS = re.compile(
    r"(rotary_emb\.|\.inv_freq$|\.masked_bias$|\.attn\.bias$|\.attention\.bias$|position_ids$|\.[kvq]_scale$|\.(k|v)_proj\.output_scale$)"
)
VISION_NAMES = re.compile(
    r"(^|\.)(vision_tower|vision_model|visual|vision_encoder|vision_embed_tokens|multi_modal_projector|mm_projector|img_projection"
    r"|patch_merger|audio_tower|embed_vision|embed_audio|vision_language_adapter|pre_mm_projector_norm)(\.|$)"
)
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.(.+)$")
EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
    "embeddings.weight",
)


def compare_with(files: ModelFiles, architecture: Architecture, scheme: Scheme) -> list[str]:
    """Whether the weights that are there are those that the configuration describes.

    Returns the notes of the files, and notes on what was left out of the comparison (a vision tower, layers for multi-token
    prediction). Where an index is there without its files, its size and layers are compared; where nothing is, nothing. Raises
    ModelError at the first contradiction, with both numbers.
    """
    if files.safetensors is None:
        return list(files.notes) + ([] if files.index is None else _compare_index(files, files.index, architecture, scheme))
    where = INDEX if len(files.safetensors.files) > 1 else files.safetensors.files[0]
    text: dict[str, StoredTensor] = {}
    layers: dict[int, dict[str, StoredTensor]] = {}
    vision = draft = 0
    count = len(architecture.layers)
    for name, tensor in files.safetensors.tensors.items():
        if BUFFERS.search(name):
            continue
        matched = LAYER.search(name)
        if VISION_NAMES.search(name):
            vision += tensor.elements
        elif _of_draft(name, architecture):
            draft += tensor.elements
        else:
            text[name] = tensor
            if matched:
                layers.setdefault(int(matched[1]), {})[matched[2]] = tensor
    notes = list(files.notes)
    if vision:
        notes.append(f"{vision:,} elements of vision or audio towers were not compared")
    if draft:
        notes.append(f"{draft:,} elements of layers for multi-token prediction were not compared")
    elif architecture.draft_layers:
        notes.append("the layers for multi-token prediction are not in the weights")
    _compare_layers(layers, count, where)
    _compare_embedding(text, architecture, where)
    if scheme.quantised:
        return notes + _compare_bytes(files.safetensors, text, architecture, scheme, where)
    _compare_shapes(layers, architecture, where)
    return notes + _compare_elements(text, architecture, where)


def _of_draft(name: str, architecture: Architecture) -> bool:
    """A tensor of layers for multi-token prediction: they have a name of their own, or follow the last layer."""
    matched, count = LAYER.search(name), len(architecture.layers)
    return (
        name.startswith("mtp.")
        or ".mtp." in name
        or ".nextn." in name
        or (matched is not None and count <= int(matched[1]) < count + architecture.draft_layers)
    )


def _compare_index(files: ModelFiles, index: Index, architecture: Architecture, scheme: Scheme) -> list[str]:
    """total_size against what the configuration describes, and the layers of the names."""
    named = [name for name in index.names if not BUFFERS.search(name) and not VISION_NAMES.search(name)]
    towers = any(VISION_NAMES.search(name) for name in index.names)
    text = [name for name in named if not _of_draft(name, architecture)]
    _compare_layers({int(found[1]): True for found in map(LAYER.search, text) if found}, len(architecture.layers), INDEX)
    if index.bytes_total is None:
        return [f"{INDEX}: has no total_size, which is not compared"]
    own = DTYPE_BYTES.get(architecture.dtype, 2)
    inner = files.config.get("text_config")
    configs = [files.config, inner if isinstance(inner, Mapping) else {}]
    told = any(config.get(key) for config in configs for key in ("dtype", "torch_dtype"))
    # Whole weights of a configuration that names no type may have any.
    widths = {own} if told or scheme.quantised else {own, 2, 4}
    described = [size for width in sorted(widths) for size in _sizes(architecture, scheme, width)]
    held = index.bytes_total
    words = f"{INDEX}: metadata: total_size is {held:,} bytes, {CONFIG} with {scheme.name} describes {described[0]:,}"
    wrong = f"{words}: the weights are of another model or release, or {CONFIG} was changed."
    untold = len(text) < len(named) and not any(weight.part == DRAFT for weight in architecture.weights)
    if towers or untold:
        # What these have is described less exactly than the text model, or not at all, and it only adds.
        if held < min(described) * (1 - INDEX_TOLERANCE):
            raise ModelError(wrong)
        what = "a vision or audio tower" if towers else "layers for multi-token prediction"
        return [f"{INDEX}: has {what}, and total_size is only held against the least that the text model has"]
    if not any(abs(held - size) <= size * INDEX_TOLERANCE for size in described):
        raise ModelError(wrong)
    return []


def _sizes(architecture: Architecture, scheme: Scheme, width: int) -> list[int]:
    """Bytes that a text model's files may have: with and without layers for multi-token prediction, and a tied head twice."""
    parts = _text_parts(architecture)
    text = total_bytes([weight for weight in architecture.weights if weight.part in parts], scheme, width, stored=True)
    draft = total_bytes([weight for weight in architecture.weights if weight.part == DRAFT], scheme, width, stored=True)
    head = sum(weight.numel * width for weight in architecture.weights if weight.part == EMBEDDING) if architecture.tied else 0
    return sorted({text + more + again for more in (0, draft) for again in (0, head)})


def _compare_layers(layers: Mapping[int, Any], count: int, where: str) -> None:
    if not layers:
        return
    missing = [number for number in range(count) if number not in layers]
    if missing:
        raise ModelError(
            f"{where}: has tensors of {len(layers)} layers, {CONFIG} describes {count}: there is none of layer {missing[0]}."
        )
    if max(layers) >= count:
        raise ModelError(f"{where}: has tensors of layer {max(layers)}, {CONFIG} describes {count} layers (0 to {count - 1}).")


def _compare_embedding(tensors: Mapping[str, StoredTensor], architecture: Architecture, where: str) -> None:
    found = next(
        ((name, tensor) for name, tensor in tensors.items() if name.endswith(EMBEDDING_NAMES) and "layers." not in name), None
    )
    expected = next((weight for weight in architecture.weights if weight.part == EMBEDDING), None)
    if found is None or expected is None or len(found[1].shape) != 2 or found[1].dtype not in FLOATS:
        return
    name, tensor = found
    for got, wanted, what in zip(tensor.shape, (expected.outputs, expected.inputs), ("rows", "elements in each row")):
        if got != wanted:
            raise ModelError(f"{where}: {name} has {got:,} {what}, {CONFIG} describes {wanted:,}.")


def _plain(name: str) -> str:
    """A tensor's name without the numbers of experts."""
    return re.sub(r"\.\d+(?=\.)", "", name)


def _compare_shapes(layers: Mapping[int, Mapping[str, StoredTensor]], architecture: Architecture, where: str) -> None:
    """Every tensor that has the name of a weight of the architecture has its number of elements too."""
    for weight in architecture.weights:
        for layer in weight.layers:
            for name, tensor in layers.get(layer, {}).items():
                if weight.copies == 1 and name in (weight.name, weight.name + ".weight"):
                    _same(tensor, weight, f"{where}: layer {layer}: {name}", 1)
                elif weight.copies > 1 and _plain(name) in (_plain(weight.name), _plain(weight.name + ".weight")):
                    _same(tensor, weight, f"{where}: layer {layer}: {name}", 1 if _plain(name) != name else weight.copies)


def _same(tensor: StoredTensor, weight: Weight, place: str, copies: int) -> None:
    if tensor.elements != weight.numel * copies:
        shape = " x ".join(map(str, tensor.shape))
        many = f" for each of {copies} experts" if copies > 1 else ""
        raise ModelError(f"{place} is {shape}, {CONFIG} describes {weight.outputs} outputs and {weight.inputs} inputs{many}.")


def _repeated_head(tensors: Mapping[str, StoredTensor], architecture: Architecture) -> set[str]:
    """A head that is the embedding, and stored again."""
    if not architecture.tied:
        return set()
    return {name for name in tensors if name.endswith(("lm_head.weight", "embed_out.weight"))}


def _text_parts(architecture: Architecture) -> list[str]:
    return [part for part in PARTS if part not in (VISION, DRAFT)]


def _compare_elements(tensors: Mapping[str, StoredTensor], architecture: Architecture, where: str) -> list[str]:
    repeated = _repeated_head(tensors, architecture)
    held = sum(tensor.elements for name, tensor in tensors.items() if name not in repeated)
    described = architecture.parameters(_text_parts(architecture))
    if held == described:
        return []
    words = f"the tensors hold {held:,} parameters, {CONFIG} describes {described:,}"
    # Small vectors that a family's description leaves out are no other model.
    if abs(held - described) <= described // 1000:
        return [f"{where}: {words}"]
    raise ModelError(f"{where}: {words}: the weights are of another model or release, or {CONFIG} was changed.")


def _compare_bytes(
    stored: Safetensors, tensors: Mapping[str, StoredTensor], architecture: Architecture, scheme: Scheme, where: str
) -> list[str]:
    repeated = _repeated_head(tensors, architecture)
    held = sum(tensor.bytes for name, tensor in tensors.items() if name not in repeated)
    parts = _text_parts(architecture)
    weights = [weight for weight in architecture.weights if weight.part in parts]
    described = total_bytes(weights, scheme, DTYPE_BYTES.get(architecture.dtype, 2), stored=True)
    words = f"the tensors hold {held:,} bytes, {CONFIG} with {scheme.name} describes {described:,}"
    if abs(held - described) <= described // 100:
        return []
    if abs(held - described) <= described // 20:
        return [f"{where}: {words}"]
    # Whoever quantises may leave more in 16 bits than the list says, but not less.
    raise ModelError(f"{where}: {words}: the weights are of another model or release, or {CONFIG} was changed.")


def stored_dtype(files: ModelFiles) -> str:
    """The dtype of most 16 or 32 bit elements of the weights: bfloat16, float16, float32; empty where none are there."""
    counts: dict[str, int] = {}
    for tensor in files.safetensors.tensors.values() if files.safetensors else ():
        if tensor.dtype in FLOATS:
            counts[FLOATS[tensor.dtype]] = counts.get(FLOATS[tensor.dtype], 0) + tensor.elements
    return max(counts, key=lambda name: counts[name]) if counts else ""
