#!/usr/bin/env bash
# Ray: an actor that asks for no GPU sees none up to 2.50, and all of the node's from 2.60 on.
#
# Packages: ray==2.50.0 and ray==2.60.0 (CPython 3.11, Linux).
# Run:      a node with two GPUs declared as resources (no device is needed), one actor with num_gpus=0 that prints
#           its CUDA_VISIBLE_DEVICES, which this script sets to "0,1" before Ray starts.
# Seen:     2.50.0 prints ''     the actor sees no GPU.
#           2.60.0 prints '0,1'  the actor sees every GPU of the node, so two such actors share GPU 0.
#           2.60.0 with RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 prints '' again.
# Exit:     0 while this holds, 1 if one of the three lines changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/actor.py" <<'PYTHON'
import os

import ray

ray.init(num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@ray.remote(num_gpus=0)
class Actor:
    def visible(self):
        return os.environ.get("CUDA_VISIBLE_DEVICES")


print(repr(ray.get(Actor.remote().visible.remote())))
ray.shutdown()
PYTHON
see() { # VERSION [NAME=VALUE]
    local python=$folder/$1/bin/python
    if [ ! -x "$python" ]; then
        "${PYTHON:-python3}" -m venv "$folder/$1"
        "$python" -m pip install --quiet --disable-pip-version-check "ray==$1" 2>"$folder/pip.log" ||
            { cat "$folder/pip.log" >&2; exit 2; }
    fi
    env CUDA_VISIBLE_DEVICES=0,1 RAY_USAGE_STATS_ENABLED=0 RAY_TMPDIR="$folder" ${2:+"$2"} \
        "$python" "$folder/actor.py" 2>/dev/null | tail -n 1
}
seen="$(see 2.50.0)|$(see 2.60.0)|$(see 2.60.0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1)"
echo "2.50.0 | 2.60.0 | 2.60.0 with the override: $seen"
[ "$seen" = "''|'0,1'|''" ]
