#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Measure, and write docs/benchmarks.json and the tables of docs/benchmarks.md.

    tests/bench/run.py [site] [gateway] [gpu_stack]      all, unless one is named

Needs the lab (`make up`); makes eight hosts more, then four, and removes them. What is claimed are ratios within one run: the
variants of a measurement take turns, and each figure is the median of its rounds.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import platform
import re
import shutil
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tests" / "lab"))
import lab

HOSTS = (1, 4, 8)
ROUNDS = 5
# Whole runs take minutes; one tells the order of magnitude.
FULL_ROUNDS = 1
PYINFRA = "pyinfra==3.10.0"
PYINFRA_VENV = lab.LAB / "bench-venv"
INVENTORY = ["-i", "tests/bench/hosts.yml"]
GPU_HOSTS = (1, 4)
GPU_INVENTORY = ["-i", "tests/bench/gpu_hosts.yml"]
CLIENTS = 8
REQUESTS = 200

Result = dict[str, Any]


def run(words: list[str | Path], **extra: str) -> str:
    """Run a command in the lab's environment; its output, or the end of it where it failed."""
    environment = {**lab.ansible_environment(), **extra}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    output = done.stdout + done.stderr
    if done.returncode:
        raise lab.LabError(f"`{' '.join(map(str, words[:4]))}` ended with code {done.returncode}:\n{output[-3000:]}")
    return output


def address(number: int) -> str:
    return f"{lab.network().rsplit('.', 1)[0]}.{100 + number}"


def ssh(host: str, command: str) -> str:
    """One fresh connection."""
    key, known = lab.LAB / "ssh/id_ed25519", lab.LAB / "ssh/known_hosts"
    words = [
        "ssh",
        "-F",
        "none",
        "-i",
        key,
        "-o",
        f"UserKnownHostsFile={known}",
        "-o",
        "StrictHostKeyChecking=yes",
        f"ops@{host}",
    ]
    return run([*words, command])


def forget_connections() -> None:
    """Every variant pays for its own connections: end those that Ansible keeps open."""
    for path in (lab.LAB / "ansible" / "cp").glob("*"):
        subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={path}", "any"], capture_output=True, check=False)


