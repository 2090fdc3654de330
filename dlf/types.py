"""The vocabulary: every array that crosses a module boundary, with its shape and unit.

Time is counted in steps (updates of the parameters already applied), never in epochs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Integer, PyTree, Real

Step = Int[Array, ""]  # updates already applied; 0 before the first
Params = PyTree[Float[Array, "..."]]
Inputs = Real[Array, "examples ..."]  # of images also bytes
Logits = Float[Array, "examples classes"]
Labels = Integer[Array, " examples"]
Targets = Float[Array, "examples list_and_targets"]  # labels of several outputs, see dlf.outputs
Losses = Float[Array, " examples"]
Weights = Float[Array, " classes"]  # the paper's Gamma: positive, sums to the number of classes
Carry = Any  # a probe's memory: any pytree of arrays, () for a probe without one


class Batch(NamedTuple):
    """Examples that one loss is averaged over."""

    inputs: Inputs
    labels: Labels | Targets


class Dataset(NamedTuple):
    """A training set and a test set, or several by name, of the same classes."""

    train: Batch
    test: Batch | Mapping[str, Batch]
    num_classes: int


ModelState = PyTree  # batch statistics and the like, empty for a model without them

ApplyFn = Callable[[Params, Inputs], Logits]
WeightSchedule = Callable[[Step], Weights]
WeightedLoss = Callable[[Logits, Labels, Weights], Losses]
LossFn = Callable[[Params, Batch, Step], Float[Array, ""]]  # the paper's F(theta, t)
BatchFn = Callable[[Step], Batch]
Matvec = Callable[[Params], Params]


class Model(NamedTuple):
    """A network as three functions, in evaluation and in training.

    In evaluation (`apply`) the examples of a batch do not interact and nothing is drawn; in training
    (`train`) statistics may be taken over the batch and move, and masks of dropout are drawn with the key.
    """

    init: Callable[[Array, Inputs], tuple[Params, ModelState]]
    apply: Callable[[Params, ModelState, Inputs], Logits]
    train: Callable[[Params, ModelState, Inputs, Array], tuple[Logits, ModelState]]


class TrainState(NamedTuple):
    """All that a step reads and writes; saved with the probes' carries it is a checkpoint."""

    step: Step
    params: Params
    model_state: ModelState
    opt_state: PyTree


class Seen(NamedTuple):
    """What a rule of the learning rate may look at: one step, before its update."""

    step: Step
    learning_rate: Float[Array, ""]  # that of the schedule, which no rule exceeds
    loss: Float[Array, ""]  # F of the step's batch, in training mode
    grads: Params
    direction: Params  # the update at a learning rate of one
    params: Params
    loss_fn: Callable[[Params], Float[Array, ""]]  # F of other parameters, all else as in the step
    schedule: WeightSchedule | None  # of the class weights, where the loss has some
    measured: Mapping[str, Array]  # series of probes, see `dlf.recording.missing`


class Rule(NamedTuple):
    """A learning rate that reads the curvature, see `dlf.rules`.

    `rate(memory, seen)` returns the next memory, of arrays, beside a rate that may be NaN for "as before".
    `reads` are the series of probes that it needs, each with the steps between two looks at it.
    """

    init: Callable[[], PyTree]
    rate: Callable[[PyTree, Seen], tuple[Float[Array, ""], PyTree]]
    reads: Mapping[str, int]


class Optimizer(NamedTuple):
    """A transformation of optax, by its two functions, with what is known of it.

    `rate` gives the learning rate of a step; None for one that only its owner knows. `settings` are the
    name and keyword arguments in optax, the learning rate among them, as `make_optimizer` takes them. With a
    `rule` the two functions are those at a learning rate of one, and `rate` is what the rule starts from.
    """

    init: Callable[[Params], PyTree]
    update: Callable[..., tuple[Params, PyTree]]
    rate: Callable[[Step], Float[Array, ""]] | None
    settings: Mapping[str, Any]
    rule: Rule | None = None


class Problem(NamedTuple):
    """One training run as functions and data: what a step and a probe may look at.

    Curvature and kernels are means over `train`; only the step calls `batch_fn`.
    """

    model: Model
    weighted_loss: WeightedLoss
    schedule: WeightSchedule
    batch_fn: BatchFn
    train: Batch
    tests: Mapping[str, Batch]  # named sets, such as {"validation": ...}
    optimizer: Optimizer
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
