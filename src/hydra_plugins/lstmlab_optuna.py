"""`python src/train.py -m sweep=optuna`: a search with Optuna, as a sweeper of Hydra's.

Hydra takes plugins from packages of this name alone, and imports them in every command: what takes long to
import waits for the sweep.
"""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

JOURNAL = "optuna.journal"
DIVERGED = (FloatingPointError, MemoryError)  # what a search may meet in its corners
WHOLE = re.compile(r"(?<!float\()interval\((start=)?[+-]?\d+,(end=)?[+-]?\d+\)")
log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Run n_trials trials, n_jobs at a time, each with what the results so far suggest.

    A trial that diverges or runs out of memory has failed, and the search goes on; any other error ends it. A
    study that was broken off goes on: what was running then comes once more, from its beginning, and as many
    trials as are still missing.

    Raises:
        ValueError: there is nothing to search or to run, none came to its end, or Optuna is not installed.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, n_trials: int, n_jobs: int, seed: int, direction: str, params: DictConfig):
        self.n_trials, self.n_jobs, self.seed, self.params = n_trials, n_jobs, seed, params
        self.direction = {"min": "minimize", "max": "maximize"}[direction]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        for key, value in {"n_trials": self.n_trials, "n_jobs": self.n_jobs}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"hydra.sweeper.{key}={value}: input should be a whole number from 1 on")
        parser = OverridesParser.create(self.hydra_context.config_loader)
        listed = [f"{key!s}={value}" for key, value in self.params.items()] + arguments
        overrides = {o.get_key_element(): o for o in parser.parse_overrides(listed)}  # the last one of a key
        try:
            import optuna
            from optuna.trial import TrialState
        except ModuleNotFoundError as error:
            raise ValueError(f"sweep=optuna needs pip install -e '.[sweeps]': {error}") from error
        space = {key: distribution(key, o) for key, o in overrides.items() if o.is_sweep_override()}
        fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in overrides.items() if key not in space]
        if not space:
            raise ValueError("sweep=optuna has nothing to search: add, say, cell.dropout=interval(0.0,0.5)")

        folder = Path(self.config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = open_study(folder, direction=self.direction)
        begun = study.get_trials()
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(begun))  # not its first draws again
        for broken in begun:
            if broken.state == TrialState.RUNNING:
                study.tell(broken.number, state=TrialState.FAIL)
                study.enqueue_trial(broken.params)
        ended = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
        log.info(f"{folder}: {self.n_trials} trials, of which {ended} have ended")

        for first in range(ended, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - first))]
            jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, result in zip(trials, results, strict=True):
                if result.status == JobStatus.COMPLETED:
                    told = study.tell(trial, result.return_value)
                else:
                    pruned = isinstance(result._return_value, optuna.TrialPruned)
                    told = study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
                log.info(f"Trial {told.number}: {told.state.name.lower()}, {told.value}")
            for result in results:
                if not isinstance(result._return_value, (optuna.TrialPruned, *DIVERGED)):
                    _ = result.return_value  # raises what went wrong
        if not study.get_trials(states=(TrialState.COMPLETE,)):
            raise ValueError(f"{folder}: none of the {self.n_trials} trials came to its end")
        best = study.best_trial
        settings = " ".join(f"{key}={value}" for key, value in best.params.items())
        log.info(f"The best: {folder / str(best.number)}, {best.value:.5g}, {settings}")


def open_study(folder: str | Path, **settings: Any) -> "Study":
    """The study in a sweep's folder, made if there is none.

    A journal, not SQLite: several processes write to it, on a cluster over a network's file system.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    storage = JournalStorage(JournalFileBackend(str(Path(folder) / JOURNAL)))
    return optuna.create_study(storage=storage, study_name="lstmlab", load_if_exists=True, **settings)


def distribution(key: str, override: Override) -> "BaseDistribution":
    """What Optuna may choose from: an interval, of whole numbers if both ends are, or the values listed."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    low, high, log_scale = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None and high is not None
    typed = re.sub(r"\s", "", override.input_line or "")
    try:
        if isinstance(low, int) or WHOLE.search(typed):  # interval() has made floats of its ends
            return IntDistribution(int(low), int(high), log_scale)
        return FloatDistribution(low, high, log_scale)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
