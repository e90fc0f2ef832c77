"""LLaMA and SLlama in one file.

A plain LLaMA (RMSNorm, rotary positions, SwiGLU, no biases; Touvron et al. 2023) and the four tricks by which SLlama
(Omolaoye, Owoyele, de Melo, EMNLP 2025; code ovasoft/sllama) makes it small, each next to its baseline:

    setting          baseline   trick                 what is saved (h = hidden, V = vocabulary, f = MLP width, L = layers)
    embedding        full       repeat (RRHP)         table V x h/4 instead of V x h, each row tiled four times
                                linear | attention    the same narrow table, widened by a small layer instead
    attention        mha        pwa                   6 h instead of 4 h^2: q, k, v pick rows from one table of six; no output matrix
                                skqa | rra            3 h^2: queries = keys | ~h^2: a quarter of each output, tiled four times
    mlp              full       shared_projection     2 h f instead of 3 h f: the way up is the way down, transposed (SPMLP)
    layer_sharing    none       share | reuse         one attention and MLP per group of layers | L/2 layers, each run twice

Layers are shared by construction: `attention` and `mlp` are lists with one entry per group and layer i uses group(i),
so no copy, save, load or compile can untie them. Weight names are Hugging Face's where they have one.
The loss over the vocabulary never holds a (tokens x V) tensor: see LinearCrossEntropy.
"""
import itertools

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lab.files import UserError

# ---------------------------------------------------------------------------------------------------------------------
# Norm and rotary positions


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rope_table(positions, head_dim, theta):
    """cos and sin, each (positions, head_dim/2): position m turns pair i by the angle m * theta^(-2i/head_dim) (Su et al. 2021)."""
    angles = np.outer(np.arange(positions), theta ** (-np.arange(0, head_dim, 2) / head_dim))
    return tuple(torch.from_numpy(f(angles).astype(np.float32)) for f in (np.cos, np.sin))


def apply_rotary_emb(x, cos, sin):
    """Turns the pairs (i, i + hs/2) of each head. x (B, T, nh, hs); cos, sin (B or 1, T, 1, hs/2)."""
    a, b = x.float().chunk(2, dim=-1)                                   # (B, T, nh, hs/2) each
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class KVCache(list):
    """Keys and values of the tokens so far, one pair per call of an attention, in the order of the calls."""

    def __init__(self):
        super().__init__()
        self.length, self.call = 0, 0

    def extend(self, k, v):
        """Appends k, v (B, nh, T, hs) of the new tokens and returns those of all tokens."""
        if self.call == len(self):
            self.append((k, v))
        else:
            self[self.call] = tuple(torch.cat(pair, dim=2) for pair in zip(self[self.call], (k, v)))
        self.call += 1
        return self[self.call - 1]


