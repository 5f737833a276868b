import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lstmlab.config import PROJECT, quote_raw, to_plain
from lstmlab.schema import check

TEXTS = [
    "Not bad, isn't it?",
    "ä",
    "电影",
    "123",
    "null",
    "",
    "a=b (c) [d] {e}: %",
    'say "no"',
    "${model.name} costs $5",
    "\\${x} \\\\${y}",
    "back\\slash\\",
    "it\\'s",
    "\\\\'",
    "'",
    " two\nlines\t",
    "true,false",
    "#!~@",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["text", "ckpt"])
def test_raw_values_arrive_as_typed(key, text):
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        arguments = ["ckpt=x", "text=x", f"{key}={text}"]
        composed = compose("predict", [quote_raw(argument) for argument in arguments])
    assert composed[key] == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("command", "key"),
    [("train", "resume"), ("train", "data.path"), ("evaluate", "data.path"), ("compare", "runs")],
)
def test_paths_arrive_as_typed(command, key, text):
    given = ["data=textfile", "run_dir=x"] if command == "train" else []
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        composed = compose(command, [*given, quote_raw(f"{key}={text}")])
    assert OmegaConf.select(composed, key, throw_on_missing=False) == text


def test_other_values_are_left_to_hydra():
    assert quote_raw("cell.hidden_size=1,2") == "cell.hidden_size=1,2"
    assert quote_raw("--help") == "--help"


