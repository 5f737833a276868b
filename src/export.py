"""Export a trained model as one file, with its configuration and vocabulary inside.

python src/export.py ckpt=RUN/checkpoints/best.ckpt                      RUN/export/model.onnx
python src/export.py ckpt=RUN/checkpoints/best.ckpt format=safetensors   weights, which ckpt=… opens again
"""

from lstmlab.config import entry_point
from lstmlab.schema import ExportConfig


@entry_point("export")
def main(config: ExportConfig) -> None:
    from lstmlab.export import export

    print(*export(config), sep="\n")


if __name__ == "__main__":
    main()
