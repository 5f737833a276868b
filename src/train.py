"""Train a model.

python src/train.py model=charlm                  an LSTM learns to write Python, offline, in 90 seconds
python src/train.py model=charlm cell=scratch     the same, with the LSTM written one equation per line
python src/train.py --help                        every choice and every setting
"""

from lstmlab.__main__ import train as main

if __name__ == "__main__":
    main()
