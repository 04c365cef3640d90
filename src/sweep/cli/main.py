"""The command line: `python -m sweep KEY=VALUE[,VALUE…]…`."""

from __future__ import annotations

import os
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import sweep._environment  # noqa: F401 - before the libraries that it is for
from sweep import _hydra, parsing, session, signals
from sweep.errors import ConfigError, PointsFailed, SweepError
from sweep.paths import conf_dir
from sweep.point import make_points
from sweep.redaction import redact

# Hydra's own modes; every other command line is a sweep, if of one point.
NOT_A_SWEEP = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"),
    *("--run", "-r", "--multirun", "-m", "--experimental-rerun"),
)
LONGEST, MOST_LINES = 380, 3  # of what is said of a wrong configuration


def task(composed: DictConfig) -> dict[str, float]:
    """Run one point: what launchers other than this project's call.

    Returns:
        The point's measures and its control's, which optimising sweepers may read.
    """
    current = session.current()
    [result] = current.run(make_points([(HydraConfig.get().overrides.task, parsing.parse(composed))], current.axes))
    return current.measures(result)


def main() -> None:
    """Run the command line and exit: 0 all points done, 1 some failed, 2 wrong configuration, 130/143 interrupted."""
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] in NOT_A_SWEEP for argument in arguments):
        # hydra.mode in config.yaml alone would have a typo beside a comma list reported as an "ambiguous value".
        sys.argv.insert(1, "--multirun")
        _hydra.compose_once()
    try:
        parsing.register(_hydra.list_override("plugins", sys.argv))
        sys.argv[1:] = _hydra.expand_compositions(sys.argv[1:])
        _hydra.check_values(sys.argv[1:])
        _hydra.pass_errors_on()
        _hydra.list_options_quickly()
        _hydra.refuse_code()
        with session.current() as sweep:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
        if sweep.failures:  # which the end of the block may add to
            raise PointsFailed("Some points are not done; the same command tries them again:")
    except ConfigError as error:
        _exit(str(error), error.exit_code)
    except SweepError as error:
        error = type(error)("\n".join([str(error), *session.current().failures]))
        _exit(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        code = SweepError.exit_code if session.current().has_results else ConfigError.exit_code
        _exit(_hydra.explain(error, sys.argv[1:]), code)
    except OSError as error:
        if session.current().started:
            raise
        where = error.filename or "the folder"
        _exit(f"sweep.dir: {where} cannot be written: {error.strerror or error}.", ConfigError.exit_code)
    except signals.Interrupted as end:
        print("sweep: interrupted; what is finished is kept, and the same command goes on from there.", file=sys.stderr)
        signals.leave(int(str(end.code)))


def _exit(message: str, code: int) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()
    message = redact(message)
    if code == ConfigError.exit_code:  # what libraries say, and names that users give, can be of any length
        message = "\n".join(message.splitlines()[:MOST_LINES])
        message = message if len(message) <= LONGEST else f"{message[: LONGEST - 2]} …"
    print(f"sweep: {message}", file=sys.stderr)
    sys.exit(code)
