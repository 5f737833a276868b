"""Each fault is provoked in a run and reported; nothing is reported in healthy runs."""

import copy
import itertools
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import SMALL
from lstmlab import checkpoint
from lstmlab.callbacks import doctor
from lstmlab.callbacks.diagnosis import Look, diagnose
from lstmlab.cells.base import Recurrent
from lstmlab.config import PROJECT
from lstmlab.data import build_data, text
from lstmlab.models import build_model, charlm
from lstmlab.runs.train import train
from lstmlab.schema import Limits, TrainConfig
from same_end import resume

QUICK = [
    "trainer.enable_progress_bar=false",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "callbacks.examples=null",
]
CHARLM = [
    *QUICK,
    "cell.hidden_size=32",
    "cell.num_layers=1",
    "data.max_chars=150000",
    "data.sequence_length=32",
    "trainer.max_epochs=20",
]
COPY = [*QUICK, "model=copytask", "cell=fused", "data.batch_size=4", "cell.hidden_size=8"]


def read_findings(settings: TrainConfig) -> dict[str, str]:
    """The read_findings in doctor.md: name → text."""
    file = Path(settings.run_dir) / "doctor.md"
    parts = file.read_text(encoding="utf-8").split("## Step ")[1:] if file.exists() else []
    found = {re.sub(r"^\d+: ", "", part.splitlines()[0]): part for part in parts}
    assert len(found) == len(parts), "each is reported once"
    return found


@pytest.mark.parametrize(
    ("fault", "overrides", "evidence", "override"),
    [
        (
            "flat loss",
            [*CHARLM, "optimizer.lr=1e-6", "trainer.max_steps=320"],
            "in total the weights moved by 0.",
            "optimizer.lr=0.01",
        ),
        (
            "oscillating loss",
            [*CHARLM, "scheduler=plateau", "optimizer.lr=0.5", "trainer.max_steps=320"],
            "of their norm",
            "optimizer.lr=0.01",
        ),
        (
            "early plateau",
            [*CHARLM, "cell.hidden_size=4", "trainer.max_steps=800"],
            "from step",
            "cell.hidden_size=256",
        ),
        (
            "vanishing gradient",
            [*COPY, "cell.init=torch", "cell.num_layers=12", "data.delay=5", "trainer.max_steps=60"],
            "cell layer 0 (",
            "cell.num_layers=6",
        ),
        (
            "exploding gradient",
            [
                *QUICK,
                "model=seq2seq",
                "data=dates",
                "data.train_size=400",
                "data.val_size=20",
                "data.test_size=20",
                "cell.kind=rnn",
                "cell.hidden_size=32",
                "optimizer=sgd",
                "optimizer.lr=30",
                "clipping=none",
                "scheduler=constant",
                "trainer.max_steps=20",
                "data.batch_size=16",
            ],
            "before clipping reached",
            "clipping=norm clipping.max_norm=1",
        ),
    ],
)
def test_a_provoked_fault_is_reported(config, capsys, fault, overrides, evidence, override, tmp_path):
    if "data=dates" in overrides:
        overrides = [*overrides, f"data.cache={tmp_path}/cache"]
    settings = config(*overrides)
    train(settings)
    found = read_findings(settings)
    assert evidence in found[fault]
    assert f"`{override}`" in found[fault]
    assert set(found) == {fault}
    assert fault in capsys.readouterr().out


def read_looks(settings: TrainConfig) -> list[Look]:
    """The looks in last.ckpt."""
    saved = checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/last.ckpt")
    return [Look(*values) for values in saved["callbacks"]["Doctor"]["looks"]]


MEASURED = [
    *COPY,
    "data.symbols=3",
    "data.delay=2",
    "data.train_batches=24",
    "cell.num_layers=2",
    "cell.bidirectional=true",
    "optimizer=sgd",
    "clipping=value",
    "clipping.max_value=1e-3",
    "scheduler=constant",
    "trainer.max_epochs=1",
    "trainer.accumulate_grad_batches=2",
    "trainer.log_every_n_steps=3",
    "callbacks.doctor.steps=4",  # rounded up to 6 steps, which are 12 batches
]


