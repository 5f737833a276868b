"""`python src/train.py -m sweep=STUDY`: a Hydra sweeper that runs several sweeps in one."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override


def list_jobs(lines: list[str], typed: list[str], parser: OverridesParser) -> list[list[str]]:
    """The overrides of each job: the sweep of each line, in which overrides that were `typed` win."""
    overrides = [parser.parse_overrides([*line.split(), *typed]) for line in lines]
    return [job for sweep in overrides for job in BasicSweeper.split_arguments(sweep, None)[0]]


class StudySweeper(BasicSweeper):
    """Hydra's basic sweeper, applied to each line of `jobs` as if the line had been typed after -m.

    Overrides on the command line apply to every line and win over it.
    """

    def __init__(self, jobs: list[str]):
        super().__init__(max_batch_size=None, params={})
        self.jobs = jobs

    def split_arguments(  # type: ignore[override]  # static there
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        assert self.hydra_context is not None
        parser = OverridesParser.create(self.hydra_context.config_loader)
        return [list_jobs(self.jobs, [str(each.input_line) for each in overrides], parser)]
