"""What eval_blimp.py can score: our checkpoints, n-grams, and models of others (a Hugging Face folder or Hub name).

    model = load_scorer("out/sllama/ckpt.pt")       # or "ngram:data/pocket", "hf-folder/", "gpt2", "bert-base-uncased"
    (tokens,) = model.encode(["The cat sleeps."])
    model.logits(torch.tensor([tokens.ids]))        # (1, T, V)

transformers is imported only for models of others.
"""

from dataclasses import dataclass, field
import hashlib
import math
import os
import pathlib
import re

from lab import checkpoint
from lab.corpus import read_meta
from lab.files import UserError, first_line, load_tokenizer
from lab.score import scoring

import numpy as np
import torch

PLL = ("original", "l2r")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Tokens:
    """A text as a model reads it. ids[first:end] are scored."""

    ids: tuple  # with the special tokens before and after the text
    first: int
    end: int
    words: tuple = ()  # for PLL from left to right: the number of each token's word, None for special tokens


@dataclass
class Scorer:
    """A model with its tokenizer, as eval_blimp.py scores it.

    context: the most tokens it can be given; origin: what is known of its training (corpus, words, steps, parameters,
    bits_per_byte); sha256: of checkpoint and tokenizer.
    """

    model: torch.nn.Module
    tokenizer: object
    name: str = ""
    context: float = math.inf
    vocab_size: int = 0
    origin: dict = field(default_factory=dict)
    sha256: dict = field(default_factory=dict)
    before = "BOS <s>"  # what stands before the first token of a text, in words for the record of a result
    method = "full"  # how a sentence is scored, in words too
    rule = None  # if not eval_blimp.py's: (scorer, batch of Tokens) -> log p of each scored token
    masked = False

    @property
    def device(self):
        parameter = next(self.model.parameters(), None)  # n-grams have none
        return torch.device("cpu") if parameter is None else parameter.device

    def encode(self, texts):
        """Tokens of each text."""

    def begin_as_its_tokenizer_does(self):
        """From now on, only what the tokenizer itself puts there stands before a text, as in BabyLM's pipelines: with
        GPT-2's, nothing."""

    def ends(self, text):
        """Where each of the text's tokens ends in it, in characters. Raises UserError if that is not known."""

    def logits(self, ids, attention_mask=None):
        """ids (B, T) -> (B, T, V) in float32, at each place those of the next token."""

    def pieces(self):
        """The vocabulary as it is spelled in the tokenizer's file, a list of V texts; a space is " ", Ġ or ▁."""

    def decode(self, ids):
        return self.tokenizer.decode(ids)

    def given(self, tokens):
        """How many tokens the model is given to score these: the last one is only predicted."""
        return len(tokens.ids) - 1

    def work(self, tokens):
        """How many tokens go through the model for them."""
        return max(1, len(tokens.ids))


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints and n-grams


class WithOurTokenizer(Scorer):
    """What checkpoints and n-grams have in common."""

    def encode(self, texts):
        sequences = scoring.tokenize(self.tokenizer, texts)
        return [Tokens(ids, 1, len(ids)) for ids in sequences]

    def ends(self, text):
        (ids,) = self.tokenizer.encode_batch([text])
        in_bytes = scoring.token_ends(self.tokenizer, text, ids)
        starts = np.cumsum([0, *(len(character.encode()) for character in text)])[:-1]  # of each character, in bytes
        return np.searchsorted(starts, in_bytes)

    def pieces(self):
        return [self.tokenizer.sp.id_to_piece(i) for i in range(self.vocab_size)]


class Ours(WithOurTokenizer):
    """A model.Model and its tokenizer."""

    def __init__(self, model, tokenizer, **known):
        context, vocab_size = len(model.cos), len(model.lm_head.weight)
        super().__init__(model, tokenizer, context=context, vocab_size=vocab_size, **known)

    def logits(self, ids, attention_mask=None):
        return self.model(ids).float()


class Ngrams(WithOurTokenizer):
    """The KneserNey of a prepared text, a row to compare with."""

    @staticmethod
    def rule(scorer, batch):
        logp = scorer.model(np.concatenate([tokens.ids for tokens in batch]))
        stops = np.cumsum([len(tokens.ids) for tokens in batch])
        return [row[tokens.first : tokens.end] for row, tokens in zip(np.split(logp, stops[:-1]), batch)]

    def logits(self, ids, attention_mask=None):
        raise UserError(f"{self.name}: n-grams only score text; for this, give a checkpoint or a Hugging Face model")


