"""Get predictions from a trained model.

python src/predict.py ckpt=RUN text="ROMEO:" length=500 temperature=0.8
python src/predict.py ckpt=RUN input=reviews.csv output=answers.csv
"""

import sys
from collections.abc import Iterable
from typing import Any

from lstmlab.config import entry_point, refuse_unread
from lstmlab.schema import PredictConfig


@entry_point("predict")
def main(config: PredictConfig) -> None:
    import torch

    from lstmlab.analysis.interventions import intervene, parse_settings
    from lstmlab.checkpoint import load_model

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    backend = config.backend if config.set is None else "scratch"
    model = load_model(config.ckpt, backend, config.accelerator)
    read = {"ckpt", "text", "input", "output", "column", "threads", "backend", "accelerator", "set"}
    refuse_unread(read | set(model.options), of=f"model={model.config.model.name}")
    with intervene(model, parse_settings(config.set or "", model)):
        answer(config, model)


def answer(config: PredictConfig, model: Any) -> None:
    """Print the answers to the texts of `config`, or write them to its file."""
    from lstmlab.runs.predict import predict_file

    if config.input is not None:
        print(f"{config.output}: {predict_file(model, config):,} answers")
        return
    if config.text == "-" and not model.writes_text:
        lines: Iterable[str] = (line.rstrip("\r\n") for line in sys.stdin)
    else:
        lines = [sys.stdin.read() if config.text == "-" else str(config.text)]
    for line in lines:
        if line.strip() or config.text != "-":
            for piece in model.respond(line, config):
                print(piece, end="", flush=True)
            config = config.replace({"attention_map": None})  # is of the first line
        print(flush=True)


if __name__ == "__main__":
    main()
