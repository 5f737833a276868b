"""The training step of each task on a fake accelerator: it mixes no devices and never waits for the device.

PyTorch's Python backend "fakegpu" under FakeTensorMode computes shapes and devices but no numbers. An
operation on tensors of two devices raises, and so does one that needs a number on the host (`.item()`).
The backend stays registered until a process ends, so this file runs itself in its own process.

The fake cannot run packed sequences (`cell=torch` with ragged batches), nn.GRU, torchmetrics, random
generators, autocast, or decoding, which has to wait. These are not tested here.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

SETS = ["data.train_size=20", "data.batch_size=3", "data.val_size=4"]
TASKS = {
    "charlm": ["data=textfile", "data.batch_size=3", "data.sequence_length=5", "data.val_fraction=0.3"],
    "copytask": ["data.length=2", "data.delay=1", "data.batch_size=3", "data.val_size=4"],
    "sentiment": [
        "data=reviews",
        "data.train_size=20",
        "data.batch_size=3",
        "data.val_size=4",
        "data.max_length=9",
    ],
    "seq2seq": [
        "data=dates",
        "data.train_size=20",
        "data.batch_size=3",
        "data.val_size=4",
        "data.max_length=14",
    ],
}
RAGGED = ("sentiment", "seq2seq")
KINDS = {
    "scratch": ("lstm", "peephole"),
    "fused": ("lstm", "gru", "layernorm", "mingru", "slstm"),
    "torch": ("lstm", "rnn"),
}
CASES = [
    (task, backend, kind)
    for task in TASKS
    for backend, kinds in KINDS.items()
    for kind in kinds
    if not (backend == "torch" and task in RAGGED)
]
HARD = ["cell.num_layers=2", "cell.hidden_size=8", "cell.dropout=0.3", "cell.weight_drop=0.1"]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, str]:
    """The result of each case: "done", or the error."""
    folder = tmp_path_factory.mktemp("fake")
    text = folder / "text.txt"
    text.write_text("".join(f"line {i}: é {i * i % 97}\n" for i in range(300)), encoding="utf-8")
    program = [sys.executable, __file__, str(folder)]
    process = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["-".join(case) for case in CASES])
def test_a_training_step_stays_on_its_device_and_never_waits(found, case):
    assert found[case] == "done"


@pytest.mark.parametrize("fault", ["a tensor on the host", "a number for the host", "a copy for the host"])
def test_the_fake_accelerator_notices_a_fault(found, fault):
    assert found[fault] != "done"


def run_cases(folder: str) -> dict[str, str]:
    import torch
    from hydra import compose, initialize_config_dir
    from torch._subclasses import FakeTensorMode
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    from lstmlab.config import PROJECT, to_plain
    from lstmlab.data import build_data
    from lstmlab.models import build_model
    from lstmlab.schema import check

    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise RuntimeError("a wait for the accelerator: .cpu()")

    def move(model: Any, batch: Any, mode: FakeTensorMode) -> Any:
        """Move the parameters and buffers of the model in place. Returns a copy of the batch."""
        fakes: dict[int, Any] = {}  # tied weights stay tied
        places: list[Any] = [(module._parameters, torch.nn.Parameter) for module in model.modules()]
        places += [(module._buffers, torch.Tensor.detach) for module in model.modules()]
        with torch.no_grad():
            for tensors, wrap in places:
                for name, tensor in tensors.items():
                    if tensor is not None:
                        fake = mode.from_tensor(tensor.detach())
                        with mode:
                            fakes.setdefault(id(tensor), wrap(fake.to("fakegpu")))
                        tensors[name] = fakes[id(tensor)]
            members = [mode.from_tensor(member) for member in batch]
            with mode:
                return type(batch)(*(member.to("fakegpu") for member in members))

    def train_steps(model: Any, batch: Any) -> None:
        (optimizer,), (schedule,) = model.configure_optimizers()
        for _ in range(2):
            loss = model.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            model.configure_gradient_clipping(optimizer)
            optimizer.step()
            schedule["scheduler"].step()
            model.count_tokens(batch)

    def attempt(task: str, backend: str, kind: str, fault: Any = None) -> str:
        overrides = [f"run_dir={folder}", f"model={task}", *TASKS[task], *HARD, f"cell={backend}"]
        overrides += [f"cell.kind={kind}", "trainer.max_steps=5"]
        if kind == "mingru":  # without recurrent weights
            overrides.remove("cell.weight_drop=0.1")
        if task != "copytask":
            overrides += [f"data.cache={folder}", "model.embedding_size=8"]
        if task == "charlm":
            overrides.append(f"data.path={folder}/text.txt")
        with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
            config = check("train", to_plain(compose("train", overrides)))
        data = build_data(config.data)
        data.prepare_data()
        data.setup("fit")
        model = build_model(config, data.info)
        model.log_step = lambda *_, **__: None  # there is no trainer
        mode = FakeTensorMode()
        batch = move(model, next(iter(data.train_dataloader())), mode)
        try:
            with mode, pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.Tensor, "cpu", refuse)
                if fault is not None:
                    step = model.training_step
                    model.training_step = lambda *given: fault(step(*given))
                train_steps(model, batch)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "done"

    _setup_privateuseone_for_python_backend("fakegpu")
    results = {"-".join(case): attempt(*case) for case in CASES}
    faults: dict[str, Any] = {
        "a tensor on the host": lambda loss: loss + torch.ones(1),
        "a number for the host": lambda loss: loss * loss.item(),
        "a copy for the host": lambda loss: loss * len(loss[None].cpu()),
    }
    return results | {name: attempt("charlm", "fused", "lstm", fault) for name, fault in faults.items()}


if __name__ == "__main__":
    print(json.dumps(run_cases(sys.argv[1])))
