"""Denoisers that ``kdistill prior train`` trains: a convolutional U-Net and a U-ViT."""

from kdistill.priors.diffusion.networks.base import ClassConditionalDenoiser
from kdistill.priors.diffusion.networks.unet import UNet
from kdistill.priors.diffusion.networks.uvit import UViT

__all__ = ["ClassConditionalDenoiser", "UNet", "UViT"]
