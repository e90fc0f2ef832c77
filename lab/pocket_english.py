"""Pocket English: a small probabilistic grammar that tells stories, and knows which sentences it would never tell.

    python -m lab.pocket_english 300 --seed 1        # 300 words of it

- `text(words, seed)`: any amount of simple English, the same on every Python and platform: stories with a cast and a tense, paragraphs, dialogue.
- `pairs(seed, per_paradigm)`: minimal pairs in BLiMP's fields for its twelve phenomena (Warstadt et al. 2020); paradigms and sentences are our own.
- One grammar, two uses. A paradigm is a method of Grammar that returns (good, bad). Text takes the good one now and then, a pair takes both:
  what is tested is taught, and the bad one breaks a rule that no method ever breaks.
- Nothing tested is trained on: a checksum puts a tenth of all sentences aside (`held_out`); text never says those, and pairs use no others.
- No shortcuts: good and bad have equally many words, and either the same words in another order or two words that change roles in
  the next pair ("the boys {run|runs}", "the boy {runs|run}"). Neither length nor word frequency gives the answer away.

Agreement is one value, `agr`: m, f, n (all singular) or pl. It picks the verb form, the pronoun and the reflexive.
Lists are ordered: their first words are common and their last ones rare (`common`).
"""
import argparse
import random
import re
import zlib

from lab import commands, files

# ---------------------------------------------------------------------------------------------------------------------
# Lexicon


def s_form(word):
    """box -> boxes, carry -> carries, cup -> cups: plurals and third persons."""
    return word + "es" if re.search("(s|x|ch|sh|o)$", word) else re.sub("([^aeiou])y$", r"\1ie", word) + "s"


def nouns(text, gender=None):
    """"cup mouse:mice" -> [("cup", "cups", gender), ("mouse", "mice", gender)]; gender None: someone who may be m or f."""
    return [(*(word.split(":") if ":" in word else (word, s_form(word))), gender) for word in text.split()]


def verb(entry):
    """"take:took:taken" -> {"base": "take", "part": "taken", "ing": "taking", tense: (singular, plural), ...}."""
    base, *irregular = entry.split(":")
    stem = base + base[-1] if re.search("^[^aeiou]*[aeiou][bdgmnpt]$", base) else re.sub("([^e])e$", r"\1", base)    # hug -> hugg-, dance -> danc-
    past = irregular[0] if irregular else re.sub("([^aeiou])y$", r"\1i", stem) + "ed"
    part, ing, present = irregular[-1] if irregular else past, stem + "ing", (s_form(base), base)
    return {"base": base, "part": part, "ing": ing, "present": present, "past": (past, past), "perfect": ("has " + part, "have " + part), "had": ("had " + part,) * 2,
            "does-not": ("does not " + base, "do not " + base), "did-not": ("did not " + base,) * 2, "can": ("can " + base,) * 2, "could": ("could " + base,) * 2,
            "is-ing": present if base in STATIVE else ("is " + ing, "are " + ing), "was-ing": (past, past) if base in STATIVE else ("was " + ing, "were " + ing)}


def verbs(text):
    return [verb(entry) for entry in text.split()]


STATIVE = set("know believe seem appear happen tend need want remember forget hear hope".split())     # never "is knowing"
NAMES = [(name, "fm"[i % 2]) for i, name in enumerate(
    "Anna Tom Mia Ben Clara Hugo Nora Max Lily Jack Ida Oscar Ruth Felix Ella Leo Rosa Otto Mary Sam Julia Paul Vera Emil".split())]
MEN = nouns("boy king man:men uncle prince grandfather wizard brother", "m")
WOMEN = nouns("girl queen woman:women aunt princess grandmother witch sister", "f")
OTHERS = nouns("child:children baker teacher farmer sailor thief:thieves doctor painter neighbor singer guest clown pirate")
NOUNS = {"people": [noun for trio in zip(MEN, OTHERS, WOMEN) for noun in trio] + OTHERS[8:],
         "animals": nouns("dog cat mouse:mice fox goose:geese wolf:wolves bird horse bear rabbit duck frog owl monkey ox:oxen", "n"),
         "things": nouns("cup book box ball key letter knife:knives lamp hat basket ring picture leaf:leaves bottle candle clock coat bell stone map drum boat loaf:loaves"
                         " chair shelf:shelves wheel mirror scarf:scarves door ladder kite bucket", "n")}
