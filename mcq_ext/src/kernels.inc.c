/* All kernel bodies of one SIMD level. MCQ_TABLE names the table that this unit exports; everything else is static, so
 * that no code compiled for one level can be linked into another. */
#include "mcq_kernels.h"
#include "simd.h"

#include "matmul.inc.c"
#include "search.inc.c"
#include "beam.inc.c"
#include "sweep.inc.c"
#include "tables.inc.c"
#include "codes.inc.c"
#include "factor.inc.c"
#include "pyramid.inc.c"
#include "shell.inc.c"
#include "budget.inc.c"
#include "rank.inc.c"
#include "trellis.inc.c"
#include "trellis_beam.inc.c"
#include "hadamard.inc.c"

const mcq_kernels MCQ_TABLE = {
    .matmul = matmul,
    .assign = assign,
    .unary_table = unary_table,
    .pair_search = pair_search,
    .sweep = sweep,
    .beam_step = beam_step,
    .table_beam = table_beam,
    .table_moves = table_moves,
    .score_moves = score_moves,
    .decode = decode,
    .scatter_add = scatter_add,
    .pack_bits = pack_bits,
    .unpack_bits = unpack_bits,
    .pack_words = pack_words,
    .unpack_words = unpack_words,
    .cholesky_rows = cholesky_rows,
    .cholesky_update = cholesky_update,
    .cholesky_solve = cholesky_solve,
    .pyramid_search = pyramid_search,
    .leader_search = leader_search,
    .shell_search = shell_search,
    .budget_search = budget_search,
    .trellis_search = trellis_search,
    .trellis_beam = trellis_beam,
    .trellis_decode = trellis_decode,
    .lattice_rank = lattice_rank,
    .lattice_unrank = lattice_unrank,
    .hadamard = hadamard,
};
