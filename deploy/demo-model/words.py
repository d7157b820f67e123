"""The word lists of the demo corpus."""

NOUNS = """
apple arm arrow baby bag ball banana band bank barn basket beach bean bear bed bee bell berry bike
bird board boat book boot bottle bowl box boy branch bridge brother brush bucket bus bush button
cake camel camera candle car card carrot cat chair church circle city class clock cloud coat coin
comb cook corner country cousin cow crown cup curtain day desk dish doctor dog doll donkey door
dress drum duck eagle ear egg engine eye face family farm farmer father fence field finger fire
flag flower fly forest fork fox friend frog garden gate ghost girl glass glove goat grape guitar
hammer hand hat hen hill hole horse hospital hotel house insect island jacket jar jewel key king
kitchen kite kitten ladder lady lake lamp lemon letter library lion lip list lock lunch machine map
market mask match melon minute mirror monkey moon morning mother motor mountain nail name neck
needle nest night nose ocean office orange oven owl page paint pan panda paper park party path
peach pear pen pencil penny pillow pilot pin pirate plane planet plant plate pocket pond pony
potato prince pumpkin puppy queen rabbit radio rain ring river road robot rocket roof room rope
rose ruler sailor sandwich school sea seat seed ship shirt shoe shop singer sister sky snail sock
song spider spoon star stone story street student sun table tail teacher tent ticket tiger toe
towel tower town toy train tray tree truck trumpet turtle uncle valley village violin wagon wall
watch wave wheel whistle window wing winter witch worm yard zebra
""".split()

# Plurals that no rule gives; learnt by heart.
IRREGULAR_PLURALS = {
    "man": "men", "woman": "women", "child": "children", "foot": "feet", "tooth": "teeth",
    "mouse": "mice", "goose": "geese", "person": "people", "sheep": "sheep", "fish": "fish",
    "leaf": "leaves", "knife": "knives", "wolf": "wolves", "life": "lives", "potato": "potatoes",
}  # fmt: skip

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("happy", "sad"),
    ("day", "night"), ("up", "down"), ("left", "right"), ("open", "closed"), ("full", "empty"),
    ("hard", "soft"), ("old", "young"), ("light", "dark"), ("wet", "dry"), ("early", "late"),
    ("rich", "poor"), ("strong", "weak"), ("loud", "quiet"), ("clean", "dirty"), ("near", "far"),
    ("high", "low"), ("thick", "thin"), ("first", "last"), ("inside", "outside"), ("above", "below"),
    ("before", "after"), ("true", "false"), ("wide", "narrow"), ("sweet", "sour"), ("win", "lose"),
    ("start", "finish"), ("push", "pull"), ("buy", "sell"), ("give", "take"), ("love", "hate"),
    ("black", "white"), ("north", "south"), ("east", "west"), ("always", "never"), ("easy", "difficult"),
]  # fmt: skip

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December".split()
)

SOUNDS = {
    "cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "pig": "oink",
    "horse": "neigh", "lion": "roar", "bee": "buzz", "owl": "hoot", "mouse": "squeak",
    "snake": "hiss", "frog": "croak", "hen": "cluck",
}  # fmt: skip

COLOURS = {
    "grass": "green", "snow": "white", "the sky": "blue", "a banana": "yellow", "coal": "black",
    "a tomato": "red", "a carrot": "orange", "milk": "white", "a lemon": "yellow", "a frog": "green",
    "chocolate": "brown", "the sea": "blue",
}  # fmt: skip

LEGS = {
    "a dog": 4, "a bird": 2, "a spider": 8, "an ant": 6, "a horse": 4, "a person": 2, "a snake": 0,
    "a bee": 6, "a cat": 4, "a chicken": 2, "a table": 4, "a fish": 0,
}  # fmt: skip

GIRLS = "Anna Emma Lily Mia Nora Rosa Sara Zoe".split()
BOYS = "Ben Carl David Hugo Leo Max Oscar Tom".split()
PETS = "dog cat rabbit horse duck goat turtle pony".split()
PET_COLOURS = "black white brown grey red yellow".split()
PLACES = "forest beach river mountain garden market castle lake".split()
FOUND = {
    "forest": "an old map", "beach": "a pink shell", "river": "a little boat", "mountain": "a cave",
    "garden": "a blue egg", "market": "a gold coin", "castle": "a silver key",
    "lake": "a green bottle",
}  # fmt: skip
FRUITS = "apples pears books coins eggs stamps cards shells".split()
