# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A machine on which the lab cannot work is refused in one line, before anything is changed; `down` says what is left."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))
import lab

INDEX_PROBLEM = lab.python_index_problem


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine on which nothing was made yet and where all is well."""
    monkeypatch.setattr(lab, "LAB", tmp_path / "lab")
    monkeypatch.setattr(lab, "VENV", tmp_path / "lab/venv")
    monkeypatch.setattr(lab, "ENGINE_DATA", tmp_path / "engine")
    monkeypatch.setattr(lab, "lab_is_up", lambda: False)
    monkeypatch.setattr(lab, "overlapping_route", lambda _network: "")
    monkeypatch.setattr(lab, "port_owner_conflict", lambda _port: False)
    monkeypatch.setattr(lab, "debian_mirror", lambda: None)
    monkeypatch.setattr(lab, "python_index_problem", lambda: "")
    monkeypatch.setattr(lab, "memory_gib", lambda: 16.0)
    monkeypatch.setattr(lab, "disk_free_gib", lambda _path: 30.0)
    monkeypatch.setattr(lab.os, "geteuid", lambda: 0)
    yield tmp_path
    assert list(tmp_path.iterdir()) == [], "something was made before the machine was found fit"


def refusal() -> str:
    with pytest.raises(lab.LabError) as caught:
        lab.check_machine()
    return str(caught.value)


def test_a_fit_machine_passes(machine: Path) -> None:
    lab.check_machine()


def test_no_root(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.os, "geteuid", lambda: 1000)
    assert "run it as root" in refusal()


def test_little_memory(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "memory_gib", lambda: 7.7)
    assert refusal() == "7.7 GiB of memory found, 14 GiB wanted."


def test_a_full_disk(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "disk_free_gib", lambda _path: 3.2)
    assert "3.2 GiB free below" in refusal()
    assert "20.0 GiB wanted" in refusal()


def test_a_taken_port(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        assert lab.port_owner_conflict(holder.getsockname()[1])
        free = holder.getsockname()[1]
    assert not lab.port_owner_conflict(free)


def test_the_taken_port_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "port_owner_conflict", lambda _port: True)
    assert refusal() == f"Port {lab.GATEWAY_PORT} on 127.0.0.1 is taken: free it, or set LAB_GATEWAY_PORT to another one."


def test_an_overlapping_route(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "overlapping_route", lambda _network: "eth0 (10.0.0.0/8)")
    assert "overlaps the route of eth0 (10.0.0.0/8): set LAB_SUBNET" in refusal()


def test_a_network_that_another_lab_left_is_passed_over(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAB_SUBNET", raising=False)
    monkeypatch.setattr(lab, "overlapping_route", lambda network: "br-1" if network == lab.NETWORKS[0] else "")
    assert lab.network() == lab.NETWORKS[1]
    lab.check_machine()


def test_a_network_that_was_asked_for_is_not_replaced(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_SUBNET", "10.1.2.0/24")
    monkeypatch.setattr(lab, "overlapping_route", lambda network: "eth0" if network == "10.1.2.0/24" else "")
    assert "10.1.2.0/24 overlaps the route of eth0" in refusal()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_mirror_that_does_not_answer(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = f"http://127.0.0.1:{closed_port()}/debian"
    monkeypatch.setattr(lab, "debian_mirror", lambda: mirror)
    assert refusal() == f"The Debian mirror {mirror} cannot be read: [Errno 111] Connection refused."


def test_a_mirror_is_named_without_its_password(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "debian_mirror", lambda: f"http://me:hunter2@127.0.0.1:{closed_port()}/debian")
    assert "hunter2" not in refusal()


@pytest.fixture
def pip_index(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """pip itself, with this index as its only source."""
    monkeypatch.setattr(lab, "python_index_problem", INDEX_PROBLEM)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return lambda url: monkeypatch.setenv("PIP_INDEX_URL", url)


def test_an_index_that_does_not_answer_is_named_without_its_password(pip_index: Callable[[str], None]) -> None:
    port = closed_port()
    pip_index(f"http://me:hunter2@127.0.0.1:{port}/simple")
    said = refusal()
    assert said.startswith("The Python index cannot be read; pip says: Could not fetch URL ")
    assert f"//127.0.0.1:{port}/simple/" in said
    assert "Connection refused" in said
    assert "hunter2" not in said
    assert "\n" not in said


def test_an_index_that_pip_reads_passes(pip_index: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> None:
    index = tmp_path_factory.mktemp("index")
    (index / "ansible-core").mkdir()
    (index / "ansible-core/index.html").write_text('<a href="ansible_core-2.0-py3-none-any.whl">a</a>', encoding="ascii")
    pip_index(index.as_uri())
    lab.check_machine()


def test_an_index_that_hangs(pip_index: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_options: object) -> None:
        raise lab.subprocess.TimeoutExpired(command, 20)

    monkeypatch.setattr(lab.subprocess, "run", hang)
    monkeypatch.setattr(lab, "directory_gib", lambda _path: 0.0)
    assert refusal() == "The Python index cannot be read: pip got no answer within 20 s."


def test_no_pip_yet(pip_index: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pip_index(f"http://127.0.0.1:{closed_port()}/simple")
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda _name: None)
    lab.check_machine()


def test_uv_takes_wheels_from_where_pip_does(
    pip_index: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip_index("https://index.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"https://second.example/simple {tmp_path.as_uri()}")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path} /nowhere https://wheels.example/")
    given = lab.uv_environment()
    assert given["UV_DEFAULT_INDEX"] == "https://index.example/simple"
    assert given["UV_INDEX"] == "https://second.example/simple"
    assert given["UV_FIND_LINKS"] == f"{tmp_path},https://wheels.example/"


@pytest.mark.parametrize(
    ("ports", "up"),
    [("", False), ("\n\n", False), ("9100/tcp", False), ("\n127.0.0.1:8443->443/tcp\n", True)],
    ids=["nothing", "cache and tests' hosts", "an exposed port", "the gateway"],
)
def test_the_lab_is_up_when_its_gateway_runs(ports: str, up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.shutil, "which", lambda _name: "/usr/bin/docker")
    monkeypatch.setattr(lab, "docker", lambda *_arguments, check: ports)
    assert lab.lab_is_up() is up


# --- down ------------------------------------------------------------------------------------------------------------

OURS = lab.LABEL.partition("=")[2]


class Engine:
    """A container engine that holds what it is told, on which some removals fail."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers = True
        self.stuck = False
        self.removed: list[str] = []

    def make(self, name: str, checkout: str | None) -> None:
        path = self.root / "containers" / name
        path.mkdir(parents=True)
        labels = {"onprem.llm.lab": checkout} if checkout else None
        (path / "config.v2.json").write_text(json.dumps({"Name": f"/{name}", "Config": {"Labels": labels}}), encoding="utf-8")

    def __call__(self, *arguments: str, check: bool = True) -> str:
        if arguments[0] == "info":
            return "28" if self.answers else ""
        if arguments[0] == "ps":
            return "\n".join(lab.own_engine_containers()[0])
        if arguments[:2] == ("rm", "-fv") and not self.stuck:
            lab.shutil.rmtree(self.root / "containers" / arguments[2])
            self.removed.append(arguments[2])
        return ""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    """Our own engine with one host of this checkout, and a `.lab` with a cache."""
    engine = Engine(tmp_path / "engine")
    engine.make("gateway1", OURS)
    (tmp_path / "lab/cache").mkdir(parents=True)
    (tmp_path / "lab/inputs.json").touch()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(lab, "LAB", tmp_path / "lab")
    monkeypatch.setattr(lab, "ENGINE_DATA", engine.root)
    monkeypatch.setattr(lab, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(lab, "BRIDGE", f"test{os.getpid()}")  # not that of a lab which is up
    monkeypatch.setattr(lab, "docker", engine)
    monkeypatch.setattr(lab.shutil, "which", lambda _name: "/usr/bin/docker")
    monkeypatch.setattr(lab.os, "geteuid", lambda: 0)
    monkeypatch.delenv("KEEP_CACHE", raising=False)
    return engine


def down() -> None:
    lab.command_down(lab.argparse.Namespace())


def test_down_removes_all(engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    down()
    assert engine.removed == ["gateway1"]
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out.endswith("Done.\n")
    down()  # and again, with nothing there


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network interface")
def test_down_removes_the_bridge_of_an_engine_that_was_killed(engine: Engine) -> None:
    lab.run(["ip", "link", "add", lab.BRIDGE, "type", "bridge"])
    down()
    assert not Path("/sys/class/net", lab.BRIDGE).exists()


def test_down_keeps_the_cache(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEP_CACHE", "1")
    down()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "lab"]
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["cache"]


@pytest.mark.parametrize("checkout", ["/another/checkout", None], ids=["another checkout's", "no label"])
def test_down_leaves_an_engine_that_others_use(
    checkout: str | None, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.make("theirs", checkout)
    down()
    assert engine.removed == ["gateway1"]
    assert [path.name for path in (engine.root / "containers").iterdir()] == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "run"]
    out = capsys.readouterr().out
    assert "they hold what this checkout did not make (theirs)" in out
    assert out.endswith("Done.\n")


def test_a_container_that_cannot_be_read_is_not_ours(engine: Engine) -> None:
    engine.make("broken", OURS)
    (engine.root / "containers/broken/config.v2.json").write_text("{", encoding="ascii")
    assert lab.own_engine_containers() == (["gateway1"], ["broken"])


@pytest.mark.parametrize("answers", [True, False], ids=["removal fails", "engine is down"])
def test_down_tells_what_is_left(answers: bool, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.make("theirs", "/another/checkout")
    engine.answers, engine.stuck = answers, True
    with pytest.raises(lab.LabError, match=r"^Not removed: container gateway1\.$"):
        down()
    assert "Done" not in capsys.readouterr().out


def test_an_engine_alone_goes_with_what_is_stuck_in_it(engine: Engine, tmp_path: Path) -> None:
    engine.answers, engine.stuck = False, True
    down()
    assert list(tmp_path.iterdir()) == []


def test_down_needs_the_machines_engine(engine: Engine, tmp_path: Path) -> None:
    lab.shutil.rmtree(engine.root)
    engine.answers = False
    with pytest.raises(lab.LabError, match="does not answer"):
        down()
    assert (tmp_path / "lab/inputs.json").exists()


def test_an_engine_that_does_not_end_is_told(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"]
    with lab.subprocess.Popen([*program, str(lab.RUNTIME)], stdout=lab.subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        (lab.RUNTIME / "dockerd.pid").write_text(str(process.pid), encoding="ascii")
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)
        with pytest.raises(lab.LabError, match=rf"process {process.pid}\) did not end"):
            down()
        process.kill()
    assert engine.root.exists()


# --- the endpoint ----------------------------------------------------------------------------------------------------


def test_the_ca_certificate_is_for_everybody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lab, "LAB", tmp_path)
    (tmp_path / "pki").mkdir(mode=0o700)
    (tmp_path / "pki/ca.pem").write_text("certificate", encoding="ascii")
    (tmp_path / "pki/ca.pem").chmod(0o600)
    given = lab.write_endpoint()
    assert given == json.loads((tmp_path / "endpoint.json").read_text(encoding="utf-8"))
    assert given["ca_file"] == str(tmp_path / "ca.pem")
    assert (tmp_path / "ca.pem").read_text(encoding="ascii") == "certificate"
    assert stat.S_IMODE((tmp_path / "ca.pem").stat().st_mode) == 0o644


def test_a_question_without_a_lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lab, "LAB", tmp_path)
    with pytest.raises(lab.LabError, match=r"The lab is not up .*: run `make up` first"):
        lab.ask("Hello")


@pytest.mark.parametrize("text", ["{", "{}", "key", "ca"])
def test_an_endpoint_that_cannot_be_read(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lab, "LAB", tmp_path)
    if text in {"key", "ca"}:
        (tmp_path / "api_key").write_text("sk-1", encoding="ascii")
        missing = str(tmp_path / "missing")
        given = {"api_key_file": str(tmp_path / "api_key"), "ca_file": missing}
        text = json.dumps(given if text == "ca" else {**given, "api_key_file": missing})
    (tmp_path / "endpoint.json").write_text(text, encoding="ascii")
    with pytest.raises(lab.LabError, match=r"cannot be read: .*; `make up` writes it anew"):
        lab.ask("Hello")
