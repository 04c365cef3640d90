#!/usr/bin/env bash
# submitit: a job with a time limit of ten minutes or less is "timed-out" from its first second, never "preempted".
#
# Package: submitit==1.5.4.
# Why:     SignalHandler.has_timed_out compares the run time with min(0.8 T, T - 10 min), which is 0 or less for
#          T <= 10 min. A preemption then spends one of `slurm_max_num_timeout`, and a function without a checkpoint
#          method is not requeued at all.
# Run:     the handler's own decision for jobs of 10, 11 and 60 minutes, one second after their start.
# Seen:    10 True, 11 False, 60 False
# Exit:    0 while this holds, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "submitit==1.5.4" 2>"$folder/pip.log" ||
    { cat "$folder/pip.log"; exit 2; }
seen=$("$folder/venv/bin/python" - "$folder" <<'PYTHON'
import logging
import sys
import time

from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmJobEnvironment

logging.getLogger("submitit").setLevel(logging.ERROR)
answers = []
for minutes in (10, 11, 60):
    job = DelayedSubmission(print)
    job.set_timeout(minutes, max_num_timeout=3)
    handler = SignalHandler(SlurmJobEnvironment(), JobPaths(sys.argv[1]), job)
    handler._start_time = time.time() - 1
    answers.append(f"{minutes} {handler.has_timed_out()}")
print(", ".join(answers))
PYTHON
)
echo "$seen"
[ "$seen" = "10 True, 11 False, 60 False" ]
