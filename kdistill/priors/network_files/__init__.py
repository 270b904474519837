"""Network files of StyleGAN2-ADA, StyleGAN3 and StyleGAN-XL, read without running them."""

from kdistill.priors.network_files.convert import convert_network, read_network
from kdistill.priors.network_files.generator_folder import (
    holds_generator,
    load_generator,
    save_generator,
)

__all__ = ["convert_network", "holds_generator", "load_generator", "read_network", "save_generator"]
