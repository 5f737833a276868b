"""From the command line to a checked, plain configuration, before torch is imported.

`@entry_point("train")` composes conf/train.yaml with Hydra, checks it against lstmlab.schema and calls
the function with a plain dict. A user's mistake ends in one sentence and exit code 1; the environment
variable HYDRA_FULL_ERROR=1 shows the traceback instead.
"""

import functools
import os
import re
import sys
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


def quote_raw(argument: str) -> str:
    """Quote the value of text=, ckpt= … so that Hydra and OmegaConf take it as it stands.

    Hydra's quoted strings: a backslash escapes a quote, and backslashes before a quote are doubled.
    OmegaConf then reads `${` as an interpolation unless an odd number of backslashes precedes it.
    """
    key, equals, value = argument.partition("=")
    if not equals or key not in RAW_KEYS:
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


def plain(composed: DictConfig) -> dict[str, Any]:
    """The configuration, resolved, as plain containers. Raises MissingMandatoryValue for a `???`."""
    return cast(dict, OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))


def entry_point(config_name: str) -> Callable:
    """Decorate `run(config: dict)`, the body of a command; see the module's docstring."""

    def decorate(run: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
        @functools.wraps(run)
        def job(composed: DictConfig) -> Any:
            try:
                config = plain(composed)
                check(config_name, config)
                return run(config)
            except USER_ERRORS as error:
                # In a sweep Hydra adds which job failed, and a worker process must not exit.
                folder = Path(HydraConfig.get().runtime.output_dir)
                if folder != Path.cwd() and not any(folder.iterdir()):
                    folder.rmdir()  # made by Hydra for a run that never began
                if show_traceback or HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise
                sys.exit(f"error: {sentence(error)}")

        show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"

        def main() -> None:
            sys.argv[1:] = [quote_raw(argument) for argument in sys.argv[1:]]
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands us its exceptions
            try:
                hydra.main(version_base="1.3", config_path=str(PROJECT / "conf"), config_name=config_name)(
                    job
                )()
            except USER_ERRORS as error:
                if show_traceback:
                    raise
                sys.exit(f"error: {sentence(error)}")

        return main

    return decorate
