from analysis.linear_maps import check_batch_size as check_batch_size
from analysis.operators import _accumulate, _BatchSize


def accumulate(product, like, batch, batch_size):
    return _accumulate(product, like, batch, _BatchSize(batch_size))
