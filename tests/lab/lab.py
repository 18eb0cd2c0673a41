#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Make, use and remove the lab: disposable hosts that boot systemd and are reached over ssh.

Runs on the standard library alone, because it is what builds the virtual environment.
Everything it makes lies in ``.lab/`` of this checkout or carries the label ``onprem.llm.lab=<checkout>``
in the container engine, so ``down`` finds it again, also after a run that was cut off half-way.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import importlib.util
import ipaddress
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / ".lab"
HERE = Path(__file__).resolve().parent
VENV = LAB / "venv"
LABEL = f"onprem.llm.lab={ROOT}"
# Two labs on one machine need two names; everything in the container engine carries it.
NAME = os.environ.get("LAB_NAME", "onprem-llm-lab")
RUNTIME = Path("/run") / NAME
ENGINE_DATA = Path("/var/lib") / NAME
# A name of our own, so that a bridge that a killed engine left behind is known as ours.
BRIDGE = f"lab{hashlib.sha256(f'{ROOT} {NAME}'.encode()).hexdigest()[:8]}"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
NETWORKS = [f"10.203.{number}.0/24" for number in range(77, 97)]
GATEWAY_PORT = int(os.environ.get("LAB_GATEWAY_PORT", "8443"))

# What `make up` needs, in GiB. Disk: host images 0.6, package and wheel cache 4.5, controller environment 0.6,
# two serving environments of 3.4 each, and room to unpack (measured with `du`, docs/lab.md).
MEMORY_GIB = 14
DISK_GIB = 20
PYTHON = (3, 11)

# The settings of pip that decide where a wheel comes from.
PIP_REACH = ("index-url", "extra-index-url", "find-links", "cert")
PACKAGES = (
    *("ca-certificates", "docker.io", "gcc", "iproute2", "iptables", "libc6-dev", "mmdebstrap", "openssh-client"),
    "python3-venv",
)
HOST_PACKAGES = "ca-certificates,dbus,iproute2,kmod,openssh-server,procps,python3,python3-apt,sudo,systemd,systemd-sysv,udev"
SUITES = {"debian12": "bookworm", "debian13": "trixie"}


class LabError(Exception):
    """A failed precondition or step, told in one line."""


def say(text: str) -> None:
    print(text, flush=True)


class Steps:
    """Numbered progress, so that a reader knows how far a run is."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.started = time.monotonic()

    def __call__(self, text: str) -> None:
        self.done += 1
        elapsed = int(time.monotonic() - self.started)
        say(f"[{self.done}/{self.total}] {text}  ({elapsed} s so far)")


def run(command: Sequence[str | Path], *, quiet: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; when it fails, say which and show the end of what it printed."""
    if quiet:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([str(part) for part in command], text=True, check=False, **options)
    if done.returncode:
        tail = "\n".join((done.stdout or "").strip().splitlines()[-15:]) if quiet else ""
        raise LabError(f"`{' '.join(map(str, command))}` ended with code {done.returncode}" + (f":\n{tail}" if tail else "."))
    return done


# --- the machine -----------------------------------------------------------------------------------------------------


def memory_gib() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) / 2**20
    return 0.0


def disk_free_gib(path: Path) -> float:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 2**30


def debian_mirror() -> str | None:
    """The Debian mirror this machine's apt uses, or None to leave the choice to mmdebstrap."""
    lines: list[str] = []
    for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        if path.is_file() and path.suffix in {".list", ".sources"}:
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        found = re.match(r"(?:deb\s+(?:\[.*?\]\s+)?|URIs:\s*)(https?://\S+?)/?(?:\s|$)", line)
        if found and found[1].endswith("/debian"):
            return found[1]
    return None


def unreachable(url: str) -> str:
    """Why the address could not be read, or an empty string."""
    parts = urllib.parse.urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=place).geturl(), method="HEAD")
    if user:
        request.add_header("Authorization", f"Basic {base64.b64encode(urllib.parse.unquote(user).encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=20):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code == http.client.METHOD_NOT_ALLOWED else f"HTTP {error.code} {error.reason}"
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))


