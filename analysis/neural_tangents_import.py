"""neural-tangents 0.6.5 on today's JAX: infinite-width kernels, linearised predictions, a check.

The library is unmaintained since February 2024. It imports names that JAX has moved or dropped
since, and TensorFlow (1.8 GB) for a corner of it that is of no use here. `load` mends both and
leaves everything outside the library as it was.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import math
import sys
from types import ModuleType, SimpleNamespace

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
import scipy.linalg
from jax.extend import source_info_util
from jax.interpreters import ad

_VERSION = "0.6.5"
_INSTALL = f"pip install --no-deps neural-tangents=={_VERSION} frozendict"  # its metadata asks for TensorFlow
_MOVED = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")  # from jax.core to jax.extend.core


@functools.cache
def load() -> ModuleType:
    """Import neural-tangents and return its module, the same one at each call.

    Kernels of infinite width, all implementations of the empirical NTK, `linearize`,
    `taylor_expand` and `predict` work. Two conventions to know: `stax.Dense` has no bias unless
    `b_std` is given (0.0 for biases that start at zero), and `empirical_ntk_fn` divides its trace
    over the logits by their number. One limit, on any JAX: `predict.gradient_descent_mse` may not
    be built inside `jit` from a kernel that is computed there.

    Raises ImportError, with the command to run, without the library or frozendict, or for another version.

    Source: Novak et al. 2020 (arXiv 1912.02803), Novak et al. 2022 (arXiv 2206.08720).
    """
    try:
        version = importlib.metadata.version("neural-tangents")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"neural-tangents is not installed: {_INSTALL}") from None
    if version != _VERSION:
        raise ImportError(f"neural-tangents {version} is installed, not {_VERSION}: {_INSTALL}")
    if importlib.util.find_spec("frozendict") is None:
        raise ImportError(f"frozendict, which neural-tangents needs, is not installed: {_INSTALL}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "neural_tangents"]:
        del sys.modules[name]  # what is left of an import by hand, which fails on today's JAX
    sys.modules["neural_tangents.experimental"] = _without_tensorflow()
    with _former_names():
        import neural_tangents
        from neural_tangents._src import empirical, predict
    _mend(empirical, predict)
    return neural_tangents


def _without_tensorflow() -> ModuleType:
    """Return an empty module in place of the part that imports TensorFlow, installed or not."""
    stand_in = ModuleType("neural_tangents.experimental")

    def __getattr__(name: str):
        raise AttributeError(f"neural_tangents.experimental.{name} is left out: it would import TensorFlow")

    stand_in.__getattr__ = __getattr__
    return stand_in


@contextlib.contextmanager
def _former_names():
    """Put back what the library imports from JAX and JAX no longer has, for the time of the import."""
    util = ModuleType("jax.util")
    util.safe_map = lambda f, *args: [f(*xs) for xs in zip(*args, strict=True)]
    util.safe_zip = lambda *args: list(zip(*args, strict=True))
    names = [(vars(jax.core), name, getattr(jax.extend.core, name)) for name in _MOVED]
    # The library has a rule for this primitive; JAX makes no equation with it any more.
    names.append((vars(ad), "zeros_like_p", jax.extend.core.Primitive("zeros_like")))
    names.append((sys.modules, "jax.util", util))
    names = [(table, name, value) for table, name, value in names if name not in table]
    for table, name, value in names:
        table[name] = value
    try:
        yield
    finally:
        for table, name, _ in names:
            del table[name]


def _mend(empirical, predict):
    """Replace what two modules of the library look up elsewhere when called, in these modules only."""
    # DShapedArray stood for dynamic shapes; nothing is one.
    empirical.core = _view(jax.core, Var=jax.extend.core.Var, DShapedArray=type("DShapedArray", (), {}))
    # Off: its internal checks, for which JAX has no functions left.
    checks = SimpleNamespace(jax_enable_checks=False)
    empirical.ad = _view(ad, source_info_util=source_info_util, config=checks)
    # JAX deprecates the size of a shape-and-dtype and an array in place of a dtype.
    empirical.jnp = _view(jnp, size=lambda x: math.prod(jnp.shape(x)), dtype=lambda x: x.dtype)
    empirical._get_primals_out_and_pullback = functools.partial(_linearized, empirical._backward_pass)
    empirical._eqn_vjp_fn = _transposed
    empirical._get_flops = _flops
    predict.sp = SimpleNamespace(linalg=SimpleNamespace(eigvalsh=_eigvalsh))  # scipy renamed an argument


def _view(module, **names):
    """Return a stand-in for a module with some names added or replaced."""
    return SimpleNamespace(**{**vars(module), **names})


def _linearized(backward_pass, fn, mode, j_rules, s_rules, fwd, *primals):
    """Return fn(*primals) and its pullback, which collects what structured derivatives need."""
    leaves, structure = jax.tree.flatten(primals)
    with jax.disable_jit():  # the library has no rules for calls of compiled functions
        out, jvp = jax.linearize(lambda *leaves: fn(*structure.unflatten(leaves)), *leaves)
        linear = jax.make_jaxpr(jvp)(*leaves)
    unknown = [ad.UndefinedPrimal(variable.aval) for variable in linear.jaxpr.invars]

    def pullback(*cotangents):
        given = linear.jaxpr, mode, linear.consts, unknown, tuple(jax.tree.leaves(cotangents))
        return structure.unflatten(backward_pass(*given, j_rules, s_rules, fwd))

    return out, pullback


def _transposed(eqn, cotangent, *inputs):
    """Return the cotangents of an equation's inputs, None for those that are known."""
    if eqn is None:  # stands for an output of the network that is a parameter
        return (cotangent,)
    unknown = [i for i, x in enumerate(inputs) if isinstance(x, ad.UndefinedPrimal)]

    def apply(*values):
        values = dict(zip(unknown, values, strict=True))
        values = [values.get(i, x) for i, x in enumerate(inputs)]
        (out,) = jax.tree.leaves(eqn.primitive.bind(*values, **eqn.params))  # some give a list of one
        return out

    transpose = jax.linear_transpose(apply, *(inputs[i].aval for i in unknown))
    found = dict(zip(unknown, transpose(cotangent), strict=True))
    return [found.get(i) for i in range(len(inputs))]


def _flops(f, optimize, *args, **kwargs):
    """Return XLA's count of operations, by which the library chooses an implementation."""
    lowered = jax.jit(f).lower(*args, **kwargs)
    return (lowered.compile() if optimize else lowered).cost_analysis()["flops"]  # was in a list of one


def _eigvalsh(matrix, eigvals):
    return scipy.linalg.eigvalsh(matrix, subset_by_index=eigvals)
