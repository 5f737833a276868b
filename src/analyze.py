"""Look inside a trained model: gates, states, what its units know and how far its gradients reach.

python src/analyze.py ckpt=RUN/checkpoints/best.ckpt                       its own validation data
python src/analyze.py ckpt=RUN/checkpoints/best.ckpt text="def f(x): …"    any text
"""

from lstmlab.__main__ import analyze as main

if __name__ == "__main__":
    main()
