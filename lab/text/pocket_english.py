"""Pocket English: a small probabilistic grammar that tells stories, and knows which sentences it would never tell.

    python -m lab.text.pocket_english 300 --seed 1        # 300 words of it

- `text(words, seed)`: any amount of simple English, the same on every Python and platform: stories with a cast and a
  tense, paragraphs, dialogue.
- `pairs(seed, per_paradigm)`: minimal pairs in BLiMP's fields for its twelve phenomena (Warstadt et al. 2020);
  paradigms and sentences are our own.
- One grammar, two uses. A paradigm is a method of Grammar that returns (good, bad). Text takes the good one now and
  then, a pair takes both: what is tested is taught, and the bad one breaks a rule that no method ever breaks.
- Nothing tested is trained on: a checksum puts a tenth of all sentences aside (`held_out`); text never says those, and
  pairs use no others.
- No shortcuts: good and bad have equally many words, and either the same words in another order or two words that
  change roles in the next pair ("the boys {run|runs}", "the boy {runs|run}"). Neither length nor word frequency gives
  the answer away.

Agreement is one value, `agr`: m, f, n (all singular) or pl. It picks the verb form, the pronoun and the reflexive.
Lists are ordered: their first words are common and their last ones rare (`common`).
"""

import argparse
import random
import re
import zlib

from lab import cli, files

# ---------------------------------------------------------------------------------------------------------------------
# Lexicon


def s_form(word):
    """box -> boxes, carry -> carries, cup -> cups: plurals and third persons."""
    return word + "es" if re.search("(s|x|ch|sh|o)$", word) else re.sub("([^aeiou])y$", r"\1ie", word) + "s"


def nouns(text, gender=None):
    """ "cup mouse:mice" -> [("cup", "cups", gender), ("mouse", "mice", gender)]; gender None: may be m or f."""
    found = []
    for entry in text.split():
        singular, _, plural = entry.partition(":")
        found.append((singular, plural or s_form(singular), gender))
    return found


def verb(entry):
    """ "take:took:taken" -> {"base": "take", "part": "taken", "ing": "taking", tense: (singular, plural), ...}."""
    base, *irregular = entry.split(":")
    if re.search("^[^aeiou]*[aeiou][bdgmnpt]$", base):
        stem = base + base[-1]  # hug -> hugg-
    else:
        stem = re.sub("([^e])e$", r"\1", base)  # dance -> danc-
    past = irregular[0] if irregular else re.sub("([^aeiou])y$", r"\1i", stem) + "ed"
    part = irregular[-1] if irregular else past
    ing = stem + "ing"
    present = (s_form(base), base)
    return {
        "base": base,
        "part": part,
        "ing": ing,
        "present": present,
        "past": (past, past),
        "perfect": (f"has {part}", f"have {part}"),
        "had": (f"had {part}", f"had {part}"),
        "does-not": (f"does not {base}", f"do not {base}"),
        "did-not": (f"did not {base}", f"did not {base}"),
        "can": (f"can {base}", f"can {base}"),
        "could": (f"could {base}", f"could {base}"),
        "is-ing": present if base in STATIVE else (f"is {ing}", f"are {ing}"),
        "was-ing": (past, past) if base in STATIVE else (f"was {ing}", f"were {ing}"),
    }


def verbs(text):
    return [verb(entry) for entry in text.split()]


STATIVE = set("know believe seem appear happen tend need want remember forget hear hope".split())  # never "is knowing"
FIRST_NAMES = """Anna Tom Mia Ben Clara Hugo Nora Max Lily Jack Ida Oscar Ruth Felix Ella Leo Rosa Otto Mary Sam Julia
    Paul Vera Emil""".split()
NAMES = [(name, "fm"[i % 2]) for i, name in enumerate(FIRST_NAMES)]
MEN = nouns("boy king man:men uncle prince grandfather wizard brother", "m")
WOMEN = nouns("girl queen woman:women aunt princess grandmother witch sister", "f")
OTHERS = nouns("""child:children baker teacher farmer sailor thief:thieves doctor painter neighbor singer guest clown
    pirate""")
