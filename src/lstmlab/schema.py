"""Every setting with its type and range, and the only register of tasks, data sets and commands.

Defaults and explanations are in conf/. `check` turns a composed configuration into a frozen object whose
settings are attributes: `config.cell.hidden_size`. A new task is a subclass of `ModelConfig`, and a new data
set one of `DataConfig`.
"""

import importlib
import inspect
import math
from collections.abc import Mapping
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    Strict,
    Tag,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from lstmlab.cells.kinds import BACKENDS, HEADS, KINDS  # imports no torch

Share = Annotated[float, Field(ge=0, lt=1)]  # a share that may not be all
Backend = Literal["scratch", "fused", "torch"]
TRACED = tuple(dict.fromkeys(name for kind in KINDS.values() for name in (*kind.gates, *kind.state._fields)))
Several = Annotated[int, Field(ge=2)]
Frozen = AfterValidator(MappingProxyType), PlainSerializer(dict)  # makes a mapping read-only


def check_plain(value: Any) -> Any:
    scalars = list(value) if isinstance(value, list | tuple) else [value]
    if not all(scalar is None or isinstance(scalar, bool | int | float | str) for scalar in scalars):
        raise PydanticCustomError(
            "plain", "input should be a number, a word, true, false, null or a list of these"
        )
    return tuple(value) if isinstance(value, list) else value


Plain = Annotated[Any, AfterValidator(check_plain)]
Delay = NonNegativeInt | Annotated[tuple[NonNegativeInt, ...], Strict(False)]
Length = PositiveInt | Annotated[tuple[PositiveInt, ...], Strict(False)]


class Group(BaseModel):
    """Settings that cannot change: lists are tuples, and attributes cannot be set."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    def to_plain(self) -> dict[str, Any]:
        """The settings as dicts, lists and scalars, for YAML, checkpoints and Hydra's `instantiate`."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """A checked copy with other values: `config.replace({"trainer.max_steps": 100})`."""
        settings = self.to_plain()
        for key, value in changes.items():
            *parents, name = key.split(".")
            group = settings
            for parent in parents:
                group = group[parent]
            group[name] = value
        return type(self).model_validate(settings)

    def conflict(self) -> str | None:
        """A sentence about the first settings that contradict each other, or None."""
        return None

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def __reduce__(self) -> Any:
        return type(self).model_validate, (self.to_plain(),)


class Target(Group):
    """The import path of a class, and its arguments."""

    target: str = Field(alias="_target_")

    def arguments(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_plain().items() if key != "_target_"}

    def load(self, key: str, base: type, positional: int = 0) -> type:
        """Import the class and check that it takes the arguments, after `positional` other ones.

        Raises ValueError, in one sentence that names `key`, if there is no such class, if it is no
        subclass of `base`, or if it does not take these arguments.
        """
        module, _, name = self.target.rpartition(".")
        try:
            loaded = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{key}._target_={self.target} cannot be imported: {error}") from error
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise ValueError(f"{key}._target_={self.target} must be a subclass of {base.__name__}")
        try:
            inspect.signature(loaded).bind(*[None] * positional, **self.arguments())
        except TypeError as error:
            raise ValueError(f"{key} does not fit {self.target}: {error}") from None
        return loaded

    def build(self, key: str, base: type, *positional: Any, **more: Any) -> Any:
        """An instance of the class. Raises what `load` raises."""
        return self.load(key, base, len(positional))(*positional, **self.arguments(), **more)


