"""Turn the command line into a checked, frozen configuration before torch is imported.

`@entry_point("train")` composes conf/train.yaml with Hydra, checks it against lstmlab.schema and calls the
function with the checked object. A mistake in the settings ends with one sentence and exit code 1;
HYDRA_FULL_ERROR=1 in the environment shows the traceback instead.
"""

import difflib
import functools
import os
import re
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, cast

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hydra_plugins.lstmlab_study import list_jobs
from lstmlab.cells.kinds import KINDS
from lstmlab.help import CONF, IN_REPOSITORY, find_yaml, format_help, show_as_typed
from lstmlab.schema import check

PROJECT = CONF.parent if IN_REPOSITORY else Path.cwd()
DATA_FILES = ("data.path", "data.train", "data.val", "data.test")
FILE_KEYS = ("input", "output", "ckpt", "resume", "runs", "model.init_from", *DATA_FILES)
RAW_KEYS = ("text", "set", *FILE_KEYS)
JOBS = "LSTMLAB_JOBS"  # in the environment of the jobs of a sweep: their number
# Lightning 2.6 and torchdata 0.11 warn about torch 2.13; users can do nothing about it
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
    """Quote the value of text=, ckpt= … so that Hydra and OmegaConf take it literally.

    Hydra's quoted strings: a backslash escapes a quote, and backslashes before a quote are doubled.
    OmegaConf then reads `${` as an interpolation unless an odd number of backslashes precedes it.
    """
    key, equals, value = argument.partition("=")
    if not equals or key not in keys:
        return argument
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (r"\'" if m[2] else ""), value)
    return f"{key}='{value}'"


def describe_error(error: BaseException) -> str:
    """One line that says what is wrong. Hydra's own messages run over many lines."""
    cause = error.__cause__ or error
    node = getattr(cause, "parent_node", None)
    if isinstance(node, DictConfig) and isinstance(error, HydraException):
        allowed = ", ".join(sorted(str(key) for key in node))
        sentence = str(error).splitlines()[0]
        hint = suggest_setting(sentence.split("'")[1], node)
        return f"{sentence}{hint} Allowed here: {allowed}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is required: {cause.full_key}=…"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {str(error).splitlines()[0]}"
    text = " ".join(str(error).split("Config search path:")[0].split("full_key:")[0].split())
    if option := re.search(r"Could not find '(\w+)/(\w+)' Available options in '\w+': (.+)", text):
        group, name, options = option.groups()
        close = difflib.get_close_matches(name, options.split(), n=1)
        meant = f"cell.kind={name}" if name in KINDS else f"{group}={close[0]}" if close else None
        return f"{text}. Did you mean {meant}?" if meant else text
    return text


def suggest_setting(typed: str, group: DictConfig) -> str:
    """A sentence with what may have been meant by key `typed`, which `group` does not have, or nothing."""
    parent, _, name = typed.rpartition(".")
    if parent == "optimizer":
        return f" An argument of its class is added by +{typed}=…."
    for_group = find_yaml(f"{parent}/*.yaml") if parent else []
    if having := [
        file.stem for file in for_group if name in yaml.safe_load(file.read_text(encoding="utf-8"))
    ]:
        return f" It belongs to {', '.join(f'{parent}={option}' for option in having)}."

    # The keys of the same group, and then those of all groups
    root = group._get_root()
    nodes = {key: root._get_node(key) for key in root if key != "hydra"}
    inner = {key: node for key, node in nodes.items() if isinstance(node, DictConfig)}
    all_paths = [str(key) for key in root]
    all_paths += [f"{key!s}.{known!s}" for key, node in inner.items() for known in node]
    for paths in ([f"{parent}.{key!s}" for key in group] if parent else [], all_paths):
        names = {path.rpartition(".")[2] for path in paths} - {"recommends"}
        close = [name] if name in names else difflib.get_close_matches(name, names, n=1, cutoff=0.52)
        if meant := [path for path in paths if path.rpartition(".")[2] in close]:
            return f" Did you mean {' or '.join(meant)}?"
    return ""


def is_sweep() -> bool:
    """Whether this is a job of a sweep (`-m`)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def runs_in_parallel() -> bool:
    """Whether this is a job of a sweep whose jobs run at the same time on this machine."""
    target = HydraConfig.get().launcher._target_ if is_sweep() else ""
    return target.endswith((".JoblibLauncher", ".LocalLauncher"))


def name_job() -> str:
    """As job 3/12 for the third job of a sweep; empty for a single run."""
    if not is_sweep():
        return ""
    total = os.environ.get(JOBS)  # a cluster may not pass it on
    return f"job {HydraConfig.get().job.num + 1}" + (f"/{total}" if total else "")


class SweepFolder(Callback):
    """A callback of Hydra that notes the sweep's folder and, for its jobs, how many there are."""

    path: ClassVar[str | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepFolder.path = config.hydra.sweep.dir
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        sweeper, typed = config.hydra.sweeper, list(config.hydra.overrides.task)
        typed = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()] + typed
        os.environ.pop(JOBS, None)
        with suppress(HydraException):  # the sweeper reports what is wrong
            jobs = [] if "n_trials" in sweeper else list_jobs(sweeper.get("jobs", [""]), typed, parser)
            os.environ[JOBS] = str(sweeper.get("n_trials", len(jobs)))


