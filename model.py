"""LLaMA and SLlama in one file that needs only PyTorch and NumPy: copy it out and it works.

A plain LLaMA (RMSNorm, rotary positions, SwiGLU, no biases; Touvron et al. 2023) and the four tricks by which SLlama
(Omolaoye, Owoyele, de Melo, EMNLP 2025; code ovasoft/sllama) makes it small, each beside its baseline:

    setting          baseline   trick                what is saved (h hidden size, V vocabulary, f MLP width, L layers)
    embedding        full       repeat (RRHP)        table V x h/4 instead of V x h, each row tiled four times
                                linear | attention   the same narrow table, widened by a small layer instead
    attention        mha        pwa                  6 h instead of 4 h^2: q, k, v pick rows from one table of six
                                skqa | rra           3 h^2: queries = keys | ~h^2: a quarter of each output, tiled
    mlp              full       shared_projection    2 h f instead of 3 h f: the way up is the way down, transposed
    layer_sharing    none       share | reuse        one attention and MLP per group of layers | L/2 layers, run twice

Layers are shared by construction: `attention` and `mlp` are lists with one entry per group and layer i uses group(i),
so copying, saving, loading or compiling cannot untie them. Weight names are Hugging Face's where they have one.

    model = Model(ModelConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                              intermediate_size=128))
    model(ids, targets).backward()                                      # ids, targets: (B, T); targets one token ahead
    for token, probability in model.generate([1], max_tokens=20): ...

A checkpoint from train.py is a dictionary, and so is the model that comes with the project:

    saved = torch.load("models/llama-3m.pt", weights_only=True)
    model = Model(ModelConfig(**saved["model"])).eval()
    model.load_state_dict(saved["weights"])
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
import itertools
import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# ----------------------------------------------------------------------------------------------------------------------
# Settings


@dataclass
class ModelConfig:
    """Shape and tricks of a model, under Hugging Face's names where they have one. The defaults are a plain LLaMA's."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int  # width of the MLP
    num_key_value_heads: int | None = None  # None: as many as attention heads
    max_position_embeddings: int = 256  # context, tokens
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False  # one matrix for embedding and head
    embedding: Literal["full", "repeat", "linear", "attention"] = "full"
    embedding_factor: int = 4  # the narrow tables' rows are hidden_size / this
    attention: str = "mha"  # a name in ATTENTION below
    mlp: Literal["full", "shared_projection"] = "full"
    layer_sharing: Literal["none", "share", "reuse"] = "none"
    num_groups: int = 1  # of layers, each with weights of its own, for `share`
    dropout: float = 0.0  # on the embedding and both residual branches

    def problems(self) -> list[str]:
        """Why it cannot be built, each reason as `key: reason`; empty if it can."""
        return list(out_of_range(self)) or list(conflicts(self))


# ----------------------------------------------------------------------------------------------------------------------
# Norm and rotary positions


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 (Zhang and Sennrich 2019).

    Its output goes into several matrix products, so it is cast to their type here, once.
    """

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(product_dtype(x))


def rope_table(positions, head_dim, theta):
    """cos and sin, each (positions, hs): position m turns pair i by m * theta^(-2i/hs) radians (Su et al. 2021).

    Pair i is a = x[i] and b = x[i + hs/2] of a head, and becomes (a cos - b sin, b cos + a sin). So cos is here twice,
    once for a and once for b; and so is sin, first with its minus sign, to be multiplied by b and a.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)  # (hs/2)
    angles = np.outer(np.arange(positions), frequencies)  # (positions, hs/2)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return torch.from_numpy(np.hstack((cos, cos))), torch.from_numpy(np.hstack((-sin, sin)))


def apply_rotary_emb(x, cos, sin):
    """Turns the pairs (a, b) of each head in float32. x (B, T, nh, hs); cos, sin (B or 1, T, 1, hs)."""
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((b, a), dim=-1) * sin).to(x.dtype)


