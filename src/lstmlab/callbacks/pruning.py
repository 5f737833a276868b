"""Ends trials of a search that do worse than the median (Golovin et al. 2017, median stopping rule)."""

from pathlib import Path

import lightning as L
import optuna

from hydra_plugins.lstmlab_optuna import JOURNAL, open_study


class Pruning(L.Callback):
    """Raise optuna.TrialPruned after a validation if the best value so far is worse than the median of the
    other trials after as many validations. A finished trial that is resumed is never pruned.

    Args:
        monitor: the metric; its direction is the study's.
        startup_trials: the number of trials that finish before any is pruned.
        warmup: the number of validations before a trial may be pruned.
        study: the sweep's folder.
        trial: the number of the trial in the study.

    Raises:
        FileNotFoundError: there is no study in the folder.
    """

    def __init__(self, monitor: str, startup_trials: int, warmup: int, study: str, trial: int):
        if not (Path(study) / JOURNAL).is_file():
            raise FileNotFoundError(
                f"callbacks.pruning.study={study} has no {JOURNAL}; "
                "callbacks.pruning=null trains without pruning"
            )
        pruner = optuna.pruners.MedianPruner(startup_trials, n_warmup_steps=warmup)
        opened = open_study(study, pruner=pruner)
        self.trial = optuna.Trial(opened, opened.trials[trial]._trial_id)
        self.active = not opened.trials[trial].state.is_finished()
        self.monitor, self.validations = monitor, 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.active:
            self.validations += 1
            self.trial.report(float(trainer.callback_metrics[self.monitor]), self.validations)
            if self.trial.should_prune():
                raise optuna.TrialPruned(f"after {self.validations} validations")
