"""Tests of the Ray launcher: private clusters, dying actors, and the GPUs that an actor sees."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from shards import (
    DEFAULT_PROCESSES,
    SMOKE,
    Gate,
    arguments,
    expect_complete,
    generations,
    own_runs,
    start,
    statuses_of,
)
from sweep.processes.cpu import usable_cores

pytestmark = pytest.mark.slow
if importlib.util.find_spec("ray") is None and "CI" not in os.environ:
    pytest.skip("Ray is not installed (pip install .[ray])", allow_module_level=True)


def on_ray(actors: int, shards: int) -> tuple[str, ...]:
    """Return the overrides for actors on a private cluster."""
    return "hydra/launcher=ray", f"hydra.launcher.actors={actors}", f"hydra.launcher.shards={shards}"


def test_an_actor_that_dies_is_replaced(tiny: Path, tmp_path: Path, whole: Path) -> None:
    """The private cluster listens on loopback only and leaves no files."""
    outputs, gate, log = tmp_path / "outputs", Gate(tmp_path, after=5), tmp_path / "head.log"
    given = arguments(tiny, outputs, *on_ray(actors=2, shards=4), *gate.overrides, *DEFAULT_PROCESSES)
    with tempfile.TemporaryDirectory() as temporary:  # short enough for the names of Ray's sockets
        head = start(tmp_path, *given, environment=os.environ | {"TMPDIR": temporary})
        actor, other = gate.wait_for(2, head)
        assert psutil.Process(actor).nice() == psutil.Process(other).nice() == os.nice(0)  # as local workers
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        listening = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == "LISTEN"]
        os.kill(actor, signal.SIGKILL)
        gate.wait_for(3, head)  # including the replacement actor
        gate.open()
        assert head.wait(300) == 0, log.read_text()
        assert not list(Path(temporary).glob("sweep-ray-*"))
    assert log.read_text().count("its actor has died") == 1
    expect_complete(outputs)
    assert generations(outputs) == generations(whole)
    assert own_runs(outputs)[0].data.metrics["cost/engine_starts"] == 3
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_ray_with_vllm(tiny: Path, tmp_path: Path, vllm_whole: Path) -> None:
    head = start(tmp_path, *arguments(tiny, tmp_path / "outputs", *SMOKE, *on_ray(actors=1, shards=1)))
    assert head.wait(400) == 0, (tmp_path / "head.log").read_text()
    assert generations(tmp_path / "outputs") == generations(vllm_whole)
    assert statuses_of(tmp_path / "outputs") == {"FINISHED": 3}


# Prints the GPUs that actors see for each value of hydra.launcher.gpus. Ray does not check that the GPUs exist.
PROBE = """
import json, os, sys
from hydra_plugins.sweep_launchers import _ray_backend
from sweep.processes.cpu import usable_cores

class Actor:
    def __init__(self, number, cpus, free_threads):
        use_core_share(cpus, free_threads)

    def look(self):
        visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")  # in any order
        return os.environ.get("OMP_NUM_THREADS", "free"), usable_cores(), sorted(map(str, ray.get_gpu_ids())), sorted(filter(None, visible))

def look(backend):
    backend._set_default_gpus()
    actors = [backend._start_actor() for _ in range(backend._room())]  # keep all: a dropped actor returns its GPU
    seen = sorted(ray.get([actor.look.remote() for actor in actors]))
    for actor in actors:
        ray.kill(actor)
    return seen

_ray_backend.ShardActor, use_core_share = Actor, _ray_backend._use_core_share
there, tried = json.loads(sys.argv[1])
backends = [
    _ray_backend.RayBackend(actors=None, address="auto" if i else None, gpus=gpus, cpus=None, shards=None, say=print)
    for i, gpus in enumerate(tried)
]
import ray  # only after the backend has set its variables
ray.init(num_gpus=there, num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=backends[0]._folder)
backends[0]._connected = True
print(json.dumps([look(backend) for backend in backends]))
backends[0].close()
"""


def look_at_gpus(there: int, *tried: int | None) -> list[list[list[Any]]]:
    """Return OMP_NUM_THREADS, number of cores, assigned GPUs and visible GPUs of each actor, for each number of GPUs.

    Ray believes that the machine has four CPUs.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", PROBE, json.dumps([there, tried])]
    done = subprocess.run(
        command,
        env=environment | {"CUDA_VISIBLE_DEVICES": "0,1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[list[Any]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_actor_sees_only_its_gpus_and_uses_its_share_of_cpus() -> None:
    one_each, all_to_one, hidden = look_at_gpus(2, None, 2, 0)
    cores = usable_cores()
    half = cores // 2 or cores
    assert one_each == [["free", half, ["0"], ["0"]], ["free", half, ["1"], ["1"]]]
    assert all_to_one == [["free", half * 2, ["0", "1"], ["0", "1"]]]
    assert hidden == [["1", cores, [], []]] * 4


def test_actor_without_gpus_sees_none() -> None:
    [actors] = look_at_gpus(0, None)
    assert [(threads, ids) for threads, _, ids, _ in actors] == [("1", [])] * 4
