"""Evaluate a trained model on its validation and test data.

python src/evaluate.py ckpt=RUN/checkpoints/best.ckpt                  the numbers of metrics.json again
python src/evaluate.py ckpt=RUN/checkpoints/best.ckpt backend=scratch  with the cells of another backend
python src/evaluate.py ckpt=RUN/checkpoints/best.ckpt beam_size=1      translations by greedy search
python src/evaluate.py ckpt=RUN data.test=FILE                         translations of another test set
python src/evaluate.py 'ensemble=[RUN,RUN2,RUN3]'                      the mean of their probabilities
python src/evaluate.py ckpt=RUN average=5                              the mean of its last weights
python src/evaluate.py ckpt=RUN set="layer0.c[3]=0"                    with a unit held at 0, and its cost
"""

from lstmlab.__main__ import evaluate as main

if __name__ == "__main__":
    main()
