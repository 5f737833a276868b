"""Write checkpoints, check and load them without running code, and rebuild their models."""

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from lstmlab.atomic import replace_file
from lstmlab.models import build_model
from lstmlab.models.base import Task
from lstmlab.schema import CheckpointConfig, check

FORMAT = 2  # raised whenever older checkpoints can no longer be opened


class CheckpointIO(TorchCheckpointIO):
    """Makes Lightning write checkpoints atomically and read them with `load_checkpoint`.

    Lightning itself writes to the system's temporary folder. If that is another disk, its rename is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            # Not its parents: a run's folder that was deleted must not come back
            path.parent.mkdir(exist_ok=True)
            with replace_file(path) as file:
                torch.save(checkpoint | {"lstmlab_format": FORMAT}, file)
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError if the disk is full
            cause = error if isinstance(error, OSError) else error.__context__
            reason = getattr(cause, "strerror", None) or error
            raise OSError(f"{path} could not be written: {reason}") from error

    def load_checkpoint(self, path, map_location=None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(str(path))


def find_device(accelerator: str) -> str:
    """The torch device of `cpu` or `gpu`. Raises ValueError if there is no GPU."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("a gpu was requested, but PyTorch finds none on this machine; use cpu")
    return "cuda" if accelerator == "gpu" else "cpu"


def find_checkpoint(path: str) -> Path:
    """The file that ckpt= names: a checkpoint, or the best checkpoint of a run's folder.

    Raises FileNotFoundError if there is none.
    """
    file = Path(path)
    if file.is_dir():
        file /= "checkpoints/best.ckpt"
    if not file.is_file():
        missing = "a folder without checkpoints/best.ckpt" if Path(path).is_dir() else "no such file"
        raise FileNotFoundError(f"ckpt={path}: {missing}")
    return file


def find_run_folder(path: str) -> Path:
    """The folder of the run that wrote checkpoint `path`, or the folder of a checkpoint that was moved."""
    ckpt = find_checkpoint(path)
    return ckpt.parent.parent if ckpt.parent.name == "checkpoints" else ckpt.parent


def load_checkpoint(path: str, average: int | None = None) -> dict[str, Any]:
    """Read a checkpoint or an exported safetensors file: tensors and plain containers, never code.

    average: see `load_average`.

    Raises FileNotFoundError, or ValueError for a file that is damaged, holds code, or was written by another
    program or version.
    """
    if average is not None:
        return load_average(path, average)
    file = find_checkpoint(path)
    checkpoint = read_safetensors(file) if file.suffix == ".safetensors" else read_zip(file)
    hyper_parameters = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not (isinstance(hyper_parameters, dict) and {"config", "info"} <= hyper_parameters.keys()):
        raise ValueError(f"ckpt={path} is a checkpoint, but was not written by lstmlab")
    number = checkpoint.get("lstmlab_format")
    if number != FORMAT:
        age = "a newer" if isinstance(number, int) and number > FORMAT else "an older"
        format_ = "it has no format number" if number is None else f"its format is {number}"
        raise ValueError(f"ckpt={path} was written by {age} lstmlab: {format_}, and this one reads {FORMAT}")
    return checkpoint


def load_average(path: str, count: int) -> dict[str, Any]:
    """The latest of the checkpoints that `callbacks=keep` left in a run's folder, but with the mean of the
    weights of the `count` latest.

    Raises what `load_checkpoint` raises, and ValueError if there are fewer of them.
    """
    if not Path(path).is_dir():
        raise ValueError(f"average={count} takes a run's folder, which ckpt={path} is not")
    files = sorted(
        Path(path, "checkpoints").glob("step_*.ckpt"), key=lambda file: int(file.stem.removeprefix("step_"))
    )
    if len(files) < count:
        raise ValueError(
            f"average={count}, but ckpt={path} has kept the checkpoints of {len(files)} validations; "
            f"train with callbacks=keep callbacks.keep.save_top_k={count}"
        )
    kept = [load_checkpoint(str(file)) for file in files[-count:]]
    states = [checkpoint["state_dict"] for checkpoint in kept]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    return kept[-1] | {"state_dict": mean}