def without_login(text: str) -> str:
    """The text without the user names and passwords of its addresses."""
    return re.sub(r"//[^@/\s]*@", "//", text)


def port_owner_conflict(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def overlapping_route(wanted: str) -> str:
    """A route of this machine that overlaps the network and is not the lab's own, or an empty string."""
    for line in Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]:
        name, destination, _gateway, flags, *_rest = line.split()
        mask = line.split()[7]
        if not int(flags, 16) & 1 or destination == "00000000" or name == BRIDGE:
            continue
        address = ipaddress.ip_address(bytes.fromhex(destination)[::-1])
        bits = bin(int.from_bytes(bytes.fromhex(mask)[::-1], "big")).count("1")
        if ipaddress.ip_network(f"{address}/{bits}", strict=False).overlaps(ipaddress.ip_network(wanted)):
            return f"{name} ({address}/{bits})"
    return ""


def network() -> str:
    """The hosts' network: LAB_SUBNET, else what this lab has already, else the first that no route overlaps."""
    given = os.environ.get("LAB_SUBNET")
    if given:
        return ipaddress.ip_network(given).with_prefixlen
    before: list[str] = []
    if (LAB / "inputs.json").exists():
        before = [json.loads((LAB / "inputs.json").read_text(encoding="utf-8"))["network"]]
    return next((wanted for wanted in before + NETWORKS if not overlapping_route(wanted)), NETWORKS[0])


def lab_is_up() -> bool:
    """Whether the hosts of inventories/lab run; the package cache and the tests' hosts, which publish no port, do not count."""
    if not shutil.which("docker"):
        return False
    return "->" in docker("ps", "--filter", f"label={LABEL}", "--format", "{{.Ports}}", check=False)


def check_machine() -> None:
    """Refuse in one line, before anything is changed, what cannot work."""
    if os.geteuid() != 0:
        raise LabError("The lab starts a container engine: run it as root (for instance `sudo make up`).")
    if sys.version_info < PYTHON:
        raise LabError(f"Python {platform.python_version()} found, {'.'.join(map(str, PYTHON))} or newer wanted.")
    if not shutil.which("apt-get"):
        raise LabError("apt-get not found: the lab runs on Debian 12 or newer.")
    if memory_gib() < MEMORY_GIB:
        raise LabError(f"{memory_gib():.1f} GiB of memory found, {MEMORY_GIB} GiB wanted.")
    if lab_is_up():
        return  # the rest was true when the hosts were made
    missing = DISK_GIB - sum(directory_gib(path) for path in (LAB, ENGINE_DATA))
    for path in {LAB, ENGINE_DATA}:
        if disk_free_gib(path) < missing:
            raise LabError(f"{disk_free_gib(path):.1f} GiB free below {path.parent}, {missing:.1f} GiB wanted.")
    if port_owner_conflict(GATEWAY_PORT):
        raise LabError(f"Port {GATEWAY_PORT} on 127.0.0.1 is taken: free it, or set LAB_GATEWAY_PORT to another one.")
    route = overlapping_route(network())
    if route:
        raise LabError(f"The lab's network {network()} overlaps the route of {route}: set LAB_SUBNET to a free /24.")
    mirror = debian_mirror()
    if mirror:
        why = unreachable(f"{mirror}/dists/{SUITES['debian12']}/InRelease")
        if why:
            raise LabError(f"The Debian mirror {without_login(mirror)} cannot be read: {why}.")
    problem = python_index_problem()
    if problem:
        raise LabError(problem)


def directory_gib(path: Path) -> float:
    if not path.is_dir():
        return 0.0
    done = subprocess.run(["du", "-sk", str(path)], text=True, capture_output=True, check=False)
    return int(done.stdout.split()[0]) / 2**20 if done.stdout else 0.0


def pip_settings() -> dict[str, list[str]]:
    """The controller's pip settings that make a wheel reachable: what the hosts will need too."""
    settings: dict[str, list[str]] = {}
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], text=True, capture_output=True, check=False)
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        settings.setdefault(key.rpartition(".")[2], []).extend(value.strip().strip("'\"").replace("\\n", " ").split())
    for key in PIP_REACH:
        given = os.environ.get(f"PIP_{key.upper().replace('-', '_')}")
        if given:
            settings[key] = [*given.split(), *settings.get(key, [])]
    return {key: list(dict.fromkeys(values)) for key, values in settings.items()}


