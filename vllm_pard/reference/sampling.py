"""From logits to tokens.

V vocabulary
"""

import torch
from torch import Tensor


class Sampler:
    """The temperature and the random numbers of one batch."""

    def __init__(self, *, temperature: float, seed: int, device: torch.device) -> None:
        self.temperature = temperature
        self.seed = seed
        self._generator = torch.Generator(device).manual_seed(seed)

    def probs(self, logits: Tensor) -> Tensor:
        """[..., V] -> float32 [..., V]; at temperature 0, the most likely token has it all."""
        if self.temperature > 0:
            return torch.softmax(logits.float() / self.temperature, dim=-1)
        most_likely = logits.argmax(dim=-1, keepdim=True)  # [..., 1]
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, most_likely, 1.0)

    def sample(self, weights: Tensor) -> Tensor:
        """Draw an index, each with a probability in proportion to its weight. [..., V] -> [...]

        An exponential race, as inside torch.multinomial, which would also wait for the device to check the weights.
        """
        times = torch.empty_like(weights).exponential_(generator=self._generator)  # never 0
        return (weights / times).argmax(dim=-1)

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers in [0, 1) in the shape of `like`."""
        return torch.rand(like.shape, generator=self._generator, device=like.device)
