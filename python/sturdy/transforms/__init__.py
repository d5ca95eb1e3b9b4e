"""Random changes of images for training, of each image in a batch by itself, on the CPU or a GPU.

They fit into ``torchvision.transforms.v2``; torchvision is not needed.
"""

from sturdy.transforms.afa import FourierBasisAugment
from sturdy.transforms.amplitude import AmplitudeMix, SelfAmplitudeMix
from sturdy.transforms.base import Transform
from sturdy.transforms.dfmx import DominantFrequencyMix
from sturdy.transforms.masks import MaskFile, effective_mask, half_mask, load_masks, save_masks
from sturdy.transforms.prime import Prime, PrimePreset
from sturdy.transforms.spectral import SpectralFilter

__all__ = [
    "AmplitudeMix",
    "DominantFrequencyMix",
    "FourierBasisAugment",
    "MaskFile",
    "Prime",
    "PrimePreset",
    "SelfAmplitudeMix",
    "SpectralFilter",
    "Transform",
    "effective_mask",
    "half_mask",
    "load_masks",
    "save_masks",
]
