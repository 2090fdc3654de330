"""Wide ResNet on CIFAR-10 under a dynamical cross-entropy: where the paper found no improvement.

    python -m experiments.train --config=experiments/configs/cifar10_wrn.py --workdir=DIR \\
        --config.dataset.path=DIR [--config.schedule.amplitude=1.0] [--resume]

For a GPU; nobody has run it yet. `experiments.figure cifar10_wrn` draws the run. That the network is a Wide
ResNet, and that there was no improvement "over our limited set of experiments", is [text]; depth and width
are unknown. All that is not set here is as in cifar10_myrtle5.py.
"""

from experiments.configs import cifar10_myrtle5, fig4

FIGURE, reduce = "image_run", fig4.reduce
EXPECTED = ()  # no data of this size were at hand


def get_config():
    """Return the run of Myrtle5 with another network, 200 epochs, and exact statistics in evaluation."""
    config = cifar10_myrtle5.get_config(num_epochs=200, rate=0.2)  # [ours]: batch norm bears a high rate
    given = {key: config.model[key] for key in ("mean", "std", "dtype")}
    del config.model
    config.model = dict(
        name="wide_resnet",  # [text]
        depth=16,  # [ours]
        widen_factor=4,  # [ours]
        normalization="batch",  # Zagoruyko and Komodakis [text]
        **given,
    )
    config.optimizer.before = (dict(name="add_decayed_weights", weight_decay=5e-4),)  # Zagoruyko [text]
    config.probes.evaluation.recomputed = True  # [ours]
    return config
