"""Train a model.

python src/train.py model=charlm                  an LSTM learns to write Python, offline, in two minutes
python src/train.py model=charlm cell=scratch     the same, with the LSTM written one equation per line
python src/train.py --help                        every choice and every setting
"""

from lstmlab.config import entry_point
from lstmlab.schema import TrainConfig


@entry_point("train")
def main(config: TrainConfig) -> float:
    # torch and Lightning take seconds to import, and a typo is reported before that
    from lstmlab.runs.launch import launch

    return launch(config)[config.model.monitor]


if __name__ == "__main__":
    main()
