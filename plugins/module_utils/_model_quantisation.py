# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How many bytes a weight takes under a method of quantisation, whole or on one of several GPUs.

A scheme says how one matrix is stored (bits, scales, zero points), which matrices of a model it is for, and what arithmetic a GPU
does with it. Sources named "vllm:" are paths below vllm/model_executor in vLLM 0.32.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Union

from ._model_architecture import (
    ATTENTION,
    DRAFT,
    EMBEDDING,
    EXPERT,
    EXPERTS,
    HEAD,
    INPUTS,
    KV_HEADS,
    MLP,
    OUTPUTS,
    ROUTER,
    SHARED_EXPERT,
    STATE,
    VISION,
    VOCABULARY,
    Architecture,
    ModelError,
    Weight,
)
from ._model_gguf import TYPES_BY_NAME, GgufHeader, TensorType

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

# The linear layers of a text model. A router stays in 16 bits in every model of vLLM (quant_config=None in models/*.py), a
# vision tower in what is published; heads and embeddings are other layers.
LINEAR = (ATTENTION, STATE, MLP, EXPERT, SHARED_EXPERT, DRAFT)

# Layers for multi-token prediction have a head, an embedding and a projection of their own, which stay in 16 bits as those of the
# model do (vllm: models/deepseek_mtp.py).
DRAFT_LINEAR = re.compile(r"(attn|attention|mlp|ffn|experts)")
DRAFT_ROUTER = re.compile(r"(gate_inp|\.gate|router|expert_gate)(\.weight)?$")

# How the list of what stays in 16 bits is to be read.
EXACT, SUBSTRING, COMPONENT, TARGETS, WILDCARD = "exact", "substring", "component", "targets", "wildcard"

Group = Union[str, int, "tuple[int, int]"]


@dataclass(frozen=True)
class Scheme:
    """A way to store the matrices of a model.

    ``group``: what shares a scale: "tensor", "channel" (an output), so many inputs of an output, or a block of (outputs, inputs).
    Compute capabilities are numbers as in 8.9; 0 where any GPU serves.
    """

    name: str
    method: str  # the quant_method of a config.json that it goes with; gguf; none
    weight_bits: float = 0  # 0: as the model's dtype
    group: Group = ""
    scale_bits: int = 0
    zero_point_bits: float = 0  # for each scale
    scale_group: int = 0  # so many scales share a float of their own (double quantisation); 0: none do
    tensor_bytes: int = 0  # for each tensor: a scale of scales, tables of values
    input_bytes: int = 0  # for each input of each tensor: g_idx of GPTQ with desc_act
    # What a checkpoint has and a running engine does not keep.
    stored_zero_point_bits: float = 0
    stored_input_bytes: int = 0
    # Kernels that want experts in multiples of so many (hidden size, inner size of one GPU): a checkpoint has no such padding.
    expert_padding: tuple[int, ...] = ()
    parts: tuple[str, ...] = LINEAR
    unquantised: tuple[str, ...] = ()  # modules that stay in 16 bits
    matching: str = EXACT
    only: tuple[str, ...] = ()  # modules that are quantised where not all are
    overrides: tuple[tuple[tuple[str, ...], Scheme], ...] = ()  # modules that are stored another way
    activation_bits: int = 16
    arithmetic: str = "bf16"  # bf16, fp8, int8, fp4, fp32: the rate of matrix products that counts
    weight_only: bool = True
    served_from: float = 0  # compute capability below which vLLM refuses it
    refused_from: float = 0  # compute capability from which vLLM refuses it
    native_from: float = 0  # compute capability from which its arithmetic is used; below, weights are widened for each product
    online: bool = False  # the engine quantises a 16 bit checkpoint while it loads
    engines: tuple[str, ...] = ("vllm",)
    source: str = ""
    notes: tuple[str, ...] = ()  # what a reader should know before taking it
    # GGUF: a mix of types by tensor, chosen for one architecture, or the types that a file has.
    mix: str = ""
    fit: Fit | None = None
    stored: Mapping[str, TensorType] = field(default_factory=dict, compare=False)

    @property
    def quantised(self) -> bool:
        return bool(self.weight_bits or self.mix or self.stored or self.overrides)

    @property
    def bits(self) -> float:
        """Bits of one element of a large matrix with its scales; 0 where it depends on the tensor or the dtype."""
        if not self.weight_bits:
            return TYPES_BY_NAME[MIXES[self.mix]].bits if self.mix else 0
        size = 1 << 24
        return _tensor_bytes(self, 4096, 4096, 2) * 8 / size

    def arithmetic_on(self, compute_capability: float) -> str:
        """The arithmetic that a GPU of this compute capability does for the quantised matrices."""
        return self.arithmetic if compute_capability >= self.native_from else "bf16"

    def fitted(self, architecture: Architecture) -> Scheme:
        """The same scheme, with what a mix of GGUF types has to know of the model."""
        if not self.mix:
            return self
        values = tuple(sorted({layer for one in architecture.weights if _category(one) == "v" for layer in one.layers}))
        return replace(
            self,
            fit=Fit(
                layers=len(architecture.layers),
                value_layers=values,
                group=architecture.heads // architecture.kv_heads if architecture.kv_heads else 0,
                experts=architecture.experts,
                tied=architecture.tied,
                falcon=architecture.family == "falcon",
            ),
        )


@dataclass(frozen=True)
class Fit:
    """What decides the type of a tensor in a mix of llama.cpp, beside its name."""

    layers: int
    value_layers: tuple[int, ...]
    group: int  # query heads for each KV head
    experts: int
    tied: bool
    falcon: bool = False


# --- the methods -----------------------------------------------------------------------------------------------------


def _unquantised(dtype: str) -> Scheme:
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"dtype: {dtype!r} is not known; known are {', '.join(DTYPE_BYTES)}.")
    return Scheme(
        "none",
        "none",
        parts=(),
        arithmetic="fp32" if dtype == "float32" else "bf16",
        activation_bits=DTYPE_BYTES[dtype] * 8,
        weight_only=False,
        # "Bfloat16 is only supported on GPUs with compute capability of at least 8.0", vllm: ../platforms/cuda.py
        served_from=8.0 if dtype == "bfloat16" else 0,
        engines=("vllm", "llama_cpp", "transformers"),
        source="as the checkpoint",
    )


