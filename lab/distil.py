"""Learning from teachers: models of the same tokenizer, which were trained on the same text.

Each token is learned half from the text and half from the mean of what the teachers predict there (Hinton, Vinyals and
Dean 2015, arXiv:1503.02531; with two teachers for BabyLM: Timiryasov and Tastet 2023, arXiv:2308.02019).
"""
import torch
import torch.nn.functional as F

from lab import checkpoint
from lab.files import UserError

SHARE = 0.5                                                             # of the teachers in what is learned


def load(paths, tokenizer, context):
    """The models of these checkpoints, which read windows of `context` tokens of this tokenizer."""
    teachers = []
    for path in paths:
        teacher, origin = checkpoint.load_model(path)
        if origin.tokenizer.sha256 != tokenizer.sha256:
            raise UserError(f"train.teachers: {path} has another tokenizer; teachers learn from the same data/NAME")
        if origin.config.max_position_embeddings < context:
            raise UserError(f"train.teachers: {path} reads {origin.config.max_position_embeddings} tokens at most, the "
                            f"windows have {context}")
        teachers.append(teacher)
    return teachers


@torch.no_grad()
def goal(teachers, ids, targets):
    """(B, T, V): for each token the probabilities to learn."""
    mean = sum(teacher(ids).float().softmax(-1) for teacher in teachers) / len(teachers)
    text = torch.full_like(targets[..., None], 1 - SHARE, dtype=mean.dtype)
    return mean.mul_(SHARE).scatter_add_(-1, targets[..., None], text)


def loss(model, hidden, ids, targets, teachers):
    """Mean cross-entropy of a batch (B, T) with its goal."""
    logits = model.lm_head(hidden(ids)).float()
    return F.cross_entropy(logits.flatten(0, 1), goal(teachers, ids, targets).flatten(0, 1))
