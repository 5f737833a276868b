"""metrics.csv, in the run's own folder."""

import csv
import io
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from lstmlab.atomic import replace_file


class _Writer(ExperimentWriter):
    rows = 0  # in the file

    def _check_log_dir_exists(self) -> None:
        """Go on with a file that is there; Lightning's own writer deletes it."""
        file = Path(self.metrics_file_path)
        if file.exists():
            with file.open(newline="") as lines:
                reader = csv.DictReader(lines)
                self.metrics_keys = list(reader.fieldnames or [])
                self.rows = sum(1 for _ in reader)

    def save(self) -> None:
        self.rows += len(self.metrics)
        super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Lightning's own empties the file first: to be killed then would cost all rows."""
        with Path(self.metrics_file_path).open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        with replace_file(self.metrics_file_path) as file:
            file.write(text.getvalue().encode())


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

    def cut(self, rows: int) -> None:
        """Forget what was logged after the first `rows` rows, before anything more is logged."""
        path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            with replace_file(path) as file:
                file.writelines(lines[: 1 + rows])
            self._experiment = None  # which has counted the rows
