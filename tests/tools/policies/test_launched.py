"""Training by a launcher: with programs that play its part, and with torchrun itself."""

import errno
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

from nslora.tools.errors import BudgetError, DivergedError, RunError, SettingsError, StoppedError
from nslora.tools.policies import training_worker
from nslora.tools.policies.launched import JOB, LEASE, RESULT, LaunchedTraining
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.training.processes import processes

Make = Callable[..., LocalPolicy]
FULL = os.strerror(errno.ENOSPC)
ASKED = [{"role": "user", "content": "Who keeps the mill?"}]
# Plays launcher and worker: its first argument is what to do, its last but one the folder of the job.
PROGRAM = """
import json, os, pathlib, sys, time
folder, act = pathlib.Path(sys.argv[-2]), sys.argv[1]
job, starts = json.loads((folder / "job.json").read_text()), folder / "starts"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
(folder / "steps.jsonl").write_text('[1, 4, {"loss": 2.0}]\\n')
def answer(value): (folder / "result.json").write_text(json.dumps(value))
if act == "trains": answer(json.loads(sys.argv[2]))
if act == "third" and len(starts.read_text()) == 3: answer(json.loads(sys.argv[2]))
if act == "refuses": answer(json.loads(sys.argv[2])); sys.exit(1)
if act == "hangs": time.sleep(60)
if act in ("third", "dies"): print("Error: CUDA error"); os.kill(os.getpid(), 9)
"""


def rows(count: int = 5) -> tuple[TrainingRow, ...]:
    return tuple(TrainingRow(tuple(ASKED), f"keeper {i}", f"train-{i}", "reference") for i in range(count))


@pytest.fixture
def launched(tiny_policy: Make, tmp_path: Path) -> Callable[..., LaunchedTraining]:
    """A training engine whose launcher is a program of this file, or a real one."""
    (tmp_path / "program.py").write_text(PROGRAM)
    local = tiny_policy(top_blocks=2, early_stop_patience=None)

    def made(*arguments: str, command: str = "", shards: int = 2) -> LaunchedTraining:
        command = command or shlex.join([sys.executable, str(tmp_path / "program.py"), *arguments])
        return LaunchedTraining(command, local.facts, local.lora, local.adapters, shards)

    return made