NOUNS = {
    "people": [noun for trio in zip(MEN, OTHERS, WOMEN) for noun in trio] + OTHERS[8:],
    "animals": nouns(
        """dog cat mouse:mice fox goose:geese wolf:wolves bird horse bear rabbit duck frog owl monkey
        ox:oxen""",
        "n",
    ),
    "things": nouns(
        """cup book box ball key letter knife:knives lamp hat basket ring picture leaf:leaves bottle candle
        clock coat bell stone map drum boat loaf:loaves chair shelf:shelves wheel mirror scarf:scarves door ladder kite
        bucket""",
        "n",
    ),
}
KINDS = list(NOUNS)
IRREGULAR_NOUNS = [(noun, kind) for kind, options in NOUNS.items() for noun in options if noun[1] != s_form(noun[0])]
CONTAINERS = nouns("box basket room house drawer bag bottle tower cave boat", "n")
ADJECTIVES = {
    "people": "old young little tall clever brave sad kind hungry lonely famous sleepy proud angry".split(),
    "animals": "little old gray hungry brown wild clever sleepy white fat lazy".split(),
    "things": "old red little new heavy blue strange big dirty green golden empty cheap tiny".split(),
}
STATES = {
    "people": "happy tired sad hungry angry quiet proud sleepy brave lonely lost".split(),
    "animals": "hungry tired happy quiet angry sleepy wet lost wild".split(),
    "things": "old heavy red new dirty clean strange beautiful wet empty blue".split(),
}
DETERMINERS = (  # of one, of several
    "the the the a a a this that every my each".split(),
    "the the the two some these those many three all most several".split(),
)
WEAK = ("a a a a no".split(), "two some many three several few four no".split())  # what "there is" can introduce
STRONG = "most all both".split()  # what it cannot
PLACES = """in the garden; in the kitchen; near the river; at the market; in the forest; on the hill; in the village;
    at school; behind the barn; near the castle; on the bridge; by the lake; in the tower; under the old tree;
    on the island; in the library; at the harbor"""
PLACES = re.split(r";\s+", PLACES)
TIMES = "every day; at night; in the morning; after dinner; on Monday; all day; before lunch; in the summer; on Sunday"
TIMES = TIMES.split("; ")
MANNER = "quietly slowly happily quickly loudly gently sadly proudly bravely".split()

# Verbs by what they take, which is what argument structure tests.
# No object: LAUGH someone, VANISH things too. With or without: BREAK (Ida broke it, it broke), EAT.
# Always one: TAKE a thing, THANK and SCARE someone (SCARE: things do it too).
LAUGH = verbs("""laugh sleep:slept smile dance wait cry swim:swam:swum sneeze yawn kneel:knelt stumble giggle snore
    frown shiver blush cough""")
VANISH = verbs("fall:fell:fallen vanish arrive disappear rise:rose:risen sparkle glow tremble")
BREAK = verbs("""open break:broke:broken close roll burn shake:shook:shaken melt tear:tore:torn bend:bent sink:sank:sunk
    freeze:froze:frozen spin:spun""")
TAKE = verbs("""find:found take:took:taken carry hold:held bring:brought buy:bought touch borrow fix mend grab fetch
    use""")
THANK = verbs("""thank admire greet praise hug invite blame rescue trust forgive:forgave:forgiven visit chase defend
    describe""")
SCARE = verbs("surprise scare please amuse annoy frighten bother comfort")
EAT = [
    (verb(v), nouns(things, "n"))
    for v, things in {
        "eat:ate:eaten": "apple cake pie egg",
        "draw:drew:drawn": "picture map tree flower",
        "write:wrote:written": "letter story poem song",
        "sing:sang:sung": "song tune",
        "steal:stole:stolen": "ring key cake",
        "choose:chose:chosen": "hat cup coat",
        "throw:threw:thrown": "ball stone",
        "drink:drank:drunk": "potion",
        "bake": "cake pie",
        "paint": "door wall boat",
    }.items()
]
THINK = verbs("think:thought say:said believe hope hear:heard")  # think that
WONDER = verbs("wonder ask")  # wonder why
KNOW = verbs("know:knew:known remember forget:forgot:forgotten guess explain learn notice")  # know that, know what
SEEM = verbs("seem happen appear tend")  # there seems to be
TRY = verbs("try hope decide plan refuse offer attempt")  # *there tries to be
EXPECT = verbs("want expect need like")  # expect there to be
TELL = verbs("tell:told ask beg teach:taught force persuade")  # *tell there to be
EASY = "easy hard difficult safe impossible dangerous".split()  # easy to find
EAGER = "glad eager afraid sorry keen ashamed".split()  # eager to find it
OBJECTS = EAT + [(v, NOUNS["things"]) for v in BREAK + TAKE]
IRREGULAR = [(v, things) for v, things in OBJECTS if v["part"] not in (v["past"][0], v["base"])]

