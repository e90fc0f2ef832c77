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
from lab.files import UserError, first_line, load_tokenizer, read_json
from lab.score import scoring

import numpy as np
import torch

PLL = ("original", "l2r")
ORDER = 5  # of n-grams
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
    """A causal model: `logits` at a place are those of the token after it.

    before: what stands before the first token of a text; context: the most tokens it can be given; origin: what is
    known of its training (corpus, words, steps, parameters, bits_per_byte); sha256: of checkpoint and tokenizer.
    """

    name: str
    model: torch.nn.Module
    tokenizer: object
    before: str
    context: float = math.inf
    vocab_size: int = 0
    origin: dict = field(default_factory=dict)
    sha256: dict = field(default_factory=dict)
    method = "full"  # how a sentence is scored, as the record of a result says it
    rule = None  # if not eval_blimp.py's: (scorer, batch of Tokens) -> log p of each scored token
    masked = False

    @property
    def label(self):
        """The name, marked if its scores are not probabilities of sentences."""
        return f"{self.name} [{self.method}]" if self.masked else self.name

    @property
    def device(self):
        return next(self.model.parameters()).device

    def encode(self, texts, leading_space=False):
        """Tokens of each text, or of " " + text."""
        raise NotImplementedError

    def begin_as_its_tokenizer_does(self):
        """From now on nothing stands before a text but what the tokenizer itself puts there, as in BabyLM's pipelines:
        with GPT-2's that is nothing."""

    def ends(self, text):
        """Where each of the text's tokens ends in it, in characters. Raises UserError if that is not known."""
        raise NotImplementedError

    def logits(self, ids, attention_mask=None):
        """ids (B, T) -> (B, T, V) in float32."""
        raise NotImplementedError

    def given(self, tokens):
        """How many tokens the model is given to score these: the last one is only predicted."""
        return len(tokens.ids) - 1

    def work(self, tokens):
        """How many tokens go through the model for them."""
        return max(1, len(tokens.ids))

    def pieces(self):
        """The vocabulary as it is spelled in the tokenizer's file, a list of V texts; a space is " ", Ġ or ▁."""
        raise NotImplementedError

    def decode(self, ids):
        raise NotImplementedError


class WithOurTokenizer(Scorer):
    before = "BOS <s>"

    def encode(self, texts, leading_space=False):
        sequences = scoring.tokenize(self.tokenizer, texts, leading_space)
        return [Tokens(ids, 1, len(ids)) for ids in sequences]

    def ends(self, text):
        (ids,) = self.tokenizer.encode_batch([text])
        in_bytes = scoring.token_ends(self.tokenizer, text, ids)
        starts = np.cumsum([0, *(len(character.encode()) for character in text)])[:-1]  # of each character, in bytes
        return np.searchsorted(starts, in_bytes)

    def pieces(self):
        return [self.tokenizer.sp.id_to_piece(i) for i in range(self.vocab_size)]

    def decode(self, ids):
        return self.tokenizer.decode(ids)


class Ours(WithOurTokenizer):
    """A model.Model and its tokenizer."""

    def __init__(self, model, tokenizer, name="", provenance=None, sha256=None):
        provenance = provenance or {}
        super().__init__(
            name=name,
            model=model,
            tokenizer=tokenizer,
            before="BOS <s>",
            context=scoring.context_of(model),
            vocab_size=len(model.lm_head.weight),
            origin={key: provenance.get(key) for key in ("corpus", "words", "steps", "data")},
            sha256=sha256 or {},
        )
        self.origin["bits_per_byte"] = provenance.get("val_bits_per_byte")

    def logits(self, ids, attention_mask=None):
        return self.model(ids).float()


class Ngram(WithOurTokenizer):
    """Kneser-Ney n-grams of a text that prepare.py made, as a row to compare with."""

    def __init__(self, folder):
        meta, path = read_json(os.path.join(folder, "meta.json")), os.path.join(folder, "train.bin")
        if not meta or not os.path.isfile(path):
            raise UserError(f"{folder}: no prepared text; give a folder that prepare.py made, such as data/pocket")
        tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.model"))
        self.counts = KneserNey(np.fromfile(path, "<u2").astype(np.int64), tokenizer.bos_id, tokenizer.vocab_size)
        train = meta.get("train", {})
        super().__init__(
            name=f"ngram:{folder}",
            model=torch.nn.Identity(),
            tokenizer=tokenizer,
            before="BOS <s>",
            vocab_size=tokenizer.vocab_size,
            origin={
                "corpus": meta.get("corpus"),
                "words": train.get("words"),
                "data": {"name": meta.get("name")},
                "parameters": sum(len(grams) for grams, *_ in self.counts.levels),
            },
            sha256={"checkpoint": train.get("sha256", ""), "tokenizer": tokenizer.sha256},
        )

    @property
    def device(self):
        return torch.device("cpu")

    def rule(self, _, batch):
        lengths = [len(tokens.ids) for tokens in batch]
        logp = self.counts.log_probabilities(np.concatenate([tokens.ids for tokens in batch]))
        of_each = np.split(logp, np.cumsum(lengths)[:-1])
        return [row[tokens.first : tokens.end] for row, tokens in zip(of_each, batch)]