# FP8 arithmetic needs 8.9; from 7.5 on Marlin multiplies FP8 weights with 16 bit activations (is_fp8_marlin_supported, vllm:
# layers/quantization/utils/marlin_utils_fp8.py).
FP8 = Scheme(
    "fp8",
    "fp8",
    weight_bits=8,
    group="tensor",
    scale_bits=32,
    activation_bits=8,
    arithmetic="fp8",
    weight_only=False,
    served_from=7.5,
    native_from=8.9,
    source="vllm: layers/quantization/fp8.py, Fp8Config",
)
# Turing has INT8 tensor cores. On Blackwell vLLM ends with "Int8 not supported on SM100. Use FP8 quantization instead", in
# csrc/quantization/w8a8/cutlass/c3x/scaled_mm_helper.hpp.
INT8 = Scheme(
    "int8",
    "compressed-tensors",
    weight_bits=8,
    group="channel",
    scale_bits=32,
    parts=(*LINEAR, HEAD),
    unquantised=("lm_head",),
    matching=TARGETS,
    activation_bits=8,
    arithmetic="int8",
    weight_only=False,
    served_from=7.5,
    refused_from=10.0,
    native_from=7.5,
    source="vllm: layers/quantization/compressed_tensors/schemes/compressed_tensors_w8a8_int8.py",
)
AWQ = Scheme(
    "awq",
    "awq",
    weight_bits=4,
    group=128,
    scale_bits=16,
    zero_point_bits=4,
    stored_zero_point_bits=4,
    matching=SUBSTRING,
    served_from=7.5,
    source="vllm: layers/quantization/auto_awq.py, AutoAWQConfig",
)
# The zero points of symmetric weights and g_idx are in the checkpoint and not kept (process_weights_after_loading, vllm:
# kernels/linear/mixed_precision/marlin.py).
GPTQ = Scheme(
    "gptq",
    "gptq",
    weight_bits=4,
    group=128,
    scale_bits=16,
    stored_zero_point_bits=4,
    stored_input_bytes=4,
    matching=TARGETS,
    served_from=7.5,
    source="vllm: layers/quantization/auto_gptq.py, AutoGPTQConfig; Marlin from 7.5, layers/quantization/utils/marlin_utils.py",
)
W4A16 = Scheme(
    "w4a16",
    "compressed-tensors",
    weight_bits=4,
    group=128,
    scale_bits=16,
    parts=(*LINEAR, HEAD),
    unquantised=("lm_head",),
    matching=TARGETS,
    served_from=7.5,
    source="vllm: layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py",
)
# 4 bits, the largest of 64 elements in 8 bits, a float for 256 of those (double quantisation),
# tables of 16 and 256 floats and an offset for each tensor: https://arxiv.org/abs/2305.14314, section 3, and QuantState in
# bitsandbytes/functional.py. vLLM keeps it so, also where it quantises itself: four logged sizes say so
# (tests/bench/accuracy/cases.yml). Since 0.28 it is a plugin of vLLM.
NF4 = Scheme(
    "nf4",
    "bitsandbytes",
    weight_bits=4,
    group=64,
    scale_bits=8,
    scale_group=256,
    tensor_bytes=16 * 4 + 256 * 4 + 4,
    matching=COMPONENT,
    online=True,
    engines=("vllm-bnb-plugin", "transformers"),
    source="https://arxiv.org/abs/2305.14314, section 3",
    notes=("vLLM has bitsandbytes in a plugin since 0.28 (pull request 43529)",),
)
LLM_INT8 = Scheme(
    "bnb_int8",
    "bitsandbytes",
    weight_bits=8,
    group="channel",
    scale_bits=32,
    matching=COMPONENT,
    activation_bits=8,
    arithmetic="int8",
    weight_only=False,
    native_from=7.5,
    online=True,
    engines=("vllm-bnb-plugin", "transformers"),
    source="https://arxiv.org/abs/2208.07339",
)
# FP4 arithmetic came with Blackwell (cutlass_fp4_supported, vllm: layers/quantization/utils/nvfp4_utils.py); before, Marlin
# multiplies the weights with 16 bit activations (is_fp4_marlin_supported, marlin_utils_fp4.py).
NVFP4 = Scheme(
    "nvfp4",
    "modelopt",
    weight_bits=4,
    group=16,
    scale_bits=8,
    tensor_bytes=8,
    parts=(*LINEAR, HEAD),
    unquantised=("lm_head",),
    matching=WILDCARD,
    activation_bits=4,
    arithmetic="fp4",
    weight_only=False,
    served_from=7.5,
    native_from=10.0,
    source="vllm: layers/quantization/modelopt.py, ModelOptNvFp4Config",
)
# Experts are padded for the kernels: hidden size to 256, the inner size of one GPU to 128 (Marlin, and TRT-LLM on Blackwell:
# mxfp4_round_up_hidden_size_and_intermediate_size, vllm: layers/fused_moe/oracle/mxfp4.py). Triton's layout on Hopper pads some
# percent less.
MXFP4 = Scheme(
    "mxfp4",
    "mxfp4",
    weight_bits=4,
    group=32,
    scale_bits=8,
    expert_padding=(256, 128),
    activation_bits=16,
    arithmetic="fp4",
    weight_only=False,
    served_from=8.0,
    native_from=10.0,
    source="vllm: layers/quantization/mxfp4.py, Mxfp4Config",
)
MXFP8 = Scheme(
    "mxfp8",
    "mxfp8",
    weight_bits=8,
    group=32,
    scale_bits=8,
    activation_bits=8,
    arithmetic="fp8",
    weight_only=False,
    served_from=8.0,
    native_from=10.0,
    source="vllm: layers/quantization/modelopt.py, ModelOptMxFp8Config",
)
HQQ = Scheme(
    "hqq",
    "hqq",
    weight_bits=4,
    group=64,
    scale_bits=16,
    zero_point_bits=16,
    stored_zero_point_bits=16,
    matching=COMPONENT,
    engines=("transformers",),
    source="https://github.com/mobiusml/hqq, BaseQuantizeConfig",
)
TORCHAO = Scheme(
    "torchao_int4",
    "torchao",
    weight_bits=4,
    group=128,
    scale_bits=16,
    zero_point_bits=16,
    stored_zero_point_bits=16,
    matching=COMPONENT,
    served_from=7.5,
    source="vllm: layers/quantization/torchao.py, TorchAOConfig",
)
FBGEMM = replace(
    FP8,
    name="fbgemm_fp8",
    method="fbgemm_fp8",
    group="channel",
    served_from=8.0,
    source="vllm: layers/quantization/fbgemm_fp8.py, FBGEMMFp8Config",
)
ONLINE = "vllm: ../config/quantization.py, _ONLINE_SHORTHANDS"

