"""Models of others in small, made on the spot with random weights: GPT-2, Pythia, OPT and BERT."""

from lab.text import pocket_english

import torch


def make(kind, folder, vocab_size=600, hidden=32, layers=2, heads=2):
    """A Hugging Face folder of that shape, its weights large enough to tell sentences apart. Returns its path."""
    import transformers

    lines = [line for line in pocket_english.text(20000, seed=1) if line]
    tokenizer = word_pieces(lines, vocab_size) if kind == "bert" else byte_level(kind, lines, vocab_size)
    torch.manual_seed(0)
    config = {"vocab_size": len(tokenizer), "hidden_size": hidden, "num_hidden_layers": layers}
    config |= {"num_attention_heads": heads, "max_position_embeddings": 64}  # by these names in GPT-2's config too
    if kind == "opt":
        config |= {"ffn_dim": 4 * hidden, "word_embed_proj_dim": hidden}
        model = transformers.OPTForCausalLM(transformers.OPTConfig(**config))
    elif kind == "bert":
        config |= {"intermediate_size": 4 * hidden, "pad_token_id": 0}
        model = transformers.BertForMaskedLM(transformers.BertConfig(**config))
    elif kind == "pythia":
        config |= {"intermediate_size": 4 * hidden, "bos_token_id": 0, "eos_token_id": 0}
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**config))
    else:
        config |= {"bos_token_id": 0, "eos_token_id": 0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)
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
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
