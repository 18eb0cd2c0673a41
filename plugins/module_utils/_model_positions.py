# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The tables of rotary positions that vLLM keeps beside the weights: one sine and cosine for each position and dimension.

They are buffers of the model, whole on each GPU, and may be half a GiB where positions are scaled
(``vllm/model_executor/layers/rotary_embedding/``, version 0.32.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Families whose positions are learnt, or that have none.
WITHOUT = (
    "gpt2",
    "gpt_bigcode",
    "opt",
    "bloom",
    "mpt",
    "jamba",
    "mamba",
    "mamba2",
    "nemotron_h",
    "granitemoehybrid",
    "kimi_linear",
)


def position_elements(config: Mapping[str, Any]) -> int:
    """Elements of these tables, all layers together (layers of one kind share theirs); 0 where nothing can be told."""
    text = {**config, **(config.get("text_config") or config.get("llm_config") or {})}
    if text.get("model_type") in WITHOUT:
        return 0
    length, width = text.get("max_position_embeddings") or _usual(text), _width(text)
    if not isinstance(length, int) or not width:
        return 0
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    tables = 1
    if text.get("model_type") == "gemma3_text":
        # Windows have a table of their own, which is not scaled.
        return length * width + _scaled(length, scaling) * width
    if "mrope_section" in scaling:
        tables = 4
    return tables * _scaled(length, scaling) * width


def _usual(text: Mapping[str, Any]) -> int:
    return 131072 if text.get("model_type") == "gemma3_text" else 0


def _width(text: Mapping[str, Any]) -> int:
    if text.get("qk_rope_head_dim"):
        return int(text["qk_rope_head_dim"])
    heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    head = text.get("head_dim") or (hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else 0)
    if not head and text.get("model_type") == "gemma3_text":
        head = 256
    share = text.get("partial_rotary_factor") or (text.get("rope_parameters") or {}).get("partial_rotary_factor") or 1
    return int(head * share)


def _scaled(length: int, scaling: Mapping[str, Any]) -> int:
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if not isinstance(factor, (int, float)) or factor <= 0:
        return length
    if kind in ("linear", "dynamic"):
        return int(length * factor)
    if kind == "yarn":
        return int((scaling.get("original_max_position_embeddings") or length / factor) * factor)
    return length