def timed(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


# --- site.yml ---------------------------------------------------------------------------------------------------------


def floor(hosts: int) -> None:
    """What no tool of this kind can go below: a connection and a cold Python with privileges on each host."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=20) as pool:
        list(pool.map(lambda number: ssh(address(number), "sudo python3 -c 'import json'"), range(1, hosts + 1)))


def site(hosts: int, *arguments: str, changed: bool = False) -> None:
    limit = ",".join(f"bench{number}" for number in range(1, hosts + 1))
    output = run(["ansible-playbook", *INVENTORY, "site.yml", "--limit", limit, *arguments])
    recap = re.findall(r"changed=(\d+)", output.rpartition("PLAY RECAP")[2])
    if not changed and (len(recap) != hosts or set(recap) != {"0"}):
        raise lab.LabError(f"this run should have changed nothing:\n{output[-3000:]}")


def ping(hosts: int) -> None:
    """Ansible's own least: a play with one task that only answers."""
    limit = ",".join(f"bench{number}" for number in range(1, hosts + 1))
    run(["ansible-playbook", *INVENTORY, HERE / "ping.yml", "--limit", limit])


def pyinfra(hosts: int, state: Path) -> None:
    given = {
        "BENCH_STATE": str(state),
        "BENCH_SSH": str(lab.LAB / "ssh"),
        "BENCH_HOSTS": ",".join(address(number) for number in range(1, hosts + 1)),
    }
    output = run([PYINFRA_VENV / "bin" / "pyinfra", "-y", HERE / "inventory_pyinfra.py", HERE / "deploy.py"], **given)
    total = re.search(r"Grand total +(\d+) +(\S+) +(\S+) +(\S+)", output)  # operations, changed, failed, unchanged
    if not total or total[2] != "-" or total[3] != "-":
        raise lab.LabError(f"pyinfra should have changed nothing:\n{output[-3000:]}")


def recorded_state(path: Path) -> dict[str, int]:
    """What the roles declared on each host, with each file's text, for pyinfra; returns how many of each kind."""
    hosts = {address(number): host_state(address(number)) for number in range(1, max(HOSTS) + 1)}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds the hosts' private keys
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(hosts, stream)
    return {kind: len(specs) for kind, specs in sorted(hosts[address(1)].items()) if specs}


def host_state(host: str) -> dict[str, list[dict[str, Any]]]:
    program = (
        "import glob, json; "
        "roles = [json.load(open(p)) for p in glob.glob('/var/lib/onprem/state/*.json')]; "
        "[f.update(text=open(f['path']).read()) for r in roles for f in r['declaration'].get('files', [])]; "
        "print(json.dumps([[r['declaration'], r['observed']] for r in roles]))"
    )
    command = f'sudo python3 -c "{program}"'
    state: dict[str, list[dict[str, Any]]] = {}
    for declaration, observed in json.loads(ssh(host, command)):
        for kind, specs in declaration.items():
            applied = [spec for spec in specs if not refused(observed, spec)]
            state.setdefault(kind, []).extend(spec for spec in applied if spec not in state.get(kind, []))
    return state


def refused(observed: dict[str, Any], spec: dict[str, Any]) -> bool:
    names = {str(spec.get("name")), str(spec.get("path"))}
    return any("not_applied" in live and label.split(" ", 1)[1] in names for label, live in observed.items())


def bench_site() -> Result:
    print("  making eight hosts and running site.yml on them (minutes)", flush=True)
    run(["ansible-playbook", *INVENTORY, "tests/lab/create.yml"])
    state = lab.LAB / "bench-state.json"
    try:
        site(max(HOSTS), changed=True)
        site(max(HOSTS))
        if not (PYINFRA_VENV / "bin" / "pyinfra").exists():
            run([sys.executable, "-m", "venv", PYINFRA_VENV])
            run([PYINFRA_VENV / "bin" / "pip", "install", "--quiet", PYINFRA])
        resources = recorded_state(state)
        return {"resources": resources, "hosts": {str(hosts): measure_site(hosts, state) for hosts in HOSTS}}
    finally:
        state.unlink(missing_ok=True)
        if not os.environ.get("KEEP_LAB"):
            run(["ansible-playbook", *INVENTORY, "tests/lab/destroy.yml"])


def measure_site(hosts: int, state: Path) -> dict[str, list[float]]:
    variants: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(hosts),
        "ping": lambda: ping(hosts),
        "no_change": lambda: site(hosts),
        "no_change_connected": lambda: site(hosts),
        "pyinfra": lambda: pyinfra(hosts, state),
        "full": lambda: site(hosts, "-e", "onprem_llm_verify=full"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(ROUNDS):
        for name, action in variants.items():
            if name == "full" and number >= FULL_ROUNDS:
                continue
            if name != "no_change_connected":
                forget_connections()
            seconds[name].append(round(timed(action), 3))
        shown = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"  {hosts} host(s), round {number + 1} of {ROUNDS}: {shown}", flush=True)
    return seconds


# --- the GPU stack ----------------------------------------------------------------------------------------------------


def bench_gpu_stack() -> Result:
    """A comparison of the whole GPU stack that finds nothing to do, against one apt task for each package."""
    print("  making four hosts and installing a stack of small packages on them", flush=True)
    run(["ansible-playbook", *GPU_INVENTORY, "tests/lab/create.yml"])
    try:
        run(["ansible-playbook", *GPU_INVENTORY, *(f"molecule/gpu_repository/{name}.yml" for name in ("prepare", "converge"))])
        return {"hosts": {str(hosts): measure_gpu_stack(hosts) for hosts in GPU_HOSTS}}
    finally:
        if not os.environ.get("KEEP_LAB"):
            run(["ansible-playbook", *GPU_INVENTORY, "tests/lab/destroy.yml"])


def measure_gpu_stack(hosts: int) -> dict[str, list[float]]:
    limit = ",".join(f"bench-gpu{number}-debian12" for number in range(1, hosts + 1))
    playbooks = {"ping": "ping.yml", "no_change": "gpu_stack.yml", "apt_tasks": "apt_tasks.yml"}
    seconds: dict[str, list[float]] = {name: [] for name in playbooks}
    for number in range(ROUNDS):
        for name, playbook in playbooks.items():
            forget_connections()
            started = time.monotonic()
            output = run(["ansible-playbook", *GPU_INVENTORY, HERE / playbook, "--limit", limit])
            seconds[name].append(round(time.monotonic() - started, 3))
            if set(re.findall(r"changed=(\d+)", output.rpartition("PLAY RECAP")[2])) != {"0"}:
                raise lab.LabError(f"this run should have changed nothing:\n{output[-3000:]}")
        shown = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"  {hosts} host(s), round {number + 1} of {ROUNDS}: {shown}", flush=True)
    return seconds