# What an operator can ask for. The words of vLLM's --quantization where it has one.
NAMED = {
    "fp8": replace(FP8, online=True, source=ONLINE + ", fp8_per_tensor"),
    "fp8_per_channel": replace(FP8, name="fp8_per_channel", group="channel", online=True, source=ONLINE),
    "fp8_per_block": replace(FP8, name="fp8_per_block", group=(128, 128), online=True, source=ONLINE),
    "fbgemm_fp8": FBGEMM,
    "int8": INT8,
    "experts_int8": replace(
        INT8,
        name="experts_int8",
        method="experts_int8",
        parts=(EXPERT,),
        unquantised=(),
        activation_bits=16,
        arithmetic="bf16",
        weight_only=True,
        online=True,
        refused_from=0,
        native_from=0,
        source=ONLINE + ", int8_per_channel_weight_only",
    ),
    "awq": AWQ,
    "gptq": GPTQ,
    "gptq_int8": replace(GPTQ, name="gptq_int8", weight_bits=8, stored_zero_point_bits=8),
    "w4a16": W4A16,
    "w8a16": replace(W4A16, name="w8a16", weight_bits=8),
    "nf4": NF4,
    "bnb_int8": LLM_INT8,
    "nvfp4": NVFP4,
    "nvfp4a16": replace(NVFP4, name="nvfp4a16", activation_bits=16, arithmetic="bf16", weight_only=True, native_from=0),
    # A checkpoint has MXFP4 for its experts alone; vLLM makes it of every linear layer.
    "mxfp4": replace(MXFP4, online=True, source=ONLINE),
    "mxfp8": replace(MXFP8, online=True, served_from=8.0, source=ONLINE),
    "hqq": HQQ,
    "torchao_int4": TORCHAO,
    "torchao_int8": replace(
        TORCHAO,
        name="torchao_int8",
        weight_bits=8,
        group="channel",
        zero_point_bits=0,
        stored_zero_point_bits=0,
    ),
    "torchao_fp8": replace(FP8, name="torchao_fp8", method="torchao", group="channel", matching=COMPONENT, source=TORCHAO.source),
}
ALIASES = {
    "": "none",
    "auto": "none",
    "bf16": "none",
    "bfloat16": "none",
    "fp16": "none",
    "float16": "none",
    "fp8_per_tensor": "fp8",
    "w8a8": "int8",
    "int8_per_channel_weight_only": "experts_int8",
    "auto_awq": "awq",
    "awq_marlin": "awq",
    "auto_gptq": "gptq",
    "gptq_marlin": "gptq",
    "gptq_int4": "gptq",
    "int4": "w4a16",
    "bitsandbytes": "nf4",
    "bnb": "nf4",
    "bnb_4bit": "nf4",
    "modelopt_fp4": "nvfp4",
    "modelopt_mxfp8": "mxfp8",
    "q2_k_m": "q2_k",
    "q3_k": "q3_k_m",
    "q4_k": "q4_k_m",
    "q5_k": "q5_k_m",
}

# The mixes of llama-quantize and the type that each is mostly of: LLAMA_FTYPE_MOSTLY_* in llama.cpp's src/llama-quant.cpp.
MIXES = {
    "F16": "F16",
    "BF16": "BF16",
    "F32": "F32",
    "Q4_0": "Q4_0",
    "Q4_1": "Q4_1",
    "Q5_0": "Q5_0",
    "Q5_1": "Q5_1",
    "Q8_0": "Q8_0",
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
    "IQ1_S": "IQ1_S",
    "IQ1_M": "IQ1_M",
    "IQ2_XXS": "IQ2_XXS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS",
    "IQ3_XS": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "IQ3_M": "IQ3_S",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
    "TQ1_0": "TQ1_0",
    "TQ2_0": "TQ2_0",
    "MXFP4_MOE": "MXFP4",
}
GGUF_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
}


def scheme_named(name: str | None, dtype: str, architecture: Architecture | None = None) -> Scheme:
    """The scheme that an operator asks for by name, for a checkpoint of this dtype ("bfloat16", "float16", "float32").

    A mix of GGUF types has to know the architecture: give it here, or call ``fitted`` later.
    """
    asked = (name or "none").lower().replace("-", "_")
    asked = ALIASES.get(asked, asked)
    if asked == "none":
        return _unquantised(dtype)
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"dtype: {dtype!r} is not known; known are {', '.join(DTYPE_BYTES)}.")
    if asked in NAMED:
        return NAMED[asked]
    if asked.upper() in MIXES:
        found = _gguf_scheme(asked.upper())
        return found.fitted(architecture) if architecture else found
    known = ["none", *NAMED, *(mix.lower() for mix in MIXES)]
    near = difflib.get_close_matches(asked, [*known, *(alias for alias in ALIASES if alias)], 3, 0.5)
    hint = f"near are {', '.join(near)}" if near else f"known are {', '.join(known)}"
    raise ModelError(f"quantization: {name!r} is not known; {hint}.")


def _gguf_scheme(mix: str) -> Scheme:
    return Scheme(
        mix,
        "gguf",
        parts=(*LINEAR, EMBEDDING, HEAD),
        # llama.cpp multiplies quantised blocks with activations in blocks of 8 bits, on tensor cores of 8 bit integers where a
        # GPU has them (ggml/src/ggml-cuda/mmq.cu); how near to their rate it comes is for the efficiency that a plan states.
        engines=("llama_cpp",),
        source="https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp, llama_tensor_get_type_impl",
        mix=mix,
    )


def scheme_of_gguf(header: GgufHeader) -> Scheme:
    """What a GGUF file has, tensor by tensor: for the weights of ``_model_gguf.architecture_of`` and no others."""
    told = GGUF_FILE_TYPES.get(header.metadata.get("general.file_type", -1))
    most = next(iter(header.bytes_by_type()), "F32")
    return Scheme(
        told or most,
        "gguf",
        parts=(*LINEAR, EMBEDDING, HEAD),
        engines=("llama_cpp",),
        source=Path(header.path).name,
        stored=header.stored(),
    )


def scheme_for(
    quantization_config: Mapping[str, Any] | None, wish: str | None, dtype: str, architecture: Architecture | None = None
) -> Scheme:
    """The scheme of a checkpoint, or what an operator wishes to be made of it (None or "auto": as it is).

    A checkpoint that is quantised stays as it is: another wish is an error.
    """
    found = scheme_of(quantization_config, dtype)
    # A method's own name asks for what the checkpoint has, whatever its bits are.
    if wish is None or wish.lower() == "auto" or wish.lower().replace("_", "-") == found.method:
        return found
    wanted = scheme_named(wish, dtype, architecture)
    if not found.quantised:
        return wanted
    if wanted.name == found.name or (wanted.method, wanted.weight_bits) == (found.method, found.weight_bits):
        return found
    raise ModelError(
        f"quantization: {wish!r} is asked for, and the checkpoint is quantised already ({found.name}, quant_method "
        f"{found.method}); leave it out, or take the checkpoint in 16 bits."
    )


# --- what a config.json says ------------------------------------------------------------------------------------------


def scheme_of(quantization_config: Mapping[str, Any] | None, dtype: str) -> Scheme:
    """The scheme that a checkpoint's quantization_config describes; None: not quantised.

    Raises ModelError for a method that is not known and for values that are missing or cannot be.
    """
    if not quantization_config:
        return _unquantised(dtype)
    if not isinstance(quantization_config, Mapping):
        raise ModelError(f"quantization_config: a mapping is needed, not {type(quantization_config).__name__}.")
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"dtype: {dtype!r} is not known; known are {', '.join(DTYPE_BYTES)}.")
    method = str(quantization_config.get("quant_method", "")).lower().replace("_", "-")
    if not method and quantization_config.get("quant_algo"):
        method = "modelopt"
    readers = {
        "fp8": _fp8,
        "fbgemm-fp8": _fbgemm,
        "awq": _awq,
        "gptq": _gptq,
        "auto-round": _gptq,
        "compressed-tensors": _compressed_tensors,
        "modelopt": _modelopt,
        "modelopt-fp4": _modelopt,
        "modelopt-mixed": _modelopt,
        "bitsandbytes": _bitsandbytes,
        "mxfp4": _mxfp4,
        "mxfp8": _mxfp8,
        "gpt-oss-mxfp4": _mxfp4,
        "hqq": _hqq,
        "torchao": _torchao,
        "quark": _quark,
    }
    reader = readers.get(method)
    if reader is None:
        raise ModelError(
            f"quantization_config: quant_method {quantization_config.get('quant_method')!r} is not known; known are "
            f"{', '.join(sorted(readers))}."
        )
    return reader(_Config(quantization_config, "quantization_config"))


