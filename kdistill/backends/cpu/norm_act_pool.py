"""norm_act_pool through csrc/cpu/norm_act_pool.cpp and norm_act_pool_tangent.cpp."""

from kdistill.backends.cpu import launch, new_channels_last
from kdistill.backends.native import NormActPool

_op = NormActPool(launch, new_channels_last)
norm_act_pool, norm_act_pool_bwd = _op.forward, _op.backward
norm_act_pool_tangent, norm_act_pool_bwd_tangent = _op.tangent, _op.backward_tangent