def python_index_problem() -> str:
    """Why pip, as it is set up here, finds nothing to install, or an empty string."""
    if (VENV / ".complete").exists() or not importlib.util.find_spec("pip"):
        return ""
    # A package of the lock: a directory of wheels made for this project has it too.
    command = [sys.executable, "-m", "pip", "index", "versions", "ansible-core", "-vv"]
    options = ["--no-input", "--no-cache-dir", "--disable-pip-version-check", "--retries", "0", "--timeout", "15"]
    try:
        done = subprocess.run(
            [*command, *options],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=20,
        )
    except subprocess.TimeoutExpired:
        return "The Python index cannot be read: pip got no answer within 20 s."
    if not done.returncode:
        return ""
    lines = done.stdout.strip().splitlines() or [f"code {done.returncode}"]
    why = next((line for line in lines if line.startswith("Could not fetch URL")), lines[-1])
    return f"The Python index cannot be read; pip says: {without_login(why).removesuffix(' - skipping')}"


def install_packages() -> None:
    missing = [name for name in PACKAGES if not package_present(name)]
    if not missing:
        return
    say(f"      installing {', '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    lock = ["-o", "DPkg::Lock::Timeout=300"]
    run(["apt-get", *lock, "update", "-q"], quiet=True, env=environment)
    run(["apt-get", *lock, "install", "-q", "-y", "--no-install-recommends", *missing], quiet=True, env=environment)


def package_present(name: str) -> bool:
    if name == "docker.io" and shutil.which("dockerd"):
        return True  # an engine from another source serves as well
    if name == "gcc" and shutil.which("gcc"):
        return True
    if name == "python3-venv" and not sys.executable.startswith("/usr/bin/"):
        return True  # this Python is not the distribution's, and brings its own venv
    done = subprocess.run(["dpkg-query", "-W", "-f=${Status}", name], text=True, capture_output=True, check=False)
    return done.stdout.endswith("ok installed")


def make_environment() -> None:
    """The controller's virtual environment, from the lock, made anew when the lock changed."""
    lock = ROOT / "requirements" / "dev.lock"
    wanted = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    marker = VENV / ".complete"
    if marker.exists() and marker.read_text(encoding="ascii") == wanted:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    say("      installing Ansible and the test tools (about half a minute)")
    run([sys.executable, "-m", "venv", VENV])
    # uv unpacks a hundred packages several times as fast as pip, which brings uv alone.
    found = re.search(r"^uv==.*?(?=^\S|\Z)", lock.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if not found:
        raise LabError(f"{lock}: names no version of uv; `make lock` writes the file anew.")
    first = VENV / "uv.lock"
    first.write_text(found[0], encoding="utf-8")
    run([VENV / "bin" / "pip", "install", "--quiet", "--require-hashes", "-r", first], quiet=True)
    options: list[str | Path] = ["--quiet", "--python", VENV / "bin" / "python", "--require-hashes", "-r", lock]
    run([VENV / "bin" / "uv", "pip", "install", *options], quiet=True, env=uv_environment())
    marker.write_text(wanted, encoding="ascii")


def uv_environment() -> dict[str, str]:
    """What tells uv, which reads no settings of pip's, where pip gets its wheels."""
    sources = wheel_sources()
    given = {
        "UV_DEFAULT_INDEX": sources["python_index"],
        "UV_INDEX": " ".join(sources["python_extra_indexes"]),
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # as pip does; the hashes of the lock say which file is meant
        "UV_FIND_LINKS": ",".join(sources["python_find_links"]),
        "SSL_CERT_FILE": sources["ca_bundle"],
        "UV_CACHE_DIR": str(LAB / "cache" / "uv-controller"),
    }
    return {**os.environ, **{name: value for name, value in given.items() if value}}


def wheel_sources() -> dict[str, Any]:
    """Where wheels come from, in the names that `.lab/inputs.json` has for it."""
    settings = pip_settings()
    certificates = [*settings.get("cert", []), os.environ.get("SSL_CERT_FILE", "")]
    return {
        "ca_bundle": next((path for path in certificates if path and Path(path).is_file()), ""),
        "python_index": next(iter(settings.get("index-url", [])), ""),
        "python_extra_indexes": [url for url in settings.get("extra-index-url", []) if url.startswith("http")],
        "python_find_links": [link for link in settings.get("find-links", []) if "://" in link or Path(link).is_dir()],
    }


# --- the container engine --------------------------------------------------------------------------------------------


def docker(*arguments: str, check: bool = True) -> str:
    """One call of the container engine's client; its output."""
    done = subprocess.run(["docker", *arguments], text=True, capture_output=True, check=False)
    if done.returncode and check:
        raise LabError(f"`docker {' '.join(arguments[:3])} …` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip() if not done.returncode else ""


def engine_answers() -> bool:
    return bool(shutil.which("docker") and docker("info", "--format", "{{.ServerVersion}}", check=False))


def choose_engine() -> None:
    """Point the client at our own engine where that one runs, else at whatever the machine has."""
    own = RUNTIME / "docker.sock"
    if "DOCKER_HOST" not in os.environ and os.access(own, os.W_OK):
        os.environ["DOCKER_HOST"] = f"unix://{own}"
        if not engine_answers():
            del os.environ["DOCKER_HOST"]


def packet_filter(family: str, table: str = "filter") -> list[str]:
    done = subprocess.run([family, "-t", table, "-S"], text=True, capture_output=True, check=False)
    return done.stdout.splitlines()


def remember_network() -> None:
    """What the engine will change in this machine's network, for `restore_network`."""
    known = {family: packet_filter(family) for family in ("iptables", "ip6tables")}
    if not any("-N DOCKER" in rule for rules in known.values() for rule in rules):
        forward = FORWARDING.read_text(encoding="ascii").strip()
        policies = {
            family: next((rule for rule in rules if rule.startswith("-P FORWARD")), "") for family, rules in known.items()
        }
        (RUNTIME / "network.json").write_text(json.dumps({"forward": forward, "policies": policies}), encoding="utf-8")


def restore_network() -> None:
    """Take away the engine's chains, and forward packets as before; an engine that was here first keeps its own."""
    path = RUNTIME / "network.json"
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for family, policy in before["policies"].items():
        for table in ("filter", "nat"):
            rules = packet_filter(family, table)
            chains = [rule.split()[1] for rule in rules if rule.startswith("-N DOCKER")]
            uses = [rule for rule in rules if rule.startswith("-A ") and not rule.startswith("-A DOCKER") and "-j DOCKER" in rule]
            steps = [["-D", *shlex.split(rule)[1:]] for rule in uses]
            steps += [["-F", chain] for chain in chains] + [["-X", chain] for chain in chains]
            steps += [policy.split()] if policy and table == "filter" else []
            for words in steps:
                subprocess.run([family, "-t", table, *words], capture_output=True, check=False)
    if FORWARDING.read_text(encoding="ascii").strip() != before["forward"]:
        FORWARDING.write_text(before["forward"], encoding="ascii")


def start_engine() -> None:
    if engine_answers():
        return
    say("      no container engine runs here: starting one of our own")
    RUNTIME.mkdir(parents=True, exist_ok=True)
    ENGINE_DATA.mkdir(parents=True, exist_ok=True)
    remember_network()
    log = LAB / "engine.log"
    own = RUNTIME / "docker.sock"
    (RUNTIME / "dockerd.pid").unlink(missing_ok=True)
    with log.open("ab") as stream:
        subprocess.Popen(
            [
                "dockerd",
                f"--host=unix://{own}",
                f"--data-root={ENGINE_DATA}",
                f"--exec-root={RUNTIME}/exec",
                f"--pidfile={RUNTIME}/dockerd.pid",
                "--bridge=none",
            ],
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    os.environ["DOCKER_HOST"] = f"unix://{own}"
    for _ in range(60):
        if engine_answers():
            return
        time.sleep(1)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
    raise LabError(f"The container engine did not start within 60 s; the end of {log}:\n{tail}")


def stop_engine() -> None:
    """End the engine that we started, and only that one."""
    pidfile = RUNTIME / "dockerd.pid"
    pid = int(pidfile.read_text(encoding="ascii")) if pidfile.exists() else 0

    def runs() -> bool:
        try:
            return str(RUNTIME).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    if runs():
        os.kill(pid, signal.SIGTERM)
        for _ in range(60):
            if not runs():
                break
            time.sleep(0.5)
        else:
            raise LabError(f"The container engine (process {pid}) did not end within 30 s: it and {ENGINE_DATA} are left.")
    restore_network()
    if not own_engine_containers()[1]:
        subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)  # where the engine was killed
    shutil.rmtree(RUNTIME, ignore_errors=True)


def own_engine_containers() -> tuple[list[str], list[str]]:
    """The containers in our own engine, whether it runs or not: those of this checkout, and all others."""
    ours: list[str] = []
    others: list[str] = []
    key, _, checkout = LABEL.partition("=")
    for path in sorted(ENGINE_DATA.glob("containers/*/config.v2.json")):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            name, labels = config["Name"].lstrip("/"), config["Config"]["Labels"] or {}
        except (OSError, ValueError, KeyError):
            name, labels = path.parent.name[:12], {}
        (ours if labels.get(key) == checkout else others).append(name)
    return ours, others


def labelled(kind: str, form: str) -> list[str]:
    """What carries this checkout's label in the engine: its identifiers or names."""
    listing = {"container": ("ps", "-a"), "network": ("network", "ls"), "image": ("images", "-a")}[kind]
    return sorted(set(docker(*listing, "--filter", f"label={LABEL}", "--format", form).split()))


def remove_labelled(kinds: Sequence[str]) -> None:
    removal = {"container": ("rm", "-fv"), "network": ("network", "rm"), "image": ("rmi", "-f")}
    for kind in kinds:
        for identifier in labelled(kind, "{{.ID}}"):
            docker(*removal[kind], identifier, check=False)  # what stays is told at the end


def leftovers(kinds: Sequence[str]) -> list[str]:
    """What carries this checkout's label and is still there."""
    names = {"container": "{{.Names}}", "network": "{{.Name}}", "image": "{{.Repository}}:{{.Tag}}"}
    found = {f"container {name}" for name in own_engine_containers()[0]}
    if engine_answers():
        found |= {f"{kind} {name}" for kind in kinds for name in labelled(kind, names[kind])}
    return sorted(found)


def make_image(name: str) -> None:
    """A root file system made from the Debian mirror, imported as a container image."""
    suite = SUITES[name]
    setup = HERE / "image" / "setup.sh"
    parts = [path.read_bytes() for path in sorted(setup.parent.iterdir()) if path.is_file()]
    wanted = hashlib.sha256(b"".join([*parts, HOST_PACKAGES.encode(), suite.encode()])).hexdigest()[:16]
    if docker("images", "-q", "--filter", f"label={LABEL}", f"{NAME}/{name}:{wanted}"):
        return
    say(f"      building the {suite} host image (about a minute)")
    archive = LAB / f"{name}.tar"
    command: list[str | Path] = ["mmdebstrap", "--variant=minbase", f"--include={HOST_PACKAGES}", "--quiet"]
    # An installed machine has package lists; `ansible-playbook --check` needs them on a host that nobody touched yet.
    command += ["--skip=cleanup/apt/lists", f'--customize-hook={setup} "$1"', suite, archive]
    mirror = debian_mirror()
    if mirror:
        command.append(mirror)
    run(command, quiet=True)
    docker(
        "import",
        *("--change", f"LABEL {LABEL}"),
        *("--change", 'CMD ["/usr/local/sbin/lab-init"]'),
        str(archive),
        f"{NAME}/{name}:{wanted}",
    )
    docker("tag", f"{NAME}/{name}:{wanted}", f"{NAME}/{name}:current")
    archive.unlink()


# --- inputs that the lab hands to its inventory ----------------------------------------------------------------------


def write_inputs() -> None:
    """Keys and the controller's settings, as the variables a real site would set (`.lab/inputs.json`)."""
    for name in ("ssh", "pki", "cache/uv", "cache/apt", "cache/bytecode"):
        (LAB / name).mkdir(parents=True, exist_ok=True)
    (LAB / "pki").chmod(0o700)
    key = LAB / "ssh" / "id_ed25519"
    if not key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NAME, "-f", key])
    api_key = LAB / "api_key"
    if not api_key.exists():
        descriptor = os.open(api_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, f"sk-{secrets.token_urlsafe(32)}\n".encode())
        os.close(descriptor)
    digest = hashlib.sha256(api_key.read_text(encoding="ascii").strip().encode()).hexdigest()
    inputs = {
        "api_key_sha256": digest,
        "debian_mirror": debian_mirror() or "",
        "gateway_port": GATEWAY_PORT,
        "label": LABEL,
        "name": NAME,
        "bridge": BRIDGE,
        "network": network(),
        "root": str(ROOT),
        **wheel_sources(),
    }
    text = json.dumps(inputs, indent=2, sort_keys=True) + "\n"
    path = LAB / "inputs.json"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)  # an index address may carry a password


