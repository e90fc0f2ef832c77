"""The steps that data.clean names: they remove what is not running text, and write the rest the way BLiMP does.

Each step looks at one line at a time, so a large text is cleaned in parts, on all cores. Only `unwrap` depends on the
whole text: it changes those in which most lines belong to hard-wrapped paragraphs.
"""

import codecs
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
import functools
import html
import itertools
import multiprocessing
import os
import re
import signal
import threading
import unicodedata

from lab.files import UserError
from tokenizer import LONGEST_LINE


def rules(*pairs):
    """(pattern, replacement) ... -> a function that applies them in order; ^ and $ match at every line."""
    compiled = [(re.compile(pattern, re.MULTILINE), replacement) for pattern, replacement in pairs]

    def apply_rules(text):
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return apply_rules


# ---------------------------------------------------------------------------------------------------- unicode

ALIKE = {
    "\n": "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029",
    " ": "\xa0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))),
    "'": "\u2018\u2019\u201b\u2032\xb4",
    '"': "\u201c\u201d\u201e\u201f\u2033",
    "...": "\u2026",
}
INVISIBLE = re.compile("[\0-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufffd]")
JOINERS = re.compile("[\u200c\u200d]")


def unicode(text):
    """The characters that BLiMP uses: entities resolved, NFC, one kind of newline, space, quote and ellipsis, and
    nothing invisible."""
    return JOINERS.sub("", unicode_joiners(text))


def unicode_joiners(text):
    """The same for Persian, Hindi and others that spell with the invisible joiner and non-joiner: both stay."""
    text = re.sub(r"&#?\w{1,8};", lambda entity: html.unescape(entity[0]), text)
    text = unicodedata.normalize("NFC", text)
    for replacement, characters in ALIKE.items():
        for character in characters:
            text = text.replace(character, replacement)
    return INVISIBLE.sub("", text)


# ---------------------------------------------------------------------------------------------------- unwrap


def paragraphs(text):
    """Lists of consecutive lines, by turns with text and empty."""
    return [list(lines) for _, lines in itertools.groupby(text.split("\n"), lambda line: bool(line.strip()))]


def is_wrapped(lines):
    """Was this paragraph broken at the width of a page?"""
    return len(lines) > 1 and all(50 <= len(line) <= 90 for line in lines[:-1])


def count_wrapped(part):
    """(how many lines are in wrapped paragraphs, how many in all paragraphs)"""
    wrapped, total = 0, 0
    for lines in paragraphs(part.decode()):
        if lines[0].strip():
            total += len(lines)
            wrapped += len(lines) if is_wrapped(lines) else 0
    return wrapped, total


def unwrap(text):
    """Joins the lines of each hard-wrapped paragraph: for files like Project Gutenberg's, not for dialogue or verse."""
    return "\n".join((" " if is_wrapped(lines) else "\n").join(lines) for lines in paragraphs(text))


# ---------------------------------------------------------------------------------------------------- spaces

PRONOUN_OR_NAME = re.compile(r"\b(?:(?i:it|he|she|that|there|what|who|where|how|let|I|you|we|they)|[A-Z][a-z]+)\Z")


def join_clitic(space):
    """ "it 's" -> "it's", "John 'll" -> "John'll": what becomes of a space that was found before 's, 're ..."""
    start, end = max(0, space.start() - 50), space.start()
    return "" if PRONOUN_OR_NAME.search(space.string, start, end) else " "


# ---------------------------------------------------------------------------------------------------- all steps

