"""Export a trained model as one file, with its configuration and vocabulary inside.

python src/export.py ckpt=RUN/checkpoints/best.ckpt                      RUN/export/model.onnx
python src/export.py ckpt=RUN/checkpoints/best.ckpt format=safetensors   weights, which ckpt=… opens again
python src/export.py ckpt=RUN/checkpoints/best.ckpt format=html          RUN/export/model.html, for a browser
"""

from lstmlab.__main__ import export as main

if __name__ == "__main__":
    main()
