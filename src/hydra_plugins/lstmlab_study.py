"""`python src/train.py -m sweep=STUDY`: several sweeps in one, as a sweeper of Hydra's."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override


def jobs_of(lines: list[str], typed: list[str], parser: OverridesParser) -> list[list[str]]:
    """The overrides of each job: every line swept in turn, as if typed after -m; what is typed then wins."""
    overrides = [parser.parse_overrides([*line.split(), *typed]) for line in lines]
    return [job for sweep in overrides for job in BasicSweeper.split_arguments(sweep, None)[0]]


class StudySweeper(BasicSweeper):
    """Hydra's own sweeper over each line of `jobs` in turn, a line being what one would type after -m.

    What is typed on the command line applies to every line, and wins.
    """

    def __init__(self, jobs: list[str]):
        super().__init__(max_batch_size=None, params={})
        self.jobs = jobs

    def split_arguments(  # type: ignore[override]  # static there
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        assert self.hydra_context is not None
        parser = OverridesParser.create(self.hydra_context.config_loader)
        return [jobs_of(self.jobs, [str(each.input_line) for each in overrides], parser)]