class Causal(Scorer):
    """Any AutoModelForCausalLM with its AutoTokenizer."""

    only_its_own = False

    def encode(self, texts, leading_space=False):
        if leading_space:
            texts = [" " + text for text in texts]
        if self.only_its_own:
            return self.encode_as_its_tokenizer_does(texts)
        prefix = usual_prefix(self.tokenizer)
        found = []
        for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]:
            ids = (*prefix, *ids)
            found.append(Tokens(ids, 1, len(ids)))
        return found

    def encode_as_its_tokenizer_does(self, texts):
        encoded = self.tokenizer(texts, return_special_tokens_mask=True)
        found = []
        for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"]):
            start, end = text_within(special)
            found.append(Tokens(tuple(ids[:end]), max(1, start), end))
        return found

    def begin_as_its_tokenizer_does(self):
        self.only_its_own = True
        self.before = prefix_name(self.tokenizer, its_own_prefix(self.tokenizer))

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

    def decode(self, ids):
        return self.tokenizer.decode(ids)


class Masked(Causal):
    """Any AutoModelForMaskedLM: `logits_at` a place are those of the token there, from all the others.

    The score of a sentence is its pseudo-log-likelihood, the sum over its tokens of log p(token | all the others)
    (Salazar et al. 2020), or with pll = "l2r" of log p(token | all but what follows in its word) (Kauf and Ivanova
    2023).
    """

    masked = True
    rule = staticmethod(scoring.pseudo_log_probabilities)
    pll = "original"

    @property
    def method(self):
        return f"PLL {self.pll}"

    def encode(self, texts, leading_space=False):
        if leading_space:
            texts = [" " + text for text in texts]
        encoded = self.tokenizer(texts, return_special_tokens_mask=True)
        found = []
        for i, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"])):
            start, end = text_within(special)
            words = tuple(encoded.word_ids(i)) if self.pll == "l2r" else ()
            found.append(Tokens(tuple(ids), start, end, words))
        return found

    def logits_at(self, places, ids, attention_mask):
        """places (B), one in each row of ids (B, T) -> (B, V) in float32.

        The head, which is most of a small model's work and memory, is applied to these places alone, where the model
        says which module it is.
        """
        rows = torch.arange(len(ids))
        head = self.model.get_output_embeddings()
        if not isinstance(head, torch.nn.Module):
            return self.logits(ids, attention_mask)[rows, places]
        hook = head.register_forward_pre_hook(lambda _, hidden: hidden[0][rows, places])  # (B, T, h) -> (B, h)
        try:
            return self.logits(ids, attention_mask)
        finally:
            hook.remove()

    def given(self, tokens):
        return len(tokens.ids)

    def work(self, tokens):
        return max(1, len(tokens.ids) * (tokens.end - tokens.first))

    def begin_as_its_tokenizer_does(self):
        pass  # it always does


def text_within(special):
    """(start, end) of a text among its tokens. special: of each token, 1 if it is not part of the text."""
    places = [place for place, is_special in enumerate(special) if not is_special]
    return (places[0], places[-1] + 1) if places else (len(special), len(special))


# ---------------------------------------------------------------------------------------------------------------------
# n-grams


