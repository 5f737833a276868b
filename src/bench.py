"""Measure speed against the alternatives; writes tables, bench.json and bench.png.

python src/bench.py suite=cells        the cells against nn.LSTM: dense, ragged, step by step, memory
python src/bench.py suite=engines      each engine of cell=fused, and where cell.engine=auto is wrong here
python src/bench.py suite=kinds        newer kinds against nn.GRU and the LSTM
python src/bench.py suite=ladder       what each step from the equations to a fast cell gains
python src/bench.py suite=sample       sampling from a character model
python src/bench.py suite=compile cell=fused   a training step with and without torch.compile
python src/bench.py suite=train        a run's training steps against a bare PyTorch loop
python src/bench.py suite=speedrun experiment=shakespeare_speedrun rounds=3   seconds until it is learnt
python src/bench.py suite=floors data=imdb   how good baselines without a network are (no bench.png)
"""

from lstmlab.__main__ import bench as main

if __name__ == "__main__":
    main()
