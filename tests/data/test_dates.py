import re
from collections import defaultdict
from datetime import date

import pytest
from babel.dates import format_date, get_month_names
from omegaconf import OmegaConf

from lstmlab.config import PROJECT
from lstmlab.data.dates import patterns, resolvable
from lstmlab.data.translation import decode_targets

LOCALES = OmegaConf.load(PROJECT / "conf/data/dates.yaml").locales


def test_pairs(module):
    built = module("dates", train_size=3000, val_size=100, test_size=100)
    splits = built.read()
    assert splits == built.read()
    texts = [text for sources, _ in splits.values() for text in sources]
    assert len(set(texts)) == len(texts) == 3200
    for source, target in zip(*splits["train"], strict=True):
        assert 1900 <= date.fromisoformat(target).year <= 2099
        assert target[:4] in source
    batch = next(iter(built.train_dataloader()))
    known = dict(zip(*splits["train"], strict=True))
    for source, target in zip(batch.source.tolist(), batch.target.tolist(), strict=True):
        assert known[decode_targets(built.info, [source])[0]] == decode_targets(built.info, [target])[0]
    assert built.info["max_target_length"] == 12


def test_years_have_a_first_and_a_last_day(module):
    sizes = {"train_size": 2000, "val_size": 1, "test_size": 1}
    built = module("dates", first_year=2001, last_year=2001, locales=["de", "en_US", "fi"], **sizes)
    assert min(built.read()["train"][1]) == "2001-01-01" and max(built.read()["train"][1]) == "2001-12-31"


def test_no_text_has_two_readings():
    """Every date of a year in every locale and pattern: the same text is always the same date."""
    days = [date(2004, month, day) for month in range(1, 13) for day in (1, 2, 3, 11, 12, 13, 28)]
    readings = defaultdict(set)
    for locale in LOCALES:
        for pattern in patterns(locale):
            for day in days:
                if resolvable(pattern, day):
                    readings[re.sub(r"\s", " ", format_date(day, pattern, locale).lower())].add(day)
    assert len(readings) > 10_000
    assert not {text for text, found in readings.items() if len(found) > 1}


def test_no_month_has_a_name_that_means_another_elsewhere():
    meanings = defaultdict(set)
    for locale in LOCALES:
        for width in ("wide", "abbreviated"):
            for context in ("format", "stand-alone"):
                for month, name in get_month_names(width, context, locale).items():
                    meanings[name.lower().strip(".")].add(month)
    assert not {name for name, months in meanings.items() if len(months) > 1}


def test_patterns():
    assert "M/d/yy" not in patterns("en_US") and "MMMM d, y" in patterns("en_US")
    assert not resolvable("M/d/y", date(2005, 3, 4)) and not resolvable("d/M/y", date(2005, 3, 4))
    assert not resolvable("d/M/y", date(2005, 3, 12)) and resolvable("d/M/y", date(2005, 12, 12))
    assert resolvable("d/M/y", date(2005, 3, 13)) and resolvable("y-MM-dd", date(2005, 3, 4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"locales": ["xx_YY"]}, "data.locales names xx_YY"),
        ({"locales": ["es", "bas"]}, "data.locales contradict each other"),
        ({"first_year": 2001}, "data.first_year=2001 is after data.last_year=2000"),
        ({"locales": ["ja"]}, "there are not the 3000 dates asked for"),
    ],
)
def test_refusals(module, changes, said):
    small = {"first_year": 2000, "last_year": 2000, "train_size": 2900, "val_size": 50, "test_size": 50}
    with pytest.raises(ValueError, match=said):
        module("dates", **small | changes)
