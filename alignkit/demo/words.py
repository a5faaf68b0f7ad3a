"""The vocabulary of the reviews: six topics, the words they share, and the shapes of sentences.

All filler words that may follow "a" begin with a consonant sound, and no word of a topic occurs in another one:
so a word tells its topic, and the grammar needs no rule for articles.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """What can be reviewed, and the words that only its reviews use."""

    nouns: tuple[str, ...]
    """What a review calls it."""
    items: tuple[str, ...]
    """What a prompt calls it."""
    places: tuple[str, ...]
    aspects: tuple[str, ...]
    praise: tuple[str, ...]
    blame: tuple[str, ...]


def _topic(*, places: str, **words: str) -> Topic:
    listed = tuple(place.strip() for place in places.split(","))
    return Topic(places=listed, **{name: tuple(several.split()) for name, several in words.items()})


TOPICS = (
    _topic(
        nouns="film movie picture",
        items="comedy thriller western documentary musical drama",
        places="at the Odeon, at the Palace, at the festival, on the big screen, from Norway, from Chile, "
        "by Vera Holm, with Max Orlan",
        aspects="plot acting soundtrack dialogue camerawork script casting pacing",
        praise="gripping moving thrilling dazzling",
        blame="plodding wooden predictable corny",
    ),
    _topic(
        nouns="dish meal plate",
        items="pizza curry burger lasagne ramen paella",
        places="at Bruno's, at the harbour grill, from the food truck, at the Golden Spoon, on the lunch menu, "
        "from the night market, at Sakura, by chef Marta",
        aspects="sauce crust seasoning broth garnish spice flavour filling",
        praise="delicious tasty juicy crisp",
        blame="bland greasy soggy salty",
    ),
    _topic(
        nouns="hotel inn guesthouse",
        items="Meridian Bellevue Astoria Lakeside Marlow Fontaine",
        places="in Lisbon, in Prague, near the beach, by the station, in the old town, near the airport, "
        "in the mountains, on the canal",
        aspects="room lobby breakfast bed bathroom balcony reception pool",
        praise="clean restful spotless welcoming",
        blame="dirty noisy damp mouldy",
    ),
    _topic(
        nouns="gadget device machine",
        items="phone laptop tablet camera printer headset",
        places="by Nordtek, by Pixelon, from the spring sale, from the web shop, with the metal case, "
        "for students, for the office, by Zelco",
        aspects="battery display keyboard software charger firmware microphone casing",
        praise="fast reliable sturdy responsive",
        blame="slow glitchy flimsy laggy",
    ),
    _topic(
        nouns="book volume title",
        items="novel memoir biography textbook anthology cookbook",
        places="by Ida Falk, by Tom Reyes, from the library, from the book club, in paperback, in translation, "
        "on the shortlist, by Nora Quist",
        aspects="prose narrator chapter epilogue vocabulary storytelling research translation",
        praise="poetic profound readable vivid",
        blame="longwinded pretentious shallow clumsy",
    ),
    _topic(
        nouns="trip tour journey",
        items="cruise safari hike pilgrimage ferry regatta",
        places="to Iceland, to Corfu, along the coast, through the desert, across the Alps, with Blue Sail, "
        "with Tramp & Co, on the Danube",
        aspects="guide scenery itinerary luggage schedule bus captain route",
        praise="scenic relaxing adventurous sunny",
        blame="exhausting chaotic rainy rushed",
    ),
)

PRAISE = ("good", "great", "lovely", "wonderful", "brilliant", "superb")
BLAME = ("bad", "poor", "dreadful", "terrible", "dismal")
"""Adjectives that any topic uses."""

OTHERS = {
    "person": ("sister", "brother", "neighbour", "cousin", "mother", "uncle"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "very": ("very", "truly", "quite", "rather", "really", "simply"),
}

POSITIVE = (
    "The {aspect} was {very} {praise}.",
    "The {aspect} was {praise} and the {aspect} was {praise}.",
    "I loved the {praise} {aspect} of this {noun}.",
    "What a {praise} {noun}!",
    "This {noun} is worth it for the {praise} {aspect}.",
    "From start to finish the {noun} was {very} {praise}.",
    "My {person} adored the {aspect} and the {aspect}.",
    "The {aspect} of this {noun} was never {blame}.",
    "Everyone should enjoy this {praise} {noun}.",
    "I can warmly recommend the {aspect}.",
    "We were delighted by the {praise} {aspect}.",
    "Nothing beats a {noun} with such {praise} {aspect}.",
)

NEGATIVE = (
    "The {aspect} was {very} {blame}.",
    "The {aspect} was {blame} and the {aspect} was {blame}.",
    "I hated the {blame} {aspect} of this {noun}.",
    "What a {blame} {noun}!",
    "This {noun} is spoilt by the {blame} {aspect}.",
    "From start to finish the {noun} was {very} {blame}.",
    "My {person} loathed the {aspect} and the {aspect}.",
    "The {aspect} of this {noun} was never {praise}.",
    "Everyone should avoid this {blame} {noun}.",
    "I must sadly complain about the {aspect}.",
    "We were annoyed by the {blame} {aspect}.",
    "Nobody needs a {noun} with such {blame} {aspect}.",
)

OPENINGS = (
    "My {person} and I chose this {noun} on {day}.",
    "This {noun} was a present from my {person}.",
    "I read about the {aspect} on {day}.",
)
"""Sentences of an answer that say neither yes nor no."""

DIARY = (
    "On {day} my {person} tried the {item} {place}.",
    "We found the {item} {place} last {day}.",
    "My {person} told us about the {item} {place}.",
    "The {item} {place} was popular with my {person}.",
)
"""Sentences of raw text only: they tie the items of the prompts to the words of their topic."""

QUESTIONS = (
    "What did you think of the {item} {place}?",
    "How was the {item} {place}?",
    "Please review the {item} {place}.",
    "Would you recommend the {item} {place}?",
    "Tell me about the {item} {place}.",
    "Did you enjoy the {item} {place}?",
)
"""The prompts."""

WARM = ("loved", "worth", "adored", "enjoy", "warmly", "recommend", "delighted", "beats")
COLD = ("hated", "spoilt", "loathed", "avoid", "sadly", "complain", "annoyed", "nobody")
"""Words of the sentence shapes that take a side, in lower case."""
NEVER = "never"
"""Turns the side of the word after it."""
