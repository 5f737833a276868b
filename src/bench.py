"""Measure how fast it is, against what else there is.

python src/bench.py suite=train        a run's training steps against a bare PyTorch loop
"""

from lstmlab.config import entry_point


@entry_point("bench")
def main(config: dict) -> None:
    from lstmlab.benchmarks.train import overhead

    overhead(config)


if __name__ == "__main__":
    main()