def attention(q, k, v, mask, cache):
    """softmax(q k^T / sqrt(hs)) v, causal unless a mask says otherwise. q (B, nh, T, hs); k, v (B, nkv, S, .) -> (B, nh, T, .)"""
    if cache is not None:
        k, v = cache.extend(k, v)
    q = q.to(v.dtype)
    k = k.to(v.dtype)
    B, nh, T, hs = q.shape
    if v.dtype == torch.bfloat16 and v.device.type == "cpu" and q.shape == k.shape and 1 < T <= 1024 and (mask is None or mask.dim() == 2):
        # PyTorch's fused kernel takes 2 to 3 times as long here, forward and backward (bench/attention.py)
        seen = torch.ones(T, T, dtype=torch.bool).tril() if mask is None else mask
        hidden = torch.zeros(T, T, dtype=q.dtype).masked_fill(~seen, -torch.inf)
        some = max(1, 2**22 // T**2)                                    # heads at a time: 8 MB of weights
        y = [torch.baddbmm(hidden, a, b.mT, alpha=hs**-0.5).softmax(-1) @ c for a, b, c in zip(*(t.reshape(B * nh, T, -1).split(some) for t in (q, k, v)))]
        return torch.cat(y).view(B, nh, T, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=nh != k.shape[1])


# ---------------------------------------------------------------------------------------------------------------------
# Attention: the baseline, then each alternative as the smallest difference from it


class Attention(nn.Module):
    """Multi-head attention, with fewer key-value than query heads if asked: 2 h^2 + 2 h h_kv parameters."""

    def __init__(self, config):
        super().__init__()
        h, self.heads = config.hidden_size, config.num_attention_heads
        self.kv_heads = config.num_key_value_heads or self.heads
        self.head_dim = h // self.heads
        self.build(h, self.kv_heads * self.head_dim)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def build(self, h, h_kv):
        self.q_proj = nn.Linear(h, h, bias=False)
        self.k_proj = nn.Linear(h, h_kv, bias=False)
        self.v_proj = nn.Linear(h, h_kv, bias=False)
        self.o_proj = nn.Linear(h, h, bias=False)

    @staticmethod
    def count(h, h_kv):
        """How many parameters `build` makes."""
        return 2 * h * h + 2 * h * h_kv

    def project(self, x):
        """x (B, T, h) -> q (B, T, h), k and v (B, T, h_kv)"""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def output(self, y):
        return self.o_proj(y)

    def forward(self, x, rope, mask=None, cache=None):
        B, T, h = x.shape
        q, k, v = self.project(x)
        q = q.view(B, T, self.heads, self.head_dim)                     # (B, T, nh, hs)
        k = k.view(B, T, self.kv_heads, self.head_dim)                  # (B, T, nkv, hs)
        v = v.view(B, T, self.kv_heads, self.head_dim)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary_emb(q, *rope), apply_rotary_emb(k, *rope)
        y = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, cache)    # (B, nh, T, hs)
        return self.output(y.transpose(1, 2).reshape(B, T, h))          # heads side by side: (B, T, h)


class SharedQueryKey(Attention):
    """skqa: one matrix gives queries and keys: 3 h^2."""

    def build(self, h, h_kv):
        self.q_proj = nn.Linear(h, h, bias=False)
        self.v_proj = nn.Linear(h, h, bias=False)
        self.o_proj = nn.Linear(h, h, bias=False)

    @staticmethod
    def count(h, h_kv):
        return 3 * h * h

    def project(self, x):
        q = self.q_proj(x)
        return q, q, self.v_proj(x)


class PermutatedWeights(Attention):
    """pwa: the rows of W_q, W_k and W_v are picked from one table of six rows, and there is no output matrix: 6 h.

    The picks are the 360 permutations of (0..5) taken four at a time, in itertools' order, one after the other. The
    released code ends there (1440 numbers, so 3 h <= 1440 and an unused 4th part keeps it to h <= 360); here they are
    repeated from the start. All rows come from six, so the three matrices have rank <= 6.
    """

    def build(self, h, h_kv):
        self.shared_weights = nn.Parameter(torch.empty(6, h))
        picks = itertools.cycle(itertools.chain.from_iterable(itertools.permutations(range(6), 4)))
        self.register_buffer("picks", torch.tensor(list(itertools.islice(picks, h + 2 * h_kv))), persistent=False)
        self.widths = (h, h_kv, h_kv)

    @staticmethod
    def count(h, h_kv):
        return 6 * h

    def project(self, x):
        return F.linear(x, self.shared_weights[self.picks]).split(self.widths, dim=-1)

    def output(self, y):
        return y


