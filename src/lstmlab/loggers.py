"""The loggers of a run: metrics.csv, and wandb and TensorBoard behind one `show`."""

import csv
import io
import secrets
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from matplotlib.figure import Figure
from PIL import Image

from lstmlab import distributed
from lstmlab.atomic import replace_file
from lstmlab.config import is_sweep
from lstmlab.schema import TrainConfig
from lstmlab.tables import markdown


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger, but for RUN_DIR/metrics.csv, and with a file that exists continued."""

    def __init__(self, run_dir: str):
        super().__init__(run_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if not isinstance(self._experiment, _RowWriter):
            self._experiment = _RowWriter(self.log_dir)
        return self._experiment

    def keep_rows(self, count: int) -> None:
        """Delete all but the first `count` rows of the file. Call this before anything is logged."""
        path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            with replace_file(path) as file:
                file.writelines(lines[: 1 + count])
            # The writer has counted the rows of the longer file
            self._experiment = None


class _RowWriter(ExperimentWriter):
    rows = 0  # rows in the file

    def _check_log_dir_exists(self) -> None:
        """Continue a file that exists, which Lightning's writer would delete."""
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
        """Replace the file atomically. Lightning empties it first: a kill would lose all rows."""
        with Path(self.metrics_file_path).open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        with replace_file(self.metrics_file_path) as file:
            file.write(text.getvalue().encode())


def add_wandb_ids(loggers: dict[str, Any]) -> dict[str, Any]:
    """The `logger` group with an id for each wandb run, needed to resume it, and one group for a sweep."""
    sweep = Path(HydraConfig.get().sweep.dir).name if is_sweep() else None
    return loggers | {
        name: settings
        | {"id": settings.get("id") or secrets.token_hex(4), "group": settings.get("group") or sweep}
        for name, settings in loggers.items()
        if settings["_target_"].endswith("WandbLogger")
    }


def build_loggers(config: TrainConfig, resumed_at: int | None) -> list[Logger]:
    """metrics.csv and the loggers of the `logger` group.

    resumed_at: the step from which the run resumes; TensorBoard drops what it holds of later steps.
    """
    loggers: list[Logger] = [MetricsCSV(config.run_dir)]
    for name, settings in config.logger.items():
        extra = {"purge_step": resumed_at} if settings.target.endswith("TensorBoardLogger") else {}
        logger = settings.build(f"logger.{name}", Logger, **extra)
        if isinstance(logger, WandbLogger) and distributed.rank() == 0:
            logger.experiment.config.update(config.to_plain(), allow_val_change=True)
            monitor, mode = config.model.monitor, config.model.monitor_mode
            logger.experiment.define_metric(monitor, summary=mode)
        loggers.append(logger)
    return loggers


def show(
    trainer: L.Trainer,
    name: str,
    text: str | None = None,
    table: tuple[list[str], list[list]] | None = None,
    picture: Figure | Image.Image | None = None,
) -> None:
    """Send a text, a table or a picture to wandb and TensorBoard, under `name` and the current step.

    table: the column names, and the rows. In wandb, a text beside a picture is its caption.
    """
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            if table is not None:
                logger.log_table(name, *table)
            if picture is not None:
                logger.log_image(name, [picture], caption=[text])
            elif text is not None:
                logger.log_table(name, ["step", "text"], [[step, text]])

        elif isinstance(logger, TensorBoardLogger):
            for content in (text, table and markdown(*table)):
                if content is not None:
                    logger.experiment.add_text(name, content, step)
            if isinstance(picture, Figure):
                logger.experiment.add_figure(name, picture, step, close=False)
            elif picture is not None:
                logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
