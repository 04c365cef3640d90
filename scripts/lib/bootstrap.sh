# Sourced by the commands in scripts/. The function bootstrap creates .venv, or does nothing if .venv matches the pins.
#
#   SWEEP_PYTHON        Python to create .venv with (default: the first on PATH that is 3.11 to 3.14 and has venv)
#   SWEEP_ACCELERATOR   cpu or cuda (default: cuda if an NVIDIA GPU is found)
#
# It runs before every command, so it starts Python only when there is something to install.

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python
LOCKS=$ROOT/scripts/locks
LOG=$VENV/install.log
STAMP=$VENV/stamp # records what .venv was made from; written last, so that an interrupted installation has none

# The CPU build is not on the main index, and therefore not in a lock file.
TORCH=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

bootstrap() {
    local kind pins project python=
    kind=$(accelerator) || exit
    pins=$TORCH-$(digest "$LOCKS/build.txt" "$LOCKS/$kind.txt")
    project=$(digest "$ROOT/pyproject.toml")
    [ -z "${SWEEP_PYTHON:-}" ] || python=$(python_version "$SWEEP_PYTHON") || die "SWEEP_PYTHON=$SWEEP_PYTHON $python"

    venv_is_current && stamp_has "project=$project" && return

    # A second call during the first installation waits, and then finds .venv up to date.
    if command -v flock >/dev/null; then
        exec 9>"$ROOT/.venv.lock"
        flock -n 9 || { say 'Another process is installing into .venv; waiting for it.'; flock 9; }
    fi
    trap 'say "Interrupted. Run the command again to restart the installation."; exit 130' INT
    if ! venv_is_current; then
        [ ! -e "$VENV" ] || say "Recreating .venv: $(reason_to_recreate)."
        install_pins
    fi
    if ! stamp_has "project=$project"; then
        pip_install --no-build-isolation --editable "$ROOT" || failed 'the project itself'
        { grep -v '^project=' "$STAMP"; echo "project=$project"; } >"$STAMP.new" && mv "$STAMP.new" "$STAMP"
    fi
    trap - INT
    exec 9>&-
}

stamp_has() { grep -qsxF -- "$1" "$STAMP"; }

# The path is compared because activate, the console scripts and the editable install contain it.
venv_is_current() {
    [ -x "$PYTHON" ] && stamp_has "kind=$kind" && stamp_has "pins=$pins" && stamp_has "root=$ROOT" &&
        { [ -z "$python" ] || stamp_has "python=$python"; }
}

reason_to_recreate() {
    if [ ! -e "$STAMP" ]; then
        echo 'the last installation was not finished'
    elif [ ! -x "$PYTHON" ]; then
        echo 'its Python interpreter is missing'
    elif ! stamp_has "kind=$kind"; then
        echo "it was not made for $kind"
    elif ! stamp_has "pins=$pins"; then
        echo 'the pins have changed'
    elif ! stamp_has "root=$ROOT"; then
        echo 'the checkout was moved'
    else
        echo "it does not use Python $python"
    fi
}

accelerator() {
    case ${SWEEP_ACCELERATOR:-} in
        cpu | cuda) echo "$SWEEP_ACCELERATOR" ;;
        '')
            # Device files first, because nvidia-smi takes seconds on some machines. WSL has nvidia-smi only. A cluster's
            # login node has no GPU, but shares the checkout and its .venv with nodes that do.
            if compgen -G '/dev/nvidia[0-9]*' >/dev/null || nvidia-smi -L 2>/dev/null | grep -q '^GPU' ||
                stamp_has kind=cuda; then
                echo cuda
            else
                echo cpu
            fi
            ;;
        *) die "SWEEP_ACCELERATOR=$SWEEP_ACCELERATOR is not valid. Use cpu or cuda" ;;
    esac
}

find_python() {
    local candidate why reasons=
    [ -z "${SWEEP_PYTHON:-}" ] || { command -v "$SWEEP_PYTHON"; return; }
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        command -v "$candidate" >/dev/null || continue
        if why=$(python_version "$candidate"); then
            command -v "$candidate"
            return
        fi
        reasons+="; $candidate $why"
    done
    die "no Python 3.11 to 3.14 with venv on PATH$reasons. Install one, or set SWEEP_PYTHON=/path/to/python"
}