def test_measurements_of_a_look(config):
    """Compared with loss, gradients and classes of each batch, computed with weights that never change."""
    settings = config(*MEASURED, "optimizer.lr=1e-30", "seed=3")
    train(settings)
    ckpt = f"{settings.run_dir}/checkpoints/last.ckpt"
    model: Any = checkpoint.load_model(ckpt)
    batches = list(build_data(settings.data, seed=3).train_dataloader())
    found = read_looks(settings)
    assert [look.step for look in found] == [6, 12]
    parts = {
        f"cell layer {layer}{backwards}": re.compile(rf"cell\..*_l{layer}{suffix}")
        for layer in (0, 1)
        for backwards, suffix in (("", ""), (" backwards", "_reverse"))
    } | {"projection": re.compile(r"projection\..*")}
    for look, start in zip(found, (0, 12), strict=True):
        losses, norms = [], []
        for first in range(start, start + 12, 2):
            model.zero_grad()
            for batch in batches[first : first + 2]:
                log_p = model(batch.tokens).log_softmax(-1)
                loss = -log_p.gather(2, batch.targets[:, :, None]).mean()
                (loss / 2).backward()
                losses.append(loss.item())
            gradients = {name: p.grad.flatten() for name, p in model.named_parameters()}
            norms.append(torch.cat(list(gradients.values())).norm().item())
        assert look.loss == pytest.approx(sum(losses) / 12, rel=1e-5)
        assert look.peak == pytest.approx(max(norms), rel=1e-4)
        assert look.gradients.keys() == parts.keys()
        for part, pattern in parts.items():  # those of the last step
            own = [gradient for name, gradient in gradients.items() if pattern.fullmatch(name)]
            assert look.gradients[part] == pytest.approx(torch.cat(own).norm().item(), rel=1e-4)
        assert look.moved == 0 and 0 <= look.waiting < 1
    shown = torch.cat([batch.targets.flatten() for batch in batches[:12]]).tolist()
    shares = [shown.count(symbol) / len(shown) for symbol in range(3)]
    baseline = checkpoint.load_checkpoint(ckpt)["callbacks"]["Doctor"]["baseline"]
    assert baseline == pytest.approx(-sum(p * math.log(p) for p in shares), rel=1e-6)


def test_movement_of_the_weights(config):
    """‖W − W before‖ / ‖W before‖ of each look, computed from checkpoints of the same steps."""
    weights = []
    for steps, lr in ((1, 1e-30), (6, 10.0), (12, 10.0)):
        settings = config(*MEASURED, f"optimizer.lr={lr}", f"trainer.max_steps={steps}")
        train(settings)
        state = checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/last.ckpt")["state_dict"]
        weights.append(torch.cat([tensor.flatten() for tensor in state.values()]))
    ways = [float((b - a).norm() / a.norm()) for a, b in itertools.pairwise(weights)]
    assert [look.moved for look in read_looks(settings)] == pytest.approx(ways, rel=1e-4)
    assert min(ways) > 1e-3


def test_a_resumed_run_reports_what_it_would_have_reported(config, train_until_killed):
    """What was found after the checkpoint is found again, but reported only once."""
    limits = ["steps=2", "exploding=1e-9", "vanishing=1e9", "waiting=1.0", "patience=100"]
    given = [
        *COPY,
        "data.train_batches=10",
        "data.delay=2",
        "trainer.max_epochs=1",
        "trainer.log_every_n_steps=2",
    ]
    given += [f"callbacks.doctor.{limit}" for limit in limits] + ["callbacks.last.every_n_steps=4"]
    whole, interrupted = config(*given), config(*given)
    train(whole)
    train_until_killed(interrupted, 7)
    reports = [Path(settings.run_dir) / "doctor.md" for settings in (interrupted, whole)]
    assert reports[0].read_bytes() == reports[1].read_bytes()  # of step 2, and of step 6 after the checkpoint
    resume(interrupted)
    assert reports[0].read_bytes() == reports[1].read_bytes()
    assert list(read_findings(whole)) == ["exploding gradient", "vanishing gradient"]
    assert "## Step 2: exploding" in reports[0].read_text() and "## Step 6: van" in reports[0].read_text()
    assert [look._replace(waiting=0) for look in read_looks(interrupted)] == [
        look._replace(waiting=0) for look in read_looks(whole)
    ]


NAN = [
    "optimizer=sgd",
    "optimizer.lr=1e30",
    "clipping=none",
    "scheduler=constant",
    "trainer.val_check_interval=1",
]


