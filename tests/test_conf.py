"""Every file under conf/ composes, passes the check, and trains a batch."""

import pytest
import torch

from conftest import SMALL
from lstmlab.config import PROJECT
from lstmlab.runs import train

CONF = PROJECT / "conf"
CHOICES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml") if path.stem != "default")


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_trains_a_batch(choice, config, request, text_file):
    group, name = choice.parent.name, choice.stem
    overrides = [f"{group}={name}", "debug=one_batch", *SMALL]
    text = (CONF / choice).read_text(encoding="utf-8")
    if name == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if name == "fp16":
        if not torch.cuda.is_available():
            pytest.skip("no GPU: fp16 is refused on the CPU")
        overrides.append("trainer=gpu")
    if name == "wandb":
        overrides.append("logger.wandb.offline=true")
    if name == "stdlib":
        overrides.append("data.max_chars=100000")
    if name == "textfile":
        overrides.append(f"data.path={text_file}")
        overrides += ["data.batch_size=4", "data.sequence_length=16"]
    for real in ("shakespeare",):
        if f"/data: {real}" in text or (group, name) == ("data", real):
            overrides.append(f"data.path={request.getfixturevalue('real_data') / real}")
    if group == "debug":
        overrides.remove("debug=one_batch")
        overrides += ["trainer.max_epochs=1", "trainer.limit_val_batches=1", "trainer.max_steps=2"]
    settings = config(*overrides)
    if isinstance(settings["trainer"]["val_check_interval"], int):
        settings["trainer"]["val_check_interval"] = 1
    metrics = train(settings)
    assert settings["model"]["monitor"] in metrics
