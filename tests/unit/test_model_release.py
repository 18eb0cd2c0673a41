# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Model releases: whatever is wrong is refused with a reason, and what was there before stays."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.module_utils import _model_release as library
from ansible_collections.onprem.llm.plugins.module_utils._model_release import ModelStore, ModelStoreError, converge_all, damaged

FIXTURES = Path(__file__).parents[1] / "fixtures/models/licence-llama"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def safetensors(fill: bytes = b"\x01", count: int = 4096) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return len(header).to_bytes(8, "little") + header + fill * count


def write_release(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    return folder


GOOD = {"config.json": b"{}", "weights/model.safetensors": safetensors()}


class Bench:
    """A store, and a source directory for each release."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "store"
        self.sources = tmp_path / "sources"

    def source(self, release: str, files: dict[str, bytes] = GOOD) -> Path:
        return write_release(self.sources / release, {**files, "release.txt": release.encode()})

    def store(self, release: str, source: dict[str, Any] | None = None, **model: Any) -> ModelStore:
        names = ("reserve_bytes", "verify", "huggingface_endpoint", "huggingface_token")
        settings = {key: model.pop(key) for key in names if key in model}
        given = source or {"type": "directory", "path": str(self.sources / release)}
        return ModelStore({"name": "m", "release": release, "source": given, **model}, {"root": str(self.root), **settings})

    def snapshot(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and path.name != ".lock"
        }

    @property
    def active(self) -> str:
        return (self.root / "m/current/release.txt").read_text(encoding="utf-8")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.source("1")
    made.store("1").converge(apply=True)
    return made


def test_a_release_is_fetched_and_active(bench: Bench) -> None:
    assert bench.active == "1"
    assert (bench.root / "m/current").readlink() == Path("releases/1")
    assert (bench.root / "m/releases/1/weights/model.safetensors").read_bytes() == GOOD["weights/model.safetensors"]
    assert not list((bench.root / "m").glob(".staging*"))


def test_a_second_run_changes_nothing(bench: Bench) -> None:
    before = bench.snapshot()
    result = bench.store("1").converge(apply=True)
    assert not result["changed"]
    assert result["commands"] == []
    assert bench.snapshot() == before


def test_the_source_need_not_be_there_for_what_is_here(bench: Bench) -> None:
    for path in sorted(bench.sources.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert not bench.store("1").converge(apply=True)["changed"]


def test_check_mode_says_the_same_and_does_nothing(bench: Bench) -> None:
    bench.source("2")
    before = bench.snapshot()
    predicted = bench.store("2").converge(apply=False)
    assert bench.snapshot() == before
    assert bench.active == "1"
    done = bench.store("2").converge(apply=True)
    assert predicted == done
    assert done["changed"] and bench.active == "2"


def truncated(folder: Path) -> None:
    path = folder / "weights/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def altered(folder: Path) -> None:
    path = folder / "weights/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def missing(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_manifest(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()


def torn_manifest(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("abc  config.json\n", encoding="utf-8")


def empty_manifest(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("", encoding="utf-8")


def named(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / "SHA256SUMS").open("a", encoding="utf-8") as stream:
            stream.write(f"{'0' * 64}  {path}\n")

    return change


def with_file(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)
        with (folder / "SHA256SUMS").open("a", encoding="utf-8") as stream:
            stream.write(f"{hashlib.sha256(content).hexdigest()}  {name}\n")

    return change


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return buffer.getvalue()


class Calling:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def link_outside(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (truncated, "is truncated|was altered or truncated"),
        (altered, "was altered"),
        (missing, "lacks config.json"),
        (no_manifest, "has no manifest SHA256SUMS"),
        (torn_manifest, "64 hex digits"),
        (empty_manifest, "names no file"),
        (named("../../etc/passwd"), "leaves the release"),
        (named("/etc/passwd"), "leaves the release"),
        (named("a\\b"), "leaves the release"),
        (named("a//b"), "plain form"),
        (named("CONFIG.json"), "twice"),
        (link_outside, "outside of the release"),
        (with_file("pytorch_model.bin", b"x"), "pickle"),
        (with_file("model.PT", b"x"), "pickle"),
        (named("release.txt/inner.txt"), "both cannot be"),
        (named("Weights"), "both cannot be"),
        (named("a\x01.txt"), "plain form"),
        (with_file("weights.dat", b"x"), "weights.dat is of no kind .* set allow_pickle: true"),
        (with_file("modelling.py", b"x = 1"), "modelling.py is of no kind .* set allow_pickle: true"),
        (with_file("model", b"x"), "model is of no kind"),
        (with_file("LICENSE.exe", b"x"), "LICENSE.exe is of no kind"),
        (with_file("figure.tiff", b"x"), "figure.tiff is of no kind"),
        (with_file("weights.txt", b"\x80\x01rest"), "holds a pickle"),
        (with_file("weights.txt", b"cos\nsystem\n(S'id'\ntR, and no end"), "holds a pickle"),
        (with_file("empty.txt", b"(lp0\n."), "holds a pickle"),
        (with_file("weights.json", zipped()), "zip archive"),
        (with_file("weights.model", gzip.compress(b"x")), "gzip archive"),
        (with_file("weights.md", tarred()), "tar archive"),
        (with_file("LICENSE", zipped()), "zip archive"),
        (with_file("b.safetensors", b"\x80\x04\x95" + b"x" * 64), "no safetensors file"),
        (with_file("c.safetensors", safetensors()[:-7]), "truncated or padded"),
        (with_file("d.safetensors", (5).to_bytes(8, "little") + b"nojsn"), "cannot be read"),
        (with_file("e.gguf", b"GGML0000"), "GGUF"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_touched(bench: Bench, change: Callable[[Path], None], said: str) -> None:
    change(bench.source("2"))
    before = bench.snapshot()
    with pytest.raises(ModelStoreError, match=said):
        bench.store("2").converge(apply=True)
    assert bench.active == "1"
    after = {name: content for name, content in bench.snapshot().items() if ".staging" not in name}
    assert after == before


def test_pickle_is_taken_when_told(bench: Bench) -> None:
    with_file("pytorch_model.bin", b"\x80\x04\x95")(bench.source("2"))
    assert bench.store("2", allow_pickle=True).converge(apply=True)["changed"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("content", [{"w": [1.0, 2]}, Calling()])
def test_a_pickle_of_any_protocol_is_seen(bench: Bench, protocol: int, content: Any) -> None:
    with_file("vocab.txt", pickle.dumps(content, protocol=protocol))(bench.source("2"))
    with pytest.raises(ModelStoreError, match=r"vocab\.txt holds a pickle"):
        bench.store("2").converge(apply=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("LICENSE", b"(c) 2026 The authors\nAll rights reserved.\nof course\n"),
        ("LICENSE-MODEL", b"Permission is hereby granted\nof this\n"),
        ("Notice", b"(including everything\nand the rest of it)\n"),
        ("USE_POLICY.md", b"1. Do no harm.\n"),
        ("README", b"N. Smith made this.\n"),
        ("merges.txt", b"#version: 0.2\ni n\nt h\n"),
        ("vocab.txt", b"0\n1\n2\n.\n"),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"),
        ("qwen.tiktoken", b"IQ== 0\nIg== 1\n"),
        ("chat_template.jinja", b"{{ bos_token }}"),
        ("config.yaml", b"a: 1\n"),
        (".gitattributes", b"*.safetensors filter=lfs\n"),
        ("empty.txt", b""),
    ],
)
def test_what_a_model_needs_is_taken(bench: Bench, name: str, content: bytes) -> None:
    with_file(name, content)(bench.source("2"))
    assert bench.store("2").converge(apply=True)["changed"]


@pytest.mark.parametrize("release", sorted(path.name for path in FIXTURES.iterdir()))
def test_the_models_of_the_tests_are_taken(bench: Bench, release: str) -> None:
    source = {"type": "directory", "path": str(FIXTURES / release)}
    assert bench.store(release, source).converge(apply=True)["fetched"]


def test_files_outside_the_manifest_are_left_out_and_told(bench: Bench) -> None:
    (bench.source("2") / "notes.txt").write_text("x", encoding="utf-8")
    result = bench.store("2").converge(apply=True)
    assert result["not_in_manifest"] == ["notes.txt"]
    assert not (bench.root / "m/current/notes.txt").exists()


def test_a_disk_too_small_is_refused_with_both_numbers(bench: Bench) -> None:
    bench.source("2")
    with pytest.raises(ModelStoreError, match=r"does not fit: \d+ bytes .* free .* wanted"):
        bench.store("2", reserve_bytes=1 << 60).converge(apply=True)
    assert bench.active == "1"


def test_models_that_fit_only_one_by_one_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    source = bench.source("2")
    size = sum(path.stat().st_size for path in source.rglob("*") if path.name != "SHA256SUMS" and path.is_file())
    free = namedtuple("free", "free")(size * 3 // 2)
    monkeypatch.setattr(library.shutil, "disk_usage", lambda _path: free)
    stores = [bench.store("2"), bench.store("2", name="n")]
    for apply in (False, True):
        with pytest.raises(ModelStoreError, match="The releases 2 of m, 2 of n do not fit together: "):
            converge_all(stores, apply)
    assert bench.active == "1"
    assert not list(bench.root.glob("*/.staging*"))
    assert bench.store("2").converge(apply=True)["changed"]


def test_a_model_named_twice_is_refused(bench: Bench) -> None:
    bench.source("2")
    with pytest.raises(ModelStoreError, match="m is named more than once"):
        converge_all([bench.store("1"), bench.store("2")], apply=True)


def failing(error: Exception, when: Callable[..., bool] = lambda *_given, **_named: True, then: Any = None) -> Callable[..., Any]:
    def fail(*given: Any, **by_name: Any) -> Any:
        if when(*given, **by_name):
            raise error
        return then(*given, **by_name)

    return fail


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(
    ("where", "what", "fail", "said"),
    [
        (Path, "read_bytes", failing(BROKEN), "Reading what .*sources/2 .*Input/output error"),
        (library.shutil, "copyfileobj", failing(FULL), "Fetching config.json of .*sources/2 .*No space left"),
        (library.shutil, "copyfileobj", failing(IncompleteRead(b"")), "Fetching config.json of .*sources/2 .*IncompleteRead"),
        (Path, "write_text", failing(FULL), "Putting the release 2 of m, which came from .*sources/2.*No space left"),
        (
            library.os,
            "replace",
            failing(BROKEN, lambda _here, there: Path(there).name == "2.json", os.replace),
            "Putting the release 2 of m.*Input/output error",
        ),
    ],
)
def test_a_failing_disk_is_told_in_words_and_leaves_nothing_half_done(
    bench: Bench, where: Any, what: str, fail: Callable[..., Any], said: str
) -> None:
    bench.source("2")
    before = bench.snapshot()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelStoreError, match=said) as caught:
        patch.setattr(where, what, fail)
        bench.store("2").converge(apply=True)
    assert str(caught.value).endswith(". The release 1 of m stays active.")
    assert {name: content for name, content in bench.snapshot().items() if ".staging" not in name} == before
    assert not (bench.root / "m/releases/2").exists()
    assert bench.active == "1"
    assert bench.store("2").converge(apply=True)["fetched"]
    assert bench.active == "2"


def test_a_damaged_release_stays_where_it_is_until_its_successor_is_whole(bench: Bench) -> None:
    path = bench.root / "m/releases/1/config.json"
    path.write_bytes(b"{ }")
    replace = failing(BROKEN, lambda _here, there: Path(there).name == "1.json", os.replace)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelStoreError, match="stays active"):
        patch.setattr(library.os, "replace", replace)
        bench.store("1").converge(apply=True)
    assert path.read_bytes() == b"{ }"
    bench.store("1").converge(apply=True)
    assert path.read_bytes() == b"{}"
    assert not list((bench.root / "m").glob(".old*"))


def test_what_was_staged_for_another_list_of_files_is_no_hindrance(bench: Bench) -> None:
    bench.source("2", {"a.txt/b.txt": b"x", "c.txt": b"x", "d.txt/e.txt/f.txt": b"x"})
    staging = bench.root / "m/.staging-2"
    write_release(staging, {"a.txt": b"old", "c.txt/d.txt": b"old", "d.txt/e.txt/old.txt": b"old"})
    assert bench.store("2").converge(apply=True)["fetched"]
    there = {path.relative_to(bench.root / "m/releases/2").as_posix() for path in (bench.root / "m/releases/2").rglob("*.txt")}
    assert there == {"a.txt", "a.txt/b.txt", "c.txt", "d.txt", "d.txt/e.txt", "d.txt/e.txt/f.txt", "release.txt"}


def test_a_release_never_changes(bench: Bench) -> None:
    write_release(bench.sources / "1", {"config.json": b'{"other": 1}'})
    other = bench.sources.rename(bench.sources.with_name("moved"))
    with pytest.raises(ModelStoreError, match="releases do not change"):
        bench.store("1", {"type": "directory", "path": str(other / "1")}).converge(apply=True)
    assert bench.active == "1"


def test_a_pinned_manifest_is_held(bench: Bench) -> None:
    bench.source("2")
    with pytest.raises(ModelStoreError, match="manifest_sha256 wants"):
        bench.store("2", manifest_sha256="0" * 64).converge(apply=True)


def test_the_last_releases_are_kept(bench: Bench) -> None:
    for release in ("2", "3", "4"):
        bench.source(release)
        result = bench.store(release, keep=2).converge(apply=True)
    assert result["removed"] == ["2"]
    assert sorted(path.name for path in (bench.root / "m/releases").iterdir() if path.is_dir()) == ["3", "4"]
    assert bench.store("3", keep=2).converge(apply=True)["fetched"] is False
    assert bench.active == "3"


@pytest.mark.parametrize("also_record", [False, True])
def test_an_old_release_that_somebody_deleted_is_no_error(bench: Bench, also_record: bool) -> None:
    bench.source("2")
    store = bench.store("2", keep=1)
    plan = store.plan()
    shutil.rmtree(bench.root / "m/releases/1")
    if also_record:
        (bench.root / "m/releases/1.json").unlink()
    with store.lock():
        store.carry_out(plan)
    assert plan.gone == ["1"]
    assert bench.active == "2"
    assert sorted(path.name for path in (bench.root / "m/releases").iterdir()) == ["2", "2.json"]


WEIGHTS = "weights/model.safetensors"


def removed(path: Path) -> None:
    path.unlink()


def shortened(path: Path) -> None:
    path.write_bytes(b"0123456789")


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (removed, f"{WEIGHTS} is missing"),
        (lambda path: shutil.rmtree(path.parent), f"{WEIGHTS} is missing"),
        (shortened, f"{WEIGHTS} has 10 bytes, {len(GOOD[WEIGHTS])} were recorded"),
        (touched, f"{WEIGHTS} changed since it was verified"),
    ],
)
def test_damage_is_seen_without_reading_and_a_run_repairs_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], reason: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(library, "file_digest", failing(AssertionError("a digest was computed")))
        assert damaged(bench.root, "m", "1") == ""
        change(bench.root / "m/releases/1" / WEIGHTS)
        assert damaged(str(bench.root), "m", "1") == reason
    assert bench.store("1").converge(apply=True)["fetched"] is (change is not touched)
    assert damaged(bench.root, "m", "1") == ""


@pytest.mark.parametrize("record", [None, "", "[]", '{"files": {}}', '{"files": {"a": 1}}', '{"files": {"a": {"size": 1}}}'])
def test_a_release_without_a_sound_record_is_damaged(bench: Bench, record: str | None) -> None:
    path = bench.root / "m/releases/1.json"
    path.unlink() if record is None else path.write_text(record, encoding="utf-8")
    assert damaged(bench.root, "m", "1") == "no record of its verification"
    assert bench.store("1").converge(apply=True)["fetched"]
    assert damaged(bench.root, "m", "1") == ""


@pytest.mark.parametrize("verify", ["fast", "full"])
def test_a_file_changed_on_the_host_is_fetched_again(bench: Bench, verify: str) -> None:
    path = bench.root / "m/releases/1/weights/model.safetensors"
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if verify == "full":  # the time alone does not give it away
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = bench.store("1", verify=verify).converge(apply=True)
    assert result["fetched"]
    assert path.read_bytes() == GOOD["weights/model.safetensors"]


def test_current_is_never_missing(bench: Bench) -> None:
    bench.source("2")
    stop, missed = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            try:
                (bench.root / "m/current/config.json").read_bytes()
            except OSError as error:
                missed.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(50):
        bench.store("2").converge(apply=True)
        bench.store("1").converge(apply=True)
    stop.set()
    watcher.join()
    assert not missed


def elsewhere(work: Callable[[], Any]) -> str:
    """What a second process is refused with when it does this; '' when it is not."""
    fork = multiprocessing.get_context("fork")
    said = fork.SimpleQueue()

    def run() -> None:
        try:
            work()
            said.put("")
        except Exception as error:
            said.put(repr(error))

    process = fork.Process(target=run)
    process.start()
    process.join()
    return said.get()


def test_a_second_run_beside_the_first_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes while the first makes its plan: what it would remove or fetch cannot change under it."""
    bench.source("2")
    bench.source("3")
    first, said = bench.store("2", keep=1), []
    listed = first.expendable

    def look() -> list[str]:
        gone = listed()
        said.append(elsewhere(lambda: bench.store("3", keep=1).converge(apply=True)))
        return gone

    monkeypatch.setattr(first, "expendable", look)
    assert first.converge(apply=True)["removed"] == ["1"]
    assert len(said) == 1 and "Another run is fetching m" in said[0]
    assert bench.active == "2"


def test_looking_takes_no_lock(bench: Bench) -> None:
    bench.source("2")
    with bench.store("1").lock():
        assert elsewhere(lambda: bench.store("2").converge(apply=False)) == ""
        assert "Another run is fetching m" in elsewhere(lambda: bench.store("2").converge(apply=True))


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with ranges; cuts the first answers of a file short when told, and plays a hub."""

    cut: dict[str, int] = {}
    seen: list[tuple[str, str | None]] = []
    tree: list[dict[str, Any]] = []
    tokens: list[tuple[str, str | None]] = []
    elsewhere = ""

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Range")))
        self.tokens.append((self.path, self.headers.get("Authorization")))
        if self.elsewhere and "/resolve/" in self.path:
            self.send_response(302)
            self.send_header("Location", self.elsewhere + self.path.replace("/resolve/", "/moved/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.startswith("/api/models/"):
            self.answer(json.dumps(self.tree).encode())
            return
        name = self.path.replace(f"/owner/name/resolve/{COMMIT}", "").replace(f"/owner/name/moved/{COMMIT}", "")
        path = Path(self.directory) / name.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        left = self.cut.get(name, 0)
        self.cut[name] = left - 1
        self.answer(content[begin:], 206 if begin else 200, len(content[begin:]) // 2 if left > 0 else None)

    def answer(self, body: bytes, status: int = 200, only: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:only])

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Any]]:
    """A server's address and its handler's class, which holds what was asked."""
    handler = type("Handler", (Mirror,), {"cut": {}, "seen": [], "tree": [], "tokens": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: handler(*given, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def mirror(bench: Bench) -> Iterator[str]:
    with serving(bench.sources) as (address, handler):
        bench.server = handler  # type: ignore[attr-defined]
        yield address


def pin(bench: Bench, release: str) -> str:
    return hashlib.sha256((bench.sources / release / "SHA256SUMS").read_bytes()).hexdigest()


def test_a_release_comes_from_a_mirror(bench: Bench, mirror: str) -> None:
    bench.source("2")
    store = bench.store("2", {"type": "http", "url": f"{mirror}/2"}, manifest_sha256=pin(bench, "2"))
    assert store.converge(apply=True)["changed"]
    assert bench.active == "2"


def test_plain_http_needs_a_pin(bench: Bench, mirror: str) -> None:
    bench.source("2")
    with pytest.raises(ModelStoreError, match="manifest_sha256"):
        bench.store("2", {"type": "http", "url": f"{mirror}/2"}).converge(apply=True)


def test_a_cut_connection_is_taken_up_where_it_broke(bench: Bench, mirror: str) -> None:
    bench.source("2")
    bench.server.cut = {"/2/weights/model.safetensors": 2}  # type: ignore[attr-defined]
    store = bench.store("2", {"type": "http", "url": f"{mirror}/2"}, manifest_sha256=pin(bench, "2"))
    store.converge(apply=True)
    ranges = [given for path, given in bench.server.seen if path.endswith("model.safetensors")]  # type: ignore[attr-defined]
    assert ranges[0] is None
    assert len(ranges) >= 3 and all(given and given != "bytes=0-" for given in ranges[-2:])
    assert bench.active == "2"


def test_a_run_that_gave_up_is_continued_by_the_next(bench: Bench, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.source("2")
    monkeypatch.setattr(library, "ATTEMPTS", 1)
    bench.server.cut = {"/2/weights/model.safetensors": 1}  # type: ignore[attr-defined]
    source = {"type": "http", "url": f"{mirror}/2"}
    with pytest.raises(ModelStoreError, match="What came is kept; run again"):
        bench.store("2", source, manifest_sha256=pin(bench, "2")).converge(apply=True)
    assert bench.active == "1"
    bench.store("2", source, manifest_sha256=pin(bench, "2")).converge(apply=True)
    assert bench.active == "2"
    assert bench.server.seen[-1][1] or bench.server.seen[-2][1]  # type: ignore[attr-defined]


def test_a_full_disk_is_no_reason_to_ask_the_server_again(bench: Bench, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.source("2")
    store = bench.store("2", {"type": "http", "url": f"{mirror}/2"}, manifest_sha256=pin(bench, "2"))
    monkeypatch.setattr(library.shutil, "copyfileobj", failing(FULL))
    with pytest.raises(ModelStoreError, match=r"Fetching config.json of http://.*No space left.*\. The release 1 of m stays"):
        store.converge(apply=True)
    assert [path for path, _range in bench.server.seen].count("/2/config.json") == 1  # type: ignore[attr-defined]
    assert bench.active == "1"


@pytest.mark.parametrize("when", ["manifest", "file"])
def test_a_list_or_file_that_ends_early_is_refused(bench: Bench, mirror: str, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    source = bench.source("2")
    monkeypatch.setattr(library, "ATTEMPTS", 1)
    pinned = pin(bench, "2")
    if when == "manifest":  # its first half is a whole manifest of its own
        text = (source / "SHA256SUMS").read_bytes()
        line = f"{'0' * 64}  {'x' * (len(text) - 67)}\n".encode()
        (source / "SHA256SUMS").write_bytes(text + line)
        pinned = hashlib.sha256(text).hexdigest()
    bench.server.cut = {"/2/SHA256SUMS" if when == "manifest" else "/2/config.json": 1}  # type: ignore[attr-defined]
    store = bench.store("2", {"type": "http", "url": f"{mirror}/2"}, manifest_sha256=pinned)
    with pytest.raises(ModelStoreError, match=r"ended after \d+ of \d+ bytes.* The release 1 of m stays active"):
        store.converge(apply=True)


def git_blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@pytest.fixture
def hub(bench: Bench, mirror: str) -> dict[str, Any]:
    """The fake hub's listing: large files with their SHA-256, small ones with git's digest, as the real one gives them."""
    bench.source("2")
    for path in sorted((bench.sources / "2").rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            entry = {
                "type": "file",
                "path": f"2/{path.relative_to(bench.sources / '2')}",
                "size": len(content),
                "oid": git_blob(content),
            }
            if path.suffix == ".safetensors":
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
            bench.server.tree.append(entry)  # type: ignore[attr-defined]
    return {"type": "huggingface", "repo": "owner/name", "revision": COMMIT}


def test_a_release_comes_from_a_hub(bench: Bench, mirror: str, hub: dict[str, Any]) -> None:
    result = bench.store("2", hub, huggingface_endpoint=mirror).converge(apply=True)
    assert result["fetched"]
    assert (bench.root / "m/current/2/weights/model.safetensors").read_bytes() == GOOD["weights/model.safetensors"]


def test_the_token_does_not_follow_a_redirect_to_another_server(bench: Bench, mirror: str, hub: dict[str, Any]) -> None:
    with serving(bench.sources) as (address, other):
        bench.server.elsewhere = address  # type: ignore[attr-defined]
        bench.store("2", hub, huggingface_endpoint=mirror, huggingface_token="secret").converge(apply=True)
    assert {token for _path, token in bench.server.tokens} == {"Bearer secret"}  # type: ignore[attr-defined]
    assert len(other.tokens) == len(bench.server.tree)  # type: ignore[attr-defined]
    assert {token for _path, token in other.tokens} == {None}


def test_the_token_follows_a_redirect_within_the_hub(bench: Bench, mirror: str, hub: dict[str, Any]) -> None:
    bench.server.elsewhere = mirror  # type: ignore[attr-defined]
    bench.store("2", hub, huggingface_endpoint=mirror, huggingface_token="secret").converge(apply=True)
    moved = [token for path, token in bench.server.tokens if "/moved/" in path]  # type: ignore[attr-defined]
    assert moved and set(moved) == {"Bearer secret"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"type": "file", "path": "2/config.json", "size": 1, "oid": "0"}, "twice"),
        ({"type": "file", "path": "2/config.json/x.txt", "size": 1, "oid": "0"}, "both cannot be"),
        ({"type": "file", "path": "x.txt"}, "gave no list of files"),
        ("error", "gave no list of files"),
    ],
)
def test_a_list_of_the_hub_that_cannot_be_is_refused(
    bench: Bench, mirror: str, hub: dict[str, Any], entry: Any, said: str
) -> None:
    bench.server.tree.append(entry)  # type: ignore[attr-defined]
    with pytest.raises(ModelStoreError, match=said):
        bench.store("2", hub, huggingface_endpoint=mirror).converge(apply=True)


@pytest.mark.parametrize("name", ["config.json", "weights/model.safetensors"])
def test_a_file_altered_on_the_hub_is_refused(bench: Bench, mirror: str, hub: dict[str, Any], name: str) -> None:
    path = bench.sources / "2" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelStoreError, match="was altered"):
        bench.store("2", hub, huggingface_endpoint=mirror).converge(apply=True)
    assert bench.active == "1"


def test_a_moving_revision_is_refused(bench: Bench, mirror: str, hub: dict[str, Any]) -> None:
    with pytest.raises(ModelStoreError, match="40 hex digits"):
        bench.store("2", {**hub, "revision": "main"}, huggingface_endpoint=mirror).converge(apply=True)


def test_a_hub_without_an_address_is_refused(bench: Bench, hub: dict[str, Any]) -> None:
    with pytest.raises(ModelStoreError, match="model_store_huggingface_endpoint"):
        bench.store("2", hub).converge(apply=True)


@pytest.mark.parametrize("name", ["../m", "", ".hidden", "a b"])
def test_names_that_leave_the_store_are_refused(bench: Bench, name: str) -> None:
    with pytest.raises(ModelStoreError, match="is not made of"):
        bench.store(name)
