"""Words to fill the phrasings with: invented names without end, and real ones for examinations.

What must be copied is never learnt as a word of its own: the tokenizer cuts every name into its
letters (see `tokenizer.py`). The real cities and people here are for examinations alone, so an
answer that names one has copied it.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def _words(text: str) -> list[str]:
    return text.split()


def _listed(text: str) -> list[str]:
    return [" ".join(word.split()) for word in text.split(",")]


ONSETS = _words("""
    b br c ch d dr f fl g gr h j k kl kr l m n p pl pr qu r s sh sk sl st t th tr v w y z
""")
VOWELS = _words("a a e e i i o o u ai au ea ee ei ia ie io oa oo ou y")
CODAS = ["", "", "", *_words("n r l m s t x d k th nd ck rt ll ss ng p")]
LATIN = "abcdefghijklmnopqrstuvwxyz"
ACCENTS = "áàâäãåæçčďéèêëěğíîïłñňóòôöøřśšşťúüůýžżß"
FOREIGN = [
    "서부산민지우하나가",
    "울준대전광주",
    "東大阪花子太郎海",
    "京都山川空",
    "ЖеняМосквОлга",
    "αβγδΑθήνα",
]


REAL_CITIES = _listed("""
    Paris, Tokyo, Berlin, Nairobi, Reykjavik, Osaka, Montevideo, Tbilisi, Zürich, Łódź, São
    Paulo, New York, Ulaanbaatar, Adelaide, Quito, Rotterdam, Vancouver, Casablanca,
    Jakarta, Helsinki, Boston, Lisbon, Hanoi, 서울, 東京
""")
REAL_NAMES = _listed("""
    Ada, Grace, Linus, Zoë, Søren, Priya, Marisol, Benedict, Yusuf, Ingrid, Tomasz, Chidi,
    Aroha, Wilhelmina, Kenji, Beatrix, Bob, Alice, Mary Ann, 민준
""")
REAL_WORDS = _listed("""
    elephant, umbrella, keyboard, sunshine, triangle, pumpkin, velvet, harbour, library,
    mountain, thunder, pickle, galaxy, notebook, walrus, cactus, dolphin
""")

# Objects of "reverse", "repeat" and the like: cut into letters wherever they stand.
OBJECTS = _words("""
    hello world banana apple cat dog python proxy worker queue lemon river stone garden
    window pencil bottle coffee butter cheese tiger monkey rabbit orange purple yellow
    silver winter summer spring music guitar violin piano doctor pirate sailor wizard dragon
    castle lamp chair table mirror carpet blanket pillow candle basket hammer tea bread soup
    pizza noodles salad honey rice cake cookies red green blue pink black white brown grey
    gold violet test token stream server model computer internet cloud rain snow stressed
    level racecar openai runpod chocolate strawberry football
""")
COLOURS = _words("""
    red green blue pink black white brown grey gold violet purple
""")
FOODS = _words("""
    pizza soup noodles salad honey rice cake cookies bread cheese
""")
PETS = _words("""
    cat dog rabbit parrot hamster horse
""")
ROLES = _words("""
    pirate doctor sailor wizard teacher poet chef lawyer gardener robot librarian coach
    detective translator knight farmer pilot
""")
HELD_OUT_ROLES = _words("""
    astronaut plumber butler viking historian ninja dentist
""")
ADJECTIVES = _words("""
    friendly helpful grumpy cheerful polite wise funny calm brave
