"""Where does the process that asks saturate? 8 engines and 64 runs on one machine, simulated from measured constants.

    python tests/benchmarks/scale_simulation.py [--engines 8] [--runs 64]

Each run is a process that computes on one core at a time. Its replies cost it CPU before and after an engine computes
them, each round costs CPU beside, and all runs share the cores. Training takes no time here, so the load is the
largest that such runs can make. The constants are those of records/scale.jsonl, which bench_scale.py writes.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import simpy
from form import figure, publish

RECORD = Path(__file__).parent / "records" / "scale.jsonl"
SLOTS = 64  # replies that an engine computes at once
RATES, CORES = (10, 50, 200), (4, 16)  # replies a second of an engine; cores of the asking machine
ROUNDS = 2
SATURATED = 0.9  # share of the cores at work from which the engines wait for them


@dataclass(frozen=True)
class Constants:
    """What was measured; each field names its figure."""

    reply_ms: float
    round_s: float
    replies: float
    round_kb: float
    adapter_mb: float
    peak_mb: float


FIGURES = {
    "reply_ms": "CPU of the asking process for a reply",
    "round_s": "CPU of the asking process for a round, without its replies",
    "replies": "replies and losses of a round",
    "round_kb": "between a run and its servers, for a round",
    "adapter_mb": "an adapter of the embedded model, to each server",
    "peak_mb": "peak memory of the asking process",
}


def recorded(path: Path = RECORD) -> dict[str, float]:
    """Figures by name; the later line of a part counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {each["name"]: each["value"] for line in lines for each in json.loads(line)["figures"]}


def constants(found: Mapping[str, float]) -> Constants:
    """The constants of a record. Raises KeyError if one is missing."""
    missing = [name for name in FIGURES.values() if name not in found]
    if missing:
        raise KeyError(f"{RECORD.name} has no figure {missing[0]!r}: run `make bench-scale` first.")
    return Constants(*(found[FIGURES[field.name]] for field in fields(Constants)))


def simulated(known: Constants, *, engines: int, runs: int, cores: int, rate: float) -> dict[str, float]:
    """Simulate runs on engines of `rate` replies a second each: replies a second, and shares of time at work."""
    world = simpy.Environment()
    machine = simpy.Resource(world, cores)
    servers = [simpy.Resource(world, SLOTS) for _ in range(engines)]
    busy = {"cores": 0.0, "engines": 0.0}
    replies = round(known.replies)

    def compute(process: Any, seconds: float) -> Iterator[Any]:
        with process.request() as alone:
            yield alone
            with machine.request() as core:
                yield core
                yield world.timeout(seconds)
                busy["cores"] += seconds

    def reply(process: Any, server: Any) -> Iterator[Any]:
        yield from compute(process, known.reply_ms / 2e3)
        with server.request() as slot:
            yield slot
            yield world.timeout(SLOTS / rate)
            busy["engines"] += 1 / rate
        yield from compute(process, known.reply_ms / 2e3)

    def run(number: int) -> Iterator[Any]:
        process = simpy.Resource(world, 1)
        for _ in range(ROUNDS):
            asked = [world.process(reply(process, servers[(number + row) % engines])) for row in range(replies)]
            yield world.all_of(asked)
            yield from compute(process, known.round_s)

    for number in range(runs):
        world.process(run(number))
    world.run()
    return {
        "replies": runs * ROUNDS * replies / world.now,
        "cores": busy["cores"] / (cores * world.now),
        "engines": busy["engines"] / (engines * world.now),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--record", type=Path, default=RECORD)
    wanted = parser.parse_args()
    known = constants(recorded(wanted.record))
    figures = []
    for cores in CORES:
        saturated = 0
        for rate in RATES:
            found = simulated(known, engines=wanted.engines, runs=wanted.runs, cores=cores, rate=rate)
            said = f"{cores} cores, engines of {rate} replies a second"
            figures.append(figure(f"{said}: replies a second", found["replies"]))
            figures.append(figure(f"{said}: cores at work", found["cores"], "share"))
            figures.append(figure(f"{said}: engines at work", found["engines"], "share"))
            saturated = saturated or (rate if found["cores"] > SATURATED else 0)
        figures.append(
            figure(f"{cores} cores saturate with engines of (0: with none of these)", saturated, "replies/s")
        )
        most = cores / (known.reply_ms / 1e3 + known.round_s / known.replies)
        figures.append(figure(f"{cores} cores: replies a second at most, with their rounds", most))
    figures.append(figure(f"memory of {wanted.runs} runs", wanted.runs * known.peak_mb / 1e3, "GB"))
    moved = known.round_kb / 1e3 + wanted.engines * known.adapter_mb
    figures.append(figure("moved by a round, with an adapter to each engine", moved, "MB"))
    publish("scale-simulation", figures, title=f"{wanted.engines} engines, {wanted.runs} runs on one machine")


if __name__ == "__main__":
    main()
