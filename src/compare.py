"""Compare runs: a table and a plot by the settings that differ, with mean ± standard deviation over seeds.

python src/compare.py runs=logs/copytask/multirun_DATE                            a sweep: train.py -m …
python src/compare.py runs=SWEEP,SWEEP 'metrics=[test/sequence_accuracy,train/*]' several, chosen metrics
python src/compare.py runs=SWEEP x=data.delay                                     plotted over this setting
"""

from lstmlab.__main__ import compare as main

if __name__ == "__main__":
    main()