# Arguments, and a part of the message: the key, the value and what is allowed. {NAME} is a file of `files`
WRONG = [
    ("train", "cell.dropout=1.5", "cell.dropout=1.5: input should be less than 1"),
    ("train", "cell.weight_drop=1", "cell.weight_drop=1: input should be less than 1"),
    ("train", "cell.hidden_size=0", "cell.hidden_size=0: input should be greater than 0"),
    ("train", "cell.hidden_size=many", "cell.hidden_size=many: input should be a valid integer"),
    ("train", "cell.hidden_size=", "cell.hidden_size=: input should be a valid integer"),
    ("train", "cell.hidden_size=[8", "cell.hidden_size=[8: no viable alternative"),
    ("train", "cell.num_layers=1.5", "cell.num_layers=1.5: input should be a valid integer"),
    (
        "train",
        "cell.size=3",
        "'cell.size'. Did you mean cell.hidden_size? Allowed here: backend, bidirectional",
    ),
    ("train", "cell=cudnn", "'cell/cudnn' Available options in 'cell': fused scratch torch"),
    ("train", "cell", "Error parsing override 'cell'"),
    ("train", "model=lm", "'model/lm' Available options in 'model': charlm"),
    ("train", "experiment=best", "'experiment/best' Available options in 'experiment': copy"),
    ("train", "cell=torch cell.kind=peephole", "cell=torch has no cell.kind=peephole. There are scratch"),
    ("train", "cell.kind=slstm cell.hidden_size=6", "cell.heads=4 must divide cell.hidden_size=6"),
    ("train", "cell.rank=2", "cell.rank=2 is for cell.kind=mogrifier, not cell.kind=lstm"),
    ("train", "cell.heads=2", "cell.heads=2 is for cell.kind=slstm, not cell.kind=lstm"),
    (
        "train",
        "cell.kind=mingru cell.weight_drop=0.1",
        "cell.weight_drop=0.1 is not for cell.kind=mingru, without weight_hh",
    ),
    ("train", "cell.bidirectional=true", "cell.bidirectional=true would show model=charlm"),
    ("train", "cell.init=chrono", "cell.init=chrono needs cell.chrono_steps"),
    (
        "train",
        "model=copytask cell=fused cell.kind=gru cell.init=chrono",
        "init=chrono sets input and forget",
    ),
    ("train", "cell.engine=amx", "cell.engine=amx multiplies in bf16, so it needs precision=bf16"),
    ("train", "cell=torch cell.recompute=true", "cell.recompute=true is for cell=fused, not cell=torch"),
    ("train", "cell.bidirectional=1", "cell.bidirectional=1: input should be a valid boolean"),
    ("train", "cell.hidden_size='8'", "cell.hidden_size=8: input should be a valid integer"),
    ("train", "cell.chrono_steps=2", "cell.chrono_steps=2: input should be greater than or equal to 3"),
    ("train", "cell.forget_bias=nan", "cell.forget_bias=nan: input should be a finite number"),
    ("train", "optimizer.lr=-1", "optimizer.lr=-1: input should be greater than 0"),
    (
        "train",
        "optimizer.weight_decay=-1",
        "optimizer.weight_decay=-1: input should be greater than or equal to 0",
    ),
    ("train", "optimizer=adamw optimizer.betas=[0.9]", "optimizer.betas=[0.9]: list should have at least 2"),
    ("train", "optimizer=sgd optimizer.momentum=1.0", "optimizer.momentum=1.0: input should be less than 1"),
    (
        "train",
        "scheduler=cosine scheduler.final_lr=1.5",
        "scheduler.final_lr=1.5: input should be less than or",
    ),
    ("train", "scheduler=plateau scheduler.factor=1.0", "scheduler.factor=1.0: input should be less than 1"),
    (
        "train",
        "scheduler=plateau scheduler.factor=0.0",
        "scheduler.factor=0.0: input should be greater than 0",
    ),
    (
        "train",
        "scheduler=plateau scheduler.patience=0",
        "scheduler.patience=0: input should be greater than 0",
    ),
    (
        "train",
        "scheduler.warmup_steps=-1",
        "scheduler.warmup_steps=-1: input should be greater than or equal",
    ),
    ("train", "clipping.max_norm=0", "clipping.max_norm=0: input should be greater than 0"),
    ("train", "clipping=value clipping.max_value=0", "clipping.max_value=0: input should be greater than 0"),
    ("train", "trainer.max_steps=0", "trainer.max_steps=0: input should be greater than 0"),
    ("train", "trainer.val_check_interval=0.0", "trainer.val_check_interval=0.0: "),
    (
        "train",
        "trainer.accumulate_grad_batches=0",
        "trainer.accumulate_grad_batches=0: input should be greater",
    ),
    (
        "train",
        "trainer.overfit_batches=-1",
        "trainer.overfit_batches=-1: input should be greater than or equal",
    ),
    ("train", "trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: input should be greater than 0"),
    ("train", "trainer.limit_val_batches=0", "trainer.limit_val_batches=0: input should be greater than 0"),
    (
        "train",
        "callbacks.last.every_n_steps=0",
        "callbacks.last.every_n_steps=0: input should be greater than 0",
    ),
    (
        "train",
        "callbacks.last.every_n_minutes=0",
        "callbacks.last.every_n_minutes=0: input should be greater",
    ),
    ("train", "callbacks.doctor.waiting=1.5", "callbacks.doctor.waiting=1.5: input should be less than or"),
    ("train", "callbacks.doctor.waiting=0", "callbacks.doctor.waiting=0: input should be greater than 0"),
    ("train", "callbacks.doctor.flat=1.0", "callbacks.doctor.flat=1.0: input should be less than 1"),
    ("train", "callbacks.gates.units=0", "callbacks.gates.units=0: input should be greater than 0"),
    ("train", "data.val_fraction=0", "data.val_fraction=0: input should be greater than 0"),
    ("train", "data.max_val_chars=256", "data.max_val_chars=256: input should be greater than 256"),
    ("train", "optimizer.lr=nan", "optimizer.lr=nan: input should be"),
    ("train", "optimizer.lr=inf", "optimizer.lr=inf: input should be a finite number"),
    ("train", "optimizer=lion", "'optimizer/lion' Available options in 'optimizer': adam"),
    (
        "train",
        "optimizer._target_=os.system",
        "optimizer._target_=os.system must be a subclass of Optimizer",
    ),
    (
        "train",
        "scheduler=plateau scheduler.final_lr=0",
        "'scheduler.final_lr'. It belongs to scheduler=cosine. Allowed here: factor",
    ),
    (
        "train",
        "clipping=value clipping.max_norm=1",
        "'clipping.max_norm'. It belongs to clipping=norm. Allowed here: max_value",
    ),
    ("train", "precision=fp16", "precision=fp16 needs trainer=gpu"),
    ("train", "trainer=tpu", "'trainer/tpu' Available options in 'trainer': cpu"),
    ("train", "trainer.devices=0", "trainer.devices=0: input should be greater than 0"),
    (
        "train",
        "trainer.max_epochs=null",
        "trainer.max_epochs=null and trainer.max_steps=null would never end",
    ),
    ("train", "trainer.val_check_interval=1.5", "trainer.val_check_interval=1.5: "),
    ("train", "threads=0", "threads=0: input should be greater than 0"),
    ("train", "seed=-1", "seed=-1: input should be greater than or equal to 0"),
    ("train", "+sead=1", "sead=1: no such key"),
    ("train", "logger=mlflow", "'logger/mlflow' Available options in 'logger': csv"),
    ("train", "callbacks.last._target_=lightning.pytorch.callbacks.lambda_function.os.system", "_target_"),
    ("train", "+callbacks.best.x._target_=os.getcwd", "callbacks.best.x="),
    ("train", "+callbacks.mine=3", "callbacks.mine=3: input should be a group of settings"),
    (
        "train",
        "callbacks.early_stopping=3",
        "callbacks.early_stopping=3: input should be a group",
    ),
    (
        "train",
        "+callbacks._target_=mine.Counter",
        "callbacks._target_=mine.Counter: this belongs below a name of its own",
    ),
    ("train", "+logger._target_=mine.Logger", "logger._target_=mine.Logger: this belongs below a name"),
    ("train", "callbacks.best=null", "callbacks.best=null would keep no best.ckpt"),
    ("train", "~optimizer.lr", "optimizer.lr is required: optimizer.lr=…"),
    ("train", "model=copytask ~data.symbols", "data.symbols is required: data.symbols=…"),
    (
        "train",
        "callbacks.early_stopping.patience=x",
        "callbacks.early_stopping.patience=x: input should",
    ),
    (
        "train",
        "callbacks=averaging callbacks.averaging.decay=1",
        "callbacks.averaging.decay=1: input should be less than 1",
    ),
    (
        "train",
        "callbacks=averaging callbacks.averaging.from_step=-1",
        "callbacks.averaging.from_step=-1: input should be greater than or equal to 0",
    ),
    ("train", "data.batch_size=0", "data.batch_size=0: input should be greater than 0"),
    ("train", "data.sequence_length=-5", "data.sequence_length=-5: input should be greater than 0"),
    ("train", "data.val_fraction=1", "data.val_fraction=1"),
    ("train", "model=sentiment data=stdlib", "data=stdlib does not fit model=sentiment, which takes imdb"),
    ("train", "data=textfile", "data.path is required: data.path=…"),
    ("train", "data=textfile data.path=/no/such/file", "data.path=/no/such/file: no such file"),
    (
        "train",
        "data=textfile data.path=/no/*.such",
        "data.path=/no/*.such: no such file, and none that matches",
    ),
    ("train", "data=textfile data.path={empty}", "{empty} is empty"),
    ("train", "data=textfile data.path={short}", "characters to train on, fewer than data.batch_size=16"),
    ("train", "data=textfile data.path={latin1}", "{latin1} is not UTF-8 text"),
    ("train", "data=shakespeare data.path={folder}", "no file input.txt there"),
    ("train", "data=shakespeare data.path={short}", "{short} is not Tiny Shakespeare"),
    ("train", "data=shakespeare data.cache={cache}", "could not fetch karpathy/tiny_shakespeare"),
    ("train", "model=sentiment data.cache={cache}", "by data.path=FOLDER, or use data=reviews"),
    ("train", "model=sentiment data.path=/nowhere", "data.path=/nowhere is not a folder"),
    ("train", "model=sentiment data.path={folder}", "holds no train-*.parquet"),
    (
        "train",
        "model=sentiment data.path={truncated}",
        "cannot read train-*.parquet in",
    ),
    ("train", "model=sentiment data.path={no_label}", "has no column label, only text"),
    (
        "train",
        "model=seq2seq data.path={broken_lines}",
        "cannot read train.jsonl in",
    ),
    ("train", "model=seq2seq data=dates data.locales=[xx_YY]", "data.locales names xx_YY"),
    (
        "train",
        "model=seq2seq data=dates data.first_year=2100",
        "data.first_year=2100 is after data.last_year",
    ),
    (
        "train",
        "model=seq2seq data.vocab_size=10 data.path={pairs}",
        "data.vocab_size=10 must be at least 260",
    ),
    (
        "train",
        "model=seq2seq data.max_length=1 data.path={pairs}",
        "data.max_length=1 leaves no training pair",
    ),
    ("train", "model=seq2seq model.monitor=val/bleu", "model.monitor=val/bleu: "),
    (
        "train",
        "model=seq2seq model.r_drop=-1",
        "model.r_drop=-1: input should be greater than or equal to 0",
    ),
    (
        "train",
        "model=seq2seq model.r_drop=2 model.dropout=0",
        "model.r_drop=2.0 compares two passes that differ by dropout; raise model.dropout",
    ),
    (
        "train",  # a single layer has no dropout between layers
        "model=seq2seq model.r_drop=2 model.dropout=0 cell.dropout=0.5 cell.num_layers=1",
        "model.r_drop=2.0 compares two passes that differ by dropout; raise model.dropout",
    ),
    (
        "train",
        "model=seq2seq model.label_smoothing=1.0",
        "model.label_smoothing=1.0: input should be less than 1",
    ),
    (
        "train",
        "model=seq2seq model.length_penalty=-1",
        "model.length_penalty=-1: input should be greater than or",
    ),
    ("train", "model=seq2seq data=dates data.first_year=999", "data.first_year=999: input should be greater"),
    ("train", "model=seq2seq data=dates data.last_year=10000", "data.last_year=10000: input should be less"),
    (
        "train",
        "model=seq2seq data=dates data.locales=[]",
        "data.locales=[]: list should have at least 1 item",
    ),
    (
        "train",
        "model=seq2seq data=dates data.tokenizer=word",
        "data.tokenizer=word: input should be 'char' or",
    ),
    ("train", "model=seq2seq data.tokenizer=word", "data.tokenizer=word: input should be 'bpe'"),
    (
        "train",
        "model=sentiment model.word_dropout=1.0",
        "model.word_dropout=1.0: input should be less than 1",
    ),
    (
        "train",
        "model=sentiment model.adversarial=-1",
        "model.adversarial=-1: input should be greater than or",
    ),
    ("train", "model=sentiment data.num_workers=-1", "data.num_workers=-1: input should be greater than or"),
    (
        "train",
        "model=copytask cell=torch cell.weight_drop=-1",
        "cell.weight_drop=-1: input should be greater",
    ),
    ("train", "model=copytask data.symbols=1", "data.symbols=1: input should be greater than or equal to 2"),
    ("train", "model=copytask data.delay=-1", "data.delay=-1: input should be greater than or equal to 0"),
    (
        "train",
        "model=copytask data.delay=[20,10]",
        "data.delay=[20, 10] must be a number of steps or a range",
    ),
    ("train", "hydra.run.dir={finished}", "run_dir={finished} already holds a run; choose another"),
    ("train", "hydra.run.dir={short}/run", "{short}"),
    ("train", "sweep=optuna", "sweep=optuna needs -m: python src/train.py -m sweep=optuna"),
    (
        "train",
        "-m sweep=optuna hydra.sweeper.n_trials=0",
        "hydra.sweeper.n_trials=0: input should be a whole",
    ),
    ("train", "-m sweep=optuna optimizer.lr=interval(1.0,0.1)", "optimizer.lr: `low <= high` must hold"),
    ("train", "-m sweep=optuna optimizer.lr=1 cell.dropout=0 cell.hidden_size=8", "has nothing to search"),
    (
        "train",
        "model=seq2seq data=dates data.bpe_dropout=0.1",
        "data.bpe_dropout=0.1 is for data.tokenizer=bpe, not char",
    ),
    ("train", "model=seq2seq data.bpe_dropout=1", "data.bpe_dropout=1: input should be less than 1"),
    ("predict", "text=a", "ckpt is required: ckpt=…"),
    ("predict", "ckpt=nowhere.ckpt text=a", "ckpt=nowhere.ckpt: no such file"),
    ("predict", "ckpt={folder} text=a", "ckpt={folder}: a folder without checkpoints/best.ckpt"),
    ("predict", "ckpt={empty} text=a", "ckpt={empty} is empty"),
    ("predict", "ckpt={latin1} text=a", "ckpt={latin1} is not a checkpoint"),
    ("predict", "ckpt={foreign} text=a", "ckpt={foreign} is a checkpoint, but was not written by lstmlab"),
    ("predict", "ckpt={code} text=a", "ckpt={code} holds Python objects, which could run code; refused"),
    ("predict", "ckpt={charlm} text=字", "text= holds '字', not in the model's vocabulary"),
    ("predict", "ckpt={charlm} text=", "text= is empty"),
    ("predict", "ckpt={charlm} text=1 length=0", "length=0: input should be greater than 0"),
    ("predict", "ckpt={charlm} text=1 top_k=0", "top_k=0: input should be greater than 0"),
    (
        "predict",
        "ckpt={charlm} text=1 temperature=-1",
        "temperature=-1: input should be greater than or equal",
    ),
    (
        "predict",
        "ckpt={charlm} text=1 beam_size=2",
        "beam_size= has no effect on model=charlm, which takes accelerator",
    ),
    ("predict", "ckpt={peephole} text=1 backend=torch", "No cell of kind='peephole' in backend='torch'"),
    ("predict", "ckpt={copytask} text=012", "text= holds '2', but this model reads 0, 1"),
    ("predict", "ckpt={copytask} text=01", "text= holds 2 symbols, but this model remembers 10"),
    ("predict", "ckpt={sentiment} text=", "text= is empty"),
    ("predict", "ckpt={seq2seq} text=", "text= is empty"),
    (
        "predict",
        "ckpt={seq2seq} text={long}",
        "a text has 149 tokens, but this model was trained",
    ),
    ("predict", "ckpt={seq2seq} text=1 attention_map=/no/such/map.png", "/no/such/map.png"),
    ("predict", "ckpt={seq2seq} text=1 attention_map=map.xyz", "Format 'xyz' is not supported"),
    ("evaluate", "ckpt=x backend=cudnn", "backend=cudnn: input should be 'scratch', 'fused' or 'torch'"),
    ("evaluate", "ckpt={cut}", "ckpt={cut} is damaged, truncated or not a checkpoint"),
    ("evaluate", "ckpt={older}", "ckpt={older} was written by an older lstmlab"),
    ("evaluate", "ckpt={other_text}", "was trained on another text, but this is textfile"),
    ("evaluate", "ckpt={charlm} data.path=/no/such/file", "data.path=/no/such/file: no such file"),
    ("evaluate", "ckpt={copytask} data.path={short}", "data.path={short}: data=copy has no such key"),
    ("evaluate", "ckpt={charlm} data.test_delay=3", "data.test_delay=3: data=textfile has no such key"),
    (
        "evaluate",
        "ckpt={charlm} beam_size=2",
        "beam_size=2 is for model=seq2seq; ckpt={charlm} holds model=charlm",
    ),
    ("evaluate", "ckpt={seq2seq} data.test=x.tsv", "data.test=x.tsv is for translation (data=multi30k"),
    (
        "evaluate",
        "ckpt=x data.test=a.tsv data.path=b",
        "data.test=a.tsv is read alone, so data.path=b has",
    ),
    ("evaluate", "beam_size=1", "give one model, ckpt=PATH, or several, ensemble=[PATH,PATH]"),
    ("evaluate", "ckpt=x ensemble=[y,z]", "give one model, ckpt=PATH, or several, ensemble=[PATH,PATH]"),
    ("evaluate", "ensemble=[x]", "ensemble=['x']: list should have at least 2 items"),
    (
        "evaluate",
        "ensemble=[x,y] set=layer0.c[0]=0",
        "set=layer0.c[0]=0 is for one model, ckpt=PATH, not for",
    ),
    ("evaluate", "ensemble=[x,y] average=2", "average=2 is for one model, ckpt=PATH, not for ensemble="),
    ("evaluate", "ckpt={seq2seq} beam_size=0", "beam_size=0: input should be greater than 0"),
    ("evaluate", "ckpt={copytask} data.test_delay=x", "data.test_delay=x: input should be"),
    ("analyze", "ckpt={latin1}", "ckpt={latin1} is not a checkpoint"),
    ("analyze", "ckpt={charlm} text= probe_steps=0", "text= is empty"),
    ("analyze", "ckpt={charlm} page_steps=0", "page_steps=0: input should be greater than 0"),
    ("analyze", "ckpt={charlm} page_values=[r]", "page_values holds r, but this cell has i, f, g, o, h, c"),
    ("analyze", "ckpt={charlm} folder={short}", "{short}"),
    (
        "export",
        "ckpt={charlm} format=pickle",
        "format=pickle: input should be 'onnx', 'safetensors' or 'html'",
    ),
    ("export", "ckpt={damaged}", "ckpt={damaged} is damaged"),
    ("export", "ckpt={charlm} format=safetensors folder={short}", "{short}"),
    ("compare", "metrics=null", "runs is required: runs=…"),
    ("compare", "runs=/no/such/folder", "runs=/no/such/folder: no such folder"),
    ("compare", "runs={finished},/no/such/folder", "runs=/no/such/folder: no such folder"),
    ("compare", "runs={folder}", "runs={folder}: no run in this folder; a run has a config.yaml"),
    (
        "compare",
        "runs={finished} metrics=[val/loss_cold,val/bleu]",
        "metrics=val/bleu matches nothing",
    ),
    ("compare", "runs={finished} metrics=3", "metrics=3: input should be"),
    ("compare", "runs={finished} x=3", "x=3: input should be a valid string"),
    ("compare", "runs={finished} x=seed", "x=seed does not vary between these runs; choose one of bars"),
    ("compare", "runs={finished} folder={short}/new", "{short}"),
    ("compare", "runs={unfinished}", "runs={unfinished}: none of 1 runs has finished"),
    (
        "compare",
        "runs={stranger}",
        "runs={stranger}: its config.yaml or metrics.json was not written by train.py",
    ),
    ("train", "lr=1", "Could not override 'lr'. Did you mean optimizer.lr? Allowed here: callbacks"),
    ("train", "epochs=3", "Did you mean trainer.max_epochs?"),
    ("train", "dropout=0.1", "Did you mean model.dropout or cell.dropout?"),
    ("train", "treads=3", "Did you mean threads?"),
    ("train", "trainer.epochs=3", "Did you mean trainer.max_epochs?"),
    ("train", "cell=lstm", "options in 'cell': fused scratch torch. Did you mean cell.kind=lstm?"),
    (
        "train",
        "data.path=x",
        "data=imdb, data=imdb_texts, data=multi30k, data=pairs, data=shakespeare, data=textfile, data=texts.",
    ),
    ("train", "optimizer.eps=1e-6", "An argument of its class is added by +optimizer.eps=…."),
    (
        "train",
        "model.lr=1",
        "'model.lr'. Did you mean optimizer.lr? Allowed here: adaptive_cutoffs, dropout",
    ),
    ("train", "data=shakespear", "stdlib textfile texts. Did you mean data=shakespeare?"),
    ("train", "path=x", "Could not override 'path'. Allowed here: callbacks, cell"),
    ("train", "zzz=3", "Could not override 'zzz'. Allowed here: callbacks, cell"),
    ("bench", "suite=train steps=5", "steps=5 is too few: the speed is logged every 20 steps"),
    ("bench", "rounds=0", "rounds=0: input should be greater than 0"),
    ("bench", "suite=speed", "suite=speed: input should be"),
    ("bench", "suite=speedrun", "suite=speedrun is for data=shakespeare, not data=stdlib; add experiment="),
    ("bench", "suite=train data=textfile data.path={empty}", "{empty} is empty"),
    ("bench", "suite=compile model=copytask", "suite=compile measures model=charlm, not model=copytask"),
    ("bench", "suite=cells cell=fused", "cell= has no effect on suite=cells, which takes"),
    ("bench", "suite=floors data=copy", "suite=floors has nothing for data=copy, only for data=stdlib"),
    ("bench", "suite=floors model=seq2seq", "suite=floors has nothing for data=multi30k, only for data="),
    ("bench", "suite=floors model=sentiment", "model= has no effect on suite=floors, which takes data, "),
    ("bench", "suite=floors rounds=3", "rounds= has no effect on suite=floors"),
    ("bench", "suite=floors data=imdb data.path={no_label}", "has no column label, only text"),
]
# At the limits of the ranges, or allowed in combination with another choice
RIGHT = [
    ("train", "cell.dropout=0.0 cell.weight_drop=0.0 model.dropout=0.0 seed=0 optimizer.weight_decay=0.0"),
    ("train", "cell=fused cell.recompute=true"),
    ("train", "cell.init=chrono cell.chrono_steps=3"),
    ("train", "model=copytask cell.init=chrono cell.bidirectional=true"),
    ("train", "model=copytask data.symbols=2 data.delay=0 data.test_delay=[0]"),
    ("train", "data.max_val_chars=257"),
    ("train", "data.max_val_chars=null"),
    ("train", "scheduler=cosine scheduler.final_lr=1.0"),
    ("train", "scheduler=cosine scheduler.final_lr=0.0 scheduler.warmup_steps=0"),
    ("train", "trainer.val_check_interval=1"),
    ("train", "trainer.val_check_interval=1.0"),
    ("train", "trainer.overfit_batches=0 trainer.limit_val_batches=1 threads=1"),
    ("train", "trainer.max_epochs=null trainer.max_steps=1"),
    ("train", "trainer.max_epochs=1 trainer.max_steps=null"),
    ("train", "trainer=ddp trainer.devices=2 data.batch_size=6"),
    ("train", "trainer=ddp trainer.devices=2 trainer.num_nodes=2 data.batch_size=8"),
    ("train", "trainer=gpu precision=fp16"),
    ("train", "precision=bf16"),
    ("train", "callbacks.doctor.waiting=1.0 callbacks.doctor.vanishing=0 callbacks.doctor.flat=0"),
    ("train", "callbacks=averaging callbacks.averaging.from_step=0"),
    ("train", "callbacks.last=null callbacks.early_stopping=null callbacks.doctor=null callbacks.gates=null"),
    ("train", "model=seq2seq model.r_drop=2 model.dropout=0 cell.dropout=0.5 cell.num_layers=2"),
    ("train", "model=seq2seq model.r_drop=0 model.dropout=0 model.length_penalty=0 model.label_smoothing=0"),
    ("train", "model=seq2seq model.monitor=val/loss model.translate_val=false"),
    ("train", "model=seq2seq data=dates data.first_year=1000 data.last_year=9999 data.locales=[de]"),
    ("train", "model=sentiment data=reviews model.word_dropout=0 model.adversarial=0 data.num_workers=0"),
    ("predict", "ckpt=x text=a temperature=0 length=1 top_k=1 beam_size=1 length_penalty=0 seed=0"),
    ("evaluate", "ckpt=x beam_size=1 data.test_delay=0"),
    ("analyze", "ckpt=x probe_steps=0 page_steps=1"),
    ("bench", "rounds=1 steps=1"),
]
if not torch.cuda.is_available():
    WRONG += [
        ("train", "trainer=gpu", "a gpu was requested, but PyTorch finds none on this machine; use cpu"),
        ("predict", "ckpt={charlm} text=1 accelerator=gpu", "a gpu was requested"),
    ]


