"""The vocabulary: every array that crosses a module boundary, with its shape and unit.

Time is counted in steps (updates of the parameters already applied), never in epochs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, PyTree

Step = Int[Array, ""]  # updates already applied; 0 before the first
Params = PyTree[Float[Array, "..."]]
Inputs = Float[Array, "examples ..."]
Logits = Float[Array, "examples classes"]
Labels = Int[Array, " examples"]
Losses = Float[Array, " examples"]
Weights = Float[Array, " classes"]  # the paper's Gamma: positive, sums to the number of classes
Carry = Any  # a probe's memory: any pytree of arrays, () for a probe without one


class Batch(NamedTuple):
    """Examples that one loss is averaged over."""

    inputs: Inputs
    labels: Labels


class Dataset(NamedTuple):
    """A training set and a test set of the same classes."""

    train: Batch
    test: Batch
    num_classes: int


ApplyFn = Callable[[Params, Inputs], Logits]
WeightSchedule = Callable[[Step], Weights]
WeightedLoss = Callable[[Logits, Labels, Weights], Losses]
LossFn = Callable[[Params, Batch, Step], Float[Array, ""]]  # the paper's F(theta, t)
BatchFn = Callable[[Step], Batch]
Matvec = Callable[[Params], Params]


class Model(NamedTuple):
    """A pair of functions: init(key, inputs) draws parameters, apply(params, inputs) gives logits."""

    init: Callable[[Array, Inputs], Params]
    apply: ApplyFn


class TrainState(NamedTuple):
    """All that a step reads and writes; saved with the probes' carries it is a checkpoint."""

    step: Step
    params: Params
    model_state: PyTree  # batch statistics and the like, empty for a model without them
    opt_state: PyTree


class Problem(NamedTuple):
    """What a probe may look at: the functions that define one training run, and a key of its own."""

    apply_fn: ApplyFn
    weighted_loss: WeightedLoss
    schedule: WeightSchedule
    loss_fn: LossFn
    batch_fn: BatchFn
    optimizer: Mapping[str, Any]  # the name and the settings in optax
    advance: Callable[[TrainState], TrainState]  # one training step without its series
    test: Batch
    key: Array


class Series(NamedTuple):
    """One measured quantity, from its probe through loop and store to the figure."""

    dims: tuple[str, ...]  # of one row
    units: str  # "1" for a pure number
    description: str
    # what is known once it is part of a loop, and filled in there
    step: str = "step"  # the name of its step coordinate
    every: int = 1  # steps between two rows, from step 0 on
    shape: tuple[int, ...] = ()  # of one row
    dtype: Any = None


class Probe(NamedTuple):
    """A measurement taken along training at every `every`-th step, starting with step 0.

    `init(state)` returns the first carry; `measure(carry, state)` returns the next carry and a dict of
    floating arrays (NaN stands for "not measured"), one for each key of `series`, which no other probe uses.
    """

    every: int
    init: Callable[[TrainState], Carry]
    measure: Callable[[Carry, TrainState], tuple[Carry, dict[str, Array]]]
    series: Mapping[str, Series]
