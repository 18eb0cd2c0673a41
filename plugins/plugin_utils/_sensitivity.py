# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which controls a level of data sensitivity demands, and whether a host has them.

The levels and controls are in ``sensitivity_controls.yml`` beside this file. A site may add controls, and demand more of those
that are there; it cannot take one away or make one weaker, since the honest way to that is a lower level. Nothing here knows
Ansible: who asks hands in a function that evaluates a control's expressions with a host's variables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.onprem.llm.plugins.plugin_utils._yaml_file import read_yaml

FILE = Path(__file__).with_name("sensitivity_controls.yml")
FORM = 1
LEVELS = ("L1", "L2", "L3", "L4")
GROUPS = ("all", "gateways", "model_servers", "gpu_hosts")
KINDS = ("built_in", "attested", "condition")
STATES = ("on", "built_in", "attested", "missing")

LEVEL = "onprem_llm_data_sensitivity"
ATTESTED = "onprem_llm_attested_controls"
OWN_CONTROLS = "onprem_llm_sensitivity_controls"
OWN_DOMAINS = "onprem_llm_own_domains"
DOCUMENT = "docs/data-sensitivity.md"
SHORTEST_STATEMENT = 10

COMMON_KEYS = ("title", "why", "levels", "clauses", "applies_to", "roles")
KEYS = {"built_in": ("built_in",), "attested": ("attested",), "condition": ("condition", "found", "wanted", "variables")}
NAME = re.compile(r"[a-z][a-z0-9_]*")
DOMAIN = re.compile(r"(?i)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)+")


class SensitivityError(Exception):
    """A level, control or statement that cannot be used; the message names the place, the value found and the one wanted."""


class Host(Protocol):
    """A host as a control sees it: its variables, below them the defaults of the control's roles, and the given names."""

    def present(self, role: str) -> bool:
        """Whether the role's state is not absent."""

    def variable(self, control: Mapping[str, Any], name: str) -> Any:
        """A variable's value, None where there is none."""

    def value(self, control: Mapping[str, Any], expression: str, names: Mapping[str, Any]) -> Any:
        """What an expression gives."""

    def holds(self, control: Mapping[str, Any], condition: str, names: Mapping[str, Any]) -> bool:
        """Whether a condition is true."""


# What is asked for.


@cache
def _shipped() -> dict[str, Any]:
    data = read_yaml(FILE)
    refuse(problems(data))
    return dict(data)


def shipped() -> dict[str, Any]:
    """The whole data file, looked at; a copy."""
    return deepcopy(_shipped())