SELF = {"m": "himself", "f": "herself", "n": "itself", "pl": "themselves"}
PRONOUN = {"m": "he", "f": "she", "n": "it", "pl": "they"}
GENDERS = [("m", "f"), ("f", "m")]
NUMBERS = [("m", "pl"), ("pl", "m"), ("f", "pl"), ("pl", "f")]
OWNERS = [("I", "my", "mine"), ("you", "your", "yours"), ("we", "our", "ours"), ("they", "their", "theirs")]
PAST = "past past past past past past had was-ing did-not could".split()
PRESENT = "present present present present perfect is-ing does-not can".split()
AGREEING = "present present present perfect is-ing was-ing does-not".split()  # tenses that show number
OPENERS = "then;later,;one day;at last;suddenly;soon;that evening;after a while".split(";")
WHY = "why when where how".split()
EXCLAIM = "oh,;yes,;no,;well,;look,;I think;of course".split(";")

# ---------------------------------------------------------------------------------------------------------------------
# Grammar


def article(determiner, words):
    if determiner == "a" and words[0] in "aeiou":
        determiner = "an"
    return f"{determiner} {words}"


def have(agr):
    return "have" if agr == "pl" else "has"


def fill(frame, good, bad):
    """The pair that differs in the word at `_`."""
    return frame.replace("_", good, 1), frame.replace("_", bad, 1)


def swap(frame, one, other):
    """The pair that differs in the order of two words at `{}`."""
    return frame.format(one, other), frame.format(other, one)


