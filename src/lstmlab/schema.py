"""What a configuration may hold: one class a choice, each key with its type and range.

Defaults stand in conf/ alone. `check` raises ValueError with one sentence: key, value, what is allowed.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from lstmlab.cells import BACKENDS, KINDS  # torch-free

Share = Annotated[float, Field(ge=0, lt=1)]  # of something dropped
Backend = Literal["scratch", "fused", "torch"]


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Target(Group):
    target: str = Field(alias="_target_")


# --- cell ---------------------------------------------------------------------------------------


class Cell(Group):
    backend: Backend
    kind: Literal[tuple(KINDS)]  # type: ignore[valid-type]
    hidden_size: PositiveInt
    num_layers: PositiveInt
    bidirectional: bool
    dropout: Share
    variational: bool
    weight_drop: Share
    init: Literal["xavier", "chrono", "torch"]
    forget_bias: float
    chrono_steps: Annotated[int, Field(ge=3)] | None
    recompute: bool
    engine: Literal["auto", "native", "torch", "plain"] = "auto"


# --- model --------------------------------------------------------------------------------------


class Recommends(Group):
    hidden_size: PositiveInt
    num_layers: PositiveInt
    bidirectional: bool
    dropout: Share
    forget_bias: float
    max_epochs: PositiveInt
    lr: PositiveFloat


class Model(Group):
    data: ClassVar[tuple[str, ...]]  # the data sets that fit
    monitor: str
    monitor_mode: Literal["min", "max"]
    recommends: Recommends


class CharLM(Model):
    data = ("stdlib", "shakespeare", "textfile")
    name: Literal["charlm"]
    embedding_size: PositiveInt
    dropout: Share
    tie_weights: bool


class CopyTask(Model):
    data = ("copy",)
    name: Literal["copytask"]


class Sentiment(Model):
    data = ("imdb", "reviews")
    name: Literal["sentiment"]
    embedding_size: PositiveInt
    dropout: Share
    word_dropout: Share
    adversarial: NonNegativeFloat
    pooling: Literal["last", "max", "mean", "attention"]


class Seq2Seq(Model):
    data = ("multi30k", "dates")
    name: Literal["seq2seq"]
    monitor: Literal["val/loss", "val/perplexity", "val/sacrebleu", "val/exact_match"]
    embedding_size: PositiveInt
    attention: Literal["additive", "dot", "general", "none"]
    input_feeding: bool
    tie_weights: Literal["none", "output", "all"]
    dropout: Share
    label_smoothing: Share
    r_drop: NonNegativeFloat
    translate_val: bool
    beam_size: PositiveInt
    length_penalty: NonNegativeFloat


# --- data ---------------------------------------------------------------------------------------


class Text(Group):
    batch_size: PositiveInt
    sequence_length: PositiveInt
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    max_val_chars: Annotated[int, Field(gt=256)] | None
    cache: str


class Stdlib(Text):
    name: Literal["stdlib"]
    max_chars: PositiveInt


class Shakespeare(Text):
    name: Literal["shakespeare"]
    hub: str
    revision: str
    path: str | None


class TextFile(Text):
    name: Literal["textfile"]
    path: str


class Copy(Group):
    name: Literal["copy"]
    symbols: Annotated[int, Field(ge=2)]
    length: PositiveInt
    delay: NonNegativeInt | list[NonNegativeInt]
    test_delay: NonNegativeInt | list[NonNegativeInt] | None
    batch_size: PositiveInt
    train_batches: PositiveInt
    val_size: PositiveInt
    test_size: PositiveInt
    num_workers: NonNegativeInt


class Tokens(Group):
    tokenizer: Literal["word", "bpe", "char"]
    vocab_size: PositiveInt
    lowercase: bool
    max_length: PositiveInt
    batch_size: PositiveInt
    num_workers: NonNegativeInt
    cache: str


class IMDB(Tokens):
    name: Literal["imdb"]
    hub: str
    revision: str
    path: str | None
    val_size: PositiveInt


class Reviews(Tokens):
    name: Literal["reviews"]
    train_size: PositiveInt
    val_size: PositiveInt
    test_size: PositiveInt


class Multi30k(Tokens):
    name: Literal["multi30k"]
    hub: str
    revision: str
    path: str | None
    source: str
    target: str
    tokenizer: Literal["bpe"]  # its tokens give back the very text, which BLEU needs
    lowercase: bool


class Dates(Tokens):
    name: Literal["dates"]
    train_size: PositiveInt
    val_size: PositiveInt
    test_size: PositiveInt
    first_year: Annotated[int, Field(ge=1000, le=9999)]
    last_year: Annotated[int, Field(ge=1000, le=9999)]
    locales: list[str] = Field(min_length=1)
    tokenizer: Literal["char", "bpe"]


# --- training -----------------------------------------------------------------------------------


class Optimizer(Target):
    lr: PositiveFloat
    weight_decay: NonNegativeFloat


class Adam(Optimizer):
    target: Literal["torch.optim.Adam"] = Field(alias="_target_")


class AdamW(Optimizer):
    target: Literal["torch.optim.AdamW"] = Field(alias="_target_")
    betas: list[Share] = Field(min_length=2, max_length=2)


class SGD(Optimizer):
    target: Literal["torch.optim.SGD"] = Field(alias="_target_")
    momentum: Share


class RMSprop(Optimizer):
    target: Literal["torch.optim.RMSprop"] = Field(alias="_target_")


class Constant(Group):
    name: Literal["constant"]
    warmup_steps: NonNegativeInt


class Cosine(Group):
    name: Literal["cosine"]
    warmup_steps: NonNegativeInt
    final_lr: Annotated[float, Field(ge=0, le=1)]


class Plateau(Group):
    name: Literal["plateau"]
    warmup_steps: NonNegativeInt
    factor: Annotated[float, Field(gt=0, lt=1)]
    patience: PositiveInt


class NormClipping(Group):
    name: Literal["norm"]
    max_norm: PositiveFloat


class ValueClipping(Group):
    name: Literal["value"]
    max_value: PositiveFloat


class NoClipping(Group):
    name: Literal["none"]


class Precision(Group):
    name: Literal["32-true", "bf16-mixed", "16-mixed"]


class Trainer(Group):
    accelerator: Literal["cpu", "gpu"]
    strategy: Literal["auto", "ddp"]
    devices: PositiveInt
    num_nodes: PositiveInt
    max_epochs: PositiveInt | None
    max_steps: PositiveInt | None
    accumulate_grad_batches: PositiveInt
    val_check_interval: PositiveInt | Annotated[float, Field(gt=0, le=1)]
    limit_train_batches: PositiveInt | None
    limit_val_batches: PositiveInt | None
    limit_test_batches: PositiveInt | None
    overfit_batches: NonNegativeInt
    log_every_n_steps: PositiveInt
    profiler: Literal["simple", "advanced"] | None
    enable_progress_bar: bool


class Chosen(Target):
    """A class of Lightning's or ours with its own arguments: plain values, nothing that is built in turn."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, bool | int | float | str | list[bool | int | float | str] | None]


