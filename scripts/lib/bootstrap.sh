# Sourced by the commands in scripts/: bootstrap makes .venv, or does nothing when it is there as pinned.
#
#   SWEEP_PYTHON        the Python to make .venv with (default: the first on PATH that is 3.11 to 3.14 and has venv)
#   SWEEP_ACCELERATOR   cpu or cuda (default: cuda where an NVIDIA GPU is seen)
#
# It runs before every command, so no Python is started when nothing is to do.

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python
LOCKS=$ROOT/scripts/locks
LOG=$VENV/install.log
STAMP=$VENV/stamp # what .venv was made from; written last, so an interrupted installation has none

# The CPU build is not on the main index, and so in no lock.
TORCH=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

bootstrap() {
    local kind pins project python=
    kind=$(accelerator) || exit
    pins=$TORCH-$(digest "$LOCKS/build.txt" "$LOCKS/$kind.txt")
    project=$(digest "$ROOT/pyproject.toml")
    [ -z "${SWEEP_PYTHON:-}" ] || python=$(python_version "$SWEEP_PYTHON") || die "SWEEP_PYTHON=$SWEEP_PYTHON $python"

    venv_is_current && stamp_has "project=$project" && return

    # Two first calls at once: the second waits, and then finds everything done.
    if command -v flock >/dev/null; then
        exec 9>"$ROOT/.venv.lock"
        flock -n 9 || { say 'Another call is installing into .venv; waiting for it.'; flock 9; }
    fi
    trap 'say "interrupted; the next call starts the installation again"; exit 130' INT
    if ! venv_is_current; then
        [ ! -e "$VENV" ] || say "Making .venv anew: $(why_anew)."
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

# The path, because activate and the console scripts hold it, and the editable install points to it.
venv_is_current() {
    [ -x "$PYTHON" ] && stamp_has "kind=$kind" && stamp_has "pins=$pins" && stamp_has "root=$ROOT" &&
        { [ -z "$python" ] || stamp_has "python=$python"; }
}

why_anew() {
    if [ ! -e "$STAMP" ]; then
        echo 'its installation was not finished'
    elif [ ! -x "$PYTHON" ]; then
        echo 'its Python is gone'
    elif ! stamp_has "kind=$kind"; then
        echo "it is not for $kind"
    elif ! stamp_has "pins=$pins"; then
        echo 'the pins have changed'
    elif ! stamp_has "root=$ROOT"; then
        echo 'the checkout has moved'
    else
        echo "it is not of Python $python"
    fi
}

accelerator() {
    case ${SWEEP_ACCELERATOR:-} in
        cpu | cuda) echo "$SWEEP_ACCELERATOR" ;;
        '')
            # Device files first: nvidia-smi takes seconds on some machines, but is all that WSL has. A cluster's login
            # node sees no GPU, but shares the checkout, and its .venv, with nodes that do.
            if compgen -G '/dev/nvidia[0-9]*' >/dev/null || nvidia-smi -L 2>/dev/null | grep -q '^GPU' ||
                stamp_has kind=cuda; then
                echo cuda
            else
                echo cpu
            fi
            ;;
        *) die "SWEEP_ACCELERATOR=$SWEEP_ACCELERATOR: cpu or cuda is meant" ;;
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
    die "Python 3.11 to 3.14 with venv is needed, and not found on PATH$reasons. SWEEP_PYTHON=/path/to/python names one"
}

# Prints the version if it is a Python that can make .venv; fails, and prints what is wrong, if not.
python_version() {
    local answer
    command -v "$1" >/dev/null || { echo 'is not there, or no program'; return 1; }
    answer=$("$1" -c '
import sys
version = "%d.%d.%d" % sys.version_info[:3]
if not (3, 11) <= sys.version_info < (3, 15):
    sys.exit(f"is Python {version}, and 3.11 to 3.14 is needed")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("has no venv or no ensurepip (Debian, Ubuntu: apt install python%d.%d-venv)" % sys.version_info[:2])
print(version)' 2>&1) && echo "$answer" && return
    echo "${answer##*$'\n'}"
    return 1
}

install_pins() {
    local interpreter lock=$LOCKS/$kind.txt
    interpreter=$(find_python) || exit
    if [ "$kind" = cuda ]; then
        say 'Installing vLLM for CUDA, and what it needs, into .venv: 4 GB to download, 10 GB on disk, 10 minutes or so.'
    else
        say 'Installing vLLM for the CPU, and what it needs, into .venv: 0.7 GB to download, 3.3 GB on disk, 5 minutes or so.'
    fi
    say "  Python: $interpreter; log: $LOG"
    rm -f "$STAMP"
    "$interpreter" -m venv --clear "$VENV" >&2 || die "$interpreter -m venv failed"
    say '  1/4 build tools'
    pip_install --require-hashes -r "$LOCKS/build.txt" || failed 'the build tools'
    say '  2/4 torch'
    [ "$kind" = cuda ] || install_torch_for_cpu || failed "torch $TORCH"
    say '  3/4 vLLM, MLflow and some 200 more'
    # Wheels only, so that nobody needs a compiler. antlr4 has none, and is pure Python.
    pip_install --only-binary :all: --no-binary antlr4-python3-runtime --no-build-isolation \
        --require-hashes -r "$lock" || failed 'the pinned packages'
    say '  4/4 check'
    check_imports || failed 'the check that torch, transformers, mlflow and vllm can be imported'
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
        say "      pip's configured sources have no torch $TORCH+cpu: taking it from PyTorch's CPU index"
        pip_install --index-url "$TORCH_CPU_INDEX" "torch==$TORCH+cpu"
    fi
}

# pip without its resolver, without settings meant for other installations, and with its chatter in the log.
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
        say 'warning: torch sees no GPU here. Is there one, and is its driver new enough for CUDA 13?'
}

failed() {
    say "--- the last lines of $LOG:"
    tail -n 15 "$LOG" >&2
    die "the installation failed at $1; the next call starts it again"
}

digest() { cat "$@" | if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c1-32; }
say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 2; } # 2: nothing was started