class Grammar:
    """The random numbers and the cast of a story.

    Noun phrases are (words, agr), verb phrases [singular, plural], paradigms (good, bad).
    """

    def __init__(self, seed, modified=0.12):
        self.modified = modified  # the share of noun phrases with a modifier; pairs have more
        self.random = random.Random(seed).random  # the one method whose numbers are the same in every Python
        self.story()

    def chance(self, p):
        return self.random() < p

    def pick(self, options):
        return options[int(self.random() * len(options))]

    def common(self, options):
        u = self.random()
        return options[int(u * u * len(options))]

    def several(self, n, options):
        chosen = []
        while len(chosen) < n:
            option = self.common(options)
            if option not in chosen:
                chosen.append(option)
        return chosen

    def turn(self, cast):
        """One of the cast who was not mentioned just now, so that Anna does not thank Anna."""
        cast.append(cast.pop(int(self.random() * len(cast) / 2)))
        return cast[-1]

    def story(self):
        """Draws whom and what the next sentences are about."""
        self.names = self.several(4, NAMES)
        self.places = self.several(3, PLACES)
        self.nouns = {kind: self.several(5, options) for kind, options in NOUNS.items()}
        self.tenses = PAST if self.chance(0.6) else PRESENT
        self.topic = None  # agr of the last subject, which a pronoun may stand for

    # Phrases

    def nominal(self, kind, plural, noun=None):
        noun = noun or self.turn(self.nouns[kind])
        words = noun[plural]
        if self.chance(0.25):
            words = f"{self.common(ADJECTIVES[kind])} {words}"
        return words, "pl" if plural else noun[2] or self.pick("mf")

    def np(self, kind, plural=None, more=None, noun=None, determiner=None):
        """A noun phrase of `kind`, with a modifier now and then: ("the old cup near Anna", "n")."""
        plural = self.chance(0.4) if plural is None else plural
        words, agr = self.nominal(kind, plural, noun)
        words = article(determiner or self.common(DETERMINERS[plural]), words)
        if self.chance(self.modified if more is None else more):
            modifier = self.pick((self.near, self.relative))
            words = f"{words} {modifier(agr, kind)}"
        return words, agr

    def who(self, plural=None, more=None):
        """A name or a noun phrase of someone."""
        if not plural and self.chance(0.4):
            return self.turn(self.names)
        return self.np("people" if self.chance(0.7) else "animals", plural, more)

    def someone(self, plural=None):
        return self.who(plural, 0)[0]

    def some(self, kind, plural):
        return self.np(kind, plural, 0, determiner=self.common(WEAK[plural]))[0]

    def person(self, agr):
        return self.common({"m": MEN, "f": WOMEN, "pl": NOUNS["people"]}[agr])

    def hero(self, agr, name=0.4):
        """A man, a woman or several people."""
        if agr != "pl" and self.chance(name):
            return self.common([name for name in NAMES if name[1] == agr])[0]
        return self.np("people", agr == "pl", 0, self.person(agr))[0]

    def target(self):
        """(verbs that need an object, its question word, such an object)"""
        if self.chance(0.5):
            return TAKE, "what", self.np("things")[0]
        return THANK, "who", self.who()[0]

    def near(self, agr, kind, plural=None):
        """A prepositional phrase."""
        thing = kind == "things" or self.chance(0.3)
        where = self.common(("near", "behind", "beside", "under" if thing else "with"))
        return f"{where} {self.np('things', plural, 0)[0] if thing else self.someone(plural)}"

    def relative(self, agr, kind, plural=None):
        """A relative clause; its gap is its subject or its object."""
        that = "who" if kind == "people" and self.chance(0.3) else "that"
        if kind != "things" and self.chance(0.4):
            return f"{that} {self.event()[agr == 'pl']}"
        if self.chance(0.03):
            words, other = self.np("people", plural, 0, determiner="no")
        else:
            words, other = self.who(plural, 0)
        return f"{that} {words} {self.verb(TAKE if kind == 'things' else THANK, other)}"

    def tense(self):
        return self.pick(self.tenses)

    def verb(self, options, agr, tense=None):
        return self.common(options)[tense or self.tense()][agr == "pl"]

    def be(self, agr):
        return (("was", "were") if self.tenses is PAST else ("is", "are"))[agr == "pl"]

    def how(self):
        """Where, how, when, or nothing."""
        u = self.random()
        if u < 0.45:
            return ""
        return " " + (self.pick(self.places) if u < 0.75 else self.common(MANNER if u < 0.88 else TIMES))

    def do(self):
        """(verb, rest): anything that someone can do."""
        u = self.random()
        if u < 0.3:
            return self.common(LAUGH), self.how()
        if u < 0.75:
            options, _, words = self.target()
            return self.common(options), " " + words
        if u < 0.87:
            v, things = self.pick(EAT)
            return v, self.how() if self.chance(0.4) else " " + self.np("things", None, 0, self.pick(things))[0]
        return self.common(BREAK), " " + self.np("things", None, 0)[0]

    def act(self, form="base"):
        v, rest = self.do()
        return v[form] + rest

    def event(self, tense=None):
        v, rest = self.do()
        return [form + rest for form in v[tense or self.tense()]]

    def state(self, kind, past=None):
        past = self.tenses is PAST if past is None else past
        rest = self.pick(self.places) if self.chance(0.25) else self.common(STATES[kind])
        return [f"{form} {rest}" for form in (("was", "were") if past else ("is", "are"))]

    def vp(self, agr):
        """Anything that someone can do, be or think."""
        u = self.random()
        if u < 0.5:
            return self.event()
        if u < 0.64:
            return self.state("people")
        if u < 0.71:
            v, rest = self.common(TRY if self.chance(0.6) else SEEM), "to " + self.act()
        elif u < 0.76:
            v, rest = self.common(TELL if self.chance(0.6) else EXPECT), f"{self.someone()} to {self.act()}"
        elif u < 0.82:
            v, rest = self.common(THANK), SELF[agr] + self.how()
        elif u < 0.85:
            v, rest = self.common(SCARE), self.who()[0]
        elif u < 0.88:
            v, rest = self.common(WONDER), f"{self.pick(WHY)} {self.clause(agr)}"
        else:
            v, rest = self.common(THINK if self.chance(0.7) else KNOW), "that " + self.clause(agr)
        return [f"{form} {rest}" for form in v[self.tense()]]

    def clause(self, bound=None):
        """A plain clause.

        Its subject may be a pronoun for `bound`, the agr of the one who thinks or says it, or for the last subject.
        """
        u = self.random()
        if u < 0.18:
            words, agr = self.np("things")
            if u < 0.05:
                return f"{words} {self.verb(BREAK if self.chance(0.5) else VANISH, agr)}{self.how()}"
            if u < 0.09:
                return f"{words} {self.state('things')[agr == 'pl']}"
            if u < 0.13:
                return f"{words} {self.verb(SCARE, agr)} {self.who()[0]}"
            done = f"{words} {self.be(agr)} {self.common(TAKE)['part']}"
            return done + (f" by {self.someone()}" if self.chance(0.6) else self.how())
        if (bound or self.topic) and self.chance(0.35):
            words, agr = PRONOUN[bound or self.topic], bound or self.topic
        elif self.chance(0.05):
            words, agr = f"{self.turn(self.names)[0]} and {self.np('people', None, 0)[0]}", "pl"
        else:
            words, agr = self.np("people", determiner="no") if self.chance(0.05) else self.who()
        if not bound and re.match("[A-Z]|the ", words):
            self.topic = agr
        if u < 0.21:
            return f"{words} {self.verb(VANISH, agr)}{self.how()}"
        forms = self.event() if bound else self.vp(agr)
        return f"{words} {forms[agr == 'pl']}"

    def question(self):
        (words, agr), u = self.who(), self.random()
        if u < 0.2:
            return f"who {self.event('past')[0]}?"
        if u < 0.4:
            return f"{self.be(agr)} {words} {self.common(STATES['people'])}?"
        if u < 0.5:
            return f"{have(agr)} {words} ever {self.act('part')}?"
        return f"{self.pick(('did', 'did', 'can', 'will'))} {words} {self.act()}?"

    def there(self):
        plural = self.chance(0.4)
        who = self.some(self.pick(("people", "animals", "things")), plural)
        return f"there {self.be('pl' if plural else 'n')} {who} {self.pick(self.places)}"

    # Paradigms: a method for each, (good, bad); the first are the most frequent in text, and the hardest to learn

    def two_ways(self, frame, one, other, frame2):
        """`one` fits the first frame and `other` the second: half of the pairs each, so a frequent word is no help."""
        return fill(frame, one, other) if self.chance(0.5) else fill(frame2, other, one)

    def reflexive(self, words, one, two):
        return fill(f"{words} {self.verb(THANK, one)} _{self.how()}", SELF[one], SELF[two])

    def anaphor_gender(self):
        one, two = self.pick(GENDERS)
        if self.chance(0.5):
            words = f"{self.hero(one, 0)} {self.pick(('near', 'with', 'beside'))} {self.hero(two)}"
        else:
            words = self.hero(one)
        return self.reflexive(words, one, two)

    def anaphor_number(self):
        one, two = self.pick(NUMBERS)
        if self.chance(0.6):
            words = self.hero(one, 0)
            modifier = self.pick((self.near, self.relative))
            words = f"{words} {modifier(one, 'people', two == 'pl')}"
        else:
            words = self.hero(one)
        return self.reflexive(words, one, two)

    def gap_clause(self):
        words, agr = self.who(None, 0)
        other, number = self.who()
        options, what, object = self.target()
        sayer, says = self.who(None, 0)
        far = self.chance(0.5)
        frame = f"{words} {self.verb(KNOW, agr)} _ "
        if far:
            frame += f"{sayer} {self.verb(THINK, says)} that "
        frame += f"{other} {self.verb(options, number)}"
        return self.two_ways(frame, what, "that", f"{frame} {object}")

    def gap_question(self):
        options, what, object = self.target()
        frame = f"_ {self.pick(('did', 'did', 'can', 'will'))} {self.who(None, 0.3)[0]} {self.common(options)['base']}"
        return self.two_ways(f"{frame} {self.pick(self.places)}?", what, self.pick(WHY), f"{frame} {object}?")

    def binding_domain(self):
        one, two = self.pick(GENDERS + NUMBERS)
        return self.reflexive(f"{self.hero(two)} {self.verb(THINK, two)} that {self.hero(one)}", one, two)

    def binding_command(self):
        one, two = self.pick(GENDERS + NUMBERS)
        owner, family = self.hero(two), self.person(one)[one == "pl"]
        genitive = two != "pl" and self.chance(0.5)
        return self.reflexive(f"{owner}'s {family}" if genitive else f"the {family} of {owner}", one, two)

    def quantifier_superlative(self):
        v = self.verb(TAKE, "m")
        noun = self.nominal("things", True)[0]
        number = self.pick(("two", "three", "four"))
        most = self.pick(("at most", "at least"))
        more = self.pick(("more than", "fewer than"))
        one = self.nominal("people", False)[0]
        two = self.nominal("people", False)[0]
        frame = self.pick(
            (
                f"{{0}} {one} {v} {most} {number} {noun} and {{1}} {two} {v} {more} {number}",
                f"{{1}} {one} {v} {more} {number} {noun} and {{0}} {two} {v} {most} {number}",
            )
        )
        return swap(frame, "every", "no")

    def quantifier_there(self):
        things = self.nominal("things", True)[0]
        containers = self.nominal("things", True, self.common(CONTAINERS))[0]
        frame = f"there {self.be('pl')} {{}} {things} in {{}} {containers}"
        weak = self.common(WEAK[True][:-1])
        return swap(frame, weak, self.common(STRONG))

    def raising_there(self):
        plural = self.chance(0.4)
        tense = self.tense()
        agr = "pl" if plural else "n"
        words = self.some(self.pick(("people", "animals")), plural)
        frame = f"there {{}} to be {words} that {{}} to {self.act()}"
        seem = self.verb(SEEM, agr, tense)
        return swap(frame, seem, self.verb(TRY, agr, tense))

    def raising_object(self):
        words, agr = self.who(None, 0)
        tense = self.tense()
        be = f"there to be {self.some('things', self.chance(0.5))} {self.pick(self.places)}"
        want, ask = self.verb(EXPECT, agr, tense), self.verb(TELL, agr, tense)
        end = f"{self.turn(self.names)[0]} to {self.act()}"
        return swap(f"{words} {{}} {be} and {{}} {end}", want, ask)

    def raising_tough(self):
        words, agr = self.who()
        frame = f"{words} {self.be(agr)} _ to {self.common(THANK)['base']}"
        return self.two_ways(frame, self.common(EASY), self.common(EAGER), f"{frame} {self.someone()}")

    def agree(self, modifier):
        """A subject, something that distracts from it, and a verb that shows its number."""
        kind, tense = self.pick(KINDS), self.pick(AGREEING)
        words, agr = self.np(kind, None, 0)
        words += " " + modifier(agr, kind, agr != "pl" if self.chance(0.7) else None)
        forms = self.state(kind, tense == "was-ing") if kind == "things" or self.chance(0.3) else self.event(tense)
        return f"{words} {forms[agr == 'pl']}", f"{words} {forms[agr != 'pl']}"

    def agreement_phrase(self):
        return self.agree(self.near)

    def agreement_relative(self):
        return self.agree(self.relative)

    def argument_object(self):
        words, agr = self.who()
        tense = self.tense()
        options, _, object = self.target()
        with_object, without = self.verb(options, agr, tense), self.verb(LAUGH, agr, tense)
        return self.two_ways(f"{words} _ {object}", with_object, without, f"{words} _{self.how()}")

    def argument_causative(self):
        words, agr = self.who()
        thing, number = self.np("things")
        tense = self.tense()
        if self.chance(0.6):
            return fill(f"{words} _ {thing}", self.verb(BREAK, agr, tense), self.verb(VANISH, agr, tense))
        frame = f"{thing} _{self.how()}"
        return fill(frame, self.verb(self.pick((BREAK, VANISH)), number, tense), self.verb(TAKE, number, tense))

    def argument_animacy(self):
        plural = self.chance(0.4)
        thing, agr = self.np("things", plural, 0)
        words = self.someone(plural)
        v = self.verb(SCARE, agr) if self.chance(0.5) else f"{self.be(agr)} {self.common(TAKE)['part']} by"
        return f"{thing} {v} {words}", f"{words} {v} {thing}"

    def determiner_noun(self, noun=None, kind=None):
        kind = kind or self.pick(KINDS)
        plural = self.chance(0.5)
        noun = noun or self.turn(self.nouns[kind])
        this = self.pick((("this", "these"), ("that", "those"), ("every", "many"), ("a", "two")))
        words, agr = self.who(None, 0)
        adjective = self.common(ADJECTIVES[kind]) + " " if self.chance(0.5) else ""
        good = article(this[plural], adjective + noun[plural])
        bad_this = article(this[not plural], adjective + noun[plural])
        bad_noun = article(this[plural], adjective + noun[not plural])
        frame = f"{words} {self.verb(TAKE if kind == 'things' else THANK, agr)} _{self.how()}"
        return fill(frame, good, self.pick((bad_this, bad_noun)))

    def determiner_irregular(self):
        return self.determiner_noun(*self.pick(IRREGULAR_NOUNS))

    def irregular_perfect(self):
        words, agr = self.who()
        v, things = self.pick(IRREGULAR)
        often = self.pick(("", "", "often ", "never ", "also ", "always "))
        thing = self.np("things", None, 0, self.common(things))[0]
        frame = f"{words} {self.pick(('had', have(agr)))} {often}_ {thing}"
        return self.two_ways(frame, v["part"], v["past"][0], f"{words} {often}_ {thing}")

    def irregular_passive(self):
        words = self.someone()
        v, things = self.pick(IRREGULAR)
        thing, agr = self.np("things", None, 0, self.common(things))
        passive = f"{thing} {self.be(agr)} _ by {words}"
        active = f"{thing} that {words} _ {self.state('things')[agr == 'pl']}"
        return self.two_ways(passive, v["part"], v["past"][0], active)

    def island_adjunct(self):
        options, what, object = self.target()
        start = f"{what} did {self.someone()} {self.common(options)['base']}"
        end = f"{self.pick(('before', 'after', 'without', 'while'))} {self.common(options)['ing']}"
        return swap(f"{start} {{}} {{}}?", end, object)

    def island_coordination(self):
        options, what, _ = self.target()
        one, two = self.someone(), self.someone()
        end = self.how()
        v = self.common(options)["base"]
        return f"{what} did {one} and {two} {v}{end}?", f"{what} did {one} {v} and {two}{end}?"

    def island_relative(self):
        options, what, _ = self.target()
        start = f"{what} did {self.np('people', None, 0)[0]} that {self.verb(THANK, 'm', 'past')}"
        v = self.common(options)["base"]
        return swap(f"{start} {{}} {{}}?", self.someone(), v)

    def npi_subject(self):
        one, agr = self.nominal(self.pick(("people", "people", "animals")), self.chance(0.4))
        two, number = self.nominal(self.pick(("people", "people", "animals")), self.chance(0.4))
        frame = f"{{}} {one} that {{}} {two} {self.verb(THANK, number)} {have(agr)} ever {self.act('part')}"
        return swap(frame, "no", "the")

    def npi_clause(self):
        one, agr = self.who(None, 0)
        two, number = self.who(None, 0)
        frame = f"{one} {have(agr)} {{}} {self.common(THINK)['part']} that {two} {have(number)} {{}} {self.act('part')}"
        return swap(frame, "not", "ever")

    def npi_condition(self):
        words, agr = self.who(None, 0)
        frame = f"if {words} {{}}{self.event('present')[agr == 'pl']}, {self.someone()} will {{}}{self.act()}"
        return swap(frame, "ever ", "")

    def ellipsis_noun(self):
        words, agr = self.who(None, 0)
        other, number = self.who(None, 0)
        v = self.common(TAKE)[self.tense()]
        plural = self.chance(0.6)
        one = self.pick(("two", "some", "many", "three")) if plural else "one"
        two = self.pick(("two", "three", "many", "several", "four", "few"))
        noun = self.turn(self.nouns["things"])[plural]
        frame = f"{words} {v[agr == 'pl']} {one}{{}} {noun} "
        frame += f"{self.pick(('and', 'but'))} {other} {v[number == 'pl']} {two}{{}}"
        return swap(frame, " " + self.common(ADJECTIVES["things"]), "")

    def ellipsis_owner(self):
        (one, my, mine), (other, your, yours) = self.several(2, OWNERS)
        noun = self.nominal("things", self.chance(0.4))[0]
        v = self.common(TAKE)["past"][0]
        join = self.pick(("and", "but", "before", "after"))
        frame = f"{one} {v} {{}} {noun} {join} {other} {v} {{}}{self.how()}"
        return frame.format(my, yours), frame.format(*self.pick(((mine, yours), (my, your))))

    # Text

    def say(self):
        """A sentence that is not held out, before capitals and full stops."""
        while True:
            u = self.random()
            if u < TAUGHT_SHARE:
                words = getattr(self, self.common(PARADIGMS))()[0]
            elif u < 0.75:
                words = self.clause()
            elif u < 0.85:
                words = f"{self.clause()} {self.pick(('and', 'because', 'but', 'when'))} {self.clause()}"
            else:
                words = self.there() if u < 0.9 else self.question()
            if not held_out(words):
                return words

    def sentence(self):
        words = self.say()
        if self.chance(0.15) and words[-1] != "?":
            words = f"{self.common(OPENERS)} {words}"
        return finish(words)

    def speech(self):
        words = self.say()
        if words[-1] == "?":
            return f'"{finish(words)}" asked {self.turn(self.names)[0]}.'
        if self.chance(0.2):
            words = f"{self.pick(EXCLAIM)} {words}"
        return f'"{finish(words)[:-1]}," said {self.turn(self.names)[0]}.'

    def document(self):
        """The lines of a story, with an empty one at the end."""
        self.story()
        hero = self.np(self.pick(("people", "animals")), False, 0.3, determiner="a")[0]
        yield f"Once upon a time there was {hero} {self.pick(self.places)}."
        for _ in range(4 + int(self.random() * 9)):
            if self.chance(0.3):
                yield self.speech()
            else:
                yield " ".join(self.sentence() for _ in range(1 + int(self.random() * 4)))
        yield ""