class KneserNey(torch.nn.Module):
    """Interpolated Kneser-Ney n-grams (Chen and Goodman 1999, section 3) of lines of tokens, each from BOS:

        p(w | h) = (max(c(h w) - D, 0) + D t(h) p(w | h without its first token)) / c(h)

    c: how often an n-gram occurs, and below the highest order in how many contexts (of those that begin with BOS: how
    often); c(h): the sum of c(h w) over w; t(h): over how many w; D = n1 / (n1 + 2 n2) of the n-grams of an order that
    have c = 1 and c = 2. Where h was never seen, p(w | h) is p(w | h without its first token); below one token 1 / V.

    The n-grams of each order are numbered. One is a pair (number of its first n - 1 tokens, last token), written as one
    integer, number * V + token; the one of no tokens has number 0.
    """

    def __init__(self, ids, bos, vocab_size, order=5):
        """ids (N): lines of tokens, each with a BOS before it; vocab_size: V."""
        super().__init__()
        self.bos, self.V = bos, vocab_size
        depth = tokens_before(ids, bos)
        ngrams = [np.zeros(1, np.int64)]  # of each order from 0, sorted
        number = [np.zeros(len(ids), np.int64)]  # of the n-gram that ends at each place, -1 where the line is too short
        for n in range(1, order + 1):
            inside = depth >= n - 1
            keys = np.roll(number[-1], 1) * self.V + ids
            different, inverse = np.unique(keys[inside], return_inverse=True)
            ngrams.append(different)
            number.append(np.full(len(ids), -1))
            number[n][inside] = inverse

        self.levels = []  # of each order from 1: (n-grams, their c, D, and of each context: c(h), t(h))
        for n in range(1, order + 1):
            count = np.bincount(number[n][depth >= n - 1], minlength=len(ngrams[n]))
            if n < order:
                inside = depth >= n
                ending = np.zeros(len(ngrams[n + 1]), np.int64)  # the last n tokens of each longer n-gram
                ending[number[n + 1][inside]] = number[n][inside]
                contexts = np.bincount(ending, minlength=len(ngrams[n]))
                from_bos = number[n][depth == n - 1]
                contexts[from_bos] = count[from_bos]
                count = contexts
            if n == 1:
                count[ngrams[1] == bos] = 0  # BOS is given, never predicted
            once, twice = (count == 1).sum(), (count == 2).sum()
            discount = once / max(1, once + 2 * twice) or 0.5  # so that nothing is impossible
            context = ngrams[n] // self.V
            total = np.bincount(context, count, len(ngrams[n - 1]))
            kinds = np.bincount(context, count > 0, len(ngrams[n - 1]))
            self.levels.append((ngrams[n], count, discount, total, kinds))

    def forward(self, ids):
        """log p of each token (N) of lines that begin with BOS, given those before it in its line; of BOS itself 0."""
        depth = tokens_before(ids, self.bos)
        p = np.full(len(ids), 1 / self.V)
        number = np.zeros(len(ids), np.int64)  # of the n - 1 tokens that end at each place, -1: never seen
        for n, (ngrams, count, discount, total, kinds) in enumerate(self.levels, 1):
            context = np.roll(number, 1)
            keys = context * self.V + ids
            at = np.minimum(np.searchsorted(ngrams, keys), len(ngrams) - 1)
            known = (depth >= n - 1) & (context >= 0)
            found = known & (ngrams[at] == keys)
            usable = known & (total[context] > 0)
            here = context[usable]
            c = np.where(found, count[at], 0)[usable]
            p[usable] = (np.maximum(c - discount, 0) + discount * kinds[here] * p[usable]) / total[here]
            number = np.where(found, at, -1)
        p[depth == 0] = 1
        return np.log(p)


def tokens_before(ids, bos):
    """How many tokens stand before each one in its line; of BOS 0."""
    index = np.arange(len(ids))
    return index - np.maximum.accumulate(np.where(ids == bos, index, 0))


# ---------------------------------------------------------------------------------------------------------------------
# Models of others


