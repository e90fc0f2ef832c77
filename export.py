"""Checkpoint <-> Hugging Face folder.

    python export.py CKPT DIR                            a checkpoint becomes a plain LLaMA that transformers, lm-eval, ... load as it is
    python export.py RUN NAME --all-checkpoints          a run's chck_1M.pt, ... become NAME/chck_1M/NAME, ... and its ckpt.pt NAME/main/NAME
    python export.py --from-hf DIR CKPT                  a LLaMA folder, or SLlama as released, becomes a checkpoint

SLlama's tricks save parameters, not a different kind of function, so a model is exported by unfolding them: the narrow
table is tiled to its full width, the picked or repeated rows of the attention are written out, the transpose becomes
up_proj, shared layers are copied. No custom code is needed to load the result. Only what a LLaMA cannot compute is
refused: an embedding that attends (`attention`), and normalised queries and keys (`qk_norm`).
"""
import argparse
import json
import os
import re
import shutil

import torch
import yaml

try:
    import safetensors.torch as safetensors
except ImportError:                                                     # training needs it not
    safetensors = None

from lab import checkpoint, commands
from lab import settings as configuration
from lab.files import UserError, atomic_write
from model import Model, parameter_counts, sharing
from tokenizer import load as load_tokenizer

WRITER = "sllama-lab"                                                   # in config.json: the folder is ours and may be replaced

# ---------------------------------------------------------------------------------------------------------------------
# Unfolding: our weights -> those of a plain LLaMA


def unfold(model):
    """(settings for config.json, weights by Hugging Face's names) of the LLaMA that computes what `model` does. Raises UserError."""
    c = model.config
    if c.embedding == "attention":
        raise UserError("embedding `attention` looks at the tokens before, which no table of a plain LLaMA does; it cannot be exported")
    if c.qk_norm:
        raise UserError("qk_norm normalises queries and keys, which a plain LLaMA does not; it cannot be exported")
    with torch.no_grad():
        weights = {"model.embed_tokens.weight": model.embed(torch.arange(c.vocab_size)[None])[0], "model.norm.weight": model.norm.weight, "lm_head.weight": model.lm_head.weight}
        for i, (layer, group) in enumerate(model.order):
            parts = {"self_attn." + name: w for name, w in unfold_attention(model.attention[group], c).items()}
            mlp = model.mlp[group]
            parts |= {"mlp.gate_proj.weight": mlp.gate_proj.weight, "mlp.down_proj.weight": mlp.down_proj.weight,
                      "mlp.up_proj.weight": mlp.down_proj.weight.T if mlp.shared else mlp.up_proj.weight}
            parts |= {name: w for name, w in model.layers[layer].named_parameters()}
            weights |= {f"model.layers.{i}.{name}": w for name, w in parts.items()}
    heads = c.num_attention_heads
    settings = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab_size, "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": len(model.order), "num_attention_heads": heads, "num_key_value_heads": c.num_key_value_heads or heads, "head_dim": c.hidden_size // heads,
        "hidden_act": c.hidden_act, "max_position_embeddings": c.max_position_embeddings, "rms_norm_eps": c.rms_norm_eps, "rope_theta": c.rope_theta, "rope_scaling": None,
        "attention_bias": c.attention == "rra", "mlp_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": c.tie_word_embeddings,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "use_cache": True, "torch_dtype": "float32", "written_by": WRITER}
    return settings, {name: w.detach().float().clone().contiguous() for name, w in weights.items()}


def unfold_attention(attention, config):
    """The matrices q, k, v (h_kv, h) and o (h, h) that this attention multiplies by, and for `rra` their biases.

    Whatever the trick, without biases they are what it makes of the unit vectors.
    """
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if config.attention == "rra":
        return {f"{name}.{kind}": getattr(getattr(attention, name), kind).repeat(*tiles) for name in names for kind, tiles in (("weight", (4, 1)), ("bias", (4,)))}
    unit = torch.eye(config.hidden_size)[None]                          # (1, h, h): h tokens
    return {name + ".weight": y[0].T for name, y in zip(names, (*attention.project(unit), attention.output(unit)))}