def test_what_the_program_does_is_read_from_the_folder(
    launched: Callable[..., LaunchedTraining], tiny_policy: Make, tmp_path: Path
) -> None:
    policy = tiny_policy(top_blocks=2)
    result = replace(policy.train(TrainingJob(rows(), 1, seed=1)), log=({"loss": 1.0},))
    given = json.dumps({**vars(result)})
    job, seen = TrainingJob(rows(), 1, seed=1, progress=tmp_path / "job"), list[object]()
    assert launched("trains", given).train(job, lambda *step: seen.append(step)) == result
    assert launched("dies").train(job) == result  # recorded: nothing is started again
    (tmp_path / "job" / RESULT).unlink()
    (tmp_path / "job" / "starts").unlink()
    assert launched("third", given).train(job) == result  # twice killed
    written = json.loads((tmp_path / "job" / JOB).read_text())
    assert (written["shards"], len(written["rows"]), written["lora"]["top_blocks"]) == (2, 5, 2)
    assert not (tmp_path / "job" / LEASE).exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("refuses", {"error": "DivergedError", "message": "nan at step 3"}), DivergedError, "nan at step 3"),
        (("refuses", {"error": "SettingsError", "message": "1 process"}), SettingsError, "1 process"),
        (("refuses", {"error": "OSError", "message": "full", "errno": errno.ENOSPC}), OSError, "full"),
        (("dies", {}), StoppedError, r"3 starts \(Error: CUDA error\)"),
    ],
)
def test_a_program_that_fails_is_told_by_its_kind(
    launched: Callable[..., LaunchedTraining],
    tmp_path: Path,
    arguments: tuple[str, object],
    kind: type[Exception],
    words: str,
) -> None:
    job = TrainingJob(rows(), 1, seed=1, progress=tmp_path / "job")
    with pytest.raises(kind, match=words):
        launched(arguments[0], json.dumps(arguments[1])).train(job)
    assert len((tmp_path / "job" / "starts").read_text()) == (3 if arguments[0] == "dies" else 1)
    assert not (tmp_path / "job" / RESULT).exists()
    with pytest.raises(StoppedError, match=r"cannot be started \(No such file or directory: no-such-launcher\)"):
        launched(command="no-such-launcher --x").train(job)


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (DivergedError("nan at step 3"), {"error": "DivergedError", "message": "nan at step 3"}),
        (RunError("no policy"), {"error": "ModelError", "message": "no policy"}),
        (OSError(errno.ENOSPC, "full"), {"error": "OSError", "message": FULL, "errno": errno.ENOSPC}),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            {"error": "OSError", "message": FULL, "errno": errno.ENOSPC},
        ),
        (SafetensorError("header too large"), None),  # nothing that is known: the program is started again
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_ends_leaves_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, written: dict[str, object] | None, rank: int
) -> None:
    """What the disk said is written by the first process; what all of them meet alike, by whoever is faster."""

    def trained(*_: object) -> str:
        raise error

    def ends(status: int) -> None:
        raise SystemExit(status)

    (tmp_path / JOB).write_text("{}")
    monkeypatch.setattr(training_worker, "trained", trained)
    monkeypatch.setattr(os, "_exit", ends)
    for name, value in (("LOCAL_RANK", rank), ("RANK", rank), ("WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit, match="1"):
        training_worker.main(tmp_path, "token")
    found = json.loads((tmp_path / RESULT).read_text()) if (tmp_path / RESULT).exists() else None
    assert found == (None if rank and isinstance(error, OSError | SafetensorError) else written)


def test_a_job_that_nobody_waits_for_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", ends)
    lease = training_worker.Lease(tmp_path / LEASE, "mine")
    (tmp_path / LEASE).write_text("mine 1")
    lease.check()
    lease.check()  # soon after: it need not be renewed yet
    monkeypatch.setattr(training_worker, "LEASE_S", -1.0)
    with pytest.raises(SystemExit, match="75"):
        lease.check()
    (tmp_path / LEASE).write_text("mine 2")
    lease.check()
    for text in ("another's 1", None):
        (tmp_path / LEASE).write_text(text) if text else (tmp_path / LEASE).unlink()
        with pytest.raises(SystemExit, match="75"):
            lease.check()


@pytest.mark.parametrize(
    ("environment", "shards", "words"),
    [
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 2, ""),
        ({}, 1, ""),
        ({"WORLD_SIZE": "8"}, 1, ""),  # of a cluster's scheduler, not of a launcher
        ({}, 2, r"engine.shards is 2, but engine.launch started 1 process: .* use torchrun --nproc_per_node"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 2, "started 4 processes: make the two equal"),
        ({"ACCELERATE_USE_FSDP": "true"}, 1, "divides the model by FSDP or DeepSpeed"),
        ({"ACCELERATE_USE_DEEPSPEED": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 2, "MULTI_GPU"),
    ],
)
def test_a_launcher_starts_as_many_processes_as_shards(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], shards: int, words: str
) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=words) if words else nullcontext():
        training_worker.refuse_launcher(shards)


def test_a_budget_ends_the_program(launched: Callable[..., LaunchedTraining], tmp_path: Path) -> None:
    def spent(done: int, total: int, values: object = None) -> None:
        raise BudgetError("no time left")

    started = time.monotonic()
    with pytest.raises(BudgetError):
        launched("hangs").train(TrainingJob(rows(), 1, seed=1, progress=tmp_path / "job"), spent)
    assert time.monotonic() - started < 30