class Causal(Scorer):
    """Any AutoModelForCausalLM with its AutoTokenizer."""

    prefix = ()  # ids put before each text
    special_tokens = False  # or does the tokenizer put its own around each text

    @property
    def before(self):
        prefix = self.prefix
        if self.special_tokens:
            encoded = self.tokenizer("a", return_special_tokens_mask=True)
            prefix = encoded["input_ids"][: encoded["special_tokens_mask"].index(0)]
        if not prefix:
            return "nothing" if self.masked else "nothing, and the first token is not scored"
        roles = {self.tokenizer.eos_token_id: "EOS ", self.tokenizer.bos_token_id: "BOS "}
        return roles.get(prefix[0], "") + " ".join(self.tokenizer.convert_ids_to_tokens(prefix))

    def begin_as_its_tokenizer_does(self):
        self.prefix, self.special_tokens = (), True

    def encode(self, texts):
        how = {"add_special_tokens": self.special_tokens, "return_special_tokens_mask": True}
        encoded = self.tokenizer(texts, **how)
        return [self.tokens(encoded, i) for i in range(len(texts))]

    def tokens(self, encoded, i):
        """The Tokens of text i in what the tokenizer returned."""
        start, end = text_within(encoded["special_tokens_mask"][i])
        ids = (*self.prefix, *encoded["input_ids"][i][:end])
        return Tokens(ids, max(1, len(self.prefix) + start), len(ids))

    def ends(self, text):
        try:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        except NotImplementedError:
            raise UserError(f"{self.name}: its tokenizer does not say where in a text its tokens are") from None
        return np.array([end for _, end in encoded["offset_mapping"]], int)

    def logits(self, ids, attention_mask=None):
        return self.model(input_ids=ids, attention_mask=attention_mask).logits.float()

    def pieces(self):
        return self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))


class Masked(Causal):
    """Any AutoModelForMaskedLM: `logits_at` a place are those of the token there, from all the others.

    The score of a sentence is its pseudo-log-likelihood, the sum over its tokens of log p(token | all the others)
    (Salazar et al. 2020), or with pll = "l2r" of log p(token | all but what follows in its word) (Kauf and Ivanova
    2023).
    """

    masked = True
    rule = staticmethod(scoring.pseudo_log_probabilities)
    special_tokens = True
    pll = "original"

    @property
    def method(self):
        return f"PLL {self.pll}"

    def tokens(self, encoded, i):
        start, end = text_within(encoded["special_tokens_mask"][i])
        words = tuple(encoded.word_ids(i)) if self.pll == "l2r" else ()
        return Tokens(tuple(encoded["input_ids"][i]), start, end, words)

    def logits_at(self, places, ids, attention_mask):
        """places (B), one in each row of ids (B, T) -> (B, V) in float32.

        The head, which is most of a small model's work and memory, is applied to these places alone, where the model
        says which module it is.
        """
        rows = torch.arange(len(ids))
        head = self.model.get_output_embeddings()
        if not isinstance(head, torch.nn.Module):
            return self.logits(ids, attention_mask)[rows, places]
        with head.register_forward_pre_hook(lambda _, hidden: hidden[0][rows, places]):  # (B, T, h) -> (B, h)
            return self.logits(ids, attention_mask)

    def given(self, tokens):
        return len(tokens.ids)

    def work(self, tokens):
        return max(1, len(tokens.ids) * (tokens.end - tokens.first))


def text_within(special):
    """(start, end) of the text among its tokens. special: for each token, 1 if it is not part of the text."""
    places = [place for place, is_special in enumerate(special) if not is_special]
    return (places[0], places[-1] + 1) if places else (len(special), len(special))


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load_scorer(name, device="cpu", pll=None, trust_remote_code=False):
    """The Scorer of a checkpoint of ours, of ngram:FOLDER, a Hugging Face folder or a name on the Hub.

    pll: how a masked model is scored, original | l2r; None: original. Raises UserError.
    """
    name = str(name)
    if name.startswith("ngram:"):
        return load_ngrams(name.removeprefix("ngram:"))
    if name.endswith(".safetensors") and os.path.isfile(name):
        raise UserError(f"{name}: weights alone; give the folder they are in, with its config.json and tokenizer")
    on_the_hub = HUB_NAME.fullmatch(name) and not name.endswith(".pt") and not os.path.exists(name)
    if on_the_hub or os.path.isfile(os.path.join(name, "config.json")):
        return load_foreign(name, device, pll, trust_remote_code)
    return load_ours(name, device)


def load_ours(path, device):
    model, ckpt = checkpoint.load_model(path, device)
    origin = {key: ckpt.provenance.get(key) for key in ("corpus", "words", "steps", "data")}
    origin |= {"parameters": model.num_params(), "bits_per_byte": ckpt.provenance.get("val_bits_per_byte")}
    sha256 = {"checkpoint": ckpt.sha256, "tokenizer": ckpt.tokenizer.sha256}
    return Ours(model, ckpt.tokenizer, name=path, origin=origin, sha256=sha256)