""")
MONTHS = _words(
    "January February March April May June July August September October November December"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

OPENINGS = [
    *("could you tell me ", "would you ", "could you ", "I want to know ", "I would like to ask: "),
    *("well, ", "now ", "and ", "then ", "tell me, ", "one more thing: ", "I wonder, "),
    "quick question: ",
]
FILLERS = [
    "now",
    "then",
    "just",
    "really",
    "kindly",
    "actually",
    "maybe",
    "here",
    "for me",
    "of course",
]

LETTERS = {
    word.lower()
    for group in (OBJECTS, FOODS, PETS, ROLES, COLOURS, REAL_CITIES, REAL_NAMES, REAL_WORDS)
    for phrase in (*group, *HELD_OUT_ROLES)
    for word in phrase.split()
}
"""Words that the tokenizer cuts into letters however often it meets them."""


class Words:
    """Draws words and phrasings; with `held_out` those that no training has used."""

    def __init__(self, seed: int, *, held_out: bool = False) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.held_out = held_out

    def chance(self, part: float) -> bool:
        """True in that part of the cases."""
        return self.random.random() < part

    def pick(self, of: Sequence[T]) -> T:
        """One of them."""
        return self.random.choice(of)

    def number(self, low: int, high: int) -> int:
        """From `low` to `high`."""
        return self.random.randint(low, high)

    def syllables(self) -> str:
        """An invented word in small letters: syllables, or any letters."""
        if self.chance(0.2):
            return "".join(self.random.choices(LATIN, k=self.number(2, 9)))
        syllables = self.random.choices((1, 2, 3, 4), (2, 5, 3, 1))[0]
        return "".join(
            self._onset() + self.pick(VOWELS) + self.pick(CODAS) for _ in range(syllables)
        )[:14]

    def _onset(self) -> str:
        return "" if self.chance(0.2) else self.pick(ONSETS)

    def name(self) -> str:
        """An invented name, sometimes of two words or of another script."""
        if self.chance(0.04):
            return "".join(self.random.sample(self.pick(FOREIGN), self.number(2, 4)))
        word = self.syllables().capitalize()
        if self.chance(0.1):
            word = re.sub("[aeiou]", lambda found: self.pick(ACCENTS), word, count=1)
        if self.chance(0.1):
            return self.pick(["New", "San", "Port", self.syllables().capitalize()]) + " " + word
        return word.lower() if self.chance(0.1) else word

    def person(self) -> str:
        """A name for somebody."""
        return self.pick(REAL_NAMES) if self.held_out else self.name()

    def city(self) -> str:
        """A name for a place."""
        return self.pick(REAL_CITIES) if self.held_out else self.name()

    def word(self) -> str:
        """A word to do something with: half of them mean something."""
        if self.held_out:
            return self.pick([*REAL_WORDS, self.syllables()])
        return self.pick(OBJECTS) if self.chance(0.3) else self.syllables()

    def role(self) -> str:
        """What somebody may be."""
        if self.held_out:
            return self.pick(HELD_OUT_ROLES)
        return self.pick(ROLES) if self.chance(0.5) else self.syllables()

    def say(self, phrasings: list[str] | str, **values: object) -> str:
        """One of the phrasings, of each `(this|that)` in it one, and the values in their places."""
        text = phrasings if isinstance(phrasings, str) else self.pick(phrasings)
        while found := re.search(r"\(([^()]*)\)", text):
            text = text[: found.start()] + self.pick(found[1].split("|")) + text[found.end() :]
        return _filled(text, values)

    def ask(self, trained: list[str], held_out: list[str], **values: object) -> str:
        """A user's wording: their capitals, stops and courtesies vary."""
        text = self.say(held_out if self.held_out else trained)
        if not self.held_out and self.chance(0.3):
            text = self.loosened(text)
        if self.chance(0.5):
            text = text[:1].upper() + text[1:]
        bare = text.rstrip("?.!")
        if self.chance(0.3):
            text = bare + self.pick(["", "", "!", " please", "?", "."])
        if self.chance(0.06):
            text = self.pick(["Hey, ", "Hi! ", "Please, ", "Ok. ", "So, "]) + text
        return _filled(text, values)

    def loosened(self, text: str) -> str:
        """The wording with what people put around it, or with a word that means nothing here."""
        if self.chance(0.5):
            return self.pick(OPENINGS) + text
        words = text.split(" ")
        filler = self.pick(FILLERS) if self.chance(0.5) else self.syllables()
        words.insert(self.number(0, len(words)), filler)
        return " ".join(words)


def _filled(text: str, values: Mapping[str, object]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), text)
