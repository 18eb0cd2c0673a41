# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Prove that an environment computes: a matrix product and its gradient, every element compared with an exact reference.

    python -I prove.py [--seconds N] FRAMEWORK DEVICE     with the environment's own Python

Prints one line of JSON. Its `verdict`, and the code this ends with:

    PASS       0  every element is right, on the device that was asked for
    NO_DEVICE  3  a CUDA environment on a host that has no NVIDIA device: every element is right, but on the CPU
    FAIL       1  anything else, among it a GPU that is there and that the framework cannot use

The entries are small integers, so that product and gradient are exact in float32, in whatever order they are summed, and in
TF32 too: no tolerance hides a wrong element.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# With entries of -2 to 2, a product is at most 4 * INNER = 2048, which has the 11 bits of TF32, and an element of the gradient
# at most 2048 * 2 * OUTER = 2**22, which has the 24 bits of float32.
OUTER, INNER = 1024, 512
# Do not take the memory of a GPU that a model server uses; write nothing below a home that may not be there.
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "CUDA_CACHE_DISABLE": "1",
    "HOME": "/nonexistent",
    "no_proxy": "*",
}

Result = dict[str, Any]


def nvidia_devices(root: Path = Path("/")) -> list[str]:
    """NVIDIA GPUs of this host, as device nodes or on the PCI bus: one without its driver is there all the same."""
    found = [node.name for node in sorted((root / "dev").glob("nvidia[0-9]*"))]
    for card in sorted((root / "sys/bus/pci/devices").glob("*")):
        try:
            vendor, kind = ((card / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):  # a display or 3D controller
            found.append(card.name)
    return found


def matrices(outer: int = OUTER, inner: int = INNER) -> tuple[Any, Any]:
    import numpy

    numbers = numpy.random.default_rng(20260101)
    return tuple(numbers.integers(-2, 3, size).astype(numpy.float32) for size in ((outer, inner), (inner, outer)))


def largest_error(found: Any, exact: Any) -> float:
    """Infinite where something is not a number, or of another shape."""
    import numpy

    if found.shape != exact.shape or not numpy.isfinite(found).all():
        return float("inf")
    return float(abs(found.astype(numpy.float64) - exact).max())


def compared(product: Any, gradients: tuple[Any, Any]) -> Result:
    """Against float64, in which these integers are exact. The gradient is that of half the sum of the product's squares."""
    import numpy

    left, right = (matrix.astype(numpy.float64) for matrix in matrices())
    exact = left @ right
    exact_gradients = (exact @ right.T, left.T @ exact)
    return {
        "product_max_error": largest_error(product, exact),
        "gradient_max_error": max(map(largest_error, gradients, exact_gradients)),
    }


def pytorch(gpu: bool) -> Result:
    import torch

    device = torch.device("cuda:0" if gpu else "cpu")
    left, right = (torch.from_numpy(matrix).to(device).requires_grad_() for matrix in matrices())
    product = left @ right
    (product.square().sum() / 2).backward()
    name = f"{product.device} ({torch.cuda.get_device_name(device)})" if gpu else str(product.device)
    values = [tensor.detach().cpu().numpy() for tensor in (product, left.grad, right.grad)]
    return {"version": torch.__version__, "computed_on": name, **compared(values[0], (values[1], values[2]))}


def tensorflow(gpu: bool) -> Result:
    import tensorflow

    tensorflow.config.set_soft_device_placement(False)
    gpus = tensorflow.config.list_physical_devices("GPU")
    if gpu and not gpus:
        raise RuntimeError("TensorFlow lists no GPU among its devices")
    with tensorflow.device("/GPU:0" if gpu else "/CPU:0"), tensorflow.GradientTape() as tape:
        left, right = (tensorflow.Variable(matrix) for matrix in matrices())
        product = left @ right
        half = tensorflow.reduce_sum(tensorflow.square(product)) / 2
    gradients = tape.gradient(half, [left, right])
    name = product.device.rpartition("device:")[2]
    if gpu:
        name += f" ({tensorflow.config.experimental.get_device_details(gpus[0]).get('device_name')})"
    values = [tensor.numpy() for tensor in (product, *gradients)]
    return {"version": tensorflow.__version__, "computed_on": name, **compared(values[0], (values[1], values[2]))}


def jax(gpu: bool) -> Result:
    import jax
    import numpy

    (device, *_more) = jax.devices("cuda" if gpu else "cpu")

    def half(left: Any, right: Any) -> Any:
        product = left @ right
        return (product**2).sum() / 2, product

    placed = (jax.device_put(matrix, device) for matrix in matrices())
    (_half, product), gradients = jax.jit(jax.value_and_grad(half, argnums=(0, 1), has_aux=True))(*placed)
    (used,) = product.devices()
    name = f"{used.platform}:{used.id} ({used.device_kind})" if gpu else f"{used.platform}:{used.id}"
    values = [numpy.asarray(array) for array in (product, *gradients)]
    return {"version": jax.__version__, "computed_on": name, **compared(values[0], (values[1], values[2]))}


def triton_client(_gpu: bool) -> Result:
    """Both clients ask a server of this process, on the loopback, which reads the protocol without their help over HTTP."""
    from importlib.metadata import version

    import grpc
    import numpy
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.grpc import service_pb2, service_pb2_grpc
    from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

    left, right = matrices(256, 64)
    exact = left.astype(numpy.float64) @ right.astype(numpy.float64)

    def product(shapes: list[list[int]], contents: list[bytes]) -> Any:
        return numpy.matmul(*(numpy.frombuffer(raw, "<f4").reshape(shape) for shape, raw in zip(shapes, contents)))

    class Http(http.server.BaseHTTPRequestHandler):
        """KServe's protocol, version 2, with the extension for binary tensors."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers["Inference-Header-Content-Length"])
            tensors, rest, contents = json.loads(body[:length])["inputs"], body[length:], []
            for tensor in tensors:
                size = tensor["parameters"]["binary_data_size"]
                contents.append(rest[:size])
                rest = rest[size:]
            answer = product([tensor["shape"] for tensor in tensors], contents)
            output = {
                "name": "product",
                "datatype": "FP32",
                "shape": answer.shape,
                "parameters": {"binary_data_size": answer.nbytes},
            }
            header = json.dumps({"model_name": "product", "model_version": "1", "outputs": [output]}).encode()
            self.send_response(200)
            self.send_header("Inference-Header-Content-Length", str(len(header)))
            self.send_header("Content-Length", str(len(header) + answer.nbytes))
            self.end_headers()
            self.wfile.write(header + answer.tobytes())

        def log_message(self, *_words: Any) -> None:
            pass

    class Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, _context: Any) -> Any:
            answer = product([list(tensor.shape) for tensor in request.inputs], list(request.raw_input_contents))
            response = service_pb2.ModelInferResponse(model_name="product", raw_output_contents=[answer.tobytes()])
            response.outputs.add(name="product", datatype="FP32", shape=answer.shape)
            return response

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Http)
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    grpc_server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Grpc(), grpc_server)
    ports = {tritonclient.http: http_server.server_port, tritonclient.grpc: grpc_server.add_insecure_port("127.0.0.1:0")}
    grpc_server.start()
    errors = []
    for client, port in ports.items():
        inputs = [client.InferInput(name, matrix.shape, "FP32") for name, matrix in (("left", left), ("right", right))]
        for tensor, matrix in zip(inputs, (left, right)):
            tensor.set_data_from_numpy(matrix)
        with client.InferenceServerClient(f"127.0.0.1:{port}") as connection:
            answer = connection.infer("product", inputs).as_numpy("product")
        errors.append(largest_error(answer, exact))
    grpc_server.stop(None)
    http_server.shutdown()
    words = numpy.array(["prompt", "", "\N{SNOWMAN}"], dtype=object)
    read = deserialize_bytes_tensor(serialize_byte_tensor(words).item())
    if [word.decode() for word in read] != list(words):
        raise RuntimeError(f"the strings {list(words)} came back from their serialised form as {list(read)}")
    return {
        "version": version("tritonclient"),
        "computed_on": "cpu",
        "product_max_error": max(errors),
        "gradient_max_error": None,
        "not_proven": "a client has no gradient, and it asked a stand-in on the loopback over HTTP and gRPC, not Triton itself",
    }


FRAMEWORKS: dict[str, Callable[[bool], Result]] = {
    "pytorch": pytorch,
    "tensorflow": tensorflow,
    "jax": jax,
    "triton_client": triton_client,
}


def apart(work: Callable[[], Result], seconds: int) -> Result:
    """The result of the work, done by a child: a framework that is killed, hangs or prints does no harm to the one line."""
    said = os.memfd_create("said")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(ENVIRONMENT)
        try:
            result = work()
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    signal.signal(signal.SIGALRM, lambda *_words: os.kill(child, signal.SIGKILL))
    signal.alarm(seconds)
    with os.fdopen(reading, "rb") as stream:
        text = stream.read()
    status = os.waitpid(child, 0)[1]
    late = not signal.alarm(0)
    if text:
        result = json.loads(text)
    elif late:
        result = {"error": f"not done after {seconds} s"}
    else:
        code = os.waitstatus_to_exitcode(status)
        hint = ": this processor lacks instructions that the build uses" if code == -signal.SIGILL else ""
        result = {"error": f"killed by signal {-code}{hint}" if code < 0 else f"ended with code {code}"}
    if "error" in result:
        os.lseek(said, 0, os.SEEK_SET)
        lines = os.read(said, 1 << 20).decode(errors="replace").splitlines()
        result["said"] = [line.strip()[:300] for line in lines if line.strip()][-6:]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="prove.py")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("framework", choices=FRAMEWORKS)
    parser.add_argument("device", help="cpu, or a CUDA set")
    arguments = parser.parse_args()
    asked = arguments.device != "cpu"
    devices = nvidia_devices() if asked else []
    started = time.monotonic()
    result = {
        "framework": arguments.framework,
        "device": arguments.device,
        "python": platform.python_version(),
        **apart(lambda: FRAMEWORKS[arguments.framework](bool(devices)), arguments.seconds),
        "seconds": round(time.monotonic() - started, 1),
    }
    errors = [result.get("product_max_error"), result.get("gradient_max_error") or 0.0]
    if "error" in result:
        there = f", although this host has {', '.join(devices)}" if devices else ""
        verdict, why = "FAIL", f"{arguments.framework} for {arguments.device} cannot compute{there}"
    elif errors != [0.0, 0.0]:
        # No number of JSON is infinite.
        result = {key: str(value) if value == float("inf") else value for key, value in result.items()}
        verdict, why = "FAIL", "the result is wrong"
    elif asked and not devices:
        verdict, why = "NO_DEVICE", "no NVIDIA device: computed on the CPU"
    else:
        verdict, why = "PASS", "every element is right"
    print(json.dumps({"verdict": verdict, "why": why, **result}))
    return {"PASS": 0, "NO_DEVICE": 3, "FAIL": 1}[verdict]


if __name__ == "__main__":
    raise SystemExit(main())
