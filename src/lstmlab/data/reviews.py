"""Made-up film reviews whose verdict hangs on negation and contrast, not on which words occur."""

import random

from lstmlab.data.batching import GENERATED, cut
from lstmlab.data.sentiment import SentimentData


def listed(text: str) -> list[str]:
    """What stands between the slashes."""
    return [" ".join(item.split()) for item in text.split("/")]


SHORTEST, LONGEST = 8, 60  # words

GOOD = listed("""
    brilliant / wonderful / gripping / charming / clever / moving / delightful / superb /
    convincing / funny / fresh / beautiful / original / thrilling / touching / elegant / witty /
    memorable / impressive / excellent / absorbing / graceful / believable / inventive /
    satisfying / heartfelt
""")
BAD = listed("""
    boring / dull / awful / clumsy / predictable / tedious / lifeless / silly / terrible /
    shallow / annoying / dreadful / stale / pointless / wooden / confusing / lazy / forgettable
    / ugly / pretentious / flat / messy / tiresome / bland / hollow / painful
""")
LIKE = listed("""
    love / enjoy / like / admire / treasure
""")
HATE = listed("""
    hate / dislike / despise / regret / loathe
""")
WELL = listed("""
    well / beautifully / brilliantly / splendidly / wonderfully / strongly
""")
BADLY = listed("""
    badly / clumsily / terribly / poorly / weakly / dreadfully
""")
INTENSIFIERS = listed("""
    {} / really {} / truly {} / very {} / simply {} / quite {} / so {} / thoroughly {} / utterly
    {} / rather {}
""")
NEGATIONS = listed("""
    not {} at all / anything but {} / far from {} / hardly {} / never {} / not exactly {} / by
    no means {} / not {} / scarcely {} / not the least bit {} / not remotely {} / nowhere near
    {}
""")
ASPECTS = listed("""
    acting / script / story / dialogue / camera work / music / ending / pacing / humour /
    leading man / leading lady / editing / supporting cast / direction / costume design / plot /
    romance / first half / second half / final scene / opening / sound design / villain / voice
    acting / atmosphere / stunt work / character development / soundtrack
""")
WHOLE = listed("""
    film / movie / picture / whole thing / film as a whole / result / production
""")
# What makes the word hold, and what turns it round. {a} adjective, {v} verb, {s} subject, {W} source
CLAIMS = [
    ("It is no lie to say that the {s} is {a}.", "It would be a lie to say that the {s} is {a}."),
    ("{W} called the {s} {a}, and rightly so.", "{W} called the {s} {a}, but wrongly so."),
    ("The {s} could hardly be more {a}.", "The {s} could hardly be less {a}."),
    ("Nobody could deny that the {s} is {a}.", "Nobody could claim that the {s} is {a}."),
    ("I did {v} the {s}, that much is certain.", "I did not {v} the {s}, that much is certain."),
    ("I thought I would {v} the {s}, and I did.", "I thought I would {v} the {s}, but I did not."),
    ("Whoever calls the {s} {a} has a point.", "Whoever calls the {s} {a} has missed the point."),
    ("I had every reason to {v} the {s}.", "I had no reason to {v} the {s}."),
    ("There is something {a} about the {s}.", "There is nothing {a} about the {s}."),
    ("You may find the {s} {a}, and so do I.", "You may find the {s} {a}, but I do not."),
    ("I expected the {s} to be {a}, and so it is.", "I expected the {s} to be {a}, but it is not."),
]
# {A} is taken back, {B} is what stays
CONTRASTS = listed("""
    The {s} starts out {A}, but ends up {B}. /
    The {s} may be {A}, but the {t} is {B}. /
    Although the {s} is {A}, the {t} is {B}. /
    The {t} is {B}, even though the {s} is {A}. /
    I was told to expect something {A}; what I got was {B}. /
    It starts {C} and ends {D}. /
    Where others saw something {A}, I saw something {B}. /
    The {t} is {B}, in spite of its {s}, which is {A}.
""")
TURNS = listed("""
    And yet / But then again / Still, when all is said and done, / But in the end / Even so, /
    For all that, / None of that matters, because / But make no mistake: / Nevertheless, /
    However,
""")
FRIENDS = listed("""
    my sister / a friend of mine / my neighbour / my flatmate / my uncle / a colleague / our
    teacher / my wife
""")
SOURCES = FRIENDS + listed("""
    everyone / the critic on the radio / half of the internet / the newspaper / the poster
""")
FILLERS = listed("""
    I saw it on {day} with {who}. /
    {who} lent me the disc. /
    It runs for about {number} minutes. /
    It is set in {place}. /
    The story follows {hero} in {place}. /
    We watched it at home on {day}. /
    It was shot in {place} in {number} days. /
    I had read the book years before. /
    There were {number} people in the cinema. /
    It is about {hero} and a stranger. /
    {who} gave me a ticket for {day}. /
    I watched it twice, the second time on {day}. /
    The director also made a film about {hero}. /
    It came out the year I moved to {place}. /
    I have been watching films like this since I was {number}. /
    In case you wonder, {hero} is played by a newcomer. /
    It is the third film in a series about {hero}. /
    The trailer shows {hero} on a train to {place}. /
    I was on a plane to {place} when I watched it. /
    No spoilers here, but it all comes down to {hero}.
""")
SLOTS = {
    "day": listed("""
    Monday / Tuesday / Friday night / Sunday / my birthday / a rainy day / New Year's Eve /
    Saturday
"""),
    "who": FRIENDS,
    "number": listed("""
    twelve / fifteen / thirty / forty / ninety / a hundred / a hundred and ten / seventy /
    eighteen
"""),
    "place": listed("""
    Lisbon / Iceland / Texas / a small village / Tokyo / the desert / Paris / Chicago / a
    submarine / Norway
"""),
    "hero": listed("""
    a retired detective / two brothers / a young nurse / a lost dog / a jazz singer / an old
    sailor / a chess player / a thief / a widow / a taxi driver / a robot / a family of farmers
    / a tired lawyer / twins / a boxer / a king / a spy / a cook
"""),
}