class KneserNey:
    """Interpolated Kneser-Ney n-grams (Chen and Goodman 1999, section 3) of lines of tokens, each from BOS:

        p(w | h) = (max(c(h w) - D, 0) + D t(h) p(w | h without its first token)) / c(h)

    c: how often an n-gram occurs, and below the highest order in how many contexts (of those that begin with BOS: how
    often); c(h): the sum of c(h w) over w; t(h): over how many w; D = n1 / (n1 + 2 n2) of the n-grams of an order that
    have c = 1 and c = 2. Where h was never seen, p(w | h) is p(w | h without its first token); below one token 1 / V.

    n-grams are numbered from 1 to ORDER: one of n tokens is a pair (number of its first n - 1 tokens, last token),
    written as one integer, number * V + token.
    """

    def __init__(self, ids, bos, vocab_size, order=ORDER):
        """ids (N): lines of tokens, each with a BOS before it; vocab_size: V."""
        self.bos, self.V = bos, vocab_size
        depth = places(ids, bos)
        seen = []  # of each order: (its n-grams, sorted; number of each in the text, -1 where a line is too short)
        number = np.zeros(len(ids), np.int64)
        for n in range(1, order + 1):
            keys = np.roll(number, 1) * self.V + ids if n > 1 else ids
            inside = depth >= n - 1
            grams, inverse = np.unique(keys[inside], return_inverse=True)
            number = np.full(len(ids), -1)
            number[inside] = inverse
            seen.append((grams, number))
        self.levels = []  # of each order: (n-grams, their c, D, and of each context: c(h), t(h))
        for n, (grams, number) in enumerate(seen, 1):
            inside = number >= 0
            count = np.bincount(number[inside], minlength=len(grams))
            if n < order:
                longer = seen[n][1]
                _, first = np.unique(longer, return_index=True)  # one place of each n-gram of the next order
                first = first[longer[first] >= 0]
                contexts = np.bincount(number[first], minlength=len(grams))
                count = np.where(begins_a_line(number, depth, n, len(grams)), count, contexts)
            if n == 1:
                count[grams == bos] = 0  # BOS is given, never predicted
            once, twice = (count == 1).sum(), (count == 2).sum()
            discount = once / max(1, once + 2 * twice) or 0.5  # so that nothing is impossible
            context = grams // self.V if n > 1 else np.zeros(len(grams), np.int64)
            size = len(seen[n - 2][0]) if n > 1 else 1
            total = np.bincount(context, count, size)
            kinds = np.bincount(context, count > 0, size)
            self.levels.append((grams, count, discount, total, kinds))

    def log_probabilities(self, ids):
        """log p of each token (N) of lines that begin with BOS, given those before it in its line; of BOS itself 0."""
        depth = places(ids, self.bos)
        p = np.full(len(ids), 1 / self.V)
        number = np.zeros(len(ids), np.int64)  # of the n - 1 tokens that end at each place, -1: never seen
        for n, (grams, count, discount, total, kinds) in enumerate(self.levels, 1):
            context = np.roll(number, 1) if n > 1 else number
            keys = context * self.V + ids
            at = np.minimum(np.searchsorted(grams, keys), len(grams) - 1)
            usable = (depth >= n - 1) & (context >= 0)
            found = usable & (grams[at] == keys)
            usable &= total[np.maximum(context, 0)] > 0
            here = context[usable]
            c = np.where(found, count[at], 0)[usable]
            p[usable] = (np.maximum(c - discount, 0) + discount * kinds[here] * p[usable]) / total[here]
            number = np.where(found, at, -1)
        p[depth == 0] = 1
        return np.log(p)


def places(ids, bos):
    """How many tokens stand before each one in its line; of BOS 0."""
    index = np.arange(len(ids))
    return index - np.maximum.accumulate(np.where(ids == bos, index, 0))


