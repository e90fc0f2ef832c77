"""Checkpoint <-> Hugging Face folder.

    python export.py CKPT DIR                     a checkpoint becomes a plain LLaMA for transformers, lm-eval, ...
    python export.py RUN NAME --all-checkpoints   ckpt.pt becomes NAME/main/NAME, chck_1M.pt NAME/chck_1M/NAME, ...
    python export.py --from-hf DIR CKPT           a LLaMA folder, or SLlama as released, becomes a checkpoint

SLlama's tricks save parameters, not a different kind of function, so a model is exported by unfolding them: the narrow
table is tiled to its full width, the picked or repeated rows of the attention are written out, the transpose becomes
up_proj, shared layers are copied. No custom code is needed to load the result. Only what a LLaMA cannot compute is
refused: an embedding that attends (`attention`), and normalised queries and keys (`qk_norm`).
"""

import argparse
import json
import os
import re
import tempfile

from lab import cli

import torch

try:
    import safetensors.torch as safetensors
except ImportError:  # training needs it not
    safetensors = None

from lab import checkpoint
from lab import settings as configuration
from lab.files import UserError, atomic_write
from lab.hub.model_card import model_card, read_babylm, read_json, read_scores
from lab.hub.tokenizer_files import tokenizer_files
from model import Model, parameter_counts, sharing
from tokenizer import load as load_tokenizer

WRITER = "sllama-lab"  # in config.json: the folder is ours and may be replaced

# ---------------------------------------------------------------------------------------------------------------------
# Unfolding: our weights -> those of a plain LLaMA


def unfold(model):
    """(settings for config.json, weights by Hugging Face's names) of the LLaMA that computes what `model` does.

    Raises UserError where there is none.
    """
    c = model.config
    if c.embedding == "attention":
        raise UserError(
            "embedding `attention` looks at the tokens before, which no table of a plain LLaMA does; "
            "it cannot be exported"
        )
    if c.qk_norm:
        raise UserError("qk_norm normalises queries and keys, which a plain LLaMA does not; it cannot be exported")
    with torch.no_grad():
        every_token = torch.arange(c.vocab_size)[None]  # (1, V)
        weights = {
            "model.embed_tokens.weight": model.embed(every_token)[0],  # (V, h)
            "model.norm.weight": model.norm.weight,
            "lm_head.weight": model.lm_head.weight,
        }
        for i, (layer, group) in enumerate(model.order):
            mlp = model.mlp[group]
            parts = unfold_attention(model.attention[group], c)
            parts["mlp.gate_proj.weight"] = mlp.gate_proj.weight
            parts["mlp.down_proj.weight"] = mlp.down_proj.weight
            parts["mlp.up_proj.weight"] = mlp.down_proj.weight.T if mlp.shared else mlp.up_proj.weight
            parts |= dict(model.layers[layer].named_parameters())  # the two norms
            weights |= {f"model.layers.{i}.{name}": w for name, w in parts.items()}
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": len(model.order),
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads or c.num_attention_heads,
        "head_dim": c.hidden_size // c.num_attention_heads,
        "hidden_act": c.hidden_act,
        "max_position_embeddings": c.max_position_embeddings,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "attention_bias": c.attention == "rra",
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": c.tie_word_embeddings,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "use_cache": True,
        "torch_dtype": "float32",
        "written_by": WRITER,
    }
    return settings, {name: w.detach().float().clone().contiguous() for name, w in weights.items()}