class _Config:
    """Values of a quantization_config, with errors that name the key."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ModelError(f"{where}: a mapping is needed, not {values!r}.")
        self.values, self.where = values, where

    def number(self, *names: str, default: int | None = None, least: int = 1) -> int:
        for name in names:
            found = self.values.get(name)
            if found is not None:
                if isinstance(found, bool) or not isinstance(found, int) or found < least:
                    raise ModelError(f"{self.where}: {name} is {found!r}, a number of at least {least} is needed.")
                return found
        if default is None:
            raise ModelError(f"{self.where}: {names[0]} is missing.")
        return default

    def names(self, *keys: str) -> tuple[str, ...]:
        for key in keys:
            found = self.values.get(key)
            if found:
                if isinstance(found, str):
                    return (found,)
                if not isinstance(found, (list, tuple)) or not all(isinstance(one, str) for one in found):
                    raise ModelError(f"{self.where}: {key} is {found!r}, a list of module names is needed.")
                return tuple(found)
        return ()

    def flag(self, name: str, default: bool) -> bool:
        found = self.values.get(name, default)
        if not isinstance(found, bool):
            raise ModelError(f"{self.where}: {name} is {found!r}, true or false is needed.")
        return found

    def below(self, name: str) -> _Config:
        return _Config(self.values.get(name), f"{self.where}: {name}")


def _group_size(config: _Config, *names: str, default: int | None = None) -> Group:
    size = config.number(*names, default=default, least=-1)
    if size == 0:
        raise ModelError(f"{config.where}: {names[0]} is 0, -1 (an output) or a number of inputs is needed.")
    return "channel" if size == -1 else size


def _fp8(config: _Config) -> Scheme:
    block = config.values.get("weight_block_size")
    group: Group = "tensor"
    if block is not None:
        if not isinstance(block, (list, tuple)) or len(block) != 2 or not all(isinstance(one, int) and one > 0 for one in block):
            raise ModelError(f"{config.where}: weight_block_size is {block!r}, two numbers are needed.")
        group = (block[0], block[1])
    return replace(
        FP8,
        name="fp8_per_block" if block else "fp8",
        group=group,
        unquantised=config.names("ignored_layers", "modules_to_not_convert"),
    )


def _fbgemm(config: _Config) -> Scheme:
    return replace(FBGEMM, unquantised=config.names("modules_to_not_convert"))


def _awq(config: _Config) -> Scheme:
    bits = config.number("w_bit", "bits")
    zero = bits if config.flag("zero_point", True) else 0
    return replace(
        AWQ,
        name="awq" if bits == 4 else f"awq_int{bits}",
        weight_bits=bits,
        group=_group_size(config, "q_group_size", "group_size"),
        zero_point_bits=zero,
        stored_zero_point_bits=zero,
        parts=(*LINEAR, HEAD) if config.flag("lm_head", False) else LINEAR,
        unquantised=config.names("modules_to_not_convert"),
    )


def _gptq(config: _Config) -> Scheme:
    bits = config.number("bits")
    ordered = bool(config.values.get("desc_act", False))
    symmetric = config.flag("sym", True)
    size = _group_size(config, "group_size")
    base = replace(
        GPTQ,
        name="gptq" if bits == 4 else f"gptq_int{bits}",
        method="gptq",
        weight_bits=bits,
        group=size,
        zero_point_bits=0 if symmetric else bits,
        stored_zero_point_bits=bits,
        input_bytes=4 if ordered else 0,
        notes=("vLLM 0.32 refuses desc_act with groups (layers/quantization/utils/gptq_utils.py)",)
        if ordered and size != "channel"
        else (),
        parts=(*LINEAR, HEAD) if config.values.get("lm_head") else LINEAR,
        unquantised=config.names("modules_to_not_convert"),
    )
    blocks = config.values.get("modules_in_block_to_quantize") or ()
    only = [name for one in blocks for name in ([one] if isinstance(one, str) else one)]
    # "+:" a pattern that is stored with other bits, "-:" one that stays in 16 bits (gptq_utils.py of vLLM).
    skipped, overrides = list(base.unquantised), []
    for pattern, values in (config.values.get("dynamic") or {}).items():
        expression = "re:" + pattern[2:] if pattern[:2] in ("+:", "-:") else "re:" + pattern
        if pattern.startswith("-:"):
            skipped.append(expression)
        else:
            other = _Config(values, f"{config.where}: dynamic: {pattern}")
            width = other.number("bits", default=bits)
            own = _group_size(other, "group_size", default=config.number("group_size", least=-1))
            overrides.append(((expression,), replace(base, weight_bits=width, group=own, stored_zero_point_bits=width)))
    return replace(
        base, only=tuple(f"re:.*{re.escape(name)}$" for name in only), unquantised=tuple(skipped), overrides=tuple(overrides)
    )


def _weights(config: _Config, activations: Any, where: str) -> Scheme:
    """One group of compressed-tensors: QuantizationArgs of the weights, and of the activations where they are quantised."""
    bits = config.number("num_bits")
    kind = str(config.values.get("type", "int"))
    strategy = config.values.get("strategy")
    size = config.values.get("group_size")
    if strategy is None:
        strategy = "group" if size not in (None, -1) else "channel" if size == -1 else "tensor"
    block = config.values.get("block_structure")
    group: Group
    if strategy in ("group", "tensor_group"):
        group = _group_size(config, "group_size")
    elif strategy == "block":
        if not isinstance(block, (list, tuple)) or len(block) != 2:
            raise ModelError(f"{where}: block_structure is {block!r}, two numbers are needed for the strategy block.")
        group = (int(block[0]), int(block[1]))
    elif strategy in ("channel", "tensor"):
        group = strategy
    else:
        raise ModelError(f"{where}: strategy {strategy!r} is not known; known are tensor, channel, group, tensor_group, block.")
    zero = 0 if config.flag("symmetric", True) else bits
    inner = _Config(activations, f"{where}: input_activations") if activations else None
    width = inner.number("num_bits") if inner else 16
    common: dict[str, Any] = {"method": "compressed-tensors", "parts": (*LINEAR, HEAD), "matching": TARGETS}
    if kind == "float" and bits == 4:
        base = NVFP4 if strategy == "tensor_group" else replace(MXFP4, arithmetic="fp4" if inner else "bf16")
        if not inner:
            base = replace(base, name=base.name + "a16", arithmetic="bf16", weight_only=True, native_from=0)
        elif inner and width == 8:
            base = replace(base, name=base.name + "a8", arithmetic="fp8", native_from=10.0)
        return replace(base, group=group, unquantised=(), activation_bits=width, **common)
    if kind == "float" and bits == 8:
        if isinstance(group, int):
            return replace(MXFP8, group=group, unquantised=(), served_from=7.5, **common)
        name = {"tensor": "fp8", "channel": "fp8_per_channel"}.get(str(group), "fp8_per_block")
        found = replace(FP8, name=name, group=group, source=W4A16.source.replace("wNa16", "w8a8_fp8"), **common)
        return found if inner else replace(found, activation_bits=16, arithmetic="bf16", weight_only=True, native_from=0)
    if kind == "int" and inner and width == 8:
        if bits == 8:
            return replace(INT8, group=group, zero_point_bits=zero, stored_zero_point_bits=zero, unquantised=(), **common)
        eight = str(inner.values.get("type", "int")) == "float"
        return replace(
            W4A16,
            name=f"w{bits}a8",
            weight_bits=bits,
            group=group,
            zero_point_bits=zero,
            stored_zero_point_bits=zero,
            unquantised=(),
            activation_bits=8,
            arithmetic="fp8" if eight else "int8",
            weight_only=False,
            served_from=9.0 if eight else 7.5,
            native_from=9.0 if eight else 7.5,
            source="vllm: layers/quantization/compressed_tensors/schemes/compressed_tensors_w4a8_fp8.py",
            **common,
        )
    if kind == "int" and not inner:
        return replace(
            W4A16,
            name=f"w{bits}a16",
            weight_bits=bits,
            group=group,
            zero_point_bits=zero,
            stored_zero_point_bits=zero,
            input_bytes=4 if config.values.get("actorder") in ("group", "dynamic") else 0,
            unquantised=(),
            **common,
        )
    raise ModelError(f"{where}: weights of {bits} bits of the type {kind!r} with activations of {width} bits are not known.")


def _compressed_tensors(config: _Config) -> Scheme:
    groups = config.values.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ModelError(f"{config.where}: config_groups is missing or empty, it says what is quantised and how.")
    ignored = config.names("ignore")
    general: Scheme | None = None
    special = []
    for name, values in groups.items():
        where = f"{config.where}: config_groups: {name}"
        group = _Config(values, where)
        targets = group.names("targets")
        if not targets:
            raise ModelError(f"{where}: targets is missing.")
        # Attention alone is about the KV cache.
        if len(targets) == 1 and targets[0].endswith("Attention"):
            continue
        found = _weights(group.below("weights"), group.values.get("input_activations"), f"{where}: weights")
        if "Linear" in targets:
            general = found
        else:
            special.append((targets, found))
    if general is None and not special:
        return replace(_unquantised("float16"), method="compressed-tensors")
    if general is None:
        # What no target names stays as it is.
        first = special[0][1]
        only = tuple(target for targets, found in special for target in targets)
        return replace(first, only=only, unquantised=ignored, overrides=tuple(special))
    return replace(general, unquantised=ignored, overrides=tuple(special))


MODELOPT = {
    "FP8": replace(FP8, method="modelopt", served_from=8.0),
    "FP8_PER_CHANNEL_PER_TOKEN": replace(FP8, name="fp8_per_channel", method="modelopt", group="channel", served_from=8.0),
    "FP8_PB_WO": replace(FP8, name="fp8_per_block", method="modelopt", group=(128, 128), served_from=8.0),
    "NVFP4": NVFP4,
    "W4A16_NVFP4": replace(NVFP4, name="nvfp4a16", activation_bits=16, arithmetic="bf16", weight_only=True, native_from=0),
    "MXFP8": replace(MXFP8, method="modelopt"),
}


def _modelopt(config: _Config) -> Scheme:
    # hf_quant_config.json has everything one level below.
    inner = config.below("quantization") if "quantization" in config.values else config
    algorithm = str(inner.values.get("quant_algo", "")).upper()
    ignored = inner.names("exclude_modules", "ignore")

    def made(word: str, values: _Config) -> Scheme:
        if word not in MODELOPT:
            raise ModelError(
                f"{inner.where}: quant_algo {word!r} is not known; known are {', '.join(MODELOPT)}, MIXED_PRECISION."
            )
        found = replace(MODELOPT[word], parts=(*LINEAR, HEAD), matching=WILDCARD, unquantised=ignored)
        return replace(found, group=values.number("group_size", default=16)) if "NVFP4" in word else found

    if algorithm != "MIXED_PRECISION":
        return made(algorithm, inner)
    layers = inner.values.get("quantized_layers")
    if not isinstance(layers, Mapping) or not layers:
        raise ModelError(f"{inner.where}: quant_algo is MIXED_PRECISION and quantized_layers is missing.")
    by_word: dict[str, list[str]] = {}
    for name, values in layers.items():
        by_word.setdefault(str(_Config(values, f"{inner.where}: {name}").values.get("quant_algo", "")).upper(), []).append(name)
    overrides = tuple((tuple(names), made(word, inner)) for word, names in by_word.items())
    most = max(overrides, key=lambda one: len(one[0]))[1]
    return replace(most, name="mixed_precision", only=tuple(str(name) for name in layers), overrides=overrides)


def _bitsandbytes(config: _Config) -> Scheme:
    skipped = config.names("llm_int8_skip_modules")
    if config.values.get("load_in_8bit") or config.values.get("_load_in_8bit"):
        return replace(LLM_INT8, unquantised=skipped, online=False)
    if not (config.values.get("load_in_4bit") or config.values.get("_load_in_4bit")):
        raise ModelError(f"{config.where}: bitsandbytes with neither load_in_4bit nor load_in_8bit.")
    kind = str(config.values.get("bnb_4bit_quant_type", "fp4"))
    found = replace(NF4, name=kind, unquantised=skipped, online=False)
    if not config.values.get("bnb_4bit_use_double_quant"):
        return replace(found, scale_bits=32, scale_group=0, tensor_bytes=16 * 4)
    return found


def _mxfp4(config: _Config) -> Scheme:
    # Linear layers fall back to 16 bits (get_quant_method), so the experts are all there is.
    return replace(MXFP4, parts=(EXPERT,), unquantised=config.names("modules_to_not_convert"))


def _mxfp8(config: _Config) -> Scheme:
    return replace(MXFP8, unquantised=config.names("ignored_layers", "modules_to_not_convert"))


def _hqq(config: _Config) -> Scheme:
    inner = config.below("quant_config") if "quant_config" in config.values else config
    inner = inner.below("weight_quant_params") if "weight_quant_params" in inner.values else inner
    bits = inner.number("nbits")
    return replace(
        HQQ,
        name="hqq" if bits == 4 else f"hqq_int{bits}",
        weight_bits=bits,
        group=_group_size(inner, "group_size", default=64),
        unquantised=config.names("skip_modules"),
    )


def _torchao(config: _Config) -> Scheme:
    found = config.values.get("quant_type")
    values: Any = config.values.get("quant_type_kwargs") or {}
    if isinstance(found, Mapping):
        found = found.get("default", found)
        if isinstance(found, Mapping):
            values = found.get("_data") or {}
            found = found.get("_type")
    word = re.sub(r"[^a-z0-9]", "", str(found).lower())
    skipped = config.names("modules_to_not_convert")
    size = values.get("group_size") if isinstance(values, Mapping) else None
    if word.startswith(("int4weightonly",)):
        return replace(NAMED["torchao_int4"], group=size if isinstance(size, int) else 128, unquantised=skipped)
    if word.startswith("int8weightonly"):
        return replace(NAMED["torchao_int8"], unquantised=skipped)
    if word.startswith("int8dynamicactivationint8"):
        eight = {"activation_bits": 8, "arithmetic": "int8", "weight_only": False, "native_from": 7.5}
        return replace(NAMED["torchao_int8"], unquantised=skipped, **eight)  # type: ignore[arg-type]
    if word.startswith("float8dynamicactivation"):
        return replace(NAMED["torchao_fp8"], unquantised=skipped, served_from=8.9)
    if word.startswith("float8weightonly"):
        return replace(
            NAMED["torchao_fp8"], activation_bits=16, arithmetic="bf16", weight_only=True, native_from=0, unquantised=skipped
        )
    raise ModelError(
        f"{config.where}: torchao's quant_type {found!r} is not known; known are Int4WeightOnly, Int8WeightOnly, "
        "Int8DynamicActivationInt8Weight, Float8DynamicActivationFloat8Weight, Float8WeightOnly."
    )


def _quark(config: _Config) -> Scheme:
    """AMD Quark: global_quant_config, vllm: layers/quantization/quark/quark.py"""
    inner = config.below("global_quant_config")
    weight = inner.below("weight")
    kind = str(weight.values.get("dtype", ""))
    strategy = str(weight.values.get("qscheme", "per_tensor"))
    group: Group = {"per_tensor": "tensor", "per_channel": "channel"}.get(strategy, "")
    if not group:
        group = _group_size(weight, "group_size")
    activations = inner.values.get("input_tensors")
    kept: dict[str, Any] = {
        "method": "quark",
        "unquantised": config.names("exclude"),
        "matching": TARGETS,
        "parts": (*LINEAR, HEAD),
    }
    if kind.startswith("fp8"):
        return replace(FP8, name="quark_fp8", group=group, **kept)
    if kind == "int8":
        return replace(INT8, name="quark_int8", group=group, **kept)
    if kind in ("int4", "uint4"):
        return replace(W4A16, name="quark_int4", group=group, **kept)
    if kind == "fp4":
        found = replace(MXFP4, name="quark_mxfp4", group=group, **kept)
        return found if activations else replace(found, arithmetic="bf16", weight_only=True, native_from=0)
    raise ModelError(f"{weight.where}: dtype {kind!r} is not known; known are fp8_e4m3, int8, int4, uint4, fp4.")


# --- which modules ---------------------------------------------------------------------------------------------------

# Published names of what engines put together.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
CONTAINS = {part: whole for whole, parts in FUSED.items() for part in parts}
LAYER_PREFIXES = ("model.layers", "layers", "model.language_model.layers", "language_model.model.layers", "transformer.h")


@lru_cache(maxsize=65536)
def _module_names(name: str, layer: int | None) -> tuple[str, ...]:
    """The names by which a list may call a module."""
    stem = name[: -len(".weight")] if name.endswith(".weight") else name
    if layer is None:
        return (stem, f"model.{stem}", f"language_model.{stem}", f"language_model.model.{stem}")
    forms = [stem]
    head, found, last = stem.rpartition(".")
    if last in CONTAINS:
        forms.append(f"{head}{found}{CONTAINS[last]}")
    if "experts." in stem and "shared_experts." not in stem:
        # Lists have experts by number, or all of them by one name.
        every, inner = re.split(r"experts\.(?:\d+\.)?", stem, maxsplit=1)
        forms += [f"{every}experts.0.{inner}", f"{every}experts.{inner}", f"{every}experts"]
    return tuple(f"{prefix}.{layer}.{form}" for prefix in LAYER_PREFIXES for form in forms)


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ModelError(f"quantization_config: {pattern!r} is no regular expression: {error}.") from error


@lru_cache(maxsize=512)
def _sorted_out(patterns: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    plain = frozenset(one[: -len(".weight")] if one.endswith(".weight") else one for one in patterns if not one.startswith("re:"))
    return plain, tuple(one[3:] for one in patterns if one.startswith("re:"))


def _named(names: tuple[str, ...], patterns: tuple[str, ...], matching: str) -> bool:
    """Whether a list has a module, as the engines read the list of each method."""
    if not patterns:
        return False
    plain, expressions = _sorted_out(patterns)
    if any(name in plain for name in names):
        return True
    if any(_expression(one).match(name) for one in expressions for name in names):
        return True
    # is_layer_skipped in vllm: layers/quantization/utils/quant_utils.py and should_skip in torchao.py
    if matching == SUBSTRING:
        return any(one in names[0] for one in plain)
    if matching == COMPONENT:
        return any(f".{one}." in f".{name}." for one in plain for name in names)
    if matching == WILDCARD:
        return any(one in names[0] for one in plain) or any(_wild(name, one) for one in plain if "*" in one for name in names)
    return False


def _wild(name: str, pattern: str) -> bool:
    # "model.layers.1*" is about what is below layer 1, and not about layer 10 (apply_vllm_mapper in vllm: modelopt.py).
    if pattern[-1] == "*" and pattern[-2:-1] not in (".", "*", ""):
        return fnmatch.fnmatchcase(name, pattern[:-1]) or fnmatch.fnmatchcase(name, pattern[:-1] + ".*")
    return fnmatch.fnmatchcase(name, pattern)


def _rule(weight: Weight, scheme: Scheme, layer: int | None) -> Scheme | None:
    """How one layer's matrix is stored; None: in the model's dtype."""
    if weight.inputs == 1 or not weight.matrix or weight.part not in scheme.parts or weight.part in (ROUTER, VISION):
        return None
    if weight.part == DRAFT and not (DRAFT_LINEAR.search(weight.name) and not DRAFT_ROUTER.search(weight.name)):
        return None
    if not (scheme.only or scheme.unquantised or scheme.overrides):
        return scheme if scheme.weight_bits else None
    names = _module_names(weight.name, layer)
    if _named(names, scheme.unquantised, scheme.matching):
        return None
    for patterns, other in scheme.overrides:
        if _named(names, patterns, scheme.matching):
            return other
    if scheme.only and not _named(names, scheme.only, scheme.matching):
        return None
    return scheme if scheme.weight_bits else None


# --- bytes -----------------------------------------------------------------------------------------------------------


def _up(count: int, parts: int) -> int:
    return -(-count // parts)


def _tensor_bytes(rule: Scheme | TensorType | None, outputs: int, inputs: int, dtype_bytes: int, stored: bool = False) -> int:
    """Bytes of one matrix, without its bias."""
    if rule is None:
        return outputs * inputs * dtype_bytes
    if isinstance(rule, TensorType):
        return outputs * _up(inputs, rule.block) * rule.block_bytes
    if rule.group == "tensor":
        scales = 1
    elif rule.group == "channel":
        scales = outputs
    elif isinstance(rule.group, tuple):
        scales = _up(outputs, rule.group[0]) * _up(inputs, rule.group[1])
    elif isinstance(rule.group, int):
        scales = outputs * _up(inputs, rule.group)
    else:
        scales = 0
    zero = max(rule.zero_point_bits, rule.stored_zero_point_bits) if stored else rule.zero_point_bits
    per_input = max(rule.input_bytes, rule.stored_input_bytes) if stored else rule.input_bytes
    bits = outputs * inputs * rule.weight_bits + scales * (rule.scale_bits + zero)
    if rule.scale_group:
        bits += _up(scales, rule.scale_group) * 32
    return _up(int(bits), 8) + rule.tensor_bytes + inputs * per_input


def _plain_bytes(weight: Weight, dtype_bytes: int) -> int:
    """Bytes of an element that is not quantised: the corrections of a router are floats of 32 bits in every checkpoint that has
    them (vllm: models/deepseek_v2.py)."""
    return 4 if weight.name.endswith("e_score_correction_bias") else dtype_bytes


def _rules(weight: Weight, scheme: Scheme) -> Iterator[tuple[Scheme | TensorType | None, int | None]]:
    """How each layer's matrix is stored, with its layer."""
    for layer in weight.layers or (None,):
        if scheme.stored:
            full = weight.name if layer is None else f"blk.{layer}.{weight.name}"
            if full not in scheme.stored:
                raise ModelError(f"{scheme.source}: there is no tensor {full}.")
            yield scheme.stored[full], layer
        elif scheme.mix:
            yield _mixed(weight, scheme, layer), layer
        else:
            yield _rule(weight, scheme, layer), layer