# ---------------------------------------------------------------------------------------------------------------------
# And back: the names and settings of a LLaMA folder and of the released SLlama -> ours


def names(config):
    """Our name of each weight -> the names under which a folder may hold it.

    Ours are Hugging Face's, except that attention and MLP belong to a group of layers, so layers.I.self_attn.X and
    layers.I.mlp.X of any layer I of the group will do. The release calls PWA's table shared_weights.weight, keeps one of
    skqa's q_proj and k_proj, and SPMLP's matrix as up_proj, down_proj or both.
    """
    members = {}
    for layer, group in sharing(config)[2]:
        members.setdefault(group, {})[layer] = None
    with torch.device("meta"):
        ours = [name for name, _ in Model(config).named_parameters()]
    out = {}
    for name in ours:
        part, _, rest = name.partition(".")
        if part in ("attention", "mlp"):
            group, _, leaf = rest.partition(".")
            leaves = {"shared_weights": ["shared_weights.weight"], "q_proj.weight": ["q_proj.weight", "k_proj.weight"] if config.attention == "skqa" else [leaf],
                      "down_proj.weight": ["down_proj.weight", "up_proj.weight"] if config.mlp == "shared_projection" else [leaf]}.get(leaf, [leaf])
            block = {"attention": "self_attn", "mlp": "mlp"}[part]
            out[name] = [f"model.layers.{layer}.{block}.{leaf}" for layer in members[int(group)] for leaf in leaves]
        elif name == "lm_head.weight":
            out[name] = [name, "model.embed_tokens.weight"] if config.tie_word_embeddings else [name]
        else:
            out[name] = ["model." + name]
    return out


def fold(config, held, where):
    """Our weights out of a folder's: a shared one may be there once, under any of its names, or repeated; then all must agree."""
    held, out = dict(held), {}
    for name, places in names(config).items():
        found = [place for place in places if place in held]
        if not found:
            raise UserError(f"{where}: weight {places[0]} is missing" + (" (and so are the other names it may have)" if len(places) > 1 else ""))
        out[name] = held[found[0]]
        for place in found[1:]:
            if not torch.equal(held[place], out[name]):
                raise UserError(f"{where}: {found[0]} and {place} are one weight in this model, but differ in the file; "
                                "the released code loses shared weights on loading and then saves random ones, so take the first file it wrote")
        for place in found:
            del held[place]
    if left := [name for name in held if not name.endswith("rotary_emb.inv_freq")]:
        raise UserError(f"{where}: {left[0]} has no place in this model" + (f", nor have {len(left) - 1} others" if len(left) > 1 else ""))
    return out


