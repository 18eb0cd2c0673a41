# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which kind of deployment suits a level of data sensitivity, a compute need and the operations there are.

Every option gets a score from 0 to 100: the weighted mean of its scores by criterion, which are data
(``feasibility`` in ``sensitivity_controls.yml``) with a reason each. Some options are excluded whatever their score: by the level
of the data, or because they cannot carry the need. What the operations cannot carry is not excluded, but what is missing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import cache
from typing import Any

from ansible_collections.onprem.llm.plugins.plugin_utils._sensitivity import (
    FILE,
    LEVELS,
    SensitivityError,
    checked_level,
    controls_of,
    listed,
    meant,
    refuse,
    said,
    shipped,
)

SECONDS_PER_DAY = 86400
HIGHEST_SCORE = 10
NEED_KEYS = ("gpus", "requests_per_day", "answer_tokens_per_request", "peak_factor", "tokens_per_second_per_gpu")


@cache
def _data() -> dict[str, Any]:
    whole = shipped()["feasibility"]
    refuse(problems(whole))
    return dict(whole)


def feasibility(
    level: Any,
    need: Any,
    operations: Any,
    weights: Mapping[str, Any] | None = None,
    own_controls: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The options, best first, with their scores and reasons, and what the level demands of the one that is chosen.

    ``need`` is ``small``, ``medium`` or ``large``; or a mapping with ``gpus``; or one with ``requests_per_day`` and
    ``answer_tokens_per_request`` (and, in place of the assumptions, ``peak_factor`` and ``tokens_per_second_per_gpu``).
    """
    data = _data()
    level = checked_level(level, "level")
    wanted = sized(need)
    operations = _one_of("operations", operations, data["capabilities"])
    weighed = _weights(weights)
    options = [_option(name, level, wanted["class"], operations, weighed) for name in data["options"]]
    order = {name: number for number, name in enumerate(data["options"])}
    options.sort(key=lambda option: (option["excluded"], -(option["score"] or 0), order[option["name"]]))
    possible = [option for option in options if not option["excluded"]]
    best = [option for option in possible if option["score"] == possible[0]["score"]]
    carried = [option for option in possible if option["operations"]["carried"]]
    demanded = controls_of(level, own_controls)
    return {
        "level": level,
        "level_title": shipped()["levels"][level]["title"],
        "need": wanted,
        "operations": operations,
        "operations_title": data["capabilities"][operations]["title"],
        "weights": {name: float(weight) for name, weight in weighed.items()},
        "options": options,
        "recommended": [option["name"] for option in best],
        "tie": len(best) > 1,
        "carried": all(option["operations"]["carried"] for option in best),
        "alternative": (carried[0]["name"] if carried and not any(option["operations"]["carried"] for option in best) else None),
        "recommendation": _recommendation(level, operations, options, best, carried),
        "controls": demanded,
        "variables": _variables(demanded),
        "attest": {item["name"]: item["attest"] for item in demanded if item["how"] == "attested"},
    }


def sized(need: Any) -> dict[str, Any]:
    """A need as a class, with the number of GPUs behind it where it is known, and how that was reached."""
    data = _data()
    if not isinstance(need, Mapping):
        name = _one_of("need", need, data["needs"])
        return {"class": name, "title": data["needs"][name]["title"], "gpus": None, "derivation": "as given"}
    for key in need:
        if key not in NEED_KEYS:
            raise SensitivityError(f"need.{key}: is unknown{meant(key, NEED_KEYS)}; known are {listed(NEED_KEYS)}.")
    if "gpus" in need:
        if len(need) > 1:
            raise SensitivityError("need: has gpus and also what they would be computed from; one of both is wanted.")
        given = _number("need.gpus", need["gpus"])
        if given.denominator != 1:
            raise SensitivityError(f"need.gpus: is {need['gpus']}; a whole number is wanted.")
        return _class_of(given.numerator, "as given")
    for key in ("requests_per_day", "answer_tokens_per_request"):
        if key not in need:
            raise SensitivityError(
                f"need.{key}: is missing; requests_per_day with answer_tokens_per_request, or gpus, is wanted."
            )
    assumed = {key: value for key, value in data["assumptions"].items() if key not in need}
    numbers = {key: _number(f"need.{key}", value) for key, value in {**assumed, **need}.items()}
    if numbers["peak_factor"] < 1:
        raise SensitivityError(f"need.peak_factor: is {need['peak_factor']}; the peak over the mean of a day is 1 or more.")
    rate = numbers["requests_per_day"] * numbers["answer_tokens_per_request"] * numbers["peak_factor"] / SECONDS_PER_DAY
    gpus = max(1, math.ceil(rate / numbers["tokens_per_second_per_gpu"]))
    assumptions = ", ".join(f"{key} {float(numbers[key]):g}" for key in assumed)
    return _class_of(
        gpus,
        f"{float(rate):.0f} answer tokens/s at the peak, {float(numbers['tokens_per_second_per_gpu']):g} a GPU"
        + (f"; assumed: {assumptions}" if assumptions else ""),
    )


def _class_of(gpus: int, derivation: str) -> dict[str, Any]:
    for name, found in _data()["needs"].items():
        if gpus <= found.get("gpus", math.inf):
            return {"class": name, "title": found["title"], "gpus": gpus, "derivation": derivation}
    raise SensitivityError("needs: the last one has a number of gpus.")


def _option(name: str, level: str, need: str, operations: str, weights: Mapping[str, Fraction]) -> dict[str, Any]:
    option = _data()["options"][name]
    exclusions = []
    if LEVELS.index(level) > LEVELS.index(option["highest_level"]):
        title = shipped()["levels"][level]["title"]
        exclusions.append(f"not for {level} ({title}): {option['highest_level_reason']}")
    if need not in option["needs"]:
        exclusions.append(f"does not carry the need {need} ({_data()['needs'][need]['title']})")
    carries = _operations(option, operations)
    scores = []
    if not exclusions:
        for criterion, about in _data()["criteria"].items():
            points, reason = _score(option, criterion, {"level": level, "need": need}, carries)
            scores.append(
                {
                    "criterion": criterion,
                    "title": about["title"],
                    "score": points,
                    "weight": float(weights[criterion]),
                    "reason": reason,
                }
            )
    total = sum(weights[item["criterion"]] * item["score"] for item in scores)
    score = None if exclusions else round(float(Fraction(total) / sum(weights.values()) * 100 / HIGHEST_SCORE), 1)
    return {
        "name": name,
        "title": option["title"],
        "excluded": bool(exclusions),
        "exclusions": exclusions,
        "score": score,
        "scores": scores,
        "operations": carries,
    }


def _operations(option: Mapping[str, Any], operations: str) -> dict[str, Any]:
    known = _data()["capabilities"]
    names = list(known)
    gap = max(0, names.index(option["demands"]) - names.index(operations))
    between = names[names.index(operations) + 1 : names.index(option["demands"]) + 1]
    return {
        "demands": option["demands"],
        "demands_title": known[option["demands"]]["title"],
        "effort": option["effort"],
        "people": option["people"],
        "carried": gap == 0,
        "gap": gap,
        "missing": [text for name in between for text in known[name]["adds"]],
    }


def _score(option: Mapping[str, Any], criterion: str, given: Mapping[str, str], carries: Mapping[str, Any]) -> tuple[int, str]:
    by = _data()["criteria"][criterion].get("by")
    if by == "operations":
        wanted = f"Wants {carries['demands']} ({carries['demands_title']})"
        reason = f"{wanted}." if carries["carried"] else f"{wanted}, {carries['gap']} more than there is."
        return _data()["operations_gap"][carries["gap"]], reason
    scores = option["scores"][criterion]
    return scores[given[by] if by else "score"], scores["reason"]


def _recommendation(
    level: str, operations: str, options: list[dict[str, Any]], best: list[dict[str, Any]], carried: list[dict[str, Any]]
) -> str:
    """The answer in plain sentences."""
    titles = " and ".join(option["title"] for option in best)
    if len(best) > 1:
        parts = [f"A tie: {titles}, each with {best[0]['score']:g} of 100. What decides is not among the criteria."]
    elif len(options) - sum(option["excluded"] for option in options) == 1:
        parts = [f"{titles}: nothing else is left for {level} and this need ({best[0]['score']:g} of 100)."]
    else:
        second = next(option for option in options if option not in best)
        parts = [f"{titles} ({best[0]['score']:g} of 100; next: {second['title']}, {second['score']:g})."]
    for option in best:
        needs = option["operations"]
        if not needs["carried"]:
            parts.append(
                f"The operations there are ({operations}) do not carry {option['title']}, which wants {needs['demands']} "
                f"({needs['demands_title']}). Missing are: {'; '.join(needs['missing'])}."
            )
    if not any(option["operations"]["carried"] for option in best):
        if carried:
            parts.append(f"What they carry today: {carried[0]['title']} ({carried[0]['score']:g} of 100).")
        else:
            parts.append(f"No option that {level} and this need allow is carried by them: hire, train or contract first.")
    return " ".join(parts)


def _variables(demanded: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What turns the controls on, as one mapping; a list that several controls fill holds what each wants, once."""
    whole: dict[str, Any] = {}
    for item in demanded:
        for name, value in item["variables"].items():
            if name not in whole:
                whole[name] = value
            elif value != whole[name]:
                before = whole[name] if isinstance(whole[name], list) else [whole[name]]
                whole[name] = [*before, *(value if isinstance(value, list) else [value])]
    return whole


def _weights(given: Mapping[str, Any] | None) -> dict[str, Fraction]:
    known = _data()["criteria"]
    if given is not None and not isinstance(given, Mapping):
        raise SensitivityError(f"weights: is {said(given)}; a mapping from criteria to numbers is wanted.")
    for name in given or {}:
        if name not in known:
            raise SensitivityError(f"weights.{name}: is no criterion{meant(name, known)}; known are {listed(known)}.")
    whole = {name: _number(f"weights.{name}", (given or {}).get(name, about["weight"]), 0) for name, about in known.items()}
    if not any(whole.values()):
        raise SensitivityError("weights: all are 0, so that nothing would be compared; one above 0 is wanted.")
    return whole


def _one_of(where: str, value: Any, known: Iterable[str]) -> str:
    for name in known:
        if isinstance(value, str) and value == name:
            return name
    raise SensitivityError(f"{where}: is {said(value)}{meant(value, known)}; one of {listed(known)} is wanted.")


def _number(where: str, value: Any, lowest: int | None = None) -> Fraction:
    """A number, also one that came as text from a command line; above 0, or from `lowest` on."""
    wanted = "a number above 0" if lowest is None else f"a number of {lowest} or more"
    try:
        if isinstance(value, bool):
            raise ValueError
        number = Fraction(Decimal(str(value).strip()))
    except (InvalidOperation, ValueError, OverflowError):
        raise SensitivityError(f"{where}: is {said(value)}; {wanted} is wanted.") from None
    if number < (lowest or 0) or (lowest is None and number == 0):
        raise SensitivityError(f"{where}: is {said(value)}; {wanted} is wanted.")
    return number


# Whether the data can be true.


def problems(data: Mapping[str, Any]) -> list[str]:
    """Why the data on feasibility contradicts itself, each with its place."""
    return [f"{FILE.name}: feasibility.{text}" for text in _problems(data)]


def _problems(data: Mapping[str, Any]) -> Iterator[str]:
    capabilities, needs, criteria = list(data["capabilities"]), list(data["needs"]), data["criteria"]
    if list(data["operations_gap"]) != list(range(len(capabilities))):
        yield f"operations_gap: has {listed(data['operations_gap'])}; 0 to {len(capabilities) - 1} are wanted."
    bounds = [data["needs"][name].get("gpus", math.inf) for name in needs]
    if bounds != sorted(bounds) or bounds[-1] != math.inf:
        yield f"needs: end at {listed(bounds)} GPUs; rising numbers and a last one without end are wanted."
    for name, option in data["options"].items():
        where = f"options.{name}"
        highest = option.get("highest_level")
        if highest not in LEVELS:
            yield f"{where}.highest_level: is {said(highest)}; one of {listed(LEVELS)} is wanted."
            continue
        if highest != LEVELS[-1] and not option.get("highest_level_reason"):
            yield f"{where}.highest_level_reason: is missing."
        if option.get("demands") not in capabilities:
            yield f"{where}.demands: is {said(option.get('demands'))}; one of {listed(capabilities)} is wanted."
        for key in ("title", "effort", "people"):
            if not option.get(key):
                yield f"{where}.{key}: is missing."
        asked = {"level": LEVELS[: LEVELS.index(highest) + 1], "need": option["needs"], None: ("score",)}
        for criterion, about in criteria.items():
            if about.get("by") == "operations":
                continue
            scores = option["scores"].get(criterion, {})
            if not scores.get("reason"):
                yield f"{where}.scores.{criterion}.reason: is missing."
            keys = asked[about.get("by")]
            if set(scores) - {"reason"} != set(keys):
                yield f"{where}.scores.{criterion}: has {listed(scores)}; {listed(keys)} and reason are wanted."
            for key in keys:
                if not isinstance(scores.get(key), int) or not 0 <= scores[key] <= HIGHEST_SCORE:
                    yield f"{where}.scores.{criterion}.{key}: is {said(scores.get(key))}; 0 to {HIGHEST_SCORE} is wanted."
    for level in LEVELS:
        for need in needs:
            if not any(
                option.get("highest_level") in LEVELS[LEVELS.index(level) :] and need in option["needs"]
                for option in data["options"].values()
            ):
                yield f"options: none is left for {level} and the need {need}."
