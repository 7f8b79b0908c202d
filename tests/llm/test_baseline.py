import pytest
import torch

from mcq_llm.baseline import all_in_bits, round_to_nearest


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_values_per_group_and_half_a_step_of_error(bits):
    weight = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    rounded = round_to_nearest(weight, bits)
    for row, original in zip(rounded, weight, strict=True):
        for part, exact in zip(row.split(64), original.split(64), strict=True):
            assert len(part.unique()) <= 2**bits
            step = (exact.max() - exact.min()) / (2**bits - 1)
            assert (part - exact).abs().max() <= 0.51 * step + 2e-3  # and the rounding of float16


def test_constant_groups_survive():
    assert torch.equal(round_to_nearest(torch.full((2, 64), 0.5), 2), torch.full((2, 64), 0.5))


def test_bits_count_step_and_offset():
    assert all_in_bits(2) == 2.5
