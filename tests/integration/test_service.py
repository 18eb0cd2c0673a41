# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The service as a client meets it: the `openai` client over TLS, good and bad keys, limits, and a server that dies."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from conftest import GOLDEN, Endpoint, wait_until
from testinfra.host import Host

PROMPTS = GOLDEN["prompts"]
UNIT = "onprem-model-server@licence-llama.service"


def private_address(host: Host) -> str:
    return host.check_output("hostname -I").split()[0]


def collapsed(text: str) -> str:
    return " ".join(text.split())


def request(
    endpoint: Endpoint, method: str, path: str, body: bytes | None = None, key: str | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection("localhost", endpoint.port, context=endpoint.context(), timeout=60)
    given = {"Authorization": f"Bearer {key}"} if key else {}
    connection.request(method, path, body, {"Content-Type": "application/json", **given, **headers})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_models_are_listed(endpoint: Endpoint) -> None:
    assert [model.id for model in endpoint.client().models.list()] == [endpoint.model]


def test_golden_prompts_pass_through_both_endpoints(endpoint: Endpoint) -> None:
    client = endpoint.client()
    good = {"completions": 0, "chat": 0}
    for item in PROMPTS:
        text = client.completions.create(
            model=endpoint.model, prompt=item["prompt"], max_tokens=item["max_tokens"], temperature=0
        )
        good["completions"] += collapsed(text.choices[0].text).startswith(collapsed(item["expected"]))
        chat = client.chat.completions.create(
            model=endpoint.model,
            messages=[{"role": "user", "content": item["prompt"]}],
            max_tokens=item["max_tokens"],
            temperature=0,
        )
        good["chat"] += collapsed(chat.choices[0].message.content or "").startswith(collapsed(item["expected"]))
    assert min(good.values()) >= GOLDEN["pass_rule"]["good_at_least"], good


def long_stream(endpoint: Endpoint, tokens: int) -> openai.Stream[Any]:
    """A stream that cannot end before its last token."""
    return endpoint.client().completions.create(
        model=endpoint.model,
        prompt="You",
        max_tokens=tokens,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )


def test_a_stream_says_what_the_whole_answer_says(endpoint: Endpoint) -> None:
    item = max(PROMPTS, key=lambda prompt: prompt["max_tokens"])
    stream = endpoint.client().completions.create(
        model=endpoint.model, prompt=item["prompt"], max_tokens=item["max_tokens"], temperature=0, stream=True
    )
    pieces = [chunk.choices[0].text for chunk in stream]
    assert collapsed("".join(pieces)).startswith(collapsed(item["expected"]))
    assert len(pieces) > 20


def test_a_stream_arrives_token_by_token(endpoint: Endpoint) -> None:
    # A model server whose processes share too few cores lets pieces wait at times (up to 0.6 s on two cores, seen beside
    # the gateway too), so one good stream of several tells: a gateway that buffers spoils each of them.
    tokens, seen = 480, []
    for _attempt in range(8):
        begun = time.monotonic()
        arrivals = [time.monotonic() - begun for _ in long_stream(endpoint, tokens)]
        assert len(arrivals) > tokens / 2
        moments = len({round(arrival, 3) for arrival in arrivals})
        if moments > tokens / 4 and arrivals[0] < arrivals[-1] / 2:
            return
        seen.append(f"{moments} moments from {arrivals[0]:.3f} s to {arrivals[-1]:.3f} s")
    pytest.fail(f"no stream arrived token by token: {'; '.join(seen)}")


@pytest.mark.parametrize("key", ["sk-wrong", "x" * 4096, "sk-' OR 1=1"])
def test_a_wrong_key_gets_401_and_no_detail(endpoint: Endpoint, key: str) -> None:
    with pytest.raises(openai.AuthenticationError) as error:
        endpoint.client(key).models.list()
    said = json.dumps(error.value.body).lower()
    assert not any(word in said for word in ("revoked", "expired", "unknown", "map", "haproxy", key.lower()))


def test_a_missing_key_gets_401(endpoint: Endpoint) -> None:
    assert request(endpoint, "GET", "/v1/models")[0] == 401


@pytest.mark.parametrize("path", ["/", "/metrics", "/tokenize", "/pause", "/v1/../metrics", "/v1/models/../../docs", "/v1"])
def test_a_path_outside_the_list_is_404(endpoint: Endpoint, path: str) -> None:
    assert request(endpoint, "GET", path, key=endpoint.key)[0] == 404


def test_a_body_over_the_limit_is_413(endpoint: Endpoint) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        endpoint.client().completions.create(model=endpoint.model, prompt="a" * (2 << 20), max_tokens=1)
    assert error.value.status_code == 413


def test_health_needs_no_key_and_tells_nothing(endpoint: Endpoint) -> None:
    status, body = request(endpoint, "GET", "/health")
    assert status == 200
    assert len(body) < 100


def test_tls_1_2_is_refused_and_1_3_spoken(endpoint: Endpoint) -> None:
    old = endpoint.context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("localhost", endpoint.port), timeout=10) as raw, pytest.raises(ssl.SSLError):
        old.wrap_socket(raw, server_hostname="localhost")
    with (
        socket.create_connection(("localhost", endpoint.port), timeout=10) as raw,
        endpoint.context().wrap_socket(raw, server_hostname="localhost") as secured,
    ):
        assert secured.version() == "TLSv1.3"