def weight_bytes(weight: Weight, scheme: Scheme, dtype_bytes: int, stored: bool = False) -> int:
    """Bytes of a weight in all its layers and copies, on one GPU that has all of it; no padding.

    ``stored``: as in the checkpoint, which has more (zero points of symmetric weights) than an engine keeps.
    """
    total = 0
    dtype_bytes = _plain_bytes(weight, dtype_bytes)
    sizes: dict[int, int] = {}
    for rule in (one for one, layer in _rules(weight, scheme)):
        if id(rule) not in sizes:
            sizes[id(rule)] = _tensor_bytes(rule, weight.outputs, weight.inputs, dtype_bytes, stored)
        total += sizes[id(rule)] * weight.copies
    return total + _bias_bytes(weight, weight.outputs, weight.count, dtype_bytes)


def _bias_bytes(weight: Weight, outputs: int, count: int, dtype_bytes: int) -> int:
    return outputs * count * dtype_bytes if weight.bias else 0


def total_bytes(weights: Iterable[Weight], scheme: Scheme, dtype_bytes: int, stored: bool = False) -> int:
    return sum(weight_bytes(weight, scheme, dtype_bytes, stored) for weight in weights)


DOWN = re.compile(r"(down|w2\b|fc2|wo\b|c_proj|output_linear|linear_2)")


