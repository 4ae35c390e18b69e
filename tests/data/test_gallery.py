import numpy as np
from threadpoolctl import threadpool_info

from lcde.data.gallery import fill_in_threads, row_blocks


def blas_threads():
    """Of NumPy's library, not of FAISS's, which counts the threads of each calling thread apart."""
    return {each["num_threads"] for each in threadpool_info() if each.get("threading_layer") == "pthreads"}


def test_every_block_is_filled_by_matrix_products_of_one_thread_each():
    filled, threads, before = np.zeros(1000, dtype=np.int64), [], blas_threads()

    def fill(rows):
        filled[rows] += 1
        threads.append(blas_threads())

    fill_in_threads(fill, row_blocks(len(filled), size=7))
    assert (filled == 1).all()
    assert set.union(*threads) <= {1}
    assert blas_threads() == before
