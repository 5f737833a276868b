"""conf/schemas/: every file in conf/ names its schema and is valid, and mistakes are refused."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from lstmlab.help import CONF
from lstmlab.json_schema import build_schemas, format_json

SCHEMAS = build_schemas()
REGISTRY: Registry = Registry().with_resources(
    (f"{name}.json", DRAFT202012.create_resource(schema)) for name, schema in SCHEMAS.items()
)
FILES = sorted(file.relative_to(CONF) for file in CONF.rglob("*.yaml"))


def schema_of(file: Path) -> str:
    """The schema that a file names in its first line, or below `# @package`, which Hydra wants first."""
    first, second = (CONF / file).read_text(encoding="utf-8").splitlines()[:2]
    named = re.fullmatch(
        r"# yaml-language-server: \$schema=(.+)", second if first.startswith("# @package") else first
    )
    assert named, f"{file} names no schema"
    path = (CONF / file).parent / named[1]
    assert path.resolve() == CONF / "schemas" / path.name
    return path.stem


def is_valid(name: str, settings: object) -> bool:
    return Draft202012Validator(SCHEMAS[name], registry=REGISTRY).is_valid(settings)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_is_valid(file):
    settings = OmegaConf.to_container(OmegaConf.load(CONF / file))
    Draft202012Validator(SCHEMAS[schema_of(file)], registry=REGISTRY).validate(settings)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_names_its_schema(file):
    text = (CONF / file).read_text(encoding="utf-8")
    group = file.stem if file.parent.name in ("", "base") else file.parent.name
    assert schema_of(file) == ("train" if "# @package _global_" in text else group)


def test_the_stored_schemas_are_valid_and_current():
    written = {file.stem: file.read_text(encoding="utf-8") for file in (CONF / "schemas").iterdir()}
    assert written.keys() == SCHEMAS.keys(), (
        "python -m lstmlab.json_schema; and remove what it does not write"
    )
    for name, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        assert written[name] == format_json(schema) + "\n", "python -m lstmlab.json_schema"
        assert json.loads(written[name]) == schema


def test_no_number_has_underscores():
    """Editors read YAML 1.2, in which 10_000 is a string."""
    assert not [file for file in FILES if re.search(r": \d+_\d", (CONF / file).read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cell", "hidden: 8"),
        ("cell", "hidden_size: many"),
        ("cell", "hidden_size: 0"),
        ("cell", "hidden_size: 1.5"),
        ("cell", "dropout: 1.0"),
        ("cell", "kind: lstn"),
        ("cell", "bidirectional: 1"),
        ("cell", "recompute: null"),
        ("cell", "hydra: {}"),
        ("data", "{name: stdlib, symbols: 2}"),
        ("data", "{name: copy, delay: -1}"),
        ("data", "{name: copy, delay: [-1]}"),
        ("data", "name: stdlob"),
        ("model", "{name: charlm, pooling: max}"),
        ("model", "{name: charlm, recommends: {hidden: 8}}"),
        ("optimizer", "lr: -1"),
        ("optimizer", "betas: [0.9]"),
        ("scheduler", "{name: plateau, final_lr: 0}"),
        ("scheduler", "final_rate: 0"),
        ("clipping", "{name: norm, max_value: 1}"),
        ("precision", "name: fp16"),
        ("trainer", "val_check_interval: 1.5"),
        ("trainer", "acelerator: cpu"),
        ("logger", "wandb: 3"),
        ("callbacks", "doctor: {patiense: 200}"),
        ("callbacks", "doctor: {patience: 0}"),
        ("callbacks", "early_stopping: {patience: x}"),
        ("callbacks", "pruning: {trials: 1}"),
        ("callbacks", "mine: 3"),
        ("train", "sead: 1"),
        ("train", "seed: -1"),
        ("train", "cell: {hidden: 8}"),
        ("train", "cell: {defaults: [torch]}"),
        ("train", "callbacks: {doctor: {patiense: 200}}"),
        ("train", "suite: cells"),
        ("bench", "suite: speed"),
        ("analyze", "page_values: [x]"),
        ("analyze", "data: {paths: x}"),
        ("evaluate", "data: {delay: 3}"),
        ("export", "format: pickle"),
    ],
)
def test_a_mistake_is_refused(name, settings):
    assert not is_valid(name, yaml.safe_load(settings))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cell", "{}"),
        ("cell", "{defaults: [torch], hidden_size: '${model.recommends.hidden_size}', dropout: '???'}"),
        ("data", "{name: copy, delay: [1, 5]}"),
        ("data", "{name: copy, delay: '${seed}'}"),
        ("optimizer", "{_target_: mine.Lion, lr: 0.1, mine: [1, 2]}"),
        ("scheduler", "warmup_steps: 0"),
        ("scheduler", "{_target_: torch.optim.lr_scheduler.StepLR, step_size: 3}"),
        ("callbacks", "{doctor: null, mine: {_target_: mine.Callback, any: 3}}"),
        ("callbacks", "early_stopping: {stopping_threshold: 0.9}"),
        ("train", "{hydra: {run: {dir: .}}, defaults: [cell: torch], cell: {hidden_size: 8}, threads: null}"),
        ("bench", "{suite: cells, seed: 3}"),
        ("evaluate", "data: {test_delay: [1, 2]}"),
    ],
)
def test_partial_files_are_valid(name, settings):
    assert is_valid(name, yaml.safe_load(settings))


def test_descriptions_are_the_comments_of_conf():
    cell = SCHEMAS["cell"]["properties"]
    assert cell["hidden_size"]["description"] == "units of each layer and direction"
    by_name = {one["properties"]["name"]["const"]: one["properties"] for one in SCHEMAS["data"]["anyOf"]}
    assert by_name["shakespeare"]["path"]["description"].startswith("a folder with input.txt")
    assert by_name["imdb"]["path"]["description"].startswith("a folder with train-*.parquet")
    patience = SCHEMAS["callbacks"]["properties"]["doctor"]["anyOf"][0]["properties"]["patience"]
    assert patience["description"].startswith("steps after the warm-up")
    assert SCHEMAS["bench"]["properties"]["seed"]["description"].startswith("determines initial weights")
    assert SCHEMAS["predict"]["properties"]["seed"]["description"].startswith("charlm: the same seed")
    assert "wandb sync" in SCHEMAS["logger"]["properties"]["wandb"]["properties"]["offline"]["description"]
    assert "Every" not in json.dumps(SCHEMAS)  # no docstring of lstmlab.schema
