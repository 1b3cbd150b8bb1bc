"""Which of torch's functions do what, as ``__torch_function__`` is handed them."""

import torch
from torch import Tensor
from torch.nn import functional as F

ADDITIONS_IN_PLACE = {Tensor.add_, Tensor.__iadd__}
ADDITIONS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, *ADDITIONS_IN_PLACE}
RELUS_IN_PLACE = {F.relu_, torch.relu_, Tensor.relu_}
RELUS = {F.relu, torch.relu, Tensor.relu, *RELUS_IN_PLACE}


# Names below that this torch lacks (rename_, since tensors have no names): nobody calls them.
GONE: set[str] = set()


def _methods(names: str) -> set:
    GONE.update(name for name in names.split() if not hasattr(Tensor, name))
    return {getattr(Tensor, name) for name in names.split() if name not in GONE}


def _getters(names: str) -> set:
    return {attribute.__get__ for attribute in _methods(names)}


def _setters(names: str) -> set:
    return {attribute.__set__ for attribute in _methods(names)}


# What is known without numbers, or of this tensor and not of a view of it.
ASKS = _getters(
    "shape dtype device layout ndim requires_grad is_cuda is_cpu is_meta is_sparse is_quantized "
    "is_mkldnn is_nested itemsize nbytes is_leaf retains_grad output_nr grad _version _base"
) | _methods(
    "size dim numel nelement ndimension element_size is_floating_point is_complex get_device "
    "__len__ stride is_contiguous is_inference _is_view"
)

# What sees, or changes, the gradient that passes through a tensor.
SEES_GRADIENT = (
    _methods("register_hook register_post_accumulate_grad_hook retain_grad")
    | _getters("grad_fn _backward_hooks")
    | _setters("_backward_hooks")
)

# What changes the history of a tensor, and not of a view of it.
CHANGES_HISTORY = _methods("requires_grad_ detach_ backward") | _setters("requires_grad grad")

# What gives a tensor another shape, or other memory, for whoever holds it.
RESHAPES_IN_PLACE = _methods(
    "set_ resize_ resize_as_ unsqueeze_ squeeze_ t_ transpose_ swapaxes_ swapdims_ as_strided_ "
    "rename_"
) | _setters("data")
