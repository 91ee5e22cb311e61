"""All that the library takes from torch's private functorch modules, under one roof.

torch.func says nothing of levels: which transform a tensor belongs to, what it wraps, how to leave
the transforms for a moment. The rooms above need a few such questions; where a release of torch
renames one, this file alone is mended. Everything else in the library imports from here.
"""

from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C._functorch import (
    TransformType,
    _wrap_for_grad,
    current_level,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_gradtrackingtensor,
    maybe_current_level,
    maybe_get_bdim,
    maybe_get_level,
)
from torch._functorch.eager_transforms import (
    _create_differentiable,
    _undo_create_differentiable,
    grad_increment_nesting,
)
from torch._functorch.pyfunctorch import (
    retrieve_all_functorch_interpreters,
    temporarily_clear_interpreter_stack,
    temporarily_pop_interpreter_stack,
)

__all__ = [
    "TransformType",
    "create_differentiable",
    "current_level",
    "get_unwrapped",
    "grad_increment_nesting",
    "is_batchedtensor",
    "is_functorch_wrapped_tensor",
    "is_gradtrackingtensor",
    "maybe_current_level",
    "maybe_get_bdim",
    "maybe_get_level",
    "retrieve_all_functorch_interpreters",
    "temporarily_clear_interpreter_stack",
    "temporarily_pop_interpreter_stack",
    "transforms_active",
    "undo_create_differentiable",
    "wrap_for_grad",
]

create_differentiable = _create_differentiable
undo_create_differentiable = _undo_create_differentiable
wrap_for_grad = _wrap_for_grad