class Code:
    def __reduce__(self):
        return (exit, (77,))


@pytest.fixture(scope="session")
def files(trained, tmp_path_factory) -> dict[str, Path]:
    """Files and folders that a command cannot use."""
    folder = tmp_path_factory.mktemp("files")
    files = {model: trained(model) for model in ("charlm", "copytask", "sentiment", "seq2seq")}
    files["peephole"] = trained("charlm", "cell=fused", "cell.kind=peephole")
    files["finished"] = files["charlm"].parents[1]
    files["long"] = Path("1" * 149)
    for name in ("folder", "cache", "truncated", "no_label", "broken_lines", "pairs"):
        files[name] = folder / name
        files[name].mkdir()
    for name, table in {
        "truncated": pa.table({"text": ["good", "bad"], "label": [1, 0]}),
        "no_label": pa.table({"text": ["good", "bad"]}),
    }.items():
        for split in ("train", "test"):
            pq.write_table(table, files[name] / f"{split}-0.parquet")
    for name, written in {"unfinished": "run_dir: x\nseed: 0", "stranger": "- 1"}.items():
        files[name] = folder / name
        files[name].mkdir()
        (files[name] / "config.yaml").write_text(written)
    cut = files["truncated"] / "train-0.parquet"
    cut.write_bytes(cut.read_bytes()[:-20])
    for name in ("train", "val", "test"):
        (files["broken_lines"] / f"{name}.jsonl").write_text('{"en": "a", "de"\n')
        (files["pairs"] / f"{name}.jsonl").write_text('{"en": "some words", "de": "ein paar Worte"}\n')

    whole = files["charlm"].read_bytes()
    content = torch.load(files["charlm"], weights_only=True)
    for name, written in {
        "empty": b"",
        "short": b"too short",
        "latin1": "für".encode("latin-1") * 5000,
        "cut": whole[:-100],
        "damaged": whole.replace(b"xavier", b"chrono", 1),
    }.items():
        files[name] = folder / f"{name}.x"
        files[name].write_bytes(written)
    for name, saved in {
        "foreign": {"state_dict": {}},
        "code": content | {"more": Code()},
        "older": {key: value for key, value in content.items() if key != "lstmlab_format"},
    }.items():
        files[name] = folder / f"{name}.ckpt"
        torch.save(saved, files[name])
    content["hyper_parameters"]["info"]["source"] = "another text"
    files["other_text"] = folder / "other_text.ckpt"
    torch.save(content, files["other_text"])
    return files


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(("name", "typed", "message"), WRONG, ids=lambda v: v)
def test_a_mistake_ends_in_one_sentence(command, files, offline, tmp_path, name, typed, message):
    before = {path: path.stat().st_mtime_ns for path in files["finished"].rglob("*")}
    code, _, error = command(name, *typed.format_map(files).split(" "))
    assert code == 1
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message.format_map(files) in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no run was started
    assert before == {path: path.stat().st_mtime_ns for path in files["finished"].rglob("*")}