class Logger(Chosen):
    target: Literal[
        "lightning.pytorch.loggers.TensorBoardLogger", "lightning.pytorch.loggers.WandbLogger"
    ] = Field(alias="_target_")


class Callback(Chosen):
    target: str = Field(
        alias="_target_", pattern=r"^(lightning\.pytorch\.callbacks|lstmlab\.callbacks\.[a-z_]+)\.[A-Z]\w*$"
    )


class EarlyStopping(Callback):
    patience: PositiveInt


class Last(Target):
    target: Literal["lstmlab.callbacks.last.LastCheckpoint"] = Field(alias="_target_")
    every_n_minutes: PositiveFloat | None
    every_n_steps: PositiveInt | None


class Limits(Group):
    """Where the doctor speaks; see conf/callbacks/default.yaml and `lstmlab.callbacks.diagnosis`."""

    steps: PositiveInt
    patience: PositiveInt
    flat: Share
    still: NonNegativeFloat
    stride: PositiveFloat
    rough: PositiveFloat
    gain: Share
    plateau: NonNegativeFloat
    vanishing: NonNegativeFloat
    exploding: PositiveFloat
    waiting: Annotated[float, Field(gt=0, le=1)]


class Doctor(Limits, Target):
    target: Literal["lstmlab.callbacks.doctor.Doctor"] = Field(alias="_target_")