def sharded_bytes(
    weight: Weight,
    scheme: Scheme,
    dtype_bytes: int,
    tensor_parallel: int = 1,
    expert_parallel: int = 0,
    kv_heads: int | Architecture = 0,
    vocabulary_padding: int = 64,
    expert_shards: int = 0,
) -> int:
    """Bytes of a weight on the GPU that has most of it, in all its layers, with the padding that an engine's kernels want.

    ``expert_parallel``: GPUs over which whole experts are spread, 0 or False for none, True for as many as ``tensor_parallel``.
    ``expert_shards``: GPUs over which the inside of each expert is divided otherwise; 0: ``tensor_parallel``. vLLM divides by
    tensor times data parallel size there (FusedMoEParallelConfig.make in layers/fused_moe/config.py).
    ``kv_heads``: needed for weights that are divided by KV heads; an Architecture where its layers differ. Scales are divided as
    their weight is. What does not divide is rounded up.
    """
    if tensor_parallel < 1 or vocabulary_padding < 1:
        raise ModelError(f"tensor_parallel {tensor_parallel} and vocabulary_padding {vocabulary_padding} must be at least 1.")
    spread = tensor_parallel if expert_parallel is True else int(expert_parallel)
    if spread < 0 or expert_shards < 0:
        raise ModelError(f"expert_parallel {expert_parallel} and expert_shards {expert_shards} must be at least 0.")
    parts = (expert_shards or tensor_parallel) if weight.split == EXPERTS else tensor_parallel
    total = 0
    dtype_bytes = _plain_bytes(weight, dtype_bytes)
    sizes: dict[tuple[int, int], int] = {}
    for rule, layer in _rules(weight, scheme):
        heads = _kv_heads(kv_heads, layer) if weight.split == KV_HEADS else 0
        key = (id(rule), heads)
        if key not in sizes:
            outputs, inputs, copies, biased = _share(weight, parts, spread, heads, vocabulary_padding)
            if isinstance(rule, Scheme) and rule.expert_padding and weight.part == EXPERT:
                outputs, inputs, biased = _padded_expert(weight, outputs, inputs, *rule.expert_padding)
            sizes[key] = _tensor_bytes(rule, outputs, inputs, dtype_bytes) * copies + _bias_bytes(
                weight, biased, copies, dtype_bytes
            )
        total += sizes[key]
    return total