# A pattern that starts with a fixed character is found ten times as fast, so lookbehinds come after that character.
CLEANING = {
    "unicode": unicode,
    "unicode_joiners": unicode_joiners,
    "speaker_tags": rules(
        # "%mor: ..." of CHILDES, which linguists added
        (r"^%[a-z]{2,4}:.*\n", ""),
        # "*MOT:\t", and "A:\t" of Switchboard
        (r"^[^\S\n]*(?:\*[A-Z][A-Z0-9]{1,6}:|[A-Z]:(?=[^\S\n]))[^\S\n]*", ""),
        # CHILDES's codes: [//] [: want to] [=! laughs]
        (r"[^\S\n]?\[(?:/+|[?!<>*]+|(?:[:=%+^]|=!) [^\[\]\n]*)\]", ""),
    ),
    "markup": rules(
        # <i>, <laughter>, {\pos(1,2)}, notes
        (r"</?[A-Za-z][^<>\n]{0,200}>|\{\\[^{}\n]{0,200}\}|[\u2669-\u266c]", ""),
        # = = = heading = = =
        (r"^[^\S\n]*=.*=[^\S\n]*\n", ""),
        # [door opens]; rows of wiki tables
        (r"^[^\S\n]*\[[^\[\]\n]*\][^\S\n]*\n|^[^\S\n]*(?:\{?\||\}).*\n", ""),
        # credits of subtitles
        (
            r"(?i)^[^\w\n]*(?:subtitles?\b(?! for)|subtitled\b"
            r"|(?:sync|synced|corrected|translated|transcribed|captioned|ripped|encoded)\b.{0,30}\bby\b).{0,80}\n",
            "",
        ),
        (r"(?i)^.{0,60}\b(?:www\.|https?://|opensubtitles|addic7ed).{0,60}\n", ""),
        # "- Yes." of subtitles, "# sung words #"
        (r"^[^\S\n]*(?:[-\u2010-\u2015]+(?:[^\S\n]+|(?=[A-Z\"'(]))|#+[^\S\n]+)", ""),
        (r"[^\S\n](?<=\S[^\S\n])[^\S\n]*#+$", ""),
        # _emphasis_ of Gutenberg
        (r"_(?<!\w_)([^_\n]+)_(?!\w)", r"\1"),
        # no letter, no digit
        (r"^[^\S\n]*(?:[^\w\s]|_)(?:[^\w\n]|_)*\n", ""),
    ),
    "unwrap": unwrap,
    "spaces": rules(
        (r"[^\S\n](?:[^\S\n]+|(?<! ))", " "),
        (r"^ | $", ""),
        # "rocks !"
        (r" +([,.!?;:]+)(?=[\s\"']|$)", r"\1"),
        # "do n't", "it 's"
        (r" (?<=[A-Za-z] )n't\b", "n't"),
        (r" (?='(?:s|re|ve|ll|d|m)\b(?!'))(?<=[A-Za-z] )", join_clitic),
    ),
}

ONLY_SPACES = re.compile(r"^[^\S\n]+$", re.MULTILINE)
TOO_LONG = re.compile(rf"^.{{{LONGEST_LINE + 1},}}", re.MULTILINE)
PIECE = re.compile(rf"\S.{{0,{LONGEST_LINE - 2}}}(?!\S)|\S{{1,{LONGEST_LINE}}}")  # cut at spaces if there are any


def apply(steps, part):
    """UTF-8 in and out: as bytes, a text takes less memory than as a str, and less time between processes."""
    text = part.decode()
    for step in steps:
        text = CLEANING[step](text)
    return text.encode()


def finish(steps, part):
    """The part after the steps, without spaces in its empty lines, and without lines over LONGEST_LINE."""
    text = apply(steps, part).decode()
    text = TOO_LONG.sub(lambda line: "\n".join(PIECE.findall(line[0])), text)
    return ONLY_SPACES.sub("", text).encode()


def clean(parts, steps, each=map):
    """UTF-8 parts of a text, each of whole lines, and the names of steps -> an iterator over the cleaned parts.

    each: `map`, or Cores.map, which does the same on all cores.
    """
    if "unwrap" in steps:
        at = steps.index("unwrap")
        parts = list(each(functools.partial(apply, steps[:at]), parts))
        wrapped, total = map(sum, zip(*each(count_wrapped, parts)))
        steps = steps[at:] if 2 * wrapped >= total else steps[at + 1 :]
    return each(functools.partial(finish, steps), parts)


# ---------------------------------------------------------------------------------------------------- in parts

PART = 1_000_000  # bytes of text in a part, about
WORTH = 8  # for fewer parts, starting processes takes longer than it saves
EMPTY_LINE = re.compile(rb"\n\r?\n")
NEWLINE = re.compile(rb"\n")


def in_parts(text):
    """Cuts the bytes of a text into parts of about PART, after an empty line or, if none is near, after any line.

    Newlines become "\n", and a byte order mark is removed.
    """
    start = 0
    while start < len(text):
        found = EMPTY_LINE.search(text, start + PART, start + 2 * PART) or NEWLINE.search(text, start + 2 * PART)
        end = found.end() if found else len(text)
        part = text[start:end].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if start == 0:
            part = part.removeprefix(codecs.BOM_UTF8)
        yield part if part.endswith(b"\n") else part + b"\n"
        start = end


class Cores:
    """cores.map(function, parts) is map(function, parts) by one process a core, for as long as the `with` block lasts.

    The processes are started anew (spawn) on every system, so `function` and its arguments must be picklable.
    """

    def __init__(self, count=None):
        self.count = count or min(os.cpu_count() or 1, 16)
        self.executor = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.executor:
            self.executor.shutdown(cancel_futures=True)

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(self.count, context, end_with_parent)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: only the parent answers Ctrl-C
        for _ in range(self.count):
            self.executor.submit(int)
        signal.signal(signal.SIGINT, before)

    def map(self, function, parts):
        """Yields function(part) for each part, in order."""
        parts = list(parts)
        if len(parts) < WORTH or self.count == 1:
            yield from map(function, parts)
            return
        if not self.executor:
            self.start()
        try:
            yield from self.executor.map(function, parts)
        except BrokenExecutor:
            raise UserError("a helper process was killed, perhaps because memory ran out; run this again") from None


def end_with_parent():
    """Lets a new process end when the one that started it has ended, however that happened."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