# ----------------------------------------------------------------------------------------------------------------------
# Attention: the baseline, then each trick as the smallest difference from it


def attend(q, k, v, mask=None):
    """softmax(q k^T / sqrt(hs)) v: q (B, nh, T, hs); k (B, nkv, S, hs); v (B, nkv, S, dv) -> (B, nh, T, dv).

    Causal unless a mask says otherwise: True where a token may look, broadcast to (B, nh, T, S).
    """
    if fused_kernel_is_slow(q, k, mask):
        return attend_written_out(q, k, v, mask)
    causal = mask is None and q.shape[2] > 1  # a single token sees everything before it
    grouped = q.shape[1] != k.shape[1]  # several heads of q share one of k and v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


class Attention(nn.Module):
    """mha: multi-head attention, with fewer key-value than query heads if asked: 2 h^2 + 2 h h_kv parameters."""

    def __init__(self, config):
        super().__init__()
        h, self.heads = config.hidden_size, config.num_attention_heads
        self.kv_heads = config.num_key_value_heads or self.heads
        self.head_dim = h // self.heads
        self.build(h, self.kv_heads * self.head_dim)

    def build(self, h, h_kv):
        self.q_proj = nn.Linear(h, h, bias=False)
        self.k_proj = nn.Linear(h, h_kv, bias=False)
        self.v_proj = nn.Linear(h, h_kv, bias=False)
        self.o_proj = nn.Linear(h, h, bias=False)

    def project(self, x):
        """x (B, T, h) -> q (B, T, h), k and v (B, T, h_kv)"""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def output(self, y):
        return self.o_proj(y)

    def forward(self, x, rope, mask=None, cache=None):
        B, T, h = x.shape
        q, k, v = self.project(x)
        q = q.view(B, T, self.heads, self.head_dim)  # (B, T, nh, hs)
        k = k.view(B, T, self.kv_heads, self.head_dim)  # (B, T, nkv, hs)
        v = v.view(B, T, self.kv_heads, self.head_dim)  # (B, T, nkv, hs)
        turned = apply_rotary_emb(torch.cat((q, k), dim=2), *rope)  # (B, T, nh + nkv, hs): both at once, fewer kernels
        q, k = turned.split((self.heads, self.kv_heads), dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, nh or nkv, T, hs)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, nkv, S, hs): with those of the tokens before
        y = attend(q, k, v, mask)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, h)  # heads side by side
        return self.output(y)


class SharedQueryKey(Attention):
    """skqa: one matrix gives queries and keys: 3 h^2."""

    def build(self, h, h_kv):
        self.q_proj = nn.Linear(h, h, bias=False)
        self.v_proj = nn.Linear(h, h, bias=False)
        self.o_proj = nn.Linear(h, h, bias=False)

    def project(self, x):
        q = self.q_proj(x)
        return q, q, self.v_proj(x)


class PermutatedWeights(Attention):
    """pwa: the rows of W_q, W_k and W_v are picked from one table of six rows, and there is no output matrix: 6 h.

    The picks are the 360 ordered choices of four out of 0..5, in itertools' order, written one after another: 0 1 2 3,
    0 1 2 4, 0 1 2 5, 0 1 3 2, ... After these 1440 numbers they start again (the released code stops there, and needs
    4 h of them, so its h is at most 360). All rows come from six, so the three matrices together have rank <= 6.
    """

    def build(self, h, h_kv):
        self.shared_weights = nn.Parameter(torch.empty(6, h))
        numbers = torch.tensor(list(itertools.permutations(range(6), 4))).flatten()  # (1440)
        picks = numbers[torch.arange(h + 2 * h_kv) % len(numbers)]  # (h + 2 h_kv): which row of the six
        self.register_buffer("picks", picks, persistent=False)
        self.widths = (h, h_kv, h_kv)

    def project(self, x):
        weight = self.shared_weights[self.picks]  # (h + 2 h_kv, h)
        return F.linear(x, weight).split(self.widths, dim=-1)

    def output(self, y):
        return y


