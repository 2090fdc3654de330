"""Mistakes in configurations of images: one line that names the setting, and nothing written."""

import pytest

from experiments import figure, train

LINES = {
    "config.dataset.path = '/nowhere'": "parquet in /nowhere, ",
    "config.dataset.num_train = 60_000": "asked were 100 + 60000",
    "config.dataset.num_train = 7": "a subset of 7 examples has none of class",
    "config.dataset.num_validation = 60_000": "asked were 60000 + 400",
    "config.dataset.num_test = 20_000": "asked were 20000",
    "config.batches.batch_size = 401": "batch_size must be an int from 1 to the number of examples, which is",
    "config.batches.augment = (dict(name='pad_crop', pad=33),)": "pad must be from 1 to 31 for inputs",
    "config.batches.augment = (dict(name='cutout', side=33),)": "side must be from 1 to 32 for inputs",
    "config.batches.augment = (dict(name='shift', most=40),)": "inputs must be [examples, points, channels]",
    "config.batches.augment = ('moon',)": "unknown augmentation 'moon': one of cutout, flip, pad_crop, shift",
    "config.model.update(widths=(4,) * 9, per_pool=(1,) * 8)": "too many pools for inputs [32, 32, 3]",
    "config.model.normalization = 'instance'": "unknown normalization 'instance': one of none, batch, weigh",
    "config.model.dtype = 'float8'": "dtype must be bfloat16, float16 or empty, got 'float8'",
    "config.model.mean = (1.0, 2.0)": "mean and std must be numbers, one for each channel, got (1.0, 2.0)",
    "config.model.std = (0.0, 1.0, 1.0)": "mean and std must be numbers, one for each channel",
    "config.model.widths = ()": "per_pool must share out the 0 convolutions, got (2, 1, 1)",
    "config.probes.hessian.batch_size = 401": "probes.hessian: batch_size must be from 1 to 400",
    "config.probes.evaluation.batch_size = -1": "probes.evaluation: batch_size must be from 1 to 400",
    "config.probes.batch_sharpness.num_batches = 0": "num_batches must be a whole number of at least 1",
    "config.model = dict(name='wide_resnet', depth=11, widen_factor=1)": "depth must be 6 n + 4",
    "config.model = dict(name='wide_resnet', depth=10, widen_factor=0)": "widths and numbers of classes and",
    "config.model.name = 'mlp'": "model.hidden_widths is missing: ",
}


@pytest.mark.parametrize("line", LINES)
def test_a_mistake_in_a_configuration_of_images_gets_one_line(command, photographs, tmp_path, line):
    (tmp_path / "mine.py").write_text(
        f"""
from experiments.configs import cifar10_myrtle5 as base

def get_config():
    config = base.get_config()
    config.dataset.update(path={str(photographs)!r}, num_train=400, num_validation=100, num_test=100)
    config.batches.batch_size, config.probes.hessian.batch_size = 40, 50
    {line}
    return config
"""
    )
    status, _, err = command(train.main, f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}")
    assert status == 2 and LINES[line] in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


FIGURES = {
    "cifar10 --config.dataset.path=/nowhere": "parquet in /nowhere, ",
    "cifar10 --config.batches.batch_size=0": "cifar10 takes --config.dataset.path=value",
    "cifar10 --scale=smoke --config.model.dtype=float8": "dtype must be bfloat16, float16 or empty",
    "cifar10 --scale=large": "--scale",
    "images --config.dataset.path=/nowhere": "/nowhere",
    "curvature_images --config.dataset.path=/nowhere": "dataset.path",
}


@pytest.mark.parametrize("asked", FIGURES)
def test_a_mistake_in_a_figure_of_images_gets_one_line(command, photographs, tmp_path, asked):
    words = asked.split()
    if words[0] == "cifar10" and "path" not in asked:
        words.append(f"--config.dataset.path={photographs}")
    status, _, err = command(figure.main, *words, f"--workdir={tmp_path / 'out'}")
    assert status == 2 and FIGURES[asked] in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
