import pytest
import torch

from mcq_llm.memory import apart


@pytest.mark.parametrize("spill", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (0, 4), ()])
def test_what_is_put_apart_is_a_writable_copy(spill, dtype, shape, tmp_path):
    tensor = torch.randint(-9, 9, shape).to(dtype)
    copy = apart(tensor, tmp_path if spill else None)
    assert copy.dtype == dtype
    torch.testing.assert_close(copy, tensor)
    if copy.numel():
        copy += 1
        torch.testing.assert_close(copy - 1, tensor)
    assert list(tmp_path.iterdir()) == []


def test_transposed_tensors_keep_their_values():
    tensor = torch.arange(6.0).view(2, 3).T
    torch.testing.assert_close(apart(tensor, None), tensor)
