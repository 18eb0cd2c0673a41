# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Records of acceptance tests: their form, what they say together, how they changed, and who signed them.

A record is what was seen on one host at one time. Nothing here makes it better than its checks: a record without a GPU,
without a check that looked at something, or with a verdict that its checks do not carry is refused or counts as failed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, NOT_RUN, PASS, VERDICTS, WARN, Check, overall
from ansible_collections.onprem.llm.plugins.plugin_utils._yaml_file import read_yaml

FORM = 1
NAMESPACE = "onprem-acceptance"
# A figure that moved, or differs from its siblings, by this share is worth a look.
NOTABLE = 0.05
SIBLINGS = 3
# From bad to good; what a host or a site may be called.
HOST_VERDICTS = (FAIL, WARN, PASS)

TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
HISTORY = re.compile(r"^(?P<host>.+)-(?P<time>\d{8}T\d{6}Z)(-(?P<number>\d+))?\.json$")
GPU_SUBJECT = re.compile(r"^GPU (\d+)$")
GPU_PAIR = re.compile(r"^GPU (\d+) -> GPU (\d+)$")
HOST_PAIR = re.compile(r"^(?!GPU \d)(?P<source>\S+) -> (?!GPU \d)(?P<target>\S+)$")
LOWER_IS_BETTER = {"ns", "us", "ms", "s"}
# No share of these says which of two is the better card.
NOT_COMPARED = {"C", "W", "%"}

IDENTITY = ("name", "uuid", "serial", "board_part_number", "pci_bus_id", "mac_address", "guid", "model")
COUNTS = ("memory_total_bytes", "nvlink_links", "speed_mbps", "mtu")
KINDS = ("identity", "firmware", "software", "count", "expectation", "verdict", "measurement")


class AcceptanceError(Exception):
    """A record, a signature or a directory that cannot be used; the message names file and field."""


