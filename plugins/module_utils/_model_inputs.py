# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an operator hands the planner, read strictly: each refusal names the input, what was found and what is wanted."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from ._model_architecture import ModelError


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def near(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(word), list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def known_keys(where: str, given: Iterable[str], known: Iterable[str], noun: str = "input") -> None:
    """Raises ModelError for a key that is not known, with the nearest that are."""
    names = list(known)
    for key in given:
        if key not in names:
            path = f"{where}.{key}" if where else str(key)
            raise ModelError(f"{path}: there is no such {noun}{near(key, names)}; known are {', '.join(names)}.")


def quantity(
    where: str, value: Any, least: float = 0, most: float = math.inf, *, whole: bool = False, above: bool = False
) -> Any:
    """A finite number from ``least`` (``above``: more than that) to ``most``; also as text, as ``-e`` hands it on."""
    wanted = f"a {'whole ' if whole else ''}number {'above' if above else 'from'} {least:g}"
    wanted += "" if math.isinf(most) else f" to {most:g}"
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        found = float(value)
    except (ValueError, OverflowError):
        found = math.nan
    fits = math.isfinite(found) and least <= found <= most and not (above and found <= least)
    if not fits or (whole and not found.is_integer()):
        raise ModelError(f"{where}: found {shown(value)}; wanted {wanted}.")
    return int(found) if whole else found


def switch(where: str, value: Any) -> bool:
    for found, words in ((True, ("true", "yes", "on", "1")), (False, ("false", "no", "off", "0"))):
        if str(value).lower() in words:
            return found
    raise ModelError(f"{where}: found {shown(value)}; wanted true or false.")