def _padded_expert(weight: Weight, outputs: int, inputs: int, hidden: int, inner: int) -> tuple[int, int, int]:
    """Outputs, inputs and outputs of the bias in the multiples that a kernel wants of the hidden and the inner size."""
    if DOWN.search(weight.name):
        outputs, inputs = _up(outputs, hidden) * hidden, _up(inputs, inner) * inner
    else:
        # gate and up in one tensor are padded each.
        halves = 2 if "gate_up" in weight.name else 1
        outputs, inputs = _up(_up(outputs, halves), inner) * inner * halves, _up(inputs, hidden) * hidden
    return outputs, inputs, outputs


def _kv_heads(given: int | Architecture, layer: int | None) -> int:
    if isinstance(given, Architecture):
        inner = given.layers[layer].memory.kv_heads if layer is not None and layer < len(given.layers) else 0
        return inner or given.kv_heads
    return given


def _share(weight: Weight, parts: int, spread: int, heads: int, padding: int) -> tuple[int, int, int, int]:
    """Outputs, inputs and copies that one GPU has, and the outputs of its bias."""
    outputs, inputs, copies = weight.outputs, weight.inputs, weight.copies
    if weight.split == OUTPUTS:
        share = _up(outputs, parts)
        return share, inputs, copies, share
    if weight.split == INPUTS:
        return outputs, _up(inputs, parts), copies, outputs
    if weight.split == KV_HEADS:
        if heads < 1:
            raise ModelError(f"{weight.name}: is divided by KV heads, and their number is not given.")
        share = min(outputs, _up(outputs, heads) * max(1, _up(heads, parts)))
        return share, inputs, copies, share
    if weight.split == EXPERTS:
        if spread:
            return outputs, inputs, _up(copies, spread), outputs
        if DOWN.search(weight.name):
            if inputs == 1:
                return outputs, inputs, copies, outputs
            return outputs, _up(inputs, parts), copies, outputs
        share = _up(outputs, parts)
        return share, inputs, copies, share
    if weight.split == VOCABULARY:
        share = _up(_up(outputs, padding) * padding, parts)
        return share, inputs, copies, share
    return outputs, inputs, copies, outputs


