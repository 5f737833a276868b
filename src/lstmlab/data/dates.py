"""Dates as people write them in many languages, to be read as ISO 8601 writes them."""

import random
import re
from datetime import date, timedelta

from babel import Locale, UnknownLocaleError
from babel.dates import format_date

from lstmlab.data.batching import GENERATED, cut
from lstmlab.data.translation import TranslationData

SKELETONS = ("yMd", "yMEd", "yMMMd", "yMMMEd", "yMMMMd", "yMMMMEEEEd")


def patterns(locale: str) -> list[str]:
    """The CLDR patterns by which a locale writes day, month and year, the year in full."""
    try:
        data = Locale.parse(locale)
    except (UnknownLocaleError, ValueError) as error:
        raise ValueError(f"data.locales names {locale}, which is no locale that Babel knows") from error
    found = [str(data.date_formats[length].pattern) for length in ("short", "medium", "long", "full")]
    found += [
        str(data.datetime_skeletons[key].pattern) for key in SKELETONS if key in data.datetime_skeletons
    ]
    return sorted({pattern for pattern in found if not re.search(r"(?<!y)yy(?!y)", pattern)})


def resolvable(pattern: str, day: date) -> bool:
    """Whether the text alone tells the date: 03/04/2005 is in March or in April, 13/04/2005 is not."""
    return (
        "MMM" in pattern
        or pattern.find("y") < pattern.find("M") < pattern.find("d")  # as ISO has it
        or day.day > 12
        or day.day == day.month
    )


class Dates(TranslationData):
    """`data=dates`: always the same pairs, no text twice. Exact match can reach 100 %: see `resolvable`.

    The locales must not contradict each other: Spanish writes May as may, Basaa November.
    """

    def read(self) -> dict[str, tuple[list[str], list[str]]]:
        rng, pairs = random.Random(0), dict[str, str]()
        written = {locale: patterns(locale) for locale in self.config.locales}
        first, last = date(self.config.first_year, 1, 1), date(self.config.last_year, 12, 31)
        if last < first:
            raise ValueError(f"data.first_year={first.year} is after data.last_year={last.year}")
        days = (last - first).days
        sizes = {split: getattr(self.config, f"{split}_size") for split in GENERATED}
        wanted = sum(sizes.values())
        for _ in range(20 * wanted):
            locale = rng.choice(self.config.locales)
            pattern, day = rng.choice(written[locale]), first + timedelta(rng.randint(0, days))
            if resolvable(pattern, day):
                text = format_date(day, pattern, locale)
                if pairs.setdefault(text, day.isoformat()) != day.isoformat():
                    raise ValueError(
                        f"data.locales contradict each other: {text} is {pairs[text]} and {day.isoformat()}"
                    )
            if len(pairs) == wanted:
                break
        else:
            raise ValueError(
                f"there are not the {wanted} dates asked for (train_size + val_size + test_size) in these "
                "data.locales from data.first_year to data.last_year"
            )
        return cut(pairs, sizes)
