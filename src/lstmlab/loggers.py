"""The loggers of a run: metrics.csv, and wandb and TensorBoard behind one `show`."""

import csv
import io
import math
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
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


class TrackioLogger(Logger):
    """Records a run with trackio, on this machine and without an account; `trackio show` displays it.

    Args:
        project: the project, in which `trackio show` compares runs.
        name: the name of the run, to which the name of its folder `run_dir` is added.
        settings: more arguments of trackio.init.
    """

    def __init__(self, project: str, name: str, run_dir: str, **settings: Any):
        import trackio

        super().__init__()
        self.init = trackio.init
        self.run: Any = None
        unique = f"{name} {'/'.join(Path(run_dir).parts[-2:])}"
        self.settings = {"project": project, "name": unique, "resume": "allow"} | settings

    @property
    def name(self) -> str:
        return self.settings["project"]

    @property
    def version(self) -> str:
        return self.settings["name"]

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        self.run = self.run or self.init(**self.settings)
        return self.run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.settings["config"] = params

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step)


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

    Raises ValueError for a logger that is not installed or cannot start.
    """
    loggers: list[Logger] = [MetricsCSV(config.run_dir)]
    for name, settings in config.logger.items():
        of_tensorboard = settings.target.endswith("TensorBoardLogger")
        extra = {"purge_step": resumed_at} if of_tensorboard else {}
        # Lightning's own log_model refuses to work offline; `report_results` does it
        own = (
            settings.replace({"log_model": False})
            if settings.arguments().get("log_model") is True
            else settings
        )
        try:
            logger = own.build(f"logger.{name}", Logger, **extra)
        except ModuleNotFoundError as error:
            missing = "pip install -e '.[loggers]'" if name in ("tensorboard", "trackio") else error
            raise ValueError(f"logger={name} needs {missing}") from error
        except MisconfigurationException as error:
            raise ValueError(f"logger.{name}: {error}") from error
        if isinstance(logger, WandbLogger) and distributed.rank() == 0:
            start_wandb(logger, name, config, new=resumed_at is None)
        elif of_tensorboard:
            # TensorBoard shows settings only beside a metric, which `report_results` logs
            logger.log_hyperparams(config.to_plain(), {f"best/{config.model.monitor}": math.nan})
        elif distributed.rank() == 0:
            logger.log_hyperparams(config.to_plain())
        loggers.append(logger)
    return loggers


def start_wandb(logger: WandbLogger, name: str, config: TrainConfig, new: bool) -> None:
    """Start the wandb run. Raises ValueError, and leaves nothing behind of a new run, if that fails."""
    import wandb

    if logger._wandb_init["anonymous"] is None:
        del logger._wandb_init["anonymous"]  # wandb warns that it has no effect
    try:
        logger.log_hyperparams(config.to_plain())
    except wandb.Error as error:
        if new:
            shutil.rmtree(Path(config.run_dir) / "wandb", ignore_errors=True)
        reason = " ".join(str(error).split()).rstrip(".")
        way_out = f"logger.{name}.offline=true needs neither an account nor a network"
        raise ValueError(f"logger={name} cannot start: {reason}; {way_out}") from error


def report_results(config: TrainConfig, trainer: L.Trainer, metrics: dict[str, float]) -> None:
    """Send what best.ckpt reached in validation to the loggers, and the file itself where log_model=true."""
    if distributed.rank() > 0:
        return
    results = {f"best/{name}": value for name, value in metrics.items() if name.startswith("val/")}
    results["train/seconds"] = metrics["train/seconds"]
    for logger, settings in zip(trainer.loggers[1:], config.logger.values(), strict=True):
        if not isinstance(logger, WandbLogger):
            logger.log_metrics(results, trainer.global_step)
            continue
        import wandb

        logger.experiment.summary.update(results)
        if settings.arguments().get("log_model") is True:
            artifact = wandb.Artifact(f"model-{logger.version}", "model", metadata=results)
            artifact.add_file(f"{config.run_dir}/checkpoints/best.ckpt")
            logger.experiment.log_artifact(artifact, aliases=["best"])


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