def begins_a_line(number, depth, n, size):
    """Whether each n-gram begins with BOS."""
    begins = np.zeros(size, bool)
    begins[number[(number >= 0) & (depth == n - 1)]] = True
    return begins


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load_scorer(name, device="cpu", pll=None, trust_remote_code=False):
    """The Scorer of a checkpoint of ours, a Hugging Face folder or a name on the Hub. Raises UserError.

    pll: how a masked model is scored, original | l2r; None: original.
    """
    name = str(name)
    if name.startswith("ngram:"):
        return Ngram(name.removeprefix("ngram:"))
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise UserError(
                f"{name}: neither a checkpoint nor a Hugging Face folder, which has a config.json; "
                f"give a checkpoint such as {os.path.join(name, 'ckpt.pt')}"
            )
        return load_foreign(name, device, pll, trust_remote_code)
    if name.endswith(".safetensors") and os.path.isfile(name):
        raise UserError(f"{name}: weights alone; give the folder they are in, with its config.json and tokenizer")
    if os.path.exists(name) or name.endswith(".pt") or not HUB_NAME.fullmatch(name):
        model, ckpt = checkpoint.load_model(name, device)
        sha256 = {"checkpoint": ckpt.sha256, "tokenizer": ckpt.tokenizer.sha256}
        scorer = Ours(model, ckpt.tokenizer, ckpt.path, ckpt.provenance, sha256)
        scorer.origin["parameters"] = model.num_params()
        return scorer
    return load_foreign(name, device, pll, trust_remote_code)


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
        kind = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
        model, loaded = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **how)
    except Exception as e:  # whatever a library raises that reads what strangers wrote
        raise UserError(f"{name}: {why_not(name, e)}") from None
    if loaded["missing_keys"]:
        raise UserError(
            f"{name}: has no weights for {', '.join(sorted(loaded['missing_keys'])[:3])}, "
            f"and so is not a trained {'masked' if masked else 'causal'} language model"
        )
    common = {
        "name": name,
        "model": model.to(device).eval(),
        "tokenizer": tokenizer,
        "context": context_of(model, tokenizer),
        "vocab_size": model.get_input_embeddings().weight.shape[0],
        "origin": {"parameters": sum(p.numel() for p in model.parameters())},
        "sha256": hashes(name),
    }
    if not masked:
        return Causal(before=prefix_name(tokenizer, usual_prefix(tokenizer)), **common)
    if tokenizer.mask_token_id is None:
        raise UserError(f"{name}: its tokenizer has no mask token, which a masked model is scored with")
    if pll == "l2r" and not tokenizer.is_fast:
        raise UserError(
            f"{name}: its tokenizer does not say which tokens make a word, as --pll l2r needs; use --pll original"
        )
    scorer = Masked(before=prefix_name(tokenizer, its_own_prefix(tokenizer)), **common)
    scorer.pll = pll or "original"
    return scorer


def is_masked(transformers, config, pll):
    """Of a model that can be both, as GPT-BERT: masked if --pll asks for it."""
    if pll and "AutoModelForMaskedLM" in (getattr(config, "auto_map", None) or {}):
        return True
    architectures = " ".join(config.architectures or [])
    if "CausalLM" in architectures or "LMHeadModel" in architectures:
        return False
    return "MaskedLM" in architectures or type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING


def why_not(name, error):
    reason = first_line(error)
    if "trust_remote_code" in str(error):
        return "brings code of its own, which could do anything here; --trust-remote-code runs it"
    if os.path.isdir(name):
        return f"cannot be loaded as a language model ({reason}); copy or export the folder again"
    return f"no file or folder of that name, and no language model on the Hub ({reason}); check the spelling"


def usual_prefix(tokenizer):
    """BOS, else EOS as GPT-2 has it, else nothing: then the first token is not scored."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    return []


def its_own_prefix(tokenizer):
    encoded = tokenizer("a", return_special_tokens_mask=True)
    start, _ = text_within(encoded["special_tokens_mask"])
    return encoded["input_ids"][:start]


def prefix_name(tokenizer, prefix):
    if not prefix:
        return "nothing, and the first token is not scored"
    role = ""
    if prefix == [tokenizer.bos_token_id]:
        role = "BOS "
    elif prefix == [tokenizer.eos_token_id]:
        role = "EOS "
    return role + " ".join(tokenizer.convert_ids_to_tokens(prefix))


def context_of(model, tokenizer):
    """The most tokens that the model can be given, as far as is known."""
    known = [getattr(model.config, key, None) for key in ("max_position_embeddings", "n_positions", "n_ctx")]
    limits = [limit for limit in (*known, tokenizer.model_max_length) if limit and 0 < limit < 10**6]
    for module in model.modules():  # RoBERTa begins to count at the place after padding's
        if isinstance(module, torch.nn.Embedding) and module.padding_idx and module.num_embeddings in limits:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min(limits, default=math.inf)


def hashes(name):
    """sha256 of the weights and of the tokenizer's files, each read one after the other in the order of their names."""
    folder = name
    if not os.path.isdir(name):
        from transformers.utils import cached_file

        folder = os.path.dirname(cached_file(name, "config.json"))
    found = {}
    for what, patterns in (
        ("checkpoint", ("*.safetensors", "*.bin")),
        ("tokenizer", ("tokenizer.json", "tokenizer.model", "vocab.*", "merges.txt")),
    ):
        digest = hashlib.sha256()
        for pattern in patterns:
            for path in sorted(pathlib.Path(folder).glob(pattern)):
                digest.update(path.read_bytes())
        found[what] = digest.hexdigest()
    return found