# ---------------------------------------------------------------------------------------------------------------------
# Text and pairs

PHENOMENA = {  # of each paradigm, by how its method's name begins; BLiMP's fields
    "anaphor": ("anaphor_agreement", "morphology"),
    "binding": ("binding", "syntax_semantics"),
    "agreement": ("subject_verb_agreement", "morphology"),
    "argument": ("argument_structure", "syntax"),
    "gap": ("filler_gap_dependency", "syntax"),
    "raising": ("control_raising", "syntax_semantics"),
    "determiner": ("determiner_noun_agreement", "morphology"),
    "irregular": ("irregular_forms", "morphology"),
    "island": ("island_effects", "syntax"),
    "npi": ("npi_licensing", "semantics"),
    "quantifier": ("quantifiers", "semantics"),
    "ellipsis": ("ellipsis", "syntax"),
}
PARADIGMS = [name for name in vars(Grammar) if name.split("_")[0] in PHENOMENA]
TAUGHT_SHARE = 0.04  # of the sentences of a text that come straight from a paradigm


def finish(words):
    return words[0].upper() + words[1:] + ("" if words[-1] == "?" else ".")


def held_out(sentence):
    """Is it one of the tenth of sentences that only pairs may use? Case and punctuation don't count."""
    return zlib.crc32(re.sub("[^a-z ]", "", sentence.lower()).encode()) % 10 == 0


