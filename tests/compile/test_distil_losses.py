"""Laws of the distillation losses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.training.distil import divergence, top_divergence, top_logprobs, vector_loss

logits = st.lists(st.floats(-8, 8, width=32), min_size=6, max_size=6)
warmth = st.floats(1, 8)


@settings(max_examples=60, deadline=None)
@given(logits, logits, warmth, st.integers(1, 5))
def test_what_is_kept_of_a_teacher_never_says_more_than_the_whole(student, teacher, temperature, top):
    one, other = torch.tensor([student]), torch.tensor([teacher])
    whole = float(divergence(one, other, temperature))
    part = float(top_divergence(one, *top_logprobs(other, top, temperature), temperature))
    # Kept as float16: log-probabilities down to -16 or so are off by up to 0.008.
    slack = 0.02 * temperature**2
    assert -slack <= part <= whole + slack


@settings(max_examples=60, deadline=None)
@given(logits, logits, warmth)
def test_all_choices_kept_is_the_divergence_itself(student, teacher, temperature):
    one, other = torch.tensor([student]), torch.tensor([teacher])
    kept = top_divergence(one, *top_logprobs(other, 6, temperature), temperature)
    assert float(kept) == pytest.approx(float(divergence(one, other, temperature)), abs=0.02 * temperature**2)


@settings(max_examples=40, deadline=None)
@given(logits, warmth, st.floats(-5, 5))
def test_the_divergence_is_zero_for_equals_and_blind_to_a_constant(student, temperature, constant):
    one = torch.tensor([student])
    assert float(divergence(one + constant, one, temperature)) == pytest.approx(0, abs=1e-4 * temperature**2)


def test_the_gradient_of_the_softened_loss_has_the_size_of_the_plain_one():
    """Hinton et al.: with the factor of the squared temperature, near equality it does not depend on it."""
    sizes = []
    for temperature in (1.0, 4.0, 16.0):
        student = torch.zeros(1, 6, requires_grad=True)
        divergence(student, torch.tensor([[0.3, 0.1, 0.0, 0.0, -0.1, -0.3]]), temperature).sum().backward()
        sizes.append(float(student.grad.norm()))
    assert max(sizes) / min(sizes) < 1.1


@given(st.lists(st.floats(-1, 1, width=32).filter(lambda x: abs(x) > 1e-3), min_size=4, max_size=4))
def test_a_vector_is_nowhere_from_itself_and_furthest_from_its_opposite(numbers):
    one = torch.nn.functional.normalize(torch.tensor([numbers]), dim=-1)
    assert float(vector_loss(one, one, 0.5)) == pytest.approx(0, abs=1e-5)
    assert float(vector_loss(one, -one, 0.5)) == pytest.approx(0.5 * 2 + 0.5 * 4, abs=1e-4)
