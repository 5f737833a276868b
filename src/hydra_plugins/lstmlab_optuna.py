"""`python src/train.py -m sweep=optuna`: a Hydra sweeper that searches with Optuna.

Hydra finds plugins only in a package named `hydra_plugins`, and imports them in every command. Slow imports
are therefore made in `sweep`.
"""

import logging
import re
import shlex
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
TRIAL_FAILURES = (FloatingPointError, MemoryError)  # fail a trial and not the search
WHOLE_NUMBERS = re.compile(r"(?<!float\()interval\((start=)?[+-]?\d+,(end=)?[+-]?\d+\)")
log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Run `n_trials` trials, `n_jobs` at a time, with settings that the results so far suggest.

    A trial that diverges or runs out of memory fails, and the search continues. Any other error ends it. An
    interrupted study resumes: it restarts the trials that were running and runs those still missing.

    Raises:
        ValueError: there is nothing to search or to run, no trial finished, or Optuna is not installed.
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
        from lstmlab.help import show_as_typed

        for key, value in {"n_trials": self.n_trials, "n_jobs": self.n_jobs}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"hydra.sweeper.{key}={value}: input should be a whole number of at least 1")
        parser = OverridesParser.create(self.hydra_context.config_loader)
        typed = [f"{key!s}={value}" for key, value in self.params.items()] + arguments
        # The last override of a key wins
        overrides = {o.get_key_element(): o for o in parser.parse_overrides(typed)}
        try:
            import optuna
            from optuna.trial import TrialState
        except ModuleNotFoundError as error:
            raise ValueError(f"sweep=optuna needs pip install -e '.[sweeps]': {error}") from error
        space = {key: build_distribution(key, o) for key, o in overrides.items() if o.is_sweep_override()}
        fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in overrides.items() if key not in space]
        if not space:
            raise ValueError(
                "sweep=optuna has nothing to search; add cell.dropout=interval(0.0,0.5), for example"
            )

        folder = Path(self.config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = open_study(folder, direction=self.direction)
        earlier = study.get_trials()
        # A resumed study must not repeat its first draws
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(earlier))
        for running in (trial for trial in earlier if trial.state == TrialState.RUNNING):
            study.tell(running.number, state=TrialState.FAIL)
            study.enqueue_trial(running.params)
        finished = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
        log.info(f"{folder}: {finished} of {self.n_trials} trials have finished")

        for first in range(finished, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - first))]
            jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, result in zip(trials, results, strict=True):
                if result.status == JobStatus.COMPLETED:
                    ended = study.tell(trial, result.return_value)
                else:
                    pruned = isinstance(result._return_value, optuna.TrialPruned)
                    ended = study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
                log.info(f"Trial {ended.number}: {ended.state.name.lower()}, {ended.value}")
            for result in results:
                if not isinstance(result._return_value, (optuna.TrialPruned, *TRIAL_FAILURES)):
                    _ = result.return_value  # raises the error of a failed job
        if not study.get_trials(states=(TrialState.COMPLETE,)):
            raise ValueError(f"{folder}: none of the {self.n_trials} trials finished")
        best = study.best_trial
        chosen = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in best.params.items()]
        kept = [each for each in fixed if not each.startswith(("sweep=", "callbacks.pruning"))]
        command = show_as_typed(shlex.join(["python", "src/train.py", *kept, *chosen]))
        log.info(f"Best trial: {folder / str(best.number)}, {best.value:.5g}. To train it: {command}")


def open_study(folder: str | Path, **settings: Any) -> "Study":
    """Open the study in a sweep's folder, or create it.

    It is a journal, not an SQLite file: several processes can write to it on a network file system.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    storage = JournalStorage(JournalFileBackend(str(Path(folder) / JOURNAL)))
    return optuna.create_study(storage=storage, study_name="lstmlab", load_if_exists=True, **settings)


def build_distribution(key: str, override: Override) -> "BaseDistribution":
    """What Optuna may choose from: listed values, or an interval (of integers if both ends are)."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    low, high, log_scale = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None and high is not None
    typed = re.sub(r"\s", "", override.input_line or "")
    try:
        # interval() has turned its ends into floats
        if isinstance(low, int) or WHOLE_NUMBERS.search(typed):
            return IntDistribution(int(low), int(high), log_scale)
        return FloatDistribution(low, high, log_scale)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