def unfold_attention(attention, config):
    """The matrices q, k, v (h_kv, h) and o (h, h) that this attention multiplies by, and for `rra` their biases."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    out = {}
    if config.attention == "rra":  # a quarter of the rows, four times
        for name in names:
            quarter = getattr(attention, name)
            out[f"self_attn.{name}.weight"] = quarter.weight.repeat(4, 1)
            out[f"self_attn.{name}.bias"] = quarter.bias.repeat(4)
        return out
    unit = torch.eye(config.hidden_size)[None]  # (1, h, h): h tokens, the unit vectors
    images = (*attention.project(unit), attention.output(unit))  # a matrix is what it makes of them
    for name, image in zip(names, images):
        out[f"self_attn.{name}.weight"] = image[0].T
    return out


# ---------------------------------------------------------------------------------------------------------------------
# And back: the names and settings of a LLaMA folder and of the released SLlama -> ours


def names(config):
    """{our name of a weight: [the names under which a folder may hold it]}.

    Ours are Hugging Face's, except that attention and MLP belong to a group of layers, so layers.I.self_attn.X and
    layers.I.mlp.X of any layer I of the group will do. The release calls PWA's table shared_weights.weight, keeps one
    of skqa's q_proj and k_proj, and SPMLP's matrix as up_proj, down_proj or both.
    """
    leaves = {"shared_weights": ["shared_weights.weight"]}
    if config.attention == "skqa":
        leaves["q_proj.weight"] = ["q_proj.weight", "k_proj.weight"]
    if config.mlp == "shared_projection":
        leaves["down_proj.weight"] = ["down_proj.weight", "up_proj.weight"]
    blocks = {"attention": "self_attn", "mlp": "mlp"}
    order = dict.fromkeys(sharing(config)[2])  # (layer, group), each once
    with torch.device("meta"):
        ours = [name for name, _ in Model(config).named_parameters()]
    out = {}
    for name in ours:
        part, _, rest = name.partition(".")
        if part in blocks:
            group, _, leaf = rest.partition(".")
            members = [layer for layer, its_group in order if its_group == int(group)]
            out[name] = [
                f"model.layers.{layer}.{blocks[part]}.{place}"
                for layer in members
                for place in leaves.get(leaf, [leaf])
            ]
        elif name == "lm_head.weight":
            out[name] = [name, "model.embed_tokens.weight"] if config.tie_word_embeddings else [name]
        else:
            out[name] = ["model." + name]
    return out


def fold(config, held, where):
    """Our weights out of a folder's, which may hold a shared one under any of its names, or repeatedly."""
    out, used = {}, set()
    for name, places in names(config).items():
        found = [place for place in places if place in held]
        if not found:
            raise UserError(f"{where}: weight {places[0]} is missing")
        out[name] = held[found[0]]
        used.update(found)
        for place in found[1:]:
            if not torch.equal(held[place], out[name]):
                raise UserError(
                    f"{where}: {found[0]} and {place} are one weight in this model, but differ here; "
                    "the released code loses shared weights on loading and then saves random ones: "
                    "take the first file it wrote"
                )
    left = [name for name in held if name not in used and not name.endswith("rotary_emb.inv_freq")]
    if left:
        raise UserError(f"{where}: {left[0]} has no place in this model")
    return out


SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "rms_norm_eps",
    "tie_word_embeddings",
    "hidden_act",
)  # keys that mean the same to us


def our_config(settings, where):
    """ModelConfig of a config.json: a LLaMA's, or the released SLlama's with its names of tricks. Raises UserError."""
    released = settings.get("model_type") == "sllama"
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    plain_rope = isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) == "default"
    allowed = [
        ("model_type", released or settings.get("model_type") == "llama", "llama, or the released sllama"),
        ("rope_scaling", plain_rope, "plain rotary positions"),
        ("attention_bias", not settings.get("attention_bias"), "attention without biases"),
        ("mlp_bias", not settings.get("mlp_bias"), "an MLP without biases"),
    ]
    for key, good, expected in allowed:
        if not good:
            raise UserError(f"{where}: {key}: only {expected} can be converted")
    values = {key: settings[key] for key in SAME if key in settings}
    values["max_position_embeddings"] = settings.get("max_position_embeddings", 256 if released else 2048)
    values["rope_theta"] = rope.get("rope_theta", settings.get("rope_theta", 10000.0))
    if released:
        embedding = settings.get("emb_reduction_type", "repeat") or "full"
        sharing_kind = settings.get("layer_reduction_type", "share") or "none"
        values["embedding"] = "attention" if embedding == "attn" else embedding
        values["attention"] = settings.get("attn_reduction_type", "pwa") or "mha"
        values["mlp"] = "shared_projection" if settings.get("mlp_reduction", True) else "full"
        values["layer_sharing"] = sharing_kind
        if sharing_kind == "share":
            values["num_groups"] = settings.get("n_group") or settings.get("num_hidden_layers")
    try:
        config = configuration.model_config(values)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    head_dim = config.hidden_size // config.num_attention_heads
    if settings.get("head_dim") not in (None, head_dim):
        raise UserError(f"{where}: head_dim: only hidden_size / num_attention_heads = {head_dim} can be converted")
    return config