def to_plain(composed: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain containers. Raises MissingMandatoryValue for a `???`."""
    return cast(dict, OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))


def find_resumed_run(arguments: list[str]) -> Path | None:
    """The folder of the run that resume= names, directly or by one of its checkpoints; None without resume=.

    Raises OSError if there is no such run, and ValueError for a sweep or for a config.yaml that is not safe.
    """
    named = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if not named:
        return None
    if {"-m", "--multirun"} & set(arguments):
        raise ValueError(f"resume={named[-1]} resumes one run: leave out -m")
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
    # Hydra would run code that these keys name
    if not isinstance(settings, DictConfig) or {"hydra", "defaults"} & settings.keys():
        raise ValueError(f"resume={named[-1]}: its config.yaml was not written by train.py")
    return run


def refuse_unread(read: Collection[str], of: str) -> None:
    """Raise ValueError if a setting was typed that is not in `read`; `of` names what reads them."""
    typed = {override.partition("=")[0] for override in HydraConfig.get().overrides.task}
    if unread := sorted(typed - set(read)):
        takes = ", ".join(sorted(read)) or "no such settings"
        raise ValueError(f"{unread[0]}= has no effect on {of}, which takes {takes}")


def join_search_path() -> list[str]:
    """The override with which Hydra also finds the files in a folder conf/ of the user's own.

    Raises ValueError if a file there has the name of one of ours, by which Hydra would not find it.
    """
    own = Path("conf").absolute()
    if not own.is_dir() or own.resolve() == CONF.resolve():
        return []
    for file in own.rglob("*.yaml"):
        if (CONF / file.relative_to(own)).exists():
            raise ValueError(f"{file}: lstmlab has a file of this name; give yours another name")
    quoted = quote_raw(f"=file://{own}", ("",)).removeprefix("=")
    return [f"hydra.searchpath=[{quoted}]"]


@contextmanager
def find_settings(command: str, resumed: Path | None) -> Iterator[tuple[str, str, list[str]]]:
    """Where Hydra finds the settings: the folder, the name of the file in it, and arguments to add."""
    if "${" in str(resumed or Path.cwd()):
        raise ValueError(f"{resumed or Path.cwd()}: Hydra would replace the ${{; rename this folder")
    if resumed is None:
        yield str(CONF), command, join_search_path()
        return

    # A copy, since Hydra would look for its own settings in the run's folder too
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(resumed / "config.yaml", folder)
        run_dir = quote_raw(f"hydra.run.dir={resumed}", ("hydra.run.dir",))
        yield folder, "config", [run_dir, "hydra.output_subdir=null", "hydra/job_logging=disabled"]


def check_composed(command: str, composed: DictConfig) -> Any:
    """The checked configuration of one job, with one thread if the launcher runs jobs in parallel."""
    settings = to_plain(composed)
    if runs_in_parallel() and settings.get("threads", 1) is None:
        settings["threads"] = 1
    return check(command, settings)


def run_command(command: str, body: Callable[[Any], Any]) -> None:
    """Compose and check the configuration of `command`, and call `body` with it once for each job."""
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Makes Hydra raise its exceptions instead of printing them
    os.environ["HYDRA_FULL_ERROR"] = "1"

    @functools.wraps(body)
    def job(composed: DictConfig) -> Any:
        try:
            return body(check_composed(command, composed))
        except USER_ERRORS as error:
            folder, here = Path(HydraConfig.get().runtime.output_dir), Path.cwd()
            # Hydra has created the folder of a run that never started, and maybe those above it
            while folder != here and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent if folder.is_relative_to(here) else here
            # In a sweep Hydra adds which job failed, and a worker process must not exit
            if show_traceback or is_sweep():
                raise
            sys.exit(f"error: {show_as_typed(describe_error(error))}")

    arguments = sys.argv[1:]
    try:
        if {"-h", "--help"} & set(arguments):
            overrides = [quote_raw(argument) for argument in arguments if not argument.startswith("-")]
            print(format_help(command, [*overrides, *join_search_path()]))
            return
        with find_settings(command, find_resumed_run(arguments)) as (folder, name, added):
            # Options first: argparse refuses settings on both sides of one
            typed = sorted(arguments, key=lambda argument: bool(re.match("[^-][^=]*=|~", argument)))
            sys.argv[1:] = [*map(quote_raw, typed), *added]
            SweepFolder.path = None
            try:
                hydra.main(version_base="1.3", config_path=folder, config_name=name)(job)()
            finally:
                if SweepFolder.path is not None:
                    runs = shlex.quote(f"runs={SweepFolder.path}")
                    print(f"Sweep: {SweepFolder.path}")
                    print(show_as_typed(f"To compare: python src/compare.py {runs}"))
    except USER_ERRORS as error:
        if show_traceback:
            raise
        sys.exit(f"error: {show_as_typed(describe_error(error))}")
    except KeyboardInterrupt:
        sys.exit(130)


def entry_point(command: str) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Decorate the body of a command; see the module's docstring."""
    return lambda body: functools.partial(run_command, command, body)
