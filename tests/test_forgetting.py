"""What is read off runs of networks that add, from sweeps that are made with known answers."""

import numpy as np
import pytest
import xarray as xr

from analysis.findings import forgetting
from analysis.probes.answers import known_answers
from dlf import data


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
    of = (("answers_step", "ones_example"), np.repeat(ones[:, None], 2, axis=1))
    more = (("answers_step", "twos_example"), np.ones((len(steps), 2)))
    sweep = hand_made({"ones_best_match": of, "twos_best_match": more}).assign_coords(answers_step=steps)
    found = forgetting._of_turns(sweep.expand_dims(period=[period]))
    last = steps > steps[-1] - 2 * period
    assert found["turns_lowest"].sel(band="mean").item() == ones[last].min()
    assert found["turns_mean"].sel(band="mean").item() == pytest.approx((1 + ones[last].mean()) / 2)


def test_additions_until_all_pairs_are_right_for_good():
    shares = np.asarray([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], float)  # by seed
    values = np.repeat(shares[..., None], 4, axis=2)
    dims = "seed", "answers_step", "pairs_example"
    sweep = xr.Dataset(
        {"pairs_right_side": (dims, values)}, {"seed": range(3), "answers_step": range(0, 25, 5)}
    )
    found = forgetting._of_pairs(sweep.expand_dims(tied=[False], initial_scale=[0.1], learning_rate=[1.0]))
    np.testing.assert_array_equal(found["additions_until"].squeeze(), [15, 0, np.nan])
    assert found["pairs_solved"].item() == pytest.approx(2 / 3)