def test_a_loss_that_is_not_finite_ends_the_run(command, text_file, tmp_path):
    run = tmp_path / "run"
    small = [*SMALL, "data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}/cache"]
    small += [
        "data.batch_size=4",
        "data.sequence_length=20",
        "data.max_val_chars=300",
        f"hydra.run.dir={run}",
    ]
    code, output, error = command("train", *small, *QUICK, *NAN)
    assert code == 1 and len(error.strip().splitlines()) == 1, error
    step, index = map(int, re.findall(r"at step (\d+), batch (\d+) of epoch 0", error)[0])
    assert index == step - 1
    assert "not finite" in output and "clipping=norm clipping.max_norm=1" in output

    batch = torch.load(run / "nan_batch.pt", weights_only=True)
    assert batch["inputs"].shape == (4, 20)
    before: Any = checkpoint.load_model(str(run / "checkpoints/before_nan.ckpt"))
    assert "optimizer_states" not in checkpoint.load_checkpoint(
        str(run / "checkpoints/before_nan.ckpt")
    )  # of later steps
    assert before.loss(text.TextBatch(**batch), None)[0].isfinite()
    written = list((run / "checkpoints").iterdir())
    for path in written:
        assert all(
            t.isfinite().all() for t in checkpoint.load_checkpoint(str(path))["state_dict"].values()
        ), path


def test_weights_that_are_not_finite_are_never_saved(config, text_file, tmp_path):
    """A step with a finite loss breaks the weights just before a validation that does not notice."""

    class Breaks(charlm.CharLM):
        def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
            super().on_train_batch_end(outputs, batch, batch_idx)
            if self.trainer.global_step == 4:
                with torch.no_grad():
                    self.embedding.weight[0] = math.inf  # of a character that never occurs

    settings = config(
        *SMALL, *QUICK, "data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}/cache",
        "data.batch_size=4", "data.sequence_length=20", "data.max_val_chars=300", "trainer.max_steps=9",
        "trainer.val_check_interval=2",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charlm, "CharLM", Breaks)
        with pytest.raises(FloatingPointError, match="the weights are not finite at step 4"):
            train(settings)
    for name in ("best", "last"):
        saved = checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/{name}.ckpt")
        assert saved["global_step"] == 2
        assert all(t.isfinite().all() for t in saved["state_dict"].values())


def test_a_validation_loss_that_is_not_finite_ends_the_run(config, text_file, tmp_path):
    """The weights are finite, but the validation reads an unknown character whose loss is not."""
    text_file.write_text(text_file.read_text(encoding="utf-8") + "§" * 50, encoding="utf-8")

    class Overflows(charlm.CharLM):
        def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
            super().on_train_batch_end(outputs, batch, batch_idx)
            with torch.no_grad():
                self.projection.bias[0] = -3e38  # a single such loss is finite, the sum of several is not
                self.projection.weight[0] = 0

    settings = config(
        *SMALL, *QUICK, "data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}/cache",
        "data.batch_size=4", "data.sequence_length=20", "trainer.max_steps=9", "trainer.val_check_interval=2",
        "trainer.log_every_n_steps=1",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charlm, "CharLM", Overflows)
        with pytest.raises(FloatingPointError, match=r"val/loss_stateful is (inf|nan) at step 2"):
            train(settings)
    assert not list(Path(settings.run_dir).glob("checkpoints/best.ckpt"))


def test_share_of_time_spent_waiting(config, monkeypatch):
    """The clock advances by one second each time it is read. Validation does not count."""
    clock = itertools.count()
    monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    steps = ["data.delay=2", "data.train_batches=8", "trainer.max_epochs=1", "trainer.val_check_interval=2"]
    settings = config(*COPY, *steps, "trainer.log_every_n_steps=4", "callbacks.doctor.steps=4")
    train(settings)
    # One second before each of four batches. The first look comes after 10 seconds, the second 13 later,
    # which include one and two validations of one second
    assert [look.waiting for look in read_looks(settings)] == [4 / 9, 4 / 11]


@pytest.mark.parametrize("keeps_graph", [False, True])
def test_a_state_that_is_not_detached_is_reported(config, text_file, tmp_path, monkeypatch, keeps_graph):
    class Forgets(charlm.CharLM):
        def training_step(self, batch, index):
            loss, self.train_state = self.loss(batch, self.train_state)
            return loss

        def backward(self, loss):
            loss.backward(retain_graph=keeps_graph)

    monkeypatch.setattr(charlm, "CharLM", Forgets)
    settings = config(
        *SMALL, *QUICK, "data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}/cache",
        "data.batch_size=4", "data.sequence_length=20", "data.max_val_chars=300", "trainer.max_steps=3",
        "clipping=none", "optimizer=sgd", "optimizer.lr=1e-9",
    )  # fmt: skip
    with pytest.raises(RuntimeError):  # PyTorch's: the graph was freed, or its weights have changed
        train(settings)
    found = read_findings(settings)
    assert set(found) == {"state not detached"}
    assert "belong to the first batch" in found["state not detached"]
    assert "detach(state)" in found["state not detached"]


