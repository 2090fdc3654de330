"""Data sets and batch functions. `__all__` is the catalogue that a config names a data set from."""

from dlf.data import arithmetic, cifar, images, synthetic
from dlf.data.arithmetic import *
from dlf.data.batches import full_batch as full_batch
from dlf.data.batches import in_sequence as in_sequence
from dlf.data.batches import lists_in_sequence as lists_in_sequence
from dlf.data.batches import minibatches as minibatches
from dlf.data.cifar import *
from dlf.data.images import *
from dlf.data.synthetic import *

__all__ = sorted([*arithmetic.__all__, *cifar.__all__, *images.__all__, *synthetic.__all__])
