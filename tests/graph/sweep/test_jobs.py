"""The executor on this machine: every job once, a failing one named, nothing left behind when it is stopped."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from langgraph.runtime import RunControl

from nslora.graph.sweep.jobs import Event, Job, LocalExecutor

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _jobs_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


def job(folder: Path, name: str, **arguments: object) -> Job:
    given = {"folder": str(folder), "name": name, **arguments}
    return Job(name, "sweep_jobs:noted", given, folder / "logs" / f"{name}.txt")


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_each_job_runs_once_and_a_failing_one_is_named_while_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    groups = [
        [job(tmp_path, "a"), job(tmp_path, "b", do="die"), job(tmp_path, "c")],
        [job(tmp_path, "d", do="refuse"), job(tmp_path, "e", do="raise")],
    ]
    events = list(LocalExecutor(2).run(groups, RunControl()))
    ended = {each.job.name: each for each in events if each.status != "started"}
    assert {name: each.status for name, each in ended.items()} == {
        "a": "finished", "b": "failed", "c": "finished", "d": "failed", "e": "failed",
    }  # fmt: skip
    assert sorted(ran(tmp_path)) == list("abcde")
    assert [name for name in ran(tmp_path) if name in "abc"] == list("abc")  # a group goes one after the other
    assert "SIGKILL" in ended["b"].error
    assert ended["d"].error == "that cannot be"
    assert ended["e"].error == "ValueError: a bug"
    assert "ValueError: a bug" in ended["e"].job.log.read_text()
    assert ended["a"].job.log.read_text() == "said by a\n"
    first, last = ended["a"].result, ended["c"].result
    assert first["threads"] == "3"
    assert first["worker"] == last["worker"]  # libraries are imported once for all jobs of a process
    assert len({first["pid"], last["pid"], *first["worker"]}) == 3  # and each job has a process of its own


def test_asked_to_stop_it_starts_nothing_more_and_ends_what_runs(tmp_path: Path) -> None:
    control = RunControl()
    seen: list[Event] = []
    groups = [[job(tmp_path, "a", do="drain", wait_s=60), job(tmp_path, "b")]]
    for event in LocalExecutor(1).run(groups, control):
        seen.append(event)
        while not (tmp_path / "ran").exists():
            time.sleep(0.02)
        time.sleep(0.1)  # until its handler stands
        control.request_drain()
    assert [(each.job.name, each.status) for each in seen] == [("a", "started"), ("a", "stopped")]
    assert ran(tmp_path) == ["a"]


def test_the_processes_end_with_the_one_that_asked(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path; from nslora.graph.sweep.jobs import Job, LocalExecutor, RunControl\n"
        "given = {'folder': sys.argv[2], 'name': 'a', 'wait_s': 60}\n"
        "job = Job('a', 'sweep_jobs:noted', given, Path(sys.argv[2]) / 'a.txt')\n"
        "for _ in LocalExecutor().run([[job]], RunControl()): pass\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(HERE), str(tmp_path)])
    while not (tmp_path / "ran").exists():
        time.sleep(0.05)
    children = [int(each) for each in Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()]
    grandchildren = [
        int(each) for pid in children for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
    assert grandchildren
    driver.kill()
    driver.wait()
    until = time.monotonic() + 10
    while any(map(alive, [*children, *grandchildren])):
        assert time.monotonic() < until
        time.sleep(0.05)
