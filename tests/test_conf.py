"""Every file in conf/ composes, passes the check and trains on one batch."""

import json
import random
import re
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from conftest import SMALL
from lstmlab.config import PROJECT
from lstmlab.data.reviews import made_up_review
from lstmlab.runs.launch import launch
from lstmlab.schema import ModelConfig, leaves, names_of_data

CONF = PROJECT / "conf"
CHOICES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml") if path.parent.name != "base")
MODELS = {  # the task that trains on a data set
    name: get_args(model.model_fields["name"].annotation)[0]
    for model in leaves(ModelConfig)
    for name in names_of_data(model.reads)
}


@pytest.fixture
def hub_files(tmp_path):
    """Files like those on the hub with a few rows: imdb, multi30k."""
    rng = random.Random(0)
    for name, count in {"train": 60, "val": 20, "test": 20, "unsupervised": 40}.items():
        texts = [made_up_review(rng, i % 2 == 1) for i in range(count)]
        table = pa.table({"text": texts, "label": [i % 2 for i in range(count)]})
        pq.write_table(table, tmp_path / f"{name}-00000-of-00001.parquet")
        lines = [json.dumps({"en": text[:40], "de": text[:40]}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def read_with_bases(path: Path) -> str:
    """A YAML file and the experiments that it builds on, and those that they build on."""
    text = path.read_text(encoding="utf-8")
    bases = re.findall(r"(?:/experiment:|^  -) (\w+)$", text, re.MULTILINE)
    files = [CONF / f"experiment/{base}.yaml" for base in bases]
    return text + "".join(read_with_bases(file) for file in files if file.exists())


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_each_option_trains_a_batch(choice, config, request, text_file, hub_files):
    group, name = choice.parent.name, choice.stem
    overrides = [f"{group}={name}", "debug=one_batch", *SMALL]
    text = read_with_bases(CONF / choice)
    if name == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if name == "fp16":
        if not torch.cuda.is_available():
            pytest.skip("no GPU: fp16 is refused on the CPU")
        overrides.append("trainer=gpu")
    if name == "wandb":
        overrides.append("logger.wandb.offline=true")
    if name == "trackio":
        request.getfixturevalue("trackio")
    if name == "stdlib":
        overrides.append("data.max_chars=100000")
    if name == "textfile":
        overrides.append(f"data.path={text_file}")
        overrides += ["data.batch_size=4", "data.sequence_length=16"]
    data = {name} if group == "data" else {d for d in MODELS if f"/data: {d}\n" in text}
    if group == "data":
        overrides.append(f"model={MODELS[name]}")
    if "shakespeare" in data:
        overrides.append(f"data.path={request.getfixturevalue('real_data') / 'shakespeare'}")
    if data & {"imdb", "imdb_texts", "multi30k"}:
        overrides += [f"data.path={hub_files}", f"data.cache={hub_files}/cache"]
    if data & {"imdb", "imdb_texts"}:
        overrides.append("data.val_size=20")
    if "imdb_texts" in data:
        overrides += ["data.batch_size=4", "data.sequence_length=16", "model.adaptive_cutoffs=null"]
    if name == "texts":
        overrides += ["data.batch_size=4", "data.sequence_length=16", "data.val_fraction=0.3"]
    if data & {"classes", "pairs", "texts"}:
        overrides += [f"data.train={hub_files}/train-00000-of-00001.parquet", f"data.cache={hub_files}/cache"]
    if "pairs" in data:
        overrides += [f"data.train={hub_files}/train.jsonl", "data.source=en", "data.target=de"]
    if name == "optuna":  # tested in test_sweeps
        overrides.append("callbacks.pruning=null")
    if group == "debug":
        overrides.remove("debug=one_batch")
        overrides += ["trainer.max_epochs=1", "trainer.limit_val_batches=1", "trainer.max_steps=2"]
    settings = config(*overrides)
    metrics = launch(settings)
    assert settings.model.monitor in metrics