KINDS = list(NOUNS)
IRREGULAR_NOUNS = [(noun, kind) for kind, options in NOUNS.items() for noun in options if noun[1] != s_form(noun[0])]
CONTAINERS = nouns("box basket room house drawer bag bottle tower cave boat", "n")
ADJECTIVES = {"people": "old young little tall clever brave sad kind hungry lonely famous sleepy proud angry".split(),
              "animals": "little old gray hungry brown wild clever sleepy white fat lazy".split(),
              "things": "old red little new heavy blue strange big dirty green golden empty cheap tiny".split()}
STATES = {"people": "happy tired sad hungry angry quiet proud sleepy brave lonely lost".split(),
          "animals": "hungry tired happy quiet angry sleepy wet lost wild".split(),
          "things": "old heavy red new dirty clean strange beautiful wet empty blue".split()}
DETERMINERS = ("the the the a a a this that every my each".split(), "the the the two some these those many three all most several".split())
WEAK = ("a a a a no".split(), "two some many three several few four no".split())     # what "there is" can introduce
STRONG = "most all both".split()                                                    # what it cannot
PLACES = """in the garden; in the kitchen; near the river; at the market; in the forest; on the hill; in the village; at school; behind the barn; near the castle; on the bridge;
by the lake; in the tower; under the old tree; on the island; in the library; at the harbor""".replace("\n", " ").split("; ")
TIMES = "every day; at night; in the morning; after dinner; on Monday; all day; before lunch; in the summer; on Sunday".split("; ")
MANNER = "quietly slowly happily quickly loudly gently sadly proudly bravely".split()

# Verbs by what they take, which is what argument structure tests.
# No object: LAUGH someone, VANISH things too. With or without: BREAK (Ida broke it, it broke), EAT. Always one: TAKE a thing, THANK and SCARE someone (SCARE: things do it too).
LAUGH = verbs("laugh sleep:slept smile dance wait cry swim:swam:swum sneeze yawn kneel:knelt stumble giggle snore frown shiver blush cough")
VANISH = verbs("fall:fell:fallen vanish arrive disappear rise:rose:risen sparkle glow tremble")
BREAK = verbs("open break:broke:broken close roll burn shake:shook:shaken melt tear:tore:torn bend:bent sink:sank:sunk freeze:froze:frozen spin:spun")
TAKE = verbs("find:found take:took:taken carry hold:held bring:brought buy:bought touch borrow fix mend grab fetch use")
THANK = verbs("thank admire greet praise hug invite blame rescue trust forgive:forgave:forgiven visit chase defend describe")
SCARE = verbs("surprise scare please amuse annoy frighten bother comfort")
EAT = [(verb(v), nouns(things, "n")) for v, things in (entry.strip().split("|") for entry in """
    eat:ate:eaten|apple cake pie egg; draw:drew:drawn|picture map tree flower; write:wrote:written|letter story poem song; sing:sang:sung|song tune;
    steal:stole:stolen|ring key cake; choose:chose:chosen|hat cup coat; throw:threw:thrown|ball stone; drink:drank:drunk|potion; bake|cake pie; paint|door wall boat""".split(";"))]
THINK, WONDER = verbs("think:thought say:said believe hope hear:heard"), verbs("wonder ask")                  # think that, wonder why
KNOW = verbs("know:knew:known remember forget:forgot:forgotten guess explain learn notice")                   # know that, know what
SEEM, TRY = verbs("seem happen appear tend"), verbs("try hope decide plan refuse offer attempt")                # there seems to be, *there tries to be
EXPECT, TELL = verbs("want expect need like"), verbs("tell:told ask beg teach:taught force persuade")             # expect there to be, *tell there to be
EASY, EAGER = "easy hard difficult safe impossible dangerous".split(), "glad eager afraid sorry keen ashamed".split()   # easy to find, eager to find it
IRREGULAR = [(v, things) for v, things in EAT + [(v, NOUNS["things"]) for v in BREAK + TAKE] if v["part"] not in (v["past"][0], v["base"])]

