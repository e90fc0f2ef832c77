"""Models of others in small, made on the spot with random weights: GPT-2, Pythia, OPT and BERT."""

from lab.text import pocket_english

import torch

KINDS = ("gpt2", "pythia", "opt", "bert")


def make(kind, folder, vocab_size=600, **shape):
    """A Hugging Face folder of that shape, its weights large enough to tell sentences apart. Returns its path."""
    import transformers

    lines = [line for line in pocket_english.text(20000, seed=1) if line]
    tokenizer = word_pieces(lines, vocab_size) if kind == "bert" else byte_level(kind, lines, vocab_size)
    torch.manual_seed(0)
    V = len(tokenizer)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **shape}
    hidden = small["hidden_size"]
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=V,
            n_embd=hidden,
            n_layer=small["num_hidden_layers"],
            n_head=small["num_attention_heads"],
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "pythia":
        config = transformers.GPTNeoXConfig(
            vocab_size=V,
            intermediate_size=4 * hidden,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=0,
            **small,
        )
        model = transformers.GPTNeoXForCausalLM(config)
    elif kind == "opt":
        config = transformers.OPTConfig(
            vocab_size=V, ffn_dim=4 * hidden, max_position_embeddings=64, word_embed_proj_dim=hidden, **small
        )
        model = transformers.OPTForCausalLM(config)
    else:
        config = transformers.BertConfig(
            vocab_size=V, intermediate_size=4 * hidden, max_position_embeddings=64, pad_token_id=0, **small
        )
        model = transformers.BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def byte_level(kind, lines, vocab_size):
    """As GPT-2's, with one special token for all; OPT's puts its BOS before every text."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"] if kind == "opt" else ["<|endoftext|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    if kind == "opt":
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="</s> $A", special_tokens=[("</s>", 2)]
        )
        names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    else:
        names = {"bos_token": special[0], "eos_token": special[0]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def word_pieces(lines, vocab_size):
    """As BERT's, in lower case."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