def load_ngrams(folder):
    meta, train = read_meta(folder), os.path.join(folder, "train.bin")
    if not meta or not os.path.isfile(train):
        raise UserError(f"{folder}: no prepared text; give a folder that prepare.py made, such as data/pocket")
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.model"))
    ids = np.fromfile(train, "<u2").astype(np.int64)
    model = KneserNey(ids, tokenizer.bos_id, tokenizer.vocab_size)
    origin = {"corpus": meta["corpus"], "words": meta["train"]["words"], "data": {"name": meta["name"]}}
    origin["parameters"] = sum(len(ngrams) for ngrams, *_ in model.levels)
    sha256 = {"checkpoint": meta["train"]["sha256"], "tokenizer": tokenizer.sha256}
    return Ngrams(model, tokenizer, f"ngram:{folder}", vocab_size=model.V, origin=origin, sha256=sha256)


def load_foreign(name, device, pll, trust_remote_code):
    try:
        import transformers
    except ImportError:
        raise UserError(f"{name}: models of others need transformers: pip install transformers") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    how = {"trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **how)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **how)
        masked = is_masked(transformers, config, pll)
        auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
        model, loaded = auto.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **how)
    except Exception as e:  # whatever a library raises that reads what strangers wrote
        raise UserError(f"{name}: {why_not(name, e)}") from None
    if loaded["missing_keys"]:
        missing = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise UserError(f"{name}: not a trained language model: it has no weights for {missing}")
    kind = Masked if masked else Causal
    scorer = kind(
        model.to(device).eval(),
        tokenizer,
        name,
        context=context_of(model, tokenizer),
        vocab_size=model.get_input_embeddings().weight.shape[0],
        origin={"parameters": sum(p.numel() for p in model.parameters())},
        sha256=hashes(name),
    )
    if not masked:
        usual = [tokenizer.bos_token_id, tokenizer.eos_token_id]  # EOS as GPT-2 has it
        scorer.prefix = tuple(token for token in usual if token is not None)[:1]
        return scorer
    if tokenizer.mask_token_id is None:
        raise UserError(f"{name}: its tokenizer has no mask token, which a masked model is scored with")
    if pll == "l2r" and not tokenizer.is_fast:
        raise UserError(f"{name}: its tokenizer does not say which tokens make a word; use --pll original")
    scorer.pll = pll or "original"
    return scorer


def is_masked(transformers, config, pll):
    """Whether to load a masked model. One that can be both, such as GPT-BERT, is masked if --pll is given."""
    if pll and "AutoModelForMaskedLM" in (getattr(config, "auto_map", None) or {}):
        return True
    architectures = " ".join(config.architectures or [])
    if "CausalLM" in architectures or "LMHeadModel" in architectures:
        return False
    return "MaskedLM" in architectures or type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING


def why_not(name, error):
    if "trust_remote_code" in str(error):
        return "brings code of its own, which could do anything here; --trust-remote-code runs it"
    if os.path.isdir(name):
        return f"cannot be loaded as a language model ({first_line(error)}); copy or export the folder again"
    return f"no file or folder of that name, and no language model on the Hub ({first_line(error)}); check the spelling"


def context_of(model, tokenizer):
    """The most tokens that the model can be given, as far as is known."""
    known = [getattr(model.config, key, None) for key in ("max_position_embeddings", "n_positions", "n_ctx")]
    limits = [limit for limit in (*known, tokenizer.model_max_length) if limit and 0 < limit < 10**6]
    for module in model.modules():  # RoBERTa begins to count at the place after padding's
        if isinstance(module, torch.nn.Embedding) and module.padding_idx and module.num_embeddings in limits:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min(limits, default=math.inf)


def hashes(name):
    """sha256 of the weights and of the tokenizer's files, each kind read one file after the other."""
    from transformers.utils import cached_file

    folder = pathlib.Path(cached_file(name, "config.json")).parent

    def together(*patterns):
        digest = hashlib.sha256()
        for pattern in patterns:
            for path in sorted(folder.glob(pattern)):
                digest.update(path.read_bytes())
        return digest.hexdigest()

    return {
        "checkpoint": together("*.safetensors", "*.bin"),
        "tokenizer": together("tokenizer.json", "tokenizer.model", "vocab.*", "merges.txt"),
    }