class RepeatedReducedAttention(Attention):
    """rra: each of q, k, v, o computes a quarter of its output, with bias, and tiles it four times: about h^2."""

    def build(self, h, h_kv):
        self.q_proj = nn.Linear(h, h // 4)
        self.k_proj = nn.Linear(h, h_kv // 4)
        self.v_proj = nn.Linear(h, h_kv // 4)
        self.o_proj = nn.Linear(h, h // 4)

    @staticmethod
    def count(h, h_kv):
        return 2 * (h + 1) * (h // 4) + 2 * (h + 1) * (h_kv // 4)

    def project(self, x):
        return tuple(proj(x).repeat(1, 1, 4) for proj in (self.q_proj, self.k_proj, self.v_proj))

    def output(self, y):
        return self.o_proj(y).repeat(1, 1, 4)


ATTENTION = {"mha": Attention, "skqa": SharedQueryKey, "pwa": PermutatedWeights, "rra": RepeatedReducedAttention}


def attention_class(config):
    if config.attention not in ATTENTION:
        raise UserError(f"model.attention: {config.attention!r}: expected one of {', '.join(ATTENTION)}")
    return ATTENTION[config.attention]


# ---------------------------------------------------------------------------------------------------------------------
# MLP


def relu2(x):
    return F.relu(x).square()


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), SwiGLU with act = silu (Shazeer 2020): 3 h f."""

    def __init__(self, config):
        super().__init__()
        h, f = config.hidden_size, config.intermediate_size
        self.act = {"silu": F.silu, "relu2": relu2}[config.hidden_act]
        self.gate_proj = nn.Linear(h, f, bias=False)
        if config.mlp == "full":
            self.up_proj = nn.Linear(h, f, bias=False)
        self.down_proj = nn.Linear(f, h, bias=False)
        self.shared = config.mlp == "shared_projection"                 # SPMLP: up = down transposed, 2 h f

    def forward(self, x):
        up = F.linear(x, self.down_proj.weight.T) if self.shared else self.up_proj(x)   # (B, T, f)
        return self.down_proj(self.act(self.gate_proj(x)) * up)


# ---------------------------------------------------------------------------------------------------------------------
# Embedding: what widens a row of h/4 numbers to h


class Projector(nn.Module):
    """embedding `linear`: h/4 -> h with bias. embedding `attention`: one causal head over the sequence, then SiLU.

    The released attention projector sees the whole sequence, future included, which breaks a language model; here it is causal.
    """

    def __init__(self, config):
        super().__init__()
        h, e = config.hidden_size, config.hidden_size // config.embedding_factor
        self.attention = config.embedding == "attention"
        if self.attention:
            self.q, self.k, self.v = nn.Linear(e, e), nn.Linear(e, e), nn.Linear(e, h)
        else:
            self.projector = nn.Linear(e, h)

    def forward(self, x, mask=None, cache=None):
        if not self.attention:
            return self.projector(x)
        q, k, v = (proj(x).unsqueeze(1) for proj in (self.q, self.k, self.v))    # (B, 1, T, e), the same, (B, 1, T, h)
        return F.silu(attention(q, k, v, mask, cache).squeeze(1))                   # (B, T, h)


# ---------------------------------------------------------------------------------------------------------------------
# Loss


class LinearCrossEntropy(torch.autograd.Function):
    """Mean of -log softmax(x W^T)[target], and its gradients, a chunk of tokens at a time.

    A chunk's logits (n, V) are made, used for the loss and for both gradients while they are in the cache, and
    overwritten by the next. There is one pass of exp per chunk, and the division by the normaliser s is done on the small
    side of each product:
        dx = (e W) / s - W[target]        dW = e^T (x / s) - onehot^T x        with e = exp(logits - shift), s = sum(e)
    The shift, a row's largest logit, is only needed where exp could overflow; as |x . w| <= |x| |w|, that is mostly known not to be.
    z_loss adds z (log s)^2 per token, which pulls the normaliser towards 1 (PaLM, section 5).
    """

    @staticmethod
    def forward(ctx, x, weight, targets, z_loss, dtype, need_grad):
        """x (N, h), weight (V, h), targets (N) with -100 = not scored; dtype of the matrix products."""
        keep, t = (targets >= 0)[:, None], targets.clamp(min=0)         # (N, 1), (N)
        xs, w = x.to(dtype), weight.to(dtype)
        (N, h), V = x.shape, len(w)
        size = min(N, chunk_size(V, dtype, x.device))
        buffer = torch.empty(size, V, dtype=dtype, device=x.device)
        dx = torch.empty(N, h, dtype=torch.float32, device=x.device) if need_grad else None
        dw = torch.zeros(h, V, dtype=torch.float32, device=x.device) if need_grad else None
        safe = dtype != torch.float16 and xs.float().norm(dim=1).max() * w.float().norm(dim=1).max() < 60
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        for i in range(0, N, size):
            xc, tc, kc = xs[i:i + size], t[i:i + size, None], keep[i:i + size]          # (n, h), (n, 1), (n, 1)
            e = torch.mm(xc, w.T, out=buffer[:len(xc)])                 # logits (n, V)
            shift = 0 if safe else e.amax(1, keepdim=True)
            target_logit = (e.gather(1, tc) - shift).float()            # (n, 1)
            e = e.exp_() if safe else e.sub_(shift).exp_()
            s = sum(part.sum(1, keepdim=True).float() for part in e.split(2048, dim=1))     # (n, 1); a sum in bfloat16 is rounded to 8 bits
            log_s = s.log()
            z = log_s + shift                                           # log of the normaliser
            total += torch.where(kc, log_s - target_logit + z_loss * z.square(), 0).sum()
            if need_grad:
                slope = torch.where(kc, (1 + 2 * z_loss * z) / s, 0)    # d loss / d z, over s
                torch.mul(e @ w, slope, out=dx[i:i + size])
                dw += (xc * slope).to(dtype).T @ e
        count = keep.sum().clamp(min=1)
        if need_grad:
            dx -= torch.where(keep, w[t].float(), 0)
            dw = dw.T.contiguous().index_add_(0, t, torch.where(keep, -xs.float(), 0))
            ctx.save_for_backward(dx, dw, count)
            ctx.dtypes = x.dtype, weight.dtype
        return total / count

    @staticmethod
    def backward(ctx, grad):
        dx, dw, count = ctx.saved_tensors
        scale = grad / count
        return (dx * scale).to(ctx.dtypes[0]), (dw * scale).to(ctx.dtypes[1]), None, None, None, None


def chunk_size(vocab, dtype, device):
    """Tokens per chunk: logits of about 32 MB on a CPU (its cache), 512 MB elsewhere (enough work per kernel)."""
    return max(64, (2**25 if device.type == "cpu" else 2**29) // (vocab * dtype.itemsize))


# ---------------------------------------------------------------------------------------------------------------------
# The model


class Block(nn.Module):
    """What a layer has of its own; its attention and MLP belong to its group."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, attention, mlp, rope, mask, cache, dropout):
        x = x + F.dropout(attention(self.input_layernorm(x), rope, mask, cache), dropout)
        return x + F.dropout(mlp(self.post_attention_layernorm(x)), dropout)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        h, V = config.hidden_size, config.vocab_size
        layers, groups, self.order = sharing(config)
        self.lm_head = nn.Linear(h, V, bias=False)
        if not config.tie_word_embeddings:                              # a tied model has no second table: it reads the head's rows
            self.embed_tokens = nn.Embedding(V, h if config.embedding == "full" else h // config.embedding_factor)
        if config.embedding in ("linear", "attention"):
            self.projector = Projector(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(layers))
        self.attention = nn.ModuleList(attention_class(config)(config) for _ in range(groups))
        self.mlp = nn.ModuleList(MLP(config) for _ in range(groups))
        self.norm = RMSNorm(h, config.rms_norm_eps)
        cos, sin = rope_table(config.max_position_embeddings, h // config.num_attention_heads, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)              # (max positions, hs/2)
        self.register_buffer("sin", sin, persistent=False)
        self.gradient_checkpointing = False
        self.z_loss = 0.0
        self.init_weights()

    def init_weights(self):
        """All matrices from N(0, 0.02), norms 1, biases 0, as LLaMA in Hugging Face's library."""
        if self.lm_head.weight.is_meta:                                 # shapes only: nothing to initialise
            return
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, ids, mask=None, cache=None):
        """ids (B, T) -> (B, T, h)"""
        x = F.embedding(ids, self.lm_head.weight if self.config.tie_word_embeddings else self.embed_tokens.weight)
        if self.config.embedding == "repeat":
            return x.repeat(1, 1, self.config.embedding_factor)         # RRHP: [e e e e]
        return x if self.config.embedding == "full" else self.projector(x, mask, cache)

    def hidden(self, ids, positions=None, mask=None, cache=None):
        """The last layer's output after the final norm, (B, T, h).

        ids (B, T); positions (T) or (B, T), default 0, 1, 2, ...; mask: True where a token may look, broadcast to
        (B, heads, T, S), default causal; cache: the tokens before `ids`, which it is extended by.
        """
        T = ids.shape[1]
        past = cache.length if cache is not None else 0
        if positions is None:
            if past + T > self.config.max_position_embeddings:
                raise ValueError(f"{past + T} tokens do not fit into the context of {self.config.max_position_embeddings}")
            cos, sin = self.cos[past:past + T], self.sin[past:past + T]
        else:
            cos, sin = self.cos[positions], self.sin[positions]         # ([B,] T, hs/2)
        rope = tuple(t.view(-1, T, 1, t.shape[-1]) for t in (cos, sin))         # (B or 1, T, 1, hs/2)
        if past and T > 1 and mask is None:
            mask = torch.ones(T, past + T, dtype=torch.bool, device=ids.device).tril(past)
        if cache is not None:
            cache.call = 0
        dropout = self.config.dropout if self.training else 0.0

        x = F.dropout(self.embed(ids, mask, cache), dropout)            # (B, T, h)
        for layer, group in self.order:
            args = (x, self.attention[group], self.mlp[group], rope, mask, cache, dropout)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.layers[layer], *args, use_reentrant=False)
            else:
                x = self.layers[layer](*args)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def forward(self, ids, targets=None):
        """Logits (B, T, V), or with targets (B, T), -100 = not scored, the mean next-token loss."""
        x = self.hidden(ids)
        if targets is None:
            return self.lm_head(x)
        return self.loss(x, targets)

    def loss(self, x, targets):
        """Mean loss of hidden states x (B, T, h) against targets (B, T), which are the ids one step ahead."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            return LinearCrossEntropy.apply(x.flatten(0, 1), self.lm_head.weight, targets.flatten(), self.z_loss, dtype, torch.is_grad_enabled())

    @torch.no_grad()
    def step(self, ids, cache):
        """Logits (B, V) of the token after ids (B, T), in float32; the cache holds what came before and takes ids in."""
        return self.lm_head(self.hidden(ids, cache=cache)[:, -1]).float()


def sharing(config):
    """(number of layers, number of groups, the (layer, group) to run, in order).

    share: layer i uses group i * num_groups // L, its norms stay its own. reuse: L/2 layers, each twice in a row, norms included.
    """
    L = config.num_hidden_layers
    if config.layer_sharing == "reuse":
        return L // 2, L // 2, [(i // 2, i // 2) for i in range(L)]
    groups = config.num_groups if config.layer_sharing == "share" else L
    return L, groups, [(i, i * groups // L) for i in range(L)]


def parameter_counts(config):
    """Parameters by part, in closed form: {"embedding", "attention", "mlp", "norms", "head"}."""
    h, V, f, e = config.hidden_size, config.vocab_size, config.intermediate_size, config.hidden_size // config.embedding_factor
    hs = h // config.num_attention_heads
    kv = (config.num_key_value_heads or config.num_attention_heads) * hs
    layers, groups, _ = sharing(config)
    embedding = {"full": 0 if config.tie_word_embeddings else V * h, "repeat": V * e, "linear": V * e + (e + 1) * h,
                 "attention": V * e + 2 * (e + 1) * e + (e + 1) * h}[config.embedding]
    attention = attention_class(config).count(h, kv) + 2 * hs * config.qk_norm
    mlp = (3 if config.mlp == "full" else 2) * h * f
    return {"embedding": embedding, "attention": groups * attention, "mlp": groups * mlp, "norms": (2 * layers + 1) * h, "head": V * h}
