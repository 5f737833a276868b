import pytest
from hydra import compose, initialize_config_dir

from lstmlab.benchmarks import sample
from lstmlab.config import PROJECT, to_plain
from lstmlab.schema import check


@pytest.fixture
def settings():
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        composed = compose("bench", ["suite=sample", "run_dir=x", "cell.hidden_size=16"])
        return check("bench", to_plain(composed))


def test_samplers_that_write_the_same_text_are_timed(settings):
    section = sample.measure_sampling(settings, rounds=1, length=20)
    assert section.rows[0].size == "20 characters, 2 × 16"
    assert list(section.rows[0].medians) == [
        "a loop around nn.LSTM",
        "cell=fused",
        "cell=torch",
        "cell=scratch",
    ]


def test_samplers_that_differ_are_not_timed(settings, monkeypatch):
    monkeypatch.setattr(sample.PlainModel, "sample", lambda *args, **kwargs: "something else")
    with pytest.raises(
        RuntimeError,
        match=r"not timed: cell=fused samples .*, but a loop around nn.LSTM samples 'something else'",
    ):
        sample.measure_sampling(settings, rounds=1, length=20)