def our_config(settings, where):
    """ModelConfig of a config.json: a LLaMA's, or the released SLlama's with its own names for the tricks. Raises UserError."""
    def refuse(key, why):
        raise UserError(f"{where}: {key} is {settings.get(key)!r}; {why}")

    released = settings.get("model_type") == "sllama"
    if not released and settings.get("model_type") != "llama":
        refuse("model_type", "only `llama` and the released `sllama` can be converted")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        refuse("rope_parameters" if "rope_parameters" in settings else "rope_scaling", "only plain rotary positions can be converted")
    values = {key: settings[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_key_value_heads",
                                             "rms_norm_eps", "tie_word_embeddings", "hidden_act") if key in settings}
    values["max_position_embeddings"] = settings.get("max_position_embeddings", 2048 if not released else 256)
    values["rope_theta"] = rope.get("rope_theta", settings.get("rope_theta", 10000.0))
    if released:
        kind = settings.get("emb_reduction_type", "repeat")
        if kind not in (None, "repeat", "linear", "attn"):
            refuse("emb_reduction_type", "expected null, repeat, linear or attn")
        values |= {"embedding": {None: "full", "attn": "attention"}.get(kind, kind), "attention": settings.get("attn_reduction_type", "pwa") or "mha",
                   "mlp": "shared_projection" if settings.get("mlp_reduction", True) else "full", "layer_sharing": settings.get("layer_reduction_type", "share") or "none",
                   "num_groups": (settings.get("n_group") or settings.get("num_hidden_layers")) if settings.get("layer_reduction_type", "share") == "share" else 1}
    try:
        config = configuration.model_config(values)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    if settings.get("head_dim") not in (None, config.hidden_size // config.num_attention_heads):
        refuse("head_dim", f"hidden_size / num_attention_heads = {config.hidden_size // config.num_attention_heads} is expected")
    if settings.get("mlp_bias"):
        refuse("mlp_bias", "MLPs with biases cannot be converted")
    return config


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer: SentencePiece -> Hugging Face's tokenizer.json


def fields(message):
    """(number, value) of each field of a protobuf message, as Google's wire format has it: an int or bytes."""
    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
    at = 0
    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
            yield key >> 3, message[at:at + size]
            at += size


def tokenizer_files(tokenizer, context):
    """{file name: content} by which AutoTokenizer gives the very ids of `tokenizer`, BOS in front. Raises UserError.

    Two things differ from the usual conversion of a LLaMA tokenizer, which gets them wrong: spaces are spaces in the
    vocabulary, not ▁, so a ▁ in the text falls back to its bytes; and text that looks like a special piece, "<s>", is
    text (split_special_tokens), so no sentence can smuggle a BOS in.
    """
    try:
        model = list(fields(tokenizer.model_bytes))
        trainer, normalizer = (dict(fields(b"".join(value for key, value in model if key == number))) for number in (2, 3))
        kinds = [dict(fields(value)).get(3, 1) for key, value in model if key == 1]     # 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    except (KeyError, IndexError):
        raise UserError("the tokenizer is not written as SentencePiece writes it; it cannot be exported") from None
    sp, prefix = tokenizer.sp, normalizer.get(3, 1)
    texts = [sp.id_to_piece(i).replace("▁", " ") if kind == 1 else sp.id_to_piece(i) for i, kind in enumerate(kinds)]
    vocab = {text: i for i, text in enumerate(texts)}
    plain = trainer.get(3, 1) == 2 and not trainer.get(24) and not normalizer.get(2) and not normalizer.get(4, 1) and normalizer.get(5, 1)
    if not plain or {4, 5} & set(kinds) or len(vocab) < tokenizer.vocab_size:
        raise UserError("the tokenizer is not plain byte-pair encoding (it is of another kind, normalises text or has pieces defined by hand); it cannot be exported")
    merges = []                                                         # SentencePiece joins any neighbours that make a piece, best score first
    for i in sorted((i for i, kind in enumerate(kinds) if kind == 1), key=lambda i: -sp.get_score(i)):
        merges += [[texts[i][:n], texts[i][n:]] for n in range(len(texts[i]) - 1, 0, -1) if texts[i][:n] in vocab and texts[i][n:] in vocab]
    special = {i: {"content": texts[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
               for i, kind in enumerate(kinds) if kind in (2, 3)}
    bos, eos, unk = (texts[i] if i >= 0 else None for i in (tokenizer.bos_id, tokenizer.eos_id, sp.unk_id()))
    before, after = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    normal = [{"type": "Prepend", "prepend": " "}] if prefix else []
    if not tokenizer.has_bytes:
        normal = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}] + normal
    fast = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [{"id": i} | token for i, token in special.items()],
        "normalizer": {"type": "Sequence", "normalizers": normal}, "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [before, after], "pair": [before, after, before, {"Sequence": {"id": "B", "type_id": 0}}],
                           "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}] + [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * bool(prefix)},
        "model": {"type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
                  "byte_fallback": tokenizer.has_bytes, "ignore_merges": False, "vocab": vocab, "merges": merges}}
    named = {key: text for key, text in (("bos_token", bos), ("eos_token", eos), ("unk_token", unk)) if text is not None}
    settings = named | {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False, "split_special_tokens": True,
                        "clean_up_tokenization_spaces": False, "model_max_length": context, "model_input_names": ["input_ids", "attention_mask"],
                        "added_tokens_decoder": {str(i): token for i, token in special.items()}}
    return {"tokenizer.json": json.dumps(fast, ensure_ascii=False), "tokenizer_config.json": json.dumps(settings, indent=2), "special_tokens_map.json": json.dumps(named, indent=2),
            "tokenizer.model": tokenizer.model_bytes}