SELF = {"m": "himself", "f": "herself", "n": "itself", "pl": "themselves"}
GENDERS, NUMBERS = [("m", "f"), ("f", "m")], [("m", "pl"), ("pl", "m"), ("f", "pl"), ("pl", "f")]
PRONOUN = {"m": "he", "f": "she", "n": "it", "pl": "they"}
OWNERS = [("I", "my", "mine"), ("you", "your", "yours"), ("we", "our", "ours"), ("they", "their", "theirs")]
PAST, PRESENT = "past past past past past past had was-ing did-not could".split(), "present present present present perfect is-ing does-not can".split()
AGREEING = "present present present perfect is-ing was-ing does-not".split()                                  # tenses that show number
OPENERS, EXCLAIM = "then;later,;one day;at last;suddenly;soon;that evening;after a while".split(";"), "oh,;yes,;no,;well,;look,;I think;of course".split(";")

# ---------------------------------------------------------------------------------------------------------------------
# Grammar


def article(determiner, words):
    return ("an " if determiner == "a" and words[0] in "aeiou" else determiner + " ") + words


def fill(frame, good, bad):
    """The pair that differs in the word at `_`."""
    return frame.replace("_", good, 1), frame.replace("_", bad, 1)


class Grammar:
    """The random numbers and the cast of a story. Noun phrases are (words, agr), verb phrases [singular, plural], paradigms (good, bad)."""

    def __init__(self, seed, modified=0.12):
        self.modified = modified                     # the share of noun phrases with a modifier; pairs have more
        self.random = random.Random(seed).random     # the one method whose numbers are the same in every Python
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
            chosen += [x for x in [self.common(options)] if x not in chosen]
        return chosen

    def turn(self, cast):
        """One of the cast who was not mentioned just now, so that Anna does not thank Anna."""
        cast.append(cast.pop(int(self.random() * len(cast) / 2)))
        return cast[-1]

    def story(self):
        """Draws whom and what the next sentences are about."""
        self.names, self.places = self.several(4, NAMES), self.several(3, PLACES)
        self.nouns = {kind: self.several(5, options) for kind, options in NOUNS.items()}
        self.tenses = PAST if self.chance(0.6) else PRESENT
        self.topic = None                            # agr of the last subject, which a pronoun may stand for

    # Phrases

    def nominal(self, kind, plural, noun=None):
        noun = noun or self.turn(self.nouns[kind])
        return (self.common(ADJECTIVES[kind]) + " " if self.chance(0.25) else "") + noun[plural], "pl" if plural else noun[2] or self.pick("mf")

    def np(self, kind, plural=None, more=None, noun=None, determiner=None):
        """A noun phrase of `kind`, with a modifier now and then: ("the old cup near Anna", "n")."""
        plural = self.chance(0.4) if plural is None else plural
        words, agr = self.nominal(kind, plural, noun)
        words = article(determiner or self.common(DETERMINERS[plural]), words)
        return (f"{words} {self.pick((self.near, self.relative))(agr, kind)}" if self.chance(self.modified if more is None else more) else words), agr

    def who(self, plural=None, more=None):
        return self.turn(self.names) if not plural and self.chance(0.4) else self.np("people" if self.chance(0.7) else "animals", plural, more)

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
        return (TAKE, "what", self.np("things")[0]) if self.chance(0.5) else (THANK, "who", self.who()[0])

    def near(self, agr, kind, plural=None):
        """A prepositional phrase."""
        thing = kind == "things" or self.chance(0.3)
        return f"{self.common(('near', 'behind', 'beside', 'under' if thing else 'with'))} {self.np('things', plural, 0)[0] if thing else self.someone(plural)}"

    def relative(self, agr, kind, plural=None):
        """A relative clause; its gap is its subject or its object."""
        that = "who" if kind == "people" and self.chance(0.3) else "that"
        if kind != "things" and self.chance(0.4):
            return f"{that} {self.event()[agr == 'pl']}"
        words, other = self.np("people", plural, 0, determiner="no") if self.chance(0.03) else self.who(plural, 0)
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
        return "" if u < 0.45 else " " + (self.pick(self.places) if u < 0.75 else self.common(MANNER if u < 0.88 else TIMES))

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
        past, rest = self.tenses is PAST if past is None else past, " " + (self.pick(self.places) if self.chance(0.25) else self.common(STATES[kind]))
        return [form + rest for form in (("was", "were") if past else ("is", "are"))]

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
            v, rest = self.common(WONDER), f"{self.pick(('why', 'when', 'where', 'how'))} {self.clause(agr)}"
        else:
            v, rest = self.common(THINK if self.chance(0.7) else KNOW), "that " + self.clause(agr)
        return [f"{form} {rest}" for form in v[self.tense()]]

    def clause(self, bound=None):
        """A plain clause; its subject may be a pronoun for `bound`, the agr of the one who thinks or says it, or for the last subject."""
        u = self.random()
        if u < 0.18:
            words, agr = self.np("things")
            if u < 0.05:
                return f"{words} {self.verb(BREAK if self.chance(0.5) else VANISH, agr)}{self.how()}"
            if u < 0.09:
                return f"{words} {self.state('things')[agr == 'pl']}"
            if u < 0.13:
                return f"{words} {self.verb(SCARE, agr)} {self.who()[0]}"
            return f"{words} {self.be(agr)} {self.common(TAKE)['part']}{' by ' + self.someone() if self.chance(0.6) else self.how()}"
        if (bound or self.topic) and self.chance(0.35):
            words, agr = PRONOUN[bound or self.topic], bound or self.topic
        elif self.chance(0.05):
            words, agr = f"{self.turn(self.names)[0]} and {self.np('people', None, 0)[0]}", "pl"
        else:
            words, agr = self.np("people", determiner="no") if self.chance(0.05) else self.who()
        if not bound and re.match("[A-Z]|the ", words):
            self.topic = agr
        return f"{words} {self.verb(VANISH, agr) + self.how() if u < 0.21 else (self.event() if bound else self.vp(agr))[agr == 'pl']}"

    def question(self):
        (words, agr), u = self.who(), self.random()
        if u < 0.2:
            return f"who {self.event('past')[0]}?"
        if u < 0.4:
            return f"{self.be(agr)} {words} {self.common(STATES['people'])}?"
        if u < 0.5:
            return f"{'have' if agr == 'pl' else 'has'} {words} ever {self.act('part')}?"
        return f"{self.pick(('did', 'did', 'can', 'will'))} {words} {self.act()}?"

    def there(self):
        plural = self.chance(0.4)
        return f"there {self.be('pl' if plural else 'n')} {self.some(self.pick(('people', 'animals', 'things')), plural)} {self.pick(self.places)}"

    # Paradigms: a method for each, (good, bad); the first are the most frequent in text, and the hardest to learn

    def two_ways(self, frame, one, other, frame2):
        """`one` fits the first frame and `other` the second: half of the pairs each, so the more frequent word is no help."""
        return fill(frame, one, other) if self.chance(0.5) else fill(frame2, other, one)

    def reflexive(self, words, one, two):
        return fill(f"{words} {self.verb(THANK, one)} _{self.how()}", SELF[one], SELF[two])

    def anaphor_gender(self):
        one, two = self.pick(GENDERS)
        words = f"{self.hero(one, 0)} {self.pick(('near', 'with', 'beside'))} {self.hero(two)}" if self.chance(0.5) else self.hero(one)
        return self.reflexive(words, one, two)

    def anaphor_number(self):
        one, two = self.pick(NUMBERS)
        words = f"{self.hero(one, 0)} {self.pick((self.near, self.relative))(one, 'people', two == 'pl')}" if self.chance(0.6) else self.hero(one)
        return self.reflexive(words, one, two)

    def gap_clause(self):
        (words, agr), (other, number), (options, what, object) = self.who(None, 0), self.who(), self.target()
        says, far = self.who(None, 0), self.chance(0.5)
        frame = f"{words} {self.verb(KNOW, agr)} _ {f'{says[0]} {self.verb(THINK, says[1])} that ' if far else ''}{other} {self.verb(options, number)}"
        return self.two_ways(frame, what, "that", f"{frame} {object}")

    def gap_question(self):
        options, what, object = self.target()
        frame = f"_ {self.pick(('did', 'did', 'can', 'will'))} {self.who(None, 0.3)[0]} {self.common(options)['base']}"
        return self.two_ways(f"{frame} {self.pick(self.places)}?", what, self.pick(("why", "when", "where", "how")), f"{frame} {object}?")

    def binding_domain(self):
        one, two = self.pick(GENDERS + NUMBERS)
        return self.reflexive(f"{self.hero(two)} {self.verb(THINK, two)} that {self.hero(one)}", one, two)

    def binding_command(self):
        one, two = self.pick(GENDERS + NUMBERS)
        owner, family = self.hero(two), self.person(one)[one == "pl"]
        return self.reflexive(f"{owner}'s {family}" if two != "pl" and self.chance(0.5) else f"the {family} of {owner}", one, two)

    def quantifier_superlative(self):
        v, noun, number = self.verb(TAKE, "m"), self.nominal("things", True)[0], self.pick(("two", "three", "four"))
        (one, two), most, more = (self.nominal("people", False)[0] for _ in "ab"), self.pick(("at most", "at least")), self.pick(("more than", "fewer than"))
        frame = self.pick((f"{{0}} {one} {v} {most} {number} {noun} and {{1}} {two} {v} {more} {number}",
                           f"{{1}} {one} {v} {more} {number} {noun} and {{0}} {two} {v} {most} {number}"))
        return frame.format("every", "no"), frame.format("no", "every")

    def quantifier_there(self):
        frame = f"there {self.be('pl')} {{}} {self.nominal('things', True)[0]} in {{}} {self.nominal('things', True, self.common(CONTAINERS))[0]}"
        weak, strong = self.common(WEAK[True][:-1]), self.common(STRONG)
        return frame.format(weak, strong), frame.format(strong, weak)

    def raising_there(self):
        plural, tense = self.chance(0.4), self.tense()
        agr, words, end = "pl" if plural else "n", self.some(self.pick(("people", "animals")), plural), self.act()
        seem, hope = self.verb(SEEM, agr, tense), self.verb(TRY, agr, tense)
        return f"there {seem} to be {words} that {hope} to {end}", f"there {hope} to be {words} that {seem} to {end}"

    def raising_object(self):
        (words, agr), tense, be = self.who(None, 0), self.tense(), f"there to be {self.some('things', self.chance(0.5))} {self.pick(self.places)}"
        want, ask, end = self.verb(EXPECT, agr, tense), self.verb(TELL, agr, tense), f"{self.turn(self.names)[0]} to {self.act()}"
        return f"{words} {want} {be} and {ask} {end}", f"{words} {ask} {be} and {want} {end}"

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
        (words, agr), tense, (options, _, object) = self.who(), self.tense(), self.target()
        return self.two_ways(f"{words} _ {object}", self.verb(options, agr, tense), self.verb(LAUGH, agr, tense), f"{words} _{self.how()}")

    def argument_causative(self):
        (words, agr), (thing, number), tense = self.who(), self.np("things"), self.tense()
        if self.chance(0.6):
            return fill(f"{words} _ {thing}", self.verb(BREAK, agr, tense), self.verb(VANISH, agr, tense))
        return fill(f"{thing} _{self.how()}", self.verb(self.pick((BREAK, VANISH)), number, tense), self.verb(TAKE, number, tense))

    def argument_animacy(self):
        plural = self.chance(0.4)
        (thing, agr), words = self.np("things", plural, 0), self.someone(plural)
        v = self.verb(SCARE, agr) if self.chance(0.5) else f"{self.be(agr)} {self.common(TAKE)['part']} by"
        return f"{thing} {v} {words}", f"{words} {v} {thing}"

    def determiner_noun(self, noun=None, kind=None):
        kind, plural = kind or self.pick(KINDS), self.chance(0.5)
        noun, this = noun or self.turn(self.nouns[kind]), self.pick((("this", "these"), ("that", "those"), ("every", "many"), ("a", "two")))
        (words, agr), adjective = self.who(None, 0), self.common(ADJECTIVES[kind]) + " " if self.chance(0.5) else ""
        good, wrong_this, wrong_noun = (article(this[d], adjective + noun[n]) for d, n in ((plural, plural), (not plural, plural), (plural, not plural)))
        return fill(f"{words} {self.verb(TAKE if kind == 'things' else THANK, agr)} _{self.how()}", good, self.pick((wrong_this, wrong_noun)))

    def determiner_irregular(self):
        return self.determiner_noun(*self.pick(IRREGULAR_NOUNS))

    def irregular_perfect(self):
        (words, agr), (v, things) = self.who(), self.pick(IRREGULAR)
        often, thing = self.pick(("", "", "often ", "never ", "also ", "always ")), self.np("things", None, 0, self.common(things))[0]
        return self.two_ways(f"{words} {self.pick(('had', 'have' if agr == 'pl' else 'has'))} {often}_ {thing}", v["part"], v["past"][0], f"{words} {often}_ {thing}")

    def irregular_passive(self):
        words, (v, things) = self.someone(), self.pick(IRREGULAR)
        thing, agr = self.np("things", None, 0, self.common(things))
        return self.two_ways(f"{thing} {self.be(agr)} _ by {words}", v["part"], v["past"][0], f"{thing} that {words} _ {self.state('things')[agr == 'pl']}")

    def island_adjunct(self):
        options, what, object = self.target()
        start, end = f"{what} did {self.someone()} {self.common(options)['base']}", f"{self.pick(('before', 'after', 'without', 'while'))} {self.common(options)['ing']}"
        return f"{start} {end} {object}?", f"{start} {object} {end}?"

    def island_coordination(self):
        (options, what, _), one, two, end = self.target(), self.someone(), self.someone(), self.how()
        v = self.common(options)["base"]
        return f"{what} did {one} and {two} {v}{end}?", f"{what} did {one} {v} and {two}{end}?"

    def island_relative(self):
        options, what, _ = self.target()
        start, v, words = f"{what} did {self.np('people', None, 0)[0]} that {self.verb(THANK, 'm', 'past')}", self.common(options)["base"], self.someone()
        return f"{start} {words} {v}?", f"{start} {v} {words}?"

    def npi_subject(self):
        (one, agr), (two, number) = (self.nominal(self.pick(("people", "people", "animals")), self.chance(0.4)) for _ in "ab")
        frame = f"{{}} {one} that {{}} {two} {self.verb(THANK, number)} {'have' if agr == 'pl' else 'has'} ever {self.act('part')}"
        return frame.format("no", "the"), frame.format("the", "no")

    def npi_clause(self):
        (one, agr), (two, number) = self.who(None, 0), self.who(None, 0)
        frame = f"{one} {'have' if agr == 'pl' else 'has'} {{}} {self.common(THINK)['part']} that {two} {'have' if number == 'pl' else 'has'} {{}} {self.act('part')}"
        return frame.format("not", "ever"), frame.format("ever", "not")

    def npi_condition(self):
        words, agr = self.who(None, 0)
        frame = f"if {words} {{}}{self.event('present')[agr == 'pl']}, {self.someone()} will {{}}{self.act()}"
        return frame.format("ever ", ""), frame.format("", "ever ")

    def ellipsis_noun(self):
        (words, agr), (other, number), v, plural = self.who(None, 0), self.who(None, 0), self.common(TAKE)[self.tense()], self.chance(0.6)
        one, two = self.pick(("two", "some", "many", "three")) if plural else "one", self.pick(("two", "three", "many", "several", "four", "few"))
        frame = f"{words} {v[agr == 'pl']} {one}{{}} {self.turn(self.nouns['things'])[plural]} {self.pick(('and', 'but'))} {other} {v[number == 'pl']} {two}{{}}"
        adjective = " " + self.common(ADJECTIVES["things"])
        return frame.format(adjective, ""), frame.format("", adjective)

    def ellipsis_owner(self):
        (one, my, mine), (other, your, yours) = self.several(2, OWNERS)
        noun, v = self.nominal("things", self.chance(0.4))[0], self.common(TAKE)["past"][0]
        frame = f"{one} {v} {{}} {noun} {self.pick(('and', 'but', 'before', 'after'))} {other} {v} {{}}{self.how()}"
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
        return finish(self.common(OPENERS) + " " + words if self.chance(0.15) and words[-1] != "?" else words)

    def speech(self):
        words = self.say()
        if words[-1] == "?":
            return f'"{finish(words)}" asked {self.turn(self.names)[0]}.'
        return f'"{finish(self.pick(EXCLAIM) + " " + words if self.chance(0.2) else words)[:-1]}," said {self.turn(self.names)[0]}.'

    def document(self):
        """The lines of a story, with an empty one at the end."""
        self.story()
        yield f"Once upon a time there was {self.np(self.pick(('people', 'animals')), False, 0.3, determiner='a')[0]} {self.pick(self.places)}."
        for _ in range(4 + int(self.random() * 9)):
            yield self.speech() if self.chance(0.3) else " ".join(self.sentence() for _ in range(1 + int(self.random() * 4)))
        yield ""