def test_reloads_drop_no_open_stream(endpoint: Endpoint, lab_host: Callable[[str], Host]) -> None:
    tokens, reloads, pause = 480, 12, 0.5
    lasted: list[float] = []
    failures: list[object] = []
    end = time.monotonic() + reloads * pause + 2

    def read() -> None:
        while time.monotonic() < end:
            begun, pieces = time.monotonic(), []
            try:
                pieces = [chunk.choices[0] for chunk in long_stream(endpoint, tokens)]
            except Exception as error:
                failures.append(error)
            if not pieces or pieces[-1].finish_reason != "length":
                failures.append(f"cut after {len(pieces)} pieces")
            lasted.append(time.monotonic() - begun)

    loop = f"for i in $(seq {reloads}); do systemctl reload haproxy || exit 1; sleep {pause}; done"
    lab_host("gateway1").check_output(f"systemd-run --quiet --collect --unit=onprem-test-reloads sh -c '{loop}'")
    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=180)
    gateway = lab_host("gateway1")
    wait_until(lambda: gateway.run("systemctl is-active --quiet onprem-test-reloads").rc != 0, 60, "the last reload")
    assert not failures, failures
    assert max(lasted) > 2 * pause, f"no stream lived through a reload: the longest lasted {max(lasted):.1f} s"


def test_logs_hold_neither_prompt_nor_answer_nor_key(endpoint: Endpoint, lab_host: Callable[[str], Host]) -> None:
    secret, started = "the-word-nobody-else-says", time.time() - 1
    prompt = f"{secret}: {PROMPTS[0]['prompt']}"
    answer = endpoint.client().completions.create(model=endpoint.model, prompt=prompt, max_tokens=16, temperature=0)
    completion = answer.choices[0].text.strip()
    assert len(completion) > 10
    time.sleep(1)
    for host in ("gateway1", "gpu1", "gpu2"):
        # The journal itself holds the commands of this test; what the services wrote is meant.
        journal = lab_host(host).check_output(
            "journalctl --quiet --output=cat -u haproxy -u 'onprem-model-server@*' --lines=5000"
        )
        assert secret not in journal, host
        assert completion not in journal, host
        assert endpoint.key not in journal, host
    assert any(
        entry.get("path") == "/v1/completions" and entry.get("status") in (200, "200")
        for entry in access_log(lab_host("gateway1"), started)
    )


def test_units_are_hardened(lab_host: Callable[[str], Host]) -> None:
    report = lab_host("gpu1").check_output(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
    assert float(report.split(": ")[1].split()[0]) <= 3.0


def test_the_api_listens_on_its_private_address_alone(lab_host: Callable[[str], Host]) -> None:
    listening = lab_host("gpu1").check_output("ss -Hltn 'sport = :8000'")
    assert [line.split()[3] for line in listening.splitlines()] == [private_address(lab_host("gpu1")) + ":8000"]


def access_log(gateway: Host, since: float) -> list[dict[str, Any]]:
    lines = gateway.check_output("journalctl --quiet --output=cat -u haproxy --lines=3000").splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    return [entry for entry in entries if entry["time"] >= since]


def test_a_killed_server_costs_only_what_it_was_answering_and_comes_back(
    endpoint: Endpoint, lab_host: Callable[[str], Host]
) -> None:
    gateway, gpu1 = lab_host("gateway1"), lab_host("gpu1")
    pid = gpu1.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    assert int(pid) > 1
    asked: list[tuple[float, object]] = []
    stop = threading.Event()

    def ask(stream: bool) -> None:
        client = endpoint.client()
        while not stop.is_set():
            begun, problem = time.time(), None
            try:
                answer = client.completions.create(
                    model=endpoint.model, prompt="You", max_tokens=60, stream=stream, extra_body={"ignore_eos": True}
                )
                last = list(answer)[-1] if stream else answer
                problem = None if last.choices[0].finish_reason == "length" else "cut"
            except Exception as error:
                problem = error
            asked.append((begun, problem))

    clients = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False, True, False)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: len(asked) > 8, 60, "the first answers")
        # The kernel frees a killed process's memory before it closes its port, and takes connections until then.
        gpu1.check_output(
            f"systemctl kill --signal=SIGKILL {UNIT} && "
            "timeout 10 sh -c 'while ss -Hltn \"sport = :8000\" | grep -q .; do sleep 0.02; done'"
        )
        killed = time.time()
        time.sleep(10)
    finally:
        stop.set()
        for client in clients:
            client.join(timeout=120)
    dead = time.time()
    # What was asked once its port was closed went to the other server, whether the gateway had noticed by then or not.
    lost = [(begun - killed, problem) for begun, problem in asked if problem and begun > killed]
    assert not lost, lost
    served = {entry["server"] for entry in access_log(gateway, killed) if entry.get("status") == 200}
    assert served == {"gpu2"}, served
    assert len([begun for begun, _problem in asked if begun > killed]) > 4

    client = endpoint.client()

    def serves_again() -> bool:
        client.completions.create(model=endpoint.model, prompt="You may", max_tokens=2)
        return any(entry.get("server") == "gpu1" and entry.get("status") == 200 for entry in access_log(gateway, dead))

    wait_until(serves_again, 400, "requests reach gpu1 again")
    assert gpu1.check_output(f"systemctl show --property=MainPID --value {UNIT}") != pid