# ---------------------------------------------------------------------------------------------------------------------
# Folders: writing


def export_folder(path, folder, blimp=None, license="unknown", force=False):
    """Writes the Hugging Face folder of checkpoint `path`; returns how many numbers its weights are. Raises UserError, with `folder` as it was."""
    check_target(folder, force)
    model, ckpt = checkpoint.load_model(path)
    try:
        settings, weights = unfold(model)
        files = tokenizer_files(ckpt.tokenizer, ckpt.config.max_position_embeddings)
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    ends = {"bos_token_id": ckpt.tokenizer.bos_id, "eos_token_id": ckpt.tokenizer.eos_id if ckpt.tokenizer.eos_id >= 0 else None}
    numbers, name = sum(w.numel() for w in weights.values()), os.path.basename(os.path.abspath(folder))
    write_folder(folder, files | {
        "config.json": json.dumps(settings | ends, indent=2), "generation_config.json": json.dumps(ends | {"pad_token_id": ends["eos_token_id"], "do_sample": True}, indent=2),
        "model.safetensors": safetensors.save(weights, metadata={"format": "pt"}), "README.md": model_card(ckpt, numbers, name, blimp, license)})
    return numbers


def check_target(folder, force):
    """UserError if `folder` holds what export.py did not write."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder}: is a file; give the name of a folder to write")
    if not force and os.path.isdir(folder) and os.listdir(folder):
        try:
            ours = read_json(os.path.join(folder, "config.json")).get("written_by") == WRITER
        except UserError:
            ours = False
        if not ours:
            raise UserError(f"{folder}: is not empty and was not written by export.py; choose another folder, or --force to write into it")


def write_folder(folder, files):
    """Writes a new folder beside, which then takes the place of `folder`; what else was in there (.git) moves over."""
    folder = os.path.realpath(folder)
    new, old = f"{folder}.{os.getpid()}.tmp", f"{folder}.{os.getpid()}.old"
    try:
        for name, content in files.items():
            atomic_write(os.path.join(new, name), content)
        if os.path.isdir(folder):
            os.rename(folder, old)
        os.rename(new, folder)
        if os.path.isdir(old):
            for name in set(os.listdir(old)) - set(files):
                os.rename(os.path.join(old, name), os.path.join(folder, name))
            shutil.rmtree(old)
    except OSError as e:
        if os.path.isdir(old) and not os.path.isdir(folder):
            os.rename(old, folder)
        left = f"; some of what was in it is now in {old}" if os.path.isdir(old) else ""
        raise UserError(f"{folder}: cannot be written ({e.strerror}); choose another folder{left}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def export_run(run, folder, **options):
    """A run's ckpt.pt as NAME/main/NAME, its chck_NM.pt as NAME/chck_NM/NAME, for `folder` = NAME; returns those folders. Raises UserError.

    The BabyLM pipeline calls a model by the last part of its path, and files its results under that name and the revision's.
    """
    marks = sorted((float(found[1]), name) for name in os.listdir(run) if (found := re.fullmatch(r"chck_([\d.]+)M\.pt", name)))
    if not marks:
        raise UserError(f"{run}: no chck_1M.pt, chck_2M.pt, ... in it; set train.checkpoint_words to have them written")
    model = os.path.basename(os.path.abspath(folder))
    targets = {os.path.join(run, name): os.path.join(folder, revision, model)
               for name, revision in [("ckpt.pt", "main"), *((name, name.removesuffix(".pt")) for _, name in marks)]}
    for target in targets.values():
        check_target(target, options.get("force"))
    for path, target in targets.items():
        export_folder(path, target, **options)
        options["blimp"] = None                                         # the scores are those of main
    return list(targets.values())


# ---------------------------------------------------------------------------------------------------------------------
# Folders: reading


def read_json(path):
    """The dictionary in a JSON file. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as f:
            tree = json.load(f)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is not a JSON dictionary; copy it again")
    return tree