@pytest.mark.parametrize(("name", "typed"), RIGHT)
def test_allowed_settings_pass(name, typed, tmp_path):
    given = [f"run_dir={tmp_path}"] if name in ("train", "bench") else []
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        check(name, to_plain(compose(name, [*given, *typed.split()])))


def test_a_path_with_an_interpolation_is_refused(command, trained, tmp_path):
    """Hydra would replace it and write the run elsewhere."""
    run = tmp_path / "${seed}" / "run"
    shutil.copytree(trained("copytask").parents[1], run)
    (run / "metrics.json").unlink()
    code, _, error = command("train", f"resume={run}")
    assert (code, error) == (1, f"error: {run}: Hydra would replace the ${{; rename this folder\n")
    moved = tmp_path / "run"
    run.rename(moved)
    settings = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(re.sub("run_dir: .*", f"run_dir: {run}", settings))
    code, _, error = command("train", f"resume={moved}")
    assert code == 1 and error.startswith(f"error: resume={moved}: a path in its config.yaml holds ${{")
    command = [sys.executable, str(PROJECT / "src/train.py"), "seed=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.parent, env={"PATH": ""})
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {run.parent}: Hydra would replace the ${{; rename this folder\n",
    )
    assert not list(tmp_path.rglob("logs"))


def test_a_mistake_is_reported_before_torch_is_imported(tmp_path):
    program = (
        "import sys, train; sys.argv[1:] = ['cell.dropout=2']\n"
        "try: train.main()\n"
        "except SystemExit as stop: assert 'cell.dropout=2' in stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": str(PROJECT / "src"), "PATH": ""}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=60)


def test_hydra_full_error_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROJECT / "src/train.py"), "cell.dropout=2", "hydra.run.dir=."],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HYDRA_FULL_ERROR": "1", "PATH": ""},
    )
    assert done.returncode == 1 and "Traceback" in done.stderr
