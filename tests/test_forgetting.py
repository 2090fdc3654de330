"""What is read off runs of networks that add, from sweeps that are made with known answers."""

import json

import numpy as np
import pytest
import xarray as xr

from analysis import figures
from analysis.findings import forgetting
from analysis.probes.answers import known_answers
from dlf import data
from experiments import figure
from experiments.configs import addition


def hand_made(values, seeds=1, **attributes):
    """A sweep with what each seed was measured at, dimension after dimension."""
    variables = {
        name: (("seed", *dims), np.broadcast_to(np.asarray(of, float), (seeds, *np.shape(of))))
        for name, (dims, of) in values.items()
    }
    return xr.Dataset(variables, {"seed": range(seeds)}).assign_attrs(attributes)


def test_curvature_of_kernels_that_are_known():
    """One example a list: |K_12| = |K_11| = 1, |K_22| = 4."""
    kernels = np.asarray([[[1.0, 1.0], [1.0, 4.0]], [[1.0, 0.0], [0.0, 9.0]]])[None]
    found = forgetting.curvature("of", np.asarray([[2.0, 3.0]]), kernels, num_before=1).sel(band="mean")
    np.testing.assert_array_equal(found["trial"], [-1, 0])
    np.testing.assert_allclose(found["of_alignment"], [0.5, 0.0])
    np.testing.assert_allclose(found["of_kernel"], [2.5 + 3.25**0.5, 9.0])
    np.testing.assert_allclose(found["of_sharpness"], [2.0, 3.0])