# --- the gateway ------------------------------------------------------------------------------------------------------


def load(connect: Callable[[], http.client.HTTPConnection], headers: dict[str, str], model: str) -> Result:
    """CLIENTS clients, each on a connection of its own, ask REQUESTS times together for one token."""
    body = json.dumps({"model": model, "prompt": "You", "max_tokens": 1, "temperature": 0})

    def client(_number: int) -> list[float]:
        connection = connect()
        taken = []
        for _request in range(REQUESTS // CLIENTS):
            started = time.monotonic()
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise lab.LabError(f"HTTP {answer.status} under load")
            taken.append(time.monotonic() - started)
        connection.close()
        return taken

    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(max_workers=CLIENTS) as pool:
        taken = sorted(value for values in pool.map(client, range(CLIENTS)) for value in values)
    elapsed = time.monotonic() - started
    return {
        "requests_per_second": len(taken) / elapsed,
        "p50_seconds": statistics.median(taken),
        "p99_seconds": taken[int(len(taken) * 0.99) - 1],
    }


def bench_gateway() -> Result:
    """The same request to the same model server, straight and through a gateway that has only this server."""
    endpoint = json.loads((lab.LAB / "endpoint.json").read_text(encoding="utf-8"))
    key = Path(endpoint["api_key_file"]).read_text(encoding="ascii").strip()
    context = ssl.create_default_context(cafile=endpoint["ca_file"])
    server = f"{lab.network().rsplit('.', 1)[0]}.21"
    ways: dict[str, tuple[Callable[[], http.client.HTTPConnection], dict[str, str]]] = {
        "straight": (lambda: http.client.HTTPConnection(server, 8000, timeout=60), {}),
        "gateway": (
            lambda: http.client.HTTPSConnection("localhost", lab.GATEWAY_PORT, context=context, timeout=60),
            {"Authorization": f"Bearer {key}"},
        ),
    }
    measured: dict[str, list[Result]] = {name: [] for name in ways}
    drain("drain")
    try:
        for connect, headers in ways.values():
            load(connect, headers, endpoint["model"])  # warm up
        for number in range(ROUNDS):
            for name, (connect, headers) in ways.items():
                measured[name].append(load(connect, headers, endpoint["model"]))
            shown = ", ".join(f"{name} {values[-1]['requests_per_second']:.0f}/s" for name, values in measured.items())
            print(f"  gateway, round {number + 1} of {ROUNDS}: {shown}", flush=True)
    finally:
        drain("ready")
    return {"clients": CLIENTS, "requests": REQUESTS, "ways": measured}


def drain(state: str) -> None:
    """Take gpu2 out of the gateway's balancing, or put it back, over the runtime socket."""
    program = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); "
        f"s.sendall(b'set server models/gpu2 state {state}\\n'); print(s.recv(4096).decode())"
    )
    host = f"{lab.network().rsplit('.', 1)[0]}.11"
    answer = ssh(host, f'sudo python3 -c "{program}"').strip()
    if answer:
        raise lab.LabError(f"the gateway would not {state} gpu2: {answer}")


# --- the report -------------------------------------------------------------------------------------------------------