class Gates(Target):
    target: Literal["lstmlab.callbacks.gates.Gates"] = Field(alias="_target_")
    units: PositiveInt
    steps: PositiveInt


class Pruning(Target):
    target: Literal["lstmlab.callbacks.pruning.Pruning"] = Field(alias="_target_")
    monitor: str
    startup_trials: NonNegativeInt
    warmup: NonNegativeInt
    study: str | None
    trial: NonNegativeInt | None


class Averaging(Target):
    target: Literal["lstmlab.callbacks.averaging.ExponentialAverage"] = Field(alias="_target_")
    decay: Annotated[float, Field(gt=0, lt=1)]
    from_step: NonNegativeInt


class Callbacks(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Callback | None]
    last: Last | None
    early_stopping: EarlyStopping | None
    doctor: Doctor | None
    pruning: Pruning | None = None  # of a sweep alone
    averaging: Averaging | None = None  # of callbacks=averaging alone
    gates: Gates | None


# --- commands -----------------------------------------------------------------------------------


class Trained(Group):
    """What of a configuration it takes to open a checkpoint."""

    data: Annotated[
        Stdlib | Shakespeare | TextFile | Copy | IMDB | Reviews | Multi30k | Dates,
        Field(discriminator="name"),
    ]
    model: Annotated[CharLM | CopyTask | Sentiment | Seq2Seq, Field(discriminator="name")]
    cell: Cell
    seed: NonNegativeInt


class Train(Trained):
    optimizer: Annotated[Adam | AdamW | SGD | RMSprop, Field(discriminator="target")]
    scheduler: Annotated[Constant | Cosine | Plateau, Field(discriminator="name")]
    clipping: Annotated[NormClipping | ValueClipping | NoClipping, Field(discriminator="name")]
    precision: Precision
    trainer: Trainer
    logger: dict[str, Logger]
    callbacks: Callbacks
    resume: str | None
    exact: bool
    deterministic: bool
    threads: PositiveInt | None
    run_dir: str

    def conflict(self) -> str | None:
        """The first pair of settings that do not go together, as a sentence."""
        cell, model, data = self.cell, self.model, self.data
        if cell.kind not in BACKENDS[cell.backend]:
            pairs = "; ".join(f"{backend}: {', '.join(kinds)}" for backend, kinds in BACKENDS.items())
            return f"cell={cell.backend} has no cell.kind={cell.kind}. There are {pairs}"
        if cell.recompute and cell.backend != "fused":
            return f"cell.recompute=true is for cell=fused, not cell={cell.backend}"
        if cell.engine != "auto" and cell.backend != "fused":
            return f"cell.engine={cell.engine} is for cell=fused, not cell={cell.backend}"
        if data.name not in model.data:
            return f"data={data.name} does not fit model={model.name}, which takes {', '.join(model.data)}"
        if model.name == "charlm" and cell.bidirectional:
            return "cell.bidirectional=true would show model=charlm the character that it is to predict"
        translated = model.monitor in ("val/sacrebleu", "val/exact_match")
        if isinstance(model, Seq2Seq) and translated and not model.translate_val:
            return f"model.monitor={model.monitor} needs model.translate_val=true"
        drops = cell.dropout and cell.num_layers > 1
        if isinstance(model, Seq2Seq) and model.r_drop and not (model.dropout or drops):
            return (
                f"model.r_drop={model.r_drop} compares readings that differ by dropout; raise model.dropout"
            )
        if self.precision.name == "16-mixed" and self.trainer.accelerator == "cpu":
            return "precision=fp16 needs trainer=gpu; on the CPU use precision=bf16 or fp32"
        processes = self.trainer.devices * self.trainer.num_nodes
        if processes > 1 and self.trainer.strategy != "ddp":
            return f"{processes} processes (trainer.devices × trainer.num_nodes) need trainer=ddp"
        if data.batch_size % processes:
            return f"data.batch_size={data.batch_size} cannot be shared evenly by {processes} processes"
        if cell.init == "chrono" and cell.chrono_steps is None and model.name != "copytask":
            return "cell.init=chrono needs cell.chrono_steps, the longest dependency expected"
        if self.trainer.max_epochs is None and self.trainer.max_steps is None:
            return "trainer.max_epochs=null and trainer.max_steps=null would never end; set one of them"
        if self.callbacks.pruning and self.callbacks.pruning.trial is None:
            return "sweep=optuna needs -m: python src/train.py -m sweep=optuna"
        return None