def read_scores(path):
    """What eval_blimp.py --json wrote, as far as the model card tells of it. Raises UserError."""
    scores = read_json(path)
    groups = scores.get("phenomena") or scores.get("paradigms") or {}
    if not isinstance(groups, dict) or not all(isinstance(g, dict) and "pairs" in g and isinstance(g.get("accuracy"), float) for g in [scores, *groups.values()]):
        raise UserError(f"{path}: no accuracy in it; give what eval_blimp.py --json wrote")
    return scores


def read_weights(folder):
    """{name: tensor} from a folder's model.safetensors, its shards, or pytorch_model.bin. Nothing in them is executed. Raises UserError."""
    paths = [path for name in ("model.safetensors", "pytorch_model.bin") if os.path.isfile(path := os.path.join(folder, name))][:1]
    index = os.path.join(folder, "model.safetensors.index.json")
    if not paths and os.path.isfile(index):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) and shard == os.path.basename(shard) for shard in shards.values()):
            raise UserError(f"{index}: weight_map must name files beside it")
        paths = [os.path.join(folder, shard) for shard in sorted(set(shards.values()))]
    if not paths:
        raise UserError(f"{folder}: no weights in it (model.safetensors, model.safetensors.index.json or pytorch_model.bin)")
    weights = {}
    for path in paths:
        try:
            if path.endswith(".bin"):
                weights |= checkpoint.unpack(path)
            else:
                weights |= safetensors.load_file(path)                  # checks that the header's tensors fill the file exactly
        except Exception as e:                                          # load_file raises several kinds
            raise UserError(f"{path}: is missing, damaged, or holds more than plain tensors ({str(e).splitlines()[0][:100] if str(e) else type(e).__name__})") from None
    for name, w in weights.items():
        if not checkpoint.plain_tensor(w) or w.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise UserError(f"{folder}: weight {name} is not a plain tensor of floating-point numbers")
    return {name: w.float() for name, w in weights.items()}


def import_folder(folder, path, force=False):
    """Writes checkpoint `path` from a Hugging Face LLaMA folder or a released SLlama; returns its ModelConfig. Raises UserError."""
    if os.path.exists(path) and not force:
        raise UserError(f"{path}: exists; choose another name, or --force to replace it")
    where = os.path.join(folder, "config.json")
    settings, weights = read_json(where), read_weights(folder)
    config = our_config(settings, where)
    if not os.path.isfile(os.path.join(folder, "tokenizer.model")):
        raise UserError(f"{folder}: no tokenizer.model in it; only models with a SentencePiece tokenizer can be converted")
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.model"))
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"{where}: vocab_size is {config.vocab_size}, the tokenizer has {tokenizer.vocab_size} pieces; they must agree")
    if config.attention == "mha":
        config, weights = fold_biases(config, weights, folder)
    weights = fold(config, weights, folder)
    try:
        checkpoint.check_weights(config, weights)
    except UserError as e:
        raise UserError(f"{folder}: {e}") from None
    if config.embedding == "attention":
        print("note: the released attention embedding sees the future; here it is causal, so this model computes something else")
    corpus = f"unknown (converted from {os.path.basename(os.path.abspath(folder))})"
    checkpoint.save(path, checkpoint.make(config, weights, tokenizer.model_bytes, {"corpus": corpus, "versions": {"torch": str(torch.__version__)}}))
    return config


