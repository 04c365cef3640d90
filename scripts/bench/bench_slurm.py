"""A sweep on Slurm in shards, against one job for each point by hydra-submitit-launcher, on the same cluster.

    .venv/bin/python scripts/bench_slurm.py --plugin FOLDER [--points 24] [--shards 4] [--repeats 1]

FOLDER is where `pip install --no-deps --target FOLDER hydra-submitit-launcher==1.2.0` has put the plugin, which is no
part of this project.  Needs a cluster that `sbatch` finds.  Both ways generate, score and publish the same points of
the demo model; the one job for each point has its control in it, which takes a moment beside the engine's start, no
second run of that, and a store of its own, as many processes at once would be in each other's way.  Prints wall seconds
from the command to its end, and how many engines were started.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sweep.paths import conf_dir

GIVEN = ("transform=scale", "prompts.limit=32", "sampling.max_tokens=32")


def main() -> None:
    """Run both ways in turn, and print their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugin", type=Path, required=True)
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    factors = ",".join(f"{1 + i / options.points:.4f}" for i in range(1, options.points + 1))
    ours, theirs = [], []
    for _ in range(options.repeats):
        given = (*GIVEN, f"transform.factor={factors}")
        on_slurm = ("hydra/launcher=slurm", f"hydra.launcher.shards={options.shards}")
        ours.append(_seconds([sys.executable, "-m", "sweep", *given, *on_slurm], os.environ))
        own = [str(options.plugin.resolve()), str(Path(__file__).resolve().parent)]
        path = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, __file__, "--multirun", *given, "hydra/launcher=submitit_slurm"]
        command += ["hydra.sweep.dir=bench", "hydra.run.dir=bench"]
        command.append(f"hydra.launcher.array_parallelism={options.shards}")
        theirs.append(_seconds(command, os.environ | {"PYTHONPATH": path, "SWEEP_BENCH_JOB": "1"}))
    print(f"in {options.shards} shards, {options.shards} engine starts: {_show(ours)}")
    print(f"one job for each of {options.points} points, as many engine starts: {_show(theirs)}")
    print(f"ratio {statistics.median(theirs) / statistics.median(ours):.1f}")


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def one_point(composed: DictConfig) -> None:
    """Generate, score and publish one point by itself, in a store of its own."""
    from sweep.parsing import parse
    from sweep.point import Point
    from sweep.runner import Runner
    from sweep.terminal import Terminal

    number = HydraConfig.get().job.num
    OmegaConf.update(composed, "sweep.dir", str(Path(HydraConfig.get().sweep.dir).resolve() / f"point-{number}"))
    OmegaConf.update(composed, "scoring.noise_floor", False)
    config = parse(composed)
    with Runner(config, f"point-{number}", "bench", Terminal()) as runner:
        runner.run([Point(config)])
    if len(runner.results) != 2 or runner.problems or any(result.error for result in runner.results.values()):
        raise RuntimeError(f"{runner.results} {runner.problems}")


def _seconds(command: list[str], environment: Mapping[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=dict(environment), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return time.monotonic() - began


def _show(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.0f} s [{min(seconds):.0f}, {max(seconds):.0f}]"


if __name__ == "__main__":
    if os.environ.get("SWEEP_BENCH_JOB"):
        import bench_slurm  # under its own name, which the jobs find it by
        from sweep import _hydra, parsing

        parsing.register()
        # Overridden, but to be there; the session's own one cannot be sent to the jobs.
        OmegaConf.register_new_resolver("sweep_folder", str)
        _hydra.compose_once()
        bench_slurm.one_point()
    else:
        main()
