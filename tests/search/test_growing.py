"""Arrays that rows are appended to, and the ids of an index, against plain arrays and sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcq.errors import InputError
from mcq_search import build_index
from mcq_search.growing import Growing
from mcq_search.ids import LARGEST, Ids, Taken


@given(st.lists(st.lists(st.integers(0, 5), max_size=3)))
def test_appended_rows_are_those_of_a_concatenation(batches):
    growing, all_rows, seen = Growing(np.zeros((0, 2), np.uint8)), np.zeros((0, 2), np.uint8), []
    for sizes in batches:
        parts = [np.random.default_rng(size).integers(0, 256, (size, 2), np.uint8) for size in sizes]
        seen.append((growing.rows, all_rows))
        growing.append(parts)
        all_rows = np.concatenate([all_rows, *parts])
    for rows, wanted in [*seen, (growing.rows, all_rows)]:
        np.testing.assert_array_equal(rows, wanted)


def test_rows_that_were_handed_out_stay_as_they_were():
    growing = Growing(np.arange(6))
    before = growing.rows
    growing.keep(before % 2 == 0)
    growing.append([np.array([7, 8])])
    assert before.tolist() == [0, 1, 2, 3, 4, 5]
    assert growing.rows.tolist() == [0, 2, 4, 7, 8]


def test_one_row_at_a_time_copies_a_row_a_few_times_only():
    growing, copied = Growing(np.zeros(0, np.int64)), 0
    for i in range(10_000):
        before = growing.rows
        growing.append([np.array([i])])
        if not np.shares_memory(before, growing.rows):
            copied += len(before)
    assert copied < 4 * 10_000


@given(st.lists(st.sets(st.integers(0, 60)), max_size=12), st.sets(st.integers(-1, 61)))
def test_taken_ids_are_a_set(batches, asked):
    taken, wanted = Taken(np.zeros(0, np.int64)), set()
    for batch in batches:
        taken.add(np.array(sorted(batch - wanted, reverse=True), np.int64))
        wanted |= batch
    found = taken.contain(np.array(sorted(asked), np.int64))
    assert found.tolist() == [number in wanted for number in sorted(asked)]
    sizes = [len(run) for run in taken._runs]
    assert sizes == sorted(set(sizes), reverse=True)


def test_ids_after_the_largest_possible_are_refused():
    ids = Ids([LARGEST - 1], 1)
    assert ids.new(None, 1).tolist() == [LARGEST]
    with pytest.raises(InputError, match="no 2 ids after the largest"):
        ids.new(None, 2)


@pytest.mark.parametrize("factory", ["RQ2x4", "IVF5,RQ4x4fs,Refine(SQ8)"])
def test_many_small_batches_make_the_index_of_one(x, queries, factory, tmp_path):
    shuffled = np.random.default_rng(0).permutation(10 * len(x))[: len(x)]
    whole = build_index(x, factory, ids=shuffled)
    index = build_index(x, factory)
    index.remove(index.ids)
    buffers = set()
    for start in range(0, len(x), 3):
        index.add(x[start : start + 3], ids=shuffled[start : start + 3])
        buffers.add((index.codes.packed.ctypes.data, index.ids.ctypes.data))
        if start == 300:
            index.search(queries, 1)
    assert len(buffers) < 40  # of 234 batches
    assert index.codes == whole.codes
    np.testing.assert_array_equal(index.ids, whole.ids)
    for found, wanted in zip(index.search(queries, 9), whole.search(queries, 9), strict=True):
        np.testing.assert_array_equal(found, wanted)
    index.save(tmp_path / "index.mcq")
    whole.save(tmp_path / "whole.mcq")
    assert (tmp_path / "index.mcq").read_bytes() == (tmp_path / "whole.mcq").read_bytes()
    with pytest.raises(InputError, match=f"{shuffled[5]} is in the index already"):
        index.add(x[:2], ids=[10**6, shuffled[5]])