# --- mixes of GGUF types ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _category_of(name: str, part: str) -> str:
    """The roles that llama.cpp tells tensors apart by (tensor_get_category), by Hugging Face's names and its own."""
    stem = name[: -len(".weight")] if name.endswith(".weight") else name
    last = stem.rsplit(".", 1)[-1]
    if part == HEAD:
        return "output"
    if part == EMBEDDING:
        return "embedding"
    if part in (ATTENTION, STATE):
        if last in ("qkv_proj", "query_key_value", "Wqkv", "c_attn", "W_pack", "attn_qkv", "in_proj_qkv"):
            return "v"
        if last in ("v_proj", "attn_v"):
            return "v"
        if last in ("k_proj", "attn_k"):
            return "k"
        if last in ("q_proj", "attn_q"):
            return "q"
        if part == ATTENTION and last in ("o_proj", "out_proj", "dense", "c_proj", "attn_output", "wo"):
            return "attention_output"
        return ""
    if part in (MLP, EXPERT, SHARED_EXPERT):
        if DOWN.search(last) or last.startswith("ffn_down") or last == "dense_4h_to_h":
            return "down"
        if "gate" in last and "up" not in last:
            return "gate"
        return "up"
    return ""


def _category(weight: Weight) -> str:
    return _category_of(weight.name, weight.part)


# Where rows are no multiple of a block (tensor_type_fallback).
FALLBACK = dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL")
FALLBACK.update(dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"))
FALLBACK.update({"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"})

LOW = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
EIGHT_EXPERTS_OUTPUT = frozenset(
    {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ3_XS", "IQ3_XXS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"}
)


def _more_bits(index: int, count: int) -> bool:
    """use_more_bits: the first and last eighth of the layers, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _mixed(weight: Weight, scheme: Scheme, layer: int | None) -> TensorType:
    if scheme.fit is None:
        raise ModelError(f"{scheme.name}: which type a tensor gets depends on the model: call fitted(architecture) first.")
    # Vision is a file of its own, in 16 bits.
    if weight.part == VISION:
        return TYPES_BY_NAME["F32" if weight.inputs == 1 else "F16"]
    # Vectors, routers and small convolutions stay in 32 bits (tensor_allows_quantization, and convert_hf_to_gguf.py).
    if weight.inputs == 1 or weight.part == ROUTER or not (weight.matrix or weight.part == EMBEDDING):
        return TYPES_BY_NAME["F32"]
    name = MIXES[scheme.mix]
    if name not in ("F16", "BF16", "F32"):
        name = _chosen(_category(weight), scheme.mix, name, layer, scheme.fit, weight)
        for attempt in range(2):
            if weight.inputs % TYPES_BY_NAME[name].block:
                name = FALLBACK.get(name, "F16") if not attempt else "F16"
    return TYPES_BY_NAME[name]


def _chosen(category: str, mix: str, base: str, layer: int | None, fit: Fit, weight: Weight) -> str:
    """llama_tensor_get_type_impl of llama.cpp's src/llama-quant.cpp, with an importance matrix for IQ1 to IQ3, which need one."""
    number, count = layer or 0, fit.layers
    first = number < count // 8
    if category == "output" or (fit.tied and category == "embedding"):
        if mix == "MXFP4_MOE" or fit.falcon or weight.inputs % TYPES_BY_NAME[base].block:
            return "Q8_0"
        if mix in LOW or mix == "IQ3_XXS":
            return "Q5_K"
        return base if base == "Q8_0" else "Q6_K"
    if mix == "MXFP4_MOE":
        return "MXFP4" if weight.part == EXPERT else "Q8_0"
    if category == "embedding":
        if mix in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"):
            return "Q2_K"
        if mix in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
            return "IQ3_S"
        return "Q4_K" if mix in ("TQ1_0", "TQ2_0") else base
    grouped, eight = fit.group >= 4, fit.experts == 8
    if mix in LOW:
        better = "IQ3_S" if mix in ("IQ2_S", "IQ2_M") else "Q2_K"
        if category == "v":
            return "Q4_K" if grouped or fit.experts >= 4 else better
        if category == "k" and eight:
            return "Q4_K"
        if category == "down" and first:
            return better
        if category == "attention_output":
            if eight:
                return "Q5_K"
            return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(mix, base)
        return base
    if category == "v":
        return _value_type(
            mix, base, fit.value_layers.index(number) if number in fit.value_layers else number, fit, grouped, eight
        )
    if category == "k" and eight:
        return "Q8_0"
    if category in ("k", "q"):
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(mix, base)
    if category == "down":
        return _down_type(mix, base, number, count, fit, eight)
    if category == "attention_output" and not fit.falcon:
        if eight:
            return "Q5_K" if mix in EIGHT_EXPERTS_OUTPUT else base
        return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(mix, base)
    if category == "attention_output":
        return "Q4_K" if mix == "Q3_K_L" else base
    if category in ("gate", "up") and mix == "IQ3_XS" and count // 8 <= number < 7 * count // 8:
        return "IQ3_XXS"
    return base


def _value_type(mix: str, base: str, index: int, fit: Fit, grouped: bool, eight: bool) -> str:
    kind = base
    if mix == "Q2_K":
        kind = "Q4_K" if grouped else "Q3_K"
    elif (mix in ("Q2_K_S", "IQ3_XS", "IQ3_S", "IQ3_XXS") and grouped) or mix == "IQ3_M":
        kind = "Q4_K"
    elif mix == "Q3_K_M":
        kind = "Q5_K" if index < 2 else "Q4_K"
    elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and grouped):
        kind = "Q5_K"
    elif mix in ("Q4_K_M", "Q5_K_M") and _more_bits(index, len(fit.value_layers)):
        kind = "Q6_K"
    elif mix == "Q4_K_S" and index < 4:
        kind = "Q5_K"
    # Models of 80 layers with grouped queries are of llama.cpp's type 70B.
    if fit.layers == 80 and fit.group > 1 and kind in ("Q3_K", "Q4_K"):
        kind = "Q5_K"
    return "Q8_0" if eight else kind


def _down_type(mix: str, base: str, number: int, count: int, fit: Fit, eight: bool) -> str:
    first, more = number < count // 8, _more_bits(number, count)
    if mix == "Q2_K":
        return "Q3_K"
    if mix == "Q2_K_S" and first:
        return "Q4_K"
    if mix == "Q3_K_M":
        return "Q5_K" if number < count // 16 else "Q4_K" if not fit.falcon or more else "Q3_K"
    if mix == "IQ3_M" and (first or (eight and more)):
        return "Q4_K"
    if mix == "Q3_K_L":
        return "Q4_K" if fit.falcon else "Q5_K"
    if mix == "Q4_K_M" and fit.falcon:
        return "Q6_K" if number < count // 16 else "Q5_K" if more else "Q4_K"
    if mix in ("Q4_K_M", "Q5_K_M") and more:
        return "Q6_K"
    # IQ4 types are made without an importance matrix too, and the published sizes are of such.
    if first and (mix in ("IQ4_NL", "IQ4_XS") or (mix == "Q4_K_S" and not fit.falcon)):
        return "Q5_K"
    return base
