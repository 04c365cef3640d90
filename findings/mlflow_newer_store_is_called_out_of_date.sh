#!/usr/bin/env bash
# MLflow: a newer client migrates an SQLite store by merely reading it; an older client then calls the *newer* store
# "out-of-date" and recommends `mlflow db upgrade`, which cannot help: it does not know the store's revision.
#
# Packages: mlflow==3.15.2 and mlflow==3.17.2.
# Run:      3.15.2 makes a store with one experiment; 3.17.2 lists its experiments; 3.15.2 lists them again.
# Seen:     "ok", "ok", then MlflowException with "out-of-date" and "db upgrade" in its text.
# Exit:     0 while this holds, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export MLFLOW_DISABLE_TELEMETRY=true
cat >"$folder/store.py" <<'PYTHON'
import logging
import sys

import mlflow

logging.disable(logging.CRITICAL)
try:
    client = mlflow.MlflowClient(f"sqlite:///{sys.argv[1]}")
    if len(sys.argv) > 2:
        client.create_experiment(sys.argv[2])
    client.search_experiments()
    print("ok")
except mlflow.exceptions.MlflowException as error:
    print(" ".join(word for word in ("out-of-date", "db upgrade") if word in str(error)))
PYTHON
for version in 3.15.2 3.17.2; do
    "${PYTHON:-python3}" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "mlflow==$version" \
        2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
done
old=$folder/3.15.2/bin/python new=$folder/3.17.2/bin/python store=$folder/store.db
seen="$("$old" "$folder/store.py" "$store" first 2>/dev/null)|$("$new" "$folder/store.py" "$store" 2>/dev/null)"
seen+="|$("$old" "$folder/store.py" "$store" 2>/dev/null)"
echo "$seen"
[ "$seen" = "ok|ok|out-of-date db upgrade" ]