def controls(own: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """All controls by name, a site's own merged over them.

    Of a control of the collection a site may only change ``levels``: add levels, and raise the numbers of those there are (of
    the levels above with them).
    """
    known: dict[str, dict[str, Any]] = shipped()["controls"]
    if own is None or own == {}:
        return known
    if not isinstance(own, Mapping):
        raise SensitivityError(f"{OWN_CONTROLS}: is {said(own)}; a mapping from names to controls is wanted.")
    found = list(_own_problems(known, own))
    if not found:
        for name, control in own.items():
            if name in known:
                _raise_levels(known[name]["levels"], control["levels"])
            else:
                known[name] = deepcopy(dict(control))
        found = list(_control_problems({**shipped(), "controls": known}))
    refuse(f"{OWN_CONTROLS}: {text}" for text in found)
    return known


def _raise_levels(levels: dict[str, dict[str, Any]], own: Mapping[str, Any]) -> None:
    """Merge a site's own levels; a number that it raises holds for the levels above too, where they have less."""
    for level, numbers in own.items():
        levels.setdefault(level, {}).update(numbers or {})
        for higher in LEVELS[LEVELS.index(level) :] if level in LEVELS else ():
            for key, number in (numbers or {}).items():
                if higher in levels and _is_number(levels[higher].get(key)) and _is_number(number):
                    levels[higher][key] = max(number, levels[higher][key])


def checked_level(level: Any, where: str = LEVEL) -> str:
    """One of L1 to L4, or an error that names them."""
    if isinstance(level, str) and level in LEVELS:
        return LEVELS[LEVELS.index(level)]
    titles = ", ".join(f"{name} ({found['title']})" for name, found in _shipped()["levels"].items())
    hint = " Leave it out to demand nothing." if where == LEVEL else ""
    raise SensitivityError(f"{where}: is {said(level)}; one of {titles} is wanted.{hint}")


def checked_attestations(attested: Any, known: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A site's statements by control, each looked at: a control that can be stated, and a text that says something."""
    if attested is None:
        return {}
    if not isinstance(attested, Mapping):
        raise SensitivityError(f"{ATTESTED}: is {said(attested)}; a mapping from controls to statements is wanted.")
    statable = [name for name, control in known.items() if "attested" in control]
    found = []
    for name, statement in attested.items():
        if name not in known:
            found.append(f"there is no control {name!r}{meant(name, statable)}; a statement can be given for {listed(statable)}.")
        elif "built_in" in known[name]:
            found.append(f"{name}: is built in and needs no statement; take it out.")
        elif "condition" in known[name]:
            names = listed(known[name]["variables"])
            found.append(f"{name}: is turned on by {names}, and no statement stands in for that; set it, and take this out.")
        elif not isinstance(statement, str) or len(statement.strip()) < SHORTEST_STATEMENT:
            found.append(
                f"{name}: is {said(statement)}; say in {SHORTEST_STATEMENT} characters or more what was done, by whom and when."
            )
    refuse(f"{ATTESTED}: {text}" for text in found)
    return {str(name): str(statement).strip() for name, statement in attested.items()}


def demanded(level: str, groups: Iterable[str] | None = None, own: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The controls that a level demands, of hosts of these groups or of any; each with its numbers as ``numbers``."""
    level = checked_level(level)
    of = None if groups is None else {*groups, "all"}
    return {
        name: {**control, "name": name, "numbers": control["levels"][level] or {}}
        for name, control in controls(own).items()
        if level in control["levels"] and (of is None or of.intersection(control["applies_to"]))
    }


def controls_of(level: str, own: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The controls of a level as a plan shows them: what, why, for whom, how it is turned on, what asks for it."""
    return [
        {
            "name": name,
            "title": control["title"],
            "why": control["why"],
            "applies_to": list(control["applies_to"]),
            "how": next(kind for kind in KINDS if kind in control),
            "document": control.get("built_in"),
            "attest": control.get("attested"),
            "wanted": filled(control["wanted"], control["numbers"]) if "wanted" in control else None,
            "variables": filled(control.get("variables", {}), control["numbers"]),
            "clauses": clauses(control),
        }
        for name, control in demanded(level, None, own).items()
    ]


def judge(
    level: str, groups: Iterable[str], host: Host, attested: Any = None, own: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Every control that the level demands of a host of these groups, and its state."""
    statements = checked_attestations(attested, controls(own))
    found = []
    for name, control in demanded(level, groups, own).items():
        # What is to be taken off a host has nothing to be protected any more.
        if control.get("roles") and not any(host.present(role) for role in control["roles"]):
            continue
        item = {
            "name": name,
            "title": control["title"],
            "state": "missing",
            "why": control["why"],
            "variables": filled(control.get("variables", {}), control["numbers"]),
            "found": None,
            "wanted": filled(control.get("wanted", ""), control["numbers"]),
            "clauses": clauses(control),
        }
        if "built_in" in control:
            item.update(state="built_in", found=control["built_in"])
        elif "attested" in control:
            item.update(wanted=control["attested"], variables={ATTESTED: {name: "<what was done, by whom and when>"}})
            if name in statements:
                item.update(state="attested", found=statements[name])
        else:
            names: dict[str, Any] = {"wanted": control["numbers"]}
            if "found" in control:
                names["found"] = host.value(control, control["found"], names)
                item["found"] = shown(names["found"])
            else:
                item["found"] = shown({key: host.variable(control, key) for key in control["variables"]})
            item["state"] = "on" if host.holds(control, control["condition"], names) else "missing"
        found.append(item)
    return found


def message(host: str, level: str, found: Sequence[Mapping[str, Any]]) -> str:
    """What is said of a host that misses controls: each one with what was found, what is wanted and what to set."""
    missing = [item for item in found if item["state"] == "missing"]
    lines = []
    for number, item in enumerate(missing, 1):
        if list(item["variables"]) == [ATTESTED]:
            lines.append(
                f"({number}) {item['name']} ({item['title']}): nothing is stated. {item['wanted']} The collection does not do "
                f"it; once it is done, state it: {ATTESTED}: {{{item['name']}: <what was done, by whom and when>}}"
            )
        else:
            settings = "; ".join(f"{name}: {_text(value)}" for name, value in item["variables"].items())
            lines.append(
                f"({number}) {item['name']} ({item['title']}): found {_text(item['found'])}; wanted {item['wanted']}. "
                f"Set {settings}"
            )
    return (
        f"{host} misses {len(missing)} of the {len(found)} controls that {level} ({_shipped()['levels'][level]['title']}) "
        f"demands: {'. '.join(lines)}. See {DOCUMENT}. No control can be excepted; if the data is less sensitive, lower {LEVEL}."
    )


def own_patterns(own_domains: Any = None) -> dict[str, str]:
    """``own_address``, ``own_host`` and ``private_network``: patterns for Ansible's test ``match`` of what is the site's own."""
    addresses = _shipped()["own_addresses"]
    if own_domains is None:
        own_domains = []
    if not isinstance(own_domains, Sequence) or isinstance(own_domains, str):
        raise SensitivityError(f"{OWN_DOMAINS}: is {said(own_domains)}; a list of domains such as corp.example.com is wanted.")
    found = []
    for domain in own_domains:
        if not isinstance(domain, str) or not DOMAIN.fullmatch(domain) or re.fullmatch(r"[0-9.]+", domain):
            found.append(f"{OWN_DOMAINS}: is {said(domain)} in the list; a domain of two parts or more is wanted.")
            continue
        for public in addresses["public_domains"]:
            if f".{domain.lower()}".endswith(f".{public}") or public.endswith(f".{domain.lower()}"):
                found.append(f"{OWN_DOMAINS}: {domain} is not the site's own: {public} is everybody's.")
    refuse(found)
    byte = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    ipv4 = rf"((10|127)(\.{byte}){{3}}|(192\.168|169\.254|172\.(1[6-9]|2[0-9]|3[01]))(\.{byte}){{2}})"
    ipv6 = r"(f[cd][0-9a-f]{2}:[0-9a-f:]+|fe[89ab][0-9a-f]:[0-9a-f:]+|::1)"
    suffixes = "|".join(re.escape(domain) for domain in [*addresses["private_domains"], *own_domains])
    # A name without a dot begins with a letter: 134744072 is an address too.
    name = rf"(([a-z0-9_-]+\.)*({suffixes})|[a-z_][a-z0-9_-]*)\.?"
    return {
        "private_network": rf"(?i)^({ipv4}|{ipv6})(/[0-9]+)?$",
        "own_host": rf"(?i)^({ipv4}|{ipv6}|{name})$",
        "own_address": (
            rf"(?i)^(/|file:|cdrom:|copy:|[a-z][a-z0-9+.-]*://([^@/?#\s\\]*@)?({ipv4}|\[{ipv6}\]|{name})(:[0-9]+)?([/?#]|$))"
        ),
    }


def checkout_of(path: Path | str, encrypted_is_fine: bool = False) -> str:
    """The git checkout that a file or folder of the controller lies in (or would); empty for none."""
    place = Path(path).expanduser().absolute()
    if encrypted_is_fine and place.is_file():
        with place.open("rb") as stream:
            if stream.read(14) == b"$ANSIBLE_VAULT":
                return ""
    resolved = place.resolve()
    for folder in (resolved, *resolved.parents):
        if (folder / ".git").exists():
            return str(folder)
    return ""


def clauses(control: Mapping[str, Any]) -> list[str]:
    """What asks for a control, in words: ``ISO/IEC 27001:2022, Annex A: A.8.24``."""
    standards = _shipped()["standards"]
    return [f"{standards[key]['title']}: {', '.join(numbers)}" for key, numbers in control["clauses"].items()]


def filled(value: Any, numbers: Mapping[str, Any]) -> Any:
    """A value with the level's numbers in it; a text that is nothing but one number becomes that number."""
    if isinstance(value, Mapping):
        return {key: filled(part, numbers) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, numbers) for part in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\{([a-z0-9_]+)\}", value)
    if whole and whole[1] in numbers:
        return numbers[whole[1]]
    return re.sub(r"\{([a-z0-9_]+)\}", lambda match: str(numbers.get(match[1], match[0])), value)


def shown(value: Any) -> Any:
    """A value as it may be shown: plain types, and no name and password in an address."""
    if isinstance(value, Mapping):
        return {str(key): shown(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(part) for part in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return re.sub(r"//[^@/\s]*@", "//", str(value))


# Whether the data can be true.


def problems(data: Any) -> list[str]:
    """Why the data file contradicts itself, each with its place."""
    return [f"{FILE.name}: {text}" for text in _problems(data)]


def _problems(data: Any) -> Iterator[str]:
    if not isinstance(data, Mapping) or data.get("form") != FORM:
        yield f"form: is {said(data.get('form') if isinstance(data, Mapping) else data)}; {FORM} is wanted."
        return
    if tuple(data.get("levels", {})) != LEVELS:
        yield f"levels: are {listed(data.get('levels', {}))}; {listed(LEVELS)} in this order are wanted."
        return
    for level, found in data["levels"].items():
        for key in ("title", "meaning", "examples"):
            if not found.get(key):
                yield f"levels.{level}.{key}: is missing."
    for key, standard in data.get("standards", {}).items():
        for field in ("title", "url"):
            if not standard.get(field):
                yield f"standards.{key}.{field}: is missing."
    yield from _control_problems(data)


def _control_problems(data: Mapping[str, Any]) -> Iterator[str]:
    for name, control in data["controls"].items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            yield f"{name!r}: is not a name of small letters, digits and underscores."
        elif not isinstance(control, Mapping):
            yield f"{name}: is {said(control)}; a mapping is wanted."
        else:
            for text in (*_form_problems(control, data["standards"]), *_level_problems(control)):
                yield f"{name}.{text}"


def _form_problems(control: Mapping[str, Any], standards: Mapping[str, Any]) -> Iterator[str]:
    kinds = [kind for kind in KINDS if kind in control]
    if len(kinds) != 1:
        yield f"{'/'.join(KINDS)}: are {len(kinds)} of them ({listed(kinds) or 'none'}); exactly one is wanted."
        return
    known = (*COMMON_KEYS, *KEYS[kinds[0]])
    for key in control:
        if key not in known:
            yield f"{key}: is no key of such a control{meant(key, known)}; known are {listed(known)}."
    for key in ("title", "why", kinds[0], *(("wanted",) if kinds[0] == "condition" else ())):
        if not isinstance(control.get(key), str) or not control[key].strip():
            yield f"{key}: is {said(control.get(key))}; a text is wanted."
    if "found" in control and not isinstance(control["found"], str):
        yield f"found: is {said(control['found'])}; an expression is wanted."
    for key in ("condition", "found"):
        if "\\" in str(control.get(key)):
            yield f"{key}: holds a backslash, which Ansible's releases read differently; write it without."
    if kinds[0] == "condition" and (not isinstance(control.get("variables"), Mapping) or not control["variables"]):
        yield "variables: is missing; the variables that turn it on, with their values, are wanted."
    if kinds[0] != "attested" and (not isinstance(control.get("roles"), list) or not control["roles"]):
        yield "roles: is missing; the roles to which it applies are wanted."
    groups = control.get("applies_to")
    if not isinstance(groups, list) or not groups or not all(group in GROUPS for group in groups):
        yield f"applies_to: is {said(groups)}; a list of {listed(GROUPS)} is wanted."
    asked_by = control.get("clauses")
    if not isinstance(asked_by, Mapping):
        yield f"clauses: is {said(asked_by)}; a mapping from standards to clauses is wanted (it may be empty)."
        return
    for key, numbers in asked_by.items():
        if key not in standards:
            yield f"clauses.{key}: is no standard{meant(key, standards)}; known are {listed(standards)}."
        if not isinstance(numbers, list) or not numbers or not all(isinstance(number, str) for number in numbers):
            yield f"clauses.{key}: is {said(numbers)}; a list of clauses is wanted."


def _level_problems(control: Mapping[str, Any]) -> Iterator[str]:
    levels = control.get("levels")
    if not isinstance(levels, Mapping) or not levels:
        yield f"levels: is {said(levels)}; a mapping from levels to their numbers is wanted."
        return
    for level, numbers in levels.items():
        if level not in LEVELS:
            yield f"levels.{level}: is no level; known are {listed(LEVELS)}."
            return
        if not isinstance(numbers, Mapping) or not all(_is_number(number) for number in numbers.values()):
            yield f"levels.{level}: is {said(numbers)}; a mapping from names to numbers is wanted."
            return
    asked = [level for level in LEVELS if level in levels]
    for level in LEVELS[LEVELS.index(asked[0]) :]:
        if level not in levels:
            yield f"levels: {asked[0]} demands it, and {level}, which is higher, does not."
            return
    for lower, higher in zip(asked, asked[1:]):
        if set(levels[lower]) != set(levels[higher]):
            yield f"levels: {lower} has the numbers {listed(levels[lower])}, and {higher} {listed(levels[higher])}."
            return
        for key, number in levels[lower].items():
            if levels[higher][key] < number:
                yield f"levels.{higher}.{key}: is {levels[higher][key]}, less than the {number} of {lower}."
    used = set(re.findall(r"wanted\.([a-z0-9_]+)", str(control.get("condition", ""))))
    for key in sorted(used - set(levels[asked[0]])):
        yield f"condition: uses wanted.{key}, which levels.{asked[0]} does not have."


def _own_problems(known: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """What a site's own may not do with a control of the collection."""
    for name, control in own.items():
        if not isinstance(control, Mapping):
            yield f"{name}: is {said(control)}; a mapping is wanted."
        elif name not in known:
            # Hosts could not be told how to have it otherwise; and a small mistake in a name must not pass as a new control.
            if "levels" in control and set(control) == {"levels"}:
                yield f"there is no control {name!r}{meant(name, known)}; known are {listed(known)}."
        elif set(control) != {"levels"} or not isinstance(control["levels"], Mapping):
            yield (
                f"{name}: sets {listed(control)}; of a control of the collection only levels can be changed. For something else, "
                "add a control with another name."
            )
        else:
            for level, numbers in control["levels"].items():
                before = known[name]["levels"].get(level, {})
                if not isinstance(numbers or {}, Mapping):
                    yield f"{name}.levels.{level}: is {said(numbers)}; a mapping from names to numbers is wanted."
                    continue
                for key, number in (numbers or {}).items():
                    if key in before and _is_number(number) and number < before[key]:
                        yield (
                            f"{name}.levels.{level}.{key}: is {number}, and the collection demands {before[key]}; more is "
                            f"possible, less is not. Lower {LEVEL} if the data is less sensitive."
                        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# What both files of this kind say in the same words.


def refuse(found: Iterable[str]) -> None:
    """An error of all these sentences, if there is one."""
    whole = list(found)
    if whole:
        raise SensitivityError(" ".join(whole))


def meant(value: Any, known: Iterable[Any]) -> str:
    """The nearest known name, as a question."""
    close = get_close_matches(str(value), [str(key) for key in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def listed(names: Iterable[Any]) -> str:
    """Names in one line."""
    return ", ".join(str(name) for name in names)


def said(value: Any) -> str:
    """A value that was found, for an error."""
    return "missing or null" if value is None else repr(shown(value))


def _text(value: Any) -> str:
    """A value as one writes it in an inventory, in one line."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
