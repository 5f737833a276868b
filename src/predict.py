"""Get predictions from a trained model.

python src/predict.py ckpt=RUN text="ROMEO:" length=500 temperature=0.8
python src/predict.py ckpt=RUN input=reviews.csv output=answers.csv
"""

from lstmlab.__main__ import predict as main

if __name__ == "__main__":
    main()
