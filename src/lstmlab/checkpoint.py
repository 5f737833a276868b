"""Checkpoints: checked, loaded without running code, and turned back into a model."""

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
from lstmlab.models import model_class
from lstmlab.models.base import Task
from lstmlab.schema import Trained, check

FORMAT = 2  # raised whenever checkpoints written before can no longer be opened


class CheckpointIO(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints: whole or not at all, and through `load`.

    Lightning's own writes to the system's temporary folder: on another disk, its renaming is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            # Only this folder: whoever deletes a run's folder does not want another
            path.parent.mkdir(exist_ok=True)
            with replace_file(path) as file:
                torch.save(checkpoint | {"lstmlab_format": FORMAT}, file)
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError if the disk is full
            cause = error if isinstance(error, OSError) else error.__context__
            reason = getattr(cause, "strerror", None) or error
            raise OSError(f"{path} could not be written: {reason}") from error

    def load_checkpoint(self, path, map_location=None, weights_only: bool | None = None) -> dict[str, Any]:
        return load(str(path))


def device(accelerator: str) -> str:
    """PyTorch's name of `cpu` or `gpu`. Raises ValueError if there is no GPU."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("gpu was asked for, but PyTorch finds none on this machine; use cpu")
    return "cuda" if accelerator == "gpu" else "cpu"


def find_run_folder(ckpt: Path) -> Path:
    """The folder of the run that wrote a checkpoint; of a file that was moved, the folder where it lies."""
    return ckpt.parent.parent if ckpt.parent.name == "checkpoints" else ckpt.parent


def load(path: str) -> dict[str, Any]:
    """Read a checkpoint of lstmlab's, or its safetensors file: only tensors and plain containers, never code.

    Raises FileNotFoundError, or ValueError for a file that is damaged, holds code, is not ours or is of
    another version.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"ckpt={path}: {'a folder, not a file' if file.is_dir() else 'no such file'}")
    checkpoint = read_safetensors(file) if file.suffix == ".safetensors" else read_zip(file)
    described = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not (isinstance(described, dict) and {"config", "info"} <= described.keys()):
        raise ValueError(f"ckpt={path} is a checkpoint, but not one of lstmlab's")
    found = checkpoint.get("lstmlab_format")
    if found != FORMAT:
        age = "a newer" if isinstance(found, int) and found > FORMAT else "an older"
        number = "without a number" if found is None else found
        raise ValueError(
            f"ckpt={path} was written by {age} lstmlab: its format is {number}, and this one reads {FORMAT}"
        )
    return checkpoint


def read_zip(file: Path) -> Any:
    """What `torch.save` wrote. Every byte that it reads has been checked: `torch.load` checks no CRC."""
    with file.open("rb") as opened:
        if opened.read(4) != b"PK\3\4":
            raise ValueError(f"ckpt={file} is {'no checkpoint' if file.stat().st_size else 'empty'}")
    damaged = ValueError(f"ckpt={file} is damaged, cut short or no checkpoint")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # torch.save compresses nothing, sets no attributes, and names each entry once, whatever the case.
            # torch.load would leave unread what is marked as a directory and, of two by one name, may read
            # the one that testzip does not.
            if (
                any(entry.compress_type != zipfile.ZIP_STORED or entry.external_attr for entry in entries)
                or len({entry.filename.lower() for entry in entries}) < len(entries)
                or sum(entry.file_size for entry in entries) > file.stat().st_size
                or archive.testzip() is not None
            ):
                raise damaged
    except Exception:  # of whatever kind: zipfile takes flags and lengths as it finds them
        raise damaged from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"ckpt={file} holds Python objects, which could run code; refused") from None
    except Exception as error:  # what is made up may fail in any way
        raise ValueError(f"ckpt={file} is no checkpoint") from error


def read_safetensors(file: Path) -> dict[str, Any]:
    """What export.py wrote; of others' files the tensors alone."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no dict
    except Exception:
        raise ValueError(f"ckpt={file} is damaged or no safetensors file") from None
    described = metadata.get("lstmlab", "{}")
    if described != "{}" and metadata.get("sha256") != digest(described, state):
        raise ValueError(f"ckpt={file} is damaged: it fails its checksum")
    return json.loads(described) | {"state_dict": state}


def digest(described: str, state: dict[str, Tensor]) -> str:
    """sha256 of what a safetensors file holds: the format has no checksum of its own."""
    found = hashlib.sha256(described.encode())
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()


def load_model(path: str, backend: str | None = None, accelerator: str = "cpu") -> Task:
    """The model of a checkpoint, in evaluation mode, on another backend's cells if `backend` names one.

    Raises what `load` raises, and ValueError if weights and configuration do not fit together.
    """
    checkpoint = load(path)
    hyper_parameters = checkpoint["hyper_parameters"]
    config, info = hyper_parameters["config"], hyper_parameters["info"]
    try:
        check("checkpoint", {key: config[key] for key in Trained.model_fields if key in config})
    except ValueError as error:
        raise ValueError(f"ckpt={path} was written by another version of lstmlab: {error}") from error
    if backend is not None:
        recompute = config["cell"]["recompute"] and backend == "fused"
        config = config | {"cell": config["cell"] | {"backend": backend, "recompute": recompute}}
    try:
        model = build(config, info, checkpoint["state_dict"])
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"ckpt={path}: its weights do not fit its configuration") from error
    return model.to(device(accelerator)).eval()


def build(config: dict[str, Any], info: dict[str, Any], state: dict[str, Tensor]) -> Task:
    """The model with these weights. What is made up may ask for any size: no memory is used, and RuntimeError
    raised, before each tensor has been seen to be there, as large as the configuration asks for."""
    if config["cell"]["num_layers"] > len(state):
        raise RuntimeError("fewer tensors than layers")
    model = model_class(config["model"]["name"])
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in model(config, info).state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in state.items()}:
        raise RuntimeError("tensors of other shapes")
    if any(tensor.nbytes > tensor.untyped_storage().nbytes() for tensor in state.values()):
        raise RuntimeError("a tensor that repeats its storage")
    built = model(config, info)
    built.load_state_dict(state)
    return built
