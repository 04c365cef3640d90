"""Command line: `python -m sweep KEY=VALUE[,VALUE…]…`."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import nullcontext

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import sweep.util.environment  # noqa: F401 - before the libraries that read these variables
from sweep.app import sweep_app
from sweep.cli.messages import CONFIG_ERROR, format_error
from sweep.config import arguments as _arguments
from sweep.config import code_guard, help_text, hydra_patches, loader
from sweep.config.overrides import Override
from sweep.console import signals, streams
from sweep.core import provenance
from sweep.errors import ConfigError, PointsFailed, SweepError
from sweep.points.point import make_points
from sweep.util.paths import conf_dir

MAX_PATH = 120  # characters shown of a path that is too long


def task(composed: DictConfig) -> dict[str, float]:
    """Run one point, for launchers of other projects; this project's launchers run points in batches.

    Returns:
        The measures of the point and of its control, for optimising sweepers.
    """
    current = sweep_app.current()
    overrides = [Override.read(line) for line in HydraConfig.get().overrides.task]
    [result] = current.run(make_points([(overrides, loader.parse(composed))], current.axes))
    return current.measures(result)


def main() -> None:
    """Run the command line and exit.

    Exit codes: 0 all points done, 1 some failed or were not published, 2 wrong configuration, 75 another process
    runs the sweep, 129, 130 or 143 interrupted.
    """
    sys.argv[1:] = arguments = _arguments.without_multirun(sys.argv[1:])
    if "--version" in arguments:
        print(provenance.summary())
        return
    if _arguments.is_sweep(arguments):
        # With only hydra.mode in config.yaml, Hydra reports a typo next to a comma list as an "ambiguous value".
        sys.argv.insert(1, "--multirun")
        hydra_patches.skip_mode_lookup()
    else:
        sys.argv[0] = "sweep"  # the command that completion is installed for
    try:
        code_guard.refuse_modes(sys.argv[1:])
        loader.register(_arguments.list_override("plugins", sys.argv))
        help_text.register()
        sys.argv[1:] = _arguments.to_hydra_syntax(sys.argv[1:])
        _arguments.check_values(sys.argv[1:])
        hydra_patches.allow_options_anywhere()
        hydra_patches.raise_errors()
        hydra_patches.combine_points()
        hydra_patches.list_options_quickly()
        code_guard.install()
        with sweep_app.current() as sweep:
            hydra_patches.call_before_run(sweep.open_folder)
            run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
            with nullcontext() if _arguments.is_sweep(arguments) else streams.escaping():
                run()
        if sweep.failures:  # read after the block, whose exit may add failures
            raise PointsFailed("Some points failed or were not published. Run the same command again:")
    except ConfigError as error:
        _exit(str(error), error.exit_code)
    except SweepError as error:
        error = type(error)("\n".join([str(error), *sweep_app.current().failures]))
        _exit(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        code = SweepError.exit_code if sweep_app.current().has_results else CONFIG_ERROR
        _exit(hydra_patches.explain(error, sys.argv[1:]), code)
    except RecursionError:
        if sweep_app.current().started:
            raise
        _exit(
            "The configuration is nested too deeply: a list, mapping or key has hundreds of levels. Use fewer levels.",
            CONFIG_ERROR,
        )
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG and not sweep_app.current().has_results:
            name = str(error.filename or "a path")
            _exit(
                f"{name[:MAX_PATH]} …: the path is too long; each name in it may have up to 255 bytes.",
                CONFIG_ERROR,
            )
        if sweep_app.current().started:
            raise
        path = error.filename or "the folder"
        _exit(f"sweep.dir: cannot write {path}: {error.strerror or error}.", CONFIG_ERROR)
    except signals.Interrupted as end:
        print("sweep: Interrupted. Finished points are saved; run the same command to resume.", file=sys.stderr)
        signals.leave(int(str(end.code)))


def _exit(message: str, code: int) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()
    if not _arguments.is_completion(sys.argv):  # a shell would show it on the line that is being typed
        print(format_error(message, code), file=sys.stderr)
    sys.exit(code)
