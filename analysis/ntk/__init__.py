"""The empirical neural tangent kernel of a network: its forms, its product and its spectrum.

    Theta_cd(x, x') = grad_theta f_c(x) . grad_theta f_d(x')        f: the C logits of one example alone

`weights` [examples] (Gamma_{y_j}), or [examples, classes] where said (Gamma_c in dmse2), not negative,
give W^{1/2} Theta W^{1/2}, the kernel of the weighted loss without its 1/P. With a `batch_size` a
kernel is filled in blocks of so many examples by one compiled loop: beside the kernel, memory is that of
two blocks of the Jacobian, or of the layers' factors, and of a copy to transpose each. It changes the
numbers by rounding only, and allows forward derivatives only. Outputs [examples] are one logit. All forms
raise ValueError for outputs of more axes, no examples, a batch_size below 1 or above their number, weights of
another shape, or, unless something is traced, a network that couples the examples of a batch.
"""

from analysis.ntk.kernels import diagonal_ntk, empirical_ntk, full_ntk, ntk_operator, per_class_ntk
from analysis.ntk.spectra import ggn_ntk_duality, kernel_target_alignment, relative_distance, spectrum
