"""What replies from servers cost the process that asks: throughput by requests in flight, two servers, CPU, memory.

The servers are stand-ins in processes of their own, with a fixed time for a reply and a fixed number of slots,
so that the figures are about the client alone. Ratios are of one run.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from form import figure, publish

from nslora.tools.policies import served
from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policies.opening import open_policy
from nslora.tools.policies.probe_adapter import write_probe_adapter
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.testing.tiny_model import write_tiny_model
from nslora.tools.training.adapters import WEIGHTS, AdapterStore
from nslora.tools.training.settings import LoraSettings

REPLY_S, SLOTS = 0.1, 64  # of a stand-in: seconds for a reply, replies at once
IN_FLIGHT = (1, 8, 64)
ROWS, NEW_TOKENS = 512, 32
MOST_MB = 700
DEVICE = DeviceSettings(device="cpu", dtype="float32", threads=1)


class StandIn(BaseHTTPRequestHandler):
    """Answers in the form of vLLM, after a fixed time."""

    protocol_version = "HTTP/1.1"
    slots: threading.Semaphore
    root: str

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        models = {"data": [{"id": "base", "root": self.root, "max_model_len": 2048}]}
        self._send(models if self.path == "/v1/models" else {"version": "stand-in"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self._send({})
            return
        choice = {"token_ids": [65] * body["max_tokens"], "prompt_token_ids": body["prompt"]}
        if body.get("prompt_logprobs") is not None:
            nats = -1.0 if body["model"] == "base" else -2.0
            choice["prompt_logprobs"] = [None, *({str(i): {"logprob": nats}} for i in body["prompt"][1:])]
        with self.slots:
            time.sleep(REPLY_S)
        self._send({"choices": [choice]})

    def _send(self, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 256


def serve(root: str, slots: int) -> None:
    """Serve until the process is killed; the first line that it prints is its address."""
    handler = type("Handler", (StandIn,), {"slots": threading.Semaphore(slots), "root": root})
    server = Server(("127.0.0.1", 0), handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


@contextmanager
def stand_ins(root: Path, count: int, slots: int) -> Iterator[tuple[str, ...]]:
    """The addresses of servers in processes of their own."""
    argv = [sys.executable, __file__, "--serve", str(root), "--slots", str(slots)]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield tuple(process.stdout.readline().strip() for process in started if process.stdout)
    finally:
        for process in started:
            process.kill()
            process.wait()


def connected(model: Path, urls: tuple[str, ...], store: Path) -> Any:
    """A policy whose replies come from servers and whose training is launched: no weights here."""
    engine = EngineSettings(replies=urls, launch="torchrun")
    return open_policy(
        str(model), engine=engine, adapters=store, lora=LoraSettings(), device=DEVICE, thinking="off", notify=print
    )


def rate(policy: Any) -> tuple[float, float]:
    """Replies a second, and milliseconds of this process's CPU for a reply."""
    dialogues = [[{"role": "user", "content": f"Who keeps the mill of village {i}?"}] for i in range(ROWS)]
    began, cpu = time.monotonic(), time.process_time()
    policy.generate(dialogues, adapter=None, max_new_tokens=NEW_TOKENS)
    return ROWS / (time.monotonic() - began), 1e3 * (time.process_time() - cpu) / ROWS


def peak_mb(model: Path, store: Path) -> float:
    """The peak memory of a process that connects and asks for replies."""
    with stand_ins(model, 1, SLOTS) as urls:
        argv = [sys.executable, __file__, "--orchestrate", str(model), urls[0], str(store)]
        return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--slots", type=int, default=SLOTS, help=argparse.SUPPRESS)
    parser.add_argument("--orchestrate", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.slots)
    elif arguments.orchestrate:
        model, url, store = arguments.orchestrate
        rate(connected(Path(model), (url,), Path(store)))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        with tempfile.TemporaryDirectory(prefix="nslora-scale-") as name:
            sys.exit(not measured(Path(name)))


def measured(folder: Path) -> bool:
    """Measure and publish; returns whether every goal holds."""
    model, store = write_tiny_model(folder / "model"), folder / "adapters"
    rates: dict[int, float] = {}
    with stand_ins(model, 1, SLOTS) as urls:
        policy = connected(model, urls, store)
        for served.IN_FLIGHT in IN_FLIGHT:
            rates[served.IN_FLIGHT], cpu_ms = rate(policy)
    with stand_ins(model, 2, SLOTS // 8) as urls:
        pair = [rate(connected(model, urls[:count], store))[0] for count in (1, 2)]
    facts = ModelFacts.read("SmolLM2-135M-Instruct", lora=LoraSettings(), thinking="off", on_cpu=True)
    adapter = write_probe_adapter(facts, LoraSettings(), AdapterStore(store), folder / "probe")
    size = (store / adapter / WEIGHTS).stat().st_size
    ideal = min(SLOTS, IN_FLIGHT[-1]) / REPLY_S
    return publish(
        "scale",
        [
            *(figure(f"replies a second, {count} in flight", value) for count, value in rates.items()),
            figure("64 in flight against 1", rates[64] / rates[1], "times", at_least=8.0),
            figure("64 in flight against the servers' own rate", rates[64] / ideal, "share"),
            figure("two servers against one", pair[1] / pair[0], "times", at_least=1.7),
            figure("CPU of the asking process for a reply", cpu_ms, "ms"),
            figure("replies a second that one asking process can take", 1e3 / cpu_ms),
            figure("peak memory of the asking process", peak_mb(model, folder / "apart"), "MB", at_most=MOST_MB),
            figure("an adapter of the embedded model, to each server", size / 1e6, "MB"),
        ],
    )


if __name__ == "__main__":
    main()
