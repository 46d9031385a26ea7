"""A limit on the memory of networks that are built with the settings of a file."""

from typing import Any

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

NUM_COPIES, SPARE_BYTES = 4, 2**24  # what initialization and a move to a GPU take


class MemoryLimit(TorchDispatchMode):
    """
    Context manager in which networks are built: fails before a tensor is allocated if there is no room for it.

    :param weights: The networks' weights in the file, by their names
    :raises ValueError: if the networks take more memory than their weights
    """

    def __init__(self, weights: dict[str, th.Tensor]) -> None:
        super().__init__()
        self.num_bytes = sum(tensor.nbytes for tensor in weights.values())
        self.left = NUM_COPIES * self.num_bytes + SPARE_BYTES

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(argument.name == "device" for argument in func._schema.arguments):  # it makes a new tensor
            self.left -= func(*args, **{**kwargs, "device": "meta"}).nbytes  # which takes no memory
            if self.left < 0:
                raise ValueError(
                    f"the settings, such as `policy_kwargs`, are of larger networks than the file's, "
                    f"whose weights take {self.num_bytes / 1e6:.1f} MB"
                )
        return func(*args, **kwargs)
