"""norm_act_pool through csrc/cuda/norm_act_pool.cu and norm_act_pool_tangent.cu."""

from kdistill.backends.arguments import empty_channels_last
from kdistill.backends.cuda import launch
from kdistill.backends.native import NormActPool

_op = NormActPool(launch, empty_channels_last)
norm_act_pool, norm_act_pool_bwd = _op.forward, _op.backward
norm_act_pool_tangent, norm_act_pool_bwd_tangent = _op.tangent, _op.backward_tangent