def fold_biases(config, weights, where):
    """(config, weights) of a LLaMA whose attention may have biases: they are zero and go, or it is an unfolded `rra` and becomes that again."""
    attention = {name: w for name, w in weights.items() if ".self_attn." in name and w.dim()}
    biases = [name for name in attention if name.endswith(".bias")]
    if not any(weights[name].any() for name in biases):
        return config, {name: w for name, w in weights.items() if name not in biases}
    quarters = {name: w[:len(w) // 4] for name, w in attention.items()}
    if not all(torch.equal(torch.cat([w] * 4), attention[name]) for name, w in quarters.items()):
        raise UserError(f"{where}: {biases[0]}: attention with biases cannot be converted, except for `rra` as export.py unfolds it")
    return configuration.model_config(vars(config) | {"attention": "rra"}), weights | quarters


def main(argv=None):
    p = argparse.ArgumentParser(description="Checkpoint to Hugging Face folder, and back.")
    p.add_argument("source", metavar="CKPT", help="a checkpoint; with --all-checkpoints a run folder; with --from-hf a Hugging Face folder")
    p.add_argument("target", metavar="DIR", help="the folder to write; with --from-hf the checkpoint to write")
    p.add_argument("--from-hf", action="store_true", help="convert a LLaMA folder, or SLlama as released, into a checkpoint")
    p.add_argument("--all-checkpoints", action="store_true", help="ckpt.pt and every chck_NM.pt of a run, each into DIR/REVISION/DIR")
    p.add_argument("--blimp", metavar="FILE", help="what eval_blimp.py --json wrote, for the model card")
    p.add_argument("--license", default="unknown", metavar="ID", help="licence of the weights for the model card, such as mit")
    p.add_argument("--force", action="store_true", help="write even where something else is")
    args = p.parse_args(argv)
    if safetensors is None:
        raise UserError("the package safetensors is missing; pip install -r requirements-dev.txt")
    if not os.path.isdir(args.source) and (args.from_hf or args.all_checkpoints):
        raise UserError(f"{args.source}: no such folder")
    if args.from_hf:
        print(f"parameters: {sum(parameter_counts(import_folder(args.source, args.target, args.force)).values())}\ncheckpoint: {args.target}")
        return
    options = {"blimp": read_scores(args.blimp) if args.blimp else None, "license": args.license, "force": args.force}
    if args.all_checkpoints:
        print("\n".join("folder: " + target for target in export_run(args.source, args.target, **options)))
        print(UPLOAD.format(folder=args.target.rstrip("/"), name=os.path.basename(os.path.abspath(args.target))))
    else:
        print(f"numbers: {export_folder(args.source, args.target, **options)}\nfolder: {args.target}")


UPLOAD = """On the Hub each revision is a branch of one repository:
  for r in $(ls {folder}); do hf upload USER/{name} {folder}/$r/{name} . --revision $r; done
Given a folder, the BabyLM pipeline ignores --revision_name but for the place of the results: name both, such as
  --model_path_or_name {folder}/chck_1M/{name} --revision_name chck_1M"""


# ---------------------------------------------------------------------------------------------------------------------
# Model card


def shown(value):
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def table(*rows):
    """A Markdown table; the first row is its header."""
    rows = [[shown(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def model_card(ckpt, numbers, name, blimp, license):
    """README.md of the folder: Hugging Face's metadata, then what the model is, saw, scored, and cannot do."""
    c, p, counts = ckpt.config, ckpt.provenance, parameter_counts(ckpt.config)
    corpus, sources, train = p.get("corpus", "unknown"), (p.get("data") or {}).get("sources"), (p.get("settings") or {}).get("train")
    metrics = [(corpus, "validation", kind, p[key]) for kind, key in (("loss", "val_loss"), ("bits_per_byte", "val_bits_per_byte")) if isinstance(p.get(key), float)]
    metrics += [("BLiMP", "blimp", "accuracy", blimp["accuracy"])] if blimp else []
    results = [{"task": {"type": "text-generation"}, "dataset": {"name": data, "type": kind}, "metrics": [{"type": metric, "value": value}]}
               for data, kind, metric, value in metrics]
    metadata = {"language": ["en"], "license": license, "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["babylm", "llama", "sllama"]}
    metadata |= {"metrics": sorted({m[2] for m in metrics}), "model-index": [{"name": name, "results": results}]} if metrics else {}
    scores = "Not scored when this was exported."
    if blimp:
        groups = blimp.get("phenomena") or blimp.get("paradigms") or {}
        scores = (f"Strict accuracy (a tie is wrong), mean over paradigms: **{100 * blimp['accuracy']:.2f} %** of {shown(blimp.get('pairs'))} pairs.\n\n"
                  + table(["", "accuracy, %", "pairs"], *([group, f"{100 * g['accuracy']:.2f}", g["pairs"]] for group, g in groups.items())))
    run = ("preset", "steps", "tokens", "words", "epochs", "train_loss", "val_loss", "val_bits_per_byte", "seconds", "device", "dtype")
    run = [[key, p[key]] for key in run if p.get(key) is not None]
    settings = [[key, value] for key, value in (train or {}).items() if key not in ("out", "resume", "device")]
    return CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True), name=name, corpus=corpus, c=c, kv=c.num_key_value_heads or c.num_attention_heads,
        tricks=", ".join(f"`{key}: {getattr(c, key)}`" for key in ("embedding", "attention", "mlp", "layer_sharing")), total=sum(counts.values()), numbers=numbers,
        parts=", ".join(f"{part} {count:,}" for part, count in counts.items()), license=license, sha=ckpt.sha256,
        sources=table(["source", "bytes", "words"], *([s.get("name"), s.get("bytes"), s.get("words")] for s in sources)) if sources else "What it is made of is not recorded.",
        run=table(["", ""], *run) if run else "Not recorded.", settings=f"\n\nSettings:\n\n{table(['train.', ''], *settings)}" if settings else "",
        scores=scores)


CARD = """---
{metadata}---
# {name}

A small English language model, trained from scratch. Training text: {corpus}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
text = tokenizer("The cat", return_tensors="pt")
print(tokenizer.decode(model.generate(**text, max_length=50, temperature=0.7, do_sample=True)[0], skip_special_tokens=True))
```

## Architecture
LLaMA with {c.num_hidden_layers} layers, hidden size {c.hidden_size}, {c.num_attention_heads} query and {kv} key-value heads, MLP width {c.intermediate_size},
context {c.max_position_embeddings} tokens, vocabulary {c.vocab_size} (SentencePiece BPE with byte fallback); {tricks}.

**{total:,} parameters** were trained: {parts}. This folder is the same function as a plain LLaMA, with shared and compressed weights written out: {numbers:,} numbers.

## Data
{sources}

## Training
{run}{settings}

## BLiMP
{scores}

## Limitations
So small a model, of so little text, knows few facts and repeats the biases of its sources; it was not made to follow instructions or to be safe.
Each line (or document) of its training text began with BOS, as `tokenizer(text)` does, and none ended with EOS: generation stops at max_length.

## Licence
`{license}`. The training texts have licences of their own.

## Citation
- SLlama: Omolaoye, Owoyele and de Melo, EMNLP 2025, doi:10.18653/v1/2025.emnlp-main.1198
- BLiMP: Warstadt, Parrish, Liu, Mohananey, Peng, Wang and Bowman, TACL 8 (2020), doi:10.1162/tacl_a_00321
- BabyLM: Warstadt, Mueller, Choshen et al., CoNLL 2023, doi:10.18653/v1/2023.conll-babylm.1

Written by export.py from the checkpoint with SHA-256 {sha}.
"""

if __name__ == "__main__":
    commands.run(main)
