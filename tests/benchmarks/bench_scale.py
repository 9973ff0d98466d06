"""What servers, launchers and sweeps cost and bring: in flight, two servers, CPU, memory, bytes, two cores against one.

The servers of most parts are stand-ins in processes of their own, with a fixed time for a reply and a fixed number of
slots, so that the figures are about the client alone. Ratios are of one run. A part that is done is written to
records/scale.jsonl and not measured again.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import scale_parts
from form import Figure, commit, figure, machine, publish
from scale_simulation import RECORD

from nslora.tools.files import append_jsonl, read_jsonl
from nslora.tools.policies import served
from nslora.tools.policies.opening import open_policy
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.testing.tiny_model import write_tiny_model
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


def in_flight(folder: Path) -> list[Figure]:
    """Throughput against requests in flight, on one server, and the CPU of a reply."""
    model, rates = write_tiny_model(folder / "model"), dict[int, float]()
    with stand_ins(model, 1, SLOTS) as urls:
        policy = connected(model, urls, folder / "adapters")
        for served.IN_FLIGHT in IN_FLIGHT:
            rates[served.IN_FLIGHT], cpu_ms = rate(policy)
    return [
        *(figure(f"replies a second, {count} in flight", value) for count, value in rates.items()),
        figure("64 in flight against 1", rates[64] / rates[1], "times", at_least=8.0),
        figure("64 in flight against the servers' own rate", rates[64] * REPLY_S / SLOTS, "share"),
        figure("CPU of the asking process for a reply", cpu_ms, "ms"),
        figure("replies a second that one asking process can take", 1e3 / cpu_ms),
    ]


def two_servers(folder: Path) -> list[Figure]:
    """Two slow servers against one."""
    model = write_tiny_model(folder / "model")
    with stand_ins(model, 2, SLOTS // 8) as urls:
        pair = [rate(connected(model, urls[:count], folder / "adapters"))[0] for count in (1, 2)]
    return [figure("two servers against one", pair[1] / pair[0], "times", at_least=1.7)]


def memory(folder: Path) -> list[Figure]:
    """The peak memory of a process that connects and asks for replies."""
    model = write_tiny_model(folder / "model")
    with stand_ins(model, 1, SLOTS) as urls:
        argv = [sys.executable, __file__, "--orchestrate", str(model), urls[0], str(folder / "apart")]
        peak = float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return [figure("peak memory of the asking process", peak, "MB", at_most=MOST_MB)]


PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "in flight": in_flight,
    "two servers": two_servers,
    "memory": memory,
    "a round": scale_parts.a_round,
    "served against local": scale_parts.served_against_local,
    "torchrun": scale_parts.torchrun,
    "sweep": scale_parts.sweep_on_two_cores,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--again", action="store_true", help="measure them although they are on record")
    parser.add_argument("--record", type=Path, default=RECORD)
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
        sys.exit(not measured(arguments.only, arguments.record, again=arguments.again))


def measured(parts: Sequence[str], record: Path, *, again: bool) -> bool:
    """Measure parts that are not on record, add them to it, and publish all; returns whether every goal holds."""
    for part in parts:
        if again or part not in on_record(record):
            with tempfile.TemporaryDirectory(prefix="nslora-scale-") as name:
                found = PARTS[part](Path(name))
            for each in found:
                print(f"{part}: {each.name}: {each.value:.4g} {each.unit}", flush=True)
            line = {"part": part, "figures": [asdict(each) for each in found], "machine": machine(), "commit": commit()}
            append_jsonl(record, {**line, "date": datetime.now(UTC).isoformat(timespec="seconds")})
    known = on_record(record)
    return publish("scale", [Figure(**each) for part in PARTS if part in known for each in known[part]["figures"]])


def on_record(record: Path) -> dict[str, dict[str, Any]]:
    """The lines of a record by part; the later one counts."""
    return {line["part"]: line for line in read_jsonl(record)}


if __name__ == "__main__":
    main()