def test_pairs_that_were_shown_count_as_right_and_not_among_the_unseen():
    right = np.asarray([[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])  # after 0, 1, 2
    sweep = hand_made({"pairs_right_side": (("answers_step", "pairs_example"), right)}, seeds=2)
    sweep = sweep.assign_coords(answers_step=[0, 1, 2])
    found = forgetting._of_pairs(sweep.expand_dims(tied=[False], initial_scale=[0.1], learning_rate=[1.0]))
    np.testing.assert_allclose(found["pairs_unseen"].sel(band="mean").squeeze(), [1 / 4, 2 / 3, 1])


def test_wrong_answers_are_those_of_the_other_list():
    known = known_answers(data.facts().test)
    sums = forgetting._sums(np.column_stack([np.zeros(len(known)), known]))
    ones = forgetting._sums(data.facts().test["ones"].labels)
    answers = [[*sums].index(n + 1) for n in ones]  # of twos
    answers[0], answers[1] = [*sums].index(ones[0]), [*sums].index(ones[1] + 3)  # right, and neither
    match = [1.0, *[0.0] * 14]
    sweep = hand_made(
        {"ones_answer": (("ones_example",), answers), "ones_best_match": (("ones_example",), match)}
    )
    assert forgetting.as_the_other(sweep).item() == pytest.approx(13 / 14)


def test_a_cycle_is_a_turn_of_both_lists():
    steps, period = np.arange(0, 400, 34), 68
    ones = np.where(steps > 400 - 34 - 2 * period, 0.5, 0.0)  # of the last cycle
    values = {}
    for criterion, factor in (("best_match", 1.0), ("squared_error", 24.0)):
        of, more = np.repeat(ones[:, None], 2, axis=1), np.ones((len(steps), 2))
        values[f"ones_{criterion}"] = (("answers_step", "ones_example"), factor * of)
        values[f"twos_{criterion}"] = (("answers_step", "twos_example"), factor * more)
    sweep = hand_made(values).assign_coords(answers_step=steps)
    found = forgetting._of_turns(sweep.expand_dims(period=[period]))
    last = steps > steps[-1] - 2 * period
    assert found["turns_lowest"].sel(band="mean").item() == ones[last].min()
    assert found["turns_error"].sel(band="mean").item() == pytest.approx((1 + ones[last].mean()) / 2)


def test_additions_until_all_pairs_are_right_for_good():
    of_seeds = [0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]
    shares = np.asarray(of_seeds, float)
    values = np.repeat(shares[..., None], 4, axis=2)
    dims = "seed", "answers_step", "pairs_example"
    sweep = xr.Dataset(
        {"pairs_right_side": (dims, values)}, {"seed": range(4), "answers_step": range(0, 25, 5)}
    )
    found = forgetting._of_pairs(sweep.expand_dims(tied=[False], initial_scale=[0.1], learning_rate=[1.0]))
    np.testing.assert_array_equal(found["additions_until"].squeeze(), [15, 0, np.nan, 20])
    assert found["pairs_solved"].item() == pytest.approx(3 / 4)
    assert found["additions_half"].item() == 15  # the median of those that solve all


def lists(of_seeds):
    """Sweeps over two lists of 15 facts, two trials of the first and three of the second, from their shares.

    `of_seeds` [seed, criterion, order, list, trial] of the classical network; the clauses are right on all.
    """
    num_examples, orders = 15, ["ones first", "twos first"]
    steps = {"answers_step": range(of_seeds.shape[-1])}
    coordinates = {"seed": range(len(of_seeds)), "order": orders} | steps
    below = np.arange(num_examples) < num_examples * of_seeds[..., None]
    found = {}
    for place, name in enumerate(forgetting.LISTS):
        dims = "seed", "order", "answers_step", f"{name}_example"
        for number, criterion in enumerate(forgetting.CRITERIA):
            found[f"{name}_{criterion}"] = dims, below[:, number, :, place].astype(float)
        found[f"{name}_squared_error"] = dims, 24.0 * below[:, 2, :, place]
    answers = np.full(below[:, 0, :, 0].shape, 0.0)
    found["ones_answer"] = ("seed", "order", "answers_step", "ones_example"), answers
    config = json.dumps({"batches": {"num_epochs": [2, 3]}})
    classical = xr.Dataset(found, coordinates).assign_attrs(config=config)
    shape = len(of_seeds), 2, of_seeds.shape[-1]
    right = {
        f"{name}_right_side": (("seed", "tied", "answers_step", f"{name}_example"), np.ones((*shape, num)))
        for name, num in (("ones", 15), ("twos", 15), ("pairs", 4))
    }
    right["pairs_right_side"][1][:, 1, :3] = [1, 1, 0, 0]  # tied clauses, before the second list
    clauses = xr.Dataset(right, {"seed": range(len(of_seeds)), "tied": [False, True]} | steps)
    return classical, clauses.assign_attrs(config=config)


def test_lists_are_put_together_as_they_were_made():
    shares = np.zeros((2, 3, 2, 2, 6))  # seed, criterion, order, list, trial: -2 to 3
    shares[:, 0, 0, 0] = [[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]  # within .1: from trial -1 on, and never
    shares[:, 1] = 1  # on the right side always
    shares[:, 2, 0, 0] = [[0, 1, 1, 0.6, 0.4, 0], [0, 1, 1, 0.4, 0.2, 0]]  # ones first: ones
    shares[:, 2, 1, 1] = [[0, 1, 1, 0.2, 0.2, 0.2], [0, 1, 1, 0.2, 0.2, 0.2]]  # twos first: twos
    classical, clauses = lists(shares)
    found = forgetting._of_lists(classical, clauses)
    np.testing.assert_array_equal(found["trial"], range(-2, 4))
    first = dict(order="ones first", list="ones")
    match = found["classical_share"].sel(first | {"criterion": "best_match"})
    np.testing.assert_allclose(match.sel(band="mean"), [0, 1, 1, 0.5, 0.3, 0])
    np.testing.assert_allclose(match.sel(band="sd", trial=1), 0.2 / 2**0.5)
    np.testing.assert_allclose(match.sel(band=["low", "high"], trial=1), [0.42, 0.58])  # of eight in ten
    np.testing.assert_allclose(found["unit_error"].sel(first | {"band": "mean"}), [0, 1, 1, 0.5, 0.3, 0])
    np.testing.assert_allclose(found["order_gap"], [0, 0, 0, 0.3, 0.1, -0.2], atol=1e-12)  # ones minus twos
    np.testing.assert_allclose(found["order_gap_error"].sel(trial=1), 0.1)
    np.testing.assert_array_equal(found["trials_until_learned"], [1, np.nan])
    assert found["trials_learned"].sel(band="mean") == 1
    np.testing.assert_array_equal(found["pairs_before"].transpose("seed", "tied"), [[1, 0.5]] * 2)
    np.testing.assert_array_equal(found["pairs_after"], np.ones((2, 2)))
    assert (found["clauses_share"].sel(set=["ones", "twos"], band="mean") == 1).all()


def test_only_late_answers_count_as_those_of_the_other_list(monkeypatch):
    monkeypatch.setattr(forgetting, "LATE", 2)
    shares = np.zeros((1, 3, 2, 2, 6))
    shares[0, 2, 0, 0, :4] = 1  # ones first: all wrong from trial 2 on
    classical, clauses = lists(shares)
    known = known_answers(data.facts().test)
    known = forgetting._sums(np.column_stack([np.zeros(len(known)), known]))
    ones = forgetting._sums(data.facts().test["ones"].labels)
    late = classical["ones_answer"].copy()
    late[:, 0, 4] = [[*known].index(n + 1) for n in ones]  # in trial 2, of twos; in trial 3 none
    late[:, 0, 5] = [[*known].index((n + 5) % 19) for n in ones]
    found = forgetting._of_lists(classical.assign(ones_answer=late), clauses)
    assert found["as_other"].sel(band="mean").item() == pytest.approx(0.5, abs=0.1)


def test_what_is_compared_is_what_the_plan_says():
    assert addition.get_config().model.limit == 0.3
    (orders,) = [of for of in addition.sweep_classical("smoke") if getattr(of, "name", "") == "order"]
    assert [of["dataset.tables"] for of in orders.overrides] == [(1, 2), (2, 1)]


def test_what_is_drawn_are_means_of_what_the_labels_say():
    found = xr.load_dataset(figure.CONFIGS / "addition.nc", engine="scipy")
    classical, clauses, *_ = figures.addition_lists(found).axes
    shares = found["classical_share"].sel(
        order="ones first", criterion="best_match", list="ones", band="mean"
    )
    free = found["clauses_share"].sel(tied=False, set="pairs", band="mean")
    unseen = found["pairs_unseen"].sel(tied=True, initial_scale=0.1, learning_rate=3.0, band="mean")
    for axes, label, values in (
        (classical, "ones", shares),
        (clauses, "all pairs of 5 bits", free),
        (figures.addition_pairs(found).axes[0], "tied, η = 3", unseen),
    ):
        (line,) = [of for of in axes.lines if of.get_label() == label]
        np.testing.assert_allclose(line.get_ydata(), 100 * values)