class RepeatedReducedAttention(Attention):
    """rra: q, k, v and o each compute a quarter of their output, with bias, and tile it four times: about h^2."""

    def build(self, h, h_kv):
        self.q_proj = nn.Linear(h, h // 4)
        self.k_proj = nn.Linear(h, h_kv // 4)
        self.v_proj = nn.Linear(h, h_kv // 4)
        self.o_proj = nn.Linear(h, h // 4)

    def project(self, x):
        return self.q_proj(x).repeat(1, 1, 4), self.k_proj(x).repeat(1, 1, 4), self.v_proj(x).repeat(1, 1, 4)

    def output(self, y):
        return self.o_proj(y).repeat(1, 1, 4)


ATTENTION = {"mha": Attention, "skqa": SharedQueryKey, "pwa": PermutatedWeights, "rra": RepeatedReducedAttention}

# ----------------------------------------------------------------------------------------------------------------------
# MLP, and what widens a narrow embedding


class MLP(nn.Module):
    """SwiGLU, down(silu(gate(x)) * up(x)) (Shazeer 2020): 3 h f. Shared (SPMLP): up = down^T, 2 h f."""

    def __init__(self, config):
        super().__init__()
        h, f = config.hidden_size, config.intermediate_size
        self.shared = config.mlp == "shared_projection"
        self.gate_proj = nn.Linear(h, f, bias=False)
        if not self.shared:
            self.up_proj = nn.Linear(h, f, bias=False)
        self.down_proj = nn.Linear(f, h, bias=False)

    def forward(self, x):
        up = x @ self.down_proj.weight if self.shared else self.up_proj(x)  # (B, T, f)
        return self.down_proj(F.silu(self.gate_proj(x)) * up)  # (B, T, h)


class LinearProjector(nn.Module):
    """embedding `linear`: h/4 -> h with bias."""

    def __init__(self, e, h):
        super().__init__()
        self.projector = nn.Linear(e, h)

    def forward(self, x, mask, cache):
        return self.projector(x)


class AttentionProjector(nn.Module):
    """embedding `attention`: one causal head over the sequence, h/4 -> h, then SiLU.

    The released one sees the whole sequence, the future included, which breaks a language model; this one is causal.
    """

    def __init__(self, e, h):
        super().__init__()
        self.q = nn.Linear(e, e)
        self.k = nn.Linear(e, e)
        self.v = nn.Linear(e, h)

    def forward(self, x, mask, cache):
        x = x.unsqueeze(1)  # (B, 1, T, e): one head
        q, k, v = self.q(x), self.k(x), self.v(x)  # (B, 1, T, e), (B, 1, T, e), (B, 1, T, h)
        if cache is not None:
            k, v = cache.extend(k, v)
        return F.silu(attend(q, k, v, mask).squeeze(1))  # (B, T, h)


# ----------------------------------------------------------------------------------------------------------------------
# The model


class Block(nn.Module):
    """A layer: its norms are its own, attention and MLP are its group's."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, attention, mlp, rope, mask, cache, dropout):
        x = x + drop(attention(self.input_layernorm(x), rope, mask, cache), dropout)
        return x + drop(mlp(self.post_attention_layernorm(x)), dropout)


def sharing(config):
    """(number of layers, number of groups, the pairs (layer, group) in the order in which they run).

    share: layer i uses group i * num_groups // L and keeps its own norms. reuse: L/2 layers, each run twice in a row,
    norms included.
    """
    L = config.num_hidden_layers
    if config.layer_sharing == "reuse":
        return L // 2, L // 2, [(i // 2, i // 2) for i in range(L)]
    groups = config.num_groups if config.layer_sharing == "share" else L
    return L, groups, [(i, i * groups // L) for i in range(L)]


class Model(nn.Module):
    """A LLaMA or SLlama, newly initialised. Raises ValueError for settings that have problems()."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if problems := config.problems():
            raise ValueError("; ".join(problems))
        self.config = config
        h, V, e = config.hidden_size, config.vocab_size, config.hidden_size // config.embedding_factor
        layers, groups, self.order = sharing(config)
        self.lm_head = nn.Linear(h, V, bias=False)
        if not config.tie_word_embeddings:  # a tied model uses the rows of the head
            self.embed_tokens = nn.Embedding(V, h if config.embedding == "full" else e)
        if config.embedding == "linear":
            self.projector = LinearProjector(e, h)
        elif config.embedding == "attention":
            self.projector = AttentionProjector(e, h)
        self.layers = nn.ModuleList(Block(config) for _ in range(layers))
        self.attention = nn.ModuleList(ATTENTION[config.attention](config) for _ in range(groups))
        self.mlp = nn.ModuleList(MLP(config) for _ in range(groups))
        self.norm = RMSNorm(h, config.rms_norm_eps)
        cos, sin = rope_table(config.max_position_embeddings, h // config.num_attention_heads, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)  # (max positions, hs)
        self.register_buffer("sin", sin, persistent=False)
        self.init_weights()

    def init_weights(self):
        """Matrices from N(0, 0.02), norms 1, biases 0, as for LLaMA in Hugging Face's library."""
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
            else:
                nn.init.ones_(p)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """ids (B, T) -> logits (B, T, V), or with targets (B, T), -100 = not scored, the mean next-token loss."""
        x = self.hidden(ids)
        return self.lm_head(x) if targets is None else self.loss(x, targets)

    def hidden(self, ids, positions=None, mask=None, cache=None, checkpointing=False) -> Tensor:
        """ids (B, T) -> the last layer's output after the final norm, (B, T, h).

        positions: (T) or (B, T), default 0, 1, 2, ... after what is in the cache; mask: True where a token may look,
        broadcast to (B, nh, T, S), default causal; cache: a KVCache of the tokens before; checkpointing: compute each
        layer again in the backward pass instead of keeping what that needs: less memory, more time.
        """
        past = 0 if cache is None else cache.length
        rope = self.rope(ids.shape[1], positions, past)
        dropout = self.config.dropout if self.training else 0.0

        x = drop(self.embed(ids, mask, cache), dropout)  # (B, T, h)
        for layer, group in self.order:
            args = (x, self.attention[group], self.mlp[group], rope, mask, cache, dropout)
            if checkpointing:
                x = checkpoint(self.layers[layer], *args, use_reentrant=False, preserve_rng_state=dropout > 0)
            else:
                x = self.layers[layer](*args)
        return self.norm(x)

    def embed(self, ids, mask=None, cache=None):
        """ids (B, T) -> (B, T, h), the start of the residual stream: in the weights' type, whatever autocast is."""
        table = self.lm_head.weight if self.config.tie_word_embeddings else self.embed_tokens.weight
        x = F.embedding(ids, table)  # (B, T, h) or (B, T, h/4)
        if self.config.embedding == "full":
            return x
        if self.config.embedding == "repeat":
            return x.repeat(1, 1, self.config.embedding_factor)  # RRHP: [e e e e]
        return self.projector(x, mask, cache).to(table.dtype)

    def rope(self, T, positions=None, past=0):
        """cos and sin, each (B or 1, T, 1, hs), of positions (T) or (B, T), default the T after `past` tokens."""
        if positions is None:
            positions = slice(past, past + T)
            if positions.stop > len(self.cos):
                raise ValueError(f"{positions.stop} tokens do not fit into the context of {len(self.cos)}")
        hs = self.cos.shape[1]
        return self.cos[positions].view(-1, T, 1, hs), self.sin[positions].view(-1, T, 1, hs)

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats of hidden states x (B, T, h) against targets (B, T), which are the ids one step ahead.

        The same as F.cross_entropy(self.lm_head(x).flatten(0, 1), targets.flatten()), but the tensor of all logits,
        (B, T, V), is never made.
        """
        return linear_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten())

    def generate(self, ids: list[int], max_tokens: int, seed: int = 0, pick: Callable | None = None) -> Iterator:
        """Yields (token, the probability that the model gave it) for `max_tokens` tokens after `ids`, at least one.

        pick(logits (V), ids so far) -> probabilities (V) to draw from; default: the model's own, softmax(logits).
        A text that outgrows the context goes on from its last tokens, half a context of them.
        """
        device, context = self.lm_head.weight.device, self.config.max_position_embeddings
        generator = torch.Generator().manual_seed(seed)
        ids = list(ids)
        new, cache = ids[-context:], KVCache()
        for _ in range(max_tokens):
            if cache.length + len(new) > context:
                new, cache = ids[-(context // 2) :], KVCache()
            logits = self.step(torch.tensor([new], device=device), cache)[0]  # (V)
            probabilities = logits.softmax(-1)
            chances = probabilities if pick is None else pick(logits, ids)
            token = torch.multinomial(chances.cpu(), 1, generator=generator).item()
            yield token, probabilities[token].item()
            ids.append(token)
            new = [token]

    @torch.no_grad()
    def step(self, ids, cache):
        """Logits (B, V) of the token after ids (B, T), in float32; the cache holds what came before, and then these."""
        x = self.hidden(ids, mask=cache.begin(ids), cache=cache)  # (B, T, h)
        cache.length += ids.shape[1]
        return self.lm_head(x[:, -1]).float()


# ======================================================================================================================
# Appendix: what a first reader may skip
#
# The key-value cache, the loss in chunks, what a CPU needs, parameters by part, what cannot be built.
# ======================================================================================================================


class KVCache:
    """Keys and values of the tokens so far: a pair for each attention of a pass, in the order in which they run."""

    def __init__(self):
        self.pairs = []  # (k, v), each (B, nkv, length, hs)
        self.length = 0  # tokens
        self.next = 0  # the pair that the pass comes to next

    def begin(self, ids):
        """Starts a pass over ids (B, T); returns its mask (T, length + T), or None where causal attention will do."""
        self.next = 0
        T = ids.shape[1]
        if self.length == 0 or T == 1:
            return None
        return torch.ones(T, self.length + T, dtype=torch.bool, device=ids.device).tril(self.length)

    def extend(self, k, v):
        """Appends k and v (B, nkv, T, hs) of the new tokens; returns those of all tokens."""
        if self.next == len(self.pairs):
            self.pairs.append((k, v))
        else:
            old_k, old_v = self.pairs[self.next]
            self.pairs[self.next] = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
        self.next += 1
        return self.pairs[self.next - 1]


def own_line(ids, start):
    """ids (B, T) -> (B, 1, T, T), True where a token may look: back to the last `start` and no further.

    None, which lets it look at all tokens before it, if `start` is None.
    """
    if start is None:
        return None
    T = ids.shape[1]
    line = (ids == start).cumsum(1)  # (B, T): which line of its window it is in
    same = line[:, None, :, None] == line[:, None, None, :]
    return same & torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()


def product_dtype(x):
    """The type in which x is multiplied by matrices: autocast's where that is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# ----------------------------------------------------------------------------------------------------------------------
# The loss in chunks


def linear_cross_entropy(x, weight, targets):
    """F.cross_entropy(x @ weight.T, targets) in less memory: x (N, h), weight (V, h), targets (N)."""
    dtype, need_grad = product_dtype(x), torch.is_grad_enabled()
    with torch.autocast(x.device.type, enabled=False):
        return LinearCrossEntropy.apply(x, weight, targets, dtype, need_grad)


class LinearCrossEntropy(torch.autograd.Function):
    """Mean of -log softmax(x W^T)[target], and its gradients, a chunk of tokens at a time.

    A chunk's logits (n, V) become its probabilities p, serve the loss and both gradients while they are still in the
    processor's cache, and are overwritten by those of the next:
        dx = p W - W[target]        dW = p^T x - onehot^T x
    """

    @staticmethod
    def forward(ctx, x, weight, targets, dtype, need_grad):
        """x (N, h), weight (V, h), targets (N) with -100 = not scored; dtype of the matrix products."""
        scored, target = (targets >= 0)[:, None], targets.clamp(min=0)[:, None]  # (N, 1) each
        xs, w = torch.where(scored, x, 0).to(dtype), weight.to(dtype)  # rows of zeros add nothing to dw
        (N, h), V = x.shape, len(w)
        size = chunk_size(N, V, dtype, x.device)
        buffer = torch.empty(size, V, dtype=dtype, device=x.device)
        least = 2**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny  # what p = 0 counts as
        if need_grad:
            dx = torch.empty(N, h, dtype=torch.float32, device=x.device)
            dw = torch.zeros(V, h, dtype=torch.float32, device=x.device)
        log_p = torch.empty(N, 1, dtype=torch.float32, device=x.device)  # of the targets
        for start in range(0, N, size):
            chunk = slice(start, start + size)
            logits = torch.mm(xs[chunk], w.T, out=buffer[: len(xs[chunk])])  # (n, V)
            p = torch.softmax(logits, 1, out=logits if x.device.type == "cpu" else None)  # (n, V)
            log_p[chunk] = p.gather(1, target[chunk]).clamp(min=least).float().log()
            if need_grad:
                dx[chunk] = p @ w
                dw += p.T @ xs[chunk]
        count = scored.sum().clamp(min=1)
        if need_grad:
            target = target[:, 0]
            dx = torch.where(scored, dx - w[target].float(), 0)
            dw.index_add_(0, target, -xs.float())
            ctx.save_for_backward(dx, dw, count)
            ctx.dtypes = x.dtype, weight.dtype
        return -torch.where(scored, log_p, 0).sum() / count

    @staticmethod
    def backward(ctx, grad):
        dx, dw, count = ctx.saved_tensors
        scale = grad / count
        return (dx * scale).to(ctx.dtypes[0]), (dw * scale).to(ctx.dtypes[1]), None, None, None


def chunk_size(tokens, vocab, dtype, device):
    """Tokens per chunk: logits of about 32 MB on a CPU, for its cache; elsewhere equal chunks of at most 512 MB."""
    memory = 2**25 if device.type == "cpu" else 2**29
    most = max(64, memory // (vocab * dtype.itemsize))
    if device.type == "cpu":
        return min(tokens, most)
    return math.ceil(tokens / math.ceil(tokens / most))  # so that no small chunk is left over


# ----------------------------------------------------------------------------------------------------------------------
# What a CPU needs


def fused_kernel_is_slow(q, k, mask):
    """bfloat16 on a CPU, where PyTorch's kernel takes 2 to 3 times as long as what follows (results/speed.md)."""
    slow_there = q.dtype == torch.bfloat16 and q.device.type == "cpu" and 1 < q.shape[2] <= 1024
    return slow_there and q.shape == k.shape and (mask is None or mask.shape[-1] == mask.shape[-2])


def attend_written_out(q, k, v, mask):
    """`attend` as two products and a softmax, a few heads at a time: 8 MB of attention weights stay in the cache."""
    B, nh, T, hs = q.shape
    visible = torch.ones(T, T, dtype=torch.bool).tril() if mask is None else mask
    bias = torch.zeros(visible.shape, dtype=q.dtype).masked_fill(~visible, -torch.inf)
    heads = max(1, 2**22 // T**2)
    q, k, v = (t.reshape(B * nh, T, -1).split(heads) for t in (q, k, v))  # lists of (heads, T, hs)
    if bias.dim() == 2:
        biases = [bias] * len(q)  # one for all
    else:
        biases = bias.expand(B, nh, T, T).flatten(0, 1).split(heads)
    parts = []
    for some_q, some_k, some_v, bias in zip(q, k, v, biases):
        scores = torch.baddbmm(bias, some_q, some_k.mT, alpha=hs**-0.5)  # (heads, T, T)
        parts.append(scores.softmax(-1) @ some_v)  # (heads, T, dv)
    return torch.cat(parts).view(B, nh, T, -1)


def drop(x, p):
    """Dropout. On a CPU PyTorch draws a number for each element, one after another; here each draw serves eight.

    Each gets a byte, which knows p in 256ths, so there 0.1 is 0.1016. A p that rounds to none is left to PyTorch.
    """
    limit = round(256 * p)  # a byte below it drops
    if limit == 0 or x.device.type != "cpu":
        return F.dropout(x, p)
    numbers = torch.randint(-(2**63), 2**63 - 1, ((x.numel() + 7) // 8,))
    kept = numbers.view(torch.uint8)[: x.numel()].view(x.shape) >= limit
    return x * kept * (256 / (256 - limit))


# ----------------------------------------------------------------------------------------------------------------------
# Parameters by part, and what cannot be built


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters by part: {"embedding", "attention", "mlp", "norms", "head"}. Takes no memory."""
    with torch.device("meta"):
        model = Model(config)

    def size(*modules):
        return sum(p.numel() for name, p in model.named_parameters() if name.split(".")[0] in modules)

    return {
        "embedding": size("embed_tokens", "projector"),
        "attention": size("attention"),
        "mlp": size("mlp"),
        "norms": size("layers", "norm"),
        "head": size("lm_head"),
    }


LIMITS = {"rms_norm_eps": (1e-12, 0.1), "rope_theta": (1e-3, 1e12), "dropout": (0, 0.9)}
WHOLE = (1, 2**20)  # of any other number: a mistyped one should not ask for more than any memory holds


def out_of_range(config):
    """Yields settings that are impossible by themselves, as `key: reason`."""
    for field in fields(config):
        key, value = field.name, getattr(config, field.name)
        if isinstance(value, str):
            choices = tuple(ATTENTION) if key == "attention" else get_args(field.type)
            if value not in choices:
                yield f"{key}: {value!r}: expected one of {', '.join(choices)}"
        elif value is not None and not isinstance(value, bool):
            low, high = LIMITS.get(key, WHOLE)
            if value < low:
                yield f"{key}: {value} must be at least {low}"
            elif not value <= high:  # NaN too
                yield f"{key}: {value} must be at most {high}"


def conflicts(config):
    """Yields settings that are possible by themselves but not together, as `key: reason`."""
    h, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    kv_heads = config.num_key_value_heads or heads
    head_dim = h // heads
    if h % heads:
        yield f"num_attention_heads: {heads} does not divide hidden_size {h}"
    elif head_dim % 2:
        yield f"num_attention_heads: hidden_size/heads = {head_dim} must be even, as RoPE turns pairs of numbers"
    if heads % kv_heads:
        yield f"num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}"
    if config.attention == "skqa" and kv_heads != heads:
        yield "num_key_value_heads: `skqa` uses one matrix for queries and keys, so these need as many heads"
    if config.attention == "rra" and head_dim * kv_heads % 4:
        yield f"attention: `rra` repeats a quarter of the width, and {head_dim * kv_heads} is not a multiple of 4"
    if config.embedding != "full" and h % config.embedding_factor:
        yield f"embedding_factor: {config.embedding_factor} does not divide hidden_size {h}"
    if config.embedding != "full" and config.tie_word_embeddings:
        yield f"tie_word_embeddings: the table of embedding `{config.embedding}` is narrower than the head; set false"
    if config.layer_sharing == "share" and config.num_groups > layers:
        yield f"num_groups: {config.num_groups} groups for {layers} layers"
    if config.layer_sharing == "reuse" and layers % 2:
        yield f"layer_sharing: `reuse` runs L/2 layers twice each, so num_hidden_layers {layers} must be even"
