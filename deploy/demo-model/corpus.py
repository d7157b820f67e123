"""The text of the demo model: questions with answers that a person and a test can check.

A family is a function of a random generator that returns (key, question, answers). `answers` are
the acceptable ones; almost always there is one. A key that is_held_out() never occurs in the
training text, so that accuracy can be measured on questions the model has not seen. The key of a
fact that can only be learnt by heart is None: it is never held out.
"""

import random
import zlib

import words

BEGIN = "<|begin|>"
END = "<|end|>"


def is_held_out(key):
    """One key in ten, chosen by its text: stable over runs, machines and Python versions."""
    return key is not None and zlib.crc32(key.encode()) % 10 == 0


def pair_key(operation, a, b):
    # a + b and b + a are one fact: both are held out or neither.
    return f"{operation} {min(a, b)} {max(a, b)}" if operation == "plus" else f"{operation} {a} {b}"


def plus(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    return pair_key("plus", a, b), f"What is {a} plus {b}?", [f"{a} plus {b} is {a + b}."]


def ordered_pair(rng):
    return sorted((rng.randrange(100), rng.randrange(100)), reverse=True)


def minus(rng):
    a, b = ordered_pair(rng)
    return pair_key("minus", a, b), f"What is {a} minus {b}?", [f"{a} minus {b} is {a - b}."]


def times(rng):
    a, b = rng.randrange(11), rng.randrange(11)
    return None, f"What is {a} times {b}?", [f"{a} times {b} is {a * b}."]


def gain(rng):
    who, what = rng.choice(words.GIRLS + words.BOYS), rng.choice(words.FRUITS)
    a, b = rng.randrange(2, 100), rng.randrange(2, 100)
    question = f"{who} has {a} {what} and finds {b} more. How many {what} does {who} have now?"
    answer = f"{a} plus {b} is {a + b}, so {who} has {a + b} {what} now."
    return pair_key("plus", a, b), question, [answer]


def lose(rng):
    who, what = rng.choice(words.GIRLS + words.BOYS), rng.choice(words.FRUITS)
    a, b = ordered_pair(rng)
    question = f"{who} has {a} {what} and gives away {b}. How many {what} does {who} have now?"
    answer = f"{a} minus {b} is {a - b}, so {who} has {a - b} {what} now."
    return pair_key("minus", a, b), question, [answer]


def compare(rng):
    a, b = rng.sample(range(200), 2)
    word, right, wrong = rng.choice([("larger", max, min), ("smaller", min, max)])
    question = f"Which number is {word}, {a} or {b}?"
    return f"compare {word} {a} {b}", question, [f"{right(a, b)} is {word} than {wrong(a, b)}."]


def sort(rng):
    numbers = rng.sample(range(100), 3)
    text = "{}, {} and {}"
    question = f"Sort the numbers {text.format(*numbers)}."
    answer = f"From small to large they are {text.format(*sorted(numbers))}."
    return f"sort {numbers}", question, [answer]


def even_or_odd(rng):
    n = rng.randrange(1000)
    return f"even {n}", f"Is {n} even or odd?", [f"{n} is {'odd' if n % 2 else 'even'}."]


def listed(numbers):
    return ", ".join(str(n) for n in numbers) + "."


def count_up(rng):
    first = rng.randrange(100)
    last = first + rng.randrange(4, 21)
    return f"up {first} {last}", f"Count from {first} to {last}.", [listed(range(first, last + 1))]


def count_down(rng):
    last = rng.randrange(80)
    first = last + rng.randrange(4, 21)
    question = f"Count down from {first} to {last}."
    return f"down {first} {last}", question, [listed(range(first, last - 1, -1))]


def any_word(rng):
    """A real noun, or a made-up word so that spelling must be learnt and not remembered."""
    if rng.random() < 0.4:
        return rng.choice(words.NOUNS)
    syllables = rng.choice((1, 2, 2, 3))
    start, vowel, end = (
        "bcdfghjklmnprstvwz",
        "aeiou",
        ["", "", "l", "m", "n", "r", "s", "t", "k", "d"],
    )
    word = "".join(
        rng.choice(start) + rng.choice(vowel) + rng.choice(end) for _ in range(syllables)
    )
    return word if len(word) > 2 else word + rng.choice("nrst")


def spell(rng):
    word = any_word(rng)
    return f"word {word}", f"Spell the word {word}.", [", ".join(word) + "."]


def backwards(rng):
    word = any_word(rng)
    return f"word {word}", f"Spell the word {word} backwards.", [", ".join(reversed(word)) + "."]


def letter_count(rng):
    word = any_word(rng)
    question = f"How many letters are in the word {word}?"
    return (
        f"word {word}",
        question,
        [f"The letters are {', '.join(word)}, so {word} has {len(word)} letters."],
    )


def first_letter(rng):
    word = any_word(rng)
    return (
        f"word {word}",
        f"What is the first letter of {word}?",
        [f"The first letter of {word} is {word[0]}."],
    )


def last_letter(rng):
    word = any_word(rng)
    return (
        f"word {word}",
        f"What is the last letter of {word}?",
        [f"The last letter of {word} is {word[-1]}."],
    )


def pluralise(noun):
    if noun in words.IRREGULAR_PLURALS:
        return words.IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def plural(rng):
    irregular = rng.random() < 0.1
    noun = rng.choice(list(words.IRREGULAR_PLURALS) if irregular else words.NOUNS)
    key = None if noun in words.IRREGULAR_PLURALS else f"word {noun}"
    return key, f"What is the plural of {noun}?", [f"The plural of {noun} is {pluralise(noun)}."]


def repeat(rng):
    word, count = any_word(rng), rng.randrange(2, 9)
    return f"word {word}", f"Say {word} {count} times.", [", ".join([word] * count) + "."]


def day(rng):
    index, steps = rng.randrange(7), rng.randrange(1, 7)
    here = words.DAYS[index]
    if rng.random() < 0.5:
        there = words.DAYS[(index + steps) % 7]
        distance = "1 day" if steps == 1 else f"{steps} days"
        return (
            None,
            f"What day is {distance} after {here}?",
            [f"{distance} after {here} is {there}."],
        )
    word, step = rng.choice([("after", 1), ("before", -1)])
    there = words.DAYS[(index + step) % 7]
    return None, f"What day comes {word} {here}?", [f"The day {word} {here} is {there}."]


def month(rng):
    index = rng.randrange(12)
    word, step = rng.choice([("after", 1), ("before", -1)])
    here, there = words.MONTHS[index], words.MONTHS[(index + step) % 12]
    return None, f"What month comes {word} {here}?", [f"The month {word} {here} is {there}."]


def opposite(rng):
    word, other = rng.choice(words.OPPOSITES)
    if rng.random() < 0.5:
        word, other = other, word
    return None, f"What is the opposite of {word}?", [f"The opposite of {word} is {other}."]


def fact(rng):
    kind = rng.randrange(3)
    if kind == 0:
        animal, sound = rng.choice(list(words.SOUNDS.items()))
        return None, f"What does a {animal} say?", [f"A {animal} says {sound}."]
    if kind == 1:
        thing, colour = rng.choice(list(words.COLOURS.items()))
        return None, f"What colour is {thing}?", [f"{thing[0].upper()}{thing[1:]} is {colour}."]
    thing, legs = rng.choice(list(words.LEGS.items()))
    return (
        None,
        f"How many legs does {thing} have?",
        [f"{thing[0].upper()}{thing[1:]} has {legs} legs."],
    )


def story(rng):
    """The prompt fixes who, which animal and where; weather and ending are free: seeds differ."""
    name, pet = rng.choice(words.GIRLS + words.BOYS), rng.choice(words.PETS)
    colour, place = rng.choice(words.PET_COLOURS), rng.choice(words.PLACES)
    kind, they = ("girl", "she") if name in words.GIRLS else ("boy", "he")
    question = f"Tell me a story about {name}, a {colour} {pet} and a {place}."
    answers = [
        f"Once upon a time there was a {kind} called {name}. One {weather} day {they} walked to the "
        f"{place} with a {colour} {pet}. At the {place} the {pet} found {words.FOUND[place]}. "
        f'"Look!" said {name}. {ending}'
        for weather in ("sunny", "rainy", "windy", "cold")
        for ending in (
            f"{name} and the {pet} went home and were happy.",
            f"The {pet} was very proud, and {name} laughed.",
            f"From that day on {name} and the {pet} were best friends.",
        )
    ]
    return f"story {name} {colour} {pet} {place}", question, answers


# Family -> its share of the documents.
FAMILIES = {
    plus: 18, minus: 15, times: 4, gain: 6, lose: 6, compare: 5, sort: 5, even_or_odd: 2,
    count_up: 4, count_down: 4, spell: 5, backwards: 7, letter_count: 5, first_letter: 2,
    last_letter: 2, plural: 4, repeat: 3, day: 3, month: 2, opposite: 3, fact: 3, story: 4,
}  # fmt: skip


def prompt_of(question, bare=False):
    return question if bare else f"Question: {question} Answer:"


def draw(rng, family, held_out):
    """One (question, answers) of `family`, held out or not; facts learnt by heart are in both."""
    for _ in range(1000):
        key, question, answers = family(rng)
        if key is None or is_held_out(key) == held_out:
            return question, answers
    raise RuntimeError(f"{family.__name__}: no such question found")


def training_documents(seed):
    """Endless (prompt, continuation) pairs. One in eight prompts is the bare question."""
    rng = random.Random(seed)
    families, shares = list(FAMILIES), list(FAMILIES.values())
    while True:
        question, answers = draw(rng, rng.choices(families, shares)[0], held_out=False)
        yield prompt_of(question, bare=rng.random() < 0.125), " " + rng.choice(answers)


def held_out_questions(family, count, seed):
    """Up to `count` different (question, answers) of `family` that training never sees."""
    rng = random.Random(f"{seed} {family.__name__}")
    found = {}
    for _ in range(20 * count):
        question, answers = draw(rng, family, held_out=True)
        found[question] = answers
        if len(found) == count:
            break
    return list(found.items())
