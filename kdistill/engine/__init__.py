"""The engine: students, their passes without a graph, and training."""

from kdistill.engine.features import embed, embed_with_vjp
from kdistill.engine.gradient_matching import class_gradients, gradient_match
from kdistill.engine.per_sample_scores import sample_scores
from kdistill.engine.precision import use_precision
from kdistill.engine.second_order import grad_jvp
from kdistill.engine.students import STUDENTS, GradJvp, Student, build_student
from kdistill.engine.training import accuracy, loss_and_grad, train
from kdistill.engine.unroll import TrajectoryMatch, trajectory_match

__all__ = [
    "STUDENTS",
    "GradJvp",
    "Student",
    "TrajectoryMatch",
    "accuracy",
    "build_student",
    "class_gradients",
    "embed",
    "embed_with_vjp",
    "grad_jvp",
    "gradient_match",
    "loss_and_grad",
    "sample_scores",
    "train",
    "trajectory_match",
    "use_precision",
]