# ---------------------------------------------------------------------------------------------------------------------
# Text and pairs

PHENOMENA = {"anaphor": ("anaphor_agreement", "morphology"), "binding": ("binding", "syntax_semantics"), "agreement": ("subject_verb_agreement", "morphology"),    # by method name
             "argument": ("argument_structure", "syntax"), "gap": ("filler_gap_dependency", "syntax"), "raising": ("control_raising", "syntax_semantics"),
             "determiner": ("determiner_noun_agreement", "morphology"), "irregular": ("irregular_forms", "morphology"), "island": ("island_effects", "syntax"),
             "npi": ("npi_licensing", "semantics"), "quantifier": ("quantifiers", "semantics"), "ellipsis": ("ellipsis", "syntax")}
PARADIGMS = [name for name in vars(Grammar) if name.split("_")[0] in PHENOMENA]
TAUGHT_SHARE = 0.04                                  # of the sentences of a text that come straight from a paradigm


def finish(words):
    return words[0].upper() + words[1:] + ("" if words[-1] == "?" else ".")


def held_out(sentence):
    """Is it one of the tenth of sentences that only pairs may use? Case and punctuation don't count."""
    return zlib.crc32(re.sub("[^a-z ]", "", sentence.lower()).encode()) % 10 == 0


def text(words, seed=0):
    """Yields lines of Pocket English (an empty one after each story) and stops after the line that brings them to `words` words."""
    grammar, count = Grammar(seed), 0
    while count < words:
        for line in grammar.document():
            yield line
            count += len(line.split())
            if count >= words:
                return


