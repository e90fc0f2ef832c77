"""Learning from teachers: what is learned, and which teachers are refused."""
import pytest
import torch
import torch.nn.functional as F

import train
from conftest import TINY
from lab import checkpoint, distil
from lab.files import UserError
from lab.settings import load_config
from model import Model


@pytest.fixture
def teachers(project):
    """Two checkpoints of the tiny corpus, of different seeds."""
    paths = []
    for seed in (1, 2):
        train.main([*TINY, f"train.seed={seed}", f"train.out=out/teacher{seed}", "train.max_steps=4"])
        paths.append(f"out/teacher{seed}/ckpt.pt")
    return paths


def test_half_of_the_goal_is_the_mean_of_the_teachers(teachers):
    """The loss is the mean of two cross-entropies, with the text and with the teachers' mean probabilities."""
    config = load_config("sllama", TINY)
    data, _, _, tokenizer = train.load_data(config)
    student, models = Model(config.model), distil.load(teachers, tokenizer, data.T)
    ids, targets = data.get_batch(0, 3)
    mean = (models[0](ids).softmax(-1) + models[1](ids).softmax(-1)) / 2
    assert not torch.allclose(mean, models[0](ids).softmax(-1))
    log_q = student(ids).log_softmax(-1)
    soft = -(mean * log_q).sum(-1).mean()
    hard = F.nll_loss(log_q.flatten(0, 1), targets.flatten())
    value = train.batch_loss(student, student.hidden, ids, targets, teachers=models)
    assert value.item() == pytest.approx((hard + soft).item() / 2, rel=1e-6)
    goal = distil.goal(models, ids, targets)
    assert torch.allclose(goal.sum(-1), torch.ones(3, data.T)) and goal.min() >= 0
    assert (goal.gather(-1, targets[..., None]) >= 0.5).all()


def test_a_run_with_teachers(teachers):
    settings = [*TINY, f"train.teachers=[{teachers[0]}, {teachers[1]}]"]
    train.main([*settings, "train.out=out/whole"])
    train.main([*TINY, "train.out=out/alone"])
    whole, alone = (checkpoint.load(f"out/{name}/ckpt.pt") for name in ("whole", "alone"))
    assert whole.provenance["settings"]["train"]["teachers"] == teachers
    assert any(not torch.equal(w, alone.weights[name]) for name, w in whole.weights.items())


def test_teachers_that_are_refused(teachers, project):
    with pytest.raises(UserError, match="train.teachers: .* reads 32 tokens at most, the windows have 64"):
        train.main([*TINY, f"train.teachers=[{teachers[0]}]", "model.max_position_embeddings=64"])
    with pytest.raises(UserError, match="nowhere.pt: no such file"):
        train.main([*TINY, "train.teachers=[nowhere.pt]"])
    with pytest.raises(UserError, match="teachers: mntp and z_loss"):
        train.main([*TINY, f"train.teachers=[{teachers[0]}]", "train.mntp=0.5"])
    tree = checkpoint.read(teachers[0])
    tree["tokenizer"] = tree["tokenizer"].clone()
    tree["tokenizer"][-1] += 1                                          # still readable, but another one
    checkpoint.save("other.pt", tree)
    with pytest.raises(UserError, match="other.pt has another tokenizer"):
        train.main([*TINY, "train.teachers=[other.pt]"])
