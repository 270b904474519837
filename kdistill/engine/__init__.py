"""The engine: students, their passes without a graph, and training."""

from kdistill.engine.gradient_distance import class_gradients, gradient_match
from kdistill.engine.precision import use_precision
from kdistill.engine.sample_scores import sample_scores
from kdistill.engine.student_functions import embed, embed_with_vjp, grad_jvp, loss_and_grad
from kdistill.engine.student_training import accuracy, train
from kdistill.engine.students import STUDENTS, GradJvp, Student, build_student
from kdistill.engine.trajectory_gradient import TrajectoryMatch, trajectory_match

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