def machine() -> str:
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {lab.memory_gib():.0f} GiB of memory"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def site_tables(found: Result) -> list[str]:
    names = {
        "floor": "floor: one ssh connection and one cold Python per host",
        "ping": "a playbook with one `ansible.builtin.ping`",
        "no_change": "`site.yml`, nothing to do",
        "no_change_connected": "the same over connections that are still open",
        "pyinfra": "pyinfra, nothing to do",
        "full": "`site.yml -e onprem_llm_verify=full`, nothing to do",
    }
    sizes = list(found["hosts"])
    head = [
        "| | " + " | ".join(f"{size} host{'s' if size != '1' else ''}" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    seconds = [
        f"| {text} | " + " | ".join(spread(found["hosts"][size][name]) for size in sizes) + " |" for name, text in names.items()
    ]

    def ratio(above: str, below: str) -> str:
        middle = statistics.median
        return " | ".join(f"{middle(found['hosts'][s][above]) / middle(found['hosts'][s][below]):.2f}" for s in sizes)

    ratios = [
        f"| no-change run / floor | {ratio('no_change', 'floor')} |",
        f"| no-change run / ping | {ratio('no_change', 'ping')} |",
        f"| no-change run / pyinfra | {ratio('no_change', 'pyinfra')} |",
        f"| full run / no-change run | {ratio('full', 'no_change')} |",
        f"| ping / floor | {ratio('ping', 'floor')} |",
        f"| pyinfra / floor | {ratio('pyinfra', 'floor')} |",
    ]
    first, last = sizes[0], sizes[-1]

    def growth(name: str) -> float:
        smallest, largest = (statistics.median(found["hosts"][size][name]) for size in (first, last))
        return (largest - smallest) / (int(last) - int(first))

    kinds = ", ".join(f"{count} {kind}" for kind, count in found["resources"].items())
    return [
        f"Declared on each host by its five roles: {kinds}.",
        "",
        *head,
        *seconds,
        "",
        *head,
        *ratios,
        "",
        f"Growth from {first} to {last} hosts:",
        "",
        *(f"- {text}: {growth(name):.2f} s more for each host" for name, text in names.items()),
    ]


def gpu_stack_tables(found: Result) -> list[str]:
    names = {
        "ping": "a playbook with one `ansible.builtin.ping`",
        "no_change": "driver, two toolkits, container toolkit and their source, nothing to do (two module calls per host)",
        "apt_tasks": "their nine packages alone, one `ansible.builtin.apt` task for each",
    }
    sizes = list(found["hosts"])
    head = [
        "| | " + " | ".join(f"{size} host{'s' if size != '1' else ''}" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    rows = [
        f"| {text} | " + " | ".join(spread(found["hosts"][size][name]) for size in sizes) + " |" for name, text in names.items()
    ]
    middle = statistics.median
    ratios = [middle(found["hosts"][size]["apt_tasks"]) / middle(found["hosts"][size]["no_change"]) for size in sizes]
    return [*head, *rows, "| **apt tasks / comparison** | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"]


def gateway_table(found: Result) -> list[str]:
    def middle(way: str, name: str) -> float:
        return statistics.median(item[name] for item in found["ways"][way])

    rows = []
    for name, text, unit, factor in (
        ("requests_per_second", "requests per second", "", 1.0),
        ("p50_seconds", "median", " ms", 1000.0),
        ("p99_seconds", "p99", " ms", 1000.0),
    ):
        straight, through = middle("straight", name) * factor, middle("gateway", name) * factor
        rows.append(f"| {text} | {straight:.1f}{unit} | {through:.1f}{unit} | {through / straight:.2f} |")
    return ["| | straight to the server | through the gateway | ratio |", "|---|---|---|---|", *rows]


def report(results: Result) -> None:
    path = ROOT / "docs" / "benchmarks.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known.update(results)
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    for name, table in (("site", site_tables), ("gateway", gateway_table), ("gpu_stack", gpu_stack_tables)):
        if name in known:
            lines = [f"Measured {known[name]['when']} on {known[name]['machine']}.", "", *table(known[name])]
            begin, end = f"<!-- {name}: written by make bench -->", f"<!-- {name}: end -->"
            text = text[: text.index(begin) + len(begin)] + "\n" + "\n".join(lines) + "\n" + text[text.index(end) :]
    page.write_text(text, encoding="utf-8")


def main(names: list[str]) -> int:
    parts: dict[str, Callable[[], Result]] = {"site": bench_site, "gateway": bench_gateway, "gpu_stack": bench_gpu_stack}
    unknown = sorted(set(names) - set(parts))
    if unknown:
        print(f"error: unknown benchmark {', '.join(unknown)}; known are {', '.join(parts)}")
        return 2
    try:
        lab.choose_engine()
        chosen = set(names or parts)
        if chosen - {"gpu_stack"} and (not lab.lab_is_up() or not (lab.LAB / "endpoint.json").exists()):
            raise lab.LabError("The benchmark measures the lab: run `make up` first.")
        if not shutil.which("ssh") or not lab.engine_answers():
            raise lab.LabError("There is no container engine of the lab: run `make up` first.")
        for name, measure in parts.items():
            if name in chosen:
                print(f"{name}:", flush=True)
                when = time.strftime("%Y-%m-%d", time.gmtime())
                report({name: {"when": when, "machine": machine(), **measure()}})
    except lab.LabError as error:
        print(f"\nerror: {error}")
        return 1
    print("docs/benchmarks.md and docs/benchmarks.json are written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