def test_a_batch_in_shards_teaches_what_the_whole_batch_does(
    tiny_policy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five rows in batches of four: the last batch leaves a shard empty."""
    whole, halves = tiny_policy(fast=False), tiny_policy(fast=False)
    halves.shards = 2
    job = TrainingJob(rows(), 1, seed=1)
    one, two = whole.train(job), halves.train(job)
    assert one.adapter != two.adapter
    assert two.epoch_losses == pytest.approx(one.epoch_losses, rel=1e-5)
    assert two.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
    assert (two.steps, two.trained_tokens) == (one.steps, one.trained_tokens)
    assert "shards" not in whole.describe()
    assert halves.describe()["shards"] == 2
    monkeypatch.setenv("WORLD_SIZE", "8")  # of a cluster's scheduler, not of a launcher
    assert processes() == 1


@pytest.mark.engines
def test_torchrun_gives_the_adapter_of_one_process(
    launched: Callable[..., LaunchedTraining], tiny_policy: Make, tmp_path: Path
) -> None:
    """Two jobs in a row, the second from the adapter and the optimizer of the first; then a killed one."""
    local, torchrun = tiny_policy(top_blocks=2), "torchrun --standalone --nproc_per_node 2"
    local.shards = 2
    first = TrainingJob(rows(), 2, seed=1)
    alone = local.train(first)
    again = local.train(replace(first, seed=2, start=alone.adapter))
    elsewhere = launched(command=torchrun)
    elsewhere.adapters = replace(local.adapters, folder=tmp_path / "elsewhere")
    assert elsewhere.train(first).adapter == alone.adapter
    then = replace(first, seed=2, start=alone.adapter, progress=tmp_path / "second")
    assert elsewhere.train(then).adapter == again.adapter
    assert (elsewhere.adapters.folder / again.adapter / "optimizer.safetensors").read_bytes() == (
        local.adapters.folder / again.adapter / "optimizer.safetensors"
    ).read_bytes()


@pytest.mark.engines
def test_killed_processes_cost_no_result(
    launched: Callable[..., LaunchedTraining], tiny_policy: Make, tmp_path: Path
) -> None:
    """A rank dies, then the launcher; the third start goes on from a snapshot."""
    import psutil

    local, victims = tiny_policy(top_blocks=2, early_stop_patience=None), ["rank 1", "launcher"]
    local.shards = 2
    job = TrainingJob(rows(), 100, seed=1, progress=tmp_path / "job")
    wanted = local.train(replace(job, progress=None)).adapter
    reached: list[int] = []

    def kill(done: int, total: int, values: object = None) -> None:
        if not victims or done < max(reached, default=0) + 2:
            return
        reached.append(done)
        started = psutil.Process().children(recursive=True)
        ranks = [each for each in started if "RANK" in each.environ()]
        chosen = {
            "rank 1": [each for each in ranks if each.environ()["RANK"] == "1"],
            "launcher": [each for each in started if each.ppid() == os.getpid()],
        }[victims.pop(0)]
        for each in chosen:
            each.send_signal(signal.SIGKILL)

    result = launched(command="torchrun --standalone --nproc_per_node 2").train(job, kill)
    assert not victims
    assert result.adapter == wanted
    assert 0 < result.steps_done <= result.steps - reached[1] + 1


@pytest.mark.engines
def test_divergence_and_another_number_of_processes_are_refused(
    launched: Callable[..., LaunchedTraining], tmp_path: Path
) -> None:
    job = TrainingJob(rows(), 2, seed=1, progress=tmp_path / "job")
    with pytest.raises(SettingsError, match=r"engine.shards is 2, but engine.launch started 1 process:"):
        launched(command="accelerate launch --cpu --num_processes 2").train(job)
    diverges = launched(command="torchrun --standalone --nproc_per_node 2")
    diverges.lora = diverges.lora.model_copy(update={"max_loss_nats": 0.01})
    with pytest.raises(DivergedError, match="at step 1"):
        diverges.train(job)
