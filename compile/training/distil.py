"""Losses of distillation, and the identity of a teacher. No files but those of a teacher are read.

Sources: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), for the softened
distributions and the factor of the squared temperature, which keeps gradients alike at every temperature.
"""

from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity, log_softmax, mse_loss

from models.store import digest_of


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of softened logits [n, choices], times the temperature squared: [n]."""
    taught = log_softmax(teacher / temperature, -1)
    learned = log_softmax(student / temperature, -1)
    return temperature**2 * (taught.exp() * (taught - learned)).sum(-1)


def top_logprobs(logits: torch.Tensor, top: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``top`` largest softened log-probabilities of each row as float16, and where they are as int32."""
    values, indices = log_softmax(logits / temperature, -1).topk(min(top, logits.shape[-1]))
    return values.to(torch.float16), indices.to(torch.int32)


def top_divergence(
    student: torch.Tensor, values: torch.Tensor, indices: torch.Tensor, temperature: float
) -> torch.Tensor:
    """``divergence`` from what ``top_logprobs`` kept: all choices that were not kept count as one.

    Laws: it is at most ``divergence`` (data processing), and that itself when every choice was kept, both
    but for float16.
    """
    taught = values.float()
    learned = log_softmax(student / temperature, -1).gather(-1, indices.long())
    kept = (taught.exp() * (taught - learned)).sum(-1)
    if indices.shape[-1] == student.shape[-1]:
        return temperature**2 * kept
    rest, left = _rest(taught), _rest(learned)
    return temperature**2 * (kept + rest * (rest.log() - left.log()))


def vector_loss(student: torch.Tensor, teacher: torch.Tensor, cosine: float) -> torch.Tensor:
    """``cosine`` times 1 - cosine, plus the rest times the squared distance per number: [n]."""
    apart = mse_loss(student, teacher, reduction="none").sum(-1)
    return cosine * (1 - cosine_similarity(student, teacher, dim=-1)) + (1 - cosine) * apart


def teacher_digest(folder: Path) -> str:
    """Of a folder's weights and configuration: what the student learns depends on it."""
    return digest_of(folder)


def _rest(logprobs: torch.Tensor) -> torch.Tensor:
    """The probability that the others have together; never nothing, because float16 rounds."""
    return (1 - logprobs.exp().sum(-1)).clamp_min(1e-6)
