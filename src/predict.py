"""Ask a trained model.

python src/predict.py ckpt=RUN/checkpoints/best.ckpt text="ROMEO:" length=500 temperature=0.8
"""

import sys

from hydra.core.hydra_config import HydraConfig

from lstmlab.config import entry_point


@entry_point("predict")
def main(config: dict) -> None:
    from lstmlab.checkpoint import load_model

    text = sys.stdin.read() if config["text"] == "-" else config["text"]
    model = load_model(config["ckpt"], config["backend"], config["accelerator"])
    typed = {override.partition("=")[0] for override in HydraConfig.get().overrides.task}
    if unread := sorted(typed - {"ckpt", "text", "backend", "accelerator"} - set(model.options)):
        takes = ", ".join(model.options) or "no such settings"
        raise ValueError(f"{unread[0]}= means nothing to this {type(model).__name__}, which takes {takes}")
    for piece in model.respond(text, config):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