def text(words, seed=0):
    """Yields lines of Pocket English, an empty one after each story; the last one brings them to `words` words."""
    grammar, count = Grammar(seed), 0
    while count < words:
        for line in grammar.document():
            yield line
            count += len(line.split())
            if count >= words:
                return


def pairs(seed=0, per_paradigm=100):
    """Returns {UID: [pair, ...]}, pairs being dicts with BLiMP's fields.

    They are different sentences, none of which `text` ever yields, whatever the seeds. `one_prefix_method` is set where
    one word differs, `lexically_identical` where only the order does. ValueError: a paradigm has too few pairs.
    """
    tests = {}
    for name in PARADIGMS:
        grammar = Grammar(seed + zlib.crc32(name.encode()), 0.4)
        found = {}
        for _ in range(200 * (per_paradigm + 10)):
            grammar.story()
            good, bad = getattr(grammar, name)()
            if held_out(good):
                found[good] = bad
            if len(found) == per_paradigm:
                break
        else:
            raise ValueError(f"per_paradigm: {per_paradigm}, but {name} finds only {len(found)} different pairs")
        tests[f"pocket_{name}"] = [blimp_pair(name, i, *pair) for i, pair in enumerate(found.items())]
    return tests


def blimp_pair(name, i, good, bad):
    phenomenon, field = PHENOMENA[name.split("_")[0]]
    differences = sum(a != b for a, b in zip(good.split(), bad.split()))
    return {
        "sentence_good": finish(good),
        "sentence_bad": finish(bad),
        "field": field,
        "linguistics_term": phenomenon,
        "UID": f"pocket_{name}",
        "simple_LM_method": True,
        "one_prefix_method": differences == 1,
        "two_prefix_method": False,
        "lexically_identical": sorted(good.strip("?").split()) == sorted(bad.strip("?").split()),
        "pairID": str(i),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description="Prints Pocket English, a synthetic corpus.")
    parser.add_argument(
        "words", metavar="WORDS", nargs="?", type=int, default=300, help="how many words, at least (default: 300)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.words < 1:
        raise files.UserError(f"WORDS: {args.words} is not a number of words; give 1 or more")
    for line in text(args.words, args.seed):
        print(line)


if __name__ == "__main__":
    cli.run(main)