def read_weights(folder):
    """{name: tensor in float32} of a folder's model.safetensors. Raises UserError."""
    path = os.path.join(folder, "model.safetensors")
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; save the model again as one, with transformers' save_pretrained")
    try:
        weights = safetensors.load_file(path)  # its tensors must fill the file exactly
    except Exception as e:  # of several kinds
        reason = " ".join(str(e).split())[:100]
        raise UserError(f"{path}: is damaged ({reason}); copy it again") from None
    for name, w in weights.items():
        if not w.is_floating_point():
            raise UserError(f"{path}: weight {name} is {w.dtype}; only floating-point numbers can be converted")
    return {name: w.float() for name, w in weights.items()}


def import_folder(folder, path, force=False):
    """Writes checkpoint `path` from a Hugging Face LLaMA folder or a released SLlama; returns its ModelConfig.

    Raises UserError.
    """
    if os.path.exists(path) and not force:
        raise UserError(f"{path}: exists; choose another name, or --force to replace it")
    where = os.path.join(folder, "config.json")
    config = our_config(read_json(where), where)
    if not os.path.isfile(os.path.join(folder, "tokenizer.model")):
        raise UserError(f"{folder}: no tokenizer.model in it; only SentencePiece tokenizers can be converted")
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.model"))
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{where}: vocab_size is {config.vocab_size}, the tokenizer has {tokenizer.vocab_size} pieces; "
            "they must agree"
        )
    weights = fold(config, read_weights(folder), folder)
    with checkpoint.reading(folder):
        checkpoint.check_finite(weights)
        checkpoint.build_model(config, weights)
    if config.embedding == "attention":
        print(
            "note: the released attention embedding sees the future; here it is causal, so this model computes "
            "something else"
        )
    corpus = f"unknown (converted from {os.path.basename(os.path.abspath(folder))})"
    provenance = {"corpus": corpus, "versions": {"torch": str(torch.__version__)}}
    checkpoint.save(path, checkpoint.make(config, weights, tokenizer.model_bytes, provenance))
    return config


# ---------------------------------------------------------------------------------------------------------------------
# Folders: writing


def export_folder(path, folder, blimp=None, babylm=None, license="unknown", force=False):
    """Writes the Hugging Face folder of checkpoint `path`; returns how many numbers its weights are.

    blimp, babylm: scores for the model card. Raises UserError, with `folder` as it was.
    """
    check_target(folder, force)
    model, ckpt = checkpoint.load_model(path)
    with checkpoint.reading(path):
        settings, weights = unfold(model)
        tokenizer = ckpt.tokenizer
        eos = tokenizer.eos_id if tokenizer.eos_id >= 0 else None
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos, "pad_token_id": eos}
        numbers = sum(w.numel() for w in weights.values())
        name = os.path.basename(os.path.abspath(folder))
        files = tokenizer_files(tokenizer, ckpt.config.max_position_embeddings) | {
            "generation_config.json": json.dumps(ends | {"do_sample": True}, indent=2),
            "model.safetensors": safetensors.save(weights, metadata={"format": "pt"}),
            "README.md": model_card(ckpt, numbers, name, blimp, babylm, license),
            "config.json": json.dumps(settings | ends, indent=2),
        }
    write_folder(folder, files)
    return numbers


def check_target(folder, force):
    """UserError if `folder` holds what export.py did not write."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder}: is a file; give the name of a folder to write")
    if force or not os.path.isdir(folder) or not os.listdir(folder):
        return
    try:
        ours = read_json(os.path.join(folder, "config.json")).get("written_by") == WRITER
    except UserError:
        ours = False
    if not ours:
        raise UserError(
            f"{folder}: is not empty and was not written by export.py; choose another folder, or "
            "--force to write into it"
        )


def write_folder(folder, files):
    """Writes {name: content} beside, then moves the files into `folder`: a full disk is met before one is touched."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
            for name, content in files.items():
                atomic_write(os.path.join(new, name), content)
            for name in files:
                os.replace(os.path.join(new, name), os.path.join(folder, name))
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}); choose another folder") from None


