"""Look inside a trained model: gates, states, what its units know and how far its gradients reach.

python src/analyze.py ckpt=RUN/checkpoints/best.ckpt                       its own validation data
python src/analyze.py ckpt=RUN/checkpoints/best.ckpt text="def f(x): …"    any text
"""

import sys

from lstmlab.config import entry_point
from lstmlab.schema import AnalyzeConfig


@entry_point("analyze")
def main(config: AnalyzeConfig) -> None:
    from lstmlab.analysis.report import analyze

    if config.text == "-":
        config = config.replace({"text": sys.stdin.read()})
    folder = analyze(config)
    print(f"\n{folder}: report.md, page.html (open it in a browser), traces.npz, plots")


if __name__ == "__main__":
    main()
