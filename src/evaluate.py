"""Evaluate a trained model on its validation and test data.

python src/evaluate.py ckpt=RUN/checkpoints/best.ckpt                  the numbers of metrics.json again
python src/evaluate.py ckpt=RUN/checkpoints/best.ckpt backend=scratch  with the cells of another backend
python src/evaluate.py ckpt=RUN/checkpoints/best.ckpt beam_size=1      translations by greedy search
python src/evaluate.py ckpt=RUN set="layer0.c[3]=0"                    with a unit held at 0, and its cost
"""

from lstmlab.config import entry_point
from lstmlab.schema import EvaluateConfig


@entry_point("evaluate")
def main(config: EvaluateConfig) -> None:
    from lstmlab.runs.evaluate import evaluate

    metrics = evaluate(config)
    unchanged = metrics if config.set is None else evaluate(config.replace({"set": None}))
    for name, value in metrics.items():
        cost = "" if config.set is None else f" {value - unchanged[name]:+.6f}"
        print(f"{name:24} {value:.6f}{cost}")


if __name__ == "__main__":
    main()