def pairs(seed=0, per_paradigm=100):
    """Returns {UID: [pair, ...]}, pairs being dicts with BLiMP's fields: different sentences, none of which `text` ever yields, whatever the seeds.

    `one_prefix_method` is set where one word differs, `lexically_identical` where only the order does. ValueError: a paradigm has fewer pairs than wanted."""
    tests = {}
    for name in PARADIGMS:
        grammar, found = Grammar(seed + zlib.crc32(name.encode()), 0.4), {}
        for _ in range(200 * (per_paradigm + 10)):
            grammar.story()
            good, bad = getattr(grammar, name)()
            if held_out(good):
                found[good] = bad
            if len(found) == per_paradigm:
                break
        else:
            raise ValueError(f"per_paradigm: {per_paradigm}, but {name} finds only {len(found)} different pairs")
        uid, (phenomenon, field) = "pocket_" + name, PHENOMENA[name.split("_")[0]]
        tests[uid] = [{"sentence_good": finish(good), "sentence_bad": finish(bad), "field": field, "linguistics_term": phenomenon, "UID": uid, "simple_LM_method": True,
                       "one_prefix_method": sum(a != b for a, b in zip(good.split(), bad.split())) == 1, "two_prefix_method": False,
                       "lexically_identical": sorted(good.strip("?").split()) == sorted(bad.strip("?").split()), "pairID": str(i)} for i, (good, bad) in enumerate(found.items())]
    return tests


def main(argv=None):
    parser = argparse.ArgumentParser(description="Prints Pocket English, a synthetic corpus.")
    parser.add_argument("words", metavar="WORDS", nargs="?", type=int, default=300, help="how many words, at least (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.words < 1:
        raise files.UserError(f"WORDS: {args.words} is not a number of words; give 1 or more")
    for line in text(args.words, args.seed):
        print(line)


if __name__ == "__main__":
    commands.run(main)