class Ask(Group):
    ckpt: str
    backend: Backend | None
    accelerator: Literal["cpu", "gpu"]


class Predict(Ask):
    text: str
    length: PositiveInt
    temperature: NonNegativeFloat
    top_k: PositiveInt | None
    beam_size: PositiveInt
    length_penalty: NonNegativeFloat
    attention_map: str | None
    seed: NonNegativeInt


class EvaluateData(Group):
    path: str | None
    cache: str
    test_delay: NonNegativeInt | list[NonNegativeInt] | None


class Evaluate(Ask):
    beam_size: PositiveInt | None
    data: EvaluateData


class Analyze(Group):
    ckpt: str
    text: str | None
    folder: str | None
    page_steps: PositiveInt
    page_values: list[Literal["i", "f", "g", "o", "c", "h", "r", "z", "n"]] | None
    probe_steps: NonNegativeInt
    language: Literal["python", "english"] | None
    data: dict[Literal["path", "cache"], str | None]


class Export(Group):
    ckpt: str
    format: Literal["onnx", "safetensors"]
    folder: str | None


class Compare(Group):
    runs: str
    metrics: str | list[str] | None
    x: str | None
    folder: str | None


class Bench(Train):
    suite: Literal["cells", "engines", "ladder", "sample", "compile", "train", "floors"]
    rounds: PositiveInt
    steps: PositiveInt

    def conflict(self) -> str | None:
        if self.suite == "floors":  # no model is chosen
            known = CharLM.data + Sentiment.data
            return (
                None
                if self.data.name in known
                else (f"suite=floors has nothing for data={self.data.name}, only for data={', '.join(known)}")
            )
        if self.trainer.strategy == "ddp":
            return "trainer=ddp is for train.py: bench.py measures one process"
        return super().conflict()


COMMANDS: dict[str, type[Group]] = {
    "train": Train,
    "bench": Bench,
    "predict": Predict,
    "evaluate": Evaluate,
    "analyze": Analyze,
    "export": Export,
    "compare": Compare,
    "checkpoint": Trained,
}


def check(command: str, config: dict[str, Any]) -> None:
    """Raise ValueError, with one sentence, if `config` is not what conf/`command`.yaml may be."""
    try:
        checked = COMMANDS[command].model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        node: Any = config
        keys = []
        for part in first["loc"]:  # pydantic's path also names union members, which are no keys
            part = "_target_" if part == "target" else part
            if isinstance(node, dict) and (part in node or first["type"] == "missing"):
                keys.append(str(part))
                node = node.get(part)
        message, value = first["msg"][0].lower() + first["msg"][1:], first["input"]
        if first["type"] == "union_tag_invalid":  # data.name and the like, optimizer._target_
            keys.append(first["ctx"]["discriminator"].strip("'").split("' | '")[-1])
            message, value = f"input should be {first['ctx']['expected_tags']}", first["ctx"]["tag"]
        if first["type"] == "extra_forbidden":
            message = "no such key"
        raise ValueError(f"{'.'.join(keys)}={value}: {message}") from None
    if isinstance(checked, Train) and (conflict := checked.conflict()):
        raise ValueError(conflict)