def read_zip(file: Path) -> Any:
    """Read what `torch.save` wrote, after checking every checksum, which `torch.load` does not do."""
    with file.open("rb") as opened:
        if opened.read(4) != b"PK\3\4":
            raise ValueError(f"ckpt={file} is {'not a checkpoint' if file.stat().st_size else 'empty'}")
    if not is_intact(file):
        raise ValueError(f"ckpt={file} is damaged, truncated or not a checkpoint")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"ckpt={file} holds Python objects, which could run code; refused") from None
    except Exception as error:  # a crafted file can fail in any way
        raise ValueError(f"ckpt={file} is not a checkpoint") from error


def is_intact(file: Path) -> bool:
    """Whether `torch.save` can have written this zip archive, and every checksum is right.

    torch.save compresses nothing, sets no attributes, and gives each entry its own name, whatever the case.
    torch.load skips an entry that is marked as a directory. If two entries have one name, it may read the one
    that testzip does not check.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            return (
                all(
                    entry.compress_type == zipfile.ZIP_STORED and not entry.external_attr for entry in entries
                )
                and len({entry.filename.lower() for entry in entries}) == len(entries)
                and sum(entry.file_size for entry in entries) <= file.stat().st_size
                and archive.testzip() is None
            )
    except Exception:  # zipfile trusts flags and lengths, so any error can follow
        return False


def read_safetensors(file: Path) -> dict[str, Any]:
    """Read what export.py wrote, or only the tensors of a file from another program."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no dict
    except Exception:
        raise ValueError(f"ckpt={file} is damaged or not a safetensors file") from None
    described = metadata.get("lstmlab", "{}")
    if described != "{}" and metadata.get("sha256") != compute_digest(described, state):
        raise ValueError(f"ckpt={file} is damaged: it fails its checksum")
    return json.loads(described) | {"state_dict": state}


def compute_digest(described: str, state: dict[str, Tensor]) -> str:
    """sha256 of the content of a safetensors file, whose format has no checksum."""
    sha256 = hashlib.sha256(described.encode())
    for name, tensor in sorted(state.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.contiguous().numpy().data)
    return sha256.hexdigest()


def load_model(path: str, backend: str | None = None, accelerator: str = "cpu") -> Task:
    """The model of a checkpoint in evaluation mode, with the cells of `backend` if it is given.

    Raises what `load_checkpoint` raises, and ValueError if weights and configuration do not fit together.
    """
    return rebuild_model(load_checkpoint(path), path, backend, accelerator)


def rebuild_model(
    checkpoint: dict[str, Any], path: str, backend: str | None = None, accelerator: str = "cpu"
) -> Task:
    """`load_model` for a checkpoint that has been read from `path` already."""
    config, state = read_config(checkpoint, path), checkpoint["state_dict"]
    if backend is not None:
        config = config.replace({"cell": config.cell.with_backend(backend).to_plain()})
    try:
        info = checkpoint["hyper_parameters"]["info"]
        refuse_misfit(config, info, state)
        model = build_model(config, info)
        model.load_state_dict(state)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"ckpt={path}: its weights do not fit its configuration") from error
    return model.to(find_device(accelerator)).eval()


def read_config(checkpoint: dict[str, Any], path: str) -> CheckpointConfig:
    """The part of a checkpoint's configuration that opening it needs."""
    settings = checkpoint["hyper_parameters"]["config"]
    try:
        needed = {key: settings[key] for key in CheckpointConfig.model_fields if key in settings}
        return check("checkpoint", needed)
    except ValueError as error:
        raise ValueError(f"ckpt={path} was written by another version of lstmlab: {error}") from error


def refuse_misfit(config: CheckpointConfig, info: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Raise RuntimeError unless the tensors are those that the configuration describes.

    A crafted file can describe a model of any size, so this is checked before memory is allocated.
    """
    if config.cell.num_layers > len(state):
        raise RuntimeError("fewer tensors than layers")
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in build_model(config, info).state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in state.items()}:
        raise RuntimeError("tensors of other shapes")
    if any(tensor.nbytes > tensor.untyped_storage().nbytes() for tensor in state.values()):
        raise RuntimeError("a tensor that repeats its storage")
