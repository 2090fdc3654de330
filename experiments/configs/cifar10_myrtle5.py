"""Myrtle5 on CIFAR-10 under a dynamical cross-entropy: the image claim of both papers, one run.

    python -m experiments.train --config=experiments/configs/cifar10_myrtle5.py --workdir=DIR \\
        --config.dataset.path=DIR [--config.schedule.amplitude=1.0] [--resume]

For a GPU; nobody has run it yet. `experiments.figure cifar10_myrtle5` draws the run. Of the authors' are
known [text]: Myrtle5 with 64 channels, SGD with momentum, a learning-rate schedule, and that the dynamical
loss "improves generalisation" there. Every value is marked. One chunk is ten whole epochs in one compiled
loop.
"""

from dlf.data.cifar import MEAN, STD
from experiments.configs import fig4
from experiments.settings import Config

FIGURE, reduce = "image_run", fig4.reduce
EXPECTED = ()  # no data of this size were at hand
_NUM_TRAIN, _BATCH_SIZE = 45_000, 512  # [ours]
EPOCH = _NUM_TRAIN // _BATCH_SIZE


def get_config(num_epochs: int = 700, rate: float = 0.02) -> Config:
    """Return the run of so many epochs at so high a rate."""
    config, num_steps = Config(), num_epochs * EPOCH
    config.seed = 0
    config.float64 = False  # [ours]
    config.num_steps = num_steps + 1  # [ours]: the last row is measured after `num_steps` updates
    config.steps_per_chunk = 10 * EPOCH  # [ours]
    config.checkpoints_kept = 2  # [ours]
    config.dataset = dict(  # CIFAR-10 [text], the split [ours]
        name="cifar10", path="", num_train=_NUM_TRAIN, num_validation=5_000, num_test=10_000, seed=0
    )
    config.model = dict(
        name="myrtle",  # [text]
        widths=(64, 64, 64, 64),  # [text]
        per_pool=(2, 1, 1),  # Shankar et al. [code]
        activation="relu",  # [code]
        normalization="none",  # [code]
        mean=MEAN,  # [code]
        std=STD,  # [code]
        dtype="",  # [ours]: "bfloat16" on an accelerator
    )
    config.loss = dict(name="cross_entropy")  # [text]
    # amplitude and period [ours]: five epochs a class; the form [text]
    config.schedule = dict(name="triangular", amplitude=16.0, period=5 * EPOCH)
    config.stop_after = num_steps * 4 // 5 // (50 * EPOCH) * 50 * EPOCH  # [ours]: whole cycles, then quiet
    config.batches = dict(  # [ours]
        name="minibatches",
        batch_size=_BATCH_SIZE,
        drop_last=True,
        augment=(dict(name="pad_crop", pad=4), "flip"),
    )
    turns = num_steps * 3 // 7, num_steps  # up to epoch 300, down to epoch 700
    config.optimizer = dict(
        name="sgd",  # [text]
        momentum=0.9,  # that there is momentum [text], the number [ours]
        nesterov=True,  # [ours]
        learning_rate=dict(  # that it is a schedule [text], piecewise linear [ours]
            name="join_schedules",
            schedules=(
                dict(name="linear_schedule", init_value=0.0, end_value=rate, transition_steps=turns[0]),
                dict(
                    name="linear_schedule",
                    init_value=rate,
                    end_value=rate / 10,
                    transition_steps=turns[1] - turns[0],
                ),
            ),
            boundaries=(turns[0],),
        ),
    )
    spacing = 10 * EPOCH  # [ours], as all that is measured
    config.probes = dict(
        evaluation=dict(every=EPOCH, batch_size=1_000),
        hessian=dict(every=spacing, num=2, tol=0.01, batch_size=_BATCH_SIZE),
        batch_sharpness=dict(every=spacing, num_batches=8),
    )
    return config