def test_slow_input_is_reported(config, text_file, tmp_path, monkeypatch):
    class Slow(text.Streams):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    monkeypatch.setattr(text, "Streams", Slow)
    settings = config(
        *SMALL, *QUICK, "data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}/cache",
        "data.batch_size=4", "data.sequence_length=20", "data.max_val_chars=300", "trainer.max_steps=65",
    )  # fmt: skip
    train(settings)
    found = read_findings(settings)
    assert set(found) == {"slow input"}
    assert "waiting for batches" in found["slow input"]


def test_out_of_memory_is_reported(tmp_path):
    """In its own process, which may grow by 300 MB after its imports."""
    run = tmp_path / "run"
    script = f"""
import re, resource, sys
sys.path.insert(0, {str(PROJECT / "src")!r})
import lstmlab.runs.train, train
used = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
sys.argv[1:] = ["data.batch_size=256", "data.sequence_length=1024", "cell=fused", "threads=1",
    "trainer.enable_progress_bar=false", "hydra.run.dir={run}"]
train.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: out of memory")
    finding = (run / "doctor.md").read_text(encoding="utf-8")
    assert "out of memory" in finding and "data.batch_size=256, data.sequence_length=1024" in finding
    for override in (
        "`data.batch_size=128 trainer.accumulate_grad_batches=2`",
        "`data.sequence_length=512`",
        "`cell.hidden_size=128`",
    ):
        assert override in finding


@pytest.mark.parametrize(
    "recipe",
    [
        ["model=charlm", "cell.hidden_size=64", "data.batch_size=8", "scheduler=plateau"],
        ["experiment=copy_delay50"],
        ["experiment=reviews", "cell.hidden_size=32", "data.train_size=4000", "data.batch_size=16"],
        ["experiment=dates", "cell.hidden_size=64", "data.train_size=4000", "data.batch_size=32"],
    ],
    ids=lambda recipe: recipe[0],
)
def test_nothing_is_reported_in_healthy_runs(config, recipe, tmp_path):
    cache = [] if "copy" in recipe[0] else [f"data.cache={tmp_path}/cache"]
    steps = [
        "trainer.max_steps=460",
        "trainer.max_epochs=null",
    ]  # the rule for a plateau applies from step 400 on
    settings = config(
        *recipe, *QUICK, *cache, *steps, "scheduler.warmup_steps=40", "callbacks.doctor.patience=120"
    )
    train(settings)
    assert read_findings(settings) == {}


def test_large_strides_while_the_loss_falls_are_fine(config):
    """Numbers from experiment=reviews, where the weights move far while the loss falls."""
    settings = config("experiment=reviews")
    losses = (
        [0.694] * 10 + [0.690] * 5 + [0.676] * 3 + [0.650, 0.621, 0.449, 0.269, 0.178, 0.112, 0.052, 0.034]
    )
    strides = [0.1] * 18 + [0.206, 0.308, 0.379, 0.323, 0.278, 0.194, 0.163, 0.114]
    limits = Limits(**settings.callbacks["doctor"].arguments())
    looks = [
        Look(20 * (k + 1), loss, moved, 1.0, {"cell layer 0": 1.0}, 0.0)
        for k, (loss, moved) in enumerate(zip(losses, strides, strict=True))
    ]
    findings = [diagnose(looks[:k], math.log(2), settings, limits) for k in range(1, len(looks) + 1)]
    assert not any(findings)
    level = [look._replace(loss=0.5) for look in looks]
    assert [finding.name for finding in diagnose(level[:23], math.log(2), settings, limits)] == [
        "oscillating loss"
    ]


@pytest.mark.parametrize("slow", [True, False])
def test_slow_bf16_is_reported(config, slow):
    """With a cell that sleeps in one of the two precisions, so that the CPU does not matter."""

    def wait(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, Recurrent) and torch.is_autocast_enabled("cpu") == slow:
            time.sleep(0.02)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(wait)
    settings = config(*COPY, "precision=bf16", "trainer.max_steps=40")
    train(settings)
    hook.remove()
    assert ("slow bf16" in read_findings(settings)) == slow


def test_timing_the_precisions_does_not_change_the_run(config):
    settings = config(*COPY, "cell.dropout=0.5", "cell.num_layers=2")
    model = build_model(settings, build_data(settings.data).info)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert min(doctor.time_precisions(model)) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
