"""Evaluate a trained model on its validation and test data.

python src/evaluate.py ckpt=RUN/checkpoints/best.ckpt                  the numbers of metrics.json again
python src/evaluate.py ckpt=RUN/checkpoints/best.ckpt backend=scratch  with the cells of another backend
python src/evaluate.py ckpt=RUN/checkpoints/best.ckpt beam_size=1      translations by greedy search
"""

from lstmlab.config import entry_point
from lstmlab.schema import EvaluateConfig


@entry_point("evaluate")
def main(config: EvaluateConfig) -> None:
    from lstmlab.runs.evaluate import evaluate

    for name, value in evaluate(config).items():
        print(f"{name:24} {value:.6f}")


if __name__ == "__main__":
    main()