def export_run(run, folder, **options):
    """Writes a run's ckpt.pt as NAME/main/NAME, its chck_NM.pt as NAME/chck_NM/NAME, where `folder` is NAME.

    The BabyLM pipeline calls a model by the last part of its path, and files its results under that name and the
    revision's. Returns the folders. Raises UserError.
    """
    words = {}
    for name in os.listdir(run):
        if found := re.fullmatch(r"(chck_([\d.]+)M)\.pt", name):
            words[found[1]] = float(found[2])
    if not words:
        raise UserError(f"{run}: no chck_1M.pt, chck_2M.pt, ... in it; set train.checkpoint_words to have them written")
    model = os.path.basename(os.path.abspath(folder))
    targets = {"main": os.path.join(folder, "main", model)}
    for revision in sorted(words, key=words.get):
        targets[revision] = os.path.join(folder, revision, model)
    for target in targets.values():
        check_target(target, options.get("force"))
    for revision, target in targets.items():
        name = "ckpt.pt" if revision == "main" else revision + ".pt"
        export_folder(os.path.join(run, name), target, **options)
        options |= {"blimp": None, "babylm": None}  # the scores are those of main
    return list(targets.values())


UPLOAD = """On the Hub each revision is a branch of one repository:
  python -m lab.hub.babylm upload {folder} USER/{name} --dry-run
Given a folder, the BabyLM pipeline ignores --revision_name but for the place of the results: name both, such as
  --model_path_or_name {folder}/chck_1M/{name} --revision_name chck_1M"""


def main(argv=None):
    p = argparse.ArgumentParser(description="Checkpoint to Hugging Face folder, and back.")
    p.add_argument(
        "source",
        metavar="CKPT",
        help="a checkpoint; with --all-checkpoints a run folder; with --from-hf a Hugging Face folder",
    )
    p.add_argument("target", metavar="DIR", help="the folder to write; with --from-hf the checkpoint to write")
    p.add_argument(
        "--from-hf", action="store_true", help="convert a LLaMA folder, or SLlama as released, into a checkpoint"
    )
    p.add_argument(
        "--all-checkpoints",
        action="store_true",
        help="ckpt.pt and every chck_NM.pt of a run, each into DIR/REVISION/DIR",
    )
    p.add_argument("--blimp", metavar="FILE", help="what eval_blimp.py --json wrote, for the model card")
    p.add_argument("--babylm", metavar="FILE", help="the scores.json of lab.hub.babylm, for the model card")
    p.add_argument(
        "--license", default="unknown", metavar="ID", help="licence of the weights for the model card, such as mit"
    )
    p.add_argument("--force", action="store_true", help="write even where something else is")
    args = p.parse_args(argv)
    if safetensors is None:
        raise UserError("the package safetensors is missing; pip install safetensors")
    if not os.path.isdir(args.source) and (args.from_hf or args.all_checkpoints):
        raise UserError(f"{args.source}: no such folder")
    if args.from_hf:
        config = import_folder(args.source, args.target, args.force)
        print(f"parameters: {sum(parameter_counts(config).values())}\ncheckpoint: {args.target}")
        return
    options = {
        "blimp": read_scores(args.blimp) if args.blimp else None,
        "babylm": read_babylm(args.babylm) if args.babylm else None,
        "license": args.license,
        "force": args.force,
    }
    if args.all_checkpoints:
        for folder in export_run(args.source, args.target, **options):
            print("folder: " + folder)
        name = os.path.basename(os.path.abspath(args.target))
        print(UPLOAD.format(folder=args.target.rstrip("/"), name=name))
    else:
        numbers = export_folder(args.source, args.target, **options)
        print(f"numbers: {numbers}\nfolder: {args.target}")
        print(
            "loads with: AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained of that folder; "
            "its README.md has an example"
        )


if __name__ == "__main__":
    cli.run(main)