def ansible_environment() -> dict[str, str]:
    environment = {
        **os.environ,
        "PATH": f"{VENV}/bin:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_HOME": str(LAB / "ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
    }
    for name in ("LC_ALL", "LANG"):
        if "UTF-8" not in environment.get(name, "").upper():
            environment[name] = "C.UTF-8"
    return environment


def playbook(*arguments: str | Path, quiet: bool = False) -> None:
    run([VENV / "bin" / "ansible-playbook", *arguments], quiet=quiet, cwd=ROOT, env=ansible_environment())


# --- a prompt ---------------------------------------------------------------------------------------------------------


def ask(prompt: str, max_tokens: int = 32) -> None:
    """Stream one completion through the gateway and print it as it arrives."""
    path = LAB / "endpoint.json"
    try:
        if not path.exists():
            raise LabError(f"The lab is not up ({path} is missing): run `make up` first.")
        endpoint = json.loads(path.read_text(encoding="utf-8"))
        key = Path(endpoint["api_key_file"]).read_text(encoding="ascii").strip()
        context = ssl.create_default_context(cafile=endpoint["ca_file"])
    except (OSError, ValueError, KeyError) as error:
        raise LabError(f"The lab's endpoint ({path}) cannot be read: {error!r}; `make up` writes it anew.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    body = {"model": endpoint["model"], "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    request = urllib.request.Request(
        endpoint["url"] + "/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    say(f"      {prompt!r} continues:")
    pieces = 0
    try:
        with urllib.request.urlopen(request, timeout=120, context=context) as stream:
            for raw in stream:
                line = raw.decode().strip()
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                text = json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                pieces += 1
                print(text, end="", flush=True)
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise LabError(f"No answer from {endpoint['url']}: {error}") from error
    if not pieces:
        raise LabError(f"{endpoint['url']} answered, but streamed no token.")
    say(f"\n      ({pieces} pieces streamed over TLS 1.3)")


# --- commands ---------------------------------------------------------------------------------------------------------


def prepare(steps: Steps, images: Sequence[str]) -> None:
    """Everything below the hosts: packages, environment, engine, images, keys."""
    steps("Checking this machine")
    check_machine()
    LAB.mkdir(exist_ok=True)
    steps("System packages")
    install_packages()
    steps("Python environment")
    make_environment()
    steps("Container engine")
    start_engine()
    steps(f"Host image{'s' if len(images) > 1 else ''}: {', '.join(images)}")
    with ThreadPoolExecutor() as pool:
        list(pool.map(make_image, images))
    write_inputs()


def command_prepare(_arguments: argparse.Namespace) -> None:
    prepare(Steps(5), list(SUITES))


def write_endpoint() -> dict[str, str]:
    """Leave for scripts where the service is and how to reach it; the CA's directory is for root alone."""
    certificate = LAB / "ca.pem"
    shutil.copyfile(LAB / "pki" / "ca.pem", certificate)
    certificate.chmod(0o644)
    endpoint = {
        "url": f"https://localhost:{GATEWAY_PORT}/v1",
        "model": "licence-llama",
        "ca_file": str(certificate),
        "api_key_file": str(LAB / "api_key"),
    }
    (LAB / "endpoint.json").write_text(json.dumps(endpoint, indent=2) + "\n", encoding="utf-8")
    return endpoint


def command_up(_arguments: argparse.Namespace) -> None:
    steps = Steps(8)
    prepare(steps, ["debian12"])
    steps("Hosts")
    playbook("tests/lab/create.yml", "-i", "inventories/lab")
    steps("site.yml: from bare hosts to a running service")
    playbook("site.yml", "-i", "inventories/lab")
    steps("A prompt through the gateway")
    endpoint = write_endpoint()
    hand_over()
    ask("This License does not grant permission to use the trade names")
    say("")
    say(f"Endpoint:  {endpoint['url']}   (model {endpoint['model']})")
    say(f"Key file:  {endpoint['api_key_file']}")
    say(f"CA file:   {endpoint['ca_file']}")
    say("The same for scripts: .lab/endpoint.json")


def hand_over() -> None:
    """Let the user who called sudo read what the lab left behind."""
    user, group = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if user and group:
        os.chown(LAB, int(user), int(group))
        for name in ("api_key", "endpoint.json", "inputs.json"):
            os.chown(LAB / name, int(user), int(group))


def command_ask(arguments: argparse.Namespace) -> None:
    ask(arguments.prompt, arguments.max_tokens)


def command_exec(arguments: argparse.Namespace) -> None:
    """Run a command in the lab's environment (virtual environment, engine, ansible settings)."""
    done = subprocess.run(arguments.command, check=False, cwd=ROOT, env=ansible_environment())
    raise SystemExit(done.returncode)


def command_down(_arguments: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise LabError("The lab's containers belong to root: run this as root (for instance `sudo make down`).")
    keep = os.environ.get("KEEP_CACHE", "") not in {"", "0"}
    kinds = ["container", "network"] if keep else ["container", "network", "image"]
    say("Removing the lab's hosts, network and images")
    if engine_answers():
        remove_labelled(kinds)
    elif shutil.which("docker") and (LAB / "inputs.json").exists() and not ENGINE_DATA.exists():
        raise LabError("The container engine that holds the lab's hosts does not answer: start it and run this again.")
    others = own_engine_containers()[1]
    if others:
        say(f"Kept the container engine and {ENGINE_DATA}: they hold what this checkout did not make ({', '.join(others)})")
    else:
        stop_engine()
    doomed = [LAB]
    if keep:
        say(f"Kept, as KEEP_CACHE asks: the images, {LAB}/cache and {LAB}/venv")
        doomed = [path for path in LAB.glob("*") if path.name not in {"cache", "venv"}]
    elif not others:
        doomed.append(ENGINE_DATA)
    for path in doomed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    left = leftovers(kinds) + [str(path) for path in doomed if path.exists()]
    if left:
        raise LabError(f"Not removed: {', '.join(left)}.")
    say("Done.")


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab.py", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, function, text in (
        ("prepare", command_prepare, "everything below the hosts, both images"),
        ("up", command_up, "hosts, site.yml and a first answer"),
        ("down", command_down, "remove all that the lab made"),
    ):
        commands.add_parser(name, help=text).set_defaults(function=function)
    question = commands.add_parser("ask", help="stream one completion through the gateway")
    question.add_argument("prompt")
    question.add_argument("--max-tokens", type=int, default=32)
    question.set_defaults(function=command_ask)
    execute = commands.add_parser("exec", help="run a command in the lab's environment")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    execute.set_defaults(function=command_exec)
    arguments = parser.parse_args()
    try:
        choose_engine()
        arguments.function(arguments)
    except LabError as error:
        say(f"\nerror: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped. Run the same command again to go on, or `make down` to remove what was made.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
