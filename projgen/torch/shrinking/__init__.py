"""Take out of a trained model what is zero in it."""

from projgen.torch.shrinking.report import Kept, Layer, Shrunk
from projgen.torch.shrinking.rounds import shrink

__all__ = ["Kept", "Layer", "Shrunk", "shrink"]
