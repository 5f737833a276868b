"""Checkpoints: checked, loaded without running code, and turned back into a model."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from lstmlab.models import Task, model_class


def device(accelerator: str) -> str:
    """PyTorch's name of `cpu` or `gpu`. Raises ValueError if there is no GPU."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("gpu was asked for, but PyTorch finds none on this machine; use cpu")
    return "cuda" if accelerator == "gpu" else "cpu"


def load(path: str) -> dict[str, Any]:
    """Read a checkpoint of lstmlab's; only tensors and plain containers, never code.

    Raises FileNotFoundError, or ValueError for a file that is damaged, holds code or is not ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"ckpt={path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}"
        )
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load checks no CRC
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"ckpt={path} is damaged: {damaged} fails its checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError):
        raise ValueError(f"ckpt={path} is damaged or no checkpoint") from None
    except pickle.UnpicklingError:
        raise ValueError(f"ckpt={path} holds Python objects, which could run code; refused") from None
    if not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise ValueError(f"ckpt={path} is a checkpoint, but not one of lstmlab's")
    return checkpoint


def load_model(path: str, backend: str | None = None, accelerator: str = "cpu") -> Task:
    """The model of a checkpoint, in evaluation mode, on another backend's cells if `backend` names one."""
    checkpoint = load(path)
    hyper_parameters = checkpoint["hyper_parameters"]
    config, info = hyper_parameters["config"], hyper_parameters["info"]
    if backend is not None:
        recompute = config["cell"].get("recompute", False) and backend == "fused"
        config = config | {"cell": config["cell"] | {"backend": backend, "recompute": recompute}}
    model = model_class(config["model"]["name"])(config, info)
    model.load_state_dict(checkpoint["state_dict"])
    return model.to(device(accelerator)).eval()
