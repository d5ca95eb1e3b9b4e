"""Random changes of images for training, of each image in a batch by itself, on the CPU or a GPU.

They fit into ``torchvision.transforms.v2``; torchvision is not needed.
"""

from sturdy.transforms.afa import FourierBasisAugment
from sturdy.transforms.base import Transform

__all__ = ["FourierBasisAugment", "Transform"]
