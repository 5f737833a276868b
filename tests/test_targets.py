"""Classes that a configuration names by `_target_`, in torch or in a package of the user."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW, Muon

from lstmlab.models.optimizers import build_optimizer
from lstmlab.schema import OptimizerConfig

LION = '''
import torch


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023."""

    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                first, second = group["betas"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((first * m + (1 - first) * p.grad).sign(), alpha=-group["lr"])
                m.mul_(second).add_(p.grad, alpha=1 - second)
        return loss
'''
CALLBACK = """
import lightning


class Counter(lightning.Callback):
    def __init__(self, prefix):
        self.prefix, self.steps = prefix, 0

    def on_train_batch_end(self, *_):
        self.steps += 1

    def on_train_end(self, *_):
        print(f"{self.prefix} {self.steps}")
"""
SMALL_COPY = [
    "model=copytask",
    "data.delay=1",
    "data.train_batches=4",
    "data.batch_size=2",
    "data.val_size=4",
    "data.test_size=4",
    "cell.hidden_size=8",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package `theirs` of a user, which is removed from sys.modules at the end."""
    folder = tmp_path / "elsewhere/theirs"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "lion.py").write_text(LION)
    (folder / "counter.py").write_text(CALLBACK)
    (folder / "broken.py").write_text("import not_there")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


def test_an_optimizer_and_a_callback_from_another_package(command, package, tmp_path):
    given = [
        *SMALL_COPY,
        "optimizer._target_=theirs.lion.Lion",
        "optimizer.lr=1e-3",
        "+optimizer.betas=[0.8,0.9]",
        "+callbacks.counter={_target_: theirs.counter.Counter, prefix: counted}",
        f"hydra.run.dir={tmp_path}/run",
    ]
    code, out, error = command("train", *given, "trainer.max_epochs=1")
    assert code == 0, error
    assert "counted 4" in out
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    (state,) = saved["optimizer_states"]
    assert state["param_groups"][0]["betas"] == [0.8, 0.9]
    code, out, error = command("train", f"resume={tmp_path}/run", "trainer.max_epochs=2", "exact=false")
    assert code == 0, error
    assert "counted 4" in out and "Resuming after step 4" in out


def test_a_scheduler_from_torch(command, tmp_path):
    given = [
        *SMALL_COPY,
        "~scheduler",
        "+scheduler={_target_: torch.optim.lr_scheduler.StepLR, step_size: 2}",
    ]
    code, _, error = command(
        "train", *given, "trainer.max_epochs=1", "optimizer.lr=0.1", f"hydra.run.dir={tmp_path}/run"
    )
    assert code == 0, error
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.001)


WRONG = [
    ("optimizer._target_=os.system", "optimizer._target_=os.system must be a subclass of Optimizer"),
    ("optimizer._target_=theirs.lion.Tiger", "optimizer._target_=theirs.lion.Tiger cannot be imported"),
    (
        "optimizer._target_=theirs.broken.Lion",
        "theirs.broken.Lion cannot be imported: No module named 'not_there'",
    ),
    ("optimizer._target_=Lion", "optimizer._target_=Lion cannot be imported"),
    ("optimizer._target_=theirs.counter.Counter", "must be a subclass of Optimizer"),
    (
        "+optimizer.momentun=0.5",
        "optimizer does not fit torch.optim.Adam: got an unexpected keyword argument",
    ),
    (
        "+callbacks.x={_target_: theirs.lion.Lion}",
        "callbacks.x._target_=theirs.lion.Lion must be a subclass of Cal",
    ),
    (
        "+callbacks.x={_target_: theirs.counter.Counter}",
        "callbacks.x does not fit theirs.counter.Counter: missing",
    ),
    ("+callbacks.x={a: 1}", "callbacks.x._target_"),
    (
        "+logger.x={_target_: theirs.counter.Counter, prefix: a}",
        "logger.x._target_=theirs.counter.Counter must be",
    ),
    ("+optimizer.a={_target_: os.system}", "optimizer.a={'_target_': 'os.system'}: input should be a number"),
    ("scheduler.name=theirs", "scheduler.name=theirs: input should be 'constant'"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[override for override, _ in WRONG])
def test_a_class_that_does_not_fit_is_refused_at_the_start(command, package, tmp_path, override, message):
    code, _, error = command("train", *SMALL_COPY, override, f"hydra.run.dir={tmp_path}/run")
    assert code == 1
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in ((4, 3), (4,), (2, 4), (2,))]


def settings(**arguments) -> OptimizerConfig:
    return OptimizerConfig.model_validate(arguments)


def step(optimizer: torch.optim.Optimizer, ps: list[nn.Parameter], count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for p in ps:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_muon_gets_the_matrices_and_adamw_the_vectors():
    found, expected = parameters(), parameters()
    config = settings(_target_="torch.optim.Muon", matrices_only=True, lr=0.1, weight_decay=0.2)
    step(build_optimizer(config, found), found, 3)
    for optimizer, ps in (
        (Muon(expected[::2], lr=0.1, weight_decay=0.2), expected),
        (AdamW(expected[1::2], lr=0.1, weight_decay=0.0), expected),
    ):
        step(optimizer, ps, 3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_two_optimizers_have_one_state_dict():
    """State and learning rates are saved together, and a scheduler changes both."""
    config = settings(_target_="torch.optim.Muon", matrices_only=True, lr=0.1)
    whole, parts = parameters(), parameters()
    first = build_optimizer(config, whole)
    step(first, whole, 2)
    with torch.no_grad():
        for p, q in zip(parts, whole, strict=True):
            p.copy_(q)
    torch.optim.lr_scheduler.LambdaLR(first, lambda _: 0.5)
    second = build_optimizer(config, parts)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [group["lr"] for group in second.param_groups] == [0.05, 0.05]
    for optimizer, ps in ((first, whole), (second, parts)):
        step(optimizer, ps, 2)
    for one, other in zip(parts, whole, strict=True):
        assert torch.equal(one, other)


def test_vectors_get_no_weight_decay():
    ps = parameters()
    config = settings(_target_="torch.optim.Adam", lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(config, ps)
    assert isinstance(optimizer, Adam)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(2, 0.5), (2, 0.0)]
