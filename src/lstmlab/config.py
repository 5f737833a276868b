"""From the command line to a checked, plain configuration, before torch is imported.

`@entry_point("train")` composes conf/train.yaml with Hydra, checks it against lstmlab.schema and calls
the function with a plain dict. A user's mistake ends in one sentence and exit code 1; the environment
variable HYDRA_FULL_ERROR=1 shows the traceback instead.
"""

import functools
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lstmlab.schema import check

PROJECT = Path(__file__).parents[2]
RAW_KEYS = ("text", "ckpt", "resume", "runs", "data.path")
# Of Lightning 2.6 and torchdata 0.11 about torch 2.13: nothing that a user could change
warnings.filterwarnings("ignore", message=r".*(treespec, LeafSpec|'set_vital')")
USER_ERRORS = (
    ValueError,
    OSError,
    FloatingPointError,
    MemoryError,
    HydraException,
    OmegaConfBaseException,
)

OmegaConf.register_new_resolver("project", lambda path: str(PROJECT / path), replace=True)


def quote_raw(argument: str, keys: tuple[str, ...] = RAW_KEYS) -> str:
    """Quote the value of text=, ckpt= … so that Hydra and OmegaConf take it as it stands.

    Hydra's quoted strings: a backslash escapes a quote, and backslashes before a quote are doubled.
    OmegaConf then reads `${` as an interpolation unless an odd number of backslashes precedes it.
    """
    key, equals, value = argument.partition("=")
    if not equals or key not in keys:
        return argument
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (r"\'" if m[2] else ""), value)
    return f"{key}='{value}'"


def sentence(error: BaseException) -> str:
    """One line that says what is wrong: Hydra's own messages run over many."""
    cause = error.__cause__ or error
    node = getattr(cause, "parent_node", None)
    if isinstance(node, DictConfig) and isinstance(error, HydraException):
        allowed = ", ".join(sorted(str(key) for key in node))
        return f"{str(error).splitlines()[0]} Allowed here: {allowed}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is required: {cause.full_key}=…"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {str(error).splitlines()[0]}"
    text = str(error).split("Config search path:")[0].split("full_key:")[0]
    return " ".join(text.split())


def is_sweep() -> bool:
    """Whether this is a job of `-m`, Hydra's multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def plain(composed: DictConfig) -> dict[str, Any]:
    """The configuration, resolved, as plain containers. Raises MissingMandatoryValue for a `???`."""
    return cast(dict, OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))


def resumed_run(arguments: list[str]) -> Path | None:
    """The folder of the run that resume= names, or whose checkpoint it names.

    Raises OSError if there is none, and ValueError for a sweep.
    """
    named = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if not named:
        return None
    if {"-m", "--multirun"} & set(arguments):
        raise ValueError(f"resume={named[-1]} goes on with one run: leave out -m")
    path = Path(named[-1]).absolute()
    if not path.exists():
        raise FileNotFoundError(f"resume={named[-1]}: no such run")
    run = path if path.is_dir() else path.parents[1]
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(
            f"resume={named[-1]}: no config.yaml in {run}. Name a run's folder, or a file in its checkpoints/"
        )
    if "${" in (run / "config.yaml").read_text(encoding="utf-8"):
        raise ValueError(
            f"resume={named[-1]}: a path in its config.yaml holds ${{, which Hydra would replace"
        )
    settings = OmegaConf.load(run / "config.yaml")
    if not isinstance(settings, DictConfig) or {"hydra", "defaults"} & settings.keys():
        raise ValueError(
            f"resume={named[-1]}: its config.yaml is not one that train.py wrote"
        )  # may run code
    return run


def entry_point(config_name: str) -> Callable:
    """Decorate `run(config: dict)`, the body of a command; see the module's docstring."""

    def decorate(run: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
        @functools.wraps(run)
        def job(composed: DictConfig) -> Any:
            sweep = is_sweep()
            try:
                config = plain(composed)
                side_by_side = HydraConfig.get().launcher._target_.endswith(
                    (".JoblibLauncher", ".LocalLauncher")
                )
                if sweep and side_by_side and config.get("threads", 1) is None:
                    config["threads"] = 1
                check(config_name, config)
                return run(config)
            except USER_ERRORS as error:
                # In a sweep Hydra adds which job failed, and a worker process must not exit.
                folder = Path(HydraConfig.get().runtime.output_dir)
                if folder != Path.cwd() and not any(folder.iterdir()):
                    folder.rmdir()  # made by Hydra for a run that never began
                if show_traceback or sweep:
                    raise
                sys.exit(f"error: {sentence(error)}")

        show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"

        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands us its exceptions
            folder, name, arguments = PROJECT / "conf", config_name, sys.argv[1:]
            sys.argv[1:] = [quote_raw(argument) for argument in arguments]
            try:
                with tempfile.TemporaryDirectory() as alone:
                    run = resumed_run(arguments)
                    if "${" in str(run or Path.cwd()):
                        raise ValueError(
                            f"{run or Path.cwd()}: Hydra would replace the ${{; rename this folder"
                        )
                    if run is not None:  # its settings, as if they stood in conf/
                        # Not the run's folder, in which Hydra would look for settings of its own too
                        folder, name = Path(shutil.copy(run / "config.yaml", alone)).parent, "config"
                        sys.argv += [quote_raw(f"hydra.run.dir={run}", ("hydra.run.dir",))]
                        sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=disabled"]
                    hydra.main(version_base="1.3", config_path=str(folder), config_name=name)(job)()
            except USER_ERRORS as error:
                if show_traceback:
                    raise
                sys.exit(f"error: {sentence(error)}")
            except KeyboardInterrupt:
                sys.exit(130)

        return main

    return decorate