class OpenTarget(Target):
    """A class that users may provide, with any arguments that are plain values.

    When a run starts, it is imported and its arguments are checked against its signature.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]


def leaves(base: type[Group]) -> list[Any]:
    """The subclasses of `base`, itself included, that describe one option: those with a fixed name."""
    found = [base] if get_origin(base.model_fields["name"].annotation) is Literal else []
    return found + [leaf for child in base.__subclasses__() for leaf in leaves(child)]


# --- cell ---------------------------------------------------------------------------------------


class CellConfig(Group):
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
    engine: Literal["auto", "native", "amx", "torch", "plain"] = "auto"
    heads: PositiveInt | None = None
    rounds: PositiveInt | None = None
    rank: PositiveInt | None = None

    def conflict(self) -> str | None:
        if self.kind not in BACKENDS[self.backend]:
            pairs = "; ".join(f"{backend}: {', '.join(kinds)}" for backend, kinds in BACKENDS.items())
            return f"cell={self.backend} has no cell.kind={self.kind}. There are {pairs}"
        if self.recompute and self.backend != "fused":
            return f"cell.recompute=true is for cell=fused, not cell={self.backend}"
        if self.engine != "auto" and self.backend != "fused":
            return f"cell.engine={self.engine} is for cell=fused, not cell={self.backend}"
        if self.weight_drop and not KINDS[self.kind].reads_h:
            return f"cell.weight_drop={self.weight_drop} is not for cell.kind={self.kind}, without weight_hh"
        if self.heads is not None and self.kind != "slstm":
            return f"cell.heads={self.heads} is for cell.kind=slstm, not cell.kind={self.kind}"
        for name in ("rounds", "rank"):
            if (value := getattr(self, name)) is not None and self.kind != "mogrifier":
                return f"cell.{name}={value} is for cell.kind=mogrifier, not cell.kind={self.kind}"
        if self.kind == "slstm" and self.hidden_size % (self.heads or HEADS):
            return f"cell.heads={self.heads or HEADS} must divide cell.hidden_size={self.hidden_size}"
        return None

    def with_backend(self, backend: str) -> Self:
        """The same cell on another backend; what only `fused` can do is left out where it is not that."""
        of_fused = {"recompute": False, "engine": "auto"} if backend != "fused" else {}
        return self.replace({"backend": backend} | of_fused)


# --- model --------------------------------------------------------------------------------------


class Recommends(Group):
    hidden_size: PositiveInt
    num_layers: PositiveInt
    bidirectional: bool
    dropout: Share
    forget_bias: float
    max_epochs: PositiveInt
    lr: PositiveFloat


class ModelConfig(Group):
    """A task. `module`: its file and class in lstmlab.models; `reads`: the kind of data that it takes."""

    module: ClassVar[str]
    reads: ClassVar[str]
    name: str
    monitor: str
    monitor_mode: Literal["min", "max"]
    init_from: str | None = None
    unfreeze_after: PositiveFloat | None = None
    layer_rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    recommends: Recommends

    def conflict(self) -> str | None:
        if self.unfreeze_after is not None and self.init_from is None:
            return (
                f"model.unfreeze_after={self.unfreeze_after:g} freezes what model.init_from=CKPT takes from "
                "another model; without it all weights are new, and none is frozen"
            )
        return None


class CharLMConfig(ModelConfig):
    module = "charlm.CharLM"
    reads = "text"
    name: Literal["charlm"]
    embedding_size: PositiveInt
    dropout: Share
    tie_weights: bool
    reset_probability: Share = 0.0
    adaptive_cutoffs: Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1)] | None = None

    def conflict(self) -> str | None:
        cutoffs = list(self.adaptive_cutoffs or ())
        if cutoffs and self.tie_weights:
            return (
                f"model.adaptive_cutoffs={cutoffs} gives rare tokens smaller vectors in the output, so "
                "model.tie_weights=true cannot share those of the embedding; leave out one of them"
            )
        if cutoffs != sorted(set(cutoffs)):
            return f"model.adaptive_cutoffs={cutoffs} must be numbers of tokens in ascending order"
        return super().conflict()


class CopyTaskConfig(ModelConfig):
    module = "copytask.CopyTask"
    reads = "sequences"
    name: Literal["copytask"]


class SentimentConfig(ModelConfig):
    module = "sentiment.Sentiment"
    reads = "labelled texts"
    name: Literal["sentiment"]
    embedding_size: PositiveInt
    dropout: Share
    word_dropout: Share
    adversarial: NonNegativeFloat
    pooling: Literal["last", "max", "mean", "attention"]
    class_weights: Literal["balanced"] | None = None


class Seq2SeqConfig(ModelConfig):
    module = "seq2seq.Seq2Seq"
    reads = "pairs"
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


class DataConfig(Group):
    """A data set. `module`: its file and class in lstmlab.data; `gives`: the kind of data, see `reads`."""

    module: ClassVar[str]
    gives: ClassVar[str]
    name: str
    batch_size: PositiveInt


class HubConfig(Group):
    """Files of the Hugging Face hub, or the same files in the folder `path`."""

    hub: str
    revision: str
    path: str | None


class TextConfig(DataConfig):
    module = "text.TextData"
    gives = "text"
    sequence_length: PositiveInt
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    max_val_chars: Annotated[int, Field(gt=256)] | None
    cache: str


class StdlibConfig(TextConfig):
    name: Literal["stdlib"]
    max_chars: PositiveInt


class ShakespeareConfig(TextConfig, HubConfig):
    name: Literal["shakespeare"]


class TextFileConfig(TextConfig):
    name: Literal["textfile"]
    path: str
    split: Literal["whole", "each_file"]


class GeneratedConfig(DataConfig):
    """Sequences of a task in `data/sequence_tasks.py`, which is built with the keys `of_task`."""

    module = "generated.GeneratedData"
    gives = "sequences"
    of_task: ClassVar[tuple[str, ...]] = ()
    train_batches: PositiveInt
    val_size: PositiveInt
    test_size: PositiveInt
    num_workers: NonNegativeInt


class CopyConfig(GeneratedConfig):
    of_task = ("symbols", "length")
    name: Literal["copy"]
    symbols: Annotated[int, Field(ge=2)]
    length: PositiveInt
    delay: Delay
    test_delay: Delay | None


class TrackingConfig(GeneratedConfig):
    length: Length
    test_length: Length | None

    @property
    def shortest(self) -> int:
        return 1

    def conflict(self) -> str | None:
        for key in ("length", "test_length"):
            lengths = getattr(self, key) or self.length
            least = min(lengths) if isinstance(lengths, tuple) else lengths
            if least < self.shortest:
                return f"data.{key}={least} is too short: data={self.name} needs {self.shortest} steps"
        return super().conflict()


class SelectiveCopyConfig(TrackingConfig):
    of_task = ("symbols", "items")
    name: Literal["selective_copy"]
    symbols: Annotated[int, Field(ge=2)]
    items: PositiveInt

    @property
    def shortest(self) -> int:
        return self.items


class ParityConfig(TrackingConfig):
    name: Literal["parity"]


class FlipFlopConfig(TrackingConfig):
    name: Literal["flipflop"]

    @property
    def shortest(self) -> int:
        return 2  # a write and a read


class S5Config(TrackingConfig):
    name: Literal["s5"]


class TokenizerConfig(DataConfig):
    tokenizer: Literal["word", "bpe", "char"]
    vocab_size: PositiveInt
    lowercase: bool
    cache: str


class TokensConfig(TokenizerConfig):
    max_length: PositiveInt
    num_workers: NonNegativeInt


class IMDBConfig(TokensConfig, HubConfig):
    module = "sentiment.IMDB"
    gives = "labelled texts"
    name: Literal["imdb"]
    val_size: PositiveInt


class ReviewsConfig(TokensConfig):
    module = "reviews.Reviews"
    gives = "labelled texts"
    name: Literal["reviews"]
    train_size: PositiveInt
    val_size: PositiveInt
    test_size: PositiveInt


class TranslationConfig(TokensConfig):
    gives = "pairs"
    bpe_dropout: Share = 0.0

    def conflict(self) -> str | None:
        if self.bpe_dropout and self.tokenizer != "bpe":
            return f"data.bpe_dropout={self.bpe_dropout} is for data.tokenizer=bpe, not {self.tokenizer}"
        return super().conflict()


class Multi30kConfig(TranslationConfig, HubConfig):
    module = "translation.Multi30k"
    name: Literal["multi30k"]
    source: str
    target: str
    tokenizer: Literal["bpe"]  # its tokens give back the very text, which BLEU needs
    lowercase: bool


class DatesConfig(TranslationConfig):
    module = "dates.Dates"
    name: Literal["dates"]
    train_size: PositiveInt
    val_size: PositiveInt
    test_size: PositiveInt
    first_year: Annotated[int, Field(ge=1000, le=9999)]
    last_year: Annotated[int, Field(ge=1000, le=9999)]
    locales: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
    tokenizer: Literal["char", "bpe"]


class SourceConfig(Group):
    """A user's own data: files, or any data set of the hub. See `lstmlab.data.sources`.

    `columns`: the keys that name its columns.
    """

    columns: ClassVar[tuple[str, ...]]
    name: str
    path: str | None
    train: str | None
    val: str | None
    test: str | None
    hub: str | None
    hub_config: str | None
    revision: str
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]

    def conflict(self) -> str | None:
        names = [getattr(self, key) for key in self.columns]
        if len(set(names)) < len(names):
            both = " and ".join(f"data.{key}={names[0]}" for key in self.columns)
            return f"{both} are one column; name two"
        sources = {key: value for key in ("path", "train", "hub") if (value := getattr(self, key))}
        given = [f"data.{key}={value}" for key, value in sources.items()]
        if not given:
            return (
                f"data={self.name} needs data.path=FILE_OR_FOLDER, data.train=FILE, or data.hub=NAME for a "
                "data set of the Hugging Face hub"
            )
        if len(given) > 1:
            return f"{given[0]} and {given[1]} both say what to train on; leave out one of them"
        for key in ("val", "test"):
            if (file := getattr(self, key)) and self.hub:
                return f"data.{key}={file} does not go with data.hub={self.hub}, which has its own parts"
        if self.hub_config and not self.hub:
            return f"data.hub_config={self.hub_config} is for data.hub=, not for files"
        if self.val_fraction + self.test_fraction >= 1:
            return (
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} leave "
                "nothing to train on; make them smaller"
            )
        return super().conflict()


class TextsConfig(SourceConfig, TokenizerConfig):
    module = "texts.Texts"
    gives = "text"
    columns = ("text",)
    name: Literal["texts"]
    text: str
    strip_markup: bool
    sequence_length: PositiveInt
    max_val_tokens: Annotated[int, Field(gt=256)] | None


class IMDBTextsConfig(TokenizerConfig, HubConfig):
    module = "texts.IMDBTexts"
    gives = "text"
    name: Literal["imdb_texts"]
    unlabelled: bool
    val_size: PositiveInt
    sequence_length: PositiveInt
    max_val_tokens: Annotated[int, Field(gt=256)] | None


class ClassesConfig(SourceConfig, TokensConfig):
    module = "classes.Classes"
    gives = "labelled texts"
    columns = ("text", "label")
    name: Literal["classes"]
    text: str
    label: str
    strip_markup: bool


class PairsConfig(SourceConfig, TranslationConfig):
    module = "pairs.Pairs"
    columns = ("source", "target")
    name: Literal["pairs"]
    source: str
    target: str
    tokenizer: Literal["char", "bpe"]  # decoding gives back the very text


# --- training -----------------------------------------------------------------------------------


class OptimizerConfig(OpenTarget):
    """Any optimizer. If it takes one of these arguments, the range here applies."""

    matrices_only: bool = False  # not an argument of the class: AdamW takes the vectors
    lr: PositiveFloat
    weight_decay: NonNegativeFloat | None = None
    momentum: Share | None = None
    betas: Annotated[tuple[Share, ...], Strict(False), Field(min_length=2, max_length=2)] | None = None

    def arguments(self) -> dict[str, Any]:
        return {key: value for key, value in super().arguments().items() if key != "matrices_only"}


class ConstantConfig(Group):
    name: Literal["constant"]
    warmup_steps: NonNegativeInt


class CosineConfig(Group):
    name: Literal["cosine"]
    warmup_steps: NonNegativeInt
    final_lr: Annotated[float, Field(ge=0, le=1)]


class PlateauConfig(Group):
    name: Literal["plateau"]
    warmup_steps: NonNegativeInt
    factor: Annotated[float, Field(gt=0, lt=1)]
    patience: PositiveInt


class OwnSchedulerConfig(OpenTarget):
    """Any LRScheduler, from torch or from the user, stepped after each optimizer step."""

    name: ClassVar[str] = "own"
    warmup_steps: ClassVar[int] = 0


class NormClippingConfig(Group):
    name: Literal["norm"]
    max_norm: PositiveFloat


class ValueClippingConfig(Group):
    name: Literal["value"]
    max_value: PositiveFloat


class NoClippingConfig(Group):
    name: Literal["none"]


class PrecisionConfig(Group):
    name: Literal["32-true", "bf16-mixed", "16-mixed"]


class TrainerConfig(Group):
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


class LoggerConfig(OpenTarget):
    pass


class CallbackConfig(OpenTarget):
    pass


class EarlyStoppingConfig(CallbackConfig):
    target: Literal["lightning.pytorch.callbacks.EarlyStopping"] = Field(alias="_target_")
    patience: PositiveInt


class LastConfig(Target):
    target: Literal["lstmlab.callbacks.last.LastCheckpoint"] = Field(alias="_target_")
    every_n_minutes: PositiveFloat | None
    every_n_steps: PositiveInt | None


class Limits(Group):
    """The thresholds of the doctor; see conf/callbacks/default.yaml and `lstmlab.callbacks.diagnosis`."""

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


class DoctorConfig(Limits, Target):
    target: Literal["lstmlab.callbacks.doctor.Doctor"] = Field(alias="_target_")


class GatesConfig(Target):
    target: Literal["lstmlab.callbacks.gates.Gates"] = Field(alias="_target_")
    units: PositiveInt
    steps: PositiveInt


class PruningConfig(Target):
    target: Literal["lstmlab.callbacks.pruning.Pruning"] = Field(alias="_target_")
    monitor: str
    startup_trials: NonNegativeInt
    warmup: NonNegativeInt
    study: str | None
    trial: NonNegativeInt | None


class AveragingConfig(Target):
    target: Literal["lstmlab.callbacks.averaging.ExponentialAverage"] = Field(alias="_target_")
    decay: Annotated[float, Field(gt=0, lt=1)]
    from_step: NonNegativeInt


CALLBACKS = (
    EarlyStoppingConfig,
    LastConfig,
    DoctorConfig,
    GatesConfig,
    PruningConfig,
    AveragingConfig,
)


def target_tag(settings: Any) -> str:
    """The `_target_` of a callback if one of CALLBACKS describes it, otherwise "other"."""
    target = settings.get("_target_") if isinstance(settings, dict) else getattr(settings, "target", None)
    known = [get_args(config.model_fields["target"].annotation)[0] for config in CALLBACKS]
    return str(target) if target in known else "other"


# --- commands -----------------------------------------------------------------------------------


if TYPE_CHECKING:
    # Each task and each data set reads the keys of its own class
    AnyModel = Any
    AnyData = Any
    AnyCallback = Any
else:
    AnyModel = Annotated[reduce(or_, leaves(ModelConfig)), Field(discriminator="name")]
    AnyData = Annotated[reduce(or_, leaves(DataConfig)), Field(discriminator="name")]
    AnyCallback = Annotated[
        reduce(
            or_,
            (
                Annotated[config, Tag(config.model_fields["target"].annotation.__args__[0])]
                for config in CALLBACKS
            ),
            Annotated[CallbackConfig, Tag("other")],
        ),
        Discriminator(target_tag),
    ]


def scheduler_name(settings: Any) -> str:
    return settings.get("name", "own") if isinstance(settings, dict) else getattr(settings, "name", "own")


class CheckpointConfig(Group):
    """The part of a configuration that opening a checkpoint needs."""

    data: AnyData
    model: AnyModel
    cell: CellConfig
    seed: NonNegativeInt


class TrainConfig(CheckpointConfig):
    optimizer: OptimizerConfig
    scheduler: Annotated[
        Annotated[ConstantConfig, Tag("constant")]
        | Annotated[CosineConfig, Tag("cosine")]
        | Annotated[PlateauConfig, Tag("plateau")]
        | Annotated[OwnSchedulerConfig, Tag("own")],
        Discriminator(scheduler_name),
    ]
    clipping: Annotated[
        NormClippingConfig | ValueClippingConfig | NoClippingConfig, Field(discriminator="name")
    ]
    precision: PrecisionConfig
    trainer: TrainerConfig
    logger: Annotated[Mapping[str, LoggerConfig], *Frozen]
    callbacks: Annotated[Mapping[str, AnyCallback | None], *Frozen]
    resume: str | None
    exact: bool
    deterministic: bool
    threads: PositiveInt | None
    run_dir: str

    def conflict(self) -> str | None:
        cell, model, data = self.cell, self.model, self.data
        if problem := cell.conflict():
            return problem
        if cell.engine == "amx" and self.precision.name != "bf16-mixed":
            return "cell.engine=amx multiplies in bf16, so it needs precision=bf16"
        if data.gives != model.reads:
            fitting = ", ".join(names_of_data(model.reads))
            return f"data={data.name} does not fit model={model.name}, which takes {fitting}"
        if problem := model.conflict() or data.conflict():
            return problem
        if model.name == "charlm" and cell.bidirectional:
            return "cell.bidirectional=true would show model=charlm the characters that it has to predict"
        cutoffs = list(getattr(model, "adaptive_cutoffs", None) or ())
        if cutoffs and cutoffs[-1] >= getattr(data, "vocab_size", math.inf):
            return f"model.adaptive_cutoffs={cutoffs} must be less than data.vocab_size={data.vocab_size}"
        if cell.hidden_size < 4 ** len(cutoffs):
            return (
                f"model.adaptive_cutoffs={cutoffs} makes the vectors of each group a quarter as long as "
                f"those of the one before: cell.hidden_size={cell.hidden_size} leaves none for the last"
            )
        translated = model.monitor in ("val/sacrebleu", "val/exact_match")
        if isinstance(model, Seq2SeqConfig) and translated and not model.translate_val:
            return f"model.monitor={model.monitor} needs model.translate_val=true"
        drops = cell.dropout and cell.num_layers > 1
        if isinstance(model, Seq2SeqConfig) and model.r_drop and not (model.dropout or drops):
            return (
                f"model.r_drop={model.r_drop} compares two passes that differ by dropout; raise model.dropout"
            )
        if self.precision.name == "16-mixed" and self.trainer.accelerator == "cpu":
            return "precision=fp16 needs trainer=gpu; on the CPU use precision=bf16 or fp32"
        processes = self.trainer.devices * self.trainer.num_nodes
        if processes > 1 and self.trainer.strategy != "ddp":
            return f"{processes} processes (trainer.devices × trainer.num_nodes) need trainer=ddp"
        if model.unfreeze_after is not None and self.trainer.strategy == "ddp":
            return (
                f"model.unfreeze_after={model.unfreeze_after:g} needs a single process: DDP expects the same "
                "gradients at each step; leave out trainer=ddp"
            )
        if data.batch_size % processes:
            return f"data.batch_size={data.batch_size} cannot be shared evenly by {processes} processes"
        if cell.init == "chrono" and cell.chrono_steps is None and model.name != "copytask":
            return "cell.init=chrono needs cell.chrono_steps, the longest dependency expected"
        if self.trainer.max_epochs is None and self.trainer.max_steps is None:
            return "trainer.max_epochs=null and trainer.max_steps=null would never end; set one of them"
        if self.callbacks.get("best") is None:
            return (
                "callbacks.best=null would keep no best.ckpt, with whose metrics a run ends; "
                "'callbacks=[default,NAME]' adds conf/callbacks/NAME.yaml to the callbacks that are there"
            )
        pruning = self.callbacks.get("pruning")
        if isinstance(pruning, PruningConfig) and pruning.trial is None:
            return "sweep=optuna needs -m: python src/train.py -m sweep=optuna"
        return None


class AskConfig(Group):
    backend: Backend | None
    accelerator: Literal["cpu", "gpu"]
    set: str | None = None

    def conflict(self) -> str | None:
        if self.set is not None and self.backend not in (None, "scratch"):
            return f"set= works with backend=scratch, not {self.backend}"
        return super().conflict()


class PredictConfig(AskConfig):
    ckpt: str
    text: str | None
    input: str | None
    output: str | None
    column: str | None
    threads: PositiveInt | None
    length: PositiveInt
    temperature: NonNegativeFloat
    top_k: PositiveInt | None
    beam_size: PositiveInt
    length_penalty: NonNegativeFloat
    attention_map: str | None
    seed: NonNegativeInt

    def conflict(self) -> str | None:
        if (self.text is None) == (self.input is None):
            return "give a text, text=TEXT, or a file of texts, input=FILE output=FILE"
        if (self.input is None) != (self.output is None):
            return "input=FILE and output=FILE go together"
        return super().conflict()


class OpenedDataConfig(Group):
    """The keys of the `data` group that may differ from those in training."""

    path: str | None
    cache: str


class EvaluateDataConfig(OpenedDataConfig):
    test: str | None = None
    test_delay: Delay | None
    test_length: Length | None


class EvaluateConfig(AskConfig):
    ckpt: str | None
    ensemble: Annotated[tuple[str, ...], Strict(False), Field(min_length=2)] | None = None
    average: Several | None = None
    beam_size: PositiveInt | None
    data: EvaluateDataConfig

    @property
    def asked(self) -> str:
        """Which model was typed, for messages."""
        return f"ckpt={self.ckpt}" if self.ensemble is None else f"ensemble=[{','.join(self.ensemble)}]"

    def conflict(self) -> str | None:
        if (self.ckpt is None) == (self.ensemble is None):
            return "give one model, ckpt=PATH, or several, ensemble=[PATH,PATH]"
        if self.ensemble is not None and len(set(self.ensemble)) < len(self.ensemble):
            return f"{self.asked} names a model twice"
        for key in ("set", "average"):
            if self.ensemble is not None and (value := getattr(self, key)) is not None:
                return f"{key}={value} is for one model, ckpt=PATH, not for ensemble="
        if self.data.test is not None and self.data.path is not None:
            return f"data.test={self.data.test} is read alone, so data.path={self.data.path} has no effect"
        return super().conflict()


class AnalyzeConfig(Group):
    ckpt: str
    text: str | None
    set: str | None = None
    folder: str | None
    page_steps: PositiveInt
    page_values: Annotated[tuple[Literal[TRACED], ...], Strict(False)] | None  # type: ignore[valid-type]
    probe_steps: NonNegativeInt
    traces: bool
    language: Literal["python", "english"] | None
    data: OpenedDataConfig


class ExportConfig(Group):
    ckpt: str
    average: Several | None = None
    format: Literal["onnx", "safetensors", "html"]
    folder: str | None


class CompareConfig(Group):
    runs: str
    metrics: str | Annotated[tuple[str, ...], Strict(False)] | None
    x: str | None
    folder: str | None


class BenchConfig(TrainConfig):
    suite: Literal["cells", "engines", "kinds", "ladder", "sample", "compile", "train", "floors", "speedrun"]
    rounds: PositiveInt
    steps: PositiveInt

    def conflict(self) -> str | None:
        # floors uses no model
        if self.suite == "floors":
            known = names_of_data("text") + names_of_data("labelled texts")
            known.remove("texts")  # of words, while n-grams are of characters
            if self.data.name in known:
                return None
            return f"suite=floors has nothing for data={self.data.name}, only for data={', '.join(known)}"
        if self.suite == "compile" and self.model.name != "charlm":
            return f"suite=compile measures model=charlm, not model={self.model.name}"
        if self.suite == "speedrun" and self.data.name != "shakespeare":
            return (
                f"suite=speedrun is for data=shakespeare, not data={self.data.name}; "
                "add experiment=shakespeare_speedrun"
            )
        if self.trainer.strategy == "ddp":
            return "trainer=ddp is for train.py: bench.py measures one process"
        if self.suite == "train" and self.steps < self.trainer.log_every_n_steps:
            least = self.trainer.log_every_n_steps
            return f"steps={self.steps} is too few: the speed is logged every {least} steps"
        return super().conflict()


def names_of_data(gives: str) -> list[str]:
    """The names of the data sets that give this kind of data."""
    return [
        get_args(leaf.model_fields["name"].annotation)[0]
        for leaf in leaves(DataConfig)
        if leaf.gives == gives
    ]


COMMANDS: dict[str, type[Group]] = {
    "train": TrainConfig,
    "bench": BenchConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "analyze": AnalyzeConfig,
    "export": ExportConfig,
    "compare": CompareConfig,
    "checkpoint": CheckpointConfig,
}


def check(command: str, config: dict[str, Any]) -> Any:
    """Check `config`, composed from conf/`command`.yaml, and return the object of its command.

    Raises ValueError, in one sentence that names the key, the value and what is allowed.
    """
    try:
        checked = COMMANDS[command].model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        node: Any = config
        keys = []
        for depth, part in enumerate(first["loc"], start=1):
            part = "_target_" if part == "target" else part
            missing = first["type"] == "missing" and depth == len(first["loc"])
            # The path also holds the members of unions, which are not keys
            if isinstance(node, dict) and (part in node or missing):
                keys.append(str(part))
                node = node.get(part)
        if first["type"] == "missing":
            raise ValueError(f"{'.'.join(keys)} is required: {'.'.join(keys)}=…") from None
        message, value = first["msg"][0].lower() + first["msg"][1:], first["input"]
        message = message.replace("tuple should", "list should").replace(" after validation", "")
        if first["type"] == "union_tag_invalid":  # data.name and the like, optimizer._target_
            by_name = first["ctx"]["discriminator"] in ("'name'", "scheduler_name()")
            keys.append("name" if by_name else "_target_")
            message, value = f"input should be {first['ctx']['expected_tags']}", first["ctx"]["tag"]
        if first["type"] == "extra_forbidden":
            message = "no such key"
        if first["type"] == "model_type":
            message = "input should be a group of settings"
            if keys[-1] == "_target_":  # of a callback or logger
                message = "this belongs below a name of its own, as in NAME: {_target_: …}"
        raise ValueError(f"{'.'.join(keys)}={value}: {message}") from None
    if conflict := checked.conflict():
        raise ValueError(conflict)
    return checked
