"""Get predictions from a trained model.

python src/predict.py ckpt=RUN/checkpoints/best.ckpt text="ROMEO:" length=500 temperature=0.8
"""

import sys

from lstmlab.config import entry_point, refuse_unread
from lstmlab.schema import PredictConfig


@entry_point("predict")
def main(config: PredictConfig) -> None:
    from lstmlab.checkpoint import load_model

    text = sys.stdin.read() if config.text == "-" else config.text
    model = load_model(config.ckpt, config.backend, config.accelerator)
    read = {"ckpt", "text", "backend", "accelerator", *model.options}
    refuse_unread(read, of=f"model={model.config.model.name}")
    for piece in model.respond(text, config):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