# Prints the version of a Python that can create .venv. Otherwise prints the reason and fails.
python_version() {
    local answer
    command -v "$1" >/dev/null || { echo 'does not exist or is not executable'; return 1; }
    answer=$("$1" -c '
import sys
version = "%d.%d.%d" % sys.version_info[:3]
if not (3, 11) <= sys.version_info < (3, 15):
    sys.exit(f"is Python {version}, but 3.11 to 3.14 is required")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("lacks venv or ensurepip (Debian, Ubuntu: apt install python%d.%d-venv)" % sys.version_info[:2])
print(version)' 2>&1) && echo "$answer" && return
    echo "${answer##*$'\n'}"
    return 1
}

install_pins() {
    local interpreter lock=$LOCKS/$kind.txt
    interpreter=$(find_python) || exit
    if [ "$kind" = cuda ]; then
        say 'Installing vLLM for CUDA and its dependencies into .venv: 4 GB to download, 10 GB on disk, about 10 minutes.'
    else
        say 'Installing vLLM for CPU and its dependencies into .venv: 0.7 GB to download, 3.3 GB on disk, about 5 minutes.'
    fi
    say "  Python: $interpreter; log: $LOG"
    rm -f "$STAMP"
    "$interpreter" -m venv --clear "$VENV" >&2 || die "$interpreter -m venv failed"
    say '  1/4 build tools'
    pip_install --require-hashes -r "$LOCKS/build.txt" || failed 'the build tools'
    say '  2/4 torch'
    [ "$kind" = cuda ] || install_torch_for_cpu || failed "torch $TORCH"
    say '  3/4 vLLM, MLflow and about 200 more packages'
    # Wheels only, so that no compiler is needed. antlr4 has no wheel, but is pure Python.
    pip_install --only-binary :all: --no-binary antlr4-python3-runtime --no-build-isolation \
        --require-hashes -r "$lock" || failed 'the pinned packages'
    say '  4/4 check'
    check_imports || failed 'the import check of torch, transformers, mlflow and vllm'
    cat >"$STAMP.new" <<EOF
kind=$kind
pins=$pins
root=$ROOT
python=$(python_version "$PYTHON")
EOF
    mv "$STAMP.new" "$STAMP"
}

install_torch_for_cpu() {
    if [ "$(uname -s)" = Darwin ]; then
        pip_install "torch==$TORCH"
    elif ! pip_install "torch==$TORCH+cpu"; then
        tail -n 5 "$LOG" | grep -q 'No matching distribution' || return 1
        say "      pip's configured sources do not have torch $TORCH+cpu; using PyTorch's CPU index"
        pip_install --index-url "$TORCH_CPU_INDEX" "torch==$TORCH+cpu"
    fi
}

# Runs pip without its resolver and without settings for other installations, and writes its output to the log.
pip_install() {
    printf '\n== pip install %s\n' "$*" >>"$LOG"
    env -u PYTHONDONTWRITEBYTECODE -u PYTHONHOME -u PYTHONPATH \
        -u PIP_CONSTRAINT -u PIP_NO_COMPILE -u PIP_PREFIX -u PIP_TARGET PIP_USER=0 \
        PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
        "$PYTHON" -m pip install --no-deps --progress-bar off "$@" >>"$LOG" 2>&1 </dev/null
}

check_imports() {
    printf '\n== check\n' >>"$LOG"
    "$PYTHON" - "$kind" >>"$LOG" 2>&1 <<'EOF' || return
import sys

import mlflow, torch, transformers

if sys.platform == "linux":
    from vllm import LLM
if sys.argv[1] == "cpu" and torch.version.cuda:
    sys.exit(f"torch {torch.__version__} is a CUDA build")
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    print("torch sees no GPU")
EOF
    [ "$(tail -n 1 "$LOG")" != 'torch sees no GPU' ] ||
        say 'warning: torch does not find a GPU. Check that the driver is installed and supports CUDA 13.'
}

failed() {
    say "--- last lines of $LOG:"
    tail -n 15 "$LOG" >&2
    die "the installation failed at $1. Run the command again to restart it"
}

digest() { cat "$@" | if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c1-32; }
say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*."; exit 2; } # 2: nothing was started
