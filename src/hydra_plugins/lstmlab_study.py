"""`python src/train.py -m sweep=STUDY`: several sweeps in one, as a sweeper of Hydra's."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override


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
        lines = [parser.parse_overrides(line.split()) for line in self.jobs]
        return [
            [
                job
                for line in lines
                for job in super(StudySweeper, self).split_arguments(line + overrides, None)[0]
            ]
        ]