# --- the form of a record ---------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Ordinary dicts and lists: those that Ansible hands over may still hold what is to be templated."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    # Numbers of Ansible's carry where they came from, which YAML does not write.
    for kind in (str, bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def absolute(path: str) -> Path:
    """Relative paths begin where ansible-playbook was started."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def canonical(record: Mapping[str, Any]) -> bytes:
    """The one text of a record, so that equal records have equal files and signatures."""
    text = json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def file_stem(host: str) -> str:
    """A host's name as a file name; what is no ordinary character is percent-encoded."""
    stem = quote(host, safe="@+,=[]")
    return f"%2E{stem[1:]}" if stem.startswith(".") else stem


def when(text: str) -> datetime:
    return datetime.strptime(text.split(".")[0].rstrip("Z"), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def collection_version() -> str:
    """The version of this collection, installed or in its repository."""
    root = Path(__file__).resolve().parents[2]
    manifest = root / "MANIFEST.json"
    if manifest.exists():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"])
    return str(read_yaml(root / "galaxy.yml")["version"])


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _dict(value: Any) -> bool:
    return isinstance(value, dict)


def _or_null(test: Any) -> Any:
    return lambda value: value is None or test(value)


# Field: (required, test, in words)
TOP: dict[str, tuple[bool, Any, str]] = {
    "form": (True, lambda value: _whole(value) and value == FORM, f"the number {FORM}"),
    "host": (True, _name, "a name"),
    "time": (True, lambda value: isinstance(value, str) and bool(TIME.match(value)), "a time such as 2026-11-25T08:30:00Z (UTC)"),
    "collection_version": (True, _name, "a version"),
    "verdict": (True, lambda value: value in HOST_VERDICTS, f"one of {', '.join(reversed(HOST_VERDICTS))}"),
    "profile": (True, _or_null(_text), "a profile's name, or null"),
    "checks": (True, _list, "a list"),
    "hardware": (True, _dict, "a dictionary"),
    "measurements": (True, _list, "a list"),
}
CHECK: dict[str, tuple[bool, Any, str]] = {
    "name": (True, _name, "a name"),
    "verdict": (True, lambda value: value in VERDICTS, f"one of {', '.join(VERDICTS)}"),
    "subject": (True, _name, "what was looked at, such as host or GPU 3"),
    "measured": (False, lambda value: True, "anything"),
    "expected": (False, lambda value: True, "anything"),
    "unit": (False, _or_null(_text), "a unit, or null"),
    "source": (False, _text, "text"),
    "action": (False, _text, "text"),
    "message": (False, _text, "text"),
}
MEASUREMENT: dict[str, tuple[bool, Any, str]] = {
    "name": (True, _name, "a name"),
    "subject": (True, _name, "what was measured, such as GPU 3 or GPU 0 -> GPU 1"),
    "value": (True, _number, "a finite number"),
    "unit": (True, _name, "a unit"),
    "floor": (False, _or_null(_number), "a number, or null"),
    "peak": (False, _or_null(_number), "a number, or null"),
    "source": (False, _or_null(_text), "text, or null"),
    "better": (False, lambda value: value in ("higher", "lower"), "higher or lower"),
}
HARDWARE: dict[str, tuple[bool, Any, str]] = {
    "system": (True, _dict, "a dictionary"),
    "kernel": (True, _or_null(_text), "text, or null"),
    "driver_version": (True, _or_null(_text), "a version, or null"),
    "cuda_version": (True, _or_null(_text), "a version, or null"),
    "gpus": (True, _list, "a list"),
    "nics": (False, _list, "a list"),
}
GPU: dict[str, tuple[bool, Any, str]] = {
    "index": (True, lambda value: _whole(value) and value >= 0, "a number from 0"),
    "name": (True, _or_null(_text), "a product's name, or null"),
    "uuid": (True, _or_null(_text), "text, or null"),
    "serial": (True, _or_null(_text), "text, or null"),
    "pci_bus_id": (False, _or_null(_text), "text, or null"),
    "vbios_version": (False, _or_null(_text), "a version, or null"),
    "board_part_number": (False, _or_null(_text), "text, or null"),
    "memory_total_bytes": (False, _or_null(_number), "a number of bytes, or null"),
}


def _fields(
    given: Any, form: Mapping[str, tuple[bool, Any, str]], where: str, at: str = "", *, closed: bool = True
) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise AcceptanceError(f"{where}: {at or 'the record'}: is {_shown(given)}, must be a dictionary.")
    dot = f"{at}." if at else ""
    for name, (required, test, words) in form.items():
        if name not in given:
            if required:
                raise AcceptanceError(f"{where}: {dot}{name}: is missing; must be {words}.")
        elif not test(given[name]):
            raise AcceptanceError(f"{where}: {dot}{name}: is {_shown(given[name])}, must be {words}.")
    for name in given if closed else ():
        if name not in form:
            raise AcceptanceError(f"{where}: {dot}{name}: is not known in form {FORM} (known: {', '.join(form)}).")
    return given


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def validate(record: Any, where: str) -> None:
    """Raise an error that names `where` (the file) and the first field that is wrong."""
    _fields(record, TOP, where)
    for index, check in enumerate(record["checks"]):
        _fields(check, CHECK, where, f"checks[{index}]")
    for index, measurement in enumerate(record["measurements"]):
        _fields(measurement, MEASUREMENT, where, f"measurements[{index}]")
    hardware = _fields(record["hardware"], HARDWARE, where, "hardware", closed=False)
    for index, gpu in enumerate(hardware["gpus"]):
        _fields(gpu, GPU, where, f"hardware.gpus[{index}]", closed=False)
    for index, nic in enumerate(hardware.get("nics", [])):
        _fields(nic, {"name": (True, _name, "a name")}, where, f"hardware.nics[{index}]", closed=False)
    try:
        when(record["time"])
    except ValueError:
        raise AcceptanceError(f"{where}: time: {record['time']!r} is no time.") from None
    try:
        canonical(record)
    except (TypeError, ValueError) as error:
        raise AcceptanceError(f"{where}: cannot be written as JSON: {error}.") from None
    deserved = verdict_of(record)
    if HOST_VERDICTS.index(record["verdict"]) > HOST_VERDICTS.index(deserved):
        why = "its checks say" if hardware["gpus"] else "hardware.gpus is empty, which is"
        raise AcceptanceError(f"{where}: verdict: is {record['verdict']}, but {why} {deserved}.")


def checks_of(record: Mapping[str, Any]) -> list[Check]:
    return [Check(**check) for check in record["checks"]]


def worst(verdicts: Iterable[str]) -> str:
    """The worst of hosts' verdicts; of none it is FAIL."""
    return min(verdicts, key=HOST_VERDICTS.index, default=FAIL)


def verdict_of(record: Mapping[str, Any], more: Iterable[Check] = ()) -> str:
    """What a record's checks carry, whatever it says of itself. A host without a GPU is never healthy."""
    if not record["hardware"]["gpus"]:
        return FAIL
    return overall([*checks_of(record), *more])


def identity_of_gpu(gpu: Mapping[str, Any]) -> dict[str, Any]:
    """What stays of one of gpu_info's GPUs from one test to the next, in a record's form."""

    def part(name: str, key: str) -> Any:
        found = gpu.get(name)
        return found.get(key) if isinstance(found, dict) else None

    return {
        **{key: gpu.get(key) for key in ("index", "name", "uuid", "serial", "architecture", "compute_capability")},
        "pci_bus_id": part("pci", "bus_id"),
        "board_part_number": part("board", "part_number"),
        "vbios_version": part("firmware", "vbios"),
        "inforom_version": part("firmware", "inforom_image"),
        "gsp_version": part("firmware", "gsp"),
        "memory_total_bytes": part("memory", "total_bytes"),
    }


def complete(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A new record as it is kept: what can be derived is filled in, and outliers among its own GPUs are noted."""
    record = {"form": FORM, "time": now(), "collection_version": collection_version(), "profile": None, **plain(given)}
    hardware = record.get("hardware")
    if isinstance(hardware, dict) and isinstance(hardware.get("gpus"), list):
        hardware["gpus"] = [
            identity_of_gpu(gpu) if isinstance(gpu, dict) and "unsupported" in gpu else gpu for gpu in hardware["gpus"]
        ]
    if "verdict" not in record:
        validate({**record, "verdict": FAIL}, where)
        record["verdict"] = verdict_of(record)
    validate(record, where)
    # Those of an earlier comparison are made anew: the same measurements always give the same record.
    record["checks"] = [check for check in record["checks"] if check["name"] != "outlier"]
    record["checks"] += [found.check().as_dict() for found in outliers([record])]
    record["verdict"] = worst([record["verdict"], verdict_of(record)])
    # As it will be read from its file, also in the order of its keys.
    return dict(json.loads(canonical(record)))


def not_examined(host: str, reason: str) -> dict[str, Any]:
    """The record of a host that was to be examined and from which nothing came."""
    check = Check(
        name="examined",
        verdict=NOT_RUN,
        measured=False,
        expected=True,
        source="acceptance test",
        action="Make the host reachable and run the acceptance test again.",
        message=reason,
    )
    hardware: dict[str, Any] = {"system": {}, "kernel": None, "driver_version": None, "cuda_version": None, "gpus": []}
    return {"host": host, "checks": [check.as_dict()], "hardware": hardware, "measurements": []}


# --- outliers among equals --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outlier:
    host: str
    name: str
    subject: str
    value: float
    unit: str
    median: float
    siblings: int
    # Among the GPUs of its own host, or only among those of the whole site.
    scope: str

    @property
    def percent(self) -> float:
        return round((self.value - self.median) / self.median * 100, 1)

    def check(self) -> Check:
        side = "over" if self.percent > 0 else "under"
        around = "on this host" if self.scope == "host" else "at this site"
        return Check(
            name="outlier",
            verdict=WARN,
            subject=self.subject,
            measured=self.value,
            expected=self.median,
            unit=self.unit,
            source=f"median of {self.siblings} siblings {around}",
            action="Measure again; if it stays, compare clocks, temperature, PCIe and NVLink state with a sibling.",
            message=f"{self.name} is {abs(self.percent):g} % {side} the median of its {self.siblings} siblings {around}.",
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "name": self.name,
            "subject": self.subject,
            "value": self.value,
            "unit": self.unit,
            "median": self.median,
            "percent": self.percent,
            "siblings": self.siblings,
            "scope": self.scope,
        }


def lower_is_better(measurement: Mapping[str, Any]) -> bool:
    told = measurement.get("better")
    return told == "lower" if told else measurement["unit"] in LOWER_IS_BETTER or "latency" in measurement["name"]


def product_of(record: Mapping[str, Any], subject: str) -> str | None:
    """What a subject's equals have in common: its GPU's name, or those of both ends, or of the whole host."""
    names = {gpu["index"]: gpu["name"] for gpu in record["hardware"]["gpus"]}
    single, pair = GPU_SUBJECT.match(subject), GPU_PAIR.match(subject)
    if single:
        return names.get(int(single.group(1)))
    if pair:
        ends = {names.get(int(index)) for index in pair.groups()}
        return None if None in ends else " and ".join(sorted(str(end) for end in ends))
    if subject == "host" and names:
        every = sorted(str(name) for name in names.values())
        return ", ".join(f"{every.count(name)} x {name}" for name in dict.fromkeys(every))
    return None


def subject_kind(subject: str) -> str:
    return "GPU" if GPU_SUBJECT.match(subject) else "pair" if GPU_PAIR.match(subject) else subject


def outliers(records: Sequence[Mapping[str, Any]]) -> list[Outlier]:
    """Figures that stay 5 % or more behind the median of their equals, on their host first, then at the site."""
    groups: dict[tuple[str, str, str, str], list[tuple[str, str, float, bool]]] = {}
    for record in records:
        for item in record["measurements"]:
            product = product_of(record, item["subject"])
            if product is not None and item["unit"] not in NOT_COMPARED:
                key = (item["name"], item["unit"], subject_kind(item["subject"]), product)
                groups.setdefault(key, []).append((record["host"], item["subject"], item["value"], lower_is_better(item)))
    found = []
    for (name, unit, _kind, _product), members in groups.items():
        for position, (host, subject, value, lower) in enumerate(members):
            others = [member for index, member in enumerate(members) if index != position]
            for scope, siblings in (
                ("host", [member[2] for member in others if member[0] == host]),
                ("site", [member[2] for member in others]),
            ):
                if len(siblings) < SIBLINGS:
                    continue
                median = statistics.median(siblings)
                behind = (value - median if lower else median - value) / median if median > 0 else 0
                if behind >= NOTABLE - 1e-9:
                    median = float(f"{median:.6g}")
                    found.append(Outlier(host, name, subject, value, unit, median, len(siblings), scope))
                    break
    return found


# --- drift against an earlier record ----------------------------------------------------------------------------------


def spans(subjects: Iterable[str]) -> str:
    """Many subjects in few words: GPU 0-3, GPU 7, host."""
    rest, indices = [], []
    for subject in subjects:
        match = GPU_SUBJECT.match(subject)
        if match:
            indices.append(int(match.group(1)))
        elif subject not in rest:
            rest.append(subject)
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    words = [f"GPU {first}" if first == last else f"GPU {first}-{last}" for first, last in runs]
    more = len(rest) - 4
    return ", ".join([*words, *rest[:4], *([f"and {more} more"] if more > 0 else [])])


def worst_by_subject(checks: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    order = (FAIL, NOT_RUN, WARN, PASS)
    for check in checks:
        key = (check["name"], check["subject"])
        both = [check["verdict"], found.get(key, check["verdict"])]
        found[key] = min(both, key=lambda verdict: order.index(verdict) if verdict in order else len(order))
    return found


def _matched(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]:
    """The same place before and now, by the first key that both have there."""
    pairs: list[tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]] = []
    left, right = list(before), list(after)
    for key in keys:
        known = {item[key]: item for item in left if item.get(key) is not None}
        for item in list(right):
            old = known.pop(item.get(key), None)
            if old is not None:
                pairs.append((old, item))
                left.remove(old)
                right.remove(item)
    return [*pairs, *((item, None) for item in left), *((None, item) for item in right)]


def drift(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What differs between two records of a host, each as what, before, now and kind."""
    found: list[dict[str, Any]] = []

    def note(what: str, old: Any, new: Any, kind: str) -> None:
        if old != new:
            found.append({"what": what, "before": old, "now": new, "kind": kind})

    def kind_of(key: str, otherwise: str) -> str:
        return "firmware" if key.endswith("_version") else "count" if key in COUNTS else otherwise

    old, new = before["hardware"], after["hardware"]
    for key in sorted({*old["system"], *new["system"]}):
        note(f"system {key}", old["system"].get(key), new["system"].get(key), kind_of(key, "identity"))
    for key in sorted({*old, *new} - {"system", "gpus", "nics"}):
        if not isinstance(old.get(key), (dict, list)) and not isinstance(new.get(key), (dict, list)):
            note(key, old.get(key), new.get(key), "software")
    for key, noun, places in (("gpus", "GPU", ("pci_bus_id", "index")), ("nics", "network device", ("name",))):
        was, is_ = old.get(key, []), new.get(key, [])
        note(f"number of {noun}s", len(was), len(is_), "count")
        for one, other in _matched(was, is_, places):
            here = other or one or {}
            label = f"{noun} {here.get('index', here.get('name'))}"
            if one is None or other is None:
                identity = here.get("serial") or here.get("uuid") or here.get("name")
                note(label, None if one is None else identity, None if other is None else identity, "identity")
                continue
            for name in sorted({*one, *other}):
                if name in IDENTITY or name in COUNTS or name.endswith("_version"):
                    note(f"{label} {name}", one.get(name), other.get(name), kind_of(name, "identity"))
    note("collection_version", before["collection_version"], after["collection_version"], "software")
    note("profile", before["profile"], after["profile"], "expectation")
    note("verdict of the host", before["verdict"], after["verdict"], "verdict")
    _drift_of_checks(before, after, found)
    _drift_of_measurements(before, after, found)
    return sorted(found, key=lambda item: KINDS.index(item["kind"]))


def _drift_of_checks(before: Mapping[str, Any], after: Mapping[str, Any], found: list[dict[str, Any]]) -> None:
    old, new = worst_by_subject(before["checks"]), worst_by_subject(after["checks"])
    changed: dict[tuple[str, str | None, str | None], list[str]] = {}
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):
            changed.setdefault((key[0], old.get(key), new.get(key)), []).append(key[1])
    for (name, was, is_), subjects in changed.items():
        found.append({"what": f"check {name} ({spans(subjects)})", "before": was, "now": is_, "kind": "verdict"})


def _drift_of_measurements(before: Mapping[str, Any], after: Mapping[str, Any], found: list[dict[str, Any]]) -> None:
    old, new = (
        {(item["name"], item["unit"], item["subject"]): item["value"] for item in record["measurements"]}
        for record in (before, after)
    )
    for key in new:
        if key in old and abs(new[key] - old[key]) >= NOTABLE * abs(old[key]) - 1e-9 and new[key] != old[key]:
            name, unit, subject = key
            item = {"what": f"{name} ({subject})", "before": old[key], "now": new[key], "kind": "measurement", "unit": unit}
            found.append(item)
    for name in dict.fromkeys(key[0] for key in [*new, *old]):
        was, is_ = (sum(1 for key in values if key[0] == name) for values in (old, new))
        if was != is_:
            found.append({"what": f"number of values of {name}", "before": was, "now": is_, "kind": "count"})


# --- signatures -------------------------------------------------------------------------------------------------------


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Signatures:
    """Detached OpenSSH signatures, made and checked with ssh-keygen."""

    key: Path | None = None
    allowed_signers: Path | None = None
    identity: str = ""
    required: bool = False

    def __post_init__(self) -> None:
        for option, path in (("signing_key", self.key), ("allowed_signers", self.allowed_signers)):
            if path is not None and not path.is_file():
                raise AcceptanceError(f"{option}: {path} is no file.")
        if self.required and self.allowed_signers is None:
            raise AcceptanceError("require_signatures: needs allowed_signers, the file that says whose signatures count.")
        if self.identity and self.allowed_signers is None:
            raise AcceptanceError("signer: needs allowed_signers, the file that says which keys are whose.")

    @staticmethod
    def _call(*arguments: str, given: bytes) -> subprocess.CompletedProcess[bytes]:
        # In a session of its own there is no terminal to ask for a passphrase on: such a key is an error, not a wait.
        environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
        try:
            return subprocess.run(
                ["ssh-keygen", "-Y", *arguments],
                input=given,
                capture_output=True,
                timeout=60,
                start_new_session=True,
                env=environment,
                check=False,
            )
        except FileNotFoundError:
            raise AcceptanceError("ssh-keygen is not installed on the controller; signatures need it (OpenSSH 8.1+).") from None
        except subprocess.TimeoutExpired:
            raise AcceptanceError(f"ssh-keygen -Y {arguments[0]} did not end within 60 s.") from None

    @staticmethod
    def _why(done: subprocess.CompletedProcess[bytes]) -> str:
        lines = (done.stderr + b"\n" + done.stdout).decode(errors="replace").replace("\r", "").splitlines()
        told = [line.strip(" @") for line in lines if line.strip(" @")]
        return told[-1].rstrip(".") if told else f"ssh-keygen ended with {done.returncode}"

    def sign(self, content: bytes, path: Path) -> bytes:
        done = self._call("sign", "-n", NAMESPACE, "-f", str(self.key), given=content)
        if done.returncode != 0 or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
            raise AcceptanceError(
                f"{path}: cannot be signed with signing_key {self.key}: {self._why(done)}. "
                "The key must be readable for you alone, and without a passphrase or held by your ssh-agent."
            )
        return done.stdout

    def expected(self) -> dict[str, str]:
        """The state that a signature to be made will have, for check mode."""
        return {"state": "valid" if self.allowed_signers else "unverified", "signer": self.identity}

    def state(self, content: bytes, signature: bytes | None, path: Path) -> dict[str, str]:
        """Whether a signature holds; one that does not, or lacks where it is required, is an error."""
        name = f"{path}.sig"
        if signature is None:
            if self.required:
                raise AcceptanceError(
                    f"{name}: the signature is missing, and require_signatures is set. Restore it, or move the record "
                    f"away and run the acceptance test again."
                )
            return {"state": "unsigned", "signer": ""}
        with tempfile.NamedTemporaryFile(prefix="acceptance-", suffix=".sig") as file:
            file.write(signature)
            file.flush()
            fits = self._call("check-novalidate", "-n", NAMESPACE, "-s", file.name, given=content)
            if fits.returncode != 0:
                raise AcceptanceError(
                    f"{name}: the signature does not fit {path.name}: {self._why(fits)}. The record or its signature was "
                    "changed after it was signed."
                )
            if self.allowed_signers is None:
                return {"state": "unverified", "signer": ""}
            identity = self.identity or self._principal(content, file.name, name)
            done = self._call(
                *("verify", "-n", NAMESPACE, "-f", str(self.allowed_signers), "-I", identity, "-s", file.name), given=content
            )
            if done.returncode != 0:
                raise AcceptanceError(
                    f"{name}: the signature is not one of {identity} as {self.allowed_signers} has it: {self._why(done)}."
                )
        return {"state": "valid", "signer": identity}

    def _principal(self, content: bytes, file: str, name: str) -> str:
        done = self._call("find-principals", "-f", str(self.allowed_signers), "-s", file, given=content)
        found = done.stdout.decode(errors="replace").split()
        if done.returncode != 0 or not found:
            raise AcceptanceError(f"{name}: was made with a key that {self.allowed_signers} does not list.")
        return found[0].split(",")[0]


# --- the directory ----------------------------------------------------------------------------------------------------


@dataclass
class Kept:
    """A record with its file."""

    record: dict[str, Any]
    path: Path
    content: bytes
    signature: bytes | None = None
    state: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return str(self.record["host"])


def write_atomically(path: Path, content: bytes) -> None:
    """All of a file or nothing, readable for everybody: neither records nor signatures are secret."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def natural(text: str) -> list[tuple[int, int, str]]:
    """gpu2 before gpu10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


class Site:
    """What is kept of a site, and what new records make of it. Nothing is written before `write`."""

    def __init__(self, directory: Path, signatures: Signatures) -> None:
        self.directory = directory
        self.history = directory / "history"
        self.signatures = signatures
        self.kept: dict[str, Kept] = {}
        # In the order of writing: path to content, or to None where a file is to go.
        self.writes: list[tuple[Path, bytes | None]] = []
        self.replaced: dict[str, Kept] = {}

    def take(self, given: Sequence[Mapping[str, Any]], examined: Sequence[str] = (), *, sign: bool = True) -> None:
        """Read the directory, and plan what becomes of it. With `sign` unset (check mode) no signature is made."""
        new: dict[str, dict[str, Any]] = {}
        for index, item in enumerate(given):
            where = f"records[{index}]"
            host = item.get("host") if isinstance(item, Mapping) else None
            record = complete(item, f"{where} ({host})" if host else where) if isinstance(item, Mapping) else None
            if record is None:
                raise AcceptanceError(f"{where}: is {_shown(item)}, must be a dictionary.")
            if record["host"] in new:
                raise AcceptanceError(f"{where}: host: {record['host']} has two records in one run.")
            new[record["host"]] = record
        for host in examined:
            if host not in new:
                record = not_examined(host, "Nothing came back from this host; it was not reachable, or its tests broke off.")
                new[host] = complete(record, f"hosts ({host})")
        self._read(new)
        for host in sorted(new, key=natural):
            self._plan(new[host], sign)

    def _read(self, new: Mapping[str, Mapping[str, Any]]) -> None:
        for path in sorted(self.directory.glob("*.json")):
            kept = self._load(path)
            if path.name != f"{file_stem(kept.host)}.json":
                raise AcceptanceError(f"{path}: host: is {kept.host!r}, whose record is {file_stem(kept.host)}.json.")
            # One that is signed now need not have been signed before.
            again = kept.host in new and canonical(new[kept.host]) == kept.content and self.signatures.key is not None
            if kept.signature is None and again:
                kept.state = {"state": "unsigned", "signer": ""}
            else:
                kept.state = self.signatures.state(kept.content, kept.signature, path)
            self.kept[kept.host] = kept

    @staticmethod
    def _load(path: Path) -> Kept:
        try:
            content = path.read_bytes()
            signature = path.with_name(f"{path.name}.sig")
            signed = signature.read_bytes() if signature.exists() else None
            record = json.loads(content)
        except OSError as error:
            raise AcceptanceError(f"{path}: cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise AcceptanceError(f"{path}: is no JSON: {error}.") from None
        validate(record, str(path))
        return Kept(record, path, content, signed)

    def _plan(self, record: dict[str, Any], sign: bool) -> None:
        path = self.directory / f"{file_stem(record['host'])}.json"
        if len(path.name) > 200:
            raise AcceptanceError(f"host: {record['host'][:60]}... is too long a name for a file.")
        content = canonical(record)
        old = self.kept.get(record["host"])
        same = old is not None and old.content == content
        if old is not None and same and (old.signature is not None or self.signatures.key is None):
            return
        if old is not None and when(record["time"]) < when(old.record["time"]):
            raise AcceptanceError(
                f"records ({record['host']}): time: {record['time']} is before {old.record['time']} in {path}; an older "
                "record does not take the place of a newer one. Set the clock, or move the file away."
            )
        kept = Kept(record, path, content, None, {"state": "unsigned", "signer": ""})
        if self.signatures.key is not None:
            kept.state = self.signatures.expected()
            if sign:
                kept.signature = self.signatures.sign(content, path)
                kept.state = self.signatures.state(content, kept.signature, path)
        elif self.signatures.required:
            raise AcceptanceError(f"{path}: cannot be written: require_signatures is set, and there is no signing_key.")
        if old is not None and not same:
            self._to_history(old)
        # A run that is cut off leaves a record without a signature rather than one with another's.
        if old is not None and old.signature is not None:
            self.writes.append((path.with_name(f"{path.name}.sig"), None))
        if not same:
            self.writes.append((path, content))
        if self.signatures.key is not None:
            self.writes.append((path.with_name(f"{path.name}.sig"), kept.signature or b""))
        self.kept[record["host"]] = kept

    def _to_history(self, old: Kept) -> None:
        stem = f"{file_stem(old.host)}-{when(old.record['time']).strftime('%Y%m%dT%H%M%SZ')}"
        number, path = 1, self.history / f"{stem}.json"
        while path.exists() and path.read_bytes() != old.content:
            number += 1
            path = self.history / f"{stem}-{number}.json"
        self.writes.append((path, old.content))
        if old.signature is not None:
            self.writes.append((path.with_name(f"{path.name}.sig"), old.signature))
        self.replaced[old.host] = Kept(old.record, path, old.content, old.signature, old.state)

    def earlier(self, host: str) -> Kept | None:
        """The record before the present one."""
        if host in self.replaced:
            return self.replaced[host]
        found = []
        for path in self.history.glob("*.json"):
            match = HISTORY.match(path.name)
            if match and match["host"] == file_stem(host):
                found.append((match["time"], int(match["number"] or 1), path))
        if not found:
            return None
        kept = self._load(max(found)[2])
        if kept.host != host:
            raise AcceptanceError(f"{kept.path}: host: is {kept.host!r}, and the file's name says {host!r}.")
        kept.state = self.signatures.state(kept.content, kept.signature, kept.path)
        return kept

    def hosts(self) -> list[dict[str, Any]]:
        """Each host with its verdict, all its checks, its drift and its outliers; what the page shows."""
        ordered = sorted(self.kept.values(), key=lambda kept: natural(kept.host))
        among = outliers([kept.record for kept in ordered])
        listed = []
        for kept in ordered:
            own = [found for found in among if found.host == kept.host]
            more = [check for found in own if (check := found.check()).as_dict() not in kept.record["checks"]]
            earlier = self.earlier(kept.host)
            listed.append(
                {
                    "host": kept.host,
                    "record": kept.record,
                    "verdict": worst([kept.record["verdict"], verdict_of(kept.record, more)]),
                    "checks": [*kept.record["checks"], *(check.as_dict() for check in more)],
                    "outliers": [found.as_dict() for found in own],
                    "earlier": earlier.record["time"] if earlier else None,
                    "drift": drift(earlier.record, kept.record) if earlier else [],
                    "signature": kept.state,
                    "file": kept.path.name,
                    "sha256": digest(kept.content),
                }
            )
        return listed

    def write(self) -> None:
        try:
            for path, content in self.writes:
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    write_atomically(path, content)
        except OSError as error:
            raise AcceptanceError(f"{error.filename or self.directory}: cannot be written: {error.strerror}.") from None
