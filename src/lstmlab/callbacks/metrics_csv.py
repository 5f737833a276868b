"""metrics.csv, in the run's own folder."""

import csv
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Go on with a file that is there; Lightning's own writer deletes it."""
        file = Path(self.metrics_file_path)
        if file.exists():
            with file.open(newline="") as rows:
                self.metrics_keys = list(csv.DictReader(rows).fieldnames or [])


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger, writing RUN_DIR/metrics.csv and continuing one that is there."""

    def __init__(self, run_dir: str):
        super().__init__(run_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if not isinstance(self._experiment, _Writer):
            self._experiment = _Writer(self.log_dir)
        return self._experiment