def made_up_review(rng: random.Random, positive: bool) -> str:
    """A review with that verdict, of `SHORTEST` to `LONGEST` words.

    Whether a good or a bad word is used is drawn first, without a look at the verdict, which then decides
    whether it is negated. So each word is as frequent in either class, and only its place tells.
    """

    def word(good: bool) -> str:
        return rng.choice(GOOD if good else BAD)

    def phrase(verdict: bool) -> str:
        good = rng.random() < 0.5
        return rng.choice(INTENSIFIERS if good == verdict else NEGATIONS).format(word(good))

    def filled(template: str) -> str:
        return template.format_map({key: rng.choice(values) for key, values in SLOTS.items()})

    def opinion(verdict: bool, subject: str) -> str:
        if rng.random() < 0.4:
            return f"The {subject} is {phrase(verdict)}."
        good, who = rng.random() < 0.5, rng.choice(SOURCES)
        claim = rng.choice(CLAIMS)[0 if good == verdict else 1]
        verb = rng.choice(LIKE if good else HATE)
        return claim.format(s=subject, a=word(good), v=verb, W=capitalised(who))

    def contrast(subject: str) -> str:
        first, last = (BADLY, WELL) if positive else (WELL, BADLY)
        return rng.choice(CONTRASTS).format(
            s=subject,
            t=rng.choice(WHOLE),
            A=phrase(not positive),
            B=phrase(positive),
            C=rng.choice(first),
            D=rng.choice(last),
        )

    while True:
        aspects = rng.sample(ASPECTS, 4)
        sentences = [opinion(positive, aspect) for aspect in aspects[: rng.randint(0, 2)]]
        kind = rng.random()
        if kind < 0.35:  # all that was said before is turned round
            sentences = [opinion(not positive, aspect) for aspect in aspects[: rng.randint(1, 2)]]
            last = opinion(positive, rng.choice(WHOLE))
            sentences.append(
                f"{rng.choice(TURNS)} {last if last[:2] == 'I ' else last[0].lower() + last[1:]}"
            )
        elif kind < 0.7:
            sentences.append(contrast(aspects[3]))
        else:
            sentences.append(opinion(positive, rng.choice(WHOLE)))
        for filler in rng.sample(FILLERS, rng.choice([0, 0, 1, 1, 2, 3])):
            sentences.insert(rng.randint(0, len(sentences)), capitalised(filled(filler)))
        review = " ".join(sentences)
        if SHORTEST <= len(review.split()) <= LONGEST:
            return review


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


class Reviews(SentimentData):
    """`data=reviews`: made-up reviews, always the same ones, half of them positive, no two alike.

    A logistic regression on their words gets 52 % of the test set right, an LSTM all of it.
    """

    def read(self) -> dict[str, tuple[list[str], list[int]]]:
        rng, reviews = random.Random(0), dict[str, int]()
        sizes = {split: getattr(self.config, f"{split}_size") for split in GENERATED}
        while len(reviews) < sum(sizes.values()):
            label = len(reviews) % 2
            reviews.setdefault(made_up_review(rng, bool(label)), label)
        return cut(reviews, sizes)
